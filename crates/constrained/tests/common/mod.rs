//! What tests of constraints share.

use pilotfish_constrained::{Constraint, Mask, Vocabulary};
use pilotfish_model::Token;

/// The mask that testing every token by itself gives.
pub(crate) fn naive(constraint: &mut dyn Constraint, vocabulary: &Vocabulary) -> Mask {
    let mut mask = Mask::none(vocabulary.len());
    for token in 0..vocabulary.len() as Token {
        let allowed = match vocabulary.bytes(token) {
            Some(bytes) => constraint.prefix(bytes).unwrap(),
            None => vocabulary.is_end(token) && constraint.complete().unwrap(),
        };
        if allowed {
            mask.allow(token);
        }
    }
    mask
}
