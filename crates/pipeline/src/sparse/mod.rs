//! What `pilotfish-sparsity` needs around it: an engine, a decoder as a row of layers, texts, and a place for finished
//! layers; sparse models as folders.

mod decoder;
mod engine;
mod folder;
mod planned;
mod sparsify;
mod store;

pub use decoder::{Decoder, samples, windows};
pub use engine::OnnxEngine;
pub use folder::{plan_of, write_model};
pub use pilotfish_sparsity::LayerReport;
pub use planned::{embedded, gate_plan, open, pass_of, planned, with_layers};
pub use sparsify::{Sparsify, describe, sparsify};
pub use store::FolderStore;
