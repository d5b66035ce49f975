//! Networks as data.
//!
//! An architecture is written once, as a [`Graph`]: nodes over copyable [`Value`] handles and named
//! parameters, not generic over a backend. Everything else is a *reader*: the text printer, shape inference
//! (done while building), cost accounting, the ONNX writer, and, in another crate, an interpreter with
//! gradients. Passes turn graphs into graphs.
//!
//! Two rules keep the readers equal. Every weight matrix is reached through one operation, [`Op::Linear`], so
//! that how it is stored and multiplied is a choice made in one place. And every composite operation
//! (attention, norms, rotary embedding) has one definition in primitives ([`passes::expand`]); a reader may
//! lower it to something faster, and tests hold the two equal.
#![deny(unsafe_op_in_unsafe_fn)]

mod atomic;
mod build;
pub mod cost;
mod dim;
mod error;
mod feed;
mod graph;
mod infer;
pub mod onnx;
mod op;
pub mod passes;
mod print;
pub mod quantize;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod weights;

pub use build::AttentionConfig;
pub use dim::{Dim, Shape};
pub use error::{GraphError, Result};
pub use feed::Feed;
pub use graph::{Graph, Mark, Node, NodeId, Param, ParamId, Producer, Value, ValueInfo};
pub use op::{BinaryOp, Custom, DType, Kept, Literal, Op, ReduceOp, RopeScaling, Setting, Storage, UnaryOp};
pub use tensor::{Tensor, TensorSource};
