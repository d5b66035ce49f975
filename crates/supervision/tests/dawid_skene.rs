//! Dawid-Skene and its relatives against the fixtures of the notes.
#![allow(clippy::unwrap_used)]

mod common;

use common::{accuracy, close, fixture_a, fixture_b, fixture_d};
use pilotfish_supervision::label_models::{
    Abstain, DawidSkene, Fitted, KnownRates, LabelModel, MajorityVote, Smoothing, Stop, Warning,
};
use pilotfish_supervision::{Rows, SupervisionError, Votes};
use proptest::prelude::*;

fn rates(fitted: &Fitted, truth: usize, vote: usize) -> Vec<f64> {
    (0..fitted.voters.len()).map(|voter| fitted.rate(voter, truth, vote).unwrap()).collect()
}

/// First item of every pattern, in the order of the fixture.
fn ones(fitted: &Fitted, firsts: &[usize]) -> Vec<f64> {
    firsts.iter().map(|item| fitted.posterior.row(*item)[1]).collect()
}

fn firsts(votes: &Votes) -> Vec<usize> {
    let rows: Vec<Vec<_>> = (0..votes.items()).map(|item| votes.row(item).collect()).collect();
    (0..rows.len()).filter(|item| *item == 0 || rows[*item] != rows[item - 1]).collect()
}

#[test]
fn the_bayes_rule_on_known_rates() {
    let (votes, truth) = fixture_a();
    let matrix = |tpr: f64, fpr: f64| [1.0 - fpr, fpr, 1.0 - tpr, tpr];
    let all = [matrix(0.9, 0.2), matrix(0.8, 0.3), matrix(0.7, 0.1)].concat();
    let fitted = KnownRates::new(vec![0.6, 0.4], all).unwrap().fit(&votes).unwrap();
    let want = [0.007874, 0.142857, 0.068966, 0.608696, 0.222222, 0.857143, 0.727273, 0.982456];
    close(&ones(&fitted, &firsts(&votes)), &want, 5e-7);
    assert_eq!(accuracy(&fitted.labels(), &truth), 0.902);
    assert_eq!(accuracy(&MajorityVote::default().fit(&votes).unwrap().labels(), &truth), 0.902);

    let (votes, truth) = fixture_b();
    let fitted = KnownRates::from_accuracies(&[0.9, 0.6, 0.6], &[0.5, 0.5]).unwrap().fit(&votes).unwrap();
    let want = [0.047059, 0.1, 0.1, 0.2, 0.8, 0.9, 0.9, 0.952941];
    close(&ones(&fitted, &firsts(&votes)), &want, 5e-7);
    assert_eq!(accuracy(&fitted.labels(), &truth), 0.9);
    assert_eq!(accuracy(&MajorityVote::default().fit(&votes).unwrap().labels(), &truth), 0.792);
}

#[test]
fn fixture_a_step_by_step() {
    let (votes, truth) = fixture_a();
    let after = |iterations| DawidSkene { iterations, ..DawidSkene::default() }.fit(&votes).unwrap();
    let first = after(0);
    close(&first.prior, &[0.56, 0.44], 1e-12);
    close(&rates(&first, 1, 1), &[0.809091, 0.807576, 0.640909], 5e-7);
    close(&rates(&first, 0, 1), &[0.221429, 0.258333, 0.103571], 5e-7);
    let second = after(1);
    close(&second.prior[1..], &[0.436487], 5e-7);
    close(&rates(&second, 1, 1), &[0.836617, 0.803204, 0.660188], 5e-7);
    close(&rates(&second, 0, 1), &[0.203771, 0.265144, 0.091988], 5e-7);
    // Crowd-Kit stops short of the truth.
    let kit = DawidSkene::crowd_kit().fit(&votes).unwrap();
    assert_eq!(kit.objective.len(), 52);
    close(&[kit.prior[1], rates(&kit, 1, 1)[0]], &[0.400361, 0.899706], 5e-7);
    // The default reaches it.
    let full = DawidSkene::default().fit(&votes).unwrap();
    assert!(full.convergence.is_converged());
    close(&full.prior, &[0.6, 0.4], 1e-4);
    close(&rates(&full, 1, 1), &[0.9, 0.8, 0.7], 1e-4);
    close(&rates(&full, 0, 1), &[0.2, 0.3, 0.1], 1e-4);
    assert_eq!(accuracy(&full.labels(), &truth), 0.902);
    let tight =
        DawidSkene { stop: Stop::Gain(1e-16), iterations: 300, ..DawidSkene::default() }.fit(&votes).unwrap();
    close(&rates(&tight, 1, 1), &[0.9, 0.8, 0.7], 1e-7);
    // With the class balance known, the same.
    let known = DawidSkene { prior: Some(vec![0.6, 0.4]), ..DawidSkene::default() }.fit(&votes).unwrap();
    close(&rates(&known, 0, 1), &[0.2, 0.3, 0.1], 1e-4);
}

