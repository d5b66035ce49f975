//! Masked models on ONNX Runtime.
//!
//! One session runs whole texts without a cache; the first [`OnnxMasked::build`] opens another whose keys and values
//! go in and come out. Rows that are run again attend to themselves and to the kept keys and values of all other
//! positions, before and after: attention does not ask in which order keys come, and rotary embeddings are part of
//! them.
//!
//! Cost: kept keys and values of other positions are copied into each pass, once a text of the batch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;
use pilotfish_architectures::{Checkpoint, MaskedNetwork, MaskedShape};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_model::{
    Capabilities, LogitForm, Logits, MaskedBatch, MaskedModel, MaskedOutput, ModelError, ModelInfo, Tap,
    TapRows, Token,
};

use crate::error::backend;
use crate::session::SessionConfig;
use crate::{Result, RuntimeError};

/// A masked diffusion model on ONNX Runtime, with block caches.
///
/// Texts of a batch may differ in length; those of one length run together. The tap
/// [`Tap::FinalNormed`] is there.
pub struct OnnxMasked {
    info: ModelInfo,
    shape: MaskedShape,
    config: SessionConfig,
    body: Session,
    head: Session,
    /// Where the body with a cache lies.
    cached_body: PathBuf,
    cached: Option<Session>,
    kept: Kept,
    _files: tempfile::TempDir,
}

/// What a pass over kept rows gives: final-normed states by text, keys and values by layer.
type Over = (Vec<Vec<f32>>, Vec<Vec<f32>>);

/// Keys and values of a text, `[kv_heads, rows, head_dim]` a layer: keys of the first, values of the first, and so on.
#[derive(Default)]
struct Kept {
    rows: usize,
    values: Vec<Vec<f32>>,
}

impl OnnxMasked {
    /// Opens a checkpoint: LLaDA or Dream.
    ///
    /// # Errors
    /// A checkpoint that is no masked diffusion model; a library or device that is not there.
    pub fn from_checkpoint(checkpoint: &Checkpoint, config: &SessionConfig) -> Result<Self> {
        Self::from_network(checkpoint.name(), checkpoint.masked()?, config)
    }

    /// A network in memory, written to a temporary folder for as long as the model lives.
    ///
    /// # Errors
    /// A library or device that is not there; the file system.
    pub fn from_network(name: &str, network: &dyn MaskedNetwork, config: &SessionConfig) -> Result<Self> {
        let files = tempfile::tempdir().map_err(|source| RuntimeError::io(std::env::temp_dir(), source))?;
        let at = |name: &str| files.path().join(name);
        onnx::write(&network.body(false)?, Lowering::Standard, &at("body.onnx"))?;
        onnx::write(&network.body(true)?, Lowering::Standard, &at("cached.onnx"))?;
        onnx::write(&network.head()?, Lowering::Standard, &at("head.onnx"))?;
        let shape = network.shape();
        let head = shape.vocab * shape.width;
        let info = ModelInfo {
            name: format!("{name} ({})", config.device),
            vocab: shape.vocab,
            width: shape.width,
            layers: shape.layers,
            context: shape.context,
            end: shape.end.clone(),
            body_bytes: 4 * shape.body_parameters as u64,
            head_bytes: 4 * head as u64,
            body_macs: shape.body_parameters as u64,
            head_macs: head as u64,
            capabilities: Capabilities {
                taps: vec![Tap::FinalNormed],
                hint: "it has the final normed state alone".into(),
                ..Capabilities::default()
            },
            ..ModelInfo::default()
        };
        Ok(Self {
            info,
            shape,
            body: config.open(&at("body.onnx"))?,
            head: config.open(&at("head.onnx"))?,
            config: config.clone(),
            cached_body: at("cached.onnx"),
            cached: None,
            kept: Kept::default(),
            _files: files,
        })
    }

    /// Whether a position's logits are the output of the position before it: a decoder has to know.
    pub fn shift(&self) -> bool {
        self.shape.shift
    }

    /// Logits of rows of final-normed states.
    fn logits(&mut self, normed: Vec<f32>, form: LogitForm) -> Result<Logits, ModelError> {
        let (width, vocab) = (self.shape.width, self.shape.vocab);
        let rows = normed.len() / width;
        if rows == 0 {
            return Logits::from_rows(Vec::new(), vocab, form);
        }
        let x = Tensor::from_array(([rows, width], normed)).map_err(backend)?;
        let outputs = self.head.run(ort::inputs!["x" => x]).map_err(backend)?;
        let (_, values) = outputs["logits"].try_extract_tensor::<f32>().map_err(backend)?;
        Logits::from_rows(values.to_vec(), vocab, form)
    }

