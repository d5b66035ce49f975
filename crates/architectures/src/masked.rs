//! Networks that fill masks: transformers in which every position attends to every other.
//!
//! Two kinds: [`Bidirectional`] is a decoder-only network without its causal mask, which is what LLaDA (Llama's
//! layers) and Dream (Qwen 2's) are; [`SmallMasked`] is the small network with learned positions that list tasks are
//! learned with.
//!
//! Reference: LLaDA, arXiv 2502.09992; Dream 7B, arXiv 2508.15487. The names of LLaDA's tensors are those of its
//! released code (`modeling_llada.py`).

use std::collections::HashSet;

use pilotfish_graph::weights::{Encoding, Stored, Weights};
use pilotfish_graph::{
    AttentionConfig, DType, Dim, Graph, GraphError, Literal, Mark, Tensor, UnaryOp, Value,
};
use serde::{Deserialize, Serialize};

use crate::causal::{CausalNetwork, LayerInputs, fits, refuse_extra, uniform};
use crate::{ArchitectureError, Result};

/// What a runtime has to know of a network that fills masks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedShape {
    /// Vocabulary, the mask included.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions.
    pub context: usize,
    /// The mask token.
    pub mask: u32,
    /// Whether a position's logits are the output of the position before it, as in networks that began as causal
    /// ones (Dream).
    pub shift: bool,
    /// Tokens that end a text.
    pub end: Vec<u32>,
    /// Parameters that are no table of embeddings and no head.
    pub body_parameters: usize,
}

/// A network that fills masks, as graphs.
pub trait MaskedNetwork {
    /// Its sizes.
    fn shape(&self) -> MaskedShape;

    /// Everything before the head: `ids` and `positions` `[B, T]`, `mask` `[1, 1, T, S]` (additive, 0 where a row
    /// sees a key) to `final_normed` `[B, T, d]`. With `past`, also the inputs `past_key.{layer}` and
    /// `past_value.{layer}` `[B, kv_heads, L, head_dim]`, the outputs `key.{layer}` and `value.{layer}`
    /// `[B, kv_heads, L+T, head_dim]`, past first, and `S = L+T`; otherwise `S = T`.
    ///
    /// # Errors
    /// A tensor that is missing.
    fn body(&self, past: bool) -> Result<Graph>;

    /// The head: `x` `[R, d]` to `logits` `[R, V]`.
    ///
    /// # Errors
    /// A tensor that is missing.
    fn head(&self) -> Result<Graph>;

    /// Body and head, for training: `ids` and `positions` `[B, T]`, `mask` `[1, 1, T, T]` to `logits` `[B, T, V]`.
    ///
    /// # Errors
    /// A tensor that is missing.
    fn whole(&self) -> Result<Graph>;
}

/// What every body reads.
struct Inputs {
    ids: Value,
    positions: Value,
    mask: Value,
    past: Option<Vec<(Value, Value)>>,
}

impl Inputs {
    fn new(g: &mut Graph, shape: &MaskedShape, past: bool) -> Result<Self> {
        let (batch, rows, before) = (Dim::symbol("B"), Dim::symbol("T"), Dim::symbol("L"));
        let all = if past { &before + &rows } else { rows.clone() };
        let ids = g.input("ids", vec![batch.clone(), rows.clone()], DType::I64)?;
        let positions = g.input("positions", vec![batch.clone(), rows.clone()], DType::I64)?;
        let mask = g.input("mask", vec![1.into(), 1.into(), rows, all], DType::F32)?;
        let mut cache = Vec::new();
        if past {
            for layer in 0..shape.layers {
                let dims: Vec<Dim> =
                    vec![batch.clone(), shape.kv_heads.into(), before.clone(), shape.head_dim.into()];
                let keys = g.input(&format!("past_key.{layer}"), dims.clone(), DType::F32)?;
                cache.push((keys, g.input(&format!("past_value.{layer}"), dims, DType::F32)?));
            }
        }
        Ok(Self { ids, positions, mask, past: past.then_some(cache) })
    }
}

