//! ONNX files written and read back.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use pilotfish_architectures::{Bert, BertConfig, CausalConfig, CausalNetwork, EncoderNetwork};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::testing::{Feed, random_graph};
use pilotfish_graph::{DType, Dim, Graph, Op, Storage, Tensor, passes};
use pilotfish_training::{Array, Interpreter, Precision};
use proptest::prelude::*;

fn array(feed: &Feed) -> Array {
    match feed {
        Feed::Float { shape, values } => Array::float(shape.clone(), values.iter().map(|&v| f64::from(v))),
        Feed::Int { shape, values } => Array::int(shape.clone(), values.iter().copied()),
    }
}

fn run(graph: &Graph, feeds: &[(String, Feed)]) -> BTreeMap<String, Vec<f64>> {
    let feeds: Vec<(&str, Array)> = feeds.iter().map(|(name, feed)| (name.as_str(), array(feed))).collect();
    Interpreter::new(graph, Precision::F64).unwrap().run(&feeds).unwrap()
}

#[track_caller]
fn equal(got: &BTreeMap<String, Vec<f64>>, want: &BTreeMap<String, Vec<f64>>, within: f64, what: &str) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
    for (name, want) in want {
        let got = &got[name];
        assert_eq!(got.len(), want.len(), "{what}: {name}");
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= within * (1.0 + want.abs()), "{what}: {name}: {got}, not {want}");
        }
    }
}

/// Names, shapes and types of inputs and outputs.
fn face(graph: &Graph) -> Vec<String> {
    let inputs = graph.inputs().iter().map(|&value| (graph.info(value).name.clone(), value));
    let all = inputs.chain(graph.outputs().iter().cloned());
    all.map(|(name, value)| format!("{name}: {:?} {}", graph.info(value).dtype, graph.shape(value))).collect()
}

/// The random graph of a seed, some of its matrices in blocks of integers.
fn stored(seed: u64) -> (Graph, Vec<(String, Feed)>) {
    let (graph, feeds) = random_graph(seed).unwrap();
    let storage = match seed % 3 {
        0 => Storage::Int4 { block: 16 },
        1 => Storage::Int8 { block: 32 },
        _ => return (graph, feeds),
    };
    match passes::store(&graph, |_| Some(storage)) {
        Ok(stored) => (stored, feeds),
        // It has no linear layer.
        Err(_) => (graph, feeds),
    }
}

