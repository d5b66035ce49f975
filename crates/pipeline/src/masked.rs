//! Masked models of ONNX Runtime for decoders that cache blocks: two crates that do not know of each other.

use std::ops::Range;

use pilotfish_diffusion::BlockCache;
use pilotfish_model::{Logits, MaskedBatch, MaskedModel, MaskedOutput, ModelInfo, Result, Token};
use pilotfish_runtime::OnnxMasked;

/// A masked model on ONNX Runtime as [`Diffusion::cached`](pilotfish_diffusion::Diffusion::cached) takes it.
#[derive(Debug)]
pub struct Cached(
    /// The model.
    pub OnnxMasked,
);

impl MaskedModel for Cached {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn mask(&self) -> Token {
        self.0.mask()
    }

    fn forward(&mut self, batch: &MaskedBatch<'_>) -> Result<MaskedOutput> {
        self.0.forward(batch)
    }
}

impl BlockCache for Cached {
    fn build(&mut self, tokens: &[Token], positions: &[usize]) -> Result<Logits> {
        self.0.build(tokens, positions)
    }

    fn update(
        &mut self,
        texts: &[&[Token]],
        rows: Range<usize>,
        positions: &[&[usize]],
    ) -> Result<Vec<Logits>> {
        self.0.update(texts, rows, positions)
    }
}
