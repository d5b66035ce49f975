//! Debate for weak supervision, on digits: debaters reveal pixels, judges that see sums of rows read the debates. The same
//! in words, by a language model, is in [`text`].

mod text;

pub(super) use text::W2S_DEBATE_TEXT;

use ndarray::{Array2, Axis};
use std::sync::Arc;

use pilotfish_model::Streams;
use pilotfish_supervision::debate::{Evidence, FeatureDebater, Form, Turn, hold, judge_features};
use pilotfish_supervision::heads::{Logistic, LogisticConfig};
use pilotfish_supervision::weak_to_strong::{
    Ensemble, Outcomes, Pgr, PgrConfig, Protocol, SplitConfig, Task, Trainee, hard,
};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::page::{Began, Page, mean_with_interval, percent};
use super::probe::{Probe, Store};
use super::w2s::row_sums;
use super::{Choice, Context, Experiment, Outcome};
use crate::datasets::{DIGITS, Images, read_images};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const W2S_DEBATE: Experiment = Experiment {
    name: "w2s-debate",
    about: "debate for weak-to-strong supervision: debaters show pixels of digits to judges that see sums of rows",
    needs: &["digits"],
    library: false,
    options: &[Choice { name: "seeds", default: "8", about: "seeds, from 1 on" }],
    run,
};

/// Items that debaters learn from, and items of weak training and transfer; the others are the test.
const KNOWLEDGE: usize = 400;
const HALF: usize = 450;
/// Noise of the choice of pixels, in deviations of what pixels say.
const NOISE: f64 = 0.3;
const PIXELS: usize = 64;

/// A task with pixels a turn.
struct Setting {
    name: &'static str,
    class: fn(usize) -> usize,
    reveal: usize,
    /// Whether turns, members and dishonest debaters are varied too.
    varied: bool,
}

const SETTINGS: [Setting; 5] = [
    Setting { name: "odd, 2 pixels a turn", class: |digit| digit % 2, reveal: 2, varied: false },
    Setting { name: "odd, 4 pixels a turn", class: |digit| digit % 2, reveal: 4, varied: false },
    Setting {
        name: "at least 5, 1 pixel a turn",
        class: |digit| usize::from(digit >= 5),
        reveal: 1,
        varied: false,
    },
    Setting {
        name: "at least 5, 2 pixels a turn",
        class: |digit| usize::from(digit >= 5),
        reveal: 2,
        varied: true,
    },
    Setting {
        name: "at least 5, 4 pixels a turn",
        class: |digit| usize::from(digit >= 5),
        reveal: 4,
        varied: false,
    },
];

/// How the weak labels come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    /// A judge without debates.
    Naive,
    Consultancy,
    Market,
    /// Debates of so many turns by one judge.
    Debate(usize),
    /// One set of debates, members trained apart.
    Finetuned(usize),
    /// A set of debates each.
    Debated(usize),
    /// A debate about another item: no information.
    Shuffled,
    /// Debaters that may claim any value of a pixel.
    Forged,
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Naive => "no debate".into(),
            Self::Consultancy => "consultancy".into(),
            Self::Market => "market-making".into(),
            Self::Debate(3) => "debate".into(),
            Self::Debate(turns) => format!("debate of {turns} turn{}", if turns == 1 { "" } else { "s" }),
            Self::Finetuned(members) => format!("{members} judges of one debate"),
            Self::Debated(members) => format!("{members} judges of {members} debates"),
            Self::Shuffled => "debates about other items (control)".into(),
            Self::Forged => "debaters that forge".into(),
        }
    }
}

/// The ways of the published table, and what else is varied.
const TABLE: [Way; 6] =
    [Way::Naive, Way::Consultancy, Way::Market, Way::Debate(3), Way::Finetuned(4), Way::Debated(4)];
/// Names of the first that fit below a plot.
const LABELS: [&str; 6] = ["no debate", "consultancy", "market", "debate", "4 x 1 debate", "4 debates"];
const VARIED: [Way; 7] = [
    Way::Debate(1),
    Way::Debate(2),
    Way::Debate(5),
    Way::Debated(2),
    Way::Debated(8),
    Way::Shuffled,
    Way::Forged,
];

fn ways(setting: &Setting) -> Vec<Way> {
    if setting.varied { TABLE.into_iter().chain(VARIED).collect() } else { TABLE.to_vec() }
}

/// One seed of a way: accuracies of the judge on test items and of its labels, and who is right on test items.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    judge: f64,
    labels: f64,
    outcomes: Outcomes,
}

fn probe(store: Store) -> Probe {
    Probe { store, hidden: None, confidence: None, lr: 1e-2, epochs: 20.0, batch: 32 }
}

/// Everything of one seed of a setting.
struct World {
    task: Task,
    split: SplitConfig,
    pixels: Store,
    own: Array2<f64>,
    debater: FeatureDebater,
    forger: FeatureDebater,
    /// What a judge without debates would say.
    guesses: Vec<usize>,
    seed: u64,
}

