//! Debate for weak supervision: two instances of a strong model argue for opposite answers, weak judges learn to read the
//! debates, and an ensemble of judges over different debates labels what a strong student learns.
//!
//! | form | who argues for what |
//! |---|---|
//! | [`Form::Debate`] | A and B in turn, sides by coin |
//! | [`Form::Consultancy`] | one speaker for a side by coin |
//! | [`Form::Market`] | one speaker against what the judge would say without it |
//!
//! A debate is held by [`hold`], which is never told the truth: sides come from a stream of their own. Each turn carries the
//! side it claims, without which "A" and "B" say nothing to a judge. Judges read debates when they are trained and when they
//! label; the student reads items alone. Several judges, each with debates of its own, are a
//! [`weak_to_strong::Ensemble`](crate::weak_to_strong::Ensemble), which averages probabilities; members that only differ in
//! how they were trained add little. The floor of the gap recovered is the weak model without debates.
//!
//! [`FeatureDebater`] argues by revealing features of an item, so that debates can be measured without a language model:
//! a judge that sees little of an item sees what the debaters show. [`turn_prompt`] and [`judge_text`] are the same for
//! texts.
//!
//! | setting | default | source |
//! |---|---|---|
//! | turns | 3 | arXiv 2501.13124, tables |
//! | members of the ensemble | 4 | the same |
//! | features a turn, noise of the choice | 2, 0.3 standard deviations | ours |
//!
//! **Deviations.** There is no public code; prompts, temperature and lengths are unknown, the method is built from tables
//! and summaries. The paper's gains on AnthropicHH lie at chance and say nothing.
//!
//! References: Lang et al., arXiv 2501.13124.

use ndarray::{Array2, ArrayView1, ArrayView2};
use pilotfish_model::Streams;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speaker {
    /// The first.
    A,
    /// The second.
    B,
}

/// One turn: what was said, and for which class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn<T> {
    /// Who spoke.
    pub speaker: Speaker,
    /// The class that was argued for, 0 or 1.
    pub side: usize,
    /// What was said.
    pub argument: T,
}

/// Something that argues. It knows no label of the item.
pub trait Debater {
    /// An argument: a text, or features.
    type Argument;

    /// Argues that an item is of class `side`, after what was said so far. Randomness comes from `streams` alone.
    ///
    /// # Errors
    /// Whatever the debater refuses.
    fn argue(
        &self,
        item: usize,
        side: usize,
        so_far: &[Turn<Self::Argument>],
        streams: &Streams,
    ) -> Result<Self::Argument>;
}

/// The form of a debate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// Two sides in turn.
    Debate {
        /// Turns.
        turns: usize,
    },
    /// One side by coin, in all turns.
    Consultancy {
        /// Turns.
        turns: usize,
    },
    /// The side that the judge would not choose, in all turns.
    Market {
        /// Turns.
        turns: usize,
        /// What the judge would say.
        guess: usize,
    },
}

impl Default for Form {
    fn default() -> Self {
        Self::Debate { turns: 3 }
    }
}

/// The side that speaker A gets in a debate about an item: a coin that knows nothing of the item's class.
pub fn first_side(item: usize, streams: &Streams) -> usize {
    usize::from(streams.fork(item as u64).stream("side").random::<bool>())
}

/// Holds a debate about an item. Another seed of `streams` is another debate.
///
/// # Errors
/// No turns; a guess that is no class; whatever the debater refuses.
pub fn hold<D: Debater>(
    debater: &D,
    form: Form,
    item: usize,
    streams: &Streams,
) -> Result<Vec<Turn<D::Argument>>> {
    let first = first_side(item, streams);
    let (turns, side): (usize, Box<dyn Fn(usize) -> usize>) = match form {
        Form::Debate { turns } => (turns, Box::new(move |turn| first ^ (turn % 2))),
        Form::Consultancy { turns } => (turns, Box::new(move |_| first)),
        Form::Market { guess, .. } if guess > 1 => {
            return Err(SupervisionError::Shape { what: "guess", got: guess, want: 1 });
        }
        Form::Market { turns, guess } => (turns, Box::new(move |_| 1 - guess)),
    };
    if turns == 0 {
        return Err(SupervisionError::BadParameter { name: "turns", value: 0.0, want: "at least 1" });
    }
    let of_item = streams.fork(item as u64);
    let mut held = Vec::with_capacity(turns);
    for turn in 0..turns {
        let side = side(turn);
        let speaker = match form {
            Form::Debate { .. } if turn % 2 == 1 => Speaker::B,
            _ => Speaker::A,
        };
        let argument = debater.argue(item, side, &held, &of_item.fork(turn as u64))?;
        held.push(Turn { speaker, side, argument });
    }
    Ok(held)
}

