//! Runs: resuming, checkpoints that are damaged, parts of batches, what is trained, adapters, and small networks
//! that learn what they should.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::DType;
use pilotfish_architectures::{CausalConfig, CausalNetwork};
use pilotfish_graph::{Graph, Mark, Op, Storage, passes};
use pilotfish_training::losses::preference::{Dpo, Orpo, SimPo};
use pilotfish_training::{
    Adam, At, BatchLoss, Checkpoints, Decay, Interpreter, Lora, Mean, OptimizerConfig, Order, Pair, PairLoss,
    PairTask, Precision, Result, Schedule, Selection, Sgd, Task, TextTask, Trainer, TrainerConfig,
    TrainingError, Warmup, attach_head, causal_inputs,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn network(vocab: usize, width: usize, layers: usize, tied: bool) -> CausalNetwork {
    let config = CausalConfig { tied, ..CausalConfig::llama(vocab, width, layers, [2, 1], 2 * width) };
    CausalNetwork::random(config, 11).unwrap()
}

fn graph(network: &CausalNetwork) -> Graph {
    network.whole("B".into(), "T".into()).unwrap()
}

fn texts(count: usize, vocab: u32, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (0..rng.random_range(4..9)).map(|_| rng.random_range(0..vocab)).collect()).collect()
}

/// Texts of which a random part is left out in every step: a task that draws.
struct Drawing(TextTask);

impl Task for Drawing {
    fn items(&self) -> usize {
        self.0.items()
    }

    fn loss(&self, net: &Interpreter, items: &[usize], at: &At) -> Result<BatchLoss> {
        let mut rng = at.streams.stream("kept");
        let kept: Vec<usize> = items.iter().copied().filter(|_| rng.random_bool(0.7)).collect();
        self.0.loss(net, if kept.is_empty() { &items[..1] } else { &kept }, at)
    }
}

fn bits(trainer: &Trainer) -> Vec<u64> {
    let names: Vec<&str> = trainer.net().params().collect();
    names.iter().flat_map(|name| trainer.net().param(name).unwrap()).map(f64::to_bits).collect()
}

