//! `report`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

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
    let mut folder = arguments.results.clone().unwrap_or_else(|| crate::root().join("results"));
    folder.extend(&arguments.experiment);
    let mut reports = Vec::new();
    collect(&folder, 4, &mut reports);
    let Some((_, newest)) = reports.into_iter().max() else {
        bail!("no report in {}; `cargo xtask experiment quickstart` writes one", folder.display());
    };
    println!("{}", newest.display());
    if arguments.open {
        let mut command = match std::env::consts::OS {
            "macos" => Command::new("open"),
            "windows" => {
                let mut command = Command::new("cmd");
                command.args(["/C", "start", ""]);
                command
            }
            _ => Command::new("xdg-open"),
        };
        command.arg(&newest).status().context("no program to open it with")?;
    }
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
