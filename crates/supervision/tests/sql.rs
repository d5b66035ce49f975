//! Statistics by SQL against votes in memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{close, fixture_a, fixture_d};
use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::parquet::arrow::ArrowWriter;
use pilotfish_supervision::label_models::{
    BinaryMoments, DawidSkene, Fitted, LabelModel, MajorityVote, Snorkel,
};
use pilotfish_supervision::sql::{Database, Pair, write_votes};
use pilotfish_supervision::votes::read;
use pilotfish_supervision::{Names, Rows, SupervisionError, Votes};

fn here() -> Database {
    Database::here(2, None).unwrap()
}

fn write(path: &Path, columns: &[(&str, ArrayRef)]) {
    let batch =
        RecordBatch::try_from_iter(columns.iter().map(|(name, array)| (*name, array.clone()))).unwrap();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn numbers(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn pattern_counts(rows: &Rows<'_>) -> BTreeMap<Vec<(usize, usize)>, u64> {
    (0..rows.len()).map(|row| (rows.votes().row(row).collect(), rows.count(row))).collect()
}

fn pairs_by_hand(votes: &Votes) -> Vec<Pair> {
    let mut pairs: BTreeMap<([usize; 2], [usize; 2]), u64> = BTreeMap::new();
    for item in 0..votes.items() {
        let row: Vec<_> = votes.row(item).collect();
        for (a, (i, x)) in row.iter().enumerate() {
            for (j, y) in &row[a + 1..] {
                *pairs.entry(([*i, *j], [*x, *y])).or_default() += 1;
            }
        }
    }
    pairs.into_iter().map(|((voters, votes), items)| Pair { voters, votes, items }).collect()
}

/// Everything that a database says of votes, against the same in memory, to the bit.
fn agrees(database: &Database, votes: &Votes, parts: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("votes");
    write_votes(votes, &path, parts).unwrap();
    let table = database.votes(&path).unwrap();
    assert_eq!((table.len(), table.is_empty()), (votes.len(), false));
    let names = |names: &Names| (0..names.len()).map(|i| names.get(i).into_owned()).collect::<Vec<_>>();
    assert_eq!(names(table.voters()), names(votes.voter_names()));
    assert_eq!(names(table.classes()), names(votes.class_names()));
    let rows = table.patterns().unwrap();
    let memory = Rows::grouped(votes).unwrap();
    assert_eq!(pattern_counts(&rows), pattern_counts(&memory));
    assert_eq!(table.pairs().unwrap(), pairs_by_hand(votes));
    let models: [&dyn LabelModel; 3] =
        [&DawidSkene::default(), &Snorkel::default(), &MajorityVote::default()];
    for (index, model) in models.into_iter().enumerate() {
        let (here, there) = (model.fit(votes).unwrap(), model.fit_rows(&rows).unwrap());
        assert_eq!(here.objective, there.objective, "{}", model.name());
        assert_eq!(here.prior, there.prior);
        assert_eq!(here.voters, there.voters);
        let out = folder.path().join(format!("posterior {index}"));
        table.write_posterior(&rows, &there.posterior, &out).unwrap();
        let confusions = table.confusions(&out.join("items")).unwrap();
        for (voter, sums) in here.voters.iter().zip(&confusions) {
            assert_eq!(&voter.counts, sums, "{}", model.name());
        }
        labels_are(&here, votes, &out.join("items"));
        assert!(table.write_posterior(&rows, &there.posterior, &out).is_err(), "the folder exists");
    }
}

/// Labels that were written, against those in memory.
fn labels_are(fitted: &Fitted, votes: &Votes, folder: &Path) {
    use datafusion::arrow::util::display::array_value_to_string as shown;
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder as Reader;
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        for batch in Reader::try_new(file).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            for row in 0..batch.num_rows() {
                let p: Vec<f64> = (2..batch.num_columns())
                    .map(|c| batch.column(c).as_any().downcast_ref::<Float64Array>().unwrap().value(row))
                    .collect();
                let item = shown(batch.column(0), row).unwrap();
                assert!(found.insert(item, (shown(batch.column(1), row).unwrap(), p)).is_none());
            }
        }
    }
    let voted: Vec<usize> = (0..votes.items()).filter(|item| votes.row(*item).next().is_some()).collect();
    assert_eq!(found.len(), voted.len());
    for item in voted {
        let (label, p) = &found[&*votes.item_names().get(item)];
        assert_eq!(*label, votes.class_names().get(fitted.posterior.label(item)));
        assert_eq!(p, fitted.posterior.row(item));
    }
}

