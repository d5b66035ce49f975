//! ADED (later called Adaptix): a table of tri-gram scores stands in for the target, and a Monte Carlo tree search
//! turns it into a draft tree. The table learns from the text while it is decoded, so it follows the topic.
//!
//! State: `M: (t1, t2) -> t3 -> score` ([`Trigrams`]). A round on the text `S`, whose last token is the root:
//! 1. Learn: every tri-gram among the last 16 tokens gains 0.04, up to 3.0 ([`Trigrams::learn`]).
//! 2. Search from the pair `(S[-2], S[-1])`, 150 times:
//!    select: while a node has children, go to the child with the largest
//!    `PUCT = W/n + (c1 + ln((N + c2 + 1)/c2)) p sqrt(N)/(1 + n)` (`N` visits of the parent, `p` the score of the
//!    child; unvisited: infinite);
//!    expand: all successors at once, and step into the last;
//!    roll out: draw successors in proportion to their scores until the path has `depth` pairs;
//!    back up: `R = 1 + sum of the scores along the path` to the node and its ancestors.
//! 3. Sort nodes by visits, keep 24, and append to each sequence its likeliest successor.
//! 4. The union of all beginnings of what was kept is the tree, cut to the budget.
//!
//! | default | value | source (liuxukun2000/Adaptix) |
//! |---|---|---|
//! | successors kept | 12 | `DraftRetriever/src/lib.rs`, `Reader::new` |
//! | increment, cap, window | 0.04, 3.0, 16 | the same, `search` |
//! | iterations, depth, kept | 150, 4, 24 | the same, `MCTS::new`, `run` |
//! | c1, c2 | 32, 8 | `mcts_sub.rs` |
//! | nodes | 64 | `generate_draft_buffers` |
//!
//! **Deviations.** The reference's reward looks up the *first* token of the next pair and so is 1 nearly always;
//! here it is the second, as intended ([`Aded::literal_reward`] has the other). Children are visited in the order of
//! their scores, where the reference walks a hash map and differs from run to run. Where the tree is too large, nodes
//! of fewest visits go first; the reference drops the longest paths and counts shared beginnings many times
//! ([`Prune::LongestFirst`]). A text too short for a pair, or a pair without successors, drafts nothing; the reference
//! underflows, or proposes token 100. The reference verifies a sampled text by drawing several times at one node, which
//! is not lossless; here any lossless verifier for fixed drafts does it.
//!
//! [`Search::TopK`] is the ablation: since `c1` is large, visits follow path probabilities, and a best-first search by
//! path probability finds nearly the same tree without randomness and at a fraction of the time.
//!
//! **Cost.** No model. The search takes some tens of microseconds to a millisecond a round.
//!
//! References: arXiv 2407.12021; liuxukun2000/Adaptix.
//!
//! ```
//! use pilotfish_decoding::{Decoder, GreedyTree, Limits};
//! use pilotfish_decoding::drafters::{Aded, AdedDrafter, Trigrams, TrigramConfig};
//! use pilotfish_model::toy::CountingModel;
//! let mut model = CountingModel::new(5);
//! let mut drafter = AdedDrafter::new(Trigrams::new(TrigramConfig::default())?, Aded::default())?;
//! let limits = Limits { new_tokens: 60, ..Limits::default() };
//! let out = Decoder::new(&mut model, &mut drafter, &mut GreedyTree, limits)?.generate(&[0, 1, 2])?;
//! // After one period every round keeps the four tokens that a search can draft, and one more.
//! assert_eq!(out.rounds[10].added, 5);
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

use std::collections::{BinaryHeap, HashMap};

use pilotfish_model::{StreamRng, Streams, Token, TokenTree};
use rand::Rng;

use super::Trigrams;
use crate::{Ask, DecodingError, Draft, Drafter, Outcome, Result};

