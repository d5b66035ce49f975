//! A head for part of the vocabulary: where a drafter computes logits only to pick a few likely tokens, most rows of
//! the head are read for nothing.

use pilotfish_model::{CausalModel, LogitForm, ModelInfo, Token};

use crate::{DecodingError, Result};

/// Rows of a head for some tokens; all others have a probability of 0.
///
/// As a draft's head it changes what is proposed and how fast, never what comes out: a law that is 0 for most
/// tokens is as good a law to draw from as any, and the target's other tokens come out of the residual.
///
/// A head of SmolLM2-135M is 49152 x 576, a fifth of a step's weights; with the 8192 tokens that are most frequent in
/// the texts at hand it is a sixth of that (arXiv 2502.14856, "FR-Spec", does the same for a trained draft head).
#[derive(Clone, Debug, PartialEq)]
pub struct ReducedHead {
    vocab: usize,
    width: usize,
    ids: Vec<Token>,
    /// Row-major `[ids, width]`.
    rows: Vec<f32>,
}

impl ReducedHead {
    /// A head from rows `[ids, width]` of a matrix.
    ///
    /// # Errors
    /// No tokens, tokens that do not ascend or lie outside the vocabulary, another number of rows, a row that is not
    /// finite.
    pub fn new(vocab: usize, width: usize, ids: Vec<Token>, rows: Vec<f32>) -> Result<Self> {
        let ascend = ids.windows(2).all(|pair| pair[0] < pair[1]);
        if ids.is_empty() || !ascend || ids.last().is_some_and(|&last| last as usize >= vocab) {
            let want = "at least one, ascending, inside the vocabulary";
            return Err(DecodingError::BadParameter { name: "tokens of a head", value: ids.len(), want });
        }
        if width == 0 || rows.len() != ids.len() * width || rows.iter().any(|x| !x.is_finite()) {
            let want = "width above 0, finite rows of that width for every token";
            return Err(DecodingError::BadParameter { name: "rows of a head", value: rows.len(), want });
        }
        Ok(Self { vocab, width, ids, rows })
    }

    /// The head of a model whose head is its embedding table, for these tokens. Its first two rows are held against
    /// the model's own head, so that a model whose tables are not tied (or are scaled) is refused.
    ///
    /// # Errors
    /// A model that cannot embed or run its head apart, or is not tied; as [`ReducedHead::new`].
    pub fn tied(model: &mut dyn CausalModel, mut ids: Vec<Token>) -> Result<Self> {
        ids.sort_unstable();
        ids.dedup();
        let rows = model.embed(&ids)?;
        let (vocab, width) = (model.info().vocab, model.info().width);
        let head = Self::new(vocab, width, ids, rows)?;
        let probe: Vec<f32> = (0..width).map(|i| (i as f32 * 0.7).sin()).collect();
        let whole = model.head(&probe, LogitForm::Full)?;
        let whole = whole.row(0).unwrap_or_default();
        let own = head.logits(&probe);
        for &id in head.ids.iter().take(64) {
            let (a, b) = (own[id as usize], whole.get(id as usize).copied().unwrap_or(f32::NAN));
            // A quantised head differs from its table by some per cent of a typical logit.
            if !((a - b).abs() <= 0.1 * (1.0 + b.abs().max(norm(&probe) * norm(head.row(id))))) {
                return Err(DecodingError::NotTied { model: model.info().name.clone() });
            }
        }
        Ok(head)
    }

    fn row(&self, id: Token) -> &[f32] {
        match self.ids.binary_search(&id) {
            Ok(at) => &self.rows[at * self.width..(at + 1) * self.width],
            Err(_) => &[],
        }
    }

    pub(crate) fn check(&self, info: &ModelInfo) -> Result<()> {
        if self.width != info.width || self.vocab != info.vocab {
            let (name, value) = ("width of a head", self.width);
            return Err(DecodingError::BadParameter {
                name,
                value,
                want: "the model's width and vocabulary",
            });
        }
        Ok(())
    }

    /// The tokens that have a row, ascending.
    pub fn tokens(&self) -> &[Token] {
        &self.ids
    }

    /// Bytes that one row of logits reads.
    pub fn bytes(&self) -> u64 {
        4 * self.rows.len() as u64
    }

    /// Logits of a final-normed state over the whole vocabulary; `-inf` where there is no row.
    pub fn logits(&self, state: &[f32]) -> Vec<f32> {
        let mut all = vec![f32::NEG_INFINITY; self.vocab];
        for (&id, row) in self.ids.iter().zip(self.rows.chunks_exact(self.width)) {
            all[id as usize] = dot(row, state);
        }
        all
    }
}

fn norm(x: &[f32]) -> f32 {
    dot(x, x).sqrt()
}

/// In lanes, so that the compiler makes vector code of it.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_by_hand() {
        let head = ReducedHead::new(4, 2, vec![1, 3], vec![1.0, 2.0, -1.0, 0.5]).expect("valid");
        assert_eq!(head.logits(&[2.0, 4.0]), [f32::NEG_INFINITY, 10.0, f32::NEG_INFINITY, 0.0]);
        assert_eq!(head.bytes(), 16);
        let bad = |ids: &[Token], rows: &[f32]| ReducedHead::new(4, 2, ids.to_vec(), rows.to_vec()).is_err();
        assert!(bad(&[], &[]) && bad(&[3, 1], &[0.0; 4]) && bad(&[4], &[0.0; 2]) && bad(&[1], &[0.0; 3]));
        assert!(bad(&[1], &[f32::NAN, 0.0]));
        let long: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&long, &long), (0..37).map(|i| (i * i) as f32).sum::<f32>());
    }
}
