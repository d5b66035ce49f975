//! Dawid and Skene's model: every voter has a confusion matrix, found by expectation-maximisation. With it, its relatives:
//! one accuracy a voter, hard assignments (fast Dawid-Skene), both in turn, and naive Bayes with abstention as a vote.
//!
//! 1. Start: `q[t, c]` = share of the votes on item `t` that are for class `c`.
//! 2. M: `p[c]` = mean over `t` of `q[t, c]`; `e[i, v, c]` = sum of `q[t, c]` over the items to which voter `i` gives `v`,
//!    over the same sum with any vote; kept at or above 1e-10 and normalised over `v`. One coin: `e[i, v, c]` = `s[i]` if
//!    `v = c`, else `(1 - s[i]) / (K - 1)`, with `s[i]` the mean of `q[t, vote]` over the voter's votes.
//! 3. E: `log q[t, c]` = `log p[c]` + sum over the voters of the item of `log e[i, vote, c]`, normalised. Hard: all to the
//!    largest.
//! 4. Repeat 2 and 3 until the objective, `sum q (log p + sum log e - log q)`, has nothing left to gain.
//!
//! | parameter | default | reference |
//! |---|---|---|
//! | stop | at most 10,000 steps; 1e-10 an item left to gain, by extrapolation | Crowd-Kit: 100, last gain below 1e-5 a vote; WRENCH: 10,000, 1e-5 |
//! | floor of probabilities | 1e-10 | Crowd-Kit; none for hard assignments |
//! | hard: stop | class shares change by less than 1e-4, at most 100 steps | Fast-Dawid-Skene |
//! | hybrid: from soft to hard | class shares change by at most 0.005 | Fast-Dawid-Skene |
//! | smoothing | none | none; see [`Smoothing`] |
//!
//! **Deviations.** Crowd-Kit adds `log p` once a vote to its objective, not once an item, and stops when it decreases;
//! its tolerance also stops far from the maximum (on 2,000 items with voters of accuracy 0.9, 0.6 and 0.6, at 0.795 and
//! 0.63). Here the objective is the evidence lower bound, which cannot decrease, and the gain that is left is
//! extrapolated from the last two (Aitken's rule; McLachlan and Krishnan, section 4.9). [`DawidSkene::crowd_kit`] does as
//! Crowd-Kit does. Ties of hard assignments go to the first class, not a random one. Fewer than three voters that vary
//! are refused: without a prior on the error rates, two do not determine the model.
//!
//! Cost: `O(votes x K)` a step, over distinct rows only, on all cores; `voters x K x K` numbers of 16 bytes a core.
//! References: Dawid and Skene 1979; Sinha, Rao and Balasubramanian, arXiv 1803.02781; Crowd-Kit,
//! `crowdkit/aggregation/classification/dawid_skene.py`; sukrutrao/Fast-Dawid-Skene; WRENCH,
//! `wrench/labelmodel/dawid_skene.py`.

use std::collections::HashMap;

use super::fitted::{Convergence, Fitted, Warning, label};
use super::known::{FLOOR, distribution};
use super::quality::qualities;
use super::rule::Rule;
use super::{LabelModel, informative, warnings};
use crate::exact::Sum;
use crate::{Result, Rows, SupervisionError, Votes};

/// Most sums that the confusion matrices may take.
const MOST: usize = 1 << 24;

/// How error rates are tied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errors {
    /// A confusion matrix a voter.
    #[default]
    Confusion,
    /// One accuracy a voter; errors fall evenly on the other classes.
    OneCoin,
}

/// How items are assigned to classes in the E step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Assignment {
    /// By probability.
    #[default]
    Soft,
    /// Wholly to the most probable class.
    Hard,
    /// By probability until the class shares change by at most this, then wholly.
    Hybrid {
        /// Sum of the absolute changes of the class shares.
        switch: f64,
    },
}

/// What an abstention says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Abstain {
    /// Nothing: it is independent of the truth.
    #[default]
    Ignore,
    /// It is one more symbol, with rates of its own.
    Symbol,
}

/// When iterations stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    /// When the evidence lower bound has less than this left to gain an item, by extrapolation.
    Remaining(f64),
    /// When the last gain of the evidence lower bound is below this, an item.
    Gain(f64),
    /// When the last gain of Crowd-Kit's objective is below this, a vote.
    CrowdKit(f64),
    /// When the class shares change by less than this, in all.
    Shares(f64),
}

