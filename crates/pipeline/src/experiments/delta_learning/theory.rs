//! The logistic regression and the counted sections.

use pilotfish_model::Streams;
use pilotfish_supervision::delta_learning::{
    Counts, Lesson, Pairs, accuracy, cosine, imitation_hurts_above, moved,
};

use super::Part;
use crate::error::Failure;
use crate::experiments::page::{lines, mean};
use crate::plots::{Point, Series};
use crate::steps::Run;
use crate::tables::Table;

/// Shares of the student's error in both teachers' errors.
pub(super) const SHARED: [f64; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9];
/// Cosines to the truth: student, better and worse teacher.
const COSINES: [f64; 3] = [0.8, 0.6, 0.2];
const STEPS: usize = 200;
const RATE: f64 = 0.1;

/// Teachers and student in `d` dimensions; the first dimension is the truth, the second the student's error.
fn world(shared: f64, d: usize) -> [Vec<f64>; 3] {
    let [student, better, worse] = COSINES;
    let rest = (1.0 - shared * shared).sqrt();
    let at = |cosine: f64, own: usize| {
        let error = (1.0 - cosine * cosine).sqrt();
        let mut direction = vec![0.0; d];
        direction[0] = cosine;
        direction[1] = error * shared;
        direction[own] += error * rest;
        direction
    };
    let mut start = vec![0.0; d];
    start[0] = student;
    start[1] = (1.0 - student * student).sqrt();
    [start, at(better, 2), at(worse, 3)]
}

fn path(lesson: Lesson, shared: f64, items: usize, d: usize, seed: u64) -> Result<Vec<f64>, Failure> {
    let [start, better, worse] = world(shared, d);
    let mut rng = Streams::new(seed).stream("items");
    let pairs = Pairs::drawn(items, &better, &worse, &mut rng)?;
    let mut truth = vec![0.0; d];
    truth[0] = 1.0;
    let path = pairs.descend(lesson, &start, RATE, STEPS)?;
    Ok(path.iter().map(|student| accuracy(cosine(student, &truth))).collect())
}

pub(super) fn run(run: &mut Run, seeds: u64, items: usize, d: usize) -> Result<Part, Failure> {
    let mut table = Table::new(
        format!(
            "Logistic regression, {d} dimensions, {items} items: accuracy of a student at {:.3} whose teachers are right on \
             {:.3} and {:.3}; means over seeds",
            accuracy(COSINES[0]),
            accuracy(COSINES[1]),
            accuracy(COSINES[2])
        ),
        &["shared error", "lesson", "best", "at step", "closed form's best", "after 200 steps"],
    );
    let mut part = Part::default();
    let mut series = Vec::new();
    for shared in SHARED {
        let mut found: [Vec<Vec<f64>>; 2] = Default::default();
        for seed in 1..=seeds {
            let both = run.step(&format!("regression, shared {shared}, seed {seed}"), || {
                let delta = path(Lesson::Delta { beta: 1.0 }, shared, items, d, seed)?;
                Ok::<_, Failure>([delta, path(Lesson::Imitation, shared, items, d, seed)?])
            })?;
            both.into_iter().zip(&mut found).for_each(|(path, to)| to.push(path));
        }
        let [start, better, worse] = world(shared, 4);
        let delta: Vec<f64> = better.iter().zip(&worse).map(|(c, r)| c - r).collect();
        for ((lesson, paths), step) in ["pairs", "imitation"].into_iter().zip(&found).zip([&delta, &better]) {
            let means: Vec<f64> =
                (0..=STEPS).map(|at| mean(&paths.iter().map(|path| path[at]).collect::<Vec<_>>())).collect();
            let best = (0..=STEPS).fold(0, |a, b| if means[b] > means[a] { b } else { a });
            let along = |rate: f64| accuracy(cosine(&moved(&start, step, rate), &[1.0, 0.0, 0.0, 0.0]));
            let closed = (0..=4000).map(|at| along(f64::from(at) / 2000.0)).fold(0.0, f64::max);
            table.row([
                format!("{shared:.1}"),
                lesson.to_owned(),
                format!("{:.4}", means[best]),
                best.to_string(),
                format!("{closed:.4}"),
                format!("{:.4}", means[STEPS]),
            ]);
            part.rows.push(serde_json::json!({
                "part": "regression", "shared": shared, "lesson": lesson, "accuracy": means, "closed form": closed,
            }));
            if [0.0, 0.8].contains(&shared) {
                let points =
                    means.iter().enumerate().map(|(at, y)| Point { x: at as f64, y: *y, interval: None });
                series.push(Series { name: format!("{lesson}, shared {shared}"), points: points.collect() });
            }
            if shared == 0.8 {
                part.summary.push_str(&format!(
                    "{} {lesson}: {:.3} to {:.3} at best, {:.3} after {STEPS} steps.",
                    if part.summary.is_empty() {
                        "Logistic regression with shared errors (0.8):"
                    } else {
                        ""
                    },
                    means[0],
                    means[best],
                    means[STEPS]
                ));
            }
        }
    }
    let threshold = imitation_hurts_above(COSINES[0], COSINES[1]);
    part.summary.push_str(&format!(" Imitation hurts at every step above a share of {threshold:.4}."));
    part.tables.push(table);
    part.plots.push(lines("Logistic regression: accuracy along the path", "step", "accuracy", series));
    Ok(part)
}

/// How a student that writes 1 to 9 sections changes: by pairs of 3 and 2, reversed, tied, and by imitation of 3.
pub(super) fn counts() -> Result<Part, Failure> {
    const STEPS: usize = 300;
    // A model that writes about four.
    let own: Vec<f64> = (1..=9).map(|size| -0.15 * f64::from(size - 4) * f64::from(size - 4)).collect();
    let start = Counts { slope: 0.0, own };
    let mut part = Part::default();
    let mut table = Table::new(
        "Sections of a text: expected number after 300 steps, from the start",
        &["parameters", "lesson", "start", "end", "probability of more than 3"],
    );
    let mut series = Vec::new();
    for (parameters, rates) in [("shared", [0.02, 0.0]), ("own", [0.0, 0.02]), ("both", [0.02, 0.02])] {
        for (lesson, pair) in [
            ("3 over 2", Some([3, 2])),
            ("2 over 3", Some([2, 3])),
            ("3 over 3", Some([3, 3])),
            ("imitation of 3", None),
        ] {
            let mut counts = start.clone();
            let mut means = vec![counts.mean()];
            for _ in 0..STEPS {
                match pair {
                    Some(pair) => counts.prefer(&start, pair, 1.0, rates)?,
                    None => counts.imitate(3, rates)?,
                }
                means.push(counts.mean());
            }
            table.row([
                parameters.to_owned(),
                lesson.to_owned(),
                format!("{:.2}", means[0]),
                format!("{:.2}", means[STEPS]),
                format!("{:.2}", counts.law()[3..].iter().sum::<f64>()),
            ]);
            part.rows.push(serde_json::json!({
                "part": "sections", "parameters": parameters, "lesson": lesson, "mean": means,
            }));
            if parameters != "both" && lesson != "3 over 3" {
                let points =
                    means.iter().enumerate().map(|(at, y)| Point { x: at as f64, y: *y, interval: None });
                series.push(Series { name: format!("{lesson}, {parameters}"), points: points.collect() });
            }
        }
    }
    part.tables.push(table);
    part.plots.push(lines("Expected number of sections", "step", "sections", series));
    Ok(part)
}