    /// Logits of some rows of each of several texts, in one call of the head.
    fn answers(
        &mut self,
        states: &[Vec<f32>],
        wanted: &[&[usize]],
        form: LogitForm,
    ) -> Result<Vec<Logits>, ModelError> {
        let width = self.shape.width;
        let mut rows = Vec::new();
        for (states, wanted) in states.iter().zip(wanted) {
            for &row in *wanted {
                let state = states.get(row * width..(row + 1) * width).ok_or(ModelError::NoSuchRow {
                    what: "positions wanted",
                    row,
                    len: states.len() / width,
                })?;
                rows.extend_from_slice(state);
            }
        }
        let full = self.logits(rows, LogitForm::Full)?;
        let mut at = 0;
        let mut out = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let mut part = Vec::with_capacity(wanted.len() * self.shape.vocab);
            for row in at..at + wanted.len() {
                part.extend_from_slice(full.row(row).unwrap_or_default());
            }
            at += wanted.len();
            out.push(Logits::from_rows(part, self.shape.vocab, form)?);
        }
        Ok(out)
    }

    /// The session with a cache, opened when it is first asked for.
    fn cached(&mut self) -> Result<&mut Session, ModelError> {
        let session = match self.cached.take() {
            Some(session) => session,
            None => self.config.open(&self.cached_body).map_err(ModelError::backend)?,
        };
        Ok(self.cached.insert(session))
    }

    /// Runs rows of texts over kept keys and values of the positions `kept`. States of each text, and all keys and
    /// values of the first, kept ones first.
    fn over(&mut self, texts: &[&[Token]], rows: Range<usize>, kept: &[usize]) -> Result<Over, ModelError> {
        let MaskedShape { width, layers, kv_heads, head_dim, .. } = self.shape.clone();
        let (batch, count, past) = (texts.len(), rows.len(), kept.len());
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = shared(texts, rows, past)?;
        for (index, values) in (0..2 * layers).map(|index| (index, self.kept.values.get(index))) {
            let mut one = Vec::with_capacity(kv_heads * past * head_dim);
            for head in 0..kv_heads {
                for &at in kept {
                    let start = (head * self.kept.rows + at) * head_dim;
                    one.extend_from_slice(values.and_then(|v| v.get(start..start + head_dim)).unwrap_or(&[]));
                }
            }
            let all = one.repeat(batch);
            let kind = if index % 2 == 0 { "past_key" } else { "past_value" };
            let tensor = Tensor::from_array(([batch, kv_heads, past, head_dim], all)).map_err(backend)?;
            inputs.push((format!("{kind}.{}", index / 2), tensor.into()));
        }
        let session = self.cached()?;
        let outputs = session.run(inputs).map_err(backend)?;
        let (_, normed) = outputs["final_normed"].try_extract_tensor::<f32>().map_err(backend)?;
        let states = normed.chunks_exact((count * width).max(1)).map(<[f32]>::to_vec).collect();
        let mut made = Vec::with_capacity(2 * layers);
        for layer in 0..layers {
            for kind in ["key", "value"] {
                let name = format!("{kind}.{layer}");
                let (_, values) = outputs[name.as_str()].try_extract_tensor::<f32>().map_err(backend)?;
                made.push(values[..kv_heads * (past + count) * head_dim].to_vec());
            }
        }
        Ok((states, made))
    }
}

/// `ids`, `positions` and `mask` of rows of texts of one length over `past` kept rows.
fn shared(
    texts: &[&[Token]],
    rows: Range<usize>,
    past: usize,
) -> Result<Vec<(String, SessionInputValue<'static>)>, ModelError> {
    let (batch, count) = (texts.len(), rows.len());
    let ids: Vec<i64> = texts.iter().flat_map(|text| &text[rows.clone()]).map(|&id| id.into()).collect();
    let positions: Vec<i64> = (0..batch).flat_map(|_| rows.clone().map(|at| at as i64)).collect();
    let mask = vec![0.0f32; count * (past + count)];
    let tensor = |name: &str, value: SessionInputValue<'static>| (name.to_owned(), value);
    Ok(vec![
        tensor("ids", Tensor::from_array(([batch, count], ids)).map_err(backend)?.into()),
        tensor("positions", Tensor::from_array(([batch, count], positions)).map_err(backend)?.into()),
        tensor("mask", Tensor::from_array(([1, 1, count, past + count], mask)).map_err(backend)?.into()),
    ])
}

impl MaskedModel for OnnxMasked {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn mask(&self) -> Token {
        self.shape.mask
    }

