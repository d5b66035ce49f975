//! AdaBlock, LocalLeap, FreeDave and Learn2PD over the engine: reductions, bounds, and the same text where it must be.
#![allow(clippy::unwrap_used)]

use pilotfish_diffusion::freedave::Branches;
use pilotfish_diffusion::ideal::{Ideal, Law};
use pilotfish_diffusion::learn2pd::{Filter, FilterTraining, Learn2Pd, Record, Visible, split_by_prompt};
use pilotfish_diffusion::policy::{Either, LocalLeap, LocalLeapConfig, Pace, Policy, Threshold};
use pilotfish_diffusion::toy::{Attends, TinyAttention, TinySizes};
use pilotfish_diffusion::{
    AdaBlock, BlockCache, Blocks, Cache, Canvas, Cut, Diffusion, DiffusionConfig, Fixed, FreeDaveConfig,
    Generation, Noise, Revision, Score, Window,
};
use pilotfish_model::toy::TabularMasked;
use pilotfish_model::{LogitForm, MaskedBatch, MaskedModel, Token};
use proptest::prelude::*;

fn tiny(seed: u64) -> TinyAttention {
    TinyAttention::new(TinySizes::default(), Attends::Everywhere, seed).unwrap()
}

fn decode(model: &mut TinyAttention, config: &DiffusionConfig, policy: &mut dyn Policy) -> Generation {
    let canvas = Canvas::after(&[0, 3, 5, 1], 16, model.mask());
    Diffusion::cached(model, config.clone()).unwrap().generate(&canvas, policy).unwrap()
}

fn dave(model: &mut TinyAttention, config: &DiffusionConfig, dave: &FreeDaveConfig) -> Generation {
    let canvas = Canvas::after(&[0, 3, 5, 1], 16, model.mask());
    Diffusion::cached(model, config.clone()).unwrap().free_dave(&canvas, dave).unwrap()
}

fn blocks(length: usize) -> DiffusionConfig {
    DiffusionConfig { blocks: Blocks::Fixed(length), ..DiffusionConfig::default() }
}

#[test]
fn localleap_reduces_to_thresholds() {
    for seed in 0..20 {
        let mut model = tiny(seed);
        let mut leap = |anchor, relaxed, radius| {
            let mut policy = LocalLeap::new(LocalLeapConfig { anchor, relaxed, radius }).unwrap();
            let text = decode(&mut model, &blocks(8), &mut policy);
            (text.tokens, text.steps.iter().map(|step| step.commits.len()).collect::<Vec<_>>())
        };
        let (none, equal) = (leap(0.5, 0.3, 0), leap(0.5, 0.5, 4));
        let vanilla = leap(1.0, 0.1, 4);
        let wide = leap(0.5, 0.3, 8);
        let threshold = decode(&mut model, &blocks(8), &mut Threshold { gamma: 0.5 });
        let counts: Vec<usize> = threshold.steps.iter().map(|step| step.commits.len()).collect();
        assert_eq!(none, (threshold.tokens.clone(), counts.clone()));
        assert_eq!(equal, (threshold.tokens, counts));
        assert_eq!(vanilla.0, decode(&mut model, &blocks(8), &mut Fixed::default()).tokens);
        assert!(vanilla.1.iter().all(|count| *count == 1));
        // A radius as long as the block: the relaxed threshold wherever there is an anchor at all.
        struct Hand;
        impl Policy for Hand {
            fn name(&self) -> String {
                "by hand".into()
            }
            fn choose(
                &mut self,
                view: &pilotfish_diffusion::policy::View<'_>,
            ) -> pilotfish_diffusion::Result<pilotfish_diffusion::policy::Choice> {
                let anchored = view.masked.iter().any(|p| p.confidence >= 0.5);
                let accepted = view.masked.iter().filter(|p| anchored && p.confidence >= 0.3);
                let accepted = accepted.map(|p| p.position).collect();
                Ok(pilotfish_diffusion::policy::Choice { accepted, forced: Vec::new() })
            }
        }
        assert_eq!(wide.0, decode(&mut model, &blocks(8), &mut Hand).tokens);
    }
}

