//! Interactive Weak Supervision: which of many labelling functions are useful, learnt from answers about a few.
//!
//! An expert (here: the labelled items) says of one function after the other whether it is useful; an ensemble of small
//! networks predicts that for all others from how they vote, and picks the next question where it is least sure on which
//! side of a level a function lies.
//!
//! # Algorithm
//!
//! 1. Candidates: as in [`super::snuba`], one function a feature and kind of model, with its beta, on all labelled items.
//!    Functions that vote on no labelled item are left out.
//! 2. A candidate's features: the leading 40 left singular vectors, times their singular values, of the matrix of votes
//!    (candidates x indicators "votes class c on labelled item i").
//! 3. Answered: 4 random candidates, taken to be useful.
//! 4. 25 times: fit 50 networks (two hidden layers of 10 ReLU, a sigmoid) to the answers, each on a bootstrap sample; ask about
//!    the candidate with the most `1.96 sd - |mean - r|` ([`straddle`]), r = 0.6; the answer is whether its accuracy on
//!    the labelled items it votes on is above 0.6.
//! 5. Keep all answered useful, and of the others with mean >= r the 100 with the most `(2 mean - 1) coverage`, coverage
//!    being that on unlabelled items.
//!
//! # Defaults
//!
//! | parameter | default | source |
//! |---|---|---|
//! | questions; taken for useful at first | 25; 4 | scripts; code |
//! | ensemble, hidden units | 50, 10 and 10 | code |
//! | Adam: rate, decay, epochs | 1e-3, 1e-4, 200 | code |
//! | ends after 10 epochs that change the loss by less than | 1e-4 | code |
//! | components, power iterations | 40, 20 | code |
//! | r, z, useful above, kept | 0.6, 1.96, 0.6, 100 | code |
//!
//! # Deviations
//!
//! In the code a vote counts as right when the product of vote and truth is positive, so that any class but 0 is right for
//! any other; here it must be the class. The code decomposes a matrix of class numbers, in which an abstention is -1 and
//! far classes differ more; here classes are indicators, so that their numbering does not matter (with two classes and no abstention
//! both say the same). The code puts functions that never vote among the answers, as useless; they are left out here, or they
//! would outnumber the answers. Its early stopping compares with the first loss; here with the last.
//!
//! Cost: 25 x 50 networks of some 500 weights, 200 steps on up to 29 answers each.
//!
//! References: Boecking, Neiswanger, Xing, Dubrawski, "Interactive Weak Supervision", arXiv 2012.06046;
//! benbo/interactive-weak-supervision, `iws.py`, `torchmodels.py`; SprocketLab/AutoWS-Bench-101,
//! `fwrench/lf_selectors/interactive_multiclass`.
//!
//! ```
//! use pilotfish_supervision::autows::iws::straddle;
//! let value = |mean, sd| straddle(mean, sd, 0.6, 1.96);
//! assert!((value(0.6, 0.1) - 0.196).abs() < 1e-12 && value(0.6, 0.1) > value(0.8, 0.1));
//! ```

use ndarray::{Array2, ArrayView2};
use pilotfish_model::{StreamRng, Streams};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::features::leading;
use super::function::generate;
use super::snuba::{SnubaConfig, columns, with_beta};
use super::{Function, Says, check};
use crate::heads::{AdamConfig, sigmoid, softplus};
use crate::{Result, SupervisionError};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IwsConfig {
    /// Which candidates there are: cardinality, kinds and betas are read.
    pub candidates: SnubaConfig,
    /// Questions asked.
    pub questions: usize,
    /// Candidates taken for useful without asking.
    pub initial: usize,
    /// Networks.
    pub ensemble: usize,
    /// Units of each of the two hidden layers.
    pub hidden: usize,
    /// How networks are trained.
    pub adam: AdamConfig,
    /// Features of a candidate.
    pub components: usize,
    /// Power iterations of the decomposition.
    pub power: usize,
    /// The level r of the mean prediction.
    pub level: f64,
    /// How many standard deviations count as doubt.
    pub z: f64,
    /// Accuracy above which a function is useful.
    pub useful: f64,
    /// Functions kept, over and above the answered ones.
    pub keep: usize,
    /// Seed of the first candidates, bootstrap samples and weights.
    pub seed: u64,
}

