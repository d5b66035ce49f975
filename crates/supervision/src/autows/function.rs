//! Labelling functions of few features: decision stumps and logistic regressions.

use ndarray::{Array2, ArrayView1};
use serde::{Deserialize, Serialize};

use crate::heads::{Logistic, LogisticConfig, sigmoid};
use crate::{Result, SupervisionError};

/// Splits of values closer than this are none (scikit-learn's `FEATURE_THRESHOLD`).
const APART: f64 = 1e-7;

/// What a function computes from features: probabilities of classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Model {
    /// One question: is the feature at most the threshold? Shares of classes on either side.
    Stump {
        /// The feature.
        feature: usize,
        /// The threshold, halfway between two values.
        threshold: f64,
        /// Shares of classes at or below it.
        below: Vec<f64>,
        /// Shares of classes above it.
        above: Vec<f64>,
    },
    /// Logistic regression on some features, over the classes that it was fitted on.
    Logistic {
        /// The features.
        features: Vec<usize>,
        /// The classes.
        among: Vec<usize>,
        /// One row for two classes, one a class for more; the intercept last.
        weights: Vec<Vec<f64>>,
    },
}

/// How probabilities become a vote. `b` is the probability of knowing nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// Two classes: 1 at `p(1) >= b + beta`, 0 at `p(1) <= b - beta`, `b` = 1/2.
    Either,
    /// One class against the rest (fitted as 1 against 0): the class at `p(1) >= b + beta`, otherwise nothing.
    Only(usize),
    /// The most probable class at `p >= b + beta`, `b` = 1 / classes.
    Any {
        /// How many classes there are.
        classes: usize,
    },
}

/// A labelling function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// What it computes.
    pub model: Model,
    /// Half the width of the band in which it abstains.
    pub beta: f64,
    /// How it votes.
    pub says: Says,
}

impl Function {
    /// Votes on items whose features are `[features, items]`.
    pub(super) fn votes(&self, columns: &Array2<f64>) -> Result<Vec<i16>> {
        let most = match &self.model {
            Model::Stump { feature, .. } => Some(feature),
            Model::Logistic { features, .. } => features.iter().max(),
        };
        if let Some(&feature) = most.filter(|feature| **feature >= columns.nrows()) {
            return Err(SupervisionError::Shape {
                what: "features",
                got: columns.nrows(),
                want: feature + 1,
            });
        }
        let band = band(self.beta);
        Ok(match self.says {
            Says::Either => self.model.evidence(columns).iter().map(|e| either(*e, band)).collect(),
            Says::Only(class) => {
                let only = |e: &f64| if either(*e, band) == 1 { class as i16 } else { -1 };
                self.model.evidence(columns).iter().map(only).collect()
            }
            Says::Any { classes } => {
                let tops = self.model.tops(columns, classes);
                tops.iter().map(|top| any(*top, classes, self.beta)).collect()
            }
        })
    }
}

/// Log-odds outside of which a function of two classes votes.
pub(super) fn band(beta: f64) -> (f64, f64) {
    (logit(0.5 - beta), logit(0.5 + beta))
}

/// The vote of log-odds in favour of class 1.
pub(super) fn either(evidence: f64, (low, high): (f64, f64)) -> i16 {
    if evidence >= high {
        1
    } else if evidence <= low {
        0
    } else {
        -1
    }
}

/// The vote of a most probable class.
pub(super) fn any((class, p): (usize, f64), classes: usize, beta: f64) -> i16 {
    if p >= 1.0 / classes as f64 + beta { class as i16 } else { -1 }
}

pub(super) fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

/// The first of the largest values, and its place.
pub(super) fn first_max(values: impl Iterator<Item = f64>) -> (usize, f64) {
    values
        .enumerate()
        .fold((0, f64::NEG_INFINITY), |best, (at, value)| if value > best.1 { (at, value) } else { best })
}

impl Model {
    /// Log-odds of class 1 against class 0 on every item, of a model fitted on these two; votes need no more, and no
    /// exponential. Features are `[features, items]`.
    pub(super) fn evidence(&self, columns: &Array2<f64>) -> Vec<f64> {
        match self {
            Self::Stump { feature, threshold, below, above } => {
                let (low, high) = (logit(below[1]), logit(above[1]));
                columns.row(*feature).iter().map(|x| if x <= threshold { low } else { high }).collect()
            }
            Self::Logistic { features, weights, .. } => scores(&weights[0], features, columns),
        }
    }

