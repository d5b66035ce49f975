//! Every method of speculative decoding against plain decoding on the same prompts, by category, with the
//! certificate of the rules that verify them.

use pilotfish_conformance::{Certificate, Thoroughness, certify, own};
use pilotfish_decoding::{
    Decoder, Drafter, GreedyTree, Identity, Limits, Nothing, Policy, WidthCurve, compare, lossless,
};
use pilotfish_evaluation::{Comparison, PairedConfig};
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::{CausalModel, Phase, Streams, Token};
use pilotfish_runtime::Products;
use serde::{Deserialize, Serialize};

use super::methods::{self, Ground, Made};
use super::page::{Began, show_words};
use super::session::{
    self, Session, Side, acceptance_by_depth, length_shares, mean_tokens, ratio, speed_up, total,
};
use super::width_cost::{self, WidthCost};
use super::{Choice, Context, Experiment, Finished, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const SPECULATIVE: Experiment = Experiment {
    name: "speculative",
    about: "speculative decoding methods against plain decoding, paired, by category",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice {
            name: "products",
            default: "ort",
            about: "whose kernels: ort, pilotfish (rows of a step are those of steps of one, to the bit), auto:ROWS",
        },
        Choice {
            name: "methods",
            default: "lookup,lookup+policy,suffix+policy,token-recycling+policy,aded+policy",
            about: "methods, each also with +policy; `list` names them",
        },
        Choice {
            name: "prompts",
            default: "",
            about: "prompts from a JSONL file: Spec-Bench, GSM8K, HumanEval or our own layout",
        },
        Choice { name: "count", default: "36", about: "prompts, spread evenly over categories; 0 takes all" },
        Choice { name: "tokens", default: "64", about: "new tokens a prompt at most" },
        Choice { name: "budget", default: "64", about: "tokens proposed a round at most" },
        Choice { name: "temperature", default: "0", about: "0 is greedy" },
        Choice { name: "top-p", default: "1", about: "share of probability kept when sampling" },
        Choice { name: "seed", default: "1", about: "seed of drafts and of sampling" },
        Choice { name: "json", default: "", about: "write the result to this file too" },
    ],
    run,
};

/// All methods on one prompt; plain decoding first.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    id: String,
    category: String,
    prompt_tokens: usize,
    sides: Vec<Side>,
    /// Greedy: where outputs part from the plain one, and its top-2 margin there.
    divergences: Vec<Option<(usize, f32)>>,
    text: String,
}

/// One method over all prompts.
struct Summary {
    name: String,
    overall: Comparison,
    categories: Vec<(String, Comparison)>,
}

impl Summary {
    fn worst(&self) -> Option<&(String, Comparison)> {
        self.categories.iter().min_by(|a, b| speed_up(&a.1).value.total_cmp(&speed_up(&b.1).value))
    }

