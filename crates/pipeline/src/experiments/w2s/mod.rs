//! Weak-to-strong generalisation on worlds whose answer is known, and on real ones: floor, student, ceiling, and what
//! of the gap came back.

mod probe;
mod worlds;

use pilotfish_supervision::weak_to_strong::{
    Agreement, Outcomes, Pgr, PgrConfig, Protocol, Recovered, Trainee,
};
use pilotfish_training::losses::classification::Confidence;
use serde::{Deserialize, Serialize};

use super::page::{Began, Page, mean};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::steps::Run;
use crate::tables::Table;
use worlds::{WORLDS, World};

/// The experiment.
pub(super) const W2S: Experiment = Experiment {
    name: "w2s",
    about: "weak-to-strong generalisation: floor, student, ceiling and the gap recovered, by loss and world",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "worlds", default: "all", about: "names of worlds, or all" },
        Choice { name: "seeds", default: "5", about: "seeds a world, from 1 on" },
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

fn cell(world: &World, seed: u64) -> Result<Cell, Failure> {
    let built = (world.build)(seed)?;
    let students: Vec<probe::Probe> = LOSSES
        .iter()
        .map(|(_, largest)| {
            let confidence = largest.map(|largest| Confidence { largest, ..Confidence::default() });
            probe::Probe { confidence, ..built.student.clone() }
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
    if text == "all" {
        return Ok(WORLDS.iter().collect());
    }
    let find = |name: &str| {
        WORLDS.iter().find(|world| world.name == name).ok_or_else(|| {
            let names: Vec<&str> = WORLDS.iter().map(|world| world.name).collect();
            let near = crate::near(name, names.iter().copied());
            let near = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            Failure::from(format!("no world called {name:?}{near}; there are all, {}", names.join(", ")))
        })
    };
    text.split(',').map(|name| find(name.trim())).collect()
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
    run.expect(worlds.len() as u64 * seeds);
    let mut table = Table::new(
        "Accuracies, means over seeds, and the performance gap recovered with a 95 % interval",
        &["world", "loss", "weak", "student", "ceiling", "PGR", "agrees, weak right", "agrees, weak wrong"],
    );
    let mut rows = Vec::new();
    let mut series = LOSSES.map(|(name, _)| Series { name: name.into(), points: Vec::new() });
    let mut summaries = Vec::new();
    for (at, world) in worlds.iter().enumerate() {
        let cells = (1..=seeds)
            .map(|seed| run.step(&format!("{}, seed {seed}", world.name), || cell(world, seed)))
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
    let mut about = Table::new("Worlds", &["world", "supervisor and student"]);
    worlds.iter().for_each(|world| {
        about.row([world.name.to_owned(), world.about.to_owned()]);
    });
    let page = Page {
        experiment: &W2S,
        title: "Weak-to-strong generalisation".into(),
        summary: format!("Recovered of the gap by plain imitation of the weak labels: {}.", summaries.join("; ")),
        seeds: (1..=seeds).collect(),
        rows,
        tables: vec![table, about],
        // Nothing to draw where no gap is resolvable.
        plots: Vec::from_iter(series.iter().any(|series| !series.points.is_empty()).then(|| Plot {
            title: "Performance gap recovered, by world".into(),
            x: "world".into(),
            y: "PGR".into(),
            kind: Kind::Bars { labels: worlds.iter().map(|world| world.name.to_owned()).collect() },
            series: series.to_vec(),
            reference: Some(0.0),
        })),
        notes: vec![
            "What is trained is a head on features, not a language model: the strong model's body stands in its \
             features. The ceiling learns the truth of the same items with the same settings."
                .into(),
            "PGR is a ratio of means over seeds; its interval resamples seeds, and test items within them, for all \
             three models together. 'Not resolvable': floor and ceiling are less than three standard errors apart."
                .into(),
            "The paper's gain by the confidence loss needs a student that knows something of the task beforehand. A head \
             that begins at 0 does not: compare its rows with plain imitation's before believing in it."
                .into(),
        ],
    };
    page.write(context, &run, began)
}
