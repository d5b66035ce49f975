use pilotfish_model::{CausalModel, RowSet, Step, Token};

use crate::Result;

/// How two outputs for one prompt compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Identity {
    /// Token for token the same.
    Identical,
    /// They part at a token.
    Diverges {
        /// Index of the first difference within the output.
        at: usize,
        /// How far the plain model's largest logit lay above its second there. Two machines, or two row
        /// counts on one, may differ in rounding; a divergence is a near tie only where this is tiny.
        margin: f32,
    },
}

/// Compares an output with the plain one. On a difference, the model's margin there is computed afresh.
pub fn compare(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    plain: &[Token],
    other: &[Token],
) -> Result<Identity> {
    if plain == other {
        return Ok(Identity::Identical);
    }
    let at = plain.iter().zip(other).position(|(a, b)| a != b).unwrap_or(plain.len().min(other.len()));
    let text: Vec<Token> = prompt.iter().chain(&plain[..at]).copied().collect();
    model.truncate(0)?;
    let mut margin = f32::NAN;
    for (index, rows) in text.chunks(512).enumerate() {
        let last = (index + 1) * 512 >= text.len();
        let want = if last { RowSet::Last } else { RowSet::None };
        let answer = model.step(&Step::chain(rows).want(want))?;
        if last {
            margin = answer.logits.margin(0).unwrap_or(f32::NAN);
        }
    }
    Ok(Identity::Diverges { at, margin })
}
