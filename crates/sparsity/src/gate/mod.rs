//! Gates: inputs of a linear layer that are set to zero, token by token, so that columns of its matrix need not be
//! read.
//!
//! ```text
//! score: magnitude |x_i|  (TEAL);  weighted |x_i| c_i with c_i = ||W_:i||_2  (WINA)
//! threshold form: keep i iff score_i > t, t the s-quantile of the scores over calibration tokens
//! top-k form:     keep the floor(n (1 - s)) largest scores of each token
//! y = W (x * keep): x itself, not the score, and no rescaling
//! CATS: keep neuron i iff |act(W_gate x)_i| > t; the input of W_down is masked, so rows of W_up are skipped too
//! ```
//! Which score each layer of a decoder gets, by [`GateMethod`]:
//!
//! | method | q, v, up, o, down | k, gate |
//! |---|---|---|
//! | TEAL | magnitude | magnitude |
//! | WINA | magnitude | weighted, on matrices rotated to orthogonal columns ([`wina`](crate::wina)) |
//! | WINA without rotation (an ablation) | weighted | weighted |
//! | CATS | dense; down by the activation | dense |
//!
//! Dropping the smallest weighted scores is optimal for every `x` when the columns are orthogonal: the squared error is
//! then `sum of x_i^2 c_i^2` over what is dropped. When they are not it can lose to magnitude.
//!
//! **Deviations.** Thresholds are exact quantiles of the scores seen, where TEAL keeps signed histograms of 10,000 bins and
//! assumes symmetry, and CATS 20,000 bins on `[-2, 2]`. In a graph, inputs that tie with the k-th score are all kept;
//! [`Gate::keep`] breaks ties by the lower index. `dense_positions` of a [`Plan`](crate::Plan) leaves the first tokens of a
//! text dense, whatever its length; the published codes leave a share of a prompt (WINA 1 %, TEAL half).
//!
//! References: TEAL, arXiv 2408.14690; CATS, arXiv 2404.08763; WINA, arXiv 2505.19427, `utils/utils.py`.
//!
//! ```
//! use pilotfish_sparsity::gate::{Gate, Score, column_norms};
//! // Columns (3, 0) and (0, 1), x = (0.5, 1): by magnitude the second input stays and the error is 2.25; by weighted
//! // score the first, and it is 1.
//! let norms = column_norms(&[3.0, 0.0, 0.0, 1.0], 2);
//! let half = |score| Gate::top_k(score, 0.5).keep(&[0.5, 1.0], &norms);
//! assert_eq!(half(Score::Magnitude), [false, true]);
//! assert_eq!(half(Score::Weighted), [true, false]);
//! ```

mod allocate;
mod calibrate;

use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use allocate::{Allocation, Greedy, greedy};
pub(crate) use calibrate::activation_of;
pub use calibrate::{Calibrated, Quantiles, calibrate_gates};

use crate::{Result, SparsityError};

/// What an input is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// `|x_i|`
    Magnitude,
    /// `|x_i| ||W_:i||`
    Weighted,
    /// `|a_i|` where the layer's input is `a * b` and `a` an activation: CATS.
    Activation,
}

/// A gate before a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// What inputs are judged by.
    pub score: Score,
    /// Share of inputs that are dropped: of each token in the top-k form, of the calibration tokens' otherwise.
    pub sparsity: f64,
    /// Scores must be above it; `None` is the top-k form.
    pub threshold: Option<f32>,
}

impl Gate {
    /// The top-k form.
    pub fn top_k(score: Score, sparsity: f64) -> Self {
        Self { score, sparsity, threshold: None }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// A sparsity that is not within 0 and 1, a threshold that is negative or not a number.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.sparsity) {
            return Err(SparsityError::parameter("sparsity", self.sparsity, "from 0 to 1"));
        }
        match self.threshold {
            Some(threshold) if !(threshold >= 0.0) => {
                Err(SparsityError::parameter("threshold", threshold, "a number from 0"))
            }
            _ => Ok(()),
        }
    }

    /// Inputs of `inputs` that the top-k form keeps.
    pub fn kept(&self, inputs: usize) -> usize {
        ((inputs as f64 * (1.0 - self.sparsity) + 1e-9).floor() as usize).min(inputs)
    }

    /// Which inputs of one token stay. For [`Score::Activation`] `x` is the activation; `norms` is only read by
    /// [`Score::Weighted`].
    pub fn keep(&self, x: &[f32], norms: &[f32]) -> Vec<bool> {
        let score = |at: usize| match self.score {
            Score::Weighted => x[at].abs() * norms[at],
            _ => x[at].abs(),
        };
        if let Some(threshold) = self.threshold {
            // At no sparsity nothing is dropped, not even zeros.
            return (0..x.len()).map(|at| self.sparsity == 0.0 || score(at) > threshold).collect();
        }
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        let mut keep = vec![false; x.len()];
        order.into_iter().take(self.kept(x.len())).for_each(|at| keep[at] = true);
        keep
    }
}

/// `||W_:i||_2` of a matrix `[outs, ins]`, row-major; summed in f64.
pub fn column_norms(weights: &[f32], ins: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; ins];
    for row in weights.chunks_exact(ins.max(1)) {
        row.iter().zip(&mut sums).for_each(|(&w, sum)| *sum += f64::from(w) * f64::from(w));
    }
    sums.into_iter().map(|sum| sum.sqrt() as f32).collect()
}

/// How a decoder is gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateMethod {
    /// Magnitude everywhere.
    Teal,
    /// Magnitude everywhere, on the rotated model.
    TealRotated,
    /// Weighted scores where the rotation makes columns orthogonal.
    Wina,
    /// Weighted scores everywhere, no rotation.
    WinaPlain,
    /// The MLP by its activation.
    Cats,
}

/// The names of gate methods.
pub const GATES: &[&str] = &["teal", "teal-rotated", "wina", "wina-plain", "cats"];

impl GateMethod {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teal => "teal",
            Self::TealRotated => "teal-rotated",
            Self::Wina => "wina",
            Self::WinaPlain => "wina-plain",
            Self::Cats => "cats",
        }
    }

    /// Whether the model is rotated first.
    pub fn rotates(self) -> bool {
        matches!(self, Self::TealRotated | Self::Wina)
    }

    /// The score of a matrix of a decoder, under Hugging Face's names (with what norm folding adds to them); `None`
    /// leaves it dense. The rotations of the residual stream always are.
    pub fn score(self, name: &str) -> Option<Score> {
        if name.starts_with(crate::wina::ROTATION) {
            return None;
        }
        let is = |part: &str| name.contains(part);
        match self {
            Self::Cats => is(".mlp.down_proj.").then_some(Score::Activation),
            Self::Wina if is(".k_proj.") || is(".gate_proj.") => Some(Score::Weighted),
            Self::WinaPlain => Some(Score::Weighted),
            _ => Some(Score::Magnitude),
        }
    }
}

impl FromStr for GateMethod {
    type Err = SparsityError;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "teal" => Self::Teal,
            "teal-rotated" => Self::TealRotated,
            "wina" => Self::Wina,
            "wina-plain" => Self::WinaPlain,
            "cats" => Self::Cats,
            _ => return Err(SparsityError::unknown("gate", name, GATES.iter().copied())),
        })
    }
}
