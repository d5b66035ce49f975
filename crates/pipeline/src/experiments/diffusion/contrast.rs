//! The same list tasks one token after the other: an autoregressive model's mistakes beside those of masked decoding.

use std::collections::BTreeMap;

use pilotfish_architectures::{ChatTemplate, Message};
use pilotfish_diffusion::parallelbench::{Items, Problem, Task, generate_of_length, parse_loose};
use pilotfish_diffusion::{Diffusion, Fixed, Score, theory};
use pilotfish_model::{CausalModel, RowSet, Step, Steps, Token};
use serde::{Deserialize, Serialize};

use super::trained::{self, ITEMS, Settings, TASKS};
use super::{Cell, Rules};
use crate::error::Failure;
use crate::experiments::page::{self, Began, Page};
use crate::experiments::session::{self, Session};
use crate::experiments::{Choice, Context, Experiment, Outcome};
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const PARALLELBENCH_AR: Experiment = Experiment {
    name: "parallelbench-ar",
    about: "SmolLM2 on ParallelBench's lists, one token after the other, and the mistakes of masked decoding beside its own",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        trained::STEPS,
        trained::BATCH,
        trained::SEED,
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice { name: "lengths", default: "3,4", about: "letters of a list, for the causal model" },
        Choice { name: "prompts", default: "20", about: "prompts a task and length, for the causal model" },
        Choice { name: "shuffles", default: "400", about: "shuffles of eight letters, for the masked model" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Tokens of an answer at most, and more for each item: a quoted letter, a comma and a blank.
const LONGEST: [usize; 2] = [16, 8];
/// Tokens a pass of the masked model.
const TOGETHER: [usize; 4] = [1, 2, 4, 8];

/// What is wrong with lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Faults {
    lists: usize,
    right: usize,
    strict: usize,
    /// Lists in which an item is there more often than it was given.
    duplicates: usize,
    /// Lists that lack an item.
    omissions: usize,
    /// Lists with an item that was not given.
    foreign: usize,
    /// The list as it was given.
    unchanged: usize,
    /// The answer to the example instead.
    echoed: usize,
}

impl Faults {
    /// Counts a list against the items that were given.
    fn add(&mut self, given: &[String], example: &[String], got: &[String], right: bool, strict: bool) {
        let count = |of: &[String]| {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            of.iter().for_each(|item| *counts.entry(item.clone()).or_default() += 1);
            counts
        };
        let (want, have) = (count(given), count(got));
        self.lists += 1;
        self.right += usize::from(right);
        self.strict += usize::from(strict);
        self.duplicates +=
            usize::from(have.iter().any(|(item, n)| want.get(item).is_some_and(|given| n > given)));
        self.omissions += usize::from(want.keys().any(|item| !have.contains_key(item)));
        self.foreign += usize::from(have.keys().any(|item| !want.contains_key(item)));
        self.unchanged += usize::from(given == got);
        self.echoed += usize::from(!got.is_empty() && example == got);
    }

    fn merge(&mut self, other: &Self) {
        self.lists += other.lists;
        self.right += other.right;
        self.strict += other.strict;
        self.duplicates += other.duplicates;
        self.omissions += other.omissions;
        self.foreign += other.foreign;
        self.unchanged += other.unchanged;
        self.echoed += other.echoed;
    }

    fn share(&self, part: usize) -> String {
        Cell::of(part, self.lists).bracketed()
    }

    /// The share of lists with an item twice, as a point of a plot.
    fn twice(&self, together: usize) -> Point {
        let cell = Cell::of(self.duplicates, self.lists);
        Point { x: together as f64, y: cell.accuracy(), interval: Some(cell.interval()) }
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let settings = Settings::of(options)?;
    let (prompts, shuffles, seed): (usize, usize, u64) =
        (options.get("prompts")?, options.get("shuffles")?, options.get("seed")?);
    let lengths: Vec<usize> = options.list("lengths")?;
    if prompts == 0 || shuffles == 0 || lengths.is_empty() {
        return Err("--prompts and --shuffles must be at least 1, and --lengths must name one".into());
    }
    let began = Began::now();
    let name = PARALLELBENCH_AR.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(trained::segments(&settings) + (TASKS.len() * lengths.len() + ORDERS.len()) as u64);
    let mut model = Asked::open(context)?;
    let of_model = format!("{} ({})", options.text("model")?, options.text("storage")?);
    let mut asked: BTreeMap<Task, Faults> = BTreeMap::new();
    let mut rows = Vec::new();
    for task in TASKS {
        for &length in &lengths {
            let faults: Faults =
                run.step(&format!("{task} of {length}"), || model.play(task, length, prompts, seed))?;
            asked.entry(task).or_default().merge(&faults);
            rows.push(
                serde_json::json!({ "model": of_model, "task": task, "items": length, "faults": faults }),
            );
        }
    }
    let net = trained::ready(context, &mut run, settings)?;
    let mut masked: Vec<(&str, Vec<Faults>)> = Vec::new();
    for (label, score, temperature) in ORDERS {
        let found: Vec<Faults> =
            run.step(&format!("masked, {label}"), || shuffled(&net, score, temperature, shuffles, seed))?;
        for (k, faults) in TOGETHER.into_iter().zip(&found) {
            rows.push(
                serde_json::json!({ "model": "masked", "order": label, "tokens": k, "faults": faults }),
            );
        }
        masked.push((label, found));
    }
    let of = |task: Task| asked.get(&task).copied().unwrap_or_default();
    let mut lists = Table::new(
        format!(
            "{of_model}, one example, greedy: {} lists a task, of {} letters",
            prompts * lengths.len(),
            lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(" and "),
        ),
        &["task", "right", "right in the form asked for", "the list as given", "the example's answer"],
    );
    for task in TASKS {
        let faults = of(task);
        let parts = [faults.right, faults.strict, faults.unchanged, faults.echoed];
        lists.row([task.name().to_owned()].into_iter().chain(parts.map(|part| faults.share(part))));
    }
    let mut kinds = Table::new(
        "Shuffles: shares of lists with a fault, 95 % intervals",
        &["model", "right", "an item twice", "an item missing", "an item not given", "the list as given"],
    );
    let shuffle = of(Task::Shuffle);
    let mut kind = |label: String, faults: &Faults| {
        let parts = [faults.right, faults.duplicates, faults.omissions, faults.foreign, faults.unchanged];
        kinds.row([label].into_iter().chain(parts.map(|part| faults.share(part))));
    };
    kind(format!("{of_model}, one token after the other"), &shuffle);
    let mut series = vec![Series { name: of_model.clone(), points: vec![shuffle.twice(1)] }];
    for (label, found) in &masked {
        for (k, faults) in TOGETHER.into_iter().zip(found) {
            kind(format!("masked, {label}, {k} a pass"), faults);
        }
        let points = TOGETHER.into_iter().zip(found).map(|(k, faults)| faults.twice(k)).collect();
        series.push(Series { name: format!("masked, {label}"), points });
    }
    let exact = |k: usize| 1.0 - theory::shuffle_accuracy(&theory::steps_of(ITEMS, k));
    let points = TOGETHER.map(|k| Point { x: k as f64, y: exact(k), interval: None }).to_vec();
    series.push(Series { name: "an exact masked model, any order".into(), points });
    let twice = |at: usize| {
        let found = masked.first().and_then(|(_, found)| found.get(at)).copied().unwrap_or_default();
        found.share(found.duplicates)
    };
    let right = |task: Task| of(task).share(of(task).right);
    let summary = format!(
        "Shuffles with an item twice: {of_model} {}; the masked model in random order {} at one token a pass, {} at two, {} \
         at four. {of_model} copies {} of its lists right and reverses {}.",
        shuffle.share(shuffle.duplicates),
        twice(0),
        twice(1),
        twice(2),
        right(Task::Copy),
        right(Task::Reverse),
    );
    let notes = vec![
        "A model that writes one token after the other sees what it wrote: it has no choice between speed and dependencies, and its mistakes are of another kind. A model of 135 million parameters is weak at these tasks; its accuracy says nothing of the approach.".into(),
        "The causal model is asked in words, with one solved example of the same task and length; the masked model of diffusion-train gets eight letters in its own form. Kinds of mistakes are compared, not accuracies.".into(),
        "The masked model answers in a form of eight places: it cannot leave an item out without another one in its place, nor write a ninth.".into(),
        "A shuffle counts as right only if its order is not the one given; the closed form of the exact model counts repeated items only, and that model may repeat the order given.".into(),
        "Lists are read loosely, whatever stands around the last pair of brackets, but for the column on the form.".into(),
    ];
    let page = Page {
        experiment: &PARALLELBENCH_AR,
        title: "ParallelBench, one token after the other".into(),
        summary,
        seeds: vec![settings.seed, seed],
        rows,
        tables: vec![kinds, lists],
        plots: vec![page::lines("Shuffles with an item twice", "tokens a pass", "share", series)],
        notes,
    };
    page.write(context, &run, began)
}

/// Orders in which the masked model fills a shuffle, and the temperature of its draws.
const ORDERS: [(&str, Score, f64); 2] =
    [("random order, temperature 1", Score::Chance, 1.0), ("surest first", Score::Probability, 0.0)];

/// An answer that is right, to show as an example.
fn solved(problem: &Problem) -> Vec<String> {
    match problem.answers() {
        Some(answers) => answers.into_iter().next().unwrap_or_default(),
        // Shuffles are too many to be listed. Backwards is one.
        None => problem.items.iter().rev().cloned().collect(),
    }
}

/// A causal model that is asked for lists.
struct Asked {
    session: Session,
    template: ChatTemplate,
    /// What its cache holds.
    held: Vec<Token>,
}

impl Asked {
    fn open(context: &Context) -> Result<Self, Failure> {
        let session = Session::open(context)?;
        let template = session.checkpoint.chat_template()?.ok_or("the model has no chat template")?;
        Ok(Self { session, template, held: Vec::new() })
    }

    fn play(&mut self, task: Task, length: usize, prompts: usize, seed: u64) -> Result<Faults, Failure> {
        let problems = generate_of_length(task, Items::Letters, length, prompts + 1, seed)?;
        let (example, rest) = problems.split_first().ok_or("no problems")?;
        let shown = solved(example);
        let mut faults = Faults::default();
        for problem in rest {
            let messages = [
                Message::user(example.prompt()),
                Message::assistant(example.write(&shown)),
                Message::user(problem.prompt()),
            ];
            let prompt = self.session.tokenizer.encode(&self.template.render(&messages, true)?, false)?;
            let answer = self.answer(&prompt, LONGEST[0] + LONGEST[1] * length)?;
            let scored = problem.score(&answer);
            faults.add(&problem.items, &shown, &parse_loose(&answer), scored.loose, scored.strict);
        }
        Ok(faults)
    }

    /// The likeliest continuation up to an end of text, or to the end of a list.
    fn answer(&mut self, prompt: &[Token], longest: usize) -> Result<String, Failure> {
        let Session { model, tokenizer, .. } = &mut self.session;
        // What two prompts begin with in common stays in the cache: it is most of them. The last token has to be run
        // for its logits.
        let common = self.held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len().saturating_sub(1));
        model.truncate(common)?;
        self.held.truncate(common);
        let mut next = prompt[common..].to_vec();
        let mut written: Vec<Token> = Vec::new();
        loop {
            let out = model.step(&Step::chain(&next).want(RowSet::Last))?;
            self.held.extend(&next);
            let token = out.logits.argmax(0)?;
            if written.len() >= longest || model.info().end.contains(&token) {
                break;
            }
            written.push(token);
            if tokenizer.decode(&written, true)?.contains(']') {
                break;
            }
            next = vec![token];
        }
        Ok(tokenizer.decode(&written, true)?)
    }
}

/// What is wrong with the masked model's shuffles at one, two, four and eight tokens a pass.
fn shuffled(
    net: &trained::Trained,
    score: Score,
    temperature: f64,
    shuffles: usize,
    seed: u64,
) -> Result<Vec<Faults>, Failure> {
    let mut model = net.load()?;
    let problems: Vec<Problem> = trained::held_out(Task::Shuffle, shuffles, seed)?;
    let mut all = Vec::new();
    for k in TOGETHER {
        let mut faults = Faults::default();
        for (at, problem) in problems.iter().enumerate() {
            let config = trained::decoding(temperature, seed.wrapping_mul(1_000_003).wrapping_add(at as u64));
            let canvas = trained::canvas(problem)?;
            let text = Diffusion::new(&mut model, config)?.generate(&canvas, &mut Fixed::tokens(score, k))?;
            let got = Rules::trained(problem).words(text.response());
            let right = problem.is_right(&got);
            faults.add(&problem.items, &[], &got, right, right);
        }
        all.push(faults);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_by_hand() {
        let list = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        let faults = |got: &str| {
            let mut faults = Faults::default();
            faults.add(&list("ABC"), &list("CAB"), &list(got), false, false);
            [faults.duplicates, faults.omissions, faults.foreign, faults.unchanged, faults.echoed]
        };
        assert_eq!(faults("CAB"), [0, 0, 0, 0, 1]);
        assert_eq!(faults("ABC"), [0, 0, 0, 1, 0]);
        assert_eq!(faults("AAB"), [1, 1, 0, 0, 0]);
        assert_eq!(faults("AB"), [0, 1, 0, 0, 0]);
        assert_eq!(faults("ABCXX"), [0, 0, 1, 0, 0]);
        assert_eq!(faults(""), [0, 1, 0, 0, 0]);
    }
}
