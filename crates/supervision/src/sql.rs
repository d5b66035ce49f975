//! Sufficient statistics of votes as SQL over Parquet, for votes that outgrow a machine's memory.
//!
//! Apache DataFusion runs the queries in this process (feature `datafusion`), Apache Ballista on a cluster (feature
//! `ballista`); the queries are the same. All statistics are sums of integers, so that neither the order of rows nor the
//! number of machines shows in them: a model fitted on [`LongTable::patterns`] is the one fitted in memory, to the bit.
//!
//! | statistic | rows that come back | enough for |
//! |---|---|---|
//! | [`LongTable::patterns`] | one for every distinct row of votes | every model but GLAD, where voters are few |
//! | [`LongTable::pairs`] | `classes^2` for every pair of voters that meet | moments: Snorkel, triplets |
//! | [`LongTable::confusions`] | `classes` for every voter | a step of Dawid-Skene |
//!
//! A table of votes is a Parquet file, or a folder of them, with columns `question`, `worker`, `answer` (or their other
//! names, see [`crate::votes::read`]), of whole numbers or texts. Files must be where every machine can read them.
//!
//! Methods here block; they must not be called from inside an asynchronous task.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray,
};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Field, Int64Type, Schema};
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};

use crate::exact::Sum;
use crate::label_models::Posterior;
use crate::names::Names;
use crate::votes::columns;
use crate::{Result, Rows, SupervisionError, Votes};

/// Most voters of a table whose patterns are counted.
const WIDE: usize = 64;
/// Most voters and classes of a table at all: each is a branch of an expression.
const NAMES: usize = 4096;

/// Where queries run.
pub struct Database {
    runtime: tokio::runtime::Runtime,
    context: SessionContext,
    tables: AtomicUsize,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("session", &self.context.session_id()).finish()
    }
}

fn failed(what: &'static str) -> impl Fn(datafusion::error::DataFusionError) -> SupervisionError {
    move |error| SupervisionError::Query { what, why: error.to_string() }
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    let built = builder.enable_all().build();
    built.map_err(|error| SupervisionError::Query { what: "threads", why: error.to_string() })
}

