//! GGUF files: against the Python package `gguf`, and against what a file must not do.
#![allow(clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pilotfish_graph::GraphError;
use pilotfish_graph::weights::gguf::{Gguf, Metadata};
use pilotfish_graph::weights::{Encoding, safetensors};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_encoding_stands_for_what_python_says() {
    let gguf = Gguf::open(&fixture("encodings.gguf")).unwrap();
    let want = fs::read(fixture("encodings.safetensors")).unwrap();
    let want = ::safetensors::SafeTensors::deserialize(&want).unwrap();
    assert_eq!(gguf.weights().len(), want.len());
    for (name, view) in want.iter() {
        let stored = gguf.weights().stored(name).unwrap();
        assert_eq!(stored.tensor.shape(), view.shape(), "{name}");
        if !matches!(name, "vector" | "cube") {
            assert_eq!(name.trim_end_matches(".random"), stored.encoding.to_string());
        }
        let want: Vec<u32> =
            view.data().chunks_exact(4).map(|x| u32::from_le_bytes(x.try_into().unwrap())).collect();
        assert_eq!(bits(&stored.tensor.to_f32().unwrap()), want, "{name}");
    }
    let ours = safetensors::open(&fixture("encodings.safetensors")).unwrap();
    for (name, stored) in ours.iter() {
        assert_eq!(
            bits(&stored.tensor.to_f32().unwrap()),
            bits(&gguf.weights().get(name).unwrap().to_f32().unwrap())
        );
    }
}

#[test]
fn metadata_of_every_type() {
    let gguf = Gguf::open(&fixture("encodings.gguf")).unwrap();
    let int = |key: &str| match gguf.metadata()[key] {
        Metadata::Int(value) => value,
        ref other => panic!("{key} is {other:?}"),
    };
    for (key, want) in [
        ("u8", u8::MAX.into()),
        ("i8", i8::MIN.into()),
        ("u16", u16::MAX.into()),
        ("i16", i16::MIN.into()),
        ("u32", u32::MAX.into()),
        ("i32", i32::MIN.into()),
        ("u64", u64::MAX.into()),
        ("i64", i128::from(i64::MIN)),
    ] {
        assert_eq!(int(key), want, "{key}");
    }
    assert_eq!(gguf.count("u16").unwrap(), 65535);
    assert!(gguf.count("i8").is_err());
    assert_eq!(gguf.number("f32").unwrap(), f64::from(0.1f32));
    assert_eq!(gguf.number("f64").unwrap(), 0.1);
    assert_eq!(gguf.number("i16").unwrap(), -32768.0);
    assert_eq!(gguf.text("text").unwrap(), "löwe 🦁\n");
    assert_eq!(
        (&gguf.metadata()["yes"], &gguf.metadata()["no"]),
        (&Metadata::Bool(true), &Metadata::Bool(false))
    );
    let texts = ["", "a", "ß"].map(|text| Metadata::Text(text.into()));
    assert_eq!(gguf.list("texts").unwrap(), texts);
    assert_eq!(gguf.list("integers").unwrap(), [1, -2, 3].map(Metadata::Int));
    assert_eq!(gguf.list("floats").unwrap(), [0.5, -1.25].map(Metadata::Float));
    assert_eq!(gguf.list("truths").unwrap(), [true, false].map(Metadata::Bool));
    assert_eq!(gguf.list("bytes").unwrap(), [0, 255].map(Metadata::Int));
    for error in [gguf.text("u8").err(), gguf.list("text").err(), gguf.number("absent").err()] {
        let error = error.unwrap().to_string();
        assert!(error.contains("encodings.gguf: metadata"), "{error}");
    }
}

