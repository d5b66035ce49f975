//! Snuba: labelling functions of few features, chosen one by one for what they add.
//!
//! Many small classifiers are fitted on the labelled items; the ones that are right there and that speak of other
//! unlabelled items than those chosen before are kept, and the next are fitted on the labelled items about which those
//! chosen so far leave doubt.
//!
//! # Algorithm
//!
//! m = functions so far; items V = all labelled ones.
//!
//! 1. Fit a decision stump and a logistic regression to every set of 1 to D features, on V.
//! 2. Each votes 1 at `p >= b + beta`, 0 at `p <= b - beta` (b = 1/2), otherwise it abstains. beta maximises the weighted F1
//!    on all labelled items, an abstention being wrong; of equal ones the smallest.
//! 3. Keep the 3 (first round), then 1 with the highest `F1 / 2 + J / 2`: micro-averaged F1 on all labelled items; J = 1 -
//!    sum min(c, n) / sum max(c, n) over unlabelled items, c = whether it votes there, n = how many chosen ones do, and 1 in
//!    the first round ([`jaccard`]).
//! 4. The aggregator of votes ([`Aggregator`], fitted on unlabelled items) gives p(y) of the labelled items.
//! 5. V = items with `|p - b| <= gamma`, `gamma = 1/2 - m^(-3/2)` ([`gamma`]). Stop if there are none, after 23 rounds, or when
//!    V holds a single class.
//!
//! [`unipolar`]: one class against the rest, once a class; only positive votes count, for that class. [`multiclass`]: functions
//! over all classes vote the most probable one at `p >= b + beta`, b = 1/C; the aggregator is Snorkel's label model (100
//! steps of rate 0.005), doubt is `max p - 1/C <= gamma`.
//!
//! # Defaults
//!
//! | parameter | default | source |
//! |---|---|---|
//! | D | 1 | code |
//! | rounds; kept in the first, in others | 23; 3, 1 | code |
//! | beta | 0.25 to 0.45, 10 values | code |
//! | weights of F1 and J | 1/2 each | code |
//!
//! # Deviations
//!
//! From the code, where it is wrong or undefined: ties of beta and of scores are broken by an unstable sort there, here by the
//! smallest beta and the last function. Doubt in several classes is tested on the number of the class there, so that class
//! 0 is always in doubt, and coverage takes class 0 for an abstention and an abstention for a vote; here both mean what
//! they say. A logistic regression fitted on a part of the classes numbers them from 0 there; here they keep their
//! numbers. b is 1/C instead of 0.1, the same for ten classes. Snorkel's model starts from its estimate, not from that
//! times a random number; where it cannot be fitted (fewer than three functions that vary) votes are counted.
//!
//! Cost: for each round, 2 d functions on m labelled items and their votes on the unlabelled ones, times C for
//! [`unipolar`].
//!
//! References: Varma and Ré, "Snuba: Automating Weak Supervision to Label Training Data", VLDB 2019; HazyResearch/reef,
//! `program_synthesis`; SprocketLab/AutoWS-Bench-101, `fwrench/lf_selectors/snuba`, `snuba_multiclass`.
//!
//! ```
//! use pilotfish_supervision::autows::snuba::{SnubaConfig, binary};
//! // Ten items, one feature, one of them out of place.
//! let x = ndarray::Array2::from_shape_fn((10, 1), |(i, _)| i as f64);
//! let y = [0, 0, 0, 0, 1, 1, 1, 1, 0, 1];
//! let functions = binary(x.view(), &y, x.view(), &SnubaConfig::default())?;
//! // A stump and a regression; both leave out what they are unsure of.
//! assert_eq!((functions.len() >= 2, functions[0].beta), (true, 0.25));
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::function::{any, band, best_beta, either, generate, micro_f1};
use super::{Function, Says, check};
use crate::heads::sigmoid;
use crate::label_models::{LabelModel, MajorityVote, Snorkel, Solver};
use crate::{Result, SupervisionError, Votes};

/// How functions are made and chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnubaConfig {
    /// Most features a function reads.
    pub cardinality: usize,
    /// Rounds at most.
    pub rounds: usize,
    /// Functions kept in the first round.
    pub first: usize,
    /// Functions kept in every other.
    pub then: usize,
    /// Half widths of the band of abstention to choose from, ascending.
    pub betas: Vec<f64>,
    /// Whether decision stumps are made.
    pub stumps: bool,
    /// Whether logistic regressions are made.
    pub logistic: bool,
}

