use std::ops::ControlFlow;
use std::time::Instant;

use pilotfish_model::{
    Capability, CausalModel, Input, Ledger, ModelError, Parents, Phase, RowSet, Step, Token, TokenTree,
};

use crate::verifier::Context;
use crate::{DecodingError, Drafter, Result, Verifier};

/// When a text ends, and how it is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// New tokens at most.
    pub new_tokens: usize,
    /// Whether the model's own end tokens end a text.
    pub stop_at_end: bool,
    /// Token sequences that end a text once they appear in the output; they stay in it.
    pub stop: Vec<Vec<Token>>,
    /// Proposed tokens a round at most.
    pub draft: usize,
    /// Rows of the prompt a step.
    pub prefill_rows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { new_tokens: 128, stop_at_end: true, stop: Vec::new(), draft: 64, prefill_rows: 512 }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token or a stop sequence.
    Stop,
    /// The limit of new tokens.
    Length,
    /// The model's context.
    Context,
    /// The observer asked for it.
    Cancelled,
}

/// What an observer sees after each round.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// Tokens that this round added.
    pub tokens: &'a [Token],
    /// How many of them had been proposed.
    pub accepted: usize,
    /// How many were proposed.
    pub drafted: usize,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// New tokens, an end token included.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens that each round after the prompt's pass added.
    pub rounds: Vec<usize>,
    /// What it cost.
    pub ledger: Ledger,
}

/// The propose-verify loop over one model.
pub struct Decoder<'a> {
    model: &'a mut dyn CausalModel,
    drafter: &'a mut dyn Drafter,
    verifier: &'a mut dyn Verifier,
    limits: Limits,
}

