//! Warpers and distributions: from logits to the next token, the same way everywhere.
//!
//! The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p. A temperature of 0 puts
//! all probability on the largest logit (ties: the smaller id). Probabilities are f64 and cover the whole
//! vocabulary, so that verification rules can be checked exactly.
//!
//! ```
//! use pilotfish_model::sampling::Warpers;
//! let sampler = Warpers { temperature: 1.0, top_k: Some(2), ..Warpers::default() }.check()?;
//! // exp(0), exp(ln 3), exp(ln 1): the two largest are 3 and, of the equal ones, the smaller id.
//! let p = sampler.distribution(&[0.0, 3f32.ln(), 0.0], &[])?;
//! assert!((p.prob(1) - 0.75).abs() < 1e-7 && (p.prob(0) - 0.25).abs() < 1e-7 && p.prob(2) == 0.0);
//! # Ok::<(), pilotfish_model::ModelError>(())
//! ```

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{ModelError, Result, Token};

/// How logits are turned into a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Warpers {
    /// Logits are divided by this; 0 is greedy.
    pub temperature: f64,
    /// Only the `k` likeliest tokens stay; more than the vocabulary keeps all.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens stay whose probabilities first sum to this, in `(0, 1]`.
    pub top_p: Option<f64>,
    /// Only tokens stay that are at least this fraction as likely as the likeliest, in `[0, 1]`.
    pub min_p: Option<f64>,
    /// Logits of tokens that have occurred are divided by this if positive, multiplied if negative; 1 is none.
    pub repetition_penalty: f64,
}

impl Default for Warpers {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0 }
    }
}

/// The smallest temperature above 0: below it, quotients of ordinary logits overflow.
const COLDEST: f64 = 1e-4;

impl Warpers {
    /// Plain sampling at a temperature.
    pub fn temperature(temperature: f64) -> Self {
        Self { temperature, ..Self::default() }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// A temperature that is NaN, negative, infinite or between 0 and 1e-4; top-k of 0; top-p outside
    /// `(0, 1]`; min-p outside `[0, 1]`; a penalty that is not above 0.
    pub fn check(self) -> Result<Sampler> {
        let refuse = |name, value, want| Err(ModelError::BadParameter { name, value, want });
        let t = self.temperature;
        if t != 0.0 && !(t >= COLDEST && t.is_finite()) {
            return refuse("temperature", t, "0 (greedy), or at least 0.0001 and finite");
        }
        if self.top_k == Some(0) {
            return refuse("top-k", 0.0, "at least 1");
        }
        if let Some(p) = self.top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return refuse("top-p", p, "above 0 and at most 1");
        }
        if let Some(p) = self.min_p
            && !(0.0..=1.0).contains(&p)
        {
            return refuse("min-p", p, "from 0 to 1");
        }
        let penalty = self.repetition_penalty;
        if !(penalty > 0.0 && penalty.is_finite()) {
            return refuse("repetition penalty", penalty, "above 0 and finite");
        }
        Ok(Sampler { warpers: self })
    }
}

/// Checked [`Warpers`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    warpers: Warpers,
}

impl Sampler {
    /// Greedy decoding.
    pub fn greedy() -> Self {
        Self { warpers: Warpers::default() }
    }

    /// The numbers.
    pub fn warpers(&self) -> &Warpers {
        &self.warpers
    }

    /// Whether only the largest logit matters, so that an argmax is all a model has to give.
    pub fn is_greedy(&self) -> bool {
        self.warpers.temperature == 0.0 && self.warpers.repetition_penalty == 1.0
    }

    /// The distribution of the next token, given its logits and the tokens before it.
    ///
    /// # Errors
    /// Logits that are NaN or `+inf`, or all `-inf`; no logits.
    pub fn distribution(&self, logits: &[f32], history: &[Token]) -> Result<Distribution> {
        let w = &self.warpers;
        let bad = ModelError::NotFinite { what: "logits", row: 0 };
        if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
            return Err(bad);
        }
        let mut x: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        if w.repetition_penalty != 1.0 {
            let mut seen = vec![false; x.len()];
            for &token in history {
                let id = token as usize;
                if id < x.len() && !std::mem::replace(&mut seen[id], true) {
                    x[id] =
                        if x[id] > 0.0 { x[id] / w.repetition_penalty } else { x[id] * w.repetition_penalty };
                }
            }
        }
        let (best, max) = x.iter().enumerate().fold((0, f64::NEG_INFINITY), |best, (id, &value)| {
            if value > best.1 { (id, value) } else { best }
        });
        if max == f64::NEG_INFINITY {
            return Err(bad);
        }
        if w.temperature == 0.0 {
            let mut probs = vec![0.0; x.len()];
            probs[best] = 1.0;
            return Ok(Distribution { probs });
        }
        for value in &mut x {
            *value = ((*value - max) / w.temperature).exp();
        }
        // From here on `x` holds weights; the likeliest has 1.
        if let Some(k) = w.top_k
            && k < x.len()
        {
            let mut order: Vec<usize> = (0..x.len()).collect();
            order.select_nth_unstable_by(k, |&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
            order[k..].iter().for_each(|&id| x[id] = 0.0);
        }
        if let Some(p) = w.top_p
            && p < 1.0
        {
            nucleus(&mut x, p);
        }
        if let Some(p) = w.min_p {
            x.iter_mut().filter(|weight| **weight < p).for_each(|weight| *weight = 0.0);
        }
        Distribution::from_weights(x)
    }
}

