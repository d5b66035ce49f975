//! Products that skip: inputs that are not active, outputs that are not wanted.
//!
//! [`Columns`] holds a matrix by columns and reads those of the active inputs only (down projections behind a
//! thresholded activation); [`Neurons`] holds it by rows and computes those of the wanted outputs only (gate and up
//! projections of chosen neurons). Both take the union of what several rows need. A row's own mask is in its values: a
//! zero adds nothing, so its result does not depend on what other rows brought into the union.

use crate::error::{area, finite, length};
use crate::isa::{Isa, Level};
use crate::lines::{LINE, Lines};
use crate::parallel::{Parallel, split};
use crate::rows::{Group, Outputs, groups};
use crate::{Kept, KernelError, Result};
use half::bf16;

/// Outputs of the largest panel of columns. A column is read in one go where it can be: what a processor reads ahead at
/// the end of each piece is lost, and so is the time to find the next one.
const PANEL: usize = 2048;
/// Outputs of the smallest step.
const STEP: usize = 16;
/// Outputs of the least part of a panel that a thread takes.
const PART: usize = 64;
/// Weights below which a part is not worth a thread.
const LEAST: usize = 1 << 15;

/// Active inputs of some rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Active {
    /// Inputs that some row needs, ascending.
    pub indices: Vec<u32>,
    /// Their values, `[rows, indices]`; zero where a row's own input is not active.
    pub values: Vec<f32>,
    /// Rows.
    pub rows: usize,
}

impl Active {
    /// The inputs with `|x| > threshold` of `x` `[rows, ins]`. What is not a number is kept: it must not vanish.
    ///
    /// # Errors
    /// A slice of another length, more inputs than fit into 32 bits.
    pub fn above(x: &[f32], rows: usize, ins: usize, threshold: f32) -> Result<Self> {
        Self::above_where(x, rows, ins, threshold, |_| true)
    }

    /// As [`above`](Self::above), in the rows that are `gated`; of the others every input is active.
    ///
    /// # Errors
    /// As there.
    pub fn above_where(
        x: &[f32],
        rows: usize,
        ins: usize,
        threshold: f32,
        gated: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        area(1, ins)?;
        length("activations", x.len(), rows.saturating_mul(ins))?;
        if u32::try_from(ins).is_err() {
            return Err(KernelError::Shape { outs: 1, ins });
        }
        let active = |value: f32, threshold: f32| !(value.abs() <= threshold);
        let threshold_of = |row: usize| if gated(row) { threshold } else { -1.0 };
        let mut needed = vec![false; ins];
        for row in 0..rows {
            let (x, least) = (&x[row * ins..][..ins], threshold_of(row));
            needed.iter_mut().zip(x).for_each(|(needed, &value)| *needed |= active(value, least));
        }
        let mut indices = vec![0u32; ins];
        let mut count = 0;
        for (k, &needed) in needed.iter().enumerate() {
            // Written always and counted where needed: no branch to guess wrong.
            indices[count] = k as u32;
            count += usize::from(needed);
        }
        indices.truncate(count);
        let mut values = Vec::with_capacity(rows * count);
        for row in 0..rows {
            let (x, least) = (&x[row * ins..][..ins], threshold_of(row));
            let value = |&k: &u32| x[k as usize];
            values.extend(indices.iter().map(value).map(|v| if active(v, least) { v } else { 0.0 }));
        }
        Ok(Self { indices, values, rows })
    }

    fn check(&self, ins: usize) -> Result<()> {
        length("values of active inputs", self.values.len(), self.rows.saturating_mul(self.indices.len()))?;
        ascending("active inputs", "input", &self.indices, ins)
    }
}

fn ascending(what: &'static str, one: &'static str, indices: &[u32], len: usize) -> Result<()> {
    if let Some(at) = indices.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(KernelError::Order { what, at: at + 1 });
    }
    match indices.last() {
        Some(&last) if last as usize >= len => Err(KernelError::Index { what: one, got: last as usize, len }),
        _ => Ok(()),
    }
}

/// A matrix `[outs, ins]` by columns.
///
/// Panels of at most 2048 outputs; in each, one input after the other, and of each its weights to the panel's outputs. In
/// int8 the outputs' scales follow the last panel, and a sum is scaled once it is whole.
#[derive(Clone)]
pub struct Columns<'a> {
    lines: Lines<'a>,
    outs: usize,
    ins: usize,
    kept: Kept,
}

impl std::fmt::Debug for Columns<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Columns {:?} [{}, {}]", self.kept, self.outs, self.ins)
    }
}

