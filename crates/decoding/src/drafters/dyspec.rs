//! DySpec: a draft tree grown where the draft model expects most. A sure draft becomes a chain, an unsure one a fan,
//! for the same number of nodes.
//!
//! `D(.|path)` is the draft's law; a *slot* is the next draw below a node, with the value
//! `v = prod over the path of d(t) * (1 - sum over earlier siblings of d)`: the chance that verification gets there.
//! Greedy form, `m` nodes (paper, algorithm 1):
//! 1. A heap holds the slot below the root with `v = 1`.
//! 2. Pop the slot of the largest `v` (ties: the older). Draw `y ~ R`, the law without the siblings drawn before.
//! 3. Add `y`. Its next sibling's slot has `v (1 - R[y])` and the law without `y`; its first child's has `v R[y]`.
//! 4. Until there are `m` nodes.
//!
//! Threshold form (algorithm 2): level by level, one pass of the draft a level; below each node, draw while `v >= C`.
//!
//! Whether a slot is drawn is decided by `v`, before the token is known, and what is drawn is kept: so recursive
//! rejection without replacement is exact.
//!
//! | default | value | source |
//! |---|---|---|
//! | nodes | 64 | paper, tables |
//! | threshold | 1/nodes | section 4.4 |
//! | draft temperature | 0.6 | section "Setup"; given to [`DraftModel::with_sampler`], else the target's warpers |
//!
//! **Deviations.** The paper runs the draft on every node as it is added; here when the slot below it is popped, which
//! gives the same tree in fewer passes. The listing of algorithm 2 tests `v < t`, against the text and algorithm 1;
//! here `v >= C`. Siblings end where less than 1e-9 of a law is left. With [`Pick::Largest`] the likeliest remaining
//! token is taken instead of a draw, which is legal (and better) for a greedy target only through a rule for fixed
//! drafts; such drafts say that they are fixed. The order of nodes for blocked attention (appendix C) is left out: it
//! brought its authors nothing either.
//!
//! **Cost.** Greedy: a pass of the draft for each inner node. Threshold: a pass a level.
//!
//! Reference: arXiv 2410.11744; there is no public code.
//!
//! ```
//! use pilotfish_decoding::{Decoder, Limits, Recursive};
//! use pilotfish_decoding::drafters::{DraftModel, DySpec, DySpecConfig, Growth, Pick};
//! use pilotfish_model::{Streams, sampling::Warpers, toy::TableModel};
//! let mut target = TableModel::new(1, 2, vec![0.1, 0.9, 0.8, 0.2])?;
//! let (draft, streams) = (DraftModel::new(Box::new(target.mixed(0.2)?)), Streams::new(1));
//! let config = DySpecConfig { nodes: 8, growth: Growth::Threshold(0.1) };
//! let mut drafter = DySpec::new(draft, config, Pick::sampled(streams))?;
//! let mut verifier = Recursive::new(Warpers::temperature(1.0).check()?, streams);
//! let limits = Limits { new_tokens: 60, ..Limits::default() };
//! let out = Decoder::new(&mut target, &mut drafter, &mut verifier, limits)?.generate(&[0])?;
//! assert!(out.ledger.mean_accepted_tokens().is_some_and(|mean| mean > 2.0));
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

use std::collections::BinaryHeap;

use pilotfish_model::sampling::Distribution;
use pilotfish_model::{ModelInfo, Token};

use super::{DraftModel, Laws, Pick, same_vocabulary};
use crate::{Ask, DecodingError, Draft, Drafter, Drawn, Outcome, Result};

/// Which form of the construction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Growth {
    /// The best slots, one at a time.
    Greedy,
    /// All slots with at least this value, level by level.
    Threshold(f64),
}

/// Less of a law than this is nothing.
const CRUMB: f64 = 1e-9;

/// A slot that was drawn, in the order drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawing {
    /// Node that it became.
    pub node: usize,
    /// Value of the slot.
    pub slot: f64,
    /// Product of draft probabilities along the path, the node's own included, each given its earlier siblings.
    pub value: f64,
}

/// What may be grown.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// Nodes at most.
    pub nodes: usize,
    /// Levels at most.
    pub depth: usize,
    /// Tokens that end a text: nothing is drafted after them.
    pub end: &'a [Token],
}

/// The open slot below a node.
struct Slot {
    value: f64,
    order: usize,
    parent: usize,
    /// The law without what was drawn before; not known until the parent has been run.
    rest: Option<Distribution>,
    /// How much of the node's law is left.
    mass: f64,
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Slot {}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slot {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.value.total_cmp(&other.value).then(other.order.cmp(&self.order))
    }
}