impl Database {
    /// In this process, on `threads` threads (0: all there are), with at most `memory` bytes for the states of queries
    /// (`None`: no limit); beyond that they go to files where they can.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn here(threads: usize, memory: Option<usize>) -> Result<Self> {
        let runtime = runtime(threads)?;
        let mut config = SessionConfig::new();
        if threads > 0 {
            config = config.with_target_partitions(threads);
        }
        let mut environment = RuntimeEnvBuilder::new();
        if let Some(bytes) = memory {
            environment = environment.with_memory_limit(bytes, 1.0);
        }
        let environment = environment.build_arc().map_err(failed("the database"))?;
        let context = SessionContext::new_with_config_rt(config, environment);
        Ok(Self { runtime, context, tables: AtomicUsize::new(0) })
    }

    /// On a Ballista cluster, whose scheduler is at an address such as `df://host:50050`.
    ///
    /// # Errors
    /// An address that is none.
    #[cfg(feature = "ballista")]
    pub fn cluster(address: &str) -> Result<Self> {
        use ballista::prelude::SessionContextExt;
        let runtime = runtime(0)?;
        let context = runtime.block_on(SessionContext::remote(address)).map_err(failed("the cluster"))?;
        Ok(Self { runtime, context, tables: AtomicUsize::new(0) })
    }

    /// On a Ballista cluster of this machine: a scheduler and `executors` executors with `threads` tasks each, which speak
    /// to each other as they would over a network. It ends with the value.
    ///
    /// # Errors
    /// No executors; ports that cannot be opened.
    #[cfg(feature = "ballista")]
    pub fn local_cluster(executors: usize, threads: usize) -> Result<Self> {
        use ballista::prelude::SessionContextExt;
        use ballista_core::serde::{BallistaCodec, protobuf::scheduler_grpc_client::SchedulerGrpcClient};
        if executors == 0 || threads == 0 {
            return Err(SupervisionError::Empty { what: "executors or their threads" });
        }
        let failed = |why: String| SupervisionError::Query { what: "the cluster", why };
        let runtime = runtime(0)?;
        let context = runtime.block_on(async {
            let scheduler = ballista_scheduler::standalone::new_standalone_scheduler().await;
            let address = scheduler.map_err(|error| failed(error.to_string()))?;
            let (grpc, url) = (
                format!("http://localhost:{}", address.port()),
                format!("df://localhost:{}", address.port()),
            );
            for _ in 0..executors {
                // The scheduler's port is open before its address is known.
                let client = SchedulerGrpcClient::connect(grpc.clone()).await;
                let client = client.map_err(|error| failed(error.to_string()))?;
                let started =
                    ballista_executor::new_standalone_executor(client, threads, BallistaCodec::default())
                        .await;
                started.map_err(|error| failed(error.to_string()))?;
            }
            SessionContext::remote(&url).await.map_err(|error| failed(error.to_string()))
        })?;
        Ok(Self { runtime, context, tables: AtomicUsize::new(0) })
    }

    /// Waits for what a database does. Readers of damaged files may panic in their depths; to whoever passed the file
    /// that is one more error.
    fn wait<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = datafusion::error::Result<T>>,
    ) -> Result<T> {
        let done = catch_unwind(AssertUnwindSafe(|| self.runtime.block_on(work)));
        let damaged = || SupervisionError::Query { what, why: "a file is damaged".into() };
        done.map_err(|_| damaged())?.map_err(failed(what))
    }

    fn run(&self, what: &'static str, query: &str) -> Result<Vec<RecordBatch>> {
        self.wait(what, async { self.context.sql(query).await?.collect().await })
    }

    /// Registers Parquet files under a name of their own.
    fn register(&self, path: &Path) -> Result<String> {
        let name = format!("t{}", self.tables.fetch_add(1, Ordering::Relaxed));
        let file = |why: String| SupervisionError::Format { path: path.display().to_string(), why };
        // A path that does not exist would be an empty table.
        let found = std::fs::metadata(path);
        found.map_err(|source| SupervisionError::Io { path: path.display().to_string(), source })?;
        let text = path.to_str().ok_or_else(|| file("the path is not UTF-8".into()))?;
        let options = ParquetReadOptions::default();
        let done = self.wait("a table", self.context.register_parquet(name.as_str(), text, options));
        done.map_err(|error| file(error.to_string()))?;
        Ok(name)
    }

    fn schema(&self, table: &str) -> Result<Schema> {
        let frame = self.wait("columns", self.context.table(table))?;
        Ok(frame.schema().as_arrow().clone())
    }

    /// A long table of votes.
    ///
    /// # Errors
    /// Files that cannot be read; columns that are missing or of other types; empty cells; no votes; more than 4,096 voters
    /// or classes, or a single class.
    pub fn votes(&self, path: &Path) -> Result<LongTable<'_>> {
        let table = self.register(path)?;
        let schema = self.schema(&table)?;
        let file = |why: String| SupervisionError::Format { path: path.display().to_string(), why };
        let header: Vec<String> = schema.fields().iter().map(|field| field.name().to_lowercase()).collect();
        let places = columns(&header).map_err(file)?;
        let names = places.map(|place| quoted(schema.field(place).name()));
        let mut kinds = [Kind::Number; 3];
        for (kind, place) in kinds.iter_mut().zip(places) {
            let field = schema.field(place);
            *kind = Kind::of(field.data_type()).ok_or_else(|| {
                file(format!("column {:?} is neither of whole numbers nor of texts", field.name()))
            })?;
        }
        let [question, worker, answer] = &names;
        let counts = self.run(
            "empty cells",
            &format!("SELECT COUNT(*), COUNT({question}), COUNT({worker}), COUNT({answer}) FROM {table}"),
        )?;
        let counts: Vec<i64> = (0..4).map(|column| number(&counts, 0, column)).collect::<Result<_>>()?;
        if counts[0] == 0 {
            return Err(SupervisionError::Empty { what: "votes" });
        }
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(file("a value is missing".into()));
        }
        let distinct = |what: &'static str, column: &str| -> Result<Vec<String>> {
            let query = format!("SELECT DISTINCT {column} AS name FROM {table} LIMIT {}", NAMES + 1);
            let mut names = Vec::new();
            for batch in self.run(what, &query)? {
                for row in 0..batch.num_rows() {
                    let name = array_value_to_string(batch.column(0), row);
                    names.push(
                        name.map_err(|error| SupervisionError::Query { what, why: error.to_string() })?,
                    );
                }
            }
            if names.len() > NAMES {
                return Err(SupervisionError::TooLarge {
                    what,
                    got: names.len() as u64,
                    limit: NAMES as u64,
                });
            }
            // By number if all are numbers, as in memory.
            match names.iter().map(|name| name.parse().ok()).collect::<Option<Vec<i64>>>() {
                Some(_) => names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default()),
                None => names.sort(),
            }
            Ok(names)
        };
        let (voters, classes) = (distinct("voters", worker)?, distinct("classes", answer)?);
        if classes.len() < 2 {
            return Err(SupervisionError::Shape { what: "classes", got: classes.len(), want: 2 });
        }
        let coded = format!(
            "SELECT {question} AS item, {} AS voter, {} AS vote FROM {table}",
            codes(worker, kinds[1], &voters),
            codes(answer, kinds[2], &classes)
        );
        Ok(LongTable {
            database: self,
            coded,
            votes: counts[0] as u64,
            voters: Names::listed("voter", voters)?,
            classes: Names::listed("class", classes)?,
        })
    }
}

