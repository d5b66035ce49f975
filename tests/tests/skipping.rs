//! Attentions and MLPs that a step leaves out, in ONNX Runtime.
//! Oracles: shared/papers/swift.md, sections 3.1 and 7; the training interpreter, which knows nothing of leaving out,
//! on networks whose additions were taken away.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};

use pilotfish_architectures::{CausalConfig, CausalNetwork, LayerInputs};
use pilotfish_conformance::{ModelChecks, check_model, violations};
use pilotfish_decoding::drafters::swift::matchness;
use pilotfish_decoding::drafters::{LayerSearch, LayerSearchConfig, Pick, Swift, SwiftConfig};
use pilotfish_decoding::{Decoder, GreedyTree, Identity, Limits, Nothing, compare};
use pilotfish_graph::onnx::{self, Lowering, Switch};
use pilotfish_graph::weights::{Encoding, Stored, Weights};
use pilotfish_graph::{BinaryOp, DType, Dim, Graph, GraphError, Mark, Op, Storage, Tensor, Value, passes};
use pilotfish_model::{
    Capability, CausalModel, LogitForm, ModelError, RowSet, Skip, Step, Steps, Tap, Token,
};
use pilotfish_runtime::{LoadOptions, OnnxCausal, Products};
use pilotfish_tests::{
    kept_path_equals_prefill, near, smollm2, tiny_gemma, tiny_llama, tokens, tree_equals_paths, worked_tree,
};
use pilotfish_training::{Array, Interpreter, Precision};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn load(network: &CausalNetwork, fused: bool, products: Products, cuts: &[usize]) -> OnnxCausal {
    let mut options = LoadOptions::default().threads(1).skip(true).products(products);
    options.export.fused = fused;
    options.export.cuts = cuts.to_vec();
    OnnxCausal::from_network("tiny", network, &options).unwrap()
}

/// Every way a tiny network is run: by ONNX Runtime's operators, the official ones and ours, whole and cut.
fn every_way(mut check: impl FnMut(&CausalNetwork, &mut OnnxCausal, &str)) {
    for (network, name) in [(tiny_llama(), "llama"), (tiny_gemma(), "gemma")] {
        for (fused, products) in [(true, Products::Ort), (false, Products::Ort), (true, Products::Pilotfish)]
        {
            for cuts in [&[][..], &[1, 3]] {
                let what = format!("{name}, fused {fused}, products {products}, cuts {cuts:?}");
                check(&network, &mut load(&network, fused, products, cuts), &what);
            }
        }
    }
}

fn random_skip(rng: &mut ChaCha8Rng, layers: usize) -> Skip {
    let mut some = || (0..layers).filter(|_| rng.random_bool(0.4)).collect::<Vec<usize>>();
    Skip::new(some(), some())
}

/// Logits of all rows of a step that leaves something out.
fn rows_without(model: &mut OnnxCausal, text: &[Token], skip: &Skip) -> Vec<f32> {
    let out = model.step_without(&Step::chain(text).want(RowSet::All), skip).unwrap();
    (0..text.len()).flat_map(|row| out.logits.row(row).unwrap().to_vec()).collect()
}

fn rows(model: &mut OnnxCausal, text: &[Token]) -> Vec<f32> {
    let out = model.step(&Step::chain(text).want(RowSet::All)).unwrap();
    (0..text.len()).flat_map(|row| out.logits.row(row).unwrap().to_vec()).collect()
}

#[test]
fn with_nothing_left_out_it_is_the_model() {
    every_way(|network, model, what| {
        let mut normal =
            OnnxCausal::from_network("tiny", network, &LoadOptions::default().threads(1)).unwrap();
        let text = tokens(&mut ChaCha8Rng::seed_from_u64(1), 9, network.config().vocab);
        let want = rows(&mut normal, &text);
        near(&rows(model, &text), &want, 1e-5, what);
        model.truncate(0).unwrap();
        near(&rows_without(model, &text, &Skip::default()), &want, 1e-5, what);
        // The laws of every model, through the branches.
        worked_tree(model, 1e-5);
        for (seed, past) in [0, 1, 17].into_iter().enumerate() {
            tree_equals_paths(model, seed as u64, past, 12, 1e-4);
            kept_path_equals_prefill(model, 10 + seed as u64, past, 12, 1e-4);
        }
    });
}

