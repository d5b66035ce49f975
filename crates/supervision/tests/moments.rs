//! Snorkel's model, triplets and the exact binary moments against the fixtures of the notes.
#![allow(clippy::unwrap_used)]

mod common;

use common::{accuracy, close, fixture_a, fixture_b, fixture_c};
use pilotfish_supervision::label_models::{
    BinaryMoments, Fitted, KnownRates, LabelModel, Scale, Snorkel, Solver, Triplets, Warning,
};
use pilotfish_supervision::{Rows, SupervisionError, Votes};

fn rates(fitted: &Fitted, truth: usize, vote: usize) -> Vec<f64> {
    (0..fitted.voters.len()).map(|voter| fitted.rate(voter, truth, vote).unwrap()).collect()
}

fn skills(fitted: &Fitted) -> Vec<f64> {
    fitted.voters.iter().map(|voter| voter.skill.unwrap()).collect()
}

fn sgd(steps: usize) -> Snorkel {
    Snorkel {
        prior: Some(vec![0.6, 0.4]),
        scale: Scale::Fixed(0.5),
        solver: Solver::Sgd { rate: 0.01, momentum: 0.9, steps },
        ..Snorkel::default()
    }
}

#[test]
fn snorkel_on_fixture_a() {
    let (votes, truth) = fixture_a();
    let short = sgd(100).fit(&votes).unwrap();
    close(&rates(&short, 1, 1), &[0.897, 0.801, 0.703], 5e-3);
    let long = sgd(1000).fit(&votes).unwrap();
    close(&rates(&long, 1, 1), &[0.9, 0.8, 0.7], 1e-9);
    assert!(*long.objective.last().unwrap() < 1e-20 && long.convergence.is_converged());
    let solved = Snorkel { prior: Some(vec![0.6, 0.4]), ..Snorkel::default() }.fit(&votes).unwrap();
    assert!(solved.convergence.is_converged());
    close(&rates(&solved, 1, 1), &[0.9, 0.8, 0.7], 1e-7);
    close(&rates(&solved, 0, 1), &[0.2, 0.3, 0.1], 1e-7);
    assert_eq!(accuracy(&solved.labels(), &truth), 0.902);
    assert!(solved.warnings.is_empty(), "{:?}", solved.warnings);
    // A wrong balance fits as well, and third moments tell.
    let wrong = Snorkel::default().fit(&votes).unwrap();
    assert!(*wrong.objective.last().unwrap() < 1e-18);
    close(&rates(&wrong, 1, 1), &[0.822929, 0.744949, 0.633939], 1e-6);
    close(&rates(&wrong, 0, 1), &[0.137071, 0.255051, 0.046061], 1e-6);
    assert!(wrong.warnings.contains(&Warning::AssumedPrior));
    let doubted = wrong.warnings.iter().any(|warning| {
        matches!(warning, Warning::DoubtfulPrior { third_moments, .. } if (third_moments - 0.4).abs() < 1e-6)
    });
    assert!(doubted, "{:?}", wrong.warnings);
}

#[test]
fn published_settings_leave_fixture_b_unsolved_and_say_so() {
    let (votes, truth) = fixture_b();
    let at = |steps| Snorkel { prior: None, ..sgd(steps) }.fit(&votes).unwrap();
    let short = at(100);
    assert_eq!(accuracy(&short.labels(), &truth), 0.792);
    assert!(!short.convergence.is_converged());
    assert!(short.warnings.iter().any(|warning| matches!(warning, Warning::Undertrained { .. })));
    let long = at(5000);
    close(&rates(&long, 1, 1)[..2], &[0.899, 0.600], 2e-3);
    assert_eq!(accuracy(&long.labels(), &truth), 0.9);
    let solved = Snorkel::default().fit(&votes).unwrap();
    assert!(solved.convergence.is_converged());
    close(&rates(&solved, 1, 1), &[0.9, 0.6, 0.6], 1e-6);
    // The fork's released settings hardly move from the start.
    let fork = Snorkel::metal_ama(1).fit(&votes).unwrap();
    assert!(!fork.convergence.is_converged());
    // Seeds give runs that can be repeated, and differ.
    let drawn = |seed| Snorkel::published(seed).fit(&votes).unwrap().objective[0];
    assert_eq!(drawn(3), drawn(3));
    assert_ne!(drawn(3), drawn(4));
}

