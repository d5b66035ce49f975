//! What one product costs: by the shape of its matrix, how that is stored and whose kernel multiplies it, in cache and
//! out of it, beside what the machine allows.

use std::time::Instant;

use pilotfish_graph::Storage;
use pilotfish_kernels::{Active, Columns, Dense, Float, Kept, Product, Roofline, Serial};
use pilotfish_runtime::{Products, compare, packed_bytes};
use serde::{Deserialize, Serialize};

use super::page::Began;
use super::{Choice, Context, Experiment, Outcome, width_cost};
use crate::error::Failure;
use crate::plots::{Kind, Plot, Point, Series};
use crate::results::ResultFile;
use crate::steps::Run;
use crate::tables::Table;

/// The experiment.
pub(super) const KERNELS: Experiment = Experiment {
    name: "kernels",
    about: "what one product of 1 to 16 rows costs, by shape, storage and kernels, in cache and out of it",
    needs: &[],
    library: true,
    options: &[
        Choice {
            name: "shapes",
            default: "576x576,960x576,3072x576,576x1536,49152x576,4096x4096,4096x11008",
            about: "outputs x inputs: SmolLM2's layers and head, two of a model of 7 billion",
        },
        Choice {
            name: "storage",
            default: "f32,bf16,int8,int4,2:4,1:4,2:8,1:8,1:16",
            about: "storages: f32, bf16, int8, int4, N:M",
        },
        Choice {
            name: "zeros",
            default: "0,50,65,90",
            about: "per cent of inactive inputs, for gathered products",
        },
        Choice { name: "threads", default: "1", about: "numbers of threads" },
        Choice { name: "widths", default: "1,2,4,8,12,16", about: "rows" },
        Choice { name: "rounds", default: "7", about: "measurements of each, interleaved; the best counts" },
    ],
    run,
};

/// What takes up more memory than caches hold, and what a cache holds.
const OUT_OF_CACHE: usize = 96 << 20;
const IN_CACHE: usize = 16 << 20;

/// One variant of a product at one place.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Timed {
    shape: [usize; 2],
    threads: usize,
    in_cache: bool,
    storage: String,
    products: String,
    bytes: f64,
    /// Operations a row.
    operations: f64,
    integer: bool,
    /// Rows, and microseconds.
    times: Vec<(usize, f64)>,
}

impl Timed {
    fn at(&self, rows: usize) -> Option<f64> {
        self.times.iter().find(|(w, _)| *w == rows).map(|(_, time)| *time)
    }

    /// In microseconds.
    fn bound(&self, roofline: &Roofline, rows: usize) -> f64 {
        let bytes = if self.in_cache { 0.0 } else { self.bytes };
        let operations = self.operations * rows as f64;
        1e6 * match self.integer {
            true => roofline.bound_of_bytes(bytes, operations),
            false => roofline.bound(bytes, operations),
        }
    }
}

/// A gathered product of one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Gathered {
    shape: [usize; 2],
    zeros: f64,
    /// Microseconds of the gathered product, finding the active inputs included, and of our dense one.
    gathered: f64,
    dense: f64,
}

fn shape(text: &str) -> Result<[usize; 2], String> {
    let wrong = || format!("{text:?} is not a shape: write OUTPUTSxINPUTS, each from 1 to 1000000");
    let (outs, ins) = text.split_once('x').ok_or_else(wrong)?;
    let size = |text: &str| text.parse().ok().filter(|size| (1..=1_000_000).contains(size)).ok_or_else(wrong);
    let shape = [size(outs)?, size(ins)?];
    if shape[0] * shape[1] > 1 << 28 {
        return Err(format!("{text} has more than 2^28 weights"));
    }
    Ok(shape)
}

/// Whether a storage has matrices of so many inputs.
fn fits(storage: Storage, ins: usize) -> bool {
    !matches!(storage, Storage::Sparse { group, .. } if ins % group != 0)
}

