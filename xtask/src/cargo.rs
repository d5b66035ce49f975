//! Programs run by the commands.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Usage;

/// A program that was stopped by Ctrl-C.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The cargo that runs this, in the workspace's root, with nothing to read.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root()).stdin(Stdio::null());
    command
}

/// Runs a program with its output going where this one's goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let shown = format!("{} {}", name.rsplit(['/', '\\']).next().unwrap_or(&name), words.join(" "));
    eprintln!("> {shown}");
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    #[cfg(unix)]
    if std::os::unix::process::ExitStatusExt::signal(&status) == Some(2) {
        return Err(Interrupted.into());
    }
    match status.code() {
        Some(0) => Ok(()),
        Some(130) => Err(Interrupted.into()),
        _ => bail!("`{shown}` failed ({status})"),
    }
}

/// Experiments that are benchmarks.
const MEASURED: [&str; 2] = ["width-cost", "kernels"];

/// Runs a benchmark of the workspace, or an experiment that is one.
pub(crate) fn bench(name: Option<&str>, words: &[String]) -> Result<()> {
    if let Some(name) = name.filter(|name| MEASURED.contains(name)) {
        let words: Vec<String> = std::iter::once(name.to_owned()).chain(words.iter().cloned()).collect();
        return crate::experiment::run(&words);
    }
    let benches = benches()?;
    let names = || {
        let names = MEASURED.into_iter().chain(benches.iter().map(|(_, bench)| bench.as_str()));
        names.collect::<Vec<_>>().join(", ")
    };
    let Some(name) = name else {
        println!("benchmarks: {}", names());
        return Ok(());
    };
    let Some((package, _)) = benches.iter().find(|(_, bench)| bench == name) else {
        return Err(Usage(format!("no benchmark called {name:?}; there are: {}", names())).into());
    };
    // The workspace has one profile, so a benchmark measures the code that experiments run.
    let mut command = cargo();
    command.args(["bench", "--profile", "dev", "--package", package, "--bench", name, "--"]).args(words);
    run(&mut command)
}

/// Package and name of every benchmark.
fn benches() -> Result<Vec<(String, String)>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_bench =
                target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"));
            if let (true, Some(package), Some(name)) =
                (is_bench, package["name"].as_str(), target["name"].as_str())
            {
                found.push((package.to_owned(), name.to_owned()));
            }
        }
    }
    Ok(found)
}
