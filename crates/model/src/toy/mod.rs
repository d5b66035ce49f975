//! Exactly enumerable models: every probability is known, so laws can be checked to rounding.

mod copy;
mod layered;
mod linear;
mod masked;
mod table;

pub use copy::{BagEncoder, CopyModel, CountingModel};
pub use layered::LayeredModel;
pub use linear::LinearModel;
pub use masked::TabularMasked;
pub use table::TableModel;

use crate::{Forest, Logits, ModelInfo, Result, Step, StepOutput, Token};

/// What the toy causal models share: a cache of tokens, and logits as a function of a row's own path.
#[derive(Clone, Debug)]
struct Tape {
    info: ModelInfo,
    forest: Forest,
    tokens: Vec<Token>,
    calls: usize,
}

impl Tape {
    fn new(name: String, vocab: usize, context: usize, end: Vec<Token>) -> Self {
        let capabilities = crate::Capabilities {
            tree: true,
            hint: "a table has no embeddings, layers or head".into(),
            ..crate::Capabilities::default()
        };
        let info = ModelInfo { name, vocab, context, end, capabilities, ..ModelInfo::default() };
        Self { info, forest: Forest::new(), tokens: Vec::new(), calls: 0 }
    }

    fn step(&mut self, step: &Step<'_>, row: impl Fn(&[Token]) -> Vec<f32>) -> Result<StepOutput> {
        step.check(&self.info)?;
        let crate::Input::Ids(ids) = step.input else {
            self.info.require(crate::Capability::Embeddings)?;
            return Err(crate::ModelError::EmptyStep);
        };
        let before = self.forest.len();
        self.forest.append(ids.len(), step.parents, self.info.context)?;
        self.tokens.extend_from_slice(ids);
        self.calls += 1;
        let mut full = Vec::new();
        for wanted in step.wanted() {
            let path: Vec<Token> =
                self.forest.path(before + wanted).iter().map(|&row| self.tokens[row]).collect();
            full.extend(row(&path));
        }
        let logits = Logits::from_rows(full, self.info.vocab, step.form)?;
        Ok(StepOutput { logits, taps: Vec::new() })
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> Result<()> {
        self.forest.keep(from, rows)?;
        let kept: Vec<Token> = rows.iter().map(|&row| self.tokens[row]).collect();
        self.tokens.truncate(from);
        self.tokens.extend(kept);
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.forest.truncate(len)?;
        self.tokens.truncate(len);
        Ok(())
    }
}

/// Implements the traits of a model that keeps a [`Tape`] and has a method `row`.
macro_rules! causal_by_tape {
    ($model:ty) => {
        impl crate::Steps for $model {
            fn len(&self) -> usize {
                self.tape.forest.len()
            }

            fn step(&mut self, step: &crate::Step<'_>) -> crate::Result<crate::StepOutput> {
                let Self { tape, law, .. } = self;
                tape.step(step, |path| law.logits(path))
            }

            fn keep(&mut self, from: usize, rows: &[usize]) -> crate::Result<()> {
                self.tape.keep(from, rows)
            }

            fn truncate(&mut self, len: usize) -> crate::Result<()> {
                self.tape.truncate(len)
            }
        }

        impl crate::CausalModel for $model {
            fn info(&self) -> &crate::ModelInfo {
                &self.tape.info
            }
        }
    };
}
use causal_by_tape;
