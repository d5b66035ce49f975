//! WINA's transformation: rotations of the residual stream that make the columns of the key and gate projections
//! orthogonal, without changing what the model computes.
//!
//! ```text
//! 1. fold each norm's gain g into the matrices behind it: W <- W diag(g); RMSNorm without gain commutes with rotations
//! 2. R_l  = V of the singular value decomposition of layer l's folded W_k
//!    R'_l = V of its folded W_gate;  R_L = R'_(L-1)
//! 3. the residual before layer l is kept as h R_l, the one between attention and MLP as h R'_l:
//!      W_q, W_k, W_v  <- W R_l           W_o    <- R'_l^T W_o (its bias too)
//!      W_gate, W_up   <- W R'_l          W_down <- R_(l+1)^T W_down (its bias too)
//!      residual of attention: times A_l = R_l^T R'_l;  residual of the MLP: times B_l = R'_l^T R_(l+1)
//! ```
//! `W_k` is then `U S`: its columns are orthogonal, and their norms the singular values. Rotary embedding, heads and cache
//! are untouched.
//!
//! [`Rotations::of`] finds the bases; [`Rotations::apply`] is a pass over any graph that holds whole layers (one of
//! them, a body, a network), and finds its way by the marks [`Mark::Residual`]. The graph's first residual is turned on
//! entry and its last turned back before whatever reads it, so that embedding, final norm and head stay as they are, and
//! tied ones stay tied; [`Ends::Turned`] leaves both to the caller.
//!
//! **Deviations.** The published code also subtracts the embedding's mean, which changes an RMSNorm model; not done. It
//! turns the embedding table and the head instead of the stream, which saves two products of `n^2` a token and needs the
//! two untied. `V` is found from the eigenvectors of `W^T W`: only its span matters. All in f64, rounded once.
//!
//! Cost: an eigendecomposition of `n^2` a basis. At run time `A_l` and `B_l` are two dense products of `n^2` a layer, which
//! the paper does not count; [`MultiplyAdds`](crate::MultiplyAdds) does.
//!
//! References: arXiv 2505.19427, section 3; microsoft/wina `utils/tensor_transform.py`.

use std::collections::HashMap;
use std::sync::Arc;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};
use pilotfish_graph::{BinaryOp, Graph, Mark, Op, Producer, Tensor, Value, passes};

use crate::sequential::Layers;
use crate::{Result, SparsityError};

/// What names of rotations begin with.
pub const ROTATION: &str = "rotation.";

/// Who turns the first and the last residual of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The graph: what goes in and what comes out are as before.
    Kept,
    /// The caller: what goes in and what comes out are turned.
    Turned,
}

/// The bases of a network's residual stream: before each layer, between its halves, and after the last.
#[derive(Clone)]
pub struct Rotations {
    width: usize,
    /// `R_0, R'_0, R_1, ..., R_L`.
    bases: Vec<Arc<Mat<f64>>>,
}

impl std::fmt::Debug for Rotations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rotations({} layers, width {})", self.layers(), self.width)
    }
}

/// What a graph's nodes are to the residual stream.
struct Stream {
    /// The basis of each value that is the stream, or the stream normed.
    basis: HashMap<Value, usize>,
    /// Gains of norms, by the norm's result.
    gains: HashMap<Value, Tensor>,
    /// The additions: first operand the stream, second what is added, both as values of the graph.
    adds: HashMap<Value, (Value, Value)>,
    /// Results of linear layers that are added to the stream, and the basis of the sum.
    written: HashMap<Value, usize>,
    first: (usize, Value),
    last: (usize, Value),
}

impl Rotations {
    /// The bases of a network of the Llama kind.
    ///
    /// # Errors
    /// Layers that are built in another way (norms after attention or MLP), matrices that are not finite.
    pub fn of(layers: &dyn Layers) -> Result<Self> {
        let width = layers.width();
        let mut bases = Vec::with_capacity(2 * layers.count() + 1);
        for index in 0..layers.count() {
            let graph = layers.layer(index)?;
            let stream = Stream::find(&graph)?;
            for part in [".k_proj.", ".gate_proj."] {
                bases.push(Arc::new(right_basis(&graph, &stream, part, width)?));
            }
        }
        let Some(last) = bases.last().cloned() else {
            let why = "a network of no layers has no basis".into();
            return Err(SparsityError::Structure { what: "rotation".into(), why });
        };
        bases.push(last);
        Ok(Self { width, bases })
    }

