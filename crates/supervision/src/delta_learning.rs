//! Delta learning: preference tuning on pairs whose both sides are weaker than the student.
//!
//! A pair is the answer of a better model over that of a worse one, in this order whatever they say ([`measure`] says
//! how often that is right). The student is tuned by DPO of mean log-probabilities (`pilotfish_training::PairLoss::MeanDpo`
//! with beta 5 to 10); fine-tuning on the better answers alone would pull it down to their level.
//!
//! For logistic regression all of it has closed forms, which are here: `x ~ N(0, I)`, the truth is a direction, a teacher
//! says `sign <u, x>`, the student says +1 with probability `s(<theta, x>)`, and a direction at cosine `a` to the truth is
//! right on `1 - arccos(a) / pi` of the items ([`accuracy`]).
//!
//! | what | function | note |
//! |---|---|---|
//! | direction of the first step | [`first_gradient`] | `(c - r) / sqrt(2 pi)` for unit teachers, whatever the student |
//! | whether a small step helps | [`first_order`] | the sign of `<v, t> - a0 <v, student>` |
//! | probability of that, errors independent | [`chance_of_improvement`] | tends to 1 with the dimension |
//! | best step and cosine, errors orthogonal | [`best_step`] | signal-to-noise ratios add up |
//! | cosine after too many steps | [`overtrained`] | usually below the start |
//! | shared error above which imitation only hurts | [`imitation_hurts_above`] | |
//! | training on finite data | [`Pairs`] | full-batch gradient descent |
//! | an attribute that is counted | [`Counts`] | extrapolation needs shared parameters |
//!
//! **Deviations.** The authors' theorem could not be read. The statements here are of the same kind, derived anew and held
//! to simulations; their constants are not the authors'. With independent errors imitation that is stopped early helps too,
//! and can beat the pairs; the advantage comes with errors that student and teachers share.
//!
//! References: Geng et al., arXiv 2507.06187; scottgeng00/delta_learning `openrlhf/models/loss.py`, `configs/dpo`.

use ndarray::{Array1, Array2};
use rand::Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::heads::{sigmoid, softplus};
use crate::{Result, SupervisionError};

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// Cosine of two directions.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b) / (norm(a) * norm(b))
}

/// Share of the items that a direction at this cosine to the truth gets right: `1 - arccos(a) / pi`.
///
/// ```
/// use pilotfish_supervision::delta_learning::accuracy;
/// assert!((accuracy(0.8) - 0.795_167).abs() < 1e-6);
/// ```
pub fn accuracy(cosine: f64) -> f64 {
    1.0 - cosine.clamp(-1.0, 1.0).acos() / std::f64::consts::PI
}

/// Share of the items on which two teachers differ.
pub fn disagreement(a: &[f64], b: &[f64]) -> f64 {
    1.0 - accuracy(cosine(a, b))
}

/// The mean of `(y_c - y_r) x / 2` over items, for teachers that say the sign: the gradient of the margin, and up to a
/// factor the first step of DPO from any student.
pub fn first_gradient(better: &[f64], worse: &[f64]) -> Vec<f64> {
    let (c, r) = (norm(better), norm(worse));
    let root = (2.0 * std::f64::consts::PI).sqrt();
    better.iter().zip(worse).map(|(better, worse)| (better / c - worse / r) / root).collect()
}

