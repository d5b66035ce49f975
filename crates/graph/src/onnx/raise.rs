//! One node at a time, the other way: what [`lower`](super::lower) does, undone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::data::{Blocks, Initializer};
use super::proto::{Attribute, NodeProto, elem};
use super::read::{Entry, LONGEST_SHAPE, Number, Reader, domain};
use crate::{BinaryOp, DType, Dim, Op, ReduceOp, Storage, UnaryOp, Value};

type Raised<T = ()> = Result<T, String>;

const MICROSOFT: &str = "com.microsoft";

/// Adds what a node does to the graph.
pub(super) fn node(r: &mut Reader<'_>, node: &NodeProto) -> Raised {
    let domain = domain(node);
    if !r.has_domain(domain) {
        return Err("the model does not import the operator's domain".into());
    }
    let mut attributes = Attributes::new(node)?;
    let known = match domain {
        "" => official(r, node, &mut attributes)?,
        MICROSOFT if node.op_type == "MatMulNBits" => {
            mat_mul_n_bits(r, node, &mut attributes)?;
            true
        }
        _ => false,
    };
    match known {
        true => attributes.finish(),
        false => Err("this operator is not read".into()),
    }
}

fn official(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised<bool> {
    if let Some(op) = unary(&node.op_type) {
        apply(r, node, Op::Unary(op), 1)?;
        return Ok(true);
    }
    if let Some(op) = binary(&node.op_type) {
        if !folded(r, node, op)? {
            apply(r, node, Op::Binary(op), 2)?;
        }
        return Ok(true);
    }
    match node.op_type.as_str() {
        "Identity" => {
            let entry = r.entry(input(node, 0)?)?.clone();
            r.define(output(node)?, entry)?;
        }
        "Gelu" => {
            let op = match a.text("approximate", "none")? {
                "none" => UnaryOp::Gelu,
                "tanh" => UnaryOp::GeluTanh,
                other => return Err(format!("approximation {other:?}")),
            };
            apply(r, node, Op::Unary(op), 1)?;
        }
        "Where" => apply(r, node, Op::Where, 3)?,
        "Cast" => {
            let to = match i32::try_from(a.int("to", None)?).unwrap_or(0) {
                elem::FLOAT => DType::F32,
                elem::INT64 => DType::I64,
                elem::BOOL => DType::Bool,
                other => return Err(format!("a cast to {}", elem::name(other))),
            };
            a.only("saturate", 1)?;
            apply(r, node, Op::Cast(to), 1)?;
        }
        "MatMul" => mat_mul(r, node)?,
        "DequantizeLinear" => dequantize(r, node, a)?,
        "Transpose" => transpose(r, node, a)?,
        "Shape" => shape(r, node, a)?,
        "Reshape" => reshape(r, node, a)?,
        "Concat" => concat(r, node, a)?,
        "Slice" => slice(r, node)?,
        "Gather" => {
            let axis = a.int("axis", Some(0))?;
            let table = r.tensor(input(node, 0)?)?.is_some_and(|(_, tensor)| tensor.shape.len() == 2);
            let data = r.value(input(node, 0)?)?;
            let axis = self::axis(axis, r.graph.shape(data).rank())?;
            let op = if table && axis == 0 { Op::Embedding } else { Op::Gather { axis } };
            apply(r, node, op, 2)?;
        }
        "Softmax" => {
            let x = r.value(input(node, 0)?)?;
            last(a.int("axis", Some(-1))?, r.graph.shape(x).rank())?;
            apply(r, node, Op::Softmax, 1)?;
        }
        "ReduceSum" | "ReduceMean" | "ReduceMax" => reduce(r, node, a)?,
        "TopK" => {
            let x = r.value(input(node, 0)?)?;
            last(a.int("axis", Some(-1))?, r.graph.shape(x).rank())?;
            a.only("largest", 1)?;
            a.only("sorted", 1)?;
            let [k] = r.integers(input(node, 1)?)?[..] else { return Err("more than one k".into()) };
            let k = usize::try_from(k).map_err(|_| format!("top {k}"))?;
            let results = r.graph.apply(Op::TopK { k }, &[x]).map_err(|error| error.to_string())?;
            results_of(r, node, &results)?;
        }
        "RMSNormalization" | "LayerNormalization" => {
            let x = r.value(input(node, 0)?)?;
            last(a.int("axis", Some(-1))?, r.graph.shape(x).rank())?;
            a.only("stash_type", 1)?;
            let eps = a.float("epsilon", 1e-5)?;
            match node.op_type.as_str() {
                "RMSNormalization" => apply(r, node, Op::RmsNorm { eps }, 2)?,
                _ => apply(r, node, Op::LayerNorm { eps }, 3)?,
            }
        }
        "Attention" => attention(r, node, a)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn unary(name: &str) -> Option<UnaryOp> {
    use UnaryOp::*;
    let all = [Neg, Abs, Exp, Log, Sqrt, Reciprocal, Sin, Cos, Tanh, Erf, Sigmoid, Relu, Not];
    all.into_iter().find(|op| format!("{op:?}") == name)
}

fn binary(name: &str) -> Option<BinaryOp> {
    use BinaryOp::*;
    let all = [Add, Sub, Mul, Div, Pow, Max, Min, Less, LessOrEqual, Greater, GreaterOrEqual, Equal, And, Or];
    all.into_iter().find(|op| format!("{op:?}") == name)
}

fn input(node: &NodeProto, index: usize) -> Raised<&str> {
    let name = node.input.get(index).map(String::as_str).unwrap_or_default();
    if name.is_empty() { Err(format!("input {index} is missing")) } else { Ok(name) }
}

/// The result of a node that has one.
fn output(node: &NodeProto) -> Raised<&str> {
    match node.output.as_slice() {
        [name] if !name.is_empty() => Ok(name),
        other => Err(format!("{} results, one expected", other.len())),
    }
}

/// Inputs at most so many; those beyond the first `least` may be missing.
fn inputs(node: &NodeProto, least: usize, most: usize) -> Raised<Vec<Option<&str>>> {
    let names: Vec<Option<&str>> =
        node.input.iter().map(|name| (!name.is_empty()).then_some(name.as_str())).collect();
    let given = names.iter().rposition(Option::is_some).map_or(0, |at| at + 1);
    if given > most || names.iter().take(least).filter(|name| name.is_some()).count() < least {
        return Err(format!("{given} inputs; {least} to {most} are read"));
    }
    Ok((0..most).map(|index| names.get(index).copied().flatten()).collect())
}

fn apply(r: &mut Reader<'_>, node: &NodeProto, op: Op, arity: usize) -> Raised {
    let names = inputs(node, arity, arity)?;
    let operands = names.into_iter().flatten().map(|name| r.value(name)).collect::<Raised<Vec<_>>>()?;
    let results = r.graph.apply(op, &operands).map_err(|error| error.to_string())?;
    results_of(r, node, &results)
}

fn results_of(r: &mut Reader<'_>, node: &NodeProto, results: &[Value]) -> Raised {
    if node.output.len() > results.len() || node.output.iter().all(String::is_empty) {
        return Err(format!("{} results, up to {} expected", node.output.len(), results.len()));
    }
    for (name, &value) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
        r.define(name, Entry::Value(value))?;
    }
    Ok(())
}

/// An axis that may be counted from the end.
fn axis(axis: i64, rank: usize) -> Raised<usize> {
    let from_start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    let found = from_start.and_then(|axis| usize::try_from(axis).ok()).filter(|&axis| axis < rank);
    found.ok_or_else(|| format!("axis {axis} of {rank} dimensions"))
}

fn last(at: i64, rank: usize) -> Raised {
    match axis(at, rank)? + 1 == rank {
        true => Ok(()),
        false => Err(format!("axis {at} of {rank} dimensions; the last is read")),
    }
}

/// Sums and products of sizes stay sizes.
fn folded(r: &mut Reader<'_>, node: &NodeProto, op: BinaryOp) -> Raised<bool> {
    let names = inputs(node, 2, 2)?;
    let (Some(a), Some(b)) = (names[0], names[1]) else { return Ok(false) };
    if !matches!(op, BinaryOp::Add | BinaryOp::Mul) {
        return Ok(false);
    }
    let (Some((a, a_scalar)), Some((b, b_scalar))) = (r.numbers(a)?, r.numbers(b)?) else {
        return Ok(false);
    };
    let len = match (a.len(), b.len()) {
        (a, b) if a == b => a,
        (1, len) | (len, 1) => len,
        _ => return Err("lists of sizes of different lengths".into()),
    };
    let one = |list: &[Number], i: usize| list[if list.len() == 1 { 0 } else { i }].clone();
    let combine = |a: Number, b: Number| match (op, a, b) {
        (BinaryOp::Add, Number::Int(a), Number::Int(b)) => a.checked_add(b).map(Number::Int),
        (_, Number::Int(a), Number::Int(b)) => a.checked_mul(b).map(Number::Int),
        (BinaryOp::Add, a, b) => Some(Number::from(&a.dim()? + &b.dim()?)),
        (_, Number::Int(factor), Number::Dim(dim)) | (_, Number::Dim(dim), Number::Int(factor)) => {
            Some(Number::from(&dim * usize::try_from(factor).ok()?))
        }
        _ => None,
    };
    let list: Option<Vec<Number>> = (0..len).map(|i| combine(one(&a, i), one(&b, i))).collect();
    let list = list.ok_or("sizes that are not sums of multiples of dimensions")?;
    r.define(output(node)?, Entry::Numbers { list, scalar: a_scalar && b_scalar })?;
    Ok(true)
}

fn shape(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let names = inputs(node, 1, 1)?;
    let x = r.value(names[0].unwrap_or_default())?;
    let dims = r.graph.shape(x).dims().to_vec();
    let rank = dims.len() as i64;
    let at = |place: i64| if place < 0 { place.saturating_add(rank) } else { place }.clamp(0, rank) as usize;
    let (start, end) = (at(a.int("start", Some(0))?), at(a.int("end", Some(rank))?));
    let list = dims.get(start..end).unwrap_or_default().iter().cloned().map(Number::from).collect();
    r.define(output(node)?, Entry::Numbers { list, scalar: false })
}

fn concat(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let at = a.int("axis", None)?;
    if node.input.is_empty() {
        return Err("nothing to join".into());
    }
    let lists = node.input.iter().map(|name| r.numbers(name)).collect::<Raised<Vec<_>>>()?;
    if let Some(lists) = lists.into_iter().collect::<Option<Vec<_>>>() {
        if lists.iter().any(|(_, scalar)| *scalar) || !matches!(at, 0 | -1) {
            return Err("sizes joined along an axis that they do not have".into());
        }
        let list: Vec<Number> =
            lists.into_iter().flat_map(|(list, _)| list).take(LONGEST_SHAPE + 1).collect();
        if list.len() > LONGEST_SHAPE {
            return Err(format!("a list of more than {LONGEST_SHAPE} sizes"));
        }
        return r.define(output(node)?, Entry::Numbers { list, scalar: false });
    }
    let parts = node.input.iter().map(|name| r.value(name)).collect::<Raised<Vec<_>>>()?;
    let axis = axis(at, r.graph.shape(parts[0]).rank())?;
    let joined = r.graph.concat(&parts, axis).map_err(|error| error.to_string())?;
    results_of(r, node, &[joined])
}

fn reshape(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let names = inputs(node, 2, 2)?;
    let x = r.value(names[0].unwrap_or_default())?;
    let name = names[1].unwrap_or_default();
    let (list, _) = r.numbers(name)?.ok_or_else(|| format!("{name} is not a shape known in advance"))?;
    let keep_zeros = a.int("allowzero", Some(0))? != 0;
    let from = r.graph.shape(x).dims().to_vec();
    let mut dims: Vec<Option<Dim>> = Vec::with_capacity(list.len());
    for (axis, number) in list.iter().enumerate() {
        dims.push(match number {
            Number::Int(0) if !keep_zeros => {
                Some(from.get(axis).ok_or("a dimension that is not there is kept")?.clone())
            }
            Number::Int(-1) => None,
            other => Some(other.dim().ok_or_else(|| format!("dimension {other:?}"))?),
        });
    }
    if dims.iter().filter(|dim| dim.is_none()).count() > 1 {
        return Err("two dimensions of its shape are left open".into());
    }
    if dims.contains(&None) {
        let known: Vec<&Dim> = dims.iter().flatten().collect();
        let rest = quotient(&from, &known).ok_or("the dimension that it leaves open does not follow")?;
        let open = dims.iter_mut().filter(|dim| dim.is_none());
        open.for_each(|dim| *dim = Some(rest.clone()));
    }
    let dims: Vec<Dim> = dims.into_iter().flatten().collect();
    let reshaped = r.graph.reshape(x, dims).map_err(|error| error.to_string())?;
    results_of(r, node, &[reshaped])
}

/// The product of all of `from` over that of `by`, if it is a dimension.
fn quotient(from: &[Dim], by: &[&Dim]) -> Option<Dim> {
    let mut left: Vec<&Dim> = from.iter().collect();
    let mut divisor = 1usize;
    for dim in by {
        match (left.iter().position(|other| other == dim), dim.fixed()) {
            (Some(at), _) => drop(left.swap_remove(at)),
            (None, Some(size)) => divisor = divisor.checked_mul(size)?,
            (None, None) => return None,
        }
    }
    let (fixed, open): (Vec<&Dim>, Vec<&Dim>) = left.into_iter().partition(|dim| dim.fixed().is_some());
    let factor = fixed.iter().try_fold(1usize, |product, dim| product.checked_mul(dim.fixed()?))?;
    match open.as_slice() {
        [] => Dim::from(factor).divide(divisor),
        [dim] => (*dim * factor).divide(divisor),
        _ => None,
    }
}

fn slice(r: &mut Reader<'_>, node: &NodeProto) -> Raised {
    let names = inputs(node, 3, 5)?;
    let mut x = r.value(names[0].unwrap_or_default())?;
    let list = |r: &Reader<'_>, name: &str| -> Raised<Vec<Number>> {
        Ok(r.numbers(name)?.ok_or_else(|| format!("{name} is not known in advance"))?.0)
    };
    let (starts, ends) = (list(r, names[1].unwrap_or_default())?, list(r, names[2].unwrap_or_default())?);
    let axes = match names[3] {
        Some(name) => r.integers(name)?,
        None => (0..starts.len() as i64).collect(),
    };
    if let Some(name) = names[4]
        && r.integers(name)?.iter().any(|&step| step != 1)
    {
        return Err("steps other than 1".into());
    }
    if starts.len() != ends.len() || starts.len() != axes.len() {
        return Err("starts, ends and axes of different lengths".into());
    }
    let shape = r.graph.shape(x).clone();
    for ((start, end), at) in starts.iter().zip(&ends).zip(axes) {
        let axis = axis(at, shape.rank())?;
        let along = &shape.dims()[axis];
        // Counted from the end, or beyond it.
        let place = |number: &Number| match number {
            Number::Int(value) if *value < 0 => {
                usize::try_from(value.unsigned_abs()).ok().and_then(|back| along.minus(&back.into()))
            }
            Number::Int(value) if *value >= i64::from(i32::MAX) => Some(along.clone()),
            other => match (other.dim(), along.fixed()) {
                (Some(dim), Some(size)) if dim.fixed().is_some_and(|at| at > size) => Some(size.into()),
                (dim, _) => dim,
            },
        };
        let (Some(start), Some(end)) = (place(start), place(end)) else {
            return Err(format!("{start:?} to {end:?} of {along}"));
        };
        x = r.graph.slice(x, axis, start, end).map_err(|error| error.to_string())?;
    }
    results_of(r, node, &[x])
}

fn reduce(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let names = inputs(node, 2, 2)?;
    let x = r.value(names[0].unwrap_or_default())?;
    let [at] = r.integers(names[1].unwrap_or_default())?[..] else {
        return Err("more than one axis".into());
    };
    a.only("noop_with_empty_axes", 0)?;
    let op = match node.op_type.as_str() {
        "ReduceSum" => ReduceOp::Sum,
        "ReduceMean" => ReduceOp::Mean,
        _ => ReduceOp::Max,
    };
    let (axis, keep) = (axis(at, r.graph.shape(x).rank())?, a.int("keepdims", Some(1))? != 0);
    let reduced = r.graph.reduce(op, x, axis, keep).map_err(|error| error.to_string())?;
    results_of(r, node, &[reduced])
}

fn transpose(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let names = inputs(node, 1, 1)?;
    let name = names[0].unwrap_or_default();
    let perm = a.ints("perm")?;
    if let Entry::Blocks { name, blocks, turned } = r.entry(name)?.clone()
        && perm.as_deref().is_none_or(|perm| perm == [1, 0])
    {
        return r.define(output(node)?, Entry::Blocks { name, blocks, turned: !turned });
    }
    let x = r.value(name)?;
    let rank = r.graph.shape(x).rank();
    let perm = match perm {
        Some(perm) => perm.into_iter().map(|at| axis(at, rank)).collect::<Raised<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    let turned = r.graph.transpose(x, &perm).map_err(|error| error.to_string())?;
    results_of(r, node, &[turned])
}

/// A product with a weight is a linear layer.
fn mat_mul(r: &mut Reader<'_>, node: &NodeProto) -> Raised {
    let names = inputs(node, 2, 2)?;
    let (a, b) = (names[0].unwrap_or_default(), names[1].unwrap_or_default());
    let x = r.value(a)?;
    if let Some((index, tensor)) = r.tensor(b)?
        && tensor.kind == elem::FLOAT
        && tensor.shape.len() == 2
    {
        let weight = r.turned(index)?;
        return r.linear(Op::Linear(Storage::F32), x, weight, output(node)?);
    }
    if let Entry::Blocks { name, blocks, turned: true } = r.entry(b)?.clone() {
        return stored(r, x, &name, &blocks, output(node)?);
    }
    apply(r, node, Op::MatMul, 2)
}

fn stored(r: &mut Reader<'_>, x: Value, name: &str, blocks: &Arc<Blocks>, out: &str) -> Raised {
    let weight = r.dense(name, blocks)?;
    let storage = match (r.ours(), blocks.bits, blocks.block) {
        (true, 4, block) => Storage::Int4 { block },
        (true, _, block) => Storage::Int8 { block },
        (false, ..) => Storage::F32,
    };
    r.linear(Op::Linear(storage), x, weight, out)
}

/// The tensor of a name, of one of these types.
fn part<'a>(r: &Reader<'a>, name: &str, kinds: &[i32]) -> Raised<&'a Initializer> {
    match r.tensor(name)? {
        Some((_, tensor)) if kinds.contains(&tensor.kind) => Ok(tensor),
        Some((_, tensor)) => Err(format!("{name} is of type {}", elem::name(tensor.kind))),
        None => Err(format!("{name} must be stored in the model")),
    }
}