#[test]
fn blocks_as_they_lie_in_the_file() {
    let path = fixture("encodings.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let file = fs::read(&path).unwrap();
    for (name, stored) in gguf.weights().iter() {
        let (encoding, raw) = gguf.raw(name).unwrap();
        assert_eq!((encoding, raw.len()), (stored.encoding, stored.bytes), "{name}");
        assert!(file.windows(raw.len()).any(|window| window == raw));
    }
    // The first tensor holds plain numbers.
    let (_, raw) = gguf.raw("F32").unwrap();
    assert_eq!(raw[..4], gguf.weights().get("F32").unwrap().rows(0..1).unwrap()[0].to_le_bytes());
    let error = gguf.raw("blk.0.Q4").unwrap_err();
    assert!(matches!(error, GraphError::NoSuchName { .. }), "{error}");
}

#[test]
fn a_wrong_name_lists_names_like_it() {
    let (_folder, gguf) = Sample::default().open();
    let error = gguf.unwrap().weights().get("model.blk.weight").unwrap_err().to_string();
    assert!(error.contains("a.blk.weight"), "{error}");
}

proptest! {
    #[test]
    fn rows_are_slices_of_the_whole(which in 0usize..64, from in 0usize..97, to in 0usize..97) {
        let gguf = Gguf::open(&fixture("encodings.gguf")).unwrap();
        let (name, stored) = gguf.weights().iter().nth(which % gguf.weights().len()).unwrap();
        let tensor = &stored.tensor;
        let (from, to) = (from % (tensor.row_count() + 1), to % (tensor.row_count() + 1));
        let row = tensor.count() / tensor.row_count();
        match tensor.rows(from..to) {
            Ok(rows) => prop_assert_eq!(bits(&rows), bits(&tensor.to_f32().unwrap()[from * row..to * row]), "{}", name),
            Err(_) => prop_assert!(from > to),
        }
        prop_assert!(tensor.rows(from..tensor.row_count() + 1).is_err());
    }
}

/// A small file whose parts can be spoiled one at a time.
#[derive(Clone)]
struct Sample {
    magic: [u8; 4],
    version: u32,
    tensors: Option<u64>,
    entries: Option<u64>,
    metadata: Vec<Vec<u8>>,
    infos: Vec<Info>,
    data: usize,
}

#[derive(Clone)]
struct Info {
    name: Vec<u8>,
    rank: Option<u32>,
    /// Fastest first, as in the file.
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn info(name: &str, dims: &[u64], kind: u32, offset: u64) -> Info {
    Info { name: name.into(), rank: None, dims: dims.to_vec(), kind, offset }
}

fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&(bytes.as_ref().len() as u64).to_le_bytes(), bytes.as_ref()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn list(key: &str, kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    entry(key, 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat())
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensors: None,
            entries: None,
            metadata: vec![
                entry("general.alignment", 4, &8u32.to_le_bytes()),
                entry("name", 8, &text("sample")),
                list("some", 5, 2, &[1, 0, 0, 0, 2, 0, 0, 0]),
            ],
            // Q8_0 [2, 32] is 68 bytes; F32 [3] starts at the next multiple of 8.
            infos: vec![info("a.blk.weight", &[32, 2], 8, 0), info("b", &[3], 0, 72)],
            data: 84,
        }
    }
}

