use crate::{Pattern, Result, SparsityError};

/// Which weights of a matrix are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    outs: usize,
    ins: usize,
    pruned: Vec<bool>,
}

impl Mask {
    /// A mask that removes nothing.
    pub fn dense([outs, ins]: [usize; 2]) -> Self {
        Self { outs, ins, pruned: vec![false; outs * ins] }
    }

    /// A mask given row by row; `true` removes.
    ///
    /// # Errors
    /// Another number of entries than the shape has.
    pub fn new([outs, ins]: [usize; 2], pruned: Vec<bool>) -> Result<Self> {
        if pruned.len() != outs * ins {
            return Err(SparsityError::Shape { what: "mask".into(), got: pruned.len(), want: outs * ins });
        }
        Ok(Self { outs, ins, pruned })
    }

    /// Removes the smallest scores, `[outs, ins]` row-major, that a pattern has no room for: of the whole matrix or of
    /// each row, as `scope` says, or of each group. Of equal scores the lower index goes first.
    ///
    /// # Errors
    /// A pattern that does not fit; scores that are not numbers.
    pub fn smallest(scores: &[f64], [outs, ins]: [usize; 2], pattern: Pattern, scope: Scope) -> Result<Self> {
        pattern.fits(ins)?;
        if scores.len() != outs * ins {
            return Err(SparsityError::Shape { what: "scores".into(), got: scores.len(), want: outs * ins });
        }
        if let Some(at) = scores.iter().position(|score| score.is_nan()) {
            return Err(SparsityError::NotFinite { what: "scores".into(), at, value: f64::NAN });
        }
        let mut mask = Self::dense([outs, ins]);
        let (size, count) = match (pattern, scope) {
            (Pattern::Dense, _) => return Ok(mask),
            (Pattern::Grouped { keep, group }, _) => (group, group - keep),
            (Pattern::Unstructured { sparsity }, Scope::Row) => (ins, Pattern::zeros(sparsity, ins)),
            (Pattern::Unstructured { sparsity }, Scope::Matrix) => {
                (outs * ins, Pattern::zeros(sparsity, outs * ins))
            }
        };
        for (scores, pruned) in
            scores.chunks_exact(size.max(1)).zip(mask.pruned.chunks_exact_mut(size.max(1)))
        {
            mark_smallest(scores, count, pruned);
        }
        Ok(mask)
    }

    /// Shape: outputs, inputs.
    pub fn shape(&self) -> [usize; 2] {
        [self.outs, self.ins]
    }

    /// Whether a weight is removed.
    pub fn pruned(&self, out: usize, input: usize) -> bool {
        self.pruned[out * self.ins + input]
    }

    /// A row; `true` is removed.
    pub fn row(&self, out: usize) -> &[bool] {
        &self.pruned[out * self.ins..(out + 1) * self.ins]
    }

    pub(crate) fn row_mut(&mut self, out: usize) -> &mut [bool] {
        &mut self.pruned[out * self.ins..(out + 1) * self.ins]
    }

    /// Share of weights removed.
    pub fn sparsity(&self) -> f64 {
        self.pruned.iter().filter(|pruned| **pruned).count() as f64 / self.pruned.len().max(1) as f64
    }

    /// Sets removed weights to zero.
    ///
    /// # Errors
    /// Another number of weights.
    pub fn apply(&self, weights: &mut [f32]) -> Result<()> {
        if weights.len() != self.pruned.len() {
            return Err(SparsityError::Shape {
                what: "weights".into(),
                got: weights.len(),
                want: self.pruned.len(),
            });
        }
        weights.iter_mut().zip(&self.pruned).filter(|(_, pruned)| **pruned).for_each(|(w, _)| *w = 0.0);
        Ok(())
    }
}

/// What an unstructured sparsity is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of each output's weights.
    Row,
    /// Of all weights of a matrix.
    Matrix,
}

/// Marks the `count` smallest scores; of equal ones the lower index goes first.
pub(crate) fn mark_smallest(scores: &[f64], count: usize, pruned: &mut [bool]) {
    if count == 0 {
        return;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let by = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]).then(a.cmp(&b));
    if count < order.len() {
        order.select_nth_unstable_by(count - 1, by);
    }
    order.into_iter().take(count).for_each(|at| pruned[at] = true);
}

/// That a matrix keeps a pattern of groups.
///
/// # Errors
/// The first group with more non-zero weights than the pattern keeps.
pub fn verify(what: &str, weights: &[f32], ins: usize, pattern: Pattern) -> Result<()> {
    let Pattern::Grouped { keep, group } = pattern else { return Ok(()) };
    pattern.fits(ins)?;
    for (row, weights) in weights.chunks_exact(ins.max(1)).enumerate() {
        for (at, weights) in weights.chunks_exact(group).enumerate() {
            let kept = weights.iter().filter(|weight| **weight != 0.0).count();
            if kept > keep {
                return Err(SparsityError::Violated { what: what.into(), row, group: at, kept, keep });
            }
        }
    }
    Ok(())
}
