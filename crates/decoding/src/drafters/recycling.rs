//! Token Recycling: the target's likeliest successors of each token, which every forward pass computes and throws
//! away, are kept in a matrix and expanded into a tree of fixed shape. Nothing is trained, no second model is run, and
//! a draft costs as many look-ups as it has nodes.
//!
//! State: `A[V][k]`, the `k` most recent candidates after each token. A round with root `r`:
//! 1. Draft by levels: `tok[0] = r`; a node `v` with rank `j` among its siblings has `tok[v] = A[tok[parent(v)]][j]`.
//! 2. The target takes one step over the tree; the verifier keeps a path.
//! 3. Recycle: for every node `v`, accepted or not, in the order of the tree,
//!    `A[tok[v]] <- the k largest logits of row v, best first`.
//!
//! | default | value | source |
//! |---|---|---|
//! | k | 8 | Luowaterbi/TokenRecycling, `output_id_topk` |
//! | template | 80 nodes in levels of 8, 21, 25, 15, 8, 3 | the same, `tree_template_.py`, "2.2.2" |
//! | matrix | zeros, kept from text to text | the same, `inference_recycling.py` |
//! | repeated tokens | the last node in the order of the tree wins | SAM-Decoding's sequential re-implementation |
//!
//! **Deviations.** The reference writes all rows at once on a GPU, where the winner among equal tokens is undefined;
//! here the last one wins ([`Refresh`] has the alternatives). A token that was never seen proposes nothing instead of
//! eight times token 0, which changes the output and the accepted lengths only where the target says 0;
//! `unseen_zeros` restores it. Where fewer than 80 nodes are allowed, the nodes that were accepted most often stay;
//! the reference has no such limit. The matrix is refreshed in the round that ends a text, too. The reference decodes
//! greedily; any lossless verifier may be used here, since the draft is not sampled.
//!
//! **Cost.** `4 k V` bytes (1.5 MB for 49152 tokens), the template's size in look-ups, and the top `k` of every row of
//! the target's logits.
//!
//! References: arXiv 2408.08696; Luowaterbi/TokenRecycling `evaluation/inference_recycling.py`.
//!
//! ```
//! use pilotfish_decoding::{Decoder, GreedyTree, Limits};
//! use pilotfish_decoding::drafters::{Recycling, TokenRecycling};
//! use pilotfish_model::toy::CountingModel;
//! let mut model = CountingModel::new(10);
//! let mut drafter = TokenRecycling::new(10, Recycling::default())?;
//! let limits = Limits { new_tokens: 80, draft: 80, ..Limits::default() };
//! let out = Decoder::new(&mut model, &mut drafter, &mut GreedyTree, limits)?.generate(&[0])?;
//! // Once every token has been seen, each round keeps the six levels and one token more.
//! assert_eq!(out.rounds[out.rounds.len() - 2].added, 7);
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use pilotfish_model::{LogitForm, ModelInfo, Token, TokenTree};

use crate::state::{self, In, Out};
use crate::{Ask, DecodingError, Draft, Drafter, Needs, Outcome, Result};

/// A tree's shape: for each node below the root its parent and its rank among its siblings. Node 0 is the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    paths: Vec<Vec<u8>>,
    parents: Vec<usize>,
}

/// The paths of the paper's template "2.2.2", level by level.
const PAPER: &str = "0 1 2 3 4 5 6 7 \
    00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70 \
    000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500 \
    0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000 \
    00000 00001 00002 00010 00020 00100 01000 10000 \
    000000 000001 000100";

impl Template {
    /// The paper's template of 80 nodes.
    pub fn paper() -> Self {
        let paths = PAPER.split_whitespace().map(|path| path.bytes().map(|digit| digit - b'0').collect());
        Self::sorted(paths.collect())
    }

