//! Answers of a real model under constraints: how often they are valid and right, and what that costs.

mod tasks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use pilotfish_constrained::{
    Constraint, Critic, Estimator, Grammars, Mask, Posterior, Proposal, Rejection, Smc, Vocabulary,
    speculative,
};
use pilotfish_evaluation::prompts::Prompt;
use pilotfish_evaluation::{PairedConfig, compare};
use pilotfish_model::{CausalModel, Ledger, StreamRng, Streams, Token, TokenTree};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page, mean};
use super::session::{self, Session};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::steps::Run;
use crate::tables::Table;
use tasks::Task;

/// The experiment.
pub(super) const CONSTRAINED: Experiment = Experiment {
    name: "constrained",
    about: "patterns, JSON schemas, a SQL-like grammar and a checksum on SmolLM2-135M: validity, accuracy, cost",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice { name: "kinds", default: "regex,json,sql,checksum", about: "kinds of tasks" },
        Choice { name: "schemas", default: "", about: "a folder of JSON schemas, a task for each" },
        Choice { name: "methods", default: "all", about: "methods, by name, or all" },
        Choice { name: "replicates", default: "3", about: "runs of each task and method" },
        Choice { name: "tokens", default: "48", about: "tokens of an answer at most" },
        Choice { name: "seed", default: "80808", about: "seed" },
    ],
    run,
};

/// How a method finds answers.
#[derive(Clone, Copy, Debug)]
enum Method {
    Smc(Smc),
    Rejection(Rejection),
}

fn methods() -> Vec<(&'static str, Method)> {
    let lcd_mask = Smc { proposal: Proposal::MaskedUnweighted, ..Smc::locally_constrained() };
    let paper = Smc { proposal: Proposal::Awrs(Estimator::Paper), ..Smc::awrs() };
    vec![
        ("base", Method::Smc(Smc::base())),
        ("masking", Method::Smc(lcd_mask)),
        ("lcd", Method::Smc(Smc::locally_constrained())),
        ("rejection", Method::Rejection(Rejection { tries: 10, ..Rejection::default() })),
        ("sample-rerank", Method::Smc(Smc::sample_rerank())),
        ("twisted-smc", Method::Smc(Smc::twisted())),
        ("masked-smc", Method::Smc(Smc::masked())),
        ("awrs-smc-paper", Method::Smc(paper)),
        ("awrs-smc", Method::Smc(Smc::awrs())),
    ]
}

/// One run of a method on a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Answer {
    /// Weight of answers that are valid, and of those that are right.
    valid: f64,
    right: f64,
    /// The heaviest answer.
    text: Option<String>,
    log_evidence: Option<f64>,
    ledger: Ledger,
    seconds: f64,
}

fn answer(
    session: &mut Session,
    task: &Task,
    vocabulary: &Vocabulary,
    constraint: &dyn Constraint,
    method: &Method,
    tokens: usize,
    streams: Streams,
) -> Result<Answer, Failure> {
    let prompt = Prompt {
        id: task.name.clone(),
        category: task.kind.into(),
        turns: vec![task.prompt.clone()],
        reference: None,
    };
    let ids = session.encode(&prompt)?;
    let clock = Instant::now();
    let (posterior, evidence): (Posterior, bool) = match method {
        Method::Smc(smc) => {
            let smc = Smc { tokens, ..*smc };
            let found = smc.run(&mut session.model, vocabulary, constraint, &ids, streams)?;
            let proper = match smc.proposal {
                Proposal::Awrs(estimator) => estimator.is_proper(),
                Proposal::MaskedUnweighted => false,
                Proposal::Masked => true,
                Proposal::Model => smc.critic != Critic::None,
            };
            (found, proper)
        }
        Method::Rejection(rejection) => {
            let rejection = Rejection { texts: Smc { tokens, ..rejection.texts }, ..*rejection };
            let found = rejection.run(&mut session.model, vocabulary, constraint, &ids, streams)?;
            let mut particles = Vec::from_iter(found.text);
            particles.iter_mut().for_each(|particle| particle.log_weight = 0.0);
            (Posterior { particles, resampled: 0, ledger: found.ledger }, false)
        }
    };
    let seconds = clock.elapsed().as_secs_f64();
    let (mut valid, mut right) = (0.0, 0.0);
    let texts = posterior.texts();
    for (text, weight) in &texts {
        let mut reader = constraint.fork();
        if reader.push(text)? && reader.complete()? {
            valid += weight;
            right += weight * f64::from(u8::from(task.right(text)));
        }
    }
    let log_evidence = Some(posterior.log_evidence()).filter(|log| evidence && log.is_finite());
    let text = texts.first().map(|(text, _)| String::from_utf8_lossy(text).into_owned());
    Ok(Answer { valid, right, text, log_evidence, ledger: posterior.ledger, seconds })
}

