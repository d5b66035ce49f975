//! Losses of preference pairs, from log-probabilities of whole responses.
//!
//! Operands are `[n]`, one number a pair: summed log-probabilities ([`Targets::sums`](super::Targets::sums)) for
//! DPO and IPO, means over tokens ([`Targets::means`](super::Targets::means)) for SimPO and ORPO. DPO of means is
//! the length-normalised DPO of delta learning; its `beta` is then about the mean length times larger (5 to 10).
//! Every loss gives `[n]`; take the mean.
//!
//! | loss | formula | defaults | source |
//! |---|---|---|---|
//! | DPO | `-(1-e) log s(b h) - e log s(-b h)`, `h = (c - r) - (c_ref - r_ref)` | b 0.1, e 0 | arXiv 2305.18290 eq. 7; eric-mitchell/direct-preference-optimization `trainers.py` |
//! | IPO | `(h - 1/(2 b))^2` | b 0.1 | arXiv 2310.12036 eq. 17; the same file |
//! | SimPO | `-log s(b (c - r) - g)` | b 2.0, g 1.0 | arXiv 2405.14734 eq. 6; princeton-nlp/SimPO `simpo_trainer.py` |
//! | ORPO | `-c - l log s(lo)`, `lo = (c - r) - (log(1-e^c) - log(1-e^r))` | l 0.1 | arXiv 2403.07691 eq. 6-7; xfactlab/orpo `orpo_trainer.py` |
//! | pair BCE | `-y log s(d) - (1-y) log s(-d)`, `d = c - r` | | weak-to-strong, reward models |
//! | conflict | a loss, and `a` times the loss of the wrong side where the student says the wrong side | a 0.5 | arXiv 2406.11431; RUCBM/weak-to-strong-deception `weak_to_strong/train.py` |
//!
//! **Deviations.** ORPO's reference code counts prompt tokens in its likelihood term unless a flag is set; here
//! the likelihood is that of the response. A mean log-probability of 0 is clamped to -1e-7, where the log-odds
//! would be infinite.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{log_one_less_exp, softplus};
use crate::{Result, TrainingError};

/// A number for the chosen and one for the rejected response of each pair, `[n]` each.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// Of the chosen responses.
    pub chosen: Tensor,
    /// Of the rejected responses.
    pub rejected: Tensor,
}

impl Pairs {
    /// Chosen and rejected of one forward pass in which the first half of the rows are the chosen responses.
    ///
    /// # Errors
    /// An odd number of rows.
    pub fn halves(rows: &Tensor) -> Result<Self> {
        let count = rows.dims().first().copied().unwrap_or(0);
        if rows.rank() != 1 || count == 0 || count % 2 != 0 {
            let (got, want) = (rows.dims().to_vec(), "an even number of rows".into());
            return Err(TrainingError::Shape { name: "pairs".into(), got, want });
        }
        Ok(Self { chosen: rows.narrow(0, 0, count / 2)?, rejected: rows.narrow(0, count / 2, count / 2)? })
    }

    /// `chosen - rejected`.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn margin(&self) -> Result<Tensor> {
        Ok((&self.chosen - &self.rejected)?)
    }
}

fn above_zero(name: &'static str, value: f64) -> Result<()> {
    if !(value > 0.0 && value.is_finite()) {
        return Err(TrainingError::BadParameter { name, value, want: "above 0" });
    }
    Ok(())
}

/// Direct preference optimisation.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use pilotfish_training::losses::preference::{Dpo, Pairs};
/// let pairs = |chosen: f64, rejected: f64| -> candle_core::Result<Pairs> {
///     let one = |x| Tensor::new(&[x], &Device::Cpu);
///     Ok(Pairs { chosen: one(chosen)?, rejected: one(rejected)? })
/// };
/// let loss = Dpo::default().loss(&pairs(-12.0, -15.0)?, &pairs(-13.0, -14.0)?)?;
/// assert!((loss.to_vec1::<f64>()?[0] - 0.598_139).abs() < 1e-6);
/// # Ok::<(), pilotfish_training::TrainingError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dpo {
    /// Strength of the reference.
    pub beta: f64,
    /// Probability that a pair is the wrong way round, from 0 to below 1/2.
    pub label_smoothing: f64,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 0.1, label_smoothing: 0.0 }
    }
}

impl Dpo {
    /// Checks the settings.
    ///
    /// # Errors
    /// One outside its range.
    pub fn check(&self) -> Result<()> {
        above_zero("beta", self.beta)?;
        if !(0.0..0.5).contains(&self.label_smoothing) {
            let (value, want) = (self.label_smoothing, "from 0 to below 1/2");
            return Err(TrainingError::BadParameter { name: "label_smoothing", value, want });
        }
        Ok(())
    }

    /// The loss of each pair, from log-probabilities under the policy and under the reference.
    ///
    /// # Errors
    /// Settings outside their range; shapes that differ.
    pub fn loss(&self, policy: &Pairs, reference: &Pairs) -> Result<Tensor> {
        self.check()?;
        let h = policy.margin()?.sub(&reference.margin()?.detach())?;
        let right = softplus(&h.affine(-self.beta, 0.0)?)?;
        if self.label_smoothing == 0.0 {
            return Ok(right);
        }
        let wrong = softplus(&h.affine(self.beta, 0.0)?)?;
        let e = self.label_smoothing;
        Ok((right.affine(1.0 - e, 0.0)? + wrong.affine(e, 0.0)?)?)
    }

    /// The implicit rewards `beta (log p - log p_ref)`, for logging. A pair counts as right when the chosen
    /// reward is strictly larger.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn rewards(&self, policy: &Pairs, reference: &Pairs) -> Result<Pairs> {
        let reward = |policy: &Tensor, reference: &Tensor| -> Result<Tensor> {
            Ok((policy.detach() - reference.detach())?.affine(self.beta, 0.0)?)
        };
        Ok(Pairs {
            chosen: reward(&policy.chosen, &reference.chosen)?,
            rejected: reward(&policy.rejected, &reference.rejected)?,
        })
    }
}

