//! Operators that leave out what is not wanted: inputs and neurons that a gate drops, experts that no row uses.
//!
//! All are found in a graph by how they are written with standard operators, which is also how every other reader runs
//! them:
//!
//! ```text
//! LinearGated    linear(where(|x| > t, x, 0), W), or where(|x| > t or all, x, 0)     the linear layer stored by columns
//! LinearRows     where(keep, a * linear(x, W), 0)                         the linear layer stored by rows
//! LinearExperts  sum over e of factors_e * reshape(linear(x, W), [.., E, outs])      as Graph::experts writes it
//! ```
//! Several rows take the union of what each needs; what a row does not want itself is multiplied by zero, so that its
//! result does not depend on the others. Each saves the nodes of its pattern as well: three or four small ones before
//! every gated layer are a tenth of a step in int8. [`LinearGated`] differs from its pattern in that it drops nothing that
//! is not a number.

use std::collections::HashMap;

use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::TensorElementType;
use pilotfish_graph::{
    BinaryOp, Custom, DType, Dim, Graph, GraphError, Kept, Literal, Node, Op, Producer, ReduceOp, Setting,
    Shape, Storage, Tensor, UnaryOp, Value, passes,
};
use pilotfish_kernels::{Active, Columns, Dense, Experts, Float, KernelError, Neurons, Route};

use crate::products::{
    PRODUCTS_DOMAIN, PROVIDER, Threads, Weights, as_words, bits, infer, kept, kept_of, missing, operand,
    pack, packed_bytes, refuse, result_shape, size,
};

/// The operator of a linear layer whose outputs a gate drops.
pub(crate) const ROWS: &str = "LinearRows";
const EXPERTS: &str = "LinearExperts";
const GATED: &str = "LinearGated";

/// Adds the operators to a domain.
pub(crate) fn add(domain: OperatorDomain, threads: usize) -> ort::Result<OperatorDomain> {
    domain.add(LinearRows { threads })?.add(LinearExperts { threads })?.add(LinearGated { threads })
}

/// Replaces what these operators stand for, where the storage and shape of the matrix are wanted.
pub(crate) fn lower(
    graph: &Graph,
    wanted: &impl Fn(Storage, [usize; 2]) -> bool,
) -> pilotfish_graph::Result<Graph> {
    let mut readers: HashMap<Value, usize> = HashMap::new();
    let outputs = graph.outputs().iter().map(|(_, value)| value);
    graph.nodes().iter().flat_map(|node| &node.inputs).chain(outputs).for_each(|value| {
        *readers.entry(*value).or_default() += 1;
    });
    let olds: HashMap<Value, &Node> =
        graph.nodes().iter().filter_map(|node| Some((*node.outputs.first()?, node))).collect();
    let once = |value: Value| readers.get(&value) == Some(&1);
    passes::rewrite(graph, |new, node, inputs| {
        let Some(old) = node.outputs.first().and_then(|out| olds.get(out)) else { return Ok(None) };
        if let Some(gated) = Gated::find(graph, old, &once).filter(|gated| wanted(Storage::Rows, gated.shape))
        {
            return gated.lower(graph, new, inputs).map(Some);
        }
        if let Some(gate) = Threshold::find(graph, old).filter(|gate| wanted(gate.storage(), gate.shape)) {
            return gate.lower(graph, new, inputs).map(Some);
        }
        if let Some(sum) = ExpertSum::find(graph, old) {
            let [outs, ins] = sum.shape;
            if wanted(sum.storage, [sum.count * outs, ins]) {
                return sum.lower(graph, new, inputs).map(Some);
            }
        }
        Ok(None)
    })
}

/// The node that makes a value.
fn producer(graph: &Graph, value: Value) -> Option<&Node> {
    match graph.info(value).producer {
        Producer::Node(id, _) => Some(graph.node(id)),
        _ => None,
    }
}

/// A linear layer without bias whose matrix is a parameter, and that parameter's shape.
fn plain_linear(graph: &Graph, value: Value) -> Option<(&Node, Storage, [usize; 2])> {
    let node = producer(graph, value)?;
    let Op::Linear(storage) = node.op else { return None };
    let shape = graph.param_of(*node.inputs.get(1)?)?.tensor.shape().try_into().ok()?;
    (node.inputs.len() == 2).then_some((node, storage, shape))
}

