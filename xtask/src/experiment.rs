//! `experiment`.

use anyhow::{Result, anyhow};
use pilotfish_pipeline::experiments::{self, ALL, Context};
use pilotfish_pipeline::setup::Setup;
use pilotfish_runtime::home::Home;

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
    let options = experiment.parse(words)?;
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

fn list() {
    println!("usage: cargo xtask experiment NAME [--option value]...\n\nexperiments:");
    for experiment in ALL {
        println!("  {:<20} {}", experiment.name, experiment.about);
    }
    println!("\n`cargo xtask experiment NAME --help` lists an experiment's options.");
}
