//! Losses of classifiers trained on soft labels, and those of weak-to-strong generalisation.
//!
//! Logits `z` and labels `y` are `[n, K]`; `p = softmax(z)`. All losses are means over the batch.
//!
//! # Confidence loss
//! A strong student that only imitates weak labels learns their errors. The auxiliary loss mixes the labels with
//! the student's own hardened prediction:
//!
//! 1. `q_k` = batch mean of `y_k`: the share of each class by the weak labels.
//! 2. Two classes: `t` = the `q_1`-quantile of `p_0` over the batch, linearly interpolated at index `q_1 (n-1)`;
//!    an item is hardened to class 0 if `p_0 >= t`, else to class 1. Without ties `ceil(q_1 (n-1))` items are 1.
//! 3. More classes: offsets `b_k` such that `argmax_k (log p_k + b_k)` has shares `q`.
//! 4. `L = CE(z, (1 - a) y + a h)`, `h` the hardened predictions, through which no gradient flows.
//! 5. `a` rises linearly to its largest value over the first 20 % of the steps ([`Confidence::weight`]).
//!
//! | setting | default | source |
//! |---|---|---|
//! | largest weight | 0.5 (0.75 for the largest students) | the paper, section 4.3.2 and appendix A.4 |
//! | warm-up | 0.2 of the steps | the paper |
//!
//! **Deviations.** The reference code (`loss.py`) does not divide the ramp by its length, so that the weight
//! creeps to 0.05 and then jumps to 0.5; [`Ramp::ReferenceBug`] does that for comparison. The threshold is taken
//! over the whole batch, as there; over micro-batches it would push everything into one class, so gradient
//! accumulation is not for this loss. More than two classes are an extension of ours.
//!
//! References: Burns et al., arXiv 2312.09390; openai/weak-to-strong `weak_to_strong/loss.py` (`xent`,
//! `logconf_loss_fn`, `product_loss_fn`); EleutherAI/w2s `w2s/loss.py` (window).

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use super::log_softmax;
use crate::{Result, TrainingError};

fn same_shape(logits: &Tensor, labels: &Tensor) -> Result<[usize; 2]> {
    match (logits.dims(), labels.dims()) {
        (&[n, k], &[m, l]) if n == m && k == l && n > 0 && k > 1 => Ok([n, k]),
        (_, got) => {
            let want = format!("[n, K] with n > 0 and K > 1, as the logits' {:?}", logits.dims());
            Err(TrainingError::Shape { name: "labels".into(), got: got.to_vec(), want })
        }
    }
}

/// `- mean_i sum_k y_ik log p_ik`.
///
/// # Errors
/// Shapes that differ.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let [n, _] = same_shape(logits, labels)?;
    let sum = log_softmax(logits)?.mul(&labels.detach().to_dtype(logits.dtype())?)?.sum_all()?;
    Ok(sum.affine(-1.0 / n as f64, 0.0)?)
}

/// Cross-entropy less the labels' entropy, which has the same gradient and is 0 when `p = y`.
///
/// # Errors
/// Shapes that differ.
pub fn kullback_leibler(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let [n, _] = same_shape(logits, labels)?;
    let entropy: f64 = rows(labels)?.iter().flatten().map(|&y| if y > 0.0 { -y * y.ln() } else { 0.0 }).sum();
    Ok(cross_entropy(logits, labels)?.affine(1.0, -entropy / n as f64)?)
}

/// `- mean_i sum_k p_ik log y_ik`: labels are clamped to at least `smallest`, where their logarithm would be
/// infinite.
///
/// # Errors
/// Shapes that differ; a clamp that is not between 0 and 1.
pub fn reverse_cross_entropy(logits: &Tensor, labels: &Tensor, smallest: f64) -> Result<Tensor> {
    let [n, _] = same_shape(logits, labels)?;
    if !(smallest > 0.0 && smallest < 1.0) {
        let want = "between 0 and 1";
        return Err(TrainingError::BadParameter { name: "smallest", value: smallest, want });
    }
    let logs = labels.detach().to_dtype(logits.dtype())?.maximum(smallest)?.log()?;
    Ok(log_softmax(logits)?.exp()?.mul(&logs)?.sum_all()?.affine(-1.0 / n as f64, 0.0)?)
}

/// Cross-entropy of the items of which the student is unsure, `max p < 1/2 + radius`, divided by the whole `n`
/// (EleutherAI/w2s; radius 0.15 there).
///
/// # Errors
/// Shapes that differ; a radius that is not between 0 and 1/2.
pub fn confidence_window(logits: &Tensor, labels: &Tensor, radius: f64) -> Result<Tensor> {
    same_shape(logits, labels)?;
    if !(0.0..=0.5).contains(&radius) {
        return Err(TrainingError::BadParameter { name: "radius", value: radius, want: "between 0 and 1/2" });
    }
    let largest = log_softmax(&logits.detach())?.exp()?.max_keepdim(D::Minus1)?;
    let unsure = largest.lt(0.5 + radius)?.to_dtype(logits.dtype())?;
    cross_entropy(logits, &labels.to_dtype(logits.dtype())?.broadcast_mul(&unsure)?)
}

