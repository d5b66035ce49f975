//! A plan: what is sparse in a model, and how it came to be.
//!
//! Any pruner and any gate gives one. It is a file (`plan.json`) beside the weights; [`Plan::apply`] turns a graph into
//! the graph that runs it. Weights that were pruned are zeros in the checkpoint, so that any runtime can use them;
//! packed storage and gates are the plan's.

use std::collections::BTreeMap;
use std::path::Path;

use pilotfish_graph::{
    BinaryOp, DType, Graph, GraphError, Kept, Literal, Op, Storage, UnaryOp, Value, passes,
};
use serde::{Deserialize, Serialize};

use crate::gate::{Gate, GateMethod, Score, column_norms};
use crate::prune::verify;
use crate::{Pattern, Pruner, Result, SparsityError};

/// The newest form of the file.
const VERSION: u32 = 1;

/// The file's name in a model folder.
pub const PLAN_FILE: &str = "plan.json";

/// What is sparse in a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Form of the file.
    pub version: u32,
    /// The model it was made for.
    pub model: String,
    /// How matrices were pruned, if they were.
    pub pruner: Option<Pruner>,
    /// How inputs are gated, if they are.
    pub gates: Option<GateMethod>,
    /// What it was calibrated on.
    pub calibration: Option<Calibration>,
    /// Tokens at the beginning of a text that no gate touches.
    pub dense_positions: usize,
    /// Each linear layer that is not plain, by its matrix' name.
    pub layers: BTreeMap<String, LayerPlan>,
}

/// Texts that a plan was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Where they come from.
    pub source: String,
    /// How many.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
    /// Seed of their places in the text.
    pub seed: u64,
}

/// What is sparse about one linear layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerPlan {
    /// Which weights may be other than zero.
    pub pattern: Pattern,
    /// Whether it is stored for kernels that skip: by columns where inputs are gated, else in the pattern's groups.
    pub packed: bool,
    /// What packed weights are kept in.
    #[serde(default)]
    pub kept: Kept,
    /// Which inputs are dropped.
    pub gate: Option<Gate>,
}

impl LayerPlan {
    /// How the matrix is stored, if the plan says so.
    fn storage(&self) -> Option<Storage> {
        match (self.packed, self.gate, self.pattern) {
            (true, Some(_), _) => Some(Storage::Columns { kept: self.kept }),
            (true, None, Pattern::Grouped { keep, group }) => {
                Some(Storage::Sparse { keep, group, kept: self.kept })
            }
            _ => None,
        }
    }
}

