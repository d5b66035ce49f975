//! Safetensors: against the Python package, round trips, and what a file or folder must not do.
#![allow(clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use pilotfish_graph::weights::safetensors::{open, write, write_as};
use pilotfish_graph::weights::{Encoding, Weights};
use pilotfish_graph::{GraphError, Tensor};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn file(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

fn try_open(bytes: &[u8]) -> Result<Weights, GraphError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    fs::write(&path, bytes).unwrap();
    open(&path)
}

#[test]
fn every_type_as_python_says() {
    let weights = open(&fixture("types.safetensors")).unwrap();
    let mut all = Vec::new();
    for (_, stored) in weights.iter() {
        all.extend(stored.tensor.to_f32().unwrap().iter().flat_map(|x| x.to_le_bytes()));
    }
    assert_eq!(all, fs::read(fixture("types.f32")).unwrap());
    let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["bf16", "empty", "f16", "f16.special", "f32", "f64", "löwe", "scalar"]);
    for (name, encoding, bytes) in [
        ("bf16", Encoding::Bf16, 30),
        ("f16", Encoding::F16, 30),
        ("f32", Encoding::F32, 60),
        ("f64", Encoding::F64, 120),
    ] {
        let stored = weights.stored(name).unwrap();
        assert_eq!((stored.encoding, stored.bytes, stored.tensor.shape()), (encoding, bytes, &[3, 5][..]));
    }
    assert_eq!(weights.get("empty").unwrap().shape(), [0, 4]);
    let scalar = weights.get("scalar").unwrap();
    assert_eq!((scalar.shape(), scalar.row_count(), scalar.rows(0..1).unwrap()), (&[][..], 1, vec![2.5]));
}

