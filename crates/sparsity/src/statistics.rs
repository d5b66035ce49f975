//! What a pruner knows about a layer's inputs.
//!
//! ```text
//! scaler_j = mean over sequences of sum_t x_tj^2
//! sum_j    = mean over sequences of sum_t x_tj
//! var_j    = within-sequence population variance of x_tj, averaged with the sequences' lengths
//! H        = (2 / sequences) sum over sequences of X^T X
//! ```
//! The scaling is that of the published code (sums over a sequence, not means over tokens), because DSnoT's
//! threshold is stated in it. Everything is accumulated in f64; the products inside `H` are taken in f32, a
//! sequence at a time.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::error::finite;
use crate::{Result, SparsityError};

/// Statistics of the inputs of one linear layer (or of several that read the same value).
#[derive(Clone, Debug)]
pub struct Statistics {
    inputs: usize,
    sequences: usize,
    tokens: usize,
    square: Vec<f64>,
    sum: Vec<f64>,
    variance: Vec<f64>,
    hessian: Option<Mat<f64>>,
}

impl Statistics {
    /// Nothing seen yet, of a layer with so many inputs. `hessian` says whether products of inputs are wanted:
    /// `8 inputs^2` bytes.
    pub fn new(inputs: usize, hessian: bool) -> Self {
        Self {
            inputs,
            sequences: 0,
            tokens: 0,
            square: vec![0.0; inputs],
            sum: vec![0.0; inputs],
            variance: vec![0.0; inputs],
            hessian: hessian.then(|| Mat::zeros(inputs, inputs)),
        }
    }

    /// Adds a sequence: rows `[tokens, inputs]`, row-major.
    ///
    /// # Errors
    /// Rows of another width, none at all, or numbers that are not finite.
    pub fn add(&mut self, rows: &[f32]) -> Result<()> {
        let what = || "calibration rows".to_owned();
        if self.inputs == 0 || rows.is_empty() {
            return Err(SparsityError::NoRows { what: what() });
        }
        if rows.len() % self.inputs != 0 {
            let want = rows.len().next_multiple_of(self.inputs);
            return Err(SparsityError::Shape { what: what(), got: rows.len(), want });
        }
        finite(&what(), rows)?;
        let count = rows.len() / self.inputs;
        let (mut sum, mut square) = (vec![0.0; self.inputs], vec![0.0; self.inputs]);
        for row in rows.chunks_exact(self.inputs) {
            for (j, &x) in row.iter().enumerate() {
                let x = f64::from(x);
                sum[j] += x;
                square[j] += x * x;
            }
        }
        for j in 0..self.inputs {
            let mean = sum[j] / count as f64;
            self.variance[j] += (square[j] - sum[j] * mean).max(0.0);
            self.sum[j] += sum[j];
            self.square[j] += square[j];
        }
        if let Some(hessian) = &mut self.hessian {
            let x = MatRef::from_row_major_slice(rows, count, self.inputs);
            let mut product = Mat::<f32>::zeros(self.inputs, self.inputs);
            matmul(product.as_mut(), Accum::Replace, x.transpose(), x, 1.0, Par::Seq);
            for j in 0..self.inputs {
                for i in 0..self.inputs {
                    // The upper half twice: the product need not be symmetric to the last bit.
                    hessian[(i, j)] += f64::from(product[(i.min(j), i.max(j))]);
                }
            }
        }
        self.sequences += 1;
        self.tokens += count;
        Ok(())
    }

    /// Inputs of the layer.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Tokens seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Refuses statistics of nothing.
    pub(crate) fn seen(&self, what: &str) -> Result<()> {
        if self.sequences == 0 { Err(SparsityError::NoRows { what: what.into() }) } else { Ok(()) }
    }

    fn mean(&self, values: &[f64]) -> Vec<f64> {
        values.iter().map(|value| value / self.sequences.max(1) as f64).collect()
    }

    /// `scaler`, by input.
    pub fn scaler(&self) -> Vec<f64> {
        self.mean(&self.square)
    }

    /// `sum`, by input.
    pub fn sum(&self) -> Vec<f64> {
        self.mean(&self.sum)
    }

    /// `var`, by input.
    pub fn variance(&self) -> Vec<f64> {
        self.variance.iter().map(|value| value / self.tokens.max(1) as f64).collect()
    }

    /// `H`, if it was asked for.
    pub fn hessian(&self) -> Option<Mat<f64>> {
        let factor = 2.0 / self.sequences.max(1) as f64;
        self.hessian.as_ref().map(|sum| Mat::from_fn(self.inputs, self.inputs, |i, j| factor * sum[(i, j)]))
    }

    /// Statistics that say `scaler`, `sum`, `var` and `H` outright, as if of one sequence: for exact tests and for
    /// statistics that came from elsewhere. `hessian` is row-major.
    ///
    /// # Errors
    /// Lengths that differ.
    pub fn given(scaler: &[f64], sum: &[f64], variance: &[f64], hessian: Option<&[f64]>) -> Result<Self> {
        let inputs = scaler.len();
        for (what, got, want) in [
            ("sum", sum.len(), inputs),
            ("variance", variance.len(), inputs),
            ("hessian", hessian.map_or(inputs * inputs, <[f64]>::len), inputs * inputs),
        ] {
            if got != want {
                return Err(SparsityError::Shape { what: what.into(), got, want });
            }
        }
        Ok(Self {
            inputs,
            sequences: 1,
            tokens: 1,
            square: scaler.to_vec(),
            sum: sum.to_vec(),
            variance: variance.to_vec(),
            hessian: hessian.map(|h| Mat::from_fn(inputs, inputs, |i, j| h[i * inputs + j] / 2.0)),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn two_sequences_by_hand() {
        let mut s = Statistics::new(2, true);
        s.add(&[1.0, 0.0, 3.0, 2.0]).unwrap();
        s.add(&[-1.0, 5.0]).unwrap();
        assert_eq!(s.scaler(), [(10.0 + 1.0) / 2.0, (4.0 + 25.0) / 2.0]);
        assert_eq!(s.sum(), [(4.0 - 1.0) / 2.0, (2.0 + 5.0) / 2.0]);
        // Variances 1 and 1 over two tokens, 0 over one: weighted by tokens. The spread of the means is not in it.
        assert_eq!(s.variance(), [2.0 / 3.0, 2.0 / 3.0]);
        let h = s.hessian().unwrap();
        assert_eq!([h[(0, 0)], h[(0, 1)], h[(1, 0)], h[(1, 1)]], [11.0, 1.0, 1.0, 29.0]);
    }

    #[test]
    fn bad_rows() {
        let mut s = Statistics::new(2, false);
        assert!(s.add(&[]).is_err() && s.add(&[1.0]).is_err() && s.add(&[1.0, f32::NAN]).is_err());
        assert!(s.seen("x").is_err());
        assert!(Statistics::given(&[1.0], &[1.0, 2.0], &[1.0], None).is_err());
    }
}
