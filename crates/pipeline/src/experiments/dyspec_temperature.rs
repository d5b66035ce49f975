//! DySpec: trees that grow where the draft expects most, against fixed shapes of as many nodes, for a greedy and for
//! sampling targets; and whether the draft's probability says how often a token is accepted.

use pilotfish_decoding::drafters::{DraftModel, DySpec, DySpecConfig, Growth, Pick, Rsd, Shape, Template};
use pilotfish_decoding::{Ask, Draft, Drafter, Drawn, Limits, Needs, Outcome as Seen, Start, lossless};
use pilotfish_evaluation::texts;
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{CausalModel, Ledger, ModelInfo, StreamRng, Streams, Token};
use pilotfish_runtime::{OnnxCausal, Products};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Gamma};
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page};
use super::session::{self, Session};
use super::toys::{self, Cell};
use super::{Choice, Context, Experiment, Outcome, width_cost};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const DYSPEC_TEMPERATURE: Experiment = Experiment {
    name: "dyspec-temperature",
    about: "DySpec against chains and fixed trees of as many nodes, greedy and sampled; calibration of the draft",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice { name: "draft", default: "3:4", about: "how the matrices of the drafting copy are stored" },
        Choice { name: "vocab", default: "32", about: "tokens of the toy target" },
        Choice { name: "noise", default: "2", about: "how far the toy draft's logits are off, at most" },
        Choice { name: "texts", default: "30", about: "toy texts" },
        Choice { name: "tokens", default: "128", about: "new tokens of a toy text" },
        Choice { name: "budgets", default: "8,16,32,64", about: "nodes of the toy's drafts" },
        Choice { name: "temperatures", default: "0,0.6,1", about: "of the target" },
        Choice { name: "draft-temperature", default: "0.6", about: "of the draft" },
        Choice { name: "passages", default: "8", about: "passages for the real model; 0 leaves it out" },
        Choice { name: "real-tokens", default: "48", about: "new tokens of a passage" },
        Choice { name: "real-budgets", default: "4,8,16", about: "nodes of the real drafts" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Bins of draft probabilities.
const BINS: usize = 10;

/// What was seen of children that were tested.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Tested {
    /// Nodes that verification reached and that had children.
    reached: u64,
    /// Of these, how often the child of each rank was kept.
    kept: Vec<u64>,
    /// By draft probability, given the earlier siblings: tested, kept.
    bins: [[u64; 2]; BINS],
}

/// A drafter under observation.
struct Watched {
    inner: Box<dyn Drafter>,
    tested: Tested,
}

impl Drafter for Watched {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn drawn(&self) -> Drawn {
        self.inner.drawn()
    }

    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn fits(&self, target: &ModelInfo) -> pilotfish_decoding::Result<()> {
        self.inner.fits(target)
    }

    fn start(&mut self, start: &Start<'_>) -> pilotfish_decoding::Result<()> {
        self.inner.start(start)
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> pilotfish_decoding::Result<Draft> {
        self.inner.propose(ask)
    }

    fn observe(&mut self, seen: &Seen<'_>) -> pilotfish_decoding::Result<()> {
        // A text's end may cut away what came of a draft.
        if seen.finish.is_none() {
            let tree = seen.draft.tree();
            let mut node = 0;
            for next in seen.path.iter().copied().map(Some).chain([None]) {
                let mut left = 1.0;
                let mut any = false;
                for (rank, child) in tree.children(node).enumerate() {
                    any = true;
                    let kept = next == Some(child);
                    if let Some(law) = seen.draft.law(node) {
                        let share = law.prob(tree.token(child));
                        let bin = ((share / f64::max(left, 1e-9) * BINS as f64) as usize).min(BINS - 1);
                        left -= share;
                        self.tested.bins[bin][0] += 1;
                        self.tested.bins[bin][1] += u64::from(kept);
                    }
                    if kept {
                        if self.tested.kept.len() <= rank {
                            self.tested.kept.resize(rank + 1, 0);
                        }
                        self.tested.kept[rank] += 1;
                        break;
                    }
                }
                self.tested.reached += u64::from(any);
                node = next.unwrap_or(node);
            }
        }
        self.inner.observe(seen)
    }
}

/// A cell and what was seen in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Watch {
    cell: Cell,
    tested: Tested,
}

impl Watch {
    fn per_round(&self, of: impl Fn(&Ledger) -> u64) -> f64 {
        of(&self.cell.ledger) as f64 / self.cell.ledger.rounds.max(1) as f64
    }
}

/// Where drafts come from, and what decodes them.
#[derive(Clone)]
struct Ground<'a> {
    prompts: &'a [Vec<Token>],
    limits: Limits,
    sampler: Sampler,
    draft_sampler: Sampler,
    streams: Streams,
}

