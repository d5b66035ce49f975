//! Choosing a response, and measuring the choice.

use ndarray::{ArrayView2, ArrayView3, Axis};
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// What decides between responses of equal score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TieBreak {
    /// The first, as the reference code's argmax.
    #[default]
    First,
    /// The mean of the normalised scores; then the first.
    MeanScore,
}

/// The index of the largest score of each query; of equal scores, the first. NaN is never chosen unless all are.
pub fn best(scores: ArrayView2<'_, f64>) -> Vec<usize> {
    best_by(scores, scores)
}

/// The same, with equal scores decided by a second score.
pub fn best_by(scores: ArrayView2<'_, f64>, second: ArrayView2<'_, f64>) -> Vec<usize> {
    let rows = scores.rows().into_iter().zip(second.rows());
    rows.map(|(scores, second)| {
        let key = |r: usize| (scores[r], second.get(r).copied().unwrap_or(0.0));
        (0..scores.len()).fold(0, |best, r| {
            let (a, b) = (key(r), key(best));
            if a.0 > b.0 || (a.0 == b.0 && a.1 > b.1) || (b.0.is_nan() && !a.0.is_nan()) { r } else { best }
        })
    })
    .collect()
}

/// Mean of each response's scores, `[queries, responses]`: the naive ensemble.
pub fn naive_ensemble(scores: ArrayView3<'_, f64>) -> ndarray::Array2<f64> {
    scores.mean_axis(Axis(2)).unwrap_or_else(|| ndarray::Array2::zeros((scores.dim().0, scores.dim().1)))
}

/// For each query whether the response chosen is right.
///
/// # Errors
/// Another number of choices than queries; a choice that does not exist.
pub fn chosen(labels: ArrayView2<'_, bool>, choices: &[usize]) -> Result<Vec<bool>> {
    if choices.len() != labels.nrows() {
        return Err(SupervisionError::Shape { what: "choices", got: choices.len(), want: labels.nrows() });
    }
    let one = |(query, &choice): (usize, &usize)| {
        labels.get((query, choice)).copied().ok_or(SupervisionError::Shape {
            what: "response",
            got: choice,
            want: labels.ncols(),
        })
    };
    choices.iter().enumerate().map(one).collect()
}

/// Probability that at least one of `k` responses drawn from `n`, of which `c` are right, is right.
///
/// ```
/// use pilotfish_supervision::weaver::pass_at_k;
/// assert!((pass_at_k(10, 3, 5)? - 11.0 / 12.0).abs() < 1e-12);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
///
/// # Errors
/// More right responses than responses; `k` of 0 or above `n`.
pub fn pass_at_k(n: usize, c: usize, k: usize) -> Result<f64> {
    if c > n {
        return Err(SupervisionError::Shape { what: "right responses", got: c, want: n });
    }
    if k == 0 || k > n {
        return Err(SupervisionError::Shape { what: "k", got: k, want: n });
    }
    if n - c < k {
        return Ok(1.0);
    }
    Ok(1.0 - (n - c + 1..=n).map(|r| 1.0 - k as f64 / r as f64).product::<f64>())
}

/// Verifiers from best to worst by how often their highest score picks a right response: an oracle, for comparison.
pub fn rank_verifiers(scores: ArrayView3<'_, f64>, labels: ArrayView2<'_, bool>) -> Result<Vec<usize>> {
    let accuracy = |verifier: usize| -> Result<f64> {
        let right = chosen(labels, &best(scores.index_axis(Axis(2), verifier)))?;
        Ok(right.iter().filter(|right| **right).count() as f64)
    };
    let accuracies = (0..scores.dim().2).map(accuracy).collect::<Result<Vec<_>>>()?;
    let mut order: Vec<usize> = (0..accuracies.len()).collect();
    order.sort_by(|&a, &b| accuracies[b].total_cmp(&accuracies[a]));
    Ok(order)
}

/// Clusters of queries by difficulty: `key` descending, cut into parts of about equal size; equal keys stay together,
/// so there may be fewer clusters than asked for.
///
/// Without labels, the number of distinct answers of a query is a good key; with them (an oracle), the share of wrong
/// responses.
///
/// ```
/// use pilotfish_supervision::weaver::clusters;
/// assert_eq!(clusters(&[1.0, 5.0, 5.0, 2.0], 2)?, [vec![1, 2], vec![3, 0]]);
/// assert_eq!(clusters(&[5.0, 5.0, 5.0, 2.0], 2)?, [vec![0, 1, 2], vec![3]]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
///
/// # Errors
/// No queries, no clusters, a key that is NaN.
pub fn clusters(keys: &[f64], count: usize) -> Result<Vec<Vec<usize>>> {
    if keys.is_empty() || count == 0 {
        return Err(SupervisionError::Empty { what: "queries to cluster" });
    }
    if let Some(index) = keys.iter().position(|key| key.is_nan()) {
        return Err(SupervisionError::NotFinite { what: "key", index });
    }
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
    let mut out = Vec::new();
    let mut start = 0;
    for part in 1..=count {
        let mut end = (part * keys.len()).div_ceil(count).max(start);
        while end > start && end < keys.len() && keys[order[end]] == keys[order[end - 1]] {
            end += 1;
        }
        if end > start {
            out.push(order[start..end].to_vec());
        }
        start = end;
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn unbiased_pass_at_k_by_hand() {
        let near = |n, c, k, want: f64| assert!((pass_at_k(n, c, k).unwrap() - want).abs() < 1e-6);
        near(10, 3, 1, 0.3);
        near(10, 3, 5, 0.916667);
        near(100, 1, 10, 0.1);
        near(10, 6, 5, 1.0);
        near(10, 0, 5, 0.0);
        assert!(pass_at_k(3, 4, 1).is_err() && pass_at_k(3, 1, 0).is_err() && pass_at_k(3, 1, 4).is_err());
    }

    #[test]
    fn ties_take_the_first_or_the_second_score() {
        let scores = array![[0.5, 0.7, 0.7], [f64::NAN, 0.1, 0.0]];
        assert_eq!(best(scores.view()), [1, 1]);
        assert_eq!(best_by(scores.view(), array![[0.0, 0.1, 0.2], [0.0, 0.0, 0.0]].view()), [2, 1]);
    }

    #[test]
    fn choices_are_checked() {
        let labels = array![[true, false]];
        assert_eq!(chosen(labels.view(), &[0]).unwrap(), [true]);
        assert!(chosen(labels.view(), &[2]).is_err() && chosen(labels.view(), &[]).is_err());
    }

    #[test]
    fn clusters_cover_every_query_once() {
        let keys: Vec<f64> = (0..17).map(|i| f64::from(i % 5)).collect();
        for count in 1..8 {
            let mut all = clusters(&keys, count).unwrap().concat();
            all.sort_unstable();
            assert_eq!(all, (0..17).collect::<Vec<_>>());
        }
        assert!(
            clusters(&[f64::NAN], 1).is_err() && clusters(&[], 1).is_err() && clusters(&[1.0], 0).is_err()
        );
    }

    #[test]
    fn verifiers_are_ranked_by_what_they_choose() {
        let labels = array![[true, false], [false, true]];
        let scores = ndarray::Array3::from_shape_fn((2, 2, 2), |(q, r, v)| match v {
            0 => 0.0,
            _ => f64::from(u8::from(labels[[q, r]])),
        });
        assert_eq!(rank_verifiers(scores.view(), labels.view()).unwrap(), [1, 0]);
    }
}