/// Numbers between -1 and 1 without a pattern that a kernel could use.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Gathered products against our dense one, out of cache, one row, in turn.
fn gather([outs, ins]: [usize; 2], zeros: &[f64], rounds: usize) -> pilotfish_kernels::Result<Vec<Gathered>> {
    let weights = numbers(outs * ins, 1);
    let copies = (OUT_OF_CACHE / (4 * outs * ins)).clamp(1, 64);
    let dense = (0..copies).map(|_| Dense::pack(&weights, outs, ins, Float::F32));
    let dense = dense.collect::<pilotfish_kernels::Result<Vec<_>>>()?;
    let columns = (0..copies).map(|_| Columns::pack(&weights, outs, ins, Kept::F32));
    let columns = columns.collect::<pilotfish_kernels::Result<Vec<_>>>()?;
    let x = numbers(ins, 2);
    let mut magnitudes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    let threshold = |zeros: f64| match (zeros * ins as f64 / 100.0).round() as usize {
        0 => -1.0,
        count => magnitudes[count.min(ins) - 1],
    };
    let mut y = vec![0.0; outs];
    let mut best = vec![[f64::INFINITY; 2]; zeros.len()];
    for round in 0..=rounds {
        for (&zeros, best) in zeros.iter().zip(&mut best) {
            let mut time = |which: usize, work: &mut dyn FnMut() -> pilotfish_kernels::Result<()>| {
                let clock = Instant::now();
                work()?;
                if round > 0 {
                    best[which] = best[which].min(1e6 * clock.elapsed().as_secs_f64() / copies as f64);
                }
                Ok::<_, pilotfish_kernels::KernelError>(())
            };
            let threshold = threshold(zeros);
            time(0, &mut || {
                columns.iter().try_for_each(|columns| {
                    columns.apply(&Active::above(&x, 1, ins, threshold)?, &mut y, &Serial)
                })
            })?;
            time(1, &mut || dense.iter().try_for_each(|dense| dense.apply(&x, 1, &mut y)))?;
        }
    }
    let each = zeros.iter().zip(best);
    Ok(each
        .map(|(&zeros, [gathered, dense])| Gathered { shape: [outs, ins], zeros, gathered, dense })
        .collect())
}

fn run(context: &Context) -> Outcome {
    let options = context.options();
    let texts = options.list::<String>("shapes")?;
    let shapes = texts.iter().map(|text| shape(text)).collect::<Result<Vec<_>, _>>()?;
    let names = options.list::<String>("storage")?;
    let storages = names.iter().map(|name| width_cost::storage(name)).collect::<Result<Vec<_>, _>>()?;
    let zeros = options.list::<f64>("zeros")?;
    let threads = options.list::<usize>("threads")?;
    let widths = options.list::<usize>("widths")?;
    let rounds = options.get::<usize>("rounds")?;
    if [shapes.len(), storages.len(), threads.len(), widths.len(), rounds].contains(&0)
        || widths.contains(&0)
        || threads.contains(&0)
    {
        let why =
            "shapes, storage, threads, widths and rounds must name at least one of each, none of them 0";
        return Err(why.into());
    }
    if zeros.iter().any(|zeros| !(0.0..100.0).contains(zeros)) {
        return Err("zeros are per cent, from 0 to below 100".into());
    }
    let began = Began::now();
    let mut run = Run::open(context.results(), KERNELS.name, options, context.fresh(), context.is_quiet())?;
    let places = |shape: [usize; 2]| if 4 * shape[0] * shape[1] <= IN_CACHE { 2 } else { 1 };
    let steps = threads.len() * (2 + shapes.iter().map(|&shape| places(shape)).sum::<usize>()) + shapes.len();
    run.expect(steps as u64);
    let (mut timed, mut rooflines, mut gathered) = (Vec::<Timed>::new(), Vec::new(), Vec::<Gathered>::new());
    for &threads in &threads {
        let limits = Limits::before(&mut run, threads)?;
        for (&shape, text) in shapes.iter().zip(&texts) {
            for in_cache in [false, true].into_iter().take(places(shape)) {
                let place = if in_cache { "in cache" } else { "out of cache" };
                let id = format!("{text} {place}, {threads} threads");
                timed.extend(run.step(&id, || variants(shape, &names, threads, in_cache, &widths, rounds))?);
            }
        }
        rooflines.push(limits.after(&mut run)?);
    }
    if !zeros.is_empty() {
        for (&shape, text) in shapes.iter().zip(&texts) {
            gathered.extend(run.step(&format!("{text} gathered"), || gather(shape, &zeros, rounds))?);
        }
    }
    let (tables, plots) = show(&timed, &gathered, &rooflines, &widths);
    for table in &tables {
        context.show(&table.terminal());
    }
    let rows = (timed.iter().map(serde_json::to_value))
        .chain(gathered.iter().map(serde_json::to_value))
        .chain(rooflines.iter().map(serde_json::to_value));
    let result = ResultFile {
        experiment: KERNELS.name.into(),
        title: "What one product costs".into(),
        summary: format!(
            "Products of a few rows with one matrix inside ONNX Runtime sessions, by its own kernels and by ours, all \
             storages of a shape in turn, best of {rounds}; beside bound(w) = max(bytes / bandwidth, operations / \
             peak) of this machine, measured in the same run before and after, the better of the two."
        ),
        config: serde_json::to_value(options)?,
        rows: rows.collect::<Result<_, _>>()?,
        tables,
        plots,
        notes: vec![
            format!(
                "Out of cache a session holds copies of the matrix that take up {} MB. In cache it holds one, is run \
                 twice and the second time counts; its time includes the call of the session, some microseconds, and \
                 its bound the operations alone.",
                OUT_OF_CACHE >> 20
            ),
            "ONNX Runtime multiplies bf16 and pruned matrices as dense f32, so its f32 figures stand for them.".into(),
            "Gathered products run outside sessions, with finding the active inputs in their time.".into(),
            width_cost::INTEGERS.into(),
        ],
        ..ResultFile::default()
    };
    let (_, finished) = began.write(&run, result)?;
    Ok(finished)
}

