//! What passes make of graphs, evaluated: random graphs by the hundred, and known wrong passes caught.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use pilotfish_architectures::{CausalConfig, CausalNetwork};
use pilotfish_graph::testing::{Feed, random_graph};
use pilotfish_graph::{BinaryOp, DType, Dim, Graph, Mark, Op, Producer, Storage, Tensor, UnaryOp, passes};
use pilotfish_training::{Array, Interpreter, Precision};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Out = BTreeMap<String, Vec<f64>>;

fn array(feed: &Feed) -> Array {
    match feed {
        Feed::Float { shape, values } => Array::float(shape.clone(), values.iter().map(|&v| f64::from(v))),
        Feed::Int { shape, values } => Array::int(shape.clone(), values.iter().copied()),
    }
}

/// Evaluates a graph, giving it those of the feeds that it has inputs for.
fn run(graph: &Graph, feeds: &[(String, Array)]) -> Out {
    let has = |name: &str| graph.inputs().iter().any(|&input| graph.info(input).name == name);
    let feeds: Vec<(&str, Array)> = feeds
        .iter()
        .filter(|(name, _)| has(name))
        .map(|(name, array)| (name.as_str(), array.clone()))
        .collect();
    Interpreter::new(graph, Precision::F64).unwrap().run(&feeds).unwrap()
}

fn random(seed: u64) -> (Graph, Vec<(String, Array)>) {
    let (graph, feeds) = random_graph(seed).unwrap();
    (graph, feeds.iter().map(|(name, feed)| (name.clone(), array(feed))).collect())
}

/// The largest difference, relative to one and the value.
fn difference(got: &Out, want: &Out) -> f64 {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let pairs = want.iter().flat_map(|(name, want)| {
        assert_eq!(got[name].len(), want.len(), "{name}");
        got[name].iter().zip(want)
    });
    pairs.map(|(got, want)| (got - want).abs() / (1.0 + want.abs())).fold(0.0, f64::max)
}

fn count(graph: &Graph, counts: impl Fn(&Op) -> bool) -> usize {
    graph.nodes().iter().filter(|node| counts(&node.op)).count()
}