impl Sample {
    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensors.unwrap_or(self.infos.len() as u64).to_le_bytes());
        out.extend(self.entries.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        out.extend(self.metadata.concat());
        for info in &self.infos {
            out.extend(text(&info.name));
            out.extend(info.rank.unwrap_or(info.dims.len() as u32).to_le_bytes());
            out.extend(info.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(info.kind.to_le_bytes());
            out.extend(info.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend((0..self.data).map(|i| i as u8));
        out
    }

    fn open(&self) -> (tempfile::TempDir, Result<Gguf, GraphError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.gguf");
        fs::write(&path, self.bytes()).unwrap();
        let gguf = Gguf::open(&path);
        (folder, gguf)
    }
}

#[test]
fn the_sample_is_valid_in_both_versions() {
    for version in [2, 3] {
        let (_folder, gguf) = Sample { version, ..Sample::default() }.open();
        let gguf = gguf.unwrap();
        assert_eq!(gguf.weights().get("b").unwrap().shape(), [3]);
        // Data begins at a multiple of the alignment, and b 72 bytes later, with 72, 73, 74, 75.
        let first = gguf.weights().get("b").unwrap().rows(0..1).unwrap();
        assert_eq!(first[0].to_bits(), 0x4b4a_4948);
        assert_eq!(gguf.weights().get("a.blk.weight").unwrap().shape(), [2, 32]);
        assert_eq!(gguf.weights().stored("b").unwrap().encoding, Encoding::F32);
        assert_eq!(gguf.weights().bytes(), 68 + 12);
    }
}

#[test]
fn no_tensors_and_no_metadata() {
    let sample = Sample { metadata: vec![], infos: vec![], data: 0, ..Sample::default() };
    let (_folder, gguf) = sample.open();
    assert!(gguf.unwrap().weights().is_empty());
}

/// What is spoiled, and what the error must say.
type Case = (&'static str, fn(&mut Sample));

#[test]
fn refuses_with_the_reason() {
    let cases: &[Case] = &[
        ("not a GGUF file", |s| s.magic = *b"GGML"),
        ("version 1", |s| s.version = 1),
        ("version 4", |s| s.version = 4),
        ("big-endian", |s| s.version = 3 << 24),
        ("wanted", |s| s.tensors = Some(1 << 60)),
        ("wanted", |s| s.entries = Some(1 << 60)),
        ("wanted", |s| s.metadata.push(u64::MAX.to_le_bytes().to_vec())),
        ("wanted", |s| s.metadata.push(entry("long", 8, &(1u64 << 40).to_le_bytes()))),
        ("wanted", |s| s.metadata.push(list("long", 10, 1 << 60, &[]))),
        ("nested: a list of lists", |s| s.metadata.push(list("nested", 9, 1, &[4; 12]))),
        ("name is given twice", |s| s.metadata.push(entry("name", 8, &text("again")))),
        ("odd: metadata of unknown type 13", |s| s.metadata.push(entry("odd", 13, &[]))),
        ("odd: a truth value of 2", |s| s.metadata.push(entry("odd", 7, &[2]))),
        ("odd: a text that is not UTF-8", |s| s.metadata.push(entry("odd", 8, &text([0xff])))),
        ("general.alignment", |s| s.metadata[0] = entry("general.alignment", 4, &0u32.to_le_bytes())),
        ("general.alignment", |s| s.metadata[0] = entry("general.alignment", 4, &24u32.to_le_bytes())),
        ("general.alignment", |s| s.metadata[0] = entry("general.alignment", 5, &(-8i32).to_le_bytes())),
        ("general.alignment", |s| {
            s.metadata[0] = entry("general.alignment", 11, &(1u64 << 62).to_le_bytes())
        }),
        ("general.alignment", |s| s.metadata[0] = entry("general.alignment", 8, &text("8"))),
        ("one of 2 parts of a split file", |s| s.metadata.push(entry("split.count", 2, &[2, 0]))),
        ("tensor b: ggml type 99", |s| s.infos[1].kind = 99),
        ("tensor b: 0 dimensions", |s| s.infos[1].rank = Some(0)),
        ("tensor b: 4294967295 dimensions", |s| s.infos[1].rank = Some(u32::MAX)),
        ("tensor b: a dimension of 0", |s| s.infos[1].dims = vec![0]),
        ("tensor b: its shape overflows", |s| s.infos[1].dims = vec![1 << 40, 1 << 40]),
        ("tensor b: its size overflows", |s| s.infos[1].dims = vec![1 << 62]),
        ("tensor b: it reaches past the end", |s| s.infos[1].dims = vec![4]),
        ("tensor b: it reaches past the end", |s| s.infos[1].offset = 1 << 40),
        ("tensor b: it reaches past the end", |s| s.infos[1].offset = u64::MAX - 7),
        ("tensor b: its offset is not aligned", |s| s.infos[1].offset = 71),
        ("tensor a.blk.weight: rows of 16 are not whole blocks of 32", |s| s.infos[0].dims = vec![16, 4]),
        ("tensor b: rows of 3 are not whole blocks of 256", |s| s.infos[1].kind = 14),
        ("two tensors share bytes", |s| s.infos[1].offset = 64),
        ("two tensors named b", |s| s.infos.push(info("b", &[1], 0, 0))),
        ("a text that is not UTF-8", |s| s.infos[1].name = vec![0xc3]),
    ];
    for (why, spoil) in cases {
        let mut sample = Sample::default();
        spoil(&mut sample);
        let error = sample.open().1.expect_err(why);
        assert!(matches!(error, GraphError::Malformed { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains("sample.gguf: ") && error.contains(why), "wanted {why}: {error}");
    }
}

#[test]
fn a_byte_list_without_end_is_refused() {
    let count = (1 << 23) + 1;
    let sample =
        Sample { metadata: vec![list("bytes", 0, count, &vec![0; count as usize])], ..Sample::default() };
    let error = sample.open().1.unwrap_err().to_string();
    assert!(error.contains("more than 8388608 metadata values"), "{error}");
}

#[test]
fn not_a_regular_file() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.gguf");
    fs::write(&empty, []).unwrap();
    for (path, why) in [
        (empty.as_path(), "empty"),
        (folder.path(), "not a regular file"),
        (&folder.path().join("none"), "none: "),
    ] {
        let error = Gguf::open(path).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    #[cfg(unix)]
    assert!(Gguf::open(Path::new("/dev/zero")).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn truncated_at_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = Sample::default().bytes();
    fs::write(&path, &whole).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for len in (0..whole.len()).rev() {
        file.set_len(len as u64).unwrap();
        assert!(Gguf::open(&path).is_err(), "{len} of {}", whole.len());
    }
}

#[test]
fn every_bit_flipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flipped.gguf");
    let whole = Sample::default().bytes();
    fs::write(&path, &whole).unwrap();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut put = |at: usize, byte: u8| {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    let mut opened = 0;
    for bit in 0..8 * whole.len() {
        put(bit / 8, whole[bit / 8] ^ 1 << (bit % 8));
        if let Ok(gguf) = Gguf::open(&path) {
            opened += 1;
            for (name, stored) in gguf.weights().iter() {
                assert_eq!(stored.tensor.to_f32().unwrap().len(), stored.tensor.count());
                gguf.raw(name).unwrap();
            }
        }
        put(bit / 8, whole[bit / 8]);
    }
    // At least the flips in the numbers leave a valid file.
    assert!(opened >= 8 * 84);
}
