//! The same list tasks one token after the other: an autoregressive model's mistakes beside those of masked decoding.

use std::collections::BTreeMap;

use pilotfish_architectures::{ChatTemplate, Message, Tokenizer};
use pilotfish_diffusion::parallelbench::{Items, Problem, Task, generate_of_length, parse_loose};
use pilotfish_diffusion::{Diffusion, Fixed, Score};
use pilotfish_model::{CausalModel, RowSet, Step, Steps, Token};
use pilotfish_runtime::{LoadOptions, OnnxCausal};
use serde::{Deserialize, Serialize};

use super::trained::{self, Settings, TASKS};
use super::{Cell, Rules};
use crate::error::Failure;
use crate::experiments::page::{Began, Page};
use crate::experiments::{Choice, Context, Experiment, Outcome, width_cost};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const PARALLELBENCH_AR: Experiment = Experiment {
    name: "parallelbench-ar",
    about: "SmolLM2 on ParallelBench's lists, one token after the other, and which mistakes masked decoding makes instead",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        trained::STEPS,
        trained::BATCH,
        trained::SEED,
        Choice { name: "prompts", default: "20", about: "prompts a task and length, for SmolLM2" },
        Choice { name: "shuffles", default: "400", about: "shuffles of eight letters, for the masked model" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Items of the lists that SmolLM2 is asked about.
const LENGTHS: [usize; 2] = [3, 4];
/// Tokens of an answer at most.
const LONGEST: usize = 48;

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
}

impl Faults {
    /// Counts a list against the items that were given.
    fn add(&mut self, given: &[String], got: &[String], right: bool, strict: bool) {
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
    }

    fn merge(&mut self, other: &Self) {
        self.lists += other.lists;
        self.right += other.right;
        self.strict += other.strict;
        self.duplicates += other.duplicates;
        self.omissions += other.omissions;
        self.foreign += other.foreign;
        self.unchanged += other.unchanged;
    }

    fn share(&self, part: usize) -> String {
        let cell = Cell { runs: self.lists, right: part, ..Cell::default() };
        let (low, high) = cell.interval();
        format!("{:.3} [{low:.2}, {high:.2}]", cell.accuracy())
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let settings = Settings::of(options)?;
    let (prompts, shuffles, seed): (usize, usize, u64) =
        (options.get("prompts")?, options.get("shuffles")?, options.get("seed")?);
    if prompts == 0 || shuffles == 0 {
        return Err("--prompts and --shuffles must be at least 1".into());
    }
    let began = Began::now();
    let name = PARALLELBENCH_AR.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(trained::segments(&settings) + (TASKS.len() * LENGTHS.len() + 2) as u64);
    let mut model = Asked::open(context)?;
    let mut asked: BTreeMap<String, Faults> = BTreeMap::new();
    let mut rows = Vec::new();
    for task in TASKS {
        for length in LENGTHS {
            let step = format!("SmolLM2: {task} of {length}");
            let faults: Faults = run.step(&step, || model.play(task, length, prompts, seed))?;
            asked.entry(task.name().into()).or_default().merge(&faults);
            rows.push(serde_json::json!({ "model": "smollm2-135m", "task": task, "items": length, "faults": faults }));
        }
    }
    let net = trained::ready(context, &mut run, settings)?;
    let mut masked: Vec<(String, Faults)> = Vec::new();
    for (label, score, temperature) in
        [("random order, temperature 1", Score::Chance, 1.0), ("surest first", Score::Probability, 0.0)]
    {
        let found: Vec<Faults> = run
            .step(&format!("masked model: {label}"), || shuffled(&net, score, temperature, shuffles, seed))?;
        for (k, faults) in [1, 2, 4, 8].into_iter().zip(found) {
            rows.push(
                serde_json::json!({ "model": "masked", "order": label, "tokens": k, "faults": faults }),
            );
            masked.push((format!("masked, {label}, {k} a pass"), faults));
        }
    }
    let mut lists = Table::new(
        format!(
            "SmolLM2-135M-Instruct, one example, greedy: lists of 3 and 4 letters, {} a task",
            prompts * LENGTHS.len()
        ),
        &["task", "right", "right and in the form asked for", "the list as given"],
    );
    for task in TASKS {
        let faults = asked.get(task.name()).copied().unwrap_or_default();
        lists.row([
            task.name().to_owned(),
            faults.share(faults.right),
            faults.share(faults.strict),
            faults.share(faults.unchanged),
        ]);
    }
    let mut kinds = Table::new(
        "Shuffles: shares of lists with a fault, 95 % intervals",
        &["model", "right", "an item twice", "an item missing", "an item not given", "the list as given"],
    );
    let smol = asked.get(Task::Shuffle.name()).copied().unwrap_or_default();
    let all =
        [("SmolLM2, one token after the other".to_owned(), smol)].into_iter().chain(masked.iter().cloned());
    for (label, faults) in all {
        let parts = [faults.right, faults.duplicates, faults.omissions, faults.foreign, faults.unchanged];
        kinds.row([label].into_iter().chain(parts.map(|part| faults.share(part))));
    }
    let twice = |label: &str| {
        let found = masked.iter().find(|(of, _)| of == label).map(|(_, faults)| *faults).unwrap_or_default();
        found.share(found.duplicates)
    };
    let summary = format!(
        "Shuffles with an item twice: SmolLM2 {}; the masked model in random order {} at one token a pass, {} at two, {} at \
         four. SmolLM2 copies {} of its lists and reverses {}.",
        smol.share(smol.duplicates),
        twice("masked, random order, temperature 1, 1 a pass"),
        twice("masked, random order, temperature 1, 2 a pass"),
        twice("masked, random order, temperature 1, 4 a pass"),
        asked.get(Task::Copy.name()).map_or(String::new(), |faults| faults.share(faults.right)),
        asked.get(Task::Reverse.name()).map_or(String::new(), |faults| faults.share(faults.right)),
    );
    let notes = vec![
        "A model that writes one token after the other sees what it wrote: it has no choice between speed and dependencies, and its mistakes are of another kind. A model of 135 million parameters (4-bit weights) is weak at these tasks; its accuracy says nothing of the approach.".into(),
        "SmolLM2 is asked in words with one solved example of the same task and length; the masked model of diffusion-train gets eight letters in its own form. Only kinds of mistakes are compared, not accuracies.".into(),
        "The masked model answers from a form of eight places: it cannot leave one out without writing another item twice.".into(),
        "A shuffle counts as right only if its order is not the one given.".into(),
    ];
    let page = Page {
        experiment: &PARALLELBENCH_AR,
        title: "ParallelBench, one token after the other".into(),
        summary,
        seeds: vec![settings.seed, seed],
        rows,
        tables: vec![kinds, lists],
        plots: Vec::new(),
        notes,
    };
    page.write(context, &run, began)
}

/// A causal model that is asked for lists.
struct Asked {
    model: OnnxCausal,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// What its cache holds.
    held: Vec<Token>,
}

impl Asked {
    fn open(context: &Context) -> Result<Self, Failure> {
        let checkpoint = width_cost::checkpoint(context, "smollm2-135m")?;
        let template = checkpoint.chat_template()?.ok_or("the model has no chat template")?;
        let model = OnnxCausal::from_checkpoint(&checkpoint, &LoadOptions::default())?;
        Ok(Self { model, tokenizer: checkpoint.tokenizer()?, template, held: Vec::new() })
    }

    fn play(&mut self, task: Task, length: usize, prompts: usize, seed: u64) -> Result<Faults, Failure> {
        let problems = generate_of_length(task, Items::Letters, length, prompts + 1, seed)?;
        let (example, rest) = problems.split_first().ok_or("no problems")?;
        let shown = match example.answers() {
            Some(answers) => answers.first().cloned().unwrap_or_default(),
            None => example.items.iter().rev().cloned().collect(),
        };
        let shown = example.write(&shown);
        let mut faults = Faults::default();
        for problem in rest {
            let messages = [
                Message::user(example.prompt()),
                Message::assistant(shown.clone()),
                Message::user(problem.prompt()),
            ];
            let prompt = self.tokenizer.encode(&self.template.render(&messages, true)?, false)?;
            let answer = self.answer(&prompt)?;
            let scored = problem.score(&answer);
            faults.add(&problem.items, &parse_loose(&answer), scored.loose, scored.strict);
        }
        Ok(faults)
    }

    /// The likeliest continuation up to an end of text, or to the end of a list.
    fn answer(&mut self, prompt: &[Token]) -> Result<String, Failure> {
        // What two prompts begin with in common stays in the cache; the last token has to be run for its logits.
        let common = self.held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len().saturating_sub(1));
        self.model.truncate(common)?;
        self.held.truncate(common);
        let mut next = prompt[common..].to_vec();
        let mut written: Vec<Token> = Vec::new();
        loop {
            let out = self.model.step(&Step::chain(&next).want(RowSet::Last))?;
            self.held.extend(&next);
            let token = out.logits.argmax(0)?;
            if written.len() >= LONGEST || self.model.info().end.contains(&token) {
                break;
            }
            written.push(token);
            if self.tokenizer.decode(&written, true)?.contains(']') {
                break;
            }
            next = vec![token];
        }
        Ok(self.tokenizer.decode(&written, true)?)
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
    for k in [1, 2, 4, 8] {
        let mut faults = Faults::default();
        for (at, problem) in problems.iter().enumerate() {
            let config = trained::decoding(temperature, seed.wrapping_mul(1_000_003).wrapping_add(at as u64));
            let canvas = trained::canvas(problem)?;
            let text = Diffusion::new(&mut model, config)?.generate(&canvas, &mut Fixed::tokens(score, k))?;
            let got = Rules::trained(problem).words(text.response());
            let right = problem.is_right(&got);
            faults.add(&problem.items, &got, right, right);
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
            faults.add(&list("ABC"), &list(got), false, false);
            [faults.duplicates, faults.omissions, faults.foreign, faults.unchanged]
        };
        assert_eq!(faults("CAB"), [0, 0, 0, 0]);
        assert_eq!(faults("ABC"), [0, 0, 0, 1]);
        assert_eq!(faults("AAB"), [1, 1, 0, 0]);
        assert_eq!(faults("AB"), [0, 1, 0, 0]);
        assert_eq!(faults("ABCXX"), [0, 0, 1, 0]);
        assert_eq!(faults(""), [0, 1, 0, 0]);
    }
}
