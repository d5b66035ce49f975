//! What a graph costs: bytes of weights, bytes of cache, multiply-adds.
//!
//! A multiply-add is one product and one sum inside a matrix product: those of [`Op::Linear`], [`Op::MatMul`] and
//! [`Op::Attention`]. Elementwise functions, norms, softmax and rotary embeddings are not counted; in a language
//! model they are under a hundredth of the arithmetic. Nor are the products inside [`Op::Custom`], which nobody
//! here knows; its weights are. Bytes are those of the weights as they are stored, so
//! they follow the [`Storage`] that each linear layer was given.
//!
//! ```
//! use pilotfish_graph::{DType, Dim, Graph, Tensor, cost};
//! let mut graph = Graph::new("two by three");
//! let x = graph.input("x", vec![Dim::symbol("T"), 3.into()], DType::F32)?;
//! let w = graph.param("w", Tensor::new([2, 3], vec![0.0; 6])?)?;
//! let y = graph.linear(x, w, None)?;
//! graph.output("y", y)?;
//! let four_rows = cost::cost(&graph, &[("T", 4)])?;
//! assert_eq!((four_rows.total.multiply_adds, four_rows.total.weight_bytes), (4 * 6, 4 * 6));
//! # Ok::<(), pilotfish_graph::GraphError>(())
//! ```

use std::collections::{BTreeMap, HashSet};
use std::ops::AddAssign;

use crate::{Graph, GraphError, Kept, Mark, Node, NodeId, Op, Producer, Result, Storage, Value};

/// What a node, a part of a graph or a whole graph costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Products and sums in matrix products.
    pub multiply_adds: u64,
    /// Bytes of weights read: all of a matrix, the rows looked up in a table. A weight that two nodes read is
    /// read twice.
    pub weight_bytes: u64,
    /// Bytes of keys and values that attention reads, in f32, those of the rows themselves included.
    pub cache_bytes: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.multiply_adds = self.multiply_adds.saturating_add(other.multiply_adds);
        self.weight_bytes = self.weight_bytes.saturating_add(other.weight_bytes);
        self.cache_bytes = self.cache_bytes.saturating_add(other.cache_bytes);
    }
}

/// What a graph costs for given values of its symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Each node's cost, in the order of the nodes.
    pub nodes: Vec<Cost>,
    /// The sum over nodes.
    pub total: Cost,
    /// What each marked value adds to those marked before it, in the order in which they are computed; last,
    /// under `None`, what no mark needs.
    pub parts: Vec<(Option<Mark>, Cost)>,
    /// Bytes that the parameters take in memory: each once for every way in which it is stored.
    pub stored_bytes: u64,
}

/// Prices a graph; `symbols` gives a value to each symbol of the nodes that cost something.
///
/// # Errors
/// A symbol without a value, or a number beyond 2^64.
pub fn cost(graph: &Graph, symbols: &[(&str, usize)]) -> Result<Costs> {
    let symbols: BTreeMap<String, usize> =
        symbols.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    let nodes =
        graph.nodes().iter().map(|node| of_node(graph, node, &symbols)).collect::<Result<Vec<_>>>()?;
    let mut total = Cost::default();
    nodes.iter().for_each(|&cost| total += cost);
    Ok(Costs {
        parts: parts(graph, &nodes),
        stored_bytes: parameters(graph).iter().map(|param| param.bytes).sum(),
        nodes,
        total,
    })
}

/// How a parameter is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredParameter<'a> {
    /// Its name.
    pub name: &'a str,
    /// The ways in which it is stored, one for each kind of reader: a tied table may be rows of f32 to an
    /// embedding and blocks of integers to the head.
    pub storages: Vec<Storage>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// How each parameter is stored, in the order of [`Graph::params`].
