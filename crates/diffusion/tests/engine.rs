//! The engine: blocks, caches, schedules, ends of text, infilling, and what users can get wrong.
#![allow(clippy::unwrap_used)]

use pilotfish_diffusion::ideal::{Ideal, Law};
use pilotfish_diffusion::policy::{Choice, Factor, Pace, Policy, Threshold, View};
use pilotfish_diffusion::toy::{Attends, TinyAttention, TinySizes};
use pilotfish_diffusion::{
    AdaBlock, Blocks, Cache, Canvas, Cut, Diffusion, DiffusionConfig, DiffusionError, Fixed, Generation,
    Noise, Revision, Score, Stop,
};
use pilotfish_model::toy::TabularMasked;
use pilotfish_model::{Logits, MaskedBatch, MaskedModel, MaskedOutput, ModelInfo, Token};
use proptest::prelude::*;

fn tiny(seed: u64) -> TinyAttention {
    TinyAttention::new(TinySizes::default(), Attends::Everywhere, seed).unwrap()
}

fn canvas(model: &dyn MaskedModel, prompt: &[Token], length: usize) -> Canvas {
    Canvas::after(prompt, length, model.mask())
}

fn blocks(length: usize) -> DiffusionConfig {
    DiffusionConfig { blocks: Blocks::Fixed(length), ..DiffusionConfig::default() }
}

/// Positions in the order they were committed.
fn order(text: &Generation) -> Vec<Vec<usize>> {
    text.steps.iter().map(|step| step.commits.iter().map(|commit| commit.position).collect()).collect()
}

/// A model whose rows of logits are a function of the position alone, with a record of what it was asked.
struct Rows {
    info: ModelInfo,
    rows: Vec<Vec<f32>>,
    asked: Vec<Vec<Vec<usize>>>,
}

impl Rows {
    fn new(rows: Vec<Vec<f32>>) -> Self {
        let info = ModelInfo {
            vocab: rows[0].len(),
            context: rows.len(),
            name: "rows".into(),
            ..ModelInfo::default()
        };
        Self { info, rows, asked: Vec::new() }
    }

    /// Each position predicts a token with a confidence; the mask is the last of `vocab`.
    fn confident(vocab: usize, predictions: &[(Token, f64)]) -> Self {
        let row = |&(token, confidence): &(Token, f64)| {
            let rest = (1.0 - confidence) / (vocab as f64 - 2.0);
            let mut row = vec![rest.ln() as f32; vocab];
            row[token as usize] = confidence.ln() as f32;
            // The mask is what the model likes best; it must never be chosen.
            row[vocab - 1] = 9.0;
            row
        };
        Self::new(predictions.iter().map(row).collect())
    }
}

impl MaskedModel for Rows {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn mask(&self) -> Token {
        self.info.vocab as Token - 1
    }

    fn forward(&mut self, batch: &MaskedBatch<'_>) -> pilotfish_model::Result<MaskedOutput> {
        let positions = batch.positions.unwrap();
        self.asked.push(positions.iter().map(|of| of.to_vec()).collect());
        let logits = positions
            .iter()
            .map(|of| {
                let rows = of.iter().flat_map(|&at| self.rows[at].clone()).collect();
                Logits::from_rows(rows, self.info.vocab, batch.form)
            })
            .collect::<Result<_, _>>()?;
        Ok(MaskedOutput { logits, taps: vec![Vec::new(); positions.len()] })
    }
}

