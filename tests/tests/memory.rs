//! What a process that decodes holds in memory.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use pilotfish_architectures::Checkpoint;
use pilotfish_model::{CausalModel, Skip, Step, Steps};
use pilotfish_pipeline::machine::peak_memory_mb;
use pilotfish_runtime::{LoadOptions, OnnxCausal};
use pilotfish_tests::{measured_apart, smollm2};

const CHILD: &str = "PILOTFISH_TEST_MEMORY";

fn model(skip: bool) -> (Checkpoint, OnnxCausal) {
    let checkpoint = smollm2();
    let options = LoadOptions::default().threads(1).skip(skip);
    let model = OnnxCausal::from_checkpoint(&checkpoint, &options).unwrap();
    (checkpoint, model)
}

/// Decodes, drafting tokens that are thrown away in between if some sub-layers are to be left out for them; a test of
/// this name in a process of its own does so and says what it held.
fn peaks_at_little_more_than_weights_and_cache(test: &str, left_out: Option<&Skip>, factor: f64) {
    const PROMPT: &str = "The lighthouse keeper climbed the stairs every evening because";
    const TOKENS: usize = 100;
    const MIB: f64 = 1048576.0;
    if std::env::var_os(CHILD).is_some() {
        let (checkpoint, mut model) = model(left_out.is_some());
        let prompt = checkpoint.tokenizer().unwrap().encode(PROMPT, false).unwrap();
        let mut next = model.step(&Step::chain(&prompt)).unwrap().logits.argmax(0).unwrap();
        for _ in 1..TOKENS {
            if let Some(skip) = left_out {
                let len = model.len();
                model.step_without(&Step::chain(&[next]), skip).unwrap();
                model.truncate(len).unwrap();
            }
            next = model.step(&Step::chain(&[next])).unwrap().logits.argmax(0).unwrap();
        }
        println!("rows {} peak {}", model.len(), peak_memory_mb().unwrap());
        return;
    }
    // Written as ONNX first, which is not decoding.
    let (checkpoint, model) = model(left_out.is_some());
    let [rows, peak] = measured_apart(test, CHILD, "1", ["rows", "peak"]);
    let config = checkpoint.causal().unwrap().config();
    let row = 2 * config.layers * config.kv_heads * config.head_dim * 4;
    let weights = (model.info().body_bytes + model.info().head_bytes) as f64 / MIB;
    let cache = rows * row as f64 / MIB;
    println!("peak {peak:.0} MB; weights {weights:.0} MB; cache {cache:.1} MB");
    assert!(peak <= factor * (weights + cache), "{peak:.0} MB for {weights:.0} MB and {cache:.1} MB");
}

/// Plain greedy decoding in f32 peaks at no more than 1.3 times its weights and its cache, everything else in the
/// process included. It runs in a process of its own, since a peak is a process's.
#[test]
fn plain_decoding_holds_little_more_than_weights_and_cache() {
    peaks_at_little_more_than_weights_and_cache(
        "plain_decoding_holds_little_more_than_weights_and_cache",
        None,
        1.3,
    );
}

/// Drafts without some sub-layers and the steps of the whole model share one copy of the weights and one cache: a
/// second would make it 2.
#[test]
fn drafts_that_leave_layers_out_share_the_weights() {
    let skip = Skip::new([9, 14], [20]);
    let test = "drafts_that_leave_layers_out_share_the_weights";
    peaks_at_little_more_than_weights_and_cache(test, Some(&skip), 1.4);
}
