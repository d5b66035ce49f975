use pilotfish_model::ModelError;

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
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}
