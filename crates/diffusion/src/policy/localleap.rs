use serde::{Deserialize, Serialize};

use super::{Choice, Policy, View};
use crate::Result;
use crate::error::{probability, refuse};
use crate::predict::surest;

/// Settings of [`LocalLeap`].
///
/// | setting | default | source |
/// |---|---|---|
/// | anchor threshold | 0.9 | the authors' `main()`, DAWN's scripts |
/// | relaxed threshold | 0.75 (LLaDA; 0.8 for Dream) | the same |
/// | radius | 4 | default argument |
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalLeapConfig {
    /// Confidence that makes an anchor, `kappa`.
    pub anchor: f64,
    /// Confidence that is enough near an anchor, `tau`; at most `anchor`.
    pub relaxed: f64,
    /// Distance from an anchor that is near, `W`.
    pub radius: usize,
}

impl Default for LocalLeapConfig {
    fn default() -> Self {
        Self { anchor: 0.9, relaxed: 0.75, radius: 4 }
    }
}

/// Commits masks of moderate confidence where a very confident one is near, on the observation that such neighbours
/// already predict their final token. Elsewhere it is the threshold rule.
///
/// Confidences are those of the block's masks alone, `c_i = -inf` elsewhere:
/// 1. Anchors `A = { i : c_i >= kappa }`. Tokens committed earlier are no anchors, nor is the prompt.
/// 2. If there is none, commit `argmax c` alone.
/// 3. Near are positions within `W` of an anchor, left and right, clipped to the text; a neighbour that is committed
///    does not become an anchor in this step.
/// 4. Commit `argmax c`, near masks with `c_i >= tau`, and other masks with `c_i >= kappa`.
///
/// **Deviations.** None known. The rule is that of two independent copies of the authors' code; the paper itself was
/// not read in full.
///
/// Cost: nothing beyond the pass but `O(block)` integer work.
///
/// References: LocalLeap, arXiv 2510.07081; `get_transfer_index_localleap` of lizhuo-luo/DAWN (`llada/generate.py`).
///
/// ```
/// use pilotfish_diffusion::policy::{LocalLeap, LocalLeapConfig};
/// let leap = LocalLeap::new(LocalLeapConfig { radius: 1, ..LocalLeapConfig::default() })?;
/// // Position 1 is an anchor; 2 is near it, 3 is as sure but too far away.
/// let chosen = leap.pick(&[(0, 0.3), (1, 0.95), (2, 0.8), (3, 0.8)], 4);
/// assert_eq!(chosen, [1, 2]);
/// # Ok::<(), pilotfish_diffusion::DiffusionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalLeap {
    config: LocalLeapConfig,
}

impl LocalLeap {
    /// The rule with settings.
    ///
    /// # Errors
    /// A threshold outside `[0, 1]`; a relaxed threshold above that of anchors.
    pub fn new(config: LocalLeapConfig) -> Result<Self> {
        probability("anchor threshold", config.anchor)?;
        probability("relaxed threshold", config.relaxed)?;
        if config.relaxed > config.anchor {
            return refuse("relaxed threshold", config.relaxed, "at most the anchor threshold");
        }
        Ok(Self { config })
    }

    /// The positions committed, given positions (ascending) and confidences of the block's masks in a text of
    /// `length` tokens. Empty where there is no anchor.
    pub fn pick(&self, masked: &[(usize, f64)], length: usize) -> Vec<usize> {
        let LocalLeapConfig { anchor, relaxed, radius } = self.config;
        let anchors: Vec<usize> =
            masked.iter().filter(|(_, c)| *c >= anchor).map(|(position, _)| *position).collect();
        let near = neighbourhood(&anchors, radius, length);
        let is_near = |position: usize| {
            // The last interval that begins at or before the position.
            let after = near.partition_point(|interval| interval.start <= position);
            after > 0 && near[after - 1].contains(&position)
        };
        let enough = |position: usize| if is_near(position) { relaxed } else { anchor };
        masked.iter().filter(|(position, c)| *c >= enough(*position)).map(|(position, _)| *position).collect()
    }
}

/// Positions within `radius` of an anchor in a text of `length` tokens, as intervals that ascend and do not touch.
/// Anchors ascend.
pub fn neighbourhood(anchors: &[usize], radius: usize, length: usize) -> Vec<std::ops::Range<usize>> {
    let mut intervals: Vec<std::ops::Range<usize>> = Vec::new();
    for &anchor in anchors {
        let reach =
            anchor.saturating_sub(radius)..anchor.saturating_add(radius).saturating_add(1).min(length);
        match intervals.last_mut() {
            Some(last) if reach.start <= last.end => last.end = last.end.max(reach.end),
            _ => intervals.push(reach),
        }
    }
    intervals
}

