//! Comparisons by a language model.

use pilotfish_model::Token;

use super::{Outcome, Triple};
use crate::Result;
use crate::verifiers::Reader;

/// A judge's two answers to one comparison.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// Probabilities of "A", "B" and "equal" with the target as A.
    pub first: Triple,
    /// The same with the reference as A.
    pub swapped: Triple,
}

impl Verdict {
    /// Softmax over the three verdicts' logits, in both orders.
    pub fn from_logits(first: Triple, swapped: Triple) -> Self {
        Self { first: softmax(first), swapped: softmax(swapped) }
    }

    /// Better, tie, worse: means of the two orders' probabilities.
    pub fn soft(&self) -> Triple {
        let ([a, b, c], [d, e, f]) = (self.first, self.swapped);
        [0.5 * (a + e), 0.5 * (c + f), 0.5 * (b + d)]
    }

    /// What both orders say, or a tie. Equally likely verdicts of one order are a tie.
    pub fn hard(&self) -> Outcome {
        let one = choice(self.first);
        if one == choice(self.swapped).mirrored() { one } else { Outcome::Tie }
    }

    /// How strongly the first slot is favoured: mean probability of "A" less that of "B" over both orders. 0 for a
    /// judge without a bias.
    pub fn bias(&self) -> f64 {
        0.5 * (self.first[0] - self.first[1] + self.swapped[0] - self.swapped[1])
    }
}

fn choice([a, b, c]: Triple) -> Outcome {
    if a > b && a > c {
        Outcome::Better
    } else if b > a && b > c {
        Outcome::Worse
    } else {
        Outcome::Tie
    }
}

fn softmax(logits: Triple) -> Triple {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps = logits.map(|x| (x - max).exp());
    exps.map(|e| e / exps.iter().sum::<f64>())
}

/// Probability that the target is better where there are two verdicts: the mean of both orders' log-odds, in which a
/// bias towards a slot cancels. `first` is the probability of the first slot with the target there, `swapped` with
/// the reference there.
///
/// ```
/// use pilotfish_supervision::meta_ranking::two_way;
/// // A preference of 0.4 and a bias of 1 for the first slot.
/// let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
/// assert!((two_way(sigmoid(1.4), sigmoid(0.6)) - sigmoid(0.4)).abs() < 1e-12);
/// ```
pub fn two_way(first: f64, swapped: f64) -> f64 {
    let logit = |p: f64| (p / (1.0 - p)).ln();
    crate::heads::sigmoid(0.5 * (logit(first) - logit(swapped)))
}

/// A pair as it reads in either slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// In the first slot.
    pub first: Vec<Token>,
    /// In the second slot, with what asks for the verdict after it.
    pub second: Vec<Token>,
}

/// Compares every target with every reference in both orders: a row a target, a verdict a reference. `head` are the
/// instructions before the first slot; `verdicts` the tokens for "A", "B" and "equal".
///
/// What stands in the first slot is read once for all pairs in the second.
///
/// # Errors
/// Empty slots; whatever the model refuses.
pub fn compare_all(
    reader: &mut Reader<'_>,
    head: &[Token],
    targets: &[Slots],
    references: &[Slots],
    verdicts: [Token; 3],
) -> Result<Vec<Vec<Verdict>>> {
    let mut ask = |first: &Slots, seconds: &[Slots]| -> Result<Vec<Triple>> {
        let prompt: Vec<Token> = head.iter().chain(&first.first).copied().collect();
        let candidates: Vec<&[Token]> = seconds.iter().map(|slots| slots.second.as_slice()).collect();
        let answers = reader.judge(&prompt, &candidates, &verdicts)?;
        Ok(answers.into_iter().map(|p| [p[0], p[1], p[2]]).collect())
    };
    let swapped: Vec<Vec<Triple>> =
        references.iter().map(|reference| ask(reference, targets)).collect::<Result<_>>()?;
    let mut out = Vec::with_capacity(targets.len());
    for (t, target) in targets.iter().enumerate() {
        let row = ask(target, references)?;
        out.push(
            row.into_iter().enumerate().map(|(r, first)| Verdict { first, swapped: swapped[r][t] }).collect(),
        );
    }
    Ok(out)
}
