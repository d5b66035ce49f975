//! Weights in files: [`safetensors`] and [`gguf`], memory-mapped, dequantised on demand by rows.
//!
//! A file is trusted for nothing: counts, lengths, offsets and shapes are checked against the file's size
//! before anything is allocated or read. What cannot be guarded against is a file that is truncated by
//! somebody else while it is mapped; the operating system then ends the process.

pub mod gguf;
mod map;
mod quant;
pub mod safetensors;

use std::collections::BTreeMap;

pub use map::Mapped;
pub use quant::Encoding;

use crate::{GraphError, Result, Tensor};

/// The tensors of a checkpoint by name.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Stored>,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its numbers, as f32 on demand.
    pub tensor: Tensor,
    /// How they are stored.
    pub encoding: Encoding,
    /// Bytes in the file.
    pub bytes: usize,
}

impl Weights {
    /// The tensor of a name.
    ///
    /// # Errors
    /// No such tensor; the error lists names that look alike.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.stored(name).map(|stored| &stored.tensor)
    }

    /// The tensor of a name, with how it is stored.
    pub fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| {
            let tail = name.rsplit('.').nth(1).unwrap_or(name);
            let mut known: Vec<&str> =
                self.tensors.keys().filter(|key| key.contains(tail)).take(4).map(String::as_str).collect();
            if known.is_empty() {
                known = self.tensors.keys().take(4).map(String::as_str).collect();
            }
            let known = format!("{} ... ({} in all)", known.join(", "), self.tensors.len());
            GraphError::NoSuchName { kind: "tensor", name: name.into(), known }
        })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors as stored.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|stored| stored.bytes).sum()
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// The name is taken.
    pub fn insert(&mut self, name: String, stored: Stored) -> Result<()> {
        if self.tensors.contains_key(&name) {
            return Err(GraphError::DuplicateName { kind: "tensor", name });
        }
        self.tensors.insert(name, stored);
        Ok(())
    }
}
