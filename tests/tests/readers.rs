//! A graph is written once and read by several: ONNX Runtime, in primitives, in official operators and in its own
//! fused ones, and the interpreter that training uses. They must agree.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use pilotfish_architectures::{Bert, BertConfig, CausalConfig, CausalNetwork, Checkpoint, EncoderNetwork};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::testing::{Feed, random_graph};
use pilotfish_graph::{Dim, Graph, GraphError, RopeScaling, Storage, passes};
use pilotfish_runtime::SessionConfig;
use pilotfish_runtime::ort::session::{Session, SessionInputValue};
use pilotfish_runtime::ort::value::Tensor;
use pilotfish_tests::{smollm2_layers, tiny_gemma};
use pilotfish_training::{Array, Interpreter, Precision};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Feeds = Vec<(String, Feed)>;
type Outputs = BTreeMap<String, Vec<f64>>;

/// The rows of a cache after the call, for inputs that the fused lowering adds.
fn cache_rows(graph: &Graph, feeds: &Feeds) -> usize {
    let shape = |name: &str| {
        feeds.iter().find(|(other, _)| other == name).map(|(_, feed)| match feed {
            Feed::Float { shape, .. } | Feed::Int { shape, .. } => shape.clone(),
        })
    };
    let past = graph.inputs().iter().find_map(|&input| {
        let name = &graph.info(input).name;
        (name.starts_with("past")).then(|| shape(name)).flatten()
    });
    let x = shape("x").or_else(|| shape("ids")).unwrap();
    past.map_or(0, |past| past[2]) + x[1]
}

fn onnx_runtime(graph: &Graph, feeds: &Feeds, lowering: Lowering) -> Result<Outputs, GraphError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    onnx::write(graph, lowering, &path)?;
    let mut session: Session = SessionConfig::default().open(&path).unwrap();
    let mut inputs: Vec<(String, SessionInputValue<'_>)> = Vec::new();
    for (name, feed) in feeds {
        let value: SessionInputValue<'_> = match feed.clone() {
            Feed::Float { shape, values } => Tensor::from_array((shape, values)).unwrap().into(),
            Feed::Int { shape, values } => Tensor::from_array((shape, values)).unwrap().into(),
        };
        inputs.push((name.clone(), value));
    }
    if session.inputs().iter().any(|input| input.name() == "seqlens") {
        let rows = cache_rows(graph, feeds) as i32;
        for (name, value) in [("seqlens", rows - 1), ("total", rows)] {
            inputs.push((name.into(), Tensor::from_array(([1], vec![value])).unwrap().into()));
        }
    }
    let outputs = session.run(inputs).unwrap();
    let mut found = Outputs::new();
    for (name, value) in outputs.iter() {
        let values = match value.try_extract_tensor::<f32>() {
            Ok((_, values)) => values.iter().map(|&value| value.into()).collect(),
            Err(_) => {
                value.try_extract_tensor::<i64>().unwrap().1.iter().map(|&value| value as f64).collect()
            }
        };
        found.insert(name.to_owned(), values);
    }
    Ok(found)
}

fn candle(graph: &Graph, feeds: &Feeds) -> Outputs {
    let arrays: Vec<(&str, Array)> = feeds
        .iter()
        .map(|(name, feed)| {
            let array = match feed {
                Feed::Float { shape, values } => {
                    Array::float(shape.clone(), values.iter().map(|&value| value.into()))
                }
                Feed::Int { shape, values } => Array::int(shape.clone(), values.iter().copied()),
            };
            (name.as_str(), array)
        })
        .collect();
    Interpreter::new(graph, Precision::F32).unwrap().run(&arrays).unwrap()
}

/// The largest difference; where an output has numbers beyond 10, relative to a tenth of its largest.
fn gap(a: &Outputs, b: &Outputs) -> f64 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let mut worst = 0.0;
    for (a, b) in a.values().zip(b.values()) {
        assert_eq!(a.len(), b.len());
        let scale = b.iter().fold(1.0f64, |scale, b| scale.max(0.1 * b.abs()));
        for (a, b) in a.iter().zip(b) {
            let gap = (a - b).abs() / scale;
            worst = if gap <= worst { worst } else { gap };
        }
    }
    worst
}

const LOWERINGS: [Lowering; 3] = [Lowering::Primitive, Lowering::Standard, Lowering::Fused { positions: 64 }];

#[track_caller]
fn agree(graph: &Graph, feeds: &Feeds, what: &str) {
    let want = candle(graph, feeds);
    for lowering in LOWERINGS {
        let gap = gap(&onnx_runtime(graph, feeds, lowering).unwrap(), &want);
        assert!(gap <= 1e-4, "{what}, {lowering:?}: {gap}");
    }
}

#[test]
fn random_graphs() {
    for seed in 0..150 {
        let (graph, feeds) = random_graph(seed).unwrap();
        agree(&graph, &feeds, &format!("seed {seed}"));
    }
}