/// A network of two texts: the first through all layers, the second after it, over its keys and values, without the
/// additions of what is left out.
fn reference(network: &CausalNetwork, skip: &Skip) -> Graph {
    let layers = network.config().layers;
    let mut g = Graph::new("reference");
    let (first, second) = (Dim::symbol("P"), Dim::symbol("T"));
    let all = &first + &second;
    let part = |g: &mut Graph, name: &str, rows: &Dim, keys: &Dim, past: Option<Vec<(Value, Value)>>| {
        let ids = g.input(&format!("ids.{name}"), vec![1.into(), rows.clone()], DType::I64).unwrap();
        let positions =
            g.input(&format!("positions.{name}"), vec![1.into(), rows.clone()], DType::I64).unwrap();
        let shape = vec![1.into(), 1.into(), rows.clone(), keys.clone()];
        let mask = g.input(&format!("mask.{name}"), shape.clone(), DType::F32).unwrap();
        let local = g.input(&format!("local.{name}"), shape, DType::F32).unwrap();
        let x = network.embed(g, ids).unwrap();
        let inputs = LayerInputs { positions, mask, mask_local: Some(local), past, added: None };
        network.layers(g, 0..layers, x, &inputs).unwrap()
    };
    let (_, cache) = part(&mut g, "first", &first, &first, None);
    let (x, _) = part(&mut g, "second", &second, &all, Some(cache));
    let x = network.final_norm(&mut g, x).unwrap();
    let logits = network.head(&mut g, x).unwrap();
    g.output("logits", logits).unwrap();
    // Marks belong to the text that was built last.
    let mut ends = HashMap::new();
    for &layer in skip.attention() {
        ends.insert(g.marked(Mark::Attended(layer)).unwrap(), g.marked(Mark::Residual(layer)).unwrap());
    }
    for &layer in skip.mlp() {
        ends.insert(g.marked(Mark::Residual(layer + 1)).unwrap(), g.marked(Mark::Attended(layer)).unwrap());
    }
    passes::rewrite(&g, |_, node, inputs| {
        let Some(before) = node.outputs.first().and_then(|value| ends.get(value)) else { return Ok(None) };
        assert_eq!(node.op, Op::Binary(BinaryOp::Add));
        let at = node.inputs.iter().position(|input| input == before).unwrap();
        Ok(Some(vec![inputs[at]]))
    })
    .unwrap()
}

fn by_interpreter(network: &CausalNetwork, skip: &Skip, first: &[Token], second: &[Token]) -> Vec<f32> {
    let window = network.window(0..network.config().layers).unwrap_or(usize::MAX);
    let (p, t) = (first.len(), second.len());
    let net = Interpreter::new(&reference(network, skip), Precision::F64).unwrap();
    let mut inputs = Vec::new();
    for (name, text, start) in [("first", first, 0), ("second", second, p)] {
        let (rows, keys) = (text.len(), start + text.len());
        let mask = |window: usize| {
            let cell = |at: usize| {
                let (row, column) = (start + at / keys, at % keys);
                if column <= row && row - column < window { 0.0 } else { -1e9 }
            };
            Array::float([1, 1, rows, keys], (0..rows * keys).map(cell))
        };
        inputs.push((format!("ids.{name}"), Array::int([1, rows], text.iter().map(|&id| i64::from(id)))));
        inputs.push((format!("positions.{name}"), Array::int([1, rows], (start..keys).map(|at| at as i64))));
        inputs.push((format!("mask.{name}"), mask(usize::MAX)));
        inputs.push((format!("local.{name}"), mask(window)));
    }
    // Inputs that nothing reads are inputs all the same.
    let inputs: Vec<(&str, Array)> =
        inputs.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
    let logits = net.run(&inputs).unwrap().remove("logits").unwrap();
    assert_eq!(logits.len(), t * network.config().vocab);
    logits.into_iter().map(|value| value as f32).collect()
}

