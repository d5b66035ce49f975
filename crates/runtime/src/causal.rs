//! Causal language models on ONNX Runtime.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use ort::session::{IoBinding, Session};
use ort::value::Tensor;
use pilotfish_architectures::{CausalNetwork, Checkpoint, EmbeddingTable};
use pilotfish_graph::Storage;
use pilotfish_model::{
    Capabilities, Capability, CausalModel, Input, LogitForm, Logits, ModelError, ModelInfo, Skip, Step,
    StepOutput, Steps, Tap, TapRows, Token,
};

use crate::error::backend;
use crate::export::{self, ExportOptions, Exported, GraphPass, RowCosts};
use crate::planner::{Planner, ProductChoice};
use crate::products::{Products, product_operators};
use crate::segment::{Segment, Sizes};
use crate::session::SessionConfig;
use crate::{Device, Result, RuntimeError};

/// Everything about how a model is written and run.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// How it is written.
    pub export: ExportOptions,
    /// How it is run.
    pub session: SessionConfig,
}

/// A decoder-only language model on ONNX Runtime, with every capability of
/// [`CausalModel`]: trees, vectors in place of ids, taps, a separate head, ranges of layers between cuts.
pub struct OnnxCausal {
    info: ModelInfo,
    stack: Stack,
    head: Rows,
    final_norm: Rows,
    choices: Vec<ProductChoice>,
    /// What the head has logits for, if not for everything.
    vocabulary: Option<Vec<Token>>,
    /// Keeps the files of a model that has no checkpoint.
    _files: Option<tempfile::TempDir>,
}

impl OnnxCausal {
    /// Opens a checkpoint: a Hugging Face folder or a GGUF file. It is written as ONNX into the cache folder
    /// the first time.
    ///
    /// # Errors
    /// A checkpoint that is not a causal language model, a library or device that is not there, options
    /// outside their range.
    pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(path)?, options)
    }

    /// As [`OnnxCausal::open`], from a checkpoint that is already open.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let network = checkpoint.causal()?;
        let device = options.session.device.resolve()?;
        let export = options.export.on(device);
        export.check(network.config())?;
        let exported = export::cached(checkpoint, network, &export, options.session.threads)?;
        Self::load(checkpoint.name(), network, &exported, &export, options, None)
    }

    /// A network in memory, written to a temporary folder for as long as the model lives.
    pub fn from_network(name: &str, network: &CausalNetwork, options: &LoadOptions) -> Result<Self> {
        let device = options.session.device.resolve()?;
        let export = options.export.on(device);
        let folder = tempfile::tempdir().map_err(|source| RuntimeError::io(std::env::temp_dir(), source))?;
        let mut planner = Planner::new(export.products, options.session.threads);
        let exported = export::write(network, &export, &mut planner, folder.path())?;
        Self::load(name, network, &exported, &export, options, Some(folder))
    }

    /// Whose kernel multiplies each matrix, and why.
    pub fn products(&self) -> &[ProductChoice] {
        &self.choices
    }

    /// Time spent inside ONNX Runtime's own calls so far. What a step takes beyond it is ours: masks, cache,
    /// rows in and out, logits.
    pub fn time_inside(&self) -> Duration {
        self.stack.segments.iter().map(|segment| segment.inside).sum::<Duration>()
            + self.head.inside
            + self.final_norm.inside
    }

    fn load(
        name: &str,
        network: &CausalNetwork,
        exported: &Exported,
        export: &ExportOptions,
        options: &LoadOptions,
        files: Option<tempfile::TempDir>,
    ) -> Result<Self> {
        let config = network.config();
        let mut session =
            SessionConfig { device: options.session.device.resolve()?, ..options.session.clone() };
        if export.products != Products::Ort {
            session.operators.push(product_operators(session.threads));
        }
        let sizes = Sizes {
            width: config.width,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            context: config.context,
        };
        let mut segments = Vec::new();
        for range in export.segments(config.layers) {
            let window = network.window(range.clone());
            segments.push(Segment::load(&exported.body(&range), &session, range, sizes, window)?);
        }
        let cuts: Vec<usize> =
            std::iter::once(0).chain(segments.iter().map(|segment| segment.layers.end)).collect();
        let mut taps: Vec<usize> = cuts.iter().chain(&export.taps).copied().collect();
        taps.sort_unstable();
        taps.dedup();
        let capabilities = Capabilities {
            tree: true,
            embeddings: true,
            head: true,
            taps: taps.into_iter().map(Tap::Residual).chain([Tap::FinalNormed]).collect(),
            cuts,
            skip: export.skip,
            hint: "load it with the residual among LoadOptions::export.taps or .cuts, or with .skip".into(),
        };
        let RowCosts { body, head, sublayer_bytes } = export::costs_of_a_row(network, export)?;
        let info = ModelInfo {
            name: format!("{name} ({}, {})", export.storage, session.device),
            vocab: config.vocab,
            width: config.width,
            layers: config.layers,
            context: config.context,
            end: config.end.clone(),
            body_bytes: body.weight_bytes,
            sublayer_bytes,
            head_bytes: head.weight_bytes,
            body_macs: body.multiply_adds,
            head_macs: head.multiply_adds,
            capabilities,
        };
        Ok(Self {
            stack: Stack {
                embedding: network.embedding()?,
                active: 0..segments.len(),
                info: info.clone(),
                segments,
                width: config.width,
                layers: config.layers,
            },
            head: Rows::load(&exported.head(), &session, "logits")?,
            final_norm: Rows::load(&exported.final_norm(), &session, "y")?,
            choices: exported.choices.clone(),
            vocabulary: export.vocabulary.clone(),
            info,
            _files: files,
        })
    }
}

