//! Every policy against one token a pass on the trained model: accuracy, passes, time.

use pilotfish_diffusion::learn2pd::{Learn2Pd, Visible};
use pilotfish_diffusion::parallelbench::Task;
use pilotfish_diffusion::policy::{Policy, Threshold};
use pilotfish_diffusion::{Blocks, Cache, Diffusion, DiffusionConfig, Fixed, FreeDaveConfig};
use pilotfish_evaluation::{Comparison, PairedConfig, compare};
use serde::{Deserialize, Serialize};

use super::learn2pd::{Trained as Filtered, train};
use super::{Cell, GAMMAS, Rules, World, trained, ways};
use crate::error::Failure;
use crate::experiments::page::{self, Began, Page, difference};
use crate::experiments::session::ratio;
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::masked::Cached;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;
use trained::{Settings, TASKS};

/// The experiment.
pub(in crate::experiments) const DLLM_POLICIES: Experiment = Experiment {
    name: "dllm-policies",
    about: "every unmasking policy against one token a pass on the trained model: accuracy, passes, tokens a second",
    needs: &[],
    library: true,
    options: &[
        trained::STEPS,
        trained::BATCH,
        trained::SEED,
        Choice { name: "prompts", default: "150", about: "prompts a task" },
        Choice { name: "traces", default: "600", about: "prompts that Learn2PD's filter learns from" },
        Choice { name: "seed", default: "1", about: "seed of the prompts" },
    ],
    run,
};

/// How answers are decoded.
enum How {
    Policy(Box<dyn Policy>),
    Dave(usize),
}

/// A way of decoding.
struct Entry {
    family: String,
    setting: f64,
    config: DiffusionConfig,
    how: How,
}

/// One way on all prompts of a task.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Row {
    task: String,
    family: String,
    setting: f64,
    cell: Cell,
    rows: u64,
    right: Vec<bool>,
    forwards: Vec<f64>,
    seconds: Vec<f64>,
}

impl Row {
    fn extend(&mut self, other: &Self) {
        self.cell.runs += other.cell.runs;
        self.cell.right += other.cell.right;
        self.cell.forwards += other.cell.forwards;
        self.cell.tokens += other.cell.tokens;
        self.rows += other.rows;
        self.right.extend(&other.right);
        self.forwards.extend(&other.forwards);
        self.seconds.extend(&other.seconds);
    }

    fn name(&self) -> String {
        format!("{} {}", self.family, self.setting)
    }
}

/// The baseline's family and setting.
const PLAIN: (&str, f64) = ("confidence", 1.0);

