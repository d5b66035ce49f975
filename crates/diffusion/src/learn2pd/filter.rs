use pilotfish_model::Streams;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::refuse;
use crate::{DiffusionError, Result};

/// A linear layer of a filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Row-major `[width, width]`.
    pub(crate) weights: Vec<f64>,
    /// `[width]`.
    pub(crate) bias: Vec<f64>,
}

/// The filter: square linear layers with ReLU between them, block in, block out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    width: usize,
    layers: Vec<Layer>,
}

/// The widest block a filter is made for, and the deepest it may be.
const LARGEST: [usize; 2] = [4096, 16];

impl Filter {
    /// A filter with the weights a PyTorch `Linear` starts from: uniform within `1 / sqrt(width)`.
    ///
    /// # Errors
    /// A width of 0 or above 4096; no layers, or more than 16.
    pub fn new(width: usize, layers: usize, seed: u64) -> Result<Self> {
        sizes(width, layers)?;
        let (bound, mut rng) = (1.0 / (width as f64).sqrt(), Streams::new(seed).stream("filter"));
        let mut numbers = |n: usize| (0..n).map(|_| rng.random_range(-bound..=bound)).collect::<Vec<f64>>();
        let layers =
            (0..layers).map(|_| Layer { weights: numbers(width * width), bias: numbers(width) }).collect();
        Ok(Self { width, layers })
    }

    /// The filter of two layers that accepts, at one half, what exceeds a threshold: `W1 = I`, `W2 = slope I`,
    /// `b2 = -slope gamma`.
    ///
    /// # Errors
    /// A threshold or slope that is not finite; a width of 0 or above 4096.
    pub fn threshold(width: usize, gamma: f64, slope: f64) -> Result<Self> {
        sizes(width, 2)?;
        let scaled = |by: f64| {
            (0..width * width).map(|at| if at / width == at % width { by } else { 0.0 }).collect::<Vec<f64>>()
        };
        let filter = Self {
            width,
            layers: vec![
                Layer { weights: scaled(1.0), bias: vec![0.0; width] },
                Layer { weights: scaled(slope), bias: vec![-slope * gamma; width] },
            ],
        };
        filter.check()?;
        Ok(filter)
    }

    /// Checks a filter that was read from somewhere.
    ///
    /// # Errors
    /// Layers that do not fit its width; weights that are not finite.
    pub fn check(&self) -> Result<()> {
        sizes(self.width, self.layers.len())?;
        for Layer { weights, bias } in &self.layers {
            if weights.len() != self.width * self.width || bias.len() != self.width {
                let (got, want) = (weights.len() + bias.len(), self.width * (self.width + 1));
                return Err(DiffusionError::Length { what: "weights of a filter's layer", got, want });
            }
            if let Some(&weight) = weights.iter().chain(bias).find(|weight| !weight.is_finite()) {
                return refuse("weight", weight, "finite");
            }
        }
        Ok(())
    }

    /// Positions it is made for.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of weights: `layers (width^2 + width)`.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.weights.len() + layer.bias.len()).sum()
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [Layer] {
        &mut self.layers
    }

    /// Logits `z` of a block's confidences. A shorter block is padded with zeros on the right, and the padding's
    /// outputs dropped.
    ///
    /// # Errors
    /// A block that is longer than the filter is wide.
    pub fn logits(&self, confidences: &[f64]) -> Result<Vec<f64>> {
        if confidences.len() > self.width {
            let (got, want) = (confidences.len(), self.width);
            return Err(DiffusionError::Length { what: "positions of a filter's block", got, want });
        }
        let mut x = confidences.to_vec();
        x.resize(self.width, 0.0);
        for (index, layer) in self.layers.iter().enumerate() {
            let rows = layer.weights.chunks_exact(self.width).zip(&layer.bias);
            let mut y: Vec<f64> =
                rows.map(|(row, bias)| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>() + bias).collect();
            if index + 1 < self.layers.len() {
                y.iter_mut().for_each(|y| *y = y.max(0.0));
            }
            x = y;
        }
        x.truncate(confidences.len());
        Ok(x)
    }

    /// `sigmoid(z)`: how likely each prediction is final.
    ///
    /// # Errors
    /// As [`Filter::logits`].
    pub fn accepts(&self, confidences: &[f64]) -> Result<Vec<f64>> {
        Ok(self.logits(confidences)?.into_iter().map(sigmoid).collect())
    }
}

fn sizes(width: usize, layers: usize) -> Result<()> {
    if !(1..=LARGEST[0]).contains(&width) {
        return refuse("filter width", width as f64, "from 1 to 4096");
    }
    if !(1..=LARGEST[1]).contains(&layers) {
        return refuse("filter layers", layers as f64, "from 1 to 16");
    }
    Ok(())
}

pub(crate) fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

/// Binary cross-entropy of a logit, in nats: `ln(1 + e^z) - y z`.
pub fn bce(z: f64, label: bool) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p() - if label { z } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted() {
        for (width, want) in [(8, 144), (16, 544), (32, 2112)] {
            assert_eq!(Filter::new(width, 2, 0).expect("valid").parameters(), want);
        }
        assert!(Filter::new(0, 2, 0).is_err() && Filter::new(8, 0, 0).is_err());
        assert!(Filter::new(usize::MAX, 2, 0).is_err() && Filter::threshold(4, f64::NAN, 1.0).is_err());
    }

    #[test]
    fn the_identity_filter_is_a_threshold() {
        let filter = Filter::threshold(4, 0.9, 10.0).expect("valid");
        let z = filter.logits(&[0.95, 0.70, 0.91, 0.20]).expect("fits");
        let want = [0.5, -2.0, 0.1, -7.0];
        assert!(z.iter().zip(want).all(|(z, want)| (z - want).abs() < 1e-12), "{z:?}");
        let p = filter.accepts(&[0.95, 0.70, 0.91, 0.20]).expect("fits");
        assert!(p.iter().zip([0.622, 0.119, 0.525, 0.001]).all(|(p, want)| (p - want).abs() < 1e-3), "{p:?}");
    }

    #[test]
    fn short_blocks_are_padded_with_zeros() {
        let filter = Filter::new(6, 2, 3).expect("valid");
        let short = filter.logits(&[0.3, 0.9]).expect("fits");
        assert_eq!(short[..], filter.logits(&[0.3, 0.9, 0.0, 0.0, 0.0, 0.0]).expect("fits")[..2]);
        assert!(filter.logits(&[0.0; 7]).is_err());
    }

    #[test]
    fn cross_entropy_by_hand() {
        assert!((bce(0.0, true) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((bce(2.0, false) - 2.1269).abs() < 1e-4);
        assert!(((bce(0.0, true) + bce(2.0, false)) / 2.0 - 1.4100).abs() < 1e-4);
        assert_eq!(bce(1e4, true), 0.0);
        assert_eq!(bce(-1e4, true), 1e4);
    }

    #[test]
    fn files_are_checked() {
        let filter = Filter::new(3, 2, 1).expect("valid");
        let text = serde_json::to_string(&filter).expect("writable");
        assert_eq!(serde_json::from_str::<Filter>(&text).expect("whole").parameters(), 24);
        let cut = Filter { width: 4, ..filter.clone() };
        assert!(cut.check().is_err());
        let mut spoilt = filter;
        spoilt.layers[0].weights[0] = f64::NAN;
        assert!(spoilt.check().is_err());
    }
}
