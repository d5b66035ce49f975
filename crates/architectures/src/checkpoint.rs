//! Checkpoints: what is in a file or folder, as a network.

use std::path::{Path, PathBuf};

use pilotfish_graph::weights::gguf::{Gguf, Metadata};
use pilotfish_graph::weights::{Stored, Weights, safetensors};
use pilotfish_graph::{RopeScaling, Tensor};
use serde_json::Value as Json;

use crate::causal::{Activation, CausalConfig, CausalNetwork};
use crate::{ArchitectureError, Bert, ChatTemplate, Result, Tokenizer};

const KNOWN: &str = "llama (LlamaForCausalLM), gemma3 (Gemma3ForCausalLM), bert (BertModel)";
/// Configuration and template files beyond this are refused.
const LARGEST_JSON: u64 = 64 << 20;

/// The network of a checkpoint.
#[derive(Clone, Debug)]
pub enum Network {
    /// A decoder-only language model.
    Causal(CausalNetwork),
    /// A sentence or token encoder.
    Encoder(Bert),
}

/// An opened checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    name: String,
    source: SourceKind,
    network: Network,
}

#[derive(Clone, Debug)]
enum SourceKind {
    Gguf(Gguf),
    Folder,
}

impl Checkpoint {
    /// Opens a Hugging Face folder (`config.json`, safetensors, `tokenizer.json`) or a GGUF file.
    ///
    /// # Errors
    /// Neither of the two; an architecture that is not written here; tensors that do not fit the configuration.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() { Self::open_folder(path) } else { Self::open_gguf(path) }
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let name = match gguf.text("general.name") {
            Ok(name) => name.to_owned(),
            Err(_) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let family = gguf.text("general.architecture")?;
        let (config, weights) = match family {
            "llama" | "gemma3" => (gguf_config(&gguf, family)?, gguf_weights(&gguf, family)?),
            other => return Err(unknown(path, other)),
        };
        let network = Network::Causal(CausalNetwork::new(config, weights)?);
        Ok(Self { path: path.into(), name, source: SourceKind::Gguf(gguf), network })
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let file = path.join("config.json");
        let json = read_json(&file)?;
        let kind = json.get("model_type").and_then(Json::as_str).unwrap_or("(none)");
        let weights = || safetensors::open(path);
        let network = match kind {
            "llama" | "gemma3_text" => {
                let mut config = folder_config(&Keys { file: &file, json: &json }, kind)?;
                if config.end.is_empty()
                    && let Ok(generation) = read_json(&path.join("generation_config.json"))
                {
                    config.end = end_tokens(&generation);
                }
                let weights = weights()?;
                config.tied &= !weights.contains("lm_head.weight");
                Network::Causal(CausalNetwork::new(config, weights)?)
            }
            "bert" => {
                Network::Encoder(Bert::from_folder(path, &Keys { file: &file, json: &json }, weights()?)?)
            }
            other => return Err(unknown(path, other)),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { path: path.into(), name, source: SourceKind::Folder, network })
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network, if it is a causal language model.
    ///
    /// # Errors
    /// It is something else.
    pub fn causal(&self) -> Result<&CausalNetwork> {
        match &self.network {
            Network::Causal(network) => Ok(network),
            Network::Encoder(_) => Err(ArchitectureError::malformed(
                &self.path,
                "this is an encoder, not a causal language model",
            )),
        }
    }

    /// The network, if it is an encoder.
    ///
    /// # Errors
    /// It is something else.
    pub fn encoder(&self) -> Result<&Bert> {
        match &self.network {
            Network::Encoder(network) => Ok(network),
            Network::Causal(_) => Err(ArchitectureError::malformed(
                &self.path,
                "this is a causal language model, not an encoder",
            )),
        }
    }

    /// The tokeniser: `tokenizer.json`, or rebuilt from GGUF metadata.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.source {
            SourceKind::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            SourceKind::Folder => Tokenizer::from_file(&self.path.join("tokenizer.json")),
        }
    }

    /// The chat template, if there is one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.source {
            SourceKind::Gguf(gguf) => {
                let Ok(text) = gguf.text("tokenizer.chat_template") else { return Ok(None) };
                let token = |key: &str| {
                    let id = gguf.count(key).ok()?;
                    match gguf.list("tokenizer.ggml.tokens").ok()?.get(id) {
                        Some(Metadata::Text(text)) => Some(text.clone()),
                        _ => None,
                    }
                };
                let [bos, eos] = ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"].map(token);
                ChatTemplate::new(text, bos.unwrap_or_default(), eos.unwrap_or_default()).map(Some)
            }
            SourceKind::Folder => {
                let file = self.path.join("tokenizer_config.json");
                if !file.is_file() {
                    return Ok(None);
                }
                let json = read_json(&file)?;
                let text = |key: &str| match json.get(key) {
                    Some(Json::String(text)) => Some(text.clone()),
                    Some(Json::Object(token)) => token.get("content")?.as_str().map(str::to_owned),
                    _ => None,
                };
                let Some(template) = text("chat_template") else { return Ok(None) };
                let [bos, eos] = ["bos_token", "eos_token"].map(|key| text(key).unwrap_or_default());
                ChatTemplate::new(&template, bos, eos).map(Some)
            }
        }
    }
}