#[test]
fn one_coin_on_asymmetric_errors_is_wrong_as_the_theory_says() {
    let (votes, truth) = fixture_a();
    let skills = |fitted: &Fitted| fitted.voters.iter().map(|voter| voter.skill.unwrap()).collect::<Vec<_>>();
    // After 99 steps, which is where an iteration limit of 100 leaves the reference.
    let stopped =
        DawidSkene { iterations: 99, stop: Stop::Gain(0.0), ..DawidSkene::one_coin() }.fit(&votes).unwrap();
    close(&stopped.prior[1..], &[0.33579], 5e-6);
    close(&skills(&stopped), &[0.729523, 0.663425, 0.957747], 5e-7);
    assert!(!stopped.convergence.is_converged());
    // The maximum, by 100,000 plain steps in Python.
    let fitted = DawidSkene::one_coin().fit(&votes).unwrap();
    close(&fitted.prior[1..], &[0.33581857], 1e-5);
    close(&skills(&fitted), &[0.72802478, 0.66207667, 0.96053820], 2e-5);
    assert_eq!(accuracy(&fitted.labels(), &truth), 0.82);
}

#[test]
fn fixture_b_needs_patience() {
    let (votes, truth) = fixture_b();
    let first = DawidSkene { iterations: 0, ..DawidSkene::default() }.fit(&votes).unwrap();
    close(&rates(&first, 1, 1), &[0.72, 0.70, 0.70], 1e-12);
    let second = DawidSkene { iterations: 1, ..DawidSkene::default() }.fit(&votes).unwrap();
    close(&rates(&second, 1, 1), &[0.720676, 0.679591, 0.679591], 5e-7);
    let kit = DawidSkene::crowd_kit().fit(&votes).unwrap();
    assert_eq!((kit.objective.len(), accuracy(&kit.labels(), &truth)), (22, 0.9));
    close(&rates(&kit, 1, 1)[..2], &[0.795, 0.63], 5e-3);
    let full = DawidSkene::default().fit(&votes).unwrap();
    close(&rates(&full, 1, 1), &[0.9, 0.6, 0.6], 1e-3);
    assert_eq!(accuracy(&full.labels(), &truth), 0.9);
    // Hard assignments never leave the majority vote.
    let fast = DawidSkene { iterations: 0, ..DawidSkene::fast() }.fit(&votes).unwrap();
    close(&rates(&fast, 1, 1), &[0.82, 0.76, 0.76], 1e-12);
    let fast = DawidSkene::fast().fit(&votes).unwrap();
    close(&rates(&fast, 1, 1), &[0.82, 0.76, 0.76], 1e-12);
    assert_eq!(accuracy(&fast.labels(), &truth), 0.792);
    // The hybrid turns hard where soft steps slow down, long before their end.
    let hybrid = DawidSkene::hybrid().fit(&votes).unwrap();
    assert!(hybrid.convergence.is_converged() && hybrid.objective.len() < 20);
}

#[test]
fn fixture_d_step_by_step() {
    let votes = fixture_d();
    let all = [0, 1, 2, 3, 4, 5];
    for model in [DawidSkene::default(), DawidSkene::one_coin()] {
        let after = |iterations| DawidSkene { iterations, ..model.clone() }.fit(&votes).unwrap();
        let first = after(0);
        close(&first.prior, &[0.5, 0.5], 1e-12);
        close(&rates(&first, 1, 1), &[7.0 / 9.0, 2.0 / 3.0, 2.0 / 3.0], 1e-12);
        let ninths = [7.0 / 9.0, 14.0 / 15.0, 2.0 / 9.0, 2.0 / 9.0, 1.0 / 15.0, 7.0 / 9.0];
        close(&ones(&first, &all), &ninths, 1e-12);
        let second = after(1);
        close(&rates(&second, 1, 1), &[112.0 / 135.0, 29.0 / 45.0, 29.0 / 45.0], 1e-12);
        close(&ones(&second, &all)[..2], &[0.829630, 0.941167], 5e-7);
        close(&[rates(&after(2), 1, 1)[0]], &[0.866809], 5e-7);
    }
    let kit = DawidSkene::crowd_kit().fit(&votes).unwrap();
    assert_eq!(kit.objective.len(), 24);
    close(&rates(&kit, 1, 1), &[0.99973, 0.66664, 0.66664], 5e-6);
    // Hard: the majority vote, at once.
    let fast = DawidSkene::fast().fit(&votes).unwrap();
    assert_eq!((fast.labels(), fast.objective.len()), (vec![1, 1, 0, 0, 0, 1], 1));
    close(&rates(&fast, 1, 1), &[1.0, 2.0 / 3.0, 2.0 / 3.0], 1e-12);
    // Symmetric smoothing ends where nothing is known; a little of it, or more on the diagonal, does not.
    let smooth = |wrong, right, iterations| {
        let smoothing = Smoothing { wrong, right };
        let stop = Stop::Gain(1e-16);
        DawidSkene { smoothing, iterations, stop, ..DawidSkene::default() }.fit(&votes).unwrap()
    };
    let first = smooth(1.0, 1.0, 0);
    close(&rates(&first, 1, 1), &[2.0 / 3.0, 0.6, 0.6], 1e-12);
    close(&ones(&first, &all)[..2], &[2.0 / 3.0, 0.818182], 5e-7);
    close(&ones(&smooth(1.0, 1.0, 10_000), &all), &[0.5; 6], 1e-3);
    let little = smooth(0.01, 0.01, 10_000);
    close(&rates(&little, 1, 1), &[0.986884, 0.664444, 0.664444], 6e-7);
    close(&ones(&little, &all)[..2], &[0.986884, 0.996622], 6e-7);
    assert!(rates(&smooth(1.0, 2.0, 10_000), 1, 1)[0] > 0.6);
}