#[test]
fn three_classes_are_solved_too() {
    // The exact law of three voters over three classes, 27 patterns of integer counts.
    let prior = [0.5, 0.3, 0.2];
    let matrix = |a: f64, b: f64, c: f64| {
        let row = |right: usize, p: f64, skew: f64| {
            (0..3).map(move |v| match (v + 3 - right) % 3 {
                0 => p,
                1 => (1.0 - p) * skew,
                _ => (1.0 - p) * (1.0 - skew),
            })
        };
        [row(0, a, 0.3), row(1, b, 0.5), row(2, c, 0.8)].into_iter().flatten().collect::<Vec<f64>>()
    };
    let all = [matrix(0.8, 0.7, 0.9), matrix(0.7, 0.8, 0.6), matrix(0.6, 0.9, 0.7)];
    let (mut votes, mut counts) = (Vec::new(), Vec::new());
    for pattern in 0..27usize {
        let row = [pattern / 9, pattern / 3 % 3, pattern % 3];
        let p: f64 = (0..3).map(|y| (0..3).map(|i| all[i][y * 3 + row[i]]).product::<f64>() * prior[y]).sum();
        votes.extend(row.map(|v| v as i64));
        counts.push((p * 1e12).round() as u64);
    }
    let patterns = Votes::from_dense(27, 3, 3, &votes).unwrap();
    let rows = Rows::from_counts(patterns.clone(), counts).unwrap();
    let fitted = Snorkel { prior: Some(prior.to_vec()), ..Snorkel::default() }.fit_rows(&rows).unwrap();
    assert!(*fitted.objective.last().unwrap() < 1e-16, "{:?}", fitted.objective.last());
    let oracle = KnownRates::new(prior.to_vec(), all.concat()).unwrap().fit(&patterns).unwrap();
    // Second moments of three voters leave freedom for three classes; the answer must at least explain them and agree
    // with the Bayes rule on nearly all of the mass.
    let agree = (0..27).filter(|item| fitted.posterior.label(*item) == oracle.posterior.label(*item)).count();
    assert!(agree >= 22, "{agree}");
}

