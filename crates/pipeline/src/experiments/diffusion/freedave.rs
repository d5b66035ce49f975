//! FreeDave on the trained model: the text of static decoding, in fewer passes, and at what price in time.

use pilotfish_diffusion::parallelbench::Task;
use pilotfish_diffusion::policy::Threshold;
use pilotfish_diffusion::{
    Blocks, Cache, Diffusion, DiffusionConfig, Fixed, FreeDaveConfig, Generation, Noise,
};
use pilotfish_evaluation::{PairedConfig, compare};
use serde::{Deserialize, Serialize};

use super::{Rules, trained};
use crate::error::Failure;
use crate::experiments::page::{self, Began, Page, mean};
use crate::experiments::session::ratio;
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::masked::Cached;
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;
use trained::{Settings, TASKS};

/// The experiment.
pub(in crate::experiments) const FREEDAVE: Experiment = Experiment {
    name: "freedave",
    about: "FreeDave against static and threshold decoding on the trained model: the same text, passes, rows, time",
    needs: &[],
    library: true,
    options: &[
        trained::STEPS,
        trained::BATCH,
        trained::SEED,
        Choice { name: "prompts", default: "50", about: "prompts a task" },
        Choice { name: "seed", default: "1", about: "seed of the prompts" },
    ],
    run,
};

const DRAFTS: [usize; 4] = [1, 2, 4, 8];
/// A lead of the chosen position over the next below which rounding may decide.
const NEAR: f64 = 1e-5;

/// Static decoding in a setting, which drafts are compared with.
#[derive(Clone, Copy)]
struct Setting {
    name: &'static str,
    blocks: Option<usize>,
    cache: Cache,
    temperature: f64,
}

const SETTINGS: [Setting; 5] = [
    Setting { name: "whole answer", blocks: None, cache: Cache::None, temperature: 0.0 },
    Setting { name: "blocks of 4", blocks: Some(4), cache: Cache::None, temperature: 0.0 },
    Setting { name: "blocks of 4, prefix cache", blocks: Some(4), cache: Cache::Prefix, temperature: 0.0 },
    Setting { name: "blocks of 4, dual cache", blocks: Some(4), cache: Cache::Dual, temperature: 0.0 },
    Setting { name: "whole answer, temperature 1", blocks: None, cache: Cache::None, temperature: 1.0 },
];

/// One method on all prompts of a task in a setting.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Row {
    task: String,
    setting: String,
    method: String,
    /// Texts that equal static decoding's.
    same: usize,
    /// Texts that differ where static decoding was decided by less than rounding may move.
    near: usize,
    /// Texts that took more passes than static decoding.
    more: usize,
    right: usize,
    forwards: Vec<f64>,
    rows: u64,
    seconds: Vec<f64>,
}

