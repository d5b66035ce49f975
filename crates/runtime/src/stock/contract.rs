//! What a stock export must look like, and what it says about the model.

use std::path::{Path, PathBuf};

use ort::session::Session;
use ort::value::{Outlet, TensorElementType};
use pilotfish_architectures::Tokenizer;
use serde_json::Value as Json;

use crate::{Result, RuntimeError};

/// Configurations beyond this are refused unread.
const LARGEST_JSON: u64 = 64 << 20;

/// The sizes of one layer's cache and the names of its tensors.
#[derive(Clone, Debug)]
pub(super) struct LayerNames {
    /// Past key, past value.
    pub past: [String; 2],
    /// Present key, present value.
    pub present: [String; 2],
    pub heads: usize,
    pub head_dim: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Contract {
    pub layers: Vec<LayerNames>,
    pub positions: bool,
    pub vocab: usize,
    /// Texts a call takes: one, or any number.
    pub one_text: bool,
}

/// What `config.json` says beside the graph.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub context: usize,
    pub width: usize,
    pub end: Vec<u32>,
    vocab: Option<usize>,
}

fn refuse<T>(path: &Path, tensor: &str, got: impl Into<String>, want: impl Into<String>) -> Result<T> {
    let path = path.display().to_string();
    Err(RuntimeError::Tensor { path, tensor: tensor.into(), got: got.into(), want: want.into() })
}

/// The file of a folder, where exporters put it.
pub(super) fn file(folder: &Path) -> Result<PathBuf> {
    let places = ["model.onnx", "onnx/model.onnx"];
    places.iter().map(|name| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let why = format!("holds none of {}", places.join(", "));
        RuntimeError::Contract { path: folder.display().to_string(), why }
    })
}

