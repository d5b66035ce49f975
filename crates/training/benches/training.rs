//! Tokens a second of training a transformer with a million parameters from scratch: forward, backward, clipping and
//! AdamW in f32. `cargo xtask bench training [steps]`; `RAYON_NUM_THREADS` says how many threads, each of which has a part of
//! the batch. The same network in PyTorch is `training_torch.py` beside this file.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::ops::ControlFlow;

use pilotfish_architectures::{CausalConfig, CausalNetwork};
use pilotfish_training::{Precision, TextTask, Trainer, TrainerConfig};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOCAB: usize = 256;
const BATCH: usize = 16;
const LENGTH: usize = 64;

fn main() {
    // `cargo bench` passes words of its own, such as `--bench`.
    let steps = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(30u64);
    let config = CausalConfig::llama(VOCAB, 128, 5, [4, 4], 344);
    let network = CausalNetwork::random(config, 1).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let texts = (0..256).map(|_| (0..LENGTH).map(|_| rng.random_range(0..VOCAB as u32)).collect()).collect();
    let warm = 3;
    // A part of the batch for each thread.
    let part = Some(BATCH.div_ceil(rayon::current_num_threads()));
    let settings = TrainerConfig { steps: steps + warm, batch: BATCH, part, ..TrainerConfig::default() };
    let graph = network.whole("B".into(), "T".into()).unwrap();
    let mut trainer = Trainer::new(&graph, settings, Precision::F32).unwrap();
    let mut seconds = Vec::new();
    trainer
        .run(&TextTask::new(texts), None, |at| {
            if at.step > warm {
                seconds.push(at.seconds);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    seconds.sort_by(f64::total_cmp);
    let tokens = (BATCH * LENGTH) as f64;
    let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
    println!("{} parameters, batches of {BATCH} x {LENGTH} tokens, {steps} steps", network.parameters());
    println!("median {:8.1} ms a step, {:8.0} tokens/s", 1e3 * median, tokens / median);
    println!("best   {:8.1} ms a step, {:8.0} tokens/s", 1e3 * best, tokens / best);
}