#[test]
fn localleap_needs_fewer_passes_where_predictions_do_not_change() {
    // Six independent positions, surest token 0 with these probabilities, whatever else is visible.
    let sure = [0.95, 0.8, 0.8, 0.6, 0.8, 0.5];
    let joint: Vec<f64> = (0..64usize)
        .map(|text| {
            (0..6).map(|at| if text >> (5 - at) & 1 == 0 { sure[at] } else { 1.0 - sure[at] }).product()
        })
        .collect();
    let mut model = TabularMasked::new(2, 6, joint).unwrap();
    let canvas = Canvas::after(&[], 6, model.mask());
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    let mut passes = |policy: &mut dyn Policy| -> Vec<usize> {
        let text = decoder.generate(&canvas, policy).unwrap();
        assert_eq!(text.tokens[..5], [0; 5]);
        text.steps.iter().map(|step| step.commits.len()).collect()
    };
    // The threshold takes the anchor, and after it nothing is sure enough.
    assert_eq!(passes(&mut Threshold { gamma: 0.9 }), [1; 6]);
    let mut leap =
        |radius| passes(&mut LocalLeap::new(LocalLeapConfig { anchor: 0.9, relaxed: 0.75, radius }).unwrap());
    // Neighbours of the anchor that reach .75: none, one, two, and the one at distance 4 too. Later passes have no
    // anchor: what is visible is none.
    assert_eq!(leap(0), [1; 6]);
    assert_eq!(leap(1), [2, 1, 1, 1, 1]);
    assert_eq!(leap(2), [3, 1, 1, 1]);
    assert_eq!(leap(4), [4, 1, 1]);
}

#[test]
fn adablock_without_a_threshold_is_fixed_blocks() {
    for seed in 0..20 {
        let mut model = tiny(seed);
        let rule = AdaBlock {
            threshold: f64::INFINITY,
            default_length: 5,
            delimiters: (0..11).collect(),
            ..AdaBlock::default()
        };
        let adaptive = DiffusionConfig { blocks: Blocks::Adaptive(rule), ..DiffusionConfig::default() };
        for cache in [Cache::None, Cache::Prefix, Cache::Dual] {
            let mut run = |config: &DiffusionConfig| {
                let config = DiffusionConfig { cache, ..config.clone() };
                let text = decode(&mut model, &config, &mut Threshold { gamma: 0.5 });
                (text.forwards(), text.tokens, text.steps, text.blocks)
            };
            assert_eq!(run(&adaptive), run(&blocks(5)));
        }
    }
}

