//! Pilotfish: research crates for making language models cheap to run and cheap to supervise.
//!
//! A pilot fish is small and swims ahead of something large. Every method here is that trade: a cheap guess
//! checked by an expensive model, a few weights standing in for all of them, weak teachers standing in for a
//! strong one. This crate only re-exports the others, each behind a feature of its name; use them alone if you
//! need one.
//!
//! | module | feature | what is in it |
//! |---|---|---|
//! | [`model`] | always | what a model is to an algorithm: steps, trees, logits, caches, ledger, sampling, toy models |
//! | [`graph`] | always | networks as data; ONNX; weights from safetensors and GGUF |
//! | `architectures` | `architectures` | Llama, Gemma 3 and BERT as graphs; checkpoints, tokenisers, chat templates |
//! | `conformance` | `conformance` | a kit that certifies speculative decoders |
//! | `constrained` | `constrained` | generation under constraints: grammars, AWRS, sequential Monte Carlo |
//! | `decoding` | `decoding` | drafters, verifiers and the loop that joins them |
//! | `diffusion` | `diffusion` | masked diffusion decoding, its policies and a benchmark |
//! | `evaluation` | `evaluation` | paired comparisons, perplexity, prompt sets |
//! | `sparsity` | `sparsity` | pruning, activation gates, laws of activation sparsity |
//! | `kernels` | `kernels` | products of a few rows with dense, quantised and sparse weights |
//! | `supervision` | `supervision` | votes, label models, verifiers of answers |
//! | `training` | `training` | the same graphs with gradients |
//! | `runtime` | `runtime`, `cuda` | ONNX Runtime behind the model traits |
//! | `pipeline` | `pipeline` | experiments, setup, result files and reports |
//!
//! The feature `full` is all of them but `cuda`.
//!
//! ```
//! use pilotfish::model::toy::CountingModel;
//! use pilotfish::model::{CausalModel, Step, Steps};
//!
//! // 0 1 2 3 0 1 2 3 ...: a model small enough to check by hand, behind the interface of the large ones.
//! let mut model = CountingModel::new(4);
//! let output = model.step(&Step::chain(&[1, 2, 3]))?;
//! assert_eq!(output.logits.argmax(0)?, 0);
//! assert_eq!((model.len(), model.info().vocab), (3, 4));
//! # Ok::<(), pilotfish::model::ModelError>(())
//! ```
#![forbid(unsafe_code)]

pub use pilotfish_graph as graph;
pub use pilotfish_model as model;

#[cfg(feature = "architectures")]
pub use pilotfish_architectures as architectures;
#[cfg(feature = "conformance")]
pub use pilotfish_conformance as conformance;
#[cfg(feature = "constrained")]
pub use pilotfish_constrained as constrained;
#[cfg(feature = "decoding")]
pub use pilotfish_decoding as decoding;
#[cfg(feature = "diffusion")]
pub use pilotfish_diffusion as diffusion;
#[cfg(feature = "evaluation")]
pub use pilotfish_evaluation as evaluation;
#[cfg(feature = "kernels")]
pub use pilotfish_kernels as kernels;
#[cfg(feature = "pipeline")]
pub use pilotfish_pipeline as pipeline;
#[cfg(feature = "runtime")]
pub use pilotfish_runtime as runtime;
#[cfg(feature = "sparsity")]
pub use pilotfish_sparsity as sparsity;
#[cfg(feature = "supervision")]
pub use pilotfish_supervision as supervision;
#[cfg(feature = "training")]
pub use pilotfish_training as training;
