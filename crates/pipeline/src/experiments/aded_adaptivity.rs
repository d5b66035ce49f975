//! ADED: what a larger table and adaptation bring, and whether the search is more than a best-first search.

use pilotfish_decoding::drafters::{Aded, AdedDrafter, Search, TrigramConfig, Trigrams};
use pilotfish_decoding::{Limits, SampleAndMatch};
use pilotfish_model::Streams;
use pilotfish_model::sampling::Warpers;
use pilotfish_model::toy::TableModel;

use super::page::{self, Began, Page, mean};
use super::toys;
use super::{Choice, Context, Experiment, Outcome};
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const ADED_ADAPTIVITY: Experiment = Experiment {
    name: "aded-adaptivity",
    about: "ADED on a tri-gram world: table size, adaptation over a stream, MCTS against exact search",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "vocab", default: "64", about: "tokens of the toy target" },
        Choice { name: "sharpness", default: "12", about: "how spiky its laws are" },
        Choice { name: "texts", default: "30", about: "texts of the stream" },
        Choice { name: "tokens", default: "128", about: "new tokens a text" },
        Choice {
            name: "tables",
            default: "0,1000,10000,100000",
            about: "tokens that the table is counted from",
        },
        Choice { name: "budgets", default: "8,16,32,64", about: "nodes of the draft" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

const SEARCHES: [(&str, Search); 3] =
    [("MCTS", Search::Mcts), ("exact top-k", Search::TopK), ("greedy path", Search::Greedy)];

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (vocab, texts): (usize, usize) = (options.get("vocab")?, options.get("texts")?);
    let (sizes, budgets) = (options.list::<usize>("tables")?, options.list::<usize>("budgets")?);
    let seed: u64 = options.get("seed")?;
    if texts < 3 || sizes.is_empty() || budgets.is_empty() {
        return Err("--texts must be at least 3, --tables and --budgets at least one number".into());
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let target = TableModel::random(2, vocab, options.get("sharpness")?, &mut streams.stream("target"))?;
    let corpus = toys::text(&target, sizes.iter().copied().max().unwrap_or(0), &mut streams.stream("corpus"));
    let prompts = toys::prompts(texts, 4, vocab, &mut streams.stream("prompts"));
    let limits = Limits { new_tokens: options.get("tokens")?, ..Limits::default() };
    let mut run =
        Run::open(context.results(), ADED_ADAPTIVITY.name, options, context.fresh(), context.is_quiet())?;
    let (most, largest) = (budgets.iter().copied().max().unwrap_or(64), *sizes.last().unwrap_or(&0));
    // Every size with the largest budget, every budget with the last size.
    let mut cells: Vec<(usize, usize)> = sizes.iter().map(|&size| (size, most)).collect();
    cells.extend(budgets.iter().filter(|&&budget| budget != most).map(|&budget| (largest, budget)));
    run.expect((cells.len() * 6) as u64);
    let mut rows = Vec::new();
    for &(size, budget) in &cells {
        for (name, search) in SEARCHES {
            for adaptive in [true, false] {
                let id = format!("{size} tokens, {budget} nodes, {name}, adaptive {adaptive}");
                let cell = run.step(&id, || {
                    let documents = (size > 0).then(|| &corpus[..size]);
                    let table = Trigrams::build(TrigramConfig::default(), documents)?;
                    let config = Aded { search, adaptive, nodes: budget, seed, ..Aded::default() };
                    let mut drafter = AdedDrafter::new(table, config)?;
                    let sampler = Warpers::temperature(1.0).check()?;
                    let mut verifier = SampleAndMatch::new(sampler, streams);
                    toys::decode(&mut target.clone(), &mut drafter, &mut verifier, &prompts, &limits)
                })?;
                rows.push((size, budget, name, adaptive, cell));
            }
        }
    }
    let find = |size: usize, budget: usize, name: &str, adaptive: bool| {
        rows.iter()
            .find(|row| (row.0, row.1, row.2, row.3) == (size, budget, name, adaptive))
            .map(|row| &row.4)
    };
    let mut table = Table::new(
        "Tokens a round, mean over texts and 95 % interval",
        &["table from", "nodes", "search", "adaptive", "static", "first third", "last third"],
    );
    for &(size, budget) in &cells {
        for (name, _) in SEARCHES {
            if let (Some(on), Some(off)) = (find(size, budget, name, true), find(size, budget, name, false)) {
                let third = texts / 3;
                table.row([
                    size.to_string(),
                    budget.to_string(),
                    name.to_owned(),
                    on.text(),
                    off.text(),
                    format!("{:.3}", mean(&on.means[..third])),
                    format!("{:.3}", mean(&on.means[texts - third..])),
                ]);
            }
        }
    }
    let by_size = |name: &str, adaptive: bool| Series {
        name: format!("{name}, {}", if adaptive { "adaptive" } else { "static" }),
        points: sizes
            .iter()
            .filter_map(|&size| Some(find(size, most, name, adaptive)?.point((size as f64 + 1.0).log10())))
            .collect(),
    };
    let by_budget = |name: &str| Series {
        name: name.into(),
        points: budgets.iter().filter_map(|&b| Some(find(largest, b, name, true)?.point(b as f64))).collect(),
    };
    let stream = |adaptive: bool| Series {
        name: if adaptive { "adaptive" } else { "static" }.into(),
        points: find(sizes[0], most, "MCTS", adaptive)
            .map(|cell| cell.means.iter().enumerate())
            .into_iter()
            .flatten()
            .map(|(at, &y)| Point { x: at as f64, y, interval: None })
            .collect(),
    };
    let plots = vec![
        page::lines(
            "A larger table",
            "log10(1 + tokens counted)",
            "tokens a round",
            vec![by_size("MCTS", true), by_size("MCTS", false)],
        ),
        page::lines(
            "A larger draft",
            "nodes",
            "tokens a round",
            SEARCHES.iter().map(|(name, _)| by_budget(name)).collect(),
        ),
        page::lines(
            &format!("Over a stream of texts, table from {} tokens", sizes[0]),
            "text",
            "tokens a round",
            vec![stream(true), stream(false)],
        ),
    ];
    let value =
        |size: usize, name: &str, adaptive: bool| find(size, most, name, adaptive).map_or(0.0, |c| c.mean());
    let empty = sizes[0];
    let summary = format!(
        "With {most} nodes and a table counted from {largest} tokens, MCTS gives {:.2} tokens a round, exact top-k {:.2} and \
         a greedy path {:.2}. Counted from {empty} tokens, the adaptive table gives {:.2}, the static one {:.2}.",
        value(largest, "MCTS", true),
        value(largest, "exact top-k", true),
        value(largest, "greedy path", true),
        value(empty, "MCTS", true),
        value(empty, "MCTS", false),
    );
    let json = rows
        .iter()
        .map(|(size, budget, search, adaptive, cell)| {
            serde_json::json!({ "table": size, "nodes": budget, "search": search, "adaptive": adaptive, "cell": cell })
        })
        .collect();
    let notes = vec![
        format!("Target: a random tri-gram table over {vocab} tokens, sampled at temperature 1; exact for any draft by sample-and-match."),
        "The paper's own claims are for Vicuna and Llama 2 with stores of hundreds of megabytes; this shows their shape only.".into(),
    ];
    let page = Page {
        experiment: &ADED_ADAPTIVITY,
        title: "ADED: table size, adaptation and search".into(),
        summary,
        seeds: vec![seed],
        rows: json,
        tables: vec![table],
        plots,
        notes,
    };
    page.write(context, &run, began)
}
