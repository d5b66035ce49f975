#![allow(clippy::unwrap_used)]

use ndarray::{Array2, array};
use pilotfish_model::Streams;
use rand::Rng;

use super::*;

/// Fixture A: 10 000 items by pattern, those with Y = 1 and those with Y = 0.
const FIXTURE_A: [([u8; 3], usize, usize); 8] = [
    ([0, 0, 0], 24, 3024),
    ([0, 0, 1], 56, 336),
    ([0, 1, 0], 96, 1296),
    ([0, 1, 1], 224, 144),
    ([1, 0, 0], 216, 756),
    ([1, 0, 1], 504, 84),
    ([1, 1, 0], 864, 324),
    ([1, 1, 1], 2016, 36),
];

fn fixture_a() -> (Array2<u8>, Vec<bool>) {
    let (mut votes, mut labels) = (Vec::new(), Vec::new());
    for (pattern, right, wrong) in FIXTURE_A {
        for label in std::iter::repeat_n(true, right).chain(std::iter::repeat_n(false, wrong)) {
            votes.extend(pattern);
            labels.push(label);
        }
    }
    (Array2::from_shape_vec((10_000, 3), votes).unwrap(), labels)
}

fn truth() -> Rates {
    Rates { balance: 0.4, tpr: vec![0.9, 0.8, 0.7], fpr: vec![0.2, 0.3, 0.1] }
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < tolerance), "{got:?} {want:?}");
}

#[test]
fn posteriors_by_hand() {
    let want = [0.007874, 0.142857, 0.068966, 0.608696, 0.222222, 0.857143, 0.727273, 0.982456];
    let got: Vec<f64> =
        FIXTURE_A.iter().map(|(pattern, ..)| truth().posterior(ndarray::aview1(pattern))).collect();
    close(&got, &want, 1e-6);
}

#[test]
fn moments_by_hand() {
    let moments = Moments::of(fixture_a().0.view()).unwrap();
    close(&moments.means, &[0.48, 0.5, 0.34], 1e-12);
    close(
        &[moments.covariance(0, 1), moments.covariance(0, 2), moments.covariance(1, 2)],
        &[0.084, 0.1008, 0.072],
        1e-12,
    );
    let o = array![
        [0.52, 0.0, 0.344, 0.176, 0.444, 0.076],
        [0.0, 0.48, 0.156, 0.324, 0.216, 0.264],
        [0.344, 0.156, 0.5, 0.0, 0.402, 0.098],
        [0.176, 0.324, 0.0, 0.5, 0.258, 0.242],
        [0.444, 0.216, 0.402, 0.258, 0.66, 0.0],
        [0.076, 0.264, 0.098, 0.242, 0.0, 0.34]
    ];
    close(moments.indicator().as_slice().unwrap(), o.as_slice().unwrap(), 1e-12);
}

#[test]
fn the_closed_form_is_exact_on_exact_moments() {
    let moments = Moments::of(fixture_a().0.view()).unwrap();
    let rates = ClosedForm::default().fit(&moments, 0.4).unwrap();
    close(&rates.tpr, &[0.9, 0.8, 0.7], 1e-12);
    close(&rates.fpr, &[0.2, 0.3, 0.1], 1e-12);
}

/// A wrong prior fits as well: the prior cannot be read off means and pairs.
#[test]
fn a_wrong_prior_reaches_no_loss_either() {
    let moments = Moments::of(fixture_a().0.view()).unwrap();
    let rates = ClosedForm::default().fit(&moments, 0.5).unwrap();
    close(&rates.tpr, &[0.822929, 0.744949, 0.633939], 1e-6);
    close(&rates.fpr, &[0.137071, 0.255051, 0.046061], 1e-6);
    let mu: Vec<[f64; 2]> = (0..3)
        .flat_map(|k| [[1.0 - rates.fpr[k], 1.0 - rates.tpr[k]], [rates.fpr[k], rates.tpr[k]]])
        .collect();
    let loss = MomentMethod::loss(&moments, 0.5, &mu);
    assert!(loss.pairs + loss.means + loss.sums < 1e-24, "{loss:?}");
    let fit = MomentMethod { epochs: 4000, ..MomentMethod::default() }.fit(&moments, 0.5).unwrap();
    close(&fit.rates.tpr, &rates.tpr, 1e-4);
}

