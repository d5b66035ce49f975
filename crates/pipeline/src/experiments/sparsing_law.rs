//! How sparse a model's neurons are: CETT-PPL-p%, and CETT against its rivals at equal activation ratios.

use pilotfish_architectures::Checkpoint;
use pilotfish_evaluation::texts;
use pilotfish_model::Token;
use pilotfish_sparsity::SparsityError;
use pilotfish_sparsity::gate::{Gate, Quantiles, Score as By};
use pilotfish_sparsity::law::{Neurons, bisect_kappa};
use pilotfish_sparsity::plan::{LayerPlan, Plan};
use pilotfish_sparsity::sequential::{Layers, advance, linears, observe};
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page};
use super::prune::tokens;
use super::session::MODEL;
use super::{Choice, Context, Experiment, Outcome, width_cost};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::sparse::{Decoder, OnnxEngine, windows};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const SPARSING_LAW: Experiment = Experiment {
    name: "sparsing-law",
    about: "activation ratio of a language model by CETT-PPL-p%, and CETT against top-k and FAT",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        MODEL,
        Choice { name: "text", default: "", about: "file of text (Northanger Abbey)" },
        Choice { name: "tokens", default: "1024", about: "tokens of it" },
        Choice { name: "window", default: "256", about: "tokens a window" },
        Choice { name: "percent", default: "1,5,10", about: "rises of perplexity" },
        Choice { name: "kappa", default: "0.05,0.1,0.2,0.3,0.4", about: "relative errors of the comparison" },
        Choice { name: "tolerance", default: "0.002", about: "width of kappa at which the search stops" },
        Choice { name: "grid", default: "1024", about: "thresholds tried a layer" },
        Choice { name: "threads", default: "1", about: "threads" },
    ],
    run,
};

/// A model with some neurons skipped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) kappa: f64,
    /// Mean nats a token.
    pub(super) loss: f64,
    /// Share of neurons that stay, by layer, on the dense run.
    active: Vec<f64>,
    /// Threshold by layer.
    thresholds: Vec<f64>,
}

impl Cell {
    pub(super) fn ratio(&self) -> f64 {
        page::mean(&self.active)
    }
}

/// A model with the texts that its neurons are looked at on.
pub(super) struct Setting<'a> {
    pub(super) decoder: Decoder<'a>,
    pub(super) texts: Vec<Vec<Token>>,
    pub(super) grid: usize,
    pub(super) threads: usize,
}

