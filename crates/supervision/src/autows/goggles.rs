//! GOGGLES: classes as clusters of affinities, named by a few labelled items.
//!
//! How similar an item is to each of a number of reference items is its description; mixtures cluster these
//! descriptions, and labelled items say which cluster is which class.
//!
//! # Algorithm
//!
//! K classes; affinity matrices A_1.. `[items, references]`, one an embedding ([`affinity`]).
//!
//! 1. Base: for every A_f a mixture of K Gaussians with diagonal covariances; from k-means, until the mean log-likelihood
//!    gains less than 1e-4; 1e-6 is added to variances. Responsibilities p_f.
//! 2. Stack: one-hot p_f of all f side by side; a mixture of K vectors of Bernoulli variables, from k-means.
//!    E: p(k) is proportional to `pi_k prod mu^x (1 - mu)^(1 - x)`, 1e-5 added inside the logarithms. M: means. Stop when
//!    the changes of the last 20 iterations average at most 1e-6, or after 201.
//! 3. After every E step clusters are assigned to classes so that most labelled items are right ([`best_mapping`]).
//! 4. Other items: responsibilities of both, with the assignment as it stands. There is no abstention.
//!
//! The benchmark fits all this on the labelled items alone, which are also the references.
//!
//! | parameter | default | source |
//! |---|---|---|
//! | tolerance, added to variances | 1e-4, 1e-6 | code |
//! | iterations, base and stack | 100, 201 | scikit-learn, code |
//!
//! **Deviations.** The benchmark's code stacks p_f as they are, the paper one-hot; this is the paper. The code divides the
//! stack's weights by K instead of the number of items, which cancels. Where fewer than K different rows
//! are to be clustered, k-means cannot start, and the first base's clusters are taken. Five layers of VGG-16 with ten
//! prototypes each are 50 matrices in the paper; here there are as many as embeddings are given, one in the benchmark.
//!
//! Cost: O(items references K) an iteration of a base. References: Das et al., "GOGGLES: Automatic Image Labeling with
//! Affinity Coding", arXiv 1903.04552; SprocketLab/AutoWS-Bench-101, `fwrench/lf_selectors/goggles`,
//! `goggles_inference.py`.
//!
//! ```
//! use pilotfish_supervision::autows::goggles::{Goggles, GogglesConfig, affinity};
//! let x = ndarray::array![[1.0, 0.0], [1.0, 0.1], [0.9, 0.0], [0.0, 1.0], [0.1, 1.0], [0.0, 0.8]];
//! let a = affinity(x.view(), x.view())?;
//! let y = [1, 1, 1, 0, 0, 0].map(Some);
//! let fitted = Goggles::fit(std::slice::from_ref(&a), &y, 2, &GogglesConfig::default())?;
//! assert_eq!(fitted.predict(&[a])?.labels, [1, 1, 1, 0, 0, 0].map(Some));
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

use linfa::DatasetBase;
use linfa::traits::{Fit, Predict};
use linfa_clustering::KMeans;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use statrs::function::beta::checked_beta_reg;

use super::function::first_max;
use crate::heads::check_features;
use crate::label_models::best_permutation;
use crate::{Result, SupervisionError};

/// Added inside logarithms of Bernoulli probabilities.
const DELTA: f64 = 1e-5;

/// When fits end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GogglesConfig {
    /// Gain of the mean log-likelihood below which a base ends.
    pub tolerance: f64,
    /// Added to variances.
    pub ridge: f64,
    /// Iterations of a base at most.
    pub iterations: usize,
    /// Iterations of the stack at most.
    pub stack_iterations: usize,
}

impl Default for GogglesConfig {
    fn default() -> Self {
        Self { tolerance: 1e-4, ridge: 1e-6, iterations: 100, stack_iterations: 201 }
    }
}

impl GogglesConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("tolerance", self.tolerance), ("ridge", self.ridge)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(SupervisionError::BadParameter { name, value, want: "above 0 and finite" });
            }
        }
        if self.iterations == 0 || self.stack_iterations == 0 {
            return Err(SupervisionError::BadParameter {
                name: "iterations",
                value: 0.0,
                want: "at least 1",
            });
        }
        Ok(())
    }
}

/// Cosines of items and references, `[items, references]`; 0 for a vector of zeros.
///
/// # Errors
/// No items, different widths, numbers that are not finite.
pub fn affinity(items: ArrayView2<'_, f64>, references: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    check_features(items)?;
    check_features(references)?;
    if items.ncols() != references.ncols() {
        return Err(SupervisionError::Shape {
            what: "features",
            got: items.ncols(),
            want: references.ncols(),
        });
    }
    let unit = |x: ArrayView2<'_, f64>| {
        let mut x = x.to_owned();
        for mut row in x.rows_mut() {
            let norm = row.dot(&row).sqrt();
            row.mapv_inplace(|value| if norm > 0.0 { value / norm } else { 0.0 });
        }
        x
    };
    Ok(unit(items).dot(&unit(references).t()))
}

