//! Pairs of responses with two goals that disagree: drawn ones, and messages with two attributes.

use std::sync::Arc;

use ndarray::{Array2, Axis};
use pilotfish_model::{StreamRng, Streams};
use pilotfish_supervision::autows::features::Principal;
use rand::Rng;
use rand_distr::StandardNormal;

use crate::error::Failure;
use crate::experiments::features::{components, tf_idf};
use crate::experiments::newsgroups::Group;

/// Pairs of one part of a world.
pub(super) struct Part {
    /// Differences of features, as each model sees them.
    pub(super) views: Vec<Array2<f64>>,
    /// Whether the first response is better by the supervised goal.
    pub(super) harmless: Vec<bool>,
    /// The same by the other goal.
    pub(super) helpful: Vec<bool>,
}

/// Pairs for the weak model's training, for transfer, of the other goal, and for the test.
pub(super) struct World {
    pub(super) gold: Part,
    pub(super) transfer: Part,
    pub(super) helpful: Part,
    pub(super) test: Part,
}

/// Dimensions of the drawn world, and how many each model sees; the last is the strong one.
pub(super) const SEEN: [usize; 5] = [4, 8, 12, 18, 24];
/// Cosine of the two goals.
const COSINE: f64 = -0.3;

/// Linear goals, noisy labels: `y ~ Bernoulli(s(4 <w, dx>))`, differences of deviation 1.5.
pub(super) fn drawn(seed: u64, cosine: Option<f64>) -> World {
    let streams = Streams::new(seed);
    let mut rng = streams.stream("goals");
    let d = SEEN[SEEN.len() - 1];
    let mut unit = |orthogonal_to: Option<&[f64]>| -> Vec<f64> {
        let mut w: Vec<f64> = (0..d).map(|_| rng.sample(StandardNormal)).collect();
        if let Some(other) = orthogonal_to {
            let along: f64 = w.iter().zip(other).map(|(a, b)| a * b).sum();
            w.iter_mut().zip(other).for_each(|(w, other)| *w -= along * other);
        }
        let norm = w.iter().map(|w| w * w).sum::<f64>().sqrt();
        w.into_iter().map(|w| w / norm).collect()
    };
    let goal = unit(None);
    let apart = unit(Some(&goal));
    let c = cosine.unwrap_or(COSINE);
    let other: Vec<f64> = goal.iter().zip(&apart).map(|(w, u)| c * w + (1.0 - c * c).sqrt() * u).collect();
    let part = |n: usize, name: &str| -> Part {
        let mut rng = streams.stream(name);
        let dx = Array2::from_shape_simple_fn((n, d), || 1.5 * rng.sample::<f64, _>(StandardNormal));
        let label = |w: &[f64], rng: &mut StreamRng| -> Vec<bool> {
            let p = |row: ndarray::ArrayView1<'_, f64>| {
                1.0 / (1.0 + (-4.0 * row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()).exp())
            };
            dx.rows().into_iter().map(|row| rng.random::<f64>() < p(row)).collect()
        };
        let (harmless, helpful) = (label(&goal, &mut rng), label(&other, &mut rng));
        let view = |seen: &usize| dx.select(Axis(1), &(0..*seen).collect::<Vec<_>>());
        Part { views: SEEN.iter().map(view).collect(), harmless, helpful }
    };
    World {
        gold: part(2000, "gold"),
        transfer: part(2000, "transfer"),
        helpful: part(2000, "helpful"),
        test: part(4000, "test"),
    }
}

/// The groups that messages are taken from. The supervised goal prefers vehicles to sports, the other one the second group of
/// each kind to the first.
pub(super) const GROUPS: [&str; 4] =
    ["rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey"];
/// Words of the weak model, and the directions that it has of them.
const WORDS: usize = 1000;
const DIRECTIONS: usize = 8;
/// Pairs of each part.
const PAIRS: usize = 1000;

/// Messages: words in 8 directions for the weak model, 32 components of MiniLM for the one between, 64 of SmolLM2 for the
/// strong one. In 60 % of the pairs the two goals disagree. No message is in two parts.
pub(super) fn messages(groups: &Arc<Vec<Group>>, seed: u64) -> Result<World, Failure> {
    let mut rng = Streams::new(seed).stream("messages");
    let texts: Vec<String> = groups.iter().flat_map(|group| group.texts.clone()).collect();
    let mut starts = vec![0];
    groups.iter().for_each(|group| starts.push(starts[starts.len() - 1] + group.texts.len()));
    // Each group in four parts.
    let mut parts: Vec<[Vec<usize>; 4]> = Vec::new();
    for range in starts.windows(2) {
        let mut rows: Vec<usize> = (range[0]..range[1]).collect();
        rand::seq::SliceRandom::shuffle(rows.as_mut_slice(), &mut rng);
        let quarter = rows.len() / 4;
        if quarter < 20 {
            return Err("--messages must leave at least 80 of each group".into());
        }
        parts.push([0, 1, 2, 3].map(|part| rows[part * quarter..(part + 1) * quarter].to_vec()));
    }
    let fit: Vec<usize> = parts.iter().flat_map(|parts| parts[..3].concat()).collect();
    let stack = |view: fn(&Group) -> &Array2<f64>| {
        ndarray::concatenate(Axis(0), &groups.iter().map(|group| view(group).view()).collect::<Vec<_>>())
    };
    let words = tf_idf(&texts, &fit, WORDS);
    let directions = Principal::fit(words.select(Axis(0), &fit).view(), DIRECTIONS, seed)?;
    let words = directions.apply(words.view())?;
    let scale = words.std(0.0).max(1e-12);
    let stores = [
        words / scale,
        components(&stack(|group| &group.minilm)?, &fit, 32, seed)?,
        components(&stack(|group| &group.smollm2)?, &fit, 64, seed)?,
    ];
    let mut part = |at: usize| -> Part {
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        let (mut harmless, mut helpful) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let disagree = rng.random_bool(0.6);
            // Vehicles of the first kind against sports of the second, or the other way round.
            let kinds = if disagree { [0, 3] } else { [1, 2] };
            let [vehicle, sport] = kinds.map(|kind| {
                let of = &parts[kind][at];
                of[rng.random_range(0..of.len())]
            });
            let first = rng.random_bool(0.5);
            let (a, b) = if first { (vehicle, sport) } else { (sport, vehicle) };
            firsts.push(a);
            seconds.push(b);
            harmless.push(first);
            helpful.push(first != disagree);
        }
        let view = |store: &Array2<f64>| store.select(Axis(0), &firsts) - store.select(Axis(0), &seconds);
        Part { views: stores.iter().map(view).collect(), harmless, helpful }
    };
    Ok(World { gold: part(0), transfer: part(1), helpful: part(2), test: part(3) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn goals_have_the_angle_they_should() {
        for cosine in [-0.3, 1.0] {
            let world = drawn(3, Some(cosine));
            let same = world.test.harmless.iter().zip(&world.test.helpful).filter(|(a, b)| a == b).count()
                as f64
                / 4000.0;
            // Steep labels are nearly signs: arccos(c) / pi differ.
            let want = 1.0 - f64::acos(cosine) / std::f64::consts::PI;
            assert!((same - want).abs() < 0.15, "{same} {want}");
            assert_eq!(world.test.views.iter().map(Array2::ncols).collect::<Vec<_>>(), SEEN);
        }
    }
}
