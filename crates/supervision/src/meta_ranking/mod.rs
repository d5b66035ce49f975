//! Meta Ranking: a weak model says whether a response is reliable by comparing it with responses to *other* queries.
//!
//! A judge is asked which of two query-response pairs, a target's and a reference's, is the more reliable; the
//! reference's label is known and never shown. A handful of such comparisons is added up into a verdict on the target.
//!
//! # Algorithm
//!
//! Target (Q, R); references (Q_i, R_i, y_i), i = 1..N, y_i = 1 for a correct one.
//!
//! 1. Ask the judge twice for each reference, the target first and the reference first, for the logits of "A", "B",
//!    "C" (equal) and nothing else ([`compare_all`]).
//! 2. Outcome o_i: better, tie or worse for the target; a tie when the two orders disagree ([`Verdict::hard`]), or the
//!    two orders' mean probabilities ([`Verdict::soft`]).
//! 3. S = sum_i votes\[y_i\]\[o_i\], plus ln(p/(1-p)) for fitted votes ([`Votes`]).
//! 4. Reliable iff S > 0; at 0, unreliable.
//!
//! With [`Votes::fitted`] the votes are log-likelihood ratios `ln P(o | 1, y_i) / P(o | 0, y_i)`, whose probabilities
//! come from the references playing each other ([`Games`]), smoothed by one game a cell.
//!
//! [`Cascade`] sends what is unreliable to a larger model; [`filter`] keeps what is reliable, round by round.
//!
//! # Defaults
//!
//! | parameter | default | source |
//! |---|---|---|
//! | references | 5 | abstract |
//! | mix | 3 correct, 2 incorrect | ours: one-sided references lose accuracy (`accuracy`, exact) |
//! | orders a comparison | 2 | ours: small models favour a slot |
//! | votes | fitted; `sum` without references to play | ours |
//! | smoothing | 1 game a cell | ours |
//! | threshold | 0 | from memory |
//!
//! # Deviations
//!
//! Only abstracts of the paper could be read, and its authors have published no code: the increments of the vote, the
//! prompt's wording and the handling of ties are reconstructions. Figures of the paper are therefore not reproduced,
//! only the shape: comparisons by a judge that is better than chance separate reliable from unreliable responses, and
//! references of both kinds are needed.
//!
//! # Cost
//!
//! 2N prompts a target, of which the model reads only what differs: the pair in the second slot.
//!
//! # References
//!
//! Liu et al., "Enabling Weak LLMs to Judge Response Reliability via Meta Ranking", arXiv 2402.12146 (abstracts of
//! versions 1 and 3).
//!
//! ```
//! use pilotfish_supervision::meta_ranking::{Games, Outcome, Votes};
//! // A judge that prefers the correct pair with probability 0.7.
//! let votes = Votes::fitted(&Games::decisive(0.7)?)?;
//! let against = [(Outcome::Better, true), (Outcome::Worse, false)];
//! // Beating a correct reference says as much for the target as losing to an incorrect one says against it.
//! assert!(votes.score(&against, 0.5)?.abs() < 1e-12);
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

mod cascade;
mod judge;

#[cfg(test)]
mod tests;

pub use cascade::{Cascade, FilterRound, Point, cascade_accuracy, curve, filter, purity};
pub use judge::{Slots, Verdict, compare_all, two_way};

use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// What a comparison says of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// More reliable than the reference.
    Better,
    /// Equal, or the judge cannot tell.
    Tie,
    /// Less reliable.
    Worse,
}

impl Outcome {
    /// All three, in the order of every table here.
    pub const ALL: [Self; 3] = [Self::Better, Self::Tie, Self::Worse];

    /// The same comparison, seen from the other side.
    pub fn mirrored(self) -> Self {
        match self {
            Self::Better => Self::Worse,
            Self::Tie => Self::Tie,
            Self::Worse => Self::Better,
        }
    }
}

/// Probabilities of outcomes, or counts of games: better, tie, worse.
pub type Triple = [f64; 3];

