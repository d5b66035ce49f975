//! What the two stages' rules keep of real models' answers: SmolLM2 labels sums and Gemma judges by its own, learnt in
//! context from SmolLM2's; and of recorded solutions to word problems. Nothing is trained.

use std::path::Path;

use pilotfish_architectures::Tokenizer;
use pilotfish_model::sampling::Warpers;
use pilotfish_model::{Streams, Token};
use pilotfish_runtime::{LoadOptions, OnnxCausal};
use pilotfish_supervision::reasoning::{
    ContrastPair, Gates, Solution, agreement, canonical, consistent, contrast,
};
use pilotfish_supervision::verifiers::{Reader, SampleConfig};
use serde::{Deserialize, Serialize};

use super::{CONTRASTS, reason};
use crate::error::Failure;
use crate::experiments::page::{Began, Page, wilson};
use crate::experiments::recorded;
use crate::experiments::session::THREADS;
use crate::experiments::tasks::{Problem, Task, extract, problems};
use crate::experiments::{Choice, Context, Experiment, Outcome, width_cost};
use crate::plots::{Kind, Plot, Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(in crate::experiments) const W2S_LABELLERS: Experiment = Experiment {
    name: "w2s-labellers",
    about: "weak-to-strong reasoning's filters on real models: SmolLM2 and Gemma on sums, recorded solutions of GSM8K",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        Choice { name: "weak", default: "smollm2-135m", about: "the weak model" },
        Choice { name: "strong", default: "gemma3-270m", about: "the strong model" },
        Choice { name: "questions", default: "200", about: "sums of two numbers of two digits" },
        Choice { name: "samples", default: "10", about: "samples of the strong model a question" },
        Choice {
            name: "solutions",
            default: "",
            about: "GSM8K model solutions (example_model_solutions.jsonl), filtered likewise",
        },
        Choice {
            name: "weak-solver",
            default: "6b_finetuning",
            about: "whose recorded solutions are the weak ones",
        },
        Choice { name: "strong-solver", default: "175b_finetuning", about: "whose are the strong ones" },
        Choice { name: "seed", default: "1", about: "seed of questions and samples" },
        THREADS,
    ],
    run,
};

/// Demonstrations in context, weak solutions of other questions.
const DEMONSTRATIONS: usize = 4;

/// What both models said of a question.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Said {
    weak: Solution,
    strong: Solution,
    samples: Vec<Solution>,
}

/// A model and its tokeniser.
struct Model {
    model: OnnxCausal,
    tokenizer: Tokenizer,
    stop: Vec<Token>,
}

impl Model {
    fn open(context: &Context, which: &str) -> Result<Self, Failure> {
        let options = context.options();
        let checkpoint = width_cost::checkpoint(context, options.text(which)?)?;
        let tokenizer = checkpoint.tokenizer()?;
        let load = LoadOptions::default().threads(options.get("threads")?);
        let stop = tokenizer.encode("\n", false)?;
        Ok(Self { model: OnnxCausal::from_checkpoint(&checkpoint, &load)?, tokenizer, stop })
    }

    /// The likeliest answer to a prompt, and others drawn at temperature 1.
    fn answers(
        &mut self,
        prompt: &str,
        samples: usize,
        streams: &Streams,
    ) -> Result<(Solution, Vec<Solution>), Failure> {
        let prompt = self.tokenizer.encode(prompt, true)?;
        let mut reader = Reader::new(&mut self.model);
        let mut draw = |count, warpers| -> Result<Vec<Solution>, Failure> {
            let config = SampleConfig { warpers, tokens: 12, stop: self.stop.clone() };
            let said = reader.sample(&prompt, count, &config, streams)?;
            said.iter().map(|response| Ok(read(&self.tokenizer.decode(&response.tokens, true)?))).collect()
        };
        let likeliest = draw(1, Warpers::default())?.remove(0);
        let drawn = if samples > 0 { draw(samples, Warpers::temperature(1.0))? } else { Vec::new() };
        Ok((likeliest, drawn))
    }
}

