use pilotfish_model::ModelError;

/// Result of constrained generation.
pub type Result<T, E = ConstrainedError> = std::result::Result<T, E>;

/// What can go wrong under a constraint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstrainedError {
    /// A grammar, schema or expression that cannot be used.
    #[error("{kind}: {why}")]
    Grammar {
        /// What it was given as.
        kind: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A text on which a grammar needs more work than its limits allow.
    #[error("the grammar needs more than its limits allow after {bytes} bytes: {why}")]
    TooComplex {
        /// Bytes of the text so far.
        bytes: usize,
        /// Which limit.
        why: String,
    },
    /// A vocabulary that does not fit the model.
    #[error("the vocabulary lists {got} tokens, the model has {want}")]
    Vocabulary {
        /// Tokens listed.
        got: usize,
        /// The model's tokens.
        want: usize,
    },
    /// An end token outside the vocabulary, or none at all.
    #[error("end tokens {end:?} in a vocabulary of {vocab}: at least one, all inside, are needed")]
    End {
        /// The end tokens.
        end: Vec<u32>,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// No prompt: there is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt and a limit of new tokens that do not fit the model's context.
    #[error("a prompt of {prompt} and {tokens} new tokens do not fit a context of {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens at most.
        tokens: usize,
        /// Positions of the model.
        context: usize,
    },
    /// No token continues a text that the constraint's prefix test had accepted.
    #[error("no token of the vocabulary continues the text, {tokens} tokens in")]
    DeadEnd {
        /// Tokens so far.
        tokens: usize,
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
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}
