//! Hidden-state optimisation: the cached keys and values of a frozen model learn while it reads (Yoshida and Gimpel,
//! "Reconsidering the Past: Optimizing Hidden States in Language Models", arXiv 2112.08653; chapter of arXiv 2408.16241).
//!
//! A text is read in windows. The losses of a window's tokens are recorded; then one step of an optimiser moves every
//! entry of the cache, those of earlier windows and those of this one, against the gradient of the window's mean loss.
//! The weights stay as they are, and a window's score never depends on an update that has seen the window.
//!
//! **Reconstructed.** The authors' code could not be read, and step sizes and details of the paper are not known for
//! certain. What was decided here:
//!
//! - Entries are free variables: a gradient does not flow back through how an entry of an earlier window was computed. An
//!   entry of the same window is its projection plus a term that begins at 0, so what it does in higher layers counts.
//! - The last token of a window is not run with it but first in the next one. So every prediction is made from the newest
//!   entries, also the first of a window and the first after a prompt, and every loss of a window has a gradient.
//! - The optimiser's moments and its count of steps belong to an entry: the key, or the value, of one layer at one
//!   position. They leave with it. A new entry whose gradient is 0 has not begun to count. With Adam's bias correction
//!   the first step of any entry is therefore the step size, whatever happened before it came.
//! - Keys are cached after rotation, moved as they are and never rotated again. Positions go on counting when entries
//!   leave. The first entries can be kept for good (`sinks`), as models of this kind put much attention on them
//!   (arXiv 2309.17453); the paper's models are older and it has no such thing.
//! - Further steps on one window, for prompts, keep that window's terms and compute the projections anew.
//! - With `guard`, a window that the newest update made worse takes that update back. The paper has no such thing.
//!
//! Adam divides by the root of the second moment, so an entry with any gradient at all, rounding errors included, moves by
//! about the step size; gradients far below `eps` do not.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use pilotfish_graph::{Dim, Graph};
use serde::{Deserialize, Serialize};

use crate::losses::log_softmax;
use crate::optimizer::Rule;
use crate::{Adam, Interpreter, OptimizerConfig, Precision, Result, TrainingError};

/// How a cache learns.
///
/// | setting | default | source |
/// |---|---|---|
/// | optimizer | Adam, moments per entry | the paper |
/// | step size | 3e-3 | about the paper's, from memory; tune it on other text |
/// | steps a window | 1 | the paper |
/// | context | 256 | ours |
/// | sinks, guard | 0, off | ours |
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HiddenConfig {
    /// The rule that moves entries. Weight decay pulls entries to 0.
    pub optimizer: OptimizerConfig,
    /// Step size; at 0 nothing moves.
    pub step_size: f64,
    /// Steps a window of [`HiddenStates::read`]; 0 computes no gradient.
    pub steps: usize,
    /// Entries that stay after a window; at least 1. While a window is read, it comes on top of them.
    pub context: usize,
    /// Entries at the beginning that never leave; below `context`.
    pub sinks: usize,
    /// Whether an update is taken back when the next window is worse with it than without. Costs a forward pass a window.
    pub guard: bool,
}

impl Default for HiddenConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerConfig::Adam(Adam::default()),
            step_size: 3e-3,
            steps: 1,
            context: 256,
            sinks: 0,
            guard: false,
        }
    }
}

impl HiddenConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One outside its range.
    pub fn check(&self) -> Result<()> {
        self.optimizer.check()?;
        let refuse = |name, value, want| Err(TrainingError::BadParameter { name, value, want });
        if !(self.step_size >= 0.0 && self.step_size.is_finite()) {
            return refuse("step_size", self.step_size, "0 or more");
        }
        if self.context == 0 {
            return refuse("context", 0.0, "at least 1");
        }
        if self.sinks >= self.context {
            return refuse("sinks", self.sinks as f64, "below the context");
        }
        Ok(())
    }
}

/// Which half of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Keys, after rotation.
    Keys,
    /// Values.
    Values,
}

