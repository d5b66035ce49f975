//! A small model as the judge, of its own sums or of recorded solutions.

use std::path::Path;
use std::time::Instant;

use ndarray::Array2;
use pilotfish_architectures::Tokenizer;
use pilotfish_model::sampling::Warpers;
use pilotfish_model::{CausalModel, Steps, Streams, Token};
use pilotfish_runtime::OnnxCausal;
use pilotfish_supervision::heads::{Logistic, LogisticConfig, balanced_weights};
use pilotfish_supervision::meta_ranking::{
    Games, Outcome, Slots, Verdict, Votes, compare_all, curve, filter,
};
use pilotfish_supervision::verifiers::{Reader, SampleConfig};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::shown;
use crate::error::Failure;
use crate::experiments::judging::{auroc, balanced_accuracy, f1_of_wrong, mean_log_probability, resampled};
use crate::experiments::recorded::{self, Recorded, Told};
use crate::experiments::session::{Session, single_tokens};
use crate::experiments::tasks::{Problem, Task, extract};
use crate::experiments::{Context, Options};
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// Right and wrong references of a draw.
const MIX: (usize, usize) = (3, 2);
/// Items a step.
const CHUNK: usize = 10;
/// Problems answered to choose references from.
const DEV: usize = 60;
/// Draws whose references are shown to P(True) as examples.
const SHOTS: usize = 2;
/// Accuracy of the strong model that stands in where there is none.
const STRONG: f64 = 0.85;

const HEAD: &str =
    "Two questions were answered, each on its own. Which answer is more likely to be correct?\n\n";
const ASK: &str = "\nMore likely to be correct (A, B, or C for equal):";
const VERDICTS: [&str; 3] = [" A", " B", " C"];
const RIGHT: &str = "\nIs this answer right? Yes or No:";
const YES_NO: [&str; 2] = [" Yes", " No"];

/// An answer to judge.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    question: String,
    answer: String,
    right: bool,
    /// Whether the strong model is right about this question.
    strong: bool,
    /// Mean log-probability of the answer: its author's where the author is at hand, else the judge's.
    confidence: f64,
}

/// What the judge said of an item.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Judged {
    /// Against every reference of the pool.
    verdicts: Vec<Verdict>,
    /// The same with all answers hidden.
    hidden: Vec<Verdict>,
    /// P(True) without examples.
    alone: f64,
    /// P(True) with the references of a draw as examples.
    shots: Vec<f64>,
}

const METHODS: [&str; 11] = [
    "confidence (log-probability)",
    "shorter is better",
    "P(True)",
    "P(True), references as examples",
    "Meta Ranking: sum, hard",
    "Meta Ranking: sum, soft",
    "Meta Ranking: informative, hard",
    "Meta Ranking: fitted, hard",
    "Meta Ranking: fitted, soft",
    "Meta Ranking: A against B, bias cancelled",
    "control: fitted, soft, answers hidden",
];
/// The method that stands for Meta Ranking in curves and sentences.
const MAIN: usize = 8;
const CANCELLED: usize = 9;
const HIDDEN: usize = 10;
const TRAINED: &str = "control: regression on comparisons, two folds";

pub(super) fn steps(items: usize, recorded: bool) -> u64 {
    let chunks = items.div_ceil(CHUNK) as u64;
    2 + chunks + if recorded { 0 } else { ((items + DEV).div_ceil(CHUNK)) as u64 }
}

struct Judge<'a> {
    tokenizer: &'a Tokenizer,
    verdicts: [Token; 3],
    yes_no: [Token; 2],
}

