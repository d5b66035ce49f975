use statrs::distribution::{ChiSquared, ContinuousCDF};

/// A comparison of counts with a law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// `2 sum O ln(O / E)`, or the sum of `(O - E)^2 / E`.
    pub statistic: f64,
    /// Degrees of freedom.
    pub freedom: usize,
    /// Probability of a statistic at least this large if the counts follow the law.
    pub p_value: f64,
}

/// The G test of counts against probabilities, outcome by outcome. Outcomes expected fewer than 5 times are
/// counted together. A count where the law has no mass gives a p-value of 0.
pub fn g_test(counts: &[u64], law: &[f64]) -> Fit {
    fit(counts, law, |seen, expected| if seen > 0.0 { 2.0 * seen * (seen / expected).ln() } else { 0.0 })
}

/// Pearson's chi-squared test, as [`g_test`].
pub fn chi_squared(counts: &[u64], law: &[f64]) -> Fit {
    fit(counts, law, |seen, expected| (seen - expected).powi(2) / expected)
}

fn fit(counts: &[u64], law: &[f64], cell: impl Fn(f64, f64) -> f64) -> Fit {
    let n: u64 = counts.iter().sum();
    let (mut statistic, mut cells, mut impossible) = (0.0, 0usize, false);
    let (mut rare_seen, mut rare_expected) = (0.0, 0.0);
    for (&count, &prob) in counts.iter().zip(law) {
        let (seen, expected) = (count as f64, prob * n as f64);
        if prob <= 0.0 {
            impossible |= count > 0;
        } else if expected < 5.0 {
            rare_seen += seen;
            rare_expected += expected;
        } else {
            statistic += cell(seen, expected);
            cells += 1;
        }
    }
    if rare_expected > 0.0 {
        statistic += cell(rare_seen, rare_expected);
        cells += 1;
    }
    let freedom = cells.saturating_sub(1);
    let p_value = match ChiSquared::new(freedom as f64) {
        _ if impossible => 0.0,
        Ok(law) => law.sf(statistic),
        Err(_) => 1.0,
    };
    Fit { statistic, freedom, p_value }
}

/// Holm's procedure: which of several hypotheses are rejected so that the probability of rejecting any true one
/// is at most `alpha`.
pub fn holm(p_values: &[f64], alpha: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut rejected = vec![false; p_values.len()];
    for (rank, &index) in order.iter().enumerate() {
        if !(p_values[index] <= alpha / (p_values.len() - rank) as f64) {
            break;
        }
        rejected[index] = true;
    }
    rejected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_tables() {
        // Upper 0.001 points: 16.27 (3), 24.32 (7), 103.4 (63).
        for (freedom, limit) in [(3.0, 16.266), (7.0, 24.322), (63.0, 103.442)] {
            let p = ChiSquared::new(freedom).expect("valid").sf(limit);
            assert!((p - 0.001).abs() < 1e-5, "{freedom}: {p}");
        }
    }

    #[test]
    fn tests_by_hand() {
        // 60 and 40 of 100 against halves: chi-squared 4, G = 2 (60 ln 1.2 + 40 ln 0.8).
        let fit = chi_squared(&[60, 40], &[0.5, 0.5]);
        assert_eq!((fit.statistic, fit.freedom), (4.0, 1));
        assert!((fit.p_value - 0.0455).abs() < 1e-4);
        let fit = g_test(&[60, 40], &[0.5, 0.5]);
        assert!((fit.statistic - 2.0 * (60.0 * 1.2f64.ln() + 40.0 * 0.8f64.ln())).abs() < 1e-12);
        assert_eq!(g_test(&[1, 99], &[0.0, 1.0]).p_value, 0.0, "the impossible happened");
        // Two rare outcomes are one cell.
        assert_eq!(chi_squared(&[98, 1, 1], &[0.98, 0.01, 0.01]).freedom, 1);
        assert_eq!(chi_squared(&[10], &[1.0]).p_value, 1.0);
    }

    #[test]
    fn holm_by_hand() {
        // 0.05 / 4 = 0.0125, / 3 = 0.0167, / 2 = 0.025: the third fails, and with it the fourth.
        assert_eq!(holm(&[0.04, 0.01, 0.03, 0.015], 0.05), [false, true, false, true]);
        assert_eq!(holm(&[0.02, 0.001], 0.05), [true, true]);
        assert_eq!(holm(&[f64::NAN, 0.9], 0.05), [false, false]);
    }
}
