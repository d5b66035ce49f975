use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pilotfish_architectures::Checkpoint;
use pilotfish_evaluation::texts;
use pilotfish_graph::Tensor;
use pilotfish_sparsity::gate::{GATES, GateMethod};
use pilotfish_sparsity::plan::{Calibration, LayerPlan, Plan};
use pilotfish_sparsity::sequential::{Layers, Patterns, linears, prune_network};
use pilotfish_sparsity::wina::Rotations;
use pilotfish_sparsity::{LayerReport, Pattern, Pruner, SparsityError};

use super::{Decoder, FolderStore, OnnxEngine, gate_plan, plan_of, samples, write_model};
use crate::error::Failure;

/// How a model is made sparse.
#[derive(Clone, Debug)]
pub struct Sparsify {
    /// The model's file or folder.
    pub model: PathBuf,
    /// A pruner's name ([`PRUNERS`](pilotfish_sparsity::PRUNERS)) or a gate's ([`GATES`](pilotfish_sparsity::gate::GATES)).
    pub method: String,
    /// A pattern: a share of zeros, or N:M.
    pub pattern: String,
    /// Patterns of layers by name, `*` for any text: `name=pattern`.
    pub layers: Vec<String>,
    /// File of calibration text; *Persuasion* without.
    pub calib: Option<PathBuf>,
    /// Calibration sequences.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
    /// Seed of their places in the text.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// The folder to write.
    pub out: PathBuf,
}

/// Prunes or gates a model and writes it as a folder. Finished layers are kept beside it until it is whole, so that the
/// same command goes on where it was interrupted; `progress` is told each layer that was pruned. Gates change no weights:
/// their thresholds are in the plan, and 2 % of a calibration sequence's length are first tokens that they leave dense.
///
/// # Errors
/// Names that mean nothing (with the nearest that does), a folder that is there already, whatever cannot be read, run or
/// written.
pub fn sparsify(
    config: &Sparsify,
    progress: &mut dyn FnMut(usize, usize, &[LayerReport]),
) -> Result<Plan, Failure> {
    let how = method(&config.method)?;
    let mut patterns = Patterns::all(config.pattern.parse()?);
    for rule in &config.layers {
        let (name, pattern) =
            rule.split_once('=').ok_or_else(|| format!("{rule:?}: NAME=PATTERN is wanted"))?;
        patterns.rules.push((name.to_owned(), pattern.parse()?));
    }
    if config.out.symlink_metadata().is_ok() {
        return Err(crate::PipelineError::Exists { path: config.out.display().to_string() }.into());
    }
    let checkpoint = Checkpoint::open(&config.model)?;
    let decoder = Decoder::new(checkpoint.causal()?);
    let tokenizer = checkpoint.tokenizer()?;
    let (text, source) = match &config.calib {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (text, name)
        }
        None => (texts::PERSUASION.to_owned(), "Persuasion".to_owned()),
    };
    let tokens = tokenizer.encode(&text, false)?;
    let drawn = samples(&tokens, config.sequences, config.length, config.seed)?;
    let mut hidden = drawn.iter().map(|text| decoder.embed(text)).collect::<Result<Vec<_>, _>>()?;
    let mut plan = Plan::new(checkpoint.name());
    plan.calibration =
        Some(Calibration { source, sequences: config.sequences, length: config.length, seed: config.seed });
    let pruner = match how {
        How::Prune(pruner) => pruner,
        How::Gate(gate) => {
            let (Pattern::Unstructured { sparsity }, true) = (patterns.otherwise, patterns.rules.is_empty())
            else {
                return Err(
                    format!("--pattern {}: gates take one share of inputs", patterns.otherwise).into()
                );
            };
            let rotations = if gate.rotates() { Some(Rotations::of(&decoder)?) } else { None };
            let mut engine = OnnxEngine::new(config.threads)?;
            let gates = gate_plan(&decoder, gate, sparsity, Some(&drawn), rotations.as_ref(), &mut engine)?;
            (plan.gates, plan.layers) = (gates.gates, gates.layers);
            plan.layers.values_mut().for_each(|layer| layer.packed = true);
            plan.dense_positions = config.length.div_ceil(50);
            write_model(&checkpoint, &BTreeMap::new(), &plan, &config.out)?;
            return Ok(plan);
        }
    };
    plan.pruner = Some(pruner.clone());
    let mut store = FolderStore::new(work_folder(&config.out, &plan, &patterns)?)?;
    let (count, mut matrices) = (decoder.count(), BTreeMap::<String, Tensor>::new());
    prune_network(
        &decoder,
        &mut hidden,
        &mut OnnxEngine::new(config.threads)?,
        &patterns,
        &pruner,
        false,
        &mut store,
        &mut |index, pruned| {
            matrices.extend(pruned.matrices.clone());
            progress(index, count, &pruned.reports);
        },
    )?;
    let mut names = Vec::new();
    for index in 0..count {
        names.extend(linears(&decoder.layer(index)?).into_iter().map(|(name, _, _)| name));
    }
    let chosen = patterns.of(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (name, pattern) in chosen.into_iter().filter(|(_, pattern)| *pattern != Pattern::Dense) {
        let packed = matches!(pattern, Pattern::Grouped { group, .. } if group <= LARGEST_GROUP);
        plan.layers.insert(name, LayerPlan { pattern, packed, ..LayerPlan::default() });
    }
    write_model(&checkpoint, &matrices, &plan, &config.out)?;
    store.clear()?;
    Ok(plan)
}