impl Default for IwsConfig {
    fn default() -> Self {
        Self {
            candidates: SnubaConfig::default(),
            questions: 25,
            initial: 4,
            ensemble: 50,
            hidden: 10,
            adam: AdamConfig::default(),
            components: 40,
            power: 20,
            level: 0.6,
            z: 1.96,
            useful: 0.6,
            keep: 100,
            seed: 0,
        }
    }
}

impl IwsConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<()> {
        self.candidates.check()?;
        for (name, value) in [
            ("initial", self.initial),
            ("ensemble", self.ensemble),
            ("hidden", self.hidden),
            ("components", self.components),
        ] {
            if value == 0 {
                return Err(SupervisionError::BadParameter { name, value: 0.0, want: "at least 1" });
            }
        }
        for (name, value) in [("level", self.level), ("useful", self.useful)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(SupervisionError::BadParameter { name, value, want: "from 0 to 1" });
            }
        }
        let adam = [self.adam.rate, self.adam.decay, self.adam.tolerance, self.z];
        for (name, value) in ["rate", "decay", "tolerance", "z"].into_iter().zip(adam) {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(SupervisionError::BadParameter { name, value, want: "at least 0 and finite" });
            }
        }
        Ok(())
    }
}

/// The value of asking about a function whose usefulness the ensemble predicts with this mean and standard deviation.
pub fn straddle(mean: f64, deviation: f64, level: f64, z: f64) -> f64 {
    z * deviation - (mean - level).abs()
}

/// What was asked and kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// The functions kept.
    pub functions: Vec<Function>,
    /// Candidates there were.
    pub candidates: usize,
    /// Answers, in the order asked: accuracy on the labelled items voted on, and whether that is useful.
    pub answers: Vec<(f64, bool)>,
}

/// Selects labelling functions for `classes` classes; features `[items, features]`.
///
/// # Errors
/// No items or features, lengths that differ, features that are not finite, a label that is not below `classes`; parameters
/// outside their ranges.
pub fn select(
    labelled: ArrayView2<'_, f64>,
    y: &[usize],
    classes: usize,
    unlabelled: ArrayView2<'_, f64>,
    config: &IwsConfig,
) -> Result<Selected> {
    check(labelled, y, classes, unlabelled)?;
    config.check()?;
    config.candidates.check_count(labelled.ncols())?;
    let (labelled, unlabelled) = (columns(labelled), columns(unlabelled));
    let says = if classes == 2 { Says::Either } else { Says::Any { classes } };
    let kinds = (config.candidates.stumps, config.candidates.logistic);
    let items: Vec<usize> = (0..y.len()).collect();
    let models = generate(&labelled, y, &items, classes, kinds, config.candidates.cardinality)?;
    let made = models.into_iter().map(|model| with_beta(model, &labelled, y, says, &config.candidates.betas));
    let pool: Vec<(Function, Vec<i16>)> =
        made.filter(|(_, votes)| votes.iter().any(|vote| *vote >= 0)).collect();
    let count = pool.len();
    if count == 0 {
        return Ok(Selected { functions: Vec::new(), candidates: 0, answers: Vec::new() });
    }
    let streams = Streams::new(config.seed);
    let indicators: Vec<Vec<usize>> = pool
        .iter()
        .map(|(_, votes)| {
            let cast = votes.iter().enumerate();
            cast.filter_map(|(item, vote)| Some(item * classes + usize::try_from(*vote).ok()?)).collect()
        })
        .collect();
    let x = leading(&indicators, y.len() * classes, config.components, config.power, &streams)?;
    let accuracy = |at: usize| accuracy_covered(y, &pool[at].1);
    let mut order: Vec<usize> = (0..count).collect();
    let mut rng = streams.stream("iws");
    order.shuffle(&mut rng);
    order.truncate(config.initial);
    let mut answered: Vec<(usize, bool)> = order.into_iter().map(|at| (at, true)).collect();
    let mut answers = Vec::new();
    for _ in 0..config.questions {
        let predicted = predict(&x, &answered, config, &mut rng);
        let open = (0..count).filter(|at| answered.iter().all(|(done, _)| done != at));
        let value = |at: usize| straddle(predicted[at].0, predicted[at].1, config.level, config.z);
        // The first of equal ones.
        let next = open.reduce(|best, at| if value(at) > value(best) { at } else { best });
        let Some(next) = next else { break };
        let right = accuracy(next);
        answers.push((right, right > config.useful));
        answered.push((next, right > config.useful));
    }
    let predicted = predict(&x, &answered, config, &mut rng);
    let mut kept: Vec<usize> = answered.iter().filter(|(_, useful)| *useful).map(|(at, _)| *at).collect();
    let mut others = Vec::new();
    for at in (0..count).filter(|at| answered.iter().all(|(done, _)| done != at)) {
        let mean = predicted[at].0;
        if mean >= config.level {
            let votes = pool[at].0.votes(&unlabelled)?;
            let coverage = votes.iter().filter(|vote| **vote >= 0).count() as f64 / votes.len() as f64;
            others.push(((2.0 * mean - 1.0) * coverage, at));
        }
    }
    others.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    kept.extend(others.into_iter().take(config.keep).map(|(_, at)| at));
    let functions = kept.into_iter().map(|at| pool[at].0.clone()).collect();
    Ok(Selected { functions, candidates: count, answers })
}