/// Features that were revealed, with their values as claimed.
pub type Evidence = Vec<(usize, f64)>;

/// A debater that argues by revealing features of an item: those that a linear model counts most for its side, with noise
/// that makes debates differ, and none twice.
#[derive(Clone, Debug)]
pub struct FeatureDebater {
    x: Array2<f64>,
    /// What a unit of each feature says for class 1.
    weights: Vec<f64>,
    /// Standard deviation of what features say.
    deviation: f64,
    /// Features a turn.
    reveal: usize,
    /// Gumbel noise of the choice, in standard deviations.
    noise: f64,
    /// Whether it may say 0 or 1 in place of a feature's value.
    forges: bool,
}

impl FeatureDebater {
    /// A debater that knows items `[items, features]` and what each feature says for class 1.
    ///
    /// # Errors
    /// No items; weights of another number than features; numbers that are not finite; nothing to reveal; negative noise.
    pub fn new(x: Array2<f64>, weights: Vec<f64>, reveal: usize, noise: f64) -> Result<Self> {
        crate::heads::check_features(x.view())?;
        if weights.len() != x.ncols() {
            return Err(SupervisionError::Shape { what: "weights", got: weights.len(), want: x.ncols() });
        }
        if let Some(index) = weights.iter().position(|weight| !weight.is_finite()) {
            return Err(SupervisionError::NotFinite { what: "weight", index });
        }
        if reveal == 0 {
            return Err(SupervisionError::BadParameter { name: "reveal", value: 0.0, want: "at least 1" });
        }
        if !(noise >= 0.0 && noise.is_finite()) {
            return Err(SupervisionError::BadParameter { name: "noise", value: noise, want: "0 or more" });
        }
        let said: Vec<f64> = x.rows().into_iter().flat_map(|row| product(row, &weights)).collect();
        let mean = said.iter().sum::<f64>() / said.len().max(1) as f64;
        let spread = said.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / said.len().max(1) as f64;
        Ok(Self { x, weights, deviation: spread.sqrt(), reveal, noise, forges: false })
    }

    /// The same debater, which claims whatever value of a feature between 0 and 1 serves its side best.
    pub fn forging(self) -> Self {
        Self { forges: true, ..self }
    }
}

fn product(row: ArrayView1<'_, f64>, weights: &[f64]) -> Vec<f64> {
    row.iter().zip(weights).map(|(x, w)| x * w).collect()
}

impl Debater for FeatureDebater {
    type Argument = Evidence;

    fn argue(
        &self,
        item: usize,
        side: usize,
        so_far: &[Turn<Evidence>],
        streams: &Streams,
    ) -> Result<Evidence> {
        if item >= self.x.nrows() || side > 1 {
            let (got, want) = (item.max(side), self.x.nrows());
            return Err(SupervisionError::Shape { what: "item or side", got, want });
        }
        let sign = if side == 1 { 1.0 } else { -1.0 };
        let row = self.x.row(item);
        let claimed: Vec<f64> = match self.forges {
            true => self.weights.iter().map(|weight| if sign * weight > 0.0 { 1.0 } else { 0.0 }).collect(),
            false => row.to_vec(),
        };
        let mut rng = streams.stream("argument");
        let mut scored: Vec<(f64, usize)> = (0..row.len())
            .map(|at| {
                let gumbel = -(-(1.0 - rng.random::<f64>()).ln()).ln();
                let gumbel = if gumbel.is_finite() { gumbel } else { 0.0 };
                (sign * self.weights[at] * claimed[at] + self.noise * self.deviation * gumbel, at)
            })
            .filter(|(_, at)| !so_far.iter().any(|turn| turn.argument.iter().any(|(seen, _)| seen == at)))
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(scored.into_iter().take(self.reveal).map(|(_, at)| (at, claimed[at])).collect())
    }
}

