//! One operation at a time.

use std::borrow::Cow;

use super::Lowering;
use super::emit::Emit;
use super::nodes::{elem_type, float, int, ints, text};
use super::proto::elem;
use crate::passes::rotary_frequencies;
use crate::{
    BinaryOp, Dim, Graph, GraphError, Literal, Node, Op, ReduceOp, Result, RopeScaling, Setting, Storage,
    Tensor, UnaryOp, Value, passes, quantize,
};

const MICROSOFT: &str = "com.microsoft";

/// Expands the composites that a lowering has no operator for.
pub(super) fn expand_rest(
    lowering: Lowering,
    new: &mut Graph,
    node: &Node,
    inputs: &[Value],
) -> Result<Option<Vec<Value>>> {
    let has_operator = match node.op {
        Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::Embedding | Op::Rotary { .. } => true,
        Op::Unary(UnaryOp::Gelu | UnaryOp::GeluTanh) => true,
        // The order of soft cap and mask has changed between releases of the operator.
        Op::Attention { softcap, .. } => softcap.is_none(),
        Op::Custom(_) => true,
        _ => false,
    };
    // Standard rotary tables are built for the positions at hand by primitives; see `rotary`.
    let expand = match node.op {
        Op::Rotary { .. } => !matches!(lowering, Lowering::Fused { .. }),
        _ => !has_operator,
    };
    if expand { passes::expand_node(new, node, inputs) } else { Ok(None) }
}

