//! Teachers and students over a feature store: trees, regressions, and heads trained step by step.

#![allow(clippy::result_large_err)] // training's errors, once a run

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{Device, Tensor as CandleTensor};
use ndarray::{Array2, Axis};
use pilotfish_graph::{DType, Dim, Graph, Tensor, UnaryOp};
use pilotfish_model::Streams;
use pilotfish_supervision::heads::{Logistic, LogisticConfig, Tree, TreeConfig};
use pilotfish_supervision::weak_to_strong::{Fitted, TrainView, Trainee, hard};
use pilotfish_supervision::{Result, SupervisionError};
use pilotfish_training::losses::classification::{Confidence, cross_entropy};
use pilotfish_training::{
    Adam, At, BatchLoss, Decay, Interpreter, OptimizerConfig, Precision, Schedule, Task, Trainer,
    TrainerConfig, TrainingError,
};
use rand_distr::{Distribution, Normal};

/// Features `[items, d]` that several models read.
pub(super) type Store = Arc<Array2<f64>>;

/// A decision tree.
pub(super) struct Grown(pub(super) Store, pub(super) TreeConfig);

impl Trainee for Grown {
    fn fit(&self, train: &TrainView, _: u64) -> Result<Box<dyn Fitted>> {
        let x = self.0.select(Axis(0), train.rows());
        let tree = Tree::fit(x.view(), &hard(train.targets()), train.targets().ncols(), &self.1)?;
        Ok(Box::new(Of(self.0.clone(), move |x: Array2<f64>| tree.predict(x.view()))))
    }
}

/// A regularised logistic regression on soft targets.
pub(super) struct Regression(pub(super) Store, pub(super) LogisticConfig);

impl Trainee for Regression {
    fn fit(&self, train: &TrainView, _: u64) -> Result<Box<dyn Fitted>> {
        let x = self.0.select(Axis(0), train.rows());
        let model = Logistic::fit(x.view(), train.targets().view(), None, &self.1)?;
        Ok(Box::new(Of(self.0.clone(), move |x: Array2<f64>| model.predict(x.view()))))
    }
}

/// A trained model over its store.
struct Of<F>(Store, F);

impl<F: Fn(Array2<f64>) -> Result<Array2<f64>>> Fitted for Of<F> {
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
        (self.1)(self.0.select(Axis(0), rows))
    }
}

/// Tells the truth, but for a share of the items, whose class it flips: noise that no student can learn.
pub(super) struct Flipping {
    pub(super) truth: Vec<usize>,
    pub(super) share: f64,
}

impl Trainee for Flipping {
    fn fit(&self, _: &TrainView, seed: u64) -> Result<Box<dyn Fitted>> {
        use rand::Rng;
        let mut rng = Streams::new(seed).stream("flips");
        let said = self.truth.iter().map(|&class| class ^ usize::from(rng.random_bool(self.share))).collect();
        Ok(Box::new(Said(said)))
    }
}

struct Said(Vec<usize>);

impl Fitted for Said {
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
        let mut p = Array2::zeros((rows.len(), 2));
        rows.iter().enumerate().for_each(|(at, &row)| p[[at, self.0[row]]] = 1.0);
        Ok(p)
    }
}

/// A linear head, or one behind a hidden layer, by Adam with a cosine schedule.
#[derive(Clone)]
pub(super) struct Probe {
    pub(super) store: Store,
    /// Units of the hidden layer; `None` for a linear head.
    pub(super) hidden: Option<usize>,
    /// The confidence loss; `None` for cross-entropy.
    pub(super) confidence: Option<Confidence>,
    pub(super) lr: f64,
    pub(super) epochs: f64,
    pub(super) batch: usize,
}

impl Probe {
    /// Zero-initialised where it is linear; a hidden layer by He, the one behind it a tenth of that.
    fn graph(&self, classes: usize, seed: u64) -> Result<Graph, TrainingError> {
        let d = self.store.ncols();
        let mut rng = Streams::new(seed).stream("weights");
        let mut drawn = |rows: usize, columns: usize, scale: f64| {
            let deviation = scale * (2.0 / columns as f64).sqrt();
            let law = Normal::new(0.0, deviation).ok();
            let value = |_| law.map_or(0.0, |law| law.sample(&mut rng)) as f32;
            Tensor::new([rows, columns], (0..rows * columns).map(value).collect::<Vec<f32>>())
        };
        let mut g = Graph::new("probe");
        let mut x = g.input("x", vec![Dim::symbol("N"), d.into()], DType::F32)?;
        let last = match self.hidden {
            None => Tensor::new([classes, d], vec![0.0; classes * d])?,
            Some(units) => {
                let weight = g.param("hidden.weight", drawn(units, d, 1.0)?)?;
                let bias = g.param("hidden.bias", Tensor::new([units], vec![0.0; units])?)?;
                x = g.linear(x, weight, Some(bias))?;
                x = g.unary(UnaryOp::Relu, x)?;
                drawn(classes, units, 0.1)?
            }
        };
        let weight = g.param("head.weight", last)?;
        let bias = g.param("head.bias", Tensor::new([classes], vec![0.0; classes])?)?;
        let z = g.linear(x, weight, Some(bias))?;
        g.output("z", z)?;
        Ok(g)
    }

