//! Activation gates side by side on a language model: perplexity against sparsity, and the multiply-adds that are left.

use pilotfish_architectures::Checkpoint;
use pilotfish_evaluation::texts;
use pilotfish_model::Token;
use pilotfish_sparsity::MultiplyAdds;
use pilotfish_sparsity::gate::{Gate, GateMethod, column_norms};
use pilotfish_sparsity::plan::Plan;
use pilotfish_sparsity::sequential::{Layers, advance, linears, observe};
use pilotfish_sparsity::wina::Rotations;
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page};
use super::prune::{Score, tokens};
use super::session::{MODEL, ratio};
use super::{Choice, Context, Experiment, Outcome, width_cost};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::sparse::{Decoder, OnnxEngine, embedded, gate_plan, samples, windows, with_layers};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const GATE: Experiment = Experiment {
    name: "gate",
    about: "TEAL, CATS and WINA on a language model: perplexity against sparsity, multiply-adds counted honestly",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        MODEL,
        Choice { name: "methods", default: "teal,teal-rotated,wina,wina-plain,cats", about: "gates" },
        Choice { name: "sparsity", default: "0.25,0.4,0.5,0.65", about: "shares of inputs dropped" },
        Choice {
            name: "form",
            default: "top-k",
            about: "top-k (a token's largest scores) or threshold (calibrated)",
        },
        Choice { name: "calib", default: "", about: "file of calibration text (Persuasion)" },
        Choice { name: "text", default: "", about: "file of evaluation text (Northanger Abbey)" },
        Choice { name: "sequences", default: "16", about: "calibration sequences, for thresholds" },
        Choice { name: "length", default: "256", about: "tokens of each" },
        Choice { name: "tokens", default: "6144", about: "tokens to evaluate on" },
        Choice { name: "window", default: "256", about: "tokens a window of the evaluation" },
        Choice {
            name: "dense-share",
            default: "0.02",
            about: "share of a window's first tokens that no gate touches",
        },
        Choice { name: "seed", default: "0", about: "seed of the calibration sequences" },
        Choice { name: "threads", default: "1", about: "threads" },
    ],
    run,
};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    score: Score,
    macs: MultiplyAdds,
}

struct Setting<'a> {
    decoder: Decoder<'a>,
    evaluation: Vec<Vec<Token>>,
    calibration: Vec<Vec<Token>>,
    top_k: bool,
    dense_positions: usize,
    threads: usize,
}

impl Setting<'_> {
    /// The plan of a method: one sparsity for all that it gates.
    fn plan(
        &self,
        method: GateMethod,
        sparsity: f64,
        rotations: Option<&Rotations>,
    ) -> Result<Plan, Failure> {
        let texts = (!self.top_k).then_some(self.calibration.as_slice());
        let mut engine = OnnxEngine::new(self.threads)?;
        let plan = gate_plan(&self.decoder, method, sparsity, texts, rotations, &mut engine)?;
        Ok(Plan { dense_positions: self.dense_positions, ..plan })
    }

    fn evaluate(
        &self,
        plan: &Plan,
        layers: &dyn Layers,
        rotations: Option<&Rotations>,
    ) -> Result<Cell, Failure> {
        let mut engine = OnnxEngine::new(self.threads)?;
        let mut hidden = embedded(&self.decoder, &self.evaluation, rotations)?;
        let mut macs = MultiplyAdds::default();
        for index in 0..layers.count() {
            let graph = layers.layer(index)?;
            let counted = MultiplyAdds::count(&graph, plan);
            macs.dense += counted.dense;
            macs.gated += counted.gated;
            macs.rotations += counted.rotations;
            macs.scores += counted.scores;
            advance(layers, &plan.apply(&graph)?, &mut hidden, &mut engine)?;
        }
        if let Some(rotations) = rotations {
            for text in &mut hidden {
                *text = rotations.turn_back(rotations.layers(), text)?;
            }
        }
        let nats = self.decoder.nats(&hidden, &self.evaluation, &mut engine)?;
        let tokens = self.evaluation.first().map_or(0, Vec::len).saturating_sub(1);
        Ok(Cell { score: Score { nats, tokens }, macs })
    }
}

