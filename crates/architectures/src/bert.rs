//! BERT encoders, as sentence encoders use them.
//!
//! Embeddings of token, position and segment are summed and normalised; each layer attends without a causal
//! mask and normalises after each residual. Segments: all tokens belong to the first.

use std::collections::HashSet;
use std::path::Path;

use pilotfish_graph::weights::{Encoding, Stored, Weights};
use pilotfish_graph::{AttentionConfig, DType, Dim, Graph, Mark, Tensor, UnaryOp, Value};

use crate::causal::{fits, refuse_extra, uniform};
use crate::checkpoint::{Keys, read_json};
use crate::{ArchitectureError, Result};

/// Everything that determines a BERT encoder but its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Vocabulary.
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
    /// Added to variances in norms.
    pub norm_eps: f32,
}

/// How the states of a sentence become its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentencePooling {
    /// The first token's state instead of the mean over tokens.
    pub first: bool,
    /// Whether the embedding is scaled to length 1.
    pub normalize: bool,
}

/// An encoder network.
pub trait EncoderNetwork {
    /// Inputs `ids` and `positions` `[B, T]` (int), `mask` `[B, 1, T, T]` (additive); output `states`
    /// `[B, T, d]`.
    fn graph(&self) -> Result<Graph>;

    /// How states become an embedding.
    fn pooling(&self) -> SentencePooling;
}

/// A BERT encoder: a configuration and its weights, under Hugging Face's names.
#[derive(Clone, Debug)]
pub struct Bert {
    config: BertConfig,
    weights: Weights,
    pooling: SentencePooling,
}

impl Bert {
    /// Checks the configuration and that every tensor is there with the right shape.
    pub fn new(config: BertConfig, weights: Weights, pooling: SentencePooling) -> Result<Self> {
        let c = &config;
        let sizes = [
            ("vocab_size", c.vocab),
            ("hidden_size", c.width),
            ("num_hidden_layers", c.layers),
            ("num_attention_heads", c.heads),
            ("intermediate_size", c.ffn),
            ("max_position_embeddings", c.context),
        ];
        for (key, value) in sizes {
            if !(1..=1 << 24).contains(&value) {
                return Err(ArchitectureError::Config {
                    key,
                    value: value.to_string(),
                    want: "between 1 and 2^24",
                });
            }
        }
        if c.width % c.heads != 0 || !(c.norm_eps > 0.0) {
            let value = format!("{} (layer_norm_eps {})", c.heads, c.norm_eps);
            let want = "a divisor of hidden_size, with layer_norm_eps above 0";
            return Err(ArchitectureError::Config { key: "num_attention_heads", value, want });
        }
        let mut known = HashSet::new();
        for (name, shape) in expected(c) {
            fits(&weights, &name, &shape)?;
            known.insert(name);
        }
        // Heads of the pre-training, and buffers of old exports.
        let unused = |name: &str| {
            ["pooler.", "cls."].iter().any(|head| name.starts_with(head)) || name == "embeddings.position_ids"
        };
        refuse_extra(&weights, |name| known.contains(name) || unused(name))?;
        Ok(Self { config, weights, pooling })
    }

    /// A network with random weights, for exact tests.
    pub fn random(config: BertConfig, seed: u64) -> Result<Self> {
        let mut state = seed ^ 0x5bd1_e995;
        let mut weights = Weights::default();
        for (name, shape) in expected(&config) {
            let scale = name.contains("LayerNorm.weight");
            let count: usize = shape.iter().product();
            let values = (0..count).map(|_| {
                let value = 0.2 * (uniform(&mut state) - 0.5);
                (value + if scale { 1.0 } else { 0.0 }) as f32
            });
            let tensor = Tensor::new(shape, values.collect())?;
            weights.insert(name, Stored { bytes: 4 * count, tensor, encoding: Encoding::F32 })?;
        }
        Self::new(config, weights, SentencePooling { first: false, normalize: true })
    }

    pub(crate) fn from_folder(folder: &Path, keys: &Keys<'_>, weights: Weights) -> Result<Self> {
        match (keys.text("hidden_act"), keys.text("position_embedding_type")) {
            (None | Some("gelu"), None | Some("absolute")) => {}
            other => {
                let why = format!("hidden_act and position_embedding_type {other:?} are not supported");
                return Err(ArchitectureError::malformed(keys.file, why));
            }
        }
        let config = BertConfig {
            vocab: keys.size("vocab_size")?,
            width: keys.size("hidden_size")?,
            layers: keys.size("num_hidden_layers")?,
            heads: keys.size("num_attention_heads")?,
            ffn: keys.size("intermediate_size")?,
            context: keys.size("max_position_embeddings")?,
            norm_eps: keys.number_or("layer_norm_eps", 1e-12)? as f32,
        };
        let mut pooling = SentencePooling { first: false, normalize: false };
        let modules = folder.join("modules.json");
        if modules.is_file() {
            let modules = read_json(&modules)?;
            let kinds =
                modules.as_array().into_iter().flatten().filter_map(|module| module.get("type")?.as_str());
            pooling.normalize = kinds.into_iter().any(|kind| kind.ends_with("Normalize"));
            let pool = folder.join("1_Pooling").join("config.json");
            if pool.is_file() {
                let json = read_json(&pool)?;
                let flag = |key: &str| json.get(key).and_then(serde_json::Value::as_bool) == Some(true);
                pooling.first = flag("pooling_mode_cls_token");
                if !pooling.first && !flag("pooling_mode_mean_tokens") {
                    return Err(ArchitectureError::malformed(
                        &pool,
                        "only mean and first-token pooling are supported",
                    ));
                }
            }
        }
        if config.layers > 1 << 16 {
            return Err(ArchitectureError::malformed(keys.file, format!("{} layers", config.layers)));
        }
        // Files saved from a network with a head put the encoder's name before its tensors'.
        let mut plain = Weights::default();
        for (name, stored) in weights.iter() {
            plain.insert(name.strip_prefix("bert.").unwrap_or(name).to_owned(), stored.clone())?;
        }
        Self::new(config, plain, pooling)
    }

