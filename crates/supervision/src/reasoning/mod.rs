//! Weak-to-strong reasoning: a strong model curates what it learns from a weak one's chains of thought, without gold answers.
//!
//! **Stage I.** The weak model answers every question; the strong one answers too, with weak answers as demonstrations.
//! Questions on which the two answers agree are kept ([`consistent`]), and the strong model is fine-tuned, from its base
//! weights each time, on the weak chains, on its own, or on both ([`lessons`]). A second iteration asks the tuned models.
//!
//! **Stage II.** The tuned model answers every question several times. Where a majority is sure enough, the *original* weak
//! answer becomes one side of a pair: the better one if it agrees with the majority, the worse one if the majority is surer
//! still ([`contrast`]). The model then learns the pairs by DPO or ORPO.
//!
//! | setting | default | source |
//! |---|---|---|
//! | samples, temperature | 10, 1.0 | `construct_training_data.py` |
//! | share of the majority | at least 0.6 | the same |
//! | share from which the weak answer is the worse side | at least 0.8 | the same, default argument |
//! | pairs a question | 1 (GSM8K); at most 3 (MATH) | the same |
//!
//! **Deviations.** Answers are compared in canonical form ([`canonical`]); the released code compares strings when it
//! filters and votes, so that 14 to 19 of its GSM8K pairs have equal numbers on both sides. Shares are compared as integers.
//! Its symbolic equality of LaTeX is reduced to numbers, fractions and strings here.
//!
//! References: Yang et al., arXiv 2407.13647; GAIR-NLP/weak-to-strong-reasoning `src/construct_training_data.py`,
//! `src/eval/math_normalization.py`.

mod answers;

use rand::Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

pub use answers::{Key, canonical, extract, normalise, same};

use crate::{Result, SupervisionError};

/// A chain of thought and the answer that it comes to; an empty answer where it comes to none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Solution {
    /// The chain.
    pub text: String,
    /// The answer, in canonical form.
    pub answer: String,
}

impl Solution {
    /// A response and the answer extracted from it.
    pub fn of(text: impl Into<String>, key: Key) -> Self {
        let text = text.into();
        let answer = canonical(&extract(&text, key));
        Self { text, answer }
    }
}

/// Questions on which both models come to the same answer.
///
/// # Errors
/// Other numbers of answers.
pub fn consistent(weak: &[Solution], strong: &[Solution]) -> Result<Vec<usize>> {
    if weak.len() != strong.len() {
        return Err(SupervisionError::Shape { what: "answers", got: strong.len(), want: weak.len() });
    }
    let agree = |at: &usize| !weak[*at].answer.is_empty() && weak[*at].answer == strong[*at].answer;
    Ok((0..weak.len()).filter(agree).collect())
}

/// Whose chains are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The weak model's.
    Weak,
    /// The strong model's, in context.
    InContext,
    /// Both: two rows a question, the weak one first.
    Hybrid,
}

/// What to learn of the questions kept: the question and a chain.
pub fn lessons<'a>(
    kept: &[usize],
    weak: &'a [Solution],
    strong: &'a [Solution],
    source: Source,
) -> Vec<(usize, &'a str)> {
    let rows = |at: usize| match source {
        Source::Weak => vec![(at, weak[at].text.as_str())],
        Source::InContext => vec![(at, strong[at].text.as_str())],
        Source::Hybrid => vec![(at, weak[at].text.as_str()), (at, strong[at].text.as_str())],
    };
    kept.iter().flat_map(|&at| rows(at)).collect()
}

/// When a majority makes a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    /// Tenths of the samples that the majority needs.
    pub majority: usize,
    /// Tenths that it needs to call the weak answer wrong.
    pub rejection: usize,
    /// Pairs a question at most.
    pub pairs: usize,
}

impl Default for Gates {
    fn default() -> Self {
        Self { majority: 6, rejection: 8, pairs: 1 }
    }
}

/// A pair of responses to one question, one of which is the weak model's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContrastPair {
    /// The better one.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
    /// Which of the two is the weak model's.
    pub weak_chosen: bool,
}

