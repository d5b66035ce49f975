//! The small masked diffusion model: trained, and judged on texts it has not seen.

use pilotfish_diffusion::parallelbench::Task;
use pilotfish_diffusion::{Diffusion, Fixed, Score, theory};
use pilotfish_model::{LogitForm, MaskedBatch, MaskedModel, Streams, Token};
use rand::seq::index;
use serde::{Deserialize, Serialize};

use super::trained::{self, ANSWER, ITEMS, MASK, Settings, TASKS};
use super::{Cell, Rules};
use crate::error::Failure;
use crate::experiments::page::{self, Began, Page};
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const DIFFUSION_TRAIN: Experiment = Experiment {
    name: "diffusion-train",
    about: "a small masked diffusion model of list tasks, trained in minutes: losses, masked-token and decode accuracy",
    needs: &[],
    library: true,
    options: &[
        trained::STEPS,
        trained::BATCH,
        trained::SEED,
        Choice { name: "texts", default: "400", about: "held-out texts a task" },
        Choice { name: "seed", default: "1", about: "seed of what is held out" },
    ],
    run,
};

/// Draws of hidden positions a text, for the bound.
const DRAWS: usize = 16;

/// What held-out texts of a task say.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    task: Task,
    /// Share of hidden tokens whose likeliest prediction is the text's, by the number hidden, from 1.
    accuracy: Vec<f64>,
    /// Upper bound of the mean negative log-likelihood of an answer token, in nats, and its standard error.
    bound: [f64; 2],
    /// The least there can be.
    least: f64,
    /// One, two, four and eight tokens a pass: random order at temperature 1, then the surest first.
    random: Vec<Cell>,
    surest: Vec<Cell>,
}

/// Entropy of an answer token, in nats.
fn entropy(task: Task) -> f64 {
    let answers = match task {
        Task::Shuffle => (1..=ITEMS).product::<usize>() - 1,
        Task::ReplaceRandom => ITEMS,
        _ => 1,
    };
    (answers as f64).ln() / ITEMS as f64
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let settings = Settings::of(options)?;
    let (texts, seed): (usize, u64) = (options.get("texts")?, options.get("seed")?);
    if texts < 2 {
        return Err("--texts must be at least 2".into());
    }
    let began = Began::now();
    let name = DIFFUSION_TRAIN.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(trained::segments(&settings) + TASKS.len() as u64);
    let model = trained::ready(context, &mut run, settings)?;
    let mut net = model.load()?;
    let mut rows: Vec<Row> = Vec::new();
    for task in TASKS {
        rows.push(run.step(&format!("{task}"), || judge(&mut net, task, texts, seed))?);
    }
    let mut learnt = Table::new(
        format!(
            "Held-out texts, {texts} a task: tokens predicted right by how many of 8 are hidden; bound in nats a token"
        ),
        &["task", "1 hidden", "2", "4", "8", "all counts", "bound", "least possible"],
    );
    let mut decoded = Table::new(
        "Answers right, tokens a pass: random order at temperature 1, then the surest first at 0",
        &["task", "random 1", "2", "4", "8", "exact model 1", "2", "4", "8", "surest 1", "2", "4", "8"],
    );
    let ways = [1, 2, 4, 8];
    for row in &rows {
        let all = page::mean(&row.accuracy);
        learnt.row(
            [row.task.name().to_owned()]
                .into_iter()
                .chain(ways.map(|hidden| format!("{:.3}", row.accuracy[hidden - 1])))
                .chain([
                    format!("{all:.3}"),
                    format!("{:.4} ± {:.4}", row.bound[0], 1.96 * row.bound[1]),
                    format!("{:.4}", row.least),
                ]),
        );
        let exact = |k: usize| match row.task {
            Task::Shuffle => theory::shuffle_accuracy(&theory::steps_of(ITEMS, k)),
            Task::ReplaceRandom => theory::replace_random_accuracy(&theory::steps_of(ITEMS, k)),
            _ => 1.0,
        };
        decoded.row(
            [row.task.name().to_owned()]
                .into_iter()
                .chain(row.random.iter().map(|cell| format!("{:.3}", cell.accuracy())))
                .chain(ways.map(|k| format!("{:.4}", exact(k))))
                .chain(row.surest.iter().map(|cell| format!("{:.3}", cell.accuracy()))),
        );
    }
    let curve: Vec<Point> =
        model.log.iter().map(|at| Point { x: at.step as f64, y: at.loss, interval: None }).collect();
    // Texts of the mix, in eighths.
    let floor = (2.0 * entropy(Task::ReplaceRandom) + 2.0 * entropy(Task::Shuffle)) / 8.0;
    let last = curve.last().map_or(0.0, |point| point.x);
    let least = [0.0, last].map(|x| Point { x, y: floor, interval: None }).to_vec();
    let series = vec![
        Series { name: "loss of the batches".into(), points: curve },
        Series { name: "least possible".into(), points: least },
    ];
    let plot = page::lines("Training: nats an answer token", "step", "loss", series);
    let seconds: f64 = model.log.iter().map(|at| at.seconds).sum();
    let find = |task| rows.iter().find(|row| row.task == task);
    let one = |task| find(task).map_or(0.0, |row| row.surest[0].accuracy());
    let easy = TASKS[..4].iter().map(|&task| one(task)).fold(1.0, f64::min);
    let summary = format!(
        "{} parameters, {} steps of {} texts in {seconds:.0} s. One token a pass, surest first: at least {easy:.3} right on \
         the four tasks with one answer, {:.3} on replace_random, {:.3} on shuffle. Bound {:.3} and {:.3} nats a token on \
         the latter two; least possible {:.3} and {:.3}.",
        model.network.parameters(),
        settings.steps,
        settings.batch,
        one(Task::ReplaceRandom),
        one(Task::Shuffle),
        find(Task::ReplaceRandom).map_or(0.0, |row| row.bound[0]),
        find(Task::Shuffle).map_or(0.0, |row| row.bound[0]),
        entropy(Task::ReplaceRandom),
        entropy(Task::Shuffle),
    );
    let notes = vec![
        "Texts are prompts over 26 letters with eight items; the answer alone is noised. Three layers of width 64, four heads, learned positions, no causal mask; AdamW (0.9, 0.98), 2e-3 with 100 steps of warm-up and a cosine to 5 %, times spread evenly over a batch.".into(),
        "The mix: one text in eight from each of copy, replace_index, reverse and sort, two in eight from replace_random and from shuffle.".into(),
        format!("The bound draws how many of the eight tokens are hidden evenly, then which, {DRAWS} times a text, and weights each hidden token's cross-entropy by 8 over their number."),
        "A hidden token whose text was a choice cannot be predicted but by chance: masked-token accuracy below 1 on replace_random and shuffle is no fault of the model. Compare bounds.".into(),
        "A shuffle counts any order as right, the given one included, as the closed forms of the exact model do. One training seed: differences between tasks are of this model.".into(),
    ];
    let json = rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default()).collect();
    let page = Page {
        experiment: &DIFFUSION_TRAIN,
        title: "A small masked diffusion model".into(),
        summary,
        seeds: vec![settings.seed, seed],
        rows: json,
        tables: vec![learnt, decoded],
        plots: vec![plot],
        notes,
    };
    page.write(context, &run, began)
}

