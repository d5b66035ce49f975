//! Shape inference: what an operation makes of its operands, or why it cannot.

use crate::{DType, Dim, Literal, Op, Shape, Storage, UnaryOp};

type Operand = (Shape, DType);
type Inferred = Result<Vec<Operand>, String>;

/// Shapes and types of an operation's results.
pub(crate) fn infer(op: &Op, operands: &[Operand]) -> Inferred {
    let (least, most) = arity(op);
    if operands.len() < least || operands.len() > most {
        return Err(format!("takes {least} to {most} operands, got {}", operands.len()));
    }
    let shape = |i: usize| &operands[i].0;
    let dtype = |i: usize| operands[i].1;
    let float = |i: usize| match dtype(i) {
        DType::F32 => Ok(()),
        other => Err(format!("operand {i} must be F32, is {other:?}")),
    };
    let integer = |i: usize| match dtype(i) {
        DType::I64 => Ok(()),
        other => Err(format!("operand {i} must be I64, is {other:?}")),
    };
    let axis_of = |i: usize, axis: usize| match shape(i).0.get(axis) {
        Some(dim) => Ok(dim),
        None => Err(format!("axis {axis} of a rank {} operand", shape(i).rank())),
    };
    let one = |shape: Shape, dtype: DType| Ok(vec![(shape, dtype)]);
    match op {
        Op::Constant(literal) => {
            let (shape, count, dtype) = match literal {
                Literal::F32 { shape, values } => (shape, values.len(), DType::F32),
                Literal::I64 { shape, values } => (shape, values.len(), DType::I64),
            };
            if crate::tensor::checked_count(shape) != Some(count) {
                return Err(format!("{count} values do not fill {shape:?}"));
            }
            one(Shape::fixed(shape), dtype)
        }
        Op::Unary(UnaryOp::Not) => match dtype(0) {
            DType::Bool => one(shape(0).clone(), DType::Bool),
            other => Err(format!("operand must be Bool, is {other:?}")),
        },
        Op::Unary(_) => float(0).and_then(|()| one(shape(0).clone(), DType::F32)),
        Op::Binary(op) => {
            if dtype(0) != dtype(1) {
                return Err(format!("operand types differ: {:?} and {:?}", dtype(0), dtype(1)));
            }
            let logical = matches!(op, crate::BinaryOp::And | crate::BinaryOp::Or);
            if logical != (dtype(0) == DType::Bool) {
                return Err(format!("{op:?} does not take {:?}", dtype(0)));
            }
            let result = if op.is_comparison() { DType::Bool } else { dtype(0) };
            one(broadcast(shape(0), shape(1))?, result)
        }
        Op::Where => {
            if dtype(0) != DType::Bool || dtype(1) != dtype(2) {
                return Err("takes a Bool condition and two operands of one type".into());
            }
            one(broadcast(shape(0), &broadcast(shape(1), shape(2))?)?, dtype(1))
        }
        Op::Cast(to) => one(shape(0).clone(), *to),
        Op::MatMul => {
            float(0)?;
            float(1)?;
            let (a, b) = (shape(0), shape(1));
            if a.rank() < 2 || b.rank() < 2 {
                return Err("operands need at least two dimensions".into());
            }
            let ([rows, inner], [other, columns]) = (last_two(a), last_two(b));
            if inner != other {
                return Err(format!("inner dimensions differ: {inner} and {other}"));
            }
            let lead = |s: &Shape| Shape(s.0[..s.rank() - 2].to_vec());
            let mut dims = broadcast(&lead(a), &lead(b))?.0;
            dims.extend([rows, columns]);
            one(Shape(dims), DType::F32)
        }
        Op::Transpose(perm) => {
            let mut seen = perm.clone();
            seen.sort_unstable();
            if seen != (0..shape(0).rank()).collect::<Vec<_>>() {
                return Err(format!("{perm:?} is not a permutation of {} axes", shape(0).rank()));
            }
            one(Shape(perm.iter().map(|&axis| shape(0).0[axis].clone()).collect()), dtype(0))
        }
        Op::Reshape(dims) => {
            let to = Shape(dims.clone());
            if !shape(0).same_count(&to) {
                return Err(format!("cannot become {to}"));
            }
            one(to, dtype(0))
        }
        Op::Concat { axis } => {
            let mut total = axis_of(0, *axis)?.clone();
            for i in 1..operands.len() {
                if dtype(i) != dtype(0) {
                    return Err("operand types differ".into());
                }
                let along = axis_of(i, *axis)?;
                if shape(i).with(*axis, 1.into()) != shape(0).with(*axis, 1.into()) {
                    return Err("operands differ off the axis".into());
                }
                total = &total + along;
            }
            one(shape(0).with(*axis, total), dtype(0))
        }
        Op::Slice { axis, start, end } => {
            let along = axis_of(0, *axis)?;
            match (end.minus(start), along.minus(end)) {
                (Some(size), Some(_)) => one(shape(0).with(*axis, size), dtype(0)),
                _ => Err(format!("{start}..{end} does not lie within {along}")),
            }
        }
        Op::Gather { axis } => {
            integer(1)?;
            axis_of(0, *axis)?;
            let mut dims = shape(0).0[..*axis].to_vec();
            dims.extend(shape(1).0.iter().cloned());
            dims.extend(shape(0).0[axis + 1..].iter().cloned());
            one(Shape(dims), dtype(0))
        }
        Op::Softmax => {
            float(0)?;
            last_dim(shape(0))?;
            one(shape(0).clone(), DType::F32)
        }
        Op::Reduce { axis, keep, .. } => {
            float(0)?;
            axis_of(0, *axis)?;
            let mut dims = shape(0).0.clone();
            if *keep {
                dims[*axis] = 1.into();
            } else {
                dims.remove(*axis);
            }
            one(Shape(dims), DType::F32)
        }
        Op::TopK { k } => {
            float(0)?;
            let last = last_dim(shape(0))?;
            if *k == 0 || last.fixed().is_some_and(|size| size < *k) {
                return Err(format!("top {k} of {last}"));
            }
            let shape = shape(0).with(shape(0).rank() - 1, (*k).into());
            Ok(vec![(shape.clone(), DType::F32), (shape, DType::I64)])
        }
        Op::Linear(storage) => {
            float(0)?;
            float(1)?;
            let weight = shape(1).to_fixed().filter(|dims| dims.len() == 2);
            let Some([out, inner]) = weight.as_deref().and_then(|dims| <[usize; 2]>::try_from(dims).ok())
            else {
                return Err("the weight must be [out, in] of whole numbers".into());
            };
            if last_dim(shape(0))?.fixed() != Some(inner) {
                return Err(format!("the weight takes {inner} inputs"));
            }
            if operands.len() == 3 && *shape(2) != Shape::fixed(&[out]) {
                return Err(format!("the bias must be [{out}]"));
            }
            if let Storage::Int4 { block } | Storage::Int8 { block } = storage
                && ![16, 32, 64, 128].contains(block)
            {
                return Err(format!("blocks of {block}; 16, 32, 64 and 128 exist"));
            }
            if let Storage::Sparse { keep, group, .. } = storage
                && !(1 <= *keep && keep <= group && *group <= 32 && inner % group == 0)
            {
                return Err(format!("{keep} of {group}: 1 <= N <= M <= 32 and M divides {inner} inputs"));
            }
            one(shape(0).with(shape(0).rank() - 1, out.into()), DType::F32)
        }
        Op::Embedding => {
            float(0)?;
            integer(1)?;
            if shape(0).rank() != 2 {
                return Err("the table must be [V, d]".into());
            }
            let mut dims = shape(1).0.clone();
            dims.push(shape(0).0[1].clone());
            one(Shape(dims), DType::F32)
        }
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
            let last = Shape(vec![last_dim(shape(0))?.clone()]);
            for i in 0..operands.len() {
                float(i)?;
                if i > 0 && *shape(i) != last {
                    return Err(format!("operand {i} must be {last}"));
                }
            }
            one(shape(0).clone(), DType::F32)
        }
        Op::Rotary { head_dim, theta, .. } => {
            float(0)?;
            integer(1)?;
            if *head_dim == 0 || head_dim % 2 != 0 || !(*theta > 0.0) {
                return Err(format!("head_dim {head_dim} must be even, theta {theta} above 0"));
            }
            if shape(0).rank() != 3 || shape(1).0[..] != shape(0).0[..2] {
                return Err("takes x [B, T, heads * head_dim] and positions [B, T]".into());
            }
            if last_dim(shape(0))?.divide(*head_dim).is_none() {
                return Err(format!("the last dimension is not made of heads of {head_dim}"));
            }
            one(shape(0).clone(), DType::F32)
        }
        Op::Attention { heads, kv_heads, scale, softcap } => {
            attention(operands, (*heads, *kv_heads), scale.is_finite() && softcap.is_none_or(|cap| cap > 0.0))
        }
        Op::Custom(custom) => {
            let crate::Custom { domain, name, results, .. } = &**custom;
            if domain.is_empty()
                || name.is_empty()
                || domain.starts_with("ai.onnx")
                || domain == "com.microsoft"
            {
                return Err(format!("{domain:?}:{name:?} is not the name of an operator outside ONNX"));
            }
            if results.is_empty() {
                return Err(format!("{domain}:{name} has no result"));
            }
            Ok(results.clone())
        }
    }
}