/// Names what a body gives.
fn give(g: &mut Graph, normed: Value, cache: &[(Value, Value)], past: bool) -> Result<()> {
    g.output("final_normed", normed)?;
    if past {
        for (layer, &(keys, values)) in cache.iter().enumerate() {
            g.output(&format!("key.{layer}"), keys)?;
            g.output(&format!("value.{layer}"), values)?;
        }
    }
    Ok(())
}

/// A decoder-only network without its causal mask.
#[derive(Clone, Debug)]
pub struct Bidirectional {
    network: CausalNetwork,
    mask: u32,
    shift: bool,
}

impl Bidirectional {
    /// A network, its mask token, and whether a position is predicted by the one before it.
    ///
    /// # Errors
    /// A mask outside the vocabulary; layers that attend within a window, which has no meaning without an order.
    pub fn new(network: CausalNetwork, mask: u32, shift: bool) -> Result<Self> {
        let config = network.config();
        if mask as usize >= config.vocab {
            let (value, want) = (mask.to_string(), "a token of the vocabulary");
            return Err(ArchitectureError::Config { key: "mask_token_id", value, want });
        }
        if network.has_window(0..config.layers) {
            let want = "none: a network without a causal mask has no windows";
            return Err(ArchitectureError::Config { key: "windows", value: "some".into(), want });
        }
        Ok(Self { network, mask, shift })
    }

    /// The network with its causal mask.
    pub fn network(&self) -> &CausalNetwork {
        &self.network
    }

    /// The mask token.
    pub fn mask(&self) -> u32 {
        self.mask
    }

    /// Whether a position is predicted by the one before it.
    pub fn shift(&self) -> bool {
        self.shift
    }

    /// The same with the numbers of a graph's parameters, as [`CausalNetwork::with_parameters`].
    ///
    /// # Errors
    /// A parameter of another shape than the network's.
    pub fn with_parameters(&self, graph: &Graph) -> Result<Self> {
        Ok(Self { network: self.network.with_parameters(graph)?, ..*self })
    }
}

impl MaskedNetwork for Bidirectional {
    fn shape(&self) -> MaskedShape {
        let c = self.network.config();
        let tables = if c.tied { 1 } else { 2 };
        MaskedShape {
            vocab: c.vocab,
            width: c.width,
            layers: c.layers,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            context: c.context,
            mask: self.mask,
            shift: self.shift,
            end: c.end.clone(),
            body_parameters: self.network.parameters() - tables * c.vocab * c.width,
        }
    }

    fn body(&self, past: bool) -> Result<Graph> {
        let (c, shape) = (self.network.config(), self.shape());
        let mut g = Graph::new(format!("{} body", c.family));
        let Inputs { ids, positions, mask, past: before } = Inputs::new(&mut g, &shape, past)?;
        let x = self.network.embed(&mut g, ids)?;
        let inputs = LayerInputs { positions, mask, mask_local: None, past: before, added: None };
        let (x, cache) = self.network.layers(&mut g, 0..c.layers, x, &inputs)?;
        let x = self.network.final_norm(&mut g, x)?;
        give(&mut g, x, &cache, past)?;
        Ok(g)
    }

    fn head(&self) -> Result<Graph> {
        self.network.head_graph()
    }

    fn whole(&self) -> Result<Graph> {
        self.network.whole(Dim::symbol("B"), Dim::symbol("T"))
    }
}

/// Sizes of a [`SmallMasked`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmallMaskedConfig {
    /// Vocabulary, the mask included.
    pub vocab: usize,
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Positions.
    pub context: usize,
    /// The mask token.
    pub mask: u32,
    /// Tokens that can be predicted: the first of the vocabulary. The others' logits are -1e9.
    pub outputs: usize,
}

/// A small transformer that fills masks: embeddings of token and position, layers of RMS norm, attention, RMS norm
/// and a GELU MLP with biases, a final norm and a head of its own.
#[derive(Clone, Debug)]
pub struct SmallMasked {
    config: SmallMaskedConfig,
    weights: Weights,
}

const EPS: f32 = 1e-5;
/// What the logits of tokens that cannot be predicted get added.
const NEVER: f32 = -1e9;

