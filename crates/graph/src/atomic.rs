//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{GraphError, Result};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file under a temporary name beside its destination; removed unless [`Pending::finish`] is called.
pub(crate) struct Pending {
    to: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Pending {
    pub(crate) fn create(to: &Path) -> Result<Self> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}-{}.partial", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let temporary = to.with_file_name(name);
        let file = File::create_new(&temporary).map_err(|source| GraphError::io(&temporary, source))?;
        Ok(Self { to: to.into(), temporary, file: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).map_err(|source| GraphError::io(&self.temporary, source))
    }

    /// Flushes, syncs and gives the file its name.
    pub(crate) fn finish(mut self) -> Result<()> {
        let io = |source| GraphError::io(&self.temporary, source);
        if let Some(file) = self.file.take() {
            let file = file.into_inner().map_err(|error| io(error.into_error()))?;
            file.sync_all().map_err(io)?;
        }
        std::fs::rename(&self.temporary, &self.to).map_err(io)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // After `finish` the temporary name is gone and this does nothing.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Little-endian bytes of numbers.
pub(crate) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