    /// A template of these index paths, in any order.
    ///
    /// # Errors
    /// An empty path, one that is there twice, or one whose beginning is not there.
    pub fn new(paths: &[Vec<u8>]) -> Result<Self> {
        let set: std::collections::BTreeSet<&[u8]> = paths.iter().map(Vec::as_slice).collect();
        let whole = |path: &[u8]| path.len() == 1 || path.len() > 1 && set.contains(&path[..path.len() - 1]);
        if set.len() != paths.len() || !set.iter().all(|path| whole(path)) {
            let want = "different paths, none empty, each with its beginning";
            return Err(DecodingError::BadParameter {
                name: "paths of a template",
                value: paths.len(),
                want,
            });
        }
        Ok(Self::sorted(paths.to_vec()))
    }

    /// Every path whose ranks, counted from 1, multiply to at most `product`, down to `depth` levels: a wide tree to
    /// count on before [`fitted`](Self::fitted) picks from it.
    ///
    /// # Errors
    /// A product or depth of 0, or a product above 64.
    pub fn wide(product: usize, depth: usize) -> Result<Self> {
        if product == 0 || product > 64 {
            return Err(DecodingError::BadParameter {
                name: "product",
                value: product,
                want: "from 1 to 64",
            });
        }
        if depth == 0 || depth > 16 {
            return Err(DecodingError::BadParameter { name: "depth", value: depth, want: "from 1 to 16" });
        }
        let (mut all, mut level) = (Vec::new(), vec![(Vec::new(), 1)]);
        for _ in 0..depth {
            level = level
                .iter()
                .flat_map(|(path, so_far): &(Vec<u8>, usize)| {
                    (1..=product / so_far).map(move |rank| {
                        let mut longer = path.clone();
                        longer.push((rank - 1) as u8);
                        (longer, so_far * rank)
                    })
                })
                .collect();
            all.extend(level.iter().map(|(path, _)| path.clone()));
        }
        Ok(Self::sorted(all))
    }

    /// The `nodes` paths that were kept most often, each with its beginning (ties: the shorter, then the smaller
    /// ranks). A path's own count must not exceed its beginning's; where it does, it is taken as that.
    pub fn fitted(hits: &BTreeMap<Vec<u8>, u64>, nodes: usize) -> Self {
        let count = |path: &[u8]| {
            (1..=path.len()).map(|end| hits.get(&path[..end]).copied().unwrap_or(0)).min().unwrap_or(0)
        };
        let mut ranked: Vec<(u64, &Vec<u8>)> =
            hits.keys().filter(|path| !path.is_empty()).map(|path| (count(path), path)).collect();
        ranked.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.len().cmp(&b.1.len())).then(a.1.cmp(b.1)));
        // Counts never grow downwards and ties are broken by length, so beginnings come first.
        let paths = ranked.into_iter().filter(|(count, _)| *count > 0).take(nodes);
        Self::sorted(paths.map(|(_, path)| path.clone()).collect())
    }

    fn sorted(mut paths: Vec<Vec<u8>>) -> Self {
        paths.sort_by(|a, b| a.len().cmp(&b.len()).then(a.cmp(b)));
        let places: BTreeMap<&[u8], usize> =
            paths.iter().enumerate().map(|(index, path)| (path.as_slice(), index + 1)).collect();
        let parents =
            paths.iter().map(|path| places.get(&path[..path.len() - 1]).copied().unwrap_or(0)).collect();
        Self { paths, parents }
    }

    /// Nodes below the root.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Index paths by node, from node 1 on: level by level, within a level in lexicographic order.
    pub fn paths(&self) -> &[Vec<u8>] {
        &self.paths
    }

    /// Parents by node, from node 1 on.
    pub fn parents(&self) -> &[usize] {
        &self.parents
    }

    /// Ranks that are used: `k` must be at least this.
    pub fn widest(&self) -> usize {
        self.paths.iter().flatten().map(|&rank| usize::from(rank) + 1).max().unwrap_or(0)
    }
}