fn dequantize(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let names = inputs(node, 3, 3)?;
    let [codes, scales, zeros] = [0, 1, 2].map(|i| names[i].unwrap_or_default());
    let axis = a.int("axis", Some(1))?;
    let block = usize::try_from(a.int("block_size", Some(0))?).unwrap_or(0);
    a.only("output_dtype", 0)?;
    let stored = part(r, codes, &[elem::UINT4, elem::UINT8])?;
    let &[outs, ins] = stored.shape.as_slice() else { return Err("codes that are not a matrix".into()) };
    let bits = if stored.kind == elem::UINT4 { 4 } else { 8 };
    if !matches!(axis, 1 | -1) || block == 0 || ins % block != 0 || (bits == 4 && ins / block % 2 != 0) {
        return Err(format!("blocks of {block} along axis {axis} of {:?}", stored.shape));
    }
    let (scales, zeros) = (part(r, scales, &[elem::FLOAT])?, part(r, zeros, &[stored.kind])?);
    if scales.shape != [outs, ins / block] || zeros.shape != scales.shape {
        return Err(format!("scales {:?} and zero points {:?}", scales.shape, zeros.shape));
    }
    let blocks = Blocks {
        shape: [outs, ins],
        bits,
        block,
        packed: stored.bytes.clone(),
        scales: scales.bytes.clone(),
        zeros: Some(zeros.bytes.clone()),
    };
    blocks.check()?;
    let entry = Entry::Blocks { name: codes.into(), blocks: Arc::new(blocks), turned: false };
    r.define(output(node)?, entry)
}

