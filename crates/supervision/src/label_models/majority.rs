//! Votes counted: majority, weighted votes, Wawa and zero-based skills.
//!
//! 1. `score[t, c]` = sum of `w[i]` over the voters `i` that give item `t` class `c`; `prob[t, c]` is its share of the
//!    item's sum; the label is the class with the largest, the first of equal ones.
//! 2. Majority: `w[i] = 1`. Wawa: one majority vote, then `w[i]` = agreement with it, then again. Zero-based skill:
//!    `w[i]` moves towards agreement with the weighted vote that it takes part in.
//!
//! | parameter | default | source |
//! |---|---|---|
//! | ties | shares of votes | Crowd-Kit; `Ties::Sharp` is Snorkel's `MajorityLabelVoter` |
//! | zero-based skill: start, rate, steps | `1/K + 1e-5`, 1, 100; the rate halves every 20 | Crowd-Kit |
//!
//! **Deviations.** An item without votes gets equal shares and is flagged as tied, where Crowd-Kit leaves it out. Labels
//! of ties are the first class in order, not a random one nor the one that comes first in the file (Crowd-Kit).
//!
//! Cost: one pass over the votes each, 101 for zero-based skills. References: Crowd-Kit,
//! `crowdkit/aggregation/classification/{majority_vote,wawa,zero_based_skill,gold_majority_vote}.py`; Snorkel,
//! `snorkel/labeling/model/baselines.py`; WRENCH, `wrench/labelmodel/majority_voting.py`.

use super::fitted::{Convergence, Fitted, Posterior, label};
use super::quality::qualities;
use super::rule::Rule;
use super::{LabelModel, warnings};
use crate::{Result, Rows, SupervisionError, Votes};

/// What the probabilities of an item's classes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ties {
    /// Shares of the votes.
    #[default]
    Shares,
    /// Everything to the class with the most, divided equally among several.
    Sharp,
}

/// The class that most voters give.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{LabelModel, MajorityVote}};
/// let votes = Votes::from_dense(2, 3, 2, &[1, 1, 0, 0, -1, 1])?;
/// let fitted = MajorityVote::default().fit(&votes)?;
/// assert_eq!(fitted.posterior.row(0), [1.0 / 3.0, 2.0 / 3.0]);
/// // One against one: the first class, and flagged.
/// assert_eq!((fitted.labels(), fitted.posterior.tied(1)), (vec![1, 0], true));
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MajorityVote {
    /// What the probabilities are.
    pub ties: Ties,
}

impl LabelModel for MajorityVote {
    fn name(&self) -> &'static str {
        "majority"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        let votes = rows.votes();
        let rule = Rule::Shares {
            weights: vec![1.0; votes.voters()],
            class_weights: vec![1.0; votes.classes()],
            sharp: self.ties == Ties::Sharp,
        };
        let posterior = rule.posterior(rows)?;
        let skills = agreement(rows, &posterior);
        Ok(counted(self.name(), rows, rule, posterior, skills))
    }
}

/// Votes with given weights, a voter's times a class's.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedVote {
    /// Weight of each voter.
    pub weights: Vec<f64>,
    /// Weight of each class, such as its share among all items (WRENCH's weighted majority vote); empty: 1.
    pub class_weights: Vec<f64>,
}

impl WeightedVote {
    /// Weights are the shares of right votes among the items whose truth is known; a voter without such items gets 0.
    ///
    /// # Errors
    /// One truth an item is needed, and at least one that is known.
    pub fn from_gold(votes: &Votes, truth: &[Option<usize>]) -> Result<Self> {
        if truth.len() != votes.items() {
            return Err(SupervisionError::Shape { what: "truths", got: truth.len(), want: votes.items() });
        }
        let mut counts = vec![(0u64, 0u64); votes.voters()];
        for (item, class) in truth.iter().enumerate() {
            if let Some(class) = class {
                votes.visit(item, |voter, vote| {
                    counts[voter].0 += u64::from(vote == *class);
                    counts[voter].1 += 1;
                });
            }
        }
        if counts.iter().all(|(_, all)| *all == 0) {
            return Err(SupervisionError::Empty { what: "votes on items with a known truth" });
        }
        let weights = counts.iter().map(|(right, all)| *right as f64 / (*all).max(1) as f64).collect();
        Ok(Self { weights, class_weights: Vec::new() })
    }
}

