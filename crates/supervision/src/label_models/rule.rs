//! How a fitted model turns a row of votes into probabilities.

use rayon::prelude::*;

use super::fitted::Posterior;
use crate::{Result, Rows, SupervisionError};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rule {
    /// `softmax(prior[c] + sum of table[voter][vote][c])`, in logarithms; `silence[voter][c]` for an abstention, if that
    /// says something.
    LogLinear { prior: Vec<f64>, table: Vec<f64>, silence: Option<Vec<f64>> },
    /// Shares of summed weights, a voter's times a class's; equal shares without any. `sharp` divides everything among
    /// the classes with the most.
    Shares { weights: Vec<f64>, class_weights: Vec<f64>, sharp: bool },
}

impl Rule {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::LogLinear { prior, table, .. } => (table.len() / (prior.len() * prior.len()), prior.len()),
            Self::Shares { weights, class_weights, .. } => (weights.len(), class_weights.len()),
        }
    }

    /// One posterior a row.
    pub(crate) fn posterior(&self, rows: &Rows<'_>) -> Result<Posterior> {
        let (voters, classes) = self.shape();
        let votes = rows.votes();
        for (what, got, want) in [("voters", votes.voters(), voters), ("classes", votes.classes(), classes)] {
            if got != want {
                return Err(SupervisionError::Shape { what, got, want });
            }
        }
        let mut values = vec![0.0; rows.len() * classes];
        values.par_chunks_mut(classes).with_min_len(1024).enumerate().for_each(|(row, out)| {
            self.row(rows, row, out);
        });
        Ok(Posterior { classes, values, of: None })
    }

    /// Probabilities of one row; the logarithm of their sum before normalising, for the log-linear rule.
    #[inline]
    pub(crate) fn row(&self, rows: &Rows<'_>, row: usize, out: &mut [f64]) -> f64 {
        let k = out.len();
        match self {
            Self::LogLinear { prior, table, silence } => {
                out.copy_from_slice(prior);
                let mut next = 0;
                let silent = |from: usize, to: usize, out: &mut [f64]| {
                    if let Some(silence) = silence {
                        for voter in from..to {
                            out.iter_mut().zip(&silence[voter * k..]).for_each(|(out, add)| *out += add);
                        }
                    }
                };
                rows.votes().visit(row, |voter, vote| {
                    silent(next, voter, out);
                    next = voter + 1;
                    let at = (voter * k + vote) * k;
                    out.iter_mut().zip(&table[at..at + k]).for_each(|(out, add)| *out += add);
                });
                silent(next, rows.votes().voters(), out);
                softmax(out, prior)
            }
            Self::Shares { weights, class_weights, sharp } => {
                out.fill(0.0);
                let mut any = false;
                rows.votes().visit(row, |voter, vote| {
                    out[vote] += weights[voter] * class_weights[vote];
                    any |= weights[voter] != 0.0;
                });
                // Negative weights may leave a class below 0: a share it cannot have.
                let least = out.iter().copied().fold(0.0, f64::min);
                out.iter_mut().for_each(|value| *value -= least);
                let sum: f64 = out.iter().sum();
                if !any || !(sum > 0.0) {
                    out.fill(1.0 / k as f64);
                } else if *sharp {
                    let most = out.iter().copied().fold(f64::MIN, f64::max);
                    let tied = out.iter().filter(|value| **value >= most - 1e-5).count() as f64;
                    out.iter_mut()
                        .for_each(|value| *value = if *value >= most - 1e-5 { 1.0 / tied } else { 0.0 });
                } else {
                    out.iter_mut().for_each(|value| *value /= sum);
                }
                0.0
            }
        }
    }
}

/// Normalises logarithms into probabilities and returns the logarithm of their sum. A row that no class allows gets the
/// prior.
#[inline]
pub(crate) fn softmax(values: &mut [f64], prior: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        let mut sum = 0.0;
        for (value, prior) in values.iter_mut().zip(prior) {
            *value = prior.exp();
            sum += *value;
        }
        values.iter_mut().for_each(|value| *value /= sum);
        return f64::NEG_INFINITY;
    }
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = (*value - most).exp();
        sum += *value;
    }
    values.iter_mut().for_each(|value| *value /= sum);
    most + sum.ln()
}
