//! Trained networks leave the trainer: into ONNX Runtime, into safetensors and back.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;

use pilotfish_architectures::{CausalConfig, CausalNetwork};
use pilotfish_graph::weights::safetensors;
use pilotfish_model::{RowSet, Step, Steps};
use pilotfish_runtime::{LoadOptions, OnnxCausal};
use pilotfish_training::{Interpreter, Lora, Precision, TextTask, Trainer, TrainerConfig, causal_inputs};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOCAB: usize = 23;

fn llama() -> CausalNetwork {
    CausalNetwork::random(CausalConfig::llama(VOCAB, 32, 2, [4, 2], 48), 3).unwrap()
}

/// Norms less one, norms on queries and keys, a window shorter than the texts.
fn gemma() -> CausalNetwork {
    let mut config = CausalConfig::gemma3(VOCAB, 32, 2, [4, 2], 48);
    config.head_dim = 8;
    config.windows = vec![Some(5), None];
    CausalNetwork::random(config, 3).unwrap()
}

fn texts() -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    (0..16).map(|_| (0..12).map(|_| rng.random_range(0..VOCAB as u32)).collect()).collect()
}

fn config() -> TrainerConfig {
    TrainerConfig { steps: 15, batch: 8, lr: 0.01, ..TrainerConfig::default() }
}

/// Logits of the first text, `[12, V]`.
fn by_trainer(net: &Interpreter, window: Option<usize>) -> Vec<f32> {
    let inputs = causal_inputs(&texts()[..1], window, Precision::F32).unwrap();
    net.forward(&inputs).unwrap()["logits"].flatten_all().unwrap().to_vec1().unwrap()
}

fn by_onnx_runtime(network: &CausalNetwork, fused: bool) -> Vec<f32> {
    let mut options = LoadOptions::default();
    options.export.fused = fused;
    let mut model = OnnxCausal::from_network("trained", network, &options).unwrap();
    let out = model.step(&Step::chain(&texts()[0]).want(RowSet::All)).unwrap();
    (0..12).flat_map(|row| out.logits.row(row).unwrap().to_vec()).collect()
}

#[track_caller]
fn near(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "differs by {worst}");
}

#[test]
fn a_trained_network_says_the_same_in_onnx_runtime() {
    for network in [llama(), gemma()] {
        let window = network.window(0..2);
        let graph = network.whole("B".into(), "T".into()).unwrap();
        let mut trainer = Trainer::new(&graph, config(), Precision::F32).unwrap();
        let before = by_trainer(trainer.net(), window);
        let task = TextTask { window, ..TextTask::new(texts()) };
        trainer.run(&task, None, |_| ControlFlow::Continue(())).unwrap();
        let after = by_trainer(trainer.net(), window);
        let moved = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 0.1, "{moved}");
        let trained = network.with_parameters(&trainer.graph().unwrap()).unwrap();
        for fused in [true, false] {
            near(&by_onnx_runtime(&trained, fused), &after, 1e-4);
        }
        // Through a file, as another program would read it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = trained.weights().iter().map(|(name, stored)| (name, &stored.tensor));
        safetensors::write(&path, tensors).unwrap();
        let read = CausalNetwork::new(network.config().clone(), safetensors::open(&path).unwrap()).unwrap();
        let graph = read.whole("B".into(), "T".into()).unwrap();
        near(&by_trainer(&Interpreter::new(&graph, Precision::F32).unwrap(), window), &after, 1e-5);
    }
}

#[test]
fn merged_adapters_say_the_same_in_onnx_runtime() {
    let network = llama();
    let graph = network.whole("B".into(), "T".into()).unwrap();
    let lora = Lora { rank: 4, alpha: 8.0, seed: 1 };
    let adapted = lora.attach(&graph, "*_proj.weight").unwrap();
    let config = TrainerConfig { train: Lora::parameters(), ..config() };
    let mut trainer = Trainer::new(&adapted, config, Precision::F32).unwrap();
    trainer.run(&TextTask::new(texts()), None, |_| ControlFlow::Continue(())).unwrap();
    let after = by_trainer(trainer.net(), None);
    let merged = lora.merge(&graph, &trainer.graph().unwrap()).unwrap();
    let merged = network.with_parameters(&merged).unwrap();
    near(&by_onnx_runtime(&merged, true), &after, 1e-4);
    // Forgetting the adapters is not the same.
    let plain = by_onnx_runtime(&network, true);
    assert!(plain.iter().zip(&after).any(|(a, b)| (a - b).abs() > 0.05));
}
