//! Experiments as typed, resumable steps: progress, result files, tables, plots, reports, setup.
#![forbid(unsafe_code)]

pub mod book;
pub mod datasets;
mod error;
pub mod experiments;
pub mod generate;
pub mod machine;
pub mod masked;
pub mod models;
pub mod plots;
pub mod register;
pub mod report;
pub mod results;
pub mod setup;
pub mod sparse;
pub mod steps;
mod suggest;
pub mod tables;

pub use error::{PipelineError, Result};
pub(crate) use suggest::near;
