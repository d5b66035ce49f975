use pilotfish_model::sampling::Distribution;
use pilotfish_model::{StreamRng, Streams, Token};
use rand::Rng;

/// Where a verifier's decisions come from: random streams, or a test that explores every branch.
pub trait Choose: Send {
    /// A token of the distribution.
    fn choose(&mut self, distribution: &Distribution) -> Token;

    /// True with this probability. Anything not above 0 is false, anything at least 1 is true.
    fn accept(&mut self, probability: f64) -> bool;
}

impl Choose for StreamRng {
    fn choose(&mut self, distribution: &Distribution) -> Token {
        distribution.sample(self)
    }

    fn accept(&mut self, probability: f64) -> bool {
        self.random::<f64>() < probability
    }
}

/// Acceptance and replacement from streams of their own: neither shares noise with the other, nor with the
/// stream `draft` that drafters draw from.
#[derive(Clone, Debug)]
pub struct Dice {
    accept: StreamRng,
    resample: StreamRng,
}

impl Dice {
    /// The streams `accept` and `resample`.
    pub fn new(streams: Streams) -> Self {
        Self { accept: streams.stream("accept"), resample: streams.stream("resample") }
    }
}

impl Choose for Dice {
    fn choose(&mut self, distribution: &Distribution) -> Token {
        self.resample.choose(distribution)
    }

    fn accept(&mut self, probability: f64) -> bool {
        self.accept.accept(probability)
    }
}
