//! What a step of several rows costs: the curve `t(w) / t(1)` that decides whether any speculation can win, by ONNX
//! Runtime's kernels and by ours, beside what the machine allows.

use std::time::{Duration, Instant};

use pilotfish_architectures::Checkpoint;
use pilotfish_evaluation::{Perplexity, PerplexityConfig, median, perplexity, texts};
use pilotfish_graph::{Kept, Storage};
use pilotfish_kernels::{Meter, Roofline};
use pilotfish_model::{CausalModel, LogitForm, RowSet, Step, Steps, Token};
use pilotfish_runtime::{LoadOptions, OnnxCausal, ProductChoice, Products, library, packed_bytes};
use serde::{Deserialize, Serialize};

use super::page::Began;
use super::prune::tokens;
use super::{Choice, Context, Experiment, Outcome};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub const WIDTH_COST: Experiment = Experiment {
    name: "width-cost",
    about: "what a step of 1 to 16 rows costs, by storage, kernels and threads",
    needs: &["smollm2-135m"],
    library: true,
    options: &[
        Choice {
            name: "model",
            default: "smollm2-135m",
            about: "a model's name, or the path of a checkpoint",
        },
        Choice {
            name: "storage",
            default: "f32,bf16,int8,int4,2:4",
            about: "storages: f32, bf16, int8, int4, N:M",
        },
        Choice {
            name: "products",
            default: "ort,pilotfish,pilotfish-a8",
            about: "kernels: ort, pilotfish, pilotfish-a8 (blocks of integers only), auto:ROWS",
        },
        Choice { name: "threads", default: "1,2", about: "numbers of threads" },
        Choice { name: "widths", default: "1,2,3,4,6,8,12,16", about: "rows a step" },
        Choice { name: "past", default: "128", about: "rows in the cache before the step" },
        Choice { name: "repeats", default: "15", about: "measurements of each, interleaved" },
        Choice {
            name: "text-tokens",
            default: "2048",
            about: "tokens of a novel that each is scored on, to show what rounding costs; 0 for none",
        },
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
    /// The shortest, in milliseconds.
    pub best: f64,
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
    let mut costs = together(&mut [model], widths, past, repeats, &mut || ())?;
    Ok(costs.pop().unwrap_or_default())
}

/// As [`measure`], of several models, which take turns at every width; `between` is called before every round of widths.
fn together(
    models: &mut [&mut OnnxCausal],
    widths: &[usize],
    past: usize,
    repeats: usize,
    between: &mut dyn FnMut(),
) -> pilotfish_model::Result<Vec<Vec<WidthCost>>> {
    let mut times = vec![vec![Vec::new(); widths.len()]; models.len()];
    let mut outside = times.clone();
    let rows = past + widths.iter().max().unwrap_or(&1);
    let ids = |model: &OnnxCausal| -> Vec<Token> {
        (0..rows).map(|i| (i * 7919 % model.info().vocab) as Token).collect()
    };
    for model in models.iter_mut() {
        model.truncate(0)?;
        if past > 0 {
            let ids = ids(model);
            model.step(&Step::chain(&ids[..past]).want(RowSet::None))?;
        }
    }
    // The first round warms up.
    for round in 0..=repeats {
        between();
        for (index, &rows) in widths.iter().enumerate() {
            for (which, model) in models.iter_mut().enumerate() {
                let ids = ids(model);
                let inside = model.time_inside();
                let clock = Instant::now();
                let step = Step::chain(&ids[past..past + rows]).want(RowSet::All).form(LogitForm::Argmax);
                model.step(&step)?;
                let total = clock.elapsed();
                let inside = model.time_inside() - inside;
                model.truncate(past)?;
                if round > 0 {
                    let share = (total - inside.min(total)).as_secs_f64()
                        / total.max(Duration::from_nanos(1)).as_secs_f64();
                    times[which][index].push(1e3 * total.as_secs_f64());
                    outside[which][index].push(share);
                }
            }
        }
    }
    models.iter_mut().try_for_each(|model| model.truncate(0))?;
    let middle = |values: &[f64]| median(values).unwrap_or(f64::NAN);
    let costs = |(times, outside): (&Vec<Vec<f64>>, &Vec<Vec<f64>>)| {
        let each = widths.iter().zip(times.iter().zip(outside));
        each.map(|(&rows, (time, outside))| WidthCost {
            rows,
            milliseconds: middle(time),
            best: time.iter().copied().fold(f64::INFINITY, f64::min),
            outside: middle(outside),
        })
        .collect()
    };
    Ok(times.iter().zip(&outside).map(costs).collect())
}

/// A storage by its name.
///
/// # Errors
/// A name that means nothing.
pub fn storage(name: &str) -> Result<Storage, String> {
    let pattern = |name: &str| {
        let (keep, group) = name.split_once(':')?;
        let (keep, group) = (keep.parse().ok()?, group.parse().ok()?);
        (1 <= keep && keep <= group && group <= 32).then_some((keep, group))
    };
    // `2:4` in f32, `2:4-bf16`, `2:4-int8`.
    let (name, kept) = match name.rsplit_once('-') {
        Some((name, "bf16")) if name.contains(':') => (name, Kept::Bf16),
        Some((name, "int8")) if name.contains(':') => (name, Kept::Int8),
        _ => (name, Kept::F32),
    };
    match name {
        "f32" => Ok(Storage::F32),
        "bf16" => Ok(Storage::Bf16),
        "int8" => Ok(Storage::Int8 { block: 32 }),
        "int4" => Ok(Storage::Int4 { block: 32 }),
        other => pattern(other).map(|(keep, group)| Storage::Sparse { keep, group, kept }).ok_or_else(|| {
            format!(
                "no storage called {other:?}; there are f32, bf16, int8, int4, and N:M, N:M-bf16 and N:M-int8 up to M = 32"
            )
        }),
    }
}

/// The checkpoint of a model's name in the catalogue, or of a path.
///
/// # Errors
/// Neither of the two.
pub fn checkpoint(context: &Context, model: &str) -> Result<Checkpoint, Failure> {
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

/// A model's curve on some threads.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Curve {
    storage: String,
    products: String,
    threads: usize,
    /// Bytes of matrices that a step reads, and operations a row.
    bytes: f64,
    operations: f64,
    /// Whether those operations are on bytes.
    integer: bool,
    costs: Vec<WidthCost>,
    /// How kernels were chosen, where they were.
    choices: Vec<String>,
}

/// Bytes that a step reads of the matrices of these layers, and operations for a row. ONNX Runtime's kernels read bf16
/// and pruned matrices as dense f32.
fn demand(choices: &[ProductChoice]) -> (f64, f64) {
    choices.iter().fold((0.0, 0.0), |(bytes, operations), choice| {
        let [outs, ins] = choice.shape;
        let dense = (outs * ins) as f64;
        let packed = packed_bytes(choice.storage, choice.shape).map_or(4.0 * dense, |bytes| bytes as f64);
        let ours = choice.products.ours();
        let (read, share) = match choice.storage {
            Storage::Sparse { keep, group, .. } if ours => (packed, keep as f64 / group as f64),
            Storage::Bf16 | Storage::Sparse { .. } if !ours => (4.0 * dense, 1.0),
            _ => (packed, 1.0),
        };
        (bytes + read, operations + 2.0 * dense * share)
    })
}

impl Curve {
    /// What the machine allows for a step of so many rows, in milliseconds.
    fn bound(&self, roofline: &Roofline, rows: usize) -> f64 {
        let operations = self.operations * rows as f64;
        1e3 * match self.integer {
            true => roofline.bound_of_bytes(self.bytes, operations),
            false => roofline.bound(self.bytes, operations),
        }
    }

    fn at(&self, rows: usize) -> Option<f64> {
        self.costs.iter().find(|cost| cost.rows == rows).map(|cost| cost.best)
    }

    /// Time over bound.
    fn over(&self, roofline: &Roofline, rows: usize) -> Option<f64> {
        Some(self.at(rows)? / self.bound(roofline, rows))
    }

    /// What was achieved at some rows.
    fn profile(&self, rows: usize) -> String {
        let Some(time) = self.at(rows) else { return String::new() };
        let rate = |amount: f64| amount / time / 1e6;
        format!(
            "at {rows}: {:.1} ms, {:.1} GB/s, {:.0} G operations/s",
            time,
            rate(self.bytes),
            rate(self.operations * rows as f64)
        )
    }
}

/// How well a model predicts a text, which tells what the rounding of weights and activations costs.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Quality {
    storage: String,
    products: String,
    perplexity: Perplexity,
}

