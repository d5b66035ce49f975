use serde::{Deserialize, Serialize};

use super::{Choice, Policy, View};
use crate::Result;
use crate::error::{probability, refuse};
use crate::predict::{Prediction, surest, surest_first};

/// Fast-dLLM's threshold rule: commit every mask of the block whose confidence reaches a threshold, and the surest in
/// any case.
///
/// 1. `c_i` is the probability, without temperature, of the token chosen at mask `i`.
/// 2. Commit `argmax c` and `{ i : c_i >= gamma }`.
///
/// | setting | default | source |
/// |---|---|---|
/// | gamma | 0.9 | Fast-dLLM, explored 0.5 to 1.0 |
///
/// **Deviations.** None: the text says "exceeds", Algorithm 1 and the code accept equality, and so does this.
///
/// References: Fast-dLLM, arXiv 2505.22618, Algorithm 1; NVlabs/Fast-dLLM `llada/generate.py`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Threshold {
    /// Threshold, from 0 to 1. At 0 a block takes one pass.
    pub gamma: f64,
}

impl Default for Threshold {
    fn default() -> Self {
        Self { gamma: 0.9 }
    }
}

impl Threshold {
    /// Checks the threshold.
    ///
    /// # Errors
    /// One outside `[0, 1]`.
    pub fn check(&self) -> Result<()> {
        probability("gamma", self.gamma)
    }

    pub(crate) fn pick(&self, masked: &[Prediction]) -> Choice {
        let accepted = masked.iter().filter(|p| p.confidence >= self.gamma).map(|p| p.position).collect();
        Choice { accepted, forced: surest(masked, |p| p.confidence).into_iter().collect() }
    }
}

impl Policy for Threshold {
    fn name(&self) -> String {
        format!("threshold {}", self.gamma)
    }

    fn choose(&mut self, view: &View<'_>) -> Result<Choice> {
        self.check()?;
        Ok(self.pick(view.masked))
    }
}

/// Fast-dLLM's factor rule: the more tokens are committed together, the surer each must be.
///
/// If `n` tokens have marginals above `1 - e` each and `(n + 1) e <= 1`, the likeliest text of the product of their
/// marginals is the likeliest of their joint law (Theorem 1; the bound is tight).
///
/// 1. Sort confidences, `c_(1) >= c_(2) >= ...`.
/// 2. Commit the largest `n` such that `c_(j) >= 1 - f / (j + 1)` for every `2 <= j <= n`; the first always.
///
/// | setting | default | source |
/// |---|---|---|
/// | f | 1.0: the theorem's bound | Fast-dLLM; the repository sweeps 0.7 to 1.9 |
/// | reference quirk | off | |
///
/// **Deviations.** The reference code commits the last mask even if it is the first to fail; [`Factor::quirk`] turns
/// that on.
///
/// References: Fast-dLLM, arXiv 2505.22618, Theorem 1; furiosa-ai/ParallelBench `model/dream_model_utils.py`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Factor {
    /// Factor, 0 or more. At 0 nothing but a certain token joins the first.
    pub f: f64,
    /// Whether the last mask is committed when it is the first to fail, as the reference code does.
    pub quirk: bool,
}

impl Default for Factor {
    fn default() -> Self {
        Self { f: 1.0, quirk: false }
    }
}

impl Factor {
    /// Checks the factor.
    ///
    /// # Errors
    /// One that is negative or not finite.
    pub fn check(&self) -> Result<()> {
        if !(self.f >= 0.0 && self.f.is_finite()) {
            return refuse("f", self.f, "0 or more, and finite");
        }
        Ok(())
    }

    /// How many of the sorted confidences are committed.
    pub fn count(&self, sorted: &[f64]) -> usize {
        // Place j counts from 1; the first is committed in any case.
        let fails = |j: usize| !(sorted[j - 1] >= 1.0 - self.f / (j as f64 + 1.0));
        match (2..=sorted.len()).find(|&j| fails(j)) {
            Some(j) if self.quirk && j == sorted.len() => j,
            Some(j) => j - 1,
            None => sorted.len(),
        }
    }
}

impl Policy for Factor {
    fn name(&self) -> String {
        format!("factor {}{}", self.f, if self.quirk { " (as the reference)" } else { "" })
    }

    fn choose(&mut self, view: &View<'_>) -> Result<Choice> {
        self.check()?;
        let order = surest_first(view.masked, |p| p.confidence);
        let sorted: Vec<f64> = order.iter().map(|&at| view.masked[at].confidence).collect();
        let positions: Vec<usize> = order.iter().map(|&at| view.masked[at].position).collect();
        let n = self.count(&sorted);
        Ok(Choice { accepted: positions[..n].to_vec(), forced: positions[..1].to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_example() {
        let (right, quirk) = (Factor::default(), Factor { quirk: true, ..Factor::default() });
        let c = [0.95, 0.90, 0.76, 0.70];
        assert_eq!((right.count(&c), quirk.count(&c)), (3, 4));
        let c = [0.95, 0.60, 0.59, 0.58];
        assert_eq!((right.count(&c), quirk.count(&c)), (1, 1));
        // f = 0.7: thresholds -, .7667, .825, .86
        let strict = Factor { f: 0.7, quirk: false };
        assert_eq!(strict.count(&[0.95, 0.77, 0.83, 0.87]), 4);
        assert_eq!(strict.count(&[0.95, 0.76, 0.75, 0.74]), 1);
        assert_eq!(strict.count(&[0.95, 0.90, 0.86, 0.85]), 3);
        // f -> 0 is one a step unless the second is certain.
        let zero = Factor { f: 0.0, quirk: false };
        assert_eq!((zero.count(&[0.9999, 0.9998]), zero.count(&[1.0, 1.0])), (1, 2));
        assert!(Factor { f: f64::NAN, quirk: false }.check().is_err());
        assert!(Factor { f: -0.1, quirk: false }.check().is_err());
    }

    proptest::proptest! {
        #[test]
        fn all_are_committed_when_none_fails(n in 2usize..20, f in 0.1f64..2.0) {
            let sorted: Vec<f64> = (1..=n).map(|j| (1.0 - f / (j as f64 + 1.0)).max(0.0)).collect();
            proptest::prop_assert_eq!(Factor { f, quirk: false }.count(&sorted), n);
        }
    }
}