/// Residual blocks: norms read by one layer, by several, by something else or by an output; layers that share
/// their operand, with biases and without, stored in several ways; a mark after each block.
fn blocks(seed: u64) -> (Graph, Vec<(String, Array)>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let width = 2 * rng.random_range(1..5);
    let mut g = Graph::new(format!("blocks {seed}"));
    let mut x = g.input("x", vec![Dim::symbol("T"), width.into()], DType::F32).unwrap();
    let mut names = 0;
    let mut param = |g: &mut Graph, rng: &mut ChaCha8Rng, shape: &[usize]| {
        names += 1;
        let values = (0..shape.iter().product()).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        g.param(&format!("p{names}"), Tensor::new(shape, values).unwrap()).unwrap()
    };
    g.mark(Mark::Residual(0), x);
    for block in 0..rng.random_range(1..4) {
        let scale = param(&mut g, &mut rng, &[width]);
        let h = g.rms_norm(x, scale, 0.01).unwrap();
        let mut sum = x;
        let storage = [Storage::F32, Storage::F32, Storage::Int8 { block: 16 }][rng.random_range(0..3)];
        for _ in 0..rng.random_range(1..4) {
            let weight = param(&mut g, &mut rng, &[width, width]);
            let mut operands = vec![h, weight];
            if rng.random() {
                operands.push(param(&mut g, &mut rng, &[width]));
            }
            let y = g.apply(Op::Linear(storage), &operands).unwrap()[0];
            let y = g.unary(UnaryOp::Tanh, y).unwrap();
            sum = g.binary(if rng.random() { BinaryOp::Add } else { BinaryOp::Sub }, sum, y).unwrap();
        }
        match rng.random_range(0..6) {
            0 => sum = g.add(sum, h).unwrap(),
            1 => g.output(&format!("norm {block}"), h).unwrap(),
            _ => {}
        }
        if rng.random_range(0..3) == 0 {
            g.output(&format!("inner {block}"), sum).unwrap();
        }
        x = g.unary(UnaryOp::Silu, sum).unwrap();
        g.mark(Mark::Residual(block + 1), x);
    }
    g.output("y", x).unwrap();
    let values = (0..3 * width).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<_>>();
    (g, vec![("x".into(), Array::float([3, width], values))])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    /// Composites are what they expand to, and a copy is what it copies.
    #[test]
    fn expanding_changes_nothing(seed in any::<u64>()) {
        let (graph, feeds) = random(seed);
        let want = run(&graph, &feeds);
        let expanded = passes::expand(&graph).unwrap();
        prop_assert!(difference(&run(&expanded, &feeds), &want) < 1e-12);
        let composite = |op: &Op| matches!(
            op,
            Op::Embedding | Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::Rotary { .. } | Op::Attention { .. }
                | Op::Unary(UnaryOp::Silu | UnaryOp::Gelu | UnaryOp::GeluTanh)
        );
        prop_assert_eq!(count(&expanded, composite), 0);
        let copy = passes::rewrite(&graph, |_, _, _| Ok(None)).unwrap();
        prop_assert!(run(&copy, &feeds) == want);
        // Nothing is left that nothing needs.
        let read = |value| {
            copy.nodes().iter().any(|node| node.inputs.contains(&value))
                || copy.outputs().iter().any(|(_, output)| *output == value)
        };
        prop_assert!(copy.nodes().iter().all(|node| node.outputs.iter().any(|&value| read(value))));
        prop_assert!(copy.params().iter().all(|param| read(param.value)));
    }

    /// A part and what it leaves, run one after the other, are the whole; wherever it is cut.
    #[test]
    fn extracted_parts_make_the_whole(seed in any::<u64>(), place in any::<prop::sample::Index>()) {
        let (graph, feeds) = random(seed);
        let floats: Vec<_> = graph
            .values()
            .filter(|(_, info)| info.dtype == DType::F32 && matches!(info.producer, Producer::Node(..)))
            .map(|(value, _)| value)
            .collect();
        prop_assume!(!floats.is_empty());
        let at = floats[place.index(floats.len())];
        let first = passes::extract(&graph, &[], &[("at".into(), at)]).unwrap();
        let second = passes::extract(&graph, &[("at", at)], graph.outputs()).unwrap();
        // A part that is left with a cache of `L+T` rows and no `T` cannot know either.
        let dims: Vec<&Dim> = second.inputs().iter().flat_map(|&input| second.shape(input).dims()).collect();
        let alone = |symbol: &str| dims.iter().any(|dim| **dim == Dim::symbol(symbol));
        prop_assume!(dims.iter().flat_map(|dim| dim.symbols()).all(alone));
        let mut feeds = feeds;
        let want = run(&graph, &feeds);
        let middle = run(&first, &feeds).remove("at").unwrap();
        // Which sizes the symbols have is not ours to know: a reader of the second part finds them in its inputs.
        let symbols: BTreeMap<String, usize> = graph
            .inputs()
            .iter()
            .flat_map(|&input| {
                let array = &feeds.iter().find(|(name, _)| *name == graph.info(input).name).unwrap().1;
                let dims = graph.shape(input).dims().iter().zip(array.shape().to_vec());
                let single = dims.filter(|(dim, _)| dim.symbols().next().is_some_and(|s| **dim == Dim::symbol(s)));
                single.map(|(dim, size)| (dim.to_string(), size)).collect::<Vec<_>>()
            })
            .collect();
        let shape = graph.shape(at).evaluate(&symbols).unwrap();
        feeds.push(("at".into(), Array::float(shape, middle)));
        prop_assert!(difference(&run(&second, &feeds), &want) < 1e-12);
        prop_assert!(second.inputs().len() <= graph.inputs().len() + 1);
    }

    /// Scales of norms move into the layers behind them, where only layers read them; exact up to rounding.
    #[test]
    fn folding_norms_changes_nothing(seed in any::<u64>()) {
        let (graph, feeds) = blocks(seed);
        let quantised = count(&graph, |op| matches!(op, Op::Linear(storage) if *storage != Storage::F32)) > 0;
        let graph = match quantised {
            // Rounding to integers happens after the scale has moved, so it is another rounding.
            true => passes::store(&graph, |_| Some(Storage::F32)).unwrap(),
            false => graph,
        };
        let folded = passes::fold_norms(&graph).unwrap();
        // Products are folded in f32.
        prop_assert!(difference(&run(&folded, &feeds), &run(&graph, &feeds)) < 1e-5);
        for node in graph.nodes().iter().filter(|node| matches!(node.op, Op::RmsNorm { .. })) {
            let out = node.outputs[0];
            let visible = graph.outputs().iter().any(|(_, value)| *value == out);
            let plain = graph.nodes().iter().any(|reader| reader.inputs.contains(&out)
                && !matches!(reader.op, Op::Linear(_)));
            let name = graph.param_of(node.inputs[1]).unwrap().name.clone();
            prop_assert_eq!(folded.find(&name).is_some(), visible || plain, "{}", name);
        }
        prop_assert_eq!(folded.nodes().len(), graph.nodes().len());
    }

    /// Joined layers are the layers they are made of.
    #[test]
    fn merging_layers_changes_nothing(seed in any::<u64>()) {
        for (graph, feeds) in [blocks(seed), random(seed)] {
            let merged = passes::merge_linears(&graph).unwrap();
            prop_assert!(difference(&run(&merged, &feeds), &run(&graph, &feeds)) < 1e-12);
            // No two layers of one kind read one value any more.
            let mut seen = std::collections::HashSet::new();
            for node in merged.nodes() {
                if let Op::Linear(storage) = node.op {
                    let params = node.inputs[1..].iter().all(|&value| merged.param_of(value).is_some());
                    prop_assert!(!params || seen.insert((node.inputs[0], storage, node.inputs.len())));
                }
            }
            let numbers = |graph: &Graph| -> usize { graph.params().iter().map(|p| p.tensor.count()).sum() };
            prop_assert_eq!(numbers(&merged), numbers(&passes::rewrite(&graph, |_, _, _| Ok(None)).unwrap()));
        }
    }

    /// Storing changes nothing but the storage: names, numbers and shape stay, and f32 undoes it.
    #[test]
    fn storing_keeps_names(seed in any::<u64>()) {
        let (graph, feeds) = blocks(seed);
        let weights: Vec<String> = graph.params().iter().map(|param| param.name.clone()).collect();
        let int8 = passes::store(&graph, |_| Some(Storage::Int8 { block: 16 })).unwrap();
        prop_assert_eq!(int8.params().iter().map(|param| param.name.clone()).collect::<Vec<_>>(), weights);
        for (one, other) in graph.params().iter().zip(int8.params()) {
            prop_assert!(one.tensor.to_f32().unwrap() == other.tensor.to_f32().unwrap());
        }
        let plain = passes::store(&graph, |_| Some(Storage::F32)).unwrap();
        let want = run(&plain, &feeds);
        let again = run(&passes::store(&int8, |_| Some(Storage::F32)).unwrap(), &feeds);
        prop_assert_eq!(again, want.clone());
        // Eight bits are close, but not the same.
        let rounded = difference(&run(&int8, &feeds), &want);
        prop_assert!(rounded < 0.2, "{}", rounded);
    }

    /// Cut at any layer, what comes before and what comes after are the whole.
    #[test]
    fn cut_in_two_and_run(seed in any::<u64>(), layer in any::<prop::sample::Index>()) {
        let (graph, feeds) = blocks(seed);
        let layer = layer.index(graph.marks().len());
        let (first, second) = passes::cut(&graph, layer).unwrap();
        let mut got = run(&first, &feeds);
        let residual = got.remove("residual").unwrap();
        let shape = feeds[0].1.shape().to_vec();
        let feeds_of_second = vec![("x".to_owned(), Array::float(shape, residual.clone()))];
        got.extend(run(&second, &feeds_of_second));
        if !got.contains_key("y") {
            // The cut is at the very end.
            got.insert("y".into(), residual);
        }
        prop_assert!(difference(&got, &run(&graph, &feeds)) < 1e-12);
        prop_assert!(first.marked(Mark::Residual(layer)).is_some());
    }
}