#[test]
fn llada_schedule_is_followed() {
    let mut model = tiny(1);
    let canvas = canvas(&model, &[0, 1], 20);
    let mut decoder = Diffusion::new(&mut model, blocks(10)).unwrap();
    let mut policy = Fixed { pace: Pace::Steps(4), ..Fixed::default() };
    let text = decoder.generate(&canvas, &mut policy).unwrap();
    let counts: Vec<usize> = order(&text).iter().map(Vec::len).collect();
    assert_eq!(counts, [3, 3, 2, 2, 3, 3, 2, 2]);
    assert_eq!((text.forwards(), text.ledger.emitted, text.ledger.target_rows), (8, 20, 8 * 22));
    assert_eq!(text.tokens_per_forward(), Some(2.5));
    // More steps than masks: one a step, and no step is wasted.
    let mut policy = Fixed { pace: Pace::Steps(30), ..Fixed::default() };
    assert_eq!(decoder.generate(&canvas, &mut policy).unwrap().forwards(), 20);
    // Dream's schedule says none in its first step; one is committed anyway.
    let mut policy = Fixed { pace: Pace::Dream { steps: 10, eps: 1e-3 }, ..Fixed::default() };
    let dream = decoder.generate(&canvas, &mut policy).unwrap();
    assert!(order(&dream).iter().all(|step| !step.is_empty()) && dream.forwards() <= 20);
}

#[test]
fn the_mask_is_never_emitted() {
    let mut model = Rows::confident(5, &[(0, 0.9), (1, 0.5), (2, 0.7)]);
    let canvas = canvas(&model, &[], 3);
    for temperature in [0.0, 1.0, 50.0] {
        for seed in 0..50 {
            let config =
                DiffusionConfig { temperature, seed, suppress: vec![3], ..DiffusionConfig::default() };
            let text =
                Diffusion::new(&mut model, config).unwrap().generate(&canvas, &mut Fixed::default()).unwrap();
            assert!(text.tokens.iter().all(|&token| token < 3), "{:?}", text.tokens);
        }
    }
}

#[test]
fn orders_by_hand() {
    let mut model = Rows::confident(5, &[(0, 0.6), (1, 0.9), (2, 0.6), (0, 0.7)]);
    let canvas = canvas(&model, &[], 4);
    let mut by = |score, tokens| {
        let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
        order(&decoder.generate(&canvas, &mut Fixed::tokens(score, tokens)).unwrap())
    };
    // Equal confidences go from left to right.
    assert_eq!(by(Score::Probability, 1), [[1], [3], [0], [2]]);
    assert_eq!(by(Score::Margin, 2), [[1, 3], [0, 2]]);
    assert_eq!(by(Score::Entropy, 3), [vec![0, 1, 3], vec![2]]);
    assert_eq!(by(Score::LeftToRight, 2), [[0, 1], [2, 3]]);
    let mut random = by(Score::Chance, 1).concat();
    random.sort_unstable();
    assert_eq!(random, [0, 1, 2, 3]);
}

#[test]
fn positions_can_be_drawn() {
    // alg_temp: the surer of two positions goes first with probability e^{c1/T} / (e^{c1/T} + e^{c2/T}).
    let mut model = Rows::confident(5, &[(0, 0.9), (1, 0.6)]);
    let canvas = canvas(&model, &[], 2);
    let n = 4000;
    let first = (0..n)
        .filter(|&seed| {
            let config = DiffusionConfig { seed, ..DiffusionConfig::default() };
            let mut policy = Fixed { position_temperature: 0.3, ..Fixed::default() };
            let text = Diffusion::new(&mut model, config).unwrap().generate(&canvas, &mut policy).unwrap();
            order(&text)[0] == [0]
        })
        .count() as f64;
    let p = 1.0 / (1.0 + (-0.3f64 / 0.3).exp());
    let error = (p * (1.0 - p) / n as f64).sqrt();
    assert!((first / n as f64 - p).abs() < 4.0 * error, "{} is not {p}", first / n as f64);
}

#[test]
fn a_policy_that_chooses_nothing_still_advances() {
    struct Nothing;
    impl Policy for Nothing {
        fn name(&self) -> String {
            "nothing".into()
        }
        fn choose(&mut self, _: &View<'_>) -> pilotfish_diffusion::Result<Choice> {
            Ok(Choice::default())
        }
    }
    let mut model = tiny(2);
    let canvas = canvas(&model, &[3], 12);
    let mut decoder = Diffusion::new(&mut model, blocks(5)).unwrap();
    let text = decoder.generate(&canvas, &mut Nothing).unwrap();
    // What is forced is the surest: vanilla decoding.
    assert_eq!(text.tokens, decoder.generate(&canvas, &mut Fixed::default()).unwrap().tokens);
    assert_eq!(text.forwards(), 12);
}

