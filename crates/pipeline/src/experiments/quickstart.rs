//! The first thing to run: plain greedy decoding against prompt look-up on a real model, paired.

use pilotfish_decoding::{
    Decoder, GreedyTree, Identity, Limits, Nothing, PromptLookup, PromptLookupConfig, Verifier, compare,
};
use pilotfish_evaluation::{Comparison, PairedConfig};
use pilotfish_model::CausalModel;
use serde::{Deserialize, Serialize};

use super::page::{Began, show_words};
use super::session::{self, Session, Side, ratio, speed_up, total};
use super::width_cost::{self, WidthCost};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::machine;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const QUICKSTART: Experiment = Experiment {
    name: "quickstart",
    about: "plain greedy decoding against prompt look-up on SmolLM2-135M, paired, with the width-cost curve",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        session::MODEL,
        session::STORAGE,
        session::THREADS,
        Choice {
            name: "prompts",
            default: "24",
            about: "prompts, spread evenly over categories; 0 takes all",
        },
        Choice {
            name: "file",
            default: "",
            about: "prompts from a JSONL file: Spec-Bench, GSM8K, HumanEval or our own layout",
        },
        Choice { name: "tokens", default: "64", about: "new tokens a prompt at most" },
        Choice { name: "longest", default: "3", about: "longest suffix looked up" },
        Choice { name: "draft", default: "5", about: "tokens proposed at most" },
    ],
    run,
};

/// Plain and look-up decoding of one prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pair {
    id: String,
    category: String,
    prompt_tokens: usize,
    plain: Side,
    lookup: Side,
    /// Where the outputs part, and the plain model's top-2 margin there.
    divergence: Option<(usize, f32)>,
    text: String,
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let tokens = options.get::<usize>("tokens")?;
    let lookup =
        PromptLookupConfig { longest: options.get("longest")?, shortest: 1, draft: options.get("draft")? };
    let mut drafter = PromptLookup::new(lookup)?;
    let prompts = session::chosen(options.text("file")?, options.get("prompts")?)?;
    if tokens == 0 {
        return Err("--tokens must be at least 1".into());
    }
    let began = Began::now();
    let mut session = Session::open(context)?;
    let mut run =
        Run::open(context.results(), QUICKSTART.name, options, context.fresh(), context.is_quiet())?;
    run.expect(prompts.len() as u64 + 2);
    let widths: Vec<usize> = (1..=16).collect();
    let costs = run.step("width-cost curve", || width_cost::measure(&mut session.model, &widths, 128, 9))?;

    let limits = Limits { new_tokens: tokens, draft: lookup.draft, ..Limits::default() };
    run.step("warm-up", || {
        let ids = session.encode(&prompts[0])?;
        let limits = Limits { new_tokens: 8.min(tokens), ..limits.clone() };
        Decoder::new(&mut session.model, &mut Nothing, &mut GreedyTree, limits)?.generate(&ids)?;
        Ok::<_, Failure>(())
    })?;
    let mut pairs: Vec<Pair> = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let pair = run.step(&format!("prompt {}", prompt.id), || {
            let ids = session.encode(prompt)?;
            let mut sides: [Option<Side>; 2] = [None, None];
            // Each method goes first as often as the other.
            for turn in 0..2 {
                let method = (turn + index) % 2;
                let made = match method {
                    0 => Decoder::new(&mut session.model, &mut Nothing, &mut GreedyTree, limits.clone())?
                        .generate(&ids)?,
                    _ => Decoder::new(&mut session.model, &mut drafter, &mut GreedyTree, limits.clone())?
                        .generate(&ids)?,
                };
                sides[method] = Some(made.into());
            }
            let [Some(plain), Some(lookup)] = sides else { return Err("a method did not run".into()) };
            let divergence = match compare(&mut session.model, &ids, &plain.tokens, &lookup.tokens)? {
                Identity::Identical => None,
                Identity::Diverges { at, margin } => Some((at, margin)),
            };
            let text = session.decode(&plain.tokens)?;
            let (id, category) = (prompt.id.clone(), prompt.category.clone());
            Ok::<_, Failure>(Pair { id, category, prompt_tokens: ids.len(), plain, lookup, divergence, text })
        })?;
        pairs.push(pair);
    }

    let peak = machine::peak_memory_mb();
    let (overall, categories) = summaries(&pairs)?;
    let table = main_table(&pairs, &overall, &categories)?;
    let curve = curve_table(&costs);
    let diverging = pairs.iter().filter(|pair| pair.divergence.is_some()).count();
    let weights = (session.model.info().body_bytes + session.model.info().head_bytes) as f64;
    let plain_mbs = weights / 1e6 / (costs[0].milliseconds / 1e3);
    let worst = categories.iter().min_by(|a, b| speed_up(&a.1).value.total_cmp(&speed_up(&b.1).value));
    let result = ResultFile {
        experiment: QUICKSTART.name.into(),
        title: format!("Prompt look-up against plain decoding: {}", session.model.info().name),
        summary: format!(
            "{} prompts in {} categories, up to {tokens} new tokens each, greedy. Prompt look-up emits {:.2} tokens a \
             round and decodes {} as many tokens a second as plain decoding; the least of any category is {}. {}",
            pairs.len(),
            categories.len(),
            mean_accepted(&pairs),
            ratio(&speed_up(&overall)),
            worst.map_or("none".into(), |(name, c)| format!("{:.2}x ({name})", speed_up(c).value)),
            exactness(diverging, pairs.len()),
        ),
        config: serde_json::json!({ "options": options, "lookup": { "longest": lookup.longest, "shortest": lookup.shortest, "draft": lookup.draft } }),
        seeds: vec![PairedConfig::default().seed],
        rows: pairs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
        tables: vec![table.clone(), curve.clone()],
        plots: vec![
            speed_plot(&categories),
            width_cost::plot(vec![width_cost::series("measured", &costs)]),
            lengths_plot(&pairs),
        ],
        notes: notes(&pairs, &costs, weights, plain_mbs, peak, &overall),
        ..ResultFile::default()
    };
    let (result, finished) = began.write(&run, result)?;
    context.show(&format!("{}\n\n{}\n", table.terminal(), curve.terminal()));
    show_words(context, &result);
    Ok(finished)
}

