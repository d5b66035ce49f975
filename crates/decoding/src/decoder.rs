use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pilotfish_model::{
    Capability, CausalModel, Input, Ledger, LogitForm, ModelError, Parents, Phase, RowSet, Step, StepOutput,
    TapRows, Token, TokenTree,
};

use crate::policy::{Policy, Room, Spent};
use crate::text::{Detokenize, TextStream};
use crate::verifiers::Context;
use crate::{Ask, DecodingError, Draft, Drafter, Drawn, Needs, Outcome, Result, Start, Verdict, Verifier};

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
    /// Text that has become certain, where the loop writes text ([`Decoder::with_text`]); empty else.
    pub text: &'a str,
}

/// One round, for statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RoundRecord {
    /// Tokens proposed; the target's step had one row more.
    pub drafted: usize,
    /// Levels of the draft.
    pub depth: usize,
    /// Proposed tokens that the text kept.
    pub accepted: usize,
    /// Tokens added to the text.
    pub added: usize,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// New tokens, an end token included.
    pub tokens: Vec<Token>,
    /// Their text, where the loop writes text: up to a stop string, if one ended it.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: Finish,
    /// The rounds after the prompt's pass.
    pub rounds: Vec<RoundRecord>,
    /// What it cost.
    pub ledger: Ledger,
}

/// The propose-verify loop over one model.
pub struct Decoder<'a> {
    model: &'a mut dyn CausalModel,
    drafter: &'a mut dyn Drafter,
    verifier: &'a mut dyn Verifier,
    limits: Limits,
    needs: Needs,
    cancel: Option<&'a AtomicBool>,
    policy: Option<&'a mut dyn Policy>,
    stream: Option<TextStream<'a>>,
}

/// What a target step over a draft gave.
struct Verified {
    path: Vec<usize>,
    next: Token,
    answer: StepOutput,
}

