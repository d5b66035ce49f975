//! Where the ONNX Runtime library, models and data sets lie.
//!
//! One folder holds everything that is downloaded: `PILOTFISH_HOME` when it is set, else the platform's cache
//! folder. This module only looks; `cargo xtask setup` fills it.
//!
//! | folder | holds |
//! |---|---|
//! | `onnxruntime/<version>/` | the shared library for processors |
//! | `onnxruntime/<version>-cuda/` | the shared library that can also use CUDA |
//! | `models/<name>/` | one model |
//! | `data/<name>/` | one data set |
//! | `tools/` | programs that building the docs needs, and Python packages that tests compare with |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The version of ONNX Runtime that setup installs and that results are measured with.
pub const ONNXRUNTIME_VERSION: &str = "1.32.0";

/// The environment variable that names the home folder.
pub const HOME_VARIABLE: &str = "PILOTFISH_HOME";

/// The environment variable that names an ONNX Runtime library and goes before everything else.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// A thing that is not where it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// Neither `PILOTFISH_HOME` nor the platform says where caches go.
    #[error("no folder for caches: set {HOME_VARIABLE} to a folder that may be written ({tried} is not set)")]
    NoHome {
        /// The variables that were looked at.
        tried: &'static str,
    },
    /// `ORT_DYLIB_PATH` names something that is not a file.
    #[error("{LIBRARY_VARIABLE} names {}, which is not a file; correct it or unset it", path.display())]
    BadLibraryVariable {
        /// The value of the variable.
        path: PathBuf,
    },
    /// No ONNX Runtime library.
    #[error(
        "no ONNX Runtime {ONNXRUNTIME_VERSION} library in {}; `cargo xtask setup` installs one, {LIBRARY_VARIABLE} \
         names another",
        folder.display()
    )]
    NoLibrary {
        /// The folder searched.
        folder: PathBuf,
    },
    /// A model or data set that was not fetched.
    #[error("no {kind} {name:?} in {}; `cargo xtask models fetch {name}` fetches it", folder.display())]
    NotFetched {
        /// `model` or `data set`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The folder searched.
        folder: PathBuf,
    },
    /// A name that cannot be a folder's.
    #[error("{name:?} is not a name: use letters, digits, `-`, `_` and `.`, not starting with `.`")]
    BadName {
        /// The name.
        name: String,
    },
}

/// The folder that holds everything downloaded.
///
/// ```
/// use pilotfish_runtime::home::Home;
/// let home = Home::at("/var/cache/pilotfish");
/// assert!(home.model("../etc").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// `PILOTFISH_HOME`, else the platform's cache folder: `$XDG_CACHE_HOME/pilotfish` or
    /// `~/.cache/pilotfish`, on macOS `~/Library/Caches/pilotfish`, on Windows `%LOCALAPPDATA%\pilotfish`.
    /// The folder need not exist.
    ///
    /// # Errors
    /// None of these variables is set.
    pub fn locate() -> Result<Self, HomeError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// A home in this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn from_variables(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, HomeError> {
        let folder = |name: &str| get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(root) = folder(HOME_VARIABLE) {
            // Child processes run in other folders, so a relative path is resolved once, here.
            return Ok(Self::at(std::path::absolute(&root).unwrap_or(root)));
        }
        let (cache, tried) = if cfg!(windows) {
            (folder("LOCALAPPDATA"), "LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            (folder("HOME").map(|home| home.join("Library/Caches")), "HOME")
        } else {
            // The XDG rules ask to ignore relative paths.
            let xdg = folder("XDG_CACHE_HOME").filter(|path| path.is_absolute());
            (xdg.or_else(|| folder("HOME").map(|home| home.join(".cache"))), "HOME")
        };
        cache.map(|cache| Self::at(cache.join("pilotfish"))).ok_or(HomeError::NoHome { tried })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the ONNX Runtime library of [`ONNXRUNTIME_VERSION`], with CUDA or without.
    pub fn onnxruntime(&self, cuda: bool) -> PathBuf {
        let suffix = if cuda { "-cuda" } else { "" };
        self.root.join("onnxruntime").join(format!("{ONNXRUNTIME_VERSION}{suffix}"))
    }

    /// The ONNX Runtime library: `ORT_DYLIB_PATH`, else the one that setup installed. A build with the
    /// feature `cuda` prefers the library that has CUDA.
    ///
    /// # Errors
    /// `ORT_DYLIB_PATH` is set and names no file; or there is no library.
    pub fn library(&self) -> Result<PathBuf, HomeError> {
        match std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()) {
            Some(path) if Path::new(&path).is_file() => Ok(path.into()),
            Some(path) => Err(HomeError::BadLibraryVariable { path: path.into() }),
            None => self.installed_library(),
        }
    }

    /// As [`Home::library`], without `ORT_DYLIB_PATH`.
    ///
    /// # Errors
    /// Setup has not installed a library.
    pub fn installed_library(&self) -> Result<PathBuf, HomeError> {
        let prefer_cuda = cfg!(feature = "cuda");
        let folders = [self.onnxruntime(prefer_cuda), self.onnxruntime(!prefer_cuda)];
        folders
            .iter()
            .find_map(|folder| library_in(folder))
            .ok_or_else(|| HomeError::NoLibrary { folder: self.onnxruntime(false) })
    }

    /// The folder of all models.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The folder of one model that was fetched.
    ///
    /// # Errors
    /// It was not fetched, or the name could not be a folder's.
    pub fn model(&self, name: &str) -> Result<PathBuf, HomeError> {
        fetched("model", name, self.models())
    }

    /// The folder of all data sets.
    pub fn data_sets(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The folder of one data set that was fetched.
    ///
    /// # Errors
    /// It was not fetched, or the name could not be a folder's.
    pub fn data(&self, name: &str) -> Result<PathBuf, HomeError> {
        fetched("data set", name, self.data_sets())
    }

    /// The folder of programs that building the docs needs, and of Python packages that tests compare with.
    pub fn tools(&self) -> PathBuf {
        self.root.join("tools")
    }
}