pub fn parameters(graph: &Graph) -> Vec<StoredParameter<'_>> {
    let mut storages: Vec<Vec<Storage>> = vec![Vec::new(); graph.params().len()];
    for node in graph.nodes() {
        for (index, &input) in node.inputs.iter().enumerate() {
            if let Producer::Param(id) = graph.info(input).producer {
                let list = &mut storages[id.0 as usize];
                let storage = match node.op {
                    Op::Linear(storage) if index == 1 => storage,
                    _ => Storage::F32,
                };
                if !list.contains(&storage) {
                    list.push(storage);
                }
            }
        }
    }
    let priced = graph.params().iter().zip(storages).map(|(param, mut storages)| {
        if storages.is_empty() {
            storages.push(Storage::F32);
        }
        let bytes = storages.iter().map(|&storage| stored(param.tensor.shape(), storage)).sum();
        StoredParameter { name: &param.name, storages, bytes }
    });
    priced.collect()
}

/// Bytes of a tensor in a storage; what is not a matrix is kept in f32.
fn stored(shape: &[usize], storage: Storage) -> u64 {
    match shape {
        &[outs, ins] => storage.bytes(outs, ins),
        _ => shape.iter().fold(4, |bytes, &dim| bytes.saturating_mul(dim as u64)),
    }
}

impl Kept {
    /// Bits a weight.
    fn bits(self) -> u64 {
        match self {
            Self::F32 => 32,
            Self::Bf16 => 16,
            Self::Int8 => 8,
        }
    }

    /// Bytes of scales.
    fn scales(self, outs: u64) -> u64 {
        if self == Self::Int8 { outs.saturating_mul(4) } else { 0 }
    }
}

impl Storage {
    /// Bytes of a matrix `[outs, ins]` stored this way, scales and zero points included.
    pub fn bytes(self, outs: usize, ins: usize) -> u64 {
        let (outs, ins) = (outs as u64, ins as u64);
        let blocks = |bits: u64, block: usize| {
            let blocks = ins.div_ceil((block as u64).max(1));
            let row = (blocks * block as u64 * bits / 8) + 4 * blocks + (blocks * bits).div_ceil(8);
            outs.saturating_mul(row)
        };
        match self {
            Self::F32 | Self::Rows => 4u64.saturating_mul(outs).saturating_mul(ins),
            Self::Int4 { block } => blocks(4, block),
            Self::Int8 { block } => blocks(8, block),
            Self::Bf16 => 2u64.saturating_mul(outs).saturating_mul(ins),
            // Each with an index of half a byte, of two bits in groups that divide 4 and five in groups above 16.
            Self::Sparse { keep, group, kept } => {
                let count = outs.saturating_mul(ins.div_ceil((group as u64).max(1)) * keep as u64);
                let index = match group {
                    1 | 2 | 4 => 2,
                    17.. => 5,
                    _ => 4,
                };
                let bits = kept.bits() + index;
                count.saturating_mul(bits).div_ceil(8).saturating_add(kept.scales(outs))
            }
            Self::Columns { kept } => {
                (kept.bits() / 8).saturating_mul(outs).saturating_mul(ins).saturating_add(kept.scales(outs))
            }
        }
    }
}

