//! Texts under a constraint: sequential Monte Carlo over branches of one tree, and the simpler samplers that are
//! special cases of it.
//!
//! The target is the model's law over texts restricted to those that satisfy the constraint. Each particle is a text
//! with a weight; tokens come from a [`Proposal`], whose weights make up for what it does not know, and particles
//! whose weight has become small make room for copies of the others.
//!
//! 1. `N` empty texts, log-weights `W = 0`;
//! 2. for every unfinished particle: draw a token `t` and its log-weight `w` from the proposal; append `t`; `W += w`;
//!    if `W = -inf`, or `t` ends the text, it is finished. Where the critic is asked at every step, a text that the
//!    prefix test refuses gets `W = -inf`; a finished text must be complete;
//! 3. a text of `tokens` tokens must end: `W += log p(end)`, and it must be complete;
//! 4. unless all weights are 0: normalise; `ESS = 1 / sum w_i^2`; if `ESS < tau N`, choose `N` ancestors, finished
//!    particles among them, and set every `W = logsumexp(W) - log N`;
//! 5. repeat from 2 until all are finished. The estimate of the probability that the model's text satisfies the
//!    constraint is the mean of `exp W`; the posterior over texts is the normalised weights, equal texts added up.
//!
//! | method | proposal | critic | particles | tau | source |
//! |---|---|---|---|---|---|
//! | [`Smc::base`] | model | none | 1 | 0 | awrs-colm-2025 `scripts/*.sh` |
//! | [`Smc::locally_constrained`] | AWRS pass 1, weight 1 | none | 1 | 0 | " |
//! | [`Smc::sample_rerank`] | model | at the end | 10 | 0 | " |
//! | [`Smc::twisted`] | model | at every step | 10 | 0.9 | " |
//! | [`Smc::awrs`] | AWRS | none | 5 | 0.5 | " |
//! | [`Smc::masked`] | mask, exact weight | none | 5 | 0.5 | ours |
//!
//! Resampling is stratified (llamppl), at most 100 tokens (`experiments/tasks.py`).
//!
//! **Deviations.** A text at the limit is ended by force, as in genlm-control, where the paper's experiments dropped
//! it. A Boolean critic needs no undoing of the step before: its values are 0 and `-inf`. Particles live in one
//! cache as branches of one tree, and those with equal texts share their rows; the reference copies caches.
//!
//! **Cost.** One model step a token for all particles together, of as many rows as there are different texts.
//! Constraint calls are counted in the ledger; they are made in the phase `Verify`.
//!
//! References: arXiv 2504.05410; genlm/genlm-control `genlm/control/sampler/sequence.py`; genlm/llamppl
//! `llamppl/inference/smc_standard.py`, `resampling.py`.
//!
//! ```
//! use pilotfish_constrained::{Dfa, Smc, Vocabulary};
//! use pilotfish_model::{Streams, toy::TableModel};
//! // Tokens a, b and the end, each with probability 1/3; the text must be "ab".
//! let mut model = TableModel::new(0, 3, vec![1.0; 3])?;
//! let vocabulary = Vocabulary::new(vec![Some(b"a".to_vec()), Some(b"b".to_vec()), None], vec![2])?;
//! let smc = Smc { particles: 50, ..Smc::awrs() };
//! let posterior = smc.run(&mut model, &vocabulary, &Dfa::words(&[b"ab"])?, &[0], Streams::new(1))?;
//! assert_eq!(posterior.texts()[0].0, b"ab");
//! assert!((posterior.log_evidence() - (1f64 / 27.0).ln()).abs() < 0.5);
//! # Ok::<(), pilotfish_constrained::ConstrainedError>(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::time::Instant;

use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::{
    Capability, CausalModel, Input, Ledger, LogitForm, Parents, Phase, RowSet, Step, StreamRng, Streams,
    Token,
};
use serde::{Deserialize, Serialize};

use crate::resampling::{effective_size, log_sum_exp, normalised};
use crate::{
    Checker, ConstrainedError, Constraint, Estimator, NextLaw, Pool, Resampling, Result, Vocabulary,
};