    fn mean_of_categories(&self) -> f64 {
        let sum: f64 = self.categories.iter().map(|(_, c)| speed_up(c).value).sum();
        sum / self.categories.len().max(1) as f64
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let mut names = options.list::<String>("methods")?;
    if names == ["list"] {
        for method in methods::ALL {
            context.show(&format!("{:<18} {}", method.name, method.about));
        }
        return Ok(Finished::default());
    }
    names.retain(|name| name != "plain");
    names.insert(0, "plain".into());
    for (index, name) in names.iter().enumerate() {
        methods::find(name)?;
        if names[..index].contains(name) {
            return Err(format!("--methods names {name} twice").into());
        }
    }
    if names.len() < 2 {
        return Err("--methods must name at least one method besides plain".into());
    }
    let top_p = Some(options.get::<f64>("top-p")?).filter(|p| *p != 1.0);
    let sampler = Warpers { top_p, ..Warpers::temperature(options.get("temperature")?) }.check()?;
    let limits =
        Limits { new_tokens: options.get("tokens")?, draft: options.get("budget")?, ..Limits::default() };
    if limits.new_tokens == 0 || limits.draft == 0 {
        return Err("--tokens and --budget must be at least 1".into());
    }
    let prompts = session::chosen(options.text("prompts")?, options.get("count")?)?;
    let streams = Streams::new(options.get("seed")?);
    let products: Products = options.get("products")?;

    let began = Began::now();
    let mut session = Session::open_with(context, |load| load.products(products))?;
    let mut run =
        Run::open(context.results(), SPECULATIVE.name, options, context.fresh(), context.is_quiet())?;
    let resumed = run.finished() > 0;
    run.expect(prompts.len() as u64 + 3);
    let certificate: Certificate = run.step("certificate", || certify(&own(), &Thoroughness::default()))?;
    if !certificate.passed {
        return Err("the verifiers did not pass; see `cargo xtask conformance`".into());
    }
    let widths = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32];
    let costs = run.step("width-cost curve", || width_cost::measure(&mut session.model, &widths, 128, 9))?;
    let points: Vec<(usize, f64)> = costs.iter().map(|cost| (cost.rows, cost.milliseconds)).collect();
    let curve = WidthCurve::new(&points)?;
    run.step("warm-up", || {
        let ids = session.encode(&prompts[0])?;
        let limits = Limits { new_tokens: 8.min(limits.new_tokens), ..limits.clone() };
        Decoder::new(&mut session.model, &mut Nothing, &mut GreedyTree, limits)?.generate(&ids)?;
        Ok::<_, Failure>(())
    })?;
    let mut made = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let streams = streams.fork(1000 + index as u64);
        let (checkpoint, load, info) = (&session.checkpoint, &session.load, session.model.info());
        let ground = Ground { home: context.home(), checkpoint, load, info, sampler, streams };
        made.push(methods::make(name, &ground, &curve)?);
    }
    let mut records: Vec<Record> = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let record = run.step(&format!("prompt {}", prompt.id), || {
            let ids = session.encode(prompt)?;
            let mut sides: Vec<Option<Side>> = vec![None; made.len()];
            // Every method takes every place in the order equally often.
            for turn in 0..made.len() {
                let method = (turn + index) % made.len();
                let streams = streams.fork(index as u64).fork(method as u64);
                sides[method] =
                    Some(decode(&mut session.model, &mut made[method], sampler, streams, &limits, &ids)?);
            }
            let sides: Vec<Side> = sides.into_iter().flatten().collect();
            let plain = &sides[0].tokens;
            let mut divergences = Vec::new();
            for side in &sides {
                let same = !sampler.is_greedy() || &side.tokens == plain;
                divergences.push(match same {
                    true => None,
                    false => match compare(&mut session.model, &ids, plain, &side.tokens)? {
                        Identity::Identical => None,
                        Identity::Diverges { at, margin } => Some((at, margin)),
                    },
                });
            }
            let text = session.decode(plain)?;
            let (id, category) = (prompt.id.clone(), prompt.category.clone());
            Ok::<_, Failure>(Record { id, category, prompt_tokens: ids.len(), sides, divergences, text })
        })?;
        records.push(record);
    }

    let summaries = summaries(&names, &records)?;
    let main = main_table(&summaries, &records, &curve, sampler.is_greedy());
    let by_category = category_table(&summaries);
    let result = ResultFile {
        experiment: SPECULATIVE.name.into(),
        title: format!(
            "Speculative decoding: {}, products {products}, {}",
            session.model.info().name,
            law(&sampler)
        ),
        summary: summary(&summaries, &records, &sampler, limits.new_tokens, &certificate),
        config: serde_json::json!({ "options": options, "warpers": sampler.warpers() }),
        seeds: vec![streams.seed(), PairedConfig::default().seed, certificate.thoroughness.seed],
        rows: records.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
        tables: vec![main.clone(), by_category.clone(), curve_table(&costs)],
        plots: plots(&summaries, &records, &costs),
        notes: notes(&made, &records, &costs, &sampler, &certificate, resumed, &session),
        ..ResultFile::default()
    };
    let (result, finished) = began.write(&run, result)?;
    let copy = options.text("json")?;
    if let Some(path) = finished.result.as_ref().filter(|_| !copy.is_empty()) {
        std::fs::copy(path, copy).map_err(|error| format!("--json {copy}: {error}"))?;
    }
    context.show(&format!("{}\n\n{}\n", main.terminal(), by_category.terminal()));
    show_words(context, &result);
    Ok(finished)
}

