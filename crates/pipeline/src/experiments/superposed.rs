//! Superposed decoding: what one pass a token for several drafts costs in quality, with and without tables of n-grams,
//! against samples of as many passes; on a toy whose truth is known and on a real model.

use pilotfish_decoding::superposed::{
    NGrams, Passes, Superposed, SuperposedConfig, superposed, superposed_with,
};
use pilotfish_decoding::{Decoder, Generation, GreedyTree, Limits, Nothing, SampleAndMatch};
use pilotfish_evaluation::{PairedConfig, compare, texts};
use pilotfish_model::sampling::Warpers;
use pilotfish_model::toy::{LinearModel, TableModel};
use pilotfish_model::{CausalModel, Ledger, LogitForm, Logits, Phase, Step, Streams, Token, TokenTree};
use pilotfish_runtime::Products;
use serde::{Deserialize, Serialize};

use super::judging::log_prob;
use super::page::{self, Began, Page, mean};
use super::session::{self, Session};
use super::toys;
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const SUPERPOSED: Experiment = Experiment {
    name: "superposed",
    about: "superposed decoding against samples of as many passes, with and without tables of n-grams",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice { name: "drafts", default: "3", about: "drafts, at most 10" },
        Choice { name: "tokens", default: "10", about: "new tokens of each" },
        Choice { name: "prefix", default: "15", about: "tokens before them" },
        Choice { name: "prefixes", default: "60", about: "prefixes for the real model; 0 leaves it out" },
        Choice { name: "tuning", default: "20", about: "prefixes that alpha and tau are chosen on" },
        Choice { name: "alphas", default: "0.1,0.3,0.54", about: "weights of the tables that are tried" },
        Choice { name: "taus", default: "0.06,0.3,1", about: "temperatures that are tried" },
        Choice { name: "cosines", default: "20", about: "prefixes for the angle to a true superposition" },
        Choice { name: "worlds", default: "20", about: "toy worlds" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Drafts of one method after one prefix.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Drafts {
    /// Best first.
    tokens: Vec<Vec<Token>>,
    /// What the judge loses a token in each, in nats.
    nats: Vec<f64>,
    /// Passes and rows of the model.
    passes: u64,
    rows: u64,
    /// Seconds of the model after the prompt, and of look-ups.
    seconds: [f64; 2],
}

impl Drafts {
    fn best(&self) -> f64 {
        self.nats.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn new(tokens: Vec<Vec<Token>>, ledger: &Ledger) -> Self {
        let seconds = [ledger.time(Phase::Target), ledger.time(Phase::Draft)];
        let (passes, rows) = (ledger.target_forwards, ledger.target_rows);
        Self { tokens, nats: Vec::new(), passes, rows, seconds }
    }
}

impl From<Superposed> for Drafts {
    fn from(out: Superposed) -> Self {
        let tokens = out.drafts.into_iter().map(|draft| draft.tokens).collect();
        Self::new(tokens, &out.ledger)
    }
}

/// Samples one after the other.
fn samples(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    count: usize,
    warpers: Warpers,
    tokens: usize,
    streams: Streams,
) -> Result<Drafts, Failure> {
    let sampler = warpers.check()?;
    let limits = Limits { new_tokens: tokens, ..Limits::default() };
    let (mut all, mut ledger) = (Vec::new(), Ledger::default());
    for index in 0..count {
        let mut greedy = GreedyTree;
        let mut matching = SampleAndMatch::new(sampler, streams.fork(index as u64));
        let mut nothing = Nothing;
        let mut decoder = match sampler.is_greedy() {
            true => Decoder::new(model, &mut nothing, &mut greedy, limits.clone())?,
            false => Decoder::new(model, &mut nothing, &mut matching, limits.clone())?,
        };
        let Generation { tokens, ledger: one, .. } = decoder.generate(prompt)?;
        ledger.add(&one);
        all.push(tokens);
    }
    Ok(Drafts::new(all, &ledger))
}

const NUCLEUS: Warpers =
    Warpers { temperature: 0.6, top_k: None, top_p: Some(0.9), min_p: None, repetition_penalty: 1.0 };

// The toy.

/// One world: the mean loss a token under the true source, over prefixes, of the first draft, of all, and of the best;
/// by method, and the rows that the model read for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct World {
    losses: Vec<[f64; 3]>,
    rows: Vec<f64>,
}

const TOY: [&str; 5] = [
    "superposed, no tables",
    "superposed, tables",
    "a row a draft, no tables (beam search)",
    "a row a draft, tables",
    "nucleus samples",
];

fn world(drafts: usize, tokens: usize, streams: Streams) -> Result<World, Failure> {
    const VOCAB: usize = 20;
    let source = TableModel::random(3, VOCAB, 8.0, &mut streams.stream("source"))?;
    let corpus = toys::text(&source, 100_000, &mut streams.stream("corpus"));
    let tables = NGrams::build(5, [corpus.as_slice()])?;
    let mut model = LinearModel::of(&TableModel::count(1, VOCAB, &corpus, 0.5)?, 1e-9)?;
    let prefixes = toys::text(&source, 40 * 8, &mut streams.stream("prefixes"));
    let config = SuperposedConfig {
        drafts,
        tokens,
        candidates: (3 * drafts).min(VOCAB),
        temperature: 1.0,
        ..SuperposedConfig::default()
    };
    let separate = SuperposedConfig { passes: Passes::Separate, ..config.clone() };
    let (mut losses, mut rows) = (vec![[0.0; 3]; TOY.len()], vec![0.0; TOY.len()]);
    for (index, prefix) in prefixes.chunks_exact(8).enumerate() {
        let all = [
            superposed(&mut model, prefix, None, &config)?.into(),
            superposed(&mut model, prefix, Some(&tables), &config)?.into(),
            superposed(&mut model, prefix, None, &separate)?.into(),
            superposed(&mut model, prefix, Some(&tables), &separate)?.into(),
            samples(&mut model, prefix, drafts, NUCLEUS, tokens, streams.fork(index as u64))?,
        ];
        for (method, found) in all.into_iter().enumerate() {
            let found: Drafts = found;
            let loss = |draft: &Vec<Token>| {
                let p = source.text_probability(prefix, draft).max(f64::MIN_POSITIVE);
                -p.ln() / draft.len() as f64
            };
            let each: Vec<f64> = found.tokens.iter().map(loss).collect();
            let best = each.iter().copied().fold(f64::INFINITY, f64::min);
            for (sum, value) in losses[method].iter_mut().zip([each[0], mean(&each), best]) {
                *sum += value / 40.0;
            }
            rows[method] += found.rows as f64;
        }
    }
    rows.iter_mut().for_each(|rows| *rows /= 40.0);
    Ok(World { losses, rows })
}

// The real model.

const METHODS: [&str; 6] = [
    "superposed, tables, tuned",
    "superposed, tables, the paper's numbers",
    "superposed, no tables",
    "a row a draft, tables, tuned",
    "nucleus samples",
    "greedy",
];

/// All methods after one prefix.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    methods: Vec<Drafts>,
    /// What the judge loses a token in the book's own continuation.
    reference: f64,
}

/// Logits after a prompt and after every token of some continuations, each as a branch of its own.
fn read(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    drafts: &[Vec<Token>],
) -> Result<(TokenTree, Logits), Failure> {
    let Some((&root, before)) = prompt.split_last() else { return Err("an empty prompt".into()) };
    model.truncate(0)?;
    if !before.is_empty() {
        model.step(&Step::chain(before).want(pilotfish_model::RowSet::None))?;
    }
    let mut tree = TokenTree::new(root);
    for draft in drafts {
        let mut node = 0;
        for &token in draft {
            node = tree.push(node, token)?;
        }
    }
    let answer = model.step(&Step::tree(tree.tokens(), &tree.parents(before.len())))?;
    model.truncate(0)?;
    Ok((tree, answer.logits))
}

/// What the model loses a token in each of some continuations.
fn judge(model: &mut dyn CausalModel, prompt: &[Token], drafts: &[Vec<Token>]) -> Result<Vec<f64>, Failure> {
    let (tree, logits) = read(model, prompt, drafts)?;
    let mut sums = vec![0.0; drafts.len()];
    let mut node = 1;
    for (sum, draft) in sums.iter_mut().zip(drafts) {
        for _ in draft {
            let row = logits.row(tree.parent(node).unwrap_or(0)).ok_or("no logits")?;
            *sum -= log_prob(row, tree.token(node)) / draft.len() as f64;
            node += 1;
        }
    }
    Ok(sums)
}

/// Cosines by pass between the logits of a superposition and the weighted sum of the drafts' own, as they are and with
/// each row's mean taken away.
fn cosines(
    model: &mut dyn CausalModel,
    prompt: &[Token],
    tables: &NGrams,
    config: &SuperposedConfig,
) -> Result<Vec<[f64; 2]>, Failure> {
    let mut passes = Vec::new();
    superposed_with(model, prompt, Some(tables), config, LogitForm::Full, |pass| {
        let drafts: Vec<Vec<Token>> = pass.drafts.iter().map(|draft| draft.tokens.clone()).collect();
        passes.push((drafts, pass.weights.to_vec(), pass.logits.row(0).unwrap_or(&[]).to_vec()));
    })?;
    let mut out = Vec::new();
    for (drafts, weights, row) in passes {
        let (tree, logits) = read(model, prompt, &drafts)?;
        let mut sum = vec![0.0f64; row.len()];
        let mut last = 0;
        for (draft, weight) in drafts.iter().zip(&weights) {
            last += draft.len();
            debug_assert_eq!(tree.depth(last), draft.len());
            let own = logits.row(last).ok_or("no logits")?;
            sum.iter_mut().zip(own).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let centred = |x: &[f64]| x.iter().map(|v| v - mean(x)).collect::<Vec<f64>>();
        out.push([cosine(&row, &sum), cosine(&centred(&row), &centred(&sum))]);
    }
    Ok(out)
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// What the real model gave.
struct Real {
    name: String,
    corpus: usize,
    tuned: (f64, f64),
    /// alpha, tau, loss of the best draft.
    grid: Vec<(f64, f64, f64)>,
    items: Vec<Item>,
    cosines: Vec<Vec<[f64; 2]>>,
    examples: Vec<[String; 4]>,
}

fn real(context: &Context, run: &mut Run, streams: Streams) -> Result<Real, Failure> {
    let options = context.options();
    let (drafts, tokens): (usize, usize) = (options.get("drafts")?, options.get("tokens")?);
    let prefix: usize = options.get("prefix")?;
    let (count, tuning): (usize, usize) = (options.get("prefixes")?, options.get("tuning")?);
    let mut session = Session::open_with(context, |load| load.products(Products::Pilotfish))?;
    let tokenizer = session.checkpoint.tokenizer()?;
    let (known, new) =
        (tokenizer.encode(texts::PERSUASION, false)?, tokenizer.encode(texts::NORTHANGER_ABBEY, false)?);
    // The tables are of nine tenths of one novel, the numbers are chosen on its last tenth, the results are of another.
    let (counted, held) = known.split_at(known.len() / 10 * 9);
    let tables = NGrams::build(5, [counted])?;
    let places = |text: &[Token], count: usize| -> Vec<(Vec<Token>, Vec<Token>)> {
        let apart = (text.len() - prefix - tokens) / count.max(1);
        (0..count)
            .map(|at| {
                let start = at * apart;
                let middle = start + prefix;
                (text[start..middle].to_vec(), text[middle..middle + tokens].to_vec())
            })
            .collect()
    };
    let paper = SuperposedConfig { drafts, tokens, candidates: 3 * drafts, ..SuperposedConfig::default() };
    let mut grid = Vec::new();
    for alpha in options.list::<f64>("alphas")? {
        for temperature in options.list::<f64>("taus")? {
            let config = SuperposedConfig { alpha, temperature, ..paper.clone() };
            let loss = run.step(&format!("real, alpha {alpha}, tau {temperature}"), || {
                let mut losses = Vec::new();
                for (prompt, _) in places(held, tuning) {
                    let mut found: Drafts =
                        superposed(&mut session.model, &prompt, Some(&tables), &config)?.into();
                    found.nats = judge(&mut session.model, &prompt, &found.tokens)?;
                    losses.push(found.best());
                }
                Ok::<_, Failure>(mean(&losses))
            })?;
            grid.push((alpha, temperature, loss));
        }
    }
    let best = grid.iter().min_by(|a, b| a.2.total_cmp(&b.2)).ok_or("--alphas and --taus are empty")?;
    let tuned = (best.0, best.1);
    let config = SuperposedConfig { alpha: tuned.0, temperature: tuned.1, ..paper.clone() };
    let separate = SuperposedConfig { passes: Passes::Separate, ..config.clone() };
    let greedy = Warpers { temperature: 0.0, top_p: None, ..NUCLEUS };
    let (mut items, mut examples) = (Vec::new(), Vec::new());
    let all = places(&new, count);
    for (index, (prompt, continuation)) in all.iter().enumerate() {
        let item = run.step(&format!("real, prefix {index}"), || {
            let model = &mut session.model;
            let streams = streams.fork(index as u64);
            let mut methods: Vec<Drafts> = vec![
                superposed(model, prompt, Some(&tables), &config)?.into(),
                superposed(model, prompt, Some(&tables), &paper)?.into(),
                superposed(model, prompt, None, &config)?.into(),
                superposed(model, prompt, Some(&tables), &separate)?.into(),
                samples(model, prompt, drafts, NUCLEUS, tokens, streams)?,
                samples(model, prompt, 1, greedy, tokens, streams)?,
            ];
            for found in &mut methods {
                found.nats = judge(model, prompt, &found.tokens)?;
            }
            let reference = judge(model, prompt, std::slice::from_ref(continuation))?;
            Ok::<_, Failure>(Item { methods, reference: mean(&reference) })
        })?;
        if index < 3 {
            let text = |tokens: &[Token]| session.decode(tokens);
            let line = |at: usize| -> Result<String, Failure> {
                let drafts = item.methods[at].tokens.iter().map(|draft| text(draft));
                Ok(drafts.collect::<Result<Vec<_>, _>>()?.join(" | ").replace('\n', " "))
            };
            examples.push([text(prompt)?.replace('\n', " "), line(0)?, line(2)?, line(4)?]);
        }
        items.push(item);
    }
    let mut angles = Vec::new();
    for (index, (prompt, _)) in all.iter().take(options.get("cosines")?).enumerate() {
        angles.push(run.step(&format!("real, angles {index}"), || {
            cosines(&mut session.model, prompt, &tables, &config)
        })?);
    }
    let name = session.model.info().name.clone();
    Ok(Real { name, corpus: counted.len(), tuned, grid, items, cosines: angles, examples })
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (drafts, tokens): (usize, usize) = (options.get("drafts")?, options.get("tokens")?);
    let (worlds, count): (usize, usize) = (options.get("worlds")?, options.get("prefixes")?);
    let (tuning, angles): (usize, usize) = (options.get("tuning")?, options.get("cosines")?);
    if !(1..=6).contains(&drafts) || !(2..=256).contains(&tokens) || worlds == 0 || tuning == 0 {
        return Err("--drafts from 1 to 6, --tokens from 2 to 256, --worlds and --tuning at least 1".into());
    }
    if !(1..=256).contains(&options.get::<usize>("prefix")?) || count > 1000 || tuning > 100 {
        return Err("--prefix from 1 to 256, --prefixes at most 1000, --tuning at most 100".into());
    }
    let grid = options.list::<f64>("alphas")?.len() * options.list::<f64>("taus")?.len();
    let seed: u64 = options.get("seed")?;
    let (began, streams) = (Began::now(), Streams::new(seed));
    let mut run =
        Run::open(context.results(), SUPERPOSED.name, options, context.fresh(), context.is_quiet())?;
    run.expect((worlds + if count > 0 { grid + count + angles.min(count) } else { 0 }) as u64);
    let mut toys = Vec::new();
    for at in 0..worlds {
        let streams = streams.fork(1000 + at as u64);
        toys.push(run.step(&format!("toy, world {at}"), || world(drafts, tokens, streams))?);
    }
    let real = if count > 0 { Some(real(context, &mut run, streams)?) } else { None };
    let mut page = Page {
        experiment: &SUPERPOSED,
        title: "Superposed decoding: several drafts from one pass a token".into(),
        summary: String::new(),
        seeds: vec![seed, PairedConfig::default().seed],
        rows: Vec::new(),
        tables: Vec::new(),
        plots: Vec::new(),
        notes: Vec::new(),
    };
    report_toy(&toys, &mut page);
    if let Some(real) = &real {
        report_real(real, &mut page)?;
    }
    page.write(context, &run, began)
}

/// A mean with half its 95 % interval.
fn interval(values: &[f64]) -> String {
    let (n, mean) = (values.len() as f64, mean(values));
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0).max(1.0);
    format!("{mean:.3} ± {:.3}", 1.96 * (variance / n).sqrt())
}

fn report_toy(toys: &[World], page: &mut Page) {
    let mut table = Table::new(
        format!("Toy: nats a token under the true source, mean over {} worlds and 95 % interval", toys.len()),
        &["method", "first draft", "all drafts", "best draft", "rows a prefix"],
    );
    let of = |method: usize, which: usize| -> Vec<f64> {
        toys.iter().map(|world| world.losses[method][which]).collect()
    };
    for (method, name) in TOY.iter().enumerate() {
        let rows: Vec<f64> = toys.iter().map(|world| world.rows[method]).collect();
        table.row([
            (*name).to_owned(),
            interval(&of(method, 0)),
            interval(&of(method, 1)),
            interval(&of(method, 2)),
            format!("{:.0}", mean(&rows)),
        ]);
    }
    page.summary = format!(
        "Toy, nats a token of all drafts under the true source: {:.2} superposed without tables, {:.2} with; a row a draft {:.2} and {:.2}; nucleus samples {:.2}.",
        mean(&of(0, 1)),
        mean(&of(1, 1)),
        mean(&of(2, 1)),
        mean(&of(3, 1)),
        mean(&of(4, 1)),
    );
    page.tables.push(table);
    page.rows.extend(toys.iter().map(|world| serde_json::json!({ "world": world })));
    page.notes.push("Toy: third-order sources over 20 tokens; the model knows the last token only (a first-order table counted from 100,000 tokens, linear in its input, so that a superposition is exact), the tables are counted from the same tokens.".into());
}

/// Shares of different n-grams among all of some drafts.
fn distinct(drafts: &[Vec<Token>], n: usize) -> f64 {
    let all: Vec<&[Token]> = drafts.iter().flat_map(|draft| draft.windows(n)).collect();
    let mut different = all.clone();
    different.sort_unstable();
    different.dedup();
    different.len() as f64 / all.len().max(1) as f64
}

fn report_real(real: &Real, page: &mut Page) -> Result<(), Failure> {
    let items = &real.items;
    let per = |method: usize, of: &dyn Fn(&Drafts) -> f64| -> Vec<f64> {
        items.iter().map(|item| of(&item.methods[method])).collect()
    };
    let mut table = Table::new(
        format!("{}: {} prefixes, nats a token by the model's own judgement", real.name, items.len()),
        &[
            "method",
            "drafts",
            "first draft",
            "all drafts",
            "best draft",
            "perplexity of the best",
            "passes",
            "rows",
        ],
    );
    for (method, name) in METHODS.iter().enumerate() {
        let best = per(method, &Drafts::best);
        table.row([
            (*name).to_owned(),
            format!("{:.0}", mean(&per(method, &|d| d.tokens.len() as f64))),
            interval(&per(method, &|d| d.nats[0])),
            interval(&per(method, &|d| mean(&d.nats))),
            interval(&best),
            format!("{:.2}", mean(&best).exp()),
            format!("{:.1}", mean(&per(method, &|d| d.passes as f64))),
            format!("{:.1}", mean(&per(method, &|d| d.rows as f64))),
        ]);
    }
    let reference: Vec<f64> = items.iter().map(|item| item.reference).collect();
    table.row([
        "the book itself".into(),
        "1".into(),
        interval(&reference),
        String::new(),
        String::new(),
        format!("{:.2}", mean(&reference).exp()),
        String::new(),
        String::new(),
    ]);
    let mut ranks = Table::new(
        "Nats a token by rank of the draft; shares of different n-grams among the drafts; time",
        &["method", "1st", "2nd", "3rd", "unigrams", "bigrams", "trigrams", "ms a token", "look-ups"],
    );
    for (method, name) in METHODS.iter().enumerate() {
        let rank = |at: usize| {
            let all: Vec<f64> =
                items.iter().filter_map(|item| item.methods[method].nats.get(at).copied()).collect();
            if all.is_empty() { "-".into() } else { format!("{:.3}", mean(&all)) }
        };
        let share = |n: usize| format!("{:.3}", mean(&per(method, &|d| distinct(&d.tokens, n))));
        let [model, tables] = [0, 1].map(|at| per(method, &|d| d.seconds[at]).iter().sum::<f64>());
        let all: f64 = per(method, &|d| d.tokens.iter().map(Vec::len).sum::<usize>() as f64).iter().sum();
        ranks.row([
            (*name).to_owned(),
            rank(0),
            rank(1),
            rank(2),
            share(1),
            share(2),
            share(3),
            format!("{:.1}", 1e3 * (model + tables) / all.max(1.0)),
            format!("{:.1} %", 100.0 * tables / (model + tables).max(f64::MIN_POSITIVE)),
        ]);
    }
    let mut paired = Table::new(
        "Paired differences in nats a token; below 0 the first is better",
        &["first", "second", "passes", "difference [95 %]"],
    );
    let nucleus_one: Vec<f64> = per(4, &|d| d.nats[0]);
    let nucleus_best: Vec<f64> = per(4, &Drafts::best);
    // What, its values, against what, its values, passes.
    type Pair<'a> = (&'a str, Vec<f64>, &'a str, &'a [f64], &'a str);
    let pairs: [Pair<'_>; 5] = [
        ("best superposed draft", per(0, &Drafts::best), "one nucleus sample", &nucleus_one, "as many"),
        ("all superposed drafts", per(0, &|d| mean(&d.nats)), "one nucleus sample", &nucleus_one, "as many"),
        ("best superposed draft", per(0, &Drafts::best), "best nucleus sample", &nucleus_best, "a third"),
        (
            "best draft of a row a draft",
            per(3, &Drafts::best),
            "best superposed draft",
            &per(0, &Drafts::best),
            "as many, wider",
        ),
        (
            "best superposed draft, no tables",
            per(2, &Drafts::best),
            "with tables",
            &per(0, &Drafts::best),
            "as many",
        ),
    ];
    let mut main = Vec::new();
    for (a, left, b, right, passes) in &pairs {
        let found = compare(left, right, &PairedConfig::default())?;
        let text = page::difference(&found.difference);
        main.push(text.clone());
        paired.row([(*a).to_owned(), (*b).to_owned(), (*passes).to_owned(), text]);
    }
    let mut grid = Table::new(
        "Choosing alpha and tau: nats a token of the best draft, on other prefixes",
        &["alpha", "tau", "nats"],
    );
    for (alpha, tau, loss) in &real.grid {
        grid.row([alpha.to_string(), tau.to_string(), format!("{loss:.3}")]);
        if (*alpha, *tau) == real.tuned {
            grid.set_off();
        }
    }
    let mut examples = Table::new("The first prefixes", &["prefix", METHODS[0], METHODS[2], METHODS[4]]);
    real.examples.iter().for_each(|row| examples.row(row.clone()));
    page.tables.extend([table, ranks, paired, grid, examples]);
    let angle = |pass: usize, which: usize| -> Vec<f64> {
        real.cosines.iter().filter_map(|passes| Some(passes.get(pass)?[which])).collect()
    };
    let passes = real.cosines.iter().map(Vec::len).max().unwrap_or(0);
    let series = |name: &str, which: usize| Series {
        name: name.into(),
        points: (0..passes)
            .map(|pass| Point { x: pass as f64 + 1.0, y: mean(&angle(pass, which)), interval: None })
            .collect(),
    };
    page.plots.push(page::lines(
        "Is a superposition that of the drafts?",
        "tokens superposed so far",
        "cosine to the weighted sum of the drafts' own logits",
        vec![series("logits", 0), series("logits without their mean", 1)],
    ));
    let by_rank = |method: usize, name: &str| Series {
        name: name.into(),
        points: (0..items.first().map_or(0, |item| item.methods[method].nats.len()))
            .map(|at| {
                let all: Vec<f64> =
                    items.iter().filter_map(|item| item.methods[method].nats.get(at).copied()).collect();
                Point { x: at as f64 + 1.0, y: mean(&all), interval: None }
            })
            .collect(),
    };
    page.plots.push(page::lines(
        "Loss by rank of the draft",
        "rank",
        "nats a token",
        [0, 2, 3, 4].map(|method| by_rank(method, METHODS[method])).into(),
    ));
    page.summary.push_str(&format!(
        " {}: best of {} superposed drafts against one nucleus sample, at as many passes, {} nats a token; against the best of as many samples, at a third of the passes, {}. Without tables the best draft is off by {}; a row a draft changes it by {}.",
        real.name,
        items.first().map_or(0, |item| item.methods[0].tokens.len()),
        main[0],
        main[2],
        main[4],
        main[3],
    ));
    if passes > 1 {
        page.summary.push_str(&format!(
            " The cosine to a true superposition falls from {:.2} after one token to {:.2} after {passes}.",
            mean(&angle(0, 0)),
            mean(&angle(passes - 1, 0)),
        ));
    }
    page.rows.extend(items.iter().map(|item| serde_json::json!({ "item": item })));
    page.rows.push(serde_json::json!({ "grid": real.grid, "cosines": real.cosines }));
    page.notes.extend([
        format!("Tables of contexts of 1 to 5 tokens from {} tokens of Persuasion, alpha {} and tau {} chosen on its last tenth, prefixes from Northanger Abbey: one author, two books. The paper's tables are of 200 million tokens.", real.corpus, real.tuned.0, real.tuned.1),
        "The judge is the model itself at temperature 1, so that likelier texts win whether or not they are better; nucleus samples are drawn at temperature 0.6 and top-p 0.9, as in the paper.".into(),
        "Passes and rows count the prompt's; times are of whatever else the machine was doing.".into(),
    ]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_by_hand() {
        let table = TableModel::new(1, 2, vec![0.25, 0.75, 0.5, 0.5]).unwrap();
        let mut model = table.clone();
        let nats = judge(&mut model, &[1, 0], &[vec![1, 0], vec![0]]).unwrap();
        for (got, want) in nats.iter().zip([(-(0.75f64.ln()) - 0.5f64.ln()) / 2.0, -(0.25f64.ln())]) {
            assert!((got - want).abs() < 1e-6, "{nats:?}");
        }
        assert_eq!(distinct(&[vec![1, 2, 1], vec![1, 2]], 2), 2.0 / 3.0);
        assert_eq!(distinct(&[vec![1, 2, 1], vec![1, 2]], 1), 2.0 / 5.0);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_world_is_what_it_should_be() {
        let found = world(2, 4, Streams::new(3)).unwrap();
        // Eight tokens of prompt and three more rows; twice as many where each draft has its own.
        assert_eq!(found.rows[..4], [11.0, 11.0, 14.0, 14.0]);
        assert!(found.losses.iter().all(|[_, all, best]| best <= all && *best > 0.0));
        // Tables of the source know more than the model does.
        assert!(found.losses[1][1] < found.losses[0][1]);
    }
}
