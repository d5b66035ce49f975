//! CETT by hand, its search, and the laws' values and fits.
#![allow(clippy::unwrap_used)]

use pilotfish_sparsity::law::fit::{Curve, Law, fit};
use pilotfish_sparsity::law::{Metric, Neurons, bisect_kappa};
use rand::{Rng, SeedableRng};

fn example() -> Neurons {
    Neurons::new(vec![1.0, 0.5, 0.1, 0.2, 2.0, 1.0], &[3.0, 1.0, 0.0, 4.0, 0.0, 2.0], 3).unwrap()
}

#[test]
fn two_tokens_by_hand() {
    let layer = example();
    for (threshold, cett, active) in [
        (0.15, 0.0, 1.0),
        (0.3, 0.0183, 0.8333),
        (0.6, 0.0492, 0.6667),
        (1.1, 0.1801, 0.5),
        (2.1, 0.5492, 0.1667),
    ] {
        let at = layer.at(threshold);
        assert!((at.cett - cett).abs() < 1e-4 && (at.active - active).abs() < 1e-4, "{threshold}: {at:?}");
    }
    // The 0.99-quantile of six norms is the fifth, 2.
    let found = layer.threshold(0.05, 65_536).unwrap();
    assert!((0.5..1.0).contains(&found.threshold) && (found.kept.active - 4.0 / 6.0).abs() < 1e-12);
    // Nothing may be lost: below the least norm. Everything may: the upper end, which keeps the largest.
    assert_eq!(layer.threshold(0.0, 1024).unwrap().kept.cett, 0.0);
    let all = layer.at(100.0);
    assert!((all.cett - 1.0).abs() < 1e-6 && all.active == 0.0);
}

fn random(seed: u64, tokens: usize, relu: bool) -> (Vec<f32>, Vec<f32>) {
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let (outs, neurons) = (8, 32);
    let v = (0..tokens * neurons).map(|_| {
        let x: f32 = rng.random_range(-1.0..1.0);
        let x = x * x * x;
        if relu { x.max(0.0) } else { x }
    });
    let v: Vec<f32> = v.collect();
    let scale: Vec<f32> = (0..neurons).map(|_| rng.random_range(-1.5f32..2.0).exp()).collect();
    let down = (0..outs * neurons).map(|at| rng.random_range(-1.0..1.0f32) * scale[at % neurons]).collect();
    (v, down)
}

#[test]
fn nothing_lost_is_what_is_zero() {
    let (v, down) = random(1, 20, true);
    let zeros = v.iter().filter(|v| **v == 0.0).count() as f64 / v.len() as f64;
    let layer = Neurons::new(v, &down, 32).unwrap();
    let found = layer.threshold(0.0, 65_536).unwrap();
    assert!((found.kept.active - (1.0 - zeros)).abs() < 1e-12);
}

#[test]
fn the_search_stops_at_the_last_that_fits() {
    let (v, down) = random(2, 30, false);
    let layer = Neurons::new(v, &down, 32).unwrap();
    let mut last = 0.0;
    for kappa in [0.05, 0.1, 0.2, 0.4] {
        let found = layer.threshold(kappa, 4096).unwrap();
        assert!(found.kept.cett <= kappa && found.threshold > last, "{found:?}");
        last = found.threshold;
        // One step of the grid further is too far, unless it is the upper end.
        let mut norms: Vec<f64> = (0..4096).map(f64::from).collect();
        norms.dedup();
        let step = layer.threshold(1.0, 4096).unwrap().threshold / 4095.0;
        assert!(layer.at(found.threshold + 1.01 * step).cett > kappa);
    }
}

#[test]
fn scaling_a_neuron_and_its_column_changes_cett_nothing() {
    let (v, down) = random(3, 10, false);
    let by = |at: usize| if at % 32 == 5 { 8.0 } else { 1.0 };
    let scaled_v: Vec<f32> = v.iter().enumerate().map(|(at, v)| v / by(at)).collect();
    let scaled_down: Vec<f32> = down.iter().enumerate().map(|(at, w)| w * by(at)).collect();
    let (a, b) = (Neurons::new(v, &down, 32).unwrap(), Neurons::new(scaled_v, &scaled_down, 32).unwrap());
    let (one, two) = (a.at(0.3), b.at(0.3));
    assert!((one.cett - two.cett).abs() < 1e-6 && one.active == two.active);
    let fat = |layer: &Neurons| layer.under(Metric::Fat { threshold: 0.1 }).active;
    assert!(fat(&a) != fat(&b));
}

#[test]
fn cett_loses_less_than_its_rivals_at_one_ratio() {
    let (v, down) = random(4, 200, false);
    let layer = Neurons::new(v.clone(), &down, 32).unwrap();
    let cett = layer.threshold(0.2, 65_536).unwrap().kept;
    let top = layer.under(Metric::TopK { ratio: cett.active });
    // FAT at the same ratio.
    let mut sizes: Vec<f32> = v.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let at = ((1.0 - cett.active) * sizes.len() as f64) as usize;
    let fat = layer.under(Metric::Fat { threshold: f64::from(sizes[at]) });
    assert!((fat.active - cett.active).abs() < 0.01 && (top.active - cett.active).abs() < 0.02);
    assert!(cett.cett < fat.cett, "{cett:?} {fat:?}");
    assert!((cett.cett - top.cett).abs() < 0.1);
}

