//! Transformers that add: a student, two weaker teachers, and what pairs of their answers do to the student.

use pilotfish_graph::Graph;
use pilotfish_model::Streams;
use pilotfish_supervision::delta_learning::{Delta, measure};
use pilotfish_training::losses::preference::Dpo;
use pilotfish_training::{Adam, OptimizerConfig, Pair, PairLoss, PairTask, TrainerConfig};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::Part;
use crate::error::Failure;
use crate::experiments::page::{mean_with_interval, percent};
use crate::experiments::tiny::{Letters, complete, net, network, responses, settings, train};
use crate::plots::{Kind, Plot, Point, Series};
use crate::steps::Run;
use crate::tables::Table;

const LETTERS: Letters = Letters("0123456789+=.");
/// Learning rates that each method chooses from.
const RATES: [f64; 4] = [1e-5, 1e-4, 3e-4, 1e-3];
/// Sums for the choice of a rate, and for the table.
const CHOICE: usize = 300;
const TEST: usize = 1000;
const BATCH: usize = 32;
const METHODS: [&str; 4] =
    ["DPO, better over worse", "DPO, worse over better", "DPO, tied", "SFT on the better"];

/// What came of one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    /// Accuracies on test sums: student, better and worse teacher, the better one's equal.
    models: [f64; 4],
    /// What the pairs are like.
    delta: Delta,
    /// Of each method the rate that was chosen and the accuracy on test sums.
    methods: Vec<(f64, f64)>,
    /// Of each method the accuracies by rate on test sums.
    rates: Vec<Vec<f64>>,
}

struct Sums {
    prompts: Vec<String>,
    answers: Vec<String>,
}

impl Sums {
    fn of(pairs: &[(u32, u32)]) -> Self {
        Self {
            prompts: pairs.iter().map(|(a, b)| format!("{a}+{b}=")).collect(),
            answers: pairs.iter().map(|(a, b)| format!("{}.", a + b)).collect(),
        }
    }

    fn rows(&self) -> Vec<(String, String)> {
        self.prompts.iter().cloned().zip(self.answers.iter().cloned()).collect()
    }

    fn right(&self, said: &[String]) -> Vec<bool> {
        said.iter().zip(&self.answers).map(|(said, answer)| said == answer).collect()
    }
}

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64
}

fn say(graph: &Graph, sums: &Sums) -> Result<Vec<String>, Failure> {
    complete(&net(graph)?, LETTERS, &sums.prompts, 4, None)
}

/// The paper's optimiser: Adam with a faster second moment, no decay.
fn tuned(steps: u64, lr: f64, seed: u64) -> TrainerConfig {
    let adam = Adam { betas: [0.9, 0.95], ..Adam::default() };
    TrainerConfig { optimizer: OptimizerConfig::Adam(adam), ..settings(steps, BATCH, lr, seed) }
}

fn cell(seed: u64, prompts: usize, student_steps: u64) -> Result<Cell, Failure> {
    let mut all: Vec<(u32, u32)> = (10..100).flat_map(|a| (10..100).map(move |b| (a, b))).collect();
    all.shuffle(&mut Streams::new(seed).stream("sums"));
    let (held, known) = all.split_at(prompts + CHOICE + TEST);
    let (pairs, rest) = held.split_at(prompts);
    let (choice, test) = rest.split_at(CHOICE);
    let [pairs, choice, test, known] = [pairs, choice, test, known].map(Sums::of);
    let lesson = responses(LETTERS, &known.rows())?;
    let teach = |width, layers, steps, seed| -> Result<Graph, Failure> {
        train(&network(LETTERS, width, layers, seed)?, &lesson, settings(steps, 64, 3e-3, seed))
    };
    let student = teach(64, 2, student_steps, seed)?;
    let better = teach(32, 1, 1000, seed + 1000)?;
    let worse = teach(32, 1, 500, seed + 1000)?;
    let equal = teach(32, 1, 1000, seed + 2000)?;
    let mut models = [0.0; 4];
    for (accuracy, graph) in models.iter_mut().zip([&student, &better, &worse, &equal]) {
        *accuracy = share(&test.right(&say(graph, &test)?));
    }
    let [of_better, of_worse, of_equal] = [&better, &worse, &equal].map(|graph| say(graph, &pairs));
    let (of_better, of_worse, of_equal) = (of_better?, of_worse?, of_equal?);
    let (right_better, right_worse) = (pairs.right(&of_better), pairs.right(&of_worse));
    let delta =
        measure((0..prompts).map(|at| (right_better[at], right_worse[at], of_better[at] == of_worse[at])))?;
    let steps = TrainerConfig::steps_of_epochs(prompts, 1.0, BATCH)?;
    let preferences = |chosen: &[String], rejected: &[String]| -> Result<PairTask, Failure> {
        let one = |at: usize| -> Result<Pair, Failure> {
            Ok(Pair {
                prompt: LETTERS.encode(&pairs.prompts[at])?,
                chosen: LETTERS.encode(&chosen[at])?,
                rejected: LETTERS.encode(&rejected[at])?,
            })
        };
        let list = (0..prompts).map(one).collect::<Result<Vec<_>, _>>()?;
        let loss = PairLoss::MeanDpo(Dpo { beta: 5.0, ..Dpo::default() });
        Ok(PairTask::new(&net(&student)?, list, loss, None, 256)?)
    };
    let imitation: Vec<(String, String)> =
        pairs.prompts.iter().cloned().zip(of_better.iter().cloned()).collect();
    let imitation = responses(LETTERS, &imitation)?;
    let preferred = [
        preferences(&of_better, &of_worse)?,
        preferences(&of_worse, &of_better)?,
        preferences(&of_better, &of_equal)?,
    ];
    let (mut methods, mut rates) = (Vec::new(), Vec::new());
    for method in 0..METHODS.len() {
        let (mut best, mut by_rate) = ((f64::NEG_INFINITY, 0.0, 0.0), Vec::new());
        for rate in RATES {
            let settings = tuned(steps, rate, seed);
            let graph = match preferred.get(method) {
                Some(task) => train(&student, task, settings)?,
                None => train(&student, &imitation, settings)?,
            };
            let chosen_by = share(&choice.right(&say(&graph, &choice)?));
            let accuracy = share(&test.right(&say(&graph, &test)?));
            by_rate.push(accuracy);
            if chosen_by > best.0 {
                best = (chosen_by, rate, accuracy);
            }
        }
        methods.push((best.1, best.2));
        rates.push(by_rate);
    }
    Ok(Cell { models, delta, methods, rates })
}

