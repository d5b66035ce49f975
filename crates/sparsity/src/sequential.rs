//! Pruning through a network, layer by layer: each layer's inputs are what the pruned layers before it make of the
//! calibration texts.
//!
//! 1. The residual stream of every calibration sequence before the first layer is given.
//! 2. For each layer: with its weights still dense, all sequences run through it, and the inputs of all its linear
//!    layers go into [`Statistics`]; every linear layer is pruned; the sequences run again through the pruned layer,
//!    which gives the residual stream before the next.
//!
//! One layer's statistics and weights are in memory at a time. The embedding and the head are never pruned. A
//! [`Store`] keeps finished layers, so that an interrupted run goes on at the layer that it reached: finished layers are
//! only run, once, to get the residual stream again.

use std::collections::BTreeMap;

use pilotfish_graph::{Graph, Op, Tensor, Value};
use serde::{Deserialize, Serialize};

use crate::prune::prune;
use crate::{Engine, Feed, LayerReport, Pattern, Pruner, Result, SparsityError, Statistics};

/// A network as a row of layers.
pub trait Layers {
    /// How many there are.
    fn count(&self) -> usize;

    /// A layer: input `x` `[1, T, width]` and those of [`Layers::feeds`], output `residual` `[1, T, width]`.
    ///
    /// # Errors
    /// A layer that cannot be built.
    fn layer(&self, index: usize) -> Result<Graph>;

    /// The other inputs of any layer for a text of so many rows; those that a layer does not have are left out.
    fn feeds(&self, rows: usize) -> Vec<(String, Feed)>;

    /// Width of the residual stream.
    fn width(&self) -> usize;
}

/// The residual stream of one text: `[rows, width]`, row-major.
pub type Hidden = Vec<f32>;

/// Which pattern each linear layer gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Patterns {
    /// Of layers that no rule names.
    pub otherwise: Pattern,
    /// Rules: a name of a matrix, or one with `*` for any text, and its pattern.
    pub rules: Vec<(String, Pattern)>,
}

impl Patterns {
    /// One pattern for all.
    pub fn all(pattern: Pattern) -> Self {
        Self { otherwise: pattern, rules: Vec::new() }
    }

    /// The pattern of each of these names.
    ///
    /// # Errors
    /// A rule that names nothing, two rules for one name, a pattern that makes none.
    pub fn of(&self, names: &[&str]) -> Result<BTreeMap<String, Pattern>> {
        self.otherwise.check()?;
        for (rule, pattern) in &self.rules {
            pattern.check()?;
            if !names.iter().any(|name| matches(rule, name)) {
                return Err(SparsityError::unknown("linear layer", rule, names.iter().copied()));
            }
        }
        let one = |name: &&str| {
            let mut found = self.rules.iter().filter(|(rule, _)| matches(rule, name));
            let pattern = found.next().map_or(self.otherwise, |(_, pattern)| *pattern);
            match found.next() {
                Some((other, _)) => {
                    let why = format!("two rules name it, the second being {other:?}");
                    Err(SparsityError::Structure { what: (*name).to_owned(), why })
                }
                None => Ok(((*name).to_owned(), pattern)),
            }
        };
        names.iter().map(one).collect()
    }
}

