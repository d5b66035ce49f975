//! ONNX files that are damaged or made to do harm: a typed error that names what is wrong, never a panic.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use pilotfish_graph::onnx::proto::{
    Attribute, Dimension, Entry, GraphProto, Model, NodeProto, OperatorSet, ShapeProto, TensorProto,
    TensorType, TypeProto, ValueInfo, dimension, elem,
};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{AttentionConfig, DType, Dim, Graph, GraphError, Op, Storage, Tensor, UnaryOp};
use prost::Message;

/// A little of everything that is written: weights of each kind, shapes computed from shapes, attention.
fn network() -> Graph {
    let numbers = |count: usize| (0..count).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    let mut g = Graph::new("network");
    let (t, l) = (Dim::symbol("T"), Dim::symbol("L"));
    let ids = g.input("ids", vec![1.into(), t.clone()], DType::I64).unwrap();
    let mask = g.input("mask", vec![1.into(), 1.into(), t.clone(), &l + &t], DType::F32).unwrap();
    let past = vec![1.into(), 1.into(), l, 32.into()];
    let keys = g.input("keys", past.clone(), DType::F32).unwrap();
    let values = g.input("values", past, DType::F32).unwrap();
    let table = g.param("table", Tensor::new([9, 32], numbers(288)).unwrap()).unwrap();
    let x = g.embedding(table, ids).unwrap();
    let scale = g.param("scale", Tensor::new([32], numbers(32)).unwrap()).unwrap();
    let h = g.rms_norm(x, scale, 1e-5).unwrap();
    let weight = g.param("weight", Tensor::new([32, 32], numbers(1024)).unwrap()).unwrap();
    let bias = g.param("bias", Tensor::new([32], numbers(32)).unwrap()).unwrap();
    let q = g.linear(h, weight, Some(bias)).unwrap();
    let k = g.apply(Op::Linear(Storage::Int4 { block: 16 }), &[h, weight]).unwrap()[0];
    let v = g.apply(Op::Linear(Storage::Int8 { block: 32 }), &[h, weight]).unwrap()[0];
    let config = AttentionConfig { heads: 1, kv_heads: 1, scale: 0.2, softcap: None };
    let (y, all, _) = g.attention([q, k, v], mask, Some((keys, values)), config).unwrap();
    let y = g.unary(UnaryOp::GeluTanh, y).unwrap();
    let rows = g.reshape(all, vec![&(&Dim::symbol("L") + &t) * 2, 16.into()]).unwrap();
    g.output("y", y).unwrap();
    g.output("rows", rows).unwrap();
    g
}

/// Reads a model and then everything that hangs on it.
fn open(bytes: Vec<u8>) -> Result<(), GraphError> {
    let graph = onnx::from_bytes(bytes)?;
    graph.params().iter().try_for_each(|param| param.tensor.to_f32().map(drop))?;
    assert!(!graph.to_string().is_empty());
    Ok(())
}

#[track_caller]
fn refused(model: &Model, words: &[&str]) {
    let error = open(model.encode_to_vec()).expect_err(&words.join(" ")).to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}; wanted {words:?}");
}

