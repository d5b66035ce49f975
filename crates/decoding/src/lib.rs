//! One loop for every decoder: a [`Drafter`] proposes a tree of tokens, the target takes one step over it, a
//! [`Verifier`] keeps a path and adds a token, an observer sees what came of it. Plain decoding is the drafter
//! that proposes nothing.
//!
//! ```
//! use pilotfish_decoding::{Decoder, GreedyTree, Limits, Nothing, PromptLookup};
//! use pilotfish_model::toy::CountingModel;
//! // 0 1 2 3 0 1 2 3 ...: after one period the prompt itself says what comes next.
//! let (prompt, limits) = ([0, 1, 2, 3, 0], Limits { new_tokens: 12, ..Limits::default() });
//! let mut model = CountingModel::new(4);
//! let plain = Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits.clone())?.generate(&prompt)?;
//! let mut lookup = PromptLookup::default();
//! let fast = Decoder::new(&mut model, &mut lookup, &mut GreedyTree, limits)?.generate(&prompt)?;
//! assert_eq!(plain.tokens, fast.tokens);
//! assert!(fast.ledger.target_forwards < plain.ledger.target_forwards);
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```
#![forbid(unsafe_code)]

mod decoder;
mod drafter;
mod error;
mod identity;
mod verifier;

pub use decoder::{Decoder, Finish, Generation, Limits, Round};
pub use drafter::{Drafter, Nothing, PromptLookup, PromptLookupConfig};
pub use error::{DecodingError, Result};
pub use identity::{Identity, compare};
pub use verifier::{Choose, Context, GreedyTree, SampleAndMatch, Verdict, Verifier};
