//! Snorkel's label model (MeTaL): rates that explain how often every two votes occur together.
//!
//! 1. `o[i, v]` = share of items with vote `v` of voter `i`; `O` = shares of every two votes together, `d x d`, `d = m K`.
//! 2. Find `mu[i, v, y]` = P(vote `v` of voter `i` | Y = y), unconstrained, that minimises
//!    `|| (O - mu diag(p) mu') outside the blocks of one voter ||^2 + || mu p - o ||^2`, with `p` the class balance, from
//!    `mu[i, y, y] = clip(0.7 o[i, y] / p[y], 0, 1)`, 0 elsewhere, times one number.
//! 3. Clip to `[e, 1 - e]`, `e = min(0.01, 10^-ceil(log10 n))`; permute columns of classes of equal balance so that the
//!    diagonal is largest.
//! 4. `log P(y | votes)` = `log p[y]` + sum over the voters that vote of `log mu[i, vote, y]`, normalised.
//!
//! With dependencies: voters joined by an edge share a block that step 2 leaves out, and what they would have in common
//! through the truth alone is found from the others. `A` = inverse of the votes' covariance `S`; outside blocks
//! `A = -Z Z'` for a `Z` with `K - 1` columns; then `mu diag(p) mu' = S Z (I + Z' S Z)^-1 Z' S + o o'` everywhere.
//!
//! | parameter | default | reference |
//! |---|---|---|
//! | solver | L-BFGS to a gradient below 1e-9 | Snorkel: SGD, rate 0.01, momentum 0.9, 100 steps |
//! | start: precision, factor | 0.7, 1 | Snorkel: 0.7, one number uniform on 0 to 1 |
//! | class balance | equal | the same |
//! | l2 | 0 | the same; there it acts twice, in the loss (squared) and as weight decay |
//! | weight of `(1 - sum over v of mu[i, v, y])^2` | 0 | metal-ama (used by Weaver): 10, and clipping after every step |
//!
//! **Deviations.** The default solves the problem that the published settings leave unsolved: on 2,000 items with voters of
//! accuracy 0.9, 0.6, 0.6, a hundred steps end at the majority vote. [`Snorkel::published`] is what Snorkel does,
//! [`Snorkel::metal_ama`] the fork; both say when the loss had not levelled off. The class balance is not in these
//! moments, any of them fits as well: an assumed one is said, and doubted where third moments disagree. Of
//! dependencies, MeTaL leaves edges out of its mask; here the whole connected group is, which is exact for any
//! structure inside it. Predictions still multiply the votes of a group as if they were independent, as MeTaL's do.
//!
//! Cost: one pass with `d^2` sums, then `O(d^2 K)` a step. References: Ratner et al., arXiv 1810.02840; Snorkel,
//! `snorkel/labeling/model/label_model.py`; HazyResearch/metal and mayeechen/metal-ama, `metal/label_model/label_model.py`.

use linfa_linalg::cholesky::InverseC;
use ndarray::Array2;
use pilotfish_model::Streams;
use rand::Rng;
use rand_distr::StandardNormal;

use super::assign::best_permutation;
use super::dawid_skene::Abstain;
use super::fitted::{Convergence, Fitted, Warning};
use super::known::distribution;
use super::quality::qualities;
use super::rule::Rule;
use super::triplets::BinaryMoments;
use super::{LabelModel, informative, warnings};
use crate::solver::minimise;
use crate::{Result, Rows, SupervisionError};

/// Largest number of different votes: voters times classes, without classes that a voter never names.
const MOST: usize = 4096;

/// How the problem is solved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Solver {
    /// L-BFGS until the largest entry of the gradient is below 1e-9.
    Converged {
        /// Most steps.
        iterations: usize,
    },
    /// Gradient steps with momentum, as published.
    Sgd {
        /// Learning rate.
        rate: f64,
        /// Momentum.
        momentum: f64,
        /// Steps.
        steps: usize,
    },
}

/// The number that the start is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// This.
    Fixed(f64),
    /// Drawn from 0 to 1.
    Drawn {
        /// Seed.
        seed: u64,
    },
}

