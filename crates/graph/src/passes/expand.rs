use crate::{BinaryOp, DType, Dim, Graph, Literal, Node, Op, ReduceOp, Result, RopeScaling, UnaryOp, Value};

/// Replaces every composite operation by primitives. This is the definition of the composites; whatever a
/// reader does instead must agree with it.
///
/// What stays: `Linear`, `MatMul`, `Softmax`, reductions, elementwise functions, and moving data about.
pub fn expand(graph: &Graph) -> Result<Graph> {
    super::rewrite(graph, expand_node)
}

/// The rule behind [`expand`], for readers that expand some operations only.
pub(crate) fn expand_node(g: &mut Graph, node: &Node, inputs: &[Value]) -> Result<Option<Vec<Value>>> {
    let one = |value: Value| Ok(Some(vec![value]));
    match &node.op {
        Op::Embedding => one(g.gather(inputs[0], inputs[1], 0)?),
        Op::RmsNorm { eps } => {
            let scaled = unit(g, inputs[0], *eps)?;
            one(g.mul(scaled, inputs[1])?)
        }
        Op::LayerNorm { eps } => {
            let axis = g.shape(inputs[0]).rank() - 1;
            let mean = g.reduce(ReduceOp::Mean, inputs[0], axis, true)?;
            let centred = g.binary(BinaryOp::Sub, inputs[0], mean)?;
            let scaled = unit(g, centred, *eps)?;
            let scaled = g.mul(scaled, inputs[1])?;
            one(g.add(scaled, inputs[2])?)
        }
        Op::Unary(UnaryOp::Silu) => {
            let gate = g.unary(UnaryOp::Sigmoid, inputs[0])?;
            one(g.mul(inputs[0], gate)?)
        }
        Op::Unary(UnaryOp::Gelu) => {
            let inner = g.scale(inputs[0], std::f32::consts::FRAC_1_SQRT_2)?;
            let inner = g.unary(UnaryOp::Erf, inner)?;
            one(half_one_plus(g, inputs[0], inner)?)
        }
        Op::Unary(UnaryOp::GeluTanh) => {
            let square = g.mul(inputs[0], inputs[0])?;
            let cube = g.mul(square, inputs[0])?;
            let cube = g.scale(cube, 0.044715)?;
            let inner = g.add(inputs[0], cube)?;
            let inner = g.scale(inner, (2.0 / std::f64::consts::PI).sqrt() as f32)?;
            let inner = g.unary(UnaryOp::Tanh, inner)?;
            one(half_one_plus(g, inputs[0], inner)?)
        }
        Op::Rotary { head_dim, theta, scaling } => one(rotary(g, inputs, *head_dim, *theta, *scaling)?),
        Op::Attention { heads, kv_heads, scale, softcap } => {
            attention(g, inputs, [*heads, *kv_heads], *scale, *softcap).map(Some)
        }
        _ => Ok(None),
    }
}

/// `x / sqrt(mean(x^2) + eps)` over the last axis.
fn unit(g: &mut Graph, x: Value, eps: f32) -> Result<Value> {
    let axis = g.shape(x).rank() - 1;
    let square = g.mul(x, x)?;
    let mean = g.reduce(ReduceOp::Mean, square, axis, true)?;
    let eps = g.scalar(eps)?;
    let sum = g.add(mean, eps)?;
    let root = g.unary(UnaryOp::Sqrt, sum)?;
    g.binary(BinaryOp::Div, x, root)
}

fn half_one_plus(g: &mut Graph, x: Value, inner: Value) -> Result<Value> {
    let one = g.scalar(1.0)?;
    let sum = g.add(inner, one)?;
    let half = g.scale(x, 0.5)?;
    g.mul(half, sum)
}

/// Inverse frequencies of a rotary embedding: entry `i` of `head_dim / 2` turns by `position * out[i]`.
pub fn rotary_frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    match scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
        RopeScaling::Llama3 { factor, low, high, original } => plain
            .map(|frequency| {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect(),
    }
}