impl Default for SnubaConfig {
    fn default() -> Self {
        Self {
            cardinality: 1,
            rounds: 23,
            first: 3,
            then: 1,
            betas: (0..10).map(|at| 0.25 + 0.2 * f64::from(at) / 9.0).collect(),
            stumps: true,
            logistic: true,
        }
    }
}

/// Most functions a round, in all sets of features.
const MOST: u64 = 1 << 22;

impl SnubaConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// Nothing to make or keep; a beta outside 0 to 1/2.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("cardinality", self.cardinality),
            ("rounds", self.rounds),
            ("first", self.first),
            ("then", self.then),
            ("betas", self.betas.len()),
            ("kinds of functions", usize::from(self.stumps || self.logistic)),
        ] {
            if value == 0 {
                return Err(SupervisionError::BadParameter { name, value: 0.0, want: "at least 1" });
            }
        }
        match self.betas.iter().find(|beta| !(**beta >= 0.0 && **beta < 0.5)) {
            Some(&value) => {
                Err(SupervisionError::BadParameter { name: "beta", value, want: "at least 0 and below 1/2" })
            }
            None => Ok(()),
        }
    }

    pub(super) fn check_count(&self, features: usize) -> Result<()> {
        let (mut sets, mut all) = (1u64, 0u64);
        for size in 1..=self.cardinality.min(features) as u64 {
            sets = sets.saturating_mul(features as u64 + 1 - size) / size;
            all = all.saturating_add(sets);
        }
        if all > MOST {
            return Err(SupervisionError::TooLarge { what: "sets of features", got: all, limit: MOST });
        }
        Ok(())
    }
}

/// How far from 1/2 the probability of an item may be that still counts as in doubt, with `functions` chosen.
///
/// ```
/// use pilotfish_supervision::autows::snuba::gamma;
/// assert_eq!((gamma(4), gamma(25)), (0.375, 0.492));
/// ```
pub fn gamma(functions: usize) -> f64 {
    0.5 - (functions.max(1) as f64).powf(-1.5)
}

/// Jaccard distance of a function's coverage from what is covered: `1 - sum min / sum max`. 0 where neither covers anything.
///
/// ```
/// use pilotfish_supervision::autows::snuba::jaccard;
/// assert_eq!(jaccard(&[true, false, false, true, true, true], &[1, 1, 0, 2, 0, 1]), 0.5);
/// ```
pub fn jaccard(covers: &[bool], counts: &[u32]) -> f64 {
    let (mut least, mut most) = (0u64, 0u64);
    for (covers, count) in covers.iter().zip(counts) {
        let covers = u32::from(*covers);
        least += u64::from(covers.min(*count));
        most += u64::from(covers.max(*count));
    }
    if most == 0 { 0.0 } else { 1.0 - least as f64 / most as f64 }
}

/// Reef's aggregator of two-class votes: `p(1) = sigmoid(sum of w_i v_i)`, v = 1, 0 (abstains), -1.
///
/// Weights start at 1 and move towards the log-odds of each function's accuracy, as the weights themselves see it, by
/// gradient steps of 0.001, 1000 at most: from 25 functions on they hardly move, so that it is nearly an unweighted vote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aggregator {
    weights: Vec<f64>,
}

impl Aggregator {
    /// Fits weights to votes `[items, functions]`: 1, 0, or -1 for an abstention.
    pub fn fit(votes: &Array2<i16>) -> Self {
        let m = votes.ncols();
        let mut patterns: BTreeMap<Vec<i16>, f64> = BTreeMap::new();
        for row in votes.rows() {
            *patterns.entry(row.to_vec()).or_default() += 1.0;
        }
        // Signs of votes, pattern by pattern, and how often each occurs.
        let signs: Vec<f64> = patterns.keys().flatten().map(|vote| sign(*vote)).collect();
        let counts: Vec<f64> = patterns.into_values().collect();
        let mut said = vec![0.0; m];
        for (row, count) in signs.chunks_exact(m.max(1)).zip(&counts) {
            said.iter_mut().zip(row).for_each(|(said, v)| *said += count * v.abs());
        }
        let all: f64 = said.iter().sum::<f64>().max(1e-300);
        let (mut w, mut g) = (vec![1.0; m], vec![0.0; m]);
        let mut agrees = vec![0.0; m];
        for step in 0..1000 {
            agrees.fill(0.0);
            for (row, count) in signs.chunks_exact(m.max(1)).zip(&counts) {
                let z: f64 = row.iter().zip(&w).map(|(v, w)| v * w).sum();
                // 2 sigmoid(z) - 1.
                let lean = count * (0.5 * z).tanh();
                agrees.iter_mut().zip(row).for_each(|(sum, v)| *sum += v * lean);
            }
            for i in 0..m {
                let p = (agrees[i] / (said[i] + 1e-8) + 1.0) / 2.0;
                let target = (p / (1.0 - p)).ln().clamp(-10.0, 10.0);
                g[i] = 0.95 * said[i] * (w[i] - target) / all + 0.05 * g[i];
            }
            let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
            if step >= 10 && (norm(&w) < 1e-12 || norm(&g) / norm(&w) < 1e-6) {
                break;
            }
            for (w, g) in w.iter_mut().zip(&g) {
                *w -= 1e-3 * g;
                // Elastic net: weight 1e-6, half of it L1.
                *w = w.signum() * (w.abs() - 1e-6).max(0.0) / (1.0 + 0.5e-6);
            }
        }
        Self { weights: w }
    }

