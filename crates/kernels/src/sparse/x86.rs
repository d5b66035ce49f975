//! Kernels of AVX-512 and AVX2.

use std::arch::x86_64::*;

use super::*;
use crate::parallel::split;
use crate::rows::{Outputs, groups, padded};
use crate::simd::{BF16, F32, INT8, Lanes, load, size};

const MOST_512: usize = 8;
const MOST_256: usize = 4;
/// How far ahead of a slice's first group of rows lines are asked for, in bytes: less where more slices are read at once.
const AHEAD_512: usize = 2048;
const AHEAD_256: usize = 1024;

pub(super) fn multiply(
    w: &Sparse<'_>,
    level: Level,
    x: &[f32],
    rows: usize,
    y: &mut [f32],
    threads: &dyn Parallel,
) {
    let layout = &w.layout;
    let groups = groups(rows, if level == Level::Avx512 { MOST_512 } else { MOST_256 });
    // A window is read as 16 or 32 inputs, whatever its width.
    let width = (layout.records * layout.together * layout.window + 32).next_multiple_of(16);
    let ahead = if level == Level::Avx512 { AHEAD_512 } else { AHEAD_256 };
    let outputs = Outputs::new(y, layout.outs);
    let bytes = w.lines.get::<u8>();
    assert!(bytes.len() == layout.total);
    let slices = layout.outs.div_ceil(SLICE);
    padded(x, layout.ins, width, |x| {
        split(threads, slices, LEAST / (SLICE * layout.ins) + 1, &|range| {
            let mut slice = range.start;
            while slice < range.end {
                // Few rows make few independent sums; and several slices, each a stream, are read faster than one.
                let most = match (level, groups.as_slice()) {
                    (Level::Avx512, [group]) if group.rows == 1 => 4,
                    (Level::Avx512, [group]) if group.rows == 2 => 2,
                    (Level::Avx2, [group]) if group.rows == 1 => 8,
                    _ => 1,
                };
                let left = range.end - slice;
                let wide = [8, 4, 2, 1].into_iter().find(|&wide| wide <= most.min(left)).unwrap_or(1);
                for (index, group) in groups.iter().enumerate() {
                    let x = &x[group.start * width..(group.start + group.rows) * width];
                    // SAFETY: these columns belong to this part; the tile reads `records` records of `wide`
                    // slices, which the layout holds, and of each row at most 32 inputs from the start of a
                    // window, for which `width` leaves room.
                    unsafe {
                        outputs.tile(*group, slice * SLICE, wide * SLICE, false, |y, stride| {
                            let job = Job {
                                start: bytes.as_ptr().add(slice * layout.records * layout.record),
                                scales: bytes.as_ptr().wrapping_add(layout.scales + slice * LINE).cast(),
                                layout,
                                x: x.as_ptr(),
                                width,
                                y,
                                stride,
                                ahead: if index == 0 { ahead } else { 0 },
                            };
                            match level {
                                Level::Avx512 => run_512(group.rows, wide, &job),
                                _ => run_256(group.rows, wide, &job),
                            }
                        });
                    }
                }
                slice += wide;
            }
        });
    });
}

struct Job<'a> {
    start: *const u8,
    scales: *const f32,
    layout: &'a Layout,
    x: *const f32,
    width: usize,
    y: *mut f32,
    stride: usize,
    ahead: usize,
}

impl Job<'_> {
    /// Asks for the lines of a record that are read some time later.
    #[inline(always)]
    unsafe fn prefetch(&self, from: *const u8) {
        for line in 0..self.layout.record / LINE {
            // SAFETY: a prefetch reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(self.ahead + line * LINE).cast()) };
        }
    }
}

/// Among how many inputs a slot's are looked up.
const QUARTER: usize = 4;
const HALF: usize = 8;
const WINDOW: usize = 16;
const WIDE: usize = 32;

/// Bits of a place, by where it is looked up.
const fn bits(look: usize) -> usize {
    match look {
        QUARTER => 2,
        WIDE => 5,
        _ => 4,
    }
}

/// How often a window is looked up in.
const fn times(look: usize) -> usize {
    if look < WINDOW { WINDOW / look } else { 1 }
}

/// Places a word.
const fn a_word(look: usize) -> usize {
    32 / bits(look)
}

