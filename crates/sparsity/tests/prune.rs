//! Pruners of one matrix: values worked by hand, closed forms, and masks that a NumPy script derived.
#![allow(clippy::unwrap_used)]

use pilotfish_sparsity::{
    Dsnot, Mask, Pattern, Pruner, Scope, Skip, SparseGpt, Start, Statistics, prune::prune,
    reconstruction_error, refine, refine_row, verify, wanda,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};

const UNDAMPED: SparseGpt = SparseGpt { damping: 0.0, block: 128 };

fn hessian(h: &[f64]) -> Statistics {
    let n = h.len().isqrt();
    Statistics::given(&vec![1.0; n], &vec![0.0; n], &vec![1.0; n], Some(h)).unwrap()
}

fn share(sparsity: f64) -> Pattern {
    Pattern::Unstructured { sparsity }
}

fn close(a: &[f32], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (at, (&a, b)) in a.iter().zip(b).enumerate() {
        assert!((f64::from(a) - b).abs() < tolerance, "{at}: {a} is not {b}");
    }
}

#[test]
fn sparse_gpt_on_two_weights() {
    // U = [[0.8165, -0.4082], [0, 0.7071]]: the first weight costs 1.5, the second 2.
    let swept =
        UNDAMPED.sweep("w", &[1.0, 1.0], [1, 2], &hessian(&[2.0, 1.0, 1.0, 2.0]), share(0.5)).unwrap();
    close(&swept.weights, &[0.0, 1.5], 1e-6);
    assert!((swept.loss - 0.75).abs() < 1e-12);
}

#[test]
fn sparse_gpt_on_three_weights() {
    let h = [4.0, 2.0, 0.0, 2.0, 3.0, 1.0, 0.0, 1.0, 2.0];
    let (w, inputs) = ([1.0, -0.5, 2.0], hessian(&h));
    let scores = UNDAMPED.saliency("w", &w, [1, 3], &inputs).unwrap();
    for (score, want) in scores.iter().zip([2.4, 0.625, 8.0]) {
        assert!((score - want).abs() < 1e-9, "{scores:?}");
    }
    // The smallest score is in the middle: the weight to its left stays, so this is not least squares, which would
    // give (0.75, 0, 1.75) at 0.1875.
    let one = UNDAMPED.sweep("w", &w, [1, 3], &inputs, share(0.34)).unwrap();
    close(&one.weights, &[1.0, 0.0, 1.75], 1e-6);
    assert!((one.loss - 0.3125).abs() < 1e-12);
    let two = UNDAMPED.sweep("w", &w, [1, 3], &inputs, share(0.67)).unwrap();
    close(&two.weights, &[0.0, 0.0, 1.75], 1e-6);
    assert!((two.loss - 1.3125).abs() < 1e-12);
    // Made to prune the first by weights that make it cheap; the optimum, as all kept lie to the right.
    let first = UNDAMPED.sweep("w", &[0.1, -0.5, 2.0], [1, 3], &inputs, share(0.34)).unwrap();
    close(&first.weights, &[0.0, -0.5 + 0.8 * 0.1, 2.0 - 0.4 * 0.1], 1e-6);
    // No damping, nothing to prune: nothing changes, to the bit.
    let none = UNDAMPED.sweep("w", &w, [1, 3], &inputs, share(0.0)).unwrap();
    assert_eq!((none.weights.as_slice(), none.loss), (w.as_slice(), 0.0));
}

/// Random rows with correlated, off-centre features.
fn layer(seed: u64, outs: usize, ins: usize, sequences: usize, rows: usize) -> (Vec<f32>, Statistics) {
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut normal = move || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
    let weights = (0..outs * ins).map(|_| normal() as f32).collect();
    let mean: Vec<f64> = (0..ins).map(|_| normal()).collect();
    let mut inputs = Statistics::new(ins, true);
    for _ in 0..sequences {
        let mut text = Vec::new();
        for _ in 0..rows {
            let common = normal();
            text.extend(mean.iter().map(|mean| (mean + normal() + 0.7 * common) as f32));
        }
        inputs.add(&text).unwrap();
    }
    (weights, inputs)
}

