//! Gradients against central differences in f64, on random graphs and on functions one by one.

use pilotfish_architectures::{Bert, BertConfig, CausalConfig, CausalNetwork, EncoderNetwork};
use pilotfish_graph::testing::{Feed, random_graph};
use pilotfish_graph::{BinaryOp, DType, Dim, Graph, Literal, ReduceOp, Tensor, UnaryOp, Value};
use pilotfish_training::{Array, Interpreter, Precision};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn array(feed: &Feed) -> Array {
    match feed {
        Feed::Float { shape, values } => Array::float(shape.clone(), values.iter().map(|&v| f64::from(v))),
        Feed::Int { shape, values } => Array::int(shape.clone(), values.iter().copied()),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn moved(values: &[f64], by: &[f64], step: f64) -> Vec<f64> {
    values.iter().zip(by).map(|(value, by)| value + step * by).collect()
}

/// Step of the differences, of fourth order: their error is about `step^4` times the fifth derivative plus
/// `1e-16 / step`.
const STEP: f64 = 5e-5;

/// Holds the gradient in each parameter and float input, along a random direction each, against a central
/// difference. Returns how many agreed and how many had a kink between the two ends. Gradients are multiplied
/// by `spoil` first.
fn check(graph: &Graph, feeds: &[(String, Array)], seed: u64, spoil: f64) -> Fallible<(usize, usize)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut net = Interpreter::new(graph, Precision::F64)?;
    let params: Vec<String> = net.params().map(str::to_owned).collect();
    net.train(&params.iter().map(String::as_str).collect::<Vec<_>>())?;
    let feeds: Vec<(&str, Array)> =
        feeds.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
    let floats =
        feeds.iter().filter(|(_, array)| matches!(array, Array::Float { .. })).map(|(name, _)| *name);
    let wrt: Vec<&str> = params.iter().map(String::as_str).chain(floats).collect();
    let plain = net.run(&feeds)?;
    let (mut agreed, mut kinks) = (0, 0);
    for (output, value) in graph.outputs().iter().filter(|(_, value)| graph.info(*value).dtype == DType::F32)
    {
        let length = plain[output].len();
        let cotangent: Vec<f64> = (0..length).map(|_| rng.random_range(-1.0..1.0)).collect();
        let (values, gradients) = net.vjp(&feeds, output, &cotangent, &wrt)?;
        assert_eq!(values, plain[output]);
        for (name, gradient) in wrt.iter().zip(&gradients) {
            let direction: Vec<f64> = gradient.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
            let mut at = |step: f64| -> Fallible<f64> {
                let mut feeds = feeds.clone();
                if let Some((_, Array::Float { values, .. })) =
                    feeds.iter_mut().find(|(feed, _)| feed == name)
                {
                    *values = moved(values, &direction, step);
                    return Ok(dot(&net.run(&feeds)?[output], &cotangent));
                }
                let before = net.param(name)?;
                net.set_param(name, &moved(&before, &direction, step))?;
                let result = dot(&net.run(&feeds)?[output], &cotangent);
                net.set_param(name, &before)?;
                Ok(result)
            };
            let (low, middle, high) = (at(-STEP)?, at(0.0)?, at(STEP)?);
            let (lowest, highest) = (at(-2.0 * STEP)?, at(2.0 * STEP)?);
            let want = (8.0 * (high - low) - (highest - lowest)) / (12.0 * STEP);
            // Next to nothing unless there is a kink, whatever the gradient.
            let fourth = highest + lowest - 4.0 * (high + low) + 6.0 * middle;
            let got = spoil * dot(gradient, &direction);
            let scale = 1.0 + want.abs() + middle.abs();
            if (got - want).abs() <= 1e-6 * want.abs() + 1e-8 * scale {
                agreed += 1;
            } else if fourth.abs() > 1e-6 * STEP * scale {
                kinks += 1;
            } else {
                let what = graph.info(*value);
                return Err(format!(
                    "seed {seed}: d {output} ({what:?}) / d {name}: {got}, not {want}\n{graph:#?}"
                )
                .into());
            }
        }
    }
    Ok((agreed, kinks))
}

#[test]
fn random_graphs_have_the_gradients_of_differences() -> Fallible {
    let (mut agreed, mut kinks) = (0, 0);
    for seed in 0..400 {
        let (graph, feeds) = random_graph(seed)?;
        let feeds: Vec<(String, Array)> =
            feeds.iter().map(|(name, feed)| (name.clone(), array(feed))).collect();
        let (more, bent) = check(&graph, &feeds, seed, 1.0)?;
        (agreed, kinks) = (agreed + more, kinks + bent);
    }
    assert!(agreed > 2000 && kinks * 100 <= agreed, "{agreed} agreed, {kinks} kinks");
    Ok(())
}

/// The same in both precisions, within what f32 can do.
#[test]
fn both_precisions_agree() -> Fallible {
    let mut compared = 0;
    for seed in 0..400 {
        let (graph, feeds) = random_graph(seed)?;
        let feeds: Vec<(&str, Array)> =
            feeds.iter().map(|(name, feed)| (name.as_str(), array(feed))).collect();
        let single = Interpreter::new(&graph, Precision::F32)?.run(&feeds)?;
        let double = Interpreter::new(&graph, Precision::F64)?.run(&feeds)?;
        for (name, want) in &double {
            assert_eq!(single[name].len(), want.len());
            for (got, want) in single[name].iter().zip(want) {
                assert!(
                    (got - want).abs() <= 1e-4 * (1.0 + want.abs()),
                    "seed {seed}, {name}: {got}, {want}"
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 10_000);
    Ok(())
}

/// Rows that see what came before them, at most `window` back.
fn causal(rows: usize, window: usize) -> Array {
    let visible = |i: usize| i % rows <= i / rows && i / rows - i % rows < window;
    Array::float([1, 1, rows, rows], (0..rows * rows).map(|i| if visible(i) { 0.0 } else { -1e9 }))
}

/// Whole networks, tied weights, window and all: every parameter.
#[test]
fn architectures_have_the_gradients_of_differences() -> Fallible {
    let ids = Array::int([2, 4], [1, 5, 5, 0, 7, 2, 10, 3]);
    let positions = Array::int([2, 4], [0, 1, 2, 3, 4, 5, 6, 7]);
    let feeds = |names: &[(&str, Array)]| -> Vec<(String, Array)> {
        let all = [("ids", ids.clone()), ("positions", positions.clone())];
        all.iter().chain(names).map(|(name, array)| ((*name).to_owned(), array.clone())).collect()
    };
    let (full, local) = (("mask", causal(4, 4)), ("mask_local", causal(4, 2)));
    let llama = CausalConfig::llama(11, 8, 2, [4, 2], 12);
    let network = CausalNetwork::random(llama, 1)?.whole("B".into(), "T".into())?;
    // Nine matrices and two norms a layer, the table and the last norm; the mask is an input.
    let (agreed, kinks) = check(&network, &feeds(std::slice::from_ref(&full)), 1, 1.0)?;
    assert_eq!((agreed, kinks), (network.params().len() + 1, 0));
    let gemma = CausalConfig {
        head_dim: 4,
        attention_scale: 0.5,
        windows: vec![Some(2), None],
        ..CausalConfig::gemma3(11, 8, 2, [4, 2], 12)
    };
    let network = CausalNetwork::random(gemma, 2)?.whole("B".into(), "T".into())?;
    let (agreed, kinks) = check(&network, &feeds(&[full, local]), 2, 1.0)?;
    assert_eq!((agreed, kinks), (network.params().len() + 2, 0));
    let config = BertConfig { vocab: 11, width: 8, layers: 2, heads: 2, ffn: 12, context: 8, norm_eps: 1e-5 };
    let network = Bert::random(config, 3)?.graph()?;
    let mask = Array::float([2, 1, 4, 4], (0..32).map(|i| if i % 4 == 3 { -1e9 } else { 0.0 }));
    let (agreed, kinks) = check(&network, &feeds(&[("mask", mask)]), 3, 1.0)?;
    assert_eq!((agreed, kinks), (network.params().len() + 1, 0));
    Ok(())
}

/// As many layers as large models have: candle follows operations by recursion.
#[test]
fn gradients_pass_many_layers() -> Fallible {
    let network = CausalNetwork::random(CausalConfig::llama(5, 4, 64, [2, 1], 4), 1)?;
    let graph = network.whole(1.into(), "T".into())?;
    let mut net = Interpreter::new(&graph, Precision::F32)?;
    let first = "model.layers.0.self_attn.q_proj.weight";
    net.train(&[first])?;
    let feeds = [
        ("ids", Array::int([1, 2], [1, 2])),
        ("positions", Array::int([1, 2], [0, 1])),
        ("mask", causal(2, 2)),
    ];
    let (_, gradients) = net.vjp(&feeds, "logits", &[1.0; 10], &[first])?;
    assert!(gradients[0].iter().any(|&slope| slope != 0.0), "{gradients:?}");
    Ok(())
}

/// A gradient that is wrong by one part in ten thousand is caught.
#[test]
fn a_wrong_gradient_is_caught() -> Fallible {
    let mut g = Graph::new("cube");
    let x = g.input("x", [1], DType::F32)?;
    let y = g.mul(x, x)?;
    let y = g.mul(y, x)?;
    g.output("y", y)?;
    let feeds = [("x".to_owned(), Array::float([1], [0.7]))];
    assert_eq!(check(&g, &feeds, 1, 1.0)?, (1, 0));
    assert!(check(&g, &feeds, 1, 1.0001).is_err());
    Ok(())
}

/// `y = f(x)` for one operand, or `f(x, z)` for two; the slopes in each.
fn slopes(
    build: impl Fn(&mut Graph, Value, Value) -> pilotfish_graph::Result<Value>,
    x: &[f64],
    z: &[f64],
) -> Fallible<[Vec<f64>; 2]> {
    let mut g = Graph::new("slopes");
    let vx = g.input("x", [x.len()], DType::F32)?;
    let vz = g.input("z", [z.len()], DType::F32)?;
    let y = build(&mut g, vx, vz)?;
    g.output("y", y)?;
    let net = Interpreter::new(&g, Precision::F64)?;
    let feeds = [
        ("x", Array::float([x.len()], x.iter().copied())),
        ("z", Array::float([z.len()], z.iter().copied())),
    ];
    let length = net.run(&feeds)?["y"].len();
    let (_, gradients) = net.vjp(&feeds, "y", &vec![1.0; length], &["x", "z"])?;
    let [dx, dz] = <[Vec<f64>; 2]>::try_from(gradients).map_err(|_| "two gradients")?;
    Ok([dx, dz])
}

/// What happens where a function has no derivative: one of its slopes, never the sum of several.
#[test]
fn slopes_at_kinks() -> Fallible {
    let unary = |op, x: &[f64]| {
        Ok::<_, Box<dyn std::error::Error>>(slopes(|g, x, _| g.unary(op, x), x, &[])?[0].clone())
    };
    assert_eq!(unary(UnaryOp::Relu, &[-1.0, 0.0, 2.0])?, [0.0, 0.0, 1.0]);
    assert_eq!(unary(UnaryOp::Abs, &[-1.0, 2.0])?, [-1.0, 1.0]);
    let max = slopes(|g, x, z| g.binary(BinaryOp::Max, x, z), &[1.0, 3.0, 2.0], &[2.0, 1.0, 2.0])?;
    assert_eq!(max, [vec![0.0, 1.0, 0.5], vec![1.0, 0.0, 0.5]]);
    let min = slopes(|g, x, z| g.binary(BinaryOp::Min, x, z), &[1.0, 3.0, 2.0], &[2.0, 1.0, 2.0])?;
    assert_eq!(min, [vec![1.0, 0.0, 0.5], vec![0.0, 1.0, 0.5]]);
    // Of equal entries the first gets all.
    assert_eq!(
        slopes(|g, x, _| g.reduce(ReduceOp::Max, x, 0, true), &[1.0, 5.0, 5.0], &[])?[0],
        [0.0, 1.0, 0.0]
    );
    assert_eq!(slopes(|g, x, _| Ok(g.top_k(x, 2)?.0), &[5.0, 1.0, 5.0], &[])?[0], [1.0, 0.0, 1.0]);
    Ok(())
}

/// Powers: of negative numbers with whole exponents, in the exponent, and at 0.
#[test]
fn slopes_of_powers() -> Fallible {
    let pow = |a: &[f64], b: &[f64]| slopes(|g, x, z| g.binary(BinaryOp::Pow, x, z), a, b);
    // d a^b / da = b a^(b-1); d a^b / db = a^b ln a.
    assert_eq!(
        pow(&[-2.0, -2.0, 0.0, 0.0, 3.0], &[2.0, 3.0, 2.0, 0.0, 1.0])?[0],
        [-4.0, 12.0, 0.0, 0.0, 1.0]
    );
    let two = std::f64::consts::LN_2;
    let [_, in_exponent] = pow(&[2.0, 2.0, -2.0], &[3.0, -1.0, 2.0])?;
    assert_eq!(in_exponent, [8.0 * two, 0.5 * two, 0.0]);
    // One exponent for several bases: its slope is the sum.
    let [in_base, in_exponent] = pow(&[1.0, 2.0], &[2.0])?;
    assert_eq!((in_base, in_exponent), (vec![2.0, 4.0], vec![4.0 * two]));
    Ok(())
}

/// Gradients that would be lost or doubled: repeated rows, overlapping slices, broadcasting, both sides of a
/// product, values used twice, an operand that is cut off by whole numbers.
#[test]
fn gradients_add_up() -> Fallible {
    let index = |g: &mut Graph, values: &[i64]| {
        g.constant(Literal::I64 { shape: vec![values.len()], values: values.to_vec() })
    };
    let picked = slopes(
        |g, x, _| {
            let ids = index(g, &[2, 0, 2, 2])?;
            g.gather(x, ids, 0)
        },
        &[1.0; 4],
        &[],
    )?;
    assert_eq!(picked[0], [1.0, 0.0, 3.0, 0.0]);
    let sliced = slopes(
        |g, x, _| {
            let (a, b) = (g.slice(x, 0, 0, 3)?, g.slice(x, 0, 1, 4)?);
            g.concat(&[a, b, x], 0)
        },
        &[1.0; 5],
        &[],
    )?;
    assert_eq!(sliced[0], [2.0, 3.0, 3.0, 2.0, 1.0]);
    // (x as a column) * (z as a row): x gets the sum of z, and z that of x.
    let outer = slopes(
        |g, x, z| {
            let x = g.reshape(x, [Dim::from(2), 1.into()])?;
            g.mul(x, z)
        },
        &[1.0, 2.0],
        &[10.0, 20.0, 30.0],
    )?;
    assert_eq!(outer, [vec![60.0, 60.0], vec![3.0, 3.0, 3.0]]);
    let squared = slopes(
        |g, x, _| {
            let (row, column) =
                (g.reshape(x, [Dim::from(1), 2.into()])?, g.reshape(x, [Dim::from(2), 1.into()])?);
            g.matmul(row, column)
        },
        &[3.0, 5.0],
        &[],
    )?;
    assert_eq!(squared[0], [6.0, 10.0]);
    let cut = slopes(
        |g, x, _| {
            let whole = g.cast(x, DType::I64)?;
            let whole = g.cast(whole, DType::F32)?;
            g.mul(x, whole)
        },
        &[2.75, -1.5],
        &[],
    )?;
    assert_eq!(cut[0], [2.0, -1.0]);
    Ok(())
}

/// Entries hidden by minus infinity neither receive nor spread gradients, and nothing becomes NaN.
#[test]
fn hidden_entries_have_no_gradient() -> Fallible {
    let soft = slopes(
        |g, x, z| {
            let x = g.add(x, z)?;
            let p = g.softmax(x)?;
            g.slice(p, 0, 0, 1)
        },
        &[0.0, 0.0, 7.0],
        &[0.0, 0.0, f64::NEG_INFINITY],
    )?;
    assert_eq!(soft[0], [0.25, -0.25, 0.0]);
    assert_eq!(soft[1], [0.25, -0.25, 0.0]);
    Ok(())
}

/// Gradients of a softmax cross entropy are probabilities minus the target.
#[test]
fn cross_entropy_by_its_closed_form() -> Fallible {
    let mut g = Graph::new("linear");
    let x = g.input("x", [1, 2], DType::F32)?;
    let w = g.param("w", Tensor::new([3, 2], vec![0.0; 6])?)?;
    let y = g.linear(x, w, None)?;
    let p = g.softmax(y)?;
    let log = g.unary(UnaryOp::Log, p)?;
    g.output("log", log)?;
    let mut net = Interpreter::new(&g, Precision::F64)?;
    net.train(&["w"])?;
    let (_, gradients) =
        net.vjp(&[("x", Array::float([1, 2], [3.0, 6.0]))], "log", &[0.0, -1.0, 0.0], &["w"])?;
    let want = [1.0, 2.0, -2.0, -4.0, 1.0, 2.0];
    assert!(gradients[0].iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12), "{gradients:?}");
    Ok(())
}

/// A matrix that is not trained passes on the same gradient as one that is.
#[test]
fn a_frozen_matrix_passes_on_the_same_gradient() -> Fallible {
    let mut g = Graph::new("two layers");
    let x = g.input("x", vec![Dim::symbol("N"), 3.into(), 4.into()], DType::F32)?;
    let numbers = |count: usize, by: f32| (0..count).map(|at| (at as f32 * by).sin()).collect::<Vec<_>>();
    let first = g.param("first", Tensor::new([5, 4], numbers(20, 0.7))?)?;
    let bias = g.param("bias", Tensor::new([5], numbers(5, 1.1))?)?;
    let second = g.param("second", Tensor::new([2, 5], numbers(10, 0.3))?)?;
    let h = g.linear(x, first, Some(bias))?;
    let h = g.unary(UnaryOp::Tanh, h)?;
    let y = g.linear(h, second, None)?;
    g.output("y", y)?;
    let feeds = [("x", Array::float([2, 3, 4], (0..24).map(|at| f64::from(at).cos())))];
    let cotangent: Vec<f64> = (0..12).map(|at| f64::from(at) - 5.5).collect();
    let mut net = Interpreter::new(&g, Precision::F64)?;
    let plain = net.run(&feeds)?;
    let frozen = net.vjp(&feeds, "y", &cotangent, &["x"])?;
    assert_eq!(frozen.0, plain["y"]);
    net.train(&["first", "second"])?;
    let trained = net.vjp(&feeds, "y", &cotangent, &["x", "first"])?;
    assert_eq!(frozen, (trained.0, vec![trained.1[0].clone()]));
    // A trained matrix behind a frozen one, whose gradient must pass through it.
    let mut half = Interpreter::new(&g, Precision::F64)?;
    half.train(&["first"])?;
    assert_eq!(half.vjp(&feeds, "y", &cotangent, &["first"])?.1[0], trained.1[1]);
    Ok(())
}

/// In a cache and in what is added to a window's own keys and values.
#[test]
fn caches_that_move() -> Fallible {
    let config = CausalConfig { tied: false, ..CausalConfig::llama(7, 8, 2, [2, 1], 12) };
    let graph = CausalNetwork::random(config, 5)?.adaptable()?;
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut float = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        Array::float(shape.to_vec(), (0..count).map(|_| rng.random_range(-0.5..0.5)).collect::<Vec<f64>>())
    };
    let mut feeds = vec![
        ("ids".to_owned(), Array::int([1, 3], [1, 6, 2])),
        ("positions".into(), Array::int([1, 3], [4, 5, 6])),
        (
            "mask".into(),
            Array::float([1, 1, 3, 5], (0..15).map(|at| if at % 5 <= at / 5 + 2 { 0.0 } else { -1e9 })),
        ),
    ];
    for layer in 0..2 {
        for kind in ["key", "value"] {
            feeds.push((format!("past_{kind}.{layer}"), float(&[1, 1, 2, 4])));
            feeds.push((format!("added_{kind}.{layer}"), float(&[1, 3, 4])));
        }
    }
    let (agreed, kinks) = check(&graph, &feeds, 1, 1.0)?;
    assert!(agreed > 20 && kinks == 0, "{agreed} agreed, {kinks} kinks");
    Ok(())
}