impl Columns<'static> {
    /// Packs a row-major matrix `[outs, ins]`.
    ///
    /// # Errors
    /// A matrix without rows or columns or of another size, a weight that is not finite, also once it is rounded.
    pub fn pack(weights: &[f32], outs: usize, ins: usize, kept: Kept) -> Result<Self> {
        length("weights", weights.len(), area(outs, ins)?)?;
        finite("weight", weights)?;
        let mut lines = Lines::zeros(Self::packed_bytes(outs, ins, kept));
        let (bytes, size): (&mut [u8], _) = (lines.get_mut(), kept.bytes());
        let scales = scales_at(outs, ins, kept);
        for (out, row) in weights.chunks_exact(ins).enumerate() {
            let Panel { start, width } = Panel::of(outs, out);
            let scale = row.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0;
            if kept == Kept::Int8 {
                bytes[scales + 4 * out..][..4].copy_from_slice(&scale.to_le_bytes());
            }
            for (k, &w) in row.iter().enumerate() {
                let to = &mut bytes[(start * ins + k * width + out - start) * size..][..size];
                match kept {
                    Kept::F32 => to.copy_from_slice(&w.to_le_bytes()),
                    Kept::Bf16 => {
                        let rounded = bf16::from_f32(w);
                        if !rounded.is_finite() {
                            let index = out * ins + k;
                            return Err(KernelError::NotFinite { what: "weight in bf16", index, value: w });
                        }
                        to.copy_from_slice(&rounded.to_le_bytes());
                    }
                    Kept::Int8 => {
                        // A scale that underflowed stands for zeros.
                        let q = if scale > 0.0 { (w / scale).round_ties_even() } else { 0.0 };
                        to[0] = q.clamp(-127.0, 127.0) as i8 as u8;
                    }
                }
            }
        }
        Ok(Self { lines, outs, ins, kept })
    }
}

/// Where the scales of outputs begin, in bytes.
fn scales_at(outs: usize, ins: usize, kept: Kept) -> usize {
    (outs.next_multiple_of(STEP) * ins * kept.bytes()).next_multiple_of(LINE)
}

/// First output of a panel, and its width with padding.
#[derive(Clone, Copy)]
struct Panel {
    start: usize,
    width: usize,
}

impl Panel {
    /// The one that an output is in. All but the last are equally wide, and whole parts.
    fn of(outs: usize, out: usize) -> Self {
        let all = outs.next_multiple_of(STEP);
        let width = all.div_ceil(all.div_ceil(PANEL)).next_multiple_of(PART);
        let start = out / width * width;
        Self { start, width: width.min(all - start) }
    }
}

impl<'a> Columns<'a> {
    /// A matrix that was packed before, from [`packed`](Self::packed) bytes. They are used where they lie if they begin
    /// on a cache line, and copied otherwise. Their numbers are taken as they are.
    ///
    /// # Errors
    /// Another number of bytes than such a matrix has.
    pub fn from_packed(bytes: &'a [u8], outs: usize, ins: usize, kept: Kept) -> Result<Self> {
        area(outs, ins)?;
        let lines = Lines::from_bytes(bytes, Self::packed_bytes(outs, ins, kept))?;
        Ok(Self { lines, outs, ins, kept })
    }

    /// Bytes of such a matrix when packed; 0 for one that is refused.
    pub fn packed_bytes(outs: usize, ins: usize, kept: Kept) -> usize {
        let scales = if kept == Kept::Int8 { outs.next_multiple_of(STEP) * 4 } else { 0 };
        match area(outs, ins) {
            Ok(_) => (scales_at(outs, ins, kept) + scales).next_multiple_of(LINE),
            Err(_) => 0,
        }
    }

