//! SparseGPT: columns are pruned from left to right, and the weights to the right of each make up for it as well as
//! they can in least squares.
//!
//! ```text
//! 1. H = (2/S) sum X^T X; where H_jj = 0 the input is dead: H_jj = 1, W_:j = 0
//! 2. H += damping mean(diag H) I;  U upper with H^-1 = U^T U
//! 3. for each block of columns [i1, i2):
//!      unstructured: of the scores W^2 / U_jj^2 of the block's tile the floor(tile s) smallest go
//!      for i in i1..i2:
//!        N:M: when (i - i1) mod M = 0, of columns i..i+M the M - N smallest W^2 / U_jj^2 of each row go
//!        q = W_:i, zeroed where pruned;  err = (W_:i - q) / U_ii
//!        W_:[i, i2) -= err U_i,[i, i2);  loss += err^2 / 2
//!      W_:[i2, n) -= Err U_[i1, i2),[i2, n)
//! ```
//!
//! | parameter | default | source |
//! |---|---|---|
//! | `damping` | 0.01 | sparsegpt.py, `percdamp` |
//! | `block` | 128 | sparsegpt.py, `blocksize` |
//!
//! `U_ii^2` is the first diagonal entry of `(H_[i,n),[i,n))^-1`, so the score is what the removal costs when the
//! columns left of `i` are frozen. Weights left of a pruned one never change: the result is the least-squares optimum
//! only if all kept weights lie to the right of all pruned ones.
//!
//! **Deviations.** Exactly `floor(tile s)` weights of a tile go, ties by lower index (row, then column), where the
//! published code removes all at or below the value of that rank. Arithmetic is in f64. `U` is found without
//! inverting `H`: with `J` the reversal, `J H J = L L^T` gives `U = J L^-1 J`, which takes one Cholesky factorisation
//! and one triangular inverse (faer's blocked ones) instead of two factorisations and an inverse.
//!
//! Cost: `2/3 n^3` for the factor, `outs n^2` for the sweep; `8 (n^2 + 2 outs n)` bytes.
//!
//! References: SparseGPT, arXiv 2301.00774, algorithm 1; IST-DASLab/sparsegpt `sparsegpt.py`.
//!
//! ```
//! use pilotfish_sparsity::{Pattern, SparseGpt, Statistics};
//! let h = [2.0, 1.0, 1.0, 2.0];
//! let inputs = Statistics::given(&[1.0; 2], &[0.0; 2], &[0.0; 2], Some(&h))?;
//! let gpt = SparseGpt { damping: 0.0, ..SparseGpt::default() };
//! let swept = gpt.sweep("w", &[1.0, 1.0], [1, 2], &inputs, Pattern::Unstructured { sparsity: 0.5 })?;
//! // The second weight takes over half of the first.
//! assert!((swept.weights[1] - 1.5).abs() < 1e-6 && (swept.loss - 0.75).abs() < 1e-9);
//! # Ok::<(), pilotfish_sparsity::SparsityError>(())
//! ```

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Mat, Par, Side};
use serde::{Deserialize, Serialize};

use super::Mask;
use super::mask::mark_smallest;
use crate::{Pattern, Result, SparsityError, Statistics};

/// SparseGPT's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SparseGpt {
    /// Share of the mean diagonal that is added to the diagonal of `H`.
    pub damping: f64,
    /// Columns a block.
    pub block: usize,
}

impl Default for SparseGpt {
    fn default() -> Self {
        Self { damping: 0.01, block: 128 }
    }
}

/// What a sweep leaves.
#[derive(Clone, Debug)]
pub struct Swept {
    /// Updated weights, zeroed where pruned.
    pub weights: Vec<f32>,
    /// What was pruned.
    pub mask: Mask,
    /// `tr(D H D^T) / 2` with the damped `H`, dead inputs left out.
    pub loss: f64,
}

impl SparseGpt {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Damping that is negative or not a number, blocks of nothing.
    pub fn check(&self) -> Result<()> {
        if !(self.damping >= 0.0 && self.damping.is_finite()) {
            return Err(SparsityError::parameter("damping", self.damping, "a number from 0"));
        }
        if self.block == 0 {
            return Err(SparsityError::parameter("block", 0, "at least 1"));
        }
        Ok(())
    }