/// Share of right votes among those cast; 0 without any.
pub(super) fn accuracy_covered(y: &[usize], votes: &[i16]) -> f64 {
    let cast = votes.iter().zip(y).filter_map(|(vote, y)| Some(usize::try_from(*vote).ok()? == *y));
    let (right, all) = cast.fold((0u32, 0u32), |(right, all), is| (right + u32::from(is), all + 1));
    if all == 0 { 0.0 } else { f64::from(right) / f64::from(all) }
}

/// Mean and standard deviation of the ensemble's predictions for every candidate.
fn predict(
    x: &Array2<f64>,
    answered: &[(usize, bool)],
    config: &IwsConfig,
    rng: &mut StreamRng,
) -> Vec<(f64, f64)> {
    let (count, members) = (x.nrows(), config.ensemble as f64);
    let (mut sums, mut squares) = (vec![0.0; count], vec![0.0; count]);
    for _ in 0..config.ensemble {
        let mut net = Network::new(x.ncols(), config.hidden, rng);
        let sample: Vec<(usize, bool)> =
            (0..answered.len()).map(|_| answered[rng.random_range(0..answered.len())]).collect();
        net.train(x, &sample, &config.adam);
        for at in 0..count {
            let p = sigmoid(net.logit(x.row(at).as_slice().unwrap_or_default()));
            sums[at] += p;
            squares[at] += p * p;
        }
    }
    let moments = |(sum, square): (f64, f64)| {
        let mean = sum / members;
        (mean, (square / members - mean * mean).max(0.0).sqrt())
    };
    sums.into_iter().zip(squares).map(moments).collect()
}