#[test]
fn the_sweeps_loss_is_that_of_its_weights() {
    let (w, inputs) = layer(3, 7, 40, 3, 60);
    for (block, pattern) in [(128, share(0.6)), (16, share(0.6)), (8, Pattern::Grouped { keep: 2, group: 4 })]
    {
        let gpt = SparseGpt { damping: 0.01, block };
        let swept = gpt.sweep("w", &w, [7, 40], &inputs, pattern).unwrap();
        let mut h = inputs.hessian().unwrap();
        let mean = (0..40).map(|j| h[(j, j)]).sum::<f64>() / 40.0;
        (0..40).for_each(|j| h[(j, j)] += 0.01 * mean);
        let d: Vec<f64> =
            swept.weights.iter().zip(&w).map(|(new, old)| f64::from(*new) - f64::from(*old)).collect();
        let mut loss = 0.0;
        for row in d.chunks_exact(40) {
            for i in 0..40 {
                for j in 0..40 {
                    loss += row[i] * h[(i, j)] * row[j] / 2.0;
                }
            }
        }
        assert!((swept.loss / loss - 1.0).abs() < 1e-4, "{} is not {loss}", swept.loss);
        verify("w", &swept.weights, 40, pattern).unwrap();
        // Better than the same mask without an update: known to be wrong if weights were only zeroed.
        let mut plain = w.clone();
        swept.mask.apply(&mut plain).unwrap();
        let error = |new: &[f32]| reconstruction_error(&w, new, [7, 40], &inputs).unwrap();
        assert!(error(&swept.weights) < error(&plain));
    }
}

#[test]
fn dead_inputs_lose_their_weights() {
    let mut inputs = Statistics::new(3, true);
    inputs.add(&[1.0, 0.0, 2.0, -1.0, 0.0, 1.0]).unwrap();
    let swept = SparseGpt::default().sweep("w", &[1.0, 5.0, 1.0], [1, 3], &inputs, share(0.0)).unwrap();
    assert_eq!(swept.weights, [1.0, 0.0, 1.0]);
}

#[test]
fn dsnot_by_hand_unstructured() {
    let w = [-1.25, 1.25, 1.25, -1.25, 0.75, -1.0, -0.5, -0.5f32];
    let sum = [-3.0, -2.0, 1.0, -3.0, -3.0, -1.0, -3.0, 3.0];
    let scaler = [9.0, 4.0, 1.0, 16.0, 9.0, 1.0, 9.0, 16.0];
    let inputs = Statistics::given(&scaler, &sum, &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0], None).unwrap();
    let scores = wanda(&w, [1, 8], &inputs);
    let start = Mask::smallest(&scores, [1, 8], share(0.5), Scope::Row).unwrap();
    let at = |mask: &Mask| (0..8).filter(|&j| mask.pruned(0, j)).collect::<Vec<_>>();
    assert_eq!(at(&start), [2, 5, 6, 7]);
    let refined = |cycles| {
        let config = Dsnot { cycles, ..Dsnot::default() };
        refine(&w, &inputs, &start, &scores, share(0.5), &config).unwrap()
    };
    let steps: Vec<f64> = (0..=4).map(|cycles| refined(cycles).errors[0][1]).collect();
    assert_eq!(steps, [2.25, -1.5, 3.75, 0.0, 0.0]);
    let out = refined(50);
    assert_eq!((at(&out.mask), out.swaps), (vec![0, 1, 4, 5], 3));
    // Going back to the smallest |E| changes nothing here, and takes back the third swap if that were the last.
    let best = |cycles| {
        let config = Dsnot { cycles, keep_best: true, ..Dsnot::default() };
        refine(&w, &inputs, &start, &scores, share(0.5), &config).unwrap()
    };
    assert_eq!((best(50), best(2).errors[0], best(2).swaps), (out, [2.25, -1.5], 1));
    // With the same-sign rule the first swap already stops.
    let config = Dsnot { same_sign: Some(true), ..Dsnot::default() };
    assert_eq!(refine(&w, &inputs, &start, &scores, share(0.5), &config).unwrap().swaps, 0);
}

