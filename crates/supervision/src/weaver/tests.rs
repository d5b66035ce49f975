#![allow(clippy::unwrap_used)]

use ndarray::{Array1, Array3, s};
use proptest::prelude::*;

use super::*;
use crate::heads::{Logistic, LogisticConfig, balanced_weights};

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|right| **right).count() as f64 / right.len() as f64
}

/// Votes 110, 101, 011: the mean ties and takes the first, the posterior takes 101.
#[test]
fn the_ensemble_breaks_what_the_mean_ties() {
    let rates = Rates { balance: 0.4, tpr: vec![0.9, 0.8, 0.7], fpr: vec![0.2, 0.3, 0.1] };
    let votes = ndarray::array![[1u8, 1, 0], [1, 0, 1], [0, 1, 1]];
    let scores = votes.mapv(f64::from).insert_axis(Axis(0));
    assert_eq!(best(naive_ensemble(scores.view()).view()), [0]);
    let posteriors: Array1<f64> = votes.rows().into_iter().map(|row| rates.posterior(row)).collect();
    assert_eq!(best(posteriors.insert_axis(Axis(0)).view()), [1]);
}

fn logistic_on(data: &Drawn, queries: std::ops::Range<usize>) -> Vec<bool> {
    let (n, k, m) = data.scores.dim();
    let flat = |range: std::ops::Range<usize>| {
        let len = range.len() * k;
        data.scores.slice(s![range, .., ..]).to_owned().into_shape_with_order((len, m)).unwrap()
    };
    let y: Vec<usize> = data.labels.slice(s![queries.clone(), ..]).iter().map(|y| usize::from(*y)).collect();
    let weights = balanced_weights(&y, 2);
    let model =
        Logistic::fit_classes(flat(queries).view(), &y, 2, Some(&weights), &LogisticConfig::default())
            .unwrap();
    let p = model.predict(flat(0..n).view()).unwrap().column(1).to_owned();
    let p = p.into_shape_with_order((n, k)).unwrap();
    chosen(data.labels.view(), &best(p.view())).unwrap()
}

/// Rates counted on all labels, every verifier kept.
fn naive_bayes(data: &Drawn) -> Vec<bool> {
    let (n, k, m) = data.scores.dim();
    let votes = data.scores.mapv(|score| u8::from(score >= 0.5)).into_shape_with_order((n * k, m)).unwrap();
    let labels: Vec<bool> = data.labels.iter().copied().collect();
    let rates = Rates::count(votes.view(), &labels).unwrap();
    let odds: Array1<f64> = votes.rows().into_iter().map(|row| rates.log_odds(row)).collect();
    chosen(data.labels.view(), &best(odds.into_shape_with_order((n, k)).unwrap().view())).unwrap()
}

/// The note's synthetic selection: mean of 10 seeds, their standard deviation about .02.
fn selection(responses: usize) -> [f64; 9] {
    let mut sums = [0.0; 9];
    for seed in 0..10 {
        let data = Synthetic { responses, ..Synthetic::default() }.draw(seed).unwrap();
        let balance = balance_from_labels(data.labels.slice(s![..5, ..])).unwrap();
        let with = |estimator: Estimator, balance: f64| {
            let config = WeaverConfig { estimator, ..WeaverConfig::default() };
            let fit = fit(data.scores.view(), &Balance::Known(balance), None, &config).unwrap();
            share(&chosen(data.labels.view(), &fit.select(TieBreak::First)).unwrap())
        };
        // The verifier whose votes are most often right; the second chooses better.
        let single = best(data.scores.index_axis(Axis(2), 0));
        assert!(rank_verifiers(data.scores.view(), data.labels.view()).unwrap()[0] < 2);
        let pick = |choices: &[usize]| share(&chosen(data.labels.view(), choices).unwrap());
        let values = [
            pick(&vec![0; 200]),
            pick(&single),
            pick(&best(naive_ensemble(data.scores.view()).view())),
            with(Estimator::MomentMethod(MomentMethod::released()), balance),
            with(Estimator::default(), balance),
            with(
                Estimator::MomentMethod(MomentMethod { rate: 1e-2, epochs: 2000, ..MomentMethod::default() }),
                balance,
            ),
            share(&logistic_on(&data, 0..5)),
            share(&naive_bayes(&data)),
            data.labels.rows().into_iter().filter(|row| row.iter().any(|y| *y)).count() as f64 / 200.0,
        ];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / 10.0);
    }
    sums
}

