use pilotfish_model::Token;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::refuse;

/// How far ahead of a block's start a delimiter is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// A share of the whole budget: `floor(share L)` (the released code).
    Budget(f64),
    /// A share of what is decoded so far, at least one position: `max(1, floor(share g))` (the paper's Algorithm 1,
    /// according to a summary). The first block then sees one position.
    Decoded(f64),
}

/// AdaBlock-dLLM: a block ends where the model is about to end a line. The length of each block is read off the pass
/// that also takes its first step, so that sizing costs nothing.
///
/// With `L` the budget, `g` the tokens in finished blocks, `s` the block's start, `t` predicted tokens:
/// 1. `remaining = L - g`; window `w = min(floor(0.25 L), remaining)`, positions `s .. s + w`.
/// 2. `J = { j in window : t_j is a delimiter }`. If empty, the length is `min(B0, remaining)`.
/// 3. `d_j` is the probability of `t_j` without temperature, `j*` its maximum over `J`, the first of equals.
/// 4. If `d_{j*} >= tau_D` the block ends on it, length `j* - s + 1`; else `min(B0, remaining)`.
///
/// | setting | default | source |
/// |---|---|---|
/// | `tau_D` | 0.3 (LLaDA; 0.5 for Dream) | README, tuned on GSM8K |
/// | `B0` | 32 | README; 16 and 64 in its tables |
/// | window | a quarter of the budget | `generate_adablock.py` |
/// | delimiters | none: the model's ids of newline are the user's to name | LLaDA: `[198]` |
///
/// An infinite `tau_D` turns adaptation off: fixed blocks of `B0`, the last one what remains.
///
/// **Deviations.** Positions that are visible beforehand (infilling) are no delimiters. The paper was read through
/// summaries, the code in full; where they differ (the window) the code is the default.
///
/// Cost: a logarithm of a sum for each position of the window, no passes. It composes with every policy, with block
/// caches, and with FreeDave.
///
/// References: AdaBlock-dLLM, arXiv 2509.26432; lgxi24/AdaBlock-dLLM `llada/generate_adablock.py`.
///
/// ```
/// use pilotfish_diffusion::AdaBlock;
/// let rule = AdaBlock { delimiters: vec![9], default_length: 8, ..AdaBlock::default() };
/// // Budget 16, so the window is 4; newlines at 1 and 3, the later one surer.
/// let predicted = [(5, 0.9), (9, 0.40), (5, 0.9), (9, 0.55)];
/// assert_eq!(rule.length(0, 16, |offset| predicted.get(offset).copied()), 4);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaBlock {
    /// Confidence of a delimiter that ends a block, `tau_D`; from 0 to 1, or infinite.
    pub threshold: f64,
    /// Length of a block without a delimiter, `B0`.
    pub default_length: usize,
    /// Tokens that end a line, `D`. Keep the end of text out of it.
    pub delimiters: Vec<Token>,
    /// Where they are looked for.
    pub window: Window,
}

impl Default for AdaBlock {
    fn default() -> Self {
        Self { threshold: 0.3, default_length: 32, delimiters: Vec::new(), window: Window::Budget(0.25) }
    }
}

impl AdaBlock {
    /// Checks the settings.
    ///
    /// # Errors
    /// A threshold or a share that is no probability (an infinite threshold is allowed); no default length.
    pub fn check(&self) -> Result<()> {
        if !((0.0..=1.0).contains(&self.threshold) || self.threshold == f64::INFINITY) {
            return refuse("delimiter threshold", self.threshold, "from 0 to 1, or infinite");
        }
        let (Window::Budget(share) | Window::Decoded(share)) = self.window;
        if !(0.0..=1.0).contains(&share) {
            return refuse("window", share, "from 0 to 1");
        }
        if self.default_length == 0 {
            return refuse("default block length", 0.0, "at least 1");
        }
        Ok(())
    }

