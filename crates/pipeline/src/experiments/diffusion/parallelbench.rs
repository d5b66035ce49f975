//! ParallelBench on models that know each task's law: what a policy loses is its own.

use pilotfish_diffusion::parallelbench::{Items, Problem, Task, generate_of_length};
use pilotfish_diffusion::policy::Threshold;
use pilotfish_diffusion::{Diffusion, DiffusionConfig, Fixed, FreeDaveConfig, learn2pd, theory};
use serde::{Deserialize, Serialize};

use super::{Cell, GAMMAS, Rules, ways};
use crate::error::Failure;
use crate::experiments::page::{self, Began, Page};
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const PARALLELBENCH: Experiment = Experiment {
    name: "parallelbench",
    about: "accuracy against tokens a pass of every unmasking policy on tasks with exact models and closed forms",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "items", default: "8", about: "items of a list (letters)" },
        Choice { name: "runs", default: "500", about: "prompts a task" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Tasks with a law that can be listed, hardest last.
const TASKS: [Task; 12] = [
    Task::Copy,
    Task::Reverse,
    Task::Sort,
    Task::ReplaceIndex,
    Task::InsertIndex,
    Task::RemoveIndex,
    Task::Sudoku,
    Task::ReplaceRandom,
    Task::InsertRandom,
    Task::RemoveRandom,
    Task::Shuffle,
    Task::LatinSquare,
];

/// A row of the result.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    task: Task,
    family: String,
    setting: f64,
    cell: Cell,
    /// Accuracy in closed form.
    expected: Option<f64>,
    /// Texts that equal those of one-at-a-time decoding by confidence.
    same: Option<usize>,
}

impl Row {
    /// How many standard errors the measurement is away from the closed form; infinite if it has none.
    fn deviation(&self) -> Option<f64> {
        let p = self.expected?;
        let error = (p * (1.0 - p) / self.cell.runs as f64).sqrt();
        let off = (self.cell.accuracy() - p).abs();
        Some(if off < 1e-12 { 0.0 } else { off / error })
    }
}

