//! Superposed decoding: several drafts of a continuation from one pass of the model a token. The model reads a weighted
//! average of the drafts' last embeddings, so all drafts share one law of the next token, and tables of n-grams tell
//! them apart again. It is an approximation: what a draft would have got by itself is not what it gets.
//!
//! State: `k` drafts `D_i` with log-scores `a_i`, from 0, and the best `k` that have ended. A step:
//! 1. `p` = the `c` largest of `softmax(logits / tau)`, renormalised. The first logits are those after the prompt.
//! 2. `g_i(v) = sum_j lambda_j P_j(v | last j tokens of D_i)`; a context that no table knows adds nothing.
//! 3. `s_i(v) = (1 - alpha) log p(v) + alpha log g_i(v)`; if that is `-inf` for every kept `v`, then
//!    `s_i(v) = (1 - alpha) log p(v) - penalty`.
//! 4. Of all `a_i + s_i(v)` the `2 k` best are candidates. Those that end a text compete for the `k` places of finished
//!    drafts, of the others the best `k` are the drafts from now on. The first step has one draft, the prompt.
//! 5. The model's next input is `sum_i gamma_i E[last token of D_i]`, `gamma = softmax(a)`.
//!
//! In the end drafts and finished drafts are ranked by `a / length`, and the best `k` are given back.
//!
//! | name | default | source |
//! |---|---|---|
//! | drafts `k`, candidates `c` | 3, 9 | RAIVNLab/SuperposedDecoding `params/p15_d3_mixed.json` |
//! | `alpha`, `tau` | 0.54, 0.06 | the same, for Llama-2-7B |
//! | `lambda` for contexts of 1 to 5 tokens | .01 .04 .15 .18 .12 | the same |
//! | penalty | 200 | `superpose.py` |
//! | tokens | 10 | paper, section 4.1 |
//!
//! **Deviations.** The tables are a sorted array of suffixes ([`NGrams`]), not hash tables on disk. Where fewer than `k`
//! unfinished candidates have a finite score, which in the released code leaves drafts of score `-inf`, the places that
//! are left go to the best by the rule for unknown contexts. With `E` end tokens the best `(1 + E) k` are candidates. In
//! the paper the first tokens are chosen by the model alone; that is an option, the default is the code's rule. The
//! weights are a softmax about the largest score; the code adds the maximum instead of taking it away. Resets of long
//! texts, which the code does not have either, are left out. [`Passes::Separate`] gives each draft its own row, with the
//! same scores: what superposition approximates.
//!
//! **Cost.** One pass of one row a token, whatever `k` is, and for each draft up to `lambda`'s length times `c` look-ups.
//! Scores are sums of logarithms sharpened by `1 / tau`: they rank, but are no log-probabilities.
//!
//! References: arXiv 2405.18400; RAIVNLab/SuperposedDecoding `superposed/llama/superpose.py`,
//! `superposed/llama/superposed_generation.py`, `eval.py`.
//!
//! ```
//! use pilotfish_decoding::superposed::{NGrams, SuperposedConfig, superposed};
//! use pilotfish_model::toy::LinearModel;
//! // After 0 the model says 1 or 2, after either 3 or 4; the tables know that 1 goes with 3, and 2 with 4.
//! let row = |a: usize, b: usize| (0..5).map(move |v| if v == a { 2.0 } else if v == b { 1.9 } else { -9.0 });
//! let rows = row(1, 2).chain(row(3, 4)).chain(row(3, 4)).chain(row(0, 0)).chain(row(0, 0)).collect();
//! let mut model = LinearModel::new(5, rows)?;
//! let tables = NGrams::build(5, [&[0, 1, 3][..], &[0, 2, 4]])?;
//! let config = SuperposedConfig { drafts: 2, candidates: 4, tokens: 2, ..SuperposedConfig::default() };
//! let out = superposed(&mut model, &[0], Some(&tables), &config)?;
//! let texts: Vec<_> = out.drafts.iter().map(|draft| draft.tokens.as_slice()).collect();
//! assert_eq!((texts, model.calls()), (vec![&[1, 3][..], &[2, 4]], 2));
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

mod ngrams;

use std::time::Instant;

use pilotfish_model::{
    Capability, CausalModel, Ledger, LogitForm, Logits, ModelError, ModelInfo, Phase, RowSet, Step, Token,
};
use serde::{Deserialize, Serialize};

pub use ngrams::NGrams;

use crate::{DecodingError, Result};

/// What the model reads for the drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passes {
    /// One row a step: the average of the drafts' last embeddings.
    #[default]
    Superposed,
    /// A row a draft, as branches of one tree.
    Separate,
}