/// Snorkel's label model.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{LabelModel, Snorkel}};
/// # let mut votes = Vec::new();
/// # for (pattern, count) in [3048, 392, 1392, 368, 972, 588, 1188, 2052].into_iter().enumerate() {
/// #     votes.extend([pattern as i8 >> 2, pattern as i8 >> 1 & 1, pattern as i8 & 1].repeat(count));
/// # }
/// let votes = Votes::from_dense(10_000, 3, 2, &votes)?; // true positive rates 0.9, 0.8, 0.7
/// let fitted = Snorkel { prior: Some(vec![0.6, 0.4]), ..Snorkel::default() }.fit(&votes)?;
/// assert!((fitted.rate(0, 1, 1).unwrap_or(0.0) - 0.9).abs() < 1e-6);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Snorkel {
    /// Class balance; otherwise equal.
    pub prior: Option<Vec<f64>>,
    /// Assumed precision of every voter at the start.
    pub precision: f64,
    /// Factor of the start.
    pub scale: Scale,
    /// How the problem is solved.
    pub solver: Solver,
    /// Pull towards the start.
    pub l2: f64,
    /// Weight of `(1 - sum over v of mu[i, v, y])^2`; only where nobody abstains.
    pub columns: f64,
    /// Clip to 0 to 1 after every gradient step.
    pub clip_steps: bool,
    /// Where probabilities are clipped in the end; otherwise by the number of items.
    pub epsilon: Option<f64>,
    /// Whether columns of classes of equal balance may be permuted.
    pub permute: bool,
    /// What an abstention says.
    pub abstain: Abstain,
    /// Pairs of voters that depend on each other beyond the truth.
    pub dependencies: Vec<(usize, usize)>,
}

impl Default for Snorkel {
    fn default() -> Self {
        Self {
            prior: None,
            precision: 0.7,
            scale: Scale::Fixed(1.0),
            solver: Solver::Converged { iterations: 5000 },
            l2: 0.0,
            columns: 0.0,
            clip_steps: false,
            epsilon: None,
            permute: true,
            abstain: Abstain::Ignore,
            dependencies: Vec::new(),
        }
    }
}

impl Snorkel {
    /// Snorkel's own settings.
    pub fn published(seed: u64) -> Self {
        let solver = Solver::Sgd { rate: 0.01, momentum: 0.9, steps: 100 };
        Self { scale: Scale::Drawn { seed }, solver, ..Self::default() }
    }

    /// The fork that Weaver uses, in its released settings.
    pub fn metal_ama(seed: u64) -> Self {
        Self {
            solver: Solver::Sgd { rate: 1e-5, momentum: 0.9, steps: 1000 },
            columns: 10.0,
            clip_steps: true,
            epsilon: Some(0.01),
            permute: false,
            ..Self::published(seed)
        }
    }

    /// Whether the parameters are in their ranges.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        let scale = match self.scale {
            Scale::Fixed(scale) => scale,
            Scale::Drawn { .. } => 1.0,
        };
        let (rate, momentum) = match self.solver {
            Solver::Sgd { rate, momentum, .. } => (rate, momentum),
            Solver::Converged { .. } => (0.0, 0.0),
        };
        for (name, value, most) in [
            ("precision", self.precision, 1.0),
            ("scale", scale, 1.0),
            ("rate", rate, 1e3),
            ("momentum", momentum, 1.0),
            ("l2", self.l2, 1e6),
            ("columns", self.columns, 1e6),
            ("epsilon", self.epsilon.unwrap_or(0.01), 0.49),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(SupervisionError::BadParameter {
                    name,
                    value,
                    want: "from 0 to a sensible limit",
                });
            }
        }
        let Some(prior) = &self.prior else { return Ok(()) };
        if let Some(value) = prior.iter().find(|p| !(**p > 0.0)) {
            return Err(SupervisionError::BadParameter { name: "prior", value: *value, want: "above 0" });
        }
        distribution("prior", prior)
    }
}

