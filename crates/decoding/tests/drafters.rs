//! Drafters that need no second model: their oracles, on models whose every probability is known.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use pilotfish_decoding::drafters::*;
use pilotfish_decoding::*;
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::toy::{CountingModel, TableModel};
use pilotfish_model::{CausalModel, Ledger, LogitForm, Logits, Step, Steps, Streams, TapRows, Token};
use proptest::prelude::*;
use rand::Rng;

fn limits(new_tokens: usize) -> Limits {
    Limits { new_tokens, draft: 80, ..Limits::default() }
}

fn run(
    model: &mut dyn CausalModel,
    drafter: &mut dyn Drafter,
    prompt: &[Token],
    new_tokens: usize,
) -> Generation {
    Decoder::new(model, drafter, &mut GreedyTree, limits(new_tokens)).unwrap().generate(prompt).unwrap()
}

fn added(generation: &Generation) -> Vec<usize> {
    generation.rounds.iter().map(|round| round.added).collect()
}

/// What a drafter proposes after a text, without a loop.
fn propose(drafter: &mut dyn Drafter, text: &[Token], budget: usize, depth: usize) -> Draft {
    let (mut model, mut ledger) = (CountingModel::new(64), Ledger::default());
    if text.len() > 1 {
        model.step(&Step::chain(&text[..text.len() - 1])).unwrap();
    }
    let sampler = Sampler::greedy();
    let mut ask = Ask { text, budget, depth, sampler: &sampler, model: &mut model, ledger: &mut ledger };
    drafter.propose(&mut ask).unwrap()
}

fn observe(drafter: &mut dyn Drafter, text: &[Token], draft: &Draft, logits: &Logits, path: &[usize]) {
    let taps: &[TapRows] = &[];
    let outcome = Outcome { text, added: path.len() + 1, draft, logits, taps, path, finish: None };
    drafter.observe(&outcome).unwrap();
}

fn template(paths: &[&[u8]]) -> Template {
    Template::new(&paths.iter().map(|path| path.to_vec()).collect::<Vec<_>>()).unwrap()
}

/// Every drafter of this file, some of them spoilt.
fn zoo(vocab: usize, seed: u64) -> Vec<Box<dyn Drafter>> {
    let mut rng = Streams::new(seed).stream("test");
    let mut random = Matrix::new(vocab, 4).unwrap();
    let mut random_table = Vec::new();
    for token in 0..vocab as Token {
        let row: Vec<Token> = (0..4).map(|_| rng.random_range(0..vocab as Token)).collect();
        random.set(token, &row);
        (0..40).for_each(|_| {
            random_table.push([
                token,
                rng.random_range(0..vocab as Token),
                rng.random_range(0..vocab as Token),
            ])
        });
    }
    let narrow = Recycling { k: 4, template: Template::wide(4, 5).unwrap(), ..Recycling::default() };
    let frozen = Recycling { refresh: Refresh::Nothing, ..narrow.clone() };
    let zeros = Recycling { unseen_zeros: true, k: vocab.min(8), ..Recycling::default() };
    let first = Recycling { refresh: Refresh::First, ..narrow.clone() };
    let accepted = Recycling { refresh: Refresh::Accepted, ..narrow.clone() };
    let empty = || Trigrams::new(TrigramConfig::default()).unwrap();
    let adversarial =
        Trigrams::build(TrigramConfig::default(), random_table.iter().map(|gram| gram.as_slice())).unwrap();
    vec![
        Box::new(TokenRecycling::new(vocab, Recycling::default()).unwrap()),
        Box::new(TokenRecycling::new(vocab, narrow).unwrap()),
        Box::new(TokenRecycling::new(vocab, zeros).unwrap()),
        Box::new(TokenRecycling::new(vocab, first).unwrap()),
        Box::new(TokenRecycling::new(vocab, accepted).unwrap()),
        Box::new(TokenRecycling::with_matrix(random, frozen).unwrap()),
        Box::new(SuffixLookup::default()),
        Box::new(SuffixLookup::new(Suffix { shortest: 1, earlier: false, ..Suffix::default() }).unwrap()),
        Box::new(
            SuffixLookup::new(Suffix { shortest: 1, memory: 16, factor: 9e99, ..Suffix::default() }).unwrap(),
        ),
        Box::new(AdedDrafter::new(empty(), Aded::default()).unwrap()),
        Box::new(AdedDrafter::new(empty(), Aded { search: Search::TopK, ..Aded::default() }).unwrap()),
        Box::new(AdedDrafter::new(empty(), Aded { search: Search::Greedy, ..Aded::default() }).unwrap()),
        Box::new(AdedDrafter::new(adversarial.clone(), Aded { adaptive: false, ..Aded::default() }).unwrap()),
        Box::new(
            AdedDrafter::new(
                adversarial,
                Aded { prune: Prune::LongestFirst, literal_reward: true, ..Aded::default() },
            )
            .unwrap(),
        ),
    ]
}

