//! Weak-to-strong generalisation on worlds whose answer is known, and on real ones: floor, student, ceiling, and what
//! of the gap came back.

mod real;
mod worlds;

pub(super) use real::row_sums;

use pilotfish_supervision::weak_to_strong::{
    Agreement, Outcomes, Pgr, PgrConfig, Protocol, Recovered, Trainee,
};
use pilotfish_training::losses::classification::Confidence;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::page::{Began, Page, mean};
use super::probe::Probe;
use super::session::THREADS;
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::steps::Run;
use crate::tables::Table;
use real::Sources;
use worlds::World;

/// The experiment.
pub(super) const W2S: Experiment = Experiment {
    name: "w2s",
    about: "weak-to-strong generalisation: floor, student, ceiling and the gap recovered, by loss and world",
    needs: &["digits", "mnist-5k", "20newsgroups", "minilm", "smollm2-135m"],
    library: true,
    options: &[
        Choice { name: "worlds", default: "all", about: "names of worlds, or all, drawn, real" },
        Choice { name: "seeds", default: "5", about: "seeds a world, from 1 on" },
        Choice { name: "messages", default: "1400", about: "messages of two newsgroups at most" },
        THREADS,
    ],
    run,
};

/// How students learn: by cross-entropy, and by the confidence loss with two largest weights.
const LOSSES: [(&str, Option<f64>); 3] =
    [("naive", None), ("confidence 0.5", Some(0.5)), ("confidence 0.75", Some(0.75))];

/// One seed of a world.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    outcomes: Vec<Outcomes>,
    agreements: Vec<Agreement>,
    /// Accuracy of the labels that the students learnt.
    labels: f64,
}

fn cell(world: &World, sources: &Sources, seed: u64) -> Result<Cell, Failure> {
    let built = (world.build)(sources, seed)?;
    let students: Vec<Probe> = LOSSES
        .iter()
        .map(|(_, largest)| {
            let confidence = largest.map(|largest| Confidence { largest, ..Confidence::default() });
            Probe { confidence, ..built.student.clone() }
        })
        .collect();
    let protocol = Protocol {
        teachers: built.teachers.iter().map(|teacher| &**teacher).collect(),
        students: students.iter().map(|student| student as &dyn Trainee).collect(),
        ceiling: &built.student,
        split: built.split,
    };
    let run = protocol.run(&built.task, seed)?;
    let of = 0..LOSSES.len();
    Ok(Cell {
        outcomes: of.clone().map(|student| run.outcomes(student)).collect::<Result<_, _>>()?,
        agreements: of.map(|student| run.agreement(student)).collect::<Result<_, _>>()?,
        labels: run.labels.accuracy(&built.task)?,
    })
}

fn chosen(text: &str) -> Result<Vec<&'static World>, Failure> {
    let all = || worlds::DRAWN.iter().chain(real::COLLECTED);
    match text {
        "all" => return Ok(all().collect()),
        "drawn" | "real" => return Ok(all().filter(|world| world.real == (text == "real")).collect()),
        _ => {}
    }
    let find = |name: &str| {
        all().find(|world| world.name == name).ok_or_else(|| {
            let names: Vec<&str> = all().map(|world| world.name).collect();
            let near = crate::near(name, names.iter().copied());
            let near = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            let names = names.join(", ");
            Failure::from(format!("no world called {name:?}{near}; there are all, drawn, real, {names}"))
        })
    };
    text.split(',').map(|name| find(name.trim())).collect()
}

/// What came of worlds of one kind.
struct Part {
    table: Table,
    plot: Option<Plot>,
    rows: Vec<Json>,
    summary: String,
}