pub(super) fn describe(folder: &Path) -> Result<Described> {
    let path = folder.join("config.json");
    let size = std::fs::metadata(&path).map_err(|source| RuntimeError::io(&path, source))?.len();
    let wrong = |why: String| RuntimeError::Contract { path: path.display().to_string(), why };
    if size > LARGEST_JSON {
        return Err(wrong(format!("{size} bytes are no configuration")));
    }
    let bytes = std::fs::read(&path).map_err(|source| RuntimeError::io(&path, source))?;
    let json: Json = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let size = |keys: &[&str]| {
        let value = keys.iter().find_map(|key| json.get(*key)?.as_u64());
        value.and_then(|value| usize::try_from(value).ok()).filter(|&value| value > 0)
    };
    let context = size(&["max_position_embeddings", "n_positions", "n_ctx"])
        .ok_or_else(|| wrong("max_position_embeddings is not a size".into()))?;
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let end = match json.get("eos_token_id") {
        Some(Json::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    };
    let width = size(&["hidden_size", "n_embd"]).unwrap_or(0);
    Ok(Described { context, width, end, vocab: size(&["vocab_size"]) })
}

impl Contract {
    /// Reads a session's inputs and outputs.
    pub(super) fn of(session: &Session, path: &Path) -> Result<Self> {
        let (inputs, outputs) = (session.inputs(), session.outputs());
        let ids = dims(need(inputs, path, "input_ids")?, path, TensorElementType::Int64, 2)?;
        let mask = dims(need(inputs, path, "attention_mask")?, path, TensorElementType::Int64, 2)?;
        let positions = find(inputs, "position_ids");
        let mut batches = vec![("input_ids", ids[0]), ("attention_mask", mask[0])];
        open(path, "input_ids", ids[1], "its second dimension")?;
        open(path, "attention_mask", mask[1], "its second dimension")?;
        if let Some(positions) = positions {
            let shape = dims(positions, path, TensorElementType::Int64, 2)?;
            open(path, "position_ids", shape[1], "its second dimension")?;
            batches.push(("position_ids", shape[0]));
        }
        let mut layers = Vec::new();
        let past = |layer: usize| ["key", "value"].map(|kind| format!("past_key_values.{layer}.{kind}"));
        let present = |layer: usize| ["key", "value"].map(|kind| format!("present.{layer}.{kind}"));
        while let Some(first) = find(inputs, &past(layers.len())[0]) {
            let (past, present) = (past(layers.len()), present(layers.len()));
            let key = dims(first, path, TensorElementType::Float32, 4)?;
            let value = dims(need(inputs, path, &past[1])?, path, TensorElementType::Float32, 4)?;
            for (name, shape) in past.iter().zip([&key, &value]) {
                let sized = |dim: i64| usize::try_from(dim).is_ok_and(|dim| dim > 0);
                if !sized(shape[1]) || !sized(shape[3]) || shape[1] != key[1] || shape[3] != key[3] {
                    return refuse(
                        path,
                        name,
                        format!("{shape:?}"),
                        "[batch, heads, past, width of a head], heads and width known and alike",
                    );
                }
                open(path, name, shape[2], "its third dimension")?;
            }
            for name in &present {
                dims(need(outputs, path, name)?, path, TensorElementType::Float32, 4)?;
            }
            batches.push(("past_key_values", key[0]));
            batches.push(("past_key_values", value[0]));
            layers.push(LayerNames { past, present, heads: key[1] as usize, head_dim: key[3] as usize });
        }
        if let Some(output) = outputs.iter().find(|output| output.name().starts_with("present."))
            && layers.is_empty()
        {
            return refuse(
                path,
                "past_key_values.0.key",
                format!("missing beside {}", output.name()),
                "a past for every present",
            );
        }
        if layers.is_empty() {
            return refuse(
                path,
                "past_key_values.0.key",
                "missing",
                "an export with its cache (--task text-generation-with-past)",
            );
        }
        let known = |name: &str| {
            ["input_ids", "attention_mask", "position_ids"].contains(&name)
                || layers.iter().any(|layer| layer.past.iter().any(|past| past == name))
        };
        if let Some(input) = inputs.iter().find(|input| !known(input.name())) {
            return refuse(
                path,
                input.name(),
                "an input that a causal model has no use for",
                "input_ids, attention_mask, position_ids and past_key_values.N.key and .value, N from 0",
            );
        }
        let extra = |output: &&Outlet| {
            output.name().starts_with("present.")
                && layers.iter().all(|layer| layer.present.iter().all(|present| present != output.name()))
        };
        if let Some(output) = outputs.iter().find(extra) {
            return refuse(
                path,
                output.name(),
                "an output without its input",
                "past and present for the same layers",
            );
        }
        let logits = dims(need(outputs, path, "logits")?, path, TensorElementType::Float32, 3)?;
        let Some(vocab) = usize::try_from(logits[2]).ok().filter(|&vocab| vocab > 0) else {
            return refuse(
                path,
                "logits",
                format!("{logits:?}"),
                "[batch, rows, vocabulary], the vocabulary known",
            );
        };
        let one_text = batches.iter().any(|(_, batch)| *batch == 1);
        if let Some((name, batch)) = batches.iter().find(|(_, batch)| *batch >= 0 && *batch != 1) {
            return refuse(path, name, format!("made for batches of {batch}"), "batches of 1 or of any size");
        }
        Ok(Self { layers, positions: positions.is_some(), vocab, one_text })
    }

    /// Holds the vocabulary against the configuration's and the tokeniser's, where there is one.
    pub(super) fn check(&self, described: &Described, folder: &Path, path: &Path) -> Result<()> {
        if let Some(said) = described.vocab
            && said != self.vocab
        {
            return refuse(
                path,
                "logits",
                format!("{} wide", self.vocab),
                format!("{said}, the vocab_size of config.json"),
            );
        }
        let tokenizer = folder.join("tokenizer.json");
        if tokenizer.is_file() {
            let tokens = Tokenizer::from_file(&tokenizer)?.vocab();
            // Models are often padded to a round number; the other way round a token has no logit.
            if tokens > self.vocab {
                return refuse(
                    path,
                    "logits",
                    format!("{} wide", self.vocab),
                    format!("at least {tokens}, the tokens of tokenizer.json"),
                );
            }
        }
        Ok(())
    }
}

fn find<'a>(list: &'a [Outlet], name: &str) -> Option<&'a Outlet> {
    list.iter().find(|outlet| outlet.name() == name)
}

fn need<'a>(list: &'a [Outlet], path: &Path, name: &str) -> Result<&'a Outlet> {
    let Some(outlet) = find(list, name) else {
        let known = list.iter().map(Outlet::name).take(6).collect::<Vec<_>>().join(", ");
        return refuse(
            path,
            name,
            format!("missing; there are {known}"),
            "an export of a causal model with its cache",
        );
    };
    Ok(outlet)
}

/// Dimensions of a tensor of this type and rank; -1 where any size goes.
fn dims(outlet: &Outlet, path: &Path, ty: TensorElementType, rank: usize) -> Result<Vec<i64>> {
    let (got, shape) = (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape());
    match shape {
        Some(shape) if got == Some(ty) && shape.len() == rank => Ok(shape.to_vec()),
        _ => {
            let got = match (got, shape) {
                (Some(got), Some(shape)) => format!("{got} of rank {}", shape.len()),
                _ => outlet.dtype().to_string(),
            };
            refuse(path, outlet.name(), got, format!("{ty} of rank {rank}"))
        }
    }
}

fn open(path: &Path, tensor: &str, dim: i64, which: &str) -> Result<()> {
    match dim < 0 {
        true => Ok(()),
        false => refuse(path, tensor, format!("{which} fixed at {dim}"), "a dimension of any size"),
    }
}