#[test]
fn synthetic_selection_has_the_published_shape() {
    for (responses, want) in [
        (10, [0.501, 0.738, 0.846, 0.855, 0.869, 0.870, 0.863, 0.869, 0.874]),
        (50, [0.508, 0.745, 0.929, 0.940, 0.949, 0.950, 0.949, 0.949, 0.956]),
    ] {
        let all = selection(responses);
        for (got, want) in all.iter().zip(want) {
            assert!((got - want).abs() < 0.02, "K = {responses}: {all:?}");
        }
        let [first, single, naive, released, closed, descent, _, oracle, ceiling] = all;
        assert!(first < single && single < naive && naive < released && released < closed, "{all:?}");
        assert!((closed - oracle).abs() < 0.01 && (descent - closed).abs() < 0.01, "{all:?}");
        assert!(closed <= ceiling && oracle <= ceiling);
    }
}

#[test]
fn the_closed_form_and_the_converged_loop_choose_alike() {
    let data = Synthetic::default().draw(3).unwrap();
    let fit = |estimator| {
        let config = WeaverConfig { estimator, ..WeaverConfig::default() };
        super::fit(data.scores.view(), &Balance::Known(0.5), None, &config).unwrap()
    };
    let (a, b) = (fit(Estimator::default()), fit(Estimator::MomentMethod(MomentMethod::default())));
    assert!(b.clusters[0].descent.unwrap().1);
    let same =
        a.select(TieBreak::First).iter().zip(b.select(TieBreak::First)).filter(|(a, b)| **a == *b).count();
    assert!(same > 180, "{same}");
    // The two that nearly always say "right" are dropped.
    assert_eq!(a.clusters[0].kept, [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]);
}

#[test]
fn the_prior_comes_from_third_moments_too() {
    let data = Synthetic { queries: 2000, ..Synthetic::default() }.draw(1).unwrap();
    let share = share(data.labels.as_slice().unwrap());
    let fit = fit(data.scores.view(), &Balance::ThirdMoments, None, &WeaverConfig::default()).unwrap();
    let found = fit.clusters[0].rates.balance;
    assert!((found - share).abs() < 0.05, "{found} {share}");
}

/// Four copies of a verifier count five times: the fit believes them, and selection suffers.
#[test]
fn clones_are_overweighted() {
    let mut loss = 0.0;
    for seed in 0..5 {
        let choose = |clones| {
            let mut world = Synthetic { clones, ..Synthetic::default() };
            // The cloned verifier is a poor one.
            world.tpr.insert(0, 0.6);
            world.tnr.insert(0, 0.6);
            let data = world.draw(seed).unwrap();
            let fit = fit(data.scores.view(), &Balance::Known(0.5), None, &WeaverConfig::default()).unwrap();
            share(&chosen(data.labels.view(), &fit.select(TieBreak::First)).unwrap())
        };
        loss += (choose(0) - choose(4)) / 5.0;
    }
    assert!(loss > 0.02, "{loss}");
}

#[test]
fn clusters_are_fitted_separately() {
    let data = Synthetic { queries: 400, responses: 20, ..Synthetic::default() }.draw(2).unwrap();
    let right: Vec<f64> =
        data.labels.rows().into_iter().map(|row| row.iter().filter(|y| **y).count() as f64).collect();
    let groups = clusters(&right, 2).unwrap();
    let balances =
        groups.iter().map(|group| group.iter().map(|&q| right[q] / 20.0).sum::<f64>() / group.len() as f64);
    let balances: Vec<f64> = balances.collect();
    let fit =
        fit(data.scores.view(), &Balance::Each(balances.clone()), Some(&groups), &WeaverConfig::default())
            .unwrap();
    assert_eq!(fit.clusters.len(), groups.len());
    assert!(balances[0] > balances[1]);
    let bad = [vec![0, 0]];
    assert!(
        super::fit(data.scores.view(), &Balance::Known(0.5), Some(&bad), &WeaverConfig::default()).is_err()
    );
    let short = [vec![0]];
    assert!(
        super::fit(data.scores.view(), &Balance::Known(0.5), Some(&short), &WeaverConfig::default()).is_err()
    );
    let one = Balance::Each(vec![0.5]);
    assert!(super::fit(data.scores.view(), &one, Some(&groups), &WeaverConfig::default()).is_err());
}