/// A way to draft.
#[derive(Clone, Debug)]
enum Way {
    Fixed(Shape),
    Grown(Growth, bool),
}

impl Ground<'_> {
    fn decode(
        &self,
        target: &mut dyn CausalModel,
        draft: Box<dyn CausalModel>,
        way: &Way,
        nodes: usize,
    ) -> Result<Watch, Failure> {
        let model = DraftModel::new(draft).with_sampler(self.draft_sampler);
        let inner: Box<dyn Drafter> = match way {
            Way::Fixed(shape) => Box::new(Rsd::new(model, shape.clone(), self.streams)?),
            &Way::Grown(growth, largest) => {
                let pick = if largest { Pick::Largest } else { Pick::sampled(self.streams) };
                Box::new(DySpec::new(model, DySpecConfig { nodes, growth }, pick)?)
            }
        };
        let mut drafter = Watched { inner, tested: Tested::default() };
        let mut verifier = lossless(self.sampler, drafter.drawn(), self.streams);
        let limits = Limits { draft: nodes.max(1), ..self.limits.clone() };
        let cell = toys::decode(target, &mut drafter, verifier.as_mut(), self.prompts, &limits)?;
        Ok(Watch { cell, tested: drafter.tested })
    }
}

/// The tree of so many nodes with the largest expected number of kept ones, if a child of rank `r` is kept with the
/// chance `kept[r] / reached` wherever it is: what Sequoia's trees are, as far as averages go.
fn optimum(tested: &Tested, nodes: usize) -> Result<Template, Failure> {
    let reached = tested.reached.max(1) as f64;
    let rates: Vec<f64> = tested.kept.iter().map(|&kept| kept as f64 / reached).collect();
    let mut open: Vec<(f64, Vec<u8>)> = rates.first().map(|&rate| (rate, vec![0])).into_iter().collect();
    let mut taken = Vec::new();
    while taken.len() < nodes {
        let best = open.iter().enumerate().max_by(|a, b| a.1.0.total_cmp(&b.1.0)).map(|(at, _)| at);
        let Some(best) = best else { break };
        let (value, path) = open.swap_remove(best);
        let rank = path.last().map_or(0, |&rank| usize::from(rank));
        // The next sibling, and the first child.
        if let Some(&rate) = rates.get(rank + 1)
            && rates[rank] > 0.0
        {
            let mut sibling = path.clone();
            sibling.pop();
            sibling.push((rank + 1) as u8);
            open.push((value / rates[rank] * rate, sibling));
        }
        let mut child = path.clone();
        child.push(0);
        open.push((value * rates[0], child));
        taken.push(path);
    }
    Ok(Template::new(&taken)?)
}

/// The first nodes of a tree in which every node has `k` children, level by level.
fn k_ary(k: usize, nodes: usize) -> Result<Template, Failure> {
    let (mut all, mut level): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (Vec::new(), vec![Vec::new()]);
    while all.len() < nodes {
        let longer = |path: &Vec<u8>| {
            let path = path.clone();
            (0..k).map(move |rank| path.iter().copied().chain([rank as u8]).collect::<Vec<u8>>())
        };
        level = level.iter().flat_map(longer).collect();
        all.extend(level.iter().take(nodes - all.len()).cloned());
    }
    Ok(Template::new(&all)?)
}

/// A first-order table whose rows are drawn from symmetric Dirichlet laws, one after the other of `alphas`.
fn dirichlet(vocab: usize, alphas: &[f64], rng: &mut StreamRng) -> Result<TableModel, Failure> {
    let mut table = Vec::with_capacity(vocab * vocab);
    for row in 0..vocab {
        let gamma = Gamma::new(alphas[row % alphas.len()], 1.0)?;
        table.extend((0..vocab).map(|_| gamma.sample(rng) + 1e-9));
    }
    Ok(TableModel::new(1, vocab, table)?)
}

