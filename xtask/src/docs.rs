//! `docs`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use pilotfish_pipeline::book;
use pilotfish_runtime::home::Home;

use crate::cargo::{cargo, run as start};

/// The mdBook that is installed where none is found.
const MDBOOK: &str = "0.5.0";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing; fail when a generated page is stale or a link leads nowhere
    #[arg(long)]
    check: bool,
    /// Open the book in the browser
    #[arg(long, conflicts_with = "check")]
    open: bool,
}

pub(crate) fn check() -> Result<()> {
    book::check(&crate::root())?;
    println!("the book's generated pages are up to date and its links resolve");
    Ok(())
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check {
        return check();
    }
    let root = crate::root();
    for page in book::write(&root)? {
        println!("wrote {}", page.display());
    }
    book::links(&root)?;
    let mut doc = cargo();
    start(doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    let mut build = Command::new(mdbook()?);
    build.arg("build").arg(root.join("docs"));
    if arguments.open {
        build.arg("--open");
    }
    start(&mut build)?;
    println!("book: {}", root.join("docs/book/build/index.html").display());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    println!("API:  {}", target.join("doc/pilotfish/index.html").display());
    Ok(())
}

/// The mdBook program: on the path, in the cache folder, or installed there now.
fn mdbook() -> Result<PathBuf> {
    let works = |program: &PathBuf| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let name = format!("mdbook{}", std::env::consts::EXE_SUFFIX);
    let tools = Home::locate()?.tools();
    let installed = tools.join("bin").join(&name);
    if let Some(found) = [PathBuf::from(name), installed.clone()].into_iter().find(works) {
        return Ok(found);
    }
    eprintln!("mdBook is not installed; building version {MDBOOK} into {} (a few minutes)", tools.display());
    let mut install = cargo();
    install.args(["install", "mdbook", "--locked", "--version", &format!("={MDBOOK}"), "--root"]).arg(&tools);
    start(&mut install)
        .context("mdBook could not be installed; install it yourself with `cargo install mdbook`")?;
    Ok(installed)
}