    /// The most probable class and its probability on every item.
    pub(super) fn tops(&self, columns: &Array2<f64>, classes: usize) -> Vec<(usize, f64)> {
        match self {
            Self::Stump { feature, threshold, below, above } => {
                let (low, high) = (first_max(below.iter().copied()), first_max(above.iter().copied()));
                columns.row(*feature).iter().map(|x| if x <= threshold { low } else { high }).collect()
            }
            Self::Logistic { features, among, weights } => {
                if let [one] = &weights[..] {
                    let top = |z: f64| match z > 0.0 {
                        true => (among[1], sigmoid(z)),
                        false => (among[0], sigmoid(-z)),
                    };
                    return scores(one, features, columns).into_iter().map(top).collect();
                }
                let items = columns.ncols();
                let all: Vec<Vec<f64>> = weights.iter().map(|row| scores(row, features, columns)).collect();
                let top = |item: usize| {
                    let (at, most) = first_max(all.iter().map(|scores| scores[item]));
                    let sum: f64 = all.iter().map(|scores| (scores[item] - most).exp()).sum();
                    (among[at], 1.0 / sum)
                };
                debug_assert!(among.iter().all(|class| *class < classes));
                (0..items).map(top).collect()
            }
        }
    }
}

fn scores(weights: &[f64], features: &[usize], columns: &Array2<f64>) -> Vec<f64> {
    let mut out = vec![weights[features.len()]; columns.ncols()];
    for (weight, feature) in weights.iter().zip(features) {
        out.iter_mut().zip(columns.row(*feature)).for_each(|(sum, x)| *sum += weight * x);
    }
    out
}

/// The threshold of the least Gini impurity (the lowest of equal ones) and shares of classes on both sides; one feature.
/// Without two values apart both sides are all.
pub(super) fn stump(
    feature: usize,
    x: ArrayView1<'_, f64>,
    y: &[usize],
    items: &[usize],
    classes: usize,
) -> (Model, f64) {
    let mut order: Vec<(f64, usize)> = items.iter().map(|item| (x[*item], y[*item])).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut right = vec![0.0; classes];
    order.iter().for_each(|(_, class)| right[*class] += 1.0);
    let all = right.clone();
    let (mut left, n) = (vec![0.0; classes], order.len() as f64);
    // n times the impurity, less what all splits share: -sum of squares over the size, on either side.
    let purity = |counts: &[f64], size: f64| counts.iter().map(|c| c * c).sum::<f64>() / size.max(1.0);
    let mut best = (purity(&all, n), f64::INFINITY, all.clone());
    for at in 1..order.len() {
        let class = order[at - 1].1;
        left[class] += 1.0;
        right[class] -= 1.0;
        let (low, high) = (order[at - 1].0, order[at].0);
        if high - low > APART {
            let value = purity(&left, at as f64) + purity(&right, n - at as f64);
            if value > best.0 + 1e-9 {
                let middle = low + (high - low) / 2.0;
                best = (value, if middle < high { middle } else { low }, left.clone());
            }
        }
    }
    let (value, threshold, below) = best;
    let share = |counts: Vec<f64>| {
        let sum: f64 = counts.iter().sum();
        counts.into_iter().map(|count| count / sum.max(1.0)).collect::<Vec<_>>()
    };
    let above = match threshold.is_finite() {
        true => all.iter().zip(&below).map(|(all, below)| all - below).collect(),
        false => all,
    };
    (Model::Stump { feature, threshold, below: share(below), above: share(above) }, value)
}

/// Logistic regression as scikit-learn fits it by default: `C` = 1, at most 100 steps, features as they are.
fn logistic(features: &[usize], columns: &Array2<f64>, y: &[usize], items: &[usize]) -> Result<Model> {
    let mut among: Vec<usize> = items.iter().map(|item| y[*item]).collect();
    among.sort_unstable();
    among.dedup();
    let place = |class: usize| among.binary_search(&class).unwrap_or(0);
    let classes: Vec<usize> = items.iter().map(|item| place(y[*item])).collect();
    if let ([feature], 2) = (features, among.len()) {
        let x: Vec<f64> = items.iter().map(|item| columns[[*feature, *item]]).collect();
        let weights = vec![newton(&x, &classes).to_vec()];
        return Ok(Model::Logistic { features: features.to_vec(), among, weights });
    }
    let x = Array2::from_shape_fn((items.len(), features.len()), |(i, j)| columns[[features[j], items[i]]]);
    if among.len() > 2 && among.len() * (features.len() + 1) <= SMALL {
        let weights = newton_many(&x, &classes, among.len());
        return Ok(Model::Logistic { features: features.to_vec(), among, weights });
    }
    let config = LogisticConfig { iterations: 100, tolerance: 1e-4, ..LogisticConfig::default() };
    let fitted = Logistic::fit_classes(x.view(), &classes, among.len(), None, &config)?;
    let rows = if among.len() == 2 { 1 } else { among.len() };
    let weights = (0..rows).filter_map(|row| fitted.weights(row).map(<[f64]>::to_vec)).collect();
    Ok(Model::Logistic { features: features.to_vec(), among, weights })
}

