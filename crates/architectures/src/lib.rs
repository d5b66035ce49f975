//! Networks written once as graphs, and what a checkpoint needs around them.
//!
//! [`Checkpoint::open`] reads a Hugging Face folder or a GGUF file and says what is in it: a
//! [`CausalNetwork`] (Llama family, Gemma 3), a [`Bidirectional`] one (LLaDA, Dream) or an [`EncoderNetwork`] (BERT), a
//! [`Tokenizer`], a [`ChatTemplate`]. A network appends its layers to a [`Graph`](pilotfish_graph::Graph); how they are run is
//! another crate's matter.
//!
//! The embedding table and the head stay apart from the body, so that logits are computed only for the rows
//! that need them and a tied matrix is stored once.
#![forbid(unsafe_code)]

mod bert;
mod causal;
mod chat;
mod checkpoint;
mod error;
mod masked;
mod tokenizer;

pub use bert::{Bert, BertConfig, EncoderNetwork, SentencePooling};
pub use causal::{
    Activation, BodyOptions, CausalConfig, CausalNetwork, EmbeddingTable, LayerInputs, NormPlacement,
};
pub use chat::{ChatTemplate, Message};
pub use checkpoint::{Checkpoint, Network};
pub use error::{ArchitectureError, Result};
pub use masked::{Bidirectional, MaskedNetwork, MaskedShape, SmallMasked, SmallMaskedConfig};
pub use tokenizer::{StreamDecoder, Tokenizer};
