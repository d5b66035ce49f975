//! Operators of our own inside ONNX Runtime: registered with a session, named by a graph.
#![allow(clippy::unwrap_used)]

use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{Custom, DType, Dim, Graph, Op, Setting, Shape, Tensor, passes};
use pilotfish_runtime::ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use pilotfish_runtime::ort::{self, value::TensorElementType};
use pilotfish_runtime::{Operators, RuntimeError, SessionConfig};

/// `y = x w^T * factor`, in the plainest way.
struct ScaledProduct;

impl Operator for ScaledProduct {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "ScaledProduct"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 2]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let factor = context.get::<f32>("factor").ok_or_else(|| ort::Error::new("no factor"))?;
        if !(factor > 0.0) {
            return Err(ort::Error::new("the factor must be above 0"));
        }
        Ok(Box::new(move |context: &ComputeContext| {
            let missing = || ort::Error::new("an operand is missing");
            let (x, w) = (context.input(0)?.ok_or_else(missing)?, context.input(1)?.ok_or_else(missing)?);
            let ((x_shape, x), (w_shape, w)) =
                (x.try_extract_tensor::<f32>()?, w.try_extract_tensor::<f32>()?);
            let (inner, outs) = (w_shape[1] as usize, w_shape[0] as usize);
            if x.iter().any(|value| value.is_nan()) {
                return Err(ort::Error::new("not a number"));
            }
            let mut y = context.output(0, [x_shape[0], outs as i64])?.ok_or_else(missing)?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            for (row, y) in x.chunks_exact(inner).zip(y.chunks_exact_mut(outs)) {
                for (w, y) in w.chunks_exact(inner).zip(y) {
                    *y = factor * row.iter().zip(w).map(|(a, b)| a * b).sum::<f32>();
                }
            }
            Ok(())
        }))
    }
}

fn ours() -> Operators {
    Operators::new("tests", "pilotfish-tests", |domain| domain.add(ScaledProduct))
}

/// `|x| w^T`, `[T, 3]` to `[T, 2]`.
fn dense() -> Graph {
    let mut g = Graph::new("dense");
    let x = g.input("x", vec![Dim::symbol("T"), 3.into()], DType::F32).unwrap();
    let x = g.unary(pilotfish_graph::UnaryOp::Abs, x).unwrap();
    let w = g.param("w", Tensor::new([2, 3], vec![1.0, 2.0, 3.0, 0.0, -1.0, 0.5]).unwrap()).unwrap();
    let y = g.linear(x, w, None).unwrap();
    g.output("y", y).unwrap();
    g
}

/// The same with its linear layer as our operator, by a pass.
fn custom(factor: f32) -> Graph {
    passes::rewrite(&dense(), |new, node, inputs| {
        let Op::Linear(_) = node.op else { return Ok(None) };
        let custom = Custom {
            domain: "tests".into(),
            name: "ScaledProduct".into(),
            provider: "pilotfish-tests".into(),
            attributes: vec![("factor".into(), Setting::Float(factor))],
            results: vec![(Shape::from(vec![Dim::symbol("T"), 2.into()]), DType::F32)],
        };
        new.apply(Op::Custom(Box::new(custom)), inputs).map(Some)
    })
    .unwrap()
}

fn run(graph: &Graph, lowering: Lowering, config: &SessionConfig, x: &[f32]) -> Result<Vec<f32>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    onnx::write(graph, lowering, &path).unwrap();
    let mut session = config.open(&path).map_err(|error| error.to_string())?;
    let x = ort::value::Tensor::from_array(([x.len() / 3, 3], x.to_vec())).unwrap();
    let outputs = session.run(ort::inputs!["x" => x]).map_err(|error| error.to_string())?;
    Ok(outputs["y"].try_extract_tensor::<f32>().unwrap().1.to_vec())
}

#[test]
fn a_linear_layer_runs_as_an_operator_of_ours() {
    let config = SessionConfig { operators: vec![ours()], ..SessionConfig::default() };
    let x = [1.0, 1.0, 1.0, -1.0, 2.0, 4.0];
    for lowering in [Lowering::Primitive, Lowering::Standard, Lowering::Fused { positions: 1 }] {
        assert_eq!(run(&dense(), lowering, &config, &x).unwrap(), [6.0, -0.5, 17.0, 0.0]);
        assert_eq!(run(&custom(0.5), lowering, &config, &x).unwrap(), [3.0, -0.25, 8.5, 0.0]);
    }
}

#[test]
fn a_session_without_the_operator_names_the_crate_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("custom.onnx");
    onnx::write(&custom(1.0), Lowering::Standard, &path).unwrap();
    assert_eq!(onnx::providers(&path).unwrap(), [("tests".to_owned(), "pilotfish-tests".to_owned())]);
    let error = SessionConfig::default().open(&path).unwrap_err();
    assert!(
        matches!(&error, RuntimeError::NoOperators { domain, provider, .. } if domain == "tests" && provider == "pilotfish-tests"),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains("custom.onnx") && text.contains("SessionConfig::operators"), "{text}");
    // A domain that was given but lacks the operator is another mistake.
    let empty = Operators::new("tests", "pilotfish-tests", Ok);
    let config = SessionConfig { operators: vec![empty], ..SessionConfig::default() };
    let error = config.open(&path).unwrap_err();
    assert!(matches!(&error, RuntimeError::Contract { why, .. } if why.contains("ScaledProduct")), "{error}");
}

#[test]
fn errors_of_an_operator_are_errors_of_the_call() {
    let config = SessionConfig { operators: vec![ours()], ..SessionConfig::default() };
    let error = run(&custom(-1.0), Lowering::Standard, &config, &[0.0; 3]).unwrap_err();
    assert!(error.contains("the factor must be above 0"), "{error}");
    let error = run(&custom(1.0), Lowering::Standard, &config, &[f32::NAN; 3]).unwrap_err();
    assert!(error.contains("not a number"), "{error}");
}

#[test]
fn two_sets_may_share_a_domain_that_is_a_name() {
    let empty = Operators::new("tests", "another crate", Ok);
    let config = SessionConfig { operators: vec![ours(), empty], ..SessionConfig::default() };
    assert_eq!(run(&custom(1.0), Lowering::Standard, &config, &[1.0; 3]).unwrap(), [6.0, -0.5]);
    for bad in ["", "a\0b"] {
        let set = Operators::new(bad, "another crate", Ok);
        let config = SessionConfig { operators: vec![set], ..SessionConfig::default() };
        let error = run(&dense(), Lowering::Standard, &config, &[1.0; 3]);
        assert!(error.as_ref().is_err_and(|error| error.contains("another crate")), "{bad:?}: {error:?}");
    }
}

#[test]
fn names_of_onnx_are_not_names_of_ours() {
    for domain in ["", "ai.onnx", "com.microsoft"] {
        let mut g = dense();
        let custom = Custom {
            domain: domain.into(),
            name: "Relu".into(),
            provider: "nobody".into(),
            attributes: vec![],
            results: vec![(Shape::from(vec![1.into()]), DType::F32)],
        };
        assert!(g.apply(Op::Custom(Box::new(custom)), &[]).is_err(), "{domain:?}");
    }
}
