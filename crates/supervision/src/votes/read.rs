//! Files of votes.
//!
//! | ending | what it holds |
//! |---|---|
//! | `.csv`, `.tsv` | a header and one vote a line: `question,worker,answer`, or `score` for numbers |
//! | `.jsonl`, `.ndjson` | one object a line with these fields |
//! | `.parquet` | rows with these columns; needs the feature `parquet`, which is on unless turned off |
//! | `.npy` | a matrix, items x voters: integers are classes, -1 abstains; floating-point numbers are scores, NaN is none |
//!
//! A column may also be called `item` or `task`, `voter` or `annotator`, `label` or `vote`. Classes are sorted: by
//! number if all are numbers, else by name. A byte order mark and carriage returns are allowed; an empty field, a
//! missing column, a second vote of one voter on one item are errors that name the line or the pair.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

#[cfg(feature = "parquet")]
use super::parquet;
use super::{Scores, Votes, npy};
use crate::names::{Names, NamesBuilder};
use crate::{Result, SupervisionError};

/// Longest line of a file, bytes.
const LONGEST: u64 = 1 << 20;

/// What a file of votes holds.
#[derive(Clone, Debug)]
pub enum Table {
    /// Classes.
    Votes(Votes),
    /// Numbers.
    Scores(Scores),
}

impl Table {
    /// The votes.
    ///
    /// # Errors
    /// If there are scores, which need thresholds first.
    pub fn votes(self) -> Result<Votes> {
        match self {
            Self::Votes(votes) => Ok(votes),
            Self::Scores(_) => Err(SupervisionError::Format {
                path: "votes".into(),
                why: "these are scores, not classes; a threshold makes votes of them".into(),
            }),
        }
    }
}

/// Reads a file of votes by its ending.
///
/// ```
/// use pilotfish_supervision::votes::read;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("votes.csv");
/// std::fs::write(&path, "question,worker,answer\nq1,ann,cat\nq1,bob,dog\nq2,ann,dog\n")?;
/// let votes = read(&path)?.votes()?;
/// assert_eq!((votes.items(), votes.voters(), votes.classes()), (2, 2, 2));
/// assert_eq!(votes.class_names().get(votes.vote(0, 1).unwrap_or(9)), "dog");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A file that cannot be read or is not what its ending says; votes that are not valid.
pub fn read(path: &Path) -> Result<Table> {
    match ending(path).as_str() {
        "csv" => csv(path, b',')?.finish(),
        "tsv" => csv(path, b'\t')?.finish(),
        "jsonl" | "ndjson" => jsonl(path)?.finish(),
        "parquet" => parquet(Long::votes(path), path)?.finish(),
        "npy" => npy::read(path),
        _ => Err(SupervisionError::Format {
            path: shown(path),
            why: "the ending is none of csv, tsv, jsonl, ndjson, parquet, npy".into(),
        }),
    }
}

/// Reads known truths, `question,truth` (csv, tsv, jsonl, parquet), for the items of `votes`. An item that the file lacks
/// has none; a class that nobody votes for is given as `votes.classes()`, which no label equals. Truths of other items are
/// left out.
///
/// # Errors
/// As [`read`]; two truths for one item.
pub fn read_truth(path: &Path, votes: &Votes) -> Result<Vec<Option<usize>>> {
    let mut long = match ending(path).as_str() {
        "tsv" => Long::truth(path).read_csv(path, b'\t')?,
        "jsonl" | "ndjson" => Long::truth(path).read_jsonl(path)?,
        "parquet" => parquet(Long::truth(path), path)?,
        _ => Long::truth(path).read_csv(path, b',')?,
    };
    let (items, classes) = (votes.item_names().index(), votes.class_names().index());
    let names = std::mem::take(&mut long.items).finish();
    let labels = std::mem::take(&mut long.classes).finish();
    let mut truth = vec![None; votes.items()];
    let mut seen = HashSet::new();
    for (item, _, class) in long.triples {
        let name = names.get(item as usize);
        if !seen.insert(item) {
            return Err(SupervisionError::Name {
                what: "question",
                name: name.into(),
                why: "has two truths",
            });
        }
        if let Some(item) = items.get(&name) {
            truth[*item] = Some(classes.get(&labels.get(class as usize)).copied().unwrap_or(votes.classes()));
        }
    }
    if truth.iter().all(Option::is_none) {
        return Err(SupervisionError::Empty { what: "truths of these items" });
    }
    Ok(truth)
}

fn csv(path: &Path, delimiter: u8) -> Result<Long> {
    Long::votes(path).read_csv(path, delimiter)
}

fn jsonl(path: &Path) -> Result<Long> {
    Long::votes(path).read_jsonl(path)
}

#[cfg(feature = "parquet")]
fn parquet(long: Long, path: &Path) -> Result<Long> {
    parquet::fill(long, path)
}

