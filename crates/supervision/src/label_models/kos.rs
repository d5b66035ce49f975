//! Karger, Oh and Shah's message passing, two classes.
//!
//! 1. Votes are -1 and 1. Every vote carries a message `y`, at first drawn from a normal law of mean and variance 1.
//! 2. `x[t, i]` = sum over the item's other voters `j` of `vote[t, j] y[t, j]`; then
//!    `y[t, i]` = sum over the voter's other items `s` of `vote[s, i] x[s, i]`. Repeat.
//! 3. The label is the sign of the sum over the item's voters of `vote[t, i] y[t, i]`.
//!
//! | parameter | default | source |
//! |---|---|---|
//! | steps | 100 | Crowd-Kit |
//!
//! **Deviations.** Messages are divided by their largest after every step, which changes no sign; Crowd-Kit lets them grow and
//! stops before they overflow. A sum of exactly 0 is a tie here and an error there. There are no probabilities in this
//! method: each label has all of it.
//!
//! Not for a handful of votes: on four items and three voters most first messages end with every label flipped, here as in
//! the published algorithm, because the graph is then far from a tree.
//!
//! Cost: `O(votes)` a step and 8 bytes a vote. References: Karger, Oh and Shah 2014; Crowd-Kit,
//! `crowdkit/aggregation/classification/kos.py`.

use pilotfish_model::Streams;
use rand::Rng;
use rand_distr::StandardNormal;

use super::fitted::{Convergence, Fitted, Posterior};
use super::quality::qualities;
use super::rule::Rule;
use super::{LabelModel, balance, informative, warnings};
use crate::{Result, Rows, SupervisionError};

/// Karger, Oh and Shah's message passing.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{Kos, LabelModel}};
/// // Six items, five voters, two of whom are wrong once each.
/// let rows = [[1, 1, 1, 1, 1], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]];
/// let votes = Votes::from_dense(6, 5, 2, &rows.concat())?;
/// assert_eq!(Kos::default().fit(&votes)?.labels(), [1, 0, 1, 0, 1, 0]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kos {
    /// Steps.
    pub iterations: usize,
    /// Seed of the first messages.
    pub seed: u64,
}

impl Default for Kos {
    fn default() -> Self {
        Self { iterations: 100, seed: 0 }
    }
}

impl LabelModel for Kos {
    fn name(&self) -> &'static str {
        "kos"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        let votes = rows.votes();
        let (m, classes) = (votes.voters(), votes.classes());
        if classes != 2 {
            return Err(SupervisionError::NotBinary { model: self.name(), classes });
        }
        informative(self.name(), rows, 2, false)?;
        let sign = |vote: usize| if vote == 1 { 1.0 } else { -1.0 };
        let mut rng = Streams::new(self.seed).stream("kos");
        let mut messages = Vec::new();
        for row in 0..rows.len() {
            votes.visit(row, |_, _| messages.push(1.0 + rng.sample::<f64, _>(StandardNormal)));
        }
        // What each vote says about its item, times the sign of the vote, and the sums of it.
        let (mut skills, mut change) = (vec![0.0; m], f64::INFINITY);
        for _ in 0..self.iterations {
            let mut place = 0;
            let mut totals = vec![0.0; m];
            let mut said = messages.clone();
            for row in 0..rows.len() {
                let (mut sum, start) = (0.0, place);
                votes.visit(row, |_, vote| {
                    sum += sign(vote) * messages[place];
                    place += 1;
                });
                let (count, mut at) = (rows.count(row) as f64, start);
                votes.visit(row, |voter, vote| {
                    said[at] = sign(vote) * (sum - sign(vote) * messages[at]);
                    totals[voter] += count * said[at];
                    at += 1;
                });
            }
            let mut place = 0;
            for row in 0..rows.len() {
                votes.visit(row, |voter, _| {
                    said[place] = totals[voter] - said[place];
                    place += 1;
                });
            }
            let largest = said.iter().fold(0.0f64, |most, value| most.max(value.abs()));
            if !(largest > 0.0) {
                let why = "no two votes are joined through an item and a voter".to_owned();
                return Err(SupervisionError::Unidentifiable { model: self.name(), why });
            }
            said.iter_mut().for_each(|value| *value /= largest);
            change = said.iter().zip(&messages).map(|(new, old)| (new - old).abs()).fold(0.0, f64::max);
            messages = said;
            let most = totals.iter().fold(0.0f64, |most, value| most.max(value.abs()));
            skills = totals.iter().map(|total| if most > 0.0 { total / most } else { 0.0 }).collect();
        }
        let mut values = Vec::with_capacity(2 * rows.len());
        let mut place = 0;
        for row in 0..rows.len() {
            let mut sum = 0.0;
            votes.visit(row, |_, vote| {
                sum += sign(vote) * messages[place];
                place += 1;
            });
            let one = if sum == 0.0 { 0.5 } else { f64::from(u8::from(sum > 0.0)) };
            values.extend([1.0 - one, one]);
        }
        let posterior = Posterior { classes: 2, values, of: None };
        let iterations = self.iterations;
        Ok(Fitted {
            model: self.name(),
            prior: balance(rows, &posterior),
            voters: qualities(rows, &posterior, |voter| skills.get(voter).copied()),
            posterior,
            objective: Vec::new(),
            convergence: match change < 1e-6 {
                true => Convergence::Converged { iterations },
                false => Convergence::NotConverged { iterations, change },
            },
            warnings: warnings(rows),
            rule: Rule::Shares { weights: skills, class_weights: vec![1.0; 2], sharp: true },
        })
    }
}
