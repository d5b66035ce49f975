use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Result, SparsityError};

/// Which weights of a matrix may be other than zero.
///
/// ```
/// use pilotfish_sparsity::Pattern;
/// assert_eq!("2:4".parse::<Pattern>()?, Pattern::Grouped { keep: 2, group: 4 });
/// assert_eq!("0.7".parse::<Pattern>()?.sparsity(), 0.7);
/// assert!("5:4".parse::<Pattern>().is_err() && "nan".parse::<Pattern>().is_err());
/// # Ok::<(), pilotfish_sparsity::SparsityError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// All.
    #[default]
    Dense,
    /// This share of the weights is zero, anywhere.
    Unstructured {
        /// Share of zeros, 0 to 1.
        sparsity: f64,
    },
    /// At most `keep` of each `group` consecutive inputs of an output: N:M.
    Grouped {
        /// N: weights kept.
        keep: usize,
        /// M: inputs a group.
        group: usize,
    },
}

impl Pattern {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sparsity that is not within 0 and 1, groups of nothing, more kept than there are.
    pub fn check(self) -> Result<Self> {
        match self {
            Self::Unstructured { sparsity } if !(0.0..=1.0).contains(&sparsity) => {
                Err(SparsityError::parameter("sparsity", sparsity, "from 0 to 1"))
            }
            Self::Grouped { keep, group } if group == 0 || keep > group => {
                Err(SparsityError::parameter("pattern", self, "N:M with N at most M and M at least 1"))
            }
            _ => Ok(self),
        }
    }

    /// Checks that it fits matrices of so many inputs.
    ///
    /// # Errors
    /// As [`Pattern::check`]; groups that do not divide the inputs.
    pub fn fits(self, inputs: usize) -> Result<()> {
        match self.check()? {
            Self::Grouped { group, .. } if inputs % group != 0 => {
                Err(SparsityError::parameter("pattern", self, "groups that divide the layer's inputs"))
            }
            _ => Ok(()),
        }
    }

    /// Share of zeros.
    pub fn sparsity(self) -> f64 {
        match self {
            Self::Dense => 0.0,
            Self::Unstructured { sparsity } => sparsity,
            Self::Grouped { keep, group } => 1.0 - keep as f64 / group.max(1) as f64,
        }
    }

    /// Zeros among `count` weights: rounded down.
    pub(crate) fn zeros(sparsity: f64, count: usize) -> usize {
        // 0.7 of 10 is 7, though the product is a hair below.
        ((count as f64 * sparsity + 1e-9).floor() as usize).min(count)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Unstructured { sparsity } => write!(f, "{sparsity}"),
            Self::Grouped { keep, group } => write!(f, "{keep}:{group}"),
        }
    }
}

impl FromStr for Pattern {
    type Err = SparsityError;

    fn from_str(text: &str) -> Result<Self> {
        let refuse =
            || SparsityError::parameter("pattern", text, "dense, a share of zeros such as 0.5, or N:M");
        if text == "dense" {
            return Ok(Self::Dense);
        }
        let pattern = match text.split_once(':') {
            Some((keep, group)) => Self::Grouped {
                keep: keep.trim().parse().map_err(|_| refuse())?,
                group: group.trim().parse().map_err(|_| refuse())?,
            },
            None => Self::Unstructured { sparsity: text.trim().parse().map_err(|_| refuse())? },
        };
        pattern.check()
    }
}

impl TryFrom<String> for Pattern {
    type Error = SparsityError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}