/// Slots of a window, and windows of a record; a constant where there is one.
#[inline(always)]
fn shape<const SLOTS: usize, const LOOK: usize>(layout: &Layout) -> (usize, usize) {
    if SLOTS > 0 { (SLOTS, a_word(LOOK) / SLOTS) } else { (layout.slots, layout.together) }
}

/// Inputs to look up in: one register, or two in windows of 32.
#[inline(always)]
unsafe fn inputs_512<const LOOK: usize>(x: *const f32) -> [__m512; 2] {
    unsafe {
        match LOOK {
            QUARTER => [_mm512_broadcast_f32x4(_mm_loadu_ps(x)), _mm512_setzero_ps()],
            WIDE => [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16))],
            _ => [_mm512_loadu_ps(x), _mm512_setzero_ps()],
        }
    }
}

#[inline(always)]
unsafe fn look_512<const LOOK: usize>(inputs: [__m512; 2], places: __m512i) -> __m512 {
    unsafe {
        match LOOK {
            QUARTER => _mm512_permutevar_ps(inputs[0], places),
            WIDE => _mm512_permutex2var_ps(inputs[0], places, inputs[1]),
            _ => _mm512_permutexvar_ps(places, inputs[0]),
        }
    }
}

#[inline(always)]
unsafe fn next_512<const LOOK: usize>(places: __m512i) -> __m512i {
    unsafe {
        match LOOK {
            QUARTER => _mm512_srli_epi32::<2>(places),
            WIDE => _mm512_srli_epi32::<5>(places),
            _ => _mm512_srli_epi32::<4>(places),
        }
    }
}

