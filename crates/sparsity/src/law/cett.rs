use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use serde::{Deserialize, Serialize};

use crate::gate::column_norms;
use crate::{Result, SparsityError};

/// The neurons of one layer over some tokens.
#[derive(Clone, Debug)]
pub struct Neurons {
    /// `[tokens, neurons]`, row-major.
    v: Vec<f32>,
    /// `|v| ||W_down,:i||`, as `v`.
    norms: Vec<f32>,
    neurons: usize,
    outs: usize,
    /// `W_down^T`: `[neurons, outs]`, row-major.
    down: Vec<f32>,
    /// `||MLP(x)||` by token.
    whole: Vec<f64>,
    /// The least norm, and the 0.99-quantile.
    range: [f64; 2],
}

/// How a neuron is judged to be active.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The norm of what it adds is above a threshold.
    Cett {
        /// The threshold.
        threshold: f64,
    },
    /// The largest norms of each token.
    TopK {
        /// Share of neurons kept.
        ratio: f64,
    },
    /// `|v|` above a threshold, whatever the neuron's column: FAT. (The paper has it on the gate's activation.)
    Fat {
        /// The threshold.
        threshold: f64,
    },
}

/// A layer at some threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Mean relative norm of what is cut off.
    pub cett: f64,
    /// Share of neurons that stay.
    pub active: f64,
}

/// A layer at a target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Neurons whose norm is at most this are skipped.
    pub threshold: f64,
    /// What that does.
    pub kept: Kept,
}

impl Neurons {
    /// Neurons `v` `[tokens, neurons]` and `W_down` `[outs, neurons]`, both row-major.
    ///
    /// # Errors
    /// Numbers that do not fill the shapes or are not finite, no tokens.
    pub fn new(v: Vec<f32>, down: &[f32], neurons: usize) -> Result<Self> {
        for (what, got) in [("neurons", v.len()), ("down projection", down.len())] {
            if neurons == 0 || got == 0 {
                return Err(SparsityError::NoRows { what: what.into() });
            }
            if got % neurons != 0 {
                let want = got.next_multiple_of(neurons);
                return Err(SparsityError::Shape { what: what.into(), got, want });
            }
        }
        crate::error::finite("neurons", &v)?;
        crate::error::finite("down projection", down)?;
        let (outs, columns) = (down.len() / neurons, column_norms(down, neurons));
        let norms: Vec<f32> = v.iter().enumerate().map(|(at, v)| v.abs() * columns[at % neurons]).collect();
        let mut sorted = norms.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let range = [0, ((sorted.len() - 1) as f64 * 0.99) as usize].map(|at| f64::from(sorted[at]));
        let turned = (0..neurons).flat_map(|i| (0..outs).map(move |o| down[o * neurons + i])).collect();
        let mut new = Self { v, norms, neurons, outs, down: turned, whole: Vec::new(), range };
        new.whole = new.lengths(&|_| true);
        Ok(new)
    }

    /// The neurons, `[tokens, neurons]`, row-major.
    pub fn values(&self) -> &[f32] {
        &self.v
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.v.len() / self.neurons
    }

    /// `||W_down (v * chosen)||` by token.
    fn lengths(&self, chosen: &dyn Fn(usize) -> bool) -> Vec<f64> {
        let masked: Vec<f32> =
            self.v.iter().enumerate().map(|(at, &v)| if chosen(at) { v } else { 0.0 }).collect();
        let x = MatRef::from_row_major_slice(&masked, self.tokens(), self.neurons);
        let w = MatRef::from_row_major_slice(&self.down, self.neurons, self.outs);
        let mut y = Mat::<f32>::zeros(self.tokens(), self.outs);
        matmul(y.as_mut(), Accum::Replace, x, w, 1.0, Par::Seq);
        let length = |t: usize| (0..self.outs).map(|o| f64::from(y[(t, o)]).powi(2)).sum::<f64>().sqrt();
        (0..self.tokens()).map(length).collect()
    }

