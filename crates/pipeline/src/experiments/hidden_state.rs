//! A cache that learns while a frozen model reads: what it gains on text like that of training and on other text, for a
//! network of letters trained here and for a real model; and the test that no score knows its own update.

#![allow(clippy::result_large_err)] // training's errors, once a run

use std::collections::BTreeMap;

use pilotfish_evaluation::{PairedConfig, compare, texts};
use pilotfish_graph::Tensor;
use pilotfish_model::{Streams, Token};
use pilotfish_training::{HiddenConfig, HiddenStates, Precision, TextTask};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page, difference, mean, percent};
use super::session::MODEL;
use super::tiny::{self, Letters};
use super::{Choice, Context, Experiment, Options, Outcome, width_cost};
use crate::error::Failure;
use crate::machine;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const HIDDEN_STATE: Experiment = Experiment {
    name: "hidden-state",
    about: "a cache that learns while a frozen model reads, on text like that of training and on other text",
    needs: &["smollm2-135m"],
    library: false,
    options: &[
        MODEL,
        Choice { name: "etas", default: "1e-3,3e-3,1e-2", about: "step sizes that are tried" },
        Choice { name: "tokens", default: "384", about: "tokens of a passage" },
        Choice {
            name: "passages",
            default: "3",
            about: "passages of each text; 0 leaves the real model out",
        },
        Choice { name: "tuning", default: "256", about: "tokens of other text that the step is chosen on" },
        Choice { name: "window", default: "16", about: "tokens between two steps of the real model" },
        Choice { name: "context", default: "256", about: "entries that the real model keeps" },
        Choice { name: "sinks", default: "4", about: "entries of these that never leave" },
        Choice { name: "guard", default: "false", about: "take a step back that made the next window worse" },
        Choice { name: "windows", default: "8,16,32", about: "letters between two steps of the toy" },
        Choice { name: "letters", default: "256", about: "letters of a passage of the toy" },
        Choice { name: "toy-passages", default: "8", about: "passages of the toy" },
        Choice { name: "steps", default: "500", about: "steps that the toy is trained for" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

const ALPHABET: Letters = Letters("abcdefghijklmnopqrstuvwxyz .");

/// What the toy reads.
const TOY_TEXTS: [&str; 3] = ["another novel", "the same backwards", "the same with other letters"];

/// What the real model reads.
const DOMAINS: [&str; 3] = ["prose", "its words in random order", "Rust"];

/// Entries that the toy keeps.
const TOY_CONTEXT: usize = 64;

/// Lower-case letters, single spaces and full stops; nothing else.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        let letter = match letter.to_ascii_lowercase() {
            letter if letter.is_ascii_lowercase() => letter,
            '.' | '!' | '?' => '.',
            _ => ' ',
        };
        if letter.is_ascii_lowercase() || !out.ends_with(letter) {
            out.push(letter);
        }
    }
    out
}

/// A text read backwards.
fn backwards(text: &str) -> String {
    text.chars().rev().collect()
}

/// A text with every letter replaced by one 13 places on.
fn rotated(text: &str) -> String {
    let on = |letter: char| match letter {
        'a'..='z' => char::from((letter as u8 - b'a' + 13) % 26 + b'a'),
        other => other,
    };
    text.chars().map(on).collect()
}

/// A text with its words in random order.
fn shuffled(text: &str, streams: Streams) -> String {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words.shuffle(&mut streams.stream("words"));
    words.join(" ")
}

/// Pieces of a text, evenly spread.
fn passages(text: &[Token], count: usize, length: usize) -> Result<Vec<Vec<Token>>, Failure> {
    if count == 0 || text.len() < count * length {
        return Err(format!("{count} passages of {length} tokens from a text of {}", text.len()).into());
    }
    let apart = text.len() / count;
    Ok((0..count).map(|at| text[at * apart..][..length].to_vec()).collect())
}

/// Mean losses of the windows of a passage, in nats a token, before the step that saw them and after it; the latter
/// only if a second step is taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Losses {
    recorded: Vec<Vec<f64>>,
    after: Vec<Vec<f64>>,
    taken_back: usize,
    /// Bytes of the cache with its moments; megabytes of the process so far.
    bytes: usize,
    peak: Option<f64>,
}