/// Whether a name fits a rule with `*`.
fn matches(rule: &str, name: &str) -> bool {
    let mut parts = rule.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A layer that was pruned.
#[derive(Clone, Debug)]
pub struct PrunedLayer {
    /// Its matrices, by name.
    pub matrices: BTreeMap<String, Tensor>,
    /// What pruning did to each.
    pub reports: Vec<LayerReport>,
}

/// Where finished layers are kept.
pub trait Store {
    /// A layer that was finished before.
    ///
    /// # Errors
    /// One that is there and cannot be read.
    fn get(&mut self, layer: usize) -> Result<Option<PrunedLayer>>;

    /// Keeps a layer.
    ///
    /// # Errors
    /// It cannot be kept.
    fn put(&mut self, layer: usize, pruned: &PrunedLayer) -> Result<()>;
}

/// Finished layers in memory.
#[derive(Clone, Debug, Default)]
pub struct InMemory {
    /// By number.
    pub layers: BTreeMap<usize, PrunedLayer>,
}

impl Store for InMemory {
    fn get(&mut self, layer: usize) -> Result<Option<PrunedLayer>> {
        Ok(self.layers.get(&layer).cloned())
    }

    fn put(&mut self, layer: usize, pruned: &PrunedLayer) -> Result<()> {
        self.layers.insert(layer, pruned.clone());
        Ok(())
    }
}

/// The linear layers of a graph whose matrix is a parameter: its name, its shape, the value that it reads.
pub fn linears(graph: &Graph) -> Vec<(String, [usize; 2], Value)> {
    let mut found: Vec<(String, [usize; 2], Value)> = Vec::new();
    for node in graph.nodes() {
        if let Op::Linear(_) = node.op
            && let Some(param) = graph.param_of(node.inputs[1])
            && let &[outs, ins] = param.tensor.shape()
        {
            found.push((param.name.clone(), [outs, ins], node.inputs[0]));
        }
    }
    found
}

/// Prunes a network. `hidden` is the residual stream of the calibration texts before the first layer, and is that after
/// the last in the end; `errors` asks for reconstruction errors, which need products of inputs even where the method
/// does not. `progress` is told each layer as it is finished.
///
/// # Errors
/// No texts, a text that is no whole number of rows, a pattern that does not fit, whatever a pruner, the engine or the
/// store refuses.
#[allow(clippy::too_many_arguments)]
pub fn prune_network(
    layers: &dyn Layers,
    hidden: &mut [Hidden],
    engine: &mut dyn Engine,
    patterns: &Patterns,
    pruner: &Pruner,
    errors: bool,
    store: &mut dyn Store,
    progress: &mut dyn FnMut(usize, &PrunedLayer),
) -> Result<()> {
    pruner.check()?;
    check(hidden, layers.width())?;
    // Names are checked against the whole network before anything is computed.
    let mut names = Vec::new();
    for index in 0..layers.count() {
        names.extend(linears(&layers.layer(index)?).into_iter().map(|(name, shape, _)| (name, shape)));
    }
    let chosen = patterns.of(&names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>())?;
    for (name, [_, ins]) in &names {
        chosen[name].fits(*ins)?;
    }
    for index in 0..layers.count() {
        let graph = layers.layer(index)?;
        let pruned = match store.get(index)? {
            Some(pruned) => pruned,
            None => {
                let pruned = prune_layer(layers, &graph, hidden, engine, &chosen, pruner, errors)?;
                store.put(index, &pruned)?;
                pruned
            }
        };
        advance(layers, &with_matrices(&graph, &pruned.matrices)?, hidden, engine)?;
        progress(index, &pruned);
    }
    Ok(())
}

/// A graph with other matrices, where it has them.
///
/// # Errors
/// A matrix of another shape.
pub fn with_matrices(graph: &Graph, matrices: &BTreeMap<String, Tensor>) -> Result<Graph> {
    let mut new = graph.clone();
    for param in graph.params() {
        if let Some(tensor) = matrices.get(&param.name) {
            new.set_param(&param.name, tensor.clone())?;
        }
    }
    Ok(new)
}

/// Runs texts through a layer: `hidden` becomes its `residual`.
///
/// # Errors
/// A layer without that output; whatever the engine refuses.
pub fn advance(
    layers: &dyn Layers,
    graph: &Graph,
    hidden: &mut [Hidden],
    engine: &mut dyn Engine,
) -> Result<()> {
    let only = pilotfish_graph::passes::extract(graph, &[], &[residual(graph)?])?;
    let mut forward = engine.load(&only)?;
    for text in hidden {
        let mut outputs = forward.run(&feeds(layers, &only, text))?;
        *text = outputs.swap_remove(0);
    }
    Ok(())
}

fn residual(graph: &Graph) -> Result<(String, Value)> {
    let found = graph.outputs().iter().find(|(name, _)| name == "residual").cloned();
    found.ok_or_else(|| SparsityError::Structure {
        what: graph.name().into(),
        why: "a layer needs an output named residual".into(),
    })
}

/// Inputs of a layer for a text.
pub(crate) fn feeds<'a>(layers: &dyn Layers, graph: &'a Graph, text: &Hidden) -> Vec<(&'a str, Feed)> {
    let (width, rows) = (layers.width(), text.len() / layers.width().max(1));
    let mut all = layers.feeds(rows);
    all.push(("x".into(), Feed::Float { shape: vec![1, rows, width], values: text.clone() }));
    let named = |(name, feed): (String, Feed)| {
        let mut inputs = graph.inputs().iter().map(|&value| graph.info(value).name.as_str());
        inputs.find(|input| **input == name).map(|input| (input, feed))
    };
    all.into_iter().filter_map(named).collect()
}

