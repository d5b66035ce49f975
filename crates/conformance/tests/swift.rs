//! SWIFT: its search by hand, its drafts on networks that can be enumerated, and laws by taking every branch.
#![allow(clippy::unwrap_used)]

use pilotfish_conformance::{Explorer, Law, distance, violations};
use pilotfish_decoding::drafters::swift::matchness;
use pilotfish_decoding::drafters::*;
use pilotfish_decoding::*;
use pilotfish_model::sampling::Warpers;
use pilotfish_model::toy::{LayeredModel, TableModel};
use pilotfish_model::{
    Capabilities, CausalModel, Forest, LogitForm, ModelError, ModelInfo, Parents, RowSet, Skip, Step,
    StepOutput, Steps, Streams, Token,
};
use proptest::prelude::*;
use rand::Rng;

/// A network of these scales over `vocab` tokens.
fn network(vocab: usize, scales: &[[f64; 2]], seed: u64) -> LayeredModel {
    LayeredModel::random(vocab, 8, scales, &mut Streams::new(seed).stream("weights")).unwrap()
}

fn fixed(layers: usize, set: Skip) -> LayerSearch {
    let config = LayerSearchConfig { max_trials: 0, ..LayerSearchConfig::default() };
    LayerSearch::new(layers, config).unwrap().with_set(set).unwrap()
}

fn greedy(
    model: &mut dyn CausalModel,
    drafter: &mut dyn Drafter,
    prompt: &[Token],
    count: usize,
) -> Generation {
    let limits = Limits { new_tokens: count, ..Limits::default() };
    Decoder::new(model, drafter, &mut GreedyTree, limits).unwrap().generate(prompt).unwrap()
}

#[test]
fn counts_and_sets() {
    let count = |layers: usize, ratio: f64| {
        LayerSearch::new(layers, LayerSearchConfig { ratio, ..Default::default() }).unwrap().count()
    };
    let counts =
        [count(40, 0.45), count(32, 0.45), count(30, 0.45), count(80, 0.45), count(30, 0.3), count(30, 0.2)];
    assert_eq!(counts, [34, 27, 25, 70, 16, 11]);
    let search = LayerSearch::new(30, LayerSearchConfig::default()).unwrap();
    let odd: Vec<usize> = (1..29).step_by(2).collect();
    assert_eq!((search.set().attention(), search.set().mlp()), (&odd[..], &odd[..]));
    assert_eq!(search.set().len(), 28);
    assert_eq!(LayerSearch::new(40, LayerSearchConfig::default()).unwrap().set().len(), 38);
    // Sets are n distinct sub-layers, never of the first layer or the last, and as often one as another.
    let mut often = vec![[0usize; 2]; 12];
    let mut search =
        LayerSearch::new(12, LayerSearchConfig { bayes_interval: 7, candidates: 20, ..Default::default() })
            .unwrap();
    for _ in 0..300 {
        let trial = search.next_trial().unwrap();
        assert_eq!(trial.skip.len(), search.count());
        assert_eq!(trial.point.len(), 20);
        assert!(!trial.skip.skips_attention(0) && !trial.skip.skips_mlp(0));
        assert!(!trial.skip.skips_attention(11) && !trial.skip.skips_mlp(11));
        if (search.trials() + 1) % 7 != 0 {
            trial.skip.attention().iter().for_each(|&layer| often[layer][0] += 1);
            trial.skip.mlp().iter().for_each(|&layer| often[layer][1] += 1);
            // Attentions come first in the cube.
            for (place, &x) in trial.point.iter().enumerate() {
                let (layer, half) = (place % 10 + 1, place / 10);
                let skipped =
                    if half == 0 { trial.skip.skips_attention(layer) } else { trial.skip.skips_mlp(layer) };
                assert_eq!(x, if skipped { 1.0 } else { 0.0 });
            }
        }
        search.report(trial, 0.0);
        if search.is_over() {
            break;
        }
    }
    // 258 random sets, each with 9 of 20: 116 +- 8.
    assert!(often[1..11].iter().flatten().all(|&times| (84..=148).contains(&times)), "{often:?}");
}