#[test]
fn adablock_ends_blocks_on_predicted_delimiters() {
    let mut taken = 0;
    for seed in 0..60 {
        let mut model = tiny(seed);
        let delimiters = vec![1, 4, 7];
        let rule = AdaBlock {
            threshold: 0.2,
            default_length: 3,
            delimiters: delimiters.clone(),
            window: Window::Budget(0.5),
        };
        let config = DiffusionConfig { blocks: Blocks::Adaptive(rule), ..DiffusionConfig::default() };
        let canvas = Canvas::after(&[0, 3, 5, 1], 16, model.mask());
        let mut firsts = Vec::new();
        let mut decoder = Diffusion::new(&mut model, config).unwrap();
        let text = decoder
            .generate_observed(&canvas, &mut Threshold { gamma: 0.6 }, &mut |view, _, _| {
                if view.step == 0 {
                    let last = view.at(view.block.end - 1).unwrap();
                    firsts.push((view.block.clone(), last.token, last.confidence));
                }
            })
            .unwrap();
        // Blocks follow each other and fill the budget; sizing costs no pass.
        assert_eq!(text.blocks.first().unwrap().start, 4);
        assert!(text.blocks.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(text.blocks.last().unwrap().end, 20);
        assert_eq!(text.forwards(), text.steps.len() as u64);
        for (index, (block, token, confidence)) in firsts.iter().enumerate() {
            let steps = text.steps.iter().filter(|step| step.block == index).count();
            assert!((1..=block.len()).contains(&steps));
            if block.len() != 3.min(20 - block.start) {
                taken += 1;
                // At sizing; the token may be decoded differently later.
                assert!(delimiters.contains(token) && *confidence >= 0.2);
            }
        }
    }
    assert!(taken > 20, "only {taken} delimiters: the test tests nothing");
}

/// FreeDave's main law, over every static rule, cache, block, temperature and number of drafts.
#[test]
fn freedave_is_static_decoding() {
    let mut saved = 0;
    for seed in 0..3 {
        let mut model = tiny(seed);
        let rules = [
            Fixed::default(),
            Fixed::tokens(Score::LeftToRight, 1),
            Fixed::tokens(Score::Chance, 1),
            Fixed::tokens(Score::Margin, 2),
            Fixed::tokens(Score::Entropy, 1),
            Fixed { pace: Pace::Steps(3), ..Fixed::default() },
            Fixed { position_temperature: 0.5, ..Fixed::default() },
            Fixed { pace: Pace::Independent { steps: 5, eps: 1e-3 }, ..Fixed::default() },
        ];
        let configs = [
            DiffusionConfig::default(),
            blocks(8),
            DiffusionConfig { cache: Cache::Prefix, ..blocks(8) },
            DiffusionConfig { cache: Cache::Dual, ..blocks(5) },
            DiffusionConfig { cache: Cache::Dual, shift: true, ..blocks(8) },
            DiffusionConfig { temperature: 1.0, ..blocks(8) },
            DiffusionConfig { temperature: 0.7, noise: Noise::Position, ..blocks(16) },
            DiffusionConfig { guidance: 0.5, ..blocks(8) },
            DiffusionConfig {
                blocks: Blocks::Adaptive(AdaBlock {
                    delimiters: vec![2, 6],
                    default_length: 6,
                    ..AdaBlock::default()
                }),
                ..DiffusionConfig::default()
            },
        ];
        for config in &configs {
            let config = &DiffusionConfig { seed, ..config.clone() };
            for rule in rules {
                let plain = decode(&mut model, config, &mut { rule });
                let mut alone = 0;
                for drafts in [1, 2, 3, 4, 8] {
                    let fast = dave(&mut model, config, &FreeDaveConfig { drafts, rule, plus: None });
                    assert_eq!(fast.tokens, plain.tokens, "{config:?} {rule:?} d = {drafts}");
                    // Step by step, not only in the end.
                    let places = |text: &Generation| -> Vec<Vec<(usize, Token)>> {
                        text.steps
                            .iter()
                            .map(|step| step.commits.iter().map(|c| (c.position, c.token)).collect())
                            .collect()
                    };
                    assert_eq!(places(&fast), places(&plain), "{rule:?}");
                    assert!(fast.forwards() <= plain.forwards());
                    if drafts == 1 {
                        alone = fast.forwards();
                    }
                    assert!(fast.forwards() <= alone);
                    saved += plain.forwards() - fast.forwards();
                }
                // A single draft is verified by nothing: one pass a step.
                assert_eq!(alone, plain.forwards());
            }
        }
    }
    assert!(saved > 0, "no draft was ever accepted: the test tests nothing");
}

#[test]
fn freedave_in_closed_form() {
    // Predictions that never change: every draft is accepted.
    let mut model = Ideal::certain(vec![0, 1, 2, 3, 4, 5, 6, 7], 8).unwrap();
    let canvas = model.canvas();
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    for (drafts, want) in [(1, 8), (2, 5), (3, 4), (4, 3), (7, 2), (8, 2)] {
        let config = FreeDaveConfig { drafts, ..FreeDaveConfig::default() };
        let text = decoder.free_dave(&canvas, &config).unwrap();
        assert_eq!((text.forwards(), text.ledger.emitted), (want, 8), "d = {drafts}");
    }
    // Above temperature 0 a random order with noise of positions is as predictable.
    let noisy = DiffusionConfig { temperature: 1.0, noise: Noise::Position, ..DiffusionConfig::default() };
    let mut decoder = Diffusion::new(&mut model, noisy).unwrap();
    let config = FreeDaveConfig { drafts: 8, rule: Fixed::tokens(Score::Chance, 1), plus: None };
    assert_eq!(decoder.free_dave(&canvas, &config).unwrap().forwards(), 2);
}

#[test]
fn freedave_never_differs_where_thresholds_do() {
    // A deterministic tie-break makes greedy decoding of a shuffle a fixed text.
    let law = Law::Permutation { items: vec![0, 1, 2, 3, 4, 5], identity: true };
    let mut model = Ideal::new(law, 6).unwrap();
    let canvas = model.canvas();
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    let plain = decoder.generate(&canvas, &mut Fixed::default()).unwrap();
    let fast = decoder.free_dave(&canvas, &FreeDaveConfig::default()).unwrap();
    let threshold = decoder.generate(&canvas, &mut Threshold { gamma: 0.15 }).unwrap();
    assert_eq!(plain.tokens, fast.tokens);
    assert_ne!(plain.tokens, threshold.tokens);
}

#[test]
fn freedave_plus_follows_thresholds_at_one_draft() {
    for seed in 0..20 {
        let mut model = tiny(seed);
        let threshold = Threshold { gamma: 0.5 };
        let plain = decode(&mut model, &blocks(8), &mut { threshold });
        let plus = |drafts| FreeDaveConfig { drafts, plus: Some(threshold), ..FreeDaveConfig::default() };
        let one = dave(&mut model, &blocks(8), &plus(1));
        assert_eq!((one.tokens, one.ledger.target_forwards), (plain.tokens, plain.ledger.target_forwards));
        let four = dave(&mut model, &blocks(8), &plus(4));
        assert!(four.forwards() <= 16 && !four.tokens.contains(&model.mask()));
    }
}

#[test]
fn freedave_refuses_what_it_cannot_do() {
    let mut model = tiny(1);
    let canvas = Canvas::after(&[0], 8, model.mask());
    for config in [
        DiffusionConfig { end: Some(1), cut: Cut::Committed, ..DiffusionConfig::default() },
        DiffusionConfig { revision: Some(Revision { passes: 1, tokens: 1 }), ..DiffusionConfig::default() },
    ] {
        let mut decoder = Diffusion::new(&mut model, config).unwrap();
        assert!(decoder.free_dave(&canvas, &FreeDaveConfig::default()).is_err());
        assert!(decoder.extremely_greedy(&canvas, &[0; 9], Visible::One, 0).is_err());
    }
}

#[test]
fn branches_equal_a_batch() {
    let mut model = tiny(7);
    let mask = model.mask();
    let text: Vec<Token> = vec![1, 2, mask, mask, mask, 3, mask, mask];
    let drafts: [[Token; 3]; 3] = [[4, mask, mask], [4, mask, 5], [4, 6, 5]];
    model.build(&text, &[]).unwrap();
    for suffix in [0, 3] {
        let texts: Vec<Vec<Token>> =
            drafts.iter().map(|draft| [&text[..2], draft, &text[5..5 + suffix]].concat()).collect();
        let refs: Vec<&[Token]> = texts.iter().map(Vec::as_slice).collect();
        let wanted = [2, 3, 4];
        let batch = model.update(&refs, 2..5, &[&wanted, &wanted, &wanted]).unwrap();
        let layout = Branches::new(2, 3, 3, suffix).unwrap();
        let tree = model.branches(&drafts.concat(), &layout, 2, suffix).unwrap();
        for (row, logits) in tree.iter().enumerate() {
            let other = batch[row / 3].row(row % 3).unwrap();
            assert!(logits.iter().zip(other).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5), "row {row}");
        }
    }
    assert!(model.branches(&[1], &Branches::new(2, 3, 3, 0).unwrap(), 2, 0).is_err());
}

