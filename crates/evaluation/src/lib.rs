//! Paired comparisons with intervals, perplexity, and readers for prompt sets.
//!
//! Two decoders are compared on the same prompts, prompt by prompt: the differences between prompts, which are
//! large, then cancel, and a small effect can be told from noise. Every comparison says how many items it
//! rests on, what interval it has, and how large an effect it could have seen.
#![forbid(unsafe_code)]

mod error;
mod formula;
mod items;
mod paired;
mod perplexity;
pub mod prompts;
pub mod texts;

pub use error::{EvaluationError, Result};
pub use formula::{WidthModel, best_drafts, expected_tokens, speed_up};
pub use items::{ByCategory, Item, by_category, pair};
pub use paired::{Comparison, Effect, Interval, IntervalKind, PairedConfig, compare, holm, median};
pub use perplexity::{Perplexity, PerplexityConfig, perplexity};
