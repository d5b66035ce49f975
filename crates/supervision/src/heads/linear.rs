use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use super::{check_features, minimise, sigmoid, softplus};
use crate::{Result, SupervisionError};

/// How a logistic regression is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogisticConfig {
    /// Weight of half the squared norm of the weights; 1 / scikit-learn's `C`.
    pub l2: f64,
    /// L-BFGS iterations at most.
    pub iterations: usize,
    /// Norm of the gradient to stop at.
    pub tolerance: f64,
}

impl Default for LogisticConfig {
    /// scikit-learn's penalty, with a tighter tolerance.
    fn default() -> Self {
        Self { l2: 1.0, iterations: 1000, tolerance: 1e-6 }
    }
}

impl LogisticConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, value, want| Err(SupervisionError::BadParameter { name, value, want });
        if !(self.l2 >= 0.0 && self.l2.is_finite()) {
            return refuse("l2", self.l2, "at least 0 and finite");
        }
        if !(self.tolerance > 0.0 && self.tolerance.is_finite()) {
            return refuse("tolerance", self.tolerance, "above 0 and finite");
        }
        if self.iterations == 0 {
            return refuse("iterations", 0.0, "at least 1");
        }
        Ok(())
    }
}

/// A fitted logistic regression: one row of weights for two classes, one a class for more.
///
/// It minimises `sum_i w_i CE(t_i, p_i) + l2/2 |W|²`; intercepts are not penalised, as in scikit-learn.
///
/// ```
/// use ndarray::array;
/// use pilotfish_supervision::heads::{Logistic, LogisticConfig};
/// let x = array![[0.0], [1.0], [2.0], [3.0]];
/// let model = Logistic::fit_classes(x.view(), &[0, 0, 1, 1], 2, None, &LogisticConfig::default())?;
/// let p = model.predict(x.view())?;
/// assert!(p[[0, 1]] < 0.5 && p[[3, 1]] > 0.5 && (p[[1, 1]] + p[[2, 1]] - 1.0).abs() < 1e-5);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logistic {
    classes: usize,
    features: usize,
    /// `[rows, features + 1]`, the intercept last.
    parameters: Vec<f64>,
    /// Whether the solver stopped by itself.
    converged: bool,
}

impl Logistic {
    /// Fits features `[items, features]` to distributions `[items, classes]`.
    ///
    /// # Errors
    /// No items or fewer than two classes; lengths that differ; numbers that are not finite; targets or weights
    /// below 0; parameters outside their ranges.
    pub fn fit(
        x: ArrayView2<'_, f64>,
        targets: ArrayView2<'_, f64>,
        weights: Option<&[f64]>,
        config: &LogisticConfig,
    ) -> Result<Self> {
        config.check()?;
        check_features(x)?;
        let (n, d, classes) = (x.nrows(), x.ncols(), targets.ncols());
        if classes < 2 {
            return Err(SupervisionError::Shape { what: "classes", got: classes, want: 2 });
        }
        if targets.nrows() != n {
            return Err(SupervisionError::Shape { what: "targets", got: targets.nrows(), want: n });
        }
        if let Some(index) = targets.iter().position(|t| !(*t >= 0.0 && t.is_finite())) {
            return Err(SupervisionError::NotFinite { what: "target", index: index / classes });
        }
        let ones;
        let weights = match weights {
            Some(weights) => weights,
            None => {
                ones = vec![1.0; n];
                &ones
            }
        };
        if weights.len() != n {
            return Err(SupervisionError::Shape { what: "weights", got: weights.len(), want: n });
        }
        if let Some(index) = weights.iter().position(|w| !(*w >= 0.0 && w.is_finite())) {
            return Err(SupervisionError::NotFinite { what: "weight", index });
        }
        // Two classes need one row: with two, the penalty would be another.
        let rows = if classes == 2 { 1 } else { classes };
        let objective = |parameters: &[f64]| objective(parameters, x, targets, weights, config.l2);
        let minimum = minimise(objective, vec![0.0; rows * (d + 1)], config.iterations, config.tolerance);
        Ok(Self { classes, features: d, parameters: minimum.point, converged: minimum.converged })
    }

