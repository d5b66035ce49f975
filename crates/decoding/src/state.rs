//! Files of drafter state: what a drafter has learnt survives a restart, and a spoilt file is refused.
//!
//! Layout, little-endian: `PFST`, a kind (4 bytes), a version (u32), the payload's length (u64), the payload, and
//! the FNV-1a hash (u64) of all that comes before it. FNV-1a's step is a bijection of the hash for each byte, so
//! any single changed byte changes it.

use std::path::Path;

use crate::{DecodingError, Result};

const MAGIC: &[u8; 4] = b"PFST";
const VERSION: u32 = 1;
/// Magic, kind, version and length before the payload.
const HEAD: usize = 20;
/// Files beyond this are refused before they are read.
const LARGEST: u64 = 4 << 30;

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

pub(crate) fn bad(path: &Path, why: impl Into<String>) -> DecodingError {
    DecodingError::State { path: path.display().to_string(), why: why.into() }
}

fn io(path: &Path, source: std::io::Error) -> DecodingError {
    DecodingError::Io { path: path.display().to_string(), source }
}

/// Writes a payload; the file appears whole or not at all.
pub(crate) fn save(path: &Path, kind: &[u8; 4], payload: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEAD + payload.len() + 8);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(kind);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&fnv1a(&bytes).to_le_bytes());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    let part = path.with_file_name(name);
    let written = std::fs::write(&part, &bytes).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|source| {
        // Nothing half-written stays; that it could not be written is what is told.
        let _ = std::fs::remove_file(&part);
        io(path, source)
    })
}

/// Reads a payload of this kind.
pub(crate) fn load(path: &Path, kind: &[u8; 4]) -> Result<Vec<u8>> {
    let meta = std::fs::metadata(path).map_err(|source| io(path, source))?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(bad(path, "not a regular file of at most 4 GB"));
    }
    let mut bytes = std::fs::read(path).map_err(|source| io(path, source))?;
    if bytes.len() < HEAD + 8 || &bytes[..4] != MAGIC {
        return Err(bad(path, "not a state file"));
    }
    let end = bytes.len() - 8;
    if fnv1a(&bytes[..end]).to_le_bytes() != bytes[end..] {
        return Err(bad(path, "its checksum is wrong"));
    }
    if &bytes[4..8] != kind {
        return Err(bad(path, format!("it holds {:?}", String::from_utf8_lossy(&bytes[4..8]))));
    }
    if bytes[8..12] != VERSION.to_le_bytes() || bytes[12..20] != ((end - HEAD) as u64).to_le_bytes() {
        return Err(bad(path, "another version or length"));
    }
    bytes.truncate(end);
    bytes.drain(..HEAD);
    Ok(bytes)
}

/// Numbers into bytes.
#[derive(Default)]
pub(crate) struct Out(pub(crate) Vec<u8>);

impl Out {
    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, value: f32) {
        self.u32(value.to_bits());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

/// Bytes into numbers; `None` past the end.
pub(crate) struct In<'a>(pub(crate) &'a [u8]);

impl In<'_> {
    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }

    pub(crate) fn f32(&mut self) -> Option<f32> {
        self.u32().map(f32::from_bits)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    pub(crate) fn done(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }
}

/// Holds a state's reader against truncation at every byte and against every flipped bit.
#[cfg(test)]
pub(crate) fn spoil<T>(path: &Path, load: impl Fn(&Path) -> Result<T>) {
    let bytes = std::fs::read(path).expect("there");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(path, bytes).expect("writable");
        match load(path) {
            Err(DecodingError::State { .. }) => {}
            Err(other) => panic!("{what}: {other}"),
            Ok(_) => panic!("{what}: accepted"),
        }
    };
    for cut in 0..bytes.len() {
        refused(&bytes[..cut], &format!("cut at {cut}"));
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1 << bit;
            refused(&spoilt, &format!("byte {at}, bit {bit}"));
        }
    }
    std::fs::write(path, &bytes).expect("writable");
    assert!(load(path).is_ok());
    assert!(matches!(load(&path.with_file_name("missing")), Err(DecodingError::Io { .. })));
    assert!(matches!(load(path.parent().expect("a folder")), Err(DecodingError::State { .. })));
}