#[test]
fn a_policy_that_chooses_elsewhere_is_named() {
    struct Elsewhere(usize);
    impl Policy for Elsewhere {
        fn name(&self) -> String {
            "elsewhere".into()
        }
        fn choose(&mut self, _: &View<'_>) -> pilotfish_diffusion::Result<Choice> {
            Ok(Choice { accepted: vec![self.0], forced: Vec::new() })
        }
    }
    let mut model = tiny(2);
    let canvas = canvas(&model, &[3], 12);
    let mut decoder = Diffusion::new(&mut model, blocks(5)).unwrap();
    // The prompt, a later block, beyond the text.
    for position in [0, 7, 99] {
        let error = decoder.generate(&canvas, &mut Elsewhere(position)).unwrap_err();
        assert!(matches!(error, DiffusionError::BadChoice { position: at, .. } if at == position), "{error}");
    }
}

#[test]
fn thresholds_at_the_ends() {
    let mut model = tiny(3);
    let canvas = canvas(&model, &[1, 2], 16);
    let mut decoder = Diffusion::new(&mut model, blocks(8)).unwrap();
    let vanilla = decoder.generate(&canvas, &mut Fixed::default()).unwrap();
    let never = decoder.generate(&canvas, &mut Threshold { gamma: 1.0 }).unwrap();
    assert_eq!((never.tokens, never.ledger.target_forwards), (vanilla.tokens.clone(), 16));
    assert_eq!(decoder.generate(&canvas, &mut Threshold { gamma: 0.0 }).unwrap().forwards(), 2);
    let zero = decoder.generate(&canvas, &mut Factor { f: 0.0, quirk: false }).unwrap();
    assert_eq!((zero.tokens, zero.ledger.target_forwards), (vanilla.tokens, 16));
}

/// Fast-dLLM's theorem is tight: at a marginal of .66 two tokens must not be committed together, at .75 they may.
#[test]
fn the_factor_rule_sees_the_counterexample() {
    for (joint, together) in [([0.32, 0.34, 0.34, 0.0], false), ([0.5, 0.25, 0.25, 0.0], true)] {
        let mut model = TabularMasked::new(2, 2, joint.to_vec()).unwrap();
        let canvas = canvas(&model, &[], 2);
        let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
        let product = decoder.generate(&canvas, &mut Threshold { gamma: 0.0 }).unwrap();
        assert_eq!(product.tokens, [0, 0], "the likeliest of the product");
        let likeliest = (0..4).max_by(|&a, &b| joint[a].total_cmp(&joint[b]).then(b.cmp(&a))).unwrap();
        assert_eq!(likeliest == 0, together);
        let text = decoder.generate(&canvas, &mut Factor::default()).unwrap();
        assert_eq!(text.forwards(), if together { 1 } else { 2 });
        // Sorted confidences .66, .66: the second would need 2/3.
        assert_eq!(text.tokens == [0, 0], together);
    }
}

#[test]
fn sampling_one_at_a_time_is_exact() {
    // Random order, temperature 1: uniform over the permutations of three.
    let law = Law::Permutation { items: vec![0, 1, 2], identity: true };
    let mut model = Ideal::new(law, 3).unwrap();
    let canvas = model.canvas();
    for noise in [Noise::Step, Noise::Position] {
        let mut counts = std::collections::BTreeMap::new();
        let n = 6000u32;
        for seed in 0..u64::from(n) {
            let config = DiffusionConfig { temperature: 1.0, noise, seed, ..DiffusionConfig::default() };
            let mut decoder = Diffusion::new(&mut model, config).unwrap();
            let text = decoder.generate(&canvas, &mut Fixed::tokens(Score::Chance, 1)).unwrap();
            *counts.entry(text.tokens).or_insert(0.0) += 1.0;
        }
        assert_eq!(counts.len(), 6, "{counts:?}");
        let want = f64::from(n) / 6.0;
        let chi2: f64 = counts.values().map(|count: &f64| (count - want).powi(2) / want).sum();
        // Five degrees of freedom, p = 0.001.
        assert!(chi2 < 20.5, "{noise:?}: {chi2}");
    }
}

