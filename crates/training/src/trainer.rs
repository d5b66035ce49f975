use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor as CandleTensor};
use pilotfish_graph::{Graph, Tensor};
use pilotfish_model::Streams;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Checkpoints, Saved};
use crate::optimizer::Numbers;
use crate::{
    Gradients, Interpreter, Optimizer, OptimizerConfig, Precision, Result, Schedule, Selection,
    TrainingError, clip, global_norm,
};

/// In which order items are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Shuffled anew in every epoch.
    #[default]
    Reshuffled,
    /// Shuffled once, the same in every epoch (openai/weak-to-strong).
    Fixed,
    /// As given.
    Given,
}

impl Order {
    /// Items of the batch of a step: the epochs laid end to end, cut into batches. A function of its arguments
    /// alone, so that a resumed run needs no state for it.
    ///
    /// # Errors
    /// No items; an empty batch; more than 2^53 items in all.
    pub fn batch(self, seed: u64, items: usize, batch: usize, step: u64) -> Result<Vec<usize>> {
        if items == 0 || batch == 0 {
            let name = if items == 0 { "items" } else { "batch" };
            return Err(TrainingError::BadParameter { name, value: 0.0, want: "at least 1" });
        }
        let start = step.checked_mul(batch as u64).filter(|start| *start < 1 << 53);
        let value = step as f64;
        let start = start.ok_or(TrainingError::BadParameter { name: "step", value, want: "far smaller" })?;
        let mut out = Vec::with_capacity(batch);
        let mut epoch = start / items as u64;
        let mut at = (start % items as u64) as usize;
        while out.len() < batch {
            let order = self.epoch(seed, items, epoch);
            let take = (batch - out.len()).min(items - at);
            out.extend_from_slice(&order[at..at + take]);
            (epoch, at) = (epoch + 1, 0);
        }
        Ok(out)
    }

    fn epoch(self, seed: u64, items: usize, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..items).collect();
        let epoch = match self {
            Self::Given => return order,
            Self::Fixed => 0,
            Self::Reshuffled => epoch,
        };
        order.shuffle(&mut Streams::new(seed).fork(epoch).stream("order"));
        order
    }
}

/// How a run trains.
///
/// | setting | default | source |
/// |---|---|---|
/// | optimiser | AdamW, no decay | w2s-core's reference code (Adam) |
/// | learning rate | 1e-3 | small transformers from scratch |
/// | schedule | constant | |
/// | batch | 32 | weak-to-strong, section 4 |
/// | clip | 1.0 | delta learning's `train_dpo.py`; masked diffusion |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Learning rate that the schedule scales.
    pub lr: f64,
    /// Schedule.
    pub schedule: Schedule,
    /// Steps of the run; see [`TrainerConfig::steps_of_epochs`].
    pub steps: u64,
    /// Items a step.
    pub batch: usize,
    /// Items a forward pass; the gradients of a batch's parts are added up. `None`: the whole batch. Parts run side by side
    /// on the threads of the current rayon pool, and the sum is the same however many these are.
    pub part: Option<usize>,
    /// Largest global norm of the gradients; `None` for no limit.
    pub clip: Option<f64>,
    /// Seed of the order and of whatever a task draws.
    pub seed: u64,
    /// Order of the items.
    pub order: Order,
    /// What is trained.
    pub train: Selection,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerConfig::default(),
            lr: 1e-3,
            schedule: Schedule::default(),
            steps: 1000,
            batch: 32,
            part: None,
            clip: Some(1.0),
            seed: 0,
            order: Order::default(),
            train: Selection::default(),
        }
    }
}

impl TrainerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One outside its range.
    pub fn check(&self) -> Result<()> {
        self.optimizer.check()?;
        self.schedule.check()?;
        let refuse = |name, value, want| Err(TrainingError::BadParameter { name, value, want });
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return refuse("lr", self.lr, "above 0");
        }
        if let Some(clip) = self.clip.filter(|clip| !(*clip > 0.0)) {
            return refuse("clip", clip, "above 0");
        }
        for (name, value) in [("batch", self.batch), ("part", self.part.unwrap_or(1))] {
            if value == 0 {
                return refuse(name, 0.0, "at least 1");
            }
        }
        if self.steps == 0 {
            return refuse("steps", 0.0, "at least 1: are there fewer items than a batch takes?");
        }
        Ok(())
    }

    /// `floor(items epochs / batch)`, as weak-to-strong counts steps.
    ///
    /// # Errors
    /// Fewer than one step.
    pub fn steps_of_epochs(items: usize, epochs: f64, batch: usize) -> Result<u64> {
        let steps = (items as f64 * epochs / batch as f64).floor();
        if !(1.0..9e15).contains(&steps) {
            let want = "at least 1: there are fewer items than a batch takes";
            return Err(TrainingError::BadParameter { name: "steps", value: steps, want });
        }
        Ok(steps as u64)
    }
}