/// The largest groups that our kernels pack.
const LARGEST_GROUP: usize = 32;

enum How {
    Prune(Pruner),
    Gate(GateMethod),
}

/// A pruner or a gate by name.
fn method(name: &str) -> Result<How, SparsityError> {
    if let Ok(gate) = name.parse() {
        return Ok(How::Gate(gate));
    }
    match name.parse() {
        Ok(pruner) => Ok(How::Prune(pruner)),
        Err(error) if GATES.iter().all(|gate| strsim::damerau_levenshtein(name, gate) > 1) => Err(error),
        // It is nearer to a gate's name.
        Err(_) => name.parse().map(How::Gate),
    }
}

/// Where finished layers wait: a folder beside the result, named by what they depend on.
fn work_folder(out: &Path, plan: &Plan, patterns: &Patterns) -> Result<PathBuf, Failure> {
    use sha2::{Digest, Sha256};
    let text = format!("{}{}", serde_json::to_string(plan)?, serde_json::to_string(patterns)?);
    let key: String = Sha256::digest(text).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".layers-{key}"));
    Ok(out.with_file_name(name))
}

/// What is sparse in a model folder, for people; with `other`, what the two have different.
///
/// # Errors
/// A folder without a plan.
pub fn describe(model: &Path, other: Option<&Path>) -> Result<String, Failure> {
    let read = |path: &Path| -> Result<Plan, Failure> {
        let missing = || SparsityError::File {
            path: path.display().to_string(),
            why: "no plan.json; it is not a sparse model".into(),
        };
        Ok(plan_of(path)?.ok_or_else(missing)?)
    };
    let plan = read(model)?;
    if let Some(other) = other {
        let lines = plan.compare(&read(other)?);
        return Ok(if lines.is_empty() { "the plans are equal".into() } else { lines.join("\n") });
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    plan.layers.values().for_each(|layer| *counts.entry(layer.to_string()).or_default() += 1);
    let method = plan.pruner.as_ref().map_or("no pruner", |pruner| pruner.name());
    let gates = plan.gates.map_or("no gates", |gates| gates.name());
    let mut text = format!("{}: {method}, {gates}", plan.model);
    for (layer, count) in counts {
        text.push_str(&format!("\n{count} matrices: {layer}"));
    }
    Ok(text)
}
