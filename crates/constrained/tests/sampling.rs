//! Samplers on laws that can be enumerated.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use pilotfish_constrained::{
    Anything, Both, ConstrainedError, Constraint, Critic, Dfa, End, Estimator, NextLaw, Pool, Predicate,
    Proposal, Rejection, Resampling, Smc, Vocabulary,
};
use pilotfish_model::sampling::Warpers;
use pilotfish_model::toy::TableModel;
use pilotfish_model::{Steps, Streams, Token};
use proptest::prelude::*;

use common::naive;

fn vocabulary(letters: &str) -> Vocabulary {
    let bytes = letters.bytes().map(|byte| Some(vec![byte])).chain([None]).collect();
    Vocabulary::new(bytes, vec![letters.len() as Token]).unwrap()
}

/// Mean and variance of a weight over many draws.
fn simulate(law: &NextLaw, valid: &[Token], estimator: Estimator, rounds: u32, seed: u64) -> (f64, f64) {
    let mut rng = Streams::new(seed).stream("particle");
    let (mut sum, mut squares) = (0.0, 0.0);
    for _ in 0..rounds {
        let mut pool = law.pool(&mut rng);
        let drawn = estimator.draw(&mut pool, &mut |token| Ok(valid.contains(&token))).unwrap();
        let weight = drawn.weight().exp();
        sum += weight;
        squares += weight * weight;
    }
    let mean = sum / f64::from(rounds);
    (mean, squares / f64::from(rounds) - mean * mean)
}

#[test]
fn the_geometric_estimator_has_the_variances_of_the_notes() {
    let law = NextLaw::from_weights(vec![0.4, 0.3, 0.2, 0.1]).unwrap();
    let geometric = |accepts, max_rejects| Estimator::Geometric { accepts, max_rejects };
    // Without a cut, two acceptances: (Z^2 / (1 - Z)) (-ln Z) - Z^2 for draws with replacement.
    let with_replacement: f64 =
        (0..400).map(|n| 0.16 * 0.6f64.powi(n) / (f64::from(n) + 1.0)).sum::<f64>() - 0.16;
    assert!((with_replacement - 0.08434).abs() < 1e-5);
    for (estimator, want) in
        [(geometric(2, None), with_replacement), (geometric(2, Some(2)), 0.120), (geometric(4, None), 0.0324)]
    {
        let (mean, variance) = simulate(&law, &[1, 3], estimator, 100_000, 1);
        let error = (variance / 1e5).sqrt();
        assert!((mean - 0.4).abs() < 4.0 * error, "{estimator:?}: {mean} +- {error}");
        assert!((variance - want).abs() < 0.002, "{estimator:?}: {variance}");
    }
}

#[test]
fn accepted_tokens_follow_the_restricted_law() {
    let weights = vec![0.3, 0.25, 0.2, 0.15, 0.07, 0.03];
    let (law, valid) = (NextLaw::from_weights(weights.clone()).unwrap(), [1, 3, 4]);
    let z: f64 = valid.iter().map(|&token| weights[token as usize]).sum();
    for estimator in [Estimator::Unweighted, Estimator::Paper, Estimator::Recursive, Estimator::Chosen] {
        let mut rng = Streams::new(9).stream("particle");
        let (mut counts, n) = ([0.0; 6], 40_000.0);
        for _ in 0..n as usize {
            let mut tests = 0;
            let mut pool = law.pool(&mut rng);
            let mut test = |token| {
                tests += 1;
                Ok(valid.contains(&token))
            };
            let drawn = estimator.draw(&mut pool, &mut test).unwrap();
            counts[drawn.token.unwrap() as usize] += 1.0;
            // At most |V| - |valid| + 1 tests in the first pass.
            assert!(estimator != Estimator::Unweighted || tests <= 4);
        }
        let chi2: f64 = valid
            .iter()
            .map(|&token| {
                let want = n * weights[token as usize] / z;
                (counts[token as usize] - want).powi(2) / want
            })
            .sum();
        // Two degrees of freedom, p = 0.0001.
        assert!(chi2 < 18.4, "{estimator:?}: {chi2}");
    }
}

