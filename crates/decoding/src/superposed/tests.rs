use pilotfish_model::toy::{LinearModel, TableModel};
use pilotfish_model::{Steps, Streams};
use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::{Decoder, GreedyTree, Limits, Nothing};

const NEVER: f32 = -60.0;

/// A linear model whose row after a token is that of one of these laws.
fn model(rows: &[&[f64]]) -> LinearModel {
    let logits =
        |row: &&[f64]| row.iter().map(|p| if *p > 0.0 { p.ln() as f32 } else { NEVER }).collect::<Vec<_>>();
    LinearModel::new(rows.len(), rows.iter().flat_map(logits).collect()).expect("square")
}

fn random(vocab: usize, seed: u64) -> LinearModel {
    let mut rng = Streams::new(seed).stream("test");
    LinearModel::new(vocab, (0..vocab * vocab).map(|_| rng.random_range(-3.0..3.0)).collect())
        .expect("square")
}

fn config(drafts: usize, candidates: usize, tokens: usize) -> SuperposedConfig {
    SuperposedConfig {
        drafts,
        candidates,
        tokens,
        temperature: 1.0,
        alpha: 0.5,
        ..SuperposedConfig::default()
    }
}

fn texts(out: &Superposed) -> Vec<Vec<Token>> {
    out.drafts.iter().map(|draft| draft.tokens.clone()).collect()
}

fn close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() < tolerance, "{got} is not {want}");
}

/// How often a bigram is counted.
fn bigrams(counts: &[([Token; 2], usize)]) -> NGrams {
    let documents = counts.iter().flat_map(|(gram, count)| std::iter::repeat_n(&gram[..], *count));
    NGrams::build(5, documents).expect("valid")
}

#[test]
fn the_worked_example() {
    let (a, b, root) = (0, 1, 3);
    let after = [0.6, 0.4, 0.0, 0.0];
    let mut model = model(&[&after, &after, &after, &[0.5, 0.3, 0.2, 0.0]]);
    let tables = bigrams(&[([a, a], 1), ([a, b], 9), ([b, a], 8), ([b, b], 2)]);
    let config = SuperposedConfig { weights: vec![1.0], first: FirstTokens::Model, ..config(2, 3, 3) };
    let mut seen = Vec::new();
    superposed_with(&mut model, &[root], Some(&tables), &config, LogitForm::Full, |pass| {
        seen.push((pass.drafts.to_vec(), pass.weights.to_vec()));
    })
    .expect("runs");
    let [(first, gamma), (second, later)] = &seen[..] else { panic!("two passes after the prompt's") };
    assert_eq!((first[0].tokens.as_slice(), first[1].tokens.as_slice()), (&[a][..], &[b][..]));
    close(gamma[0], 0.625, 1e-6);
    close(gamma[1], 0.375, 1e-6);
    assert_eq!((second[0].tokens.as_slice(), second[1].tokens.as_slice()), (&[a, b][..], &[b, a][..]));
    close(second[0].score.exp(), 0.3, 1e-6);
    close(second[1].score.exp(), 0.3 * 0.48f64.sqrt(), 1e-6);
    close(second[1].score.exp(), 0.2078, 5e-5);
    close(later[0], 0.5907, 5e-5);
    close(later[1], 0.4093, 5e-5);
    // The two that were not kept.
    let scoring = Scoring { tables: Some(&tables), config: &config, end: vec![] };
    let law = [(a, 0.6f64.ln()), (b, 0.4f64.ln())];
    let scores = |text: &[Token], before: f64| -> Vec<f64> {
        scoring.scores(&[root], text, &law, false).iter().map(|s| before * s[0].exp()).collect()
    };
    close(scores(&[a], 0.5)[0], 0.1225, 5e-5);
    close(scores(&[b], 0.3)[1], 0.0849, 5e-5);
}

