//! The register of methods: what is planned, what is done, and the tests and results that say so.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

/// Number of methods the register must have.
pub const METHODS: usize = 36;

/// The register file, relative to the workspace.
pub const REGISTER: &str = "methods.toml";

/// The page made from it, relative to the workspace.
pub const PAGE: &str = "docs/src/methods.md";

/// How far a method is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not begun, or not finished.
    Planned,
    /// It runs, but rests on guesses where the paper could not be read.
    Reconstructed,
    /// It runs and its oracles are pinned by tests.
    Done,
}

/// A paper.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Title.
    pub title: String,
    /// Identifier on arXiv.
    pub arxiv: String,
}

/// One method.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Short name, unique.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// How far it is.
    pub status: Status,
    /// Folder of the crate it lives in.
    #[serde(rename = "crate")]
    pub home: String,
    /// Its paper.
    pub paper: Paper,
    /// The paper note it is built from.
    pub note: String,
    /// What that note rests on.
    pub basis: String,
    /// The methods within it, where one entry stands for several.
    #[serde(default)]
    pub parts: Vec<String>,
    /// Tests that pin its oracles, as `path/to/file.rs::function`.
    pub tests: Vec<String>,
    /// Its experiment, or empty.
    pub experiment: String,
    /// Its committed result file, or empty.
    pub result: String,
    /// Where it departs from the paper or the reference code.
    pub deviations: Vec<String>,
}

/// The register.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// All methods.
    pub method: Vec<Method>,
}

/// What is wrong with the register.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// It is not a register.
    #[error("{REGISTER}: {0}")]
    Syntax(#[from] toml::de::Error),
    /// Entries that are wrong, one line each.
    #[error("{REGISTER}: {}", problems.join("\n  "))]
    Entries {
        /// What is wrong.
        problems: Vec<String>,
    },
}