#[test]
fn gold_labels_stay() {
    let votes = fixture_d();
    let model = DawidSkene { gold: vec![(0, 0), (5, 0)], ..DawidSkene::default() };
    let fitted = model.fit(&votes).unwrap();
    assert_eq!((fitted.posterior.row(0), fitted.posterior.row(5)), (&[1.0, 0.0][..], &[1.0, 0.0][..]));
    assert!(model.fit_rows(&Rows::grouped(&fixture_a().0).unwrap()).is_err());
    assert!(DawidSkene { gold: vec![(6, 0)], ..DawidSkene::default() }.fit(&votes).is_err());
}

#[test]
fn abstention_can_be_a_symbol() {
    // The third voter speaks only on items of class 1, and then says 0 or 1 by a coin.
    let mut votes = Vec::new();
    for (row, count) in [([0, 0, -1], 320), ([0, 1, -1], 80), ([1, 0, -1], 80), ([1, 1, -1], 20)] {
        votes.extend(row.repeat(count));
    }
    for coin in [0, 1] {
        for (row, count) in [([1, 1, coin], 160), ([0, 1, coin], 40), ([1, 0, coin], 40), ([0, 0, coin], 10)]
        {
            votes.extend(row.repeat(count));
        }
    }
    let votes = Votes::from_dense(votes.len() / 3, 3, 2, &votes).unwrap();
    let truth: Vec<_> = (0..1000).map(|item| usize::from(item >= 500)).collect();
    let symbol = DawidSkene { abstain: Abstain::Symbol, ..DawidSkene::default() }.fit(&votes).unwrap();
    let ignored = DawidSkene::default().fit(&votes).unwrap();
    assert_eq!(accuracy(&symbol.labels(), &truth), 1.0);
    assert!(accuracy(&ignored.labels(), &truth) < 0.95);
    assert_eq!(symbol.model, "naive-bayes");
}

#[test]
fn votes_that_do_not_determine_the_model_are_refused() {
    let two = Votes::from_dense(4, 2, 2, &[1, 1, 0, 0, 1, 0, 0, 1]).unwrap();
    assert!(matches!(
        DawidSkene::default().fit(&two),
        Err(SupervisionError::TooFewVoters { got: 2, want: 3, .. })
    ));
    let constant = Votes::from_dense(3, 3, 2, &[1, 1, 1, 0, 1, 1, 1, 0, 1]).unwrap();
    assert!(matches!(DawidSkene::default().fit(&constant), Err(SupervisionError::Unidentifiable { .. })));
    // A prior on the rates determines it.
    let smoothing = Smoothing { wrong: 0.5, right: 1.0 };
    assert!(DawidSkene { smoothing, ..DawidSkene::default() }.fit(&two).is_ok());
    for bad in [
        DawidSkene { stop: Stop::Gain(f64::NAN), ..DawidSkene::default() },
        DawidSkene { prior: Some(vec![0.5, 0.6]), ..DawidSkene::default() },
        DawidSkene { prior: Some(vec![1.0]), ..DawidSkene::default() },
        DawidSkene { smoothing: Smoothing { wrong: -1.0, right: 0.0 }, ..DawidSkene::default() },
    ] {
        assert!(bad.fit(&fixture_d()).is_err());
    }
}

#[test]
fn adversarial_and_constant_voters_are_named() {
    let (votes, truth) = fixture_a();
    let mut cells = Vec::new();
    for item in 0..votes.items() {
        let row: Vec<i8> = votes.row(item).map(|(_, vote)| vote as i8).collect();
        // A fourth voter always opposes the first; a fifth always says 1.
        cells.extend([row[0], row[1], row[2], 1 - row[1], 1]);
    }
    let votes = Votes::from_dense(truth.len(), 5, 2, &cells).unwrap();
    let fitted = DawidSkene { iterations: 300, ..DawidSkene::default() }.fit(&votes).unwrap();
    assert!(fitted.warnings.contains(&Warning::ConstantVoter { voter: 4 }), "{:?}", fitted.warnings);
    assert!(fitted.warnings.contains(&Warning::Adversarial { voter: 3 }), "{:?}", fitted.warnings);
}

