//! The files that we write, shown to the checker of the official Python package `onnx`.
//!
//! `cargo xtask test` puts the package into the cache folder. Where no Python can load it, the test says so.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pilotfish_architectures::{Bert, BertConfig, EncoderNetwork};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::testing::random_graph;
use pilotfish_graph::{Graph, Storage, passes};
use pilotfish_pipeline::setup::ONNX_CHECKER;
use pilotfish_runtime::home::Home;
use pilotfish_tests::{tiny_gemma, tiny_llama};

/// Checks each file named, and its shapes.
const SCRIPT: &str = "\
import sys, onnx
refused = 0
for path in sys.argv[1:]:
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        refused += 1
        print(path, type(error).__name__, error)
sys.exit(10 if refused else 0)
";

/// Runs Python with the package, if there is a Python that loads it.
fn python(arguments: &[&str]) -> Option<Output> {
    let packages = Home::locate().unwrap().tools().join(ONNX_CHECKER.0);
    let with = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).env("PYTHONPATH", &packages).env("PYTHONDONTWRITEBYTECODE", "1").output()
    };
    let loads = |program: &&&str| {
        with(program, &["-c", "import onnx.checker"]).is_ok_and(|output| output.status.success())
    };
    let program = ["python3", "python"].iter().find(loads)?;
    Some(with(program, arguments).unwrap())
}

fn checked(files: &[PathBuf]) -> Option<(bool, String)> {
    let names: Vec<&str> = files.iter().map(|path| path.to_str().unwrap()).collect();
    let Some(output) = python(&[&["-c", SCRIPT], &names[..]].concat()) else {
        eprintln!(
            "not checked: no Python here loads the package onnx from {}; `cargo xtask test` puts it there",
            Home::locate().unwrap().tools().join(ONNX_CHECKER.0).display()
        );
        return None;
    };
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn write(folder: &Path, graph: &Graph, lowering: Lowering, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.onnx"));
    onnx::write(graph, lowering, &path).unwrap();
    path
}

/// ONNX Runtime's own operators are not the checker's to judge: one of them goes under ONNX's name.
#[test]
fn the_official_checker_accepts_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let mut graphs: Vec<(String, Graph)> =
        (0..60).map(|seed| (format!("random-{seed}"), random_graph(seed).unwrap().0)).collect();
    for (name, network) in [("llama", tiny_llama()), ("gemma", tiny_gemma())] {
        let layers = network.config().layers;
        let whole = network.whole("B".into(), "T".into()).unwrap();
        for (suffix, storage) in
            [("int4", Storage::Int4 { block: 16 }), ("int8", Storage::Int8 { block: 32 })]
        {
            let stored = passes::store(&whole, |_| Some(storage)).unwrap();
            graphs.push((format!("{name}-{suffix}"), passes::merge_linears(&stored).unwrap()));
        }
        graphs.push((format!("{name}-body"), network.body(0..layers, &Default::default()).unwrap()));
        graphs.push((format!("{name}-head"), network.head_graph().unwrap()));
        graphs.push((name.to_owned(), passes::fold_norms(&whole).unwrap()));
    }
    let bert =
        BertConfig { vocab: 11, width: 16, layers: 2, heads: 4, ffn: 32, context: 16, norm_eps: 1e-12 };
    graphs.push(("bert".into(), Bert::random(bert, 4).unwrap().graph().unwrap()));
    let mut files = Vec::new();
    for (name, graph) in &graphs {
        for lowering in [Lowering::Primitive, Lowering::Standard] {
            files.push(write(folder.path(), graph, lowering, &format!("{name}-{lowering:?}")));
        }
    }
    let Some((accepted, text)) = checked(&files) else { return };
    assert!(accepted, "{text}");
}

/// It is really asked: models with a mistake are refused.
#[test]
fn the_official_checker_refuses_what_is_wrong() {
    use prost::Message;
    let folder = tempfile::tempdir().unwrap();
    let network = tiny_llama();
    let graph = network.whole("B".into(), "T".into()).unwrap();
    let bytes = onnx::to_bytes(&graph, Lowering::Standard).unwrap();
    type Change = fn(&mut onnx::proto::GraphProto);
    let changes: [(&str, Change); 4] = [
        ("order", |graph| graph.node.reverse()),
        ("operator", |graph| graph.node[3].op_type = "Nothing".into()),
        ("attribute", |graph| {
            graph.node.iter_mut().find(|node| node.op_type == "Attention").unwrap().attribute[0].kind = 1;
        }),
        ("name", |graph| graph.initializer.truncate(3)),
    ];
    for (name, change) in changes {
        let mut model = onnx::proto::Model::decode(bytes.as_slice()).unwrap();
        change(model.graph.as_mut().unwrap());
        let path = folder.path().join(format!("{name}.onnx"));
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        let Some((accepted, text)) = checked(&[path]) else { return };
        assert!(!accepted && text.contains(name), "{name}: {text}");
    }
}
