//! Statistics of votes by SQL over Parquet, in this process or on a cluster, against the same votes in memory.
//!
//! Needs a build with the feature `ballista` (or `datafusion`, for that engine alone).

use super::{Choice, Context, Experiment, Outcome};

/// The experiment.
pub(super) const LABEL_SCALE: Experiment = Experiment {
    name: "label-scale",
    about: "sufficient statistics of votes by SQL over Parquet, in one process or on a cluster, against memory",
    needs: &[],
    library: false,
    options: &[
        Choice { name: "items", default: "10000,100000,1000000", about: "numbers of items" },
        Choice { name: "voters", default: "10", about: "voters, each silent on one item in twenty" },
        Choice {
            name: "engine",
            default: "datafusion",
            about: "datafusion: this process; ballista: a cluster of this machine",
        },
        Choice { name: "executors", default: "2", about: "executors of the cluster" },
        Choice { name: "threads", default: "2", about: "threads of the process, or tasks of each executor" },
        Choice { name: "parts", default: "8", about: "Parquet files" },
        Choice { name: "pairs", default: "100000", about: "items up to which pairs are counted by a join" },
        Choice { name: "seed", default: "0", about: "seed of the votes" },
    ],
    run,
};

#[cfg(not(feature = "datafusion"))]
fn run(_: &Context) -> Outcome {
    Err("this build has no database; `cargo run -p xtask --features ballista -- experiment label-scale` makes one".into())
}

#[cfg(feature = "datafusion")]
fn run(context: &Context) -> Outcome {
    engine::run(context)
}

#[cfg(feature = "datafusion")]
mod engine {
    use std::time::Instant;

    use pilotfish_model::Streams;
    use pilotfish_supervision::label_models::{DawidSkene, LabelModel};
    use pilotfish_supervision::sql::{Database, write_votes};
    use pilotfish_supervision::{Rows, Votes};
    use rand::Rng;
    use serde::{Deserialize, Serialize};

    use super::super::page::{Began, Page, lines};
    use super::super::{Context, Outcome};
    use super::LABEL_SCALE;
    use crate::error::Failure;
    use crate::machine;
    use crate::plots::{Point, Series};
    use crate::steps::Run;
    use crate::tables::Table;