#[test]
fn a_constant_voter_changes_nothing() {
    let (votes, _) = fixture_a();
    let with: Vec<i8> = (0..votes.items())
        .flat_map(|item| votes.row(item).map(|(_, vote)| vote as i8).chain([1]).collect::<Vec<_>>())
        .collect();
    let with = Votes::from_dense(votes.items(), 4, 2, &with).unwrap();
    // Known rates: the fourth voter's are equal for both classes.
    let three = KnownRates::from_accuracies(&[0.9, 0.7, 0.8], &[0.6, 0.4]).unwrap().fit(&votes).unwrap();
    let even = |a: f64| [a, 1.0 - a, 1.0 - a, a];
    let rates = [even(0.9), even(0.7), even(0.8), [0.0, 1.0, 0.0, 1.0]].concat();
    let four = KnownRates::new(vec![0.6, 0.4], rates).unwrap().fit(&with).unwrap();
    let flat = |fitted: &Fitted| (0..10_000).map(|item| fitted.posterior.row(item)[1]).collect::<Vec<_>>();
    close(&flat(&three), &flat(&four), 1e-12);
}

/// Random votes: items, voters, classes, cells.
fn tables() -> impl Strategy<Value = Votes> {
    (3usize..40, 3usize..6, 2usize..4)
        .prop_flat_map(|(n, m, k)| (proptest::collection::vec(-1i64..k as i64, n * m), Just((n, m, k))))
        .prop_filter_map("no votes", |(cells, (n, m, k))| Votes::from_dense(n, m, k, &cells).ok())
}

fn models() -> Vec<DawidSkene> {
    let few = |model: DawidSkene| DawidSkene { iterations: 30, ..model };
    vec![
        few(DawidSkene::default()),
        few(DawidSkene::one_coin()),
        few(DawidSkene::naive_bayes()),
        few(DawidSkene { smoothing: Smoothing { wrong: 0.1, right: 0.3 }, ..DawidSkene::default() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_objective_never_decreases(votes in tables()) {
        for model in models() {
            let Ok(fitted) = model.fit(&votes) else { continue };
            for pair in fitted.objective.windows(2) {
                prop_assert!(pair[1] >= pair[0] - 1e-8, "{}: {pair:?}", fitted.model);
            }
            for item in 0..votes.items() {
                prop_assert!((fitted.posterior.row(item).iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn grouped_rows_and_any_order_give_the_same_bits(votes in tables(), seed in any::<u64>()) {
        let order: Vec<usize> = {
            let mut order: Vec<_> = (0..votes.items()).collect();
            order.sort_by_key(|item| (*item as u64 + 1).wrapping_mul(seed | 1));
            order
        };
        let shuffled = votes.select_items(&order).unwrap();
        for model in models() {
            let Ok(plain) = model.fit_rows(&Rows::plain(&votes)) else { continue };
            let grouped = model.fit(&votes).unwrap();
            let other = model.fit(&shuffled).unwrap();
            prop_assert_eq!(&plain.objective, &grouped.objective);
            prop_assert_eq!(&plain.objective, &other.objective);
            prop_assert_eq!(&plain.prior, &other.prior);
            for (place, item) in order.iter().enumerate() {
                prop_assert_eq!(plain.posterior.row(*item), grouped.posterior.row(*item));
                prop_assert_eq!(plain.posterior.row(*item), other.posterior.row(place));
            }
        }
    }

    #[test]
    fn permuting_voters_and_classes_permutes_the_answer(votes in tables()) {
        let (m, k) = (votes.voters(), votes.classes());
        let voters: Vec<_> = (0..m).rev().collect();
        let classes: Vec<_> = (0..k).map(|class| (class + 1) % k).collect();
        let other = votes.select_voters(&voters).unwrap();
        let other = other.map_classes(&classes, votes.class_names().clone()).unwrap();
        for model in models() {
            // Few steps: where a model has several optima, rounding may decide between them.
            let model = DawidSkene { iterations: 3, ..model };
            let Ok(a) = model.fit(&votes) else { continue };
            let b = model.fit(&other).unwrap();
            for item in 0..votes.items() {
                for (class, to) in classes.iter().enumerate() {
                    let (p, q) = (a.posterior.row(item)[class], b.posterior.row(item)[*to]);
                    prop_assert!((p - q).abs() < 1e-7, "{p} {q}");
                }
            }
        }
    }
}
