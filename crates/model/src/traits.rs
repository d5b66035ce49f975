use std::ops::Range;

use crate::{
    Capability, LogitForm, Logits, ModelError, ModelInfo, Result, Skip, Step, StepOutput, Tap, TapRows, Token,
};

/// Something with a cache of rows that steps can be appended to: a whole model, or a range of its layers.
pub trait Steps: Send {
    /// Rows in the cache.
    fn len(&self) -> usize;

    /// Whether the cache is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the rows of a step and answers for the rows wanted. On an error the cache is as before.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput>;

    /// Keeps rows `0..from` and the given rows (absolute, ascending, at least `from`), and forgets the rest.
    /// A kept row's parent must be kept. Rows are renumbered without gaps.
    fn keep(&mut self, from: usize, rows: &[usize]) -> Result<()>;

    /// Forgets all rows but the first `len`.
    fn truncate(&mut self, len: usize) -> Result<()>;
}

/// A model that gives the next token's logits for every row of its cache.
///
/// The optional calls fail with [`ModelError::Unsupported`] unless [`ModelInfo::capabilities`] lists them.
pub trait CausalModel: Steps {
    /// What is known about the model.
    fn info(&self) -> &ModelInfo;

    /// Embeddings of tokens as the body reads them, row-major `[ids, width]`.
    fn embed(&mut self, ids: &[Token]) -> Result<Vec<f32>> {
        let _ = ids;
        Err(unsupported(self.info(), Capability::Head))
    }

    /// Applies the final norm to rows of the residual stream after the last layer, `[rows, width]`.
    fn final_norm(&mut self, residual: &[f32]) -> Result<Vec<f32>> {
        let _ = residual;
        Err(unsupported(self.info(), Capability::Head))
    }

    /// Logits of rows of [`Tap::FinalNormed`] states, `[rows, width]`.
    fn head(&mut self, normed: &[f32], form: LogitForm) -> Result<Logits> {
        let _ = (normed, form);
        Err(unsupported(self.info(), Capability::Head))
    }

    /// A step that leaves out some sub-layers, at no cost for what is left out; the norms, the head and everything
    /// else are the whole model's. Its rows read those before them, which the whole model made, and join the cache.
    /// They serve only further steps that leave out the same: any other step fails with
    /// [`ModelError::PartialRows`], and they cannot be kept, until [`Steps::truncate`] has forgotten them.
    ///
    /// # Errors
    /// As [`Steps::step`]; a layer that does not exist; rows that lack other sub-layers.
    fn step_without(&mut self, step: &Step<'_>, skip: &Skip) -> Result<StepOutput> {
        let _ = (step, skip);
        Err(unsupported(self.info(), Capability::Skip))
    }

    /// The layers `layers.start..layers.end` with their own cache rows. Both ends must be listed in
    /// [`Capabilities::cuts`](crate::Capabilities::cuts). A range that starts at 0 takes ids or embeddings;
    /// any other takes the residual stream. Its taps are the model's taps that lie within it.
    ///
    /// A step over the whole model and steps over ranges that tile it leave the same cache.
    fn range(&mut self, layers: Range<usize>) -> Result<&mut dyn Steps> {
        let _ = layers;
        Err(unsupported(self.info(), Capability::Ranges))
    }
}

fn unsupported(info: &ModelInfo, capability: Capability) -> ModelError {
    match info.require(capability) {
        Err(error) => error,
        Ok(()) => ModelError::Unsupported {
            model: info.name.clone(),
            capability,
            hint: "it claims the capability but does not implement it".into(),
        },
    }
}

/// Sequences for a [`MaskedModel`].
#[derive(Clone, Copy, Debug)]
pub struct MaskedBatch<'a> {
    /// The sequences, masked positions holding [`MaskedModel::mask`]. They may differ in length.
    pub sequences: &'a [&'a [Token]],
    /// Positions to answer for, a list a sequence; `None` answers for every position.
    pub positions: Option<&'a [&'a [usize]]>,
    /// Form of the logits.
    pub form: LogitForm,
    /// Taps wanted, for every position of every sequence.
    pub taps: &'a [Tap],
}

/// The answer of a [`MaskedModel`].
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedOutput {
    /// One [`Logits`] a sequence: a row for each position asked for.
    pub logits: Vec<Logits>,
    /// One list of taps a sequence.
    pub taps: Vec<Vec<TapRows>>,
}

/// A bidirectional model that predicts the tokens at masked positions.
pub trait MaskedModel: Send {
    /// What is known about the model.
    fn info(&self) -> &ModelInfo;

    /// The mask token.
    fn mask(&self) -> Token;

    /// One forward pass over all sequences of the batch.
    fn forward(&mut self, batch: &MaskedBatch<'_>) -> Result<MaskedOutput>;
}

/// How the states of a sequence become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// What the checkpoint says.
    #[default]
    Checkpoint,
    /// The mean over positions, not normalised.
    Mean,
    /// The first position, not normalised.
    First,
    /// The last position, not normalised.
    Last,
}

/// A model that turns a sequence into a vector.
pub trait SequenceEncoder: Send {
    /// What is known about the model; `width` is the length of the vectors.
    fn info(&self) -> &ModelInfo;

    /// One vector a sequence.
    fn encode(&mut self, sequences: &[&[Token]], pooling: Pooling) -> Result<Vec<Vec<f32>>>;
}

/// What an [`EncoderDecoder`] reads.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Token ids.
    Ids(&'a [Token]),
    /// Feature frames, row-major `[frames, width]` (log-mel spectra, say).
    Features {
        /// `frames * width` numbers.
        values: &'a [f32],
        /// Numbers a frame.
        width: usize,
    },
}

/// A decoder that attends to an encoded source. Steps decode against the source encoded last.
pub trait EncoderDecoder: CausalModel {
    /// Encodes a source, replaces the one before, and empties the decoder's cache.
    /// Returns the number of encoder positions.
    fn encode(&mut self, source: Source<'_>) -> Result<usize>;
}
