//! Products with matrices that are not trained. Candle's own product computes the gradient of both operands whenever
//! one is wanted, which for a frozen network costs a third more time and the memory of all its weights.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// `x W^T` of contiguous `x` `[rows, ins]` with the matrix `[outs, ins]`, the numbers of candle's own product; only
/// `x` gets a gradient.
pub(crate) struct Frozen(pub(crate) Tensor);

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear with frozen weights"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let weight = self.0.t()?;
        let ((rows, ins), (inner, outs)) = (layout.shape().dims2()?, weight.dims2()?);
        let (storage, weight_layout) = weight.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("weights are not on the CPU") };
        if ins != inner {
            bail!("{ins} columns of x, {inner} of the matrix");
        }
        let y = x.matmul(storage, (1, rows, outs, ins), layout, weight_layout)?;
        Ok((y, (rows, outs).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.contiguous()?.matmul(&self.0)?))
    }
}
