//! SpecDec++: discarded drafts against verifications, for fixed lengths, plain confidence rules and a trained head.

use pilotfish_decoding::drafters::acceptance::{calibrated, examples};
use pilotfish_decoding::drafters::{
    AcceptanceHead, ChainDrafter, DraftModel, HeadShape, HeadTraining, Pick, Stop, Stopping,
};
use pilotfish_decoding::{Limits, SpeculativeChain};
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{
    Capabilities, CausalModel, Input, ModelInfo, Step, StepOutput, Steps, Streams, Tap, TapRows, Token,
};
use rand::Rng;

use super::page::{self, Began, Page};
use super::toys::{self, Cell};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const SPECDEC_THRESHOLD: Experiment = Experiment {
    name: "specdec-threshold",
    about: "SpecDec++'s trained threshold against fixed lengths and confidence rules where acceptance comes in spells",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "vocab", default: "32", about: "tokens, half of them easy, half hard" },
        Choice { name: "spell", default: "12", about: "mean length of a spell of easy or hard tokens" },
        Choice {
            name: "noise",
            default: "3",
            about: "how far the draft's logits are off on hard tokens, at most",
        },
        Choice { name: "texts", default: "20", about: "texts to decode" },
        Choice { name: "tokens", default: "256", about: "new tokens a text" },
        Choice {
            name: "training",
            default: "6000",
            about: "tokens of the target's text that the head learns from",
        },
        Choice { name: "weight", default: "6", about: "weight of rejections" },
        Choice { name: "costs", default: "0.05,0.1,0.2", about: "cost of a draft token in target steps" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// A table with hidden states: noise, and which kind of token the row is.
#[derive(Clone)]
struct Stateful {
    table: TableModel,
    info: ModelInfo,
    states: Vec<Vec<f32>>,
}

impl Stateful {
    fn new(table: TableModel, streams: Streams) -> Self {
        const WIDTH: usize = 16;
        let info = table.info();
        let capabilities = Capabilities { taps: vec![Tap::FinalNormed], ..info.capabilities.clone() };
        let info = ModelInfo { width: WIDTH, capabilities, ..info.clone() };
        let mut rng = streams.stream("states");
        // A direction each for easy and hard under noise that is the token's own.
        let state = |token: usize| {
            let hard = 2 * token >= info.vocab;
            (0..WIDTH)
                .map(|i| rng.random_range(-0.5..=0.5) + if (i % 2 == 0) == hard { 0.5 } else { -0.5 })
                .collect()
        };
        let states = (0..info.vocab).map(state).collect();
        Self { table, info, states }
    }
}

impl Steps for Stateful {
    fn len(&self) -> usize {
        self.table.len()
    }

    fn step(&mut self, step: &Step<'_>) -> pilotfish_model::Result<StepOutput> {
        let mut answer = self.table.step(&step.taps(&[]))?;
        if let (Input::Ids(ids), [tap]) = (step.input, step.taps) {
            let values = ids.iter().flat_map(|&id| self.states[id as usize].iter().copied()).collect();
            answer.taps = vec![TapRows { tap: *tap, width: self.info.width, values }];
        }
        Ok(answer)
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> pilotfish_model::Result<()> {
        self.table.keep(from, rows)
    }

    fn truncate(&mut self, len: usize) -> pilotfish_model::Result<()> {
        self.table.truncate(len)
    }
}

impl CausalModel for Stateful {
    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

/// Easy tokens are the first half; a text stays among its kind for a spell.
fn world(vocab: usize, spell: f64, streams: Streams) -> Result<TableModel, Failure> {
    let laws = toys::rows(vocab, &[4.0], &mut streams.stream("target"))?;
    let mut table = Vec::with_capacity(vocab * vocab);
    for row in 0..vocab {
        let law = laws.next(&[row as Token]);
        let same = |token: usize| (2 * token >= vocab) == (2 * row >= vocab);
        let inside: f64 = (0..vocab).filter(|&token| same(token)).map(|token| law.prob(token as Token)).sum();
        table.extend((0..vocab).map(|token| {
            let p = law.prob(token as Token);
            if same(token) { p / inside * (1.0 - 1.0 / spell) } else { p / (1.0 - inside) / spell }
        }));
    }
    Ok(TableModel::new(1, vocab, table)?)
}

/// Verifications a token, and discarded tokens a token.
fn rates(cell: &Cell) -> (f64, f64) {
    let n = cell.ledger.emitted as f64;
    (cell.ledger.rounds as f64 / n, (cell.ledger.drafted - cell.ledger.accepted) as f64 / n)
}

/// Tokens a target step's time, with a draft token at `c` of it: the time is `c` a drafted token and 1 a round.
fn speed(cell: &Cell, c: f64) -> f64 {
    cell.ledger.emitted as f64 / (cell.ledger.rounds as f64 + c * cell.ledger.drafted as f64)
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (vocab, texts): (usize, usize) = (options.get("vocab")?, options.get("texts")?);
    let (spell, noise): (f64, f64) = (options.get("spell")?, options.get("noise")?);
    let (weight, training): (f64, usize) = (options.get("weight")?, options.get("training")?);
    let costs = options.list::<f64>("costs")?;
    let seed: u64 = options.get("seed")?;
    if texts == 0 || vocab < 4 || training == 0 || !(spell > 1.0) || !(0.0..100.0).contains(&noise) {
        return Err(
            "--texts and --training at least 1, --vocab at least 4, --spell above 1, --noise from 0 to 100"
                .into(),
        );
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let target = world(vocab, spell, streams)?;
    let hard = |row: usize| if 2 * row >= vocab { noise } else { 0.1 };
    let draft = Stateful::new(toys::noisy(&target, hard, &mut streams.stream("draft table"))?, streams);
    let prompts = toys::prompts(texts, 2, vocab, &mut streams.stream("prompts"));
    let limits = Limits { new_tokens: options.get("tokens")?, ..Limits::default() };
    let sampler: Sampler = Warpers::temperature(1.0).check()?;
    let mut run =
        Run::open(context.results(), SPECDEC_THRESHOLD.name, options, context.fresh(), context.is_quiet())?;
    let thresholds = [0.1, 0.3, 0.5, 0.7, 0.9];
    let mut rules: Vec<(&str, String, Stop)> =
        (1..=20).map(|k| ("fixed", k.to_string(), Stop::Fixed(k))).collect();
    rules.extend(
        [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6].map(|t| ("confidence", t.to_string(), Stop::Confidence(t))),
    );
    rules.extend(
        [0.001, 0.01, 0.05, 0.1, 0.2, 0.4].map(|t| ("cumulative", t.to_string(), Stop::Cumulative(t))),
    );
    rules.push(("heuristic", String::new(), Stop::Heuristic));
    run.expect((rules.len() + thresholds.len() + 2) as u64);

    // Texts for training are not those that are decoded.
    let shape = HeadShape { width: draft.info().width, depth: 1, tied: true };
    let mut drawn = Vec::new();
    let mut rng = streams.stream("training");
    for _ in 0..training.div_ceil(500) {
        let text = toys::text(&target, 500.min(training) + 1, &mut rng);
        let (prompt, response) = text.split_at(1);
        drawn.extend(examples(
            &mut target.clone(),
            &mut draft.clone(),
            prompt,
            response,
            &sampler,
            0.15,
            &mut rng,
        )?);
    }
    let (held, learnt) = drawn.split_at(drawn.len() / 5);
    let folder = run.folder().join("head.state");
    let losses = run.step("train the head", || {
        let mut head = AcceptanceHead::random(shape, &mut streams.stream("head"))?;
        let config = HeadTraining { weight, rate: 3e-3, epochs: 10, ..HeadTraining::default() };
        let losses = head.train(learnt, &config)?;
        head.save(&folder)?;
        Ok::<_, Failure>(losses)
    })?;
    let head = AcceptanceHead::load(&folder)?;
    rules.extend(thresholds.map(|threshold| {
        ("SpecDec++", threshold.to_string(), Stop::Head { head: Box::new(head.clone()), threshold })
    }));
    let mut rows: Vec<(&str, String, Cell)> = Vec::new();
    for (name, number, rule) in rules {
        let min = if name == "SpecDec++" { 2 } else { 1 };
        let cell = run.step(&format!("{name} {number}"), || {
            let stopping = Stopping { rule: rule.clone(), min, max: 20 };
            let model = DraftModel::new(Box::new(draft.clone()));
            let mut drafter = ChainDrafter::new(model, stopping, Pick::sampled(streams))?;
            let mut verifier = SpeculativeChain::new(sampler, streams);
            toys::decode(&mut target.clone(), &mut drafter, &mut verifier, &prompts, &limits)
        })?;
        rows.push((name, number, cell));
    }

    let names = ["fixed", "confidence", "cumulative", "heuristic", "SpecDec++"];
    let best = |name: &str, c: f64| {
        rows.iter().filter(|row| row.0 == name).max_by(|a, b| speed(&a.2, c).total_cmp(&speed(&b.2, c)))
    };
    let mut bests = Table::new(
        "Best speed of each rule over plain decoding, at simulated costs of a draft token (setting)",
        &["cost", "fixed", "confidence", "cumulative", "heuristic", "SpecDec++"],
    );
    for &c in &costs {
        let cells = names.map(|name| {
            best(name, c).map_or(String::new(), |row| format!("{:.2}x ({})", speed(&row.2, c), row.1))
        });
        bests.row(std::iter::once(c.to_string()).chain(cells));
    }
    let mut all =
        Table::new("Every setting", &["rule", "setting", "verifications a token", "discarded a token"]);
    for (name, number, cell) in &rows {
        let (verified, discarded) = rates(cell);
        all.row([(*name).to_owned(), number.clone(), format!("{verified:.3}"), format!("{discarded:.3}")]);
    }
    let frontier = names.map(|name| {
        let mut points: Vec<Point> = rows
            .iter()
            .filter(|row| row.0 == name)
            .map(|row| {
                let (x, y) = rates(&row.2);
                Point { x, y, interval: None }
            })
            .collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { name: name.into(), points }
    });
    // Calibration of the head on what it was not trained on.
    let mut bins = [(0.0, 0.0, 0.0, 0.0); 10];
    for example in held {
        let raw = head.acceptance(&example.state);
        let bin = &mut bins[((raw * 10.0) as usize).min(9)];
        *bin = (bin.0 + 1.0, bin.1 + raw, bin.2 + calibrated(raw, weight), bin.3 + example.label);
    }
    let curve = |name: &str, of: fn(&(f64, f64, f64, f64)) -> f64| Series {
        name: name.into(),
        points: bins
            .iter()
            .filter(|bin| bin.0 >= 20.0)
            .map(|bin| Point { x: of(bin) / bin.0, y: bin.3 / bin.0, interval: None })
            .collect(),
    };
    let plots = vec![
        page::lines(
            "Discarded tokens against verifications: lower left is better",
            "verifications a token",
            "discarded a token",
            frontier.into(),
        ),
        page::lines(
            "Calibration of the head on held-out tokens",
            "predicted acceptance",
            "mean label",
            vec![curve("raw", |bin| bin.1), curve("inverted", |bin| bin.2)],
        ),
    ];
    let middle = costs.get(costs.len() / 2).copied().unwrap_or(0.1);
    let of = |name: &str| best(name, middle).map_or(0.0, |row| speed(&row.2, middle));
    let summary = format!(
        "At a simulated cost of {middle} target steps a draft token, the best fixed length gives {:.2}x, the best confidence \
         rule {:.2}x, the best cumulative rule {:.2}x and SpecDec++ {:.2}x.",
        of("fixed"),
        of("confidence"),
        of("cumulative"),
        of("SpecDec++"),
    );
    let json = rows
        .iter()
        .map(|(name, number, cell)| serde_json::json!({ "rule": name, "setting": number, "cell": cell }))
        .collect();
    let notes = vec![
        format!("World: first-order tables over {vocab} tokens; half of them are easy (the draft is nearly the target) and half hard; spells last {spell} tokens on average. The draft's hidden state tells the kinds apart under noise."),
        format!("Head: one tied block, {} parameters, w = {weight}, trained on {} tokens; loss {:.3} after the first epoch, {:.3} after the last.", shape.parameters(), learnt.len(), losses.first().copied().unwrap_or(0.0), losses.last().copied().unwrap_or(0.0)),
        "Speeds are simulated from counts: a round costs one target step and each drafted token its share of one. Every rule is exact.".into(),
        "Confidence rules need no training: where a head does not beat them, it is not worth having.".into(),
    ];
    let page = Page {
        experiment: &SPECDEC_THRESHOLD,
        title: "SpecDec++: when to stop drafting".into(),
        summary,
        seeds: vec![seed],
        rows: json,
        tables: vec![bests, all],
        plots,
        notes,
    };
    page.write(context, &run, began)
}