/// A method on all tasks: a row of the table.
struct Row {
    valid: Vec<f64>,
    right: Vec<f64>,
    seconds: Vec<f64>,
    calls: f64,
    forwards: f64,
    rows: f64,
    evidence: Vec<f64>,
    runs: usize,
}

impl Row {
    /// Means of replicates by task, in the order of tasks.
    fn new(answers: &[(usize, &str, Answer)], method: &str, tasks: usize) -> Self {
        let of = |task: usize| {
            answers
                .iter()
                .filter(move |answer| (answer.0, answer.1) == (task, method))
                .map(|answer| &answer.2)
        };
        let by_task = |value: fn(&Answer) -> f64| -> Vec<f64> {
            (0..tasks).map(|task| mean(&of(task).map(value).collect::<Vec<_>>())).collect()
        };
        let all: Vec<&Answer> = (0..tasks).flat_map(of).collect();
        let total = all.iter().fold(Ledger::default(), |mut sum, answer| {
            sum.add(&answer.ledger);
            sum
        });
        // Ends are tokens too, one for every text begun.
        let emitted = (total.emitted + all.len() as u64).max(1) as f64;
        Self {
            valid: by_task(|answer| answer.valid),
            right: by_task(|answer| answer.right),
            seconds: by_task(|answer| answer.seconds),
            calls: total.constraint_calls as f64 / emitted,
            forwards: total.target_forwards as f64 / all.len().max(1) as f64,
            rows: total.target_rows as f64 / all.len().max(1) as f64,
            evidence: all.iter().filter_map(|answer| answer.log_evidence).collect(),
            runs: all.len(),
        }
    }
}

/// What it takes to mask draft trees, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct TreeMasks {
    task: String,
    /// The first tree of a grammar that has read nothing yet.
    first: f64,
    /// Median and longest of the trees after it, all different.
    median: f64,
    longest: f64,
    /// Mean number of tokens that a node allows.
    allowed: f64,
}

/// Nodes of a draft tree that is masked, root included.
const NODES: usize = 64;

/// Draft trees that are masked, one after the other.
const TREES: usize = 21;

/// A tree of valid drafts: a token that may come next, behind a node drawn at random, until there are enough.
fn valid_tree(
    vocabulary: &Vocabulary,
    constraint: &dyn Constraint,
    rng: &mut StreamRng,
) -> Result<TokenTree, Failure> {
    let mut tree = TokenTree::new(0);
    let mut places = vec![(0, constraint.fork())];
    while tree.len() < NODES && !places.is_empty() {
        let at = rng.random_range(0..places.len());
        let (parent, place) = &mut places[at];
        let open: Vec<Token> =
            place.mask(vocabulary)?.tokens().filter(|&token| !vocabulary.is_end(token)).collect();
        if open.is_empty() {
            places.swap_remove(at);
            continue;
        }
        let token = open[rng.random_range(0..open.len())];
        let mut next = place.fork();
        next.push(vocabulary.bytes(token).unwrap_or_default())?;
        let node = tree.push(*parent, token)?;
        places.push((node, next));
    }
    Ok(tree)
}

