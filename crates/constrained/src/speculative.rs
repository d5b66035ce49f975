//! Speculative decoding under a constraint: drafted trees are masked or checked node by node.
//!
//! The law of the output is the *locally constrained* law: at every place the target's law after its warpers,
//! restricted to tokens that may come next, and renormalised. Every verifier here leaves exactly that law, for every
//! draft of the kind that it takes, whether or not the drafter knows of the constraint.
//!
//! [`Masked`], at a node with children drawn from `q`:
//! 1. mask the node: `P = p` restricted to tokens that may come next, renormalised;
//! 2. apply the rule for the way in which the children were drawn, with `P` in the place of `p`;
//! 3. descend, and let the constraint read the accepted token; an end token is emitted instead.
//!
//! [`Checked`], at a node with any children: draw `x ~ p`, and again without what was refused until `x` may come
//! next; descend if `x` was proposed, else emit it. The first pass of AWRS: no mask is made.
//!
//! With a greedy sampler both take the largest logit among tokens that may come next.
//!
//! **Deviations.** None from a paper: rules are those of `pilotfish_decoding::verifiers::rules`. Only nodes on the
//! path that is walked are masked; the others cannot be reached. Warpers come first, so a top-k that keeps no valid
//! token is a dead end; grammars and warpers that cut rarely go together.
//!
//! **Cost.** A mask, or a few tests, for every accepted token and the one after them. [`Pruned`] drops proposals that
//! cannot come next before the target sees them, one test each.
//!
//! ```
//! use std::sync::Arc;
//! use pilotfish_constrained::{Dfa, Vocabulary, speculative::{Checked, Place}};
//! use pilotfish_decoding::{Decoder, Limits, PromptLookup};
//! use pilotfish_model::{sampling::Sampler, toy::CountingModel};
//! // The model counts 0 1 2 3 0 ...; the text must be two letters, the second one not the model's choice.
//! let bytes = (b'a'..=b'c').map(|letter| Some(vec![letter])).chain([None]).collect();
//! let vocabulary = Arc::new(Vocabulary::new(bytes, vec![3])?);
//! let place = Place::new(Dfa::words(&[b"ba", b"ca"])?, vocabulary, 1);
//! let (mut model, mut drafter) = (CountingModel::new(4), PromptLookup::default());
//! let mut verifier = Checked::new(Sampler::greedy(), place, pilotfish_model::Streams::new(1));
//! let limits = Limits { stop: vec![vec![3]], ..Limits::default() };
//! let out = Decoder::new(&mut model, &mut drafter, &mut verifier, limits)?.generate(&[0])?;
//! assert_eq!(out.tokens, [1, 0, 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use pilotfish_decoding::verifiers::rules::{self, Kept};
use pilotfish_decoding::{
    Ask, Choose, Context, DecodingError, Dice, Draft, Drafter, Drawn, Needs, Outcome, Start, Verdict,
    Verifier,
};
use pilotfish_model::sampling::{Distribution, Sampler};
use pilotfish_model::{LogitForm, ModelError, ModelInfo, Streams, Token};

use crate::{ConstrainedError, Constraint, Mask, Result, Vocabulary};

fn foreign(error: ConstrainedError) -> DecodingError {
    match error {
        ConstrainedError::Model(error) => DecodingError::Model(error),
        error => DecodingError::Other(Box::new(error)),
    }
}

/// Where a constraint stands in a text that grows round by round.
pub struct Place {
    start: Box<dyn Constraint>,
    vocabulary: Arc<Vocabulary>,
    prompt: usize,
    now: Box<dyn Constraint>,
    read: Vec<Token>,
    calls: u64,
}

impl Place {
    /// A constraint on what follows the first `prompt` tokens.
    pub fn new(constraint: impl Constraint + 'static, vocabulary: Arc<Vocabulary>, prompt: usize) -> Self {
        let now = constraint.fork();
        Self { start: Box::new(constraint), vocabulary, prompt, now, read: Vec::new(), calls: 0 }
    }

    /// Verdicts so far; a mask counts as one for every token.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Another place at the beginning of its text.
    pub fn fresh(&self) -> Self {
        Self {
            start: self.start.fork(),
            vocabulary: self.vocabulary.clone(),
            prompt: self.prompt,
            now: self.start.fork(),
            read: Vec::new(),
            calls: 0,
        }
    }

