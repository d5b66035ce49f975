//! One primitive at a time.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor};
use pilotfish_graph::{BinaryOp, DType as GraphType, Dim, Literal, Op, ReduceOp, UnaryOp};

use crate::frozen::Frozen;
use crate::pow::Pow;
use crate::{Precision, Result, TrainingError};

/// The results of an operation, of the given shapes (`None` where a symbol is not known).
pub(crate) fn evaluate(
    op: &Op,
    x: &[&Tensor],
    shapes: &[Option<Vec<usize>>],
    symbols: &BTreeMap<String, usize>,
    precision: Precision,
    stored: Option<&Tensor>,
) -> Result<Vec<Tensor>> {
    let unsupported = |why| TrainingError::Unsupported { op: op.name(), why };
    let refuse = |why: String| Err(TrainingError::Operand { op: op.name(), why });
    let unbound = |dim: String| TrainingError::Unbound { name: format!("a result of {}", op.name()), dim };
    let shape = || shapes[0].as_deref().ok_or_else(|| unbound("of it".into()));
    let one = |tensor: Tensor| Ok(vec![tensor]);
    match op {
        Op::Constant(Literal::F32 { shape, values }) => {
            one(Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?.to_dtype(precision.dtype())?)
        }
        Op::Constant(Literal::I64 { shape, values }) => {
            one(Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?)
        }
        Op::Unary(unary) => one(match unary {
            UnaryOp::Neg => x[0].neg()?,
            UnaryOp::Abs => x[0].abs()?,
            UnaryOp::Exp => x[0].exp()?,
            UnaryOp::Log => x[0].log()?,
            UnaryOp::Sqrt => x[0].sqrt()?,
            UnaryOp::Reciprocal => x[0].recip()?,
            UnaryOp::Sin => x[0].sin()?,
            UnaryOp::Cos => x[0].cos()?,
            UnaryOp::Tanh => x[0].tanh()?,
            UnaryOp::Erf => x[0].erf()?,
            // By way of tanh, which neither overflows nor loses its gradient to infinities.
            UnaryOp::Sigmoid => x[0].affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5)?,
            // Candle's own has slope 1 at 0, where everybody else has 0.
            UnaryOp::Relu => {
                let zeros = x[0].zeros_like()?;
                x[0].gt(&zeros)?.where_cond(x[0], &zeros)?
            }
            UnaryOp::Not => x[0].eq(0u8)?,
            UnaryOp::Silu | UnaryOp::Gelu | UnaryOp::GeluTanh => {
                return Err(unsupported("it should have been expanded"));
            }
        }),
        Op::Binary(binary) if x[0].dtype() == DType::I64 && !binary.is_comparison() => {
            one(integers(*binary, x[0], x[1], shape()?)?)
        }
        Op::Binary(BinaryOp::Pow) => {
            let (a, b) = (x[0].broadcast_as(shape()?)?, x[1].broadcast_as(shape()?)?);
            one(a.contiguous()?.apply_op2(&b.contiguous()?, Pow)?)
        }
        Op::Binary(binary) => one(self::binary(*binary, x[0], x[1])?),
        Op::Where => {
            let shape = shape()?;
            let (a, b) = (x[1].broadcast_as(shape)?, x[2].broadcast_as(shape)?);
            one(x[0].broadcast_as(shape)?.contiguous()?.where_cond(&a.contiguous()?, &b.contiguous()?)?)
        }
        Op::Cast(to) => one(match to {
            GraphType::F32 => x[0].to_dtype(precision.dtype())?,
            GraphType::I64 => x[0].to_dtype(DType::I64)?,
            GraphType::Bool => x[0].ne(&x[0].zeros_like()?)?,
        }),
        Op::MatMul => one(product(x[0], x[1])?),
        Op::Transpose(perm) => one(x[0].permute(perm.as_slice())?.contiguous()?),
        Op::Reshape(_) => one(x[0].contiguous()?.reshape(shape()?)?),
        Op::Concat { axis } => {
            // An empty past is no operand.
            let parts: Vec<&&Tensor> = x.iter().filter(|part| part.dims()[*axis] > 0).collect();
            match parts.as_slice() {
                [] => one(x[0].clone()),
                [only] => one((**only).clone()),
                parts => one(Tensor::cat(parts, *axis)?),
            }
        }
        Op::Slice { axis, start, end } => {
            let known = |dim: &Dim| dim.evaluate(symbols).ok_or_else(|| unbound(dim.to_string()));
            let (start, end) = (known(start)?, known(end)?);
            one(x[0].narrow(*axis, start, end - start)?.contiguous()?)
        }
        Op::Gather { axis } => {
            let flat = x[1].flatten_all()?;
            let size = x[0].dims()[*axis];
            if let Some(&id) = flat.to_vec1::<i64>()?.iter().find(|&&id| id < 0 || id as u64 >= size as u64) {
                return refuse(format!("index {id} of {size}"));
            }
            let picked = x[0].contiguous()?.index_select(&flat, *axis)?;
            let mut dims = x[0].dims()[..*axis].to_vec();
            dims.extend_from_slice(x[1].dims());
            dims.extend_from_slice(&x[0].dims()[axis + 1..]);
            one(picked.reshape(dims)?)
        }
        Op::Softmax if x[0].elem_count() == 0 => one(x[0].clone()),
        Op::Softmax => {
            let max = x[0].max_keepdim(D::Minus1)?.detach();
            let weights = x[0].broadcast_sub(&max)?.exp()?;
            one(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?)
        }
        Op::Reduce { op, axis, keep } => {
            let reduced = match op {
                ReduceOp::Sum => x[0].sum_keepdim(*axis)?,
                ReduceOp::Mean => x[0].mean_keepdim(*axis)?,
                ReduceOp::Max if x[0].dims()[*axis] == 0 => return refuse("the largest of nothing".into()),
                // By way of the index, so that only one of several equal entries gets the gradient.
                ReduceOp::Max => {
                    let x = x[0].contiguous()?;
                    x.gather(&x.detach().argmax_keepdim(*axis)?, *axis)?
                }
            };
            one(if *keep { reduced } else { reduced.squeeze(*axis)? })
        }
        Op::TopK { k } => {
            let order = largest(x[0], *k)?;
            let values = x[0].contiguous()?.gather(&order, D::Minus1)?;
            Ok(vec![values, order.to_dtype(DType::I64)?])
        }
        Op::Linear(_) => {
            let weight = stored.unwrap_or(x[1]);
            let dims = x[0].dims();
            let (rows, inner) = (dims[..dims.len() - 1].iter().product::<usize>(), dims[dims.len() - 1]);
            let flat = x[0].contiguous()?.reshape((rows, inner))?;
            let mut y = match flat.track_op() && !weight.track_op() {
                true => flat.apply_op1(Frozen(weight.clone()))?,
                false => flat.matmul(&weight.t()?)?,
            };
            if let Some(bias) = x.get(2) {
                y = y.broadcast_add(bias)?;
            }
            let mut out = dims.to_vec();
            out[dims.len() - 1] = weight.dims()[0];
            one(y.reshape(out)?)
        }
        Op::Custom(_) => Err(unsupported("only ONNX Runtime has it")),
        _ => Err(unsupported("it is composite and should have been expanded")),
    }
}

