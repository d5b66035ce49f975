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
use pilotfish_model::{Forest, ModelError, Parents, Partial, Skip};

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
    /// Handed in and out: `[kv_heads, rows, head_dim]` each. Layers whose attention was left out have fewer rows.
    Copied { tensors: Vec<Vec<f32>> },
}

pub(crate) struct Segment {
    pub layers: Range<usize>,
    session: Session,
    binding: IoBinding,
    buffers: Buffers,
    forest: Forest,
    partial: Partial,
    sizes: Sizes,
    window: Option<usize>,
    has_full: bool,
    /// Which attentions and MLPs the session was last told to run; nothing where it runs all.
    running: Option<Vec<bool>>,
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
        let running = has("run").then(Vec::new);
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
            Buffers::Copied { tensors: vec![Vec::new(); names.len()] }
        };
        let output_memory =
            MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
        Ok(Self {
            layers,
            session,
            binding,
            buffers,
            forest: Forest::new(),
            partial: Partial::default(),
            sizes,
            window,
            has_full,
            running,
            names,
            bound: Vec::new(),
            output_memory,
            inside: std::time::Duration::ZERO,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.forest.len()
    }

    /// Appends rows of the residual stream, `[rows, width]`, without some attentions and MLPs, and gives each wanted
    /// output to `read`, in order. The cache is unchanged when this fails.
    pub(crate) fn append(
        &mut self,
        x: &[f32],
        rows: usize,
        parents: Parents<'_>,
        skip: &Skip,
        wanted: &[&str],
        mut read: impl FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        self.partial.check(skip)?;
        let before = self.forest.len();
        self.forest.append(rows, parents, self.sizes.context)?;
        let ran = self.run(x, before, skip, wanted, &mut read);
        match &ran {
            Ok(()) => self.partial.appended(before, skip),
            Err(_) => self.forest.truncate(before)?,
        }
        ran
    }

    /// Tells the session what to run.
    fn choose(&mut self, skip: &Skip) -> Result<(), ModelError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let layers = self.layers.clone();
        let chosen: Vec<bool> =
            layers.flat_map(|layer| [!skip.skips_attention(layer), !skip.skips_mlp(layer)]).collect();
        if *running != chosen {
            let run = Tensor::from_array(([chosen.len()], chosen.clone())).map_err(backend)?;
            self.binding.bind_input("run", &run).map_err(backend)?;
            *running = chosen;
        }
        Ok(())
    }

    fn run(
        &mut self,
        x: &[f32],
        before: usize,
        skip: &Skip,
        wanted: &[&str],
        read: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        let after = self.forest.len();
        let rows = after - before;
        self.reserve(after)?;
        self.choose(skip)?;
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
            Buffers::Copied { tensors } => {
                let Sizes { kv_heads, head_dim, .. } = self.sizes;
                for ([past, _], values) in self.names.iter().zip(tensors) {
                    let rows = values.len() / (kv_heads * head_dim);
                    let tensor = Tensor::from_array(([1, kv_heads, rows, head_dim], values.clone()));
                    self.binding.bind_input(past, &tensor.map_err(backend)?).map_err(backend)?;
                }
            }
        }
        // Two names a layer. A layer that is left out keeps what it has.
        let copied = matches!(self.buffers, Buffers::Copied { .. });
        let first = self.layers.start;
        let grows = |index: usize| copied && !skip.skips_attention(first + index / 2);
        let present = self.names.iter().enumerate().filter(|(index, _)| grows(*index));
        let named: Vec<&str> =
            wanted.iter().copied().chain(present.map(|(_, [_, present])| present.as_str())).collect();
        // A binding keeps the last run's tensors and their shapes: outputs are bound anew each time, and those
        // that are not wanted any more have to go.
        if self.bound != named {
            self.binding.clear_outputs();
            if let Buffers::Shared { tensors, .. } = &mut self.buffers {
                for ([_, present], tensor) in self.names.iter().zip(tensors) {
                    self.binding.bind_output(present, tensor).map_err(backend)?;
                }
            }
            self.bound = named.iter().map(|&name| name.to_owned()).collect();
        }
        for name in named {
            self.binding.bind_output_to_device(name, &self.output_memory).map_err(backend)?;
        }
        let clock = std::time::Instant::now();
        let outputs = self.session.run_binding(&self.binding).map_err(backend)?;
        self.inside += clock.elapsed();
        for (index, &name) in wanted.iter().enumerate() {
            let (_, values) = outputs[name].try_extract_tensor::<f32>().map_err(backend)?;
            read(index, values);
        }
        if let Buffers::Copied { tensors } = &mut self.buffers {
            for (index, ([_, present], values)) in self.names.iter().zip(tensors).enumerate() {
                if !grows(index) {
                    continue;
                }
                let (_, new) = outputs[present.as_str()].try_extract_tensor::<f32>().map_err(backend)?;
                values.clear();
                values.extend_from_slice(new);
            }
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
        self.partial.check_keep(from, rows)?;
        self.compact(from, rows)
    }

    fn compact(&mut self, from: usize, rows: &[usize]) -> Result<(), ModelError> {
        self.forest.keep(from, rows)?;
        self.partial.truncated(from);
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
            Buffers::Copied { tensors } => {
                for values in tensors {
                    let rows = values.len() / (kv_heads * head_dim);
                    compact(values, rows);
                    let parts: Vec<f32> = (0..kv_heads)
                        .flat_map(|head| &values[head * rows * head_dim..][..kept.min(rows) * head_dim])
                        .copied()
                        .collect();
                    *values = parts;
                }
            }
        }
        Ok(())
    }

    /// See [`Steps::truncate`](pilotfish_model::Steps::truncate).
    pub(crate) fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        if len > self.len() {
            return Err(ModelError::NoSuchRow { what: "truncate", row: len, len: self.len() });
        }
        self.compact(len, &[])
    }
}
