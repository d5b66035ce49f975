//! Small scorers on features: logistic regression and a perceptron, with soft targets and weights of items.
//!
//! They stand where a large student or a reward head stands in the papers: Weaver distils its posterior into one,
//! AutoWS compares itself with one. Targets are distributions, not classes, because teachers are unsure; linfa's
//! logistic regression takes neither soft targets nor weights, so the objective is written here and minimised by
//! argmin's L-BFGS. A test holds the two equal where both apply.

mod linear;
mod perceptron;
mod tree;

pub use linear::{Logistic, LogisticConfig, balanced_weights};
pub use perceptron::{AdamConfig, Perceptron, PerceptronConfig};
pub use tree::{Tree, TreeConfig};

use crate::{Result, SupervisionError};

/// Means and standard deviations of features, to bring them to one scale.
///
/// ```
/// use ndarray::array;
/// use pilotfish_supervision::heads::Scaler;
/// let scaler = Scaler::fit(array![[0.0, 5.0], [2.0, 5.0]].view())?;
/// // A feature that is constant becomes 0.
/// assert_eq!(scaler.apply(array![[2.0, 5.0]].view())?, array![[1.0, 0.0]]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Scaler {
    means: Vec<f64>,
    deviations: Vec<f64>,
}

impl Scaler {
    /// Measures features, `[items, features]`.
    ///
    /// # Errors
    /// No items; a number that is not finite.
    pub fn fit(x: ndarray::ArrayView2<'_, f64>) -> Result<Self> {
        check_features(x)?;
        let n = x.nrows() as f64;
        let columns = x.columns();
        let means: Vec<f64> = columns.into_iter().map(|column| column.sum() / n).collect();
        let deviation = |(column, mean): (ndarray::ArrayView1<'_, f64>, &f64)| {
            (column.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt()
        };
        let deviations = x.columns().into_iter().zip(&means).map(deviation).collect();
        Ok(Self { means, deviations })
    }

    /// Features less their means, over their deviations.
    ///
    /// # Errors
    /// Another number of features.
    pub fn apply(&self, x: ndarray::ArrayView2<'_, f64>) -> Result<ndarray::Array2<f64>> {
        if x.ncols() != self.means.len() {
            return Err(SupervisionError::Shape { what: "features", got: x.ncols(), want: self.means.len() });
        }
        let scale = |(_, j): (usize, usize), value: f64| match self.deviations[j] {
            deviation if deviation > 1e-12 * self.means[j].abs().max(1e-300) => {
                (value - self.means[j]) / deviation
            }
            _ => 0.0,
        };
        Ok(ndarray::Array2::from_shape_fn(x.dim(), |at| scale(at, x[at])))
    }
}

/// What a minimisation came to.
pub(crate) struct Minimum {
    pub(crate) point: Vec<f64>,
    /// Whether the gradient vanished, to tolerance.
    pub(crate) converged: bool,
}

/// Minimises a function given with its gradient; where it has no value at the start, the start is what is left.
pub(crate) fn minimise<F>(function: F, start: Vec<f64>, iterations: usize, tolerance: f64) -> Minimum
where
    F: Fn(&[f64]) -> (f64, Vec<f64>),
{
    match crate::solver::minimise(function, start.clone(), iterations, tolerance) {
        Some(found) => Minimum { point: found.at, converged: found.slope <= tolerance },
        None => Minimum { point: start, converged: false },
    }
}

pub(crate) fn check_features(x: ndarray::ArrayView2<'_, f64>) -> Result<()> {
    if x.nrows() == 0 {
        return Err(SupervisionError::Empty { what: "items" });
    }
    match x.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(SupervisionError::NotFinite { what: "feature", index: index / x.ncols().max(1) }),
        None => Ok(()),
    }
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// `ln(1 + e^x)` without overflow.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