/// How a table becomes a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// Monte Carlo tree search.
    #[default]
    Mcts,
    /// Best-first search by path probability.
    TopK,
    /// The likeliest successor, again and again: one path.
    Greedy,
}

/// What goes first when a tree is too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prune {
    /// Nodes of fewest visits.
    #[default]
    FewestVisits,
    /// The longest paths, until their lengths sum to the budget; then nodes beyond it in the order of levels.
    LongestFirst,
}

/// Numbers of [`AdedDrafter`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aded {
    /// Kind of search.
    pub search: Search,
    /// What goes first when the tree is too large.
    pub prune: Prune,
    /// Searches a round.
    pub iterations: usize,
    /// Pairs on a path, the root's included.
    pub depth: usize,
    /// Sequences kept, the root's included.
    pub kept: usize,
    /// Weight of exploration.
    pub c1: f64,
    /// Scale of its growth with visits.
    pub c2: f64,
    /// Nodes at most.
    pub nodes: usize,
    /// Whether the table learns while decoding.
    pub adaptive: bool,
    /// Whether the reward looks up the first token of the next pair, as the reference does.
    pub literal_reward: bool,
    /// Seed of the rollouts.
    pub seed: u64,
}

impl Default for Aded {
    fn default() -> Self {
        Self {
            search: Search::Mcts,
            prune: Prune::FewestVisits,
            iterations: 150,
            depth: 4,
            kept: 24,
            c1: 32.0,
            c2: 8.0,
            nodes: 64,
            adaptive: true,
            literal_reward: false,
            seed: 0,
        }
    }
}

impl Aded {
    fn check(&self) -> Result<()> {
        for (name, value, least, want) in [
            ("iterations", self.iterations, 1, "at least 1"),
            ("depth", self.depth, 2, "at least 2"),
            ("kept", self.kept, 2, "at least 2"),
            ("nodes", self.nodes, 1, "at least 1"),
        ] {
            if value < least {
                return Err(DecodingError::BadParameter { name, value, want });
            }
        }
        if self.depth > 64 {
            let (name, value) = ("depth", self.depth);
            return Err(DecodingError::BadParameter { name, value, want: "at most 64" });
        }
        if !(self.c1 >= 0.0 && self.c1.is_finite()) {
            let (name, value) = ("c1", self.c1);
            return Err(crate::drafters::number(name, value, "at least 0 and finite"));
        }
        if !(self.c2 > 0.0 && self.c2.is_finite()) {
            let (name, value) = ("c2", self.c2);
            return Err(crate::drafters::number(name, value, "above 0 and finite"));
        }
        Ok(())
    }

    /// `W/n + (c1 + ln((N + c2 + 1)/c2)) p sqrt(N)/(1 + n)`; infinite for a child that was never visited.
    pub fn puct(&self, parent_visits: u64, visits: u64, reward: f64, prior: f64) -> f64 {
        if visits == 0 {
            return f64::INFINITY;
        }
        let (parent, own) = (parent_visits as f64, visits as f64);
        let explore = self.c1 + ((parent + self.c2 + 1.0) / self.c2).ln();
        reward / own + explore * prior * parent.sqrt() / (1.0 + own)
    }
}

/// A drafted sequence, without the root's token.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Tokens after the root.
    pub tokens: Vec<Token>,
    /// Visits of the node it ends in; for [`Search::TopK`] the probability of its path.
    pub weight: f64,
}

struct Node {
    pair: (Token, Token),
    parent: usize,
    children: std::ops::Range<usize>,
    visits: u64,
    reward: f64,
    prior: f64,
}