fn round_trip(seed: u64, lowering: Lowering) {
    let (graph, feeds) = stored(seed);
    let what = format!("seed {seed}, {lowering:?}");
    let first = onnx::to_bytes(&graph, lowering).unwrap();
    let read = onnx::from_bytes(first).unwrap_or_else(|error| panic!("{what}: {error}\n{graph}"));
    assert_eq!(face(&read), face(&graph), "{what}");
    let want = run(&graph, &feeds);
    equal(&run(&read, &feeds), &want, 1e-6, &what);
    // What was read is written as it was, from then on; but a scale may move by its last bit each time that
    // blocks of integers are made anew.
    let second = onnx::to_bytes(&read, lowering).unwrap();
    let again = onnx::from_bytes(second.clone()).unwrap();
    equal(&run(&again, &feeds), &want, 1e-6, &what);
    assert!(again.to_string() == read.to_string(), "{what}: another graph");
    let rounded = |(storage, _): &(String, bool)| storage != "f32";
    if !linears(&read).iter().any(rounded) {
        assert!(onnx::to_bytes(&again, lowering).unwrap() == second, "{what}: written differently");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_graphs_survive_files(seed in any::<u64>()) {
        round_trip(seed, Lowering::Primitive);
        round_trip(seed, Lowering::Standard);
    }
}

/// The operations that carry the weights of a graph, and how they are stored.
fn linears(graph: &Graph) -> Vec<(String, bool)> {
    let linear = |node: &pilotfish_graph::Node| match node.op {
        Op::Linear(storage) => Some((storage.to_string(), node.inputs.len() == 3)),
        _ => None,
    };
    graph.nodes().iter().filter_map(linear).collect()
}

/// Layers come back as layers: stored as they were, with their biases, under the names of their weights.
#[test]
fn linear_layers_come_back_as_they_were() {
    let numbers = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
    let mut g = Graph::new("layers");
    let x = g.input("x", vec![Dim::symbol("T"), 64.into()], DType::F32).unwrap();
    let table = g.param("tied", Tensor::new([64, 64], numbers(4096)).unwrap()).unwrap();
    let bias = g.param("bias", Tensor::new([64], numbers(64)).unwrap()).unwrap();
    let storages = [Storage::F32, Storage::Int4 { block: 32 }, Storage::Int8 { block: 16 }];
    let mut y = x;
    for (index, storage) in storages.into_iter().enumerate() {
        // The first two share a matrix, of which a file needs two forms.
        let weight = match index {
            2 => g.param("own", Tensor::new([64, 64], numbers(4096)).unwrap()).unwrap(),
            _ => table,
        };
        y = g.apply(Op::Linear(storage), &[y, weight, bias]).unwrap()[0];
        y = g.unary(pilotfish_graph::UnaryOp::Tanh, y).unwrap();
    }
    g.output("y", y).unwrap();
    let feeds = [("x".to_owned(), Feed::Float { shape: vec![2, 64], values: numbers(128) })];
    let want = run(&g, &feeds);
    for lowering in [Lowering::Primitive, Lowering::Standard, Lowering::Fused { positions: 8 }] {
        let read = onnx::from_bytes(onnx::to_bytes(&g, lowering).unwrap()).unwrap();
        assert_eq!(linears(&read), linears(&g), "{lowering:?}");
        assert!(read.find("bias").is_some() && read.find("own").is_some(), "{read}");
        equal(&run(&read, &feeds), &want, 1e-6, &format!("{lowering:?}"));
    }
    // Others' blocks may have been made by another rule: they are taken at their word, as f32.
    let bytes = onnx::to_bytes(&g, Lowering::Fused { positions: 8 }).unwrap();
    let ours = bytes.windows(9).position(|part| part == b"pilotfish").unwrap();
    let mut theirs = bytes.clone();
    theirs[ours..ours + 9].copy_from_slice(b"somebody.");
    let read = onnx::from_bytes(theirs).unwrap();
    assert!(linears(&read).iter().all(|(storage, bias)| storage == "f32" && *bias));
    equal(&run(&read, &feeds), &want, 1e-6, "theirs");
}

/// Codes of MatMulNBits by hand, without zero points: 8 stands for 0.
#[test]
fn blocks_by_hand() {
    use onnx::proto::{Attribute, NodeProto, OperatorSet, TensorProto, elem};
    use prost::Message;
    let mut g = Graph::new("by hand");
    let x = g.input("x", [1usize, 16], DType::F32).unwrap();
    let w = g.param("w", Tensor::new([2, 16], vec![0.0; 32]).unwrap()).unwrap();
    let y = g.linear(x, w, None).unwrap();
    g.output("y", y).unwrap();
    let bytes = onnx::to_bytes(&g, Lowering::Standard).unwrap();
    let mut model = onnx::proto::Model::decode(bytes.as_slice()).unwrap();
    model.opset_import.push(OperatorSet { domain: "com.microsoft".into(), version: 1 });
    model.producer_name = "by hand".into();
    let graph = model.graph.as_mut().unwrap();
    let int = |name: &str, i| Attribute { name: name.into(), kind: 2, i, ..Attribute::default() };
    graph.node = vec![NodeProto {
        input: ["x", "codes", "scales"].map(Into::into).into(),
        output: vec!["y".into()],
        op_type: "MatMulNBits".into(),
        domain: "com.microsoft".into(),
        attribute: vec![int("K", 16), int("N", 2), int("block_size", 16)],
        ..NodeProto::default()
    }];
    let mut codes = vec![0x88u8; 16];
    // The first output: inputs 0 and 1 have codes 9 and 0; the second: inputs 14 and 15 have 15 and 8.
    (codes[0], codes[15]) = (0x09, 0x8f);
    let tensor = |name: &str, data_type, dims: &[i64], raw: Vec<u8>| TensorProto {
        name: name.into(),
        data_type,
        dims: dims.into(),
        raw_data: raw.into(),
        ..TensorProto::default()
    };
    let scales = [0.5f32, 2.0].iter().flat_map(|scale| scale.to_le_bytes()).collect();
    graph.initializer =
        vec![tensor("codes", elem::UINT8, &[2, 1, 8], codes), tensor("scales", elem::FLOAT, &[2], scales)];
    let read = onnx::from_bytes(model.encode_to_vec()).unwrap();
    let values = (1..=16).map(|i| i as f32).collect();
    let out = run(&read, &[("x".into(), Feed::Float { shape: vec![1, 16], values })]);
    // 1 x 0.5 - 2 x 4, and 15 x 14.
    assert_eq!(out["y"], [0.5 - 8.0, 210.0]);
}

/// A model made by the official package, with numbers where that puts them, against its reference evaluator.
#[test]
fn a_model_by_the_official_package() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let graph = onnx::read(&fixtures.join("operators.onnx")).unwrap();
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixtures.join("operators.json")).unwrap()).unwrap();
    let shape = |value: &serde_json::Value| {
        value["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|dim| dim.as_u64().unwrap() as usize)
            .collect::<Vec<_>>()
    };
    let inputs: Vec<(&str, Array)> = golden["inputs"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| {
            let values = value["values"].as_array().unwrap().iter();
            let array = match name.as_str() {
                "ids" => Array::int(shape(value), values.map(|id| id.as_i64().unwrap())),
                _ => Array::float(shape(value), values.map(|x| x.as_f64().unwrap())),
            };
            (name.as_str(), array)
        })
        .collect();
    let symbols = [("B", 2), ("rows", 3), ("past", 2)].map(|(name, size)| (name.to_owned(), size)).into();
    let compare = |graph: &Graph| {
        let out = Interpreter::new(graph, Precision::F64).unwrap().run(&inputs).unwrap();
        for (name, value) in graph.outputs() {
            let golden = &golden["outputs"][name];
            assert_eq!(graph.shape(*value).evaluate(&symbols).unwrap(), shape(golden), "{name}");
            let want: Vec<f64> =
                golden["values"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            equal(
                &[("y", &out[name])].map(|(k, v)| (k.to_owned(), v.clone())).into(),
                &[("y".to_owned(), want)].into(),
                2e-6,
                name,
            );
        }
    };
    assert_eq!(graph.outputs().len(), 13);
    compare(&graph);
    // The bias was taken in, and everything else is there when it is written again.
    assert_eq!(linears(&graph), [("f32".to_owned(), true), ("f32".to_owned(), false)]);
    for lowering in [Lowering::Primitive, Lowering::Standard] {
        compare(&onnx::from_bytes(onnx::to_bytes(&graph, lowering).unwrap()).unwrap());
    }
}

/// Whole networks, through a file with its weights beside it.
#[test]
fn architectures_survive_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut networks = Vec::new();
    for config in [CausalConfig::llama(11, 16, 2, [4, 2], 32), CausalConfig::gemma3(11, 16, 6, [2, 1], 32)] {
        let network = CausalNetwork::random(config, 3).unwrap();
        networks.push(network.whole(Dim::symbol("B"), Dim::symbol("T")).unwrap());
    }
    let bert =
        BertConfig { vocab: 11, width: 16, layers: 2, heads: 4, ffn: 32, context: 16, norm_eps: 1e-12 };
    networks.push(Bert::random(bert, 4).unwrap().graph().unwrap());
    for graph in networks {
        let rows = 5;
        let ids = Feed::Int { shape: vec![2, rows], values: vec![1, 7, 3, 10, 2, 4, 4, 0, 9, 5] };
        let positions = Feed::Int { shape: vec![2, rows], values: (0..10).map(|i| i % 5).collect() };
        let mut feeds = vec![("ids".to_owned(), ids), ("positions".to_owned(), positions)];
        for &input in graph.inputs() {
            let info = graph.info(input);
            if info.name.starts_with("mask") {
                let batch = if info.shape.dims()[0] == 1.into() { 1 } else { 2 };
                let hidden = |i: usize| if i % rows > i / rows % rows { -1e9 } else { 0.0 };
                let values = (0..batch * rows * rows).map(hidden).collect();
                feeds.push((info.name.clone(), Feed::Float { shape: vec![batch, 1, rows, rows], values }));
            }
        }
        let want = run(&graph, &feeds);
        for lowering in [Lowering::Primitive, Lowering::Standard] {
            onnx::write(&graph, lowering, &path).unwrap();
            let read = onnx::read(&path).unwrap();
            assert_eq!(face(&read), face(&graph));
            equal(&run(&read, &feeds), &want, 1e-9, graph.name());
            let names = |graph: &Graph| {
                let weights = graph.params().iter().filter(|param| param.tensor.shape().len() == 2);
                weights.map(|param| param.name.clone()).collect::<std::collections::BTreeSet<_>>()
            };
            assert!(names(&read).is_superset(&names(&graph)), "{read}");
        }
    }
}