fn entries(filter: &Filtered) -> Result<Vec<Entry>, Failure> {
    let mut all = Vec::new();
    let mut add = |family: &str, setting: f64, config: DiffusionConfig, how: How| {
        all.push(Entry { family: family.into(), setting, config, how });
    };
    for way in ways()? {
        add(way.family, way.setting, trained::decoding(way.temperature, 0), How::Policy(way.policy));
    }
    let greedy = || trained::decoding(0.0, 0);
    for gamma in GAMMAS {
        add("threshold", gamma, greedy(), How::Policy(Box::new(Threshold { gamma })));
    }
    for tau in [0.9, 0.96] {
        let policy = Learn2Pd::new(filter.fit.filter.clone(), tau, Visible::default())?;
        add("Learn2PD", tau, greedy(), How::Policy(Box::new(policy)));
    }
    for drafts in [2, 4, 8] {
        add("FreeDave", drafts as f64, greedy(), How::Dave(drafts));
    }
    for (name, cache) in
        [("blocks of 4", Cache::None), ("prefix cache", Cache::Prefix), ("dual cache", Cache::Dual)]
    {
        let config = || DiffusionConfig { blocks: Blocks::Fixed(4), cache, ..greedy() };
        add(&format!("{name}, one a pass"), 1.0, config(), How::Policy(Box::new(Fixed::default())));
        let threshold = Box::new(Threshold { gamma: 0.9 });
        add(&format!("{name}, threshold"), 0.9, config(), How::Policy(threshold));
    }
    Ok(all)
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let settings = Settings::of(options)?;
    let (prompts, traces, seed): (usize, usize, u64) =
        (options.get("prompts")?, options.get("traces")?, options.get("seed")?);
    if prompts < 2 || traces < 20 {
        return Err("--prompts must be at least 2 and --traces at least 20".into());
    }
    let began = Began::now();
    let name = DLLM_POLICIES.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(trained::segments(&settings) + 1 + TASKS.len() as u64);
    let model = trained::ready(context, &mut run, settings)?;
    let filter: Filtered = run.step("Learn2PD's filter", || {
        train(&mut World::Trained(Box::new(model.load()?)), &TASKS, trained::ITEMS, traces, 3000, seed)
    })?;
    let mut net = model.load()?;
    let mut rows: Vec<Row> = Vec::new();
    for task in TASKS {
        rows.extend(run.step(&format!("{task}"), || play(&mut net, &filter, task, prompts, seed))?);
    }
    let names: Vec<(String, f64)> = rows
        .iter()
        .filter(|row| row.task == TASKS[0].name())
        .map(|row| (row.family.clone(), row.setting))
        .collect();
    let sums: Vec<Row> = names
        .iter()
        .map(|(family, setting)| {
            let mut sum = Row { family: family.clone(), setting: *setting, ..Row::default() };
            let of = rows.iter().filter(|row| row.family == *family && row.setting == *setting);
            of.for_each(|row| sum.extend(row));
            sum
        })
        .collect();
    let find = |rows: &[Row], task: &str| {
        rows.iter().find(|row| row.task == task && (row.family.as_str(), row.setting) == PLAIN).cloned()
    };
    let plain = find(&sums, "").ok_or("one token a pass was not run")?;
    let compared: Vec<[Comparison; 2]> =
        sums.iter().map(|row| against(row, &plain)).collect::<Result<_, _>>()?;
    let speed = |at: usize| compared[at][1].ratio.map_or(0.0, |ratio| ratio.value);
    let dominated = |at: usize| {
        (0..sums.len()).any(|other| {
            let (a, b) = (sums[other].cell.accuracy(), sums[at].cell.accuracy());
            (a >= b && speed(other) > speed(at)) || (a > b && speed(other) >= speed(at))
        })
    };
    let mut all = Table::new(
        format!(
            "Six tasks together, {prompts} prompts each, against one token a pass by confidence; 95 % intervals, prompts resampled"
        ),
        &[
            "policy",
            "accuracy",
            "difference",
            "passes",
            "tokens a pass",
            "rows",
            "tokens a second, ratio",
            "not dominated",
        ],
    );
    for (at, (row, [right, _])) in sums.iter().zip(&compared).enumerate() {
        all.row([
            row.name(),
            format!("{:.3}", row.cell.accuracy()),
            difference(&right.difference),
            format!("{:.2}", row.cell.mean_forwards()),
            format!("{:.2}", row.cell.per_forward()),
            format!("{:.2}x", row.rows as f64 / plain.rows.max(1) as f64),
            compared[at][1].ratio.as_ref().map_or(String::new(), ratio),
            if dominated(at) { "" } else { "yes" }.to_owned(),
        ]);
    }
    let tasks = TASKS.map(|task| task.name());
    let header: Vec<&str> = ["policy"].into_iter().chain(tasks).collect();
    let mut each = Table::new("Accuracy @ tokens a pass, task by task", &header);
    for (family, setting) in &names {
        let cell = |task: &str| {
            let of = |row: &&Row| row.task == task && row.family == *family && row.setting == *setting;
            rows.iter().find(of).map_or(String::new(), |row| row.cell.text())
        };
        each.row([format!("{family} {setting}")].into_iter().chain(tasks.map(cell)));
    }
    let families = |rows: &[&Row], x: &dyn Fn(&Row) -> f64| -> Vec<Series> {
        let shown = [
            "random, T=1",
            "confidence",
            "left to right",
            "threshold",
            "factor",
            "Learn2PD",
            "FreeDave",
            "LocalLeap",
        ];
        let series = shown.map(|family| {
            let of = rows.iter().filter(|row| row.family == family);
            let mut points: Vec<Point> = of.map(|row| Point { x: x(row), ..row.cell.point() }).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            Series { name: family.into(), points }
        });
        series.into()
    };
    let ratio_of = |row: &Row| sums.iter().position(|sum| sum.name() == row.name()).map_or(0.0, speed);
    let mut front: Vec<Point> = (0..sums.len())
        .filter(|&at| !dominated(at))
        .map(|at| Point { x: speed(at), y: sums[at].cell.accuracy(), interval: None })
        .collect();
    front.sort_by(|a, b| a.x.total_cmp(&b.x));
    let mut pareto = families(&sums.iter().collect::<Vec<_>>(), &ratio_of);
    pareto.push(Series { name: "not dominated".into(), points: front });
    let mut plots = vec![page::lines(
        "Accuracy against tokens a second, six tasks",
        "ratio to one token a pass",
        "accuracy",
        pareto,
    )];
    for task in [Task::Sort, Task::ReplaceRandom, Task::Shuffle] {
        let of: Vec<&Row> = rows.iter().filter(|row| row.task == task.name()).collect();
        let series = families(&of, &|row| row.cell.per_forward());
        plots.push(page::lines(&format!("{task}"), "tokens a pass", "accuracy", series));
    }
    // The fastest whose accuracy is not shown to be below: its interval reaches 0 and its mean is within a point.
    let level = |at: &usize| {
        let difference = &compared[*at][0].difference;
        difference.value >= -0.01 && difference.interval.is_none_or(|interval| interval.high >= 0.0)
    };
    let best = (0..sums.len()).filter(level).max_by(|&a, &b| speed(a).total_cmp(&speed(b))).unwrap_or(0);
    let tokens = plain.cell.tokens as f64 / plain.seconds.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let summary = format!(
        "One token a pass by confidence: {:.3} right, {tokens:.0} tokens a second. Of {} ways the fastest within a point of that \
         accuracy is {}: {:.3} right in {:.2} passes, {} tokens a second. Two by confidence: {:.3}.",
        plain.cell.accuracy(),
        sums.len(),
        sums[best].name(),
        sums[best].cell.accuracy(),
        sums[best].cell.mean_forwards(),
        compared[best][1].ratio.as_ref().map_or(String::new(), ratio),
        sums.iter()
            .find(|row| row.family == "confidence" && row.setting == 2.0)
            .map_or(0.0, |row| row.cell.accuracy()),
    );
    let notes = vec![
        "The model of diffusion-train, on one thread; prompts it has not seen. Every prompt is decoded every way in turn, so that what else the machine does is shared. Times include the policy's own.".into(),
        "Random order draws at temperature 1, all else is greedy. Blocks of 4, with and without caches, decode the same answers of 8; caches are approximations after the first pass of a block.".into(),
        format!("Learn2PD's filter learnt from {traces} other prompts of the same six tasks (learn2pd has its AUC). AdaBlock is not here: these answers have no delimiters; see the experiment adablock."),
        "Not dominated: no way is at least as accurate and faster. With some fifty ways, points are picked after the fact: read intervals, not ranks.".into(),
        "A shuffle counts any order as right, the given one included. A model this small is bound by what a pass costs to start: passes saved are time saved here more than elsewhere.".into(),
    ];
    let json = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "task": row.task, "family": row.family, "setting": row.setting, "cell": row.cell, "rows": row.rows,
                "seconds": row.seconds.iter().sum::<f64>(),
            })
        })
        .collect();
    let page = Page {
        experiment: &DLLM_POLICIES,
        title: "Policies on a trained model".into(),
        summary,
        seeds: vec![settings.seed, seed],
        rows: json,
        tables: vec![all, each],
        plots,
        notes,
    };
    page.write(context, &run, began)
}

