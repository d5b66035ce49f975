//! Checkpoints as ONNX files of their own, for use elsewhere.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use pilotfish_architectures::{
    CausalNetwork, Checkpoint, EncoderNetwork, LayerInputs, MaskedNetwork, Network,
};
use pilotfish_graph::onnx::{self, Lowering};
use pilotfish_graph::{DType, Dim, Graph, Storage, passes};

use crate::{PipelineError, Result};

/// Name of the file that is written; its weights lie beside it under this name and `.bin`.
const MODEL: &str = "model.onnx";

/// Which operators a converted model is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operators {
    /// Official ONNX only, opset 23: attention and norms are one operator each.
    #[default]
    Standard,
    /// ONNX Runtime's own where they are faster, over a cache that the host owns.
    Fused,
    /// Official ONNX only, nothing composite.
    Primitive,
}

impl FromStr for Operators {
    type Err = PipelineError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "standard" => Ok(Self::Standard),
            "fused" => Ok(Self::Fused),
            "primitive" => Ok(Self::Primitive),
            _ => Err(PipelineError::Choice {
                option: "lowering",
                value: text.into(),
                known: "standard, fused, primitive",
            }),
        }
    }
}

/// The storage of a name: `f32`, `int8` or `int4`, integers in blocks of 32.
///
/// # Errors
/// Another name.
pub fn storage(text: &str) -> Result<Storage> {
    match text {
        "f32" => Ok(Storage::F32),
        "int8" => Ok(Storage::Int8 { block: 32 }),
        "int4" => Ok(Storage::Int4 { block: 32 }),
        _ => Err(PipelineError::Choice { option: "storage", value: text.into(), known: "f32, int8, int4" }),
    }
}

/// How a checkpoint is converted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversion {
    /// How matrices are stored.
    pub storage: Storage,
    /// Which operators are used.
    pub operators: Operators,
    /// Whether files that are there already are replaced.
    pub force: bool,
}

/// Writes a checkpoint as `model.onnx` and `model.onnx.bin` into a folder, which is made if need be, and returns
/// the model's path. Both appear whole or not at all.
///
/// A language model takes `ids` and `positions` `[B, T]`, `mask` `[B, 1, T, L+T]` (added to scores; also
/// `mask_local` where some layers have a window), `past_key.{layer}` and `past_value.{layer}`
/// `[B, kv_heads, L, head_dim]`, and gives `logits` `[B, T, V]`, `key.{layer}` and `value.{layer}` of all `L+T` rows.
/// With [`Operators::Fused`], `B` is 1 and the cache is as [`Lowering::Fused`] says. An encoder takes `ids`,
/// `positions` and `mask` `[B, 1, T, T]` and gives `states` `[B, T, d]`; a masked diffusion model takes `mask`
/// `[1, 1, T, T]` and gives `logits` `[B, T, V]`.
///
/// # Errors
/// A checkpoint that cannot be opened; a folder that is a file or holds a model already; operators that do not
/// exist for the network; the file system.
pub fn convert(from: &Path, into: &Path, conversion: &Conversion) -> Result<PathBuf> {
    if into.exists() && !into.is_dir() {
        return Err(PipelineError::malformed(into, "not a folder"));
    }
    let path = into.join(MODEL);
    let there = [path.clone(), into.join(format!("{MODEL}.bin"))];
    if let Some(path) = there.iter().find(|path| path.symlink_metadata().is_ok() && !conversion.force) {
        return Err(PipelineError::Exists { path: path.display().to_string() });
    }
    let checkpoint = Checkpoint::open(from)?;
    let (graph, lowering) = match checkpoint.network() {
        Network::Causal(network) => {
            let batch = match conversion.operators {
                Operators::Fused => 1.into(),
                _ => Dim::symbol("B"),
            };
            let config = network.config();
            if conversion.operators == Operators::Fused && config.head_dim % 16 != 0 {
                return Err(PipelineError::NotFused { head_dim: config.head_dim });
            }
            (with_cache(network, batch)?, conversion.operators.lowering(config.context))
        }
        Network::Masked(network) => {
            let context = network.network().config().context;
            (network.whole()?, conversion.operators.lowering(context))
        }
        Network::Encoder(network) => {
            (network.graph()?, conversion.operators.lowering(network.config().context))
        }
    };
    let graph = match conversion.storage {
        Storage::F32 => graph,
        storage => passes::store(&graph, |_| Some(storage))?,
    };
    let graph = match conversion.operators {
        // One long product streams memory better than three short ones.
        Operators::Fused => passes::merge_linears(&graph)?,
        _ => graph,
    };
    let made = !into.exists();
    std::fs::create_dir_all(into).map_err(|source| PipelineError::io(into, source))?;
    let written = onnx::write(&graph, lowering, &path);
    if written.is_err() && made {
        // It is empty: what could not be written whole is gone.
        let _ = std::fs::remove_dir(into);
    }
    written?;
    Ok(path)
}

impl Operators {
    fn lowering(self, positions: usize) -> Lowering {
        match self {
            Self::Standard => Lowering::Standard,
            Self::Fused => Lowering::Fused { positions },
            Self::Primitive => Lowering::Primitive,
        }
    }
}

/// A whole language model over a cache.
fn with_cache(network: &CausalNetwork, batch: Dim) -> Result<Graph> {
    let config = network.config();
    let mut g = Graph::new(config.family.clone());
    let (rows, past) = (Dim::symbol("T"), Dim::symbol("L"));
    let ids = g.input("ids", vec![batch.clone(), rows.clone()], DType::I64)?;
    let positions = g.input("positions", vec![batch.clone(), rows.clone()], DType::I64)?;
    let mask_shape = vec![batch.clone(), 1.into(), rows.clone(), &past + &rows];
    let mask = g.input("mask", mask_shape.clone(), DType::F32)?;
    let mask_local = match network.has_window(0..config.layers) {
        true => Some(g.input("mask_local", mask_shape, DType::F32)?),
        false => None,
    };
    let mut cache = Vec::new();
    for layer in 0..config.layers {
        let shape: Vec<Dim> =
            vec![batch.clone(), config.kv_heads.into(), past.clone(), config.head_dim.into()];
        let keys = g.input(&format!("past_key.{layer}"), shape.clone(), DType::F32)?;
        cache.push((keys, g.input(&format!("past_value.{layer}"), shape, DType::F32)?));
    }
    let inputs = LayerInputs { positions, mask, mask_local, past: Some(cache), added: None };
    let x = network.embed(&mut g, ids)?;
    let (x, cache) = network.layers(&mut g, 0..config.layers, x, &inputs)?;
    let x = network.final_norm(&mut g, x)?;
    let logits = network.head(&mut g, x)?;
    g.output("logits", logits)?;
    for (layer, (keys, values)) in cache.into_iter().enumerate() {
        g.output(&format!("key.{layer}"), keys)?;
        g.output(&format!("value.{layer}"), values)?;
    }
    Ok(g)
}
