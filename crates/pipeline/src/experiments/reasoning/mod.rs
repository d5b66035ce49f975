//! Weak-to-strong reasoning on sums whose steps are written out, with transformers trained from scratch; and its filters on
//! real models ([`labellers`]).

mod labellers;

pub(super) use labellers::W2S_LABELLERS;

use pilotfish_graph::Graph;
use pilotfish_model::{StreamRng, Streams};
use pilotfish_supervision::reasoning::{
    ContrastPair, Gates, Skipped, Solution, Source, canonical, consistent, contrast, lessons, vote,
};
use pilotfish_supervision::weak_to_strong::{Outcomes, Pgr, PgrConfig};
use pilotfish_training::losses::preference::{Dpo, Orpo};
use pilotfish_training::{Pair, PairLoss, PairTask, TextTask, TrainerConfig};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

use super::page::{Began, Page, mean, mean_with_interval, percent};
use super::tiny::{Letters, complete, net, network, responses, settings, train};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const W2S_REASONING: Experiment = Experiment {
    name: "w2s-reasoning",
    about: "weak-to-strong reasoning, stages I and II, on sums with steps by transformers trained from scratch",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "seeds", default: "3", about: "seeds, from 1 on" },
        Choice { name: "questions", default: "400", about: "questions without gold answers" },
    ],
    run,
};

/// Questions are "q47+38:", in the strong model's texts mostly "d47 38:"; a solution ends with a full stop.
const LETTERS: Letters = Letters("0123456789+=;#:qd .");
/// Gold solutions of the weak model, and test questions.
const GOLD: usize = 2000;
const TEST: usize = 300;
/// Demonstrations of learning in context; the paper has four.
const DEMONSTRATIONS: usize = 2;
/// Letters of a solution at most.
const LONGEST: usize = 26;
const SAMPLES: usize = 10;
const BATCH: usize = 32;

type Sum = (u32, u32);

fn question(sum: Sum) -> String {
    format!("q{}+{}:", sum.0, sum.1)
}

/// The steps, units first, and the answer that they come to. With `slips`, each step is off by one with that probability.
fn solution(sum: Sum, slips: f64, rng: &mut StreamRng) -> String {
    let (a, b) = sum;
    let mut slip = |right: u32| match rng.random_bool(slips) {
        true if rng.random() => right + 1,
        true => right.saturating_sub(1),
        false => right,
    };
    let units = slip(a % 10 + b % 10);
    let carry = units / 10;
    let tens = slip(a / 10 + b / 10 + carry);
    let carried = if carry > 0 { "+1" } else { "" };
    format!(
        "{}+{}={units};{}+{}{carried}={tens};#{}.",
        a % 10,
        b % 10,
        a / 10,
        b / 10,
        tens * 10 + units % 10
    )
}

fn read(said: String) -> Solution {
    let answer = said.rsplit_once('#').map(|(_, answer)| answer.trim_end_matches('.'));
    // A text that did not come to its end has no answer.
    let answer = answer.filter(|_| said.ends_with('.')).map(canonical).unwrap_or_default();
    Solution { text: said, answer }
}

fn right(solutions: &[Solution], sums: &[Sum]) -> Vec<bool> {
    solutions.iter().zip(sums).map(|(said, (a, b))| said.answer == (a + b).to_string()).collect()
}

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64
}

/// What the strong model has read: three sums each, careful or careless, mostly asked for in another form.
fn corpus(sums: &[Sum], count: usize, rng: &mut StreamRng) -> Result<Vec<Vec<u32>>, Failure> {
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        let (task_form, careless) = (rng.random_bool(0.25), rng.random_bool(0.4));
        let mut text = String::new();
        for _ in 0..=DEMONSTRATIONS {
            let sum = *sums.choose(rng).ok_or("no sums")?;
            text.push_str(&if task_form { question(sum) } else { format!("d{} {}:", sum.0, sum.1) });
            text.push_str(&solution(sum, if careless { 0.35 } else { 0.0 }, rng));
        }
        out.push(LETTERS.encode(&text)?);
    }
    Ok(out)
}

fn answer(graph: &Graph, prompts: &[String]) -> Result<Vec<Solution>, Failure> {
    Ok(complete(&net(graph)?, LETTERS, prompts, LONGEST, None)?.into_iter().map(read).collect())
}

/// What was kept of the questions, and how much of it is right.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Kept {
    share: f64,
    precision: f64,
}

/// Columns of a table of pairs; the last four count questions without one.
const CONTRASTS: [&str; 8] = [
    "pairs",
    "weak chosen",
    "chosen right, %",
    "rejected right, %",
    "no answer",
    "unsure",
    "too easy",
    "not sure enough",
];

