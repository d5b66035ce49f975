use pilotfish_model::toy::TableModel;
use pilotfish_model::{Steps, Streams};
use proptest::prelude::*;

use super::*;
use crate::search::{SearchLimits, mode, mode_of_length, modes_by_length};

/// The Markov model of the notes: S, a, b; token 2 is both the start and the end.
fn markov() -> TableModel {
    let table = vec![0.24, 0.10, 0.66, 0.40, 0.50, 0.10, 0.55, 0.35, 0.10];
    TableModel::new(1, 3, table).expect("a table")
}

const END: [Token; 1] = [2];

/// The exact classifier of "the text has this many tokens": the probability to stop after exactly that many more.
struct Exact {
    length: usize,
}

impl Exact {
    fn stop(token: Token, more: usize) -> f64 {
        let a = [0.66, 0.1684, 0.071816, 0.039672];
        let b = [0.1, 0.314, 0.22436, 0.140906];
        if token == 0 { a[more] } else { b[more] }
    }
}

impl PrefixClassifier for Exact {
    fn prefix(&mut self, prefix: &[Token], _: &[f32], candidates: &[Token]) -> Result<Vec<f64>> {
        let left = self.length.checked_sub(prefix.len() + 1);
        Ok(candidates.iter().map(|&token| left.map_or(0.0, |left| Self::stop(token, left))).collect())
    }

    fn complete(&mut self, text: &[Token], _: &[f32]) -> Result<f64> {
        Ok(f64::from(u8::from(text.len() == self.length)))
    }
}

fn letters(text: &str) -> Vec<Token> {
    text.bytes().map(|byte| Token::from(byte - b'a')).collect()
}

#[test]
fn exact_modes_of_the_markov_model() {
    let mut model = markov();
    let limits = SearchLimits { tokens: 6, prefixes: 1000 };
    let found = mode(&mut model, &END, &END, &limits, None).expect("runs");
    let best = found.best.expect("there is one");
    assert_eq!((best.tokens, found.proven, found.prefixes), (letters("a"), true, 2));
    assert!((best.log_prob.exp() - 0.363).abs() < 1e-6);
    let modes =
        modes_by_length(&mut model, &END, &END, &SearchLimits { tokens: 4, ..limits }, &[]).expect("runs");
    for (length, text, probability) in
        [(0, "", 0.1), (1, "a", 0.363), (2, "ba", 0.0924), (3, "bba", 0.0462), (4, "bbba", 0.0231)]
    {
        let best = modes.best[length].as_ref().expect("there is one");
        assert_eq!(best.tokens, letters(text));
        assert!((best.log_prob.exp() - probability).abs() < 1e-6);
    }
    assert!(modes.proven);
    // Prefixes looked at for one length alone, the likeliest child first.
    for (length, text, prefixes) in [(2, "ba", 6), (3, "bba", 12), (4, "bbba", 21)] {
        let found = mode_of_length(&mut model, &END, &END, length, &limits, None).expect("runs");
        assert_eq!((found.best.expect("there is one").tokens, found.prefixes), (letters(text), prefixes));
    }
    assert_eq!(model.len(), 1);
}

#[test]
fn conditional_beams_find_what_masking_the_end_misses() {
    for (length, plain, plain_probability, best) in
        [(2, "aa", 0.08712, "ba"), (3, "aaa", 0.0209088, "bba"), (4, "aaaa", 0.005018, "bbba")]
    {
        let mut model = markov();
        let config = BeamConfig { width: 1, tokens: length, ..BeamConfig::default() };
        let found = conditional_beam(&mut model, &END, &END, &mut Length(length), &config).expect("runs");
        assert_eq!(found[0].tokens, letters(plain));
        assert!((found[0].log_prob.exp() - plain_probability).abs() < 1e-6);
        let found = conditional_beam(&mut model, &END, &END, &mut Exact { length }, &config).expect("runs");
        assert_eq!(found[0].tokens, letters(best));
    }
}

/// Sees the ranks that a search of length 3 computes.
struct Spy {
    exact: Exact,
    values: Vec<(Vec<Token>, Vec<f64>)>,
}

impl PrefixClassifier for Spy {
    fn prefix(&mut self, prefix: &[Token], states: &[f32], candidates: &[Token]) -> Result<Vec<f64>> {
        let values = self.exact.prefix(prefix, states, candidates)?;
        self.values.push((prefix.to_vec(), values.clone()));
        Ok(values)
    }