    /// What was measured of one size. Times in seconds.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    struct Cell {
        items: usize,
        votes: u64,
        patterns: usize,
        file_mb: f64,
        /// Counting distinct rows in memory, and by the database.
        count: [f64; 2],
        /// Dawid-Skene on the counts, in memory.
        fit: f64,
        /// Writing a label and probabilities for every item, by the database.
        label: f64,
        /// Confusion sums, by the database.
        confusions: f64,
        /// Pairs of voters, by the database; not for large sizes.
        pairs: Option<f64>,
        /// What differs between the two: nothing, one hopes.
        differs: Vec<String>,
        peak_mb: Option<f64>,
    }

    /// Votes of two classes, errors by class, one in twenty an abstention.
    fn draw(items: usize, voters: usize, seed: u64) -> Result<Votes, Failure> {
        let mut rng = Streams::new(seed).fork(items as u64).stream("votes");
        let rates: Vec<[f64; 2]> =
            (0..voters).map(|_| [rng.random_range(0.1..0.45), rng.random_range(0.55..0.95)]).collect();
        let mut cells: Vec<i8> = Vec::with_capacity(items * voters);
        for _ in 0..items {
            let y = usize::from(rng.random_bool(0.4));
            for (voter, rate) in rates.iter().enumerate() {
                let vote = i8::from(rng.random_bool(rate[y]));
                // Everybody has seen every item or it is in no file.
                cells.push(if voter > 0 && rng.random_bool(0.05) { -1 } else { vote });
            }
        }
        Ok(Votes::from_dense(items, voters, 2, &cells)?)
    }

    fn size(folder: &std::path::Path) -> std::io::Result<f64> {
        let sizes = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len()));
        Ok(sizes.sum::<std::io::Result<u64>>()? as f64 / 1e6)
    }

    /// Votes of two classes by both voters of every pair, counted item by item.
    fn pairs(votes: &Votes) -> Vec<u64> {
        let m = votes.voters();
        let mut counts = vec![0; m * m * 4];
        for item in 0..votes.items() {
            let row: Vec<_> = votes.row(item).collect();
            for (at, (i, x)) in row.iter().enumerate() {
                row[at + 1..].iter().for_each(|(j, y)| counts[(i * m + j) * 4 + 2 * x + y] += 1);
            }
        }
        counts
    }

    fn measure(database: &Database, items: usize, context: &Context) -> Result<Cell, Failure> {
        let options = context.options();
        let votes = draw(items, options.get("voters")?, options.get("seed")?)?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("votes");
        write_votes(&votes, &path, options.get("parts")?)?;
        let clock = Instant::now();
        let here = Rows::of(&votes)?;
        let counted = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let model = DawidSkene::default();
        let fitted = model.fit_rows(&here)?;
        let fit = clock.elapsed().as_secs_f64();

        let table = database.votes(&path)?;
        let clock = Instant::now();
        let there = table.patterns()?;
        let count = [counted, clock.elapsed().as_secs_f64()];
        let same = model.fit_rows(&there)?;
        let mut differs = Vec::new();
        let mut check = |what: &str, equal: bool| {
            if !equal {
                differs.push(what.to_owned());
            }
        };
        check("the objective", fitted.objective == same.objective);
        check("the class balance", fitted.prior == same.prior);
        check("voters", fitted.voters == same.voters);
        let clock = Instant::now();
        let out = folder.path().join("labels");
        table.write_posterior(&there, &same.posterior, &out)?;
        let label = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let sums = table.confusions(&out.join("items"))?;
        let confusions = clock.elapsed().as_secs_f64();
        check("confusion sums", fitted.voters.iter().zip(&sums).all(|(voter, sums)| voter.counts == *sums));
        let joined = if items <= options.get::<usize>("pairs")? {
            let clock = Instant::now();
            let found = table.pairs()?;
            let seconds = clock.elapsed().as_secs_f64();
            let (m, want) = (votes.voters(), pairs(&votes));
            let mut counts = vec![0; want.len()];
            for pair in found {
                let ([i, j], [x, y]) = (pair.voters, pair.votes);
                counts[(i * m + j) * 4 + 2 * x + y] = pair.items;
            }
            check("pairs", counts == want);
            Some(seconds)
        } else {
            None
        };
        Ok(Cell {
            items,
            votes: votes.len(),
            patterns: here.len(),
            file_mb: size(&path)?,
            count,
            fit,
            label,
            confusions,
            pairs: joined,
            differs,
            peak_mb: machine::peak_memory_mb(),
        })
    }

    fn database(engine: &str, executors: usize, threads: usize) -> Result<Database, Failure> {
        match engine {
            "datafusion" => Ok(Database::here(threads, None)?),
            #[cfg(feature = "ballista")]
            "ballista" => Ok(Database::local_cluster(executors, threads)?),
            #[cfg(not(feature = "ballista"))]
            "ballista" => {
                Err(format!("{executors} executors: this build lacks the feature `ballista`").into())
            }
            other => Err(format!("--engine {other:?}: there are datafusion, ballista").into()),
        }
    }

    pub(super) fn run(context: &Context) -> Outcome {
        let options = context.options();
        let sizes = options.list::<usize>("items")?;
        let voters = options.get::<usize>("voters")?;
        let (engine, executors) = (options.text("engine")?, options.get::<usize>("executors")?);
        let threads = options.get::<usize>("threads")?;
        if sizes.is_empty() || sizes.iter().any(|items| !(100..=100_000_000).contains(items)) {
            return Err("--items must be from 100 to 100000000".into());
        }
        if !(3..=64).contains(&voters) {
            return Err("--voters must be from 3 to 64".into());
        }
        let began = Began::now();
        let mut run =
            Run::open(context.results(), LABEL_SCALE.name, options, context.fresh(), context.is_quiet())?;
        run.expect(sizes.len() as u64);
        let mut held = None;
        let mut cells: Vec<Cell> = Vec::new();
        for &items in &sizes {
            cells.push(run.step(&format!("{items} items"), || {
                if held.is_none() {
                    held = Some(database(engine, executors, threads)?);
                }
                match &held {
                    Some(database) => measure(database, items, context),
                    None => Err("no database".into()),
                }
            })?);
        }
        let place = match engine {
            "ballista" => format!("Ballista, a scheduler and {executors} executors of {threads} tasks"),
            _ => format!("DataFusion, {threads} threads"),
        };
        let mut table = Table::new(
            format!("{place}: seconds for {voters} voters, against counting in memory"),
            &[
                "items",
                "votes",
                "distinct rows",
                "Parquet, MB",
                "count",
                "in memory",
                "fit",
                "label items",
                "confusion sums",
                "pairs",
                "peak, MB",
                "equal",
            ],
        );
        let seconds = |value: f64| format!("{value:.3}");
        for cell in &cells {
            table.row([
                cell.items.to_string(),
                cell.votes.to_string(),
                cell.patterns.to_string(),
                format!("{:.1}", cell.file_mb),
                seconds(cell.count[1]),
                seconds(cell.count[0]),
                seconds(cell.fit),
                seconds(cell.label),
                seconds(cell.confusions),
                cell.pairs.map_or("-".into(), seconds),
                cell.peak_mb.map_or("-".into(), |mb| format!("{mb:.0}")),
                if cell.differs.is_empty() {
                    "to the bit".into()
                } else {
                    format!("not: {}", cell.differs.join(", "))
                },
            ]);
        }
        let points = |value: fn(&Cell) -> f64| {
            let point = |cell: &Cell| Point {
                x: (cell.items as f64).log10(),
                y: value(cell).log10(),
                interval: None,
            };
            cells.iter().map(point).collect::<Vec<_>>()
        };
        let series = vec![
            Series { name: place.clone(), points: points(|cell| cell.count[1]) },
            Series { name: "in memory".into(), points: points(|cell| cell.count[0]) },
        ];
        let plot =
            lines("Counting distinct rows of votes", "items, power of ten", "seconds, power of ten", series);
        let different = cells.iter().filter(|cell| !cell.differs.is_empty()).count();
        let verdict = match different {
            0 => "equal to those in memory to the bit at every size".to_owned(),
            some => format!("NOT equal to those in memory at {some} of {} sizes", cells.len()),
        };
        let last = cells.last().ok_or("no sizes")?;
        let summary = format!(
            "{place}: Dawid-Skene on counts by SQL, labels, and confusion sums are {verdict}. {} items x {voters} voters: \
             {:.2} s to count {} distinct rows in {:.0} MB of Parquet (in memory {:.2} s), {:.2} s to fit them, {:.2} s to \
             label every item.",
            last.items, last.count[1], last.patterns, last.file_mb, last.count[0], last.fit, last.label
        );
        let notes = vec![
            "The database reads compressed files from disk and sorts votes by item; counting in memory starts from a table \
             that is already in order. A database is for votes that do not fit, not for speed."
                .into(),
            "Distinct rows, pairs and confusion sums are sums of integers (confusion sums in units of 2^-60), so that no order \
             of rows or machines shows in them."
                .into(),
            "Everything ran on one machine, the cluster's executors too: times say what the detour over a network's protocols \
             costs, not what more machines gain."
                .into(),
        ];
        let page = Page {
            experiment: &LABEL_SCALE,
            title: "Votes by SQL".into(),
            summary,
            seeds: vec![options.get("seed")?],
            rows: cells.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
            tables: vec![table],
            plots: vec![plot],
            notes,
        };
        page.write(context, &run, began)
    }
}
