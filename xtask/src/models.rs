//! `models`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pilotfish_pipeline::models::{self, CATALOGUE};
use pilotfish_pipeline::setup::Setup;
use pilotfish_runtime::home::Home;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List the models and data sets known by name
    List,
    /// Fetch one
    Fetch {
        /// Its name
        name: String,
        /// Accept the terms of a model whose terms restrict its use
        #[arg(long)]
        accept_terms: bool,
    },
    /// Write a model as ONNX: model.onnx and its weights beside it
    Convert {
        /// Its name, or a GGUF file, or a Hugging Face folder
        model: String,
        /// The folder to write into; made if need be
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// How matrices are stored: f32, int8 or int4 (in blocks of 32)
        #[arg(long, default_value = "f32")]
        storage: String,
        /// Operators: standard (official), fused (ONNX Runtime's own, for its cache) or primitive (official,
        /// nothing composite)
        #[arg(long, default_value = "standard")]
        lowering: String,
        /// Replace a model that is there
        #[arg(long)]
        force: bool,
    },
    /// Say what is in a model: architecture, parameters, bytes, capabilities; of ONNX also inputs, outputs,
    /// operators
    Inspect {
        /// Its name, or a GGUF file, a Hugging Face folder, or an ONNX file or a folder of one
        model: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::List => list(),
        Command::Fetch { name, accept_terms } => {
            let fetched = Setup::new(Home::locate()?).fetch(models::find(&name)?, accept_terms)?;
            println!("{}", fetched.path.display());
            Ok(())
        }
        Command::Convert { model, out, storage, lowering, force } => {
            let storage = models::storage(&storage)?;
            let conversion = models::Conversion { storage, operators: lowering.parse()?, force };
            let written = models::convert(&locate(&model)?, &out, &conversion)?;
            print!("{}", models::inspect_onnx(&written)?);
            Ok(())
        }
        Command::Inspect { model, json } => inspect(&model, json),
    }
}

fn list() -> Result<()> {
    let home = Home::locate()?;
    for entry in CATALOGUE {
        let state = if entry.path(&home).exists() { "fetched" } else { "not fetched" };
        println!("{} ({}, {:.1} MB, {state})", entry.name, entry.kind, entry.bytes() as f64 / 1e6);
        println!("    {}", entry.about);
        println!("    {}; {}", entry.licence.name, entry.origin);
    }
    println!("\nin {}", home.root().display());
    Ok(())
}

/// The path of a model given by name or by path.
pub(crate) fn locate(model: &str) -> Result<PathBuf> {
    if Path::new(model).exists() {
        return Ok(model.into());
    }
    let entry =
        models::find(model).with_context(|| format!("{model:?} is neither a path nor a known model"))?;
    let home = Home::locate()?;
    home.model(entry.name)?;
    Ok(entry.path(&home))
}

fn inspect(model: &str, json: bool) -> Result<()> {
    let path = locate(model)?;
    let (text, value) = match models::onnx_file(&path) {
        Some(file) => {
            let inspection = models::inspect_onnx(&file)?;
            (inspection.to_string(), serde_json::to_value(inspection)?)
        }
        None => {
            let inspection = models::inspect(&path)?;
            (inspection.to_string(), serde_json::to_value(inspection)?)
        }
    };
    match json {
        true => println!("{}", serde_json::to_string_pretty(&value)?),
        false => print!("{text}"),
    }
    Ok(())
}
