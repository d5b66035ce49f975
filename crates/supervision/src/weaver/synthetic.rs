//! Queries, responses and verifiers with known rates.

use ndarray::{Array2, Array3};
use pilotfish_model::Streams;
use rand::Rng;
use rand_distr::{Beta, Distribution};
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// A world of weak verifiers: each query's success rate is drawn from a Beta law, its responses' labels with that
/// rate, and every verifier votes independently given the label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Synthetic {
    /// Queries.
    pub queries: usize,
    /// Responses a query.
    pub responses: usize,
    /// Parameters of the Beta law of success rates.
    pub difficulty: (f64, f64),
    /// `P(vote 1 | right)`, one a verifier.
    pub tpr: Vec<f64>,
    /// `P(vote 0 | wrong)`, one a verifier.
    pub tnr: Vec<f64>,
    /// Copies of the first verifier that repeat its votes: dependence that no independent model knows of.
    pub clones: usize,
}

impl Default for Synthetic {
    /// 200 queries and 12 verifiers, of which two say nearly always "right" and one guesses.
    fn default() -> Self {
        Self {
            queries: 200,
            responses: 10,
            difficulty: (0.7, 0.7),
            tpr: vec![0.92, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.58, 0.55, 0.97, 0.98, 0.5],
            tnr: vec![0.85, 0.9, 0.7, 0.75, 0.6, 0.7, 0.6, 0.5, 0.55, 0.04, 0.03, 0.5],
            clones: 0,
        }
    }
}

/// What was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Votes as scores, `[queries, responses, verifiers]`.
    pub scores: Array3<f64>,
    /// Which responses are right, `[queries, responses]`.
    pub labels: Array2<bool>,
}

impl Synthetic {
    /// Draws a world.
    ///
    /// # Errors
    /// No queries, responses or verifiers; parameters or rates outside their ranges.
    pub fn draw(&self, seed: u64) -> Result<Drawn> {
        let (a, b) = self.difficulty;
        let law = Beta::new(a, b).ok().filter(|_| a > 0.0 && b > 0.0);
        let Some(law) = law else {
            let name = "difficulty";
            return Err(SupervisionError::BadParameter { name, value: a.min(b), want: "above 0" });
        };
        if self.queries * self.responses * self.tpr.len() == 0 {
            return Err(SupervisionError::Empty { what: "queries, responses or verifiers" });
        }
        if self.tnr.len() != self.tpr.len() {
            let (got, want) = (self.tnr.len(), self.tpr.len());
            return Err(SupervisionError::Shape { what: "rates", got, want });
        }
        if let Some(&value) = self.tpr.iter().chain(&self.tnr).find(|rate| !(0.0..=1.0).contains(*rate)) {
            return Err(SupervisionError::BadParameter { name: "rate", value, want: "from 0 to 1" });
        }
        let mut rng = Streams::new(seed).stream("synthetic verifiers");
        let m = self.tpr.len();
        let mut labels = Array2::from_elem((self.queries, self.responses), false);
        let mut scores = Array3::zeros((self.queries, self.responses, m + self.clones));
        for query in 0..self.queries {
            let rate = law.sample(&mut rng).clamp(0.0, 1.0);
            for response in 0..self.responses {
                let label = rng.random_bool(rate);
                labels[[query, response]] = label;
                for k in 0..m + self.clones {
                    scores[[query, response, k]] = match k {
                        k if k >= m => scores[[query, response, 0]],
                        k if label => f64::from(u8::from(rng.random_bool(self.tpr[k]))),
                        k => f64::from(u8::from(rng.random_bool(1.0 - self.tnr[k]))),
                    };
                }
            }
        }
        Ok(Drawn { scores, labels })
    }
}
