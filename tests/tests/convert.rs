//! Checkpoints converted to ONNX files: what they compute, and what is refused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pilotfish_architectures::{Checkpoint, EncoderNetwork, Network};
use pilotfish_graph::{Graph, Storage, onnx};
use pilotfish_pipeline::models::{self, Conversion, Operators};
use pilotfish_training::{Array, Interpreter, Precision};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/architectures/tests/fixtures").join(name)
}

fn run(graph: &Graph, feeds: &[(String, Array)]) -> BTreeMap<String, Vec<f64>> {
    let feeds: Vec<(&str, Array)> =
        feeds.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
    Interpreter::new(graph, Precision::F64).unwrap().run(&feeds).unwrap()
}

/// Rows that see what came before them, at most `window` back.
fn causal(first: usize, rows: usize, window: usize) -> Array {
    let all = first + rows;
    let hidden = |i: usize| i % all > first + i / all || first + i / all - i % all >= window;
    Array::float([1, 1, rows, all], (0..rows * all).map(|i| if hidden(i) { -1e9 } else { 0.0 }))
}

/// Every architecture, in two steps over a cache where there is one, against the network without one.
#[test]
fn converted_models_compute_what_the_network_does() {
    let folder = tempfile::tempdir().unwrap();
    let texts = [1i64, 5, 2, 7, 3, 9, 4];
    for name in ["llama", "llama_full", "gemma3", "bert"] {
        let checkpoint = Checkpoint::open(tiny(name)).unwrap();
        for operators in [Operators::Standard, Operators::Primitive] {
            let out = folder.path().join(format!("{name}-{operators:?}"));
            let path = models::convert(&tiny(name), &out, &Conversion { operators, ..Conversion::default() })
                .unwrap();
            let graph = onnx::read(&path).unwrap();
            let positions = |range: std::ops::Range<i64>| {
                ("positions".to_owned(), Array::int([1, range.clone().count()], range))
            };
            let ids = |part: &[i64]| ("ids".to_owned(), Array::int([1, part.len()], part.iter().copied()));
            match checkpoint.network() {
                Network::Encoder(network) => {
                    let mask = Array::float([1, 1, 7, 7], [0.0; 49]);
                    let feeds = [ids(&texts), positions(0..7), ("mask".into(), mask)];
                    assert_near(&run(&graph, &feeds), &run(&network.graph().unwrap(), &feeds), "states");
                }
                Network::Masked(_) => unreachable!("{name} is none"),
                Network::Causal(network) => {
                    let config = network.config();
                    let windowed = network.has_window(0..config.layers);
                    let window = network.window(0..config.layers).unwrap_or(usize::MAX);
                    let masks = |first, rows| {
                        let local = windowed.then(|| ("mask_local".into(), causal(first, rows, window)));
                        std::iter::once(("mask".into(), causal(first, rows, usize::MAX))).chain(local)
                    };
                    let mut feeds = vec![ids(&texts), positions(0..7)];
                    feeds.extend(masks(0, 7));
                    let whole = network.whole("B".into(), "T".into()).unwrap();
                    let want = &run(&whole, &feeds)["logits"];
                    let mut logits = Vec::new();
                    let mut cache: BTreeMap<String, Vec<f64>> = BTreeMap::new();
                    for (first, part) in [(0, &texts[..4]), (4, &texts[4..])] {
                        let mut feeds = vec![ids(part), positions(first as i64..(first + part.len()) as i64)];
                        feeds.extend(masks(first, part.len()));
                        for layer in 0..config.layers {
                            for kind in ["key", "value"] {
                                let rows = cache.remove(&format!("{kind}.{layer}")).unwrap_or_default();
                                let shape = [1, config.kv_heads, first, config.head_dim];
                                feeds.push((format!("past_{kind}.{layer}"), Array::float(shape, rows)));
                            }
                        }
                        cache = run(&graph, &feeds);
                        logits.extend(cache.remove("logits").unwrap());
                    }
                    assert_near(
                        &[("logits".to_owned(), logits)].into(),
                        &[("logits".to_owned(), want.clone())].into(),
                        "logits",
                    );
                }
            }
        }
    }
}

