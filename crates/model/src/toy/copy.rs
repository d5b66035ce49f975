use super::{Tape, causal_by_tape};
use crate::{EncoderDecoder, ModelError, ModelInfo, Pooling, Result, SequenceEncoder, Source, Steps, Token};

/// Counts: `t` is followed by `t + 1` (and the last token by 0), nearly for sure. A drafter that is off by one
/// anywhere cannot reach the maximal number of tokens a round on it.
#[derive(Clone, Debug)]
pub struct CountingModel {
    tape: Tape,
    law: Counting,
}

#[derive(Clone, Debug)]
struct Counting {
    vocab: usize,
}

impl Counting {
    fn logits(&self, path: &[Token]) -> Vec<f32> {
        let next = path.last().map_or(0, |&token| (token as usize + 1) % self.vocab);
        (0..self.vocab).map(|id| if id == next { 10.0 } else { 0.0 }).collect()
    }
}

impl CountingModel {
    /// A model that counts modulo `vocab`.
    pub fn new(vocab: usize) -> Self {
        let vocab = vocab.max(1);
        let tape = Tape::new(format!("counting modulo {vocab}"), vocab, 1 << 20, Vec::new());
        Self { tape, law: Counting { vocab } }
    }

    /// Steps so far.
    pub fn calls(&self) -> usize {
        self.tape.calls
    }
}

causal_by_tape!(CountingModel);

/// An encoder-decoder that copies its source and then says its last token, which ends a text.
#[derive(Clone, Debug)]
pub struct CopyModel {
    tape: Tape,
    law: Copying,
}

#[derive(Clone, Debug)]
struct Copying {
    vocab: usize,
    source: Vec<Token>,
}

impl Copying {
    /// The first row of a text is a start token; after `n` rows the `n`-th token of the source is due.
    fn logits(&self, path: &[Token]) -> Vec<f32> {
        let end = self.vocab as Token - 1;
        let due = self.source.get(path.len() - 1).copied().unwrap_or(end);
        (0..self.vocab as Token).map(|id| if id == due { 10.0 } else { 0.0 }).collect()
    }
}

impl CopyModel {
    /// A model over `vocab` tokens, the last of which ends a text.
    pub fn new(vocab: usize) -> Self {
        let vocab = vocab.max(2);
        let tape = Tape::new("copy".into(), vocab, 1 << 20, vec![vocab as Token - 1]);
        Self { tape, law: Copying { vocab, source: Vec::new() } }
    }
}

causal_by_tape!(CopyModel);

impl EncoderDecoder for CopyModel {
    fn encode(&mut self, source: Source<'_>) -> Result<usize> {
        let Source::Ids(ids) = source else {
            return Err(ModelError::Unsupported {
                model: self.tape.info.name.clone(),
                capability: crate::Capability::Embeddings,
                hint: "it copies token ids".into(),
            });
        };
        crate::step::check_ids(ids, self.law.vocab)?;
        self.law.source = ids.to_vec();
        self.truncate(0)?;
        Ok(ids.len())
    }
}

/// A sentence encoder whose vector counts tokens: entry `t mod width` is the share of token `t`.
#[derive(Clone, Debug)]
pub struct BagEncoder {
    info: ModelInfo,
}

impl BagEncoder {
    /// An encoder over `vocab` tokens into `width` numbers.
    pub fn new(vocab: usize, width: usize) -> Self {
        let info = ModelInfo {
            name: "bag of tokens".into(),
            vocab,
            width: width.max(1),
            context: usize::MAX,
            ..ModelInfo::default()
        };
        Self { info }
    }
}

impl SequenceEncoder for BagEncoder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn encode(&mut self, sequences: &[&[Token]], pooling: Pooling) -> Result<Vec<Vec<f32>>> {
        sequences
            .iter()
            .map(|sequence| {
                crate::step::check_ids(sequence, self.info.vocab)?;
                let chosen = match pooling {
                    Pooling::First => sequence.get(..1),
                    Pooling::Last => sequence.len().checked_sub(1).map(|last| &sequence[last..]),
                    Pooling::Mean | Pooling::Checkpoint => Some(*sequence),
                };
                let chosen = chosen.filter(|chosen| !chosen.is_empty()).ok_or(ModelError::EmptyStep)?;
                let mut vector = vec![0.0; self.info.width];
                for &token in chosen {
                    vector[token as usize % self.info.width] += 1.0 / chosen.len() as f32;
                }
                Ok(vector)
            })
            .collect()
    }
}
