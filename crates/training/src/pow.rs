//! Powers with any exponent tensor: candle has them for positive bases only, by way of the logarithm.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `a^b` of two contiguous tensors of one shape. Where `a` is not above 0 the power is not differentiable in `b`,
/// and the gradient in `b` is 0.
pub(crate) struct Pow;

impl CustomOp2 for Pow {
    fn name(&self) -> &'static str {
        "pow"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (Some((a0, a1)), Some((b0, b1))) = (a_layout.contiguous_offsets(), b_layout.contiguous_offsets())
        else {
            bail!("pow takes contiguous operands");
        };
        let storage = match (a, b) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => {
                CpuStorage::F32(a[a0..a1].iter().zip(&b[b0..b1]).map(|(a, b)| a.powf(*b)).collect())
            }
            (CpuStorage::F64(a), CpuStorage::F64(b)) => {
                CpuStorage::F64(a[a0..a1].iter().zip(&b[b0..b1]).map(|(a, b)| a.powf(*b)).collect())
            }
            _ => bail!("pow takes two tensors of f32 or two of f64"),
        };
        Ok((storage, a_layout.shape().clone()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let slopes = |slope: fn(f64, f64) -> f64| -> Result<Tensor> {
            let flat = |x: &Tensor| x.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1::<f64>();
            let values: Vec<f64> = flat(a)?.into_iter().zip(flat(b)?).map(|(a, b)| slope(a, b)).collect();
            Tensor::from_vec(values, a.shape(), a.device())?.to_dtype(a.dtype())?.mul(gradient)
        };
        let in_base = slopes(|a, b| if b == 0.0 { 0.0 } else { b * a.powf(b - 1.0) })?;
        let in_exponent = slopes(|a, b| if a > 0.0 { a.powf(b) * a.ln() } else { 0.0 })?;
        Ok((Some(in_base), Some(in_exponent)))
    }
}
