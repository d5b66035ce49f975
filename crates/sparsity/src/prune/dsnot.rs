//! DSnoT: weights stay as they are, the mask is rearranged. Each output's row regrows a pruned weight and prunes a
//! kept one, again and again, so that the mean output of the sparse row moves to that of the dense row.
//!
//! ```text
//! D_ij = W_ij sum_j                              expected contribution, per sequence
//! E    = sum of D_ij over pruned j               > 0: the sparse output is too small
//! g_j  = D_ij / var_j^pow                        of pruned j; ascending order G, two ends
//! R    = kept j by Wanda's metric, those with D < 0 and those with D > 0 apart
//! repeat at most C times, while the row is active:
//!   a = the largest g if E > 0, else the smallest (regrow a weight with the sign of E)
//!   b = the cheapest kept weight with D > 0 if E < 0, else with D < 0 (prune one that moves E to 0)
//!       N:M: the kept weight of a's group with the smallest starting score, each offered once
//!   E' = E + D_b - D_a
//!   stop unless |E| > tau, and, under the same-sign rule, sign E' = sign of the first E
//!   swap: b is pruned, a is kept, E = E'
//! ```
//!
//! | parameter | default | source |
//! |---|---|---|
//! | `cycles` C | 50 | main.py, README |
//! | `threshold` tau | 0.1, in sums over a sequence | README |
//! | `power` of the variance | 1 | README |
//! | `same_sign` | off for unstructured, on for N:M | what the published code does |
//! | `skip` | the MLP keeps its first mask | the published commands |
//!
//! What is lowered is the error of the mean output, not the mean squared error; where inputs have no mean it has
//! nothing to go by. `E` is not monotone: a step may overshoot.
//!
//! **Deviations.** A start from SparseGPT uses `W^2 / U_jj^2` with a Hessian that was really accumulated (the
//! published code leaves it zero, so that the first columns go). Variances are at least `1e-12`; weights whose `D` is 0
//! are no candidates. A row stops when no candidate of the right sign is left, where the published code goes on into
//! the other sign's candidates and can change a row's sparsity. `keep_best` (ours, off) goes back to the smallest `|E|`
//! that was seen. Weights are the dense ones after every start, as published: SparseGPT's updates make up for its own
//! mask and would be wrong for another.
//!
//! Cost: two sorts a row, then `O(C)`: linear time, no gradients.
//!
//! References: arXiv 2310.08915; zyxxmu/DSnoT `lib/prune.py` (`prune_DSnoT`).
//!
//! ```
//! use pilotfish_sparsity::{Dsnot, Mask, Pattern, Statistics, refine, wanda};
//! // Two inputs of mean 1, two of mean -1: pruning both of one kind shifts the output.
//! let (w, shape) = ([0.1, 0.2, 1.0, 1.1], [1, 4]);
//! let inputs = Statistics::given(&[1.0; 4], &[1.0, 1.0, -1.0, 1.0], &[1.0; 4], None)?;
//! let start = Mask::new(shape, vec![true, true, false, false])?;
//! let half = Pattern::Unstructured { sparsity: 0.5 };
//! let out = refine(&w, &inputs, &start, &wanda(&w, shape, &inputs), half, &Dsnot::default())?;
//! assert_eq!(out.mask.row(0).iter().filter(|pruned| **pruned).count(), 2);
//! assert_eq!(out.swaps, 1);
//! # Ok::<(), pilotfish_sparsity::SparsityError>(())
//! ```

use serde::{Deserialize, Serialize};

use super::{Mask, wanda};
use crate::{Pattern, Result, SparsityError, Statistics};

/// Which layers keep their first mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// Those of the MLP.
    #[default]
    Mlp,
    /// Those of attention.
    Attention,
    /// None.
    None,
}

/// DSnoT's parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dsnot {
    /// C: swaps a row at most.
    pub cycles: usize,
    /// tau: a row whose `|E|` is not above it is done.
    pub threshold: f64,
    /// Power of the variance in the growing score.
    pub power: f64,
    /// Whether a swap must keep the sign of the first `E`; `None` takes the published default.
    pub same_sign: Option<bool>,
    /// Which layers keep their first mask.
    pub skip: Skip,
    /// Go back to the smallest `|E|` seen.
    pub keep_best: bool,
}

impl Default for Dsnot {
    fn default() -> Self {
        Self { cycles: 50, threshold: 0.1, power: 1.0, same_sign: None, skip: Skip::Mlp, keep_best: false }
    }
}

impl Dsnot {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A threshold that is negative or not a number, a power that is not finite.
    pub fn check(&self) -> Result<()> {
        if !(self.threshold >= 0.0) {
            return Err(SparsityError::parameter("threshold", self.threshold, "a number from 0"));
        }
        if !self.power.is_finite() {
            return Err(SparsityError::parameter("power", self.power, "a number"));
        }
        Ok(())
    }

    /// Whether it touches a layer of a decoder under Hugging Face's names.
    pub fn touches(&self, name: &str) -> bool {
        match self.skip {
            Skip::Mlp => !name.contains(".mlp."),
            Skip::Attention => !name.contains(".self_attn."),
            Skip::None => true,
        }
    }
}