/// The place of a reason among the last four of [`CONTRASTS`].
fn reason(why: Skipped) -> usize {
    match why {
        Skipped::NoAnswer => 0,
        Skipped::Unsure => 1,
        Skipped::TooEasy => 2,
        Skipped::NotSureEnough => 3,
    }
}

/// Pairs of the second stage.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Contrasts {
    pairs: usize,
    weak_chosen: usize,
    chosen_right: f64,
    rejected_right: f64,
    /// Questions without a pair: no answer, unsure, too easy, not sure enough.
    skipped: [usize; 4],
}

/// One seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    /// Which test questions each model gets right, in the order of [`MODELS`].
    right: Vec<Vec<bool>>,
    /// Accuracy of weak solutions and of those in context on the questions.
    taught: [f64; 2],
    kept: [Kept; 2],
    contrasts: Contrasts,
}

const MODELS: [&str; 13] = [
    "weak model (floor)",
    "strong model, untuned",
    "strong model, weak demonstrations",
    "tuned on all weak solutions",
    "stage I: weak solutions kept",
    "stage I: own solutions kept",
    "stage I: both",
    "stage I, second iteration",
    "stage II: DPO",
    "stage II: ORPO",
    "stage II: DPO, own samples on both sides",
    "majority of 10 samples after stage I",
    "tuned on gold solutions (ceiling)",
];

/// Models of the plot, with labels that fit below it.
const DRAWN: [(usize, &str); 8] = [
    (0, "weak"),
    (1, "untuned"),
    (2, "in context"),
    (3, "all weak"),
    (7, "stage I"),
    (8, "DPO"),
    (9, "ORPO"),
    (12, "gold"),
];

struct Lab {
    seed: u64,
    base: Graph,
    asked: Vec<Sum>,
    test: Vec<Sum>,
}

impl Lab {
    fn prompts(sums: &[Sum]) -> Vec<String> {
        sums.iter().map(|sum| question(*sum)).collect()
    }

    /// Fine-tunes the base model, always from the start, for two epochs.
    fn tuned(&self, rows: &[(usize, &str)]) -> Result<Graph, Failure> {
        let rows: Vec<(String, String)> =
            rows.iter().map(|(at, text)| (question(self.asked[*at]), (*text).to_owned())).collect();
        let steps = TrainerConfig::steps_of_epochs(rows.len(), 2.0, BATCH.min(rows.len()))?;
        train(
            &self.base,
            &responses(LETTERS, &rows)?,
            settings(steps, BATCH.min(rows.len()), 5e-4, self.seed),
        )
    }

    fn test(&self, graph: &Graph) -> Result<Vec<bool>, Failure> {
        Ok(right(&answer(graph, &Self::prompts(&self.test))?, &self.test))
    }

    /// Solves questions with weak solutions of other questions before them.
    fn in_context(
        &self,
        sums: &[Sum],
        weak: &[Solution],
        rng: &mut StreamRng,
    ) -> Result<Vec<Solution>, Failure> {
        let numbers: Vec<usize> = (0..weak.len()).filter(|&at| weak[at].text.ends_with('.')).collect();
        let prompts: Vec<String> = sums
            .iter()
            .map(|sum| {
                let others: Vec<usize> = numbers.choose_multiple(rng, DEMONSTRATIONS + 1).copied().collect();
                let others = others.into_iter().filter(|&at| self.asked[at] != *sum).take(DEMONSTRATIONS);
                let shown: String =
                    others.map(|at| format!("{}{}", question(self.asked[at]), weak[at].text)).collect();
                format!("{shown}{}", question(*sum))
            })
            .collect();
        answer(&self.base, &prompts)
    }

    fn preferred(
        &self,
        from: &Graph,
        pairs: &[(usize, ContrastPair)],
        loss: PairLoss,
    ) -> Result<Graph, Failure> {
        let one = |(at, pair): &(usize, ContrastPair)| -> Result<Pair, Failure> {
            Ok(Pair {
                prompt: LETTERS.encode(&question(self.asked[*at]))?,
                chosen: LETTERS.encode(&pair.chosen)?,
                rejected: LETTERS.encode(&pair.rejected)?,
            })
        };
        if pairs.is_empty() {
            return Ok(from.clone());
        }
        let list = pairs.iter().map(one).collect::<Result<Vec<_>, _>>()?;
        let batch = 16.min(list.len());
        let steps = TrainerConfig::steps_of_epochs(list.len(), 2.0, batch)?;
        let task = PairTask::new(&net(from)?, list, loss, None, 128)?;
        train(from, &task, settings(steps, batch, 1e-4, self.seed))
    }
}

