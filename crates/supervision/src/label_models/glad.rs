//! GLAD: voters have abilities, items have difficulties.
//!
//! 1. P(vote of `i` on `t` is right) = `sigmoid(x)`, `x = a[i] exp(b[t])`; a wrong vote falls on any other class with equal
//!    probability. `a` is an ability (below 0: adversarial), `exp(b)` how easy the item is. Both have normal priors of mean
//!    1 and variance 1; classes are equally frequent unless said otherwise.
//! 2. E: `log q[t, c]` = `log p[c]` + sum of `log sigmoid(x)` over votes for `c` and `log((1 - sigmoid(x)) / (K - 1))` over
//!    the others, normalised.
//! 3. M: maximise `Q = sum q log P(votes | c) + log priors` over `a` and `b`:
//!    `dQ/da[i] = sum over t of (q[t, vote] - sigmoid(x)) exp(b[t]) - (a[i] - 1)`,
//!    `dQ/db[t] = sum over i of (q[t, vote] - sigmoid(x)) a[i] exp(b[t]) - (b[t] - 1)`.
//!
//! | parameter | default | Crowd-Kit |
//! |---|---|---|
//! | steps, tolerance | 100, 1e-6 a vote | 100, 1e-5 |
//! | M step | L-BFGS, at most 50 steps, gradient below 1e-3 | conjugate gradients, 25, 1e-2 |
//! | start, priors | `a = b = 1`, normal around 1 | the same |
//!
//! **Deviations.** Crowd-Kit divides `Q` by the number of votes times classes from the first step on but not before it, so
//! its first comparison is always a gain and its second one often the end; [`Glad::crowd_kit`] stops as it does. By default
//! the objective is the penalised log-likelihood of the votes, which cannot decrease. A further item's difficulty is
//! unknown, so [`Fitted::predict`] takes the mean of the fitted ones.
//!
//! Cost: `O(votes)` an evaluation, a few thousand of them; one parameter a distinct row, so it is the one model here
//! that is not fitted from counts to the bit. References: Whitehill et al. 2009; Crowd-Kit,
//! `crowdkit/aggregation/classification/glad.py`.

use super::fitted::{Convergence, Fitted, Posterior, Warning};
use super::known::distribution;
use super::quality::qualities;
use super::rule::{Rule, softmax};
use super::{LabelModel, informative, warnings};
use crate::solver::minimise;
use crate::{Result, Rows, SupervisionError};

/// GLAD.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{Glad, LabelModel}};
/// let votes = Votes::from_dense(6, 3, 2, &[1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1])?;
/// let fitted = Glad::default().fit(&votes)?;
/// // The first voter agrees with every majority.
/// assert!(fitted.voters[0].skill > fitted.voters[1].skill);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Glad {
    /// Class balance; otherwise equal.
    pub prior: Option<Vec<f64>>,
    /// Most steps of expectation and maximisation.
    pub iterations: usize,
    /// Smallest gain of the objective, a vote.
    pub tolerance: f64,
    /// Most steps of one maximisation.
    pub inner_iterations: usize,
    /// Gradient at which a maximisation ends.
    pub inner_tolerance: f64,
    /// Stop as Crowd-Kit does.
    pub crowd_kit_stop: bool,
}

impl Default for Glad {
    fn default() -> Self {
        Self {
            prior: None,
            iterations: 100,
            tolerance: 1e-6,
            inner_iterations: 50,
            inner_tolerance: 1e-3,
            crowd_kit_stop: false,
        }
    }
}

impl Glad {
    /// Crowd-Kit's settings and stop.
    pub fn crowd_kit() -> Self {
        Self {
            tolerance: 1e-5,
            inner_iterations: 25,
            inner_tolerance: 1e-2,
            crowd_kit_stop: true,
            ..Self::default()
        }
    }

    /// Whether the parameters are in their ranges.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("tolerance", self.tolerance), ("inner_tolerance", self.inner_tolerance)] {
            if !(0.0..f64::INFINITY).contains(&value) {
                return Err(SupervisionError::BadParameter { name, value, want: "a number from 0" });
            }
        }
        self.prior.as_deref().map_or(Ok(()), |prior| distribution("prior", prior))
    }
}

