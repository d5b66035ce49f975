//! Graphs from graphs. A pass never changes its argument; values of the old graph mean nothing in the new one,
//! which is why outputs, marks and parameter names carry over.

mod expand;
mod linear;

pub(crate) use expand::expand_node;
pub use expand::{expand, rotary_frequencies};
pub use linear::{fold_norms, keep_outputs, merge_linears, store};

use std::collections::{HashMap, HashSet};

use crate::{Graph, GraphError, Mark, Node, Producer, Result, Value};

/// Copies a graph node by node. `rule` may replace a node: it gets the new graph, the node and its operands in
/// the new graph, and returns the values that take the place of the node's results, or `None` to copy it.
/// Nodes and parameters that nothing needs are left out, also of those that `rule` made or replaced; inputs
/// stay.
pub fn rewrite(
    graph: &Graph,
    rule: impl FnMut(&mut Graph, &Node, &[Value]) -> Result<Option<Vec<Value>>>,
) -> Result<Graph> {
    let new = copy_by(graph, rule)?;
    let outputs: Vec<Value> = new.outputs().iter().map(|(_, value)| *value).collect();
    let needed = needed(&new, &outputs, &HashSet::new());
    let tidy = new.params().iter().all(|param| needed.contains(&param.value))
        && new.nodes().iter().all(|node| node.outputs.iter().any(|value| needed.contains(value)));
    if tidy { Ok(new) } else { copy_by(&new, |_, _, _| Ok(None)) }
}

fn copy_by(
    graph: &Graph,
    mut rule: impl FnMut(&mut Graph, &Node, &[Value]) -> Result<Option<Vec<Value>>>,
) -> Result<Graph> {
    let outputs: Vec<Value> = graph.outputs().iter().map(|(_, value)| *value).collect();
    let needed = needed(graph, &outputs, &HashSet::new());
    let mut copy = Copy::new(graph);
    for &input in graph.inputs() {
        copy.input(input)?;
    }
    for node in graph.nodes().iter().filter(|node| node.outputs.iter().any(|value| needed.contains(value))) {
        let inputs = copy.operands(node)?;
        let results = match rule(&mut copy.new, node, &inputs)? {
            Some(results) => results,
            None => copy.new.apply(node.op.clone(), &inputs)?,
        };
        copy.map.extend(node.outputs.iter().copied().zip(results));
    }
    copy.finish(graph.outputs())
}

/// The part of a graph between `inputs` (values that become inputs under the given names) and `outputs`.
/// Inputs of the graph that the part needs stay inputs.
pub fn extract(graph: &Graph, inputs: &[(&str, Value)], outputs: &[(String, Value)]) -> Result<Graph> {
    let ends: HashSet<Value> = inputs.iter().map(|(_, value)| *value).collect();
    let wanted: Vec<Value> = outputs.iter().map(|(_, value)| *value).collect();
    let needed = needed(graph, &wanted, &ends);
    let mut copy = Copy::new(graph);
    for (name, value) in inputs {
        let info = graph.info(*value);
        let new = copy.new.input(name, info.shape.clone(), info.dtype)?;
        copy.map.insert(*value, new);
    }
    for &input in graph.inputs().iter().filter(|input| needed.contains(input) && !ends.contains(input)) {
        copy.input(input)?;
    }
    for node in graph.nodes() {
        let used = node.outputs.iter().any(|value| needed.contains(value) && !ends.contains(value));
        if used {
            let inputs = copy.operands(node)?;
            let results = copy.new.apply(node.op.clone(), &inputs)?;
            for (old, new) in node.outputs.iter().zip(results) {
                copy.map.entry(*old).or_insert(new);
            }
        }
    }
    copy.finish(outputs)
}

/// Cuts a graph at [`Mark::Residual`]`(layer)`: the part before it, with the residual as output `residual`, and
/// the part after it, with an input `x` in its place. Other outputs go where they are computed.
pub fn cut(graph: &Graph, layer: usize) -> Result<(Graph, Graph)> {
    let Some(at) = graph.marked(Mark::Residual(layer)) else {
        let known = format!("{:?}", graph.marks().iter().map(|(mark, _)| mark).collect::<Vec<_>>());
        return Err(GraphError::NoSuchName { kind: "mark", name: format!("Residual({layer})"), known });
    };
    let before = needed(graph, &[at], &HashSet::new());
    let (mut first, mut second) = (vec![("residual".to_owned(), at)], Vec::new());
    for (name, value) in graph.outputs() {
        if *value == at {
            continue;
        }
        // An output belongs to the first part when nothing it needs lies behind the cut.
        let alone = needed(graph, &[*value], &HashSet::new());
        let early = before.contains(value) || !alone.contains(&at);
        if early { &mut first } else { &mut second }.push((name.clone(), *value));
    }
    Ok((extract(graph, &[], &first)?, extract(graph, &[("x", at)], &second)?))
}

/// Adds an output, named by the second of each pair, for each mark.
pub fn tap(graph: &Graph, marks: &[(Mark, &str)]) -> Result<Graph> {
    let mut tapped = graph.clone();
    for (mark, name) in marks {
        let Some(value) = graph.marked(*mark) else {
            let known = format!("{:?}", graph.marks().iter().map(|(mark, _)| mark).collect::<Vec<_>>());
            return Err(GraphError::NoSuchName { kind: "mark", name: format!("{mark:?}"), known });
        };
        tapped.output(name, value)?;
    }
    Ok(tapped)
}

/// Values that `wanted` depends on, themselves included, not looking behind `ends`.
fn needed(graph: &Graph, wanted: &[Value], ends: &HashSet<Value>) -> HashSet<Value> {
    let mut seen: HashSet<Value> = HashSet::new();
    let mut open: Vec<Value> = wanted.to_vec();
    while let Some(value) = open.pop() {
        if seen.insert(value)
            && !ends.contains(&value)
            && let Producer::Node(id, _) = graph.info(value).producer
        {
            open.extend(&graph.node(id).inputs);
        }
    }
    seen
}

/// A new graph in the making, and where the old one's values went.
struct Copy<'a> {
    old: &'a Graph,
    new: Graph,
    map: HashMap<Value, Value>,
}

impl<'a> Copy<'a> {
    fn new(old: &'a Graph) -> Self {
        Self { old, new: Graph::new(old.name()), map: HashMap::new() }
    }

    fn input(&mut self, input: Value) -> Result<()> {
        let info = self.old.info(input);
        let new = self.new.input(&info.name, info.shape.clone(), info.dtype)?;
        self.map.insert(input, new);
        Ok(())
    }

    fn value(&mut self, value: Value) -> Result<Value> {
        if let Some(&new) = self.map.get(&value) {
            return Ok(new);
        }
        let info = self.old.info(value);
        let Some(param) = self.old.param_of(value) else {
            let known = "its node was not copied".to_owned();
            return Err(GraphError::NoSuchName { kind: "value", name: info.name.clone(), known });
        };
        let new = self.new.param(&param.name, param.tensor.clone())?;
        self.map.insert(value, new);
        Ok(new)
    }

    fn operands(&mut self, node: &Node) -> Result<Vec<Value>> {
        node.inputs.iter().map(|&value| self.value(value)).collect()
    }

    fn finish(mut self, outputs: &[(String, Value)]) -> Result<Graph> {
        for (name, value) in outputs {
            let new = self.value(*value)?;
            self.new.output(name, new)?;
        }
        for (mark, value) in self.old.marks() {
            if let Some(&new) = self.map.get(value) {
                self.new.mark(*mark, new);
            }
        }
        Ok(self.new)
    }
}
