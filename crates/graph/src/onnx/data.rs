//! Tensors of a file: inside it, or in files beside it, never copied where they can be mapped.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use prost::bytes::Bytes;

use super::proto::{Entry, TensorProto, elem};
use crate::quantize::{Quantized, dequantize};
use crate::tensor::checked_count;
use crate::weights::Mapped;
use crate::{GraphError, Result, TensorSource};

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Initializer {
    pub name: String,
    pub shape: Vec<usize>,
    /// Element type.
    pub kind: i32,
    /// Little-endian.
    pub bytes: Bytes,
}

impl Initializer {
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The numbers of a tensor of 64-bit integers.
    pub(super) fn integers(&self) -> Option<Vec<i64>> {
        let eights = self.bytes.as_chunks().0.iter();
        (self.kind == elem::INT64).then(|| eights.map(|&eight| i64::from_le_bytes(eight)).collect())
    }

    /// The numbers of a tensor of floats.
    pub(super) fn floats(&self) -> Option<Vec<f32>> {
        (self.kind == elem::FLOAT).then(|| floats(&self.bytes))
    }
}

/// Reads tensors; keeps the files beside the model that they lie in.
pub(super) struct Files {
    /// The model, for messages.
    label: String,
    /// The folder that holds the model; `None` for a model that is not a file.
    folder: Option<PathBuf>,
    open: HashMap<String, OpenFile>,
}

/// A file beside the model: its bytes, and which tensors lie where.
type OpenFile = (Bytes, Vec<(Range<usize>, String)>);

impl Files {
    pub(super) fn new(label: &str, folder: Option<&Path>) -> Self {
        Self { label: label.into(), folder: folder.map(Into::into), open: HashMap::new() }
    }

    /// Checks a tensor and finds its bytes.
    pub(super) fn load(&mut self, tensor: TensorProto) -> Result<Initializer> {
        let label = self.label.clone();
        let name = tensor.name.clone();
        self.bytes_of(tensor).map_err(|error| match error {
            Fault::Why(why) => GraphError::malformed(label, format!("tensor {name}: {why}")),
            Fault::File(error) => error,
        })
    }

    fn bytes_of(&mut self, tensor: TensorProto) -> Result<Initializer, Fault> {
        let kind = tensor.data_type;
        let negative = |dim: &i64| format!("dimension {dim}");
        let shape = tensor
            .dims
            .iter()
            .map(|dim| usize::try_from(*dim).map_err(|_| negative(dim)))
            .collect::<Result<Vec<_>, _>>()?;
        let bits = elem::bits(kind).ok_or_else(|| format!("{} is not read", elem::name(kind)))?;
        let count = checked_count(&shape);
        let size = count.and_then(|count| count.checked_mul(bits)).map(|bits| bits.div_ceil(8));
        let (Some(count), Some(size)) = (count, size) else {
            return Err(format!("shape {shape:?} overflows").into());
        };
        let external = match tensor.data_location {
            0 => false,
            1 => true,
            other => return Err(format!("data location {other}").into()),
        };
        let fields = [
            !tensor.raw_data.is_empty(),
            !tensor.float_data.is_empty(),
            !tensor.int32_data.is_empty(),
            !tensor.int64_data.is_empty(),
            !tensor.string_data.is_empty(),
            !tensor.double_data.is_empty(),
            !tensor.uint64_data.is_empty(),
            external || !tensor.external_data.is_empty(),
        ];
        if fields.iter().filter(|used| **used).count() > 1 {
            return Err("its data is in two fields".to_owned().into());
        }
        if !external && !tensor.external_data.is_empty() {
            return Err("it names a file, and says that its data is in the model".to_owned().into());
        }
        if tensor.segment.is_some() || !tensor.string_data.is_empty() {
            return Err("segments and strings are not read".to_owned().into());
        }
        let bytes = if external {
            self.external(&tensor.name, &tensor.external_data, size)?
        } else if !tensor.raw_data.is_empty() {
            tensor.raw_data
        } else {
            typed(&tensor, kind, count)?
        };
        if bytes.len() != size {
            let kind = elem::name(kind);
            return Err(format!("{} bytes, shape {shape:?} of {kind} takes {size}", bytes.len()).into());
        }
        Ok(Initializer { name: tensor.name, shape, kind, bytes })
    }

