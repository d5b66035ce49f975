//! Pruning, gating and rotating whole layers, run in ONNX Runtime.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use pilotfish_architectures::{CausalConfig, CausalNetwork};
use pilotfish_graph::{DType, Graph};
use pilotfish_pipeline::sparse::{Decoder, OnnxEngine, samples, windows};
use pilotfish_sparsity::gate::{Gate, GateMethod, Score, calibrate_gates, column_norms};
use pilotfish_sparsity::plan::{LayerPlan, Plan};
use pilotfish_sparsity::sequential::{
    Hidden, InMemory, Layers, Patterns, PrunedLayer, Store, advance, linears, prune_network, with_matrices,
};
use pilotfish_sparsity::wina::{Ends, Rotated, Rotations};
use pilotfish_sparsity::{Engine, Feed, Pattern, Pruner, SparsityError, verify};

fn network() -> CausalNetwork {
    let config = CausalConfig::llama(50, 48, 3, [4, 2], 64);
    CausalNetwork::random(config, 3).unwrap()
}

fn texts() -> Vec<Vec<u32>> {
    (0..3u32).map(|t| (0..24 + t).map(|i| (i * 7 + 13 * t) % 50).collect()).collect()
}

fn embedded(decoder: &Decoder<'_>) -> Vec<Hidden> {
    texts().iter().map(|text| decoder.embed(text).unwrap()).collect()
}

fn through(layers: &dyn Layers, hidden: &mut [Hidden], change: &dyn Fn(Graph) -> Graph) {
    let mut engine = OnnxEngine::new(1).unwrap();
    for index in 0..layers.count() {
        advance(layers, &change(layers.layer(index).unwrap()), hidden, &mut engine).unwrap();
    }
}

fn furthest(a: &[Hidden], b: &[Hidden]) -> f32 {
    a.concat().iter().zip(b.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_rotated_network_computes_the_same() {
    let network = network();
    let decoder = Decoder::new(&network);
    let rotations = Rotations::of(&decoder).unwrap();
    let (mut plain, mut turned) = (embedded(&decoder), embedded(&decoder));
    through(&decoder, &mut plain, &|graph| graph);
    turned.iter_mut().for_each(|text| *text = rotations.turn(0, text).unwrap());
    through(&Rotated::new(&decoder, &rotations), &mut turned, &|graph| graph);
    assert!(furthest(&plain, &turned) > 0.1, "it is turned");
    turned.iter_mut().for_each(|text| *text = rotations.turn_back(3, text).unwrap());
    assert!(furthest(&plain, &turned) < 1e-4, "{}", furthest(&plain, &turned));
    let mut engine = OnnxEngine::new(1).unwrap();
    let nats = |hidden: &[Hidden], engine: &mut OnnxEngine| decoder.nats(hidden, &texts(), engine).unwrap();
    let (a, b) = (nats(&plain, &mut engine), nats(&turned, &mut engine));
    a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4));
}

/// A whole graph, its ends kept: ids to logits, tied head.
#[test]
fn a_rotated_graph_gives_the_same_logits() {
    let network = network();
    let decoder = Decoder::new(&network);
    let graph = network.whole(1.into(), "T".into()).unwrap();
    let rotations = Rotations::of(&decoder).unwrap();
    let rotated = rotations.apply(&graph, Ends::Kept).unwrap();
    let text = &texts()[0];
    let rows = text.len();
    let mut feeds = decoder.feeds(rows);
    let values = text.iter().map(|&id| i64::from(id)).collect();
    feeds.push(("ids".into(), Feed::Int { shape: vec![1, rows], values }));
    let feeds: Vec<(&str, Feed)> = feeds.iter().map(|(name, feed)| (name.as_str(), feed.clone())).collect();
    let mut engine = OnnxEngine::new(1).unwrap();
    let mut logits = |graph: &Graph| engine.load(graph).unwrap().run(&feeds).unwrap();
    let (plain, turned) = (logits(&graph), logits(&rotated));
    assert!(furthest(&plain, &turned) < 1e-4, "{}", furthest(&plain, &turned));
}