/// How the first tokens of the drafts are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstTokens {
    /// As all others: the released code.
    #[default]
    Interpolated,
    /// By the model alone, `log p`: the paper.
    Model,
}

/// Numbers of superposed decoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SuperposedConfig {
    /// Drafts, `k`.
    pub drafts: usize,
    /// New tokens of each at most.
    pub tokens: usize,
    /// Tokens kept of the model's law, `c`.
    pub candidates: usize,
    /// Temperature of the model's law, `tau`; above 0.
    pub temperature: f64,
    /// Weight of the tables, from 0 to 1.
    pub alpha: f64,
    /// `lambda`: weights of the tables of contexts of 1, 2, ... tokens.
    pub weights: Vec<f64>,
    /// What a draft loses that no table knows how to go on, in nats.
    pub penalty: f64,
    /// How the first tokens are scored.
    pub first: FirstTokens,
    /// What the model reads.
    pub passes: Passes,
}

impl Default for SuperposedConfig {
    fn default() -> Self {
        Self {
            drafts: 3,
            tokens: 10,
            candidates: 9,
            temperature: 0.06,
            alpha: 0.54,
            weights: vec![0.01, 0.04, 0.15, 0.18, 0.12],
            penalty: 200.0,
            first: FirstTokens::default(),
            passes: Passes::default(),
        }
    }
}

impl SuperposedConfig {
    /// Checks the numbers for a model.
    ///
    /// # Errors
    /// No drafts or tokens; fewer candidates than drafts and end tokens together, or than the vocabulary has; a
    /// temperature, weight or penalty out of range; a model that takes no vectors, or no trees for separate rows.
    pub fn check(&self, info: &ModelInfo) -> Result<()> {
        for (name, value) in [("drafts", self.drafts), ("tokens", self.tokens)] {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        let (name, value) = ("candidates", self.candidates);
        if value < self.drafts.saturating_add(info.end.len()) || value > info.vocab {
            let want = "at least the drafts and the end tokens together, at most the vocabulary";
            return Err(DecodingError::BadParameter { name, value, want });
        }
        let refuse = |name, value, want| Err(ModelError::BadParameter { name, value, want }.into());
        if !(self.temperature >= 1e-4 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "at least 0.0001 and finite");
        }
        if !(0.0..=1.0).contains(&self.alpha) {
            return refuse("alpha", self.alpha, "from 0 to 1");
        }
        if !(self.penalty >= 0.0 && self.penalty.is_finite()) {
            return refuse("penalty", self.penalty, "at least 0 and finite");
        }
        if let Some(&weight) = self.weights.iter().find(|weight| !(**weight >= 0.0 && weight.is_finite())) {
            return refuse("weight of a table", weight, "at least 0 and finite");
        }
        info.require(match self.passes {
            Passes::Superposed => Capability::Embeddings,
            Passes::Separate => Capability::Tree,
        })?;
        Ok(())
    }
}

/// A continuation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// Its tokens, an end token included.
    pub tokens: Vec<Token>,
    /// Its score `a`: a sum of sharpened logarithms, no log-probability.
    pub score: f64,
    /// Whether it has ended.
    pub finished: bool,
}

impl Continuation {
    /// The score a token, by which continuations are ranked.
    pub fn rank(&self) -> f64 {
        self.score / self.tokens.len().max(1) as f64
    }
}

/// What superposed decoding gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Superposed {
    /// Continuations, best first, `k` at most.
    pub drafts: Vec<Continuation>,
    /// Passes, rows and times; look-ups count as drafting.
    pub ledger: Ledger,
}

/// What an observer sees of a pass after the prompt's.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The drafts that were read.
    pub drafts: &'a [Continuation],
    /// The weight of each.
    pub weights: &'a [f64],
    /// The logits that came of it: one row, or a row a draft.
    pub logits: &'a Logits,
}

/// Continues a prompt in `k` ways. The model's cache holds the prompt afterwards, or less after an error.
///
/// # Errors
/// As [`SuperposedConfig::check`]; an empty prompt, or one that leaves too little of the context; what the model refuses.
pub fn superposed(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    tables: Option<&NGrams>,
    config: &SuperposedConfig,
) -> Result<Superposed> {
    superposed_with(model, prompt, tables, config, LogitForm::TopK(config.candidates.max(1)), |_| {})
}