/// Writes votes as a long table: Parquet files in a new folder, `parts` of them, with columns `question`, `worker` and
/// `answer`. Names that are all whole numbers are written as such.
///
/// # Errors
/// A folder that exists; no parts; whatever cannot be written.
pub fn write_votes(votes: &Votes, folder: &Path, parts: usize) -> Result<()> {
    if parts == 0 {
        return Err(SupervisionError::Empty { what: "parts" });
    }
    let io = |source| SupervisionError::Io { path: folder.display().to_string(), source };
    let broken = |error: String| SupervisionError::Format { path: folder.display().to_string(), why: error };
    std::fs::create_dir(folder).map_err(io)?;
    let columns = [votes.item_names(), votes.voter_names(), votes.class_names()].map(Column::new);
    let fields = ["question", "worker", "answer"].iter().zip(&columns);
    let schema = Arc::new(Schema::new(
        fields.map(|(name, column)| Field::new(*name, column.kind(), false)).collect::<Vec<_>>(),
    ));
    let piece = votes.items().div_ceil(parts);
    for part in 0..parts {
        let file = std::fs::File::create(folder.join(format!("part-{part:03}.parquet"))).map_err(io)?;
        let writer = ArrowWriter::try_new(file, schema.clone(), None);
        let mut writer = writer.map_err(|error| broken(error.to_string()))?;
        let items = part * piece..((part + 1) * piece).min(votes.items());
        for first in items.clone().step_by(BATCH) {
            let mut cells: [Vec<usize>; 3] = Default::default();
            for item in first..(first + BATCH).min(items.end) {
                votes.visit(item, |voter, vote| {
                    cells.iter_mut().zip([item, voter, vote]).for_each(|(cells, cell)| cells.push(cell));
                });
            }
            let arrays = columns.iter().zip(&cells).map(|(column, cells)| column.array(cells)).collect();
            let batch =
                RecordBatch::try_new(schema.clone(), arrays).map_err(|error| broken(error.to_string()))?;
            writer.write(&batch).map_err(|error| broken(error.to_string()))?;
        }
        writer.close().map_err(|error| broken(error.to_string()))?;
    }
    Ok(())
}

/// Items a batch that is written.
const BATCH: usize = 8192;

/// Names as a column: numbers where all of them are numbers.
struct Column<'a> {
    names: &'a Names,
    numbers: Option<Vec<i64>>,
}

impl<'a> Column<'a> {
    fn new(names: &'a Names) -> Self {
        // Only what a number is written as: 007 is a text.
        let number = |index| {
            let name = names.get(index);
            name.parse::<i64>().ok().filter(|number| number.to_string() == name)
        };
        Self { names, numbers: (0..names.len()).map(number).collect() }
    }

    fn kind(&self) -> DataType {
        if self.numbers.is_some() { DataType::Int64 } else { DataType::Utf8 }
    }