/// What replaces `sqrt(2 / pi)` where a teacher of this scale draws its labels from its logistic law instead of saying the
/// more probable one, over the scale: `2 E[s(scale g) (1 - s(scale g))]`.
///
/// ```
/// use pilotfish_supervision::delta_learning::sampled_pull;
/// assert!((sampled_pull(1.0) - 0.413_242).abs() < 1e-6);
/// ```
pub fn sampled_pull(scale: f64) -> f64 {
    // The trapezoid rule is exact to rounding for functions that vanish this fast.
    const POINTS: i32 = 4000;
    let width = 24.0 / f64::from(POINTS);
    let density = |g: f64| (-g * g / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let sum: f64 = (0..=POINTS)
        .map(|point| -12.0 + width * f64::from(point))
        .map(|g| density(g) * sigmoid(scale * g) * sigmoid(-scale * g))
        .sum();
    2.0 * width * sum
}

/// `<v, t> - a0 <v, s>` for unit truth `t` and student `s` at cosine `a0`: above 0 where a small step along `v` makes the
/// student better.
pub fn first_order(student: &[f64], step: &[f64], truth: &[f64]) -> f64 {
    let along = |unit: &[f64]| dot(step, unit) / norm(unit);
    along(truth) - cosine(student, truth) * along(student)
}

/// The student moved along a step.
pub fn moved(student: &[f64], step: &[f64], rate: f64) -> Vec<f64> {
    student.iter().zip(step).map(|(student, step)| student + rate * step).collect()
}

/// Probability that a small step along the difference of two teachers helps a student, where the errors of all three are
/// independent random directions of `dimension` dimensions. Cosines to the truth: student, better and worse teacher.
pub fn chance_of_improvement(dimension: usize, [student, better, worse]: [f64; 3]) -> f64 {
    let gap = (better - worse) * (1.0 - student * student).sqrt();
    let noise = student * (2.0 - better * better - worse * worse).sqrt();
    let z = (dimension.max(1) as f64 - 1.0).sqrt() * gap / noise;
    0.5 * statrs::function::erf::erfc(-z / std::f64::consts::SQRT_2)
}

/// The best step along the difference of two teachers, where the errors of all three are orthogonal, and the cosine that it
/// leads to, from a student of length 1.
///
/// ```
/// use pilotfish_supervision::delta_learning::best_step;
/// let (cosine, rate) = best_step([0.8, 0.6, 0.2]);
/// assert!((cosine - 0.807_781).abs() < 1e-6 && (rate - 0.1125).abs() < 1e-6);
/// ```
pub fn best_step([student, better, worse]: [f64; 3]) -> (f64, f64) {
    let noise = 2.0 - better * better - worse * worse;
    let rest = 1.0 - student * student;
    let ratio = student * student / rest + (better - worse).powi(2) / noise;
    ((ratio / (1.0 + ratio)).sqrt(), (better - worse) * rest / (student * noise))
}

/// Cosine that ever more steps along the difference of two teachers with orthogonal errors lead to.
pub fn overtrained(better: f64, worse: f64) -> f64 {
    let gap = better - worse;
    gap / (gap * gap + 2.0 - better * better - worse * worse).sqrt()
}

/// The share of the student's error direction in the teacher's error above which imitating the teacher hurts at every step.
pub fn imitation_hurts_above(student: f64, teacher: f64) -> f64 {
    teacher / (1.0 - teacher * teacher).sqrt() * (1.0 - student * student).sqrt() / student
}

/// What a student is trained for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Lesson {
    /// DPO on the pairs, with the start as the reference.
    Delta {
        /// Strength of the reference.
        beta: f64,
    },
    /// Likelihood of the better teacher's labels.
    Imitation,
}

/// Items with the labels of two teachers.
#[derive(Clone, Debug)]
pub struct Pairs {
    x: Array2<f64>,
    /// +1 or -1 of the better and the worse teacher.
    better: Array1<f64>,
    worse: Array1<f64>,
}

impl Pairs {
    /// Items and what two teachers, as directions, say of them.
    ///
    /// # Errors
    /// No items; directions of another length than an item; numbers that are not finite.
    pub fn new(x: Array2<f64>, better: &[f64], worse: &[f64]) -> Result<Self> {
        crate::heads::check_features(x.view())?;
        for teacher in [better, worse] {
            if teacher.len() != x.ncols() {
                let (what, got) = ("a teacher's direction", teacher.len());
                return Err(SupervisionError::Shape { what, got, want: x.ncols() });
            }
            if let Some(index) = teacher.iter().position(|value| !value.is_finite()) {
                return Err(SupervisionError::NotFinite { what: "direction", index });
            }
        }
        let sign = |teacher: &[f64]| {
            x.dot(&Array1::from(teacher.to_vec())).mapv(|along| if along >= 0.0 { 1.0 } else { -1.0 })
        };
        let (better, worse) = (sign(better), sign(worse));
        Ok(Self { x, better, worse })
    }

    /// Standard normal items.
    ///
    /// # Errors
    /// As [`Pairs::new`].
    pub fn drawn(items: usize, better: &[f64], worse: &[f64], rng: &mut impl Rng) -> Result<Self> {
        let shape = (items, better.len());
        Self::new(Array2::from_shape_simple_fn(shape, || rng.sample(StandardNormal)), better, worse)
    }

    /// Mean loss of a student and its gradient.
    ///
    /// # Errors
    /// A student or a reference of another length than an item.
    pub fn loss(&self, lesson: Lesson, student: &[f64], reference: &[f64]) -> Result<(f64, Vec<f64>)> {
        for got in [student.len(), reference.len()] {
            if got != self.x.ncols() {
                return Err(SupervisionError::Shape { what: "a student", got, want: self.x.ncols() });
            }
        }
        let n = self.x.nrows() as f64;
        let (value, weights): (f64, Array1<f64>) = match lesson {
            Lesson::Delta { beta } => {
                let by: Array1<f64> = student.iter().zip(reference).map(|(a, b)| a - b).collect();
                // log p(y_c) - log p(y_r) = (y_c - y_r) z / 2, exactly.
                let half = (&self.better - &self.worse) / 2.0;
                let h = self.x.dot(&by) * &half * beta;
                let weights = half * h.mapv(|h| -beta * sigmoid(-h));
                (h.mapv(|h| softplus(-h)).sum() / n, weights)
            }
            Lesson::Imitation => {
                let z = self.x.dot(&Array1::from(student.to_vec())) * &self.better;
                let weights = &self.better * &z.mapv(|z| -sigmoid(-z));
                (z.mapv(|z| softplus(-z)).sum() / n, weights)
            }
        };
        let mut gradient = vec![0.0; student.len()];
        for (row, weight) in self.x.rows().into_iter().zip(&weights) {
            gradient.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x / n);
        }
        Ok((value, gradient))
    }

    /// Gradient descent on all items at once: the student before the first and after every step.
    ///
    /// # Errors
    /// A student of another length than an item; a rate that is not above 0.
    pub fn descend(&self, lesson: Lesson, student: &[f64], rate: f64, steps: usize) -> Result<Vec<Vec<f64>>> {
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(SupervisionError::BadParameter { name: "rate", value: rate, want: "above 0" });
        }
        let mut path = vec![student.to_vec()];
        for step in 0..steps {
            let (_, gradient) = self.loss(lesson, &path[step], student)?;
            path.push(moved(&path[step], &gradient, -rate));
        }
        Ok(path)
    }

    /// Share of the items on which the teachers differ.
    pub fn disagreement(&self) -> f64 {
        let differ = self.better.iter().zip(&self.worse).filter(|(a, b)| a != b).count();
        differ as f64 / self.x.nrows() as f64
    }
}