#[test]
fn tiny_masses_are_found_and_never_nan() {
    for tiny in [1e-12, 1e-200, f64::MIN_POSITIVE] {
        let mut weights = vec![1.0 / 999.0; 1000];
        weights[700] = tiny;
        let law = NextLaw::from_weights(weights).unwrap();
        for estimator in [
            Estimator::Paper,
            Estimator::Recursive,
            Estimator::Chosen,
            Estimator::Geometric { accepts: 2, max_rejects: None },
        ] {
            let mut rng = Streams::new(4).stream("particle");
            let mut pool = law.pool(&mut rng);
            let drawn = estimator.draw(&mut pool, &mut |token| Ok(token == 700)).unwrap();
            assert_eq!(drawn.token, Some(700));
            assert!(drawn.weight().is_finite(), "{estimator:?} {tiny}: {}", drawn.weight());
            // The recursive estimator has no variance when one token is valid.
            if estimator == Estimator::Recursive {
                assert!((drawn.weight() - tiny.ln()).abs() < 1e-9);
            }
        }
    }
    // All invalid: minus infinity always, with a token that violates the condition.
    let law = NextLaw::from_weights(vec![0.5, 0.5, 0.0]).unwrap();
    for estimator in
        [Estimator::Paper, Estimator::Chosen, Estimator::Geometric { accepts: 3, max_rejects: None }]
    {
        let mut rng = Streams::new(4).stream("particle");
        let drawn = estimator.draw(&mut law.pool(&mut rng), &mut |_| Ok(false)).unwrap();
        assert!(drawn.weight() == f64::NEG_INFINITY && drawn.token.is_some_and(|token| token < 2));
    }
    for bad in [f64::NAN, -1.0, f64::INFINITY] {
        assert!(NextLaw::from_weights(vec![0.5, bad]).is_err());
    }
    for (accepts, max_rejects) in [(1, None), (2, Some(1)), (0, None)] {
        assert!(Estimator::Geometric { accepts, max_rejects }.check().is_err());
    }
}

#[test]
fn restricting_costs_minus_log_z_of_divergence() {
    let (p, valid) = ([0.4f64, 0.3, 0.2, 0.1], [1usize, 3]);
    let z: f64 = valid.iter().map(|&i| p[i]).sum();
    let divergence: f64 = valid.iter().map(|&i| p[i] / z * (p[i] / z / p[i]).ln()).sum();
    assert!((divergence + z.ln()).abs() < 1e-12);
}

#[test]
fn ends_are_one_and_what_cannot_be_written_has_no_mass() {
    let bytes = vec![Some(b"a".to_vec()), None, Some(b"\n".to_vec()), None, Some(b"b\n".to_vec())];
    let vocabulary = Vocabulary::new(bytes, vec![3]).unwrap().ending(|bytes| bytes.contains(&b'\n')).unwrap();
    let sampler = Warpers::temperature(1.0).check().unwrap();
    let law = NextLaw::new(&[0.0; 5], &[], &sampler, &vocabulary).unwrap();
    assert!((law.weight(3) - 0.6).abs() < 1e-12 && (law.weight(0) - 0.2).abs() < 1e-12);
    assert_eq!((law.weight(1), law.weight(2), law.weight(4)), (0.0, 0.0, 0.0));
    assert!((law.total() - 0.8).abs() < 1e-12);
    assert!(NextLaw::new(&[0.0; 4], &[], &sampler, &vocabulary).is_err());
    assert!(NextLaw::new(&[f32::NAN; 5], &[], &sampler, &vocabulary).is_err());
}

/// `a` is nine times as likely as `b` and hardly ever leads to a valid text. Tokens a, b, x, y and the end.
fn trap() -> (TableModel, Vocabulary, Dfa) {
    let vocabulary = vocabulary("abxy");
    let mut table = vec![0.0; 25];
    // The prompt is token 0, so the text's first token comes from row 0; a itself is spelt by token 1.
    let rows: [(usize, [f64; 5]); 5] = [
        (4, [0.9, 0.1, 0.0, 0.0, 0.0]),
        (0, [0.0, 0.0, 0.01, 0.99, 0.0]),
        (1, [0.0, 0.0, 0.9, 0.1, 0.0]),
        (2, [0.0, 0.0, 0.0, 0.0, 1.0]),
        (3, [0.0, 0.0, 0.0, 0.0, 1.0]),
    ];
    for (row, law) in rows {
        table[row * 5..row * 5 + 5].copy_from_slice(&law);
    }
    (TableModel::new(1, 5, table).unwrap(), vocabulary, Dfa::words(&[b"ax", b"bx"]).unwrap())
}

