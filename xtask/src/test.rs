//! `test` and `lint`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use pilotfish_runtime::home::{HOME_VARIABLE, Home};

use crate::cargo::{cargo, run as start};
use crate::{docs, emulate, methods, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the slow tests too
    #[arg(long)]
    slow: bool,
    /// Run `lint` first
    #[arg(long)]
    all: bool,
    /// Run the kernels' tests alone, on an emulated processor with AVX-512; needs Bochs and some of Debian's packages,
    /// which it names, and takes about ten minutes
    #[arg(long, conflicts_with_all = ["slow", "all"])]
    emulated: bool,
    /// A Linux kernel's image for the emulation; the newest in /boot otherwise
    #[arg(long, requires = "emulated")]
    kernel: Option<PathBuf>,
    /// Words passed on to `cargo test`, such as `-p pilotfish-model` or `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

pub(crate) fn run_tests(arguments: &Arguments) -> Result<()> {
    setup::for_tests()?;
    let mut command = cargo();
    command.arg("test").env(HOME_VARIABLE, Home::locate()?.root());
    let chosen =
        |word: &String| matches!(word.as_str(), "-p" | "--package") || word.starts_with("--package=");
    if !arguments.words.iter().any(chosen) {
        command.arg("--workspace");
    }
    if arguments.slow {
        command.args(["--features", "pilotfish-tests/slow"]);
    }
    start(command.args(&arguments.words))
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.emulated {
        return emulate::run(arguments.kernel.as_deref());
    }
    let linted = if arguments.all { lint() } else { Ok(()) };
    run_tests(arguments)?;
    linted
}

/// Formatting, lints, documentation, and generated files. All are tried; any failure fails.
pub(crate) fn lint() -> Result<()> {
    let mut failures = Vec::new();
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{what}: {error:#}");
            failures.push(what.to_owned());
        }
    };
    note("formatting (`cargo fmt` repairs it)", start(cargo().args(["fmt", "--all", "--", "--check"])));
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    note("lints", start(cargo().args(clippy)));
    // Nothing else compiles what is behind this feature, or without that one.
    let cuda = ["clippy", "-p", "pilotfish-runtime", "--features", "cuda", "--", "-D", "warnings"];
    note("lints of the feature cuda", start(cargo().args(cuda)));
    let small =
        ["clippy", "-p", "pilotfish-supervision", "--no-default-features", "--tests", "--", "-D", "warnings"];
    note("lints of supervision without Parquet", start(cargo().args(small)));
    let mut doc = cargo();
    doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    note("documentation", start(&mut doc));
    note("methods.toml", methods::run(true));
    note("docs", docs::check());
    match failures.is_empty() {
        true => Ok(()),
        false => bail!("these checks failed: {}", failures.join("; ")),
    }
}