/// Two tables whose rows are all one law, its tokens exchanged: target and draft are as sure of themselves everywhere.
fn alike(vocab: usize, noise: f64, rng: &mut StreamRng) -> Result<[TableModel; 2], Failure> {
    let gamma = Gamma::new(0.2, 1.0)?;
    let p: Vec<f64> = (0..vocab).map(|_| gamma.sample(rng) + 1e-9).collect();
    let q: Vec<f64> = p.iter().map(|p| p * (noise * rng.random_range(-1.0..=1.0f64)).exp()).collect();
    let (mut target, mut draft) = (Vec::new(), Vec::new());
    let mut order: Vec<usize> = (0..vocab).collect();
    for _ in 0..vocab {
        order.shuffle(rng);
        target.extend(order.iter().map(|&at| p[at]));
        draft.extend(order.iter().map(|&at| q[at]));
    }
    Ok([TableModel::new(1, vocab, target)?, TableModel::new(1, vocab, draft)?])
}

/// One line of a result.
struct Line {
    world: String,
    temperature: f64,
    nodes: usize,
    way: &'static str,
    watch: Watch,
}

const CHAIN: &str = "chain";
const CHAINS: &str = "4 chains";
const BEST: &str = "best k-ary tree";
const OPTIMUM: &str = "best fixed tree";
const GREEDY: &str = "DySpec greedy";
const THRESHOLD: &str = "DySpec threshold";
const LARGEST: &str = "DySpec greedy, largest";

fn toy(run: &mut Run, context: &Context, streams: Streams, lines: &mut Vec<Line>) -> Result<(), Failure> {
    let options = context.options();
    let vocab: usize = options.get("vocab")?;
    let noise: f64 = options.get("noise")?;
    let (texts, tokens): (usize, usize) = (options.get("texts")?, options.get("tokens")?);
    let mut rng = streams.stream("worlds");
    let mixed = dirichlet(vocab, &[0.05, 1.0], &mut rng)?;
    let near = toys::noisy(&mixed, |_| noise, &mut rng)?;
    let [same, same_draft] = alike(vocab, noise, &mut rng)?;
    let prompts = toys::prompts(texts, 2, vocab, &mut streams.stream("prompts"));
    let others = toys::prompts(texts, 2, vocab, &mut streams.stream("held-out prompts"));
    let limits = Limits { new_tokens: tokens, ..Limits::default() };
    let draft_sampler = Warpers::temperature(options.get("draft-temperature")?).check()?;
    for (world, target, draft) in [("rows sure and unsure", mixed, near), ("rows alike", same, same_draft)] {
        for temperature in options.list::<f64>("temperatures")? {
            let sampler = Warpers::temperature(temperature).check()?;
            let ground =
                Ground { prompts: &prompts, limits: limits.clone(), sampler, draft_sampler, streams };
            let held = Ground { prompts: &others, streams: streams.fork(7), ..ground.clone() };
            let name = |what: &str| format!("{world}, temperature {temperature}, {what}");
            let decode = |ground: &Ground<'_>, way: &Way, nodes: usize| {
                ground.decode(&mut target.clone(), Box::new(draft.clone()), way, nodes)
            };
            let wide = Way::Fixed(Shape::Shaped(Template::wide(8, 6)?));
            let rates = run.step(&name("rates by rank"), || decode(&held, &wide, 1 << 12))?.tested;
            for nodes in options.list::<usize>("budgets")? {
                let mut one = |what: &str, way: Way| {
                    run.step(&name(&format!("{nodes} nodes, {what}")), || decode(&ground, &way, nodes))
                };
                let chains = (4.min(nodes), (nodes / 4).max(1));
                let fixed = |template: Template| Way::Fixed(Shape::Shaped(template));
                let mut found = vec![
                    (CHAIN, one(CHAIN, Way::Fixed(Shape::Constant(vec![1; nodes])))?),
                    (CHAINS, one(CHAINS, Way::Fixed(Shape::Paths { count: chains.0, depth: chains.1 }))?),
                ];
                let mut trees = Vec::new();
                for k in 2..=4 {
                    trees.push(one(&format!("{k}-ary tree"), fixed(k_ary(k, nodes)?))?);
                }
                trees.sort_by(|a, b| a.cell.mean().total_cmp(&b.cell.mean()));
                found.extend(trees.pop().map(|tree| (BEST, tree)));
                found.push((OPTIMUM, one(OPTIMUM, fixed(optimum(&rates, nodes)?))?));
                found.push((GREEDY, one(GREEDY, Way::Grown(Growth::Greedy, false))?));
                let threshold = Way::Grown(Growth::Threshold(1.0 / nodes as f64), false);
                found.push((THRESHOLD, one(THRESHOLD, threshold)?));
                found.push((LARGEST, one(LARGEST, Way::Grown(Growth::Greedy, true))?));
                lines.extend(found.into_iter().map(|(way, watch)| Line {
                    world: world.to_owned(),
                    temperature,
                    nodes,
                    way,
                    watch,
                }));
            }
        }
    }
    Ok(())
}

