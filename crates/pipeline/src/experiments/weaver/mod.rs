//! Weaver: verifiers with known rates, then real ones on a small model.

mod real;
mod synthetic;

use super::judging::{PART, parts};
use super::page::Began;
use super::session::{MODEL, STORAGE};
use super::{Choice, Context, Experiment, Outcome};
use crate::results::ResultFile;
use crate::steps::Run;

/// The experiment.
pub(super) const WEAVER: Experiment = Experiment {
    name: "weaver",
    about: "one score from many weak verifiers: a synthetic sweep, then SmolLM2-135M judging its own answers",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        PART,
        Choice { name: "seeds", default: "10", about: "synthetic worlds a setting" },
        Choice { name: "queries", default: "201", about: "problems for the model, three tasks in turn" },
        Choice { name: "samples", default: "20", about: "responses a problem" },
        Choice {
            name: "dev",
            default: "5",
            about: "labelled problems a task, for the share of right responses",
        },
        Choice { name: "temperature", default: "0.7", about: "temperature of responses" },
        MODEL,
        STORAGE,
        Choice { name: "threads", default: "2", about: "threads" },
        Choice { name: "seed", default: "0", about: "seed of problems and responses" },
    ],
    run,
};

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (with_synthetic, with_real) = parts(options)?;
    let began = Began::now();
    let mut run = Run::open(context.results(), WEAVER.name, options, context.fresh(), context.is_quiet())?;
    let mut result = ResultFile {
        experiment: WEAVER.name.into(),
        title: "Weaver: weak verifiers into one score".into(),
        config: serde_json::to_value(options)?,
        seeds: vec![options.get("seed")?],
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
    result.summary = summary.join(" ");
    began.publish(context, &run, result)
}
