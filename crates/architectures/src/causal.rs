//! Decoder-only transformers: the Llama family and Gemma 3, one description of both.
//!
//! A layer is: norm, queries, keys and values (norms on queries and keys in Gemma), rotary embedding,
//! attention with grouped key heads, output projection, (norm in Gemma,) residual; norm, gated MLP,
//! (norm in Gemma,) residual. What differs is data in [`CausalConfig`].
//!
//! Deviation: Hugging Face rounds Gemma's embedding factor `sqrt(width)` to the checkpoint's type (bf16); it is
//! kept in f32 here, as llama.cpp does.

use std::collections::HashSet;
use std::ops::Range;

use pilotfish_graph::weights::Weights;
use pilotfish_graph::{
    AttentionConfig, DType, Dim, Graph, GraphError, Mark, RopeScaling, Tensor, UnaryOp, Value,
};
use serde::{Deserialize, Serialize};

use crate::{ArchitectureError, Result};

/// Activation of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(x)`
    Silu,
    /// GELU, tanh form.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

/// Where a layer's norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before attention and before the MLP (Llama).
    Before,
    /// Before and after each (Gemma 2 and 3).
    Around,
}

/// Everything that determines a decoder-only network but its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CausalConfig {
    /// Family, for reports: `llama`, `gemma3`.
    pub family: String,
    /// Vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Positions.
    pub context: usize,
    /// Added to mean squares in norms.
    pub norm_eps: f32,
    /// Rotary base of layers with full attention.
    pub rope_theta: f64,
    /// Rotary base of layers with a window.
    pub rope_theta_local: f64,
    /// Change of the rotary frequencies of layers with full attention.
    pub rope_scaling: RopeScaling,
    /// Window of each layer; `None` for full attention.
    pub windows: Vec<Option<usize>>,
    /// Factor of attention scores.
    pub attention_scale: f32,
    /// Factor of embeddings.
    pub embedding_scale: f32,
    /// MLP activation.
    pub activation: Activation,
    /// Norm placement.
    pub norms: NormPlacement,
    /// Norms on queries and keys, head by head.
    pub qk_norm: bool,
    /// Whether the checkpoint stores norm weights less one.
    pub norm_plus_one: bool,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Tokens that end a text.
    pub end: Vec<u32>,
}

/// Sizes beyond which a configuration is taken for a broken file.
const LARGEST: usize = 1 << 24;

impl CausalConfig {
    /// A configuration of the Llama family with the usual defaults, to be adjusted.
    pub fn llama(
        vocab: usize,
        width: usize,
        layers: usize,
        [heads, kv_heads]: [usize; 2],
        ffn: usize,
    ) -> Self {
        let head_dim = width.checked_div(heads).unwrap_or(0);
        Self {
            family: "llama".into(),
            vocab,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn,
            context: 2048,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_theta_local: 10_000.0,
            rope_scaling: RopeScaling::None,
            windows: vec![None; layers],
            attention_scale: (head_dim as f32).powf(-0.5),
            embedding_scale: 1.0,
            activation: Activation::Silu,
            norms: NormPlacement::Before,
            qk_norm: false,
            norm_plus_one: false,
            tied: true,
            end: Vec::new(),
        }
    }

    /// A configuration of Gemma 3's text model: every sixth layer attends fully, the others within a window.
    pub fn gemma3(
        vocab: usize,
        width: usize,
        layers: usize,
        [heads, kv_heads]: [usize; 2],
        ffn: usize,
    ) -> Self {
        let windows = (0..layers).map(|layer| ((layer + 1) % 6 != 0).then_some(512)).collect();
        Self {
            family: "gemma3".into(),
            head_dim: 256,
            context: 32_768,
            norm_eps: 1e-6,
            rope_theta: 1_000_000.0,
            windows,
            attention_scale: 256f32.powf(-0.5),
            embedding_scale: (width as f32).sqrt(),
            activation: Activation::GeluTanh,
            norms: NormPlacement::Around,
            qk_norm: true,
            norm_plus_one: true,
            ..Self::llama(vocab, width, layers, [heads, kv_heads], ffn)
        }
    }

