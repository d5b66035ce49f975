//! Kernels of AVX-512 and AVX2.

use std::arch::x86_64::*;

use crate::Kept;
use crate::simd::{BF16, F32, INT8, Lanes, load, size};

/// Columns that are added together, so that sums in memory are read and written once for all. Each is a stream of its own,
/// and several of them are read faster than one.
const FUSED: usize = 8;
/// Bytes of active columns ahead of what is being read that are asked for.
const AHEAD: usize = 4096;
/// Sums that are kept in the nearest cache.
const SUMS: usize = 2048;

/// Outputs that so many rows have sums for.
const fn span(rows: usize) -> usize {
    SUMS / rows / 64 * 64
}

pub(super) struct Job<'a> {
    /// The first output's weight for input 0.
    pub weights: *const u8,
    /// Weights from one input to the next.
    pub step: usize,
    pub scales: *const f32,
    /// How many outputs, a multiple of 16.
    pub outs: usize,
    pub indices: &'a [u32],
    pub x: *const f32,
    pub y: *mut f32,
    pub stride: usize,
}

impl Job<'_> {
    /// The column of the `at`-th active input; of the last one beyond the end.
    #[inline(always)]
    unsafe fn column<const KEPT: u8>(&self, at: usize) -> *const u8 {
        unsafe {
            let k = *self.indices.get_unchecked(at.min(self.indices.len() - 1)) as usize;
            self.weights.add(k * self.step * size(KEPT))
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

/// `R` rows, sums in memory: columns are read from end to end, `FUSED` at a time.
#[inline(always)]
unsafe fn columns<V: Lanes, const R: usize, const KEPT: u8>(job: &Job<'_>) {
    for first in (0..job.outs).step_by(span(R)) {
        // SAFETY: by the caller's promise.
        unsafe { stripe::<V, R, KEPT>(job, first, span(R).min(job.outs - first)) };
    }
}

/// `outs` outputs from `first` on.
#[inline(always)]
unsafe fn stripe<V: Lanes, const R: usize, const KEPT: u8>(job: &Job<'_>, first: usize, outs: usize) {
    unsafe {
        let count = job.indices.len();
        let mut sums = [0.0f32; SUMS];
        let sums = sums.as_mut_ptr();
        let mut at = 0;
        while at + FUSED <= count {
            add::<V, R, FUSED, KEPT>(job, at, first, outs, sums);
            at += FUSED;
        }
        for at in at..count {
            add::<V, R, 1, KEPT>(job, at, first, outs, sums);
        }
        for r in 0..R {
            for out in (0..outs).step_by(V::LANES) {
                job.put::<V, KEPT>(r, first + out, V::load(sums.add(r * span(R) + out)));
            }
        }
    }
}

/// Adds `N` columns from the `at`-th active input on to sums.
#[inline(always)]
unsafe fn add<V: Lanes, const R: usize, const N: usize, const KEPT: u8>(
    job: &Job<'_>,
    at: usize,
    first: usize,
    outs: usize,
    sums: *mut f32,
) {
    unsafe {
        let (count, bytes) = (job.indices.len(), outs * size(KEPT));
        let later = (AHEAD / bytes).max(N);
        let (mut from, mut ahead) = ([job.weights; N], [job.weights; N]);
        let mut x = [[V::zero(); N]; R];
        for c in 0..N {
            from[c] = job.column::<KEPT>(at + c).add(first * size(KEPT));
            ahead[c] = job.column::<KEPT>(at + c + later).add(first * size(KEPT));
            for r in 0..R {
                x[r][c] = V::splat(*job.x.add(r * count + at + c));
            }
        }
        for line in (0..bytes).step_by(64) {
            for c in 0..N {
                _mm_prefetch::<_MM_HINT_T0>(ahead[c].wrapping_add(line).cast());
            }
            let start = line / size(KEPT);
            for out in (start..outs.min(start + 64 / size(KEPT))).step_by(V::LANES) {
                let mut sum = [V::zero(); R];
                for r in 0..R {
                    sum[r] = V::load(sums.add(r * span(R) + out));
                }
                for c in 0..N {
                    let w = load::<V, KEPT>(from[c].add(out * size(KEPT)));
                    for r in 0..R {
                        sum[r] = w.fma(x[r][c], sum[r]);
                    }
                }
                for r in 0..R {
                    sum[r].store(sums.add(r * span(R) + out));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn rows<V: Lanes, const KEPT: u8>(rows: usize, job: &Job<'_>) {
    unsafe {
        match rows {
            1 => columns::<V, 1, KEPT>(job),
            2 => columns::<V, 2, KEPT>(job),
            3 => columns::<V, 3, KEPT>(job),
            4 => columns::<V, 4, KEPT>(job),
            5 => columns::<V, 5, KEPT>(job),
            6 => columns::<V, 6, KEPT>(job),
            7 => columns::<V, 7, KEPT>(job),
            _ => columns::<V, 8, KEPT>(job),
        }
    }
}

#[inline(always)]
unsafe fn run<V: Lanes>(count: usize, kept: Kept, job: &Job<'_>) {
    unsafe {
        match kept {
            Kept::F32 => rows::<V, F32>(count, job),
            Kept::Bf16 => rows::<V, BF16>(count, job),
            Kept::Int8 => rows::<V, INT8>(count, job),
        }
    }
}

/// # Safety
/// AVX-512; the job's pointers lead to what it describes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn columns_512(rows: usize, kept: Kept, job: &Job<'_>) {
    unsafe { run::<__m512>(rows, kept, job) }
}

/// # Safety
/// AVX2 and FMA; the job's pointers lead to what it describes.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn columns_256(rows: usize, kept: Kept, job: &Job<'_>) {
    unsafe { run::<__m256>(rows, kept, job) }
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

#[inline(always)]
unsafe fn dots<V: Lanes, const N: usize>(
    w: *const f32,
    x: *const f32,
    len: usize,
    rows: usize,
    y: *mut f32,
    stride: usize,
) {
    unsafe {
        for row in 0..rows {
            *y.add(row * stride) = dot::<V, N>(w, x.add(row * len), len);
        }
    }
}

/// # Safety
/// AVX-512; `len` weights, a multiple of 32, and `rows` times as many activations; `y` as `dots` of the parent says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn dots_512(
    w: *const f32,
    x: *const f32,
    len: usize,
    rows: usize,
    y: *mut f32,
    stride: usize,
) {
    unsafe { dots::<__m512, 2>(w, x, len, rows, y, stride) }
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
    unsafe { dots::<__m256, 4>(w, x, len, rows, y, stride) }
}
