//! `experiment`.

use anyhow::{Result, anyhow};
use pilotfish_pipeline::experiments::{self, ALL, Context};
use pilotfish_pipeline::setup::Setup;
use pilotfish_runtime::home::Home;

use crate::cargo::{cargo, run as run_program};
use crate::setup;

pub(crate) fn run(words: &[String]) -> Result<()> {
    let mut words = words.iter().map(String::as_str);
    let name = match words.next() {
        None | Some("--list" | "--help" | "-h") => {
            list();
            return Ok(());
        }
        Some(name) => name,
    };
    let experiment = experiments::find(name)?;
    let words: Vec<_> = words.collect();
    if words.iter().any(|word| matches!(*word, "--help" | "-h")) {
        print!("{}", experiment.usage());
        return Ok(());
    }
    let options = experiment.parse(words.iter().copied())?;
    if let Some(feature) = missing(name, &words) {
        return elsewhere(name, &words, feature);
    }
    let home = Home::locate()?;
    experiment.prepare(&Setup::new(home.clone()), setup::load)?;
    let context = Context::new(home, crate::root().join("results"), options);
    let finished = experiment.start(&context).map_err(|error| anyhow!(error))?;
    for (what, path) in [("result", finished.result), ("report", finished.report)] {
        if let Some(path) = path {
            println!("{what}: {}", path.display());
        }
    }
    Ok(())
}

/// The feature that an experiment needs and this build lacks.
fn missing(name: &str, words: &[&str]) -> Option<&'static str> {
    if name != "label-scale" {
        return None;
    }
    match words.iter().any(|word| word.ends_with("ballista")) {
        true => (!cfg!(feature = "ballista")).then_some("ballista"),
        false => (!cfg!(feature = "datafusion")).then_some("datafusion"),
    }
}

/// Runs an experiment in a build with a feature, beside this one.
fn elsewhere(name: &str, words: &[&str], feature: &str) -> Result<()> {
    eprintln!("{name} needs a build with the feature {feature}, which takes a while the first time");
    let target = crate::root().join("target").join(feature);
    let mut command = cargo();
    command.args(["run", "--package", "xtask", "--bin", "xtask", "--features", feature, "--target-dir"]);
    run_program(command.arg(target).args(["--", "experiment", name]).args(words))
}

fn list() {
    println!("usage: cargo xtask experiment NAME [--option value]...\n\nexperiments:");
    for experiment in ALL {
        println!("  {:<20} {}", experiment.name, experiment.about);
    }
    println!("\n`cargo xtask experiment NAME --help` lists an experiment's options.");
}
