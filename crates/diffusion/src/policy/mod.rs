//! Which masks a step resolves.

mod compose;
mod fixed;
mod localleap;
mod threshold;

use std::ops::Range;

use pilotfish_model::{Streams, Token};

pub use compose::Either;
pub use fixed::{Fixed, Pace};
pub use localleap::{LocalLeap, LocalLeapConfig, neighbourhood};
pub use threshold::{Factor, Threshold};

use crate::Result;
use crate::predict::{Prediction, Score};

/// What a policy sees of a step.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The text as it is.
    pub tokens: &'a [Token],
    /// Region that is decoded.
    pub region: Range<usize>,
    /// Active block.
    pub block: Range<usize>,
    /// Predictions at the block's masks, from left to right; never empty.
    pub masked: &'a [Prediction],
    /// Predictions at every position the pass answered for, ascending: the masks of the block; its visible positions
    /// if the policy [asked for them](Policy::reads_visible); masks beyond the block where the decoder needs them.
    pub all: &'a [Prediction],
    /// Steps done in this block.
    pub step: usize,
    /// Masks of the block when it began.
    pub masks_at_start: usize,
    /// Randomness of this step, the same whenever it is repeated.
    pub streams: Streams,
}

impl View<'_> {
    /// What the pass says about a position.
    pub fn at(&self, position: usize) -> Option<&Prediction> {
        self.all
            .binary_search_by_key(&position, |prediction| prediction.position)
            .ok()
            .map(|at| &self.all[at])
    }
}

/// Positions to commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Positions the policy trusts.
    pub accepted: Vec<usize>,
    /// Positions it commits because something must be. May repeat accepted ones.
    pub forced: Vec<usize>,
}

/// A rule for which masks a step resolves.
///
/// A policy may choose nothing: the decoder then commits the surest mask, so that every step advances.
pub trait Policy: Send {
    /// Name and settings, for reports.
    fn name(&self) -> String;

    /// What it ranks by.
    fn score(&self) -> Score {
        Score::Probability
    }

    /// Whether it reads predictions at visible positions of the block.
    fn reads_visible(&self) -> bool {
        false
    }

    /// Chooses among the masks of the block.
    ///
    /// # Errors
    /// Whatever it cannot work with.
    fn choose(&mut self, view: &View<'_>) -> Result<Choice>;
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn score(&self) -> Score {
        (**self).score()
    }

    fn reads_visible(&self) -> bool {
        (**self).reads_visible()
    }

    fn choose(&mut self, view: &View<'_>) -> Result<Choice> {
        (**self).choose(view)
    }
}
