//! How experiments come to a result: when they began, what every result file holds, and what is shown at the end.

use pilotfish_evaluation::{Effect, Interval, PairedConfig};
use serde_json::Value as Json;

use super::{Context, Experiment, Finished, Outcome, width_cost};
use crate::error::Failure;
use crate::machine::{self, Machine};
use crate::plots::{Kind, Plot, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// When an experiment began, and how busy the machine was.
pub(super) struct Began {
    time: String,
    load: Option<f64>,
}

impl Began {
    pub(super) fn now() -> Self {
        Self { time: machine::now(), load: machine::load() }
    }

    /// Writes a result, filling in where and when it was made. Versions are those at the end, when ONNX Runtime is
    /// loaded wherever it is used.
    pub(super) fn write(self, run: &Run, mut result: ResultFile) -> Result<(ResultFile, Finished), Failure> {
        run.finish();
        result.versions = width_cost::versions();
        result.commit = machine::commit(std::path::Path::new("."));
        result.machine = Machine::here();
        result.load = [self.load, machine::load()];
        result.time = [self.time, machine::now()];
        let (path, report) = result.write(run.folder())?;
        Ok((result, Finished { result: Some(path), report: Some(report) }))
    }

    /// Writes a result and shows its tables and words.
    pub(super) fn publish(self, context: &Context, run: &Run, result: ResultFile) -> Outcome {
        let (result, finished) = self.write(run, result)?;
        for table in &result.tables {
            context.show(&format!("{}\n", table.terminal()));
        }
        show_words(context, &result);
        Ok(finished)
    }
}

/// Shows a result's summary and notes.
pub(super) fn show_words(context: &Context, result: &ResultFile) {
    context.show(&result.summary);
    for note in &result.notes {
        context.show(&format!("- {note}"));
    }
}

/// A finished experiment, but for what every result has.
pub(super) struct Page {
    pub(super) experiment: &'static Experiment,
    pub(super) title: String,
    pub(super) summary: String,
    pub(super) seeds: Vec<u64>,
    pub(super) rows: Vec<Json>,
    pub(super) tables: Vec<Table>,
    pub(super) plots: Vec<Plot>,
    pub(super) notes: Vec<String>,
}

impl Page {
    /// Writes the result and shows it.
    pub(super) fn write(self, context: &Context, run: &Run, began: Began) -> Outcome {
        let result = ResultFile {
            experiment: self.experiment.name.into(),
            title: self.title,
            summary: self.summary,
            config: serde_json::json!({ "options": context.options() }),
            seeds: self.seeds,
            rows: self.rows,
            tables: self.tables,
            plots: self.plots,
            notes: self.notes,
            ..ResultFile::default()
        };
        began.publish(context, run, result)
    }
}

/// A plot of lines.
pub(super) fn lines(title: &str, x: &str, y: &str, series: Vec<Series>) -> Plot {
    Plot { title: title.into(), x: x.into(), y: y.into(), kind: Kind::Lines, series, reference: None }
}

/// The mean of some values, 0 of none.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Wilson's 95 % interval of a share.
pub(super) fn wilson(part: usize, whole: usize) -> Interval {
    let (n, z) = (whole.max(1) as f64, 1.96f64);
    let p = part as f64 / n;
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// A mean with its bootstrap interval.
pub(super) fn mean_with_interval(values: &[f64]) -> Result<(f64, Option<Interval>), Failure> {
    let zeros = vec![0.0; values.len()];
    let effect = pilotfish_evaluation::compare(values, &zeros, &PairedConfig::default())?.difference;
    Ok((effect.value, effect.interval))
}

/// A number to three places, with its interval where there is one.
pub(super) fn bracketed(value: f64, interval: Option<Interval>) -> String {
    match interval {
        Some(Interval { low, high }) => format!("{value:.3} [{low:.3}, {high:.3}]"),
        None => format!("{value:.3}"),
    }
}

/// A difference to three places, with its sign, and with its interval where there is one.
pub(super) fn difference(effect: &Effect) -> String {
    match effect.interval {
        Some(Interval { low, high }) => format!("{:+.3} [{low:+.3}, {high:+.3}]", effect.value),
        None => format!("{:+.3}", effect.value),
    }
}

/// A share in per cent, with its interval where there is one.
pub(super) fn percent(value: f64, interval: Option<Interval>) -> String {
    match interval {
        Some(Interval { low, high }) => {
            format!("{:.1} [{:.1}, {:.1}]", 100.0 * value, 100.0 * low, 100.0 * high)
        }
        None => format!("{:.1}", 100.0 * value),
    }
}