#[test]
fn weights_correct_what_masking_gets_wrong() {
    let (mut model, vocabulary, constraint) = trap();
    let prompt = [4];
    let b_first = |text: &[u8]| f64::from(text[0] == b'b');
    let mut local = 0.0;
    for seed in 0..2000 {
        let posterior = Smc::locally_constrained()
            .run(&mut model, &vocabulary, &constraint, &prompt, Streams::new(seed))
            .unwrap();
        local += posterior.expectation(b_first) / 2000.0;
    }
    assert!((local - 0.1).abs() < 0.03, "masking keeps the model's first choice: {local}");
    for estimator in [Estimator::Paper, Estimator::Recursive, Estimator::Chosen] {
        let smc = Smc { particles: 4000, tau: 0.0, proposal: Proposal::Awrs(estimator), ..Smc::awrs() };
        let posterior = smc.run(&mut model, &vocabulary, &constraint, &prompt, Streams::new(3)).unwrap();
        let b = posterior.expectation(b_first);
        assert!((b - 10.0 / 11.0).abs() < 0.02, "{estimator:?}: {b}");
        assert!((posterior.log_evidence() + 2.3126).abs() < 0.1, "{}", posterior.log_evidence());
    }
}

/// Every text of a model with its probability, ended by force at `most` tokens.
fn enumerate(model: &TableModel, end: Token, prompt: &[Token], most: usize) -> BTreeMap<Vec<Token>, f64> {
    let mut all = BTreeMap::new();
    let mut open = vec![(Vec::new(), 1.0)];
    while let Some((text, probability)) = open.pop() {
        let path: Vec<Token> = prompt.iter().chain(&text).copied().collect();
        let next = model.next(&path);
        all.insert(text.clone(), probability * next.prob(end));
        if text.len() < most {
            for token in (0..next.probs().len() as Token).filter(|&token| token != end) {
                let mut longer = text.clone();
                longer.push(token);
                open.push((longer, probability * next.prob(token)));
            }
        }
    }
    all
}

/// Three letters and the end; the constraint: the number of a's is divisible by 3 and the text ends in b.
fn world(seed: u64) -> (TableModel, Vocabulary, Dfa, BTreeMap<Vec<u8>, f64>, f64) {
    let vocabulary = vocabulary("abc");
    let model = TableModel::random(2, 4, 1.5, &mut Streams::new(seed).stream("model")).unwrap();
    let dfa = Dfa::new(6, 0, &[3], |state, byte| match byte {
        b'a' => Some((state % 3 + 1) % 3),
        b'b' => Some(state % 3 + 3),
        b'c' => Some(state % 3),
        _ => None,
    })
    .unwrap();
    let mut truth: BTreeMap<Vec<u8>, f64> = BTreeMap::new();
    for (text, probability) in enumerate(&model, 3, &[3, 3], 5) {
        let bytes = vocabulary.text(&text);
        let mut state = dfa.clone();
        if state.push(&bytes).unwrap() && state.complete().unwrap() {
            truth.insert(bytes, probability);
        }
    }
    let z: f64 = truth.values().sum();
    truth.values_mut().for_each(|p| *p /= z);
    (model, vocabulary, dfa, truth, z)
}

fn distance(texts: &[(Vec<u8>, f64)], truth: &BTreeMap<Vec<u8>, f64>) -> f64 {
    let mut left = truth.clone();
    for (text, weight) in texts {
        *left.entry(text.clone()).or_insert(0.0) -= weight;
    }
    left.values().map(|difference| difference.abs()).sum::<f64>() / 2.0
}

