//! Low-rank adapters: a matrix stays as it is, and the product of two thin ones is learned beside it.
//!
//! 1. `y = W x` becomes `y = W x + (alpha / r) B A x`, with `A` `[r, in]` and `B` `[out, r]`.
//! 2. `B` begins at 0, so that nothing changes at first; `A` is uniform in `+-1 / sqrt(in)`.
//! 3. Only `A` and `B` are trained: [`Lora::parameters`].
//! 4. Afterwards `W + (alpha / r) B A` can take the place of `W` ([`Lora::merge`]), and nothing is slower.
//!
//! | setting | default | source |
//! |---|---|---|
//! | rank | 8 | the paper, table 6 (4 to 8 are as good as more) |
//! | alpha | 16 | twice the rank, as usual in the `peft` library |
//!
//! **Deviations.** The paper draws `A` from a normal law; this is the uniform law of its code (`loralib`), Kaiming
//! with `a = sqrt 5`. There is no dropout on the adapters' input.
//!
//! Cost: `r (in + out)` more numbers and multiply-adds a row until merged. `W` may be stored quantised.
//!
//! Reference: Hu et al., LoRA, arXiv 2106.09685, section 4.1; microsoft/LoRA `loralib/layers.py`.

use pilotfish_graph::{Graph, Op, Param, Tensor, passes};
use pilotfish_model::Streams;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::select::matches;
use crate::{Result, Selection, TrainingError};

/// Settings of adapters.
///
/// ```
/// use pilotfish_graph::{DType, Dim, Graph, Tensor};
/// use pilotfish_training::Lora;
/// let mut g = Graph::new("one matrix");
/// let x = g.input("x", vec![Dim::symbol("T"), 3.into()], DType::F32)?;
/// let w = g.param("w", Tensor::new([2, 3], vec![1.0, 0.0, 0.0, 0.0, 1.0, 1.0])?)?;
/// let y = g.linear(x, w, None)?;
/// g.output("y", y)?;
/// let adapted = Lora { rank: 1, ..Lora::default() }.attach(&g, "w")?;
/// let names: Vec<&str> = adapted.params().iter().map(|param| param.name.as_str()).collect();
/// assert_eq!(names, ["w", "w.lora_a", "w.lora_b"]);
/// # Ok::<(), pilotfish_training::TrainingError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// `r`, at most the smaller side of every matrix.
    pub rank: usize,
    /// The adapters' product is multiplied by `alpha / rank`.
    pub alpha: f32,
    /// Seed of `A`.
    pub seed: u64,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, seed: 0 }
    }
}

impl Lora {
    /// What is trained when adapters are.
    pub fn parameters() -> Selection {
        Selection::only(["*.lora_a", "*.lora_b"])
    }

    fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// The graph with adapters beside the linear layers whose weight's name matches `pattern` (`*` stands for any
    /// text). A matrix that several layers share has one pair of adapters.
    ///
    /// # Errors
    /// No such layer; a rank of 0 or beyond a matrix's smaller side; an alpha that is not above 0.
    pub fn attach(&self, graph: &Graph, pattern: &str) -> Result<Graph> {
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            let (value, want) = (f64::from(self.alpha), "above 0");
            return Err(TrainingError::BadParameter { name: "alpha", value, want });
        }
        let chosen = |param: &&Param| matches(pattern, &param.name);
        let linear = |param: &Param| {
            let reads = |node: &pilotfish_graph::Node| {
                matches!(node.op, Op::Linear(_)) && node.inputs[1] == param.value
            };
            graph.nodes().iter().any(reads)
        };
        let mut adapters = Vec::new();
        for param in graph.params().iter().filter(chosen).filter(|param| linear(param)) {
            let shape = param.tensor.shape();
            if self.rank == 0 || self.rank > shape[0].min(shape[1]) {
                let (value, want) = (self.rank as f64, "from 1 to the smaller side of every matrix");
                return Err(TrainingError::BadParameter { name: "rank", value, want });
            }
            let mut rng = Streams::new(self.seed).stream(&param.name);
            let bound = 1.0 / (shape[1] as f32).sqrt();
            let a = (0..self.rank * shape[1]).map(|_| rng.random_range(-bound..bound)).collect();
            adapters.push((
                param.name.clone(),
                Tensor::new([self.rank, shape[1]], a)?,
                Tensor::new([shape[0], self.rank], vec![0.0; shape[0] * self.rank])?,
            ));
        }
        if adapters.is_empty() {
            return Err(TrainingError::NoSuchName { kind: "linear layer", name: pattern.into() });
        }
        let adapted = passes::rewrite(graph, |new, node, inputs| {
            let Op::Linear(_) = node.op else { return Ok(None) };
            let name = new.param_of(inputs[1]).map(|param| param.name.clone());
            let Some((name, a, b)) = adapters.iter().find(|(adapted, ..)| Some(adapted) == name.as_ref())
            else {
                return Ok(None);
            };
            let a = new.param(&format!("{name}.lora_a"), a.clone())?;
            let b = new.param(&format!("{name}.lora_b"), b.clone())?;
            let plain = new.apply(node.op.clone(), inputs)?[0];
            let low = new.linear(inputs[0], a, None)?;
            let low = new.linear(low, b, None)?;
            let low = new.scale(low, self.scale())?;
            Ok(Some(vec![new.add(plain, low)?]))
        })?;
        Ok(adapted)
    }

    /// The plain graph with the adapted graph's parameters, adapters added into their matrices: summed in f64 and
    /// rounded once.
    ///
    /// # Errors
    /// A graph without adapters of this rank; an adapted matrix that something other than linear layers reads
    /// (an embedding that is also the head), which would change too.
    pub fn merge(&self, plain: &Graph, adapted: &Graph) -> Result<Graph> {
        let find = |name: &str| adapted.params().iter().find(|param| param.name == name);
        let (mut merged, mut count) = (plain.clone(), 0);
        for param in plain.params() {
            let current = find(&param.name).unwrap_or(param);
            let name = &param.name;
            let (Some(a), Some(b)) = (find(&format!("{name}.lora_a")), find(&format!("{name}.lora_b")))
            else {
                merged.set_param(name, current.tensor.clone())?;
                continue;
            };
            for node in plain.nodes().iter().filter(|node| node.inputs.contains(&param.value)) {
                if !matches!(node.op, Op::Linear(_)) {
                    let why = format!("{} reads {name} too, and would change with it", node.op.name());
                    return Err(TrainingError::Operand { op: "Lora", why });
                }
            }
            let [out, inner] = [param.tensor.shape()[0], param.tensor.shape()[1]];
            if a.tensor.shape() != [self.rank, inner] || b.tensor.shape() != [out, self.rank] {
                let (got, want) = (a.tensor.shape().to_vec(), format!("[{}, {inner}]", self.rank));
                return Err(TrainingError::Shape { name: a.name.clone(), got, want });
            }
            let (w, a, b) = (current.tensor.to_f32()?, a.tensor.to_f32()?, b.tensor.to_f32()?);
            let mut sums = vec![0.0f32; out * inner];
            for row in 0..out {
                for column in 0..inner {
                    let low: f64 = (0..self.rank)
                        .map(|k| f64::from(b[row * self.rank + k]) * f64::from(a[k * inner + column]))
                        .sum();
                    let at = row * inner + column;
                    sums[at] = (f64::from(w[at]) + f64::from(self.scale()) * low) as f32;
                }
            }
            merged.set_param(name, Tensor::new([out, inner], sums)?)?;
            count += 1;
        }
        match count {
            0 => Err(TrainingError::NoSuchName { kind: "adapters", name: adapted.name().into() }),
            _ => Ok(merged),
        }
    }
}
