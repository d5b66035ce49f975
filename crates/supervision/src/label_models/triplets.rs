//! Moments of three: FlyingSquid's triplets, and an exact form for two classes.
//!
//! FlyingSquid, votes -1, 0 (abstention) and 1:
//! 1. `M[i, j]` = mean over all items of the product of the votes of `i` and `j`.
//! 2. `a[i]` = mean (or median) over pairs `{j, k}` without `i` of `sqrt |M[i, j] M[i, k] / M[j, k]|`, 0 where `M[j, k]` is.
//! 3. `rho[i]` = P(vote `i` is right) = `(1 + a[i] - P(i abstains)) / 2`; with the class balance this gives the joint law of
//!    each vote and the truth, and those the posterior.
//!
//! The exact form ([`BinaryMoments`]), votes 0 and 1:
//! 1. `C[i, j]` = covariance of the votes of `i` and `j` on the items they share = `p (1 - p) d[i] d[j]`, with
//!    `d = TPR - FPR` and `p` = P(Y = 1).
//! 2. `|d[i]|` = median over pairs of `sqrt(C[i, j] C[i, k] / (C[j, k] p (1 - p)))`; signs from the covariances.
//! 3. `TPR[i] = m[i] + (1 - p) d[i]`, `FPR[i] = m[i] - p d[i]`, with `m[i]` the mean vote.
//! 4. `p`, unless given, from third central moments: `r = T[i,j,k]^2 / (C[i,j] C[i,k] C[j,k]) = (1 - 2 p)^2 / (p (1 - p))`.
//!
//! | parameter | default | source |
//! |---|---|---|
//! | FlyingSquid: combination, class balance | mean, equal | `flyingsquid/label_model.py` |
//! | FlyingSquid: negative joint probabilities | absolute values, renormalised | the same; `flip_negative` |
//! | exact: pairs with a covariance below `0.25 / sqrt(n)` | left out unless no other is left | own |
//!
//! **Deviations.** FlyingSquid is exact only for errors that are alike in both classes or for `p = 1/2`; it is kept as
//! published. The exact form and its prior are derived from the same moments; nothing but the model is assumed. Ratios
//! that are negative, which no true moments are, are left out there, not taken absolutely.
//!
//! Cost: one pass with `m^2` sums, then `m^3`; third moments another pass with `m^3 / 6`, so they are limited to 64
//! voters. References: Fu et al., arXiv 2002.11955; HazyResearch/flyingsquid, `flyingsquid/_triplets.py`,
//! `_lm_parameters.py`.

use super::fitted::{Convergence, Fitted, Warning};
use super::known::FLOOR;
use super::quality::qualities;
use super::rule::Rule;
use super::{LabelModel, informative, warnings};
use crate::exact::Sum;
use crate::{Result, Rows, SupervisionError};

/// Most voters whose triples are all looked at.
const TRIPLES: usize = 64;

/// How the estimates of many pairs become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Combine {
    /// Their mean, as published.
    #[default]
    Mean,
    /// Their median, which one pair that hardly agrees does not move.
    Median,
}

/// FlyingSquid's triplet method, two classes.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{LabelModel, Triplets}};
/// # let mut votes = Vec::new();
/// # for (pattern, count) in [340, 240, 240, 180, 180, 240, 240, 340].into_iter().enumerate() {
/// #     votes.extend([pattern as i8 >> 2, pattern as i8 >> 1 & 1, pattern as i8 & 1].repeat(count));
/// # }
/// let votes = Votes::from_dense(2000, 3, 2, &votes)?; // accuracies 0.9, 0.6, 0.6
/// let fitted = Triplets::default().fit(&votes)?;
/// assert!((fitted.voters[0].skill.unwrap_or(0.0) - 0.9).abs() < 1e-12);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triplets {
    /// How pairs are combined.
    pub combine: Combine,
    /// P(Y = 1).
    pub positive: f64,
    /// Negative joint probabilities become their absolute values, and the others are renormalised; otherwise they
    /// become 1e-8.
    pub flip_negative: bool,
}

impl Default for Triplets {
    fn default() -> Self {
        Self { combine: Combine::Mean, positive: 0.5, flip_negative: true }
    }
}