fn mat_mul_n_bits(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let names = inputs(node, 3, 4)?;
    let [x, codes, scales] = [0, 1, 2].map(|i| names[i].unwrap_or_default());
    let mut size = |name: &str, default: Option<i64>| -> Raised<usize> {
        let value = a.int(name, default)?;
        let size = usize::try_from(value).ok().filter(|size| (1..=1 << 40).contains(size));
        size.ok_or_else(|| format!("{name} is {value}"))
    };
    let shape = [size("N", None)?, size("K", None)?];
    let (bits, block) = (size("bits", Some(4))?, size("block_size", None)?);
    // How activations may be rounded: a hint to one runtime, not part of what the graph means.
    a.int("accuracy_level", Some(0))?;
    let zeros = names[3].map(|name| part(r, name, &[elem::UINT8])).transpose()?;
    let blocks = Blocks {
        shape,
        bits,
        block,
        packed: part(r, codes, &[elem::UINT8])?.bytes.clone(),
        scales: part(r, scales, &[elem::FLOAT])?.bytes.clone(),
        zeros: zeros.map(|zeros| zeros.bytes.clone()),
    };
    blocks.check()?;
    let x = r.value(x)?;
    stored(r, x, codes, &Arc::new(blocks), output(node)?)
}

fn attention(r: &mut Reader<'_>, node: &NodeProto, a: &mut Attributes<'_>) -> Raised {
    let names = inputs(node, 4, 6)?;
    let operands = names.iter().flatten().map(|name| r.value(name)).collect::<Raised<Vec<_>>>()?;
    let mut heads = |name: &str| -> Raised<usize> {
        let value = a.int(name, None)?;
        usize::try_from(value).map_err(|_| format!("{name} is {value}"))
    };
    let (heads, kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    for name in ["is_causal", "qk_matmul_output_mode", "softmax_precision"] {
        a.only(name, 0)?;
    }
    if a.float("softcap", 0.0)? != 0.0 {
        return Err("a soft cap, whose place has changed between versions of the operator".into());
    }
    let width = r.graph.shape(operands[0]).last().and_then(|width| width.divide(heads)?.fixed());
    let scale = match (a.float("scale", f32::NAN)?, width) {
        (scale, _) if !scale.is_nan() => scale,
        (_, Some(width)) if width > 0 => (width as f32).sqrt().recip(),
        _ => return Err("neither a scale nor a head of known width".into()),
    };
    let op = Op::Attention { heads, kv_heads, scale, softcap: None };
    let results = r.graph.apply(op, &operands).map_err(|error| error.to_string())?;
    results_of(r, node, &results)
}

/// Attributes of a node. Those that nobody asked for are an error: they would change what the node means.
struct Attributes<'a>(BTreeMap<&'a str, &'a Attribute>);

impl<'a> Attributes<'a> {
    fn new(node: &'a NodeProto) -> Raised<Self> {
        let mut all = BTreeMap::new();
        for attribute in &node.attribute {
            if all.insert(attribute.name.as_str(), attribute).is_some() {
                return Err(format!("attribute {} is given twice", attribute.name));
            }
        }
        Ok(Self(all))
    }

    fn take(&mut self, name: &str, kind: i32) -> Raised<Option<&'a Attribute>> {
        match self.0.remove(name) {
            Some(attribute) if attribute.kind != kind => Err(format!("attribute {name} is of another type")),
            found => Ok(found),
        }
    }

    fn int(&mut self, name: &str, default: Option<i64>) -> Raised<i64> {
        let found = self.take(name, 2)?.map(|attribute| attribute.i);
        found.or(default).ok_or_else(|| format!("attribute {name} is missing"))
    }

    fn float(&mut self, name: &str, default: f32) -> Raised<f32> {
        Ok(self.take(name, 1)?.map_or(default, |attribute| attribute.f))
    }

    fn text(&mut self, name: &str, default: &'a str) -> Raised<&'a str> {
        match self.take(name, 3)? {
            None => Ok(default),
            Some(attribute) => {
                std::str::from_utf8(&attribute.s).map_err(|_| format!("attribute {name} is not a text"))
            }
        }
    }

    fn ints(&mut self, name: &str) -> Raised<Option<Vec<i64>>> {
        Ok(self.take(name, 7)?.map(|attribute| attribute.ints.clone()))
    }

    /// An attribute that may only be what it is by default.
    fn only(&mut self, name: &str, value: i64) -> Raised {
        match self.int(name, Some(value))? {
            found if found == value => Ok(()),
            found => Err(format!("{name} is {found}; {value} is read")),
        }
    }

    fn finish(self) -> Raised {
        match self.0.into_keys().next() {
            Some(name) => Err(format!("attribute {name} is not read")),
            None => Ok(()),
        }
    }
}