impl<'a> Decoder<'a> {
    /// A loop of these parts. Whatever the model's cache holds is forgotten when a text begins.
    ///
    /// # Errors
    /// Limits that allow nothing; a verifier that is not for the drafter's draws; a drafter that does not fit
    /// the model.
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
        let drawn = drafter.drawn();
        if !verifier.takes(drawn) {
            let (verifier, drafter) = (verifier.name(), drafter.name());
            return Err(DecodingError::Mismatch { verifier, drafter, drawn });
        }
        drafter.fits(model.info())?;
        let needs = drafter.needs();
        needs.taps.iter().try_for_each(|tap| model.info().require_tap(*tap))?;
        if let Some(form) = needs.logits {
            form.check()?;
        }
        Ok(Self { model, drafter, verifier, limits, needs, cancel: None, policy: None, stream: None })
    }

    /// The same loop, which breaks off between two phases once the flag is up. What an unfinished round did is
    /// undone.
    pub fn cancelled_by(self, flag: &'a AtomicBool) -> Self {
        Self { cancel: Some(flag), ..self }
    }

    /// The same loop, in which a policy decides how much is proposed and verified. Without one it is as much as
    /// the limits allow.
    pub fn with_policy(self, policy: &'a mut dyn Policy) -> Self {
        Self { policy: Some(policy), ..self }
    }

    /// The same loop, which writes text as well: observers get it as it becomes certain, and a text ends where it
    /// contains one of these strings. The token that completes the string is the last one.
    pub fn with_text(self, detokenizer: &'a dyn Detokenize, stop: &[&str]) -> Self {
        Self { stream: Some(TextStream::new(detokenizer, stop)), ..self }
    }

    /// Continues a prompt.
    pub fn generate(&mut self, prompt: &[Token]) -> Result<Generation> {
        self.generate_with(prompt, |_| ControlFlow::Continue(()))
    }

    /// Continues a prompt, round by round under the eyes of an observer, who may break off. Afterwards, also
    /// after an error or a break, the model's cache holds committed tokens only: the text without its last one.
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
            text: self.stream.is_some().then(String::new),
            finish: Finish::Cancelled,
            rounds: Vec::new(),
            ledger: Ledger::default(),
        };
        self.model.truncate(0)?;
        let Some((first, taps)) = self.prefill(prompt, &mut out.ledger)? else { return Ok(out) };
        let clock = Instant::now();
        let sampler = self.verifier.sampler();
        self.drafter.start(&Start { prompt, first, taps: &taps, sampler: &sampler })?;
        out.ledger.spend(Phase::Draft, clock.elapsed());
        if let Some(policy) = &mut self.policy {
            policy.start();
        }
        if let Some(stream) = &mut self.stream {
            stream.clear();
        }
        let mut fresh = String::new();
        let mut added = vec![first];
        let mut finish = self.commit(&mut text, prompt.len(), &mut added, &mut fresh)?;
        out.ledger.emitted = 1;
        out.tokens.push(first);
        let mut told = observe(&Round { tokens: &added, accepted: 0, drafted: 0, text: &fresh });
        if let Some(all) = &mut out.text {
            all.push_str(&fresh);
        }
        while finish.is_none() && told.is_continue() && !self.cancelled() {
            let before = [out.ledger.time(Phase::Draft), out.ledger.time(Phase::Target)];
            let draft = self.propose(&text, out.tokens.len(), &mut out.ledger)?;
            if self.cancelled() {
                break;
            }
            let Some(verified) = self.round(&text, &draft, &mut out.ledger)? else { break };
            let Verified { mut path, next, answer } = verified;
            added.clear();
            added.extend(path.iter().map(|&node| draft.tree().token(node)));
            added.push(next);
            fresh.clear();
            finish = self.commit(&mut text, prompt.len(), &mut added, &mut fresh)?;
            path.truncate(added.len());
            if self.model.len() > text.len() - 1 {
                // The text ended inside what was accepted.
                self.model.truncate(text.len() - 1)?;
            }
            let record = RoundRecord {
                drafted: draft.len(),
                depth: draft.depth(),
                accepted: path.len(),
                added: added.len(),
            };
            out.ledger.rounds += 1;
            out.ledger.drafted += record.drafted as u64;
            out.ledger.accepted += record.accepted as u64;
            out.ledger.emitted += record.added as u64;
            out.tokens.extend_from_slice(&added);
            out.rounds.push(record);
            let clock = Instant::now();
            self.drafter.observe(&Outcome {
                text: &text,
                added: added.len(),
                draft: &draft,
                logits: &answer.logits,
                taps: &answer.taps,
                path: &path,
                finish,
            })?;
            out.ledger.spend(Phase::Draft, clock.elapsed());
            if let Some(policy) = &mut self.policy {
                policy.observe(&Spent {
                    text: &text,
                    added: added.len(),
                    draft: &draft,
                    path: &path,
                    draft_seconds: out.ledger.time(Phase::Draft) - before[0],
                    target_seconds: out.ledger.time(Phase::Target) - before[1],
                });
            }
            told = observe(&Round {
                tokens: &added,
                accepted: record.accepted,
                drafted: record.drafted,
                text: &fresh,
            });
            if let Some(all) = &mut out.text {
                all.push_str(&fresh);
            }
        }
        out.finish = finish.unwrap_or(Finish::Cancelled);
        if let (None, Some(stream), Some(all)) = (finish, &mut self.stream, &mut out.text) {
            stream.finish(all)?;
        }
        Ok(out)
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// The least form of logits that serves both the verifier and the drafter.
    fn form(&self) -> LogitForm {
        match (self.verifier.form(), self.needs.logits) {
            (LogitForm::Full, _) | (_, Some(LogitForm::Full)) => LogitForm::Full,
            (LogitForm::TopK(a), Some(LogitForm::TopK(b))) => LogitForm::TopK(a.max(b)),
            (LogitForm::Argmax, Some(form)) => form,
            (form, _) => form,
        }
    }

    /// Appends what a round added to the text, cut where the text ends. Says whether and why it ends.
    fn commit(
        &mut self,
        text: &mut Vec<Token>,
        prompt: usize,
        added: &mut Vec<Token>,
        fresh: &mut String,
    ) -> Result<Option<Finish>> {
        let info = self.model.info();
        for index in 0..added.len() {
            let token = added[index];
            text.push(token);
            let output = &text[prompt..];
            let ends = self.limits.stop_at_end && info.end.contains(&token);
            let written = match &mut self.stream {
                // An end token is no part of the text.
                Some(stream) if !ends => stream.push(token, fresh)?,
                _ => false,
            };
            let stops =
                written || self.limits.stop.iter().any(|stop| !stop.is_empty() && output.ends_with(stop));
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
                if let Some(stream) = &mut self.stream {
                    stream.finish(fresh)?;
                }
                return Ok(finish);
            }
        }
        Ok(None)
    }

    /// Reads the prompt but for nothing: its last row gives the first token. Returns it with the taps of all
    /// rows; nothing when it was cancelled.
    fn prefill(&mut self, prompt: &[Token], ledger: &mut Ledger) -> Result<Option<(Token, Vec<TapRows>)>> {
        let form = self.verifier.form();
        let mut taps: Vec<TapRows> = Vec::new();
        let mut start = 0;
        loop {
            if self.cancelled() {
                self.model.truncate(0)?;
                return Ok(None);
            }
            let end = (start + self.limits.prefill_rows).min(prompt.len());
            let last = end == prompt.len();
            let want = if last { RowSet::Last } else { RowSet::None };
            let clock = Instant::now();
            let step = Step::chain(&prompt[start..end]).want(want).form(form).taps(&self.needs.taps);
            let answer = self.model.step(&step)?;
            ledger.spend(Phase::Prefill, clock.elapsed());
            ledger.target(self.model.info(), end - start, usize::from(last));
            if taps.is_empty() {
                taps = answer.taps;
            } else {
                taps.iter_mut().zip(answer.taps).for_each(|(all, more)| all.values.extend(more.values));
            }
            if last {
                let clock = Instant::now();
                let draft = Draft::none(prompt[prompt.len() - 1]);
                let context = Context { text: prompt, draft: &draft, logits: &answer.logits };
                let next = self.verifier.verify(&context)?.next;
                self.check_token(next)?;
                ledger.spend(Phase::Verify, clock.elapsed());
                return Ok(Some((next, taps)));
            }
            start = end;
        }
    }

    fn propose(&mut self, text: &[Token], emitted: usize, ledger: &mut Ledger) -> Result<Draft> {
        let clock = Instant::now();
        let root = text[text.len() - 1];
        // The token after the path always counts: a path may be one shorter than what is still wanted.
        let room = (self.limits.new_tokens - emitted).min(self.model.info().context - text.len());
        let (budget, depth) = (self.limits.draft, room.saturating_sub(1));
        if depth == 0 || budget == 0 {
            return Ok(Draft::none(root));
        }
        let room = Room { budget, depth };
        let Room { budget, depth } = match &mut self.policy {
            None => room,
            Some(policy) => {
                let plan = policy.plan(room);
                Room { budget: plan.budget.min(budget), depth: plan.depth.min(depth) }
            }
        };
        if depth == 0 || budget == 0 {
            ledger.spend(Phase::Draft, clock.elapsed());
            return Ok(Draft::none(root));
        }
        let (rows, sampler) = (self.model.len(), self.verifier.sampler());
        let mut ask = Ask { text, budget, depth, sampler: &sampler, model: self.model, ledger };
        let draft = match self.drafter.propose(&mut ask) {
            Ok(draft) => draft,
            Err(error) => {
                self.model.truncate(rows.min(self.model.len()))?;
                return Err(error);
            }
        };
        if self.model.len() != rows {
            let (drafter, got) = (self.drafter.name(), self.model.len());
            self.model.truncate(rows.min(got))?;
            return Err(DecodingError::CacheTouched { drafter, got, want: rows });
        }
        if draft.tree().token(0) != root {
            return Err(DecodingError::WrongRoot { got: draft.tree().token(0), want: root });
        }
        let (got, want) = (draft.drawn(), self.drafter.drawn());
        if got != want && !draft.is_empty() {
            return Err(DecodingError::WrongDraw { drafter: self.drafter.name(), got, want });
        }
        let mut draft = draft.clamp(budget, depth)?;
        if draft.drawn() == Drawn::Fixed
            && let Some(policy) = &mut self.policy
        {
            draft = policy.trim(text, draft)?;
        }
        if !draft.is_chain() {
            self.model.info().require(Capability::Tree)?;
        }
        ledger.spend(Phase::Draft, clock.elapsed());
        Ok(draft)
    }

    /// One target step over a draft, of which the cache keeps the accepted rows; nothing when it was cancelled.
    fn round(&mut self, text: &[Token], draft: &Draft, ledger: &mut Ledger) -> Result<Option<Verified>> {
        let before = self.model.len();
        let tree = draft.tree();
        let parents = tree.parents(before);
        let step = Step {
            input: Input::Ids(tree.tokens()),
            parents: if draft.is_chain() { Parents::Chain } else { Parents::Rows(&parents) },
            logits: RowSet::All,
            form: self.form(),
            taps: &self.needs.taps,
        };
        let clock = Instant::now();
        let answer = self.model.step(&step)?;
        ledger.spend(Phase::Target, clock.elapsed());
        ledger.target(self.model.info(), tree.len(), tree.len());
        if self.cancelled() {
            self.model.truncate(before)?;
            return Ok(None);
        }
        let clock = Instant::now();
        let verdict = self.verifier.verify(&Context { text, draft, logits: &answer.logits });
        ledger.spend(Phase::Verify, clock.elapsed());
        let verdict = verdict.and_then(|verdict| {
            self.check_token(verdict.next)?;
            self.check_path(tree, &verdict.path)?;
            Ok(verdict)
        });
        let Verdict { path, next } = match verdict {
            Ok(verdict) => verdict,
            Err(error) => {
                self.model.truncate(before)?;
                return Err(error);
            }
        };
        let clock = Instant::now();
        if path.len() + 1 < tree.len() {
            let kept: Vec<usize> =
                std::iter::once(before).chain(path.iter().map(|node| before + node)).collect();
            self.model.keep(before, &kept)?;
        }
        ledger.spend(Phase::Cache, clock.elapsed());
        Ok(Some(Verified { path, next, answer }))
    }

    fn check_token(&self, token: Token) -> Result<()> {
        let vocab = self.model.info().vocab;
        if token as usize >= vocab {
            return Err(ModelError::TokenOutOfRange { row: 0, token, vocab }.into());
        }
        Ok(())
    }

    fn check_path(&self, tree: &TokenTree, path: &[usize]) -> Result<()> {
        let mut parent = 0;
        for &node in path {
            if node == 0 || node >= tree.len() || tree.parent(node) != Some(parent) {
                return Err(DecodingError::BadVerdict { verifier: self.verifier.name(), node, parent });
            }
            parent = node;
        }
        Ok(())
    }
}
