use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{Choice, Policy, View};
use crate::error::refuse;
use crate::predict::{Prediction, Score, gumbel, surest_first};
use crate::{Result, schedule};

/// How many masks a step of a [`Fixed`] policy resolves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// So many a step; the last step of a block takes what is left.
    Tokens(usize),
    /// LLaDA's schedule with so many steps a block.
    Steps(usize),
    /// Dream's schedule with so many steps a block and the grid's end `eps`. Where it says none, one is committed.
    Dream {
        /// Steps a block.
        steps: usize,
        /// End of the time grid.
        eps: f64,
    },
    /// Dream's `origin`: each mask by itself with the schedule's share as probability.
    Independent {
        /// Steps a block.
        steps: usize,
        /// End of the time grid.
        eps: f64,
    },
}

/// The static rules: a number of masks fixed beforehand, taken by rank.
///
/// 1. Rank the block's masks by [`Score`], equals from left to right.
/// 2. Commit the first `n`, `n` by [`Pace`].
///
/// With one token a step this is the decoding that every faster rule is measured against.
///
/// | setting | default | source |
/// |---|---|---|
/// | score | probability of the token chosen | LLaDA, `remasking = low_confidence` |
/// | pace | one token a step | LLaDA with `steps = gen_length` |
/// | position temperature | 0 | Dream, `alg_temp` |
///
/// **Deviations.** A step whose schedule says 0 commits one token (the references spend the pass and commit nothing).
///
/// References: ML-GSAI/LLaDA `generate.py`; HKUNLP/Dream `generation_utils.py`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fixed {
    /// Rank.
    pub score: Score,
    /// Number.
    pub pace: Pace,
    /// Above 0, positions are drawn without replacement with weights `exp(score / position_temperature)`.
    pub position_temperature: f64,
}

impl Default for Fixed {
    fn default() -> Self {
        Self { score: Score::Probability, pace: Pace::Tokens(1), position_temperature: 0.0 }
    }
}

impl Fixed {
    /// `tokens` a step by a score.
    pub fn tokens(score: Score, tokens: usize) -> Self {
        Self { score, pace: Pace::Tokens(tokens), ..Self::default() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// No tokens or steps; `eps` outside `[0, 1)`; a temperature that is negative or no number.
    pub fn check(&self) -> Result<()> {
        match self.pace {
            Pace::Tokens(0) => refuse("tokens a step", 0.0, "at least 1"),
            Pace::Tokens(_) => Ok(()),
            Pace::Steps(0) => refuse("steps", 0.0, "at least 1"),
            Pace::Steps(_) => Ok(()),
            Pace::Dream { steps, eps } | Pace::Independent { steps, eps } => {
                schedule::dream(0, steps, eps).map(drop)
            }
        }?;
        if !(self.position_temperature >= 0.0 && self.position_temperature.is_finite()) {
            return refuse("position temperature", self.position_temperature, "0 or more, and finite");
        }
        Ok(())
    }

    /// How many of `left` masks a step takes, at least 1.
    pub(crate) fn count(&self, masks_at_start: usize, left: usize, step: usize) -> usize {
        let count = match self.pace {
            Pace::Tokens(tokens) => tokens,
            Pace::Steps(steps) => schedule::llada_at(masks_at_start, steps, step),
            Pace::Dream { steps, eps } | Pace::Independent { steps, eps } => {
                schedule::dream_share(left, steps, eps, step)
            }
        };
        count.clamp(1, left.max(1))
    }

    /// The positions a step commits, given predictions at the masks that are left.
    pub(crate) fn pick(
        &self,
        masked: &[Prediction],
        masks_at_start: usize,
        step: usize,
        streams: pilotfish_model::Streams,
    ) -> Vec<usize> {
        // Scores by chance are drawn here, for the step that is asked about.
        let score = |prediction: &Prediction| {
            let streams = streams.fork(prediction.position as u64);
            let score = match self.score {
                Score::Chance => streams.stream("order").random(),
                _ => prediction.score,
            };
            if self.position_temperature > 0.0 {
                score / self.position_temperature + gumbel(&mut streams.stream("draw"))
            } else {
                score
            }
        };
        let order = surest_first(masked, score);
        let take = if let Pace::Independent { steps, eps } = self.pace {
            let rate = schedule::dream_rate(steps, eps, step);
            let taken =
                |position: usize| streams.fork(position as u64).stream("independent").random::<f64>() < rate;
            let chosen: Vec<usize> =
                masked.iter().map(|prediction| prediction.position).filter(|&at| taken(at)).collect();
            if !chosen.is_empty() {
                return chosen;
            }
            1
        } else {
            self.count(masks_at_start, masked.len(), step)
        };
        let mut chosen: Vec<usize> = order.into_iter().take(take).map(|at| masked[at].position).collect();
        chosen.sort_unstable();
        chosen
    }
}

impl Policy for Fixed {
    fn name(&self) -> String {
        let pace = match self.pace {
            Pace::Tokens(tokens) => format!("k={tokens}"),
            Pace::Steps(steps) => format!("{steps} steps"),
            Pace::Dream { steps, .. } => format!("Dream's {steps} steps"),
            Pace::Independent { steps, .. } => format!("{steps} independent steps"),
        };
        let score = match self.score {
            Score::Probability => "confidence",
            Score::Margin => "margin",
            Score::Entropy => "entropy",
            Score::Chance => "random",
            Score::LeftToRight => "left to right",
        };
        format!("{score} {pace}")
    }

    fn score(&self) -> Score {
        self.score
    }

    fn choose(&mut self, view: &View<'_>) -> Result<Choice> {
        self.check()?;
        let forced = self.pick(view.masked, view.masks_at_start, view.step, view.streams);
        Ok(Choice { accepted: Vec::new(), forced })
    }
}