fn rotary(
    g: &mut Graph,
    inputs: &[Value],
    head_dim: usize,
    theta: f64,
    scaling: RopeScaling,
) -> Result<Value> {
    let dims = g.shape(inputs[0]).dims().to_vec();
    let (batch, rows, width) = (dims[0].clone(), dims[1].clone(), dims[2].clone());
    let half = head_dim / 2;
    let heads = width.divide(head_dim).unwrap_or_default();
    let frequencies = rotary_frequencies(head_dim, theta, scaling).into_iter().map(|f| f as f32).collect();
    let frequencies = g.constant(Literal::F32 { shape: vec![1, 1, 1, half], values: frequencies })?;
    let positions = g.cast(inputs[1], DType::F32)?;
    let positions = g.reshape(positions, vec![batch.clone(), rows.clone(), 1.into(), 1.into()])?;
    let angles = g.mul(positions, frequencies)?;
    let (cos, sin) = (g.unary(UnaryOp::Cos, angles)?, g.unary(UnaryOp::Sin, angles)?);
    let x = g.reshape(inputs[0], vec![batch.clone(), rows.clone(), heads, head_dim.into()])?;
    let (a, b) = (g.slice(x, 3, 0, half)?, g.slice(x, 3, half, head_dim)?);
    let (a_cos, b_sin) = (g.mul(a, cos)?, g.mul(b, sin)?);
    let (b_cos, a_sin) = (g.mul(b, cos)?, g.mul(a, sin)?);
    let first = g.binary(BinaryOp::Sub, a_cos, b_sin)?;
    let second = g.add(b_cos, a_sin)?;
    let turned = g.concat(&[first, second], 3)?;
    g.reshape(turned, vec![batch, rows, width])
}

fn attention(
    g: &mut Graph,
    inputs: &[Value],
    [heads, kv_heads]: [usize; 2],
    scale: f32,
    softcap: Option<f32>,
) -> Result<Vec<Value>> {
    let dims = g.shape(inputs[0]).dims().to_vec();
    let (batch, rows, width) = (dims[0].clone(), dims[1].clone(), dims[2].clone());
    let head_dim = width.divide(heads).unwrap_or_default();
    let group = heads / kv_heads;
    let split = |g: &mut Graph, x: Value| -> Result<Value> {
        let x = g.reshape(x, vec![batch.clone(), rows.clone(), kv_heads.into(), head_dim.clone()])?;
        g.transpose(x, &[0, 2, 1, 3])
    };
    let (mut keys, mut values) = (split(g, inputs[1])?, split(g, inputs[2])?);
    if let [_, _, _, _, past_keys, past_values] = inputs {
        keys = g.concat(&[*past_keys, keys], 2)?;
        values = g.concat(&[*past_values, values], 2)?;
    }
    let all: Dim = g.shape(keys).dims()[2].clone();
    // Query heads of a group are rows of one product, so that no key is repeated.
    let q = g.reshape(
        inputs[0],
        vec![batch.clone(), rows.clone(), kv_heads.into(), group.into(), head_dim.clone()],
    )?;
    let q = g.transpose(q, &[0, 2, 3, 1, 4])?;
    let q = g.reshape(q, vec![batch.clone(), kv_heads.into(), &rows * group, head_dim.clone()])?;
    let turned = g.transpose(keys, &[0, 1, 3, 2])?;
    let scores = g.matmul(q, turned)?;
    let mut scores = g.scale(scores, scale)?;
    if let Some(cap) = softcap {
        scores = g.scale(scores, 1.0 / cap)?;
        scores = g.unary(UnaryOp::Tanh, scores)?;
        scores = g.scale(scores, cap)?;
    }
    let apart = vec![batch.clone(), kv_heads.into(), group.into(), rows.clone(), all.clone()];
    let scores = g.reshape(scores, apart)?;
    let mask_batch = g.shape(inputs[3]).dims()[0].clone();
    let mask = g.reshape(inputs[3], vec![mask_batch, 1.into(), 1.into(), rows.clone(), all.clone()])?;
    let scores = g.add(scores, mask)?;
    let weights = g.softmax(scores)?;
    let weights = g.reshape(weights, vec![batch.clone(), kv_heads.into(), &rows * group, all])?;
    let mixed = g.matmul(weights, values)?;
    let mixed =
        g.reshape(mixed, vec![batch.clone(), kv_heads.into(), group.into(), rows.clone(), head_dim])?;
    let mixed = g.transpose(mixed, &[0, 3, 1, 2, 4])?;
    let y = g.reshape(mixed, vec![batch, rows, width])?;
    Ok(vec![y, keys, values])
}
