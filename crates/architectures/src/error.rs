use pilotfish_graph::GraphError;

/// Result of reading a checkpoint or building its network.
pub type Result<T, E = ArchitectureError> = std::result::Result<T, E>;

/// What can go wrong with checkpoints, tokenisers and templates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchitectureError {
    /// An architecture that is not written here.
    #[error("{path}: architecture {found:?} is not supported; these are: {known}")]
    Unknown {
        /// The checkpoint.
        path: String,
        /// Its architecture.
        found: String,
        /// The supported ones.
        known: &'static str,
    },
    /// A configuration value that makes no network.
    #[error("configuration: {key} = {value}: {want}")]
    Config {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        want: &'static str,
    },
    /// A file that is not what it should be.
    #[error("{path}: {why}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A tokeniser that cannot be used.
    #[error("tokeniser: {0}")]
    Tokenizer(String),
    /// A chat template that cannot be rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// A graph or tensor problem.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl ArchitectureError {
    pub(crate) fn malformed(path: impl AsRef<std::path::Path>, why: impl Into<String>) -> Self {
        Self::Malformed { path: path.as_ref().display().to_string(), why: why.into() }
    }
}