/// The machine's limits, measured before something else is and again after it.
struct Limits(Roofline);

impl Limits {
    fn before(run: &mut Run, threads: usize) -> Result<Self, Failure> {
        Self::measure(run, "roofline", threads).map(Self)
    }

    /// The better of the two.
    fn after(self, run: &mut Run) -> Result<Roofline, Failure> {
        Ok(self.0.best(Self::measure(run, "roofline again", self.0.threads)?))
    }

    fn measure(run: &mut Run, what: &str, threads: usize) -> Result<Roofline, Failure> {
        let measure = || Ok::<_, Failure>(Roofline::measure(threads));
        Ok(run.step(&format!("{what}, {threads} threads"), measure)?)
    }
}

/// All storages of a shape at one place.
fn variants(
    shape: [usize; 2],
    names: &[String],
    threads: usize,
    in_cache: bool,
    widths: &[usize],
    rounds: usize,
) -> Result<Vec<Timed>, Failure> {
    let (mut variants, mut timed) = (Vec::new(), Vec::new());
    for name in names {
        let storage = width_cost::storage(name)?;
        let sparse = match storage {
            Storage::Sparse { keep, group, .. } => keep as f64 / group as f64,
            _ => 1.0,
        };
        for products in [Products::Ort, Products::Pilotfish, Products::PilotfishA8] {
            if !fits(storage, shape[1]) || !width_cost::distinct(names, name, products)? {
                continue;
            }
            variants.push((storage, products));
            timed.push(Timed {
                shape,
                threads,
                in_cache,
                storage: name.clone(),
                products: products.to_string(),
                bytes: packed_bytes(storage, shape).unwrap_or(0) as f64,
                operations: 2.0 * (shape[0] * shape[1]) as f64 * sparse,
                integer: name.starts_with("int"),
                times: Vec::new(),
            });
        }
    }
    let memory = if in_cache { None } else { Some(OUT_OF_CACHE) };
    for (rows, times) in compare(&variants, shape, threads, memory, widths, rounds)? {
        timed.iter_mut().zip(times).for_each(|(timed, time)| timed.times.push((rows, time)));
    }
    Ok(timed)
}

