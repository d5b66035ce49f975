use serde::{Deserialize, Serialize};

use crate::step::check_ids;
use crate::{ModelError, Result, Skip, Tap, Token};

/// Something a method may need from a model, over and above appending a chain of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Rows with arbitrary parents.
    Tree,
    /// Vectors in place of token ids.
    Embeddings,
    /// The embedding table, the final norm and the head as separate calls.
    Head,
    /// Steps over a range of layers.
    Ranges,
    /// Steps that leave out attentions and MLPs.
    Skip,
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tree => "take a tree of rows in one step",
            Self::Embeddings => "take vectors in place of token ids",
            Self::Head => "run its embedding table, final norm or head separately",
            Self::Ranges => "run a range of its layers",
            Self::Skip => "leave out some of its attentions and MLPs",
        })
    }
}

/// What a model can do, as data: a method that needs more fails when it is constructed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Rows with arbitrary parents in one step.
    pub tree: bool,
    /// Vectors in place of ids.
    pub embeddings: bool,
    /// [`CausalModel::embed`](crate::CausalModel::embed), `final_norm` and `head`.
    pub head: bool,
    /// Taps that can be asked for.
    pub taps: Vec<Tap>,
    /// Layers after which the model is cut: a range may start or end there (0 and the last layer included).
    /// Empty when ranges are not supported.
    pub cuts: Vec<usize>,
    /// [`CausalModel::step_without`](crate::CausalModel::step_without).
    #[serde(default)]
    pub skip: bool,
    /// What to do to get what is missing, in words.
    pub hint: String,
}

impl Capabilities {
    /// Whether the capability is there.
    pub fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::Tree => self.tree,
            Capability::Embeddings => self.embeddings,
            Capability::Head => self.head,
            Capability::Ranges => !self.cuts.is_empty(),
            Capability::Skip => self.skip,
        }
    }
}

/// What is known about a model before it is run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Name for reports, such as `SmolLM2-135M-Instruct (f32, cpu)`.
    pub name: String,
    /// Vocabulary size: the number of logits in a row.
    pub vocab: usize,
    /// Width of the residual stream; 0 when the model has none (tables).
    pub width: usize,
    /// Number of layers; 0 when the model has none.
    pub layers: usize,
    /// Positions available.
    pub context: usize,
    /// Tokens that end a text.
    pub end: Vec<Token>,
    /// Bytes of weights that one step reads, head excluded.
    pub body_bytes: u64,
    /// Of these, the bytes of each layer's attention and of its MLP, norms included; empty when not known.
    #[serde(default)]
    pub sublayer_bytes: Vec<[u64; 2]>,
    /// Bytes of weights that the head reads when any row is wanted.
    pub head_bytes: u64,
    /// Multiply-adds of a row, head excluded and attention over the cache excluded.
    pub body_macs: u64,
    /// Multiply-adds of the head for a row.
    pub head_macs: u64,
    /// What it can do.
    pub capabilities: Capabilities,
}

impl ModelInfo {
    /// Fails, naming the export that helps, unless the model has the capability.
    pub fn require(&self, capability: Capability) -> Result<()> {
        if self.capabilities.has(capability) {
            return Ok(());
        }
        Err(ModelError::Unsupported { model: self.name.clone(), capability, hint: self.hint() })
    }

    /// Fails, naming the export that helps, unless the model exposes the tap.
    pub fn require_tap(&self, tap: Tap) -> Result<()> {
        if self.capabilities.taps.contains(&tap) {
            return Ok(());
        }
        Err(ModelError::NoSuchTap { model: self.name.clone(), tap, hint: self.hint() })
    }

    /// Whether a model that reads whole texts can read this one.
    ///
    /// # Errors
    /// An empty text, one longer than the context, a token outside the vocabulary.
    pub fn check_text(&self, text: &[Token]) -> Result<()> {
        if text.is_empty() {
            return Err(ModelError::EmptyStep);
        }
        if text.len() > self.context {
            return Err(ModelError::ContextFull { position: text.len() - 1, context: self.context });
        }
        check_ids(text, self.vocab)
    }

    /// Bytes of weights that one step reads which leaves out these sub-layers, head excluded.
    pub fn bytes_without(&self, skip: &Skip) -> u64 {
        let of = |layers: &[usize], which: usize| {
            let bytes = layers.iter().filter_map(|&layer| self.sublayer_bytes.get(layer));
            bytes.map(|bytes| bytes[which]).sum::<u64>()
        };
        self.body_bytes.saturating_sub(of(skip.attention(), 0) + of(skip.mlp(), 1))
    }

    fn hint(&self) -> String {
        match self.capabilities.hint.as_str() {
            "" => "no export of this model has it".into(),
            hint => hint.into(),
        }
    }
}
