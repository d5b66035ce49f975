//! Gates: worked examples, optimality, closed forms.
#![allow(clippy::unwrap_used)]

use pilotfish_graph::{DType, Dim, Graph, Kept, Op, Storage, Tensor};
use pilotfish_sparsity::gate::{GATES, Gate, GateMethod, Quantiles, Score, column_norms};
use pilotfish_sparsity::plan::{Calibration, LayerPlan, Plan};
use pilotfish_sparsity::{MultiplyAdds, Pattern};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};

fn error(w: &[f64], ins: usize, x: &[f64], keep: &[bool]) -> f64 {
    let dropped = |row: &[f64]| -> f64 {
        row.iter().zip(x).zip(keep).filter(|(_, k)| !**k).map(|((w, x), _)| w * x).sum()
    };
    w.chunks_exact(ins).map(|row| dropped(row).powi(2)).sum()
}

fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

fn top(score: Score, kept: usize, w: &[f64], x: &[f64]) -> Vec<bool> {
    let n = x.len();
    Gate::top_k(score, 1.0 - kept as f64 / n as f64).keep(&single(x), &column_norms(&single(w), n))
}

#[test]
fn weighted_scores_need_orthogonal_columns() {
    // Columns (2, 0), (-1.9, 0), (1, 0): dropping the first two together would cost almost nothing.
    let (w, x) = ([2.0, -1.9, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.05]);
    let of = |score| error(&w, 3, &x, &top(score, 1, &w, &x));
    assert!((of(Score::Weighted) - 0.7225).abs() < 1e-9 && (of(Score::Magnitude) - 0.01).abs() < 1e-9);
}

#[test]
fn a_nonlinearity_can_turn_the_order() {
    // W = diag(2, 1) behind a ReLU, x = (-1, 1.5): the weighted choice keeps what the ReLU kills.
    let (w, x) = ([2.0, 0.0, 0.0, 1.0], [-1.0, 1.5]);
    let relu = |keep: &[bool]| -> f64 {
        let out = |row: usize, all: bool| {
            (0..2).filter(|&i| all || keep[i]).map(|i| w[row * 2 + i] * x[i]).sum::<f64>().max(0.0)
        };
        (0..2).map(|row| (out(row, true) - out(row, false)).powi(2)).sum()
    };
    assert_eq!(relu(&top(Score::Weighted, 1, &w, &x)), 2.25);
    assert_eq!(relu(&top(Score::Magnitude, 1, &w, &x)), 0.0);
    // Over all signs: 1.125 against 2.
    let mean = |score| -> f64 {
        let signs = [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)];
        let one = |(a, b): (f64, f64)| {
            let x = [a, 1.5 * b];
            let keep = top(score, 1, &w, &x);
            let out = |i: usize, kept: bool| if kept { (w[i * 3] * x[i]).max(0.0) } else { 0.0 };
            (0..2).map(|i| (out(i, true) - out(i, keep[i])).powi(2)).sum::<f64>() / 4.0
        };
        signs.into_iter().map(one).sum()
    };
    assert_eq!((mean(Score::Weighted), mean(Score::Magnitude)), (1.125, 2.0));
}

/// A matrix with orthogonal columns of given norms: Gram-Schmidt on random ones.
fn orthogonal(rng: &mut impl Rng, rows: usize, norms: &[f64]) -> Vec<f64> {
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for norm in norms {
        let mut column: Vec<f64> = (0..rows).map(|_| rng.random_range(-1.0..1.0)).collect();
        for _ in 0..2 {
            for other in &columns {
                let size: f64 = other.iter().map(|x| x * x).sum();
                let along = other.iter().zip(&column).map(|(a, b)| a * b).sum::<f64>() / size;
                column.iter_mut().zip(other).for_each(|(c, o)| *c -= along * o);
            }
        }
        let length = column.iter().map(|x| x * x).sum::<f64>().sqrt();
        columns.push(column.into_iter().map(|x| x / length * norm).collect());
    }
    (0..rows).flat_map(|i| columns.iter().map(move |column| column[i]).collect::<Vec<_>>()).collect()
}