#[test]
fn greedy_output_is_plain_output() {
    for seed in 0..20 {
        let mut rng = Streams::new(3).fork(seed).stream("test");
        let mut model = TableModel::random(2, 6, 2.0, &mut rng).unwrap();
        let mut drafters = zoo(6, seed);
        // Drafters live on from text to text.
        for _ in 0..2 {
            let prompt: Vec<Token> = (0..rng.random_range(1..6)).map(|_| rng.random_range(0..6)).collect();
            let plain = run(&mut model, &mut Nothing, &prompt, 128);
            for drafter in &mut drafters {
                let fast = run(&mut model, drafter.as_mut(), &prompt, 128);
                assert_eq!(fast.tokens, plain.tokens, "{}", drafter.name());
                assert_eq!(fast.ledger.target_forwards, fast.ledger.rounds + 1);
                assert_eq!(added(&fast).iter().sum::<usize>() + 1, fast.tokens.len());
            }
        }
    }
}

#[test]
fn budget_and_depth_are_kept() {
    let text: Vec<Token> = (0..40).map(|i| i % 4).collect();
    for mut drafter in zoo(6, 1) {
        let sampler = Sampler::greedy();
        drafter.start(&Start { prompt: &text[..20], first: text[20], taps: &[], sampler: &sampler }).unwrap();
        for (budget, depth) in [(1, 1), (1, 9), (9, 1), (3, 2), (7, 3), (80, 80)] {
            let draft = propose(drafter.as_mut(), &text, budget, depth);
            assert!(draft.len() <= budget && draft.depth() <= depth, "{}: {budget} {depth}", drafter.name());
            assert_eq!(draft.tree().token(0), text[39]);
            if let Some(estimates) = draft.estimates() {
                assert!(estimates.iter().all(|p| (0.0..=1.0).contains(p)), "{}", drafter.name());
                let falls = |node: usize| estimates[node] <= estimates[draft.tree().parent(node).unwrap()];
                assert!((1..=draft.len()).all(falls), "{}", drafter.name());
            }
        }
        // A text of one token is enough for none of them, and no reason to fail.
        assert!(propose(drafter.as_mut(), &[3], 80, 80).len() <= 80);
    }
}

#[test]
fn template_of_the_paper() {
    let template = Template::paper();
    let paths = template.paths();
    let level = |depth: usize| paths.iter().filter(|path| path.len() == depth).count();
    assert_eq!((template.len(), [1, 2, 3, 4, 5, 6].map(level)), (80, [8, 21, 25, 15, 8, 3]));
    let mut children = [0usize; 81];
    template.parents().iter().for_each(|&parent| children[parent] += 1);
    assert_eq!(children[1..].iter().filter(|&&count| count == 0).count(), 40, "leaves");
    assert_eq!(children[1..].iter().filter(|&&count| count > 0).count(), 40, "inner nodes");
    assert_eq!(paths.iter().map(|path| path.len() + 1).sum::<usize>() + 1, 324, "ones of the mask");
    let starts: Vec<usize> =
        (1..=6).map(|depth| 1 + paths.iter().position(|path| path.len() == depth).unwrap()).collect();
    assert_eq!(starts, [1, 9, 30, 55, 70, 78]);
    // The parents as the note lists them: parent x times.
    let listed = [
        (0, 8),
        (1, 8),
        (2, 4),
        (3, 3),
        (4, 2),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1),
        (9, 8),
        (10, 3),
        (11, 2),
        (12, 1),
        (13, 1),
        (14, 1),
        (15, 1),
        (16, 1),
        (17, 2),
        (18, 1),
        (21, 1),
        (24, 1),
        (26, 1),
        (27, 1),
        (30, 5),
        (31, 2),
        (32, 1),
        (33, 1),
        (34, 1),
        (38, 1),
        (41, 1),
        (48, 1),
        (51, 1),
        (52, 1),
        (55, 3),
        (56, 1),
        (57, 1),
        (60, 1),
        (65, 1),
        (67, 1),
        (70, 2),
        (73, 1),
    ];
    let parents: Vec<usize> =
        listed.iter().flat_map(|&(parent, times)| std::iter::repeat_n(parent, times)).collect();
    assert_eq!(template.parents(), parents);
    assert_eq!(template.widest(), 8);
    assert!(Template::new(&[vec![0], vec![1, 0]]).is_err(), "its beginning is missing");
    assert!(Template::new(&[vec![0], vec![0]]).is_err() && Template::new(&[vec![]]).is_err());
}

