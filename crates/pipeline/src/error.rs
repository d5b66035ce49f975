use std::path::Path;

/// Result of the machinery around experiments.
pub type Result<T, E = PipelineError> = std::result::Result<T, E>;

/// What can go wrong around an experiment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A folder or file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A result or step file that is not what it should be.
    #[error("{path}: {why}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Another run holds the folder.
    #[error("{path}: another run is writing here; wait for it, or name another folder with --results")]
    Busy {
        /// The folder.
        path: String,
    },
    /// The user interrupted the run.
    #[error("interrupted; what was finished is kept in {path}: run the same command again to go on")]
    Interrupted {
        /// The folder.
        path: String,
    },
    /// A plot that cannot be drawn.
    #[error("plot {title}: {why}")]
    Plot {
        /// Its title.
        title: String,
        /// What is wrong.
        why: String,
    },
    /// A report that cannot be rendered.
    #[error("report: {0}")]
    Report(String),
    /// A file that would be replaced.
    #[error("{path} is there already; --force replaces it")]
    Exists {
        /// The file.
        path: String,
    },
    /// A choice that does not exist.
    #[error("no {option} called {value:?}; there are: {known}")]
    Choice {
        /// What is chosen.
        option: &'static str,
        /// The name given.
        value: String,
        /// The names there are.
        known: &'static str,
    },
    /// Operators that a network cannot be written in.
    #[error(
        "heads are {head_dim} wide, and ONNX Runtime's fused attention takes multiples of 16; choose the lowering \
         standard"
    )]
    NotFused {
        /// Width of a head.
        head_dim: usize,
    },
    /// A checkpoint that cannot be opened or built.
    #[error(transparent)]
    Architecture(Box<pilotfish_architectures::ArchitectureError>),
    /// A graph or file that cannot be read, transformed or written.
    #[error(transparent)]
    Graph(Box<pilotfish_graph::GraphError>),
    /// A step failed.
    #[error("step {id}: {source}")]
    Step {
        /// The step.
        id: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<pilotfish_architectures::ArchitectureError> for PipelineError {
    fn from(error: pilotfish_architectures::ArchitectureError) -> Self {
        Self::Architecture(Box::new(error))
    }
}

impl From<pilotfish_graph::GraphError> for PipelineError {
    fn from(error: pilotfish_graph::GraphError) -> Self {
        Self::Graph(Box::new(error))
    }
}

impl PipelineError {
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().display().to_string(), source }
    }

    pub(crate) fn malformed(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Self::Malformed { path: path.as_ref().display().to_string(), why: why.into() }
    }
}

/// Anything that goes wrong in a command or an experiment, where many things can.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Writes a file whole or not at all, with the permissions that any new file has here.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".part-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(|source| PipelineError::io(folder, source))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(|source| PipelineError::io(path, source))?;
    file.persist(path).map_err(|error| PipelineError::io(path, error.error))?;
    // The name lasts when its folder does. Not every file system can be asked.
    #[cfg(unix)]
    let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}