proptest! {
    /// With orthogonal columns no mask of as many inputs does better, for any x.
    #[test]
    fn the_weighted_choice_is_optimal(seed in any::<u64>(), kept in 0usize..=7) {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let norms: Vec<f64> = (0..7).map(|_| rng.random_range(0.1..4.0)).collect();
        let w = orthogonal(&mut rng, 9, &norms);
        let x: Vec<f64> = (0..7).map(|_| rng.random_range(-2.0..2.0)).collect();
        let best = (0u32..128)
            .filter(|mask| mask.count_ones() as usize == kept)
            .map(|mask| error(&w, 7, &x, &(0..7).map(|i| mask >> i & 1 == 1).collect::<Vec<_>>()))
            .fold(f64::INFINITY, f64::min);
        let keep = top(Score::Weighted, kept, &w, &x);
        prop_assert_eq!(keep.iter().filter(|k| **k).count(), kept);
        prop_assert!(error(&w, 7, &x, &keep) <= best + 1e-5);
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    let (a, b): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
}

#[test]
fn gaussian_inputs_on_falling_norms() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let norms: Vec<f64> = (0..8).map(|i| 2f64.powf(-f64::from(i) / 2.0)).collect();
    let w: Vec<f64> = (0..64).map(|at| if at / 8 == at % 8 { norms[at % 8] } else { 0.0 }).collect();
    let draws = 40_000;
    let mut sums = [[0.0; 2]; 3];
    for _ in 0..draws {
        let x: Vec<f64> = (0..8).map(|_| normal(&mut rng)).collect();
        for (row, kept) in [6, 4, 3].into_iter().enumerate() {
            for (column, score) in [Score::Magnitude, Score::Weighted].into_iter().enumerate() {
                sums[row][column] += error(&w, 8, &x, &top(score, kept, &w, &x)) / f64::from(draws);
            }
        }
    }
    for (row, want) in sums.iter().zip([[0.0377, 0.0071], [0.206, 0.0506], [0.384, 0.117]]) {
        for (got, want) in row.iter().zip(want) {
            assert!((got / want - 1.0).abs() < 0.03, "{sums:?}");
        }
    }
}

#[test]
fn teal_on_gaussian_matrices_in_closed_form() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(3);
    let (n, rows) = (3000, 40);
    let x: Vec<f64> = (0..n).map(|_| normal(&mut rng)).collect();
    let w: Vec<f64> = (0..rows * n).map(|_| normal(&mut rng)).collect();
    let mut scores = Quantiles::default();
    scores.add(x.iter().map(|x| x.abs() as f32));
    let whole = error(&w, n, &x, &vec![false; n]);
    for (sparsity, want) in [(0.25, 0.091), (0.4, 0.188), (0.5, 0.267), (0.65, 0.410), (0.9, 0.749)] {
        let threshold = Some(scores.at(sparsity).unwrap());
        let gate = Gate { score: Score::Magnitude, sparsity, threshold };
        let keep = gate.keep(&single(&x), &[]);
        let share = keep.iter().filter(|k| !**k).count() as f64 / n as f64;
        assert!((share - sparsity).abs() < 0.005, "{share}");
        let found = (error(&w, n, &x, &keep) / whole).sqrt();
        // 40 rows: the ratio is known to some 15 %.
        assert!((found / want - 1.0).abs() < 0.3, "{sparsity}: {found} is not {want}");
    }
    // The energy that is dropped is exact: p - 2 t phi(t).
    let dropped: f64 = {
        let t = f64::from(scores.at(0.5).unwrap());
        x.iter().filter(|x| x.abs() <= t).map(|x| x * x).sum::<f64>() / x.iter().map(|x| x * x).sum::<f64>()
    };
    assert!((dropped.sqrt() - 0.267).abs() < 0.02, "{dropped}");
}

#[test]
fn quantiles_by_hand() {
    let mut q = Quantiles::default();
    assert!(q.at(0.5).is_err());
    q.add([4.0, 1.0, 3.0, 2.0]);
    for (at, want) in [(0.0, 0.0), (0.25, 1.0), (0.5, 2.0), (0.625, 2.5), (0.75, 3.0), (1.0, 4.0)] {
        assert_eq!(q.at(at).unwrap(), want, "{at}");
    }
    assert!(q.at(f64::NAN).is_err() && q.at(1.5).is_err());
}

