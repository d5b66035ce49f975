//! Functions whose gradients candle gets wrong, slowly, or not at all: rows of log-softmax, and functions of one
//! number.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::optimizer::Real;

/// The numbers of a contiguous operand.
fn operand<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match (T::of(storage), layout.contiguous_offsets()) {
        (Some(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("a contiguous operand of f32 or f64 is wanted"),
    }
}

/// Lets `f` see the numbers of contiguous tensors on the CPU.
fn operands<T: Real, R>(tensors: [&Tensor; 2], f: impl FnOnce([&[T]; 2]) -> R) -> Result<R> {
    let (a, a_layout) = tensors[0].storage_and_layout();
    let (b, b_layout) = tensors[1].storage_and_layout();
    match (&*a, &*b) {
        (Storage::Cpu(a), Storage::Cpu(b)) => Ok(f([operand(a, a_layout)?, operand(b, b_layout)?])),
        _ => bail!("tensors on the CPU are wanted"),
    }
}

/// Runs a function of both precisions where an operand's is.
macro_rules! either {
    ($storage:expr, $layout:expr, $f:expr) => {
        match $storage {
            CpuStorage::F32(_) => Ok(CpuStorage::F32($f(operand::<f32>($storage, $layout)?))),
            CpuStorage::F64(_) => Ok(CpuStorage::F64($f(operand::<f64>($storage, $layout)?))),
            _ => bail!("f32 or f64 is wanted"),
        }
    };
}

/// Rows a thread takes at once.
const CHUNK: usize = 16;

/// `log sum exp` of a row, summed in f64. Minus infinities stand for nothing.
fn log_sum_exp<T: Real>(row: &[T]) -> f64 {
    let max = row.iter().map(|x| x.to_f64()).fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() {
        return max;
    }
    max + row.iter().map(|x| (x.to_f64() - max).exp()).sum::<f64>().ln()
}

/// Log-softmax along the last axis.
pub(super) struct LogSoftmax;

impl CustomOp1 for LogSoftmax {
    fn name(&self) -> &'static str {
        "log-softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Real>(x: &[T], width: usize) -> Vec<T> {
            let mut y = vec![T::from_f64(0.0); x.len()];
            y.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(CHUNK).for_each(|(y, x)| {
                let lse = log_sum_exp(x);
                y.iter_mut().zip(x).for_each(|(y, x)| *y = T::from_f64(x.to_f64() - lse));
            });
            y
        }
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        let storage: Result<CpuStorage> = either!(x, layout, |x| run(x, width));
        Ok((storage?, layout.shape().clone()))
    }

    /// `g - softmax(x) sum(g)`
    fn bwd(&self, _: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        fn run<T: Real>(y: &[T], g: &[T], width: usize) -> Vec<T> {
            let mut out = vec![T::from_f64(0.0); y.len()];
            out.par_chunks_mut(width)
                .zip(y.par_chunks(width).zip(g.par_chunks(width)))
                .with_min_len(CHUNK)
                .for_each(|(out, (y, g))| {
                    let sum: f64 = g.iter().map(|g| g.to_f64()).sum();
                    for ((out, y), g) in out.iter_mut().zip(y).zip(g) {
                        *out = T::from_f64(g.to_f64() - y.to_f64().exp() * sum);
                    }
                });
            out
        }
        let (y, g) = (y.contiguous()?, gradient.contiguous()?);
        let width = y.dims().last().copied().unwrap_or(1).max(1);
        let (shape, device) = (y.shape().clone(), y.device());
        Ok(Some(match y.dtype() {
            candle_core::DType::F64 => {
                Tensor::from_vec(operands([&y, &g], |[y, g]: [&[f64]; 2]| run(y, g, width))?, shape, device)?
            }
            _ => {
                Tensor::from_vec(operands([&y, &g], |[y, g]: [&[f32]; 2]| run(y, g, width))?, shape, device)?
            }
        }))
    }
}

