//! Exports in the layout of Hugging Face's exporters: written here by our own graph builder, and run.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use pilotfish_architectures::{CausalNetwork, LayerInputs};
use pilotfish_graph::onnx::proto::{
    Attribute, Dimension, Entry, GraphProto, Model, NodeProto, OperatorSet, ShapeProto, TensorProto,
    TensorType, TypeProto, ValueInfo, dimension, elem,
};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{BinaryOp, DType, Dim, Graph, Literal, Value};
use pilotfish_model::{Capability, CausalModel, LogitForm, ModelError, RowSet, Step, Steps, Tap, TokenTree};
use pilotfish_runtime::{LoadOptions, OnnxCausal, RuntimeError, SessionConfig, StockCausal};
use pilotfish_tests::{
    kept_path_equals_prefill, near, random_tree, tiny_llama, tokens, tree_equals_paths, worked_tree,
};
use prost::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The whole network with its cache, inputs and outputs as exporters name them. Rows see those of their past that
/// the mask shows, and among themselves those that are not later.
fn stock_graph(network: &CausalNetwork, batch: Dim) -> Graph {
    let c = network.config();
    let (rows, past) = (Dim::symbol("T"), Dim::symbol("L"));
    let all = &past + &rows;
    let mut g = Graph::new("stock");
    let ids = g.input("input_ids", vec![batch.clone(), rows.clone()], DType::I64).unwrap();
    let seen = g.input("attention_mask", vec![batch.clone(), all.clone()], DType::I64).unwrap();
    let positions = g.input("position_ids", vec![batch.clone(), rows.clone()], DType::I64).unwrap();
    let mut cache = Vec::new();
    for layer in 0..c.layers {
        let [key, value]: [Value; 2] = ["key", "value"].map(|kind| {
            let shape: Vec<Dim> = vec![batch.clone(), c.kv_heads.into(), past.clone(), c.head_dim.into()];
            g.input(&format!("past_key_values.{layer}.{kind}"), shape, DType::F32).unwrap()
        });
        cache.push((key, value));
    }
    let shape = |dims: [&Dim; 4]| dims.into_iter().cloned().collect::<Vec<Dim>>();
    let one = Dim::from(1);
    let down = g.reshape(positions, shape([&batch, &one, &rows, &one])).unwrap();
    let across = g.reshape(positions, shape([&batch, &one, &one, &rows])).unwrap();
    let seen = g.reshape(seen, shape([&batch, &one, &one, &all])).unwrap();
    let yes = g.constant(Literal::I64 { shape: vec![], values: vec![1] }).unwrap();
    let seen = g.binary(BinaryOp::Equal, seen, yes).unwrap();
    let (visible, hidden) = (g.scalar(0.0).unwrap(), g.scalar(-1e9).unwrap());
    let seen = g.select(seen, visible, hidden).unwrap();
    let earlier = g.binary(BinaryOp::LessOrEqual, across, down).unwrap();
    let among = g.select(earlier, visible, hidden).unwrap();
    // Zeros of a row each, to spread what is said of the past over the rows.
    let still = g.cast(down, DType::F32).unwrap();
    let still = g.scale(still, 0.0).unwrap();
    let before = g.slice(seen, 3, 0, past.clone()).unwrap();
    let before = g.add(before, still).unwrap();
    let after = g.slice(seen, 3, past, all).unwrap();
    let after = g.add(among, after).unwrap();
    let mask = g.concat(&[before, after], 3).unwrap();
    let x = network.embed(&mut g, ids).unwrap();
    let inputs = LayerInputs { positions, mask, mask_local: None, past: Some(cache), added: None };
    let (x, cache) = network.layers(&mut g, 0..c.layers, x, &inputs).unwrap();
    let x = network.final_norm(&mut g, x).unwrap();
    let logits = network.head(&mut g, x).unwrap();
    g.output("logits", logits).unwrap();
    for (layer, (key, value)) in cache.into_iter().enumerate() {
        g.output(&format!("present.{layer}.key"), key).unwrap();
        g.output(&format!("present.{layer}.value"), value).unwrap();
    }
    g
}

