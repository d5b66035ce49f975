//! Sparse models run by our kernels inside ONNX Runtime: time of a decoding step, against dense kernels of ours that
//! take turns with them, beside the perplexity that it costs.

use std::time::Instant;

use pilotfish_architectures::{CausalNetwork, Checkpoint};
use pilotfish_evaluation::{PerplexityConfig, median, perplexity, texts};
use pilotfish_graph::{Kept, Storage, passes};
use pilotfish_kernels::Roofline;
use pilotfish_model::{CausalModel, LogitForm, RowSet, Step, Steps, Token};
use pilotfish_runtime::{GraphPass, LoadOptions, OnnxCausal, Products};
use pilotfish_sparsity::MultiplyAdds;
use pilotfish_sparsity::gate::GateMethod;
use pilotfish_sparsity::plan::Plan;
use pilotfish_sparsity::sequential::Layers;
use pilotfish_sparsity::wina::Rotations;
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page};
use super::prune::tokens;
use super::session::MODEL;
use super::{Choice, Context, Experiment, Outcome, width_cost};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::sparse::{Decoder, OnnxEngine, gate_plan, planned, samples};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const SPARSE_SPEED: Experiment = Experiment {
    name: "sparse-speed",
    about: "decoding speed of N:M and gated models on our kernels against dense ones of the same type, and perplexity",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        MODEL,
        Choice { name: "types", default: "f32,int8", about: "what weights are kept in" },
        Choice { name: "patterns", default: "2:4", about: "N:M patterns of the layers" },
        Choice { name: "methods", default: "teal,cats,wina", about: "gates, by thresholds" },
        Choice { name: "sparsity", default: "0.25,0.5,0.65", about: "shares of inputs dropped" },
        Choice { name: "sequences", default: "8", about: "calibration sequences of 256 tokens (Persuasion)" },
        Choice {
            name: "tokens",
            default: "1024",
            about: "tokens that perplexity is measured on (Northanger Abbey)",
        },
        Choice { name: "past", default: "64", about: "tokens before the step that is timed" },
        Choice { name: "rounds", default: "40", about: "steps of each model that are timed, a token each" },
        Choice { name: "dense-positions", default: "6", about: "first tokens that no gate touches" },
        Choice { name: "threads", default: "1", about: "threads" },
    ],
    run,
};

/// One model against the dense one of its type, steps taken in turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Timed {
    /// Milliseconds of each round's step.
    sparse: Vec<f64>,
    dense: Vec<f64>,
    /// Bytes of weights that the sparse model holds for its layers and its head.
    bytes: u64,
    dense_bytes: u64,
}

impl Timed {
    /// Steps of a model whose layers are stored N:M in f32 against those of a dense one, on one row after 64 tokens. What the
    /// weights are does not matter to either.
    pub(super) fn packed(
        network: &CausalNetwork,
        text: Vec<Token>,
        [keep, group]: [usize; 2],
        threads: usize,
    ) -> Result<Self, Failure> {
        let (past, rounds) = (64, 40);
        if text.len() < past + rounds + 4 {
            return Err(format!("a text of {} tokens is too short to time steps on", text.len()).into());
        }
        let setting = Setting {
            network,
            text,
            calibration: Vec::new(),
            evaluated: 0,
            past,
            rounds,
            dense_positions: 0,
            threads,
        };
        let sparse = setting.load(&Variant::Pattern { keep, group }, Kept::F32, None)?;
        setting.time(&sparse, &setting.base(Kept::F32))
    }

    /// Medians of both models' milliseconds, and the bytes that they hold: sparse, dense.
    pub(super) fn medians(&self) -> ([f64; 2], [u64; 2]) {
        let middle = |times: &[f64]| median(times).unwrap_or(f64::NAN);
        ([middle(&self.sparse), middle(&self.dense)], [self.bytes, self.dense_bytes])
    }

    /// The median over rounds of dense over sparse time, and its quartiles.
    pub(super) fn speed_up(&self) -> [f64; 3] {
        let mut ratios: Vec<f64> = self.dense.iter().zip(&self.sparse).map(|(d, s)| d / s).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| ratios.get(((ratios.len() - 1) as f64 * share).round() as usize).copied();
        [0.5, 0.25, 0.75].map(|share| at(share).unwrap_or(f64::NAN))
    }
}

struct Setting<'a> {
    network: &'a CausalNetwork,
    text: Vec<Token>,
    calibration: Vec<Vec<Token>>,
    evaluated: usize,
    past: usize,
    rounds: usize,
    dense_positions: usize,
    threads: usize,
}

