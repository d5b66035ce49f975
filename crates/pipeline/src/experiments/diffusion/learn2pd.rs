//! Learn2PD on exact models and on the trained one: what its filter learns, against thresholds and the oracle.

use std::collections::BTreeMap;

use pilotfish_diffusion::ideal::{Ideal, Law};
use pilotfish_diffusion::learn2pd::{
    FilterReport, FilterTraining, Fit, Learn2Pd, Record, Visible, split_by_prompt,
};
use pilotfish_diffusion::parallelbench::{Items, Problem, Task, generate_of_length};
use pilotfish_diffusion::policy::{Policy, Threshold};
use pilotfish_diffusion::{Blocks, Canvas, Cut, Diffusion, DiffusionConfig, Fixed};
use pilotfish_model::Token;
use serde::{Deserialize, Serialize};

use super::filters::{self, Sizes};
use super::trained::{self, Settings};
use super::{Cell, World};
use crate::error::Failure;
use crate::experiments::page::{Began, Page};
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const LEARN2PD: Experiment = Experiment {
    name: "learn2pd",
    about: "a filter trained on oracle decodes of exact models and of the trained one, against thresholds: accuracy, passes, AUC",
    needs: &[],
    library: true,
    options: &[
        trained::STEPS,
        trained::BATCH,
        trained::SEED,
        Choice { name: "items", default: "8", about: "items of a list, and the filter's width" },
        Choice { name: "traces", default: "600", about: "prompts that training data come from" },
        Choice { name: "steps", default: "3000", about: "full-batch steps of the filter's training" },
        Choice { name: "runs", default: "200", about: "held-out prompts a task" },
        Choice {
            name: "prompts",
            default: "100",
            about: "prompts a task to choose settings by on the trained model, and to judge by",
        },
        Choice { name: "seeds", default: "1,2,3", about: "seeds of traces and filter" },
    ],
    run,
};

/// Easy tasks and hard ones; traces mix them evenly.
const TASKS: [Task; 6] =
    [Task::Copy, Task::ReplaceIndex, Task::Reverse, Task::Sort, Task::ReplaceRandom, Task::Shuffle];

/// Mixes that filters are trained on.
const MIXES: [(&str, &[Task]); 2] =
    [("all tasks", &TASKS), ("hidden choices only", &[Task::ReplaceRandom, Task::Shuffle])];

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    mix: String,
    seed: u64,
    task: Task,
    method: String,
    cell: Cell,
    /// Texts that equal those of one-at-a-time decoding.
    same: usize,
}

/// Length of a text, its share of padding, rows run by when it is cut, and whether all answers are the same.
type Padding = (usize, f64, [u64; 3], bool);

/// A filter, and how well it foretells held-out records.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Trained {
    pub(super) fit: Fit,
    /// Over held-out records, at 0.96.
    pub(super) report: FilterReport,
    records: usize,
}