fn kept(rows: &[usize], solutions: &[Solution], sums: &[Sum]) -> Kept {
    let all = right(solutions, sums);
    let good = rows.iter().filter(|&&at| all[at]).count();
    Kept { share: rows.len() as f64 / sums.len() as f64, precision: good as f64 / rows.len().max(1) as f64 }
}

fn cell(seed: u64, questions: usize) -> Result<Cell, Failure> {
    let streams = Streams::new(seed);
    let mut sums: Vec<Sum> = (10..100).flat_map(|a| (10..100).map(move |b| (a, b))).collect();
    sums.shuffle(&mut streams.stream("sums"));
    let (gold, rest) = sums.split_at(GOLD);
    let (asked, rest) = rest.split_at(questions);
    let (test, rest) = rest.split_at(TEST);
    let mut rng = streams.stream("texts");
    let solved: Vec<(String, String)> =
        gold.iter().map(|sum| (question(*sum), solution(*sum, 0.0, &mut rng))).collect();
    let weak = network(LETTERS, 32, 1, seed)?;
    let weak = train(&weak, &responses(LETTERS, &solved)?, settings(500, 32, 3e-3, seed))?;
    let base = network(LETTERS, 64, 2, seed + 1000)?;
    let texts = corpus(rest, 3000, &mut rng)?;
    let base = train(&base, &TextTask::new(texts), settings(900, 32, 3e-3, seed))?;
    let lab = Lab { seed, base, asked: asked.to_vec(), test: test.to_vec() };
    let prompts = Lab::prompts(asked);
    let weak_said = answer(&weak, &prompts)?;
    let own_said = lab.in_context(asked, &weak_said, &mut rng)?;

    let mut found = vec![lab.test(&weak)?, lab.test(&lab.base)?];
    found.push(right(&lab.in_context(test, &weak_said, &mut rng)?, test));
    let everything: Vec<usize> = (0..questions).filter(|&at| !weak_said[at].text.is_empty()).collect();
    let tuned =
        |rows: &[usize], a: &[Solution], b: &[Solution], source| lab.tuned(&lessons(rows, a, b, source));
    found.push(lab.test(&tuned(&everything, &weak_said, &own_said, Source::Weak)?)?);
    let first = consistent(&weak_said, &own_said)?;
    if first.len() < 16 {
        return Err("the models agree on fewer than 16 questions".into());
    }
    let [of_weak, of_own, of_both] = [Source::Weak, Source::InContext, Source::Hybrid]
        .map(|source| tuned(&first, &weak_said, &own_said, source));
    let (of_weak, of_own, of_both) = (of_weak?, of_own?, of_both?);
    for graph in [&of_weak, &of_own, &of_both] {
        found.push(lab.test(graph)?);
    }
    let (weak_again, own_again) = (answer(&of_weak, &prompts)?, answer(&of_own, &prompts)?);
    let second = consistent(&weak_again, &own_again)?;
    if second.is_empty() {
        return Err("the tuned models agree on nothing".into());
    }
    let plus = tuned(&second, &weak_again, &own_again, Source::Hybrid)?;
    found.push(lab.test(&plus)?);

    // Samples of the tuned model: of the questions, for pairs, and of the test, for a vote.
    let plus_net = net(&plus)?;
    let sampled = |prompts: &[String], name: u64| -> Result<Vec<Vec<Solution>>, Failure> {
        let mut by_question = vec![Vec::new(); prompts.len()];
        for sample in 0..SAMPLES as u64 {
            let drawn = Some((1.0, streams.fork(name).fork(sample)));
            for (of, said) in
                by_question.iter_mut().zip(complete(&plus_net, LETTERS, prompts, LONGEST, drawn)?)
            {
                of.push(read(said));
            }
        }
        Ok(by_question)
    };
    let samples = sampled(&prompts, 1)?;
    let mut rng = streams.stream("pairs");
    let (mut pairs, mut own_pairs) = (Vec::new(), Vec::new());
    let mut contrasts = Contrasts::default();
    for (at, of) in samples.iter().enumerate() {
        match contrast(&weak_said[at], of, &Gates::default(), &mut rng)? {
            Ok(list) => pairs.extend(list.into_iter().map(|pair| (at, pair))),
            Err(why) => {
                contrasts.skipped[reason(why)] += 1;
            }
        }
        // The majority against the others, none of them the weak model's.
        if let Some((majority, votes)) =
            vote(of).filter(|(answer, votes)| !answer.is_empty() && 10 * votes >= 6 * SAMPLES)
            && votes < SAMPLES
        {
            let (with, against): (Vec<&Solution>, Vec<&Solution>) =
                of.iter().partition(|sample| sample.answer == majority);
            if let (Some(with), Some(against)) = (with.choose(&mut rng), against.choose(&mut rng)) {
                let pair = ContrastPair {
                    chosen: with.text.clone(),
                    rejected: against.text.clone(),
                    weak_chosen: false,
                };
                own_pairs.push((at, pair));
            }
        }
    }
    let good = |pick: fn(&ContrastPair) -> &String| -> f64 {
        let said: Vec<Solution> = pairs.iter().map(|(_, pair)| read(pick(pair).clone())).collect();
        let sums: Vec<Sum> = pairs.iter().map(|(at, _)| asked[*at]).collect();
        share(&right(&said, &sums))
    };
    contrasts.pairs = pairs.len();
    contrasts.weak_chosen = pairs.iter().filter(|(_, pair)| pair.weak_chosen).count();
    contrasts.chosen_right = good(|pair| &pair.chosen);
    contrasts.rejected_right = good(|pair| &pair.rejected);
    let dpo = PairLoss::Dpo(Dpo::default());
    found.push(lab.test(&lab.preferred(&plus, &pairs, dpo)?)?);
    found.push(lab.test(&lab.preferred(&plus, &pairs, PairLoss::Orpo(Orpo::default()))?)?);
    found.push(lab.test(&lab.preferred(&plus, &own_pairs, dpo)?)?);
    let voted: Vec<Solution> = sampled(&Lab::prompts(test), 2)?
        .iter()
        .map(|of| Solution {
            text: String::new(),
            answer: vote(of).map(|(answer, _)| answer.to_owned()).unwrap_or_default(),
        })
        .collect();
    found.push(right(&voted, test));
    let truth: Vec<String> = asked.iter().map(|sum| solution(*sum, 0.0, &mut rng)).collect();
    let truth: Vec<(usize, &str)> = truth.iter().map(String::as_str).enumerate().collect();
    found.push(lab.test(&lab.tuned(&truth)?)?);
    Ok(Cell {
        right: found,
        taught: [share(&right(&weak_said, asked)), share(&right(&own_said, asked))],
        kept: [kept(&first, &weak_said, asked), kept(&second, &weak_again, asked)],
        contrasts,
    })
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (seeds, questions): (u64, usize) = (options.get("seeds")?, options.get("questions")?);
    if !(2..=100).contains(&seeds) || !(100..=2000).contains(&questions) {
        return Err("--seeds from 2 to 100, --questions from 100 to 2000".into());
    }
    let began = Began::now();
    let name = W2S_REASONING.name;
    let mut run = Run::open(context.results(), name, options, context.fresh(), context.is_quiet())?;
    run.expect(seeds);
    let cells = (1..=seeds)
        .map(|seed| run.step(&format!("seed {seed}"), || cell(seed, questions)))
        .collect::<Result<Vec<Cell>, _>>()?;
    let ceiling = MODELS.len() - 1;
    let mut table = Table::new(
        "Right answers on test questions, in per cent, and what of the gap between weak model and ceiling came back; means over \
         seeds with 95 % intervals",
        &["model", "right", "PGR"],
    );
    let mut rows = Vec::new();
    let mut points = Vec::new();
    for (at, model) in MODELS.into_iter().enumerate() {
        let (value, interval) =
            mean_with_interval(&cells.iter().map(|cell| share(&cell.right[at])).collect::<Vec<_>>())?;
        let outcomes: Vec<Outcomes> = cells
            .iter()
            .map(|cell| Outcomes {
                weak: cell.right[0].clone(),
                student: cell.right[at].clone(),
                ceiling: cell.right[ceiling].clone(),
            })
            .collect();
        let pgr = Pgr::of(&outcomes, &PgrConfig::default())?;
        let recovered = if at == 0 || at == ceiling { "-".into() } else { pgr.recovered.to_string() };
        table.row([model.to_owned(), percent(value, interval), recovered]);
        if let Some(x) = DRAWN.iter().position(|(which, _)| *which == at) {
            points.push(Point { x: x as f64, y: value, interval: interval.map(|i| (i.low, i.high)) });
        }
        rows.push(serde_json::json!({
            "model": model, "right": cells.iter().map(|cell| share(&cell.right[at])).collect::<Vec<_>>(), "pgr": pgr,
        }));
    }
    let of = |pick: &dyn Fn(&Cell) -> f64| {
        format!("{:.1}", 100.0 * mean(&cells.iter().map(pick).collect::<Vec<_>>()))
    };
    let mut filter = Table::new(
        "What agreement keeps of the questions, in per cent, means over seeds",
        &["iteration", "weak solutions right", "own solutions right", "kept", "of these right"],
    );
    filter.row([
        "first".to_owned(),
        of(&|cell| cell.taught[0]),
        of(&|cell| cell.taught[1]),
        of(&|cell| cell.kept[0].share),
        of(&|cell| cell.kept[0].precision),
    ]);
    let rest = [of(&|cell| cell.kept[1].share), of(&|cell| cell.kept[1].precision)];
    filter.row(["second".to_owned(), "-".into(), "-".into(), rest[0].clone(), rest[1].clone()]);
    let count = |pick: &dyn Fn(&Contrasts) -> f64| {
        format!("{:.1}", mean(&cells.iter().map(|cell| pick(&cell.contrasts)).collect::<Vec<_>>()))
    };
    let mut contrasts =
        Table::new("Pairs of stage II: counts a seed and per cent, means over seeds", &CONTRASTS);
    let mut row = vec![
        count(&|of| of.pairs as f64),
        count(&|of| of.weak_chosen as f64),
        count(&|of| 100.0 * of.chosen_right),
        count(&|of| 100.0 * of.rejected_right),
    ];
    row.extend((0..4).map(|why| count(&|of| of.skipped[why] as f64)));
    contrasts.row(row);
    rows.extend(cells.iter().zip(1..).map(|(cell, seed): (&Cell, u64)| {
        serde_json::json!({ "seed": seed, "taught": cell.taught, "kept": cell.kept, "contrasts": cell.contrasts })
    }));
    let shown: Vec<String> = [0, 1, 3, 7, 8, 9, 12]
        .into_iter()
        .map(|at| format!("{} {}", MODELS[at], table.rows[at][1]))
        .collect();
    let page = Page {
        experiment: &W2S_REASONING,
        title: "Weak-to-strong reasoning".into(),
        summary: format!("Right answers in per cent: {}.", shown.join("; ")),
        seeds: (1..=seeds).collect(),
        rows,
        tables: vec![table, filter, contrasts],
        plots: vec![Plot {
            title: "Right answers on test questions".into(),
            x: "model".into(),
            y: "share".into(),
            kind: Kind::Bars { labels: DRAWN.map(|(_, label)| label.to_owned()).to_vec() },
            series: vec![Series { name: "right".into(), points }],
            reference: None,
        }],
        notes: notes(),
    };
    page.write(context, &run, began)
}

