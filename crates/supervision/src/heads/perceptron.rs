use ndarray::ArrayView2;
use pilotfish_model::Streams;
use rand::Rng;
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};

use super::{check_features, minimise, sigmoid, softplus};
use crate::{Result, SupervisionError};

/// A perceptron's shape and how it is fitted with L-BFGS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerceptronConfig {
    /// Units of the hidden layers.
    pub hidden: Vec<usize>,
    /// Weight of half the squared norm of the weights, intercepts excluded, on the mean loss.
    pub l2: f64,
    /// Iterations at most.
    pub iterations: usize,
    /// Seed of the first weights.
    pub seed: u64,
}

impl Default for PerceptronConfig {
    fn default() -> Self {
        Self { hidden: vec![16], l2: 1e-3, iterations: 300, seed: 0 }
    }
}

/// Adam, for training on bootstrap samples as the AutoWS ensembles do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamConfig {
    /// Step size.
    pub rate: f64,
    /// L2 added to the gradient (PyTorch's `weight_decay`).
    pub decay: f64,
    /// Full-batch steps at most.
    pub epochs: usize,
    /// A change of the loss below this counts as no progress ...
    pub tolerance: f64,
    /// ... and this many epochs without progress end the training.
    pub patience: usize,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { rate: 1e-3, decay: 1e-4, epochs: 200, tolerance: 1e-4, patience: 10 }
    }
}

/// A network of tanh layers with one logit: the probability of "yes".
///
/// ```
/// use ndarray::array;
/// use pilotfish_supervision::heads::{Perceptron, PerceptronConfig};
/// // Exclusive or, which no linear scorer can do.
/// let x = array![[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]];
/// let model = Perceptron::fit(x.view(), &[0.0, 1.0, 1.0, 0.0], &PerceptronConfig::default())?;
/// let p = model.predict(x.view())?;
/// assert!(p[0] < 0.3 && p[1] > 0.7 && p[2] > 0.7 && p[3] < 0.3, "{p:?}");
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perceptron {
    sizes: Vec<usize>,
    parameters: Vec<f64>,
}

impl Perceptron {
    /// Random weights: Glorot's normal law.
    pub fn random(features: usize, hidden: &[usize], rng: &mut impl Rng) -> Self {
        let sizes: Vec<usize> = [features].iter().chain(hidden).chain(&[1]).copied().collect();
        let mut parameters = Vec::new();
        for pair in sizes.windows(2) {
            let deviation = (2.0 / (pair[0] + pair[1]).max(1) as f64).sqrt();
            let normal = Normal::new(0.0, deviation).ok();
            for _ in 0..pair[1] {
                parameters.extend((0..pair[0]).map(|_| normal.map_or(0.0, |law| law.sample(rng))));
                parameters.push(0.0);
            }
        }
        Self { sizes, parameters }
    }

    /// Fits features `[items, features]` to probabilities in `[0, 1]` by cross-entropy.
    ///
    /// # Errors
    /// No items; lengths that differ; numbers that are not finite; targets outside `[0, 1]`; a negative `l2`;
    /// hidden layers without units.
    pub fn fit(x: ArrayView2<'_, f64>, targets: &[f64], config: &PerceptronConfig) -> Result<Self> {
        check(x, targets)?;
        if !(config.l2 >= 0.0 && config.l2.is_finite()) {
            let (name, value) = ("l2", config.l2);
            return Err(SupervisionError::BadParameter { name, value, want: "at least 0 and finite" });
        }
        if config.iterations == 0 || config.hidden.contains(&0) {
            let name = "iterations and hidden units";
            return Err(SupervisionError::BadParameter { name, value: 0.0, want: "at least 1" });
        }
        let mut rng = Streams::new(config.seed).stream("perceptron");
        let start = Self::random(x.ncols(), &config.hidden, &mut rng);
        let (sizes, items) = (start.sizes, (0..x.nrows()).collect::<Vec<_>>());
        let objective = |parameters: &[f64]| loss(&sizes, parameters, x, targets, &items, config.l2);
        let minimum = minimise(objective, start.parameters, config.iterations, 1e-7);
        Ok(Self { parameters: minimum.point, sizes })
    }

