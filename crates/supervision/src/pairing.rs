//! Preference pairs out of generations: what models answered, joined by prompt and put in order by a rule.
//!
//! | rule | the better side | reads |
//! |---|---|---|
//! | [`Rule::Delta`] | the first model's, whatever it says | two files |
//! | [`Rule::Tied`] | a coin's choice of the two models: the control that must teach nothing | two files |
//! | [`Rule::Contrastive`] | what agrees with the majority of samples, by two gates | weak answers, and samples |
//! | [`Rule::Score`] | the higher score of one prompt's answers | any number of files |
//!
//! A generation is a line with `prompt` (a text, or messages), `response`, and if known `model`, `group` and `score`. Nothing
//! here reads a gold answer.
//!
//! References: delta-learning, section 3.1 (`scripts/generate_model_ladder_data.py`: the order is given by size alone, and
//! nothing is filtered; pairs of equal texts teach nothing and are left out here); w2s-reasoning, stage II
//! ([`crate::reasoning::contrast`]); best against worst by score is what on-policy recipes do.

use std::collections::HashMap;
use std::io::BufRead;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::preferences::{About, Preference, Turn, each_line};
use crate::reasoning::{Gates, Key, Skipped, Solution, contrast, vote};
use crate::{Result, SupervisionError};

/// What a model answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The prompt; a plain text is one message of the user.
    pub prompt: Vec<Turn>,
    /// The answer.
    pub response: String,
    /// Whose.
    pub model: Option<String>,
    /// Its question's number, by which data are split.
    pub group: Option<u64>,
    /// How good it is said to be; higher is better.
    pub score: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Turns(Vec<Turn>),
}

#[derive(Deserialize)]
struct Line {
    prompt: Prompt,
    response: String,
    model: Option<String>,
    group: Option<u64>,
    score: Option<f64>,
}

/// Reads generations. A byte order mark, carriage returns and empty lines are no part of a file; further keys are ignored.
///
/// # Errors
/// No generations; a line, named by its number, without a prompt or response, or with a score that is no number.
pub fn read(input: impl BufRead, name: &str) -> Result<Vec<Generation>> {
    let mut all = Vec::new();
    each_line(input, name, |line| {
        let line: Line = serde_json::from_str(line).map_err(|error| {
            format!("{error}; a line has \"prompt\" (a text or messages) and \"response\" (a text)")
        })?;
        let prompt = match line.prompt {
            Prompt::Text(content) => vec![Turn { role: "user".into(), content }],
            Prompt::Turns(turns) => turns,
        };
        if prompt.iter().all(|turn| turn.content.trim().is_empty()) {
            return Err("the prompt is empty".into());
        }
        let Line { response, model, group, score, .. } = line;
        all.push(Generation { prompt, response, model, group, score });
        Ok(())
    })?;
    if all.is_empty() {
        return Err(SupervisionError::Empty { what: "generations" });
    }
    Ok(all)
}

/// Which side of a pair is the better one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The first file's. Several answers to one prompt are paired in order.
    Delta,
    /// As [`Rule::Delta`], but a coin says which side.
    Tied,
    /// The first file has one (weak) answer a prompt, the second samples of the tuned model.
    Contrastive {
        /// How the answer is found in a response.
        key: Key,
        /// When a majority makes a pair.
        gates: Gates,
    },
    /// The best against the worst answer to a prompt, in any file, if their scores differ by at least this much.
    Score {
        /// The least difference; pairs of equal scores never count.
        margin: f64,
    },
}

impl Rule {
    /// Files that it reads; `None` for any number.
    pub fn files(&self) -> Option<usize> {
        match self {
            Self::Delta | Self::Tied | Self::Contrastive { .. } => Some(2),
            Self::Score { .. } => None,
        }
    }
}

/// What became of the prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Different prompts.
    pub prompts: usize,
    /// Pairs made.
    pub pairs: usize,
    /// Answers whose prompt has no other side.
    pub unmatched: usize,
    /// Pairs of equal texts, or with an empty one: nothing to learn.
    pub empty: usize,
    /// Scores closer than the margin, or missing.
    pub close: usize,
    /// No sure majority among the samples.
    pub unsure: usize,
    /// All samples agree with the weak answer.
    pub easy: usize,
    /// Pairs whose better side is the longer one, in characters: a bias that a student learns first.
    pub longer: usize,
}

