//! RSD, recursive speculative decoding: draft trees whose siblings (RSD-C) or whole sequences (RSD-S) are drawn
//! without replacement, so that no node is spent on a token twice; verified by recursive rejection.
//!
//! RSD-C, branching `b = (b_0, ..., b_{L-1})`: below every node of level `l`, draw `b_l` children without replacement,
//! all laws of a level in one pass of the draft.
//!
//! RSD-S, width `W`, depth `L`, a stochastic beam search (Kool et al. 2019):
//! 1. The root has log-probability `phi = 0` and perturbed log-probability `psi = 0`.
//! 2. For every entry `s` and token `x`: `phi_x = phi_s + ln q(x|s)`, `g_x = phi_x + Gumbel`, and `psi_x` is `g_x`
//!    conditioned on the largest of the entry's successors being `psi_s` ([`gumbel::successors`]).
//! 3. The `W` largest `psi` over all entries are the next level; siblings by descending `psi`, which is the order in
//!    which they were drawn.
//!
//! That entries fall off a full beam does not bias verification: seen as a race of exponential clocks, whether the
//! `k`-th child survives depends on its time of arrival and on other nodes, and times are independent of which token
//! arrives; what is lost is always the last of the siblings.
//!
//! | default | value | source |
//! |---|---|---|
//! | branching | 2, 2, 2 (14 nodes) | experiment 2, budget 14 |
//! | width, depth | 2, 7 (14 nodes) | the same |
//!
//! **Deviations.** The children of RSD-C are drawn one after the other from the law without those drawn before, which
//! is the law of Gumbel-top-k ([`gumbel::top`] has it, and a test holds the two equal) without a logarithm a token. Where
//! a request allows fewer nodes than a tree has, RSD-C stops drawing in the order of levels, and RSD-S takes a narrower
//! or shallower beam: neither looks at tokens. No code was released; verification is the rule of NJUNLP/MCSD and
//! Infini-AI-Lab/Sequoia, which this crate's verifiers have.
//!
//! **Cost.** A pass of the draft a level; RSD-S draws `W V` Gumbel variables a level.
//!
//! References: arXiv 2402.14160; wouterkool/stochastic-beam-search `fairseq/gumbel.py` (arXiv 1903.06059).
//!
//! ```
//! use pilotfish_decoding::{Decoder, Limits, Recursive};
//! use pilotfish_decoding::drafters::{DraftModel, Rsd, Shape};
//! use pilotfish_model::{Streams, sampling::Warpers, toy::TableModel};
//! let mut target = TableModel::new(1, 2, vec![0.1, 0.9, 0.8, 0.2])?;
//! let (draft, streams) = (DraftModel::new(Box::new(target.mixed(0.2)?)), Streams::new(1));
//! let mut drafter = Rsd::new(draft, Shape::Beam { width: 2, depth: 3 }, streams)?;
//! let mut verifier = Recursive::new(Warpers::temperature(1.0).check()?, streams);
//! let limits = Limits { new_tokens: 60, ..Limits::default() };
//! let out = Decoder::new(&mut target, &mut drafter, &mut verifier, limits)?.generate(&[0])?;
//! assert!(out.ledger.mean_accepted_tokens().is_some_and(|mean| mean > 2.0));
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

use pilotfish_model::{ModelInfo, StreamRng, Streams, Token};

use super::{Bounds, DraftModel, Laws, Pick, Template, gumbel, same_vocabulary};
use crate::{Ask, DecodingError, Draft, Drafter, Drawn, Outcome, Result};

/// Grows a draft of constant branching.
///
/// # Errors
/// Whatever the laws refuse.
pub fn constant(
    root: Token,
    bounds: Bounds<'_>,
    branching: &[usize],
    laws: &mut dyn Laws,
    pick: &mut Pick,
) -> Result<Draft> {
    let mut draft = Draft::sampled(root, pick.drawn());
    let mut values = vec![1.0];
    let mut level = vec![0];
    for &children in branching.iter().take(bounds.depth) {
        level.retain(|&node: &usize| node == 0 || !bounds.end.contains(&draft.tree().token(node)));
        if level.is_empty() || draft.len() >= bounds.nodes {
            break;
        }
        let all = laws.laws(draft.tree(), &level)?;
        let mut next = Vec::new();
        for (&node, law) in level.iter().zip(all) {
            let count = children.min(bounds.nodes - draft.len());
            let mut rest = Some(law.clone());
            if count > 0 {
                pick.law(&mut draft, node, &law)?;
            }
            for _ in 0..count {
                let Some(from) = rest.take() else { break };
                let token = pick.draw(&from);
                next.push(draft.push(node, token)?);
                values.push(values[node] * law.prob(token));
                rest = from.without(token);
            }
        }
        level = next;
    }
    draft.set_estimates(values)?;
    Ok(draft)
}