/// Relative squared errors of the products of one method's gates, by kind of projection: the median over layers.
type Errors = std::collections::BTreeMap<String, f64>;

/// Rows that errors are measured on, at most.
const ROWS: usize = 128;

impl Setting<'_> {
    /// What a method's gates lose in each product, every one on the dense model's own inputs: `||W (x - x keep)||^2 / ||W
    /// x||^2` over the first window's tokens, the dense ones left out.
    fn errors(
        &self,
        method: GateMethod,
        sparsity: f64,
        rotations: Option<&Rotations>,
    ) -> Result<Errors, Failure> {
        let mut engine = OnnxEngine::new(self.threads)?;
        let mut hidden = embedded(&self.decoder, &self.evaluation[..1], rotations)?;
        let mut found: std::collections::BTreeMap<String, Vec<f64>> = Default::default();
        with_layers(&self.decoder, rotations, |layers| -> Result<(), Failure> {
            for index in 0..layers.count() {
                let graph = layers.layer(index)?;
                let own: Vec<_> = linears(&graph)
                    .into_iter()
                    .filter_map(|(name, shape, value)| Some((method.score(&name)?, name, shape, value)))
                    .collect();
                let values: Vec<_> = own.iter().map(|(.., value)| *value).collect();
                let mut failed = None;
                observe(layers, &graph, &values, &hidden, &mut engine, &mut |at, rows| {
                    let (score, name, [_, ins], _) = &own[at];
                    let Some(param) = graph.params().iter().find(|param| param.name == *name) else {
                        return Ok(());
                    };
                    let weights = param.tensor.to_f32()?;
                    let rows: Vec<f32> = rows
                        .chunks_exact(*ins)
                        .skip(self.dense_positions)
                        .take(ROWS)
                        .flatten()
                        .copied()
                        .collect();
                    match lost(&weights, *ins, &rows, &Gate::top_k(*score, sparsity)) {
                        Ok(error) => {
                            let kind = name.split('.').find(|part| part.ends_with("_proj")).unwrap_or(name);
                            found.entry(kind.to_owned()).or_default().push(error);
                        }
                        Err(error) => failed = Some(error),
                    }
                    Ok(())
                })?;
                if let Some(error) = failed {
                    return Err(error);
                }
                advance(layers, &graph, &mut hidden, &mut engine)?;
            }
            Ok(())
        })?;
        Ok(found
            .into_iter()
            .map(|(kind, all)| (kind, pilotfish_evaluation::median(&all).unwrap_or(0.0)))
            .collect())
    }
}