/// Whether such products of such a storage are measured: not where they are the same as others of the list.
pub(super) fn distinct(storages: &[String], name: &str, products: Products) -> Result<bool, String> {
    Ok(match (storage(name)?, products) {
        // For ONNX Runtime these are dense f32.
        (Storage::Bf16 | Storage::Sparse { .. }, Products::Ort) => !storages.iter().any(|name| name == "f32"),
        (kept, Products::PilotfishA8) => matches!(kept, Storage::Int4 { .. } | Storage::Int8 { .. }),
        _ => true,
    })
}

/// A bar: what must be reached, what was, and where it was not, what the machine did.
struct Bar {
    product: &'static str,
    must: String,
    reached: Option<f64>,
    most: f64,
    profile: String,
}

/// The bars of whole steps, for one thread.
fn bars(curves: &[Curve], roofline: &Roofline) -> Vec<Bar> {
    let find = |storage: &str, products: &str| {
        curves.iter().find(|c| c.storage == storage && c.products == products && c.threads == 1)
    };
    let mut bars = Vec::new();
    let mut bar = |product, must: String, reached: Option<f64>, most: f64, profile: Option<String>| {
        bars.push(Bar { product, must, reached, most, profile: profile.unwrap_or_default() });
    };
    let (f32, f32_ort) = (find("f32", "pilotfish"), find("f32", "ort"));
    let ratio = |a: Option<&Curve>, b: Option<&Curve>, rows: usize| Some(a?.at(rows)? / b?.at(rows)?);
    for (rows, most) in [(1, 1.25), (2, 1.25), (4, 1.25), (8, 1.4), (12, 1.4), (16, 1.4)] {
        let reached = f32.and_then(|curve| curve.over(roofline, rows));
        let must = format!("{most}x bound at w = {rows}");
        bar("f32, whole step", must, reached, most, f32.map(|curve| curve.profile(rows)));
    }
    for (rows, most) in [(1, 0.8), (8, 0.7)] {
        let must = format!("{most}x ONNX Runtime at w = {rows}");
        bar("f32, whole step", must, ratio(f32, f32_ort, rows), most, f32.map(|c| c.profile(rows)));
    }
    let bf16 = find("bf16", "pilotfish");
    let profile = |curve: Option<&Curve>, rows| curve.map(|curve| curve.profile(rows));
    bar("bf16, whole step", "0.6x our f32 at w = 1".into(), ratio(bf16, f32, 1), 0.6, profile(bf16, 1));
    let widths = bf16.iter().flat_map(|curve| &curve.costs).map(|cost| cost.rows);
    let worst =
        widths.filter_map(|rows| Some((ratio(bf16, f32, rows)?, rows))).max_by(|a, b| a.0.total_cmp(&b.0));
    let (worst, at) = worst.map_or((None, 1), |(ratio, rows)| (Some(ratio), rows));
    bar("bf16, whole step", "never slower than our f32".into(), worst, 1.0, profile(bf16, at));
    for (name, products, product) in [
        ("int4", "pilotfish-a8", "int4 blocks, whole step, activations of 8 bits on both sides"),
        ("int4", "pilotfish", "int4 blocks, whole step, ours with activations of 16 bits"),
        ("int8", "pilotfish-a8", "int8 blocks, whole step, activations of 8 bits on both sides"),
        ("int8", "pilotfish", "int8 blocks, whole step, ours with activations of 16 bits"),
    ] {
        let (ours, ort) = (find(name, products), find(name, "ort"));
        for (rows, most) in [(1, 1.0), (4, 0.7), (8, 0.7)] {
            let must = format!("{most}x MatMulNBits at w = {rows}");
            bar(product, must, ratio(ours, ort, rows), most, profile(ours, rows));
        }
    }
    bars
}