#[test]
fn refuses_with_the_reason() {
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let a = entry("a", "F32", "[2]", "[0,8]");
    let with = |more: &str, data: usize| file(format!("{{{a},{more}}}"), &vec![0; data]);
    let only = |entry: String, data: usize| file(format!("{{{entry}}}"), &vec![0; data]);
    let mut invalid = format!("{{{a}}}").into_bytes();
    invalid[2] = 0xff;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("shorter than 8 bytes", vec![0; 7]),
        ("more than 100 MB", (1u64 << 63).to_le_bytes().to_vec()),
        ("more than 100 MB", 100_000_001u64.to_le_bytes().to_vec()),
        ("a header of 99 bytes, 2 left", [&99u64.to_le_bytes()[..], b"{}"].concat()),
        ("header: ", file("", &[])),
        ("header: ", file("[]", &[])),
        ("header: ", file("{}x", &[])),
        ("header: ", file("[".repeat(100_000), &[])),
        ("header: ", file(r#"{"__metadata__":"#.to_owned() + &"[".repeat(100_000), &[])),
        ("not UTF-8", file(invalid, &[0; 8])),
        ("header: a is given twice", with(&a, 8)),
        ("header: a is given twice", with(&entry("a", "F32", "[1]", "[8,12]"), 12)),
        ("header: __metadata__ is given twice", with(r#""__metadata__":{},"__metadata__":{}"#, 8)),
        ("tensor b: bytes 4..12 do not follow the 8", with(&entry("b", "F32", "[2]", "[4,12]"), 12)),
        ("tensor b: bytes 12..16 do not follow the 8", with(&entry("b", "F32", "[1]", "[12,16]"), 16)),
        ("tensor b: bytes 0..8 do not follow the 8", with(&entry("b", "F32", "[2]", "[0,8]"), 8)),
        ("tensor b: bytes 8..4 do not follow the 8", with(&entry("b", "F32", "[1]", "[8,4]"), 8)),
        ("the tensors fill 8 bytes of 7", only(a.clone(), 7)),
        ("the tensors fill 8 bytes of 9", only(a.clone(), 9)),
        ("tensor a: F32 of shape [2] in 4 bytes", only(entry("a", "F32", "[2]", "[0,4]"), 4)),
        ("tensor a: F16 of shape [3] in 5 bytes", only(entry("a", "F16", "[3]", "[0,5]"), 5)),
        ("tensor a: F4 of shape [3] in 1 bytes", only(entry("a", "F4", "[3]", "[0,1]"), 1)),
        ("tensor a: F32 of shape", only(entry("a", "F32", "[4294967296,4294967296]", "[0,0]"), 0)),
        ("tensor a: F32 of shape", only(entry("a", "F32", "[4611686018427387904]", "[0,0]"), 0)),
        ("header: a: ", only(entry("a", "F32", "[18446744073709551616]", "[0,0]"), 0)),
        ("header: a: ", only(entry("a", "F32", "[-1]", "[0,0]"), 0)),
        ("header: a: unknown variant `F33`", only(entry("a", "F33", "[2]", "[0,8]"), 8)),
        ("header: a: ", only(entry("a", "F32", "[2]", "[0]"), 8)),
        ("header: a: missing field", only(r#""a":{"dtype":"F32","shape":[2]}"#.into(), 8)),
        ("header: a: duplicate field", only(r#""a":{"dtype":"F32","dtype":"F16","shape":[2]}"#.into(), 8)),
        ("tensor a: type F8_E4M3 is not read", only(entry("a", "F8_E4M3", "[8]", "[0,8]"), 8)),
    ];
    for (why, bytes) in cases {
        let error = try_open(&bytes).expect_err(why);
        assert!(matches!(error, GraphError::Malformed { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains("bad.safetensors: ") && error.contains(why), "wanted {why}: {error}");
    }
}

#[test]
fn odd_but_valid() {
    // Data that begins at an odd byte, free text, spaces behind the header, tensors in any order.
    let header = r#"{ "__metadata__":{"a":"b"},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]},
        "a":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]}}  "#;
    let header = if header.len() % 2 == 0 { format!("{header} ") } else { header.to_owned() };
    let data = [&0x3fc0u16.to_le_bytes()[..], &(-0.25f32).to_le_bytes()].concat();
    let weights = try_open(&file(header, &data)).unwrap();
    assert_eq!(weights.get("a").unwrap().rows(0..1).unwrap(), [1.5]);
    assert_eq!(weights.get("b").unwrap().rows(0..1).unwrap(), [-0.25]);
    assert!(try_open(&file("{}", &[])).unwrap().is_empty());
    // A shape that overflows behind a 0 holds nothing.
    let header = r#"{"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}"#;
    let weights = try_open(&file(header, &[])).unwrap();
    assert!(weights.get("a").unwrap().to_f32().unwrap().is_empty());
}

#[test]
fn truncated_at_every_byte_and_every_bit_flipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    let whole = fs::read(fixture("types.safetensors")).unwrap();
    fs::write(&path, &whole).unwrap();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut put = |at: usize, byte: u8| {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    let mut opened = 0;
    for bit in 0..8 * whole.len() {
        put(bit / 8, whole[bit / 8] ^ 1 << (bit % 8));
        if let Ok(weights) = open(&path) {
            opened += 1;
            for (_, stored) in weights.iter() {
                assert_eq!(stored.tensor.to_f32().unwrap().len(), stored.tensor.count());
            }
        }
        put(bit / 8, whole[bit / 8]);
    }
    // At least the flips in the numbers leave a valid file.
    assert!(opened >= 8 * 322);
    assert!(open(&path).is_ok());
    for len in (0..whole.len()).rev() {
        file.set_len(len as u64).unwrap();
        assert!(open(&path).is_err(), "{len} of {}", whole.len());
    }
}

/// A folder of two shards and an index of the given map.
fn sharded(map: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensor = |x: f32| Tensor::new([1], vec![x]).unwrap();
    write(&folder.path().join("one.safetensors"), [("a", &tensor(1.0)), ("b", &tensor(2.0))]).unwrap();
    write(&folder.path().join("two.safetensors"), [("c", &tensor(3.0))]).unwrap();
    fs::write(folder.path().join("model.safetensors.index.json"), map).unwrap();
    folder
}

#[test]
fn shards() {
    let map = r#"{"metadata":{"total_size":12},
        "weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}}"#;
    let folder = sharded(map);
    let weights = open(folder.path()).unwrap();
    assert_eq!(weights.len(), 3);
    assert_eq!(weights.get("c").unwrap().to_f32().unwrap()[..], [3.0]);
    // One whole file goes before an index.
    fs::rename(folder.path().join("two.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert_eq!(open(folder.path()).unwrap().len(), 1);
}

#[test]
fn an_index_reaches_only_into_its_folder() {
    let outside = tempfile::tempdir().unwrap();
    let stranger = outside.path().join("x.safetensors");
    write(&stranger, [("a", &Tensor::new([1], vec![1.0]).unwrap())]).unwrap();
    let absolute = stranger.to_str().unwrap();
    for shard in [
        "../x.safetensors",
        "a/../../x.safetensors",
        "..",
        ".",
        "",
        "a/x.safetensors",
        r"..\\x.safetensors",
        r"x\u0000",
        absolute,
    ] {
        let folder = sharded(&format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#));
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("which is not a file in it"), "{shard}: {error}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        let folder = sharded(r#"{"weight_map":{"a":"link.safetensors"}}"#);
        let link = folder.path().join("link.safetensors");
        symlink(&stranger, &link).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("which is not a file in it"), "{error}");
        fs::remove_file(&link).unwrap();
        symlink("one.safetensors", &link).unwrap();
        assert_eq!(open(folder.path()).unwrap().len(), 2);
        fs::remove_file(&link).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&link).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

#[test]
fn an_index_that_does_not_fit_its_files() {
    for (map, why) in [
        (r#"{"weight_map":{"a":"none.safetensors"}}"#, "none.safetensors: "),
        (r#"{"weight_map":{"d":"one.safetensors"}}"#, "tensor d is not in one.safetensors"),
        (r#"{"weight_map":{"c":"one.safetensors"}}"#, "tensor c is not in one.safetensors"),
        (r#"{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}"#, "a is given twice"),
        (r#"{"weight_map":["one.safetensors"]}"#, "index.json: "),
        (r#"{"metadata":{}}"#, "missing field `weight_map`"),
        ("", "the file is empty"),
        ("{", "index.json: "),
    ] {
        let error = open(sharded(map).path()).unwrap_err().to_string();
        assert!(error.contains(why), "{map}: {error}");
    }
    let folder = sharded(r#"{"weight_map":{"a":"one.safetensors","c":"two.safetensors"}}"#);
    fs::copy(folder.path().join("one.safetensors"), folder.path().join("two.safetensors")).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("two tensors named a"), "{error}");
    let error = open(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(error.contains("no model.safetensors"), "{error}");
}

#[test]
fn bf16_is_rounded_to_nearest_ties_to_even() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    let step = 2f32.powi(-7);
    // Half a step above 1 is a tie and goes to 1, one and a half steps to two; f32::MAX goes to infinity.
    let values = vec![1.0 + step / 2.0, 1.0 + step * 1.5, 1.0 + step * 0.51, -0.0, f32::MAX, f32::NAN];
    write_as(&path, Encoding::Bf16, [("x", &Tensor::new([2, 3], values).unwrap())]).unwrap();
    let weights = open(&path).unwrap();
    let stored = weights.stored("x").unwrap();
    assert_eq!((stored.encoding, stored.bytes), (Encoding::Bf16, 12));
    let got = stored.tensor.to_f32().unwrap();
    assert_eq!(bits(&got[..5]), bits(&[1.0, 1.0 + 2.0 * step, 1.0 + step, -0.0, f32::INFINITY]));
    assert!(got[5].is_nan());
}

#[test]
fn what_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let one = Tensor::new([1], vec![1.0]).unwrap();
    write(&path, [("old", &one)]).unwrap();
    let short = one.derive([3], |_, _| Ok(vec![0.0]));
    let broken =
        one.derive([3], |_, _| Err(GraphError::Tensor { name: "x".into(), why: "its source failed".into() }));
    let huge = one.derive([1 << 40, 1 << 40], |_, _| Ok(vec![]));
    for (why, result) in [
        ("two tensors named a", write(&path, [("a", &one), ("a", &one)])),
        ("__metadata__", write(&path, [("__metadata__", &one)])),
        ("tensor short: 1 numbers", write(&path, [("a", &one), ("short", &short)])),
        ("its source failed", write(&path, [("a", &one), ("broken", &broken)])),
        ("tensor huge: shape", write(&path, [("huge", &huge)])),
        ("Q4_0: ", write_as(&path, Encoding::Q4_0, [("a", &one)])),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(write(&folder.path().join("none/w.safetensors"), [("a", &one)]).is_err());
    // The old file stays, and nothing lies beside it.
    assert!(open(&path).unwrap().contains("old"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn tensors() -> impl Strategy<Value = Vec<(String, Vec<usize>, Vec<u32>)>> {
    let tensor = (".{0,8}", proptest::collection::vec(0usize..5, 0..4)).prop_flat_map(|(name, shape)| {
        let count = shape.iter().product::<usize>();
        (Just(name), Just(shape), proptest::collection::vec(any::<u32>(), count))
    });
    proptest::collection::vec(tensor, 0..5).prop_map(|mut all| {
        all.sort();
        all.dedup_by(|a, b| a.0 == b.0);
        all
    })
}

proptest! {
    // A file that is written is also synced.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn round_trip(tensors in tensors()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.safetensors");
        let made: Vec<Tensor> = tensors
            .iter()
            .map(|(_, shape, values)| {
                Tensor::new(shape.clone(), values.iter().map(|&x| f32::from_bits(x)).collect()).unwrap()
            })
            .collect();
        let named = || tensors.iter().zip(&made).map(|((name, ..), tensor)| (name.as_str(), tensor));
        write(&path, named()).unwrap();
        let weights = open(&path).unwrap();
        prop_assert_eq!(weights.len(), tensors.len());
        let bytes = fs::read(&path).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, shape, values) in &tensors {
            let tensor = weights.get(name).unwrap();
            prop_assert_eq!(tensor.shape(), &shape[..]);
            prop_assert_eq!(&bits(&tensor.to_f32().unwrap()), values);
            let view = theirs.tensor(name).unwrap();
            prop_assert_eq!(view.shape(), &shape[..]);
            let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            prop_assert_eq!(view.data(), data);
            for row in 0..tensor.row_count() {
                let width = tensor.count() / tensor.row_count();
                prop_assert_eq!(&bits(&tensor.rows(row..row + 1).unwrap())[..], &values[row * width..(row + 1) * width]);
            }
        }
        write_as(&path, Encoding::Bf16, named()).unwrap();
        let weights = open(&path).unwrap();
        for (name, _, values) in &tensors {
            let want: Vec<f32> = values.iter().map(|&x| bf16::from_f32(f32::from_bits(x)).to_f32()).collect();
            prop_assert_eq!(bits(&weights.get(name).unwrap().to_f32().unwrap()), bits(&want));
        }
    }

    #[test]
    fn any_header_is_survived(header in "[\\[\\]{}:,\" 0-9a-zF\\\\-]{0,60}", data in 0usize..20) {
        let _ = try_open(&file(header, &vec![0; data]));
    }
}