fn attention(operands: &[Operand], (heads, kv_heads): (usize, usize), numbers: bool) -> Inferred {
    if operands.iter().any(|(_, dtype)| *dtype != DType::F32) {
        return Err("all operands must be F32".into());
    }
    if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || !numbers {
        return Err(format!("{kv_heads} key heads must divide {heads} heads; scale finite, softcap above 0"));
    }
    let shape = |i: usize| &operands[i].0;
    if operands.len() == 5 {
        return Err("a past has both keys and values".into());
    }
    if (0..3).any(|i| shape(i).rank() != 3) || shape(3).rank() != 4 {
        return Err("takes q, k, v [B, T, heads * D] and mask [B or 1, 1, T, S]".into());
    }
    let [batch, rows, width] = [0, 1, 2].map(|axis| shape(0).0[axis].clone());
    let Some(head_dim) = width.divide(heads) else {
        return Err(format!("{width} is not {heads} heads"));
    };
    let inner = Shape(vec![batch.clone(), rows.clone(), &head_dim * kv_heads]);
    if *shape(1) != inner || *shape(2) != inner {
        return Err(format!("keys and values must be {inner}"));
    }
    let past = match operands.get(4) {
        None => Dim::from(0),
        Some((past, _)) if past.rank() == 4 => past.0[2].clone(),
        Some(_) => return Err("a past is [B, kv_heads, L, D]".into()),
    };
    if operands.len() == 6 {
        let want = Shape(vec![batch.clone(), kv_heads.into(), past.clone(), head_dim.clone()]);
        if *shape(4) != want || *shape(5) != want {
            return Err(format!("past keys and values must be {want}"));
        }
    }
    let all = &past + &rows;
    let mask = &shape(3).0;
    if (mask[0] != batch && mask[0] != 1.into()) || mask[1] != 1.into() || mask[2] != rows || mask[3] != all {
        return Err(format!("the mask must be [{batch} or 1, 1, {rows}, {all}]"));
    }
    let cache = Shape(vec![batch, kv_heads.into(), all, head_dim]);
    Ok(vec![(shape(0).clone(), DType::F32), (cache.clone(), DType::F32), (cache, DType::F32)])
}