/// One cached entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'a> {
    /// The numbers, head after head.
    pub values: &'a [f32],
    /// The optimiser's moments, in its order.
    pub moments: Vec<&'a [f32]>,
    /// Steps it has taken.
    pub steps: u64,
}

/// The keys or values of a layer, position after position.
#[derive(Clone, Debug, PartialEq)]
struct Rows {
    width: usize,
    values: Vec<f32>,
    moments: Vec<Vec<f32>>,
    steps: Vec<u64>,
}

impl Rows {
    fn len(&self) -> usize {
        self.steps.len()
    }

    /// Appends entries that have not moved.
    fn extend(&mut self, values: &[f32]) {
        self.values.extend_from_slice(values);
        self.moments.iter_mut().for_each(|moment| moment.resize(self.values.len(), 0.0));
        self.steps.resize(self.values.len() / self.width, 0);
    }

    /// Removes entries with all that belongs to them.
    fn evict(&mut self, from: usize, count: usize) {
        let numbers = from * self.width..(from + count) * self.width;
        self.values.drain(numbers.clone());
        self.moments.iter_mut().for_each(|moment| drop(moment.drain(numbers.clone())));
        self.steps.drain(from..from + count);
    }

    /// Moves every entry that has a gradient, or has had one.
    fn step(&mut self, gradient: &[f32], config: &HiddenConfig) {
        for row in 0..self.len() {
            let at = row * self.width..(row + 1) * self.width;
            let g = &gradient[at.clone()];
            if self.steps[row] == 0 && g.iter().all(|&g| g == 0.0) {
                continue;
            }
            self.steps[row] += 1;
            let rule = Rule { config: config.optimizer, lr: config.step_size, step: self.steps[row] };
            let mut moments = self.moments.iter_mut().map(|moment| &mut moment[at.clone()]);
            rule.apply(&mut self.values[at.clone()], g, [moments.next(), moments.next()]);
        }
    }
}

/// What a model has read: keys and values by layer, what the optimiser remembers of them, and the last token, which is
/// not run yet. A clone is a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct HiddenCache {
    entries: Entries,
    /// The entries without the newest update, for the guard.
    before: Option<Box<Entries>>,
    pending: Option<u32>,
    /// Position of the token that comes next into the network.
    next: i64,
    windows: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Entries {
    /// Keys and values of layer 0, of layer 1, and so on.
    rows: Vec<Rows>,
    positions: Vec<i64>,
}

impl Entries {
    fn evict(&mut self, context: usize, sinks: usize) {
        let excess = self.positions.len().saturating_sub(context);
        if excess > 0 {
            self.rows.iter_mut().for_each(|rows| rows.evict(sinks, excess));
            self.positions.drain(sinks..sinks + excess);
        }
    }
}

impl HiddenCache {
    /// Cached positions.
    pub fn len(&self) -> usize {
        self.entries.positions.len()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.entries.positions.is_empty()
    }

    /// Positions of the entries in the text, ascending.
    pub fn positions(&self) -> &[i64] {
        &self.entries.positions
    }

    /// An entry of a layer; `index` is a place in the cache, not a position.
    pub fn entry(&self, layer: usize, part: Part, index: usize) -> Option<Entry<'_>> {
        let rows = self.entries.rows.get(2 * layer + usize::from(part == Part::Values))?;
        let at = index * rows.width..(index + 1) * rows.width;
        Some(Entry {
            steps: *rows.steps.get(index)?,
            values: &rows.values[at.clone()],
            moments: rows.moments.iter().map(|moment| &moment[at.clone()]).collect(),
        })
    }

    /// Bytes of entries and moments, the guard's copy included.
    pub fn bytes(&self) -> usize {
        let all = |entries: &Entries| -> usize {
            entries
                .rows
                .iter()
                .map(|rows| 4 * rows.values.len() * (1 + rows.moments.len()) + 8 * rows.len())
                .sum()
        };
        all(&self.entries) + self.before.as_deref().map_or(0, all)
    }
}