fn real(
    run: &mut Run,
    context: &Context,
    streams: Streams,
    lines: &mut Vec<Line>,
) -> Result<String, Failure> {
    let options = context.options();
    let passages: usize = options.get("passages")?;
    let mut session = Session::open_with(context, |load| load.products(Products::Pilotfish))?;
    let storage = width_cost::storage(options.text("draft")?)?;
    let load = session.load.clone().storage(storage);
    // Passages of the novel, far from each other, as long as those of the paper.
    let novel = session.checkpoint.tokenizer()?.encode(texts::NORTHANGER_ABBEY, false)?;
    let apart = novel.len() / (2 * passages + 2);
    let passage = |at: usize| novel[at * apart..][..128.min(apart)].to_vec();
    let prompts: Vec<Vec<Token>> = (0..passages).map(|at| passage(2 * at + 1)).collect();
    let others: Vec<Vec<Token>> = (0..passages.min(4)).map(|at| passage(2 * at + 2)).collect();
    let limits = Limits { new_tokens: options.get("real-tokens")?, ..Limits::default() };
    let draft_sampler = Warpers::temperature(options.get("draft-temperature")?).check()?;
    let mut copies = Vec::new();
    let name = session.model.info().name.clone();
    for temperature in [0.0, 0.6] {
        let sampler = Warpers::temperature(temperature).check()?;
        let ground = Ground { prompts: &prompts, limits: limits.clone(), sampler, draft_sampler, streams };
        let held = Ground { prompts: &others, streams: streams.fork(7), ..ground.clone() };
        let target = &mut session.model;
        let checkpoint = &session.checkpoint;
        // A draft model goes with its drafter; the next one is opened when a step needs it.
        let mut decode = |ground: &Ground<'_>, way: &Way, nodes: usize| -> Result<Watch, Failure> {
            let draft = OnnxCausal::from_checkpoint(checkpoint, &load)?;
            copies.push(draft.info().name.clone());
            ground.decode(target, Box::new(draft), way, nodes)
        };
        let step = |what: &str| format!("real, temperature {temperature}, {what}");
        let wide = Way::Fixed(Shape::Shaped(Template::wide(4, 4)?));
        let rates = run.step(&step("rates by rank"), || decode(&held, &wide, 1 << 12))?.tested;
        for nodes in options.list::<usize>("real-budgets")? {
            let threshold = Way::Grown(Growth::Threshold(1.0 / nodes as f64), false);
            for (way, how) in [
                (CHAIN, Way::Fixed(Shape::Constant(vec![1; nodes]))),
                (OPTIMUM, Way::Fixed(Shape::Shaped(optimum(&rates, nodes)?))),
                (GREEDY, Way::Grown(Growth::Greedy, false)),
                (THRESHOLD, threshold),
            ] {
                let watch =
                    run.step(&step(&format!("{nodes} nodes, {way}")), || decode(&ground, &how, nodes))?;
                lines.push(Line { world: name.clone(), temperature, nodes, way, watch });
            }
        }
    }
    Ok(name)
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let seed: u64 = options.get("seed")?;
    let budgets = options.list::<usize>("budgets")?;
    let real_budgets = options.list::<usize>("real-budgets")?;
    if budgets.iter().chain(&real_budgets).any(|nodes| !(1..=512).contains(nodes)) {
        return Err("--budgets and --real-budgets must be from 1 to 512".into());
    }
    if options.get::<usize>("texts")? == 0 || !(4..=4096).contains(&options.get::<usize>("vocab")?) {
        return Err("--texts must be at least 1, --vocab from 4 to 4096".into());
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let mut run =
        Run::open(context.results(), DYSPEC_TEMPERATURE.name, options, context.fresh(), context.is_quiet())?;
    let with_model = options.get::<usize>("passages")? > 0;
    let cells = 2 * options.list::<f64>("temperatures")?.len() * (1 + 9 * budgets.len());
    run.expect((cells + if with_model { 2 * (1 + 4 * real_budgets.len()) } else { 0 }) as u64);
    let mut lines = Vec::new();
    toy(&mut run, context, streams, &mut lines)?;
    let real = if with_model { Some(real(&mut run, context, streams, &mut lines)?) } else { None };
    report(context, &run, began, &lines, real.as_deref(), seed)
}