/// Accuracy in closed form of a static rule, where there is one. `n` positions, `k` a pass.
fn closed_form(task: Task, family: &str, n: usize, setting: f64) -> Option<f64> {
    let greedy = matches!(family, "confidence" | "margin" | "entropy" | "left to right");
    let sizes = theory::steps_of(n, setting as usize);
    match (task, family) {
        (Task::Shuffle, "random, T=1") => Some(theory::shuffle_accuracy(&sizes)),
        (Task::Shuffle, _) if greedy => Some(theory::shuffle_accuracy(&sizes)),
        (Task::Shuffle, "threshold") => theory::shuffle_threshold(n, setting).map(|f| f.accuracy),
        (Task::ReplaceRandom, "random, T=1") => Some(theory::replace_random_accuracy(&sizes)),
        (Task::ReplaceRandom, _) if greedy => Some(theory::replace_random_greedy(&sizes)),
        (Task::ReplaceRandom, "threshold") => {
            theory::replace_random_threshold(n, setting).map(|f| f.accuracy)
        }
        (
            Task::Copy
            | Task::Reverse
            | Task::Sort
            | Task::ReplaceIndex
            | Task::InsertIndex
            | Task::RemoveIndex,
            _,
        ) => Some(1.0),
        (Task::Sudoku, _) => Some(1.0),
        _ => None,
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (items, runs, seed): (usize, usize, u64) =
        (options.get("items")?, options.get("runs")?, options.get("seed")?);
    if runs == 0 {
        return Err("--runs must be at least 1".into());
    }
    let began = Began::now();
    let mut run =
        Run::open(context.results(), PARALLELBENCH.name, options, context.fresh(), context.is_quiet())?;
    run.expect(TASKS.len() as u64);
    let mut rows: Vec<Row> = Vec::new();
    for task in TASKS {
        let length = if matches!(task, Task::Sudoku | Task::LatinSquare) { 4 } else { items };
        let problems = generate_of_length(task, Items::Letters, length, runs, seed)?;
        rows.extend(run.step(task.name(), || play(task, &problems, seed))?);
    }
    let worst = rows.iter().filter_map(|row| row.deviation().map(|by| (by, row))).fold(
        (0.0, None),
        |worst: (f64, Option<&Row>), (by, row)| if by > worst.0 { (by, Some(row)) } else { worst },
    );
    let compared = rows.iter().filter(|row| row.expected.is_some()).count();
    let beyond = rows.iter().filter(|row| row.deviation().is_some_and(|by| by > 4.0)).count();
    let find = |task: Task, family: &str, setting: f64| {
        rows.iter().find(|row| row.task == task && row.family == family && row.setting == setting)
    };
    let mut table = Table::new(
        "Accuracy @ tokens a pass",
        &[
            "task",
            "one a pass",
            "random 2",
            "confidence 2",
            "random 8",
            "threshold .9",
            "threshold .7",
            "factor 1",
            "LocalLeap",
            "oracle threshold",
            "FreeDave 4",
        ],
    );
    for task in TASKS {
        let cell =
            |family, setting| find(task, family, setting).map_or("".into(), |row: &Row| row.cell.text());
        table.row([
            task.name().to_owned(),
            cell("confidence", 1.0),
            cell("random, T=1", 2.0),
            cell("confidence", 2.0),
            cell("random, T=1", 8.0),
            cell("threshold", 0.9),
            cell("threshold", 0.7),
            cell("factor", 1.0),
            cell("LocalLeap", 4.0),
            cell("oracle threshold", 0.0),
            cell("FreeDave", 4.0),
        ]);
    }
    let mut forms = Table::new(
        format!("Closed forms against measurements, {items} items"),
        &["task", "policy", "setting", "closed form", "measured", "standard errors apart"],
    );
    for row in rows.iter().filter(|row| matches!(row.task, Task::Shuffle | Task::ReplaceRandom)) {
        if let (Some(p), Some(by)) = (row.expected, row.deviation()) {
            forms.row([
                row.task.name().to_owned(),
                row.family.clone(),
                row.setting.to_string(),
                format!("{p:.4}"),
                format!("{:.4}", row.cell.accuracy()),
                format!("{by:.1}"),
            ]);
        }
    }
    let mut best = Table::new(
        "Most tokens a pass at an accuracy of at least 0.95, by policy",
        &[
            "task",
            "policy",
            "setting",
            "accuracy",
            "tokens a pass",
            "oracle: passes if final predictions were known",
        ],
    );
    for task in TASKS {
        let of_task = || rows.iter().filter(|row| row.task == task);
        let good = of_task().filter(|row| row.cell.accuracy() >= 0.95 && !row.family.starts_with("oracle"));
        let fastest = good.max_by(|a, b| a.cell.per_forward().total_cmp(&b.cell.per_forward()));
        let oracle = of_task().find(|row| row.family == "oracle");
        if let Some(row) = fastest {
            best.row([
                task.name().to_owned(),
                row.family.clone(),
                row.setting.to_string(),
                format!("{:.3}", row.cell.accuracy()),
                format!("{:.2}", row.cell.per_forward()),
                oracle.map_or(String::new(), |oracle| format!("{:.2}", oracle.cell.mean_forwards())),
            ]);
        }
    }
    let plots = [Task::Copy, Task::ReplaceRandom, Task::InsertRandom, Task::Shuffle, Task::LatinSquare]
        .map(|task| {
            let mut series: Vec<Series> = Vec::new();
            for family in ["random, T=1", "confidence", "left to right", "threshold", "factor"] {
                let mut points: Vec<Point> = rows
                    .iter()
                    .filter(|row| row.task == task && row.family == family)
                    .map(|row| row.cell.point())
                    .collect();
                points.sort_by(|a, b| a.x.total_cmp(&b.x));
                series.push(Series { name: family.into(), points });
            }
            let theory: Vec<Point> = rows
                .iter()
                .filter(|row| row.task == task && row.family == "random, T=1")
                .filter_map(|row| Some(Point { x: row.cell.per_forward(), y: row.expected?, interval: None }))
                .collect();
            if !theory.is_empty() {
                series.push(Series { name: "closed form, random".into(), points: theory });
            }
            page::lines(&format!("{task}"), "tokens a pass", "accuracy", series)
        })
        .into();
    let dave = rows.iter().filter(|row| row.family == "FreeDave");
    let (identical, all) =
        dave.fold((0, 0), |(same, all), row| (same + row.same.unwrap_or(0), all + row.cell.runs));
    let two = |task, family| find(task, family, 2.0).map_or(0.0, |row| row.cell.accuracy());
    let summary = format!(
        "{compared} measured accuracies have a closed form; {beyond} are more than four standard errors away from it (the \
         furthest {:.1}{}). Two tokens a pass: on replace_random random order is right in {:.3} of cases and confidence in \
         {:.3}, on insert_random in {:.3} and {:.3}: no order is best everywhere. FreeDave gave the text of one-at-a-time \
         decoding in {identical} of {all} cases.",
        worst.0,
        worst.1.map_or(String::new(), |row| format!(": {}, {} {}", row.task, row.family, row.setting)),
        two(Task::ReplaceRandom, "random, T=1"),
        two(Task::ReplaceRandom, "confidence"),
        two(Task::InsertRandom, "random, T=1"),
        two(Task::InsertRandom, "confidence"),
    );
    let notes = vec![
        format!("Models answer with exact marginals, with noise within {} on logits so that ties are broken by chance. Temperature 1 for random order, greedy otherwise.", super::TIES),
        "A shuffle counts any order as right, the given one included, as the closed forms do; the benchmark's own score excludes it.".into(),
        "Tokens a pass: tokens decided, divided by forward passes. A FreeDave pass over several drafts is one pass of up to as many times the rows.".into(),
        "Oracle threshold: for each prompt the smallest threshold whose answer is right (the paper's per-sample oracle). Oracle: passes of a decoder that commits exactly the predictions that are final.".into(),
        "Prompts are of this project's generators, not the benchmark's files; accuracies compare within this project.".into(),
    ];
    let json = rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default()).collect();
    let page = Page {
        experiment: &PARALLELBENCH,
        title: "ParallelBench on exact models".into(),
        summary,
        seeds: vec![seed],
        rows: json,
        tables: vec![table, best, forms],
        plots,
        notes,
    };
    page.write(context, &run, began)
}

