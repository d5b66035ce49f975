//! A draft model that drafts a chain, and rules for when it stops. SpecDec++: stop once the chance that some drafted
//! token is rejected exceeds a threshold, as a small head on the draft's hidden states predicts it.
//!
//! A round of SpecDec++ (`h` the threshold, `p(.)` the head's acceptance):
//! 1. Run the draft on its latest token, which gives its hidden state `s` and a law `q`; draw `y_t ~ q`.
//! 2. If `t > 1`, multiply `P` by `p(s)`: `s` is the state of `y_{t-1}`, so its acceptance is known one token late, and
//!    `y_t`, drawn already, is submitted too.
//! 3. Stop if `1 - P > h` and `t >= min`, or if `t = max`, or after an end token.
//!
//! For any policy of this form stopping is right once the chance of a rejection is at least
//! `(c2 + D)/(c1 + c2 + D)`, `c1` the cost of a discarded token, `c2` that of a verification, `D >= 0` unknown (paper,
//! theorem 3.1); so a threshold is all there is to tune.
//!
//! | rule | stops after the token where | source |
//! |---|---|---|
//! | [`Stop::Fixed`] | there are `k` | - |
//! | [`Stop::Confidence`] | its own draft probability is below a threshold, 0.4 | transformers, `assistant_confidence_threshold` |
//! | [`Stop::Cumulative`] | the product of draft probabilities is below a threshold | the plain rule to compare with |
//! | [`Stop::Heuristic`] | there are `k`; `k + 2` after a round that kept all, else `k - 1`; from 5 | transformers, `heuristic` |
//! | [`Stop::Head`] | as above; h = 0.7, bounds 2 and 20 | Kaffaljidhmah2/SpecDec_pp |
//! | [`Stop::Script`] | a list says so: an oracle, or a worked example | - |
//!
//! **Deviations.** All rules keep the token that made them stop. llama.cpp drops a token of low probability, which for
//! sampled drafts depends on the token and is not lossless. A draft model's own warpers may differ from the target's.
//!
//! References: arXiv 2405.19715; Kaffaljidhmah2/SpecDec_pp `specdec_pp/hf_generation.py`.
//!
//! ```
//! use pilotfish_decoding::{Decoder, Limits, SpeculativeChain};
//! use pilotfish_decoding::drafters::{ChainDrafter, DraftModel, Pick, Stop, Stopping};
//! use pilotfish_model::{Streams, sampling::Warpers, toy::TableModel};
//! let mut target = TableModel::new(1, 2, vec![0.1, 0.9, 0.8, 0.2])?;
//! let (draft, streams) = (DraftModel::new(Box::new(target.clone())), Streams::new(1));
//! let stopping = Stopping { rule: Stop::Fixed(4), ..Stopping::default() };
//! let mut drafter = ChainDrafter::new(draft, stopping, Pick::sampled(streams))?;
//! let mut verifier = SpeculativeChain::new(Warpers::temperature(1.0).check()?, streams);
//! let limits = Limits { new_tokens: 41, ..Limits::default() };
//! let out = Decoder::new(&mut target, &mut drafter, &mut verifier, limits)?.generate(&[0])?;
//! // A draft that is the target is always right.
//! assert!(out.rounds.iter().all(|round| round.added == 5));
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

use pilotfish_model::{ModelInfo, Tap, Token};

use super::acceptance::AcceptanceHead;
use super::{DraftModel, Laws, Pick, number, same_vocabulary};
use crate::{Ask, DecodingError, Draft, Drafter, Drawn, Outcome, Result};

/// When a chain ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// After this many tokens.
    Fixed(usize),
    /// After a token whose draft probability is below this.
    Confidence(f64),
    /// After a token that brings the product of draft probabilities below this.
    Cumulative(f64),
    /// After a number of tokens that follows the rounds before.
    Heuristic,
    /// Once the predicted chance of a rejection exceeds the threshold.
    Head {
        /// Predicts acceptance.
        head: Box<AcceptanceHead>,
        /// The threshold `h`.
        threshold: f64,
    },
    /// After as many tokens as the list says, a number a round; 1 when it is at its end.
    Script(Vec<usize>),
}

/// A rule and its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopping {
    /// When a chain ends.
    pub rule: Stop,
    /// Tokens before the rule may end it; not for [`Stop::Fixed`], [`Stop::Heuristic`] and [`Stop::Script`].
    pub min: usize,
    /// Tokens at most.
    pub max: usize,
}

impl Default for Stopping {
    fn default() -> Self {
        Self { rule: Stop::Confidence(0.4), min: 2, max: 20 }
    }
}

