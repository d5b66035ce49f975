//! How long a bootstrap takes, and how often its intervals hold the true value.
//!
//! `cargo run -p pilotfish-evaluation --example bootstrap`

use std::time::Instant;

use pilotfish_evaluation::{EvaluationError, IntervalKind, PairedConfig, compare};
use pilotfish_model::Streams;
use rand::Rng;

/// Speeds of a baseline between 1 and 2, gains over it with a long tail of mean 1.
fn measured(n: usize, rng: &mut impl Rng) -> (Vec<f64>, Vec<f64>) {
    let b: Vec<f64> = (0..n).map(|_| 1.0 + rng.random::<f64>()).collect();
    let a = b.iter().map(|b| b - (1.0 - rng.random::<f64>()).ln()).collect();
    (a, b)
}

#[expect(clippy::print_stdout)]
fn main() -> Result<(), EvaluationError> {
    let mut rng = Streams::new(0).stream("example");
    let (a, b) = measured(10_000, &mut rng);
    for interval in [IntervalKind::Percentile, IntervalKind::Bca] {
        let clock = Instant::now();
        let config = PairedConfig { resamples: 10_000, interval, ..PairedConfig::default() };
        let found = compare(&a, &b, &config)?;
        println!(
            "{interval:?}: 10000 resamples of 10000 items in {:.2?}, {:?}",
            clock.elapsed(),
            found.ratio
        );
    }
    println!("how often a 95 % interval holds the true ratio and difference, of 2000:");
    for n in [4, 6, 10, 24, 36, 80] {
        for interval in [IntervalKind::Percentile, IntervalKind::Bca] {
            let mut held = [0, 0];
            for seed in 0..2000 {
                let (a, b) = measured(n, &mut rng);
                let config = PairedConfig { resamples: 500, seed, interval, ..PairedConfig::default() };
                let found = compare(&a, &b, &config)?;
                let effects = [(found.ratio, 2.5 / 1.5), (Some(found.difference), 1.0)];
                for (held, (effect, truth)) in held.iter_mut().zip(effects) {
                    let interval = effect.and_then(|effect| effect.interval);
                    *held += usize::from(interval.is_some_and(|i| i.low <= truth && truth <= i.high));
                }
            }
            println!(
                "{n:>3} items, {interval:?}: {:.1} %, {:.1} %",
                held[0] as f64 / 20.0,
                held[1] as f64 / 20.0
            );
        }
    }
    Ok(())
}