impl LabelModel for Triplets {
    fn name(&self) -> &'static str {
        "flyingsquid"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        let c = self.positive;
        if !(c > 0.0 && c < 1.0) {
            return Err(SupervisionError::BadParameter {
                name: "positive",
                value: c,
                want: "between 0 and 1",
            });
        }
        binary(self.name(), rows)?;
        let m = rows.votes().voters();
        let pairs = Pairs::of(rows);
        let n = rows.items() as f64;
        let product = |i: usize, j: usize| {
            let [all, one, other, both] = pairs.get(i, j);
            // Agreements less disagreements.
            (all - 2.0 * (one + other - 2.0 * both)) / n
        };
        let (mut table, mut silence, mut skills) = (vec![0.0; 4 * m], vec![0.0; 2 * m], Vec::new());
        for i in 0..m {
            let mut found = Vec::new();
            for j in (0..m).filter(|j| *j != i) {
                for k in (j + 1..m).filter(|k| *k != i) {
                    let below = product(j, k);
                    let ratio = product(i, j) * product(i, k) / below;
                    found.push(if below == 0.0 { 0.0 } else { ratio.abs().sqrt() });
                }
            }
            let a = match self.combine {
                Combine::Mean => found.iter().sum::<f64>() / found.len() as f64,
                Combine::Median => median(&mut found).unwrap_or(0.0),
            };
            let [all, ones, ..] = pairs.get(i, i);
            let (z, q) = (1.0 - all / n, ones / n);
            let right = (1.0 + a - z) / 2.0;
            let one_one = (right + q - (1.0 - z) * (1.0 - c)) / 2.0;
            // By vote (0, 1, none) and truth (0, 1).
            let mut joint =
                [right - one_one, c * (1.0 - z) - one_one, q - one_one, one_one, z * (1.0 - c), z * c];
            if self.flip_negative {
                joint.iter_mut().for_each(|p| *p = p.abs());
                let sum: f64 = joint.iter().sum();
                joint.iter_mut().for_each(|p| *p /= sum);
            } else {
                joint.iter_mut().for_each(|p| *p = p.max(1e-8));
            }
            for vote in 0..3 {
                if joint[2 * vote] + joint[2 * vote + 1] == 0.0 {
                    joint[2 * vote] += 0.001;
                    joint[2 * vote + 1] += 0.001;
                }
            }
            for (cell, p) in joint.iter().enumerate() {
                let log = (p / if cell % 2 == 1 { c } else { 1.0 - c }).max(FLOOR).ln();
                if cell < 4 { table[4 * i + cell] = log } else { silence[2 * i + cell - 4] = log }
            }
            skills.push(right);
        }
        let rule = Rule::LogLinear { prior: vec![(1.0 - c).ln(), c.ln()], table, silence: Some(silence) };
        closed(self.name(), rows, rule, vec![1.0 - c, c], skills, Vec::new())
    }
}

/// The exact moments of two classes, whose errors may differ.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{BinaryMoments, LabelModel}};
/// // P(Y = 1) = 0.4; true positive rates 0.9, 0.8, 0.7; false positive rates 0.2, 0.3, 0.1.
/// # let mut votes = Vec::new();
/// # for (pattern, count) in [3048, 392, 1392, 368, 972, 588, 1188, 2052].into_iter().enumerate() {
/// #     votes.extend([pattern as i8 >> 2, pattern as i8 >> 1 & 1, pattern as i8 & 1].repeat(count));
/// # }
/// let votes = Votes::from_dense(10_000, 3, 2, &votes)?;
/// let fitted = BinaryMoments::default().fit(&votes)?; // nothing given, not even the class balance
/// assert!((fitted.prior[1] - 0.4).abs() < 1e-9);
/// assert!((fitted.rate(2, 1, 1).unwrap_or(0.0) - 0.7).abs() < 1e-9);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BinaryMoments {
    /// P(Y = 1); otherwise from third moments, which needs every vote and many items.
    pub positive: Option<f64>,
}