pub(super) fn lower(e: &mut Emit<'_>, node: &Node) -> Result<()> {
    match &node.op {
        Op::Linear(storage) => return linear(e, node, *storage),
        Op::Attention { heads, kv_heads, scale, .. } => {
            return attention(e, node, [*heads, *kv_heads], *scale);
        }
        Op::Rotary { head_dim, theta, scaling } => return rotary(e, node, *head_dim, *theta, *scaling),
        Op::Constant(literal) => return constant(e, node, literal),
        _ => {}
    }
    let graph = e.graph;
    let inputs = node.inputs.iter().map(|&value| e.name(value)).collect::<Result<Vec<_>>>()?;
    let outputs = node.outputs.iter().map(|&value| e.name(value)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    match &node.op {
        Op::Unary(op) => {
            let (name, attributes) = match op {
                UnaryOp::Gelu => ("Gelu", vec![]),
                UnaryOp::GeluTanh => ("Gelu", vec![text("approximate", "tanh")]),
                UnaryOp::Neg => ("Neg", vec![]),
                UnaryOp::Abs => ("Abs", vec![]),
                UnaryOp::Exp => ("Exp", vec![]),
                UnaryOp::Log => ("Log", vec![]),
                UnaryOp::Sqrt => ("Sqrt", vec![]),
                UnaryOp::Reciprocal => ("Reciprocal", vec![]),
                UnaryOp::Sin => ("Sin", vec![]),
                UnaryOp::Cos => ("Cos", vec![]),
                UnaryOp::Tanh => ("Tanh", vec![]),
                UnaryOp::Erf => ("Erf", vec![]),
                UnaryOp::Sigmoid => ("Sigmoid", vec![]),
                UnaryOp::Relu => ("Relu", vec![]),
                UnaryOp::Not => ("Not", vec![]),
                UnaryOp::Silu => return e.unsupported(&node.op, "it should have been expanded"),
            };
            e.node(name, &inputs, &outputs, attributes);
        }
        Op::Binary(op) => {
            let name = match op {
                BinaryOp::Add => "Add",
                BinaryOp::Sub => "Sub",
                BinaryOp::Mul => "Mul",
                BinaryOp::Div => "Div",
                BinaryOp::Pow => "Pow",
                BinaryOp::Max => "Max",
                BinaryOp::Min => "Min",
                BinaryOp::Less => "Less",
                BinaryOp::LessOrEqual => "LessOrEqual",
                BinaryOp::Greater => "Greater",
                BinaryOp::GreaterOrEqual => "GreaterOrEqual",
                BinaryOp::Equal => "Equal",
                BinaryOp::And => "And",
                BinaryOp::Or => "Or",
            };
            e.node(name, &inputs, &outputs, vec![]);
        }
        Op::Where => e.node("Where", &inputs, &outputs, vec![]),
        Op::Cast(dtype) => e.node("Cast", &inputs, &outputs, vec![int("to", elem_type(*dtype).into())]),
        Op::MatMul => e.node("MatMul", &inputs, &outputs, vec![]),
        Op::Transpose(perm) => {
            let perm: Vec<i64> = perm.iter().map(|&axis| axis as i64).collect();
            e.node("Transpose", &inputs, &outputs, vec![ints("perm", &perm)]);
        }
        Op::Reshape(dims) => {
            let from = graph.shape(node.inputs[0]).dims().to_vec();
            let (shape, computed) = e.shape(dims, &from)?;
            let attributes = if computed { vec![int("allowzero", 1)] } else { vec![] };
            e.node("Reshape", &[inputs[0], &shape], &outputs, attributes);
        }
        Op::Concat { axis } => e.node("Concat", &inputs, &outputs, vec![int("axis", *axis as i64)]),
        Op::Slice { axis, start, end } => {
            let (start, end) = (e.dim(start)?, e.dim(end)?);
            let axis = e.integers(&[1], &[*axis as i64])?;
            e.node("Slice", &[inputs[0], &start, &end, &axis], &outputs, vec![]);
        }
        Op::Gather { axis } => e.node("Gather", &inputs, &outputs, vec![int("axis", *axis as i64)]),
        Op::Embedding => e.node("Gather", &inputs, &outputs, vec![int("axis", 0)]),
        Op::Softmax => e.node("Softmax", &inputs, &outputs, vec![int("axis", -1)]),
        Op::Reduce { op, axis, keep } => {
            let name = match op {
                ReduceOp::Sum => "ReduceSum",
                ReduceOp::Mean => "ReduceMean",
                ReduceOp::Max => "ReduceMax",
            };
            let axes = e.integers(&[1], &[*axis as i64])?;
            e.node(name, &[inputs[0], &axes], &outputs, vec![int("keepdims", (*keep).into())]);
        }
        Op::TopK { k } => {
            let k = e.integers(&[1], &[*k as i64])?;
            e.node("TopK", &[inputs[0], &k], &outputs, vec![int("axis", -1)]);
        }
        Op::RmsNorm { eps } => {
            let attributes = vec![int("axis", -1), float("epsilon", *eps)];
            let name = match e.lowering {
                // What ONNX Runtime fuses with the addition before it.
                Lowering::Fused { .. } => "SimplifiedLayerNormalization",
                _ => "RMSNormalization",
            };
            e.node(name, &inputs, &outputs, attributes);
        }
        Op::LayerNorm { eps } => {
            e.node("LayerNormalization", &inputs, &outputs, vec![int("axis", -1), float("epsilon", *eps)]);
        }
        Op::Custom(custom) => {
            let attribute = |(name, setting): &(String, Setting)| match setting {
                Setting::Int(value) => int(name, *value),
                Setting::Float(value) => float(name, *value),
                Setting::Text(value) => text(name, value),
            };
            let attributes = custom.attributes.iter().map(attribute).collect();
            e.provider(&custom.domain, &custom.provider);
            e.node_in(&custom.domain, &custom.name, &inputs, &outputs, attributes);
        }
        Op::Constant(_) | Op::Linear(_) | Op::Rotary { .. } | Op::Attention { .. } => {}
    }
    Ok(())
}

fn constant(e: &mut Emit<'_>, node: &Node, literal: &Literal) -> Result<()> {
    let name = e.name(node.outputs[0])?;
    match literal {
        Literal::F32 { shape, values } => {
            e.initializer(&name, elem::FLOAT, shape, crate::atomic::le_bytes(values).into())
        }
        Literal::I64 { shape, values } => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            e.initializer(&name, elem::INT64, shape, bytes.into())
        }
    }
}

fn linear(e: &mut Emit<'_>, node: &Node, storage: Storage) -> Result<()> {
    let x = e.name(node.inputs[0])?;
    let out = e.name(node.outputs[0])?;
    let bias = node.inputs.get(2).map(|&value| e.name(value)).transpose()?;
    let product = if bias.is_some() { e.fresh("product") } else { out.clone() };
    match e.graph.param_of(node.inputs[1]).map(|param| (param.name.clone(), param.tensor.clone())) {
        // A matrix that the graph computes has no storage to choose.
        None => {
            let (weight, turned) = (e.name(node.inputs[1])?, e.fresh("transposed"));
            e.node("Transpose", &[&weight], &[&turned], vec![ints("perm", &[1, 0])]);
            e.node("MatMul", &[&x, &turned], &[&product], vec![]);
        }
        Some((name, tensor)) => match storage {
            Storage::F32
            | Storage::Rows
            | Storage::Bf16
            | Storage::Sparse { .. }
            | Storage::Columns { .. } => {
                // ONNX Runtime multiplies neither bf16 on a processor nor sparse matrices: what they stand for
                // is stored.
                let tensor = quantize::rounded(&tensor, storage);
                let [outs, ins] = [tensor.shape()[0], tensor.shape()[1]];
                let name = match storage {
                    Storage::F32 | Storage::Rows => format!("{name}^T"),
                    storage => format!("{name}.{storage}^T"),
                };
                let bytes = || transposed(&tensor).map(Cow::Owned);
                let stored = e.raw(&name, elem::FLOAT, &[ins, outs], bytes)?;
                e.node("MatMul", &[&x, &stored], &[&product], vec![]);
            }
            Storage::Int4 { block } => quantized(e, [&x, &product], &name, &tensor, 4, block)?,
            Storage::Int8 { block } => quantized(e, [&x, &product], &name, &tensor, 8, block)?,
        },
    }
    if let Some(bias) = bias {
        e.node("Add", &[&product, &bias], &[&out], vec![]);
    }
    Ok(())
}

