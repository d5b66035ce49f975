//! Label models side by side: on voters of known rates, where the best possible is known, and on crowds.

use std::path::Path;

use pilotfish_model::Streams;
use pilotfish_supervision::label_models::{
    BinaryMoments, DawidSkene, Fitted, KnownRates, LabelModel, MajorityVote, Scale, Snorkel, Solver, Wawa,
    find,
};
use pilotfish_supervision::labelling::fit_one;
use pilotfish_supervision::votes::{read, read_truth};
use pilotfish_supervision::{SupervisionError, Votes};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::page::Began;
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const LABEL_MODELS: Experiment = Experiment {
    name: "label-models",
    about: "label models beside the best possible rule: simulated voters, copies, few items, and crowds",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "seeds", default: "10", about: "simulated worlds a setting" },
        Choice {
            name: "crowd",
            default: "",
            about: "folder with NAME_answer.csv and NAME_truth.csv of crowds (Zheng et al. 2017)",
        },
        Choice { name: "sets", default: "product,dog", about: "names of the crowds" },
        Choice { name: "seed", default: "0", about: "seed of the simulations" },
    ],
    run,
};

const MODELS: [&str; 8] = [
    "majority",
    "wawa",
    "one-coin",
    "ds",
    "snorkel, solved",
    "snorkel, 100 steps",
    "moments",
    "known rates (the best possible)",
];

/// Models of crowds, and what Crowd-Kit 1.4.2 says where it has the same one: by model, product and dog.
const CROWD: [(&str, Option<[f64; 2]>); 15] = [
    ("majority", Some([0.8966, 0.8116])),
    ("wawa", None),
    ("zbs", None),
    ("ds-crowd-kit", Some([0.9397, 0.8426])),
    ("ds", None),
    ("one-coin-crowd-kit", Some([0.9084, 0.8302])),
    ("one-coin", None),
    ("fast-ds", None),
    ("hybrid-ds", None),
    ("glad-crowd-kit", Some([0.9283, 0.8340])),
    ("glad", None),
    ("mace", None),
    ("kos", None),
    ("m-msr", None),
    ("snorkel-sgd", None),
];

/// Voters with one accuracy each.
#[derive(Clone)]
struct World {
    items: usize,
    voters: usize,
    /// Share of the second class.
    positive: f64,
    /// Copies of the first voter, which is of accuracy 0.6 then.
    copies: usize,
    /// Whether all voters are equally good.
    equal: bool,
}

impl World {
    fn name(&self) -> String {
        let copies = match self.copies {
            0 if self.equal => ", all of accuracy .7".to_owned(),
            0 => String::new(),
            copies => format!(", and {copies} copies of a poor one"),
        };
        format!("{} voters{copies}, {} items, share {}", self.voters, self.items, self.positive)
    }

    fn draw(&self, streams: &Streams) -> Result<(Votes, Vec<usize>, Vec<f64>), SupervisionError> {
        let mut rng = streams.stream("world");
        let mut accuracies: Vec<f64> = (0..self.voters).map(|_| rng.random_range(0.55..0.9)).collect();
        if self.equal {
            accuracies.fill(0.7);
        }
        if self.copies > 0 {
            accuracies[0] = 0.6;
        }
        let (mut cells, mut truth) = (Vec::new(), Vec::new());
        for _ in 0..self.items {
            let y = usize::from(rng.random_bool(self.positive));
            truth.push(y);
            let row: Vec<i8> =
                accuracies.iter().map(|a| if rng.random_bool(*a) { y as i8 } else { 1 - y as i8 }).collect();
            cells.extend(&row);
            cells.extend(std::iter::repeat_n(row[0], self.copies));
        }
        accuracies.extend(vec![accuracies[0]; self.copies]);
        let votes = Votes::from_dense(self.items, accuracies.len(), 2, &cells)?;
        Ok((votes, truth, accuracies))
    }
}