impl Register {
    /// Reads the register of a workspace.
    ///
    /// # Errors
    /// It cannot be read, or is not a register.
    pub fn open(root: &Path) -> Result<Self, RegisterError> {
        let path = root.join(REGISTER);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| RegisterError::Io { path: path.display().to_string(), source })?;
        Self::parse(&text)
    }

    /// Reads a register from text.
    ///
    /// # Errors
    /// It is not a register.
    pub fn parse(text: &str) -> Result<Self, RegisterError> {
        Ok(toml::from_str(text)?)
    }

    /// Checks every entry against the workspace in `root`: what an entry names must exist, and one that says it
    /// is done must name tests and an experiment.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn check(&self, root: &Path, experiments: &[&str]) -> Result<(), RegisterError> {
        let mut problems = Vec::new();
        if self.method.len() != METHODS {
            problems.push(format!("{} methods; there should be {METHODS}", self.method.len()));
        }
        let mut ids = HashSet::new();
        for method in &self.method {
            let mut problem = |what: String| problems.push(format!("{}: {what}", method.id));
            if !ids.insert(&method.id) {
                problem("the id is there twice".into());
            }
            for (field, text) in [
                ("id", &method.id),
                ("name", &method.name),
                ("crate", &method.home),
                ("paper title", &method.paper.title),
                ("note", &method.note),
            ] {
                if text.trim().is_empty() {
                    problem(format!("its {field} is empty"));
                }
            }
            if !is_arxiv(&method.paper.arxiv) {
                problem(format!("{:?} is not an arXiv identifier", method.paper.arxiv));
            }
            for test in &method.tests {
                if let Err(why) = test_exists(root, test) {
                    problem(format!("test {test:?}: {why}"));
                }
            }
            if !method.experiment.is_empty() && !experiments.contains(&method.experiment.as_str()) {
                problem(format!("there is no experiment {:?}", method.experiment));
            }
            if !method.result.is_empty() && !root.join(&method.result).is_file() {
                problem(format!("there is no result file {:?}", method.result));
            }
            if method.status != Status::Planned {
                if !root.join(&method.home).join("Cargo.toml").is_file() {
                    problem(format!("there is no crate {:?}", method.home));
                }
                for (field, missing) in [
                    ("tests", method.tests.is_empty()),
                    ("experiment", method.experiment.is_empty()),
                    ("result", method.result.is_empty()),
                ] {
                    if missing {
                        problem(format!("it says {:?} and names no {field}", method.status));
                    }
                }
            }
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(RegisterError::Entries { problems }),
        }
    }

    /// The page of the book.
    pub fn page(&self) -> String {
        let count = |status| self.method.iter().filter(|method| method.status == status).count();
        let mut text = format!(
            "# Methods\n\n<!-- Written by `cargo xtask methods` from methods.toml. -->\n\n\
             {} methods: {} done, {} reconstructed, {} planned. *Reconstructed* means that it runs, but rests on \
             guesses where the paper could not be read. The last column says what was read.\n\n\
             | method | status | paper | crate | rests on |\n|---|---|---|---|---|\n",
            self.method.len(),
            count(Status::Done),
            count(Status::Reconstructed),
            count(Status::Planned),
        );
        for method in &self.method {
            let status = match method.status {
                Status::Planned => "planned",
                Status::Reconstructed => "reconstructed",
                Status::Done => "done",
            };
            text.push_str(&format!(
                "| {} | {status} | [{}](https://arxiv.org/abs/{}) | `{}` | {} |\n",
                cell(&method.name),
                cell(&method.paper.title),
                method.paper.arxiv,
                method.home,
                cell(&method.basis),
            ));
        }
        for method in self.method.iter().filter(|method| !method.parts.is_empty()) {
            text.push_str(&format!("\n**{}** stands for {} methods:\n\n", method.name, method.parts.len()));
            text.extend(method.parts.iter().map(|part| format!("- {part}\n")));
        }
        for method in &self.method {
            let named = !method.experiment.is_empty() || !method.tests.is_empty();
            if !named && method.deviations.is_empty() {
                continue;
            }
            text.push_str(&format!("\n## {}\n\n", method.name));
            if !method.experiment.is_empty() {
                text.push_str(&format!("- run it: `cargo xtask experiment {}`\n", method.experiment));
            }
            if !method.result.is_empty() {
                text.push_str(&format!("- result: `{}`\n", method.result));
            }
            text.extend(method.tests.iter().map(|test| format!("- pinned by `{test}`\n")));
            text.extend(method.deviations.iter().map(|deviation| format!("- departs: {deviation}\n")));
        }
        text
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn is_arxiv(id: &str) -> bool {
    let digits = |part: &str, allowed: &[usize]| {
        allowed.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    id.split_once('.').is_some_and(|(month, number)| digits(month, &[4]) && digits(number, &[4, 5]))
}

/// Whether `path/to/file.rs::function` names a test that is there.
fn test_exists(root: &Path, test: &str) -> Result<(), String> {
    let (file, function) = test.split_once("::").ok_or("write it as path/to/file.rs::function")?;
    let text = std::fs::read_to_string(root.join(file)).map_err(|error| error.to_string())?;
    let function = function.rsplit("::").next().unwrap_or(function);
    let declared = |line: &str| {
        line.split_once("fn ").is_some_and(|(_, rest)| {
            rest.strip_prefix(function).is_some_and(|rest| rest.starts_with(['(', '<']))
        })
    };
    match text.lines().any(declared) {
        true => Ok(()),
        false => Err(format!("no function {function} in {file}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn register() -> Register {
        Register::open(&workspace()).unwrap()
    }

    /// The problems that a change to the first entry makes.
    fn problems(change: impl FnOnce(&mut Register)) -> String {
        let mut register = register();
        change(&mut register);
        register.check(&workspace(), &names()).unwrap_err().to_string()
    }

    fn names() -> Vec<&'static str> {
        crate::experiments::ALL.iter().map(|experiment| experiment.name).collect()
    }

    #[test]
    fn the_register_of_this_project_is_sound() {
        register().check(&workspace(), &names()).unwrap();
    }

    #[test]
    fn a_missing_or_doubled_entry_is_found() {
        assert!(problems(|r| drop(r.method.pop())).contains("35 methods; there should be 36"));
        assert!(problems(|r| r.method[1].id = "aded".into()).contains("aded: the id is there twice"));
        assert!(problems(|r| r.method.clear()).contains("0 methods"));
    }

    #[test]
    fn an_entry_that_says_done_must_prove_it() {
        let text = problems(|r| {
            let method = &mut r.method[0];
            method.tests.clear();
            method.experiment.clear();
            method.result.clear();
            method.status = Status::Done;
        });
        for part in ["names no tests", "names no experiment", "names no result"] {
            assert!(text.contains(part), "{text}");
        }
        let text = problems(|r| {
            r.method[0].status = Status::Reconstructed;
            r.method[0].home = "crates/nowhere".into();
        });
        assert!(text.contains("no crate \"crates/nowhere\""), "{text}");
    }

    #[test]
    fn what_an_entry_names_must_exist() {
        let here = "crates/pipeline/src/register.rs";
        let test = |name: &str| problems(|r| r.method[0].tests = vec![name.into(), "wrong".into()]);
        let text = test(&format!("{here}::what_an_entry_names_must_exist"));
        assert!(!text.contains("no function") && text.contains("write it as"), "{text}");
        assert!(test(&format!("{here}::what_an_entry")).contains("no function what_an_entry in"));
        assert!(test("crates/no.rs::x").contains("crates/no.rs"));
        assert!(problems(|r| r.method[0].experiment = "quick".into()).contains("no experiment \"quick\""));
        assert!(problems(|r| r.method[0].result = "no/run.json".into()).contains("no/run.json"));
        assert!(problems(|r| r.method[0].paper.arxiv = "24071.202".into()).contains("not an arXiv"));
        assert!(problems(|r| r.method[0].note.clear()).contains("its note is empty"));
    }

    #[test]
    fn wrong_files_are_refused() {
        for text in ["", "method = 3", "[[method]]\nid = \"x\"", "\0", "[[method]"] {
            assert!(matches!(Register::parse(text), Err(RegisterError::Syntax(_))), "{text:?}");
        }
        let good = std::fs::read_to_string(workspace().join(REGISTER)).unwrap();
        let misspelt = good.replacen("deviations", "deviation", 2);
        assert!(Register::parse(&misspelt).is_err());
        assert!(Register::parse(&good.replacen("\"planned\"", "\"finished\"", 1)).is_err());
    }

    #[test]
    fn the_page_has_a_row_for_every_method() {
        let page = register().page();
        assert_eq!(page.lines().filter(|line| line.contains("https://arxiv.org/abs/")).count(), METHODS);
        assert!(page.contains("stands for 4 methods"));
    }
}