fn go_on(_: &pilotfish_training::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn config(optimizer: OptimizerConfig) -> TrainerConfig {
    let schedule = Schedule { warmup: Warmup::FromFirst { steps: 2 }, decay: Decay::Cosine, floor: 0.1 };
    TrainerConfig { optimizer, lr: 0.02, schedule, steps: 9, batch: 4, part: Some(3), ..Default::default() }
}

#[test]
fn a_resumed_run_has_the_bits_of_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let g = graph(&network(12, 16, 1, true));
    let task = Drawing(TextTask::new(texts(10, 12, 1)));
    let decayed = Adam { weight_decay: 0.1, ..Adam::default() };
    let optimizers = [
        OptimizerConfig::AdamW(decayed),
        OptimizerConfig::Adam(Adam::default()),
        OptimizerConfig::Sgd(Sgd::default()),
        OptimizerConfig::Sgd(Sgd { momentum: 0.0, ..Sgd::default() }),
    ];
    for (index, optimizer) in optimizers.into_iter().enumerate() {
        for precision in [Precision::F32, Precision::F64] {
            let mut whole = Trainer::new(&g, config(optimizer), precision).unwrap();
            whole.run(&task, None, go_on).unwrap();
            let end = bits(&whole);
            // Broken off after 1 step, and after 4 more by the observer.
            let path = folder.path().join(format!("{index}{precision:?}"));
            let mut part = Trainer::new(&g, config(optimizer), precision).unwrap();
            part.save(&path).unwrap();
            for stop in [1, 5] {
                let mut next = Trainer::new(&g, config(optimizer), precision).unwrap();
                next.load(&path).unwrap();
                next.run(&task, None, |at| match at.step == stop {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
                .unwrap();
                assert_eq!(next.steps_done(), stop);
                next.save(&path).unwrap();
                part = next;
            }
            assert_ne!(bits(&part), end);
            let mut last = Trainer::new(&g, config(optimizer), precision).unwrap();
            last.load(&path).unwrap();
            assert_eq!(bits(&last), bits(&part));
            assert_eq!(last.run(&task, None, go_on).unwrap().unwrap().step, 9);
            assert!(bits(&last) == end, "{optimizer:?} in {precision:?}");
            // A run that is over stays over.
            assert!(last.run(&task, None, go_on).unwrap().is_none());
            assert!(last.step(&task).is_err());
        }
    }
}

#[test]
fn parts_add_up_to_the_same_bits_on_any_number_of_threads() {
    let g = graph(&network(12, 16, 1, true));
    let task = Drawing(TextTask::new(texts(10, 12, 1)));
    let on = |threads, part| {
        let config = TrainerConfig { batch: 7, part, ..config(OptimizerConfig::AdamW(Adam::default())) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut trainer = Trainer::new(&g, config, Precision::F32).unwrap();
            trainer.run(&task, None, go_on).unwrap();
            bits(&trainer)
        })
    };
    let alone = on(1, Some(2));
    for threads in [2, 3, 8] {
        assert!(on(threads, Some(2)) == alone, "{threads} threads");
    }
    assert_ne!(on(2, Some(3)), alone);
}

fn tiny() -> (Graph, TextTask) {
    (graph(&network(4, 4, 1, true)), TextTask::new(texts(6, 4, 2)))
}

fn tiny_trainer(g: &Graph, steps: u64) -> Trainer {
    let config = TrainerConfig { steps, batch: 2, lr: 0.01, ..TrainerConfig::default() };
    Trainer::new(g, config, Precision::F32).unwrap()
}

#[test]
fn a_damaged_checkpoint_is_an_error_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (g, task) = tiny();
    let path = folder.path().join("c");
    let mut trainer = tiny_trainer(&g, 5);
    trainer.step(&task).unwrap();
    trainer.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut victim = tiny_trainer(&g, 5);
    let before = bits(&victim);
    let mut refuse = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = victim.load(&path).unwrap_err();
        assert!(matches!(error, TrainingError::Checkpoint { .. }), "{what}: {error}");
    };
    for len in 0..whole.len() {
        refuse(&whole[..len], &format!("{len} bytes"));
    }
    for at in (0..whole.len()).step_by(17) {
        let mut spoilt = whole.clone();
        spoilt[at] ^= 1 << (at % 8);
        refuse(&spoilt, &format!("a bit of byte {at}"));
    }
    refuse(&[whole.as_slice(), b"x"].concat(), "a byte too many");
    assert_eq!(bits(&victim), before);
    assert_eq!(victim.steps_done(), 0);
    assert!(matches!(victim.load(&folder.path().join("none")), Err(TrainingError::Io { .. })));
    std::fs::write(&path, &whole).unwrap();
    victim.load(&path).unwrap();
    assert_eq!(bits(&victim), bits(&trainer));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c");
    let (g, task) = tiny();
    let mut trainer = tiny_trainer(&g, 5);
    trainer.step(&task).unwrap();
    trainer.save(&path).unwrap();
    let refused = |mut other: Trainer, what: &str| {
        let before = bits(&other);
        let error = other.load(&path).unwrap_err();
        assert!(matches!(error, TrainingError::OtherRun { .. }), "{what}: {error}");
        assert_eq!(bits(&other), before);
    };
    refused(tiny_trainer(&g, 6), "more steps");
    refused(tiny_trainer(&graph(&network(5, 4, 1, true)), 5), "another vocabulary");
    let new = |g: &Graph, config, precision| Trainer::new(g, config, precision).unwrap();
    refused(new(&g, trainer.config().clone(), Precision::F64), "another precision");
    // The same names and shapes, but a frozen parameter has other numbers.
    let head = TrainerConfig { train: Selection::only(["*norm*"]), steps: 5, batch: 2, ..Default::default() };
    let mut probe = new(&g, head.clone(), Precision::F32);
    probe.step(&task).unwrap();
    probe.save(&path).unwrap();
    let mut moved = g.clone();
    let table = moved.params()[0].tensor.clone();
    let numbers = table.to_f32().unwrap().iter().map(|x| x + 1.0).collect();
    let name = moved.params()[0].name.clone();
    moved.set_param(&name, pilotfish_graph::Tensor::new(table.shape(), numbers).unwrap()).unwrap();
    let refused = |mut other: Trainer| {
        assert!(matches!(other.load(&path), Err(TrainingError::OtherRun { .. })));
    };
    refused(new(&moved, head, Precision::F32));
}