/// One method on one prompt.
fn decode(
    model: &mut dyn CausalModel,
    made: &mut Made,
    sampler: Sampler,
    streams: Streams,
    limits: &Limits,
    ids: &[Token],
) -> Result<Side, Failure> {
    let drafter: &mut dyn Drafter = made.drafter.as_mut();
    let model: &mut dyn CausalModel = match &mut made.target {
        Some(own) => own,
        None => model,
    };
    let mut verifier = lossless(sampler, drafter.drawn(), streams);
    let decoder = Decoder::new(model, drafter, verifier.as_mut(), limits.clone())?;
    let policy: Option<&mut dyn Policy> = match &mut made.policy {
        Some(policy) => Some(policy.as_mut()),
        None => None,
    };
    let generation = match policy {
        Some(policy) => decoder.with_policy(policy).generate(ids)?,
        None => { decoder }.generate(ids)?,
    };
    Ok(generation.into())
}

fn summaries(names: &[String], records: &[Record]) -> Result<Vec<Summary>, Failure> {
    let summary = |(method, name): (usize, &String)| {
        let rows: Vec<(&str, &Side, &Side)> = records
            .iter()
            .map(|record| (record.category.as_str(), &record.sides[method], &record.sides[0]))
            .collect();
        let (overall, categories) = session::comparisons(&rows)?;
        Ok(Summary { name: name.clone(), overall, categories })
    };
    names.iter().enumerate().map(summary).collect()
}

fn sides(records: &[Record], method: usize) -> Vec<&Side> {
    records.iter().map(|record| &record.sides[method]).collect()
}

fn main_table(summaries: &[Summary], records: &[Record], curve: &WidthCurve, greedy: bool) -> Table {
    let mut table = Table::new(
        "Methods against plain decoding, paired by prompt",
        &[
            "method",
            "tok/s",
            "speed-up [95 %]",
            "decode only",
            "mean of categories",
            "worst category",
            "tokens a round",
            "drafted/accepted",
            "draft",
            "target",
            "other",
            "rows",
            "t(w)/t(1)",
            "by acceptance alone",
            if greedy { "identical" } else { "law" },
        ],
    );
    let decode_speed =
        |method: usize| records.iter().map(|record| record.sides[method].decode_speed()).sum::<f64>();
    for (method, summary) in summaries.iter().enumerate() {
        let sides = sides(records, method);
        let ledger = total(sides.iter().copied());
        let after = (ledger.total_seconds() - ledger.time(Phase::Prefill)).max(f64::MIN_POSITIVE);
        let share = |seconds: f64| format!("{:.0} %", 100.0 * seconds / after);
        let rounds: Vec<usize> =
            sides.iter().flat_map(|side| &side.rounds).map(|round| 1 + round.drafted).collect();
        let mean = |of: &dyn Fn(usize) -> f64| {
            rounds.iter().map(|&rows| of(rows)).sum::<f64>() / rounds.len().max(1) as f64
        };
        let tokens = mean_tokens(sides.iter().copied());
        let cost = mean(&|rows| curve.relative(rows));
        let same = records.iter().filter(|record| record.divergences[method].is_none()).count();
        let accepted = match ledger.accepted {
            0 => "-".into(),
            some => format!("{:.1}", ledger.drafted as f64 / some as f64),
        };
        table.row([
            summary.name.clone(),
            format!("{:.1}", summary.overall.mean_a),
            ratio(&speed_up(&summary.overall)),
            format!("{:.2}x", decode_speed(method) / decode_speed(0).max(f64::MIN_POSITIVE)),
            format!("{:.2}x", summary.mean_of_categories()),
            summary.worst().map_or("-".into(), |(name, c)| format!("{:.2}x {name}", speed_up(c).value)),
            format!("{tokens:.2}"),
            accepted,
            share(ledger.time(Phase::Draft)),
            share(ledger.time(Phase::Target)),
            share(ledger.time(Phase::Verify) + ledger.time(Phase::Cache)),
            format!("{:.1}", mean(&|rows| rows as f64)),
            format!("{cost:.2}"),
            format!("{:.2}x at t(w), {tokens:.2}x free", tokens / cost),
            if greedy { format!("{same}/{}", records.len()) } else { "certified".into() },
        ]);
    }
    table
}