/// Pseudo-counts of votes: a prior on the error rates.
///
/// Symmetric ones (`right == wrong`) pull every voter towards saying nothing, and of few items that is where the fit
/// ends; `right` should be larger.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Smoothing {
    /// Added to the count of every wrong vote (and of abstentions, where they are symbols).
    pub wrong: f64,
    /// Added to the count of every right vote.
    pub right: f64,
}

/// Dawid and Skene's model and its relatives.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{DawidSkene, LabelModel}};
/// // A voter of accuracy 0.9 and two of accuracy 0.6, over 2,000 items of two equally frequent classes.
/// let mut votes = Vec::new();
/// for (pattern, count) in [340, 240, 240, 180, 180, 240, 240, 340].into_iter().enumerate() {
///     let row = [pattern as i8 >> 2, pattern as i8 >> 1 & 1, pattern as i8 & 1];
///     votes.extend(row.repeat(count));
/// }
/// let votes = Votes::from_dense(2000, 3, 2, &votes)?;
/// let fitted = DawidSkene::default().fit(&votes)?;
/// assert!(fitted.convergence.is_converged());
/// let found: Vec<_> = fitted.voters.iter().map(|voter| voter.accuracy.map_or(0.0, |a| a.value)).collect();
/// assert!((found[0] - 0.9).abs() < 1e-3 && (found[1] - 0.6).abs() < 1e-3, "{found:?}");
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DawidSkene {
    /// How error rates are tied.
    pub errors: Errors,
    /// How items are assigned.
    pub assignment: Assignment,
    /// What an abstention says.
    pub abstain: Abstain,
    /// Pseudo-counts.
    pub smoothing: Smoothing,
    /// Known class balance; otherwise it is estimated.
    pub prior: Option<Vec<f64>>,
    /// Items whose class is known.
    pub gold: Vec<(usize, usize)>,
    /// Most steps.
    pub iterations: usize,
    /// When to stop.
    pub stop: Stop,
}

impl Default for DawidSkene {
    fn default() -> Self {
        Self {
            errors: Errors::default(),
            assignment: Assignment::default(),
            abstain: Abstain::default(),
            smoothing: Smoothing::default(),
            prior: None,
            gold: Vec::new(),
            iterations: 10_000,
            stop: Stop::Remaining(1e-10),
        }
    }
}

impl DawidSkene {
    /// One accuracy a voter.
    pub fn one_coin() -> Self {
        Self { errors: Errors::OneCoin, ..Self::default() }
    }

    /// Hard assignments (Sinha, Rao and Balasubramanian 2018): fast, and may stay at the majority vote.
    pub fn fast() -> Self {
        Self { assignment: Assignment::Hard, iterations: 100, stop: Stop::Shares(1e-4), ..Self::default() }
    }

    /// Soft assignments, then hard ones.
    pub fn hybrid() -> Self {
        Self { assignment: Assignment::Hybrid { switch: 0.005 }, ..Self::fast() }
    }

    /// As Crowd-Kit does it: its objective, 100 steps, its stop.
    pub fn crowd_kit() -> Self {
        Self { iterations: 100, stop: Stop::CrowdKit(1e-5), ..Self::default() }
    }

    /// As WRENCH does it: abstention is a symbol.
    pub fn wrench() -> Self {
        Self { abstain: Abstain::Symbol, stop: Stop::Gain(1e-5), ..Self::default() }
    }

    /// Naive Bayes over votes and abstentions, with small pseudo-counts that favour right votes.
    pub fn naive_bayes() -> Self {
        Self {
            abstain: Abstain::Symbol,
            smoothing: Smoothing { wrong: 0.01, right: 0.02 },
            ..Self::default()
        }
    }