#[test]
fn rotated_matrices_have_orthogonal_columns() {
    let network = network();
    let decoder = Decoder::new(&network);
    let rotations = Rotations::of(&decoder).unwrap();
    for index in 0..3 {
        let graph = rotations.apply(&decoder.layer(index).unwrap(), Ends::Turned).unwrap();
        for (name, [outs, ins], _) in linears(&graph) {
            if !(name.contains("k_proj") || name.contains("gate_proj")) {
                continue;
            }
            let param = graph.params().iter().find(|param| param.name == name).unwrap();
            let w = param.tensor.to_f32().unwrap();
            let whole: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum();
            for i in 0..ins {
                for j in 0..i {
                    let dot: f64 =
                        (0..outs).map(|o| f64::from(w[o * ins + i]) * f64::from(w[o * ins + j])).sum();
                    assert!(dot.abs() < 1e-5 * whole, "{name}: columns {i} and {j}");
                }
            }
            let norms = column_norms(&w, ins);
            norms.windows(2).for_each(|pair| assert!(pair[0] >= pair[1] - 1e-6));
            // Grouped heads: 24 of 48 columns of the keys are nothing at all.
            let empty = norms.iter().filter(|norm| **norm < 1e-6 * norms[0]).count();
            assert_eq!(empty, ins.saturating_sub(outs), "{name}");
        }
    }
}

#[test]
fn keys_lose_nothing_up_to_the_empty_columns() {
    let network = network();
    let decoder = Decoder::new(&network);
    let rotations = Rotations::of(&decoder).unwrap();
    let rotated = Rotated::new(&decoder, &rotations);
    let run = |sparsity: f64, score: Score| {
        let mut plan = Plan::new("toy");
        for layer in 0..3 {
            let gate = Some(Gate::top_k(score, sparsity));
            let name = format!("model.layers.{layer}.self_attn.k_proj.weight");
            plan.layers.insert(name, LayerPlan { gate, ..LayerPlan::default() });
        }
        let mut hidden = embedded(&decoder);
        hidden.iter_mut().for_each(|text| *text = rotations.turn(0, text).unwrap());
        through(&rotated, &mut hidden, &|graph| plan.apply(&graph).unwrap());
        hidden
    };
    let plain = run(0.0, Score::Weighted);
    assert!(furthest(&plain, &run(0.5, Score::Weighted)) < 1e-5);
    // By magnitude, or beyond the empty columns, something is lost.
    assert!(furthest(&plain, &run(0.5, Score::Magnitude)) > 1e-4);
    assert!(furthest(&plain, &run(0.9, Score::Weighted)) > 1e-4);
}

#[test]
fn networks_that_cannot_be_turned_say_so() {
    let gemma = CausalNetwork::random(
        CausalConfig { head_dim: 16, ..CausalConfig::gemma3(50, 48, 2, [4, 2], 64) },
        1,
    );
    let gemma = gemma.unwrap();
    let error = Rotations::of(&Decoder::new(&gemma)).err().unwrap().to_string();
    assert!(error.contains("norms behind attention or MLP"), "{error}");
}