#[test]
fn third_moments_find_the_prior() {
    assert!((balance_from_votes(fixture_a().0.view()).unwrap() - 0.4).abs() < 1e-9);
    // Of the mirror image too.
    let flipped = fixture_a().0.mapv(|vote| 1 - vote);
    assert!((balance_from_votes(flipped.view()).unwrap() - 0.6).abs() < 1e-9);
}

#[test]
fn losses_and_first_step_by_hand() {
    let moments = Moments::of(fixture_a().0.view()).unwrap();
    let whole = MomentMethod { scale: 1.0, ..MomentMethod::default() };
    let start = whole.start(&moments, 0.4);
    close(&[start[0][0], start[1][1], start[2][0]], &[0.606667, 0.84, 0.583333], 1e-6);
    close(&[start[3][1], start[4][0], start[5][1]], &[0.875, 0.77, 0.595], 1e-6);
    let total = |loss: Loss| loss.pairs + loss.means + 10.0 * loss.sums;
    let loss = MomentMethod::loss(&moments, 0.4, &start);
    close(&[loss.pairs, loss.means, loss.sums, total(loss)], &[0.503508, 0.139680, 0.586472, 6.507910], 2e-6);
    let half = MomentMethod { scale: 0.5, epochs: 1, ..MomentMethod::default() };
    let loss = MomentMethod::loss(&moments, 0.4, &half.start(&moments, 0.4));
    close(
        &[loss.pairs, loss.means, loss.sums, total(loss)],
        &[1.329946, 0.655720, 2.511618, 27.101847],
        2e-6,
    );
    let fit = half.fit(&moments, 0.4).unwrap();
    let want = [
        [0.452214, 0.120298],
        [0.146165, 0.541268],
        [0.442443, 0.116615],
        [0.149232, 0.555187],
        [0.518213, 0.147190],
        [0.126891, 0.442536],
    ];
    close(fit.mu.as_flattened(), want.as_flattened(), 1e-6);
    close(&fit.losses, &[27.101847, 9.387686], 2e-6);
}

#[test]
fn the_moment_method_converges_where_it_is_let() {
    let moments = Moments::of(fixture_a().0.view()).unwrap();
    let mu: Vec<[f64; 2]> = (0..3)
        .flat_map(|k| [[1.0 - truth().fpr[k], 1.0 - truth().tpr[k]], [truth().fpr[k], truth().tpr[k]]])
        .collect();
    let loss = MomentMethod::loss(&moments, 0.4, &mu);
    assert!(loss.pairs + loss.means + loss.sums < 1e-28);
    let fit = MomentMethod::default().fit(&moments, 0.4).unwrap();
    assert!(fit.plateau);
    close(&fit.rates.tpr, &truth().tpr, 1e-6);
    close(&fit.rates.fpr, &truth().fpr, 1e-6);
}

fn ten_verifiers(n: usize) -> (Array2<u8>, Vec<bool>, Rates) {
    let rates = Rates {
        balance: 0.6,
        tpr: vec![0.95, 0.55, 0.8, 0.65, 0.7, 0.6, 0.9, 0.5, 0.75, 0.6],
        fpr: [0.9, 0.55, 0.6, 0.85, 0.7, 0.5, 0.6, 0.5, 0.85, 0.9].iter().map(|tnr| 1.0 - tnr).collect(),
    };
    let mut rng = Streams::new(5).stream("votes");
    let labels: Vec<bool> = (0..n).map(|_| rng.random_bool(0.6)).collect();
    let votes = Array2::from_shape_fn((n, 10), |(i, k)| {
        u8::from(rng.random_bool(if labels[i] { rates.tpr[k] } else { rates.fpr[k] }))
    });
    (votes, labels, rates)
}

fn accuracy(rates: &Rates, votes: &Array2<u8>, labels: &[bool]) -> f64 {
    let right = votes.rows().into_iter().zip(labels).filter(|(row, y)| (rates.log_odds(*row) > 0.0) == **y);
    right.count() as f64 / labels.len() as f64
}