#[test]
fn every_proper_method_reaches_the_posterior_and_its_evidence() {
    let (mut model, vocabulary, dfa, truth, z) = world(5);
    let methods = [
        ("awrs", Smc::awrs()),
        ("awrs, paper's estimator", Smc { proposal: Proposal::Awrs(Estimator::Paper), ..Smc::awrs() }),
        ("masked", Smc::masked()),
        ("twisted", Smc::twisted()),
        ("sample-rerank", Smc::sample_rerank()),
        ("multinomial", Smc { resampling: Resampling::Multinomial, tau: 1.0, ..Smc::awrs() }),
        ("residual", Smc { resampling: Resampling::Residual, tau: 0.9, ..Smc::awrs() }),
        ("systematic", Smc { resampling: Resampling::Systematic, tau: 0.9, ..Smc::awrs() }),
    ];
    for (name, smc) in methods {
        let smc = Smc { particles: 3000, tokens: 5, ..smc };
        let found = smc.run(&mut model, &vocabulary, &dfa, &[3, 3], Streams::new(8)).unwrap();
        let apart = distance(&found.texts(), &truth);
        assert!(apart < 0.09, "{name}: {apart}");
        assert!((found.log_evidence() - z.ln()).abs() < 0.12, "{name}: {} {}", found.log_evidence(), z.ln());
        assert_eq!(model.len(), 2, "the cache holds the prompt");
    }
    // Masking without weights stays away however many particles there are.
    let local = Smc { particles: 3000, tokens: 5, ..Smc::locally_constrained() };
    let found = local.run(&mut model, &vocabulary, &dfa, &[3, 3], Streams::new(8)).unwrap();
    let apart = distance(&found.texts(), &truth);
    assert!(apart > 0.15, "{apart}");
}

#[test]
fn evidence_is_unbiased_with_few_particles() {
    let (mut model, vocabulary, dfa, _, z) = world(3);
    for smc in [Smc { particles: 3, ..Smc::awrs() }, Smc { particles: 4, ..Smc::twisted() }] {
        let smc = Smc { tokens: 5, ..smc };
        let runs = 3000;
        let values: Vec<f64> = (0..runs)
            .map(|seed| {
                smc.run(&mut model, &vocabulary, &dfa, &[3, 3], Streams::new(seed))
                    .unwrap()
                    .log_evidence()
                    .exp()
            })
            .collect();
        let mean = values.iter().sum::<f64>() / runs as f64;
        let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / runs as f64;
        assert!((mean - z).abs() < 4.0 * (variance / runs as f64).sqrt(), "{smc:?}: {mean} {z}");
    }
}

#[test]
fn rejection_is_exact() {
    let (mut model, vocabulary, dfa, truth, z) = world(2);
    let mut texts: BTreeMap<Vec<u8>, f64> = BTreeMap::new();
    let (n, mut tries) = (4000, 0);
    let texts_of = Rejection { tries: 10_000, texts: Smc { tokens: 5, ..Smc::base() } };
    for seed in 0..n {
        let found = texts_of.run(&mut model, &vocabulary, &dfa, &[3, 3], Streams::new(seed)).unwrap();
        *texts.entry(found.text.unwrap().bytes).or_insert(0.0) += 1.0 / n as f64;
        tries += found.tries;
    }
    let texts: Vec<_> = texts.into_iter().collect();
    assert!(distance(&texts, &truth) < 0.08, "{}", distance(&texts, &truth));
    // 1 / Z tries in the mean.
    let mean = tries as f64 / n as f64;
    assert!((mean * z - 1.0).abs() < 4.0 / (n as f64).sqrt(), "{mean} {z}");
    let never = Rejection { tries: 3, ..texts_of };
    let nothing = Predicate::new(|_| false, |_| false);
    let found = never.run(&mut model, &vocabulary, &nothing, &[3], Streams::new(1)).unwrap();
    assert!(found.text.is_none() && found.tries == 3);
    assert!(
        Rejection { tries: 0, ..texts_of }.run(&mut model, &vocabulary, &dfa, &[3], Streams::new(1)).is_err()
    );
}

#[test]
fn resampling_keeps_the_sum_of_weights_and_counts_finished_particles() {
    // All mass dies or survives at the first token; afterwards the text has to end at once.
    let (mut model, vocabulary, dfa) = trap();
    let smc = Smc { particles: 64, tau: 1.0, proposal: Proposal::Awrs(Estimator::Recursive), ..Smc::awrs() };
    let mut last = None;
    let mut seen = Vec::new();
    let found = smc.run_with(&mut model, &vocabulary, &dfa, &[4], Streams::new(5), |particles| {
        let logs: Vec<f64> = particles.iter().map(|particle| particle.log_weight).collect();
        let sum = pilotfish_constrained::resampling::log_sum_exp(logs.iter().copied());
        if logs.iter().all(|weight| weight == &logs[0]) {
            // After resampling every weight is the mean.
            assert!((logs[0] - (sum - 64f64.ln())).abs() < 1e-9);
        }
        seen.push(particles.iter().filter(|particle| particle.end.is_some()).count());
        last = Some(sum);
        std::ops::ControlFlow::Continue(())
    });
    let found = found.unwrap();
    assert_eq!(found.particles.len(), 64);
    assert!(found.resampled >= 1 && seen.len() == 3);
    assert!((found.log_evidence() - (last.unwrap() - 64f64.ln())).abs() < 1e-9);
    let weights: f64 = found.texts().iter().map(|text| text.1).sum();
    assert!((weights - 1.0).abs() < 1e-12);
}

