use crate::Shape;

/// Result of building, transforming, reading or writing a graph.
pub type Result<T, E = GraphError> = std::result::Result<T, E>;

/// What can go wrong with graphs and weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Operands whose shapes or types do not fit the operation.
    #[error("{op}: {why} (operands {shapes})")]
    Shape {
        /// Operation.
        op: &'static str,
        /// Shapes of the operands.
        shapes: ShapeList,
        /// What does not fit.
        why: String,
    },
    /// A name that is not there.
    #[error("no {kind} named {name}; there are {known}")]
    NoSuchName {
        /// Kind of thing.
        kind: &'static str,
        /// Name asked for.
        name: String,
        /// Names that exist, shortened.
        known: String,
    },
    /// A name given twice.
    #[error("two {kind}s named {name}")]
    DuplicateName {
        /// Kind of thing.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A tensor of another shape or length than the graph or file says.
    #[error("tensor {name}: {why}")]
    Tensor {
        /// Tensor name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A file that is not what it should be.
    #[error("{path}: {why}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong, and where.
        why: String,
    },
    /// A node of an ONNX file that cannot be read.
    #[error("{path}: node {node} ({op} of {domain}): {why}")]
    OnnxNode {
        /// The file.
        path: String,
        /// The node's name, or its number.
        node: String,
        /// Its operator.
        op: String,
        /// The operator's domain; `ai.onnx` for the official ones.
        domain: String,
        /// What is wrong.
        why: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A request that cannot be met.
    #[error("{what}: {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not.
        why: String,
    },
}

impl GraphError {
    /// An error of the operating system about a file.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().display().to_string(), source }
    }

    /// A file that is not what it should be.
    pub fn malformed(path: impl AsRef<std::path::Path>, why: impl Into<String>) -> Self {
        Self::Malformed { path: path.as_ref().display().to_string(), why: why.into() }
    }
}

/// Shapes in an error message.
#[derive(Debug, Clone)]
pub struct ShapeList(pub Vec<Shape>);

impl std::fmt::Display for ShapeList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, shape) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{shape}")?;
        }
        Ok(())
    }
}