pub(super) fn run(run: &mut Run, seeds: u64, prompts: usize, student_steps: u64) -> Result<Part, Failure> {
    let cells = (1..=seeds)
        .map(|seed| {
            run.step(&format!("transformers that add, seed {seed}"), || cell(seed, prompts, student_steps))
        })
        .collect::<Result<Vec<Cell>, _>>()?;
    let mut part = Part::default();
    let of = |pick: &dyn Fn(&Cell) -> f64| cells.iter().map(pick).collect::<Vec<f64>>();
    let text = |pick: &dyn Fn(&Cell) -> f64| -> Result<String, Failure> {
        let (value, interval) = mean_with_interval(&of(pick))?;
        Ok(percent(value, interval))
    };
    let mut models = Table::new(
        "Transformers that add two numbers of two digits: exact answers in per cent, means over seeds with 95 % intervals",
        &["model", "test sums", "gain over the student", "rates chosen"],
    );
    for (at, name) in
        ["student", "better teacher", "worse teacher", "the better one's equal"].into_iter().enumerate()
    {
        models.row([name.to_owned(), text(&|cell| cell.models[at])?, "-".into(), "-".into()]);
    }
    let mut gains = Vec::new();
    for (at, name) in METHODS.into_iter().enumerate() {
        let gain = |cell: &Cell| cell.methods[at].1 - cell.models[0];
        gains.push(text(&gain)?);
        let mut chosen: Vec<String> =
            cells.iter().map(|cell| format!("{:.0e}", cell.methods[at].0)).collect();
        chosen.dedup();
        models.row([name.to_owned(), text(&|cell| cell.methods[at].1)?, text(&gain)?, chosen.join(", ")]);
    }
    let mut deltas = Table::new(
        "The pairs: what is right, in per cent, means over seeds",
        &["better", "worse", "delta", "the same answer", "the wrong way round"],
    );
    deltas.row([
        text(&|cell| cell.delta.better)?,
        text(&|cell| cell.delta.worse)?,
        text(&|cell| cell.delta.gap())?,
        text(&|cell| cell.delta.same)?,
        text(&|cell| cell.delta.inverted)?,
    ]);
    let mut by_rate = Table::new(
        "Test sums by learning rate, in per cent, means over seeds",
        &["method", "1e-5", "1e-4", "3e-4", "1e-3"],
    );
    let mut series = Vec::new();
    for (at, name) in METHODS.into_iter().enumerate() {
        let mut row = vec![name.to_owned()];
        let mut points = Vec::new();
        for rate in 0..RATES.len() {
            let (y, interval) = mean_with_interval(&of(&|cell| cell.rates[at][rate] - cell.models[0]))?;
            points.push(Point { x: rate as f64, y, interval: interval.map(|i| (i.low, i.high)) });
            row.push(text(&|cell| cell.rates[at][rate])?);
        }
        by_rate.row(row);
        series.push(Series { name: name.to_owned(), points });
    }
    part.plots.push(Plot {
        title: "Gain over the student, by learning rate".into(),
        x: "learning rate".into(),
        y: "gain".into(),
        kind: Kind::Bars { labels: RATES.map(|rate| format!("{rate:.0e}")).to_vec() },
        series,
        reference: Some(0.0),
    });
    part.summary = format!(
        "Small transformers, gain of the student in points: pairs {}, reversed {}, tied {}, imitation {}.",
        gains[0], gains[1], gains[2], gains[3]
    );
    part.tables = vec![models, deltas, by_rate];
    part.rows.extend(cells.iter().zip(1..).map(|(cell, seed): (&Cell, u64)| {
        serde_json::json!({ "part": "transformers", "seed": seed, "cell": cell })
    }));
    Ok(part)
}