#[test]
fn dsnot_by_hand_in_groups() {
    let w = [-1.75, -2.0, 1.5, 0.75, -1.5, 2.0, 1.75, -1.5f32];
    let sum = [2.0, 3.0, 1.0, 2.0, -3.0, 2.0, 3.0, 1.0];
    let scaler = [9.0, 16.0, 1.0, 9.0, 9.0, 9.0, 16.0, 4.0];
    let inputs = Statistics::given(&scaler, &sum, &[1.0; 8], None).unwrap();
    let pattern = Pattern::Grouped { keep: 2, group: 4 };
    let scores = wanda(&w, [1, 8], &inputs);
    let start = Mask::smallest(&scores, [1, 8], pattern, Scope::Row).unwrap();
    let at = |mask: &Mask, pruned: bool| (0..8).filter(|&j| mask.pruned(0, j) == pruned).collect::<Vec<_>>();
    assert_eq!(at(&start, true), [2, 3, 4, 7]);
    let refined = |cycles| {
        refine(&w, &inputs, &start, &scores, pattern, &Dsnot { cycles, ..Dsnot::default() }).unwrap()
    };
    let steps: Vec<f64> = (0..=3).map(|cycles| refined(cycles).errors[0][1]).collect();
    assert_eq!(steps, [6.0, 5.5, 0.5, 0.5]);
    assert_eq!(at(&refined(50).mask, false), [1, 3, 4, 6]);
}

#[test]
fn e_is_the_missing_output_of_one_sequence() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(5);
    let (w, x): (Vec<f32>, Vec<f32>) = (
        (0..16).map(|_| rng.random_range(-1.0..1.0)).collect(),
        (0..16 * 9).map(|_| rng.random_range(-0.5..1.0)).collect(),
    );
    let mut inputs = Statistics::new(16, false);
    inputs.add(&x).unwrap();
    let scores = wanda(&w, [1, 16], &inputs);
    let start = Mask::smallest(&scores, [1, 16], share(0.5), Scope::Row).unwrap();
    let out = refine(&w, &inputs, &start, &scores, share(0.5), &Dsnot::default()).unwrap();
    for (mask, want) in [(&start, out.errors[0][0]), (&out.mask, out.errors[0][1])] {
        let mut sparse = w.clone();
        mask.apply(&mut sparse).unwrap();
        let missing: f64 = x
            .chunks_exact(16)
            .flat_map(|row| row.iter().zip(w.iter().zip(&sparse)))
            .map(|(&x, (&dense, &sparse))| f64::from(x) * (f64::from(dense) - f64::from(sparse)))
            .sum();
        assert!((missing - want).abs() < 1e-4, "{missing} is not {want}");
    }
    assert!(out.errors[0][1].abs() < out.errors[0][0].abs());
}

proptest! {
    /// One in, one out; what is kept is what it was; an infinite threshold changes nothing; E is what it says.
    #[test]
    fn dsnot_keeps_its_counts(seed in 0u64..1000, grouped in any::<bool>(), same in any::<Option<bool>>(), best in any::<bool>()) {
        let (w, inputs) = layer(seed, 3, 16, 2, 5);
        let pattern = if grouped { Pattern::Grouped { keep: 2, group: 4 } } else { share(0.6) };
        let scores = wanda(&w, [3, 16], &inputs);
        let start = Mask::smallest(&scores, [3, 16], pattern, Scope::Row).unwrap();
        let config = Dsnot { same_sign: same, keep_best: best, ..Dsnot::default() };
        let out = refine(&w, &inputs, &start, &scores, pattern, &config).unwrap();
        let size = if grouped { 4 } else { 16 };
        for row in 0..3 {
            for (old, new) in start.row(row).chunks(size).zip(out.mask.row(row).chunks(size)) {
                let count = |mask: &[bool]| mask.iter().filter(|pruned| **pruned).count();
                prop_assert_eq!(count(old), count(new));
            }
            let effect = |mask: &Mask| -> f64 {
                let sum = inputs.sum();
                (0..16).filter(|&j| mask.pruned(row, j)).map(|j| f64::from(w[row * 16 + j]) * sum[j]).sum()
            };
            prop_assert!((effect(&start) - out.errors[row][0]).abs() < 1e-4);
            prop_assert!((effect(&out.mask) - out.errors[row][1]).abs() < 1e-4);
            prop_assert!(!best || out.errors[row][1].abs() <= out.errors[row][0].abs());
        }
        let never = Dsnot { threshold: f64::INFINITY, ..config };
        prop_assert_eq!(refine(&w, &inputs, &start, &scores, pattern, &never).unwrap().mask, start);
    }
}

