use serde::{Deserialize, Serialize};

use crate::{Dim, Shape};

/// Element types of graph values. `F32` stands for "the reader's float": an interpreter may compute in f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DType {
    /// Floating point.
    F32,
    /// 64-bit integers: ids, positions, indices.
    I64,
    /// Truth values.
    Bool,
}

/// What the weights of a packed matrix are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Four bytes.
    #[default]
    F32,
    /// Two bytes, rounded to the nearest.
    Bf16,
    /// One byte, and an f32 scale for each output: `w = q scale` with `|q| <= 127`.
    Int8,
}

impl Kept {
    /// What a storage's name ends in.
    fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "",
            Self::Bf16 => "-bf16",
            Self::Int8 => "-int8",
        }
    }
}

/// How a [`Op::Linear`]'s matrix is stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Storage {
    /// Dense f32.
    #[default]
    F32,
    /// Four-bit integers in blocks along the input dimension, each block with an f32 scale and an integer zero
    /// point, from the block's minimum and maximum.
    Int4 {
        /// Inputs a block: 16, 32, 64 or 128.
        block: usize,
    },
    /// Eight-bit integers in blocks, as [`Storage::Int4`].
    Int8 {
        /// Inputs a block: 16, 32, 64 or 128.
        block: usize,
    },
    /// Dense bf16, rounded to the nearest; exact for checkpoints that were published so.
    Bf16,
    /// The `keep` weights of largest magnitude of each `group` consecutive inputs; which they are is exact for
    /// matrices that were pruned to this pattern before.
    Sparse {
        /// N: weights kept, 1 to `group`.
        keep: usize,
        /// M: inputs a group, at most 32; divides the inputs.
        group: usize,
        /// What the weights are kept in.
        kept: Kept,
    },
    /// All weights, by columns: a kernel that has this storage does not read the columns of inputs that are zero
    /// in every row. For inputs that a gate has thinned out; the product is that of any storage.
    Columns {
        /// What the weights are kept in.
        kept: Kept,
    },
    /// All weights in f32, by rows: a kernel that has this storage does not compute outputs of a gated layer that its
    /// gate drops in every row. For up projections; the product is that of [`Storage::F32`].
    Rows,
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::Int4 { block } => write!(f, "int4x{block}"),
            Self::Int8 { block } => write!(f, "int8x{block}"),
            Self::Bf16 => f.write_str("bf16"),
            Self::Sparse { keep, group, kept } => write!(f, "{keep}of{group}{}", kept.suffix()),
            Self::Rows => f.write_str("rows"),
            Self::Columns { kept } => write!(f, "columns{}", kept.suffix()),
        }
    }
}