    /// Whether the parameters are in their ranges.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        let (Stop::Remaining(tolerance)
        | Stop::Gain(tolerance)
        | Stop::CrowdKit(tolerance)
        | Stop::Shares(tolerance)) = self.stop;
        let switch = match self.assignment {
            Assignment::Hybrid { switch } => switch,
            _ => 0.0,
        };
        let smoothing = [self.smoothing.wrong, self.smoothing.right];
        for (name, value) in
            [("tolerance", tolerance), ("switch", switch), ("wrong", smoothing[0]), ("right", smoothing[1])]
        {
            if !(0.0..f64::INFINITY).contains(&value) {
                return Err(SupervisionError::BadParameter { name, value, want: "a number from 0" });
            }
        }
        self.prior.as_deref().map_or(Ok(()), |prior| distribution("prior", prior))
    }
}

impl LabelModel for DawidSkene {
    fn name(&self) -> &'static str {
        match (self.errors, self.assignment, self.abstain) {
            (Errors::OneCoin, ..) => "one-coin",
            (_, Assignment::Hard, _) => "fast-dawid-skene",
            (_, Assignment::Hybrid { .. }, _) => "hybrid-dawid-skene",
            (.., Abstain::Symbol) => "naive-bayes",
            _ => "dawid-skene",
        }
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        self.check()?;
        let (votes, model) = (rows.votes(), self.name());
        let k = votes.classes();
        if votes.voters().saturating_mul(k * k) > MOST {
            let got = votes.voters().saturating_mul(k * k) as u64;
            return Err(SupervisionError::TooLarge {
                what: "voters x classes x classes",
                got,
                limit: MOST as u64,
            });
        }
        if self.smoothing == Smoothing::default() && self.gold.is_empty() {
            informative(model, rows, 3, false)?;
        }
        if let Some(prior) = &self.prior
            && prior.len() != k
        {
            return Err(SupervisionError::Shape { what: "prior", got: prior.len(), want: k });
        }
        let mut gold = HashMap::new();
        for (item, class) in &self.gold {
            if *item >= rows.len() || *class >= k || rows.len() as u64 != rows.items() {
                return Err(SupervisionError::Shape {
                    what: "known item or class",
                    got: *item,
                    want: rows.len(),
                });
            }
            gold.insert(*item, *class);
        }
        // Without a vote, a known item or a pseudo-count for it, a class has no likelihood to find. Its rates would be free,
        // and it would take whatever the other classes make improbable.
        let mut possible = vec![self.prior.is_some() || self.smoothing != Smoothing::default(); k];
        gold.values().for_each(|class| possible[*class] = true);
        (0..rows.len())
            .filter(|row| rows.count(*row) > 0)
            .for_each(|row| votes.visit(row, |_, vote| possible[vote] = true));
        Em { model: self, rows, gold, possible, k, m: votes.voters() }.run()
    }

    fn fit(&self, votes: &Votes) -> Result<Fitted> {
        if self.gold.is_empty() {
            let rows = Rows::of(votes)?;
            return Ok(self.fit_rows(&rows)?.for_items(&rows));
        }
        self.fit_rows(&Rows::plain(votes))
    }
}

struct Em<'a> {
    model: &'a DawidSkene,
    rows: &'a Rows<'a>,
    gold: HashMap<usize, usize>,
    /// Whether an item can be of a class.
    possible: Vec<bool>,
    k: usize,
    m: usize,
}

/// What an E step leaves: exact sums over all items.
struct Counts {
    /// `voters x votes x classes`.
    votes: Vec<Sum>,
    /// Items, by class.
    classes: Vec<Sum>,
    entropy: Sum,
}

/// What an M step leaves.
struct Parameters {
    rule: Rule,
    prior: Vec<f64>,
    /// Of one coin.
    skills: Vec<f64>,
    /// The evidence lower bound of the counts under the parameters, plus the logarithm of the smoothing's density.
    bound: f64,
    crowd_kit: f64,
}