#[test]
fn ties_keep_exact_counts() {
    let gate = Gate::top_k(Score::Magnitude, 0.5);
    assert_eq!(gate.keep(&[0.0; 4], &[]), [true, true, false, false]);
    assert_eq!(gate.keep(&[1.0, -2.0, 2.0, 2.0], &[]), [false, true, true, false]);
    assert_eq!(Gate::top_k(Score::Magnitude, 0.65).kept(576), 201);
    let none = Gate { score: Score::Magnitude, sparsity: 0.0, threshold: Some(0.0) };
    assert_eq!(none.keep(&[0.0, 1.0], &[]), [true, true]);
}

fn mlp() -> Graph {
    let mut g = Graph::new("mlp");
    let x = g.input("x", vec![1.into(), Dim::symbol("T"), 4.into()], DType::F32).unwrap();
    let w = |g: &mut Graph, name: &str, outs: usize, ins: usize| {
        let values = (0..outs * ins).map(|at| ((at * 7 + 3) % 11) as f32 / 5.0 - 1.0).collect();
        g.param(name, Tensor::new([outs, ins], values).unwrap()).unwrap()
    };
    let gate = w(&mut g, "l.mlp.gate_proj.weight", 8, 4);
    let gate = g.linear(x, gate, None).unwrap();
    let up = w(&mut g, "l.mlp.up_proj.weight", 8, 4);
    let up = g.linear(x, up, None).unwrap();
    let act = g.unary(pilotfish_graph::UnaryOp::Silu, gate).unwrap();
    let h = g.mul(act, up).unwrap();
    let down = w(&mut g, "l.mlp.down_proj.weight", 4, 8);
    let y = g.linear(h, down, None).unwrap();
    g.output("residual", y).unwrap();
    g
}

fn plan(name: &str, layer: LayerPlan) -> Plan {
    let mut plan = Plan::new("toy");
    plan.layers.insert(name.into(), layer);
    plan
}

#[test]
fn multiply_adds_by_hand() {
    let g = mlp();
    assert_eq!(
        MultiplyAdds::count(&g, &Plan::new("toy")),
        MultiplyAdds { dense: 96, gated: 96, ..Default::default() }
    );
    let gate = |score| LayerPlan { gate: Some(Gate::top_k(score, 0.5)), ..LayerPlan::default() };
    let weighted = MultiplyAdds::count(&g, &plan("l.mlp.gate_proj.weight", gate(Score::Weighted)));
    assert_eq!(weighted, MultiplyAdds { dense: 96, gated: 80, rotations: 0, scores: 4 });
    // CATS saves rows of the up projection as well as columns of the down projection.
    let cats = MultiplyAdds::count(&g, &plan("l.mlp.down_proj.weight", gate(Score::Activation)));
    assert_eq!(cats.gated, 32 + 16 + 16);
}

#[test]
fn plans_on_graphs() {
    let g = mlp();
    let same = Plan::new("toy").apply(&g).unwrap();
    assert_eq!(same.nodes().len(), g.nodes().len());
    let none = LayerPlan { gate: Some(Gate::top_k(Score::Magnitude, 0.0)), ..LayerPlan::default() };
    assert_eq!(plan("l.mlp.up_proj.weight", none).apply(&g).unwrap().nodes().len(), g.nodes().len());
    // CATS needs an activation times something.
    let cats = LayerPlan { gate: Some(Gate::top_k(Score::Activation, 0.5)), ..LayerPlan::default() };
    assert!(plan("l.mlp.down_proj.weight", cats).apply(&g).is_ok());
    assert!(plan("l.mlp.up_proj.weight", cats).apply(&g).is_err());
    // Dense positions need to know the positions.
    let half = LayerPlan { gate: Some(Gate::top_k(Score::Magnitude, 0.5)), ..LayerPlan::default() };
    let first = Plan { dense_positions: 2, ..plan("l.mlp.up_proj.weight", half) };
    assert!(first.apply(&g).is_err());
    // Packing checks the pattern, and changes the storage.
    let pattern = Pattern::Grouped { keep: 2, group: 4 };
    let packed = plan("l.mlp.up_proj.weight", LayerPlan { pattern, packed: true, ..LayerPlan::default() });
    let error = packed.apply(&g).err().unwrap().to_string();
    assert!(error.contains("row 0, group 0 has 4"), "{error}");
    let mut pruned = g.clone();
    let values = (0..32).map(|at| if at % 4 < 2 { 1.0 } else { 0.0 }).collect();
    pruned.set_param("l.mlp.up_proj.weight", Tensor::new([8, 4], values).unwrap()).unwrap();
    let stored = packed.apply(&pruned).unwrap();
    assert!(
        stored
            .nodes()
            .iter()
            .any(|node| node.op == Op::Linear(Storage::Sparse { keep: 2, group: 4, kept: Kept::F32 }))
    );
}