#[test]
fn numbers_out_of_range_are_refused() {
    let bad = |config: LayerSearchConfig| LayerSearch::new(8, config).is_err();
    let default = LayerSearchConfig::default;
    assert!(
        bad(LayerSearchConfig { ratio: f64::NAN, ..default() })
            && bad(LayerSearchConfig { ratio: 1.1, ..default() })
    );
    assert!(
        bad(LayerSearchConfig { window: 0, ..default() })
            && bad(LayerSearchConfig { interval: 0, ..default() })
    );
    assert!(bad(LayerSearchConfig { kappa: f64::NAN, ..default() }));
    assert!(bad(LayerSearchConfig { max_score: f64::NAN, ..default() }));
    assert!(LayerSearch::new(2, default()).is_err() && LayerSearch::new(usize::MAX, default()).is_err());
    let search = || LayerSearch::new(8, default()).unwrap();
    assert!(search().with_set(Skip::new([0], [])).is_err() && search().with_set(Skip::new([], [7])).is_err());
    for config in [
        SwiftConfig { confidence: f64::NAN, ..SwiftConfig::default() },
        SwiftConfig { depth: 0, ..SwiftConfig::default() },
        SwiftConfig { sampled: [0; 4], ..SwiftConfig::default() },
        SwiftConfig { greedy: [usize::MAX; 4], ..SwiftConfig::default() },
    ] {
        assert!(Swift::new(search(), config, Pick::Largest).is_err());
    }
    // A target that cannot leave anything out, or of another depth.
    let swift = Swift::new(search(), SwiftConfig::default(), Pick::Largest).unwrap();
    let table = TableModel::random(1, 4, 1.0, &mut Streams::new(1).stream("t")).unwrap();
    assert!(matches!(swift.fits(table.info()), Err(DecodingError::Model(ModelError::Unsupported { .. }))));
    assert!(matches!(
        swift.fits(network(4, &[[1.0; 2]; 7], 1).info()),
        Err(DecodingError::BadParameter { name: "layers", value: 8, .. })
    ));
    assert!(swift.fits(network(4, &[[1.0; 2]; 8], 1).info()).is_ok());
}

#[test]
fn the_search_stops_as_written() {
    let scored = |config: LayerSearchConfig, scores: &[f64]| {
        let mut search = LayerSearch::new(8, config).unwrap();
        for (index, &score) in scores.iter().cycle().take(5000).enumerate() {
            let Some(trial) = search.next_trial() else { return (index, search) };
            let (before, set) = (search.best(), search.set().clone());
            let (skip, better) = (trial.skip.clone(), search.report(trial, score));
            assert_eq!(better, score > before);
            assert!(search.best() >= before);
            assert_eq!(search.set(), if better { &skip } else { &set });
        }
        panic!("never over");
    };
    let base = LayerSearchConfig { bayes_interval: 0, ..LayerSearchConfig::default() };
    // "More than": a tolerance of 3 is four trials.
    assert_eq!(scored(LayerSearchConfig { max_tolerance: 3, ..base }, &[0.0]).0, 4);
    assert_eq!(scored(base, &[0.0]).0, 301);
    assert_eq!(scored(LayerSearchConfig { max_tolerance: usize::MAX, ..base }, &[0.5]).0, 1001);
    let (trials, search) = scored(base, &[0.2, 0.95, 0.1, 0.96]);
    assert_eq!((trials, search.best()), (4, 0.96));
    // Equal is not better: the older set stays.
    let (trials, search) = scored(LayerSearchConfig { max_tolerance: 2, ..base }, &[0.5]);
    assert_eq!((trials, search.best()), (4, 0.5));
}

/// Best of `t` draws of the overlap of two sets of `n` among `all`, in expectation.
fn best_overlap(all: u64, n: u64, t: i32) -> f64 {
    let choose = |a: u64, b: u64| (0..b).map(|i| (a - i) as f64 / (i + 1) as f64).product::<f64>();
    let chance = |k: u64| choose(n, k) * choose(all - n, n - k) / choose(all, n);
    let below = |k: u64| (0..k).map(chance).sum::<f64>();
    (1..=n).map(|k| 1.0 - below(k).powi(t)).sum()
}

