//! Files of votes: what they mean, and every way of spoiling them.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use pilotfish_supervision::votes::{Table, read, read_truth};
use pilotfish_supervision::{SupervisionError, Votes};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

const CSV: &str = "question,worker,answer\nb,w1,10\na,w2,2\na,w1,2\nb,w2,9\n";

fn check(votes: &Votes) {
    assert_eq!((votes.items(), votes.voters(), votes.classes(), votes.len()), (2, 2, 3, 4));
    let names: Vec<_> = (0..3).map(|class| votes.class_names().get(class).into_owned()).collect();
    // By number, not by text.
    assert_eq!(names, ["2", "9", "10"]);
    assert_eq!((&*votes.item_names().get(0), &*votes.voter_names().get(1)), ("b", "w2"));
    assert_eq!((votes.vote(0, 0), votes.vote(0, 1), votes.vote(1, 0)), (Some(2), Some(1), Some(0)));
}

#[cfg(feature = "parquet")]
fn parquet_file(path: &std::path::Path) {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message votes { required binary question (UTF8); required binary worker (UTF8); required int64 answer; }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for texts in [["b", "a", "a", "b"], ["w1", "w2", "w1", "w2"]] {
        let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[10, 2, 2, 9], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

/// As numpy writes it.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn every_format_holds_the_same_votes() {
    let folder = Folder::new();
    check(&read(&folder.file("v.csv", CSV)).unwrap().votes().unwrap());
    check(
        &read(&folder.file("bom.csv", format!("\u{feff}{}", CSV.replace('\n', "\r\n"))))
            .unwrap()
            .votes()
            .unwrap(),
    );
    check(&read(&folder.file("v.tsv", CSV.replace(',', "\t"))).unwrap().votes().unwrap());
    let other = CSV.replace("question,worker,answer", "Task, voter ,LABEL");
    check(&read(&folder.file("names.csv", other)).unwrap().votes().unwrap());
    let lines: String = CSV
        .lines()
        .skip(1)
        .map(|line| line.split(',').collect::<Vec<_>>())
        .map(|row| {
            format!("{{\"question\":\"{}\",\"worker\":\"{}\",\"answer\":{}}}\r\n", row[0], row[1], row[2])
        })
        .collect();
    check(&read(&folder.file("v.jsonl", format!("\u{feff}{lines}\n"))).unwrap().votes().unwrap());
    let path = folder.0.path().join("v.parquet");
    #[cfg(feature = "parquet")]
    {
        parquet_file(&path);
        check(&read(&path).unwrap().votes().unwrap());
    }
    // A build that does not read Parquet says so.
    #[cfg(not(feature = "parquet"))]
    assert!(read(&path).unwrap_err().to_string().contains("feature `parquet`"));
}

#[test]
fn numpy_matrices() {
    let folder = Folder::new();
    let read = |bytes: Vec<u8>| read(&folder.file("v.npy", bytes));
    let votes = read(npy("|i1", "(2, 3)", &[1, 0, 255, 2, 2, 0])).unwrap().votes().unwrap();
    assert_eq!((votes.items(), votes.voters(), votes.classes(), votes.len()), (2, 3, 3, 5));
    assert_eq!((votes.vote(0, 2), votes.vote(1, 1)), (None, Some(2)));
    let wide: Vec<u8> = [-1i64, 3, 0, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(read(npy("<i8", "(2, 2)", &wide)).unwrap().votes().unwrap().classes(), 4);
    let floats: Vec<u8> = [0.5f32, f32::NAN, 1.0, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let Table::Scores(scores) = read(npy("<f4", "(2, 2)", &floats)).unwrap() else { panic!("scores") };
    assert_eq!((scores.score(0, 0), scores.score(0, 1)), (Some(0.5), None));
    for (bad, why) in [
        (npy("<i2", "(2, 3)", &[0; 11]), "bytes of numbers"),
        (npy("<i1", "(2,)", &[0; 2]), "1 dimensions"),
        (npy("<c8", "(1, 1)", &[0; 8]), "of type"),
        (npy("|i1", "(9223372036854775807, 3)", &[0; 2]), "too large"),
        (npy("|i1", "(0, 3)", &[]), "there are no"),
        (npy("|i1", "(1, 2)", &[0, 200]), "class -56"),
        (npy("|i1", "(1, 2)", &[255, 255]), "there are no votes"),
        (npy("<f4", "(1, 1)", &f32::INFINITY.to_le_bytes()), "not a score"),
    ] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn errors_say_where() {
    let folder = Folder::new();
    for (text, why) in [
        ("", "no header"),
        ("question,worker\n", "line 1: no column called answer"),
        ("question,worker,answer\n", "there are no votes"),
        ("question,worker,answer\na,w,1\na,w\n", "line 3: 2 fields"),
        ("question,worker,answer\na,w,1\nb,,1\n", "line 3: the worker is empty"),
        ("question,worker,answer\na,w,1\na,v,2\na,w,1\n", "voter \"w\" votes twice on item \"a\""),
        ("question,worker,answer\na,w,1\nb,w,1\n", "classes: got 1, want 2"),
        ("question,worker,score\na,w,1\na,v,nan\n", "line 3: nan is not a score"),
        ("question,worker,score\na,w,1\na,v,x\n", "line 3: \"x\" is not a number"),
        ("question,worker,score\na,w,1\na,w,2\n", "votes twice"),
    ] {
        let error = read(&folder.file("v.csv", text)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{text:?}: {error}");
    }
    let mut latin = b"question,worker,answer\na,w,1\n".to_vec();
    latin.extend(b"\xe9,w,1\n");
    let error = read(&folder.file("v.csv", latin)).unwrap_err().to_string();
    assert!(error.contains("line 3: not UTF-8"), "{error}");
    let good = "{\"item\":1,\"voter\":\"w\",\"vote\":true}\n";
    for (text, why) in [
        (format!("{good}{{\"item\":1,"), "line 2: EOF"),
        (format!("{good}{{\"item\":2,\"voter\":\"w\"}}\n"), "line 2: no field called \"vote\""),
        (format!("{good}{{\"item\":2,\"voter\":\"w\",\"vote\":[1]}}\n"), "line 2: \"vote\" is neither"),
        (format!("{good}{}\n", "[".repeat(100_000)), "line 2"),
        (format!("{good}\"{}", "x".repeat(2 << 20)), "line 2: longer than"),
    ] {
        let error = read(&folder.file("v.jsonl", text)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(matches!(read(&folder.0.path().join("none.csv")), Err(SupervisionError::Io { .. })));
    assert!(read(folder.0.path()).is_err());
    assert!(read(&folder.file("v.txt", CSV)).unwrap_err().to_string().contains("ending"));
}

#[test]
fn truths_meet_their_items() {
    let folder = Folder::new();
    let votes = read(&folder.file("v.csv", CSV)).unwrap().votes().unwrap();
    let truth = |text: &str| read_truth(&folder.file("t.csv", text), &votes);
    assert_eq!(truth("question,truth\na,2\nz,9\n").unwrap(), [None, Some(0)]);
    // A class that nobody votes for is never right.
    assert_eq!(truth("question,truth\nb,77\n").unwrap(), [Some(3), None]);
    assert!(truth("question,truth\na,2\na,2\n").unwrap_err().to_string().contains("two truths"));
    assert!(truth("question,truth\nz,2\n").unwrap_err().to_string().contains("no truths"));
    assert!(truth("question\n").is_err());
}

#[test]
fn damaged_files_are_errors_and_nothing_else() {
    let folder = Folder::new();
    let matrix = npy("<i2", "(2, 3)", &[0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    #[cfg(feature = "parquet")]
    let table = {
        let path = folder.0.path().join("v.parquet");
        parquet_file(&path);
        std::fs::read(&path).unwrap()
    };
    let files = [
        ("v.npy", matrix),
        #[cfg(feature = "parquet")]
        ("v.parquet", table),
    ];
    for (name, bytes) in &files {
        for length in 0..bytes.len() {
            assert!(read(&folder.file(name, &bytes[..length])).is_err(), "{name} cut to {length}");
        }
        for place in (0..bytes.len()).step_by(3) {
            let mut spoilt = bytes.clone();
            spoilt[place] ^= 1 << (place % 8);
            // Votes or an error; never a panic.
            let _ = read(&folder.file(name, &spoilt));
        }
    }
    for (name, text) in
        [("v.csv", CSV.to_owned()), ("v.jsonl", "{\"item\":1,\"voter\":2,\"vote\":3}\n".into())]
    {
        for length in 0..text.len() {
            let _ = read(&folder.file(name, &text[..length]));
        }
        for place in 0..text.len() {
            let mut spoilt = text.clone().into_bytes();
            spoilt[place] ^= 0x80;
            let _ = read(&folder.file(name, &spoilt));
        }
    }
}

#[test]
fn votes_are_checked_when_they_are_made() {
    let dense = |n, m, k, votes: &[i64]| Votes::from_dense(n, m, k, votes);
    assert!(matches!(dense(0, 2, 2, &[]), Err(SupervisionError::Empty { what: "items" })));
    assert!(matches!(dense(2, 0, 2, &[]), Err(SupervisionError::Empty { what: "voters" })));
    assert!(matches!(dense(1, 2, 2, &[-1, -1]), Err(SupervisionError::Empty { what: "votes" })));
    assert!(matches!(dense(1, 2, 1, &[0, 0]), Err(SupervisionError::Shape { what: "classes", .. })));
    assert!(matches!(dense(1, 2, 2, &[0]), Err(SupervisionError::Shape { got: 1, want: 2, .. })));
    assert!(matches!(
        dense(2, 2, 2, &[0, 1, 0, 2]),
        Err(SupervisionError::OutOfRange { item: 1, voter: 1, got: 2, .. })
    ));
    assert!(dense(1, 2, 2, &[0, -2]).is_err() && dense(usize::MAX, 2, 2, &[0]).is_err());
    // 255 classes still fit a byte, 256 do not.
    for classes in [255, 256, 300] {
        let last = classes as i64 - 1;
        let votes = dense(1, 2, classes, &[last, -1]).unwrap();
        assert_eq!((votes.vote(0, 0), votes.vote(0, 1), votes.len()), (Some(classes - 1), None, 1));
    }
}
