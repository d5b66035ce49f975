//! Policies: how much to propose in a round, and how much of a proposal to verify.
//!
//! On a GPU a step of 64 rows costs what a step of one row does; on a CPU it does not. Whether a token is worth
//! proposing depends on the machine, on the drafter and on the text; [`CostAware`] weighs them each round.

mod cost_aware;
mod curve;

use pilotfish_model::Token;

pub use cost_aware::{CostAware, CostAwareConfig};
pub use curve::{Choice, WidthCurve, best_prefix};

use crate::{Draft, Result};

/// How much may be proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens.
    pub budget: usize,
    /// Levels.
    pub depth: usize,
}

/// What a round cost and gave.
#[derive(Clone, Copy, Debug)]
pub struct Spent<'a> {
    /// The text after the round.
    pub text: &'a [Token],
    /// Tokens of it that are new.
    pub added: usize,
    /// The draft that was verified; empty in a plain round.
    pub draft: &'a Draft,
    /// Nodes of it that the text kept.
    pub path: &'a [usize],
    /// Time of proposing and of learning from the outcome, in seconds.
    pub draft_seconds: f64,
    /// Time of the target's step, in seconds.
    pub target_seconds: f64,
}

/// Decides how much to propose, and how much of it to verify.
pub trait Policy: Send {
    /// Name for reports.
    fn name(&self) -> String;

    /// A new text begins.
    fn start(&mut self) {}

    /// How much the drafter may propose in the next round, within `room`. A budget of 0 is a plain round: the
    /// drafter is not asked.
    fn plan(&mut self, room: Room) -> Room;

    /// The part of a draft to verify. Asked for drafts that were not sampled; of sampled ones no child may be
    /// left out once it is known.
    ///
    /// # Errors
    /// None of its own; the loop passes on what it returns.
    fn trim(&mut self, text: &[Token], draft: Draft) -> Result<Draft> {
        let _ = text;
        Ok(draft)
    }

    /// What came of the round.
    fn observe(&mut self, spent: &Spent<'_>) {
        let _ = spent;
    }
}

/// Proposes and verifies as much as the limits allow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everything;

impl Policy for Everything {
    fn name(&self) -> String {
        "everything".into()
    }

    fn plan(&mut self, room: Room) -> Room {
        room
    }
}
