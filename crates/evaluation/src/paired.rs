use pilotfish_model::Streams;
use rand::Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::{EvaluationError, Result};

/// An interval of plausible values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How a bootstrap's resamples become an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalKind {
    /// Quantiles of the resamples.
    Percentile,
    /// Quantiles corrected for bias and for a spread that changes with the value (Efron 1987, "Better
    /// bootstrap confidence intervals", sections 2 and 6; the acceleration from the jackknife).
    #[default]
    Bca,
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
    /// Kind of the intervals.
    pub interval: IntervalKind,
}

impl Default for PairedConfig {
    fn default() -> Self {
        Self { resamples: 2000, confidence: 0.95, seed: 0, interval: IntervalKind::default() }
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
    /// `mean_a / mean_b`, Spec-Bench's form of a speed-up; `None` when `mean_b` is not above 0.
    pub ratio: Option<Effect>,
    /// Mean of `a - b`.
    pub difference: Effect,
    /// Mean difference over the standard deviation of differences; `None` when all differences are equal.
    pub effect_size: Option<f64>,
    /// Two-sided p-value of a paired t-test; `None` with fewer than two items. 1 when all differences are 0, 0
    /// when they all are one other number.
    pub p_value: Option<f64>,
    /// Smallest mean difference that such a test would find with probability 0.8 at level 0.05, by the usual
    /// approximation `(t(0.975) + t(0.8)) s / sqrt(n)`; `None` with fewer than two items.
    pub detectable: Option<f64>,
}

/// Compares the measurements of two methods, item by item.
///
/// Intervals are bootstrap intervals over items, pairs kept together. Of few items they are too narrow, whatever
/// their kind: of 95 % intervals around skewed measurements, about 82 % hold the true value with 6 items, 92 % with
/// 24 (`examples/bootstrap.rs`).
///
/// ```
/// use pilotfish_evaluation::{PairedConfig, compare};
/// let c = compare(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0], &PairedConfig::default())?;
/// assert_eq!((c.ratio.map(|ratio| ratio.value), c.difference.value), (Some(2.0), 2.0));
/// # Ok::<(), pilotfish_evaluation::EvaluationError>(())
/// ```
///
/// # Errors
/// No items, lists of different lengths, a value that is not finite or so large that sums overflow, parameters
/// outside their ranges.
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
        // Far from where squares and sums of them overflow.
        if let Some(index) = list.iter().position(|value| !(value.abs() < 1e140)) {
            return Err(EvaluationError::BadValue { index, value: list[index] });
        }
    }
    let pairs: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
    let (mean_a, mean_b) = (mean(a), mean(b));
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| a - b).collect();
    let difference = mean(&differences);
    let mut out = Comparison {
        n,
        mean_a,
        mean_b,
        ratio: (mean_b > 0.0).then(|| Effect { value: mean_a / mean_b, interval: None }),
        difference: Effect { value: difference, interval: None },
        effect_size: None,
        p_value: None,
        detectable: None,
    };
    if n < 2 {
        return Ok(out);
    }
    let mut spread =
        (differences.iter().map(|d| (d - difference).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt();
    // Equal differences are equal up to the rounding of a subtraction.
    let largest = a.iter().chain(b).fold(0.0f64, |largest, value| largest.max(value.abs()));
    if spread <= 4.0 * f64::EPSILON * largest {
        spread = 0.0;
    }
    let error = spread / (n as f64).sqrt();
    out.effect_size = (spread > 0.0).then(|| difference / spread);
    out.p_value = Some(match (spread > 0.0, difference == 0.0) {
        (true, _) => two_sided(difference / error, n - 1),
        (false, equal) => f64::from(u8::from(equal)),
    });
    out.detectable = Some(match spread > 0.0 {
        true => (t_quantile(0.975, n - 1) + t_quantile(0.8, n - 1)) * error,
        false => 0.0,
    });
    let sums = resample(&pairs, config);
    let (sum_a, sum_b) = (mean_a * n as f64, mean_b * n as f64);
    let without = |statistic: fn(f64, f64) -> f64| -> Vec<f64> {
        pairs.iter().map(|(a, b)| statistic(sum_a - a, sum_b - b)).collect()
    };
    let interval = |statistic: fn(f64, f64) -> f64| {
        let values = sums.iter().map(|&(a, b)| statistic(a, b)).collect();
        interval(values, statistic(sum_a, sum_b), || without(statistic), config)
    };
    out.difference.interval = interval(|a, b| a - b)
        .map(|Interval { low, high }| Interval { low: low / n as f64, high: high / n as f64 });
    // A resample whose baseline is nothing has no ratio; then the interval has no upper end.
    if let Some(ratio) = &mut out.ratio
        && sums.iter().all(|&(_, b)| b > 0.0)
    {
        ratio.interval = interval(|a, b| a / b);
    }
    Ok(out)
}

/// Sums of both methods over items drawn with replacement.
fn resample(pairs: &[(f64, f64)], config: &PairedConfig) -> Vec<(f64, f64)> {
    let mut rng = Streams::new(config.seed).stream("bootstrap");
    let items = pairs.len() as u64;
    let draw = |sums: (f64, f64), item: usize| (sums.0 + pairs[item].0, sums.1 + pairs[item].1);
    (0..config.resamples)
        .map(|_| match u32::try_from(items) {
            // Half the random bits: twice the speed.
            Ok(items) => {
                (0..items).fold((0.0, 0.0), |sums, _| draw(sums, rng.random_range(0..items) as usize))
            }
            Err(_) => (0..items).fold((0.0, 0.0), |sums, _| draw(sums, rng.random_range(0..items) as usize)),
        })
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn two_sided(t: f64, freedom: usize) -> f64 {
    StudentsT::new(0.0, 1.0, freedom as f64).map_or(f64::NAN, |law| 2.0 * law.cdf(-t.abs()))
}

fn t_quantile(probability: f64, freedom: usize) -> f64 {
    StudentsT::new(0.0, 1.0, freedom as f64).map_or(f64::NAN, |law| law.inverse_cdf(probability))
}

/// The interval of resampled `values` around an estimate; `without` gives the estimates that leave out one item.
fn interval(
    mut values: Vec<f64>,
    estimate: f64,
    without: impl FnOnce() -> Vec<f64>,
    config: &PairedConfig,
) -> Option<Interval> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share.clamp(0.0, 1.0) * last as f64).round() as usize];
    let tail = (1.0 - config.confidence) / 2.0;
    let mut shares = (tail, 1.0 - tail);
    if config.interval == IntervalKind::Bca
        && let Some(corrected) = bca(&values, estimate, without, shares)
    {
        shares = corrected;
    }
    Some(Interval { low: at(shares.0), high: at(shares.1) })
}