impl Stopping {
    fn check(&self, model: &ModelInfo) -> Result<()> {
        for (name, value) in [("min", self.min), ("max", self.max)] {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        if self.min > self.max {
            let (name, value) = ("min", self.min);
            return Err(DecodingError::BadParameter { name, value, want: "at most max" });
        }
        match &self.rule {
            Stop::Fixed(0) => {
                Err(DecodingError::BadParameter { name: "tokens a round", value: 0, want: "at least 1" })
            }
            Stop::Confidence(value) | Stop::Cumulative(value) | Stop::Head { threshold: value, .. }
                if !(*value >= 0.0 && *value <= 1.0) =>
            {
                Err(number("threshold", *value, "from 0 to 1"))
            }
            Stop::Head { head, .. } => {
                model.require_tap(Tap::FinalNormed)?;
                if head.width() != model.width {
                    let (name, value) = ("width of an acceptance head", head.width());
                    return Err(DecodingError::BadParameter { name, value, want: "the draft model's" });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Drafts chains of a draft model.
#[derive(Debug)]
pub struct ChainDrafter {
    model: DraftModel,
    stopping: Stopping,
    pick: Pick,
    /// For [`Stop::Heuristic`] the tokens of the next round, for [`Stop::Script`] its place in the list.
    state: usize,
}

impl ChainDrafter {
    /// A drafter over a draft model.
    ///
    /// # Errors
    /// Numbers out of range; a head for another model.
    pub fn new(model: DraftModel, stopping: Stopping, pick: Pick) -> Result<Self> {
        stopping.check(model.info())?;
        let state = if stopping.rule == Stop::Heuristic { 5 } else { 0 };
        Ok(Self { model, stopping, pick, state })
    }
}

impl Drafter for ChainDrafter {
    fn name(&self) -> String {
        let rule = match &self.stopping.rule {
            Stop::Fixed(count) => format!("{count} tokens"),
            Stop::Confidence(value) => format!("confidence {value}"),
            Stop::Cumulative(value) => format!("cumulative {value}"),
            Stop::Heuristic => "heuristic".into(),
            Stop::Head { threshold, .. } => format!("SpecDec++ {threshold}"),
            Stop::Script(_) => "script".into(),
        };
        format!("draft model ({rule}, {})", self.model.info().name)
    }

    fn drawn(&self) -> Drawn {
        self.pick.drawn()
    }

    fn fits(&self, target: &ModelInfo) -> Result<()> {
        same_vocabulary(|| self.name(), self.model.info().vocab, target)
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let root = ask.root();
        let room = ask.depth.min(ask.budget).min(self.model.room(ask.text.len()));
        let Stopping { rule, min, max } = &mut self.stopping;
        let most = match rule {
            Stop::Fixed(count) => *count,
            Stop::Heuristic => self.state,
            Stop::Script(list) => {
                self.state += 1;
                list.get(self.state - 1).copied().unwrap_or(1)
            }
            _ => *max,
        };
        let most = most.min(room);
        if most == 0 {
            return Ok(Draft::none(root));
        }
        let end: Vec<Token> = self.model.info().end.clone();
        let states = matches!(rule, Stop::Head { .. });
        let mut pass = self.model.begin(ask, states)?;
        let mut draft = Draft::sampled(root, self.pick.drawn());
        let mut estimates = vec![1.0];
        let (mut node, mut count) = (0, 0);
        // Of SpecDec++ the chance that nothing was rejected, of the plain rule the product.
        let mut product = 1.0;
        loop {
            let law = pass.laws(draft.tree(), &[node])?.pop().ok_or(DecodingError::NotRun { node })?;
            self.pick.law(&mut draft, node, &law)?;
            let token = self.pick.draw(&law);
            node = draft.push(node, token)?;
            estimates.push(estimates[node - 1] * law.prob(token));
            if end.contains(&token) {
                break;
            }
            count += 1;
            let stop = match rule {
                Stop::Confidence(least) => law.prob(token) < *least,
                Stop::Cumulative(least) => {
                    product *= law.prob(token);
                    product < *least
                }
                Stop::Head { head, threshold } => {
                    if count > 1 {
                        product *= head.acceptance(&pass.last_states);
                    }
                    1.0 - product > *threshold
                }
                _ => false,
            };
            if count >= most || stop && count >= *min {
                break;
            }
        }
        draft.set_estimates(estimates)?;
        Ok(draft)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        if self.stopping.rule == Stop::Heuristic && !outcome.draft.is_empty() {
            let all = outcome.path.len() == outcome.draft.len();
            self.state = if all { self.state + 2 } else { self.state.saturating_sub(1).max(1) };
        }
        self.model.observe(outcome)
    }
}
