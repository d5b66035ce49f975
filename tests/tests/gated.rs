//! Plans of gates, and sums over experts, run by our operators inside ONNX Runtime, against the interpreter and against
//! standard ONNX.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use pilotfish_architectures::{BodyOptions, CausalConfig, CausalNetwork};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{DType, Dim, Graph, Kept, Op, Storage, Tensor};
use pilotfish_model::{LogitForm, RowSet, Step, Steps};
use pilotfish_pipeline::sparse::{Decoder, OnnxEngine, gate_plan, pass_of, planned};
use pilotfish_runtime::{
    LoadOptions, OnnxCausal, Products, RuntimeError, SessionConfig, lower_products, ort, product_operators,
};
use pilotfish_sparsity::gate::{Gate, GateMethod, Score};
use pilotfish_sparsity::plan::{LayerPlan, Plan};
use pilotfish_sparsity::sequential::Layers;
use pilotfish_sparsity::wina::{Ends, Rotations};
use pilotfish_training::{Array, Interpreter, Precision};

fn network() -> CausalNetwork {
    CausalNetwork::random(CausalConfig::llama(50, 48, 3, [4, 2], 64), 3).unwrap()
}

fn text(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 7 + 13 * seed) % 50).collect()
}

/// Thresholds at half the inputs, packed.
fn plan(decoder: &Decoder<'_>, method: GateMethod, kept: Kept, dense_positions: usize) -> Plan {
    let rotations = method.rotates().then(|| Rotations::of(decoder).unwrap());
    let texts: Vec<_> = (0..3).map(|seed| text(seed, 24)).collect();
    let mut engine = OnnxEngine::new(1).unwrap();
    let mut plan = gate_plan(decoder, method, 0.5, Some(&texts), rotations.as_ref(), &mut engine).unwrap();
    for layer in plan.layers.values_mut() {
        (layer.packed, layer.kept) = (true, kept);
        // A quantile is a score that was seen, and tokens come again: readers that round otherwise would disagree about it.
        let threshold = layer.gate.as_mut().and_then(|gate| gate.threshold.as_mut()).unwrap();
        *threshold *= 1.0007;
    }
    Plan { dense_positions, ..plan }
}

fn custom(graph: &Graph) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for node in graph.nodes() {
        if let Op::Custom(custom) = &node.op {
            *counts.entry(custom.name.clone()).or_default() += 1;
        }
    }
    counts
}

/// Logits of a text, all rows, by the interpreter: the whole network as one graph, changed by the same pass.
fn interpreted(network: &CausalNetwork, plan: &Plan, text: &[u32]) -> Vec<f32> {
    let decoder = Decoder::new(network);
    let mut graph = network.whole(1.into(), "T".into()).unwrap();
    if plan.gates.is_some_and(GateMethod::rotates) {
        graph = Rotations::of(&decoder).unwrap().apply(&graph, Ends::Kept).unwrap();
    }
    let graph = plan.apply(&graph).unwrap();
    let rows = text.len();
    let ids = pilotfish_sparsity::Feed::Int {
        shape: vec![1, rows],
        values: text.iter().map(|&id| id.into()).collect(),
    };
    let feeds: Vec<(String, Array)> = decoder
        .feeds(rows)
        .into_iter()
        .chain([("ids".to_owned(), ids)])
        .map(|(name, feed)| {
            let array = match feed {
                pilotfish_sparsity::Feed::Float { shape, values } => {
                    Array::float(shape, values.into_iter().map(f64::from))
                }
                pilotfish_sparsity::Feed::Int { shape, values } => Array::int(shape, values),
            };
            (name, array)
        })
        .collect();
    let feeds: Vec<(&str, Array)> =
        feeds.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
    let found = Interpreter::new(&graph, Precision::F32).unwrap().run(&feeds).unwrap();
    found["logits"].iter().map(|&value| value as f32).collect()
}