#[test]
fn what_is_left_out_is_as_if_it_were_not_there() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    every_way(|network, model, what| {
        let (layers, vocab) = (network.config().layers, network.config().vocab);
        let (first, second) = (tokens(&mut rng, 6, vocab), tokens(&mut rng, 5, vocab));
        for case in 0..5 {
            let skip = match case {
                0 => Skip::new([1], []),
                1 => Skip::new([], [2]),
                2 => Skip::new(0..layers, 0..layers),
                _ => random_skip(&mut rng, layers),
            };
            let want = by_interpreter(network, &skip, &first, &second);
            model.truncate(0).unwrap();
            model.step(&Step::chain(&first).want(RowSet::None)).unwrap();
            near(&rows_without(model, &second, &skip), &want, 1e-4, &format!("{what}, {skip:?}"));
            // One by one, each over the keys and values of the ones before it.
            model.truncate(first.len()).unwrap();
            let single: Vec<f32> =
                second.iter().flat_map(|&token| rows_without(model, &[token], &skip)).collect();
            near(&single, &want, 1e-4, &format!("{what}, {skip:?}, one by one"));
            // Nothing of it stays.
            model.truncate(first.len()).unwrap();
            let again = by_interpreter(network, &Skip::default(), &first, &second);
            near(&rows(model, &second), &again, 1e-4, &format!("{what} after {skip:?}"));
        }
    });
}

/// Taps see the stream without what was left out, and trees keep to their branches.
#[test]
fn taps_and_trees_without_some_parts() {
    let network = tiny_gemma();
    let mut options = LoadOptions::default().threads(1).skip(true);
    options.export.taps = vec![1, 2, 3];
    let mut model = OnnxCausal::from_network("tiny", &network, &options).unwrap();
    let text = [3, 1, 4];
    model.step(&Step::chain(&text)).unwrap();
    let skip = Skip::new([1, 2], [2]);
    let taps: Vec<Tap> = (0..=4).map(Tap::Residual).chain([Tap::FinalNormed]).collect();
    let out = model.step_without(&Step::chain(&[5, 9]).want(RowSet::All).taps(&taps), &skip).unwrap();
    let tap = |at: usize| &out.tap(Tap::Residual(at)).unwrap().values;
    assert_eq!(tap(2), tap(3), "layer 2 is not there at all");
    assert_ne!(tap(1), tap(2));
    let normed = model.final_norm(tap(4)).unwrap();
    near(&normed, &out.tap(Tap::FinalNormed).unwrap().values, 1e-5, "final norm");
    // Root 5 with children 9 and 7, 8 under 7: every path alone says the same.
    model.truncate(3).unwrap();
    let parents = [Some(2), Some(3), Some(3), Some(5)];
    let tree = model.step_without(&Step::tree(&[5, 9, 7, 8], &parents), &skip).unwrap();
    for (nodes, path) in [(&[0, 1][..], &[5, 9][..]), (&[0, 2, 3], &[5, 7, 8])] {
        model.truncate(3).unwrap();
        let alone = rows_without(&mut model, path, &skip);
        for (row, &node) in alone.chunks_exact(89).zip(nodes) {
            near(row, tree.logits.row(node).unwrap(), 1e-5, "a path of the tree");
        }
    }
}

/// The network with some matrices changed.
fn changed(network: &CausalNetwork, change: impl Fn(&str, Vec<f32>) -> Vec<f32>) -> CausalNetwork {
    let mut weights = Weights::default();
    for (name, stored) in network.weights().iter() {
        let (shape, values) = (stored.tensor.shape().to_vec(), stored.tensor.to_f32().unwrap().into_owned());
        let tensor = Tensor::new(shape, change(name, values)).unwrap();
        let bytes = 4 * tensor.count();
        weights.insert(name.into(), Stored { tensor, encoding: Encoding::F32, bytes }).unwrap();
    }
    CausalNetwork::new(network.config().clone(), weights).unwrap()
}

/// Oracle 6: a projection of zeros adds nothing, so leaving it out changes no logit.
#[test]
fn a_sub_layer_of_zeros_can_go() {
    let zero = ["model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"];
    for network in [tiny_llama(), tiny_gemma()] {
        let network = changed(
            &network,
            |name, values| {
                if zero.contains(&name) { vec![0.0; values.len()] } else { values }
            },
        );
        for fused in [true, false] {
            let mut model = load(&network, fused, Products::Ort, &[]);
            let text = tokens(&mut ChaCha8Rng::seed_from_u64(3), 8, network.config().vocab);
            let whole = rows(&mut model, &text);
            for skip in [Skip::new([1], []), Skip::new([], [2]), Skip::new([1], [2])] {
                model.truncate(0).unwrap();
                assert_eq!(rows_without(&mut model, &text, &skip), whole, "{skip:?}");
            }
            model.truncate(0).unwrap();
            assert_ne!(rows_without(&mut model, &text, &Skip::new([2], [])), whole);
        }
    }
}