impl LabelModel for Snorkel {
    fn name(&self) -> &'static str {
        match (self.dependencies.is_empty(), self.solver) {
            (false, _) => "metal",
            (true, Solver::Converged { .. }) => "snorkel",
            (true, _) => "snorkel-sgd",
        }
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        self.check()?;
        let (votes, model) = (rows.votes(), self.name());
        let (m, k) = (votes.voters(), votes.classes());
        // A vote that is never cast has rate 0 and stays out of the problem, which is as large as what is left.
        let whole = !self.dependencies.is_empty() || self.columns > 0.0;
        let cells = if whole { (0..m.saturating_mul(k)).collect() } else { cast(rows) };
        if cells.len() > MOST {
            let got = cells.len() as u64;
            return Err(SupervisionError::TooLarge { what: "different votes", got, limit: MOST as u64 });
        }
        informative(model, rows, 3, true)?;
        let p = self.prior.clone().unwrap_or_else(|| vec![1.0 / k as f64; k]);
        if p.len() != k {
            return Err(SupervisionError::Shape { what: "prior", got: p.len(), want: k });
        }
        let problem = self.problem_of(rows, p, &cells)?;
        let (found, objective, convergence, undertrained) = self.solve(&problem)?;
        let (mut mu, mut o) = (vec![0.0; m * k * k], vec![0.0; m * k]);
        for (at, cell) in cells.iter().enumerate() {
            mu[cell * k..(cell + 1) * k].copy_from_slice(&found[at * k..(at + 1) * k]);
            o[*cell] = problem.o[at];
        }
        let n = rows.items() as f64;
        let epsilon = self.epsilon.unwrap_or_else(|| 0.01f64.min(0.1f64.powf(n.log10().ceil())));
        mu.iter_mut().for_each(|value| *value = value.clamp(epsilon, 1.0 - epsilon));
        if self.permute {
            permute(&mut mu, &problem.p, m);
        }
        let silence = (self.abstain == Abstain::Symbol).then(|| {
            let rest = |cell: usize| -> f64 {
                let (i, y) = (cell / k, cell % k);
                1.0 - (0..k).map(|v| mu[(i * k + v) * k + y]).sum::<f64>()
            };
            (0..m * k).map(|cell| rest(cell).clamp(epsilon, 1.0).ln()).collect()
        });
        let rule = Rule::LogLinear {
            prior: problem.p.iter().map(|p| p.ln()).collect(),
            table: mu.iter().map(|value| value.ln()).collect(),
            silence,
        };
        let posterior = rule.posterior(rows)?;
        let weight = |i: usize| {
            let coverage: f64 = o[i * k..(i + 1) * k].iter().sum();
            let right: f64 = (0..k).map(|y| mu[(i * k + y) * k + y] * problem.p[y]).sum();
            (coverage > 0.0).then(|| (right / coverage).clamp(1e-6, 1.0))
        };
        let mut warnings = warnings(rows);
        warnings.extend(undertrained);
        warnings.extend(doubt(rows, &problem.p, self.prior.is_none()));
        Ok(Fitted {
            model,
            voters: qualities(rows, &posterior, weight),
            posterior,
            prior: problem.p,
            objective,
            convergence,
            warnings,
            rule,
        })
    }
}

/// The class balance held against third moments, and said where it was assumed.
fn doubt(rows: &Rows<'_>, p: &[f64], assumed: bool) -> Vec<Warning> {
    let mut out = Vec::new();
    if assumed {
        out.push(Warning::AssumedPrior);
    }
    if p.len() == 2
        && let Ok(moments) = BinaryMoments::default().fit_rows(rows)
        && (moments.prior[1] - p[1]).abs() > 0.05
    {
        out.push(Warning::DoubtfulPrior { used: p[1], third_moments: moments.prior[1] });
    }
    out
}

/// What is minimised.
pub(crate) struct Problem {
    k: usize,
    d: usize,
    p: Vec<f64>,
    /// `d x d`.
    target: Vec<f64>,
    /// `d x d`: which entries count.
    mask: Vec<bool>,
    o: Vec<f64>,
    start: Vec<f64>,
    columns: f64,
    l2: f64,
}

impl Problem {
    /// The loss and its gradient at `mu` (`d x K`).
    pub(crate) fn evaluate(&self, mu: &[f64]) -> (f64, Vec<f64>) {
        let (d, k) = (self.d, self.k);
        let weighted: Vec<f64> =
            mu.iter().enumerate().map(|(cell, value)| value * self.p[cell % k]).collect();
        let mut gradient = vec![0.0; d * k];
        let mut loss = 0.0;
        for a in 0..d {
            let row = &weighted[a * k..(a + 1) * k];
            for b in 0..d {
                if !self.mask[a * d + b] {
                    continue;
                }
                let fit: f64 = row.iter().zip(&mu[b * k..(b + 1) * k]).map(|(x, y)| x * y).sum();
                let rest = self.target[a * d + b] - fit;
                loss += rest * rest;
                for y in 0..k {
                    gradient[a * k + y] -= 4.0 * rest * weighted[b * k + y];
                }
            }
            let rest = row.iter().sum::<f64>() - self.o[a];
            loss += rest * rest;
            for y in 0..k {
                gradient[a * k + y] += 2.0 * rest * self.p[y];
            }
        }
        if self.columns > 0.0 {
            for block in 0..d / k {
                for y in 0..k {
                    let rest = 1.0 - (0..k).map(|v| mu[(block * k + v) * k + y]).sum::<f64>();
                    loss += self.columns * rest * rest;
                    for v in 0..k {
                        gradient[(block * k + v) * k + y] -= 2.0 * self.columns * rest;
                    }
                }
            }
        }
        if self.l2 > 0.0 {
            let weight = self.l2 * self.l2;
            for (cell, value) in mu.iter().enumerate() {
                let moved = value - self.start[cell];
                loss += weight * moved * moved;
                gradient[cell] += 2.0 * weight * moved;
            }
        }
        (loss, gradient)
    }
}

