//! A causal language model made a masked one: its causal mask dropped, adapters tuned on short templated texts.

use std::ops::Range;

use pilotfish_architectures::{Bidirectional, MaskedNetwork};
use pilotfish_diffusion::policy::{Factor, LocalLeap, LocalLeapConfig, Policy, Threshold};
use pilotfish_diffusion::{
    Cache, Canvas, Diffusion, DiffusionConfig, Fixed, FreeDaveConfig, Generation, Score,
};
use pilotfish_evaluation::{PairedConfig, compare};
use pilotfish_model::{LogitForm, MaskedBatch, MaskedModel, Streams, Token};
use pilotfish_runtime::{OnnxMasked, SessionConfig};
use pilotfish_training::losses::Masking;
use pilotfish_training::{
    Adam, Decay, Lora, MaskedTask, OptimizerConfig, Order, Precision, Schedule, Trainer, TrainerConfig,
    Warmup,
};
use rand::seq::index;
use serde::{Deserialize, Serialize};

use super::Cell;
use super::sentences::{Text, WIDTH, Words};
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
        Choice { name: "steps", default: "120", about: "steps of the tuning" },
        Choice { name: "batch", default: "8", about: "texts a step" },
        Choice { name: "rank", default: "8", about: "rank of the adapters" },
        Choice { name: "rate", default: "0.001", about: "learning rate" },
        Choice { name: "texts", default: "40", about: "held-out texts that are judged before and after" },
        Choice { name: "prompts", default: "12", about: "held-out texts whose second sentence is decoded" },
        Choice { name: "threads", default: "2", about: "threads, of the tuning and of each pass" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Steps between checkpoints.
const SEGMENT: u64 = 10;
/// The first held-out text that is decoded; those before it are judged.
const DECODED: usize = 1_000_000;
/// Texts that are shown.
const SHOWN: usize = 3;

/// What of a text is hidden when a model is judged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hidden {
    /// That share of both sentences.
    Share(f64),
    /// The second sentence and the padding, which would tell its length.
    Second,
    /// Everything.
    All,
}

const HIDDEN: [Hidden; 4] = [Hidden::Share(0.15), Hidden::Share(0.5), Hidden::Second, Hidden::All];

impl Hidden {
    fn name(self) -> String {
        match self {
            Self::Share(share) => format!("{:.0} %", 100.0 * share),
            Self::Second => "the second sentence".into(),
            Self::All => "everything".into(),
        }
    }

    /// The text with its masks, and the positions that count, ascending.
    fn hide(self, text: &Text, mask: Token, streams: Streams) -> (Vec<Token>, Vec<usize>) {
        let words = text.words();
        let counted: Vec<usize> = match self {
            Self::Share(share) => {
                let count = ((words.len() as f64 * share).round() as usize).clamp(1, words.len());
                let mut chosen = index::sample(&mut streams.stream("hidden"), words.len(), count).into_vec();
                chosen.sort_unstable();
                chosen.into_iter().map(|at| words.start + at).collect()
            }
            Self::Second => text.second.clone().collect(),
            Self::All => words.collect(),
        };
        let mut masked = text.tokens.clone();
        match (self, counted.first()) {
            (Self::Share(_), _) | (_, None) => counted.iter().for_each(|&at| masked[at] = mask),
            (_, Some(&first)) => masked[first..].fill(mask),
        }
        (masked, counted)
    }
}

/// Predictions of hidden tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Judged {
    hidden: Hidden,
    /// Right and all, of tokens that templates are filled with.
    filled: [usize; 2],
    /// Right and all, of the templates' own.
    frame: [usize; 2],
    /// What a hidden token costs, in nats, in the mean.
    nats: f64,
}

/// Right of all.
fn share([right, all]: [usize; 2]) -> String {
    Cell::of(right, all).bracketed()
}

impl Judged {
    fn both(&self) -> [usize; 2] {
        [self.filled[0] + self.frame[0], self.filled[1] + self.frame[1]]
    }
}

/// What one way of decoding made of one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct One {
    tokens: Vec<Token>,
    passes: u64,
    rows: u64,
    seconds: f64,
}

/// All ways on one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    /// The text as it should be.
    tokens: Vec<Token>,
    /// Where it is decoded from.
    from: usize,
    ways: Vec<One>,
}

/// What determines the tuned model.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Tuning {
    steps: u64,
    batch: usize,
    rank: usize,
    rate: f64,
    seed: u64,
}

impl Tuning {
    fn lora(&self) -> Lora {
        Lora { rank: self.rank, alpha: 2.0 * self.rank as f32, seed: self.seed }
    }

