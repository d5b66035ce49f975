//! Beam search, and attribute-conditional beam search (ACBS).
//!
//! Keeps the `B` best prefixes of all lengths so far. Under a condition, prefixes are ranked by
//! `log p(x) + log P(a | x)`, where a [`PrefixClassifier`] says how likely it is that the model's own completion of
//! `x` has the attribute `a`. The rank holds the model's score of the whole prefix and only the newest value of the
//! classifier, which replaces the one before.
//!
//! 1. beam = the empty text with score `s = 0`;
//! 2. for each `(x, s)`: the `M` likeliest tokens `w` give candidates with score `s + log p(w | x)` and rank `s + log
//!    p(w | x) + log c(a, xw)`; the end gives a finished candidate of rank `s + log p(end | x) + log A(x)`;
//! 3. the `B` candidates of highest rank stay; finished ones leave the beam (ties: the smaller token, then the earlier
//!    hypothesis);
//! 4. stop when `B` texts are finished, or no prefix can still beat the `B`-th of them.
//!
//! | name | default | source |
//! |---|---|---|
//! | `width` `B` | 5 | ours |
//! | `candidates` `M` | 100 | ours |
//! | classifier clipped to | `[1e-6, 1]` | ours |
//! | `length_penalty` | 0 (none) | Wu et al. 2016 use about 0.6 to 1 |
//! | `groups`, `diversity` | 1, 0.5 | Vijayakumar et al. 2018, Hamming diversity |
//!
//! **Deviations.** The method of Yoshida et al. is reconstructed from its abstract, reviews and summaries: no code
//! could be read. What beats the `B`-th text is bounded by `s`, since a classifier's value may rise to 1. With a length
//! penalty, finished texts are ranked by `(log p + log A) / length^penalty` and the search stops at `B` texts. Diverse
//! groups subtract `diversity` for each earlier group's hypothesis that chose the same token at this step.
//!
//! **Cost.** One model step a token, of `B` rows.
//!
//! References: Yoshida, Goyal and Gimpel 2024, arXiv 2311.08817; Wu et al. 2016, arXiv 1609.08144, section 7;
//! Vijayakumar et al. 2018, arXiv 1610.02424.
//!
//! ```
//! use pilotfish_decoding::search::{BeamConfig, beam};
//! use pilotfish_model::toy::TableModel;
//! // a then b then the end (2), or b at once: .4 * .9 against .5.
//! let mut model = TableModel::new(1, 3, vec![0.1, 0.9, 0.0, 0.0, 0.0, 1.0, 0.4, 0.5, 0.1])?;
//! let found = beam(&mut model, &[2], &[2], &BeamConfig::default())?;
//! assert_eq!((found[0].tokens.as_slice(), found[1].tokens.as_slice()), (&[1][..], &[0, 1][..]));
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

use pilotfish_model::{Capability, CausalModel, LogitForm, Parents, RowSet, Step, Tap, Token};
use serde::{Deserialize, Serialize};

use super::{Found, begin, log_probs};
use crate::{DecodingError, Result};

/// Numbers of a beam search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BeamConfig {
    /// Prefixes kept, `B`.
    pub width: usize,
    /// Tokens tried after each prefix, `M`.
    pub candidates: usize,
    /// Tokens of a text at most, its end not counted.
    pub tokens: usize,
    /// Finished texts are ranked by their score over `length^penalty`; 0 is no normalisation.
    pub length_penalty: f64,
    /// Groups that the beam is divided into; more than 1 makes texts diverse.
    pub groups: usize,
    /// What a token costs that an earlier group chose at the same step, in nats.
    pub diversity: f64,
}

impl Default for BeamConfig {
    fn default() -> Self {
        Self { width: 5, candidates: 100, tokens: 64, length_penalty: 0.0, groups: 1, diversity: 0.5 }
    }
}

impl BeamConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// No prefix, candidate, token or group; groups that do not divide the width; a penalty that is negative or not
    /// finite.
    pub fn check(&self) -> Result<()> {
        let all = [
            ("width", self.width),
            ("candidates", self.candidates),
            ("tokens", self.tokens),
            ("groups", self.groups),
        ];
        for (name, value) in all {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        if self.width % self.groups != 0 {
            return Err(DecodingError::BadParameter {
                name: "groups",
                value: self.groups,
                want: "a divisor of the width",
            });
        }
        for (name, value) in [("length penalty", self.length_penalty), ("diversity", self.diversity)] {
            if !(value >= 0.0 && value.is_finite()) {
                let want = "at least 0 and finite";
                return Err(pilotfish_model::ModelError::BadParameter { name, value, want }.into());
            }
        }
        Ok(())
    }
}

/// How likely it is that the model's completion of a prefix has an attribute.
pub trait PrefixClassifier {
    /// Taps of the prefix's last token that it wants to see.
    fn taps(&self) -> Vec<Tap> {
        Vec::new()
    }

