//! What a step of several rows costs: the curve `t(w) / t(1)` that decides whether any speculation can win.

use std::time::{Duration, Instant};

use pilotfish_architectures::Checkpoint;
use pilotfish_evaluation::median;
use pilotfish_graph::Storage;
use pilotfish_model::{CausalModel, LogitForm, RowSet, Step, Steps, Token};
use pilotfish_runtime::{LoadOptions, OnnxCausal, library};
use serde::{Deserialize, Serialize};

use super::{Choice, Context, Experiment, Finished, Outcome};
use crate::machine::{self, Machine};
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub const WIDTH_COST: Experiment = Experiment {
    name: "width-cost",
    about: "what a step of 1 to 16 rows costs, by storage and threads",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        Choice {
            name: "model",
            default: "smollm2-135m",
            about: "a model's name, or the path of a checkpoint",
        },
        Choice { name: "storage", default: "f32,int8,int4", about: "storages: f32, int8, int4" },
        Choice { name: "threads", default: "1,2", about: "numbers of threads" },
        Choice { name: "widths", default: "1,2,3,4,6,8,12,16", about: "rows a step" },
        Choice { name: "past", default: "128", about: "rows in the cache before the step" },
        Choice { name: "repeats", default: "15", about: "measurements of each, interleaved" },
    ],
    run,
};

/// The time of a step of some rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WidthCost {
    /// Rows.
    pub rows: usize,
    /// Median, in milliseconds.
    pub milliseconds: f64,
    /// Median share of it that was spent outside ONNX Runtime's own calls.
    pub outside: f64,
}

/// Measures steps of each width after `past` rows, with an argmax for every row; widths are interleaved, so
/// that a change of the machine's speed meets them all.
///
/// # Errors
/// Whatever the model refuses.
pub fn measure(
    model: &mut OnnxCausal,
    widths: &[usize],
    past: usize,
    repeats: usize,
) -> pilotfish_model::Result<Vec<WidthCost>> {
    let vocab = model.info().vocab;
    let ids: Vec<Token> =
        (0..(past + widths.iter().max().unwrap_or(&1))).map(|i| (i * 7919 % vocab) as Token).collect();
    model.truncate(0)?;
    if past > 0 {
        model.step(&Step::chain(&ids[..past]).want(RowSet::None))?;
    }
    let mut times = vec![Vec::new(); widths.len()];
    let mut outside = vec![Vec::new(); widths.len()];
    // The first round warms up.
    for round in 0..=repeats {
        for (index, &rows) in widths.iter().enumerate() {
            let inside = model.time_inside();
            let clock = Instant::now();
            model.step(&Step::chain(&ids[past..past + rows]).want(RowSet::All).form(LogitForm::Argmax))?;
            let total = clock.elapsed();
            let inside = model.time_inside() - inside;
            model.truncate(past)?;
            if round > 0 {
                times[index].push(1e3 * total.as_secs_f64());
                outside[index].push(
                    (total - inside.min(total)).as_secs_f64()
                        / total.max(Duration::from_nanos(1)).as_secs_f64(),
                );
            }
        }
    }
    model.truncate(0)?;
    let middle = |values: &[f64]| median(values).unwrap_or(f64::NAN);
    let costs = widths.iter().zip(times.iter().zip(&outside));
    Ok(costs
        .map(|(&rows, (time, outside))| WidthCost {
            rows,
            milliseconds: middle(time),
            outside: middle(outside),
        })
        .collect())
}

/// A storage by its name.
///
/// # Errors
/// A name that means nothing.
pub fn storage(name: &str) -> Result<Storage, String> {
    match name {
        "f32" => Ok(Storage::F32),
        "int8" => Ok(Storage::Int8 { block: 32 }),
        "int4" => Ok(Storage::Int4 { block: 32 }),
        other => Err(format!("no storage called {other:?}; there are f32, int8, int4")),
    }
}

/// The checkpoint of a model's name in the catalogue, or of a path.
///
/// # Errors
/// Neither of the two.
pub fn checkpoint(
    context: &Context,
    model: &str,
) -> Result<Checkpoint, Box<dyn std::error::Error + Send + Sync>> {
    let path = std::path::Path::new(model);
    let path = if path.exists() { path.to_owned() } else { context.model(model)? };
    Ok(Checkpoint::open(path)?)
}

