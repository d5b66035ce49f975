use pilotfish_model::ModelError;

/// Result of masked diffusion decoding.
pub type Result<T, E = DiffusionError> = std::result::Result<T, E>;

/// What can go wrong while decoding by masked diffusion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffusionError {
    /// A model whose mask is not a token of its own.
    #[error("{model} has no mask token: {mask} is outside its vocabulary of {vocab}")]
    NoMask {
        /// The model.
        model: String,
        /// What it calls its mask.
        mask: u32,
        /// Size of its vocabulary.
        vocab: usize,
    },
    /// A region to decode that is not within its text.
    #[error("the region {start}..{end} is not within a text of {length} tokens")]
    Region {
        /// First position.
        start: usize,
        /// Position after the last.
        end: usize,
        /// Tokens of the text.
        length: usize,
    },
    /// A mask outside the region to decode, where it would stay for ever.
    #[error("position {position} is masked, but outside the region {start}..{end}")]
    StrayMask {
        /// The position.
        position: usize,
        /// First position of the region.
        start: usize,
        /// Position after its last.
        end: usize,
    },
    /// A text longer than the model's context.
    #[error("a text of {length} tokens does not fit a context of {context}")]
    TooLong {
        /// Tokens of the text, masks included.
        length: usize,
        /// Positions of the model.
        context: usize,
    },
    /// A policy that chose a position that is not a mask of the active block.
    #[error("{policy} chose position {position}, which is no mask of the block {start}..{end}")]
    BadChoice {
        /// The policy.
        policy: String,
        /// The position.
        position: usize,
        /// First position of the block.
        start: usize,
        /// Position after its last.
        end: usize,
    },
    /// Logits of which none is finite, or that are not numbers.
    #[error("no token can be chosen at position {position}: its logits are not numbers, or all suppressed")]
    NoToken {
        /// The position.
        position: usize,
    },
    /// A model that answered with other rows than it was asked for.
    #[error("{model} answered with {got} rows, {want} were asked for")]
    Rows {
        /// The model.
        model: String,
        /// Rows it gave.
        got: usize,
        /// Rows asked for.
        want: usize,
    },
    /// A setting that needs another one.
    #[error("{what} needs {needs}")]
    Needs {
        /// The setting.
        what: &'static str,
        /// What it needs.
        needs: &'static str,
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
    /// Lists whose lengths do not agree.
    #[error("{what}: got {got}, want {want}")]
    Length {
        /// What was counted.
        what: &'static str,
        /// Count found.
        got: usize,
        /// Count expected.
        want: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Refuses a parameter.
pub(crate) fn refuse<T>(name: &'static str, value: f64, want: &'static str) -> Result<T> {
    Err(DiffusionError::BadParameter { name, value, want })
}

/// A probability, or refused.
pub(crate) fn probability(name: &'static str, value: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&value) {
        return refuse(name, value, "from 0 to 1");
    }
    Ok(())
}