/// Times the masks of all nodes of trees of valid drafts. What is timed has not seen the trees when they were drawn.
fn tree_masks(task: &Task, vocabulary: &Vocabulary, grammars: &Grammars) -> Result<TreeMasks, Failure> {
    let drawn = task.constraint(grammars)?;
    let mut rng = Streams::new(1).stream("trees");
    let trees: Vec<TokenTree> =
        (0..TREES).map(|_| valid_tree(vocabulary, drawn.as_ref(), &mut rng)).collect::<Result<_, _>>()?;
    let constraint = task.constraint(grammars)?;
    let (mut times, mut allowed) = (Vec::new(), 0);
    for tree in &trees {
        let clock = Instant::now();
        let masks = speculative::tree_masks(constraint.as_ref(), vocabulary, tree)?;
        times.push(clock.elapsed().as_secs_f64() * 1e6);
        allowed += masks.iter().flatten().map(Mask::count).sum::<usize>();
    }
    let nodes: usize = trees.iter().map(TokenTree::len).sum();
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(TreeMasks {
        task: task.name.clone(),
        first,
        median: times[times.len() / 2],
        longest: times[times.len() - 1],
        allowed: allowed as f64 / nodes as f64,
    })
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (replicates, tokens): (usize, usize) = (options.get("replicates")?, options.get("tokens")?);
    let (kinds, seed): (Vec<String>, u64) = (options.list("kinds")?, options.get("seed")?);
    if replicates == 0 || tokens == 0 {
        return Err("--replicates and --tokens must be at least 1".into());
    }
    let mut tasks: Vec<Task> =
        tasks::own().into_iter().filter(|task| kinds.iter().any(|kind| kind == task.kind)).collect();
    let folder = options.text("schemas")?;
    if !folder.is_empty() {
        tasks.extend(tasks::folder(std::path::Path::new(folder))?);
    }
    if tasks.is_empty() {
        return Err("there are no tasks: --kinds takes regex, json, sql, checksum".into());
    }
    let mut chosen = methods();
    if options.text("methods")? != "all" {
        let names: Vec<String> = options.list("methods")?;
        if let Some(name) = names.iter().find(|name| !chosen.iter().any(|method| method.0 == *name)) {
            let known: Vec<&str> = chosen.iter().map(|method| method.0).collect();
            return Err(format!("no method {name:?}; there are: {}", known.join(", ")).into());
        }
        chosen.retain(|method| names.iter().any(|name| name == method.0));
    }
    let began = Began::now();
    let mut session = Session::open(context)?;
    let whole = Arc::new(session.vocabulary()?);
    let lines = Arc::new(whole.ending(|bytes| bytes.contains(&b'\n'))?);
    let grammars = [Grammars::new(whole.clone())?, Grammars::new(lines.clone())?];
    let mut run =
        Run::open(context.results(), CONSTRAINED.name, options, context.fresh(), context.is_quiet())?;
    run.expect((tasks.len() * (chosen.len() * replicates + 1)) as u64);
    let mut answers: Vec<(usize, &str, Answer)> = Vec::new();
    let mut trees = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        let side = usize::from(task.ends_at_line());
        let vocabulary = if task.ends_at_line() { &lines } else { &whole };
        let constraint = task.constraint(&grammars[side])?;
        let id = format!("{} {}, masks of a tree", task.kind, task.name);
        trees.push(run.step(&id, || tree_masks(task, vocabulary, &grammars[side]))?);
        for replicate in 0..replicates {
            for turn in 0..chosen.len() {
                // Each method goes first in turn.
                let (name, method) = &chosen[(turn + replicate + index) % chosen.len()];
                let streams = Streams::new(seed + replicate as u64).fork(index as u64);
                let id = format!("{} {}, {name}, run {replicate}", task.kind, task.name);
                let answer = run.step(&id, || {
                    answer(&mut session, task, vocabulary, constraint.as_ref(), method, tokens, streams)
                })?;
                answers.push((index, *name, answer));
            }
        }
    }
    let rows: BTreeMap<&str, Row> =
        chosen.iter().map(|(name, _)| (*name, Row::new(&answers, name, tasks.len()))).collect();
    let last = chosen[chosen.len() - 1].0;
    let mut table = Table::new(
        format!("{} tasks, {replicates} runs each", tasks.len()),
        &[
            "method",
            "valid",
            "weighted accuracy",
            &format!("accuracy less that of {last}"),
            "calls a token",
            "model steps",
            "rows",
            "seconds a task",
            "log evidence (runs)",
        ],
    );
    for (name, _) in &chosen {
        let row = &rows[name];
        let against = compare(&row.right, &rows[last].right, &PairedConfig::default())?;
        let against = if *name == last { "-".into() } else { page::difference(&against.difference) };
        let evidence = match row.evidence.is_empty() {
            true => "-".into(),
            false => format!("{:.2} ({} of {})", mean(&row.evidence), row.evidence.len(), row.runs),
        };
        table.row([
            (*name).to_owned(),
            format!("{:.3}", mean(&row.valid)),
            format!("{:.3}", mean(&row.right)),
            against,
            format!("{:.1}", row.calls),
            format!("{:.1}", row.forwards),
            format!("{:.1}", row.rows),
            format!("{:.2}", mean(&row.seconds)),
            evidence,
        ]);
    }
    let kinds: Vec<&str> = {
        let mut kinds: Vec<&str> = tasks.iter().map(|task| task.kind).collect();
        kinds.dedup();
        kinds
    };
    let mut header = vec!["method"];
    header.extend(&kinds);
    let by_kind = |title: &str, value: fn(&Row) -> &Vec<f64>| {
        let mut table = Table::new(title, &header);
        for (name, _) in &chosen {
            let cells = kinds.iter().map(|kind| {
                let values: Vec<f64> = (0..tasks.len())
                    .filter(|&task| tasks[task].kind == *kind)
                    .map(|task| value(&rows[name])[task])
                    .collect();
                format!("{:.3}", mean(&values))
            });
            table.row(std::iter::once((*name).to_owned()).chain(cells));
        }
        table
    };
    let mut examples =
        Table::new("The heaviest answer of the first run", &["task", "method", "answer", "valid", "right"]);
    for (index, task) in tasks.iter().enumerate() {
        for (name, _) in &chosen {
            let first = answers.iter().find(|answer| (answer.0, answer.1) == (index, name));
            if let Some((_, _, answer)) = first {
                let text: String =
                    answer.text.clone().unwrap_or_else(|| "(none)".into()).chars().take(60).collect();
                examples.row([
                    task.name.clone(),
                    (*name).into(),
                    text.replace('\n', " "),
                    format!("{:.2}", answer.valid),
                    format!("{:.2}", answer.right),
                ]);
            }
        }
    }
    let bars = |name: &str, value: fn(&Row) -> &Vec<f64>| Series {
        name: name.into(),
        points: chosen
            .iter()
            .enumerate()
            .map(|(x, (method, _))| Point { x: x as f64, y: mean(value(&rows[method])), interval: None })
            .collect(),
    };
    let plots = vec![Plot {
        title: "Validity and weighted accuracy".into(),
        x: "method".into(),
        y: "share".into(),
        kind: Kind::Bars { labels: chosen.iter().map(|(name, _)| (*name).into()).collect() },
        series: vec![bars("valid", |row| &row.valid), bars("right", |row| &row.right)],
        reference: None,
    }];
    let mut masks = Table::new(
        format!("Masks of all nodes of a draft tree of {NODES}, in microseconds"),
        &["task", "first", "median", "longest", "tokens allowed a node"],
    );
    for row in &trees {
        let cells = [row.first, row.median, row.longest, row.allowed].map(|value| format!("{value:.0}"));
        masks.row(std::iter::once(row.task.clone()).chain(cells));
    }
    let below = trees.iter().filter(|row| row.median < 1000.0).count();
    let vocab = session.model.info().vocab;
    let shares: Vec<String> = chosen
        .iter()
        .map(|(name, _)| format!("{name} {:.2} / {:.2}", mean(&rows[name].valid), mean(&rows[name].right)))
        .collect();
    let summary = format!(
        "Valid / right by method: {}. {last} asks for {:.1} verdicts a token, a mask for all {vocab}. A draft tree of {NODES} nodes is masked in less than a millisecond in {below} of {} tasks.",
        shares.join(", "),
        rows[last].calls,
        trees.len(),
    );
    let json = answers
        .iter()
        .map(|(task, method, answer)| {
            serde_json::json!({ "task": tasks[*task].name, "kind": tasks[*task].kind, "method": method, "answer": answer })
        })
        .chain(trees.iter().map(|row| serde_json::json!({ "masks": row })))
        .collect();
    let notes = vec![
        "Accuracy is weighted: the posterior weight of answers that are valid and say what a right answer says. Tasks and their right answers are in the source; where none is named, every valid answer is right.".into(),
        "One constraint call is one verdict about one token; a mask is as many as the vocabulary has. llguidance makes a mask much faster than that many single verdicts, so calls and seconds must be read together.".into(),
        "Forms of one line end at a line break or at the model's end, JSON at the model's end. An answer at the limit of tokens is ended by force.".into(),
        "Log evidence is the mean over runs that found a valid answer; methods that often find none look better in it than they are.".into(),
    ];
    let page = Page {
        experiment: &CONSTRAINED,
        title: "Constraints on a real model".into(),
        summary,
        seeds: vec![seed],
        rows: json,
        tables: vec![
            table,
            by_kind("Valid, by kind of task", |row| &row.valid),
            by_kind("Weighted accuracy, by kind of task", |row| &row.right),
            by_kind("Seconds a task, by kind", |row| &row.seconds),
            masks,
            examples,
        ],
        plots,
        notes,
    };
    page.write(context, &run, began)
}
