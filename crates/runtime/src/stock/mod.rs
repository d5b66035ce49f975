//! Causal models that somebody else exported: the layout of Hugging Face's exporters.
//!
//! `model.onnx` takes `input_ids`, `attention_mask`, perhaps `position_ids`, and `past_key_values.N.key` and
//! `.value`; it gives `logits` and `present.N.key` and `.value`; `config.json` and, if it is there,
//! `tokenizer.json` lie beside it. All causality is inside such a graph, so a tree cannot be masked into one text:
//! it is run as a batch of its paths from the root to the leaves, each with a copy of the cache, and costs as many
//! rows as the paths have together. A chain runs as it is.

mod contract;

use std::path::Path;
use std::time::{Duration, Instant};

use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;
use pilotfish_model::{
    Capabilities, CausalModel, Forest, Input, Logits, ModelError, ModelInfo, Step, StepOutput, Steps, Token,
};

use crate::error::backend;
use crate::{Result, RuntimeError, SessionConfig};
use contract::Contract;

/// Texts of one call at most; a wider tree takes several.
const MOST_TEXTS: usize = 16;

/// A stock export on ONNX Runtime: chains, and trees as batches of paths. It has no taps, no separate head, takes
/// ids only and runs all its layers.
pub struct StockCausal {
    info: ModelInfo,
    session: Session,
    contract: Contract,
    forest: Forest,
    /// Keys and values of each layer in turn, `[heads, rows, head_dim]`.
    cache: Vec<Vec<f32>>,
    inside: Duration,
}

/// A path of new rows from one that stands on the cache to a leaf.
struct Branch {
    /// Rows of the cache below it.
    base: Option<usize>,
    /// New rows, absolute.
    rows: Vec<usize>,
}

/// A step under way.
struct Round<'a> {
    /// Rows in the cache before it.
    first: usize,
    ids: &'a [Token],
    /// Whether it is one text over the cache as it lies, so that the cache that comes back is the new one.
    alone: bool,
    /// Otherwise: keys and values of the new rows, as in the cache.
    fresh: Vec<Vec<f32>>,
    /// New rows whose logits, keys and values are known.
    done: Vec<bool>,
}

impl StockCausal {
    /// Opens a folder.
    ///
    /// # Errors
    /// A file that is missing or that ONNX Runtime refuses; inputs or outputs that are not those of a causal model
    /// with its cache in f32; a vocabulary that differs from the configuration's or lacks tokens of the tokeniser.
    pub fn open(folder: impl AsRef<Path>, config: &SessionConfig) -> Result<Self> {
        let folder = folder.as_ref();
        let path = contract::file(folder)?;
        let described = contract::describe(folder)?;
        let session = config.open(&path)?;
        let contract = Contract::of(&session, &path)?;
        contract.check(&described, folder, &path)?;
        let bytes = bytes(&path)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let info = ModelInfo {
            name: format!("{name} (stock ONNX, {})", config.device),
            vocab: contract.vocab,
            width: described.width,
            layers: contract.layers.len(),
            context: described.context,
            end: described.end,
            // A stock graph does not tell its head from its body.
            body_bytes: bytes,
            sublayer_bytes: Vec::new(),
            head_bytes: 0,
            body_macs: bytes / 4,
            head_macs: 0,
            capabilities: Capabilities {
                tree: true,
                hint: "a stock ONNX export takes ids and gives logits, no more; open the checkpoint it was made from \
                       (safetensors or GGUF) with OnnxCausal"
                    .into(),
                ..Capabilities::default()
            },
        };
        let cache = vec![Vec::new(); 2 * contract.layers.len()];
        Ok(Self { info, session, contract, forest: Forest::new(), cache, inside: Duration::ZERO })
    }

    /// Time spent inside ONNX Runtime's own calls so far.
    pub fn time_inside(&self) -> Duration {
        self.inside
    }

    /// Texts that one call takes.
    fn texts(&self) -> usize {
        if self.contract.one_text { 1 } else { MOST_TEXTS }
    }

    /// The paths that cover all rows from `first` on, those with one base together.
    fn paths(&self, first: usize) -> Vec<Branch> {
        let mut has_child = vec![false; self.forest.len() - first];
        for row in first..self.forest.len() {
            if let Some(parent) = self.forest.parent(row).filter(|&parent| parent >= first) {
                has_child[parent - first] = true;
            }
        }
        let leaves = (first..self.forest.len()).filter(|row| !has_child[row - first]);
        let mut paths: Vec<Branch> = leaves
            .map(|leaf| {
                let rows: Vec<usize> =
                    self.forest.path(leaf).into_iter().skip_while(|&row| row < first).collect();
                Branch { base: self.forest.parent(rows[0]), rows }
            })
            .collect();
        paths.sort_by_key(|path| path.base);
        paths
    }