    /// The upper factor `U` of `H^-1 = U^T U`, and which inputs are dead.
    fn factor(&self, name: &str, statistics: &Statistics) -> Result<(Mat<f64>, Vec<bool>)> {
        self.check()?;
        statistics.seen(name)?;
        let n = statistics.inputs();
        let Some(mut h) = statistics.hessian() else {
            let why = "SparseGPT needs statistics with products of inputs".into();
            return Err(SparsityError::Structure { what: name.into(), why });
        };
        let dead: Vec<bool> = (0..n).map(|j| h[(j, j)] == 0.0).collect();
        (0..n).filter(|&j| dead[j]).for_each(|j| h[(j, j)] = 1.0);
        let mean = (0..n).map(|j| h[(j, j)]).sum::<f64>() / n.max(1) as f64;
        (0..n).for_each(|j| h[(j, j)] += self.damping * mean);
        let flipped = Mat::from_fn(n, n, |i, j| h[(n - 1 - i, n - 1 - j)]);
        let singular = || SparsityError::Singular { what: name.into(), inputs: n, damping: self.damping };
        let lower = flipped.llt(Side::Lower).map_err(|_| singular())?;
        let mut inverse = Mat::<f64>::zeros(n, n);
        invert_lower_triangular(inverse.as_mut(), lower.L(), Par::Seq);
        let upper = Mat::from_fn(n, n, |i, j| if i <= j { inverse[(n - 1 - i, n - 1 - j)] } else { 0.0 });
        if (0..n).any(|i| !(upper[(i, i)] > 0.0 && upper[(i, i)].is_finite())) {
            return Err(singular());
        }
        Ok((upper, dead))
    }

    /// Scores `W_ij^2 / U_jj^2` of the weights as they are: a metric for masks.
    ///
    /// # Errors
    /// As [`SparseGpt::sweep`].
    pub fn saliency(
        &self,
        name: &str,
        weights: &[f32],
        [outs, ins]: [usize; 2],
        statistics: &Statistics,
    ) -> Result<Vec<f64>> {
        let (upper, dead) = self.factor(name, statistics)?;
        let score = |at: usize| {
            let (j, weight) = (at % ins, f64::from(weights[at]));
            if dead[j] { 0.0 } else { (weight / upper[(j, j)]).powi(2) }
        };
        Ok((0..outs * ins).map(score).collect())
    }

    /// Prunes a matrix `[outs, ins]`, row-major.
    ///
    /// # Errors
    /// Statistics without `H` or of nothing, a pattern that does not fit or whose groups do not divide a block, an `H`
    /// that is not positive definite when damped.
    pub fn sweep(
        &self,
        name: &str,
        weights: &[f32],
        [outs, ins]: [usize; 2],
        statistics: &Statistics,
        pattern: Pattern,
    ) -> Result<Swept> {
        pattern.fits(ins)?;
        if let Pattern::Grouped { group, .. } = pattern
            && self.block % group != 0
        {
            return Err(SparsityError::parameter("block", self.block, "a multiple of the pattern's groups"));
        }
        let (upper, dead) = self.factor(name, statistics)?;
        // Row-major, one row of work after another.
        let mut w: Vec<f64> = weights.iter().map(|&weight| f64::from(weight)).collect();
        w.iter_mut().enumerate().filter(|(at, _)| dead[at % ins]).for_each(|(_, weight)| *weight = 0.0);
        let mut mask = Mask::dense([outs, ins]);
        let mut loss = 0.0;
        for start in (0..ins).step_by(self.block) {
            let end = (start + self.block).min(ins);
            let width = end - start;
            if let Pattern::Unstructured { sparsity } = pattern {
                let score = |at: usize| {
                    let (row, j) = (at / width, start + at % width);
                    (w[row * ins + j] / upper[(j, j)]).powi(2)
                };
                let scores: Vec<f64> = (0..outs * width).map(score).collect();
                let mut pruned = vec![false; scores.len()];
                mark_smallest(&scores, Pattern::zeros(sparsity, scores.len()), &mut pruned);
                for (row, pruned) in pruned.chunks_exact(width).enumerate() {
                    mask.row_mut(row)[start..end].copy_from_slice(pruned);
                }
            }
            let mut errors = Mat::<f64>::zeros(outs, width);
            for row in 0..outs {
                let w = &mut w[row * ins..(row + 1) * ins];
                for i in start..end {
                    if let Pattern::Grouped { keep, group } = pattern
                        && (i - start) % group == 0
                    {
                        let scores: Vec<f64> =
                            (i..i + group).map(|j| (w[j] / upper[(j, j)]).powi(2)).collect();
                        mark_smallest(&scores, group - keep, &mut mask.row_mut(row)[i..i + group]);
                    }
                    if !mask.pruned(row, i) {
                        continue;
                    }
                    let error = w[i] / upper[(i, i)];
                    errors[(row, i - start)] = error;
                    loss += error * error / 2.0;
                    w[i] = 0.0;
                    for j in i + 1..end {
                        w[j] -= error * upper[(i, j)];
                    }
                }
            }
            if end < ins {
                let mut rest = Mat::<f64>::zeros(outs, ins - end);
                let block = upper.as_ref().submatrix(start, end, width, ins - end);
                matmul(rest.as_mut(), Accum::Replace, errors.as_ref(), block, 1.0, Par::Seq);
                for row in 0..outs {
                    for j in end..ins {
                        w[row * ins + j] -= rest[(row, j - end)];
                    }
                }
            }
        }
        let weights = w.into_iter().map(|weight| weight as f32).collect();
        Ok(Swept { weights, mask, loss })
    }
}