type Categories = Vec<(String, Comparison)>;

fn summaries(pairs: &[Pair]) -> Result<(Comparison, Categories), Failure> {
    let rows: Vec<(&str, &Side, &Side)> =
        pairs.iter().map(|pair| (pair.category.as_str(), &pair.lookup, &pair.plain)).collect();
    session::comparisons(&rows)
}

fn mean_accepted(pairs: &[Pair]) -> f64 {
    session::mean_tokens(pairs.iter().map(|pair| &pair.lookup))
}

fn exactness(diverging: usize, all: usize) -> String {
    match diverging {
        0 => format!("All {all} outputs are identical to plain decoding's, token for token."),
        some => format!("{some} of {all} outputs part from plain decoding's; the margins are below."),
    }
}

fn main_table(pairs: &[Pair], overall: &Comparison, categories: &Categories) -> Result<Table, Failure> {
    let header = [
        "category",
        "n",
        "plain tok/s",
        "look-up tok/s",
        "speed-up [95 %]",
        "decode only",
        "tokens a round",
        "drafted/accepted",
        "identical",
    ];
    let mut table = Table::new("Plain greedy decoding against prompt look-up, paired by prompt", &header);
    let worst = categories.iter().map(|(_, c)| speed_up(c).value).fold(f64::MAX, f64::min);
    for (name, comparison) in categories.iter().map(|(name, c)| (name.as_str(), c)).chain([("all", overall)])
    {
        let mine = || pairs.iter().filter(|pair| name == "all" || pair.category == name);
        let ledger = total(mine().map(|pair| &pair.lookup));
        let decode = |side: fn(&Pair) -> &Side| mine().map(|pair| side(pair).decode_speed()).sum::<f64>();
        let decode = decode(|pair| &pair.lookup) / decode(|pair| &pair.plain);
        let same = mine().filter(|pair| pair.divergence.is_none()).count();
        let group: Vec<Pair> = mine().cloned().collect();
        table.row([
            name.to_owned(),
            comparison.n.to_string(),
            format!("{:.1}", comparison.mean_b),
            format!("{:.1}", comparison.mean_a),
            ratio(&speed_up(comparison)),
            format!("{decode:.2}x"),
            format!("{:.2}", mean_accepted(&group)),
            format!("{:.1}", ledger.drafted as f64 / (ledger.accepted as f64).max(1.0)),
            format!("{same}/{}", comparison.n),
        ]);
        if name != "all" && speed_up(comparison).value == worst {
            table.set_off();
        }
    }
    Ok(table)
}