fn lost(graph: &Graph) -> GraphError {
    GraphError::Tensor { name: graph.name().into(), why: "a pattern changed while it was lowered".into() }
}

/// `where(keep, a * linear(x, W), 0)`.
struct Gated {
    /// Which operand of the product is the linear layer.
    side: usize,
    linear: Value,
    shape: [usize; 2],
}

impl Gated {
    fn find(graph: &Graph, node: &Node, once: &impl Fn(Value) -> bool) -> Option<Self> {
        let (Op::Where, &[keep, product, zero]) = (&node.op, node.inputs.as_slice()) else { return None };
        let zero = match &producer(graph, zero)?.op {
            Op::Constant(Literal::F32 { values, .. }) => values.iter().all(|&value| value == 0.0),
            _ => false,
        };
        let mul = producer(graph, product).filter(|mul| mul.op == Op::Binary(BinaryOp::Mul))?;
        if !zero || !once(product) || graph.shape(keep) != graph.shape(product) {
            return None;
        }
        let found = |side: usize| {
            let linear = mul.inputs[side];
            let (_, storage, shape) = plain_linear(graph, linear)?;
            let whole = graph.shape(linear) == graph.shape(product);
            (storage == Storage::Rows && whole && once(linear)).then_some(Self { side, linear, shape })
        };
        found(0).or_else(|| found(1))
    }

    fn lower(&self, old: &Graph, new: &mut Graph, inputs: &[Value]) -> pilotfish_graph::Result<Vec<Value>> {
        let mul = producer(new, inputs[1]).ok_or_else(|| lost(old))?.inputs.clone();
        let x = producer(new, mul[self.side]).ok_or_else(|| lost(old))?.inputs[0];
        let (name, tensor) = matrix(old, self.linear)?;
        let [outs, ins] = self.shape;
        let count = Neurons::packed_bytes(outs, ins) / 4;
        let packed = as_words(&tensor, count, move |tensor| {
            let wrong = |error: KernelError| GraphError::Tensor {
                name: format!("{tensor:?}"),
                why: error.to_string(),
            };
            Ok(Neurons::pack(&tensor.to_f32()?, outs, ins).map_err(wrong)?.packed().to_vec())
        });
        let packed = new.param(&format!("{name}.pilotfish.rows"), packed)?;
        let custom = custom(ROWS, [("outs", outs), ("ins", ins)], new.shape(mul[self.side]).clone());
        let neurons = new.apply(Op::Custom(Box::new(custom)), &[x, packed, inputs[0]])?[0];
        let product = new.mul(mul[1 - self.side], neurons)?;
        Ok(vec![new.select(inputs[0], product, inputs[2])?])
    }
}

/// `linear(where(|x| > threshold, x, 0), W)`, or with another condition under which a row is left whole.
struct Threshold {
    linear: Value,
    kept: Kept,
    shape: [usize; 2],
    threshold: f32,
    whole: bool,
}

impl Threshold {
    fn storage(&self) -> Storage {
        Storage::Columns { kept: self.kept }
    }

    fn find(graph: &Graph, node: &Node) -> Option<Self> {
        let linear = *node.outputs.first()?;
        let (_, Storage::Columns { kept }, shape) = plain_linear(graph, linear)? else { return None };
        let constant = |value: Value| match &producer(graph, value)?.op {
            Op::Constant(Literal::F32 { values, .. }) => Some(values.as_slice()),
            _ => None,
        };
        let select = producer(graph, node.inputs[0]).filter(|select| select.op == Op::Where)?;
        let &[keep, x, zero] = select.inputs.as_slice() else { return None };
        let keep = producer(graph, keep)?;
        let (judged, whole) = match keep.op {
            Op::Binary(BinaryOp::Or) => (producer(graph, keep.inputs[0])?, Some(keep.inputs[1])),
            _ => (keep, None),
        };
        let score = producer(graph, judged.inputs[0])?;
        let &[threshold] = constant(*judged.inputs.get(1)?)? else { return None };
        let one_a_row = |value: Value| {
            let (all, of) = (graph.shape(x).dims(), graph.shape(value).dims());
            of.len() == all.len()
                && of.last() == Some(&Dim::from(1))
                && of[..of.len() - 1] == all[..all.len() - 1]
        };
        let fits = judged.op == Op::Binary(BinaryOp::Greater)
            && score.op == Op::Unary(UnaryOp::Abs)
            && score.inputs[0] == x
            && constant(zero)?.iter().all(|&value| value == 0.0)
            && graph.shape(node.inputs[0]) == graph.shape(x)
            && whole.is_none_or(one_a_row);
        fits.then_some(Self { linear, kept, shape, threshold, whole: whole.is_some() })
    }