/// A session from rows `[R, width]` to rows: the head, the final norm.
struct Rows {
    session: Session,
    binding: IoBinding,
    memory: ort::memory::MemoryInfo<'static>,
    output: &'static str,
    inside: Duration,
}

impl Rows {
    fn load(path: &Path, config: &SessionConfig, output: &'static str) -> Result<Self> {
        let session = config.open(path)?;
        let binding = session.create_binding()?;
        use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
        Ok(Self { session, binding, memory, output, inside: Duration::ZERO })
    }

    fn run<T>(
        &mut self,
        x: Vec<f32>,
        width: usize,
        read: impl FnOnce(&[f32]) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let rows = x.len() / width;
        let x = Tensor::from_array(([rows, width], x)).map_err(backend)?;
        self.binding.bind_input("x", &x).map_err(backend)?;
        self.binding.bind_output_to_device(self.output, &self.memory).map_err(backend)?;
        let clock = Instant::now();
        let outputs = self.session.run_binding(&self.binding).map_err(backend)?;
        self.inside += clock.elapsed();
        let (_, values) = outputs[self.output].try_extract_tensor::<f32>().map_err(backend)?;
        read(values)
    }
}

/// The embedding table and all segments; steps run over those that are active.
struct Stack {
    embedding: EmbeddingTable,
    segments: Vec<Segment>,
    active: Range<usize>,
    /// The model, with those capabilities that the active range has.
    info: ModelInfo,
    width: usize,
    layers: usize,
}

impl Stack {
    fn embed(&self, ids: &[Token]) -> Result<Vec<f32>, ModelError> {
        let vocab = self.embedding.tensor.row_count();
        let mut x = Vec::with_capacity(ids.len() * self.width);
        for (row, &token) in ids.iter().enumerate() {
            let id = token as usize;
            if id >= vocab {
                return Err(ModelError::TokenOutOfRange { row, token, vocab });
            }
            x.extend(self.embedding.tensor.rows(id..id + 1).map_err(ModelError::backend)?);
        }
        if self.embedding.scale != 1.0 {
            x.iter_mut().for_each(|value| *value *= self.embedding.scale);
        }
        Ok(x)
    }

    fn layers_of(&self, segments: &Range<usize>) -> Range<usize> {
        self.segments[segments.start].layers.start..self.segments[segments.end - 1].layers.end
    }

    /// Rows in the cache of the active segments, which must agree.
    fn rows(&self, segments: &Range<usize>) -> Result<usize, ModelError> {
        let mut lens = self.segments[segments.clone()].iter().map(Segment::len);
        let first = lens.next().unwrap_or(0);
        match lens.find(|&len| len != first) {
            Some(got) => Err(ModelError::Length {
                what: "cache rows of a range that was run in parts",
                got,
                want: first,
            }),
            None => Ok(first),
        }
    }

    fn keep_in(&mut self, segments: Range<usize>, from: usize, rows: &[usize]) -> Result<(), ModelError> {
        // Caches of one length and history take it all or refuse it all.
        self.rows(&segments)?;
        self.segments[segments].iter_mut().try_for_each(|segment| segment.keep(from, rows))
    }

    /// Ranges may have run to different lengths; each is cut where it is longer.
    fn truncate_in(&mut self, segments: Range<usize>, len: usize) -> Result<(), ModelError> {
        let most = self.segments[segments.clone()].iter().map(Segment::len).max().unwrap_or(0);
        if len > most {
            return Err(ModelError::NoSuchRow { what: "truncate", row: len, len: most });
        }
        let longer = self.segments[segments].iter_mut().filter(|segment| segment.len() > len);
        longer.into_iter().try_for_each(|segment| segment.truncate(len))
    }