/// Keeps the likeliest weights until they make up a share of at least `p`; the one that reaches it stays.
fn nucleus(weights: &mut [f64], p: f64) {
    let total: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..weights.len()).filter(|&id| weights[id] > 0.0).collect();
    // The head is sorted in growing pieces: a nucleus is nearly always small.
    let (mut sorted, mut kept, mut sum) = (0, 0, 0.0);
    while kept < order.len() && sum < p * total {
        if kept == sorted {
            let next = (2 * sorted).max(64).min(order.len());
            let by = |&a: &usize, &b: &usize| weights[b].total_cmp(&weights[a]).then(a.cmp(&b));
            if next < order.len() {
                order[sorted..].select_nth_unstable_by(next - sorted, by);
            }
            order[sorted..next].sort_unstable_by(by);
            sorted = next;
        }
        sum += weights[order[kept]];
        kept += 1;
    }
    order[kept..].iter().for_each(|&id| weights[id] = 0.0);
}

/// Probabilities over a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    probs: Vec<f64>,
}

impl Distribution {
    /// From weights, which are divided by their sum.
    ///
    /// # Errors
    /// Weights that are negative, not finite, or sum to 0.
    pub fn from_weights(mut weights: Vec<f64>) -> Result<Self> {
        let sum: f64 = weights.iter().sum();
        if !(sum > 0.0 && sum.is_finite()) || weights.iter().any(|&weight| !(weight >= 0.0)) {
            return Err(ModelError::NotFinite { what: "weights of a distribution", row: 0 });
        }
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Ok(Self { probs: weights })
    }

    /// All probability on one token.
    pub fn certain(token: Token, vocab: usize) -> Result<Self> {
        let mut probs = vec![0.0; vocab];
        match probs.get_mut(token as usize) {
            Some(prob) => *prob = 1.0,
            None => return Err(ModelError::TokenOutOfRange { row: 0, token, vocab }),
        }
        Ok(Self { probs })
    }

    /// Probabilities by token.
    pub fn probs(&self) -> &[f64] {
        &self.probs
    }

    /// The probability of a token; 0 outside the vocabulary.
    pub fn prob(&self, token: Token) -> f64 {
        self.probs.get(token as usize).copied().unwrap_or(0.0)
    }

    /// The likeliest token (ties: the smaller id).
    pub fn argmax(&self) -> Token {
        let best = self
            .probs
            .iter()
            .enumerate()
            .fold((0, -1.0), |best, (id, &prob)| if prob > best.1 { (id, prob) } else { best });
        best.0 as Token
    }

    /// A token drawn from it.
    pub fn sample(&self, rng: &mut impl Rng) -> Token {
        let mut left: f64 = rng.random();
        for (id, &prob) in self.probs.iter().enumerate() {
            left -= prob;
            if left < 0.0 {
                return id as Token;
            }
        }
        // Rounding left a crumb: the last token that is possible at all.
        self.probs.iter().rposition(|&prob| prob > 0.0).unwrap_or(0) as Token
    }

    /// `-sum(p log p)`, in nats.
    pub fn entropy(&self) -> f64 {
        -self.probs.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
    }

    /// Half the sum of absolute differences; acceptance of a draft is 1 less this.
    pub fn total_variation(&self, other: &Self) -> f64 {
        0.5 * self.probs.iter().zip(&other.probs).map(|(p, q)| (p - q).abs()).sum::<f64>()
    }

    /// `max(p - q, 0)`, normalised: what a rejected draft is replaced from. `p` itself where nothing is left by
    /// rounding.
    pub fn residual(&self, draft: &Self) -> Self {
        let left = self.probs.iter().zip(&draft.probs).map(|(p, q)| (p - q).max(0.0)).collect();
        Self::from_weights(left).unwrap_or_else(|_| self.clone())
    }

    /// The distribution given that a token is not drawn; `None` when no other token is possible.
    pub fn without(&self, token: Token) -> Option<Self> {
        let mut probs = self.probs.clone();
        if let Some(prob) = probs.get_mut(token as usize) {
            *prob = 0.0;
        }
        Self::from_weights(probs).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Streams;

    fn probs(warpers: Warpers, logits: &[f32], history: &[Token]) -> Vec<f64> {
        warpers.check().expect("valid").distribution(logits, history).expect("finite").probs
    }

    fn close(got: &[f64], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} is not {want:?}");
    }