impl LabelModel for BinaryMoments {
    fn name(&self) -> &'static str {
        "binary-moments"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        let model = self.name();
        if let Some(value) = self.positive
            && !(value > 0.0 && value < 1.0)
        {
            return Err(SupervisionError::BadParameter { name: "positive", value, want: "between 0 and 1" });
        }
        binary(model, rows)?;
        let m = rows.votes().voters();
        let pairs = Pairs::of(rows);
        let covariance: Vec<f64> = (0..m * m).map(|at| pairs.covariance(at / m, at % m)).collect();
        let c = |i: usize, j: usize| covariance[i * m + j];
        let (size, used) = sizes(m, &c, rows.items() as f64);
        if used.iter().filter(|used| **used).count() < 3 {
            let why = "fewer than three voters agree with others consistently".to_owned();
            return Err(SupervisionError::Unidentifiable { model, why });
        }
        let signs = signs(model, m, &c, &size)?;
        let p = match self.positive {
            Some(p) => p,
            None => balance(model, rows, &covariance, &signs)?,
        };
        let (mut table, mut skills, mut clipped) = (vec![0.0; 4 * m], Vec::new(), Vec::new());
        for i in 0..m {
            let [all, ones, ..] = pairs.get(i, i);
            let mean = if all > 0.0 { ones / all } else { 0.5 };
            let d = signs[i] * size[i] / (p * (1.0 - p)).sqrt();
            let (tpr, fpr) = (mean + (1.0 - p) * d, mean - p * d);
            if !((-1e-9..=1.0 + 1e-9).contains(&tpr) && (-1e-9..=1.0 + 1e-9).contains(&fpr)) {
                clipped.push(Warning::Clipped { voter: i });
            }
            if signs[i] < 0.0 && size[i] > 0.0 {
                clipped.push(Warning::Adversarial { voter: i });
            }
            for (vote, truth, rate) in [(0, 0, 1.0 - fpr), (0, 1, 1.0 - tpr), (1, 0, fpr), (1, 1, tpr)] {
                table[4 * i + 2 * vote + truth] = rate.clamp(FLOOR, 1.0).ln();
            }
            skills.push(d);
        }
        let rule = Rule::LogLinear { prior: vec![(1.0 - p).ln(), p.ln()], table, silence: None };
        closed(model, rows, rule, vec![1.0 - p, p], skills, clipped)
    }
}

/// `|d| sqrt(p (1 - p))` of every voter, and whether anything spoke for it.
fn sizes(m: usize, c: &impl Fn(usize, usize) -> f64, n: f64) -> (Vec<f64>, Vec<bool>) {
    let least = 0.25 / n.sqrt();
    let mut size = vec![0.0; m];
    let mut used = vec![false; m];
    for i in 0..m {
        let (mut strong, mut weak) = (Vec::new(), Vec::new());
        for j in (0..m).filter(|j| *j != i) {
            for k in (j + 1..m).filter(|k| *k != i) {
                let ratio = c(i, j) * c(i, k) / c(j, k);
                if c(j, k) != 0.0 && ratio.is_finite() && ratio >= 0.0 {
                    if c(j, k).abs() < least { weak.push(ratio) } else { strong.push(ratio) }
                }
            }
        }
        let found = median(if strong.is_empty() { &mut weak } else { &mut strong });
        used[i] = found.is_some_and(|ratio| ratio > 0.0);
        size[i] = found.unwrap_or(0.0).sqrt();
    }
    (size, used)
}

