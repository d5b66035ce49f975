use std::path::{Path, PathBuf};

use pilotfish_graph::weights::safetensors;
use pilotfish_sparsity::sequential::{PrunedLayer, Store};
use pilotfish_sparsity::{LayerReport, Result, SparsityError};

/// Finished layers in a folder: the matrices of each as safetensors, beside what pruning did to them. A layer is there
/// when its report is, which is written last.
#[derive(Clone, Debug)]
pub struct FolderStore {
    folder: PathBuf,
}

impl FolderStore {
    /// A store in a folder, which is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        std::fs::create_dir_all(&folder).map_err(|error| broken(&folder, error))?;
        Ok(Self { folder })
    }

    /// Removes everything.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn clear(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder).map_err(|error| broken(&self.folder, error))
    }

    fn matrices(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("layer.{layer}.safetensors"))
    }

    fn report(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("layer.{layer}.json"))
    }
}

fn broken(path: &Path, why: impl std::fmt::Display) -> SparsityError {
    SparsityError::File { path: path.display().to_string(), why: why.to_string() }
}

impl Store for FolderStore {
    fn get(&mut self, layer: usize) -> Result<Option<PrunedLayer>> {
        let path = self.report(layer);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(|error| broken(&path, error))?;
        let reports: Vec<LayerReport> = serde_json::from_str(&text).map_err(|error| broken(&path, error))?;
        let weights = safetensors::open(&self.matrices(layer))?;
        let matrices =
            weights.iter().map(|(name, stored)| (name.to_owned(), stored.tensor.clone())).collect();
        Ok(Some(PrunedLayer { matrices, reports }))
    }

    fn put(&mut self, layer: usize, pruned: &PrunedLayer) -> Result<()> {
        let tensors = pruned.matrices.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::write(&self.matrices(layer), tensors)?;
        let path = self.report(layer);
        let json = serde_json::to_string(&pruned.reports).map_err(|error| broken(&path, error))?;
        crate::error::write_atomic(&path, json.as_bytes()).map_err(|error| broken(&path, error))
    }
}
