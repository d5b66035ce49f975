//! Random valid graphs with inputs to run them on, for tests that hold two readers of a graph equal, or its
//! gradients equal to finite differences. Behind the feature `testing`.
//!
//! Values stay within a few units, logarithms, roots and quotients keep away from 0, and integers that index
//! something lie within it. Where a function jumps or has a kink (comparisons, `Relu`, `Max`, `TopK`), inputs
//! come near it only by chance. Matrices are dense; [`passes::store`](crate::passes::store) changes that.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use crate::Feed;
use crate::{
    AttentionConfig, BinaryOp, DType, Dim, Graph, Literal, ReduceOp, Result, RopeScaling, Shape, Tensor,
    UnaryOp, Value,
};

/// A graph of a dozen or so operations and numbers for its inputs, the same for the same seed. Inputs have
/// symbolic dimensions `B`, `T` and, with a past that may be empty, `L`; there are one to three float outputs
/// and sometimes an integer one.
pub fn random_graph(seed: u64) -> Result<(Graph, Vec<(String, Feed)>)> {
    let mut made = Maker::new(seed)?;
    let steps = made.rng.random_range(4..14);
    while made.done < steps {
        let choice = made.rng.random_range(0..16);
        made.step(choice)?;
    }
    made.finish()
}

/// The largest size of a value that operations are piled on.
const MOST: usize = 2000;
/// Entries of embedding tables.
const VOCABULARY: usize = 7;
/// Bound of values that operations are piled on.
const BOUND: f32 = 3.0;

struct Maker {
    rng: ChaCha8Rng,
    graph: Graph,
    feeds: Vec<(String, Feed)>,
    symbols: BTreeMap<String, usize>,
    /// Values and bounds of their magnitude.
    floats: Vec<(Value, f32)>,
    /// Values from 0 to below a bound.
    integers: Vec<(Value, usize)>,
    truths: Vec<Value>,
    /// Head dimension, heads, key heads.
    heads: [usize; 3],
    params: usize,
    done: usize,
}

impl Maker {
    fn new(seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let size = |low, high, rng: &mut ChaCha8Rng| rng.random_range(low..=high);
        let symbols = [("B", size(1, 3, &mut rng)), ("T", size(1, 4, &mut rng)), ("L", size(0, 3, &mut rng))];
        let (head_dim, kv_heads) = (2 * size(1, 4, &mut rng), size(1, 2, &mut rng));
        let heads = kv_heads * size(1, 2, &mut rng);
        let mut made = Self {
            rng,
            graph: Graph::new(format!("random {seed}")),
            feeds: Vec::new(),
            symbols: symbols.map(|(name, size)| (name.to_owned(), size)).into(),
            floats: Vec::new(),
            integers: Vec::new(),
            truths: Vec::new(),
            heads: [head_dim, heads, kv_heads],
            params: 0,
            done: 0,
        };
        let width = head_dim * heads;
        made.float_input("x", vec!["B".into(), "T".into(), width.into()])?;
        let low = made.int_input("ids", vec!["B".into(), "T".into()], VOCABULARY)?;
        made.integers.push((low, VOCABULARY));
        Ok(made)
    }