/// What is sparse.
#[derive(Clone, Debug)]
enum Variant {
    Pattern { keep: usize, group: usize },
    Gated { method: GateMethod, sparsity: f64 },
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pattern { keep, group } => write!(f, "{keep}:{group}"),
            Self::Gated { method, sparsity } => write!(f, "{} {sparsity}", method.name()),
        }
    }
}

impl Variant {
    /// Bytes of so many weights of a type that a gate lets a step skip.
    fn skipped(&self, weights: u64, kept: Kept) -> u64 {
        let bytes = match kept {
            Kept::F32 => 4,
            Kept::Bf16 => 2,
            Kept::Int8 => 1,
        };
        // Only in f32 is the up projection stored by rows; it is as large as the down projection.
        let halves = matches!(self, Self::Gated { method: GateMethod::Cats, .. } if kept != Kept::F32);
        weights * bytes / if halves { 2 } else { 1 }
    }
}

/// Weights that the gates of a plan let a step skip.
fn skippable(decoder: &Decoder<'_>, plan: Option<&Plan>) -> Result<u64, Failure> {
    let Some(plan) = plan else { return Ok(0) };
    let mut skipped = 0;
    for index in 0..decoder.count() {
        let all = MultiplyAdds::count(&decoder.layer(index)?, plan);
        skipped += all.dense - all.gated;
    }
    Ok(skipped)
}

impl Setting<'_> {
    fn base(&self, kept: Kept) -> LoadOptions {
        let storage = match kept {
            Kept::F32 => Storage::F32,
            Kept::Bf16 => Storage::Bf16,
            Kept::Int8 => Storage::Int8 { block: 32 },
        };
        LoadOptions::default().storage(storage).threads(self.threads).products(Products::Pilotfish)
    }

    fn load(&self, variant: &Variant, kept: Kept, plan: Option<&Plan>) -> Result<LoadOptions, Failure> {
        let base = self.base(kept);
        Ok(match (variant, plan) {
            (Variant::Pattern { keep, group }, _) => {
                let storage = Storage::Sparse { keep: *keep, group: *group, kept };
                let change =
                    move |graph: &pilotfish_graph::Graph| Ok(passes::store(graph, |_| Some(storage))?);
                base.pass(GraphPass::new(format!("layers in {storage}"), change))
            }
            (Variant::Gated { .. }, Some(plan)) => {
                let mut plan = plan.clone();
                for layer in plan.layers.values_mut() {
                    (layer.packed, layer.kept) = (true, kept);
                }
                planned(base, &plan, self.network)?
            }
            (Variant::Gated { .. }, None) => return Err("a gate without a plan".into()),
        })
    }

    fn open(&self, load: &LoadOptions) -> Result<OnnxCausal, Failure> {
        Ok(OnnxCausal::from_network("sparse", self.network, load)?)
    }

    fn quality(&self, load: &LoadOptions) -> Result<f64, Failure> {
        let config = PerplexityConfig { window: 256, stride: 255, rows: 64 };
        let text = &self.text[..self.evaluated.min(self.text.len())];
        Ok(perplexity(&mut self.open(load)?, text, &config)?.value())
    }

    fn time(&self, load: &LoadOptions, dense: &LoadOptions) -> Result<Timed, Failure> {
        let mut models = [self.open(load)?, self.open(dense)?];
        let mut times = [Vec::new(), Vec::new()];
        for model in &mut models {
            model.step(&Step::chain(&self.text[..self.past]).want(RowSet::None))?;
        }
        // The first rounds warm up.
        const WARM: usize = 3;
        for round in 0..WARM + self.rounds {
            let next = &self.text[self.past + round..][..1];
            for which in [round % 2, 1 - round % 2] {
                let clock = Instant::now();
                models[which].step(&Step::chain(next).want(RowSet::Last).form(LogitForm::Argmax))?;
                if round >= WARM {
                    times[which].push(1e3 * clock.elapsed().as_secs_f64());
                }
            }
        }
        let bytes = |model: &OnnxCausal| model.info().body_bytes + model.info().head_bytes;
        let [bytes, dense_bytes] = [&models[0], &models[1]].map(bytes);
        let [sparse, dense] = times;
        Ok(Timed { sparse, dense, bytes, dense_bytes })
    }
}