    /// Runs new rows `first..` and fills in the cache. Gives each row's logits to `read`, by row of the step.
    fn run(
        &mut self,
        first: usize,
        ids: &[Token],
        read: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        let total = self.forest.len();
        let paths = self.paths(first);
        let alone = paths.len() == 1
            && paths[0].base.map_or(0, |base| base + 1) == first
            && self.forest.chain() == total;
        let layers: Vec<_> = self.contract.layers.iter().flat_map(|layer| [layer, layer]).cloned().collect();
        let new = total - first;
        let fresh =
            layers.iter().filter(|_| !alone).map(|layer| vec![0.0; layer.heads * new * layer.head_dim]);
        let mut round = Round { first, ids, alone, fresh: fresh.collect(), done: vec![false; new] };
        let mut start = 0;
        while start < paths.len() {
            let same = paths[start..].iter().take_while(|path| path.base == paths[start].base).count();
            let end = start + same.min(self.texts());
            self.call(&paths[start..end], &mut round, read)?;
            start = end;
        }
        for ((old, new), layer) in self.cache.iter_mut().zip(&round.fresh).zip(layers) {
            *old = join(old, new, layer.heads, layer.head_dim);
        }
        Ok(())
    }

    /// One call over paths of one base.
    fn call(
        &mut self,
        paths: &[Branch],
        round: &mut Round<'_>,
        read: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        let Round { first, ids, alone, ref mut fresh, ref mut done } = *round;
        let below = paths[0].base.map_or_else(Vec::new, |base| self.forest.path(base));
        let (batch, past) = (paths.len(), below.len());
        let rows = paths.iter().map(|path| path.rows.len()).max().unwrap_or(0);
        // Shorter paths are padded at their end, which nothing before it sees.
        let (mut tokens, mut mask, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for path in paths {
            let padding = rows - path.rows.len();
            tokens.extend(
                path.rows
                    .iter()
                    .map(|row| i64::from(ids[row - first]))
                    .chain(std::iter::repeat_n(0, padding)),
            );
            mask.extend(
                std::iter::repeat_n(1i64, past + path.rows.len()).chain(std::iter::repeat_n(0, padding)),
            );
            positions.extend((past as i64)..(past + rows) as i64);
        }
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> = vec![
            ("input_ids", Tensor::from_array(([batch, rows], tokens)).map_err(backend)?.into()),
            ("attention_mask", Tensor::from_array(([batch, past + rows], mask)).map_err(backend)?.into()),
        ];
        if self.contract.positions {
            let positions = Tensor::from_array(([batch, rows], positions)).map_err(backend)?;
            inputs.push(("position_ids", positions.into()));
        }
        let cached = first;
        for (index, layer) in self.contract.layers.iter().enumerate() {
            let (heads, width) = (layer.heads, layer.head_dim);
            for (kind, name) in layer.past.iter().enumerate() {
                let stored = &self.cache[2 * index + kind];
                let one =
                    if past == cached { stored.clone() } else { pick(stored, heads, cached, width, &below) };
                let mut all = Vec::with_capacity(batch * one.len());
                (0..batch).for_each(|_| all.extend_from_slice(&one));
                let tensor = Tensor::from_array(([batch, heads, past, width], all)).map_err(backend)?;
                inputs.push((name, tensor.into()));
            }
        }
        let clock = Instant::now();
        let outputs = self.session.run(inputs).map_err(backend)?;
        self.inside += clock.elapsed();
        let expect = |name: &str, want: &[usize]| {
            let (shape, values) = outputs[name].try_extract_tensor::<f32>().map_err(backend)?;
            if !shape.iter().map(|&dim| dim as usize).eq(want.iter().copied()) {
                let (got, want) = (values.len(), want.iter().product());
                return Err(ModelError::Length { what: "numbers that a stock export gave back", got, want });
            }
            Ok(values)
        };
        let vocab = self.contract.vocab;
        let logits = expect("logits", &[batch, rows, vocab])?;
        let mut presents = Vec::new();
        for layer in &self.contract.layers {
            for name in &layer.present {
                presents.push((expect(name, &[batch, layer.heads, past + rows, layer.head_dim])?, layer));
            }
        }
        // Nothing is changed before everything is known to be there.
        if alone {
            self.cache.iter_mut().zip(&presents).for_each(|(to, (from, _))| {
                to.clear();
                to.extend_from_slice(from);
            });
        }
        let count = done.len();
        for (to, (values, layer)) in fresh.iter_mut().zip(presents) {
            let (heads, width) = (layer.heads, layer.head_dim);
            for (b, path) in paths.iter().enumerate() {
                for (at, row) in path.rows.iter().enumerate().filter(|(_, row)| !done[**row - first]) {
                    for head in 0..heads {
                        let from = ((b * heads + head) * (past + rows) + past + at) * width;
                        let place = (head * count + row - first) * width;
                        to[place..place + width].copy_from_slice(&values[from..from + width]);
                    }
                }
            }
        }
        for (b, path) in paths.iter().enumerate() {
            for (at, row) in path.rows.iter().enumerate() {
                if !std::mem::replace(&mut done[row - first], true) {
                    read(row - first, &logits[(b * rows + at) * vocab..][..vocab]);
                }
            }
        }
        Ok(())
    }

    /// Keeps these rows of the cache.
    fn gather(&mut self, before: usize, rows: &[usize]) {
        let layers = self.contract.layers.iter().flat_map(|layer| [layer, layer]);
        for (values, layer) in self.cache.iter_mut().zip(layers) {
            *values = pick(values, layer.heads, before, layer.head_dim, rows);
        }
    }
}

/// These rows of `[heads, rows, width]`.
fn pick(values: &[f32], heads: usize, rows: usize, width: usize, wanted: &[usize]) -> Vec<f32> {
    let places = (0..heads).flat_map(|head| wanted.iter().map(move |row| (head * rows + row) * width));
    places.flat_map(|place| &values[place..place + width]).copied().collect()
}

/// Rows of `new` behind those of `old`, head by head.
fn join(old: &[f32], new: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let (a, b) = (old.len() / heads, new.len() / heads);
    debug_assert!(a % width == 0 && b % width == 0);
    (0..heads)
        .flat_map(|head| old[head * a..(head + 1) * a].iter().chain(&new[head * b..(head + 1) * b]))
        .copied()
        .collect()
}

/// Bytes of a model's file and of those beside it that its name begins: its weights.
fn bytes(path: &Path) -> Result<u64> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).map_err(|source| RuntimeError::io(folder, source))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ours = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&name));
    Ok(ours.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum())
}