#[test]
fn one_draft_without_tables_is_greedy() {
    for seed in 0..10 {
        let mut model = random(12, seed);
        let limits = Limits { new_tokens: 20, ..Limits::default() };
        let greedy = Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits)
            .expect("fits")
            .generate(&[1, 2])
            .expect("runs")
            .tokens;
        for temperature in [1e-3, 0.06, 1.0, 30.0] {
            for passes in [Passes::Superposed, Passes::Separate] {
                let config = SuperposedConfig { temperature, passes, ..config(1, 4, 20) };
                let out = superposed(&mut model, &[1, 2], None, &config).expect("runs");
                assert_eq!(texts(&out), std::slice::from_ref(&greedy), "{temperature} {passes:?}");
                assert_eq!(model.len(), 2, "the prompt is left");
            }
        }
    }
}

#[test]
fn first_tokens_are_the_likeliest() {
    let mut model = random(20, 3);
    let row = model.step(&Step::chain(&[7])).expect("runs").logits;
    let best: Vec<Token> = row.top(0, 5).expect("finite").iter().map(|(token, _)| *token).collect();
    let out = superposed(&mut model, &[7], None, &config(5, 15, 1)).expect("runs");
    assert_eq!(texts(&out).concat(), best);
}

#[test]
fn unknown_contexts_survive_only_for_want_of_others() {
    let (a, b, root) = (0, 1, 3);
    let law = [0.5, 0.3, 0.2, 0.0];
    let mut model = model(&[&law[..]; 4]);
    let first = SuperposedConfig { weights: vec![1.0], first: FirstTokens::Model, ..config(2, 3, 2) };
    // Nothing is known after b: both drafts go on from a, which may be followed by two tokens.
    let out =
        superposed(&mut model, &[root], Some(&bigrams(&[([a, a], 3), ([a, b], 1)])), &first).expect("runs");
    assert_eq!(texts(&out), [[a, a], [a, b]]);
    close(out.drafts[1].score, 0.5f64.ln() + 0.5 * (0.3f64 * 0.25).ln(), 1e-6);
    // After a there is one token only: b stays, by its best token, at the price of the penalty.
    let out = superposed(&mut model, &[root], Some(&bigrams(&[([a, b], 1)])), &first).expect("runs");
    assert_eq!(texts(&out), [[a, b], [b, a]]);
    close(out.drafts[1].score, 0.3f64.ln() + 0.5 * 0.5f64.ln() - 200.0, 1e-6);
    // The released code's first step, with one known continuation: the second draft begins with a spare.
    let code = SuperposedConfig { first: FirstTokens::Interpolated, tokens: 1, ..first };
    let out = superposed(&mut model, &[root], Some(&bigrams(&[([root, b], 1)])), &code).expect("runs");
    assert_eq!(texts(&out), [[b], [a]]);
    close(out.drafts[0].score, 0.5 * 0.3f64.ln(), 1e-6);
    close(out.drafts[1].score, 0.5 * 0.5f64.ln() - 200.0, 1e-6);
}

#[test]
fn weights_of_tables_are_not_renormalised() {
    let tables = NGrams::build(5, [&[1, 2, 3, 4, 5, 6][..], &[0, 9]]).expect("valid");
    let config = SuperposedConfig::default();
    let scoring = Scoring { tables: Some(&tables), config: &config, end: vec![] };
    // Five contexts agree: the sum of the weights, .5.
    let g = scoring.tables(&[1, 2, 3], &[4, 5], &[6, 7]).expect("counts");
    close(g[0], 0.5, 1e-12);
    assert_eq!(g[1], 0.0);
    let scores = scoring.scores(&[1, 2, 3], &[4, 5], &[(7, -0.1), (6, -3.0)], false);
    assert_eq!(scores[0][0], f64::NEG_INFINITY);
    close(scores[1][0], 0.46 * -3.0 + 0.54 * 0.5f64.ln(), 1e-12);
    // A text shorter than a context, and one that parts from the corpus.
    close(scoring.tables(&[1], &[2], &[3]).expect("counts")[0], 0.05, 1e-12);
    close(scoring.tables(&[5, 2], &[3], &[4]).expect("counts")[0], 0.05, 1e-12);
    let unknown = scoring.scores(&[8], &[], &[(6, -3.0)], false);
    close(unknown[0][0], 0.46 * -3.0 - 200.0, 1e-12);
}