impl SmallMasked {
    /// Checks the configuration and that every tensor is there with the right shape.
    ///
    /// # Errors
    /// A configuration that makes no network; a tensor that is missing, of another shape, or of no use.
    pub fn new(config: SmallMaskedConfig, weights: Weights) -> Result<Self> {
        check(&config)?;
        let mut known = HashSet::new();
        for (name, shape) in expected(&config) {
            fits(&weights, &name, &shape)?;
            known.insert(name);
        }
        refuse_extra(&weights, |name| known.contains(name))?;
        Ok(Self { config, weights })
    }

    /// A network with random weights, to be trained: normal, of standard deviation `1 / sqrt(inputs)` in matrices
    /// (less by `sqrt(2 layers)` where a branch joins the residual stream) and 0.1 in tables; norms 1, biases 0.
    ///
    /// # Errors
    /// A configuration that makes no network.
    pub fn random(config: SmallMaskedConfig, seed: u64) -> Result<Self> {
        check(&config)?;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6d61_736b;
        let mut weights = Weights::default();
        for (name, shape) in expected(&config) {
            let count: usize = shape.iter().product();
            let table = name.starts_with("tokens") || name.starts_with("places");
            let joins = name.contains("attention.out") || name.contains("mlp.down");
            let values = (0..count).map(|_| {
                // Close enough to normal, from a generator that is the same everywhere.
                let normal = (0..12).map(|_| uniform(&mut state)).sum::<f64>() - 6.0;
                let value = match shape.as_slice() {
                    [_] if name.contains("norm") => 1.0,
                    [_] => 0.0,
                    _ if table => 0.1 * normal,
                    [_, inputs, ..] => {
                        let deep = if joins { 2.0 * config.layers as f64 } else { 1.0 };
                        normal / (*inputs as f64 * deep).sqrt()
                    }
                    [] => 0.0,
                };
                value as f32
            });
            let tensor = Tensor::new(shape.clone(), values.collect())?;
            weights.insert(name, Stored { bytes: 4 * count, tensor, encoding: Encoding::F32 })?;
        }
        Self::new(config, weights)
    }