#[test]
fn shifted_logits() {
    // Output i predicts token i: with the shift, position i says i - 1, and position 0 says 0.
    let rows: Vec<(Token, f64)> = (0..6).map(|token| (token, 0.9)).collect();
    let mut model = Rows::confident(8, &rows);
    let canvas = canvas(&model, &[5], 5);
    let mut run = |shift| {
        let config = DiffusionConfig { shift, ..DiffusionConfig::default() };
        Diffusion::new(&mut model, config).unwrap().generate(&canvas, &mut Fixed::default()).unwrap().tokens
    };
    assert_eq!(run(true), [5, 0, 1, 2, 3, 4]);
    assert_eq!(run(false), [5, 1, 2, 3, 4, 5]);
    let all = Canvas::after(&[], 6, 7);
    let config = DiffusionConfig { shift: true, ..DiffusionConfig::default() };
    let text = Diffusion::new(&mut model, config).unwrap().generate(&all, &mut Fixed::default()).unwrap();
    // Shifting twice would give 0 0 0 1 2 3.
    assert_eq!(text.tokens, [0, 0, 1, 2, 3, 4]);
}

#[test]
fn guidance_moves_away_from_the_free_prediction() {
    // The prompt decides: with it, token 0 has logit 1 and token 1 has 1.2; without, 0 and 2. Guidance w = 1 gives
    // 2 and 0.4.
    struct Prompted(ModelInfo);
    impl MaskedModel for Prompted {
        fn info(&self) -> &ModelInfo {
            &self.0
        }
        fn mask(&self) -> Token {
            3
        }
        fn forward(&mut self, batch: &MaskedBatch<'_>) -> pilotfish_model::Result<MaskedOutput> {
            let rows = |text: &&[Token]| match text[0] {
                3 => vec![0.0, 2.0, -9.0, 0.0],
                _ => vec![1.0, 1.2, -9.0, 0.0],
            };
            let logits = batch
                .sequences
                .iter()
                .map(|text| Logits::from_rows(rows(text), 4, batch.form))
                .collect::<Result<_, _>>()?;
            Ok(MaskedOutput { logits, taps: vec![Vec::new(); batch.sequences.len()] })
        }
    }
    let mut model = Prompted(ModelInfo { vocab: 4, context: 2, ..ModelInfo::default() });
    for (guidance, want, rows) in [(0.0, 1, 2), (1.0, 0, 4)] {
        let config = DiffusionConfig { guidance, ..DiffusionConfig::default() };
        let mut decoder = Diffusion::new(&mut model, config).unwrap();
        let text = decoder.generate(&Canvas::after(&[2], 1, 3), &mut Fixed::default()).unwrap();
        assert_eq!((text.tokens[1], text.forwards(), text.ledger.target_rows), (want, 1, rows));
        if guidance > 0.0 {
            let p = 2f64.exp() / (2f64.exp() + 0.4f64.exp() + (-9f64).exp());
            assert!((text.steps[0].commits[0].confidence - p).abs() < 1e-6);
        }
    }
}

