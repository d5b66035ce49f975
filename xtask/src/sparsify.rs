//! `sparsify`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use pilotfish_pipeline::sparse::{Sparsify, describe, sparsify};

use crate::models::locate;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model: its name, or a GGUF file, or a Hugging Face folder
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// magnitude, wanda, sparsegpt or dsnot (NAME+dsnot refines another's mask), or a gate: teal, teal-rotated, wina,
    /// wina-plain, cats
    #[arg(long, default_value = "wanda")]
    method: String,
    /// A share of zeros such as 0.5 (gates: of inputs dropped), or N:M
    #[arg(long, default_value = "2:4")]
    pattern: String,
    /// Another pattern for some layers, `*` standing for any text; may be repeated
    #[arg(long = "layer", value_name = "NAME=PATTERN")]
    layers: Vec<String>,
    /// Calibration text (a novel of the project's own)
    #[arg(long, value_name = "FILE")]
    calib: Option<PathBuf>,
    /// Calibration sequences
    #[arg(long, default_value_t = 32)]
    sequences: usize,
    /// Tokens of each
    #[arg(long, default_value_t = 512)]
    length: usize,
    /// Seed of their places in the text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "FOLDER", required_unless_present = "describe")]
    out: Option<PathBuf>,
    /// Say what is sparse in a model folder that was written before
    #[arg(long, value_name = "FOLDER", conflicts_with = "out")]
    describe: Option<PathBuf>,
    /// Say what is different from another
    #[arg(long, value_name = "FOLDER", requires = "describe")]
    compare: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let open = |error: Box<dyn std::error::Error + Send + Sync>| anyhow!(error);
    if let Some(folder) = &arguments.describe {
        println!("{}", describe(folder, arguments.compare.as_deref()).map_err(open)?);
        return Ok(());
    }
    let out = arguments.out.ok_or_else(|| crate::Usage("--out FOLDER is wanted".into()))?;
    let config = Sparsify {
        model: locate(&arguments.model)?,
        method: arguments.method,
        pattern: arguments.pattern,
        layers: arguments.layers,
        calib: arguments.calib,
        sequences: arguments.sequences,
        length: arguments.length,
        seed: arguments.seed,
        threads: arguments.threads,
        out: out.clone(),
    };
    let mut progress = |layer: usize, layers: usize, reports: &[pilotfish_pipeline::sparse::LayerReport]| {
        let zeros = reports.iter().map(|report| report.sparsity).sum::<f64>() / reports.len().max(1) as f64;
        eprintln!("layer {}/{layers}: {:.1} % zeros", layer + 1, 100.0 * zeros);
    };
    sparsify(&config, &mut progress).map_err(open)?;
    println!("{}", describe(&out, None).map_err(open)?);
    println!("written to {}", out.display());
    Ok(())
}
