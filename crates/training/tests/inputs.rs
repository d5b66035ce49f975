//! What is wrong with inputs is said with a name, and nothing panics.

use std::collections::HashMap;

use candle_core::{DType as Candle, Device, Tensor as CandleTensor};
use pilotfish_graph::{BinaryOp, DType, Dim, Graph, Literal, Op, ReduceOp, Shape, Storage, Tensor, Value};
use pilotfish_training::{Array, Interpreter, Precision, TrainingError};
use proptest::prelude::*;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// `y = sum over the past and the rows of x`, with a mask that needs both symbols, given first.
fn sums() -> Fallible<Graph> {
    let mut g = Graph::new("sums");
    let (l, t) = (Dim::symbol("L"), Dim::symbol("T"));
    let mask = g.input("mask", Shape(vec![&l + &t]), DType::F32)?;
    let past = g.input("past", Shape(vec![l]), DType::F32)?;
    let x = g.input("x", Shape(vec![t.clone()]), DType::F32)?;
    let ids = g.input("ids", Shape(vec![&t * 2]), DType::I64)?;
    let table = g.param("table", Tensor::new([3], vec![100.0, 200.0, 300.0])?)?;
    let all = g.concat(&[past, x], 0)?;
    let all = g.mul(all, mask)?;
    let y = g.reduce(ReduceOp::Sum, all, 0, true)?;
    g.output("y", y)?;
    let picked = g.gather(table, ids, 0)?;
    g.output("picked", picked)?;
    g.output("ids", ids)?;
    Ok(g)
}

fn feeds() -> Vec<(&'static str, Array)> {
    vec![
        ("mask", Array::float([3], [1.0, 1.0, 0.0])),
        ("past", Array::float([1], [7.0])),
        ("x", Array::float([2], [20.0, 300.0])),
        ("ids", Array::int([4], [2, 0, 1, 1])),
    ]
}

