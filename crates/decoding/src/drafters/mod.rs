//! Drafters: each in a module of its own.

mod prompt_lookup;

pub use prompt_lookup::{PromptLookup, PromptLookupConfig};