/// The matrix and the template of the note's example.
fn example(refresh: Refresh) -> TokenRecycling {
    let mut matrix = Matrix::new(64, 2).unwrap();
    for (token, row) in [(0, [1, 2]), (1, [3, 4]), (2, [5, 0]), (3, [1, 1])] {
        matrix.set(token, &row);
    }
    let template = template(&[&[0], &[1], &[0, 0], &[0, 1], &[1, 0], &[0, 0, 0]]);
    TokenRecycling::with_matrix(matrix, Recycling { k: 2, template, refresh, unseen_zeros: false }).unwrap()
}

/// Rows whose largest two logits are at these ids.
fn rows(best: &[[Token; 2]]) -> Logits {
    let row = |ids: &[Token; 2]| {
        (0..64)
            .map(|id| {
                if id == ids[0] {
                    2.0
                } else if id == ids[1] {
                    1.0
                } else {
                    0.0
                }
            })
            .collect::<Vec<f32>>()
    };
    Logits::reduce(&best.iter().flat_map(row).collect::<Vec<_>>(), 64, LogitForm::TopK(2)).unwrap()
}

#[test]
fn recycling_by_hand() {
    let best: Vec<[Token; 2]> = (0..7).map(|row| [10 + row, 20 + row]).collect();
    for (refresh, of_1, of_0) in [
        (Refresh::Last, [16, 26], [10, 20]),
        (Refresh::First, [11, 21], [10, 20]),
        (Refresh::Accepted, [3, 4], [10, 20]),
        (Refresh::Nothing, [3, 4], [1, 2]),
    ] {
        let mut drafter = example(refresh);
        let draft = propose(&mut drafter, &[9, 0], 80, 80);
        assert_eq!(draft.tree().tokens(), [0, 1, 2, 3, 4, 5, 1]);
        assert_eq!(
            (1..7).map(|node| draft.tree().parent(node).unwrap()).collect::<Vec<_>>(),
            [0, 0, 1, 1, 2, 3]
        );
        // Nothing accepted.
        observe(&mut drafter, &[9, 0, 63], &draft, &rows(&best), &[]);
        assert_eq!(drafter.matrix().row(1), Some(&of_1[..]), "{refresh:?}");
        assert_eq!(drafter.matrix().row(0), Some(&of_0[..]), "{refresh:?}");
    }
    // What was accepted goes before what comes first.
    let mut drafter = example(Refresh::First);
    let draft = propose(&mut drafter, &[9, 0], 80, 80);
    observe(&mut drafter, &[9, 0, 1, 3, 1, 63], &draft, &rows(&best), &[1, 3, 6]);
    assert_eq!(drafter.matrix().row(1), Some(&[11, 21][..]));
    // Acceptance by hand.
    for (first, path, next) in [(1, vec![1, 4], 9), (7, vec![], 7)] {
        let mut best = best.clone();
        (best[0][0], best[1][0], best[4][0]) = (first, 4, 9);
        let logits = rows(&best);
        let verdict = GreedyTree.verify(&Context { text: &[0], draft: &draft, logits: &logits }).unwrap();
        assert_eq!(verdict, Verdict { path, next });
    }
}