/// Where tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proposal {
    /// The model itself, at weight 1.
    Model,
    /// The model restricted to a whole mask, weighted by the mass that is allowed: no variance, `|V|` verdicts.
    Masked,
    /// The model restricted to a whole mask, at weight 1: locally constrained decoding.
    MaskedUnweighted,
    /// Adaptive weighted rejection sampling.
    Awrs(Estimator),
}

/// When the constraint is asked about what a proposal drew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Critic {
    /// Never. A proposal that knows the constraint draws valid texts anyway.
    None,
    /// When a text ends.
    AtEnd,
    /// At every token, as a twist.
    EveryStep,
}

/// A sampler of texts under a constraint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smc {
    /// Where tokens come from.
    pub proposal: Proposal,
    /// When the constraint is asked otherwise.
    pub critic: Critic,
    /// Particles `N`.
    pub particles: usize,
    /// Resampling below an effective size of `tau N`; 0 never resamples.
    pub tau: f64,
    /// How ancestors are chosen.
    pub resampling: Resampling,
    /// Tokens of a text at most, its end not counted.
    pub tokens: usize,
    /// How logits become the model's law. Not greedy.
    pub warpers: Warpers,
}

impl Smc {
    const fn method(proposal: Proposal, critic: Critic, particles: usize, tau: f64) -> Self {
        let warpers =
            Warpers { temperature: 1.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0 };
        Self { proposal, critic, particles, tau, resampling: Resampling::Stratified, tokens: 100, warpers }
    }

    /// The model alone: one text, the constraint is not looked at.
    pub const fn base() -> Self {
        Self::method(Proposal::Model, Critic::None, 1, 0.0)
    }

    /// Locally constrained decoding: one text of valid tokens.
    pub const fn locally_constrained() -> Self {
        Self::method(Proposal::Awrs(Estimator::Unweighted), Critic::None, 1, 0.0)
    }

    /// Ten texts of the model, of which the valid ones stay.
    pub const fn sample_rerank() -> Self {
        Self::method(Proposal::Model, Critic::AtEnd, 10, 0.0)
    }

    /// Ten texts of the model, resampled as soon as some cannot be completed.
    pub const fn twisted() -> Self {
        Self::method(Proposal::Model, Critic::EveryStep, 10, 0.9)
    }

    /// AWRS-SMC: five particles, weighted by what the constraint takes away at each token.
    pub const fn awrs() -> Self {
        Self::method(Proposal::Awrs(Estimator::Chosen), Critic::None, 5, 0.5)
    }