    /// The same for classes instead of distributions.
    ///
    /// # Errors
    /// As [`Logistic::fit`]; a class that is not below `classes`.
    pub fn fit_classes(
        x: ArrayView2<'_, f64>,
        y: &[usize],
        classes: usize,
        weights: Option<&[f64]>,
        config: &LogisticConfig,
    ) -> Result<Self> {
        let mut targets = Array2::zeros((y.len(), classes));
        for (item, &class) in y.iter().enumerate() {
            match targets.get_mut((item, class)) {
                Some(target) => *target = 1.0,
                None => return Err(SupervisionError::Shape { what: "class", got: class, want: classes }),
            }
        }
        Self::fit(x, targets.view(), weights, config)
    }

    /// Probabilities, `[items, classes]`.
    ///
    /// # Errors
    /// Another number of features than it was fitted on.
    pub fn predict(&self, x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        if x.ncols() != self.features {
            return Err(SupervisionError::Shape { what: "features", got: x.ncols(), want: self.features });
        }
        let mut out = Array2::zeros((x.nrows(), self.classes));
        for (row, mut probs) in x.rows().into_iter().zip(out.rows_mut()) {
            let logits = logits(&self.parameters, row);
            match logits[..] {
                [one] => {
                    probs[1] = sigmoid(one);
                    probs[0] = sigmoid(-one);
                }
                _ => softmax(&logits).into_iter().zip(probs.iter_mut()).for_each(|(p, slot)| *slot = p),
            }
        }
        Ok(out)
    }

    /// Weights of a row of the model, the intercept last. Two classes have one row, for class 1.
    pub fn weights(&self, row: usize) -> Option<&[f64]> {
        self.parameters.chunks_exact(self.features + 1).nth(row)
    }

    /// Whether the solver stopped by itself rather than at the limit of iterations.
    pub fn converged(&self) -> bool {
        self.converged
    }
}

/// Weights that give every class the same total, as scikit-learn's `class_weight="balanced"`: `n / (classes n_c)`.
pub fn balanced_weights(y: &[usize], classes: usize) -> Vec<f64> {
    let count = |class: usize| y.iter().filter(|&&y| y == class).count().max(1) as f64;
    let counts: Vec<f64> = (0..classes).map(count).collect();
    let present = (0..classes).filter(|class| y.contains(class)).count() as f64;
    y.iter().map(|&class| counts.get(class).map_or(0.0, |c| y.len() as f64 / (present * c))).collect()
}