#[cfg(not(feature = "parquet"))]
fn parquet(_: Long, path: &Path) -> Result<Long> {
    let why = "Parquet files are not read by a build without the feature `parquet`".into();
    Err(SupervisionError::Format { path: shown(path), why })
}

/// Rows of a long table, as they are read.
pub(super) struct Long {
    path: String,
    truth: bool,
    items: NamesBuilder,
    voters: NamesBuilder,
    classes: NamesBuilder,
    triples: Vec<(u32, u32, u32)>,
    scores: Option<Vec<f64>>,
}

/// Names that a column may have.
pub(super) const QUESTION: &[&str] = &["question", "item", "task"];
pub(super) const WORKER: &[&str] = &["worker", "voter", "annotator"];
pub(super) const ANSWER: &[&str] = &["answer", "label", "vote"];
pub(super) const SCORE: &[&str] = &["score"];
pub(super) const TRUTH: &[&str] = &["truth", "label", "answer"];

/// Places of question, worker and answer among columns.
#[cfg(feature = "datafusion")]
pub(crate) fn columns(header: &[String]) -> Result<[usize; 3], String> {
    let mut long = Long::votes(Path::new(""));
    let places = long.columns(header)?;
    match long.scores {
        None => Ok(places),
        Some(_) => Err("there are scores, not answers".into()),
    }
}

impl Long {
    pub(super) fn votes(path: &Path) -> Self {
        let (items, voters, classes) = Default::default();
        Self { path: shown(path), truth: false, items, voters, classes, triples: Vec::new(), scores: None }
    }

    fn truth(path: &Path) -> Self {
        Self { truth: true, ..Self::votes(path) }
    }

    /// Places of question, worker and answer among the columns.
    pub(super) fn columns(&mut self, header: &[String]) -> Result<[usize; 3], String> {
        let find = |names: &[&str]| header.iter().position(|name| names.contains(&name.trim()));
        let missing = |names: &[&str]| format!("no column called {}", names.join(" or "));
        let question = find(QUESTION).ok_or_else(|| missing(QUESTION))?;
        if self.truth {
            return Ok([question, question, find(TRUTH).ok_or_else(|| missing(TRUTH))?]);
        }
        let worker = find(WORKER).ok_or_else(|| missing(WORKER))?;
        if let Some(answer) = find(ANSWER) {
            return Ok([question, worker, answer]);
        }
        self.scores = Some(Vec::new());
        Ok([question, worker, find(SCORE).ok_or_else(|| missing(&[ANSWER, SCORE].concat()))?])
    }

    /// Adds a row.
    pub(super) fn push(&mut self, question: &str, worker: &str, answer: &str) -> Result<(), String> {
        for (what, value) in [("question", question), ("worker", worker), ("answer", answer)] {
            if value.is_empty() {
                return Err(format!("the {what} is empty"));
            }
        }
        let item = self.items.add(question).0 as u32;
        let voter = if self.truth { 0 } else { self.voters.add(worker).0 as u32 };
        let class = match &mut self.scores {
            None => self.classes.add(answer).0 as u32,
            Some(scores) => {
                let score: f64 = answer.parse().map_err(|_| format!("{answer:?} is not a number"))?;
                if !score.is_finite() {
                    return Err(format!("{answer} is not a score"));
                }
                scores.push(score);
                0
            }
        };
        self.triples.push((item, voter, class));
        Ok(())
    }

    fn line(&self, line: u64, why: impl Into<String>) -> SupervisionError {
        SupervisionError::Line { path: self.path.clone(), line, why: why.into() }
    }

    #[cfg(feature = "parquet")]
    pub(super) fn format(&self, why: impl Into<String>) -> SupervisionError {
        SupervisionError::Format { path: self.path.clone(), why: why.into() }
    }

    fn read_csv(mut self, path: &Path, delimiter: u8) -> Result<Self> {
        let mut file = BufReader::new(open(path)?);
        let mark = file.fill_buf().map_err(|source| io(path, source))?.starts_with(b"\xef\xbb\xbf");
        if mark {
            file.consume(3);
        }
        let mut reader = ::csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
        let header = reader.headers().map_err(|error| self.csv_error(error))?;
        let header: Vec<String> = header.iter().map(|name| name.trim().to_lowercase()).collect();
        if header.iter().all(String::is_empty) {
            return Err(self.line(1, "there is no header"));
        }
        let places = self.columns(&header).map_err(|why| self.line(1, why))?;
        let mut record = ::csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(|error| self.csv_error(error))? {
            let line = record.position().map_or(0, ::csv::Position::line);
            let [question, worker, answer] = places.map(|place| record.get(place).unwrap_or_default().trim());
            self.push(question, worker, answer).map_err(|why| self.line(line, why))?;
        }
        Ok(self)
    }