    fn train(&self, view: &TrainView, seed: u64) -> Result<Interpreter, TrainingError> {
        let lesson = Lesson { x: rows(&self.store, view.rows()), view, confidence: self.confidence };
        let config = TrainerConfig {
            optimizer: OptimizerConfig::Adam(Adam::default()),
            lr: self.lr,
            schedule: Schedule { decay: Decay::Cosine, ..Schedule::default() },
            steps: TrainerConfig::steps_of_epochs(view.rows().len(), self.epochs, self.batch)?,
            batch: self.batch,
            clip: None,
            seed,
            ..TrainerConfig::default()
        };
        let graph = self.graph(view.targets().ncols(), seed)?;
        let mut trainer = Trainer::new(&graph, config, Precision::F32)?;
        trainer.run(&lesson, None, |_| ControlFlow::Continue(()))?;
        Interpreter::new(&trainer.graph()?, Precision::F32)
    }
}

fn rows(store: &Array2<f64>, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&row| store.row(row).to_vec()).map(|value| value as f32).collect()
}

fn refused(error: TrainingError) -> SupervisionError {
    SupervisionError::Solver { model: "probe", why: error.to_string() }
}

impl Trainee for Probe {
    fn fit(&self, train: &TrainView, seed: u64) -> Result<Box<dyn Fitted>> {
        let (net, classes) = (self.train(train, seed).map_err(refused)?, train.targets().ncols());
        Ok(Box::new(Trained { store: self.store.clone(), net, classes }))
    }
}

/// What a student learns: features and what to say of them.
struct Lesson<'a> {
    x: Vec<f32>,
    view: &'a TrainView,
    confidence: Option<Confidence>,
}

impl Task for Lesson<'_> {
    fn items(&self) -> usize {
        self.view.rows().len()
    }

    fn loss(&self, net: &Interpreter, items: &[usize], at: &At) -> Result<BatchLoss, TrainingError> {
        let (d, classes) = (self.x.len() / self.items(), self.view.targets().ncols());
        let x: Vec<f32> = items.iter().flat_map(|&item| &self.x[item * d..(item + 1) * d]).copied().collect();
        let y: Vec<f64> = items.iter().flat_map(|&item| self.view.targets().row(item).to_vec()).collect();
        let y = CandleTensor::from_vec(y, (items.len(), classes), &Device::Cpu)?;
        let z = logits(net, x, items.len())?;
        let loss = match self.confidence {
            Some(confidence) => confidence.loss(&z, &y, at.step, at.steps)?,
            None => cross_entropy(&z, &y)?,
        };
        Ok(BatchLoss { loss, weight: items.len() as f64, tokens: items.len() })
    }
}

fn logits(net: &Interpreter, x: Vec<f32>, n: usize) -> Result<CandleTensor, TrainingError> {
    let d = x.len() / n.max(1);
    let x = CandleTensor::from_vec(x, (n, d), &Device::Cpu)?;
    let mut out = net.forward(&[("x".to_owned(), x)].into())?;
    let want = || TrainingError::Shape { name: "z".into(), got: vec![], want: "an output".into() };
    out.remove("z").ok_or_else(want)
}

struct Trained {
    store: Store,
    net: Interpreter,
    classes: usize,
}

impl Fitted for Trained {
    fn predict(&self, of: &[usize]) -> Result<Array2<f64>> {
        let run = || -> Result<Vec<f64>, TrainingError> {
            let z = logits(&self.net, rows(&self.store, of), of.len())?;
            let p = pilotfish_training::losses::log_softmax(&z)?.exp()?;
            Ok(p.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1()?)
        };
        let mut p = Array2::from_shape_vec((of.len(), self.classes), run().map_err(refused)?)
            .map_err(|_| SupervisionError::Shape { what: "logits", got: of.len(), want: self.classes })?;
        // Sums of f32 probabilities are not 1 in f64.
        for mut row in p.rows_mut() {
            let sum = row.sum();
            row.mapv_inplace(|p| p / sum);
        }
        Ok(p)
    }
}
