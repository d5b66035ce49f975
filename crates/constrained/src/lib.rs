//! Generation under constraints.
//!
//! A [`Constraint`] reads bytes and says whether a text can still be completed and whether it is complete: JSON
//! Schema, regular expressions and Lark grammars ([`Grammars`]), finite automata ([`Dfa`]), or any function of the
//! text ([`Predicate`]). A [`Vocabulary`] says which bytes a model's tokens are. [`Smc`] draws weighted texts of any
//! [`CausalModel`](pilotfish_model::CausalModel) that satisfy the constraint; its posterior is the model's law
//! *given* the constraint, not the law of masking token by token, and it tells how likely a valid text is.
//!
//! | to find | look in |
//! |---|---|
//! | one token and its unbiased weight (AWRS) | [`estimators`], [`Estimator`] |
//! | texts: sequential Monte Carlo and its special cases | [`smc`], [`Smc`] |
//! | whole texts by trying again | [`Rejection`] |
//! | speculative decoding under a constraint | `speculative`, behind the feature of that name |
//! | grammars and what they may cost | [`grammar`], [`Grammars`], [`GrammarLimits`] |
#![forbid(unsafe_code)]

mod checker;
mod constraint;
mod dfa;
mod error;
pub mod estimators;
pub mod grammar;
mod law;
mod rejection;
pub mod resampling;
pub mod smc;
#[cfg(feature = "speculative")]
pub mod speculative;
mod vocabulary;

pub use checker::Checker;
pub use constraint::{Anything, Both, Constraint, Predicate};
pub use dfa::Dfa;
pub use error::{ConstrainedError, Result};
pub use estimators::{Drawn, Estimator, Likeliest, Pool};
pub use grammar::{Grammar, GrammarLimits, Grammars};
pub use law::{NextLaw, Weights};
pub use rejection::{Rejection, Tries};
pub use resampling::Resampling;
pub use smc::{Critic, End, Particle, Posterior, Proposal, Smc};
pub use vocabulary::{Mask, Vocabulary};