#[test]
fn the_last_good_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (g, task) = tiny();
    let checkpoints = Checkpoints::new(folder.path().join("run"), 2, 2).unwrap();
    let mut trainer = tiny_trainer(&g, 7);
    trainer.run(&task, Some(&checkpoints), go_on).unwrap();
    let names = || -> Vec<String> {
        let files = checkpoints.files().unwrap();
        files.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    // Steps 2, 4, 6 and the end; the newest two are kept.
    assert_eq!(names(), ["step-0000000007.checkpoint", "step-0000000006.checkpoint"]);
    // The newest is cut short, and a run that was killed left half a file: the one before is taken.
    let files = checkpoints.files().unwrap();
    let bytes = std::fs::read(&files[0]).unwrap();
    std::fs::write(&files[0], &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(files[0].with_extension("checkpoint.1.partial"), &bytes[..9]).unwrap();
    let mut next = tiny_trainer(&g, 7);
    let (from, spoilt) = checkpoints.restore(&mut next).unwrap();
    assert_eq!((from.as_ref(), spoilt.len(), next.steps_done()), (Some(&files[1]), 1, 6));
    next.run(&task, Some(&checkpoints), go_on).unwrap();
    assert_eq!(bits(&next), bits(&trainer));
    assert_eq!(std::fs::read(&files[0]).unwrap(), bytes);
    // A run with other settings never starts anew in silence.
    assert!(matches!(checkpoints.restore(&mut tiny_trainer(&g, 8)), Err(TrainingError::OtherRun { .. })));
    // A save that fails leaves what is there and nothing else.
    let left = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    std::fs::create_dir(folder.path().join("taken")).unwrap();
    std::fs::write(folder.path().join("taken/file"), b"").unwrap();
    let before = left(folder.path());
    assert!(matches!(next.save(&folder.path().join("taken")), Err(TrainingError::Io { .. })));
    assert!(matches!(next.save(&folder.path().join("none/c")), Err(TrainingError::Io { .. })));
    assert_eq!(left(folder.path()), before);
    let empty = Checkpoints::new(folder.path().join("empty"), 1, 1).unwrap();
    assert!(empty.restore(&mut next).unwrap().0.is_none());
}

/// Full disk: writing to `/dev/full` fails as a full disk does, and the error says so.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (g, _) = tiny();
    let mut trainer = tiny_trainer(&g, 1);
    let partial = folder.path().join(format!("c.{}.partial", std::process::id()));
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = trainer.save(&folder.path().join("c")).unwrap_err();
    assert!(
        matches!(&error, TrainingError::Io { source, .. } if source.raw_os_error() == Some(28)),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn parts_of_a_batch_add_up_to_the_batch() {
    let g = graph(&network(9, 8, 1, false));
    for mean in [Mean::Tokens, Mean::Texts] {
        let task = TextTask { mean, ..TextTask::new(texts(12, 9, 3)) };
        let run = |part| {
            let config =
                TrainerConfig { part, steps: 4, batch: 7, lr: 0.05, clip: None, ..Default::default() };
            let mut trainer = Trainer::new(&g, config, Precision::F64).unwrap();
            let last = trainer.run(&task, None, go_on).unwrap().unwrap();
            let names: Vec<&str> = trainer.net().params().collect();
            let all: Vec<f64> = names.iter().flat_map(|name| trainer.net().param(name).unwrap()).collect();
            (last.loss, last.tokens, all)
        };
        let (loss, tokens, whole) = run(None);
        for part in [1, 3] {
            let (other, same, parts) = run(Some(part));
            assert_eq!(same, tokens);
            assert!((other - loss).abs() < 1e-9, "{other} {loss}");
            let worst = parts.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-6, "{mean:?}, parts of {part}: {worst}");
        }
    }
}

proptest! {
    #[test]
    fn every_epoch_sees_every_item_once(
        seed in any::<u64>(), items in 1usize..40, batch in 1usize..17, fixed in any::<bool>(),
    ) {
        let order = if fixed { Order::Fixed } else { Order::Reshuffled };
        let steps = (3 * items).div_ceil(batch) as u64;
        let all: Vec<usize> =
            (0..steps).flat_map(|step| order.batch(seed, items, batch, step).unwrap()).collect();
        for epoch in all.chunks_exact(items).take(3) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..items).collect::<Vec<_>>());
        }
        if items > 12 {
            prop_assert_eq!(all[..items] == all[items..2 * items], fixed);
            prop_assert_ne!(&order.batch(seed, items, items, 0)?, &order.batch(!seed, items, items, 0)?);
        }
    }
}

