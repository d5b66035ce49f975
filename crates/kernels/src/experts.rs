//! Products with a few of many experts.

use crate::error::length;
use crate::{Dense, KernelError, Parallel, Product, Result};

/// Matrices of one shape, of which each row uses a few: `y = sum over its experts of weight W_e x`.
///
/// An expert that several rows use is read once. A row adds its experts in ascending order, so its result does
/// not depend on the other rows.
#[derive(Clone, Debug)]
pub struct Experts<'a> {
    experts: Vec<Dense<'a>>,
}

/// A row's use of an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// Row.
    pub row: usize,
    /// Expert.
    pub expert: usize,
    /// Factor of its product.
    pub weight: f32,
}

impl<'a> Experts<'a> {
    /// Experts of one shape.
    ///
    /// # Errors
    /// None, or of different shapes.
    pub fn new(experts: Vec<Dense<'a>>) -> Result<Self> {
        let Some(first) = experts.first() else { return Err(KernelError::Shape { outs: 0, ins: 0 }) };
        let [outs, ins] = first.shape();
        for expert in &experts {
            let [other_outs, other_ins] = expert.shape();
            length("outputs of an expert", other_outs, outs)?;
            length("inputs of an expert", other_ins, ins)?;
        }
        Ok(Self { experts })
    }

    /// `[outs, ins]` of each expert.
    pub fn shape(&self) -> [usize; 2] {
        self.experts[0].shape()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.experts.len()
    }

    /// Bytes that a call with these routes reads.
    pub fn bytes(&self, routes: &[Route]) -> usize {
        let mut used: Vec<usize> = routes.iter().map(|route| route.expert).collect();
        used.sort_unstable();
        used.dedup();
        used.iter().filter_map(|&expert| self.experts.get(expert)).map(|expert| expert.packed().len()).sum()
    }

    /// Multiplies `x` `[rows, ins]` into `y` `[rows, outs]`; a row without routes becomes zeros.
    ///
    /// # Errors
    /// Slices of other lengths, a row or an expert that does not exist.
    pub fn apply(
        &self,
        x: &[f32],
        rows: usize,
        routes: &[Route],
        y: &mut [f32],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let [outs, ins] = self.shape();
        length("activations", x.len(), rows.saturating_mul(ins))?;
        length("outputs", y.len(), rows.saturating_mul(outs))?;
        for route in routes {
            if route.row >= rows {
                return Err(KernelError::Index { what: "row", got: route.row, len: rows });
            }
            if route.expert >= self.count() {
                return Err(KernelError::Index { what: "expert", got: route.expert, len: self.count() });
            }
        }
        y.fill(0.0);
        let mut sorted = routes.to_vec();
        sorted.sort_by_key(|route| (route.expert, route.row));
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for users in sorted.chunk_by(|a, b| a.expert == b.expert) {
            inputs.clear();
            users.iter().for_each(|route| inputs.extend_from_slice(&x[route.row * ins..][..ins]));
            outputs.clear();
            outputs.resize(users.len() * outs, 0.0);
            self.experts[users[0].expert].apply_with(&inputs, users.len(), &mut outputs, threads)?;
            for (route, product) in users.iter().zip(outputs.chunks_exact(outs)) {
                for (y, &product) in y[route.row * outs..][..outs].iter_mut().zip(product) {
                    *y = route.weight.mul_add(product, *y);
                }
            }
        }
        Ok(())
    }
}