fn of_node(graph: &Graph, node: &Node, symbols: &BTreeMap<String, usize>) -> Result<Cost> {
    let size = |value: Value, from: usize, to: usize| -> Result<u64> {
        let shape = graph.shape(value);
        let dims = &shape.dims()[from.min(shape.rank())..to.min(shape.rank())];
        let product =
            dims.iter().try_fold(1usize, |product, dim| product.checked_mul(dim.evaluate(symbols)?));
        product.map(|product| product as u64).ok_or_else(|| {
            let why = format!("shape {shape} has no size for the symbols {symbols:?}");
            GraphError::Tensor { name: graph.info(value).name.clone(), why }
        })
    };
    let all = |value: Value| size(value, 0, usize::MAX);
    let over = || GraphError::Tensor { name: node.op.name().into(), why: "its cost is beyond 2^64".into() };
    let product = |a: u64, b: u64| a.checked_mul(b).ok_or_else(over);
    let mut cost = Cost::default();
    // Weights: whole matrices, but of tables only the rows that are looked up.
    for (index, &input) in node.inputs.iter().enumerate() {
        let Some(param) = graph.param_of(input) else { continue };
        let storage = match node.op {
            Op::Linear(storage) if index == 1 => storage,
            _ => Storage::F32,
        };
        let whole = stored(param.tensor.shape(), storage);
        cost.weight_bytes += match node.op {
            Op::Embedding | Op::Gather { .. } if index == 0 => product(4, all(node.outputs[0])?)?.min(whole),
            _ => whole,
        };
    }
    match &node.op {
        Op::Linear(_) => {
            let rank = graph.shape(node.inputs[0]).rank();
            cost.multiply_adds = product(all(node.inputs[1])?, size(node.inputs[0], 0, rank - 1)?)?;
        }
        Op::MatMul => {
            let rank = graph.shape(node.inputs[0]).rank();
            cost.multiply_adds = product(all(node.outputs[0])?, size(node.inputs[0], rank - 1, rank)?)?;
        }
        Op::Attention { heads, kv_heads, .. } => {
            // Scores and mixtures: each row of each head with each key, twice the head's width.
            let (q, keys) = (node.inputs[0], node.outputs[1]);
            let pairs = product(size(q, 0, 2)?, size(keys, 2, 3)?)?;
            let width = size(keys, 3, 4)?;
            cost.multiply_adds = product(product(pairs, 2 * *heads as u64)?, width)?;
            let entries = product(size(q, 0, 1)?, size(keys, 2, 3)?)?;
            cost.cache_bytes = product(product(entries, 8 * *kv_heads as u64)?, width)?;
        }
        _ => {}
    }
    Ok(cost)
}

