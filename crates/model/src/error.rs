use crate::{Capability, Tap};

/// Result of a model call.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// What can go wrong when a model is asked for something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A step without rows.
    #[error("a step needs at least one row")]
    EmptyStep,
    /// A token id outside the vocabulary.
    #[error("token {token} at row {row} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// Row within the call.
        row: usize,
        /// The id.
        token: u32,
        /// Vocabulary size.
        vocab: usize,
    },
    /// A row whose parent does not come before it.
    #[error("row {row} names parent {parent}, which does not come before it")]
    BadParent {
        /// Absolute row (cache length + index within the step).
        row: usize,
        /// The parent it named.
        parent: usize,
    },
    /// A list of another length than expected.
    #[error("{what}: got {got}, want {want}")]
    Length {
        /// What was counted.
        what: &'static str,
        /// Count found.
        got: usize,
        /// Count expected.
        want: usize,
    },
    /// A row index that does not exist.
    #[error("{what}: row {row} does not exist ({len} rows)")]
    NoSuchRow {
        /// Which operation.
        what: &'static str,
        /// The row.
        row: usize,
        /// How many there are.
        len: usize,
    },
    /// Rows to keep must ascend and bring their parents along.
    #[error("cannot keep row {row}: {why}")]
    BadKeep {
        /// The row.
        row: usize,
        /// Reason.
        why: &'static str,
    },
    /// A step on top of rows that a step without some sub-layers left.
    #[error("rows from {from} on were made without some sub-layers: forget them before a step with others")]
    PartialRows {
        /// The first such row.
        from: usize,
    },
    /// The sequence would grow past the model's context.
    #[error("position {position} is past the model's context of {context}")]
    ContextFull {
        /// Position that was asked for.
        position: usize,
        /// Context length.
        context: usize,
    },
    /// A capability this model (or this export of it) does not have.
    #[error("model {model} cannot {capability}; {hint}")]
    Unsupported {
        /// Model name.
        model: String,
        /// What was needed.
        capability: Capability,
        /// Which export or option provides it.
        hint: String,
    },
    /// A tap that this export does not expose.
    #[error("model {model} does not expose tap {tap}; {hint}")]
    NoSuchTap {
        /// Model name.
        model: String,
        /// The tap.
        tap: Tap,
        /// Which export or option provides it.
        hint: String,
    },
    /// Logits or activations that are not numbers.
    #[error("{what} at row {row} are not finite")]
    NotFinite {
        /// What was looked at.
        what: &'static str,
        /// Row within the call.
        row: usize,
    },
    /// A parameter outside its range.
    #[error("{name} = {value}: {want}")]
    BadParameter {
        /// Parameter.
        name: &'static str,
        /// Value given.
        value: f64,
        /// What is allowed.
        want: &'static str,
    },
    /// The backend failed.
    #[error("backend: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ModelError {
    /// Wraps an error of the backend.
    pub fn backend(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Backend(error.into())
    }
}