/// Log-probability of one entry of each row, `[R, V]` to `[R]`; 0 where no entry is wanted. A row of a large
/// vocabulary is read once forward and once backward, and no row of log-probabilities is kept.
pub(super) struct Pick {
    /// An entry a row.
    pub(super) at: Vec<Option<u32>>,
}

impl CustomOp1 for Pick {
    fn name(&self) -> &'static str {
        "pick of log-softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Real>(x: &[T], width: usize, at: &[Option<u32>]) -> Vec<T> {
            let one = |(x, at): (&[T], &Option<u32>)| match at {
                Some(at) => T::from_f64(x[*at as usize].to_f64() - log_sum_exp(x)),
                None => T::from_f64(0.0),
            };
            x.par_chunks(width).zip(at).with_min_len(CHUNK).map(one).collect()
        }
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        let storage: Result<CpuStorage> = either!(x, layout, |x| run(x, width, &self.at));
        Ok((storage?, self.at.len().into()))
    }

    /// `g (1 at the entry - softmax(x))`
    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        fn run<T: Real>(x: &[T], g: &[T], width: usize, at: &[Option<u32>]) -> Vec<T> {
            let mut out = vec![T::from_f64(0.0); x.len()];
            out.par_chunks_mut(width)
                .zip(x.par_chunks(width))
                .zip(g.par_iter().zip(at))
                .with_min_len(CHUNK)
                .for_each(|((out, x), (g, at))| {
                    let (Some(at), g) = (at, g.to_f64()) else { return };
                    let lse = log_sum_exp(x);
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = T::from_f64(-g * (x.to_f64() - lse).exp());
                    }
                    let at = *at as usize;
                    out[at] = T::from_f64(out[at].to_f64() + g);
                });
            out
        }
        let (x, g) = (x.contiguous()?, gradient.contiguous()?);
        let width = x.dims().last().copied().unwrap_or(1).max(1);
        let (shape, device, at) = (x.shape().clone(), x.device(), &self.at);
        Ok(Some(match x.dtype() {
            candle_core::DType::F64 => Tensor::from_vec(
                operands([&x, &g], |[x, g]: [&[f64]; 2]| run(x, g, width, at))?,
                shape,
                device,
            )?,
            _ => Tensor::from_vec(
                operands([&x, &g], |[x, g]: [&[f32]; 2]| run(x, g, width, at))?,
                shape,
                device,
            )?,
        }))
    }
}

/// A function of one number, with its slope.
pub(super) struct Pointwise {
    pub(super) name: &'static str,
    pub(super) value: fn(f64) -> f64,
    pub(super) slope: fn(f64) -> f64,
}

/// `log(1 + e^x)`. Candle's pieces have no right slope at 0, where every preference loss begins.
pub(super) const SOFTPLUS: Pointwise = Pointwise {
    name: "softplus",
    value: |x| x.max(0.0) + (-x.abs()).exp().ln_1p(),
    slope: |x| if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) },
};

/// `log(1 - e^x)` for `x < 0`, by the branch that loses no digits (at `-ln 2`).
pub(super) const LOG_ONE_LESS_EXP: Pointwise = Pointwise {
    name: "log(1 - exp)",
    value: |x| if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() },
    slope: |x| -1.0 / (-x).exp_m1(),
};

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Real>(x: &[T], f: fn(f64) -> f64) -> Vec<T> {
            x.iter().map(|x| T::from_f64(f(x.to_f64()))).collect()
        }
        let storage: Result<CpuStorage> = either!(x, layout, |x| run(x, self.value));
        Ok((storage?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let values = x.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let slopes: Vec<f64> = values.into_iter().map(self.slope).collect();
        let slopes = Tensor::from_vec(slopes, x.shape(), x.device())?.to_dtype(x.dtype())?;
        Ok(Some(slopes.mul(gradient)?))
    }
}