/// Log-probability of a token in a row of logits, and whether it is the likeliest.
pub(super) fn verdict(row: &[f32], token: Token) -> (f64, bool) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let own = row[token as usize];
    (f64::from(own - max) - sum.ln(), own == max)
}

fn judge(net: &mut dyn MaskedModel, task: Task, texts: usize, seed: u64) -> Result<Row, Failure> {
    let problems = trained::held_out(task, texts, seed)?;
    let mut right = [(0u64, 0u64); ITEMS];
    let mut bounds = Vec::with_capacity(texts);
    for (at, problem) in problems.iter().enumerate() {
        let streams = Streams::new(seed).fork(at as u64);
        let whole = trained::answered(problem, streams)?;
        let mut rng = streams.stream("hidden");
        // Every number of hidden tokens equally often, which is the law of the bound with less variance.
        let hidden: Vec<Vec<usize>> = (0..DRAWS)
            .map(|draw| {
                let mut of = index::sample(&mut rng, ITEMS, 1 + draw % ITEMS).into_vec();
                of.sort_unstable();
                of.into_iter().map(|at| ANSWER.start + at).collect()
            })
            .collect();
        let masked: Vec<Vec<Token>> = hidden
            .iter()
            .map(|hidden| {
                let mut text = whole.clone();
                hidden.iter().for_each(|&at| text[at] = MASK);
                text
            })
            .collect();
        let sequences: Vec<&[Token]> = masked.iter().map(Vec::as_slice).collect();
        let positions: Vec<&[usize]> = hidden.iter().map(Vec::as_slice).collect();
        let batch = MaskedBatch {
            sequences: &sequences,
            positions: Some(&positions),
            form: LogitForm::Full,
            taps: &[],
        };
        let answers = net.forward(&batch)?;
        let mut bound = 0.0;
        for (hidden, logits) in hidden.iter().zip(&answers.logits) {
            let (mut loss, count) = (0.0, hidden.len());
            for (row, &at) in hidden.iter().enumerate() {
                let (log, best) = verdict(logits.row(row).unwrap_or_default(), whole[at]);
                loss -= log;
                right[count - 1].0 += u64::from(best);
                right[count - 1].1 += 1;
            }
            bound += loss / count as f64 / DRAWS as f64;
        }
        bounds.push(bound);
    }
    let mean = page::mean(&bounds);
    let n = bounds.len() as f64;
    let variance = bounds.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let decode = |net: &mut dyn MaskedModel, score, temperature: f64| -> Result<Vec<Cell>, Failure> {
        let mut cells = Vec::new();
        for k in [1, 2, 4, 8] {
            let mut cell = Cell::default();
            for (at, problem) in problems.iter().enumerate() {
                let canvas = trained::canvas(problem)?;
                let config =
                    trained::decoding(temperature, seed.wrapping_mul(1_000_003).wrapping_add(at as u64));
                let text = Diffusion::new(net, config)?.generate(&canvas, &mut Fixed::tokens(score, k))?;
                let right = Rules::trained(problem).is_right(text.response());
                cell.add(right, text.forwards(), text.ledger.emitted);
            }
            cells.push(cell);
        }
        Ok(cells)
    };
    Ok(Row {
        task,
        accuracy: right.map(|(right, all)| right as f64 / all.max(1) as f64).to_vec(),
        bound: [mean, (variance / n).sqrt()],
        least: entropy(task),
        random: decode(net, Score::Chance, 1.0)?,
        surest: decode(net, Score::Probability, 0.0)?,
    })
}
