//! Weaver: many weak verifiers of sampled responses become one score, without labels.
//!
//! Each verifier (a reward model, a judge, a vote count) says of each response "right" or "wrong". How often each is
//! right about right and about wrong responses follows from how the verifiers agree with each other; with these rates
//! the posterior of "right" is computed for every response, and the best response of each query is chosen.
//!
//! # Algorithm
//!
//! n queries, K responses each, m verifiers; scores s[i, j, k], missing ones NaN.
//!
//! 1. Append the majority vote as a verifier ([`majority_scores`]).
//! 2. Normalise each verifier over all queries unless it lies in `[0, 1]` already ([`normalise`]); missing scores
//!    become 0; verifiers that never vary are dropped.
//! 3. Vote `1[s >= threshold]` ([`binarise`]).
//! 4. Drop verifiers that nearly always vote the same ([`DropRule`]).
//! 5. With the share of right responses p given (a few labelled queries, or third moments: [`Balance`]), find
//!    `TPR_k = P(vote 1 | Y = 1)` and `FPR_k` from means and pairs of votes ([`ClosedForm`], or [`MomentMethod`]):
//!    the off-diagonal covariances are `p(1-p) (TPR_j - FPR_j)(TPR_k - FPR_k)` for conditionally independent votes.
//! 6. Score `ln p/(1-p) + sum_k ln P(vote_k | Y=1)/P(vote_k | Y=0)`, and choose the argmax in each query.
//!
//! Queries may first be split into clusters by difficulty ([`clusters`]), each fitted by itself.
//!
//! # Defaults
//!
//! | parameter | default | source |
//! |---|---|---|
//! | normalisation | min-max over all queries, missing 0 | released configurations |
//! | threshold | 0.5 | code's default; tuned ones (.01 to .95) are chosen on test labels |
//! | drop rule | `all`: keep shares in (0.1, 0.9) | code; the paper's 20/80 limits by [`DropRule::Paper`] |
//! | rates clipped to | [0.01, 0.99] | code (metal-ama) |
//! | estimator | closed form | ours; equals the converged loop |
//! | moment method | rate 1e-2, 2000 steps, momentum .9, weight 10 | code has 1e-5, 1000 steps: see below |
//! | clusters | 1 | released configurations |
//!
//! # Deviations
//!
//! - The closed form is the default. The reference code's loop with the released step size stops far from its
//!   minimum ([`MomentMethod::released`]); [`MomentFit::plateau`] says so.
//! - `p` is never taken from the labels of the responses that are selected from, as most released configurations do.
//!   It is an argument, because means and pairs do not determine it.
//! - Fewer than three verifiers left after dropping: the most balanced ones are added back instead of failing.
//! - A verifier that is constant outside `[0, 1]` is dropped; the code raises an error.
//! - Signs: verifiers are taken to be better than chance together; the code may return the mirror image.
//! - Not here: dependencies between verifiers (the code's search for them uses the true labels) and the
//!   continuous variant (its formula mixes up two variances).
//!
//! Beyond the paper: [`Stopping`], best of n with a stopping rule from the credible interval.
//!
//! # Cost
//!
//! `O(n K m²)` for the moments and `O(m³)` for the closed form; the moment method takes `O(m²)` a step.
//!
//! # References
//!
//! Saad-Falcon, Buchanan, Chen et al., "Shrinking the Generation-Verification Gap with Weak Verifiers", NeurIPS 2025,
//! arXiv 2506.18203, sections 4 and C. HazyResearch/scaling-verification, `weaver/models.py`, `weaver/dataset.py`;
//! mayeechen/metal-ama, `metal/label_model/label_model.py`. The closed form: covariances of one hidden binary
//! variable, own derivation.
//!
//! ```
//! use pilotfish_supervision::weaver::{self, Balance, Synthetic, WeaverConfig, best, chosen};
//! // 12 verifiers of which some are good, some say nearly always the same.
//! let data = Synthetic { queries: 100, responses: 10, ..Synthetic::default() }.draw(0)?;
//! let share = data.labels.iter().filter(|y| **y).count() as f64 / 1000.0;
//! let fit = weaver::fit(data.scores.view(), &Balance::Known(share), None, &WeaverConfig::default())?;
//! let right = chosen(data.labels.view(), &best(fit.probabilities.view()))?;
//! let first = chosen(data.labels.view(), &[0; 100])?;
//! let count = |list: &[bool]| list.iter().filter(|y| **y).count();
//! assert!(count(&right) > count(&first) + 20);
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

mod distil;
mod prune;
mod rates;
mod scaling;
mod scores;
mod select;
mod stopping;
mod synthetic;

#[cfg(test)]
mod rates_tests;
#[cfg(test)]
mod tests;

pub use distil::{Scorer, Student, distil};
pub use prune::DropRule;
pub use rates::{ClosedForm, Loss, MomentFit, MomentMethod, Moments, Rates, balance_from_votes};
pub use scaling::{CoverageLaw, SelectionLaw};
pub use scores::{
    Missing, Normalisation, Normalised, Scope, Threshold, balance_threshold, binarise, majority_answer,
    majority_scores, normalise,
};
pub use select::{TieBreak, best, best_by, chosen, clusters, naive_ensemble, pass_at_k, rank_verifiers};
pub use stopping::{Difficulty, Standing, Stopping, StoppingConfig, Verdict};
pub use synthetic::{Drawn, Synthetic};

use ndarray::{Array2, ArrayView2, ArrayView3, Axis};
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// How rates are found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// In closed form.
    ClosedForm(ClosedForm),
    /// By gradient descent on the moments, as the reference code.
    MomentMethod(MomentMethod),
}

impl Default for Estimator {
    fn default() -> Self {
        Self::ClosedForm(ClosedForm::default())
    }
}