impl Em<'_> {
    fn run(&self) -> Result<Fitted> {
        let votes = self.rows.votes();
        let start =
            Rule::Shares { weights: vec![1.0; self.m], class_weights: vec![1.0; self.k], sharp: false };
        let mut hard = self.model.assignment == Assignment::Hard;
        let mut counts = self.expect(&start, hard);
        let mut at = self.maximise(&counts);
        let (mut objective, mut used) = (Vec::new(), None);
        let mut convergence =
            Convergence::NotConverged { iterations: self.model.iterations, change: f64::INFINITY };
        let mut shares: Vec<f64> = self.shares(&counts);
        for iteration in 1..=self.model.iterations {
            counts = self.expect(&at.rule, hard);
            let next = self.maximise(&counts);
            used = Some(std::mem::replace(&mut at, next).rule);
            objective.push(match self.model.stop {
                Stop::CrowdKit(_) => at.crowd_kit / votes_in(self.rows),
                _ => at.bound / self.rows.items() as f64,
            });
            let new_shares = self.shares(&counts);
            let moved: f64 = shares.iter().zip(&new_shares).map(|(old, new)| (old - new).abs()).sum();
            shares = new_shares;
            let (change, tolerance) = match self.model.stop {
                Stop::Remaining(tolerance) => (remaining(&objective), tolerance),
                Stop::Gain(tolerance) | Stop::CrowdKit(tolerance) => (gain(&objective), tolerance),
                Stop::Shares(tolerance) => (moved, tolerance),
            };
            if let Assignment::Hybrid { switch } = self.model.assignment
                && !hard
            {
                hard = moved <= switch;
            } else if change < tolerance {
                convergence = Convergence::Converged { iterations: iteration };
                break;
            }
            if let Convergence::NotConverged { change: last, .. } = &mut convergence {
                *last = change;
            }
        }
        let applied = match (self.model.stop, &used) {
            // Crowd-Kit returns the posterior that its last parameters were made from.
            (Stop::CrowdKit(_), Some(rule)) => rule,
            _ => &at.rule,
        };
        let mut posterior = applied.posterior(self.rows)?;
        for (row, class) in &self.gold {
            let q = &mut posterior.values[row * self.k..(row + 1) * self.k];
            q.fill(0.0);
            q[*class] = 1.0;
        }
        let skills = &at.skills;
        let voters = qualities(self.rows, &posterior, |voter| skills.get(voter).copied());
        let mut warnings = warnings(self.rows);
        for (voter, quality) in voters.iter().enumerate() {
            if quality.accuracy.is_some_and(|accuracy| accuracy.high < 1.0 / self.k as f64) {
                warnings.push(Warning::Adversarial { voter });
            }
        }
        debug_assert_eq!(votes.voters(), voters.len());
        Ok(Fitted {
            model: self.model.name(),
            posterior,
            prior: at.prior,
            voters,
            objective,
            convergence,
            warnings,
            rule: at.rule,
        })
    }

    /// E step and the sums that the M step needs, in one pass.
    fn expect(&self, rule: &Rule, hard: bool) -> Counts {
        let (k, cells) = (self.k, self.m * self.k * self.k);
        let votes = self.rows.votes();
        let mut sums = self.rows.sum(
            cells + k + 1,
            || vec![0.0; k],
            |row, q: &mut Vec<f64>, sums| {
                match self.gold.get(&row) {
                    Some(class) => {
                        q.fill(0.0);
                        q[*class] = 1.0;
                    }
                    None => {
                        rule.row(self.rows, row, q);
                        if hard {
                            let (best, _) = label(q);
                            q.fill(0.0);
                            q[best] = 1.0;
                        }
                    }
                }
                let count = self.rows.count(row);
                votes.visit(row, |voter, vote| {
                    let at = (voter * k + vote) * k;
                    sums[at..at + k].iter_mut().zip(&*q).for_each(|(sum, q)| sum.add_unit(*q, count));
                });
                for (class, q) in q.iter().enumerate() {
                    sums[cells + class].add_unit(*q, count);
                    if *q > 0.0 {
                        sums[cells + k].add_unit(-q * q.ln(), count);
                    }
                }
            },
        );
        let entropy = sums.pop().unwrap_or_default();
        let classes = sums.split_off(cells);
        Counts { votes: sums, classes, entropy }
    }

    fn shares(&self, counts: &Counts) -> Vec<f64> {
        counts.classes.iter().map(|sum| sum.value() / self.rows.items() as f64).collect()
    }

    fn maximise(&self, counts: &Counts) -> Parameters {
        let (k, m) = (self.k, self.m);
        let floor = if matches!(self.model.assignment, Assignment::Soft) { FLOOR } else { 0.0 };
        let prior = self.model.prior.clone().unwrap_or_else(|| self.shares(counts));
        let log =
            |(p, possible): (&f64, &bool)| if *possible { p.max(floor).ln() } else { f64::NEG_INFINITY };
        let log_prior: Vec<f64> = prior.iter().zip(&self.possible).map(log).collect();
        let symbols = k + usize::from(self.model.abstain == Abstain::Symbol);
        let (wrong, right) = (self.model.smoothing.wrong, self.model.smoothing.right);
        let mut table = vec![0.0; m * k * k];
        let mut silence = (symbols > k).then(|| vec![0.0; m * k]);
        let mut skills = Vec::new();
        let (mut bound, mut by_class) = (0.0, vec![0.0; k]);
        let mut column = vec![0.0; symbols];
        for voter in 0..m {
            let counted = |vote: usize, class: usize| counts.votes[(voter * k + vote) * k + class];
            let skill = (self.model.errors == Errors::OneCoin).then(|| {
                let (mut hits, mut all) = (Sum::default(), Sum::default());
                for vote in 0..k {
                    hits.merge(counted(vote, vote));
                    (0..k).for_each(|class| all.merge(counted(vote, class)));
                }
                let (hits, all) = (hits.value() + right, all.value() + right + wrong * (k as f64 - 1.0));
                if all > 0.0 { hits / all } else { 1.0 / k as f64 }
            });
            for class in 0..k {
                let mut spoken = Sum::default();
                for (vote, cell) in column.iter_mut().enumerate().take(k) {
                    spoken.merge(counted(vote, class));
                    *cell = counted(vote, class).value();
                    by_class[class] += *cell;
                }
                if symbols > k {
                    column[k] = counts.classes[class].minus(spoken).value();
                }
                let pseudo = |vote: usize| if vote == class { right } else { wrong };
                let total: f64 = column.iter().enumerate().map(|(vote, cell)| cell + pseudo(vote)).sum();
                let rate = |vote: usize| match skill {
                    Some(skill) if vote == class => skill.clamp(floor, 1.0 - floor),
                    Some(skill) => ((1.0 - skill) / (k as f64 - 1.0)).clamp(floor, 1.0 - floor),
                    None if total > 0.0 => ((column[vote] + pseudo(vote)) / total).max(floor),
                    None => 1.0 / symbols as f64,
                };
                let norm: f64 = if skill.is_some() { 1.0 } else { (0..symbols).map(rate).sum() };
                for vote in 0..symbols {
                    let log = (rate(vote) / norm).ln();
                    let weight = column[vote] + pseudo(vote);
                    if weight > 0.0 && !(skill.is_some() && vote == k) {
                        bound += weight * log;
                    }
                    match (&mut silence, vote == k) {
                        (Some(silence), true) => silence[voter * k + class] = log,
                        _ => table[(voter * k + vote) * k + class] = log,
                    }
                }
            }
            skills.extend(skill);
        }
        bound += counts.entropy.value();
        let add = |weights: &mut dyn Iterator<Item = f64>| -> f64 {
            weights
                .zip(&log_prior)
                .filter(|(weight, _)| *weight > 0.0)
                .map(|(weight, log)| weight * log)
                .sum()
        };
        let crowd_kit = bound + add(&mut by_class.iter().copied());
        bound += add(&mut counts.classes.iter().map(|sum| sum.value()));
        Parameters {
            rule: Rule::LogLinear { prior: log_prior, table, silence },
            prior,
            skills,
            bound,
            crowd_kit,
        }
    }
}

/// The last gain.
fn gain(objective: &[f64]) -> f64 {
    match objective {
        [.., before, last] => last - before,
        _ => f64::INFINITY,
    }
}

/// What is left to gain if gains go on shrinking as the last two did.
fn remaining(objective: &[f64]) -> f64 {
    let [.., first, second, third] = objective else { return f64::INFINITY };
    let (before, last) = (second - first, third - second);
    // Below the rounding of the objective itself there is nothing left to see.
    if last <= 4.0 * f64::EPSILON * third.abs() {
        return 0.0;
    }
    let ratio = last / before;
    if ratio > 0.0 && ratio < 1.0 { last * ratio / (1.0 - ratio) } else { f64::INFINITY }
}

fn votes_in(rows: &Rows<'_>) -> f64 {
    (0..rows.len())
        .map(|row| {
            let mut votes = 0u64;
            rows.votes().visit(row, |_, _| votes += rows.count(row));
            votes
        })
        .sum::<u64>() as f64
}