/// A student on features that hold the label learns to choose as its teacher, on queries it has not seen.
#[test]
fn a_distilled_scorer_keeps_most_of_it() {
    let data = Synthetic { queries: 300, ..Synthetic::default() }.draw(4).unwrap();
    let teacher = fit(data.scores.view(), &Balance::Known(0.5), None, &WeaverConfig::default()).unwrap();
    let mut rng = pilotfish_model::Streams::new(8).stream("features");
    let features = ndarray::Array2::from_shape_fn((3000, 3), |(row, j)| {
        let y = data.labels[[row / 10, row % 10]];
        let noise: f64 = rand::Rng::random_range(&mut rng, -1.0..1.0);
        if j == 0 && y { 1.2 + noise } else { noise }
    });
    let soft: Vec<f64> = teacher.probabilities.iter().copied().collect();
    let random = chosen(data.labels.slice(s![200.., ..]), &[0; 100]).unwrap();
    for student in [
        Student::Linear(LogisticConfig::default()),
        Student::Perceptron(crate::heads::PerceptronConfig { iterations: 60, ..Default::default() }),
    ] {
        let scorer = distil(features.slice(s![..2000, ..]), &soft[..2000], &student).unwrap();
        let scores = Array1::from(scorer.score(features.slice(s![2000.., ..])).unwrap());
        let scores = scores.into_shape_with_order((100, 10)).unwrap();
        let right = chosen(data.labels.slice(s![200.., ..]), &best(scores.view())).unwrap();
        assert!(share(&right) > share(&random) + 0.2, "{} {}", share(&right), share(&random));
    }
    assert!(distil(features.view(), &soft[..5], &Student::Linear(LogisticConfig::default())).is_err());
}

#[test]
fn bad_scores_are_refused() {
    let fit =
        |scores: &Array3<f64>, config: &WeaverConfig| fit(scores.view(), &Balance::Known(0.5), None, config);
    let config = WeaverConfig::default();
    assert!(fit(&Array3::zeros((0, 2, 3)), &config).is_err());
    assert!(fit(&Array3::from_elem((2, 2, 3), f64::NAN), &config).is_err());
    assert!(fit(&Array3::from_elem((2, 2, 3), f64::INFINITY), &config).is_err());
    assert!(fit(&Array3::from_elem((2, 2, 3), 0.0), &config).is_err());
    let data = Synthetic::default().draw(0).unwrap();
    let nan = WeaverConfig { threshold: Threshold::At(f64::NAN), ..config };
    assert!(fit(&data.scores, &nan).is_err());
    assert!(Synthetic { difficulty: (f64::NAN, 1.0), ..Synthetic::default() }.draw(0).is_err());
    assert!(Synthetic { queries: 0, ..Synthetic::default() }.draw(0).is_err());
    assert!(Synthetic { tpr: vec![1.5; 12], ..Synthetic::default() }.draw(0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Neither the order of verifiers, nor an affine rescaling outside [0, 1], nor a constant verifier changes
    /// probabilities.
    #[test]
    fn selection_is_invariant(seed in 0u64..1000, scale in 2.0f64..9.0, turn in 1usize..12) {
        let data = Synthetic { queries: 40, ..Synthetic::default() }.draw(seed).unwrap();
        let raw = data.scores.mapv(|s| 3.0 * s - 7.0);
        let plain = fit(raw.view(), &Balance::Known(0.5), None, &WeaverConfig::default()).unwrap();
        let order: Vec<usize> = (0..12).map(|v| (v + turn) % 12).collect();
        let mut other = raw.select(Axis(2), &order).mapv(|s| scale * s + 100.0);
        other.append(Axis(2), Array3::from_elem((40, 10, 1), 5.0).view()).unwrap();
        let moved = fit(other.view(), &Balance::Known(0.5), None, &WeaverConfig::default()).unwrap();
        for (a, b) in plain.probabilities.iter().zip(&moved.probabilities) {
            prop_assert!((a - b).abs() < 1e-9);
        }
    }

    /// Whatever the scores are, probabilities are probabilities.
    #[test]
    fn probabilities_are_probabilities(
        values in proptest::collection::vec(-1e6f64..1e6, 60),
        balance in 0.01f64..0.99,
    ) {
        let scores = Array3::from_shape_vec((4, 5, 3), values).unwrap();
        if let Ok(fit) = fit(scores.view(), &Balance::Known(balance), None, &WeaverConfig::default()) {
            prop_assert!(fit.probabilities.iter().all(|p| *p > 0.0 && *p < 1.0));
        }
    }
}
