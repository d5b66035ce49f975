//! Weaver: verifiers with known rates, then real ones on a small model.

mod real;
mod synthetic;

use pilotfish_evaluation::{Interval, PairedConfig};

use super::{Choice, Context, Experiment, Finished, Outcome, width_cost};
use crate::machine::{self, Machine};
use crate::results::ResultFile;
use crate::steps::Run;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The experiment.
pub(super) const WEAVER: Experiment = Experiment {
    name: "weaver",
    about: "one score from many weak verifiers: a synthetic sweep, then SmolLM2-135M judging its own answers",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        Choice { name: "part", default: "both", about: "synthetic, real or both" },
        Choice { name: "seeds", default: "10", about: "synthetic worlds a setting" },
        Choice { name: "queries", default: "201", about: "problems for the model, three tasks in turn" },
        Choice { name: "samples", default: "20", about: "responses a problem" },
        Choice {
            name: "dev",
            default: "5",
            about: "labelled problems a task, for the share of right responses",
        },
        Choice { name: "temperature", default: "0.7", about: "temperature of responses" },
        Choice {
            name: "model",
            default: "smollm2-135m",
            about: "a model's name, or the path of a checkpoint",
        },
        Choice { name: "storage", default: "f32", about: "how matrices are stored: f32, int8, int4" },
        Choice { name: "threads", default: "2", about: "threads" },
        Choice { name: "seed", default: "0", about: "seed of problems and responses" },
    ],
    run,
};

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (with_synthetic, with_real) = match options.text("part")? {
        "synthetic" => (true, false),
        "real" => (false, true),
        "both" => (true, true),
        other => return Err(format!("--part {other:?}: there are synthetic, real, both").into()),
    };
    let (started, load) = (machine::now(), machine::load());
    let mut run = Run::open(context.results(), WEAVER.name, options, context.fresh(), context.is_quiet())?;
    let mut result = ResultFile {
        experiment: WEAVER.name.into(),
        title: "Weaver: weak verifiers into one score".into(),
        config: serde_json::to_value(options)?,
        seeds: vec![options.get("seed")?],
        versions: width_cost::versions(),
        commit: machine::commit(std::path::Path::new(".")),
        machine: Machine::here(),
        ..ResultFile::default()
    };
    let mut summary = Vec::new();
    let synthetic_steps = if with_synthetic { synthetic::steps() } else { 0 };
    let real_steps = if with_real { options.get::<u64>("queries")? + 1 } else { 0 };
    run.expect(synthetic_steps + real_steps);
    if with_synthetic {
        summary.push(synthetic::run(&mut run, options.get("seeds")?, &mut result)?);
    }
    if with_real {
        summary.push(real::run(context, &mut run, &mut result)?);
    }
    run.finish();
    result.summary = summary.join(" ");
    (result.load, result.time) = ([load, machine::load()], [started, machine::now()]);
    let (path, report) = result.write(run.folder())?;
    for table in &result.tables {
        context.show(&format!("{}\n", table.terminal()));
    }
    context.show(&result.summary);
    for note in &result.notes {
        context.show(&format!("- {note}"));
    }
    Ok(Finished { result: Some(path), report: Some(report) })
}

/// A mean with its bootstrap interval.
fn mean(values: &[f64]) -> Result<(f64, Option<Interval>), Failure> {
    let zeros = vec![0.0; values.len()];
    let effect = pilotfish_evaluation::compare(values, &zeros, &PairedConfig::default())?.difference;
    Ok((effect.value, effect.interval))
}

fn percent(value: f64, interval: Option<Interval>) -> String {
    match interval {
        Some(Interval { low, high }) => {
            format!("{:.1} [{:.1}, {:.1}]", 100.0 * value, 100.0 * low, 100.0 * high)
        }
        None => format!("{:.1}", 100.0 * value),
    }
}
