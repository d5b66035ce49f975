//! MACE: a voter either knows the truth or answers by a habit.
//!
//! 1. With probability `k[i]` voter `i` gives the true class, otherwise one drawn from its habit `h[i, v]`; classes are
//!    equally frequent. So `e[i, v, c] = (1 - k[i]) h[i, v] + k[i] [v = c]`.
//! 2. E: `q` as in any naive Bayes model. A vote `v` was habit with probability
//!    `(1 - q[t, v]) + q[t, v] (1 - k) h / ((1 - k) h + k)`.
//! 3. M: shares of habit and knowledge, and of each vote among habits; variational with Beta and Dirichlet priors
//!    (`exp(digamma(count + prior) - digamma(sum))`), or smoothed counts.
//!
//! | parameter | default | Crowd-Kit |
//! |---|---|---|
//! | restarts, steps | 10, 500 (or until nothing moves by 1e-9) | 10, 50 |
//! | priors: Beta, Dirichlet | 0.5, 10 | the same |
//! | smoothing of the plain M step | `0.01 / K` | the same |
//! | noise of the start | 0.5 | the same |
//!
//! **Deviations.** Crowd-Kit's restarts all draw the same numbers, so they are one; here each has its own. It also
//! numbers voters and classes in the order in which they come but reads its counts back sorted by name, which mixes up
//! voters unless the votes are sorted. The best is the
//! one with the largest likelihood of the votes, in logarithms without Crowd-Kit's `+ 1e-8` inside.
//!
//! Cost: `O(votes x K)` a step, over distinct rows. References: Hovy et al. 2013; Crowd-Kit,
//! `crowdkit/aggregation/classification/mace.py`.

use pilotfish_model::Streams;
use rand::Rng;
use statrs::function::gamma::digamma;

use super::fitted::{Convergence, Fitted};
use super::known::FLOOR;
use super::quality::qualities;
use super::rule::Rule;
use super::{LabelModel, informative, warnings};
use crate::{Result, Rows, SupervisionError};

/// MACE.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{LabelModel, Mace}};
/// // The third voter says 0 whatever is asked.
/// let votes = Votes::from_dense(6, 3, 2, &[1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0])?;
/// let fitted = Mace::default().fit(&votes)?;
/// assert_eq!(fitted.labels(), [1, 0, 1, 0, 1, 0]);
/// assert!(fitted.voters[0].skill > fitted.voters[2].skill);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mace {
    /// Starts, each with its own noise.
    pub restarts: usize,
    /// Most steps of each.
    pub iterations: usize,
    /// Largest change of a probability at which a run ends.
    pub tolerance: f64,
    /// Both parameters of the Beta prior; `None`: no priors, smoothed counts.
    pub beta: Option<f64>,
    /// Every parameter of the Dirichlet prior on habits.
    pub dirichlet: f64,
    /// Noise of the start.
    pub noise: f64,
    /// Seed of the starts.
    pub seed: u64,
}

impl Default for Mace {
    fn default() -> Self {
        Self {
            restarts: 10,
            iterations: 500,
            tolerance: 1e-9,
            beta: Some(0.5),
            dirichlet: 10.0,
            noise: 0.5,
            seed: 0,
        }
    }
}

impl Mace {
    /// Whether the parameters are in their ranges.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        for (name, value, least) in [
            ("restarts", self.restarts as f64, 1.0),
            ("tolerance", self.tolerance, 0.0),
            ("beta", self.beta.unwrap_or(1.0), 1e-9),
            ("dirichlet", self.dirichlet, 1e-9),
            ("noise", self.noise, 0.0),
        ] {
            if !(least..1e9).contains(&value) {
                return Err(SupervisionError::BadParameter { name, value, want: "a positive number" });
            }
        }
        Ok(())
    }
}

/// The best of several runs.
struct Run {
    likelihood: f64,
    spam: Vec<f64>,
    know: Vec<f64>,
    habit: Vec<f64>,
    trace: Vec<f64>,
    convergence: Convergence,
}

/// The rule of shares of habit and knowledge; variational ones sum to less than 1.
fn rule(spam: &[f64], know: &[f64], habit: &[f64], k: usize) -> Rule {
    let mut table = Vec::with_capacity(know.len() * k * k);
    for ((spam, know), habit) in spam.iter().zip(know).zip(habit.chunks(k)) {
        for (vote, habit) in habit.iter().enumerate() {
            let rate = |class| spam * habit + if vote == class { *know } else { 0.0 };
            table.extend((0..k).map(|class| rate(class).max(FLOOR).ln()));
        }
    }
    Rule::LogLinear { prior: vec![-(k as f64).ln(); k], table, silence: None }
}