fn show(
    timed: &[Timed],
    gathered: &[Gathered],
    rooflines: &[Roofline],
    widths: &[usize],
) -> (Vec<Table>, Vec<Plot>) {
    let mut tables = vec![width_cost::roofline_table(rooflines)];
    for roofline in rooflines {
        for in_cache in [false, true] {
            let place = if in_cache { "in cache" } else { "out of cache" };
            let header: Vec<String> = ["shape", "storage", "kernel", "bound(1) us", "t(1) us"]
                .map(String::from)
                .into_iter()
                .chain(widths.iter().skip(1).map(|w| format!("x{w}")))
                .chain(widths.iter().map(|w| format!("/bound {w}")))
                .collect();
            let header: Vec<&str> = header.iter().map(String::as_str).collect();
            let mut table = Table::new(format!("Products {place}, {} threads", roofline.threads), &header);
            for own in timed.iter().filter(|t| t.threads == roofline.threads && t.in_cache == in_cache) {
                let Some(&(rows, first)) = own.times.first() else { continue };
                let mut cells = vec![
                    format!("{}x{}", own.shape[0], own.shape[1]),
                    own.storage.clone(),
                    own.products.clone(),
                    format!("{:.1}", own.bound(roofline, rows)),
                    format!("{first:.1}"),
                ];
                cells.extend(own.times.iter().skip(1).map(|(_, time)| format!("{:.2}", time / first)));
                let over = own.times.iter().map(|&(rows, time)| time / own.bound(roofline, rows));
                cells.extend(over.map(|over| format!("{over:.2}")));
                table.row(cells);
            }
            if !table.rows.is_empty() {
                tables.push(table);
            }
        }
    }
    if !gathered.is_empty() {
        let mut table = Table::new(
            "Gathered columns, one row, out of cache",
            &["shape", "zeros %", "us", "dense us", "faster", "1/(1-s)"],
        );
        for own in gathered {
            table.row([
                format!("{}x{}", own.shape[0], own.shape[1]),
                format!("{}", own.zeros),
                format!("{:.1}", own.gathered),
                format!("{:.1}", own.dense),
                format!("{:.2}x", own.dense / own.gathered),
                format!("{:.2}", 1.0 / (1.0 - own.zeros / 100.0)),
            ]);
        }
        tables.push(table);
    }
    tables.push(bars(timed, gathered));
    let plots = rooflines.iter().flat_map(|roofline| plots(timed, roofline.threads)).collect();
    (tables, plots)
}

/// Ours over the roofline of rows, one plot for each of the two largest shapes.
fn plots(timed: &[Timed], threads: usize) -> Vec<Plot> {
    let own = |timed: &&Timed| timed.threads == threads && !timed.in_cache;
    let mut shapes: Vec<[usize; 2]> = timed.iter().filter(own).map(|timed| timed.shape).collect();
    shapes.dedup();
    shapes.sort_by_key(|[outs, ins]| std::cmp::Reverse(outs * ins));
    let plot = |shape: [usize; 2]| Plot {
        title: format!("Time of a product with {}x{}, out of cache, {threads} threads", shape[0], shape[1]),
        x: "rows w".into(),
        y: "us".into(),
        kind: Kind::Lines,
        series: timed
            .iter()
            .filter(own)
            .filter(|timed| timed.shape == shape)
            .map(|timed| Series {
                name: format!("{} {}", timed.storage, timed.products),
                points: timed
                    .times
                    .iter()
                    .map(|&(rows, time)| Point { x: rows as f64, y: time, interval: None })
                    .collect(),
            })
            .collect(),
        reference: None,
    };
    shapes.into_iter().take(2).map(plot).collect()
}