/// What reading a window gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The negative log-likelihood of each token, in nats, before any update that saw it. The first token of a text has
    /// none, so the first window has one less.
    pub losses: Vec<f64>,
    /// The same tokens' losses after the first step, the second, and so on but the last. Updates have seen these tokens:
    /// these numbers are no score.
    pub after: Vec<Vec<f64>>,
    /// Steps taken: fewer than wanted where the gradient, or what it would make of an entry, was not finite.
    pub steps: usize,
    /// Whether the guard took back the update of the window before.
    pub taken_back: bool,
}

/// A frozen model whose cache learns.
///
/// ```
/// use pilotfish_architectures::{CausalConfig, CausalNetwork};
/// use pilotfish_training::{HiddenConfig, HiddenStates, Precision};
/// let network = CausalNetwork::random(CausalConfig::llama(11, 16, 2, [2, 1], 24), 1)?;
/// let model = HiddenStates::new(&network.adaptable()?, Precision::F32, HiddenConfig::default())?;
/// let mut cache = model.empty();
/// assert_eq!(model.read(&mut cache, &[3, 1, 4])?.losses.len(), 2);
/// assert_eq!(model.read(&mut cache, &[1, 5, 9])?.losses.len(), 3);
/// // The last token comes in with the next window.
/// assert_eq!(cache.len(), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct HiddenStates {
    net: Interpreter,
    config: HiddenConfig,
    /// Key heads and width of a head, by layer.
    layers: Vec<[usize; 2]>,
    vocab: usize,
    /// Window of local layers: where it is given the graph has an input `mask_local`.
    window: Option<usize>,
}

/// What a pass gave: losses `[T]`, and the rows' own keys and values.
struct Pass {
    losses: Tensor,
    own: Vec<Vec<f32>>,
    /// The cache and the terms of the rows' own entries, as variables.
    variables: Vec<[Var; 2]>,
}

/// The rows of a window as the network reads them.
struct Read<'a> {
    ids: &'a [u32],
    targets: &'a [u32],
    positions: Vec<i64>,
}

impl HiddenStates {
    /// Takes a graph with the inputs and outputs of `CausalNetwork::adaptable`, without windows of local attention.
    ///
    /// # Errors
    /// A graph that lacks one of them; settings outside their range.
    pub fn new(graph: &Graph, precision: Precision, config: HiddenConfig) -> Result<Self> {
        Self::with_window(graph, precision, config, None)
    }

    /// The same for a network some of whose layers have a window of attention.
    ///
    /// # Errors
    /// As [`HiddenStates::new`].
    pub fn with_window(
        graph: &Graph,
        precision: Precision,
        config: HiddenConfig,
        window: Option<usize>,
    ) -> Result<Self> {
        config.check()?;
        let missing = |kind: &'static str, name: &str| TrainingError::NoSuchName { kind, name: name.into() };
        let mut wanted = vec!["ids".to_owned(), "mask".into()];
        wanted.extend(window.map(|_| "mask_local".to_owned()));
        let mut layers = Vec::new();
        while let Some(past) = graph.find(&format!("past_key.{}", layers.len())) {
            let (layer, shape) = (layers.len(), graph.shape(past));
            let size = |axis: usize| shape.dims().get(axis).and_then(Dim::fixed);
            let (4, Some(heads), Some(width)) = (shape.rank(), size(1), size(3)) else {
                let (name, want) = (format!("past_key.{layer}"), "[1, heads, L, width]".to_owned());
                return Err(TrainingError::Shape { name, got: vec![], want });
            };
            layers.push([heads, width]);
            for kind in ["past_value", "added_key", "added_value"] {
                wanted.push(format!("{kind}.{layer}"));
            }
            for kind in ["key", "value"] {
                let name = format!("{kind}.{layer}");
                if !graph.outputs().iter().any(|(output, _)| *output == name) {
                    return Err(missing("output", &name));
                }
            }
        }
        if layers.is_empty() {
            return Err(missing("input", "past_key.0"));
        }
        if let Some(name) = wanted.iter().find(|name| graph.find(name).is_none()) {
            return Err(missing("input", name));
        }
        let logits = graph.outputs().iter().find(|(name, _)| name == "logits");
        let &(_, logits) = logits.ok_or_else(|| missing("output", "logits"))?;
        let Some(vocab) = graph.shape(logits).last().and_then(Dim::fixed) else {
            let (name, want) = ("logits".to_owned(), "a known vocabulary".to_owned());
            return Err(TrainingError::Shape { name, got: vec![], want });
        };
        Ok(Self { net: Interpreter::new(graph, precision)?, config, layers, vocab, window })
    }