    fn shape(&self, value: Value) -> Vec<usize> {
        // Every symbol of a random graph has a value.
        self.graph.shape(value).evaluate(&self.symbols).unwrap_or_default()
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.rng.random_range(-1.0f32..1.0)).collect()
    }

    fn float_input(&mut self, name: &str, dims: Vec<Dim>) -> Result<Value> {
        let value = self.graph.input(name, dims, DType::F32)?;
        let shape = self.shape(value);
        let values = self.numbers(shape.iter().product());
        self.feeds.push((name.into(), Feed::Float { shape, values }));
        self.floats.push((value, 1.0));
        Ok(value)
    }

    fn int_input(&mut self, name: &str, dims: Vec<Dim>, below: usize) -> Result<Value> {
        let value = self.graph.input(name, dims, DType::I64)?;
        let shape = self.shape(value);
        let count: usize = shape.iter().product();
        let values = (0..count).map(|_| self.rng.random_range(0..below as i64)).collect();
        self.feeds.push((name.into(), Feed::Int { shape, values }));
        Ok(value)
    }

    /// Numbers from -1 to 1, divided by `by`.
    fn param(&mut self, shape: &[usize], by: f32) -> Result<Value> {
        self.params += 1;
        let values = self.numbers(shape.iter().product()).into_iter().map(|value| value / by).collect();
        self.graph.param(&format!("p{}", self.params), Tensor::new(shape, values)?)
    }

    fn pick(&mut self) -> (Value, f32) {
        // Late values more often, so that operations pile up.
        let count = self.floats.len();
        let back = self.rng.random_range(0..count).min(self.rng.random_range(0..count));
        self.floats[count - 1 - back]
    }

    /// A value with dimensions `[B, T, width]`.
    fn pick_sequence(&mut self) -> (Value, f32, usize) {
        let fits = |(value, bound): &(Value, f32)| {
            let dims = self.graph.shape(*value).dims();
            let fits = dims.len() == 3 && dims[0] == "B".into() && dims[1] == "T".into();
            Some((*value, *bound, dims.get(2)?.fixed().filter(|&width| fits && width > 0)?))
        };
        let all: Vec<_> = self.floats.iter().filter_map(fits).collect();
        // The input is one of them.
        all[all.len() - 1 - self.rng.random_range(0..all.len()).min(self.rng.random_range(0..all.len()))]
    }

    fn push(&mut self, value: Value, bound: f32) -> Result<()> {
        self.done += 1;
        let shape = self.shape(value);
        if shape.iter().product::<usize>() > MOST || shape.len() > 5 {
            return Ok(());
        }
        let (value, bound) = match bound > BOUND {
            true => (self.graph.unary(UnaryOp::Tanh, value)?, 1.0),
            false => (value, bound),
        };
        self.floats.push((value, bound));
        Ok(())
    }

    /// `x^2 + 1/2`: at least a half.
    fn positive(&mut self, x: Value) -> Result<Value> {
        let square = self.graph.mul(x, x)?;
        let half = self.graph.scalar(0.5)?;
        self.graph.add(square, half)
    }

    fn step(&mut self, choice: usize) -> Result<()> {
        let (x, bound) = self.pick();
        let (shape, rank) = (self.shape(x), self.graph.shape(x).rank());
        match choice {
            0 => self.unary(x, bound),
            1 => self.binary(x, bound),
            2 => self.truth(x, bound),
            3 => self.matmul(x, bound),
            4 if rank > 1 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                (1..rank).for_each(|i| perm.swap(i, self.rng.random_range(0..=i)));
                let y = self.graph.transpose(x, &perm)?;
                self.push(y, bound)
            }
            5 => self.reshape(x, bound),
            6 if rank > 0 => {
                let axis = self.rng.random_range(0..rank);
                let (other, more) = self.pick();
                let two = [x, other, x];
                let parts = self.rng.random_range(2..=3);
                // Operands that do not fit leave the graph as it was.
                match self.graph.concat(&two[..parts], axis) {
                    Ok(y) => self.push(y, bound.max(more)),
                    Err(_) => {
                        let y = self.graph.concat(&[x, x], axis)?;
                        self.push(y, bound)
                    }
                }
            }
            7 if rank > 0 => self.slice(x, bound),
            8 => self.gather(x, bound),
            9 if shape.last().is_some_and(|&size| size > 0) => {
                let y = self.graph.softmax(x)?;
                self.push(y, 1.0)
            }
            10 if rank > 0 => {
                let axis = self.rng.random_range(0..rank);
                let op = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max][self.rng.random_range(0..3)];
                if shape[axis] == 0 {
                    return Ok(());
                }
                let keep = self.rng.random();
                let y = self.graph.reduce(op, x, axis, keep)?;
                self.push(y, if op == ReduceOp::Sum { bound * shape[axis] as f32 } else { bound })
            }
            11 if self.graph.shape(x).last().and_then(Dim::fixed).is_some_and(|size| size > 1) => {
                let size = shape[rank - 1];
                let k = self.rng.random_range(1..=size);
                let (values, indices) = self.graph.top_k(x, k)?;
                self.integers.push((indices, size));
                self.push(values, bound)
            }
            12 => self.linear(x, bound),
            13 => self.norm(x),
            14 => {
                let (x, bound, width) = self.pick_sequence();
                let Some(head_dim) = [8, 6, 4, 2].into_iter().find(|head_dim| width % head_dim == 0) else {
                    return Ok(());
                };
                let y = self.rotary(x, head_dim)?;
                self.push(y, 1.5 * bound)
            }
            15 => self.attention(),
            _ => Ok(()),
        }
    }

    fn unary(&mut self, x: Value, bound: f32) -> Result<()> {
        use UnaryOp::*;
        let all =
            [Neg, Abs, Exp, Log, Sqrt, Reciprocal, Sin, Cos, Tanh, Erf, Sigmoid, Relu, Silu, Gelu, GeluTanh];
        let op = all[self.rng.random_range(0..all.len())];
        let x = match op {
            Log | Sqrt | Reciprocal => self.positive(x)?,
            _ => x,
        };
        let y = self.graph.unary(op, x)?;
        let bound = match op {
            Neg | Abs | Relu | Silu | Gelu | GeluTanh => bound,
            Exp => bound.exp(),
            Log | Sqrt => bound + 1.0,
            Reciprocal => 2.0,
            _ => 1.0,
        };
        self.push(y, bound)
    }

    fn binary(&mut self, x: Value, bound: f32) -> Result<()> {
        use BinaryOp::*;
        let (mut other, mut more) = self.pick();
        if self.graph.clone().add(x, other).is_err() {
            let width = self.graph.shape(x).last().and_then(Dim::fixed).unwrap_or(1);
            (other, more) = (self.param(&[width], 1.0)?, 1.0);
        }
        let op = [Add, Sub, Mul, Div, Pow, Max, Min][self.rng.random_range(0..7)];
        let (mut a, mut b) = if self.rng.random() { (x, other) } else { (other, x) };
        match op {
            Div => b = self.positive(b)?,
            Pow if self.rng.random() => b = self.graph.scalar([2.0, 3.0][self.rng.random_range(0..2)])?,
            Pow => (a, b) = (self.positive(a)?, self.graph.unary(UnaryOp::Tanh, b)?),
            _ => {}
        }
        let y = self.graph.binary(op, a, b)?;
        let most = bound.max(more);
        let bound = match op {
            Max | Min => most,
            Add | Sub => bound + more,
            Mul => bound * more,
            Div => 2.0 * most,
            _ => (most * most + 0.5).powi(2),
        };
        self.push(y, bound)
    }

    fn truth(&mut self, x: Value, bound: f32) -> Result<()> {
        use BinaryOp::*;
        let compare = [Less, LessOrEqual, Greater, GreaterOrEqual, Equal][self.rng.random_range(0..5)];
        let condition = if self.rng.random_range(0..3) == 0 {
            let (id, below) = self.integers[self.rng.random_range(0..self.integers.len())];
            let values = vec![self.rng.random_range(0..below as i64)];
            let limit = self.graph.constant(Literal::I64 { shape: vec![], values })?;
            self.graph.binary(compare, id, limit)?
        } else {
            // No value is near it by construction.
            let limit = self.graph.scalar(0.123_456_7)?;
            self.graph.binary(compare, x, limit)?
        };
        let condition = match self.rng.random_range(0..3) {
            0 => self.graph.unary(UnaryOp::Not, condition)?,
            _ => condition,
        };
        let mut conditions = vec![condition];
        for &other in &self.truths {
            for op in [And, Or] {
                if let Ok(joined) = self.graph.binary(op, condition, other) {
                    conditions.push(joined);
                }
            }
        }
        self.truths.push(condition);
        let condition = conditions[self.rng.random_range(0..conditions.len())];
        if self.rng.random_range(0..4) == 0 {
            let y = self.graph.cast(condition, DType::F32)?;
            return self.push(y, 1.0);
        }
        let (other, more) = self.pick();
        let low = self.graph.scalar(-0.25)?;
        match self.graph.select(condition, x, other) {
            Ok(y) => self.push(y, bound.max(more)),
            Err(_) => match self.graph.select(condition, low, x) {
                Ok(y) => self.push(y, bound),
                Err(_) => Ok(()),
            },
        }
    }

    fn matmul(&mut self, x: Value, bound: f32) -> Result<()> {
        let rank = self.graph.shape(x).rank();
        let Some(inner) = self.graph.shape(x).last().cloned().filter(|_| rank > 1) else { return Ok(()) };
        let size = self.shape(x)[rank - 1].max(1) as f32;
        let y = match inner.fixed() {
            Some(inner) if self.rng.random() => {
                let columns = self.rng.random_range(1..5);
                let right = self.param(&[inner, columns], 1.0)?;
                self.graph.matmul(x, right)?
            }
            _ => {
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.swap(rank - 1, rank - 2);
                let turned = self.graph.transpose(x, &perm)?;
                if self.rng.random() {
                    self.graph.matmul(x, turned)?
                } else {
                    self.graph.matmul(turned, x)?
                }
            }
        };
        let rows = self.shape(x)[rank - 2].max(1) as f32;
        let y = self.graph.scale(y, 1.0 / size.max(rows))?;
        self.push(y, bound * bound.max(1.0))
    }

    fn reshape(&mut self, x: Value, bound: f32) -> Result<()> {
        let mut dims = self.graph.shape(x).dims().to_vec();
        let last = dims.len().saturating_sub(1);
        let merge = |a: &Dim, b: &Dim| match (a.fixed(), b.fixed()) {
            (_, Some(factor)) if factor > 0 => Some(a * factor),
            (Some(factor), _) if factor > 0 => Some(b * factor),
            _ => None,
        };
        match self.rng.random_range(0..3) {
            0 if dims.len() > 1 => {
                let at = self.rng.random_range(0..last);
                let Some(merged) = merge(&dims[at], &dims[at + 1]) else { return Ok(()) };
                dims.splice(at..at + 2, [merged]);
            }
            1 if !dims.is_empty() => {
                let at = self.rng.random_range(0..dims.len());
                let factor = self.rng.random_range(2..4);
                let Some(rest) = dims[at].divide(factor) else { return Ok(()) };
                dims.splice(at..=at, [rest, factor.into()]);
            }
            _ => dims.insert(self.rng.random_range(0..=dims.len()), 1.into()),
        }
        let y = self.graph.reshape(x, dims)?;
        self.push(y, bound)
    }

    fn slice(&mut self, x: Value, bound: f32) -> Result<()> {
        let shape = self.graph.shape(x).clone();
        let axis = self.rng.random_range(0..shape.rank());
        let along = &shape.dims()[axis];
        let (start, end): (Dim, Dim) = match along.fixed() {
            Some(size) if size > 0 => {
                let start = self.rng.random_range(0..size);
                (start.into(), self.rng.random_range(start + 1..=size).into())
            }
            _ => match along.minus(&"T".into()) {
                // The last rows or the first ones of a longer past.
                Some(rest) if self.rng.random() => (rest, along.clone()),
                Some(_) => (0.into(), "T".into()),
                None => return Ok(()),
            },
        };
        let y = self.graph.slice(x, axis, start, end)?;
        self.push(y, bound)
    }

    fn gather(&mut self, x: Value, bound: f32) -> Result<()> {
        let table = self.rng.random_range(0..3);
        if table == 0 {
            let width = self.rng.random_range(1..5);
            let table = self.param(&[VOCABULARY, width], 1.0)?;
            let ids = self.index(x, VOCABULARY)?;
            let y = self.graph.embedding(table, ids)?;
            return self.push(y, 1.0);
        }
        let shape = self.graph.shape(x).clone();
        let known: Vec<_> =
            shape.dims().iter().enumerate().filter_map(|(i, dim)| Some((i, dim.fixed()?))).collect();
        let known: Vec<_> = known.into_iter().filter(|(_, size)| *size > 0).collect();
        if known.is_empty() {
            return Ok(());
        }
        let (axis, size) = known[self.rng.random_range(0..known.len())];
        let indices = if self.rng.random() {
            let dims = vec![self.rng.random_range(1..4); self.rng.random_range(0..2)];
            let values = (0..dims.iter().product()).map(|_| self.rng.random_range(0..size as i64)).collect();
            self.graph.constant(Literal::I64 { shape: dims, values })?
        } else {
            self.index(x, size)?
        };
        let y = self.graph.gather(x, indices, axis)?;
        self.push(y, bound)
    }

    /// Integers from 0 to below `size`: known ones, or made from `x`.
    fn index(&mut self, x: Value, size: usize) -> Result<Value> {
        let good: Vec<Value> =
            self.integers.iter().filter(|(_, below)| *below <= size).map(|(value, _)| *value).collect();
        if !good.is_empty() && self.rng.random() {
            return Ok(good[self.rng.random_range(0..good.len())]);
        }
        let int = |value| Literal::I64 { shape: vec![], values: vec![value] };
        let scaled = self.graph.scale(x, 2.345_678)?;
        let cast = self.graph.cast(scaled, DType::I64)?;
        let (zero, top) = (self.graph.constant(int(0))?, self.graph.constant(int(size as i64 - 1))?);
        let (two, three) = (self.graph.constant(int(2))?, self.graph.constant(int(3))?);
        // Some arithmetic on the way: -3..3, doubled and moved.
        let mixed = self.graph.mul(cast, two)?;
        let mixed = self.graph.add(mixed, three)?;
        let mixed = self.graph.binary(BinaryOp::Div, mixed, three)?;
        let clamped = self.graph.binary(BinaryOp::Max, mixed, zero)?;
        let clamped = self.graph.binary(BinaryOp::Min, clamped, top)?;
        self.integers.push((clamped, size));
        Ok(clamped)
    }

    fn linear(&mut self, x: Value, bound: f32) -> Result<()> {
        let Some(inner) = self.graph.shape(x).last().and_then(Dim::fixed).filter(|&inner| inner > 0) else {
            return Ok(());
        };
        let outs = self.rng.random_range(1..9);
        let root = (inner as f32).sqrt();
        let weight = self.param(&[outs, inner], root)?;
        let bias = if self.rng.random() { Some(self.param(&[outs], 1.0)?) } else { None };
        let y = self.graph.linear(x, weight, bias)?;
        self.push(y, bound * root + 1.0)
    }

    fn norm(&mut self, x: Value) -> Result<()> {
        let Some(width) = self.graph.shape(x).last().and_then(Dim::fixed).filter(|&width| width > 0) else {
            return Ok(());
        };
        let weight = self.param(&[width], 1.0)?;
        // Large enough that rows of equal numbers do not magnify rounding.
        let y = if self.rng.random() {
            self.graph.rms_norm(x, weight, 0.01)?
        } else {
            let bias = self.param(&[width], 1.0)?;
            self.graph.layer_norm(x, weight, bias, 0.01)?
        };
        self.push(y, (width as f32).sqrt() + 1.0)
    }

    fn rotary(&mut self, x: Value, head_dim: usize) -> Result<Value> {
        let positions = match self.graph.find("positions") {
            Some(positions) => positions,
            None => self.int_input("positions", vec!["B".into(), "T".into()], 40)?,
        };
        let scaling = match self.rng.random_range(0..3) {
            0 => RopeScaling::None,
            1 => RopeScaling::Linear { factor: 4.0 },
            _ => RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32.0 },
        };
        self.graph.rotary(x, positions, head_dim, 100.0, scaling)
    }

    fn attention(&mut self) -> Result<()> {
        let [head_dim, heads, kv_heads] = self.heads;
        let (x, bound, width) = self.pick_sequence();
        let root = (width as f32).sqrt();
        let mut rows = [x; 3];
        for (row, heads) in rows.iter_mut().zip([heads, kv_heads, kv_heads]) {
            let weight = self.param(&[heads * head_dim, width], root)?;
            *row = self.graph.linear(x, weight, None)?;
        }
        if self.rng.random() {
            for row in &mut rows[..2] {
                *row = self.rotary(*row, head_dim)?;
            }
        }
        let past = if self.rng.random() { Some(self.past()?) } else { None };
        let mask = self.mask(past.is_some())?;
        let softcap = (self.rng.random_range(0..3) == 0).then_some(2.0);
        let config = AttentionConfig { heads, kv_heads, scale: 1.0 / (head_dim as f32).sqrt(), softcap };
        let (y, keys, values) = self.graph.attention(rows, mask, past, config)?;
        self.push(y, bound * root)?;
        if self.rng.random() {
            self.push(keys, 2.0 * bound * root)?;
            self.push(values, bound * root)?;
        }
        Ok(())
    }

    fn past(&mut self) -> Result<(Value, Value)> {
        if let (Some(keys), Some(values)) = (self.graph.find("past_keys"), self.graph.find("past_values")) {
            return Ok((keys, values));
        }
        let [head_dim, _, kv_heads] = self.heads;
        let dims = || vec!["B".into(), kv_heads.into(), "L".into(), head_dim.into()];
        let keys = self.float_input("past_keys", dims())?;
        let values = self.float_input("past_values", dims())?;
        // They are operands of attention only: other operations may not like to be empty.
        self.floats.retain(|(value, _)| *value != keys && *value != values);
        Ok((keys, values))
    }

    /// A mask that hides entries by chance, but none from itself.
    fn mask(&mut self, past: bool) -> Result<Value> {
        let name = if past { "mask_past" } else { "mask" };
        if let Some(mask) = self.graph.find(name) {
            return Ok(mask);
        }
        let rows = Dim::symbol("T");
        let all = if past { &Dim::symbol("L") + &rows } else { rows.clone() };
        let batch = if self.rng.random() { Dim::symbol("B") } else { 1.into() };
        let shape = Shape(vec![batch, 1.into(), rows, all]);
        let mask = self.graph.input(name, shape, DType::F32)?;
        let shape = self.shape(mask);
        let (rows, all) = (shape[2], shape[3]);
        let mut values = Vec::new();
        for row in 0..shape[0] * rows {
            for column in 0..all {
                let hidden = self.rng.random_range(0..3) == 0 && column != all - rows + row % rows;
                values.push(if hidden { -1e9 } else { 0.0 });
            }
        }
        self.feeds.push((name.into(), Feed::Float { shape, values }));
        Ok(mask)
    }

    fn finish(mut self) -> Result<(Graph, Vec<(String, Feed)>)> {
        let computed =
            |graph: &Graph, value: Value| matches!(graph.info(value).producer, crate::Producer::Node(..));
        let floats: Vec<Value> = self
            .floats
            .iter()
            .map(|(value, _)| *value)
            .filter(|&value| computed(&self.graph, value))
            .collect();
        let mut chosen: Vec<Value> = floats.last().copied().into_iter().collect();
        for _ in 0..2.min(floats.len()) {
            let value = floats[self.rng.random_range(0..floats.len())];
            if !chosen.contains(&value) {
                chosen.push(value);
            }
        }
        if chosen.is_empty() {
            let (x, _) = self.floats[0];
            chosen.push(self.graph.unary(UnaryOp::Tanh, x)?);
        }
        for (index, value) in chosen.into_iter().enumerate() {
            self.graph.output(&format!("y{index}"), value)?;
        }
        let integer =
            self.integers.iter().map(|(value, _)| *value).rfind(|&value| computed(&self.graph, value));
        if let Some(integer) = integer {
            self.graph.output("indices", integer)?;
        }
        Ok((self.graph, self.feeds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;
    use std::collections::HashSet;

    /// Some seeds reach every operation, and the same seed gives the same graph.
    #[test]
    fn everything_occurs() {
        let (mut ops, mut functions) = (HashSet::new(), HashSet::new());
        for seed in 0..300 {
            let (graph, feeds) = random_graph(seed).expect("valid");
            assert_eq!(random_graph(seed).expect("valid").1, feeds);
            assert_eq!(graph.inputs().len(), feeds.len());
            for node in graph.nodes() {
                ops.insert(node.op.name());
                match &node.op {
                    Op::Unary(op) => drop(functions.insert(format!("{op:?}"))),
                    Op::Binary(op) => drop(functions.insert(format!("{op:?}"))),
                    Op::Reduce { op, .. } => drop(functions.insert(format!("reduced {op:?}"))),
                    _ => {}
                }
            }
        }
        // 16 functions of one operand, 14 of two, 3 reductions.
        assert_eq!((ops.len(), functions.len()), (20, 33), "{ops:?} {functions:?}");
    }
}