impl Snorkel {
    /// The problem over the votes `cells` (`voter K + class`, ascending); over all of them with dependencies or weighted
    /// columns.
    fn problem_of(&self, rows: &Rows<'_>, p: Vec<f64>, cells: &[usize]) -> Result<Problem> {
        let votes = rows.votes();
        let (m, k) = (votes.voters(), votes.classes());
        let d = cells.len();
        let mut target = overlaps(rows, cells);
        let o: Vec<f64> = (0..d).map(|a| target[a * d + a]).collect();
        let mut mask: Vec<bool> = (0..d * d).map(|at| cells[at / d] / k != cells[at % d] / k).collect();
        if !self.dependencies.is_empty() {
            target = shared(&target, &o, &groups(m, &self.dependencies)?, k)?;
            mask = vec![true; d * d];
        }
        let start = |cell: usize| {
            let (a, y) = (cell / k, cell % k);
            if cells[a] % k == y { (o[a] * self.precision / p[y]).clamp(0.0, 1.0) } else { 0.0 }
        };
        let start = (0..d * k).map(start).collect();
        let columns = if votes.is_complete() { self.columns } else { 0.0 };
        Ok(Problem { k, d, p, target, mask, o, start, columns, l2: self.l2 })
    }

    #[allow(clippy::type_complexity)]
    fn solve(&self, problem: &Problem) -> Result<(Vec<f64>, Vec<f64>, Convergence, Option<Warning>)> {
        let scale = match self.scale {
            Scale::Fixed(scale) => scale,
            Scale::Drawn { seed } => Streams::new(seed).stream("snorkel").random(),
        };
        let mut mu: Vec<f64> = problem.start.iter().map(|value| value * scale).collect();
        let (rate, momentum, steps) = match self.solver {
            Solver::Sgd { rate, momentum, steps } => (rate, momentum, steps),
            Solver::Converged { iterations } => {
                let found = minimise(|mu| problem.evaluate(mu), mu, iterations, 1e-10);
                let found = found.ok_or_else(|| SupervisionError::Solver {
                    model: self.name(),
                    why: "the loss is not finite".to_owned(),
                })?;
                let convergence = match found.slope <= 1e-9 {
                    true => Convergence::Converged { iterations: found.iterations },
                    false => Convergence::NotConverged { iterations: found.iterations, change: found.slope },
                };
                return Ok((found.at, found.trace, convergence, None));
            }
        };
        let mut velocity = vec![0.0; mu.len()];
        let mut trace = Vec::with_capacity(steps + 1);
        let steepest = |gradient: &[f64]| gradient.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let mut first_slope = 0.0;
        for step in 0..steps {
            let (loss, gradient) = problem.evaluate(&mu);
            trace.push(loss);
            if step == 0 {
                first_slope = steepest(&gradient);
            }
            for ((mu, velocity), gradient) in mu.iter_mut().zip(&mut velocity).zip(gradient) {
                *velocity = momentum * *velocity + gradient + self.l2 * *mu;
                *mu -= rate * *velocity;
                if self.clip_steps {
                    *mu = mu.clamp(0.0, 1.0);
                }
            }
        }
        let (loss, gradient) = problem.evaluate(&mu);
        trace.push(loss);
        if !loss.is_finite() {
            let why = format!("gradient steps of rate {rate} diverge");
            return Err(SupervisionError::Solver { model: self.name(), why });
        }
        let slope = steepest(&gradient);
        // Fallen by a thousandth in the last tenth of the steps, or on a slope as steep as at the start, and not yet nothing:
        // it has not levelled off. Steps that are too small leave the loss where it was.
        let before = trace[(trace.len() - 1) * 9 / 10];
        let fallen = (before - loss) / before.max(f64::MIN_POSITIVE);
        let level = fallen.abs() < 1e-3 && slope <= 0.1 * first_slope || loss < 1e-12 * trace[0].max(1e-300);
        let convergence = match level {
            true => Convergence::Converged { iterations: steps },
            false => Convergence::NotConverged { iterations: steps, change: slope },
        };
        let undertrained = (!level).then_some(Warning::Undertrained { slope: fallen });
        Ok((mu, trace, convergence, undertrained))
    }
}

/// The votes that are cast, as `voter K + class`, ascending.
fn cast(rows: &Rows<'_>) -> Vec<usize> {
    let votes = rows.votes();
    let k = votes.classes();
    let mut seen = vec![false; votes.voters() * k];
    for row in (0..rows.len()).filter(|row| rows.count(*row) > 0) {
        votes.visit(row, |voter, vote| seen[voter * k + vote] = true);
    }
    (0..seen.len()).filter(|cell| seen[*cell]).collect()
}

