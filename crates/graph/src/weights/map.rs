#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{GraphError, Result};

/// A file mapped into memory, read only. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mapped {
    path: Arc<PathBuf>,
    map: Arc<memmap2::Mmap>,
}

impl Mapped {
    /// Maps a regular file.
    ///
    /// # Errors
    /// It cannot be opened, is not a regular file (a FIFO or device would block or never end), or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|source| GraphError::io(path, source))?;
        if !meta.is_file() {
            return Err(GraphError::malformed(path, "not a regular file"));
        }
        if meta.len() == 0 {
            return Err(GraphError::malformed(path, "the file is empty"));
        }
        let file = File::open(path).map_err(|source| GraphError::io(path, source))?;
        // SAFETY: the map is read only and private to this process. Another process that writes to the file
        // can change the bytes, which are only ever read as plain numbers (texts are copied before they are
        // checked); one that truncates it can end this process, which the module documents.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|source| GraphError::io(path, source))?;
        Ok(Self { path: Arc::new(path.to_path_buf()), map: Arc::new(map) })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}