impl Judge<'_> {
    fn encode(&self, text: &str) -> Result<Vec<Token>, Failure> {
        Ok(self.tokenizer.encode(text, false)?)
    }

    fn slots(&self, item: &Item, hidden: bool) -> Result<Slots, Failure> {
        let answer = if hidden { "(hidden)" } else { &item.answer };
        let pair = format!("Question: {}\nAnswer: {answer}\n", item.question);
        Ok(Slots {
            first: self.encode(&format!("A) {pair}\n"))?,
            second: self.encode(&format!("B) {pair}{ASK}"))?,
        })
    }

    fn compare(
        &self,
        reader: &mut Reader<'_>,
        targets: &[Item],
        references: &[Item],
        hidden: bool,
    ) -> Result<Vec<Vec<Verdict>>, Failure> {
        let slots =
            |items: &[Item]| items.iter().map(|item| self.slots(item, hidden)).collect::<Result<Vec<_>, _>>();
        let (targets, references) = (slots(targets)?, slots(references)?);
        Ok(compare_all(reader, &self.encode(HEAD)?, &targets, &references, self.verdicts)?)
    }

    /// P(True) of items, after examples.
    fn p_true(
        &self,
        reader: &mut Reader<'_>,
        items: &[Item],
        examples: &[&Item],
    ) -> Result<Vec<f64>, Failure> {
        let mut before = String::new();
        for example in examples {
            let verdict = YES_NO[usize::from(!example.right)];
            before +=
                &format!("Question: {}\nAnswer: {}{RIGHT}{verdict}\n\n", example.question, example.answer);
        }
        before += "Question:";
        let candidates = items
            .iter()
            .map(|item| self.encode(&format!(" {}\nAnswer: {}{RIGHT}", item.question, item.answer)))
            .collect::<Result<Vec<_>, _>>()?;
        let candidates: Vec<&[Token]> = candidates.iter().map(Vec::as_slice).collect();
        let answers = reader.judge(&self.encode(&before)?, &candidates, &self.yes_no)?;
        Ok(answers.into_iter().map(|p| p[0]).collect())
    }
}

/// Different sums that a small model gets right about as often as not.
fn sums(count: usize, seed: u64) -> Vec<Problem> {
    let mut all: Vec<(u32, u32)> = (11..100).flat_map(|a| (2..10).map(move |b| (a, b))).collect();
    all.shuffle(&mut Streams::new(seed).stream("sums"));
    let problem = |(a, b): (u32, u32)| Problem {
        task: Task::Arithmetic,
        question: format!("{a} + {b}"),
        answer: (a + b).to_string(),
    };
    all.into_iter().take(count).map(problem).collect()
}

/// The model's own greedy answers to sums.
fn answer_sums(
    run: &mut Run,
    reader: &mut Reader<'_>,
    tokenizer: &Tokenizer,
    items: usize,
    seed: u64,
) -> Result<(Vec<Item>, Vec<Item>), Failure> {
    let all = sums(items + DEV, seed);
    let config =
        SampleConfig { warpers: Warpers::default(), tokens: 8, stop: tokenizer.encode("\n", false)? };
    let mut rng = Streams::new(seed).stream("strong");
    let strong: Vec<bool> = all.iter().map(|_| rng.random_bool(STRONG)).collect();
    let mut out: Vec<Item> = Vec::new();
    for (index, chunk) in all.chunks(CHUNK).enumerate() {
        let answered: Vec<(String, bool, f64)> = run.step(&format!("answers {}", index * CHUNK), || {
            let answer = |problem: &Problem| {
                let prompt = tokenizer.encode(&problem.prompt(), false)?;
                let response = reader.sample(&prompt, 1, &config, &Streams::new(seed))?.remove(0);
                let text = extract(&tokenizer.decode(&response.tokens, true)?).unwrap_or_default();
                let right = text == problem.answer;
                Ok::<_, Failure>((text, right, response.mean_log_probability()))
            };
            chunk.iter().map(answer).collect::<Result<Vec<_>, _>>()
        })?;
        for ((answer, right, confidence), problem) in answered.into_iter().zip(chunk) {
            let question = problem.question.clone();
            let strong = strong[out.len()];
            out.push(Item { question, answer, right, strong, confidence });
        }
    }
    let items = out.split_off(DEV);
    Ok((out, items))
}

/// Recorded solutions of a weak model, and whether those of a strong one are right.
fn recorded_items(path: &Path, weak: &str, strong: &str) -> Result<Vec<Item>, Failure> {
    let item = |recorded: Recorded| match <[Told; 2]>::try_from(recorded.said) {
        Ok([weak, strong]) => Some(Item {
            question: recorded.question,
            answer: weak.solution.text,
            right: weak.right,
            strong: strong.right,
            confidence: f64::NAN,
        }),
        Err(_) => None,
    };
    Ok(recorded::read(path, &[weak, strong])?.into_iter().filter_map(item).collect())
}

