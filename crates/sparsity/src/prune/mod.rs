//! Pruners of one matrix: which weights go, and what becomes of those that stay.
//!
//! [`prune`] takes a matrix, the [`Statistics`] of its inputs and a [`Pruner`], and gives the pruned matrix.
//! [`sequential`](crate::sequential) does so layer by layer through a network.

mod dsnot;
mod mask;
mod scores;
mod sparse_gpt;

use std::str::FromStr;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use serde::{Deserialize, Serialize};

pub use dsnot::{Dsnot, Refined, RowRefined, Skip, refine, refine_row};
pub use mask::{Mask, Scope, verify};
pub use scores::{magnitude, wanda};
pub use sparse_gpt::{SparseGpt, Swept};

use crate::error::finite;
use crate::{Pattern, Result, SparsityError, Statistics};

/// How the first mask is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The smallest weights go.
    Magnitude,
    /// The smallest products of weight and input norm go.
    Wanda,
    /// Optimal brain surgery, column by column; the other weights make up for those that go.
    SparseGpt,
}

/// The names of pruners.
pub const PRUNERS: &[&str] =
    &["magnitude", "wanda", "sparsegpt", "magnitude+dsnot", "wanda+dsnot", "sparsegpt+dsnot", "dsnot"];

/// A pruning method: a first mask, and whether DSnoT rearranges it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pruner {
    /// The first mask.
    pub start: Start,
    /// SparseGPT's parameters; also behind its scores where DSnoT starts from them.
    pub sparse_gpt: SparseGpt,
    /// DSnoT's parameters, if it follows.
    pub dsnot: Option<Dsnot>,
}

impl Pruner {
    /// A method with its default parameters.
    pub fn new(start: Start, dsnot: bool) -> Self {
        Self { start, sparse_gpt: SparseGpt::default(), dsnot: dsnot.then(Dsnot::default) }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match (self.start, &self.dsnot) {
            (Start::Magnitude, None) => "magnitude",
            (Start::Magnitude, Some(_)) => "magnitude+dsnot",
            (Start::Wanda, None) => "wanda",
            (Start::Wanda, Some(_)) => "wanda+dsnot",
            (Start::SparseGpt, None) => "sparsegpt",
            (Start::SparseGpt, Some(_)) => "sparsegpt+dsnot",
        }
    }

    /// Whether it cannot do without `H`.
    pub fn needs_hessian(&self) -> bool {
        self.start == Start::SparseGpt
    }

    /// Checks all parameters.
    ///
    /// # Errors
    /// One that is outside its range.
    pub fn check(&self) -> Result<()> {
        self.sparse_gpt.check()?;
        self.dsnot.as_ref().map_or(Ok(()), Dsnot::check)
    }
}

impl FromStr for Pruner {
    type Err = SparsityError;

    /// A method by name: `dsnot` alone starts from Wanda.
    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "magnitude" => Self::new(Start::Magnitude, false),
            "wanda" => Self::new(Start::Wanda, false),
            "sparsegpt" => Self::new(Start::SparseGpt, false),
            "magnitude+dsnot" => Self::new(Start::Magnitude, true),
            "wanda+dsnot" | "dsnot" => Self::new(Start::Wanda, true),
            "sparsegpt+dsnot" => Self::new(Start::SparseGpt, true),
            _ => return Err(SparsityError::unknown("pruner", name, PRUNERS.iter().copied())),
        })
    }
}

/// A pruned matrix.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// Weights `[outs, ins]`, row-major, with zeros.
    pub weights: Vec<f32>,
    /// What was removed.
    pub mask: Mask,
    /// What it costs.
    pub report: LayerReport,
}

/// What pruning did to one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The matrix' name.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Share of weights that are zero.
    pub sparsity: f64,
    /// `||(W' - W) X^T||^2 / ||W X^T||^2` over the calibration inputs, if `H` was gathered.
    pub error: Option<f64>,
    /// The same for the mean output: `||(W' - W) m||^2 / ||W m||^2` with `m` the mean input. This is what DSnoT
    /// lowers.
    pub mean_error: f64,
    /// Swaps that DSnoT made.
    pub swaps: usize,
    /// Seconds it took, statistics excluded.
    pub seconds: f64,
}

