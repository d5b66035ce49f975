use crate::error::length;
use crate::{Isa, Parallel, Result, Serial};

/// A packed matrix `[outs, ins]` that multiplies rows: `y = x W^T`.
///
/// A row's result is the same to the bit whatever other rows are in the call, however many threads run it and
/// whichever instructions are used: every output is one chain of operations in one order.
pub trait Product: Send + Sync {
    /// `[outs, ins]`.
    fn shape(&self) -> [usize; 2];

    /// Its bytes as they are read: what a file holds, and what a call moves.
    fn packed(&self) -> &[u8];

    /// The product, of arguments that were checked.
    #[doc(hidden)]
    fn multiply(&self, isa: Isa, x: &[f32], rows: usize, y: &mut [f32], threads: &dyn Parallel);

    /// Multiplies `x` `[rows, ins]` into `y` `[rows, outs]` with the best instructions there are.
    ///
    /// # Errors
    /// Slices of other lengths. No rows are no work.
    fn apply_with(&self, x: &[f32], rows: usize, y: &mut [f32], threads: &dyn Parallel) -> Result<()> {
        self.apply_on(Isa::best(), x, rows, y, threads)
    }

    /// As [`apply_with`](Self::apply_with), on the calling thread.
    ///
    /// # Errors
    /// As there.
    fn apply(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        self.apply_with(x, rows, y, &Serial)
    }

    /// As [`apply_with`](Self::apply_with), with instructions of choice.
    ///
    /// # Errors
    /// As there.
    fn apply_on(
        &self,
        isa: Isa,
        x: &[f32],
        rows: usize,
        y: &mut [f32],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let [outs, ins] = self.shape();
        length("activations", x.len(), rows.saturating_mul(ins))?;
        length("outputs", y.len(), rows.saturating_mul(outs))?;
        if rows > 0 {
            self.multiply(isa, x, rows, y, threads);
        }
        Ok(())
    }
}