proptest! {
    #[test]
    fn rows_are_those_of_the_last_node(seed in 0u64..1000) {
        let mut rng = Streams::new(seed).stream("test");
        let mut matrix = Matrix::new(12, 4).unwrap();
        for token in 0..12 {
            let row: Vec<Token> = (0..4).map(|_| rng.random_range(0..12)).collect();
            matrix.set(token, &row);
        }
        let before = matrix.clone();
        let config = Recycling { k: 4, template: Template::wide(6, 4).unwrap(), ..Recycling::default() };
        let mut drafter = TokenRecycling::with_matrix(matrix, config).unwrap();
        let root = rng.random_range(0..12);
        let draft = propose(&mut drafter, &[root], 80, 80);
        let full: Vec<f32> = (0..12 * draft.tree().len()).map(|_| rng.random()).collect();
        let logits = Logits::reduce(&full, 12, LogitForm::TopK(4)).unwrap();
        observe(&mut drafter, &[root, 1], &draft, &logits, &[]);
        for token in 0..12 {
            let last = (0..draft.tree().len()).rfind(|&node| draft.tree().token(node) == token);
            let want = match last {
                // Among them the root's own, unless the root occurs again.
                Some(node) => {
                    let row = &full[12 * node..12 * node + 12];
                    let mut order: Vec<Token> = (0..12).collect();
                    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
                    order[..4].to_vec()
                }
                None => before.row(token).unwrap().to_vec(),
            };
            prop_assert_eq!(drafter.matrix().row(token), Some(&want[..]));
        }
    }
}

#[test]
fn a_matrix_learns_what_it_is_shown() {
    // A cycle: one successor a token.
    let mut model = CountingModel::new(20);
    let mut drafter = TokenRecycling::new(20, Recycling::default()).unwrap();
    let cold = run(&mut model, &mut drafter, &[0], 30);
    assert_eq!(cold.rounds[0].added, 1, "an empty matrix gives nothing");
    let hot = run(&mut model, &mut drafter, &[0], 71);
    assert_eq!(added(&hot), [7; 10], "six drafted and one more");
    drafter.forget();
    let again = run(&mut model, &mut drafter, &[0], 30);
    assert_eq!((again.tokens, again.rounds), (cold.tokens, cold.rounds), "forgotten is as new");
    // Token 0 is never predicted: proposing it costs rows and gives nothing.
    let zeros = Recycling { unseen_zeros: true, ..Recycling::default() };
    let mut never = TableModel::new(
        1,
        9,
        (0..81).map(|i| if i % 9 == 0 { 0.0 } else { 1.0 + f64::from(i % 5) }).collect(),
    )
    .unwrap();
    let mut drafter = TokenRecycling::new(9, zeros).unwrap();
    let cold = run(&mut never, &mut drafter, &[3], 10);
    assert_eq!((cold.rounds[0].drafted, cold.rounds[0].added), (80, 1));
    // A first-order target: once every state has been seen, rows are the true best eight and a draft holds the
    // likeliest chain.
    let mut rng = Streams::new(8).stream("test");
    let mut markov = TableModel::random(1, 12, 2.0, &mut rng).unwrap();
    let mut drafter = TokenRecycling::new(12, Recycling::default()).unwrap();
    for _ in 0..3 {
        (0..12).for_each(|token| {
            run(&mut markov, &mut drafter, &[token], 12);
        });
    }
    for token in 0..12 {
        let law = markov.next(&[token]);
        let mut best: Vec<Token> = (0..12).collect();
        best.sort_by(|&a, &b| law.prob(b).total_cmp(&law.prob(a)));
        assert_eq!(drafter.matrix().row(token), Some(&best[..8]));
        assert_eq!(added(&run(&mut markov, &mut drafter, &[token], 22)), [7; 3]);
    }
}

