//! Learn2PD on the trained model: filters by seed, and the speed-up where accuracy is level.

use pilotfish_diffusion::learn2pd::{Learn2Pd, Visible};
use pilotfish_diffusion::parallelbench::Task;
use pilotfish_diffusion::policy::{Policy, Threshold};
use pilotfish_diffusion::{Diffusion, Fixed};
use pilotfish_evaluation::{Comparison, PairedConfig, compare};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::learn2pd::{Trained as Filtered, train};
use super::trained::{self, ITEMS, TASKS};
use super::{Rules, World};
use crate::error::Failure;
use crate::experiments::page::{difference, mean};
use crate::experiments::session::ratio;
use crate::steps::Run;
use crate::tables::Table;

const TAUS: [f64; 6] = [0.5, 0.7, 0.8, 0.9, 0.96, 0.99];
const GAMMAS: [f64; 6] = [0.5, 0.7, 0.8, 0.9, 0.95, 0.99];
/// What a setting may lose on the prompts it is chosen by.
const MARGIN: f64 = 0.01;

/// One method on prompts of a task.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Played {
    method: String,
    task: String,
    right: Vec<f64>,
    forwards: Vec<f64>,
    seconds: Vec<f64>,
}

impl Played {
    fn extend(&mut self, other: &Self) {
        self.right.extend(&other.right);
        self.forwards.extend(&other.forwards);
        self.seconds.extend(&other.seconds);
    }
}

/// What the page says of the trained model.
pub(super) struct Section {
    pub(super) filters: Vec<(u64, Filtered)>,
    pub(super) tables: Vec<Table>,
    pub(super) rows: Vec<Json>,
    pub(super) summary: String,
}

/// Sizes of the comparison.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) traces: usize,
    pub(super) steps: usize,
    /// Prompts a task to choose by, and as many to judge by.
    pub(super) prompts: usize,
}

/// Steps of a run that a section takes.
pub(super) fn steps(seeds: &[u64]) -> u64 {
    (seeds.len() * (1 + 2 * TASKS.len())) as u64
}

pub(super) fn section(
    run: &mut Run,
    world: &mut World,
    seeds: &[u64],
    sizes: Sizes,
) -> Result<Section, Failure> {
    let mut filters = Vec::new();
    let mut tables = Vec::new();
    let mut rows = Vec::new();
    let mut chosen = Table::new(
        "Trained model, settings chosen on other prompts: against one token a pass, 95 % intervals, prompts resampled",
        &["seed", "method", "accuracy", "difference", "passes", "tokens a second"],
    );
    let mut pooled: Vec<(String, Vec<Played>)> = Vec::new();
    for &seed in seeds {
        let Sizes { traces, steps, prompts } = sizes;
        let step = format!("trained model, seed {seed}: filter");
        let filter: Filtered = run.step(&step, || train(world, &TASKS, ITEMS, traces, steps, seed))?;
        let mut sets: [Vec<Played>; 2] = [Vec::new(), Vec::new()];
        // Both sets of prompts are other ones than the filter's.
        for (set, part) in sets.iter_mut().zip(["choosing", "judging"]) {
            for task in TASKS {
                let of = Streamed { seed, part, prompts };
                let step = format!("trained model, seed {seed}: {part}, {task}");
                set.extend(run.step(&step, || play(world, &filter, task, of))?);
            }
        }
        let [choosing, judging] = &sets;
        let total = |set: &[Played], method: &str| {
            let mut sum = Played { method: method.into(), ..Played::default() };
            set.iter().filter(|played| played.method == method).for_each(|played| sum.extend(played));
            sum
        };
        let plain = total(judging, PLAIN);
        let needed = mean(&total(choosing, PLAIN).right) - MARGIN;
        for (label, settings) in [
            ("Learn2PD", TAUS.map(learnt).to_vec()),
            ("threshold", GAMMAS.map(fixed).to_vec()),
            ("oracle", vec![ORACLE.to_owned()]),
        ] {
            let level =
                |method: &&String| label == "oracle" || mean(&total(choosing, method).right) >= needed;
            let passes = |method: &String| mean(&total(choosing, method).forwards);
            let best = settings.iter().filter(level).min_by(|a, b| passes(a).total_cmp(&passes(b)));
            let Some(best) = best else {
                chosen.row([
                    seed.to_string(),
                    format!("{label}: none is level"),
                    "-".into(),
                    "-".into(),
                    "-".into(),
                    "-".into(),
                ]);
                continue;
            };
            let judged = total(judging, best);
            let [right, passes, speed] = against(&judged, &plain)?;
            let text = |comparison: &Comparison| comparison.ratio.as_ref().map_or("-".into(), ratio);
            chosen.row([
                seed.to_string(),
                best.clone(),
                format!("{:.3}", mean(&judged.right)),
                difference(&right.difference),
                format!("{:.2} ({})", mean(&judged.forwards), text(&passes)),
                // The oracle decodes twice, once to know the answer: its time says nothing.
                if label == "oracle" { "-".into() } else { text(&speed) },
            ]);
            rows.push(serde_json::json!({
                "world": "trained", "seed": seed, "method": best, "chosen_of": label,
                "accuracy": right, "passes": passes, "speed": speed,
            }));
            let of_tasks = judging.iter().filter(|played| played.method == *best).cloned();
            push(&mut pooled, label, of_tasks);
        }
        push(&mut pooled, PLAIN, judging.iter().filter(|played| played.method == PLAIN).cloned());
        filters.push((seed, filter));
    }
    let labels = [PLAIN, "Learn2PD", "threshold", "oracle"];
    let mut each = Table::new(
        format!("Trained model, settings as chosen, {} seeds together: accuracy / mean passes", seeds.len()),
        &["task", labels[0], labels[1], labels[2], labels[3]],
    );
    let of = |label: &str, task: Option<Task>| {
        let mut sum = Played::default();
        let all = pooled.iter().filter(|(of, _)| of == label).flat_map(|(_, all)| all);
        let wanted = all.filter(|played| task.is_none_or(|task| played.task == task.name()));
        wanted.for_each(|played| sum.extend(played));
        (mean(&sum.right), mean(&sum.forwards))
    };
    for task in TASKS {
        let cells = labels.map(|label| {
            let (right, passes) = of(label, Some(task));
            format!("{right:.3} / {passes:.2}")
        });
        each.row([task.name().to_owned()].into_iter().chain(cells));
    }
    let [plain, learnt, threshold] = [PLAIN, "Learn2PD", "threshold"].map(|label| of(label, None));
    let aucs: Vec<f64> = filters.iter().filter_map(|(_, filter)| filter.report.auc).collect();
    let summary = format!(
        "On the trained model the filters' AUC is {:.3} (mean of {} seeds). At the accuracy of one token a pass ({:.3} in {:.2} \
         passes) as settings chosen on other prompts keep it: Learn2PD {:.3} in {:.2}, thresholds {:.3} in {:.2}.",
        mean(&aucs),
        aucs.len(),
        plain.0,
        plain.1,
        learnt.0,
        learnt.1,
        threshold.0,
        threshold.1,
    );
    tables.extend([chosen, each]);
    Ok(Section { filters, tables, rows, summary })
}

