//! A range of layers in one session, with its cache.
//!
//! The cache is a set of buffers that the host owns, a pair a layer, `[1, kv_heads, capacity, head_dim]`, bound
//! once as both past and present: ONNX Runtime writes new rows in place, forgetting rows is free, and keeping
//! some is a copy of a few rows. Where the operator that does this does not exist (CUDA without its
//! restrictions, plain ONNX), the cache is handed in and comes back longer, at the price of a copy a step.

use std::ops::Range;
use std::path::Path;

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::Tensor;
use pilotfish_model::{Forest, ModelError, Parents};

use crate::error::backend;
use crate::session::SessionConfig;
use crate::{Result, RuntimeError};

/// What a blocked score gets added. Finite, so that no row can become NaN.
const BLOCKED: f32 = -1e9;
/// Rows that a new cache has room for.
const FIRST_CAPACITY: usize = 256;

/// Sizes of a segment's cache and residual stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub width: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub context: usize,
}

/// The cache of all layers of a segment.
enum Buffers {
    /// Bound in place; `capacity` rows of room.
    Shared { tensors: Vec<Tensor<f32>>, capacity: usize },
    /// Handed in and out: `[kv_heads, rows, head_dim]` each.
    Copied { tensors: Vec<Vec<f32>>, rows: usize },
}

pub(crate) struct Segment {
    pub layers: Range<usize>,
    session: Session,
    binding: IoBinding,
    buffers: Buffers,
    forest: Forest,
    sizes: Sizes,
    window: Option<usize>,
    has_full: bool,
    names: Vec<[String; 2]>,
    /// Outputs, besides the cache, that are bound.
    bound: Vec<String>,
    output_memory: MemoryInfo<'static>,
    /// Time spent inside ONNX Runtime's own call.
    pub inside: std::time::Duration,
}

