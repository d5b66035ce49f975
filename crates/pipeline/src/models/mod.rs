//! The models and data sets that the project knows by name, and what is in a checkpoint.

mod catalogue;
mod convert;
mod fetch;
mod inspect;
mod onnx;

pub use catalogue::{CATALOGUE, Entry, Kind, Licence, Package, Part, Pinned, find};
pub use convert::{Conversion, Operators, convert, storage};
pub use inspect::{Inspection, inspect};
pub use onnx::{OnnxInspection, inspect_onnx, onnx_file};
