//! What it costs to hand the cache of keys and values in and out at every step, against buffers that stay.

use pilotfish_evaluation::median;
use pilotfish_model::CausalModel;
use pilotfish_runtime::{LoadOptions, OnnxCausal};
use serde::{Deserialize, Serialize};

use super::page::Began;
use super::session::{MODEL, THREADS};
use super::width_cost::{checkpoint, measure};
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const CACHE_LAYOUT: Experiment = Experiment {
    name: "cache-layout",
    about: "a step over a cache in place, and over one that is handed in and out",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        MODEL,
        THREADS,
        Choice { name: "past", default: "64,256,512,1024", about: "rows in the cache before the step" },
        Choice { name: "repeats", default: "9", about: "measurements of each, interleaved in three parts" },
    ],
    run,
};

/// Medians in milliseconds, and the share outside ONNX Runtime's own calls.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cost {
    milliseconds: f64,
    outside: f64,
}

/// Both layouts at one length, in alternation.
fn pair(models: &mut [OnnxCausal; 2], past: usize, repeats: usize) -> Result<[Cost; 2], Failure> {
    const PARTS: usize = 3;
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..PARTS {
        for (model, found) in models.iter_mut().zip(&mut found) {
            found.push(measure(model, &[1], past, repeats.div_ceil(PARTS))?[0]);
        }
    }
    let middle = |values: Vec<f64>| median(&values).unwrap_or(f64::NAN);
    Ok(found.map(|costs| Cost {
        milliseconds: middle(costs.iter().map(|cost| cost.milliseconds).collect()),
        outside: middle(costs.iter().map(|cost| cost.outside).collect()),
    }))
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let pasts = options.list::<usize>("past")?;
    let (repeats, threads) = (options.get::<usize>("repeats")?, options.get("threads")?);
    let checkpoint = checkpoint(context, options.text("model")?)?;
    let config = checkpoint.causal()?.config().clone();
    if pasts.is_empty() || repeats == 0 || pasts.iter().any(|&past| past == 0 || past >= config.context) {
        return Err(format!("past and repeats must not be 0, and past less than {}", config.context).into());
    }
    let began = Began::now();
    let mut run =
        Run::open(context.results(), CACHE_LAYOUT.name, options, context.fresh(), context.is_quiet())?;
    run.expect(pasts.len() as u64);
    let open = |fused| -> Result<OnnxCausal, Failure> {
        let mut load = LoadOptions::default().threads(threads);
        load.export.fused = fused;
        Ok(OnnxCausal::from_checkpoint(&checkpoint, &load)?)
    };
    let mut models = [open(true)?, open(false)?];
    let row = 2 * config.layers * config.kv_heads * config.head_dim * 4;
    let mut table = Table::new(
        "A step of one row",
        &["rows before", "cache, MB", "in place, ms", "handed in and out, ms", "ratio", "outside, each"],
    );
    let mut rows = Vec::new();
    let mut series =
        ["in place", "handed in and out"].map(|name| Series { name: name.into(), points: vec![] });
    for &past in &pasts {
        let costs = run.step(&format!("{past} rows"), || pair(&mut models, past, repeats))?;
        let megabytes = (past * row) as f64 / 1e6;
        table.row(vec![
            past.to_string(),
            format!("{megabytes:.1}"),
            format!("{:.1}", costs[0].milliseconds),
            format!("{:.1}", costs[1].milliseconds),
            format!("{:.2}", costs[1].milliseconds / costs[0].milliseconds),
            format!("{:.1} %, {:.1} %", 100.0 * costs[0].outside, 100.0 * costs[1].outside),
        ]);
        for (series, cost) in series.iter_mut().zip(&costs) {
            series.points.push(Point { x: past as f64, y: cost.milliseconds, interval: None });
        }
        rows.push(serde_json::json!({
            "past": past, "cache_bytes": past * row, "in_place": costs[0], "handed": costs[1],
        }));
    }
    let result = ResultFile {
        experiment: CACHE_LAYOUT.name.into(),
        title: format!("A cache that stays, and one that is handed round: {}", models[0].info().name),
        summary: "Plain ONNX gives the cache to a graph and gets a longer one back, so that a step copies all of it. \
                  ONNX Runtime's own attention writes new rows into buffers that are bound once. Both are the same \
                  network with the same weights; what differs is attention and where its cache lies."
            .into(),
        config: serde_json::to_value(options)?,
        rows,
        tables: vec![table.clone()],
        plots: vec![Plot {
            title: "Time of a step of one row".into(),
            x: "rows in the cache".into(),
            y: "milliseconds".into(),
            kind: Kind::Lines,
            series: series.into(),
            reference: None,
        }],
        notes: vec![
            "The price of copying is the slope; the two also differ in the attention kernel, which shows where the \
             cache is short."
                .into(),
        ],
        ..ResultFile::default()
    };
    let (_, finished) = began.write(&run, result)?;
    context.show(&table.terminal());
    Ok(finished)
}