impl Plan {
    /// A plan that changes nothing.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            model: model.into(),
            pruner: None,
            gates: None,
            calibration: None,
            dense_positions: 0,
            layers: BTreeMap::new(),
        }
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, is no plan, or is one of a newer form; numbers outside their range.
    pub fn read(path: &Path) -> Result<Self> {
        const LARGEST: u64 = 64 << 20;
        let broken = |why: String| SparsityError::File { path: path.display().to_string(), why };
        let size = std::fs::metadata(path).map_err(|error| broken(error.to_string()))?.len();
        if size > LARGEST {
            return Err(broken(format!("{size} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
        let plan: Self = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if plan.version != VERSION {
            return Err(broken(format!("version {}; this is {VERSION}", plan.version)));
        }
        plan.check()?;
        Ok(plan)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Checks every number.
    ///
    /// # Errors
    /// One that is outside its range; packing of what has no groups.
    pub fn check(&self) -> Result<()> {
        self.pruner.as_ref().map_or(Ok(()), Pruner::check)?;
        for (name, layer) in &self.layers {
            layer.pattern.check()?;
            layer.gate.map_or(Ok(()), |gate| gate.check())?;
            if layer.packed && layer.gate.is_none() && !matches!(layer.pattern, Pattern::Grouped { .. }) {
                let why =
                    format!("only patterns of groups and gated layers are packed, not {}", layer.pattern);
                return Err(SparsityError::Structure { what: name.clone(), why });
            }
        }
        Ok(())
    }

    /// Checks that every layer it names is one of these.
    ///
    /// # Errors
    /// The first that is not, with the nearest name that is.
    pub fn check_names(&self, known: &[&str]) -> Result<()> {
        match self.layers.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(SparsityError::unknown("linear layer", name, known.iter().copied())),
            None => Ok(()),
        }
    }

    /// The graph that runs the plan: gates before linear layers, packed storage for theirs; layers with one gate on one
    /// value share what it lets through. Where CATS gates a packed down projection, the up projection is stored by rows.
    /// Layers that the graph does not have are another part's. With `dense_positions` the graph needs an input `positions`
    /// `[B, T]`.
    ///
    /// # Errors
    /// Numbers outside their range, a matrix that does not keep the pattern it is to be packed in, a gate whose layer
    /// does not have the structure that it needs.
    pub fn apply(&self, graph: &Graph) -> Result<Graph> {
        self.check()?;
        for param in graph.params() {
            if let Some(layer) = self.layers.get(&param.name)
                && layer.packed
                && matches!(layer.pattern, Pattern::Grouped { .. })
            {
                let ins = param.tensor.shape().last().copied().unwrap_or(0);
                verify(&param.name, &param.tensor.to_f32()?, ins, layer.pattern)?;
            }
        }
        let mut failed = None;
        let mut shared: Vec<(Value, Gate, Vec<f32>, Value)> = Vec::new();
        let out = passes::rewrite(graph, |new, node, inputs| {
            let Op::Linear(storage) = node.op else { return Ok(None) };
            let found = new.param_of(inputs[1]).map(|param| (param.name.clone(), param.tensor.clone()));
            let Some((name, tensor)) = found else { return Ok(None) };
            let planned = self.layers.get(&name);
            if self.skips_rows(&name)
                && planned.is_none_or(|layer| layer.storage().is_none() && layer.gate.is_none())
            {
                return new.apply(Op::Linear(Storage::Rows), inputs).map(Some);
            }
            let Some(layer) = planned else { return Ok(None) };
            let storage = layer.storage().unwrap_or(storage);
            let mut operands = inputs.to_vec();
            if let Some(gate) = layer.gate {
                let norms = match gate.score {
                    Score::Weighted => {
                        column_norms(&tensor.to_f32()?, tensor.shape().last().copied().unwrap_or(0))
                    }
                    _ => Vec::new(),
                };
                let (x, same) = (operands[0], |old: &&(Value, Gate, Vec<f32>, Value)| {
                    old.0 == operands[0] && old.1 == gate && old.2 == norms
                });
                if let Some(&(.., through)) = shared.iter().find(same) {
                    operands[0] = through;
                    return new.apply(Op::Linear(storage), &operands).map(Some);
                }
                match gated(new, x, &gate, &norms, self.dense_positions) {
                    Ok(Some(through)) => {
                        shared.push((x, gate, norms, through));
                        operands[0] = through;
                    }
                    Ok(None) => {}
                    Err(GateFailure::Graph(error)) => return Err(error),
                    Err(GateFailure::Structure(why)) => {
                        failed.get_or_insert(SparsityError::Structure { what: name.clone(), why });
                    }
                }
            }
            new.apply(Op::Linear(storage), &operands).map(Some)
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok(out),
        }
    }

    /// Whether a matrix is the up projection of a packed MLP that CATS gates.
    fn skips_rows(&self, name: &str) -> bool {
        let down = name.replace(".up_proj.", ".down_proj.");
        let gated = |layer: &LayerPlan| {
            layer.packed
                && layer.kept == Kept::F32
                && layer.gate.is_some_and(|gate| gate.score == Score::Activation && gate.sparsity > 0.0)
        };
        down != name && self.layers.get(&down).is_some_and(gated)
    }

    /// What two plans have different, a line each.
    pub fn compare(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |what: &str, a: String, b: String| {
            if a != b {
                lines.push(format!("{what}: {a} | {b}"));
            }
        };
        say("model", self.model.clone(), other.model.clone());
        let method = |plan: &Self| {
            let pruner = plan.pruner.as_ref().map(|pruner| pruner.name());
            format!("{} {}", pruner.unwrap_or("-"), plan.gates.map_or("-", GateMethod::name))
        };
        say("method", method(self), method(other));
        say("calibration", format!("{:?}", self.calibration), format!("{:?}", other.calibration));
        say("dense positions", self.dense_positions.to_string(), other.dense_positions.to_string());
        let names: std::collections::BTreeSet<&String> =
            self.layers.keys().chain(other.layers.keys()).collect();
        for name in names {
            let text = |plan: &Self| plan.layers.get(name).map_or("plain".into(), LayerPlan::to_string);
            say(name, text(self), text(other));
        }
        lines
    }
}

impl std::fmt::Display for LayerPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.pattern, if self.packed { " packed" } else { "" })?;
        match self.kept {
            Kept::F32 => {}
            Kept::Bf16 => f.write_str(" in bf16")?,
            Kept::Int8 => f.write_str(" in int8")?,
        }
        match self.gate {
            None => Ok(()),
            Some(Gate { score, sparsity, threshold: Some(threshold) }) => {
                write!(f, ", {score:?} above {threshold} ({sparsity})")
            }
            Some(Gate { score, sparsity, threshold: None }) => write!(f, ", {score:?} top-k ({sparsity})"),
        }
    }
}

pub(crate) enum GateFailure {
    Graph(GraphError),
    Structure(String),
}

impl From<GraphError> for GateFailure {
    fn from(error: GraphError) -> Self {
        Self::Graph(error)
    }
}

/// The gated form of a linear layer's input; `None` where the gate drops nothing.
fn gated(
    g: &mut Graph,
    x: Value,
    gate: &Gate,
    norms: &[f32],
    dense_positions: usize,
) -> Result<Option<Value>, GateFailure> {
    let width = g.shape(x).last().and_then(pilotfish_graph::Dim::fixed).unwrap_or(0);
    let kept = gate.kept(width);
    if gate.sparsity == 0.0 || (gate.threshold.is_none() && kept == width) {
        return Ok(None);
    }
    let judged = match gate.score {
        Score::Activation => crate::gate::activation_of(g, x).ok_or_else(|| {
            GateFailure::Structure("CATS needs a matrix that reads an activation times something".into())
        })?,
        _ => x,
    };
    let mut score = g.unary(UnaryOp::Abs, judged)?;
    if gate.score == Score::Weighted {
        let norms = g.constant(Literal::F32 { shape: vec![width], values: norms.to_vec() })?;
        score = g.mul(score, norms)?;
    }
    let mut keep = match gate.threshold {
        Some(threshold) => {
            let threshold = g.scalar(threshold)?;
            g.binary(BinaryOp::Greater, score, threshold)?
        }
        None if kept == 0 => {
            let never = g.scalar(f32::INFINITY)?;
            g.binary(BinaryOp::Greater, score, never)?
        }
        None => {
            let (largest, _) = g.top_k(score, kept)?;
            let axis = g.shape(largest).rank() - 1;
            let least = g.slice(largest, axis, kept - 1, kept)?;
            g.binary(BinaryOp::GreaterOrEqual, score, least)?
        }
    };
    if dense_positions > 0 {
        let missing = || GateFailure::Structure("dense positions need an input named positions".into());
        let positions = g.find("positions").ok_or_else(missing)?;
        let mut dims = g.shape(positions).dims().to_vec();
        dims.push(1.into());
        let positions = g.reshape(positions, dims)?;
        let positions = g.cast(positions, DType::F32)?;
        let first = g.scalar(dense_positions as f32)?;
        let early = g.binary(BinaryOp::Less, positions, first)?;
        keep = g.binary(BinaryOp::Or, keep, early)?;
    }
    let zero = g.scalar(0.0)?;
    Ok(Some(g.select(keep, x, zero)?))
}

/// Multiply-adds a token of the linear layers of a graph under a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiplyAdds {
    /// Of the same layers without any plan, rotations left out.
    pub dense: u64,
    /// Of the layers with gates: columns that are kept, and for CATS rows of the up projection; rotations left out.
    pub gated: u64,
    /// Of rotations of the residual stream ([`wina`](crate::wina)).
    pub rotations: u64,
    /// Products of inputs with column norms in weighted scores.
    pub scores: u64,
}