    fn external(&mut self, name: &str, entries: &[Entry], size: usize) -> Result<Bytes, Fault> {
        let mut values: HashMap<&str, &str> = HashMap::new();
        for Entry { key, value } in entries {
            if !matches!(key.as_str(), "location" | "offset" | "length" | "checksum") {
                return Err(format!("unknown key {key:?} of external data").into());
            }
            if values.insert(key, value).is_some() {
                return Err(format!("key {key:?} of external data is given twice").into());
            }
        }
        let number = |key: &str, default: usize| match values.get(key) {
            None => Ok(default),
            Some(text) => text.parse::<usize>().map_err(|_| format!("{key} {text:?} of external data")),
        };
        let location = *values.get("location").ok_or("external data without a location")?;
        let (offset, length) = (number("offset", 0)?, number("length", size)?);
        if length != size {
            return Err(format!("{length} bytes of external data, its shape takes {size}").into());
        }
        if !self.open.contains_key(location) {
            let path = self.beside(location)?;
            let file = Mapped::open(&path)?;
            self.open.insert(location.into(), (Bytes::from_owner(file), Vec::new()));
        }
        let Some((file, places)) = self.open.get_mut(location) else {
            return Err("its file is gone".to_owned().into());
        };
        let end = offset.checked_add(size).filter(|&end| end <= file.len());
        let Some(end) = end else {
            let len = file.len();
            return Err(format!("{size} bytes at {offset} of {location}, which has {len}").into());
        };
        places.push((offset..end, name.into()));
        Ok(file.slice(offset..end))
    }

    /// The path of a file that a model names, which must be a regular file in the model's folder or below it.
    fn beside(&self, location: &str) -> Result<PathBuf, Fault> {
        let Some(folder) = &self.folder else {
            return Err(format!("its data is in {location:?}, and a model in memory has no folder").into());
        };
        let plain = !location.is_empty()
            && !location.contains(['\\', '\0'])
            && Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(format!("its data is in {location:?}, which is not a path below the model").into());
        }
        let path = folder.join(location);
        let real = path.canonicalize().map_err(|source| GraphError::io(&path, source))?;
        let home = folder.canonicalize().map_err(|source| GraphError::io(folder, source))?;
        if !real.starts_with(home) {
            return Err(format!("its data is in {location:?}, which leads out of the model's folder").into());
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let meta = std::fs::metadata(&real).map_err(|source| GraphError::io(&path, source))?;
            if meta.is_file() && meta.nlink() > 1 {
                let why = "which has other names (hard links): it may be somebody else's file; copy it";
                return Err(format!("its data is in {location:?}, {why}").into());
            }
        }
        Ok(path)
    }

    /// Checks that no two tensors share bytes, unless they are the same bytes altogether.
    pub(super) fn finish(self) -> Result<()> {
        for (location, (_, mut places)) in self.open {
            places.retain(|(place, _)| !place.is_empty());
            places.sort_by_key(|(place, _)| (place.start, place.end));
            let clash =
                places.windows(2).find(|pair| pair[0].0 != pair[1].0 && pair[1].0.start < pair[0].0.end);
            if let Some([(_, one), (_, other)]) = clash {
                let why = format!("tensors {one} and {other} overlap in {location}");
                return Err(GraphError::malformed(self.label, why));
            }
        }
        Ok(())
    }
}

enum Fault {
    /// Something about the tensor.
    Why(String),
    /// Something about a file.
    File(GraphError),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Why(why)
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Self::Why(why.into())
    }
}

impl From<GraphError> for Fault {
    fn from(error: GraphError) -> Self {
        Self::File(error)
    }
}