/// Mean log-probability of answers by the judge.
fn judge_confidence(
    model: &mut OnnxCausal,
    tokenizer: &Tokenizer,
    items: &mut [Item],
) -> Result<(), Failure> {
    for item in items {
        let before = tokenizer.encode(&format!("Question: {}\nAnswer:", item.question), false)?;
        let answer = tokenizer.encode(&format!(" {}", item.answer), false)?;
        item.confidence = mean_log_probability(model, &before, &answer)?;
    }
    model.truncate(0)?;
    Ok(())
}

pub(super) fn run(context: &Context, run: &mut Run, result: &mut ResultFile) -> Result<String, Failure> {
    let options: &Options = context.options();
    let (count, each) = (options.get::<usize>("items")?, options.get::<usize>("references")?);
    let (draws, seed) = (options.get::<usize>("draws")?, options.get::<u64>("seed")?);
    if !(20..=600).contains(&count) || draws == 0 || !(MIX.0..=20).contains(&each) {
        return Err("--items must be 20 to 600, --draws at least 1, --references 3 to 20".into());
    }
    let solutions = options.text("solutions")?;
    let Session { mut model, tokenizer, .. } = Session::open(context)?;
    let name = model.info().name.clone();
    let clock = Instant::now();
    let (dev, mut items, author) = if solutions.is_empty() {
        let mut reader = Reader::new(&mut model);
        let (dev, items) = answer_sums(run, &mut reader, &tokenizer, count, seed)?;
        (dev, items, "its own greedy sums of a two-digit and a one-digit number".to_owned())
    } else {
        let (weak, strong) = (options.text("weak")?, options.text("strong")?);
        let longest: usize = options.get("longest")?;
        let mut all = recorded_items(Path::new(solutions), weak, strong)?;
        let mut short = Vec::new();
        for item in all.drain(..) {
            if tokenizer.encode(&format!("{} {}", item.question, item.answer), false)?.len() <= longest {
                short.push(item);
            }
        }
        short.shuffle(&mut Streams::new(seed).stream("order"));
        if short.len() < DEV + 20 {
            let got = short.len();
            return Err(
                format!("{got} solutions of at most {longest} tokens are too few; raise --longest").into()
            );
        }
        short.truncate(DEV + count);
        let items = short.split_off(DEV);
        (short, items, format!("GSM8K solutions of {weak}, of at most {longest} tokens"))
    };
    if !solutions.is_empty() {
        let values: Vec<f64> = run.step("confidence", || {
            judge_confidence(&mut model, &tokenizer, &mut items)?;
            Ok::<_, Failure>(items.iter().map(|item| item.confidence).collect())
        })?;
        items.iter_mut().zip(values).for_each(|(item, value)| item.confidence = value);
    }
    let pool: Vec<Item> = [true, false]
        .into_iter()
        .flat_map(|label| dev.iter().filter(move |item| item.right == label).take(each).cloned())
        .collect();
    if pool.len() < 2 * each {
        let right = dev.iter().filter(|item| item.right).count();
        return Err(
            format!("of {DEV} answers {right} are right: too few of one kind for {each} references").into()
        );
    }
    // What share of answers is right, from those that no one is judged by.
    let prior = (dev.iter().filter(|item| item.right).count() as f64 / DEV as f64).clamp(0.05, 0.95);
    let draw = |index: usize| -> Vec<usize> {
        let mut rng = Streams::new(seed).fork(index as u64).stream("draw");
        let mut pick = |from: std::ops::Range<usize>, take: usize| {
            let mut all: Vec<usize> = from.collect();
            all.shuffle(&mut rng);
            all.truncate(take);
            all
        };
        let mut out = pick(0..each, MIX.0);
        out.extend(pick(each..2 * each, MIX.1));
        out.shuffle(&mut rng);
        out
    };
    let drawn: Vec<Vec<usize>> = (0..draws).map(draw).collect();

    let judge = Judge {
        tokenizer: &tokenizer,
        verdicts: single_tokens(&tokenizer, VERDICTS)?,
        yes_no: single_tokens(&tokenizer, YES_NO)?,
    };
    let mut reader = Reader::new(&mut model);
    let games: Vec<Vec<Verdict>> =
        run.step("references among themselves", || judge.compare(&mut reader, &pool, &pool, false))?;
    let mut judged: Vec<Judged> = Vec::new();
    for (index, chunk) in items.chunks(CHUNK).enumerate() {
        let started = Instant::now();
        let more: Vec<Judged> = run.step(&format!("judged {}", index * CHUNK), || {
            let verdicts = judge.compare(&mut reader, chunk, &pool, false)?;
            let first: Vec<Item> = drawn[0].iter().map(|at| pool[*at].clone()).collect();
            let hidden = judge.compare(&mut reader, chunk, &first, true)?;
            let alone = judge.p_true(&mut reader, chunk, &[])?;
            let mut shots = vec![Vec::new(); chunk.len()];
            for draw in drawn.iter().take(SHOTS) {
                let examples: Vec<&Item> = draw.iter().map(|at| &pool[*at]).collect();
                let values = judge.p_true(&mut reader, chunk, &examples)?;
                shots.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
            }
            let parts = verdicts.into_iter().zip(hidden).zip(alone).zip(shots);
            let all =
                parts.map(|(((verdicts, hidden), alone), shots)| Judged { verdicts, hidden, alone, shots });
            Ok::<_, Failure>(all.collect::<Vec<_>>())
        })?;
        judged.extend(more);
        if index == 0 && started.elapsed().as_secs() > 2 {
            let minutes = started.elapsed().as_secs_f64() * items.len() as f64 / CHUNK as f64 / 60.0;
            context.show(&format!("about {minutes:.0} min for all {} answers", items.len()));
        }
    }
    let rows = reader.rows();
    drop(reader);
    result.notes.push(format!(
        "{name} read {rows} rows in {:.0} s (kept steps not counted); what stands in the first slot is read once.",
        clock.elapsed().as_secs_f64()
    ));
    let study = Study { name, author, items, judged, pool, games, drawn, prior, seed };
    study.report(solutions.is_empty(), result)
}