    /// Checks that the numbers make a network, before anything of their size is allocated.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab", self.vocab),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("context", self.context),
        ];
        for (key, value) in sizes {
            if !(1..=LARGEST).contains(&value) {
                let want = "between 1 and 2^24";
                return Err(ArchitectureError::Config { key, value: value.to_string(), want });
            }
        }
        let refuse = |key, value: String, want| Err(ArchitectureError::Config { key, value, want });
        if self.heads % self.kv_heads != 0 {
            return refuse("kv_heads", self.kv_heads.to_string(), "a divisor of heads");
        }
        if self.head_dim % 2 != 0 {
            return refuse("head_dim", self.head_dim.to_string(), "even");
        }
        if self.windows.len() != self.layers || self.windows.contains(&Some(0)) {
            return refuse(
                "windows",
                format!("{} entries", self.windows.len()),
                "one a layer, none of them 0",
            );
        }
        let floats = [
            ("norm_eps", f64::from(self.norm_eps)),
            ("rope_theta", self.rope_theta),
            ("rope_theta_local", self.rope_theta_local),
            ("attention_scale", f64::from(self.attention_scale)),
            ("embedding_scale", f64::from(self.embedding_scale)),
        ];
        for (key, value) in floats {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(key, value.to_string(), "a number above 0");
            }
        }
        Ok(())
    }
}

/// The embedding table, to be looked up row by row.
#[derive(Clone, Debug)]
pub struct EmbeddingTable {
    /// `[V, d]`.
    pub tensor: Tensor,
    /// Factor of every row.
    pub scale: f32,
}

/// What the layers of a graph read besides the residual stream.
#[derive(Clone, Debug)]
pub struct LayerInputs {
    /// `[B, T]`.
    pub positions: Value,
    /// `[B or 1, 1, T, S]`, for layers with full attention.
    pub mask: Value,
    /// The same for layers with a window.
    pub mask_local: Option<Value>,
    /// Keys and values of the past by layer, in the order of the layers built.
    pub past: Option<Vec<(Value, Value)>>,
    /// What is added to the rows' own keys (after rotation) and values, `[B, T, kv_heads head_dim]` each, by layer.
    pub added: Option<Vec<(Value, Value)>>,
}

/// How a body is built.
#[derive(Clone, Debug)]
pub struct BodyOptions {
    /// Size of the batch.
    pub batch: Dim,
    /// Residuals that become outputs.
    pub taps: Vec<usize>,
    /// Whether there is a cache.
    pub past: bool,
}

impl Default for BodyOptions {
    fn default() -> Self {
        Self { batch: 1.into(), taps: Vec::new(), past: true }
    }
}

/// A decoder-only network: a configuration and its weights, under Hugging Face's names.
#[derive(Clone, Debug)]
pub struct CausalNetwork {
    config: CausalConfig,
    weights: Weights,
    /// Names and widths of the biases there are.
    biases: Vec<(String, usize)>,
}

impl CausalNetwork {
    /// Checks the configuration and that every tensor is there with the right shape.
    ///
    /// # Errors
    /// A configuration that makes no network; a tensor that is missing, of another shape, or of no use.
    pub fn new(config: CausalConfig, weights: Weights) -> Result<Self> {
        config.check()?;
        let mut network = Self { config, weights, biases: Vec::new() };
        let mut known = HashSet::new();
        for (name, shape) in network.expected() {
            fits(&network.weights, &name, &shape)?;
            // Any matrix but the table may have a bias.
            let bias = name.strip_suffix("weight").map(|stem| format!("{stem}bias")).unwrap_or_default();
            if shape.len() == 2 && !name.contains("embed_tokens") && network.weights.contains(&bias) {
                fits(&network.weights, &bias, &shape[..1])?;
                network.biases.push((bias.clone(), shape[0]));
                known.insert(bias);
            }
            known.insert(name);
        }
        // Buffers of old exports, which hold nothing that the configuration does not.
        let buffer = |name: &str| name.ends_with("rotary_emb.inv_freq") || name.ends_with(".masked_bias");
        refuse_extra(&network.weights, |name| known.contains(name) || buffer(name))?;
        Ok(network)
    }