impl LabelModel for Glad {
    fn name(&self) -> &'static str {
        "glad"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        self.check()?;
        let votes = rows.votes();
        let (m, k) = (votes.voters(), votes.classes());
        informative(self.name(), rows, 1, false)?;
        let p = self.prior.clone().unwrap_or_else(|| vec![1.0 / k as f64; k]);
        if p.len() != k {
            return Err(SupervisionError::Shape { what: "prior", got: p.len(), want: k });
        }
        let problem = Problem::new(rows, &p);
        let mut at = vec![1.0; m + rows.len()];
        let (mut q, mut likelihood) = problem.expect(&at);
        let mut last = -problem.evaluate(&at, &q).0;
        let (mut objective, mut iterations, mut change) = (Vec::new(), 0, f64::INFINITY);
        if !self.crowd_kit_stop {
            last = likelihood / problem.votes;
        }
        while iterations < self.iterations {
            iterations += 1;
            let found = minimise(
                |at| problem.evaluate(at, &q),
                at.clone(),
                self.inner_iterations,
                self.inner_tolerance,
            );
            let Some(found) = found else {
                return Err(SupervisionError::Solver { model: self.name(), why: "Q is not finite".into() });
            };
            at = found.at;
            let next = if self.crowd_kit_stop {
                -problem.evaluate(&at, &q).0 / (problem.votes * k as f64)
            } else {
                (q, likelihood) = problem.expect(&at);
                likelihood / problem.votes
            };
            objective.push(next);
            (change, last) = (next - last, next);
            if change < self.tolerance {
                break;
            }
            if self.crowd_kit_stop {
                (q, _) = problem.expect(&at);
            }
        }
        let posterior = Posterior { classes: k, values: q, of: None };
        let (abilities, easiness) = at.split_at(m);
        let sum: f64 = easiness.iter().enumerate().map(|(row, b)| b * rows.count(row) as f64).sum();
        let mean = sum / rows.items() as f64;
        let mut warnings = warnings(rows);
        warnings.extend((0..m).filter(|i| abilities[*i] < 0.0).map(|voter| Warning::Adversarial { voter }));
        let mut table = Vec::with_capacity(m * k * k);
        for ability in abilities {
            let (right, wrong) = logs(ability * mean.exp(), k);
            table.extend((0..k * k).map(|cell| if cell / k == cell % k { right } else { wrong }));
        }
        Ok(Fitted {
            model: self.name(),
            voters: qualities(rows, &posterior, |voter| abilities.get(voter).copied()),
            posterior,
            rule: Rule::LogLinear { prior: p.iter().map(|p| p.ln()).collect(), table, silence: None },
            prior: p,
            objective,
            convergence: match change < self.tolerance {
                true => Convergence::Converged { iterations },
                false => Convergence::NotConverged { iterations, change },
            },
            warnings,
        })
    }
}

/// `log sigmoid(x)` and `log((1 - sigmoid(x)) / (K - 1))`.
fn logs(x: f64, k: usize) -> (f64, f64) {
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    (-softplus(-x), -softplus(x) - ((k - 1) as f64).ln())
}

struct Problem<'a> {
    rows: &'a Rows<'a>,
    log_prior: Vec<f64>,
    votes: f64,
}

impl<'a> Problem<'a> {
    fn new(rows: &'a Rows<'a>, p: &[f64]) -> Self {
        let mut votes = 0u64;
        (0..rows.len()).for_each(|row| rows.votes().visit(row, |_, _| votes += rows.count(row)));
        Self { rows, log_prior: p.iter().map(|p| p.ln()).collect(), votes: votes as f64 }
    }

    /// Posterior of every row and the penalised log-likelihood.
    fn expect(&self, at: &[f64]) -> (Vec<f64>, f64) {
        let (k, m) = (self.log_prior.len(), self.rows.votes().voters());
        let mut q = Vec::with_capacity(self.rows.len() * k);
        let mut likelihood = 0.0;
        let mut out = vec![0.0; k];
        for row in 0..self.rows.len() {
            out.copy_from_slice(&self.log_prior);
            let ease = at[m + row].exp();
            self.rows.votes().visit(row, |voter, vote| {
                let (right, wrong) = logs(at[voter] * ease, k);
                out.iter_mut().enumerate().for_each(|(c, out)| *out += if c == vote { right } else { wrong });
            });
            likelihood += self.rows.count(row) as f64 * softmax(&mut out, &self.log_prior);
            q.extend_from_slice(&out);
        }
        (q, likelihood + self.priors(at))
    }

