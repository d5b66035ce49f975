//! Heads that judge pairs: by rewards, or as policies over the two responses, with and without a second goal.

#![allow(clippy::result_large_err)] // training's errors, once a run

use std::ops::ControlFlow;

use candle_core::{Device, Tensor as CandleTensor};
use ndarray::{Array2, Axis};
use pilotfish_graph::{DType, Dim, Graph, Tensor, UnaryOp};
use pilotfish_model::Streams;
use pilotfish_training::losses::preference::{Dpo, Pairs, SimPo, conflict, conflicting_bce, pair_bce};
use pilotfish_training::{
    Adam, At, BatchLoss, Decay, Interpreter, OptimizerConfig, Precision, Schedule, Task, Trainer,
    TrainerConfig, TrainingError, Warmup,
};
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// What a head is trained by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Objective {
    /// A reward: cross-entropy of differences.
    Reward,
    /// The same with a hidden layer.
    Deep,
    /// A policy over both responses: likelihood of the chosen ones, then DPO.
    Dpo,
    /// The same with SimPO.
    SimPo,
}

/// Pairs to learn: differences of features, probabilities that the first response is better, and the truth, which the
/// explicit conflict rewards against.
#[derive(Clone)]
pub(super) struct Lesson {
    pub(super) dx: Array2<f64>,
    pub(super) wanted: Vec<f64>,
    pub(super) truth: Vec<bool>,
    /// Weight of the explicit conflict.
    pub(super) alpha: f64,
}

impl Lesson {
    /// The same with other pairs behind.
    pub(super) fn with(&self, dx: &Array2<f64>, wanted: &[f64]) -> Result<Self, Failure> {
        Ok(Self {
            dx: ndarray::concatenate(Axis(0), &[self.dx.view(), dx.view()])?,
            wanted: [&self.wanted, wanted].concat(),
            truth: self.truth.iter().copied().chain(wanted.iter().map(|p| *p >= 0.5)).collect(),
            alpha: self.alpha,
        })
    }

    pub(super) fn only(&self, rows: &[usize]) -> Self {
        Self {
            dx: self.dx.select(Axis(0), rows),
            wanted: rows.iter().map(|&row| self.wanted[row]).collect(),
            truth: rows.iter().map(|&row| self.truth[row]).collect(),
            alpha: self.alpha,
        }
    }
}

/// A trained head.
pub(super) struct Head {
    net: Interpreter,
    /// The policy before preferences, and beta: DPO's rewards are relative to it.
    reference: Option<(Interpreter, f64)>,
}

const BETA: f64 = 0.1;
/// Units of the hidden layer.
const HIDDEN: usize = 32;

fn graph(d: usize, hidden: bool, seed: u64) -> Result<Graph, TrainingError> {
    let mut rng = Streams::new(seed).stream("weights");
    let mut drawn = |rows: usize, columns: usize, scale: f64| {
        let law = Normal::new(0.0, scale * (2.0 / columns as f64).sqrt()).ok();
        let value = |_| law.map_or(0.0, |law| law.sample(&mut rng)) as f32;
        Tensor::new([rows, columns], (0..rows * columns).map(value).collect::<Vec<f32>>())
    };
    let mut g = Graph::new("head");
    let mut x = g.input("x", vec![Dim::symbol("N"), d.into()], DType::F32)?;
    let mut last = Tensor::new([1, d], vec![0.0; d])?;
    if hidden {
        let weight = g.param("hidden.weight", drawn(HIDDEN, d, 1.0)?)?;
        x = g.linear(x, weight, None)?;
        x = g.unary(UnaryOp::Relu, x)?;
        last = drawn(1, HIDDEN, 0.1)?;
    }
    // No bias: it would cancel.
    let weight = g.param("head.weight", last)?;
    let r = g.linear(x, weight, None)?;
    g.output("r", r)?;
    Ok(g)
}

/// Rewards of both responses; they lie half a difference on either side of the origin.
fn rewards(net: &Interpreter, dx: &Array2<f64>, rows: &[usize]) -> Result<Pairs, TrainingError> {
    let d = dx.ncols();
    let half = |sign: f64| {
        rows.iter().flat_map(move |&row| dx.row(row).to_vec()).map(move |x| (sign * x / 2.0) as f32)
    };
    let x: Vec<f32> = half(1.0).chain(half(-1.0)).collect();
    let x = CandleTensor::from_vec(x, (2 * rows.len(), d), &Device::Cpu)?;
    let mut out = net.forward(&[("x".to_owned(), x)].into())?;
    let missing = || TrainingError::NoSuchName { kind: "output", name: "r".into() };
    Pairs::halves(&out.remove("r").ok_or_else(missing)?.flatten_all()?)
}

/// How one phase of training judges a batch.
#[derive(Clone, Copy)]
enum Phase<'a> {
    Reward,
    Likelihood,
    Dpo(&'a Interpreter),
    SimPo,
}

struct Learning<'a> {
    lesson: &'a Lesson,
    phase: Phase<'a>,
}