fn fetched(kind: &'static str, name: &str, within: PathBuf) -> Result<PathBuf, HomeError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(HomeError::BadName { name: name.into() });
    }
    let folder = within.join(name);
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(HomeError::NotFetched { kind, name: name.into(), folder: within }),
    }
}

/// The ONNX Runtime library in a folder, whatever the platform calls it.
pub fn library_in(folder: &Path) -> Option<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(is_library) && path.is_file()
        })
        .collect();
    found.sort();
    found.pop()
}

/// Whether a file name is that of the ONNX Runtime library itself, not of a provider beside it.
pub fn is_library(name: &str) -> bool {
    name == "onnxruntime.dll"
        || name.starts_with("libonnxruntime.so")
        || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Home, HomeError> {
        Home::from_variables(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_variable_goes_before_the_platform() {
        let absolute = if cfg!(windows) { "C:\\p" } else { "/p" };
        let home = with(&[(HOME_VARIABLE, absolute), ("HOME", "/h"), ("LOCALAPPDATA", "/h")]).unwrap();
        assert_eq!(home.root(), Path::new(absolute));
    }

    #[test]
    fn a_relative_variable_becomes_absolute() {
        assert!(with(&[(HOME_VARIABLE, "here")]).unwrap().root().is_absolute());
    }

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn the_platform_folder_follows_the_xdg_rules() {
        let root = |pairs: &[(&str, &str)]| with(pairs).unwrap().root().to_owned();
        assert_eq!(root(&[("HOME", "/h")]), Path::new("/h/.cache/pilotfish"));
        assert_eq!(root(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Path::new("/c/pilotfish"));
        assert_eq!(root(&[("HOME", "/h"), ("XDG_CACHE_HOME", "c")]), Path::new("/h/.cache/pilotfish"));
        assert_eq!(root(&[("HOME", "/h"), (HOME_VARIABLE, "")]), Path::new("/h/.cache/pilotfish"));
    }

    #[test]
    fn nothing_set_is_an_error_that_says_what_to_set() {
        let error = with(&[]).unwrap_err().to_string();
        assert!(error.contains(HOME_VARIABLE), "{error}");
    }

    #[test]
    fn an_empty_home_names_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let error = home.installed_library().unwrap_err();
        assert_eq!(error, HomeError::NoLibrary { folder: home.onnxruntime(false) });
        assert!(error.to_string().contains("cargo xtask setup"));
        let error = home.model("smollm2-135m").unwrap_err().to_string();
        assert!(error.contains("cargo xtask models fetch smollm2-135m"), "{error}");
    }

    #[test]
    fn the_library_is_told_from_its_providers() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir_all(home.onnxruntime(false)).unwrap();
        std::fs::write(home.onnxruntime(false).join("libonnxruntime_providers_shared.so"), b"").unwrap();
        assert!(home.installed_library().is_err());
        let library = home.onnxruntime(false).join("libonnxruntime.so.1.32.0");
        std::fs::write(&library, b"").unwrap();
        assert_eq!(home.installed_library(), Ok(library));
        assert!(is_library("libonnxruntime.1.32.0.dylib") && is_library("onnxruntime.dll"));
        assert!(
            !is_library("libonnxruntime_providers_cuda.so")
                && !is_library("onnxruntime_providers_shared.dll")
        );
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        let home = Home::at("/p");
        for name in ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "a\0b", ".hidden"] {
            assert_eq!(home.model(name), Err(HomeError::BadName { name: name.into() }));
        }
    }
}