impl LabelModel for WeightedVote {
    fn name(&self) -> &'static str {
        "weighted"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        let votes = rows.votes();
        let class_weights = match self.class_weights.is_empty() {
            true => vec![1.0; votes.classes()],
            false => self.class_weights.clone(),
        };
        if let Some(value) = self.weights.iter().chain(&class_weights).find(|weight| !weight.is_finite()) {
            return Err(SupervisionError::BadParameter {
                name: "weight",
                value: *value,
                want: "a finite number",
            });
        }
        let rule = Rule::Shares { weights: self.weights.clone(), class_weights, sharp: false };
        let posterior = rule.posterior(rows)?;
        Ok(counted(self.name(), rows, rule, posterior, self.weights.clone()))
    }
}

/// Votes weighted by agreement with the majority ("worker agreement with aggregate").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wawa;

impl LabelModel for Wawa {
    fn name(&self) -> &'static str {
        "wawa"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        let majority = MajorityVote::default().fit_rows(rows)?;
        let weights = agreement(rows, &majority.posterior);
        let class_weights = vec![1.0; rows.votes().classes()];
        let rule = Rule::Shares { weights: weights.clone(), class_weights, sharp: false };
        let posterior = rule.posterior(rows)?;
        Ok(counted(self.name(), rows, rule, posterior, weights))
    }
}

/// Votes weighted by skills that start just above chance and follow agreement with the weighted vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZeroBasedSkill {
    /// Steps.
    pub iterations: usize,
    /// First learning rate; it halves before every twentieth step.
    pub rate: f64,
}

impl Default for ZeroBasedSkill {
    fn default() -> Self {
        Self { iterations: 100, rate: 1.0 }
    }
}

impl ZeroBasedSkill {
    /// Whether the parameters are in their ranges.
    ///
    /// # Errors
    /// A rate outside 0 to 1.
    pub fn check(&self) -> Result<()> {
        if !(self.rate > 0.0 && self.rate <= 1.0) {
            let (name, value) = ("rate", self.rate);
            return Err(SupervisionError::BadParameter { name, value, want: "above 0, at most 1" });
        }
        Ok(())
    }
}

impl LabelModel for ZeroBasedSkill {
    fn name(&self) -> &'static str {
        "zero-based-skill"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        self.check()?;
        let votes = rows.votes();
        let class_weights = vec![1.0; votes.classes()];
        let mut weights = vec![1.0 / votes.classes() as f64 + 1e-5; votes.voters()];
        let (mut rate, mut change) = (self.rate, 0.0);
        let rule = |weights: &[f64]| Rule::Shares {
            weights: weights.to_vec(),
            class_weights: class_weights.clone(),
            sharp: false,
        };
        for iteration in 1..=self.iterations {
            if iteration % 20 == 0 {
                rate /= 2.0;
            }
            let accuracy = agreement(rows, &rule(&weights).posterior(rows)?);
            change = 0.0f64;
            for (weight, accuracy) in weights.iter_mut().zip(accuracy) {
                let step = rate * (accuracy - *weight);
                *weight += step;
                change = change.max(step.abs());
            }
        }
        let rule = rule(&weights);
        let posterior = rule.posterior(rows)?;
        let mut fitted = counted(self.name(), rows, rule, posterior, weights);
        let iterations = self.iterations;
        fitted.convergence = match change < 1e-5 {
            true => Convergence::Converged { iterations },
            false => Convergence::NotConverged { iterations, change },
        };
        Ok(fitted)
    }
}

