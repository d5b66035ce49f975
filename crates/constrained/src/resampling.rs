//! From weights to ancestors: schemes of resampling, effective sizes, sums in logarithms.

use rand::Rng;
use serde::{Deserialize, Serialize};

/// How ancestors are chosen in proportion to weights. All schemes give particle `i` in the mean `N w_i` children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// `N` independent draws.
    Multinomial,
    /// One uniform number in each stratum, `(u_i + i) / N`.
    #[default]
    Stratified,
    /// One uniform number for all strata, `(u + i) / N`.
    Systematic,
    /// `floor(N w_i)` children for sure, the rest by independent draws from what is left over.
    Residual,
}

impl Resampling {
    /// All schemes.
    pub const ALL: [Self; 4] = [Self::Multinomial, Self::Stratified, Self::Systematic, Self::Residual];

    /// The ancestor of each of `N` new particles, ascending, from `N` normalised weights.
    pub fn ancestors(self, weights: &[f64], rng: &mut impl Rng) -> Vec<usize> {
        let n = weights.len();
        match self {
            Self::Multinomial => {
                let mut points: Vec<f64> = (0..n).map(|_| rng.random()).collect();
                points.sort_by(f64::total_cmp);
                invert(weights, points)
            }
            Self::Stratified => {
                let points = (0..n).map(|i| (i as f64 + rng.random::<f64>()) / n as f64).collect();
                invert(weights, points)
            }
            Self::Systematic => {
                let u: f64 = rng.random();
                invert(weights, (0..n).map(|i| (i as f64 + u) / n as f64).collect())
            }
            Self::Residual => {
                let expected = |w: f64| n as f64 * w;
                let mut ancestors = Vec::with_capacity(n);
                for (i, &w) in weights.iter().enumerate() {
                    ancestors.extend(std::iter::repeat_n(i, expected(w) as usize));
                }
                ancestors.truncate(n);
                let rest: Vec<f64> = weights.iter().map(|&w| expected(w).fract()).collect();
                let sum: f64 = rest.iter().sum();
                let mut points: Vec<f64> = (ancestors.len()..n).map(|_| rng.random::<f64>() * sum).collect();
                points.sort_by(f64::total_cmp);
                ancestors.extend(invert(if sum > 0.0 { &rest } else { weights }, points));
                ancestors.sort_unstable();
                ancestors
            }
        }
    }
}

/// The index at which the running sum of weights first exceeds each of some ascending points.
fn invert(weights: &[f64], points: Vec<f64>) -> Vec<usize> {
    // Where rounding leaves a point beyond the sum, the last particle that has weight.
    let last = weights.iter().rposition(|&w| w > 0.0).unwrap_or(0);
    let (mut at, mut sum) = (0, weights.first().copied().unwrap_or(0.0));
    points
        .into_iter()
        .map(|point| {
            while point >= sum && at < last {
                at += 1;
                sum += weights[at];
            }
            at
        })
        .collect()
}

/// `log(sum(exp(x)))`; `-inf` for nothing.
pub fn log_sum_exp(values: impl IntoIterator<Item = f64> + Clone) -> f64 {
    let max = values.clone().into_iter().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + values.into_iter().map(|value| (value - max).exp()).sum::<f64>().ln()
}

/// Weights that sum to 1 from their logarithms; nothing if all are 0.
pub fn normalised(log_weights: &[f64]) -> Option<Vec<f64>> {
    let sum = log_sum_exp(log_weights.iter().copied());
    sum.is_finite().then(|| log_weights.iter().map(|weight| (weight - sum).exp()).collect())
}

/// The effective sample size `1 / sum(w_i^2)` of normalised weights.
pub fn effective_size(weights: &[f64]) -> f64 {
    1.0 / weights.iter().map(|w| w * w).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use pilotfish_model::Streams;

    use super::*;

    #[test]
    fn effective_sizes() {
        assert!((effective_size(&[0.5, 0.3, 0.1, 0.1]) - 2.7778).abs() < 1e-4);
        assert!((effective_size(&[0.25; 4]) - 4.0).abs() < 1e-12);
        assert_eq!(effective_size(&[1.0, 0.0]), 1.0);
        let w = normalised(&[1000.0, 1000.0 + 3f64.ln(), f64::NEG_INFINITY]).unwrap();
        assert!((w[0] - 0.25).abs() < 1e-12 && (w[1] - 0.75).abs() < 1e-12 && w[2] == 0.0);
        assert!(normalised(&[f64::NEG_INFINITY; 3]).is_none() && normalised(&[]).is_none());
    }

    #[test]
    fn every_scheme_is_unbiased_and_skips_the_dead() {
        let weights = [0.5, 0.0, 0.3, 0.12, 0.08, 0.0];
        let mut rng = Streams::new(5).stream("resample");
        let rounds = 20_000;
        for scheme in Resampling::ALL {
            let mut counts = [0.0; 6];
            for _ in 0..rounds {
                let ancestors = scheme.ancestors(&weights, &mut rng);
                assert!(ancestors.len() == 6 && ancestors.is_sorted());
                ancestors.iter().for_each(|&i| counts[i] += 1.0);
                // Schemes with strata: never further than one child from the expectation, on either side.
                let own = ancestors.iter().filter(|&&i| i == 0).count();
                assert!(scheme != Resampling::Systematic || own == 3);
                assert!(scheme != Resampling::Residual || own >= 3);
            }
            for (count, w) in counts.iter().zip(weights) {
                // A child count has a variance of at most N w.
                let (mean, sd) = (6.0 * w, (6.0 * w / f64::from(rounds)).sqrt());
                assert!((count / f64::from(rounds) - mean).abs() <= 4.0 * sd, "{scheme:?} {counts:?}");
            }
        }
        assert!(Resampling::Stratified.ancestors(&[], &mut rng).is_empty());
        assert_eq!(Resampling::Residual.ancestors(&[1.0], &mut rng), [0]);
    }
}