fn config_json(folder: &Path, network: &CausalNetwork) {
    let c = network.config();
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": c.vocab, "hidden_size": c.width, "eos_token_id": [2, 3],
        "max_position_embeddings": c.context,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn export(network: &CausalNetwork, batch: Dim, change: impl FnOnce(&mut Model)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = onnx::to_bytes(&stock_graph(network, batch), Lowering::Standard).unwrap();
    let mut model = Model::decode(bytes.as_slice()).unwrap();
    change(&mut model);
    std::fs::write(folder.path().join("model.onnx"), model.encode_to_vec()).unwrap();
    config_json(folder.path(), network);
    folder
}

fn open(folder: &tempfile::TempDir) -> StockCausal {
    StockCausal::open(folder.path(), &SessionConfig::default()).unwrap()
}

fn node(op: &str, inputs: &[&str], output: &str, ints: &[(&str, i64)]) -> NodeProto {
    let attribute =
        |(name, i): &(&str, i64)| Attribute { name: (*name).into(), i: *i, kind: 2, ..Attribute::default() };
    NodeProto {
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.into()],
        name: output.into(),
        op_type: op.into(),
        attribute: ints.iter().map(attribute).collect(),
        domain: String::new(),
    }
}

fn constant(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: elem::INT64,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

/// An export without `position_ids`: it counts the mask, as exporters' graphs do.
fn counts_positions(model: &mut Model) {
    let graph = model.graph.as_mut().unwrap();
    graph.input.retain(|input| input.name != "position_ids");
    graph.initializer.extend([constant("axis", &[1]), constant("one", &[1]), constant("end", &[i64::MAX])]);
    let counted = [
        node("CumSum", &["attention_mask", "one"], "counted", &[]),
        node("Sub", &["counted", "one"], "from0", &[]),
        node("Shape", &["attention_mask"], "all", &[("start", 1), ("end", 2)]),
        node("Shape", &["input_ids"], "rows", &[("start", 1), ("end", 2)]),
        node("Sub", &["all", "rows"], "past", &[]),
        node("Slice", &["from0", "past", "end", "axis"], "position_ids", &[]),
    ];
    graph.node.splice(0..0, counted);
}

type Variant = (&'static str, Dim, fn(&mut Model));

/// Any batch, with positions and without, and one text at a time.
fn variants() -> [Variant; 3] {
    [
        ("any batch", Dim::symbol("B"), |_| {}),
        ("no positions", Dim::symbol("B"), counts_positions),
        ("one text", 1.into(), |_| {}),
    ]
}

#[test]
fn a_stock_export_computes_what_our_own_does() {
    let network = tiny_llama();
    let mut own = OnnxCausal::from_network("tiny", &network, &LoadOptions::default()).unwrap();
    for (what, batch, change) in variants() {
        let mut stock = open(&export(&network, batch, change));
        own.truncate(0).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (round, nodes) in [7, 1, 40, 12].into_iter().enumerate() {
            let text = tokens(&mut rng, 3 * round, 97);
            if !text.is_empty() {
                let [a, b] = [&mut own as &mut dyn CausalModel, &mut stock]
                    .map(|model| model.step(&Step::chain(&text).want(RowSet::All)).unwrap().logits);
                for row in 0..text.len() {
                    near(b.row(row).unwrap(), a.row(row).unwrap(), 1e-4, what);
                }
            }
            let before = own.len();
            let tree = random_tree(&mut rng, nodes, 97);
            let parents = tree.parents(before);
            let step = Step::tree(tree.tokens(), &parents);
            let [a, b] =
                [&mut own as &mut dyn CausalModel, &mut stock].map(|model| model.step(&step).unwrap().logits);
            for row in 0..nodes {
                near(b.row(row).unwrap(), a.row(row).unwrap(), 1e-4, &format!("{what}, node {row}"));
            }
            let kept: Vec<usize> = tree.path(nodes - 1).iter().map(|node| before + node).collect();
            own.keep(before, &kept).unwrap();
            stock.keep(before, &kept).unwrap();
            assert_eq!(stock.len(), own.len());
        }
    }
}

#[test]
fn trees_and_caches_obey_the_same_laws() {
    for (_, batch, change) in variants() {
        let mut stock = open(&export(&tiny_llama(), batch, change));
        worked_tree(&mut stock, 1e-5);
        for (case, past) in [0, 1, 17, 0, 1, 17].into_iter().enumerate() {
            let nodes = [2, 33, 64, 7, 12, 5][case];
            tree_equals_paths(&mut stock, case as u64, past, nodes, 1e-4);
            kept_path_equals_prefill(&mut stock, 50 + case as u64, past, nodes, 1e-4);
        }
    }
}

/// A tree under an old branch: its rows do not stand on the cache's end, nor all on one row.
#[test]
fn rows_under_different_rows_of_the_cache() {
    let network = tiny_llama();
    let mut own = OnnxCausal::from_network("tiny", &network, &LoadOptions::default()).unwrap();
    let mut stock = open(&export(&network, Dim::symbol("B"), |_| {}));
    let mut tree = TokenTree::new(1);
    tree.push(0, 2).unwrap();
    tree.push(0, 3).unwrap();
    for model in [&mut own as &mut dyn CausalModel, &mut stock] {
        model.step(&Step::chain(&[9, 8])).unwrap();
        model.step(&Step::tree(tree.tokens(), &tree.parents(2))).unwrap();
    }
    // Under b, under a, a text of its own, one more under the row under a, and a chain after that.
    let steps: [(&[u32], &[Option<usize>]); 2] =
        [(&[4, 5, 6, 7], &[Some(4), Some(3), None, Some(6)]), (&[10, 11], &[Some(8), Some(9)])];
    for (ids, parents) in steps {
        let a = own.step(&Step::tree(ids, parents)).unwrap().logits;
        let b = stock.step(&Step::tree(ids, parents)).unwrap().logits;
        for row in 0..ids.len() {
            near(b.row(row).unwrap(), a.row(row).unwrap(), 1e-4, &format!("row {row}"));
        }
    }
}

#[test]
fn what_it_cannot_do_it_says() {
    let mut stock = open(&export(&tiny_llama(), Dim::symbol("B"), |_| {}));
    assert_eq!((stock.info().vocab, stock.info().layers, stock.info().width), (97, 4, 64));
    assert_eq!((stock.info().context, stock.info().end.as_slice()), (128, &[2, 3][..]));
    stock.step(&Step::chain(&[1, 2, 3])).unwrap();
    let want = stock.step(&Step::chain(&[4])).unwrap();
    stock.truncate(3).unwrap();
    let capabilities = &stock.info().capabilities;
    assert!(
        capabilities.tree
            && [Capability::Embeddings, Capability::Head, Capability::Ranges]
                .iter()
                .all(|c| !capabilities.has(*c))
    );
    let vectors = vec![0.0; 64];
    let long = vec![1; 126];
    let refused = [
        stock.step(&Step::chain(&[1]).vectors(&vectors, 64)).unwrap_err(),
        stock.step(&Step::chain(&[1]).taps(&[Tap::FinalNormed])).unwrap_err(),
        stock.embed(&[1]).unwrap_err(),
        stock.final_norm(&vectors).unwrap_err(),
        stock.head(&vectors, LogitForm::Full).unwrap_err(),
        match stock.range(0..4) {
            Ok(_) => panic!("no ranges"),
            Err(error) => error,
        },
    ];
    for error in refused {
        assert!(error.to_string().contains("OnnxCausal"), "{error}");
    }
    assert!(matches!(stock.step(&Step::chain(&[])), Err(ModelError::EmptyStep)));
    assert!(matches!(stock.step(&Step::chain(&[97])), Err(ModelError::TokenOutOfRange { .. })));
    assert!(matches!(stock.step(&Step::chain(&long)), Err(ModelError::ContextFull { .. })));
    assert!(matches!(stock.step(&Step::tree(&[1], &[Some(3)])), Err(ModelError::BadParent { .. })));
    assert!(stock.truncate(4).is_err() && stock.keep(1, &[3]).is_err() && stock.keep(1, &[2]).is_err());
    assert_eq!(stock.len(), 3);
    assert_eq!(stock.step(&Step::chain(&[4])).unwrap(), want);
}

/// An ONNX file that is nothing but its inputs and outputs: name, element type, dimensions (-1: any).
fn fake(inputs: &[(&str, i32, &[i64])], outputs: &[(&str, i32, &[i64])]) -> Model {
    let info = |(name, elem_type, dims): &(&str, i32, &[i64])| {
        let dim = |(axis, size): (usize, &i64)| Dimension {
            value: Some(match size {
                -1 => dimension::Value::Symbol(format!("{name}.{axis}")),
                size => dimension::Value::Size(*size),
            }),
        };
        let shape = ShapeProto { dim: dims.iter().enumerate().map(dim).collect() };
        let tensor = TensorType { elem_type: *elem_type, shape: Some(shape) };
        ValueInfo { name: (*name).into(), kind: Some(TypeProto { tensor: Some(tensor) }) }
    };
    let mut graph = GraphProto { name: "fake".into(), ..GraphProto::default() };
    for (name, elem_type, dims) in outputs {
        let dims: Vec<i64> = dims.iter().map(|&dim| dim.max(1)).collect();
        let count: i64 = dims.iter().product();
        let width = if *elem_type == F16 { 2 } else { 4 };
        graph.initializer.push(TensorProto {
            name: format!("{name}.value"),
            dims,
            data_type: *elem_type,
            raw_data: vec![0; count as usize * width].into(),
            ..TensorProto::default()
        });
        graph.node.push(node("Identity", &[&format!("{name}.value")], name, &[]));
    }
    graph.input = inputs.iter().map(info).collect();
    graph.output = outputs.iter().map(info).collect();
    Model {
        ir_version: 10,
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: String::new(), version: 21 }],
        metadata_props: Vec::<Entry>::new(),
        ..Model::default()
    }
}