fn unknown(path: &Path, found: &str) -> ArchitectureError {
    ArchitectureError::Unknown { path: path.display().to_string(), found: found.into(), known: KNOWN }
}

pub(crate) fn read_json(file: &Path) -> Result<Json> {
    let meta =
        std::fs::metadata(file).map_err(|error| ArchitectureError::malformed(file, error.to_string()))?;
    if meta.len() > LARGEST_JSON || !meta.is_file() {
        return Err(ArchitectureError::malformed(file, "not a regular file of at most 64 MB"));
    }
    let bytes = std::fs::read(file).map_err(|error| ArchitectureError::malformed(file, error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| ArchitectureError::malformed(file, error.to_string()))
}

/// Typed access to a configuration file.
pub(crate) struct Keys<'a> {
    pub(crate) file: &'a Path,
    pub(crate) json: &'a Json,
}

impl Keys<'_> {
    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        let value = self.json.get(key).and_then(Json::as_u64).and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| ArchitectureError::malformed(self.file, format!("{key} is not a size")))
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.json.get(key) {
            None | Some(Json::Null) => Ok(default),
            Some(_) => self.size(key),
        }
    }

    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.json.get(key) {
            None | Some(Json::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| ArchitectureError::malformed(self.file, format!("{key} is not a number"))),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.json.get(key).and_then(Json::as_str)
    }
}

fn end_tokens(json: &Json) -> Vec<u32> {
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match json.get("eos_token_id") {
        Some(Json::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn activation(keys: &Keys<'_>, default: Activation) -> Result<Activation> {
    match keys.text("hidden_activation").or_else(|| keys.text("hidden_act")) {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(other) => {
            Err(ArchitectureError::malformed(keys.file, format!("activation {other:?} is not supported")))
        }
    }
}

fn folder_config(keys: &Keys<'_>, kind: &str) -> Result<CausalConfig> {
    let heads = keys.size("num_attention_heads")?;
    let kv_heads = keys.size_or("num_key_value_heads", heads)?;
    let (vocab, width) = (keys.size("vocab_size")?, keys.size("hidden_size")?);
    let (layers, ffn) = (keys.size("num_hidden_layers")?, keys.size("intermediate_size")?);
    if layers > 1 << 16 {
        return Err(ArchitectureError::malformed(keys.file, format!("{layers} layers")));
    }
    let gemma = kind != "llama";
    let base = if gemma { CausalConfig::gemma3 } else { CausalConfig::llama };
    let mut config = base(vocab, width, layers, [heads, kv_heads], ffn);
    config.head_dim = keys.size_or("head_dim", config.head_dim)?;
    config.context = keys.size_or("max_position_embeddings", config.context)?;
    config.norm_eps = keys.number_or("rms_norm_eps", config.norm_eps.into())? as f32;
    config.rope_theta = keys.number_or("rope_theta", config.rope_theta)?;
    config.rope_theta_local = keys.number_or("rope_local_base_freq", config.rope_theta_local)?;
    config.rope_scaling = rope_scaling(keys)?;
    config.activation = activation(keys, config.activation)?;
    let scalar = keys.number_or("query_pre_attn_scalar", config.head_dim as f64)?;
    config.attention_scale = scalar.powf(-0.5) as f32;
    config.tied = keys.json.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(gemma);
    config.end = end_tokens(keys.json);
    if gemma {
        let window = keys.size_or("sliding_window", 512)?;
        let pattern = keys.size_or("sliding_window_pattern", 6)?.max(1);
        let types = keys.json.get("layer_types").and_then(Json::as_array);
        config.windows = (0..layers)
            .map(|layer| {
                let local = match types.and_then(|types| types.get(layer)).and_then(Json::as_str) {
                    Some(name) => name == "sliding_attention",
                    None => (layer + 1) % pattern != 0,
                };
                local.then_some(window)
            })
            .collect();
    }
    Ok(config)
}

fn rope_scaling(keys: &Keys<'_>) -> Result<RopeScaling> {
    let Some(Json::Object(scaling)) = keys.json.get("rope_scaling") else { return Ok(RopeScaling::None) };
    let number = |key: &str| {
        let value = scaling.get(key).and_then(Json::as_f64).filter(|value| *value > 0.0);
        value.ok_or_else(|| {
            ArchitectureError::malformed(keys.file, format!("rope_scaling.{key} is not a number above 0"))
        })
    };
    match scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Json::as_str) {
        Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")?,
        }),
        other => {
            Err(ArchitectureError::malformed(keys.file, format!("rope_scaling {other:?} is not supported")))
        }
    }
}