    /// Goes on from these weights with Adam over the items listed (repetitions allowed).
    ///
    /// # Errors
    /// As [`Perceptron::fit`]; an item that does not exist; parameters outside their ranges.
    pub fn train(
        &mut self,
        x: ArrayView2<'_, f64>,
        targets: &[f64],
        items: &[usize],
        config: &AdamConfig,
    ) -> Result<()> {
        check(x, targets)?;
        if x.ncols() != self.sizes[0] {
            return Err(SupervisionError::Shape { what: "features", got: x.ncols(), want: self.sizes[0] });
        }
        if let Some(&item) = items.iter().find(|&&item| item >= x.nrows()) {
            return Err(SupervisionError::Shape { what: "item", got: item, want: x.nrows() });
        }
        if items.is_empty() {
            return Err(SupervisionError::Empty { what: "items" });
        }
        for (name, value) in [("rate", config.rate), ("decay", config.decay), ("tolerance", config.tolerance)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(SupervisionError::BadParameter { name, value, want: "at least 0 and finite" });
            }
        }
        let (mut first, mut second) = (vec![0.0; self.parameters.len()], vec![0.0; self.parameters.len()]);
        let (mut last, mut idle) = (f64::INFINITY, 0);
        for epoch in 1..=config.epochs {
            let (value, gradient) = loss(&self.sizes, &self.parameters, x, targets, items, 0.0);
            let (c1, c2) = (1.0 - 0.9f64.powi(epoch as i32), 1.0 - 0.999f64.powi(epoch as i32));
            for (i, g) in gradient.iter().enumerate() {
                let g = g + config.decay * self.parameters[i];
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.999 * second[i] + 0.001 * g * g;
                self.parameters[i] -= config.rate * (first[i] / c1) / ((second[i] / c2).sqrt() + 1e-8);
            }
            idle = if (last - value).abs() < config.tolerance { idle + 1 } else { 0 };
            last = value;
            if idle >= config.patience {
                break;
            }
        }
        Ok(())
    }

    /// Probabilities of "yes".
    ///
    /// # Errors
    /// Another number of features.
    pub fn predict(&self, x: ArrayView2<'_, f64>) -> Result<Vec<f64>> {
        if x.ncols() != self.sizes[0] {
            return Err(SupervisionError::Shape { what: "features", got: x.ncols(), want: self.sizes[0] });
        }
        let mut states = Vec::new();
        let one = |row: ndarray::ArrayView1<'_, f64>| {
            forward(&self.sizes, &self.parameters, &row.to_vec(), &mut states);
            sigmoid(states.last().map_or(0.0, |last| last[0]))
        };
        Ok(x.rows().into_iter().map(one).collect())
    }
}

fn check(x: ArrayView2<'_, f64>, targets: &[f64]) -> Result<()> {
    check_features(x)?;
    if targets.len() != x.nrows() {
        return Err(SupervisionError::Shape { what: "targets", got: targets.len(), want: x.nrows() });
    }
    match targets.iter().find(|t| !(0.0..=1.0).contains(*t)) {
        Some(&value) => Err(SupervisionError::BadParameter { name: "target", value, want: "from 0 to 1" }),
        None => Ok(()),
    }
}

/// States of all layers, the input first; the last holds the logit.
fn forward(sizes: &[usize], parameters: &[f64], input: &[f64], states: &mut Vec<Vec<f64>>) {
    states.clear();
    states.push(input.to_vec());
    let mut at = 0;
    for (layer, pair) in sizes.windows(2).enumerate() {
        let (from, to) = (pair[0], pair[1]);
        let last = layer + 2 == sizes.len();
        let next = (0..to)
            .map(|unit| {
                let w = &parameters[at + unit * (from + 1)..at + (unit + 1) * (from + 1)];
                let z = w[from] + states[layer].iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                if last { z } else { z.tanh() }
            })
            .collect();
        at += to * (from + 1);
        states.push(next);
    }
}