impl Task for Learning<'_> {
    fn items(&self) -> usize {
        self.lesson.wanted.len()
    }

    fn loss(&self, net: &Interpreter, items: &[usize], _: &At) -> Result<BatchLoss, TrainingError> {
        let lesson = self.lesson;
        let pairs = rewards(net, &lesson.dx, items)?;
        let column = |values: Vec<f64>| -> Result<CandleTensor, TrainingError> {
            Ok(CandleTensor::from_vec(values, items.len(), &Device::Cpu)?.to_dtype(pairs.chosen.dtype())?)
        };
        let truth: Vec<bool> = items.iter().map(|&item| lesson.truth[item]).collect();
        // A preference of the responses that `first` says, where log-probabilities of the two are their rewards up to
        // what both share.
        let prefer = |first: &[bool]| -> Result<CandleTensor, TrainingError> {
            let signs = column(first.iter().map(|first| if *first { 1.0 } else { -1.0 }).collect())?;
            let turned = |pairs: &Pairs| -> Result<Pairs, TrainingError> {
                let margin = pairs.margin()?.mul(&signs)?;
                Ok(Pairs { rejected: margin.zeros_like()?, chosen: margin })
            };
            match self.phase {
                Phase::Dpo(reference) => {
                    let reference = turned(&rewards(reference, &lesson.dx, items)?)?;
                    Dpo { beta: BETA, label_smoothing: 0.0 }.loss(&turned(&pairs)?, &reference)
                }
                _ => SimPo::default().loss(&turned(&pairs)?),
            }
        };
        let losses = match self.phase {
            Phase::Reward => {
                let wanted = column(items.iter().map(|&item| lesson.wanted[item]).collect())?;
                conflicting_bce(&pairs, &wanted, &truth, lesson.alpha)?
            }
            Phase::Likelihood => {
                let chosen = |&item: &usize| f64::from(u8::from(lesson.wanted[item] >= 0.5));
                pair_bce(&pairs, &column(items.iter().map(chosen).collect())?)?
            }
            Phase::Dpo(_) | Phase::SimPo => {
                let first: Vec<bool> = items.iter().map(|&item| lesson.wanted[item] >= 0.5).collect();
                let loss = prefer(&first)?;
                match lesson.alpha > 0.0 {
                    true => {
                        let worse: Vec<bool> = truth.iter().map(|first| !first).collect();
                        (loss + conflict(&prefer(&worse)?, &pairs.margin()?, &truth, lesson.alpha)?)?
                    }
                    false => loss,
                }
            }
        };
        Ok(BatchLoss { loss: losses.mean_all()?, weight: items.len() as f64, tokens: items.len() })
    }
}

/// Rates and epochs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Pace {
    pub(super) lr: f64,
    pub(super) epochs: f64,
}

impl Head {
    pub(super) fn train(
        lesson: &Lesson,
        objective: Objective,
        pace: Pace,
        seed: u64,
    ) -> Result<Self, Failure> {
        const BATCH: usize = 128;
        let run =
            |graph: &Graph, phase: Phase<'_>, epochs: f64, schedule: Schedule| -> Result<Graph, Failure> {
                let config = TrainerConfig {
                    optimizer: OptimizerConfig::Adam(Adam::default()),
                    lr: pace.lr,
                    schedule,
                    steps: TrainerConfig::steps_of_epochs(lesson.wanted.len(), epochs, BATCH)?,
                    batch: BATCH,
                    clip: None,
                    seed,
                    ..TrainerConfig::default()
                };
                let mut trainer = Trainer::new(graph, config, Precision::F32)?;
                trainer.run(&Learning { lesson, phase }, None, |_| ControlFlow::Continue(()))?;
                Ok(trainer.graph()?)
            };
        let net = |graph: &Graph| Interpreter::new(graph, Precision::F32);
        let start = graph(lesson.dx.ncols(), objective == Objective::Deep, seed)?;
        let cosine = Schedule { decay: Decay::Cosine, ..Schedule::default() };
        if matches!(objective, Objective::Reward | Objective::Deep) {
            let graph = run(&start, Phase::Reward, pace.epochs, cosine)?;
            return Ok(Self { net: net(&graph)?, reference: None });
        }
        // A sixth of the epochs for the likelihood of what is chosen; then preferences, warmed up and constant.
        let first = run(&start, Phase::Likelihood, (pace.epochs / 6.0).max(1.0), Schedule::default())?;
        let reference = net(&first)?;
        let steps = TrainerConfig::steps_of_epochs(lesson.wanted.len(), pace.epochs, BATCH)?;
        let schedule = Schedule { warmup: Warmup::FromFirst { steps: steps / 10 }, ..Schedule::default() };
        let phase = if objective == Objective::Dpo { Phase::Dpo(&reference) } else { Phase::SimPo };
        let graph = run(&first, phase, pace.epochs, schedule)?;
        let kept = (objective == Objective::Dpo).then_some((reference, BETA));
        Ok(Self { net: net(&graph)?, reference: kept })
    }

    /// Probability that the first response is the better one: of the reward, or of the policy's implicit reward.
    pub(super) fn first_better(&self, dx: &Array2<f64>) -> Result<Vec<f64>, Failure> {
        let rows: Vec<usize> = (0..dx.nrows()).collect();
        let margins = |net: &Interpreter| -> Result<Vec<f64>, Failure> {
            Ok(rewards(net, dx, &rows)?.margin()?.to_dtype(candle_core::DType::F64)?.to_vec1()?)
        };
        let mut d = margins(&self.net)?;
        if let Some((reference, beta)) = &self.reference {
            d.iter_mut().zip(margins(reference)?).for_each(|(d, before)| *d = beta * (*d - before));
        }
        Ok(d.into_iter().map(|d| 1.0 / (1.0 + (-d).exp())).collect())
    }
}
