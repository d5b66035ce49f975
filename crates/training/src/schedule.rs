//! How the learning rate changes over a run.
//!
//! A schedule is a factor of the learning rate for each step. Which formula the papers mean by "cosine" and
//! "warm-up" differs by one step here and there; each form has its own name.
//!
//! | paper or code | schedule |
//! |---|---|
//! | weak-to-strong (`train.py`) | [`Decay::Cosine`], no warm-up, floor 0 |
//! | superficial alignment (`cdpo`) | [`Warmup::FromFirst`] of `floor(0.1 n)` steps, then constant |
//! | delta learning (`train_dpo.py`) | [`Warmup::FromZero`] of `ceil(0.03 n)` steps, [`Decay::Cosine`], floor 0.1 |
//! | beyond accuracy | [`Warmup::FromZero`], [`Decay::Linear`] |

use serde::{Deserialize, Serialize};

use crate::{Result, TrainingError};

/// The beginning of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// None.
    #[default]
    None,
    /// `t / w` at step `t < w`: the first step has factor 0.
    FromZero {
        /// `w`.
        steps: u64,
    },
    /// `min(1, (t + 1) / (w + 1))`: the first step already moves.
    FromFirst {
        /// `w`.
        steps: u64,
    },
}

/// The rest of a run, over the share `u` of the steps after the warm-up that have passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Factor 1.
    #[default]
    Constant,
    /// `floor + (1 - floor) (1 - u)`
    Linear,
    /// `floor + (1 - floor) (1 + cos(pi u)) / 2`
    Cosine,
}

/// Factors of the learning rate.
///
/// ```
/// use pilotfish_training::{Decay, Schedule};
/// let cosine = Schedule { decay: Decay::Cosine, ..Schedule::default() };
/// let factors: Vec<f64> = (0..4).map(|step| cosine.factor(step, 4)).collect();
/// assert!((factors[1] - 0.853_553).abs() < 1e-6 && factors[0] == 1.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The beginning.
    pub warmup: Warmup,
    /// The rest.
    pub decay: Decay,
    /// Factor that a decay ends with, between 0 and 1.
    pub floor: f64,
}

impl Schedule {
    /// Checks the floor.
    ///
    /// # Errors
    /// It is not between 0 and 1.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.floor) {
            let want = "between 0 and 1";
            return Err(TrainingError::BadParameter { name: "floor", value: self.floor, want });
        }
        Ok(())
    }

    /// The factor of step `step` (from 0) of `steps`; after the last step, that of the end.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let warm = match self.warmup {
            Warmup::None => 0,
            Warmup::FromZero { steps: warm } if step < warm => return step as f64 / warm as f64,
            Warmup::FromFirst { steps: warm } if step < warm => {
                return (step + 1) as f64 / (warm + 1) as f64;
            }
            Warmup::FromZero { steps } | Warmup::FromFirst { steps } => steps,
        };
        let rest = steps.saturating_sub(warm);
        let u = if rest == 0 { 1.0 } else { ((step - warm) as f64 / rest as f64).min(1.0) };
        let shape = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - u,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * u).cos()),
        };
        self.floor + (1.0 - self.floor) * shape
    }
}