/// The same under the eyes of an observer, with logits in a form that shows at least the `c` largest.
///
/// # Errors
/// As [`superposed`].
pub fn superposed_with(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    tables: Option<&NGrams>,
    config: &SuperposedConfig,
    form: LogitForm,
    observe: impl FnMut(&Pass<'_>),
) -> Result<Superposed> {
    config.check(model.info())?;
    if prompt.is_empty() {
        return Err(DecodingError::EmptyPrompt);
    }
    let context = model.info().context;
    if prompt.len().saturating_add(config.tokens) > context {
        return Err(DecodingError::PromptTooLong { prompt: prompt.len(), context });
    }
    let out = run(model, prompt, tables, config, form, observe);
    let rows = model.len().min(prompt.len());
    model.truncate(rows)?;
    out
}

fn run(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    tables: Option<&NGrams>,
    config: &SuperposedConfig,
    form: LogitForm,
    mut observe: impl FnMut(&Pass<'_>),
) -> Result<Superposed> {
    let mut ledger = Ledger::default();
    model.truncate(0)?;
    let clock = Instant::now();
    let mut logits = Logits::none(model.info().vocab);
    for (index, chunk) in prompt.chunks(512).enumerate() {
        let last = (index + 1) * 512 >= prompt.len();
        let want = if last { RowSet::Last } else { RowSet::None };
        logits = model.step(&Step::chain(chunk).want(want).form(form))?.logits;
        ledger.target(model.info(), chunk.len(), usize::from(last));
    }
    ledger.spend(Phase::Prefill, clock.elapsed());
    let scoring = Scoring { tables, config, end: model.info().end.clone() };
    let mut state = State {
        drafts: vec![Continuation { tokens: Vec::new(), score: 0.0, finished: false }],
        finished: Vec::new(),
    };
    // For each draft the row of its last token, for separate rows.
    let mut rows = vec![prompt.len() - 1];
    for step in 0..config.tokens {
        let clock = Instant::now();
        let laws = (0..logits.rows()).map(|row| kept(&logits, row, config)).collect::<Result<Vec<_>>>()?;
        let from = state.advance(prompt, &laws, &scoring, step == 0);
        ledger.spend(Phase::Draft, clock.elapsed());
        if step + 1 == config.tokens || state.drafts.is_empty() {
            break;
        }
        let clock = Instant::now();
        let weights = state.weights();
        let before = model.len();
        logits = match config.passes {
            Passes::Superposed => {
                let mixture = state.mixture();
                let ids: Vec<Token> = mixture.iter().map(|(token, _)| *token).collect();
                let embeddings = model.embed(&ids)?;
                let width = model.info().width;
                let mut x = vec![0.0f32; width];
                for ((_, weight), row) in mixture.iter().zip(embeddings.chunks_exact(width)) {
                    x.iter_mut().zip(row).for_each(|(x, e)| *x += *weight as f32 * e);
                }
                model.step(&Step::chain(&[]).vectors(&x, width).want(RowSet::Last).form(form))?.logits
            }
            Passes::Separate => {
                let parents: Vec<Option<usize>> = from.iter().map(|&draft| Some(rows[draft])).collect();
                let ids: Vec<Token> = state.drafts.iter().filter_map(|d| d.tokens.last().copied()).collect();
                rows = (before..before + ids.len()).collect();
                model.step(&Step::tree(&ids, &parents).form(form))?.logits
            }
        };
        ledger.spend(Phase::Target, clock.elapsed());
        ledger.target(model.info(), model.len() - before, logits.rows());
        observe(&Pass { drafts: &state.drafts, weights: &weights, logits: &logits });
    }
    let mut drafts = state.drafts;
    drafts.append(&mut state.finished);
    drafts.sort_by(|a, b| b.rank().total_cmp(&a.rank()));
    drafts.truncate(config.drafts);
    ledger.emitted = drafts.iter().map(|draft| draft.tokens.len() as u64).sum();
    Ok(Superposed { drafts, ledger })
}

/// The `c` likeliest tokens of a row, best first, with the logarithms of their probabilities among themselves.
fn kept(logits: &Logits, row: usize, config: &SuperposedConfig) -> Result<Vec<(Token, f64)>> {
    let mut top = logits.top(row, config.candidates)?;
    top.retain(|(_, x)| x.is_finite());
    let scaled: Vec<f64> = top.iter().map(|(_, x)| f64::from(*x) / config.temperature).collect();
    let max = scaled.first().copied().unwrap_or(0.0);
    let norm = max + scaled.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    Ok(top.iter().zip(scaled).map(|(&(token, _), x)| (token, x - norm)).collect())
}

/// How candidates are scored.
struct Scoring<'a> {
    tables: Option<&'a NGrams>,
    config: &'a SuperposedConfig,
    end: Vec<Token>,
}

impl Scoring<'_> {
    /// `g(v)` after a text for each of these tokens; `None` if no table counts.
    fn tables(&self, prompt: &[Token], draft: &[Token], tokens: &[Token]) -> Option<Vec<f64>> {
        let tables = self.tables.filter(|_| self.config.alpha > 0.0)?;
        let mut sum = vec![0.0; tokens.len()];
        let last = |count: usize| -> Option<Vec<Token>> {
            let own = draft.len().min(count);
            let before = prompt.len().checked_sub(count - own)?;
            Some(prompt[before..].iter().chain(&draft[draft.len() - own..]).copied().collect())
        };
        for (index, &weight) in self.config.weights.iter().enumerate() {
            let Some(context) = last(index + 1).filter(|_| weight > 0.0) else { continue };
            // A longer context occurs only where the shorter one does.
            let Some(shares) = tables.probabilities(&context, tokens) else { break };
            sum.iter_mut().zip(shares).for_each(|(sum, share)| *sum += weight * share);
        }
        Some(sum)
    }

    /// `s(v)` for the kept tokens after a text, and what each would have by the rule for unknown contexts.
    fn scores(&self, prompt: &[Token], draft: &[Token], law: &[(Token, f64)], first: bool) -> Vec<[f64; 2]> {
        let alone = first && self.config.first == FirstTokens::Model;
        let tokens: Vec<Token> = law.iter().map(|(token, _)| *token).collect();
        let Some(shares) = (if alone { None } else { self.tables(prompt, draft, &tokens) }) else {
            return law.iter().map(|&(_, log)| [log; 2]).collect();
        };
        let alpha = self.config.alpha;
        // Not 0 times an infinity where the model does not count.
        let of_model = |log: f64| if alpha < 1.0 { (1.0 - alpha) * log } else { 0.0 };
        let unknown = shares.iter().all(|share| *share <= 0.0);
        law.iter()
            .zip(shares)
            .map(|(&(_, log), share)| {
                let without = of_model(log) - self.config.penalty;
                [if unknown { without } else { of_model(log) + alpha * share.ln() }, without]
            })
            .collect()
    }
}