    fn complete(&mut self, text: &[Token], states: &[f32]) -> Result<f64> {
        self.exact.complete(text, states)
    }
}

#[test]
fn the_newest_value_replaces_the_one_before() {
    let mut model = markov();
    let mut spy = Spy { exact: Exact { length: 3 }, values: Vec::new() };
    let config = BeamConfig { width: 1, tokens: 3, ..BeamConfig::default() };
    let found = conditional_beam(&mut model, &END, &END, &mut spy, &config).expect("runs");
    assert_eq!(found[0].tokens, letters("bba"));
    // Ranks of the notes: probability of the whole prefix times the newest value alone.
    let p = |text: &[Token]| markov().text_probability(&END, text);
    let ranks: Vec<f64> = spy
        .values
        .iter()
        .flat_map(|(prefix, values)| {
            values.iter().enumerate().map(|(token, value)| {
                let text: Vec<Token> = prefix.iter().copied().chain([token as Token]).collect();
                p(&text) * value
            })
        })
        .collect();
    let want = [0.039499, 0.078526, 0.023576, 0.05495, 0.0462, 0.00875];
    assert_eq!(ranks.len(), want.len());
    assert!(ranks.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6), "{ranks:?}");
    // Multiplied in at every step, .05495 would be another number.
    let wrong = ranks[3] * Exact::stop(1, 2);
    assert!((wrong - 0.05495).abs() > 0.03);
}

#[test]
fn a_constant_classifier_is_no_classifier() {
    struct Half;
    impl PrefixClassifier for Half {
        fn prefix(&mut self, _: &[Token], _: &[f32], candidates: &[Token]) -> Result<Vec<f64>> {
            Ok(vec![0.5; candidates.len()])
        }
        fn complete(&mut self, _: &[Token], _: &[f32]) -> Result<f64> {
            Ok(0.5)
        }
    }
    for seed in 0..20 {
        let mut model =
            TableModel::random(2, 5, 1.5, &mut Streams::new(seed).stream("model")).expect("a table");
        let config = BeamConfig { width: 3, tokens: 6, ..BeamConfig::default() };
        let plain = beam(&mut model, &[4], &[4], &config).expect("runs");
        let half = conditional_beam(&mut model, &[4], &[4], &mut Half, &config).expect("runs");
        let texts = |found: &[Found]| found.iter().map(|found| found.tokens.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&plain), texts(&half));
    }
}

/// Every text of at most `most` tokens with its probability.
fn brute(model: &TableModel, end: Token, most: usize) -> Vec<(Vec<Token>, f64)> {
    let mut all = Vec::new();
    let mut open = vec![(Vec::new(), 1.0)];
    while let Some((text, p)) = open.pop() {
        let path: Vec<Token> = std::iter::once(end).chain(text.iter().copied()).collect();
        let next = model.next(&path);
        all.push((text.clone(), p * next.prob(end)));
        if text.len() < most {
            for token in (0..next.probs().len() as Token).filter(|&token| token != end) {
                open.push((text.iter().copied().chain([token]).collect(), p * next.prob(token)));
            }
        }
    }
    all
}

proptest! {
    #[test]
    fn exact_searches_equal_brute_force(seed in 0u64..500, vocab in 2usize..5, tokens in 1usize..5) {
        let mut model = TableModel::random(2, vocab, 1.2, &mut Streams::new(seed).stream("model")).expect("a table");
        let end = [vocab as Token - 1];
        let all = brute(&model, end[0], tokens);
        let limits = SearchLimits { tokens, prefixes: 100_000 };
        let found = mode(&mut model, &end, &end, &limits, None).expect("runs");
        let best = all.iter().map(|text| text.1).fold(0.0, f64::max);
        let score = found.best.as_ref().expect("there is one").log_prob.exp();
        prop_assert!((score - best).abs() < 1e-6 && found.proven);
        let modes = modes_by_length(&mut model, &end, &end, &limits, &[]).expect("runs");
        let config = BeamConfig { width: 2, tokens, ..BeamConfig::default() };
        let beamed = beam(&mut model, &end, &end, &config).expect("runs");
        prop_assert!(beamed.iter().all(|found| found.log_prob.exp() <= best + 1e-6));
        for length in 0..=tokens {
            let best = all.iter().filter(|text| text.0.len() == length).map(|text| text.1).fold(0.0, f64::max);
            let score = modes.best[length].as_ref().map_or(0.0, |found| found.log_prob.exp());
            prop_assert!((score - best).abs() < 1e-6);
            // Wide enough a beam with an exact attribute is exhaustive.
            let config = BeamConfig { width: 4usize.pow(5), candidates: 5, tokens, ..BeamConfig::default() };
            let wide = conditional_beam(&mut model, &end, &end, &mut Length(length), &config).expect("runs");
            prop_assert!((wide[0].log_prob.exp() - best).abs() < 1e-6);
            // A separate traversal for this length alone finds the same, and so does one with a bound.
            let narrow = SearchLimits { tokens: length.max(1), ..limits };
            let again = modes_by_length(&mut model, &end, &end, &narrow, &wide).expect("runs");
            let score = again.best[length].as_ref().map_or(0.0, |found| found.log_prob.exp());
            prop_assert!((score - best).abs() < 1e-6 && again.prefixes <= modes.prefixes.max(1));
        }
    }
}