/// Bytes of the transposed matrix, by tiles so that both sides stay in cache.
fn transposed(tensor: &Tensor) -> Result<Vec<u8>> {
    const TILE: usize = 32;
    let [outs, ins] = [tensor.shape()[0], tensor.shape()[1]];
    let mut turned = vec![0.0f32; outs * ins];
    for first in (0..outs).step_by(TILE) {
        let last = (first + TILE).min(outs);
        let rows = tensor.rows(first..last)?;
        if rows.len() != (last - first) * ins {
            let why = format!("{} numbers in rows {first}..{last} of width {ins}", rows.len());
            return Err(GraphError::Tensor { name: format!("{tensor:?}"), why });
        }
        for left in (0..ins).step_by(TILE) {
            for column in left..(left + TILE).min(ins) {
                for row in first..last {
                    turned[column * outs + row] = rows[(row - first) * ins + column];
                }
            }
        }
    }
    Ok(crate::atomic::le_bytes(&turned))
}

fn quantized(
    e: &mut Emit<'_>,
    [x, out]: [&str; 2],
    name: &str,
    tensor: &Tensor,
    bits: usize,
    block: usize,
) -> Result<()> {
    let shape = [tensor.shape()[0], tensor.shape()[1]];
    let q = quantize::quantize(&tensor.to_f32()?, shape, bits, block)
        .map_err(|error| GraphError::Tensor { name: name.into(), why: error.to_string() })?;
    let [outs, ins] = shape;
    let blocks = q.blocks();
    let key = |part: &str| format!("{name}.int{bits}x{block}.{part}");
    let packed = || Ok(Cow::Borrowed(q.packed.as_slice()));
    let zero_points = || Ok(Cow::Borrowed(q.zeros.as_slice()));
    match e.lowering {
        Lowering::Fused { .. } => {
            let dims = [outs, blocks, block * bits / 8];
            let codes = e.raw(&key("codes"), elem::UINT8, &dims, packed)?;
            let scales = e.floats(&key("scales"), &[outs * blocks], &q.scales)?;
            let zeros = e.raw(&key("zeros"), elem::UINT8, &[q.zeros.len()], zero_points)?;
            let attributes = vec![
                int("K", ins as i64),
                int("N", outs as i64),
                int("bits", bits as i64),
                int("block_size", block as i64),
                // Rows of activations are rounded to int8, block by block, independently of each other.
                int("accuracy_level", 4),
            ];
            e.node_in(MICROSOFT, "MatMulNBits", &[x, &codes, &scales, &zeros], &[out], attributes);
        }
        _ => {
            let kind = if bits == 4 { elem::UINT4 } else { elem::UINT8 };
            if ins % block != 0 || (bits == 4 && blocks % 2 == 1) {
                // Official operators have no padding: store what the integers stand for.
                let values = quantize::dequantize(&q);
                let dense = Tensor::new(shape, values)?;
                let bytes = || transposed(&dense).map(Cow::Owned);
                let stored = e.raw(&key("dense^T"), elem::FLOAT, &[ins, outs], bytes)?;
                e.node("MatMul", &[x, &stored], &[out], vec![]);
                return Ok(());
            }
            let codes = e.raw(&key("codes"), kind, &[outs, ins], packed)?;
            let scales = e.floats(&key("scales"), &[outs, blocks], &q.scales)?;
            let zeros = e.raw(&key("zeros"), kind, &[outs, blocks], zero_points)?;
            let (dense, turned) = (e.fresh("dense"), e.fresh("transposed"));
            let attributes = vec![int("axis", 1), int("block_size", block as i64)];
            e.node("DequantizeLinear", &[&codes, &scales, &zeros], &[&dense], attributes);
            e.node("Transpose", &[&dense], &[&turned], vec![ints("perm", &[1, 0])]);
            e.node("MatMul", &[x, &turned], &[out], vec![]);
        }
    }
    Ok(())
}