/// The class of every cluster that puts most labelled items right; `counts[cluster][class]`, square.
///
/// # Errors
/// A table that is not square; no clusters.
///
/// ```
/// use pilotfish_supervision::autows::goggles::best_mapping;
/// assert_eq!(best_mapping(&[vec![1, 9], vec![8, 2]])?, [1, 0]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
pub fn best_mapping(counts: &[Vec<u32>]) -> Result<Vec<usize>> {
    if counts.is_empty() {
        return Err(SupervisionError::Empty { what: "clusters" });
    }
    if let Some(row) = counts.iter().find(|row| row.len() != counts.len()) {
        return Err(SupervisionError::Shape { what: "classes", got: row.len(), want: counts.len() });
    }
    let gains: Vec<Vec<f64>> = counts.iter().map(|row| row.iter().map(|c| f64::from(*c)).collect()).collect();
    Ok(best_permutation(&gains))
}

/// Probability that the accuracy is above `epsilon` (the paper: 0.7), given how many labelled items are right and wrong and every
/// accuracy equally likely before: the tail of Beta(1 + right, 1 + wrong).
///
/// The reference sums a density at 100 points, which puts 18 right of 21 at 0.938771 instead of 0.931937.
///
/// # Errors
/// An `epsilon` outside 0 to 1.
///
/// ```
/// use pilotfish_supervision::autows::goggles::feasibility;
/// assert!((feasibility(18, 3, 0.7)? - 0.931937).abs() < 1e-6);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
pub fn feasibility(right: u32, wrong: u32, epsilon: f64) -> Result<f64> {
    let bad = || SupervisionError::BadParameter { name: "epsilon", value: epsilon, want: "from 0 to 1" };
    if !(0.0..=1.0).contains(&epsilon) {
        return Err(bad());
    }
    let below = checked_beta_reg(1.0 + f64::from(right), 1.0 + f64::from(wrong), epsilon);
    Ok(1.0 - below.map_err(|_| bad())?)
}

/// Labels with how sure the labelled items are of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Clustered {
    /// Probabilities of classes, `[items, classes]`.
    pub probabilities: Array2<f64>,
    /// Most probable classes.
    pub labels: Vec<Option<usize>>,
}

/// Fitted mixtures and their classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goggles {
    bases: Vec<Gaussians>,
    stack: Bernoullis,
    right: u32,
    wrong: u32,
}

impl Goggles {
    /// Fits affinity matrices `[items, references]` of the same items; `y` holds the classes of labelled ones.
    ///
    /// # Errors
    /// No matrices or items, lengths that differ, numbers that are not finite, fewer than two classes or fewer items than
    /// classes, no labels, a label that is not below `classes`; parameters outside their ranges.
    pub fn fit(
        affinities: &[Array2<f64>],
        y: &[Option<usize>],
        classes: usize,
        config: &GogglesConfig,
    ) -> Result<Self> {
        config.check()?;
        if affinities.is_empty() {
            return Err(SupervisionError::Empty { what: "affinity matrices" });
        }
        if classes < 2 {
            return Err(SupervisionError::Shape { what: "classes", got: classes, want: 2 });
        }
        for matrix in affinities {
            check_features(matrix.view())?;
            if matrix.nrows() != y.len() {
                return Err(SupervisionError::Shape { what: "items", got: matrix.nrows(), want: y.len() });
            }
        }
        if y.len() < classes {
            return Err(SupervisionError::Shape { what: "items", got: y.len(), want: classes });
        }
        if y.iter().all(Option::is_none) {
            return Err(SupervisionError::Empty { what: "labels" });
        }
        if let Some(&got) = y.iter().flatten().find(|class| **class >= classes) {
            return Err(SupervisionError::Shape { what: "class", got, want: classes });
        }
        let bases: Vec<Gaussians> =
            affinities.iter().map(|matrix| Gaussians::fit(matrix, classes, config)).collect::<Result<_>>()?;
        let hot = hot(&bases, affinities)?;
        let stack = Bernoullis::fit(&hot, y, classes, config)?;
        let mut fitted = Self { bases, stack, right: 0, wrong: 0 };
        let found = fitted.predict(affinities)?.labels;
        for (label, y) in found.iter().zip(y).filter(|(_, y)| y.is_some()) {
            *(if label == y { &mut fitted.right } else { &mut fitted.wrong }) += 1;
        }
        Ok(fitted)
    }