/// An answer; what is no number is none.
fn read(said: &str) -> Solution {
    let text = extract(said).unwrap_or_default();
    let number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let answer = if number { canonical(&text) } else { String::new() };
    Solution { text, answer }
}

/// What agreement keeps.
#[derive(Clone, Copy, Debug, Serialize)]
struct Filter {
    questions: usize,
    weak: usize,
    strong: usize,
    kept: usize,
    right: usize,
}

impl Filter {
    fn of(weak: &[(Solution, bool)], strong: &[(Solution, bool)]) -> Result<Self, Failure> {
        let only = |of: &[(Solution, bool)]| of.iter().map(|(said, _)| said.clone()).collect::<Vec<_>>();
        let right = |of: &[(Solution, bool)]| of.iter().filter(|(_, right)| *right).count();
        let kept = consistent(&only(weak), &only(strong))?;
        Ok(Self {
            questions: weak.len(),
            weak: right(weak),
            strong: right(strong),
            kept: kept.len(),
            right: kept.iter().filter(|at| weak[**at].1).count(),
        })
    }

    /// Kept and precision if the two erred independently over so many wrong answers.
    fn independent(&self, alternatives: usize) -> (f64, f64) {
        let share = |count: usize| count as f64 / self.questions.max(1) as f64;
        agreement(share(self.weak), share(self.strong), alternatives)
    }
}

/// A share in per cent with its interval.
fn percent(part: usize, whole: usize) -> String {
    let interval = wilson(part, whole);
    let share = 100.0 * part as f64 / whole.max(1) as f64;
    format!("{share:.1} [{:.1}, {:.1}]", 100.0 * interval.low, 100.0 * interval.high)
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (count, samples, seed): (usize, usize, u64) =
        (options.get("questions")?, options.get("samples")?, options.get("seed")?);
    if !(20..=2000).contains(&count) || samples < 2 {
        return Err("--questions must be from 20 to 2000, --samples at least 2".into());
    }
    let began = Began::now();
    // A model or a file that cannot be read is said before anything is computed.
    for which in ["weak", "strong"] {
        width_cost::checkpoint(context, options.text(which)?)?;
    }
    let solvers = [options.text("weak-solver")?, options.text("strong-solver")?];
    let solutions = options.text("solutions")?;
    let recorded =
        if solutions.is_empty() { Vec::new() } else { recorded::read(Path::new(solutions), &solvers)? };
    let mut run =
        Run::open(context.results(), W2S_LABELLERS.name, options, context.fresh(), context.is_quiet())?;
    run.expect(2 * count as u64);
    let asked = problems(count, &[Task::Arithmetic], seed);
    let said = said(context, &asked, samples, seed, &mut run)?;
    let judged = |of: &dyn Fn(&Said) -> &Solution| -> Vec<(Solution, bool)> {
        let pairs = said.iter().zip(&asked);
        pairs.map(|(said, problem)| (of(said).clone(), of(said).answer == problem.answer)).collect()
    };
    let sums = Filter::of(&judged(&|said| &said.weak), &judged(&|said| &said.strong))?;
    let mut filters = vec![("sums", format!("{}, {}", options.text("weak")?, options.text("strong")?), sums)];
    if !recorded.is_empty() {
        let of = |who: usize| -> Vec<(Solution, bool)> {
            recorded.iter().map(|line| (line.said[who].solution.clone(), line.said[who].right)).collect()
        };
        filters.push(("GSM8K, recorded", solvers.join(", "), Filter::of(&of(0), &of(1))?));
    }
    let mut table = Table::new(
        "What agreement keeps, in per cent with 95 % intervals",
        &[
            "questions",
            "models",
            "n",
            "weak right",
            "strong right",
            "kept",
            "of these right",
            "if independent, K = 50",
        ],
    );
    for (what, who, filter) in &filters {
        let (kept, precision) = filter.independent(50);
        table.row([
            (*what).to_owned(),
            who.clone(),
            filter.questions.to_string(),
            percent(filter.weak, filter.questions),
            percent(filter.strong, filter.questions),
            percent(filter.kept, filter.questions),
            percent(filter.right, filter.kept),
            format!("{:.1}, {:.1}", 100.0 * kept, 100.0 * precision),
        ]);
    }
    let pairs = Pairs::of(&said, &asked, seed)?;
    let mut contrasts = Table::new(
        "Pairs of the second stage on sums, from samples of the strong model in context",
        &CONTRASTS,
    );
    let mut row = vec![pairs.pairs.to_string(), pairs.weak_chosen.to_string()];
    row.extend([pairs.chosen_right, pairs.rejected_right].map(|right| percent(right, pairs.pairs)));
    row.extend(pairs.skipped.map(|count| count.to_string()));
    contrasts.row(row);
    let of_filters = |value: &dyn Fn(&Filter) -> (usize, usize)| -> Vec<Point> {
        let point = |(at, (_, _, filter)): (usize, &(&str, String, Filter))| {
            let (part, whole) = value(filter);
            let interval = wilson(part, whole);
            let y = part as f64 / whole.max(1) as f64;
            Point { x: at as f64, y, interval: Some((interval.low, interval.high)) }
        };
        filters.iter().enumerate().map(point).collect()
    };
    let series = vec![
        Series { name: "weak".into(), points: of_filters(&|of| (of.weak, of.questions)) },
        Series { name: "strong in context".into(), points: of_filters(&|of| (of.strong, of.questions)) },
        Series { name: "kept".into(), points: of_filters(&|of| (of.right, of.kept)) },
    ];
    let shown: Vec<String> = filters
        .iter()
        .map(|(what, _, filter)| {
            format!(
                "{what}: weak answers are right in {} %, those kept, {} % of all, in {} %",
                percent(filter.weak, filter.questions),
                percent(filter.kept, filter.questions),
                percent(filter.right, filter.kept)
            )
        })
        .collect();
    let mut rows: Vec<serde_json::Value> = filters
        .iter()
        .map(|(what, who, filter)| serde_json::json!({ "questions": what, "models": who, "filter": filter }))
        .collect();
    rows.push(serde_json::json!({ "pairs": pairs }));
    let page = Page {
        experiment: &W2S_LABELLERS,
        title: "Weak-to-strong reasoning's filters on real models".into(),
        summary: format!("{}.", shown.join("; ")),
        seeds: vec![seed],
        rows,
        tables: vec![table, contrasts],
        plots: vec![Plot {
            title: "Right answers".into(),
            x: "questions".into(),
            y: "share".into(),
            kind: Kind::Bars { labels: filters.iter().map(|(what, _, _)| (*what).to_owned()).collect() },
            series,
            reference: None,
        }],
        notes: notes(),
    };
    page.write(context, &run, began)
}

