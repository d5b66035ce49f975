//! Real verifiers: a small model judges its own answers.

use std::time::Instant;

use ndarray::{Array2, Array3, ArrayView2, Axis};
use pilotfish_architectures::Tokenizer;
use pilotfish_evaluation::PairedConfig;
use pilotfish_model::sampling::Warpers;
use pilotfish_model::{CausalModel, Streams, Token};
use pilotfish_supervision::heads::{Logistic, LogisticConfig, balanced_weights};
use pilotfish_supervision::verifiers::{Reader, SampleConfig};
use pilotfish_supervision::weaver::{
    self, Balance, Difficulty, Stopping, StoppingConfig, Student, Threshold, TieBreak, WeaverConfig,
    balance_from_labels, best, chosen, distil, majority_answer, majority_scores, naive_ensemble,
};
use serde::{Deserialize, Serialize};

use super::WEAVER;
use crate::error::Failure;
use crate::experiments::judging::auroc;
use crate::experiments::page::{mean_with_interval as mean, percent};
use crate::experiments::session::{Session, single_tokens};
use crate::experiments::tasks::{Problem, Task, extract, problems};
use crate::experiments::{Context, Options};
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// Verifiers, in the order of [`Answer::scores`]. The first five cost nothing beyond sampling.
const VERIFIERS: [&str; 11] = [
    "majority vote",
    "mean log-probability",
    "short",
    "agrees with greedy",
    "well formed",
    "partial check 1",
    "partial check 2",
    "P(True)",
    "P(Yes)",
    "P(Yes), examples first",
    "P(correct)",
];
/// Verifiers that need no check and no judge: what a distilled scorer may see.
const CHEAP: usize = 4;
const METHODS: [&str; 10] = [
    "first",
    "majority vote",
    "naive mean",
    "Weaver, threshold .5",
    "Weaver, balanced thresholds",
    "Weaver, balanced, no checks",
    "distilled from Weaver, no judge",
    "LR on all labels, two folds",
    "best verifier (oracle)",
    "pass@K (oracle)",
];

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Answer {
    text: Option<String>,
    right: bool,
    /// `None` where a verifier has nothing to say.
    scores: Vec<Option<f64>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Asked {
    problem: Problem,
    greedy: Option<String>,
    answers: Vec<Answer>,
    rows: u64,
    seconds: f64,
}

/// A judge: what stands before the answer, what after it, and the two verdicts.
struct Judge {
    before: &'static str,
    after: &'static str,
    verdicts: [&'static str; 2],
}

const JUDGES: [Judge; 4] = [
    Judge {
        before: "Question: {q}\nProposed answer:",
        after: "\nThe proposed answer is (True or False):",
        verdicts: [" True", " False"],
    },
    Judge {
        before: "Question: {q}\nAnswer:",
        after: "\nIs this answer right? Yes or No:",
        verdicts: [" Yes", " No"],
    },
    Judge {
        before: "Question: 21 + 13\nAnswer: 34\nRight: Yes\n\nQuestion: 45 + 28\nAnswer: 63\nRight: No\n\n\
                 Question: sort 3 1 4 2\nAnswer: 1 2 3 4\nRight: Yes\n\nQuestion: {q}\nAnswer:",
        after: "\nRight:",
        verdicts: [" Yes", " No"],
    },
    Judge {
        before: "A student was asked: {q}\nThe student wrote:",
        after: "\nThe teacher marked this as",
        verdicts: [" correct", " wrong"],
    },
];

struct Setup {
    tokenizer: Tokenizer,
    stop: Vec<Token>,
    samples: usize,
    warpers: Warpers,
    streams: Streams,
}

impl Setup {
    fn encode(&self, text: &str) -> Result<Vec<Token>, Failure> {
        Ok(self.tokenizer.encode(text, false)?)
    }

    fn ask(&self, reader: &mut Reader<'_>, index: usize, problem: &Problem) -> Result<Asked, Failure> {
        let (clock, before) = (Instant::now(), reader.rows());
        let prompt = self.encode(&problem.prompt())?;
        let config = SampleConfig { warpers: self.warpers, tokens: 12, stop: self.stop.clone() };
        let greedy = SampleConfig { warpers: Warpers::default(), ..config.clone() };
        let read = |tokens: &[Token]| -> Result<Option<String>, Failure> {
            Ok(extract(&self.tokenizer.decode(tokens, true)?))
        };
        let greedy = match reader.sample(&prompt, 1, &greedy, &self.streams)?.first() {
            Some(response) => read(&response.tokens)?,
            None => None,
        };
        let responses = reader.sample(&prompt, self.samples, &config, &self.streams.fork(index as u64))?;
        let texts = responses.iter().map(|r| read(&r.tokens)).collect::<Result<Vec<_>, _>>()?;
        let majority = majority_scores(&texts);
        let mut answers = Vec::new();
        for ((response, text), majority) in responses.iter().zip(&texts).zip(majority) {
            let partial = text.as_deref().map(|text| problem.partial(text));
            let well = text.as_deref().is_some_and(|text| problem.task.well_formed(text));
            let yes = |b: bool| Some(f64::from(u8::from(b)));
            let scores = vec![
                (!majority.is_nan()).then_some(majority),
                Some(response.mean_log_probability()),
                Some(-(response.length as f64)),
                yes(text.is_some() && *text == greedy),
                yes(well),
                partial.map(|p| p[0]),
                partial.map(|p| p[1]),
            ];
            let right = text.as_ref() == Some(&problem.answer);
            answers.push(Answer { text: text.clone(), right, scores });
        }
        // Each distinct answer is judged once.
        let mut distinct: Vec<String> = texts.iter().flatten().cloned().collect();
        distinct.sort_unstable();
        distinct.dedup();
        for judge in &JUDGES {
            let before = self.encode(&judge.before.replace("{q}", &problem.question))?;
            let candidates = distinct
                .iter()
                .map(|answer| self.encode(&format!(" {answer}{}", judge.after)))
                .collect::<Result<Vec<_>, _>>()?;
            let candidates: Vec<&[Token]> = candidates.iter().map(Vec::as_slice).collect();
            let verdicts = single_tokens(&self.tokenizer, judge.verdicts)?;
            let judged = reader.judge(&before, &candidates, &verdicts)?;
            for answer in &mut answers {
                let at = answer.text.as_ref().and_then(|text| distinct.binary_search(text).ok());
                answer.scores.push(at.map(|at| judged[at][0]));
            }
        }
        Ok(Asked {
            problem: problem.clone(),
            greedy,
            answers,
            rows: reader.rows() - before,
            seconds: clock.elapsed().as_secs_f64(),
        })
    }
}

pub(super) fn run(context: &Context, run: &mut Run, result: &mut ResultFile) -> Result<String, Failure> {
    let options: &Options = context.options();
    let (queries, samples) = (options.get::<usize>("queries")?, options.get::<usize>("samples")?);
    let (dev, seed) = (options.get::<usize>("dev")?, options.get::<u64>("seed")?);
    if samples < 2 || dev == 0 || queries < 3 * (dev + 2) {
        return Err("--samples must be at least 2, --dev at least 1, --queries at least 3 (dev + 2)".into());
    }
    let Session { mut model, tokenizer, .. } = Session::open(context)?;
    let name = model.info().name.clone();
    let warpers = Warpers::temperature(options.get("temperature")?);
    warpers.check()?;
    let stop = tokenizer.encode("\n", false)?;
    let setup = Setup { tokenizer, stop, samples, warpers, streams: Streams::new(seed) };
    let mut reader = Reader::new(&mut model);
    // One after the other by task, so that the worked examples are read once.
    let mut all = problems(queries, &Task::ALL, seed);
    all.sort_by_key(|problem| problem.task);
    let mut asked: Vec<Asked> = Vec::new();
    for (index, problem) in all.iter().enumerate() {
        asked.push(run.step(&format!("{}: {}", problem.task.name(), problem.question), || {
            setup.ask(&mut reader, index, problem)
        })?);
        if index == 2 {
            let each = asked.iter().map(|asked| asked.seconds).sum::<f64>() / 3.0;
            context.show(&format!(
                "about {each:.1} s a problem: {:.0} min for all {queries}",
                each * queries as f64 / 60.0
            ));
        }
    }
    drop(reader);
    report(&name, &asked, dev, result)
}

/// Scores and labels of some problems.
fn arrays(asked: &[&Asked]) -> (Array3<f64>, Array2<bool>) {
    let samples = asked.first().map_or(0, |asked| asked.answers.len());
    let scores = Array3::from_shape_fn((asked.len(), samples, VERIFIERS.len()), |(q, r, v)| {
        asked[q].answers[r].scores[v].unwrap_or(f64::NAN)
    });
    let labels = Array2::from_shape_fn((asked.len(), samples), |(q, r)| asked[q].answers[r].right);
    (scores, labels)
}

struct Outcomes {
    /// For each method, for each problem, whether its choice is right.
    right: Vec<Vec<f64>>,
    /// How many responses the stopping rule drew, and whether its choice is right.
    stopping: Option<Vec<(f64, f64)>>,
    kept: Vec<usize>,
    rates: Option<weaver::Rates>,
    fallback: Option<String>,
}

fn yes(right: Vec<bool>) -> Vec<f64> {
    right.into_iter().map(|right| f64::from(u8::from(right))).collect()
}

/// All methods on the problems after the first `dev`, whose labels give the balance.
fn methods(asked: &[&Asked], dev: usize) -> Result<Outcomes, Failure> {
    let (dev_labels, asked) = (arrays(&asked[..dev]).1, &asked[dev..]);
    let (scores, labels) = arrays(asked);
    let (n, k) = labels.dim();
    let balance = balance_from_labels(dev_labels.view())?;
    let normal = weaver::normalise(
        scores.view(),
        weaver::Normalisation::default(),
        weaver::Scope::default(),
        weaver::Missing::default(),
    )?;
    let naive = naive_ensemble(normal.scores.view());
    let first: Vec<usize> = vec![0; n];
    let majority = |asked: &&Asked| {
        let texts: Vec<Option<&str>> = asked.answers.iter().map(|a| a.text.as_deref()).collect();
        majority_answer(&texts).unwrap_or(0)
    };
    let majority: Vec<usize> = asked.iter().map(majority).collect();
    let config = |threshold| WeaverConfig { threshold, ..WeaverConfig::default() };
    let fit = |scores: &Array3<f64>, threshold| {
        weaver::fit(scores.view(), &Balance::Known(balance), None, &config(threshold))
    };
    // Too few verifiers that vary, or none that agree: then there is nothing to fit, and the mean is what is left.
    let mut fallback = None;
    let mut select = |fitted: &Result<weaver::Fitted, _>| match fitted {
        Ok(fitted) => fitted.select(TieBreak::MeanScore),
        Err(error) => {
            let error: &pilotfish_supervision::SupervisionError = error;
            fallback = Some(error.to_string());
            best(naive.view())
        }
    };
    let half = fit(&scores, Threshold::At(0.5));
    let balanced = fit(&scores, Threshold::Balance(balance));
    let unchecked: Vec<usize> = (0..VERIFIERS.len()).filter(|v| *v != 5 && *v != 6).collect();
    let without = fit(&scores.select(Axis(2), &unchecked), Threshold::Balance(balance));
    let (half_choice, balanced_choice) = (select(&half), select(&balanced));
    let without_choice = select(&without);
    let teacher = balanced.as_ref().map_or_else(|_| naive.clone(), |fitted| fitted.probabilities.clone());
    let distilled = two_folds(&normal.scores, &teacher, |x, p| {
        let student = Student::Linear(LogisticConfig::default());
        let columns: Vec<usize> = (0..CHEAP.min(x.ncols())).collect();
        let scorer = distil(x.select(Axis(1), &columns).view(), p, &student)?;
        Ok(Box::new(move |x: ArrayView2<'_, f64>| Ok(scorer.score(x.select(Axis(1), &columns).view())?)))
    })?;
    let targets = labels.mapv(|y| f64::from(u8::from(y)));
    let supervised = two_folds(&normal.scores, &targets, |x, p| {
        let y: Vec<usize> = p.iter().map(|p| usize::from(*p > 0.5)).collect();
        let weights = balanced_weights(&y, 2);
        let model = Logistic::fit_classes(x, &y, 2, Some(&weights), &LogisticConfig::default())?;
        Ok(Box::new(move |x: ArrayView2<'_, f64>| Ok(model.predict(x)?.column(1).to_vec())))
    })?;
    let oracle = weaver::rank_verifiers(normal.scores.view(), labels.view())?[0];
    let oracle = best(normal.scores.index_axis(Axis(2), oracle));
    let mut right = Vec::new();
    for choice in [
        &first,
        &majority,
        &best(naive.view()),
        &half_choice,
        &balanced_choice,
        &without_choice,
        &best(distilled.view()),
        &best(supervised.view()),
        &oracle,
    ] {
        right.push(yes(chosen(labels.view(), choice)?));
    }
    right.push(yes(labels.rows().into_iter().map(|row| row.iter().any(|y| *y)).collect()));
    let mut outcomes = Outcomes { right, stopping: None, kept: Vec::new(), rates: None, fallback };
    if let Ok(fitted) = &balanced {
        let cluster = &fitted.clusters[0];
        outcomes.kept = cluster.kept.clone();
        outcomes.rates = Some(cluster.rates.clone());
        let prior = Difficulty::fit(fitted.evidence.view())?;
        let most = StoppingConfig { most: k, ..StoppingConfig::default() };
        let rule = Stopping::new(&cluster.rates, prior, most)?;
        let mut drawn = Vec::new();
        for (query, evidence) in fitted.evidence.rows().into_iter().enumerate() {
            let (count, standing) = rule.replay(&evidence.to_vec())?;
            drawn.push((count as f64, f64::from(u8::from(labels[[query, standing.best]]))));
        }
        outcomes.stopping = Some(drawn);
    }
    Ok(outcomes)
}

type Predict = Box<dyn Fn(ArrayView2<'_, f64>) -> Result<Vec<f64>, Failure>>;

/// Scores of each half of the problems by what was fitted on the other.
fn two_folds(
    scores: &Array3<f64>,
    targets: &Array2<f64>,
    fit: impl Fn(ArrayView2<'_, f64>, &[f64]) -> Result<Predict, Failure>,
) -> Result<Array2<f64>, Failure> {
    let (n, k, m) = scores.dim();
    let mut out = Array2::zeros((n, k));
    for (train, test) in [(0..n / 2, n / 2..n), (n / 2..n, 0..n / 2)] {
        let flat = |range: std::ops::Range<usize>| {
            let rows = range.len() * k;
            scores.slice_axis(Axis(0), range.into()).to_owned().into_shape_with_order((rows, m))
        };
        let p: Vec<f64> = targets.slice_axis(Axis(0), train.clone().into()).iter().copied().collect();
        let predicted = fit(flat(train)?.view(), &p)?(flat(test.clone())?.view())?;
        out.slice_axis_mut(Axis(0), test.clone().into())
            .assign(&Array2::from_shape_vec((test.len(), k), predicted)?);
    }
    Ok(out)
}

fn report(name: &str, asked: &[Asked], dev: usize, result: &mut ResultFile) -> Result<String, Failure> {
    let samples = asked.first().map_or(0, |asked| asked.answers.len());
    let title =
        format!("{name}: selection of one of {samples} responses, % right [95 % bootstrap over problems]");
    let header: Vec<&str> = ["task", "n"].iter().chain(&METHODS).copied().collect();
    let mut table = Table::new(title, &header);
    let mut quality = Table::new(
        "Verifiers: area under the ROC curve over all responses of a task (0.5 is chance), and estimated rates",
        &["task", "verifier", "AUROC", "kept", "TPR", "FPR"],
    );
    let (mut pooled, mut stopped) = (vec![Vec::new(); METHODS.len()], Vec::<(f64, f64)>::new());
    for task in Task::ALL {
        let mine: Vec<&Asked> = asked.iter().filter(|asked| asked.problem.task == task).collect();
        if mine.len() < dev + 2 {
            return Err(format!("{}: {} problems are too few", task.name(), mine.len()).into());
        }
        let outcomes = methods(&mine, dev)?;
        add_row(&mut table, task.name(), &outcomes.right)?;
        pooled.iter_mut().zip(&outcomes.right).for_each(|(all, mine)| all.extend(mine));
        stopped.extend(outcomes.stopping.iter().flatten());
        if let Some(why) = &outcomes.fallback {
            result.notes.push(format!("{}: nothing to fit ({why}); the naive mean stands in.", task.name()));
        }
        let (scores, labels) = arrays(&mine);
        for (v, verifier) in VERIFIERS.iter().enumerate() {
            let column = scores.index_axis(Axis(2), v);
            let area = auroc(column.iter().copied().zip(labels.iter().copied()));
            let at = outcomes.kept.iter().position(|kept| *kept == v);
            let rate = |rates: fn(&weaver::Rates) -> &Vec<f64>| match (at, &outcomes.rates) {
                (Some(at), Some(fitted)) => format!("{:.2}", rates(fitted)[at]),
                _ => "-".into(),
            };
            quality.row([
                task.name().to_owned(),
                (*verifier).to_owned(),
                area.map_or("-".into(), |area| format!("{area:.3}")),
                if at.is_some() { "yes" } else { "no" }.to_owned(),
                rate(|rates| &rates.tpr),
                rate(|rates| &rates.fpr),
            ]);
        }
    }
    add_row(&mut table, "all", &pooled)?;
    table.set_off();
    result.tables.extend([table, quality]);
    result.rows.extend(asked.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?);
    let point = |(x, values): (usize, &Vec<f64>)| -> Result<Point, Failure> {
        let (y, interval) = mean(values)?;
        Ok(Point { x: x as f64, y, interval: interval.map(|i| (i.low, i.high)) })
    };
    result.plots.push(Plot {
        title: "Share of problems solved, all tasks".into(),
        x: String::new(),
        y: "share".into(),
        kind: Kind::Bars { labels: METHODS.iter().map(|method| (*method).to_owned()).collect() },
        series: vec![Series {
            name: "share solved".into(),
            points: pooled.iter().enumerate().map(point).collect::<Result<_, _>>()?,
        }],
        reference: None,
    });
    if !stopped.is_empty() {
        let drawn = stopped.iter().map(|s| s.0).sum::<f64>() / stopped.len() as f64;
        let (right, interval) = mean(&stopped.iter().map(|s| s.1).collect::<Vec<_>>())?;
        result.notes.push(format!(
            "Stopping rule: {drawn:.1} of {samples} responses drawn on average, {} % right.",
            percent(right, interval)
        ));
    }
    let against = pilotfish_evaluation::compare(&pooled[4], &pooled[1], &PairedConfig::default())?;
    let seconds: f64 = asked.iter().map(|asked| asked.seconds).sum();
    let rows: u64 = asked.iter().map(|asked| asked.rows).sum();
    result.notes.extend([
        format!(
            "Every task is fitted by itself; the share of right responses comes from {dev} labelled problems a task, \
             which are left out of the table. Thresholds are never tuned. LR and the distilled scorer are fitted on \
             half of the problems and used on the other. The distilled scorer sees the first {CHEAP} verifiers only."
        ),
        format!(
            "The model read {rows} rows in {seconds:.0} s for {} problems; prompts are read once, responses and \
             candidates of a judge are branches of one tree.",
            asked.len()
        ),
        format!(
            "Experiment {}: the verifiers share one model, so their errors are dependent, which the fit does not know.",
            WEAVER.name
        ),
    ]);
    let difference = against.difference;
    let verdict = match difference.interval {
        Some(interval) if interval.low > 0.0 => "Weaver is better than the majority vote",
        Some(interval) if interval.high < 0.0 => "Weaver is worse than the majority vote",
        _ => "Weaver cannot be told from the majority vote",
    };
    Ok(format!(
        "{name} on {} problems: {verdict} (difference {} points); first {:.1} %, majority {:.1} %, naive mean {:.1} %, \
         Weaver {:.1} % (thresholds .5: {:.1} %), pass@{samples} {:.1} %.",
        pooled[0].len(),
        percent(difference.value, difference.interval),
        100.0 * mean(&pooled[0])?.0,
        100.0 * mean(&pooled[1])?.0,
        100.0 * mean(&pooled[2])?.0,
        100.0 * mean(&pooled[4])?.0,
        100.0 * mean(&pooled[3])?.0,
        100.0 * mean(&pooled[9])?.0,
    ))
}

fn add_row(table: &mut Table, name: &str, right: &[Vec<f64>]) -> Result<(), Failure> {
    let mut cells = vec![name.to_owned(), right.first().map_or(0, Vec::len).to_string()];
    for values in right {
        let (value, interval) = mean(values)?;
        cells.push(percent(value, interval));
    }
    table.row(cells);
    Ok(())
}