/// The properties above are sharp: passes with a mistake in them fail them.
#[test]
fn kept_outputs_are_those_asked_for() {
    let mut g = Graph::new("head");
    let x = g.input("x", vec![Dim::symbol("R"), 2.into()], DType::F32).unwrap();
    let weight = Tensor::new([3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let (weight, bias) = (g.param("w", weight).unwrap(), Tensor::new([3], vec![0.1, 0.2, 0.3]).unwrap());
    let bias = g.param("b", bias).unwrap();
    let y = g.apply(Op::Linear(Storage::F32), &[x, weight, bias]).unwrap()[0];
    g.output("y", y).unwrap();
    let feeds = [("x".to_owned(), array(&Feed::Float { shape: vec![1, 2], values: vec![1.0, 10.0] }))];
    let kept = passes::keep_outputs(&g, &[2, 0]).unwrap();
    // 5 + 60 + 0.3 and 1 + 20 + 0.1, of a matrix that holds no third row.
    let out = &run(&kept, &feeds)["y"];
    assert!((out[0] - 65.3).abs() < 1e-5 && (out[1] - 21.1).abs() < 1e-5 && out.len() == 2, "{out:?}");
    assert_eq!(kept.params().iter().map(|param| param.tensor.count()).sum::<usize>(), 6);
    assert!(passes::keep_outputs(&g, &[3]).is_err());
    let mut none = Graph::new("no layer");
    let x = none.input("x", vec![2.into()], DType::F32).unwrap();
    none.output("y", x).unwrap();
    assert!(passes::keep_outputs(&none, &[0]).is_err());
}

#[test]
fn wrong_passes_are_caught() {
    let (mut caught, mut tried) = ([0; 2], 0);
    for seed in 0..60 {
        let (graph, feeds) = blocks(seed);
        let graph = passes::store(&graph, |_| Some(Storage::F32)).unwrap();
        let want = run(&graph, &feeds);
        // Scales dropped, not moved.
        let dropped = passes::rewrite(&graph, |new, node, inputs| {
            let Op::RmsNorm { .. } = node.op else { return Ok(None) };
            let width = new.param_of(inputs[1]).unwrap().tensor.count();
            let ones = new.param("ones", Tensor::new([width], vec![1.0; width])?)?;
            new.apply(node.op.clone(), &[inputs[0], ones]).map(Some)
        });
        // Scales multiplied into outputs instead of inputs: what the fold gives, with rows scaled, not columns.
        let rows = passes::rewrite(&passes::fold_norms(&graph).unwrap(), |new, node, inputs| {
            let Some((weight, scale)) =
                new.param_of(*inputs.get(1).unwrap_or(&inputs[0])).and_then(|param| {
                    let (weight, scale) = param.name.split_once('*')?;
                    Some((graph.find(weight)?, graph.find(scale)?))
                })
            else {
                return Ok(None);
            };
            let tensor = |value| &graph.param_of(value).unwrap().tensor;
            let (scale, width) = (tensor(scale).to_f32()?.into_owned(), tensor(scale).count());
            let mut values = tensor(weight).to_f32()?.into_owned();
            values
                .chunks_exact_mut(width)
                .zip(&scale)
                .for_each(|(row, s)| row.iter_mut().for_each(|v| *v *= s));
            let mut operands = inputs.to_vec();
            let name = format!("{} by rows", graph.info(weight).name);
            operands[1] = new.param(&name, Tensor::new([width, width], values)?)?;
            new.apply(node.op.clone(), &operands).map(Some)
        });
        tried += 1;
        for (wrong, caught) in [dropped, rows].into_iter().zip(&mut caught) {
            *caught += usize::from(difference(&run(&wrong.unwrap(), &feeds), &want) > 1e-5);
        }
    }
    // Where no norm can be folded, the second mistake cannot be made.
    assert!(caught[0] == tried && caught[1] * 2 > tried, "{caught:?} of {tried}");
}

/// On a whole language model: the cut body with its caches, taps, and names that are not there.
#[test]
fn bodies_are_cut_with_their_caches() {
    let network = CausalNetwork::random(CausalConfig::llama(11, 16, 3, [4, 2], 32), 1).unwrap();
    let body = network.body(0..3, &Default::default()).unwrap();
    let (rows, past) = (2, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut floats = |shape: &[usize]| {
        Array::float(
            shape,
            (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<_>>(),
        )
    };
    let mut feeds = vec![
        ("x".to_owned(), floats(&[1, rows, 16])),
        ("positions".into(), Array::int([1, rows], [3, 4])),
        ("mask".into(), Array::float([1, 1, rows, rows + past], [0., 0., 0., 0., -1e9, 0., 0., 0., 0., 0.])),
    ];
    for layer in 0..3 {
        for kind in ["key", "value"] {
            feeds.push((format!("past_{kind}.{layer}"), floats(&[1, 2, past, 4])));
        }
    }
    let want = run(&body, &feeds);
    for layer in 1..3 {
        let (first, second) = passes::cut(&body, layer).unwrap();
        let has = |graph: &Graph, name: &str| graph.outputs().iter().any(|(output, _)| output == name);
        for l in 0..3 {
            assert_eq!(has(&first, &format!("key.{l}")), l < layer);
            assert_eq!(has(&second, &format!("value.{l}")), l >= layer);
            assert_eq!(first.find(&format!("past_key.{l}")).is_some(), l < layer, "{first}");
        }
        let mut got = run(&first, &feeds);
        let residual = got.remove("residual").unwrap();
        let mut later = feeds.clone();
        later[0].1 = Array::float([1, rows, 16], residual);
        got.extend(run(&second, &later));
        assert!(difference(&got, &want) < 1e-12);
    }
    let tapped = passes::tap(&body, &[(Mark::Residual(1), "after one"), (Mark::FinalNormed, "end")]).unwrap();
    let out = run(&tapped, &feeds);
    assert_eq!(out["end"], want["final_normed"]);
    let (first, _) = passes::cut(&body, 1).unwrap();
    assert_eq!(out["after one"], run(&first, &feeds)["residual"]);
    for error in [
        passes::cut(&body, 7).map(drop).unwrap_err().to_string(),
        passes::tap(&body, &[(Mark::Residual(7), "x")]).map(drop).unwrap_err().to_string(),
    ] {
        assert!(error.contains("Residual(7)") && error.contains("Residual(0)"), "{error}");
    }
    let error = passes::store(&body, |name| name.contains("nothing").then_some(Storage::F32)).unwrap_err();
    assert!(error.to_string().contains("input_layernorm"), "{error}");
    assert!(passes::tap(&body, &[(Mark::Residual(3), "residual")]).is_err());
}