    fn csv_error(&self, error: ::csv::Error) -> SupervisionError {
        let line = error.position().map_or(0, ::csv::Position::line);
        match error.into_kind() {
            ::csv::ErrorKind::Io(source) => SupervisionError::Io { path: self.path.clone(), source },
            ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                self.line(line, format!("{len} fields where the header has {expected_len}"))
            }
            ::csv::ErrorKind::Utf8 { .. } => self.line(line, "not UTF-8"),
            other => self.line(line, format!("{other:?}")),
        }
    }

    fn read_jsonl(mut self, path: &Path) -> Result<Self> {
        let mut file = BufReader::new(open(path)?);
        let (mut bytes, mut number) = (Vec::new(), 0);
        let mut known = None;
        loop {
            bytes.clear();
            number += 1;
            let read = file.by_ref().take(LONGEST).read_until(b'\n', &mut bytes);
            if read.map_err(|source| io(path, source))? == 0 {
                return Ok(self);
            }
            if bytes.len() as u64 >= LONGEST {
                return Err(self.line(number, format!("longer than {LONGEST} bytes")));
            }
            let text = std::str::from_utf8(&bytes).map_err(|_| self.line(number, "not UTF-8"))?;
            let text = text.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(text).trim();
            if text.is_empty() {
                continue;
            }
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(text).map_err(|error| self.line(number, error.to_string()))?;
            // The first object says what the fields are called.
            let names = match &known {
                Some(names) => names,
                None => {
                    let header: Vec<String> = object.keys().cloned().collect();
                    let places = self.columns(&header).map_err(|why| self.line(number, why))?;
                    known.insert(places.map(|place| header[place].clone()))
                }
            };
            let text = |name: &String| match object.get(name) {
                Some(serde_json::Value::String(text)) => Ok(text.clone()),
                Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => {
                    Ok(value.to_string())
                }
                Some(_) => Err(format!("{name:?} is neither a text nor a number")),
                None => Err(format!("no field called {name:?}")),
            };
            let fields: Result<Vec<String>, String> = names.iter().map(text).collect();
            let fields = fields.map_err(|why| self.line(number, why))?;
            self.push(&fields[0], &fields[1], &fields[2]).map_err(|why| self.line(number, why))?;
        }
    }

    pub(super) fn finish(self) -> Result<Table> {
        if self.triples.is_empty() {
            return Err(SupervisionError::Empty { what: "votes" });
        }
        let (items, voters) = (self.items.finish(), self.voters.finish());
        if let Some(scores) = self.scores {
            let cells = items.len().saturating_mul(voters.len());
            // A matrix of scores is dense: refuse one that is nearly empty before it fills the memory.
            let limit = scores.len().saturating_mul(64).max(1 << 20);
            if cells > limit {
                let (got, limit) = (cells as u64, limit as u64);
                return Err(SupervisionError::TooLarge { what: "cells of the matrix of scores", got, limit });
            }
            let mut values = vec![f64::NAN; cells];
            for ((item, voter, _), score) in self.triples.into_iter().zip(scores) {
                let cell = &mut values[item as usize * voters.len() + voter as usize];
                if !cell.is_nan() {
                    let (item, voter) = (items.get(item as usize).into(), voters.get(voter as usize).into());
                    return Err(SupervisionError::Duplicate { item, voter });
                }
                *cell = score;
            }
            let table = Scores::with_gaps(items.len(), voters.len(), values)?;
            return Ok(Table::Scores(table.with_names(items, voters)?));
        }
        let classes = self.classes.finish();
        if classes.len() > super::MAX_CLASSES {
            let (got, limit) = (classes.len() as u64, super::MAX_CLASSES as u64);
            return Err(SupervisionError::TooLarge { what: "classes", got, limit });
        }
        let (classes, rank) = sorted(&classes);
        let triples: Vec<_> = self
            .triples
            .into_iter()
            .map(|(item, voter, class)| (item, voter, rank[class as usize]))
            .collect();
        Ok(Table::Votes(Votes::from_triples(items, voters, classes, &triples)?))
    }
}

/// Names in order, and the place of each old one: by number if all are numbers.
fn sorted(names: &Names) -> (Names, Vec<u16>) {
    let mut order: Vec<usize> = (0..names.len()).collect();
    let numbers: Option<Vec<i64>> = order.iter().map(|index| names.get(*index).parse().ok()).collect();
    match &numbers {
        Some(numbers) => order.sort_by_key(|index| numbers[*index]),
        None => order.sort_by(|a, b| names.get(*a).cmp(&names.get(*b))),
    }
    let mut rank = vec![0; names.len()];
    order.iter().enumerate().for_each(|(place, index)| rank[*index] = place as u16);
    (names.select(&order), rank)
}

pub(super) fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|source| io(path, source))?;
    if file.metadata().is_ok_and(|data| data.is_dir()) {
        return Err(io(path, std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

pub(super) fn io(path: &Path, source: std::io::Error) -> SupervisionError {
    SupervisionError::Io { path: shown(path), source }
}

pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default()
}