/// What of a verified tree goes into the matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refresh {
    /// Every node; of nodes with one token the last.
    #[default]
    Last,
    /// Every node; of nodes with one token one on the accepted path if there is one, else the first.
    First,
    /// Accepted nodes and the root only.
    Accepted,
    /// Nothing: the matrix stays as it is.
    Nothing,
}

/// Numbers of [`TokenRecycling`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recycling {
    /// Candidates a token.
    pub k: usize,
    /// Shape of the tree.
    pub template: Template,
    /// What goes into the matrix.
    pub refresh: Refresh,
    /// Whether a token that was never seen proposes token 0, as the reference does, or nothing.
    pub unseen_zeros: bool,
}

impl Default for Recycling {
    fn default() -> Self {
        Self { k: 8, template: Template::paper(), refresh: Refresh::default(), unseen_zeros: false }
    }
}

/// The most recent candidates after each token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    k: usize,
    ids: Vec<Token>,
    seen: Vec<bool>,
}

impl Matrix {
    /// Zeros for a vocabulary.
    ///
    /// # Errors
    /// A vocabulary or `k` of 0, `k` beyond 255 or the vocabulary.
    pub fn new(vocab: usize, k: usize) -> Result<Self> {
        if vocab == 0 || vocab > 1 << 26 {
            return Err(DecodingError::BadParameter { name: "vocab", value: vocab, want: "from 1 to 2^26" });
        }
        if k == 0 || k > 255 || k > vocab {
            let want = "from 1 to 255, and no more than the vocabulary";
            return Err(DecodingError::BadParameter { name: "k", value: k, want });
        }
        Ok(Self { k, ids: vec![0; vocab * k], seen: vec![false; vocab] })
    }

    /// Vocabulary size.
    pub fn vocab(&self) -> usize {
        self.seen.len()
    }

    /// The candidates after a token, best first; `None` if it was never seen.
    pub fn row(&self, token: Token) -> Option<&[Token]> {
        let at = token as usize;
        self.seen.get(at)?.then(|| &self.ids[at * self.k..(at + 1) * self.k])
    }

    /// Replaces the candidates after a token, best first. Missing ones are filled with the last; ids outside the
    /// vocabulary are ignored, as is a token outside it.
    pub fn set(&mut self, token: Token, best: &[Token]) {
        let vocab = self.vocab();
        let mut good = best.iter().copied().filter(|&id| (id as usize) < vocab);
        let at = token as usize;
        let Some(mut last) = good.next().filter(|_| at < vocab) else { return };
        let row = &mut self.ids[at * self.k..(at + 1) * self.k];
        row[0] = last;
        for slot in &mut row[1..] {
            last = good.next().unwrap_or(last);
            *slot = last;
        }
        self.seen[at] = true;
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut out = Out::default();
        out.u32(self.vocab() as u32);
        out.u32(self.k as u32);
        self.ids.iter().for_each(|&id| out.u32(id));
        out.0.extend(self.seen.iter().map(|&seen| u8::from(seen)));
        state::save(path, b"TRMX", &out.0)
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// A file that cannot be read, is spoilt, or is not a matrix.
    pub fn load(path: &Path) -> Result<Self> {
        let payload = state::load(path, b"TRMX")?;
        let mut input = In(&payload);
        let (Some(vocab), Some(k)) = (input.u32(), input.u32()) else {
            return Err(state::bad(path, "it is too short"));
        };
        let (vocab, k) = (vocab as usize, k as usize);
        let want = vocab.checked_mul(4 * k + 1);
        if vocab == 0 || k == 0 || k > 255 || want != Some(input.left()) {
            return Err(state::bad(path, "its sizes do not fit"));
        }
        let mut ids = Vec::with_capacity(vocab * k);
        for _ in 0..vocab * k {
            match input.u32() {
                Some(id) if (id as usize) < vocab => ids.push(id),
                _ => return Err(state::bad(path, "an id outside the vocabulary")),
            }
        }
        let seen = input.0.iter().map(|&byte| byte != 0).collect();
        Ok(Self { k, ids, seen })
    }
}

/// How often a node of the template was drafted below an accepted parent, and kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    tried: u64,
    kept: u64,
}

