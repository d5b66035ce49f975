//! Worlds of collected items: digits, part of MNIST, and messages of two newsgroups.

use std::sync::Arc;

use ndarray::{Array2, Axis};
use pilotfish_supervision::heads::{LogisticConfig, TreeConfig};
use pilotfish_supervision::weak_to_strong::{SplitConfig, Task, Trainee};

use super::worlds::{Built, World, columns, parts, probe};
use crate::datasets::{DIGITS, ImageFile, MNIST_5K, read_images};
use crate::error::Failure;
use crate::experiments::features::{Model, components, tf_idf};
use crate::experiments::probe::{Flipping, Grown, Probe, Regression, Store};
use crate::experiments::{Context, newsgroups};

/// Worlds of collected items.
pub(super) const COLLECTED: &[World] = &[
    World {
        name: "digits-tree",
        about: "digit at least 5: decision tree of depth 5 on 300 images; linear probe on their 64 pixels",
        real: true,
        build: digits_tree,
    },
    World {
        name: "digits-noise-0.2",
        about: "digit at least 5: labels flipped at random, 20 %; linear probe on pixels",
        real: true,
        build: |sources, seed| digits_noise(sources, seed, 0.2),
    },
    World {
        name: "digits-noise-0.4",
        about: "the same, 40 %",
        real: true,
        build: |sources, seed| digits_noise(sources, seed, 0.4),
    },
    World {
        name: "digits-rows",
        about: "digit at least 5: regression on 8 sums of rows, which the probe on pixels can imitate exactly",
        real: true,
        build: digits_rows,
    },
    World {
        name: "mnist-hop",
        about: "ten digits: tree of depth 5 on 28 sums of rows; a hidden layer of 64 on 784 pixels",
        real: true,
        build: |sources, seed| mnist(sources, seed, false),
    },
    World {
        name: "mnist-chain",
        about: "the same with a linear probe on 49 means of 4 by 4 pixels between the two: bootstrapping",
        real: true,
        build: |sources, seed| mnist(sources, seed, true),
    },
    World {
        name: "news-tree",
        about: "cars or motorcycles: tree of depth 3 on weighted words of 300 messages; linear probe on 32 components of \
                MiniLM",
        real: true,
        build: |sources, seed| news(sources, seed, Teacher::Tree, Model::MiniLm),
    },
    World {
        name: "news-few",
        about: "the same supervised by a regression on the words of 40 messages: a large gap",
        real: true,
        build: |sources, seed| news(sources, seed, Teacher::Few, Model::MiniLm),
    },
    World {
        name: "news-subset",
        about: "the same supervised by a regression on the first 4 of the student's own components: no other information",
        real: true,
        build: |sources, seed| news(sources, seed, Teacher::Subset, Model::MiniLm),
    },
    World {
        name: "news-smollm2",
        about: "the tree of news-tree; linear probe on 64 components of SmolLM2-135M's mean states",
        real: true,
        build: |sources, seed| news(sources, seed, Teacher::Tree, Model::SmolLm2),
    },
    World {
        name: "news-few-smollm2",
        about: "the supervisor of news-few; the student of news-smollm2",
        real: true,
        build: |sources, seed| news(sources, seed, Teacher::Few, Model::SmolLm2),
    },
];

/// What the worlds are made of, as far as it is needed.
#[derive(Default)]
pub(super) struct Sources {
    digits: Option<Images>,
    mnist: Option<Images>,
    messages: Option<Messages>,
}

struct Images {
    pixels: Store,
    classes: Vec<usize>,
}

struct Messages {
    texts: Vec<String>,
    classes: Vec<usize>,
    minilm: Array2<f64>,
    smollm2: Array2<f64>,
}

/// Words that a supervisor of messages sees.
const WORDS: usize = 1000;
const NEWS: [&str; 2] = ["rec.autos", "rec.motorcycles"];