impl Trained {
    fn row(&self, mix: &str, seed: u64) -> [String; 8] {
        let text = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.4}"));
        [
            mix.to_owned(),
            seed.to_string(),
            self.records.to_string(),
            format!("{:.3}, {:.3}", self.fit.losses[0], self.fit.losses[1]),
            format!("{:.3}", self.report.base_rate),
            text(self.report.auc),
            text(self.report.precision),
            text(self.report.recall),
        ]
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (items, traces, steps, runs): (usize, usize, usize, usize) =
        (options.get("items")?, options.get("traces")?, options.get("steps")?, options.get("runs")?);
    let seeds = options.list::<u64>("seeds")?;
    if runs == 0 || traces < 20 || seeds.is_empty() {
        return Err("--runs must be at least 1, --traces at least 20, and --seeds not empty".into());
    }
    let (settings, prompts) = (Settings::of(options)?, options.get::<usize>("prompts")?);
    if prompts < 2 {
        return Err("--prompts must be at least 2".into());
    }
    let began = Began::now();
    let mut run = Run::open(context.results(), LEARN2PD.name, options, context.fresh(), context.is_quiet())?;
    let exact = (seeds.len() * MIXES.len() * (1 + TASKS.len()) + 1) as u64;
    run.expect(exact + trained::segments(&settings) + filters::steps(&seeds));
    let mut rows: Vec<Row> = Vec::new();
    let mut filters = Table::new(
        "Filters on held-out records, masked positions",
        &[
            "trained on",
            "seed",
            "records",
            "loss before, after",
            "final predictions",
            "AUC",
            "precision at .96",
            "recall at .96",
        ],
    );
    for (mix, tasks) in MIXES {
        for &seed in &seeds {
            let step = format!("{mix}, seed {seed}: filter");
            let world = &mut World::Exact;
            let filter: Trained = run.step(&step, || train(world, tasks, items, traces, steps, seed))?;
            filters.row(filter.row(mix, seed));
            for task in TASKS {
                let step = format!("{mix}, seed {seed}: {task}");
                let work = || judge(&mut World::Exact, mix, task, items, runs, seed, &filter.fit);
                rows.extend(run.step(&step, work)?);
            }
        }
    }
    let mut world = World::Trained(Box::new(trained::ready(context, &mut run, settings)?.load()?));
    let sizes = Sizes { traces, steps, prompts };
    let section = filters::section(&mut run, &mut world, &seeds, sizes)?;
    for (seed, filter) in &section.filters {
        filters.row(filter.row("all tasks, trained model", *seed));
    }
    let padding: Vec<Padding> = run.step("ends of text", || ends(200))?;
    let methods = ["one a pass", "Learn2PD 0.9", "Learn2PD 0.96", "threshold 0.7", "threshold 0.9", "oracle"];
    let mut tables = vec![filters];
    for (mix, _) in MIXES {
        let mut table = Table::new(
            format!(
                "Exact models: accuracy / mean passes, filter trained on {mix}, {} seeds together",
                seeds.len()
            ),
            &["task", methods[0], methods[1], methods[2], methods[3], methods[4], methods[5]],
        );
        for task in TASKS {
            let cells = methods.map(|method| {
                let mut sum = Cell::default();
                for row in rows.iter().filter(|r| r.mix == mix && r.task == task && r.method == method) {
                    sum.runs += row.cell.runs;
                    sum.right += row.cell.right;
                    sum.forwards += row.cell.forwards;
                    sum.tokens += row.cell.tokens;
                }
                format!("{:.3} / {:.2}", sum.accuracy(), sum.mean_forwards())
            });
            table.row([task.name().to_owned()].into_iter().chain(cells));
        }
        tables.push(table);
    }
    let mut table = Table::new(
        "End-of-Text Prediction: rows run for an answer of 8 tokens and its padding, one token a pass",
        &[
            "length",
            "padding",
            "rows, never cut",
            "rows, cut when committed",
            "rows, cut when predicted",
            "same answers",
        ],
    );
    for (length, share, counts, same) in &padding {
        table.row([
            length.to_string(),
            format!("{share:.2}"),
            counts[0].to_string(),
            counts[1].to_string(),
            counts[2].to_string(),
            if *same { "yes" } else { "no" }.to_owned(),
        ]);
    }
    tables.push(table);
    tables.extend(section.tables);
    let total = |method: &str| -> (f64, f64) {
        let of = || rows.iter().filter(|row| row.mix == MIXES[0].0 && row.method == method);
        let runs: usize = of().map(|row| row.cell.runs).sum();
        let right: usize = of().map(|row| row.cell.right).sum();
        let forwards: u64 = of().map(|row| row.cell.forwards).sum();
        (right as f64 / runs.max(1) as f64, forwards as f64 / runs.max(1) as f64)
    };
    let (vanilla, learnt, threshold, oracle) =
        (total("one a pass"), total("Learn2PD 0.96"), total("threshold 0.9"), total("oracle"));
    let summary = format!(
        "Over six tasks with exact models, filter trained on all of them: one token a pass {:.3} right in {:.2} passes; \
         Learn2PD at 0.96 {:.3} in {:.2}; threshold 0.9 {:.3} in {:.2}; the oracle {:.2} passes. {}",
        vanilla.0, vanilla.1, learnt.0, learnt.1, threshold.0, threshold.1, oracle.1, section.summary
    );
    let notes = vec![
        format!("Trained model: that of diffusion-train. Of each method the setting with the fewest passes is taken whose accuracy, over {prompts} prompts a task that neither filter nor judgement uses, is within a point of one token a pass; what it then does on {prompts} others is shown, whatever it is. Held-out records, AUC and precision are of masked positions over all tasks: most come from easy ones."),
        "Exact models answer with exact marginals, so a prediction is uncertain only where the answer is a choice. A trained network's confidences are blurred; a filter has more to learn from, and more to get wrong.".into(),
        "Conventions of the reference code: visible positions count with the confidence of predicting them again, loss over all positions. Records are split by prompt.".into(),
        "Labels are the model's own text one token a pass, ties broken by noise that belongs to the text: on hidden choices they are close to chance before most of the text is there.".into(),
        "End-of-Text Prediction is shown on texts whose end the model is sure of from the first pass; a real model's end is less certain, and cutting at a prediction can then cost answers.".into(),
        "The paper has no head-to-head with thresholds; these tasks do not ask for a win and none is claimed.".into(),
    ];
    let json = rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default());
    let json = json.chain(section.rows).collect();
    let page = Page {
        experiment: &LEARN2PD,
        title: "Learn2PD: a filter for final predictions".into(),
        summary,
        seeds,
        rows: json,
        tables,
        plots: Vec::new(),
        notes,
    };
    page.write(context, &run, began)
}

fn problems(tasks: &[Task], items: usize, count: usize, seed: u64) -> Result<Vec<Problem>, Failure> {
    let each = count.div_ceil(tasks.len());
    let mut all = Vec::new();
    for &task in tasks {
        all.extend(generate_of_length(task, Items::Letters, items, each, seed)?);
    }
    Ok(all)
}

