//! Verifiers: what is kept of a draft. One walk from the root, one rule at each node, over an abstract source of
//! decisions, so that the law of what comes out can be enumerated.
//!
//! | verifier | drafts it is exact for | at a node |
//! |---|---|---|
//! | [`GreedyTree`] | all | descend to the child that is the argmax |
//! | [`SampleAndMatch`] | all | draw from the target; descend if it was proposed |
//! | [`SpeculativeChain`] | sampled, at most one child a node | [`rules::chain`] |
//! | [`MultiStep`] | sampled with replacement | [`rules::multi_step`] |
//! | [`Recursive`] | sampled without replacement | [`rules::recursive`] |
//! | [`Typical`] | none: lossy | descend where the target finds the token typical |

mod choose;
mod greedy;
pub mod rules;
mod sampled;
mod typical;

use pilotfish_model::sampling::{Distribution, Sampler};
use pilotfish_model::{LogitForm, Logits, ModelError, Streams, Token};

pub use choose::{Choose, Dice};
pub use greedy::GreedyTree;
pub use sampled::{MultiStep, Recursive, SampleAndMatch, SpeculativeChain};
pub use typical::{Typical, TypicalConfig};

use crate::{DecodingError, Draft, Drawn, Result};

/// What a verifier keeps of a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Accepted nodes below the root, in order from the root.
    pub path: Vec<usize>,
    /// The token that follows them.
    pub next: Token,
}

/// What a verifier looks at.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// All committed tokens; the last is the tree's root.
    pub text: &'a [Token],
    /// The draft.
    pub draft: &'a Draft,
    /// The target's logits, a row a node.
    pub logits: &'a Logits,
}

impl Context<'_> {
    /// The target's law at a node: its row through the sampler's warpers. `history` is the text up to the node.
    ///
    /// # Errors
    /// Rows that are missing, not whole, or not finite.
    pub fn target(&self, sampler: &Sampler, node: usize, history: &[Token]) -> Result<Distribution> {
        let len = self.logits.rows();
        let row = self.logits.row(node).ok_or(ModelError::NoSuchRow { what: "verify", row: node, len })?;
        sampler.distribution(row, history).map_err(|error| at_row(error, node))
    }
}

/// The same error, at the row where it is.
fn at_row(error: ModelError, at: usize) -> DecodingError {
    match error {
        ModelError::NotFinite { what, .. } => ModelError::NotFinite { what, row: at }.into(),
        other => other.into(),
    }
}

/// Decides which proposed tokens stay.
pub trait Verifier: Send {
    /// Name for reports.
    fn name(&self) -> &'static str;

    /// Whether the output's law is the target's own, for the drafts that it [takes](Self::takes).
    fn lossless(&self) -> bool;

    /// Whether it can verify drafts drawn in this way.
    fn takes(&self, drawn: Drawn) -> bool;

    /// How logits become a distribution.
    fn sampler(&self) -> Sampler;

    /// The form of logits it needs.
    fn form(&self) -> LogitForm;

    /// Keeps a path of the draft and adds a token.
    ///
    /// # Errors
    /// Rows that are not finite, laws that are missing, a shape that the rule is not for.
    fn verify(&mut self, context: &Context<'_>) -> Result<Verdict>;
}

/// The lossless verifier for drafts drawn in this way.
pub fn lossless(sampler: Sampler, drawn: Drawn, streams: Streams) -> Box<dyn Verifier> {
    match drawn {
        _ if sampler.is_greedy() => Box::new(GreedyTree),
        Drawn::Fixed => Box::new(SampleAndMatch::new(sampler, streams)),
        Drawn::WithReplacement => Box::new(MultiStep::new(sampler, streams)),
        Drawn::WithoutReplacement => Box::new(Recursive::new(sampler, streams)),
    }
}

/// Walks from the root: `decide` is asked with a node, the text up to it and its children, and says which child
/// (its place among them) is accepted, or which token comes instead.
fn walk(
    context: &Context<'_>,
    mut decide: impl FnMut(usize, &[Token], &[Token]) -> Result<rules::Kept>,
) -> Result<Verdict> {
    let tree = context.draft.tree();
    let mut history = context.text.to_vec();
    let (mut path, mut node) = (Vec::new(), 0);
    loop {
        let children: Vec<usize> = tree.children(node).collect();
        let tokens: Vec<Token> = children.iter().map(|&child| tree.token(child)).collect();
        match decide(node, &history, &tokens)? {
            rules::Kept::Child(index) => {
                node = children[index];
                path.push(node);
                history.push(tokens[index]);
            }
            rules::Kept::Token(next) => return Ok(Verdict { path, next }),
        }
    }
}