/// Votes of four voters in three classes, names of texts, some of them awkward, and abstentions.
fn awkward() -> Votes {
    let cells: Vec<i64> = (0..240i64)
        .map(|cell| {
            let (item, voter) = (cell / 4, cell % 4);
            match (item * 7 + voter * voter * 3) % 11 {
                0 if voter > 0 => -1,
                1..=2 => (item + voter) % 3,
                _ => item % 3,
            }
        })
        .collect();
    let votes = Votes::from_dense(60, 4, 3, &cells).unwrap();
    let items = Names::listed("item", (0..60).map(|item| format!("q'{item}"))).unwrap();
    let voters = Names::listed("voter", ["a \"quoted\"", "b'; DROP TABLE t0", "c", "d"]).unwrap();
    votes.with_names(items, voters, Names::listed("class", ["cat", "dog", "it's"]).unwrap()).unwrap()
}

#[test]
fn the_histogram_and_moments_of_fixture_a() {
    let (votes, _) = fixture_a();
    let folder = tempfile::tempdir().unwrap();
    write_votes(&votes, &folder.path().join("v"), 3).unwrap();
    let database = here();
    let table = database.votes(&folder.path().join("v")).unwrap();
    let rows = table.patterns().unwrap();
    let counts: Vec<u64> = (0..rows.len()).map(|row| rows.count(row)).collect();
    assert_eq!(counts, [3048, 392, 1392, 368, 972, 588, 1188, 2052]);
    let pairs = table.pairs().unwrap();
    let at = |voters: [usize; 2], votes: [usize; 2]| {
        pairs.iter().find(|pair| pair.voters == voters && pair.votes == votes).unwrap().items
    };
    assert_eq!([at([0, 1], [1, 1]), at([0, 2], [1, 1]), at([1, 2], [1, 1])], [3240, 2640, 2420]);
    assert_eq!(at([0, 1], [0, 0]) + at([0, 1], [1, 1]), 6680);
    let fitted = BinaryMoments::default().fit_rows(&rows).unwrap();
    close(&fitted.prior, &[0.6, 0.4], 1e-10);
}

#[test]
fn the_first_step_of_fixture_d() {
    let votes = fixture_d();
    let folder = tempfile::tempdir().unwrap();
    write_votes(&votes, &folder.path().join("v"), 1).unwrap();
    let database = here();
    let table = database.votes(&folder.path().join("v")).unwrap();
    let rows = table.patterns().unwrap();
    let majority = MajorityVote::default().fit_rows(&rows).unwrap();
    table.write_posterior(&rows, &majority.posterior, &folder.path().join("p")).unwrap();
    let sums = table.confusions(&folder.path().join("p/items")).unwrap();
    let right: Vec<f64> = sums.iter().map(|sums| sums[3] / (sums[2] + sums[3])).collect();
    close(&right, &[7.0 / 9.0, 2.0 / 3.0, 2.0 / 3.0], 1e-12);
}

#[test]
fn a_database_says_what_memory_says() {
    let database = here();
    agrees(&database, &fixture_a().0, 4);
    agrees(&database, &awkward(), 1);
    // Little memory for states, many parts.
    agrees(&Database::here(1, Some(256 << 20)).unwrap(), &awkward(), 7);
}

#[test]
fn files_of_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.parquet");
    let columns = [
        ("Task", numbers(&[7, 7, 9, 9])),
        ("annotator", texts(&["w1", "w2", "w1", "w2"])),
        ("LABEL", numbers(&[10, 9, 9, 9])),
    ];
    write(&path, &columns);
    let database = here();
    let table = database.votes(&path).unwrap();
    // By number, as in memory.
    assert_eq!((table.classes().get(0), table.classes().get(1)), ("9".into(), "10".into()));
    let memory = read(&path).unwrap().votes().unwrap();
    assert_eq!(pattern_counts(&table.patterns().unwrap()), pattern_counts(&Rows::grouped(&memory).unwrap()));
}

