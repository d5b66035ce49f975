use std::collections::HashMap;

use crate::{Graph, GraphError, Op, Result, Storage, Tensor, Value};

/// Changes how the matrices of linear layers are stored: `choose` is asked with each weight's name.
///
/// # Errors
/// It chose nothing, which is never what was meant.
pub fn store(graph: &Graph, choose: impl Fn(&str) -> Option<Storage>) -> Result<Graph> {
    let mut changed = 0;
    let stored = super::rewrite(graph, |new, node, inputs| {
        let Op::Linear(_) = node.op else { return Ok(None) };
        let Some(storage) = new.param_of(inputs[1]).and_then(|param| choose(&param.name)) else {
            return Ok(None);
        };
        changed += 1;
        new.apply(Op::Linear(storage), inputs).map(Some)
    })?;
    if changed == 0 {
        let known =
            graph.params().iter().map(|param| param.name.as_str()).take(8).collect::<Vec<_>>().join(", ");
        return Err(GraphError::NoSuchName {
            kind: "linear layer",
            name: "(the given pattern)".into(),
            known,
        });
    }
    Ok(stored)
}

/// Keeps some outputs of the linear layer that ends a graph, in the order given, so that the others are neither computed
/// nor stored: a head for a part of the vocabulary.
///
/// # Errors
/// No output of the graph is a linear layer's; an index that is not one of its outputs.
pub fn keep_outputs(graph: &Graph, keep: &[usize]) -> Result<Graph> {
    let ends: Vec<Value> = graph.outputs().iter().map(|(_, value)| *value).collect();
    let mut changed = 0;
    let kept = super::rewrite(graph, |new, node, inputs| {
        let Op::Linear(_) = node.op else { return Ok(None) };
        if !ends.contains(&node.outputs[0]) {
            return Ok(None);
        }
        let mut operands = vec![inputs[0]];
        for &value in &node.inputs[1..] {
            let Some(param) = graph.param_of(value) else { return Ok(None) };
            let count = param.tensor.row_count();
            if let Some(index) = keep.iter().find(|&&index| index >= count) {
                let why = format!("there is no output {index} of {count} to keep");
                return Err(GraphError::Tensor { name: param.name.clone(), why });
            }
            let name = format!("{}.kept", param.name);
            operands.push(new.param(&name, pick(&param.tensor, keep))?);
        }
        changed += 1;
        new.apply(node.op.clone(), &operands).map(Some)
    })?;
    if changed == 0 {
        let known = graph.outputs().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(GraphError::NoSuchName {
            kind: "linear layer",
            name: "(one that is an output)".into(),
            known,
        });
    }
    Ok(kept)
}

/// Some rows of a tensor, in the order given.
fn pick(tensor: &Tensor, keep: &[usize]) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    shape[0] = keep.len();
    let keep = keep.to_vec();
    tensor.derive(shape, move |from, rows| {
        let mut out = Vec::new();
        for &row in &keep[rows] {
            out.extend(from.rows(row..row + 1)?);
        }
        Ok(out)
    })
}

/// Joins linear layers that read the same value into one product followed by slices: queries, keys and values;
/// gates and ups. One long product streams memory better than three short ones. Layers are joined when their
/// storage agrees and all or none of them have a bias.
pub fn merge_linears(graph: &Graph) -> Result<Graph> {
    // Layers that nothing needs would come along with those that something does.
    let graph = &super::rewrite(graph, |_, _, _| Ok(None))?;
    let mut groups: HashMap<(Value, Storage, bool), Vec<usize>> = HashMap::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        if let Op::Linear(storage) = node.op
            && node.inputs[1..].iter().all(|&value| graph.param_of(value).is_some())
        {
            groups.entry((node.inputs[0], storage, node.inputs.len() == 3)).or_default().push(index);
        }
    }
    let groups: HashMap<usize, Vec<usize>> =
        groups.into_values().filter(|group| group.len() > 1).map(|group| (group[0], group)).collect();
    let first_of: HashMap<Value, usize> = groups
        .values()
        .flat_map(|group| group.iter().map(|&member| (graph.nodes()[member].outputs[0], group[0])))
        .collect();
    let mut slices: HashMap<Value, Value> = HashMap::new();
    super::rewrite(graph, |new, node, inputs| {
        let out = node.outputs[0];
        let Some(group) = first_of.get(&out).and_then(|first| groups.get(first)) else { return Ok(None) };
        if let Some(&slice) = slices.get(&out) {
            return Ok(Some(vec![slice]));
        }
        let members: Vec<_> = group.iter().map(|&member| &graph.nodes()[member]).collect();
        let mut operands = vec![inputs[0]];
        for operand in 1..inputs.len() {
            let parts: Vec<_> =
                members.iter().filter_map(|member| graph.param_of(member.inputs[operand])).collect();
            let name = parts.iter().map(|param| param.name.as_str()).collect::<Vec<_>>().join("+");
            operands.push(new.param(&name, stack(parts.iter().map(|param| param.tensor.clone()).collect()))?);
        }
        let joined = new.apply(node.op.clone(), &operands)?[0];
        let axis = new.shape(joined).rank() - 1;
        let mut start = 0;
        for member in members {
            let width = graph.shape(member.outputs[0]).last().and_then(crate::Dim::fixed).unwrap_or(0);
            let slice = new.slice(joined, axis, start, start + width)?;
            slices.insert(member.outputs[0], slice);
            start += width;
        }
        Ok(Some(vec![slices[&out]]))
    })
}

