use pilotfish_model::sampling::Distribution;
use pilotfish_model::{ModelError, Token, TokenTree};

use crate::{DecodingError, Result};

/// How the children of every node of a draft came about, which decides the rules that may verify it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drawn {
    /// Chosen by any means that is no draw from a known law: looked up, searched, the largest of a row. Such
    /// a draft carries no laws.
    #[default]
    Fixed,
    /// Independent draws from the node's law, in the order of the children; one may occur twice.
    WithReplacement,
    /// Successive draws from the node's law, each restricted to tokens not drawn before and renormalised, in
    /// the order of the children.
    WithoutReplacement,
}

impl std::fmt::Display for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fixed => "from no law",
            Self::WithReplacement => "with replacement",
            Self::WithoutReplacement => "without replacement",
        })
    }
}

/// A proposal: a tree of tokens and, if they were sampled, the laws they were sampled from.
///
/// Rules for sampled drafts, without which no verifier is exact:
/// - a node that has children has a law: the *whole* distribution that its children were drawn from, after the
///   draft's own warpers, over the target's vocabulary;
/// - children stand in the order in which they were drawn;
/// - whether another child is drawn may depend on everything already drawn, never on the token to be drawn;
///   a child once drawn is kept. Leaving out the last children of a node for a reason that does not look at
///   their tokens (a budget, a depth, a threshold on values known before the draw) is allowed.
///
/// ```
/// use pilotfish_decoding::{Draft, Drawn};
/// use pilotfish_model::sampling::Distribution;
/// let mut draft = Draft::sampled(7, Drawn::WithoutReplacement);
/// draft.set_law(0, Distribution::from_weights(vec![6.0, 3.0, 1.0])?)?;
/// let first = draft.push(0, 1)?;
/// draft.push(0, 0)?;
/// assert_eq!((draft.tree().len(), draft.law(first)), (3, None));
/// # Ok::<(), pilotfish_decoding::DecodingError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    tree: TokenTree,
    drawn: Drawn,
    /// By node; shorter than the tree when the last nodes have none.
    laws: Vec<Option<Distribution>>,
    estimates: Option<Vec<f64>>,
}

impl Draft {
    /// Nothing proposed.
    pub fn none(root: Token) -> Self {
        Self::fixed(TokenTree::new(root))
    }

    /// A draft that was not sampled.
    pub fn fixed(tree: TokenTree) -> Self {
        Self { tree, drawn: Drawn::Fixed, laws: Vec::new(), estimates: None }
    }

    /// A draft to be sampled: the root alone so far.
    pub fn sampled(root: Token, drawn: Drawn) -> Self {
        Self { tree: TokenTree::new(root), drawn, laws: Vec::new(), estimates: None }
    }

    /// Gives the law that the children of a node are drawn from.
    ///
    /// # Errors
    /// No such node.
    pub fn set_law(&mut self, node: usize, law: Distribution) -> Result<()> {
        if node >= self.tree.len() {
            return Err(ModelError::NoSuchRow { what: "law", row: node, len: self.tree.len() }.into());
        }
        if self.laws.len() <= node {
            self.laws.resize(node + 1, None);
        }
        self.laws[node] = Some(law);
        Ok(())
    }

    /// Adds a child and returns its index.
    ///
    /// # Errors
    /// A parent that does not exist.
    pub fn push(&mut self, parent: usize, token: Token) -> Result<usize> {
        Ok(self.tree.push(parent, token)?)
    }

    /// Says how probable the drafter thinks it that each node is on the kept path; the root's is 1. A policy
    /// may use it, verification never does.
    ///
    /// # Errors
    /// Not one number a node.
    pub fn set_estimates(&mut self, estimates: Vec<f64>) -> Result<()> {
        let (got, want) = (estimates.len(), self.tree.len());
        if got != want {
            return Err(ModelError::Length { what: "estimates of a draft", got, want }.into());
        }
        self.estimates = Some(estimates);
        Ok(())
    }

    /// The tree. Node 0 is the last committed token.
    pub fn tree(&self) -> &TokenTree {
        &self.tree
    }

    /// How children were drawn.
    pub fn drawn(&self) -> Drawn {
        self.drawn
    }

    /// The law that a node's children were drawn from.
    pub fn law(&self, node: usize) -> Option<&Distribution> {
        self.laws.get(node)?.as_ref()
    }