    /// The same with whole masks and exact weights.
    pub const fn masked() -> Self {
        Self::method(Proposal::Masked, Critic::None, 5, 0.5)
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// No particle, a threshold outside `[0, 1]`, no token, warpers out of range or greedy, an estimator out of range.
    pub fn check(&self) -> Result<Sampler> {
        let refuse = |name, value, want| Err(ConstrainedError::BadParameter { name, value, want });
        if self.particles == 0 {
            return refuse("particles", 0.0, "at least 1");
        }
        if !(0.0..=1.0).contains(&self.tau) {
            return refuse("tau", self.tau, "from 0 to 1");
        }
        if self.tokens == 0 {
            return refuse("tokens", 0.0, "at least 1");
        }
        if let Proposal::Awrs(estimator) = self.proposal {
            estimator.check()?;
        }
        let sampler = self.warpers.check()?;
        if self.warpers.temperature == 0.0 {
            return refuse("temperature", 0.0, "above 0: particles must differ");
        }
        Ok(sampler)
    }

    /// Samples continuations of a prompt. Whatever the model's cache holds is forgotten first, and what it holds
    /// afterwards is the prompt.
    ///
    /// # Errors
    /// Parameters out of range; an empty prompt or one that does not fit; a vocabulary that is not the model's; a
    /// model without trees, unless there is one particle; whatever the model or the constraint refuse.
    pub fn run(
        &self,
        model: &mut dyn CausalModel,
        vocabulary: &Vocabulary,
        constraint: &dyn Constraint,
        prompt: &[Token],
        streams: Streams,
    ) -> Result<Posterior> {
        self.run_with(model, vocabulary, constraint, prompt, streams, |_| ControlFlow::Continue(()))
    }

    /// As [`run`](Self::run), under the eyes of an observer who sees all particles after each step and may break
    /// off; what is unfinished then counts as incomplete.
    ///
    /// # Errors
    /// The same.
    pub fn run_with(
        &self,
        model: &mut dyn CausalModel,
        vocabulary: &Vocabulary,
        constraint: &dyn Constraint,
        prompt: &[Token],
        streams: Streams,
        mut observe: impl FnMut(&[Particle]) -> ControlFlow<()>,
    ) -> Result<Posterior> {
        let prompt = Prompt::read(self, model, vocabulary, prompt)?;
        let mut posterior =
            self.continue_from(model, vocabulary, constraint, &prompt, streams, &mut observe)?;
        posterior.ledger.add(&prompt.ledger);
        Ok(posterior)
    }

    /// Samples continuations of a prompt that the model has read.
    pub(crate) fn continue_from(
        &self,
        model: &mut dyn CausalModel,
        vocabulary: &Vocabulary,
        constraint: &dyn Constraint,
        prompt: &Prompt<'_>,
        streams: Streams,
        observe: &mut dyn FnMut(&[Particle]) -> ControlFlow<()>,
    ) -> Result<Posterior> {
        let mut crowd = Crowd::begin(self, model, vocabulary, constraint, prompt, streams)?;
        while crowd.particles.iter().any(|particle| particle.end.is_none()) {
            crowd.advance()?;
            crowd.resample()?;
            if observe(&crowd.particles).is_break() {
                break;
            }
            crowd.step()?;
        }
        crowd.model.truncate(prompt.tokens.len())?;
        let mut ledger = crowd.ledger;
        ledger.emitted = crowd.particles.iter().map(|particle| particle.tokens.len() as u64).sum();
        Ok(Posterior { particles: crowd.particles, resampled: crowd.resampled, ledger })
    }
}

/// A prompt in the model's cache, with the law of what follows.
pub(crate) struct Prompt<'a> {
    tokens: &'a [Token],
    sampler: Sampler,
    law: NextLaw,
    pub(crate) ledger: Ledger,
}

impl<'a> Prompt<'a> {
    /// Checks everything and reads the prompt.
    pub(crate) fn read(
        smc: &Smc,
        model: &mut dyn CausalModel,
        vocabulary: &Vocabulary,
        tokens: &'a [Token],
    ) -> Result<Self> {
        let sampler = smc.check()?;
        let info = model.info().clone();
        if vocabulary.len() != info.vocab {
            return Err(ConstrainedError::Vocabulary { got: vocabulary.len(), want: info.vocab });
        }
        if tokens.is_empty() {
            return Err(ConstrainedError::EmptyPrompt);
        }
        if tokens.len().saturating_add(smc.tokens) > info.context {
            let (prompt, tokens, context) = (tokens.len(), smc.tokens, info.context);
            return Err(ConstrainedError::TooLong { prompt, tokens, context });
        }
        if smc.particles > 1 {
            info.require(Capability::Tree)?;
        }
        let mut ledger = Ledger::default();
        model.truncate(0)?;
        let clock = Instant::now();
        let chunks = tokens.len().div_ceil(PREFILL);
        let mut first = None;
        for (index, chunk) in tokens.chunks(PREFILL).enumerate() {
            let last = index + 1 == chunks;
            let want = if last { RowSet::Last } else { RowSet::None };
            first = Some(model.step(&Step::chain(chunk).want(want))?.logits);
            ledger.target(model.info(), chunk.len(), usize::from(last));
        }
        ledger.spend(Phase::Prefill, clock.elapsed());
        let row = first.as_ref().and_then(|logits| logits.row(0)).unwrap_or_default();
        let law = NextLaw::new(row, tokens, &sampler, vocabulary)?;
        Ok(Self { tokens, sampler, law, ledger })
    }
}