/// The corrected shares; `None` when all resamples lie on one side of the estimate, or are one number.
fn bca(
    sorted: &[f64],
    estimate: f64,
    without: impl FnOnce() -> Vec<f64>,
    shares: (f64, f64),
) -> Option<(f64, f64)> {
    let below = sorted.partition_point(|value| *value < estimate);
    let upto = sorted.partition_point(|value| *value <= estimate);
    let normal = Normal::standard();
    // Ties count half.
    let bias = normal.inverse_cdf((below + upto) as f64 / (2 * sorted.len()) as f64);
    let jackknife = without();
    let middle = mean(&jackknife);
    let (squares, cubes) = jackknife.iter().fold((0.0, 0.0), |(squares, cubes), value| {
        let d = middle - value;
        (squares + d * d, cubes + d * d * d)
    });
    let acceleration = cubes / (6.0 * squares.powf(1.5));
    if !bias.is_finite() || !acceleration.is_finite() {
        return None;
    }
    let correct = |share: f64| {
        let z = bias + normal.inverse_cdf(share);
        normal.cdf(bias + z / (1.0 - acceleration * z))
    };
    Some((correct(shares.0), correct(shares.1)))
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
///
/// # Errors
/// A p-value outside 0 to 1, NaN among them.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>> {
    if let Some(index) = p_values.iter().position(|p| !(0.0..=1.0).contains(p)) {
        return Err(EvaluationError::BadValue { index, value: p_values[index] });
    }
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut floor = 0.0f64;
    for (rank, index) in order.into_iter().enumerate() {
        floor = floor.max(p_values[index] * (p_values.len() - rank) as f64).min(1.0);
        corrected[index] = floor;
    }
    Ok(corrected)
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
        // Its quantiles are (2p - 1) / sqrt(2p (1 - p)): 0.95 / sqrt(0.04875) and 0.6 / sqrt(0.32).
        let want = (0.95 / 0.048_75f64.sqrt() + 0.6 / 0.32f64.sqrt()) / 3f64.sqrt();
        assert!((c.detectable.expect("three items") - want).abs() < 1e-6, "{c:?}");
        assert_eq!(c.ratio.expect("above 0").interval, Some(Interval { low: 2.0, high: 2.0 }));
    }

    #[test]
    fn edge_cases() {
        let config = PairedConfig::default();
        let one = compare(&[3.0], &[2.0], &config).expect("valid");
        assert_eq!((one.ratio, one.p_value), (Some(Effect { value: 1.5, interval: None }), None));
        assert_eq!(one.detectable, None);
        let ties = compare(&[1.0; 5], &[1.0; 5], &config).expect("valid");
        assert_eq!((ties.p_value, ties.effect_size, ties.detectable), (Some(1.0), None, Some(0.0)));
        assert_eq!(compare(&[2.0; 5], &[1.0; 5], &config).expect("valid").p_value, Some(0.0));
        assert!(matches!(compare(&[], &[], &config), Err(EvaluationError::Empty)));
        assert!(matches!(compare(&[1.0], &[], &config), Err(EvaluationError::Mismatch { .. })));
        assert!(matches!(
            compare(&[1.0, f64::NAN], &[1.0, 1.0], &config),
            Err(EvaluationError::BadValue { index: 1, .. })
        ));
        assert!(compare(&[1.0], &[f64::MAX], &config).is_err(), "sums would overflow");
        // Log-likelihoods, say: differences mean something, ratios do not.
        let negative = compare(&[-1.0, -2.0, -4.0], &[-2.0, -3.0, -6.0], &config).expect("valid");
        assert_eq!((negative.ratio, negative.difference.value), (None, 4.0 / 3.0));
        // Some resamples have no baseline at all.
        let sparse = compare(&[1.0, 1.0], &[0.0, 2.0], &config).expect("valid");
        assert_eq!(sparse.ratio, Some(Effect { value: 1.0, interval: None }));
        assert!(sparse.difference.interval.is_some());
        // 0.1 + 0.2 - 0.2 is not 0.1: equal differences must not pass for a huge effect.
        let b: Vec<f64> = (1..9).map(|i| 0.1 * f64::from(i)).collect();
        let a: Vec<f64> = b.iter().map(|b| b + 0.2).collect();
        let shifted = compare(&a, &b, &config).expect("valid");
        assert_eq!((shifted.effect_size, shifted.p_value, shifted.detectable), (None, Some(0.0), Some(0.0)));
        assert!(compare(&[1.0], &[1.0], &PairedConfig { confidence: f64::NAN, ..config }).is_err());
        assert!(compare(&[1.0], &[1.0], &PairedConfig { resamples: 0, ..config }).is_err());
        assert_eq!(
            (median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])),
            (Some(2.0), Some(2.5), None)
        );
    }

    #[test]
    fn holm_by_hand() {
        let corrected = holm(&[0.01, 0.04, 0.03]).expect("valid");
        for (got, want) in corrected.iter().zip([0.03, 0.06, 0.06]) {
            assert!((got - want).abs() < 1e-12, "{corrected:?}");
        }
        assert!(holm(&[]).expect("nothing").is_empty());
        for bad in [f64::NAN, -0.1, 1.1] {
            assert!(matches!(holm(&[0.01, bad]), Err(EvaluationError::BadValue { index: 1, .. })));
        }
    }

    /// How many of 400 intervals around the difference, and around the ratio, hold the true value. Gains are
    /// skewed: squares of uniform numbers.
    fn covered(n: usize, kind: IntervalKind) -> (usize, usize) {
        let mut rng = Streams::new(1).stream("test");
        (0..400).fold((0, 0), |(differences, ratios), seed| {
            let b: Vec<f64> = (0..n).map(|_| 1.0 + rng.random::<f64>()).collect();
            let a: Vec<f64> = b.iter().map(|b| b + rng.random::<f64>().powi(2)).collect();
            let config = PairedConfig { resamples: 400, seed, interval: kind, ..PairedConfig::default() };
            let c = compare(&a, &b, &config).expect("valid");
            let holds = |effect: Effect, truth: f64| {
                let interval = effect.interval.expect("many");
                usize::from(interval.low <= truth && truth <= interval.high)
            };
            let ratio = holds(c.ratio.expect("above 0"), (1.5 + 1.0 / 3.0) / 1.5);
            (differences + holds(c.difference, 1.0 / 3.0), ratios + ratio)
        })
    }

    #[test]
    fn intervals_cover_as_often_as_they_say() {
        for kind in [IntervalKind::Percentile, IntervalKind::Bca] {
            let (differences, ratios) = covered(40, kind);
            // 95 % of 400 is 380, with a standard deviation of 4.4; bootstrap intervals fall a little short.
            assert!((360..=396).contains(&differences), "{kind:?}: {differences}");
            assert!((360..=396).contains(&ratios), "{kind:?}: {ratios}");
        }
    }

    #[test]
    fn the_detectable_difference_is_found_four_times_in_five() {
        let mut rng = Streams::new(3).stream("test");
        let mut normal = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        let n = 6;
        // Standard deviation 1 and six items: the formula's value with the true spread.
        let shift = (t_quantile(0.975, n - 1) + t_quantile(0.8, n - 1)) / (n as f64).sqrt();
        let found = (0..2000)
            .filter(|_| {
                let b: Vec<f64> = (0..n).map(|_| 10.0 + normal()).collect();
                let a: Vec<f64> = b.iter().map(|b| b + shift + normal()).collect();
                let config = PairedConfig { resamples: 100, ..PairedConfig::default() };
                compare(&a, &b, &config).expect("valid").p_value.expect("six") < 0.05
            })
            .count();
        // The normal law's quantiles in place of Student's would find 60 %.
        assert!((1520..=1680).contains(&found), "{found}");
    }

    #[test]
    fn bca_against_an_independent_implementation() {
        // By scipy: tests/fixtures/bca.py.
        let a = [12.0, 15.5, 9.1, 30.2, 18.4, 11.0, 14.2, 55.0, 13.3, 16.1];
        let b = [10.0, 11.0, 9.5, 14.0, 12.5, 10.5, 11.5, 16.0, 12.0, 11.8];
        let near = |got: Option<Interval>, low: f64, high: f64| {
            let got = got.expect("ten items");
            let near = |got: f64, want: f64| (got / want - 1.0).abs() < 0.02;
            assert!(near(got.low, low) && near(got.high, high), "{got:?} is not [{low}, {high}]");
        };
        for (interval, difference, ratio) in [
            (IntervalKind::Percentile, (2.14, 15.54), (1.1948, 2.1931)),
            (IntervalKind::Bca, (2.94, 20.09), (1.2664, 2.4878)),
        ] {
            let config = PairedConfig { resamples: 100_000, interval, ..PairedConfig::default() };
            let c = compare(&a, &b, &config).expect("valid");
            near(c.difference.interval, difference.0, difference.1);
            near(c.ratio.expect("above 0").interval, ratio.0, ratio.1);
        }
    }

    proptest! {
        #[test]
        fn order_does_not_matter(pairs in proptest::collection::vec((0.1f64..9.0, 0.1f64..9.0), 2..20)) {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
            let c = compare(&a, &b, &PairedConfig::default()).expect("valid");
            let swapped = compare(&b, &a, &PairedConfig::default()).expect("valid");
            prop_assert!((c.difference.value + swapped.difference.value).abs() < 1e-9);
            let ratios = (c.ratio.expect("above 0"), swapped.ratio.expect("above 0"));
            prop_assert!((ratios.0.value * ratios.1.value - 1.0).abs() < 1e-9);
            for effect in [c.difference, ratios.0] {
                let interval = effect.interval.expect("two");
                prop_assert!(interval.low <= interval.high, "{:?}", c);
            }
            prop_assert!((c.p_value.expect("two") - swapped.p_value.expect("two")).abs() < 1e-9);
        }
    }
}
