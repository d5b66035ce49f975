//! How sparse neurons become while a model is trained, and how that depends on its width and depth.

#![allow(clippy::result_large_err)] // training's errors, once a run

use std::ops::ControlFlow;

use pilotfish_architectures::{Activation, CausalConfig, CausalNetwork};
use pilotfish_evaluation::texts;
use pilotfish_model::Token;
use pilotfish_sparsity::SparsityError;
use pilotfish_sparsity::law::bisect_kappa;
use pilotfish_sparsity::law::fit::{Curve, Law, fit};
use pilotfish_training::{
    Adam, Decay, OptimizerConfig, Precision, Schedule, TextTask, Trainer, TrainerConfig, Warmup,
};
use serde::{Deserialize, Serialize};

use super::page::{self, Began, Page, mean};
use super::sparsing_law::Setting;
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Point, Series};
use crate::sparse::{Decoder, windows};
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const SPARSING_TRAINING: Experiment = Experiment {
    name: "sparsing-training",
    about: "activation ratio over training, ReLU and SiLU, and by width over depth: small models of bytes, trained here",
    needs: &[],
    library: true,
    options: &[
        Choice { name: "steps", default: "500", about: "steps of each training" },
        Choice { name: "batch", default: "8", about: "windows of 128 bytes a step" },
        Choice { name: "points", default: "12", about: "points of training that are measured" },
        Choice {
            name: "tokens",
            default: "2048",
            about: "bytes of other text that neurons are looked at on",
        },
        Choice { name: "percent", default: "1", about: "rise of perplexity that is allowed" },
        Choice { name: "seed", default: "1", about: "seed" },
        Choice { name: "threads", default: "1", about: "threads" },
    ],
    run,
};

const WINDOW: usize = 128;
/// Thresholds tried a layer, and how closely kappa is found.
const GRID: usize = 1024;
const TOLERANCE: f64 = 0.002;
/// Measured points at the end over which kappa is found.
const POOLED: usize = 5;

/// A model: `d_ff` is 2.5 times the width, as published; matrices have half a million entries in all.
struct Shape {
    width: usize,
    layers: usize,
    activation: Activation,
}

/// The first two are followed over training; all of the same activation are compared by shape.
const SHAPES: [Shape; 6] = [
    Shape { width: 96, layers: 5, activation: Activation::Relu },
    Shape { width: 96, layers: 5, activation: Activation::Silu },
    Shape { width: 64, layers: 11, activation: Activation::Relu },
    Shape { width: 128, layers: 3, activation: Activation::Relu },
    Shape { width: 160, layers: 2, activation: Activation::Relu },
    Shape { width: 224, layers: 1, activation: Activation::Relu },
];

impl Shape {
    fn name(&self) -> String {
        let activation = if self.activation == Activation::Relu { "ReLU" } else { "SiLU" };
        format!("{activation}, width {}, layers {}", self.width, self.layers)
    }

    fn law(&self) -> Law {
        if self.activation == Activation::Relu { Law::Relu } else { Law::Silu }
    }

    fn network(&self, seed: u64) -> Result<CausalNetwork, Failure> {
        let config = CausalConfig {
            activation: self.activation,
            ..CausalConfig::llama(256, self.width, self.layers, [4, 4], self.width * 5 / 2)
        };
        Ok(CausalNetwork::random(config, seed)?)
    }
}

/// A model at one point of its training.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct At {
    step: u64,
    tokens: u64,
    /// Mean nats a byte, dense, on the text that is measured.
    loss: f64,
    /// The same with all layers gated at the pooled kappa.
    gated: f64,
    /// Share of active neurons at the pooled kappa.
    active: f64,
    /// Share of neurons that are not 0.
    not_zero: f64,
}

/// A model over its training.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Course {
    kappa: f64,
    parameters: usize,
    points: Vec<At>,
}

/// About evenly spaced on a scale of logarithms from a twentieth of the steps to the end.
fn points(steps: u64, count: usize) -> Vec<u64> {
    let least = (steps as f64 / 20.0).max(1.0);
    let at = |i: usize| least * (steps as f64 / least).powf(i as f64 / (count - 1).max(1) as f64);
    let mut all: Vec<u64> = (0..count).map(|i| at(i).round() as u64).collect();
    all.dedup();
    all
}