/// A matrix product over any number of leading dimensions, of which candle multiplies at most two, and not
/// with every stride that a dimension of 1 may have.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (rank, lead) = (a.rank().max(b.rank()), |x: &Tensor| x.dims()[..x.rank() - 2].to_vec());
    let mut batch = vec![1; rank - 2];
    for dims in [lead(a), lead(b)] {
        let start = batch.len() - dims.len();
        batch[start..].iter_mut().zip(dims).filter(|(_, dim)| *dim != 1).for_each(|(size, dim)| *size = dim);
    }
    let flat = |x: &Tensor| {
        let [rows, columns] = [x.dims()[x.rank() - 2], x.dims()[x.rank() - 1]];
        let all = [&batch[..], &[rows, columns]].concat();
        let count: usize = batch.iter().product();
        x.broadcast_as(all)?.contiguous()?.reshape((count, rows, columns))
    };
    let y = flat(a)?.matmul(&flat(b)?)?;
    Ok(y.reshape([&batch[..], &y.dims()[1..]].concat())?)
}

fn binary(op: BinaryOp, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(match op {
        BinaryOp::Add => a.broadcast_add(b)?,
        BinaryOp::Sub => a.broadcast_sub(b)?,
        BinaryOp::Mul => a.broadcast_mul(b)?,
        BinaryOp::Div => a.broadcast_div(b)?,
        BinaryOp::Max => a.broadcast_maximum(b)?,
        BinaryOp::Min => a.broadcast_minimum(b)?,
        BinaryOp::Less => a.broadcast_lt(b)?,
        BinaryOp::LessOrEqual => a.broadcast_le(b)?,
        BinaryOp::Greater => a.broadcast_gt(b)?,
        BinaryOp::GreaterOrEqual => a.broadcast_ge(b)?,
        BinaryOp::Equal => a.broadcast_eq(b)?,
        BinaryOp::And => a.broadcast_mul(b)?,
        BinaryOp::Or => a.broadcast_maximum(b)?,
        BinaryOp::Pow => {
            return Err(TrainingError::Unsupported { op: "Binary", why: "powers need the result's shape" });
        }
    })
}