/// Elementwise functions of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the definitions
pub enum UnaryOp {
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Sin,
    Cos,
    Tanh,
    Erf,
    Sigmoid,
    Relu,
    /// `x * sigmoid(x)`
    Silu,
    /// `x/2 * (1 + erf(x / sqrt 2))`
    Gelu,
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`
    GeluTanh,
    Not,
}

/// Elementwise functions of two operands, broadcast against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the definitions
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Max,
    Min,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    And,
    Or,
}

impl BinaryOp {
    /// Whether the result is a truth value.
    pub fn is_comparison(self) -> bool {
        use BinaryOp::*;
        matches!(self, Less | LessOrEqual | Greater | GreaterOrEqual | Equal | And | Or)
    }
}

/// Reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the definitions
pub enum ReduceOp {
    Sum,
    Mean,
    Max,
}

/// Change of rotary frequencies for long contexts.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum RopeScaling {
    /// None.
    #[default]
    None,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1's interpolation between scaled and unscaled frequencies by wavelength.
    Llama3 {
        /// Division of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are scaled fully.
        low: f64,
        /// Wavelengths below `original / high` are not scaled.
        high: f64,
        /// Context length before scaling.
        original: f64,
    },
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// Floats of a shape (empty shape: a scalar).
    F32 {
        /// Dimensions.
        shape: Vec<usize>,
        /// Row-major values.
        values: Vec<f32>,
    },
    /// Integers of a shape.
    I64 {
        /// Dimensions.
        shape: Vec<usize>,
        /// Row-major values.
        values: Vec<i64>,
    },
}

/// Operations. Operands are listed with each; `[..]` is any number of leading dimensions.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// `() -> value`
    Constant(Literal),
    /// `(x) -> y`, elementwise.
    Unary(UnaryOp),
    /// `(a, b) -> y`, elementwise, broadcast.
    Binary(BinaryOp),
    /// `(condition, a, b) -> y`, elementwise, broadcast.
    Where,
    /// `(x) -> y` in another element type.
    Cast(DType),
    /// `(a [.., M, K], b [.., K, N]) -> [.., M, N]`, leading dimensions broadcast.
    MatMul,
    /// `(x) -> y` with dimension `i` taken from dimension `perm[i]`.
    Transpose(Vec<usize>),
    /// `(x) -> y` of this shape, same elements in the same order.
    Reshape(Vec<Dim>),
    /// `(x...) -> y` joined along an axis.
    Concat {
        /// Axis.
        axis: usize,
    },
    /// `(x) -> y`: entries `start..end` along an axis.
    Slice {
        /// Axis.
        axis: usize,
        /// First entry.
        start: Dim,
        /// One past the last entry.
        end: Dim,
    },
    /// `(data, indices) -> y`: entries of `data` along an axis; the indices' dimensions take the axis' place.
    Gather {
        /// Axis.
        axis: usize,
    },
    /// `(x) -> y`: softmax along the last axis.
    Softmax,
    /// `(x) -> y`: reduced along an axis, which stays with size 1 if `keep`.
    Reduce {
        /// Function.
        op: ReduceOp,
        /// Axis.
        axis: usize,
        /// Whether the axis stays.
        keep: bool,
    },
    /// `(x) -> (values, indices)`: the `k` largest along the last axis, descending.
    TopK {
        /// How many.
        k: usize,
    },
    /// `(x, weight [out, in], bias [out]?) -> [.., out]`: `x weight^T + bias`. Every weight matrix goes through
    /// here.
    Linear(Storage),
    /// `(table [V, d], ids [..]) -> [.., d]`.
    Embedding,
    /// `(x, weight [d]) -> y`: `x / sqrt(mean(x^2) + eps) * weight` over the last axis.
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x, weight [d], bias [d]) -> y`: centred, divided by the standard deviation, scaled, shifted.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `(x [B, T, heads * head_dim], positions [B, T]) -> y`: rotary embedding of each head, half-split form:
    /// entry `i` turns with entry `i + head_dim / 2` by `position * theta^(-2i / head_dim)`.
    Rotary {
        /// Width of a head.
        head_dim: usize,
        /// Base.
        theta: f64,
        /// Change of frequencies.
        scaling: RopeScaling,
    },
    /// `(q [B, T, heads * D], k [B, T, kv_heads * D], v [B, T, kv_heads * D], mask [B or 1, 1, T, S],
    /// past_k [B, kv_heads, L, D]?, past_v?) -> (y [B, T, heads * D], keys [B, kv_heads, S, D], values)`
    /// with `S = L + T` (`S = T` without a past): `softmax(scale q k^T + mask) v`, query heads sharing key heads
    /// in groups. The mask is added; all causality is in it.
    Attention {
        /// Query heads.
        heads: usize,
        /// Key and value heads; divides `heads`.
        kv_heads: usize,
        /// Factor of the scores.
        scale: f32,
        /// Scores become `cap * tanh(score / cap)` before the mask.
        softcap: Option<f32>,
    },
    /// `(x...) -> (y...)`: an operator that some crate gives to ONNX Runtime. No other reader knows it.
    Custom(Box<Custom>),
}

/// An operator that is not part of this graph language: what [`Op::Custom`] says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Custom {
    /// Domain, such as `pilotfish`. Not empty, nor one of ONNX or ONNX Runtime.
    pub domain: String,
    /// Name within the domain.
    pub name: String,
    /// The crate that has the operator; an ONNX file carries it, so that a session without the operator can
    /// say what is missing.
    pub provider: String,
    /// Attributes by name.
    pub attributes: Vec<(String, Setting)>,
    /// Shapes and element types of the results.
    pub results: Vec<(Shape, DType)>,
}

/// An attribute of a [`Custom`] operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f32),
    /// A text.
    Text(String),
}

impl Op {
    /// The operation's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Constant(_) => "Constant",
            Self::Unary(_) => "Unary",
            Self::Binary(_) => "Binary",
            Self::Where => "Where",
            Self::Cast(_) => "Cast",
            Self::MatMul => "MatMul",
            Self::Transpose(_) => "Transpose",
            Self::Reshape(_) => "Reshape",
            Self::Concat { .. } => "Concat",
            Self::Slice { .. } => "Slice",
            Self::Gather { .. } => "Gather",
            Self::Softmax => "Softmax",
            Self::Reduce { .. } => "Reduce",
            Self::TopK { .. } => "TopK",
            Self::Linear(_) => "Linear",
            Self::Embedding => "Embedding",
            Self::RmsNorm { .. } => "RmsNorm",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::Rotary { .. } => "Rotary",
            Self::Attention { .. } => "Attention",
            Self::Custom(_) => "Custom",
        }
    }
}