/// What a quantised matrix stands for is the same for all; fused products also round the other operand.
#[test]
fn random_graphs_with_quantised_matrices() {
    let mut stored = 0;
    for seed in 0..60 {
        let (graph, feeds) = random_graph(seed).unwrap();
        for storage in [Storage::Int4 { block: 16 }, Storage::Int8 { block: 16 }] {
            let Ok(graph) = passes::store(&graph, |_| Some(storage)) else { continue };
            stored += 1;
            let want = candle(&graph, &feeds);
            for lowering in &LOWERINGS[..2] {
                let gap = gap(&onnx_runtime(&graph, &feeds, *lowering).unwrap(), &want);
                assert!(gap <= 1e-4, "seed {seed}, {storage}, {lowering:?}: {gap}");
            }
        }
    }
    assert!(stored > 30, "{stored}");
}

/// Numbers for the inputs of a body or a whole network: tokens or vectors, positions and causal masks.
fn feeds(graph: &Graph, rows: usize, past: usize, vocab: usize, window: usize, seed: u64) -> Feeds {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let symbols = BTreeMap::from([("B".into(), 1), ("T".to_owned(), rows), ("L".into(), past)]);
    let mut feeds = Feeds::new();
    for &input in graph.inputs() {
        let name = graph.info(input).name.clone();
        let shape = graph.shape(input).evaluate(&symbols).unwrap();
        let count: usize = shape.iter().product();
        let see = |window: usize| {
            let values = (past..past + rows).flat_map(|row| {
                (0..past + rows).map(
                    move |column| {
                        if column <= row && column + window > row { 0.0 } else { -1e9 }
                    },
                )
            });
            values.collect::<Vec<f32>>()
        };
        let feed = match name.as_str() {
            "ids" => {
                Feed::Int { shape, values: (0..count).map(|_| rng.random_range(0..vocab as i64)).collect() }
            }
            "positions" => Feed::Int { shape, values: (past as i64..(past + rows) as i64).collect() },
            "mask" => Feed::Float { shape, values: see(usize::MAX / 2) },
            "mask_local" => Feed::Float { shape, values: see(window) },
            _ => Feed::Float { shape, values: (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() },
        };
        feeds.push((name, feed));
    }
    feeds
}

/// The whole network, and its layers over a cache, by all readers.
fn networks_agree(network: &CausalNetwork, what: &str) {
    let config = network.config();
    let window = network.window(0..config.layers).unwrap_or(1);
    let whole = network.whole(1.into(), Dim::symbol("T")).unwrap();
    agree(&whole, &feeds(&whole, 9, 0, config.vocab, window, 1), &format!("{what}, whole"));
    let body = network.body(0..config.layers, &Default::default()).unwrap();
    for (rows, past) in [(1, 7), (5, 12), (4, 0)] {
        let feeds = feeds(&body, rows, past, config.vocab, window, 2);
        agree(&body, &feeds, &format!("{what}, {rows} rows after {past}"));
        let merged = passes::merge_linears(&body).unwrap();
        let gap = gap(&candle(&merged, &feeds), &candle(&body, &feeds));
        assert!(gap <= 1e-5, "{what}: merging changes {gap}");
    }
}

/// A Llama with everything a configuration can switch on.
#[test]
fn a_llama_with_all_options() {
    let mut config = CausalConfig::llama(61, 64, 3, [4, 2], 72);
    config.rope_theta = 500.0;
    config.rope_theta_local = 50.0;
    config.rope_scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
    config.windows = vec![Some(3), None, Some(3)];
    config.qk_norm = true;
    config.tied = false;
    config.embedding_scale = 1.7;
    config.attention_scale = 0.3;
    config.context = 64;
    networks_agree(&CausalNetwork::random(config, 21).unwrap(), "llama");
    // Biases, which random networks have not, and heads that no fused operator takes.
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/architectures/tests/fixtures/llama_full");
    networks_agree(Checkpoint::open(folder).unwrap().causal().unwrap(), "llama with biases");
}

#[test]
fn a_gemma_3() {
    networks_agree(&tiny_gemma(), "gemma");
}

#[test]
fn the_first_layers_of_smollm2() {
    let network = smollm2_layers(3);
    let vocab = network.config().vocab;
    let whole = network.whole(1.into(), Dim::symbol("T")).unwrap();
    agree(&whole, &feeds(&whole, 7, 0, vocab, 1, 3), "smollm2, whole");
    // Over a cache, and on vectors as large as embeddings are.
    let body = network.body(0..3, &Default::default()).unwrap();
    for (rows, past) in [(1, 7), (6, 3)] {
        let mut feeds = feeds(&body, rows, past, 0, 1, 3);
        for (name, feed) in &mut feeds {
            if let (Feed::Float { values, .. }, true) = (feed, name == "x") {
                values.iter_mut().for_each(|value| *value *= 0.1);
            }
        }
        agree(&body, &feeds, &format!("smollm2, {rows} rows after {past}"));
    }
}

#[test]
fn a_bert() {
    let config =
        BertConfig { vocab: 50, width: 24, layers: 2, heads: 3, ffn: 40, context: 32, norm_eps: 1e-12 };
    let graph = Bert::random(config, 5).unwrap().graph().unwrap();
    let mut feeds = feeds(&graph, 6, 0, 50, 1, 4);
    // A mask of its own: every row sees the first four places.
    let mask = feeds.iter_mut().find(|(name, _)| name == "mask").unwrap();
    let Feed::Float { values, .. } = &mut mask.1 else { panic!("a mask of floats") };
    values.iter_mut().enumerate().for_each(|(at, value)| *value = if at % 6 < 4 { 0.0 } else { -1e9 });
    agree(&graph, &feeds, "bert");
}
