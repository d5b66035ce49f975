use std::collections::{BTreeMap, VecDeque};

use pilotfish_model::{ModelError, Token, TokenTree};

use super::{Policy, Room, Spent, WidthCurve, best_prefix};
use crate::{Draft, Drawn, Result};

/// Numbers of [`CostAware`].
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CostAwareConfig {
    /// Nodes considered at most.
    pub nodes: usize,
    /// A draft must promise a speed-up of at least `1 + margin`.
    pub margin: f64,
    /// Weight of what is believed before anything is seen, in observations.
    pub prior: f64,
    /// What an observation is still worth after each further one of its kind, in `(0, 1]`.
    pub memory: f64,
    /// Plain rounds before a drafter that lost is tried again; doubled each time it loses again.
    pub probe: usize,
    /// Plain rounds between two trials at most.
    pub longest_probe: usize,
}

impl Default for CostAwareConfig {
    fn default() -> Self {
        Self { nodes: 64, margin: 0.02, prior: 4.0, memory: 0.99, probe: 8, longest_probe: 64 }
    }
}

impl CostAwareConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Nodes or probes of 0, a margin that is negative or NaN, a prior not above 0, a memory outside `(0, 1]`.
    pub fn check(self) -> Result<Self> {
        let refuse = |name, value, want| Err(ModelError::BadParameter { name, value, want }.into());
        if self.nodes == 0 {
            return refuse("nodes", 0.0, "at least 1");
        }
        if !(self.margin >= 0.0 && self.margin.is_finite()) {
            return refuse("margin", self.margin, "at least 0");
        }
        if !(self.prior > 0.0 && self.prior.is_finite()) {
            return refuse("prior", self.prior, "above 0");
        }
        if !(self.memory > 0.0 && self.memory <= 1.0) {
            return refuse("memory", self.memory, "above 0 and at most 1");
        }
        if self.probe == 0 || self.longest_probe < self.probe {
            return refuse("probe", self.probe as f64, "at least 1 and at most longest_probe");
        }
        Ok(self)
    }
}

/// Chooses each round's draft by what it is expected to gain and what it costs on this machine.
///
/// 1. **Estimates.** For every kind of node the policy keeps a running probability that it is kept given that its
///    parent is. The kind is the drafter's own conditional estimate, in tenths, where it gives estimates (they
///    are so calibrated), else the node's depth and its place among its siblings; for first tokens also
///    whether the first token of the draft before was right. A node's gain is the product along its path.
/// 2. **Trim** (drafts that were not sampled): nodes in descending order of gain, which keeps parents before
///    children; of their prefixes the one with the largest `S(n) = tau(n) / c(1 + n)` ([`best_prefix`]), or
///    nothing where that is below `1 + margin`. Drafting is paid already.
/// 3. **Shadows.** What was trimmed away is remembered and compared with the text as it grows: a drafter that is
///    not sampled is judged on all its nodes although few are verified. Nothing has to be tried to be known.
/// 4. **Plan.** Before drafting, running gains by order of proposal (for drafts that are trimmed: by order of gain) and the drafter's measured cost `d(n) = d_0 + n d_1`
///    give the best budget for `S(n) = tau(n) / (c(1 + n) + d(n))`. If it is below `1 + margin` the round is
///    plain, and the drafter is tried again after `probe` rounds, twice as many after each failure. A drafter
///    that costs less than a hundredth of a step and is not sampled is always asked.
///
/// | default | value | source |
/// |---|---|---|
/// | nodes | 64 | DySpec's budget |
/// | margin | 0.02 | chosen |
/// | prior, memory | 4, 0.99 | chosen |
/// | probe | 8 to 64 rounds | chosen: a trial costs at most a few per cent of the rounds between |
///
/// **Deviations.** PPD chooses one tree size for a machine beforehand, from one average acceptance; DySpec's
/// threshold is a constant. Here the same rule is applied to every round with running estimates. SpecDec++'s
/// theorem gives the threshold for stopping a chain; step 2 is that comparison with the step's real cost.
///
/// The policy changes nothing about exactness: it looks at a sampled draft before it is drawn only.
///
/// References: PPD, arXiv 2405.18628; DySpec, arXiv 2410.11744; Leviathan et al., arXiv 2211.17192.
#[derive(Clone, Debug)]
pub struct CostAware {
    config: CostAwareConfig,
    curve: WidthCurve,
    kinds: BTreeMap<Node, Rate>,
    /// Gains by order of proposal.
    ranks: Vec<Rate>,
    shadows: VecDeque<Shadow>,
    cost: DraftCost,
    /// Time of a one-row step, in seconds, from the rounds themselves.
    unit: Option<f64>,
    last_drawn: Option<Drawn>,
    luck: Luck,
    /// Whether the drafter was asked this round, and how many nodes it proposed before they were trimmed.
    asked: bool,
    proposed: Option<usize>,
    plain_rounds: usize,
    patience: usize,
}