fn logits(model: &mut OnnxCausal, text: &[u32]) -> Vec<f32> {
    let step = Step::chain(text).want(RowSet::All).form(LogitForm::Full);
    let out = model.step(&step).unwrap();
    (0..text.len()).flat_map(|row| out.logits.row(row).unwrap().to_vec()).collect()
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_plan_of_gates_runs_in_the_runtime() {
    let network = network();
    let decoder = Decoder::new(&network);
    let text = text(9, 11);
    let dense = interpreted(&network, &Plan::new("dense"), &text);
    for (method, kept, first) in [
        (GateMethod::Teal, Kept::F32, 0),
        (GateMethod::Teal, Kept::Int8, 2),
        (GateMethod::Wina, Kept::F32, 0),
        (GateMethod::WinaPlain, Kept::Bf16, 0),
        (GateMethod::Cats, Kept::F32, 0),
        (GateMethod::Cats, Kept::Int8, 1),
    ] {
        let plan = plan(&decoder, method, kept, first);
        let want = interpreted(&network, &plan, &text);
        assert!(furthest(&want, &dense) > 1e-2, "{method:?}: it is gated");
        let ours = planned(LoadOptions::default(), &plan, &network).unwrap();
        assert_eq!(ours.export.products, Products::Pilotfish);
        let standard = ours.clone().products(Products::Ort);
        for options in [ours, standard] {
            let mut model = OnnxCausal::from_network("toy", &network, &options).unwrap();
            let got = logits(&mut model, &text);
            assert!(furthest(&got, &want) < 1e-3, "{method:?} {kept:?}: {}", furthest(&got, &want));
            // A token at a time, each drops its own; positions go on.
            model.truncate(0).unwrap();
            let each: Vec<f32> = text.iter().flat_map(|&id| logits(&mut model, &[id])).collect();
            assert!(furthest(&each, &want) < 1e-3, "{method:?} {kept:?}: {}", furthest(&each, &want));
        }
    }
}

/// The operators are really there: seven gated products become four, as shared inputs are gated once.
#[test]
fn gated_layers_are_lowered_to_operators_that_skip() {
    let network = network();
    let decoder = Decoder::new(&network);
    let lowered = |method, kept| {
        let plan = plan(&decoder, method, kept, 0);
        let body = network.body(0..1, &BodyOptions::default()).unwrap();
        let graph = pilotfish_graph::passes::merge_linears(&plan.apply(&body).unwrap()).unwrap();
        custom(&lower_products(&graph).unwrap())
    };
    let teal = lowered(GateMethod::Teal, Kept::F32);
    assert_eq!(teal, HashMap::from([("LinearGated".to_owned(), 4)]));
    // Weighted scores stay in the graph, and what was joined for one gate comes apart.
    let weighted = lowered(GateMethod::WinaPlain, Kept::F32);
    assert_eq!(weighted, HashMap::from([("LinearColumns".to_owned(), 7)]));
    // q, k, v and o are one product and one; gate is dense, up by rows, down by columns.
    let cats = lowered(GateMethod::Cats, Kept::F32);
    let want = [("LinearF32", 3), ("LinearRows", 1), ("LinearColumns", 1)];
    assert_eq!(cats, want.map(|(name, count)| (name.to_owned(), count)).into());
    let int8 = lowered(GateMethod::Cats, Kept::Int8);
    assert!(!int8.contains_key("LinearRows"), "{int8:?}");
}

#[test]
fn rows_of_a_gated_model_do_not_depend_on_each_other() {
    let network = network();
    let decoder = Decoder::new(&network);
    for method in [GateMethod::Teal, GateMethod::Cats] {
        let plan = plan(&decoder, method, Kept::F32, 0);
        let options = planned(LoadOptions::default(), &plan, &network).unwrap();
        let mut model = OnnxCausal::from_network("toy", &network, &options).unwrap();
        let all = logits(&mut model, &text(1, 8));
        model.truncate(0).unwrap();
        let mut one = Vec::new();
        for id in text(1, 8) {
            one.extend(logits(&mut model, &[id]));
        }
        assert!(furthest(&all, &one) < 1e-5, "{method:?}");
    }
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let network = network();
    let gate = Some(Gate::top_k(Score::Magnitude, 0.5));
    let layer = LayerPlan { gate, packed: true, ..LayerPlan::default() };
    let mut plan = Plan::new("toy");
    plan.layers.insert("model.layers.9.mlp.up_proj.weight".into(), layer);
    let error = pass_of(&plan, &network).err().unwrap().to_string();
    assert!(error.contains("no linear layer called"), "{error}");
    // CATS on a matrix that reads no product is found when the model is written.
    let mut plan = Plan::new("toy");
    let gate = Some(Gate::top_k(Score::Activation, 0.5));
    plan.layers.insert("model.layers.0.mlp.up_proj.weight".into(), LayerPlan { gate, ..layer });
    let options = planned(LoadOptions::default(), &plan, &network).unwrap();
    let error = OnnxCausal::from_network("toy", &network, &options).err().unwrap();
    assert!(matches!(error, RuntimeError::Pass { .. }) && error.to_string().contains("CATS"), "{error}");
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 31) % 1999) as f32 / 999.5 - 1.0).collect()
}