/// Shares of items with every two of the votes `cells`, `d x d`.
fn overlaps(rows: &Rows<'_>, cells: &[usize]) -> Vec<f64> {
    let votes = rows.votes();
    let (k, d) = (votes.classes(), cells.len());
    let mut place = vec![None; votes.voters() * k];
    cells.iter().enumerate().for_each(|(at, cell)| place[*cell] = Some(at));
    let sums = rows.sum(d * d, Vec::new, |row, seen: &mut Vec<usize>, sums| {
        seen.clear();
        votes.visit(row, |voter, vote| seen.extend(place[voter * k + vote]));
        for (index, a) in seen.iter().enumerate() {
            seen[index..].iter().for_each(|b| sums[a * d + b].add_unit(1.0, rows.count(row)));
        }
    });
    let n = rows.items() as f64;
    let at = |a: usize, b: usize| sums[a.min(b) * d + a.max(b)].value() / n;
    (0..d * d).map(|cell| at(cell / d, cell % d)).collect()
}

/// Connected groups of voters: the group of each.
fn groups(m: usize, edges: &[(usize, usize)]) -> Result<Vec<usize>> {
    let mut group: Vec<usize> = (0..m).collect();
    for &(a, b) in edges {
        if let Some(got) = [a, b].into_iter().find(|voter| *voter >= m) {
            return Err(SupervisionError::Shape { what: "voter of a dependency", got, want: m - 1 });
        }
        let (from, to) = (group[a].max(group[b]), group[a].min(group[b]));
        group.iter_mut().filter(|g| **g == from).for_each(|g| *g = to);
    }
    let mut distinct = group.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < 3 {
        let why =
            format!("the dependencies leave {} independent groups of voters, 3 are needed", distinct.len());
        return Err(SupervisionError::Unidentifiable { model: "metal", why });
    }
    Ok(group)
}

/// `mu diag(p) mu'` everywhere, from the entries between groups.
fn shared(overlaps: &[f64], o: &[f64], group: &[usize], k: usize) -> Result<Vec<f64>> {
    let d = o.len();
    // Indicators that are not determined by others: of a voter that always votes, all classes but the last it uses.
    let mut kept = Vec::new();
    let mut implied = Vec::new();
    for voter in 0..group.len() {
        let mut used: Vec<usize> = (0..k).map(|v| voter * k + v).filter(|a| o[*a] > 0.0).collect();
        let always = (used.iter().map(|a| o[*a]).sum::<f64>() - 1.0).abs() < 1e-12;
        if always && let Some(last) = used.pop() {
            implied.push((last, used.clone()));
        }
        kept.extend(used);
    }
    let singular = || SupervisionError::Unidentifiable {
        model: "metal",
        why: "the votes of some voters determine those of others, so their covariance has no inverse"
            .to_owned(),
    };
    let size = kept.len();
    let covariance = Array2::from_shape_fn((size, size), |(a, b)| {
        overlaps[kept[a] * d + kept[b]] - o[kept[a]] * o[kept[b]]
    });
    let inverse = covariance.invc().map_err(|_| singular())?;
    if inverse.iter().any(|value| !value.is_finite()) {
        return Err(singular());
    }
    let scale: Vec<f64> = (0..size).map(|a| inverse[[a, a]].sqrt()).collect();
    let apart = |a: usize, b: usize| group[kept[a] / k] != group[kept[b] / k];
    let rank = k - 1;
    let loss = |z: &[f64]| {
        let (mut loss, mut gradient) = (0.0, vec![0.0; z.len()]);
        for a in 0..size {
            for b in 0..size {
                if apart(a, b) {
                    let product: f64 = (0..rank).map(|r| z[a * rank + r] * z[b * rank + r]).sum();
                    let rest = inverse[[a, b]] / (scale[a] * scale[b]) + product;
                    loss += rest * rest;
                    (0..rank).for_each(|r| gradient[a * rank + r] += 4.0 * rest * z[b * rank + r]);
                }
            }
        }
        (loss, gradient)
    };
    let mut rng = Streams::new(0).stream("metal");
    let mut best: Option<(f64, Vec<f64>)> = None;
    for _ in 0..6 {
        let start = (0..size * rank).map(|_| 0.5 * rng.sample::<f64, _>(StandardNormal)).collect();
        if let Some(found) = minimise(loss, start, 3000, 1e-11) {
            let value = found.trace.last().copied().unwrap_or(f64::INFINITY);
            if best.as_ref().is_none_or(|(least, _)| value < *least) {
                best = Some((value, found.at));
            }
        }
    }
    let (_, z) = best.ok_or_else(singular)?;
    let z = Array2::from_shape_fn((size, rank), |(a, r)| z[a * rank + r] * scale[a]);
    let through = covariance.dot(&z);
    let mut inner = z.t().dot(&through);
    (0..rank).for_each(|r| inner[[r, r]] += 1.0);
    let middle = inner.invc().map_err(|_| singular())?;
    let explained = through.dot(&middle).dot(&through.t());
    let mut out = vec![0.0; d * d];
    for (a, from) in kept.iter().enumerate() {
        for (b, to) in kept.iter().enumerate() {
            out[from * d + to] = explained[[a, b]] + o[*from] * o[*to];
        }
    }
    // The classes of a voter that always votes sum to the whole.
    for (last, others) in &implied {
        for b in 0..d {
            let rest = o[b] - others.iter().map(|a| out[a * d + b]).sum::<f64>();
            out[last * d + b] = rest;
            out[b * d + last] = rest;
        }
    }
    for (last, others) in &implied {
        out[last * d + last] = o[*last] - others.iter().map(|a| out[a * d + last]).sum::<f64>();
    }
    Ok(out)
}

