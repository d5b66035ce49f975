use rand::SeedableRng;

/// The generator behind every stream: ChaCha8, portable and stable across versions.
pub type StreamRng = rand_chacha::ChaCha8Rng;

/// Independent, reproducible random streams from one seed.
///
/// Draft, accept and resample must not share noise; each asks for its own stream by name.
///
/// ```
/// use pilotfish_model::Streams;
/// use rand::Rng;
/// let streams = Streams::new(7);
/// let (a, b): (u64, u64) = (streams.stream("draft").random(), streams.stream("accept").random());
/// assert_ne!(a, b);
/// assert_eq!(a, Streams::new(7).stream("draft").random::<u64>());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// Streams of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream of a name, from its beginning.
    pub fn stream(&self, name: &str) -> StreamRng {
        let mut rng = StreamRng::seed_from_u64(self.seed);
        rng.set_stream(fnv1a(name.as_bytes()));
        rng
    }

    /// Streams for one item of many (a prompt, a particle), independent of its siblings.
    pub fn fork(&self, index: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
        bytes[8..].copy_from_slice(&index.to_le_bytes());
        Self { seed: fnv1a(&bytes) }
    }
}

/// FNV-1a, 64 bits: names to stream numbers.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
