use std::ops::Range;

use pilotfish_model::{MaskedModel, Token};

use crate::{DiffusionError, Result};

/// A text with masks, and the region of it that is to be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canvas {
    /// Tokens; the model's mask where something is to be decoded.
    pub tokens: Vec<Token>,
    /// Positions that blocks are cut from. No mask may lie outside.
    pub region: Range<usize>,
}

impl Canvas {
    /// A prompt and `length` masks after it.
    pub fn after(prompt: &[Token], length: usize, mask: Token) -> Self {
        let mut tokens = prompt.to_vec();
        tokens.resize(prompt.len() + length, mask);
        Self { region: prompt.len()..tokens.len(), tokens }
    }

    /// A text with masks anywhere: the region reaches from the first to the last of them.
    pub fn infill(tokens: &[Token], mask: Token) -> Self {
        let start = tokens.iter().position(|&token| token == mask).unwrap_or(tokens.len());
        let end = tokens.iter().rposition(|&token| token == mask).map_or(start, |last| last + 1);
        Self { tokens: tokens.to_vec(), region: start..end }
    }

    /// Checks the canvas against a model.
    ///
    /// # Errors
    /// A model without a mask; a token outside its vocabulary; a text longer than its context; a region outside
    /// the text; a mask outside the region.
    pub fn check(&self, model: &dyn MaskedModel) -> Result<()> {
        let (info, mask) = (model.info(), model.mask());
        if mask as usize >= info.vocab {
            let model = info.name.clone();
            return Err(DiffusionError::NoMask { model, mask, vocab: info.vocab });
        }
        let length = self.tokens.len();
        let Range { start, end } = self.region;
        if start > end || end > length {
            return Err(DiffusionError::Region { start, end, length });
        }
        if length > info.context {
            return Err(DiffusionError::TooLong { length, context: info.context });
        }
        for (position, &token) in self.tokens.iter().enumerate() {
            if token as usize >= info.vocab {
                let model =
                    pilotfish_model::ModelError::TokenOutOfRange { row: position, token, vocab: info.vocab };
                return Err(model.into());
            }
            if token == mask && !self.region.contains(&position) {
                return Err(DiffusionError::StrayMask { position, start, end });
            }
        }
        Ok(())
    }
}