/// A filter from oracle decodes of a world's models.
pub(super) fn train(
    world: &mut World,
    tasks: &[Task],
    items: usize,
    traces: usize,
    steps: usize,
    seed: u64,
) -> Result<Trained, Failure> {
    let mut records: Vec<Record> = Vec::new();
    for (prompt, problem) in problems(tasks, items, traces, seed)?.iter().enumerate() {
        let mut case = world.case(problem, seed.wrapping_mul(7919).wrapping_add(prompt as u64))?;
        let canvas = case.canvas;
        let mut decoder = Diffusion::new(case.model.model(), DiffusionConfig::default())?;
        let reference = decoder.generate(&canvas, &mut Fixed::default())?;
        records.extend(
            decoder.extremely_greedy(&canvas, &reference.tokens, Visible::default(), prompt)?.records,
        );
    }
    let [training, _, test] = split_by_prompt(&records, seed);
    let fit = FilterTraining { steps, seed, ..FilterTraining::default() }.fit(items, &training)?;
    let report = FilterReport::of(&fit.filter, &test, 0.96)?;
    Ok(Trained { fit, report, records: records.len() })
}

fn judge(
    world: &mut World,
    mix: &str,
    task: Task,
    items: usize,
    runs: usize,
    seed: u64,
    fit: &Fit,
) -> Result<Vec<Row>, Failure> {
    let mut policies: Vec<(String, Box<dyn Policy>)> =
        vec![("one a pass".into(), Box::new(Fixed::default()))];
    for tau in [0.9, 0.96] {
        let policy = Learn2Pd::new(fit.filter.clone(), tau, Visible::default())?;
        policies.push((format!("Learn2PD {tau}"), Box::new(policy)));
    }
    for gamma in [0.7, 0.9, 0.95] {
        policies.push((format!("threshold {gamma}"), Box::new(Threshold { gamma })));
    }
    let mut cells: BTreeMap<String, (Cell, usize)> = BTreeMap::new();
    // Prompts that no trace has seen.
    for (index, problem) in generate_of_length(task, Items::Letters, items, runs, !seed)?.iter().enumerate() {
        let mut case = world.case(problem, (!seed).wrapping_mul(7919).wrapping_add(index as u64))?;
        let (rules, canvas) = (&case.rules, &case.canvas);
        let mut decoder = Diffusion::new(case.model.model(), DiffusionConfig::default())?;
        let mut plain: Option<Vec<Token>> = None;
        for (name, policy) in &mut policies {
            let text = decoder.generate(canvas, policy.as_mut())?;
            let reference = plain.get_or_insert_with(|| text.tokens.clone());
            let (cell, same) = cells.entry(name.clone()).or_default();
            cell.add(rules.is_right(text.response()), text.forwards(), text.ledger.emitted);
            *same += usize::from(*reference == text.tokens);
        }
        if let Some(reference) = plain {
            let known = decoder.extremely_greedy(canvas, &reference, Visible::One, index)?.generation;
            let (cell, same) = cells.entry("oracle".into()).or_default();
            cell.add(rules.is_right(known.response()), known.forwards(), known.response().len() as u64);
            *same += usize::from(known.tokens == reference);
        }
    }
    let row = |(method, (cell, same))| Row { mix: mix.into(), seed, task, method, cell, same };
    Ok(cells.into_iter().map(row).collect())
}

/// Rows that decoding an answer of 8 tokens padded with ends of text costs, by length and by when it is cut.
fn ends(texts: usize) -> Result<Vec<Padding>, Failure> {
    let mut table = Vec::new();
    for length in [16, 32, 64] {
        let (mut counts, mut same) = ([0; 3], true);
        for problem in generate_of_length(Task::Copy, Items::Letters, 8, texts, 5)? {
            let end = problem.items.len() as Token;
            let mut text: Vec<Token> = (0..end).collect();
            text.resize(length, end);
            let mut model = Ideal::new(Law::OneOf(vec![text]), end as usize + 1)?;
            let canvas = Canvas::after(&[], length, model.mask_token());
            let mut answers = Vec::new();
            for (at, cut) in [Cut::Never, Cut::Committed, Cut::Predicted].into_iter().enumerate() {
                let config = DiffusionConfig {
                    end: Some(end),
                    cut,
                    blocks: Blocks::Fixed(8),
                    ..DiffusionConfig::default()
                };
                let got = Diffusion::new(&mut model, config)?.generate(&canvas, &mut Fixed::default())?;
                counts[at] += got.ledger.target_rows;
                answers.push(got.answer(Some(end)).to_vec());
            }
            same &= answers.iter().all(|answer| *answer == answers[0] && answer.len() == 8);
        }
        table.push((length, 1.0 - 8.0 / length as f64, counts, same));
    }
    Ok(table)
}