fn arity(op: &Op) -> (usize, usize) {
    match op {
        Op::Constant(_) => (0, 0),
        Op::Unary(_)
        | Op::Cast(_)
        | Op::Transpose(_)
        | Op::Reshape(_)
        | Op::Slice { .. }
        | Op::Softmax
        | Op::Reduce { .. }
        | Op::TopK { .. } => (1, 1),
        Op::Binary(_)
        | Op::MatMul
        | Op::Gather { .. }
        | Op::Embedding
        | Op::RmsNorm { .. }
        | Op::Rotary { .. } => (2, 2),
        Op::Where | Op::LayerNorm { .. } => (3, 3),
        Op::Linear(_) => (2, 3),
        Op::Attention { .. } => (4, 6),
        Op::Concat { .. } => (1, usize::MAX),
        Op::Custom(_) => (0, usize::MAX),
    }
}

/// The common shape of two operands: dimensions are aligned at the end and must agree or be 1.
pub(crate) fn broadcast(a: &Shape, b: &Shape) -> Result<Shape, String> {
    let rank = a.rank().max(b.rank());
    let one = Dim::from(1);
    let at = |shape: &Shape, i: usize| match (i + shape.rank()).checked_sub(rank) {
        Some(axis) => shape.0[axis].clone(),
        None => one.clone(),
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if x == one => Ok(y),
            (x, y) if y == one => Ok(x),
            (x, y) => Err(format!("{x} and {y} do not broadcast")),
        })
        .collect::<Result<Vec<_>, _>>()
        .map(Shape)
}

fn last_two(shape: &Shape) -> [Dim; 2] {
    let rank = shape.rank();
    [shape.0[rank - 2].clone(), shape.0[rank - 1].clone()]
}

fn last_dim(shape: &Shape) -> Result<&Dim, String> {
    shape.last().ok_or_else(|| "the operand needs at least one dimension".into())
}
