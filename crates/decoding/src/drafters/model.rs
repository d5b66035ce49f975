//! A draft model: any causal model, run ahead of the target over chains and trees, its cache kept in step with the
//! text.

use pilotfish_model::sampling::{Distribution, Sampler};
use pilotfish_model::{
    CausalModel, Input, Ledger, LogitForm, ModelInfo, Parents, RowSet, Step, Tap, Token, TokenTree,
};

use super::ReducedHead;
use crate::{Ask, DecodingError, Outcome, Result};

/// Rows of a text a step.
const PREFILL: usize = 512;

/// The laws at nodes of a growing draft: a draft model, or a table in a test.
pub trait Laws {
    /// The laws after each of these nodes of a tree, whose root is the last committed token; all in one pass. Every
    /// node's parent was asked for before, in an earlier call or in this one.
    ///
    /// # Errors
    /// Whatever the model refuses.
    fn laws(&mut self, tree: &TokenTree, nodes: &[usize]) -> Result<Vec<Distribution>>;
}

/// A causal model that drafts, with its cache.
pub struct DraftModel {
    model: Box<dyn CausalModel>,
    sampler: Option<Sampler>,
    head: Option<ReducedHead>,
    /// The tokens of the cache's first rows, which form a chain.
    text: Vec<Token>,
    /// For each node of the draft its row in the cache.
    rows: Vec<Option<usize>>,
}

impl std::fmt::Debug for DraftModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DraftModel").field("model", &self.info().name).finish_non_exhaustive()
    }
}

/// A pass that is about to be made, borrowed from a [`DraftModel`].
pub(crate) struct Pass<'a> {
    draft: &'a mut DraftModel,
    text: &'a [Token],
    sampler: Sampler,
    ledger: &'a mut Ledger,
    states: bool,
    /// States of the rows of the last pass, `[rows, width]`, if asked for.
    pub(crate) last_states: Vec<f32>,
}

impl DraftModel {
    /// A model that draws with the target's own warpers. What its cache holds is forgotten.
    pub fn new(model: Box<dyn CausalModel>) -> Self {
        Self { model, sampler: None, head: None, text: Vec::new(), rows: Vec::new() }
    }

    /// The same with warpers of its own.
    pub fn with_sampler(self, sampler: Sampler) -> Self {
        Self { sampler: Some(sampler), ..self }
    }

    /// The same with a head for part of the vocabulary.
    ///
    /// # Errors
    /// A head of another width or vocabulary; a model that does not expose the state that the head reads.
    pub fn with_head(mut self, head: ReducedHead) -> Result<Self> {
        self.info().require_tap(Tap::FinalNormed)?;
        head.check(self.model.info())?;
        self.head = Some(head);
        Ok(self)
    }

    /// What is known about the model.
    pub fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    /// The model back.
    pub fn into_model(self) -> Box<dyn CausalModel> {
        self.model
    }

    /// Levels it can draft after a text: its context may be shorter than the target's.
    pub(crate) fn room(&self, text: usize) -> usize {
        self.info().context.saturating_sub(text)
    }

    /// Prepares a draft after the text of a request: forgets what the text does not hold.
    ///
    /// # Errors
    /// The model cannot forget.
    pub(crate) fn begin<'a>(&'a mut self, ask: &'a mut Ask<'_>, states: bool) -> Result<Pass<'a>> {
        let text = ask.text;
        let common = self.text.iter().zip(text).take_while(|(a, b)| a == b).count().min(text.len() - 1);
        self.text.truncate(common);
        self.rows.clear();
        self.model.truncate(common)?;
        let sampler = self.sampler.unwrap_or(*ask.sampler);
        Ok(Pass { text, sampler, ledger: ask.ledger, states, last_states: Vec::new(), draft: self })
    }

    /// Keeps the rows of what was accepted and forgets the rest of the draft.
    ///
    /// # Errors
    /// The model cannot forget.
    pub(crate) fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        let root = self.text.len();
        let mut kept = Vec::new();
        for &node in outcome.path {
            match self.rows.get(node).copied().flatten() {
                Some(row) => {
                    kept.push(row);
                    self.text.push(outcome.draft.tree().token(node));
                }
                None => break,
            }
        }
        self.rows.clear();
        if self.model.len() > root {
            self.model.keep(root, &kept)?;
        }
        Ok(())
    }
}