/// Tensors of equal rows on top of each other.
fn stack(parts: Vec<Tensor>) -> Tensor {
    let mut shape = parts[0].shape().to_vec();
    shape[0] = parts.iter().map(Tensor::row_count).sum();
    let first = parts[0].clone();
    first.derive(shape, move |_, rows| {
        let mut out = Vec::new();
        let mut start = 0;
        for part in &parts {
            let end = start + part.row_count();
            let (from, to) = (rows.start.max(start), rows.end.min(end));
            if from < to {
                out.extend(part.rows(from - start..to - start)?);
            }
            start = end;
        }
        Ok(out)
    })
}

/// Moves the scales of RMS norms into the linear layers behind them: a norm's weight becomes ones when every
/// reader of its result is a linear layer. Exact up to rounding; rotations of the residual stream need it.
pub fn fold_norms(graph: &Graph) -> Result<Graph> {
    let mut scales: HashMap<Value, Tensor> = HashMap::new();
    for node in graph.nodes() {
        if let Op::RmsNorm { .. } = node.op
            && let Some(scale) = graph.param_of(node.inputs[1])
        {
            let out = node.outputs[0];
            let readers: Vec<_> =
                graph.nodes().iter().filter(|reader| reader.inputs.contains(&out)).collect();
            let linear = |reader: &&crate::Node| {
                matches!(reader.op, Op::Linear(_))
                    && reader.inputs[0] == out
                    && graph.param_of(reader.inputs[1]).is_some()
            };
            let visible = graph.outputs().iter().any(|(_, value)| *value == out);
            if !readers.is_empty() && readers.iter().all(linear) && !visible {
                scales.insert(out, scale.tensor.clone());
            }
        }
    }
    // The rule sees operands in the new graph; those of the old one are found through the results' order.
    let by_result: HashMap<Value, &crate::Node> =
        graph.nodes().iter().map(|node| (node.outputs[0], node)).collect();
    super::rewrite(graph, |new, node, inputs| {
        if scales.contains_key(&node.outputs[0]) {
            let width = scales[&node.outputs[0]].count();
            let ones = new.param(&format!("ones.{width}"), Tensor::new([width], vec![1.0; width])?)?;
            return new.apply(node.op.clone(), &[inputs[0], ones]).map(Some);
        }
        let old = by_result[&node.outputs[0]];
        let Some(scale) = old.inputs.first().and_then(|input| scales.get(input)) else { return Ok(None) };
        let Some(param) = graph.param_of(old.inputs[1]) else { return Ok(None) };
        let norm = graph.nodes().iter().find(|norm| norm.outputs[0] == old.inputs[0]);
        let norm =
            norm.and_then(|norm| graph.param_of(norm.inputs[1])).map_or("", |scale| scale.name.as_str());
        let scale = scale.to_f32()?.into_owned();
        let folded = param.tensor.derive(param.tensor.shape(), move |weight, rows| {
            let mut values = weight.rows(rows)?;
            for row in values.chunks_exact_mut(scale.len()) {
                row.iter_mut().zip(&scale).for_each(|(value, factor)| *value *= factor);
            }
            Ok(values)
        });
        let mut operands = inputs.to_vec();
        operands[1] = new.param(&format!("{}*{norm}", param.name), folded)?;
        new.apply(node.op.clone(), &operands).map(Some)
    })
}
