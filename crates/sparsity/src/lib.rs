//! Sparse language models through one plan.
//!
//! | to find | look in |
//! |---|---|
//! | which weights may be other than zero | [`Pattern`] |
//! | magnitude, Wanda, SparseGPT, DSnoT on one matrix | [`prune()`](prune::prune), [`Pruner`] |
//! | the same layer by layer through a network | [`sequential`] |
//! | inputs dropped token by token: TEAL, CATS, WINA | [`gate`] |
//! | rotations that make columns orthogonal | [`wina`] |
//! | what is sparse in a model, as a file and as a pass over graphs | [`Plan`] |
//! | how sparse activations are: CETT, and laws over training | [`law`] |
//!
//! Nothing here runs a network itself: calibration passes go through [`Engine`], which ONNX Runtime or the
//! interpreter of `pilotfish-training` (feature `interpreter`) can serve.
#![forbid(unsafe_code)]

mod engine;
mod error;
pub mod gate;
pub mod law;
mod pattern;
pub mod plan;
pub mod prune;
pub mod sequential;
mod statistics;
pub mod wina;

#[cfg(feature = "interpreter")]
pub use engine::InterpreterEngine;
pub use engine::{Engine, Feed, Forward};
pub use error::{Result, SparsityError};
pub use pattern::Pattern;
pub use plan::{MultiplyAdds, Plan};
pub use prune::{
    Dsnot, LayerReport, Mask, PRUNERS, Pruned, Pruner, Refined, RowRefined, Scope, Skip, SparseGpt, Start,
    Swept, magnitude, mean_error, reconstruction_error, refine, refine_row, verify, wanda,
};
pub use statistics::Statistics;