#[test]
fn learn2pd_at_the_ends() {
    for seed in 0..10 {
        let mut model = tiny(seed);
        let vanilla = decode(&mut model, &blocks(8), &mut Fixed::default());
        let filter = || Filter::new(8, 2, seed).unwrap();
        for visible in [Visible::Repredicted, Visible::One, Visible::Zero] {
            let mut never = Learn2Pd::new(filter(), 1.0, visible).unwrap();
            let text = decode(&mut model, &blocks(8), &mut never);
            assert_eq!((text.tokens, text.ledger.target_forwards), (vanilla.tokens.clone(), 16));
            let mut always = Learn2Pd::new(filter(), 0.0, visible).unwrap();
            assert_eq!(decode(&mut model, &blocks(8), &mut always).forwards(), 2);
        }
        // A block that the filter is too wide for is padded; one too narrow is refused.
        let mut wide = Learn2Pd::new(Filter::new(32, 2, 1).unwrap(), 0.9, Visible::Repredicted).unwrap();
        assert_eq!(decode(&mut model, &blocks(8), &mut wide).ledger.emitted, 16);
        let canvas = Canvas::after(&[], 16, model.mask());
        let mut narrow = Learn2Pd::new(Filter::new(4, 2, 1).unwrap(), 0.9, Visible::One).unwrap();
        assert!(Diffusion::new(&mut model, blocks(8)).unwrap().generate(&canvas, &mut narrow).is_err());
    }
    assert!(Learn2Pd::new(Filter::new(4, 2, 1).unwrap(), f64::NAN, Visible::One).is_err());
    assert!(Learn2Pd::new(Filter::new(4, 2, 1).unwrap(), 1.5, Visible::One).is_err());
    let policy = Learn2Pd::new(Filter::new(4, 2, 1).unwrap(), 0.9, Visible::One).unwrap();
    assert!(policy.clone().forcing(Pace::Tokens(0)).is_err() && policy.forcing(Pace::Steps(4)).is_ok());
}