#[test]
fn templates_are_fitted_to_what_was_kept() {
    let hits = BTreeMap::from([
        (vec![0], 90),
        (vec![1], 20),
        (vec![2], 5),
        (vec![0, 0], 40),
        (vec![0, 1], 20),
        (vec![0, 0, 0], 21),
        (vec![3], 0),
    ]);
    let paths = |nodes| Template::fitted(&hits, nodes).paths().to_vec();
    assert_eq!(paths(4), [vec![0], vec![1], vec![0, 0], vec![0, 0, 0]]);
    assert_eq!(paths(3), [vec![0], vec![0, 0], vec![0, 0, 0]]);
    assert_eq!(paths(100).len(), 6, "what was never kept is left out");
    // Counting on a wide template and fitting finds a better shape than a chain or a fan of as many nodes. Sampled
    // texts, so that none ends in a short cycle.
    let mut rng = Streams::new(4).stream("test");
    let model = TableModel::random(2, 16, 8.0, &mut rng).unwrap();
    let mean = |drafter: &mut TokenRecycling, seed: u64| {
        let (mut model, sampler) = (model.clone(), Warpers::temperature(1.0).check().unwrap());
        let mut verifier = SampleAndMatch::new(sampler, Streams::new(seed));
        let limits = Limits { draft: 1000, ..limits(300) };
        let mut decoder = Decoder::new(&mut model, drafter, &mut verifier, limits).unwrap();
        let mut ledger = Ledger::default();
        (0..16).for_each(|token| ledger.add(&decoder.generate(&[token, 1]).unwrap().ledger));
        ledger.emitted as f64 / ledger.rounds as f64
    };
    let recycling =
        |template| TokenRecycling::new(16, Recycling { template, ..Recycling::default() }).unwrap();
    let mut counting = recycling(Template::wide(8, 6).unwrap());
    mean(&mut counting, 1);
    let fitted = Template::fitted(&counting.hits(), 10);
    assert_eq!(fitted.len(), 10);
    let chain: Vec<Vec<u8>> = (1..=10).map(|depth| vec![0; depth]).collect();
    let fan: Vec<Vec<u8>> = (0..8).map(|rank| vec![rank]).chain([vec![6, 0], vec![7, 0]]).collect();
    let [fitted, chain, fan] = [fitted, Template::new(&chain).unwrap(), Template::new(&fan).unwrap()]
        .map(|template| mean(&mut recycling(template), 2));
    assert!(fitted > chain && fitted > fan, "{fitted} {chain} {fan}");
}

#[test]
fn matrices_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("matrix");
    let mut model = CountingModel::new(9);
    let mut drafter = TokenRecycling::new(9, Recycling::default()).unwrap();
    run(&mut model, &mut drafter, &[0], 30);
    drafter.matrix().save(&path).unwrap();
    let matrix = Matrix::load(&path).unwrap();
    assert_eq!(&matrix, drafter.matrix());
    let mut again = TokenRecycling::with_matrix(matrix, Recycling { k: 8, ..Recycling::default() }).unwrap();
    assert_eq!(added(&run(&mut model, &mut again, &[0], 15)), [7, 7]);
    let bytes = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Matrix::load(&path), Err(DecodingError::State { .. })));
    };
    (0..bytes.len()).for_each(|cut| refused(&bytes[..cut]));
    for at in 0..bytes.len() {
        let mut spoilt = bytes.clone();
        spoilt[at] ^= 1 << (at % 8);
        refused(&spoilt);
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(Trigrams::load(&path), Err(DecodingError::State { .. })), "a file of another kind");
    assert!(matches!(Matrix::load(Path::new("/nowhere/matrix")), Err(DecodingError::Io { .. })));
    assert!(matches!(again.matrix().save(Path::new("/nowhere/matrix")), Err(DecodingError::Io { .. })));
}