#[test]
fn kappa_is_where_perplexity_has_risen_by_one_percent() {
    // A made-up loss: 0.3 kappa^2 above the dense one.
    let found = bisect_kappa(1.0, 1e-6, 2.0, |kappa| Ok(2.0 + 0.3 * kappa * kappa)).unwrap();
    let want = (1.01f64.ln() / 0.3).sqrt();
    assert!((found - want).abs() < 1e-6);
    for (percent, tolerance) in [(-1.0, 0.1), (f64::NAN, 0.1), (1.0, 0.0), (1.0, f64::NAN)] {
        assert!(bisect_kappa(percent, tolerance, 1.0, Ok).is_err());
    }
}

#[test]
fn published_curves() {
    let relu = |c| Curve::new(Law::Relu, c);
    let small = relu([0.101, -0.0151, 3.20, 0.0614]);
    // The coefficients are printed to three digits.
    for (d, want) in [(10.0, 7.877), (50.0, 6.992), (100.0, 6.744), (300.0, 6.472)] {
        assert!((100.0 * small.at(d) - want).abs() < 0.002, "{d}: {}", small.at(d));
    }
    let middle = relu([1.01, -3.49, 7.97e-3, 0.0721]);
    for (d, want) in [(10.0, 10.021), (50.0, 9.225), (100.0, 8.534), (300.0, 7.453)] {
        assert!((100.0 * middle.at(d) - want).abs() < 0.002);
    }
    let large = relu([1.53, -3.46, 1.56e-4, 0.0648]);
    for (d, want) in [(100.0, 9.108), (800.0, 6.522)] {
        assert!((100.0 * large.at(d) - want).abs() < 0.002);
    }
    for (c, values) in
        [([0.479, 0.0, 0.102, 0.409], [37.515, 39.776]), ([0.967, 0.0, 0.538, 0.382], [32.395, 37.574])]
    {
        let curve = Curve::new(Law::Silu, c);
        for (d, want) in [10.0, 100.0].into_iter().zip(values) {
            assert!((100.0 * curve.at(d) - want).abs() < 0.002);
        }
    }
}

const TOKENS: [f64; 12] = [10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 130.0, 160.0, 200.0, 250.0, 300.0];

#[test]
fn noiseless_points_give_the_coefficients_back() {
    let truth = Curve::new(Law::Relu, [1.01, -3.49, 7.97e-3, 0.0721]);
    let points: Vec<(f64, f64)> = TOKENS.iter().map(|&d| (d, truth.at(d))).collect();
    let found = fit(Law::Relu, &points).unwrap();
    for (got, want) in [(found.alpha, 1.01), (found.b, -3.49), (found.c, 7.97e-3), (found.a0, 0.0721)] {
        assert!((got - want).abs() < 1e-6, "{found:?}");
    }
    let truth = Curve::new(Law::Silu, [0.844, 0.0, 0.208, 0.390]);
    let points: Vec<(f64, f64)> = TOKENS.iter().map(|&d| (d, truth.at(d))).collect();
    let found = fit(Law::Silu, &points).unwrap();
    for (got, want) in [(found.alpha, 0.844), (found.c, 0.208), (found.a0, 0.390)] {
        assert!((got - want).abs() < 1e-5, "{found:?}");
    }
    // Each form fits its own data better.
    assert!(found.aic(12) < fit(Law::Relu, &points).map_or(f64::INFINITY, |curve| curve.aic(12)) + 1e-9);
}

#[test]
fn noise_moves_coefficients_but_not_the_curve() {
    let truth = Curve::new(Law::Relu, [1.01, -3.49, 7.97e-3, 0.0721]);
    let mut rng = rand::rngs::StdRng::seed_from_u64(9);
    let points: Vec<(f64, f64)> =
        TOKENS.iter().map(|&d| (d, truth.at(d) * (1.0 + 0.01 * rng.random_range(-1.0..1.0)))).collect();
    let found = fit(Law::Relu, &points).unwrap();
    assert!(TOKENS.iter().all(|&d| (found.at(d) / truth.at(d) - 1.0).abs() < 0.015), "{found:?}");
}

#[test]
fn bad_input_is_refused() {
    assert!(Neurons::new(vec![], &[1.0], 1).is_err() && Neurons::new(vec![1.0], &[1.0, 2.0], 0).is_err());
    assert!(
        Neurons::new(vec![1.0; 3], &[1.0; 4], 2).is_err()
            && Neurons::new(vec![1.0; 4], &[1.0; 3], 2).is_err()
    );
    assert!(Neurons::new(vec![f32::NAN; 2], &[1.0; 2], 2).is_err());
    let layer = example();
    assert!(layer.threshold(f64::NAN, 8).is_err() && layer.threshold(0.1, 1).is_err());
    // A dead layer: no token has an output.
    let dead = Neurons::new(vec![0.0; 4], &[1.0; 4], 2).unwrap().threshold(0.1, 16).unwrap();
    assert_eq!((dead.kept.active, dead.kept.cett), (0.0, 0.0));
    for points in [vec![(1.0, 0.5); 2], vec![(0.0, 0.5); 5], vec![(1.0, f64::NAN); 5]] {
        assert!(fit(Law::Relu, &points).is_err() && fit(Law::Silu, &points).is_err());
    }
}
