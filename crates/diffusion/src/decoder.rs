use std::ops::Range;

use pilotfish_model::{Ledger, MaskedModel, Token};
use serde::{Deserialize, Serialize};

use crate::error::refuse;
use crate::policy::{Choice, Policy, View};
use crate::predict::{Noise, Prediction, surest};
use crate::session::Session;
use crate::{AdaBlock, BlockCache, Cache, Canvas, DiffusionError, Result};

/// How a region is cut into blocks, which are finished from left to right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// One block.
    #[default]
    Whole,
    /// Blocks of a length, the last one what remains.
    Fixed(usize),
    /// Each block ends where the model predicts a delimiter.
    Adaptive(AdaBlock),
}

/// When the rest of a text is taken to be padding after a finished block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// Never.
    #[default]
    Never,
    /// The block contains an end of text (LocalLeap, Fast-dLLM).
    Contains,
    /// The block is nothing but ends of text (FreeDave).
    Filled,
}

/// When a text is cut short within a block: Learn2PD's End-of-Text Prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Never.
    #[default]
    Never,
    /// After the first end of text that a step commits, as the paper describes.
    Committed,
    /// After the first end of text that the policy accepts; else after the surest that any mask predicts, in whatever
    /// block, as the released code does. Faster, and may cut an answer short.
    Predicted,
}

/// Extra passes near the end of a block that mask its least certain tokens again (ReMDM, as ParallelBench runs it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Passes, `n`.
    pub passes: usize,
    /// Tokens a pass masks again and commits again, `r`.
    pub tokens: usize,
}

/// Settings of masked diffusion decoding, besides the policy.
///
/// | setting | default | source |
/// |---|---|---|
/// | blocks | one | LLaDA: 32 for text |
/// | cache | none | Fast-dLLM: prefix or dual |
/// | temperature | 0 | all papers' evaluations |
/// | noise | fresh at every step | all reference code |
/// | shift | no | Dream: yes |
/// | guidance | 0 | LLaDA, `cfg_scale` |
/// | end of text | none | |
/// | revision | none | ParallelBench found no use in it |
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Blocks.
    pub blocks: Blocks,
    /// What passes reuse.
    pub cache: Cache,
    /// Tokens are drawn from `softmax(logits / temperature)`; 0 takes the likeliest.
    pub temperature: f64,
    /// Where the noise of draws comes from.
    pub noise: Noise,
    /// Whether the prediction for a position is the output at the one before it, as in models made of causal ones
    /// (Dream). Position 0 keeps its own.
    pub shift: bool,
    /// Classifier-free guidance `w`: logits become `u + (w + 1)(l - u)`, `u` those with everything before the region
    /// masked. Doubles the rows of a pass.
    pub guidance: f64,
    /// Tokens that are never chosen, besides the mask.
    pub suppress: Vec<Token>,
    /// End of text.
    pub end: Option<Token>,
    /// What a finished block that ends the text does; needs `end`.
    pub stop: Stop,
    /// When the text is cut short; needs `end`.
    pub cut: Cut,
    /// Extra passes.
    pub revision: Option<Revision>,
    /// Whether every pass answers for masks beyond the block too, for observers.
    pub wide: bool,
    /// Seed.
    pub seed: u64,
}

impl DiffusionConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// A number outside its range; a setting without the one it needs.
    pub fn check(&self) -> Result<()> {
        match &self.blocks {
            Blocks::Fixed(0) => return refuse("block length", 0.0, "at least 1"),
            Blocks::Adaptive(rule) => rule.check()?,
            _ => {}
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "0 or more, and finite");
        }
        if !(self.guidance >= 0.0 && self.guidance.is_finite()) {
            return refuse("guidance", self.guidance, "0 or more, and finite");
        }
        let needs = |what, needs| Err(DiffusionError::Needs { what, needs });
        if self.end.is_none() && (self.stop != Stop::Never || self.cut != Cut::Never) {
            return needs("stopping or cutting at an end of text", "the token that ends texts");
        }
        if self.cache != Cache::None && (self.guidance > 0.0 || self.revision.is_some()) {
            return needs("guidance or revision", "passes over the whole text: no cache");
        }
        if let Some(revision) = self.revision
            && (revision.passes == 0 || revision.tokens == 0)
        {
            return refuse("passes or tokens of a revision", 0.0, "at least 1");
        }
        Ok(())
    }
}

/// A token that was committed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    /// Position.
    pub position: usize,
    /// Token.
    pub token: Token,
    /// Its probability without temperature.
    pub confidence: f64,
    /// Whether the policy accepted it, rather than that something had to be committed.
    pub accepted: bool,
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Its block.
    pub block: usize,
    /// What it committed, from left to right.
    pub commits: Vec<Commit>,
}

/// A decoded text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The text; shorter than the canvas if it was cut.
    pub tokens: Vec<Token>,
    /// Its decoded region.
    pub region: Range<usize>,
    /// Blocks.
    pub blocks: Vec<Range<usize>>,
    /// Steps.
    pub steps: Vec<StepRecord>,
    /// Masks filled with ends of text without a pass.
    pub filled: usize,
    /// What it cost. `emitted` counts tokens that passes decided; a pass over several drafts is one forward pass.
    pub ledger: Ledger,
}

impl Generation {
    /// The decoded region.
    pub fn response(&self) -> &[Token] {
        &self.tokens[self.region.clone()]
    }

    /// The decoded region up to the first end of text.
    pub fn answer(&self, end: Option<Token>) -> &[Token] {
        let response = self.response();
        let length = response.iter().position(|&token| Some(token) == end).unwrap_or(response.len());
        &response[..length]
    }