#[test]
fn infilling() {
    let mut model = tiny(4);
    let mask = model.mask();
    let given = [1, mask, 2, 3, mask, mask, 4, 5];
    let canvas = Canvas::infill(&given, mask);
    assert_eq!(canvas.region, 1..6);
    for config in [blocks(1), blocks(3), DiffusionConfig::default()] {
        let text =
            Diffusion::new(&mut model, config).unwrap().generate(&canvas, &mut Fixed::default()).unwrap();
        assert_eq!(text.forwards(), 3);
        assert!(!text.tokens.contains(&mask));
        for (at, &token) in given.iter().enumerate().filter(|(_, token)| **token != mask) {
            assert_eq!(text.tokens[at], token, "a visible token changed");
        }
    }
    // Nothing to do costs nothing.
    let whole = Canvas::infill(&[1, 2], mask);
    let config = DiffusionConfig::default();
    let text = Diffusion::new(&mut model, config).unwrap().generate(&whole, &mut Fixed::default()).unwrap();
    assert_eq!((text.tokens, text.ledger.target_forwards), (vec![1, 2], 0));
}

#[test]
fn ends_of_text() {
    // Token 6 ends; positions 2.. of the response predict it.
    let rows: Vec<(Token, f64)> = (0..12).map(|at| if at < 4 { (at, 0.9) } else { (6, 0.8) }).collect();
    let mut model = Rows::confident(8, &rows);
    let canvas = canvas(&model, &[0, 1], 10);
    let mut run = |config: DiffusionConfig| {
        let config = DiffusionConfig { end: Some(6), ..config };
        Diffusion::new(&mut model, config).unwrap().generate(&canvas, &mut Fixed::default()).unwrap()
    };
    let all = run(blocks(3));
    assert_eq!((all.forwards(), all.answer(Some(6)), all.filled), (10, &[2, 3][..], 0));
    // The first block of three has one; the second is nothing else.
    let contains = run(DiffusionConfig { stop: Stop::Contains, ..blocks(3) });
    assert_eq!((contains.forwards(), contains.filled, contains.ledger.emitted), (3, 7, 3));
    let filled = run(DiffusionConfig { stop: Stop::Filled, ..blocks(3) });
    assert_eq!((filled.forwards(), filled.filled), (6, 4));
    assert!(all.tokens == contains.tokens && all.tokens == filled.tokens);
    // Cut where it is committed: the two surer tokens come first, then the leftmost end.
    let cut = run(DiffusionConfig { cut: Cut::Committed, ..DiffusionConfig::default() });
    assert_eq!((cut.tokens, cut.ledger.target_forwards), (vec![0, 1, 2, 3, 6], 3));
    // Cut where it is predicted: after the first step, at the leftmost of the surest ends.
    let cut = run(DiffusionConfig { cut: Cut::Predicted, ..blocks(3) });
    assert_eq!((cut.tokens, cut.ledger.target_forwards), (vec![0, 1, 2, 3, 6], 3));
    // Rows fall with the text.
    assert_eq!(cut.ledger.target_rows, 12 + 5 + 5);
}

/// Learn2PD's oracle 6: masked predictions [a, end, b, end] with confidences [.9, .6, .9, .8].
#[test]
fn cuts_by_hand() {
    struct Accepts(Vec<usize>);
    impl Policy for Accepts {
        fn name(&self) -> String {
            "accepts".into()
        }
        fn choose(&mut self, view: &View<'_>) -> pilotfish_diffusion::Result<Choice> {
            let accepted = self.0.iter().copied().filter(|at| view.masked.iter().any(|p| p.position == *at));
            Ok(Choice { accepted: accepted.collect(), forced: vec![view.masked[0].position] })
        }
    }
    let mut model = Rows::confident(5, &[(0, 0.9), (3, 0.6), (1, 0.9), (3, 0.8)]);
    let canvas = canvas(&model, &[], 4);
    let config = DiffusionConfig { end: Some(3), cut: Cut::Predicted, ..DiffusionConfig::default() };
    let mut first_cut = |accepted: Vec<usize>| {
        let mut lengths = Vec::new();
        let mut decoder = Diffusion::new(&mut model, config.clone()).unwrap();
        let text = decoder
            .generate_observed(&canvas, &mut Accepts(accepted), &mut |view, _, _| {
                lengths.push(view.tokens.len());
            })
            .unwrap();
        lengths.push(text.tokens.len());
        lengths[1]
    };
    // No end accepted: after the surest predicted one. Accepted at 1: after it.
    assert_eq!(first_cut(vec![]), 4);
    assert_eq!(first_cut(vec![1]), 2);
}