    /// A network with random weights (normal, standard deviation 0.05, norms near 1): for exact tests.
    pub fn random(config: CausalConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let mut network = Self { config, weights: Weights::default(), biases: Vec::new() };
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
        for (name, shape) in network.expected() {
            let norm = shape.len() == 1;
            let count = shape.iter().product();
            let values = (0..count).map(|_| {
                let sum: f64 = (0..12).map(|_| uniform(&mut state)).sum::<f64>() - 6.0;
                let base = if norm && !network.config.norm_plus_one { 1.0 } else { 0.0 };
                (base + 0.05 * sum) as f32
            });
            let tensor = Tensor::new(shape, values.collect())?;
            let bytes = 4 * tensor.count();
            let encoding = pilotfish_graph::weights::Encoding::F32;
            network.weights.insert(name, pilotfish_graph::weights::Stored { tensor, encoding, bytes })?;
        }
        Ok(network)
    }

    /// Names and shapes of all tensors.
    fn expected(&self) -> Vec<(String, Vec<usize>)> {
        let c = &self.config;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![c.vocab, c.width])];
        for layer in 0..c.layers {
            let mut put = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            put("input_layernorm", &[c.width]);
            put("self_attn.q_proj", &[q, c.width]);
            put("self_attn.k_proj", &[kv, c.width]);
            put("self_attn.v_proj", &[kv, c.width]);
            put("self_attn.o_proj", &[c.width, q]);
            if c.qk_norm {
                put("self_attn.q_norm", &[c.head_dim]);
                put("self_attn.k_norm", &[c.head_dim]);
            }
            put("post_attention_layernorm", &[c.width]);
            if c.norms == NormPlacement::Around {
                put("pre_feedforward_layernorm", &[c.width]);
                put("post_feedforward_layernorm", &[c.width]);
            }
            put("mlp.gate_proj", &[c.ffn, c.width]);
            put("mlp.up_proj", &[c.ffn, c.width]);
            put("mlp.down_proj", &[c.width, c.ffn]);
        }
        all.push(("model.norm.weight".to_owned(), vec![c.width]));
        if !c.tied {
            all.push(("lm_head.weight".to_owned(), vec![c.vocab, c.width]));
        }
        all
    }

    /// The configuration.
    pub fn config(&self) -> &CausalConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The network with the numbers of a graph's parameters, where the graph has them: what a training run made
    /// of it. Norm weights that the checkpoint stores less one are stored so again.
    ///
    /// # Errors
    /// A parameter of another shape than the network's.
    pub fn with_parameters(&self, graph: &Graph) -> Result<Self> {
        let mut network = Self { weights: Weights::default(), ..self.clone() };
        for (name, stored) in self.weights.iter() {
            let Some(param) = graph.params().iter().find(|param| param.name == name) else {
                network.weights.insert(name.into(), stored.clone())?;
                continue;
            };
            let (mut tensor, shape) = (param.tensor.clone(), param.tensor.shape().to_vec());
            if stored.tensor.shape() != shape {
                let why = format!("shape {shape:?} in place of {:?}", stored.tensor.shape());
                return Err(GraphError::Tensor { name: name.into(), why }.into());
            }
            if self.config.norm_plus_one && name.contains("norm") {
                let less = tensor.to_f32()?.iter().map(|weight| weight - 1.0).collect();
                tensor = Tensor::new(shape, less)?;
            }
            let bytes = 4 * tensor.count();
            let encoding = pilotfish_graph::weights::Encoding::F32;
            network
                .weights
                .insert(name.into(), pilotfish_graph::weights::Stored { tensor, encoding, bytes })?;
        }
        Ok(network)
    }

    /// Parameters, a tied head counted once.
    pub fn parameters(&self) -> usize {
        let biases: usize = self.biases.iter().map(|(_, width)| width).sum();
        self.expected().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>() + biases
    }

    /// The embedding table.
    pub fn embedding(&self) -> Result<EmbeddingTable> {
        let tensor = self.weights.get("model.embed_tokens.weight")?.clone();
        Ok(EmbeddingTable { tensor, scale: self.config.embedding_scale })
    }

    fn param(&self, g: &mut Graph, name: &str) -> Result<Value> {
        Ok(g.param(name, self.weights.get(name)?.clone())?)
    }

    fn norm(&self, g: &mut Graph, x: Value, name: &str) -> Result<Value> {
        let name = format!("{name}.weight");
        let mut tensor = self.weights.get(&name)?.clone();
        if self.config.norm_plus_one {
            let shape = tensor.shape().to_vec();
            tensor = tensor.derive(shape, |stored, rows| {
                Ok(stored.rows(rows)?.into_iter().map(|weight| weight + 1.0).collect())
            });
        }
        let weight = g.param(&name, tensor)?;
        Ok(g.rms_norm(x, weight, self.config.norm_eps)?)
    }

    fn linear(&self, g: &mut Graph, x: Value, name: &str) -> Result<Value> {
        let weight = self.param(g, &format!("{name}.weight"))?;
        let bias = format!("{name}.bias");
        let bias = self.weights.contains(&bias).then(|| self.param(g, &bias)).transpose()?;
        Ok(g.linear(x, weight, bias)?)
    }

    /// Appends the embedding of ids `[B, T]`.
    pub fn embed(&self, g: &mut Graph, ids: Value) -> Result<Value> {
        let table = self.param(g, "model.embed_tokens.weight")?;
        let x = g.embedding(table, ids)?;
        match self.config.embedding_scale {
            1.0 => Ok(x),
            scale => Ok(g.scale(x, scale)?),
        }
    }

    /// Appends layers; marks the residual before and after each and between its two halves. Returns the residual after the last, and all
    /// keys and values of each layer.
    pub fn layers(
        &self,
        g: &mut Graph,
        layers: Range<usize>,
        mut x: Value,
        inputs: &LayerInputs,
    ) -> Result<(Value, Vec<(Value, Value)>)> {
        g.mark(Mark::Residual(layers.start), x);
        let mut cache = Vec::new();
        for (index, layer) in layers.enumerate() {
            let of = |all: &Option<Vec<(Value, Value)>>| all.as_ref().map(|all| all[index]);
            let (y, keys, values) = self.layer(g, layer, x, inputs, [of(&inputs.past), of(&inputs.added)])?;
            x = y;
            g.mark(Mark::Residual(layer + 1), x);
            cache.push((keys, values));
        }
        Ok((x, cache))
    }

    fn layer(
        &self,
        g: &mut Graph,
        layer: usize,
        x: Value,
        inputs: &LayerInputs,
        [past, added]: [Option<(Value, Value)>; 2],
    ) -> Result<(Value, Value, Value)> {
        let c = &self.config;
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let around = c.norms == NormPlacement::Around;
        let h = self.norm(g, x, &at("input_layernorm"))?;
        let mut q = self.linear(g, h, &at("self_attn.q_proj"))?;
        let mut k = self.linear(g, h, &at("self_attn.k_proj"))?;
        let v = self.linear(g, h, &at("self_attn.v_proj"))?;
        if c.qk_norm {
            q = self.head_norm(g, q, c.heads, &at("self_attn.q_norm"))?;
            k = self.head_norm(g, k, c.kv_heads, &at("self_attn.k_norm"))?;
        }
        let (theta, scaling, mask) = match (c.windows[layer], inputs.mask_local) {
            (Some(_), Some(mask)) => (c.rope_theta_local, RopeScaling::None, mask),
            (Some(_), None) => (c.rope_theta_local, RopeScaling::None, inputs.mask),
            (None, _) => (c.rope_theta, c.rope_scaling, inputs.mask),
        };
        let q = g.rotary(q, inputs.positions, c.head_dim, theta, scaling)?;
        let k = g.rotary(k, inputs.positions, c.head_dim, theta, scaling)?;
        let (k, v) = match added {
            Some((keys, values)) => (g.add(k, keys)?, g.add(v, values)?),
            None => (k, v),
        };
        let config =
            AttentionConfig { heads: c.heads, kv_heads: c.kv_heads, scale: c.attention_scale, softcap: None };
        let (y, keys, values) = g.attention([q, k, v], mask, past, config)?;
        let mut y = self.linear(g, y, &at("self_attn.o_proj"))?;
        if around {
            y = self.norm(g, y, &at("post_attention_layernorm"))?;
        }
        let x = g.add(x, y)?;
        g.mark(Mark::Attended(layer), x);
        let before = if around { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let h = self.norm(g, x, &at(before))?;
        let gate = self.linear(g, h, &at("mlp.gate_proj"))?;
        let up = self.linear(g, h, &at("mlp.up_proj"))?;
        let gate = match c.activation {
            Activation::Silu => g.unary(UnaryOp::Silu, gate)?,
            Activation::GeluTanh => g.unary(UnaryOp::GeluTanh, gate)?,
            Activation::Relu => g.unary(UnaryOp::Relu, gate)?,
        };
        let h = g.mul(gate, up)?;
        let mut y = self.linear(g, h, &at("mlp.down_proj"))?;
        if around {
            y = self.norm(g, y, &at("post_feedforward_layernorm"))?;
        }
        Ok((g.add(x, y)?, keys, values))
    }

    fn head_norm(&self, g: &mut Graph, x: Value, heads: usize, name: &str) -> Result<Value> {
        let dims = g.shape(x).dims().to_vec();
        let apart = vec![dims[0].clone(), dims[1].clone(), heads.into(), self.config.head_dim.into()];
        let x = g.reshape(x, apart)?;
        let x = self.norm(g, x, name)?;
        Ok(g.reshape(x, dims)?)
    }

    /// Appends the final norm.
    pub fn final_norm(&self, g: &mut Graph, x: Value) -> Result<Value> {
        let x = self.norm(g, x, "model.norm")?;
        g.mark(Mark::FinalNormed, x);
        Ok(x)
    }

    /// Appends the head.
    pub fn head(&self, g: &mut Graph, x: Value) -> Result<Value> {
        let name = if self.config.tied { "model.embed_tokens" } else { "lm_head" };
        let logits = self.linear(g, x, name)?;
        g.mark(Mark::Logits, logits);
        Ok(logits)
    }

    /// Whether any layer of the range has a window.
    pub fn has_window(&self, layers: Range<usize>) -> bool {
        self.config.windows[layers].iter().any(Option::is_some)
    }

    /// The largest window of the range's layers; all layers of a model share one.
    pub fn window(&self, layers: Range<usize>) -> Option<usize> {
        self.config.windows[layers].iter().flatten().copied().max()
    }

    /// The layers of a range as a graph.
    ///
    /// Inputs: `x` `[B, T, d]`, `positions` `[B, T]`, `mask` `[B, 1, T, L+T]` when a layer attends fully,
    /// `mask_local` likewise when one has a window, `past_key.{layer}` and `past_value.{layer}`
    /// `[B, kv_heads, L, head_dim]`. Outputs: `residual` after the last layer, `final_normed` when that is the
    /// model's last, `residual.{l}` for the taps that lie strictly inside, `key.{layer}` and `value.{layer}`
    /// `[B, kv_heads, L+T, head_dim]`.
    ///
    /// # Errors
    /// An empty range or one past the last layer.
    pub fn body(&self, layers: Range<usize>, options: &BodyOptions) -> Result<Graph> {
        let c = &self.config;
        if layers.is_empty() || layers.end > c.layers {
            let (value, want) = (format!("{layers:?}"), "a non-empty range of the model's layers");
            return Err(ArchitectureError::Config { key: "layers", value, want });
        }
        let mut g = Graph::new(format!("{} layers {}-{}", c.family, layers.start, layers.end));
        let (batch, rows) = (options.batch.clone(), Dim::symbol("T"));
        let past = Dim::symbol("L");
        let all = if options.past { &past + &rows } else { rows.clone() };
        let x = g.input("x", vec![batch.clone(), rows.clone(), c.width.into()], DType::F32)?;
        let positions = g.input("positions", vec![batch.clone(), rows.clone()], DType::I64)?;
        let mask_shape = vec![batch.clone(), 1.into(), rows, all];
        let full = c.windows[layers.clone()].iter().any(Option::is_none);
        let mask = full.then(|| g.input("mask", mask_shape.clone(), DType::F32)).transpose()?;
        let local = self
            .has_window(layers.clone())
            .then(|| g.input("mask_local", mask_shape, DType::F32))
            .transpose()?;
        let Some(either) = mask.or(local) else {
            return Err(ArchitectureError::Config {
                key: "layers",
                value: "none".into(),
                want: "at least one",
            });
        };
        let mut cache = Vec::new();
        if options.past {
            for layer in layers.clone() {
                let shape: Vec<Dim> = vec![batch.clone(), c.kv_heads.into(), past.clone(), c.head_dim.into()];
                let keys = g.input(&format!("past_key.{layer}"), shape.clone(), DType::F32)?;
                cache.push((keys, g.input(&format!("past_value.{layer}"), shape, DType::F32)?));
            }
        }
        let past = options.past.then_some(cache);
        let inputs = LayerInputs { positions, mask: either, mask_local: local, past, added: None };
        let (y, cache) = self.layers(&mut g, layers.clone(), x, &inputs)?;
        g.output("residual", y)?;
        for &tap in options.taps.iter().filter(|&&tap| layers.start < tap && tap < layers.end) {
            if let Some(value) = g.marked(Mark::Residual(tap)) {
                g.output(&format!("residual.{tap}"), value)?;
            }
        }
        if layers.end == c.layers {
            let normed = self.final_norm(&mut g, y)?;
            g.output("final_normed", normed)?;
        }
        if options.past {
            for (layer, (keys, values)) in layers.zip(cache) {
                g.output(&format!("key.{layer}"), keys)?;
                g.output(&format!("value.{layer}"), values)?;
            }
        }
        Ok(g)
    }

    /// The head as a graph: `x` `[R, d]` (final normed) to `logits` `[R, V]`.
    pub fn head_graph(&self) -> Result<Graph> {
        let mut g = Graph::new(format!("{} head", self.config.family));
        let x = g.input("x", vec![Dim::symbol("R"), self.config.width.into()], DType::F32)?;
        let logits = self.head(&mut g, x)?;
        g.output("logits", logits)?;
        Ok(g)
    }

    /// The final norm as a graph: `x` `[R, d]` to `y` `[R, d]`.
    pub fn final_norm_graph(&self) -> Result<Graph> {
        let mut g = Graph::new(format!("{} final norm", self.config.family));
        let x = g.input("x", vec![Dim::symbol("R"), self.config.width.into()], DType::F32)?;
        let y = self.final_norm(&mut g, x)?;
        g.output("y", y)?;
        Ok(g)
    }

    /// The whole network without a cache: `ids` `[B, T]`, `positions` `[B, T]`, `mask` and, if a layer has a
    /// window, `mask_local` `[1, 1, T, T]`, to `logits` `[B, T, V]`.
    pub fn whole(&self, batch: Dim, rows: Dim) -> Result<Graph> {
        let c = &self.config;
        let mut g = Graph::new(c.family.clone());
        let ids = g.input("ids", vec![batch.clone(), rows.clone()], DType::I64)?;
        let positions = g.input("positions", vec![batch, rows.clone()], DType::I64)?;
        let shape: Vec<Dim> = vec![1.into(), 1.into(), rows.clone(), rows];
        let mask = g.input("mask", shape.clone(), DType::F32)?;
        let local =
            self.has_window(0..c.layers).then(|| g.input("mask_local", shape, DType::F32)).transpose()?;
        let x = self.embed(&mut g, ids)?;
        let inputs = LayerInputs { positions, mask, mask_local: local, past: None, added: None };
        let (x, _) = self.layers(&mut g, 0..c.layers, x, &inputs)?;
        let x = self.final_norm(&mut g, x)?;
        let logits = self.head(&mut g, x)?;
        g.output("logits", logits)?;
        Ok(g)
    }

    /// The whole network over one text with a cache that can be differentiated.
    ///
    /// Inputs: `ids` `[1, T]`, `positions` `[1, T]`, `mask` and, if a layer has a window, `mask_local`
    /// `[1, 1, T, L+T]`; `past_key.{layer}` and `past_value.{layer}` `[1, kv_heads, L, head_dim]`, keys rotated;
    /// `added_key.{layer}` and `added_value.{layer}` `[1, T, kv_heads head_dim]`, which are added to the rows' own
    /// keys after rotation and to their own values, so that at 0 they change nothing and their gradient is that of the
    /// rows' own entries. Outputs: `logits` `[1, T, V]`, `key.{layer}` and `value.{layer}`
    /// `[1, kv_heads, L+T, head_dim]`.
    pub fn adaptable(&self) -> Result<Graph> {
        let c = &self.config;
        let mut g = Graph::new(format!("{} with a cache that moves", c.family));
        let (rows, past) = (Dim::symbol("T"), Dim::symbol("L"));
        let ids = g.input("ids", vec![1.into(), rows.clone()], DType::I64)?;
        let positions = g.input("positions", vec![1.into(), rows.clone()], DType::I64)?;
        let shape: Vec<Dim> = vec![1.into(), 1.into(), rows.clone(), &past + &rows];
        let mask = g.input("mask", shape.clone(), DType::F32)?;
        let mask_local =
            self.has_window(0..c.layers).then(|| g.input("mask_local", shape, DType::F32)).transpose()?;
        let mut pair = |kind: &str, layer: usize, shape: Vec<Dim>| -> Result<(Value, Value)> {
            let keys = g.input(&format!("{kind}_key.{layer}"), shape.clone(), DType::F32)?;
            Ok((keys, g.input(&format!("{kind}_value.{layer}"), shape, DType::F32)?))
        };
        let (mut cache, mut added) = (Vec::new(), Vec::new());
        for layer in 0..c.layers {
            let cached = vec![1.into(), c.kv_heads.into(), past.clone(), c.head_dim.into()];
            cache.push(pair("past", layer, cached)?);
            added.push(pair("added", layer, vec![1.into(), rows.clone(), (c.kv_heads * c.head_dim).into()])?);
        }
        let x = self.embed(&mut g, ids)?;
        let inputs = LayerInputs { positions, mask, mask_local, past: Some(cache), added: Some(added) };
        let (x, cache) = self.layers(&mut g, 0..c.layers, x, &inputs)?;
        let x = self.final_norm(&mut g, x)?;
        let logits = self.head(&mut g, x)?;
        g.output("logits", logits)?;
        for (layer, (keys, values)) in cache.into_iter().enumerate() {
            g.output(&format!("key.{layer}"), keys)?;
            g.output(&format!("value.{layer}"), values)?;
        }
        Ok(g)
    }
}

/// Whether a tensor is there in this shape.
pub(crate) fn fits(weights: &Weights, name: &str, shape: &[usize]) -> Result<()> {
    let found = weights.get(name)?.shape();
    if found != shape {
        let why = format!("shape {found:?}, the configuration says {shape:?}");
        return Err(GraphError::Tensor { name: name.into(), why }.into());
    }
    Ok(())
}

/// A tensor that the network would not use means that it is another network.
pub(crate) fn refuse_extra(weights: &Weights, known: impl Fn(&str) -> bool) -> Result<()> {
    match weights.iter().find(|(name, _)| !known(name)) {
        Some((name, _)) => {
            Err(GraphError::Tensor { name: name.into(), why: "the network has no use for it".into() }.into())
        }
        None => Ok(()),
    }
}

/// SplitMix64 as a number in `[0, 1)`.
pub(crate) fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
