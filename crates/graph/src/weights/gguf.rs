//! GGUF, versions 2 and 3, little-endian: metadata and (quantised) tensors in one file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{Encoding, Mapped, Stored, Weights};
use crate::tensor::checked_count;
use crate::{GraphError, Result, Tensor, TensorSource};

/// A value of a GGUF file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Metadata {
    /// Any integer type.
    Int(i128),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type.
    List(Vec<Metadata>),
}

/// An open GGUF file.
#[derive(Clone, Debug)]
pub struct Gguf {
    file: Mapped,
    metadata: BTreeMap<String, Metadata>,
    weights: Weights,
    places: BTreeMap<String, Range<usize>>,
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// Anything that is not a whole, consistent GGUF file; the error names what is wrong. Parts of a split
    /// file (`split.count` above 1) are refused.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(path)?;
        let malformed = |why: String| GraphError::malformed(path, why);
        let mut reader = Reader { bytes: file.bytes(), at: 0, values: 0 };
        let header =
            read_header(&mut reader).map_err(|why| malformed(format!("{why} (at byte {})", reader.at)))?;
        if let Some(Metadata::Int(parts)) = header.metadata.get("split.count")
            && *parts > 1
        {
            return Err(malformed(format!("one of {parts} parts of a split file; join them first")));
        }
        let alignment = match header.metadata.get("general.alignment") {
            None => 32,
            Some(Metadata::Int(value)) if (1..=1 << 20).contains(value) && value.count_ones() == 1 => {
                *value as usize
            }
            Some(other) => {
                return Err(malformed(format!("general.alignment is {other:?}, not a power of two")));
            }
        };
        let data = reader.at.next_multiple_of(alignment);
        let mut weights = Weights::default();
        let mut places = BTreeMap::new();
        let mut taken: Vec<Range<usize>> = Vec::new();
        for info in header.tensors {
            let why = |what: &str| malformed(format!("tensor {}: {what}", info.name));
            if info.offset % alignment as u64 != 0 {
                return Err(why("its offset is not aligned"));
            }
            let row = info.shape.last().copied().unwrap_or(1);
            if row % info.encoding.block() != 0 {
                return Err(why(&format!("rows of {row} are not whole blocks of {}", info.encoding.block())));
            }
            let count = checked_count(&info.shape).ok_or_else(|| why("its shape overflows"))?;
            let bytes = info.encoding.bytes(count).ok_or_else(|| why("its size overflows"))?;
            let start = usize::try_from(info.offset).ok().and_then(|offset| data.checked_add(offset));
            let place = start.and_then(|start| Some(start..start.checked_add(bytes)?));
            let Some(place) = place.filter(|place| place.end <= file.bytes().len()) else {
                return Err(why("it reaches past the end of the file"));
            };
            taken.push(place.clone());
            let source = FileTensor::new(file.clone(), place.clone(), info.encoding, &info.shape);
            let tensor = Tensor::from_source(info.shape, Arc::new(source));
            places.insert(info.name.clone(), place);
            weights
                .insert(info.name, Stored { tensor, encoding: info.encoding, bytes })
                .map_err(|error| malformed(error.to_string()))?;
        }
        taken.sort_by_key(|place| (place.start, place.end));
        if let Some(pair) = taken.windows(2).find(|pair| pair[1].start < pair[0].end) {
            return Err(malformed(format!("two tensors share bytes {}..{}", pair[1].start, pair[0].end)));
        }
        Ok(Self { file, metadata: header.metadata, weights, places })
    }

    /// The tensors, shapes in row-major order (`[out, in]` for matrices).
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The blocks of a tensor as they lie in the file, row by row.
    ///
    /// # Errors
    /// No such tensor.
    pub fn raw(&self, name: &str) -> Result<(Encoding, &[u8])> {
        let stored = self.weights.stored(name)?;
        Ok((stored.encoding, &self.file.bytes()[self.places[name].clone()]))
    }

    /// All metadata.
    pub fn metadata(&self) -> &BTreeMap<String, Metadata> {
        &self.metadata
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.require(key)? {
            Metadata::Text(text) => Ok(text),
            _ => Err(self.wrong(key, "a text")),
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.require(key)? {
            Metadata::Int(value) => usize::try_from(*value).map_err(|_| self.wrong(key, "a size")),
            _ => Err(self.wrong(key, "a whole number")),
        }
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<f64> {
        match self.require(key)? {
            Metadata::Float(value) => Ok(*value),
            Metadata::Int(value) => Ok(*value as f64),
            _ => Err(self.wrong(key, "a number")),
        }
    }

    /// A list.
    pub fn list(&self, key: &str) -> Result<&[Metadata]> {
        match self.require(key)? {
            Metadata::List(list) => Ok(list),
            _ => Err(self.wrong(key, "a list")),
        }
    }

    /// Whether the metadata has a key.
    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn require(&self, key: &str) -> Result<&Metadata> {
        self.metadata
            .get(key)
            .ok_or_else(|| GraphError::malformed(self.path(), format!("metadata lacks {key}")))
    }

    fn wrong(&self, key: &str, want: &str) -> GraphError {
        GraphError::malformed(self.path(), format!("metadata {key} is not {want}"))
    }
}

/// A tensor's region of a mapped file.
pub(super) struct FileTensor {
    file: Mapped,
    place: Range<usize>,
    encoding: Encoding,
    /// Numbers a row.
    row: usize,
}

impl FileTensor {
    pub(super) fn new(file: Mapped, place: Range<usize>, encoding: Encoding, shape: &[usize]) -> Self {
        // A shape with a 0 in front may overflow behind it, and has no numbers to read.
        let row = shape.get(1..).map_or(Some(1), checked_count).unwrap_or(0);
        Self { file, place, encoding, row }
    }
}

impl TensorSource for FileTensor {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        let bytes = &self.file.bytes()[self.place.clone()];
        // A row may be shorter than a block only when the shape has one dimension: decode whole blocks then.
        let (first, last) = (rows.start * self.row, rows.end * self.row);
        let block = self.encoding.block();
        let blocks = first / block..last.div_ceil(block);
        let width = self.encoding.block_bytes();
        self.encoding.decode(&bytes[blocks.start * width..blocks.end * width], &mut out);
        out.truncate(last - blocks.start * block);
        out.drain(..first - blocks.start * block);
        Ok(out)
    }
}