fn table_of(bars: &[Bar]) -> Table {
    let mut table = Table::new("Bars, one thread", &["product", "must reach", "reached", "", "profile"]);
    for bar in bars {
        let met = bar.reached.map(|reached| reached <= bar.most);
        table.row([
            bar.product.to_owned(),
            format!("at most {}", bar.must),
            bar.reached.map_or("-".into(), |reached| format!("{reached:.2}x")),
            match met {
                Some(true) => "met".into(),
                Some(false) => "missed".into(),
                None => "not measured".into(),
            },
            if met == Some(true) { String::new() } else { bar.profile.clone() },
        ]);
        if met == Some(false) {
            table.set_off();
        }
    }
    table
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let storages = options.list::<String>("storage")?;
    let products = options.list::<Products>("products")?;
    let threads = options.list::<usize>("threads")?;
    let widths = options.list::<usize>("widths")?;
    let (past, repeats) = (options.get::<usize>("past")?, options.get::<usize>("repeats")?);
    let text_tokens = options.get::<usize>("text-tokens")?;
    if text_tokens == 1 {
        return Err("text-tokens must be 0 or at least 2: the first token of a text is not scored".into());
    }
    if [storages.len(), products.len(), threads.len(), widths.len(), repeats].contains(&0)
        || widths.contains(&0)
        || threads.contains(&0)
    {
        let why =
            "storage, products, widths, threads and repeats must name at least one of each, none of them 0";
        return Err(why.into());
    }
    let mut measured = Vec::new();
    for name in &storages {
        for &products in &products {
            if distinct(&storages, name, products)? {
                measured.push((name, storage(name)?, products));
            }
        }
    }
    let began = Began::now();
    let checkpoint = checkpoint(context, options.text("model")?)?;
    let mut run =
        Run::open(context.results(), WIDTH_COST.name, options, context.fresh(), context.is_quiet())?;
    let text = match text_tokens {
        0 => Vec::new(),
        count => {
            let mut text = tokens(&checkpoint.tokenizer()?, "", texts::NORTHANGER_ABBEY)?;
            text.truncate(count);
            text
        }
    };
    run.expect(threads.len() as u64 + u64::from(!text.is_empty()));
    let (mut curves, mut rooflines) = (Vec::<Curve>::new(), Vec::new());
    for &threads in &threads {
        let (all, roofline) = run.step(&format!("all models, {threads} threads"), || {
            let mut models = Vec::new();
            for &(_, storage, products) in &measured {
                let options = LoadOptions::default().storage(storage).threads(threads).products(products);
                models.push(OnnxCausal::from_checkpoint(&checkpoint, &options)?);
            }
            let meter = Meter::new(threads);
            let mut roofline = meter.sample();
            let mut between = || roofline = roofline.best(meter.sample());
            let mut turns = models.iter_mut().collect::<Vec<_>>();
            let costs = together(&mut turns, &widths, past, repeats, &mut between)?;
            let curves =
                measured.iter().zip(&models).zip(costs).map(|((&(name, _, products), model), costs)| {
                    let (bytes, operations) = demand(model.products());
                    let auto = matches!(products, Products::Auto { .. });
                    let choices = if auto { model.products() } else { &[] };
                    Curve {
                        integer: name.starts_with("int"),
                        storage: name.clone(),
                        products: products.to_string(),
                        threads,
                        bytes,
                        operations,
                        costs,
                        choices: choices.iter().map(ToString::to_string).collect(),
                    }
                });
            Ok::<_, Failure>((curves.collect::<Vec<_>>(), roofline))
        })?;
        curves.extend(all);
        rooflines.push(roofline);
    }
    let qualities = match text.is_empty() {
        true => Vec::new(),
        false => run.step("perplexities", || {
            let mut qualities = Vec::new();
            for &(name, storage, products) in &measured {
                // Weights that are pruned for their speed alone make no sense of a text.
                if matches!(storage, Storage::Sparse { .. }) {
                    continue;
                }
                let options = LoadOptions::default().storage(storage).products(products);
                let mut model = OnnxCausal::from_checkpoint(&checkpoint, &options)?;
                let perplexity = perplexity(&mut model, &text, &PerplexityConfig::default())?;
                let (storage, products) = (name.clone(), products.to_string());
                qualities.push(Quality { storage, products, perplexity });
            }
            Ok::<_, Failure>(qualities)
        })?,
    };
    let (mut tables, plots) = show(&curves, &rooflines, &widths);
    if !qualities.is_empty() {
        tables.push(quality_table(&qualities));
    }
    for table in &tables {
        context.show(&table.terminal());
    }
    for curve in curves.iter().filter(|curve| !curve.choices.is_empty()) {
        context.show(&format!("{} {}:\n  {}", curve.storage, curve.products, curve.choices.join("\n  ")));
    }
    let rows = curves.iter().map(serde_json::to_value).chain(rooflines.iter().map(serde_json::to_value));
    let rows = rows.chain(qualities.iter().map(serde_json::to_value));
    let result = ResultFile {
        experiment: WIDTH_COST.name.into(),
        title: format!(
            "What a step of several rows costs: {} ({})",
            checkpoint.name(),
            pilotfish_kernels::Isa::best().name()
        ),
        summary: format!(
            "A step that verifies w rows reads the weights once, so up to some width it costs little more than a \
             step of one row. Best of {repeats} interleaved measurements after {past} rows of cache, an argmax for \
             every row included, beside bound(w) = max(bytes / bandwidth, operations / peak) of this machine, \
             measured in the same run, between the same rounds, at its best."
        ),
        config: serde_json::to_value(options)?,
        rows: rows.collect::<Result<_, _>>()?,
        tables,
        plots,
        notes: notes(),
        ..ResultFile::default()
    };
    let (_, finished) = began.write(&run, result)?;
    Ok(finished)
}

