//! RSD: block efficiency of a chain, independent sequences, RSD-C and RSD-S at equal numbers of drafted tokens.

use pilotfish_decoding::drafters::{DraftModel, Rsd, Shape};
use pilotfish_decoding::{Drafter, Limits, lossless};
use pilotfish_model::Streams;
use pilotfish_model::sampling::Warpers;

use super::page::{self, Began, Page};
use super::toys;
use super::{Choice, Context, Experiment, Outcome};
use crate::plots::Series;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const RSD_BUDGET: Experiment = Experiment {
    name: "rsd-budget",
    about: "RSD-C and RSD-S against a chain and independent sequences at equal numbers of drafted tokens",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "vocab", default: "32", about: "tokens of the toy target" },
        Choice { name: "noise", default: "1,2", about: "how far the draft's logits are off, at most" },
        Choice { name: "texts", default: "30", about: "texts" },
        Choice { name: "tokens", default: "256", about: "new tokens a text" },
        Choice { name: "seed", default: "1", about: "seed" },
    ],
    run,
};

/// Budgets of the paper's second experiment with the shapes that spend them.
fn shapes() -> [(usize, [Shape; 4]); 5] {
    let row = |n: usize, constant: &[usize], width: usize, depth: usize| {
        let chain = Shape::Constant(vec![1; n]);
        let shapes = [
            chain,
            Shape::Paths { count: width, depth },
            Shape::Constant(constant.to_vec()),
            Shape::Beam { width, depth },
        ];
        (n, shapes)
    };
    [
        row(6, &[2, 2], 2, 3),
        row(10, &[2, 2, 1], 2, 5),
        row(14, &[2, 2, 2], 2, 7),
        row(21, &[3, 2, 2], 3, 7),
        row(30, &[2, 2, 2, 2], 5, 6),
    ]
}

const NAMES: [&str; 4] = ["chain", "independent", "RSD-C", "RSD-S"];

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (vocab, texts): (usize, usize) = (options.get("vocab")?, options.get("texts")?);
    let noises = options.list::<f64>("noise")?;
    let seed: u64 = options.get("seed")?;
    if texts == 0 || noises.is_empty() || noises.iter().any(|noise| !(*noise >= 0.0 && *noise < 100.0)) {
        return Err("--texts must be at least 1, --noise numbers from 0 to 100".into());
    }
    let (began, streams) = (Began::now(), Streams::new(seed));
    let target = toys::rows(vocab, &[2.0, 4.0, 8.0], &mut streams.stream("target"))?;
    let prompts = toys::prompts(texts, 2, vocab, &mut streams.stream("prompts"));
    let limits = Limits { new_tokens: options.get("tokens")?, ..Limits::default() };
    let sampler = Warpers::temperature(1.0).check()?;
    let mut run =
        Run::open(context.results(), RSD_BUDGET.name, options, context.fresh(), context.is_quiet())?;
    run.expect((noises.len() * 20) as u64);
    let mut rows = Vec::new();
    for &noise in &noises {
        let draft = toys::noisy(&target, |_| noise, &mut streams.stream("draft table"))?;
        for (budget, shapes) in shapes() {
            for (name, shape) in NAMES.into_iter().zip(shapes) {
                let cell = run.step(&format!("noise {noise}, {budget} tokens, {name}"), || {
                    let model = DraftModel::new(Box::new(draft.clone()));
                    let mut drafter = Rsd::new(model, shape.clone(), streams)?;
                    let mut verifier = lossless(sampler, drafter.drawn(), streams);
                    toys::decode(&mut target.clone(), &mut drafter, verifier.as_mut(), &prompts, &limits)
                })?;
                rows.push((noise, budget, name, shape, cell));
            }
        }
    }
    let mut table = Table::new(
        "Tokens a round (block efficiency), mean over texts and 95 % interval",
        &["noise", "drafted", "chain", "independent", "RSD-C", "RSD-S"],
    );
    for &noise in &noises {
        for (budget, _) in shapes() {
            let cells = rows.iter().filter(|row| (row.0, row.1) == (noise, budget)).map(|row| row.4.text());
            table.row([noise.to_string(), budget.to_string()].into_iter().chain(cells));
        }
    }
    let plots = noises
        .iter()
        .map(|&noise| {
            let series = NAMES.map(|name| Series {
                name: name.into(),
                points: rows
                    .iter()
                    .filter(|row| (row.0, row.2) == (noise, name))
                    .map(|row| row.4.point(row.1 as f64))
                    .collect(),
            });
            let title = format!("Block efficiency, noise {noise}");
            page::lines(&title, "tokens drafted a round", "tokens a round", series.into())
        })
        .collect();
    // Acceptance within two children on two symbols, in closed form: p = (a, 1-a), q = (b, 1-b).
    let mss = |a: f64, b: f64| {
        let first = a.min(b) + (1.0 - a).min(1.0 - b);
        // After a rejection all that is left of p is the symbol that q has too little of.
        let again = if a > b { b } else { 1.0 - b };
        first + (1.0 - first) * again
    };
    let mut square = Table::new(
        "Acceptance within two children, two symbols: p = (a, 1-a), q = (0.1, 0.9)",
        &["a", "one child", "two, with replacement", "two, without"],
    );
    for a in [0.1f64, 0.3, 0.5, 0.7, 0.9] {
        let one = a.min(0.1) + (1.0 - a).min(0.9);
        square.row([format!("{a}"), format!("{one:.3}"), format!("{:.3}", mss(a, 0.1)), "1.000".into()]);
    }
    let value = |name: &str, budget: usize| {
        rows.iter()
            .find(|row| (row.0, row.1, row.2) == (noises[0], budget, name))
            .map_or(0.0, |row| row.4.mean())
    };
    let summary = format!(
        "At noise {} and 30 drafted tokens a round: RSD-S {:.2} tokens a round, RSD-C {:.2}, independent sequences {:.2}, a \
         chain {:.2}; at 6 drafted tokens {:.2}, {:.2}, {:.2} and {:.2}.",
        noises[0],
        value("RSD-S", 30),
        value("RSD-C", 30),
        value("independent", 30),
        value("chain", 30),
        value("RSD-S", 6),
        value("RSD-C", 6),
        value("independent", 6),
        value("chain", 6),
    );
    let json = rows
        .iter()
        .map(|(noise, budget, name, shape, cell)| {
            serde_json::json!({ "noise": noise, "drafted": budget, "method": name, "shape": format!("{shape:?}"), "cell": cell })
        })
        .collect();
    let notes = vec![
        format!("Target: a random first-order table over {vocab} tokens with spiky and flat rows; draft: the same with noise in its logits. Both at temperature 1."),
        "Independent sequences are verified by multi-step rejection (SpecInfer's rule), the others by recursive rejection or, for the chain, the same with one child; all are exact.".into(),
        "Sequences that begin alike are not merged; SpecTr's own optimal-transport rule is not here, so 'independent' is SpecInfer's baseline, not SpecTr's.".into(),
    ];
    let page = Page {
        experiment: &RSD_BUDGET,
        title: "RSD: drafted tokens against tokens a round".into(),
        summary,
        seeds: vec![seed],
        rows: json,
        tables: vec![table, square],
        plots,
        notes,
    };
    page.write(context, &run, began)
}