#[test]
fn every_prefix_is_refused() {
    for lowering in [Lowering::Primitive, Lowering::Standard] {
        let bytes = onnx::to_bytes(&network(), lowering).unwrap();
        open(bytes.clone()).unwrap();
        for len in 0..bytes.len() {
            let error = open(bytes[..len].to_vec()).expect_err("a part of a model");
            assert!(matches!(error, GraphError::Malformed { .. }), "{len} bytes: {error}");
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    let bytes = onnx::to_bytes(&network(), Lowering::Standard).unwrap();
    let (mut read, mut not) = (0, 0);
    for at in 0..bytes.len() {
        for bit in [at % 8, (5 * at + 3) % 8] {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1 << bit;
            match open(spoilt) {
                Ok(()) => read += 1,
                Err(
                    GraphError::Malformed { .. } | GraphError::OnnxNode { .. } | GraphError::Shape { .. },
                ) => not += 1,
                Err(other) => panic!("byte {at}, bit {bit}: {other}"),
            }
        }
    }
    assert!(read > 100 && not > 100, "{read} were read, {not} were not");
}

#[test]
fn bytes_that_are_not_a_message() {
    let long_varint = [&[0x08][..], &[0xff; 10], &[0x01]].concat();
    let nested = (0..100_000).fold(Vec::new(), |inside: Vec<u8>, _| {
        // A length of ten bytes would do as well; each level grows the one around it.
        let mut out = vec![0x3a, (inside.len().min(120)) as u8];
        out.extend(&inside[..inside.len().min(120)]);
        out
    });
    let cases: [(&[u8], &str); 9] = [
        (&[], "empty"),
        (&long_varint, "more than 10 bytes"),
        (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "beyond 64 bits"),
        (&[0x3a, 0x7f, 0x00], "claims 127 bytes, 1 of the file's 3 are left"),
        (&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "claims"),
        (&[0x3b], "wire type 3"),
        (&[0x00, 0x00], "number 0"),
        (b"GGUF\x03\0\0\0", "not an ONNX model"),
        (&nested, "not an ONNX model"),
    ];
    for (bytes, want) in cases {
        let error = open(bytes.to_vec()).expect_err(want).to_string();
        assert!(error.contains(want), "{error}; wanted {want}");
    }
    // Names that are no text.
    let mut bytes = onnx::to_bytes(&network(), Lowering::Standard).unwrap();
    let at = bytes.windows(7).position(|part| part == b"network").unwrap();
    bytes[at] = 0xff;
    assert!(open(bytes).is_err());
}

/// Subgraphs within subgraphs are skipped, however deep: nothing here follows them.
#[test]
fn deep_nesting_does_not_reach_the_stack() {
    let mut inside = Vec::new();
    for _ in 0..20_000 {
        // A node (field 1) with an attribute (5) with a graph (6).
        for field in [0x32, 0x2a, 0x0a] {
            let mut out = vec![field];
            prost::encode_length_delimiter(inside.len(), &mut out).unwrap();
            out.extend(inside);
            inside = out;
        }
        if inside.len() > 1 << 16 {
            break;
        }
    }
    let mut bytes = vec![0x08, 0x0b, 0x3a];
    prost::encode_length_delimiter(inside.len(), &mut bytes).unwrap();
    bytes.extend(inside);
    let error = open(bytes).expect_err("no operator set").to_string();
    assert!(error.contains("does not say which version"), "{error}");
}

#[test]
fn a_million_nodes_are_refused_before_they_are_decoded() {
    let nodes = [0x0a, 0x00].repeat(1 << 20);
    let mut bytes = vec![0x08, 0x0b, 0x3a];
    prost::encode_length_delimiter(nodes.len(), &mut bytes).unwrap();
    bytes.extend(nodes);
    let error = open(bytes).expect_err("too many").to_string();
    assert!(error.contains("more than 1048576 messages"), "{error}");
}

fn info(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfo {
    let size = |&size: &i64| Dimension { value: Some(dimension::Value::Size(size)) };
    let shape = ShapeProto { dim: dims.iter().map(size).collect() };
    let tensor = TensorType { elem_type, shape: Some(shape) };
    ValueInfo { name: name.into(), kind: Some(TypeProto { tensor: Some(tensor) }) }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let strings = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
    NodeProto {
        input: strings(inputs),
        output: strings(outputs),
        name: format!("the {op}"),
        op_type: op.into(),
        ..NodeProto::default()
    }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: elem::FLOAT,
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: elem::INT64,
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// `y = Tanh(x)`, both `[2, 3]`.
fn small() -> Model {
    Model {
        ir_version: 11,
        opset_import: vec![OperatorSet { domain: String::new(), version: 23 }],
        graph: Some(GraphProto {
            name: "small".into(),
            node: vec![node("Tanh", &["x"], &["y"])],
            input: vec![info("x", elem::FLOAT, &[2, 3])],
            output: vec![info("y", elem::FLOAT, &[2, 3])],
            ..GraphProto::default()
        }),
        ..Model::default()
    }
}

/// [`small`] with another graph.
fn with(change: impl FnOnce(&mut GraphProto)) -> Model {
    let mut model = small();
    change(model.graph.as_mut().unwrap());
    model
}

#[test]
fn graphs_that_do_not_hold_together() {
    open(small().encode_to_vec()).unwrap();
    let tanh = |input: &str, output: &str| node("Tanh", &[input], &[output]);
    refused(&with(|g| g.node = vec![tanh("b", "a"), tanh("a", "b"), tanh("b", "y")]), &["the Tanh", "cycle"]);
    refused(&with(|g| g.node = vec![tanh("y", "y")]), &["cycle"]);
    refused(&with(|g| g.node = vec![tanh("nothing", "y")]), &["the Tanh", "ai.onnx", "there is no nothing"]);
    refused(&with(|g| g.node.push(tanh("x", "y"))), &["two values named y"]);
    refused(&with(|g| g.node[0].output[0] = "x".into()), &["two values named x"]);
    refused(&with(|g| g.input.push(g.input[0].clone())), &["two values named x"]);
    refused(&with(|g| g.output.push(g.output[0].clone())), &["two outputs named y"]);
    refused(&with(|g| g.initializer.push(floats("x", &[1], &[1.0]))), &["two values named x"]);
    refused(&with(|g| g.output[0].name = "z".into()), &["output z", "there is no z"]);
    refused(&with(|g| g.output[0] = info("y", elem::FLOAT, &[2, 4])), &["output y", "[2, 4]", "[2, 3]"]);
    refused(&with(|g| g.output[0] = info("y", elem::INT64, &[2, 3])), &["I64 [2, 3]", "F32 [2, 3]"]);
    refused(&with(|g| g.input[0] = info("x", elem::FLOAT, &[-2, 3])), &["input x", "dimension -2"]);
    refused(&with(|g| g.input[0] = info("x", elem::FLOAT, &[i64::MAX, 3])), &["input x", "beyond 2^40"]);
    refused(&with(|g| g.input[0] = info("x", elem::FLOAT, &[1; 17])), &["17 dimensions"]);
    refused(&with(|g| g.input[0] = info("x", 10, &[2, 3])), &["input x", "FLOAT16"]);
    refused(&with(|g| g.input[0].kind = None), &["input x", "not a tensor"]);
    refused(&with(|g| g.node[0].input.clear()), &["the Tanh", "inputs"]);
    refused(&with(|g| g.node[0].output.push("z".into())), &["the Tanh", "results"]);
    refused(&with(|g| g.node[0].op_type = "Conv".into()), &["the Tanh (Conv of ai.onnx)", "not read"]);
    refused(&with(|g| g.node[0].domain = "com.microsoft".into()), &["(Tanh of com.microsoft)", "import"]);
    let unknown = Attribute { name: "alpha".into(), kind: 1, ..Attribute::default() };
    refused(&with(|g| g.node[0].attribute = vec![unknown.clone()]), &["the Tanh", "attribute alpha"]);
    refused(&with(|g| g.node[0].attribute = vec![unknown.clone(), unknown]), &["alpha is given twice"]);
    refused(&with(|g| g.sparse_initializer.push(vec![0u8].into())), &["sparse"]);
    let change = |change: fn(&mut Model)| {
        let mut model = small();
        change(&mut model);
        model
    };
    refused(&change(|m| m.opset_import[0].version = 99), &["operator set 99"]);
    refused(&change(|m| m.opset_import[0].version = -1), &["operator set -1"]);
    refused(&change(|m| m.opset_import.clear()), &["does not say which version"]);
    refused(&change(|m| m.opset_import.push(m.opset_import[0].clone())), &["imported twice"]);
    refused(&change(|m| m.ir_version = 3), &["version 3 of the format"]);
    refused(&change(|m| m.functions.push(vec![0u8].into())), &["functions"]);
    refused(&change(|m| m.graph = None), &["no graph"]);
    let foreign = |m: &mut Model| {
        m.opset_import.push(OperatorSet { domain: "org.example".into(), version: 1 });
        m.graph.as_mut().unwrap().node[0].domain = "org.example".into();
    };
    refused(&change(foreign), &["(Tanh of org.example)", "not read"]);
}

/// Doubling a dimension again and again neither overflows nor takes more memory than its nodes do.
#[test]
fn dimensions_that_grow() {
    let mut nodes = vec![];
    for i in 0..80 {
        let name = |i: usize| if i == 0 { "x".to_owned() } else { format!("x{i}") };
        let mut joined = node("Concat", &[&name(i), &name(i)], &[&name(i + 1)]);
        joined.attribute = vec![Attribute { name: "axis".into(), kind: 2, i: 0, ..Attribute::default() }];
        nodes.push(joined);
    }
    refused(&with(|g| g.node = nodes.clone()), &["the Concat", "beyond 2^40"]);
    // The same with lists of sizes.
    nodes[0].input = vec!["s".into(), "s".into()];
    let sizes = |g: &mut GraphProto| {
        g.initializer.push(ints("s", &[1, 1]));
        g.node = nodes;
    };
    refused(&with(sizes), &["more than 64 sizes"]);
}

#[test]
fn tensors_that_are_not_what_they_say() {
    let stored = |tensor: TensorProto| {
        with(|g| {
            g.node = vec![node("Add", &["x", "w"], &["y"])];
            g.initializer = vec![tensor];
        })
    };
    let good = || floats("w", &[3], &[1.0, 2.0, 3.0]);
    open(stored(good()).encode_to_vec()).unwrap();
    let spoilt = |change: fn(&mut TensorProto)| {
        let mut tensor = good();
        change(&mut tensor);
        stored(tensor)
    };
    refused(&spoilt(|t| t.dims = vec![4]), &["tensor w", "3 numbers for 4"]);
    refused(&spoilt(|t| t.dims = vec![-3]), &["tensor w", "dimension -3"]);
    refused(&spoilt(|t| t.dims = vec![1 << 62, 1 << 62]), &["tensor w", "overflows"]);
    refused(&spoilt(|t| t.dims = vec![1 << 58]), &["tensor w", "3 numbers"]);
    refused(&spoilt(|t| t.raw_data = vec![0u8; 12].into()), &["tensor w", "two fields"]);
    refused(&spoilt(|t| t.int64_data = vec![1]), &["tensor w", "two fields"]);
    refused(&spoilt(|t| t.data_type = 0), &["tensor w", "type 0"]);
    refused(&spoilt(|t| t.data_type = 8), &["tensor w", "type 8"]);
    refused(&spoilt(|t| t.data_type = elem::INT64), &["tensor w", "field of another type"]);
    refused(&spoilt(|t| t.data_location = 7), &["tensor w", "data location 7"]);
    refused(&spoilt(|t| t.segment = Some(vec![0u8].into())), &["tensor w", "segments"]);
    refused(&spoilt(|t| t.name.clear()), &["without a name"]);
    let raw = |t: &mut TensorProto, bytes: usize| {
        t.float_data.clear();
        t.raw_data = vec![0u8; bytes].into();
    };
    for bytes in [11, 13] {
        let mut tensor = good();
        raw(&mut tensor, bytes);
        refused(&stored(tensor), &["tensor w", &format!("{bytes} bytes"), "takes 12"]);
    }
    // Known sizes, but not a type that networks here are made of.
    let mut tensor = good();
    raw(&mut tensor, 6);
    tensor.data_type = 10;
    refused(&stored(tensor), &["the Add", "FLOAT16"]);
    // Nothing is a size too.
    let none = with(|g| {
        g.node = vec![node("Add", &["x", "w"], &["y"])];
        g.input = vec![info("x", elem::FLOAT, &[0])];
        g.output = vec![info("y", elem::FLOAT, &[0])];
        g.initializer = vec![floats("w", &[0], &[])];
    });
    open(none.encode_to_vec()).unwrap();
}

#[test]
fn shapes_and_blocks_that_do_not_fit() {
    let int = |name: &str, i: i64| Attribute { name: name.into(), kind: 2, i, ..Attribute::default() };
    let reshaped = |list: &[i64]| {
        let list = ints("s", list);
        with(move |g| {
            g.node = vec![node("Reshape", &["x", "s"], &["y"])];
            g.initializer = vec![list];
        })
    };
    refused(&reshaped(&[-1, -1]), &["the Reshape", "two dimensions"]);
    refused(&reshaped(&[4, -1]), &["the Reshape", "does not follow"]);
    refused(&reshaped(&[2, 2]), &["the Reshape", "[2, 2]"]);
    refused(&reshaped(&[2, 3, 0]), &["the Reshape", "not there"]);
    refused(&reshaped(&[-2, -3]), &["the Reshape", "-2"]);
    let sliced = with(|g| {
        g.node = vec![node("Slice", &["x", "a", "b"], &["y"])];
        g.initializer = vec![ints("a", &[2]), ints("b", &[1])];
    });
    refused(&sliced, &["the Slice", "2..1"]);
    let blocks = |codes: usize, zeros: usize, k: i64, block: i64| {
        let bytes = |name: &str, count: usize| TensorProto {
            name: name.into(),
            dims: vec![count as i64],
            data_type: elem::UINT8,
            raw_data: vec![0u8; count].into(),
            ..TensorProto::default()
        };
        let mut model = with(|g| {
            let mut product = node("MatMulNBits", &["x", "c", "s", "z"], &["y"]);
            product.domain = "com.microsoft".into();
            product.attribute = vec![int("K", k), int("N", 2), int("bits", 4), int("block_size", block)];
            g.node = vec![product];
            g.input = vec![info("x", elem::FLOAT, &[1, 32])];
            g.output = vec![info("y", elem::FLOAT, &[1, 2])];
            g.initializer = vec![bytes("c", codes), floats("s", &[2, 2], &[1.0; 4]), bytes("z", zeros)];
        });
        model.opset_import.push(OperatorSet { domain: "com.microsoft".into(), version: 1 });
        model
    };
    open(blocks(32, 2, 32, 16).encode_to_vec()).unwrap();
    refused(&blocks(31, 2, 32, 16), &["the MatMulNBits", "31 bytes of codes"]);
    refused(&blocks(32, 3, 32, 16), &["the MatMulNBits", "3 bytes of zero points"]);
    refused(&blocks(32, 2, 64, 16), &["the MatMulNBits", "codes"]);
    refused(&blocks(32, 2, 32, 8), &["the MatMulNBits", "blocks of 8"]);
    refused(&blocks(32, 2, i64::MAX, 16), &["the MatMulNBits", "K is"]);
    refused(&blocks(32, 2, -1, 16), &["the MatMulNBits", "K is -1"]);
}

/// A model whose one weight is external, in a folder of its own.
fn external(entries: &[(&str, &str)]) -> Model {
    let entry = |&(key, value): &(&str, &str)| Entry { key: key.into(), value: value.into() };
    with(|g| {
        g.node = vec![node("Add", &["x", "w"], &["y"])];
        g.initializer = vec![TensorProto {
            float_data: vec![],
            data_location: 1,
            external_data: entries.iter().map(entry).collect(),
            ..floats("w", &[3], &[])
        }];
    })
}

fn read(folder: &Path, model: &Model) -> Result<Graph, GraphError> {
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    onnx::read(&path)
}

#[test]
fn weights_in_other_files() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    std::fs::create_dir_all(folder.join("below")).unwrap();
    let numbers: Vec<u8> = [0.5f32, 1.0, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    for path in ["model/weights.bin", "model/below/weights.bin", "outside.bin"] {
        std::fs::write(root.path().join(path), &numbers).unwrap();
    }
    for location in ["weights.bin", "below/weights.bin"] {
        let entries = [("location", location), ("offset", "4"), ("length", "12")];
        let graph = read(&folder, &external(&entries)).unwrap();
        assert_eq!(*graph.params()[0].tensor.to_f32().unwrap(), [1.0, 2.0, 3.0]);
        // Length and offset have defaults.
        let graph = read(&folder, &external(&entries[..1])).unwrap();
        assert_eq!(*graph.params()[0].tensor.to_f32().unwrap(), [0.5, 1.0, 2.0]);
    }
    let absolute = folder.join("weights.bin");
    let absolute = absolute.to_str().unwrap();
    let refuse = |entries: &[(&str, &str)], want: &str| {
        let error = read(&folder, &external(entries)).expect_err(want).to_string();
        assert!(error.contains(want), "{entries:?}: {error}; wanted {want}");
    };
    for outside in
        ["../outside.bin", "a/../../outside.bin", "below/../weights.bin", absolute, "./weights.bin/..", "."]
    {
        refuse(&[("location", outside)], "not a path below the model");
    }
    for odd in ["below\\weights.bin", "weights.bin\0", ""] {
        refuse(&[("location", odd)], "not a path below the model");
    }
    refuse(&[("location", "missing.bin")], "missing.bin");
    refuse(&[("location", "below")], "not a regular file");
    refuse(&[], "without a location");
    refuse(&[("location", "weights.bin"), ("offset", "8")], "12 bytes at 8 of weights.bin, which has 16");
    refuse(&[("location", "weights.bin"), ("offset", "-4")], "offset \"-4\"");
    refuse(&[("location", "weights.bin"), ("offset", "18446744073709551615")], "which has 16");
    refuse(&[("location", "weights.bin"), ("length", "8")], "8 bytes of external data, its shape takes 12");
    refuse(&[("location", "weights.bin"), ("length", "x")], "length \"x\"");
    refuse(&[("location", "weights.bin"), ("basepath", "/")], "unknown key \"basepath\"");
    refuse(&[("location", "weights.bin"), ("location", "weights.bin")], "given twice");
    std::fs::write(folder.join("empty.bin"), b"").unwrap();
    refuse(&[("location", "empty.bin")], "empty");

    let in_memory = external(&[("location", "weights.bin")]);
    let error = onnx::from_bytes(in_memory.encode_to_vec()).expect_err("no folder").to_string();
    assert!(error.contains("has no folder"), "{error}");
    let mut both = external(&[("location", "weights.bin")]);
    both.graph.as_mut().unwrap().initializer[0].float_data = vec![1.0; 3];
    assert!(read(&folder, &both).expect_err("two fields").to_string().contains("two fields"));
    let mut neither = external(&[("location", "weights.bin")]);
    neither.graph.as_mut().unwrap().initializer[0].data_location = 0;
    assert!(read(&folder, &neither).expect_err("says both").to_string().contains("in the model"));

    // Two tensors may share all of their bytes, not some of them.
    let two = |offset: &str| {
        let mut model = external(&[("location", "weights.bin")]);
        let graph = model.graph.as_mut().unwrap();
        let mut other = graph.initializer[0].clone();
        other.name = "v".into();
        other.external_data.push(Entry { key: "offset".into(), value: offset.into() });
        graph.initializer.push(other);
        model
    };
    read(&folder, &two("0")).unwrap();
    let error = read(&folder, &two("4")).expect_err("overlap").to_string();
    assert!(error.contains("tensors w and v overlap in weights.bin"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_and_pipes() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(root.path().join("outside.bin"), [0u8; 12]).unwrap();
    std::fs::write(folder.join("inside.bin"), [0u8; 12]).unwrap();
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, folder.join(to)).unwrap();
    link("../outside.bin", "out.bin");
    link("inside.bin", "in.bin");
    link("loop.bin", "loop.bin");
    link("..", "up");
    let read = |location: &str| read(&folder, &external(&[("location", location)]));
    let refuse = |location: &str, want: &str| {
        let error = read(location).expect_err(want).to_string();
        assert!(error.contains(want), "{location}: {error}; wanted {want}");
    };
    read("in.bin").unwrap();
    refuse("out.bin", "leads out of the model's folder");
    refuse("up/outside.bin", "leads out of the model's folder");
    refuse("loop.bin", "loop.bin");
    std::fs::hard_link(root.path().join("outside.bin"), folder.join("hard.bin")).unwrap();
    refuse("hard.bin", "hard links");
    let pipe = folder.join("pipe.bin");
    if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
        refuse("pipe.bin", "not a regular file");
        std::fs::rename(&pipe, folder.join("model.onnx")).unwrap();
        let error = onnx::read(&folder.join("model.onnx")).expect_err("a pipe").to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

/// What is written beside a model is found there again, and every way of cutting it short is noticed.
#[test]
fn a_written_model_and_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    onnx::write(&network(), Lowering::Standard, &path).unwrap();
    let graph = onnx::read(&path).unwrap();
    for param in network().params() {
        if let Some(found) = graph.params().iter().find(|found| found.name == param.name) {
            assert_eq!(found.tensor.to_f32().unwrap(), param.tensor.to_f32().unwrap(), "{}", param.name);
            let rows = found.tensor.row_count();
            assert_eq!(
                found.tensor.rows(rows - 1..rows).unwrap(),
                param.tensor.rows(rows - 1..rows).unwrap()
            );
        }
    }
    assert!(["table", "weight", "bias", "scale"].iter().all(|name| graph.find(name).is_some()), "{graph}");
    let weights = folder.path().join("model.onnx.bin");
    let bytes = std::fs::read(&weights).unwrap();
    for len in (0..bytes.len()).step_by(509) {
        std::fs::write(&weights, &bytes[..len]).unwrap();
        assert!(onnx::read(&path).is_err(), "{len} bytes");
    }
}

/// A summary needs no operator that is known here, and is refused the same files.
#[test]
fn a_summary_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut model = small();
    model.producer_name = "somebody".into();
    model.opset_import.push(OperatorSet { domain: "org.example".into(), version: 2 });
    let graph = model.graph.as_mut().unwrap();
    graph.node.push(NodeProto { domain: "org.example".into(), ..node("Odd", &["y", "w"], &["z"]) });
    graph.node.push(node("Tanh", &["x"], &["unused"]));
    graph.initializer.push(floats("w", &[2, 2], &[0.0; 4]));
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let summary = onnx::summarize(&path).unwrap();
    assert_eq!(
        (summary.name.as_str(), summary.producer.as_str(), summary.ir_version),
        ("small", "somebody", 11)
    );
    assert_eq!(summary.inputs, [("x".to_owned(), "FLOAT [2, 3]".to_owned())]);
    assert_eq!(summary.operators, [("Tanh".to_owned(), 2), ("org.example:Odd".to_owned(), 1)].into());
    assert_eq!((summary.tensors, summary.bytes), (1, 16));
    assert_eq!(summary.numbers, [("FLOAT".to_owned(), 4)].into());
    let error = onnx::read(&path).expect_err("an unknown operator").to_string();
    assert!(error.contains("Odd of org.example"), "{error}");
    std::fs::write(&path, b"").unwrap();
    assert!(onnx::summarize(&path).is_err());
}