/// Every policy on the problems of a task.
fn play(task: Task, problems: &[Problem], seed: u64) -> Result<Vec<Row>, Failure> {
    let mut rows: Vec<Row> = Vec::new();
    let mut n = 0;
    for mut way in ways()? {
        let mut cell = Cell::default();
        for (index, problem) in problems.iter().enumerate() {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
            let (rules, mut model) = Rules::of(problem, seed)?;
            let canvas = model.canvas();
            n = canvas.region.len();
            let config = DiffusionConfig { temperature: way.temperature, seed, ..DiffusionConfig::default() };
            let text = Diffusion::new(&mut model, config)?.generate(&canvas, way.policy.as_mut())?;
            cell.add(rules.is_right(text.response()), text.forwards(), text.ledger.emitted);
        }
        let expected = closed_form(task, way.family, n, way.setting);
        rows.push(Row { task, family: way.family.into(), setting: way.setting, cell, expected, same: None });
    }
    let mut thresholds = vec![Cell::default(); GAMMAS.len()];
    let drafts = [2, 4, 8];
    let mut daves = vec![(Cell::default(), 0); drafts.len()];
    let (mut best, mut oracle) = (Cell::default(), Cell::default());
    for (index, problem) in problems.iter().enumerate() {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
        let (rules, mut model) = Rules::of(problem, seed)?;
        let canvas = model.canvas();
        let mut decode = |gamma: f64| -> Result<_, Failure> {
            let config = DiffusionConfig { seed, ..DiffusionConfig::default() };
            let text = Diffusion::new(&mut model, config)?.generate(&canvas, &mut Threshold { gamma })?;
            Ok((rules.is_right(text.response()), text.forwards(), text.ledger.emitted))
        };
        let results = GAMMAS.iter().map(|&gamma| decode(gamma)).collect::<Result<Vec<_>, _>>()?;
        for (cell, (right, forwards, tokens)) in thresholds.iter_mut().zip(&results) {
            cell.add(*right, *forwards, *tokens);
        }
        // Thresholds fall along the list: the last that is right, else the last.
        let chosen = results.iter().rev().find(|result| result.0).or(results.last());
        if let Some((right, forwards, tokens)) = chosen {
            best.add(*right, *forwards, *tokens);
        }
        let config = DiffusionConfig { seed, ..DiffusionConfig::default() };
        let mut decoder = Diffusion::new(&mut model, config)?;
        let plain = decoder.generate(&canvas, &mut Fixed::default())?;
        let known =
            decoder.extremely_greedy(&canvas, &plain.tokens, learn2pd::Visible::One, index)?.generation;
        let fast = drafts
            .iter()
            .map(|&drafts| {
                decoder.free_dave(&canvas, &FreeDaveConfig { drafts, ..FreeDaveConfig::default() })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let right = rules.is_right(plain.response());
        oracle.add(right, known.forwards(), known.response().len() as u64);
        for ((cell, same), text) in daves.iter_mut().zip(&fast) {
            cell.add(rules.is_right(text.response()), text.forwards(), text.ledger.emitted);
            *same += usize::from(text.tokens == plain.tokens);
        }
    }
    let row = |family: &str, setting, cell, same| {
        let expected = closed_form(task, family, n, setting);
        Row { task, family: family.into(), setting, cell, expected, same }
    };
    for (gamma, cell) in GAMMAS.into_iter().zip(thresholds) {
        rows.push(row("threshold", gamma, cell, None));
    }
    for (drafts, (cell, same)) in drafts.into_iter().zip(daves) {
        rows.push(row("FreeDave", drafts as f64, cell, Some(same)));
    }
    rows.push(row("oracle threshold", 0.0, best, None));
    rows.push(row("oracle", 0.0, oracle, None));
    Ok(rows)
}
