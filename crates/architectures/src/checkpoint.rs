//! Checkpoints: what is in a file or folder, as a network.

use std::path::{Path, PathBuf};

use pilotfish_graph::weights::gguf::{Gguf, Metadata};
use pilotfish_graph::weights::{Stored, Weights, safetensors};
use pilotfish_graph::{GraphError, RopeScaling, Tensor};
use serde_json::Value as Json;

use crate::causal::{Activation, CausalConfig, CausalNetwork};
use crate::masked::llada_weights;
use crate::{ArchitectureError, Bert, Bidirectional, ChatTemplate, Result, Tokenizer};

const KNOWN: &str = "llama (LlamaForCausalLM), gemma3 (Gemma3ForCausalLM), llada (LLaDAModelLM), Dream (DreamModel), \
                     bert (BertModel)";
/// Configuration and template files beyond this are refused.
const LARGEST_JSON: u64 = 64 << 20;

/// The network of a checkpoint.
#[derive(Clone, Debug)]
pub enum Network {
    /// A decoder-only language model.
    Causal(CausalNetwork),
    /// A masked diffusion language model.
    Masked(Bidirectional),
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
        let network = CausalNetwork::new(config, weights).map_err(|error| in_file(path, error))?;
        Ok(Self {
            path: path.into(),
            name,
            source: SourceKind::Gguf(gguf),
            network: Network::Causal(network),
        })
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let file = path.join("config.json");
        let json = read_json(&file)?;
        let kind = json.get("model_type").and_then(Json::as_str).unwrap_or("(none)");
        let weights = || safetensors::open(path);
        let keys = Keys { file: &file, json: &json };
        let network = match kind {
            "llama" | "gemma3_text" => {
                let mut config = folder_config(&keys, kind)?;
                if config.end.is_empty()
                    && let Ok(generation) = read_json(&path.join("generation_config.json"))
                {
                    config.end = end_tokens(&generation);
                }
                let weights = weights()?;
                config.tied &= !weights.contains("lm_head.weight");
                require_biases(&keys, config.layers, &weights)?;
                CausalNetwork::new(config, weights).map(Network::Causal)
            }
            "llada" => masked(llada_config(&keys)?, llada_weights(&weights()?)?, mask_token(&keys)?, false),
            "Dream" => {
                let weights = weights()?;
                let config = dream_config(&keys, &weights)?;
                masked(config, weights, mask_token(&keys)?, true)
            }
            "bert" => Bert::from_folder(path, &keys, weights()?).map(Network::Encoder),
            other => return Err(unknown(path, other)),
        };
        let network = network.map_err(|error| in_file(path, error))?;
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
            Network::Masked(_) => Err(ArchitectureError::malformed(
                &self.path,
                "this is a masked diffusion model, not a causal language model",
            )),
        }
    }

    /// The network, if it is a masked diffusion model.
    ///
    /// # Errors
    /// It is something else.
    pub fn masked(&self) -> Result<&Bidirectional> {
        match &self.network {
            Network::Masked(network) => Ok(network),
            _ => Err(ArchitectureError::malformed(&self.path, "this is no masked diffusion model")),
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
            Network::Masked(_) => Err(ArchitectureError::malformed(
                &self.path,
                "this is a masked diffusion model, not an encoder",
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
                let json = if file.is_file() { read_json(&file)? } else { Json::Null };
                let text = |key: &str| match json.get(key) {
                    Some(Json::String(text)) => Some(text.clone()),
                    Some(Json::Object(token)) => token.get("content")?.as_str().map(str::to_owned),
                    // Several templates, by name.
                    Some(Json::Array(named)) => named
                        .iter()
                        .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))
                        .and_then(|entry| entry.get("template")?.as_str().map(str::to_owned)),
                    _ => None,
                };
                // A file of its own goes before the configuration's.
                let own = self.path.join("chat_template.jinja");
                let template = match own.is_file() {
                    true => {
                        let bytes = read_file(&own)?;
                        let why = |_| ArchitectureError::malformed(&own, "not UTF-8");
                        Some(String::from_utf8(bytes).map_err(why)?)
                    }
                    false => text("chat_template"),
                };
                let Some(template) = template else { return Ok(None) };
                let [bos, eos] = ["bos_token", "eos_token"].map(|key| text(key).unwrap_or_default());
                ChatTemplate::new(&template, bos, eos).map(Some)
            }
        }
    }
}

