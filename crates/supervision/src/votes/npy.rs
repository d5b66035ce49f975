//! Matrices in numpy's own format, versions 1 to 3.

use std::io::Read;
use std::path::Path;

use super::read::{Table, io, open, shown};
use super::{Scores, Votes};
use crate::{Result, SupervisionError};

/// Longest header, bytes.
const HEADER: usize = 1 << 16;

pub(super) fn read(path: &Path) -> Result<Table> {
    let mut file = open(path)?;
    let size = file.metadata().map_err(|source| io(path, source))?.len();
    let bad = |why: String| SupervisionError::Format { path: shown(path), why };
    let mut bytes = Vec::new();
    // Numbers are one to eight bytes, so a file is never much smaller than what it becomes.
    file.read_to_end(&mut bytes).map_err(|source| io(path, source))?;
    if bytes.len() as u64 != size {
        return Err(bad("the file changed while it was read".into()));
    }
    let (descr, shape, data) = header(&bytes).map_err(bad)?;
    let (items, voters) = shape;
    let cells = items.checked_mul(voters).ok_or_else(|| bad("the shape is too large".into()))?;
    let kind = descr.trim_start_matches(['<', '|']);
    let width: usize = match kind {
        "i1" | "u1" | "b1" => 1,
        "i2" | "u2" => 2,
        "i4" | "u4" | "f4" => 4,
        "i8" | "f8" => 8,
        _ => return Err(bad(format!("numbers of type {descr:?}; i1, i2, i4, i8, f4, f8 are read"))),
    };
    if cells.checked_mul(width) != Some(data.len()) {
        return Err(bad(format!("{} bytes of numbers for {items} x {voters} of {descr}", data.len())));
    }
    if items == 0 || voters == 0 {
        return Err(SupervisionError::Empty { what: "items or voters" });
    }
    if kind.starts_with('f') {
        let values = match width {
            4 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            _ => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        };
        return Ok(Table::Scores(Scores::with_gaps(items, voters, values)?));
    }
    let value = |index: usize| -> i64 {
        let mut full = [0u8; 8];
        let cell = &data[index * width..(index + 1) * width];
        full[..width].copy_from_slice(cell);
        if kind.starts_with('i') && cell[width - 1] >= 0x80 {
            full[width..].fill(0xff);
        }
        i64::from_le_bytes(full)
    };
    let (mut least, mut most) = (i64::MAX, i64::MIN);
    for index in 0..cells {
        least = least.min(value(index));
        most = most.max(value(index));
    }
    if least < -1 || most >= super::MAX_CLASSES as i64 {
        let index = (0..cells).find(|index| !(-1..super::MAX_CLASSES as i64).contains(&value(*index)));
        let index = index.unwrap_or_default();
        let (item, voter, got) = (index / voters, index % voters, value(index));
        return Err(SupervisionError::OutOfRange { item, voter, got, classes: super::MAX_CLASSES });
    }
    // At least two classes, even if one of them is never voted for.
    let classes = (most + 1).max(2) as usize;
    let votes: Vec<i32> = (0..cells).map(|index| value(index) as i32).collect();
    Ok(Table::Votes(Votes::from_dense(items, voters, classes, &votes)?))
}

/// Type, shape and data.
type Matrix<'a> = (String, (usize, usize), &'a [u8]);

fn header(bytes: &[u8]) -> Result<Matrix<'_>, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("not a numpy file")?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or("cut off in the header")?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or("cut off in the header")?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or("cut off in the header")?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        other => return Err(format!("version {other} of the format")),
    };
    if length > HEADER {
        return Err(format!("a header of {length} bytes"));
    }
    let text = rest.get(..length).ok_or("cut off in the header")?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is not UTF-8")?;
    let after = |key: &str| {
        text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start()).ok_or(format!("no {key:?}"))
    };
    let descr = after("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
    let descr = descr.ok_or("a type of several fields")?.0.to_owned();
    if !after("fortran_order")?.starts_with("False") {
        return Err("the matrix is stored by columns; np.ascontiguousarray stores it by rows".into());
    }
    let shape = after("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let shape: Result<Vec<usize>, _> = shape
        .ok_or("no shape")?
        .0
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::parse)
        .collect();
    match shape.map_err(|_| "a shape that is not of numbers")?[..] {
        [items, voters] => Ok((descr, (items, voters), &rest[length..])),
        ref other => Err(format!("{} dimensions, want items x voters", other.len())),
    }
}