fn course(context: &Context, shape: &Shape, held_out: &[Vec<Token>]) -> Result<Course, Failure> {
    let options = context.options();
    let (steps, batch, seed): (u64, usize, u64) =
        (options.get("steps")?, options.get("batch")?, options.get("seed")?);
    let task = TextTask::new(windows(&bytes(texts::NORTHANGER_ABBEY), usize::MAX, WINDOW)?);
    let start = shape.network(seed)?;
    let config = TrainerConfig {
        optimizer: OptimizerConfig::AdamW(Adam { betas: [0.9, 0.95], weight_decay: 0.1, ..Adam::default() }),
        lr: 3e-3,
        // Without a decay, so that every point is one of the same training.
        schedule: Schedule {
            warmup: Warmup::FromFirst { steps: steps.div_ceil(20) },
            decay: Decay::Constant,
            ..Schedule::default()
        },
        steps,
        batch,
        seed,
        ..TrainerConfig::default()
    };
    let graph = start.whole("B".into(), "T".into())?;
    let mut trainer = Trainer::new(&graph, config, Precision::F32)?;
    let mut networks = Vec::new();
    for step in points(steps, options.get("points")?) {
        trainer.run(&task, None, |at| {
            if at.step >= step { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        networks.push((step, start.with_parameters(&trainer.graph()?)?));
    }
    let settings: Vec<Setting<'_>> = networks
        .iter()
        .map(|(_, network)| Setting {
            decoder: Decoder::new(network),
            texts: held_out.to_vec(),
            grid: GRID,
            threads: options.get("threads").unwrap_or(1),
        })
        .collect();
    let neurons = settings.iter().map(Setting::neurons).collect::<Result<Vec<_>, _>>()?;
    let dense = settings.iter().map(|setting| setting.loss(&[])).collect::<Result<Vec<f64>, _>>()?;
    // One kappa for all points, from the last ones together, as published.
    let last = networks.len().saturating_sub(POOLED)..networks.len();
    let kappa = bisect_kappa(options.get("percent")?, TOLERANCE, 0.0, |kappa| {
        let ratios = last
            .clone()
            .map(|at| Ok((settings[at].cett(&neurons[at], kappa)?.loss - dense[at]).exp()))
            .collect::<Result<Vec<f64>, SparsityError>>()?;
        Ok(mean(&ratios).ln())
    })?;
    let mut course = Course { kappa, parameters: start.parameters(), points: Vec::new() };
    for (at, (step, _)) in networks.iter().enumerate() {
        let cell = settings[at].cett(&neurons[at], kappa)?;
        let not_zero: Vec<f64> = neurons[at].iter().map(|(_, layer)| layer.at(0.0).active).collect();
        course.points.push(At {
            step: *step,
            tokens: step * (batch * (WINDOW - 1)) as u64,
            loss: dense[at],
            gated: cell.loss,
            active: cell.ratio(),
            not_zero: mean(&not_zero),
        });
    }
    Ok(course)
}

fn bytes(text: &str) -> Vec<Token> {
    text.bytes().map(Token::from).collect()
}

/// Both laws fitted to a course, tokens in millions, that of its own activation first.
fn laws(shape: &Shape, course: &Course) -> [Option<Curve>; 2] {
    let points: Vec<(f64, f64)> =
        course.points.iter().map(|at| (at.tokens as f64 / 1e6, at.active)).collect();
    let other = if shape.law() == Law::Relu { Law::Silu } else { Law::Relu };
    [shape.law(), other].map(|law| fit(law, &points).ok())
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let (steps, count, percent): (u64, usize, f64) =
        (options.get("steps")?, options.get("points")?, options.get("percent")?);
    if steps < 20 || !(POOLED..=100).contains(&count) || !(percent > 0.0) {
        return Err("--steps must be at least 20, --points from 5 to 100, --percent above 0".into());
    }
    let began = Began::now();
    let held_out = windows(&bytes(texts::PERSUASION), options.get("tokens")?, WINDOW)?;
    let mut run =
        Run::open(context.results(), SPARSING_TRAINING.name, options, context.fresh(), context.is_quiet())?;
    run.expect(SHAPES.len() as u64);
    let mut courses = Vec::new();
    for shape in &SHAPES {
        let found: Course = run.step(&shape.name(), || course(context, shape, &held_out))?;
        courses.push((shape, found));
    }
    let share = |x: f64| format!("{:.1} %", 100.0 * x);
    let mut by_shape = Table::new(
        format!("After {steps} steps: neurons active at {percent} % more perplexity, by width over depth"),
        &["model", "width / layers", "parameters", "nats a byte", "kappa", "active", "not 0"],
    );
    let mut sorted: Vec<&(&Shape, Course)> = courses.iter().collect();
    sorted.sort_by_key(|(shape, _)| (shape.law() == Law::Silu, shape.width / shape.layers));
    let end = |course: &Course| course.points.last().cloned().ok_or("a course without points");
    for (shape, course) in &sorted {
        let at = end(course)?;
        by_shape.row([
            shape.name(),
            format!("{:.1}", shape.width as f64 / shape.layers as f64),
            course.parameters.to_string(),
            format!("{:.3}", at.loss),
            format!("{:.3}", course.kappa),
            share(at.active),
            share(at.not_zero),
        ]);
    }
    let mut over_time = Table::new(
        "Over training, at one kappa a model",
        &["model", "step", "bytes", "nats a byte", "gated", "active", "not 0"],
    );
    let mut fits = Table::new(
        "Laws fitted to what is active, bytes in millions",
        &["model", "law", "alpha", "b", "c", "limit", "root mean square error", "AIC"],
    );
    let (mut over, mut directions) = (Vec::new(), Vec::new());
    for (shape, course) in courses.iter().take(2) {
        for at in &course.points {
            over_time.row([
                shape.name(),
                at.step.to_string(),
                at.tokens.to_string(),
                format!("{:.3}", at.loss),
                format!("{:.3}", at.gated),
                share(at.active),
                share(at.not_zero),
            ]);
        }
        for curve in laws(shape, course).iter().flatten() {
            let n = course.points.len();
            fits.row([
                shape.name(),
                format!("{:?}", curve.law),
                format!("{:.3}", curve.alpha),
                format!("{:.3}", curve.b),
                format!("{:.4}", curve.c),
                share(curve.a0),
                share((curve.squares / n as f64).sqrt()),
                format!("{:.1}", curve.aic(n)),
            ]);
        }
        over.push(Series {
            name: shape.name(),
            points: course
                .points
                .iter()
                .map(|at| Point { x: (at.tokens as f64 / 1e6).log10(), y: at.active, interval: None })
                .collect(),
        });
        let last = end(course)?;
        let first = course.points.first().cloned().ok_or("a course without points")?;
        directions.push(format!("{}: {} to {}", shape.name(), share(first.active), share(last.active)));
    }
    let relu: Vec<&&(&Shape, Course)> = sorted.iter().filter(|(shape, _)| shape.law() == Law::Relu).collect();
    let widths = Series {
        name: "ReLU".into(),
        points: relu
            .iter()
            .map(|(shape, course)| {
                let x = (shape.width as f64 / shape.layers as f64).log10();
                Ok(Point { x, y: end(course)?.active, interval: None })
            })
            .collect::<Result<_, Failure>>()?,
    };
    let shapes: Vec<String> = relu
        .iter()
        .map(|(shape, course)| {
            Ok(format!("{} x {} {}", shape.width, shape.layers, share(end(course)?.active)))
        })
        .collect::<Result<_, Failure>>()?;
    let summary = format!(
        "Neurons active at {percent} % more perplexity, from first to last point: {}. By width x layers, ReLU: {}.",
        directions.join("; "),
        shapes.join(", ")
    );
    let rows = courses
        .iter()
        .map(|(shape, course)| serde_json::json!({ "model": shape.name(), "course": course, "laws": laws(shape, course) }))
        .collect();
    let plots = vec![
        page::lines(
            "Activation ratio over training",
            "millions of bytes, log10",
            "share of active neurons",
            over,
        ),
        page::lines(
            "Activation ratio by shape",
            "width / layers, log10",
            "share of active neurons",
            vec![widths],
        ),
    ];
    let page = Page {
        experiment: &SPARSING_TRAINING,
        title: "How sparse neurons become, by training, activation and shape".into(),
        summary,
        seeds: vec![options.get("seed")?],
        rows,
        tables: vec![by_shape, over_time, fits],
        plots,
        notes: notes(),
    };
    page.write(context, &run, began)
}

fn notes() -> Vec<String> {
    [
        "Models of bytes with half a million entries in their matrices, gated MLPs of 2.5 times the width, trained on Northanger \
         Abbey at a constant rate after a warm-up; neurons and losses are those on the beginning of Persuasion.",
        "kappa is the largest at which the mean perplexity of the last five points rises by no more than the percentage, and is \
         then applied to every point, as the paper does; the published models are a thousand times as large and see a million \
         times as much text, so directions can be compared, not coefficients.",
        "\"Not 0\" counts as active whatever is not exactly 0: it says nothing of SiLU.",
        "One seed a model: differences of a point or two between shapes may be chance.",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_spread_over_logarithms() {
        assert_eq!(points(500, 5), [25, 53, 112, 236, 500]);
        assert_eq!(points(20, 12).first(), Some(&1));
        assert_eq!(points(20, 12).last(), Some(&20));
        assert!(points(20, 12).windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn models_have_about_as_many_parameters() {
        for shape in &SHAPES {
            let network = shape.network(1).expect("a shape that there is");
            let matrices = network.parameters() - 256 * shape.width;
            assert!((500_000..620_000).contains(&matrices), "{}: {matrices}", shape.name());
        }
    }
}