    /// Logarithm of the priors' density.
    fn priors(&self, at: &[f64]) -> f64 {
        let m = self.rows.votes().voters();
        let log = |x: f64| -0.5 * (x - 1.0) * (x - 1.0) - 0.5 * (2.0 * std::f64::consts::PI).ln();
        let count = |place: usize| if place < m { 1.0 } else { self.rows.count(place - m) as f64 };
        at.iter().enumerate().map(|(place, x)| count(place) * log(*x)).sum()
    }

    /// `-Q` and its gradient; the class prior is constant in it and left out, as in Crowd-Kit.
    fn evaluate(&self, at: &[f64], q: &[f64]) -> (f64, Vec<f64>) {
        let (k, m) = (self.log_prior.len(), self.rows.votes().voters());
        let mut value = -self.priors(at);
        let mut gradient: Vec<f64> = at.iter().map(|x| x - 1.0).collect();
        for row in 0..self.rows.len() {
            let (count, ease) = (self.rows.count(row) as f64, at[m + row].exp());
            gradient[m + row] *= count;
            let q = &q[row * k..(row + 1) * k];
            self.rows.votes().visit(row, |voter, vote| {
                let (right, wrong) = logs(at[voter] * ease, k);
                let sure = q[vote];
                value -= count * (sure * right + (1.0 - sure) * wrong);
                let slope = count * (sure - right.exp());
                gradient[voter] -= slope * ease;
                gradient[m + row] -= slope * at[voter] * ease;
            });
        }
        (value, gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Votes;

    fn six() -> Votes {
        Votes::from_dense(6, 3, 2, &[1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1]).expect("valid")
    }

    #[test]
    fn the_first_step_of_six_items_by_hand() {
        let votes = six();
        let rows = Rows::plain(&votes);
        let problem = Problem::new(&rows, &[0.5, 0.5]);
        let at = vec![1.0; 9];
        let (q, _) = problem.expect(&at);
        // One net vote: sigmoid(e); three: sigmoid(3 e).
        assert!((q[1] - 0.938097).abs() < 5e-7 && (q[3] - 0.999713).abs() < 5e-7);
        let (value, gradient) = problem.evaluate(&at, &q);
        assert!((value - 20.971578).abs() < 5e-7, "{value}");
        let want = [0.334979, -4.428504, -4.428504, -2.381741, 0.502468];
        for (gradient, want) in gradient.iter().zip(want) {
            assert!((gradient + want).abs() < 1e-6, "{gradient} {want}");
        }
    }

    #[test]
    fn six_items_to_the_end() {
        let fitted = Glad::crowd_kit().fit(&six()).expect("fits");
        assert_eq!((fitted.objective.len(), fitted.labels()), (2, vec![1, 1, 0, 0, 0, 1]));
        // The reference's inner optimiser ends at a gradient of 0.01, and so does this one, elsewhere.
        let skills: Vec<f64> = fitted.voters.iter().map(|voter| voter.skill.expect("has one")).collect();
        for (found, want) in skills.iter().zip([1.145409, 0.447400, 0.447400]) {
            assert!((found - want).abs() < 0.03, "{skills:?}");
        }
        assert!((fitted.posterior.row(0)[1] - 0.916521).abs() < 0.02);
        assert!((fitted.posterior.row(1)[1] - 0.999915).abs() < 1e-3);
        // Counting equal rows once gives the same fit.
        let votes = six();
        let plain = Glad::default().fit_rows(&Rows::plain(&votes)).expect("fits");
        let grouped = Glad::default().fit_rows(&Rows::grouped(&votes).expect("groups")).expect("fits");
        assert!((plain.posterior.row(0)[1] - grouped.posterior.values[1]).abs() < 1e-3);
        assert!(plain.objective.windows(2).all(|pair| pair[1] >= pair[0] - 1e-12));
    }
}
