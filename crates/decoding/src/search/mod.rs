//! Texts of high probability instead of drawn ones: beams, exact modes, and both under a condition.
//!
//! | to find | use |
//! |---|---|
//! | the likeliest texts, nearly | [`beam`] |
//! | the likeliest text with an attribute, nearly | [`conditional_beam`] with a [`PrefixClassifier`] |
//! | the likeliest text, exactly; the likeliest of each length | [`mode`], [`mode_of_length`], [`modes_by_length`] |
//! | when the likeliest text of a good model is bad | [`degeneracy`] |
//!
//! A text ends with an end token of the model, whose probabilities are added up; its tokens do not include it.
//! Hypotheses are branches of one tree in the model's cache. Scores are sums of natural logarithms in f64, from
//! logits in f32.

mod beam;
pub mod degeneracy;
mod exact;

pub use beam::{Always, BeamConfig, Length, PrefixClassifier, beam, conditional_beam};
pub use exact::{Mode, Modes, SearchLimits, mode, mode_of_length, modes_by_length};

use pilotfish_model::{CausalModel, Logits, ModelError, RowSet, Step, Token};
use serde::{Deserialize, Serialize};

use crate::{DecodingError, Result};

/// A finished text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Its tokens, without the end.
    pub tokens: Vec<Token>,
    /// The logarithm of its probability, the end included.
    pub log_prob: f64,
    /// What it was ranked by.
    pub rank: f64,
}

/// Log-probabilities of a row, with all end tokens in the place of the first; the others get `-inf`.
fn log_probs(logits: &Logits, row: usize, end: &[Token]) -> Result<Vec<f64>> {
    let missing = ModelError::NoSuchRow { what: "search", row, len: logits.rows() };
    let values = logits.row(row).ok_or(missing)?;
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if values.iter().any(|x| x.is_nan() || *x == f32::INFINITY) || max == f32::NEG_INFINITY {
        return Err(ModelError::NotFinite { what: "logits", row }.into());
    }
    let sum: f64 = values.iter().map(|&x| f64::from(x - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    let mut logs: Vec<f64> = values.iter().map(|&x| f64::from(x) - norm).collect();
    let mut ends = 0.0;
    for &token in end {
        if let Some(log) = logs.get_mut(token as usize) {
            ends += std::mem::replace(log, f64::NEG_INFINITY).exp();
        }
    }
    if let Some(first) = end.first().and_then(|&token| logs.get_mut(token as usize)) {
        *first = ends.ln();
    }
    Ok(logs)
}

/// Checks what every search needs, reads the prompt, and gives the law of the first token.
fn begin(model: &mut dyn CausalModel, prompt: &[Token], end: &[Token], tokens: usize) -> Result<Vec<f64>> {
    let info = model.info();
    if prompt.is_empty() {
        return Err(DecodingError::EmptyPrompt);
    }
    if prompt.len().saturating_add(tokens) > info.context {
        return Err(DecodingError::PromptTooLong { prompt: prompt.len(), context: info.context });
    }
    let vocab = info.vocab;
    if end.is_empty() {
        return Err(DecodingError::BadParameter { name: "end tokens", value: 0, want: "at least 1" });
    }
    if let Some(&token) = end.iter().find(|&&token| token as usize >= vocab) {
        return Err(ModelError::TokenOutOfRange { row: 0, token, vocab }.into());
    }
    model.truncate(0)?;
    let mut last = Logits::none(vocab);
    for (index, chunk) in prompt.chunks(512).enumerate() {
        let want = if (index + 1) * 512 >= prompt.len() { RowSet::Last } else { RowSet::None };
        last = model.step(&Step::chain(chunk).want(want))?.logits;
    }
    log_probs(&last, 0, end)
}
