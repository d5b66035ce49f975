//! The likeliest text, exactly: depth-first branch and bound.
//!
//! 1. `best` = the score of a complete text known beforehand, or `-inf`;
//! 2. at a prefix `x` of score `s`: if `s + log p(end | x) > best`, it is the new best;
//! 3. for each token `w`, the likeliest first: stop when `s + log p(w | x) <= best`, since log-probabilities are at
//!    most 0 and later tokens are less likely; else go on from `xw`, and forget its cache row afterwards.
//!
//! [`modes_by_length`] finds the likeliest text of every length up to `N` in one traversal: the end counts for its own
//! length only, and a token is followed while its score exceeds the least of the bests of lengths it can still reach.
//! Given a length, the condition's own probability is constant, so this is the mode given that length.
//!
//! **Deviations.** Pattern: ucam-smt/sgnmt `cam/sgnmt/decoding/dfs.py`. A search may be given up after a number of
//! prefixes; what it found is then a lower bound, and says so.
//!
//! **Cost.** Exponential in the worst case. One model step of one row a prefix; the cache holds one path.
//!
//! References: Stahlberg and Byrne 2019, arXiv 1908.10090; Yoshida et al. 2024, arXiv 2311.08817 (reconstructed).
//!
//! ```
//! use pilotfish_decoding::search::{SearchLimits, mode};
//! use pilotfish_model::toy::TableModel;
//! let mut model = TableModel::new(1, 3, vec![0.1, 0.9, 0.0, 0.0, 0.0, 1.0, 0.4, 0.5, 0.1])?;
//! let found = mode(&mut model, &[2], &[2], &SearchLimits::default(), None)?;
//! assert!(found.proven && found.best.expect("there is one").tokens == [1]);
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

use pilotfish_model::{CausalModel, Step, Token};
use serde::{Deserialize, Serialize};

use super::{Found, begin, log_probs};
use crate::{DecodingError, Result};

/// How far an exact search may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchLimits {
    /// Tokens of a text at most, the end not counted.
    pub tokens: usize,
    /// Prefixes looked at, at most.
    pub prefixes: usize,
}

impl Default for SearchLimits {
    fn default() -> Self {
        Self { tokens: 32, prefixes: 2000 }
    }
}

/// The likeliest text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mode {
    /// It; none if no text has probability, or none was found within the limits or above the bound.
    pub best: Option<Found>,
    /// Whether no text of at most that many tokens is likelier.
    pub proven: bool,
    /// Prefixes looked at.
    pub prefixes: usize,
}

/// The likeliest text of each length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Modes {
    /// By length, from 0.
    pub best: Vec<Option<Found>>,
    /// Whether they are proven.
    pub proven: bool,
    /// Prefixes looked at.
    pub prefixes: usize,
}

/// The likeliest text after a prompt. `bound` is a text known beforehand, from a beam search say; a likelier one is
/// looked for, and it is returned if there is none.
///
/// # Errors
/// Limits of 0, a prompt that does not fit, a model that fails.
pub fn mode(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    end: &[Token],
    limits: &SearchLimits,
    bound: Option<Found>,
) -> Result<Mode> {
    let mut search = Search { best: vec![bound], by_length: false, ..Search::new(model, end, limits)? };
    search.run(prompt)?;
    let Search { mut best, proven, prefixes, .. } = search;
    Ok(Mode { best: best.pop().flatten(), proven, prefixes })
}

/// The likeliest text of each length from 0 to `limits.tokens`. `bounds` are texts known beforehand, by their length.
///
/// # Errors
/// As [`mode`].
pub fn modes_by_length(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    end: &[Token],
    limits: &SearchLimits,
    bounds: &[Found],
) -> Result<Modes> {
    let mut best: Vec<Option<Found>> = vec![None; limits.tokens.saturating_add(1).min(1 << 20)];
    for bound in bounds {
        if let Some(place) = best.get_mut(bound.tokens.len())
            && place.as_ref().is_none_or(|known| known.log_prob < bound.log_prob)
        {
            *place = Some(bound.clone());
        }
    }
    let mut search = Search { best, by_length: true, ..Search::new(model, end, limits)? };
    search.run(prompt)?;
    let Search { best, proven, prefixes, .. } = search;
    Ok(Modes { best, proven, prefixes })
}