impl Policy for LocalLeap {
    fn name(&self) -> String {
        let LocalLeapConfig { anchor, relaxed, radius } = self.config;
        format!("LocalLeap {anchor}/{relaxed} W={radius}")
    }

    fn choose(&mut self, view: &View<'_>) -> Result<Choice> {
        let masked: Vec<(usize, f64)> = view.masked.iter().map(|p| (p.position, p.confidence)).collect();
        let accepted = self.pick(&masked, view.tokens.len());
        Ok(Choice { accepted, forced: surest(view.masked, |p| p.confidence).into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HAND: [f64; 12] = [0.50, 0.78, 0.80, 0.95, 0.60, 0.76, 0.70, 0.77, 0.74, 0.80, 0.30, 0.20];

    fn leap(anchor: f64, relaxed: f64, radius: usize) -> LocalLeap {
        LocalLeap::new(LocalLeapConfig { anchor, relaxed, radius }).expect("valid")
    }

    fn pick(confidences: &[f64], rule: LocalLeap) -> Vec<usize> {
        let masked: Vec<(usize, f64)> = confidences.iter().copied().enumerate().collect();
        rule.pick(&masked, confidences.len())
    }

    #[test]
    fn the_hand_example() {
        assert_eq!(pick(&HAND, leap(0.9, 0.75, 4)), [1, 2, 3, 5, 7]);
        assert_eq!(pick(&HAND, leap(0.9, 0.75, 1)), [2, 3]);
        assert_eq!(pick(&HAND, leap(0.9, 0.75, 0)), [3]);
        assert_eq!(pick(&HAND, leap(0.9, 0.75, 6)), [1, 2, 3, 5, 7, 9]);
        let mut lower = HAND;
        lower[3] = 0.89;
        assert!(pick(&lower, leap(0.9, 0.75, 4)).is_empty(), "no anchor, so nothing is relaxed");
    }

    #[test]
    fn visible_tokens_are_no_anchors() {
        let masked: Vec<(usize, f64)> = HAND.iter().copied().enumerate().filter(|(at, _)| *at != 3).collect();
        assert!(leap(0.9, 0.75, 4).pick(&masked, 12).is_empty());
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn clipped_at_both_ends() {
        assert_eq!(neighbourhood(&[1], 4, 30), [0..6]);
        assert_eq!(neighbourhood(&[29], 4, 30), [25..30]);
        assert_eq!(neighbourhood(&[1, 3, 20], 2, 30), [0..6, 18..23]);
        assert_eq!(neighbourhood(&[5], usize::MAX, 30), [0..30]);
    }

    #[test]
    fn refuses_bad_settings() {
        for (anchor, relaxed) in [(1.1, 0.5), (-0.1, -0.2), (f64::NAN, 0.5), (0.9, f64::NAN), (0.5, 0.6)] {
            let config = LocalLeapConfig { anchor, relaxed, radius: 4 };
            assert!(LocalLeap::new(config).is_err(), "{config:?}");
        }
    }

    proptest! {
        #[test]
        fn between_two_thresholds(
            c in prop::collection::vec(0.0f64..1.0, 1..40),
            anchor in 0.5f64..1.0,
            less in 0.0f64..0.5,
            radius in 0usize..12,
        ) {
            let at_least = |limit: f64| -> Vec<usize> { (0..c.len()).filter(|&i| c[i] >= limit).collect() };
            let relaxed = anchor - less;
            let got = pick(&c, leap(anchor, relaxed, radius));
            let (few, many) = (at_least(anchor), at_least(relaxed));
            prop_assert!(few.iter().all(|i| got.contains(i)) && got.iter().all(|i| many.contains(i)));
            // Monotone in the radius and in what is enough.
            let wider = pick(&c, leap(anchor, relaxed, radius + 1));
            let easier = pick(&c, leap(anchor, relaxed * 0.9, radius));
            prop_assert!(got.iter().all(|i| wider.contains(i) && easier.contains(i)));
            // Reductions.
            prop_assert_eq!(pick(&c, leap(anchor, relaxed, 0)), few.clone());
            prop_assert_eq!(pick(&c, leap(anchor, anchor, radius)), few.clone());
            let all = pick(&c, leap(anchor, relaxed, c.len()));
            prop_assert_eq!(all, if few.is_empty() { Vec::new() } else { many });
            prop_assert!(pick(&c, leap(1.0, relaxed, radius)).is_empty());
        }
    }
}