    /// The constraint after a text. What was read before is not read again.
    fn after(&mut self, text: &[Token]) -> Result<Box<dyn Constraint>> {
        let output = text.get(self.prompt..).unwrap_or_default();
        if !output.starts_with(&self.read) {
            self.now = self.start.fork();
            self.read.clear();
        }
        for &token in &output[self.read.len()..] {
            push(self.now.as_mut(), &self.vocabulary, token)?;
            self.read.push(token);
        }
        Ok(self.now.fork())
    }

    fn allows(&mut self, constraint: &mut dyn Constraint, token: Token) -> Result<bool> {
        self.calls += 1;
        match self.vocabulary.bytes(token) {
            Some(bytes) => constraint.prefix(bytes),
            None => Ok(self.vocabulary.is_end(token) && constraint.complete()?),
        }
    }

    fn mask(&mut self, constraint: &mut dyn Constraint) -> Result<Mask> {
        self.calls += self.vocabulary.len() as u64;
        constraint.mask(&self.vocabulary)
    }
}

/// Reads a token; the end changes nothing, and a token without bytes ends all hope.
fn push(constraint: &mut dyn Constraint, vocabulary: &Vocabulary, token: Token) -> Result<bool> {
    match vocabulary.bytes(token) {
        Some(bytes) => constraint.push(bytes),
        None => Ok(vocabulary.is_end(token)),
    }
}

/// Walks a draft: `decide` says at each node what is kept; the constraint reads along.
fn walk(
    context: &Context<'_>,
    place: &mut Place,
    mut decide: impl FnMut(
        &mut Place,
        &mut dyn Constraint,
        usize,
        &[Token],
        &[Token],
    ) -> Result<Kept, DecodingError>,
) -> Result<Verdict, DecodingError> {
    let tree = context.draft.tree();
    let mut history = context.text.to_vec();
    let mut constraint = place.after(context.text).map_err(foreign)?;
    let (mut path, mut node) = (Vec::new(), 0);
    loop {
        let children: Vec<usize> = tree.children(node).collect();
        let tokens: Vec<Token> = children.iter().map(|&child| tree.token(child)).collect();
        match decide(place, constraint.as_mut(), node, &history, &tokens)? {
            // Nothing follows an end.
            Kept::Child(index) if place.vocabulary.is_end(tokens[index]) => {
                return Ok(Verdict { path, next: tokens[index] });
            }
            Kept::Child(index) => {
                node = children[index];
                path.push(node);
                history.push(tokens[index]);
                push(constraint.as_mut(), &place.vocabulary, tokens[index]).map_err(foreign)?;
            }
            Kept::Token(next) => return Ok(Verdict { path, next }),
        }
    }
}

fn dead_end(place: &Place, history: &[Token]) -> DecodingError {
    foreign(ConstrainedError::DeadEnd { tokens: history.len().saturating_sub(place.prompt) })
}

fn descend(children: &[Token], token: Token) -> Kept {
    children.iter().position(|&child| child == token).map_or(Kept::Token(token), Kept::Child)
}

fn row<'a>(context: &Context<'a>, node: usize, vocab: usize) -> Result<&'a [f32], DecodingError> {
    let len = context.logits.rows();
    let row = context.logits.row(node).ok_or(ModelError::NoSuchRow { what: "verify", row: node, len })?;
    if row.len() != vocab {
        return Err(foreign(ConstrainedError::Vocabulary { got: vocab, want: row.len() }));
    }
    Ok(row)
}

/// The largest logit among tokens for which `allows` is true, found by asking in descending order.
fn greedy(
    logits: &[f32],
    node: usize,
    mut allows: impl FnMut(Token) -> Result<bool>,
) -> Result<Option<Token>, DecodingError> {
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        return Err(ModelError::NotFinite { what: "logits", row: node }.into());
    }
    let by = |a: &Token, b: &Token| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut order: Vec<Token> =
        (0..logits.len() as Token).filter(|&token| logits[token as usize] > f32::NEG_INFINITY).collect();
    let mut from = 0;
    // Sorted in growing pieces: the first few nearly always do.
    while from < order.len() {
        let to = (4 * from).max(16).min(order.len());
        if to < order.len() {
            order[from..].select_nth_unstable_by(to - from, by);
        }
        order[from..to].sort_unstable_by(by);
        for &token in &order[from..to] {
            if allows(token).map_err(foreign)? {
                return Ok(Some(token));
            }
        }
        from = to;
    }
    Ok(None)
}