/// Prunes a matrix `[outs, ins]`, row-major, by the statistics of its inputs. `refine` says whether DSnoT, where
/// the pruner has it, is to touch this matrix.
///
/// # Errors
/// Weights that are not finite or do not fill the shape, statistics of another width or of nothing, a pattern that
/// does not fit, parameters outside their range, a Hessian that is missing or has no factor.
pub fn prune(
    name: &str,
    weights: &[f32],
    shape: [usize; 2],
    statistics: &Statistics,
    pattern: Pattern,
    pruner: &Pruner,
    refine_it: bool,
) -> Result<Pruned> {
    let [outs, ins] = shape;
    let clock = std::time::Instant::now();
    pruner.check()?;
    pattern.fits(ins)?;
    statistics.seen(name)?;
    for (what, got, want) in [
        (format!("{name}: weights"), weights.len(), outs * ins),
        (format!("{name}: statistics"), statistics.inputs(), ins),
    ] {
        if got != want {
            return Err(SparsityError::Shape { what, got, want });
        }
    }
    finite(name, weights)?;
    let refined = pruner.dsnot.as_ref().filter(|_| refine_it && pattern != Pattern::Dense);
    let mut swaps = 0;
    let (new, mask) = match (pruner.start, refined) {
        _ if pattern == Pattern::Dense => (weights.to_vec(), Mask::dense(shape)),
        (Start::SparseGpt, None) => {
            let swept = pruner.sparse_gpt.sweep(name, weights, shape, statistics, pattern)?;
            (swept.weights, swept.mask)
        }
        (start, refined) => {
            let (scores, scope) = match start {
                Start::Magnitude => (magnitude(weights), Scope::Matrix),
                Start::Wanda => (wanda(weights, shape, statistics), Scope::Row),
                Start::SparseGpt => {
                    (pruner.sparse_gpt.saliency(name, weights, shape, statistics)?, Scope::Row)
                }
            };
            match refined {
                Some(dsnot) => {
                    // DSnoT works row by row, and so starts from rows of equal sparsity.
                    let start = Mask::smallest(&scores, shape, pattern, Scope::Row)?;
                    masked(weights, statistics, &start, &scores, pattern, dsnot, &mut swaps)?
                }
                None => {
                    let mask = Mask::smallest(&scores, shape, pattern, scope)?;
                    let mut new = weights.to_vec();
                    mask.apply(&mut new)?;
                    (new, mask)
                }
            }
        }
    };
    let seconds = clock.elapsed().as_secs_f64();
    let report = LayerReport {
        name: name.into(),
        shape,
        sparsity: new.iter().filter(|weight| **weight == 0.0).count() as f64 / new.len().max(1) as f64,
        error: reconstruction_error(weights, &new, shape, statistics),
        mean_error: mean_error(weights, &new, statistics),
        swaps,
        seconds,
    };
    Ok(Pruned { weights: new, mask, report })
}

fn masked(
    weights: &[f32],
    statistics: &Statistics,
    start: &Mask,
    scores: &[f64],
    pattern: Pattern,
    dsnot: &Dsnot,
    swaps: &mut usize,
) -> Result<(Vec<f32>, Mask)> {
    let out = refine(weights, statistics, start, scores, pattern, dsnot)?;
    *swaps = out.swaps;
    let mut new = weights.to_vec();
    out.mask.apply(&mut new)?;
    Ok((new, out.mask))
}

/// `tr(D H D^T) / tr(W H W^T)` with `D = new - old`; `None` without `H`, 0 where both vanish.
pub fn reconstruction_error(
    old: &[f32],
    new: &[f32],
    [outs, ins]: [usize; 2],
    statistics: &Statistics,
) -> Option<f64> {
    let h = statistics.hessian()?;
    let energy = |of: &dyn Fn(usize) -> f64| {
        let d = Mat::from_fn(outs, ins, |i, j| of(i * ins + j));
        let mut product = Mat::zeros(outs, ins);
        matmul(product.as_mut(), Accum::Replace, d.as_ref(), h.as_ref(), 1.0, Par::Seq);
        let mut sum = 0.0;
        for j in 0..ins {
            for i in 0..outs {
                sum += product[(i, j)] * d[(i, j)];
            }
        }
        sum.max(0.0)
    };
    let error = energy(&|at| f64::from(new[at]) - f64::from(old[at]));
    let whole = energy(&|at| f64::from(old[at]));
    Some(if whole > 0.0 { error / whole } else { error })
}

/// The same of the mean output.
pub fn mean_error(old: &[f32], new: &[f32], statistics: &Statistics) -> f64 {
    let sum = statistics.sum();
    let (mut error, mut whole) = (0.0, 0.0);
    for (old, new) in old.chunks_exact(sum.len().max(1)).zip(new.chunks_exact(sum.len().max(1))) {
        let (mut e, mut w) = (0.0, 0.0);
        for ((&old, &new), &sum) in old.iter().zip(new).zip(&sum) {
            e += (f64::from(new) - f64::from(old)) * sum;
            w += f64::from(old) * sum;
        }
        error += e * e;
        whole += w * w;
    }
    if whole > 0.0 { error / whole } else { error }
}