    /// Layers of the network.
    pub fn layers(&self) -> usize {
        self.bases.len() / 2
    }

    /// `h R`, row by row, with the basis before layer `layer` (or after the last).
    ///
    /// # Errors
    /// No such layer; rows of another width.
    pub fn turn(&self, layer: usize, hidden: &[f32]) -> Result<Vec<f32>> {
        self.times(layer, hidden, false)
    }

    /// `h R^T`: the way back.
    ///
    /// # Errors
    /// As [`Rotations::turn`].
    pub fn turn_back(&self, layer: usize, hidden: &[f32]) -> Result<Vec<f32>> {
        self.times(layer, hidden, true)
    }

    fn times(&self, layer: usize, hidden: &[f32], back: bool) -> Result<Vec<f32>> {
        let basis = self
            .bases
            .get(2 * layer)
            .ok_or_else(|| SparsityError::parameter("layer", layer, "at most the number of layers"))?;
        if hidden.len() % self.width.max(1) != 0 {
            let want = hidden.len().next_multiple_of(self.width);
            return Err(SparsityError::Shape { what: "residual".into(), got: hidden.len(), want });
        }
        let factor = if back { basis.transpose() } else { basis.as_ref().as_ref() };
        Ok(rows_times(hidden, self.width, factor))
    }

    /// Rotates a graph.
    ///
    /// # Errors
    /// A graph without marks of the residual stream, one that is not built of whole layers, or layers that the bases
    /// were not made for.
    pub fn apply(&self, graph: &Graph, ends: Ends) -> Result<Graph> {
        let stream = Stream::find(graph)?;
        if stream.last.0 > self.layers() {
            let why =
                format!("its residual {} is beyond the {} layers of the bases", stream.last.0, self.layers());
            return Err(SparsityError::Structure { what: graph.name().into(), why });
        }
        // Old results by node, so that the rule knows which node it sees.
        let old_of: HashMap<Value, &pilotfish_graph::Node> =
            graph.nodes().iter().flat_map(|node| node.outputs.iter().map(move |&out| (out, node))).collect();
        let enter = |new: &mut Graph, x: Value, at: usize| -> pilotfish_graph::Result<Value> {
            // x R: a linear layer with weight R^T.
            let weight = self.tensor(at, None)?;
            let weight = new.param(&format!("{ROTATION}in.{at}"), weight)?;
            new.linear(x, weight, None)
        };
        let mut entered: Option<Value> = None;
        // Other numbers under the same names: parameters keep theirs.
        let mut turned: Vec<(String, Tensor)> = Vec::new();
        let mut rotated = passes::rewrite(graph, |new, node, inputs| {
            let out = node.outputs[0];
            let old = old_of[&out];
            // The first residual enters once, whoever reads it first.
            let mut inputs = inputs.to_vec();
            let is_first_reader = matches!(old.op, Op::RmsNorm { .. }) || stream.adds.contains_key(&out);
            if is_first_reader && ends == Ends::Kept {
                for (at, &operand) in old.inputs.iter().enumerate() {
                    if operand == stream.first.1 {
                        let value = match entered {
                            Some(value) => value,
                            None => enter(new, inputs[at], 2 * stream.first.0)?,
                        };
                        entered = Some(value);
                        inputs[at] = value;
                    }
                }
            }
            if let Some(&(read, _)) = stream.adds.get(&out) {
                let (from, to) = (stream.basis[&read], stream.basis[&out]);
                let side = usize::from(old.inputs[0] != read);
                let mut x = inputs[side];
                if !Arc::ptr_eq(&self.bases[from], &self.bases[to]) {
                    let weight =
                        new.param(&format!("{ROTATION}{from}.{to}"), self.tensor(from, Some(to))?)?;
                    x = new.linear(x, weight, None)?;
                }
                let sum = new.add(x, inputs[1 - side])?;
                if out == stream.last.1 && ends == Ends::Kept {
                    let weight = new.param(&format!("{ROTATION}out.{to}"), self.back(to)?)?;
                    return Ok(Some(vec![new.linear(sum, weight, None)?]));
                }
                return Ok(Some(vec![sum]));
            }
            match &node.op {
                Op::RmsNorm { .. } if stream.gains.contains_key(&out) => {
                    let ones = new.param(
                        &format!("ones.{}", self.width),
                        Tensor::new([self.width], vec![1.0; self.width])?,
                    )?;
                    new.apply(node.op.clone(), &[inputs[0], ones]).map(Some)
                }
                Op::Linear(_) => {
                    let Some(param) = graph.param_of(old.inputs[1]) else { return Ok(None) };
                    let mut tensor = param.tensor.clone();
                    let mut changed = false;
                    if let (Some(&basis), Some(gain)) =
                        (stream.basis.get(&old.inputs[0]), stream.gains.get(&old.inputs[0]))
                    {
                        tensor = self.read(&tensor, gain, basis)?;
                        changed = true;
                    }
                    if let Some(&basis) = stream.written.get(&out) {
                        if let Some(bias) = old.inputs.get(2).and_then(|&bias| graph.param_of(bias)) {
                            let basis = self.bases[basis].as_ref().as_ref();
                            let values = rows_times(&bias.tensor.to_f32()?, self.width, basis);
                            turned.push((bias.name.clone(), Tensor::new([self.width], values)?));
                        }
                        tensor = self.write(&tensor, basis);
                        changed = true;
                    }
                    if changed {
                        turned.push((param.name.clone(), tensor));
                    }
                    new.apply(node.op.clone(), &inputs).map(Some)
                }
                _ => Ok(None),
            }
        })?;
        for (name, tensor) in turned {
            rotated.set_param(&name, tensor)?;
        }
        Ok(rotated)
    }