/// Names of cosine and sine tables `[positions, head_dim / 2]`, stored once for all layers.
fn tables(
    e: &mut Emit<'_>,
    positions: usize,
    head_dim: usize,
    theta: f64,
    scaling: RopeScaling,
) -> Result<[String; 2]> {
    let frequencies = rotary_frequencies(head_dim, theta, scaling);
    let key = |part: &str| format!("rotary.{part}.{head_dim}.{theta}.{scaling:?}");
    let mut names = [key("cos"), key("sin")];
    for (name, function) in names.iter_mut().zip([f64::cos as fn(f64) -> f64, f64::sin]) {
        *name = e.raw(name, elem::FLOAT, &[positions, head_dim / 2], || {
            let values: Vec<f32> = (0..positions)
                .flat_map(|position| frequencies.iter().map(move |f| function(position as f64 * f) as f32))
                .collect();
            Ok(Cow::Owned(crate::atomic::le_bytes(&values)))
        })?;
    }
    Ok(names)
}

fn rotary(e: &mut Emit<'_>, node: &Node, head_dim: usize, theta: f64, scaling: RopeScaling) -> Result<()> {
    let Lowering::Fused { positions } = e.lowering else {
        return e.unsupported(&node.op, "it should have been expanded");
    };
    let [cos, sin] = tables(e, positions, head_dim, theta, scaling)?;
    let (x, at, out) = (e.name(node.inputs[0])?, e.name(node.inputs[1])?, e.name(node.outputs[0])?);
    let heads = e.graph.shape(node.inputs[0]).last().and_then(|width| width.divide(head_dim)?.fixed());
    let Some(heads) = heads else { return e.unsupported(&node.op, "the number of heads must be known") };
    let attributes = vec![int("num_heads", heads as i64), int("rotary_embedding_dim", head_dim as i64)];
    e.node_in(MICROSOFT, "RotaryEmbedding", &[&x, &at, &cos, &sin], &[&out], attributes);
    Ok(())
}

fn attention(e: &mut Emit<'_>, node: &Node, [heads, kv_heads]: [usize; 2], scale: f32) -> Result<()> {
    let names = node.inputs.iter().map(|&value| e.name(value)).collect::<Result<Vec<_>>>()?;
    let outputs = node.outputs.iter().map(|&value| e.name(value)).collect::<Result<Vec<_>>>()?;
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let graph = e.graph;
    let head_dim = graph.shape(node.inputs[0]).last().and_then(|width| width.divide(heads)?.fixed());
    // The fused operator refuses other widths of heads, and several rows of several texts after a past.
    let fused = matches!(e.lowering, Lowering::Fused { .. })
        && head_dim.is_some_and(|width| width % 8 == 0)
        && graph.shape(node.inputs[0]).dims()[0] == 1.into();
    if let (true, [q, k, v, mask, past_keys, past_values]) = (fused, names.as_slice()) {
        if e.extra_inputs.is_empty() {
            e.extra_inputs = vec![("seqlens", elem::INT32), ("total", elem::INT32)];
        }
        for value in node.inputs[4..].iter().chain(&node.outputs[1..]) {
            capacity_of(e, *value, "C");
        }
        // The operator's own rotary embedding stays off: it takes the first rows of a cache for a chain,
        // whatever their positions are, and wants its tables as long as the cache has rows.
        let inputs = [q, k, v, past_keys, past_values, "seqlens", "total", "", "", "", mask];
        let attributes = vec![
            int("num_heads", heads as i64),
            int("kv_num_heads", kv_heads as i64),
            int("do_rotary", 0),
            float("scale", scale),
        ];
        e.node_in(MICROSOFT, "GroupQueryAttention", &inputs, &outputs, attributes);
        return Ok(());
    }
    let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
    let attributes =
        vec![int("q_num_heads", heads as i64), int("kv_num_heads", kv_heads as i64), float("scale", scale)];
    // Keys and values are results that only some graphs need, but ONNX Runtime wants them named beside a past.
    let used = |value: &Value| {
        graph.nodes().iter().any(|reader| reader.inputs.contains(value))
            || graph.outputs().iter().any(|(_, output)| output == value)
    };
    let outputs = if node.inputs.len() == 6 || node.outputs[1..].iter().any(used) {
        &outputs[..]
    } else {
        &outputs[..1]
    };
    e.node("Attention", &inputs, outputs, attributes);
    Ok(())
}

/// Says that a cache's length is that of a buffer, whatever is in it.
fn capacity_of(e: &mut Emit<'_>, value: Value, symbol: &str) {
    let mut dims = e.graph.shape(value).dims().to_vec();
    dims[2] = Dim::symbol(symbol);
    e.reshaped.insert(value, dims);
}