#[test]
fn revision_spends_its_passes_and_masks_the_least_certain() {
    let mut model = Rows::confident(
        5,
        &[(0, 0.6), (1, 0.9), (2, 0.6), (0, 0.7), (1, 0.8), (0, 0.95), (1, 0.65), (2, 0.5)],
    );
    let canvas = canvas(&model, &[], 8);
    let revision = Some(Revision { passes: 1, tokens: 2 });
    let config = DiffusionConfig { revision, ..DiffusionConfig::default() };
    let text = Diffusion::new(&mut model, config).unwrap().generate(&canvas, &mut Fixed::default()).unwrap();
    // Seven of eight committed triggers it: the two of .6 are masked again, and win again over the .5.
    assert_eq!((text.forwards(), text.ledger.emitted), (9, 8));
    assert_eq!(order(&text)[7], [0, 2]);
    assert!(!text.tokens.contains(&4));
}

#[test]
fn caches_are_exact_where_they_are() {
    let prompt = [0, 1, 2, 3];
    let plain = |attends, cache, size: usize, shift| {
        let mut model = TinyAttention::new(TinySizes::default(), attends, 9).unwrap();
        let canvas = Canvas::after(&prompt, 16, model.mask());
        let config =
            DiffusionConfig { cache, shift, blocks: Blocks::Fixed(size), ..DiffusionConfig::default() };
        let mut decoder = Diffusion::cached(&mut model, config).unwrap();
        decoder.generate(&canvas, &mut Fixed::default()).unwrap()
    };
    let confidences = |text: &Generation| -> Vec<f64> {
        text.steps.iter().flat_map(|step| step.commits.iter().map(|commit| commit.confidence)).collect()
    };
    let close = |a: &Generation, b: &Generation, steps: usize| {
        confidences(a).iter().zip(confidences(b)).take(steps).all(|(a, b)| (a - b).abs() < 1e-5)
    };
    for cache in [Cache::Prefix, Cache::Dual] {
        // A model that is causal from block to block keeps nothing that changes.
        let causal = |cache| plain(Attends::BlockCausal(4), cache, 4, false);
        assert_eq!(causal(Cache::None).tokens, causal(cache).tokens);
        assert!(close(&causal(Cache::None), &causal(cache), 16), "{cache:?}");
        // Otherwise the first step is exact, and the later ones are not.
        let full = |cache| plain(Attends::Everywhere, cache, 8, false);
        assert!(close(&full(Cache::None), &full(cache), 1), "{cache:?}");
    }
    // One block: all of it is run again, and only the prompt is kept.
    let whole = |cache| plain(Attends::Everywhere, cache, 16, false);
    assert!(close(&whole(Cache::None), &whole(Cache::Prefix), 1));
    assert!(!close(&whole(Cache::None), &whole(Cache::Prefix), 16), "the prompt's rows see the response");
    // Rows: the whole text once a block, then the rest or the block.
    let rows = |cache| plain(Attends::Everywhere, cache, 8, false).ledger.target_rows;
    assert_eq!(rows(Cache::None), 16 * 20);
    assert_eq!(rows(Cache::Prefix), 20 + 7 * 16 + 20 + 7 * 8);
    assert_eq!(rows(Cache::Dual), 2 * (20 + 7 * 8));
    // With shifted logits a block's first token can only come from the pass at its start.
    let shifted = plain(Attends::Everywhere, Cache::Dual, 8, true);
    let starts: Vec<bool> =
        order(&shifted).iter().map(|step| step.contains(&4) || step.contains(&12)).collect();
    assert!(starts[0] && order(&shifted).iter().filter(|step| step.contains(&12)).count() == 1);
    assert_eq!(shifted.steps.iter().find(|step| step.block == 1).unwrap().commits[0].position, 12);
}