/// Grows a draft greedily.
///
/// # Errors
/// Whatever the laws refuse.
pub fn greedy(
    root: Token,
    bounds: Bounds<'_>,
    laws: &mut dyn Laws,
    pick: &mut Pick,
) -> Result<(Draft, Vec<Drawing>)> {
    let mut draft = Draft::sampled(root, pick.drawn());
    let mut drawings: Vec<Drawing> = Vec::new();
    let mut values = vec![1.0];
    let mut order = 0;
    let mut heap = BinaryHeap::from([Slot { value: 1.0, order, parent: 0, rest: None, mass: 1.0 }]);
    while drawings.len() < bounds.nodes
        && let Some(slot) = heap.pop()
    {
        let rest = match slot.rest {
            Some(rest) => rest,
            None => {
                let law = one(laws.laws(draft.tree(), &[slot.parent])?, slot.parent)?;
                pick.law(&mut draft, slot.parent, &law)?;
                law
            }
        };
        let token = pick.draw(&rest);
        let node = draft.push(slot.parent, token)?;
        let share = rest.prob(token);
        let value = slot.value * share;
        drawings.push(Drawing { node, slot: slot.value, value });
        values.push(value);
        let sibling = slot.value * (1.0 - share);
        let mass = slot.mass * (1.0 - share);
        if mass > CRUMB
            && sibling > 0.0
            && let Some(rest) = rest.without(token)
        {
            order += 1;
            heap.push(Slot { value: sibling, order, parent: slot.parent, rest: Some(rest), mass });
        }
        if draft.tree().depth(node) < bounds.depth && !bounds.end.contains(&token) {
            order += 1;
            heap.push(Slot { value, order, parent: node, rest: None, mass: 1.0 });
        }
    }
    draft.set_estimates(values)?;
    Ok((draft, drawings))
}

/// Grows a draft level by level.
///
/// # Errors
/// Whatever the laws refuse.
pub fn threshold(
    root: Token,
    bounds: Bounds<'_>,
    least: f64,
    laws: &mut dyn Laws,
    pick: &mut Pick,
) -> Result<(Draft, Vec<Drawing>)> {
    let mut draft = Draft::sampled(root, pick.drawn());
    let mut drawings: Vec<Drawing> = Vec::new();
    let mut values = vec![1.0];
    let mut level = vec![0];
    for depth in 0..bounds.depth {
        level.retain(|&node: &usize| {
            values[node] >= least && !(node > 0 && bounds.end.contains(&draft.tree().token(node)))
        });
        if level.is_empty() || drawings.len() >= bounds.nodes {
            break;
        }
        let all = laws.laws(draft.tree(), &level)?;
        debug_assert!(level.iter().all(|&node| draft.tree().depth(node) == depth));
        let mut next = Vec::new();
        for (&node, law) in level.iter().zip(all) {
            let (mut slot, mut mass) = (values[node], 1.0);
            let mut rest = Some(law.clone());
            let mut drawn = false;
            while slot >= least
                && mass > CRUMB
                && drawings.len() < bounds.nodes
                && let Some(from) = rest.take()
            {
                if !drawn {
                    pick.law(&mut draft, node, &law)?;
                    drawn = true;
                }
                let token = pick.draw(&from);
                let child = draft.push(node, token)?;
                let share = from.prob(token);
                drawings.push(Drawing { node: child, slot, value: slot * share });
                values.push(slot * share);
                next.push(child);
                slot *= 1.0 - share;
                mass *= 1.0 - share;
                rest = from.without(token);
            }
        }
        level = next;
    }
    draft.set_estimates(values)?;
    Ok((draft, drawings))
}

fn one(mut laws: Vec<Distribution>, node: usize) -> Result<Distribution> {
    laws.pop().ok_or(DecodingError::NotRun { node })
}

/// Numbers of [`DySpec`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DySpecConfig {
    /// Nodes at most.
    pub nodes: usize,
    /// Form of the construction.
    pub growth: Growth,
}

impl Default for DySpecConfig {
    fn default() -> Self {
        Self { nodes: 64, growth: Growth::Greedy }
    }
}

/// Drafts trees of a draft model where it expects most.
#[derive(Debug)]
pub struct DySpec {
    model: DraftModel,
    config: DySpecConfig,
    pick: Pick,
}

impl DySpec {
    /// A drafter over a draft model.
    ///
    /// # Errors
    /// No nodes; a threshold that is not above 0 and at most 1; a draft model that takes no trees.
    pub fn new(model: DraftModel, config: DySpecConfig, pick: Pick) -> Result<Self> {
        model.info().require(pilotfish_model::Capability::Tree)?;
        if config.nodes == 0 {
            return Err(DecodingError::BadParameter { name: "nodes", value: 0, want: "at least 1" });
        }
        if let Growth::Threshold(value) = config.growth
            && !(value > 0.0 && value <= 1.0)
        {
            return Err(crate::drafters::number("threshold", value, "above 0 and at most 1"));
        }
        Ok(Self { model, config, pick })
    }
}

impl Drafter for DySpec {
    fn name(&self) -> String {
        let form = match self.config.growth {
            Growth::Greedy => "greedy".to_owned(),
            Growth::Threshold(value) => format!("threshold {value}"),
        };
        format!("DySpec ({form}, {} nodes, {})", self.config.nodes, self.model.info().name)
    }

    fn drawn(&self) -> Drawn {
        self.pick.drawn()
    }

    fn fits(&self, target: &ModelInfo) -> Result<()> {
        same_vocabulary(|| self.name(), self.model.info().vocab, target)
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let root = ask.root();
        let depth = ask.depth.min(self.model.room(ask.text.len()));
        let nodes = self.config.nodes.min(ask.budget);
        if depth == 0 {
            return Ok(Draft::none(root));
        }
        let end = self.model.info().end.clone();
        let bounds = Bounds { nodes, depth, end: &end };
        let mut pass = self.model.begin(ask, false)?;
        let (draft, _) = match self.config.growth {
            Growth::Greedy => greedy(root, bounds, &mut pass, &mut self.pick)?,
            Growth::Threshold(least) => threshold(root, bounds, least, &mut pass, &mut self.pick)?,
        };
        Ok(draft)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        self.model.observe(outcome)
    }
}