/// How a particle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Its text ended, and is complete as far as the constraint was asked.
    Complete,
    /// Its weight became 0.
    Dead,
}

/// A text with a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Particle {
    /// New tokens, an end token not included.
    pub tokens: Vec<Token>,
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// The logarithm of its weight.
    pub log_weight: f64,
    /// How it ended, if it has.
    pub end: Option<End>,
}

/// Weighted texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Posterior {
    /// The particles.
    pub particles: Vec<Particle>,
    /// How often ancestors were chosen.
    pub resampled: usize,
    /// What it cost.
    pub ledger: Ledger,
}

impl Posterior {
    /// The estimate of the logarithm of the probability that the model's text satisfies the constraint: `log mean
    /// exp W`, exactly unbiased before the logarithm for properly weighted methods.
    pub fn log_evidence(&self) -> f64 {
        let complete = |particle: &Particle| match particle.end {
            Some(End::Complete) => particle.log_weight,
            _ => f64::NEG_INFINITY,
        };
        let weights: Vec<f64> = self.particles.iter().map(complete).collect();
        log_sum_exp(weights.iter().copied()) - (weights.len() as f64).ln()
    }

    /// Complete texts with their normalised weights, equal texts added up, the heaviest first. Empty when no particle
    /// is left.
    pub fn texts(&self) -> Vec<(Vec<u8>, f64)> {
        let complete = self.particles.iter().filter(|particle| particle.end == Some(End::Complete));
        let (texts, logs): (Vec<&[u8]>, Vec<f64>) =
            complete.map(|particle| (&particle.bytes[..], particle.log_weight)).unzip();
        let mut sums: BTreeMap<&[u8], f64> = BTreeMap::new();
        for (text, weight) in texts.iter().zip(normalised(&logs).unwrap_or_default()) {
            *sums.entry(text).or_insert(0.0) += weight;
        }
        let mut sums: Vec<(Vec<u8>, f64)> = sums.into_iter().map(|(text, w)| (text.to_vec(), w)).collect();
        sums.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        sums
    }

    /// The expectation of a function of the text: the weighted accuracy, if it says 1 for right and 0 for wrong.
    /// 0 when no particle is left.
    pub fn expectation(&self, value: impl Fn(&[u8]) -> f64) -> f64 {
        self.texts().iter().map(|(text, weight)| weight * value(text)).sum()
    }
}

/// A running sampler.
struct Crowd<'a> {
    smc: &'a Smc,
    sampler: Sampler,
    model: &'a mut dyn CausalModel,
    vocabulary: &'a Vocabulary,
    prompt: &'a [Token],
    particles: Vec<Particle>,
    checkers: Vec<Checker<'a>>,
    /// By particle: the cache row of its last token, and its token to be run.
    rows: Vec<usize>,
    pending: Vec<Option<Token>>,
    /// By particle: which of `laws` is its next token's.
    at: Vec<usize>,
    laws: Vec<NextLaw>,
    /// Parents of the cache's rows behind the prompt.
    parents: Vec<usize>,
    rngs: Vec<StreamRng>,
    dice: StreamRng,
    resampled: usize,
    ledger: Ledger,
}

/// Rows of the prompt a step.
const PREFILL: usize = 512;

impl<'a> Crowd<'a> {
    fn begin(
        smc: &'a Smc,
        model: &'a mut dyn CausalModel,
        vocabulary: &'a Vocabulary,
        constraint: &dyn Constraint,
        prompt: &'a Prompt<'_>,
        streams: Streams,
    ) -> Result<Self> {
        let mut checker = Checker::new(constraint.fork(), vocabulary);
        let alive = smc.proposal == Proposal::Model || checker.alive()?;
        let n = smc.particles;
        let particle = Particle {
            tokens: Vec::new(),
            bytes: Vec::new(),
            log_weight: if alive { 0.0 } else { f64::NEG_INFINITY },
            end: (!alive).then_some(End::Dead),
        };
        Ok(Self {
            smc,
            sampler: prompt.sampler,
            model,
            vocabulary,
            prompt: prompt.tokens,
            particles: vec![particle; n],
            checkers: (0..n).map(|_| checker.fork()).collect(),
            rows: vec![prompt.tokens.len() - 1; n],
            pending: vec![None; n],
            at: vec![0; n],
            laws: vec![prompt.law.clone()],
            parents: Vec::new(),
            rngs: (0..n as u64).map(|i| streams.fork(i).stream("particle")).collect(),
            dice: streams.stream("resample"),
            resampled: 0,
            ledger: Ledger::default(),
        })
    }