/// The likeliest text of exactly `length` tokens; `limits.tokens` is not looked at.
///
/// # Errors
/// As [`mode`].
pub fn mode_of_length(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    end: &[Token],
    length: usize,
    limits: &SearchLimits,
    bound: Option<Found>,
) -> Result<Mode> {
    let limits = SearchLimits { tokens: length.max(1), ..*limits };
    let bound = bound.filter(|found| found.tokens.len() == length);
    let mut search = Search { best: vec![bound], only: Some(length), ..Search::new(model, end, &limits)? };
    search.run(prompt)?;
    let Search { mut best, proven, prefixes, .. } = search;
    Ok(Mode { best: best.pop().flatten(), proven, prefixes })
}

struct Search<'a> {
    model: &'a mut dyn CausalModel,
    end: &'a [Token],
    limits: SearchLimits,
    by_length: bool,
    /// The only length that counts.
    only: Option<usize>,
    best: Vec<Option<Found>>,
    proven: bool,
    prefixes: usize,
}

/// A prefix whose continuations are being tried.
struct Open {
    score: f64,
    /// Continuations that are left, the likeliest last.
    left: Vec<(Token, f64)>,
}

impl<'a> Search<'a> {
    fn new(model: &'a mut dyn CausalModel, end: &'a [Token], limits: &SearchLimits) -> Result<Self> {
        for (name, value) in [("tokens", limits.tokens), ("prefixes", limits.prefixes)] {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        let best = Vec::new();
        Ok(Self {
            model,
            end,
            limits: *limits,
            by_length: false,
            only: None,
            best,
            proven: true,
            prefixes: 0,
        })
    }

    /// The score that a continuation must exceed to matter, when the prefix with it has `length` tokens.
    fn bar(&self, length: usize) -> f64 {
        let score = |found: &Option<Found>| found.as_ref().map_or(f64::NEG_INFINITY, |found| found.log_prob);
        match self.by_length {
            false => score(&self.best[0]),
            true => {
                self.best.get(length..).unwrap_or_default().iter().map(score).fold(f64::INFINITY, f64::min)
            }
        }
    }

    /// Looks at a prefix: a text may end here, and these are its continuations.
    fn open(&mut self, path: &[Token], score: f64, logs: &[f64]) -> Open {
        self.prefixes += 1;
        let place = if self.by_length { path.len() } else { 0 };
        let ended = score + logs[self.end[0] as usize];
        let counts = self.only.is_none_or(|length| length == path.len());
        if counts && self.best[place].as_ref().map_or(f64::NEG_INFINITY, |found| found.log_prob) < ended {
            self.best[place] = Some(Found { tokens: path.to_vec(), log_prob: ended, rank: ended });
        }
        let mut left = Vec::new();
        if path.len() < self.only.unwrap_or(self.limits.tokens) {
            let bar = self.bar(path.len() + 1);
            left.extend(
                (0..logs.len() as Token)
                    .zip(logs)
                    .filter(|&(token, log)| token != self.end[0] && score + log > bar)
                    .map(|(token, &log)| (token, log)),
            );
            // The smaller token of equals first.
            left.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        }
        Open { score, left }
    }

    fn run(&mut self, prompt: &[Token]) -> Result<()> {
        let logs = begin(self.model, prompt, self.end, self.limits.tokens)?;
        let mut path = Vec::new();
        let mut stack = vec![self.open(&path, 0.0, &logs)];
        // Without recursion: a text may be long.
        while let Some(top) = stack.last_mut() {
            let score = top.score;
            let next = top.left.pop().filter(|(_, log)| score + log > self.bar(path.len() + 1));
            let Some((token, log)) = next else {
                stack.pop();
                path.pop();
                continue;
            };
            if self.prefixes >= self.limits.prefixes {
                self.proven = false;
                break;
            }
            self.model.truncate(prompt.len() + path.len())?;
            let answer = self.model.step(&Step::chain(&[token]))?;
            let logs = log_probs(&answer.logits, 0, self.end)?;
            path.push(token);
            let open = self.open(&path, score + log, &logs);
            stack.push(open);
        }
        self.model.truncate(prompt.len())?;
        Ok(())
    }
}