fn part(
    what: &str,
    worlds: &[&World],
    sources: &Sources,
    seeds: u64,
    run: &mut Run,
) -> Result<Part, Failure> {
    let mut table = Table::new(
        format!(
            "{what}: accuracies, means over seeds, and the performance gap recovered with a 95 % interval"
        ),
        &["world", "loss", "weak", "student", "ceiling", "PGR", "agrees, weak right", "agrees, weak wrong"],
    );
    let (mut rows, mut summaries) = (Vec::new(), Vec::new());
    let mut series = LOSSES.map(|(name, _)| Series { name: name.into(), points: Vec::new() });
    for (at, world) in worlds.iter().enumerate() {
        let cells = (1..=seeds)
            .map(|seed| run.step(&format!("{}, seed {seed}", world.name), || cell(world, sources, seed)))
            .collect::<Result<Vec<_>, _>>()?;
        for (student, (loss, _)) in LOSSES.iter().enumerate() {
            let outcomes: Vec<Outcomes> = cells.iter().map(|cell| cell.outcomes[student].clone()).collect();
            let pgr = Pgr::of(&outcomes, &PgrConfig::default())?;
            let agreement = |of: fn(&Agreement) -> Option<f64>| {
                let all: Vec<f64> = cells.iter().filter_map(|cell| of(&cell.agreements[student])).collect();
                if all.is_empty() { "-".to_owned() } else { format!("{:.3}", mean(&all)) }
            };
            let [weak, learnt, ceiling] = pgr.accuracies.map(|accuracy| format!("{accuracy:.3}"));
            table.row([
                world.name.to_owned(),
                (*loss).to_owned(),
                weak,
                learnt,
                ceiling,
                pgr.recovered.to_string(),
                agreement(|agreement| agreement.weak_right),
                agreement(|agreement| agreement.weak_wrong),
            ]);
            if let Recovered::Share { value, low, high } = pgr.recovered {
                series[student].points.push(Point { x: at as f64, y: value, interval: Some((low, high)) });
            }
            if student == 0 {
                summaries.push(format!("{} {}", world.name, pgr.recovered));
            }
            rows.push(serde_json::json!({
                "world": world.name, "loss": loss, "pgr": pgr,
                "accuracies": outcomes.iter().map(Outcomes::accuracies).collect::<Vec<_>>(),
                "labels": cells.iter().map(|cell| cell.labels).collect::<Vec<_>>(),
            }));
        }
    }
    // Nothing to draw where no gap is resolvable.
    let plot = series.iter().any(|series| !series.points.is_empty()).then(|| Plot {
        title: format!("{what}: performance gap recovered"),
        x: "world".into(),
        y: "PGR".into(),
        kind: Kind::Bars { labels: worlds.iter().map(|world| world.name.replace('-', " ")).collect() },
        series: series.to_vec(),
        reference: Some(0.0),
    });
    Ok(Part { table, plot, rows, summary: format!("{what}: {}.", summaries.join("; ")) })
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let worlds = chosen(options.text("worlds")?)?;
    let seeds: u64 = options.get("seeds")?;
    if !(1..=1000).contains(&seeds) {
        return Err("--seeds must be from 1 to 1000".into());
    }
    let began = Began::now();
    let mut run = Run::open(context.results(), W2S.name, options, context.fresh(), context.is_quiet())?;
    let sources = Sources::load(context, &worlds)?;
    run.expect(worlds.len() as u64 * seeds);
    let mut parts = Vec::new();
    for (what, real) in [("Drawn worlds", false), ("Real data", true)] {
        let worlds: Vec<&World> = worlds.iter().copied().filter(|world| world.real == real).collect();
        if !worlds.is_empty() {
            parts.push(part(what, &worlds, &sources, seeds, &mut run)?);
        }
    }
    let mut about = Table::new("Worlds", &["world", "supervisor and student"]);
    worlds.iter().for_each(|world| {
        about.row([world.name.to_owned(), world.about.to_owned()]);
    });
    let summaries: Vec<&str> = parts.iter().map(|part| part.summary.as_str()).collect();
    let page = Page {
        experiment: &W2S,
        title: "Weak-to-strong generalisation".into(),
        summary: format!(
            "Recovered of the gap by plain imitation of the weak labels. {}",
            summaries.join(" ")
        ),
        seeds: (1..=seeds).collect(),
        rows: parts.iter().flat_map(|part| part.rows.clone()).collect(),
        tables: parts.iter().map(|part| part.table.clone()).chain([about]).collect(),
        plots: parts.iter().filter_map(|part| part.plot.clone()).collect(),
        notes: notes(),
    };
    page.write(context, &run, began)
}

fn notes() -> Vec<String> {
    [
        "What is trained is a head on features, not a language model: the strong model's body stands in its features. \
         The ceiling learns the truth of the same items with the same settings.",
        "PGR is a ratio of means over seeds; its interval resamples seeds, and test items within them, for all three \
         models together. 'Not resolvable': floor and ceiling are less than three standard errors apart.",
        "The paper's gain by the confidence loss needs a student that knows something of the task beforehand. A head that \
         begins at 0 does not: compare its rows with plain imitation's before believing in it.",
        "Scales, principal components and word weights are measured on the items of weak training and transfer, never on \
         test items. Messages with the same text are one item.",
    ]
    .map(str::to_owned)
    .to_vec()
}