struct State {
    drafts: Vec<Continuation>,
    finished: Vec<Continuation>,
}

struct Candidate {
    from: usize,
    token: Token,
    score: f64,
}

impl State {
    /// Gives every draft a further token; `laws` are one for all drafts, or one each. Says which old draft each new one
    /// continues.
    fn advance(
        &mut self,
        prompt: &[Token],
        laws: &[Vec<(Token, f64)>],
        scoring: &Scoring<'_>,
        first: bool,
    ) -> Vec<usize> {
        let k = scoring.config.drafts;
        let ends = |token: &Token| scoring.end.contains(token);
        let (mut candidates, mut spare) = (Vec::new(), Vec::new());
        for (from, draft) in self.drafts.iter().enumerate() {
            let Some(law) = laws.get(from).or(laws.first()) else { continue };
            for (&(token, _), [score, without]) in
                law.iter().zip(scoring.scores(prompt, &draft.tokens, law, first))
            {
                if score > f64::NEG_INFINITY {
                    candidates.push(Candidate { from, token, score: draft.score + score });
                } else {
                    spare.push(Candidate { from, token, score: draft.score + without });
                }
            }
        }
        // Stable sorts: of equal ones the earlier draft's, then the model's likelier.
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        if candidates.iter().filter(|candidate| !ends(&candidate.token)).count() < k {
            spare.sort_by(|a, b| b.score.total_cmp(&a.score));
            candidates.append(&mut spare);
        }
        candidates.truncate(k * (1 + scoring.end.len()));
        let (ended, open): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|candidate| ends(&candidate.token));
        let longer = |candidate: &Candidate, finished: bool| {
            let mut tokens = self.drafts[candidate.from].tokens.clone();
            tokens.push(candidate.token);
            Continuation { tokens, score: candidate.score, finished }
        };
        self.finished.extend(ended.iter().map(|candidate| longer(candidate, true)));
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(k);
        let open = &open[..k.min(open.len())];
        let drafts = open.iter().map(|candidate| longer(candidate, false)).collect();
        self.drafts = drafts;
        open.iter().map(|candidate| candidate.from).collect()
    }

    /// `softmax(a)`.
    fn weights(&self) -> Vec<f64> {
        let max = self.drafts.iter().map(|draft| draft.score).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = self.drafts.iter().map(|draft| (draft.score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    /// The weight of each last token; drafts with the same one add up.
    fn mixture(&self) -> Vec<(Token, f64)> {
        let mut mixture: Vec<(Token, f64)> = Vec::new();
        for (draft, weight) in self.drafts.iter().zip(self.weights()) {
            let Some(&token) = draft.tokens.last() else { continue };
            match mixture.iter_mut().find(|(other, _)| *other == token) {
                Some((_, sum)) => *sum += weight,
                None => mixture.push((token, weight)),
            }
        }
        mixture
    }
}

#[cfg(test)]
mod tests;