impl World {
    fn build(images: &Images, setting: &Setting, seed: u64) -> Result<Self, Failure> {
        let all = Array2::from_shape_vec((DIGITS.items, PIXELS), images.pixels.clone())?;
        let mut items: Vec<usize> = (0..DIGITS.items).collect();
        items.shuffle(&mut Streams::new(seed).stream("items"));
        let (known, rest) = items.split_at(KNOWLEDGE);
        let class = |item: &usize| (setting.class)(images.classes[*item]);
        let learnt: Vec<usize> = known.iter().map(class).collect();
        let config = LogisticConfig::default();
        let model = Logistic::fit_classes(all.select(Axis(0), known).view(), &learnt, 2, None, &config)?;
        let weights = model.weights(0).ok_or("a model of two classes has a row")?[..PIXELS].to_vec();
        let pixels = all.select(Axis(0), rest);
        let own = row_sums(&pixels);
        let debater = FeatureDebater::new(pixels.clone(), weights, setting.reveal, NOISE)?;
        let n = rest.len();
        let ids: Vec<u64> = (0..n as u64).collect();
        let task = Task::new(ids.clone(), ids, rest.iter().map(class).collect(), 2)?;
        let shares = [HALF, HALF, n - 2 * HALF].map(|size| size as f64 / n as f64);
        let split = SplitConfig { shares, most: [0; 3] };
        let drawn = task.split(&split, seed)?;
        let naive = probe(Arc::new(own.clone())).fit(&task.gold(&drawn.weak)?, seed)?;
        let guesses = hard(&naive.predict(&(0..n).collect::<Vec<_>>())?);
        let forger = debater.clone().forging();
        Ok(Self { task, split, pixels: Arc::new(pixels), own, debater, forger, guesses, seed })
    }

    /// A judge of debates of one form, all held with one seed.
    fn judge(&self, way: Way, form: impl Fn(usize) -> Form, debate: u64) -> Result<Probe, Failure> {
        let streams = Streams::new(self.seed).fork(1000 + debate);
        let debater = if way == Way::Forged { &self.forger } else { &self.debater };
        let held = (0..self.task.len()).map(|item| hold(debater, form(item), item, &streams));
        let mut held: Vec<Vec<Turn<Evidence>>> = held.collect::<Result<_, _>>()?;
        if way == Way::Shuffled {
            held.shuffle(&mut streams.stream("shuffled"));
        }
        Ok(probe(Arc::new(judge_features(self.own.view(), &held, PIXELS)?)))
    }

    fn teacher(&self, way: Way) -> Result<Box<dyn Trainee>, Failure> {
        let debate = |turns: usize| move |_: usize| Form::Debate { turns };
        Ok(match way {
            Way::Naive => Box::new(probe(Arc::new(self.own.clone()))),
            Way::Consultancy => Box::new(self.judge(way, |_| Form::Consultancy { turns: 3 }, 0)?),
            Way::Market => {
                Box::new(self.judge(way, |item| Form::Market { turns: 3, guess: self.guesses[item] }, 0)?)
            }
            Way::Debate(turns) => Box::new(self.judge(way, debate(turns), 0)?),
            Way::Shuffled | Way::Forged => Box::new(self.judge(way, debate(3), 0)?),
            Way::Finetuned(members) => {
                let one = self.judge(way, debate(3), 0)?;
                Box::new(Ensemble {
                    members: (0..members).map(|_| Box::new(one.clone()) as Box<dyn Trainee>).collect(),
                })
            }
            Way::Debated(members) => {
                let each = (0..members as u64)
                    .map(|at| Ok(Box::new(self.judge(way, debate(3), at)?) as Box<dyn Trainee>));
                Box::new(Ensemble { members: each.collect::<Result<_, Failure>>()? })
            }
        })
    }

    fn cells(&self, ways: &[Way]) -> Result<Vec<Cell>, Failure> {
        // The student sees pixels alone, never a debate.
        let student = probe(self.pixels.clone());
        let teachers = ways.iter().map(|&way| self.teacher(way)).collect::<Result<Vec<_>, _>>()?;
        cells(&self.task, self.split, self.seed, &teachers, &student)
    }
}

/// What comes of each teacher. The floor is the first one, a judge without debates.
fn cells(
    task: &Task,
    split: SplitConfig,
    seed: u64,
    teachers: &[Box<dyn Trainee>],
    student: &Probe,
) -> Result<Vec<Cell>, Failure> {
    let mut floor = None;
    let mut cells = Vec::new();
    for teacher in teachers {
        let protocol =
            Protocol { teachers: vec![&**teacher], students: vec![student], ceiling: student, split };
        let run = protocol.run(task, seed)?;
        let own = run.outcomes(0)?;
        let judge = own.accuracies()[0];
        let weak = floor.get_or_insert_with(|| own.weak.clone()).clone();
        cells.push(Cell { judge, labels: run.labels.accuracy(task)?, outcomes: Outcomes { weak, ..own } });
    }
    Ok(cells)
}