#[test]
fn particles_share_rows_and_verdicts_are_counted() {
    let (mut model, vocabulary, dfa) = trap();
    let smc = Smc { particles: 200, tau: 0.0, ..Smc::masked() };
    let found = smc.run(&mut model, &vocabulary, &dfa, &[4], Streams::new(5)).unwrap();
    // The prompt, then at most two different first tokens and two second ones: five rows, not 400.
    assert!(found.ledger.target_rows <= 5 && found.ledger.target_forwards == 3, "{:?}", found.ledger);
    assert_eq!(found.ledger.constraint_calls, 200 * 3 * 5);
    let awrs = Smc { proposal: Proposal::Awrs(Estimator::Chosen), ..smc };
    let found = awrs.run(&mut model, &vocabulary, &dfa, &[4], Streams::new(5)).unwrap();
    assert!(found.ledger.constraint_calls < 200 * 3 * 4);
    assert_eq!(found.ledger.emitted, 400);
}

#[test]
fn nothing_valid_and_ends_by_force() {
    let (mut model, vocabulary, _) = trap();
    let nothing = Dfa::new(1, 0, &[], |_, _| None).unwrap();
    for smc in [Smc::awrs(), Smc::masked(), Smc::twisted(), Smc::sample_rerank(), Smc::locally_constrained()]
    {
        let found = smc.run(&mut model, &vocabulary, &nothing, &[4], Streams::new(1)).unwrap();
        assert!(found.texts().is_empty() && found.log_evidence() == f64::NEG_INFINITY, "{smc:?}");
        assert_eq!(found.expectation(|_| 1.0), 0.0);
        assert!(found.particles.iter().all(|particle| particle.end == Some(End::Dead)));
    }
    // One token at most, and the law gives the end no chance there: weight 0 under every proper method.
    let any = Smc { tokens: 1, ..Smc::awrs() };
    let found = any.run(&mut model, &vocabulary, &Anything, &[4], Streams::new(1)).unwrap();
    assert_eq!(found.log_evidence(), f64::NEG_INFINITY);
    let mut even = TableModel::new(0, 3, vec![1.0; 3]).unwrap();
    let small = super_vocabulary();
    let found = any.run(&mut even, &small, &Anything, &[0], Streams::new(1)).unwrap();
    assert!(found.particles.iter().all(|particle| particle.tokens.len() <= 1));
    let broken = any
        .run_with(&mut even, &small, &Anything, &[0], Streams::new(1), |_| std::ops::ControlFlow::Break(()));
    assert!(broken.is_ok());
}

fn super_vocabulary() -> Vocabulary {
    vocabulary("ab")
}

#[test]
fn parameters_out_of_range_are_refused() {
    let (mut model, vocabulary, dfa) = trap();
    let good = Smc::awrs();
    let bad = [
        Smc { particles: 0, ..good },
        Smc { tau: f64::NAN, ..good },
        Smc { tau: 1.5, ..good },
        Smc { tau: -0.1, ..good },
        Smc { tokens: 0, ..good },
        Smc { warpers: Warpers::default(), ..good },
        Smc { warpers: Warpers::temperature(f64::NAN), ..good },
        Smc { proposal: Proposal::Awrs(Estimator::Geometric { accepts: 1, max_rejects: None }), ..good },
    ];
    assert!(bad.iter().all(|smc| smc.check().is_err()));
    let mut run =
        |smc: Smc, prompt: &[Token]| smc.run(&mut model, &vocabulary, &dfa, prompt, Streams::new(1));
    assert!(matches!(run(good, &[]), Err(ConstrainedError::EmptyPrompt)));
    assert!(matches!(run(Smc { tokens: usize::MAX, ..good }, &[1]), Err(ConstrainedError::TooLong { .. })));
    assert!(matches!(run(good, &[99]), Err(ConstrainedError::Model(_))));
    let mut other = TableModel::new(0, 3, vec![1.0; 3]).unwrap();
    let wrong = good.run(&mut other, &vocabulary, &dfa, &[0], Streams::new(1));
    assert!(matches!(wrong, Err(ConstrainedError::Vocabulary { got: 5, want: 3 })));
}

