//! What a forward pass says about positions: a token for each, and how sure the model is of it.

use pilotfish_model::{Streams, Token};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{DiffusionError, Result};

/// How sure a model is of a position. Larger is surer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Probability of the token chosen, under the model's logits without temperature (LLaDA's `low_confidence`).
    #[default]
    Probability,
    /// Probability of the likeliest token less that of the second (Dream's `topk_margin`).
    Margin,
    /// `sum p ln(p + 1e-10)`: negative entropy (Dream's `entropy`).
    Entropy,
    /// Noise: a random order.
    Chance,
    /// Minus the position: from left to right.
    LeftToRight,
}

/// Where the noise of temperature sampling comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// Fresh noise for each position at every step, as the reference implementations do.
    #[default]
    Step,
    /// One noise vector for each position, the same at every step. A position's prediction then changes only when
    /// its law does, which lets FreeDave's drafts come true above temperature 0. For an order that does not look at
    /// predictions the law of the text is the same; for one that does, positions are not drawn again and again
    /// until a likely token comes up.
    Position,
}

/// A position and what a forward pass says about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Position in the text.
    pub position: usize,
    /// Token chosen: the likeliest, or a draw.
    pub token: Token,
    /// Its probability without temperature.
    pub confidence: f64,
    /// The policy's [`Score`].
    pub score: f64,
}

/// How predictions are read off logits.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    /// Tokens that are never chosen: the mask, and what is suppressed.
    pub(crate) banned: &'a [Token],
    pub(crate) temperature: f64,
    pub(crate) noise: Noise,
    pub(crate) score: Score,
    /// Streams of this step.
    pub(crate) step: Streams,
    /// Streams of the whole text.
    pub(crate) text: Streams,
}

impl Reader<'_> {
    /// Reads one row of logits, which is overwritten.
    pub(crate) fn read(&self, position: usize, row: &mut [f64]) -> Result<Prediction> {
        for &token in self.banned {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit = f64::NEG_INFINITY;
            }
        }
        if row.iter().any(|x| x.is_nan() || *x == f64::INFINITY) {
            return Err(DiffusionError::NoToken { position });
        }
        let (best, max) = argmax(row.iter().copied());
        if max == f64::NEG_INFINITY {
            return Err(DiffusionError::NoToken { position });
        }
        let token = if self.temperature > 0.0 {
            let streams = match self.noise {
                Noise::Step => self.step,
                Noise::Position => self.text,
            };
            let mut rng = streams.fork(position as u64).stream("gumbel");
            // In log space: exp(l) / (-ln u)^T overflows where l + T g does not.
            argmax(row.iter().map(|logit| logit + self.temperature * gumbel(&mut rng))).0
        } else {
            best
        };
        let chosen = row[token];
        let (mut sum, mut second) = (0.0, f64::NEG_INFINITY);
        for (id, logit) in row.iter().enumerate() {
            sum += (logit - max).exp();
            if id != best {
                second = second.max(*logit);
            }
        }
        let confidence = (chosen - max).exp() / sum;
        let score = match self.score {
            Score::Probability => confidence,
            Score::Margin => (1.0 - (second - max).exp()) / sum,
            Score::Entropy => row
                .iter()
                .map(|logit| {
                    let p = (logit - max).exp() / sum;
                    p * (p + 1e-10).ln()
                })
                .sum(),
            Score::Chance => self.step.fork(position as u64).stream("order").random(),
            Score::LeftToRight => -(position as f64),
        };
        Ok(Prediction { position, token: token as Token, confidence, score })
    }
}

/// The largest of some numbers and its index, the first of equals.
fn argmax(values: impl Iterator<Item = f64>) -> (usize, f64) {
    values
        .enumerate()
        .fold((0, f64::NEG_INFINITY), |best, (id, value)| if value > best.1 { (id, value) } else { best })
}

/// A draw from the standard Gumbel distribution.
pub(crate) fn gumbel(rng: &mut impl Rng) -> f64 {
    // Uniform on (0, 1): neither end is taken.
    let u = (rng.random::<u64>() >> 12) as f64 + 0.5;
    -(-(u / (1u64 << 52) as f64).ln()).ln()
}

