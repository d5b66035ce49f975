//! M-MSR: agreements of every two voters as a matrix of rank one, some entries of which may be spoilt.
//!
//! 1. `C[i, j]` = (share of shared items on which `i` and `j` agree) `K / (K - 1) - 1 / (K - 1)`, which for voters of one
//!    accuracy each is `s[i] s[j]` with `s = (K a - 1) / (K - 1)`.
//! 2. `|C|` is factored into `u v'`: each coordinate in turn becomes the mean of the ratios `|C[i, j]| / u[i]` over the voters
//!    it shares items with, after the `F` largest that are above its present value and the `F` smallest below it are left
//!    out; `F = floor(least number of such voters / 2) - 1`.
//! 3. `|s| = u sqrt(|v| / |u|)`; signs from `C`, most of them positive; `s` is kept `1 / sqrt(n)` away from its ends.
//! 4. A vote weighted by `ln(a (K - 1) / (1 - a))`.
//!
//! | parameter | default | source |
//! |---|---|---|
//! | steps, tolerance of `u v'` | 10,000, 1e-10 | Crowd-Kit |
//!
//! **Deviations.** Signs come from single flips that improve the fit, not from the eigenvector of a signed graph's
//! incidence matrix; for signs that some assignment explains, both find it. `F` is never below 0.
//!
//! Cost: `m^2` sums, then `O(m^2 log m)` a step. References: Ma and Olshevsky 2020 (M-MSR); Crowd-Kit,
//! `crowdkit/aggregation/classification/m_msr.py`.

use pilotfish_model::Streams;
use rand::Rng;

use super::fitted::{Convergence, Fitted};
use super::quality::qualities;
use super::rule::Rule;
use super::triplets::signs;
use super::{LabelModel, balance, informative, warnings};
use crate::{Result, Rows, SupervisionError};

/// M-MSR.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{LabelModel, Mmsr}};
/// # let mut votes = Vec::new();
/// # for (pattern, count) in [340, 240, 240, 180, 180, 240, 240, 340].into_iter().enumerate() {
/// #     votes.extend([pattern as i8 >> 2, pattern as i8 >> 1 & 1, pattern as i8 & 1].repeat(count));
/// # }
/// let votes = Votes::from_dense(2000, 3, 2, &votes)?; // accuracies 0.9, 0.6, 0.6
/// let fitted = Mmsr::default().fit(&votes)?;
/// // The first voter against the other two: ln 9 is more than 2 ln 1.5.
/// assert_eq!(fitted.posterior.label(1000), 1);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mmsr {
    /// Most steps.
    pub iterations: usize,
    /// Change of the product at which it ends.
    pub tolerance: f64,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for Mmsr {
    fn default() -> Self {
        Self { iterations: 10_000, tolerance: 1e-10, seed: 0 }
    }
}

