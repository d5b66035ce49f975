//! Sparse language models through one plan.
//!
//! | to find | look in |
//! |---|---|
//! | which weights may be other than zero | [`Pattern`] |
//! | magnitude, Wanda, SparseGPT, DSnoT on one matrix | [`prune()`](prune::prune), [`Pruner`] |
//! | the same layer by layer through a network | [`sequential`] |
//!
//! Nothing here runs a network itself: calibration passes go through [`Engine`], which ONNX Runtime or the
//! interpreter of `pilotfish-training` can serve.
#![forbid(unsafe_code)]

mod engine;
mod error;
mod pattern;
pub mod prune;
pub mod sequential;
mod statistics;

#[cfg(feature = "interpreter")]
pub use engine::InterpreterEngine;
pub use engine::{Engine, Feed, Forward};
pub use error::{Result, SparsityError};
pub use pattern::Pattern;
pub use prune::{
    Dsnot, LayerReport, Mask, PRUNERS, Pruned, Pruner, Refined, RowRefined, Scope, Skip, SparseGpt, Start,
    Swept, magnitude, mean_error, reconstruction_error, refine, refine_row, verify, wanda,
};
pub use statistics::Statistics;
