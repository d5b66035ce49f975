//! Methods of speculative decoding by name, as experiments make them.

use pilotfish_architectures::Checkpoint;
use pilotfish_decoding::drafters::{
    Aded, AdedDrafter, ChainDrafter, DraftModel, DySpec, DySpecConfig, LayerSearch, LayerSearchConfig, Pick,
    PromptLookup, Recycling, Rsd, Shape, Stop, Stopping, Suffix, SuffixLookup, Swift, SwiftConfig,
    TokenRecycling, TrigramConfig, Trigrams,
};
use pilotfish_decoding::{CostAware, CostAwareConfig, DecodingError, Drafter, Nothing, Policy, WidthCurve};
use pilotfish_graph::{Kept, Storage};
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::{Capability, ModelError, ModelInfo, Step, Steps, Streams, Token};
use pilotfish_runtime::home::Home;
use pilotfish_runtime::{LoadOptions, OnnxCausal, Products};

use crate::error::Failure;
use crate::sparse::{Sparsify, sparsify};

/// What methods are made from.
pub(super) struct Ground<'a> {
    pub(super) home: &'a Home,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) load: &'a LoadOptions,
    /// The target.
    pub(super) info: &'a ModelInfo,
    pub(super) sampler: Sampler,
    pub(super) streams: Streams,
}

/// Tokens that a reduced head knows.
const FREQUENT: Token = 8192;

/// The pattern of the sparse copy.
const PATTERN: Storage = Storage::Sparse { keep: 2, group: 4, kept: Kept::F32 };

impl Ground<'_> {
    /// A copy of the target with matrices of four bits, to draft for it.
    fn quantised(&self) -> Result<DraftModel, Failure> {
        draft(self.checkpoint, &self.four_bits())
    }

    /// The same with a head for a sixth of SmolLM2's vocabulary: byte-pair encodings number their tokens by how early
    /// they were merged, so the first are the frequent ones.
    fn quantised_for_frequent_tokens(&self) -> Result<DraftModel, Failure> {
        let tokens = 0..FREQUENT.min(self.info.vocab as Token);
        draft(self.checkpoint, &self.four_bits().vocabulary(tokens))
    }

    fn four_bits(&self) -> LoadOptions {
        self.load.clone().storage(Storage::Int4 { block: 32 })
    }

    /// A copy of the target of whose weights two of four are left, as `cargo xtask sparsify --method sparsegpt` makes it.
    /// It is made the first time and kept beside the models.
    fn sparse(&self) -> Result<DraftModel, Failure> {
        let model = self.checkpoint.path().canonicalize()?;
        let name = model.display().to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let folder = self.home.root().join("sparse");
        std::fs::create_dir_all(&folder)?;
        let out = folder.join(format!("{}-sparsegpt-2-4", name.trim_matches('-')));
        if !out.is_dir() {
            let config = Sparsify {
                model,
                method: "sparsegpt".into(),
                pattern: "2:4".into(),
                layers: Vec::new(),
                calib: None,
                sequences: 32,
                length: 512,
                seed: 0,
                threads: self.load.session.threads,
                out: out.clone(),
            };
            sparsify(&config, &mut |_, _, _| {})?;
        }
        // Only our kernels have products of sparse matrices.
        let load = self.load.clone().storage(PATTERN).products(Products::Pilotfish);
        draft(&Checkpoint::open(&out)?, &load)
    }

    /// A chain of a draft model that stops when it is no longer sure of itself. Greedily, it is as sure as its plain
    /// law says.
    fn chain(&self, model: DraftModel) -> Result<Box<dyn Drafter>, Failure> {
        let stopping = Stopping { rule: Stop::Confidence(0.4), min: 1, max: 8 };
        let (model, pick) = match self.sampler.is_greedy() {
            true => (model.with_sampler(Warpers::temperature(1.0).check()?), Pick::Largest),
            false => (model, Pick::sampled(self.streams)),
        };
        Ok(Box::new(ChainDrafter::new(model, stopping, pick)?))
    }

    /// SWIFT with the share of sub-layers that a small model survives.
    fn swift(&self, config: SwiftConfig) -> Result<Box<dyn Drafter>, Failure> {
        let search = LayerSearchConfig { ratio: 0.2, ..LayerSearchConfig::default() };
        let pick = match self.sampler.is_greedy() {
            true => Pick::Largest,
            false => Pick::sampled(self.streams),
        };
        Ok(Box::new(Swift::new(LayerSearch::new(self.info.layers, search)?, config, pick)?))
    }
}

/// A draft model, ready to be timed.
fn draft(checkpoint: &Checkpoint, load: &LoadOptions) -> Result<DraftModel, Failure> {
    Ok(DraftModel::new(Box::new(warm(OnnxCausal::from_checkpoint(checkpoint, load)?)?)))
}

/// A model that has made its first step, in which weights are read from disk.
fn warm(mut model: OnnxCausal) -> Result<OnnxCausal, Failure> {
    model.step(&Step::chain(&[0]))?;
    model.truncate(0)?;
    Ok(model)
}