    /// One token for every unfinished particle.
    fn advance(&mut self) -> Result<()> {
        let clock = Instant::now();
        self.ledger.rounds += 1;
        for i in 0..self.particles.len() {
            if self.particles[i].end.is_some() {
                continue;
            }
            let (token, log_weight) = self.propose(i)?;
            let particle = &mut self.particles[i];
            particle.log_weight += log_weight;
            let ends = self.vocabulary.is_end(token);
            let mut alive = particle.log_weight > f64::NEG_INFINITY;
            if alive && ends {
                alive = match self.smc.critic {
                    Critic::None => true,
                    Critic::AtEnd | Critic::EveryStep => self.checkers[i].test(token)?,
                };
            } else if alive {
                if self.smc.critic == Critic::EveryStep {
                    alive = self.checkers[i].test(token)?;
                }
                particle.tokens.push(token);
                particle.bytes.extend_from_slice(self.vocabulary.bytes(token).unwrap_or_default());
                if alive {
                    self.checkers[i].push(token)?;
                }
            }
            if !alive {
                particle.log_weight = f64::NEG_INFINITY;
                particle.end = Some(End::Dead);
            } else if ends {
                particle.end = Some(End::Complete);
            }
            self.pending[i] = (alive && !ends).then_some(token);
        }
        let calls: u64 = self.checkers.iter_mut().map(Checker::take_calls).sum();
        self.ledger.constraint_calls += calls;
        self.ledger.spend(Phase::Verify, clock.elapsed());
        Ok(())
    }

    /// A token for a particle, and the logarithm of its weight.
    fn propose(&mut self, i: usize) -> Result<(Token, f64)> {
        let (law, end) = (&self.laws[self.at[i]], self.vocabulary.end()[0]);
        let (checker, rng) = (&mut self.checkers[i], &mut self.rngs[i]);
        if self.particles[i].tokens.len() >= self.smc.tokens {
            let knows = !matches!(self.smc.proposal, Proposal::Model);
            let log_weight = match self.smc.proposal {
                Proposal::MaskedUnweighted | Proposal::Awrs(Estimator::Unweighted) => 0.0,
                _ => law.weight(end).ln(),
            };
            let allowed = !knows || checker.test(end)?;
            return Ok((end, if allowed { log_weight } else { f64::NEG_INFINITY }));
        }
        match self.smc.proposal {
            Proposal::Model => match law.pool(rng).draw() {
                // What tokens without bytes have is lost: a text with one of them is none.
                Some(token) => Ok((token, law.total().ln())),
                None => Ok((end, f64::NEG_INFINITY)),
            },
            Proposal::Masked | Proposal::MaskedUnweighted => {
                let masked = law.masked(&checker.mask()?);
                match masked.pool(rng).draw() {
                    Some(token) if self.smc.proposal == Proposal::Masked => Ok((token, masked.total().ln())),
                    Some(token) => Ok((token, 0.0)),
                    None => Ok((end, f64::NEG_INFINITY)),
                }
            }
            Proposal::Awrs(estimator) => {
                let mut pool = law.pool(rng);
                let drawn = estimator.draw(&mut pool, &mut |token| checker.test(token))?;
                checker.forget();
                Ok((drawn.token.unwrap_or(end), drawn.weight()))
            }
        }
    }

