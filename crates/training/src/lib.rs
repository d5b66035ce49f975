//! The second reader of a graph: the same network evaluated with candle, with gradients with respect to chosen
//! parameters and inputs, in f32 or f64; and what trains it.
//!
//! | to find | look in |
//! |---|---|
//! | a graph evaluated with gradients | [`Interpreter`] |
//! | a run: order, parts of a batch, clipping, progress | [`Trainer`], [`Task`] |
//! | language models and preference pairs as tasks | [`TextTask`], [`PairTask`] |
//! | masked diffusion as a task | [`MaskedTask`] |
//! | what is trained: everything, a head, adapters | [`Selection`], [`attach_head`], [`Lora`] |
//! | losses | [`losses`] |
//! | optimisers and schedules | [`Optimizer`], [`Schedule`] |
//! | keys and values of a cache that learn while a text is read | [`HiddenStates`] |
//! | interrupted runs | [`Checkpoints`] |
//!
//! Composite operations are evaluated by their definition in primitives
//! ([`pilotfish_graph::passes::expand`]), so that agreement with ONNX Runtime, which runs them fused, checks
//! both. A [`Linear`](pilotfish_graph::Op::Linear) that is stored quantised computes with the numbers that its
//! integers stand for, which are those that the ONNX writer stores.
//!
//! # Two ways in
//! Plain numbers: [`Interpreter::run`] and [`Interpreter::vjp`] take and give [`Array`]s and vectors. Candle
//! tensors: [`Interpreter::forward`] gives outputs that a loss is built from; [`Interpreter::gradients`] then
//! gives the gradients in all trained parameters, and [`Interpreter::variables`] holds what an optimiser sets.
//! An input that is to have a gradient (keys and values of a cache, an embedding) is handed over as the tensor
//! of a `candle_core::Var`; after `loss.backward()` its gradient is found under that tensor.
//!
//! # Gradients where there are none
//! `Relu` has slope 0 and `Abs` slope 1 at 0; `Max` and `Min` split evenly between equal operands; of equal
//! entries `Reduce(Max)` and `TopK` take the first. Integers and comparisons pass nothing on. An exponent gets
//! 0 where the base is not above 0.
//!
//! # Limits
//! Candle uses as many threads as `RAYON_NUM_THREADS` says, or as there are cores. It follows and drops tracked
//! operations by recursion: some 8000 one after the other fit the 2 MiB of a spawned thread in an optimised
//! build (64 transformer layers do), more need a larger stack (`RUST_MIN_STACK`). A row of attention whose mask
//! hides everything with minus infinity is not a number, as in ONNX Runtime.
#![forbid(unsafe_code)]

mod checkpoint;
mod error;
mod evaluate;
mod frozen;
mod head;
mod hidden_state;
mod interpreter;
mod lora;
pub mod losses;
mod masked;
mod optimizer;
mod pow;
mod schedule;
mod select;
mod texts;
mod trainer;

pub use checkpoint::Checkpoints;
pub use error::{Result, TrainingError};
pub use head::attach_head;
pub use hidden_state::{Entry, HiddenCache, HiddenConfig, HiddenStates, Part, Reading};
pub use interpreter::{Array, Interpreter, Precision};
pub use lora::Lora;
pub use masked::{MaskedTask, bidirectional_inputs, bidirectional_logits};
pub use optimizer::{Adam, Gradients, Optimizer, OptimizerConfig, Sgd, clip, global_norm};
pub use schedule::{Decay, Schedule, Warmup};
pub use select::Selection;
pub use texts::{Mean, Pair, PairLoss, PairTask, TextTask, causal_inputs};
pub use trainer::{At, BatchLoss, Order, Progress, Task, Trainer, TrainerConfig};