/// A finished search: nodes with their visits.
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Searches a table from a pair.
    pub fn search(table: &Trigrams, config: &Aded, root: (Token, Token), rng: &mut impl Rng) -> Self {
        let node = |pair, parent, prior| Node { pair, parent, children: 0..0, visits: 0, reward: 0.0, prior };
        let mut tree = Self { nodes: vec![node(root, 0, 0.0)] };
        for _ in 0..config.iterations {
            let (mut at, mut path) = (0, vec![root]);
            while path.len() < config.depth && !tree.nodes[at].children.is_empty() {
                let visits = tree.nodes[at].visits;
                let (mut best, mut best_value) = (tree.nodes[at].children.start, f64::NEG_INFINITY);
                for child in tree.nodes[at].children.clone() {
                    let Node { visits: own, reward, prior, .. } = tree.nodes[child];
                    let value = config.puct(visits, own, reward, prior);
                    if value > best_value {
                        (best, best_value) = (child, value);
                    }
                }
                at = best;
                path.push(tree.nodes[at].pair);
            }
            let pair = tree.nodes[at].pair;
            let successors = table.after(pair);
            if path.len() < config.depth && !successors.is_empty() {
                let start = tree.nodes.len();
                tree.nodes.extend(
                    successors.iter().map(|&(token, score)| node((pair.1, token), at, f64::from(score))),
                );
                tree.nodes[at].children = start..tree.nodes.len();
                at = tree.nodes.len() - 1;
                path.push(tree.nodes[at].pair);
            }
            while path.len() < config.depth
                && let Some(&pair) = path.last()
                && let Some(token) = draw(table.after(pair), rng)
            {
                path.push((pair.1, token));
            }
            let steps = path.windows(2).map(|pairs| {
                let next = if config.literal_reward { pairs[1].0 } else { pairs[1].1 };
                f64::from(table.score(pairs[0], next))
            });
            let reward = 1.0 + steps.sum::<f64>();
            loop {
                tree.nodes[at].visits += 1;
                tree.nodes[at].reward += reward;
                if at == 0 {
                    break;
                }
                at = tree.nodes[at].parent;
            }
        }
        tree
    }

    /// The sequences of the most visited nodes with their likeliest successor appended, most visited first. The
    /// root's own, which comes first of all, is counted but left out.
    pub fn candidates(&self, table: &Trigrams, kept: usize) -> Vec<Candidate> {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|&node| (std::cmp::Reverse(self.nodes[node].visits), node));
        let chosen = order.into_iter().take(kept).filter(|&node| node > 0 && self.nodes[node].visits > 0);
        chosen
            .map(|node| {
                let mut tokens = Vec::new();
                let mut at = node;
                while at > 0 {
                    tokens.push(self.nodes[at].pair.1);
                    at = self.nodes[at].parent;
                }
                tokens.reverse();
                tokens.extend(table.after(self.nodes[node].pair).first().map(|(token, _)| *token));
                Candidate { tokens, weight: self.nodes[node].visits as f64 }
            })
            .collect()
    }

    /// Visits of a node's children, in the order of the table.
    pub fn visits(&self, tokens: &[Token]) -> Option<(u64, Vec<u64>)> {
        let mut at = 0;
        for token in tokens {
            at = self.nodes[at].children.clone().find(|&child| self.nodes[child].pair.1 == *token)?;
        }
        let children = self.nodes[at].children.clone();
        Some((self.nodes[at].visits, children.map(|child| self.nodes[child].visits).collect()))
    }
}

fn draw(successors: &[(Token, f32)], rng: &mut impl Rng) -> Option<Token> {
    let sum: f64 = successors.iter().map(|(_, score)| f64::from(*score)).sum();
    let mut left = rng.random::<f64>() * sum;
    for &(token, score) in successors {
        left -= f64::from(score);
        if left < 0.0 {
            return Some(token);
        }
    }
    successors.last().map(|(token, _)| *token)
}