impl Losses {
    fn read(model: &HiddenStates, text: &[Token], window: usize) -> Result<Self, Failure> {
        let mut out = Self { recorded: vec![], after: vec![], taken_back: 0, bytes: 0, peak: None };
        let mut cache = model.empty();
        for window in text.chunks(window) {
            let reading = model.read(&mut cache, window)?;
            out.after.extend(reading.after.into_iter().next());
            out.recorded.push(reading.losses);
            out.taken_back += usize::from(reading.taken_back);
            out.bytes = out.bytes.max(cache.bytes());
        }
        out.peak = machine::peak_memory_mb();
        Ok(out)
    }

    fn mean(&self) -> f64 {
        mean(&self.recorded.concat())
    }

    /// Means of the windows that have losses.
    fn windows(&self) -> Vec<f64> {
        self.recorded.iter().filter(|losses| !losses.is_empty()).map(|losses| mean(losses)).collect()
    }
}

/// The network of letters after its training.
fn taught(steps: u64, seed: u64) -> Result<BTreeMap<String, Vec<f32>>, Failure> {
    let text = ALPHABET.encode(&plain(texts::PERSUASION))?;
    let task = TextTask::new(text.chunks_exact(TOY_CONTEXT).map(<[u32]>::to_vec).collect());
    let graph = tiny::network(ALPHABET, 64, 2, seed)?;
    let graph = tiny::train(&graph, &task, tiny::settings(steps, 16, 3e-3, seed))?;
    graph.params().iter().map(|param| Ok((param.name.clone(), param.tensor.to_f32()?.into_owned()))).collect()
}

fn toy_model(params: &BTreeMap<String, Vec<f32>>, seed: u64) -> Result<HiddenStates, Failure> {
    let network = tiny::causal(ALPHABET, 64, 2, seed)?;
    let mut graph = network.whole("B".into(), "T".into())?;
    for (name, values) in params {
        let shape =
            graph.params().iter().find(|param| param.name == *name).map(|p| p.tensor.shape().to_vec());
        graph
            .set_param(name, Tensor::new(shape.ok_or("a parameter of another network")?, values.clone())?)?;
    }
    let graph = network.with_parameters(&graph)?.adaptable()?;
    Ok(HiddenStates::new(&graph, Precision::F32, HiddenConfig::default())?)
}

/// Without steps where the step size is 0: the model as it is.
fn config(eta: f64, context: usize, sinks: usize, guard: bool) -> HiddenConfig {
    let steps = usize::from(eta > 0.0);
    HiddenConfig { step_size: eta, steps, context, sinks, guard, ..HiddenConfig::default() }
}

/// What the toy gave.
struct Toy {
    windows: Vec<usize>,
    /// By text, window and step size (0 first): passages' mean losses.
    losses: Vec<Vec<Vec<Vec<f64>>>>,
    /// By window and step size: on random letters, the mean above log V, before and after the step, each with its
    /// standard error.
    leaks: Vec<Vec<[f64; 4]>>,
}

fn toy(options: &Options, etas: &[f64], run: &mut Run, streams: Streams) -> Result<Toy, Failure> {
    let (length, count): (usize, usize) = (options.get("letters")?, options.get("toy-passages")?);
    let (steps, seed) = (options.get("steps")?, options.get("seed")?);
    let windows = options.list::<usize>("windows")?;
    let params = run.step("toy, training", || taught(steps, seed))?;
    let mut model = toy_model(&params, seed)?;
    let novel = plain(texts::NORTHANGER_ABBEY);
    let mut losses = Vec::new();
    for (name, text) in TOY_TEXTS.iter().zip([novel.clone(), backwards(&novel), rotated(&novel)]) {
        let parts = passages(&ALPHABET.encode(&text)?, count, length)?;
        let mut by_window = Vec::new();
        for &window in &windows {
            let mut by_eta = Vec::new();
            for eta in std::iter::once(&0.0).chain(etas) {
                model.configure(config(*eta, TOY_CONTEXT, 0, false))?;
                by_eta.push(run.step(&format!("toy, {name}, window {window}, step {eta}"), || {
                    let all = parts.iter().map(|part| Ok(Losses::read(&model, part, window)?.mean()));
                    all.collect::<Result<Vec<f64>, Failure>>()
                })?);
            }
            by_window.push(by_eta);
        }
        losses.push(by_window);
    }
    let vocab = ALPHABET.end() + 1;
    let mut rng = streams.stream("random letters");
    let noise: Vec<Token> = (0..count * length).map(|_| rng.random_range(0..vocab)).collect();
    let mut leaks = Vec::new();
    for &window in &windows {
        let mut by_eta = Vec::new();
        for &eta in etas {
            model.configure(HiddenConfig { steps: 2, ..config(eta, TOY_CONTEXT, 0, false) })?;
            by_eta.push(run.step(&format!("toy, random letters, window {window}, step {eta}"), || {
                let found = Losses::read(&model, &noise, window)?;
                let (before, after) = (above(&found.recorded, vocab), above(&found.after, vocab));
                Ok::<_, Failure>([before[0], before[1], after[0], after[1]])
            })?);
        }
        leaks.push(by_eta);
    }
    Ok(Toy { windows, losses, leaks })
}