#[test]
fn bad_runs_are_refused() {
    let (g, task) = tiny();
    let base = TrainerConfig::default();
    let bad = [
        TrainerConfig { lr: f64::NAN, ..base.clone() },
        TrainerConfig { clip: Some(f64::NAN), ..base.clone() },
        TrainerConfig { batch: 0, ..base.clone() },
        TrainerConfig { part: Some(0), ..base.clone() },
        TrainerConfig { steps: 0, ..base.clone() },
    ];
    for config in bad {
        let error = Trainer::new(&g, config, Precision::F32).unwrap_err();
        assert!(matches!(error, TrainingError::BadParameter { .. }), "{error}");
    }
    for train in [Selection::only(["nothing.*"]), Selection::Except(vec!["*".into()])] {
        let config = TrainerConfig { train, ..base.clone() };
        assert!(matches!(Trainer::new(&g, config, Precision::F32), Err(TrainingError::NoSuchName { .. })));
    }
    // Fewer items than a batch takes: no steps, which is an endless or an empty run elsewhere.
    assert!(TrainerConfig::steps_of_epochs(31, 1.0, 32).is_err());
    assert_eq!(TrainerConfig::steps_of_epochs(1000, 2.0, 32).unwrap(), 62);
    assert!(Order::Given.batch(0, 0, 4, 0).is_err());
    let quantized = passes::store(&g, |name| name.contains("up_proj").then_some(Storage::Int4 { block: 16 }));
    if let Ok(quantized) = quantized {
        assert!(Trainer::new(&quantized, base.clone(), Precision::F32).is_err());
    }
    // A loss that is not a number stops the run before anything moves.
    struct Broken(TextTask);
    impl Task for Broken {
        fn items(&self) -> usize {
            self.0.items()
        }
        fn loss(&self, net: &Interpreter, items: &[usize], at: &At) -> Result<BatchLoss> {
            let mut of = self.0.loss(net, items, at)?;
            of.loss = of.loss.affine(f64::INFINITY, 0.0)?;
            Ok(of)
        }
    }
    let mut trainer = tiny_trainer(&g, 3);
    let before = bits(&trainer);
    let error = trainer.step(&Broken(task)).unwrap_err();
    assert!(matches!(error, TrainingError::NotFinite { step: 0, .. }), "{error}");
    assert_eq!((bits(&trainer), trainer.steps_done()), (before, 0));
    assert!(trainer.step(&TextTask::new(vec![])).is_err());
    assert!(trainer.step(&TextTask::new(vec![vec![1]])).is_err());
    assert!(trainer.step(&TextTask::new(vec![vec![1, 9]])).is_err());
}