/// How the drafter did lately: whether the first token of its last draft that has been judged was right. Text that
/// copies does so in runs. Only a first token's luck is told apart; further ones depend on it through theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Luck {
    /// Not the first token, or nothing judged yet.
    #[default]
    None,
    /// Right.
    Good,
    /// Wrong.
    Bad,
}

/// A kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    /// By the drafter's conditional estimate, in tenths.
    Estimated(u8, Luck),
    /// By depth and place among siblings, both cut.
    Placed(u8, u8, Luck),
}

impl Node {
    /// What is believed before anything is seen.
    fn prior(self) -> f64 {
        match self {
            Self::Estimated(tenths, _) => (f64::from(tenths) + 0.5) / 10.0,
            Self::Placed(depth, place, _) => {
                let first = if depth <= 1 { 0.4 } else { 0.6 };
                first * 0.4f64.powi(i32::from(place))
            }
        }
    }
}

/// A running relative frequency.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    seen: f64,
    hits: f64,
}

impl Rate {
    /// An outcome, or the probability of one.
    fn see(&mut self, hit: f64, memory: f64) {
        self.seen = self.seen * memory + 1.0;
        self.hits = self.hits * memory + hit;
    }

    fn value(&self, prior: f64, weight: f64) -> f64 {
        (self.hits + prior * weight) / (self.seen + weight)
    }
}

/// A draft that the growing text will judge.
#[derive(Clone, Debug)]
struct Shadow {
    tree: TokenTree,
    kinds: Vec<Node>,
    /// Tokens of the text up to and with the root.
    root: usize,
    /// Node up to which the text has followed, and how many tokens past the root that is.
    at: usize,
    followed: usize,
}

/// Running least squares of drafting time on drafted nodes.
#[derive(Clone, Copy, Debug, Default)]
struct DraftCost {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl DraftCost {
    fn see(&mut self, nodes: usize, seconds: f64, memory: f64) {
        let x = nodes as f64;
        for sum in [&mut self.n, &mut self.x, &mut self.y, &mut self.xx, &mut self.xy] {
            *sum *= memory;
        }
        self.n += 1.0;
        self.x += x;
        self.y += seconds;
        self.xx += x * x;
        self.xy += x * seconds;
    }

    /// Seconds for a number of nodes: a line with neither part below 0.
    fn seconds(&self, nodes: usize) -> f64 {
        if self.n == 0.0 {
            return 0.0;
        }
        let spread = self.n * self.xx - self.x * self.x;
        let slope = if spread > 1e-9 { (self.n * self.xy - self.x * self.y) / spread } else { 0.0 };
        // All in the slope when a line would cross zero: time is spent a node then.
        let through_zero = if self.xx > 0.0 { self.xy / self.xx } else { 0.0 };
        let base = (self.y - slope * self.x) / self.n;
        match (slope < 0.0, base < 0.0) {
            (true, _) => self.y / self.n,
            (_, true) => through_zero * nodes as f64,
            _ => base + slope * nodes as f64,
        }
    }
}

impl CostAware {
    /// A policy for a machine with this curve.
    ///
    /// # Errors
    /// As [`CostAwareConfig::check`].
    pub fn new(curve: WidthCurve, config: CostAwareConfig) -> Result<Self> {
        let config = config.check()?;
        Ok(Self {
            config,
            curve,
            kinds: BTreeMap::new(),
            ranks: vec![Rate::default(); config.nodes],
            shadows: VecDeque::new(),
            cost: DraftCost::default(),
            unit: None,
            last_drawn: None,
            luck: Luck::None,
            asked: false,
            proposed: None,
            plain_rounds: 0,
            patience: config.probe,
        })
    }

