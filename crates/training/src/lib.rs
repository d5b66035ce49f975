//! The second reader of a graph: the same network evaluated with candle, with gradients with respect to chosen
//! parameters and inputs, in f32 or f64.
//!
//! Composite operations are evaluated by their definition in primitives, so that agreement with ONNX Runtime,
//! which runs them fused, checks both. Optimisers and losses are not here yet; [`Interpreter::forward`] gives
//! candle tensors that a loss can be built from.
#![forbid(unsafe_code)]

mod error;
mod evaluate;
mod interpreter;
mod pow;

pub use error::{Result, TrainingError};
pub use interpreter::{Array, Interpreter, Precision};
