use serde::{Deserialize, Serialize};

use crate::{ModelError, Result};

/// Sub-layers that a step leaves out: a skipped attention or MLP, its norm included, is the identity on the residual
/// stream.
///
/// ```
/// use pilotfish_model::Skip;
/// let skip = Skip::new([3, 1, 3], [2]);
/// assert_eq!((skip.attention(), skip.mlp(), skip.len()), (&[1, 3][..], &[2][..], 3));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Skip {
    attention: Vec<usize>,
    mlp: Vec<usize>,
}

impl Skip {
    /// The attentions and the MLPs of these layers.
    pub fn new(attention: impl IntoIterator<Item = usize>, mlp: impl IntoIterator<Item = usize>) -> Self {
        let sorted = |layers: Vec<usize>| {
            let mut layers = layers;
            layers.sort_unstable();
            layers.dedup();
            layers
        };
        Self { attention: sorted(attention.into_iter().collect()), mlp: sorted(mlp.into_iter().collect()) }
    }

    /// Layers whose attention is left out, ascending.
    pub fn attention(&self) -> &[usize] {
        &self.attention
    }

    /// Layers whose MLP is left out, ascending.
    pub fn mlp(&self) -> &[usize] {
        &self.mlp
    }

    /// Whether a layer's attention is left out.
    pub fn skips_attention(&self, layer: usize) -> bool {
        self.attention.binary_search(&layer).is_ok()
    }

    /// Whether a layer's MLP is left out.
    pub fn skips_mlp(&self, layer: usize) -> bool {
        self.mlp.binary_search(&layer).is_ok()
    }

    /// Sub-layers left out.
    pub fn len(&self) -> usize {
        self.attention.len() + self.mlp.len()
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fails unless all layers are among the first `layers`.
    ///
    /// # Errors
    /// A layer that does not exist.
    pub fn check(&self, layers: usize) -> Result<()> {
        let last = self.attention.last().max(self.mlp.last());
        match last {
            Some(&row) if row >= layers => {
                Err(ModelError::NoSuchRow { what: "layer to leave out", row, len: layers })
            }
            _ => Ok(()),
        }
    }
}

/// Which rows of a cache were made by a part of the network. They are of use only to steps that leave out the same
/// sub-layers, so every implementation of [`CausalModel::step_without`](crate::CausalModel::step_without) keeps one of
/// these, which sees to it that they are forgotten before anything else is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partial(Option<(usize, Skip)>);

impl Partial {
    /// Whether a step that leaves out `skip` may be appended.
    ///
    /// # Errors
    /// The cache ends in rows that lack other sub-layers.
    pub fn check(&self, skip: &Skip) -> Result<()> {
        match &self.0 {
            Some((from, other)) if other != skip => Err(ModelError::PartialRows { from: *from }),
            _ => Ok(()),
        }
    }

    /// Such a step was appended to `before` rows.
    pub fn appended(&mut self, before: usize, skip: &Skip) {
        if self.0.is_none() && !skip.is_empty() {
            self.0 = Some((before, skip.clone()));
        }
    }

    /// Whether rows `0..from` and no others may be kept together with `rows`.
    ///
    /// # Errors
    /// One of them lacks sub-layers.
    pub fn check_keep(&self, from: usize, rows: &[usize]) -> Result<()> {
        let first = match &self.0 {
            Some((first, _)) => *first,
            None => return Ok(()),
        };
        match rows.iter().copied().find(|&row| row >= first).or((from > first).then_some(first)) {
            Some(row) => Err(ModelError::BadKeep { row, why: "it was made without some sub-layers" }),
            None => Ok(()),
        }
    }

    /// All but the first `len` rows were forgotten.
    pub fn truncated(&mut self, len: usize) {
        if self.0.as_ref().is_some_and(|(from, _)| len <= *from) {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_rows_are_forgotten_before_others_come() {
        let (mut partial, none, skip) = (Partial::default(), Skip::default(), Skip::new([1], [2, 1]));
        assert!(partial.check(&none).is_ok() && partial.check(&skip).is_ok());
        partial.appended(5, &none);
        partial.appended(7, &skip);
        partial.appended(9, &skip);
        assert!(partial.check(&skip).is_ok());
        assert!(matches!(partial.check(&none), Err(ModelError::PartialRows { from: 7 })));
        assert!(partial.check(&Skip::new([1], [2])).is_err());
        assert!(partial.check_keep(5, &[6]).is_ok() && partial.check_keep(5, &[6, 8]).is_err());
        assert!(partial.check_keep(8, &[]).is_err());
        partial.truncated(8);
        assert!(partial.check(&none).is_err());
        partial.truncated(7);
        assert!(partial.check(&none).is_ok());
        assert!(skip.check(3).is_ok() && skip.check(2).is_err() && none.check(0).is_ok());
    }
}
