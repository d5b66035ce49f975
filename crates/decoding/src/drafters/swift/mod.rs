//! SWIFT: the target drafts for itself with some of its attentions and MLPs left out, and finds out while it decodes
//! which ones are missed least. No training, no further weights.
//!
//! `L` layers, `S_attn` and `S_mlp` sets of layers in `1..L-1`, a skipped sub-layer being the identity:
//! 1. From the root, draft token by token with the target without `S_attn`, `S_mlp`, over the target's own keys and
//!    values of the text. At depth `d`: `main` is the likeliest token (or the first draw), `conf` its probability. Stop
//!    when `conf < 0.8`, that token included.
//! 2. Tree: the main tokens, each with its next best alternatives (or further draws without replacement) as siblings
//!    without children; the surer, the fewer.
//! 3. The whole target verifies.
//! 4. Once a text has more than `W + 1` new tokens, and until the search is over, one trial a round: a set of
//!    `n = floor(2 (L-2) r)` sub-layers, chosen at random, every 25th by a Gaussian process on earlier trials. Its
//!    *matchness* is the share of the first `W + 1` new tokens that it predicts, all in one pass. A better set than the
//!    best so far replaces it. The search goes on from text to text ([`LayerSearch`]).
//!
//! | default | value | source |
//! |---|---|---|
//! | `r` | 0.45 | `inference_swift.py` |
//! | `W` | 32 | ditto (50 in `eval_llama.sh`) |
//! | trials a round, of the process | 1, every 25th | ditto |
//! | end of the search | 1000 trials, 300 in a row without gain, matchness above 0.95 | ditto |
//! | confidence, depth | 0.8, 25 | `swift_draft` |
//! | nodes a depth at `conf` above 0.95 / 0.8 / 0.5 / below, greedy | 3 / 5 / 8 / 10 | `utils.py` |
//! | the same, sampled | 1 / 3 / 5 / 10 | `utils.py`; the paper's text gives these for greedy decoding |
//! | first set | every odd layer, attention and MLP | `inference_swift.py` |
//! | kappa, noise | 2.5, 0.01 | ditto |
//!
//! **Deviations.** The reference clones the cache for every draft and trial; here rows that lack sub-layers are appended
//! behind the others and forgotten, and a trial names the prompt's last row as the parent of its first. Its sampled mode
//! compares padding with token 0 and takes its bonus token from unwarped logits, so its output is not the target's; here
//! the drafts are verified by recursive rejection without replacement ([`Recursive`](crate::Recursive)), which is exact:
//! how many siblings are drawn is decided by the first, before the others are known. A trial reads `W` rows, not
//! `W + 1`, of which the last predicts nothing that is there. The process takes the best of six length scales by
//! likelihood and the best of 2500 points by its bound, where the reference fits by gradients; it remembers 256 trials.
//!
//! **Cost.** A draft step reads the weights that are left, and the head, which is a fifth of SmolLM2-135M: with `r` =
//! 0.45 it costs 0.66 of a step of the target there, so that even if every draft were accepted nothing beyond 1.5x
//! could come of it. A trial costs a pass of `W` rows.
//!
//! References: arXiv 2410.06916; github.com/hemingkx/SWIFT (`model/swift/utils.py`, `modeling_llama.py`,
//! `evaluation_llama/inference_swift.py`).
//!
//! ```
//! use pilotfish_decoding::{Decoder, GreedyTree, Limits, Nothing};
//! use pilotfish_decoding::drafters::{LayerSearch, LayerSearchConfig, Pick, Swift, SwiftConfig};
//! use pilotfish_model::{CausalModel, Streams, toy::LayeredModel};
//! // Ten layers, of which six hardly do anything.
//! let scales: Vec<[f64; 2]> = (0..10).map(|l| if (2..8).contains(&l) { [1e-4; 2] } else { [1.0; 2] }).collect();
//! let mut target = LayeredModel::random(40, 16, &scales, &mut Streams::new(3).stream("weights"))?;
//! let limits = Limits { new_tokens: 200, ..Limits::default() };
//! let plain = Decoder::new(&mut target, &mut Nothing, &mut GreedyTree, limits.clone())?.generate(&[1, 2])?;
//! let search = LayerSearch::new(10, LayerSearchConfig { ratio: 0.5, window: 16, ..Default::default() })?;
//! let mut swift = Swift::new(search, SwiftConfig::default(), Pick::Largest)?;
//! let fast = Decoder::new(&mut target, &mut swift, &mut GreedyTree, limits)?.generate(&[1, 2])?;
//! assert_eq!(plain.tokens, fast.tokens);
//! assert!(swift.search().trials() > 0 && swift.search().best() > 0.5);
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```

mod process;
mod search;

use pilotfish_model::{Capability, LogitForm, ModelInfo, RowSet, Skip, Step, Token};

pub use search::{LayerSearch, LayerSearchConfig, Trial, matchness};

use super::{Pick, number};
use crate::{Ask, DecodingError, Draft, Drafter, Drawn, Outcome, Result, Start};

/// Numbers of [`Swift`], besides those of its search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SwiftConfig {
    /// Drafting stops after a token less probable than this.
    pub confidence: f64,
    /// Levels at most.
    pub depth: usize,
    /// Nodes of a level whose main token has a probability above 0.95, above 0.8, above 0.5, and otherwise.
    pub greedy: [usize; 4],
    /// The same for sampled drafts.
    pub sampled: [usize; 4],
}

impl Default for SwiftConfig {
    fn default() -> Self {
        Self { confidence: 0.8, depth: 25, greedy: [3, 5, 8, 10], sampled: [1, 3, 5, 10] }
    }
}

impl SwiftConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A confidence outside 0 to 1, no levels, a level without nodes or with more than 1000.
    pub fn check(&self) -> Result<()> {
        if !(self.confidence >= 0.0 && self.confidence <= 1.0) {
            return Err(number("confidence", self.confidence, "from 0 to 1"));
        }
        if self.depth == 0 {
            return Err(DecodingError::BadParameter { name: "depth", value: 0, want: "at least 1" });
        }
        match self.greedy.iter().chain(&self.sampled).find(|nodes| !(1..=1000).contains(*nodes)) {
            Some(&value) => {
                Err(DecodingError::BadParameter { name: "nodes of a level", value, want: "from 1 to 1000" })
            }
            None => Ok(()),
        }
    }
}

/// How many nodes a level has.
fn nodes(table: &[usize; 4], confidence: f64) -> usize {
    match confidence {
        c if c > 0.95 => table[0],
        c if c > 0.8 => table[1],
        c if c > 0.5 => table[2],
        _ => table[3],
    }
}

/// Drafts with the target itself, without some of its sub-layers.
#[derive(Debug)]
pub struct Swift {
    search: LayerSearch,
    config: SwiftConfig,
    pick: Pick,
    /// Tokens of the prompt.
    prompt: usize,
    /// Rounds of the text.
    rounds: usize,
}

impl Swift {
    /// A drafter that goes on with a search.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(search: LayerSearch, config: SwiftConfig, pick: Pick) -> Result<Self> {
        config.check()?;
        Ok(Self { search, config, pick, prompt: 0, rounds: 0 })
    }

    /// The search as it stands.
    pub fn search(&self) -> &LayerSearch {
        &self.search
    }

    /// A trial, if one is due: enough new tokens, and the search not over.
    fn try_a_set(&mut self, ask: &mut Ask<'_>) -> Result<()> {
        let window = self.search.config().window;
        let new = &ask.text[self.prompt.min(ask.text.len())..];
        if new.len() <= window + 1 || self.rounds % self.search.config().interval != 0 {
            return Ok(());
        }
        let Some(trial) = self.search.next_trial() else { return Ok(()) };
        let score = matchness(ask.model, self.prompt, &new[..=window], &trial.skip)?;
        ask.ledger.draft_without(ask.model.info(), window, window, &trial.skip);
        self.search.report(trial, score);
        Ok(())
    }

    fn grow(&mut self, ask: &mut Ask<'_>, skip: &Skip) -> Result<Draft> {
        let mut draft = Draft::sampled(ask.root(), self.pick.drawn());
        let mut estimates = vec![1.0];
        let mut history = ask.text.to_vec();
        let mut main = 0;
        for _ in 0..self.config.depth.min(ask.depth) {
            let left = ask.budget - draft.len();
            if left == 0 {
                break;
            }
            let token = [draft.tree().token(main)];
            let step = Step::chain(&token).want(RowSet::Last).form(LogitForm::Full);
            let logits = ask.model.step_without(&step, skip)?.logits;
            ask.ledger.draft_without(ask.model.info(), 1, 1, skip);
            let row = logits.row(0).unwrap_or_default();
            let share = Softmax::of(row);
            let above = estimates[main];
            let children = match &mut self.pick {
                Pick::Largest => {
                    let most = self.config.greedy.iter().copied().max().unwrap_or(1);
                    let best = logits.top(0, most.min(row.len()))?;
                    let first = best.first().map_or(0, |&(token, _)| token);
                    let level = nodes(&self.config.greedy, share.at(first));
                    best.into_iter().take(level.min(left)).map(|(token, _)| token).collect()
                }
                Pick::Drawn(_) => {
                    let law = ask.sampler.distribution(row, &history)?;
                    self.pick.law(&mut draft, main, &law)?;
                    let first = self.pick.draw(&law);
                    let level = nodes(&self.config.sampled, share.at(first)).min(left);
                    let (mut children, mut rest) = (vec![first], law.without(first));
                    while children.len() < level
                        && let Some(from) = rest.take()
                    {
                        let token = self.pick.draw(&from);
                        children.push(token);
                        rest = from.without(token);
                    }
                    children
                }
            };
            let parent = main;
            for (index, &token) in children.iter().enumerate() {
                let node = draft.push(parent, token)?;
                estimates.push(above * share.at(token));
                if index == 0 {
                    main = node;
                }
            }
            let Some(&token) = children.first() else { break };
            history.push(token);
            if share.at(token) < self.config.confidence || ask.model.info().end.contains(&token) {
                break;
            }
        }
        draft.set_estimates(estimates)?;
        Ok(draft)
    }
}

/// Plain softmax of a row.
struct Softmax<'a> {
    row: &'a [f32],
    largest: f32,
    sum: f64,
}

impl<'a> Softmax<'a> {
    fn of(row: &'a [f32]) -> Self {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        Self { row, largest, sum }
    }

    fn at(&self, token: Token) -> f64 {
        let logit = self.row.get(token as usize);
        logit.map_or(0.0, |&logit| f64::from(logit - self.largest).exp() / self.sum)
    }
}

impl Drafter for Swift {
    fn name(&self) -> String {
        let (skipped, all) = (self.search.set().len(), 2 * self.search.layers());
        format!("SWIFT ({skipped} of {all} sub-layers left out, {} trials)", self.search.trials())
    }

    fn drawn(&self) -> Drawn {
        self.pick.drawn()
    }

    fn fits(&self, target: &ModelInfo) -> Result<()> {
        target.require(Capability::Skip)?;
        target.require(Capability::Tree)?;
        if target.layers != self.search.layers() {
            let value = self.search.layers();
            return Err(DecodingError::BadParameter {
                name: "layers",
                value,
                want: "the target's own number",
            });
        }
        Ok(())
    }

    fn start(&mut self, start: &Start<'_>) -> Result<()> {
        (self.prompt, self.rounds) = (start.prompt.len(), 0);
        Ok(())
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        self.try_a_set(ask)?;
        let before = ask.model.len();
        let skip = self.search.set().clone();
        let draft = self.grow(ask, &skip);
        // Rows that lack sub-layers must not reach the step that verifies, whatever happened.
        ask.model.truncate(before)?;
        draft
    }

    fn observe(&mut self, _: &Outcome<'_>) -> Result<()> {
        self.rounds += 1;
        Ok(())
    }
}