    /// For each candidate `w`: the probability of the attribute given the prefix and `w`. `states` holds the taps asked
    /// for, one after the other.
    ///
    /// # Errors
    /// States of another width.
    fn prefix(&mut self, prefix: &[Token], states: &[f32], candidates: &[Token]) -> Result<Vec<f64>>;

    /// The probability that a finished text has the attribute: 0 or 1 where it can be computed.
    ///
    /// # Errors
    /// As [`prefix`](Self::prefix).
    fn complete(&mut self, text: &[Token], states: &[f32]) -> Result<f64>;
}

/// The attribute that every text has: ordinary beam search.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

impl PrefixClassifier for Always {
    fn prefix(&mut self, _: &[Token], _: &[f32], candidates: &[Token]) -> Result<Vec<f64>> {
        Ok(vec![1.0; candidates.len()])
    }

    fn complete(&mut self, _: &[Token], _: &[f32]) -> Result<f64> {
        Ok(1.0)
    }
}

/// Texts of a length, without looking ahead: the baseline that masks the end before and forces it then.
#[derive(Clone, Copy, Debug)]
pub struct Length(
    /// Tokens, the end not counted.
    pub usize,
);

impl PrefixClassifier for Length {
    fn prefix(&mut self, prefix: &[Token], _: &[f32], candidates: &[Token]) -> Result<Vec<f64>> {
        Ok(vec![f64::from(u8::from(prefix.len() < self.0)); candidates.len()])
    }

    fn complete(&mut self, text: &[Token], _: &[f32]) -> Result<f64> {
        Ok(f64::from(u8::from(text.len() == self.0)))
    }
}

/// Values of classifiers below this count as this, except for 0, which is never.
const LEAST: f64 = 1e-6;

fn log_clipped(probability: f64) -> f64 {
    match probability {
        p if p <= 0.0 || p.is_nan() => f64::NEG_INFINITY,
        p => p.clamp(LEAST, 1.0).ln(),
    }
}

/// The likeliest texts after a prompt, best first; nearly, and at most `width` of them.
///
/// # Errors
/// Numbers out of range, a prompt that does not fit, a model without trees unless the width is 1.
pub fn beam(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    end: &[Token],
    config: &BeamConfig,
) -> Result<Vec<Found>> {
    conditional_beam(model, prompt, end, &mut Always, config)
}

struct Hypothesis {
    tokens: Vec<Token>,
    score: f64,
    /// Cache rows of its tokens.
    rows: Vec<usize>,
    logs: Vec<f64>,
    states: Vec<f32>,
}

struct Candidate {
    from: usize,
    token: Option<Token>,
    score: f64,
    rank: f64,
}

/// The likeliest texts with an attribute, best first; nearly.
///
/// # Errors
/// As [`beam`]; what the classifier refuses; taps that the model does not have.
pub fn conditional_beam(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    end: &[Token],
    classifier: &mut dyn PrefixClassifier,
    config: &BeamConfig,
) -> Result<Vec<Found>> {
    config.check()?;
    let taps = classifier.taps();
    taps.iter().try_for_each(|tap| model.info().require_tap(*tap))?;
    if config.width > 1 {
        model.info().require(Capability::Tree)?;
    }
    let mut logs = begin(model, prompt, end, config.tokens)?;
    let mut states = Vec::new();
    if !taps.is_empty() {
        // The last row again, with its taps.
        model.truncate(prompt.len() - 1)?;
        let answer = model.step(&Step::chain(&prompt[prompt.len() - 1..]).taps(&taps))?;
        logs = log_probs(&answer.logits, 0, end)?;
        answer.taps.iter().for_each(|rows| states.extend_from_slice(rows.row(0)));
    }
    let own = config.width / config.groups;
    let first = || Hypothesis {
        tokens: Vec::new(),
        score: 0.0,
        rows: Vec::new(),
        logs: logs.clone(),
        states: states.clone(),
    };
    let mut groups: Vec<Vec<Hypothesis>> = (0..config.groups).map(|_| vec![first()]).collect();
    let mut finished: Vec<Vec<Found>> = (0..config.groups).map(|_| Vec::new()).collect();
    let normal = |value: f64, length: usize| value / (length.max(1) as f64).powf(config.length_penalty);
    for step in 0..=config.tokens {
        let mut chosen: Vec<(usize, Candidate)> = Vec::new();
        for group in 0..config.groups {
            if finished[group].len() >= own {
                groups[group].clear();
                continue;
            }
            let mut all = Vec::new();
            for (from, hypothesis) in groups[group].iter().enumerate() {
                candidates(hypothesis, from, end[0], classifier, config, step < config.tokens, &mut all)?;
            }
            for candidate in &mut all {
                let same = |other: &&(usize, Candidate)| {
                    candidate.token.is_some() && other.1.token == candidate.token
                };
                candidate.rank -= config.diversity * chosen.iter().filter(same).count() as f64;
            }
            // A stable sort keeps smaller tokens and earlier hypotheses first.
            all.sort_by(|a, b| b.rank.total_cmp(&a.rank));
            all.truncate(own);
            for candidate in all {
                if candidate.token.is_some() {
                    chosen.push((group, candidate));
                    continue;
                }
                let from = &groups[group][candidate.from];
                let rank = normal(candidate.rank, from.tokens.len() + 1);
                finished[group].push(Found { tokens: from.tokens.clone(), log_prob: candidate.score, rank });
            }
            if config.length_penalty == 0.0 && finished[group].len() >= own {
                let mut ranks: Vec<f64> = finished[group].iter().map(|found| found.rank).collect();
                ranks.sort_by(|a, b| b.total_cmp(a));
                let beaten = |candidate: &Candidate| candidate.score <= ranks[own - 1];
                chosen.retain(|(of, candidate)| *of != group || !beaten(candidate));
            }
        }
        if chosen.is_empty() {
            break;
        }
        groups = extend(model, prompt.len(), &mut groups, &chosen, end, &taps)?;
    }
    model.truncate(prompt.len())?;
    let mut all: Vec<Found> = finished.into_iter().flatten().collect();
    all.sort_by(|a, b| b.rank.total_cmp(&a.rank));
    all.truncate(config.width);
    Ok(all)
}