fn notes() -> Vec<String> {
    vec![
        "Bytes are those of the matrices as the kernels read them, operations two for a multiply-add; attention over \
         the cache, norms and the argmax are in the times and not in the bound."
            .into(),
        INTEGERS.into(),
        "'outside' is the share of a step spent outside ONNX Runtime's own calls: masks, cache bookkeeping, rows in \
         and out, the argmax."
            .into(),
        "ONNX Runtime multiplies bf16 and pruned matrices as dense f32, so its f32 figures stand for them.".into(),
    ]
}

/// What the bound of integers leaves open.
pub(super) const INTEGERS: &str = "The bound of int4 and int8 takes the peak of byte products. ONNX Runtime's MatMulNBits \
    and pilotfish-a8 round activations to 8 bits and use one of them for each weight; pilotfish rounds to 16 bits and \
    uses two. With AVX2 that has no byte products, our kernels of int8 weights are the same for both.";

fn quality_table(qualities: &[Quality]) -> Table {
    let mut table = Table::new(
        "What rounding costs: the opening of a novel",
        &["storage", "kernels", "perplexity", "nats a token"],
    );
    for Quality { storage, products, perplexity } in qualities {
        table.row([
            storage.clone(),
            products.clone(),
            format!("{:.3}", perplexity.value()),
            format!("{:.4}", perplexity.nats / perplexity.tokens as f64),
        ]);
    }
    table
}

