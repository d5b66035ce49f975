use pilotfish_architectures::ArchitectureError;
use pilotfish_graph::GraphError;
use pilotfish_model::ModelError;

/// Result of a runtime call.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// What can go wrong between a checkpoint and a running model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// ONNX Runtime's shared library cannot be used.
    #[error(
        "ONNX Runtime library {path}: {why}; `cargo xtask setup` installs one, ORT_DYLIB_PATH names another"
    )]
    Library {
        /// The library tried.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// No place for caches, or nothing in it.
    #[error(transparent)]
    Home(#[from] crate::home::HomeError),
    /// A device name that means nothing.
    #[error("no device called {0:?}; there are cpu, cuda:N and auto")]
    UnknownDevice(String),
    /// A device that was asked for by name and is not there.
    #[error("device {device} is not available: {why}")]
    NoDevice {
        /// The device.
        device: String,
        /// Why not.
        why: String,
    },
    /// An option outside its range.
    #[error("option {option} = {value}: {want}")]
    Option {
        /// The option.
        option: &'static str,
        /// Value given.
        value: String,
        /// What is allowed.
        want: &'static str,
    },
    /// An ONNX file whose inputs or outputs are not what a model of its kind has.
    #[error("{path}: {why}")]
    Contract {
        /// The file.
        path: String,
        /// What is missing or of the wrong type.
        why: String,
    },
    /// An input or output of an ONNX file that is not what a model of its kind has.
    #[error("{path}: {tensor} is {got}; want {want}")]
    Tensor {
        /// The file.
        path: String,
        /// The input or output.
        tensor: String,
        /// What it is.
        got: String,
        /// What it should be.
        want: String,
    },
    /// A file that uses operators which the session was not given.
    #[error(
        "{path}: it uses operators of the domain {domain:?}, which {provider} has; put its set among \
         SessionConfig::operators"
    )]
    NoOperators {
        /// The file.
        path: String,
        /// The domain.
        domain: String,
        /// The crate that has them, as the file says.
        provider: String,
    },
    /// Operators that ONNX Runtime does not take.
    #[error("operators {domain:?} of {provider}: {why}")]
    Operators {
        /// The domain.
        domain: String,
        /// The crate that has them.
        provider: String,
        /// What is wrong.
        why: String,
    },
    /// A folder or file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A graph that cannot be built, written or read.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A checkpoint that cannot be understood.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// A change of a graph that failed.
    #[error("{name}: {why}")]
    Pass {
        /// The change.
        name: String,
        /// What went wrong.
        why: String,
    },
    /// ONNX Runtime refused.
    #[error("ONNX Runtime: {0}")]
    Ort(String),
}

impl RuntimeError {
    pub(crate) fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().display().to_string(), source }
    }
}

impl<R> From<ort::Error<R>> for RuntimeError {
    fn from(error: ort::Error<R>) -> Self {
        Self::Ort(error.message().trim().to_owned())
    }
}

impl From<RuntimeError> for ModelError {
    fn from(error: RuntimeError) -> Self {
        Self::backend(error)
    }
}

/// An error of ONNX Runtime during a model call.
pub(crate) fn backend<R>(error: ort::Error<R>) -> ModelError {
    RuntimeError::from(error).into()
}