#[test]
fn alpha_at_its_ends_is_no_nan() {
    let tables = bigrams(&[([0, 1], 1)]);
    for (alpha, seen, unseen) in [(0.0, -2.0, -5.0), (1.0, 0.01f64.ln(), f64::NEG_INFINITY)] {
        let config = SuperposedConfig { alpha, ..SuperposedConfig::default() };
        let scoring = Scoring { tables: Some(&tables), config: &config, end: vec![] };
        let scores = scoring.scores(&[0], &[], &[(1, -2.0), (2, -5.0)], false);
        close(scores[0][0], seen, 1e-12);
        assert_eq!(scores[1][0], unseen);
    }
    // Masked tokens are no candidates, at any weight of the model.
    let rows = vec![0.0, 1.0, NEVER, 0.5, 0.0, NEVER, 0.0, 0.0, NEVER];
    for alpha in [0.0, 0.5, 1.0] {
        let config = SuperposedConfig { alpha, ..config(2, 3, 4) };
        let mut model = LinearModel::new(3, rows.clone()).expect("square");
        let out = superposed(&mut model, &[0], Some(&tables), &config).expect("runs");
        assert!(out.drafts.iter().all(|draft| draft.score.is_finite()), "{out:?}");
    }
}

#[test]
fn equal_last_tokens_add_up() {
    let draft = |token, weight: f64| Continuation {
        tokens: vec![8, token],
        score: weight.ln() - 300.0,
        finished: false,
    };
    let state = State { drafts: vec![draft(4, 0.5), draft(4, 0.3), draft(6, 0.2)], finished: vec![] };
    let mixture = state.mixture();
    assert_eq!(mixture.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [4, 6]);
    close(mixture[0].1, 0.8, 1e-9);
    close(mixture[1].1, 0.2, 1e-9);
}

#[test]
fn passes_do_not_depend_on_the_number_of_drafts() {
    for drafts in [1, 2, 5, 8] {
        let mut model = random(30, 1);
        let config = config(drafts, 20, 10);
        let out = superposed(&mut model, &[1, 2, 3], None, &config).expect("runs");
        assert_eq!((model.calls(), out.ledger.target_forwards, out.ledger.target_rows), (10, 10, 3 + 9));
        let separate = SuperposedConfig { passes: Passes::Separate, ..config };
        let out = superposed(&mut model, &[1, 2, 3], None, &separate).expect("runs");
        assert_eq!(out.ledger.target_rows, 3 + 9 * drafts as u64);
    }
}