/// Grows a draft of a fixed shape: what dynamic trees are compared with (Sequoia's, say). A node has as many children as
/// in the template; which of them they are is decided by nothing but their rank.
///
/// # Errors
/// Whatever the laws refuse.
pub fn shaped(
    root: Token,
    bounds: Bounds<'_>,
    template: &Template,
    laws: &mut dyn Laws,
    pick: &mut Pick,
) -> Result<Draft> {
    let mut draft = Draft::sampled(root, pick.drawn());
    let mut values = vec![1.0];
    // By node of the template, in the order of their ranks.
    let mut children = vec![Vec::new(); template.len() + 1];
    template.parents().iter().enumerate().for_each(|(index, &parent)| children[parent].push(index + 1));
    // Nodes of the draft with their nodes of the template.
    let mut level = vec![(0, 0)];
    for _ in 0..bounds.depth {
        level.retain(|&(node, of): &(usize, usize)| {
            !children[of].is_empty() && (node == 0 || !bounds.end.contains(&draft.tree().token(node)))
        });
        if level.is_empty() || draft.len() >= bounds.nodes {
            break;
        }
        let nodes: Vec<usize> = level.iter().map(|(node, _)| *node).collect();
        let all = laws.laws(draft.tree(), &nodes)?;
        let mut next = Vec::new();
        for (&(node, of), law) in level.iter().zip(all) {
            let room = bounds.nodes - draft.len();
            let mut rest = None;
            for (index, &child) in children[of].iter().take(room).enumerate() {
                if index == 0 {
                    pick.law(&mut draft, node, &law)?;
                    rest = Some(law.clone());
                }
                let Some(from) = rest.take() else { break };
                let token = pick.draw(&from);
                next.push((draft.push(node, token)?, child));
                values.push(values[node] * law.prob(token));
                rest = from.without(token);
            }
        }
        level = next;
    }
    draft.set_estimates(values)?;
    Ok(draft)
}

/// Draws sequences independently of each other: what RSD is compared with (SpecInfer, SpecTr). Siblings are drawn with
/// replacement; sequences that begin alike are not merged.
///
/// # Errors
/// Whatever the laws refuse.
pub fn paths(
    root: Token,
    bounds: Bounds<'_>,
    count: usize,
    laws: &mut dyn Laws,
    pick: &mut Pick,
) -> Result<Draft> {
    let mut draft = Draft::sampled(root, Drawn::WithReplacement);
    let mut values = vec![1.0];
    let count = count.min(bounds.nodes);
    let levels = bounds.depth.min(bounds.nodes / count.max(1));
    let mut level = vec![0];
    for depth in 0..levels {
        level.retain(|&node: &usize| node == 0 || !bounds.end.contains(&draft.tree().token(node)));
        if level.is_empty() {
            break;
        }
        let all = laws.laws(draft.tree(), &level)?;
        let mut next = Vec::new();
        for (node, law) in level.into_iter().zip(all) {
            for _ in 0..if depth == 0 { count } else { 1 } {
                let token = pick.draw(&law);
                next.push(draft.push(node, token)?);
                values.push(values[node] * law.prob(token));
            }
            draft.set_law(node, law)?;
        }
        level = next;
    }
    draft.set_estimates(values)?;
    Ok(draft)
}

/// Grows a draft by stochastic beam search, at most `width` nodes a level.
///
/// # Errors
/// Whatever the laws refuse.
pub fn beam(
    root: Token,
    bounds: Bounds<'_>,
    width: usize,
    laws: &mut dyn Laws,
    rng: &mut StreamRng,
) -> Result<Draft> {
    let mut draft = Draft::sampled(root, Drawn::WithoutReplacement);
    let mut values = vec![1.0];
    // Node, phi, psi.
    let mut entries: Vec<(usize, f64, f64)> = vec![(0, 0.0, 0.0)];
    let width = width.min(bounds.nodes);
    let levels = bounds.depth.min(bounds.nodes / width.max(1));
    for _ in 0..levels {
        entries.retain(|&(node, ..)| node == 0 || !bounds.end.contains(&draft.tree().token(node)));
        if entries.is_empty() {
            break;
        }
        let nodes: Vec<usize> = entries.iter().map(|(node, ..)| *node).collect();
        let all = laws.laws(draft.tree(), &nodes)?;
        let mut next: Vec<(usize, gumbel::Successor)> = Vec::new();
        for (&(node, phi, psi), law) in entries.iter().zip(&all) {
            let found = gumbel::successors(phi, psi, law, width, || gumbel::gumbel(rng));
            next.extend(found.into_iter().map(|successor| (node, successor)));
        }
        next.sort_by(|a, b| b.1.psi.total_cmp(&a.1.psi));
        next.truncate(width);
        for (node, law) in nodes.into_iter().zip(all) {
            if next.iter().any(|(parent, _)| *parent == node) {
                draft.set_law(node, law)?;
            }
        }
        entries.clear();
        for (parent, gumbel::Successor { token, phi, psi }) in next {
            entries.push((draft.push(parent, token)?, phi, psi));
            values.push(phi.exp());
        }
    }
    draft.set_estimates(values)?;
    Ok(draft)
}