const F16: i32 = 10;
const IDS: (&str, i32, &[i64]) = ("input_ids", elem::INT64, &[-1, -1]);
const MASK: (&str, i32, &[i64]) = ("attention_mask", elem::INT64, &[-1, -1]);
const KEY: (&str, i32, &[i64]) = ("past_key_values.0.key", elem::FLOAT, &[-1, 2, -1, 4]);
const VALUE: (&str, i32, &[i64]) = ("past_key_values.0.value", elem::FLOAT, &[-1, 2, -1, 4]);
const LOGITS: (&str, i32, &[i64]) = ("logits", elem::FLOAT, &[1, 1, 97]);
const NEW_KEY: (&str, i32, &[i64]) = ("present.0.key", elem::FLOAT, &[1, 2, 1, 4]);
const NEW_VALUE: (&str, i32, &[i64]) = ("present.0.value", elem::FLOAT, &[1, 2, 1, 4]);

fn put(folder: &Path, model: &Model) {
    std::fs::write(folder.join("model.onnx"), model.encode_to_vec()).unwrap();
}

#[test]
fn bad_contracts_name_the_file_and_the_tensor() {
    type List<'a> = &'a [(&'a str, i32, &'a [i64])];
    let cases: [(&str, &str, List<'_>, List<'_>); 17] = [
        ("nothing wrong", "", &[IDS, MASK, KEY, VALUE], &[LOGITS, NEW_KEY, NEW_VALUE]),
        (
            "another name for ids",
            "input_ids",
            &[("ids", elem::INT64, &[-1, -1]), MASK, KEY, VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        ("no mask", "attention_mask", &[IDS, KEY, VALUE], &[LOGITS, NEW_KEY, NEW_VALUE]),
        (
            "int32 ids",
            "input_ids",
            &[("input_ids", elem::INT32, &[-1, -1]), MASK, KEY, VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        (
            "ids of rank 1",
            "input_ids",
            &[("input_ids", elem::INT64, &[-1]), MASK, KEY, VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        (
            "one row only",
            "input_ids",
            &[("input_ids", elem::INT64, &[-1, 1]), MASK, KEY, VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        (
            "batches of four",
            "input_ids",
            &[("input_ids", elem::INT64, &[4, -1]), MASK, KEY, VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        (
            "a past in f16",
            "past_key_values.0.key",
            &[IDS, MASK, ("past_key_values.0.key", F16, &[-1, 2, -1, 4]), VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        (
            "a past of rank 3",
            "past_key_values.0.value",
            &[IDS, MASK, KEY, ("past_key_values.0.value", elem::FLOAT, &[-1, -1, 8])],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        (
            "heads of any number",
            "past_key_values.0.key",
            &[IDS, MASK, ("past_key_values.0.key", elem::FLOAT, &[-1, -1, -1, 4]), VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
        (
            "logits in f16",
            "logits",
            &[IDS, MASK, KEY, VALUE],
            &[("logits", F16, &[1, 1, 97]), NEW_KEY, NEW_VALUE],
        ),
        (
            "logits of rank 2",
            "logits",
            &[IDS, MASK, KEY, VALUE],
            &[("logits", elem::FLOAT, &[1, 97]), NEW_KEY, NEW_VALUE],
        ),
        ("no cache at all", "past_key_values.0.key", &[IDS, MASK], &[LOGITS]),
        ("a present without a past", "past_key_values.0.key", &[IDS, MASK], &[LOGITS, NEW_KEY, NEW_VALUE]),
        ("a past without a present", "present.0.value", &[IDS, MASK, KEY, VALUE], &[LOGITS, NEW_KEY]),
        (
            "a present too many",
            "present.1.key",
            &[IDS, MASK, KEY, VALUE],
            &[LOGITS, NEW_KEY, NEW_VALUE, ("present.1.key", elem::FLOAT, &[1, 2, 1, 4])],
        ),
        (
            "two models in one file",
            "use_cache_branch",
            &[IDS, MASK, KEY, VALUE, ("use_cache_branch", elem::BOOL, &[1])],
            &[LOGITS, NEW_KEY, NEW_VALUE],
        ),
    ];
    for (what, tensor, inputs, outputs) in cases {
        let folder = tempfile::tempdir().unwrap();
        config_json(folder.path(), &tiny_llama());
        put(folder.path(), &fake(inputs, outputs));
        let opened = StockCausal::open(folder.path(), &SessionConfig::default());
        if tensor.is_empty() {
            // It opens; its constant answer to two rows is then found out.
            let error = opened.unwrap().step(&Step::chain(&[1, 2])).unwrap_err();
            assert!(matches!(error, ModelError::Length { .. }), "{error}");
            continue;
        }
        let error = opened.unwrap_err();
        let named = matches!(&error, RuntimeError::Tensor { path, tensor: found, .. } if path.ends_with("model.onnx") && found == tensor);
        assert!(named, "{what}: {error}");
    }
}

#[test]
fn vocabularies_that_differ_are_refused() {
    let network = tiny_llama();
    let folder = export(&network, Dim::symbol("B"), |_| {});
    let config = folder.path().join("config.json");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, good.replace("97", "96")).unwrap();
    let error = StockCausal::open(folder.path(), &SessionConfig::default()).unwrap_err().to_string();
    assert!(error.contains("logits is 97 wide; want 96, the vocab_size of config.json"), "{error}");
    std::fs::write(&config, &good).unwrap();
    // The tokeniser of the tiny Llama's fixture or any with more tokens than logits.
    let words: Vec<String> = (0..98).map(|i| format!("\"w{i}\": {i}")).collect();
    let tokenizer = |words: &[String]| {
        format!(
            r#"{{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,"model":{{"type":"WordLevel","vocab":{{{}}},"unk_token":"w0"}}}}"#,
            words.join(",")
        )
    };
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer(&words)).unwrap();
    let error = StockCausal::open(folder.path(), &SessionConfig::default()).unwrap_err().to_string();
    assert!(error.contains("98, the tokens of tokenizer.json"), "{error}");
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer(&words[..90])).unwrap();
    open(&folder);
}

#[test]
fn folders_that_hold_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let error = StockCausal::open(folder.path(), &SessionConfig::default()).unwrap_err();
    assert!(error.to_string().contains("onnx/model.onnx"), "{error}");
    let good = export(&tiny_llama(), Dim::symbol("B"), |_| {});
    for (config, what) in [("{}", "max_position_embeddings"), ("[", "config.json"), ("", "config.json")] {
        std::fs::write(good.path().join("config.json"), config).unwrap();
        let error = StockCausal::open(good.path(), &SessionConfig::default()).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("config.json"), "{error}");
    }
    config_json(good.path(), &tiny_llama());
    for bytes in [&b""[..], b"not an onnx file"] {
        std::fs::write(good.path().join("model.onnx"), bytes).unwrap();
        let error = StockCausal::open(good.path(), &SessionConfig::default()).unwrap_err();
        let named = matches!(&error, RuntimeError::Contract { path, .. } if path.ends_with("model.onnx"));
        assert!(named || error.to_string().contains("model.onnx"), "{error}");
    }
}
