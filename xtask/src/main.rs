//! The project's commands. Thin: what they do lives in `pilotfish-pipeline`, where it is tested.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // a command line speaks on standard output

mod cargo;
mod conformance;
mod docs;
mod emulate;
mod experiment;
mod generate;
mod label;
mod methods;
mod models;
mod pairs;
mod report;
mod setup;
mod sparsify;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pilotfish_pipeline::PipelineError;
use pilotfish_pipeline::experiments::ExperimentError;
use pilotfish_pipeline::setup::SetupError;

/// Pilotfish's project commands.
///
/// Downloads go into PILOTFISH_HOME, or the platform's cache folder. Exit codes: 0 done, 1 failed,
/// 2 wrong usage, 130 interrupted.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch ONNX Runtime and the default model, and check what is there
    Setup(setup::Arguments),
    /// Run an experiment: `experiment NAME [--option value]...`; without a name, list them
    // Its options are the experiment's own, so they are not clap's to parse.
    #[command(disable_help_flag = true)]
    Experiment {
        /// Name and options of the experiment
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "NAME [--OPTION VALUE]...")]
        words: Vec<String>,
    },
    /// Write a text of a model to the terminal, under a schema, an expression, a grammar, or freely
    Generate(Box<generate::Arguments>),
    /// Infer labels from the votes of many voters: `label --votes FILE [--truth FILE] [--model NAME|all]`
    Label(label::Arguments),
    /// Make preference pairs of what models answered: `pairs --in FILE --in FILE --rule delta --out FILE`
    Pairs(pairs::Arguments),
    /// Prune a model and write it as a folder, or say what is sparse in one
    Sparsify(sparsify::Arguments),
    /// Write the page that lists all reports, and say where it and the newest report are
    Report(report::Arguments),
    /// Run a benchmark; without a name, list them
    Bench {
        /// Name of the benchmark
        name: Option<String>,
        /// Words passed on to it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Certify the verifiers of speculative decoding; fails when one is not exact
    Conformance(conformance::Arguments),
    /// Write the generated pages, then build the book and the API documentation
    Docs(docs::Arguments),
    /// Write the table of methods from methods.toml
    Methods {
        /// Change nothing; fail when the register is wrong or the table is stale
        #[arg(long)]
        check: bool,
    },
    /// Set up what tests need, then run every test
    Test(test::Arguments),
    /// Check formatting, lints, documentation and generated pages
    Lint,
    /// List, fetch, inspect or convert models and data sets
    #[command(subcommand)]
    Models(models::Command),
}

/// A wrong command line.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Experiment { words } => experiment::run(&words),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Label(arguments) => label::run(&arguments),
        Command::Pairs(arguments) => pairs::run(&arguments),
        Command::Sparsify(arguments) => sparsify::run(arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Bench { name, words } => cargo::bench(name.as_deref(), &words),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Docs(arguments) => docs::run(&arguments),
        Command::Methods { check } => methods::run(check),
        Command::Test(arguments) => test::run(&arguments),
        Command::Lint => test::lint(),
        Command::Models(command) => models::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// The error and its causes, without those that an error's own text already names.
fn message(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match () {
            () if text.is_empty() => cause,
            () if text.contains(&cause) => text,
            () => format!("{text}: {cause}"),
        }
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let usage = error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause.downcast_ref::<ExperimentError>().is_some_and(ExperimentError::is_usage)
            || cause
                .downcast_ref::<SetupError>()
                .is_some_and(|error| matches!(error, SetupError::Unknown { .. } | SetupError::Terms { .. }))
            || matches!(
                cause.downcast_ref(),
                Some(PipelineError::Choice { .. } | PipelineError::Exists { .. })
            )
    });
    let interrupted = error.chain().any(|cause| {
        cause.is::<cargo::Interrupted>()
            || matches!(cause.downcast_ref(), Some(PipelineError::Interrupted { .. }))
    });
    match (usage, interrupted) {
        (true, _) => 2,
        (_, true) => 130,
        _ => 1,
    }
}

/// The workspace's root folder.
fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    manifest.parent().unwrap_or(Path::new(".")).to_owned()
}