fn report(
    context: &Context,
    run: &Run,
    began: Began,
    lines: &[Line],
    real: Option<&str>,
    seed: u64,
) -> Outcome {
    let mut worlds: Vec<&str> = lines.iter().map(|line| line.world.as_str()).collect();
    worlds.dedup();
    let find = |world: &str, temperature: f64, nodes: usize, way: &str| {
        lines
            .iter()
            .find(|l| l.world == world && l.temperature == temperature && l.nodes == nodes && l.way == way)
    };
    let mut cases: Vec<(&str, f64, usize)> =
        lines.iter().map(|line| (line.world.as_str(), line.temperature, line.nodes)).collect();
    cases.dedup();
    let mut tables = Vec::new();
    for &world in &worlds {
        let mut ways: Vec<&str> = Vec::new();
        for line in lines.iter().filter(|line| line.world == world) {
            if !ways.contains(&line.way) {
                ways.push(line.way);
            }
        }
        let mut header = vec!["temperature", "nodes"];
        header.extend(ways.iter().copied());
        let mut table = Table::new(format!("Tokens a round, {world}"), &header);
        let mut sizes = Table::new(
            format!("Nodes drafted and draft passes a round, {world}"),
            &["temperature", "allowed", GREEDY, "its passes", THRESHOLD, "its passes"],
        );
        for &(_, temperature, nodes) in cases.iter().filter(|case| case.0 == world) {
            let mut row = vec![temperature.to_string(), nodes.to_string()];
            let text =
                |way: &&str| find(world, temperature, nodes, way).map_or("-".into(), |l| l.watch.cell.text());
            row.extend(ways.iter().map(text));
            table.row(row);
            let mut row = vec![temperature.to_string(), nodes.to_string()];
            for way in [GREEDY, THRESHOLD] {
                let watch = find(world, temperature, nodes, way).map(|line| &line.watch);
                let per =
                    |of: fn(&Ledger) -> u64| watch.map_or("-".into(), |w| format!("{:.1}", w.per_round(of)));
                row.extend([per(|ledger| ledger.drafted), per(|ledger| ledger.draft_forwards)]);
            }
            sizes.row(row);
        }
        tables.extend([table, sizes]);
    }
    let mut plots = Vec::new();
    for &world in &worlds {
        let mut temperatures: Vec<f64> =
            lines.iter().filter(|line| line.world == world).map(|line| line.temperature).collect();
        temperatures.dedup();
        for temperature in temperatures {
            let series = [CHAIN, CHAINS, BEST, OPTIMUM, GREEDY, THRESHOLD, LARGEST].map(|way| Series {
                name: way.into(),
                points: lines
                    .iter()
                    .filter(|l| l.world == world && l.temperature == temperature && l.way == way)
                    .map(|l| l.watch.cell.point(l.nodes as f64))
                    .collect(),
            });
            let series = series.into_iter().filter(|series| !series.points.is_empty()).collect();
            let title = format!("{world}, temperature {temperature}");
            plots.push(page::lines(&title, "nodes", "tokens a round", series));
        }
        let calibration = calibration(lines, world);
        plots.push(page::lines(
            &format!("Is the draft's probability that of being kept? {world}"),
            "draft probability, given the earlier siblings",
            "share kept",
            calibration,
        ));
    }
    let value = |world: &str, temperature: f64, nodes: usize, way: &str| {
        find(world, temperature, nodes, way).map_or(f64::NAN, |line| line.watch.cell.mean())
    };
    let mut summary = String::new();
    for &world in &worlds {
        let of_world = cases.iter().filter(|case| case.0 == world);
        let Some(most) = of_world.clone().map(|case| case.2).max() else { continue };
        let mut temperatures: Vec<f64> = of_world.map(|case| case.1).collect();
        temperatures.dedup();
        for temperature in temperatures {
            summary.push_str(&format!(
                "{}{world}, temperature {temperature}, {most} nodes: DySpec {:.2} tokens a round (threshold {:.2}), the best fixed tree {:.2}, a chain {:.2}.",
                if summary.is_empty() { "" } else { " " },
                value(world, temperature, most, GREEDY),
                value(world, temperature, most, THRESHOLD),
                value(world, temperature, most, OPTIMUM),
                value(world, temperature, most, CHAIN),
            ));
        }
    }
    let mut notes = vec![
        "Toys: first-order tables. In one, rows are drawn from Dirichlet laws of 0.05 and 1 in turn, so that the draft is sure after one token and not after the next; in the other all rows are one law with its tokens exchanged. The draft is the target with noise in its logits.".into(),
        "The best fixed tree is made of the average rates at which children of each rank are kept, counted on other texts; the best k-ary tree is the best of 2, 3 and 4 children on the texts themselves. Independent chains are verified by SpecInfer's rule, all others by recursive rejection; greedy targets by their argmax.".into(),
        format!("The draft's temperature is {} throughout, as in the paper; `largest` takes the draft's likeliest tokens instead of drawing, and is verified by sample-and-match.", context.options().text("draft-temperature").unwrap_or("")),
    ];
    if real.is_some() {
        notes.push(format!("The real target drafts for itself with a copy of its matrices stored as {}; the paper's pairs are models of different sizes, for which none with the same vocabulary is at hand. Passages of 128 tokens of Northanger Abbey are continued. Tokens are counted; times are not measured.", context.options().text("draft").unwrap_or("")));
    }
    let rows = lines
        .iter()
        .map(|line| {
            serde_json::json!({ "world": line.world, "temperature": line.temperature, "nodes": line.nodes, "method": line.way, "cell": line.watch.cell, "tested": line.watch.tested })
        })
        .collect();
    let page = Page {
        experiment: &DYSPEC_TEMPERATURE,
        title: "DySpec: dynamic trees at temperatures".into(),
        summary,
        seeds: vec![seed],
        rows,
        tables,
        plots,
        notes,
    };
    page.write(context, run, began)
}