    fn forward(&mut self, batch: &MaskedBatch<'_>) -> Result<MaskedOutput, ModelError> {
        batch.taps.iter().try_for_each(|tap| self.info.require_tap(*tap))?;
        if let Some(positions) = batch.positions
            && positions.len() != batch.sequences.len()
        {
            let (got, want) = (positions.len(), batch.sequences.len());
            return Err(ModelError::Length { what: "lists of positions", got, want });
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, text) in batch.sequences.iter().enumerate() {
            self.info.check_text(text)?;
            groups.entry(text.len()).or_default().push(index);
        }
        let width = self.shape.width;
        let mut states: Vec<Vec<f32>> = vec![Vec::new(); batch.sequences.len()];
        for (length, members) in groups {
            let texts: Vec<&[Token]> = members.iter().map(|&index| batch.sequences[index]).collect();
            let outputs = self.body.run(shared(&texts, 0..length, 0)?).map_err(backend)?;
            let (_, normed) = outputs["final_normed"].try_extract_tensor::<f32>().map_err(backend)?;
            for (&index, part) in members.iter().zip(normed.chunks_exact(length * width)) {
                states[index] = part.to_vec();
            }
        }
        let all: Vec<Vec<usize>> = batch.sequences.iter().map(|text| (0..text.len()).collect()).collect();
        let wanted: Vec<&[usize]> = match batch.positions {
            Some(positions) => positions.to_vec(),
            None => all.iter().map(Vec::as_slice).collect(),
        };
        let logits = self.answers(&states, &wanted, batch.form)?;
        let tapped = |values: Vec<f32>| -> Vec<TapRows> {
            batch.taps.iter().map(|&tap| TapRows { tap, width, values: values.clone() }).collect()
        };
        Ok(MaskedOutput { logits, taps: states.into_iter().map(tapped).collect() })
    }
}

impl OnnxMasked {
    /// Runs a whole text and keeps every position's keys and values. Logits of `positions`, ascending.
    ///
    /// # Errors
    /// As [`MaskedModel::forward`].
    pub fn build(&mut self, tokens: &[Token], positions: &[usize]) -> Result<Logits, ModelError> {
        self.info.check_text(tokens)?;
        let (states, made) = self.over(&[tokens], 0..tokens.len(), &[])?;
        self.kept = Kept { rows: tokens.len(), values: made };
        let mut answers = self.answers(&states, &[positions], LogitForm::Full)?;
        answers.pop().ok_or(ModelError::EmptyStep)
    }

    /// Runs the rows `rows` of several texts, each attending to its own rows and to the kept keys and values of the
    /// other positions below its length; these stay as they are. Texts may be shorter than the one kept. Logits of
    /// `positions`, which are within `rows`, of each text.
    ///
    /// # Errors
    /// Nothing kept, or fewer positions than a text has; as [`MaskedModel::forward`].
    pub fn update(
        &mut self,
        texts: &[&[Token]],
        rows: Range<usize>,
        positions: &[&[usize]],
    ) -> Result<Vec<Logits>, ModelError> {
        if positions.len() != texts.len() {
            let (got, want) = (positions.len(), texts.len());
            return Err(ModelError::Length { what: "lists of positions", got, want });
        }
        if rows.is_empty() || texts.is_empty() {
            return Err(ModelError::EmptyStep);
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, text) in texts.iter().enumerate() {
            self.info.check_text(text)?;
            if text.len() > self.kept.rows || rows.end > text.len() {
                let (got, want) = (self.kept.rows, text.len().max(rows.end));
                return Err(ModelError::Length { what: "kept positions", got, want });
            }
            groups.entry(text.len()).or_default().push(index);
        }
        let mut states: Vec<Vec<f32>> = vec![Vec::new(); texts.len()];
        for (length, members) in groups {
            let some: Vec<&[Token]> = members.iter().map(|&index| texts[index]).collect();
            let kept: Vec<usize> = (0..length).filter(|at| !rows.contains(at)).collect();
            let (made, _) = self.over(&some, rows.clone(), &kept)?;
            members.iter().zip(made).for_each(|(&index, made)| states[index] = made);
        }
        let within = |wanted: &&[usize]| -> Result<Vec<usize>, ModelError> {
            let row = |&at: &usize| {
                let (what, len) = ("positions wanted", rows.end);
                rows.contains(&at).then(|| at - rows.start).ok_or(ModelError::NoSuchRow {
                    what,
                    row: at,
                    len,
                })
            };
            wanted.iter().map(row).collect()
        };
        let wanted = positions.iter().map(within).collect::<Result<Vec<_>, _>>()?;
        let wanted: Vec<&[usize]> = wanted.iter().map(Vec::as_slice).collect();
        self.answers(&states, &wanted, LogitForm::Full)
    }
}

impl std::fmt::Debug for OnnxMasked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxMasked").field("info", &self.info).finish_non_exhaustive()
    }
}