/// Two hidden layers of ReLU and one logit. Weights lie layer by layer, row by row, each row with its intercept last.
struct Network {
    inputs: usize,
    hidden: usize,
    weights: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Network {
    /// PyTorch's first weights: uniform within `1 / sqrt(inputs of the layer)`.
    fn new(inputs: usize, hidden: usize, rng: &mut StreamRng) -> Self {
        let mut weights = Vec::new();
        for (from, to) in [(inputs, hidden), (hidden, hidden), (hidden, 1)] {
            let bound = 1.0 / (from.max(1) as f64).sqrt();
            weights.extend((0..to * (from + 1)).map(|_| rng.random_range(-bound..bound)));
        }
        Self { inputs, hidden, weights, first: vec![0.0; hidden], second: vec![0.0; hidden] }
    }

    fn logit(&mut self, x: &[f64]) -> f64 {
        let (w1, rest) = self.weights.split_at(self.hidden * (self.inputs + 1));
        let (w2, w3) = rest.split_at(self.hidden * (self.hidden + 1));
        layer(w1, x, &mut self.first);
        layer(w2, &self.first, &mut self.second);
        w3[self.hidden] + self.second.iter().zip(w3).map(|(x, w)| x * w).sum::<f64>()
    }

    /// Adds the gradient of the loss of one answer, times `scale`, and returns the loss.
    fn gradient(&mut self, x: &[f64], target: f64, scale: f64, out: &mut [f64]) -> f64 {
        let z = self.logit(x);
        let (n, h) = (self.inputs, self.hidden);
        let (at2, at3) = (h * (n + 1), h * (n + 1) + h * (h + 1));
        let error = scale * (sigmoid(z) - target);
        out[at3 + h] += error;
        for j in 0..h {
            out[at3 + j] += error * self.second[j];
            if self.second[j] <= 0.0 {
                continue;
            }
            let e2 = error * self.weights[at3 + j];
            let row2 = at2 + j * (h + 1);
            out[row2 + h] += e2;
            for i in 0..h {
                out[row2 + i] += e2 * self.first[i];
                if self.first[i] <= 0.0 {
                    continue;
                }
                let e1 = e2 * self.weights[row2 + i];
                let row1 = &mut out[i * (n + 1)..(i + 1) * (n + 1)];
                row1[..n].iter_mut().zip(x).for_each(|(g, x)| *g += e1 * x);
                row1[n] += e1;
            }
        }
        softplus(z) - target * z
    }

    fn train(&mut self, x: &Array2<f64>, sample: &[(usize, bool)], config: &AdamConfig) {
        let count = self.weights.len();
        let (mut first, mut second) = (vec![0.0; count], vec![0.0; count]);
        let mut gradient = vec![0.0; count];
        let (mut last, mut idle) = (f64::INFINITY, 0);
        let scale = 1.0 / sample.len().max(1) as f64;
        for epoch in 1..=config.epochs {
            gradient.fill(0.0);
            let mut loss = 0.0;
            for (at, useful) in sample {
                let row = x.row(*at);
                let row = row.as_slice().unwrap_or_default();
                loss += scale * self.gradient(row, f64::from(u8::from(*useful)), scale, &mut gradient);
            }
            idle = if (last - loss).abs() < config.tolerance { idle + 1 } else { 0 };
            if idle >= config.patience {
                break;
            }
            last = loss;
            let (c1, c2) = (1.0 - 0.9f64.powi(epoch as i32), 1.0 - 0.999f64.powi(epoch as i32));
            for (i, g) in gradient.iter().enumerate() {
                let g = g + config.decay * self.weights[i];
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.999 * second[i] + 0.001 * g * g;
                self.weights[i] -= config.rate * (first[i] / c1) / ((second[i] / c2).sqrt() + 1e-8);
            }
        }
    }
}

fn layer(weights: &[f64], x: &[f64], out: &mut [f64]) {
    for (row, out) in weights.chunks_exact(x.len() + 1).zip(out) {
        let z = row[x.len()] + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        *out = z.max(0.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_network_has_its_own_gradient() {
        let mut rng = Streams::new(3).stream("x");
        let mut net = Network::new(4, 3, &mut rng);
        let x = [0.5, -1.0, 0.3, 2.0];
        let mut gradient = vec![0.0; net.weights.len()];
        net.gradient(&x, 0.3, 2.0, &mut gradient);
        let mut loss = |at: usize, by: f64| {
            net.weights[at] += by;
            let z = net.logit(&x);
            net.weights[at] -= by;
            2.0 * (softplus(z) - 0.3 * z)
        };
        for (at, g) in gradient.iter().enumerate() {
            let slope = (loss(at, 1e-6) - loss(at, -1e-6)) / 2e-6;
            assert!((slope - g).abs() < 1e-8, "{at}: {slope} {g}");
        }
        assert!(gradient.iter().filter(|g| **g != 0.0).count() > 5);
    }

    #[test]
    fn training_learns_what_is_asked() {
        let x = Array2::from_shape_fn((40, 2), |(i, j)| if j == 0 { (i as f64 - 19.5) / 10.0 } else { 0.3 });
        let mut rng = Streams::new(1).stream("x");
        let answered: Vec<(usize, bool)> = (0..20).map(|i| (2 * i, i >= 10)).collect();
        let adam = AdamConfig { rate: 1e-2, ..AdamConfig::default() };
        let config = IwsConfig { ensemble: 10, adam, ..IwsConfig::default() };
        let predicted = predict(&x, &answered, &config, &mut rng);
        assert!(predicted[1].0 < 0.2 && predicted[39].0 > 0.8, "{predicted:?}");
        // Members agree where the answers are, and less between the two sides.
        assert!(predicted[39].1 < predicted[19].1);
    }
}
