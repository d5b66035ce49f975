//! Products that skip: inputs that are not active, outputs that are not wanted.
//!
//! [`Columns`] holds a matrix by columns and reads those of the active inputs only (down projections behind a
//! thresholded activation); [`Neurons`] holds it by rows and computes those of the wanted outputs only (gate and up
//! projections of chosen neurons). Both take the union of what several rows need. A row's own mask is in its values: a
//! zero adds nothing, so its result does not depend on what other rows brought into the union.

use crate::error::{area, finite, length};
use crate::isa::{Isa, Level};
use crate::lines::Lines;
use crate::parallel::{Parallel, split};
use crate::rows::{Group, Outputs, groups};
use crate::{KernelError, Result};

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

/// A matrix `[outs, ins]` in f32 by columns.
#[derive(Clone)]
pub struct Columns<'a> {
    lines: Lines<'a>,
    outs: usize,
    ins: usize,
}

impl std::fmt::Debug for Columns<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Columns [{}, {}]", self.outs, self.ins)
    }
}

impl Columns<'static> {
    /// Packs a row-major matrix `[outs, ins]`.
    ///
    /// # Errors
    /// A matrix without rows or columns or of another size, a weight that is not finite.
    pub fn pack(weights: &[f32], outs: usize, ins: usize) -> Result<Self> {
        length("weights", weights.len(), area(outs, ins)?)?;
        finite("weight", weights)?;
        let mut lines = Lines::zeros(outs.next_multiple_of(STEP) * ins * 4);
        let packed: &mut [f32] = lines.get_mut();
        for (out, row) in weights.chunks_exact(ins).enumerate() {
            let (start, width) = panel(outs, out / PANEL);
            for (k, &w) in row.iter().enumerate() {
                packed[start * ins + k * width + out - start] = w;
            }
        }
        Ok(Self { lines, outs, ins })
    }
}

/// First output of a panel, and its width with padding.
fn panel(outs: usize, panel: usize) -> (usize, usize) {
    let start = panel * PANEL;
    (start, PANEL.min(outs.next_multiple_of(STEP) - start))
}

impl Columns<'_> {
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
        self.outs.next_multiple_of(STEP) * 4 * active
    }

    /// The row-major matrix `[outs, ins]`.
    pub fn unpack(&self) -> Vec<f32> {
        let packed = self.lines.get::<f32>();
        let mut weights = Vec::with_capacity(self.outs * self.ins);
        for out in 0..self.outs {
            let (start, width) = panel(self.outs, out / PANEL);
            weights.extend((0..self.ins).map(|k| packed[start * self.ins + k * width + out - start]));
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
        let packed = self.lines.get::<f32>();
        let least = LEAST / (PANEL * active.indices.len().max(1)) + 1;
        split(threads, panels, least, &|range| {
            for at in range {
                let (start, width) = panel(self.outs, at);
                let weights = &packed[start * self.ins..(start + width) * self.ins];
                for group in &groups {
                    // SAFETY: these columns belong to this panel, and the tile fills no others.
                    unsafe {
                        outputs.tile(*group, start, width, false, |y, stride| {
                            columns(isa, weights, width, active, *group, y, stride);
                        });
                    }
                }
            }
        });
        Ok(())
    }
}

/// A panel and a group of rows.
///
/// # Safety
/// `y` leads to as many rows as the group has, `stride` apart, of `width` numbers; indices were checked.
unsafe fn columns(
    isa: Isa,
    weights: &[f32],
    width: usize,
    active: &Active,
    group: Group,
    y: *mut f32,
    stride: usize,
) {
    let count = active.indices.len();
    let x = &active.values[group.start * count..(group.start + group.rows) * count];
    match isa.0 {
        Level::Scalar => {
            for row in 0..group.rows {
                for lane in 0..width {
                    let mut sum = 0.0f32;
                    for (&k, &x) in active.indices.iter().zip(&x[row * count..]) {
                        sum = weights[k as usize * width + lane].mul_add(x, sum);
                    }
                    // SAFETY: by the caller's promise.
                    unsafe { *y.add(row * stride + lane) = sum };
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        level => {
            let job = x86::Job {
                weights: weights.as_ptr(),
                width,
                indices: &active.indices,
                x: x.as_ptr(),
                y,
                stride,
            };
            // SAFETY: the level was detected; indices are below the number of columns.
            unsafe {
                match level {
                    Level::Avx512 => x86::columns_512(group.rows, &job),
                    _ => x86::columns_256(group.rows, &job),
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

impl Neurons<'_> {
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

    use crate::simd::Lanes;

    /// Active inputs ahead of the one being read whose columns are asked for.
    const AHEAD: usize = 4;

    pub(super) struct Job<'a> {
        pub weights: *const f32,
        pub width: usize,
        pub indices: &'a [u32],
        pub x: *const f32,
        pub y: *mut f32,
        pub stride: usize,
    }

    /// `R` rows and `N` vectors of outputs from `first` on.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const N: usize>(job: &Job<'_>, first: usize) {
        unsafe {
            let count = job.indices.len();
            let mut sums = [[V::zero(); N]; R];
            for at in 0..count {
                let ahead = *job.indices.get_unchecked((at + AHEAD).min(count - 1)) as usize;
                let ahead = job.weights.wrapping_add(ahead * job.width + first);
                for line in 0..(N * V::LANES).div_ceil(16) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(16 * line).cast());
                }
                let from = job.weights.add(*job.indices.get_unchecked(at) as usize * job.width + first);
                let mut weights = [V::zero(); N];
                for n in 0..N {
                    weights[n] = V::load(from.add(n * V::LANES));
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
                    sums[r][n].store(job.y.add(r * job.stride + first + n * V::LANES));
                }
            }
        }
    }

    /// The whole width in steps of `N` vectors, then of two and one.
    #[inline(always)]
    unsafe fn steps<V: Lanes, const R: usize, const N: usize>(job: &Job<'_>) {
        unsafe {
            let mut first = 0;
            while first + N * V::LANES <= job.width {
                tile::<V, R, N>(job, first);
                first += N * V::LANES;
            }
            while first + 2 * V::LANES <= job.width {
                tile::<V, R, 2>(job, first);
                first += 2 * V::LANES;
            }
            while first < job.width {
                tile::<V, R, 1>(job, first);
                first += V::LANES;
            }
        }
    }

    /// # Safety
    /// AVX-512; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn columns_512(rows: usize, job: &Job<'_>) {
        unsafe {
            match rows {
                1 => steps::<__m512, 1, 16>(job),
                2 => steps::<__m512, 2, 8>(job),
                3 => steps::<__m512, 3, 4>(job),
                4 => steps::<__m512, 4, 4>(job),
                5 => steps::<__m512, 5, 4>(job),
                6 => steps::<__m512, 6, 4>(job),
                7 => steps::<__m512, 7, 2>(job),
                _ => steps::<__m512, 8, 2>(job),
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn columns_256(rows: usize, job: &Job<'_>) {
        unsafe {
            match rows {
                1 => steps::<__m256, 1, 8>(job),
                2 => steps::<__m256, 2, 4>(job),
                3 => steps::<__m256, 3, 2>(job),
                4 => steps::<__m256, 4, 2>(job),
                5 => steps::<__m256, 5, 2>(job),
                6 => steps::<__m256, 6, 1>(job),
                7 => steps::<__m256, 7, 1>(job),
                _ => steps::<__m256, 8, 1>(job),
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