/// Drafts from recycled candidates.
#[derive(Clone, Debug)]
pub struct TokenRecycling {
    config: Recycling,
    matrix: Matrix,
    tally: Vec<Tally>,
    /// For each node of the tree proposed last the node of the template.
    shape: Vec<usize>,
}

impl TokenRecycling {
    /// A drafter with an empty matrix for a vocabulary.
    ///
    /// # Errors
    /// An empty template, or one that needs more ranks than `k`; as [`Matrix::new`].
    pub fn new(vocab: usize, config: Recycling) -> Result<Self> {
        let k = config.k.min(vocab);
        Self::with_matrix(Matrix::new(vocab, k)?, Recycling { k, ..config })
    }

    /// A drafter that goes on with a matrix.
    ///
    /// # Errors
    /// As [`TokenRecycling::new`]; a matrix of another `k`.
    pub fn with_matrix(matrix: Matrix, config: Recycling) -> Result<Self> {
        if config.k != matrix.k {
            return Err(DecodingError::BadParameter { name: "k", value: config.k, want: "the matrix's own" });
        }
        if config.template.is_empty() {
            return Err(DecodingError::BadParameter {
                name: "template",
                value: 0,
                want: "at least one node",
            });
        }
        // A vocabulary smaller than the template's ranks simply has no such children.
        let tally = vec![Tally::default(); config.template.len() + 1];
        Ok(Self { config, matrix, tally, shape: Vec::new() })
    }

    /// The matrix as it stands.
    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// Forgets everything: the matrix is zeros again.
    pub fn forget(&mut self) {
        self.matrix.ids.fill(0);
        self.matrix.seen.fill(false);
        self.tally.fill(Tally::default());
    }

    /// How often each path of the template was on an accepted path: what [`Template::fitted`] takes.
    pub fn hits(&self) -> BTreeMap<Vec<u8>, u64> {
        let paths = self.config.template.paths();
        paths.iter().zip(&self.tally[1..]).map(|(path, tally)| (path.clone(), tally.kept)).collect()
    }

    /// The chance that each node is kept, root 1: acceptance below an accepted parent, smoothed towards a guess
    /// that favours early ranks, multiplied along the path.
    fn estimates(&self) -> Vec<f64> {
        const PRIOR: f64 = 8.0;
        let mut all = vec![1.0];
        for (path, (&parent, tally)) in self
            .config
            .template
            .paths()
            .iter()
            .zip(self.config.template.parents().iter().zip(&self.tally[1..]))
        {
            let rank = path.last().copied().unwrap_or(0);
            // Measured acceptance by rank falls about as 1, 1/3, 1/6, 1/10, ...
            let guess = 0.4 * 2.0 / ((f64::from(rank) + 1.0) * (f64::from(rank) + 2.0));
            let here = (tally.kept as f64 + PRIOR * guess) / (tally.tried as f64 + PRIOR);
            all.push(all[parent] * here);
        }
        all
    }
}

impl Drafter for TokenRecycling {
    fn name(&self) -> String {
        format!("Token Recycling ({} nodes, {} candidates)", self.config.template.len(), self.config.k)
    }

    fn needs(&self) -> Needs {
        Needs { logits: Some(LogitForm::TopK(self.config.k)), ..Needs::default() }
    }