#[test]
fn the_identity_filter_decodes_as_a_threshold() {
    for seed in 0..20 {
        let mut model = tiny(seed);
        let gamma = 0.55;
        let filter = Filter::threshold(8, gamma, 10.0).unwrap();
        // What is read at visible positions is nothing to a diagonal filter.
        for visible in [Visible::Repredicted, Visible::One, Visible::Zero] {
            let mut policy = Learn2Pd::new(filter.clone(), 0.5, visible).unwrap();
            let learnt = decode(&mut model, &blocks(8), &mut policy);
            let threshold = decode(&mut model, &blocks(8), &mut Threshold { gamma });
            assert_eq!((learnt.tokens, learnt.steps), (threshold.tokens, threshold.steps));
        }
    }
}

#[test]
fn extremely_greedy_ends_in_the_reference() {
    for seed in 0..20 {
        let mut model = tiny(seed);
        let canvas = Canvas::after(&[0, 3, 5, 1], 16, model.mask());
        let mut decoder = Diffusion::new(&mut model, blocks(8)).unwrap();
        let reference = decoder.generate(&canvas, &mut Fixed::default()).unwrap();
        for visible in [Visible::Repredicted, Visible::One, Visible::Zero] {
            let oracle = decoder.extremely_greedy(&canvas, &reference.tokens, visible, 7).unwrap();
            assert_eq!(oracle.generation.tokens, reference.tokens);
            assert_eq!(oracle.records.len() as u64, oracle.generation.forwards());
            // Passes of a block: at most one more than its masks.
            assert!(oracle.generation.forwards() <= 2 * 9);
            assert!(oracle.records[0].masked.iter().all(|masked| *masked));
            assert_eq!(oracle.generation.ledger.emitted + oracle.generation.filled as u64, 16);
        }
        assert!(decoder.extremely_greedy(&canvas, &[0], Visible::One, 0).is_err());
    }
}

#[test]
fn labels_by_hand() {
    // Every prediction is final from the start: one step, all labels 1.
    let mut model = Ideal::certain(vec![2, 0, 1], 3).unwrap();
    let canvas = model.canvas();
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    let oracle = decoder.extremely_greedy(&canvas, &[2, 0, 1], Visible::Repredicted, 3).unwrap();
    assert_eq!(
        oracle.records,
        [Record { prompt: 3, confidences: vec![1.0; 3], labels: vec![true; 3], masked: vec![true; 3] }]
    );
    // A reference the model will never say: nothing is right, the second step repeats the first, the block is filled.
    let oracle = decoder.extremely_greedy(&canvas, &[0, 2, 2], Visible::One, 0).unwrap();
    let labels: Vec<Vec<bool>> = oracle.records.iter().map(|record| record.labels.clone()).collect();
    assert_eq!(labels, [[false; 3], [false; 3]]);
    assert_eq!((oracle.generation.tokens, oracle.generation.filled), (vec![0, 2, 2], 3));
    // Half of it: step one commits the right one; with it visible its label is 1 by convention.
    let oracle = decoder.extremely_greedy(&canvas, &[2, 1, 0], Visible::One, 0).unwrap();
    let labels: Vec<Vec<bool>> = oracle.records.iter().map(|record| record.labels.clone()).collect();
    assert_eq!(labels, [[true, false, false], [true, false, false]]);
    assert_eq!(oracle.records[1].confidences[0], 1.0);
    assert_eq!(oracle.records[1].masked, [false, true, true]);
}

#[test]
fn splits_keep_prompts_whole() {
    let record = |prompt| Record { prompt, confidences: vec![0.5], labels: vec![true], masked: vec![true] };
    let records: Vec<Record> = (0..100).flat_map(|prompt| [record(prompt), record(prompt)]).collect();
    let sets = split_by_prompt(&records, 5);
    assert_eq!(sets.each_ref().map(Vec::len), [160, 20, 20]);
    for (a, set) in sets.iter().enumerate() {
        for other in &sets[a + 1..] {
            assert!(set.iter().all(|record| other.iter().all(|other| other.prompt != record.prompt)));
        }
    }
    assert_eq!(split_by_prompt(&[], 1).concat().len(), 0);
}