    /// Forward passes ("NFE").
    pub fn forwards(&self) -> u64 {
        self.ledger.target_forwards
    }

    /// Tokens that passes decided a forward pass; `None` if nothing was to be done.
    pub fn tokens_per_forward(&self) -> Option<f64> {
        let forwards = self.ledger.target_forwards;
        (forwards > 0).then(|| self.ledger.emitted as f64 / forwards as f64)
    }
}

pub(crate) enum Net<'a> {
    Plain(&'a mut dyn MaskedModel),
    Cached(&'a mut dyn BlockCache),
}

impl Net<'_> {
    pub(crate) fn model(&mut self) -> &mut dyn MaskedModel {
        match self {
            Self::Plain(model) => *model,
            Self::Cached(model) => *model,
        }
    }
}

/// What an observer is shown after each step: what the policy saw and chose, and what was committed.
pub type Observe<'a> = dyn FnMut(&View<'_>, &Choice, &[Commit]) + 'a;

/// Decodes texts with a masked model.
///
/// 1. Blocks are finished from left to right; later blocks are visible as masks.
/// 2. A step runs the model, suppresses the mask and what else is suppressed, and takes the likeliest token at each
///    mask, or a draw by Gumbel noise `argmax(l + T g)`.
/// 3. The [`Policy`] chooses among the block's masks; if it chooses nothing, the surest is committed. What is
///    committed stays, but for a [`Revision`].
///
/// Every step commits a token, so a block of `B` masks takes at most `B` passes.
pub struct Diffusion<'a> {
    pub(crate) net: Net<'a>,
    pub(crate) config: DiffusionConfig,
}

impl<'a> Diffusion<'a> {
    /// A decoder without a cache.
    ///
    /// # Errors
    /// Settings that are not valid, or ask for a cache.
    pub fn new(model: &'a mut dyn MaskedModel, config: DiffusionConfig) -> Result<Self> {
        config.check()?;
        if config.cache != Cache::None {
            return Err(DiffusionError::Needs { what: "a block cache", needs: "Diffusion::cached" });
        }
        Ok(Self { net: Net::Plain(model), config })
    }

    /// A decoder over a model that can keep keys and values.
    ///
    /// # Errors
    /// Settings that are not valid.
    pub fn cached(model: &'a mut dyn BlockCache, config: DiffusionConfig) -> Result<Self> {
        config.check()?;
        Ok(Self { net: Net::Cached(model), config })
    }

    /// The settings.
    pub fn config(&self) -> &DiffusionConfig {
        &self.config
    }

    /// Resolves every mask of a canvas.
    ///
    /// # Errors
    /// A canvas that does not fit the model; a policy that fails or chooses what is no mask of the block; a model
    /// that fails.
    pub fn generate(&mut self, canvas: &Canvas, policy: &mut dyn Policy) -> Result<Generation> {
        self.generate_observed(canvas, policy, &mut |_, _, _| {})
    }

    /// As [`Diffusion::generate`], showing every step.
    ///
    /// # Errors
    /// As [`Diffusion::generate`].
    pub fn generate_observed(
        &mut self,
        canvas: &Canvas,
        policy: &mut dyn Policy,
        observe: &mut Observe<'_>,
    ) -> Result<Generation> {
        let mut session = Session::open(self, canvas, policy.score(), policy.reads_visible())?;
        while let Some((mut block, first)) = session.next_block()? {
            let masks_at_start = session.masks(&block);
            let (mut predictions, mut step) = (first, 0);
            loop {
                let commits = session.advance(&block, masks_at_start, step, &predictions, policy, observe)?;
                step += 1;
                session.cut(&predictions, &commits);
                block.end = block.end.min(session.region().end);
                session.revise(&block, masks_at_start, &mut step)?;
                if session.masks(&block) == 0 {
                    break;
                }
                predictions = session.pass(&block, step, false)?;
            }
            session.finish_block(block);
        }
        Ok(session.close())
    }
}

impl Session<'_, '_> {
    /// Lets a policy choose, and commits.
    fn advance(
        &mut self,
        block: &Range<usize>,
        masks_at_start: usize,
        step: usize,
        predictions: &[Prediction],
        policy: &mut dyn Policy,
        observe: &mut Observe<'_>,
    ) -> Result<Vec<Commit>> {
        let started = std::time::Instant::now();
        let masked = self.masked(block, predictions);
        let tokens = self.tokens().to_vec();
        let view = View {
            tokens: &tokens,
            region: self.region(),
            block: block.clone(),
            masked: &masked,
            all: predictions,
            step,
            masks_at_start,
            streams: self.streams(block.start, step),
        };
        let mut choice = policy.choose(&view)?;
        if choice.accepted.is_empty() && choice.forced.is_empty() {
            choice.forced.extend(surest(&masked, |prediction| prediction.score));
        }
        if let Some(first) = self.first_of_shifted(block, step)
            && !choice.accepted.contains(&first)
        {
            choice.forced.push(first);
        }
        let mut positions: Vec<usize> = choice.accepted.iter().chain(&choice.forced).copied().collect();
        positions.sort_unstable();
        positions.dedup();
        let mut commits = Vec::with_capacity(positions.len());
        for position in positions {
            let Ok(at) = masked.binary_search_by_key(&position, |prediction| prediction.position) else {
                let Range { start, end } = *block;
                return Err(DiffusionError::BadChoice { policy: policy.name(), position, start, end });
            };
            let Prediction { token, confidence, .. } = masked[at];
            let accepted = choice.accepted.contains(&position);
            commits.push(Commit { position, token, confidence, accepted });
        }
        self.spend(started.elapsed());
        observe(&view, &choice, &commits);
        self.commit(&commits);
        Ok(commits)
    }
}