/// Most parameters for which a Newton step costs less than the L-BFGS steps it saves.
const SMALL: usize = 96;

/// Rows of weights of a logistic regression over several classes, intercepts last, by Newton's method; weights are penalised
/// by half their squares.
pub(super) fn newton_many(x: &Array2<f64>, y: &[usize], classes: usize) -> Vec<Vec<f64>> {
    let (n, d) = (x.nrows(), x.ncols() + 1);
    let size = classes * d;
    // Features and a one.
    let wide: Vec<Vec<f64>> =
        x.rows().into_iter().map(|row| row.iter().copied().chain([1.0]).collect()).collect();
    let free = |at: usize| at % d == d - 1;
    let evaluate = |w: &[f64], p: &mut [f64]| {
        let mut loss: f64 = 0.5 * (0..size).filter(|at| !free(*at)).map(|at| w[at] * w[at]).sum::<f64>();
        for (item, p) in p.chunks_exact_mut(classes).enumerate() {
            for (p, w) in p.iter_mut().zip(w.chunks_exact(d)) {
                *p = wide[item].iter().zip(w).map(|(x, w)| x * w).sum();
            }
            let most = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let chosen = p[y[item]];
            p.iter_mut().for_each(|p| *p = (*p - most).exp());
            let sum: f64 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= sum);
            loss += most + sum.ln() - chosen;
        }
        loss
    };
    let (mut w, mut p) = (vec![0.0; size], vec![0.0; n * classes]);
    let mut value = evaluate(&w, &mut p);
    let (mut next_w, mut next_p) = (w.clone(), p.clone());
    for _ in 0..100 {
        let mut gradient: Vec<f64> = (0..size).map(|at| if free(at) { 0.0 } else { w[at] }).collect();
        // The lower triangle. The intercepts' common shift changes nothing: a trace of curvature keeps it in place.
        let mut h = vec![0.0; size * size];
        (0..size).for_each(|at| h[at * size + at] = if free(at) { 1e-9 } else { 1.0 });
        for (item, p) in p.chunks_exact(classes).enumerate() {
            let wide = &wide[item];
            for a in 0..classes {
                let error = p[a] - f64::from(u8::from(y[item] == a));
                gradient[a * d..(a + 1) * d].iter_mut().zip(wide).for_each(|(g, x)| *g += error * x);
                for b in 0..=a {
                    let curve = if a == b { p[a] * (1.0 - p[a]) } else { -p[a] * p[b] };
                    for (i, xi) in wide.iter().enumerate() {
                        let row = &mut h[(a * d + i) * size + b * d..(a * d + i) * size + (b + 1) * d];
                        row.iter_mut().zip(wide).for_each(|(h, xj)| *h += curve * xi * xj);
                    }
                }
            }
        }
        if gradient.iter().all(|g| g.abs() < 1e-8) || !solve(&mut h, &mut gradient) {
            break;
        }
        let mut step = 1.0;
        let next = loop {
            (0..size).for_each(|at| next_w[at] = w[at] - step * gradient[at]);
            let next = evaluate(&next_w, &mut next_p);
            if next <= value || step < 1e-6 {
                break next;
            }
            step *= 0.5;
        };
        if !(next < value) {
            break;
        }
        std::mem::swap(&mut w, &mut next_w);
        std::mem::swap(&mut p, &mut next_p);
        value = next;
    }
    w.chunks_exact(d).map(<[f64]>::to_vec).collect()
}

/// Solves `H x = b` in place by Cholesky's decomposition; `h` holds the lower triangle. False where H is not positive.
fn solve(h: &mut [f64], b: &mut [f64]) -> bool {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let (before, row) = h.split_at_mut(i * n);
            let other = if j < i { &before[j * n..j * n + j] } else { &row[..j] };
            let sum: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            let rest = row[j] - sum;
            if j < i {
                row[j] = rest / before[j * n + j];
            } else if rest > 0.0 {
                row[j] = rest.sqrt();
            } else {
                return false;
            }
        }
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|j| h[i * n + j] * b[j]).sum();
        b[i] = (b[i] - sum) / h[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|j| h[j * n + i] * b[j]).sum();
        b[i] = (b[i] - sum) / h[i * n + i];
    }
    true
}