    /// The weight of a linear layer that takes `h R_from` (or, without `to`, `h`) on to `h R_to` (or `h R_from`).
    fn tensor(&self, from: usize, to: Option<usize>) -> pilotfish_graph::Result<Tensor> {
        let n = self.width;
        let values = match to {
            // x R: weight R^T.
            None => flat(self.bases[from].transpose()),
            // (h R_from) (R_from^T R_to): weight R_to^T R_from.
            Some(to) => {
                let mut product = Mat::zeros(n, n);
                let (a, b) = (self.bases[to].transpose(), self.bases[from].as_ref());
                matmul(product.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
                flat(product.as_ref())
            }
        };
        Tensor::new([n, n], values)
    }

    /// The weight of a linear layer that takes `h R` back to `h`: `R`.
    fn back(&self, at: usize) -> pilotfish_graph::Result<Tensor> {
        Tensor::new([self.width, self.width], flat(self.bases[at].as_ref().as_ref()))
    }

    /// `W diag(g) R`, row by row when it is read.
    fn read(&self, weight: &Tensor, gain: &Tensor, basis: usize) -> pilotfish_graph::Result<Tensor> {
        let (basis, gain, n) = (self.bases[basis].clone(), gain.to_f32()?.into_owned(), self.width);
        Ok(weight.derive(weight.shape(), move |weight, rows| {
            let values: Vec<f64> = scaled(&weight.rows(rows)?, &gain);
            let count = values.len() / n;
            let x = MatRef::from_row_major_slice(&values, count, n);
            let mut product = Mat::zeros(count, n);
            matmul(product.as_mut(), Accum::Replace, x, basis.as_ref().as_ref(), 1.0, Par::Seq);
            Ok(flat(product.as_ref()))
        }))
    }

    /// `R^T W`.
    fn write(&self, weight: &Tensor, basis: usize) -> Tensor {
        let basis = self.bases[basis].clone();
        weight.derive(weight.shape(), move |weight, rows| {
            let (n, ins) = (weight.row_count(), weight.shape().last().copied().unwrap_or(0));
            let values: Vec<f64> = weight.to_f32()?.iter().map(|&value| f64::from(value)).collect();
            let w = MatRef::from_row_major_slice(&values, n, ins);
            let turned = basis.as_ref().as_ref().subcols(rows.start, rows.len());
            let mut product = Mat::zeros(rows.len(), ins);
            matmul(product.as_mut(), Accum::Replace, turned.transpose(), w, 1.0, Par::Seq);
            Ok(flat(product.as_ref()))
        })
    }
}

fn scaled(weights: &[f32], gain: &[f32]) -> Vec<f64> {
    weights.iter().enumerate().map(|(at, &w)| f64::from(w) * f64::from(gain[at % gain.len()])).collect()
}

/// Row-major, rounded.
fn flat(m: MatRef<'_, f64>) -> Vec<f32> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect()
}

fn rows_times(rows: &[f32], width: usize, factor: MatRef<'_, f64>) -> Vec<f32> {
    let values: Vec<f64> = rows.iter().map(|&value| f64::from(value)).collect();
    let count = values.len() / width.max(1);
    let x = MatRef::from_row_major_slice(&values, count, width);
    let mut product = Mat::zeros(count, width);
    matmul(product.as_mut(), Accum::Replace, x, factor, 1.0, Par::Seq);
    flat(product.as_ref())
}

/// `V` of `W diag(g)` for the layer's matrix of this name: by falling singular value.
fn right_basis(graph: &Graph, stream: &Stream, part: &str, width: usize) -> Result<Mat<f64>> {
    for node in graph.nodes() {
        if let Op::Linear(_) = node.op
            && let Some(param) = graph.param_of(node.inputs[1])
            && param.name.contains(part)
            && let Some(gain) = stream.gains.get(&node.inputs[0])
        {
            let values = param.tensor.to_f32()?;
            crate::error::finite(&param.name, &values)?;
            let folded = scaled(&values, &gain.to_f32()?);
            return orthogonal(&folded, width, &param.name);
        }
    }
    let why = format!("no matrix called *{part}* reads a normed residual");
    Err(SparsityError::Structure { what: graph.name().into(), why })
}

/// The right singular vectors of a matrix with so many columns, row-major: columns of the result, by falling singular
/// value, a full orthonormal basis.
pub(crate) fn orthogonal(weights: &[f64], columns: usize, name: &str) -> Result<Mat<f64>> {
    let rows = weights.len() / columns.max(1);
    let w = MatRef::from_row_major_slice(weights, rows, columns);
    let mut gram = Mat::zeros(columns, columns);
    matmul(gram.as_mut(), Accum::Replace, w.transpose(), w, 1.0, Par::Seq);
    let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(|error| SparsityError::Structure {
        what: name.into(),
        why: format!("no eigenvectors: {error:?}"),
    })?;
    let vectors = eigen.U();
    Ok(Mat::from_fn(columns, columns, |i, j| vectors[(i, columns - 1 - j)]))
}

impl Stream {
    fn find(graph: &Graph) -> Result<Self> {
        let structure = |why: String| SparsityError::Structure { what: graph.name().into(), why };
        let mut marks: Vec<(usize, Value)> = graph
            .marks()
            .iter()
            .filter_map(|(mark, value)| match mark {
                Mark::Residual(layer) => Some((*layer, *value)),
                _ => None,
            })
            .collect();
        marks.sort_unstable_by_key(|(layer, _)| *layer);
        let (Some(&first), Some(&last)) = (marks.first(), marks.last()) else {
            return Err(structure("it has no marks of the residual stream".into()));
        };
        if marks.len() < 2 || marks.len() != last.0 - first.0 + 1 {
            return Err(structure("its marks of the residual stream do not follow each other".into()));
        }
        let producer = |value: Value| match graph.info(value).producer {
            Producer::Node(id, _) => Some(graph.node(id)),
            _ => None,
        };
        let linear = |value: Value| {
            producer(value)
                .filter(|node| matches!(node.op, Op::Linear(_)) && graph.param_of(node.inputs[1]).is_some())
        };
        // A sum of the stream and a linear layer's result, either way round.
        let sum = |value: Value| -> Option<(Value, Value)> {
            let node = producer(value).filter(|node| node.op == Op::Binary(BinaryOp::Add))?;
            let (a, b) = (node.inputs[0], node.inputs[1]);
            match (linear(a), linear(b)) {
                (None, Some(_)) => Some((a, b)),
                (Some(_), None) => Some((b, a)),
                _ => None,
            }
        };
        let mut stream = Self {
            basis: HashMap::from([(first.1, 2 * first.0)]),
            gains: HashMap::new(),
            adds: HashMap::new(),
            written: HashMap::new(),
            first,
            last,
        };
        for pair in marks.windows(2) {
            let ((layer, before), (_, after)) = (pair[0], pair[1]);
            let why = || {
                structure(format!(
                    "layer {layer} is not norm, attention, sum, norm, MLP, sum; norms behind attention or MLP cannot be turned"
                ))
            };
            let (middle, down) = sum(after).ok_or_else(why)?;
            let (start, o) = sum(middle).ok_or_else(why)?;
            if start != before {
                return Err(why());
            }
            for (value, basis, operands) in
                [(middle, 2 * layer + 1, (before, o)), (after, 2 * layer + 2, (middle, down))]
            {
                stream.basis.insert(value, basis);
                stream.written.insert(operands.1, basis);
                stream.adds.insert(value, operands);
            }
        }
        // Norms that only linear layers read; the last residual's reader is not of these layers.
        for node in graph.nodes() {
            let (Op::RmsNorm { .. }, Some(&basis)) = (&node.op, stream.basis.get(&node.inputs[0])) else {
                continue;
            };
            if node.inputs[0] == last.1 {
                continue;
            }
            let out = node.outputs[0];
            let readers = || graph.nodes().iter().filter(|reader| reader.inputs.contains(&out));
            let plain = readers().all(|reader| {
                matches!(reader.op, Op::Linear(_))
                    && reader.inputs[0] == out
                    && graph.param_of(reader.inputs[1]).is_some()
            });
            let Some(gain) = graph.param_of(node.inputs[1]).filter(|_| plain) else {
                return Err(structure(
                    "a norm of the stream is read by something other than linear layers".into(),
                ));
            };
            stream.gains.insert(out, gain.tensor.clone());
            stream.basis.insert(out, basis);
        }
        // Nothing else may read the stream.
        for node in graph.nodes() {
            for &input in &node.inputs {
                let turned = stream.basis.contains_key(&input) && input != last.1 && input != first.1;
                let known = stream.gains.contains_key(&input)
                    || matches!(node.op, Op::RmsNorm { .. })
                    || stream.adds.get(&node.outputs[0]).is_some_and(|(read, _)| *read == input);
                if turned && !known {
                    return Err(structure(format!(
                        "{} reads the residual stream between layers",
                        node.op.name()
                    )));
                }
            }
        }
        let leaks = graph
            .outputs()
            .iter()
            .find(|(_, value)| stream.basis.contains_key(value) && *value != first.1 && *value != last.1);
        if let Some((name, _)) = leaks {
            return Err(structure(format!("output {name} taps the residual stream between layers")));
        }
        Ok(stream)
    }
}

/// The layers of a rotated network: the residual stream is turned on its way in ([`Rotations::turn`]) and back on its
/// way out by the caller.
#[derive(Clone, Copy)]
pub struct Rotated<'a> {
    layers: &'a dyn Layers,
    rotations: &'a Rotations,
}

