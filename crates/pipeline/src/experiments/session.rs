//! What decoding experiments share: a model with its tokeniser, prompts, one method's side of a comparison, and
//! how comparisons are put together and written down.

use std::collections::BTreeMap;

use pilotfish_architectures::{ChatTemplate, Checkpoint, Message, Tokenizer};
use pilotfish_constrained::Vocabulary;
use pilotfish_decoding::{Generation, RoundRecord};
use pilotfish_evaluation::prompts::{self, Prompt};
use pilotfish_evaluation::{Comparison, Effect, PairedConfig};
use pilotfish_model::{CausalModel, Ledger, Phase, Token};
use pilotfish_runtime::{LoadOptions, OnnxCausal};
use serde::{Deserialize, Serialize};

use super::{Choice, Context, width_cost};
use crate::error::Failure;
use crate::generate::vocabulary;

pub(super) const MODEL: Choice =
    Choice { name: "model", default: "smollm2-135m", about: "a model's name, or the path of a checkpoint" };
pub(super) const STORAGE: Choice =
    Choice { name: "storage", default: "f32", about: "how matrices are stored: f32, bf16, int8, int4, N:M" };
pub(super) const THREADS: Choice = Choice { name: "threads", default: "1", about: "threads" };

/// A model ready to decode.
pub(super) struct Session {
    pub(super) checkpoint: Checkpoint,
    pub(super) model: OnnxCausal,
    pub(super) load: LoadOptions,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
}

impl Session {
    /// The model of the options `model`, `storage` and `threads`.
    pub(super) fn open(context: &Context) -> Result<Self, Failure> {
        Self::open_with(context, |load| load)
    }

    /// The same, with further options of loading.
    pub(super) fn open_with(
        context: &Context,
        further: impl FnOnce(LoadOptions) -> LoadOptions,
    ) -> Result<Self, Failure> {
        let options = context.options();
        let storage = width_cost::storage(options.text("storage")?)?;
        let load = further(LoadOptions::default().storage(storage).threads(options.get("threads")?));
        let checkpoint = width_cost::checkpoint(context, options.text("model")?)?;
        let (tokenizer, template) = (checkpoint.tokenizer()?, checkpoint.chat_template()?);
        let model = crate::sparse::open(&checkpoint, &load)?;
        Ok(Self { checkpoint, model, load, tokenizer, template })
    }

    /// A prompt's first turn as the model reads it.
    pub(super) fn encode(&self, prompt: &Prompt) -> Result<Vec<Token>, Failure> {
        let first = prompt.turns.first().map(String::as_str).unwrap_or("");
        asked(&self.tokenizer, self.template.as_ref(), first)
    }

    /// The bytes of the model's tokens.
    pub(super) fn vocabulary(&self) -> Result<Vocabulary, Failure> {
        Ok(vocabulary(&self.tokenizer, self.model.info())?)
    }

    /// Tokens as text.
    pub(super) fn decode(&self, tokens: &[Token]) -> Result<String, Failure> {
        Ok(self.tokenizer.decode(tokens, true)?)
    }
}

/// What a user says, as a model with or without a chat template reads it.
pub(super) fn asked(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    text: &str,
) -> Result<Vec<Token>, Failure> {
    Ok(match template {
        Some(template) => tokenizer.encode(&template.render(&[Message::user(text)], true)?, false)?,
        None => tokenizer.encode(text, true)?,
    })
}

/// Words that are one token each.
pub(super) fn single_tokens<const N: usize>(
    tokenizer: &Tokenizer,
    words: [&str; N],
) -> Result<[Token; N], Failure> {
    let mut out = [0; N];
    for (out, word) in out.iter_mut().zip(words) {
        match tokenizer.encode(word, false)?[..] {
            [token] => *out = token,
            _ => return Err(format!("{word:?} is not one token of this model").into()),
        }
    }
    Ok(out)
}

/// The prompts to run: the first of each category, then the second of each, and so on; 0 takes all.
pub(super) fn chosen(file: &str, count: usize) -> Result<Vec<Prompt>, Failure> {
    let all = if file.is_empty() { prompts::own() } else { prompts::read(std::path::Path::new(file))? };
    if all.is_empty() {
        return Err("there are no prompts".into());
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, Prompt)> = all
        .into_iter()
        .map(|prompt| {
            let rank = seen.entry(prompt.category.clone()).or_default();
            *rank += 1;
            (*rank, prompt)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let count = if count == 0 { ranked.len() } else { count };
    Ok(ranked.into_iter().take(count).map(|(_, prompt)| prompt).collect())
}

/// What one method made of one prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Side {
    pub(super) ledger: Ledger,
    pub(super) rounds: Vec<RoundRecord>,
    pub(super) tokens: Vec<Token>,
}

impl Side {
    /// Tokens a second, the prompt's pass included.
    pub(super) fn speed(&self) -> f64 {
        self.ledger.tokens_per_second().unwrap_or(0.0)
    }

    /// Tokens a second without the prompt's pass.
    pub(super) fn decode_speed(&self) -> f64 {
        let seconds = self.ledger.total_seconds() - self.ledger.time(Phase::Prefill);
        if seconds > 0.0 { self.ledger.emitted.saturating_sub(1) as f64 / seconds } else { 0.0 }
    }
}

impl From<Generation> for Side {
    fn from(generation: Generation) -> Self {
        Self { ledger: generation.ledger, rounds: generation.rounds, tokens: generation.tokens }
    }
}

/// Mean tokens a round over all rounds of some sides, the extra token included.
pub(super) fn mean_tokens<'a>(sides: impl Iterator<Item = &'a Side>) -> f64 {
    let (mut tokens, mut rounds) = (0, 0);
    for round in sides.flat_map(|side| &side.rounds) {
        tokens += round.added;
        rounds += 1;
    }
    tokens as f64 / rounds.max(1) as f64
}

