//! Verifiers that are a language model: responses sampled from a shared prompt, and judgements of them.
//!
//! Written against [`CausalModel`] alone. A prompt is read once: what the cache holds already is kept
//! ([`Reader::read`]), responses are branches of one token tree where the model takes trees, and so are the
//! candidates a judge looks at.
//!
//! ```
//! use pilotfish_model::{Streams, sampling::Warpers, toy::TableModel};
//! use pilotfish_supervision::verifiers::{Reader, SampleConfig};
//! // Token 2 ends a text and follows everything with probability a half.
//! let mut model = TableModel::new(0, 3, vec![0.25, 0.25, 0.5])?;
//! let mut reader = Reader::new(&mut model);
//! let config = SampleConfig { warpers: Warpers::temperature(1.0), tokens: 8, stop: vec![2] };
//! let responses = reader.sample(&[0, 1], 4, &config, &Streams::new(1))?;
//! assert_eq!(responses.len(), 4);
//! // Logits are f32: equal up to their rounding.
//! assert!(responses.iter().all(|r| r.log_probability <= 0.5f64.ln() + 1e-6));
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

use pilotfish_model::sampling::Warpers;
use pilotfish_model::{
    Capability, CausalModel, Input, LogitForm, Parents, RowSet, Step, StreamRng, Streams, Token,
};
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// Rows of a step at most: more branches are read in parts.
const ROWS: usize = 256;

/// How responses are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleConfig {
    /// From logits to distributions.
    pub warpers: Warpers,
    /// Tokens a response at most, the stop token included.
    pub tokens: usize,
    /// Tokens that end a response, over and above the model's own.
    pub stop: Vec<Token>,
}

/// A response that was drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Its tokens; the token that ended it is left out.
    pub tokens: Vec<Token>,
    /// Log-probability of its tokens and of the one that ended it, under the model without warpers.
    pub log_probability: f64,
    /// How many tokens that is.
    pub length: usize,
    /// Whether it ended by itself.
    pub ended: bool,
}

impl Response {
    /// Log-probability a token.
    pub fn mean_log_probability(&self) -> f64 {
        self.log_probability / self.length.max(1) as f64
    }
}

/// A model that remembers what it has read, so that what prompts share is read once.
pub struct Reader<'a> {
    model: &'a mut dyn CausalModel,
    read: Vec<Token>,
    /// Rows given to the model so far.
    rows: u64,
}

impl<'a> Reader<'a> {
    /// A reader; whatever is in the model's cache is forgotten at the first call.
    pub fn new(model: &'a mut dyn CausalModel) -> Self {
        Self { model, read: Vec::new(), rows: 0 }
    }

    /// The model.
    pub fn model(&self) -> &dyn CausalModel {
        self.model
    }

    /// Rows given to the model so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Brings the cache to a text, reading only what it does not hold, and returns the logits after it.
    ///
    /// # Errors
    /// An empty text; whatever the model refuses.
    pub fn read(&mut self, text: &[Token]) -> Result<Vec<f32>> {
        // The last token is read again for its logits.
        let Some(most) = text.len().checked_sub(1) else {
            return Err(SupervisionError::Empty { what: "tokens to read" });
        };
        let shared = self.read.iter().zip(text).take_while(|(a, b)| a == b).count().min(most);
        self.model.truncate(shared.min(self.model.len()))?;
        let shared = self.model.len();
        self.read.truncate(shared);
        let answer = self.model.step(&Step::chain(&text[shared..]))?;
        self.rows += (text.len() - shared) as u64;
        self.read = text.to_vec();
        row(&answer.logits, 0)
    }