    /// Step 4.
    fn resample(&mut self) -> Result<()> {
        let n = self.particles.len();
        let logs: Vec<f64> = self.particles.iter().map(|particle| particle.log_weight).collect();
        let Some(weights) = normalised(&logs) else { return Ok(()) };
        if !(effective_size(&weights) < self.smc.tau * n as f64) {
            return Ok(());
        }
        self.resampled += 1;
        let ancestors = self.smc.resampling.ancestors(&weights, &mut self.dice);
        let mean = log_sum_exp(logs.iter().copied()) - (n as f64).ln();
        self.particles = ancestors.iter().map(|&i| self.particles[i].clone()).collect();
        self.particles.iter_mut().for_each(|particle| particle.log_weight = mean);
        self.checkers = ancestors.iter().map(|&i| self.checkers[i].fork()).collect();
        self.rows = ancestors.iter().map(|&i| self.rows[i]).collect();
        self.pending = ancestors.iter().map(|&i| self.pending[i]).collect();
        self.at = ancestors.iter().map(|&i| self.at[i]).collect();
        Ok(())
    }

    /// Runs the tokens drawn, each different continuation once.
    fn step(&mut self) -> Result<()> {
        self.tidy()?;
        let len = self.model.len();
        let (mut ids, mut parents) = (Vec::new(), Vec::new());
        let mut places: HashMap<(usize, Token), usize> = HashMap::new();
        let mut first = Vec::new();
        for i in 0..self.particles.len() {
            let Some(token) = self.pending[i].take() else { continue };
            let place = *places.entry((self.rows[i], token)).or_insert_with(|| {
                ids.push(token);
                parents.push(Some(self.rows[i]));
                first.push(i);
                ids.len() - 1
            });
            (self.rows[i], self.at[i]) = (len + place, place);
        }
        if ids.is_empty() {
            return Ok(());
        }
        let chain = ids.len() == 1 && parents[0] == len.checked_sub(1);
        let step = Step {
            input: Input::Ids(&ids),
            parents: if chain { Parents::Chain } else { Parents::Rows(&parents) },
            logits: RowSet::All,
            form: LogitForm::Full,
            taps: &[],
        };
        let clock = Instant::now();
        let logits = self.model.step(&step)?.logits;
        self.ledger.spend(Phase::Target, clock.elapsed());
        self.ledger.target(self.model.info(), ids.len(), ids.len());
        self.parents.extend(parents.into_iter().flatten());
        let clock = Instant::now();
        self.laws.clear();
        for (place, &i) in first.iter().enumerate() {
            let history: Vec<Token> = self.prompt.iter().chain(&self.particles[i].tokens).copied().collect();
            let row = logits.row(place).unwrap_or_default();
            self.laws.push(NextLaw::new(row, &history, &self.sampler, self.vocabulary)?);
        }
        self.ledger.spend(Phase::Verify, clock.elapsed());
        Ok(())
    }

    /// Forgets rows that no unfinished particle stands on, once they are the most.
    fn tidy(&mut self) -> Result<()> {
        let from = self.prompt.len();
        let mut needed = vec![false; self.parents.len()];
        for i in 0..self.particles.len() {
            let mut row = self.rows[i];
            while self.pending[i].is_some() && row >= from && !needed[row - from] {
                needed[row - from] = true;
                row = self.parents[row - from];
            }
        }
        let kept: Vec<usize> = (0..needed.len()).filter(|&row| needed[row]).map(|row| row + from).collect();
        if 2 * kept.len() > needed.len() || needed.is_empty() {
            return Ok(());
        }
        let clock = Instant::now();
        self.model.keep(from, &kept)?;
        let mut places = vec![0; needed.len()];
        kept.iter().enumerate().for_each(|(new, &old)| places[old - from] = from + new);
        let moved = |row: usize| if row >= from { places[row - from] } else { row };
        self.parents = kept.iter().map(|&row| moved(self.parents[row - from])).collect();
        self.rows.iter_mut().for_each(|row| *row = moved(*row));
        self.ledger.spend(Phase::Cache, clock.elapsed());
        Ok(())
    }
}
