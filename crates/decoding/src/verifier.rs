use pilotfish_model::sampling::{Distribution, Sampler};
use pilotfish_model::{LogitForm, Logits, ModelError, StreamRng, Streams, Token, TokenTree};

use crate::Result;

/// Where a verifier's decisions come from: a random stream, or a test that explores every branch.
pub trait Choose: Send {
    /// A token of the distribution.
    fn choose(&mut self, distribution: &Distribution) -> Token;
}

impl Choose for StreamRng {
    fn choose(&mut self, distribution: &Distribution) -> Token {
        distribution.sample(self)
    }
}

/// What a verifier keeps of a tree.
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
    /// The proposed tree.
    pub tree: &'a TokenTree,
    /// The target's logits, a row a node.
    pub logits: &'a Logits,
}

/// Decides which proposed tokens stay.
pub trait Verifier: Send {
    /// Name for reports.
    fn name(&self) -> &'static str;

    /// Whether the output's law is the target's own.
    fn lossless(&self) -> bool;

    /// The form of logits it needs.
    fn form(&self) -> LogitForm;

    /// Keeps a path of the tree and adds a token.
    fn verify(&mut self, context: &Context<'_>) -> Result<Verdict>;
}

/// Walks from the root to the child that carries the node's largest logit, until there is none. The output is
/// that of plain greedy decoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct GreedyTree;

impl Verifier for GreedyTree {
    fn name(&self) -> &'static str {
        "greedy"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn form(&self) -> LogitForm {
        LogitForm::Argmax
    }

    fn verify(&mut self, context: &Context<'_>) -> Result<Verdict> {
        descend(context.tree, |node, _| Ok(context.logits.argmax(node)?))
    }
}

/// Draws one token from the target at each node and descends if it was proposed; whatever it is, it is what the
/// output gets. Exact for any draft whatsoever, with every warper, since the target's own sampler makes every
/// decision; the draw at a node is used, never repeated.
pub struct SampleAndMatch {
    sampler: Sampler,
    choose: Box<dyn Choose>,
}

impl SampleAndMatch {
    /// A verifier that draws from the stream `accept`.
    pub fn new(sampler: Sampler, streams: Streams) -> Self {
        Self { sampler, choose: Box::new(streams.stream("accept")) }
    }

    /// A verifier with another source of decisions.
    pub fn with_choose(sampler: Sampler, choose: Box<dyn Choose>) -> Self {
        Self { sampler, choose }
    }
}

impl Verifier for SampleAndMatch {
    fn name(&self) -> &'static str {
        "sample-and-match"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn form(&self) -> LogitForm {
        if self.sampler.is_greedy() { LogitForm::Argmax } else { LogitForm::Full }
    }

    fn verify(&mut self, context: &Context<'_>) -> Result<Verdict> {
        let Self { sampler, choose } = self;
        let mut history = context.text.to_vec();
        descend(context.tree, |node, entered| {
            history.extend(entered);
            if sampler.is_greedy() {
                return Ok(context.logits.argmax(node)?);
            }
            let len = context.logits.rows();
            let row =
                context.logits.row(node).ok_or(ModelError::NoSuchRow { what: "verify", row: node, len })?;
            Ok(choose.choose(&sampler.distribution(row, &history)?))
        })
    }
}

/// Follows `token` (asked with a node and the token that led to it) from the root as far as the tree goes along.
fn descend(
    tree: &TokenTree,
    mut token: impl FnMut(usize, Option<Token>) -> Result<Token>,
) -> Result<Verdict> {
    let (mut path, mut node, mut entered) = (Vec::new(), 0, None);
    loop {
        let next = token(node, entered)?;
        match tree.children(node).find(|&child| tree.token(child) == next) {
            Some(child) => {
                path.push(child);
                (node, entered) = (child, Some(next));
            }
            None => return Ok(Verdict { path, next }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_descends_to_the_first_of_equal_children() {
        let mut tree = TokenTree::new(9);
        let a = tree.push(0, 1).expect("exists");
        tree.push(0, 2).expect("exists");
        let b = tree.push(a, 0).expect("exists");
        tree.push(0, 1).expect("exists");
        // The target says 1 after the root, 0 after a, 2 after b.
        let rows = [[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 5.0]];
        let logits = Logits::reduce(&rows.concat(), 3, LogitForm::Argmax).expect("finite");
        let context = Context { text: &[9], tree: &tree, logits: &logits };
        let verdict = GreedyTree.verify(&context).expect("finite");
        assert_eq!(verdict, Verdict { path: vec![a, b], next: 2 });
    }
}