/// Ways by seeds, for people, for plots (those that have a label) and for machines.
struct Summary {
    table: Table,
    series: [Series; 2],
    rows: Vec<Json>,
}

/// `all` has a row for each seed, with a cell for each way.
fn summarise(what: &str, ways: &[String], labels: usize, all: &[Vec<Cell>]) -> Result<Summary, Failure> {
    let mut table = Table::new(
        format!("{what}: accuracies in per cent, means over seeds with 95 % intervals"),
        &["labels by", "judge", "its labels", "student", "student, over no debate", "PGR"],
    );
    let mut series = ["judge", "student"].map(|name| Series { name: name.into(), points: Vec::new() });
    let mut rows = Vec::new();
    for (at, way) in ways.iter().enumerate() {
        let values =
            |pick: &dyn Fn(&[Cell]) -> f64| all.iter().map(|cells| pick(cells)).collect::<Vec<f64>>();
        let student = |cell: &Cell| cell.outcomes.accuracies()[1];
        let text = |values: Vec<f64>| -> Result<String, Failure> {
            let (value, interval) = mean_with_interval(&values)?;
            Ok(percent(value, interval))
        };
        let outcomes: Vec<Outcomes> = all.iter().map(|cells| cells[at].outcomes.clone()).collect();
        let pgr = Pgr::of(&outcomes, &PgrConfig::default())?;
        table.row([
            way.clone(),
            text(values(&|cells| cells[at].judge))?,
            text(values(&|cells| cells[at].labels))?,
            text(values(&|cells| student(&cells[at])))?,
            if at == 0 {
                "-".into()
            } else {
                text(values(&|cells| student(&cells[at]) - student(&cells[0])))?
            },
            pgr.recovered.to_string(),
        ]);
        let shown = [values(&|cells| cells[at].judge), values(&|cells| student(&cells[at]))];
        for (series, values) in series.iter_mut().zip(shown).filter(|_| at < labels) {
            let (y, interval) = mean_with_interval(&values)?;
            series.points.push(Point { x: at as f64, y, interval: interval.map(|i| (i.low, i.high)) });
        }
        rows.push(serde_json::json!({
            "setting": what, "labels by": way, "pgr": pgr,
            "judge": values(&|cells| cells[at].judge), "labels": values(&|cells| cells[at].labels),
            "accuracies": outcomes.iter().map(Outcomes::accuracies).collect::<Vec<_>>(),
        }));
    }
    Ok(Summary { table, series, rows })
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let seeds: u64 = options.get("seeds")?;
    if !(2..=1000).contains(&seeds) {
        return Err("--seeds must be from 2 to 1000".into());
    }
    let began = Began::now();
    let name = W2S_DEBATE.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(SETTINGS.len() as u64 * seeds);
    let images = read_images(&context.model("digits")?, DIGITS)?;
    let (mut tables, mut plots, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut summary = String::new();
    for setting in &SETTINGS {
        let ways = ways(setting);
        let seeds = (1..=seeds).map(|seed| {
            run.step(&format!("{}, seed {seed}", setting.name), || {
                World::build(&images, setting, seed)?.cells(&ways)
            })
        });
        let all = seeds.collect::<Result<Vec<Vec<Cell>>, _>>()?;
        let names: Vec<String> = ways.iter().map(|way| way.name()).collect();
        let Summary { table, series, rows: of_setting } =
            summarise(setting.name, &names, LABELS.len(), &all)?;
        rows.extend(of_setting);
        if setting.varied {
            let shown: Vec<String> =
                table.rows.iter().take(TABLE.len()).map(|row| format!("{} {}", row[0], row[1])).collect();
            summary = format!("Accuracy of the judge, {}: {}.", setting.name, shown.join("; "));
            plots.push(Plot {
                title: format!("Accuracy of judge and student: {}", setting.name),
                x: "labels by".into(),
                y: "accuracy".into(),
                kind: Kind::Bars { labels: LABELS.map(str::to_owned).to_vec() },
                series: series.to_vec(),
                reference: None,
            });
        }
        tables.push(table);
    }
    let page = Page {
        experiment: &W2S_DEBATE,
        title: "Debate for weak-to-strong supervision".into(),
        summary,
        seeds: (1..=seeds).collect(),
        rows,
        tables,
        plots,
        notes: notes(),
    };
    page.write(context, &run, began)
}

fn notes() -> Vec<String> {
    [
        "Debaters are linear models of pixels that know 400 digits of their own; an argument shows the pixels that speak most \
         for its side. No language model debates here.",
        "A judge sees 8 sums of rows and what was shown for either side, when it is trained and when it labels. The student \
         sees pixels and labels, never a debate. PGR's floor is the judge without debates.",
        "Sides are drawn by a coin that knows nothing of the truth. A consultant argues for one side in all turns; a market \
         maker against what the judge without debates says.",
        "Judges of one debate differ in the order of their training alone.",
        "A debater that forges claims any value of a pixel; a control shows each judge debates about other items.",
    ]
    .map(str::to_owned)
    .to_vec()
}
