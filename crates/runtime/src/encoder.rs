//! Sentence encoders on ONNX Runtime.

use std::path::Path;

use ort::session::Session;
use ort::value::Tensor;
use pilotfish_architectures::{Bert, Checkpoint, EncoderNetwork, SentencePooling};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_model::{ModelError, ModelInfo, Pooling, SequenceEncoder, Token};

use crate::error::backend;
use crate::session::SessionConfig;
use crate::{Result, RuntimeError};

/// Sequences a call at most; longer batches run in parts.
const BATCH: usize = 32;

/// A BERT encoder on ONNX Runtime.
pub struct OnnxEncoder {
    info: ModelInfo,
    pooling: SentencePooling,
    session: Session,
    _files: tempfile::TempDir,
}

impl OnnxEncoder {
    /// Opens a Hugging Face folder.
    ///
    /// # Errors
    /// A checkpoint that is not an encoder; a library or device that is not there.
    pub fn open(path: impl AsRef<Path>, config: &SessionConfig) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        Self::from_network(checkpoint.name(), checkpoint.encoder()?, config)
    }

    /// A network in memory.
    pub fn from_network(name: &str, network: &Bert, config: &SessionConfig) -> Result<Self> {
        let files = tempfile::tempdir().map_err(|source| RuntimeError::io(std::env::temp_dir(), source))?;
        let path = files.path().join("encoder.onnx");
        onnx::write(&network.graph()?, Lowering::Standard, &path)?;
        let c = network.config();
        let tables = (c.vocab + c.context + 2) * c.width;
        let body = (network.parameters() - tables) as u64;
        let info = ModelInfo {
            name: format!("{name} ({})", config.device),
            vocab: c.vocab,
            width: c.width,
            layers: c.layers,
            context: c.context,
            body_bytes: 4 * body,
            body_macs: body,
            ..ModelInfo::default()
        };
        Ok(Self { info, pooling: network.pooling(), session: config.open(&path)?, _files: files })
    }

    /// States of the last layer of a batch, row-major `[B, T, width]`, `T` the longest sequence.
    fn states(&mut self, batch: &[&[Token]]) -> Result<(usize, Vec<f32>), ModelError> {
        let rows = batch.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
        let count = batch.len();
        let (mut ids, mut mask) = (vec![0i64; count * rows], vec![0.0f32; count * rows * rows]);
        for (b, sequence) in batch.iter().enumerate() {
            for (t, &token) in sequence.iter().enumerate() {
                ids[b * rows + t] = token.into();
            }
            for row in mask[b * rows * rows..(b + 1) * rows * rows].chunks_exact_mut(rows) {
                row[sequence.len()..].fill(-1e9);
            }
        }
        let positions: Vec<i64> = (0..count).flat_map(|_| 0..rows as i64).collect();
        let inputs = ort::inputs![
            "ids" => Tensor::from_array(([count, rows], ids)).map_err(backend)?,
            "positions" => Tensor::from_array(([count, rows], positions)).map_err(backend)?,
            "mask" => Tensor::from_array(([count, 1, rows, rows], mask)).map_err(backend)?,
        ];
        let outputs = self.session.run(inputs).map_err(backend)?;
        let (_, states) = outputs["states"].try_extract_tensor::<f32>().map_err(backend)?;
        Ok((rows, states.to_vec()))
    }
}

impl SequenceEncoder for OnnxEncoder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn encode(&mut self, sequences: &[&[Token]], pooling: Pooling) -> Result<Vec<Vec<f32>>, ModelError> {
        for sequence in sequences {
            self.info.check_text(sequence)?;
        }
        let (pooling, normalize) = match pooling {
            Pooling::Checkpoint if self.pooling.first => (Pooling::First, self.pooling.normalize),
            Pooling::Checkpoint => (Pooling::Mean, self.pooling.normalize),
            other => (other, false),
        };
        let width = self.info.width;
        let mut out = Vec::with_capacity(sequences.len());
        for batch in sequences.chunks(BATCH) {
            let (rows, states) = self.states(batch)?;
            for (b, sequence) in batch.iter().enumerate() {
                let row = |t: usize| &states[(b * rows + t) * width..(b * rows + t + 1) * width];
                let mut vector = match pooling {
                    Pooling::First => row(0).to_vec(),
                    Pooling::Last => row(sequence.len() - 1).to_vec(),
                    Pooling::Mean | Pooling::Checkpoint => {
                        let mut sum = vec![0.0f32; width];
                        for t in 0..sequence.len() {
                            sum.iter_mut().zip(row(t)).for_each(|(sum, value)| *sum += value);
                        }
                        sum.iter().map(|sum| sum / sequence.len() as f32).collect()
                    }
                };
                if normalize {
                    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
                    vector.iter_mut().for_each(|x| *x /= length);
                }
                out.push(vector);
            }
        }
        Ok(out)
    }
}

impl std::fmt::Debug for OnnxEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxEncoder").field("info", &self.info).finish_non_exhaustive()
    }
}