fn kept(name: &str) -> Result<Kept, Failure> {
    match name {
        "f32" => Ok(Kept::F32),
        "bf16" => Ok(Kept::Bf16),
        "int8" => Ok(Kept::Int8),
        other => Err(format!("--types {other:?}: f32, bf16 or int8").into()),
    }
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let types = options.list::<String>("types")?;
    let kinds = types.iter().map(|name| kept(name)).collect::<Result<Vec<_>, _>>()?;
    let mut variants = Vec::new();
    for pattern in options.list::<pilotfish_sparsity::Pattern>("patterns")? {
        let pilotfish_sparsity::Pattern::Grouped { keep, group } = pattern else {
            return Err(format!("--patterns {pattern}: N:M").into());
        };
        variants.push(Variant::Pattern { keep, group });
    }
    for method in options.list::<GateMethod>("methods")? {
        for sparsity in options.list::<f64>("sparsity")? {
            variants.push(Variant::Gated { method, sparsity });
        }
    }
    let began = Began::now();
    let checkpoint: Checkpoint = width_cost::checkpoint(context, options.text("model")?)?;
    let tokenizer = checkpoint.tokenizer()?;
    let calibration = tokens(&tokenizer, "", texts::PERSUASION)?;
    let setting = Setting {
        network: checkpoint.causal()?,
        text: tokens(&tokenizer, "", texts::NORTHANGER_ABBEY)?,
        calibration: samples(&calibration, options.get("sequences")?, 256, 0)?,
        evaluated: options.get("tokens")?,
        past: options.get("past")?,
        rounds: options.get("rounds")?,
        dense_positions: options.get("dense-positions")?,
        threads: options.get("threads")?,
    };
    if setting.rounds == 0 || setting.past == 0 || setting.past + setting.rounds + 3 > setting.text.len() {
        return Err("--past and --rounds: at least 1, and no more than the text has".into());
    }
    let decoder = Decoder::new(setting.network);
    let mut run =
        Run::open(context.results(), SPARSE_SPEED.name, options, context.fresh(), context.is_quiet())?;
    let gated = variants.iter().filter(|variant| matches!(variant, Variant::Gated { .. })).count();
    run.expect((gated + kinds.len() + 2 * variants.len() * kinds.len() + 1) as u64);
    // All that needs no quiet machine comes first.
    let (mut plans, mut rotations) = (Vec::new(), None);
    for variant in &variants {
        plans.push(match variant {
            Variant::Pattern { .. } => None,
            Variant::Gated { method, sparsity } => {
                let plan: Plan = run.step(&format!("plan of {variant}"), || -> Result<Plan, Failure> {
                    if method.rotates() && rotations.is_none() {
                        rotations = Some(Rotations::of(&decoder)?);
                    }
                    let turned = rotations.as_ref().filter(|_| method.rotates());
                    let mut engine = OnnxEngine::new(setting.threads)?;
                    let texts = Some(setting.calibration.as_slice());
                    let plan = gate_plan(&decoder, *method, *sparsity, texts, turned, &mut engine)?;
                    Ok(Plan { dense_positions: setting.dense_positions, ..plan })
                })?;
                Some(plan)
            }
        });
    }
    let mut qualities = Vec::new();
    for (&kind, name) in kinds.iter().zip(&types) {
        let dense: f64 =
            run.step(&format!("perplexity of dense {name}"), || setting.quality(&setting.base(kind)))?;
        let mut all = Vec::new();
        for (variant, plan) in variants.iter().zip(&plans) {
            all.push(run.step(&format!("perplexity of {variant}, {name}"), || {
                setting.quality(&setting.load(variant, kind, plan.as_ref())?)
            })?);
        }
        qualities.push((dense, all));
    }
    let roofline: Roofline =
        run.step("roofline", || Ok::<_, std::io::Error>(Roofline::measure(setting.threads)))?;
    let mut times: Vec<Vec<Timed>> = Vec::new();
    for (&kind, name) in kinds.iter().zip(&types) {
        let mut all = Vec::new();
        for (variant, plan) in variants.iter().zip(&plans) {
            all.push(run.step(&format!("time of {variant}, {name}"), || {
                setting.time(&setting.load(variant, kind, plan.as_ref())?, &setting.base(kind))
            })?);
        }
        times.push(all);
    }
    // Counted once a plan: it is the same weights whatever they are kept in.
    let skippable =
        plans.iter().map(|plan| skippable(&decoder, plan.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let skipped = |&kind: &Kept| -> Vec<u64> {
        variants.iter().zip(&skippable).map(|(variant, &weights)| variant.skipped(weights, kind)).collect()
    };
    let skipped: Vec<Vec<u64>> = kinds.iter().map(skipped).collect();
    page(context, &run, began, &types, &variants, &qualities, &times, &skipped, &roofline)
}

#[allow(clippy::too_many_arguments)]
fn page(
    context: &Context,
    run: &Run,
    began: Began,
    types: &[String],
    variants: &[Variant],
    qualities: &[(f64, Vec<f64>)],
    times: &[Vec<Timed>],
    skipped: &[Vec<u64>],
    roofline: &Roofline,
) -> Outcome {
    let mut table = Table::new(
        "One decoding step, one row, of the whole model",
        &[
            "weights",
            "model",
            "perplexity",
            "ms",
            "dense ms",
            "speed-up",
            "quartiles",
            "bytes allow",
            "MB held",
            "dense MB",
        ],
    );
    let (mut rows, mut series, mut said) = (Vec::new(), Vec::<Series>::new(), Vec::new());
    for (((name, (dense, all)), times), skipped) in types.iter().zip(qualities).zip(times).zip(skipped) {
        for (((variant, quality), time), skipped) in variants.iter().zip(all).zip(times).zip(skipped) {
            let allowed = time.dense_bytes as f64 / (time.bytes - skipped) as f64;
            let [middle, low, high] = time.speed_up();
            let ([ms, dense_ms], _) = time.medians();
            table.row([
                name.clone(),
                variant.to_string(),
                format!("{quality:.2} (dense {dense:.2})"),
                format!("{ms:.2}"),
                format!("{dense_ms:.2}"),
                format!("{middle:.2}x"),
                format!("{low:.2}-{high:.2}"),
                format!("{allowed:.2}x"),
                format!("{:.0}", time.bytes as f64 / 1e6),
                format!("{:.0}", time.dense_bytes as f64 / 1e6),
            ]);
            let point = Point { x: middle, y: (quality / dense).ln(), interval: None };
            let group = match variant {
                Variant::Pattern { .. } => format!("N:M, {name}"),
                Variant::Gated { method, .. } => format!("{}, {name}", method.name()),
            };
            match series.iter_mut().find(|series| series.name == group) {
                Some(series) => series.points.push(point),
                None => series.push(Series { name: group, points: vec![point] }),
            }
            if let Variant::Pattern { .. } | Variant::Gated { sparsity: 0.5, .. } = variant {
                let bar = match (middle >= 1.4, allowed >= 1.4) {
                    (true, _) => "",
                    (_, true) => ", below 1.4x",
                    (_, false) => ", below 1.4x, which bytes do not allow",
                };
                said.push(format!("{variant} in {name}: {middle:.2}x{bar}"));
            }
            rows.push(serde_json::json!({
                "weights": name, "model": variant.to_string(), "perplexity": quality, "dense_perplexity": dense,
                "speed_up": middle, "quartiles": [low, high], "bytes_allow": allowed, "time": time,
            }));
        }
    }
    let (title, x) = ("Quality against measured speed", "speed-up over our dense kernels of the type");
    let plot = page::lines(title, x, "ln perplexity over dense", series);
    let summary =
        format!("{}. Read bandwidth of the machine {:.1} GB/s.", said.join("; "), roofline.bandwidth / 1e9);
    let notes = vec![
        "Both models of a row take their steps in turn, the order changing every round; the speed-up is the median over rounds of the ratio.".into(),
        "What bytes allow is the dense model's bytes over those that a step of the sparse one reads: all that it holds, but for the columns and rows that its gates skip on average.".into(),
        "Dense is our own kernel of the same type: f32 panels, or int8 in blocks of 32. Sparse int8 has one scale an output. The head stays dense everywhere.".into(),
        "N:M here keeps the largest weights of each group; what better pruners make of the same pattern is measured by the experiment prune. CATS by rows and columns in f32, by columns only in int8.".into(),
        "Gates are thresholds calibrated on another novel; a decoded token drops what falls below.".into(),
    ];
    Page {
        experiment: &SPARSE_SPEED,
        title: "Sparse models at speed".into(),
        summary,
        seeds: vec![0],
        rows,
        tables: vec![table],
        plots: vec![plot],
        notes,
    }
    .write(context, run, began)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_ups_are_medians_of_ratios() {
        let timed = Timed {
            sparse: vec![1.0, 2.0, 1.0, 4.0, 1.0],
            dense: vec![2.0, 2.0, 3.0, 2.0, 5.0],
            bytes: 1,
            dense_bytes: 2,
        };
        assert_eq!(timed.speed_up(), [2.0, 1.0, 3.0]);
        assert!(kept("f16").is_err() && kept("int8").is_ok());
    }
}