/// Where the share of right responses comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// It is known, or estimated on other queries ([`balance_from_labels`]).
    Known(f64),
    /// One for each cluster.
    Each(Vec<f64>),
    /// From third moments of the votes themselves ([`balance_from_votes`]).
    ThirdMoments,
}

/// The share of right responses among labelled ones, kept within `[0.01, 0.99]`.
///
/// # Errors
/// No labels.
pub fn balance_from_labels(labels: ArrayView2<'_, bool>) -> Result<f64> {
    if labels.is_empty() {
        return Err(SupervisionError::Empty { what: "labels" });
    }
    let right = labels.iter().filter(|label| **label).count() as f64;
    Ok((right / labels.len() as f64).clamp(rates::CLIP.0, rates::CLIP.1))
}

/// Everything about how scores become probabilities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeaverConfig {
    /// How scores are normalised.
    pub normalisation: Normalisation,
    /// Over which scores.
    pub scope: Scope,
    /// What stands in for missing scores.
    pub missing: Missing,
    /// Where a score becomes a vote.
    pub threshold: Threshold,
    /// Which verifiers are dropped.
    pub drop: DropRule,
    /// How rates are found.
    pub estimator: Estimator,
}

/// What was fitted for a cluster of queries.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its queries.
    pub queries: Vec<usize>,
    /// The verifiers kept, by their index among the scores given.
    pub kept: Vec<usize>,
    /// Their rates, in that order.
    pub rates: Rates,
    /// For the moment method: the last loss, and whether it had come to rest.
    pub descent: Option<(f64, bool)>,
}

/// A fitted ensemble.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// Probability that a response is right, `[queries, responses]`.
    pub probabilities: Array2<f64>,
    /// Evidence of its votes, the prior left out, `[queries, responses]`.
    pub evidence: Array2<f64>,
    /// Mean of its normalised scores, `[queries, responses]`: the naive ensemble.
    pub means: Array2<f64>,
    /// What was fitted, one a cluster.
    pub clusters: Vec<Cluster>,
}

impl Fitted {
    /// The response chosen for each query.
    pub fn select(&self, tie: TieBreak) -> Vec<usize> {
        match tie {
            TieBreak::First => best(self.probabilities.view()),
            TieBreak::MeanScore => best_by(self.probabilities.view(), self.means.view()),
        }
    }
}

/// Fits an ensemble to raw scores `[queries, responses, verifiers]` and scores the same responses: no label enters
/// but through the balance. `groups` are clusters of queries that are fitted separately; `None` is one cluster.
///
/// # Errors
/// No scores, infinite scores; groups that do not hold every query once; fewer than three verifiers that vary in a
/// cluster, or none that agree more than by chance; numbers outside their ranges.
pub fn fit(
    scores: ArrayView3<'_, f64>,
    balance: &Balance,
    groups: Option<&[Vec<usize>]>,
    config: &WeaverConfig,
) -> Result<Fitted> {
    let normalised = normalise(scores, config.normalisation, config.scope, config.missing)?;
    let (queries, responses, _) = normalised.scores.dim();
    let whole = [(0..queries).collect::<Vec<_>>()];
    let groups = groups.unwrap_or(&whole);
    let mut seen = vec![false; queries];
    for &query in groups.iter().flatten() {
        match seen.get_mut(query) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(SupervisionError::Shape { what: "query in a group", got: query, want: queries }),
        }
    }
    if let Some(missing) = seen.iter().position(|seen| !seen) {
        return Err(SupervisionError::Shape { what: "query in no group", got: missing, want: queries });
    }
    if let Balance::Each(values) = balance
        && values.len() != groups.len()
    {
        return Err(SupervisionError::Shape { what: "balances", got: values.len(), want: groups.len() });
    }
    let mut fitted = Fitted {
        probabilities: Array2::zeros((queries, responses)),
        evidence: Array2::zeros((queries, responses)),
        means: naive_ensemble(normalised.scores.view()),
        clusters: Vec::new(),
    };
    for (index, group) in groups.iter().enumerate().filter(|(_, group)| !group.is_empty()) {
        let votes = binarise(normalised.scores.select(Axis(0), group).view(), &config.threshold)?;
        let shares: Vec<f64> = votes
            .columns()
            .into_iter()
            .map(|column| column.iter().map(|vote| f64::from(*vote)).sum::<f64>() / column.len() as f64)
            .collect();
        // The rule may depend on the balance, and the balance on what is kept.
        let known = match balance {
            Balance::Known(value) => Some(*value),
            Balance::Each(values) => values.get(index).copied(),
            Balance::ThirdMoments => None,
        };
        let kept = config.drop.keep(&shares, known.unwrap_or(0.5));
        let votes = votes.select(Axis(1), &kept);
        let balance = match known {
            Some(value) => value,
            None => balance_from_votes(votes.view())?,
        };
        let moments = Moments::of(votes.view())?;
        let (rates, descent) = match config.estimator {
            Estimator::ClosedForm(form) => (form.fit(&moments, balance)?, None),
            Estimator::MomentMethod(method) => {
                let fit = method.fit(&moments, balance)?;
                let last = fit.losses.last().copied().unwrap_or(f64::NAN);
                (fit.rates, Some((last, fit.plateau)))
            }
        };
        for (row, vote) in votes.rows().into_iter().enumerate() {
            let at = [group[row / responses], row % responses];
            fitted.evidence[at] = rates.evidence(vote);
            fitted.probabilities[at] = rates.posterior(vote);
        }
        let kept = kept.into_iter().map(|verifier| normalised.kept[verifier]).collect();
        fitted.clusters.push(Cluster { queries: group.clone(), kept, rates, descent });
    }
    Ok(fitted)
}