/// Defines what both verifiers share.
macro_rules! verifier {
    ($(#[$doc:meta])* $name:ident, $label:literal, takes $takes:expr) => {
        $(#[$doc])*
        pub struct $name {
            sampler: Sampler,
            place: Place,
            drawn: Drawn,
            choose: Box<dyn Choose>,
        }

        impl $name {
            /// The place in the text, with what was counted.
            pub fn place(&self) -> &Place {
                &self.place
            }
        }

        impl Verifier for $name {
            fn name(&self) -> &'static str {
                $label
            }

            fn lossless(&self) -> bool {
                // With regard to the constrained law.
                true
            }

            fn takes(&self, drawn: Drawn) -> bool {
                let takes: fn(Drawn, Drawn) -> bool = $takes;
                self.sampler.is_greedy() || takes(self.drawn, drawn)
            }

            fn sampler(&self) -> Sampler {
                self.sampler
            }

            fn form(&self) -> LogitForm {
                LogitForm::Full
            }

            fn verify(&mut self, context: &Context<'_>) -> Result<Verdict, DecodingError> {
                let Self { sampler, place, drawn, choose } = self;
                walk(context, place, |place, constraint, node, history, children| {
                    Self::decide(sampler, choose.as_mut(), *drawn, context, place, constraint, node, history, children)
                })
            }
        }
    };
}

verifier! {
    /// Verifies drafts of one kind against the masked target.
    Masked, "masked", takes |own, drawn| own == drawn
}

verifier! {
    /// Verifies any draft by drawing from the target until a token may come next.
    Checked, "checked", takes |_, _| true
}

impl Masked {
    /// For drafts drawn in this way, deciding by the streams `accept` and `resample`.
    pub fn new(sampler: Sampler, drawn: Drawn, place: Place, streams: Streams) -> Self {
        Self::with_choose(sampler, drawn, place, Box::new(Dice::new(streams)))
    }

    /// With another source of decisions.
    pub fn with_choose(sampler: Sampler, drawn: Drawn, place: Place, choose: Box<dyn Choose>) -> Self {
        Self { sampler, place, drawn, choose }
    }

    #[allow(clippy::too_many_arguments)]
    fn decide(
        sampler: &Sampler,
        choose: &mut dyn Choose,
        drawn: Drawn,
        context: &Context<'_>,
        place: &mut Place,
        constraint: &mut dyn Constraint,
        node: usize,
        history: &[Token],
        children: &[Token],
    ) -> Result<Kept, DecodingError> {
        let vocab = place.vocabulary.len();
        let logits = row(context, node, vocab)?;
        let mask = place.mask(constraint).map_err(foreign)?;
        if sampler.is_greedy() {
            let best = greedy(logits, node, |token| Ok(mask.allows(token)))?;
            return Ok(descend(children, best.ok_or_else(|| dead_end(place, history))?));
        }
        let mut weights = context.target(sampler, node, history)?.probs().to_vec();
        for (token, weight) in weights.iter_mut().enumerate() {
            if !mask.allows(token as Token) {
                *weight = 0.0;
            }
        }
        let p = Distribution::from_weights(weights).map_err(|_| dead_end(place, history))?;
        if children.is_empty() {
            return Ok(Kept::Token(choose.choose(&p)));
        }
        let law = || match context.draft.law(node) {
            Some(law) if law.probs().len() == vocab => Ok(law),
            law => Err(DecodingError::NoLaw { node, got: law.map(|law| law.probs().len()), want: vocab }),
        };
        Ok(match drawn {
            Drawn::Fixed => rules::sample_and_match(&p, children, choose),
            Drawn::WithReplacement => rules::multi_step(&p, law()?, children, choose),
            Drawn::WithoutReplacement => rules::recursive(&p, law()?, children, choose),
        })
    }
}

impl Checked {
    /// Deciding by the stream `resample`.
    pub fn new(sampler: Sampler, place: Place, streams: Streams) -> Self {
        Self::with_choose(sampler, place, Box::new(Dice::new(streams)))
    }

    /// With another source of decisions.
    pub fn with_choose(sampler: Sampler, place: Place, choose: Box<dyn Choose>) -> Self {
        Self { sampler, place, drawn: Drawn::Fixed, choose }
    }

    #[allow(clippy::too_many_arguments)]
    fn decide(
        sampler: &Sampler,
        choose: &mut dyn Choose,
        _: Drawn,
        context: &Context<'_>,
        place: &mut Place,
        constraint: &mut dyn Constraint,
        node: usize,
        history: &[Token],
        children: &[Token],
    ) -> Result<Kept, DecodingError> {
        let logits = row(context, node, place.vocabulary.len())?;
        if sampler.is_greedy() {
            let best = greedy(logits, node, |token| place.allows(constraint, token))?;
            return Ok(descend(children, best.ok_or_else(|| dead_end(place, history))?));
        }
        let mut left = Some(context.target(sampler, node, history)?);
        while let Some(p) = left {
            let drawn = choose.choose(&p);
            if place.allows(constraint, drawn).map_err(foreign)? {
                return Ok(descend(children, drawn));
            }
            left = p.without(drawn);
        }
        Err(dead_end(place, history))
    }
}

/// A drafter without proposals that cannot come next. Only drafts that were not sampled are pruned: leaving out a
/// sampled token because of what it is would make the verification wrong, and rejecting it is exact anyway.
pub struct Pruned<D> {
    inner: D,
    place: Place,
    dropped: u64,
}

impl<D: Drafter> Pruned<D> {
    /// A drafter of texts under a constraint.
    pub fn new(inner: D, place: Place) -> Self {
        Self { inner, place, dropped: 0 }
    }

    /// Proposals dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl<D: Drafter> Drafter for Pruned<D> {
    fn name(&self) -> String {
        format!("{}, pruned", self.inner.name())
    }

    fn drawn(&self) -> Drawn {
        self.inner.drawn()
    }

    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn fits(&self, target: &ModelInfo) -> Result<(), DecodingError> {
        self.inner.fits(target)
    }

    fn start(&mut self, start: &Start<'_>) -> Result<(), DecodingError> {
        self.inner.start(start)
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft, DecodingError> {
        let draft = self.inner.propose(ask)?;
        if draft.drawn() != Drawn::Fixed || draft.is_empty() {
            return Ok(draft);
        }
        let root = self.place.after(ask.text).map_err(foreign)?;
        let valid = reachable(root, &self.place.vocabulary, draft.tree()).map_err(foreign)?;
        self.place.calls += draft.len() as u64;
        let before = draft.len();
        let kept = draft.retain(|_, node| valid[node].is_some())?;
        self.dropped += (before - kept.len()) as u64;
        Ok(kept)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<(), DecodingError> {
        self.inner.observe(outcome)
    }
}

/// By node of a tree: the constraint after it, if its text can be completed. The root's text has been read.
fn reachable(
    root: Box<dyn Constraint>,
    vocabulary: &Vocabulary,
    tree: &pilotfish_model::TokenTree,
) -> Result<Vec<Option<Box<dyn Constraint>>>> {
    let mut places: Vec<Option<Box<dyn Constraint>>> = vec![Some(root)];
    for node in 1..tree.len() {
        let parent = tree.parent(node).unwrap_or(0);
        let token = tree.token(node);
        let place = match &mut places[parent] {
            // Nothing follows an end.
            Some(_) if vocabulary.is_end(tree.token(parent)) && parent > 0 => None,
            Some(parent) => match vocabulary.bytes(token) {
                Some(bytes) => {
                    let mut place = parent.fork();
                    place.push(bytes)?.then_some(place)
                }
                None if vocabulary.is_end(token) && parent.complete()? => Some(parent.fork()),
                _ => None,
            },
            None => None,
        };
        places.push(place);
    }
    Ok(places)
}

/// The mask of every node of a draft, `None` where the text up to the node cannot be completed or has ended. `root`
/// stands behind the root's token.
///
/// # Errors
/// What the constraint refuses.
pub fn tree_masks(
    root: &dyn Constraint,
    vocabulary: &Vocabulary,
    tree: &pilotfish_model::TokenTree,
) -> Result<Vec<Option<Mask>>> {
    let places = reachable(root.fork(), vocabulary, tree)?;
    let mut masks = Vec::with_capacity(places.len());
    for (node, place) in places.into_iter().enumerate() {
        let ended = node > 0 && vocabulary.is_end(tree.token(node));
        masks.push(match place {
            Some(mut place) if !ended => Some(place.mask(vocabulary)?),
            _ => None,
        });
    }
    Ok(masks)
}
