//! `report`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use pilotfish_pipeline::report;
use pilotfish_pipeline::results::ResultFile;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Open it in the browser
    #[arg(long)]
    open: bool,
    /// Of this experiment only
    experiment: Option<String>,
    /// Folder of results, instead of the workspace's `results`
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = arguments.results.clone().unwrap_or_else(|| crate::root().join("results"));
    let mut reports = Vec::new();
    collect(&root, 3, &mut reports);
    if let Some(experiment) = &arguments.experiment {
        reports.retain(|(_, path)| path.strip_prefix(&root).is_ok_and(|path| path.starts_with(experiment)));
    }
    reports.sort();
    let Some((_, newest)) = reports.last() else {
        let of = arguments.experiment.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        bail!("no report{of} in {}; `cargo xtask experiment quickstart` writes one", root.display());
    };
    if arguments.experiment.is_none() {
        println!("all:    {}", index(&root, &reports)?.display());
    }
    println!("newest: {}", newest.display());
    if arguments.open {
        open(newest)?;
    }
    Ok(())
}

/// Writes the page that lists all reports, newest first.
fn index(root: &Path, reports: &[(SystemTime, PathBuf)]) -> Result<PathBuf> {
    let mut entries = Vec::new();
    for (_, report) in reports.iter().rev() {
        match ResultFile::read(&report.with_file_name("run.json")) {
            Ok(result) => {
                let relative = report.strip_prefix(root).unwrap_or(report);
                entries.push((relative.to_string_lossy().replace('\\', "/"), result));
            }
            Err(error) => eprintln!("left out: {error}"),
        }
    }
    let path = root.join("index.html");
    std::fs::write(&path, report::index(&entries)?).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn open(page: &Path) -> Result<()> {
    let mut command = match std::env::consts::OS {
        "macos" => Command::new("open"),
        "windows" => {
            let mut command = Command::new("cmd");
            command.args(["/C", "start", ""]);
            command
        }
        _ => Command::new("xdg-open"),
    };
    command.arg(page).stdin(Stdio::null()).status().context("no program to open it with")?;
    Ok(())
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<(SystemTime, PathBuf)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            collect(&entry.path(), depth - 1, found);
        } else if entry.file_name() == "report.html" {
            let modified = entry.metadata().and_then(|file| file.modified());
            found.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
        }
    }
}
