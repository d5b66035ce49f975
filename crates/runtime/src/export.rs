//! Networks on their way into ONNX Runtime: written once as ONNX into a folder, and found there again.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs4::fs_std::FileExt;
use pilotfish_architectures::{BodyOptions, CausalConfig, CausalNetwork, Checkpoint};
use pilotfish_graph::cost::{Cost, cost};
use pilotfish_graph::onnx::{self, Lowering, Switch};
use pilotfish_graph::{Graph, Mark, Node, Op, Storage, passes};
use pilotfish_model::Token;
use sha2::{Digest, Sha256};

use crate::home::Home;
use crate::planner::{Planner, ProductChoice};
use crate::products::Products;
use crate::{Device, Result, RuntimeError};

/// Raised whenever what is written changes.
const FORMAT: u32 = 4;

/// A change of a network's layers on their way out, such as a plan of sparsity.
#[derive(Clone)]
pub struct GraphPass {
    name: String,
    change: Arc<Change>,
}

type Change = dyn Fn(&Graph) -> Result<Graph, Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

impl GraphPass {
    /// A change and its name. Exports are kept by the name, so two that differ in what they do must differ in it: end it in
    /// a digest. It sees every range of layers between cuts, whole, before linear layers are joined.
    pub fn new(
        name: impl Into<String>,
        change: impl Fn(&Graph) -> Result<Graph, Box<dyn std::error::Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), change: Arc::new(change) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn apply(&self, graph: &Graph) -> Result<Graph> {
        (self.change)(graph)
            .map_err(|error| RuntimeError::Pass { name: self.name.clone(), why: error.to_string() })
    }
}

impl PartialEq for GraphPass {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for GraphPass {}

impl std::fmt::Debug for GraphPass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GraphPass({})", self.name)
    }
}

impl serde::Serialize for GraphPass {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

/// How a network is written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ExportOptions {
    /// How matrices are stored, the head included.
    pub storage: Storage,
    /// Residuals that can be tapped, besides those at cuts.
    pub taps: Vec<usize>,
    /// Layers after which the body is cut, so that ranges can be run.
    pub cuts: Vec<usize>,
    /// Whether ONNX Runtime's own operators may be used. Without them everything is official ONNX, and a step
    /// copies the cache.
    pub fused: bool,
    /// Whose kernels multiply matrices.
    pub products: Products,
    /// Whether steps can leave out attentions and MLPs, at no cost for what is left out. Each then is a branch of its
    /// own, which costs a step that leaves nothing out some hundredths of its time.
    pub skip: bool,
    /// What is done to the layers once they are stored.
    pub pass: Option<GraphPass>,
    /// The tokens that the head has logits for, each once; all others are impossible. `None` for all. A model that drafts
    /// needs the frequent ones only, and its head may be a fifth of what its step costs.
    pub vocabulary: Option<Vec<Token>>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            storage: Storage::F32,
            taps: Vec::new(),
            cuts: Vec::new(),
            fused: true,
            products: Products::Ort,
            skip: false,
            pass: None,
            vocabulary: None,
        }
    }
}

impl ExportOptions {
    pub(crate) fn check(&self, config: &CausalConfig) -> Result<()> {
        let layers = config.layers;
        if let Products::Auto { rows: 0 } = self.products {
            let want = "a number of rows";
            return Err(RuntimeError::Option { option: "products", value: self.products.to_string(), want });
        }
        for (option, list, most) in [("taps", &self.taps, layers), ("cuts", &self.cuts, layers)] {
            if let Some(value) = list.iter().find(|&&value| value > most) {
                let want = "layers of the model";
                return Err(RuntimeError::Option { option, value: value.to_string(), want });
            }
        }
        if let Some(tokens) = &self.vocabulary {
            let mut seen = vec![false; config.vocab];
            let mut fresh = |token: Token| {
                seen.get_mut(token as usize).is_some_and(|seen| !std::mem::replace(seen, true))
            };
            let value = match tokens.iter().find(|&&token| !fresh(token)) {
                Some(token) => format!("token {token}"),
                None if tokens.is_empty() => "none".into(),
                None => return Ok(()),
            };
            let want = "tokens of the model, at least one, each once";
            return Err(RuntimeError::Option { option: "vocabulary", value, want });
        }
        Ok(())
    }