/// What a graph's gates let through is what [`Gate::keep`] says.
#[test]
fn gates_in_graphs_are_gates() {
    let ins = 12;
    let x: Vec<f32> = (0..5 * ins).map(|at| ((at * 29 + 7) % 41) as f32 / 10.0 - 2.03).collect();
    let weights: Vec<f32> =
        (0..ins * ins).map(|at| if at / ins == at % ins { 1.0 + (at % ins) as f32 } else { 0.0 }).collect();
    let norms = column_norms(&weights, ins);
    for score in [Score::Magnitude, Score::Weighted] {
        for gate in [
            Gate::top_k(score, 0.5),
            Gate::top_k(score, 0.95),
            Gate::top_k(score, 1.0),
            Gate { score, sparsity: 0.5, threshold: Some(1.15) },
        ] {
            for dense in [0, 2] {
                let mut g = Graph::new("gated");
                let input = g.input("x", vec![1.into(), 5.into(), ins.into()], DType::F32).unwrap();
                let positions =
                    g.input("positions", vec![pilotfish_graph::Dim::from(1), 5.into()], DType::I64).unwrap();
                let tensor = pilotfish_graph::Tensor::new([ins, ins], weights.clone()).unwrap();
                let w = g.param("w", tensor).unwrap();
                let y = g.linear(input, w, None).unwrap();
                g.output("y", y).unwrap();
                let shown = g.cast(positions, DType::F32).unwrap();
                g.output("p", shown).unwrap();
                let mut plan = Plan::new("toy");
                plan.dense_positions = dense;
                plan.layers.insert("w".into(), LayerPlan { gate: Some(gate), ..LayerPlan::default() });
                let mut loaded = OnnxEngine::new(1).unwrap().load(&plan.apply(&g).unwrap()).unwrap();
                let feeds = [
                    ("x", Feed::Float { shape: vec![1, 5, ins], values: x.clone() }),
                    ("positions", Feed::Int { shape: vec![1, 5], values: (0..5).collect() }),
                ];
                let y = loaded.run(&feeds).unwrap().swap_remove(0);
                for (row, (x, y)) in x.chunks(ins).zip(y.chunks(ins)).enumerate() {
                    let keep = gate.keep(x, &norms);
                    for i in 0..ins {
                        let want = if keep[i] || row < dense { x[i] * norms[i] } else { 0.0 };
                        assert!((y[i] - want).abs() < 1e-5, "{gate:?}, {dense}, row {row}, {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn thresholds_drop_what_they_were_calibrated_to() {
    let network = network();
    let decoder = Decoder::new(&network);
    let hidden = embedded(&decoder);
    let graph = decoder.layer(0).unwrap();
    let mut engine = OnnxEngine::new(1).unwrap();
    for method in [GateMethod::Teal, GateMethod::WinaPlain, GateMethod::Cats] {
        let found = calibrate_gates(&decoder, &graph, &hidden, &mut engine, method, &|_| Some(0.4)).unwrap();
        assert_eq!(found.gates.len(), if method == GateMethod::Cats { 1 } else { 7 });
        for gate in found.gates.values() {
            gate.check().unwrap();
            assert!(gate.threshold.unwrap() > 0.0);
        }
        let none = calibrate_gates(&decoder, &graph, &hidden, &mut engine, method, &|_| Some(0.0)).unwrap();
        assert!(none.gates.is_empty());
        assert!(calibrate_gates(&decoder, &graph, &hidden, &mut engine, method, &|_| Some(2.0)).is_err());
    }
    // The queries' input is the normed residual, which is observed the same way.
    let teal =
        calibrate_gates(&decoder, &graph, &hidden, &mut engine, GateMethod::Teal, &|_| Some(0.4)).unwrap();
    let part = |part: &str| teal.gates[&format!("model.layers.0.self_attn.{part}.weight")].threshold;
    assert!(part("q_proj") == part("k_proj") && part("q_proj") != part("o_proj"));
}

fn pruned(
    pruner: &str,
    pattern: &str,
    store: &mut dyn Store,
    seen: &mut Vec<usize>,
) -> Result<Vec<Hidden>, SparsityError> {
    let network = network();
    let decoder = Decoder::new(&network);
    let mut hidden = embedded(&decoder);
    let pruner: Pruner = pruner.parse()?;
    prune_network(
        &decoder,
        &mut hidden,
        &mut OnnxEngine::new(1).unwrap(),
        &Patterns::all(pattern.parse()?),
        &pruner,
        true,
        store,
        &mut |layer, _| seen.push(layer),
    )?;
    Ok(hidden)
}

/// A store that breaks after so many layers.
struct Breaking(InMemory, usize);

impl Store for Breaking {
    fn get(&mut self, layer: usize) -> Result<Option<PrunedLayer>, SparsityError> {
        self.0.get(layer)
    }

    fn put(&mut self, layer: usize, pruned: &PrunedLayer) -> Result<(), SparsityError> {
        if layer >= self.1 {
            return Err(SparsityError::engine("interrupted"));
        }
        self.0.put(layer, pruned)
    }
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    for pruner in ["wanda", "sparsegpt", "dsnot"] {
        let (mut whole, mut seen) = (InMemory::default(), Vec::new());
        let end = pruned(pruner, "2:4", &mut whole, &mut seen).unwrap();
        assert_eq!(seen, [0, 1, 2]);
        let mut broken = Breaking(InMemory::default(), 2);
        assert!(pruned(pruner, "2:4", &mut broken, &mut Vec::new()).is_err());
        assert_eq!(broken.0.layers.len(), 2);
        let again = pruned(pruner, "2:4", &mut broken.0, &mut Vec::new()).unwrap();
        assert_eq!(furthest(&end, &again), 0.0);
        for (layer, other) in whole.layers.values().zip(broken.0.layers.values()) {
            for (name, tensor) in &layer.matrices {
                let (a, b) = (tensor.to_f32().unwrap(), other.matrices[name].to_f32().unwrap());
                assert!(a.iter().zip(b.iter()).all(|(a, b)| a.to_bits() == b.to_bits()), "{pruner} {name}");
                verify(name, &a, tensor.shape()[1], "2:4".parse().unwrap()).unwrap();
            }
        }
    }
}

/// The second layer is calibrated on what the first, pruned, gives: its masks differ from those of a dense first layer.
#[test]
fn pruned_activations_feed_the_next_layer() {
    let network = network();
    let decoder = Decoder::new(&network);
    let run = |patterns: &Patterns| {
        let mut store = InMemory::default();
        let (mut hidden, mut engine) = (embedded(&decoder), OnnxEngine::new(1).unwrap());
        prune_network(
            &decoder,
            &mut hidden,
            &mut engine,
            patterns,
            &"sparsegpt".parse().unwrap(),
            false,
            &mut store,
            &mut |_, _| {},
        )
        .map(|()| store.layers)
    };
    let half = Pattern::Unstructured { sparsity: 0.5 };
    let all = run(&Patterns::all(half)).unwrap();
    let later =
        run(&Patterns { otherwise: half, rules: vec![("model.layers.0.*".into(), Pattern::Dense)] }).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let of = |layers: &BTreeMap<usize, PrunedLayer>, layer: usize, name: &str| {
        layers[&layer].matrices[name].to_f32().unwrap().into_owned()
    };
    assert_ne!(of(&all, 1, name), of(&later, 1, name));
    let first = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(of(&later, 0, first), network.weights().get(first).unwrap().to_f32().unwrap().into_owned());
    // A rule that names nothing, two rules for one name, groups that do not divide.
    let rules = |rules: &[(&str, &str)]| Patterns {
        otherwise: half,
        rules: rules.iter().map(|(rule, pattern)| ((*rule).to_owned(), pattern.parse().unwrap())).collect(),
    };
    let error = |patterns: &Patterns| run(patterns).err().unwrap().to_string();
    assert!(
        error(&rules(&[("model.layers.0.mlp.upproj.weight", "0.5")]))
            .contains("did you mean model.layers.0.mlp.up_proj.weight?")
    );
    assert!(error(&rules(&[("*up_proj*", "0.5"), ("*layers.0*", "0.5")])).contains("two rules"));
    assert!(error(&Patterns::all("2:5".parse().unwrap())).contains("divide"));
}

#[test]
fn perplexity_layer_by_layer_is_that_of_the_whole() {
    let network = network();
    let decoder = Decoder::new(&network);
    let mut hidden = embedded(&decoder);
    through(&decoder, &mut hidden, &|graph| graph);
    let nats = decoder.nats(&hidden, &texts(), &mut OnnxEngine::new(1).unwrap()).unwrap();
    let mut model =
        pilotfish_runtime::OnnxCausal::from_network("toy", &network, &Default::default()).unwrap();
    for (nats, text) in nats.iter().zip(texts()) {
        let config = pilotfish_evaluation::PerplexityConfig { window: 64, stride: 32, rows: 16 };
        let want = pilotfish_evaluation::perplexity(&mut model, &text, &config).unwrap();
        assert!((nats - want.nats).abs() < 1e-3, "{nats} is not {}", want.nats);
    }
    // A pruned matrix takes its place by name.
    let graph = decoder.layer(0).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight".to_owned();
    let zeros = pilotfish_graph::Tensor::new([64, 48], vec![0.0; 64 * 48]).unwrap();
    let other = with_matrices(&graph, &[(name, zeros)].into()).unwrap();
    let mut once = embedded(&decoder);
    advance(&decoder, &other, &mut once, &mut OnnxEngine::new(1).unwrap()).unwrap();
    let mut dense = embedded(&decoder);
    advance(&decoder, &graph, &mut dense, &mut OnnxEngine::new(1).unwrap()).unwrap();
    assert!(furthest(&once, &dense) > 1e-3);
}

#[test]
fn texts_are_cut_as_asked() {
    let text: Vec<u32> = (0..100).collect();
    assert_eq!(windows(&text, 25, 10).unwrap(), [(0..10).collect::<Vec<_>>(), (10..20).collect()]);
    assert!(windows(&text, 25, 1).is_err() && windows(&text, 5, 10).is_err());
    let drawn = samples(&text, 4, 30, 1).unwrap();
    assert!(
        drawn.iter().all(|sample| sample.len() == 30 && sample.windows(2).all(|pair| pair[1] == pair[0] + 1))
    );
    assert_eq!(drawn, samples(&text, 4, 30, 1).unwrap());
    assert_ne!(drawn, samples(&text, 4, 30, 2).unwrap());
    assert!(
        samples(&text, 0, 30, 1).is_err()
            && samples(&text, 1, 101, 1).is_err()
            && samples(&text, 1, 0, 1).is_err()
    );
}
