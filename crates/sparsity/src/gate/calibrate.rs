use std::collections::BTreeMap;

use pilotfish_graph::{BinaryOp, Graph, Op, Producer, Value};
use serde::{Deserialize, Serialize};

use super::{Gate, GateMethod, Score, column_norms};
use crate::sequential::{Hidden, Layers, check, linears, observe};
use crate::{Engine, Result, SparsityError};

/// Scores seen over calibration tokens, sorted.
#[derive(Clone, Debug, Default)]
pub struct Quantiles {
    values: Vec<f32>,
    sorted: bool,
}

impl Quantiles {
    /// Adds scores.
    pub fn add(&mut self, scores: impl IntoIterator<Item = f32>) {
        self.values.extend(scores);
        self.sorted = false;
    }

    /// The `q`-quantile: of the sorted values, linearly between the one at which a share of `q` is reached and the one
    /// before it; 0 at 0.
    ///
    /// # Errors
    /// No values, or a `q` that is not within 0 and 1.
    pub fn at(&mut self, q: f64) -> Result<f32> {
        if !(0.0..=1.0).contains(&q) {
            return Err(SparsityError::parameter("sparsity", q, "from 0 to 1"));
        }
        if self.values.is_empty() {
            return Err(SparsityError::NoRows { what: "scores".into() });
        }
        if q == 0.0 {
            return Ok(0.0);
        }
        if !self.sorted {
            self.values.sort_by(f32::total_cmp);
            self.sorted = true;
        }
        let target = q * self.values.len() as f64;
        let at = (target.ceil() as usize).clamp(1, self.values.len()) - 1;
        if at == 0 {
            return Ok(self.values[0]);
        }
        let (low, high) = (f64::from(self.values[at - 1]), f64::from(self.values[at]));
        Ok((low + (target - at as f64) * (high - low)) as f32)
    }
}

/// Gates of a layer's matrices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    /// By name.
    pub gates: BTreeMap<String, Gate>,
}

/// For [`Score::Activation`]: the activation in the product that a value is.
pub(crate) fn activation_of(graph: &Graph, value: Value) -> Option<Value> {
    let Producer::Node(id, _) = graph.info(value).producer else { return None };
    let node = graph.node(id);
    (node.op == Op::Binary(BinaryOp::Mul)).then(|| node.inputs.first().copied()).flatten()
}

/// Gates of one layer's matrices in the threshold form: thresholds are quantiles of what `hidden`, the residual stream
/// of the calibration texts before the layer, gives. `sparsity` is asked for each matrix' share; `None` and 0 leave it
/// dense.
///
/// # Errors
/// No texts; a layer whose down projection does not read a product, for CATS; whatever the engine refuses.
pub fn calibrate_gates(
    layers: &dyn Layers,
    graph: &Graph,
    hidden: &[Hidden],
    engine: &mut dyn Engine,
    method: GateMethod,
    sparsity: &dyn Fn(&str) -> Option<f64>,
) -> Result<Calibrated> {
    check(hidden, layers.width())?;
    let mut wanted: Vec<(String, Score, f64, Vec<f32>)> = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    for (name, [_, ins], value) in linears(graph) {
        let (Some(score), Some(share)) = (method.score(&name), sparsity(&name)) else { continue };
        if share == 0.0 {
            continue;
        }
        let gate = Gate { score, sparsity: share, threshold: None };
        gate.check()?;
        let read = match score {
            Score::Activation => activation_of(graph, value).ok_or_else(|| SparsityError::Structure {
                what: name.clone(),
                why: "CATS needs a matrix that reads an activation times something".into(),
            })?,
            _ => value,
        };
        let norms = match (score, graph.params().iter().find(|param| param.name == name)) {
            (Score::Weighted, Some(param)) => column_norms(&param.tensor.to_f32()?, ins),
            _ => Vec::new(),
        };
        wanted.push((name, score, share, norms));
        values.push(read);
    }
    let mut seen: Vec<Quantiles> = vec![Quantiles::default(); wanted.len()];
    if !values.is_empty() {
        observe(layers, graph, &values, hidden, engine, &mut |at, rows| {
            let norms = &wanted[at].3;
            match norms.len() {
                0 => seen[at].add(rows.iter().map(|x| x.abs())),
                ins => seen[at].add(rows.iter().enumerate().map(|(i, x)| x.abs() * norms[i % ins])),
            }
            Ok(())
        })?;
    }
    let mut out = Calibrated::default();
    for ((name, score, sparsity, _), mut seen) in wanted.into_iter().zip(seen) {
        let threshold = Some(seen.at(sparsity)?);
        out.gates.insert(name, Gate { score, sparsity, threshold });
    }
    Ok(out)
}