#[test]
fn lengths_and_groups() {
    let mut model = markov();
    let plain = BeamConfig { width: 4, tokens: 5, ..BeamConfig::default() };
    let short = beam(&mut model, &END, &END, &plain).expect("runs");
    assert_eq!(short[0].tokens, letters("a"));
    let long = beam(&mut model, &END, &END, &BeamConfig { length_penalty: 1.0, ..plain }).expect("runs");
    let mean = |found: &[Found]| {
        found.iter().map(|found| found.tokens.len()).sum::<usize>() as f64 / found.len() as f64
    };
    assert!(mean(&long) >= mean(&short), "{long:?} {short:?}");
    for found in &long {
        let want = found.log_prob / (found.tokens.len() + 1) as f64;
        assert!((found.rank - want).abs() < 1e-12);
    }
    // Two groups of one: the second is pushed away from the first one's token.
    let diverse = BeamConfig { width: 2, groups: 2, diversity: 10.0, ..plain };
    let found = beam(&mut model, &END, &END, &diverse).expect("runs");
    let firsts: Vec<_> = found.iter().map(|found| found.tokens.first().copied()).collect();
    assert_ne!(firsts[0], firsts[1]);
    let same = BeamConfig { diversity: 0.0, ..diverse };
    let found = beam(&mut model, &END, &END, &same).expect("runs");
    assert_eq!(found[0].tokens, found[1].tokens);
}

#[test]
fn limits_are_kept_and_numbers_checked() {
    let mut model = TableModel::random(1, 6, 0.1, &mut Streams::new(1).stream("model")).expect("a table");
    let found = mode(&mut model, &[5], &[5], &SearchLimits { tokens: 20, prefixes: 3 }, None).expect("runs");
    assert!(found.prefixes == 3 && !found.proven);
    let bound = found.best.clone();
    let again = mode(&mut model, &[5], &[5], &SearchLimits { tokens: 1, prefixes: 100 }, bound.clone())
        .expect("runs");
    let score = |found: &Option<Found>| found.as_ref().map_or(f64::NEG_INFINITY, |found| found.log_prob);
    assert!(score(&again.best) >= score(&bound));
    let good = BeamConfig::default();
    let bad = [
        BeamConfig { width: 0, ..good },
        BeamConfig { candidates: 0, ..good },
        BeamConfig { tokens: 0, ..good },
        BeamConfig { groups: 0, ..good },
        BeamConfig { groups: 2, ..good },
        BeamConfig { length_penalty: f64::NAN, ..good },
        BeamConfig { diversity: -1.0, ..good },
    ];
    assert!(bad.iter().all(|config| config.check().is_err()));
    assert!(beam(&mut model, &[], &[5], &good).is_err() && beam(&mut model, &[0], &[], &good).is_err());
    assert!(beam(&mut model, &[0], &[6], &good).is_err());
    assert!(beam(&mut model, &[0], &[5], &BeamConfig { tokens: usize::MAX, ..good }).is_err());
    assert!(mode(&mut model, &[0], &[5], &SearchLimits { tokens: 0, prefixes: 1 }, None).is_err());
    // Nothing ever ends: nothing is found, and nothing hangs.
    let mut endless = TableModel::new(0, 2, vec![1.0, 0.0]).expect("a table");
    let config = BeamConfig { tokens: 50, ..good };
    assert!(beam(&mut endless, &[0], &[1], &config).expect("runs").is_empty());
    let found =
        mode(&mut endless, &[0], &[1], &SearchLimits { tokens: 50, prefixes: 1000 }, None).expect("runs");
    assert!(found.best.is_none() && found.proven);
}