struct Study {
    name: String,
    author: String,
    items: Vec<Item>,
    judged: Vec<Judged>,
    pool: Vec<Item>,
    games: Vec<Vec<Verdict>>,
    drawn: Vec<Vec<usize>>,
    prior: f64,
    seed: u64,
}

/// Log-odds that the target is better, "equal" left out: the mean over both orders, in which a bias towards a slot cancels.
fn cancelled(verdict: &Verdict) -> f64 {
    let odds = |p: [f64; 3]| (p[0].max(1e-12) / p[1].max(1e-12)).ln();
    0.5 * (odds(verdict.first) - odds(verdict.swapped))
}

/// Scores of every item in one draw of references, and the verdict's threshold.
struct Scored {
    scores: Vec<f64>,
    threshold: f64,
}

impl Study {
    /// Votes fitted to the games that the references of a draw play, each pair both ways.
    fn fitted(&self, draw: &[usize]) -> Result<Votes, Failure> {
        let mut games = Vec::new();
        for &a in draw {
            for &b in draw.iter().filter(|b| **b != a) {
                games.push((self.pool[a].right, self.pool[b].right, self.games[a][b].hard()));
            }
        }
        Ok(Votes::fitted(&Games::count(&games, 1.0)?)?)
    }

    fn meta(&self, method: usize, draw: &[usize]) -> Result<Scored, Failure> {
        let votes = match method {
            4 | 5 => Votes::SUM,
            6 => Votes::INFORMATIVE,
            _ => self.fitted(draw)?,
        };
        // Plain votes have no prior in them.
        let prior = if method >= 7 { self.prior } else { 0.5 };
        let score = |judged: &Judged| -> Result<f64, Failure> {
            let verdict = |place: usize, at: usize| match method {
                HIDDEN => (&judged.hidden[place], self.pool[self.drawn[0][place]].right),
                _ => (&judged.verdicts[at], self.pool[at].right),
            };
            let all = draw.iter().enumerate().map(|(place, at)| verdict(place, *at));
            Ok(match method {
                CANCELLED => all.map(|(v, _)| cancelled(v)).sum(),
                4 | 6 | 7 => votes.score(&all.map(|(v, y)| (v.hard(), y)).collect::<Vec<_>>(), prior)?,
                _ => votes.soft_score(&all.map(|(v, y)| (v.soft(), y)).collect::<Vec<_>>(), prior)?,
            })
        };
        let scores = self.judged.iter().map(score).collect::<Result<_, _>>()?;
        Ok(Scored { scores, threshold: 0.0 })
    }