fn category_table(summaries: &[Summary]) -> Table {
    let header = ["method", "category", "n", "plain tok/s", "tok/s", "speed-up [95 %]"];
    let mut table = Table::new("By category; the worst of each method is set off", &header);
    for summary in &summaries[1..] {
        let worst = summary.worst().map(|(name, _)| name.clone());
        for (name, comparison) in &summary.categories {
            table.row([
                summary.name.clone(),
                name.clone(),
                comparison.n.to_string(),
                format!("{:.1}", comparison.mean_b),
                format!("{:.1}", comparison.mean_a),
                ratio(&speed_up(comparison)),
            ]);
            if worst.as_ref() == Some(name) {
                table.set_off();
            }
        }
    }
    table
}

fn curve_table(costs: &[WidthCost]) -> Table {
    let mut table = Table::new("Cost of a step of w rows (128 rows of cache)", &["w", "ms", "t(w)/t(1)"]);
    for cost in costs {
        let relative = cost.milliseconds / costs[0].milliseconds;
        table.row([cost.rows.to_string(), format!("{:.2}", cost.milliseconds), format!("{relative:.2}")]);
    }
    table
}

/// How tokens are chosen, in words.
fn law(sampler: &Sampler) -> String {
    match sampler.is_greedy() {
        true => "greedy".into(),
        false => format!("temperature {}", sampler.warpers().temperature),
    }
}

fn summary(
    summaries: &[Summary],
    records: &[Record],
    sampler: &Sampler,
    tokens: usize,
    certificate: &Certificate,
) -> String {
    let best = summaries[1..]
        .iter()
        .max_by(|a, b| a.mean_of_categories().total_cmp(&b.mean_of_categories()))
        .unwrap_or(&summaries[0]);
    let how = law(sampler);
    let differ = records.iter().flat_map(|record| &record.divergences).flatten().count();
    let all = records.len() * (summaries.len() - 1);
    let exact = match (sampler.is_greedy(), differ) {
        (true, 0) => format!("All {all} outputs are plain decoding's, token for token."),
        (true, some) => format!("{some} of {all} outputs part from plain decoding's; the margins are below."),
        (false, _) => "Sampled outputs follow the target's law by certified rules.".into(),
    };
    format!(
        "{} prompts in {} categories, up to {tokens} new tokens each, {how}. The best mean of categories is {:.2}x, by \
         {}; its worst category is {}. {exact} Certificate {}.",
        records.len(),
        best.categories.len(),
        best.mean_of_categories(),
        best.name,
        best.worst().map_or("none".into(), |(name, c)| format!("{:.2}x ({name})", speed_up(c).value)),
        certificate.id,
    )
}

