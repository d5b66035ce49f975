//! Safetensors: single files, and folders of one file or of shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::path::{Component, Path};
use std::sync::Arc;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Error, IgnoredAny, MapAccess};

use super::gguf::FileTensor;
use super::{Encoding, Mapped, Stored, Weights};
use crate::atomic::{Pending, le_bytes};
use crate::tensor::checked_count;
use crate::{GraphError, Result, Tensor};

/// Opens a `.safetensors` file, or a folder that has `model.safetensors` or `model.safetensors.index.json`.
/// Integer tensors are left out.
///
/// # Errors
/// Not a whole, consistent file (gaps and overlaps between tensors included); a tensor of a float type other
/// than F64, F32, F16 and BF16; an index that is not one, that names files outside the folder (links included)
/// or tensors that are not in them.
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
        let files = read_index(&index)?;
        let mut there = BTreeMap::new();
        for file in files.values().collect::<BTreeSet<_>>() {
            there.insert(file, read_into(&inside(path, file)?, &mut weights)?);
        }
        if let Some((name, file)) = files.iter().find(|(name, file)| !there[file].contains(*name)) {
            return Err(GraphError::malformed(&index, format!("tensor {name} is not in {file}")));
        }
    } else {
        return Err(GraphError::malformed(path, "no model.safetensors and no model.safetensors.index.json"));
    }
    Ok(weights)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// An index of a sharded checkpoint: which file holds which tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let mapped = Mapped::open(path)?;
    if mapped.bytes().len() > LARGEST_HEADER {
        return Err(GraphError::malformed(path, "an index of more than 100 MB"));
    }
    let text = String::from_utf8(mapped.bytes().to_vec());
    let text = text.map_err(|_| GraphError::malformed(path, "an index that is not UTF-8"))?;
    let index: Index =
        serde_json::from_str(&text).map_err(|error| GraphError::malformed(path, error.to_string()))?;
    Ok(index.weight_map.0)
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

/// Adds the tensors of a file; all names in it, including those of integer buffers, are returned.
fn read_into(path: &Path, weights: &mut Weights) -> Result<BTreeSet<String>> {
    let file = Mapped::open(path)?;
    let (header, data) = read_header(file.bytes()).map_err(|why| GraphError::malformed(path, why))?;
    let mut names = BTreeSet::new();
    for (name, info) in header {
        names.insert(name.clone());
        let encoding = match info.dtype {
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
        let (start, end) = info.data_offsets;
        let source = FileTensor::new(file.clone(), data + start..data + end, encoding, &info.shape);
        let tensor = Tensor::from_source(info.shape, Arc::new(source));
        weights
            .insert(name, Stored { tensor, encoding, bytes: end - start })
            .map_err(|error| GraphError::malformed(path, error.to_string()))?;
    }
    Ok(names)
}

/// Headers and indices beyond this are refused, as the format demands.
const LARGEST_HEADER: usize = 100_000_000;

/// The tensors of a file by name, and where their bytes begin. The offsets have been checked: together the
/// tensors cover the rest of the file, each byte once.
///
/// The crate `safetensors` would do, but it takes the last of two entries with one name, and most of its
/// errors name no tensor.
fn read_header(bytes: &[u8]) -> std::result::Result<(BTreeMap<String, TensorInfo>, usize), String> {
    let (&len, rest) = bytes.split_first_chunk().ok_or("shorter than 8 bytes")?;
    let len = usize::try_from(u64::from_le_bytes(len)).ok().filter(|&len| len <= LARGEST_HEADER);
    let len = len.ok_or("a header of more than 100 MB: not a safetensors file")?;
    let header = rest.get(..len).ok_or_else(|| format!("a header of {len} bytes, {} left", rest.len()))?;
    // Copied, so that it stays UTF-8 even when somebody writes to the file.
    let header = String::from_utf8(header.to_vec()).map_err(|_| "a header that is not UTF-8")?;
    let Header(tensors) = serde_json::from_str(&header).map_err(|error| format!("header: {error}"))?;
    let mut order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut covered = 0;
    for (name, info) in order {
        let (start, end) = info.data_offsets;
        if start != covered || end < start {
            return Err(format!("tensor {name}: bytes {start}..{end} do not follow the {covered} before it"));
        }
        let bits = checked_count(&info.shape).and_then(|count| count.checked_mul(info.dtype.bitsize()));
        if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != end - start) {
            let (shape, dtype) = (&info.shape, info.dtype);
            return Err(format!("tensor {name}: {dtype} of shape {shape:?} in {} bytes", end - start));
        }
        covered = end;
    }
    if covered != rest.len() - len {
        return Err(format!("the tensors fill {covered} bytes of {}", rest.len() - len));
    }
    Ok((tensors, 8 + len))
}