    /// The ranges between cuts, in order.
    pub(crate) fn segments(&self, layers: usize) -> Vec<Range<usize>> {
        let mut ends: Vec<usize> = self.cuts.iter().copied().filter(|&cut| 0 < cut && cut < layers).collect();
        ends.push(layers);
        ends.sort_unstable();
        ends.dedup();
        let starts = std::iter::once(0).chain(ends.clone());
        starts.zip(ends).map(|(start, end)| start..end).collect()
    }

    /// Options as they are used: ONNX Runtime's fused attention writes into host memory, so other devices use
    /// the official operators, and ONNX Runtime's products: our kernels run on processors.
    pub(crate) fn on(&self, device: Device) -> Self {
        let cpu = device == Device::Cpu;
        Self {
            fused: self.fused && cpu,
            products: if cpu { self.products } else { Products::Ort },
            ..self.clone()
        }
    }
}

/// The files of an exported network.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    folder: PathBuf,
    /// Whose kernel multiplies each matrix.
    pub choices: Vec<ProductChoice>,
}

impl Exported {
    pub(crate) fn body(&self, layers: &Range<usize>) -> PathBuf {
        self.folder.join(format!("body.{}-{}.onnx", layers.start, layers.end))
    }

    pub(crate) fn head(&self) -> PathBuf {
        self.folder.join("head.onnx")
    }

    pub(crate) fn final_norm(&self) -> PathBuf {
        self.folder.join("final_norm.onnx")
    }
}

/// The export of a checkpoint in the cache folder, written now if it is not there. Several processes may ask at
/// once; one writes.
pub(crate) fn cached(
    checkpoint: &Checkpoint,
    network: &CausalNetwork,
    options: &ExportOptions,
    threads: usize,
) -> Result<Exported> {
    let mut planner = Planner::new(options.products, threads);
    let choices = plan(network, options, &mut planner)?;
    let root = Home::locate()?.root().join("exports");
    std::fs::create_dir_all(&root).map_err(|source| RuntimeError::io(&root, source))?;
    let name = key(checkpoint, options, &choices)?;
    let folder = root.join(&name);
    if folder.is_dir() {
        return Ok(Exported { folder, choices });
    }
    let lock = root.join(format!("{name}.lock"));
    let file = File::create(&lock).map_err(|source| RuntimeError::io(&lock, source))?;
    file.lock_exclusive().map_err(|source| RuntimeError::io(&lock, source))?;
    if !folder.is_dir() {
        let partial = root.join(format!("{name}.partial"));
        // Left by a process that was killed: whoever holds the lock may clear it away.
        if partial.is_dir() {
            std::fs::remove_dir_all(&partial).map_err(|source| RuntimeError::io(&partial, source))?;
        }
        write(network, options, &mut planner, &partial)?;
        std::fs::rename(&partial, &folder).map_err(|source| RuntimeError::io(&folder, source))?;
    }
    Ok(Exported { folder, choices })
}

/// Writes all files of a network into a folder, which is created.
pub(crate) fn write(
    network: &CausalNetwork,
    options: &ExportOptions,
    planner: &mut Planner,
    folder: &Path,
) -> Result<Exported> {
    std::fs::create_dir_all(folder).map_err(|source| RuntimeError::io(folder, source))?;
    let layers = network.config().layers;
    options.check(network.config())?;
    let exported = Exported { folder: folder.into(), choices: plan(network, options, planner)? };
    for range in options.segments(layers) {
        let graph = planner.lower(&body(network, options, &range)?)?;
        let switches = if options.skip { switches(&range) } else { Vec::new() };
        put(&graph, network, options, &switches, &exported.body(&range))?;
    }
    let head = planner.lower(&head(network, options)?)?;
    put(&head, network, options, &[], &exported.head())?;
    put(&network.final_norm_graph()?, network, options, &[], &exported.final_norm())?;
    Ok(exported)
}

/// A choice for every matrix.
fn plan(
    network: &CausalNetwork,
    options: &ExportOptions,
    planner: &mut Planner,
) -> Result<Vec<ProductChoice>> {
    let mut choices = Vec::new();
    for range in options.segments(network.config().layers) {
        choices.extend(planner.choices(&body(network, options, &range)?)?);
    }
    choices.extend(planner.choices(&head(network, options)?)?);
    Ok(choices)
}

/// Two switches a layer: its attention, whose keys and values then stay as they are, and its MLP.
fn switches(layers: &Range<usize>) -> Vec<Switch> {
    let of = |layer: usize| {
        let carried =
            ["key", "value"].map(|kind| (format!("{kind}.{layer}"), format!("past_{kind}.{layer}")));
        let (from, to) = (Mark::Residual(layer), Mark::Attended(layer));
        let mlp = Switch { from: to, to: Mark::Residual(layer + 1), carried: Vec::new() };
        [Switch { from, to, carried: carried.into() }, mlp]
    };
    layers.clone().flat_map(of).collect()
}

