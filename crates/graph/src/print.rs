//! Graphs as text: one line a node.

use std::collections::HashMap;
use std::fmt;

use crate::cost::parameters;
use crate::{Graph, Literal, Op, Producer, RopeScaling, Value};

/// One line each for inputs, parameters (shape, storage, bytes), nodes (results, shapes, operation, operands),
/// outputs and marks. Results of nodes are numbered `%0`, `%1`, ... in the order in which they are made.
///
/// ```
/// use pilotfish_graph::{DType, Dim, Graph, Tensor};
/// let mut graph = Graph::new("two by three");
/// let x = graph.input("x", vec![Dim::symbol("T"), 3.into()], DType::F32)?;
/// let w = graph.param("w", Tensor::new([2, 3], vec![0.0; 6])?)?;
/// let y = graph.linear(x, w, None)?;
/// graph.output("y", y)?;
/// assert_eq!(
///     graph.to_string(),
///     "graph two by three: 1 nodes, 1 parameters, 6 numbers, 24 bytes\n\
///      input x: F32 [T, 3]\n\
///      param w: [2, 3] f32, 24 bytes\n\
///      %0: F32 [T, 2] = Linear f32 (x, w)\n\
///      output y = %0\n"
/// );
/// # Ok::<(), pilotfish_graph::GraphError>(())
/// ```
impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params = parameters(self);
        let numbers: usize = self.params().iter().map(|param| param.tensor.count()).sum();
        let bytes: u64 = params.iter().map(|param| param.bytes).sum();
        let (nodes, count) = (self.nodes().len(), params.len());
        let title = self.name().escape_debug();
        writeln!(f, "graph {title}: {nodes} nodes, {count} parameters, {numbers} numbers, {bytes} bytes")?;
        for &input in self.inputs() {
            let info = self.info(input);
            writeln!(f, "input {}: {:?} {}", info.name.escape_debug(), info.dtype, info.shape)?;
        }
        for (param, stored) in self.params().iter().zip(&params) {
            let storages: Vec<String> = stored.storages.iter().map(ToString::to_string).collect();
            let (name, shape) = (param.name.escape_debug(), param.tensor.shape());
            writeln!(f, "param {name}: {shape:?} {}, {} bytes", storages.join(" and "), stored.bytes)?;
        }
        let results = self.nodes().iter().flat_map(|node| &node.outputs);
        let numbers: HashMap<Value, usize> = results.enumerate().map(|(i, &value)| (value, i)).collect();
        let name = |value: Value| match self.info(value).producer {
            Producer::Node(..) => format!("%{}", numbers.get(&value).copied().unwrap_or_default()),
            _ => self.info(value).name.escape_debug().to_string(),
        };
        for node in self.nodes() {
            let results: Vec<String> = node
                .outputs
                .iter()
                .map(|&value| format!("{}: {:?} {}", name(value), self.info(value).dtype, self.shape(value)))
                .collect();
            let operands: Vec<String> = node.inputs.iter().map(|&value| name(value)).collect();
            writeln!(f, "{} = {} ({})", results.join(", "), node.op, operands.join(", "))?;
        }
        for (output, value) in self.outputs() {
            writeln!(f, "output {} = {}", output.escape_debug(), name(*value))?;
        }
        for (mark, value) in self.marks() {
            writeln!(f, "mark {mark:?} = {}", name(*value))?;
        }
        Ok(())
    }
}

/// The operation and what it is set to. Shapes are not repeated: they are those of the results.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unary(_) | Self::Binary(_) => "",
            _ => self.name(),
        })?;
        match self {
            Self::Constant(Literal::F32 { values, .. }) => constant(f, values),
            Self::Constant(Literal::I64 { values, .. }) => constant(f, values),
            Self::Unary(op) => write!(f, "{op:?}"),
            Self::Binary(op) => write!(f, "{op:?}"),
            Self::Cast(to) => write!(f, " to {to:?}"),
            Self::Transpose(perm) => write!(f, " {perm:?}"),
            Self::Concat { axis } | Self::Gather { axis } => write!(f, " axis {axis}"),
            Self::Slice { axis, start, end } => write!(f, " axis {axis} from {start} to {end}"),
            Self::Reduce { op, axis, keep } => {
                write!(f, " {op:?} axis {axis}{}", if *keep { " kept" } else { "" })
            }
            Self::TopK { k } => write!(f, " {k}"),
            Self::Linear(storage) => write!(f, " {storage}"),
            Self::RmsNorm { eps } | Self::LayerNorm { eps } => write!(f, " eps {eps}"),
            Self::Rotary { head_dim, theta, scaling } => {
                write!(f, " head_dim {head_dim} theta {theta}")?;
                match scaling {
                    RopeScaling::None => Ok(()),
                    scaling => write!(f, " {scaling:?}"),
                }
            }
            Self::Attention { heads, kv_heads, scale, softcap } => {
                write!(f, " heads {heads} kv_heads {kv_heads} scale {scale}")?;
                softcap.map_or(Ok(()), |cap| write!(f, " softcap {cap}"))
            }
            Self::Custom(custom) => write!(f, " {}:{}", custom.domain, custom.name),
            Self::Where | Self::MatMul | Self::Reshape(_) | Self::Softmax | Self::Embedding => Ok(()),
        }
    }
}

