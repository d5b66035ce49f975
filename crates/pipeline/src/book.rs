//! The book: pages written from the register and from committed results, and a check of every link.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::error::PipelineError;
use crate::register::{PAGE, Register, RegisterError};
use crate::report;
use crate::results::ResultFile;

/// Committed results, one folder an experiment, relative to the workspace.
pub const RESULTS: &str = "docs/results";
/// Pages made from them.
pub const EXPERIMENTS: &str = "docs/src/experiments";
/// The book's table of contents.
pub const SUMMARY: &str = "docs/src/SUMMARY.md";

const BEGIN: &str = "<!-- experiments: written by `cargo xtask docs` -->";
const END: &str = "<!-- /experiments -->";

/// What is wrong with the book.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The register is wrong.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A committed result is wrong.
    #[error(transparent)]
    Result(#[from] PipelineError),
    /// The table of contents lacks the place where experiments go.
    #[error("{SUMMARY} has no lines `{BEGIN}` and `{END}`, between which the experiments are listed")]
    NoMarkers,
    /// Pages that are not what they would be if they were written now.
    #[error("stale pages: {}; run `cargo xtask docs` and commit them", pages.join(", "))]
    Stale {
        /// The pages.
        pages: Vec<String>,
    },
    /// Links that lead nowhere.
    #[error("broken links:\n  {}", links.join("\n  "))]
    Links {
        /// Page, link, and why.
        links: Vec<String>,
    },
}

type Result<T, E = BookError> = std::result::Result<T, E>;

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| BookError::Io { path: path.display().to_string(), source })
}

/// Every page that is written from something else, with its text, by path relative to the workspace.
///
/// # Errors
/// A source cannot be read.
pub fn generated(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::from([(PathBuf::from(PAGE), Register::open(root)?.page())]);
    let mut list = String::new();
    for (name, text) in result_pages(root)? {
        let title = text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or(&name).to_owned();
        list.push_str(&format!("  - [{title}](experiments/{name}.md)\n"));
        pages.insert(Path::new(EXPERIMENTS).join(format!("{name}.md")), text);
    }
    let summary = read(&root.join(SUMMARY))?;
    let (before, rest) = summary.split_once(BEGIN).ok_or(BookError::NoMarkers)?;
    let (_, after) = rest.split_once(END).ok_or(BookError::NoMarkers)?;
    pages.insert(SUMMARY.into(), format!("{before}{BEGIN}\n{list}{END}{after}"));
    Ok(pages)
}

/// A page for every folder of committed results that holds a `run.json`.
fn result_pages(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut pages = BTreeMap::new();
    for entry in std::fs::read_dir(root.join(RESULTS)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let run = entry.path().join("run.json");
        if run.is_file() {
            let result = ResultFile::read(&run)?;
            let text = format!(
                "# {}\n\n<!-- Written by `cargo xtask docs` from {RESULTS}/{name}/run.json. -->\n\n{}",
                result.title,
                report::markdown(&result)?
            );
            pages.insert(name, text);
        }
    }
    Ok(pages)
}

/// Writes the pages that are stale, and returns them.
///
/// # Errors
/// A source cannot be read or a page cannot be written.
pub fn write(root: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for (page, text) in generated(root)? {
        let path = root.join(&page);
        if !same(&path, &text) {
            let fail = |source| BookError::Io { path: path.display().to_string(), source };
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(fail)?;
            }
            std::fs::write(&path, text).map_err(fail)?;
            written.push(page);
        }
    }
    Ok(written)
}

/// Whether a file holds this text; line ends may differ, as checkouts differ.
fn same(path: &Path, text: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|there| there.replace("\r\n", "\n") == *text)
}