/// The order of predictions from the surest on; equals from left to right.
pub(crate) fn surest_first(predictions: &[Prediction], score: impl Fn(&Prediction) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..predictions.len()).collect();
    order.sort_by(|&a, &b| score(&predictions[b]).total_cmp(&score(&predictions[a])).then(a.cmp(&b)));
    order
}

/// The position of the surest prediction, the leftmost of equals.
pub(crate) fn surest(predictions: &[Prediction], score: impl Fn(&Prediction) -> f64) -> Option<usize> {
    let mut best: Option<&Prediction> = None;
    for prediction in predictions {
        if best.is_none_or(|best| score(prediction) > score(best)) {
            best = Some(prediction);
        }
    }
    best.map(|best| best.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(temperature: f64, score: Score, seed: u64) -> Reader<'static> {
        let streams = Streams::new(seed);
        Reader { banned: &[], temperature, noise: Noise::Step, score, step: streams, text: streams }
    }

    #[test]
    fn gumbel_sampling_follows_the_softmax() {
        let logits = [0.3, -1.0, 1.2, 0.0, 0.9];
        for temperature in [0.5, 1.0, 2.0] {
            let weights = logits.map(|logit: f64| (logit / temperature).exp());
            let total: f64 = weights.iter().sum();
            let plain: f64 = logits.iter().map(|logit| logit.exp()).sum();
            let n = 20_000;
            let mut counts = [0.0f64; 5];
            for seed in 0..n {
                let got = reader(temperature, Score::Probability, seed)
                    .read(3, &mut logits.clone())
                    .expect("finite");
                counts[got.token as usize] += 1.0;
                // Confidence knows no temperature.
                assert!((got.confidence - logits[got.token as usize].exp() / plain).abs() < 1e-12);
            }
            let chi2: f64 = (0..5)
                .map(|id| {
                    let want = n as f64 * weights[id] / total;
                    (counts[id] - want).powi(2) / want
                })
                .sum();
            // Four degrees of freedom, p = 0.001.
            assert!(chi2 < 18.5, "T = {temperature}: {chi2}");
        }
        let cold = reader(0.0, Score::Probability, 1).read(0, &mut logits.clone()).expect("finite");
        assert_eq!(cold.token, 2);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let mut row = [1e300, -1e300, 1e300];
        let got = reader(1.0, Score::Entropy, 1).read(0, &mut row).expect("finite");
        assert!(got.token != 1 && (got.confidence - 0.5).abs() < 1e-12 && got.score.is_finite());
    }

    #[test]
    fn scores_by_hand() {
        let logits = [0.5f64, 0.3, 0.2].map(f64::ln);
        let score = |score| reader(0.0, score, 1).read(4, &mut logits.clone()).expect("finite").score;
        assert!((score(Score::Probability) - 0.5).abs() < 1e-12);
        assert!((score(Score::Margin) - 0.2).abs() < 1e-12);
        let entropy: f64 = [0.5f64, 0.3, 0.2].map(|p| p * p.ln()).iter().sum();
        assert!((score(Score::Entropy) - entropy).abs() < 1e-9);
        assert_eq!(score(Score::LeftToRight), -4.0);
        // logits [2, 1, 0]: the top has 0.66524, whatever is added to all.
        for shift in [0.0, 1000.0] {
            let mut row = [2.0 + shift, 1.0 + shift, shift];
            let got = reader(0.0, Score::Probability, 1).read(0, &mut row).expect("finite");
            assert!((got.confidence - 0.66524).abs() < 1e-5);
        }
    }

    #[test]
    fn a_lone_token_has_margin_one() {
        let banned = [1];
        let streams = Streams::new(1);
        let reader = Reader {
            banned: &banned,
            temperature: 1.0,
            noise: Noise::Step,
            score: Score::Margin,
            step: streams,
            text: streams,
        };
        let got = reader.read(0, &mut [-3.0, 9.0]).expect("one is left");
        assert_eq!((got.token, got.confidence, got.score), (0, 1.0, 1.0));
        assert!(reader.read(0, &mut [f64::NEG_INFINITY, 9.0]).is_err());
        assert!(reader.read(0, &mut [f64::NAN, 9.0]).is_err());
        assert!(reader.read(0, &mut [f64::INFINITY, 9.0]).is_err());
    }
}
