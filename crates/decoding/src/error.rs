use pilotfish_model::ModelError;

use crate::Drawn;

/// Result of decoding.
pub type Result<T, E = DecodingError> = std::result::Result<T, E>;

/// What can go wrong while decoding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodingError {
    /// No prompt: there is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt that leaves no room for a token.
    #[error("a prompt of {prompt} tokens does not fit a context of {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the model.
        context: usize,
    },
    /// A drafter whose tree does not begin with the last committed token.
    #[error("the drafter's tree begins with {got}, the last token is {want}")]
    WrongRoot {
        /// What it begins with.
        got: u32,
        /// What it should begin with.
        want: u32,
    },
    /// A verifier that is not exact, or not made, for a drafter's draws.
    #[error(
        "{verifier} cannot verify the drafts of {drafter}, which are drawn {drawn}; see pilotfish_decoding::lossless"
    )]
    Mismatch {
        /// The verifier.
        verifier: &'static str,
        /// The drafter.
        drafter: String,
        /// How it draws.
        drawn: Drawn,
    },
    /// A draft drawn in another way than its drafter declares.
    #[error("{drafter} declares drafts drawn {want} and proposed one drawn {got}")]
    WrongDraw {
        /// The drafter.
        drafter: String,
        /// How the draft says it was drawn.
        got: Drawn,
        /// How the drafter says it draws.
        want: Drawn,
    },
    /// A node with children whose law is missing or covers another vocabulary.
    #[error("node {node} of the draft: {}, want one over {want} tokens", got.map_or("no law".into(), |got| format!("a law over {got} tokens")))]
    NoLaw {
        /// The node.
        node: usize,
        /// Tokens of the law that is there.
        got: Option<usize>,
        /// Tokens of the target's vocabulary.
        want: usize,
    },
    /// A node with several children, where a chain is needed.
    #[error("a node of the draft has {children} children; this rule is for chains")]
    NotAChain {
        /// Children.
        children: usize,
    },
    /// A drafter that left the target's cache other than it found it.
    #[error("{drafter} left {got} rows in the target's cache, there were {want}")]
    CacheTouched {
        /// The drafter.
        drafter: String,
        /// Rows left.
        got: usize,
        /// Rows there were.
        want: usize,
    },
    /// A verifier whose path is none: its nodes do not follow each other from the root.
    #[error("{verifier} kept node {node}, which does not follow {parent}")]
    BadVerdict {
        /// The verifier.
        verifier: &'static str,
        /// The node.
        node: usize,
        /// The node it should be a child of.
        parent: usize,
    },
    /// A drafter and a target of different vocabularies.
    #[error("{drafter} drafts over {got} tokens, the target has {want}")]
    Vocabulary {
        /// The drafter.
        drafter: String,
        /// Its tokens.
        got: usize,
        /// The target's tokens.
        want: usize,
    },
    /// A node of a growing draft whose parent the draft model has not run.
    #[error("node {node} of a draft was to be run before its parent")]
    NotRun {
        /// The node.
        node: usize,
    },
    /// A head that was to be taken from the embedding table of a model that has another.
    #[error("the head of {model} is not its embedding table")]
    NotTied {
        /// The model.
        model: String,
    },
    /// A file of learnt state that is spoilt, or of something else.
    #[error("{path}: {why}")]
    State {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of learnt state that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A parameter outside its range.
    #[error("{name} = {value}: {want}")]
    BadParameter {
        /// Parameter.
        name: &'static str,
        /// Value.
        value: usize,
        /// What is allowed.
        want: &'static str,
    },
    /// A drafter or verifier of another crate failed.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}