    fn lower(&self, old: &Graph, new: &mut Graph, inputs: &[Value]) -> pilotfish_graph::Result<Vec<Value>> {
        let select = producer(new, inputs[0]).ok_or_else(|| lost(old))?.inputs.clone();
        let (name, tensor) = matrix(old, self.linear)?;
        let ([outs, ins], storage) = (self.shape, self.storage());
        let words = packed_bytes(storage, self.shape).unwrap_or(0) / 4;
        let packed = as_words(&tensor, words, move |tensor| pack(tensor, storage));
        let packed = new.param(&format!("{name}.pilotfish.{storage}"), packed)?;
        let x = select[1];
        let result = new.shape(x).with(new.shape(x).rank() - 1, outs.into());
        let mut custom =
            custom(GATED, [("outs", outs), ("ins", ins), ("bits", bits(kept(self.kept)) as usize)], result);
        custom.attributes.push(("threshold".into(), Setting::Float(self.threshold)));
        let mut operands = vec![x, packed];
        if self.whole {
            operands.push(producer(new, select[0]).ok_or_else(|| lost(old))?.inputs[1]);
        }
        new.apply(Op::Custom(Box::new(custom)), &operands)
    }
}

/// The matrix of a linear layer.
fn matrix(graph: &Graph, linear: Value) -> pilotfish_graph::Result<(String, Tensor)> {
    let param = producer(graph, linear).and_then(|node| graph.param_of(node.inputs[1]));
    param.map(|param| (param.name.clone(), param.tensor.clone())).ok_or_else(|| lost(graph))
}

fn custom<const N: usize>(name: &str, sizes: [(&str, usize); N], result: Shape) -> Custom {
    Custom {
        domain: PRODUCTS_DOMAIN.into(),
        name: name.into(),
        provider: PROVIDER.into(),
        attributes: sizes.map(|(name, size)| (name.to_owned(), Setting::Int(size as i64))).into(),
        results: vec![(result, DType::F32)],
    }
}

/// What [`Graph::experts`] writes.
struct ExpertSum {
    linear: Value,
    /// Which operand of the product is the linear layer's.
    side: usize,
    storage: Storage,
    count: usize,
    /// Of one expert.
    shape: [usize; 2],
}

impl ExpertSum {
    fn find(graph: &Graph, node: &Node) -> Option<Self> {
        let Op::Reduce { op: ReduceOp::Sum, axis, keep: false } = node.op else { return None };
        let mul = producer(graph, node.inputs[0]).filter(|mul| mul.op == Op::Binary(BinaryOp::Mul))?;
        let reshaped = |side: usize| {
            let node = producer(graph, mul.inputs[side])?;
            matches!(node.op, Op::Reshape(_)).then_some((node.inputs[0], graph.shape(mul.inputs[side])))
        };
        let found = |side: usize| {
            let ((linear, all), (factors, one)) = (reshaped(side)?, reshaped(1 - side)?);
            let (_, storage, [rows, ins]) = plain_linear(graph, linear)?;
            let rank = all.rank();
            let [count, outs] = [rank.checked_sub(2)?, rank - 1].map(|at| all.dims()[at].fixed());
            let (count, outs) = (count?, outs?);
            let leading = &all.dims()[..rank - 1];
            let fits = axis == rank - 2
                && count * outs == rows
                && graph.shape(linear).dims()[..rank - 2] == leading[..rank - 2]
                && graph.shape(factors).dims() == leading
                && one.dims()[..rank - 1] == *leading
                && one.dims()[rank - 1] == Dim::from(1);
            let stored = matches!(storage, Storage::F32 | Storage::Bf16);
            (fits && stored).then_some(Self { linear, side, storage, count, shape: [outs, ins] })
        };
        found(0).or_else(|| found(1))
    }