struct Header {
    metadata: BTreeMap<String, Metadata>,
    tensors: Vec<TensorInfo>,
}

struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
}

/// Bytes with a position. Every read is checked; nothing is allocated for a count that was only claimed.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Metadata values so far.
    values: usize,
}

/// More metadata values than this are refused, since a byte of the file becomes a [`Metadata`]. Large
/// vocabularies need about a million.
const MOST_VALUES: usize = 1 << 23;

type Parse<T> = std::result::Result<T, String>;

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Parse<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("{count} bytes wanted, {} left", self.bytes.len() - self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parse<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Parse<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parse<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Parse<String> {
        let len = usize::try_from(self.u64()?).map_err(|_| "a text too long for memory".to_owned())?;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text that is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32, nested: bool) -> Parse<Metadata> {
        self.values += 1;
        if self.values > MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} metadata values"));
        }
        Ok(match kind {
            0 => Metadata::Int(u8::from_le_bytes(self.array()?).into()),
            1 => Metadata::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Metadata::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Metadata::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Metadata::Int(u32::from_le_bytes(self.array()?).into()),
            5 => Metadata::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Metadata::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()?[0] {
                flag @ 0..=1 => Metadata::Bool(flag == 1),
                other => return Err(format!("a truth value of {other}")),
            },
            8 => Metadata::Text(self.text()?),
            9 if !nested => {
                let inner = self.u32()?;
                let count = self.u64()?;
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.value(inner, true)?);
                }
                Metadata::List(list)
            }
            9 => return Err("a list of lists".into()),
            10 => Metadata::Int(self.u64()?.into()),
            11 => Metadata::Int(i64::from_le_bytes(self.array()?).into()),
            12 => Metadata::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("metadata of unknown type {other}")),
        })
    }
}

fn read_header(reader: &mut Reader<'_>) -> Parse<Header> {
    if reader.take(4)? != b"GGUF" {
        return Err("not a GGUF file".into());
    }
    let version = reader.u32()?;
    if (2..=3).contains(&version.swap_bytes()) {
        return Err("a big-endian file; only little-endian ones are read".into());
    }
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version}; 2 and 3 are read"));
    }
    let (tensors, entries) = (reader.u64()?, reader.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind, false).map_err(|why| format!("{key}: {why}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("metadata {key} is given twice"));
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = reader.text()?;
        let rank = reader.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!("tensor {name}: {rank} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let dim = usize::try_from(reader.u64()?).ok().filter(|&dim| dim > 0);
            shape.push(dim.ok_or_else(|| format!("tensor {name}: a dimension of 0 or too large"))?);
        }
        // The file lists the fastest-running dimension first.
        shape.reverse();
        let encoding = match reader.u32()? {
            0 => Encoding::F32,
            1 => Encoding::F16,
            2 => Encoding::Q4_0,
            3 => Encoding::Q4_1,
            6 => Encoding::Q5_0,
            7 => Encoding::Q5_1,
            8 => Encoding::Q8_0,
            10 => Encoding::Q2K,
            11 => Encoding::Q3K,
            12 => Encoding::Q4K,
            13 => Encoding::Q5K,
            14 => Encoding::Q6K,
            28 => Encoding::F64,
            30 => Encoding::Bf16,
            other => return Err(format!("tensor {name}: ggml type {other} is not read here")),
        };
        infos.push(TensorInfo { name, shape, encoding, offset: reader.u64()? });
    }
    Ok(Header { metadata, tensors: infos })
}