/// The limits of a machine.
pub(super) fn roofline_table(rooflines: &[Roofline]) -> Table {
    let mut machine = Table::new("Roofline", &["threads", "read GB/s", "f32 GFLOP/s", "byte G operations/s"]);
    for roofline in rooflines {
        machine.row([
            roofline.threads.to_string(),
            format!("{:.1}", roofline.bandwidth / 1e9),
            format!("{:.0}", roofline.float / 1e9),
            format!("{:.0}", roofline.byte / 1e9),
        ]);
    }
    machine
}

/// Tables and plots.
fn show(curves: &[Curve], rooflines: &[Roofline], widths: &[usize]) -> (Vec<Table>, Vec<Plot>) {
    let columns = |first: &[&str], each: &str, last: &[&str]| -> Vec<String> {
        let widths = widths.iter().map(|w| each.replace('w', &w.to_string()));
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        texts(first).into_iter().chain(widths).chain(texts(last)).collect()
    };
    let table = |title: &str, header: &[String]| {
        Table::new(title, &header.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let names = ["storage", "kernels", "threads"];
    let mut times = table(
        "Cost of a step: t(1), and t(w) / t(1)",
        &columns(&[&names[..], &["MB a step", "bound(1) ms", "t(1) ms"]].concat(), "xw", &["outside"]),
    );
    let mut over = table("Distance from the bound: t(w) / bound(w)", &columns(&names, "at w", &[]));
    let mut plots = Vec::new();
    for curve in curves {
        let Some(roofline) = rooflines.iter().find(|roofline| roofline.threads == curve.threads) else {
            continue;
        };
        let Some(first) = curve.costs.first() else { continue };
        let own = [curve.storage.clone(), curve.products.clone(), curve.threads.to_string()];
        let mut cells = own.to_vec();
        cells.extend([
            format!("{:.0}", curve.bytes / 1e6),
            format!("{:.1}", curve.bound(roofline, first.rows)),
            format!("{:.1}", first.best),
        ]);
        cells.extend(curve.costs.iter().map(|cost| format!("{:.2}", cost.best / first.best)));
        let most = curve.costs.iter().map(|cost| cost.outside).fold(0.0, f64::max);
        cells.push(format!("{:.1} %", 100.0 * most));
        times.row(cells);
        let ratios = curve.costs.iter().filter_map(|cost| curve.over(roofline, cost.rows));
        over.row(own.into_iter().chain(ratios.map(|ratio| format!("{ratio:.2}"))));
    }
    for roofline in rooflines {
        let lines = curves.iter().filter(|curve| curve.threads == roofline.threads);
        let line = |curve: &Curve| {
            let point = |cost: &WidthCost| Point { x: cost.rows as f64, y: cost.best, interval: None };
            let name = format!("{} {}", curve.storage, curve.products);
            Series { name, points: curve.costs.iter().map(point).collect() }
        };
        plots.push(Plot {
            title: format!("Time of a step of w rows, {} threads", roofline.threads),
            x: "rows w".into(),
            y: "ms".into(),
            kind: Kind::Lines,
            series: lines.map(line).collect(),
            reference: None,
        });
    }
    let mut tables = vec![roofline_table(rooflines), times, over];
    if let Some(roofline) = rooflines.iter().find(|roofline| roofline.threads == 1) {
        tables.push(table_of(&bars(curves, roofline)));
    }
    (tables, plots)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use pilotfish_runtime::Reason;

    use super::*;

    fn curve(storage: &str, products: &str, times: [f64; 2]) -> Curve {
        let cost = |(rows, best)| WidthCost { rows, milliseconds: best, best, outside: 0.0 };
        Curve {
            storage: storage.into(),
            products: products.into(),
            threads: 1,
            bytes: 100.0,
            operations: 10.0,
            integer: storage.starts_with("int"),
            costs: [1, 8].into_iter().zip(times).map(cost).collect(),
            choices: vec![],
        }
    }

    #[test]
    fn storages_by_name() {
        for (name, kept) in [("2:4", Kept::F32), ("2:4-bf16", Kept::Bf16), ("2:4-int8", Kept::Int8)] {
            assert_eq!(storage(name), Ok(Storage::Sparse { keep: 2, group: 4, kept }));
        }
        assert_eq!(storage("bf16"), Ok(Storage::Bf16));
        for name in ["", "f64", "5:4", "0:4", "1:33", "2:", ":4", "2:4:8", "-1:4", "2:4-f16", "f32-int8"] {
            assert!(storage(name).is_err(), "{name}");
        }
    }

    #[test]
    fn demand_by_hand() {
        let choice = |storage, products| ProductChoice {
            name: "w".into(),
            storage,
            shape: [32, 32],
            products,
            reason: Reason::Asked,
        };
        let sparse = Storage::Sparse { keep: 2, group: 4, kept: Kept::F32 };
        // 1024 weights; 2:4 as we pack it is 2.125 bytes of each and half the operations.
        assert_eq!(demand(&[choice(Storage::F32, Products::Ort)]), (4096.0, 2048.0));
        assert_eq!(demand(&[choice(Storage::Bf16, Products::Pilotfish)]), (2048.0, 2048.0));
        assert_eq!(demand(&[choice(Storage::Bf16, Products::Ort)]), (4096.0, 2048.0));
        assert_eq!(demand(&[choice(sparse, Products::Pilotfish)]), (2176.0, 1024.0));
        let twice = [choice(sparse, Products::Ort), choice(sparse, Products::Ort)];
        assert_eq!(demand(&twice), (8192.0, 4096.0));
    }

    /// Bandwidth 100 B/s and peak 40/s make bounds of 1 s at one row and 2 s at eight.
    #[test]
    fn bars_by_hand() {
        let roofline = Roofline { threads: 1, bandwidth: 100.0, float: 40.0, byte: 80.0 };
        let curves = [
            curve("f32", "ort", [2000.0, 4000.0]),
            curve("f32", "pilotfish", [1200.0, 3000.0]),
            curve("bf16", "pilotfish", [600.0, 3300.0]),
            curve("int4", "ort", [100.0, 400.0]),
            curve("int4", "pilotfish", [100.0, 300.0]),
            curve("int4", "pilotfish-a8", [100.0, 200.0]),
        ];
        let table = table_of(&bars(&curves, &roofline));
        let cell = |must: &str| {
            let row = table.rows.iter().find(|row| row[1].ends_with(must)).unwrap();
            (row[2].as_str(), row[3].as_str())
        };
        assert_eq!(cell("1.25x bound at w = 1"), ("1.20x", "met"));
        assert_eq!(cell("1.25x bound at w = 2"), ("-", "not measured"));
        assert_eq!(cell("1.4x bound at w = 8"), ("1.50x", "missed"));
        assert_eq!(cell("0.8x ONNX Runtime at w = 1"), ("0.60x", "met"));
        assert_eq!(cell("0.7x ONNX Runtime at w = 8"), ("0.75x", "missed"));
        assert_eq!(cell("0.6x our f32 at w = 1"), ("0.50x", "met"));
        assert_eq!(cell("never slower than our f32"), ("1.10x", "missed"));
        let blocks = |activations: &str, must: &str| {
            let mut rows = table.rows.iter().filter(|row| row[0].starts_with("int4"));
            let row = rows.find(|row| row[0].contains(activations) && row[1].ends_with(must)).unwrap();
            (row[2].as_str(), row[3].as_str())
        };
        assert_eq!(blocks("16 bits", "1x MatMulNBits at w = 1"), ("1.00x", "met"));
        assert_eq!(blocks("16 bits", "0.7x MatMulNBits at w = 8"), ("0.75x", "missed"));
        assert_eq!(blocks("8 bits on", "0.7x MatMulNBits at w = 8"), ("0.50x", "met"));
        // 100 bytes and 80 operations in 3 s.
        assert_eq!(curves[1].profile(8), "at 8: 3000.0 ms, 0.0 GB/s, 0 G operations/s");
        assert_eq!(curves[3].bound(&roofline, 8), 1000.0);
        let (tables, plots) = show(&curves, &[roofline], &[1, 8]);
        assert_eq!((tables.len(), plots.len()), (4, 1));
        assert_eq!(tables[1].header[6], "x1");
        assert!(plots[0].svg().is_ok());
    }
}