    fn lower(&self, old: &Graph, new: &mut Graph, inputs: &[Value]) -> pilotfish_graph::Result<Vec<Value>> {
        let mul = producer(new, inputs[0]).ok_or_else(|| lost(old))?.inputs.clone();
        let before = |new: &Graph, value: Value| producer(new, value).map(|node| node.inputs[0]);
        let linear = before(new, mul[self.side]).ok_or_else(|| lost(old))?;
        let x = before(new, linear).ok_or_else(|| lost(old))?;
        let factors = before(new, mul[1 - self.side]).ok_or_else(|| lost(old))?;
        let (name, tensor) = matrix(old, self.linear)?;
        let ([outs, ins], count, storage) = (self.shape, self.count, self.storage);
        let words = count * Dense::packed_bytes(outs, ins, float(storage)) / 4;
        let packed = as_words(&tensor, words, move |tensor| {
            let mut all = Vec::with_capacity(4 * words);
            for expert in 0..count {
                let one = Tensor::new([outs, ins], tensor.rows(expert * outs..(expert + 1) * outs)?)?;
                all.extend(pack(&one, storage)?);
            }
            Ok(all)
        });
        let packed = new.param(&format!("{name}.pilotfish.experts.{storage}"), packed)?;
        let result = new.shape(x).with(new.shape(x).rank() - 1, outs.into());
        let bits = if storage == Storage::Bf16 { 16 } else { 32 };
        let sizes = [("outs", outs), ("ins", ins), ("experts", count), ("bits", bits)];
        new.apply(Op::Custom(Box::new(custom(EXPERTS, sizes, result))), &[x, packed, factors])
    }
}

fn float(storage: Storage) -> Float {
    if storage == Storage::Bf16 { Float::Bf16 } else { Float::F32 }
}

/// `(x [.., ins], packed columns, whole [.., 1] if rows can be left whole) -> [.., outs]`: inputs up to the threshold are
/// taken as zeros, and the columns that no row needs are not read.
struct LinearGated {
    threads: usize,
}

impl Operator for LinearGated {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        GATED
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = const { OperatorInput::required(TensorElementType::Float32) };
        [
            float,
            const { OperatorInput::required(TensorElementType::Float32) },
            const { OperatorInput::optional(TensorElementType::Bool) },
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let (shape, width) = ([size(context, "outs")?, size(context, "ins")?], self.threads);
        let ([outs, ins], kept) = (shape, kept_of(context)?);
        let threshold: f32 =
            context.get("threshold").ok_or_else(|| ort::Error::new("pilotfish: no attribute threshold"))?;
        let check = |bytes: &[u8]| Columns::from_packed(bytes, outs, ins, kept).map(|_| ());
        let weights = Weights::of(context, 1, &check)?;
        Ok(Box::new(move |context: &ComputeContext| {
            let (x, packed) = (operand(context, 0)?, operand(context, 1)?);
            let (x_shape, x) = x.try_extract_tensor::<f32>()?;
            let (_, packed) = packed.try_extract_tensor::<f32>()?;
            let whole = context.input(2)?;
            let whole: &[bool] = match &whole {
                Some(whole) => whole.try_extract_tensor::<bool>()?.1,
                None => &[],
            };
            let rows = x.len() / ins;
            if !whole.is_empty() && whole.len() != rows {
                return Err(ort::Error::new(format!("pilotfish: {} flags for {rows} rows", whole.len())));
            }
            let mut y = context.output(0, result_shape(x_shape, shape)?)?.ok_or_else(missing)?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            let gated = |row: usize| !whole.get(row).copied().unwrap_or(false);
            let active = Active::above_where(x, rows, ins, threshold, gated).map_err(refuse)?;
            let columns = Columns::from_packed(weights.bytes(packed), outs, ins, kept).map_err(refuse)?;
            columns.apply(&active, y, &Threads { context, width }).map_err(refuse)
        }))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        infer(context)
    }
}

/// `(x [.., ins], packed rows, keep [.., outs]) -> [.., outs]`: the outputs that some row keeps; the others are zero.
struct LinearRows {
    threads: usize,
}