/// Why a question makes no pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Skipped {
    /// Most samples came to no answer.
    NoAnswer,
    /// The majority is too small.
    Unsure,
    /// It agrees with the weak answer, and so do all samples.
    TooEasy,
    /// It is against the weak answer, but not surely enough.
    NotSureEnough,
}

/// The most frequent answer and its count; of equals the one that came first. Samples without an answer vote for none.
pub fn vote(samples: &[Solution]) -> Option<(&str, usize)> {
    let count = |answer: &str| samples.iter().filter(|sample| sample.answer == answer).count();
    let mut best: Option<(&str, usize)> = None;
    for sample in samples {
        let votes = count(&sample.answer);
        if best.is_none_or(|(_, most)| votes > most) {
            best = Some((&sample.answer, votes));
        }
    }
    best
}

/// The pairs that a question makes, from the original weak answer and samples of the tuned model.
///
/// # Errors
/// No samples; no pairs asked for.
pub fn contrast(
    weak: &Solution,
    samples: &[Solution],
    gates: &Gates,
    rng: &mut impl Rng,
) -> Result<std::result::Result<Vec<ContrastPair>, Skipped>> {
    let Some((majority, votes)) = vote(samples) else {
        return Err(SupervisionError::Empty { what: "samples" });
    };
    if gates.pairs == 0 {
        return Err(SupervisionError::BadParameter { name: "pairs", value: 0.0, want: "at least 1" });
    }
    let passes = |tenths: usize| 10 * votes >= tenths * samples.len();
    if !passes(gates.majority) {
        return Ok(Err(Skipped::Unsure));
    }
    if majority.is_empty() {
        return Ok(Err(Skipped::NoAnswer));
    }
    let agrees = weak.answer == majority;
    if !agrees && !passes(gates.rejection) {
        return Ok(Err(Skipped::NotSureEnough));
    }
    // The other side: samples against the majority, or samples of it.
    let others: Vec<&Solution> =
        samples.iter().filter(|sample| (sample.answer == majority) != agrees).collect();
    let Some(first) = others.choose(rng) else { return Ok(Err(Skipped::TooEasy)) };
    let mut texts = vec![first.text.as_str()];
    for other in &others {
        if texts.len() < gates.pairs && !texts.contains(&other.text.as_str()) {
            texts.push(&other.text);
        }
    }
    let pair = |text: &str| match agrees {
        true => ContrastPair { chosen: weak.text.clone(), rejected: text.into(), weak_chosen: true },
        false => ContrastPair { chosen: text.into(), rejected: weak.text.clone(), weak_chosen: false },
    };
    Ok(Ok(texts.into_iter().map(pair).collect()))
}

/// What agreement of two independent models keeps, and how much of that is right, where wrong answers are uniform over
/// `alternatives`: `y = p s + (1 - p)(1 - s) / K`, precision `p s / y`.
///
/// ```
/// use pilotfish_supervision::reasoning::agreement;
/// let (kept, precision) = agreement(0.25, 0.56, 50);
/// assert!((kept - 0.1466).abs() < 1e-4 && (precision - 0.9550).abs() < 1e-4);
/// ```
pub fn agreement(weak: f64, strong: f64, alternatives: usize) -> (f64, f64) {
    let kept = weak * strong + (1.0 - weak) * (1.0 - strong) / alternatives.max(1) as f64;
    (kept, if kept > 0.0 { weak * strong / kept } else { 0.0 })
}

/// Probability that at least `least` of `samples` samples are the majority answer, if each is with probability `r`.
pub fn gate(r: f64, samples: u32, least: u32) -> f64 {
    let choose = |k: u32| (0..k).map(|i| f64::from(samples - i) / f64::from(i + 1)).product::<f64>();
    (least..=samples).map(|k| choose(k) * r.powi(k as i32) * (1.0 - r).powi((samples - k) as i32)).sum()
}

/// Unbiased estimate of the probability that one of `k` samples is right, from `right` of `samples`. `None` where `k` is
/// more than there are.
pub fn pass_at(samples: u32, right: u32, k: u32) -> Option<f64> {
    if k == 0 || k > samples || right > samples {
        return None;
    }
    if samples - right < k {
        return Some(1.0);
    }
    let wrong: f64 = (0..k).map(|i| f64::from(samples - right - i) / f64::from(samples - i)).product();
    Some(1.0 - wrong)
}
