//! Shapes and types of every operation, by hand, and operands that do not fit.
#![allow(clippy::unwrap_used)]

use pilotfish_graph::{
    BinaryOp, Custom, DType, Dim, Graph, GraphError, Literal, Op, ReduceOp, RopeScaling, Shape, Storage,
    Tensor, UnaryOp,
};

/// A shape and type written as `F32 [B, 2*T+1, 4]`.
fn operand(text: &str) -> (Shape, DType) {
    let (dtype, dims) = text.split_once(' ').unwrap();
    let dtype = match dtype {
        "F32" => DType::F32,
        "I64" => DType::I64,
        _ => DType::Bool,
    };
    let dims = dims.trim_matches(['[', ']']);
    let dims = dims.split(", ").filter(|dim| !dim.is_empty()).map(Dim::parse).collect::<Vec<_>>();
    (Shape(dims), dtype)
}

fn apply(op: &Op, operands: &[&str]) -> Result<Vec<String>, GraphError> {
    let mut g = Graph::new("one node");
    let mut inputs = Vec::new();
    for (index, text) in operands.iter().enumerate() {
        let (shape, dtype) = operand(text);
        inputs.push(g.input(&format!("x{index}"), shape, dtype)?);
    }
    let results = g.apply(op.clone(), &inputs)?;
    assert_eq!(g.nodes().len(), 1);
    Ok(results.into_iter().map(|value| format!("{:?} {}", g.info(value).dtype, g.shape(value))).collect())
}

#[track_caller]
fn good(op: Op, operands: &[&str], want: &[&str]) {
    assert_eq!(apply(&op, operands).unwrap(), want, "{op} of {operands:?}");
}

#[track_caller]
fn bad(op: Op, operands: &[&str], word: &str) {
    let error = apply(&op, operands).expect_err(&format!("{op} of {operands:?}"));
    assert!(matches!(error, GraphError::Shape { .. }), "{error}");
    assert!(error.to_string().contains(word), "{error}; wanted {word}");
}

#[test]
fn elementwise() {
    good(Op::Unary(UnaryOp::Silu), &["F32 [B, 3]"], &["F32 [B, 3]"]);
    good(Op::Unary(UnaryOp::Not), &["Bool [B]"], &["Bool [B]"]);
    bad(Op::Unary(UnaryOp::Exp), &["I64 [2]"], "must be F32");
    bad(Op::Unary(UnaryOp::Not), &["F32 [2]"], "must be Bool");
    bad(Op::Unary(UnaryOp::Exp), &[], "takes 1 to 1 operands");
    let add = || Op::Binary(BinaryOp::Add);
    good(add(), &["F32 [B, 1, 4]", "F32 [T, 1]"], &["F32 [B, T, 4]"]);
    good(add(), &["F32 []", "F32 [L+T]"], &["F32 [L+T]"]);
    good(add(), &["I64 [3]", "I64 [3]"], &["I64 [3]"]);
    good(add(), &["F32 [0]", "F32 [1]"], &["F32 [0]"]);
    bad(add(), &["F32 [2]", "F32 [3]"], "2 and 3 do not broadcast");
    bad(add(), &["F32 [B]", "F32 [T]"], "B and T do not broadcast");
    bad(add(), &["F32 [2]", "I64 [2]"], "types differ");
    bad(add(), &["Bool [2]", "Bool [2]"], "does not take Bool");
    good(Op::Binary(BinaryOp::Less), &["I64 [B]", "I64 []"], &["Bool [B]"]);
    good(Op::Binary(BinaryOp::And), &["Bool [B]", "Bool [1]"], &["Bool [B]"]);
    bad(Op::Binary(BinaryOp::Or), &["F32 [B]", "F32 [B]"], "does not take F32");
    good(Op::Where, &["Bool [T]", "F32 [B, 1]", "F32 []"], &["F32 [B, T]"]);
    bad(Op::Where, &["F32 [T]", "F32 [T]", "F32 [T]"], "Bool condition");
    bad(Op::Where, &["Bool [T]", "F32 [T]", "I64 [T]"], "of one type");
    good(Op::Cast(DType::I64), &["Bool [T]"], &["I64 [T]"]);
    good(Op::Softmax, &["F32 [B, T]"], &["F32 [B, T]"]);
    bad(Op::Softmax, &["F32 []"], "at least one dimension");
}

