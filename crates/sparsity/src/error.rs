use pilotfish_graph::GraphError;

/// Result of pruning, gating or measuring.
pub type Result<T, E = SparsityError> = std::result::Result<T, E>;

/// What can go wrong with sparse models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SparsityError {
    /// A parameter outside its range.
    #[error("{name} = {value}: {want}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        want: &'static str,
    },
    /// A name that means nothing.
    #[error(
        "no {kind} called {name:?}{}; there are: {known}",
        near.as_ref().map(|near| format!(" (did you mean {near}?)")).unwrap_or_default()
    )]
    Unknown {
        /// Kind of thing.
        kind: &'static str,
        /// The name given.
        name: String,
        /// The nearest name that exists.
        near: Option<String>,
        /// Names that exist, shortened.
        known: String,
    },
    /// Numbers of another count than their shape says.
    #[error("{what}: {got} numbers, wanted {want}")]
    Shape {
        /// What they are.
        what: String,
        /// How many there are.
        got: usize,
        /// How many there should be.
        want: usize,
    },
    /// A number that is not finite where it must be.
    #[error("{what}: entry {at} is {value}")]
    NotFinite {
        /// What it belongs to.
        what: String,
        /// Where it is.
        at: usize,
        /// The number.
        value: f64,
    },
    /// Statistics over no rows.
    #[error("{what}: no calibration rows")]
    NoRows {
        /// What they are statistics of.
        what: String,
    },
    /// A Hessian that has no Cholesky factor.
    #[error(
        "{what}: the damped Hessian of {inputs} inputs is not positive definite; raise the damping ({damping})"
    )]
    Singular {
        /// The layer.
        what: String,
        /// Its inputs.
        inputs: usize,
        /// The damping that was not enough.
        damping: f64,
    },
    /// A matrix that does not keep the pattern it is said to have.
    #[error("{what}: row {row}, group {group} has {kept} weights, its pattern keeps {keep}")]
    Violated {
        /// The layer.
        what: String,
        /// Row of the matrix.
        row: usize,
        /// Group in the row.
        group: usize,
        /// Non-zero weights found.
        kept: usize,
        /// Non-zero weights allowed.
        keep: usize,
    },
    /// A graph without the structure that a pass needs.
    #[error("{what}: {why}")]
    Structure {
        /// What was looked at.
        what: String,
        /// What is missing.
        why: String,
    },
    /// A file that is not what it should be.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A fit that did not succeed.
    #[error("fit of {law}: {why}")]
    Fit {
        /// The law.
        law: &'static str,
        /// What went wrong.
        why: String,
    },
    /// A graph or tensor problem.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Whatever runs the graphs refused.
    #[error("engine: {0}")]
    Engine(Box<dyn std::error::Error + Send + Sync>),
}

impl SparsityError {
    /// An error of the engine that runs graphs.
    pub fn engine(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Engine(error.into())
    }

    pub(crate) fn parameter(name: &'static str, value: impl ToString, want: &'static str) -> Self {
        Self::Parameter { name, value: value.to_string(), want }
    }

    pub(crate) fn unknown<'a>(
        kind: &'static str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let allowed = (name.chars().count() / 3).max(1);
        let near = known
            .iter()
            .map(|other| (strsim::damerau_levenshtein(name, other), *other))
            .filter(|(edits, _)| *edits <= allowed)
            .min()
            .map(|(_, other)| other.to_owned());
        let mut listed = known.iter().take(12).copied().collect::<Vec<_>>().join(", ");
        if known.len() > 12 {
            listed.push_str(&format!(" ... ({} in all)", known.len()));
        }
        Self::Unknown { kind, name: name.into(), near, known: listed }
    }
}

/// The first number that is not finite is an error.
pub(crate) fn finite(what: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(SparsityError::NotFinite { what: what.into(), at, value: f64::from(values[at]) }),
        None => Ok(()),
    }
}
