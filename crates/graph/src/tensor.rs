use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::{GraphError, Result};

/// Something that can produce the numbers of a tensor when they are needed: a file's region, or a
/// transformation of other tensors. Rows run along the first dimension.
pub trait TensorSource: Send + Sync {
    /// The numbers of these rows, row-major, as f32.
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>>;

    /// All numbers, if they already lie in memory as f32.
    fn borrow(&self) -> Option<&[f32]> {
        None
    }
}

/// A weight: a shape, and numbers that are read on demand. Cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    source: Arc<dyn TensorSource>,
}

struct Owned {
    row: usize,
    values: Vec<f32>,
}

impl TensorSource for Owned {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        Ok(self.values[rows.start * self.row..rows.end * self.row].to_vec())
    }

    fn borrow(&self) -> Option<&[f32]> {
        Some(&self.values)
    }
}

impl Tensor {
    /// A tensor in memory.
    ///
    /// # Errors
    /// The number of values is not the product of the dimensions.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Result<Self> {
        let shape = shape.into();
        let count = checked_count(&shape).filter(|&count| count == values.len());
        let Some(count) = count else {
            let why = format!("{} numbers do not fill shape {shape:?}", values.len());
            return Err(GraphError::Tensor { name: "(in memory)".into(), why });
        };
        let row = count.checked_div(shape.first().copied().unwrap_or(1)).unwrap_or(0);
        Ok(Self { shape, source: Arc::new(Owned { row, values }) })
    }

    /// A tensor of a source, which must hold as many numbers as the shape says.
    pub fn from_source(shape: impl Into<Vec<usize>>, source: Arc<dyn TensorSource>) -> Self {
        Self { shape: shape.into(), source }
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// All numbers, row-major.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        match self.source.borrow() {
            Some(values) => Ok(Cow::Borrowed(values)),
            None => self.rows(0..self.row_count()).map(Cow::Owned),
        }
    }

    /// The numbers of some rows (entries of the first dimension), row-major. A scalar is one row.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        if rows.start > rows.end || rows.end > self.row_count() {
            let why = format!("rows {rows:?} of {}", self.row_count());
            return Err(GraphError::Tensor { name: format!("{self:?}"), why });
        }
        self.source.rows(rows)
    }

    /// Entries of the first dimension; 1 for a scalar.
    pub fn row_count(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// A tensor computed from this one when needed, row range by row range, of the given shape.
    pub fn derive(
        &self,
        shape: impl Into<Vec<usize>>,
        rows: impl Fn(&Tensor, Range<usize>) -> Result<Vec<f32>> + Send + Sync + 'static,
    ) -> Self {
        Self { shape: shape.into(), source: Arc::new(Derived { from: self.clone(), rows }) }
    }
}

struct Derived<F> {
    from: Tensor,
    rows: F,
}

impl<F: Fn(&Tensor, Range<usize>) -> Result<Vec<f32>> + Send + Sync> TensorSource for Derived<F> {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        (self.rows)(&self.from, rows)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape)
    }
}

/// The product of dimensions, unless it overflows.
pub(crate) fn checked_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}