/// By temperature, over all budgets of the greedy construction: how often children of each draft probability were kept.
fn calibration(lines: &[Line], world: &str) -> Vec<Series> {
    let mut temperatures: Vec<f64> =
        lines.iter().filter(|line| line.world == world).map(|line| line.temperature).collect();
    temperatures.dedup();
    let series = |temperature: f64| {
        let mut bins = [[0u64; 2]; BINS];
        for line in
            lines.iter().filter(|l| l.world == world && l.temperature == temperature && l.way == GREEDY)
        {
            for (sum, bin) in bins.iter_mut().zip(&line.watch.tested.bins) {
                sum[0] += bin[0];
                sum[1] += bin[1];
            }
        }
        let point = |(at, [tested, kept]): (usize, [u64; 2])| {
            // Too few say nothing.
            (tested >= 20).then(|| {
                let (n, y) = (tested as f64, kept as f64 / tested as f64);
                let error = 1.96 * (y * (1.0 - y) / n).sqrt();
                Point { x: (at as f64 + 0.5) / BINS as f64, y, interval: Some((y - error, y + error)) }
            })
        };
        let points = bins.into_iter().enumerate().filter_map(point).collect();
        Series { name: format!("temperature {temperature}"), points }
    };
    temperatures.into_iter().map(series).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_by_hand() {
        let paths = |template: &Template| template.paths().to_vec();
        assert_eq!(paths(&k_ary(2, 4).unwrap()), [vec![0], vec![1], vec![0, 0], vec![0, 1]]);
        assert_eq!(k_ary(3, 64).unwrap().len(), 64);
        // Rates .6 and .2: 0, 00, 000, 1 (.2) before 0000 (.1296), 01 and 10 (.12).
        let tested = Tested { reached: 10, kept: vec![6, 2], ..Tested::default() };
        let want = [vec![0], vec![1], vec![0, 0], vec![0, 0, 0]];
        assert_eq!(paths(&optimum(&tested, 4).unwrap()), want);
        assert_eq!(paths(&optimum(&tested, 5).unwrap())[4], [0, 0, 0, 0]);
        // Nothing was ever kept: no tree.
        assert!(optimum(&Tested::default(), 4).unwrap().is_empty());
    }

    #[test]
    fn rows_alike_are_alike() {
        let [target, draft] = alike(8, 2.0, &mut Streams::new(1).stream("test")).unwrap();
        let sorted = |table: &TableModel, row: Token| {
            let mut probs = table.next(&[row]).probs().to_vec();
            probs.sort_by(f64::total_cmp);
            probs
        };
        for row in 1..8 {
            for (a, b) in sorted(&target, 0).iter().zip(sorted(&target, row)) {
                assert!((a - b).abs() < 1e-12);
            }
            let apart = |row| target.next(&[row]).total_variation(&draft.next(&[row]));
            assert!((apart(0) - apart(row)).abs() < 1e-12);
        }
    }
}