    /// The kinds of a draft's nodes; the root's means nothing.
    fn kinds(&self, draft: &Draft) -> Vec<Node> {
        let tree = draft.tree();
        let mut children = vec![0u8; tree.len()];
        (0..tree.len())
            .map(|node| {
                let parent = tree.parent(node).unwrap_or(0);
                let place = children[parent];
                if node > 0 {
                    children[parent] = place.saturating_add(1);
                }
                let luck = if tree.depth(node) == 1 { self.luck } else { Luck::None };
                match draft.estimates() {
                    Some(estimates) => {
                        let conditional = estimates[node] / estimates[parent];
                        // NaN and nonsense become the lowest kind.
                        Node::Estimated((conditional * 10.0).clamp(0.0, 9.0) as u8, luck)
                    }
                    None => Node::Placed(tree.depth(node).min(8) as u8, place.min(7), luck),
                }
            })
            .collect()
    }

    /// Probability of being kept, by node; the root's is 1.
    fn gains(&self, tree: &TokenTree, kinds: &[Node]) -> Vec<f64> {
        let mut gains = vec![1.0; tree.len()];
        for node in 1..tree.len() {
            let rate = self.kinds.get(&kinds[node]).copied().unwrap_or_default();
            let given_parent = rate.value(kinds[node].prior(), self.config.prior);
            gains[node] = gains[tree.parent(node).unwrap_or(0)] * given_parent;
        }
        gains
    }

    /// Nodes without the root in descending order of gain; parents come first since theirs is no smaller.
    fn order(gains: &[f64]) -> Vec<usize> {
        let mut order: Vec<usize> = (1..gains.len()).collect();
        order.sort_by(|&a, &b| gains[b].total_cmp(&gains[a]).then(a.cmp(&b)));
        order
    }

    fn judge(&mut self, parent_children: &[usize], kinds: &[Node], kept: Option<usize>) {
        for &child in parent_children {
            let rate = self.kinds.entry(kinds[child]).or_default();
            rate.see(f64::from(u8::from(kept == Some(child))), self.config.memory);
        }
    }

    /// Follows every shadow as far as the text goes.
    fn follow(&mut self, text: &[Token]) {
        for mut shadow in std::mem::take(&mut self.shadows) {
            let mut open = true;
            while open {
                let children: Vec<usize> = shadow.tree.children(shadow.at).collect();
                let Some(&next) = text.get(shadow.root + shadow.followed) else { break };
                let kept = children.iter().copied().find(|&child| shadow.tree.token(child) == next);
                if shadow.at == 0 {
                    self.luck = if kept.is_some() { Luck::Good } else { Luck::Bad };
                }
                self.judge(&children, &shadow.kinds, kept);
                match kept {
                    Some(child) => {
                        shadow.at = child;
                        shadow.followed += 1;
                        open = shadow.tree.children(child).next().is_some();
                    }
                    None => open = false,
                }
            }
            if open {
                self.shadows.push_back(shadow);
            }
        }
    }

    fn decide(&mut self, room: Room) -> Room {
        let most = room.budget.min(self.config.nodes);
        let room = Room { budget: most, ..room };
        let Some(drawn) = self.last_drawn else { return room };
        let cheap = self.draft_cost(most) < 0.01;
        if drawn == Drawn::Fixed && cheap {
            return room;
        }
        // Without an order of gains a rank not seen yet is as good as the one before it, a little less.
        let mut prior = 0.4;
        let gains: Vec<f64> = self.ranks[..most]
            .iter()
            .map(|rate| {
                let gain = rate.value(prior, self.config.prior);
                prior = 0.7 * gain;
                gain
            })
            .collect();
        let best = best_prefix(gains, &self.curve, |nodes| self.draft_cost(nodes));
        if best.nodes > 0 && best.speed_up >= 1.0 + self.config.margin {
            self.plain_rounds = 0;
            self.patience = self.config.probe;
            return Room { budget: best.nodes, ..room };
        }
        self.plain_rounds += 1;
        if self.plain_rounds > self.patience {
            self.plain_rounds = 0;
            self.patience = (2 * self.patience).min(self.config.longest_probe);
            return Room { budget: most.min(4), ..room };
        }
        Room { budget: 0, ..room }
    }