    /// Draws `count` responses to a prompt. Response `i` uses its own random stream, so it does not depend on how
    /// many are drawn, nor on whether the model takes trees.
    ///
    /// # Errors
    /// An empty prompt; warpers outside their ranges; no tokens to draw; whatever the model refuses.
    pub fn sample(
        &mut self,
        prompt: &[Token],
        count: usize,
        config: &SampleConfig,
        streams: &Streams,
    ) -> Result<Vec<Response>> {
        if config.tokens == 0 {
            let name = "tokens";
            return Err(SupervisionError::BadParameter { name, value: 0.0, want: "at least 1" });
        }
        config.warpers.check()?;
        let first = self.read(prompt)?;
        let mut branches: Vec<Branch> = (0..count)
            .map(|index| Branch {
                response: Response { tokens: Vec::new(), log_probability: 0.0, length: 0, ended: false },
                rng: streams.fork(index as u64).stream("response"),
                last: None,
            })
            .collect();
        let end = self.model.info().end.clone();
        let ends = |token: Token| config.stop.contains(&token) || end.contains(&token);
        for branch in &mut branches {
            branch.draw(&first, prompt, config, &ends)?;
        }
        let result = match self.model.info().capabilities.has(Capability::Tree) {
            true => self.grow(&mut branches, prompt, config, &ends),
            false => self.grow_one_by_one(&mut branches, prompt, config, &ends),
        };
        self.model.truncate(prompt.len())?;
        result?;
        Ok(branches.into_iter().map(|branch| branch.response).collect())
    }

    fn grow(
        &mut self,
        branches: &mut [Branch],
        prompt: &[Token],
        config: &SampleConfig,
        ends: &dyn Fn(Token) -> bool,
    ) -> Result<()> {
        loop {
            let open: Vec<usize> = (0..branches.len()).filter(|&b| branches[b].is_open(config)).collect();
            if open.is_empty() {
                return Ok(());
            }
            for part in open.chunks(ROWS) {
                let ids: Vec<Token> =
                    part.iter().filter_map(|&b| branches[b].response.tokens.last().copied()).collect();
                let parents: Vec<Option<usize>> =
                    part.iter().map(|&b| Some(branches[b].last.unwrap_or(prompt.len() - 1))).collect();
                let before = self.model.len();
                let answer = self.model.step(&Step::tree(&ids, &parents))?;
                self.rows += ids.len() as u64;
                for (index, &b) in part.iter().enumerate() {
                    branches[b].last = Some(before + index);
                    branches[b].draw(&row(&answer.logits, index)?, prompt, config, ends)?;
                }
            }
        }
    }

    fn grow_one_by_one(
        &mut self,
        branches: &mut [Branch],
        prompt: &[Token],
        config: &SampleConfig,
        ends: &dyn Fn(Token) -> bool,
    ) -> Result<()> {
        for branch in branches {
            self.model.truncate(prompt.len())?;
            while branch.is_open(config) {
                let last: Vec<Token> = branch.response.tokens.last().copied().into_iter().collect();
                let answer = self.model.step(&Step::chain(&last))?;
                self.rows += 1;
                branch.draw(&row(&answer.logits, 0)?, prompt, config, ends)?;
            }
        }
        Ok(())
    }

    /// For each candidate, the distribution over some tokens after `prompt` and the candidate: softmax over these
    /// tokens' logits alone, so that a judge cannot answer anything else.
    ///
    /// # Errors
    /// An empty prompt, candidate or list of tokens; tokens outside the vocabulary; logits that are not finite.
    pub fn judge(
        &mut self,
        prompt: &[Token],
        candidates: &[&[Token]],
        verdicts: &[Token],
    ) -> Result<Vec<Vec<f64>>> {
        if verdicts.is_empty() {
            return Err(SupervisionError::Empty { what: "verdicts" });
        }
        let vocab = self.model.info().vocab;
        if let Some(&token) = verdicts.iter().find(|token| **token as usize >= vocab) {
            let got = token as usize;
            return Err(SupervisionError::Shape { what: "verdict token", got, want: vocab });
        }
        let rows = self.ends(prompt, candidates)?;
        rows.into_iter()
            .enumerate()
            .map(|(index, logits)| {
                let chosen: Vec<f64> =
                    verdicts.iter().map(|token| f64::from(logits[*token as usize])).collect();
                let max = chosen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = chosen.iter().map(|x| (x - max).exp()).collect();
                let sum: f64 = exps.iter().sum();
                match sum.is_finite() && sum > 0.0 {
                    true => Ok(exps.into_iter().map(|e| e / sum).collect()),
                    false => Err(SupervisionError::NotFinite { what: "verdict logits", index }),
                }
            })
            .collect()
    }