#[test]
fn moving_things_about() {
    good(Op::Transpose(vec![2, 0, 1]), &["I64 [B, T, 4]"], &["I64 [4, B, T]"]);
    bad(Op::Transpose(vec![0, 0]), &["F32 [2, 3]"], "not a permutation");
    bad(Op::Transpose(vec![0]), &["F32 [2, 3]"], "not a permutation");
    let reshape = |text: &str| Op::Reshape(operand(text).0.0);
    good(reshape("F32 [B, T, 2, 3]"), &["F32 [B, T, 6]"], &["F32 [B, T, 2, 3]"]);
    good(reshape("F32 [B, 2*T]"), &["F32 [2*B, T]"], &["F32 [B, 2*T]"]);
    good(reshape("F32 [2*L+2*T]"), &["F32 [L+T, 2]"], &["F32 [2*L+2*T]"]);
    good(reshape("F32 []"), &["F32 [1, 1]"], &["F32 []"]);
    bad(reshape("F32 [B, 5]"), &["F32 [B, 6]"], "cannot become [B, 5]");
    bad(reshape("F32 [T]"), &["F32 [B]"], "cannot become [T]");
    bad(reshape("F32 [L+T]"), &["F32 [L, T]"], "cannot become");
    // The same at 0 and at 1, and yet not the same.
    bad(reshape("F32 [T, T]"), &["F32 [T]"], "cannot become");
    let concat = |axis| Op::Concat { axis };
    good(concat(1), &["F32 [B, L, 4]", "F32 [B, T, 4]", "F32 [B, 2, 4]"], &["F32 [B, L+T+2, 4]"]);
    good(concat(0), &["I64 [T]", "I64 [T]"], &["I64 [2*T]"]);
    bad(concat(0), &["F32 [2, 3]", "F32 [2, 4]"], "off the axis");
    bad(concat(1), &["F32 [2, 3]", "F32 [2]"], "axis 1 of a rank 1");
    bad(concat(2), &["F32 [2, 3]"], "axis 2");
    bad(concat(0), &["F32 [2]", "I64 [2]"], "types differ");
    bad(concat(0), &[], "operands");
    let slice =
        |start: &str, end: &str| Op::Slice { axis: 1, start: Dim::parse(start), end: Dim::parse(end) };
    good(slice("L", "L+T"), &["F32 [B, L+T]"], &["F32 [B, T]"]);
    good(slice("1", "3"), &["F32 [B, 3]"], &["F32 [B, 2]"]);
    good(slice("2", "2"), &["F32 [B, 3]"], &["F32 [B, 0]"]);
    bad(slice("1", "4"), &["F32 [B, 3]"], "1..4 does not lie within 3");
    bad(slice("2", "1"), &["F32 [B, 3]"], "does not lie within");
    bad(slice("0", "T"), &["F32 [B, 3]"], "does not lie within");
    bad(slice("0", "1"), &["F32 [B]"], "axis 1");
    good(Op::Gather { axis: 1 }, &["F32 [B, 7, 4]", "I64 [T, 2]"], &["F32 [B, T, 2, 4]"]);
    good(Op::Gather { axis: 0 }, &["I64 [7]", "I64 []"], &["I64 []"]);
    bad(Op::Gather { axis: 0 }, &["F32 [7]", "F32 [2]"], "must be I64");
    bad(Op::Gather { axis: 1 }, &["F32 [7]", "I64 [2]"], "axis 1");
    good(Op::Embedding, &["F32 [7, 4]", "I64 [B, T]"], &["F32 [B, T, 4]"]);
    bad(Op::Embedding, &["F32 [7]", "I64 [B, T]"], "[V, d]");
    bad(Op::Embedding, &["F32 [7, 4]", "F32 [B, T]"], "must be I64");
}