/// Asks the weak model, then the strong one with the weak one's answers to other questions before each.
fn said(
    context: &Context,
    asked: &[Problem],
    samples: usize,
    seed: u64,
    run: &mut Run,
) -> Result<Vec<Said>, Failure> {
    let streams = Streams::new(seed);
    let mut weak = Vec::new();
    let mut model = None;
    for problem in asked {
        weak.push(run.step(&format!("weak: {}", problem.question), || -> Result<Solution, Failure> {
            let model = loaded(&mut model, context, "weak")?;
            Ok(model.answers(&problem.prompt(), 0, &streams)?.0)
        })?);
    }
    let mut model = None;
    let mut all = Vec::new();
    for (at, problem) in asked.iter().enumerate() {
        let said = run.step(&format!("strong: {}", problem.question), || -> Result<Said, Failure> {
            let model = loaded(&mut model, context, "strong")?;
            let mut prompt = String::new();
            for other in (1..=DEMONSTRATIONS).map(|step| (at + step) % asked.len()) {
                prompt.push_str(&format!("Q: {}\nA: {}\n\n", asked[other].question, weak[other].text));
            }
            prompt.push_str(&format!("Q: {}\nA:", problem.question));
            let (strong, samples) = model.answers(&prompt, samples, &streams.fork(at as u64))?;
            Ok(Said { weak: weak[at].clone(), strong, samples })
        })?;
        all.push(said);
    }
    Ok(all)
}