/// Share of each voter's votes that are the label of their item; 0 without votes.
pub(crate) fn agreement(rows: &Rows<'_>, posterior: &Posterior) -> Vec<f64> {
    let (m, k) = (rows.votes().voters(), posterior.classes);
    let sums = rows.sum(
        2 * m,
        || (),
        |row, (), sums| {
            let (best, _) = label(&posterior.values[row * k..(row + 1) * k]);
            let count = rows.count(row);
            rows.votes().visit(row, |voter, vote| {
                sums[2 * voter].add_unit(1.0, count);
                sums[2 * voter + 1].add_unit(f64::from(u8::from(vote == best)), count);
            });
        },
    );
    sums.chunks(2)
        .map(|pair| if pair[0].value() > 0.0 { pair[1].value() / pair[0].value() } else { 0.0 })
        .collect()
}

fn counted(
    model: &'static str,
    rows: &Rows<'_>,
    rule: Rule,
    posterior: Posterior,
    skills: Vec<f64>,
) -> Fitted {
    Fitted {
        model,
        prior: super::balance(rows, &posterior),
        voters: qualities(rows, &posterior, |voter| skills.get(voter).copied()),
        posterior,
        objective: Vec::new(),
        convergence: Convergence::Closed,
        warnings: warnings(rows),
        rule,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fixture D of the notes: six items, three workers.
    fn six() -> Votes {
        Votes::from_dense(6, 3, 2, &[1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1]).expect("valid")
    }

    #[test]
    fn six_items_three_workers() {
        let fitted = MajorityVote::default().fit(&six()).expect("fits");
        let ones: Vec<_> = (0..6).map(|item| fitted.posterior.row(item)[1]).collect();
        assert_eq!(ones, [2.0 / 3.0, 1.0, 1.0 / 3.0, 1.0 / 3.0, 0.0, 2.0 / 3.0]);
        assert_eq!(fitted.labels(), [1, 1, 0, 0, 0, 1]);
        let skills: Vec<_> = fitted.voters.iter().map(|voter| voter.skill.expect("has one")).collect();
        assert_eq!(skills, [1.0, 2.0 / 3.0, 2.0 / 3.0]);
        // Wawa's second pass: item 1 has votes 1, 1, 0 with weights 1, 2/3, 2/3.
        let wawa = Wawa.fit(&six()).expect("fits");
        assert!((wawa.posterior.row(0)[1] - 5.0 / 7.0).abs() < 1e-15);
    }

    #[test]
    fn snorkels_voter_divides_ties() {
        // Snorkel's test: rows [0, 0, -1], [-1, 0, 1], [1, -1, 0].
        let votes = Votes::from_dense(4, 3, 2, &[0, 0, -1, -1, 0, 1, 1, -1, 0, -1, -1, -1]).expect("valid");
        let fitted = MajorityVote { ties: Ties::Sharp }.fit(&votes).expect("fits");
        let rows: Vec<_> = (0..4).map(|item| fitted.posterior.row(item).to_vec()).collect();
        assert_eq!(rows, [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]);
        assert_eq!((fitted.posterior.tied(0), fitted.posterior.tied(3)), (false, true));
    }

    #[test]
    fn weights_decide() {
        let votes = Votes::from_dense(1, 3, 3, &[0, 1, 1]).expect("valid");
        let vote = |weights: &[f64], class_weights: &[f64]| {
            WeightedVote { weights: weights.into(), class_weights: class_weights.into() }.fit(&votes)
        };
        assert_eq!(vote(&[3.0, 1.0, 1.0], &[]).expect("fits").posterior.row(0), [0.6, 0.4, 0.0]);
        assert_eq!(vote(&[1.0; 3], &[4.0, 1.0, 1.0]).expect("fits").labels(), [0]);
        assert!(vote(&[f64::NAN, 1.0, 1.0], &[]).is_err() && vote(&[1.0; 2], &[]).is_err());
        let gold = WeightedVote::from_gold(&votes, &[Some(1)]).expect("known");
        assert_eq!(gold.weights, [0.0, 1.0, 1.0]);
        assert!(WeightedVote::from_gold(&votes, &[None]).is_err());
        assert!(ZeroBasedSkill { rate: f64::NAN, ..Default::default() }.fit(&votes).is_err());
    }
}