/// `x` `[T, ins]`, `factors` `[T, experts]`.
fn expert_graph(count: usize, outs: usize, ins: usize, storage: Storage) -> Graph {
    let mut g = Graph::new("experts");
    let x = g.input("x", vec![Dim::symbol("T"), ins.into()], DType::F32).unwrap();
    let factors = g.input("factors", vec![Dim::symbol("T"), count.into()], DType::F32).unwrap();
    let w = Tensor::new([count * outs, ins], numbers(count * outs * ins, 1)).unwrap();
    let w = g.param("w", w).unwrap();
    let y = g.experts(x, factors, w).unwrap();
    g.output("y", y).unwrap();
    match storage {
        Storage::F32 => g,
        storage => pilotfish_graph::passes::store(&g, |_| Some(storage)).unwrap(),
    }
}

fn run(graph: &Graph, threads: Option<usize>, x: &[f32], factors: &[f32], rows: usize) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    onnx::write(graph, Lowering::Standard, &path).unwrap();
    let operators = threads.map(|threads| vec![product_operators(threads)]).unwrap_or_default();
    let config = SessionConfig { operators, threads: threads.unwrap_or(1), ..SessionConfig::default() };
    let mut session = config.open(&path).unwrap();
    let tensor = |values: &[f32]| {
        ort::value::Tensor::from_array(([rows, values.len() / rows], values.to_vec())).unwrap()
    };
    let outputs = session.run(ort::inputs!["x" => tensor(x), "factors" => tensor(factors)]).unwrap();
    outputs["y"].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

#[test]
fn expert_sums_equal_their_standard_form() {
    let (count, outs, ins) = (6, 20, 32);
    for storage in [Storage::F32, Storage::Bf16] {
        let graph = expert_graph(count, outs, ins, storage);
        let ours = lower_products(&graph).unwrap();
        assert_eq!(custom(&ours), HashMap::from([("LinearExperts".to_owned(), 1)]));
        assert_eq!(ours.params().len(), 1, "the matrix itself is gone");
        for rows in [1, 5] {
            let x = numbers(rows * ins, 3);
            // Two of six a row, and in the last row none.
            let factors: Vec<f32> = (0..rows * count)
                .map(|at| {
                    let (row, expert) = (at / count, at % count);
                    let used = (expert + row) % 3 == 0 && (rows == 1 || row + 1 < rows);
                    if used { 0.25 + expert as f32 } else { 0.0 }
                })
                .collect();
            let want = run(&graph, None, &x, &factors, rows);
            for threads in [1, 2] {
                let got = run(&ours, Some(threads), &x, &factors, rows);
                assert!(furthest(&got, &want) < 1e-4, "{storage}, {rows} rows: {}", furthest(&got, &want));
                assert!(rows == 1 || got[(rows - 1) * outs..].iter().all(|&y| y == 0.0));
            }
        }
    }
    // Another reduction, another axis, other factors are not the pattern.
    let mut g = Graph::new("none");
    let x = g.input("x", vec![Dim::symbol("T"), 4.into()], DType::F32).unwrap();
    let w = g.param("w", Tensor::new([6, 4], numbers(24, 1)).unwrap()).unwrap();
    let y = g.linear(x, w, None).unwrap();
    let y = g.reshape(y, vec![Dim::symbol("T"), 2.into(), 3.into()]).unwrap();
    let sum = g.reduce(pilotfish_graph::ReduceOp::Sum, y, 1, false).unwrap();
    g.output("y", sum).unwrap();
    assert_eq!(custom(&lower_products(&g).unwrap()), HashMap::from([("LinearF32".to_owned(), 1)]));
    // Rows that are not those of so many experts.
    let mut g = Graph::new("odd");
    let x = g.input("x", vec![1.into(), 4.into()], DType::F32).unwrap();
    let factors = g.input("factors", vec![1.into(), 4.into()], DType::F32).unwrap();
    let w = g.param("w", Tensor::new([6, 4], numbers(24, 1)).unwrap()).unwrap();
    assert!(g.experts(x, factors, w).is_err());
}

#[test]
fn operators_that_skip_name_their_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    let experts = lower_products(&expert_graph(2, 4, 8, Storage::F32)).unwrap();
    onnx::write(&experts, Lowering::Standard, &path).unwrap();
    let error = SessionConfig::default().open(&path).unwrap_err();
    assert!(matches!(&error, RuntimeError::NoOperators { domain, .. } if domain == "pilotfish"), "{error:?}");
    assert!(error.to_string().contains("pilotfish-runtime"), "{error}");
}
