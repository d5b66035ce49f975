//! Weak supervision: label models, verifier ensembles and automated labelling on one typed votes matrix.
//!
//! Many cheap, noisy voters label each item and nobody knows the truth. [`Votes`] hold what they say, a
//! [`label_models::LabelModel`] says what is probably true and how good each voter is.
// Denied, not forbidden: the expansion of ndarray's slicing macro allows it.
#![deny(unsafe_code)]

pub mod autows;
pub mod debate;
pub mod deception;
pub mod delta_learning;
mod error;
mod exact;
pub mod heads;
pub mod label_models;
pub mod labelling;
pub mod meta_ranking;
mod names;
pub mod pairing;
pub mod preferences;
pub mod reasoning;
mod solver;
#[cfg(feature = "datafusion")]
pub mod sql;
pub mod verifiers;
pub mod votes;
pub mod weak_to_strong;
pub mod weaver;

pub use error::{Result, SupervisionError};
pub use names::Names;
pub use votes::{Rows, Scores, Votes};