#[test]
fn random_search_is_the_best_of_so_many_draws() {
    // Planted among 2 (11 - 2) = 18 places: 9 of them; scores are overlaps.
    let planted = Skip::new([1, 2, 5, 9], [1, 4, 6, 7, 8]);
    let (seeds, trials) = (400, 20);
    let mut sum = 0.0;
    for seed in 0..seeds {
        let config =
            LayerSearchConfig { ratio: 0.5, bayes_interval: 0, seed, ..LayerSearchConfig::default() };
        let mut search = LayerSearch::new(11, config).unwrap();
        for _ in 0..trials {
            let Some(trial) = search.next_trial() else { break };
            let hit = trial.skip.attention().iter().filter(|&&l| planted.skips_attention(l)).count()
                + trial.skip.mlp().iter().filter(|&&l| planted.skips_mlp(l)).count();
            search.report(trial, hit as f64 / 9.0);
        }
        sum += 9.0 * search.best();
    }
    let (got, want) = (sum / seeds as f64, best_overlap(18, 9, trials));
    // The best of twenty deviates by less than 1.
    assert!((got - want).abs() < 4.0 / (seeds as f64).sqrt(), "{got} {want}");
    assert!((best_overlap(4, 2, 1) - 1.0).abs() < 1e-12, "the mean of n^2 / N");
}

/// A table that leaves out nothing whatever it is told, and so says what its drafts are made of.
struct Table {
    table: TableModel,
    info: ModelInfo,
}

impl Table {
    fn new(table: TableModel, layers: usize) -> Self {
        let capabilities = Capabilities { skip: true, ..table.info().capabilities.clone() };
        Self { info: ModelInfo { layers, capabilities, ..table.info().clone() }, table }
    }
}

impl Steps for Table {
    fn len(&self) -> usize {
        self.table.len()
    }

