//! ONNX, written and read.
//!
//! [`write()`] lowers a graph to ONNX, with weights in an external file beside it, streamed tensor by tensor so
//! that the size of a model is bounded by the disk. [`Lowering`] says how composites are expressed. [`read`] makes
//! a graph of such a file, and of others that keep to the same operators; [`summarize`] says what is in any.

mod data;
mod emit;
mod lower;
mod nodes;
pub mod proto;
mod raise;
mod read;
mod switch;
mod wire;

pub use read::{Summary, from_bytes, read, summarize};
pub use switch::Switch;

use std::path::Path;

use prost::Message;

use crate::atomic::Pending;
use crate::{Graph, GraphError, Result};

/// How composite operations are expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Lowering {
    /// Everything in primitives ([`passes::expand`](crate::passes::expand)), opset 23.
    Primitive,
    /// Official operators only, opset 23: `Attention`, `RMSNormalization` and the like.
    Standard,
    /// ONNX Runtime's own operators where they are faster. Attention over a past with a batch of 1 and heads of
    /// a multiple of 8 becomes `GroupQueryAttention` over cache buffers that the host owns: the graph gains the
    /// inputs `seqlens` and `total` (int32, `[1]`: rows of the cache after the call, less one; the same), past
    /// and present are bound to one buffer of any capacity and rows are written in place. A past and a present
    /// in buffers of their own work too, at the price of a copy.
    Fused {
        /// Positions for which rotary tables are made.
        positions: usize,
    },
}

/// The key under which a file's metadata names the crate that has the operators of a domain.
fn provider_key(domain: &str) -> String {
    format!("{PROVIDER}{domain}")
}

const PROVIDER: &str = "operators of ";

/// Domains of operators that a file written by [`write()`] uses, and the crates that have them.
///
/// # Errors
/// A file that cannot be read or is not ONNX.
pub fn providers(path: &Path) -> Result<Vec<(String, String)>> {
    let bytes = std::fs::read(path).map_err(|source| GraphError::io(path, source))?;
    let model = proto::Model::decode(bytes.as_slice())
        .map_err(|error| GraphError::malformed(path, error.to_string()))?;
    let provider = |entry: proto::Entry| Some((entry.key.strip_prefix(PROVIDER)?.to_owned(), entry.value));
    Ok(model.metadata_props.into_iter().filter_map(provider).collect())
}

/// A model in memory: the message, and the bytes of its external weights if they were kept apart.
pub(crate) enum Weights<'a> {
    /// Inside the message.
    Inline,
    /// In a file beside it, of this name.
    Beside(&'a mut Pending, &'a str),
}

/// Writes `path` and, beside it, `path` with `.bin` appended, which holds the weights. Both appear whole or
/// not at all, the weights first.
///
/// # Errors
/// A weight that cannot be read, a dimension that cannot be expressed, or the file system.
pub fn write(graph: &Graph, lowering: Lowering, path: &Path) -> Result<()> {
    write_switched(graph, lowering, &[], path)
}

/// As [`write()`], with parts that each run may leave out, at no cost for what is left out: the model gains the
/// input `run`, a truth value for each switch, and each part becomes the branch of an `If`. Such a file is for
/// running; [`read`] refuses it.
///
/// # Errors
/// As [`write()`]; a switch whose marks or names are not there, or whose second mark does not follow from its first.
pub fn write_switched(graph: &Graph, lowering: Lowering, switches: &[Switch], path: &Path) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.push_str(".bin");
    let mut data = Pending::create(&path.with_file_name(&name))?;
    let model = emit::emit(graph, lowering, switches, Weights::Beside(&mut data, &name))?;
    let mut file = Pending::create(path)?;
    file.write(&model.encode_to_vec())?;
    // A model is never beside weights that are not its own, not even for a moment.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(GraphError::io(path, error));
        }
        _ => {}
    }
    data.finish()?;
    file.finish()
}

/// The bytes of a model with its weights inside.
///
/// # Errors
/// As [`write()`]; and a model above 2 GB, which protobuf cannot hold.
pub fn to_bytes(graph: &Graph, lowering: Lowering) -> Result<Vec<u8>> {
    let most = i32::MAX as usize;
    let refuse = || {
        let why = "a message holds at most 2 GB; write the weights to a file beside it".into();
        Err(GraphError::Unsupported { what: "model in one message".into(), why })
    };
    // Before all of it is in memory, where the weights alone are too many.
    if crate::cost::parameters(graph).iter().map(|param| param.bytes).sum::<u64>() > most as u64 {
        return refuse();
    }
    let model = emit::emit(graph, lowering, &[], Weights::Inline)?;
    if model.encoded_len() > most {
        return refuse();
    }
    Ok(model.encode_to_vec())
}