/// A map in which no key occurs twice.
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        read_map(from, |_| false).map(Self)
    }
}

/// The map of a file's header, less the free text that may come with it.
struct Header(BTreeMap<String, TensorInfo>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        read_map(from, |key| key == METADATA).map(Self)
    }
}

const METADATA: &str = "__metadata__";

/// Reads a map without the keys to be skipped, and refuses keys that occur twice.
fn read_map<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
    skip: fn(&str) -> bool,
) -> std::result::Result<BTreeMap<String, T>, D::Error> {
    struct Visitor<T>(fn(&str) -> bool, PhantomData<T>);

    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a map by tensor name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut out = BTreeMap::new();
            let mut skipped = false;
            while let Some(key) = map.next_key::<String>()? {
                if out.contains_key(&key) || (skipped && self.0(&key)) {
                    return Err(A::Error::custom(format_args!("{key} is given twice")));
                }
                if self.0(&key) {
                    skipped = true;
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let value = map.next_value();
                let value = value.map_err(|error| A::Error::custom(format_args!("{key}: {error}")))?;
                out.insert(key, value);
            }
            Ok(out)
        }
    }

    from.deserialize_map(Visitor(skip, PhantomData))
}

/// Writes tensors as F32, atomically: the file appears whole or not at all.
///
/// # Errors
/// As [`write_as`].
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    write_as(path, Encoding::F32, tensors)
}

/// Writes tensors as F32 or BF16 (rounded to nearest, ties to even), atomically: the file appears whole or not
/// at all. One tensor is in memory at a time.
///
/// # Errors
/// Another encoding; two tensors of one name, or one named `__metadata__`; a tensor whose source does not
/// yield what its shape says; the operating system.
pub fn write_as<'a>(
    path: &Path,
    encoding: Encoding,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    if !matches!(encoding, Encoding::F32 | Encoding::Bf16) {
        let why = "safetensors are written as F32 or BF16".into();
        return Err(GraphError::Unsupported { what: encoding.to_string(), why });
    }
    let mut by_name = BTreeMap::new();
    for (name, tensor) in tensors {
        if name == METADATA || by_name.insert(name, tensor).is_some() {
            return Err(GraphError::DuplicateName { kind: "tensor", name: name.into() });
        }
    }
    let wrong = |name: &str, why: String| GraphError::Tensor { name: name.into(), why };
    let mut header = serde_json::Map::new();
    let mut offset = 0usize;
    for (name, tensor) in &by_name {
        let bytes = checked_count(tensor.shape()).and_then(|count| encoding.bytes(count));
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        let end = end.ok_or_else(|| wrong(name, format!("shape {:?} overflows", tensor.shape())))?;
        header.insert(
            (*name).to_owned(),
            serde_json::json!({
                "dtype": encoding.to_string(),
                "shape": tensor.shape(),
                "data_offsets": [offset, end],
            }),
        );
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut pending = Pending::create(path)?;
    pending.write(&(header.len() as u64).to_le_bytes())?;
    pending.write(header.as_bytes())?;
    for (name, tensor) in by_name {
        let values = tensor.to_f32()?;
        if values.len() != tensor.count() {
            return Err(wrong(name, format!("{} numbers do not fill {:?}", values.len(), tensor.shape())));
        }
        pending.write(&match encoding {
            Encoding::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => le_bytes(&values),
        })?;
    }
    pending.finish()
}