/// The mean above log V, and its standard error.
fn above(losses: &[Vec<f64>], vocab: u32) -> [f64; 2] {
    let all = losses.concat();
    let (n, middle) = (all.len() as f64, mean(&all));
    let variance = all.iter().map(|loss| (loss - middle).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    [middle - f64::from(vocab).ln(), (variance / n).sqrt()]
}

/// What the real model gave on one text.
struct Domain {
    name: &'static str,
    /// Perplexities of other text by step size, 0 first.
    tuning: Vec<f64>,
    eta: f64,
    /// By passage: the model as it is, and with steps.
    passages: Vec<[Losses; 2]>,
}

fn real(
    context: &Context,
    etas: &[f64],
    run: &mut Run,
    streams: Streams,
) -> Result<(String, Vec<Domain>), Failure> {
    let options = context.options();
    let (length, count): (usize, usize) = (options.get("tokens")?, options.get("passages")?);
    let (tuning, window): (usize, usize) = (options.get("tuning")?, options.get("window")?);
    let (kept, sinks, guard) = (options.get("context")?, options.get("sinks")?, options.get("guard")?);
    let checkpoint = width_cost::checkpoint(context, options.text("model")?)?;
    let tokenizer = checkpoint.tokenizer()?;
    let network = checkpoint.causal()?;
    let graph = network.adaptable()?;
    let local = network.window(0..network.config().layers);
    let first = config(0.0, kept, sinks, guard);
    let mut model = HiddenStates::with_window(&graph, Precision::F32, first, local)?;
    drop(graph);
    // The step is chosen on one text and measured on another of the same kind.
    let texts = [
        [texts::PERSUASION.to_owned(), texts::NORTHANGER_ABBEY.to_owned()],
        [shuffled(texts::PERSUASION, streams), shuffled(texts::NORTHANGER_ABBEY, streams)],
        [include_str!("../datasets.rs").to_owned(), include_str!("../plots.rs").to_owned()],
    ];
    let mut domains = Vec::new();
    for (name, [other, own]) in DOMAINS.into_iter().zip(texts) {
        let other = passages(&tokenizer.encode(&other, false)?, 1, tuning)?;
        let own = passages(&tokenizer.encode(&own, false)?, count, length)?;
        let mut tried = Vec::new();
        for eta in std::iter::once(&0.0).chain(etas) {
            model.configure(config(*eta, kept, sinks, guard))?;
            let id = format!("real, {name}, tuning, step {eta}");
            let losses: Losses = run.step(&id, || Losses::read(&model, &other[0], window))?;
            tried.push(losses.mean().exp());
        }
        let best = etas.iter().zip(&tried[1..]).min_by(|a, b| a.1.total_cmp(b.1));
        let eta = *best.ok_or("--etas is empty")?.0;
        let mut pairs = Vec::new();
        for (index, part) in own.iter().enumerate() {
            let mut read = |eta: f64, run: &mut Run| -> Result<Losses, Failure> {
                model.configure(config(eta, kept, sinks, guard))?;
                let id = format!("real, {name}, passage {index}, step {eta}");
                Ok(run.step(&id, || Losses::read(&model, part, window))?)
            };
            pairs.push([read(0.0, run)?, read(eta, run)?]);
        }
        domains.push(Domain { name, tuning: tried, eta, passages: pairs });
    }
    Ok((checkpoint.name().to_owned(), domains))
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (etas, seed) = (options.list::<f64>("etas")?, options.get::<u64>("seed")?);
    let count: usize = options.get("passages")?;
    let windows = options.list::<usize>("windows")?;
    if etas.is_empty() || etas.iter().any(|eta| !(*eta > 0.0 && eta.is_finite())) {
        return Err("--etas must be above 0".into());
    }
    for name in ["tokens", "tuning", "letters"] {
        if !(32..=100_000).contains(&options.get::<usize>(name)?) {
            return Err(format!("--{name} from 32 to 100000").into());
        }
    }
    if windows.is_empty() || windows.contains(&0) || options.get::<usize>("window")? == 0 {
        return Err("--window and --windows must be at least 1".into());
    }
    if !(1..=1000).contains(&options.get::<usize>("toy-passages")?) {
        return Err("--toy-passages from 1 to 1000".into());
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let mut run =
        Run::open(context.results(), HIDDEN_STATE.name, options, context.fresh(), context.is_quiet())?;
    let toys = 1 + windows.len() * (TOY_TEXTS.len() * (1 + etas.len()) + etas.len());
    let real_steps = if count > 0 { DOMAINS.len() * (1 + etas.len() + 2 * count) } else { 0 };
    run.expect((toys + real_steps) as u64);
    let toy = toy(options, &etas, &mut run, streams)?;
    let real = if count > 0 { Some(real(context, &etas, &mut run, streams)?) } else { None };
    let mut page = Page {
        experiment: &HIDDEN_STATE,
        title: "Hidden-state optimisation: a cache that learns while a frozen model reads".into(),
        summary: String::new(),
        seeds: vec![seed, PairedConfig::default().seed],
        rows: Vec::new(),
        tables: Vec::new(),
        plots: Vec::new(),
        notes: vec![
            "Reconstructed: the authors' code could not be read, and their step sizes, window lengths and figures are not known for certain. What is compared is the shape: nothing at a step of 0, and more on text unlike that of training.".into(),
            "Every loss is recorded before the step that sees it. Adam, one step a window; moments and counts belong to entries and leave with them; weights do not change.".into(),
        ],
    };
    report_toy(&toy, &etas, options, &mut page)?;
    if let Some((name, domains)) = &real {
        report_real(name, domains, &etas, options, &mut page)?;
    }
    page.write(context, &run, began)
}

fn report_toy(toy: &Toy, etas: &[f64], options: &Options, page: &mut Page) -> Result<(), Failure> {
    let mut header = vec!["text".to_owned(), "window".into(), "perplexity as it is".into()];
    header.extend(etas.iter().map(|eta| format!("step {eta}")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut perplexities = Table::new("Letters: perplexity less by", &header);
    let mut gains = Table::new(
        format!(
            "Letters: nats a letter less, mean over {} passages with 95 % interval",
            options.text("toy-passages")?
        ),
        &header,
    );
    let mut plots = vec![Vec::new(); toy.windows.len()];
    let mut words = Vec::new();
    for (name, by_window) in TOY_TEXTS.iter().zip(&toy.losses) {
        for (at, (window, by_eta)) in toy.windows.iter().zip(by_window).enumerate() {
            let still = &by_eta[0];
            let before = mean(still).exp();
            let first = [(*name).to_owned(), window.to_string(), format!("{before:.2}")];
            let effects = by_eta[1..]
                .iter()
                .map(|moved| Ok(compare(still, moved, &PairedConfig::default())?.difference))
                .collect::<Result<Vec<_>, Failure>>()?;
            let less = by_eta[1..].iter().map(|moved| format!("{:+.3}", before - mean(moved).exp()));
            perplexities.row(first.iter().cloned().chain(less));
            gains.row(first.iter().cloned().chain(effects.iter().map(difference)));
            let points = etas.iter().zip(&effects).map(|(eta, effect)| Point {
                x: eta.log10(),
                y: effect.value,
                interval: effect.interval.map(|interval| (interval.low, interval.high)),
            });
            plots[at].push(Series { name: (*name).into(), points: points.collect() });
            page.rows.push(serde_json::json!({ "toy": name, "window": window, "nats": by_eta }));
        }
        let best = by_window
            .iter()
            .flat_map(|by_eta| by_eta[1..].iter().map(|moved| mean(&by_eta[0]) - mean(moved)))
            .fold(f64::NEG_INFINITY, f64::max);
        words.push(format!("{best:+.3} on {name}"));
    }
    page.summary = format!("Letters, nats a letter less at the best setting: {}.", words.join(", "));
    for (window, series) in toy.windows.iter().zip(plots) {
        let title = format!("Letters, a step every {window}");
        page.plots.push(page::lines(&title, "step size, power of ten", "nats a letter less", series));
    }
    let mut leak = Table::new(
        "Random letters: mean loss above log V, with standard error; below 0 is a leak",
        &["window", "step", "recorded before the step", "read again after it (known to be wrong)"],
    );
    let mut lowest = f64::INFINITY;
    for (window, by_eta) in toy.windows.iter().zip(&toy.leaks) {
        for (eta, &[before, error, after, after_error]) in etas.iter().zip(by_eta) {
            lowest = lowest.min(before / error);
            leak.row([
                window.to_string(),
                eta.to_string(),
                format!("{before:+.3} ± {error:.3}"),
                format!("{after:+.3} ± {after_error:.3}"),
            ]);
            page.rows.push(serde_json::json!({
                "leak": { "window": window, "step": eta, "before": [before, error], "after": [after, after_error] }
            }));
        }
    }
    page.summary += &format!(
        " On random letters the recorded loss is never further below log V than {:.1} standard errors.",
        (-lowest).max(0.0)
    );
    page.tables.extend([gains, perplexities, leak]);
    page.notes.push(format!(
        "Letters: a network of two layers and width 64, trained for {} steps on one novel; it keeps {TOY_CONTEXT} entries. It reads another novel, the same novel backwards (the same letters, other neighbours), and the same with each letter replaced by the one 13 places on. Step sizes are all shown, none is chosen.",
        options.text("steps")?
    ));
    Ok(())
}

fn report_real(
    name: &str,
    domains: &[Domain],
    etas: &[f64],
    options: &Options,
    page: &mut Page,
) -> Result<(), Failure> {
    let mut header = vec!["text".to_owned(), "as it is".into()];
    header.extend(etas.iter().map(|eta| format!("step {eta}")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut tuning =
        Table::new(format!("{name}: perplexity of the text that the step is chosen on"), &header);
    let mut table = Table::new(
        format!("{name}: other text of the same kinds"),
        &[
            "text",
            "tokens",
            "step",
            "perplexity as it is",
            "with steps",
            "less by",
            "nats a token less, by window",
            "windows better, %",
            "steps taken back",
        ],
    );
    let (mut words, mut series, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bytes, mut peak) = (0, 0.0f64);
    for domain in domains {
        tuning.row(
            std::iter::once(domain.name.to_owned()).chain(domain.tuning.iter().map(|p| format!("{p:.2}"))),
        );
        if domain.tuning[1..].iter().all(|perplexity| *perplexity >= domain.tuning[0]) {
            lost.push(domain.name);
        }
        let side = |side: usize| domain.passages.iter().map(move |pair| &pair[side]);
        let all = |which: usize| -> Vec<f64> { side(which).flat_map(Losses::windows).collect() };
        let (still, moved) = (all(0), all(1));
        let effect = compare(&still, &moved, &PairedConfig::default())?.difference;
        let [before, after] = [0, 1].map(|which| {
            let tokens: Vec<f64> = side(which).flat_map(|losses| losses.recorded.concat()).collect();
            (mean(&tokens).exp(), tokens.len())
        });
        let better: Vec<f64> =
            still.iter().zip(&moved).map(|(still, moved)| f64::from(u8::from(moved < still))).collect();
        table.row([
            domain.name.to_owned(),
            before.1.to_string(),
            domain.eta.to_string(),
            format!("{:.2}", before.0),
            format!("{:.2}", after.0),
            format!("{:+.3}", before.0 - after.0),
            difference(&effect),
            percent(mean(&better), None),
            side(1).map(|losses| losses.taken_back).sum::<usize>().to_string(),
        ]);
        words.push(format!("{} on {}", difference(&effect), domain.name));
        let longest = side(0).map(|losses| losses.windows().len()).max().unwrap_or(0);
        let points = (0..longest).map(|at| {
            let gains: Vec<f64> = domain
                .passages
                .iter()
                .filter_map(|[still, moved]| Some(still.windows().get(at)? - moved.windows().get(at)?))
                .collect();
            Point { x: at as f64 + 1.0, y: mean(&gains), interval: None }
        });
        series.push(Series { name: domain.name.into(), points: points.collect() });
        for losses in side(0).chain(side(1)) {
            bytes = bytes.max(losses.bytes);
            peak = peak.max(losses.peak.unwrap_or(0.0));
        }
        page.rows.push(serde_json::json!({
            "domain": domain.name, "step": domain.eta, "tuning": domain.tuning, "still": still, "moved": moved,
        }));
    }
    page.summary += &format!(" {name}, nats a token less: {}.", words.join(", "));
    page.tables.extend([table, tuning]);
    page.plots.push(page::lines(
        &format!("{name}, by place"),
        "window of a passage",
        "nats a token less",
        series,
    ));
    page.notes.push(format!(
        "{name}: a step every {} tokens, {} entries kept, of which the first {} never leave (without them a model of this kind loses its place when the first entries leave, steps or not). The step is chosen by kind of text on {} tokens of other text: *Persuasion* for *Northanger Abbey*, one source file of this project for another. It is chosen among those above 0{}.",
        options.text("window")?,
        options.text("context")?,
        options.text("sinks")?,
        options.text("tuning")?,
        if lost.is_empty() {
            String::new()
        } else {
            format!("; on {} none of them was better than no step", lost.join(" and "))
        }
    ));
    page.notes.push("Intervals are over windows as if they did not depend on each other. Windows of a passage do, so they are rather narrow.".into());
    page.notes.push(format!(
        "Memory: entries and moments {:.1} MB at most; the whole process {peak:.0} MB at most, with the weights in f32.",
        bytes as f64 / 1e6
    ));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_the_toy() {
        assert_eq!(plain("Oh! -- \"No?!\" 4 me.\n"), "oh. no. me. ");
        assert_eq!(rotated("az ."), "nm .");
        assert_eq!(backwards("ab."), ".ba");
        let words = shuffled("a b c d e f", Streams::new(1));
        let mut sorted: Vec<&str> = words.split(' ').collect();
        sorted.sort_unstable();
        assert_eq!(sorted, ["a", "b", "c", "d", "e", "f"]);
        assert_ne!(words, "a b c d e f");
    }

    #[test]
    fn passages_are_spread_and_never_overlap() {
        let text: Vec<Token> = (0..10).collect();
        assert_eq!(passages(&text, 2, 3).unwrap(), [vec![0, 1, 2], vec![5, 6, 7]]);
        assert!(passages(&text, 4, 3).is_err() && passages(&text, 0, 3).is_err());
    }

    /// Means above log 2 of losses 1 and 3: 2 - log 2; their standard error is 1.
    #[test]
    fn above_the_entropy() {
        let [value, error] = above(&[vec![1.0], vec![3.0]], 2);
        assert!((value - (2.0 - 2f64.ln())).abs() < 1e-12 && (error - 1.0).abs() < 1e-12);
    }

    /// A network taught for a few steps reads the same with no step as with one of size 0, and otherwise with one.
    #[test]
    fn the_toy_reads() {
        let params = taught(2, 1).unwrap();
        let mut model = toy_model(&params, 1).unwrap();
        let text = ALPHABET.encode("it is a truth universally acknowledged that ").unwrap();
        let mut read = |config: HiddenConfig| {
            model.configure(config).unwrap();
            Losses::read(&model, &text, 8).unwrap()
        };
        let still = read(config(0.0, 16, 0, false));
        let zero = read(HiddenConfig { steps: 1, ..config(0.0, 16, 0, false) });
        let moved = read(config(0.01, 16, 0, false));
        assert_eq!((still.recorded.concat().len(), &still.recorded), (text.len() - 1, &zero.recorded));
        assert_eq!(still.recorded[0], moved.recorded[0]);
        assert_ne!(still.mean(), moved.mean());
        assert!(moved.after.is_empty() && still.windows().len() == 6);
    }
}