fn gguf_config(gguf: &Gguf, family: &str) -> Result<CausalConfig> {
    let key = |name: &str| format!("{family}.{name}");
    let size = |name: &str| gguf.count(&key(name));
    let heads = size("attention.head_count")?;
    let kv_heads =
        if gguf.has(&key("attention.head_count_kv")) { size("attention.head_count_kv")? } else { heads };
    let vocab = gguf.weights().get("token_embd.weight")?.shape().first().copied().unwrap_or(0);
    let (width, layers, ffn) =
        (size("embedding_length")?, size("block_count")?, size("feed_forward_length")?);
    if layers > 1 << 16 {
        return Err(ArchitectureError::malformed(gguf.path(), format!("{layers} layers")));
    }
    let gemma = family == "gemma3";
    let base = if gemma { CausalConfig::gemma3 } else { CausalConfig::llama };
    let mut config = base(vocab, width, layers, [heads, kv_heads], ffn);
    if gguf.has(&key("attention.key_length")) {
        config.head_dim = size("attention.key_length")?;
    }
    config.context = size("context_length")?;
    config.norm_eps = gguf.number(&key("attention.layer_norm_rms_epsilon"))? as f32;
    if gguf.has(&key("rope.freq_base")) {
        config.rope_theta = gguf.number(&key("rope.freq_base"))?;
    }
    config.attention_scale = (config.head_dim as f32).powf(-0.5);
    if gguf.has(&key("rope.scaling.type")) && gguf.text(&key("rope.scaling.type"))? != "none" {
        let factor = gguf.number(&key("rope.scaling.factor"))?;
        match gguf.text(&key("rope.scaling.type"))? {
            "linear" if factor > 0.0 => config.rope_scaling = RopeScaling::Linear { factor },
            other => {
                return Err(ArchitectureError::malformed(
                    gguf.path(),
                    format!("rope scaling {other:?} is not read"),
                ));
            }
        }
    }
    if gemma && gguf.has(&key("attention.sliding_window")) {
        let window = size("attention.sliding_window")?;
        config.windows.iter_mut().flatten().for_each(|entry| *entry = window);
    }
    // Converters add the one that Gemma's norms lack.
    config.norm_plus_one = false;
    config.tied = !gguf.weights().contains("output.weight");
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Ok(id) = gguf.count(key)
            && let Ok(id) = u32::try_from(id)
            && !config.end.contains(&id)
        {
            config.end.push(id);
        }
    }
    Ok(config)
}

/// The file's tensors under Hugging Face's names, queries and keys in half-split rotary order.
fn gguf_weights(gguf: &Gguf, family: &str) -> Result<Weights> {
    let mut weights = Weights::default();
    let head_dim = |name: &str| -> Option<usize> {
        let heads = match name {
            "attn_q" => gguf.count(&format!("{family}.attention.head_count")).ok()?,
            "attn_k" => gguf
                .count(&format!("{family}.attention.head_count_kv"))
                .or_else(|_| gguf.count(&format!("{family}.attention.head_count")))
                .ok()?,
            _ => return None,
        };
        Some(heads)
    };
    for (name, stored) in gguf.weights().iter() {
        let Some(new) = hugging_face_name(name, family) else {
            // Frequency factors would change the network; everything else is unknown and refused too.
            return Err(ArchitectureError::malformed(
                gguf.path(),
                format!("tensor {name} is not known to {family}"),
            ));
        };
        let part = name.split('.').nth(2).unwrap_or("");
        let tensor = match head_dim(part) {
            Some(heads) if family == "llama" => unpermute(&stored.tensor, heads),
            _ => stored.tensor.clone(),
        };
        weights.insert(new, Stored { tensor, encoding: stored.encoding, bytes: stored.bytes })?;
    }
    Ok(weights)
}

fn hugging_face_name(name: &str, family: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Some(whole.into());
    }
    let mut parts = name.split('.');
    let (blk, layer, part, kind) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if blk != "blk"
        || layer.parse::<usize>().is_err()
        || !matches!(kind, "weight" | "bias")
        || parts.next().is_some()
    {
        return None;
    }
    let gemma = family == "gemma3";
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" if gemma => "self_attn.q_norm",
        "attn_k_norm" if gemma => "self_attn.k_norm",
        "post_attention_norm" if gemma => "post_attention_layernorm",
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "post_ffw_norm" if gemma => "post_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

/// Rows of a query or key matrix from interleaved rotary order (pairs next to each other) to half-split order
/// (pairs half a head apart).
fn unpermute(tensor: &Tensor, heads: usize) -> Tensor {
    let rows = tensor.row_count();
    let Some(head_dim) = rows.checked_div(heads).filter(|dim| dim * heads == rows && dim % 2 == 0) else {
        // The network's own check will name the tensor.
        return tensor.clone();
    };
    tensor.derive(tensor.shape(), move |stored, range| {
        let mut out = Vec::new();
        for row in range {
            let (head, at) = (row / head_dim, row % head_dim);
            let (side, pair) = (at / (head_dim / 2), at % (head_dim / 2));
            let from = head * head_dim + 2 * pair + side;
            out.extend(stored.rows(from..from + 1)?);
        }
        Ok(out)
    })
}
