//! Label propagation: labels flow along a graph of similar items until they stand still.
//!
//! A baseline of AutoWS-Bench-101: labelled and test items are the nodes, and the weight of an edge falls with distance.
//!
//! # Algorithm
//!
//! 1. `W[i,j] = exp(-gamma |x_i - x_j|^2)` for all pairs, i = j included; `P` = W with rows divided by their sums.
//! 2. `Y` = one-hot labels; 0 on test items. Repeat `Y <- P Y`, rows divided by their sums, labelled rows set back, until the sum
//!    of changes is below 1e-3, 1000 times at most.
//!
//! In the limit `Y_u = (I - P_uu)^-1 P_ul Y_l`.
//!
//! | parameter | default | source |
//! |---|---|---|
//! | gamma | chosen from 0.01, 0.1, 0.5, 1, 5, 10, 20 | code |
//! | tolerance, iterations | 1e-3, 1000 | scikit-learn; code |
//! | folds | 5 | ours |
//!
//! **Deviations.** The code chooses gamma by accuracy on the test items; here by cross-validation on the labelled items alone
//! ([`choose_gamma`]; the smallest of equal ones). Items that no label reaches in floating point are class 0 in scikit-learn;
//! here they have no label, so that coverage shows it.
//!
//! Cost: O(n^2 (d + iterations C)). References: Zhu and Ghahramani 2002; scikit-learn, `LabelPropagation`.
//!
//! ```
//! use pilotfish_supervision::autows::propagation::{PropagationConfig, propagate};
//! let (labelled, test) = (ndarray::array![[0.0], [2.0]], ndarray::array![[0.8]]);
//! let p = propagate(labelled.view(), &[0, 1], 2, test.view(), 1.0, &PropagationConfig::default())?;
//! assert!((p[[0, 0]] - 0.689974).abs() < 1e-3);
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

use ndarray::{Array1, Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use super::check;
use super::function::first_max;
use crate::{Result, SupervisionError};

/// When the iteration ends, and what gamma is chosen from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PropagationConfig {
    /// Values to choose from, ascending.
    pub gammas: Vec<f64>,
    /// Folds of the cross-validation.
    pub folds: usize,
    /// Sum of changes below which it ends.
    pub tolerance: f64,
    /// Iterations at most.
    pub iterations: usize,
}

impl Default for PropagationConfig {
    fn default() -> Self {
        let gammas = vec![0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0];
        Self { gammas, folds: 5, tolerance: 1e-3, iterations: 1000 }
    }
}

impl PropagationConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<()> {
        if let Some(&value) = self.gammas.iter().find(|gamma| !(**gamma > 0.0 && gamma.is_finite())) {
            return Err(SupervisionError::BadParameter { name: "gamma", value, want: "above 0 and finite" });
        }
        if !(self.tolerance >= 0.0) {
            let (name, value) = ("tolerance", self.tolerance);
            return Err(SupervisionError::BadParameter { name, value, want: "at least 0" });
        }
        if self.folds < 2 || self.iterations == 0 || self.gammas.is_empty() {
            let name = "folds, iterations and gammas";
            return Err(SupervisionError::BadParameter { name, value: 0.0, want: "2, 1 and 1 or more" });
        }
        Ok(())
    }
}

/// Probabilities of classes of the test items, `[items, classes]`; a row of zeros where no label arrives.
///
/// # Errors
/// No items or features, lengths that differ, features that are not finite, a label that is not below `classes`; parameters
/// outside their ranges.
pub fn propagate(
    labelled: ArrayView2<'_, f64>,
    y: &[usize],
    classes: usize,
    test: ArrayView2<'_, f64>,
    gamma: f64,
    config: &PropagationConfig,
) -> Result<Array2<f64>> {
    check(labelled, y, classes, test)?;
    config.check()?;
    if !(gamma > 0.0 && gamma.is_finite()) {
        return Err(SupervisionError::BadParameter {
            name: "gamma",
            value: gamma,
            want: "above 0 and finite",
        });
    }
    let to_labelled = distances(test, labelled).mapv(|d| (-gamma * d).exp());
    let mut to_test = distances(test, test).mapv(|d| (-gamma * d).exp());
    let mut start: Array2<f64> = Array2::zeros((test.nrows(), classes));
    for item in 0..test.nrows() {
        let sum = to_labelled.row(item).sum() + to_test.row(item).sum();
        to_test.row_mut(item).mapv_inplace(|w| w / sum);
        y.iter().zip(to_labelled.row(item)).for_each(|(class, w)| start[[item, *class]] += w / sum);
    }
    let mut now = Array2::zeros(start.raw_dim());
    for _ in 0..config.iterations {
        let mut next = &start + &to_test.dot(&now);
        for mut row in next.rows_mut() {
            let sum = row.sum();
            if sum > 0.0 {
                row.mapv_inplace(|p| p / sum);
            }
        }
        let moved: f64 = (&next - &now).iter().map(|x| x.abs()).sum();
        now = next;
        if moved < config.tolerance {
            break;
        }
    }
    Ok(now)
}

/// The most probable class of every row, the first of equal ones; `None` for a row of zeros.
pub fn labels(probabilities: ArrayView2<'_, f64>) -> Vec<Option<usize>> {
    let top = |row: ndarray::ArrayView1<'_, f64>| {
        let (class, p) = first_max(row.iter().copied());
        (p > 0.0).then_some(class)
    };
    probabilities.rows().into_iter().map(top).collect()
}

/// The gamma of the most right labels in cross-validation among the labelled items; item i is in fold `i mod folds`, so the
/// order should be random.
///
/// # Errors
/// As [`propagate`].
pub fn choose_gamma(
    x: ArrayView2<'_, f64>,
    y: &[usize],
    classes: usize,
    config: &PropagationConfig,
) -> Result<f64> {
    check(x, y, classes, x)?;
    config.check()?;
    let mut best = (None, config.gammas[0]);
    for &gamma in &config.gammas {
        let mut right = 0;
        for fold in 0..config.folds.min(y.len()) {
            let (held, kept): (Vec<usize>, Vec<usize>) = (0..y.len()).partition(|i| i % config.folds == fold);
            if held.is_empty() || kept.is_empty() {
                continue;
            }
            let train: Vec<usize> = kept.iter().map(|i| y[*i]).collect();
            let (known, asked) = (x.select(Axis(0), &kept), x.select(Axis(0), &held));
            let p = propagate(known.view(), &train, classes, asked.view(), gamma, config)?;
            right += labels(p.view()).iter().zip(&held).filter(|(label, i)| **label == Some(y[**i])).count();
        }
        if best.0.is_none_or(|most| right > most) {
            best = (Some(right), gamma);
        }
    }
    Ok(best.1)
}

/// Squared distances between rows.
fn distances(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    let squares =
        |x: ArrayView2<'_, f64>| -> Array1<f64> { x.rows().into_iter().map(|row| row.dot(&row)).collect() };
    let (aa, bb) = (squares(a), squares(b));
    let mut out = a.dot(&b.t());
    out.indexed_iter_mut().for_each(|((i, j), d)| *d = (aa[i] + bb[j] - 2.0 * *d).max(0.0));
    out
}