    /// Labels items by their affinities to the references that the fit had.
    ///
    /// # Errors
    /// Other numbers of matrices, references or items; numbers that are not finite.
    pub fn predict(&self, affinities: &[Array2<f64>]) -> Result<Clustered> {
        if affinities.len() != self.bases.len() {
            let (got, want) = (affinities.len(), self.bases.len());
            return Err(SupervisionError::Shape { what: "affinity matrices", got, want });
        }
        let items = affinities.first().map_or(0, Array2::nrows);
        for matrix in affinities {
            check_features(matrix.view())?;
            if matrix.nrows() != items {
                return Err(SupervisionError::Shape { what: "items", got: matrix.nrows(), want: items });
            }
        }
        let probabilities = self.stack.responsibilities(&hot(&self.bases, affinities)?);
        let labels =
            probabilities.rows().into_iter().map(|row| Some(first_max(row.iter().copied()).0)).collect();
        Ok(Clustered { probabilities, labels })
    }

    /// [`feasibility`] on the labelled items of the fit.
    ///
    /// # Errors
    /// An `epsilon` outside 0 to 1.
    pub fn feasibility(&self, epsilon: f64) -> Result<f64> {
        feasibility(self.right, self.wrong, epsilon)
    }
}

/// One-hot clusters of all bases, side by side.
fn hot(bases: &[Gaussians], affinities: &[Array2<f64>]) -> Result<Array2<f64>> {
    let k = bases.first().map_or(0, |base| base.means.nrows());
    let mut out = Array2::zeros((affinities.first().map_or(0, Array2::nrows), k * bases.len()));
    for (at, (base, matrix)) in bases.iter().zip(affinities).enumerate() {
        let want = base.means.ncols();
        if matrix.ncols() != want {
            return Err(SupervisionError::Shape { what: "references", got: matrix.ncols(), want });
        }
        for (item, row) in base.responsibilities(matrix).0.rows().into_iter().enumerate() {
            out[[item, at * k + first_max(row.iter().copied()).0]] = 1.0;
        }
    }
    Ok(out)
}

/// First clusters: k-means, or `None` where fewer than `k` different rows leave it nothing to start from.
fn first_clusters(x: &Array2<f64>, k: usize) -> Result<Option<Vec<usize>>> {
    let mut distinct: Vec<Vec<u64>> =
        x.rows().into_iter().map(|row| row.iter().map(|value| (value + 0.0).to_bits()).collect()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < k {
        return Ok(None);
    }
    let data = DatasetBase::from(x.clone());
    // linfa's own fixed seed: the same clusters every time.
    let fitted = KMeans::params(k).n_runs(1).tolerance(1e-4).max_n_iterations(300).fit(&data);
    let fitted =
        fitted.map_err(|error| SupervisionError::Solver { model: "k-means", why: error.to_string() })?;
    Ok(Some(fitted.predict(x).to_vec()))
}

fn one_hot(clusters: &[usize], k: usize) -> Array2<f64> {
    Array2::from_shape_fn((clusters.len(), k), |(item, cluster)| {
        f64::from(u8::from(clusters[item] == cluster))
    })
}

/// A mixture of Gaussians with diagonal covariances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Gaussians {
    weights: Vec<f64>,
    means: Array2<f64>,
    variances: Array2<f64>,
}

impl Gaussians {
    fn fit(x: &Array2<f64>, k: usize, config: &GogglesConfig) -> Result<Self> {
        let first = first_clusters(x, k)?.unwrap_or_else(|| (0..x.nrows()).map(|item| item % k).collect());
        let mut now = Self::maximise(x, &one_hot(&first, k), config.ridge);
        let mut last = f64::NEG_INFINITY;
        for _ in 0..config.iterations {
            let (p, value) = now.responsibilities(x);
            if (value - last).abs() < config.tolerance {
                break;
            }
            last = value;
            now = Self::maximise(x, &p, config.ridge);
        }
        Ok(now)
    }

    fn maximise(x: &Array2<f64>, p: &Array2<f64>, ridge: f64) -> Self {
        let n = x.nrows() as f64;
        let sizes: Vec<f64> =
            p.columns().into_iter().map(|column| column.sum() + 10.0 * f64::EPSILON).collect();
        let (mut means, mut squares) = (p.t().dot(x), p.t().dot(&(x * x)));
        for (k, size) in sizes.iter().enumerate() {
            means.row_mut(k).mapv_inplace(|sum| sum / size);
            squares.row_mut(k).mapv_inplace(|sum| sum / size);
        }
        let variances = (&squares - &(&means * &means)).mapv(|v| v.max(0.0) + ridge);
        Self { weights: sizes.into_iter().map(|size| size / n).collect(), means, variances }
    }