impl LabelModel for Mace {
    fn name(&self) -> &'static str {
        "mace"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        self.check()?;
        let votes = rows.votes();
        let (m, k) = (votes.voters(), votes.classes());
        if m.saturating_mul(k * k) > 1 << 24 {
            let got = m.saturating_mul(k * k) as u64;
            return Err(SupervisionError::TooLarge {
                what: "voters x classes x classes",
                got,
                limit: 1 << 24,
            });
        }
        informative(self.name(), rows, 1, false)?;
        let smoothing = 0.01 / k as f64;
        let share = |count: f64, prior: f64, sum: f64| match self.beta {
            Some(_) => (digamma(count + prior) - digamma(sum)).exp(),
            None => (count + smoothing) / sum,
        };
        let mut best: Option<Run> = None;
        for restart in 0..self.restarts {
            let mut rng = Streams::new(self.seed).fork(restart as u64).stream("mace");
            let mut draw = |count: usize| {
                let drawn: Vec<f64> = (0..count).map(|_| 1.0 + self.noise * rng.random::<f64>()).collect();
                let sum: f64 = drawn.iter().sum();
                drawn.into_iter().map(move |value| value / sum).collect::<Vec<_>>()
            };
            let mut know: Vec<f64> = (0..m).map(|_| draw(2)[1]).collect();
            // Variational shares need not sum to 1, so habit has one of its own.
            let mut spam: Vec<f64> = know.iter().map(|know| 1.0 - know).collect();
            let mut habit: Vec<f64> = (0..m).flat_map(|_| draw(k)).collect();
            let (mut trace, mut iterations, mut change) = (Vec::new(), 0, f64::INFINITY);
            loop {
                let rule = rule(&spam, &know, &habit, k);
                let sums = rows.sum(
                    2 * m * k + 1,
                    || vec![0.0; k],
                    |row, q: &mut Vec<f64>, sums| {
                        let log = rule.row(rows, row, q);
                        let count = rows.count(row);
                        sums[2 * m * k].add(log, count);
                        votes.visit(row, |voter, vote| {
                            sums[2 * (voter * k + vote)].add_unit(1.0, count);
                            sums[2 * (voter * k + vote) + 1].add_unit(q[vote], count);
                        });
                    },
                );
                trace.push(sums[2 * m * k].value() / rows.items() as f64);
                if iterations == self.iterations || change < self.tolerance {
                    break;
                }
                iterations += 1;
                change = 0.0f64;
                for i in 0..m {
                    let habits = &mut habit[i * k..(i + 1) * k];
                    let (mut counts, mut known) = (vec![0.0; k], 0.0);
                    for (vote, count) in counts.iter_mut().enumerate() {
                        let [all, right] = [0, 1].map(|place| sums[2 * (i * k + vote) + place].value());
                        let by_habit = spam[i] * habits[vote];
                        let knew = know[i] / (by_habit + know[i]).max(f64::MIN_POSITIVE);
                        known += right * knew;
                        *count = all - right * knew;
                    }
                    let spammed: f64 = counts.iter().sum();
                    let beta = self.beta.unwrap_or(smoothing);
                    let sum = spammed + known + 2.0 * beta;
                    let (new_spam, new_know) = (share(spammed, beta, sum), share(known, beta, sum));
                    change = change.max((new_spam - spam[i]).abs()).max((new_know - know[i]).abs());
                    (spam[i], know[i]) = (new_spam, new_know);
                    let prior = if self.beta.is_some() { self.dirichlet } else { smoothing };
                    let sum = spammed + prior * k as f64;
                    for (habit, count) in habits.iter_mut().zip(&counts) {
                        let new = share(*count, prior, sum);
                        change = change.max((new - *habit).abs());
                        *habit = new;
                    }
                }
            }
            let convergence = match change < self.tolerance {
                true => Convergence::Converged { iterations },
                false => Convergence::NotConverged { iterations, change },
            };
            let likelihood = trace.last().copied().unwrap_or(f64::NEG_INFINITY);
            if best.as_ref().is_none_or(|best| likelihood > best.likelihood) {
                best = Some(Run { likelihood, spam, know, habit, trace, convergence });
            }
        }
        let Some(Run { spam, know, habit, trace: objective, convergence, .. }) = best else {
            return Err(SupervisionError::Solver {
                model: self.name(),
                why: "no run has a likelihood".into(),
            });
        };
        let rule = rule(&spam, &know, &habit, k);
        let posterior = rule.posterior(rows)?;
        let skill = |voter: usize| know.get(voter).map(|know| know / (know + spam[voter]));
        Ok(Fitted {
            model: self.name(),
            voters: qualities(rows, &posterior, skill),
            posterior,
            prior: vec![1.0 / k as f64; k],
            objective,
            convergence,
            warnings: warnings(rows),
            rule,
        })
    }
}