    fn step(&mut self, step: &Step<'_>) -> pilotfish_model::Result<StepOutput> {
        self.table.step(step)
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> pilotfish_model::Result<()> {
        self.table.keep(from, rows)
    }

    fn truncate(&mut self, len: usize) -> pilotfish_model::Result<()> {
        self.table.truncate(len)
    }
}

impl CausalModel for Table {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn step_without(&mut self, step: &Step<'_>, _: &Skip) -> pilotfish_model::Result<StepOutput> {
        self.table.step(step)
    }
}

/// A first-order table of these rows `(token, next, probability)`; the rest is spread over the other tokens unevenly.
fn table(vocab: usize, rows: &[(usize, usize, f64)]) -> TableModel {
    let mut all = Vec::new();
    for token in 0..vocab {
        let known = rows.iter().find(|row| row.0 == token);
        let (next, share) = known.map_or((0, 0.5), |&(_, next, share)| (next, share));
        let total: f64 = (0..vocab).filter(|&id| id != next).map(|id| 1.0 + id as f64 * 0.01).sum();
        all.extend(
            (0..vocab).map(
                |id| {
                    if id == next { share } else { (1.0 - share) * (1.0 + id as f64 * 0.01) / total }
                },
            ),
        );
    }
    TableModel::new(1, vocab, all).unwrap()
}

#[test]
fn matchness_by_hand() {
    let rows = [(5, 6, 0.9), (6, 7, 0.9), (7, 1, 0.9), (8, 9, 0.9)];
    let mut model = Table::new(table(10, &rows), 6);
    model.step(&Step::chain(&[3, 4, 5, 6])).unwrap();
    assert_eq!(matchness(&mut model, 2, &[5, 6, 7, 8, 9], &Skip::default()).unwrap(), 0.75);
    assert_eq!(model.len(), 4);
    assert!(matchness(&mut model, 2, &[5], &Skip::default()).is_err());
    assert!(matches!(matchness(&mut model, 0, &[5, 6], &Skip::default()), Err(DecodingError::EmptyPrompt)));
}

#[test]
fn matchness_is_that_of_single_steps_and_leaves_the_cache_alone() {
    let mut rng = Streams::new(5).stream("sets");
    let mut model = network(12, &[[0.7; 2]; 9], 5);
    let prompt = [1, 7, 3];
    let text = greedy(&mut model, &mut Nothing, &prompt, 24).tokens;
    for _ in 0..20 {
        let mut layers = || (1..8).filter(|_| rng.random_bool(0.4)).collect::<Vec<usize>>();
        let skip = Skip::new(layers(), layers());
        // The cache holds what the loop leaves: the prompt and the new tokens but the last.
        model.truncate(0).unwrap();
        model.step(&Step::chain(&prompt)).unwrap();
        model.step(&Step::chain(&text[..23])).unwrap();
        let before = owned(&model);
        let together = matchness(&mut model, 3, &text[..17], &skip).unwrap();
        assert_eq!(owned(&model), before, "to the bit");
        let mut hits = 0;
        for known in 1..17 {
            model.truncate(3).unwrap();
            let answer =
                model.step_without(&Step::chain(&text[..known]).form(LogitForm::Argmax), &skip).unwrap();
            hits += usize::from(answer.logits.argmax(0).unwrap() == text[known]);
            model.truncate(3).unwrap();
        }
        assert_eq!(together, hits as f64 / 16.0);
        if skip.is_empty() {
            assert_eq!(together, 1.0);
        }
    }
    model.truncate(0).unwrap();
    model.step(&Step::chain(&prompt)).unwrap();
    assert_eq!(matchness(&mut model, 3, &text, &Skip::default()).unwrap(), 1.0, "the whole model, greedily");
}

fn owned(model: &LayeredModel) -> Vec<Vec<Option<Vec<f64>>>> {
    let row = |row: &Vec<Option<&[f64]>>| row.iter().map(|seen| seen.map(<[f64]>::to_vec)).collect();
    model.cache().iter().map(row).collect()
}

#[test]
fn without_anything_left_out_every_draft_is_kept() {
    let mut model = network(12, &[[0.8; 2]; 6], 11);
    let text = [4, 2, 9];
    model.step(&Step::chain(&text)).unwrap();
    let whole = model.step(&Step::chain(&[1, 5]).want(RowSet::All)).unwrap();
    model.truncate(3).unwrap();
    assert_eq!(whole, model.step_without(&Step::chain(&[1, 5]).want(RowSet::All), &Skip::default()).unwrap());
    let mut swift = Swift::new(fixed(6, Skip::default()), SwiftConfig::default(), Pick::Largest).unwrap();
    let out = greedy(&mut model, &mut swift, &text, 90);
    assert!(
        out.rounds.iter().all(|round| round.accepted == round.depth && round.depth > 0),
        "{:?}",
        out.rounds
    );
    // Sampled from the very law that verifies, the first child is always accepted.
    let streams = Streams::new(4);
    let mut swift =
        Swift::new(fixed(6, Skip::default()), SwiftConfig::default(), Pick::sampled(streams)).unwrap();
    let mut verifier = Recursive::new(Warpers::temperature(0.7).check().unwrap(), streams);
    let limits = Limits { new_tokens: 90, ..Limits::default() };
    let out = Decoder::new(&mut model, &mut swift, &mut verifier, limits).unwrap().generate(&text).unwrap();
    assert!(out.rounds.iter().all(|round| round.accepted == round.depth), "{:?}", out.rounds);
}

#[test]
fn a_sub_layer_that_adds_nothing_can_go() {
    let mut scales = [[0.9; 2]; 6];
    (scales[2][0], scales[4][1]) = (0.0, 0.0);
    let mut model = network(9, &scales, 3);
    let mut logits = |skip: &Skip| {
        model.truncate(0).unwrap();
        model.step_without(&Step::chain(&[1, 2, 3]).want(RowSet::All), skip).unwrap()
    };
    let whole = logits(&Skip::default());
    for same in [Skip::new([2], []), Skip::new([], [4]), Skip::new([2], [4])] {
        assert_eq!(logits(&same), whole);
    }
    for other in [Skip::new([4], []), Skip::new([], [2]), Skip::new([2, 3], [4])] {
        assert_ne!(logits(&other), whole);
    }
}

#[test]
fn a_tree_by_hand() {
    // 20 -> 1 at .97, 1 -> 2 at .9, 2 -> 3 at .6, and 3 would be surer again.
    let rows = [(20, 1, 0.97), (1, 2, 0.9), (2, 3, 0.6), (3, 4, 0.99)];
    let mut model = Table::new(table(24, &rows), 6);
    let mut swift = Swift::new(fixed(6, Skip::new([1], [])), SwiftConfig::default(), Pick::Largest).unwrap();
    model.step(&Step::chain(&[7])).unwrap();
    let sampler = pilotfish_model::sampling::Sampler::greedy();
    let mut ledger = pilotfish_model::Ledger::default();
    let mut propose = |budget: usize, depth: usize| {
        let mut ask =
            Ask { text: &[7, 20], budget, depth, sampler: &sampler, model: &mut model, ledger: &mut ledger };
        swift.propose(&mut ask).unwrap()
    };
    let draft = propose(250, 25);
    let tree = draft.tree();
    assert_eq!(draft.len(), 3 + 5 + 8);
    let depths: Vec<usize> = (1..=16).map(|node| tree.depth(node)).collect();
    assert_eq!(depths, [vec![1; 3], vec![2; 5], vec![3; 8]].concat());
    assert_eq!((tree.token(1), tree.token(4), tree.token(9)), (1, 2, 3));
    assert_eq!((tree.parent(2), tree.parent(4), tree.parent(9)), (Some(0), Some(1), Some(4)));
    // Alternatives in order of their logits.
    assert_eq!((tree.token(2), tree.token(3)), (23, 22));
    let mut forest = Forest::new();
    forest.append(17, Parents::Rows(&tree.parents(0)), 99).unwrap();
    let mut mask = vec![0.0; 17 * 17];
    forest.mask(0, 17, None, 1.0, &mut mask);
    assert_eq!(mask.iter().filter(|&&blocked| blocked == 0.0).count(), 54);
    let estimates = draft.estimates().unwrap();
    assert!((estimates[4] - 0.97 * 0.9).abs() < 1e-6 && (estimates[9] - 0.97 * 0.9 * 0.6).abs() < 1e-6);
    assert_eq!(propose(6, 25).len(), 6, "no more than was asked for");
    assert_eq!(propose(250, 2).depth(), 2);
    assert_eq!(model.len(), 1);
    assert_eq!((ledger.draft_forwards, ledger.draft_rows), (3 + 2 + 2, 7));
}

#[test]
fn the_cache_is_that_of_a_plain_reading() {
    let mut model = network(64, &[[1.5; 2]; 7], 17);
    let search =
        LayerSearch::new(7, LayerSearchConfig { window: 12, ratio: 0.3, ..Default::default() }).unwrap();
    let mut swift = Swift::new(search, SwiftConfig::default(), Pick::Largest).unwrap();
    let prompt = [3, 3, 8];
    let out = greedy(&mut model, &mut swift, &prompt, 60);
    assert_eq!(violations(prompt.len(), model.len(), &out), [""; 0]);
    assert!(swift.search().trials() > 5 && out.ledger.drafted > out.ledger.accepted);
    let after = owned(&model);
    let text: Vec<Token> = prompt.iter().chain(&out.tokens[..59]).copied().collect();
    model.truncate(0).unwrap();
    model.step(&Step::chain(&text)).unwrap();
    assert_eq!(after, owned(&model), "to the bit: rows of drafts and trials are gone");
}

#[test]
fn rows_that_lack_sub_layers_serve_nothing_else() {
    let mut model = network(5, &[[1.0; 2]; 4], 2);
    let (skip, step) = (Skip::new([1], [2]), Step::chain(&[1]));
    model.step(&step).unwrap();
    model.step_without(&step, &skip).unwrap();
    model.step_without(&step, &skip).unwrap();
    assert!(matches!(model.step(&step), Err(ModelError::PartialRows { from: 1 })));
    assert!(model.step_without(&step, &Skip::new([1], [])).is_err());
    assert!(model.keep(1, &[1]).is_err() && model.keep(2, &[]).is_err());
    assert_eq!(model.len(), 3);
    model.keep(1, &[]).unwrap();
    model.step(&step).unwrap();
    assert!(model.step_without(&step, &Skip::new([4], [])).is_err(), "there is no layer 4");
}

#[test]
fn a_planted_set_is_found_and_ends_the_search() {
    // Of six sub-layers three do nothing; there are 20 sets of three.
    let planted = Skip::new([2], [1, 3]);
    let mut scales = [[2.0; 2]; 5];
    (scales[2][0], scales[1][1], scales[3][1]) = (0.0, 0.0, 0.0);
    let mut model = network(64, &scales, 8);
    let search =
        LayerSearch::new(5, LayerSearchConfig { ratio: 0.5, window: 24, ..Default::default() }).unwrap();
    assert_eq!(search.count(), 3);
    let mut swift = Swift::new(search, SwiftConfig::default(), Pick::Largest).unwrap();
    let mut rng = Streams::new(3).stream("prompts");
    for _ in 0..12 {
        let prompt: Vec<Token> = (0..4).map(|_| rng.random_range(0..64)).collect();
        let plain = greedy(&mut model, &mut Nothing, &prompt, 60).tokens;
        assert_eq!(greedy(&mut model, &mut swift, &prompt, 60).tokens, plain);
    }
    assert!(swift.search().is_over());
    assert_eq!((swift.search().set(), swift.search().best()), (&planted, 1.0));
    // From now on nothing that was drafted on the main chain is lost.
    let out = greedy(&mut model, &mut swift, &[1, 2, 3], 60);
    assert!(out.rounds.iter().all(|round| round.accepted == round.depth));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn greedy_output_is_the_plain_one(seed in 0u64..1000, ratio in 0.0f64..1.0, confidence in 0.0f64..1.0, bayes in 0usize..4) {
        let layers = 3 + (seed % 5) as usize;
        let mut rng = Streams::new(seed).stream("scales");
        let scales: Vec<[f64; 2]> = (0..layers).map(|_| [rng.random_range(0.0..1.5), rng.random_range(0.0..1.5)]).collect();
        let mut model = network(10, &scales, seed);
        if seed % 3 == 0 {
            model = model.with_end(vec![9]);
        }
        let config = LayerSearchConfig {
            ratio, bayes_interval: bayes, seed, window: 5, candidates: 20, max_tolerance: 9, ..LayerSearchConfig::default()
        };
        let table = SwiftConfig { confidence, ..SwiftConfig::default() };
        let mut swift = Swift::new(LayerSearch::new(layers, config).unwrap(), table, Pick::Largest).unwrap();
        for prompt in [&[1, 2, 3][..], &[7], &[0, 0, 5, 5]] {
            let plain = greedy(&mut model, &mut Nothing, prompt, 40);
            let fast = greedy(&mut model, &mut swift, prompt, 40);
            prop_assert_eq!(&plain.tokens, &fast.tokens);
            prop_assert_eq!(violations(prompt.len(), model.len(), &fast), [""; 0]);
        }
    }
}

#[test]
fn sampled_output_follows_the_targets_law() {
    let sampler = Warpers::temperature(0.8).check().unwrap();
    let make = || network(3, &[[0.9; 2], [0.6; 2], [0.6; 2], [0.9; 2]], 21);
    // The truth by plain decoding, every branch of every draw.
    let plain = Explorer::explore(|explorer| {
        let mut model = make();
        let mut verifier = SampleAndMatch::with_choose(sampler, Box::new(explorer.clone()));
        let limits = Limits { new_tokens: 3, ..Limits::default() };
        Decoder::new(&mut model, &mut Nothing, &mut verifier, limits)
            .unwrap()
            .generate(&[1, 0])
            .unwrap()
            .tokens
    });
    for (sampled, confidence) in [([1, 2, 2, 3], 0.8), ([2, 2, 3, 3], 0.0), ([3; 4], 0.4)] {
        let law: Law<Vec<Token>> = Explorer::explore(|explorer| {
            let mut model = make();
            let config = SwiftConfig { sampled, confidence, depth: 2, ..SwiftConfig::default() };
            let pick = Pick::Drawn(Box::new(explorer.clone()));
            let mut swift = Swift::new(fixed(4, Skip::new([1], [2])), config, pick).unwrap();
            let mut verifier = Recursive::with_choose(sampler, Box::new(explorer.clone()));
            let limits = Limits { new_tokens: 3, ..Limits::default() };
            Decoder::new(&mut model, &mut swift, &mut verifier, limits)
                .unwrap()
                .generate(&[1, 0])
                .unwrap()
                .tokens
        });
        let far = distance(&law, &plain);
        assert!(far < 1e-12, "{sampled:?}: {far:e}");
    }
}

#[test]
fn the_references_padding_would_be_caught() {
    // After a sibling off the main chain is accepted, the reference tests padding (token 0, q = 1) and takes the draft
    // row of an unrelated node out of the target's: the law is (.01, .09, .90, 0), not the target's.
    let (target, unrelated) = ([0.01, 0.09, 0.30, 0.60f64], [0.02, 0.08, 0.20, 0.70]);
    let left: Vec<f64> = target.iter().zip(unrelated).map(|(p, q)| (p - q).max(0.0)).collect();
    let sum: f64 = left.iter().sum();
    let law: Vec<f64> =
        (0..4).map(|t| if t == 0 { target[0] } else { (1.0 - target[0]) * left[t] / sum }).collect();
    for (got, want) in law.iter().zip([0.01, 0.09, 0.9, 0.0]) {
        assert!((got - want).abs() < 1e-12);
    }
    assert!(law.iter().zip(target).map(|(a, b)| (a - b).abs()).sum::<f64>() > 1.0);
}
