//! Networks learn: plain gradient descent through the interpreter.

use std::collections::HashMap;

use candle_core::{Device, Tensor as CandleTensor, Var};
use pilotfish_graph::{AttentionConfig, DType, Dim, Graph, RopeScaling, Tensor, UnaryOp};
use pilotfish_training::{Array, Interpreter, Precision};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn random(rng: &mut ChaCha8Rng, shape: &[usize], by: f32) -> Fallible<Tensor> {
    let count = shape.iter().product();
    Ok(Tensor::new(shape, (0..count).map(|_| by * rng.random_range(-1.0f32..1.0)).collect())?)
}

/// Exclusive or, by two layers.
#[test]
fn two_layers_learn_exclusive_or() -> Fallible {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut g = Graph::new("xor");
    let x = g.input("x", vec![Dim::symbol("B"), 2.into()], DType::F32)?;
    let w1 = g.param("w1", random(&mut rng, &[8, 2], 1.0)?)?;
    let b1 = g.param("b1", random(&mut rng, &[8], 0.5)?)?;
    let w2 = g.param("w2", random(&mut rng, &[1, 8], 0.5)?)?;
    let b2 = g.param("b2", random(&mut rng, &[1], 0.5)?)?;
    let hidden = g.linear(x, w1, Some(b1))?;
    let hidden = g.unary(UnaryOp::Tanh, hidden)?;
    let y = g.linear(hidden, w2, Some(b2))?;
    g.output("y", y)?;
    let mut net = Interpreter::new(&g, Precision::F32)?;
    net.train(&["w1", "b1", "w2", "b2"])?;
    let device = Device::Cpu;
    let x = CandleTensor::from_slice(&[0f32, 0., 0., 1., 1., 0., 1., 1.], (4, 2), &device)?;
    let want = CandleTensor::from_slice(&[0f32, 1., 1., 0.], (4, 1), &device)?;
    let inputs = HashMap::from([("x".to_owned(), x)]);
    let mut losses = Vec::new();
    for _ in 0..400 {
        let loss = (&net.forward(&inputs)?["y"] - &want)?.sqr()?.mean_all()?;
        losses.push(loss.to_scalar::<f32>()?);
        let gradients = net.gradients(&loss)?;
        for (name, var) in net.variables() {
            var.set(&(var.as_tensor() - (&gradients[name] * 0.3)?)?)?;
        }
    }
    assert!(losses[0] > 0.1 && losses[399] < 0.01, "{} to {}", losses[0], losses[399]);
    // Variables are the parameters.
    let plain = net.run(&[("x", Array::float([1, 2], [1.0, 0.0]))])?;
    assert!((plain["y"][0] - 1.0).abs() < 0.2, "{plain:?}");
    Ok(())
}

/// Keys and values of a cache are inputs; they can be moved so that the next step says something else, as
/// methods do that train what is remembered and not the weights.
#[test]
fn a_cache_can_be_optimised() -> Fallible {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut g = Graph::new("block");
    let (b, t, l) = (Dim::from(1), Dim::symbol("T"), Dim::symbol("L"));
    let x = g.input("x", vec![b.clone(), t.clone(), 8.into()], DType::F32)?;
    let positions = g.input("positions", vec![b.clone(), t.clone()], DType::I64)?;
    let mask = g.input("mask", vec![b.clone(), 1.into(), t.clone(), &l + &t], DType::F32)?;
    let cache = vec![b.clone(), 1.into(), l.clone(), 4.into()];
    let past_keys = g.input("past_keys", cache.clone(), DType::F32)?;
    let past_values = g.input("past_values", cache, DType::F32)?;
    let norm = g.param("norm", Tensor::new([8], vec![1.0; 8])?)?;
    let h = g.rms_norm(x, norm, 1e-5)?;
    let mut rows = Vec::new();
    for (name, width) in [("q", 8), ("k", 4), ("v", 4)] {
        let weight = g.param(name, random(&mut rng, &[width, 8], 0.5)?)?;
        rows.push(g.linear(h, weight, None)?);
    }
    let q = g.rotary(rows[0], positions, 4, 1e4, RopeScaling::None)?;
    let k = g.rotary(rows[1], positions, 4, 1e4, RopeScaling::None)?;
    let config = AttentionConfig { heads: 2, kv_heads: 1, scale: 0.5, softcap: None };
    let (y, keys, _) = g.attention([q, k, rows[2]], mask, Some((past_keys, past_values)), config)?;
    let head = g.param("head", random(&mut rng, &[5, 8], 1.0)?)?;
    let logits = g.linear(y, head, None)?;
    let p = g.softmax(logits)?;
    g.output("p", p)?;
    g.output("keys", keys)?;
    let net = Interpreter::new(&g, Precision::F64)?;
    let device = Device::Cpu;
    let mut numbers =
        |count: usize| -> Vec<f64> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let keys = Var::from_vec(numbers(12), (1, 1, 3, 4), &device)?;
    let values = Var::from_vec(numbers(12), (1, 1, 3, 4), &device)?;
    let inputs = HashMap::from([
        ("x".to_owned(), CandleTensor::from_vec(numbers(8), (1, 1, 8), &device)?),
        ("positions".to_owned(), CandleTensor::from_slice(&[3i64], (1, 1), &device)?),
        ("mask".to_owned(), CandleTensor::zeros((1, 1, 1, 4), candle_core::DType::F64, &device)?),
        ("past_keys".to_owned(), keys.as_tensor().clone()),
        ("past_values".to_owned(), values.as_tensor().clone()),
    ]);
    let mut losses = Vec::new();
    for _ in 0..50 {
        let outputs = net.forward(&inputs)?;
        assert_eq!(outputs["keys"].dims(), [1, 1, 4, 4]);
        let loss = outputs["p"].narrow(2, 3, 1)?.log()?.neg()?.sum_all()?;
        losses.push(loss.to_scalar::<f64>()?);
        let gradients = loss.backward()?;
        for var in [&keys, &values] {
            let gradient = gradients.get(var.as_tensor()).ok_or("a gradient for the cache")?;
            assert!(gradient.sqr()?.sum_all()?.to_scalar::<f64>()? > 0.0);
            var.set(&(var.as_tensor() - (gradient * 0.5)?)?)?;
        }
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]) && losses[49] < 0.5 * losses[0], "{losses:?}");
    Ok(())
}