#[test]
fn dependencies_do_not_mislead() {
    // Voters 0 to 3 of accuracies 0.9, 0.8, 0.7, 0.75; a fifth copies the fourth 80 times of 100, else flips a coin
    // of accuracy 0.6. Exact counts of every pattern.
    let accuracies = [0.9, 0.8, 0.7, 0.75];
    let (mut votes, mut counts) = (Vec::new(), Vec::new());
    for pattern in 0..32usize {
        let row: Vec<usize> = (0..5).map(|i| pattern >> i & 1).collect();
        let p: f64 = (0..2usize)
            .map(|y| {
                let one = |a: f64, vote: usize| if vote == y { a } else { 1.0 - a };
                let four: f64 = accuracies.iter().zip(&row).map(|(a, v)| one(*a, *v)).product();
                let copy = if row[4] == row[3] { 1.0 } else { 0.0 };
                0.5 * four * (0.8 * copy + 0.2 * one(0.6, row[4]))
            })
            .sum();
        votes.extend(row.iter().map(|v| *v as i64));
        counts.push((p * 1e12).round() as u64);
    }
    let patterns = Votes::from_dense(32, 5, 2, &votes).unwrap();
    let rows = Rows::from_counts(patterns, counts).unwrap();
    let fifth = 0.8 * 0.75 + 0.2 * 0.6;
    let want = [0.9, 0.8, 0.7, 0.75, fifth];
    let aware = Snorkel { dependencies: vec![(3, 4)], ..Snorkel::default() }.fit_rows(&rows).unwrap();
    assert_eq!(aware.model, "metal");
    close(&rates(&aware, 1, 1), &want, 1e-4);
    let blind = Snorkel::default().fit_rows(&rows).unwrap();
    let error = |fitted: &Fitted| {
        rates(fitted, 1, 1).iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(error(&blind) > 0.05, "{}", error(&blind));
    // Without a dependency in the data, none does harm.
    let (votes, _) = fixture_a();
    for bad in [vec![(0, 1)], vec![(0, 7)]] {
        assert!(Snorkel { dependencies: bad, ..Snorkel::default() }.fit(&votes).is_err());
    }
}

#[test]
fn inverse_covariance_of_fixture_a() {
    // Voters without edges, through the inverse: the same rates.
    let (votes, _) = fixture_a();
    let model = Snorkel { prior: Some(vec![0.6, 0.4]), dependencies: vec![(0, 0)], ..Snorkel::default() };
    let fitted = model.fit(&votes).unwrap();
    close(&rates(&fitted, 1, 1), &[0.9, 0.8, 0.7], 1e-6);
    close(&rates(&fitted, 0, 1), &[0.2, 0.3, 0.1], 1e-6);
}

#[test]
fn flyingsquid_on_the_fixtures() {
    let (votes, _) = fixture_a();
    let fitted = Triplets { positive: 0.4, ..Triplets::default() }.fit(&votes).unwrap();
    close(&skills(&fitted), &[0.848329, 0.741151, 0.798568], 1e-6);
    close(&rates(&fitted, 1, 1), &[0.910411, 0.801439, 0.673210], 1e-6);
    close(&rates(&fitted, 0, 1), &[0.193059, 0.299041, 0.117860], 1e-6);
    let (votes, truth) = fixture_b();
    let fitted = Triplets::default().fit(&votes).unwrap();
    close(&skills(&fitted), &[0.9, 0.6, 0.6], 1e-12);
    assert_eq!(accuracy(&fitted.labels(), &truth), 0.9);
    // Abstentions: P(right), not given that the voter votes.
    let (votes, _) = fixture_c();
    assert_eq!(votes.items(), 4000);
    let fitted = Triplets::default().fit(&votes).unwrap();
    close(&skills(&fitted), &[0.9, 0.4, 0.35], 1e-12);
}

#[test]
fn exact_moments_on_the_fixtures() {
    let (votes, truth) = fixture_a();
    let fitted = BinaryMoments::default().fit(&votes).unwrap();
    close(&fitted.prior, &[0.6, 0.4], 1e-10);
    close(&skills(&fitted), &[0.7, 0.5, 0.6], 1e-10);
    close(&rates(&fitted, 1, 1), &[0.9, 0.8, 0.7], 1e-10);
    close(&rates(&fitted, 0, 1), &[0.2, 0.3, 0.1], 1e-10);
    assert_eq!(accuracy(&fitted.labels(), &truth), 0.902);
    let (votes, _) = fixture_b();
    let fitted = BinaryMoments { positive: Some(0.5) }.fit(&votes).unwrap();
    close(&rates(&fitted, 1, 1), &[0.9, 0.6, 0.6], 1e-10);
    // With abstentions, moments are taken over shared items; third ones are refused.
    let (votes, _) = fixture_c();
    let fitted = BinaryMoments { positive: Some(0.5) }.fit(&votes).unwrap();
    close(&rates(&fitted, 1, 1), &[0.9, 0.8, 0.7], 1e-10);
    assert!(matches!(BinaryMoments::default().fit(&votes), Err(SupervisionError::Abstention { .. })));
}

#[test]
fn an_adversary_is_turned_round() {
    let (votes, truth) = fixture_a();
    let cells: Vec<i8> = (0..votes.items())
        .flat_map(|item| {
            let row: Vec<i8> = votes.row(item).map(|(_, vote)| vote as i8).collect();
            [row[0], row[1], 1 - row[2]]
        })
        .collect();
    let votes = Votes::from_dense(truth.len(), 3, 2, &cells).unwrap();
    let fitted = BinaryMoments { positive: Some(0.4) }.fit(&votes).unwrap();
    close(&skills(&fitted), &[0.7, 0.5, -0.6], 1e-10);
    assert!(fitted.warnings.contains(&Warning::Adversarial { voter: 2 }));
    assert_eq!(accuracy(&fitted.labels(), &truth), 0.902);
}

#[test]
fn what_cannot_be_identified_is_refused() {
    let two = Votes::from_dense(4, 2, 2, &[1, 1, 0, 0, 1, 0, 0, 1]).unwrap();
    let three_classes = Votes::from_dense(2, 3, 3, &[0, 1, 2, 2, 1, 0]).unwrap();
    // Independent coins: no two of them agree more than by chance.
    let coins: Vec<i8> = (0..8).flat_map(|p: i8| [p >> 2, p >> 1 & 1, p & 1]).collect();
    let coins = Votes::from_dense(8, 3, 2, &coins).unwrap();
    // Three voters of whom every two oppose each other more often than not: impossible for any accuracies.
    let opposed =
        Votes::from_dense(6, 3, 2, &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0]).unwrap();
    let models: [&dyn LabelModel; 3] = [&Triplets::default(), &BinaryMoments::default(), &Snorkel::default()];
    for model in models {
        assert!(matches!(model.fit(&two), Err(SupervisionError::TooFewVoters { .. })), "{}", model.name());
    }
    for model in &models[..2] {
        assert!(matches!(model.fit(&three_classes), Err(SupervisionError::NotBinary { classes: 3, .. })));
    }
    for votes in [&coins, &opposed] {
        let found = BinaryMoments { positive: Some(0.5) }.fit(votes);
        assert!(matches!(found, Err(SupervisionError::Unidentifiable { .. })));
    }
    for bad in [f64::NAN, 0.0, 1.0] {
        assert!(Triplets { positive: bad, ..Triplets::default() }.fit(&coins).is_err());
        assert!(BinaryMoments { positive: Some(bad) }.fit(&coins).is_err());
        assert!(Snorkel { prior: Some(vec![bad, 1.0 - bad]), ..Snorkel::default() }.fit(&coins).is_err());
    }
    assert!(
        Snorkel { solver: Solver::Sgd { rate: 500.0, momentum: 0.9, steps: 500 }, ..Snorkel::default() }
            .fit(&fixture_a().0)
            .is_err()
    );
}

#[test]
fn grouped_rows_give_the_same_bits() {
    let (votes, _) = fixture_c();
    let models: [&dyn LabelModel; 3] =
        [&Triplets::default(), &BinaryMoments { positive: Some(0.5) }, &Snorkel::default()];
    for model in models {
        let plain = model.fit_rows(&Rows::plain(&votes)).unwrap();
        let grouped = model.fit(&votes).unwrap();
        assert_eq!(plain.objective, grouped.objective);
        for item in 0..votes.items() {
            assert_eq!(plain.posterior.row(item), grouped.posterior.row(item), "{}", model.name());
        }
    }
}
