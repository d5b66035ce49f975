//! Worlds: tasks with a supervisor and a student, whose answer is known beforehand.

use std::sync::Arc;

use ndarray::{Array2, Axis};
use pilotfish_model::Streams;
use pilotfish_supervision::heads::{LogisticConfig, TreeConfig};
use pilotfish_supervision::weak_to_strong::{SplitConfig, Task, Trainee};
use rand::Rng;
use rand_distr::StandardNormal;

use super::real::Sources;
use crate::error::Failure;
use crate::experiments::probe::{Flipping, Grown, Probe, Regression, Store};

/// A world.
pub(super) struct World {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// Whether its items were collected rather than drawn.
    pub(super) real: bool,
    pub(super) build: fn(&Sources, u64) -> Result<Built, Failure>,
}

/// A world of one seed.
pub(super) struct Built {
    pub(super) task: Task,
    pub(super) teachers: Vec<Box<dyn Trainee>>,
    pub(super) student: Probe,
    pub(super) split: SplitConfig,
}

/// Worlds of drawn items.
pub(super) const DRAWN: &[World] = &[
    World {
        name: "noise-0.2",
        about: "labels flipped at random, 20 %; linear probe on 64 features: errors that cannot be imitated",
        real: false,
        build: |_, seed| noise(seed, 0.2),
    },
    World { name: "noise-0.3", about: "the same, 30 %", real: false, build: |_, seed| noise(seed, 0.3) },
    World { name: "noise-0.4", about: "the same, 40 %", real: false, build: |_, seed| noise(seed, 0.4) },
    World {
        name: "tree",
        about: "decision tree of depth 5 on 300 items; linear probe on the same 20 features, truth linear: errors of \
                another kind",
        real: false,
        build: |_, seed| tree(seed, Truth::Linear),
    },
    World {
        name: "subset",
        about: "regression on 8 of 20 features; linear probe on all 20: errors that the student can imitate exactly",
        real: false,
        build: |_, seed| subset(seed),
    },
    World {
        name: "chain",
        about: "the tree, then a probe on 10 features, then one on all 20: bootstrapping",
        real: false,
        build: |_, seed| chain(seed),
    },
    World {
        name: "chance",
        about: "classes that nothing says anything about: a gap that is not there",
        real: false,
        build: |_, seed| tree(seed, Truth::Chance),
    },
];

const TEST: usize = 2000;

#[derive(Clone, Copy, PartialEq)]
enum Truth {
    Linear,
    Chance,
}

/// Gaussian features and classes by the side of a random plane, or by coin.
fn world(seed: u64, n: usize, d: usize, truth: Truth) -> Result<(Task, Array2<f64>, Vec<usize>), Failure> {
    let mut rng = Streams::new(seed).stream("world");
    let w: Vec<f64> = (0..d).map(|_| rng.sample(StandardNormal)).collect();
    let x = Array2::from_shape_simple_fn((n, d), || rng.sample::<f64, _>(StandardNormal));
    let side = |row: ndarray::ArrayView1<'_, f64>| row.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>() > 0.0;
    let y: Vec<usize> = match truth {
        Truth::Linear => x.rows().into_iter().map(|row| usize::from(side(row))).collect(),
        Truth::Chance => (0..n).map(|_| rng.random_range(0..2)).collect(),
    };
    let ids: Vec<u64> = (0..n as u64).collect();
    Ok((Task::new(ids.clone(), ids, y.clone(), 2)?, x, y))
}

/// Parts of these sizes, which are all items.
pub(super) fn parts(sizes: [usize; 3]) -> SplitConfig {
    let all: usize = sizes.iter().sum();
    SplitConfig { shares: sizes.map(|size| size as f64 / all as f64), most: [0; 3] }
}

/// The note's probe: Adam with a cosine, batches of 32.
pub(super) fn probe(store: Store) -> Probe {
    Probe { store, hidden: None, confidence: None, lr: 1e-2, epochs: 20.0, batch: 32 }
}

pub(super) fn columns(x: &Array2<f64>, count: usize) -> Array2<f64> {
    x.select(Axis(1), &(0..count).collect::<Vec<_>>())
}

fn noise(seed: u64, share: f64) -> Result<Built, Failure> {
    let sizes = [300, 1200, TEST];
    let (task, x, truth) = world(seed, sizes.iter().sum(), 64, Truth::Linear)?;
    let teachers: Vec<Box<dyn Trainee>> = vec![Box::new(Flipping { truth, share })];
    Ok(Built { task, teachers, student: probe(Arc::new(x)), split: parts(sizes) })
}

fn tree(seed: u64, truth: Truth) -> Result<Built, Failure> {
    let sizes = [300, 600, TEST];
    let (task, x, _) = world(seed, sizes.iter().sum(), 20, truth)?;
    let store = Arc::new(x);
    let teachers: Vec<Box<dyn Trainee>> = vec![Box::new(Grown(store.clone(), TreeConfig::default()))];
    Ok(Built { task, teachers, student: probe(store), split: parts(sizes) })
}

fn subset(seed: u64) -> Result<Built, Failure> {
    let sizes = [300, 600, TEST];
    let (task, x, _) = world(seed, sizes.iter().sum(), 20, Truth::Linear)?;
    let few = Arc::new(columns(&x, 8));
    let teachers: Vec<Box<dyn Trainee>> = vec![Box::new(Regression(few, LogisticConfig::default()))];
    Ok(Built { task, teachers, student: probe(Arc::new(x)), split: parts(sizes) })
}

fn chain(seed: u64) -> Result<Built, Failure> {
    let sizes = [600, 600, TEST];
    let (task, x, _) = world(seed, sizes.iter().sum(), 20, Truth::Linear)?;
    let half = Arc::new(columns(&x, 10));
    let store = Arc::new(x);
    let teachers: Vec<Box<dyn Trainee>> =
        vec![Box::new(Grown(store.clone(), TreeConfig::default())), Box::new(probe(half))];
    Ok(Built { task, teachers, student: probe(store), split: parts(sizes) })
}