/// A drafter by name.
pub(super) struct Method {
    pub(super) name: &'static str,
    /// One line about it, with its numbers.
    pub(super) about: &'static str,
    make: fn(&Ground<'_>) -> Result<Box<dyn Drafter>, Failure>,
}

/// Every method. To add one, add a line.
pub(super) const ALL: &[Method] = &[
    Method { name: "plain", about: "proposes nothing", make: |_| Ok(Box::new(Nothing)) },
    Method {
        name: "lookup",
        about: "prompt look-up, 1 to 3 grams, 10 tokens",
        make: |_| Ok(Box::new(PromptLookup::default())),
    },
    Method {
        name: "suffix",
        about: "longest suffix of any text so far, by a suffix automaton",
        make: |_| Ok(Box::new(SuffixLookup::new(Suffix::default())?)),
    },
    Method {
        name: "token-recycling",
        about: "rejected candidates, the paper's tree of 80 nodes",
        make: |ground| Ok(Box::new(TokenRecycling::new(ground.info.vocab, Recycling::default())?)),
    },
    Method {
        name: "aded",
        about: "a table of tri-grams that learns, searched by MCTS",
        make: |_| Ok(Box::new(AdedDrafter::new(Trigrams::new(TrigramConfig::default())?, Aded::default())?)),
    },
    Method {
        name: "quantised",
        about: "a chain of 4 from a copy of the target in four bits",
        make: |ground| {
            Ok(Box::new(Rsd::new(ground.quantised()?, Shape::Constant(vec![1; 4]), ground.streams)?))
        },
    },
    Method {
        name: "draft-model",
        about: "a chain of at most 8, while it is sure, from a copy of the target in four bits",
        make: |ground| ground.chain(ground.quantised()?),
    },
    Method {
        name: "draft-frequent",
        about: "as draft-model, with a head for the 8,192 tokens that its tokeniser merges first",
        make: |ground| ground.chain(ground.quantised_for_frequent_tokens()?),
    },
    Method {
        name: "draft-sparse",
        about: "as draft-model, from a copy of which two weights of four are left (SparseGPT), made the first time",
        make: |ground| ground.chain(ground.sparse()?),
    },
    Method {
        name: "swift",
        about: "the target without a fifth of its sub-layers, which are searched for, and the paper's trees",
        make: |ground| ground.swift(SwiftConfig::default()),
    },
    Method {
        name: "swift-chain",
        about: "the same without siblings",
        make: |ground| {
            ground.swift(SwiftConfig { greedy: [1; 4], sampled: [1; 4], ..SwiftConfig::default() })
        },
    },
    Method {
        name: "dyspec",
        about: "a greedy tree from a copy of the target in four bits",
        make: |ground| {
            let pick = Pick::sampled(ground.streams);
            Ok(Box::new(DySpec::new(ground.quantised()?, DySpecConfig::default(), pick)?))
        },
    },
    Method {
        name: "rsd-c",
        about: "2 x 2 x 2 children without replacement, a copy in four bits",
        make: |ground| Ok(Box::new(Rsd::new(ground.quantised()?, Shape::default(), ground.streams)?)),
    },
    Method {
        name: "rsd-s",
        about: "a stochastic beam of 3 x 3, a copy in four bits",
        make: |ground| {
            Ok(Box::new(Rsd::new(ground.quantised()?, Shape::Beam { width: 3, depth: 3 }, ground.streams)?))
        },
    },
];

/// A method with a policy, if it is to have one.
pub(super) struct Made {
    pub(super) name: String,
    pub(super) about: &'static str,
    pub(super) drafter: Box<dyn Drafter>,
    pub(super) policy: Option<Box<dyn Policy>>,
    /// A target of its own, where the method needs what costs others something: steps that leave out sub-layers.
    pub(super) target: Option<OnnxCausal>,
}

/// A method by its name; `+policy` after it limits it by what pays on this machine.
pub(super) fn make(name: &str, ground: &Ground<'_>, curve: &WidthCurve) -> Result<Made, Failure> {
    let (method, limited) = find(name)?;
    let policy: Option<Box<dyn Policy>> = match limited {
        true => Some(Box::new(CostAware::new(curve.clone(), CostAwareConfig::default())?)),
        false => None,
    };
    let drafter = (method.make)(ground)?;
    let lacks = |error| {
        matches!(error, DecodingError::Model(ModelError::Unsupported { capability: Capability::Skip, .. }))
    };
    let target = match drafter.fits(ground.info).is_err_and(lacks) {
        true => Some(warm(OnnxCausal::from_checkpoint(ground.checkpoint, &ground.load.clone().skip(true))?)?),
        false => None,
    };
    Ok(Made { name: name.into(), about: method.about, drafter, policy, target })
}

/// The method of a name, and whether it has a policy.
pub(super) fn find(name: &str) -> Result<(&'static Method, bool), Failure> {
    let (base, limited) = match name.strip_suffix("+policy") {
        Some(base) => (base, true),
        None => (name, false),
    };
    let known = || ALL.iter().map(|method| method.name);
    let method = ALL.iter().find(|method| method.name == base).ok_or_else(|| {
        let near = crate::near(base, known()).map(|near| format!(" (did you mean {near}?)"));
        let known: Vec<_> = known().collect();
        format!(
            "no method called {base:?}{}; there are: {}, each also with +policy",
            near.unwrap_or_default(),
            known.join(", ")
        )
    })?;
    Ok((method, limited))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_wrong_ones_help() {
        let mut names = std::collections::HashSet::new();
        assert!(ALL.iter().all(|method| names.insert(method.name)));
        assert!(matches!(find("lookup+policy"), Ok((Method { name: "lookup", .. }, true))));
        let error = find("lokup").err().unwrap().to_string();
        assert!(error.contains("did you mean lookup?") && error.contains("+policy"), "{error}");
    }
}