/// Where in a run a loss is computed.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Step, from 0.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Randomness of this step, the same whenever the step is repeated.
    pub streams: Streams,
}

/// The loss of some items.
#[derive(Clone, Debug)]
pub struct BatchLoss {
    /// A scalar, the mean over `weight` units.
    pub loss: CandleTensor,
    /// What the mean is over: items, or tokens. Parts of a batch are weighted by it, so that adding them up
    /// gives the gradient of the whole.
    pub weight: f64,
    /// Tokens that went through the network, for the throughput.
    pub tokens: usize,
}

/// What is to be learned.
pub trait Task: Sync {
    /// Number of items.
    fn items(&self) -> usize;

    /// The loss of some of them.
    ///
    /// # Errors
    /// Whatever the network or the loss refuses.
    fn loss(&self, net: &Interpreter, items: &[usize], at: &At) -> Result<BatchLoss>;
}

/// What came of a part of a batch.
struct Part {
    loss: f64,
    weight: f64,
    tokens: usize,
    gradients: Gradients,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done, this one included.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Loss before the step.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Seconds the step took.
    pub seconds: f64,
}

impl Progress {
    /// Tokens a second of this step.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// Trains parameters of a graph.
///
/// A run is a function of the graph, the settings and the task: a run that is interrupted and resumed from a
/// [checkpoint](Trainer::save) ends with the same bits as one that is not, on the same number of threads.
///
/// ```
/// use candle_core::{Device, Tensor as CandleTensor};
/// use pilotfish_graph::{DType, Dim, Graph, Tensor};
/// use pilotfish_training::{At, BatchLoss, Interpreter, Precision, Result, Task, Trainer, TrainerConfig};
/// /// y = 2 x, to be found.
/// struct Line;
/// impl Task for Line {
///     fn items(&self) -> usize { 8 }
///     fn loss(&self, net: &Interpreter, items: &[usize], _: &At) -> Result<BatchLoss> {
///         let x: Vec<f32> = items.iter().map(|&item| item as f32 / 8.0).collect();
///         let x = CandleTensor::from_vec(x, (items.len(), 1), &Device::Cpu)?;
///         let y = net.forward(&[("x".to_owned(), x.clone())].into())?["y"].clone();
///         let loss = (y - x.affine(2.0, 0.0)?)?.sqr()?.mean_all()?;
///         Ok(BatchLoss { loss, weight: items.len() as f64, tokens: items.len() })
///     }
/// }
/// let mut g = Graph::new("line");
/// let x = g.input("x", vec![Dim::symbol("B"), 1.into()], DType::F32)?;
/// let w = g.param("w", Tensor::new([1, 1], vec![0.0])?)?;
/// let y = g.linear(x, w, None)?;
/// g.output("y", y)?;
/// let config = TrainerConfig { lr: 0.05, steps: 200, batch: 4, ..TrainerConfig::default() };
/// let mut trainer = Trainer::new(&g, config, Precision::F32)?;
/// let last = trainer.run(&Line, None, |_| std::ops::ControlFlow::Continue(()))?;
/// assert!(last.is_some_and(|last| last.loss < 1e-4));
/// assert!((trainer.net().param("w")?[0] - 2.0).abs() < 0.02);
/// # Ok::<(), pilotfish_training::TrainingError>(())
/// ```
pub struct Trainer {
    graph: Graph,
    net: Interpreter,
    config: TrainerConfig,
    optimizer: Optimizer,
    fingerprint: Option<String>,
    /// A thread for each part of a batch that runs beside others.
    pools: Vec<rayon::ThreadPool>,
}

impl Trainer {
    /// A trainer at step 0.
    ///
    /// # Errors
    /// Settings outside their range; a selection that selects nothing, or a matrix that is stored quantised.
    pub fn new(graph: &Graph, config: TrainerConfig, precision: Precision) -> Result<Self> {
        config.check()?;
        let names = config.train.of(graph)?;
        let mut net = Interpreter::new(graph, precision)?;
        net.train(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let optimizer = Optimizer::new(config.optimizer)?;
        Ok(Self { graph: graph.clone(), net, config, optimizer, fingerprint: None, pools: Vec::new() })
    }

    /// The network as it is now.
    pub fn net(&self) -> &Interpreter {
        &self.net
    }

    /// The settings.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Numbers that are trained.
    pub fn trained_parameters(&self) -> usize {
        self.net.variables().values().map(|var| var.elem_count()).sum()
    }

    /// Some parts of a batch, each on a thread of its own. Products of matrices inside a part find a pool of one thread:
    /// threads that share a product of this size wait for each other longer than they work.
    fn side_by_side(&mut self, task: &impl Task, parts: &[&[usize]], at: &At) -> Result<Vec<Result<Part>>> {
        if let [part] = parts {
            return Ok(vec![self.part(task, part, at)]);
        }
        while self.pools.len() < parts.len() {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            let why = |error: rayon::ThreadPoolBuildError| TrainingError::Threads(error.to_string());
            self.pools.push(pool.map_err(why)?);
        }
        let this = &*self;
        let mut done = Vec::new();
        done.resize_with(parts.len(), || None);
        std::thread::scope(|scope| {
            for ((pool, part), done) in this.pools.iter().zip(parts).zip(&mut done) {
                scope.spawn(move || *done = Some(pool.install(|| this.part(task, part, at))));
            }
        });
        Ok(done.into_iter().flatten().collect())
    }

    /// Loss and gradients of a part of a batch.
    fn part(&self, task: &impl Task, items: &[usize], at: &At) -> Result<Part> {
        let of_part = task.loss(&self.net, items, at)?;
        let loss = of_part.loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !loss.is_finite() {
            return Err(TrainingError::NotFinite { step: at.step, what: "loss", value: loss });
        }
        let (weight, tokens) = (of_part.weight, of_part.tokens);
        if !(weight > 0.0 && weight.is_finite()) {
            let (value, want) = (weight, "above 0");
            return Err(TrainingError::BadParameter { name: "weight of a part", value, want });
        }
        Ok(Part { loss, weight, tokens, gradients: self.net.gradients(&of_part.loss)? })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// The run is over; whatever the task refuses; a loss or gradients that are not finite. Parameters and
    /// optimiser are then as before.
    pub fn step(&mut self, task: &impl Task) -> Result<Progress> {
        let started = Instant::now();
        let (step, steps) = (self.optimizer.steps(), self.config.steps);
        if step >= steps {
            let want = "below the steps of the run, which is over";
            return Err(TrainingError::BadParameter { name: "step", value: step as f64, want });
        }
        let at = At { step, steps, streams: Streams::new(self.config.seed).fork(!step) };
        let batch = self.config.order.batch(self.config.seed, task.items(), self.config.batch, step)?;
        let parts: Vec<&[usize]> = batch.chunks(self.config.part.unwrap_or(batch.len())).collect();
        let (mut loss, mut weight, mut tokens) = (0.0, 0.0, 0);
        let mut sum: Gradients = Gradients::new();
        // As many parts at once as there are threads; they are added up in order, whoever is first.
        for together in parts.chunks(rayon::current_num_threads().max(1)) {
            for part in self.side_by_side(task, together, &at)? {
                let part = part?;
                loss += part.weight * part.loss;
                weight += part.weight;
                tokens += part.tokens;
                if parts.len() == 1 {
                    sum = part.gradients;
                    break;
                }
                for (name, gradient) in part.gradients {
                    let gradient = gradient.affine(part.weight, 0.0)?;
                    let total = match sum.get(&name) {
                        Some(so_far) => (so_far + gradient)?,
                        None => gradient,
                    };
                    sum.insert(name, total);
                }
            }
        }
        if parts.len() > 1 {
            for gradient in sum.values_mut() {
                *gradient = gradient.affine(1.0 / weight, 0.0)?;
            }
        }
        let norm = match self.config.clip {
            Some(limit) => clip(&mut sum, limit)?,
            None => global_norm(&sum)?,
        };
        if !norm.is_finite() {
            return Err(TrainingError::NotFinite { step, what: "norm of the gradients", value: norm });
        }
        let lr = self.config.lr * self.config.schedule.factor(step, steps);
        self.optimizer.step(lr, self.net.variables(), &sum)?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Progress { step: step + 1, steps, loss: loss / weight, norm, lr, tokens, seconds })
    }

    /// Takes the steps that are left, saving checkpoints on the way, until `observe` breaks off. Returns the last
    /// step's progress; `None` if none was left.
    ///
    /// # Errors
    /// As [`Trainer::step`]; a checkpoint that cannot be written.
    pub fn run(
        &mut self,
        task: &impl Task,
        checkpoints: Option<&Checkpoints>,
        mut observe: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Option<Progress>> {
        let mut last = None;
        while self.optimizer.steps() < self.config.steps {
            let progress = self.step(task)?;
            last = Some(progress);
            if let Some(checkpoints) = checkpoints
                && checkpoints.due(&progress)
            {
                checkpoints.save(self)?;
            }
            if observe(&progress).is_break() {
                break;
            }
        }
        Ok(last)
    }

    /// The graph with the parameters as they are now, rounded to f32: for ONNX, and for other readers.
    ///
    /// # Errors
    /// A parameter that cannot be read.
    pub fn graph(&self) -> Result<Graph> {
        let mut graph = self.graph.clone();
        for (name, var) in self.net.variables() {
            let values = var.as_tensor().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            graph.set_param(name, Tensor::new(var.dims(), values)?)?;
        }
        Ok(graph)
    }

    /// Writes a checkpoint: trained parameters, the optimiser's moments and the step. The file appears whole or
    /// not at all, and ends with a digest of itself.
    ///
    /// # Errors
    /// The operating system's.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        let fingerprint = self.fingerprint()?;
        let mut params = BTreeMap::new();
        for (name, var) in self.net.variables() {
            let flat = var.as_tensor().flatten_all()?;
            let values = match var.dtype() {
                DType::F64 => Numbers::F64(flat.to_vec1()?),
                _ => Numbers::F32(flat.to_vec1()?),
            };
            params.insert(name.as_str(), values);
        }
        checkpoint::write(
            path,
            &self.config,
            &fingerprint,
            self.optimizer.steps(),
            &params,
            self.optimizer.state(),
        )
    }

    /// Takes up a run where a checkpoint left it.
    ///
    /// # Errors
    /// A file that is not whole ([`TrainingError::Checkpoint`]); one of another graph, of other frozen
    /// parameters, of other settings or of another precision ([`TrainingError::OtherRun`]). Nothing is changed
    /// then.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let fingerprint = self.fingerprint()?;
        let saved: Saved = checkpoint::read(path)?;
        let other =
            |what: &str| TrainingError::OtherRun { path: path.display().to_string(), what: what.into() };
        if saved.fingerprint != fingerprint {
            return Err(other("graph, parameters that are not trained, or precision"));
        }
        if saved.config != self.config {
            return Err(other("settings"));
        }
        let mut tensors = Vec::new();
        for (name, var) in self.net.variables() {
            let values = saved
                .params
                .get(name)
                .filter(|values| values.len() == var.elem_count() && values.dtype() == var.dtype());
            let moments = saved.moments.get(name).map_or(&[][..], Vec::as_slice);
            let fits =
                |numbers: &Numbers| numbers.len() == var.elem_count() && numbers.dtype() == var.dtype();
            let count = if saved.step == 0 { 0 } else { self.optimizer.moment_count() };
            let (Some(values), true) = (values, moments.len() == count && moments.iter().all(fits)) else {
                return Err(other("parameters"));
            };
            tensors.push((
                var,
                match values {
                    Numbers::F32(values) => CandleTensor::from_slice(values, var.shape(), &Device::Cpu)?,
                    Numbers::F64(values) => CandleTensor::from_slice(values, var.shape(), &Device::Cpu)?,
                },
            ));
        }
        if saved.params.len() != tensors.len() {
            return Err(other("parameters"));
        }
        for (var, tensor) in tensors {
            var.set(&tensor)?;
        }
        self.optimizer.restore(saved.step, saved.moments);
        Ok(())
    }

    /// What must be the same in a run that goes on: the graph, parameters that are not trained, the precision.
    fn fingerprint(&mut self) -> Result<String> {
        if let Some(fingerprint) = &self.fingerprint {
            return Ok(fingerprint.clone());
        }
        let trained: Vec<&str> = self.net.variables().keys().map(String::as_str).collect();
        let precision = format!("{:?}", self.net.precision());
        let fingerprint = checkpoint::fingerprint(&self.graph, &trained, &precision)?;
        self.fingerprint = Some(fingerprint.clone());
        Ok(fingerprint)
    }
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer({}, step {} of {})", self.graph.name(), self.steps_done(), self.config.steps)
    }
}
