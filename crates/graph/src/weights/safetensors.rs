//! Safetensors: single files, and folders of one file or of shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};

use super::gguf::FileTensor;
use super::{Encoding, Mapped, Stored, Weights};
use crate::{GraphError, Result, Tensor};

/// Opens a `.safetensors` file, or a folder that has `model.safetensors` or `model.safetensors.index.json`.
///
/// # Errors
/// Not a whole, consistent file; a tensor of a type other than F64, F32, F16 and BF16; an index that is not
/// one or that names files outside the folder.
pub fn open(path: &Path) -> Result<Weights> {
    let mut weights = Weights::default();
    if !path.is_dir() {
        read_into(path, &mut weights)?;
        return Ok(weights);
    }
    let single = path.join("model.safetensors");
    let index = path.join("model.safetensors.index.json");
    if single.is_file() {
        read_into(&single, &mut weights)?;
    } else if index.is_file() {
        for shard in shards(&index)? {
            read_into(&inside(path, &shard)?, &mut weights)?;
        }
    } else {
        return Err(GraphError::malformed(path, "no model.safetensors and no model.safetensors.index.json"));
    }
    Ok(weights)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let mapped = Mapped::open(index)?;
    if mapped.bytes().len() > 100 << 20 {
        return Err(GraphError::malformed(index, "an index of more than 100 MB"));
    }
    let index: Index = serde_json::from_slice(mapped.bytes())
        .map_err(|error| GraphError::malformed(index, error.to_string()))?;
    Ok(index.weight_map.into_values().collect())
}

/// The path of a shard, which must be a plain file name that leads to a file inside the folder.
fn inside(folder: &Path, shard: &str) -> Result<std::path::PathBuf> {
    let outside =
        || GraphError::malformed(folder, format!("the index names {shard:?}, which is not a file in it"));
    let mut parts = Path::new(shard).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
        || shard.contains(['\\', '\0'])
    {
        return Err(outside());
    }
    let path = folder.join(shard);
    let real = path.canonicalize().map_err(|source| GraphError::io(&path, source))?;
    let home = folder.canonicalize().map_err(|source| GraphError::io(folder, source))?;
    if real.starts_with(home) { Ok(path) } else { Err(outside()) }
}

fn read_into(path: &Path, weights: &mut Weights) -> Result<()> {
    let file = Mapped::open(path)?;
    let parsed = SafeTensors::deserialize(file.bytes())
        .map_err(|error| GraphError::malformed(path, error.to_string()))?;
    let start = file.bytes().as_ptr() as usize;
    for (name, view) in parsed.iter() {
        let encoding = match view.dtype() {
            Dtype::F64 => Encoding::F64,
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::Bf16,
            // Integer buffers (position ids of old exports) are not weights.
            Dtype::I64 | Dtype::I32 | Dtype::BOOL | Dtype::U8 => continue,
            other => {
                return Err(GraphError::malformed(
                    path,
                    format!("tensor {name}: type {other:?} is not read"),
                ));
            }
        };
        let offset = view.data().as_ptr() as usize - start;
        let place = offset..offset + view.data().len();
        let source = FileTensor::new(file.clone(), place, encoding, view.shape());
        let tensor = Tensor::from_source(view.shape(), Arc::new(source));
        weights
            .insert(name.to_owned(), Stored { tensor, encoding, bytes: view.data().len() })
            .map_err(|error| GraphError::malformed(path, error.to_string()))?;
    }
    Ok(())
}

/// Writes tensors as F32, atomically: the file appears whole or not at all.
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let tensors: BTreeMap<&str, &Tensor> = tensors.into_iter().collect();
    let mut header = serde_json::Map::new();
    let mut offset = 0usize;
    for (name, tensor) in &tensors {
        let end = offset + 4 * tensor.count();
        header.insert(
            (*name).to_owned(),
            serde_json::json!({ "dtype": "F32", "shape": tensor.shape(), "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    crate::atomic::write(
        path,
        |file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            Ok(())
        },
        tensors.values().map(|tensor| (*tensor).clone()),
    )
}