/// Target proportional to `p_k^beta y_k^alpha`, normalised, through which no gradient flows; cross-entropy.
/// Both exponents are 1 in the reference code. Labels of 0 stay 0; an item that has no class left keeps its label.
///
/// # Errors
/// Shapes that differ; negative exponents.
pub fn product(logits: &Tensor, labels: &Tensor, alpha: f64, beta: f64) -> Result<Tensor> {
    let [n, k] = same_shape(logits, labels)?;
    for (name, value) in [("alpha", alpha), ("beta", beta)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(TrainingError::BadParameter { name, value, want: "0 or more" });
        }
    }
    let (logs, labels) = (rows(&log_softmax(&logits.detach())?)?, rows(labels)?);
    let mut target = Vec::with_capacity(n * k);
    for (logs, labels) in logs.iter().zip(&labels) {
        // In logarithms, so that a confident student's small probabilities do not become 0 / 0.
        let weigh = |(log, y): (&f64, &f64)| match *y > 0.0 {
            true => beta * log + alpha * y.ln(),
            false if alpha == 0.0 => beta * log,
            false => f64::NEG_INFINITY,
        };
        let scores: Vec<f64> = logs.iter().zip(labels).map(weigh).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            target.extend_from_slice(labels);
            continue;
        }
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        target.extend(scores.iter().map(|score| (score - max).exp() / sum));
    }
    let target = Tensor::from_vec(target, (n, k), logits.device())?;
    cross_entropy(logits, &target)
}

/// How the weight of the student's own predictions grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ramp {
    /// `min(1, share of the steps / warm-up)`: the paper.
    #[default]
    Linear,
    /// The share of the steps itself until the warm-up is over, then 1: the reference code's slip.
    ReferenceBug,
}

/// The confidence loss.
///
/// ```
/// use pilotfish_training::losses::classification::Confidence;
/// let loss = Confidence::default();
/// assert_eq!([0, 10, 20, 99].map(|step| loss.weight(step, 100)), [0.0, 0.25, 0.5, 0.5]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Confidence {
    /// Largest weight of the student's own predictions, from 0 to 1.
    pub largest: f64,
    /// Share of the steps over which it is reached, above 0 to 1.
    pub warmup: f64,
    /// How.
    pub ramp: Ramp,
}

impl Default for Confidence {
    fn default() -> Self {
        Self { largest: 0.5, warmup: 0.2, ramp: Ramp::Linear }
    }
}

impl Confidence {
    /// Checks the settings.
    ///
    /// # Errors
    /// One outside its range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, value, want| Err(TrainingError::BadParameter { name, value, want });
        if !(0.0..=1.0).contains(&self.largest) {
            return refuse("largest", self.largest, "from 0 to 1");
        }
        if !(self.warmup > 0.0 && self.warmup <= 1.0) {
            return refuse("warmup", self.warmup, "above 0, at most 1");
        }
        Ok(())
    }

    /// The weight at a step (from 0) of `steps`.
    pub fn weight(&self, step: u64, steps: u64) -> f64 {
        let share = step as f64 / steps.max(1) as f64;
        match self.ramp {
            Ramp::Linear => self.largest * (share / self.warmup).min(1.0),
            Ramp::ReferenceBug if share > self.warmup => self.largest,
            Ramp::ReferenceBug => self.largest * share,
        }
    }

    /// The loss of a whole batch at a step.
    ///
    /// # Errors
    /// Settings outside their range; shapes that differ; logits that are not finite.
    pub fn loss(&self, logits: &Tensor, labels: &Tensor, step: u64, steps: u64) -> Result<Tensor> {
        self.check()?;
        confidence(logits, labels, self.weight(step, steps))
    }
}

/// The confidence loss with weight `a`: `CE(z, (1 - a) y + a h)`. At `a = 0` it is [`cross_entropy`] to the bit.
///
/// # Errors
/// Shapes that differ; a weight outside 0 to 1; logits that are not finite.
pub fn confidence(logits: &Tensor, labels: &Tensor, a: f64) -> Result<Tensor> {
    let [n, k] = same_shape(logits, labels)?;
    if !(0.0..=1.0).contains(&a) {
        return Err(TrainingError::BadParameter { name: "a", value: a, want: "from 0 to 1" });
    }
    if a == 0.0 {
        return cross_entropy(logits, labels);
    }
    let soft = rows(labels)?;
    let hard = harden(&rows(&log_softmax(&logits.detach())?)?, &soft)?;
    let mut target = Vec::with_capacity(n * k);
    for (labels, hard) in soft.iter().zip(hard) {
        target.extend(
            labels.iter().enumerate().map(|(class, y)| (1.0 - a) * y + if class == hard { a } else { 0.0 }),
        );
    }
    cross_entropy(logits, &Tensor::from_vec(target, (n, k), logits.device())?)
}