    /// Positions that are looked at, with `done` tokens of `budget` in finished blocks.
    pub fn window(&self, done: usize, budget: usize) -> usize {
        let width = match self.window {
            Window::Budget(share) => (share * budget as f64) as usize,
            Window::Decoded(share) => ((share * done as f64) as usize).max(1),
        };
        width.min(budget.saturating_sub(done))
    }

    /// Length of the block that begins after `done` tokens of `budget`; `predicted` gives token and confidence at an
    /// offset from its start, if there is a mask. From 1 to `budget - done`.
    pub fn length(
        &self,
        done: usize,
        budget: usize,
        predicted: impl Fn(usize) -> Option<(Token, f64)>,
    ) -> usize {
        let mut best: Option<(usize, f64)> = None;
        for offset in 0..self.window(done, budget) {
            if let Some((token, confidence)) = predicted(offset)
                && self.delimiters.contains(&token)
                && best.is_none_or(|(_, most)| confidence > most)
            {
                best = Some((offset, confidence));
            }
        }
        match best {
            Some((offset, confidence)) if confidence >= self.threshold => offset + 1,
            _ => self.default_length.min(budget.saturating_sub(done)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(threshold: f64) -> AdaBlock {
        AdaBlock { threshold, default_length: 8, delimiters: vec![9], ..AdaBlock::default() }
    }

    fn length(threshold: f64, first: f64, second: f64) -> usize {
        let predicted = [(1, 0.99), (9, first), (1, 0.99), (9, second), (9, 1.0)];
        rule(threshold).length(0, 16, |offset| predicted.get(offset).copied())
    }

    #[test]
    fn the_hand_example() {
        // The surest newline counts, not the nearest; the certain one at offset 4 is outside the window.
        assert_eq!(length(0.3, 0.40, 0.55), 4);
        assert_eq!(length(0.5, 0.40, 0.55), 4);
        assert_eq!(length(0.6, 0.40, 0.55), 8);
        assert_eq!(length(0.3, 0.55, 0.40), 2);
        assert_eq!(length(0.5, 0.5, 0.5), 2);
        assert_eq!(length(f64::INFINITY, 1.0, 1.0), 8);
    }

    #[test]
    fn windows_are_clipped() {
        let budget = rule(0.3);
        assert_eq!((budget.window(14, 16), budget.length(14, 16, |_| Some((1, 1.0)))), (2, 2));
        let decoded = AdaBlock { window: Window::Decoded(0.25), ..rule(0.3) };
        assert_eq!([0, 8, 12].map(|done| decoded.window(done, 16)), [1, 2, 3]);
    }

    #[test]
    fn refuses_bad_settings() {
        for threshold in [-0.1, 1.1, f64::NAN, f64::NEG_INFINITY] {
            assert!(rule(threshold).check().is_err(), "{threshold}");
        }
        assert!(AdaBlock { default_length: 0, ..rule(0.3) }.check().is_err());
        assert!(AdaBlock { window: Window::Budget(f64::NAN), ..rule(0.3) }.check().is_err());
        assert!(rule(f64::INFINITY).check().is_ok());
    }

    proptest! {
        #[test]
        fn lengths_partition_the_budget(
            budget in 1usize..80,
            default_length in 1usize..40,
            threshold in 0.0f64..1.0,
            seed in prop::collection::vec((0u32..3, 0.0f64..1.0), 80),
        ) {
            let rule = AdaBlock { threshold, default_length, delimiters: vec![0], ..AdaBlock::default() };
            let mut done = 0;
            while done < budget {
                let length = rule.length(done, budget, |offset| seed.get(done + offset).copied());
                prop_assert!(length >= 1 && done + length <= budget);
                if length != default_length.min(budget - done) {
                    prop_assert_eq!(seed[done + length - 1].0, 0);
                }
                done += length;
            }
            prop_assert_eq!(done, budget);
        }
    }
}