impl<'a> Decoder<'a> {
    /// A loop of these parts. Whatever the model's cache holds is forgotten when a text begins.
    ///
    /// # Errors
    /// Limits that allow nothing.
    pub fn new(
        model: &'a mut dyn CausalModel,
        drafter: &'a mut dyn Drafter,
        verifier: &'a mut dyn Verifier,
        limits: Limits,
    ) -> Result<Self> {
        for (name, value) in [("new_tokens", limits.new_tokens), ("prefill_rows", limits.prefill_rows)] {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        Ok(Self { model, drafter, verifier, limits })
    }

    /// Continues a prompt.
    pub fn generate(&mut self, prompt: &[Token]) -> Result<Generation> {
        self.generate_with(prompt, |_| ControlFlow::Continue(()))
    }

    /// Continues a prompt, round by round under the eyes of an observer, who may break off. After an error or
    /// a break the model's cache holds committed tokens only.
    ///
    /// # Errors
    /// An empty prompt or one that fills the context; whatever the model, the drafter or the verifier refuse.
    pub fn generate_with(
        &mut self,
        prompt: &[Token],
        mut observe: impl FnMut(&Round<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let context = self.model.info().context;
        if prompt.is_empty() {
            return Err(DecodingError::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(DecodingError::PromptTooLong { prompt: prompt.len(), context });
        }
        let mut text = prompt.to_vec();
        let mut out = Generation {
            tokens: Vec::new(),
            finish: Finish::Length,
            rounds: Vec::new(),
            ledger: Ledger::default(),
        };
        self.model.truncate(0)?;
        let first = self.prefill(prompt, &mut out.ledger)?;
        let clock = Instant::now();
        self.drafter.start(prompt)?;
        out.ledger.spend(Phase::Draft, clock.elapsed());
        let mut added = vec![first];
        let (mut accepted, mut drafted) = (0, 0);
        loop {
            let ended = self.commit(&mut text, prompt.len(), &mut added);
            let kept = added.len();
            out.ledger.accepted += accepted.min(kept) as u64;
            out.ledger.emitted += kept as u64;
            out.tokens.extend_from_slice(&added);
            let round = Round { tokens: &added, accepted: accepted.min(kept), drafted };
            let told = observe(&round);
            if ended.is_some() || told.is_break() {
                out.finish = ended.unwrap_or(Finish::Cancelled);
                return Ok(out);
            }
            let tree = self.propose(&text, out.tokens.len(), &mut out.ledger)?;
            drafted = tree.len() - 1;
            out.ledger.drafted += drafted as u64;
            let (path, next) = self.round(&text, &tree, &mut out.ledger)?;
            accepted = path.len();
            added.clear();
            added.extend(path);
            added.push(next);
            out.ledger.rounds += 1;
            let clock = Instant::now();
            out.rounds.push(added.len().min(self.limits.new_tokens - out.tokens.len()));
            self.drafter.observe(&text)?;
            out.ledger.spend(Phase::Draft, clock.elapsed());
        }
    }

    /// Appends what a round added to the text, cut where the text ends. Says whether and why it ends.
    fn commit(&self, text: &mut Vec<Token>, prompt: usize, added: &mut Vec<Token>) -> Option<Finish> {
        let info = self.model.info();
        for index in 0..added.len() {
            let token = added[index];
            text.push(token);
            let output = &text[prompt..];
            let ends = self.limits.stop_at_end && info.end.contains(&token);
            let stops = self.limits.stop.iter().any(|stop| !stop.is_empty() && output.ends_with(stop));
            let finish = if ends || stops {
                Some(Finish::Stop)
            } else if output.len() >= self.limits.new_tokens {
                Some(Finish::Length)
            } else if text.len() >= info.context {
                Some(Finish::Context)
            } else {
                None
            };
            if finish.is_some() {
                added.truncate(index + 1);
                return finish;
            }
        }
        None
    }

    /// Reads the prompt but for nothing: its last row gives the first token.
    fn prefill(&mut self, prompt: &[Token], ledger: &mut Ledger) -> Result<Token> {
        let form = self.verifier.form();
        let mut start = 0;
        loop {
            let end = (start + self.limits.prefill_rows).min(prompt.len());
            let last = end == prompt.len();
            let want = if last { RowSet::Last } else { RowSet::None };
            let clock = Instant::now();
            let answer = self.model.step(&Step::chain(&prompt[start..end]).want(want).form(form))?;
            ledger.spend(Phase::Prefill, clock.elapsed());
            ledger.target(self.model.info(), end - start, usize::from(last));
            if last {
                let clock = Instant::now();
                let tree = TokenTree::new(prompt[prompt.len() - 1]);
                let verdict =
                    self.verifier.verify(&Context { text: prompt, tree: &tree, logits: &answer.logits })?;
                ledger.spend(Phase::Verify, clock.elapsed());
                return Ok(verdict.next);
            }
            start = end;
        }
    }

    fn propose(&mut self, text: &[Token], emitted: usize, ledger: &mut Ledger) -> Result<TokenTree> {
        let clock = Instant::now();
        let root = text[text.len() - 1];
        // The token after the path always counts: a path may be one shorter than what is still wanted.
        let room = (self.limits.new_tokens - emitted).min(self.model.info().context - text.len());
        let depth = room.saturating_sub(1);
        let tree = if depth == 0 || self.limits.draft == 0 {
            TokenTree::new(root)
        } else {
            let proposed = self.drafter.propose(text, self.limits.draft, depth)?;
            if proposed.token(0) != root {
                return Err(DecodingError::WrongRoot { got: proposed.token(0), want: root });
            }
            clamp(proposed, self.limits.draft, depth)?
        };
        let chain = (1..tree.len()).all(|node| tree.parent(node) == Some(node - 1));
        if !chain {
            self.model.info().require(Capability::Tree)?;
        }
        ledger.spend(Phase::Draft, clock.elapsed());
        Ok(tree)
    }

    /// One target step over a tree; returns the accepted tokens and the one after them.
    fn round(
        &mut self,
        text: &[Token],
        tree: &TokenTree,
        ledger: &mut Ledger,
    ) -> Result<(Vec<Token>, Token)> {
        let before = self.model.len();
        let parents = tree.parents(before);
        let step = Step {
            input: Input::Ids(tree.tokens()),
            parents: if tree.len() == 1 { Parents::Chain } else { Parents::Rows(&parents) },
            logits: RowSet::All,
            form: self.verifier.form(),
            taps: &[],
        };
        let clock = Instant::now();
        let answer = self.model.step(&step)?;
        ledger.spend(Phase::Target, clock.elapsed());
        ledger.target(self.model.info(), tree.len(), tree.len());
        let clock = Instant::now();
        let verdict = self.verifier.verify(&Context { text, tree, logits: &answer.logits });
        ledger.spend(Phase::Verify, clock.elapsed());
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(error) => {
                self.model.truncate(before)?;
                return Err(error);
            }
        };
        let clock = Instant::now();
        if verdict.path.len() + 1 < tree.len() {
            let kept: Vec<usize> =
                std::iter::once(before).chain(verdict.path.iter().map(|node| before + node)).collect();
            self.model.keep(before, &kept)?;
        }
        ledger.spend(Phase::Cache, clock.elapsed());
        if verdict.next as usize >= self.model.info().vocab {
            let (token, vocab) = (verdict.next, self.model.info().vocab);
            return Err(ModelError::TokenOutOfRange { row: 0, token, vocab }.into());
        }
        Ok((verdict.path.iter().map(|&node| tree.token(node)).collect(), verdict.next))
    }
}

/// A tree without nodes beyond a number or a depth.
fn clamp(tree: TokenTree, budget: usize, depth: usize) -> Result<TokenTree> {
    let fits = tree.len() - 1 <= budget && (0..tree.len()).all(|node| tree.depth(node) <= depth);
    if fits {
        return Ok(tree);
    }
    let mut clamped = TokenTree::new(tree.token(0));
    let mut places = vec![Some(0)];
    for node in 1..tree.len() {
        let parent = tree.parent(node).and_then(|parent| places[parent]);
        let place = match parent {
            Some(parent) if clamped.len() <= budget && tree.depth(node) <= depth => {
                Some(clamped.push(parent, tree.token(node))?)
            }
            _ => None,
        };
        places.push(place);
    }
    Ok(clamped)
}