#[test]
fn plans_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let gate = Gate { score: Score::Weighted, sparsity: 0.4, threshold: Some(0.12345678) };
    let mut plan = plan(
        "a",
        LayerPlan { pattern: "2:4".parse().unwrap(), packed: true, kept: Kept::Int8, gate: Some(gate) },
    );
    plan.pruner = Some("sparsegpt+dsnot".parse().unwrap());
    plan.gates = Some(GateMethod::Wina);
    plan.calibration = Some(Calibration { source: "x".into(), sequences: 1, length: 2, seed: 3 });
    std::fs::write(&path, plan.to_json()).unwrap();
    assert_eq!(Plan::read(&path).unwrap(), plan);
    assert!(plan.compare(&plan).is_empty());
    let mut other = plan.clone();
    other.layers.insert("b".into(), LayerPlan { pattern: "0.5".parse().unwrap(), ..LayerPlan::default() });
    assert_eq!(plan.compare(&other), ["b: plain | 0.5"]);
    let error = other.check_names(&["a", "long"]).err().unwrap().to_string();
    assert!(error.contains("\"b\"") && error.contains("there are: a, long"), "{error}");
    let text = plan.to_json();
    for broken in [
        text.replace("\"version\": 1", "\"version\": 2"),
        text.replace("2:4", "5:4"),
        text.replace("0.4", "1.4"),
        text.replace("model", "modle"),
        text[..text.len() / 2].to_owned(),
        String::new(),
    ] {
        std::fs::write(&path, broken).unwrap();
        assert!(Plan::read(&path).is_err());
    }
    assert!(Plan::read(&folder.path().join("nothing")).is_err());
    let wrong = LayerPlan { pattern: "0.5".parse().unwrap(), packed: true, ..LayerPlan::default() };
    assert!(Plan { layers: [("a".to_owned(), wrong)].into(), ..Plan::new("x") }.check().is_err());
}

#[test]
fn methods_by_name() {
    for name in GATES {
        assert_eq!(name.parse::<GateMethod>().unwrap().name(), *name);
    }
    let error = "wna".parse::<GateMethod>().err().unwrap().to_string();
    assert!(error.contains("did you mean wina?"), "{error}");
    let score = |method: GateMethod, part: &str| method.score(&format!("model.layers.0.{part}.weight"));
    let weighted = Some(Score::Weighted);
    assert_eq!(score(GateMethod::Wina, "self_attn.k_proj"), weighted);
    assert_eq!(score(GateMethod::Wina, "mlp.gate_proj"), weighted);
    for part in ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"] {
        assert_eq!(score(GateMethod::Wina, part), Some(Score::Magnitude));
        assert_eq!(score(GateMethod::WinaPlain, part), weighted);
    }
    // What carries the residual stream from one basis to the next is no projection: half of it is not to be dropped.
    for method in [GateMethod::Teal, GateMethod::TealRotated, GateMethod::Wina, GateMethod::WinaPlain] {
        for name in ["rotation.0.1", "rotation.in.0", "rotation.out.60"] {
            assert_eq!(method.score(name), None);
        }
    }
    assert_eq!(score(GateMethod::Cats, "mlp.down_proj"), Some(Score::Activation));
    assert_eq!(score(GateMethod::Cats, "mlp.up_proj"), None);
}
