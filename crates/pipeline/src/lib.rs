//! Experiments as typed, resumable steps: progress, result files, tables, plots, reports, setup.
#![forbid(unsafe_code)]

pub mod book;
pub mod experiments;
pub mod models;
pub mod register;
pub mod setup;
mod suggest;

pub(crate) use suggest::near;
