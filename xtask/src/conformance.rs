//! `conformance`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use pilotfish_conformance::{Thoroughness, certify, certify_constrained, own};
use pilotfish_pipeline::tables::Table;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = Thoroughness::default().seed)]
    seed: u64,
    /// Rounds drawn for each test of counts
    #[arg(long, default_value_t = Thoroughness::default().rounds)]
    rounds: usize,
    /// Certify the verifiers that work under a constraint instead
    #[arg(long)]
    constrained: bool,
    /// Write the certificate to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let thoroughness =
        Thoroughness { seed: arguments.seed, rounds: arguments.rounds, ..Thoroughness::default() };
    let thoroughness = thoroughness.check()?;
    let certificate = match arguments.constrained {
        true => certify_constrained(&thoroughness)?,
        false => certify(&own(), &thoroughness)?,
    };
    let mut table = Table::new("", &["check", "cases", "value", "bound", ""]);
    for check in &certificate.checks {
        let known_wrong = check.kind == pilotfish_conformance::Kind::KnownWrong;
        let name =
            if known_wrong { format!("known wrong: {}", check.subject) } else { check.subject.clone() };
        let verdict = match (check.passed, known_wrong) {
            (true, true) => "caught",
            (true, false) => "passed",
            (false, _) => "FAILED",
        };
        let (value, bound) = (format!("{:.2e}", check.value), format!("{:.2e}", check.bound));
        table.row([name, check.cases.to_string(), value, bound, verdict.into()]);
    }
    println!("{}", table.terminal());
    println!("certificate {}", certificate.id);
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&certificate)?;
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    if !certificate.passed {
        bail!("{} of {} checks failed", certificate.failures().count(), certificate.checks.len());
    }
    Ok(())
}