impl Row {
    fn add(&mut self, text: &Generation, right: bool) {
        self.right += usize::from(right);
        self.forwards.push(text.forwards() as f64);
        self.rows += text.ledger.target_rows;
        self.seconds.push(text.ledger.total_seconds());
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let settings = Settings::of(options)?;
    let (prompts, seed): (usize, u64) = (options.get("prompts")?, options.get("seed")?);
    if prompts < 2 {
        return Err("--prompts must be at least 2".into());
    }
    let began = Began::now();
    let mut run = Run::open(context.results(), FREEDAVE.name, options, context.fresh(), context.is_quiet())?;
    run.expect(trained::segments(&settings) + (TASKS.len() * SETTINGS.len()) as u64);
    let mut net = trained::ready(context, &mut run, settings)?.load()?;
    let mut rows: Vec<Row> = Vec::new();
    for setting in SETTINGS {
        for task in TASKS {
            let step = format!("{task}, {}", setting.name);
            rows.extend(run.step(&step, || play(&mut net, task, setting, prompts, seed))?);
        }
    }
    let mut passes = Table::new(
        format!("Mean passes for 8 tokens, whole answer, temperature 0, {prompts} prompts a task"),
        &[
            "task",
            "static",
            "FreeDave 1",
            "2",
            "4",
            "8",
            "threshold 0.9",
            "threshold 0.9 gives the same text",
        ],
    );
    let find = |task: Task, setting: &str, method: &str| {
        rows.iter().find(|row| row.task == task.name() && row.setting == setting && row.method == method)
    };
    for task in TASKS {
        let of = |method: &str| find(task, SETTINGS[0].name, method);
        let text =
            |method: &str| of(method).map_or(String::new(), |row| format!("{:.2}", mean(&row.forwards)));
        passes.row(
            [task.name().to_owned(), text("static")]
                .into_iter()
                .chain(DRAFTS.map(|drafts| text(&dave(drafts))))
                .chain([
                    text("threshold 0.9"),
                    of("threshold 0.9").map_or(String::new(), |row| format!("{} of {prompts}", row.same)),
                ]),
        );
    }
    let mut costs = Table::new(
        "Against static decoding in the same setting, all tasks together; ratios with 95 % intervals, prompts resampled",
        &["setting", "method", "same text", "near ties", "more passes", "passes", "rows", "tokens a second"],
    );
    let mut series = Vec::new();
    let (mut same, mut near, mut all, mut more) = (0, 0, 0, 0);
    for setting in SETTINGS {
        let of = |method: &str| -> Row {
            rows.iter().filter(|row| row.setting == setting.name && row.method == method).fold(
                Row::default(),
                |mut sum, row| {
                    sum.same += row.same;
                    sum.near += row.near;
                    sum.more += row.more;
                    sum.rows += row.rows;
                    sum.forwards.extend(&row.forwards);
                    sum.seconds.extend(&row.seconds);
                    sum
                },
            )
        };
        let plain = of("static");
        let mut points = Vec::new();
        let methods = DRAFTS.map(dave).into_iter().chain(["threshold 0.9".to_owned()]);
        for method in methods {
            let row = of(&method);
            let config = PairedConfig { resamples: 2000, ..PairedConfig::default() };
            let forwards = compare(&row.forwards, &plain.forwards, &config)?;
            // Every prompt has as many tokens: less time is more tokens a second.
            let speed = compare(&plain.seconds, &row.seconds, &config)?;
            let text = |effect| ratio(&effect);
            costs.row([
                setting.name.to_owned(),
                method.clone(),
                format!("{} of {}", row.same, row.forwards.len()),
                row.near.to_string(),
                row.more.to_string(),
                forwards.ratio.map_or(String::new(), text),
                format!("{:.2}x", row.rows as f64 / plain.rows.max(1) as f64),
                speed.ratio.map_or(String::new(), text),
            ]);
            if let Some(drafts) = DRAFTS.iter().find(|drafts| dave(**drafts) == method) {
                same += row.same;
                near += row.near;
                more += row.more;
                all += row.forwards.len();
                let ratio =
                    speed.ratio.unwrap_or(pilotfish_evaluation::Effect { value: 0.0, interval: None });
                points.push(Point {
                    x: *drafts as f64,
                    y: ratio.value,
                    interval: ratio.interval.map(|interval| (interval.low, interval.high)),
                });
            }
        }
        series.push(Series { name: setting.name.into(), points });
    }
    let of_tasks = |method: &str| {
        mean(
            &TASKS
                .iter()
                .filter_map(|&task| find(task, SETTINGS[0].name, method))
                .map(|row| mean(&row.forwards))
                .collect::<Vec<_>>(),
        )
    };
    let summary = format!(
        "FreeDave gave the text of static decoding in {same} of {all} cases ({near} of the others at near ties), and took more \
         passes than it in {more}. Passes for 8 tokens: static {:.2}, two drafts {:.2}, four {:.2}, eight {:.2}.",
        of_tasks("static"),
        of_tasks(&dave(2)),
        of_tasks(&dave(4)),
        of_tasks(&dave(8)),
    );
    let notes = vec![
        "One thread, one session; the drafts of a pass are a batch. Times include drawing and comparing drafts.".into(),
        "Static decoding is that with the same blocks and the same cache. At temperature 1 noise belongs to a position and not to a step, the same for both.".into(),
        format!("Near ties: static decoding once chose a position whose lead in confidence over the next was below {NEAR}; a batch of another size may round it the other way."),
        "A pass of several drafts is one pass of as many times the rows. This model is so small that a pass costs more for being started than for its rows; on a large model and few cores the rows decide.".into(),
        "Thresholds need fewer passes where there is one answer, and change texts where there is a choice.".into(),
    ];
    let json = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "task": row.task, "setting": row.setting, "method": row.method, "prompts": row.forwards.len(),
                "right": row.right, "same": row.same, "near": row.near, "more": row.more,
                "forwards": mean(&row.forwards), "rows": row.rows, "seconds": mean(&row.seconds),
            })
        })
        .collect();
    let page = Page {
        experiment: &FREEDAVE,
        title: "FreeDave: drafts that verify themselves".into(),
        summary,
        seeds: vec![settings.seed, seed],
        rows: json,
        tables: vec![passes, costs],
        plots: vec![page::lines("Tokens a second against static decoding", "drafts", "ratio", series)],
        notes,
    };
    page.write(context, &run, began)
}

