//! Which instructions to use.

use std::sync::OnceLock;

/// A set of instructions that this processor has. Values exist only for sets that were detected, which is what
/// makes calling their kernels sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Isa(pub(crate) Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Names a set to use instead of the best one: `scalar`, `avx2`, `avx512`. One that is not there is ignored.
pub const ISA_VARIABLE: &str = "PILOTFISH_ISA";

impl Isa {
    /// Plain Rust. On `aarch64` the compiler turns its loops into NEON, where fused multiply-add is part of the
    /// base architecture.
    pub const SCALAR: Self = Self(Level::Scalar);

    /// The sets there are, from the plainest to the widest.
    pub fn available() -> &'static [Self] {
        static FOUND: OnceLock<Vec<Isa>> = OnceLock::new();
        FOUND.get_or_init(|| {
            #[allow(unused_mut)] // on other processors
            let mut found = vec![Self::SCALAR];
            #[cfg(target_arch = "x86_64")]
            {
                let has_avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                if has_avx2 {
                    found.push(Self(Level::Avx2));
                    let has_avx512 = is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vnni");
                    if has_avx512 {
                        found.push(Self(Level::Avx512));
                    }
                }
            }
            found
        })
    }

    /// The widest set, or the one that [`ISA_VARIABLE`] names.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let named = std::env::var(ISA_VARIABLE).ok().and_then(|name| Self::named(&name));
            named.or(Self::available().last().copied()).unwrap_or(Self::SCALAR)
        })
    }

    /// The set of a name, if it is there.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().iter().copied().find(|isa| isa.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }
}