/// The `kept - 1` likeliest sequences of fewer than `depth` tokens, each with its likeliest successor appended:
/// what the search approximates. Scores are normalised a pair.
pub fn top_k(table: &Trigrams, root: (Token, Token), kept: usize, depth: usize) -> Vec<Candidate> {
    struct Open {
        weight: f64,
        order: usize,
        pair: (Token, Token),
        tokens: Vec<Token>,
    }
    impl PartialEq for Open {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }
    impl Eq for Open {}
    impl PartialOrd for Open {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Open {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            self.weight.total_cmp(&other.weight).then(other.order.cmp(&self.order))
        }
    }
    let mut open = BinaryHeap::from([Open { weight: 1.0, order: 0, pair: root, tokens: Vec::new() }]);
    let (mut found, mut order) = (Vec::new(), 0);
    while found.len() + 1 < kept
        && let Some(Open { weight, pair, tokens, .. }) = open.pop()
    {
        let successors = table.after(pair);
        if !tokens.is_empty() {
            let mut tokens = tokens.clone();
            tokens.extend(successors.first().map(|(token, _)| *token));
            found.push(Candidate { tokens, weight });
        }
        if tokens.len() + 1 < depth {
            let sum: f64 = successors.iter().map(|(_, score)| f64::from(*score)).sum();
            for &(token, score) in successors {
                let mut tokens = tokens.clone();
                tokens.push(token);
                order += 1;
                let weight = weight * f64::from(score) / sum;
                open.push(Open { weight, order, pair: (pair.1, token), tokens });
            }
        }
    }
    found
}

/// The union of all beginnings of the candidates, with at most `budget` nodes and `depth` levels; level by level,
/// within a level by first mention.
pub fn trie(
    root: Token,
    candidates: &[Candidate],
    prune: Prune,
    budget: usize,
    depth: usize,
) -> Result<TokenTree> {
    let mut paths: Vec<&Candidate> = candidates.iter().collect();
    if prune == Prune::LongestFirst {
        // Paths by the number of their different tokens, longest first; sequences said twice count once.
        let mut seen = std::collections::HashSet::new();
        paths.retain(|candidate| seen.insert(&candidate.tokens));
        let count =
            |candidate: &Candidate| candidate.tokens.iter().collect::<std::collections::HashSet<_>>().len();
        paths.sort_by_key(|candidate| std::cmp::Reverse(count(candidate)));
        let mut total: usize = paths.iter().map(|candidate| count(candidate)).sum();
        let gone = paths
            .iter()
            .take_while(|candidate| {
                let drop = total > budget;
                total -= if drop { count(candidate) } else { 0 };
                drop
            })
            .count();
        paths.drain(..gone);
    }
    // Nodes in the order of first mention: token, parent, depth, the largest weight of a path through it.
    let mut nodes: Vec<(Token, usize, usize, f64)> = vec![(root, 0, 0, f64::INFINITY)];
    let mut places: HashMap<(usize, Token), usize> = HashMap::new();
    for candidate in paths {
        let mut at = 0;
        for (level, &token) in candidate.tokens.iter().take(depth).enumerate() {
            at = *places.entry((at, token)).or_insert_with(|| {
                nodes.push((token, at, level + 1, 0.0));
                nodes.len() - 1
            });
            nodes[at].3 = nodes[at].3.max(candidate.weight);
        }
    }
    let mut chosen: Vec<usize> = (1..nodes.len()).collect();
    let level = |node: &usize| nodes[*node].2;
    match prune {
        // A node weighs no more than its parent and is deeper, so parents come first.
        Prune::FewestVisits => chosen
            .sort_by(|a, b| nodes[*b].3.total_cmp(&nodes[*a].3).then(level(a).cmp(&level(b))).then(a.cmp(b))),
        Prune::LongestFirst => chosen.sort_by_key(|node| (level(node), *node)),
    }
    chosen.truncate(budget);
    chosen.sort_by_key(|node| (level(node), *node));
    let mut tree = TokenTree::new(root);
    let mut index = HashMap::from([(0, 0)]);
    for node in chosen {
        let (token, parent, ..) = nodes[node];
        if let Some(&parent) = index.get(&parent) {
            index.insert(node, tree.push(parent, token)?);
        }
    }
    Ok(tree)
}