impl Steps for StockCausal {
    fn len(&self) -> usize {
        self.forest.len()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput, ModelError> {
        step.check(&self.info)?;
        // The check refused vectors.
        let Input::Ids(ids) = step.input else { return Err(ModelError::EmptyStep) };
        let wanted = step.wanted();
        let first = self.forest.len();
        self.forest.append(ids.len(), step.parents, self.info.context)?;
        let vocab = self.contract.vocab;
        // The cache is only replaced when all calls have succeeded, but for a chain, whose only call is the last.
        let mut full = vec![0.0; wanted.len() * vocab];
        let ran = self.run(first, ids, &mut |row, logits| {
            for (at, _) in wanted.iter().enumerate().filter(|(_, other)| **other == row) {
                full[at * vocab..(at + 1) * vocab].copy_from_slice(logits);
            }
        });
        let logits = ran.and_then(|()| match wanted.is_empty() {
            true => Ok(Logits::none(vocab)),
            false => Logits::from_rows(full, vocab, step.form),
        });
        match logits {
            Ok(logits) => Ok(StepOutput { logits, taps: Vec::new() }),
            Err(error) => {
                // What the cache holds tells whether the rows are in it.
                let rows = self
                    .contract
                    .layers
                    .first()
                    .map_or(0, |layer| self.cache[0].len() / (layer.heads * layer.head_dim));
                if rows > first {
                    self.gather(rows, &(0..first).collect::<Vec<_>>());
                }
                self.forest.truncate(first)?;
                Err(error)
            }
        }
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> Result<(), ModelError> {
        let before = self.forest.len();
        self.forest.keep(from, rows)?;
        let kept: Vec<usize> = (0..from).chain(rows.iter().copied()).collect();
        if kept.len() < before {
            self.gather(before, &kept);
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        if len > self.forest.len() {
            return Err(ModelError::NoSuchRow { what: "truncate", row: len, len: self.forest.len() });
        }
        self.keep(len, &[])
    }
}

impl CausalModel for StockCausal {
    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

impl std::fmt::Debug for StockCausal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StockCausal").field("info", &self.info).finish_non_exhaustive()
    }
}