#[test]
fn bad_tables_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let database = here();
    let path = folder.path().join("v.parquet");
    let table = |columns: &[(&str, ArrayRef)]| {
        write(&path, columns);
        let found = database.votes(&path);
        found.and_then(|table| table.patterns().map(|_| ())).unwrap_err().to_string()
    };
    let (items, voters) = (numbers(&[1, 1, 2]), texts(&["a", "b", "a"]));
    let votes =
        |answer: ArrayRef| vec![("question", items.clone()), ("worker", voters.clone()), ("answer", answer)];
    let gap: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(0)]));
    for (columns, want) in [
        (votes(gap), "a value is missing"),
        (votes(Arc::new(Float64Array::from(vec![0.0, 1.0, 0.0]))), "neither of whole numbers nor of texts"),
        (votes(numbers(&[1, 1, 1])), "classes: got 1, want 2"),
        (votes(numbers(&[0, 1, 0]))[..2].to_vec(), "no column called answer"),
        (
            vec![("question", items.clone()), ("worker", voters.clone()), ("score", numbers(&[1, 2, 3]))],
            "scores",
        ),
        (
            vec![
                ("question", items.clone()),
                ("worker", texts(&["a", "a", "a"])),
                ("answer", numbers(&[0, 1, 0])),
            ],
            "1 votes are a second one",
        ),
        (
            vec![("question", numbers(&[])), ("worker", texts(&[])), ("answer", numbers(&[]))],
            "there are no votes",
        ),
    ] {
        let error = table(&columns);
        assert!(error.contains(want), "{error}");
    }
    assert!(matches!(database.votes(&folder.path().join("none.parquet")), Err(SupervisionError::Io { .. })));
    std::fs::write(&path, "PAR1 not really PAR1").unwrap();
    assert!(database.votes(&path).is_err());
    // Seventy voters: no patterns, but pairs.
    let many = Votes::from_dense(3, 70, 2, &(0..210).map(|cell| cell % 2).collect::<Vec<i64>>()).unwrap();
    write_votes(&many, &folder.path().join("many"), 1).unwrap();
    let table = database.votes(&folder.path().join("many")).unwrap();
    assert!(matches!(table.patterns(), Err(SupervisionError::TooLarge { got: 70, .. })));
    assert_eq!(table.pairs().unwrap(), pairs_by_hand(&many));
    assert!(write_votes(&many, &folder.path().join("many"), 1).is_err(), "the folder exists");
    assert!(write_votes(&many, &folder.path().join("none"), 0).is_err());
    // Probabilities that are none.
    let bad = folder.path().join("p.parquet");
    for p in [f64::NAN, -0.1, 1.5] {
        write(
            &bad,
            &[
                ("item", numbers(&[0])),
                ("p0", Arc::new(Float64Array::from(vec![p]))),
                ("p1", Arc::new(Float64Array::from(vec![0.5]))),
            ],
        );
        assert!(table.confusions(&bad).unwrap_err().to_string().contains("outside 0 to 1"));
    }
    write(&bad, &[("item", numbers(&[0])), ("p0", Arc::new(Float64Array::from(vec![1.0])))]);
    assert!(table.confusions(&bad).is_err());
}

/// Cut anywhere a file is refused; with a spoilt byte it is refused, or says something. Nothing panics.
#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let database = here();
    let path = folder.path().join("v.parquet");
    let columns = [("question", numbers(&[1, 1, 2, 2])), ("worker", texts(&["a", "b", "a", "b"]))];
    let [items, voters] = columns;
    write(&path, &[items, voters, ("answer", numbers(&[0, 1, 1, 1]))]);
    let whole = std::fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        database.votes(&path).and_then(|table| table.patterns().map(|_| ()))
    };
    read(&whole).unwrap();
    for len in (0..whole.len()).step_by(29).chain([whole.len() - 1]) {
        read(&whole[..len]).unwrap_err();
    }
    let mut refused = 0;
    for at in (0..whole.len()).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        refused += usize::from(read(&bytes).is_err());
    }
    assert!(refused > 0);
}

/// The same queries on a scheduler and two executors.
#[cfg(feature = "ballista")]
#[test]
fn a_cluster_says_what_memory_says() {
    let database = Database::local_cluster(2, 1).unwrap();
    agrees(&database, &fixture_a().0, 4);
    agrees(&database, &awkward(), 3);
    assert!(Database::local_cluster(0, 1).is_err() && Database::local_cluster(1, 0).is_err());
}