fn refused(change: impl Fn(&mut Vec<(&'static str, Array)>)) -> Fallible<TrainingError> {
    let net = Interpreter::new(&sums()?, Precision::F64)?;
    let mut feeds = feeds();
    change(&mut feeds);
    match net.run(&feeds) {
        Ok(outputs) => Err(format!("accepted: {outputs:?}").into()),
        Err(error) => Ok(error),
    }
}

fn shape_of(error: TrainingError) -> String {
    match error {
        TrainingError::Shape { name, .. } => name,
        other => format!("not a shape error: {other}"),
    }
}

#[test]
fn good_inputs_are_taken() -> Fallible {
    let net = Interpreter::new(&sums()?, Precision::F64)?;
    let outputs = net.run(&feeds())?;
    assert_eq!(outputs["y"], [27.0]);
    assert_eq!(outputs["picked"], [300.0, 100.0, 200.0, 200.0]);
    assert_eq!(outputs["ids"], [2.0, 0.0, 1.0, 1.0]);
    Ok(())
}

#[test]
fn wrong_shapes_name_the_input() -> Fallible {
    assert_eq!(shape_of(refused(|feeds| feeds[0].1 = Array::float([4], [1.0; 4]))?), "mask");
    assert_eq!(shape_of(refused(|feeds| feeds[3].1 = Array::int([3], [0; 3]))?), "ids");
    assert_eq!(shape_of(refused(|feeds| feeds[2].1 = Array::float([2, 1], [1.0; 2]))?), "x");
    assert_eq!(shape_of(refused(|feeds| feeds[2].1 = Array::float([], [1.0]))?), "x");
    assert_eq!(shape_of(refused(|feeds| feeds[2].1 = Array::float([2], [1.0; 3]))?), "x");
    assert_eq!(shape_of(refused(|feeds| feeds[2].1 = Array::float([usize::MAX, 2], []))?), "x");
    Ok(())
}

#[test]
fn wrong_names_and_kinds_are_named() -> Fallible {
    let missing = refused(|feeds| drop(feeds.remove(1)))?;
    assert_eq!(missing.to_string(), "no input given named past");
    let unknown = refused(|feeds| feeds.push(("y", Array::float([1], [0.0]))))?;
    assert_eq!(unknown.to_string(), "no input named y");
    let param = refused(|feeds| feeds.push(("table", Array::float([3], [0.0; 3]))))?;
    assert_eq!(param.to_string(), "no input named table");
    let kind = refused(|feeds| feeds[3].1 = Array::float([4], [0.0; 4]))?;
    assert_eq!(kind.to_string(), "ids: float numbers, wanted int");
    let kind = refused(|feeds| feeds[2].1 = Array::bool([2], [true; 2]))?;
    assert_eq!(kind.to_string(), "x: bool numbers, wanted float");
    // Candle tensors of another precision than the interpreter's.
    let net = Interpreter::new(&sums()?, Precision::F64)?;
    let zeros = |size: usize, dtype| CandleTensor::zeros(size, dtype, &Device::Cpu);
    let inputs = HashMap::from([
        ("mask".to_owned(), zeros(3, Candle::F64)?),
        ("past".to_owned(), zeros(1, Candle::F64)?),
        ("x".to_owned(), zeros(2, Candle::F32)?),
        ("ids".to_owned(), zeros(4, Candle::I64)?),
    ]);
    let error = net.forward(&inputs).map(drop).map_err(|error| error.to_string());
    assert_eq!(error, Err("x: f32 numbers, wanted f64".to_owned()));
    Ok(())
}

#[test]
fn wrong_numbers_are_refused() -> Fallible {
    for id in [3, -1, i64::MAX, i64::MIN] {
        let error = refused(|feeds| feeds[3].1 = Array::int([4], [0, 1, id, 2]))?;
        assert_eq!(error.to_string(), format!("Gather: index {id} of 3"));
    }
    // Not a number is a number to a sum, but not a reason to stop.
    let net = Interpreter::new(&sums()?, Precision::F32)?;
    let mut odd = feeds();
    odd[2].1 = Array::float([2], [f64::NAN, f64::INFINITY]);
    assert!(net.run(&odd)?["y"][0].is_nan());
    Ok(())
}

/// Symbols that only occur in sums follow from the rest; those that cannot are reported.
#[test]
fn symbols_follow_from_shapes() -> Fallible {
    let build = |second: Dim| -> Fallible<Interpreter> {
        let mut g = Graph::new("symbols");
        let (a, b) = (Dim::symbol("A"), Dim::symbol("B"));
        let x = g.input("x", Shape(vec![&(&a + &(&b * 3)) + &2.into()]), DType::F32)?;
        g.input("z", Shape(vec![second]), DType::F32)?;
        g.output("y", x)?;
        Ok(Interpreter::new(&g, Precision::F32)?)
    };
    let feeds =
        |x: usize, z: usize| [("x", Array::float([x], vec![0.0; x])), ("z", Array::float([z], vec![0.0; z]))];
    let net = build(Dim::symbol("A"))?;
    // x = A + 3 B + 2
    assert!(net.run(&feeds(12, 4)).is_ok());
    assert_eq!(shape_of(net.run(&feeds(13, 4)).expect_err("3 B = 7")), "x");
    assert_eq!(shape_of(net.run(&feeds(5, 4)).expect_err("3 B = -1")), "x");
    let net = build(&Dim::symbol("A") + &Dim::symbol("B"))?;
    let error = net.run(&feeds(12, 6)).expect_err("two unknowns");
    assert!(
        matches!(&error, TrainingError::Unbound { name, dim } if name == "x" && dim == "A+3*B+2"),
        "{error}"
    );
    Ok(())
}

#[test]
fn gradients_of_what_has_none_are_refused() -> Fallible {
    let mut net = Interpreter::new(&sums()?, Precision::F64)?;
    let say = |result: Result<_, TrainingError>| match result {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    };
    let vjp = |net: &Interpreter, output: &str, cotangent: &[f64], name: &str| {
        say(net.vjp(&feeds(), output, cotangent, &[name]).map(drop))
    };
    assert_eq!(vjp(&net, "y", &[1.0], "ids"), "no trained parameter or float input named ids");
    assert_eq!(vjp(&net, "y", &[1.0], "table"), "no trained parameter or float input named table");
    assert_eq!(vjp(&net, "z", &[1.0], "x"), "no output named z");
    assert_eq!(vjp(&net, "ids", &[1.0; 4], "x"), "ids: i64 numbers, wanted f64");
    assert!(vjp(&net, "y", &[1.0, 2.0], "x").starts_with("cotangent: shape [1]"));
    assert_eq!(say(net.train(&["x"]).map(drop)), "no parameter named x");
    assert_eq!(say(net.set_param("none", &[]).map(drop)), "no parameter named none");
    assert!(say(net.set_param("table", &[1.0]).map(drop)).starts_with("table: shape [3]"));
    // Trained, but the output does not depend on it.
    net.train(&["table", "table"])?;
    assert_eq!(net.vjp(&feeds(), "y", &[1.0], &["table", "past"])?.1, [vec![0.0; 3], vec![1.0]]);
    let loss = CandleTensor::zeros(2, Candle::F64, &Device::Cpu)?;
    assert_eq!(say(net.gradients(&loss).map(drop)), "loss: shape [2], wanted a single number");
    Ok(())
}

/// `y` of integer or float inputs through one operation.
fn apply(op: Op, inputs: &[(Vec<Dim>, Array)]) -> Fallible<Result<Vec<f64>, TrainingError>> {
    let mut g = Graph::new("one");
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let mut operands: Vec<Value> = Vec::new();
    for (name, (dims, array)) in names.iter().zip(inputs) {
        let dtype = if matches!(array, Array::Int { .. }) { DType::I64 } else { DType::F32 };
        operands.push(g.input(name, dims.clone(), dtype)?);
    }
    let y = g.apply(op, &operands)?[0];
    g.output("y", y)?;
    let feeds: Vec<(&str, Array)> =
        names.iter().zip(inputs).map(|(name, (_, array))| (name.as_str(), array.clone())).collect();
    let result = Interpreter::new(&g, Precision::F32)?.run(&feeds);
    Ok(result.map(|mut outputs| outputs.remove("y").unwrap_or_default()))
}

#[test]
fn operations_refuse_what_they_cannot_do() -> Fallible {
    let ints = |values: [i64; 2]| (vec![Dim::from(2)], Array::int([2], values));
    let divided = apply(Op::Binary(BinaryOp::Div), &[ints([1, 2]), ints([1, 0])])?;
    assert_eq!(divided.expect_err("by zero").to_string(), "Binary: an integer divided by 0");
    let power = apply(Op::Binary(BinaryOp::Pow), &[ints([1, 2]), ints([1, -1])])?;
    assert_eq!(power.expect_err("negative").to_string(), "Binary: a negative power of an integer");
    let symbolic = |size: usize| (vec![Dim::symbol("N")], Array::float([size], vec![1.0; size]));
    let top = apply(Op::TopK { k: 3 }, &[symbolic(2)])?;
    assert_eq!(top.expect_err("too few").to_string(), "TopK: 3 largest of 2");
    let most = |op| apply(Op::Reduce { op, axis: 0, keep: false }, &[symbolic(0)]);
    assert_eq!(most(ReduceOp::Max)?.expect_err("nothing").to_string(), "Reduce: the largest of nothing");
    assert_eq!(most(ReduceOp::Sum)??, [0.0]);
    assert!(most(ReduceOp::Mean)??[0].is_nan());
    assert_eq!(apply(Op::Softmax, &[symbolic(0)])??, [0.0; 0]);
    assert_eq!(apply(Op::Concat { axis: 0 }, &[symbolic(0), symbolic(0)])??, [0.0; 0]);
    Ok(())
}

#[test]
fn weights_that_cannot_be_stored_are_named() -> Fallible {
    let mut g = Graph::new("bad");
    let x = g.input("x", [1, 16], DType::F32)?;
    let w = g.param("layer.weight", Tensor::new([1, 16], vec![f32::NAN; 16])?)?;
    let y = g.apply(Op::Linear(Storage::Int4 { block: 16 }), &[x, w])?[0];
    g.output("y", y)?;
    let error = Interpreter::new(&g, Precision::F32).expect_err("not a number").to_string();
    assert!(error.starts_with("tensor layer.weight:"), "{error}");
    // A source that has fewer numbers than its shape.
    let mut g = Graph::new("short");
    let short = Tensor::new([2], vec![1.0; 2])?.derive([3], |_, _| Ok(vec![1.0]));
    let w = g.param("short", short)?;
    g.output("y", w)?;
    let error = Interpreter::new(&g, Precision::F32).expect_err("too few numbers");
    assert_eq!(shape_of(error), "short");
    Ok(())
}

proptest! {
    /// Whatever sizes and indices come in: numbers or an error, and never for indices out of range.
    #[test]
    fn no_panic(mask in 0usize..5, past in 0usize..4, x in 0usize..4, ids in proptest::collection::vec(-1i64..4, 0..8)) {
        let net = Interpreter::new(&sums().expect("a graph"), Precision::F32).expect("an interpreter");
        let good = mask == past + x && ids.len() == 2 * x && ids.iter().all(|id| (0..3).contains(id));
        let zeros = |size: usize| Array::float([size], vec![1.0; size]);
        let feeds = [("mask", zeros(mask)), ("past", zeros(past)), ("x", zeros(x)), ("ids", Array::int([ids.len()], ids))];
        let result = net.run(&feeds);
        prop_assert_eq!(result.is_ok(), good, "{:?}", result);
        if let Ok(outputs) = result {
            prop_assert_eq!(outputs["y"][0], (past + x) as f64);
            let cotangent = vec![1.0; 2 * x];
            prop_assert!(net.vjp(&feeds, "picked", &cotangent, &["x"]).is_ok());
        }
    }
}

/// Operations on nothing: every float operation of a chain whose rows may be none.
#[test]
fn no_rows_are_fine() -> Fallible {
    let mut g = Graph::new("rows");
    let x = g.input("x", vec![Dim::from(1), "T".into(), 4.into()], DType::F32)?;
    let at = g.input("at", vec![Dim::from(1), "T".into()], DType::I64)?;
    let w = g.param("w", Tensor::new([4, 4], vec![0.5; 16])?)?;
    let n = g.param("n", Tensor::new([4], vec![1.0; 4])?)?;
    let y = g.rms_norm(x, n, 1e-5)?;
    let y = g.linear(y, w, Some(n))?;
    let y = g.rotary(y, at, 2, 10.0, pilotfish_graph::RopeScaling::None)?;
    let z = g.layer_norm(y, n, n, 1e-5)?;
    let z = g.unary(pilotfish_graph::UnaryOp::Gelu, z)?;
    let z = g.transpose(z, &[0, 2, 1])?;
    let z = g.matmul(y, z)?;
    let top = g.transpose(z, &[0, 2, 1])?;
    let square = g.scalar(2.0)?;
    let top = g.binary(BinaryOp::Pow, top, square)?;
    let ids = g.constant(Literal::I64 { shape: vec![2], values: vec![0, 0] })?;
    let top = g.gather(top, ids, 0)?;
    g.output("y", top)?;
    for precision in [Precision::F32, Precision::F64] {
        let mut net = Interpreter::new(&g, precision)?;
        net.train(&["w", "n"])?;
        let feeds = [("x", Array::float([1, 0, 4], [])), ("at", Array::int([1, 0], []))];
        assert_eq!(net.run(&feeds)?["y"], [0.0; 0]);
        let (_, gradients) = net.vjp(&feeds, "y", &[], &["w", "n", "x"])?;
        assert_eq!(gradients, [vec![0.0; 16], vec![0.0; 4], vec![]]);
    }
    Ok(())
}
