//! Distilling the ensemble into a small scorer that needs no verifiers.

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::heads::{Logistic, LogisticConfig, Perceptron, PerceptronConfig, Scaler};
use crate::{Result, SupervisionError};

/// What the ensemble is distilled into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Student {
    /// A linear scorer.
    Linear(LogisticConfig),
    /// A perceptron.
    Perceptron(PerceptronConfig),
}

/// A distilled scorer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scorer {
    scaler: Scaler,
    head: Head,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Head {
    Linear(Logistic),
    Perceptron(Perceptron),
}

/// Fits a student to the ensemble's probabilities by cross-entropy, on features `[responses, features]` of responses
/// of the training queries.
///
/// The reference code regresses on the probability with a squared error, and splits rows, so that responses to one
/// query lie on both sides. Here the targets are soft and the caller splits queries; features are anything that is
/// cheap, such as an encoder's embedding of query and response.
///
/// ```
/// use ndarray::array;
/// use pilotfish_supervision::heads::LogisticConfig;
/// use pilotfish_supervision::weaver::{Student, distil};
/// let x = array![[0.0], [1.0], [2.0], [3.0]];
/// let student = Student::Linear(LogisticConfig { l2: 0.01, ..LogisticConfig::default() });
/// let scorer = distil(x.view(), &[0.05, 0.3, 0.7, 0.95], &student)?;
/// assert!((scorer.score(array![[1.5]].view())?[0] - 0.5).abs() < 1e-3);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
///
/// # Errors
/// No responses; lengths that differ; numbers that are not finite; probabilities outside `[0, 1]`; parameters outside
/// their ranges.
pub fn distil(features: ArrayView2<'_, f64>, probabilities: &[f64], student: &Student) -> Result<Scorer> {
    if probabilities.len() != features.nrows() {
        let (got, want) = (probabilities.len(), features.nrows());
        return Err(SupervisionError::Shape { what: "probabilities", got, want });
    }
    if let Some(&value) = probabilities.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return Err(SupervisionError::BadParameter { name: "probability", value, want: "from 0 to 1" });
    }
    let scaler = Scaler::fit(features)?;
    let x = scaler.apply(features)?;
    let head = match student {
        Student::Linear(config) => {
            let targets = Array2::from_shape_fn((probabilities.len(), 2), |(i, c)| match c {
                0 => 1.0 - probabilities[i],
                _ => probabilities[i],
            });
            Head::Linear(Logistic::fit(x.view(), targets.view(), None, config)?)
        }
        Student::Perceptron(config) => Head::Perceptron(Perceptron::fit(x.view(), probabilities, config)?),
    };
    Ok(Scorer { scaler, head })
}

impl Scorer {
    /// Probabilities that responses are right.
    ///
    /// # Errors
    /// Another number of features.
    pub fn score(&self, features: ArrayView2<'_, f64>) -> Result<Vec<f64>> {
        let x = self.scaler.apply(features)?;
        match &self.head {
            Head::Linear(model) => Ok(model.predict(x.view())?.column(1).to_vec()),
            Head::Perceptron(model) => model.predict(x.view()),
        }
    }
}