/// How often a judge says what, by whether the two responses have the same label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Games {
    /// Probabilities for a correct response against an incorrect one, from the correct one's side.
    pub different: Triple,
    /// Probabilities for two responses of one label; better and worse are equally likely.
    pub same: Triple,
}

impl Games {
    /// A judge without ties that prefers the correct one of two with probability `q`.
    ///
    /// # Errors
    /// A `q` outside `(0, 1)`.
    pub fn decisive(q: f64) -> Result<Self> {
        Self::with_ties(q, 0.0, 0.0)
    }

    /// A judge that prefers the correct one with probability `q` among games that are no tie.
    ///
    /// # Errors
    /// A `q` outside `(0, 1)`; probabilities of ties outside `[0, 1)`.
    pub fn with_ties(q: f64, tie_same: f64, tie_different: f64) -> Result<Self> {
        if !(q > 0.0 && q < 1.0) {
            return Err(SupervisionError::BadParameter { name: "q", value: q, want: "above 0 and below 1" });
        }
        for value in [tie_same, tie_different] {
            if !(0.0..1.0).contains(&value) {
                let name = "tie probability";
                return Err(SupervisionError::BadParameter { name, value, want: "at least 0 and below 1" });
            }
        }
        let (same, different) = (1.0 - tie_same, 1.0 - tie_different);
        Ok(Self {
            different: [different * q, tie_different, different * (1.0 - q)],
            same: [0.5 * same, tie_same, 0.5 * same],
        })
    }

    /// Counts games of references against each other: label of the one side, label of the other, outcome for the
    /// one side. Every cell starts at `smoothing`; same-label games count for both sides.
    ///
    /// # Errors
    /// A smoothing that is not above 0: a game that was never seen would be impossible.
    pub fn count(games: &[(bool, bool, Outcome)], smoothing: f64) -> Result<Self> {
        if !(smoothing > 0.0 && smoothing.is_finite()) {
            let (name, value) = ("smoothing", smoothing);
            return Err(SupervisionError::BadParameter { name, value, want: "above 0 and finite" });
        }
        let (mut different, mut same) = ([smoothing; 3], [smoothing; 3]);
        for &(one, other, outcome) in games {
            match (one, other) {
                (true, false) => different[outcome as usize] += 1.0,
                (false, true) => different[outcome.mirrored() as usize] += 1.0,
                _ => {
                    same[outcome as usize] += 0.5;
                    same[outcome.mirrored() as usize] += 0.5;
                }
            }
        }
        let normal = |counts: Triple| counts.map(|count| count / counts.iter().sum::<f64>());
        Ok(Self { different: normal(different), same: normal(same) })
    }

    /// Probability of an outcome for a target of one label against a reference of another.
    pub fn probability(&self, outcome: Outcome, target: bool, reference: bool) -> f64 {
        match (target, reference) {
            (true, false) => self.different[outcome as usize],
            (false, true) => self.different[outcome.mirrored() as usize],
            _ => self.same[outcome as usize],
        }
    }
}

/// What a comparison adds to the score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Votes {
    /// Against a correct reference: better, tie, worse.
    pub correct: Triple,
    /// Against an incorrect one.
    pub incorrect: Triple,
}

impl Votes {
    /// Better counts 1, worse -1, whatever the reference.
    pub const SUM: Self = Self { correct: [1.0, 0.0, -1.0], incorrect: [1.0, 0.0, -1.0] };
    /// Only what is surprising counts: beating a correct reference, losing to an incorrect one.
    pub const INFORMATIVE: Self = Self { correct: [1.0, 0.0, 0.0], incorrect: [0.0, 0.0, -1.0] };
    /// As `SUM`, and a tie counts as the reference's label.
    pub const TIE_LABEL: Self = Self { correct: [1.0, 1.0, -1.0], incorrect: [1.0, -1.0, -1.0] };

