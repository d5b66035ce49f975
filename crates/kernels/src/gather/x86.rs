//! Kernels of AVX-512 and AVX2.

use std::arch::x86_64::*;

use crate::Kept;
use crate::simd::{BF16, F32, INT8, Lanes, load, size};

/// Active inputs ahead of the one being read whose columns are asked for, where sums stay in registers.
const AHEAD: usize = 8;
/// Columns that are added together where sums are in memory, so that they are read and written once for all. Each is a
/// stream of its own, and several of them are read faster than one.
const FUSED: usize = 8;
/// Bytes of active columns ahead of what is being read that are asked for there.
const AHEAD_BYTES: usize = 4096;
/// Sums that are kept in the nearest cache.
const SUMS: usize = 2048;

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
        while first + N * V::LANES <= job.outs {
            tile::<V, R, N, KEPT>(job, first);
            first += N * V::LANES;
        }
        while first + 2 * V::LANES <= job.outs {
            tile::<V, R, 2, KEPT>(job, first);
            first += 2 * V::LANES;
        }
        while first < job.outs {
            tile::<V, R, 1, KEPT>(job, first);
            first += V::LANES;
        }
    }
}

/// `R` rows, sums in memory: columns are read from end to end, `FUSED` at a time. The order of additions is that of
/// [`tile`].
#[inline(always)]
unsafe fn fused<V: Lanes, const R: usize, const KEPT: u8>(job: &Job<'_>) {
    let span = SUMS / R / 64 * 64;
    for first in (0..job.outs).step_by(span) {
        // SAFETY: by the caller's promise.
        unsafe { stripe::<V, R, KEPT>(job, first, span.min(job.outs - first)) };
    }
}

/// `outs` outputs from `first` on.
#[inline(always)]
unsafe fn stripe<V: Lanes, const R: usize, const KEPT: u8>(job: &Job<'_>, first: usize, outs: usize) {
    unsafe {
        let (count, span) = (job.indices.len(), SUMS / R / 64 * 64);
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
                job.put::<V, KEPT>(r, first + out, V::load(sums.add(r * span + out)));
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
        let (count, span, bytes) = (job.indices.len(), SUMS / R / 64 * 64, outs * size(KEPT));
        let later = (AHEAD_BYTES / bytes).max(N);
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
                    sum[r] = V::load(sums.add(r * span + out));
                }
                for c in 0..N {
                    let w = load::<V, KEPT>(from[c].add(out * size(KEPT)));
                    for r in 0..R {
                        sum[r] = w.fma(x[r][c], sum[r]);
                    }
                }
                for r in 0..R {
                    sum[r].store(sums.add(r * span + out));
                }
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
            3 => fused::<__m256, 3, KEPT>(job),
            4 => fused::<__m256, 4, KEPT>(job),
            5 => fused::<__m256, 5, KEPT>(job),
            6 => fused::<__m256, 6, KEPT>(job),
            7 => fused::<__m256, 7, KEPT>(job),
            _ => fused::<__m256, 8, KEPT>(job),
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