impl LabelModel for Mmsr {
    fn name(&self) -> &'static str {
        "m-msr"
    }

    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted> {
        if !(0.0..f64::INFINITY).contains(&self.tolerance) {
            let (name, value) = ("tolerance", self.tolerance);
            return Err(SupervisionError::BadParameter { name, value, want: "a number from 0" });
        }
        let model = self.name();
        let votes = rows.votes();
        let (m, k) = (votes.voters(), votes.classes() as f64);
        if m > 2048 {
            return Err(SupervisionError::TooLarge { what: "voters", got: m as u64, limit: 2048 });
        }
        informative(model, rows, 3, false)?;
        let (agreement, shared) = agreements(rows);
        let c: Vec<f64> = agreement
            .iter()
            .zip(&shared)
            .map(|(a, s)| if *s { (a * k - 1.0) / (k - 1.0) } else { 0.0 })
            .collect();
        let neighbours: Vec<Vec<usize>> =
            (0..m).map(|i| (0..m).filter(|j| shared[i * m + j]).collect()).collect();
        let least = neighbours.iter().map(Vec::len).min().unwrap_or(0);
        let trim = (least / 2).saturating_sub(1);
        let least_size = 1.0 / (rows.items() as f64).sqrt();
        let mut rng = Streams::new(self.seed).stream("m-msr");
        let mut draw = || (0..m).map(|_| rng.random_range(0.01..1.0)).collect::<Vec<f64>>();
        let (mut u, mut v) = (draw(), draw());
        let (mut trace, mut convergence) = (Vec::new(), None);
        let mut ratios = Vec::new();
        let update = |of: &mut [f64], by: &[f64], ratios: &mut Vec<f64>| {
            for i in 0..m {
                ratios.clear();
                ratios.extend(
                    neighbours[i].iter().filter(|j| by[**j] != 0.0).map(|j| c[i * m + j].abs() / by[*j]),
                );
                if let Some(mean) = trimmed(ratios, trim, of[i], least_size) {
                    of[i] = mean;
                }
            }
        };
        for iteration in 1..=self.iterations {
            let before = (u.clone(), v.clone());
            update(&mut v, &u, &mut ratios);
            update(&mut u, &v, &mut ratios);
            let moved = |i: usize, j: usize| u[i] * v[j] - before.0[i] * before.1[j];
            let loss = (0..m * m).map(|at| moved(at / m, at % m).powi(2)).sum::<f64>().sqrt();
            trace.push(loss);
            if loss < self.tolerance {
                convergence = Some(Convergence::Converged { iterations: iteration });
                break;
            }
        }
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let factor = (norm(&v) / norm(&u)).sqrt();
        let size: Vec<f64> = u.iter().map(|u| u * factor).collect();
        if size.iter().any(|size| !size.is_finite()) {
            let why = "the agreements have no factor: no voters agree beyond chance".to_owned();
            return Err(SupervisionError::Unidentifiable { model, why });
        }
        let signs = signs(model, m, &|i, j| c[i * m + j], &size)?;
        let weight = |i: usize| {
            if neighbours[i].is_empty() {
                return 0.0;
            }
            let s = (signs[i] * size[i]).min(1.0 - least_size).max(-1.0 / (k - 1.0) + least_size);
            let a = s * (k - 1.0) / k + 1.0 / k;
            (a * (k - 1.0) / (1.0 - a)).ln()
        };
        let weights: Vec<f64> = (0..m).map(weight).collect();
        let rule = Rule::Shares {
            weights: weights.clone(),
            class_weights: vec![1.0; votes.classes()],
            sharp: false,
        };
        let posterior = rule.posterior(rows)?;
        let (iterations, change) = (self.iterations, trace.last().copied().unwrap_or(f64::INFINITY));
        Ok(Fitted {
            model,
            prior: balance(rows, &posterior),
            voters: qualities(rows, &posterior, |voter| weights.get(voter).copied()),
            posterior,
            objective: trace,
            convergence: convergence.unwrap_or(Convergence::NotConverged { iterations, change }),
            warnings: warnings(rows),
            rule,
        })
    }
}

/// The mean of `ratios` without the `trim` largest above `at` and the `trim` smallest below it.
fn trimmed(ratios: &mut [f64], trim: usize, at: f64, least: f64) -> Option<f64> {
    ratios.sort_by(f64::total_cmp);
    let below = ratios.iter().filter(|ratio| **ratio < at).count().min(trim);
    let left = &ratios[below..];
    let above = left.iter().filter(|ratio| **ratio > at).count().min(trim);
    match &left[..left.len() - above] {
        [] => None,
        [0.0] => Some(least),
        left => Some(left.iter().sum::<f64>() / left.len() as f64),
    }
}

/// Share of shared items on which two voters agree, and whether there are any; nothing on the diagonal.
fn agreements(rows: &Rows<'_>) -> (Vec<f64>, Vec<bool>) {
    let (votes, m) = (rows.votes(), rows.votes().voters());
    let sums = rows.sum(2 * m * m, Vec::new, |row, seen: &mut Vec<(usize, usize)>, sums| {
        seen.clear();
        votes.visit(row, |voter, vote| seen.push((voter, vote)));
        for (index, (i, x)) in seen.iter().enumerate() {
            for (j, y) in &seen[index + 1..] {
                sums[2 * (i * m + j)].add_unit(1.0, rows.count(row));
                sums[2 * (i * m + j) + 1].add_unit(f64::from(u8::from(x == y)), rows.count(row));
            }
        }
    });
    let at = |cell: usize| {
        let (i, j) = (cell / m, cell % m);
        let cell = i.min(j) * m + i.max(j);
        [sums[2 * cell].value(), sums[2 * cell + 1].value()]
    };
    let shared: Vec<bool> = (0..m * m).map(|cell| at(cell)[0] > 0.0).collect();
    ((0..m * m).map(|cell| if shared[cell] { at(cell)[1] / at(cell)[0] } else { 0.0 }).collect(), shared)
}