/// What is left out is not computed and then dropped: weights so large that all is infinite do no harm there. A gate of
/// zero would let them through, as 0 times infinity is no number.
#[test]
fn what_is_left_out_is_never_read() {
    for network in [tiny_llama(), tiny_gemma()] {
        let broken = changed(&network, |name, values| {
            let hit = name.contains("layers.1.self_attn") || name.contains("layers.2.mlp");
            if hit { vec![f32::MAX; values.len()] } else { values }
        });
        let skip = Skip::new([1], [2]);
        for (fused, products) in [(true, Products::Ort), (false, Products::Ort), (true, Products::Pilotfish)]
        {
            let text = tokens(&mut ChaCha8Rng::seed_from_u64(4), 8, network.config().vocab);
            let mut sound = load(&network, fused, products, &[]);
            let mut model = load(&broken, fused, products, &[]);
            let want = rows_without(&mut sound, &text, &skip);
            assert_eq!(rows_without(&mut model, &text, &skip), want);
            model.truncate(0).unwrap();
            assert!(rows(&mut model, &text).iter().all(|value| !value.is_finite()));
        }
    }
}

/// By hand, and as the ledger has it.
#[test]
fn bytes_are_those_of_what_is_left() {
    let mut options = LoadOptions::default().threads(1).skip(true);
    // 64 wide, 4 heads and 2 for keys of 16, MLP of 96; a norm of 64 in each half.
    let (attention, mlp) = (64 * (64 + 32 + 32) + 64 * 64 + 64, 3 * 64 * 96 + 64);
    let model = OnnxCausal::from_network("tiny", &tiny_llama(), &options).unwrap();
    let info = model.info().clone();
    assert_eq!(info.sublayer_bytes, vec![[4 * attention, 4 * mlp]; 4]);
    // The final norm is all that no layer has.
    assert_eq!(info.body_bytes, 4 * (4 * (attention + mlp) + 64));
    let skip = Skip::new([1, 2], [3]);
    assert_eq!(info.bytes_without(&skip), info.body_bytes - 4 * (2 * attention + mlp));
    let mut ledger = pilotfish_model::Ledger::default();
    ledger.draft_without(&info, 1, 1, &skip);
    assert_eq!(ledger.draft_bytes, info.bytes_without(&skip) + info.head_bytes);
    // In blocks of four bits a number takes half a byte, and a block of 32 another four and a half.
    options.export.storage = Storage::Int4 { block: 32 };
    let info = OnnxCausal::from_network("tiny", &tiny_llama(), &options).unwrap().info().clone();
    let norm = 4 * 64;
    let int4 = |numbers: u64| numbers / 2 + numbers / 32 * 9 / 2;
    // Rows of 96 have three blocks, whose zero points take two bytes.
    let down = 64 * (48 + 3 * 4 + 2);
    assert_eq!(info.sublayer_bytes[0], [int4(attention - 64) + norm, int4(2 * 64 * 96) + down + norm]);
}