pub(crate) fn check(hidden: &[Hidden], width: usize) -> Result<()> {
    if width == 0 || hidden.is_empty() || hidden.iter().any(Vec::is_empty) {
        return Err(SparsityError::NoRows { what: "calibration".into() });
    }
    match hidden.iter().find(|text| text.len() % width != 0) {
        Some(text) => Err(SparsityError::Shape {
            what: "calibration rows".into(),
            got: text.len(),
            want: text.len().next_multiple_of(width),
        }),
        None => Ok(()),
    }
}

/// Runs texts through a layer with what each value holds handed to `see`: the value's place in `values`, its rows.
///
/// # Errors
/// Whatever the engine or `see` refuses.
pub fn observe(
    layers: &dyn Layers,
    graph: &Graph,
    values: &[Value],
    hidden: &[Hidden],
    engine: &mut dyn Engine,
    see: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    // A value that is an input of the graph needs no output of its own.
    let is_input = |value: &Value| graph.inputs().contains(value);
    let outputs: Vec<(String, Value)> = values
        .iter()
        .enumerate()
        .filter(|(_, value)| !is_input(value))
        .map(|(at, value)| (format!("seen.{at}"), *value))
        .collect();
    let tapped = pilotfish_graph::passes::extract(graph, &[], &outputs)?;
    let mut forward = if outputs.is_empty() { None } else { Some(engine.load(&tapped)?) };
    for text in hidden {
        let found = match &mut forward {
            Some(forward) => forward.run(&feeds(layers, &tapped, text))?,
            None => Vec::new(),
        };
        for ((name, _), rows) in outputs.iter().zip(&found) {
            let at = name.strip_prefix("seen.").and_then(|at| at.parse().ok()).unwrap_or(0);
            see(at, rows)?;
        }
        for (at, _) in values.iter().enumerate().filter(|(_, value)| is_input(value)) {
            see(at, text)?;
        }
    }
    Ok(())
}

fn prune_layer(
    layers: &dyn Layers,
    graph: &Graph,
    hidden: &[Hidden],
    engine: &mut dyn Engine,
    patterns: &BTreeMap<String, Pattern>,
    pruner: &Pruner,
    errors: bool,
) -> Result<PrunedLayer> {
    let all = linears(graph);
    let mut reads: Vec<Value> = Vec::new();
    let mut statistics: Vec<Statistics> = Vec::new();
    for (_, [_, ins], value) in &all {
        if !reads.contains(value) {
            reads.push(*value);
            statistics.push(Statistics::new(*ins, errors || pruner.needs_hessian()));
        }
    }
    observe(layers, graph, &reads, hidden, engine, &mut |at, rows| statistics[at].add(rows))?;
    let mut pruned = PrunedLayer { matrices: BTreeMap::new(), reports: Vec::new() };
    for (name, shape, value) in all {
        let Some(param) = graph.params().iter().find(|param| param.name == name) else { continue };
        let at = reads.iter().position(|read| *read == value).unwrap_or(0);
        let touches = pruner.dsnot.as_ref().is_some_and(|dsnot| dsnot.touches(&name));
        let weights = param.tensor.to_f32()?;
        let out = prune(&name, &weights, shape, &statistics[at], patterns[&name], pruner, touches)?;
        pruned.matrices.insert(name, Tensor::new(shape, out.weights)?);
        pruned.reports.push(out.report);
    }
    Ok(pruned)
}
