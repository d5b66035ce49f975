use std::io::{BufRead, Write};

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::{Task, TrainView, hard};
use crate::{Result, SupervisionError};

/// A line of a file of weak labels, as training may see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelRow {
    /// The item.
    pub id: u64,
    /// Its group.
    pub group: u64,
    /// Who labelled it.
    pub weak_model: String,
    /// Seed of that model's training.
    pub seed: u64,
    /// Probability of each class.
    pub p: Vec<f64>,
    /// The most probable class.
    pub hard: usize,
}

/// The columns of a file of weak labels that only an evaluation may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeakEvaluation {
    /// The item.
    pub id: u64,
    /// Its true class.
    pub gt: usize,
    /// Whether the label is right.
    pub weak_ok: bool,
}

/// What a supervisor says of items. There is no truth in it.
#[derive(Clone, Debug, PartialEq)]
pub struct WeakLabels {
    ids: Vec<u64>,
    groups: Vec<u64>,
    rows: Vec<usize>,
    p: Array2<f64>,
}

impl WeakLabels {
    pub(super) fn new(task: &Task, rows: &[usize], p: Array2<f64>) -> Result<Self> {
        let take = |list: &[u64]| rows.iter().map(|&row| list[row]).collect();
        Ok(Self { ids: take(task.ids()), groups: take(task.groups()), rows: rows.to_vec(), p })
    }

    /// Probabilities `[items, classes]`.
    pub fn probabilities(&self) -> &Array2<f64> {
        &self.p
    }

    /// Rows of the feature store.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// For a student.
    pub fn train_view(&self) -> TrainView {
        TrainView::new(self.rows.clone(), self.p.clone())
    }

    /// The same with each label hardened to its most probable class.
    pub fn hardened(&self) -> Self {
        let mut p = Array2::zeros(self.p.dim());
        hard(&self.p).into_iter().enumerate().for_each(|(row, class)| p[[row, class]] = 1.0);
        Self { p, ..self.clone() }
    }

    /// Share of the labels that are right.
    ///
    /// # Errors
    /// A task that lacks a row.
    pub fn accuracy(&self, task: &Task) -> Result<f64> {
        let truth = task.truth(&self.rows)?;
        let right = hard(&self.p).iter().zip(&truth).filter(|(said, truth)| said == truth).count();
        Ok(right as f64 / truth.len().max(1) as f64)
    }

    /// Writes JSON lines: what training may see, and `gt` and `weak_ok` beside it if a task is given.
    ///
    /// # Errors
    /// A task that lacks a row; a writer that fails.
    pub fn write(&self, out: &mut dyn Write, model: &str, seed: u64, truth: Option<&Task>) -> Result<()> {
        #[derive(Serialize)]
        struct Line {
            #[serde(flatten)]
            label: LabelRow,
            #[serde(flatten)]
            evaluation: Option<Gold>,
        }
        #[derive(Serialize)]
        struct Gold {
            gt: usize,
            weak_ok: bool,
        }
        let truth = truth.map(|task| task.truth(&self.rows)).transpose()?;
        let fail = |source| SupervisionError::Io { path: "weak labels".into(), source };
        for (at, class) in hard(&self.p).into_iter().enumerate() {
            let label = LabelRow {
                id: self.ids[at],
                group: self.groups[at],
                weak_model: model.to_owned(),
                seed,
                p: self.p.row(at).to_vec(),
                hard: class,
            };
            let gold = truth.as_ref().map(|truth| Gold { gt: truth[at], weak_ok: truth[at] == class });
            let line = serde_json::to_string(&Line { label, evaluation: gold });
            let line = line.map_err(|source| fail(source.into()))?;
            writeln!(out, "{line}").map_err(fail)?;
        }
        Ok(())
    }

    /// Reads JSON lines for training. Columns that training may not see are not kept. Ids are looked up in the task.
    ///
    /// # Errors
    /// A line that is not one of labels, that labels an unknown or repeated item, or whose probabilities are not a
    /// distribution over the task's classes; no lines.
    pub fn read(input: impl BufRead, name: &str, task: &Task) -> Result<Self> {
        let known: std::collections::HashMap<u64, usize> =
            task.ids().iter().enumerate().map(|(row, &id)| (id, row)).collect();
        let mut seen = std::collections::HashSet::new();
        let (mut rows, mut p) = (Vec::new(), Vec::new());
        for_lines(input, name, |line: LabelRow| {
            let row = known.get(&line.id).copied().ok_or("its id is not one of the task's")?;
            if !seen.insert(row) {
                return Err("its id occurs twice");
            }
            if task.groups()[row] != line.group {
                return Err("its group is not the task's");
            }
            let sum: f64 = line.p.iter().sum();
            let good = line.p.len() == task.classes() && line.p.iter().all(|p| *p >= 0.0);
            if !(good && (sum - 1.0).abs() < 1e-6) {
                return Err("p is not a distribution over the task's classes");
            }
            rows.push(row);
            p.extend(line.p);
            Ok(())
        })?;
        if rows.is_empty() {
            return Err(SupervisionError::Empty { what: "weak labels" });
        }
        let p = Array2::from_shape_vec((rows.len(), task.classes()), p).map_err(|_| {
            SupervisionError::Shape { what: "probabilities", got: rows.len(), want: task.classes() }
        })?;
        Self::new(task, &rows, p)
    }
}

impl WeakEvaluation {
    /// Reads the evaluation's columns of a file of weak labels.
    ///
    /// # Errors
    /// A line that lacks them.
    pub fn read(input: impl BufRead, name: &str) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for_lines(input, name, |line: Self| {
            found.push(line);
            Ok(())
        })?;
        Ok(found)
    }
}

/// Each line that is not blank, parsed; a byte order mark and carriage returns are no part of it.
fn for_lines<T: serde::de::DeserializeOwned>(
    input: impl BufRead,
    name: &str,
    mut take: impl FnMut(T) -> Result<(), &'static str>,
) -> Result<()> {
    for (index, line) in input.lines().enumerate() {
        let refuse = |why: String| SupervisionError::Line { path: name.into(), line: index as u64 + 1, why };
        let line = line.map_err(|error| refuse(error.to_string()))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let parsed = serde_json::from_str(line).map_err(|error| refuse(error.to_string()))?;
        take(parsed).map_err(|why| refuse(why.to_owned()))?;
    }
    Ok(())
}