impl MultiplyAdds {
    /// Counts. Zeros of pruned matrices are counted like any weight unless they are packed.
    pub fn count(graph: &Graph, plan: &Plan) -> Self {
        let mut sum = Self::default();
        for (name, [outs, ins], _) in crate::sequential::linears(graph) {
            let all = (outs * ins) as u64;
            if name.starts_with(crate::wina::ROTATION) {
                sum.rotations += all;
                continue;
            }
            sum.dense += all;
            let layer = plan.layers.get(&name).copied().unwrap_or_default();
            let gate = layer.gate.or_else(|| {
                let down = plan.layers.get(&name.replace(".up_proj.", ".down_proj."))?.gate?;
                (name.contains(".up_proj.") && down.score == Score::Activation).then_some(down)
            });
            let rows_skipped = layer.gate.is_none() && gate.is_some();
            let columns = match gate {
                Some(gate) if rows_skipped => gate.kept(outs) * ins,
                Some(gate) => gate.kept(ins) * outs,
                None => outs * ins,
            };
            sum.scores += match layer.gate {
                Some(Gate { score: Score::Weighted, .. }) => ins as u64,
                _ => 0,
            };
            let packed = if layer.packed { 1.0 - layer.pattern.sparsity() } else { 1.0 };
            sum.gated += (columns as f64 * packed) as u64;
        }
        sum
    }
}