/// Checks that generated pages are as they would be written now, and that every link leads somewhere.
///
/// # Errors
/// Stale pages, pages whose source is gone, or broken links.
pub fn check(root: &Path) -> Result<()> {
    let pages = generated(root)?;
    let mut stale: Vec<String> = pages
        .iter()
        .filter(|(page, text)| !same(&root.join(page), text))
        .map(|(page, _)| page.display().to_string())
        .collect();
    for entry in std::fs::read_dir(root.join(EXPERIMENTS)).into_iter().flatten().flatten() {
        let page = Path::new(EXPERIMENTS).join(entry.file_name());
        if !pages.contains_key(&page) {
            stale.push(format!("{} (its result is gone: delete it)", page.display()));
        }
    }
    if !stale.is_empty() {
        return Err(BookError::Stale { pages: stale });
    }
    links(root)
}

/// Checks every link of the book, the README and the changelog to a file of the workspace.
///
/// # Errors
/// Links that lead nowhere, all at once.
pub fn links(root: &Path) -> Result<()> {
    let source = root.join("docs/src");
    let mut files = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    markdown_files(&source, &mut files);
    let mut pages = HashMap::new();
    for file in files {
        let page = Page::read(&expand(&file, &read(&file)?)?);
        pages.insert(file, page);
    }
    let listed: HashSet<PathBuf> = pages
        .get(&source.join("SUMMARY.md"))
        .map(|summary| summary.links.iter().map(|link| normal(&source.join(link))).collect())
        .unwrap_or_default();
    let mut broken = Vec::new();
    for (file, page) in &pages {
        let shown = file.strip_prefix(root).unwrap_or(file).display();
        for link in &page.links {
            if let Some(why) = wrong(root, file, page, link, &pages, &listed) {
                broken.push(format!("{shown}: {link} ({why})"));
            }
        }
    }
    broken.sort();
    match broken.is_empty() {
        true => Ok(()),
        false => Err(BookError::Links { links: broken }),
    }
}

/// What is wrong with one link, if anything.
fn wrong(
    root: &Path,
    file: &Path,
    page: &Page,
    link: &str,
    pages: &HashMap<PathBuf, Page>,
    listed: &HashSet<PathBuf>,
) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
    if path.is_empty() {
        return (!page.headings.contains(fragment)).then(|| "no such heading".into());
    }
    let target = normal(&file.parent()?.join(path));
    if !target.starts_with(normal(root)) {
        return Some("it leaves the workspace".into());
    }
    if !target.exists() {
        return Some("no such file".into());
    }
    let source = root.join("docs/src");
    let in_book = |path: &Path| path.starts_with(&source) && path.extension().is_some_and(|ext| ext == "md");
    if in_book(file) && in_book(&target) && !target.ends_with("SUMMARY.md") && !listed.contains(&target) {
        return Some("the page is not in SUMMARY.md, so it is not in the book".into());
    }
    let missing =
        !fragment.is_empty() && pages.get(&target).is_some_and(|page| !page.headings.contains(fragment));
    missing.then(|| "no such heading".into())
}

fn markdown_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            markdown_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// A path without `.` and `..`, which need not exist.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// Replaces lines `{{#include path}}` by what they name, as mdBook does.
fn expand(file: &Path, text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let include = line.trim().strip_prefix("{{#include ").and_then(|rest| rest.strip_suffix("}}"));
        match (include, file.parent()) {
            (Some(path), Some(folder)) => out.push_str(&read(&folder.join(path.trim()))?),
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    Ok(out)
}

/// The links and headings of a page.
struct Page {
    links: Vec<String>,
    headings: HashSet<String>,
}

impl Page {
    fn read(text: &str) -> Self {
        let mut page = Self { links: Vec::new(), headings: HashSet::new() };
        let mut heading: Option<String> = None;
        for event in Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    page.headings.extend(heading.take().map(|text| slug(&text)));
                }
                _ => {}
            }
        }
        page
    }
}