/// An error about values, with the file they came from.
fn in_file(path: &Path, error: ArchitectureError) -> ArchitectureError {
    match error {
        ArchitectureError::Config { .. }
        | ArchitectureError::Graph(GraphError::Tensor { .. } | GraphError::NoSuchName { .. }) => {
            ArchitectureError::malformed(path, error.to_string())
        }
        other => other,
    }
}

fn unknown(path: &Path, found: &str) -> ArchitectureError {
    ArchitectureError::Unknown { path: path.display().to_string(), found: found.into(), known: KNOWN }
}

pub(crate) fn read_json(file: &Path) -> Result<Json> {
    let bytes = read_file(file)?;
    serde_json::from_slice(&bytes).map_err(|error| ArchitectureError::malformed(file, error.to_string()))
}

fn read_file(file: &Path) -> Result<Vec<u8>> {
    let refuse = |why: String| ArchitectureError::malformed(file, why);
    let meta = std::fs::metadata(file).map_err(|error| refuse(error.to_string()))?;
    if meta.len() > LARGEST_JSON || !meta.is_file() {
        return Err(refuse("not a regular file of at most 64 MB".into()));
    }
    std::fs::read(file).map_err(|error| refuse(error.to_string()))
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

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.json.get(key).and_then(Json::as_bool) == Some(true)
    }

    /// Refuses values of keys that would make another network than the one written here.
    fn absent(&self, keys: &[&str]) -> Result<()> {
        let set = |key: &&&str| !matches!(self.json.get(**key), None | Some(Json::Null | Json::Bool(false)));
        match keys.iter().find(set) {
            Some(key) => Err(ArchitectureError::malformed(self.file, format!("{key} is not supported"))),
            None => Ok(()),
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
    rope(keys, &mut config)?;
    config.activation = activation(keys, config.activation)?;
    let scalar = if gemma { keys.number_or("query_pre_attn_scalar", 256.0)? } else { config.head_dim as f64 };
    config.attention_scale = scalar.powf(-0.5) as f32;
    config.tied = keys.json.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(gemma);
    config.end = end_tokens(keys.json);
    if gemma {
        keys.absent(&["attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"])?;
        config.windows = windows(keys, layers)?;
    }
    Ok(config)
}

fn masked(config: CausalConfig, weights: Weights, mask: u32, shift: bool) -> Result<Network> {
    Bidirectional::new(CausalNetwork::new(config, weights)?, mask, shift).map(Network::Masked)
}

/// The mask token, without which a masked model is none.
fn mask_token(keys: &Keys<'_>) -> Result<u32> {
    let refuse = |_| ArchitectureError::malformed(keys.file, "mask_token_id is no token");
    u32::try_from(keys.size("mask_token_id")?).map_err(refuse)
}

/// Dream: Qwen 2's layers under Hugging Face's names, with biases on queries, keys and values.
fn dream_config(keys: &Keys<'_>, weights: &Weights) -> Result<CausalConfig> {
    keys.absent(&["use_sliding_window", "use_mrope"])?;
    let mut config = folder_config(keys, "llama")?;
    config.family = "dream".into();
    config.tied &= !weights.contains("lm_head.weight");
    for layer in 0..config.layers {
        for name in ["q_proj", "k_proj", "v_proj"] {
            let bias = weights.get(&format!("model.layers.{layer}.self_attn.{name}.bias"));
            bias.map_err(|error| in_file(keys.file, error.into()))?;
        }
    }
    Ok(config)
}

/// LLaDA: Llama's layers under names of its own, in `config.json` and in the weights.
fn llada_config(keys: &Keys<'_>) -> Result<CausalConfig> {
    keys.absent(&[
        "alibi",
        "attention_layer_norm",
        "bias_for_layer_norm",
        "input_emb_norm",
        "multi_query_attention",
        "scale_logits",
    ])?;
    let fixed = [("block_type", "llama"), ("layer_norm_type", "rms"), ("activation_type", "silu")];
    for (key, want) in fixed {
        if keys.text(key) != Some(want) {
            return Err(ArchitectureError::malformed(keys.file, format!("{key} is not {want:?}")));
        }
    }
    if !keys.flag("rope") {
        return Err(ArchitectureError::malformed(
            keys.file,
            "rope is not true: positions have no other form here",
        ));
    }
    let (width, layers, heads) = (keys.size("d_model")?, keys.size("n_layers")?, keys.size("n_heads")?);
    if layers > 1 << 16 {
        return Err(ArchitectureError::malformed(keys.file, format!("{layers} layers")));
    }
    let kv_heads = keys.size_or("n_kv_heads", heads)?;
    // The table may be longer than the vocabulary; its rows are what logits are of.
    let vocab = keys.size_or("embedding_size", keys.size("vocab_size")?)?;
    let ffn = keys.size_or("mlp_hidden_size", keys.size_or("mlp_ratio", 4)?.saturating_mul(width))?;
    let mut config = CausalConfig::llama(vocab, width, layers, [heads, kv_heads], ffn);
    config.family = "llada".into();
    config.context = keys.size("max_sequence_length")?;
    config.norm_eps = keys.number_or("rms_norm_eps", 1e-5)? as f32;
    config.rope_theta = keys.number_or("rope_theta", 10_000.0)?;
    config.tied = keys.flag("weight_tying");
    config.end = end_tokens(keys.json);
    Ok(config)
}

fn windows(keys: &Keys<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.size_or("sliding_window", 512)?;
    let pattern = keys.size_or("sliding_window_pattern", keys.size_or("_sliding_window_pattern", 6)?)?.max(1);
    let Some(types) = keys.json.get("layer_types").and_then(Json::as_array) else {
        return Ok((0..layers).map(|layer| ((layer + 1) % pattern != 0).then_some(window)).collect());
    };
    if types.len() != layers {
        let why = format!("{} layer_types for {layers} layers", types.len());
        return Err(ArchitectureError::malformed(keys.file, why));
    }
    let one = |kind: &Json| match kind.as_str() {
        Some("sliding_attention") => Ok(Some(window)),
        Some("full_attention") => Ok(None),
        _ => Err(ArchitectureError::malformed(keys.file, format!("layer_types: {kind} is not supported"))),
    };
    types.iter().map(one).collect()
}

/// Biases that the configuration speaks of; those it does not speak of are used where they are.
fn require_biases(keys: &Keys<'_>, layers: usize, weights: &Weights) -> Result<()> {
    let attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
    let mlp = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
    let wanted = [("attention_bias", &attention[..]), ("mlp_bias", &mlp[..])];
    for (_, names) in wanted.into_iter().filter(|(flag, _)| keys.flag(flag)) {
        for layer in 0..layers {
            for name in names {
                weights
                    .get(&format!("model.layers.{layer}.{name}.bias"))
                    .map_err(|error| in_file(keys.file, error.into()))?;
            }
        }
    }
    Ok(())
}

/// Bases and scaling of the rotary embedding: `rope_theta`, `rope_local_base_freq` and `rope_scaling`, or
/// `rope_parameters` as newer files have it, flat or one for each type of layer.
fn rope(keys: &Keys<'_>, config: &mut CausalConfig) -> Result<()> {
    config.rope_theta = keys.number_or("rope_theta", config.rope_theta)?;
    config.rope_theta_local = keys.number_or("rope_local_base_freq", config.rope_theta_local)?;
    match keys.json.get("rope_parameters") {
        None | Some(Json::Null) => {
            if let Some(scaling @ Json::Object(_)) = keys.json.get("rope_scaling") {
                config.rope_scaling = rope_scaling(&Keys { file: keys.file, json: scaling })?;
            }
            return Ok(());
        }
        Some(all) => {
            let full = Keys { file: keys.file, json: all.get("full_attention").unwrap_or(all) };
            config.rope_theta = full.number_or("rope_theta", config.rope_theta)?;
            config.rope_scaling = rope_scaling(&full)?;
            if let Some(json) = all.get("sliding_attention") {
                let local = Keys { file: keys.file, json };
                config.rope_theta_local = local.number_or("rope_theta", config.rope_theta_local)?;
                if rope_scaling(&local)? != RopeScaling::None {
                    let why = "scaled rotary frequencies in layers with a window are not supported";
                    return Err(ArchitectureError::malformed(keys.file, why));
                }
            }
        }
    }
    Ok(())
}

fn rope_scaling(keys: &Keys<'_>) -> Result<RopeScaling> {
    let number = |key: &str| {
        let value = keys.number_or(key, f64::NAN)?;
        if value > 0.0 && value.is_finite() {
            return Ok(value);
        }
        Err(ArchitectureError::malformed(keys.file, format!("rotary scaling: {key} is not a number above 0")))
    };
    if keys.number_or("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(ArchitectureError::malformed(keys.file, "partial_rotary_factor is not supported"));
    }
    match keys.text("rope_type").or_else(|| keys.text("type")) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if !(low < high) {
                let why = "rotary scaling: low_freq_factor is not below high_freq_factor";
                return Err(ArchitectureError::malformed(keys.file, why));
            }
            let original = number("original_max_position_embeddings")?;
            Ok(RopeScaling::Llama3 { factor: number("factor")?, low, high, original })
        }
        Some(other) => Err(ArchitectureError::malformed(
            keys.file,
            format!("rotary scaling {other:?} is not supported (default, linear, llama3 are)"),
        )),
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
    if gguf.has(&key("rope.freq_base_swa")) {
        config.rope_theta_local = gguf.number(&key("rope.freq_base_swa"))?;
    }
    // Other widths would be another network: values of another width than keys, part of a head turned.
    for name in ["attention.value_length", "rope.dimension_count"] {
        if gguf.has(&key(name)) && size(name)? != config.head_dim {
            let why = format!("{} is {}, heads are {} wide", key(name), size(name)?, config.head_dim);
            return Err(ArchitectureError::malformed(gguf.path(), why));
        }
    }
    for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if gguf.has(&key(name)) && gguf.number(&key(name))? != 0.0 {
            return Err(ArchitectureError::malformed(gguf.path(), format!("{} is not supported", key(name))));
        }
    }
    // The largest Gemma 3 divides by the width a head, not by the head's width; no metadata says so.
    let scalar = if gemma && layers == 62 { width.checked_div(heads).unwrap_or(0) } else { config.head_dim };
    config.attention_scale = (scalar as f32).powf(-0.5);
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
    if !gemma && gguf.weights().contains(FREQUENCY_FACTORS) {
        config.rope_scaling = llama3_scaling(gguf, &config)?;
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

/// What converters write for Llama 3.1's scaling: the number each rotary frequency is divided by.
const FREQUENCY_FACTORS: &str = "rope_freqs.weight";

/// The scaling behind a file's frequency factors: Llama 3.1's, whose factor is the largest of them. Its other
/// numbers are the same in every published checkpoint.
///
/// # Errors
/// Factors that this scaling does not give.
fn llama3_scaling(gguf: &Gguf, config: &CausalConfig) -> Result<RopeScaling> {
    let factors = gguf.weights().get(FREQUENCY_FACTORS)?;
    let refuse =
        |why: &str| Err(ArchitectureError::malformed(gguf.path(), format!("{FREQUENCY_FACTORS}: {why}")));
    if factors.shape() != [config.head_dim / 2] {
        return refuse("not one factor for each pair of a head");
    }
    let factors = factors.to_f32()?;
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let fits = factors.iter().enumerate().all(|(pair, &found)| {
        let exponent = 2.0 * pair as f64 / config.head_dim as f64;
        let turns = original / (std::f64::consts::TAU * config.rope_theta.powf(exponent));
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        let want = 1.0 / ((1.0 - smooth) / factor + smooth);
        (f64::from(found) - want).abs() <= 1e-3 * want
    });
    match fits {
        true => Ok(RopeScaling::Llama3 { factor, low, high, original }),
        false => refuse("not the factors of Llama 3.1's scaling"),
    }
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
        if name == FREQUENCY_FACTORS && family == "llama" {
            continue;
        }
        let Some(new) = hugging_face_name(name, family) else {
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