    fn array(&self, indices: &[usize]) -> ArrayRef {
        match &self.numbers {
            Some(numbers) => {
                Arc::new(Int64Array::from_iter_values(indices.iter().map(|index| numbers[*index])))
            }
            None => {
                Arc::new(StringArray::from_iter_values(indices.iter().map(|index| self.names.get(*index))))
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Number,
    Text,
}

impl Kind {
    fn of(kind: &DataType) -> Option<Self> {
        match kind {
            kind if kind.is_integer() => Some(Self::Number),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Self::Text),
            _ => None,
        }
    }
}

/// A name as SQL writes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An expression that numbers the names of a column.
fn codes(column: &str, kind: Kind, names: &[String]) -> String {
    let branch = |(code, name): (usize, &String)| match kind {
        Kind::Number => format!("WHEN {column} = {name} THEN {code} "),
        Kind::Text => format!("WHEN {column} = '{}' THEN {code} ", name.replace('\'', "''")),
    };
    format!("CASE {}END", names.iter().enumerate().map(branch).collect::<String>())
}

fn number(batches: &[RecordBatch], row: usize, column: usize) -> Result<i64> {
    let first = batches.iter().find(|batch| batch.num_rows() > 0);
    let value = first.and_then(|batch| batch.column(column).as_primitive_opt::<Int64Type>());
    let value =
        value.filter(|values| row < values.len() && !values.is_null(row)).map(|values| values.value(row));
    value.ok_or(SupervisionError::Query { what: "an answer", why: "it is not a whole number".into() })
}

/// A column of whole numbers.
fn integers(column: &ArrayRef) -> Result<&Int64Array> {
    column
        .as_primitive_opt::<Int64Type>()
        .filter(|values| values.null_count() == 0)
        .ok_or(SupervisionError::Query { what: "an answer", why: "it is not of whole numbers".into() })
}

/// How often two voters gave two answers to the same items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The two voters, the first before the second.
    pub voters: [usize; 2],
    /// What each said.
    pub votes: [usize; 2],
    /// On how many items.
    pub items: u64,
}

/// Votes in Parquet files.
#[derive(Debug)]
pub struct LongTable<'a> {
    database: &'a Database,
    /// The votes as numbers: `item`, `voter`, `vote`.
    coded: String,
    votes: u64,
    voters: Names,
    classes: Names,
}