/// The sum of some ledgers.
pub(super) fn total<'a>(sides: impl Iterator<Item = &'a Side>) -> Ledger {
    sides.fold(Ledger::default(), |mut sum, side| {
        sum.add(&side.ledger);
        sum
    })
}

/// Speeds of a method against speeds of plain decoding, in all and by category, the latter by name.
pub(super) fn comparisons(
    rows: &[(&str, &Side, &Side)],
) -> Result<(Comparison, Vec<(String, Comparison)>), Failure> {
    let compare = |rows: &[&(&str, &Side, &Side)]| {
        let method: Vec<f64> = rows.iter().map(|(_, method, _)| method.speed()).collect();
        let plain: Vec<f64> = rows.iter().map(|(_, _, plain)| plain.speed()).collect();
        pilotfish_evaluation::compare(&method, &plain, &PairedConfig::default())
    };
    let mut groups: BTreeMap<&str, Vec<&(&str, &Side, &Side)>> = BTreeMap::new();
    rows.iter().for_each(|row| groups.entry(row.0).or_default().push(row));
    let categories = groups
        .iter()
        .map(|(name, rows)| Ok(((*name).to_owned(), compare(rows)?)))
        .collect::<Result<_, Failure>>()?;
    Ok((compare(&rows.iter().collect::<Vec<_>>())?, categories))
}

/// The ratio of speeds, which exists wherever plain decoding emits anything.
pub(super) fn speed_up(comparison: &Comparison) -> Effect {
    comparison.ratio.unwrap_or(Effect { value: 0.0, interval: None })
}

/// A ratio with its interval, for people.
pub(super) fn ratio(effect: &Effect) -> String {
    match effect.interval {
        Some(interval) => format!("{:.2}x [{:.2}, {:.2}]", effect.value, interval.low, interval.high),
        None => format!("{:.2}x", effect.value),
    }
}

/// Shares of rounds by the tokens they added, from 1 to `longest`.
pub(super) fn length_shares(sides: &[&Side], longest: usize) -> Vec<f64> {
    let mut counts = vec![0usize; longest];
    let rounds = sides.iter().flat_map(|side| &side.rounds);
    rounds.for_each(|round| counts[round.added.clamp(1, longest) - 1] += 1);
    let all = counts.iter().sum::<usize>().max(1) as f64;
    counts.iter().map(|&count| count as f64 / all).collect()
}

/// By depth, from 1: of the rounds whose draft had that many levels, the share that kept as many.
pub(super) fn acceptance_by_depth(sides: &[&Side], deepest: usize) -> Vec<Option<f64>> {
    let rounds = || sides.iter().flat_map(|side| &side.rounds);
    (1..=deepest)
        .map(|depth| {
            let drafted = rounds().filter(|round| round.depth >= depth).count();
            let kept = rounds().filter(|round| round.accepted >= depth).count();
            (drafted > 0).then(|| kept as f64 / drafted as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(rounds: &[(usize, usize)], seconds: f64) -> Side {
        let rounds: Vec<RoundRecord> = rounds
            .iter()
            .map(|&(depth, accepted)| RoundRecord { drafted: depth, depth, accepted, added: accepted + 1 })
            .collect();
        let emitted = 1 + rounds.iter().map(|round| round.added as u64).sum::<u64>();
        let mut ledger = Ledger { emitted, ..Ledger::default() };
        ledger.seconds[Phase::Target as usize] = seconds;
        Side { ledger, rounds, tokens: vec![] }
    }

    #[test]
    fn statistics_by_hand() {
        let (a, b) = (side(&[(2, 2), (2, 0), (0, 0)], 1.0), side(&[(1, 1)], 1.0));
        let sides = [&a, &b];
        assert_eq!(mean_tokens(sides.into_iter()), 7.0 / 4.0);
        assert_eq!(length_shares(&sides, 3), [0.5, 0.25, 0.25]);
        assert_eq!(acceptance_by_depth(&sides, 3), [Some(2.0 / 3.0), Some(0.5), None]);
        assert_eq!((a.speed(), a.decode_speed()), (6.0, 5.0));
    }

    #[test]
    fn comparisons_are_ratios_of_means() {
        let (fast, slow) = (side(&[(2, 2), (2, 2)], 1.0), side(&[(0, 0); 3], 1.0));
        let rows = [("b", &fast, &slow), ("a", &slow, &slow), ("b", &fast, &slow)];
        let (all, categories) = comparisons(&rows).unwrap();
        assert_eq!(speed_up(&all).value, 18.0 / 12.0);
        let names: Vec<_> = categories.iter().map(|(name, c)| (name.as_str(), speed_up(c).value)).collect();
        assert_eq!(names, [("a", 1.0), ("b", 1.75)]);
    }

    #[test]
    fn prompts_are_spread_over_categories() {
        let prompts = chosen("", 12).unwrap();
        let mut counts = BTreeMap::new();
        prompts.iter().for_each(|prompt| *counts.entry(prompt.category.clone()).or_insert(0) += 1);
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [2; 6]);
        assert!(chosen("/nowhere", 1).is_err());
    }
}
