use pilotfish_model::ModelError;

/// Result of an evaluation.
pub type Result<T, E = EvaluationError> = std::result::Result<T, E>;

/// What can go wrong while evaluating.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// Nothing to compare.
    #[error("there are no items")]
    Empty,
    /// Two lists that should describe the same items.
    #[error("{what}: {left} items on one side, {right} on the other")]
    Mismatch {
        /// What was paired.
        what: &'static str,
        /// Items of the first.
        left: usize,
        /// Items of the second.
        right: usize,
    },
    /// An item measured with one method alone.
    #[error("item {id:?} was measured with only one of the two methods")]
    Unpaired {
        /// Its identifier.
        id: String,
    },
    /// An item measured twice with one method.
    #[error("item {id:?} was measured twice with one method")]
    Twice {
        /// Its identifier.
        id: String,
    },
    /// A measurement that is not a finite number, or outside its range.
    #[error("item {index}: {value} cannot be compared")]
    BadValue {
        /// Item.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// A parameter outside its range.
    #[error("{name} = {value}: {want}")]
    BadParameter {
        /// Parameter.
        name: &'static str,
        /// Value.
        value: f64,
        /// What is allowed.
        want: &'static str,
    },
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A line of a prompt file that is not what it should be.
    #[error("{path}, line {line}: {why}")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}