/// Drafts from a table of tri-grams.
#[derive(Clone, Debug)]
pub struct AdedDrafter {
    table: Trigrams,
    config: Aded,
    rng: StreamRng,
    /// By depth: nodes drafted below an accepted parent whose siblings were all rejected or that were kept, and kept.
    tallies: Vec<(f64, f64)>,
}

impl AdedDrafter {
    /// A drafter over a table.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(table: Trigrams, config: Aded) -> Result<Self> {
        config.check()?;
        let rng = Streams::new(config.seed).stream("draft");
        Ok(Self { table, config, rng, tallies: vec![(4.0, 2.0); config.depth + 1] })
    }

    /// The table as it stands.
    pub fn table(&self) -> &Trigrams {
        &self.table
    }

    /// The chance that each node is kept: the share of its score among its pair's, times how often a level was passed
    /// at all so far.
    fn estimates(&self, tree: &TokenTree, before: Token) -> Vec<f64> {
        let mut all = vec![1.0; tree.len()];
        for node in 1..tree.len() {
            let Some(parent) = tree.parent(node) else { continue };
            let first = tree.parent(parent).map_or(before, |above| tree.token(above));
            let successors = self.table.after((first, tree.token(parent)));
            let sum: f64 = successors.iter().map(|(_, score)| f64::from(*score)).sum();
            let own = self.table.score((first, tree.token(parent)), tree.token(node));
            let share = if sum > 0.0 { f64::from(own) / sum } else { 0.0 };
            let (tried, kept) = self.tallies[tree.depth(node).min(self.tallies.len() - 1)];
            all[node] = all[parent] * share * kept / tried;
        }
        all
    }
}