impl LongTable<'_> {
    /// Names of the voters, by number if all are numbers, else by text.
    pub fn voters(&self) -> &Names {
        &self.voters
    }

    /// Names of the classes, in the same order.
    pub fn classes(&self) -> &Names {
        &self.classes
    }

    /// Number of votes.
    pub fn len(&self) -> u64 {
        self.votes
    }

    /// Never: a table without votes is refused.
    pub fn is_empty(&self) -> bool {
        self.votes == 0
    }

    /// A row an item with a column a voter, -1 where it does not vote; and the number of its votes.
    fn wide(&self) -> Result<String> {
        let m = self.voters.len();
        if m > WIDE {
            let what = "voters whose patterns are counted";
            return Err(SupervisionError::TooLarge { what, got: m as u64, limit: WIDE as u64 });
        }
        let column =
            |voter| format!("COALESCE(MAX(CASE WHEN voter = {voter} THEN vote END), -1) AS v{voter}");
        let columns: Vec<String> = (0..m).map(column).collect();
        Ok(format!(
            "SELECT item, {}, COUNT(*) AS votes FROM ({}) GROUP BY item",
            columns.join(", "),
            self.coded
        ))
    }

    fn places(&self) -> String {
        (0..self.voters.len()).map(|voter| format!("v{voter}")).collect::<Vec<_>>().join(", ")
    }

    /// Distinct rows of votes and how many items have each, in ascending order of the rows.
    ///
    /// # Errors
    /// More than 64 voters; two votes of a voter on an item; a query that fails.
    pub fn patterns(&self) -> Result<Rows<'static>> {
        let (m, places) = (self.voters.len(), self.places());
        let query = format!(
            "SELECT {places}, COUNT(*) AS items, SUM(votes) AS votes FROM ({}) GROUP BY {places}",
            self.wide()?
        );
        let mut found: Vec<(Vec<i64>, u64)> = Vec::new();
        let (mut votes, mut distinct) = (0u64, 0u64);
        for batch in self.database.run("patterns of votes", &query)? {
            let columns: Vec<&Int64Array> = batch.columns().iter().map(integers).collect::<Result<_>>()?;
            for row in 0..batch.num_rows() {
                let cells: Vec<i64> = columns[..m].iter().map(|column| column.value(row)).collect();
                let items = columns[m].value(row) as u64;
                votes += columns[m + 1].value(row) as u64;
                distinct += items * cells.iter().filter(|cell| **cell >= 0).count() as u64;
                found.push((cells, items));
            }
        }
        if votes != distinct {
            let why =
                format!("{} votes are a second one of the same voter on the same item", votes - distinct);
            return Err(SupervisionError::Query { what: "patterns of votes", why });
        }
        found.sort_unstable();
        let (cells, counts): (Vec<Vec<i64>>, Vec<u64>) = found.into_iter().unzip();
        let patterns = Votes::from_dense(cells.len(), m, self.classes.len(), &cells.concat())?;
        let items = Names::numbered(patterns.items());
        Rows::from_counts(patterns.with_names(items, self.voters.clone(), self.classes.clone())?, counts)
    }

    /// What every two voters said of the items that both voted on, in ascending order. Costs, item by item, the square of
    /// its votes.
    ///
    /// # Errors
    /// A query that fails.
    pub fn pairs(&self) -> Result<Vec<Pair>> {
        let coded = &self.coded;
        let query = format!(
            "SELECT a.voter AS i, b.voter AS j, a.vote AS x, b.vote AS y, COUNT(*) AS items FROM ({coded}) AS a \
             JOIN ({coded}) AS b ON a.item = b.item WHERE a.voter < b.voter GROUP BY a.voter, b.voter, a.vote, b.vote"
        );
        let mut pairs = Vec::new();
        for batch in self.database.run("pairs of votes", &query)? {
            let columns: Vec<&Int64Array> = batch.columns().iter().map(integers).collect::<Result<_>>()?;
            pairs.extend((0..batch.num_rows()).map(|row| {
                let at = |column: usize| columns[column].value(row) as usize;
                Pair { voters: [at(0), at(1)], votes: [at(2), at(3)], items: at(4) as u64 }
            }));
        }
        pairs.sort_unstable();
        Ok(pairs)
    }

    /// Writes the label and the probabilities of every item as Parquet files into a folder: columns `item`, `label` (the
    /// name of the class) and `p0`, `p1` and so on. `posterior` is that of a model fitted to `rows`, which are this table's
    /// [`patterns`](Self::patterns).
    ///
    /// # Errors
    /// Rows and a posterior that do not fit each other or the table; a folder that exists; whatever cannot be written.
    pub fn write_posterior(&self, rows: &Rows<'_>, posterior: &Posterior, folder: &Path) -> Result<()> {
        let (m, k) = (self.voters.len(), self.classes.len());
        let shape = |what, got, want| match got == want {
            true => Ok(()),
            false => Err(SupervisionError::Shape { what, got, want }),
        };
        shape("voters of the rows", rows.votes().voters(), m)?;
        shape("classes of the posterior", posterior.classes(), k)?;
        shape("rows of the posterior", posterior.items(), rows.len())?;
        let io = |source| SupervisionError::Io { path: folder.display().to_string(), source };
        std::fs::create_dir(folder).map_err(io)?;
        let mut fields: Vec<Field> =
            (0..m).map(|voter| Field::new(format!("w{voter}"), DataType::Int64, false)).collect();
        let mut arrays: Vec<ArrayRef> = Vec::new();
        for voter in 0..m {
            let vote = |row| rows.votes().vote(row, voter).map_or(-1, |vote| vote as i64);
            arrays.push(Arc::new(Int64Array::from_iter_values((0..rows.len()).map(vote))));
        }
        fields.push(Field::new("label", DataType::Int64, false));
        let label = |row| posterior.label(row) as i64;
        arrays.push(Arc::new(Int64Array::from_iter_values((0..rows.len()).map(label))));
        for class in 0..k {
            fields.push(Field::new(format!("p{class}"), DataType::Float64, false));
            let p = |row| posterior.row(row)[class];
            arrays.push(Arc::new(Float64Array::from_iter_values((0..rows.len()).map(p))));
        }
        let what = "the table of patterns";
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays);
        let batch = batch.map_err(|error| SupervisionError::Query { what, why: error.to_string() })?;
        // Through a file: a table in memory is not on the other machines of a cluster.
        let scratch = folder.join("patterns");
        let frame = SessionContext::new().read_batch(batch).map_err(failed(what))?;
        self.write(what, &scratch, frame)?;
        let table = self.database.register(&scratch)?;
        let matches: Vec<String> = (0..m).map(|voter| format!("v{voter} = w{voter}")).collect();
        let probabilities: Vec<String> = (0..k).map(|class| format!("p{class}")).collect();
        let labels: String = (0..k)
            .map(|class| {
                format!("WHEN label = {class} THEN '{}' ", self.classes.get(class).replace('\'', "''"))
            })
            .collect();
        let query = format!(
            "SELECT item, CASE {labels}END AS label, {} FROM ({}) JOIN {table} ON {}",
            probabilities.join(", "),
            self.wide()?,
            matches.join(" AND ")
        );
        let out = folder.join("items");
        let frame = self.database.wait("the posterior", self.database.context.sql(&query))?;
        self.write("the posterior", &out, frame)?;
        std::fs::remove_dir_all(&scratch).map_err(io)
    }

    fn write(
        &self,
        what: &'static str,
        folder: &Path,
        frame: datafusion::dataframe::DataFrame,
    ) -> Result<()> {
        let path = folder.to_str().ok_or_else(|| SupervisionError::Format {
            path: folder.display().to_string(),
            why: "the path is not UTF-8".into(),
        })?;
        let options = DataFrameWriteOptions::new().with_single_file_output(false);
        self.database.wait(what, frame.write_parquet(&format!("{path}/"), options, None)).map(|_| ())
    }

    /// Expected votes of every voter by truth and vote, `[voter][truth * classes + vote]`, for probabilities in Parquet
    /// files with columns `item` and `p0`, `p1` and so on, as [`write_posterior`](Self::write_posterior) leaves them in its
    /// folder's `items`. Votes on items that are not there do not count.
    ///
    /// # Errors
    /// Files that cannot be read or lack a column; probabilities outside 0 to 1; a query that fails.
    pub fn confusions(&self, posterior: &Path) -> Result<Vec<Vec<f64>>> {
        let (m, k) = (self.voters.len(), self.classes.len());
        let table = self.database.register(posterior)?;
        let what = "confusion sums";
        let range: Vec<String> =
            (0..k).map(|class| format!("NOT (p{class} >= 0 AND p{class} <= 1)")).collect();
        let bad =
            self.database.run(what, &format!("SELECT COUNT(*) FROM {table} WHERE {}", range.join(" OR ")))?;
        if number(&bad, 0, 0)? != 0 {
            return Err(SupervisionError::Query { what, why: "a probability is outside 0 to 1".into() });
        }
        // Multiples of 2^-60, added as integers: what the fits in memory do.
        let sum = |class| {
            format!("SUM(CAST(CAST(p{class} * {}.0 AS BIGINT) AS DECIMAL(38, 0))) AS s{class}", Sum::UNIT)
        };
        let sums: Vec<String> = (0..k).map(sum).collect();
        let query = format!(
            "SELECT voter, vote, {} FROM ({}) AS a JOIN {table} AS b ON a.item = b.item GROUP BY voter, vote",
            sums.join(", "),
            self.coded
        );
        let mut out = vec![vec![0.0; k * k]; m];
        for batch in self.database.run(what, &query)? {
            let (voters, votes) = (integers(batch.column(0))?, integers(batch.column(1))?);
            for class in 0..k {
                let sums = batch.column(2 + class).as_primitive_opt::<Decimal128Type>();
                let sums =
                    sums.ok_or(SupervisionError::Query { what, why: "not a decimal number".into() })?;
                for row in 0..batch.num_rows() {
                    let place = class * k + votes.value(row) as usize;
                    out[voters.value(row) as usize][place] = Sum::of_units(sums.value(row)).value();
                }
            }
        }
        Ok(out)
    }
}
