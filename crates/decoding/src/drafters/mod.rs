//! Drafters: each in a module of its own.
//!
//! | module | drafts from | drawn |
//! |---|---|---|
//! | [`prompt_lookup`] | the text itself, by n-grams | fixed |
//! | [`suffix`] | every text so far, by the longest suffix | fixed |
//! | [`recycling`] | the target's rejected candidates | fixed |
//! | [`aded`] | a table of tri-grams that learns | fixed |
//! | [`chain`] | a draft model, a chain that knows when to stop | without replacement |
//! | [`dyspec`] | a draft model, where it expects most | without replacement |
//! | [`rsd`] | a draft model, siblings or sequences without replacement | without replacement |
//! | [`swift`] | the target itself without some of its sub-layers, searched while it decodes | fixed, or without replacement |

pub mod acceptance;
pub mod aded;
pub mod chain;
pub mod dyspec;
pub mod gumbel;
mod head;
mod model;
mod pick;
pub mod prompt_lookup;
pub mod recycling;
pub mod rsd;
pub mod suffix;
pub mod swift;
mod trigrams;

use pilotfish_model::{ModelError, ModelInfo};

pub use acceptance::{AcceptanceHead, Example, HeadShape, HeadTraining};
pub use aded::{Aded, AdedDrafter, Prune, Search};
pub use chain::{ChainDrafter, Stop, Stopping};
pub use dyspec::{Bounds, DySpec, DySpecConfig, Growth};
pub use head::ReducedHead;
pub use model::{DraftModel, Laws};
pub use pick::Pick;
pub use prompt_lookup::{PromptLookup, PromptLookupConfig};
pub use recycling::{Matrix, Recycling, Refresh, Template, TokenRecycling};
pub use rsd::{Rsd, Shape};
pub use suffix::{Suffix, SuffixAutomaton, SuffixLookup};
pub use swift::{LayerSearch, LayerSearchConfig, Swift, SwiftConfig};
pub use trigrams::{TrigramConfig, Trigrams};

use crate::{DecodingError, Result};

/// A number outside its range.
pub(crate) fn number(name: &'static str, value: f64, want: &'static str) -> DecodingError {
    ModelError::BadParameter { name, value, want }.into()
}

/// Whether a drafter over `vocab` tokens can draft for a target.
pub(crate) fn same_vocabulary(
    drafter: impl FnOnce() -> String,
    vocab: usize,
    target: &ModelInfo,
) -> Result<()> {
    if vocab == target.vocab {
        return Ok(());
    }
    Err(DecodingError::Vocabulary { drafter: drafter(), got: vocab, want: target.vocab })
}