/// Weight and intercept of a logistic regression on one feature, by Newton's method; the weight is penalised by half its
/// square.
pub(super) fn newton(x: &[f64], y: &[usize]) -> [f64; 2] {
    let loss = |w: f64, c: f64| {
        let one = |(x, y): (&f64, &usize)| {
            let z = w * x + c;
            crate::heads::softplus(z) - if *y == 1 { z } else { 0.0 }
        };
        0.5 * w * w + x.iter().zip(y).map(one).sum::<f64>()
    };
    let (mut w, mut c) = (0.0, 0.0);
    let mut value = loss(w, c);
    for _ in 0..100 {
        let (mut gw, mut gc, mut hww, mut hwc, mut hcc) = (w, 0.0, 1.0, 0.0, 1e-12);
        for (x, y) in x.iter().zip(y) {
            let p = sigmoid(w * x + c);
            let (error, weight) = (p - *y as f64, p * (1.0 - p));
            gw += error * x;
            gc += error;
            hww += weight * x * x;
            hwc += weight * x;
            hcc += weight;
        }
        if gw.abs().max(gc.abs()) < 1e-8 {
            break;
        }
        let det = hww * hcc - hwc * hwc;
        let (dw, dc) = ((hcc * gw - hwc * gc) / det, (hww * gc - hwc * gw) / det);
        // Halved until it helps: the curvature far out is too small for a whole step.
        let mut step = 1.0;
        let next = loop {
            let next = loss(w - step * dw, c - step * dc);
            if next <= value || step < 1e-6 {
                break next;
            }
            step *= 0.5;
        };
        if !(next < value) {
            break;
        }
        (w, c, value) = (w - step * dw, c - step * dc, next);
    }
    [w, c]
}

/// Functions for every set of 1 to `cardinality` features, stumps first, fitted on the items listed. None if these are all
/// of one class.
pub(super) fn generate(
    columns: &Array2<f64>,
    y: &[usize],
    items: &[usize],
    classes: usize,
    kinds: (bool, bool),
    cardinality: usize,
) -> Result<Vec<Model>> {
    let Some(first) = items.first() else { return Ok(Vec::new()) };
    if items.iter().all(|item| y[*item] == y[*first]) {
        return Ok(Vec::new());
    }
    let sets = subsets(columns.nrows(), cardinality);
    let mut out = Vec::new();
    if kinds.0 {
        for set in &sets {
            let stumps = set.iter().map(|f| stump(*f, columns.row(*f), y, items, classes));
            let best = stumps.reduce(|best, next| if next.1 > best.1 { next } else { best });
            out.extend(best.map(|(model, _)| model));
        }
    }
    if kinds.1 {
        for set in &sets {
            out.push(logistic(set, columns, y, items)?);
        }
    }
    Ok(out)
}

/// Sets of 1 to `most` of `count` features, smaller ones first, in lexicographic order.
fn subsets(count: usize, most: usize) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = (0..count).map(|feature| vec![feature]).collect();
    let mut from = 0;
    for _ in 1..most {
        let to = out.len();
        for at in from..to {
            let last = out[at].last().map_or(0, |last| last + 1);
            for feature in last..count {
                let mut set = out[at].clone();
                set.push(feature);
                out.push(set);
            }
        }
        from = to;
    }
    out
}

/// F1 averaged over classes by their number of items; -1 is an answer that is never right.
pub(super) fn weighted_f1(truth: &[usize], votes: &[i16], classes: usize) -> f64 {
    let (mut right, mut said, mut there) = (vec![0.0; classes], vec![0.0; classes], vec![0.0; classes]);
    for (truth, vote) in truth.iter().zip(votes) {
        there[*truth] += 1.0;
        if let Ok(vote) = usize::try_from(*vote) {
            said[vote] += 1.0;
            right[vote] += if vote == *truth { 1.0 } else { 0.0 };
        }
    }
    let sum: f64 = (0..classes)
        .filter(|class| there[*class] > 0.0)
        .map(|class| there[class] * 2.0 * right[class] / (said[class] + there[class]))
        .sum();
    sum / truth.len().max(1) as f64
}

/// Micro-averaged F1, with -1 as an answer that is never right: the share of right votes.
pub(super) fn micro_f1(truth: &[usize], votes: &[i16]) -> f64 {
    let right =
        truth.iter().zip(votes).filter(|(truth, vote)| usize::try_from(**vote) == Ok(**truth)).count();
    right as f64 / truth.len().max(1) as f64
}

/// The `beta` of the largest weighted F1 on labelled items, the smallest of equal ones; `vote(item, beta)` votes.
pub(super) fn best_beta(
    betas: &[f64],
    truth: &[usize],
    classes: usize,
    vote: impl Fn(usize, f64) -> i16,
) -> (f64, Vec<i16>) {
    let mut best: Option<(f64, f64, Vec<i16>)> = None;
    for &beta in betas {
        let votes: Vec<i16> = (0..truth.len()).map(|item| vote(item, beta)).collect();
        let value = weighted_f1(truth, &votes, classes);
        if best.as_ref().is_none_or(|(most, ..)| value > most + 1e-12) {
            best = Some((value, beta, votes));
        }
    }
    best.map_or((0.0, Vec::new()), |(_, beta, votes)| (beta, votes))
}