/// Identity preference optimisation: `(h - 1/(2 beta))^2` of DPO's `h`.
///
/// # Errors
/// Beta that is not above 0; shapes that differ.
pub fn ipo(policy: &Pairs, reference: &Pairs, beta: f64) -> Result<Tensor> {
    above_zero("beta", beta)?;
    let h = policy.margin()?.sub(&reference.margin()?.detach())?;
    Ok(h.affine(1.0, -0.5 / beta)?.sqr()?)
}

/// Simple preference optimisation: no reference, mean log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimPo {
    /// Factor of the margin; 2 to 10.
    pub beta: f64,
    /// Margin that is wanted; the authors advise about half of beta.
    pub gamma: f64,
}

impl Default for SimPo {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 1.0 }
    }
}

impl SimPo {
    /// The loss of each pair, from mean log-probabilities.
    ///
    /// # Errors
    /// Settings outside their range; shapes that differ.
    pub fn loss(&self, means: &Pairs) -> Result<Tensor> {
        above_zero("beta", self.beta)?;
        if !(self.gamma >= 0.0 && self.gamma.is_finite()) {
            return Err(TrainingError::BadParameter { name: "gamma", value: self.gamma, want: "0 or more" });
        }
        softplus(&means.margin()?.affine(-self.beta, self.gamma)?)
    }
}

/// Odds-ratio preference optimisation: likelihood of the chosen response and a term that pulls the odds apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orpo {
    /// Factor of the odds-ratio term.
    pub lambda: f64,
}

impl Default for Orpo {
    fn default() -> Self {
        Self { lambda: 0.1 }
    }
}

/// Largest mean log-probability whose odds are computed.
const CERTAIN: f64 = -1e-7;

impl Orpo {
    /// The loss of each pair, from mean log-probabilities.
    ///
    /// # Errors
    /// Lambda that is negative or not a number; shapes that differ.
    pub fn loss(&self, means: &Pairs) -> Result<Tensor> {
        if !(self.lambda >= 0.0 && self.lambda.is_finite()) {
            return Err(TrainingError::BadParameter {
                name: "lambda",
                value: self.lambda,
                want: "0 or more",
            });
        }
        let odds = |mean: &Tensor| -> Result<Tensor> {
            let mean = mean.minimum(CERTAIN)?;
            Ok((&mean - log_one_less_exp(&mean)?)?)
        };
        let log_odds = (odds(&means.chosen)? - odds(&means.rejected)?)?;
        let term = softplus(&log_odds.neg()?)?;
        Ok((means.chosen.neg()? + term.affine(self.lambda, 0.0)?)?)
    }
}

/// Cross-entropy of a preference: rewards of both responses, and the probability `wanted` `[n]` that the first is
/// the better one.
///
/// # Errors
/// Shapes that differ.
pub fn pair_bce(rewards: &Pairs, wanted: &Tensor) -> Result<Tensor> {
    let d = rewards.margin()?;
    // -y log s(d) - (1 - y) log s(-d) = softplus(-d) + (1 - y) d
    Ok((softplus(&d.neg()?)? + wanted.detach().affine(-1.0, 1.0)?.mul(&d)?)?)
}

/// An explicit conflict: where a student already prefers the side that is truly worse, it is rewarded for that, with weight
/// `alpha`. `of_worse` `[n]` is the loss with the truly worse side as the winner; `margin` `[n]` is what the student thinks
/// of the first side over the second; `first_better` is the truth. Elsewhere the term is 0. Add it to the loss of the weak
/// labels; `alpha` 0 adds nothing.
///
/// # Errors
/// Alpha that is negative or not a number; shapes that differ.
pub fn conflict(of_worse: &Tensor, margin: &Tensor, first_better: &[bool], alpha: f64) -> Result<Tensor> {
    if !(alpha >= 0.0 && alpha.is_finite()) {
        return Err(TrainingError::BadParameter { name: "alpha", value: alpha, want: "0 or more" });
    }
    let margins = margin.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
    if margins.len() != first_better.len() {
        let (got, want) = (vec![first_better.len()], format!("{} truths", margins.len()));
        return Err(TrainingError::Shape { name: "first_better".into(), got, want });
    }
    // A margin of 0 says the first side, as in the reference code.
    let weights =
        margins.iter().zip(first_better).map(|(d, better)| if (*d >= 0.0) == *better { 0.0 } else { alpha });
    let weights = Tensor::from_vec(weights.collect::<Vec<f64>>(), margins.len(), margin.device())?;
    Ok(of_worse.mul(&weights.to_dtype(of_worse.dtype())?)?)
}

/// [`pair_bce`] with an explicit [`conflict`]: `alpha BCE(s(d), 1 - truth)` on the pairs that the student gets wrong.
///
/// # Errors
/// As [`conflict`].
pub fn conflicting_bce(
    rewards: &Pairs,
    wanted: &Tensor,
    first_better: &[bool],
    alpha: f64,
) -> Result<Tensor> {
    let loss = pair_bce(rewards, wanted)?;
    if alpha == 0.0 {
        return Ok(loss);
    }
    let wrong: Vec<f64> = first_better.iter().map(|better| f64::from(u8::from(!better))).collect();
    let wrong = Tensor::from_vec(wrong, first_better.len(), wanted.device())?.to_dtype(wanted.dtype())?;
    let of_worse = pair_bce(rewards, &wrong)?;
    Ok((loss + conflict(&of_worse, &rewards.margin()?, first_better, alpha)?)?)
}