#[test]
fn a_linear_model_is_superposed_exactly() {
    let mut model = random(16, 4);
    let mut again = model.clone();
    let mut passes = 0;
    superposed_with(&mut model, &[3], None, &config(4, 12, 8), LogitForm::Full, |pass| {
        let mut sum = vec![0.0f64; 16];
        for (draft, weight) in pass.drafts.iter().zip(pass.weights) {
            let answer = again.step(&Step::chain(&draft.tokens)).expect("runs").logits;
            let row = answer.row(0).expect("full");
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        let row = pass.logits.row(0).expect("full");
        assert!(row.iter().zip(&sum).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
        passes += 1;
    })
    .expect("runs");
    assert_eq!(passes, 7);
}

#[test]
fn without_contexts_superposition_is_a_beam() {
    // The law of the next token is the same whatever was said: one row for all is as good as a row each.
    let row: Vec<f32> = (0..9).map(|i| (i * i % 7) as f32 * 0.7).collect();
    let mut model = LinearModel::new(9, row.repeat(9)).expect("square");
    for seed in 0..5 {
        let mut rng = Streams::new(seed).stream("test");
        let documents: Vec<Vec<Token>> =
            (0..40).map(|_| (0..12).map(|_| rng.random_range(0..9)).collect()).collect();
        let tables = NGrams::build(5, documents.iter().map(Vec::as_slice)).expect("valid");
        for tables in [None, Some(&tables)] {
            let config = config(3, 9, 6);
            let one = superposed(&mut model, &[2], tables, &config).expect("runs");
            let separate = SuperposedConfig { passes: Passes::Separate, ..config };
            let each = superposed(&mut model, &[2], tables, &separate).expect("runs");
            assert_eq!(texts(&one), texts(&each));
        }
    }
    // Where contexts do matter it is not.
    let mut model = random(9, 5);
    let config = config(3, 9, 8);
    let one = superposed(&mut model, &[2], None, &config).expect("runs");
    let separate = SuperposedConfig { passes: Passes::Separate, ..config };
    assert_ne!(texts(&one), texts(&superposed(&mut model, &[2], None, &separate).expect("runs")));
}

#[test]
fn separate_rows_are_a_beam_search() {
    // Without tables and ends, at temperature 1 and with all tokens kept: the beam's own scores.
    let table = TableModel::random(1, 7, 1.0, &mut Streams::new(6).stream("test")).expect("small");
    let mut model = LinearModel::of(&table, 1e-12).expect("finite");
    let separate = SuperposedConfig { passes: Passes::Separate, ..config(4, 7, 5) };
    let out = superposed(&mut model, &[0], None, &separate).expect("runs");
    for draft in &out.drafts {
        close(draft.score, table.text_probability(&[0], &draft.tokens).ln(), 1e-4);
    }
    // By brute force over what a beam of four keeps.
    let mut beam = vec![(Vec::new(), 1.0)];
    for _ in 0..5 {
        let mut longer: Vec<(Vec<Token>, f64)> = Vec::new();
        for (text, p) in &beam {
            let path: Vec<Token> = [0].iter().chain(text).copied().collect();
            let next = table.next(&path);
            longer.extend((0..7).map(|token| {
                let text = text.iter().copied().chain([token]).collect();
                (text, p * next.prob(token))
            }));
        }
        longer.sort_by(|a, b| b.1.total_cmp(&a.1));
        longer.truncate(4);
        beam = longer;
    }
    assert_eq!(texts(&out), beam.into_iter().map(|(text, _)| text).collect::<Vec<_>>());
}

#[test]
fn texts_that_end_are_set_aside() {
    // 2 ends, and is likely after 0 and 1.
    let end = 2;
    let mut model =
        model(&[&[0.1, 0.2, 0.6, 0.1], &[0.2, 0.25, 0.5, 0.05], &[0.25; 4], &[0.5, 0.4, 0.05, 0.05]])
            .with_end(vec![end]);
    let out = superposed(&mut model, &[3], None, &config(2, 4, 2)).expect("runs");
    let found: Vec<_> = out.drafts.iter().map(|draft| (draft.tokens.as_slice(), draft.finished)).collect();
    assert_eq!(found[0], (&[0, 2][..], true));
    assert!(out.drafts.iter().all(|draft| draft.finished == draft.tokens.contains(&end)));
    // Nothing but an end is possible: fewer drafts than asked for, and no failure.
    let rows = [f32::MIN, f32::MIN, 0.0].repeat(3);
    let mut model = LinearModel::new(3, rows).expect("square").with_end(vec![end]);
    let out = superposed(&mut model, &[0], None, &config(2, 3, 3)).expect("runs");
    assert!(out.drafts.iter().all(|draft| draft.score.is_finite() || !draft.finished));
}

#[test]
fn bad_input_is_refused() {
    let mut model = random(12, 1).with_end(vec![3]);
    let good = config(3, 6, 4);
    assert!(superposed(&mut model, &[1], None, &good).is_ok());
    let bad = [
        SuperposedConfig { drafts: 0, ..good.clone() },
        SuperposedConfig { tokens: 0, ..good.clone() },
        SuperposedConfig { candidates: 3, ..good.clone() },
        SuperposedConfig { candidates: 13, ..good.clone() },
        SuperposedConfig { drafts: usize::MAX, ..good.clone() },
        SuperposedConfig { temperature: 0.0, ..good.clone() },
        SuperposedConfig { temperature: f64::NAN, ..good.clone() },
        SuperposedConfig { alpha: 1.1, ..good.clone() },
        SuperposedConfig { alpha: f64::NAN, ..good.clone() },
        SuperposedConfig { penalty: f64::INFINITY, ..good.clone() },
        SuperposedConfig { weights: vec![0.1, -0.1], ..good.clone() },
        SuperposedConfig { weights: vec![f64::NAN], ..good.clone() },
    ];
    for bad in bad {
        assert!(superposed(&mut model, &[1], None, &bad).is_err(), "{bad:?}");
    }
    assert!(matches!(superposed(&mut model, &[], None, &good), Err(DecodingError::EmptyPrompt)));
    assert!(superposed(&mut model, &[12], None, &good).is_err());
    let long = SuperposedConfig { tokens: 1 << 20, ..good.clone() };
    let refused = superposed(&mut model, &[1], None, &long);
    assert!(matches!(refused, Err(DecodingError::PromptTooLong { .. })), "{refused:?}");
    // A table has no embeddings, but rows of its own.
    let mut table = TableModel::random(1, 12, 1.0, &mut Streams::new(1).stream("test")).expect("small");
    let refused = superposed(&mut table, &[1], None, &good);
    assert!(matches!(refused, Err(DecodingError::Model(ModelError::Unsupported { .. }))), "{refused:?}");
    let separate = SuperposedConfig { passes: Passes::Separate, ..good };
    assert!(superposed(&mut table, &[1], None, &separate).is_ok());
}

proptest! {
    #[test]
    fn drafts_are_different_and_open(
        seed in 0u64..1000,
        drafts in 1usize..6,
        tokens in 1usize..8,
        counted in any::<bool>(),
        separate in any::<bool>(),
    ) {
        let mut rng = Streams::new(seed).stream("documents");
        let documents: Vec<Vec<Token>> = (0..6).map(|_| (0..9).map(|_| rng.random_range(0..10)).collect()).collect();
        let tables = NGrams::build(3, documents.iter().map(Vec::as_slice)).expect("valid");
        let mut model = random(10, seed).with_end(vec![4, 7]);
        let passes = if separate { Passes::Separate } else { Passes::Superposed };
        let config = SuperposedConfig { passes, ..config(drafts, drafts + 2, tokens) };
        let mut failed = None;
        let out = superposed_with(&mut model, &[1], counted.then_some(&tables), &config, LogitForm::Full, |pass| {
            let sum: f64 = pass.weights.iter().sum();
            let open = pass.drafts.iter().all(|draft| !draft.finished && !draft.tokens.iter().any(|t| [4, 7].contains(t)));
            let different = (1..pass.drafts.len()).all(|i| pass.drafts[..i].iter().all(|other| other.tokens != pass.drafts[i].tokens));
            if pass.drafts.len() != drafts || (sum - 1.0).abs() > 1e-6 || !open || !different {
                failed = Some(pass.drafts.to_vec());
            }
        }).expect("runs");
        prop_assert!(failed.is_none(), "{failed:?}");
        prop_assert!(out.drafts.len() == drafts && out.drafts.windows(2).all(|pair| pair[0].rank() >= pair[1].rank()));
        for draft in &out.drafts {
            prop_assert_eq!(draft.finished, draft.tokens.iter().any(|token| [4, 7].contains(token)));
        }
    }
}