/// Shape of an RSD tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// RSD-C: children a node, by level.
    Constant(Vec<usize>),
    /// RSD-S: a beam.
    Beam {
        /// Nodes a level.
        width: usize,
        /// Levels.
        depth: usize,
    },
    /// Sequences drawn independently, the baseline.
    Paths {
        /// Sequences.
        count: usize,
        /// Tokens a sequence.
        depth: usize,
    },
    /// Any fixed shape.
    Shaped(Template),
}

impl Default for Shape {
    fn default() -> Self {
        Self::Constant(vec![2, 2, 2])
    }
}

impl Shape {
    /// Nodes of a whole tree, where no law runs out of tokens.
    pub fn nodes(&self) -> usize {
        match self {
            Self::Constant(branching) => {
                let mut level = 1usize;
                branching
                    .iter()
                    .map(|&children| {
                        level = level.saturating_mul(children);
                        level
                    })
                    .fold(0, usize::saturating_add)
            }
            Self::Beam { width, depth } | Self::Paths { count: width, depth } => width.saturating_mul(*depth),
            Self::Shaped(template) => template.len(),
        }
    }

    fn check(&self) -> Result<()> {
        let nodes = self.nodes();
        let positive = match self {
            Self::Constant(branching) => !branching.contains(&0),
            Self::Beam { width, depth } | Self::Paths { count: width, depth } => *width > 0 && *depth > 0,
            Self::Shaped(_) => true,
        };
        if nodes == 0 || nodes > 1 << 16 || !positive {
            let want = "every number at least 1, 65536 nodes at most";
            return Err(DecodingError::BadParameter { name: "nodes of an RSD tree", value: nodes, want });
        }
        Ok(())
    }
}

/// Drafts trees drawn from a draft model.
#[derive(Debug)]
pub struct Rsd {
    model: DraftModel,
    shape: Shape,
    pick: Pick,
    rng: StreamRng,
}

impl Rsd {
    /// A drafter that draws from the stream `draft` of these streams.
    ///
    /// # Errors
    /// A shape without nodes or of too many; a draft model that takes no trees.
    pub fn new(model: DraftModel, shape: Shape, streams: Streams) -> Result<Self> {
        Self::with_pick(model, shape, Pick::sampled(streams), streams)
    }

    /// The same with another source of the draws of RSD-C.
    ///
    /// # Errors
    /// As [`Rsd::new`].
    pub fn with_pick(model: DraftModel, shape: Shape, pick: Pick, streams: Streams) -> Result<Self> {
        model.info().require(pilotfish_model::Capability::Tree)?;
        shape.check()?;
        Ok(Self { model, shape, pick, rng: streams.stream("draft") })
    }
}

impl Drafter for Rsd {
    fn name(&self) -> String {
        let shape = match &self.shape {
            Shape::Constant(branching) => {
                format!("RSD-C {}", branching.iter().map(usize::to_string).collect::<Vec<_>>().join("-"))
            }
            Shape::Beam { width, depth } => format!("RSD-S {width}x{depth}"),
            Shape::Paths { count, depth } => format!("independent {count}x{depth}"),
            Shape::Shaped(template) => format!("fixed shape of {} nodes", template.len()),
        };
        format!("{shape} ({})", self.model.info().name)
    }

    fn drawn(&self) -> Drawn {
        match self.shape {
            Shape::Constant(_) | Shape::Shaped(_) => self.pick.drawn(),
            Shape::Beam { .. } => Drawn::WithoutReplacement,
            Shape::Paths { .. } => Drawn::WithReplacement,
        }
    }

    fn fits(&self, target: &ModelInfo) -> Result<()> {
        same_vocabulary(|| self.name(), self.model.info().vocab, target)
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let (root, nodes) = (ask.root(), ask.budget);
        let depth = ask.depth.min(self.model.room(ask.text.len()));
        if depth == 0 {
            return Ok(Draft::none(root));
        }
        let end = self.model.info().end.clone();
        let mut pass = self.model.begin(ask, false)?;
        match &self.shape {
            Shape::Constant(branching) => {
                constant(root, Bounds { nodes, depth, end: &end }, branching, &mut pass, &mut self.pick)
            }
            &Shape::Beam { width, depth: levels } => {
                let bounds = Bounds { nodes, depth: depth.min(levels), end: &end };
                beam(root, bounds, width, &mut pass, &mut self.rng)
            }
            &Shape::Paths { count, depth: levels } => {
                let bounds = Bounds { nodes, depth: depth.min(levels), end: &end };
                paths(root, bounds, count, &mut pass, &mut self.pick)
            }
            Shape::Shaped(template) => {
                shaped(root, Bounds { nodes, depth, end: &end }, template, &mut pass, &mut self.pick)
            }
        }
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        self.model.observe(outcome)
    }
}