/// A mask that was rearranged.
#[derive(Clone, Debug, PartialEq)]
pub struct Refined {
    /// The mask: each row, and each group of an N:M pattern, keeps as many weights as before.
    pub mask: Mask,
    /// Swaps made in all rows.
    pub swaps: usize,
    /// `E` of each row before and after.
    pub errors: Vec<[f64; 2]>,
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowRefined {
    /// Swaps made (those undone by `keep_best` not counted).
    pub swaps: usize,
    /// `E` before.
    pub before: f64,
    /// `E` after.
    pub after: f64,
}

/// Rearranges a mask. `scores`, `[outs, ins]`, are those that the mask was made by; N:M patterns prune by them, the
/// others by Wanda's metric.
///
/// # Errors
/// Parameters outside their range, shapes that differ, statistics of nothing.
pub fn refine(
    weights: &[f32],
    statistics: &Statistics,
    start: &Mask,
    scores: &[f64],
    pattern: Pattern,
    config: &Dsnot,
) -> Result<Refined> {
    config.check()?;
    let [outs, ins] = start.shape();
    pattern.fits(ins)?;
    statistics.seen("DSnoT")?;
    for (what, got, want) in [
        ("weights", weights.len(), outs * ins),
        ("scores", scores.len(), outs * ins),
        ("statistics", statistics.inputs(), ins),
    ] {
        if got != want {
            return Err(SparsityError::Shape { what: what.into(), got, want });
        }
    }
    let group = match pattern {
        Pattern::Grouped { group, .. } => Some(group),
        _ => None,
    };
    let (sum, variance) = (statistics.sum(), statistics.variance());
    let metric = if group.is_some() { scores.to_vec() } else { wanda(weights, [outs, ins], statistics) };
    let mut out = Refined { mask: start.clone(), swaps: 0, errors: Vec::with_capacity(outs) };
    let scale: Vec<f64> = variance.iter().map(|variance| variance.max(1e-12).powf(config.power)).collect();
    for row in 0..outs {
        let range = row * ins..(row + 1) * ins;
        let effect: Vec<f64> =
            weights[range.clone()].iter().zip(&sum).map(|(&weight, sum)| f64::from(weight) * sum).collect();
        let done = refine_row(&effect, &scale, &metric[range], group, out.mask.row_mut(row), config);
        out.swaps += done.swaps;
        out.errors.push([done.before, done.after]);
    }
    Ok(out)
}

/// Rearranges one row: `effect` is `D`, `scale` the variances to their power, `metric` what kept weights are pruned by,
/// `group` the M of an N:M pattern.
pub fn refine_row(
    effect: &[f64],
    scale: &[f64],
    metric: &[f64],
    group: Option<usize>,
    pruned: &mut [bool],
    config: &Dsnot,
) -> RowRefined {
    let same_sign = config.same_sign.unwrap_or(group.is_some());
    let start: Vec<bool> = pruned.to_vec();
    let growth = |j: usize| effect[j] / scale[j];
    // One stable ascending order, read from both ends: of equal scores the lower index is nearer the low end.
    let mut order: Vec<usize> = (0..effect.len()).filter(|&j| start[j] && growth(j) != 0.0).collect();
    order.sort_by(|&a, &b| growth(a).total_cmp(&growth(b)));
    let mut low = order.iter().copied().filter(|&j| growth(j) < 0.0);
    let mut high = order.iter().rev().copied().filter(|&j| growth(j) > 0.0);
    let mut kept: Vec<usize> = (0..effect.len()).filter(|&j| !start[j]).collect();
    kept.sort_by(|&a, &b| metric[a].total_cmp(&metric[b]));
    let mut cheap_negative = kept.iter().copied().filter(|&j| effect[j] < 0.0);
    let mut cheap_positive = kept.iter().copied().filter(|&j| effect[j] > 0.0);
    let mut offered = vec![false; effect.len()];
    let sign = |value: f64| if value > 0.0 { 1 } else { -i32::from(value < 0.0) };
    let before: f64 =
        effect.iter().zip(&start).filter(|(_, pruned)| **pruned).map(|(effect, _)| effect).sum();
    let (mut error, mut swaps) = (before, Vec::new());
    let mut best = (before.abs(), 0);
    for _ in 0..config.cycles {
        if !(error.abs() > config.threshold) {
            break;
        }
        let grow = if error > 0.0 { high.next() } else { low.next() };
        let Some(a) = grow else { break };
        let cut = match group {
            Some(group) => {
                let first = a - a % group;
                // `kept` is in order of the metric.
                kept.iter().copied().find(|&j| (first..first + group).contains(&j) && !offered[j])
            }
            None if error < 0.0 => cheap_positive.next(),
            None => cheap_negative.next(),
        };
        let Some(b) = cut else { break };
        offered[b] = true;
        let next = error + effect[b] - effect[a];
        if same_sign && sign(next) != sign(before) {
            break;
        }
        (pruned[b], pruned[a], error) = (true, false, next);
        swaps.push((a, b, next));
        if error.abs() < best.0 {
            best = (error.abs(), swaps.len());
        }
    }
    if config.keep_best {
        for (a, b, _) in swaps.drain(best.1..) {
            (pruned[b], pruned[a]) = (false, true);
        }
        error = swaps.last().map_or(before, |swap| swap.2);
    }
    RowRefined { swaps: swaps.len(), before, after: error }
}