#[test]
fn bad_sets_are_refused_and_leave_the_cache_alone() {
    every_way(|network, model, what| {
        let layers = network.config().layers;
        model.step(&Step::chain(&[3, 1, 4])).unwrap();
        let state = |model: &mut OnnxCausal| {
            let len = model.len();
            let row = rows(model, &[1]);
            model.truncate(len).unwrap();
            (len, row)
        };
        let before = state(model);
        let step = Step::chain(&[1, 2]);
        for skip in [Skip::new([layers], []), Skip::new([], [layers]), Skip::new([0, usize::MAX], [1])] {
            let error = model.step_without(&step, &skip).unwrap_err();
            assert!(
                matches!(error, ModelError::NoSuchRow { what: "layer to leave out", .. }),
                "{what}: {error}"
            );
            assert_eq!(state(model), before, "{what}");
        }
        // Whatever else is wrong with a step is refused too.
        let skip = Skip::new([1], [2]);
        assert!(matches!(model.step_without(&Step::chain(&[]), &skip), Err(ModelError::EmptyStep)));
        let beyond = [network.config().vocab as Token];
        assert!(model.step_without(&Step::chain(&beyond), &skip).is_err());
        assert!(matches!(
            model.step_without(&Step::chain(&[0; 126]), &skip),
            Err(ModelError::ContextFull { .. })
        ));
        assert_eq!(state(model), before, "{what}");
        // Rows that lack something serve only steps that lack the same, and are not kept.
        model.step_without(&step, &skip).unwrap();
        model.step_without(&step, &skip).unwrap();
        assert_eq!(model.len(), 7);
        assert!(matches!(model.step(&step), Err(ModelError::PartialRows { from: 3 })));
        for other in [Skip::default(), Skip::new([1], []), Skip::new([1, 2], [2])] {
            assert!(matches!(model.step_without(&step, &other), Err(ModelError::PartialRows { from: 3 })));
        }
        for (from, rows) in [(3, &[3][..]), (4, &[]), (2, &[2, 3])] {
            assert!(
                matches!(model.keep(from, rows), Err(ModelError::BadKeep { .. })),
                "{what}: {from} {rows:?}"
            );
        }
        if model.info().capabilities.cuts.len() > 2 {
            let refused = model.range(0..1).unwrap().step(&step);
            assert!(matches!(refused, Err(ModelError::PartialRows { .. })));
        }
        assert_eq!(model.len(), 7, "{what}");
        // Some of them may be forgotten and others come.
        model.truncate(5).unwrap();
        let short = rows_without(model, &[7], &skip);
        model.truncate(3).unwrap();
        model.step_without(&step, &skip).unwrap();
        near(&rows_without(model, &[7], &skip), &short, 1e-5, what);
        model.keep(3, &[]).unwrap();
        assert_eq!(state(model), before, "{what}");
        model.step_without(&step, &skip).unwrap();
        model.keep(1, &[1, 2]).unwrap();
        assert_eq!(state(model), before, "{what}");
    });
}

#[test]
fn a_model_that_was_not_asked_for_it_says_so() {
    let mut model = OnnxCausal::from_network("tiny", &tiny_llama(), &LoadOptions::default()).unwrap();
    assert!(!model.info().capabilities.has(Capability::Skip));
    for skip in [Skip::default(), Skip::new([1], [])] {
        let error = model.step_without(&Step::chain(&[1]), &skip).unwrap_err();
        assert!(matches!(error, ModelError::Unsupported { capability: Capability::Skip, .. }));
        assert!(error.to_string().contains(".skip"), "{error}");
    }
    let search = LayerSearch::new(4, LayerSearchConfig::default()).unwrap();
    let mut swift = Swift::new(search, SwiftConfig::default(), Pick::Largest).unwrap();
    assert!(Decoder::new(&mut model, &mut swift, &mut GreedyTree, Limits::default()).is_err());
}