/// What a judge sees: its own features of each item, then for class 1 and for class 0 the features revealed (0 where none)
/// and which these are; `[items, own + 4 features]`.
///
/// # Errors
/// Another number of debates than of items; a feature that there is not.
pub fn judge_features(
    own: ArrayView2<'_, f64>,
    debates: &[Vec<Turn<Evidence>>],
    features: usize,
) -> Result<Array2<f64>> {
    if debates.len() != own.nrows() {
        return Err(SupervisionError::Shape { what: "debates", got: debates.len(), want: own.nrows() });
    }
    let few = own.ncols();
    let mut out = Array2::zeros((own.nrows(), few + 4 * features));
    for ((own, debate), mut row) in own.rows().into_iter().zip(debates).zip(out.rows_mut()) {
        row.iter_mut().zip(own).for_each(|(to, from)| *to = *from);
        for turn in debate {
            for &(at, value) in &turn.argument {
                if at >= features || turn.side > 1 {
                    return Err(SupervisionError::Shape {
                        what: "feature revealed",
                        got: at,
                        want: features,
                    });
                }
                let block = 2 * (1 - turn.side);
                row[few + block * features + at] = value;
                row[few + (block + 1) * features + at] = 1.0;
            }
        }
    }
    Ok(out)
}

/// The prompt of the next turn of a debate in words: the task, the item, what to argue for, and what was said.
pub fn turn_prompt(
    task: &str,
    item: &str,
    classes: [&str; 2],
    side: usize,
    so_far: &[Turn<String>],
) -> String {
    let claim = classes[side.min(1)];
    let mut prompt =
        format!("{task}\n\n{item}\n\nYou debate an opponent. Argue that the answer is: {claim}.");
    match so_far.len() {
        0 => {}
        1 => prompt.push_str(" Point out flaws in your opponent's argument."),
        _ => prompt.push_str(" Write a counter-argument to your opponent."),
    }
    prompt.push('\n');
    prompt.push_str(&transcript(classes, so_far, usize::MAX));
    prompt.push_str("\nYour argument:");
    prompt
}

fn transcript(classes: [&str; 2], turns: &[Turn<String>], each: usize) -> String {
    let line = |turn: &Turn<String>| {
        // The end of a turn, where its conclusion is.
        let skip = turn.argument.chars().count().saturating_sub(each);
        let said: String = turn.argument.chars().skip(skip).collect();
        format!("\n{:?}, for {}: {said}", turn.speaker, classes[turn.side.min(1)])
    };
    turns.iter().map(line).collect()
}

/// What a judge of texts reads: the item, whole, then the turns with their claims, each cut to its end so that all of it
/// has at most `characters`.
///
/// # Errors
/// An item that alone is longer.
pub fn judge_text(
    item: &str,
    classes: [&str; 2],
    turns: &[Turn<String>],
    characters: usize,
) -> Result<String> {
    let length = item.chars().count();
    if length > characters {
        return Err(SupervisionError::TooLarge {
            what: "characters of an item",
            got: length as u64,
            limit: characters as u64,
        });
    }
    let frames = transcript(classes, turns, 0).chars().count();
    let each = characters.saturating_sub(length + frames) / turns.len().max(1);
    Ok(if each == 0 { item.to_owned() } else { format!("{item}{}", transcript(classes, turns, each)) })
}

/// Accuracy of the majority of an odd number of independent judges.
///
/// ```
/// use pilotfish_supervision::debate::majority;
/// assert!((majority(0.7, 3) - 0.784).abs() < 1e-12);
/// ```
pub fn majority(accuracy: f64, judges: u32) -> f64 {
    let choose = |k: u32| (0..k).map(|i| f64::from(judges - i) / f64::from(i + 1)).product::<f64>();
    (judges / 2 + 1..=judges)
        .map(|k| choose(k) * accuracy.powi(k as i32) * (1.0 - accuracy).powi((judges - k) as i32))
        .sum()
}