fn candidates(
    hypothesis: &Hypothesis,
    from: usize,
    end: Token,
    classifier: &mut dyn PrefixClassifier,
    config: &BeamConfig,
    longer: bool,
    all: &mut Vec<Candidate>,
) -> Result<()> {
    let logs = &hypothesis.logs;
    let score = hypothesis.score + logs[end as usize];
    let has = log_clipped(classifier.complete(&hypothesis.tokens, &hypothesis.states)?);
    if score + has > f64::NEG_INFINITY {
        all.push(Candidate { from, token: None, score, rank: score + has });
    }
    if !longer {
        return Ok(());
    }
    let by = |a: &Token, b: &Token| logs[*b as usize].total_cmp(&logs[*a as usize]).then(a.cmp(b));
    let mut tokens: Vec<Token> = (0..logs.len() as Token)
        .filter(|&token| token != end && logs[token as usize] > f64::NEG_INFINITY)
        .collect();
    if tokens.len() > config.candidates {
        tokens.select_nth_unstable_by(config.candidates, by);
        tokens.truncate(config.candidates);
    }
    tokens.sort_unstable();
    let values = classifier.prefix(&hypothesis.tokens, &hypothesis.states, &tokens)?;
    for (&token, value) in tokens.iter().zip(values) {
        let score = hypothesis.score + logs[token as usize];
        let rank = score + log_clipped(value);
        if rank > f64::NEG_INFINITY {
            all.push(Candidate { from, token: Some(token), score, rank });
        }
    }
    Ok(())
}

/// Runs what was chosen. Rows that lead to none of it are forgotten once they are the most.
fn extend(
    model: &mut dyn CausalModel,
    prompt: usize,
    groups: &mut [Vec<Hypothesis>],
    chosen: &[(usize, Candidate)],
    end: &[Token],
    taps: &[Tap],
) -> Result<Vec<Vec<Hypothesis>>> {
    let mut needed: Vec<usize> = chosen
        .iter()
        .flat_map(|(group, candidate)| groups[*group][candidate.from].rows.iter().copied())
        .collect();
    needed.sort_unstable();
    needed.dedup();
    if 2 * needed.len() < model.len() - prompt {
        model.keep(prompt, &needed)?;
        for row in groups.iter_mut().flatten().flat_map(|hypothesis| &mut hypothesis.rows) {
            // Rows of hypotheses that were not chosen are not looked at again.
            *row = prompt + needed.binary_search(row).unwrap_or(0);
        }
    }
    let ids: Vec<Token> = chosen.iter().filter_map(|(_, candidate)| candidate.token).collect();
    let last = |(group, candidate): &(usize, Candidate)| {
        groups[*group][candidate.from].rows.last().copied().unwrap_or(prompt - 1)
    };
    let parents: Vec<Option<usize>> = chosen.iter().map(last).map(Some).collect();
    let len = model.len();
    let mut step = Step::tree(&ids, &parents).want(RowSet::All).form(LogitForm::Full).taps(taps);
    if ids.len() == 1 && parents[0] == Some(len - 1) {
        step.parents = Parents::Chain;
    }
    let answer = model.step(&step)?;
    let mut next: Vec<Vec<Hypothesis>> = groups.iter().map(|_| Vec::new()).collect();
    for (place, (group, candidate)) in chosen.iter().enumerate() {
        let from = &groups[*group][candidate.from];
        next[*group].push(Hypothesis {
            tokens: from.tokens.iter().copied().chain(candidate.token).collect(),
            score: candidate.score,
            rows: from.rows.iter().copied().chain([len + place]).collect(),
            logs: log_probs(&answer.logits, place, end)?,
            states: answer.taps.iter().flat_map(|rows| rows.row(place).iter().copied()).collect(),
        });
    }
    Ok(next)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