/// Bytes of data that is not raw.
fn typed(tensor: &TensorProto, kind: i32, count: usize) -> Result<Bytes, String> {
    let len = [
        tensor.float_data.len(),
        tensor.int32_data.len(),
        tensor.int64_data.len(),
        tensor.double_data.len(),
        tensor.uint64_data.len(),
    ];
    let given: usize = len.iter().sum();
    let bytes: Vec<u8> = match kind {
        _ if given == 0 => Vec::new(),
        elem::FLOAT if len[0] == given => crate::atomic::le_bytes(&tensor.float_data),
        elem::INT64 if len[2] == given => {
            tensor.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        elem::INT32 if len[1] == given => {
            tensor.int32_data.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        elem::UINT8 | elem::BOOL if len[1] == given => {
            let byte = |&value: &i32| u8::try_from(value).map_err(|_| format!("{value} is not a byte"));
            tensor.int32_data.iter().map(byte).collect::<Result<_, _>>()?
        }
        _ => return Err(format!("{} in a field of another type", elem::name(kind))),
    };
    match given == count {
        true => Ok(bytes.into()),
        false => Err(format!("{given} numbers for {count}")),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
}

/// Floats as they lie in a file.
pub(super) struct Plain {
    pub bytes: Bytes,
    /// Numbers a row.
    pub row: usize,
}

impl TensorSource for Plain {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        Ok(floats(&self.bytes[4 * rows.start * self.row..4 * rows.end * self.row]))
    }
}

/// The transpose of a matrix of floats `[ins, outs]`.
pub(super) struct Turned {
    pub bytes: Bytes,
    pub outs: usize,
    pub ins: usize,
}

impl TensorSource for Turned {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let numbers = self.bytes.as_chunks::<4>().0;
        let mut out = vec![0.0; rows.len() * self.ins];
        // Along the file's rows, so that each of its lines is read once.
        for (column, line) in numbers.chunks_exact(self.outs.max(1)).enumerate() {
            for (row, &four) in line[rows.clone()].iter().enumerate() {
                out[row * self.ins + column] = f32::from_le_bytes(four);
            }
        }
        Ok(out)
    }
}

/// A matrix in blocks of integers, as [`Quantized`] has it.
pub(super) struct Blocks {
    pub shape: [usize; 2],
    pub bits: usize,
    pub block: usize,
    pub packed: Bytes,
    pub scales: Bytes,
    /// The middle of the range where there are none.
    pub zeros: Option<Bytes>,
}

impl Blocks {
    pub(super) fn blocks(&self) -> usize {
        self.shape[1].div_ceil(self.block)
    }

    /// Checks the parts' lengths against the shape.
    pub(super) fn check(&self) -> Result<(), String> {
        if !matches!(self.bits, 4 | 8) || ![16, 32, 64, 128].contains(&self.block) {
            return Err(format!("{} bits in blocks of {}", self.bits, self.block));
        }
        let [outs, _] = self.shape;
        let blocks = outs.checked_mul(self.blocks()).ok_or("its size overflows")?;
        let want = |part: &str, got: usize, want: Option<usize>| match want {
            Some(want) if want == got => Ok(()),
            _ => Err(format!("{got} bytes of {part} for {:?}", self.shape)),
        };
        want("codes", self.packed.len(), blocks.checked_mul(self.block * self.bits / 8))?;
        want("scales", self.scales.len(), blocks.checked_mul(4))?;
        let row = (self.blocks() * self.bits).div_ceil(8);
        self.zeros.as_ref().map_or(Ok(()), |zeros| want("zero points", zeros.len(), outs.checked_mul(row)))
    }
}

impl TensorSource for Blocks {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let row = |bytes: &Bytes, width: usize| bytes[rows.start * width..rows.end * width].to_vec();
        let zeros_a_row = (self.blocks() * self.bits).div_ceil(8);
        let quantized = Quantized {
            bits: self.bits,
            block: self.block,
            shape: [rows.len(), self.shape[1]],
            packed: row(&self.packed, self.blocks() * self.block * self.bits / 8),
            scales: floats(&row(&self.scales, 4 * self.blocks())),
            zeros: match &self.zeros {
                Some(zeros) => row(zeros, zeros_a_row),
                None => vec![if self.bits == 4 { 0x88 } else { 0x80 }; rows.len() * zeros_a_row],
            },
        };
        Ok(dequantize(&quantized))
    }
}