    /// `[outs, ins]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.outs, self.ins]
    }

    /// Its bytes, all columns.
    pub fn packed(&self) -> &[u8] {
        self.lines.get()
    }

    /// Bytes of weights that a call with so many active inputs reads.
    pub fn bytes(&self, active: usize) -> usize {
        self.outs.next_multiple_of(STEP) * self.kept.bytes() * active
    }

    /// The weight at a place of the packed ones, without its scale.
    fn weight(&self, at: usize) -> f32 {
        let bytes = &self.lines.get::<u8>()[at * self.kept.bytes()..];
        match self.kept {
            Kept::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Kept::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Kept::Int8 => f32::from(bytes[0] as i8),
        }
    }

    /// Scales of outputs, to the next multiple of 16 of them; nothing unless weights are in int8.
    fn scales(&self) -> &[f32] {
        match self.kept {
            Kept::Int8 => &self.lines.get::<f32>()[scales_at(self.outs, self.ins, self.kept) / 4..],
            _ => &[],
        }
    }

    /// The row-major matrix `[outs, ins]`.
    pub fn unpack(&self) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.outs * self.ins);
        for out in 0..self.outs {
            let Panel { start, width } = Panel::of(self.outs, out);
            let scale = self.scales().get(out).copied().unwrap_or(1.0);
            let one = |k: usize| self.weight(start * self.ins + k * width + out - start) * scale;
            weights.extend((0..self.ins).map(one));
        }
        weights
    }

    /// `y = W[:, S] x[S]` for each row, `[rows, outs]`.
    ///
    /// # Errors
    /// Slices of other lengths; inputs that do not exist or are not ascending.
    pub fn apply(&self, active: &Active, y: &mut [f32], threads: &dyn Parallel) -> Result<()> {
        self.apply_on(Isa::best(), active, y, threads)
    }

    /// As [`apply`](Self::apply), with instructions of choice.
    ///
    /// # Errors
    /// As there.
    pub fn apply_on(&self, isa: Isa, active: &Active, y: &mut [f32], threads: &dyn Parallel) -> Result<()> {
        active.check(self.ins)?;
        length("outputs", y.len(), active.rows.saturating_mul(self.outs))?;
        if active.rows == 0 {
            return Ok(());
        }
        let groups = groups(active.rows, 8);
        let (outputs, all) = (Outputs::new(y, self.outs), self.outs.next_multiple_of(STEP));
        let least = LEAST / (PART * active.indices.len().max(1)) + 1;
        split(threads, all.div_ceil(PART), least, &|range| {
            let (mut first, end) = (range.start * PART, all.min(range.end * PART));
            while first < end {
                let panel = Panel::of(self.outs, first);
                let count = (panel.start + panel.width).min(end) - first;
                for group in &groups {
                    // SAFETY: these columns belong to this part, and the tile fills no others.
                    unsafe {
                        outputs.tile(*group, first, count, false, |y, stride| {
                            self.part(isa, panel, first, count, active, *group, y, stride);
                        });
                    }
                }
                first += count;
            }
        });
        Ok(())
    }

    /// `count` outputs of a panel from `first` on, of a group of rows.
    ///
    /// # Safety
    /// `y` leads to as many rows as the group has, `stride` apart, of `count` numbers; the outputs are in the panel, a
    /// multiple of 16, and indices were checked.
    #[allow(clippy::too_many_arguments)]
    unsafe fn part(
        &self,
        isa: Isa,
        panel: Panel,
        first: usize,
        count: usize,
        active: &Active,
        group: Group,
        y: *mut f32,
        stride: usize,
    ) {
        let many = active.indices.len();
        let x = &active.values[group.start * many..(group.start + group.rows) * many];
        let scales = self.scales();
        // Its first weight, and from one input to the next.
        let (start, step) = (panel.start * self.ins + first - panel.start, panel.width);
        match isa.0 {
            Level::Scalar => {
                for row in 0..group.rows {
                    for lane in 0..count {
                        let mut sum = 0.0f32;
                        for (&k, &x) in active.indices.iter().zip(&x[row * many..]) {
                            sum = self.weight(start + k as usize * step + lane).mul_add(x, sum);
                        }
                        if let Some(scale) = scales.get(first + lane) {
                            sum *= scale;
                        }
                        // SAFETY: by the caller's promise.
                        unsafe { *y.add(row * stride + lane) = sum };
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            level => {
                let (bytes, size) = (self.lines.get::<u8>(), self.kept.bytes());
                assert!((start + (self.ins - 1) * step + count) * size <= bytes.len());
                let job = x86::Job {
                    weights: bytes[start * size..].as_ptr(),
                    step,
                    scales: scales.as_ptr().wrapping_add(first),
                    outs: count,
                    indices: &active.indices,
                    x: x.as_ptr(),
                    y,
                    stride,
                };
                // SAFETY: the level was detected; indices are below the number of columns.
                unsafe {
                    match level {
                        Level::Avx512 => x86::columns_512(group.rows, self.kept, &job),
                        _ => x86::columns_256(group.rows, self.kept, &job),
                    }
                }
            }
        }
    }
}

/// A matrix `[outs, ins]` in f32 by rows.
#[derive(Clone)]
pub struct Neurons<'a> {
    lines: Lines<'a>,
    outs: usize,
    ins: usize,
}

impl std::fmt::Debug for Neurons<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Neurons [{}, {}]", self.outs, self.ins)
    }
}

/// Partial sums of a dot product: input `k` goes to sum `k % 32`, and then halves are added to halves.
const SUMS: usize = 32;