impl Drafter for AdedDrafter {
    fn name(&self) -> String {
        let search = match self.config.search {
            Search::Mcts => "MCTS",
            Search::TopK => "top-k",
            Search::Greedy => "greedy path",
        };
        let adaptive = if self.config.adaptive { "adaptive" } else { "static" };
        format!("ADED ({search}, {adaptive}, {} nodes)", self.config.nodes)
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        if self.config.adaptive {
            self.table.learn(ask.text);
        }
        let &[.., before, root] = ask.text else { return Ok(Draft::none(ask.root())) };
        let Aded { search, depth, kept, prune, nodes, .. } = self.config;
        let pair = (before, root);
        let candidates = match search {
            Search::Mcts => {
                Tree::search(&self.table, &self.config, pair, &mut self.rng).candidates(&self.table, kept)
            }
            Search::TopK => top_k(&self.table, pair, kept, depth),
            Search::Greedy => {
                let (mut pair, mut tokens) = (pair, Vec::new());
                while tokens.len() < depth
                    && let Some(&(token, _)) = self.table.after(pair).first()
                {
                    tokens.push(token);
                    pair = (pair.1, token);
                }
                vec![Candidate { tokens, weight: 1.0 }]
            }
        };
        let tree = trie(root, &candidates, prune, nodes.min(ask.budget), ask.depth)?;
        let estimates = self.estimates(&tree, before);
        let mut draft = Draft::fixed(tree);
        draft.set_estimates(estimates)?;
        Ok(draft)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        let tree = outcome.draft.tree();
        let accepted = |node: &usize| *node == 0 || outcome.path.contains(node);
        for node in (0..tree.len()).filter(accepted) {
            if tree.children(node).next().is_some() {
                let level = (tree.depth(node) + 1).min(self.tallies.len() - 1);
                self.tallies[level].0 += 1.0;
                self.tallies[level].1 +=
                    f64::from(u8::from(tree.children(node).any(|child| accepted(&child))));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drafters::TrigramConfig;

    /// Every pair is followed by the same tokens with the same scores.
    fn table(vocab: Token, successors: &[(Token, u32)]) -> Trigrams {
        let mut documents = Vec::new();
        for a in 0..vocab {
            for b in 0..vocab {
                for &(token, count) in successors {
                    (0..count).for_each(|_| documents.push([a, b, token]));
                }
            }
        }
        Trigrams::build(TrigramConfig::default(), documents.iter().map(|gram| gram.as_slice()))
            .expect("valid")
    }

    #[test]
    fn puct_by_hand() {
        let config = Aded::default();
        assert!((config.puct(10, 2, 2.0, 0.5) - 18.3214).abs() < 5e-5);
        assert_eq!(config.puct(10, 0, 0.0, 0.5), f64::INFINITY);
        assert_eq!(config.puct(0, 2, 3.0, 0.5), 1.5, "without visits of the parent only W/n is left");
    }

    #[test]
    fn visits_follow_the_scores() {
        let table = table(3, &[(0, 5), (1, 3), (2, 2)]);
        for literal_reward in [false, true] {
            let config = Aded { literal_reward, ..Aded::default() };
            let tree = Tree::search(&table, &config, (0, 0), &mut Streams::new(1).stream("test"));
            let (all, level) = tree.visits(&[]).expect("there");
            assert_eq!((all, level.iter().sum::<u64>()), (150, 150));
            for (visits, share) in level.iter().zip([0.5, 0.3, 0.2]) {
                assert!((*visits as f64 / 150.0 - share).abs() < 0.05, "{level:?}");
            }
            for tokens in [&[0][..], &[1], &[2], &[0, 0], &[1, 0]] {
                let (own, below) = tree.visits(tokens).expect("there");
                let below: u64 = below.iter().sum();
                assert!(own == below || own == below + 1, "{tokens:?}: {own} {below}");
            }
            assert_eq!(tree.visits(&[2]).map(|(own, below)| own - below.iter().sum::<u64>()), Some(1));
        }
    }

    #[test]
    fn a_chain_drafts_its_continuation() {
        // (a, b) -> b + 1 modulo 9.
        let mut documents = Vec::new();
        for a in 0..9 {
            for b in 0..9 {
                documents.push([a, b, (b + 1) % 9]);
            }
        }
        let table = Trigrams::build(TrigramConfig::default(), documents.iter().map(|gram| gram.as_slice()))
            .expect("valid");
        let config = Aded::default();
        let found = Tree::search(&table, &config, (0, 1), &mut Streams::new(1).stream("test"))
            .candidates(&table, config.kept);
        for found in [found, top_k(&table, (0, 1), 24, 4)] {
            assert!(found.iter().any(|candidate| candidate.tokens == [2, 3, 4, 5]));
            let tree = trie(1, &found, Prune::FewestVisits, 64, 64).expect("a tree");
            assert_eq!(tree, TokenTree::chain(1, &[2, 3, 4, 5]));
        }
    }

    #[test]
    fn the_search_finds_nearly_what_is_best() {
        let table = table(3, &[(0, 5), (1, 3), (2, 2)]);
        let config = Aded::default();
        let mcts = Tree::search(&table, &config, (0, 0), &mut Streams::new(3).stream("test"))
            .candidates(&table, config.kept);
        let exact = top_k(&table, (0, 0), config.kept, config.depth);
        assert_eq!((mcts.len(), exact.len()), (23, 23));
        let common = exact.iter().filter(|one| mcts.iter().any(|other| other.tokens == one.tokens)).count();
        assert!(common >= 19, "{common} of 23");
        // By hand: .5, .3, .25 (two of them: 00 and, by ties in order of discovery, none other), ...
        let weights: Vec<f64> = exact.iter().take(5).map(|candidate| candidate.weight).collect();
        for (got, want) in weights.iter().zip([0.5, 0.3, 0.25, 0.2, 0.15]) {
            assert!((got - want).abs() < 1e-6, "{weights:?}");
        }
    }

    #[test]
    fn best_first_by_products_has_the_largest_sum() {
        // Of all trees of n nodes, connected to the root, none has a larger sum of path products.
        let shares = [[0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.34, 0.33, 0.33]];
        let mut documents = Vec::new();
        for (a, b) in (0..3).flat_map(|a| (0..3).map(move |b| (a, b))) {
            for (c, share) in shares[(a + 2 * b) as usize % 3].iter().enumerate() {
                (0..(100.0 * share) as usize).for_each(|_| documents.push([a, b, c as Token]));
            }
        }
        let table = Trigrams::build(TrigramConfig::default(), documents.iter().map(|gram| gram.as_slice()))
            .expect("valid");
        let mut nodes: Vec<(Vec<Token>, f64)> = Vec::new();
        let mut level = vec![(vec![], 1.0)];
        for _ in 0..3 {
            level = level
                .iter()
                .flat_map(|(path, weight): &(Vec<Token>, f64)| {
                    let last: Vec<Token> = [0, 1].iter().chain(path).copied().collect();
                    let (a, b) = (last[last.len() - 2], last[last.len() - 1]);
                    let law = shares[(a + 2 * b) as usize % 3];
                    (0..3).map(move |c| {
                        let longer = path.iter().copied().chain([c as Token]).collect();
                        (longer, weight * law[c])
                    })
                })
                .collect();
            nodes.extend(level.iter().cloned());
        }
        // Products fall along a path, so the n largest of all nodes are such a tree, and no set does better.
        nodes.sort_by(|a, b| b.1.total_cmp(&a.1));
        for count in [1, 4, 9, 20] {
            // The root counts among those kept.
            let found = top_k(&table, (0, 1), count + 1, 4);
            let got: f64 = found.iter().map(|candidate| candidate.weight).sum();
            let want: f64 = nodes[..count].iter().map(|(_, weight)| weight).sum();
            assert_eq!(found.len(), count);
            assert!((got - want).abs() < 1e-5, "{count}: {got} {want}");
        }
    }

    #[test]
    fn tries_by_hand() {
        let candidate = |tokens: &[Token], weight| Candidate { tokens: tokens.to_vec(), weight };
        let candidates = [candidate(&[7, 8], 3.0), candidate(&[7, 9], 2.0), candidate(&[3], 1.0)];
        for prune in [Prune::FewestVisits, Prune::LongestFirst] {
            let tree = trie(1, &candidates, prune, 64, 64).expect("a tree");
            assert_eq!(tree.tokens(), [1, 7, 3, 8, 9]);
            assert_eq!((1..5).map(|node| tree.parent(node)).collect::<Vec<_>>(), [0, 0, 1, 1].map(Some));
        }
        let cut = |prune, budget| trie(1, &candidates, prune, budget, 64).expect("a tree");
        assert_eq!(cut(Prune::FewestVisits, 2).tokens(), [1, 7, 8]);
        // 2 + 2 + 1 = 5 > 4: the first of the longest goes.
        assert_eq!(cut(Prune::LongestFirst, 4).tokens(), [1, 7, 3, 9]);
        assert_eq!(cut(Prune::LongestFirst, 2).tokens(), [1, 3]);
        assert_eq!(trie(1, &candidates, Prune::FewestVisits, 64, 1).expect("a tree").tokens(), [1, 7, 3]);
        assert_eq!(trie(1, &[], Prune::FewestVisits, 64, 4).expect("a tree").len(), 1);
    }

    #[test]
    fn numbers_are_checked() {
        let good = Aded::default();
        for bad in [
            Aded { iterations: 0, ..good },
            Aded { depth: 1, ..good },
            Aded { kept: 1, ..good },
            Aded { nodes: 0, ..good },
            Aded { c1: f64::NAN, ..good },
            Aded { c2: 0.0, ..good },
        ] {
            let table = Trigrams::new(TrigramConfig::default()).expect("valid");
            assert!(AdedDrafter::new(table, bad).is_err(), "{bad:?}");
        }
    }
}
