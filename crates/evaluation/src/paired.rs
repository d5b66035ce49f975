use pilotfish_model::Streams;
use rand::Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::{EvaluationError, Result};

/// An interval of plausible values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How two methods are compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedConfig {
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Probability that an interval covers, such as 0.95.
    pub confidence: f64,
    /// Seed of the resampling.
    pub seed: u64,
}

impl Default for PairedConfig {
    fn default() -> Self {
        Self { resamples: 2000, confidence: 0.95, seed: 0 }
    }
}

/// An estimate and its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// The estimate.
    pub value: f64,
    /// Its interval; `None` with fewer than two items.
    pub interval: Option<Interval>,
}

/// Two methods, measured on the same items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Items.
    pub n: usize,
    /// Mean of the first method.
    pub mean_a: f64,
    /// Mean of the second.
    pub mean_b: f64,
    /// `mean_a / mean_b`, Spec-Bench's form of a speed-up.
    pub ratio: Effect,
    /// Mean of `a - b`.
    pub difference: Effect,
    /// Mean difference over the standard deviation of differences; `None` when all differences are equal.
    pub effect_size: Option<f64>,
    /// Two-sided p-value of a paired t-test; `None` with fewer than two items. 1 when all differences are 0, 0
    /// when they all are one other number.
    pub p_value: Option<f64>,
    /// Smallest mean difference that such a test would find with probability 0.8 at level 0.05; `None` with
    /// fewer than two items.
    pub detectable: Option<f64>,
}

/// Compares the measurements of two methods, item by item. Measurements must be finite and, for the ratio,
/// have a mean above 0.
///
/// Intervals are percentile bootstrap intervals over items, pairs kept together.
///
/// ```
/// use pilotfish_evaluation::{PairedConfig, compare};
/// let c = compare(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0], &PairedConfig::default())?;
/// assert_eq!((c.ratio.value, c.difference.value), (2.0, 2.0));
/// # Ok::<(), pilotfish_evaluation::EvaluationError>(())
/// ```
///
/// # Errors
/// No items, lists of different lengths, a value that is not finite, a mean of `b` that is not above 0,
/// parameters outside their ranges.
pub fn compare(a: &[f64], b: &[f64], config: &PairedConfig) -> Result<Comparison> {
    if a.len() != b.len() {
        return Err(EvaluationError::Mismatch { what: "measurements", left: a.len(), right: b.len() });
    }
    let n = a.len();
    if n == 0 {
        return Err(EvaluationError::Empty);
    }
    if !(config.confidence > 0.0 && config.confidence < 1.0) {
        let (name, value) = ("confidence", config.confidence);
        return Err(EvaluationError::BadParameter { name, value, want: "between 0 and 1" });
    }
    if !(100..=1_000_000).contains(&config.resamples) {
        let (name, value) = ("resamples", config.resamples as f64);
        return Err(EvaluationError::BadParameter { name, value, want: "from 100 to a million" });
    }
    for list in [a, b] {
        if let Some(index) = list.iter().position(|value| !value.is_finite()) {
            return Err(EvaluationError::BadValue { index, value: list[index] });
        }
    }
    let (mean_a, mean_b) = (mean(a), mean(b));
    if !(mean_b > 0.0) {
        return Err(EvaluationError::BadValue { index: 0, value: mean_b });
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let difference = mean(&differences);
    let mut out = Comparison {
        n,
        mean_a,
        mean_b,
        ratio: Effect { value: mean_a / mean_b, interval: None },
        difference: Effect { value: difference, interval: None },
        effect_size: None,
        p_value: None,
        detectable: None,
    };
    if n < 2 {
        return Ok(out);
    }
    let spread = (differences.iter().map(|d| (d - difference).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt();
    let error = spread / (n as f64).sqrt();
    out.effect_size = (spread > 0.0).then(|| difference / spread);
    out.p_value = Some(match (spread > 0.0, difference == 0.0) {
        (true, _) => two_sided(difference / error, n - 1),
        (false, equal) => f64::from(u8::from(equal)),
    });
    // Quantiles of the normal law for level 0.05 (two-sided) and power 0.8.
    out.detectable = Some((1.959_964 + 0.841_621) * error);
    let mut rng = Streams::new(config.seed).stream("bootstrap");
    let (mut ratios, mut shifts) =
        (Vec::with_capacity(config.resamples), Vec::with_capacity(config.resamples));
    for _ in 0..config.resamples {
        let (mut sum_a, mut sum_b) = (0.0, 0.0);
        for _ in 0..n {
            let item = rng.random_range(0..n);
            sum_a += a[item];
            sum_b += b[item];
        }
        shifts.push((sum_a - sum_b) / n as f64);
        if sum_b > 0.0 {
            ratios.push(sum_a / sum_b);
        }
    }
    out.ratio.interval = percentile(ratios, config.confidence);
    out.difference.interval = percentile(shifts, config.confidence);
    Ok(out)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn two_sided(t: f64, freedom: usize) -> f64 {
    StudentsT::new(0.0, 1.0, freedom as f64).map_or(f64::NAN, |law| 2.0 * law.cdf(-t.abs()))
}

fn percentile(mut values: Vec<f64>, confidence: f64) -> Option<Interval> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share * last as f64).round() as usize];
    let tail = (1.0 - confidence) / 2.0;
    Some(Interval { low: at(tail), high: at(1.0 - tail) })
}

/// The middle value, or the mean of the two middle ones. `None` for an empty list or one with NaN.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[half]),
        _ => Some((sorted[half - 1] + sorted[half]) / 2.0),
    }
}

