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
mod draft;
mod drafter;
pub mod drafters;
mod error;
mod identity;
pub mod policy;
pub mod search;
mod state;
pub mod superposed;
mod text;
pub mod verifiers;

pub use decoder::{Decoder, Finish, Generation, Limits, Round, RoundRecord};
pub use draft::{Draft, Drawn};
pub use drafter::{Ask, Drafter, Needs, Nothing, Outcome, Start};
pub use drafters::{PromptLookup, PromptLookupConfig};
pub use error::{DecodingError, Result};
pub use identity::{Identity, compare};
pub use policy::{CostAware, CostAwareConfig, Everything, Policy, WidthCurve};
pub use text::{Detokenize, TextStream};
pub use verifiers::{
    Choose, Context, Dice, GreedyTree, MultiStep, Recursive, SampleAndMatch, SpeculativeChain, Typical,
    TypicalConfig, Verdict, Verifier, lossless,
};
