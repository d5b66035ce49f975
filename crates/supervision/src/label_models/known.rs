//! The Bayes rule with known parameters: what every label model tries to come near.
//!
//! 1. `log P(y | votes)` = `log p[y]` + sum over the voters that vote of `log P(vote | y)`, normalised.
//! 2. For voters of accuracy `a` whose errors fall evenly on the other classes, that is a weighted vote with weights
//!    `ln(a (K - 1) / (1 - a))`, plus `ln p[y]`.
//!
//! Probabilities are kept at or above 1e-10. Cost: one pass. Reference: any text on naive Bayes.

use super::fitted::{Convergence, Fitted};
use super::quality::qualities;
use super::rule::Rule;
use super::{LabelModel, warnings};
use crate::{Result, Rows, SupervisionError};

/// Smallest probability of a vote.
pub(crate) const FLOOR: f64 = 1e-10;

/// Votes under known error rates.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{KnownRates, LabelModel}};
/// // Accuracies 0.9, 0.6, 0.6: the first voter outweighs the other two.
/// let votes = Votes::from_dense(1, 3, 2, &[1, 0, 0])?;
/// let fitted = KnownRates::from_accuracies(&[0.9, 0.6, 0.6], &[0.5, 0.5])?.fit(&votes)?;
/// assert!((fitted.posterior.row(0)[1] - 0.8).abs() < 1e-12);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct KnownRates {
    prior: Vec<f64>,
    /// `voters x classes x classes`: P(vote | truth) at `(voter * K + truth) * K + vote`.
    rates: Vec<f64>,
}

impl KnownRates {
    /// Full confusion matrices: `rates[(voter * K + truth) * K + vote]` is P(vote | truth, it votes).
    ///
    /// # Errors
    /// A prior or a row of rates that is not a distribution; a length that is not a multiple of `K * K`.
    pub fn new(prior: Vec<f64>, rates: Vec<f64>) -> Result<Self> {
        let k = prior.len();
        if k < 2 || rates.is_empty() || rates.len() % (k * k) != 0 {
            return Err(SupervisionError::Shape { what: "rates", got: rates.len(), want: k * k });
        }
        for row in std::iter::once(&prior[..]).chain(rates.chunks(k)) {
            distribution("probability", row)?;
        }
        Ok(Self { prior, rates })
    }

    /// One accuracy a voter; errors fall evenly on the other classes.
    ///
    /// # Errors
    /// An accuracy outside 0 to 1, a prior that is not a distribution.
    pub fn from_accuracies(accuracies: &[f64], prior: &[f64]) -> Result<Self> {
        let k = prior.len();
        let mut rates = Vec::with_capacity(accuracies.len() * k * k);
        for value in accuracies {
            if !(0.0..=1.0).contains(value) {
                return Err(SupervisionError::BadParameter {
                    name: "accuracy",
                    value: *value,
                    want: "from 0 to 1",
                });
            }
            let wrong = (1.0 - value) / (k as f64 - 1.0);
            rates.extend((0..k * k).map(|cell| if cell / k == cell % k { *value } else { wrong }));
        }
        Self::new(prior.to_vec(), rates)
    }
}

impl LabelModel for KnownRates {
    fn name(&self) -> &'static str {
        "known-rates"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        let k = self.prior.len();
        let rule = Rule::LogLinear {
            prior: self.prior.iter().map(|p| p.max(FLOOR).ln()).collect(),
            table: by_vote(&self.rates, k).iter().map(|p| p.max(FLOOR).ln()).collect(),
            silence: None,
        };
        let posterior = rule.posterior(rows)?;
        Ok(Fitted {
            model: self.name(),
            voters: qualities(rows, &posterior, |_| None),
            posterior,
            prior: self.prior.clone(),
            objective: Vec::new(),
            convergence: Convergence::Closed,
            warnings: warnings(rows),
            rule,
        })
    }
}

/// From `(voter, truth, vote)` to `(voter, vote, truth)`.
pub(crate) fn by_vote(rates: &[f64], k: usize) -> Vec<f64> {
    let place = |cell: usize| {
        let (voter, vote, truth) = (cell / (k * k), cell / k % k, cell % k);
        rates[(voter * k + truth) * k + vote]
    };
    (0..rates.len()).map(place).collect()
}

/// Refuses what is not a distribution.
pub(crate) fn distribution(name: &'static str, values: &[f64]) -> Result<()> {
    if let Some(value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
        return Err(SupervisionError::BadParameter { name, value: *value, want: "from 0 to 1" });
    }
    let value: f64 = values.iter().sum();
    if !((value - 1.0).abs() < 1e-6) {
        return Err(SupervisionError::BadParameter { name: "sum of probabilities", value, want: "1" });
    }
    Ok(())
}