fn notes(
    made: &[Made],
    records: &[Record],
    costs: &[WidthCost],
    sampler: &Sampler,
    certificate: &Certificate,
    resumed: bool,
    session: &Session,
) -> Vec<String> {
    let info = session.model.info();
    let megabytes = (info.body_bytes + info.head_bytes) as f64 / 1e6;
    let mut notes = vec![
        format!(
            "Baseline: plain decoding through the same session and verifier, one row a step{}. A step of one row takes \
             {:.2} ms and reads {megabytes:.0} MB of weights; products: {}.",
            if sampler.is_greedy() { ", an argmax instead of a row of logits" } else { "" },
            costs[0].milliseconds,
            session.load.export.products,
        ),
        format!(
            "Certificate {}: {} checks of the verifiers, {} of them known-wrong variants that were caught \
             (`cargo xtask conformance`).",
            certificate.id,
            certificate.checks.len(),
            certificate
                .checks
                .iter()
                .filter(|check| check.kind == pilotfish_conformance::Kind::KnownWrong)
                .count(),
        ),
        "Speeds include the prompt's pass, as Spec-Bench's do; 'decode only' leaves it out. 'By acceptance alone' is \
         tokens a round over t(w)/t(1), and with rows for free: what a perfect drafter's speed and a step at the \
         roofline would give."
            .into(),
        "Drafters that learn keep what they learnt from prompt to prompt, and so do policies.".into(),
    ];
    if made.iter().any(|method| method.target.is_some()) {
        notes.push(
            "SWIFT decodes with a copy of the target whose attentions and MLPs are branches, so that what that costs is its \
             own to bear."
                .into(),
        );
    }
    if resumed {
        notes.push("The run was resumed: what drafters and policies had learnt before was lost then.".into());
    }
    for method in &made[1..] {
        let verifier = lossless(*sampler, method.drafter.drawn(), Streams::new(0));
        notes.push(format!(
            "{}: {} ({}); verifier: {}, {}{}.",
            method.name,
            method.about,
            method.drafter.name(),
            verifier.name(),
            if verifier.lossless() { "lossless" } else { "LOSSY" },
            method.policy.as_ref().map_or(String::new(), |policy| format!("; policy: {}", policy.name())),
        ));
    }
    for record in records {
        for (method, divergence) in made.iter().zip(&record.divergences) {
            if let Some((at, margin)) = divergence {
                notes.push(format!(
                    "{} on {}: parts at token {at}, where plain decoding's two best logits differ by {margin:.2e}.",
                    method.name, record.id
                ));
            }
        }
    }
    notes
}

fn plots(summaries: &[Summary], records: &[Record], costs: &[WidthCost]) -> Vec<Plot> {
    let methods = || summaries.iter().enumerate().skip(1);
    let rounds = || records.iter().flat_map(|record| &record.sides[1..]).flat_map(|side| &side.rounds);
    let categories = &summaries[0].categories;
    let speed = |summary: &Summary| Series {
        name: summary.name.clone(),
        points: summary
            .categories
            .iter()
            .enumerate()
            .map(|(x, (_, comparison))| Point {
                x: x as f64,
                y: speed_up(comparison).value,
                interval: speed_up(comparison).interval.map(|interval| (interval.low, interval.high)),
            })
            .collect(),
    };
    let deepest = rounds().map(|round| round.depth).max().unwrap_or(0).min(12);
    let by_depth = |(method, summary): (usize, &Summary)| {
        let kept = acceptance_by_depth(&sides(records, method), deepest);
        let point =
            |(index, y): (usize, Option<f64>)| Some(Point { x: index as f64 + 1.0, y: y?, interval: None });
        Series {
            name: summary.name.clone(),
            points: kept.into_iter().enumerate().filter_map(point).collect(),
        }
    };
    let longest = rounds().map(|round| round.added).max().unwrap_or(1).min(12);
    let lengths = |(method, summary): (usize, &Summary)| {
        let shares = length_shares(&sides(records, method), longest);
        let point = |(x, y): (usize, f64)| Point { x: x as f64, y, interval: None };
        Series { name: summary.name.clone(), points: shares.into_iter().enumerate().map(point).collect() }
    };
    let label = |length: usize| if length == longest { format!("{length}+") } else { length.to_string() };
    let mut plots = vec![
        Plot {
            title: "Speed-up over plain decoding by category".into(),
            x: String::new(),
            y: "tokens/s, ratio of means".into(),
            kind: Kind::Bars { labels: categories.iter().map(|(name, _)| name.replace('_', " ")).collect() },
            series: methods().map(|(_, summary)| speed(summary)).collect(),
            reference: Some(1.0),
        },
        Plot {
            title: "Tokens a round".into(),
            x: String::new(),
            y: "share of rounds".into(),
            kind: Kind::Bars { labels: (1..=longest).map(label).collect() },
            series: methods().map(lengths).collect(),
            reference: None,
        },
        width_cost::plot(vec![width_cost::series("measured", costs)]),
    ];
    let series: Vec<Series> = methods().map(by_depth).filter(|series| !series.points.is_empty()).collect();
    if !series.is_empty() {
        plots.insert(
            1,
            Plot {
                title: "Acceptance by depth".into(),
                x: "levels".into(),
                y: "share of drafts this deep that were kept so far".into(),
                kind: Kind::Lines,
                series,
                reference: None,
            },
        );
    }
    plots
}
