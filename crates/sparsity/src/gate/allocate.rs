use serde::{Deserialize, Serialize};

use crate::{Result, SparsityError};

/// How sparsity is shared out among the matrices of a layer: TEAL's block-wise greedy search.
///
/// ```text
/// d_p = step / w_p: every step removes the same number of weights; s_p = 0
/// while sum w_p s_p / sum w_p < most:
///   e_p = error of the layer with s_p + d_p, for each p with s_p < 1
///   s_p += d_p for the smallest e_p (of equal ones the first)
///   note the effective sparsity, the error, and that of a uniform layer of this sparsity
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greedy {
    /// Effective sparsity at which it stops; 0.66 in WINA's code, 0.9 in TEAL's.
    pub most: f64,
    /// Share of the first matrix that a step removes; 0.025 in WINA's code, 0.05 in TEAL's.
    pub step: f64,
}

impl Default for Greedy {
    fn default() -> Self {
        Self { most: 0.66, step: 0.025 }
    }
}

/// A row of the search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// Share of the layer's weights that are skipped.
    pub effective: f64,
    /// Error of the layer.
    pub error: f64,
    /// Error of the layer when every matrix has the effective sparsity.
    pub uniform: f64,
    /// Sparsity of each matrix.
    pub sparsities: Vec<f64>,
}

/// Searches. `weights` are the sizes of the matrices in units of the first; `error` gives the layer's error for given
/// sparsities. Returns a row a step, of growing effective sparsity.
///
/// # Errors
/// Parameters outside their range; whatever `error` refuses.
pub fn greedy(
    config: &Greedy,
    weights: &[f64],
    mut error: impl FnMut(&[f64]) -> Result<f64>,
) -> Result<Vec<Allocation>> {
    if !(config.most > 0.0 && config.most <= 1.0) {
        return Err(SparsityError::parameter("most", config.most, "above 0, at most 1"));
    }
    if !(config.step > 0.0 && config.step.is_finite()) {
        return Err(SparsityError::parameter("step", config.step, "above 0"));
    }
    if weights.is_empty() || weights.iter().any(|weight| !(*weight > 0.0 && weight.is_finite())) {
        return Err(SparsityError::parameter("weights", weights.len(), "sizes above 0, at least one"));
    }
    let total: f64 = weights.iter().sum();
    let effective = |s: &[f64]| weights.iter().zip(s).map(|(w, s)| w * s).sum::<f64>() / total;
    let mut now = vec![0.0; weights.len()];
    let mut rows = Vec::new();
    // A hair below, so that rounding does not add a step.
    while effective(&now) < config.most - 1e-9 && now.iter().any(|s| *s < 1.0) {
        let mut best: Option<(f64, usize)> = None;
        for p in (0..now.len()).filter(|&p| now[p] < 1.0) {
            let mut tried = now.clone();
            tried[p] = (tried[p] + config.step / weights[p]).min(1.0);
            let found = error(&tried)?;
            if best.is_none_or(|(least, _)| found < least) {
                best = Some((found, p));
            }
        }
        let Some((found, p)) = best else { break };
        now[p] = (now[p] + config.step / weights[p]).min(1.0);
        let share = effective(&now);
        let uniform = error(&vec![share; weights.len()])?;
        rows.push(Allocation { effective: share, error: found, uniform, sparsities: now.clone() });
    }
    Ok(rows)
}

impl Allocation {
    /// The row nearest to a sparsity.
    pub fn nearest(rows: &[Self], sparsity: f64) -> Option<&Self> {
        let away = |row: &&Self| (row.effective - sparsity).abs();
        rows.iter().min_by(|a, b| away(a).total_cmp(&away(b)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn steps_remove_equal_numbers_of_weights() {
        // The second matrix is twice as large and costs nothing until it is half gone.
        let weights = [1.0, 2.0];
        let error = |s: &[f64]| Ok(s[0] + 10.0 * (s[1] - 0.5).max(0.0));
        let rows = greedy(&Greedy { most: 0.5, step: 0.2 }, &weights, error).unwrap();
        let effective: Vec<f64> = rows.iter().map(|row| row.effective).collect();
        effective.windows(2).for_each(|pair| assert!((pair[1] - pair[0] - 0.2 / 3.0).abs() < 1e-12));
        // 0.2 of 3 a step; the large one takes 0.1 of itself a step, five times, before the small one is touched.
        assert!(rows[4].sparsities[0] == 0.0 && (rows[4].sparsities[1] - 0.5).abs() < 1e-12);
        assert!(rows.iter().all(|row| row.error <= row.uniform + 1e-12));
        let last = rows.last().unwrap();
        assert!((last.effective - 0.5333).abs() < 1e-3, "{last:?}");
        assert_eq!(Allocation::nearest(&rows, 0.21).unwrap(), &rows[2]);
    }

    #[test]
    fn ties_take_the_first_and_ends_are_ends() {
        let rows = greedy(&Greedy { most: 1.0, step: 0.6 }, &[1.0, 1.0], |_| Ok(0.0)).unwrap();
        let all: Vec<_> = rows.iter().map(|row| row.sparsities.clone()).collect();
        assert_eq!(all, [vec![0.6, 0.0], vec![1.0, 0.0], vec![1.0, 0.6], vec![1.0, 1.0]]);
        let zero = |_: &[f64]| Ok(0.0);
        for (most, step) in [(0.0, 0.1), (f64::NAN, 0.1), (1.1, 0.1), (0.5, 0.0), (0.5, f64::NAN)] {
            assert!(greedy(&Greedy { most, step }, &[1.0], zero).is_err());
        }
        assert!(greedy(&Greedy::default(), &[], zero).is_err());
        assert!(greedy(&Greedy::default(), &[1.0, f64::NAN], zero).is_err());
    }
}