fn rows(tensor: &Tensor) -> Result<Vec<Vec<f64>>> {
    Ok(tensor.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?)
}

/// Classes of a batch such that each class has about the share that the labels give it; from log-probabilities
/// and labels `[n][K]`.
///
/// # Errors
/// No items, or fewer than two classes; rows of unequal length; numbers that are not finite (minus infinity is).
pub fn harden(log_probs: &[Vec<f64>], labels: &[Vec<f64>]) -> Result<Vec<usize>> {
    let (n, k) = (log_probs.len(), log_probs.first().map_or(0, Vec::len));
    let even = |rows: &[Vec<f64>]| rows.len() == n && rows.iter().all(|row| row.len() == k);
    if n == 0 || k < 2 || !even(log_probs) || !even(labels) {
        let want = "n rows of K > 1 log-probabilities and as many labels".into();
        return Err(TrainingError::Shape { name: "batch".into(), got: vec![n, k], want });
    }
    let bad = |value: &&f64| value.is_nan() || **value == f64::INFINITY;
    if let Some(&value) = log_probs.iter().chain(labels).flatten().find(bad) {
        return Err(TrainingError::BadParameter { name: "batch", value, want: "finite" });
    }
    let mut shares = vec![0.0; k];
    for row in labels {
        shares.iter_mut().zip(row).for_each(|(share, y)| *share += y / n as f64);
    }
    if k == 2 {
        let p: Vec<f64> = log_probs.iter().map(|row| row[0].exp()).collect();
        let t = quantile(&p, shares[1]);
        return Ok(p.iter().map(|&p| usize::from(p < t)).collect());
    }
    Ok(shared_argmax(log_probs, &shares))
}

/// Linearly interpolated quantile, at index `q (n - 1)` of the sorted values; `q` is clamped to 0 and 1.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    // Torch's lerp: exact at both ends.
    let weight = at - at.floor();
    if weight < 0.5 { low + weight * (high - low) } else { high - (high - low) * (1.0 - weight) }
}

/// `argmax_k (log p_k + b_k)` with offsets found by coordinate steps: one class after the other, its offset is
/// set so that as many items as its share choose it, given the others' offsets. Ties go to the lowest class.
fn shared_argmax(log_probs: &[Vec<f64>], shares: &[f64]) -> Vec<usize> {
    let n = log_probs.len();
    let total: f64 = shares.iter().sum();
    let wanted: Vec<usize> = shares
        .iter()
        .map(|share| (share / total.max(f64::MIN_POSITIVE) * n as f64).round() as usize)
        .collect();
    let mut offsets = vec![0.0; shares.len()];
    let choose = |row: &[f64], offsets: &[f64]| {
        let mut best = 0;
        for class in 1..row.len() {
            if row[class] + offsets[class] > row[best] + offsets[best] {
                best = class;
            }
        }
        best
    };
    // Probabilities of 0 would make offsets infinite.
    let finite: Vec<Vec<f64>> =
        log_probs.iter().map(|row| row.iter().map(|log| log.max(-1e6)).collect()).collect();
    for _ in 0..8 * shares.len() {
        let classes: Vec<usize> = finite.iter().map(|row| choose(row, &offsets)).collect();
        let counts = (0..shares.len())
            .map(|class| classes.iter().filter(|&&other| other == class).count())
            .collect::<Vec<_>>();
        let off = |class: &usize| counts[*class].abs_diff(wanted[*class]);
        let Some(class) = (0..shares.len()).rev().max_by_key(off).filter(|class| off(class) > 1) else {
            return classes;
        };
        // The offset with which an item just begins to choose this class.
        let mut needed: Vec<f64> = finite
            .iter()
            .map(|row| {
                let others = (0..row.len()).filter(|&other| other != class);
                let best = others.map(|other| row[other] + offsets[other]).fold(f64::NEG_INFINITY, f64::max);
                best - row[class]
            })
            .collect();
        needed.sort_by(f64::total_cmp);
        offsets[class] = match wanted[class] {
            0 => needed[0] - 1.0,
            all if all >= n => needed[n - 1] + 1.0,
            some => 0.5 * (needed[some - 1] + needed[some]),
        };
    }
    finite.iter().map(|row| choose(row, &offsets)).collect()
}