    /// The configuration.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Parameters.
    pub fn parameters(&self) -> usize {
        expected(&self.config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    fn linear(&self, g: &mut Graph, x: Value, name: &str) -> Result<Value> {
        let weight = self.param(g, &format!("{name}.weight"))?;
        let bias = self.param(g, &format!("{name}.bias"))?;
        Ok(g.linear(x, weight, Some(bias))?)
    }

    fn norm(&self, g: &mut Graph, x: Value, name: &str) -> Result<Value> {
        let weight = self.param(g, &format!("{name}.weight"))?;
        let bias = self.param(g, &format!("{name}.bias"))?;
        Ok(g.layer_norm(x, weight, bias, self.config.norm_eps)?)
    }

    fn param(&self, g: &mut Graph, name: &str) -> Result<Value> {
        Ok(g.param(name, self.weights.get(name)?.clone())?)
    }
}

impl EncoderNetwork for Bert {
    fn graph(&self) -> Result<Graph> {
        let c = &self.config;
        let mut g = Graph::new("bert");
        let (batch, rows) = (Dim::symbol("B"), Dim::symbol("T"));
        let ids = g.input("ids", vec![batch.clone(), rows.clone()], DType::I64)?;
        let positions = g.input("positions", vec![batch.clone(), rows.clone()], DType::I64)?;
        let mask = g.input("mask", vec![batch, 1.into(), rows.clone(), rows], DType::F32)?;
        let words = self.param(&mut g, "embeddings.word_embeddings.weight")?;
        let places = self.param(&mut g, "embeddings.position_embeddings.weight")?;
        let segments = self.param(&mut g, "embeddings.token_type_embeddings.weight")?;
        let words = g.embedding(words, ids)?;
        let places = g.embedding(places, positions)?;
        let first = g.slice(segments, 0, 0, 1)?;
        let x = g.add(words, places)?;
        let x = g.add(x, first)?;
        let mut x = self.norm(&mut g, x, "embeddings.LayerNorm")?;
        let config = AttentionConfig {
            heads: c.heads,
            kv_heads: c.heads,
            scale: ((c.width / c.heads) as f32).powf(-0.5),
            softcap: None,
        };
        g.mark(Mark::Residual(0), x);
        for layer in 0..c.layers {
            let at = |name: &str| format!("encoder.layer.{layer}.{name}");
            let q = self.linear(&mut g, x, &at("attention.self.query"))?;
            let k = self.linear(&mut g, x, &at("attention.self.key"))?;
            let v = self.linear(&mut g, x, &at("attention.self.value"))?;
            let (y, _, _) = g.attention([q, k, v], mask, None, config)?;
            let y = self.linear(&mut g, y, &at("attention.output.dense"))?;
            let y = g.add(x, y)?;
            let y = self.norm(&mut g, y, &at("attention.output.LayerNorm"))?;
            let h = self.linear(&mut g, y, &at("intermediate.dense"))?;
            let h = g.unary(UnaryOp::Gelu, h)?;
            let h = self.linear(&mut g, h, &at("output.dense"))?;
            let h = g.add(y, h)?;
            x = self.norm(&mut g, h, &at("output.LayerNorm"))?;
            g.mark(Mark::Residual(layer + 1), x);
        }
        g.output("states", x)?;
        Ok(g)
    }

    fn pooling(&self) -> SentencePooling {
        self.pooling
    }
}

fn expected(c: &BertConfig) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![c.vocab, c.width]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![c.context, c.width]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, c.width]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![c.width]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![c.width]),
    ];
    for layer in 0..c.layers {
        let mut linear = |name: &str, out: usize, inner: usize| {
            let name = format!("encoder.layer.{layer}.{name}");
            all.push((format!("{name}.weight"), if inner > 0 { vec![out, inner] } else { vec![out] }));
            all.push((format!("{name}.bias"), vec![out]));
        };
        linear("attention.self.query", c.width, c.width);
        linear("attention.self.key", c.width, c.width);
        linear("attention.self.value", c.width, c.width);
        linear("attention.output.dense", c.width, c.width);
        linear("attention.output.LayerNorm", c.width, 0);
        linear("intermediate.dense", c.ffn, c.width);
        linear("output.dense", c.width, c.ffn);
        linear("output.LayerNorm", c.width, 0);
    }
    all
}