const PLAIN: &str = "one a pass";
const ORACLE: &str = "oracle";

fn learnt(tau: f64) -> String {
    format!("Learn2PD {tau}")
}

fn fixed(gamma: f64) -> String {
    format!("threshold {gamma}")
}

fn push(pooled: &mut Vec<(String, Vec<Played>)>, label: &str, played: impl Iterator<Item = Played>) {
    match pooled.iter_mut().find(|(of, _)| of == label) {
        Some((_, all)) => all.extend(played),
        None => pooled.push((label.into(), played.collect())),
    }
}

/// Accuracy, passes and speed against one token a pass.
fn against(played: &Played, plain: &Played) -> Result<[Comparison; 3], Failure> {
    let config = PairedConfig { resamples: 2000, ..PairedConfig::default() };
    Ok([
        compare(&played.right, &plain.right, &config)?,
        compare(&played.forwards, &plain.forwards, &config)?,
        compare(&plain.seconds, &played.seconds, &config)?,
    ])
}

/// Which prompts.
#[derive(Clone, Copy)]
struct Streamed<'a> {
    seed: u64,
    part: &'a str,
    prompts: usize,
}

fn play(world: &mut World, filter: &Filtered, task: Task, of: Streamed<'_>) -> Result<Vec<Played>, Failure> {
    let mut policies: Vec<(String, Box<dyn Policy>)> = vec![(PLAIN.into(), Box::new(Fixed::default()))];
    for tau in TAUS {
        let policy = Learn2Pd::new(filter.fit.filter.clone(), tau, Visible::default())?;
        policies.push((learnt(tau), Box::new(policy)));
    }
    for gamma in GAMMAS {
        policies.push((fixed(gamma), Box::new(Threshold { gamma })));
    }
    let named =
        |method: &str| Played { method: method.into(), task: task.name().into(), ..Played::default() };
    let mut all: Vec<Played> = policies.iter().map(|(name, _)| named(name)).collect();
    let mut oracle = named(ORACLE);
    let salt = if of.part == "choosing" { 11 } else { 13 };
    for (index, problem) in
        trained::held_out(task, of.prompts, of.seed.wrapping_mul(salt))?.iter().enumerate()
    {
        let mut case = world.case(problem, index as u64)?;
        let (rules, canvas): (&Rules, _) = (&case.rules, &case.canvas);
        let mut decoder = Diffusion::new(case.model.model(), trained::decoding(0.0, index as u64))?;
        let mut reference = Vec::new();
        for ((_, policy), played) in policies.iter_mut().zip(&mut all) {
            let text = decoder.generate(canvas, policy.as_mut())?;
            played.right.push(f64::from(u8::from(rules.is_right(text.response()))));
            played.forwards.push(text.forwards() as f64);
            played.seconds.push(text.ledger.total_seconds());
            if reference.is_empty() {
                reference = text.tokens;
            }
        }
        let known = decoder.extremely_greedy(canvas, &reference, Visible::One, index)?.generation;
        oracle.right.push(f64::from(u8::from(rules.is_right(known.response()))));
        oracle.forwards.push(known.forwards() as f64);
        oracle.seconds.push(known.ledger.total_seconds());
    }
    all.push(oracle);
    Ok(all)
}
