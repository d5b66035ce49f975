//! ONNX Runtime behind the model traits.
//!
//! [`OnnxCausal`] opens a checkpoint, writes it as ONNX into the cache folder once, and runs it: the body in
//! one or more sessions over cache buffers that the host owns, the head in another that sees only the rows
//! whose logits are wanted. [`OnnxEncoder`] does the same for sentence encoders. [`StockCausal`] runs ONNX files
//! that somebody else exported.
//!
//! ONNX Runtime's shared library is found at run time ([`home`], [`library`]); `cargo xtask setup` installs
//! one.
#![forbid(unsafe_code)]

mod calibration;
mod causal;
mod device;
mod encoder;
mod error;
mod export;
pub mod home;
pub mod library;
mod masked;
mod operators;
mod planner;
mod products;
mod segment;
mod session;
mod skipping;
mod stock;

pub use calibration::{CALIBRATED_ROWS, Calibration, Timing, compare};
pub use causal::{LoadOptions, OnnxCausal};
pub use device::Device;
pub use encoder::OnnxEncoder;
pub use error::{Result, RuntimeError};
pub use export::{ExportOptions, GraphPass};
pub use masked::OnnxMasked;
pub use operators::Operators;
pub use ort;
pub use pilotfish_kernels::Activations;
pub use planner::{ProductChoice, Reason};
pub use products::{
    PRODUCTS_DOMAIN, Products, lower_products, lower_products_where, packed_bytes, product_operators,
};
pub use session::SessionConfig;
pub use stock::StockCausal;