/// A file has no products outside its branches, and nothing else has changed when there are none.
#[test]
fn files_have_branches_and_nothing_heavy_beside_them() {
    let network = tiny_llama();
    let folder = tempfile::tempdir().unwrap();
    let body = network.body(0..4, &Default::default()).unwrap();
    let lowering = Lowering::Fused { positions: 128 };
    let switches: Vec<Switch> = (0..4)
        .flat_map(|layer| {
            let carried = vec![
                (format!("key.{layer}"), format!("past_key.{layer}")),
                (format!("value.{layer}"), format!("past_value.{layer}")),
            ];
            let (from, to) = (Mark::Residual(layer), Mark::Attended(layer));
            [
                Switch { from, to, carried },
                Switch { from: to, to: Mark::Residual(layer + 1), carried: vec![] },
            ]
        })
        .collect();
    let write = |switches: &[Switch]| {
        let path = folder.path().join("body.onnx");
        onnx::write_switched(&body, lowering, switches, &path).map(|()| path)
    };
    let path = write(&switches).unwrap();
    let summary = onnx::summarize(&path).unwrap();
    let want: BTreeMap<String, usize> = [("If", 8), ("Split", 1), ("SimplifiedLayerNormalization", 1)]
        .map(|(name, count)| (name.into(), count))
        .into();
    assert_eq!(summary.operators, want);
    assert!(summary.inputs.iter().any(|(name, _)| name == "run"));
    assert!(matches!(onnx::read(&path), Err(GraphError::OnnxNode { .. } | GraphError::Malformed { .. })));
    let plain = std::fs::read(write(&[]).unwrap()).unwrap();
    onnx::write(&body, lowering, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), plain);
    // Marks that are not there, parts that are none, names that are not there.
    let bad = |from, to, carried: &[(&str, &str)]| {
        let carried = carried.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        write(&[Switch { from, to, carried }]).unwrap_err()
    };
    let missing = bad(Mark::Residual(9), Mark::Residual(1), &[]);
    assert!(matches!(missing, GraphError::NoSuchName { kind: "mark", .. }), "{missing}");
    let backwards = bad(Mark::Residual(2), Mark::Residual(1), &[]);
    assert!(matches!(backwards, GraphError::Unsupported { .. }), "{backwards}");
    let outside = bad(Mark::Residual(1), Mark::Attended(1), &[("key.0", "past_key.0")]);
    assert!(matches!(outside, GraphError::Unsupported { .. }), "{outside}");
    let missing = bad(Mark::Residual(0), Mark::Attended(0), &[("key.9", "past_key.0")]);
    assert!(matches!(missing, GraphError::NoSuchName { kind: "output", .. }), "{missing}");
    let missing = bad(Mark::Residual(0), Mark::Attended(0), &[("key.0", "past_key.9")]);
    assert!(matches!(missing, GraphError::NoSuchName { kind: "input", .. }), "{missing}");
    // A second switch over the same part finds it gone.
    let twice = write(&[switches[0].clone(), switches[0].clone()]);
    assert!(twice.is_err());
}

fn model(skip: bool) -> OnnxCausal {
    OnnxCausal::from_checkpoint(&smollm2(), &LoadOptions::default().threads(1).skip(skip)).unwrap()
}

fn encode(text: &str) -> Vec<Token> {
    smollm2().tokenizer().unwrap().encode(text, false).unwrap()
}

const TEXT: &str =
    "The lighthouse keeper climbed the stairs every evening because the lamp had to be lit before";

#[test]
fn smollm2_without_anything_left_out_is_smollm2() {
    let text = encode(TEXT);
    let want = rows(&mut model(false), &text);
    let mut model = model(true);
    // Sums of f32 over thirty layers.
    near(&rows_without(&mut model, &text, &Skip::default()), &want, 5e-4, "logits");
    let checks =
        ModelChecks { nodes: vec![2, 9], prefixes: vec![0, 17], tolerance: 5e-4, ..ModelChecks::default() };
    for check in check_model(&mut model, &checks).unwrap() {
        assert!(check.passed, "{check:?}");
    }
}