    fn draft_cost(&self, nodes: usize) -> f64 {
        self.unit.map_or(0.0, |unit| self.cost.seconds(nodes) / unit)
    }
}

impl Policy for CostAware {
    fn name(&self) -> String {
        "cost-aware".into()
    }

    fn start(&mut self) {
        self.shadows.clear();
        self.luck = Luck::None;
        self.plain_rounds = 0;
        self.patience = self.config.probe;
    }

    fn plan(&mut self, room: Room) -> Room {
        let plan = self.decide(room);
        (self.asked, self.proposed) = (plan.budget > 0, None);
        plan
    }

    fn trim(&mut self, text: &[Token], draft: Draft) -> Result<Draft> {
        (self.proposed, self.last_drawn) = (Some(draft.len()), Some(draft.drawn()));
        let kinds = self.kinds(&draft);
        let gains = self.gains(draft.tree(), &kinds);
        let order = Self::order(&gains);
        for (rank, rate) in self.ranks.iter_mut().enumerate() {
            rate.see(order.get(rank).map_or(0.0, |&node| gains[node]), self.config.memory);
        }
        if draft.is_empty() {
            return Ok(draft);
        }
        let candidates = order.iter().take(self.config.nodes).map(|&node| gains[node]);
        let best = best_prefix(candidates, &self.curve, |_| 0.0);
        self.shadows.push_back(Shadow {
            tree: draft.tree().clone(),
            kinds,
            root: text.len(),
            at: 0,
            followed: 0,
        });
        let nodes = if best.speed_up >= 1.0 + self.config.margin { best.nodes } else { 0 };
        let mut keep = vec![false; gains.len()];
        order[..nodes].iter().for_each(|&node| keep[node] = true);
        draft.retain(|_, node| keep[node])
    }