fn dave(drafts: usize) -> String {
    format!("FreeDave {drafts}")
}

fn play(
    net: &mut Cached,
    task: Task,
    setting: Setting,
    prompts: usize,
    seed: u64,
) -> Result<Vec<Row>, Failure> {
    let methods: Vec<String> = ["static".to_owned()]
        .into_iter()
        .chain(DRAFTS.map(dave))
        .chain(["threshold 0.9".to_owned()])
        .collect();
    let mut rows: Vec<Row> = methods
        .iter()
        .map(|method| Row {
            task: task.name().into(),
            setting: setting.name.into(),
            method: method.clone(),
            ..Row::default()
        })
        .collect();
    // The first passes of a session are slower than those that follow.
    let problems = trained::held_out(task, prompts + 1, seed)?;
    for (at, problem) in problems.iter().enumerate() {
        let (rules, canvas) = (Rules::trained(problem), trained::canvas(problem)?);
        let config = DiffusionConfig {
            blocks: setting.blocks.map_or(Blocks::Whole, Blocks::Fixed),
            cache: setting.cache,
            temperature: setting.temperature,
            noise: Noise::Position,
            seed: seed.wrapping_mul(1_000_003).wrapping_add(at as u64),
            ..DiffusionConfig::default()
        };
        let mut decoder = Diffusion::cached(net, config)?;
        let mut lead = f64::INFINITY;
        let mut texts = Vec::with_capacity(methods.len());
        for (index, _) in methods.iter().enumerate() {
            texts.push(match index.checked_sub(1) {
                None => decoder.generate(&canvas, &mut Fixed::default())?,
                Some(draft) => match DRAFTS.get(draft) {
                    Some(&drafts) => {
                        decoder.free_dave(&canvas, &FreeDaveConfig { drafts, ..FreeDaveConfig::default() })?
                    }
                    None => decoder.generate(&canvas, &mut Threshold { gamma: 0.9 })?,
                },
            });
        }
        if texts.iter().any(|text| text.tokens != texts[0].tokens) {
            decoder.generate_observed(&canvas, &mut Fixed::default(), &mut |view, _, _| {
                let mut sure: Vec<f64> = view.masked.iter().map(|p| p.confidence).collect();
                sure.sort_by(|a, b| b.total_cmp(a));
                lead = sure.windows(2).take(1).map(|pair| pair[0] - pair[1]).fold(lead, f64::min);
            })?;
        }
        if at == 0 {
            continue;
        }
        for (row, text) in rows.iter_mut().zip(&texts) {
            row.add(text, rules.is_right(text.response()));
            let same = text.tokens == texts[0].tokens;
            row.same += usize::from(same);
            row.near += usize::from(!same && lead < NEAR);
            row.more += usize::from(text.forwards() > texts[0].forwards());
        }
    }
    Ok(rows)
}