#[test]
fn bad_numbers_are_refused() {
    assert!(Matrix::new(0, 1).is_err() && Matrix::new(5, 0).is_err() && Matrix::new(5, 6).is_err());
    let matrix = || Matrix::new(9, 4).unwrap();
    assert!(TokenRecycling::with_matrix(matrix(), Recycling::default()).is_err(), "another k");
    let empty = Recycling { k: 4, template: Template::new(&[]).unwrap(), ..Recycling::default() };
    assert!(TokenRecycling::with_matrix(matrix(), empty).is_err());
    assert!(Template::wide(0, 3).is_err() && Template::wide(65, 3).is_err() && Template::wide(4, 0).is_err());
    for bad in [
        Suffix { shortest: 0, ..Suffix::default() },
        Suffix { draft: 0, ..Suffix::default() },
        Suffix { memory: 0, ..Suffix::default() },
        Suffix { factor: f64::NAN, ..Suffix::default() },
        Suffix { factor: 0.0, ..Suffix::default() },
    ] {
        assert!(SuffixLookup::new(bad).is_err(), "{bad:?}");
    }
    // A drafter for another vocabulary does not fit.
    let mut drafter = TokenRecycling::new(9, Recycling::default()).unwrap();
    let decoder =
        Decoder::new(&mut CountingModel::new(8), &mut drafter, &mut GreedyTree, limits(5)).map(|_| ());
    assert!(matches!(decoder, Err(DecodingError::Vocabulary { .. })));
}

#[test]
fn a_suffix_drafts_from_all_texts() {
    let mut drafter = SuffixLookup::default();
    let sampler = Sampler::greedy();
    let start = |drafter: &mut SuffixLookup, prompt: &[Token]| {
        drafter.start(&Start { prompt, first: 0, taps: &[], sampler: &sampler }).unwrap();
    };
    start(&mut drafter, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    start(&mut drafter, &[30, 31]);
    assert!(propose(&mut drafter, &[30, 31, 3], 80, 80).is_empty(), "one token is no match");
    assert_eq!(propose(&mut drafter, &[30, 31, 3, 4], 80, 80).tree().tokens(), [4, 5, 6, 7, 8]);
    assert_eq!(propose(&mut drafter, &[30, 31, 3, 4, 5], 80, 3).tree().tokens(), [5, 6, 7, 8]);
    assert_eq!(
        propose(&mut drafter, &[30, 31, 3, 4, 5, 6], 80, 80).tree().tokens(),
        [6, 7, 8, 9],
        "to its end"
    );
    let mut forgetful = SuffixLookup::new(Suffix { earlier: false, ..Suffix::default() }).unwrap();
    start(&mut forgetful, &[1, 2, 3, 4, 5]);
    start(&mut forgetful, &[30, 31]);
    assert!(propose(&mut forgetful, &[30, 31, 3, 4], 80, 80).is_empty());
    // Copying a long passage: nearly every round keeps what was proposed.
    let mut model = CountingModel::new(40);
    let prompt: Vec<Token> = (0..50).map(|i| i % 40).collect();
    let out = run(&mut model, &mut SuffixLookup::default(), &prompt, 69);
    assert_eq!(added(&out), [17; 4]);
}

#[test]
fn aded_adapts() {
    // "abcabc...": from the second period on every step keeps four drafted tokens and one more.
    for search in [Search::Mcts, Search::TopK, Search::Greedy] {
        let mut model = CountingModel::new(3);
        let table = Trigrams::new(TrigramConfig::default()).unwrap();
        let mut drafter = AdedDrafter::new(table, Aded { search, ..Aded::default() }).unwrap();
        let out = run(&mut model, &mut drafter, &[0, 1, 2, 0], 61);
        let added = added(&out);
        let first = added.iter().position(|&tokens| tokens == 5).unwrap();
        assert!(first <= 3, "{search:?}: {added:?}");
        assert!(added[first..added.len() - 1].iter().all(|&tokens| tokens == 5), "{search:?}: {added:?}");
        let table = Trigrams::new(TrigramConfig::default()).unwrap();
        let fixed = Aded { search, adaptive: false, ..Aded::default() };
        let still = run(&mut model, &mut AdedDrafter::new(table, fixed).unwrap(), &[0, 1, 2, 0], 61);
        assert_eq!(still.ledger.drafted, 0, "an empty table that does not learn");
    }
    // Short texts draft nothing.
    let table = Trigrams::new(TrigramConfig::default()).unwrap();
    let mut drafter = AdedDrafter::new(table, Aded::default()).unwrap();
    assert!(propose(&mut drafter, &[1], 80, 80).is_empty());
    assert!(propose(&mut drafter, &[1, 2], 80, 80).is_empty());
}