fn logits(parameters: &[f64], row: ArrayView1<'_, f64>) -> Vec<f64> {
    let d = row.len();
    parameters
        .chunks_exact(d + 1)
        .map(|weights| weights[d] + row.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>())
        .collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

fn objective(
    parameters: &[f64],
    x: ArrayView2<'_, f64>,
    targets: ArrayView2<'_, f64>,
    weights: &[f64],
    l2: f64,
) -> (f64, Vec<f64>) {
    let d = x.ncols();
    let mut gradient = vec![0.0; parameters.len()];
    let mut value = 0.0;
    for ((row, target), &weight) in x.axis_iter(Axis(0)).zip(targets.axis_iter(Axis(0))).zip(weights) {
        let logits = logits(parameters, row);
        let total: f64 = target.sum();
        let errors = match logits[..] {
            [z] => {
                value += weight * (total * softplus(z) - target[1] * z);
                vec![total * sigmoid(z) - target[1]]
            }
            _ => {
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log_sum = max + logits.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
                let dot: f64 = logits.iter().zip(target).map(|(z, t)| z * t).sum();
                value += weight * (total * log_sum - dot);
                logits.iter().zip(target).map(|(z, t)| total * (z - log_sum).exp() - t).collect()
            }
        };
        for (error, gradient) in errors.iter().zip(gradient.chunks_exact_mut(d + 1)) {
            let error = weight * error;
            row.iter().zip(gradient.iter_mut()).for_each(|(x, g)| *g += error * x);
            gradient[d] += error;
        }
    }
    for (row, gradient) in parameters.chunks_exact(d + 1).zip(gradient.chunks_exact_mut(d + 1)) {
        for (w, g) in row.iter().zip(gradient).take(d) {
            value += 0.5 * l2 * w * w;
            *g += l2 * w;
        }
    }
    (value, gradient)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use linfa::traits::Fit;
    use ndarray::Array1;
    use pilotfish_model::Streams;
    use rand::Rng;

    fn blobs(classes: usize) -> (Array2<f64>, Vec<usize>) {
        let mut rng = Streams::new(3).stream("blobs");
        let y: Vec<usize> = (0..90).map(|i| i % classes).collect();
        let x = Array2::from_shape_fn((90, 3), |(i, j)| {
            rng.random_range(-1.0..1.0) + if j == y[i] { 0.7 } else { 0.0 }
        });
        (x, y)
    }

    /// linfa is an independent implementation of the same objective.
    #[test]
    fn equals_linfa_for_two_classes() {
        let (x, y) = blobs(2);
        let ours = Logistic::fit_classes(x.view(), &y, 2, None, &LogisticConfig::default()).unwrap();
        let data = linfa::Dataset::new(x, Array1::from(y));
        let theirs = linfa_logistic::LogisticRegression::default()
            .alpha(1.0)
            .gradient_tolerance(1e-6)
            .fit(&data)
            .unwrap();
        let sign = if theirs.labels().pos.class == 1 { 1.0 } else { -1.0 };
        for (a, b) in ours.weights(0).unwrap().iter().zip(theirs.params()) {
            assert!((a - sign * b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn equals_linfa_for_three_classes() {
        let (x, y) = blobs(3);
        let ours = Logistic::fit_classes(x.view(), &y, 3, None, &LogisticConfig::default()).unwrap();
        let data = linfa::Dataset::new(x.clone(), Array1::from(y));
        let theirs = linfa_logistic::MultiLogisticRegression::default()
            .alpha(1.0)
            .gradient_tolerance(1e-6)
            .fit(&data)
            .unwrap();
        let p = theirs.predict_probabilities(&x);
        let q = ours.predict(x.view()).unwrap();
        assert!(p.iter().zip(&q).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    /// One feature-less item with target t: the intercept is the log-odds of t.
    #[test]
    fn soft_targets_are_matched() {
        let x = Array2::zeros((4, 1));
        let t = ndarray::array![[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [1.0, 0.0]];
        let model = Logistic::fit(x.view(), t.view(), None, &LogisticConfig::default()).unwrap();
        assert!((model.predict(x.view()).unwrap()[[0, 1]] - 0.2).abs() < 1e-6);
        let model =
            Logistic::fit(x.view(), t.view(), Some(&[0.0, 0.0, 2.0, 0.0]), &LogisticConfig::default());
        assert!((model.unwrap().predict(x.view()).unwrap()[[0, 1]] - 0.4).abs() < 1e-6);
    }

    #[test]
    fn gradient_is_the_values() {
        let (x, y) = blobs(3);
        let mut t = Array2::from_elem((90, 3), 0.1);
        y.iter().enumerate().for_each(|(i, &c)| t[[i, c]] = 0.8);
        let w: Vec<f64> = (0..90).map(|i| 0.5 + (i % 3) as f64).collect();
        let at: Vec<f64> = (0..12).map(|i| 0.1 * f64::from(i) - 0.5).collect();
        let (_, g) = objective(&at, x.view(), t.view(), &w, 0.7);
        for i in 0..at.len() {
            let mut p = at.clone();
            p[i] += 1e-6;
            let up = objective(&p, x.view(), t.view(), &w, 0.7).0;
            p[i] -= 2e-6;
            let down = objective(&p, x.view(), t.view(), &w, 0.7).0;
            assert!(((up - down) / 2e-6 - g[i]).abs() < 1e-5);
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let config = LogisticConfig::default();
        let x = Array2::zeros((2, 1));
        assert!(Logistic::fit_classes(Array2::zeros((0, 1)).view(), &[], 2, None, &config).is_err());
        assert!(Logistic::fit_classes(x.view(), &[0, 5], 2, None, &config).is_err());
        assert!(Logistic::fit_classes(x.view(), &[0], 2, None, &config).is_err());
        assert!(Logistic::fit_classes(x.view(), &[0, 1], 1, None, &config).is_err());
        let nan = Array2::from_elem((2, 1), f64::NAN);
        assert!(Logistic::fit_classes(nan.view(), &[0, 1], 2, None, &config).is_err());
        let config = LogisticConfig { l2: f64::NAN, ..config };
        assert!(Logistic::fit_classes(x.view(), &[0, 1], 2, None, &config).is_err());
    }

    #[test]
    fn balanced_weights_by_hand() {
        assert_eq!(balanced_weights(&[0, 0, 0, 1], 2), [4.0 / 6.0, 4.0 / 6.0, 4.0 / 6.0, 2.0]);
    }
}
