use pilotfish_model::sampling::Sampler;
use pilotfish_model::{Token, sampling::Distribution};
use rand::Rng;

use crate::estimators::Likeliest;
use crate::{ConstrainedError, Mask, Pool, Result, Vocabulary};

/// Candidates of a block: the root of a vocabulary's size, near enough.
const BLOCK: usize = 128;

/// The next token's weights: a model's law in which all end tokens are one and tokens that cannot occur are gone.
#[derive(Clone, Debug, PartialEq)]
pub struct NextLaw {
    weights: Vec<f64>,
    blocks: Vec<f64>,
    len: usize,
}

impl NextLaw {
    /// From a row of logits and the text before it. The weight of the first end token is that of all; tokens without
    /// bytes have none. What is lost by that stays lost: the weights then sum to less than 1.
    ///
    /// # Errors
    /// Rows of another length; logits that are not finite.
    pub fn new(
        logits: &[f32],
        history: &[Token],
        sampler: &Sampler,
        vocabulary: &Vocabulary,
    ) -> Result<Self> {
        if logits.len() != vocabulary.len() {
            return Err(ConstrainedError::Vocabulary { got: vocabulary.len(), want: logits.len() });
        }
        Self::from_distribution(&sampler.distribution(logits, history)?, vocabulary)
    }

    /// From a whole distribution, as [`new`](Self::new).
    ///
    /// # Errors
    /// A distribution over another vocabulary.
    pub fn from_distribution(law: &Distribution, vocabulary: &Vocabulary) -> Result<Self> {
        if law.probs().len() != vocabulary.len() {
            return Err(ConstrainedError::Vocabulary { got: vocabulary.len(), want: law.probs().len() });
        }
        let mut weights = law.probs().to_vec();
        for (token, weight) in weights.iter_mut().enumerate() {
            if vocabulary.bytes(token as Token).is_none() {
                *weight = 0.0;
            }
        }
        let end = vocabulary.end()[0] as usize;
        weights[end] = vocabulary.end().iter().map(|&token| law.prob(token)).sum();
        Self::from_weights(weights)
    }

    /// From weights by token, at least 0. They need not sum to 1: weights of draws scale with them.
    ///
    /// # Errors
    /// Weights that are negative or not finite.
    pub fn from_weights(weights: Vec<f64>) -> Result<Self> {
        let bad = |weight: &&f64| !(**weight >= 0.0 && weight.is_finite());
        if let Some(&value) = weights.iter().find(bad) {
            return Err(ConstrainedError::BadParameter {
                name: "weight",
                value,
                want: "at least 0 and finite",
            });
        }
        let blocks = weights.chunks(BLOCK).map(|block| block.iter().sum()).collect();
        let len = weights.iter().filter(|weight| **weight > 0.0).count();
        Ok(Self { weights, blocks, len })
    }

    /// Weights by token.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The weight of a token; 0 outside the vocabulary.
    pub fn weight(&self, token: Token) -> f64 {
        self.weights.get(token as usize).copied().unwrap_or(0.0)
    }

    /// The sum of all weights.
    pub fn total(&self) -> f64 {
        self.blocks.iter().sum()
    }

    /// The same with weight only on the tokens of a mask.
    pub fn masked(&self, mask: &Mask) -> Self {
        let keep = |(token, &weight): (usize, &f64)| if mask.allows(token as Token) { weight } else { 0.0 };
        let weights: Vec<f64> = self.weights.iter().enumerate().map(keep).collect();
        let blocks = weights.chunks(BLOCK).map(|block| block.iter().sum()).collect();
        let len = weights.iter().filter(|weight| **weight > 0.0).count();
        Self { weights, blocks, len }
    }

    /// Candidates to be drawn.
    pub fn pool<'a, R: Rng>(&self, rng: &'a mut R) -> Weights<'a, R> {
        Weights { law: self.clone(), all: self.total(), removed: 0.0, rng }
    }
}

/// Candidates with floating-point weights. The mass that is left is always a sum of what is there, never a
/// difference, so it is right to the last bit however little it is.
pub struct Weights<'a, R> {
    law: NextLaw,
    all: f64,
    removed: f64,
    rng: &'a mut R,
}

impl<R: Rng> Pool for Weights<'_, R> {
    type Mass = f64;

    fn draw(&mut self) -> Option<Token> {
        let left = self.left();
        if !(left > 0.0) {
            return None;
        }
        let mut at = self.rng.random::<f64>() * left;
        let mut last = None;
        for (block, &mass) in self.law.blocks.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
            last = Some(block);
            if at < mass {
                break;
            }
            at -= mass;
        }
        let from = last? * BLOCK;
        let mut drawn = None;
        for (token, &weight) in self.law.weights.iter().enumerate().skip(from).take(BLOCK) {
            if weight > 0.0 {
                drawn = Some(token as Token);
                if at < weight {
                    break;
                }
                at -= weight;
            }
        }
        drawn
    }

    fn remove(&mut self, token: Token) {
        let Some(weight) = self.law.weights.get_mut(token as usize) else { return };
        if *weight > 0.0 {
            self.removed += *weight;
            *weight = 0.0;
            let block = token as usize / BLOCK;
            self.law.blocks[block] = self.law.weights[block * BLOCK..].iter().take(BLOCK).sum();
            self.law.len -= 1;
        }
    }

    fn left(&self) -> f64 {
        self.law.total()
    }

    fn all(&self) -> f64 {
        self.all
    }

    fn mass(&self, token: Token) -> f64 {
        self.law.weight(token)
    }

    fn len(&self) -> usize {
        self.law.len
    }

    fn phantoms(&mut self, most: f64) -> f64 {
        let left = self.left();
        // Nothing left: every further draw would be one of what has been taken out.
        if !(left > 0.0) {
            return if most.is_finite() { most } else { 0.0 };
        }
        // ln(1 - left / all), exact for small shares.
        let miss = (-(left / self.all)).max(-1.0).ln_1p();
        if self.removed <= 0.0 || miss == f64::NEG_INFINITY {
            return 0.0;
        }
        // `1 - u` is in (0, 1]; a share below the smallest double gives more than can be counted.
        let misses = ((1.0 - self.rng.random::<f64>()).ln() / miss).floor();
        if misses.is_nan() { 0.0 } else { misses.min(most).min(1e300) }
    }
}

impl<R: Rng> Likeliest for Weights<'_, R> {
    fn likeliest(&self) -> f64 {
        self.law.weights.iter().copied().fold(0.0, f64::max)
    }
}