/// The anchor of a heading.
fn slug(heading: &str) -> String {
    let keep = |c: char| match c {
        c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c.to_ascii_lowercase()),
        c if c.is_whitespace() => Some('-'),
        _ => None,
    };
    heading.trim().chars().filter_map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let methods =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../methods.toml")).unwrap();
        let summary = format!("# Summary\n- [A](a.md)\n- [Methods](methods.md)\n{BEGIN}\n{END}\n");
        let base = [
            ("methods.toml", methods.as_str()),
            (SUMMARY, &summary),
            ("docs/src/a.md", "# A page\n"),
            ("README.md", "[book](docs/src/a.md#a-page)"),
            ("CHANGELOG.md", "# Changelog"),
        ];
        for (path, text) in base.iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn pages_are_written_once_and_found_stale() {
        let root = workspace(&[]);
        let error = check(root.path()).unwrap_err().to_string();
        assert!(error.contains("methods.md") && error.contains("cargo xtask docs"), "{error}");
        assert_eq!(write(root.path()).unwrap(), [PathBuf::from(PAGE)]);
        assert!(write(root.path()).unwrap().is_empty());
        check(root.path()).unwrap();
        std::fs::write(root.path().join(PAGE), "# Methods\nedited").unwrap();
        assert!(matches!(check(root.path()), Err(BookError::Stale { .. })));
    }

    #[test]
    fn committed_results_become_pages_and_go_with_their_results() {
        let result =
            ResultFile { title: "Quick start".into(), summary: "It runs.".into(), ..ResultFile::default() };
        let run = serde_json::to_string(&result).unwrap();
        let root = workspace(&[
            ("docs/results/quickstart/run.json", &run),
            ("docs/results/halfway/report.md", "# No run"),
        ]);
        write(root.path()).unwrap();
        check(root.path()).unwrap();
        let summary = read(&root.path().join(SUMMARY)).unwrap();
        assert!(summary.contains("  - [Quick start](experiments/quickstart.md)\n"), "{summary}");
        assert!(!summary.contains("halfway"));
        let page = read(&root.path().join(EXPERIMENTS).join("quickstart.md")).unwrap();
        assert!(page.starts_with("# Quick start\n") && page.contains("It runs."), "{page}");
        std::fs::write(root.path().join("docs/results/quickstart/run.json"), &run[..run.len() / 2]).unwrap();
        assert!(matches!(check(root.path()), Err(BookError::Result(_))));
        std::fs::remove_dir_all(root.path().join("docs/results/quickstart")).unwrap();
        let error = check(root.path()).unwrap_err().to_string();
        assert!(error.contains("quickstart.md (its result is gone"), "{error}");
    }

    #[test]
    fn links_that_lead_nowhere_are_all_listed() {
        let text = "# B\n[1](none.md) [2](a.md#no) [3](#no) [4](../../../../etc/passwd) [5](c.md)\n\
            [ok](a.md#a-page) [ok](#b) [ok](https://x.y) `[code](no.md)`\n\n```\n[code](no.md)\n```\n";
        let root = workspace(&[("docs/src/b.md", text), ("docs/src/c.md", ""), (PAGE, "")]);
        let BookError::Links { links } = links(root.path()).unwrap_err() else { panic!() };
        let whys =
            ["leaves the workspace", "no such heading", "no such file", "no such heading", "not in SUMMARY"];
        assert_eq!(links.len(), whys.len(), "{links:?}");
        for why in whys {
            assert!(links.iter().any(|link| link.contains(why)), "{why}: {links:?}");
        }
    }

    #[test]
    fn included_text_is_checked_where_it_is_shown() {
        let root = workspace(&[("docs/src/b.md", "{{#include ../c.md}}\n"), ("docs/c.md", "[x](none.md)")]);
        assert!(links(root.path()).unwrap_err().to_string().contains("none.md"));
        std::fs::remove_file(root.path().join("docs/c.md")).unwrap();
        assert!(matches!(links(root.path()), Err(BookError::Io { .. })));
    }

    #[test]
    fn a_summary_without_its_place_for_experiments_says_so() {
        let root = workspace(&[(SUMMARY, "# Summary\n")]);
        assert!(matches!(generated(root.path()), Err(BookError::NoMarkers)));
    }

    #[test]
    fn anchors_are_mdbooks() {
        assert_eq!(slug("What `setup` does, and why"), "what-setup-does-and-why");
        assert_eq!(slug("t(w)/t(1)"), "twt1");
    }
}