    /// Weights of the functions.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// p(1) of items from their votes.
    pub fn probabilities(&self, votes: &Array2<i16>) -> Vec<f64> {
        let one = |row: ndarray::ArrayView1<'_, i16>| {
            sigmoid(row.iter().zip(&self.weights).map(|(v, w)| sign(*v) * w).sum())
        };
        votes.rows().into_iter().map(one).collect()
    }
}

fn sign(vote: i16) -> f64 {
    match vote {
        1 => 1.0,
        0 => -1.0,
        _ => 0.0,
    }
}

/// Functions that tell two classes apart; `y` holds 0 and 1. Features `[items, features]`.
///
/// # Errors
/// No items or features, lengths that differ, features that are not finite, a label that is neither 0 nor 1; parameters
/// outside their ranges, too many sets of features.
pub fn binary(
    labelled: ArrayView2<'_, f64>,
    y: &[usize],
    unlabelled: ArrayView2<'_, f64>,
    config: &SnubaConfig,
) -> Result<Vec<Function>> {
    check(labelled, y, 2, unlabelled)?;
    run(&columns(labelled), y, &columns(unlabelled), Says::Either, config)
}

/// Functions for several classes, each of which votes for one class only: Snuba for every class against the rest.
///
/// # Errors
/// As [`binary`]; a label that is not below `classes`.
pub fn unipolar(
    labelled: ArrayView2<'_, f64>,
    y: &[usize],
    classes: usize,
    unlabelled: ArrayView2<'_, f64>,
    config: &SnubaConfig,
) -> Result<Vec<Function>> {
    check(labelled, y, classes, unlabelled)?;
    let (labelled, unlabelled) = (columns(labelled), columns(unlabelled));
    let mut out = Vec::new();
    for class in 0..classes {
        let y: Vec<usize> = y.iter().map(|label| usize::from(*label == class)).collect();
        let functions = run(&labelled, &y, &unlabelled, Says::Either, config)?;
        out.extend(functions.into_iter().map(|function| Function { says: Says::Only(class), ..function }));
    }
    Ok(out)
}

/// Functions for several classes, each of which may vote for any.
///
/// # Errors
/// As [`binary`]; a label that is not below `classes`.
pub fn multiclass(
    labelled: ArrayView2<'_, f64>,
    y: &[usize],
    classes: usize,
    unlabelled: ArrayView2<'_, f64>,
    config: &SnubaConfig,
) -> Result<Vec<Function>> {
    check(labelled, y, classes, unlabelled)?;
    run(&columns(labelled), y, &columns(unlabelled), Says::Any { classes }, config)
}

pub(super) fn columns(x: ArrayView2<'_, f64>) -> Array2<f64> {
    x.t().as_standard_layout().into_owned()
}

/// A function with its beta, and its votes on the labelled items; all `[features, items]`.
pub(super) fn with_beta(
    model: super::Model,
    labelled: &Array2<f64>,
    y: &[usize],
    says: Says,
    betas: &[f64],
) -> (Function, Vec<i16>) {
    let (beta, votes) = match says {
        Says::Any { classes } => {
            let tops = model.tops(labelled, classes);
            best_beta(betas, y, classes, |item, beta| any(tops[item], classes, beta))
        }
        Says::Either | Says::Only(_) => {
            let evidence = model.evidence(labelled);
            let bands: Vec<_> = betas.iter().map(|beta| (*beta, band(*beta))).collect();
            let of = |beta: f64| bands.iter().find(|(b, _)| *b == beta).map_or((0.0, 0.0), |(_, band)| *band);
            best_beta(betas, y, 2, |item, beta| either(evidence[item], of(beta)))
        }
    };
    (Function { model, beta, says }, votes)
}

