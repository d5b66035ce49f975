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

/// Outputs of a panel of columns: 1 KB, long enough to be worth a jump, short enough for sums to stay in registers.
const PANEL: usize = 256;
/// Outputs of the smallest step.
const STEP: usize = 16;
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
        area(1, ins)?;
        length("activations", x.len(), rows.saturating_mul(ins))?;
        if u32::try_from(ins).is_err() {
            return Err(KernelError::Shape { outs: 1, ins });
        }
        let active = |value: f32| !(value.abs() <= threshold);
        let indices: Vec<u32> =
            (0..ins).filter(|&k| (0..rows).any(|row| active(x[row * ins + k]))).map(|k| k as u32).collect();
        let value = |row: usize, k: u32| {
            let value = x[row * ins + k as usize];
            if active(value) { value } else { 0.0 }
        };
        let values = (0..rows).flat_map(|row| indices.iter().map(move |&k| (row, k)));
        let values = values.map(|(row, k)| value(row, k)).collect();
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
/// Panels of 256 outputs; in each, one input after the other, and of each its weights to the panel's outputs. In int8 the
/// outputs' scales follow the last panel, and a sum is scaled once it is whole.
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
            let (start, width) = panel(outs, out / PANEL);
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
fn panel(outs: usize, panel: usize) -> (usize, usize) {
    let start = panel * PANEL;
    (start, PANEL.min(outs.next_multiple_of(STEP) - start))
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
            let (start, width) = panel(self.outs, out / PANEL);
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
        let outputs = Outputs::new(y, self.outs);
        let panels = self.outs.div_ceil(PANEL);
        let least = LEAST / (PANEL * active.indices.len().max(1)) + 1;
        split(threads, panels, least, &|range| {
            for at in range {
                let (start, width) = panel(self.outs, at);
                for group in &groups {
                    // SAFETY: these columns belong to this panel, and the tile fills no others.
                    unsafe {
                        outputs.tile(*group, start, width, false, |y, stride| {
                            self.panel(isa, start, width, active, *group, y, stride);
                        });
                    }
                }
            }
        });
        Ok(())
    }

    /// A panel and a group of rows.
    ///
    /// # Safety
    /// `y` leads to as many rows as the group has, `stride` apart, of `width` numbers; `start` and `width` are those of a
    /// panel, and indices were checked.
    #[allow(clippy::too_many_arguments)]
    unsafe fn panel(
        &self,
        isa: Isa,
        start: usize,
        width: usize,
        active: &Active,
        group: Group,
        y: *mut f32,
        stride: usize,
    ) {
        let count = active.indices.len();
        let x = &active.values[group.start * count..(group.start + group.rows) * count];
        let scales = self.scales();
        match isa.0 {
            Level::Scalar => {
                for row in 0..group.rows {
                    for lane in 0..width {
                        let mut sum = 0.0f32;
                        for (&k, &x) in active.indices.iter().zip(&x[row * count..]) {
                            sum = self.weight(start * self.ins + k as usize * width + lane).mul_add(x, sum);
                        }
                        if let Some(scale) = scales.get(start + lane) {
                            sum *= scale;
                        }
                        // SAFETY: by the caller's promise.
                        unsafe { *y.add(row * stride + lane) = sum };
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            level => {
                let bytes = self.lines.get::<u8>();
                assert!((start + width) * self.ins * self.kept.bytes() <= bytes.len());
                let job = x86::Job {
                    weights: bytes[start * self.ins * self.kept.bytes()..].as_ptr(),
                    scales: scales.as_ptr().wrapping_add(start),
                    width,
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
mod x86 {
    use std::arch::x86_64::*;

    use super::PANEL;
    use crate::Kept;
    use crate::simd::Lanes;

    /// Active inputs ahead of the one being read whose columns are asked for.
    const AHEAD: usize = 8;
    /// Columns that are added together, so that sums in memory are read and written once for all.
    const FUSED: usize = 4;

    const F32: u8 = 0;
    const BF16: u8 = 1;
    const INT8: u8 = 2;

    pub(super) struct Job<'a> {
        pub weights: *const u8,
        pub scales: *const f32,
        pub width: usize,
        pub indices: &'a [u32],
        pub x: *const f32,
        pub y: *mut f32,
        pub stride: usize,
    }

    const fn size(kept: u8) -> usize {
        match kept {
            F32 => 4,
            BF16 => 2,
            _ => 1,
        }
    }

    #[inline(always)]
    unsafe fn load<V: Lanes, const KEPT: u8>(from: *const u8) -> V {
        unsafe {
            match KEPT {
                F32 => V::load(from.cast()),
                BF16 => V::load_half(from.cast()),
                _ => V::load_bytes(from.cast()),
            }
        }
    }

    impl Job<'_> {
        /// The column of the `at`-th active input; of the last one beyond the end.
        #[inline(always)]
        unsafe fn column<const KEPT: u8>(&self, at: usize) -> *const u8 {
            unsafe {
                let k = *self.indices.get_unchecked(at.min(self.indices.len() - 1)) as usize;
                self.weights.add(k * self.width * size(KEPT))
            }
        }

        #[inline(always)]
        unsafe fn put<V: Lanes, const KEPT: u8>(&self, row: usize, out: usize, sum: V) {
            unsafe {
                let sum = if KEPT == INT8 { sum.mul(V::load(self.scales.add(out))) } else { sum };
                sum.store(self.y.add(row * self.stride + out));
            }
        }
    }

    /// `R` rows and `N` vectors of outputs from `first` on, sums in registers.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const N: usize, const KEPT: u8>(job: &Job<'_>, first: usize) {
        unsafe {
            let count = job.indices.len();
            let mut sums = [[V::zero(); N]; R];
            for at in 0..count {
                let ahead = job.column::<KEPT>(at + AHEAD).wrapping_add(first * size(KEPT));
                for line in 0..(N * V::LANES * size(KEPT)).div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast());
                }
                let from = job.column::<KEPT>(at).add(first * size(KEPT));
                let mut weights = [V::zero(); N];
                for n in 0..N {
                    weights[n] = load::<V, KEPT>(from.add(n * V::LANES * size(KEPT)));
                }
                for r in 0..R {
                    let x = V::splat(*job.x.add(r * count + at));
                    for n in 0..N {
                        sums[r][n] = weights[n].fma(x, sums[r][n]);
                    }
                }
            }
            for r in 0..R {
                for n in 0..N {
                    job.put::<V, KEPT>(r, first + n * V::LANES, sums[r][n]);
                }
            }
        }
    }

    /// The whole width in steps of `N` vectors, then of two and one.
    #[inline(always)]
    unsafe fn steps<V: Lanes, const R: usize, const N: usize, const KEPT: u8>(job: &Job<'_>) {
        unsafe {
            let mut first = 0;
            while first + N * V::LANES <= job.width {
                tile::<V, R, N, KEPT>(job, first);
                first += N * V::LANES;
            }
            while first + 2 * V::LANES <= job.width {
                tile::<V, R, 2, KEPT>(job, first);
                first += 2 * V::LANES;
            }
            while first < job.width {
                tile::<V, R, 1, KEPT>(job, first);
                first += V::LANES;
            }
        }
    }

    /// `R` rows and the whole width, sums in memory: a column is read from end to end, four at a time. The order of
    /// additions is that of [`tile`].
    #[inline(always)]
    unsafe fn fused<V: Lanes, const R: usize, const KEPT: u8>(job: &Job<'_>) {
        unsafe {
            let (count, mut sums) = (job.indices.len(), [[0.0f32; PANEL]; R]);
            let mut at = 0;
            while at < count {
                let taken = FUSED.min(count - at);
                let (mut from, mut ahead) = ([job.weights; FUSED], [job.weights; FUSED]);
                let mut x = [[V::zero(); FUSED]; R];
                for c in 0..taken {
                    from[c] = job.column::<KEPT>(at + c);
                    ahead[c] = job.column::<KEPT>(at + c + AHEAD);
                    for r in 0..R {
                        x[r][c] = V::splat(*job.x.add(r * count + at + c));
                    }
                }
                // Columns are whole lines but in the narrowest panels.
                for line in 0..(job.width * size(KEPT)).div_ceil(64) {
                    for c in 0..taken {
                        _mm_prefetch::<_MM_HINT_T0>(ahead[c].wrapping_add(64 * line).cast());
                    }
                    let outs = 64 / size(KEPT);
                    let mut out = line * outs;
                    while out < ((line + 1) * outs).min(job.width) {
                        let mut sum = [V::zero(); R];
                        for r in 0..R {
                            sum[r] = V::load(sums[r].as_ptr().add(out));
                        }
                        if taken == FUSED {
                            for c in 0..FUSED {
                                let w = load::<V, KEPT>(from[c].add(out * size(KEPT)));
                                for r in 0..R {
                                    sum[r] = w.fma(x[r][c], sum[r]);
                                }
                            }
                        } else {
                            for c in 0..taken {
                                let w = load::<V, KEPT>(from[c].add(out * size(KEPT)));
                                for r in 0..R {
                                    sum[r] = w.fma(x[r][c], sum[r]);
                                }
                            }
                        }
                        for r in 0..R {
                            sum[r].store(sums[r].as_mut_ptr().add(out));
                        }
                        out += V::LANES;
                    }
                }
                at += taken;
            }
            for r in 0..R {
                for out in (0..job.width).step_by(V::LANES) {
                    job.put::<V, KEPT>(r, out, V::load(sums[r].as_ptr().add(out)));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rows_512<const KEPT: u8>(rows: usize, job: &Job<'_>) {
        unsafe {
            match rows {
                1 => steps::<__m512, 1, 16, KEPT>(job),
                2 => steps::<__m512, 2, 8, KEPT>(job),
                3 => steps::<__m512, 3, 4, KEPT>(job),
                4 => steps::<__m512, 4, 4, KEPT>(job),
                5 => steps::<__m512, 5, 4, KEPT>(job),
                6 => steps::<__m512, 6, 4, KEPT>(job),
                7 => steps::<__m512, 7, 2, KEPT>(job),
                _ => steps::<__m512, 8, 2, KEPT>(job),
            }
        }
    }

    /// # Safety
    /// AVX-512; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn columns_512(rows: usize, kept: Kept, job: &Job<'_>) {
        unsafe {
            match kept {
                Kept::F32 => rows_512::<F32>(rows, job),
                Kept::Bf16 => rows_512::<BF16>(rows, job),
                Kept::Int8 => rows_512::<INT8>(rows, job),
            }
        }
    }

    #[inline(always)]
    unsafe fn rows_256<const KEPT: u8>(rows: usize, job: &Job<'_>) {
        unsafe {
            match rows {
                1 => fused::<__m256, 1, KEPT>(job),
                2 => fused::<__m256, 2, KEPT>(job),
                3 => steps::<__m256, 3, 2, KEPT>(job),
                4 => steps::<__m256, 4, 2, KEPT>(job),
                5 => steps::<__m256, 5, 2, KEPT>(job),
                6 => steps::<__m256, 6, 1, KEPT>(job),
                7 => steps::<__m256, 7, 1, KEPT>(job),
                _ => steps::<__m256, 8, 1, KEPT>(job),
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn columns_256(rows: usize, kept: Kept, job: &Job<'_>) {
        unsafe {
            match kept {
                Kept::F32 => rows_256::<F32>(rows, job),
                Kept::Bf16 => rows_256::<BF16>(rows, job),
                Kept::Int8 => rows_256::<INT8>(rows, job),
            }
        }
    }

    /// 32 sums in `N` vectors; halves are added to halves.
    #[inline(always)]
    unsafe fn dot<V: Lanes, const N: usize>(w: *const f32, x: *const f32, len: usize) -> f32 {
        unsafe {
            let mut sums = [V::zero(); N];
            for k in (0..len).step_by(N * V::LANES) {
                for n in 0..N {
                    let at = k + n * V::LANES;
                    sums[n] = V::load(w.add(at)).fma(V::load(x.add(at)), sums[n]);
                }
            }
            let mut all = [0.0f32; 32];
            for n in 0..N {
                sums[n].store(all.as_mut_ptr().add(n * V::LANES));
            }
            let mut half = 16;
            while half > 0 {
                for lane in 0..half {
                    all[lane] += all[lane + half];
                }
                half /= 2;
            }
            all[0]
        }
    }

    /// # Safety
    /// AVX-512; `len` weights, a multiple of 32, and `rows` times as many activations; `y` as `dots` says.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn dots_512(
        w: *const f32,
        x: *const f32,
        len: usize,
        rows: usize,
        y: *mut f32,
        stride: usize,
    ) {
        unsafe {
            for row in 0..rows {
                *y.add(row * stride) = dot::<__m512, 2>(w, x.add(row * len), len);
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; as `dots_512`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dots_256(
        w: *const f32,
        x: *const f32,
        len: usize,
        rows: usize,
        y: *mut f32,
        stride: usize,
    ) {
        unsafe {
            for row in 0..rows {
                *y.add(row * stride) = dot::<__m256, 4>(w, x.add(row * len), len);
            }
        }
    }
}