impl Neurons<'static> {
    /// Packs a row-major matrix `[outs, ins]`.
    ///
    /// # Errors
    /// A matrix without rows or columns or of another size, a weight that is not finite.
    pub fn pack(weights: &[f32], outs: usize, ins: usize) -> Result<Self> {
        length("weights", weights.len(), area(outs, ins)?)?;
        finite("weight", weights)?;
        let width = ins.next_multiple_of(SUMS);
        let mut lines = Lines::zeros(outs * width * 4);
        let packed: &mut [f32] = lines.get_mut();
        for (from, to) in weights.chunks_exact(ins).zip(packed.chunks_exact_mut(width)) {
            to[..ins].copy_from_slice(from);
        }
        Ok(Self { lines, outs, ins })
    }
}

impl<'a> Neurons<'a> {
    /// A matrix that was packed before, as [`Columns::from_packed`].
    ///
    /// # Errors
    /// As there.
    pub fn from_packed(bytes: &'a [u8], outs: usize, ins: usize) -> Result<Self> {
        area(outs, ins)?;
        Ok(Self { lines: Lines::from_bytes(bytes, Self::packed_bytes(outs, ins))?, outs, ins })
    }

    /// Bytes of such a matrix when packed; 0 for one that is refused.
    pub fn packed_bytes(outs: usize, ins: usize) -> usize {
        area(outs, ins).map_or(0, |_| outs * ins.next_multiple_of(SUMS) * 4)
    }

    /// `[outs, ins]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.outs, self.ins]
    }

    /// Its bytes, all rows.
    pub fn packed(&self) -> &[u8] {
        self.lines.get()
    }

    /// The outputs of `wanted` neurons (ascending) for `x` `[rows, ins]`, into `y` `[rows, wanted]`.
    ///
    /// # Errors
    /// Slices of other lengths; outputs that do not exist or are not ascending.
    pub fn apply(
        &self,
        wanted: &[u32],
        x: &[f32],
        rows: usize,
        y: &mut [f32],
        threads: &dyn Parallel,
    ) -> Result<()> {
        self.apply_on(Isa::best(), wanted, x, rows, y, threads)
    }

    /// As [`apply`](Self::apply), with instructions of choice.
    ///
    /// # Errors
    /// As there.
    pub fn apply_on(
        &self,
        isa: Isa,
        wanted: &[u32],
        x: &[f32],
        rows: usize,
        y: &mut [f32],
        threads: &dyn Parallel,
    ) -> Result<()> {
        ascending("wanted outputs", "output", wanted, self.outs)?;
        length("activations", x.len(), rows.saturating_mul(self.ins))?;
        length("outputs", y.len(), rows.saturating_mul(wanted.len()))?;
        if rows == 0 || wanted.is_empty() {
            return Ok(());
        }
        let width = self.ins.next_multiple_of(SUMS);
        let outputs = Outputs::new(y, wanted.len());
        let packed = self.lines.get::<f32>();
        let groups = groups(rows, 8);
        crate::rows::padded(x, self.ins, width, |x| {
            split(threads, wanted.len(), LEAST / width + 1, &|range| {
                for at in range {
                    let weights = &packed[wanted[at] as usize * width..][..width];
                    for group in &groups {
                        let x = &x[group.start * width..(group.start + group.rows) * width];
                        // SAFETY: this column belongs to this neuron, and one number a row is written.
                        unsafe {
                            outputs.tile(*group, at, 1, false, |y, stride| {
                                dots(isa, weights, x, group.rows, y, stride)
                            });
                        }
                    }
                }
            });
        });
        Ok(())
    }
}

/// Dot products of a neuron with some rows.
///
/// # Safety
/// `y` leads to one number for each row, `stride` apart. `weights` is a multiple of 32 long, and `x` `rows` times it.
unsafe fn dots(isa: Isa, weights: &[f32], x: &[f32], rows: usize, y: *mut f32, stride: usize) {
    match isa.0 {
        Level::Scalar => {
            for (row, x) in x.chunks_exact(weights.len()).enumerate() {
                let mut sums = [0.0f32; SUMS];
                for (weights, x) in weights.as_chunks::<SUMS>().0.iter().zip(x.as_chunks::<SUMS>().0) {
                    for lane in 0..SUMS {
                        sums[lane] = weights[lane].mul_add(x[lane], sums[lane]);
                    }
                }
                let mut half = SUMS / 2;
                while half > 0 {
                    for lane in 0..half {
                        sums[lane] += sums[lane + half];
                    }
                    half /= 2;
                }
                // SAFETY: by the caller's promise.
                unsafe { *y.add(row * stride) = sums[0] };
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected; lengths by the caller's promise.
        level => unsafe {
            let (w, x, len) = (weights.as_ptr(), x.as_ptr(), weights.len());
            match level {
                Level::Avx512 => x86::dots_512(w, x, len, rows, y, stride),
                _ => x86::dots_256(w, x, len, rows, y, stride),
            }
        },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;
