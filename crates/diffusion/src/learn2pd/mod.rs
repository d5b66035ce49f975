//! Learn2PD: a filter of a few thousand weights looks at the confidences of a whole block and says which predictions
//! are already what the model will end up with; those are committed at once.
//!
//! Notation: block `[s, e)` of length `B`, predictions `t`, confidences `c` at **every** position of the block, visible
//! ones included.
//!
//! Training data ([`Diffusion::extremely_greedy`](crate::Diffusion::extremely_greedy)):
//! 1. The reference `y` is the model's own text, one token a step.
//! 2. Start again from masks. At each step record `c` and `label_i = [t_i = y_i]` over the block, then commit exactly
//!    the masks with label 1: what an oracle could do ("extremely greedy parallel").
//! 3. If the block's predictions are those of the step before, fill the block from `y`.
//!
//! Filter ([`Filter`]): `z = W2 relu(W1 c + b1) + b2`, square matrices of width `B`; `2 (B^2 + B)` weights. Trained with
//! binary cross-entropy over all records, full batch ([`FilterTraining`]).
//!
//! Decoding ([`Learn2Pd`]):
//! 4. Accept masks with `sigmoid(z_j) > tau`.
//! 5. Commit them, and the `n` surest masks of the block by LLaDA's schedule, so that every step advances.
//!
//! End-of-Text Prediction is the decoder's [`Cut`](crate::Cut).
//!
//! | setting | default | source |
//! |---|---|---|
//! | `tau` | 0.96 (LLaDA; 0.9 for Dream) | evaluation scripts |
//! | layers, width | 2, the block | `small_model.py` |
//! | optimiser | AdamW, 3e-3, weight decay 0.01, 40,000 full-batch steps | `train.ipynb` |
//! | visible positions | re-predicted | LLaDA code |
//! | loss over | all positions | `train.ipynb` |
//! | forced tokens | one a step | `steps = gen_length` |
//!
//! **Deviations.** Records are to be split by prompt, not by record ([`split_by_prompt`]): steps of one block are nearly
//! the same record. Ties in step 5 go to the left. The first and last conventions for visible positions
//! ([`Visible`]) exist in the two published variants; they mean different operating points at the same `tau`, and the
//! masked loss does not train predictions at visible positions at all. With a prefix or dual cache and shifted logits
//! the block's first position is not predicted again; it then counts as certain. The released code cuts at any mask
//! that predicts the end of text ([`Cut::Predicted`](crate::Cut::Predicted)); the paper describes
//! [`Cut::Committed`](crate::Cut::Committed).
//!
//! Cost: a pass's own, and `4 B^2` multiply-adds.
//!
//! References: Learn2PD, arXiv 2509.25188; ims-kdks/Learning-to-Parallel-Decoding `llada/generate.py`,
//! `generate_training_data.py`, `train.ipynb`; `small_model.py` of wyffffff/cora-diff-llada.
//!
//! ```
//! use pilotfish_diffusion::learn2pd::Filter;
//! // W1 = I, W2 = 10 I, b2 = -9: accepts exactly what a threshold of 0.9 does.
//! let filter = Filter::threshold(4, 0.9, 10.0)?;
//! let accepted: Vec<bool> = filter.accepts(&[0.95, 0.70, 0.91, 0.20])?.iter().map(|p| *p > 0.5).collect();
//! assert_eq!(accepted, [true, false, true, false]);
//! # Ok::<(), pilotfish_diffusion::DiffusionError>(())
//! ```

mod filter;
mod traces;
mod training;

use serde::{Deserialize, Serialize};

pub use filter::{Filter, bce};
pub use traces::{Oracle, Record, split_by_prompt};
pub use training::{FilterReport, FilterTraining, Fit};

use crate::Result;
use crate::error::{probability, refuse};
use crate::policy::{Choice, Pace, Policy, View};
use crate::predict::surest_first;
use crate::schedule;

/// What a filter reads at visible positions of a block. Traces and decoding must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visible {
    /// The confidence with which the model predicts the position again; label: whether that is the reference's token
    /// (LLaDA code).
    #[default]
    Repredicted,
    /// 1, with label 1.
    One,
    /// 0, with label 1 (Dream code).
    Zero,
}

impl Visible {
    /// What the filter reads, and the label, given what the model says there.
    pub(crate) fn of(self, confidence: Option<f64>, right: bool) -> (f64, bool) {
        match self {
            Self::Repredicted => confidence.map_or((1.0, true), |confidence| (confidence, right)),
            Self::One => (1.0, true),
            Self::Zero => (0.0, true),
        }
    }
}

/// The policy: a filter's verdicts, and what must be committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Learn2Pd {
    filter: Filter,
    tau: f64,
    visible: Visible,
    pace: Pace,
}

impl Learn2Pd {
    /// The policy of a filter and a threshold `tau` on its probability. One token a step is forced.
    ///
    /// # Errors
    /// A threshold outside `[0, 1]`; a filter that is not valid.
    pub fn new(filter: Filter, tau: f64, visible: Visible) -> Result<Self> {
        probability("tau", tau)?;
        filter.check()?;
        Ok(Self { filter, tau, visible, pace: Pace::Tokens(1) })
    }

    /// The same with another number of forced tokens: [`Pace::Tokens`] or [`Pace::Steps`].
    ///
    /// # Errors
    /// Dream's schedules, or none a step.
    pub fn forcing(mut self, pace: Pace) -> Result<Self> {
        match pace {
            Pace::Tokens(1..) | Pace::Steps(1..) => self.pace = pace,
            _ => return refuse("forced tokens", 0.0, "a number of tokens or steps above 0"),
        }
        Ok(self)
    }
}

impl Policy for Learn2Pd {
    fn name(&self) -> String {
        format!("Learn2PD {}", self.tau)
    }

    fn reads_visible(&self) -> bool {
        self.visible == Visible::Repredicted
    }

    fn choose(&mut self, view: &View<'_>) -> Result<Choice> {
        let is_mask = |at: usize| view.masked.binary_search_by_key(&at, |p| p.position).is_ok();
        let confidences: Vec<f64> = view
            .block
            .clone()
            .map(|at| {
                let seen = view.at(at).map(|prediction| prediction.confidence);
                if is_mask(at) { seen.unwrap_or(0.0) } else { self.visible.of(seen, true).0 }
            })
            .collect();
        let verdicts = self.filter.accepts(&confidences)?;
        let accepted = view
            .block
            .clone()
            .zip(verdicts)
            .filter(|(at, p)| *p > self.tau && is_mask(*at))
            .map(|(at, _)| at);
        let count = match self.pace {
            Pace::Steps(steps) => schedule::llada_at(view.masks_at_start, steps, view.step),
            Pace::Tokens(tokens) => tokens,
            Pace::Dream { .. } | Pace::Independent { .. } => 1,
        };
        let forced = surest_first(view.masked, |p| p.confidence)
            .into_iter()
            .take(count.max(1))
            .map(|at| view.masked[at].position);
        Ok(Choice { accepted: accepted.collect(), forced: forced.collect() })
    }
}