impl<'a> Rotated<'a> {
    /// Layers, rotated.
    pub fn new(layers: &'a dyn Layers, rotations: &'a Rotations) -> Self {
        Self { layers, rotations }
    }
}

impl Layers for Rotated<'_> {
    fn count(&self) -> usize {
        self.layers.count()
    }

    fn layer(&self, index: usize) -> Result<Graph> {
        let graph = self.layers.layer(index)?;
        // What only the last layer of a network gives, behind the residual, is not turned.
        let residual: Vec<_> =
            graph.outputs().iter().filter(|(name, _)| name == "residual").cloned().collect();
        self.rotations.apply(&passes::extract(&graph, &[], &residual)?, Ends::Turned)
    }

    fn feeds(&self, rows: usize) -> Vec<(String, crate::Feed)> {
        self.layers.feeds(rows)
    }

    fn width(&self) -> usize {
        self.layers.width()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_rotation_by_hand() {
        let w = [1.0, 1.0, 0.0, 1.0];
        let v = orthogonal(&w, 2, "w").unwrap();
        let column = |j: usize| {
            let (a, b) = (v[(0, j)] + v[(1, j)], v[(1, j)]);
            (a * a + b * b).sqrt()
        };
        assert!((column(0) - 1.618_034).abs() < 1e-5 && (column(1) - 0.618_034).abs() < 1e-5);
        let x: Vec<f64> = (0..2).map(|j| (v[(0, j)] - 0.5 * v[(1, j)]).abs()).collect();
        assert!((x[0] - 0.1004).abs() < 1e-4 && (x[1] - 1.1135).abs() < 1e-4);
        // Keeping the second leaves 0.0264 of 0.5.
        assert!(((x[0] * column(0)).powi(2) - 0.0264).abs() < 1e-4);
        assert!(((x[1] * column(1)).powi(2) - 0.4736).abs() < 1e-4);
    }

    #[test]
    fn wide_matrices_have_a_full_basis() {
        let w: Vec<f64> = (0..3 * 8).map(|at| ((at * 37 + 11) % 17) as f64 - 8.0).collect();
        let v = orthogonal(&w, 8, "w").unwrap();
        for i in 0..8 {
            for j in 0..8 {
                let dot: f64 = (0..8).map(|k| v[(k, i)] * v[(k, j)]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
            let norm = (0..3)
                .map(|r| (0..8).map(|k| w[r * 8 + k] * v[(k, i)]).sum::<f64>().powi(2))
                .sum::<f64>()
                .sqrt();
            assert_eq!(norm > 1e-6, i < 3, "{i}: {norm}");
        }
    }
}