#[track_caller]
fn assert_near(got: &BTreeMap<String, Vec<f64>>, want: &BTreeMap<String, Vec<f64>>, output: &str) {
    assert_eq!(got[output].len(), want[output].len());
    let gap = got[output].iter().zip(&want[output]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(gap < 1e-9, "{output}: {gap}");
}

#[test]
fn storages_and_operators_are_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut summaries = Vec::new();
    for storage in ["f32", "int8", "int4"] {
        let out = folder.path().join(storage);
        let conversion = Conversion { storage: models::storage(storage).unwrap(), ..Conversion::default() };
        let path = models::convert(&tiny("llama"), &out, &conversion).unwrap();
        let inspection = models::inspect_onnx(&path).unwrap();
        assert_eq!(inspection.not_read, None);
        assert!(inspection.summary.operators.contains_key("Attention"), "{inspection}");
        summaries.push(inspection.summary);
    }
    assert!(summaries[1].numbers.contains_key("UINT8") && summaries[1].bytes < summaries[0].bytes);
    // Official blocks of four bits come in pairs, and its rows are of one block: dense, though rounded.
    assert!(!summaries[2].numbers.contains_key("UINT4"));
    // Attention of ONNX Runtime is over a cache that the host owns, which a graph here cannot say; and it takes
    // heads of 16, as Gemma's here, but not of 8.
    let conversion = Conversion { operators: Operators::Fused, ..Conversion::default() };
    let path = models::convert(&tiny("gemma3"), &folder.path().join("fused"), &conversion).unwrap();
    let inspection = models::inspect_onnx(&path).unwrap();
    assert!(inspection.summary.operators.contains_key("com.microsoft:GroupQueryAttention"), "{inspection}");
    assert!(inspection.not_read.is_some());
    let out = folder.path().join("narrow");
    let error = models::convert(&tiny("llama"), &out, &conversion).unwrap_err().to_string();
    assert!(error.contains("heads are 8 wide") && error.contains("choose the lowering standard"), "{error}");
    assert!(!out.exists());
}

#[test]
fn what_is_there_stays_and_what_is_wrong_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("deep/out");
    let convert = |from: &Path, out: &Path, force: bool| {
        models::convert(from, out, &Conversion { force, ..Conversion::default() })
    };
    let error = convert(&folder.path().join("nothing"), &out, false).unwrap_err().to_string();
    assert!(error.contains("nothing"), "{error}");
    assert!(!out.exists() && !folder.path().join("deep").exists());
    let path = convert(&tiny("llama"), &out, false).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = convert(&tiny("bert"), &out, false).unwrap_err().to_string();
    assert!(error.contains("model.onnx is there already") && error.contains("--force"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    // A checkpoint that does not open replaces nothing, forced or not.
    assert!(convert(folder.path(), &out, true).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    convert(&tiny("bert"), &out, true).unwrap();
    assert_ne!(std::fs::read(&path).unwrap(), before);
    let mut names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["model.onnx", "model.onnx.bin", "notes.txt"]);
    // Weights alone are somebody's too.
    std::fs::remove_file(&path).unwrap();
    assert!(convert(&tiny("llama"), &out, false).unwrap_err().to_string().contains("model.onnx.bin"));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = convert(&tiny("llama"), &file, true).unwrap_err().to_string();
    assert!(error.contains("not a folder"), "{error}");
    assert!(convert(&tiny("llama"), &file.join("below"), false).is_err());
    for (wrong, known) in [
        (models::storage("int2").map(drop), "f32, int8, int4"),
        ("quick".parse::<Operators>().map(drop), "standard, fused, primitive"),
    ] {
        assert!(wrong.unwrap_err().to_string().contains(known));
    }
    assert_eq!(models::storage("int4").unwrap(), Storage::Int4 { block: 32 });
}

#[test]
fn a_path_means_a_file_or_a_folder_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert_eq!(models::onnx_file(folder.path()), None);
    assert_eq!(models::onnx_file(&at("x.gguf")), None);
    assert_eq!(models::onnx_file(&at("x.onnx")), Some(at("x.onnx")));
    std::fs::write(at("x.onnx"), "").unwrap();
    assert_eq!(models::onnx_file(folder.path()), Some(at("x.onnx")));
    std::fs::write(at("y.onnx"), "").unwrap();
    assert_eq!(models::onnx_file(folder.path()), None);
    std::fs::write(at("model.onnx"), "").unwrap();
    assert_eq!(models::onnx_file(folder.path()), Some(at("model.onnx")));
    std::fs::write(at("config.json"), "{}").unwrap();
    assert_eq!(models::onnx_file(folder.path()), None);
}
