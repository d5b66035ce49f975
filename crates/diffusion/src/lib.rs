//! Masked diffusion decoding: a bidirectional model fills the masks of a text, several a pass, in an order that a
//! policy chooses. What is gained is passes; what is lost are the dependencies between tokens that one pass commits
//! together. This crate has the policies, and a benchmark that tells them apart.
//!
//! ```
//! use pilotfish_diffusion::ideal::{Ideal, Law};
//! use pilotfish_diffusion::{Diffusion, DiffusionConfig, Fixed, Score, policy::Threshold};
//! // A perfect model of "any order of 0 1 2 3". One mask a pass gives a permutation; two a pass need luck.
//! let mut model = Ideal::new(Law::Permutation { items: vec![0, 1, 2, 3], identity: true }, 4)?;
//! let canvas = model.canvas();
//! let config = DiffusionConfig { temperature: 1.0, ..DiffusionConfig::default() };
//! let mut decoder = Diffusion::new(&mut model, config)?;
//! let mut text = decoder.generate(&canvas, &mut Fixed::tokens(Score::Chance, 1))?.tokens;
//! text.sort();
//! assert_eq!(text, [0, 1, 2, 3]);
//! // The threshold rule sees 1/4, 1/3, 1/2, 1 and stays serial.
//! let safe = decoder.generate(&canvas, &mut Threshold { gamma: 0.6 })?;
//! assert_eq!(safe.forwards(), 4);
//! # Ok::<(), pilotfish_diffusion::DiffusionError>(())
//! ```
//!
//! | to find | look in |
//! |---|---|
//! | the engine: blocks, caches, ends of text, revision | [`Diffusion`], [`DiffusionConfig`] |
//! | what is to be decoded | [`Canvas`] |
//! | static rules, Fast-dLLM, LocalLeap | [`policy`] |
//! | block lengths from the text | [`AdaBlock`] |
//! | several steps a pass, the same text | [`freedave`] |
//! | a filter that learns which predictions are final | [`learn2pd`] |
//! | models that know a task's law | [`ideal`] |
//! | a small network, exact and with caches | [`toy`] |
//! | tasks that parallel decoding breaks, and their scores | [`parallelbench`] |
//! | bounds and accuracies in closed form | [`theory`] |
#![forbid(unsafe_code)]

mod adablock;
mod cache;
mod canvas;
mod decoder;
mod error;
pub mod freedave;
pub mod ideal;
pub mod learn2pd;
pub mod parallelbench;
pub mod policy;
mod predict;
pub mod schedule;
mod session;
pub mod theory;
pub mod toy;

pub use adablock::{AdaBlock, Window};
pub use cache::{BlockCache, Cache};
pub use canvas::Canvas;
pub use decoder::{
    Blocks, Commit, Cut, Diffusion, DiffusionConfig, Generation, Observe, Revision, StepRecord, Stop,
};
pub use error::{DiffusionError, Result};
pub use freedave::FreeDaveConfig;
pub use policy::{Fixed, Pace, Policy};
pub use predict::{Noise, Prediction, Score};