#[test]
fn reductions_and_products() {
    let reduce = |axis, keep| Op::Reduce { op: ReduceOp::Mean, axis, keep };
    good(reduce(1, true), &["F32 [B, T, 4]"], &["F32 [B, 1, 4]"]);
    good(reduce(0, false), &["F32 [B, T, 4]"], &["F32 [T, 4]"]);
    bad(reduce(3, false), &["F32 [B, T, 4]"], "axis 3");
    bad(reduce(0, false), &["I64 [B]"], "must be F32");
    good(Op::TopK { k: 3 }, &["F32 [B, 5]"], &["F32 [B, 3]", "I64 [B, 3]"]);
    good(Op::TopK { k: 3 }, &["F32 [B, V]"], &["F32 [B, 3]", "I64 [B, 3]"]);
    bad(Op::TopK { k: 6 }, &["F32 [B, 5]"], "top 6 of 5");
    bad(Op::TopK { k: 0 }, &["F32 [B, 5]"], "top 0 of 5");
    good(Op::MatMul, &["F32 [B, 1, T, 4]", "F32 [H, 4, S]"], &["F32 [B, H, T, S]"]);
    bad(Op::MatMul, &["F32 [2, 3]", "F32 [4, 5]"], "inner dimensions differ: 3 and 4");
    bad(Op::MatMul, &["F32 [3]", "F32 [3, 5]"], "two dimensions");
    bad(Op::MatMul, &["F32 [2, 2, 3]", "F32 [4, 3, 5]"], "2 and 4 do not broadcast");
    let linear = || Op::Linear(Storage::F32);
    good(linear(), &["F32 [B, T, 4]", "F32 [6, 4]", "F32 [6]"], &["F32 [B, T, 6]"]);
    good(linear(), &["F32 [4]", "F32 [6, 4]"], &["F32 [6]"]);
    bad(linear(), &["F32 [B, 5]", "F32 [6, 4]"], "takes 4 inputs");
    bad(linear(), &["F32 [B, T]", "F32 [6, 4]"], "takes 4 inputs");
    bad(linear(), &["F32 [B, 4]", "F32 [6, 4]", "F32 [4]"], "the bias must be [6]");
    bad(linear(), &["F32 [B, 4]", "F32 [V, 4]"], "whole numbers");
    bad(linear(), &["F32 [B, 4]", "F32 [4]"], "[out, in]");
    bad(linear(), &["F32 []", "F32 [6, 4]"], "at least one dimension");
    for storage in [Storage::Int4 { block: 24 }, Storage::Int8 { block: 0 }] {
        bad(Op::Linear(storage), &["F32 [B, 4]", "F32 [6, 4]"], "16, 32, 64 and 128");
    }
    let literal = |shape: &[usize], count: usize| {
        Op::Constant(Literal::I64 { shape: shape.into(), values: vec![0; count] })
    };
    good(literal(&[2, 3], 6), &[], &["I64 [2, 3]"]);
    good(literal(&[], 1), &[], &["I64 []"]);
    bad(literal(&[2, 3], 5), &[], "5 values do not fill [2, 3]");
    bad(literal(&[usize::MAX, 2], 5), &[], "do not fill");
}