    fn scored(&self, method: usize) -> Result<Vec<Scored>, Failure> {
        let one = |threshold: f64, score: &dyn Fn(usize) -> f64| {
            vec![Scored { scores: (0..self.items.len()).map(score).collect(), threshold }]
        };
        // Where a score has no threshold of its own: the prior's share of items passes.
        let quantile = |score: &dyn Fn(usize) -> f64| {
            let mut all: Vec<f64> = (0..self.items.len()).map(score).collect();
            all.sort_by(f64::total_cmp);
            let at = ((1.0 - self.prior) * all.len() as f64) as usize;
            all.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Ok(match method {
            0 => {
                let score = |i: usize| self.items[i].confidence;
                one(quantile(&score), &score)
            }
            1 => {
                let score = |i: usize| -(self.items[i].answer.len() as f64);
                one(quantile(&score), &score)
            }
            2 => one(0.5, &|i| self.judged[i].alone),
            3 => (0..self.judged[0].shots.len())
                .flat_map(|shot| one(0.5, &|i| self.judged[i].shots[shot]))
                .collect(),
            HIDDEN => vec![self.meta(HIDDEN, &self.drawn[0])?],
            _ => self.drawn.iter().map(|draw| self.meta(method, draw)).collect::<Result<_, _>>()?,
        })
    }

    /// Comparisons with all references as features, for a judge that is trained on half of the items.
    fn trained(&self) -> Result<Scored, Failure> {
        let features = Array2::from_shape_fn((self.items.len(), 2 * self.pool.len()), |(i, f)| {
            self.judged[i].verdicts[f / 2].soft()[2 * (f % 2)]
        });
        let mut scores = vec![0.0; self.items.len()];
        for fold in 0..2 {
            let of = |test: bool| -> Vec<usize> {
                (0..self.items.len()).filter(|i| (i % 2 == fold) == test).collect()
            };
            let (train, test) = (of(false), of(true));
            let scaler =
                pilotfish_supervision::heads::Scaler::fit(features.select(ndarray::Axis(0), &train).view())?;
            let rows = |of: &[usize]| scaler.apply(features.select(ndarray::Axis(0), of).view());
            let y: Vec<usize> = train.iter().map(|i| usize::from(self.items[*i].right)).collect();
            let weights = balanced_weights(&y, 2);
            let config = LogisticConfig { l2: 10.0, ..LogisticConfig::default() };
            let model = Logistic::fit_classes(rows(&train)?.view(), &y, 2, Some(&weights), &config)?;
            let p = model.predict(rows(&test)?.view())?;
            test.iter().zip(p.column(1)).for_each(|(i, p)| scores[*i] = *p);
        }
        Ok(Scored { scores, threshold: 0.5 })
    }

    fn labels(&self) -> Vec<bool> {
        self.items.iter().map(|item| item.right).collect()
    }

    fn report(&self, own: bool, result: &mut ResultFile) -> Result<String, Failure> {
        let right = self.labels();
        let n = right.len();
        let mut methods: Vec<(&str, Vec<Scored>)> = Vec::new();
        for (index, name) in METHODS.into_iter().enumerate() {
            methods.push((name, self.scored(index)?));
        }
        methods.push((TRAINED, vec![self.trained()?]));
        let title = format!(
            "{} as judge of {n} answers ({}), {} draws of {} right and {} wrong references: [95 % bootstrap over answers]",
            self.name,
            self.author,
            self.drawn.len(),
            MIX.0,
            MIX.1
        );
        let mut table =
            Table::new(title, &["judge", "AUROC", "balanced accuracy", "F1 of wrong", "cascade's gain"]);
        let baseline = |name: &str, balanced: f64, f1: f64| {
            [name.into(), "0.500".into(), format!("{balanced:.3}"), format!("{f1:.3}"), "0.000".into()]
        };
        let wrong = right.iter().filter(|right| !**right).count() as f64 / n as f64;
        table.row(baseline("trust everything", 0.5, 0.0));
        table.row(baseline("at random, as often as there are wrong ones", 0.5, wrong));
        let mut gains = Vec::new();
        let mut areas = Vec::new();
        for (name, draws) in &methods {
            let mean = |of: &dyn Fn(&Scored) -> Option<f64>| -> Option<f64> {
                let values = draws.iter().map(of).collect::<Option<Vec<_>>>()?;
                Some(values.iter().sum::<f64>() / values.len() as f64)
            };
            let area = resampled(n, self.seed, |at| {
                mean(&|one| auroc(at.iter().map(|i| (one.scores[*i], right[*i]))))
            });
            let verdicts = |one: &Scored, at: &[usize]| -> Vec<(bool, bool)> {
                at.iter().map(|i| (one.scores[*i] > one.threshold, right[*i])).collect()
            };
            let balanced =
                resampled(n, self.seed, |at| mean(&|one| balanced_accuracy(verdicts(one, at).into_iter())));
            let f1 =
                resampled(n, self.seed, |at| mean(&|one| Some(f1_of_wrong(verdicts(one, at).into_iter()))));
            let gain = resampled(n, self.seed, |at| mean(&|one| self.gain(&one.scores, at)));
            table.row([(*name).to_owned(), shown(area), shown(balanced), shown(f1), shown(gain)]);
            gains.push(gain);
            areas.push(area);
        }
        result.tables.push(table);
        let [weak, strong] = [|item: &Item| item.right, |item: &Item| item.strong]
            .map(|of| self.items.iter().filter(|item| of(item)).count() as f64 / n as f64);
        self.curves(&methods, weak, strong, result)?;
        let purity = self.rounds(result)?;
        self.biases(result);
        for (item, judged) in self.items.iter().zip(&self.judged) {
            let letters = |list: &[Verdict]| -> String {
                list.iter()
                    .map(|verdict| match verdict.hard() {
                        Outcome::Better => '>',
                        Outcome::Tie => '=',
                        Outcome::Worse => '<',
                    })
                    .collect()
            };
            let round = |x: f64| (1e4 * x).round() / 1e4;
            result.rows.push(serde_json::json!({
                "part": "real", "right": item.right, "strong": item.strong, "confidence": round(item.confidence),
                "hard": letters(&judged.verdicts), "hidden": letters(&judged.hidden), "p_true": round(judged.alone),
                "margin": round(judged.verdicts.iter().map(|v| v.soft()[0] - v.soft()[2]).sum::<f64>()),
            }));
        }
        let strong_is = match own {
            true => {
                format!("The strong model of the cascade is a coin that is right with probability {STRONG}.")
            }
            false => "The strong model of the cascade is the larger model's recorded solution.".to_owned(),
        };
        result.notes.extend([
            format!(
                "Of {n} answers {:.1} % are right; references come from {DEV} other answers, {} of each kind, and the \
                 prior ({:.2}) from these. {strong_is} A cascade's gain is the mean accuracy over all shares sent on, less that \
                 of sending at random. Confidence and length pass as many answers as the prior says; P(True) passes \
                 above one half, Meta Ranking above S = 0.",
                100.0 * weak,
                self.pool.len() / 2,
                self.prior
            ),
            format!(
                "The regression is trained on the labels of half of the answers and used on the other half: what the \
                 comparisons hold at most, near enough. P(True) with examples uses the first {} draws.",
                self.judged.first().map_or(0, |judged| judged.shots.len())
            ),
        ]);
        let verdict = match areas[MAIN] {
            Some((_, interval)) if interval.low > 0.5 => {
                "tells right answers from wrong ones better than chance"
            }
            Some((_, interval)) if interval.high < 0.5 => "is worse than chance",
            _ => "cannot be told from chance",
        };
        let helps = match gains[MAIN] {
            Some((_, interval)) if interval.low > 0.0 => "beats sending at random",
            Some((_, interval)) if interval.high < 0.0 => "is worse than sending at random",
            _ => "cannot be told from sending at random",
        };
        Ok(format!(
            "{} as the judge of {}: Meta Ranking {verdict} (AUROC {}; answers hidden {}; P(True) {}; confidence {}), and \
             its cascade {helps} (gain {}). Filtering by it moves the share of right answers from {:.1} % to {:.1} %.",
            self.name,
            self.author,
            shown(areas[MAIN]),
            shown(areas[HIDDEN]),
            shown(areas[2]),
            shown(areas[0]),
            shown(gains[MAIN]),
            100.0 * weak,
            100.0 * purity,
        ))
    }

    /// Mean accuracy over all shares sent on, less that of sending at random.
    fn gain(&self, scores: &[f64], at: &[usize]) -> Option<f64> {
        let scores: Vec<f64> = at.iter().map(|i| scores[*i]).collect();
        let weak: Vec<bool> = at.iter().map(|i| self.items[*i].right).collect();
        let strong: Vec<bool> = at.iter().map(|i| self.items[*i].strong).collect();
        let points = curve(&scores, &weak, &strong).ok()?;
        let ends = 0.5 * (points.first()?.cascade.accuracy + points.last()?.cascade.accuracy);
        let area = points.windows(2).map(|pair| {
            let (a, b) = (pair[0].cascade, pair[1].cascade);
            0.5 * (a.accuracy + b.accuracy) * (b.routed - a.routed)
        });
        Some(area.sum::<f64>() - ends)
    }

    fn curves(
        &self,
        methods: &[(&str, Vec<Scored>)],
        weak: f64,
        strong: f64,
        result: &mut ResultFile,
    ) -> Result<(), Failure> {
        let (right, other): (Vec<bool>, Vec<bool>) =
            self.items.iter().map(|item| (item.right, item.strong)).unzip();
        let mut series = vec![Series {
            name: "at random".into(),
            points: vec![
                Point { x: 0.0, y: weak, interval: None },
                Point { x: 1.0, y: strong, interval: None },
            ],
        }];
        for (method, name) in [(0, "confidence"), (2, "P(True)"), (MAIN, "Meta Ranking")] {
            let mut points: Vec<Point> =
                (0..=20).map(|i| Point { x: f64::from(i) / 20.0, y: 0.0, interval: None }).collect();
            let draws = &methods[method].1;
            for draw in draws {
                let curve = curve(&draw.scores, &right, &other)?;
                for point in &mut points {
                    let after = curve.partition_point(|at| at.cascade.routed < point.x).min(curve.len() - 1);
                    let (a, b) = (curve[after.saturating_sub(1)].cascade, curve[after].cascade);
                    let share = match b.routed - a.routed {
                        width if width > 0.0 => (point.x - a.routed) / width,
                        _ => 1.0,
                    };
                    point.y += (a.accuracy + share * (b.accuracy - a.accuracy)) / draws.len() as f64;
                }
            }
            series.push(Series { name: name.into(), points });
        }
        result.plots.push(Plot {
            title: "Cascade with a real judge: accuracy over the share sent to the strong model".into(),
            x: "share sent".into(),
            y: "accuracy".into(),
            kind: Kind::Lines,
            series,
            reference: None,
        });
        Ok(())
    }

    /// Filtering, each round with the references of another draw; returns the share of right answers in the end.
    fn rounds(&self, result: &mut ResultFile) -> Result<f64, Failure> {
        let draws: Vec<Scored> =
            self.drawn.iter().map(|draw| self.meta(MAIN, draw)).collect::<Result<_, _>>()?;
        let quartile = |scores: &[f64], left: &[usize]| {
            let mut all: Vec<f64> = left.iter().map(|i| scores[*i]).collect();
            all.sort_by(f64::total_cmp);
            all[(all.len() - 1) / 4]
        };
        // Above zero may be nobody: each round drops the quarter that scores lowest.
        let kept = filter::<pilotfish_supervision::SupervisionError>(
            self.items.len(),
            self.drawn.len().min(4),
            |round, left| {
                let scores = &draws[round % draws.len()].scores;
                let limit = quartile(scores, left);
                Ok(left.iter().map(|i| scores[*i] > limit).collect())
            },
        )?;
        let mut table = Table::new(
            "Filtering by a real judge: each round drops the quarter that scores lowest (more where scores are equal), against the references of \
             another draw",
            &["round", "answers left", "right"],
        );
        let share = |left: &[usize]| {
            left.iter().filter(|i| self.items[**i].right).count() as f64 / left.len().max(1) as f64
        };
        let all: Vec<usize> = (0..self.items.len()).collect();
        table.row(["0".to_owned(), all.len().to_string(), format!("{:.3}", share(&all))]);
        let mut last = share(&all);
        for (round, kept) in kept.iter().enumerate() {
            // Nobody left is nobody to count.
            if kept.kept.is_empty() {
                break;
            }
            last = share(&kept.kept);
            table.row([(round + 1).to_string(), kept.kept.len().to_string(), format!("{last:.3}")]);
        }
        result.tables.push(table);
        Ok(last)
    }

    fn biases(&self, result: &mut ResultFile) {
        let all: Vec<&Verdict> = self.judged.iter().flat_map(|judged| &judged.verdicts).collect();
        let count = |of: &dyn Fn(&Verdict) -> f64| all.iter().map(|v| of(v)).sum::<f64>() / all.len() as f64;
        let first = count(&|v| 0.5 * (v.first[0] + v.swapped[0]));
        let second = count(&|v| 0.5 * (v.first[1] + v.swapped[1]));
        let ties = count(&|v| f64::from(u8::from(v.hard() == Outcome::Tie)));
        result.notes.push(format!(
            "Over {} comparisons the first slot gets probability {first:.3}, the second {second:.3}, \"equal\" {:.3}; the \
             two orders agree on no winner in {:.1} % of them.",
            all.len(),
            1.0 - first - second,
            100.0 * ties
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_towards_a_slot_cancels() {
        // Preferred by 0.4, the first slot by 1; what goes to "equal" is nothing to it.
        let odds = |x: f64| [0.8 / (1.0 + (-x).exp()), 0.8 / (1.0 + x.exp()), 0.2];
        let verdict = Verdict { first: odds(1.4), swapped: odds(0.6) };
        assert!((cancelled(&verdict) - 0.4).abs() < 1e-12);
        let all = sums(600, 1);
        let different: std::collections::HashSet<_> = all.iter().map(|sum| &sum.question).collect();
        assert_eq!((all.len(), different.len()), (600, 600));
    }

    fn study() -> Study {
        // A judge that sees the truth: right answers win, equals tie.
        let verdict = |a: bool, b: bool| {
            let p = match (a, b) {
                (true, false) => [0.9, 0.05, 0.05],
                (false, true) => [0.05, 0.9, 0.05],
                _ => [0.1, 0.1, 0.8],
            };
            Verdict { first: p, swapped: [p[1], p[0], p[2]] }
        };
        let item = |right: bool| Item {
            question: "1 + 1".into(),
            answer: "2".into(),
            right,
            strong: true,
            confidence: if right { -0.1 } else { -0.2 },
        };
        let labels: Vec<bool> = (0..40).map(|i| i % 3 == 0).collect();
        let pool: Vec<Item> = [[true; 3], [false; 3]].concat().into_iter().map(item).collect();
        let against = |y: bool| pool.iter().map(|r| verdict(y, r.right)).collect::<Vec<_>>();
        Study {
            name: "judge".into(),
            author: "tests".into(),
            judged: labels
                .iter()
                .map(|y| Judged {
                    verdicts: against(*y),
                    hidden: vec![verdict(true, true); 5],
                    alone: 0.5,
                    shots: vec![0.5],
                })
                .collect(),
            items: labels.into_iter().map(item).collect(),
            games: pool.iter().map(|a| against(a.right)).collect(),
            pool,
            drawn: vec![vec![0, 1, 2, 3, 4], vec![2, 1, 0, 5, 4]],
            prior: 0.4,
            seed: 0,
        }
    }

    #[test]
    fn a_judge_that_knows_is_perfect_and_one_that_does_not_is_chance() {
        let study = study();
        let right = study.labels();
        for method in [0, 4, 5, 7, MAIN, CANCELLED] {
            for one in study.scored(method).expect("scores") {
                let area = auroc(one.scores.iter().copied().zip(right.iter().copied()));
                assert_eq!(area, Some(1.0), "{}", METHODS[method]);
            }
        }
        for method in [1, 2, 3, HIDDEN] {
            for one in study.scored(method).expect("scores") {
                let area = auroc(one.scores.iter().copied().zip(right.iter().copied()));
                assert_eq!(area, Some(0.5), "{}", METHODS[method]);
            }
        }
        let all: Vec<usize> = (0..40).collect();
        // Of 40 answers 14 are right, the strong model always is: a perfect order first sends the 26 wrong ones.
        let [w, n] = [26.0, 40.0f64];
        let want = (0.5 * (14.0 / n + 1.0) * w / n + 14.0 / n) - 0.5 * (14.0 / n + 1.0);
        let found = study.gain(&study.scored(8).expect("scores")[0].scores, &all).expect("a curve");
        assert!((found - want).abs() < 1e-12, "{found} {want}");
        let mut result = ResultFile::default();
        let summary = study.report(true, &mut result).expect("a report");
        assert!(
            summary.contains("better than chance") && summary.contains("beats sending at random"),
            "{summary}"
        );
        // Three rounds at the most would leave only right ones; equal scores are never split.
        assert_eq!(result.tables.len(), 2);
        assert!(result.notes.iter().any(|note| note.contains("first slot")));
    }
}