    /// The configuration.
    pub fn config(&self) -> &SmallMaskedConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Parameters.
    pub fn parameters(&self) -> usize {
        expected(&self.config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The network with the numbers of a graph's parameters, where the graph has them: what a training run made of
    /// it.
    ///
    /// # Errors
    /// A parameter of another shape than the network's.
    pub fn with_parameters(&self, graph: &Graph) -> Result<Self> {
        let mut weights = Weights::default();
        for (name, stored) in self.weights.iter() {
            let found = graph.params().iter().find(|param| param.name == name);
            let tensor = found.map_or_else(|| stored.tensor.clone(), |param| param.tensor.clone());
            weights.insert(name.into(), Stored { tensor, ..stored.clone() })?;
        }
        Self::new(self.config.clone(), weights)
    }

    fn param(&self, g: &mut Graph, name: &str) -> Result<Value> {
        Ok(g.param(name, self.weights.get(name)?.clone())?)
    }

    fn linear(&self, g: &mut Graph, x: Value, name: &str, bias: bool) -> Result<Value> {
        let weight = self.param(g, &format!("{name}.weight"))?;
        let bias = bias.then(|| self.param(g, &format!("{name}.bias"))).transpose()?;
        Ok(g.linear(x, weight, bias)?)
    }

    fn norm(&self, g: &mut Graph, x: Value, name: &str) -> Result<Value> {
        let weight = self.param(g, &format!("{name}.weight"))?;
        Ok(g.rms_norm(x, weight, EPS)?)
    }

    fn states(&self, g: &mut Graph, inputs: &Inputs) -> Result<(Value, Vec<(Value, Value)>)> {
        let c = &self.config;
        let tokens = self.param(g, "tokens.weight")?;
        let tokens = g.embedding(tokens, inputs.ids)?;
        let places = self.param(g, "places.weight")?;
        let places = g.embedding(places, inputs.positions)?;
        let mut x = g.add(tokens, places)?;
        let head_dim = c.width / c.heads;
        let scale = (head_dim as f32).powf(-0.5);
        let attention = AttentionConfig { heads: c.heads, kv_heads: c.heads, scale, softcap: None };
        let mut cache = Vec::new();
        g.mark(Mark::Residual(0), x);
        for layer in 0..c.layers {
            let at = |name: &str| format!("layers.{layer}.{name}");
            let h = self.norm(g, x, &at("attention_norm"))?;
            let q = self.linear(g, h, &at("attention.query"), false)?;
            let k = self.linear(g, h, &at("attention.key"), false)?;
            let v = self.linear(g, h, &at("attention.value"), false)?;
            let past = inputs.past.as_ref().map(|past| past[layer]);
            let (y, keys, values) = g.attention([q, k, v], inputs.mask, past, attention)?;
            cache.push((keys, values));
            let y = self.linear(g, y, &at("attention.out"), false)?;
            x = g.add(x, y)?;
            let h = self.norm(g, x, &at("mlp_norm"))?;
            let h = self.linear(g, h, &at("mlp.up"), true)?;
            let h = g.unary(UnaryOp::Gelu, h)?;
            let h = self.linear(g, h, &at("mlp.down"), true)?;
            x = g.add(x, h)?;
            g.mark(Mark::Residual(layer + 1), x);
        }
        let x = self.norm(g, x, "norm")?;
        g.mark(Mark::FinalNormed, x);
        Ok((x, cache))
    }

    fn logits(&self, g: &mut Graph, x: Value) -> Result<Value> {
        let logits = self.linear(g, x, "head", false)?;
        let c = &self.config;
        let values: Vec<f32> = (0..c.vocab).map(|id| if id < c.outputs { 0.0 } else { NEVER }).collect();
        let never = g.constant(Literal::F32 { shape: vec![c.vocab], values })?;
        let logits = g.add(logits, never)?;
        g.mark(Mark::Logits, logits);
        Ok(logits)
    }
}

impl MaskedNetwork for SmallMasked {
    fn shape(&self) -> MaskedShape {
        let c = &self.config;
        MaskedShape {
            vocab: c.vocab,
            width: c.width,
            layers: c.layers,
            kv_heads: c.heads,
            head_dim: c.width / c.heads,
            context: c.context,
            mask: c.mask,
            shift: false,
            end: Vec::new(),
            body_parameters: self.parameters() - (2 * c.vocab + c.context) * c.width,
        }
    }

    fn body(&self, past: bool) -> Result<Graph> {
        let mut g = Graph::new("small masked body");
        let inputs = Inputs::new(&mut g, &self.shape(), past)?;
        let (x, cache) = self.states(&mut g, &inputs)?;
        give(&mut g, x, &cache, past)?;
        Ok(g)
    }

    fn head(&self) -> Result<Graph> {
        let mut g = Graph::new("small masked head");
        let x = g.input("x", vec![Dim::symbol("R"), self.config.width.into()], DType::F32)?;
        let logits = self.logits(&mut g, x)?;
        g.output("logits", logits)?;
        Ok(g)
    }

    fn whole(&self) -> Result<Graph> {
        let mut g = Graph::new("small masked");
        let inputs = Inputs::new(&mut g, &self.shape(), false)?;
        let (x, _) = self.states(&mut g, &inputs)?;
        let logits = self.logits(&mut g, x)?;
        g.output("logits", logits)?;
        Ok(g)
    }
}

fn check(c: &SmallMaskedConfig) -> Result<()> {
    let sizes = [
        ("vocab", c.vocab),
        ("width", c.width),
        ("layers", c.layers),
        ("heads", c.heads),
        ("ffn", c.ffn),
        ("context", c.context),
        ("outputs", c.outputs),
    ];
    let refuse = |key, value: String, want| Err(ArchitectureError::Config { key, value, want });
    for (key, value) in sizes {
        if !(1..=1 << 20).contains(&value) {
            return refuse(key, value.to_string(), "between 1 and 2^20");
        }
    }
    if c.width % c.heads != 0 {
        return refuse("heads", c.heads.to_string(), "a divisor of width");
    }
    if c.outputs > c.vocab || c.mask as usize >= c.vocab || (c.mask as usize) < c.outputs {
        let value = format!("{} (mask {}, outputs {})", c.vocab, c.mask, c.outputs);
        return refuse("vocab", value, "more than outputs, with the mask among those that are no outputs");
    }
    Ok(())
}

fn expected(c: &SmallMaskedConfig) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("tokens.weight".to_owned(), vec![c.vocab, c.width]),
        ("places.weight".to_owned(), vec![c.context, c.width]),
        ("norm.weight".to_owned(), vec![c.width]),
        ("head.weight".to_owned(), vec![c.vocab, c.width]),
    ];
    for layer in 0..c.layers {
        let mut put =
            |name: &str, shape: &[usize]| all.push((format!("layers.{layer}.{name}"), shape.to_vec()));
        put("attention_norm.weight", &[c.width]);
        for name in ["query", "key", "value", "out"] {
            put(&format!("attention.{name}.weight"), &[c.width, c.width]);
        }
        put("mlp_norm.weight", &[c.width]);
        put("mlp.up.weight", &[c.ffn, c.width]);
        put("mlp.up.bias", &[c.ffn]);
        put("mlp.down.weight", &[c.width, c.ffn]);
        put("mlp.down.bias", &[c.width]);
    }
    all
}