impl Sources {
    /// Loads what worlds need.
    pub(super) fn load(context: &Context, worlds: &[&World]) -> Result<Self, Failure> {
        let needs = |prefix: &str| worlds.iter().any(|world| world.name.starts_with(prefix));
        let images = |name, file: ImageFile| -> Result<Images, Failure> {
            let read = read_images(&context.model(name)?, file)?;
            let pixels = Array2::from_shape_vec((file.items, file.pixels), read.pixels)?;
            Ok(Images { pixels: Arc::new(pixels), classes: read.classes })
        };
        Ok(Self {
            digits: needs("digits").then(|| images("digits", DIGITS)).transpose()?,
            mnist: needs("mnist").then(|| images("mnist-5k", MNIST_5K)).transpose()?,
            messages: needs("news").then(|| Messages::load(context)).transpose()?,
        })
    }

    fn digits(&self) -> Result<&Images, Failure> {
        self.digits.as_ref().ok_or_else(|| "digits were not loaded".into())
    }
}

impl Messages {
    fn load(context: &Context) -> Result<Self, Failure> {
        let most: usize = context.options().get("messages")?;
        let groups = newsgroups::load(context, &NEWS, most / 2)?;
        let classes = (0..groups.len()).flat_map(|class| vec![class; groups[class].texts.len()]).collect();
        let views = |view: fn(&newsgroups::Group) -> &Array2<f64>| {
            ndarray::concatenate(Axis(0), &groups.iter().map(|group| view(group).view()).collect::<Vec<_>>())
        };
        let (minilm, smollm2) = (views(|group| &group.minilm)?, views(|group| &group.smollm2)?);
        Ok(Self {
            texts: groups.into_iter().flat_map(|group| group.texts).collect(),
            classes,
            minilm,
            smollm2,
        })
    }
}

/// Items that are each their own group.
fn task(classes: Vec<usize>, count: usize) -> Result<Task, Failure> {
    let ids: Vec<u64> = (0..classes.len() as u64).collect();
    Ok(Task::new(ids.clone(), ids, classes, count)?)
}

fn at_least_five(images: &Images) -> Vec<usize> {
    images.classes.iter().map(|class| usize::from(*class >= 5)).collect()
}

fn digits_tree(sources: &Sources, _: u64) -> Result<Built, Failure> {
    let images = sources.digits()?;
    let teachers: Vec<Box<dyn Trainee>> = vec![Box::new(Grown(images.pixels.clone(), TreeConfig::default()))];
    let split = parts([300, 600, images.classes.len() - 900]);
    Ok(Built {
        task: task(at_least_five(images), 2)?,
        teachers,
        student: probe(images.pixels.clone()),
        split,
    })
}

fn digits_noise(sources: &Sources, _: u64, share: f64) -> Result<Built, Failure> {
    let images = sources.digits()?;
    let truth = at_least_five(images);
    let teachers: Vec<Box<dyn Trainee>> = vec![Box::new(Flipping { truth: truth.clone(), share })];
    let split = parts([100, 1200, images.classes.len() - 1300]);
    Ok(Built { task: task(truth, 2)?, teachers, student: probe(images.pixels.clone()), split })
}

/// Sums of the rows of square images.
pub(in crate::experiments) fn row_sums(pixels: &Array2<f64>) -> Array2<f64> {
    let side = (pixels.ncols() as f64).sqrt() as usize;
    Array2::from_shape_fn((pixels.nrows(), side), |(item, row)| {
        (0..side).map(|column| pixels[[item, row * side + column]]).sum()
    })
}

/// Means of blocks of square images.
fn pooled(pixels: &Array2<f64>, block: usize) -> Array2<f64> {
    let side = (pixels.ncols() as f64).sqrt() as usize;
    let few = side / block;
    Array2::from_shape_fn((pixels.nrows(), few * few), |(item, at)| {
        let (top, left) = (at / few * block, at % few * block);
        let inside = (0..block * block).map(|i| (top + i / block) * side + left + i % block);
        inside.map(|pixel| pixels[[item, pixel]]).sum::<f64>() / (block * block) as f64
    })
}