fn constant<T: fmt::Display>(f: &mut fmt::Formatter<'_>, values: &[T]) -> fmt::Result {
    const SHOWN: usize = 8;
    for value in values.iter().take(SHOWN) {
        write!(f, " {value}")?;
    }
    match values.len() {
        0..=SHOWN => Ok(()),
        more => write!(f, " and {} more", more - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        AttentionConfig, DType, Dim, Graph, Literal, Mark, Op, ReduceOp, Result, RopeScaling, Storage,
        Tensor, UnaryOp,
    };

    #[test]
    fn every_line_by_hand() -> Result<()> {
        let mut g = Graph::new("a\nname");
        let (t, l) = (Dim::symbol("T"), Dim::symbol("L"));
        let ids = g.input("ids", vec![1.into(), t.clone()], DType::I64)?;
        let mask = g.input("mask", vec![1.into(), 1.into(), t.clone(), &l + &t], DType::F32)?;
        let past = vec![1.into(), 1.into(), l.clone(), 32.into()];
        let (keys, values) = (g.input("k", past.clone(), DType::F32)?, g.input("v", past, DType::F32)?);
        let table = g.param("table", Tensor::new([10, 32], vec![0.0; 320])?)?;
        let x = g.embedding(table, ids)?;
        g.mark(Mark::Residual(0), x);
        let scale = g.param("scale", Tensor::new([32], vec![1.0; 32])?)?;
        let h = g.rms_norm(x, scale, 1e-5)?;
        let h = g.rotary(h, ids, 32, 10000.0, RopeScaling::Linear { factor: 2.0 })?;
        let config = AttentionConfig { heads: 1, kv_heads: 1, scale: 0.25, softcap: Some(30.0) };
        let (y, all, _) = g.attention([h, h, h], mask, Some((keys, values)), config)?;
        let y = g.unary(UnaryOp::Silu, y)?;
        let x = g.add(x, y)?;
        let last = g.slice(all, 2, l.clone(), &l + &t)?;
        let mean = g.reduce(ReduceOp::Mean, last, 3, true)?;
        let mean = g.reduce(ReduceOp::Max, mean, 0, false)?;
        let logits = g.apply(Op::Linear(Storage::Int4 { block: 32 }), &[x, table])?[0];
        let (best, indices) = g.top_k(logits, 3)?;
        let nine = g.constant(Literal::I64 { shape: vec![9], values: (0..9).collect() })?;
        let turned = g.transpose(best, &[0, 2, 1])?;
        let flat = g.reshape(turned, vec![3.into(), t])?;
        g.output("flat", flat)?;
        g.output("mean", mean)?;
        g.output("indices", indices)?;
        g.output("nine", nine)?;
        g.mark(Mark::Logits, logits);
        let want = r"graph a\nname: 14 nodes, 2 parameters, 352 numbers, 1618 bytes
input ids: I64 [1, T]
input mask: F32 [1, 1, T, L+T]
input k: F32 [1, 1, L, 32]
input v: F32 [1, 1, L, 32]
param table: [10, 32] f32 and int4x32, 1490 bytes
param scale: [32] f32, 128 bytes
%0: F32 [1, T, 32] = Embedding (table, ids)
%1: F32 [1, T, 32] = RmsNorm eps 0.00001 (%0, scale)
%2: F32 [1, T, 32] = Rotary head_dim 32 theta 10000 Linear { factor: 2.0 } (%1, ids)
%3: F32 [1, T, 32], %4: F32 [1, 1, L+T, 32], %5: F32 [1, 1, L+T, 32] = Attention heads 1 kv_heads 1 scale 0.25 softcap 30 (%2, %2, %2, mask, k, v)
%6: F32 [1, T, 32] = Silu (%3)
%7: F32 [1, T, 32] = Add (%0, %6)
%8: F32 [1, 1, T, 32] = Slice axis 2 from L to L+T (%4)
%9: F32 [1, 1, T, 1] = Reduce Mean axis 3 kept (%8)
%10: F32 [1, T, 1] = Reduce Max axis 0 (%9)
%11: F32 [1, T, 10] = Linear int4x32 (%7, table)
%12: F32 [1, T, 3], %13: I64 [1, T, 3] = TopK 3 (%11)
%14: I64 [9] = Constant 0 1 2 3 4 5 6 7 and 1 more ()
%15: F32 [1, 3, T] = Transpose [0, 2, 1] (%12)
%16: F32 [3, T] = Reshape (%15)
output flat = %16
output mean = %10
output indices = %13
output nine = %14
mark Residual(0) = %0
mark Logits = %11
";
        // 10 rows of 16 bytes of codes, a scale and half a byte, rounded up, of zero point: 210 bytes.
        assert_eq!(1280 + 10 * (16 + 4 + 1), 1490);
        assert_eq!(g.to_string(), want);
        Ok(())
    }
}