#[test]
fn narrow_rows_stop_when_candidates_run_out() {
    // All contributions positive, all of them missing: nothing negative can be pruned, so nothing is swapped.
    let mut pruned = [true, true, false];
    let done =
        refine_row(&[1.0, 2.0, 3.0], &[1.0; 3], &[1.0, 2.0, 3.0], None, &mut pruned, &Dsnot::default());
    assert_eq!((done.swaps, pruned), (0, [true, true, false]));
}

#[test]
fn masks_and_weights_of_numpy() {
    let json: serde_json::Value = serde_json::from_str(include_str!("fixtures/prune.json")).unwrap();
    let floats = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let single =
        |value: &serde_json::Value| floats(value).into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let (w, shape) = (single(&json["weights"]), [6, 16]);
    let mut inputs = Statistics::new(16, true);
    json["inputs"].as_array().unwrap().iter().for_each(|text| inputs.add(&single(text)).unwrap());
    for (got, want) in [
        (inputs.scaler(), &json["scaler"]),
        (inputs.sum(), &json["sum"]),
        (inputs.variance(), &json["variance"]),
    ] {
        got.iter()
            .zip(floats(want))
            .for_each(|(got, want)| assert!((got - want).abs() < 1e-9 * want.abs().max(1.0)));
    }
    let gpt = SparseGpt { damping: 0.01, block: json["block"].as_u64().unwrap() as usize };
    let flat = |mask: &Mask| {
        (0..6).flat_map(|row| mask.row(row).iter().map(|&p| f64::from(u8::from(p)))).collect::<Vec<f64>>()
    };
    for (key, want) in json["masks"].as_object().unwrap() {
        let (name, pattern) = key.split_once(' ').unwrap();
        let mut pruner: Pruner = name.parse().unwrap();
        pruner.sparse_gpt = gpt;
        let out = prune("w", &w, shape, &inputs, pattern.parse().unwrap(), &pruner, true).unwrap();
        assert_eq!(flat(&out.mask), floats(want), "{key}");
        // Kept weights are the dense ones to the bit.
        out.weights.iter().zip(&w).for_each(|(new, old)| assert!(*new == 0.0 || new == old));
    }
    for (pattern, want) in json["sparsegpt"].as_object().unwrap() {
        let swept = gpt.sweep("w", &w, shape, &inputs, pattern.parse().unwrap()).unwrap();
        assert_eq!(flat(&swept.mask), floats(&want["mask"]), "{pattern}");
        close(&swept.weights, &floats(&want["weights"]), 2e-5);
        assert!((swept.loss / want["loss"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn each_method_is_best_at_what_it_minimises() {
    let (w, inputs) = layer(11, 64, 128, 4, 100);
    let shape = [64, 128];
    let run = |name: &str, pattern: Pattern| {
        prune("w", &w, shape, &inputs, pattern, &name.parse().unwrap(), true).unwrap().report
    };
    for pattern in [
        share(0.5),
        share(0.7),
        Pattern::Grouped { keep: 2, group: 4 },
        Pattern::Grouped { keep: 4, group: 8 },
    ] {
        let [plain, gpt, dsnot] = ["wanda", "sparsegpt", "wanda+dsnot"].map(|name| run(name, pattern));
        assert!(gpt.error < plain.error && gpt.error < dsnot.error, "{pattern}");
        assert!(dsnot.mean_error < 0.5 * plain.mean_error, "{pattern}: {dsnot:?} {plain:?}");
        assert!((plain.sparsity - pattern.sparsity()).abs() < 0.01);
    }
}

#[test]
fn the_same_to_the_bit() {
    let (w, inputs) = layer(2, 8, 32, 2, 30);
    for name in pilotfish_sparsity::PRUNERS {
        let run =
            || prune("w", &w, [8, 32], &inputs, share(0.5), &name.parse().unwrap(), true).unwrap().weights;
        assert!(run().iter().zip(run()).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
    }
}

#[test]
fn bad_input_is_refused() {
    let (w, inputs) = layer(1, 2, 8, 1, 4);
    let wanda: Pruner = "wanda".parse().unwrap();
    let run = |w: &[f32], shape, inputs: &Statistics, pattern: &str, pruner: &Pruner| {
        let pattern = pattern.parse::<Pattern>()?;
        prune("model.layers.0.mlp.up_proj.weight", w, shape, inputs, pattern, pruner, true)
    };
    assert!(run(&w, [2, 8], &inputs, "0.5", &wanda).is_ok());
    // N above M, M that does not divide, sparsities that are none.
    for pattern in ["5:4", "0:0", "2:3", "1.5", "-0.1", "nan", "2:", "x"] {
        assert!(run(&w, [2, 8], &inputs, pattern, &wanda).is_err(), "{pattern}");
    }
    // All and nothing.
    for (pattern, zeros) in [("1", 16), ("0", 0), ("0:4", 16), ("4:4", 0), ("dense", 0)] {
        for name in ["wanda", "magnitude", "sparsegpt", "dsnot"] {
            let out = run(&w, [2, 8], &inputs, pattern, &name.parse().unwrap()).unwrap();
            assert_eq!(out.weights.iter().filter(|w| **w == 0.0).count(), zeros, "{name} {pattern}");
        }
    }
    assert!(run(&w, [4, 4], &inputs, "0.5", &wanda).is_err());
    assert!(run(&w[..15], [2, 8], &inputs, "0.5", &wanda).is_err());
    assert!(run(&w, [2, 8], &Statistics::new(8, true), "0.5", &wanda).is_err());
    let mut broken = w.clone();
    broken[3] = f32::NAN;
    assert!(run(&broken, [2, 8], &inputs, "0.5", &wanda).is_err());
    assert!(run(&[0.0; 16], [2, 8], &inputs, "0.5", &wanda).is_ok());
    // Fewer rows than inputs without damping: singular. With damping it is not. All features dead: still no panic.
    let singular = Pruner { sparse_gpt: UNDAMPED, ..Pruner::new(Start::SparseGpt, false) };
    let error = run(&w, [2, 8], &inputs, "0.5", &singular).err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("raise the damping")));
    let mut nothing = Statistics::new(8, true);
    nothing.add(&[0.0; 8]).unwrap();
    for name in pilotfish_sparsity::PRUNERS {
        assert!(run(&w, [2, 8], &nothing, "0.5", &name.parse().unwrap()).is_ok(), "{name}");
    }
    let mut no_products = Statistics::new(8, false);
    no_products.add(&[1.0; 8]).unwrap();
    assert!(run(&w, [2, 8], &no_products, "0.5", &"sparsegpt".parse().unwrap()).is_err());
    for damping in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(SparseGpt { damping, block: 8 }.check().is_err());
    }
    assert!(
        SparseGpt { damping: 0.1, block: 6 }.sweep("w", &w, [2, 8], &inputs, "2:4".parse().unwrap()).is_err()
    );
    assert!(Dsnot { threshold: f64::NAN, ..Dsnot::default() }.check().is_err());
    let error = "wandda".parse::<Pruner>().err().unwrap().to_string();
    assert!(error.contains("did you mean wanda?"), "{error}");
    let skip = |skip, name: &str| Dsnot { skip, ..Dsnot::default() }.touches(name);
    assert!(!skip(Skip::Mlp, "a.mlp.b") && skip(Skip::Mlp, "a.self_attn.q") && skip(Skip::None, "a.mlp.b"));
    assert!(!skip(Skip::Attention, "a.self_attn.q"));
    let error = verify("w", &[1.0, 1.0, 1.0, 0.0], 4, Pattern::Grouped { keep: 2, group: 4 }).err().unwrap();
    assert!(error.to_string().contains("row 0, group 0 has 3"), "{error}");
}