impl Segment {
    pub(crate) fn load(
        path: &Path,
        config: &SessionConfig,
        layers: Range<usize>,
        sizes: Sizes,
        window: Option<usize>,
    ) -> Result<Self> {
        let session = config.open(path)?;
        let has = |name: &str| session.inputs().iter().any(|input| input.name() == name);
        let shared = has("seqlens");
        let has_full = has("mask");
        let required = ["x", "positions"].into_iter().chain(window.map(|_| "mask_local"));
        for name in required {
            if !has(name) {
                let why = format!("no input named {name}: this is not a body written by pilotfish");
                return Err(RuntimeError::Contract { path: path.display().to_string(), why });
            }
        }
        let names: Vec<[String; 2]> = layers
            .clone()
            .flat_map(|layer| {
                ["key", "value"].map(|kind| [format!("past_{kind}.{layer}"), format!("{kind}.{layer}")])
            })
            .collect();
        let binding = session.create_binding()?;
        let buffers = if shared {
            Buffers::Shared { tensors: Vec::new(), capacity: 0 }
        } else {
            Buffers::Copied { tensors: vec![Vec::new(); names.len()], rows: 0 }
        };
        let output_memory =
            MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
        Ok(Self {
            layers,
            session,
            binding,
            buffers,
            forest: Forest::new(),
            sizes,
            window,
            has_full,
            names,
            bound: Vec::new(),
            output_memory,
            inside: std::time::Duration::ZERO,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.forest.len()
    }

    /// Appends rows of the residual stream, `[rows, width]`, and gives each wanted output to `read`, in order.
    /// The cache is unchanged when this fails.
    pub(crate) fn append(
        &mut self,
        x: &[f32],
        rows: usize,
        parents: Parents<'_>,
        wanted: &[&str],
        mut read: impl FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        let before = self.forest.len();
        self.forest.append(rows, parents, self.sizes.context)?;
        let ran = self.run(x, before, wanted, &mut read);
        if ran.is_err() {
            self.forest.truncate(before)?;
        }
        ran
    }

    fn run(
        &mut self,
        x: &[f32],
        before: usize,
        wanted: &[&str],
        read: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        let after = self.forest.len();
        let rows = after - before;
        self.reserve(after)?;
        let x = Tensor::from_array(([1, rows, self.sizes.width], x.to_vec())).map_err(backend)?;
        self.binding.bind_input("x", &x).map_err(backend)?;
        let positions: Vec<i64> = (before..after).map(|row| self.forest.position(row) as i64).collect();
        let positions = Tensor::from_array(([1, rows], positions)).map_err(backend)?;
        self.binding.bind_input("positions", &positions).map_err(backend)?;
        for (name, window) in [("mask", None), ("mask_local", self.window)] {
            if if name == "mask" { self.has_full } else { window.is_some() } {
                let mut mask = vec![0.0; rows * after];
                self.forest.mask(before, after, window, BLOCKED, &mut mask);
                let mask = Tensor::from_array(([1, 1, rows, after], mask)).map_err(backend)?;
                self.binding.bind_input(name, &mask).map_err(backend)?;
            }
        }
        match &self.buffers {
            Buffers::Shared { .. } => {
                let total = after as i32;
                for (name, value) in [("seqlens", total - 1), ("total", total)] {
                    let value = Tensor::from_array(([1usize], vec![value])).map_err(backend)?;
                    self.binding.bind_input(name, &value).map_err(backend)?;
                }
            }
            Buffers::Copied { tensors, rows } => {
                let Sizes { kv_heads, head_dim, .. } = self.sizes;
                for ([past, _], values) in self.names.iter().zip(tensors) {
                    let tensor = Tensor::from_array(([1, kv_heads, *rows, head_dim], values.clone()));
                    self.binding.bind_input(past, &tensor.map_err(backend)?).map_err(backend)?;
                }
            }
        }
        // A binding keeps the last run's tensors and their shapes: outputs are bound anew each time, and those
        // that are not wanted any more have to go.
        if self.bound != wanted {
            self.binding.clear_outputs();
            if let Buffers::Shared { tensors, .. } = &mut self.buffers {
                for ([_, present], tensor) in self.names.iter().zip(tensors) {
                    self.binding.bind_output(present, tensor).map_err(backend)?;
                }
            }
            self.bound = wanted.iter().map(|&name| name.to_owned()).collect();
        }
        let copied = matches!(self.buffers, Buffers::Copied { .. });
        let present = self.names.iter().map(|[_, present]| present.as_str()).filter(|_| copied);
        for name in wanted.iter().copied().chain(present) {
            self.binding.bind_output_to_device(name, &self.output_memory).map_err(backend)?;
        }
        let clock = std::time::Instant::now();
        let outputs = self.session.run_binding(&self.binding).map_err(backend)?;
        self.inside += clock.elapsed();
        for (index, &name) in wanted.iter().enumerate() {
            let (_, values) = outputs[name].try_extract_tensor::<f32>().map_err(backend)?;
            read(index, values);
        }
        if let Buffers::Copied { tensors, rows } = &mut self.buffers {
            for ([_, present], values) in self.names.iter().zip(tensors) {
                let (_, new) = outputs[present.as_str()].try_extract_tensor::<f32>().map_err(backend)?;
                values.clear();
                values.extend_from_slice(new);
            }
            *rows = after;
        }
        Ok(())
    }

    /// Makes room for `rows` rows, doubling.
    fn reserve(&mut self, rows: usize) -> Result<(), ModelError> {
        let Buffers::Shared { tensors, capacity } = &mut self.buffers else { return Ok(()) };
        if rows <= *capacity {
            return Ok(());
        }
        let Sizes { kv_heads, head_dim, .. } = self.sizes;
        let room = rows.next_power_of_two().max(FIRST_CAPACITY);
        let used = *capacity * head_dim;
        for (index, [past, present]) in self.names.iter().enumerate() {
            let mut tensor =
                Tensor::<f32>::new(&Allocator::default(), [1, kv_heads, room, head_dim]).map_err(backend)?;
            let (_, new) = tensor.extract_tensor_mut();
            new.fill(0.0);
            if let Some(old) = tensors.get(index) {
                let (_, old) = old.extract_tensor();
                for (to, from) in new.chunks_exact_mut(room * head_dim).zip(old.chunks_exact(used.max(1))) {
                    to[..used].copy_from_slice(from);
                }
            }
            self.binding.bind_input(past, &tensor).map_err(backend)?;
            self.binding.bind_output(present, &mut tensor).map_err(backend)?;
            match tensors.get_mut(index) {
                Some(old) => *old = tensor,
                None => tensors.push(tensor),
            }
        }
        *capacity = room;
        Ok(())
    }

    /// See [`Steps::keep`](pilotfish_model::Steps::keep).
    pub(crate) fn keep(&mut self, from: usize, rows: &[usize]) -> Result<(), ModelError> {
        self.forest.keep(from, rows)?;
        let moves: Vec<(usize, usize)> = rows
            .iter()
            .enumerate()
            .map(|(i, &row)| (row, from + i))
            .filter(|(old, new)| old != new)
            .collect();
        let Sizes { kv_heads, head_dim, .. } = self.sizes;
        let kept = self.forest.len();
        let compact = |values: &mut [f32], room: usize| {
            for head in 0..kv_heads {
                for &(old, new) in &moves {
                    let base = head * room;
                    values.copy_within(
                        (base + old) * head_dim..(base + old + 1) * head_dim,
                        (base + new) * head_dim,
                    );
                }
            }
        };
        match &mut self.buffers {
            Buffers::Shared { tensors, capacity } => {
                if !moves.is_empty() {
                    tensors.iter_mut().for_each(|tensor| compact(tensor.extract_tensor_mut().1, *capacity));
                }
            }
            Buffers::Copied { tensors, rows } => {
                for values in tensors {
                    compact(values, *rows);
                    let parts: Vec<f32> = (0..kv_heads)
                        .flat_map(|head| &values[head * *rows * head_dim..][..kept * head_dim])
                        .copied()
                        .collect();
                    *values = parts;
                }
                *rows = kept;
            }
        }
        Ok(())
    }

    /// See [`Steps::truncate`](pilotfish_model::Steps::truncate).
    pub(crate) fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        if len > self.len() {
            return Err(ModelError::NoSuchRow { what: "truncate", row: len, len: self.len() });
        }
        self.keep(len, &[])
    }
}