    /// Logits after `prompt` and each candidate.
    fn ends(&mut self, prompt: &[Token], candidates: &[&[Token]]) -> Result<Vec<Vec<f32>>> {
        if candidates.iter().any(|candidate| candidate.is_empty()) {
            return Err(SupervisionError::Empty { what: "tokens of a candidate" });
        }
        self.read(prompt)?;
        let mut out = Vec::with_capacity(candidates.len());
        let tree = self.model.info().capabilities.has(Capability::Tree);
        let mut at = 0;
        while at < candidates.len() {
            let mut part = 1;
            let mut rows = candidates[at].len();
            while tree && at + part < candidates.len() && rows + candidates[at + part].len() <= ROWS {
                rows += candidates[at + part].len();
                part += 1;
            }
            let (mut ids, mut parents, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
            for candidate in &candidates[at..at + part] {
                for (t, &token) in candidate.iter().enumerate() {
                    let own = prompt.len() + ids.len();
                    parents.push(Some(if t == 0 { prompt.len() - 1 } else { own - 1 }));
                    ids.push(token);
                }
                wanted.push(ids.len() - 1);
            }
            let step = Step {
                input: Input::Ids(&ids),
                parents: if tree { Parents::Rows(&parents) } else { Parents::Chain },
                logits: RowSet::Rows(&wanted),
                form: LogitForm::Full,
                taps: &[],
            };
            let answer = self.model.step(&step);
            self.rows += ids.len() as u64;
            let answer = answer?;
            self.model.truncate(prompt.len())?;
            for index in 0..part {
                out.push(row(&answer.logits, index)?);
            }
            at += part;
        }
        Ok(out)
    }
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("model", &self.model.info().name)
            .field("read", &self.read.len())
            .finish()
    }
}

fn row(logits: &pilotfish_model::Logits, index: usize) -> Result<Vec<f32>> {
    let row = logits.row(index).ok_or(SupervisionError::Shape {
        what: "rows of logits",
        got: logits.rows(),
        want: index + 1,
    })?;
    Ok(row.to_vec())
}

struct Branch {
    response: Response,
    rng: StreamRng,
    /// Row of its last token but one: where the next row hangs.
    last: Option<usize>,
}

impl Branch {
    fn is_open(&self, config: &SampleConfig) -> bool {
        !self.response.ended && self.response.length < config.tokens
    }

