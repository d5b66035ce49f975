//! One method an operation, so that an architecture reads like its formulas.

use crate::{
    BinaryOp, DType, Dim, Graph, GraphError, Literal, Op, ReduceOp, Result, RopeScaling, Storage, UnaryOp,
    Value,
};

/// Settings of [`Graph::attention`]; see [`Op::Attention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Soft cap of the scores.
    pub softcap: Option<f32>,
}

impl Graph {
    fn one(&mut self, op: Op, inputs: &[Value]) -> Result<Value> {
        // Every operation but TopK and Attention has exactly one result.
        Ok(self.apply(op, inputs)?[0])
    }

    /// A scalar.
    pub fn scalar(&mut self, value: f32) -> Result<Value> {
        self.constant(Literal::F32 { shape: vec![], values: vec![value] })
    }

    /// A constant; see [`Op::Constant`].
    pub fn constant(&mut self, literal: Literal) -> Result<Value> {
        self.one(Op::Constant(literal), &[])
    }

    /// See [`Op::Unary`].
    pub fn unary(&mut self, op: UnaryOp, x: Value) -> Result<Value> {
        self.one(Op::Unary(op), &[x])
    }

    /// See [`Op::Binary`].
    pub fn binary(&mut self, op: BinaryOp, a: Value, b: Value) -> Result<Value> {
        self.one(Op::Binary(op), &[a, b])
    }

    /// The sum, broadcast.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Add, a, b)
    }

    /// The product, elementwise and broadcast.
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Mul, a, b)
    }

    /// The product with a number.
    pub fn scale(&mut self, x: Value, factor: f32) -> Result<Value> {
        let factor = self.scalar(factor)?;
        self.mul(x, factor)
    }

    /// See [`Op::Where`].
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Result<Value> {
        self.one(Op::Where, &[condition, a, b])
    }

    /// See [`Op::Cast`].
    pub fn cast(&mut self, x: Value, dtype: DType) -> Result<Value> {
        self.one(Op::Cast(dtype), &[x])
    }

    /// See [`Op::MatMul`].
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.one(Op::MatMul, &[a, b])
    }

    /// See [`Op::Transpose`].
    pub fn transpose(&mut self, x: Value, perm: &[usize]) -> Result<Value> {
        self.one(Op::Transpose(perm.to_vec()), &[x])
    }

    /// See [`Op::Reshape`].
    pub fn reshape(&mut self, x: Value, dims: impl Into<Vec<Dim>>) -> Result<Value> {
        self.one(Op::Reshape(dims.into()), &[x])
    }

    /// See [`Op::Concat`].
    pub fn concat(&mut self, parts: &[Value], axis: usize) -> Result<Value> {
        self.one(Op::Concat { axis }, parts)
    }

    /// See [`Op::Slice`].
    pub fn slice(
        &mut self,
        x: Value,
        axis: usize,
        start: impl Into<Dim>,
        end: impl Into<Dim>,
    ) -> Result<Value> {
        self.one(Op::Slice { axis, start: start.into(), end: end.into() }, &[x])
    }

    /// See [`Op::Gather`].
    pub fn gather(&mut self, data: Value, indices: Value, axis: usize) -> Result<Value> {
        self.one(Op::Gather { axis }, &[data, indices])
    }

    /// See [`Op::Softmax`].
    pub fn softmax(&mut self, x: Value) -> Result<Value> {
        self.one(Op::Softmax, &[x])
    }

    /// See [`Op::Reduce`].
    pub fn reduce(&mut self, op: ReduceOp, x: Value, axis: usize, keep: bool) -> Result<Value> {
        self.one(Op::Reduce { op, axis, keep }, &[x])
    }

    /// See [`Op::TopK`]: values and indices.
    pub fn top_k(&mut self, x: Value, k: usize) -> Result<(Value, Value)> {
        let out = self.apply(Op::TopK { k }, &[x])?;
        Ok((out[0], out[1]))
    }

    /// A dense [`Op::Linear`].
    pub fn linear(&mut self, x: Value, weight: Value, bias: Option<Value>) -> Result<Value> {
        let inputs: Vec<Value> = [x, weight].into_iter().chain(bias).collect();
        self.one(Op::Linear(Storage::F32), &inputs)
    }

    /// A sum over experts: `y = sum_e factors_e W_e x`, of `x` `[.., ins]`, `factors` `[.., experts]` (0 for experts that
    /// a row does not use) and the experts' matrices on top of each other, `[experts * outs, ins]`. A reader that knows
    /// the pattern computes only the experts that some row uses.
    ///
    /// # Errors
    /// Operands that do not fit.
    pub fn experts(&mut self, x: Value, factors: Value, weight: Value) -> Result<Value> {
        let rank = self.shape(factors).rank();
        let last = |g: &Self, value: Value, at: usize| g.shape(value).dims().get(at).and_then(Dim::fixed);
        let count = rank.checked_sub(1).and_then(|axis| last(self, factors, axis)).unwrap_or(0);
        let all = last(self, weight, 0).unwrap_or(0);
        if count == 0 || all % count != 0 {
            let why = format!("{all} rows of weights are not those of {count} experts");
            return Err(GraphError::Tensor { name: self.info(weight).name.clone(), why });
        }
        let products = self.linear(x, weight, None)?;
        let mut dims = self.shape(factors).dims().to_vec();
        dims.push((all / count).into());
        let products = self.reshape(products, dims.clone())?;
        dims[rank] = 1.into();
        let factors = self.reshape(factors, dims)?;
        let scaled = self.mul(products, factors)?;
        self.reduce(ReduceOp::Sum, scaled, rank - 1, false)
    }

    /// See [`Op::Embedding`].
    pub fn embedding(&mut self, table: Value, ids: Value) -> Result<Value> {
        self.one(Op::Embedding, &[table, ids])
    }

    /// See [`Op::RmsNorm`].
    pub fn rms_norm(&mut self, x: Value, weight: Value, eps: f32) -> Result<Value> {
        self.one(Op::RmsNorm { eps }, &[x, weight])
    }

    /// See [`Op::LayerNorm`].
    pub fn layer_norm(&mut self, x: Value, weight: Value, bias: Value, eps: f32) -> Result<Value> {
        self.one(Op::LayerNorm { eps }, &[x, weight, bias])
    }

    /// See [`Op::Rotary`].
    pub fn rotary(
        &mut self,
        x: Value,
        positions: Value,
        head_dim: usize,
        theta: f64,
        scaling: RopeScaling,
    ) -> Result<Value> {
        self.one(Op::Rotary { head_dim, theta, scaling }, &[x, positions])
    }

    /// See [`Op::Attention`]: the output, and all keys and values.
    pub fn attention(
        &mut self,
        [q, k, v]: [Value; 3],
        mask: Value,
        past: Option<(Value, Value)>,
        config: AttentionConfig,
    ) -> Result<(Value, Value, Value)> {
        let AttentionConfig { heads, kv_heads, scale, softcap } = config;
        let mut inputs = vec![q, k, v, mask];
        inputs.extend(past.into_iter().flat_map(|(keys, values)| [keys, values]));
        let out = self.apply(Op::Attention { heads, kv_heads, scale, softcap }, &inputs)?;
        Ok((out[0], out[1], out[2]))
    }
}