#[test]
fn only_what_is_selected_moves() {
    let g = graph(&network(6, 8, 2, false));
    let task = TextTask::new(texts(8, 6, 4));
    let moved = |train: Selection| -> Vec<String> {
        let config = TrainerConfig { train, steps: 2, batch: 4, lr: 0.01, ..TrainerConfig::default() };
        let mut trainer = Trainer::new(&g, config, Precision::F32).unwrap();
        let fresh = Trainer::new(&g, trainer.config().clone(), Precision::F32).unwrap();
        trainer.run(&task, None, go_on).unwrap();
        let differs = |name: &&str| trainer.net().param(name).unwrap() != fresh.net().param(name).unwrap();
        trainer.net().params().filter(differs).map(str::to_owned).collect()
    };
    assert_eq!(moved(Selection::All).len(), g.params().len());
    assert_eq!(moved(Selection::only(["lm_head.*"])), ["lm_head.weight"]);
    let second = moved(Selection::only(["model.layers.1.*"]));
    assert_eq!(second.len(), 9);
    let frozen = moved(Selection::Except(vec!["model.layers.0.*".into(), "model.embed*".into()]));
    assert_eq!(frozen.len(), g.params().len() - 10);
}

/// A probe on a frozen body: which half of the alphabet the last token is from.
#[test]
fn a_head_learns_on_a_frozen_body() {
    struct Halves(Vec<Vec<u32>>);
    impl Task for Halves {
        fn items(&self) -> usize {
            self.0.len()
        }
        fn loss(&self, net: &Interpreter, items: &[usize], _: &At) -> Result<BatchLoss> {
            let texts: Vec<Vec<u32>> = items.iter().map(|&item| self.0[item].clone()).collect();
            let out = net.forward(&causal_inputs(&texts, None, net.precision())?)?;
            let last = out["classes"].narrow(1, 4, 1)?.squeeze(1)?;
            let labels: Vec<f64> =
                texts.iter().flat_map(|text| if text[4] < 5 { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
            let labels = candle_core::Tensor::from_vec(labels, (items.len(), 2), last.device())?;
            let loss = pilotfish_training::losses::classification::cross_entropy(&last, &labels)?;
            Ok(BatchLoss { loss, weight: items.len() as f64, tokens: 5 * items.len() })
        }
    }
    let body = graph(&network(10, 16, 1, true));
    let g = attach_head(&body, Mark::FinalNormed, 2, true).unwrap();
    assert!(g.params().iter().all(|param| param.name != "lm_head.weight") && g.outputs().len() == 1);
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let texts = (0..64).map(|_| (0..5).map(|_| rng.random_range(0..10)).collect()).collect();
    let train = Selection::only(["head.*"]);
    let config = TrainerConfig { train, steps: 60, batch: 32, lr: 0.05, ..TrainerConfig::default() };
    let mut trainer = Trainer::new(&g, config, Precision::F32).unwrap();
    assert_eq!(trainer.trained_parameters(), 2 * 16 + 2);
    let first = trainer.step(&Halves(texts)).unwrap();
    assert!((first.loss - 2f64.ln()).abs() < 1e-6, "a head of zeros says the same of everything");
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let texts = (0..64).map(|_| (0..5).map(|_| rng.random_range(0..10)).collect()).collect();
    let last = trainer.run(&Halves(texts), None, go_on).unwrap().unwrap();
    assert!(last.loss < 0.1, "{last:?}");
    assert!(attach_head(&body, Mark::Residual(7), 2, true).is_err());
    assert!(attach_head(&body, Mark::FinalNormed, 0, true).is_err());
}

fn logits(g: &Graph, texts: &[Vec<u32>]) -> Vec<f32> {
    let net = Interpreter::new(g, Precision::F32).unwrap();
    let out = net.forward(&causal_inputs(texts, None, Precision::F32).unwrap()).unwrap();
    out["logits"].flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn adapters_start_at_nothing_learn_and_merge() {
    let g = graph(&network(7, 16, 2, false));
    let lora = Lora { rank: 2, alpha: 8.0, seed: 5 };
    let adapted = lora.attach(&g, "*_proj.weight").unwrap();
    assert_eq!(adapted.params().len(), g.params().len() + 2 * 14);
    let some = texts(4, 7, 8);
    assert_eq!(logits(&g, &some), logits(&adapted, &some));
    let config = TrainerConfig {
        train: Lora::parameters(),
        steps: 25,
        batch: 8,
        lr: 0.02,
        ..TrainerConfig::default()
    };
    let mut trainer = Trainer::new(&adapted, config, Precision::F32).unwrap();
    // Rank 2: 2 (in + out) numbers a matrix; q, k, v, o and the MLP's three.
    assert_eq!(trainer.trained_parameters(), 2 * 2 * (32 + 24 + 24 + 32 + 3 * 48));
    let task = TextTask::new(texts(8, 7, 9));
    let start = trainer.step(&task).unwrap();
    let end = trainer.run(&task, None, go_on).unwrap().unwrap();
    assert!(end.loss < 0.8 * start.loss, "{} to {}", start.loss, end.loss);
    let trained = trainer.graph().unwrap();
    let merged = lora.merge(&g, &trained).unwrap();
    assert_eq!(merged.params().len(), g.params().len());
    let moved = worst(&logits(&g, &some), &logits(&merged, &some));
    let rounding = worst(&logits(&trained, &some), &logits(&merged, &some));
    assert!(moved > 0.1 && rounding < 1e-4, "{moved} {rounding}");
    // Each merged matrix is the plain one and the product, rounded once.
    let numbers = |g: &Graph, name: &str| -> Vec<f32> {
        let param = g.params().iter().find(|param| param.name == name).unwrap();
        param.tensor.to_f32().unwrap().into_owned()
    };
    let name = "model.layers.1.self_attn.k_proj.weight";
    let (a, b) = (numbers(&trained, &format!("{name}.lora_a")), numbers(&trained, &format!("{name}.lora_b")));
    let (w, m) = (numbers(&g, name), numbers(&merged, name));
    for row in 0..8 {
        for column in 0..16 {
            let low: f64 = (0..2).map(|k| f64::from(b[2 * row + k]) * f64::from(a[16 * k + column])).sum();
            assert_eq!(m[16 * row + column], (f64::from(w[16 * row + column]) + 4.0 * low) as f32);
        }
    }
}

#[test]
fn adapters_know_what_they_cannot_do() {
    let tied = graph(&network(7, 16, 1, true));
    let lora = Lora { rank: 2, ..Lora::default() };
    for (lora, pattern) in [
        (lora, "*norm*"),
        (lora, "nothing"),
        (Lora { rank: 0, ..lora }, "*q_proj*"),
        (Lora { rank: 9, ..lora }, "*k_proj*"),
        (Lora { alpha: f32::NAN, ..lora }, "*q_proj*"),
    ] {
        assert!(lora.attach(&tied, pattern).is_err(), "{pattern}");
    }
    // The head is the embedding: adapters work, merging them would change the embedding.
    let head = lora.attach(&tied, "model.embed_tokens.weight").unwrap();
    assert!(matches!(lora.merge(&tied, &head), Err(TrainingError::Operand { .. })));
    assert!(lora.merge(&tied, &tied).is_err());
    let adapted = lora.attach(&tied, "*q_proj*").unwrap();
    assert!(Lora { rank: 4, ..lora }.merge(&tied, &adapted).is_err());
    // Adapters beside a matrix in blocks of four bits.
    let stored = passes::store(&tied, |name| name.contains("up_proj").then_some(Storage::Int4 { block: 16 }));
    let stored = lora.attach(&stored.unwrap(), "*up_proj*").unwrap();
    let kept = stored.nodes().iter().any(|node| node.op == Op::Linear(Storage::Int4 { block: 16 }));
    let config = TrainerConfig { train: Lora::parameters(), steps: 2, batch: 2, ..TrainerConfig::default() };
    let mut trainer = Trainer::new(&stored, config, Precision::F32).unwrap();
    trainer.run(&TextTask::new(texts(4, 7, 3)), None, go_on).unwrap();
    assert!(kept);
}

#[test]
fn preference_losses_start_where_they_should_and_prefer_what_is_chosen() {
    let g = graph(&network(8, 16, 1, true));
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut text = |from: u32, to: u32, len: usize| -> Vec<u32> {
        (0..len).map(|_| rng.random_range(from..to)).collect()
    };
    // Chosen responses are of low letters, rejected ones of high letters, of other lengths.
    let pairs: Vec<Pair> = (0..16)
        .map(|_| Pair { prompt: text(0, 8, 3), chosen: text(0, 4, 4), rejected: text(4, 8, 6) })
        .collect();
    let losses = [
        (PairLoss::Dpo(Dpo::default()), Some(2f64.ln())),
        (PairLoss::MeanDpo(Dpo { beta: 5.0, ..Dpo::default() }), Some(2f64.ln())),
        (PairLoss::Ipo { beta: 0.1 }, Some(25.0)),
        (PairLoss::SimPo(SimPo::default()), None),
        (PairLoss::Orpo(Orpo::default()), None),
    ];
    for (loss, start) in losses {
        let config = TrainerConfig { steps: 20, batch: 8, lr: 0.01, ..TrainerConfig::default() };
        let mut trainer = Trainer::new(&g, config, Precision::F64).unwrap();
        let task = PairTask::new(trainer.net(), pairs.clone(), loss, None, 5).unwrap();
        let margin = |trainer: &Trainer| -> f64 {
            let (scores, _) = task.scores(trainer.net(), &(0..16).collect::<Vec<_>>()).unwrap();
            let margin = scores.margin().unwrap().mean_all().unwrap();
            margin.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
        };
        let before = margin(&trainer);
        let first = trainer.step(&task).unwrap();
        if let Some(start) = start {
            assert!((first.loss - start).abs() < 1e-9, "{loss:?}: {}", first.loss);
        }
        let last = trainer.run(&task, None, go_on).unwrap().unwrap();
        assert!(last.loss < first.loss && margin(&trainer) > before, "{loss:?}: {first:?} {last:?}");
    }
    let empty = vec![Pair { prompt: vec![], chosen: vec![1], rejected: vec![2] }];
    let net = Interpreter::new(&g, Precision::F32).unwrap();
    assert!(PairTask::new(&net, empty, losses[0].0, None, 1).is_err());
}

/// Copying four letters after a mark: eight letters, so chance is 1 in 4096; held-out texts are copied right.
#[test]
fn a_transformer_from_scratch_learns_to_copy() {
    const LETTERS: u32 = 8;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut text = || -> Vec<u32> {
        let letters: Vec<u32> = (0..4).map(|_| rng.random_range(0..LETTERS)).collect();
        [&letters[..], &[LETTERS], &letters[..]].concat()
    };
    let (train, held): (Vec<_>, Vec<_>) =
        ((0..1024).map(|_| text()).collect(), (0..64).map(|_| text()).collect());
    let network = network(LETTERS as usize + 1, 32, 2, false);
    let task = TextTask { prompts: vec![5; train.len()], ..TextTask::new(train) };
    let schedule = Schedule { warmup: Warmup::FromFirst { steps: 20 }, decay: Decay::Cosine, floor: 0.05 };
    let config = TrainerConfig { steps: 400, batch: 32, lr: 6e-3, schedule, ..TrainerConfig::default() };
    let mut trainer = Trainer::new(&graph(&network), config, Precision::F32).unwrap();
    let mut losses = Vec::new();
    trainer
        .run(&task, None, |at| {
            assert!(at.tokens == 32 * 9 && at.tokens_per_second() > 0.0);
            losses.push(at.loss);
            ControlFlow::Continue(())
        })
        .unwrap();
    // It begins near the uniform guess, ln 9.
    assert!((losses[0] - 9f64.ln()).abs() < 0.3, "{}", losses[0]);
    let out = trainer.net().forward(&causal_inputs(&held, None, Precision::F32).unwrap()).unwrap();
    let best = out["logits"].argmax(2).unwrap().to_vec2::<u32>().unwrap();
    let right = held.iter().zip(best).filter(|(text, best)| best[4..8] == text[5..]).count();
    assert!(right == held.len() && losses[399] < 0.05, "{right} of 64, loss {}", losses[399]);
}