fn curve_table(costs: &[WidthCost]) -> Table {
    let mut table = Table::new(
        "Cost of a step of w rows (128 rows of cache)",
        &["w", "ms", "t(w)/t(1)", "outside ONNX Runtime"],
    );
    for cost in costs.iter().filter(|cost| [1, 2, 3, 4, 6, 8, 12, 16].contains(&cost.rows)) {
        let relative = cost.milliseconds / costs[0].milliseconds;
        let outside = format!("{:.1} %", 100.0 * cost.outside);
        table.row([
            cost.rows.to_string(),
            format!("{:.2}", cost.milliseconds),
            format!("{relative:.2}"),
            outside,
        ]);
    }
    table
}

fn notes(
    pairs: &[Pair],
    costs: &[WidthCost],
    weights: f64,
    rate: f64,
    peak: Option<f64>,
    overall: &Comparison,
) -> Vec<String> {
    let mut notes = vec![
        format!(
            "Baseline: plain greedy decoding through the same session, one row a step, an argmax instead of a row of \
             logits, cache rows written in place. A step of one row takes {:.2} ms and reads {:.0} MB of weights: {:.1} GB/s.",
            costs[0].milliseconds,
            weights / 1e6,
            rate / 1e3,
        ),
        format!("Verifier: {}, lossless.", GreedyTree.name()),
        "Speeds include the prompt's pass, as Spec-Bench's do; 'decode only' leaves it out. The worst category is set off.".into(),
        format!(
            "Paired over {} prompts: p = {}; a mean difference of {} tokens/s would have been found with probability 0.8.",
            overall.n,
            overall.p_value.map_or("-".into(), |p| format!("{p:.2e}")),
            overall.detectable.map_or("-".into(), |d| format!("{d:.2}")),
        ),
    ];
    if let Some(peak) = peak {
        notes.push(format!("Peak memory of the process: {peak:.0} MB; weights {:.0} MB.", weights / 1e6));
    }
    for pair in pairs {
        if let Some((at, margin)) = pair.divergence {
            notes.push(format!(
                "{}: parts at token {at}, where plain decoding's two best logits differ by {margin:.2e}.",
                pair.id
            ));
        }
    }
    notes
}

fn speed_plot(categories: &Categories) -> Plot {
    let point = |(x, (_, comparison)): (usize, &(String, Comparison))| Point {
        x: x as f64,
        y: speed_up(comparison).value,
        interval: speed_up(comparison).interval.map(|interval| (interval.low, interval.high)),
    };
    Plot {
        title: "Speed-up over plain decoding by category".into(),
        x: String::new(),
        y: "tokens/s, ratio of means".into(),
        kind: Kind::Bars { labels: categories.iter().map(|(name, _)| name.replace('_', " ")).collect() },
        series: vec![Series {
            name: "prompt look-up".into(),
            points: categories.iter().enumerate().map(point).collect(),
        }],
        reference: Some(1.0),
    }
}

fn lengths_plot(pairs: &[Pair]) -> Plot {
    let sides: Vec<&Side> = pairs.iter().map(|pair| &pair.lookup).collect();
    let longest = sides.iter().flat_map(|side| &side.rounds).map(|round| round.added).max().unwrap_or(1);
    let shares = session::length_shares(&sides, longest);
    let point = |(index, y): (usize, f64)| Point { x: index as f64, y, interval: None };
    Plot {
        title: "Tokens a round".into(),
        x: String::new(),
        y: "share of rounds".into(),
        kind: Kind::Bars { labels: (1..=longest).map(|length| length.to_string()).collect() },
        series: vec![Series {
            name: "prompt look-up".into(),
            points: shares.into_iter().enumerate().map(point).collect(),
        }],
        reference: None,
    }
}