#[test]
fn bad_input_is_refused() {
    let mut model = tiny(1);
    let mask = model.mask();
    let context = model.info().context;
    let mut run = |config: DiffusionConfig, canvas: Canvas, mut policy: Box<dyn Policy>| {
        Diffusion::new(&mut model, config)?.generate(&canvas, &mut policy).map(|text| text.forwards())
    };
    let good = || Canvas::after(&[1], 6, mask);
    let fixed = || Box::new(Fixed::default()) as Box<dyn Policy>;
    let config = DiffusionConfig::default;
    // Settings.
    for bad in [
        blocks(0),
        DiffusionConfig { temperature: f64::NAN, ..config() },
        DiffusionConfig { temperature: -1.0, ..config() },
        DiffusionConfig { guidance: f64::INFINITY, ..config() },
        DiffusionConfig { stop: Stop::Contains, ..config() },
        DiffusionConfig { cut: Cut::Predicted, ..config() },
        DiffusionConfig { cache: Cache::Dual, ..config() },
        DiffusionConfig { revision: Some(Revision { passes: 0, tokens: 1 }), ..config() },
        DiffusionConfig {
            blocks: Blocks::Adaptive(AdaBlock { threshold: f64::NAN, ..AdaBlock::default() }),
            ..config()
        },
    ] {
        assert!(run(bad.clone(), good(), fixed()).is_err(), "{bad:?}");
    }
    // Policies.
    let bad: [Box<dyn Policy>; 9] = [
        Box::new(Fixed::tokens(Score::Probability, 0)),
        Box::new(Fixed { pace: Pace::Steps(0), ..Fixed::default() }),
        Box::new(Fixed { pace: Pace::Dream { steps: 0, eps: 0.0 }, ..Fixed::default() }),
        Box::new(Fixed { position_temperature: f64::NAN, ..Fixed::default() }),
        Box::new(Threshold { gamma: -0.1 }),
        Box::new(Threshold { gamma: 1.1 }),
        Box::new(Threshold { gamma: f64::NAN }),
        Box::new(Factor { f: -1.0, quirk: false }),
        Box::new(Factor { f: f64::NAN, quirk: false }),
    ];
    for policy in bad {
        let name = policy.name();
        assert!(matches!(run(config(), good(), policy), Err(DiffusionError::BadParameter { .. })), "{name}");
    }
    // Canvases.
    let text = |tokens: Vec<Token>, region| Canvas { tokens, region };
    assert!(matches!(run(config(), text(vec![1, mask], 1..3), fixed()), Err(DiffusionError::Region { .. })));
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = text(vec![1, mask], 2..1);
    assert!(matches!(run(config(), backwards, fixed()), Err(DiffusionError::Region { .. })));
    assert!(matches!(
        run(config(), text(vec![mask, mask], 1..2), fixed()),
        Err(DiffusionError::StrayMask { .. })
    ));
    assert!(matches!(run(config(), text(vec![99, mask], 1..2), fixed()), Err(DiffusionError::Model(_))));
    let long = Canvas::after(&[], context + 1, mask);
    assert!(matches!(run(config(), long, fixed()), Err(DiffusionError::TooLong { .. })));
    let cutting = DiffusionConfig { end: Some(1), cut: Cut::Committed, ..config() };
    assert!(matches!(run(cutting, text(vec![mask, 1], 0..1), fixed()), Err(DiffusionError::Needs { .. })));
    // Not errors: nothing but masks, an empty text, a block longer than the text.
    assert_eq!(run(config(), Canvas::after(&[], 6, mask), fixed()).unwrap(), 6);
    assert_eq!(run(config(), Canvas::after(&[], 0, mask), fixed()).unwrap(), 0);
    assert_eq!(run(blocks(usize::MAX), good(), fixed()).unwrap(), 6);
}