    /// Runs a step. Returns the last final-normed rows if the range ends the model and they are wanted.
    fn forward(
        &mut self,
        step: &Step<'_>,
        skip: &Skip,
        segments: Range<usize>,
        normed: bool,
    ) -> Result<(Option<Vec<f32>>, Vec<TapRows>), ModelError> {
        let before = self.rows(&segments)?;
        let layers = self.layers_of(&segments);
        let rows = step.rows();
        let mut x = match step.input {
            Input::Ids(ids) => self.embed(ids)?,
            Input::Vectors { values, .. } => values.to_vec(),
        };
        let mut found: Vec<TapRows> = Vec::new();
        if step.taps.contains(&Tap::Residual(layers.start)) {
            found.push(TapRows { tap: Tap::Residual(layers.start), width: self.width, values: x.clone() });
        }
        let mut last = None;
        for index in segments.clone() {
            let segment = &mut self.segments[index];
            let range = segment.layers.clone();
            let ends = range.end == self.layers;
            let wants_residual = index + 1 < segments.end || step.taps.contains(&Tap::Residual(range.end));
            let mut wanted: Vec<(Tap, String)> = Vec::new();
            if wants_residual {
                wanted.push((Tap::Residual(range.end), "residual".into()));
            }
            for &tap in step.taps {
                if let Tap::Residual(layer) = tap
                    && range.start < layer
                    && layer < range.end
                {
                    wanted.push((tap, format!("residual.{layer}")));
                }
            }
            let normed = ends && (normed || step.taps.contains(&Tap::FinalNormed));
            if normed {
                wanted.push((Tap::FinalNormed, "final_normed".into()));
            }
            if wanted.is_empty() {
                // Something must be asked for; the residual costs nothing but its last addition.
                wanted.push((Tap::Residual(range.end), "residual".into()));
            }
            let names: Vec<&str> = wanted.iter().map(|(_, name)| name.as_str()).collect();
            let mut next = None;
            let ran = segment.append(&x, rows, step.parents, skip, &names, |at, values| {
                let (tap, _) = wanted[at];
                if tap == Tap::FinalNormed {
                    last = Some(values.to_vec());
                }
                if tap == Tap::Residual(range.end) {
                    next = Some(values.to_vec());
                }
                if step.taps.contains(&tap) {
                    found.push(TapRows { tap, width: self.width, values: values.to_vec() });
                }
            });
            if let Err(error) = ran {
                for earlier in &mut self.segments[segments.start..index] {
                    earlier.truncate(before)?;
                }
                return Err(error);
            }
            if let Some(next) = next {
                x = next;
            }
        }
        // In the order asked for.
        let taps =
            step.taps.iter().filter_map(|tap| found.iter().find(|rows| rows.tap == *tap).cloned()).collect();
        Ok((last, taps))
    }
}

/// The active range of layers. Logits are the whole model's; see [`CausalModel::head`].
impl Steps for Stack {
    fn len(&self) -> usize {
        self.segments[self.active.start].len()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput, ModelError> {
        let active = self.active.clone();
        let layers = self.layers_of(&active);
        step.check(&self.info)?;
        if let Input::Ids(_) = step.input
            && layers.start > 0
        {
            return Err(ModelError::Unsupported {
                model: self.info.name.clone(),
                capability: Capability::Ranges,
                hint: format!("layers {layers:?} read the residual stream, not ids: give vectors"),
            });
        }
        let (_, taps) = self.forward(step, &Skip::default(), active, false)?;
        Ok(StepOutput { logits: Logits::none(self.embedding.tensor.row_count()), taps })
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> Result<(), ModelError> {
        let active = self.active.clone();
        self.keep_in(active, from, rows)
    }

    fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        let active = self.active.clone();
        self.truncate_in(active, len)
    }
}

impl Steps for OnnxCausal {
    fn len(&self) -> usize {
        self.stack.segments[0].len()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput, ModelError> {
        self.advance(step, &Skip::default())
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> Result<(), ModelError> {
        self.stack.keep_in(0..self.stack.segments.len(), from, rows)
    }

    fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        self.stack.truncate_in(0..self.stack.segments.len(), len)
    }
}

impl OnnxCausal {
    /// A step over the whole model.
    fn advance(&mut self, step: &Step<'_>, skip: &Skip) -> Result<StepOutput, ModelError> {
        step.check(&self.info)?;
        skip.check(self.info.layers)?;
        let wanted = step.wanted();
        let all = 0..self.stack.segments.len();
        let before = self.stack.rows(&all)?;
        let (normed, taps) = self.stack.forward(step, skip, all, !wanted.is_empty())?;
        let logits = match normed {
            Some(normed) if !wanted.is_empty() => {
                let width = self.info.width;
                let x = if wanted.len() == step.rows() && wanted.windows(2).all(|pair| pair[0] < pair[1]) {
                    normed
                } else {
                    wanted.iter().flat_map(|&row| &normed[row * width..(row + 1) * width]).copied().collect()
                };
                match self.head(&x, step.form) {
                    Ok(logits) => logits,
                    Err(error) => {
                        self.truncate(before)?;
                        return Err(error);
                    }
                }
            }
            _ => Logits::none(self.info.vocab),
        };
        Ok(StepOutput { logits, taps })
    }
}

impl CausalModel for OnnxCausal {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn step_without(&mut self, step: &Step<'_>, skip: &Skip) -> Result<StepOutput, ModelError> {
        self.info.require(Capability::Skip)?;
        self.advance(step, skip)
    }