fn run(
    labelled: &Array2<f64>,
    y: &[usize],
    unlabelled: &Array2<f64>,
    says: Says,
    config: &SnubaConfig,
) -> Result<Vec<Function>> {
    config.check()?;
    config.check_count(labelled.nrows())?;
    let classes = if let Says::Any { classes } = says { classes } else { 2 };
    let (n, u) = (y.len(), unlabelled.ncols());
    let mut chosen: Vec<Function> = Vec::new();
    let (mut on_labelled, mut on_unlabelled): (Vec<Vec<i16>>, Vec<Vec<i16>>) = Default::default();
    let mut counts = vec![0u32; u];
    let mut doubtful: Vec<usize> = (0..n).collect();
    for round in 0..config.rounds {
        let kinds = (config.stumps, config.logistic);
        let models = generate(labelled, y, &doubtful, classes, kinds, config.cardinality)?;
        let keep = if round == 0 { config.first } else { config.then };
        // The best so far, best first; a later one takes the place of an equal earlier one.
        let mut best: Vec<(f64, Function, Vec<i16>, Vec<i16>)> = Vec::new();
        for model in models {
            let (function, votes) = with_beta(model, labelled, y, says, &config.betas);
            let f1 = micro_f1(y, &votes);
            let others = function.votes(unlabelled)?;
            let distance = match round {
                0 => 1.0,
                _ => jaccard(&others.iter().map(|vote| *vote >= 0).collect::<Vec<_>>(), &counts),
            };
            let score = 0.5 * f1 + 0.5 * distance;
            let place = best.partition_point(|(better, ..)| *better > score);
            if place < keep {
                best.insert(place, (score, function, votes, others));
                best.truncate(keep);
            }
        }
        if best.is_empty() {
            break;
        }
        for (_, function, votes, others) in best {
            counts.iter_mut().zip(&others).for_each(|(count, vote)| *count += u32::from(*vote >= 0));
            chosen.push(function);
            on_labelled.push(votes);
            on_unlabelled.push(others);
        }
        if round + 1 == config.rounds {
            break;
        }
        let matrix =
            |votes: &[Vec<i16>], items| Array2::from_shape_fn((items, votes.len()), |(i, f)| votes[f][i]);
        let (train, seen) = (matrix(&on_unlabelled, u), matrix(&on_labelled, n));
        let confidence: Vec<f64> = match says {
            Says::Any { .. } => doubt_of_many(&train, &seen, classes)?,
            _ => Aggregator::fit(&train).probabilities(&seen).iter().map(|p| (p - 0.5).abs()).collect(),
        };
        let limit = gamma(chosen.len());
        doubtful = (0..n).filter(|item| confidence[*item] <= limit).collect();
        if doubtful.is_empty() {
            break;
        }
    }
    Ok(chosen)
}

/// How far the most probable class of every labelled item is above 1/C.
pub(super) fn doubt_of_many(train: &Array2<i16>, labelled: &Array2<i16>, classes: usize) -> Result<Vec<f64>> {
    let nothing = vec![0.0; labelled.nrows()];
    let pack = |votes: &Array2<i16>| {
        let cells: Vec<i16> = votes.iter().copied().collect();
        Votes::from_dense(votes.nrows(), votes.ncols(), classes, &cells)
    };
    let empty = |votes: &Array2<i16>| votes.iter().all(|vote| *vote < 0);
    if empty(train) || empty(labelled) {
        return Ok(nothing);
    }
    let (train, labelled) = (pack(train)?, pack(labelled)?);
    let model =
        Snorkel { solver: Solver::Sgd { rate: 0.005, momentum: 0.9, steps: 100 }, ..Snorkel::default() };
    let fitted = match model.fit(&train) {
        Err(SupervisionError::TooFewVoters { .. } | SupervisionError::Unidentifiable { .. }) => {
            MajorityVote::default().fit(&train)?
        }
        other => other?,
    };
    let posterior = fitted.predict(&labelled)?;
    let top = |item: usize| posterior.row(item).iter().copied().fold(0.0, f64::max) - 1.0 / classes as f64;
    Ok((0..posterior.items()).map(top).collect())
}