fn worlds() -> Vec<World> {
    let mut out = Vec::new();
    for voters in [5, 10, 30] {
        for items in [100, 1_000, 20_000] {
            for positive in [0.5, 0.2] {
                out.push(World { items, voters, positive, copies: 0, equal: false });
            }
        }
    }
    out.push(World { items: 1_000, voters: 10, positive: 0.5, copies: 0, equal: true });
    for copies in [2, 4] {
        out.push(World { items: 20_000, voters: 10, positive: 0.5, copies, equal: false });
    }
    out
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Measured {
    /// By model: mean accuracy over worlds, and how many of them the model took.
    accuracy: Vec<(f64, u64)>,
    /// By model: mean absolute error of the voters' accuracies.
    error: Vec<f64>,
    /// By model: mean negative log-likelihood of the truth, nats an item.
    surprise: Vec<f64>,
}

fn measure(world: &World, seeds: u64, seed: u64) -> Result<Measured, Failure> {
    let mut sums = vec![[0.0; 3]; MODELS.len()];
    let mut taken = vec![0; MODELS.len()];
    for index in 0..seeds {
        let (votes, truth, accuracies) = world.draw(&Streams::new(seed).fork(index))?;
        let prior = vec![1.0 - world.positive, world.positive];
        let slow = Solver::Sgd { rate: 0.01, momentum: 0.9, steps: 100 };
        let models: [Box<dyn LabelModel>; 8] = [
            Box::new(MajorityVote::default()),
            Box::new(Wawa),
            Box::new(DawidSkene::one_coin()),
            Box::new(DawidSkene::default()),
            Box::new(Snorkel { prior: Some(prior.clone()), ..Snorkel::default() }),
            Box::new(Snorkel {
                prior: Some(prior.clone()),
                solver: slow,
                scale: Scale::Drawn { seed: index },
                ..Snorkel::default()
            }),
            Box::new(BinaryMoments { positive: Some(world.positive) }),
            Box::new(KnownRates::from_accuracies(&accuracies, &prior)?),
        ];
        for (place, model) in models.iter().enumerate() {
            // Some worlds are too small for some models, which then say so.
            let Ok(fitted) = model.fit(&votes) else { continue };
            taken[place] += 1;
            let right =
                truth.iter().enumerate().filter(|(item, y)| fitted.posterior.label(*item) == **y).count();
            sums[place][0] += right as f64 / truth.len() as f64;
            sums[place][1] += rate_error(&fitted, &accuracies);
            let surprise = |(item, y): (usize, &usize)| -fitted.posterior.row(item)[*y].max(1e-6).ln();
            sums[place][2] += truth.iter().enumerate().map(surprise).sum::<f64>() / truth.len() as f64;
        }
    }
    let mean = |place: usize, which: usize| sums[place][which] / f64::max(taken[place] as f64, 1.0);
    Ok(Measured {
        accuracy: (0..MODELS.len()).map(|place| (mean(place, 0), taken[place])).collect(),
        error: (0..MODELS.len()).map(|place| mean(place, 1)).collect(),
        surprise: (0..MODELS.len()).map(|place| mean(place, 2)).collect(),
    })
}

fn rate_error(fitted: &Fitted, accuracies: &[f64]) -> f64 {
    let errors = fitted.voters.iter().zip(accuracies).map(|(voter, accuracy)| {
        let found = voter.accuracy.map_or(0.5, |estimate| estimate.value);
        (found - accuracy).abs()
    });
    errors.sum::<f64>() / accuracies.len() as f64
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct CrowdFit {
    model: String,
    accuracy: Option<f64>,
    converged: bool,
    steps: Option<usize>,
    error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Crowd {
    items: usize,
    voters: usize,
    classes: usize,
    votes: u64,
    truths: usize,
    fits: Vec<CrowdFit>,
}

fn crowd(folder: &Path, name: &str) -> Result<Crowd, Failure> {
    let votes = read(&folder.join(format!("{name}_answer.csv")))?.votes()?;
    let truth = read_truth(&folder.join(format!("{name}_truth.csv")), &votes)?;
    let mut fits = Vec::new();
    for (model, _) in CROWD {
        let entry = find(model).ok_or("a model that is not in the catalogue")?;
        let summary = fit_one(&votes, Some(&truth), entry.name, &*entry.model()).summary(&votes);
        fits.push(CrowdFit {
            model: model.into(),
            accuracy: summary.accuracy,
            converged: summary.converged.unwrap_or(false),
            steps: summary.iterations,
            error: summary.error,
        });
    }
    Ok(Crowd {
        items: votes.items(),
        voters: votes.voters(),
        classes: votes.classes(),
        votes: votes.len(),
        truths: truth.iter().flatten().count(),
        fits,
    })
}

/// Loss of gradient steps, and the accuracy they reach, on 2,000 items with voters of accuracy .9, .6, .6.
fn under_training() -> Result<Vec<(usize, f64, f64)>, Failure> {
    let counts =
        [(0, 16, 324), (1, 24, 216), (2, 24, 216), (3, 36, 144), (4, 144, 36), (5, 216, 24), (6, 216, 24)];
    let (mut cells, mut truth) = (Vec::new(), Vec::new());
    for (pattern, ones, zeros) in counts.into_iter().chain([(7, 324, 16)]) {
        for (y, count) in [(1, ones), (0, zeros)] {
            cells.extend([pattern >> 2, pattern >> 1 & 1, pattern & 1].repeat(count));
            truth.extend(vec![Some(y); count]);
        }
    }
    let votes = Votes::from_dense(truth.len(), 3, 2, &cells)?;
    let mut out = Vec::new();
    for steps in [50, 100, 200, 500, 1000, 2000, 5000] {
        let solver = Solver::Sgd { rate: 0.01, momentum: 0.9, steps };
        let fitted = Snorkel { solver, scale: Scale::Fixed(0.5), ..Snorkel::default() }.fit(&votes)?;
        let accuracy = fitted.posterior.accuracy(&truth).unwrap_or(0.0);
        out.push((steps, fitted.objective.last().copied().unwrap_or(f64::NAN), accuracy));
    }
    Ok(out)
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let began = Began::now();
    let (seeds, seed) = (options.get::<u64>("seeds")?, options.get::<u64>("seed")?);
    if seeds == 0 {
        return Err("--seeds must be at least 1".into());
    }
    let folder = options.text("crowd")?;
    let sets: Vec<String> = if folder.is_empty() { Vec::new() } else { options.list("sets")? };
    let mut run =
        Run::open(context.results(), LABEL_MODELS.name, options, context.fresh(), context.is_quiet())?;
    let worlds = worlds();
    run.expect((worlds.len() + sets.len() + 1) as u64);
    let mut config = serde_json::to_value(options)?;
    if let Some(path) = config.get_mut("crowd") {
        // Where the crowds lie says nothing about them.
        *path = if folder.is_empty() { "".into() } else { "given".into() };
    }
    let mut result = ResultFile {
        experiment: LABEL_MODELS.name.into(),
        title: "Label models: simulated voters and crowds".into(),
        config,
        seeds: vec![seed],
        ..ResultFile::default()
    };
    let mut measured = Vec::new();
    for world in &worlds {
        let found: Measured = run.step(&world.name(), || measure(world, seeds, seed))?;
        result.rows.push(serde_json::json!({
            "part": "simulated", "world": world.name(), "models": MODELS, "measured": found,
        }));
        measured.push(found);
    }
    let header: Vec<&str> = ["voters", "items", "share of class 1"].into_iter().chain(MODELS).collect();
    let title =
        |what: &str| format!("Voters of accuracy .55 to .9, independent; {what}; mean of {seeds} worlds");
    for (what, which) in [("accuracy", 0), ("mean error of the voters' accuracies", 1)] {
        let mut table = Table::new(title(what), &header);
        for (world, found) in worlds.iter().zip(&measured) {
            let voters = match (world.copies, world.equal) {
                (0, false) => world.voters.to_string(),
                (0, true) => format!("{}, all .7", world.voters),
                (copies, _) => format!("{} + {copies} copies of one of .6", world.voters),
            };
            let cells = (0..MODELS.len()).map(|model| match (found.accuracy[model], which) {
                ((_, 0), _) => "-".to_owned(),
                ((value, taken), 0) if taken < seeds => format!("{value:.3} ({taken} of {seeds})"),
                ((value, _), 0) => format!("{value:.3}"),
                _ => format!("{:.4}", found.error[model]),
            });
            let start = [voters, world.items.to_string(), world.positive.to_string()];
            table.row(start.into_iter().chain(cells));
        }
        result.tables.push(table);
    }
    result.plots.push(errors(&worlds, &measured));
    let slope = slope(&worlds, &measured, 3);

    let steps: Vec<(usize, f64, f64)> = run.step("under-training", under_training)?;
    let mut table = Table::new(
        "Snorkel's gradient steps on 2,000 items with voters of accuracy .9, .6, .6 (best possible .900)",
        &["steps", "loss", "accuracy"],
    );
    for (steps, loss, accuracy) in &steps {
        table.row([steps.to_string(), format!("{loss:.2e}"), format!("{accuracy:.3}")]);
    }
    result.tables.push(table);

    let mut crowds = Vec::new();
    for name in &sets {
        let found: Crowd = run.step(&format!("crowd: {name}"), || crowd(Path::new(folder), name))?;
        result.rows.push(serde_json::json!({ "part": "crowd", "name": name, "found": found }));
        crowds.push((name.clone(), found));
    }
    if !crowds.is_empty() {
        result.tables.push(crowd_table(&crowds));
    }
    let at = |world: usize, model: usize| 100.0 * measured[world].accuracy[model].0;
    // Ten voters, 1,000 items, equal classes; then four copies.
    let (usual, copied) = (8, worlds.len() - 1);
    result.summary = format!(
        "Ten independent voters and 1,000 items: majority {:.1} %, Dawid-Skene {:.1} %, the best possible {:.1} %. With \
         four copies of a poor voter: majority {:.1} %, Dawid-Skene {:.1} %, the best for independent voters {:.1} %. \
         Errors of voters' accuracies go as the number of items to the power {slope:.2}.{}",
        at(usual, 0),
        at(usual, 3),
        at(usual, 7),
        at(copied, 0),
        at(copied, 3),
        at(copied, 7),
        crowds.iter().map(|(name, crowd)| sentence(name, crowd)).collect::<String>(),
    );
    result.notes.extend([
        "The best possible rule knows every voter's accuracy and the class balance; it counts copies as independent, which \
         is no longer the best. Snorkel's model and the moments are given the class balance; the others find it. Gradient \
         steps do not permute classes of unequal balance, and may end with the two exchanged. Voters' accuracies are \
         those of each model's own labels, so that even known rates leave an error."
            .to_owned(),
        "In brackets: worlds whose votes the model took; the others were refused as not determining it.".to_owned(),
    ]);
    if !crowds.is_empty() {
        result.notes.push(
            "Crowd-Kit is version 1.4.2 with its own settings. Ties of the majority vote go to the first class here."
                .into(),
        );
    }
    if folder.is_empty() {
        result.notes.push("No crowds: --crowd names a folder with them.".into());
    }
    began.publish(context, &run, result)
}

fn sentence(name: &str, crowd: &Crowd) -> String {
    let of = |model: &str| {
        let fit = crowd.fits.iter().find(|fit| fit.model == model);
        100.0 * fit.and_then(|fit| fit.accuracy).unwrap_or(f64::NAN)
    };
    format!(
        " Crowd {name}: majority {:.1} %, Dawid-Skene {:.1} %, GLAD {:.1} %.",
        of("majority"),
        of("ds"),
        of("glad")
    )
}

fn crowd_table(crowds: &[(String, Crowd)]) -> Table {
    let shape = |(name, crowd): &(String, Crowd)| {
        format!(
            "{name}: {} votes of {} voters on {} items, {} classes, {} truths",
            crowd.votes, crowd.voters, crowd.items, crowd.classes, crowd.truths
        )
    };
    let shapes: Vec<String> = crowds.iter().map(shape).collect();
    let mut header = vec!["model".to_owned()];
    for (name, _) in crowds {
        header.extend([name.clone(), format!("{name}, Crowd-Kit"), format!("{name}, steps")]);
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(format!("Crowds: accuracy. {}", shapes.join("; ")), &header);
    for (row, (model, reference)) in CROWD.into_iter().enumerate() {
        let mut cells = vec![model.to_owned()];
        for (name, crowd) in crowds {
            let fit = &crowd.fits[row];
            let place = ["product", "dog"].into_iter().position(|known| known == name);
            let reference = reference.zip(place).map(|(values, place)| values[place]);
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
            let steps = match (&fit.error, fit.steps) {
                (Some(_), _) => "not for such votes".into(),
                (None, Some(steps)) if fit.converged => steps.to_string(),
                (None, Some(steps)) => format!("{steps}, not converged"),
                (None, None) => "-".into(),
            };
            cells.extend([number(fit.accuracy), number(reference), steps]);
        }
        table.row(cells);
    }
    table
}

/// Worlds of ten voters and equal classes, by number of items.
fn growing(worlds: &[World]) -> Vec<usize> {
    let fits =
        |world: &World| world.voters == 10 && world.positive == 0.5 && world.copies == 0 && !world.equal;
    (0..worlds.len()).filter(|index| fits(&worlds[*index])).collect()
}

fn errors(worlds: &[World], measured: &[Measured]) -> Plot {
    let line = |model: usize| Series {
        name: MODELS[model].into(),
        points: growing(worlds)
            .into_iter()
            .map(|index| Point {
                x: (worlds[index].items as f64).log10(),
                y: measured[index].error[model].max(1e-9).log10(),
                interval: None,
            })
            .collect(),
    };
    Plot {
        title: "Error of voters' accuracies over the number of items, ten voters".into(),
        x: "log10 items".into(),
        y: "log10 mean error".into(),
        kind: Kind::Lines,
        series: [0, 2, 3, 4].into_iter().map(line).collect(),
        reference: None,
    }
}

/// Least-squares slope of the logarithm of the error over that of the number of items.
fn slope(worlds: &[World], measured: &[Measured], model: usize) -> f64 {
    let points: Vec<(f64, f64)> = growing(worlds)
        .into_iter()
        .map(|index| ((worlds[index].items as f64).ln(), measured[index].error[model].max(1e-9).ln()))
        .collect();
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / n, y + point.1 / n));
    let top: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    top / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_what_they_say() {
        let world = World { items: 20_000, voters: 5, positive: 0.2, copies: 2, equal: false };
        let (votes, truth, accuracies) = world.draw(&Streams::new(1)).expect("valid");
        assert_eq!((votes.items(), votes.voters(), accuracies.len()), (20_000, 7, 7));
        let share = truth.iter().sum::<usize>() as f64 / truth.len() as f64;
        assert!((share - 0.2).abs() < 0.01, "{share}");
        assert_eq!((accuracies[0], accuracies[6]), (0.6, 0.6));
        for item in [0, 17, 4_000] {
            let row: Vec<_> = votes.row(item).map(|(_, vote)| vote).collect();
            assert!(row[5] == row[0] && row[6] == row[0]);
        }
    }

    #[test]
    fn models_approach_the_best_possible() {
        let world = World { items: 2_000, voters: 10, positive: 0.5, copies: 0, equal: false };
        let found = measure(&world, 2, 3).expect("fits");
        let accuracy: Vec<f64> = found.accuracy.iter().map(|(value, _)| *value).collect();
        assert!(accuracy[3] > accuracy[0] && accuracy[7] - accuracy[3] < 0.01, "{accuracy:?}");
        assert!(found.error[3] < found.error[0], "{:?}", found.error);
        assert!(found.surprise[7] <= found.surprise[0]);
    }

    #[test]
    fn few_steps_end_at_the_majority() {
        let steps = under_training().expect("fits");
        assert_eq!(steps[1].2, 0.792);
        assert_eq!(steps.last().map(|last| last.2), Some(0.9));
        assert!(steps.windows(2).all(|pair| pair[1].1 <= pair[0].1));
    }

    #[test]
    fn every_model_of_crowds_is_in_the_catalogue() {
        CROWD.iter().for_each(|(model, _)| assert!(find(model).is_some(), "{model}"));
        let growing = growing(&worlds());
        assert_eq!(growing.len(), 3);
    }
}