/// LLaDA's tensors under the names that decoder-only networks have here.
///
/// # Errors
/// A tensor that LLaDA's layers do not have.
pub(crate) fn llada_weights(weights: &Weights) -> Result<Weights> {
    let mut renamed = Weights::default();
    for (name, stored) in weights.iter() {
        let new = llada_name(name).ok_or_else(|| GraphError::Tensor {
            name: name.into(),
            why: "LLaDA has no such tensor".into(),
        })?;
        renamed.insert(new, stored.clone())?;
    }
    Ok(renamed)
}

fn llada_name(name: &str) -> Option<String> {
    let rest = name.strip_prefix("model.transformer.")?;
    match rest {
        "wte.weight" => return Some("model.embed_tokens.weight".into()),
        "ln_f.weight" => return Some("model.norm.weight".into()),
        "ff_out.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let mut parts = rest.strip_prefix("blocks.")?.split('.');
    let (layer, part, kind) = (parts.next()?, parts.next()?, parts.next()?);
    if layer.parse::<usize>().is_err() || !matches!(kind, "weight" | "bias") || parts.next().is_some() {
        return None;
    }
    let part = match part {
        "attn_norm" => "input_layernorm",
        "q_proj" => "self_attn.q_proj",
        "k_proj" => "self_attn.k_proj",
        "v_proj" => "self_attn.v_proj",
        "attn_out" => "self_attn.o_proj",
        "ff_norm" => "post_attention_layernorm",
        "ff_proj" => "mlp.gate_proj",
        "up_proj" => "mlp.up_proj",
        "ff_out" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> SmallMaskedConfig {
        let (vocab, context) = (43, 20);
        SmallMaskedConfig { vocab, width: 64, layers: 3, heads: 4, ffn: 256, context, mask: 26, outputs: 26 }
    }

    #[test]
    fn parameters_are_those_of_the_recipe() {
        // diffusion-core, section 9.
        assert_eq!(SmallMasked::random(small(), 1).expect("valid").parameters(), 155_648);
    }

    #[test]
    fn sizes_that_make_no_network_are_refused() {
        let wrong: [fn(&mut SmallMaskedConfig); 6] = [
            |c| c.heads = 5,
            |c| c.mask = 43,
            |c| c.mask = 3,
            |c| c.outputs = 44,
            |c| c.layers = 0,
            |c| c.vocab = 1 << 21,
        ];
        for spoil in wrong {
            let mut config = small();
            spoil(&mut config);
            assert!(matches!(SmallMasked::random(config, 1), Err(ArchitectureError::Config { .. })));
        }
    }

    #[test]
    fn names_of_llada() {
        for (name, want) in [
            ("model.transformer.wte.weight", Some("model.embed_tokens.weight")),
            ("model.transformer.ff_out.weight", Some("lm_head.weight")),
            ("model.transformer.blocks.7.ff_out.weight", Some("model.layers.7.mlp.down_proj.weight")),
            ("model.transformer.blocks.7.ff_proj.weight", Some("model.layers.7.mlp.gate_proj.weight")),
            ("model.transformer.blocks.0.attn_out.bias", Some("model.layers.0.self_attn.o_proj.bias")),
            ("model.transformer.blocks.x.attn_out.bias", None),
            ("model.transformer.blocks.0.att_proj.weight", None),
            ("transformer.wte.weight", None),
        ] {
            assert_eq!(llada_name(name).as_deref(), want, "{name}");
        }
    }
}