/// Holm's correction of the p-values of several comparisons: each is as large as it must be for the chance of
/// any false alarm among all of them to stay at the level tested.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut floor = 0.0f64;
    for (rank, index) in order.into_iter().enumerate() {
        floor = floor.max(p_values[index] * (p_values.len() - rank) as f64).min(1.0);
        corrected[index] = floor;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::Rng as _;

    use super::*;

    #[test]
    fn t_test_by_hand() {
        // Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 sqrt 3 = 3.4641 with 2 degrees of freedom;
        // for those the law is closed: p = 1 - t / sqrt(t^2 + 2).
        let c = compare(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0], &PairedConfig::default()).expect("valid");
        let t = 12f64.sqrt();
        assert!((c.p_value.expect("three items") - (1.0 - t / (t * t + 2.0).sqrt())).abs() < 1e-9);
        assert_eq!(c.effect_size, Some(2.0));
        assert!((c.detectable.expect("three items") - 2.801_585 / 3f64.sqrt()).abs() < 1e-6);
        assert_eq!(c.ratio.interval, Some(Interval { low: 2.0, high: 2.0 }));
    }

    #[test]
    fn edge_cases() {
        let config = PairedConfig::default();
        let one = compare(&[3.0], &[2.0], &config).expect("valid");
        assert_eq!((one.ratio.value, one.ratio.interval, one.p_value), (1.5, None, None));
        let ties = compare(&[1.0; 5], &[1.0; 5], &config).expect("valid");
        assert_eq!((ties.p_value, ties.effect_size, ties.detectable), (Some(1.0), None, Some(0.0)));
        assert_eq!(compare(&[2.0; 5], &[1.0; 5], &config).expect("valid").p_value, Some(0.0));
        assert!(matches!(compare(&[], &[], &config), Err(EvaluationError::Empty)));
        assert!(matches!(compare(&[1.0], &[], &config), Err(EvaluationError::Mismatch { .. })));
        assert!(matches!(
            compare(&[1.0, f64::NAN], &[1.0, 1.0], &config),
            Err(EvaluationError::BadValue { index: 1, .. })
        ));
        assert!(compare(&[1.0], &[0.0], &config).is_err());
        assert!(compare(&[1.0], &[1.0], &PairedConfig { confidence: f64::NAN, ..config }).is_err());
        assert!(compare(&[1.0], &[1.0], &PairedConfig { resamples: 0, ..config }).is_err());
        assert_eq!(
            (median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])),
            (Some(2.0), Some(2.5), None)
        );
    }

    #[test]
    fn holm_by_hand() {
        let corrected = holm(&[0.01, 0.04, 0.03]);
        for (got, want) in corrected.iter().zip([0.03, 0.06, 0.06]) {
            assert!((got - want).abs() < 1e-12, "{corrected:?}");
        }
    }

    #[test]
    fn intervals_cover_as_often_as_they_say() {
        let mut rng = Streams::new(1).stream("test");
        let covered = (0..300)
            .filter(|&seed| {
                let b: Vec<f64> = (0..30).map(|_| 1.0 + rng.random::<f64>()).collect();
                let a: Vec<f64> = b.iter().map(|b| b + rng.random::<f64>()).collect();
                let config = PairedConfig { resamples: 400, seed, ..PairedConfig::default() };
                let interval = compare(&a, &b, &config).expect("valid").difference.interval.expect("many");
                interval.low <= 0.5 && 0.5 <= interval.high
            })
            .count();
        // 95 % of 300 is 285; percentile intervals at n = 30 fall a little short. Five standard deviations.
        assert!((260..=300).contains(&covered), "{covered}");
    }

    proptest! {
        #[test]
        fn order_does_not_matter(pairs in proptest::collection::vec((0.1f64..9.0, 0.1f64..9.0), 2..20)) {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
            let c = compare(&a, &b, &PairedConfig::default()).expect("valid");
            let swapped = compare(&b, &a, &PairedConfig::default()).expect("valid");
            prop_assert!((c.difference.value + swapped.difference.value).abs() < 1e-9);
            prop_assert!((c.ratio.value * swapped.ratio.value - 1.0).abs() < 1e-9);
            prop_assert!((c.p_value.expect("two") - swapped.p_value.expect("two")).abs() < 1e-9);
        }
    }
}