    fn kept(&self, skipped: &dyn Fn(usize) -> bool) -> Kept {
        let cut = self.lengths(skipped);
        let ratios: Vec<f64> = cut
            .iter()
            .zip(&self.whole)
            .filter(|(_, whole)| **whole > 0.0)
            .map(|(cut, whole)| cut / whole)
            .collect();
        let active = (0..self.v.len()).filter(|&at| self.v[at] != 0.0 && !skipped(at)).count();
        Kept {
            cett: ratios.iter().sum::<f64>() / ratios.len().max(1) as f64,
            active: active as f64 / self.v.len() as f64,
        }
    }

    /// The layer when neurons whose norm is at most `threshold` are skipped.
    pub fn at(&self, threshold: f64) -> Kept {
        self.kept(&|at| f64::from(self.norms[at]) <= threshold)
    }

    /// The layer under a metric.
    pub fn under(&self, metric: Metric) -> Kept {
        match metric {
            Metric::Cett { threshold } => self.at(threshold),
            Metric::Fat { threshold } => self.kept(&|at| f64::from(self.v[at].abs()) <= threshold),
            Metric::TopK { ratio } => {
                let keep = ((self.neurons as f64 * ratio).round() as usize).min(self.neurons);
                let mut skipped = vec![true; self.v.len()];
                for (row, norms) in self.norms.chunks_exact(self.neurons).enumerate() {
                    let mut order: Vec<usize> = (0..self.neurons).collect();
                    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
                    order[..keep].iter().for_each(|&i| skipped[row * self.neurons + i] = false);
                }
                self.kept(&|at| skipped[at])
            }
        }
    }

    /// The largest threshold of a grid of `grid` values, from the least norm to the 0.99-quantile, whose CETT is at most
    /// `kappa`; below the grid if even its first value cuts too much.
    ///
    /// # Errors
    /// A `kappa` below 0 or not a number, a grid of fewer than two values.
    pub fn threshold(&self, kappa: f64, grid: usize) -> Result<Measured> {
        if !(kappa >= 0.0) {
            return Err(SparsityError::parameter("kappa", kappa, "a number from 0"));
        }
        if grid < 2 {
            return Err(SparsityError::parameter("grid", grid, "at least 2"));
        }
        let [low, high] = self.range;
        let value = |at: usize| low + (high - low) * at as f64 / (grid - 1) as f64;
        // The first index that fails, by bisection: CETT grows with the threshold.
        let (mut passes, mut fails) = (None, grid);
        let mut first = 0;
        while first < fails {
            let middle = first + (fails - first) / 2;
            let kept = self.at(value(middle));
            if kept.cett <= kappa {
                passes = Some(Measured { threshold: value(middle), kept });
                first = middle + 1;
            } else {
                fails = middle;
            }
        }
        let below = if low > 0.0 { low * (1.0 - 1e-9) - f64::MIN_POSITIVE } else { -1.0 };
        Ok(passes.unwrap_or_else(|| Measured { threshold: below, kept: self.at(below) }))
    }
}

/// The largest `kappa` whose perplexity is at most `1 + percent / 100` times the dense one: `loss` gives the mean nats of
/// the sparse model, `dense` those of the dense one. Halves `[0, 1]` until it is no wider than `tolerance`.
///
/// # Errors
/// Parameters outside their range; whatever `loss` refuses.
pub fn bisect_kappa(
    percent: f64,
    tolerance: f64,
    dense: f64,
    mut loss: impl FnMut(f64) -> Result<f64>,
) -> Result<f64> {
    if !(percent >= 0.0 && percent.is_finite()) {
        return Err(SparsityError::parameter("percent", percent, "a number from 0"));
    }
    if !(tolerance > 0.0) {
        return Err(SparsityError::parameter("tolerance", tolerance, "above 0"));
    }
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > tolerance {
        let kappa = (low + high) / 2.0;
        if (loss(kappa)? - dense).exp() < 1.0 + percent / 100.0 { low = kappa } else { high = kappa }
    }
    Ok((low + high) / 2.0)
}
