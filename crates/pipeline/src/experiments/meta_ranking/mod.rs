//! Meta Ranking: judges of known quality, then a small model that judges answers to other questions.

mod real;
mod synthetic;

use pilotfish_evaluation::Interval;

use super::judging::{PART, parts};
use super::page::{Began, bracketed};
use super::session::STORAGE;
use super::{Choice, Context, Experiment, Outcome};
use crate::results::ResultFile;
use crate::steps::Run;

/// The experiment.
pub(super) const META_RANKING: Experiment = Experiment {
    name: "meta-ranking",
    about: "is this answer right? asked by comparison with other questions' answers: simulated judges, then SmolLM2-135M",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        PART,
        Choice { name: "items", default: "200", about: "answers to judge" },
        Choice {
            name: "references",
            default: "6",
            about: "right references, and as many wrong ones, of which each draw takes 3 and 2",
        },
        Choice { name: "draws", default: "5", about: "draws of five references" },
        Choice {
            name: "solutions",
            default: "",
            about: "GSM8K model solutions (example_model_solutions.jsonl): judged instead of the model's own sums",
        },
        Choice { name: "weak", default: "6b_verification", about: "whose solutions are judged" },
        Choice { name: "strong", default: "175b_verification", about: "whose solutions a cascade turns to" },
        Choice { name: "longest", default: "110", about: "tokens of a question and its solution at most" },
        Choice {
            name: "model",
            default: "smollm2-135m",
            about: "the judge: a model's name, or the path of a checkpoint",
        },
        STORAGE,
        Choice { name: "threads", default: "2", about: "threads" },
        Choice { name: "seed", default: "0", about: "seed of problems, references and simulations" },
    ],
    run,
};

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (with_synthetic, with_real) = parts(options)?;
    let began = Began::now();
    let mut run =
        Run::open(context.results(), META_RANKING.name, options, context.fresh(), context.is_quiet())?;
    let mut config = serde_json::to_value(options)?;
    if let Some(path) = config.get_mut("solutions") {
        // The file's name is enough to say what was read.
        let name = path.as_str().and_then(|path| std::path::Path::new(path).file_name());
        *path = name.map_or("".into(), |name| name.to_string_lossy().into_owned().into());
    }
    let mut result = ResultFile {
        experiment: META_RANKING.name.into(),
        title: "Meta Ranking: judging answers by comparison across questions".into(),
        config,
        seeds: vec![options.get("seed")?],
        ..ResultFile::default()
    };
    let mut summary = Vec::new();
    let items: usize = options.get("items")?;
    let expected = u64::from(with_synthetic) * synthetic::STEPS
        + u64::from(with_real) * real::steps(items, !options.text("solutions")?.is_empty());
    run.expect(expected);
    if with_synthetic {
        summary.push(synthetic::run(&mut run, options.get("seed")?, &mut result)?);
    }
    if with_real {
        summary.push(real::run(context, &mut run, &mut result)?);
    }
    result.summary = summary.join(" ");
    began.publish(context, &run, result)
}

fn shown(value: Option<(f64, Interval)>) -> String {
    value.map_or("-".into(), |(value, interval)| bracketed(value, Some(interval)))
}
