//! Values worked by hand, one operation at a time.

use pilotfish_graph::{
    AttentionConfig, BinaryOp, DType, Dim, Graph, Literal, Op, ReduceOp, Result as Built, RopeScaling, Shape,
    Storage, Tensor, UnaryOp, Value,
};
use pilotfish_training::{Array, Interpreter, Precision};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The result of a graph of one node or a few over inputs `x0`, `x1`, ..., in both precisions.
fn run(inputs: &[Array], build: impl Fn(&mut Graph, &[Value]) -> Built<Value>) -> Fallible<Vec<f64>> {
    let mut g = Graph::new("values");
    let mut operands = Vec::new();
    let mut feeds = Vec::new();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    for (name, array) in names.iter().zip(inputs) {
        let dtype = match array {
            Array::Float { .. } => DType::F32,
            Array::Int { .. } => DType::I64,
            Array::Bool { .. } => DType::Bool,
        };
        operands.push(g.input(name, Shape::fixed(array.shape()), dtype)?);
        feeds.push((name.as_str(), array.clone()));
    }
    let y = build(&mut g, &operands)?;
    g.output("y", y)?;
    let double = Interpreter::new(&g, Precision::F64)?.run(&feeds)?.remove("y").unwrap_or_default();
    let single = Interpreter::new(&g, Precision::F32)?.run(&feeds)?.remove("y").unwrap_or_default();
    close(&single, &double, 1e-5);
    Ok(double)
}

fn close(got: &[f64], want: &[f64], within: f64) {
    assert_eq!(got.len(), want.len(), "{got:?} {want:?}");
    let same = |(got, want): (&f64, &f64)| {
        got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= within * (1.0 + want.abs())
    };
    assert!(got.iter().zip(want).all(same), "{got:?}, wanted {want:?}");
}

fn float<const N: usize>(values: [f64; N]) -> Array {
    Array::float([N], values)
}

fn int<const N: usize>(values: [i64; N]) -> Array {
    Array::int([N], values)
}

#[test]
fn functions_of_one_operand() -> Fallible {
    use UnaryOp::*;
    let (e, pi) = (std::f64::consts::E, std::f64::consts::PI);
    let cases: [(UnaryOp, f64, f64); 24] = [
        (Neg, 2.0, -2.0),
        (Abs, -2.5, 2.5),
        (Exp, 1.0, e),
        (Log, e, 1.0),
        (Sqrt, 6.25, 2.5),
        (Reciprocal, 8.0, 0.125),
        (Sin, pi / 6.0, 0.5),
        (Cos, pi / 3.0, 0.5),
        // tanh(ln 3) = (3 - 1/3) / (3 + 1/3)
        (Tanh, 3f64.ln(), 0.8),
        // Abramowitz and Stegun, table 7.1
        (Erf, 0.5, 0.520_499_877_8),
        (Erf, 1.0, 0.842_700_792_9),
        (Sigmoid, 3f64.ln(), 0.75),
        (Sigmoid, -1000.0, 0.0),
        (Sigmoid, 1000.0, 1.0),
        (Relu, -3.0, 0.0),
        (Relu, 3.0, 3.0),
        (Silu, 3f64.ln(), 0.75 * 1.098_612_288_7),
        (Silu, -1000.0, 0.0),
        // x Phi(x), with Phi from the table of the normal law
        (Gelu, 1.0, 0.841_344_746_1),
        (Gelu, -1.0, -0.158_655_253_9),
        (Gelu, 0.0, 0.0),
        // 1/2 (1 + tanh(0.797884560803 * 1.044715))
        (GeluTanh, 1.0, 0.841_191_990_6),
        (GeluTanh, -1.0, -0.158_808_009_4),
        (GeluTanh, -100.0, 0.0),
    ];
    for (op, x, want) in cases {
        // Constants in definitions are f32, hence not closer.
        close(&run(&[float([x])], |g, v| g.unary(op, v[0]))?, &[want], 2e-7);
    }
    let truth = Array::bool([2], [true, false]);
    assert_eq!(run(&[truth], |g, v| g.unary(Not, v[0]))?, [0.0, 1.0]);
    Ok(())
}