fn notes() -> Vec<String> {
    [
        "Sums of two numbers of two digits, steps written out. Weak: one layer of width 32, taught 2,000 gold solutions. Strong: \
         two layers of width 64, which have read sums asked for in another form three times out of four, two texts in five \
         careless; no gold solution of the questions is used before the ceiling.",
        "Two demonstrations in context, weak solutions of other questions; the paper has four. Learning rates (5e-4, 1e-4 for \
         pairs) and two epochs were fixed beforehand.",
        "Every fine-tuning of stage I begins at the untuned model; stage II begins at the second iteration and has the original \
         weak solution on one side of each pair.",
        "Answers here are numbers of up to three digits; agreement of wrong answers is rarer than on real word problems with \
         few candidates. GSM8K, MATH and models of useful size are not run.",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_to_the_answer() {
        let mut rng = Streams::new(1).stream("texts");
        assert_eq!(solution((47, 38), 0.0, &mut rng), "7+8=15;4+3+1=8;#85.");
        assert_eq!(solution((12, 35), 0.0, &mut rng), "2+5=7;1+3=4;#47.");
        assert_eq!(solution((99, 99), 0.0, &mut rng), "9+9=18;9+9+1=19;#198.");
        // A careless solution slips, and says what its steps come to.
        let slipped = (0..200).filter(|_| read(solution((47, 38), 0.35, &mut rng)).answer != "85").count();
        assert!((90..150).contains(&slipped), "{slipped} of 200 at 1 - 0.65^2");
        for text in [solution((99, 99), 0.0, &mut rng), question((10, 99))] {
            assert!(LETTERS.encode(&text).is_ok() && text.len() <= LONGEST);
        }
        assert_eq!(
            right(&[read("#085.".into()), read("#85".into()), read(String::new())], &[(47, 38); 3]),
            [true, false, false]
        );
        assert_eq!(corpus(&[(10, 20)], 3, &mut rng).unwrap().len(), 3);
    }
}