    #[test]
    fn by_hand() {
        let logits = [4f32.ln(), 3f32.ln(), 2f32.ln(), 1f32.ln()];
        let hot = Warpers::temperature(1.0);
        close(&probs(hot, &logits, &[]), &[0.4, 0.3, 0.2, 0.1]);
        close(
            &probs(Warpers { temperature: 0.5, ..hot }, &logits, &[]),
            &[16.0 / 30.0, 9.0 / 30.0, 4.0 / 30.0, 1.0 / 30.0],
        );
        close(&probs(Warpers { top_k: Some(2), ..hot }, &logits, &[]), &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0]);
        // The token that reaches the sum stays.
        close(&probs(Warpers { top_p: Some(0.6), ..hot }, &logits, &[]), &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0]);
        close(
            &probs(Warpers { min_p: Some(0.49), ..hot }, &logits, &[]),
            &[4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0, 0.0],
        );
        // ln 4 / 2 = ln 2: the weight of a repeated token falls from 4 to 2, once however often it occurred.
        close(
            &probs(Warpers { repetition_penalty: 2.0, ..hot }, &logits, &[0, 0]),
            &[0.25, 0.375, 0.25, 0.125],
        );
        close(&probs(Warpers::default(), &[1.0, 2.0, 2.0], &[]), &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn refuses_numbers_out_of_range() {
        let good = Warpers::temperature(1.0);
        let bad = [
            Warpers { temperature: f64::NAN, ..good },
            Warpers { temperature: -1.0, ..good },
            Warpers { temperature: 1e-310, ..good },
            Warpers { temperature: f64::INFINITY, ..good },
            Warpers { top_k: Some(0), ..good },
            Warpers { top_p: Some(0.0), ..good },
            Warpers { top_p: Some(f64::NAN), ..good },
            Warpers { top_p: Some(1.1), ..good },
            Warpers { min_p: Some(-0.1), ..good },
            Warpers { repetition_penalty: 0.0, ..good },
            Warpers { repetition_penalty: f64::NAN, ..good },
        ];
        assert!(bad.into_iter().all(|warpers| warpers.check().is_err()));
        let sampler = good.check().expect("valid");
        for logits in [&[f32::NAN, 0.0][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2], &[]] {
            assert!(sampler.distribution(logits, &[]).is_err(), "{logits:?}");
        }
        assert!(sampler.distribution(&[f32::NEG_INFINITY, 0.0], &[99]).is_ok());
        assert_eq!(probs(Warpers { top_k: Some(9), ..good }, &[0.0, 0.0], &[]), [0.5, 0.5]);
    }

    #[test]
    fn residuals() {
        // Worked example A of the speculative notes: p = (.5, .3, .2), q = (.2, .5, .3).
        let p = Distribution::from_weights(vec![5.0, 3.0, 2.0]).expect("valid");
        let q = Distribution::from_weights(vec![2.0, 5.0, 3.0]).expect("valid");
        assert!((1.0 - p.total_variation(&q) - 0.7).abs() < 1e-12);
        assert_eq!(p.residual(&q).probs(), [1.0, 0.0, 0.0]);
        assert_eq!(p.residual(&p), p);
        close(p.without(0).expect("two are left").probs(), &[0.0, 0.6, 0.4]);
        assert!(Distribution::certain(1, 3).expect("valid").without(1).is_none());
    }

    #[test]
    fn samples_follow_the_law() {
        let p = Distribution::from_weights(vec![1.0, 0.0, 3.0, 4.0]).expect("valid");
        let mut rng = Streams::new(3).stream("test");
        let mut counts = [0.0f64; 4];
        let n = 80_000.0;
        (0..n as usize).for_each(|_| counts[p.sample(&mut rng) as usize] += 1.0);
        assert_eq!(counts[1], 0.0);
        let chi2: f64 =
            [0, 2, 3].iter().map(|&i| (counts[i] - n * p.probs[i]).powi(2) / (n * p.probs[i])).sum();
        // Two degrees of freedom, p = 0.001.
        assert!(chi2 < 13.8, "{chi2}");
    }

    proptest! {
        #[test]
        fn laws(logits in proptest::collection::vec(-20f32..20.0, 1..300), t in 0.1f64..3.0, k in 1usize..400, p in 0.01f64..1.0) {
            let plain = probs(Warpers::temperature(t), &logits, &[]);
            prop_assert!((plain.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let top = probs(Warpers { top_k: Some(k), ..Warpers::temperature(t) }, &logits, &[]);
            prop_assert_eq!(top.iter().filter(|&&p| p > 0.0).count(), k.min(logits.len()));
            let inside = probs(Warpers { top_p: Some(p), ..Warpers::temperature(t) }, &logits, &[]);
            let kept: Vec<usize> = (0..logits.len()).filter(|&i| inside[i] > 0.0).collect();
            let mass: f64 = kept.iter().map(|&i| plain[i]).sum();
            let least = kept.iter().map(|&i| plain[i]).fold(1.0, f64::min);
            // The nucleus reaches p, and would not without its least likely member.
            prop_assert!(mass >= p - 1e-9 && mass - least < p + 1e-9);
            // What is kept keeps its proportions.
            prop_assert!(kept.iter().all(|&i| (inside[i] * mass - plain[i]).abs() < 1e-9));
        }
    }
}
