use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pilotfish_architectures::{Activation, Checkpoint, NormPlacement};
use pilotfish_graph::weights::{gguf::Gguf, safetensors};
use pilotfish_graph::{RopeScaling, Tensor};
use pilotfish_sparsity::plan::{PLAN_FILE, Plan};
use serde_json::{Value as Json, json};

use crate::error::write_atomic;
use crate::{PipelineError, Result};

/// Files beside the weights of a Hugging Face folder that say what its tokens are.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Writes a model folder as Hugging Face has them, with some matrices replaced and the plan beside: everything here
/// that takes a model takes it. It appears whole or not at all.
///
/// # Errors
/// A folder that is there already; a GGUF file of another family than Llama's, whose configuration would have to be made
/// up; the file system.
pub fn write_model(
    checkpoint: &Checkpoint,
    matrices: &BTreeMap<String, Tensor>,
    plan: &Plan,
    into: &Path,
) -> Result<()> {
    if into.symlink_metadata().is_ok() {
        return Err(PipelineError::Exists { path: into.display().to_string() });
    }
    let network = checkpoint.causal()?;
    let known: Vec<&str> = network.weights().iter().map(|(name, _)| name).collect();
    if let Some(name) = matrices.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(PipelineError::malformed(into, format!("the model has no matrix {name}")));
    }
    let mut name = into.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = into.with_file_name(name);
    if partial.is_dir() {
        std::fs::remove_dir_all(&partial).map_err(|source| PipelineError::io(&partial, source))?;
    }
    std::fs::create_dir_all(&partial).map_err(|source| PipelineError::io(&partial, source))?;
    let put = |name: &str, text: String| write_atomic(&partial.join(name), text.as_bytes());
    if checkpoint.path().is_dir() {
        for name in COMPANIONS {
            let from = checkpoint.path().join(name);
            if from.is_file() {
                let to = partial.join(name);
                std::fs::copy(&from, &to).map_err(|source| PipelineError::io(&from, source))?;
            }
        }
    } else {
        put("config.json", config(checkpoint, &partial)?.to_string())?;
        put("tokenizer.json", checkpoint.tokenizer()?.to_json()?)?;
        put("tokenizer_config.json", tokenizer_config(checkpoint)?.to_string())?;
    }
    put(PLAN_FILE, plan.to_json())?;
    let tensors =
        network.weights().iter().map(|(name, stored)| (name, matrices.get(name).unwrap_or(&stored.tensor)));
    safetensors::write(&partial.join("model.safetensors"), tensors)?;
    std::fs::rename(&partial, into).map_err(|source| PipelineError::io(into, source))
}

/// The plan in a model folder, if it has one.
///
/// # Errors
/// A plan that cannot be read.
pub fn plan_of(model: &Path) -> Result<Option<Plan>, pilotfish_sparsity::SparsityError> {
    let path: PathBuf = model.join(PLAN_FILE);
    if path.is_file() { Plan::read(&path).map(Some) } else { Ok(None) }
}

/// `config.json` of a checkpoint of the Llama family.
fn config(checkpoint: &Checkpoint, path: &Path) -> Result<Json> {
    let c = checkpoint.causal()?.config();
    let scaling = match c.rope_scaling {
        RopeScaling::None => Json::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }),
    };
    let plain = c.family == "llama"
        && c.norms == NormPlacement::Before
        && c.activation == Activation::Silu
        && !c.qk_norm
        && c.windows.iter().all(Option::is_none);
    if !plain {
        let why = format!("a GGUF file of family {}; give the model as a folder instead", c.family);
        return Err(PipelineError::malformed(path, why));
    }
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "tie_word_embeddings": c.tied,
        "eos_token_id": c.end,
    }))
}

/// Chat template and special tokens of a GGUF file.
fn tokenizer_config(checkpoint: &Checkpoint) -> Result<Json> {
    let gguf = Gguf::open(checkpoint.path())?;
    let mut out = serde_json::Map::new();
    if let Ok(template) = gguf.text("tokenizer.chat_template") {
        out.insert("chat_template".into(), template.into());
    }
    let tokens = gguf.list("tokenizer.ggml.tokens").unwrap_or_default();
    for (key, id) in
        [("bos_token", "tokenizer.ggml.bos_token_id"), ("eos_token", "tokenizer.ggml.eos_token_id")]
    {
        if let Ok(id) = gguf.count(id)
            && let Some(pilotfish_graph::weights::gguf::Metadata::Text(text)) = tokens.get(id)
        {
            out.insert(key.into(), text.as_str().into());
        }
    }
    Ok(Json::Object(out))
}
