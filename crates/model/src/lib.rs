//! What a model *is* to an algorithm.
//!
//! Every decoder, verifier, sparsity study and supervision method of the workspace is written against
//! this crate alone. It knows no runtime: a model is something that **appends rows to a cache**, each row
//! naming its parent, and answers with logits and taps for the rows that were asked for. Chains, draft
//! trees, beams, particles and look-ahead branches are all that one call ([`Step`]), followed by
//! [`Steps::keep`] or [`Steps::truncate`].
//!
//! Why rows and parents instead of sequences: a tree of drafts then costs one forward pass, and the cache
//! after "keep these rows" is indistinguishable from one that never saw the others.
//!
//! | to find | look in |
//! |---|---|
//! | the call and its answer | [`Step`], [`StepOutput`], [`Logits`] |
//! | object-safe traits | [`Steps`], [`CausalModel`], [`MaskedModel`], [`SequenceEncoder`], [`EncoderDecoder`] |
//! | draft trees and cache bookkeeping | [`TokenTree`], [`Forest`] |
//! | sampling: warpers and distributions | [`sampling`] |
//! | reproducible randomness | [`Streams`] |
//! | what a decoder spent | [`Ledger`] |
//! | exactly enumerable models for tests | [`toy`] |
#![forbid(unsafe_code)]

mod error;
mod forest;
mod info;
mod ledger;
mod logits;
mod random;
pub mod sampling;
mod skip;
mod step;
pub mod toy;
mod traits;
mod tree;

pub use error::{ModelError, Result};
pub use forest::Forest;
pub use info::{Capabilities, Capability, ModelInfo};
pub use ledger::{Ledger, Phase};
pub use logits::{LogitForm, LogitValues, Logits};
pub use random::{StreamRng, Streams};
pub use skip::{Partial, Skip};
pub use step::{Input, Parents, RowSet, Step, StepOutput, Tap, TapRows};
pub use traits::{
    CausalModel, EncoderDecoder, MaskedBatch, MaskedModel, MaskedOutput, Pooling, SequenceEncoder, Source,
    Steps,
};
pub use tree::TokenTree;

/// A token id: an index into a model's vocabulary.
pub type Token = u32;
