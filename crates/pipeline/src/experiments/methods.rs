//! Methods of speculative decoding by name, as experiments make them.

use pilotfish_architectures::Checkpoint;
use pilotfish_decoding::drafters::{
    Aded, AdedDrafter, DraftModel, DySpec, DySpecConfig, Pick, PromptLookup, Recycling, Rsd, Shape, Suffix,
    SuffixLookup, TokenRecycling, TrigramConfig, Trigrams,
};
use pilotfish_decoding::{CostAware, CostAwareConfig, Drafter, Nothing, Policy, WidthCurve};
use pilotfish_graph::Storage;
use pilotfish_model::{CausalModel, Streams};
use pilotfish_runtime::{LoadOptions, OnnxCausal};

use crate::error::Failure;

/// What methods are made from.
pub(super) struct Ground<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) load: &'a LoadOptions,
    pub(super) vocab: usize,
    pub(super) streams: Streams,
}

impl Ground<'_> {
    /// A copy of the target with matrices of four bits, to draft for it.
    fn quantised(&self) -> Result<DraftModel, Failure> {
        let load = self.load.clone().storage(Storage::Int4 { block: 32 });
        let model: Box<dyn CausalModel> = Box::new(OnnxCausal::from_checkpoint(self.checkpoint, &load)?);
        Ok(DraftModel::new(model))
    }
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
        make: |ground| Ok(Box::new(TokenRecycling::new(ground.vocab, Recycling::default())?)),
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
}

/// A method by its name; `+policy` after it limits it by what pays on this machine.
pub(super) fn make(name: &str, ground: &Ground<'_>, curve: &WidthCurve) -> Result<Made, Failure> {
    let (method, limited) = find(name)?;
    let policy: Option<Box<dyn Policy>> = match limited {
        true => Some(Box::new(CostAware::new(curve.clone(), CostAwareConfig::default())?)),
        false => None,
    };
    Ok(Made { name: name.into(), about: method.about, drafter: (method.make)(ground)?, policy })
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