/// The curve of some measurements, as a series of a plot.
pub fn series(name: impl Into<String>, costs: &[WidthCost]) -> Series {
    let first = costs.first().map_or(f64::NAN, |cost| cost.milliseconds);
    let point =
        |cost: &WidthCost| Point { x: cost.rows as f64, y: cost.milliseconds / first, interval: None };
    Series { name: name.into(), points: costs.iter().map(point).collect() }
}

/// A plot of curves `t(w) / t(1)`.
pub fn plot(series: Vec<Series>) -> Plot {
    Plot {
        title: "Cost of a step of w rows".into(),
        x: "rows w".into(),
        y: "t(w) / t(1)".into(),
        kind: Kind::Lines,
        series,
        reference: Some(1.0),
    }
}

/// What every result says about versions.
pub fn versions() -> Vec<(String, String)> {
    vec![
        ("pilotfish".into(), env!("CARGO_PKG_VERSION").into()),
        ("ONNX Runtime".into(), library::describe().unwrap_or_else(|| "(not loaded)".into())),
    ]
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let storages = options.list::<String>("storage")?;
    let threads = options.list::<usize>("threads")?;
    let widths = options.list::<usize>("widths")?;
    let (past, repeats) = (options.get::<usize>("past")?, options.get::<usize>("repeats")?);
    if widths.is_empty() || widths.contains(&0) || repeats == 0 || storages.is_empty() || threads.is_empty() {
        return Err(
            "widths, storages, threads and repeats must name at least one of each, none of them 0".into()
        );
    }
    let started = machine::now();
    let load = machine::load();
    let checkpoint = checkpoint(context, options.text("model")?)?;
    let mut run =
        Run::open(context.results(), WIDTH_COST.name, options, context.fresh(), context.is_quiet())?;
    run.expect((storages.len() * threads.len()) as u64);
    let header: Vec<String> = ["storage", "threads", "MB a step", "ms, one row"]
        .map(str::to_owned)
        .into_iter()
        .chain(widths.iter().skip(1).map(|w| format!("x{w}")))
        .chain(["outside, 1 row".into(), "outside, most".into()])
        .collect();
    let names: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new("Cost of a step: t(1), and t(w) / t(1)", &names);
    let (mut rows, mut curves) = (Vec::new(), Vec::new());
    for name in &storages {
        for &threads in &threads {
            let options = LoadOptions::default().storage(storage(name)?).threads(threads);
            let (bytes, costs) = run.step(&format!("{name}, {threads} threads"), || {
                let mut model = OnnxCausal::from_checkpoint(&checkpoint, &options)?;
                let bytes = model.info().body_bytes + model.info().head_bytes;
                let costs = measure(&mut model, &widths, past, repeats)?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((bytes, costs))
            })?;
            let first = costs[0].milliseconds;
            let mut cells = vec![
                name.clone(),
                threads.to_string(),
                format!("{:.0}", bytes as f64 / 1e6),
                format!("{first:.1}"),
            ];
            cells.extend(costs.iter().skip(1).map(|cost| format!("{:.2}", cost.milliseconds / first)));
            let most = costs.iter().map(|cost| cost.outside).fold(0.0, f64::max);
            cells.extend([format!("{:.1} %", 100.0 * costs[0].outside), format!("{:.1} %", 100.0 * most)]);
            table.row(cells);
            curves.push(series(format!("{name}, {threads} thr."), &costs));
            rows.push(
                serde_json::json!({ "storage": name, "threads": threads, "bytes": bytes, "costs": costs }),
            );
        }
    }
    run.finish();
    let result = ResultFile {
        experiment: WIDTH_COST.name.into(),
        title: format!("What a step of several rows costs: {}", checkpoint.name()),
        summary: format!(
            "A step that verifies w rows reads the weights once, so up to some width it costs little more than a \
             step of one row. Medians of {repeats} interleaved measurements after {past} rows of cache, an argmax \
             for every row included."
        ),
        config: serde_json::to_value(options)?,
        seeds: vec![],
        versions: versions(),
        commit: machine::commit(std::path::Path::new(".")),
        machine: Machine::here(),
        load: [load, machine::load()],
        time: [started, machine::now()],
        rows,
        tables: vec![table.clone()],
        plots: vec![plot(curves)],
        notes: vec![
            "'outside' is the share of a step spent outside ONNX Runtime's own calls: masks, cache \
                     bookkeeping, rows in and out, the argmax."
                .into(),
        ],
    };
    let (path, report) = result.write(run.folder())?;
    context.show(&table.terminal());
    Ok(Finished { result: Some(path), report: Some(report) })
}