    fn draw(
        &mut self,
        logits: &[f32],
        prompt: &[Token],
        config: &SampleConfig,
        ends: &dyn Fn(Token) -> bool,
    ) -> Result<()> {
        let history: Vec<Token> = prompt.iter().chain(&self.response.tokens).copied().collect();
        let token = config.warpers.check()?.distribution(logits, &history)?.sample(&mut self.rng);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
        self.response.log_probability += f64::from(logits[token as usize] - max) - sum.ln();
        self.response.length += 1;
        self.response.ended = ends(token);
        if !self.response.ended {
            self.response.tokens.push(token);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use pilotfish_model::toy::TableModel;
    use pilotfish_model::{ModelInfo, StepOutput, Steps};

    /// A table that does not take trees.
    struct Chain(TableModel, ModelInfo);

    impl Chain {
        fn new(model: TableModel) -> Self {
            let mut info = model.info().clone();
            info.capabilities.tree = false;
            Self(model, info)
        }
    }

    impl Steps for Chain {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn step(&mut self, step: &Step<'_>) -> pilotfish_model::Result<StepOutput> {
            assert!(matches!(step.parents, Parents::Chain));
            self.0.step(step)
        }
        fn keep(&mut self, from: usize, rows: &[usize]) -> pilotfish_model::Result<()> {
            self.0.keep(from, rows)
        }
        fn truncate(&mut self, len: usize) -> pilotfish_model::Result<()> {
            self.0.truncate(len)
        }
    }

    impl CausalModel for Chain {
        fn info(&self) -> &ModelInfo {
            &self.1
        }
    }

    fn table() -> TableModel {
        TableModel::random(2, 5, 1.0, &mut Streams::new(3).stream("table")).unwrap().with_end(vec![4])
    }

    fn config() -> SampleConfig {
        SampleConfig { warpers: Warpers::temperature(1.0), tokens: 6, stop: vec![3] }
    }

    #[test]
    fn branches_are_what_chains_are() {
        let (mut tree, mut chain) = (table(), Chain::new(table()));
        let a = Reader::new(&mut tree).sample(&[0, 1, 2], 40, &config(), &Streams::new(7)).unwrap();
        let b = Reader::new(&mut chain).sample(&[0, 1, 2], 40, &config(), &Streams::new(7)).unwrap();
        assert_eq!(a, b);
        let fewer = Reader::new(&mut tree).sample(&[0, 1, 2], 3, &config(), &Streams::new(7)).unwrap();
        assert_eq!(a[..3], fewer);
        assert!(a.iter().any(|r| r.ended) && a.iter().all(|r| r.length <= 6));
    }

    #[test]
    fn log_probabilities_are_the_tables() {
        let mut model = table();
        let law = model.clone();
        for r in Reader::new(&mut model).sample(&[0, 1], 30, &config(), &Streams::new(2)).unwrap() {
            let mut path = vec![0, 1];
            let mut sum = 0.0;
            for &token in &r.tokens {
                sum += law.next(&path).prob(token).ln();
                path.push(token);
            }
            let end = law.next(&path);
            let ends = [end.prob(3).ln(), end.prob(4).ln()];
            let fits = |tail: f64| (r.log_probability - sum - tail).abs() < 1e-5;
            assert!(if r.ended { ends.iter().any(|e| fits(*e)) } else { fits(0.0) }, "{r:?}");
        }
    }

    #[test]
    fn first_tokens_follow_the_law() {
        let mut model = table();
        let law = model.next(&[0, 1]);
        let drawn = Reader::new(&mut model)
            .sample(&[0, 1], 4000, &SampleConfig { tokens: 1, stop: vec![], ..config() }, &Streams::new(5))
            .unwrap();
        for token in 0..4 {
            let share = drawn.iter().filter(|r| r.tokens == [token]).count() as f64 / 4000.0;
            assert!((share - law.prob(token)).abs() < 0.03, "{token}");
        }
    }

    #[test]
    fn judges_read_the_table_and_share_prompts() {
        let (mut tree, mut chain) = (table(), Chain::new(table()));
        let law = tree.clone();
        let candidates: [&[Token]; 3] = [&[0], &[1, 2, 0], &[2, 2]];
        let a = Reader::new(&mut tree).judge(&[0, 1], &candidates, &[0, 2]).unwrap();
        let b = Reader::new(&mut chain).judge(&[0, 1], &candidates, &[0, 2]).unwrap();
        for (candidate, (a, b)) in candidates.iter().zip(a.iter().zip(&b)) {
            let path: Vec<Token> = [0, 1].iter().chain(*candidate).copied().collect();
            let p = law.next(&path);
            let want = p.prob(0) / (p.prob(0) + p.prob(2));
            assert!((a[0] - want).abs() < 1e-6 && (b[0] - want).abs() < 1e-6);
        }
        let mut model = table();
        let mut reader = Reader::new(&mut model);
        reader.read(&[0, 1, 2, 3]).unwrap();
        reader.read(&[0, 1, 2, 1]).unwrap();
        assert_eq!(reader.rows(), 5);
    }

    #[test]
    fn bad_input_is_refused() {
        let mut model = table();
        let mut reader = Reader::new(&mut model);
        assert!(reader.read(&[]).is_err() && reader.read(&[99]).is_err());
        assert!(reader.judge(&[0], &[&[]], &[0]).is_err());
        assert!(reader.judge(&[0], &[&[1]], &[]).is_err());
        assert!(reader.judge(&[0], &[&[1]], &[99]).is_err());
        let none = SampleConfig { tokens: 0, ..config() };
        assert!(reader.sample(&[0], 1, &none, &Streams::new(0)).is_err());
        let nan = SampleConfig { warpers: Warpers::temperature(f64::NAN), ..config() };
        assert!(reader.sample(&[0], 1, &nan, &Streams::new(0)).is_err());
        assert!(reader.sample(&[0], 0, &config(), &Streams::new(0)).unwrap().is_empty());
        // It goes on after an error.
        assert!(reader.read(&[0, 1]).is_ok());
    }
}
