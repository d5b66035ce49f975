/// Result of weak supervision.
pub type Result<T, E = SupervisionError> = std::result::Result<T, E>;

/// What can go wrong with votes and label models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisionError {
    /// No items, no voters, or not a single vote.
    #[error("there are no {what}")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// Sizes that do not fit together.
    #[error("{what}: got {got}, want {want}")]
    Shape {
        /// What was measured.
        what: &'static str,
        /// Its size.
        got: usize,
        /// The size it should have.
        want: usize,
    },
    /// More than can be stored or computed.
    #[error("{what}: {got} is more than the {limit} that are allowed")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        got: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A vote for a class that does not exist.
    #[error("item {item}, voter {voter}: class {got} is outside 0..{classes}")]
    OutOfRange {
        /// The item.
        item: usize,
        /// The voter.
        voter: usize,
        /// The class named.
        got: i64,
        /// How many classes there are.
        classes: usize,
    },
    /// Two votes of one voter on one item.
    #[error("voter {voter:?} votes twice on item {item:?}")]
    Duplicate {
        /// Name of the item.
        item: String,
        /// Name of the voter.
        voter: String,
    },
    /// A name that occurs twice, or that nothing has.
    #[error("{what} {name:?} {why}")]
    Name {
        /// Item, voter or class.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A score that is not a finite number.
    #[error("item {item}, voter {voter}: {value} is not a score")]
    BadScore {
        /// The item.
        item: usize,
        /// The voter.
        voter: usize,
        /// The value.
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
    /// A number that is not finite.
    #[error("{what} at {index} is not finite")]
    NotFinite {
        /// What was looked at.
        what: &'static str,
        /// Where.
        index: usize,
    },
    /// Probabilities that are none.
    #[error("row {index} is not a distribution: its sum is {sum}, or something in it is negative")]
    NotDistribution {
        /// The row.
        index: usize,
        /// Its sum.
        sum: f64,
    },
    /// A language model failed.
    #[error(transparent)]
    LanguageModel(#[from] pilotfish_model::ModelError),
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A line of a text file that is not what it should be.
    #[error("{path}, line {line}: {why}")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
    /// A binary file that is not what it should be.
    #[error("{path}: {why}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A model that needs more voters than there are.
    #[error("{model} needs at least {want} voters, there are {got}")]
    TooFewVoters {
        /// The model.
        model: &'static str,
        /// Voters.
        got: usize,
        /// Voters needed.
        want: usize,
    },
    /// A model for two classes and votes over another number of them.
    #[error("{model} is for two classes, the votes have {classes}; fit one class against the rest")]
    NotBinary {
        /// The model.
        model: &'static str,
        /// Classes of the votes.
        classes: usize,
    },
    /// A model that needs every voter to vote on every item.
    #[error("{model} needs every vote, item {item} lacks that of voter {voter}")]
    Abstention {
        /// The model.
        model: &'static str,
        /// The item.
        item: usize,
        /// The voter.
        voter: usize,
    },
    /// Votes from which the model's parameters cannot be told.
    #[error("{model}: the votes do not determine the model: {why}")]
    Unidentifiable {
        /// The model.
        model: &'static str,
        /// Why not.
        why: String,
    },
    /// A database that failed.
    #[error("{what}: {why}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// What happened.
        why: String,
    },
    /// An optimiser that failed.
    #[error("{model}: {why}")]
    Solver {
        /// The model.
        model: &'static str,
        /// What happened.
        why: String,
    },
}