    fn embed(&mut self, ids: &[Token]) -> Result<Vec<f32>, ModelError> {
        self.stack.embed(ids)
    }

    fn final_norm(&mut self, residual: &[f32]) -> Result<Vec<f32>, ModelError> {
        check_rows(residual, self.info.width)?;
        self.final_norm.run(residual.to_vec(), self.info.width, |values| Ok(values.to_vec()))
    }

    fn head(&mut self, normed: &[f32], form: LogitForm) -> Result<Logits, ModelError> {
        check_rows(normed, self.info.width)?;
        let (vocab, width) = (self.info.vocab, self.info.width);
        match &self.vocabulary {
            None => self.head.run(normed.to_vec(), width, |values| Logits::reduce(values, vocab, form)),
            Some(tokens) => self.head.run(normed.to_vec(), width, |values| {
                Logits::reduce(values, tokens.len(), form)?.spread(tokens, vocab)
            }),
        }
    }

    fn range(&mut self, layers: Range<usize>) -> Result<&mut dyn Steps, ModelError> {
        let segments = &self.stack.segments;
        let start = segments.iter().position(|segment| segment.layers.start == layers.start);
        let end = segments.iter().position(|segment| segment.layers.end == layers.end);
        match (start, end) {
            (Some(start), Some(end)) if start <= end => {
                self.stack.active = start..end + 1;
                let whole = &self.info.capabilities;
                let inside = |tap: &Tap| match tap {
                    Tap::Residual(layer) => layers.start <= *layer && *layer <= layers.end,
                    Tap::FinalNormed => layers.end == self.stack.layers,
                };
                self.stack.info = ModelInfo {
                    capabilities: Capabilities {
                        taps: whole.taps.iter().copied().filter(inside).collect(),
                        hint: format!("this range runs layers {layers:?}; {}", whole.hint),
                        ..whole.clone()
                    },
                    ..self.info.clone()
                };
                Ok(&mut self.stack)
            }
            _ => Err(ModelError::Unsupported {
                model: self.info.name.clone(),
                capability: Capability::Ranges,
                hint: format!(
                    "layers {layers:?} do not lie between the cuts {:?}; add them to LoadOptions::export.cuts",
                    self.info.capabilities.cuts
                ),
            }),
        }
    }
}

fn check_rows(values: &[f32], width: usize) -> Result<(), ModelError> {
    if values.is_empty() || values.len() % width != 0 {
        return Err(ModelError::Length { what: "numbers in rows of states", got: values.len(), want: width });
    }
    Ok(())
}

impl std::fmt::Debug for OnnxCausal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxCausal").field("info", &self.info).finish_non_exhaustive()
    }
}

impl LoadOptions {
    /// Options with matrices stored this way.
    pub fn storage(mut self, storage: Storage) -> Self {
        self.export.storage = storage;
        self
    }

    /// Options with matrices multiplied by these kernels.
    pub fn products(mut self, products: Products) -> Self {
        self.export.products = products;
        self
    }

    /// Options with steps that can leave out attentions and MLPs, or without.
    pub fn skip(mut self, skip: bool) -> Self {
        self.export.skip = skip;
        self
    }

    /// Options with the layers changed this way on their way out.
    pub fn pass(mut self, pass: GraphPass) -> Self {
        self.export.pass = Some(pass);
        self
    }

    /// Options with a head that has logits for these tokens only.
    pub fn vocabulary(mut self, tokens: impl IntoIterator<Item = Token>) -> Self {
        self.export.vocabulary = Some(tokens.into_iter().collect());
        self
    }

    /// Options for this device.
    pub fn device(mut self, device: Device) -> Self {
        self.session.device = device;
        self
    }

    /// Options with this many threads.
    pub fn threads(mut self, threads: usize) -> Self {
        self.session.threads = threads;
        self
    }
}