/// Answers of the size 1, 2, ... (sections of a text): a softmax whose logit of size `k` is `slope k + own_k`.
///
/// Pairs of sizes move the slope, which all sizes share, and the two sizes' own parameters. Without the slope a preference
/// for 3 over 2 says nothing of 4; with it the mean goes on beyond the better size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// What all sizes share.
    pub slope: f64,
    /// What each size has of its own; the first is that of size 1.
    pub own: Vec<f64>,
}

impl Counts {
    /// Probability of each size.
    pub fn law(&self) -> Vec<f64> {
        let logits: Vec<f64> =
            self.own.iter().enumerate().map(|(at, own)| self.slope * (at + 1) as f64 + own).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    /// Expected size.
    pub fn mean(&self) -> f64 {
        self.law().iter().enumerate().map(|(at, p)| p * (at + 1) as f64).sum()
    }

    /// One step of DPO towards a size over another, at the given rates of the slope and of what is own.
    ///
    /// # Errors
    /// A size that there is not.
    pub fn prefer(
        &mut self,
        start: &Self,
        [better, worse]: [usize; 2],
        beta: f64,
        [slope, own]: [f64; 2],
    ) -> Result<()> {
        let logit =
            |of: &Self, size: usize| of.own.get(size.wrapping_sub(1)).map(|own| of.slope * size as f64 + own);
        let h = |of: &Self| Some(logit(of, better)? - logit(of, worse)?);
        let (Some(now), Some(before)) = (h(self), h(start)) else {
            return Err(SupervisionError::Shape {
                what: "size",
                got: better.max(worse),
                want: self.own.len(),
            });
        };
        let pull = beta * sigmoid(-beta * (now - before));
        self.slope += slope * pull * (better as f64 - worse as f64);
        self.own[better - 1] += own * pull;
        self.own[worse - 1] -= own * pull;
        Ok(())
    }

    /// One step of likelihood of a size.
    ///
    /// # Errors
    /// A size that there is not.
    pub fn imitate(&mut self, size: usize, [slope, own]: [f64; 2]) -> Result<()> {
        if size == 0 || size > self.own.len() {
            return Err(SupervisionError::Shape { what: "size", got: size, want: self.own.len() });
        }
        let (law, mean) = (self.law(), self.mean());
        self.slope += slope * (size as f64 - mean);
        for (at, p) in law.into_iter().enumerate() {
            self.own[at] += own * (f64::from(u8::from(at + 1 == size)) - p);
        }
        Ok(())
    }
}

/// How far the two sides of pairs are apart, where the truth is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Pairs.
    pub pairs: usize,
    /// Share of the better models' answers that are right.
    pub better: f64,
    /// Share of the worse models' answers that are right.
    pub worse: f64,
    /// Share of the pairs of two answers that are the same: they say nothing.
    pub same: f64,
    /// Share of the pairs that are the wrong way round: only the worse model is right.
    pub inverted: f64,
}

impl Delta {
    /// What the better models are ahead by.
    pub fn gap(&self) -> f64 {
        self.better - self.worse
    }
}

/// Measures pairs: of each whether the better and the worse model's answer is right, and whether they are the same.
///
/// # Errors
/// No pairs.
pub fn measure(pairs: impl IntoIterator<Item = (bool, bool, bool)>) -> Result<Delta> {
    let mut counts = [0usize; 5];
    for (better, worse, same) in pairs {
        for (count, holds) in counts.iter_mut().zip([true, better, worse, same, worse && !better]) {
            *count += usize::from(holds);
        }
    }
    let [pairs, better, worse, same, inverted] = counts;
    if pairs == 0 {
        return Err(SupervisionError::Empty { what: "pairs" });
    }
    let share = |count: usize| count as f64 / pairs as f64;
    Ok(Delta {
        pairs,
        better: share(better),
        worse: share(worse),
        same: share(same),
        inverted: share(inverted),
    })
}