fn parts(graph: &Graph, costs: &[Cost]) -> Vec<(Option<Mark>, Cost)> {
    let made_at = |value: Value| match graph.info(value).producer {
        Producer::Node(NodeId(at), _) => Some(at),
        _ => None,
    };
    let mut marks = graph.marks().to_vec();
    marks.sort_by_key(|&(mark, value)| (made_at(value), mark));
    let mut counted: HashSet<u32> = HashSet::new();
    let mut parts = Vec::new();
    for (mark, value) in marks {
        let mut cost = Cost::default();
        let mut open: Vec<u32> = made_at(value).into_iter().collect();
        while let Some(at) = open.pop() {
            if counted.insert(at) {
                cost += costs[at as usize];
                open.extend(graph.nodes()[at as usize].inputs.iter().filter_map(|&input| made_at(input)));
            }
        }
        parts.push((Some(mark), cost));
    }
    let mut rest = Cost::default();
    let left = costs.iter().enumerate().filter(|(at, _)| !counted.contains(&(*at as u32)));
    left.for_each(|(_, &cost)| rest += cost);
    parts.push((None, rest));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttentionConfig, DType, Dim, Tensor, quantize};

    type Fallible = Result<()>;

    fn zeros(shape: &[usize]) -> Result<Tensor> {
        Tensor::new(shape, vec![0.0; shape.iter().product()])
    }

    #[test]
    fn bytes_are_those_of_the_quantiser() -> Fallible {
        for (outs, ins) in [(3, 64), (1, 1), (5, 33), (2, 160)] {
            for block in [16, 32, 64, 128] {
                for (bits, storage) in [(4, Storage::Int4 { block }), (8, Storage::Int8 { block })] {
                    let q = quantize::quantize(&vec![1.0; outs * ins], [outs, ins], bits, block)?;
                    assert_eq!(storage.bytes(outs, ins), q.bytes() as u64, "{outs} x {ins} as {storage}");
                }
            }
        }
        // By hand: 2 blocks a row of 16 bytes of codes, 4 of scales, and a byte of zero points for both.
        assert_eq!(Storage::Int4 { block: 32 }.bytes(10, 64), 10 * (32 + 8 + 1));
        assert_eq!(Storage::Int8 { block: 32 }.bytes(10, 64), 10 * (64 + 8 + 2));
        Ok(())
    }

    /// A tied table: looked up for 6 ids, multiplied by in four bits, between them attention over 5 more rows.
    #[test]
    fn a_small_network_by_hand() -> Fallible {
        let mut g = Graph::new("tied");
        let (b, t, l) = (Dim::symbol("B"), Dim::symbol("T"), Dim::symbol("L"));
        let ids = g.input("ids", vec![b.clone(), t.clone()], DType::I64)?;
        let mask = g.input("mask", vec![1.into(), 1.into(), t.clone(), &l + &t], DType::F32)?;
        let past = |name: &str, g: &mut Graph| {
            g.input(name, vec![b.clone(), 1.into(), l.clone(), 32.into()], DType::F32)
        };
        let (keys, values) = (past("keys", &mut g)?, past("values", &mut g)?);
        let table = g.param("table", zeros(&[100, 64])?)?;
        let x = g.embedding(table, ids)?;
        g.mark(Mark::Residual(0), x);
        let weight = g.param("kv", zeros(&[32, 64])?)?;
        let bias = g.param("bias", zeros(&[32])?)?;
        let k = g.linear(x, weight, Some(bias))?;
        let config = AttentionConfig { heads: 2, kv_heads: 1, scale: 1.0, softcap: None };
        let (y, _, _) = g.attention([x, k, k], mask, Some((keys, values)), config)?;
        g.mark(Mark::Residual(1), y);
        let logits = g.apply(Op::Linear(Storage::Int4 { block: 32 }), &[y, table])?[0];
        g.output("logits", logits)?;
        let costs = cost(&g, &[("B", 2), ("T", 3), ("L", 5)])?;
        let embedding = Cost { weight_bytes: 6 * 64 * 4, ..Cost::default() };
        let linear = Cost { multiply_adds: 6 * 32 * 64, weight_bytes: 4 * (32 * 64 + 32), cache_bytes: 0 };
        // 2 texts x 3 rows x 8 keys x 2 heads x 32, for scores and again for values; 8 rows of 2 x 32 numbers.
        let attention =
            Cost { multiply_adds: 2 * 3 * 8 * 2 * 32 * 2, cache_bytes: 2 * 8 * 64 * 4, ..Cost::default() };
        let int4 = 100 * (32 + 8 + 1);
        let head = Cost { multiply_adds: 6 * 100 * 64, weight_bytes: int4, cache_bytes: 0 };
        assert_eq!(costs.nodes, [embedding, linear, attention, head]);
        let mut layer = linear;
        layer += attention;
        assert_eq!(
            costs.parts,
            [(Some(Mark::Residual(0)), embedding), (Some(Mark::Residual(1)), layer), (None, head)]
        );
        let mut total = layer;
        total += embedding;
        total += head;
        assert_eq!(costs.total, total);
        assert_eq!(costs.stored_bytes, 100 * 64 * 4 + int4 + 4 * (32 * 64 + 32));
        // More ids than rows read the table once.
        let many = cost(&g, &[("B", 100), ("T", 3), ("L", 5)])?;
        assert_eq!(many.nodes[0].weight_bytes, 100 * 64 * 4);
        assert_eq!(parameters(&g)[0].storages, [Storage::F32, Storage::Int4 { block: 32 }]);
        Ok(())
    }

    #[test]
    fn products_of_stacks_of_matrices() -> Fallible {
        let mut g = Graph::new("products");
        let a = g.input("a", vec!["B".into(), 3.into(), 5.into()], DType::F32)?;
        let b = g.input("b", [5usize, 7], DType::F32)?;
        g.matmul(a, b)?;
        assert_eq!(cost(&g, &[("B", 4)])?.total.multiply_adds, 4 * 3 * 5 * 7);
        let error = cost(&g, &[]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("[B, 3, 7]"), "{error}");
        let huge = usize::MAX / 2;
        assert!(cost(&g, &[("B", huge)]).is_err());
        Ok(())
    }
}