/// Signs under which the covariances fit, more of them positive than negative by weight.
pub(crate) fn signs(
    model: &'static str,
    m: usize,
    c: &impl Fn(usize, usize) -> f64,
    size: &[f64],
) -> Result<Vec<f64>> {
    let pull =
        |i: usize, signs: &[f64]| -> f64 { (0..m).filter(|j| *j != i).map(|j| signs[j] * c(i, j)).sum() };
    let strength = |i: usize| (0..m).filter(|j| *j != i).map(|j| c(i, j).abs()).sum::<f64>();
    let anchor = (0..m).max_by(|a, b| strength(*a).total_cmp(&strength(*b))).unwrap_or(0);
    let sign = |value: f64| if value < 0.0 { -1.0 } else { 1.0 };
    let mut signs: Vec<f64> = (0..m).map(|i| if i == anchor { 1.0 } else { sign(c(anchor, i)) }).collect();
    for _ in 0..m {
        let mut moved = false;
        for i in 0..m {
            let better = sign(pull(i, &signs));
            if pull(i, &signs) != 0.0 && better != signs[i] {
                signs[i] = better;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let sum: f64 = signs.iter().zip(size).map(|(sign, size)| sign * size).sum();
    let all: f64 = size.iter().sum();
    if sum.abs() <= 1e-9 * all {
        let why = "as many voters oppose the others as agree with them".to_owned();
        return Err(SupervisionError::Unidentifiable { model, why });
    }
    Ok(signs.iter().map(|s| s * sum.signum()).collect())
}

/// P(Y = 1) from third central moments.
fn balance(model: &'static str, rows: &Rows<'_>, covariance: &[f64], signs: &[f64]) -> Result<f64> {
    let (votes, m) = (rows.votes(), rows.votes().voters());
    if m > TRIPLES {
        return Err(SupervisionError::TooLarge {
            what: "voters for third moments (give the class balance)",
            got: m as u64,
            limit: TRIPLES as u64,
        });
    }
    for item in 0..votes.items() {
        if let Some(voter) = (0..m).find(|voter| votes.vote(item, *voter).is_none()) {
            return Err(SupervisionError::Abstention { model, item, voter });
        }
    }
    let triples: Vec<(usize, usize, usize)> =
        (0..m).flat_map(|i| (i + 1..m).flat_map(move |j| (j + 1..m).map(move |k| (i, j, k)))).collect();
    let mut means = rows.sum(
        m,
        || (),
        |row, (), sums| {
            votes.visit(row, |voter, vote| sums[voter].add_unit(vote as f64, rows.count(row)));
        },
    );
    let n = rows.items() as f64;
    let means: Vec<f64> = means.drain(..).map(|sum| sum.value() / n).collect();
    let thirds = rows.sum(
        triples.len(),
        || vec![0.0; m],
        |row, centred: &mut Vec<f64>, sums| {
            votes.visit(row, |voter, vote| centred[voter] = vote as f64 - means[voter]);
            for (sum, (i, j, k)) in sums.iter_mut().zip(&triples) {
                sum.add_unit(centred[*i] * centred[*j] * centred[*k], rows.count(row));
            }
        },
    );
    let (mut ratios, mut skew) = (Vec::new(), 0.0);
    for (third, (i, j, k)) in thirds.iter().zip(&triples) {
        let c = |a: usize, b: usize| covariance[a * m + b];
        let third = third.value() / n;
        let below = c(*i, *j) * c(*i, *k) * c(*j, *k);
        skew += third * signs[*i] * signs[*j] * signs[*k];
        if below > 0.0 {
            ratios.push(third * third / below);
        }
    }
    let Some(r) = median(&mut ratios) else {
        let why = "no three voters agree consistently, so the class balance must be given".to_owned();
        return Err(SupervisionError::Unidentifiable { model, why });
    };
    Ok(0.5 * (1.0 - skew.signum() * (r / (4.0 + r)).sqrt()))
}

/// Sums over the items that two voters share.
struct Pairs {
    m: usize,
    /// `m x m x 4`, the first voter before the second or the same: items, ones of the first, of the second, of both.
    sums: Vec<Sum>,
}

impl Pairs {
    fn of(rows: &Rows<'_>) -> Self {
        let (votes, m) = (rows.votes(), rows.votes().voters());
        let sums = rows.sum(4 * m * m, Vec::new, |row, seen: &mut Vec<(usize, usize)>, sums| {
            seen.clear();
            votes.visit(row, |voter, vote| seen.push((voter, vote)));
            let count = rows.count(row);
            for (index, (i, x)) in seen.iter().enumerate() {
                for (j, y) in &seen[index..] {
                    let at = 4 * (i * m + j);
                    for (place, value) in [1, *x, *y, x * y].into_iter().enumerate() {
                        sums[at + place].add_unit(value as f64, count);
                    }
                }
            }
        });
        Self { m, sums }
    }

    fn get(&self, i: usize, j: usize) -> [f64; 4] {
        let at = 4 * (i.min(j) * self.m + i.max(j));
        let [all, mut one, mut other, both] = [0, 1, 2, 3].map(|place| self.sums[at + place].value());
        if i > j {
            std::mem::swap(&mut one, &mut other);
        }
        [all, one, other, both]
    }

    fn covariance(&self, i: usize, j: usize) -> f64 {
        let [all, one, other, both] = self.get(i, j);
        // Exact integers up to here: no cancellation but in this one subtraction.
        if all > 0.0 { (both * all - one * other) / (all * all) } else { 0.0 }
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (n, half) = (values.len(), values.len() / 2);
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(values[half]),
        _ => Some((values[half - 1] + values[half]) / 2.0),
    }
}

fn binary(model: &'static str, rows: &Rows<'_>) -> Result<()> {
    let (classes, m) = (rows.votes().classes(), rows.votes().voters());
    if classes != 2 {
        return Err(SupervisionError::NotBinary { model, classes });
    }
    if m > 1024 {
        return Err(SupervisionError::TooLarge { what: "voters", got: m as u64, limit: 1024 });
    }
    informative(model, rows, 3, false)
}

fn closed(
    model: &'static str,
    rows: &Rows<'_>,
    rule: Rule,
    prior: Vec<f64>,
    skills: Vec<f64>,
    more: Vec<Warning>,
) -> Result<Fitted> {
    let posterior = rule.posterior(rows)?;
    let mut warnings = warnings(rows);
    warnings.extend(more);
    Ok(Fitted {
        model,
        voters: qualities(rows, &posterior, |voter| skills.get(voter).copied()),
        posterior,
        prior,
        objective: Vec::new(),
        convergence: Convergence::Closed,
        warnings,
        rule,
    })
}