impl Operator for LinearRows {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        ROWS
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [TensorElementType::Float32, TensorElementType::Float32, TensorElementType::Bool]
            .map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let (shape, width) = ([size(context, "outs")?, size(context, "ins")?], self.threads);
        let [outs, ins] = shape;
        let weights = Weights::of(context, 1, &|bytes| Neurons::from_packed(bytes, outs, ins).map(|_| ()))?;
        Ok(Box::new(move |context: &ComputeContext| {
            let (x, packed, keep) = (operand(context, 0)?, operand(context, 1)?, operand(context, 2)?);
            let (x_shape, x) = x.try_extract_tensor::<f32>()?;
            let (_, packed) = packed.try_extract_tensor::<f32>()?;
            let (keep_shape, keep) = keep.try_extract_tensor::<bool>()?;
            let y_shape = result_shape(x_shape, shape)?;
            if keep_shape.iter().ne(&y_shape) {
                return Err(ort::Error::new(format!("pilotfish: {keep_shape:?} is not {y_shape:?}")));
            }
            let mut y = context.output(0, y_shape)?.ok_or_else(missing)?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            let rows = x.len() / ins;
            let mut union = keep[..outs.min(keep.len())].to_vec();
            for row in keep.chunks_exact(outs).skip(1) {
                union.iter_mut().zip(row).for_each(|(any, &keep)| *any |= keep);
            }
            let wanted: Vec<u32> =
                (0u32..).zip(&union).filter(|(_, any)| **any).map(|(out, _)| out).collect();
            let mut found = vec![0.0; rows * wanted.len()];
            let neurons = Neurons::from_packed(weights.bytes(packed), outs, ins).map_err(refuse)?;
            neurons.apply(&wanted, x, rows, &mut found, &Threads { context, width }).map_err(refuse)?;
            y.fill(0.0);
            if !wanted.is_empty() {
                for (y, found) in y.chunks_exact_mut(outs).zip(found.chunks_exact(wanted.len())) {
                    wanted.iter().zip(found).for_each(|(&out, &value)| y[out as usize] = value);
                }
            }
            Ok(())
        }))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        infer(context)
    }
}

/// `(x [.., ins], packed experts, factors [.., experts]) -> [.., outs]`: an expert whose factor is zero in every row is
/// not read.
struct LinearExperts {
    threads: usize,
}

impl Operator for LinearExperts {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        EXPERTS
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 3]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let (shape, width) = ([size(context, "outs")?, size(context, "ins")?], self.threads);
        let float = match size(context, "bits")? {
            32 => Float::F32,
            16 => Float::Bf16,
            other => return Err(ort::Error::new(format!("pilotfish: experts of {other} bits"))),
        };
        let ([outs, ins], count) = (shape, size(context, "experts")?);
        let weights = Weights::of(context, 1, &|bytes| experts(bytes, count, shape, float).map(|_| ()))?;
        Ok(Box::new(move |context: &ComputeContext| {
            let (x, packed, factors) = (operand(context, 0)?, operand(context, 1)?, operand(context, 2)?);
            let (x_shape, x) = x.try_extract_tensor::<f32>()?;
            let (_, packed) = packed.try_extract_tensor::<f32>()?;
            let (factor_shape, factors) = factors.try_extract_tensor::<f32>()?;
            let want = result_shape(x_shape, [count, ins])?;
            if factor_shape.iter().ne(&want) {
                return Err(ort::Error::new(format!("pilotfish: {factor_shape:?} is not {want:?}")));
            }
            let mut y = context.output(0, result_shape(x_shape, [outs, ins])?)?.ok_or_else(missing)?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            let routes: Vec<Route> = factors
                .iter()
                .enumerate()
                .filter(|(_, factor)| **factor != 0.0)
                .map(|(at, &weight)| Route { row: at / count, expert: at % count, weight })
                .collect();
            let experts = experts(weights.bytes(packed), count, shape, float).map_err(refuse)?;
            experts.apply(x, x.len() / ins, &routes, y, &Threads { context, width }).map_err(refuse)
        }))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        infer(context)
    }
}

/// Experts that were packed one after the other.
fn experts(
    bytes: &[u8],
    count: usize,
    [outs, ins]: [usize; 2],
    float: Float,
) -> Result<Experts<'_>, KernelError> {
    let size = Dense::packed_bytes(outs, ins, float);
    if size == 0 || size.checked_mul(count) != Some(bytes.len()) {
        return Err(KernelError::Packed {
            why: format!("{} bytes for {count} experts of {size}", bytes.len()),
        });
    }
    let dense = bytes.chunks_exact(size).map(|bytes| Dense::from_packed(bytes, outs, ins, float));
    Experts::new(dense.collect::<Result<_, _>>()?)
}
