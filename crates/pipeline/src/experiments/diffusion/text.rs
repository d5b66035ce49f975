//! A causal language model made a masked one: its causal mask dropped, adapters tuned on short templated texts.

use std::ops::Range;

use pilotfish_architectures::{Bidirectional, MaskedNetwork, Tokenizer};
use pilotfish_diffusion::policy::{Policy, Threshold};
use pilotfish_diffusion::{
    Blocks, Cache, Canvas, Diffusion, DiffusionConfig, Fixed, FreeDaveConfig, Generation,
};
use pilotfish_evaluation::{PairedConfig, compare};
use pilotfish_model::{LogitForm, MaskedBatch, MaskedModel, StreamRng, Streams, Token};
use pilotfish_runtime::{OnnxMasked, SessionConfig};
use pilotfish_training::losses::Masking;
use pilotfish_training::{
    Adam, Decay, Lora, MaskedTask, OptimizerConfig, Order, Precision, Schedule, Trainer, TrainerConfig,
    Warmup,
};
use rand::Rng;
use rand::seq::{IndexedRandom, index};
use serde::{Deserialize, Serialize};

use super::Cell;
use super::trained::{self, Logged};
use crate::error::Failure;
use crate::experiments::page::{self, Began, Page, mean};
use crate::experiments::session::ratio;
use crate::experiments::{Choice, Context, Experiment, Outcome, width_cost};
use crate::masked::Cached;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const DIFFUSION_TEXT: Experiment = Experiment {
    name: "diffusion-text",
    about: "SmolLM2-135M without its causal mask, adapters tuned on templated texts: masked-token accuracy, then decoding",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        Choice { name: "steps", default: "150", about: "steps of the tuning" },
        Choice { name: "batch", default: "8", about: "texts a step" },
        Choice { name: "rank", default: "8", about: "rank of the adapters" },
        Choice { name: "texts", default: "48", about: "held-out texts" },
        Choice { name: "prompts", default: "12", about: "texts whose second half is decoded" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Tokens of a text, padding included.
const WIDTH: usize = 28;
const SEGMENT: u64 = 25;
/// Shares of a text that are hidden.
const HIDDEN: [f64; 3] = [0.15, 0.5, 1.0];

const NAMES: [&str; 12] =
    ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Laura", "Peter", "Sarah", "Tom"];
const NUMBERS: [&str; 9] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
const COLOURS: [&str; 6] = ["red", "blue", "green", "black", "white", "brown"];
const THINGS: [&str; 8] = ["apples", "books", "coins", "cups", "flowers", "keys", "pens", "stones"];
const PLACES: [&str; 6] = ["garden", "kitchen", "library", "market", "park", "school"];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Two sentences; the second follows from the first, but for a choice.
fn sentences(streams: Streams) -> [String; 2] {
    let mut rng = streams.stream("sentences");
    let pick = |from: &[&'static str], rng: &mut StreamRng| from.choose(rng).copied().unwrap_or_default();
    let who = index::sample(&mut rng, NAMES.len(), 2).into_vec();
    let (a, b) = (NAMES[who[0]], NAMES[who[1]]);
    match rng.random_range(0..3u8) {
        0 => {
            let all = rng.random_range(2..NUMBERS.len());
            let taken = rng.random_range(0..all);
            let (colour, things) = (pick(&COLOURS, &mut rng), pick(&THINGS, &mut rng));
            let (n, m, left) = (NUMBERS[all], NUMBERS[taken], NUMBERS[all - taken - 1]);
            [
                format!("{a} has {n} {colour} {things} and gives {b} {m} of them."),
                format!(" Now {a} has {left} {things} and {b} has {m}."),
            ]
        }
        1 => {
            let day = rng.random_range(0..DAYS.len());
            let (place, next) = (pick(&PLACES, &mut rng), DAYS[(day + 1) % DAYS.len()]);
            [
                format!("{a} goes to the {place} on {}.", DAYS[day]),
                format!(" {b} goes to the {place} one day later, on {next}."),
            ]
        }
        _ => {
            let colours = index::sample(&mut rng, COLOURS.len(), 2).into_vec();
            let (mine, yours) = (COLOURS[colours[0]], COLOURS[colours[1]]);
            let place = pick(&PLACES, &mut rng);
            [
                format!("{a} sits in the {place} with a {mine} hat, and {b} has a {yours} one."),
                format!(" The {mine} hat is {a}'s and the {yours} hat is {b}'s."),
            ]
        }
    }
}

/// Special tokens and the tokeniser.
struct Words {
    tokenizer: Tokenizer,
    start: Token,
    end: Token,
    mask: Token,
}

/// A text: where it begins to be decoded, and where its padding begins.
struct Text {
    tokens: Vec<Token>,
    second: usize,
    length: usize,
}

impl Words {
    fn new(tokenizer: Tokenizer) -> Result<Self, Failure> {
        let id = |token: &str| tokenizer.id(token).ok_or_else(|| format!("the tokeniser has no {token}"));
        // A token for notebooks, which no text here has.
        let (start, end, mask) = (id("<|im_start|>")?, id("<|im_end|>")?, id("<empty_output>")?);
        Ok(Self { start, end, mask, tokenizer })
    }

    fn text(&self, streams: Streams) -> Result<Text, Failure> {
        let [first, second] = sentences(streams);
        let mut tokens = vec![self.start];
        tokens.extend(self.tokenizer.encode(&first, false)?);
        let at = tokens.len();
        tokens.extend(self.tokenizer.encode(&second, false)?);
        let length = tokens.len();
        if length > WIDTH {
            return Err(format!("a text of {length} tokens: {first}{second}").into());
        }
        tokens.resize(WIDTH, self.end);
        Ok(Text { tokens, second: at, length })
    }
}

fn held_out(seed: u64, item: usize) -> Streams {
    Streams::new(seed).fork(u64::MAX - item as u64)
}

/// Predictions of hidden tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Judged {
    hidden: f64,
    right: usize,
    all: usize,
    loss: f64,
}

/// One way of decoding, text by text.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Decoded {
    method: String,
    same: usize,
    right: usize,
    passes: Vec<f64>,
    seconds: Vec<f64>,
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (steps, batch, rank): (u64, usize, usize) =
        (options.get("steps")?, options.get("batch")?, options.get("rank")?);
    let (texts, prompts, seed): (usize, usize, u64) =
        (options.get("texts")?, options.get("prompts")?, options.get("seed")?);
    if texts == 0 || prompts < 2 {
        return Err("--texts must be at least 1 and --prompts at least 2".into());
    }
    let began = Began::now();
    let name = DIFFUSION_TEXT.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(steps.div_ceil(SEGMENT) + 3);
    let checkpoint = width_cost::checkpoint(context, "smollm2-135m")?;
    let words = Words::new(checkpoint.tokenizer()?)?;
    let plain = Bidirectional::new(checkpoint.causal()?.clone(), words.mask, true)?;
    let before: Vec<Judged> = run.step("before tuning", || judge(&mut load(&plain)?, &words, texts, seed))?;
    let (tuned, log) = tune(context, &mut run, &plain, &words, Tuning { steps, batch, rank, seed })?;
    let mut model = load(&tuned)?;
    let after: Vec<Judged> = run.step("after tuning", || judge(&mut model, &words, texts, seed))?;
    let ways: Vec<Decoded> = run.step("decoding", || decode(&mut model, &words, prompts, seed))?;
    let mut learnt = Table::new(
        format!(
            "Hidden tokens of {texts} held-out texts, padding not counted: share predicted right, nats a token"
        ),
        &["hidden", "right before", "right after", "nats before", "nats after"],
    );
    let share = |judged: &Judged| {
        let cell = Cell { runs: judged.all, right: judged.right, ..Cell::default() };
        let (low, high) = cell.interval();
        format!("{:.3} [{low:.2}, {high:.2}]", cell.accuracy())
    };
    for (before, after) in before.iter().zip(&after) {
        learnt.row([
            format!("{:.0} %", 100.0 * before.hidden),
            share(before),
            share(after),
            format!("{:.2}", before.loss / before.all.max(1) as f64),
            format!("{:.2}", after.loss / after.all.max(1) as f64),
        ]);
    }
    let mut decoded = Table::new(
        format!(
            "The second sentence of {prompts} texts, the first given: against one token a pass, 95 % intervals"
        ),
        &["method", "same text", "right text", "passes", "passes, ratio", "tokens a second, ratio"],
    );
    let config = PairedConfig { resamples: 2000, ..PairedConfig::default() };
    let first = ways.first().cloned().unwrap_or_default();
    for way in &ways {
        let passes = compare(&way.passes, &first.passes, &config)?;
        let speed = compare(&first.seconds, &way.seconds, &config)?;
        decoded.row([
            way.method.clone(),
            format!("{} of {prompts}", way.same),
            format!("{} of {prompts}", way.right),
            format!("{:.2}", mean(&way.passes)),
            passes.ratio.as_ref().map_or("-".into(), ratio),
            speed.ratio.as_ref().map_or("-".into(), ratio),
        ]);
    }
    let curve = log.iter().map(|at| Point { x: at.step as f64, y: at.loss, interval: None }).collect();
    let seconds: f64 = log.iter().map(|at| at.seconds).sum();
    let plot = page::lines(
        "Tuning: nats a token",
        "step",
        "loss",
        vec![Series { name: "loss of the batches".into(), points: curve }],
    );
    let half = |judged: &[Judged]| judged.get(1).map_or(String::new(), share);
    let dave = ways.iter().filter(|way| way.method.starts_with("FreeDave"));
    let (same, all) = dave.fold((0, 0), |(same, all), way| (same + way.same, all + way.passes.len()));
    let summary = format!(
        "{steps} steps of {batch} texts in {seconds:.0} s. Of tokens when half are hidden, {} are predicted right before tuning \
         and {} after. FreeDave gives the text of one token a pass in {same} of {all} cases.",
        half(&before),
        half(&after),
    );
    let notes = vec![
        "SmolLM2-135M-Instruct (4-bit weights, computed in f32) without its causal mask; logits shifted by one, as in Dream, so that what it learnt as a causal model is of use; the mask is a token for notebooks. Adapters on all projections, merged afterwards; everything else stays.".into(),
        "Texts are two short sentences of three templates over small lists of words, of which the second follows from the first but for word choices of the template. It is a toy's language: what is learnt is these templates, not English.".into(),
        "Before tuning the model predicts with a mask token and in both directions, neither of which it has ever seen.".into(),
        "Right text: the second sentence word for word as the template would have it. Caches answer with what the first pass of a block left.".into(),
    ];
    let rows = vec![serde_json::json!({ "before": before, "after": after, "decoded": ways })];
    let page = Page {
        experiment: &DIFFUSION_TEXT,
        title: "A language model made a masked one".into(),
        summary,
        seeds: vec![seed],
        rows,
        tables: vec![learnt, decoded],
        plots: vec![plot],
        notes,
    };
    page.write(context, &run, began)
}

fn load(network: &Bidirectional) -> Result<Cached, Failure> {
    Ok(Cached(OnnxMasked::from_network("SmolLM2-135M, masked", network, &SessionConfig::default())?))
}

#[derive(Clone, Copy)]
struct Tuning {
    steps: u64,
    batch: usize,
    rank: usize,
    seed: u64,
}

fn tune(
    context: &Context,
    run: &mut Run,
    plain: &Bidirectional,
    words: &Words,
    tuning: Tuning,
) -> Result<(Bidirectional, Vec<Logged>), Failure> {
    let Tuning { steps, batch, rank, seed } = tuning;
    let lora = Lora { rank, alpha: 2.0 * rank as f32, seed };
    let config = TrainerConfig {
        optimizer: OptimizerConfig::AdamW(Adam::default()),
        lr: 1e-3,
        schedule: Schedule {
            warmup: Warmup::FromFirst { steps: steps / 10 },
            decay: Decay::Cosine,
            floor: 0.1,
        },
        steps,
        batch,
        clip: Some(1.0),
        seed,
        order: Order::Given,
        train: Lora::parameters(),
        ..TrainerConfig::default()
    };
    let folder = trained::folder(context, "masked-text", &(&config, lora, WIDTH))?;
    let graph = plain.whole()?;
    let mut trainer = Trainer::new(&lora.attach(&graph, "*_proj.weight")?, config, Precision::F32)?;
    // Texts are made beforehand, so that one that does not fit is an error here.
    let texts: Vec<(Vec<Token>, Range<usize>)> = (0..steps as usize * batch)
        .map(|item| words.text(Streams::new(seed).fork(item as u64)).map(|text| (text.tokens, 1..WIDTH)))
        .collect::<Result<_, _>>()?;
    let task = MaskedTask {
        items: texts.len(),
        text: |item| texts.get(item).cloned().unwrap_or_default(),
        masking: Masking { mask: words.mask, eps: 1e-3, stratified: true },
        shift: true,
    };
    let log = trained::learn(run, &folder, SEGMENT, &mut trainer, &task)?;
    Ok((plain.with_parameters(&lora.merge(&graph, &trainer.graph()?)?)?, log))
}

fn judge(
    model: &mut dyn MaskedModel,
    words: &Words,
    texts: usize,
    seed: u64,
) -> Result<Vec<Judged>, Failure> {
    let mut all = Vec::new();
    for hidden in HIDDEN {
        let mut judged = Judged { hidden, right: 0, all: 0, loss: 0.0 };
        for item in 0..texts {
            let streams = held_out(seed, item);
            let text = words.text(streams)?;
            let mut rng = streams.stream("hidden");
            let count = ((text.length - 1) as f64 * hidden).round().max(1.0) as usize;
            let mut at: Vec<usize> =
                index::sample(&mut rng, text.length - 1, count).into_iter().map(|at| at + 1).collect();
            at.sort_unstable();
            let mut masked = text.tokens.clone();
            at.iter().for_each(|&at| masked[at] = words.mask);
            // Where everything is hidden the padding is too: it would tell the length.
            if hidden == 1.0 {
                masked[1..].fill(words.mask);
            }
            // A position's logits are the output before it.
            let rows: Vec<usize> = at.iter().map(|at| at - 1).collect();
            let (sequences, positions) = ([masked.as_slice()], [rows.as_slice()]);
            let batch = MaskedBatch {
                sequences: &sequences,
                positions: Some(&positions),
                form: LogitForm::Full,
                taps: &[],
            };
            let answer = model.forward(&batch)?;
            for (row, &at) in at.iter().enumerate() {
                let logits = answer.logits[0].row(row).unwrap_or_default();
                let (log, best) = super::train::verdict(logits, text.tokens[at]);
                judged.right += usize::from(best);
                judged.all += 1;
                judged.loss -= log;
            }
        }
        all.push(judged);
    }
    Ok(all)
}

/// How the second sentence is decoded.
enum How {
    Policy(Box<dyn Policy>),
    Dave(usize),
}

fn decode(model: &mut Cached, words: &Words, prompts: usize, seed: u64) -> Result<Vec<Decoded>, Failure> {
    let policy = |policy: Box<dyn Policy>| How::Policy(policy);
    let mut ways: Vec<(&str, Cache, How)> = vec![
        ("one a pass", Cache::None, policy(Box::<Fixed>::default())),
        ("threshold 0.9", Cache::None, policy(Box::new(Threshold { gamma: 0.9 }))),
        ("threshold 0.7", Cache::None, policy(Box::new(Threshold { gamma: 0.7 }))),
        ("FreeDave 2", Cache::None, How::Dave(2)),
        ("FreeDave 4", Cache::None, How::Dave(4)),
        ("prefix cache, one a pass", Cache::Prefix, policy(Box::<Fixed>::default())),
        ("prefix cache, threshold 0.9", Cache::Prefix, policy(Box::new(Threshold { gamma: 0.9 }))),
    ];
    let mut all: Vec<Decoded> =
        ways.iter().map(|(method, ..)| Decoded { method: (*method).into(), ..Decoded::default() }).collect();
    // The first text warms up.
    for item in 0..=prompts {
        let text = words.text(held_out(seed, 1_000_000 + item))?;
        let mut tokens = text.tokens.clone();
        tokens[text.second..].fill(words.mask);
        let canvas = Canvas { tokens, region: text.second..WIDTH };
        let mut plain: Option<Generation> = None;
        for ((_, cache, how), decoded) in ways.iter_mut().zip(&mut all) {
            let config = DiffusionConfig {
                cache: *cache,
                shift: true,
                blocks: Blocks::Whole,
                ..DiffusionConfig::default()
            };
            let mut decoder = Diffusion::cached(model, config)?;
            let got = match how {
                How::Policy(policy) => decoder.generate(&canvas, policy.as_mut())?,
                How::Dave(drafts) => {
                    let config = FreeDaveConfig { drafts: *drafts, ..FreeDaveConfig::default() };
                    decoder.free_dave(&canvas, &config)?
                }
            };
            let plain = plain.get_or_insert_with(|| got.clone());
            if item > 0 {
                decoded.same += usize::from(got.tokens == plain.tokens);
                decoded.right += usize::from(got.tokens == text.tokens);
                decoded.passes.push(got.forwards() as f64);
                decoded.seconds.push(got.ledger.total_seconds());
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_sentences_follow_from_the_first() {
        let mut kinds = [0; 3];
        for item in 0..300 {
            let [first, second] = sentences(Streams::new(3).fork(item));
            let number = |word: &str| NUMBERS.iter().position(|number| *number == word).map(|at| at + 1);
            let words = |text: &str| {
                text.split_whitespace().map(|word| word.trim_matches('.').to_owned()).collect::<Vec<_>>()
            };
            let (a, b) = (words(&first), words(&second));
            match (b[0].as_str(), first.contains(" goes ")) {
                ("Now", _) => {
                    let (all, given, left) = (number(&a[2]), number(&a[8]), number(&b[3]));
                    assert_eq!(all, given.zip(left).map(|(given, left)| given + left), "{first}{second}");
                    kinds[0] += 1;
                }
                (_, true) => {
                    let day = |word: &str| DAYS.iter().position(|day| *day == word);
                    assert_eq!(day(&a[6]).map(|day| (day + 1) % 7), day(b.last().map_or("", String::as_str)));
                    kinds[1] += 1;
                }
                _ => {
                    assert!(first.contains(&format!("a {} hat", b[1])), "{first}{second}");
                    kinds[2] += 1;
                }
            }
        }
        assert!(kinds.iter().all(|count| *count > 70), "{kinds:?}");
    }
}
