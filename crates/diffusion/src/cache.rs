use std::ops::Range;

use pilotfish_model::{Logits, MaskedModel, Result, Token};
use serde::{Deserialize, Serialize};

/// What of a block's passes is taken from the pass at its start.
///
/// With a bidirectional model this is an approximation: keys and values of positions outside the rows that are run
/// again stay what they were when the block began. Only the first step of a block is exact, unless the model attends
/// causally from block to block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// Nothing: every pass runs the whole text.
    #[default]
    None,
    /// Keys and values before the block; the block and all after it are run again (Fast-dLLM's PrefixCache).
    Prefix,
    /// Keys and values before and after the block; only the block is run again (Fast-dLLM's DualCache).
    Dual,
}

/// A masked model that can run some rows of a text against keys and values kept from an earlier pass.
pub trait BlockCache: MaskedModel {
    /// Runs a whole text and keeps every position's keys and values. Logits of `positions`, ascending.
    ///
    /// # Errors
    /// As [`MaskedModel::forward`].
    fn build(&mut self, tokens: &[Token], positions: &[usize]) -> Result<Logits>;

    /// Runs the rows `rows` of several texts, each attending to its own rows and to the kept keys and values of the
    /// other positions below its length; these stay as they are. Texts may be shorter than the one kept. Logits of
    /// `positions`, which are within `rows`, of each text.
    ///
    /// # Errors
    /// Nothing kept, or fewer positions than a text has; as [`MaskedModel::forward`].
    fn update(
        &mut self,
        texts: &[&[Token]],
        rows: Range<usize>,
        positions: &[&[usize]],
    ) -> Result<Vec<Logits>>;
}
