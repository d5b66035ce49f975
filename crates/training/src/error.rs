use pilotfish_graph::GraphError;

/// Result of evaluating or training a graph.
pub type Result<T, E = TrainingError> = std::result::Result<T, E>;

/// What can go wrong while evaluating or training a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// An input that was not given, or a name that means nothing.
    #[error("no {kind} named {name}")]
    NoSuchName {
        /// Kind of thing.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// An array whose length is not the product of its dimensions, or whose shape is not what the graph says.
    #[error("{name}: shape {got:?}, wanted {want}")]
    Shape {
        /// Input or parameter.
        name: String,
        /// Shape given.
        got: Vec<usize>,
        /// Shape wanted.
        want: String,
    },
    /// An input of the wrong kind of numbers.
    #[error("{name}: {got} numbers, wanted {want}")]
    Kind {
        /// Input.
        name: String,
        /// Kind given.
        got: &'static str,
        /// Kind wanted.
        want: &'static str,
    },
    /// A dimension that the inputs' shapes do not determine.
    #[error("{name}: its dimension {dim} does not follow from the shapes of the inputs")]
    Unbound {
        /// Input or operation.
        name: String,
        /// Dimension.
        dim: String,
    },
    /// Threads that cannot be started.
    #[error("threads cannot be started: {0}")]
    Threads(String),
    /// Numbers that an operation cannot take, such as an index beyond the end.
    #[error("{op}: {why}")]
    Operand {
        /// Operation.
        op: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A parameter that cannot be trained as it is stored.
    #[error("parameter {name} is stored as {storage} and cannot be trained; store it as f32 first")]
    NotTrainable {
        /// Parameter.
        name: String,
        /// Its storage.
        storage: String,
    },
    /// An operation that the interpreter does not have.
    #[error("operation {op} is not supported: {why}")]
    Unsupported {
        /// Operation.
        op: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// A setting outside its range.
    #[error("{name} = {value}: {want}")]
    BadParameter {
        /// Setting.
        name: &'static str,
        /// Value.
        value: f64,
        /// What is allowed.
        want: &'static str,
    },
    /// A loss or a gradient that is not a finite number; nothing was changed.
    #[error("step {step}: the {what} is {value}")]
    NotFinite {
        /// Step, from 0.
        step: u64,
        /// Loss, or norm of the gradients.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A checkpoint of a run that differs in something.
    #[error("{path}: a checkpoint of another run: it differs in {what}")]
    OtherRun {
        /// The file.
        path: String,
        /// What differs.
        what: String,
    },
    /// A checkpoint that is not whole.
    #[error("{path}: {why}")]
    Checkpoint {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A graph problem.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Candle refused.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
}