fn loaded<'a>(slot: &'a mut Option<Model>, context: &Context, which: &str) -> Result<&'a mut Model, Failure> {
    if slot.is_none() {
        *slot = Some(Model::open(context, which)?);
    }
    slot.as_mut().ok_or_else(|| "no model".into())
}

/// What the second stage's gates make of the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Pairs {
    pairs: usize,
    weak_chosen: usize,
    chosen_right: usize,
    rejected_right: usize,
    /// No answer, unsure, too easy, not sure enough.
    skipped: [usize; 4],
}

impl Pairs {
    fn of(said: &[Said], asked: &[Problem], seed: u64) -> Result<Self, Failure> {
        let mut rng = Streams::new(seed).stream("pairs");
        let mut out = Self::default();
        for (said, problem) in said.iter().zip(asked) {
            match contrast(&said.weak, &said.samples, &Gates::default(), &mut rng)? {
                Ok(pairs) => {
                    for ContrastPair { chosen, rejected, weak_chosen } in pairs {
                        out.pairs += 1;
                        out.weak_chosen += usize::from(weak_chosen);
                        out.chosen_right += usize::from(chosen == problem.answer);
                        out.rejected_right += usize::from(rejected == problem.answer);
                    }
                }
                Err(why) => out.skipped[reason(why)] += 1,
            }
        }
        Ok(out)
    }
}

fn notes() -> Vec<String> {
    [
        "Sums: the weak model answers with three worked examples before each; the strong one sees four of the weak one's answers \
         to other questions, right or wrong, and no gold answer. Answers are numbers alone, without steps.",
        "Kept are questions with the same answer from both. If the two erred independently over K wrong answers, the last column \
         would be what is kept and how much of that is right; models that err alike keep more and worse.",
        "Recorded solutions are of the models that GSM8K's authors fine-tuned, one solution a model and question, so there are no \
         samples and no pairs; a solution is right if the record says so.",
        "Nothing is trained on what is kept: what tuning gains is the experiment w2s-reasoning, at the size of small \
         transformers.",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(answer: &str) -> Solution {
        Solution { text: answer.into(), answer: answer.into() }
    }

    #[test]
    fn filters_and_pairs_by_hand() {
        let judged = |list: &[(&str, bool)]| -> Vec<(Solution, bool)> {
            list.iter().map(|(answer, right)| (told(answer), *right)).collect()
        };
        let weak = judged(&[("7", true), ("8", false), ("9", false), ("", false)]);
        let strong = judged(&[("7", true), ("8", false), ("5", true), ("", false)]);
        let filter = Filter::of(&weak, &strong).unwrap();
        assert_eq!(
            (filter.questions, filter.weak, filter.strong, filter.kept, filter.right),
            (4, 1, 2, 2, 1)
        );
        // p = 1/4, s = 1/2, K = 5: kept 1/8 + 3/8 / 5 = 0.2, of which 1/8 is right.
        let (kept, precision) = filter.independent(5);
        assert!((kept - 0.2).abs() < 1e-12 && (precision - 0.625).abs() < 1e-12);
        let problem =
            |answer: &str| Problem { task: Task::Arithmetic, question: String::new(), answer: answer.into() };
        let said = |weak: &str, votes: [(&str, usize); 2]| Said {
            weak: told(weak),
            strong: told(weak),
            samples: votes.iter().flat_map(|(answer, n)| vec![told(answer); *n]).collect(),
        };
        let list = [
            said("7", [("7", 8), ("9", 2)]),
            said("7", [("7", 10), ("", 0)]),
            said("9", [("7", 8), ("5", 2)]),
            said("9", [("7", 7), ("5", 3)]),
            said("9", [("7", 5), ("5", 5)]),
        ];
        let asked = [problem("7"), problem("7"), problem("9"), problem("9"), problem("9")];
        let want =
            Pairs { pairs: 2, weak_chosen: 1, chosen_right: 1, rejected_right: 1, skipped: [0, 1, 1, 1] };
        assert_eq!(Pairs::of(&list, &asked, 1).unwrap(), want);
    }
}