#[test]
fn a_permissive_prefix_test_costs_only_work() {
    let (mut model, vocabulary, dfa, truth, _) = world(2);
    let whole = Predicate::whole(move |text| {
        let mut state = dfa.clone();
        state.push(text).unwrap() && state.complete().unwrap()
    });
    let smc = Smc { particles: 6000, tokens: 5, tau: 0.0, ..Smc::awrs() };
    let found = smc.run(&mut model, &vocabulary, &whole, &[3, 3], Streams::new(8)).unwrap();
    assert!(distance(&found.texts(), &truth) < 0.1);
}

#[test]
fn critics_differ_in_when_they_ask() {
    let (mut model, vocabulary, dfa) = trap();
    let smc = |critic| Smc { particles: 50, critic, ..Smc::sample_rerank() };
    let end = smc(Critic::AtEnd).run(&mut model, &vocabulary, &dfa, &[4], Streams::new(1)).unwrap();
    let every = smc(Critic::EveryStep).run(&mut model, &vocabulary, &dfa, &[4], Streams::new(1)).unwrap();
    assert!(end.ledger.constraint_calls <= 50 && every.ledger.constraint_calls > 50);
    let base = smc(Critic::None).run(&mut model, &vocabulary, &dfa, &[4], Streams::new(1)).unwrap();
    assert_eq!(base.ledger.constraint_calls, 0);
    assert_eq!(base.log_evidence(), 0.0);
}

proptest! {
    #[test]
    fn masks_are_what_single_tests_say(
        words in proptest::collection::vec("[abc]{0,5}", 1..6),
        tokens in proptest::collection::vec("[abcd]{0,4}", 1..30),
        text in "[abc]{0,3}",
    ) {
        let bytes = tokens.iter().map(|token| Some(token.clone().into_bytes())).chain([None]).collect();
        let vocabulary = Vocabulary::new(bytes, vec![tokens.len() as Token]).unwrap();
        let list: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        let mut dfa = Dfa::words(&list).unwrap();
        let owned = words.clone();
        let starts = words.clone();
        let mut predicate = Predicate::new(
            move |text| starts.iter().any(|word| word.as_bytes().starts_with(text)),
            move |text| owned.iter().any(|word| word.as_bytes() == text),
        );
        let alive = dfa.push(text.as_bytes()).unwrap();
        prop_assert_eq!(alive, predicate.push(text.as_bytes()).unwrap());
        prop_assert_eq!(alive, words.iter().any(|word| word.starts_with(&text)));
        let mask = dfa.mask(&vocabulary).unwrap();
        prop_assert_eq!(&mask, &naive(&mut dfa, &vocabulary));
        prop_assert_eq!(&mask, &predicate.mask(&vocabulary).unwrap());
        let mut both = Both(dfa.clone(), predicate);
        prop_assert_eq!(&mask, &both.mask(&vocabulary).unwrap());
        let mut fork = both.fork();
        prop_assert_eq!(&mask, &fork.mask(&vocabulary).unwrap());
        let other = Vocabulary::single_bytes();
        prop_assert_eq!(dfa.mask(&other).unwrap(), naive(&mut dfa, &other));
    }

    #[test]
    fn draws_never_leave_the_support(weights in proptest::collection::vec(prop_oneof![Just(0.0), 1e-9f64..1.0], 1..400), seed in 0u64..1000) {
        let law = NextLaw::from_weights(weights.clone()).unwrap();
        let mut rng = Streams::new(seed).stream("particle");
        let mut pool = law.pool(&mut rng);
        let mut seen = std::collections::HashSet::new();
        while let Some(token) = pool.draw() {
            prop_assert!(weights[token as usize] > 0.0 && seen.insert(token));
            pool.remove(token);
        }
        prop_assert_eq!(seen.len(), weights.iter().filter(|weight| **weight > 0.0).count());
        prop_assert!(pool.left() == 0.0 && pool.is_empty());
    }
}