    /// The drafter's estimates by node.
    pub fn estimates(&self) -> Option<&[f64]> {
        self.estimates.as_deref()
    }

    /// Proposed tokens: nodes without the root.
    pub fn len(&self) -> usize {
        self.tree.len() - 1
    }

    /// Whether nothing is proposed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Levels below the root.
    pub fn depth(&self) -> usize {
        (0..self.tree.len()).map(|node| self.tree.depth(node)).max().unwrap_or(0)
    }

    /// Whether every node follows the one before.
    pub fn is_chain(&self) -> bool {
        (1..self.tree.len()).all(|node| self.tree.parent(node) == Some(node - 1))
    }

    /// The same without nodes for which `keep` is false, and without what lies below them. For sampled drafts
    /// `keep` may not look at tokens.
    pub fn retain(self, mut keep: impl FnMut(&TokenTree, usize) -> bool) -> Result<Self> {
        let Self { tree, drawn, mut laws, estimates } = self;
        let mut places = vec![Some(0)];
        let mut kept = Self::sampled(tree.token(0), drawn);
        let mut kept_estimates = estimates.as_ref().map(|estimates| vec![estimates[0]]);
        for node in 1..tree.len() {
            let parent = tree.parent(node).and_then(|parent| places[parent]);
            let place = match parent {
                Some(parent) if keep(&tree, node) => {
                    if let (Some(kept), Some(all)) = (&mut kept_estimates, &estimates) {
                        kept.push(all[node]);
                    }
                    Some(kept.push(parent, tree.token(node))?)
                }
                _ => None,
            };
            places.push(place);
        }
        for (node, law) in laws.iter_mut().enumerate() {
            if let (Some(place), Some(law)) = (places.get(node).copied().flatten(), law.take()) {
                kept.set_law(place, law)?;
            }
        }
        kept.estimates = kept_estimates;
        Ok(kept)
    }

    /// The same without nodes beyond a number (in their order) or a depth.
    pub fn clamp(self, budget: usize, depth: usize) -> Result<Self> {
        if self.len() <= budget && self.depth() <= depth {
            return Ok(self);
        }
        let mut kept = 0;
        self.retain(|tree, node| {
            let fits = kept < budget && tree.depth(node) <= depth;
            kept += usize::from(fits);
            fits
        })
    }

    /// The law of a node with children, or the error that says it is missing or of another vocabulary.
    pub(crate) fn need_law(&self, node: usize, vocab: usize) -> Result<&Distribution> {
        match self.law(node) {
            Some(law) if law.probs().len() == vocab => Ok(law),
            law => {
                let got = law.map(|law| law.probs().len());
                Err(DecodingError::NoLaw { node, got, want: vocab })
            }
        }
    }
}

impl From<TokenTree> for Draft {
    fn from(tree: TokenTree) -> Self {
        Self::fixed(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamping_takes_laws_and_estimates_along() {
        let law = |weights: [f64; 3]| Distribution::from_weights(weights.to_vec()).expect("valid");
        let mut draft = Draft::sampled(0, Drawn::WithoutReplacement);
        draft.set_law(0, law([1.0, 2.0, 3.0])).expect("exists");
        let a = draft.push(0, 1).expect("exists");
        let b = draft.push(a, 2).expect("exists");
        draft.set_law(a, law([4.0, 0.0, 1.0])).expect("exists");
        draft.push(b, 0).expect("exists");
        draft.push(0, 2).expect("exists");
        draft.set_estimates(vec![1.0, 0.5, 0.4, 0.3, 0.2]).expect("one a node");
        let kept = draft.clone().clamp(9, 1).expect("valid");
        assert_eq!(kept.tree().tokens(), [0, 1, 2]);
        assert_eq!(kept.law(0), draft.law(0));
        assert_eq!(kept.law(1), draft.law(a), "a law may outlive the children drawn from it");
        assert_eq!(kept.estimates(), Some(&[1.0, 0.5, 0.2][..]));
        let kept = draft.clone().clamp(2, 9).expect("valid");
        assert_eq!((kept.tree().tokens(), kept.is_chain()), (&[0, 1, 2][..], true));
        assert!(draft.set_estimates(vec![1.0]).is_err() && draft.set_law(9, law([1.0; 3])).is_err());
        assert!(draft.push(9, 0).is_err());
    }
}