/// Mean cross-entropy and its gradient.
fn loss(
    sizes: &[usize],
    parameters: &[f64],
    x: ArrayView2<'_, f64>,
    targets: &[f64],
    items: &[usize],
    l2: f64,
) -> (f64, Vec<f64>) {
    let mut gradient = vec![0.0; parameters.len()];
    let mut value = 0.0;
    let mut states = Vec::new();
    let scale = 1.0 / items.len().max(1) as f64;
    for &item in items {
        let target = targets[item];
        forward(sizes, parameters, &x.row(item).to_vec(), &mut states);
        let z = states[sizes.len() - 1][0];
        value += scale * (softplus(z) - target * z);
        let mut errors = vec![scale * (sigmoid(z) - target)];
        let mut end = parameters.len();
        for layer in (0..sizes.len() - 1).rev() {
            let (from, to) = (sizes[layer], sizes[layer + 1]);
            let start = end - to * (from + 1);
            let mut back = vec![0.0; from];
            for (unit, error) in errors.iter().enumerate() {
                let row = start + unit * (from + 1);
                for (i, state) in states[layer].iter().enumerate() {
                    gradient[row + i] += error * state;
                    back[i] += error * parameters[row + i];
                }
                gradient[row + from] += error;
            }
            back.iter_mut().zip(&states[layer]).for_each(|(b, state)| *b *= 1.0 - state * state);
            (errors, end) = (back, start);
        }
    }
    let mut at = 0;
    for pair in sizes.windows(2) {
        for _ in 0..pair[1] {
            for i in at..at + pair[0] {
                value += 0.5 * l2 * parameters[i] * parameters[i];
                gradient[i] += l2 * parameters[i];
            }
            at += pair[0] + 1;
        }
    }
    (value, gradient)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn gradient_is_the_values() {
        let mut rng = Streams::new(1).stream("x");
        let net = Perceptron::random(3, &[4, 2], &mut rng);
        let x = ndarray::Array2::from_shape_fn((5, 3), |_| rng.random_range(-1.0..1.0));
        let (t, items) = ([0.2, 0.9, 0.5, 0.0, 1.0], [0, 1, 1, 3, 4]);
        let f = |p: &[f64]| loss(&net.sizes, p, x.view(), &t, &items, 0.3);
        let (_, g) = f(&net.parameters);
        for i in 0..g.len() {
            let mut p = net.parameters.clone();
            p[i] += 1e-6;
            let up = f(&p).0;
            p[i] -= 2e-6;
            assert!(((up - f(&p).0) / 2e-6 - g[i]).abs() < 1e-7, "{i}");
        }
    }

    #[test]
    fn adam_lowers_the_loss_and_stops() {
        let mut rng = Streams::new(2).stream("x");
        let x = ndarray::Array2::from_shape_fn((30, 2), |_| rng.random_range(-1.0..1.0));
        let t: Vec<f64> = x.rows().into_iter().map(|r| f64::from(u8::from(r[0] > 0.0))).collect();
        let items: Vec<usize> = (0..30).collect();
        let mut net = Perceptron::random(2, &[10, 10], &mut rng);
        let before = loss(&net.sizes, &net.parameters, x.view(), &t, &items, 0.0).0;
        net.train(x.view(), &t, &items, &AdamConfig { rate: 1e-2, ..AdamConfig::default() }).unwrap();
        let after = loss(&net.sizes, &net.parameters, x.view(), &t, &items, 0.0).0;
        assert!(after < 0.5 * before, "{before} {after}");
        assert!(net.train(x.view(), &t, &[99], &AdamConfig::default()).is_err());
        assert!(net.train(x.view(), &t, &[], &AdamConfig::default()).is_err());
    }

    #[test]
    fn bad_input_is_refused() {
        let x = ndarray::Array2::zeros((2, 1));
        let config = PerceptronConfig::default();
        assert!(Perceptron::fit(x.view(), &[0.0, 1.5], &config).is_err());
        assert!(Perceptron::fit(x.view(), &[0.0, f64::NAN], &config).is_err());
        assert!(Perceptron::fit(x.view(), &[0.0], &config).is_err());
        let none = PerceptronConfig { hidden: vec![0], ..config };
        assert!(Perceptron::fit(x.view(), &[0.0, 1.0], &none).is_err());
    }
}