/// `R` rows of `P` slices: windows of `SLOTS` slots that fill whole words of places; or, with `SLOTS` 0, any.
#[inline(always)]
unsafe fn tile_512<const R: usize, const P: usize, const KEPT: u8, const SLOTS: usize, const LOOK: usize>(
    job: &Job<'_>,
) {
    unsafe {
        let layout = job.layout;
        let slice_bytes = layout.records * layout.record;
        let mut sums = [[_mm512_setzero_ps(); P]; R];
        let (slots, together) = shape::<SLOTS, LOOK>(layout);
        let words = if SLOTS > 0 { 1 } else { layout.words };
        let each = slots / times(LOOK);
        for record in 0..layout.records {
            let from = job.start.add(record * layout.record);
            for p in 0..P {
                job.prefetch(from.wrapping_add(p * slice_bytes));
            }
            let mut places = [_mm512_setzero_si512(); P];
            for part in 0..together * times(LOOK) {
                let (window, look) = (record * together + part / times(LOOK), part % times(LOOK));
                let base = job.x.add(window * layout.window + look * LOOK);
                let mut inputs = [[_mm512_setzero_ps(); 2]; R];
                for r in 0..R {
                    inputs[r] = inputs_512::<LOOK>(base.add(r * job.width));
                }
                for slot in part * each..(part + 1) * each {
                    for p in 0..P {
                        let from = from.add(p * slice_bytes);
                        if slot % a_word(LOOK) == 0 {
                            places[p] = _mm512_loadu_si512(from.add(slot / a_word(LOOK) * LINE).cast());
                        }
                        let value = load::<__m512, KEPT>(from.add(words * LINE + slot * SLICE * size(KEPT)));
                        for r in 0..R {
                            let x = look_512::<LOOK>(inputs[r], places[p]);
                            sums[r][p] = _mm512_fmadd_ps(value, x, sums[r][p]);
                        }
                        places[p] = next_512::<LOOK>(places[p]);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                let mut sum = sums[r][p];
                if KEPT == INT8 {
                    sum = sum.mul(__m512::load(job.scales.add(p * SLICE)));
                }
                _mm512_storeu_ps(job.y.add(r * job.stride + p * SLICE), sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn rows_512<const KEPT: u8, const SLOTS: usize, const LOOK: usize>(
    rows: usize,
    wide: usize,
    job: &Job<'_>,
) {
    unsafe {
        match (rows, wide) {
            (1, 4) => tile_512::<1, 4, KEPT, SLOTS, LOOK>(job),
            (1, 2) => tile_512::<1, 2, KEPT, SLOTS, LOOK>(job),
            (2, 2) => tile_512::<2, 2, KEPT, SLOTS, LOOK>(job),
            (1, _) => tile_512::<1, 1, KEPT, SLOTS, LOOK>(job),
            (2, _) => tile_512::<2, 1, KEPT, SLOTS, LOOK>(job),
            (3, _) => tile_512::<3, 1, KEPT, SLOTS, LOOK>(job),
            (4, _) => tile_512::<4, 1, KEPT, SLOTS, LOOK>(job),
            (5, _) => tile_512::<5, 1, KEPT, SLOTS, LOOK>(job),
            (6, _) => tile_512::<6, 1, KEPT, SLOTS, LOOK>(job),
            (7, _) => tile_512::<7, 1, KEPT, SLOTS, LOOK>(job),
            _ => tile_512::<8, 1, KEPT, SLOTS, LOOK>(job),
        }
    }
}

#[inline(always)]
unsafe fn slots_512<const KEPT: u8>(rows: usize, wide: usize, job: &Job<'_>) {
    unsafe {
        match (job.layout.bits, job.layout.slots) {
            (2, 8) => rows_512::<KEPT, 8, QUARTER>(rows, wide, job),
            (2, 4) => rows_512::<KEPT, 4, QUARTER>(rows, wide, job),
            (2, _) => rows_512::<KEPT, 0, QUARTER>(rows, wide, job),
            (4, 4) => rows_512::<KEPT, 4, WINDOW>(rows, wide, job),
            (4, 2) => rows_512::<KEPT, 2, WINDOW>(rows, wide, job),
            (4, 1) => rows_512::<KEPT, 1, WINDOW>(rows, wide, job),
            (4, _) => rows_512::<KEPT, 0, WINDOW>(rows, wide, job),
            _ => rows_512::<KEPT, 0, WIDE>(rows, wide, job),
        }
    }
}

/// # Safety
/// AVX-512; the job's pointers lead to what it describes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn run_512(rows: usize, wide: usize, job: &Job<'_>) {
    unsafe {
        match job.layout.kept {
            Kept::F32 => slots_512::<F32>(rows, wide, job),
            Kept::Bf16 => slots_512::<BF16>(rows, wide, job),
            Kept::Int8 => slots_512::<INT8>(rows, wide, job),
        }
    }
}

/// Inputs to look up in: one register, two in windows of 16, none where they stay in memory.
#[inline(always)]
unsafe fn inputs_256<const LOOK: usize>(x: *const f32) -> [__m256; 2] {
    unsafe {
        match LOOK {
            QUARTER => [_mm256_broadcast_ps(&*x.cast()), _mm256_setzero_ps()],
            HALF => [_mm256_loadu_ps(x), _mm256_setzero_ps()],
            WINDOW => [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))],
            _ => [_mm256_setzero_ps(); 2],
        }
    }
}

#[inline(always)]
unsafe fn look_256<const LOOK: usize>(x: *const f32, inputs: [__m256; 2], places: __m256i) -> __m256 {
    unsafe {
        match LOOK {
            QUARTER => _mm256_permutevar_ps(inputs[0], places),
            HALF => _mm256_permutevar8x32_ps(inputs[0], places),
            WINDOW => {
                // The permutation reads three bits; the fourth, moved to the sign, chooses the half.
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(places));
                let low = _mm256_permutevar8x32_ps(inputs[0], places);
                let high = _mm256_permutevar8x32_ps(inputs[1], places);
                _mm256_blendv_ps(low, high, upper)
            }
            _ => _mm256_i32gather_ps::<4>(x, _mm256_and_si256(places, _mm256_set1_epi32(31))),
        }
    }
}

#[inline(always)]
unsafe fn next_256<const LOOK: usize>(places: __m256i) -> __m256i {
    unsafe {
        match LOOK {
            QUARTER => _mm256_srli_epi32::<2>(places),
            WIDE => _mm256_srli_epi32::<5>(places),
            _ => _mm256_srli_epi32::<4>(places),
        }
    }
}

/// As [`tile_512`], a record of one slice after the other: there are few registers. A slice is two of them, which are done
/// together, so that memory is read in order and once.
#[inline(always)]
unsafe fn tile_256<const R: usize, const P: usize, const KEPT: u8, const SLOTS: usize, const LOOK: usize>(
    job: &Job<'_>,
) {
    unsafe {
        let layout = job.layout;
        let slice_bytes = layout.records * layout.record;
        let mut sums = [[[_mm256_setzero_ps(); 2]; R]; P];
        let (slots, together) = shape::<SLOTS, LOOK>(layout);
        let words = if SLOTS > 0 { 1 } else { layout.words };
        let each = slots / times(LOOK);
        for record in 0..layout.records {
            for p in 0..P {
                let from = job.start.add(p * slice_bytes + record * layout.record);
                job.prefetch(from);
                let mut places = [_mm256_setzero_si256(); 2];
                for part in 0..together * times(LOOK) {
                    let (window, look) = (record * together + part / times(LOOK), part % times(LOOK));
                    let base = job.x.add(window * layout.window + look * LOOK);
                    let mut inputs = [[_mm256_setzero_ps(); 2]; R];
                    for r in 0..R {
                        inputs[r] = inputs_256::<LOOK>(base.add(r * job.width));
                    }
                    for slot in part * each..(part + 1) * each {
                        for half in 0..2 {
                            if slot % a_word(LOOK) == 0 {
                                let word = from.add(slot / a_word(LOOK) * LINE + half * 32);
                                places[half] = _mm256_loadu_si256(word.cast());
                            }
                            let value = load::<__m256, KEPT>(
                                from.add(words * LINE + (slot * SLICE + half * 8) * size(KEPT)),
                            );
                            for r in 0..R {
                                let x = look_256::<LOOK>(base.add(r * job.width), inputs[r], places[half]);
                                sums[p][r][half] = _mm256_fmadd_ps(value, x, sums[p][r][half]);
                            }
                            places[half] = next_256::<LOOK>(places[half]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for half in 0..2 {
                    let (mut sum, at) = (sums[p][r][half], p * SLICE + half * 8);
                    if KEPT == INT8 {
                        sum = sum.mul(__m256::load(job.scales.add(at)));
                    }
                    _mm256_storeu_ps(job.y.add(r * job.stride + at), sum);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn rows_256<const KEPT: u8, const SLOTS: usize, const LOOK: usize>(
    rows: usize,
    wide: usize,
    job: &Job<'_>,
) {
    unsafe {
        match (rows, wide) {
            (1, 8) => tile_256::<1, 8, KEPT, SLOTS, LOOK>(job),
            (1, 4) => tile_256::<1, 4, KEPT, SLOTS, LOOK>(job),
            (1, 2) => tile_256::<1, 2, KEPT, SLOTS, LOOK>(job),
            (1, _) => tile_256::<1, 1, KEPT, SLOTS, LOOK>(job),
            (2, _) => tile_256::<2, 1, KEPT, SLOTS, LOOK>(job),
            (3, _) => tile_256::<3, 1, KEPT, SLOTS, LOOK>(job),
            _ => tile_256::<4, 1, KEPT, SLOTS, LOOK>(job),
        }
    }
}

#[inline(always)]
unsafe fn slots_256<const KEPT: u8>(rows: usize, wide: usize, job: &Job<'_>) {
    unsafe {
        match (job.layout.bits, job.layout.slots) {
            (2, 8) => rows_256::<KEPT, 8, QUARTER>(rows, wide, job),
            (2, 4) => rows_256::<KEPT, 4, QUARTER>(rows, wide, job),
            (2, _) => rows_256::<KEPT, 0, QUARTER>(rows, wide, job),
            (4, 4) if job.layout.pattern.group == 8 => rows_256::<KEPT, 4, HALF>(rows, wide, job),
            (4, 2) if job.layout.pattern.group == 8 => rows_256::<KEPT, 2, HALF>(rows, wide, job),
            (4, _) if job.layout.pattern.group == 8 => rows_256::<KEPT, 0, HALF>(rows, wide, job),
            (4, 1) => rows_256::<KEPT, 1, WINDOW>(rows, wide, job),
            (4, _) => rows_256::<KEPT, 0, WINDOW>(rows, wide, job),
            _ => rows_256::<KEPT, 0, WIDE>(rows, wide, job),
        }
    }
}

/// # Safety
/// AVX2 and FMA; the job's pointers lead to what it describes.
#[target_feature(enable = "avx2,fma")]
unsafe fn run_256(rows: usize, wide: usize, job: &Job<'_>) {
    unsafe {
        match job.layout.kept {
            Kept::F32 => slots_256::<F32>(rows, wide, job),
            Kept::Bf16 => slots_256::<BF16>(rows, wide, job),
            Kept::Int8 => slots_256::<INT8>(rows, wide, job),
        }
    }
}