/// Layers as they are stored. One long product streams memory better than three short ones.
fn body(network: &CausalNetwork, options: &ExportOptions, layers: &Range<usize>) -> Result<Graph> {
    let body_options = BodyOptions { taps: options.taps.clone(), ..BodyOptions::default() };
    let graph = stored(&network.body(layers.clone(), &body_options)?, options.storage)?;
    let graph = match &options.pass {
        Some(pass) => pass.apply(&graph)?,
        None => graph,
    };
    Ok(passes::merge_linears(&graph)?)
}

fn head(network: &CausalNetwork, options: &ExportOptions) -> Result<Graph> {
    let mut graph = network.head_graph()?;
    if let Some(tokens) = &options.vocabulary {
        let keep: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
        graph = passes::keep_outputs(&graph, &keep)?;
    }
    Ok(passes::merge_linears(&stored(&graph, options.storage)?)?)
}

fn stored(graph: &Graph, storage: Storage) -> Result<Graph> {
    match storage {
        Storage::F32 => Ok(graph.clone()),
        storage => Ok(passes::store(graph, |_| Some(storage))?),
    }
}

/// What one row costs.
pub(crate) struct RowCosts {
    /// In all layers, attention over the cache excluded.
    pub(crate) body: Cost,
    /// In the head.
    pub(crate) head: Cost,
    /// Bytes of weights of each layer's attention and of its MLP, norms included.
    pub(crate) sublayer_bytes: Vec<[u64; 2]>,
}

/// Prices a network as it is written.
pub(crate) fn costs_of_a_row(network: &CausalNetwork, options: &ExportOptions) -> Result<RowCosts> {
    let layers = network.config().layers;
    let all = body(network, &ExportOptions { taps: vec![], ..options.clone() }, &(0..layers))?;
    let priced = |graph: &Graph| cost(graph, &[("T", 1), ("L", 0), ("R", 1)]);
    let sum = |graph: &Graph, nodes: &[Cost]| {
        let counted = |node: &&Node| !matches!(node.op, Op::Attention { .. });
        let mut sum = Cost::default();
        graph.nodes().iter().zip(nodes).filter(|(node, _)| counted(node)).for_each(|(_, &c)| sum += c);
        sum
    };
    let costs = priced(&all)?;
    let of = |wanted| {
        let part = costs.parts.iter().find(|(mark, _)| *mark == Some(wanted));
        part.map_or(0, |(_, cost)| cost.weight_bytes)
    };
    let sublayer_bytes =
        (0..layers).map(|layer| [of(Mark::Attended(layer)), of(Mark::Residual(layer + 1))]).collect();
    let head = head(network, options)?;
    Ok(RowCosts { body: sum(&all, &costs.nodes), head: sum(&head, &priced(&head)?.nodes), sublayer_bytes })
}

fn put(
    graph: &Graph,
    network: &CausalNetwork,
    options: &ExportOptions,
    switches: &[Switch],
    path: &Path,
) -> Result<()> {
    let lowering = match options.fused {
        true => Lowering::Fused { positions: network.config().context },
        false => Lowering::Standard,
    };
    Ok(onnx::write_switched(graph, lowering, switches, path)?)
}

/// A folder name from everything the files depend on.
fn key(checkpoint: &Checkpoint, options: &ExportOptions, choices: &[ProductChoice]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {options:?} "));
    if let Products::Auto { .. } = options.products {
        choices.iter().for_each(|choice| hash.update(format!("{} {}\n", choice.name, choice.products)));
    }
    let path =
        checkpoint.path().canonicalize().map_err(|source| RuntimeError::io(checkpoint.path(), source))?;
    let mut files = vec![path.clone()];
    if path.is_dir() {
        let entries = std::fs::read_dir(&path).map_err(|source| RuntimeError::io(&path, source))?;
        files = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
    }
    for file in files {
        let meta = std::fs::metadata(&file).map_err(|source| RuntimeError::io(&file, source))?;
        let time = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        hash.update(format!("{} {} {time:?}\n", file.display(), meta.len()));
    }
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let stem: String = checkpoint
        .name()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(40)
        .collect();
    Ok(format!("{stem}-{}-{digest}", options.storage))
}