    /// Responsibilities and the mean log-likelihood.
    fn responsibilities(&self, x: &Array2<f64>) -> (Array2<f64>, f64) {
        let k = self.weights.len();
        let constants: Vec<f64> = (0..k)
            .map(|k| {
                let spread = |v: &f64| (v * std::f64::consts::TAU).ln();
                self.weights[k].ln() - 0.5 * self.variances.row(k).iter().map(spread).sum::<f64>()
            })
            .collect();
        let mut out = Array2::zeros((x.nrows(), k));
        let mut sum = 0.0;
        for (row, mut out) in x.rows().into_iter().zip(out.rows_mut()) {
            for (k, cell) in out.iter_mut().enumerate() {
                let far = |((x, m), v): ((&f64, &f64), &f64)| (x - m) * (x - m) / v;
                let distance: f64 =
                    row.iter().zip(self.means.row(k)).zip(self.variances.row(k)).map(far).sum();
                *cell = constants[k] - 0.5 * distance;
            }
            sum += normalise(out.as_slice_mut().unwrap_or_default());
        }
        (out, sum / x.nrows().max(1) as f64)
    }
}

/// From logarithms to probabilities; returns the logarithm of their sum.
fn normalise(logs: &mut [f64]) -> f64 {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for value in logs.iter_mut() {
        *value = (*value - most).exp();
        sum += *value;
    }
    logs.iter_mut().for_each(|value| *value /= sum);
    most + sum.ln()
}

/// A mixture of independent Bernoulli variables whose components are classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bernoullis {
    weights: Vec<f64>,
    means: Array2<f64>,
}

impl Bernoullis {
    fn fit(x: &Array2<f64>, y: &[Option<usize>], k: usize, config: &GogglesConfig) -> Result<Self> {
        let first = match first_clusters(x, k)? {
            Some(first) => first,
            None => x.rows().into_iter().map(|row| first_max(row.iter().take(k).copied()).0).collect(),
        };
        let mut p = one_hot(&first, k);
        let mut now = Self::maximise(x, &p);
        let mut changes = Vec::new();
        for _ in 0..config.stack_iterations {
            now = Self::maximise(x, &p);
            let mut next = now.responsibilities(x);
            let order = clusters_of_classes(&next, y)?;
            next = next.select(ndarray::Axis(1), &order);
            now.weights = order.iter().map(|cluster| now.weights[*cluster]).collect();
            now.means = now.means.select(ndarray::Axis(0), &order);
            changes.push((&next - &p).iter().map(|x| x * x).sum::<f64>().sqrt());
            p = next;
            let recent = &changes[changes.len().saturating_sub(20)..];
            if recent.len() == 20 && recent.iter().sum::<f64>() / 20.0 <= 1e-6 {
                break;
            }
        }
        Ok(now)
    }

    fn maximise(x: &Array2<f64>, p: &Array2<f64>) -> Self {
        let sizes: Vec<f64> = p.columns().into_iter().map(|column| column.sum()).collect();
        let mut means = p.t().dot(x);
        for (k, size) in sizes.iter().enumerate() {
            // A component without items keeps nothing of its own: anything is as likely as not.
            means.row_mut(k).mapv_inplace(|sum| if *size > 0.0 { (sum / size).clamp(0.0, 1.0) } else { 0.5 });
        }
        let n = x.nrows().max(1) as f64;
        Self { weights: sizes.into_iter().map(|size| size / n).collect(), means }
    }

    fn responsibilities(&self, x: &Array2<f64>) -> Array2<f64> {
        let (yes, no) = (self.means.mapv(|m| (m + DELTA).ln()), self.means.mapv(|m| (1.0 - m + DELTA).ln()));
        let mut out = x.dot(&yes.t()) + x.mapv(|x| 1.0 - x).dot(&no.t());
        for mut row in out.rows_mut() {
            row.iter_mut().zip(&self.weights).for_each(|(log, w)| *log += w.max(f64::MIN_POSITIVE).ln());
            normalise(row.as_slice_mut().unwrap_or_default());
        }
        out
    }
}

/// The cluster that each class is assigned, by labelled items.
fn clusters_of_classes(p: &Array2<f64>, y: &[Option<usize>]) -> Result<Vec<usize>> {
    let k = p.ncols();
    let mut counts = vec![vec![0u32; k]; k];
    for (row, y) in p.rows().into_iter().zip(y) {
        if let Some(class) = y {
            counts[first_max(row.iter().copied()).0][*class] += 1;
        }
    }
    let mut out = vec![0; k];
    best_mapping(&counts)?.into_iter().enumerate().for_each(|(cluster, class)| out[class] = cluster);
    Ok(out)
}