    /// The settings.
    pub fn config(&self) -> &HiddenConfig {
        &self.config
    }

    /// Replaces the settings. A cache goes on with what it remembers.
    ///
    /// # Errors
    /// One outside its range.
    pub fn configure(&mut self, config: HiddenConfig) -> Result<()> {
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// A cache of nothing.
    pub fn empty(&self) -> HiddenCache {
        let moments = vec![Vec::new(); self.config.optimizer.moments()];
        let rows = self.layers.iter().flat_map(|[heads, width]| {
            let rows = Rows { width: heads * width, values: vec![], moments: moments.clone(), steps: vec![] };
            [rows.clone(), rows]
        });
        let entries = Entries { rows: rows.collect(), positions: Vec::new() };
        HiddenCache { entries, before: None, pending: None, next: 0, windows: 0 }
    }

    /// Scores a window, then lets the cache learn from it.
    ///
    /// # Errors
    /// An empty window; a token that the network does not have; a loss that is not finite. The cache is as it was then.
    pub fn read(&self, cache: &mut HiddenCache, window: &[u32]) -> Result<Reading> {
        self.adapt(cache, window, None, self.config.steps)
    }

    /// Scores a window and takes `steps` steps on it, on the losses of the tokens that are `counted` (all without it): for
    /// a prompt of demonstrations, whose labels alone may count. Examples are then read from clones of the cache, with
    /// [`HiddenStates::score`].
    ///
    /// # Errors
    /// As [`HiddenStates::read`]; as many flags as tokens are wanted.
    pub fn adapt(
        &self,
        cache: &mut HiddenCache,
        window: &[u32],
        counted: Option<&[bool]>,
        steps: usize,
    ) -> Result<Reading> {
        let Some((&last, body)) = window.split_last() else {
            let want = "at least one token".into();
            return Err(TrainingError::Shape { name: "window".into(), got: vec![0], want });
        };
        if counted.is_some_and(|counted| counted.len() != window.len()) {
            let (got, want) = (counted.map_or(vec![], |c| vec![c.len()]), format!("{} flags", window.len()));
            return Err(TrainingError::Shape { name: "counted".into(), got, want });
        }
        if let Some(token) = window.iter().find(|&&token| token as usize >= self.vocab) {
            let why = format!("token {token} of {}", self.vocab);
            return Err(TrainingError::Operand { op: "window", why });
        }
        self.fits(&cache.entries)?;
        let ids: Vec<u32> = cache.pending.into_iter().chain(body.iter().copied()).collect();
        let unscored = window.len() - ids.len();
        let mut reading = Reading { losses: vec![], after: vec![], steps: 0, taken_back: false };
        if ids.is_empty() {
            cache.pending = Some(last);
            return Ok(reading);
        }
        let read = Read {
            ids: &ids,
            targets: &window[unscored..],
            positions: (cache.next..).take(ids.len()).collect(),
        };
        let weights: Vec<f64> = (unscored..window.len())
            .map(|at| f64::from(u8::from(counted.is_none_or(|counted| counted[at]))))
            .collect();
        // The window's own entries are those from `past` on.
        let (mut entries, past) = (cache.entries.clone(), cache.len());
        let mut added: Vec<Vec<f32>> =
            entries.rows.iter().map(|rows| vec![0.0; ids.len() * rows.width]).collect();
        let learns = steps > 0 && weights.contains(&1.0);
        let mut pass = self.pass(&entries, past, &added, &read, learns)?;
        reading.losses = finite(&pass, cache.windows)?;
        if let (true, Some(before)) = (self.config.guard, &cache.before) {
            let other = self.pass(before, past, &added, &read, false)?;
            let mean = |losses: &[f64]| losses.iter().sum::<f64>();
            if mean(&finite(&other, cache.windows)?) < mean(&reading.losses) {
                entries = (**before).clone();
                pass = if learns { self.pass(&entries, past, &added, &read, true)? } else { other };
                reading.taken_back = true;
            }
        }
        entries.positions.extend_from_slice(&read.positions);
        entries.rows.iter_mut().zip(&pass.own).for_each(|(rows, own)| rows.extend(own));
        let unmoved = self.config.guard.then(|| {
            let mut unmoved = entries.clone();
            unmoved.evict(self.config.context, self.config.sinks);
            Box::new(unmoved)
        });
        for step in 0..if learns { steps } else { 0 } {
            if step > 0 {
                pass = self.pass(&entries, past, &added, &read, true)?;
                reading.after.push(finite(&pass, cache.windows)?);
                for (rows, own) in entries.rows.iter_mut().zip(&pass.own) {
                    rows.values[past * rows.width..].copy_from_slice(own);
                }
            }
            let Some(moved) = self.moved(&entries, &pass, &weights)? else { break };
            for ((added, now), then) in added.iter_mut().zip(&moved.rows).zip(&entries.rows) {
                let own = past * now.width;
                let by = now.values[own..].iter().zip(&then.values[own..]);
                added.iter_mut().zip(by).for_each(|(added, (now, then))| *added += now - then);
            }
            entries = moved;
            reading.steps += 1;
        }
        entries.evict(self.config.context, self.config.sinks);
        *cache = HiddenCache {
            entries,
            before: unmoved.filter(|_| reading.steps > 0),
            pending: Some(last),
            next: cache.next + ids.len() as i64,
            windows: cache.windows + 1,
        };
        Ok(reading)
    }

    /// The losses of tokens that follow what was read, in nats; the cache does not change.
    ///
    /// # Errors
    /// As [`HiddenStates::read`].
    pub fn score(&self, cache: &HiddenCache, tokens: &[u32]) -> Result<Vec<f64>> {
        let mut copy = HiddenCache { before: None, ..cache.clone() };
        Ok(self.adapt(&mut copy, tokens, None, 0)?.losses)
    }

    /// The entries after a step; `None` if a number would not be finite.
    fn moved(&self, entries: &Entries, pass: &Pass, weights: &[f64]) -> Result<Option<Entries>> {
        let (count, sum): (usize, f64) = (weights.len(), weights.iter().sum());
        let weights = Tensor::from_slice(weights, count, &Device::Cpu)?.to_dtype(pass.losses.dtype())?;
        let loss = (&pass.losses * weights)?.sum_all()?.affine(1.0 / sum, 0.0)?;
        let gradients = loss.backward()?;
        let mut moved = entries.clone();
        for (rows, variables) in moved.rows.iter_mut().zip(&pass.variables) {
            let mut gradient = Vec::with_capacity(rows.values.len());
            for variable in variables {
                match gradients.get(variable.as_tensor()) {
                    Some(tensor) => gradient.extend(plain(tensor)?),
                    None => gradient.resize(gradient.len() + variable.elem_count(), 0.0),
                }
            }
            rows.step(&gradient, &self.config);
            let whole = |values: &[f32]| values.iter().all(|value| value.is_finite());
            if !whole(&gradient) || !whole(&rows.values) || !rows.moments.iter().all(|all| whole(all)) {
                return Ok(None);
            }
        }
        Ok(Some(moved))
    }

    /// Runs the rows of a window after the first `past` entries.
    fn pass(
        &self,
        entries: &Entries,
        past: usize,
        added: &[Vec<f32>],
        read: &Read<'_>,
        learns: bool,
    ) -> Result<Pass> {
        let (count, dtype) = (read.ids.len(), self.net.precision().dtype());
        let ids: Vec<i64> = read.ids.iter().map(|&id| i64::from(id)).collect();
        let mut inputs = HashMap::from([
            ("ids".to_owned(), Tensor::from_vec(ids, (1, count), &Device::Cpu)?),
            ("positions".to_owned(), Tensor::from_slice(&read.positions, (1, count), &Device::Cpu)?),
            ("mask".to_owned(), self.mask(entries, past, read, i64::MAX)?),
        ]);
        if let Some(window) = self.window {
            let window = i64::try_from(window).unwrap_or(i64::MAX);
            inputs.insert("mask_local".into(), self.mask(entries, past, read, window)?);
        }
        let mut variables = Vec::new();
        for (index, (rows, added)) in entries.rows.iter().zip(added).enumerate() {
            let ([heads, width], kind) = (self.layers[index / 2], ["key", "value"][index % 2]);
            let tensor = |values: &[f32], count: usize| -> Result<Tensor> {
                Ok(Tensor::from_slice(values, (1, count, rows.width), &Device::Cpu)?.to_dtype(dtype)?)
            };
            let mut leaves = [tensor(&rows.values[..past * rows.width], past)?, tensor(added, count)?];
            if learns {
                let pair = [Var::from_tensor(&leaves[0])?, Var::from_tensor(&leaves[1])?];
                leaves = [pair[0].as_tensor().clone(), pair[1].as_tensor().clone()];
                variables.push(pair);
            }
            let [cached, own] = leaves;
            let cached = cached.reshape((1, past, heads, width))?.transpose(1, 2)?.contiguous()?;
            inputs.insert(format!("past_{kind}.{}", index / 2), cached);
            inputs.insert(format!("added_{kind}.{}", index / 2), own);
        }
        let mut outputs = self.net.forward(&inputs)?;
        let mut take =
            |name: String| outputs.remove(&name).ok_or(TrainingError::NoSuchName { kind: "output", name });
        let logits = take("logits".into())?;
        let targets = Tensor::from_slice(read.targets, (1, count, 1), &Device::Cpu)?;
        let losses = log_softmax(&logits)?.gather(&targets, 2)?.flatten_all()?.neg()?;
        let own = (0..entries.rows.len()).map(|index| {
            let all = take(format!("{}.{}", ["key", "value"][index % 2], index / 2))?;
            plain(&all.narrow(2, past, count)?.transpose(1, 2)?.contiguous()?)
        });
        let own = own.collect::<Result<_>>()?;
        Ok(Pass { losses, own, variables })
    }

    /// Which entries and rows each row sees, `[1, 1, T, L+T]`.
    fn mask(&self, entries: &Entries, past: usize, read: &Read<'_>, window: i64) -> Result<Tensor> {
        let columns: Vec<i64> = entries.positions[..past].iter().chain(&read.positions).copied().collect();
        let cells = read.positions.iter().flat_map(|&row| {
            columns.iter().map(
                move |&column| {
                    if column <= row && row - column < window { 0.0f32 } else { -1e9 }
                },
            )
        });
        let shape = (1, 1, read.ids.len(), columns.len());
        let mask = Tensor::from_vec(cells.collect(), shape, &Device::Cpu)?;
        Ok(mask.to_dtype(self.net.precision().dtype())?)
    }

    /// Whether a cache is one of this model and optimiser.
    fn fits(&self, entries: &Entries) -> Result<()> {
        let widths: Vec<usize> = entries.rows.iter().map(|rows| rows.width).collect();
        let want: Vec<usize> = self.layers.iter().flat_map(|[heads, width]| [heads * width; 2]).collect();
        let moments = self.config.optimizer.moments();
        if widths != want || entries.rows.iter().any(|rows| rows.moments.len() != moments) {
            let want = format!("widths {want:?} and {moments} moments");
            return Err(TrainingError::Shape { name: "cache".into(), got: widths, want });
        }
        Ok(())
    }
}

/// A pass' losses.
fn finite(pass: &Pass, window: u64) -> Result<Vec<f64>> {
    let losses = pass.losses.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    match losses.iter().find(|loss| !loss.is_finite()) {
        Some(&value) => Err(TrainingError::NotFinite { step: window, what: "loss", value }),
        None => Ok(losses),
    }
}

fn plain(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}