/// Pairs of generations by a rule, in the order in which prompts come first. The same seed makes the same pairs.
///
/// # Errors
/// Another number of files than the rule reads; a margin or gates outside their range; several weak answers to one prompt.
pub fn pair(files: &[Vec<Generation>], rule: &Rule, seed: u64) -> Result<(Vec<Preference>, Tally)> {
    let want = rule.files().unwrap_or(files.len().max(1));
    if files.len() != want {
        return Err(SupervisionError::Shape { what: "files of generations", got: files.len(), want });
    }
    if let Rule::Score { margin } = *rule
        && !(margin >= 0.0 && margin.is_finite())
    {
        return Err(SupervisionError::BadParameter { name: "margin", value: margin, want: "at least 0" });
    }
    let mut places: HashMap<&[Turn], usize> = HashMap::new();
    let mut prompts: Vec<Vec<Vec<&Generation>>> = Vec::new();
    for (file, generations) in files.iter().enumerate() {
        for generation in generations {
            let place = *places.entry(&generation.prompt).or_insert_with(|| {
                prompts.push(vec![Vec::new(); files.len()]);
                prompts.len() - 1
            });
            prompts[place][file].push(generation);
        }
    }
    let mut maker = Maker {
        rng: ChaCha8Rng::seed_from_u64(seed),
        tally: Tally { prompts: prompts.len(), ..Tally::default() },
        pairs: Vec::new(),
    };
    for sides in &prompts {
        match *rule {
            Rule::Delta => maker.in_order(sides, false),
            Rule::Tied => maker.in_order(sides, true),
            Rule::Contrastive { key, gates } => maker.contrastive(sides, key, &gates)?,
            Rule::Score { margin } => maker.by_score(sides, margin),
        }
    }
    maker.tally.pairs = maker.pairs.len();
    Ok((maker.pairs, maker.tally))
}

struct Maker {
    rng: ChaCha8Rng,
    tally: Tally,
    pairs: Vec<Preference>,
}

impl Maker {
    fn add(
        &mut self,
        of: &Generation,
        chosen: &str,
        rejected: &str,
        source: String,
        confidence: Option<f64>,
    ) {
        let about =
            About { id: Some(self.pairs.len() as u64), group: of.group, source: Some(source), confidence };
        let (prompt, chosen, rejected) = (of.prompt.clone(), chosen.to_owned(), rejected.to_owned());
        let pair = Preference { prompt, chosen, rejected, about };
        if pair.fault().is_some() {
            self.tally.empty += 1;
            return;
        }
        self.tally.longer += usize::from(pair.chosen.chars().count() > pair.rejected.chars().count());
        self.pairs.push(pair);
    }

    fn in_order(&mut self, sides: &[Vec<&Generation>], coin: bool) {
        let (first, second) = (&sides[0], &sides[1]);
        self.tally.unmatched += first.len().abs_diff(second.len());
        for (mut better, mut worse) in first.iter().copied().zip(second.iter().copied()) {
            if coin && self.rng.random() {
                std::mem::swap(&mut better, &mut worse);
            }
            let source = if coin { "coin".into() } else { format!("{} > {}", name(better), name(worse)) };
            self.add(better, &better.response, &worse.response, source, None);
        }
    }

    fn contrastive(&mut self, sides: &[Vec<&Generation>], key: Key, gates: &Gates) -> Result<()> {
        let (weak, samples) = match (&sides[0][..], &sides[1][..]) {
            ([weak], samples @ [_, ..]) => (*weak, samples),
            ([_, _, ..], _) => {
                let (got, want) = (sides[0].len(), 1);
                return Err(SupervisionError::Shape { what: "weak answers to a prompt", got, want });
            }
            (weak, samples) => {
                self.tally.unmatched += weak.len() + samples.len();
                return Ok(());
            }
        };
        let answer = Solution::of(&weak.response, key);
        let solutions: Vec<Solution> =
            samples.iter().map(|sample| Solution::of(&sample.response, key)).collect();
        match contrast(&answer, &solutions, gates, &mut self.rng)? {
            Ok(pairs) => {
                let share = vote(&solutions).map(|(_, votes)| votes as f64 / solutions.len() as f64);
                let confidence = share.filter(|share| *share >= 0.5);
                for pair in pairs {
                    let source =
                        if pair.weak_chosen { "majority agrees with weak" } else { "majority over weak" };
                    self.add(weak, &pair.chosen, &pair.rejected, source.into(), confidence);
                }
            }
            Err(Skipped::TooEasy) => self.tally.easy += 1,
            Err(Skipped::NoAnswer | Skipped::Unsure | Skipped::NotSureEnough) => self.tally.unsure += 1,
        }
        Ok(())
    }

    fn by_score(&mut self, sides: &[Vec<&Generation>], margin: f64) {
        let scored: Vec<(f64, &Generation)> = sides
            .iter()
            .flatten()
            .filter_map(|generation| Some((generation.score.filter(|score| score.is_finite())?, *generation)))
            .collect();
        // The first of equals on either side.
        let best = scored.iter().rev().max_by(|a, b| a.0.total_cmp(&b.0));
        let worst = scored.iter().min_by(|a, b| a.0.total_cmp(&b.0));
        match (best, worst) {
            (Some(&(high, better)), Some(&(low, worse))) if high > low && high - low >= margin => {
                self.add(better, &better.response, &worse.response, format!("score {high} > {low}"), None);
            }
            _ => self.tally.close += 1,
        }
    }
}

fn name(generation: &Generation) -> &str {
    generation.model.as_deref().unwrap_or("?")
}
