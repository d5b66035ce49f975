//! Parts of a graph that a run may leave out, as branches of `If`.

use std::collections::{HashMap, HashSet};

use super::nodes::{int, subgraph};
use super::proto::{GraphProto, NodeProto, TensorProto, ValueInfo};
use crate::{GraphError, Mark, Result};

/// The input that says which parts run.
pub(super) const INPUT: &str = "run";

/// A part of a graph that a run may leave out: what is computed between two marked values. Without it, the second
/// value is the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The value before the part.
    pub from: Mark,
    /// The value after it, of the same shape.
    pub to: Mark,
    /// Outputs of the graph that come from inside the part (keys and values, say), each with the input that takes its
    /// place.
    pub carried: Vec<(String, String)>,
}

/// A switch by names.
pub(super) struct Section {
    /// The value that the part begins with.
    pub from: String,
    /// What comes out of it: name, the value in its place, element type and shape.
    pub results: Vec<(String, String, ValueInfo)>,
}

/// Nodes in order, initializers, and the names that are outputs.
pub(super) struct Flow {
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    pub results: HashSet<String>,
}

impl Flow {
    /// Moves the nodes of each section into a branch. Initializers stay outside, where ONNX Runtime can drop those that
    /// it packs, but for the operands of operators of others (`foreign` says of a domain whether it is theirs), which
    /// are constants to a kernel only beside its node.
    pub(super) fn switch(&mut self, sections: &[Section], foreign: &dyn Fn(&str) -> bool) -> Result<()> {
        if sections.is_empty() {
            return Ok(());
        }
        let conditions: Vec<String> = (0..sections.len()).map(|index| format!("{INPUT}#{index}")).collect();
        for (section, condition) in sections.iter().zip(&conditions) {
            self.fold(section, condition, foreign)?;
        }
        let count = int("num_outputs", sections.len() as i64);
        self.nodes.insert(0, node("Split", &[INPUT], &conditions, vec![int("axis", 0), count]));
        Ok(())
    }

    fn fold(&mut self, section: &Section, condition: &str, foreign: &dyn Fn(&str) -> bool) -> Result<()> {
        let inside = self.inside(section);
        let Some(last) = inside.iter().rposition(|&inside| inside) else {
            let names: Vec<&str> = section.results.iter().map(|(name, ..)| name.as_str()).collect();
            let what = format!("a part that makes {}", names.join(", "));
            let why = format!("nothing lies between them and {}", section.from);
            return Err(GraphError::Unsupported { what, why });
        };
        let (mut before, mut after, mut part) = (Vec::new(), Vec::new(), Vec::new());
        // What needs a result has to wait for it.
        let mut late: HashSet<String> = HashSet::new();
        for (index, node) in std::mem::take(&mut self.nodes).into_iter().enumerate() {
            if inside[index] {
                part.push(node);
                late.extend(section.results.iter().map(|(name, ..)| name.clone()));
            } else if index > last || node.input.iter().any(|input| late.contains(input)) {
                late.extend(node.output.iter().cloned());
                after.push(node);
            } else {
                before.push(node);
            }
        }
        let results: HashMap<&str, String> =
            section.results.iter().map(|(name, ..)| (name.as_str(), format!("{name}#run"))).collect();
        for name in part.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
            if let Some(inner) = results.get(name.as_str()) {
                name.clone_from(inner);
            }
        }
        let own: HashSet<&String> =
            part.iter().filter(|node| foreign(&node.domain)).flat_map(|node| &node.input).collect();
        let others: HashSet<&String> = before.iter().chain(&after).flat_map(|node| &node.input).collect();
        let constants = std::mem::take(&mut self.initializers);
        let (constants, kept) = constants.into_iter().partition(|tensor: &TensorProto| {
            own.contains(&tensor.name)
                && !others.contains(&tensor.name)
                && !self.results.contains(&tensor.name)
        });
        self.initializers = kept;
        let info = |suffix: &str| {
            let named = section.results.iter();
            named
                .map(|(name, _, info)| ValueInfo { name: format!("{name}#{suffix}"), ..info.clone() })
                .collect()
        };
        let run = GraphProto {
            name: format!("{condition}.run"),
            node: part,
            initializer: constants,
            output: info("run"),
            ..GraphProto::default()
        };
        let pass = |(name, instead, _): &(String, String, ValueInfo)| {
            node("Identity", &[instead], &[format!("{name}#pass")], vec![])
        };
        let pass = GraphProto {
            name: format!("{condition}.pass"),
            node: section.results.iter().map(pass).collect(),
            output: info("pass"),
            ..GraphProto::default()
        };
        let outputs: Vec<String> = section.results.iter().map(|(name, ..)| name.clone()).collect();
        let branches = vec![subgraph("then_branch", &run), subgraph("else_branch", &pass)];
        before.push(node("If", &[condition], &outputs, branches));
        before.extend(after);
        self.nodes = before;
        Ok(())
    }

    /// Which nodes lie on a way from the section's beginning to its results, and are of no use to anything else.
    fn inside(&self, section: &Section) -> Vec<bool> {
        let mut from: HashSet<&str> = HashSet::from([section.from.as_str()]);
        let mut inside = vec![false; self.nodes.len()];
        for (inside, node) in inside.iter_mut().zip(&self.nodes) {
            *inside = node.input.iter().any(|input| from.contains(input.as_str()));
            if *inside {
                from.extend(node.output.iter().map(String::as_str));
            }
        }
        let results: HashSet<&str> = section.results.iter().map(|(name, ..)| name.as_str()).collect();
        let mut needed = results.clone();
        for (inside, node) in inside.iter_mut().zip(&self.nodes).rev() {
            *inside &= node.output.iter().any(|output| needed.contains(output.as_str()));
            if *inside {
                needed.extend(node.input.iter().map(String::as_str));
            }
        }
        // What others use is computed outside, with all that it takes.
        let mut shared: HashSet<&str> = self.results.iter().map(String::as_str).collect();
        loop {
            let outside = self.nodes.iter().zip(&inside).filter(|(_, inside)| !**inside);
            shared.extend(outside.flat_map(|(node, _)| node.input.iter().map(String::as_str)));
            let lost = |node: &NodeProto| {
                let shared =
                    |name: &String| shared.contains(name.as_str()) && !results.contains(name.as_str());
                node.output.iter().any(shared)
            };
            let before = inside.iter().filter(|inside| **inside).count();
            inside.iter_mut().zip(&self.nodes).for_each(|(inside, node)| *inside &= !lost(node));
            if inside.iter().filter(|inside| **inside).count() == before {
                break;
            }
        }
        // All results or none.
        let made: HashSet<&str> = self
            .nodes
            .iter()
            .zip(&inside)
            .filter(|(_, inside)| **inside)
            .flat_map(|(node, _)| node.output.iter().map(String::as_str))
            .collect();
        if !results.is_subset(&made) {
            inside.fill(false);
        }
        inside
    }
}

fn node(op: &str, inputs: &[&str], outputs: &[String], attribute: Vec<super::proto::Attribute>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: outputs.to_vec(),
        name: format!("{op}.{}", outputs.first().map_or("", String::as_str)),
        op_type: op.into(),
        attribute,
        domain: String::new(),
    }
}