impl Setting<'_> {
    /// Neurons of every layer over the texts, from the dense run, and the names of the down projections.
    pub(super) fn neurons(&self) -> Result<Vec<(String, Neurons)>, Failure> {
        let mut engine = OnnxEngine::new(self.threads)?;
        let mut hidden = self.embedded()?;
        let mut all = Vec::new();
        for index in 0..self.decoder.count() {
            let graph = self.decoder.layer(index)?;
            let down = linears(&graph).into_iter().find(|(name, _, _)| name.contains(".down_proj."));
            let (name, [_, neurons], value) = down.ok_or("a layer without a down projection")?;
            let mut v = Vec::new();
            observe(&self.decoder, &graph, &[value], &hidden, &mut engine, &mut |_, rows| {
                v.extend_from_slice(rows);
                Ok(())
            })?;
            let param = graph.params().iter().find(|param| param.name == name).ok_or("no such matrix")?;
            all.push((name, Neurons::new(v, &param.tensor.to_f32()?, neurons)?));
            advance(&self.decoder, &graph, &mut hidden, &mut engine)?;
        }
        Ok(all)
    }

    fn embedded(&self) -> Result<Vec<Vec<f32>>, SparsityError> {
        self.texts.iter().map(|text| self.decoder.embed(text)).collect()
    }

    /// Mean nats a token with all layers gated at once.
    pub(super) fn loss(&self, gates: &[(String, Gate)]) -> Result<f64, SparsityError> {
        let mut plan = Plan::new("gated");
        for (name, gate) in gates {
            plan.layers.insert(name.clone(), LayerPlan { gate: Some(*gate), ..LayerPlan::default() });
        }
        let mut engine = OnnxEngine::new(self.threads)?;
        let mut hidden = self.embedded()?;
        for index in 0..self.decoder.count() {
            advance(&self.decoder, &plan.apply(&self.decoder.layer(index)?)?, &mut hidden, &mut engine)?;
        }
        let nats: f64 = self.decoder.nats(&hidden, &self.texts, &mut engine)?.iter().sum();
        Ok(nats / self.texts.iter().map(|text| text.len() - 1).sum::<usize>().max(1) as f64)
    }

    pub(super) fn cett(&self, neurons: &[(String, Neurons)], kappa: f64) -> Result<Cell, SparsityError> {
        let mut cell = Cell { kappa, loss: 0.0, active: Vec::new(), thresholds: Vec::new() };
        let mut gates = Vec::new();
        for (name, layer) in neurons {
            let found = layer.threshold(kappa, self.grid)?;
            cell.active.push(found.kept.active);
            cell.thresholds.push(found.threshold);
            let threshold = Some(found.threshold.max(0.0) as f32);
            gates.push((
                name.clone(),
                Gate { score: By::Weighted, sparsity: 1.0 - found.kept.active, threshold },
            ));
        }
        cell.loss = self.loss(&gates)?;
        Ok(cell)
    }

    /// The largest norms of each token, at one ratio for all layers.
    fn top_k(&self, neurons: &[(String, Neurons)], ratio: f64) -> Result<f64, SparsityError> {
        let gate = Gate::top_k(By::Weighted, 1.0 - ratio);
        self.loss(&neurons.iter().map(|(name, _)| (name.clone(), gate)).collect::<Vec<_>>())
    }

    /// One threshold of `|v|` for all layers, at a ratio.
    fn fat(&self, neurons: &[(String, Neurons)], ratio: f64) -> Result<f64, SparsityError> {
        let mut all = Quantiles::default();
        neurons.iter().for_each(|(_, layer)| all.add(layer.values().iter().map(|v| v.abs())));
        let gate =
            Gate { score: By::Magnitude, sparsity: 1.0 - ratio, threshold: Some(all.at(1.0 - ratio)?) };
        self.loss(&neurons.iter().map(|(name, _)| (name.clone(), gate)).collect::<Vec<_>>())
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (percents, kappas) = (options.list::<f64>("percent")?, options.list::<f64>("kappa")?);
    if kappas.iter().any(|kappa| !(0.0..=1.0).contains(kappa)) {
        return Err("--kappa: from 0 to 1".into());
    }
    let tolerance: f64 = options.get("tolerance")?;
    let began = Began::now();
    let checkpoint: Checkpoint = width_cost::checkpoint(context, options.text("model")?)?;
    let text = tokens(&checkpoint.tokenizer()?, options.text("text")?, texts::NORTHANGER_ABBEY)?;
    let setting = Setting {
        decoder: Decoder::new(checkpoint.causal()?),
        texts: windows(&text, options.get("tokens")?, options.get("window")?)?,
        grid: options.get("grid")?,
        threads: options.get("threads")?,
    };
    let mut run =
        Run::open(context.results(), SPARSING_LAW.name, options, context.fresh(), context.is_quiet())?;
    run.expect((1 + percents.len() + 3 * kappas.len()) as u64);
    let dense: f64 = run.step("dense", || setting.loss(&[]))?;
    let mut neurons: Option<Vec<(String, Neurons)>> = None;
    let mut have = |setting: &Setting<'_>| -> Result<Vec<(String, Neurons)>, Failure> {
        if neurons.is_none() {
            neurons = Some(setting.neurons()?);
        }
        Ok(neurons.clone().unwrap_or_default())
    };
    let mut found = Vec::new();
    for &percent in &percents {
        let cell: Cell = run.step(&format!("perplexity + {percent} %"), || -> Result<Cell, Failure> {
            let neurons = have(&setting)?;
            let kappa =
                bisect_kappa(percent, tolerance, dense, |kappa| Ok(setting.cett(&neurons, kappa)?.loss))?;
            Ok(setting.cett(&neurons, kappa)?)
        })?;
        found.push((percent, cell));
    }
    let mut rivals = Vec::new();
    for &kappa in &kappas {
        let cell: Cell = run.step(&format!("CETT {kappa}"), || -> Result<Cell, Failure> {
            Ok(setting.cett(&have(&setting)?, kappa)?)
        })?;
        let top: f64 = run.step(&format!("top-k as CETT {kappa}"), || -> Result<f64, Failure> {
            Ok(setting.top_k(&have(&setting)?, cell.ratio())?)
        })?;
        let fat: f64 = run.step(&format!("FAT as CETT {kappa}"), || -> Result<f64, Failure> {
            Ok(setting.fat(&have(&setting)?, cell.ratio())?)
        })?;
        rivals.push((cell, top, fat));
    }
    let perplexity = |loss: f64| format!("{:.3}", loss.exp());
    let mut table = Table::new(
        "Activation ratio at a given rise of perplexity",
        &["rise", "kappa", "active neurons", "least active layer", "most active layer", "perplexity"],
    );
    table.row(["dense".to_owned(), "".into(), "100 %".into(), "".into(), "".into(), perplexity(dense)]);
    let share = |x: f64| format!("{:.1} %", 100.0 * x);
    for (percent, cell) in &found {
        let [least, most] = [f64::min as fn(f64, f64) -> f64, f64::max]
            .map(|pick| cell.active.iter().copied().reduce(pick).unwrap_or(0.0));
        table.row([
            format!("{percent} %"),
            format!("{:.4}", cell.kappa),
            share(cell.ratio()),
            share(least),
            share(most),
            perplexity(cell.loss),
        ]);
    }
    let mut against = Table::new(
        "Perplexity at equal activation ratios",
        &["kappa", "active neurons", "CETT", "top-k", "FAT"],
    );
    for (cell, top, fat) in &rivals {
        against.row([
            format!("{}", cell.kappa),
            share(cell.ratio()),
            perplexity(cell.loss),
            perplexity(*top),
            perplexity(*fat),
        ]);
    }
    let series = |name: &str, loss: &dyn Fn(&(Cell, f64, f64)) -> f64| Series {
        name: name.into(),
        points: rivals.iter().map(|row| Point { x: row.0.ratio(), y: loss(row), interval: None }).collect(),
    };
    let plots = vec![page::lines(
        "Loss against activation ratio",
        "share of active neurons",
        "nats a token",
        vec![series("CETT", &|row| row.0.loss), series("top-k", &|row| row.1), series("FAT", &|row| row.2)],
    )];
    let listed: Vec<String> = found
        .iter()
        .map(|(percent, cell)| format!("{} of neurons at {percent} % more perplexity", share(cell.ratio())))
        .collect();
    let summary = format!("Dense perplexity {}. {}.", perplexity(dense), listed.join(", "));
    let mut rows: Vec<serde_json::Value> =
        found.iter().map(|(percent, cell)| serde_json::json!({ "percent": percent, "cell": cell })).collect();
    rows.extend(
        rivals.iter().map(|(cell, top, fat)| serde_json::json!({ "cett": cell, "top_k": top, "fat": fat })),
    );
    let notes = vec![
        "Thresholds come from the dense run; the perplexities are of the model with all layers gated at once. Ratios are those of the dense run.".into(),
        "Top-k keeps each token's neurons of largest norm, one ratio for all layers; FAT has one threshold of |v| for all layers.".into(),
        "Nothing is trained here: activation ratios over training and by width and depth are those of `sparsing-training`.".into(),
    ];
    Page {
        experiment: &SPARSING_LAW,
        title: "How sparse a language model's neurons are".into(),
        summary,
        seeds: vec![],
        rows,
        tables: vec![table, against],
        plots,
        notes,
    }
    .write(context, &run, began)
}