    fn observe(&mut self, spent: &Spent<'_>) {
        let memory = self.config.memory;
        let nodes = spent.draft.len();
        let one = spent.target_seconds / self.curve.relative(1 + nodes);
        if one > 0.0 {
            self.unit = Some(self.unit.map_or(one, |unit| 0.95 * unit + 0.05 * one));
        }
        if spent.draft.drawn() == Drawn::Fixed {
            self.follow(spent.text);
        }
        if self.asked {
            self.cost.see(self.proposed.unwrap_or(nodes), spent.draft_seconds, memory);
        }
        if nodes == 0 {
            return;
        }
        if spent.draft.drawn() != Drawn::Fixed {
            self.last_drawn = Some(spent.draft.drawn());
            for (rank, rate) in self.ranks.iter_mut().enumerate().take(nodes) {
                rate.see(f64::from(u8::from(spent.path.contains(&(rank + 1)))), memory);
            }
            let kinds = self.kinds(spent.draft);
            self.luck = if spent.path.is_empty() { Luck::Bad } else { Luck::Good };
            let mut node = 0;
            for next in spent.path.iter().copied().map(Some).chain([None]) {
                let children: Vec<usize> = spent.draft.tree().children(node).collect();
                self.judge(&children, &kinds, next);
                node = next.unwrap_or(node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(curve: &[(usize, f64)]) -> CostAware {
        let config = CostAwareConfig { margin: 0.0, ..CostAwareConfig::default() };
        CostAware::new(WidthCurve::new(curve).expect("valid"), config).expect("valid")
    }

    fn spent<'a>(text: &'a [Token], draft: &'a Draft, path: &'a [usize], seconds: f64) -> Spent<'a> {
        let width = 1.0 + 0.1 * draft.len() as f64;
        Spent { text, added: path.len() + 1, draft, path, draft_seconds: seconds, target_seconds: width }
    }

    /// A curve with `t(1 + n) = 1 + n / 10`.
    const TENTH: &[(usize, f64)] = &[(1, 1.0), (11, 2.0)];

    #[test]
    fn trimming_keeps_what_pays() {
        // Estimates are believed at first, to a tenth: .95, .55 of it, .15 of that.
        let mut draft = Draft::fixed(TokenTree::chain(0, &[1, 2, 3]));
        draft.set_estimates(vec![1.0, 0.95, 0.95 * 0.55, 0.95 * 0.55 * 0.15]).expect("one a node");
        // (1 + .95) / 1.1 = 1.77, (1.95 + .5225) / 1.2 = 2.06, (2.4725 + .078) / 1.3 = 1.96.
        let kept = policy(TENTH).trim(&[0], draft.clone()).expect("valid");
        assert_eq!(kept.tree().tokens(), [0, 1, 2]);
        assert_eq!(kept.estimates().map(<[f64]>::len), Some(3));
        // Where rows cost in proportion nothing pays.
        let kept = policy(&[(1, 1.0), (2, 2.0)]).trim(&[0], draft).expect("valid");
        assert!(kept.is_empty());
    }

    #[test]
    fn shadows_judge_what_was_not_verified() {
        // Nothing pays at first here; the text follows every chain nonetheless, and that is seen.
        let mut policy = policy(&[(1, 1.0), (2, 1.5), (3, 2.0), (9, 5.0)]);
        let chain = |root: Token| Draft::fixed(TokenTree::chain(root, &[1, 2]));
        let mut text = vec![0];
        let mut verified = Vec::new();
        for _ in 0..30 {
            let kept = policy.trim(&text, chain(0)).expect("valid");
            verified.push(kept.len());
            // A round that emits one token, then the next, whatever was verified.
            for token in [1, 2, 0] {
                text.push(token);
                policy.observe(&spent(&text, &Draft::none(0), &[], 0.0));
            }
        }
        assert_eq!(verified[0], 0, "(1 + .4) / 1.5");
        assert_eq!(verified[29], 2, "(1 + .9 + .9) / 2: {verified:?}");
        // And a drafter that is always wrong is found out.
        for _ in 0..60 {
            policy.trim(&text, chain(0)).expect("valid");
            text.push(3);
            policy.observe(&spent(&text, &Draft::none(0), &[], 0.0));
        }
        assert!(policy.trim(&text, chain(0)).expect("valid").is_empty());
    }

    #[test]
    fn a_drafter_that_loses_is_left_alone_and_tried_again() {
        // Drafting a token costs half a step; none is ever kept.
        let mut policy = policy(TENTH);
        let mut rounds = Vec::new();
        for _ in 0..400 {
            let plan = policy.plan(Room { budget: 8, depth: 8 });
            rounds.push(plan.budget);
            let mut draft = Draft::sampled(0, Drawn::WithoutReplacement);
            for _ in 0..plan.budget {
                draft.push(draft.len(), 1).expect("exists");
            }
            policy.observe(&spent(&[0], &draft, &[], 0.5 * plan.budget as f64));
        }
        let tried: Vec<usize> = (0..400).filter(|&round| rounds[round] > 0).collect();
        assert!(tried.len() < 20, "{tried:?}");
        let gaps: Vec<usize> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.ends_with(&[65, 65]), "{gaps:?}");
        // It gets better: within some trials it is used in earnest.
        for _ in 0..700 {
            let plan = policy.plan(Room { budget: 8, depth: 8 });
            rounds.push(plan.budget);
            let mut draft = Draft::sampled(0, Drawn::WithoutReplacement);
            let mut path = Vec::new();
            for _ in 0..plan.budget {
                path.push(draft.push(draft.len(), 1).expect("exists"));
            }
            policy.observe(&spent(&[0], &draft, &path, 0.01 * plan.budget as f64));
        }
        assert!(rounds[1090..].iter().all(|&budget| budget == 8), "{:?}", &rounds[1080..]);
    }

    #[test]
    fn independent_acceptance_finds_the_best_length() {
        // alpha .8 a token, a drafted token costs .2 steps, width is free: length 4 (speed-up 1.8676).
        let config = CostAwareConfig { memory: 1.0, ..CostAwareConfig::default() };
        let mut policy = CostAware::new(WidthCurve::flat(), config).expect("valid");
        let mut rng = pilotfish_model::Streams::new(1).stream("test");
        let mut budget = 0;
        for _ in 0..6000 {
            budget = policy.plan(Room { budget: 16, depth: 16 }).budget;
            let mut draft = Draft::sampled(0, Drawn::WithoutReplacement);
            let mut path = Vec::new();
            let mut alive = true;
            for _ in 0..budget {
                let node = draft.push(draft.len(), 1).expect("exists");
                alive = alive && rand::Rng::random::<f64>(&mut rng) < 0.8;
                path.extend(alive.then_some(node));
            }
            let mut round = spent(&[0], &draft, &path, 0.2 * budget as f64);
            round.target_seconds = 1.0;
            policy.observe(&round);
        }
        // 1.8676 at 4, 1.845 at 5 (3.6893 / 2), 1.845 at 3 (2.952 / 1.6).
        assert!((3..=5).contains(&budget), "{budget}");
    }

    #[test]
    fn numbers_are_checked() {
        let good = CostAwareConfig::default();
        for bad in [
            CostAwareConfig { nodes: 0, ..good },
            CostAwareConfig { margin: f64::NAN, ..good },
            CostAwareConfig { prior: 0.0, ..good },
            CostAwareConfig { memory: 1.1, ..good },
            CostAwareConfig { memory: f64::NAN, ..good },
            CostAwareConfig { probe: 0, ..good },
            CostAwareConfig { probe: 9, longest_probe: 8, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        // Estimates that are nonsense are the lowest kind, not a panic.
        let mut draft = Draft::fixed(TokenTree::chain(0, &[1, 2]));
        draft.set_estimates(vec![0.0, f64::NAN, 5.0]).expect("one a node");
        assert!(policy(TENTH).trim(&[0], draft).is_ok());
    }

    proptest! {
        /// No connected part of the tree promises more than the one that is kept.
        #[test]
        fn trimming_is_optimal(parents in proptest::collection::vec(any::<u8>(), 1..8), estimates in proptest::collection::vec(0.01f64..1.0, 8), slope in 0.01f64..1.0) {
            let mut tree = TokenTree::new(0);
            let mut by_node = vec![1.0];
            for (index, &pick) in parents.iter().enumerate() {
                let parent = pick as usize % tree.len();
                tree.push(parent, index as Token).expect("exists");
                by_node.push(by_node[parent] * estimates[index]);
            }
            let mut draft = Draft::fixed(tree.clone());
            draft.set_estimates(by_node).expect("one a node");
            let curve = [(1, 1.0), (3, 1.05), (20, 1.05 + 17.0 * slope)];
            let mut policy = policy(&curve);
            let kinds = policy.kinds(&draft);
            let gains = policy.gains(&tree, &kinds);
            let worth = |nodes: &mut dyn Iterator<Item = usize>| {
                let (mut tokens, mut count) = (1.0, 0);
                for node in nodes {
                    tokens += gains[node];
                    count += 1;
                }
                tokens / policy.curve.relative(1 + count)
            };
            let mut best = 1.0f64;
            for mask in 0u32..1 << (tree.len() - 1) {
                let inside = |node: usize| node == 0 || mask >> (node - 1) & 1 == 1;
                if (1..tree.len()).all(|node| !inside(node) || inside(tree.parent(node).unwrap_or(0))) {
                    best = best.max(worth(&mut (1..tree.len()).filter(|&node| inside(node))));
                }
            }
            let order = CostAware::order(&gains);
            let kept = policy.clone().trim(&[0], draft).expect("valid").len();
            let got = worth(&mut order[..kept].iter().copied());
            prop_assert!((got - best).abs() < 1e-12, "{} nodes are worth {}, the best {}", kept, got, best);
            policy.start();
        }
    }
}
