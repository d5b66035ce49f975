//! Delta learning: pairs of weak answers that make a stronger model better, and when they do not.

mod adders;
mod theory;

use super::page::{Began, Page};
use super::{Choice, Context, Experiment, Outcome};
use crate::steps::Run;

/// The experiment.
pub(super) const DELTA_LEARNING: Experiment = Experiment {
    name: "delta-learning",
    about: "preference tuning on pairs of weak answers: closed forms, counted sections, small transformers that add",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "seeds", default: "3", about: "seeds, from 1 on" },
        Choice { name: "items", default: "10000", about: "items of the logistic regression" },
        Choice { name: "dimensions", default: "50", about: "dimensions of the logistic regression" },
        Choice { name: "prompts", default: "1000", about: "sums that the transformers' pairs are about" },
        Choice {
            name: "student-steps",
            default: "600",
            about: "steps of the transformers' student: after 1200 it hardly errs, and nothing can be learnt",
        },
    ],
    run,
};

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let seeds: u64 = options.get("seeds")?;
    let (items, dimensions): (usize, usize) = (options.get("items")?, options.get("dimensions")?);
    let (prompts, student_steps): (usize, u64) = (options.get("prompts")?, options.get("student-steps")?);
    if !(2..=100).contains(&seeds) || !(100..=1_000_000).contains(&items) || !(4..=2000).contains(&dimensions)
    {
        return Err(
            "--seeds from 2 to 100, --items from 100 to a million, --dimensions from 4 to 2000".into()
        );
    }
    if !(100..=4000).contains(&prompts) || !(1..=100_000).contains(&student_steps) {
        return Err("--prompts must be from 100 to 4000, --student-steps from 1 to 100000".into());
    }
    let began = Began::now();
    let name = DELTA_LEARNING.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(seeds * (theory::SHARED.len() as u64 + 1));
    let theory = theory::run(&mut run, seeds, items, dimensions)?;
    let counts = theory::counts()?;
    let adders = adders::run(&mut run, seeds, prompts, student_steps)?;
    let page = Page {
        experiment: &DELTA_LEARNING,
        title: "Delta learning".into(),
        summary: format!("{} {}", theory.summary, adders.summary),
        seeds: (1..=seeds).collect(),
        rows: theory.rows.into_iter().chain(counts.rows).chain(adders.rows).collect(),
        tables: theory.tables.into_iter().chain(counts.tables).chain(adders.tables).collect(),
        plots: theory.plots.into_iter().chain(counts.plots).chain(adders.plots).collect(),
        notes: [
            "The closed forms are derived anew: the authors' theorem could not be read, and its constants may differ.",
            "Best accuracies along a path are those of the best step in hindsight; a run that does not know when to stop \
             ends nearer to the last column.",
            "Where errors are not shared, imitating the better teacher and stopping early helps as much as the pairs, or \
             more. The pairs' advantage is that errors which both teachers share cancel.",
            "Sections: 'shared' moves one slope that all sizes have in common, 'own' each size's parameter. Only what is \
             shared lets a preference for 3 over 2 say anything about 4.",
            "Transformers: students and teachers are trained from scratch on sums of two numbers of two digits; teachers \
             are smaller and were stopped early. Learning rates are chosen among four, each method's on 300 sums of its \
             own that are in no table; reversed and tied pairs have the same choice.",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    page.write(context, &run, began)
}

/// A part of the page.
#[derive(Default)]
struct Part {
    summary: String,
    rows: Vec<serde_json::Value>,
    tables: Vec<crate::tables::Table>,
    plots: Vec<crate::plots::Plot>,
}