    fn fits(&self, target: &ModelInfo) -> Result<()> {
        crate::drafters::same_vocabulary(|| self.name(), self.matrix.vocab(), target)
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let template = &self.config.template;
        let estimates = self.estimates();
        // Which nodes stay when not all may: the likeliest, which brings their parents along.
        let mut allowed: Vec<usize> =
            (1..=template.len()).filter(|&node| template.paths()[node - 1].len() <= ask.depth).collect();
        // What an unseen token would propose is left out first, so that it does not use up the budget.
        let mut tokens = vec![None; template.len() + 1];
        tokens[0] = Some(ask.root());
        for node in 1..=template.len() {
            let rank = template.paths()[node - 1].last().map_or(0, |&rank| usize::from(rank));
            tokens[node] =
                tokens[template.parents()[node - 1]].and_then(|parent| match self.matrix.row(parent) {
                    Some(row) => row.get(rank).copied(),
                    None => (self.config.unseen_zeros && rank < self.config.k).then_some(0),
                });
        }
        allowed.retain(|&node| tokens[node].is_some());
        if allowed.len() > ask.budget {
            allowed.sort_by(|&a, &b| estimates[b].total_cmp(&estimates[a]).then(a.cmp(&b)));
            allowed.truncate(ask.budget);
            allowed.sort_unstable();
        }
        let mut tree = TokenTree::new(ask.root());
        let mut places = vec![None; template.len() + 1];
        places[0] = Some(0);
        self.shape = vec![0];
        let mut kept_estimates = vec![1.0];
        for node in allowed {
            if let (Some(parent), Some(token)) = (places[template.parents()[node - 1]], tokens[node]) {
                places[node] = Some(tree.push(parent, token)?);
                self.shape.push(node);
                kept_estimates.push(estimates[node]);
            }
        }
        let mut draft = Draft::fixed(tree);
        draft.set_estimates(kept_estimates)?;
        Ok(draft)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        let tree = outcome.draft.tree();
        // The draft may be smaller than what was proposed; nodes are recognised by their index path.
        let shape = self.shape_of(tree);
        let accepted: Vec<usize> = std::iter::once(0).chain(outcome.path.iter().copied()).collect();
        for node in 1..tree.len() {
            if let (Some(parent), Some(Some(of))) = (tree.parent(node), shape.get(node))
                && accepted.contains(&parent)
            {
                self.tally[*of].tried += 1;
                self.tally[*of].kept += u64::from(accepted.contains(&node));
            }
        }
        let order: Vec<usize> = match self.config.refresh {
            Refresh::Last => (0..tree.len()).collect(),
            // Whoever writes last wins: rejected nodes backwards, then accepted ones backwards.
            Refresh::First => {
                let rejected = (0..tree.len()).rev().filter(|node| !accepted.contains(node));
                rejected.chain(accepted.iter().rev().copied()).collect()
            }
            Refresh::Accepted => accepted,
            Refresh::Nothing => Vec::new(),
        };
        for node in order {
            let best = outcome.logits.top(node, self.config.k)?;
            let best: Vec<Token> = best.iter().map(|&(id, _)| id).collect();
            self.matrix.set(tree.token(node), &best);
        }
        Ok(())
    }
}

impl TokenRecycling {
    /// For each node of a tree that came of the last proposal, the node of the template.
    fn shape_of(&self, tree: &TokenTree) -> Vec<Option<usize>> {
        if tree.len() == self.shape.len() {
            return self.shape.iter().map(|&node| Some(node)).collect();
        }
        // Something left nodes out: the remaining ones keep their order, so each is the first unused child of the
        // same token below the same node.
        let template = &self.config.template;
        let mut used = vec![false; template.len() + 1];
        let mut shape: Vec<Option<usize>> = vec![Some(0)];
        for node in 1..tree.len() {
            let parent = tree.parent(node).and_then(|parent| shape[parent]);
            let row = tree.parent(node).and_then(|parent| self.matrix.row(tree.token(parent)));
            let found = parent.zip(row).and_then(|(parent, row)| {
                (1..=template.len()).find(|&at| {
                    let rank = template.paths()[at - 1].last().map_or(0, |&rank| usize::from(rank));
                    template.parents()[at - 1] == parent
                        && !used[at]
                        && row.get(rank) == Some(&tree.token(node))
                })
            });
            if let Some(found) = found {
                used[found] = true;
            }
            shape.push(found);
        }
        shape
    }
}