/// Permutes columns of classes of equal balance so that votes are right as often as possible.
fn permute(mu: &mut [f64], p: &[f64], m: usize) {
    let k = p.len();
    let near = |y: usize| (p[y] * 1000.0).round() as i64;
    let mut source: Vec<usize> = (0..k).collect();
    let mut done = vec![false; k];
    for first in 0..k {
        let group: Vec<usize> = (first..k).filter(|y| !done[*y] && near(*y) == near(first)).collect();
        group.iter().for_each(|y| done[*y] = true);
        if group.len() < 2 {
            continue;
        }
        let gain = |v: usize, y: usize| (0..m).map(|i| mu[(i * k + v) * k + y]).sum::<f64>() * p[y];
        let gains: Vec<Vec<f64>> =
            group.iter().map(|v| group.iter().map(|y| gain(*v, *y)).collect()).collect();
        for (place, column) in best_permutation(&gains).into_iter().enumerate() {
            source[group[place]] = group[column];
        }
    }
    for row in mu.chunks_mut(k) {
        let old = row.to_vec();
        row.iter_mut().zip(&source).for_each(|(value, from)| *value = old[*from]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(rows: &Rows<'_>) -> Vec<usize> {
        (0..rows.votes().voters() * rows.votes().classes()).collect()
    }

    impl Snorkel {
        fn problem(&self, rows: &Rows<'_>, p: Vec<f64>) -> Result<Problem> {
            self.problem_of(rows, p, &every(rows))
        }
    }

    /// Functions that name one class or nothing say something by saying nothing; to a model that takes an abstention
    /// for no answer at all they do not.
    #[test]
    fn functions_of_one_class_are_voters() {
        let row = |item: usize| {
            let class = item % 2;
            // Each names its own class on four of five of its items.
            [0, 1, 0, 1].map(|own| if class == own && item % 5 != own + item % 3 { own as i8 } else { -1 })
        };
        let flat: Vec<i8> = (0..60).flat_map(row).collect();
        let votes = Votes::from_dense(60, 4, 2, &flat).expect("valid");
        let rows = Rows::of(&votes).expect("groups");
        assert!(crate::label_models::informative("m", &rows, 3, true).is_ok());
        assert!(crate::label_models::informative("m", &rows, 3, false).is_err());
        // One that always says the same says nothing either way.
        let constant: Vec<i8> = (0..60).flat_map(|_| [0i8, 1, 0]).collect();
        let votes = Votes::from_dense(60, 3, 2, &constant).expect("valid");
        assert!(crate::label_models::informative("m", &Rows::of(&votes).expect("groups"), 3, true).is_err());
    }

    #[test]
    fn votes_that_are_never_cast_change_nothing() {
        // Class 2 is named by voter 3 alone, class 1 never by voter 0.
        let rows = [[0, 1, 0, 2], [0, -1, 1, 2], [-1, 1, 1, 0], [0, 0, 0, -1], [-1, 1, 1, 2], [0, 0, 1, 0]];
        let flat: Vec<i8> = rows.iter().flatten().copied().collect();
        let votes = Votes::from_dense(6, 4, 3, &flat).expect("valid");
        let rows = Rows::of(&votes).expect("groups");
        assert_eq!(cast(&rows), [0, 3, 4, 6, 7, 9, 11]);
        for solver in
            [Solver::Sgd { rate: 0.01, momentum: 0.9, steps: 100 }, Solver::Converged { iterations: 50 }]
        {
            let model = Snorkel { solver, ..Snorkel::default() };
            let p = vec![0.3, 0.4, 0.3];
            let small = model.problem_of(&rows, p.clone(), &cast(&rows)).expect("valid");
            let (small, trace, ..) = model.solve(&small).expect("finite");
            let (whole, whole_trace, ..) =
                model.solve(&model.problem(&rows, p).expect("valid")).expect("finite");
            for (at, cell) in cast(&rows).into_iter().enumerate() {
                for y in 0..3 {
                    assert!((small[at * 3 + y] - whole[cell * 3 + y]).abs() < 1e-12);
                }
            }
            assert!(whole[3..9].iter().all(|mu| *mu == 0.0));
            assert!((trace[0] - whole_trace[0]).abs() < 1e-14);
        }
    }
    use crate::Votes;

    fn fixture_a() -> Votes {
        let mut votes = Vec::new();
        for (pattern, count) in [3048, 392, 1392, 368, 972, 588, 1188, 2052].into_iter().enumerate() {
            votes.extend([pattern as i8 >> 2, pattern as i8 >> 1 & 1, pattern as i8 & 1].repeat(count));
        }
        Votes::from_dense(10_000, 3, 2, &votes).expect("valid")
    }

    #[test]
    fn losses_and_the_first_step_of_fixture_a() {
        let votes = fixture_a();
        let rows = Rows::of(&votes).expect("groups");
        let o = overlaps(&rows, &every(&rows));
        let want = [
            [0.52, 0.0, 0.344, 0.176, 0.444, 0.076],
            [0.0, 0.48, 0.156, 0.324, 0.216, 0.264],
            [0.344, 0.156, 0.5, 0.0, 0.402, 0.098],
            [0.176, 0.324, 0.0, 0.5, 0.258, 0.242],
            [0.444, 0.216, 0.402, 0.258, 0.66, 0.0],
            [0.076, 0.264, 0.098, 0.242, 0.0, 0.34],
        ];
        want.iter().flatten().zip(&o).for_each(|(want, found)| assert!((want - found).abs() < 1e-15));
        let p = vec![0.6, 0.4];
        let model = Snorkel { columns: 10.0, ..Snorkel::default() };
        let problem = model.problem(&rows, p.clone()).expect("valid");
        let start: Vec<f64> = problem.start.iter().copied().filter(|value| *value > 0.0).collect();
        let want = [0.606667, 0.84, 0.583333, 0.875, 0.77, 0.595];
        start.iter().zip(want).for_each(|(found, want)| assert!((found - want).abs() < 5e-7));
        let plain = Snorkel::default().problem(&rows, p).expect("valid");
        let half: Vec<f64> = problem.start.iter().map(|value| 0.5 * value).collect();
        for (mu, without, with) in
            [(&problem.start, 0.503508 + 0.139680, 6.507910), (&half, 1.329946 + 0.655720, 27.101847)]
        {
            assert!((plain.evaluate(mu).0 - without).abs() < 2e-6);
            assert!((problem.evaluate(mu).0 - with).abs() < 2e-6);
        }
        // One step.
        let one = Snorkel {
            scale: Scale::Fixed(0.5),
            solver: Solver::Sgd { rate: 0.01, momentum: 0.9, steps: 1 },
            ..model
        };
        let (mu, trace, ..) = one.solve(&problem).expect("finite");
        let want = [
            0.452214, 0.120298, 0.146165, 0.541268, 0.442443, 0.116615, 0.149232, 0.555187, 0.518213,
            0.147190, 0.126891, 0.442536,
        ];
        mu.iter().zip(want).for_each(|(found, want)| assert!((found - want).abs() < 1e-6, "{found} {want}"));
        assert!((trace[1] - 9.387686).abs() < 2e-6);
        // At the true rates nothing is left.
        let truth = [0.8, 0.1, 0.2, 0.9, 0.7, 0.2, 0.3, 0.8, 0.9, 0.3, 0.1, 0.7];
        assert!(problem.evaluate(&truth).0 < 1e-29);
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let votes = fixture_a();
        let model = Snorkel { columns: 3.0, l2: 0.7, ..Snorkel::default() };
        let problem = model.problem(&Rows::of(&votes).expect("groups"), vec![0.3, 0.7]).expect("valid");
        let at: Vec<f64> = (0..12).map(|cell| 0.1 + 0.07 * cell as f64).collect();
        let (_, gradient) = problem.evaluate(&at);
        for cell in 0..at.len() {
            let moved = |by: f64| {
                let mut at = at.clone();
                at[cell] += by;
                problem.evaluate(&at).0
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - gradient[cell]).abs() < 1e-7, "{cell}: {slope} {}", gradient[cell]);
        }
    }

    #[test]
    fn snorkels_own_unit_values() {
        let votes = Votes::from_dense(4, 3, 2, &[0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1]).expect("valid");
        let o = overlaps(&Rows::plain(&votes), &every(&Rows::plain(&votes)));
        assert_eq!(o[..6], [0.75, 0.0, 0.0, 0.75, 0.5, 0.25]);
        assert_eq!(o[24..30], [0.5, 0.25, 0.25, 0.5, 0.75, 0.0]);
        let votes = Votes::from_dense(2, 3, 2, &[0, 1, 0, 0, -1, 0]).expect("valid");
        let start = Snorkel::default().problem(&Rows::plain(&votes), vec![0.6, 0.4]).expect("valid").start;
        let want = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.875, 1.0, 0.0, 0.0, 0.0];
        start.iter().zip(want).for_each(|(found, want)| assert!((found - want).abs() < 1e-15));
        // Losses of L = [[0, -1, 0], [0, 1, -1]] at the start plus 0.05.
        let votes = Votes::from_dense(2, 3, 2, &[0, -1, 0, 0, 1, -1]).expect("valid");
        let model = Snorkel { l2: 1.0, ..Snorkel::default() };
        let problem = model.problem(&Rows::plain(&votes), vec![0.5, 0.5]).expect("valid");
        let at: Vec<f64> = problem.start.iter().map(|value| value + 0.05).collect();
        assert!((problem.evaluate(&at).0 - 0.675175 - 0.03).abs() < 1e-6);
    }

    #[test]
    fn the_first_guess_predicts() {
        let votes = Votes::from_dense(2, 3, 2, &[0, 1, 0, 0, 1, 0]).expect("valid");
        let rows = Rows::plain(&votes);
        let start = Snorkel::default().problem(&rows, vec![0.5, 0.5]).expect("valid").start;
        let table = start.iter().map(|value| value.clamp(0.01, 0.99).ln()).collect();
        let rule = Rule::LogLinear { prior: vec![0.5f64.ln(); 2], table, silence: None };
        let posterior = rule.posterior(&rows).expect("valid");
        assert!((posterior.row(0)[0] - 0.99).abs() < 1e-12 && (posterior.row(1)[1] - 0.01).abs() < 1e-12);
    }

    #[test]
    fn the_inverse_covariance_of_fixture_a_by_hand() {
        let votes = fixture_a();
        let rows = Rows::of(&votes).expect("groups");
        let overlaps = overlaps(&rows, &every(&rows));
        let o: Vec<f64> = (0..6).map(|a| overlaps[a * 6 + a]).collect();
        // Of the votes for class 1.
        let at = |i: usize, j: usize| overlaps[(2 * i + 1) * 6 + 2 * j + 1] - o[2 * i + 1] * o[2 * j + 1];
        let inverse = Array2::from_shape_fn((3, 3), |(i, j)| at(i, j)).invc().expect("regular");
        for ((i, j), want) in [((0, 1), -1.182328), ((0, 2), -1.953412), ((1, 2), -0.969362)] {
            assert!((inverse[[i, j]] - want).abs() < 5e-7, "{i} {j}: {}", inverse[[i, j]]);
        }
        // z by triplets, c, and the covariance with the truth.
        let z = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
            .map(|(i, j, k)| (-inverse[[i, j]] * inverse[[i, k]] / inverse[[j, k]]).sqrt());
        z.iter()
            .zip([1.543558, 0.765976, 1.265526])
            .for_each(|(z, want)| assert!((z - want).abs() < 5e-7, "{z} {want}"));
        let through: Vec<f64> = (0..3).map(|i| (0..3).map(|j| at(i, j) * z[j]).sum()).collect();
        let c = (1.0 + z.iter().zip(&through).map(|(z, s)| z * s).sum::<f64>()) / 0.24;
        assert!((c - 11.803273).abs() < 1e-5, "{c}");
        let with_truth: Vec<f64> = through.iter().map(|s| s / c.sqrt()).collect();
        let shared = shared(&overlaps, &o, &[0, 1, 2], 2).expect("regular");
        for (i, want) in [0.168, 0.12, 0.144].into_iter().enumerate() {
            assert!((with_truth[i] - want).abs() < 1e-9);
            // What the model makes of the inverse is the same, within a voter too.
            for (j, other) in [0.168, 0.12, 0.144].into_iter().enumerate() {
                let found = shared[(2 * i + 1) * 6 + 2 * j + 1] - o[2 * i + 1] * o[2 * j + 1];
                assert!((found - want * other / 0.24).abs() < 1e-6, "{i} {j}: {found}");
            }
        }
    }
}