fn digits_rows(sources: &Sources, _: u64) -> Result<Built, Failure> {
    let images = sources.digits()?;
    let sums = Arc::new(row_sums(&images.pixels));
    let teachers: Vec<Box<dyn Trainee>> = vec![Box::new(Regression(sums, LogisticConfig::default()))];
    let split = parts([300, 600, images.classes.len() - 900]);
    Ok(Built {
        task: task(at_least_five(images), 2)?,
        teachers,
        student: probe(images.pixels.clone()),
        split,
    })
}

fn mnist(sources: &Sources, _: u64, chain: bool) -> Result<Built, Failure> {
    let images = sources.mnist.as_ref().ok_or("images of MNIST were not loaded")?;
    let sums = Arc::new(row_sums(&images.pixels));
    let mut teachers: Vec<Box<dyn Trainee>> = vec![Box::new(Grown(sums, TreeConfig::default()))];
    if chain {
        teachers.push(Box::new(probe(Arc::new(pooled(&images.pixels, 4)))));
    }
    let student = Probe { hidden: Some(64), lr: 1e-3, epochs: 10.0, ..probe(images.pixels.clone()) };
    let split = parts([1500, 1500, images.classes.len() - 3000]);
    Ok(Built { task: task(images.classes.clone(), 10)?, teachers, student, split })
}

#[derive(Clone, Copy, PartialEq)]
enum Teacher {
    Tree,
    Few,
    Subset,
}

fn news(sources: &Sources, seed: u64, teacher: Teacher, model: Model) -> Result<Built, Failure> {
    let messages = sources.messages.as_ref().ok_or("messages were not loaded")?;
    let n = messages.classes.len();
    let weak = if teacher == Teacher::Few { 40 } else { 300 };
    if n < 1000 {
        return Err("--messages must leave at least 1000".into());
    }
    let split = SplitConfig { most: [weak, 500, 0], ..parts([300, 500, n - 800]) };
    let task = task(messages.classes.clone(), 2)?;
    let drawn = task.split(&split, seed)?;
    let fit: Vec<usize> = drawn.weak.iter().chain(&drawn.transfer).copied().collect();
    let store: Store = Arc::new(match model {
        Model::MiniLm => components(&messages.minilm, &fit, 32, seed)?,
        Model::SmolLm2 => components(&messages.smollm2, &fit, 64, seed)?,
    });
    let words = || Arc::new(tf_idf(&messages.texts, &fit, WORDS));
    let supervisor: Box<dyn Trainee> = match teacher {
        Teacher::Tree => Box::new(Grown(words(), TreeConfig { depth: 3, ..TreeConfig::default() })),
        Teacher::Few => Box::new(Regression(words(), LogisticConfig::default())),
        Teacher::Subset => Box::new(Regression(Arc::new(columns(&store, 4)), LogisticConfig::default())),
    };
    let student = Probe { epochs: 5.0, ..probe(store) };
    Ok(Built { task, teachers: vec![supervisor], student, split })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_means_of_images_by_hand() {
        let image = Array2::from_shape_fn((1, 16), |(_, at)| at as f64);
        assert_eq!(row_sums(&image).row(0).to_vec(), [6.0, 22.0, 38.0, 54.0]);
        // 0 1 4 5; 2 3 6 7; and so on.
        assert_eq!(pooled(&image, 2).row(0).to_vec(), [2.5, 4.5, 10.5, 12.5]);
    }

    #[test]
    fn names_say_what_is_loaded() {
        for world in COLLECTED {
            assert!(
                ["digits", "mnist", "news"].iter().any(|kind| world.name.starts_with(kind)) && world.real
            );
        }
    }
}