    fn trainer(&self) -> TrainerConfig {
        TrainerConfig {
            optimizer: OptimizerConfig::AdamW(Adam::default()),
            lr: self.rate,
            schedule: Schedule {
                warmup: Warmup::FromFirst { steps: self.steps / 10 },
                decay: Decay::Cosine,
                floor: 0.1,
            },
            steps: self.steps,
            batch: self.batch,
            clip: Some(1.0),
            seed: self.seed,
            order: Order::Given,
            train: Lora::parameters(),
            ..TrainerConfig::default()
        }
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let tuning = Tuning {
        steps: options.get("steps")?,
        batch: options.get("batch")?,
        rank: options.get("rank")?,
        rate: options.get("rate")?,
        seed: options.get("seed")?,
    };
    let (texts, prompts): (usize, usize) = (options.get("texts")?, options.get("prompts")?);
    let threads: usize = options.get("threads")?;
    if texts == 0 || prompts < 2 {
        return Err("--texts must be at least 1 and --prompts at least 2".into());
    }
    if tuning.steps == 0 || tuning.batch == 0 || tuning.rank == 0 {
        return Err("--steps, --batch and --rank must be at least 1".into());
    }
    let began = Began::now();
    let name = DIFFUSION_TEXT.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(tuning.steps.div_ceil(SEGMENT) + 2 + prompts as u64);
    let checkpoint = width_cost::checkpoint(context, "smollm2-135m")?;
    let words = Words::new(checkpoint.tokenizer()?)?;
    let plain = Bidirectional::new(checkpoint.causal()?.clone(), words.mask, true)?;
    let seed = tuning.seed;
    let before: Vec<Judged> =
        run.step("before tuning", || judge(&mut load(&plain, threads)?, &words, texts, seed))?;
    let (tuned, log) = tune(context, &mut run, &plain, &words, tuning)?;
    let mut model = load(&tuned, threads)?;
    let after: Vec<Judged> = run.step("after tuning", || judge(&mut model, &words, texts, seed))?;
    let mut ways = ways()?;
    // The first passes of a session are slower than those that follow.
    decode(&mut model, &words, &mut ways[..1], held_out(&words, seed, DECODED + prompts)?)?;
    let mut items: Vec<Item> = Vec::new();
    for item in 0..prompts {
        let text = held_out(&words, seed, DECODED + item)?;
        items.push(run.step(&format!("text {item}"), || decode(&mut model, &words, &mut ways, text))?);
    }
    let mut learnt = Table::new(
        format!(
            "Hidden tokens of {texts} held-out texts, padding not counted: share predicted right with 95 % intervals; nats a token"
        ),
        &[
            "hidden",
            "words filled in, before",
            "after",
            "the templates' own, before",
            "after",
            "nats before",
            "after",
        ],
    );
    for (before, after) in before.iter().zip(&after) {
        learnt.row([
            before.hidden.name(),
            share(before.filled),
            share(after.filled),
            share(before.frame),
            share(after.frame),
            format!("{:.2}", before.nats),
            format!("{:.2}", after.nats),
        ]);
    }
    let Compared { table, same } = compared(&ways, &items)?;
    let half = |judged: &[Judged]| judged.get(1).map_or(String::new(), |judged| share(judged.both()));
    let seconds: f64 = log.iter().map(|at| at.seconds).sum();
    let Tuning { steps, batch, rank, .. } = tuning;
    let summary = format!(
        "{steps} steps of {batch} texts in {seconds:.0} s. Of tokens when half are hidden, {} are predicted right before \
         tuning and {} after. FreeDave gives the text of one token a pass in {} of {} cases.",
        half(&before),
        half(&after),
        same[0],
        same[1],
    );
    let notes = vec![
        format!("SmolLM2-135M-Instruct (4-bit weights, computed in f32) without its causal mask; logits shifted by one, as in Dream, so that what it learnt as a causal model is of use; the mask is a token for notebooks. Adapters of rank {rank} on all projections, merged afterwards; everything else stays."),
        "Texts are two short sentences of three templates over small lists of words, of which the second follows from the first but for a word. It is a toy's language: what is learnt is these templates, not English. Held-out texts are one in eight by a digest, and none of them is trained on.".into(),
        "Words filled in are names, numbers, colours, things, places and days: those that are in the other sentence too can be known, the rest cannot, so that no model is right on all. The templates' own tokens tell whether a template was recognised.".into(),
        "Before tuning the model predicts with a mask token and in both directions, neither of which it has ever seen.".into(),
        "Decoding is given the first sentence and fills the rest, padding included. Right: the second sentence word for word; where the template leaves a word open (who comes later, how many are given), that is chance. Caches answer with what the first pass left of the first sentence.".into(),
        "A pass of several drafts has as many times the rows; on few cores rows are time. Texts of FreeDave that differ may do so by rounding: a batch of another size sums in another order.".into(),
    ];
    let page = Page {
        experiment: &DIFFUSION_TEXT,
        title: "A language model made a masked one".into(),
        summary,
        seeds: vec![seed],
        rows: rows(&before, &after, &log, &ways, &items),
        tables: vec![learnt, table, examples(&words, &ways, &items)?],
        plots: plots(&before, &after, &log),
        notes,
    };
    page.write(context, &run, began)
}

fn rows(
    before: &[Judged],
    after: &[Judged],
    log: &[Logged],
    ways: &[Way],
    items: &[Item],
) -> Vec<serde_json::Value> {
    let judged = |when: &str, all: &[Judged]| -> Vec<serde_json::Value> {
        all.iter().map(|judged| serde_json::json!({ "tuning": when, "judged": judged })).collect()
    };
    let decoded = ways.iter().enumerate().map(|(at, way)| {
        let ones: Vec<&One> = items.iter().filter_map(|item| item.ways.get(at)).collect();
        serde_json::json!({ "method": way.name, "texts": ones })
    });
    let losses = log.iter().map(|at| serde_json::json!({ "loss": at }));
    judged("before", before).into_iter().chain(judged("after", after)).chain(decoded).chain(losses).collect()
}

fn plots(before: &[Judged], after: &[Judged], log: &[Logged]) -> Vec<crate::plots::Plot> {
    let curve = log.iter().map(|at| Point { x: at.step as f64, y: at.loss, interval: None }).collect();
    let shares = |name: &str, judged: &[Judged], counts: fn(&Judged) -> [usize; 2]| Series {
        name: name.into(),
        points: judged
            .iter()
            .filter_map(|judged| {
                let Hidden::Share(x) = (match judged.hidden {
                    Hidden::All => Hidden::Share(1.0),
                    other => other,
                }) else {
                    return None;
                };
                let [right, all] = counts(judged);
                let cell = Cell::of(right, all);
                Some(Point { x: 100.0 * x, y: cell.accuracy(), interval: Some(cell.interval()) })
            })
            .collect(),
    };
    vec![
        page::lines(
            "Hidden tokens predicted right",
            "share hidden, per cent",
            "share right",
            vec![
                shares("words filled in, before", before, |judged| judged.filled),
                shares("words filled in, after", after, |judged| judged.filled),
                shares("the templates' own, before", before, |judged| judged.frame),
                shares("the templates' own, after", after, |judged| judged.frame),
            ],
        ),
        page::lines(
            "Tuning: nats a token",
            "step",
            "loss",
            vec![Series { name: "loss of the batches".into(), points: curve }],
        ),
    ]
}

/// Ways of decoding compared, and in how many of how many cases FreeDave gave the text of one token a pass.
struct Compared {
    table: Table,
    same: [usize; 2],
}

fn compared(ways: &[Way], items: &[Item]) -> Result<Compared, Failure> {
    let mut table = Table::new(
        format!(
            "The second sentence of {} held-out texts, the first given: against one token a pass, 95 % intervals",
            items.len()
        ),
        &["method", "same text", "right", "passes", "passes, ratio", "rows, ratio", "tokens a second, ratio"],
    );
    let config = PairedConfig { resamples: 2000, ..PairedConfig::default() };
    let of = |at: usize, value: fn(&One) -> f64| -> Vec<f64> {
        items.iter().filter_map(|item| item.ways.get(at)).map(value).collect()
    };
    let (passes, seconds) = (|one: &One| one.passes as f64, |one: &One| one.seconds);
    let read = |one: &One| one.rows as f64;
    let mut dave = [0, 0];
    for (at, way) in ways.iter().enumerate() {
        let count = |equal: &dyn Fn(&Item, &One) -> bool| {
            items.iter().filter(|item| item.ways.get(at).is_some_and(|one| equal(item, one))).count()
        };
        let same = count(&|item, one| item.ways.first().is_some_and(|first| first.tokens == one.tokens));
        let right = count(&|item, one| item.tokens == one.tokens);
        if let How::Dave(_) = way.how {
            dave = [dave[0] + same, dave[1] + items.len()];
        }
        let fewer = compare(&of(at, passes), &of(0, passes), &config)?;
        // Every text has as many tokens: less time is more tokens a second.
        let faster = compare(&of(0, seconds), &of(at, seconds), &config)?;
        table.row([
            way.name.clone(),
            format!("{same} of {}", items.len()),
            format!("{right} of {}", items.len()),
            format!("{:.2}", mean(&of(at, passes))),
            fewer.ratio.as_ref().map_or("-".into(), ratio),
            format!("{:.2}x", mean(&of(at, read)) / mean(&of(0, read)).max(1.0)),
            faster.ratio.as_ref().map_or("-".into(), ratio),
        ]);
    }
    Ok(Compared { table, same: dave })
}

/// A few texts as they were decoded.
fn examples(words: &Words, ways: &[Way], items: &[Item]) -> Result<Table, Failure> {
    let mut table = Table::new("The first of these texts", &["given", "method", "decoded"]);
    for item in items.iter().take(SHOWN) {
        let given = words.shown(item.tokens.get(..item.from).unwrap_or_default())?;
        for (way, one) in ways.iter().zip(&item.ways).take(3) {
            let decoded = words.shown(one.tokens.get(item.from..).unwrap_or_default())?;
            table.row([given.clone(), way.name.clone(), decoded]);
        }
    }
    Ok(table)
}

fn load(network: &Bidirectional, threads: usize) -> Result<Cached, Failure> {
    let config = SessionConfig { threads, ..SessionConfig::default() };
    Ok(Cached(OnnxMasked::from_network("SmolLM2-135M, masked", network, &config)?))
}

/// A text that was not trained on.
fn held_out(words: &Words, seed: u64, item: usize) -> Result<Text, Failure> {
    words.text(Streams::new(seed).fork(item as u64), true)
}

/// The network with what adapters learnt merged into it, and the losses on the way.
fn tune(
    context: &Context,
    run: &mut Run,
    plain: &Bidirectional,
    words: &Words,
    tuning: Tuning,
) -> Result<(Bidirectional, Vec<Logged>), Failure> {
    let (lora, config) = (tuning.lora(), tuning.trainer());
    let folder = trained::folder(context, "masked-text", &(&config, lora, WIDTH))?;
    let graph = plain.whole()?;
    let mut trainer = Trainer::new(&lora.attach(&graph, "*_proj.weight")?, config, Precision::F32)?;
    // Texts are made beforehand, so that one that does not fit is an error here.
    let count = tuning.steps.checked_mul(tuning.batch as u64).ok_or("--steps times --batch is too large")?;
    let texts: Vec<(Vec<Token>, Range<usize>)> = (0..count)
        .map(|item| {
            words.text(Streams::new(tuning.seed).fork(item), false).map(|text| (text.tokens, 1..WIDTH))
        })
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

/// How well a model predicts what is hidden of held-out texts.
fn judge(
    model: &mut dyn MaskedModel,
    words: &Words,
    texts: usize,
    seed: u64,
) -> Result<Vec<Judged>, Failure> {
    let mut all = Vec::new();
    for hidden in HIDDEN {
        let mut judged = Judged { hidden, filled: [0; 2], frame: [0; 2], nats: 0.0 };
        for item in 0..texts {
            let text = held_out(words, seed, item)?;
            let (masked, counted) = hidden.hide(&text, words.mask, Streams::new(seed).fork(item as u64));
            // A position's logits are the output before it; the first token is never hidden.
            let rows: Vec<usize> = counted.iter().map(|at| at - 1).collect();
            let (sequences, positions) = ([masked.as_slice()], [rows.as_slice()]);
            let batch = MaskedBatch {
                sequences: &sequences,
                positions: Some(&positions),
                form: LogitForm::Full,
                taps: &[],
            };
            let answer = model.forward(&batch)?;
            let logits = answer.logits.first().ok_or("no logits")?;
            for (row, &at) in counted.iter().enumerate() {
                let row = logits.row(row).ok_or("no logits of a hidden token")?;
                let (log, best) = super::train::verdict(row, text.tokens[at]);
                let counts = if text.filled[at] { &mut judged.filled } else { &mut judged.frame };
                counts[0] += usize::from(best);
                counts[1] += 1;
                judged.nats -= log;
            }
        }
        judged.nats /= judged.both()[1].max(1) as f64;
        all.push(judged);
    }
    Ok(all)
}

/// How a second sentence is decoded.
enum How {
    Policy(Box<dyn Policy>),
    Dave(usize),
}

/// A way of decoding.
struct Way {
    name: String,
    cache: Cache,
    how: How,
}

/// All ways; the first is what the others are compared with.
fn ways() -> Result<Vec<Way>, Failure> {
    let mut ways = Vec::new();
    let mut add = |name: &str, cache, how| ways.push(Way { name: name.into(), cache, how });
    let policy = |policy: Box<dyn Policy>| How::Policy(policy);
    add("one a pass", Cache::None, policy(Box::<Fixed>::default()));
    add("two a pass", Cache::None, policy(Box::new(Fixed::tokens(Score::Probability, 2))));
    add("threshold 0.9", Cache::None, policy(Box::new(Threshold { gamma: 0.9 })));
    add("threshold 0.7", Cache::None, policy(Box::new(Threshold { gamma: 0.7 })));
    add("factor 1", Cache::None, policy(Box::new(Factor { f: 1.0, quirk: false })));
    add("LocalLeap", Cache::None, policy(Box::new(LocalLeap::new(LocalLeapConfig::default())?)));
    add("FreeDave 2", Cache::None, How::Dave(2));
    add("FreeDave 4", Cache::None, How::Dave(4));
    add("prefix cache, one a pass", Cache::Prefix, policy(Box::<Fixed>::default()));
    add("prefix cache, threshold 0.9", Cache::Prefix, policy(Box::new(Threshold { gamma: 0.9 })));
    Ok(ways)
}

fn decode(model: &mut Cached, words: &Words, ways: &mut [Way], text: Text) -> Result<Item, Failure> {
    let from = text.second.start;
    let mut tokens = text.tokens.clone();
    tokens[from..].fill(words.mask);
    let canvas = Canvas { tokens, region: from..WIDTH };
    let mut ones = Vec::with_capacity(ways.len());
    for way in ways {
        let config = DiffusionConfig { cache: way.cache, shift: true, ..DiffusionConfig::default() };
        let mut decoder = Diffusion::cached(model, config)?;
        let got: Generation = match &mut way.how {
            How::Policy(policy) => decoder.generate(&canvas, policy.as_mut())?,
            How::Dave(drafts) => decoder
                .free_dave(&canvas, &FreeDaveConfig { drafts: *drafts, ..FreeDaveConfig::default() })?,
        };
        ones.push(One {
            passes: got.forwards(),
            rows: got.ledger.target_rows,
            seconds: got.ledger.total_seconds(),
            tokens: got.tokens,
        });
    }
    Ok(Item { tokens: text.tokens, from, ways: ones })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Text {
        // A start, sentences of five and four tokens, two of padding.
        let tokens: Vec<Token> = [1].into_iter().chain(10..19).chain([2, 2]).collect();
        Text { filled: vec![false; tokens.len()], tokens, second: 6..10 }
    }

    #[test]
    fn what_is_hidden_is_counted_and_nothing_tells_it() {
        let hide = |hidden: Hidden, seed: u64| hidden.hide(&text(), 0, Streams::new(seed));
        let (masked, counted) = hide(Hidden::Second, 1);
        assert_eq!(masked, [1, 10, 11, 12, 13, 14, 0, 0, 0, 0, 0, 0]);
        assert_eq!(counted, [6, 7, 8, 9]);
        let (masked, counted) = hide(Hidden::All, 1);
        assert_eq!(masked, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(counted, (1..10).collect::<Vec<_>>());
        let mut seen = [0; 12];
        for seed in 0..200 {
            let (masked, counted) = hide(Hidden::Share(0.33), seed);
            let hidden: Vec<usize> = (0..12).filter(|&at| masked[at] == 0).collect();
            assert_eq!(hidden, counted);
            assert_eq!(counted.len(), 3);
            counted.into_iter().for_each(|at| seen[at] += 1);
        }
        // Both sentences and nothing else, 67 times each in the mean.
        assert!(seen[1..10].iter().all(|count| (40..100).contains(count)), "{seen:?}");
        assert_eq!((seen[0], seen[10], seen[11]), (0, 0, 0));
        assert_eq!(hide(Hidden::Share(0.001), 1).1.len(), 1);
    }

    #[test]
    fn ways_are_compared_with_the_first() {
        let one = |tokens: &[Token], passes: u64, seconds: f64| One {
            tokens: tokens.to_vec(),
            passes,
            rows: 4 * passes,
            seconds,
        };
        let mut ways = ways().expect("valid");
        ways.retain(|way| way.name == "one a pass" || way.name == "FreeDave 4");
        let item = |right: bool| Item {
            tokens: if right { vec![1, 2, 3] } else { vec![1, 2, 4] },
            from: 1,
            ways: vec![one(&[1, 2, 3], 8, 2.0), one(&[1, 2, 3], 4, 4.0)],
        };
        let Compared { table, same } = compared(&ways, &[item(true), item(false)]).expect("valid");
        assert_eq!(same, [2, 2]);
        let text = table.markdown();
        for part in ["2 of 2", "1 of 2", "8.00", "4.00", "0.50x"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
