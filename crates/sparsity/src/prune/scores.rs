//! Magnitude and Wanda: scores of weights; the smallest go.
//!
//! 1. Magnitude: `|W_ij|`, over a whole matrix at once.
//! 2. Wanda: `|W_ij| sqrt(scaler_j)`, within each output's row; the inputs' norms say how much a weight matters.
//! 3. N:M patterns: within each group of M consecutive inputs of a row, for both.
//!
//! No weight is changed.
//!
//! **Deviations.** The published code of magnitude pruning removes every weight at or below the value at rank
//! `floor(n s)`: one more than asked, and all ties. Here exactly `floor(n s)` go, ties by lower index first, so that
//! methods are compared at one sparsity; weights that were quantised have many ties. Wanda's variant with a
//! threshold on cumulated metric is not here.
//!
//! Cost: `O(outs ins)`, and a selection.
//!
//! References: Wanda, arXiv 2306.11695; locuslab/wanda `lib/prune.py`.
//!
//! ```
//! use pilotfish_sparsity::{Mask, Pattern, Scope, Statistics, magnitude, wanda};
//! let w = [1.0, -2.0, 0.5, 0.1];
//! let inputs = Statistics::given(&[1.0, 0.01, 9.0, 400.0], &[0.0; 4], &[0.0; 4], None)?;
//! let half = Pattern::Unstructured { sparsity: 0.5 };
//! let by_norm = Mask::smallest(&wanda(&w, [1, 4], &inputs), [1, 4], half, Scope::Row)?;
//! assert_eq!(by_norm.row(0), [true, true, false, false]);
//! let by_size = Mask::smallest(&magnitude(&w), [1, 4], half, Scope::Matrix)?;
//! assert_eq!(by_size.row(0), [false, false, true, true]);
//! # Ok::<(), pilotfish_sparsity::SparsityError>(())
//! ```

use crate::Statistics;

/// `|W|`.
pub fn magnitude(weights: &[f32]) -> Vec<f64> {
    weights.iter().map(|&weight| f64::from(weight.abs())).collect()
}

/// `|W_ij| sqrt(scaler_j)` of a matrix `[outs, ins]`.
pub fn wanda(weights: &[f32], [_, ins]: [usize; 2], statistics: &Statistics) -> Vec<f64> {
    let norms: Vec<f64> = statistics.scaler().into_iter().map(f64::sqrt).collect();
    weights.iter().enumerate().map(|(at, &weight)| f64::from(weight.abs()) * norms[at % ins.max(1)]).collect()
}