/// Oracles 2, 5 and 7 on SmolLM2: greedy output is the plain one for any sets and any search, matchness of one pass is
/// that of single steps and leaves the cache as it was, and so do drafts.
#[test]
fn smollm2_drafts_for_itself() {
    let mut model = model(true);
    let prompt = encode(TEXT);
    let limits = Limits { new_tokens: 40, ..Limits::default() };
    let plain = |model: &mut OnnxCausal| {
        Decoder::new(model, &mut Nothing, &mut GreedyTree, limits.clone()).unwrap().generate(&prompt).unwrap()
    };
    let out = plain(&mut model);
    let text = out.tokens;
    let next = |model: &mut OnnxCausal| {
        let len = model.len();
        let row = rows(model, &[text[0]]);
        model.truncate(len).unwrap();
        row
    };
    let (len, before) = (model.len(), next(&mut model));
    for skip in [Skip::default(), Skip::new([9, 14, 20], [25]), Skip::new(1..29, 1..29)] {
        let together = matchness(&mut model, prompt.len(), &text[..13], &skip).unwrap();
        assert_eq!((model.len(), next(&mut model)), (len, before.clone()), "to the bit");
        model.truncate(prompt.len()).unwrap();
        let mut hits = 0;
        for pair in text[..13].windows(2) {
            let step = Step::chain(&pair[..1]).form(LogitForm::Argmax);
            hits +=
                usize::from(model.step_without(&step, &skip).unwrap().logits.argmax(0).unwrap() == pair[1]);
        }
        assert_eq!(together, f64::from(hits as u32) / 12.0, "{skip:?}");
        assert!(!skip.is_empty() || together == 1.0);
        model.truncate(prompt.len()).unwrap();
        model.step(&Step::chain(&text[..len - prompt.len()])).unwrap();
        near(&next(&mut model), &before, 5e-4, "read again");
        // The bits of a chain in one step are not those of single steps: start over from here.
        plain(&mut model);
    }
    let searches = [
        LayerSearchConfig { ratio: 0.1, window: 8, bayes_interval: 2, candidates: 20, ..Default::default() },
        LayerSearchConfig { ratio: 0.45, window: 8, ..Default::default() },
        LayerSearchConfig { ratio: 1.0, window: 4, max_trials: 3, ..Default::default() },
    ];
    for config in searches {
        let search = LayerSearch::new(30, config).unwrap();
        let mut swift = Swift::new(search, SwiftConfig::default(), Pick::Largest).unwrap();
        let mut verifier = GreedyTree;
        let mut decoder = Decoder::new(&mut model, &mut swift, &mut verifier, limits.clone()).unwrap();
        let fast = decoder.generate(&prompt).unwrap();
        drop(decoder);
        assert_eq!(violations(prompt.len(), model.len(), &fast), [""; 0]);
        assert!(swift.search().trials() > 0 && fast.ledger.draft_forwards > 0);
        // Rows of drafts and trials are gone.
        let after = next(&mut model);
        model.truncate(0).unwrap();
        let read: Vec<Token> = prompt.iter().chain(&fast.tokens[..fast.tokens.len() - 1]).copied().collect();
        model.step(&Step::chain(&read)).unwrap();
        near(&after, &next(&mut model), 5e-4, "cache");
        match compare(&mut model, &prompt, &text, &fast.tokens).unwrap() {
            Identity::Identical => {}
            Identity::Diverges { at, margin } => assert!(margin < 1e-3, "parts at {at}, margin {margin}"),
        }
    }
}

/// A network in which exactly these sub-layers do nothing, found while it writes.
#[test]
fn a_planted_set_is_found_by_a_transformer() {
    let mut config = CausalConfig::llama(61, 32, 5, [4, 2], 48);
    config.context = 256;
    let planted = Skip::new([2], [1, 3]);
    let network = CausalNetwork::random(config, 5).unwrap();
    let network = changed(&network, |name, values| {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let Some(layer) = layer else { return values };
        let dead = name.ends_with("o_proj.weight") && planted.skips_attention(layer)
            || name.ends_with("down_proj.weight") && planted.skips_mlp(layer);
        let factor = if dead {
            0.0
        } else if name.contains("norm") {
            1.0
        } else {
            6.0
        };
        values.into_iter().map(|value| value * factor).collect()
    });
    let mut model = load(&network, true, Products::Ort, &[]);
    let config = LayerSearchConfig { ratio: 0.5, window: 24, ..LayerSearchConfig::default() };
    let search = LayerSearch::new(5, config).unwrap();
    assert_eq!(search.count(), planted.len());
    let mut swift =
        Swift::new(search, SwiftConfig { confidence: 0.0, depth: 4, ..Default::default() }, Pick::Largest)
            .unwrap();
    let limits = Limits { new_tokens: 60, ..Limits::default() };
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for _ in 0..20 {
        let prompt = tokens(&mut rng, 4, 61);
        let plain = Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits.clone())
            .unwrap()
            .generate(&prompt)
            .unwrap();
        let fast = Decoder::new(&mut model, &mut swift, &mut GreedyTree, limits.clone())
            .unwrap()
            .generate(&prompt)
            .unwrap();
        match compare(&mut model, &prompt, &plain.tokens, &fast.tokens).unwrap() {
            Identity::Identical => {}
            Identity::Diverges { at, margin } => assert!(margin < 1e-4, "parts at {at}, margin {margin}"),
        }
    }
    assert!(swift.search().is_over(), "{} after {}", swift.search().best(), swift.search().trials());
    assert_eq!((swift.search().set(), swift.search().best()), (&planted, 1.0));
}
