use crate::{ModelError, Result, Token};

/// A tree of tokens to be verified in one step. Node 0 is the root: the last committed token, which is never
/// in the cache beforehand. Every other node names a parent with a smaller index.
///
/// ```
/// use pilotfish_model::TokenTree;
/// let mut tree = TokenTree::new(10);
/// let a = tree.push(0, 11)?;
/// let b = tree.push(0, 12)?;
/// let c = tree.push(a, 13)?;
/// assert_eq!(tree.depth(c), 2);
/// assert_eq!(tree.children(0).collect::<Vec<_>>(), [a, b]);
/// // Appended to a cache of 5 rows, the root follows row 4.
/// assert_eq!(tree.parents(5), [Some(4), Some(5), Some(5), Some(6)]);
/// # Ok::<(), pilotfish_model::ModelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTree {
    tokens: Vec<Token>,
    parents: Vec<usize>,
    depths: Vec<usize>,
}

impl TokenTree {
    /// A tree of the root alone.
    pub fn new(root: Token) -> Self {
        Self { tokens: vec![root], parents: vec![0], depths: vec![0] }
    }

    /// A chain: the root and a draft.
    pub fn chain(root: Token, draft: &[Token]) -> Self {
        let mut tokens = Vec::with_capacity(draft.len() + 1);
        tokens.push(root);
        tokens.extend_from_slice(draft);
        let parents = (0..tokens.len()).map(|node| node.saturating_sub(1)).collect();
        let depths = (0..tokens.len()).collect();
        Self { tokens, parents, depths }
    }

    /// Adds a child and returns its index.
    ///
    /// # Errors
    /// A parent that does not exist.
    pub fn push(&mut self, parent: usize, token: Token) -> Result<usize> {
        let Some(&depth) = self.depths.get(parent) else {
            return Err(ModelError::NoSuchRow {
                what: "parent of a tree node",
                row: parent,
                len: self.len(),
            });
        };
        self.tokens.push(token);
        self.parents.push(parent);
        self.depths.push(depth + 1);
        Ok(self.len() - 1)
    }

    /// Nodes, the root included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never: the root is always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Tokens by node.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// A node's token.
    pub fn token(&self, node: usize) -> Token {
        self.tokens[node]
    }

    /// A node's parent; `None` for the root.
    pub fn parent(&self, node: usize) -> Option<usize> {
        (node > 0).then(|| self.parents[node])
    }

    /// A node's depth; 0 for the root.
    pub fn depth(&self, node: usize) -> usize {
        self.depths[node]
    }

    /// A node's children, in the order they were added.
    pub fn children(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        (node + 1..self.len()).filter(move |&child| self.parents[child] == node)
    }

    /// The nodes from the root to a node, both included.
    pub fn path(&self, node: usize) -> Vec<usize> {
        let mut path: Vec<usize> = std::iter::successors(Some(node), |&node| self.parent(node)).collect();
        path.reverse();
        path
    }

    /// Absolute parents of all nodes for a [`Step`](crate::Step) on a cache of `len` rows whose last row
    /// the root follows.
    pub fn parents(&self, len: usize) -> Vec<Option<usize>> {
        (0..self.len())
            .map(|node| match self.parent(node) {
                None => len.checked_sub(1),
                Some(parent) => Some(len + parent),
            })
            .collect()
    }
}