impl Laws for Pass<'_> {
    fn laws(&mut self, tree: &TokenTree, nodes: &[usize]) -> Result<Vec<Distribution>> {
        let mut laws = Vec::with_capacity(nodes.len());
        self.last_states.clear();
        if nodes.contains(&0) {
            laws.extend(self.read()?);
        }
        let below: Vec<usize> = nodes.iter().copied().filter(|&node| node > 0).collect();
        if !below.is_empty() {
            laws.extend(self.append(tree, &below)?);
        }
        Ok(laws)
    }
}

impl Pass<'_> {
    /// Runs what the cache lacks of the text; gives the law after the root.
    fn read(&mut self) -> Result<Vec<Distribution>> {
        let mut law = Vec::new();
        while self.draft.text.len() < self.text.len() {
            let start = self.draft.text.len();
            let end = (start + PREFILL).min(self.text.len());
            let want = if end == self.text.len() { RowSet::Last } else { RowSet::None };
            law = self.step(&self.text[start..end], Parents::Chain, want, &[])?;
            self.draft.text.extend_from_slice(&self.text[start..end]);
        }
        self.draft.rows = vec![Some(self.text.len() - 1)];
        Ok(law)
    }

    fn append(&mut self, tree: &TokenTree, nodes: &[usize]) -> Result<Vec<Distribution>> {
        let before = self.draft.model.len();
        self.draft.rows.resize(tree.len().max(self.draft.rows.len()), None);
        let tokens: Vec<Token> = nodes.iter().map(|&node| tree.token(node)).collect();
        let mut parents = Vec::with_capacity(nodes.len());
        for (index, &node) in nodes.iter().enumerate() {
            let parent = tree.parent(node).and_then(|parent| self.draft.rows[parent]);
            let Some(parent) = parent else { return Err(DecodingError::NotRun { node }) };
            parents.push(Some(parent));
            self.draft.rows[node] = Some(before + index);
        }
        let paths: Vec<Vec<Token>> = nodes
            .iter()
            .map(|&node| tree.path(node)[1..].iter().map(|&node| tree.token(node)).collect())
            .collect();
        self.step(&tokens, Parents::Rows(&parents), RowSet::All, &paths)
    }

    /// One pass; laws for the rows wanted. `paths` are the drafted tokens before each of them, its own included.
    fn step(
        &mut self,
        tokens: &[Token],
        parents: Parents<'_>,
        want: RowSet<'_>,
        paths: &[Vec<Token>],
    ) -> Result<Vec<Distribution>> {
        let DraftModel { model, head, .. } = &mut *self.draft;
        let wanted = match want {
            RowSet::None => 0,
            RowSet::Last => 1,
            _ => tokens.len(),
        };
        let states = wanted > 0 && (self.states || head.is_some());
        let taps: &[Tap] = if states { &[Tap::FinalNormed] } else { &[] };
        // A head of our own replaces the model's.
        let logits = if head.is_some() { RowSet::None } else { want };
        let step = Step { input: Input::Ids(tokens), parents, logits, form: LogitForm::Full, taps };
        let answer = model.step(&step)?;
        self.ledger.draft(model.info(), tokens.len(), if head.is_some() { 0 } else { wanted });
        let mut rows: Vec<Vec<f32>> = Vec::new();
        if states && let Some(tap) = answer.tap(Tap::FinalNormed) {
            let first = tokens.len() - wanted;
            if let Some(head) = head {
                rows = (first..tokens.len()).map(|row| head.logits(tap.row(row))).collect();
                self.ledger.draft_bytes += head.bytes();
            }
            if self.states {
                self.last_states = tap.values[first * tap.width..].to_vec();
            }
        }
        let mut laws = Vec::with_capacity(wanted);
        for index in 0..wanted {
            let row = match &rows[..] {
                [] => answer.logits.row(index).unwrap_or_default(),
                rows => &rows[index],
            };
            // The history matters only to a penalty on repetition.
            let law = if self.sampler.warpers().repetition_penalty == 1.0 {
                self.sampler.distribution(row, &[])?
            } else {
                let path = paths.get(index).map_or(&[][..], Vec::as_slice);
                let history: Vec<Token> = self.text.iter().chain(path).copied().collect();
                self.sampler.distribution(row, &history)?
            };
            laws.push(law);
        }
        Ok(laws)
    }
}