/// The bars of single products: the worst and the best shape of each.
fn bars(timed: &[Timed], gathered: &[Gathered]) -> Table {
    let mut table = Table::new(
        "Bars, one thread",
        &["product", "must reach", "reached, worst shape", "best shape", "shapes that reach it"],
    );
    let mut row = |product: String, must: String, bar: f64, reached: Vec<(f64, [usize; 2])>| {
        let named = |found: Option<&(f64, [usize; 2])>| {
            found.map_or("-".into(), |(value, shape)| format!("{value:.2}x at {}x{}", shape[0], shape[1]))
        };
        let order = |a: &&(f64, [usize; 2]), b: &&(f64, [usize; 2])| a.0.total_cmp(&b.0);
        let met = reached.iter().filter(|(value, _)| *value >= bar).count();
        table.row([
            product,
            must,
            named(reached.iter().min_by(order)),
            named(reached.iter().max_by(order)),
            format!("{met} of {}", reached.len()),
        ]);
        if met < reached.len() {
            table.set_off();
        }
    };
    let ours = |storage: &str| -> Vec<&Timed> {
        let own = |timed: &&Timed| {
            timed.threads == 1 && !timed.in_cache && timed.products == "pilotfish" && timed.storage == storage
        };
        timed.iter().filter(own).collect()
    };
    let mut patterns: Vec<&str> =
        timed.iter().map(|timed| timed.storage.as_str()).filter(|name| name.contains(':')).collect();
    let mut seen = std::collections::BTreeSet::new();
    patterns.retain(|name| seen.insert(*name));
    for pattern in patterns {
        let faster = |rows: usize| -> Vec<(f64, [usize; 2])> {
            let pairs = ours(pattern).into_iter().filter_map(|sparse| {
                let dense = ours("f32").into_iter().find(|dense| dense.shape == sparse.shape)?;
                Some((dense.at(rows)? / sparse.at(rows)?, sparse.shape))
            });
            pairs.collect()
        };
        // Of large matrices; small ones are padded.
        let sizes = ours(pattern).into_iter().filter_map(|sparse| {
            let dense = ours("f32").into_iter().find(|dense| dense.shape == sparse.shape)?;
            Some(dense.bytes / sparse.bytes)
        });
        let bytes = sizes.fold(f64::INFINITY, f64::min);
        let least = match pattern {
            "2:4" => 1.5,
            "1:4" => 2.6,
            _ => 0.8 * bytes,
        };
        let name = format!("{pattern} f32, out of cache");
        let must = format!("{least:.2}x our dense f32 at w = 1 (bytes allow {bytes:.2}x)");
        row(name.clone(), must, least, faster(1));
        row(name, "never slower than dense f32 at w = 8".into(), 1.0, faster(8));
    }
    for zeros in [50.0, 65.0] {
        let least = 0.75 / (1.0 - zeros / 100.0);
        let own = gathered.iter().filter(|own| own.zeros == zeros);
        row(
            format!("gathered, {zeros} % zeros"),
            format!("{least:.2}x our dense f32 at w = 1"),
            least,
            own.map(|own| (own.dense / own.gathered, own.shape)).collect(),
        );
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn shapes_by_name() {
        assert_eq!(shape("49152x576"), Ok([49152, 576]));
        for text in ["", "576", "x", "0x5", "5x0", "-1x4", "1x2x3", "1000001x1", "1000000x1000000", "a x b"] {
            assert!(shape(text).is_err(), "{text}");
        }
        assert!(
            fits(Storage::Sparse { keep: 1, group: 16, kept: pilotfish_graph::Kept::F32 }, 576)
                && !fits(Storage::Sparse { keep: 1, group: 5, kept: pilotfish_graph::Kept::F32 }, 576)
        );
    }

    #[test]
    fn bars_by_hand() {
        let timed = |storage: &str, products: &str, shape, times: [f64; 2]| Timed {
            shape,
            threads: 1,
            in_cache: false,
            storage: storage.into(),
            products: products.into(),
            bytes: if storage == "f32" { 400.0 } else { 225.0 },
            operations: 10.0,
            integer: false,
            times: vec![(1, times[0]), (8, times[1])],
        };
        let all = [
            timed("f32", "ort", [1, 4], [9.0, 9.0]),
            timed("f32", "pilotfish", [1, 4], [3.0, 4.0]),
            timed("2:4", "pilotfish", [1, 4], [2.0, 5.0]),
            timed("f32", "pilotfish", [2, 4], [3.0, 4.0]),
            timed("2:4", "pilotfish", [2, 4], [2.5, 2.0]),
        ];
        let gathered = [Gathered { shape: [1, 4], zeros: 50.0, gathered: 2.0, dense: 3.0 }];
        let table = bars(&all, &gathered);
        assert_eq!(table.rows.len(), 4);
        assert_eq!(
            table.rows[0][1..],
            ["1.50x our dense f32 at w = 1 (bytes allow 1.78x)", "1.20x at 2x4", "1.50x at 1x4", "1 of 2"]
        );
        assert_eq!(table.rows[1][2..], ["0.80x at 1x4", "2.00x at 2x4", "1 of 2"]);
        assert_eq!(
            table.rows[2][1..],
            ["1.50x our dense f32 at w = 1", "1.50x at 1x4", "1.50x at 1x4", "1 of 1"]
        );
        assert_eq!(table.rows[3][4], "0 of 0");
        assert_eq!(table.bold, [0, 1]);
        let roofline = Roofline { threads: 1, bandwidth: 1e6 * 100.0, float: 1e6 * 40.0, byte: 1e6 };
        assert_eq!(all[1].bound(&roofline, 1), 4.0);
        let (tables, plots) = show(&all, &gathered, &[roofline], &[1, 8]);
        assert_eq!((tables.len(), plots.len()), (4, 2));
        assert!(plots.iter().all(|plot| plot.svg().is_ok()));
    }

    #[test]
    fn gathered_products_are_timed() {
        let found = gather([20, 40], &[0.0, 50.0], 1).unwrap();
        assert!(found.iter().all(|own| own.gathered > 0.0 && own.dense > 0.0 && own.dense.is_finite()));
    }
}