fn worst(fit: &Rates, truth: &Rates) -> f64 {
    let pairs = fit.tpr.iter().zip(&truth.tpr).chain(fit.fpr.iter().zip(&truth.fpr));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The released step size leaves the loss far above its floor, and the trace says so.
#[test]
fn under_training_is_noticed() {
    let (votes, labels, truth) = ten_verifiers(20_000);
    let moments = Moments::of(votes.view()).unwrap();
    let released = MomentMethod::released().fit(&moments, 0.6).unwrap();
    let last = *released.losses.last().unwrap();
    assert!(!released.plateau && last > 0.3, "{last}");
    assert!(worst(&released.rates, &truth) > 0.15);
    let good = MomentMethod::default().fit(&moments, 0.6).unwrap();
    let last = *good.losses.last().unwrap();
    assert!(good.plateau && last < 3e-3, "{last}");
    let closed = ClosedForm::default().fit(&moments, 0.6).unwrap();
    let bayes = accuracy(&truth, &votes, &labels);
    assert!((bayes - 0.964).abs() < 0.005, "{bayes}");
    for rates in [&good.rates, &closed] {
        assert!(worst(rates, &truth) < 0.02, "{}", worst(rates, &truth));
        assert!((accuracy(rates, &votes, &labels) - bayes).abs() < 0.002);
    }
    assert!(accuracy(&released.rates, &votes, &labels) < bayes - 0.02);
    let slow = MomentMethod { rate: 1e-4, epochs: 5000, ..MomentMethod::default() };
    assert!(worst(&slow.fit(&moments, 0.6).unwrap().rates, &truth) < 0.02);
}

#[test]
fn counted_rates_are_naive_bayes() {
    let (votes, labels) = fixture_a();
    let rates = Rates::count(votes.view(), &labels).unwrap();
    close(&rates.tpr, &truth().tpr, 1e-9);
    close(&rates.fpr, &truth().fpr, 1e-9);
    assert!((rates.balance - 0.4).abs() < 1e-12);
    assert!(Rates::count(votes.view(), &vec![true; 10_000]).is_err());
}

#[test]
fn verifiers_worse_than_chance_get_their_sign() {
    let mut votes = fixture_a().0;
    votes.column_mut(2).mapv_inplace(|vote| 1 - vote);
    let moments = Moments::of(votes.view()).unwrap();
    let rates = ClosedForm::default().fit(&moments, 0.4).unwrap();
    close(&rates.tpr, &[0.9, 0.8, 0.3], 1e-9);
    close(&rates.fpr, &[0.2, 0.3, 0.9], 1e-9);
}

#[test]
fn constant_verifiers_say_nothing() {
    let (votes, _) = fixture_a();
    let mut wide = Array2::ones((10_000, 4));
    wide.slice_mut(ndarray::s![.., ..3]).assign(&votes);
    let moments = Moments::of(wide.view()).unwrap();
    let rates = ClosedForm::default().fit(&moments, 0.4).unwrap();
    close(&rates.tpr[..3], &truth().tpr, 1e-9);
    assert!((rates.tpr[3] - rates.fpr[3]).abs() < 1e-12);
}

#[test]
fn bad_input_is_refused() {
    let moments = Moments::of(fixture_a().0.view()).unwrap();
    for balance in [0.0, 1.0, f64::NAN, -1.0] {
        assert!(ClosedForm::default().fit(&moments, balance).is_err());
        assert!(MomentMethod::default().fit(&moments, balance).is_err());
    }
    assert!(ClosedForm { weak: f64::NAN }.fit(&moments, 0.4).is_err());
    let two = Moments::of(array![[0u8, 1], [1, 0]].view()).unwrap();
    assert!(ClosedForm::default().fit(&two, 0.4).is_err());
    assert!(balance_from_votes(array![[0u8, 1], [1, 0]].view()).is_err());
    assert!(Moments::of(Array2::zeros((0, 3)).view()).is_err());
    assert!(Moments::of(array![[0u8, 2, 1]].view()).is_err());
    let same = Array2::ones((5, 3));
    assert!(ClosedForm::default().fit(&Moments::of(same.view()).unwrap(), 0.4).is_err());
    assert!(balance_from_votes(same.view()).is_err());
    let wild = MomentMethod { rate: f64::NAN, ..MomentMethod::default() };
    assert!(wild.fit(&moments, 0.4).is_err());
}