#[test]
fn models_that_misbehave_are_named() {
    struct Broken(ModelInfo, Token, usize, f32);
    impl MaskedModel for Broken {
        fn info(&self) -> &ModelInfo {
            &self.0
        }
        fn mask(&self) -> Token {
            self.1
        }
        fn forward(&mut self, _: &MaskedBatch<'_>) -> pilotfish_model::Result<MaskedOutput> {
            let logits = vec![Logits::from_rows(vec![self.3; 4 * self.2], 4, Default::default())?];
            Ok(MaskedOutput { logits, taps: Vec::new() })
        }
    }
    let run = |mask, rows, logit| {
        let mut model = Broken(ModelInfo { vocab: 4, context: 8, ..ModelInfo::default() }, mask, rows, logit);
        let canvas = Canvas { tokens: vec![mask.min(3), mask.min(3)], region: 0..2 };
        Diffusion::new(&mut model, DiffusionConfig::default())
            .unwrap()
            .generate(&canvas, &mut Fixed::default())
            .map(|text| text.forwards())
    };
    assert!(matches!(run(4, 2, 0.0), Err(DiffusionError::NoMask { mask: 4, vocab: 4, .. })));
    assert!(matches!(run(3, 1, 0.0), Err(DiffusionError::Rows { got: 1, want: 2, .. })));
    for logit in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(matches!(run(3, 2, logit), Err(DiffusionError::NoToken { position: 0 })), "{logit}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn laws_of_every_policy(seed in 0u64..1000, size in 1usize..10, which in 0usize..6, temperature in prop::sample::select(vec![0.0, 1.0])) {
        let mut model = tiny(seed);
        let mask = model.mask();
        let prompt: Vec<Token> = vec![0, 3, 5];
        let canvas = Canvas::after(&prompt, 13, mask);
        let config = DiffusionConfig { seed, temperature, ..blocks(size) };
        let mut decoder = Diffusion::new(&mut model, config).unwrap();
        let mut policy: Box<dyn Policy> = match which {
            0 => Box::new(Fixed::tokens(Score::Chance, 2)),
            1 => Box::new(Fixed { pace: Pace::Independent { steps: 4, eps: 1e-3 }, ..Fixed::default() }),
            2 => Box::new(Threshold { gamma: 0.4 }),
            3 => Box::new(Factor { f: 1.9, quirk: true }),
            4 => Box::new(pilotfish_diffusion::policy::LocalLeap::new(Default::default()).unwrap()),
            _ => Box::new(Fixed::tokens(Score::Margin, 3)),
        };
        let mut texts: Vec<Vec<Token>> = Vec::new();
        let mut ok = true;
        let text = decoder.generate_observed(&canvas, &mut policy, &mut |view, _, commits| {
            // Nothing at or beyond the block's end changes while it is active.
            ok &= view.tokens[view.block.end..].iter().all(|token| *token == mask);
            ok &= commits.iter().all(|commit| view.block.contains(&commit.position));
            ok &= !commits.is_empty();
            texts.push(view.tokens.to_vec());
        }).unwrap();
        texts.push(text.tokens.clone());
        prop_assert!(ok);
        for pair in texts.windows(2) {
            // No visible token ever changes.
            prop_assert!(pair[0].iter().zip(&pair[1]).all(|(a, b)| *a == mask || a == b));
        }
        prop_assert!(!text.tokens.contains(&mask));
        prop_assert_eq!(&text.tokens[..3], &prompt[..]);
        prop_assert_eq!(text.ledger.emitted, 13);
        // From one pass a block to one a token.
        let least = 13usize.div_ceil(size) as u64;
        prop_assert!(text.forwards() >= least && text.forwards() <= 13);
        prop_assert_eq!(text.blocks.iter().map(|block| block.len()).sum::<usize>(), 13);
        // The same seed gives the same text.
        let again = decoder.generate(&canvas, &mut policy).unwrap();
        prop_assert_eq!((again.tokens, again.steps), (text.tokens, text.steps));
    }
}