#[test]
fn composites() {
    good(Op::RmsNorm { eps: 0.1 }, &["F32 [B, 4]", "F32 [4]"], &["F32 [B, 4]"]);
    bad(Op::RmsNorm { eps: 0.1 }, &["F32 [B, 4]", "F32 [1]"], "operand 1 must be [4]");
    good(Op::LayerNorm { eps: 0.1 }, &["F32 [4]", "F32 [4]", "F32 [4]"], &["F32 [4]"]);
    bad(Op::LayerNorm { eps: 0.1 }, &["F32 [4]", "F32 [4]"], "takes 3 to 3");
    let rotary = |head_dim, theta| Op::Rotary { head_dim, theta, scaling: RopeScaling::None };
    good(rotary(4, 10.0), &["F32 [B, T, 8]", "I64 [B, T]"], &["F32 [B, T, 8]"]);
    bad(rotary(3, 10.0), &["F32 [B, T, 9]", "I64 [B, T]"], "must be even");
    bad(rotary(0, 10.0), &["F32 [B, T, 8]", "I64 [B, T]"], "must be even");
    bad(rotary(4, f64::NAN), &["F32 [B, T, 8]", "I64 [B, T]"], "above 0");
    bad(rotary(4, 10.0), &["F32 [B, T, 6]", "I64 [B, T]"], "heads of 4");
    bad(rotary(4, 10.0), &["F32 [B, T, 8]", "I64 [T, B]"], "positions [B, T]");
    bad(rotary(4, 10.0), &["F32 [B, T, 8]", "F32 [B, T]"], "must be I64");
    let attention = |heads, kv_heads| Op::Attention { heads, kv_heads, scale: 1.0, softcap: None };
    let rows = ["F32 [B, T, 8]", "F32 [B, T, 4]", "F32 [B, T, 4]"];
    let with = |more: &[&'static str]| rows.into_iter().chain(more.iter().copied()).collect::<Vec<_>>();
    good(
        attention(4, 2),
        &with(&["F32 [1, 1, T, T]"]),
        &["F32 [B, T, 8]", "F32 [B, 2, T, 2]", "F32 [B, 2, T, 2]"],
    );
    let past = ["F32 [B, 2, L, 2]"; 2];
    good(
        attention(4, 2),
        &with(&["F32 [B, 1, T, L+T]", past[0], past[1]]),
        &["F32 [B, T, 8]", "F32 [B, 2, L+T, 2]", "F32 [B, 2, L+T, 2]"],
    );
    bad(
        attention(4, 2),
        &with(&["F32 [1, 1, T, T]", past[0], past[1]]),
        "the mask must be [B or 1, 1, T, L+T]",
    );
    bad(attention(4, 2), &with(&["F32 [1, 1, T, L+T]"]), "the mask must be [B or 1, 1, T, T]");
    bad(attention(4, 2), &with(&["F32 [2, 1, T, T]"]), "the mask must be");
    bad(attention(4, 2), &with(&["F32 [B, 1, T, L+T]", past[0]]), "both keys and values");
    bad(attention(4, 2), &with(&["F32 [B, 1, T, L+T]", past[0], "F32 [B, 2, L, 4]"]), "past keys and values");
    bad(attention(4, 1), &with(&["F32 [1, 1, T, T]"]), "keys and values must be [B, T, 2]");
    bad(attention(3, 2), &with(&["F32 [1, 1, T, T]"]), "must divide 3 heads");
    bad(attention(0, 0), &with(&["F32 [1, 1, T, T]"]), "must divide");
    bad(attention(16, 2), &with(&["F32 [1, 1, T, T]"]), "8 is not 16 heads");
    bad(attention(4, 2), &with(&["F32 [T, T]"]), "mask [B or 1, 1, T, S]");
    for (scale, softcap) in [(f32::NAN, None), (1.0, Some(0.0)), (1.0, Some(f32::NAN))] {
        let op = Op::Attention { heads: 4, kv_heads: 2, scale, softcap };
        bad(op, &with(&["F32 [1, 1, T, T]"]), "scale finite");
    }
    let custom = |domain: &str, results: Vec<(Shape, DType)>| {
        let (domain, name, provider) = (domain.into(), "Odd".into(), "a crate".into());
        Op::Custom(Box::new(Custom { domain, name, provider, attributes: vec![], results }))
    };
    good(custom("org.example", vec![operand("F32 [T]"); 2]), &["I64 []"], &["F32 [T]", "F32 [T]"]);
    bad(custom("com.microsoft", vec![operand("F32 [T]")]), &[], "not the name");
    bad(custom("org.example", vec![]), &[], "no result");
}

#[test]
fn names_and_bounds() {
    let mut g = Graph::new("names");
    let x = g.input("x", [2usize], DType::F32).unwrap();
    let tensor = || Tensor::new([2], vec![1.0, 2.0]).unwrap();
    let w = g.param("w", tensor()).unwrap();
    // A tied weight is one parameter.
    assert_eq!(g.param("w", tensor()).unwrap(), w);
    let taken = |result: Result<pilotfish_graph::Value, GraphError>| {
        assert!(matches!(result, Err(GraphError::DuplicateName { .. })));
    };
    taken(g.input("x", [2usize], DType::F32));
    taken(g.input("w", [2usize], DType::F32));
    taken(g.param("x", tensor()));
    taken(g.param("w", Tensor::new([1, 2], vec![1.0, 2.0]).unwrap()));
    g.output("y", x).unwrap();
    assert!(g.output("y", w).is_err());
    assert!(g.input("large", [(1usize << 40) + 1], DType::F32).is_err());
    assert!(g.input("deep", vec![Dim::from(1); 17], DType::F32).is_err());
    let many: Dim = (0..17).fold(Dim::default(), |sum, i| &sum + &Dim::symbol(&format!("s{i}")));
    assert!(g.input("many", vec![many], DType::F32).is_err());
    assert!(Tensor::new([2, 2], vec![0.0; 3]).is_err());
    assert!(Tensor::new([usize::MAX, 2], vec![0.0; 3]).is_err());
}

#[test]
fn dimensions() {
    for text in ["0", "7", "T", "L+T", "2*T", "L+2*T+3", "past_length+1", "x.0"] {
        assert_eq!(Dim::parse(text).to_string(), text);
    }
    assert_eq!(Dim::parse("T + L"), &Dim::symbol("L") + &Dim::symbol("T"));
    assert_eq!(Dim::parse("T+T+1+2"), Dim::parse("2*T+3"));
    // Whatever else it is stays one symbol.
    for text in ["floor(T/2)", "T-1", "2*", "*", "+", "T*2", "a b", "2x", ""] {
        let dim = Dim::parse(text);
        assert_eq!(dim.symbols().collect::<Vec<_>>(), [text]);
    }
    let values = [("T".to_owned(), 5), ("L".to_owned(), 2)].into();
    assert_eq!(Dim::parse("L+2*T+3").evaluate(&values), Some(15));
    assert_eq!(Dim::parse("S").evaluate(&values), None);
    assert_eq!(Dim::parse("T").evaluate(&[("T".to_owned(), usize::MAX)].into()), Some(usize::MAX));
    assert_eq!(Dim::parse("2*T").evaluate(&[("T".to_owned(), usize::MAX)].into()), None);
    assert_eq!(Dim::parse("2*T+4").divide(2), Some(Dim::parse("T+2")));
    assert_eq!(Dim::parse("2*T+3").divide(2), None);
    assert_eq!(Dim::parse("2*T").divide(0), None);
    assert_eq!(Dim::parse("L+2*T+3").minus(&Dim::parse("T+1")), Some(Dim::parse("L+T+2")));
    assert_eq!(Dim::parse("T").minus(&Dim::parse("L")), None);
    assert_eq!(Dim::parse("T").minus(&Dim::parse("1")), None);
    let none = 0;
    assert_eq!((&Dim::parse("T+1") * none).to_string(), "0");
}