/// Arithmetic of 64-bit integers: sums and products wrap, quotients are cut towards zero.
fn integers(op: BinaryOp, a: &Tensor, b: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let flat = |x: &Tensor| x.broadcast_as(shape)?.flatten_all()?.to_vec1::<i64>();
    let one = |(a, b): (i64, i64)| match op {
        BinaryOp::Add => Some(a.wrapping_add(b)),
        BinaryOp::Sub => Some(a.wrapping_sub(b)),
        BinaryOp::Mul => Some(a.wrapping_mul(b)),
        BinaryOp::Div => (b != 0).then(|| a.wrapping_div(b)),
        BinaryOp::Pow => u32::try_from(b).ok().map(|b| a.wrapping_pow(b)),
        BinaryOp::Max => Some(a.max(b)),
        _ => Some(a.min(b)),
    };
    let pairs = flat(a)?.into_iter().zip(flat(b)?);
    let why = || match op {
        BinaryOp::Div => "an integer divided by 0",
        _ => "a negative power of an integer",
    };
    let values: Option<Vec<i64>> = pairs.map(one).collect();
    let values = values.ok_or_else(|| TrainingError::Operand { op: "Binary", why: why().into() })?;
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Where the `k` largest entries of each row are, descending; of equal entries the first comes first, and what
/// is not a number comes last.
fn largest(x: &Tensor, k: usize) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let last = dims.len() - 1;
    let size = dims[last];
    if k > size {
        return Err(TrainingError::Operand { op: "TopK", why: format!("{k} largest of {size}") });
    }
    let values = x.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut picked = Vec::with_capacity(values.len() / size * k);
    for row in values.chunks_exact(size) {
        let mut order: Vec<u32> = (0..size as u32).collect();
        // 0.0 and -0.0 are equal, which total_cmp alone would not have.
        let key = |i: u32| match row[i as usize] {
            value if value.is_nan() => f64::NEG_INFINITY,
            value => value + 0.0,
        };
        order.sort_by(|&i, &j| key(j).total_cmp(&key(i)));
        picked.extend_from_slice(&order[..k]);
    }
    dims[last] = k;
    Ok(Tensor::from_vec(picked, dims, &Device::Cpu)?)
}
