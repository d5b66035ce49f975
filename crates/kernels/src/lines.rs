//! Packed weights as whole cache lines: owned, or borrowed from whoever mapped the file.

use bytemuck::{Pod, Zeroable};

use crate::{KernelError, Result};

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line([u8; LINE]);

// SAFETY: plain bytes, without padding: size and alignment are both 64.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// Cache lines that hold packed weights.
#[derive(Clone)]
pub(crate) enum Lines<'a> {
    Owned(Vec<Line>),
    Borrowed(&'a [Line]),
}

impl<'a> Lines<'a> {
    /// Zeros; at least `bytes` of them.
    pub(crate) fn zeros(bytes: usize) -> Self {
        Self::Owned(vec![Line([0; LINE]); bytes.div_ceil(LINE)])
    }

    /// Bytes packed before. They are borrowed where they lie on a line's boundary, and copied otherwise.
    pub(crate) fn from_bytes(bytes: &'a [u8], want: usize) -> Result<Self> {
        if bytes.len() != want || want % LINE != 0 {
            return Err(KernelError::Length { what: "packed bytes", got: bytes.len(), want });
        }
        Ok(match bytemuck::try_cast_slice(bytes) {
            Ok(lines) => Self::Borrowed(lines),
            Err(_) => {
                let mut lines = vec![Line([0; LINE]); want / LINE];
                bytemuck::cast_slice_mut(&mut lines).copy_from_slice(bytes);
                Self::Owned(lines)
            }
        })
    }

    pub(crate) fn get<T: Pod>(&self) -> &[T] {
        match self {
            Self::Owned(lines) => bytemuck::cast_slice(lines),
            Self::Borrowed(lines) => bytemuck::cast_slice(lines),
        }
    }

    /// For packing: only what was made by [`Self::zeros`] can be written.
    pub(crate) fn get_mut<T: Pod>(&mut self) -> &mut [T] {
        match self {
            Self::Owned(lines) => bytemuck::cast_slice_mut(lines),
            Self::Borrowed(_) => &mut [],
        }
    }
}