/// Accuracy less the baseline's, and speed over the baseline's.
fn against(row: &Row, plain: &Row) -> Result<[Comparison; 2], Failure> {
    let config = PairedConfig { resamples: 2000, ..PairedConfig::default() };
    let right = |row: &Row| row.right.iter().map(|&right| f64::from(u8::from(right))).collect::<Vec<_>>();
    // Every prompt has as many tokens: the baseline's time over this one's is the ratio of speeds.
    Ok([compare(&right(row), &right(plain), &config)?, compare(&plain.seconds, &row.seconds, &config)?])
}

/// Every way on the prompts of a task, prompt by prompt.
fn play(
    net: &mut Cached,
    filter: &Filtered,
    task: Task,
    prompts: usize,
    seed: u64,
) -> Result<Vec<Row>, Failure> {
    let mut entries = entries(filter)?;
    let mut rows: Vec<Row> = entries
        .iter()
        .map(|entry| Row {
            task: task.name().into(),
            family: entry.family.clone(),
            setting: entry.setting,
            ..Row::default()
        })
        .collect();
    // One more than counts: the first passes of a session are slower than those that follow.
    for (at, problem) in trained::held_out(task, prompts + 1, seed)?.iter().enumerate() {
        let (rules, canvas) = (Rules::trained(problem), trained::canvas(problem)?);
        for (entry, row) in entries.iter_mut().zip(&mut rows) {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(at as u64);
            let config = DiffusionConfig { seed, ..entry.config.clone() };
            let mut decoder = Diffusion::cached(net, config)?;
            let text = match &mut entry.how {
                How::Policy(policy) => decoder.generate(&canvas, policy.as_mut())?,
                How::Dave(drafts) => {
                    let config = FreeDaveConfig { drafts: *drafts, ..FreeDaveConfig::default() };
                    decoder.free_dave(&canvas, &config)?
                }
            };
            if at == 0 {
                continue;
            }
            let right = rules.is_right(text.response());
            row.cell.add(right, text.forwards(), text.ledger.emitted);
            row.rows += text.ledger.target_rows;
            row.right.push(right);
            row.forwards.push(text.forwards() as f64);
            row.seconds.push(text.ledger.total_seconds());
        }
    }
    Ok(rows)
}