#[test]
fn a_filter_learns_from_traces() {
    let mut model = tiny(3);
    let mut records = Vec::new();
    for prompt in 0..60usize {
        let text = [prompt as Token % 11, (prompt as Token / 11) % 11, 3];
        let canvas = Canvas::after(&text, 8, model.mask());
        let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
        let reference = decoder.generate(&canvas, &mut Fixed::default()).unwrap();
        let oracle =
            decoder.extremely_greedy(&canvas, &reference.tokens, Visible::Repredicted, prompt).unwrap();
        records.extend(oracle.records);
    }
    let [train, _, test] = split_by_prompt(&records, 1);
    let training = FilterTraining { steps: 600, ..FilterTraining::default() };
    let fit = training.fit(8, &train).unwrap();
    assert!(fit.losses[1] < fit.losses[0]);
    let report = pilotfish_diffusion::learn2pd::FilterReport::of(&fit.filter, &test, 0.9).unwrap();
    assert!(report.auc.is_some_and(|auc| auc > 0.55), "{report:?}");
}

#[test]
fn policies_compose() {
    for seed in 0..10 {
        let mut model = tiny(seed);
        let leap = LocalLeap::new(LocalLeapConfig { anchor: 0.6, relaxed: 0.3, radius: 2 }).unwrap();
        // A threshold that LocalLeap contains adds nothing.
        let alone = decode(&mut model, &blocks(8), &mut leap.clone());
        let both = decode(&mut model, &blocks(8), &mut Either(leap, Threshold { gamma: 0.6 }));
        assert_eq!(alone.tokens, both.tokens);
        // AdaBlock, LocalLeap and a dual cache together still resolve everything.
        let rule = AdaBlock { delimiters: vec![2, 6], default_length: 4, ..AdaBlock::default() };
        let config = DiffusionConfig {
            blocks: Blocks::Adaptive(rule),
            cache: Cache::Dual,
            shift: true,
            ..DiffusionConfig::default()
        };
        let text = decode(&mut model, &config, &mut leap.clone());
        assert!(!text.tokens.contains(&model.mask()) && text.forwards() <= 16);
    }
}

#[test]
fn the_toy_agrees_with_itself() {
    let mut model = tiny(5);
    let text: Vec<Token> = vec![1, 2, 11, 4, 11];
    let all: Vec<usize> = (0..5).collect();
    let batch =
        MaskedBatch { sequences: &[&text, &text[..3]], positions: None, form: LogitForm::Full, taps: &[] };
    let whole = model.forward(&batch).unwrap();
    assert_eq!(whole.logits[1].rows(), 3);
    assert_eq!(model.build(&text, &all).unwrap(), whole.logits[0]);
    // Everything run again is a pass over the whole.
    assert_eq!(model.update(&[&text], 0..5, &[&all]).unwrap()[0], whole.logits[0]);
    assert!(model.update(&[&[1; 9]], 0..2, &[&[0]]).is_err());
    assert!(model.build(&[99], &[]).is_err() && model.build(&[1; 100], &[]).is_err());
    assert!(
        TinyAttention::new(TinySizes { width: 0, ..TinySizes::default() }, Attends::Everywhere, 1).is_err()
    );
    assert!(TinyAttention::new(TinySizes::default(), Attends::BlockCausal(0), 1).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn thresholds_are_nested(seed in 0u64..1000, low in 0.1f64..0.5, more in 0.0f64..0.5) {
        // In one state, what a higher threshold accepts a lower one accepts too.
        let mut model = tiny(seed);
        let canvas = Canvas::after(&[0, 3, 5, 1], 16, model.mask());
        let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
        let mut first = |gamma| {
            let mut seen = None;
            decoder.generate_observed(&canvas, &mut Threshold { gamma }, &mut |_, choice, _| {
                seen.get_or_insert_with(|| choice.accepted.clone());
            }).unwrap();
            seen.unwrap()
        };
        let (many, few) = (first(low), first(low + more));
        prop_assert!(few.iter().all(|at| many.contains(at)));
    }
}