    /// Log-likelihood ratios. An outcome that is impossible whatever the target's label counts 0.
    ///
    /// # Errors
    /// Probabilities that are not ones; an outcome that proves a label, whose ratio would be infinite (smooth the
    /// counts).
    pub fn fitted(games: &Games) -> Result<Self> {
        for triple in [games.different, games.same] {
            let total: f64 = triple.iter().sum();
            if !((total - 1.0).abs() < 1e-6) || triple.iter().any(|p| !(*p >= 0.0)) {
                let name = "outcome probabilities";
                return Err(SupervisionError::BadParameter { name, value: total, want: "at least 0, sum 1" });
            }
        }
        let ratio = |outcome: Outcome, reference: bool| {
            let (one, zero) =
                (games.probability(outcome, true, reference), games.probability(outcome, false, reference));
            if one == 0.0 && zero == 0.0 { 0.0 } else { (one / zero).ln() }
        };
        let votes = Self {
            correct: Outcome::ALL.map(|outcome| ratio(outcome, true)),
            incorrect: Outcome::ALL.map(|outcome| ratio(outcome, false)),
        };
        match votes.correct.iter().chain(&votes.incorrect).position(|vote| !vote.is_finite()) {
            Some(index) => Err(SupervisionError::NotFinite { what: "vote", index }),
            None => Ok(votes),
        }
    }

    fn against(&self, reference: bool) -> &Triple {
        if reference { &self.correct } else { &self.incorrect }
    }

    /// The score of a target from its outcomes against references of known label, with the prior `p` that a response
    /// is correct (0.5 adds nothing). Its sigmoid is a probability for fitted votes, if the outcomes were independent;
    /// they share the target, so recalibrate it on held-out data before use as one.
    ///
    /// # Errors
    /// A prior outside `(0, 1)`.
    pub fn score(&self, outcomes: &[(Outcome, bool)], prior: f64) -> Result<f64> {
        let soft = |&(outcome, label): &(Outcome, bool)| {
            let mut triple = [0.0; 3];
            triple[outcome as usize] = 1.0;
            (triple, label)
        };
        self.soft_score(&outcomes.iter().map(soft).collect::<Vec<_>>(), prior)
    }

    /// The same, with probabilities of outcomes: the expected vote.
    ///
    /// # Errors
    /// A prior outside `(0, 1)`; probabilities that are not finite.
    pub fn soft_score(&self, outcomes: &[(Triple, bool)], prior: f64) -> Result<f64> {
        if !(prior > 0.0 && prior < 1.0) {
            let (name, value) = ("prior", prior);
            return Err(SupervisionError::BadParameter { name, value, want: "above 0 and below 1" });
        }
        if let Some(index) = outcomes.iter().position(|(triple, _)| triple.iter().any(|p| !p.is_finite())) {
            return Err(SupervisionError::NotFinite { what: "outcome", index });
        }
        let sum: f64 = outcomes
            .iter()
            .map(|(triple, label)| {
                triple.iter().zip(self.against(*label)).map(|(p, vote)| p * vote).sum::<f64>()
            })
            .sum();
        Ok((prior / (1.0 - prior)).ln() + sum)
    }
}

/// Exact accuracy of the verdict `S > 0` at equal priors, over all outcomes of independent games; a score of 0 counts
/// half.
///
/// # Errors
/// More than 12 references.
pub fn accuracy(games: &Games, votes: &Votes, references: &[bool]) -> Result<f64> {
    if references.len() > 12 {
        let got = references.len() as u64;
        return Err(SupervisionError::TooLarge { what: "references", got, limit: 12 });
    }
    let mut right = 0.0;
    for target in [false, true] {
        for index in 0..3usize.pow(references.len() as u32) {
            let (mut rest, mut probability, mut outcomes) = (index, 0.5, Vec::new());
            for &reference in references {
                let outcome = Outcome::ALL[rest % 3];
                rest /= 3;
                probability *= games.probability(outcome, target, reference);
                outcomes.push((outcome, reference));
            }
            if probability > 0.0 {
                let score = votes.score(&outcomes, 0.5)?;
                // Sums that cancel are 0 up to rounding.
                let share =
                    if score.abs() < 1e-9 { 0.5 } else { f64::from(u8::from((score > 0.0) == target)) };
                right += probability * share;
            }
        }
    }
    Ok(right)
}