/// `||W (x - x keep)||^2 / ||W x||^2` over rows.
fn lost(weights: &[f32], ins: usize, rows: &[f32], gate: &Gate) -> Result<f64, Failure> {
    use pilotfish_kernels::{Dense, Float, Product};
    let norms = column_norms(weights, ins);
    let dropped: Vec<f32> = rows
        .chunks_exact(ins)
        .flat_map(|x| {
            let keep = gate.keep(x, &norms);
            x.iter().zip(keep).map(|(&x, keep)| if keep { 0.0 } else { x }).collect::<Vec<_>>()
        })
        .collect();
    let (outs, count) = (weights.len() / ins, rows.len() / ins);
    let packed = Dense::pack(weights, outs, ins, Float::F32)?;
    let energy = |x: &[f32]| -> Result<f64, Failure> {
        let mut y = vec![0.0; count * outs];
        packed.apply(x, count, &mut y)?;
        Ok(y.iter().map(|y| f64::from(*y).powi(2)).sum())
    };
    Ok(energy(&dropped)? / energy(rows)?.max(f64::MIN_POSITIVE))
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let methods = options.list::<GateMethod>("methods")?;
    let sparsities = options.list::<f64>("sparsity")?;
    for &sparsity in &sparsities {
        Gate::top_k(pilotfish_sparsity::gate::Score::Magnitude, sparsity).check()?;
    }
    if methods.is_empty() || sparsities.is_empty() {
        return Err("--methods and --sparsity each need at least one entry".into());
    }
    let top_k = match options.text("form")? {
        "top-k" => true,
        "threshold" => false,
        other => return Err(format!("--form {other:?}: top-k or threshold").into()),
    };
    let share: f64 = options.get("dense-share")?;
    if !(0.0..=1.0).contains(&share) {
        return Err("--dense-share: from 0 to 1".into());
    }
    let began = Began::now();
    let checkpoint: Checkpoint = width_cost::checkpoint(context, options.text("model")?)?;
    let tokenizer = checkpoint.tokenizer()?;
    let evaluation = tokens(&tokenizer, options.text("text")?, texts::NORTHANGER_ABBEY)?;
    let calibration = tokens(&tokenizer, options.text("calib")?, texts::PERSUASION)?;
    let window: usize = options.get("window")?;
    let setting = Setting {
        decoder: Decoder::new(checkpoint.causal()?),
        evaluation: windows(&evaluation, options.get("tokens")?, window)?,
        calibration: samples(
            &calibration,
            options.get("sequences")?,
            options.get("length")?,
            options.get("seed")?,
        )?,
        top_k,
        // As published: of T tokens the last floor(0.99 T) are gated.
        dense_positions: window - (window as f64 * (1.0 - share)) as usize,
        threads: options.get("threads")?,
    };
    let mut run = Run::open(context.results(), GATE.name, options, context.fresh(), context.is_quiet())?;
    // CATS gates no single product.
    let explained: Vec<GateMethod> =
        methods.iter().copied().filter(|&method| method != GateMethod::Cats).collect();
    run.expect((1 + methods.len() * sparsities.len() + explained.len()) as u64);
    let dense: Cell = run.step("dense", || setting.evaluate(&Plan::new("dense"), &setting.decoder, None))?;
    // Found when a step first needs them.
    let mut rotations: Option<Rotations> = None;
    let mut cells = Vec::new();
    for &method in &methods {
        for &sparsity in &sparsities {
            let cell: Cell =
                run.step(&format!("{} {sparsity}", method.name()), || -> Result<Cell, Failure> {
                    if method.rotates() && rotations.is_none() {
                        rotations = Some(Rotations::of(&setting.decoder)?);
                    }
                    let turned = rotations.as_ref().filter(|_| method.rotates());
                    let plan = setting.plan(method, sparsity, turned)?;
                    with_layers(&setting.decoder, turned, |layers| setting.evaluate(&plan, layers, turned))
                })?;
            cells.push((method, sparsity, cell));
        }
    }
    let mut errors = Vec::new();
    for &method in &explained {
        let found: Errors = run.step(&format!("errors of {}", method.name()), || -> Result<_, Failure> {
            if method.rotates() && rotations.is_none() {
                rotations = Some(Rotations::of(&setting.decoder)?);
            }
            setting.errors(method, 0.5, rotations.as_ref().filter(|_| method.rotates()))
        })?;
        errors.push((method, found));
    }
    let head = (checkpoint.causal()?.config().vocab * checkpoint.causal()?.config().width) as u64;
    let mut table = Table::new(
        "Perplexity against sparsity, and multiply-adds a token against the dense model's, head included",
        &["method", "sparsity", "perplexity", "over dense", "MACs without rotations", "MACs in all"],
    );
    let whole = (dense.macs.dense + head) as f64;
    let percent = |macs: u64| format!("{:.1} %", 100.0 * (macs + head) as f64 / whole);
    table.row([
        "dense".to_owned(),
        "0".into(),
        format!("{:.3}", dense.score.perplexity()),
        "1".into(),
        percent(dense.macs.dense),
        percent(dense.macs.dense),
    ]);
    for (method, sparsity, cell) in &cells {
        table.row([
            method.name().to_owned(),
            sparsity.to_string(),
            format!("{:.3}", cell.score.perplexity()),
            ratio(&cell.score.against(&dense.score)?),
            percent(cell.macs.gated),
            percent(cell.macs.gated + cell.macs.rotations + cell.macs.scores),
        ]);
    }
    const KINDS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let mut products = Table::new(
        "Relative squared error of each product at half its inputs, median over layers, on the dense model's inputs",
        &[&["method"], KINDS.as_slice()].concat(),
    );
    for (method, errors) in &errors {
        let one = |kind: &&str| errors.get(*kind).map_or(String::new(), |error| format!("{error:.4}"));
        products.row(std::iter::once(method.name().to_owned()).chain(KINDS.iter().map(one)));
    }
    let curve = |method: &GateMethod, x: &dyn Fn(f64, &Cell) -> f64| Series {
        name: method.name().into(),
        points: cells
            .iter()
            .filter(|cell| cell.0 == *method)
            .map(|(_, sparsity, cell)| Point {
                x: x(*sparsity, cell),
                y: cell.score.perplexity().ln(),
                interval: None,
            })
            .collect(),
    };
    let plots = vec![
        page::lines(
            "Perplexity against sparsity",
            "share of inputs dropped",
            "ln perplexity",
            methods.iter().map(|m| curve(m, &|s, _| s)).collect(),
        ),
        page::lines(
            "Perplexity against multiply-adds",
            "share of the dense model's multiply-adds",
            "ln perplexity",
            methods
                .iter()
                .map(|m| {
                    curve(m, &|_, cell| {
                        (cell.macs.gated + cell.macs.rotations + cell.macs.scores + head) as f64 / whole
                    })
                })
                .collect(),
        ),
    ];
    let at = |sparsity: f64| {
        let mut row: Vec<(&str, f64)> = cells
            .iter()
            .filter(|cell| cell.1 == sparsity)
            .map(|cell| (cell.0.name(), cell.2.score.perplexity()))
            .collect();
        row.sort_by(|a, b| a.1.total_cmp(&b.1));
        let listed: Vec<String> = row.iter().map(|(name, value)| format!("{name} {value:.2}")).collect();
        format!("At {sparsity}: {}.", listed.join(", "))
    };
    let summary = format!(
        "{} predicted tokens, {} form. Dense perplexity {:.2}. {}",
        dense.score.nats.len() * dense.score.tokens,
        options.text("form")?,
        dense.score.perplexity(),
        sparsities.iter().map(|&sparsity| at(sparsity)).collect::<Vec<_>>().join(" "),
    );
    let mut rows =
        vec![serde_json::json!({ "method": "dense", "perplexity": dense.score.perplexity(), "cell": dense })];
    rows.extend(cells.iter().map(|(method, sparsity, cell)| {
        serde_json::json!({ "method": method, "sparsity": sparsity, "perplexity": cell.score.perplexity(), "cell": cell })
    }));
    rows.extend(
        errors.iter().map(|(method, errors)| serde_json::json!({ "method": method, "errors": errors })),
    );
    let notes = vec![
        "Rotating makes the columns of the keys and gates orthogonal, where weighted scores are the best choice there is. Queries, values and ups are rotated along: their inputs lose the few large coordinates that magnitudes pick, and their columns stay as they were. The second table says which of the two weighs more, product by product.".into(),
        "The same sparsity for every matrix that a method gates; CATS gates the MLP's up and down projections only, so its multiply-adds at one sparsity are more.".into(),
        format!("The first {} tokens of each window are left dense.", setting.dense_positions),
        "Multiply-adds are those of the linear layers and the head; rotated models do two more products of the residual's width squared a layer, which the paper does not count.".into(),
    ];
    Page {
        experiment: &GATE,
        title: "Gating a language model".into(),
        summary,
        seeds: vec![options.get("seed")?],
        rows,
        tables: vec![table, products],
        plots,
        notes,
    }
    .write(context, &run, began)
}