#[test]
fn functions_of_two_operands() -> Fallible {
    use BinaryOp::*;
    let (a, b) = ([7.0, -2.0, 3.0], [2.0, 3.0, 3.0]);
    let cases: [(BinaryOp, [f64; 3]); 12] = [
        (Add, [9.0, 1.0, 6.0]),
        (Sub, [5.0, -5.0, 0.0]),
        (Mul, [14.0, -6.0, 9.0]),
        (Div, [3.5, -2.0 / 3.0, 1.0]),
        (Pow, [49.0, -8.0, 27.0]),
        (Max, [7.0, 3.0, 3.0]),
        (Min, [2.0, -2.0, 3.0]),
        (Less, [0.0, 1.0, 0.0]),
        (LessOrEqual, [0.0, 1.0, 1.0]),
        (Greater, [1.0, 0.0, 0.0]),
        (GreaterOrEqual, [1.0, 0.0, 1.0]),
        (Equal, [0.0, 0.0, 1.0]),
    ];
    for (op, want) in cases {
        close(&run(&[float(a), float(b)], |g, v| g.binary(op, v[0], v[1]))?, &want, 1e-15);
        // Integers: only the quotient differs, which is cut towards zero.
        let want = if op == Div { [3.0, 0.0, 1.0] } else { want };
        let integers = [int([7, -2, 3]), int([2, 3, 3])];
        assert_eq!(run(&integers, |g, v| g.binary(op, v[0], v[1]))?, want, "{op:?}");
    }
    let truths = [Array::bool([2, 1], [true, false]), Array::bool([2], [true, false])];
    assert_eq!(run(&truths, |g, v| g.binary(And, v[0], v[1]))?, [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(run(&truths, |g, v| g.binary(Or, v[0], v[1]))?, [1.0, 1.0, 1.0, 0.0]);
    // [2, 1] and [3] become [2, 3].
    let apart = [Array::float([2, 1], [10.0, 20.0]), float([1.0, 2.0, 3.0])];
    assert_eq!(run(&apart, |g, v| g.add(v[0], v[1]))?, [11.0, 12.0, 13.0, 21.0, 22.0, 23.0]);
    // Wraps, and does not stop the program.
    let ends = [int([i64::MAX, i64::MIN, i64::MIN]), int([1, -1, -1])];
    let wrapped = run(&ends, |g, v| g.binary(Mul, v[0], v[1]))?;
    assert_eq!(wrapped, [i64::MAX as f64, i64::MIN as f64, i64::MIN as f64]);
    assert_eq!(
        run(&ends, |g, v| g.binary(Div, v[0], v[1]))?,
        [i64::MAX as f64, i64::MIN as f64, i64::MIN as f64]
    );
    assert_eq!(run(&ends, |g, v| g.add(v[0], v[1]))?[0], i64::MIN as f64);
    Ok(())
}

#[test]
fn choices_and_casts() -> Fallible {
    let condition = Array::bool([2, 1], [true, false]);
    let chosen = run(&[condition, float([1.0, 2.0]), float([-5.0])], |g, v| g.select(v[0], v[1], v[2]))?;
    assert_eq!(chosen, [1.0, 2.0, -5.0, -5.0]);
    let floats = float([2.9, -2.9, 0.25, 0.0]);
    assert_eq!(run(std::slice::from_ref(&floats), |g, v| g.cast(v[0], DType::I64))?, [2.0, -2.0, 0.0, 0.0]);
    // Everything but 0 is true, and true is 1.
    let twice = |g: &mut Graph, v: &[Value]| {
        let truth = g.cast(v[0], DType::Bool)?;
        g.cast(truth, DType::F32)
    };
    assert_eq!(run(&[floats], twice)?, [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(run(&[int([3, 256, 0])], twice)?, [1.0, 1.0, 0.0]);
    Ok(())
}

#[test]
fn products() -> Fallible {
    let (a, b) =
        (Array::float([2, 3], [1., 2., 3., 4., 5., 6.]), Array::float([3, 2], [1., 0., 0., 1., 1., 1.]));
    assert_eq!(run(&[a.clone(), b], |g, v| g.matmul(v[0], v[1]))?, [4.0, 5.0, 10.0, 11.0]);
    // Leading dimensions [2, 1] and [3] become [2, 3]; rows of one number.
    let left = Array::float([2, 1, 1, 1], [2.0, 3.0]);
    let right = Array::float([3, 1, 1], [1.0, 10.0, 100.0]);
    assert_eq!(run(&[left, right], |g, v| g.matmul(v[0], v[1]))?, [2.0, 20.0, 200.0, 3.0, 30.0, 300.0]);
    // x w^T + b
    let linear = |g: &mut Graph, v: &[Value]| {
        let w = g.param("w", Tensor::new([2, 3], vec![1.0, 1.0, 1.0, 0.0, 0.0, -1.0])?)?;
        let b = g.param("b", Tensor::new([2], vec![0.5, 100.0])?)?;
        g.linear(v[0], w, Some(b))
    };
    assert_eq!(run(&[a], linear)?, [6.5, 97.0, 15.5, 94.0]);
    assert_eq!(run(&[float([1.0, 2.0, 3.0])], linear)?, [6.5, 97.0]);
    assert_eq!(run(&[Array::float([0, 3], [])], linear)?, [0.0; 0]);
    Ok(())
}

/// Int4 in blocks of 16: range -1.5..2.25 in 15 steps of 0.25, so quarters are exact and 0.3 becomes 0.25.
#[test]
fn quantised_products_use_what_is_stored() -> Fallible {
    let mut weights = vec![0.0f32; 16];
    weights[..4].copy_from_slice(&[-1.5, 2.25, 0.5, 0.3]);
    for (storage, within) in [(Storage::Int4 { block: 16 }, 0.0), (Storage::Int8 { block: 16 }, 0.01)] {
        let mut g = Graph::new("quantised");
        let x = g.input("x", [Dim::symbol("T"), 16.into()], DType::F32)?;
        let w = g.param("w", Tensor::new([1, 16], weights.clone())?)?;
        let y = g.apply(Op::Linear(storage), &[x, w])?[0];
        g.output("y", y)?;
        let mut net = Interpreter::new(&g, Precision::F64)?;
        let eye = Array::float([16, 16], (0..256).map(|i| if i % 17 == 0 { 1.0 } else { 0.0 }));
        let feeds = [("x", eye)];
        let got = net.run(&feeds)?["y"].clone();
        let want = [-1.5, 2.25, 0.5, if within == 0.0 { 0.25 } else { 0.3 }];
        close(&got[..4], &want, within);
        // Exactly the numbers of the quantiser.
        let (bits, values) = (if within == 0.0 { 4 } else { 8 }, weights.clone());
        let stored = pilotfish_graph::quantize::quantize(&values, [1, 16], bits, 16)?;
        let stored = pilotfish_graph::quantize::dequantize(&stored);
        assert_eq!(got, stored.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        // New numbers are quantised anew; they cannot be trained.
        net.set_param("w", &[3.0; 16])?;
        close(&net.run(&feeds)?["y"], &[3.0; 16], 1e-6);
        assert!(net.train(&["w"]).is_err());
        assert!(net.set_param("w", &[f64::NAN; 16]).is_err());
        close(&net.run(&feeds)?["y"], &[3.0; 16], 1e-6);
    }
    Ok(())
}

#[test]
fn moving_data() -> Fallible {
    let x = Array::float([2, 3], [1., 2., 3., 4., 5., 6.]);
    let on = |build: &dyn Fn(&mut Graph, Value) -> Built<Value>| {
        run(std::slice::from_ref(&x), |g, v| build(g, v[0]))
    };
    assert_eq!(on(&|g, x| g.transpose(x, &[1, 0]))?, [1., 4., 2., 5., 3., 6.]);
    assert_eq!(on(&|g, x| g.concat(&[x, x], 1))?, [1., 2., 3., 1., 2., 3., 4., 5., 6., 4., 5., 6.]);
    assert_eq!(on(&|g, x| g.slice(x, 1, 1, 3))?, [2., 3., 5., 6.]);
    // The elements' order is that of the result of the transposition.
    assert_eq!(
        on(&|g, x| {
            let turned = g.transpose(x, &[1, 0])?;
            let flat = g.reshape(turned, [Dim::from(6)])?;
            g.slice(flat, 0, 1, 4)
        })?,
        [4., 2., 5.]
    );
    assert_eq!(
        on(&|g, x| {
            let ids = g.constant(Literal::I64 { shape: vec![2, 2], values: vec![2, 0, 0, 1] })?;
            g.gather(x, ids, 1)
        })?,
        [3., 1., 1., 2., 6., 4., 4., 5.]
    );
    assert_eq!(
        on(&|g, x| {
            let id = g.constant(Literal::I64 { shape: vec![], values: vec![1] })?;
            g.gather(x, id, 0)
        })?,
        [4., 5., 6.]
    );
    let ids = Array::int([1, 2], [1, 1]);
    assert_eq!(run(&[x, ids], |g, v| g.embedding(v[0], v[1]))?, [4., 5., 6., 4., 5., 6.]);
    Ok(())
}

#[test]
fn reductions_and_order() -> Fallible {
    let x = Array::float([2, 3], [1., 5., 3., 8., 2., 8.]);
    let reduce = |op, axis| run(std::slice::from_ref(&x), |g, v| g.reduce(op, v[0], axis, false));
    assert_eq!(reduce(ReduceOp::Sum, 1)?, [9., 18.]);
    assert_eq!(reduce(ReduceOp::Mean, 1)?, [3., 6.]);
    assert_eq!(reduce(ReduceOp::Max, 1)?, [5., 8.]);
    assert_eq!(reduce(ReduceOp::Max, 0)?, [8., 5., 8.]);
    assert_eq!(reduce(ReduceOp::Sum, 0)?, [9., 7., 11.]);
    // Equal entries: the first comes first.
    assert_eq!(run(std::slice::from_ref(&x), |g, v| Ok(g.top_k(v[0], 2)?.0))?, [5., 3., 8., 8.]);
    assert_eq!(run(&[x], |g, v| Ok(g.top_k(v[0], 2)?.1))?, [1., 2., 0., 2.]);
    let odd = float([f64::NAN, -0.0, 0.0, f64::INFINITY]);
    assert_eq!(run(&[odd], |g, v| Ok(g.top_k(v[0], 4)?.1))?, [3., 1., 2., 0.]);
    // exp(ln 1), exp(ln 2), exp(ln 5) over 8; large numbers do not overflow.
    let soft = |shift: f64| float([shift, shift + 2f64.ln(), shift + 5f64.ln()]);
    for shift in [0.0, 900.0] {
        close(&run(&[soft(shift)], |g, v| g.softmax(v[0]))?, &[0.125, 0.25, 0.625], 1e-4);
    }
    assert_eq!(run(&[float([0.0, f64::NEG_INFINITY, 0.0])], |g, v| g.softmax(v[0]))?, [0.5, 0.0, 0.5]);
    Ok(())
}

#[test]
fn norms_by_their_closed_forms() -> Fallible {
    // Mean square of (3, 4, 0, 0) is 25/4; with eps 11/4 the root is 3.
    let x = float([3., 4., 0., 0.]);
    let rms = run(&[x], |g, v| {
        let w = g.param("w", Tensor::new([4], vec![1.0, 3.0, 1.0, 1.0])?)?;
        g.rms_norm(v[0], w, 2.75)
    })?;
    close(&rms, &[1.0, 4.0, 0.0, 0.0], 1e-7);
    // Mean of (1, 3, 5, 7) is 4, its variance 5; with eps 4 the root is 3.
    let layer = run(&[float([1., 3., 5., 7.])], |g, v| {
        let w = g.param("w", Tensor::new([4], vec![1.0, 1.0, 3.0, 1.0])?)?;
        let b = g.param("b", Tensor::new([4], vec![0.0, 10.0, 0.0, 0.0])?)?;
        g.layer_norm(v[0], w, b, 4.0)
    })?;
    close(&layer, &[-1.0, 10.0 - 1.0 / 3.0, 1.0, 1.0], 1e-7);
    Ok(())
}

/// With a head of two numbers the frequency is 1: the pair turns by the position in radians.
#[test]
fn rotary_turns_by_the_position() -> Fallible {
    let turn = |scaling, x: Array, positions: Array, head_dim| {
        run(&[x, positions], |g, v| g.rotary(v[0], v[1], head_dim, 100.0, scaling))
    };
    let angle = |a: f64| [a.cos(), a.sin()];
    // Positions need not ascend; two heads turn alike.
    let x = Array::float([1, 3, 4], [1., 0., 0., 1., 1., 0., 0., 1., 1., 0., 0., 1.]);
    let positions = Array::int([1, 3], [0, 7, 2]);
    let want: Vec<f64> =
        [0.0, 7.0, 2.0].iter().flat_map(|&p| [angle(p)[0], angle(p)[1], -angle(p)[1], angle(p)[0]]).collect();
    close(&turn(RopeScaling::None, x, positions, 2)?, &want, 1e-12);
    // Four numbers: entry 0 turns with entry 2 by p, entry 1 with entry 3 by p / sqrt(100).
    let x = Array::float([1, 1, 4], [1., 1., 0., 0.]);
    let at = |p| Array::int([1, 1], [p]);
    let [(c0, s0), (c1, s1)] = [5.0f64, 0.5].map(|a| (a.cos(), a.sin()));
    close(&turn(RopeScaling::None, x, at(5), 4)?, &[c0, c1, s0, s1], 1e-7);
    let one = || Array::float([1, 1, 2], [1., 0.]);
    close(&turn(RopeScaling::Linear { factor: 4.0 }, one(), at(6), 2)?, &angle(1.5), 1e-12);
    // The wavelength is 2 pi = 6.28.
    let pi = std::f64::consts::PI;
    let llama = |low, high, original| RopeScaling::Llama3 { factor: 4.0, low, high, original };
    // Short (6.28 < 8192 / 4): as it was. Long (6.28 > 4 / 1): divided by 4.
    close(&turn(llama(1.0, 4.0, 8192.0), one(), at(3), 2)?, &angle(3.0), 1e-12);
    close(&turn(llama(1.0, 4.0, 4.0), one(), at(3), 2)?, &angle(0.75), 1e-12);
    // Between 4 pi / 3 and 4 pi: halfway, (2 - 1) / (3 - 1), so (1/4 + 1) / 2.
    close(&turn(llama(1.0, 3.0, 4.0 * pi), one(), at(3), 2)?, &angle(1.875), 1e-7);
    Ok(())
}

fn attention(inputs: &[Array], config: AttentionConfig, result: usize) -> Fallible<Vec<f64>> {
    run(inputs, |g, v| {
        let past = (v.len() == 6).then(|| (v[4], v[5]));
        let (y, keys, values) = g.attention([v[0], v[1], v[2]], v[3], past, config)?;
        Ok([y, keys, values][result])
    })
}

const HIDDEN: f64 = f64::NEG_INFINITY;

/// A cached token, then the tree: a root with two children, each seeing its own path only. With no scores a row
/// is the mean of what it sees.
#[test]
fn attention_over_a_tree() -> Fallible {
    let config = AttentionConfig { heads: 1, kv_heads: 1, scale: 1.0, softcap: None };
    let mask = [0., 0., HIDDEN, HIDDEN, 0., 0., 0., HIDDEN, 0., 0., HIDDEN, 0.];
    let inputs = |q: [f64; 3]| {
        [
            Array::float([1, 3, 1], q),
            Array::float([1, 3, 1], [0., 2f64.ln(), 0.]),
            Array::float([1, 3, 1], [3., 30., 300.]),
            Array::float([1, 1, 3, 4], mask),
            Array::float([1, 1, 1, 1], [0.]),
            Array::float([1, 1, 1, 1], [6.]),
        ]
    };
    close(&attention(&inputs([0.0; 3]), config, 0)?, &[4.5, 13.0, 103.0], 1e-14);
    assert_eq!(attention(&inputs([0.0; 3]), config, 2)?, [6., 3., 30., 300.]);
    close(&attention(&inputs([0.0; 3]), config, 1)?, &[0., 0., 2f64.ln(), 0.], 1e-15);
    // Scores 0, 0, ln 2 for the first child: a quarter, a quarter, a half. Nobody else sees its key.
    close(&attention(&inputs([1.0; 3]), config, 0)?, &[4.5, 17.25, 103.0], 1e-14);
    // Scores doubled by the scale: one, one, four.
    let scaled = AttentionConfig { scale: 2.0, ..config };
    close(&attention(&inputs([1.0; 3]), scaled, 0)?[1..2], &[129.0 / 6.0], 1e-14);
    // cap * tanh(ln 2 / cap) with cap ln 2 / ln 3: tanh(ln 3) = 0.8, so the score is 0.8 cap.
    let cap = 2f64.ln() / 3f64.ln();
    let capped = AttentionConfig { softcap: Some(cap as f32), ..config };
    let weight = (0.8 * cap).exp();
    close(&attention(&inputs([1.0; 3]), capped, 0)?[1..2], &[(9.0 + 30.0 * weight) / (2.0 + weight)], 1e-6);
    Ok(())
}

/// Four query heads on two key heads: heads 0 and 1 use the first, 2 and 3 the second. Two texts, one mask.
#[test]
fn attention_in_groups() -> Fallible {
    let config = AttentionConfig { heads: 4, kv_heads: 2, scale: 1.0, softcap: None };
    let two = 2f64.ln();
    let inputs = [
        // Rows of four heads; the key of the first token is (1, 2) and that of the second (0, 0).
        Array::float([2, 1, 4], [two, 0.0, two, 0.0, 0.0, 0.0, 0.0, -two]),
        Array::float([2, 1, 2], [0.0, 0.0, 0.0, 0.0]),
        Array::float([2, 1, 2], [0.0, 0.0, 3.0, 5.0]),
        Array::float([1, 1, 1, 2], [0.0, 0.0]),
        Array::float([2, 2, 1, 1], [1.0, 2.0, 1.0, 2.0]),
        Array::float([2, 2, 1, 1], [6.0, 10.0, 9.0, 15.0]),
    ];
    // First text: weights of the past 2/3, 1/2, 4/5, 1/2 of 6, 6, 10, 10. Second: 1/2, 1/2, 1/2, 1/5.
    let want = [4.0, 3.0, 8.0, 5.0, 6.0, 6.0, 10.0, 5.0 + 2.0];
    close(&attention(&inputs, config, 0)?, &want, 1e-14);
    // An empty past is none.
    let mut empty = inputs.clone();
    empty[3] = Array::float([1, 1, 1, 1], [0.0]);
    empty[4] = Array::float([2, 2, 0, 1], []);
    empty[5] = Array::float([2, 2, 0, 1], []);
    assert_eq!(attention(&empty, config, 0)?, [0., 0., 0., 0., 3., 3., 5., 5.]);
    assert_eq!(attention(&empty[..4], config, 0)?, [0., 0., 0., 0., 3., 3., 5., 5.]);
    assert_eq!(attention(&empty[..4], config, 2)?, [0., 0., 3., 5.]);
    Ok(())
}
