//! Weights of which N of every M consecutive inputs are kept.
//!
//! Sliced layout: slices of 16 outputs; a window of consecutive inputs (as many whole groups as fit into 16; one group
//! if it is wider) is spread into slots, and slot `s`, lane `l` holds the `s`-th kept weight of output `l` in the
//! window, with its place in the window as 4 bits (5 in wider groups). A slot costs one load, one permutation of the
//! window's inputs, one shift and one multiply-add, and no sum runs across lanes. Groups with fewer than N non-zeros
//! are filled with zeros. Windows of 1, 2, 4 or 8 slots share words of places, 8 a word, so that an f32 weight costs
//! 4.5 bytes: 2.25 bytes a dense weight for 2:4, 1.125 for 1:4.

use half::bf16;

use crate::error::{area, finite, length};
use crate::isa::{Isa, Level};
use crate::lines::{LINE, Lines};
use crate::parallel::Parallel;
use crate::{KernelError, Product, Result};

/// Outputs a slice.
const SLICE: usize = 16;
/// Weights below which a part is not worth a thread.
#[cfg(target_arch = "x86_64")]
const LEAST: usize = 1 << 15;

/// What kept weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// Four bytes.
    F32,
    /// Two bytes, rounded to the nearest.
    Bf16,
    /// One byte, and a scale in f32 for each output: `w = q scale`, `|q| <= 127`.
    Int8,
}

impl Kept {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// N of M: how many of how many consecutive inputs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// N.
    pub keep: usize,
    /// M, at most 32.
    pub group: usize,
}

impl Pattern {
    fn check(self, ins: usize) -> Result<()> {
        let Self { keep, group } = self;
        if !(1 <= keep && keep <= group && group <= 32) {
            return Err(KernelError::Pattern { keep, group });
        }
        if ins % group != 0 {
            return Err(KernelError::Divide { ins, what: "groups", size: group });
        }
        Ok(())
    }
}

/// A matrix `[outs, ins]` with N of every M weights of an output.
#[derive(Clone)]
pub struct Sparse<'a> {
    lines: Lines<'a>,
    layout: Layout,
}

impl std::fmt::Debug for Sparse<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Layout { pattern: Pattern { keep, group }, kept, outs, ins, .. } = self.layout;
        write!(f, "Sparse {keep}:{group} {kept:?} [{outs}, {ins}]")
    }
}

/// Where everything lies.
#[derive(Clone, Copy, Debug)]
struct Layout {
    outs: usize,
    ins: usize,
    pattern: Pattern,
    kept: Kept,
    /// Inputs a window, and slots.
    window: usize,
    slots: usize,
    /// Windows that share words of places.
    together: usize,
    /// Bits of a place, and places a word.
    bits: usize,
    a_word: usize,
    /// Words of places of those windows; their bytes, slots and all.
    words: usize,
    record: usize,
    /// Records a slice.
    records: usize,
    /// Scales of outputs, in bytes from the start.
    scales: usize,
    total: usize,
}

impl Layout {
    fn of(outs: usize, ins: usize, pattern: Pattern, kept: Kept) -> Result<Self> {
        area(outs, ins)?;
        pattern.check(ins)?;
        let Pattern { keep, group } = pattern;
        let groups = (16 / group).max(1);
        let (window, slots) = (groups * group, groups * keep);
        let (bits, a_word) = if window > 16 { (5, 6) } else { (4, 8) };
        let together = if bits == 4 && matches!(slots, 1 | 2 | 4) { 8 / slots } else { 1 };
        let words = (together * slots).div_ceil(a_word);
        let record = words * LINE + (together * slots * SLICE * kept.bytes()).next_multiple_of(LINE);
        let records = ins.div_ceil(window * together);
        let scales = outs.div_ceil(SLICE) * records * record;
        let total = scales + if kept == Kept::Int8 { outs.div_ceil(SLICE) * LINE } else { 0 };
        let layout = Self {
            outs,
            ins,
            pattern,
            kept,
            window,
            slots,
            together,
            bits,
            a_word,
            words,
            record,
            records,
            scales,
            total,
        };
        Ok(layout)
    }

    /// Of a kept weight: its record, its slot there, and the first input of its window.
    fn place(&self, k: usize, nth: usize) -> (usize, usize, usize) {
        let window = k / self.window;
        let group = k % self.window / self.pattern.group;
        let slot = window % self.together * self.slots + group * self.pattern.keep + nth;
        (window / self.together, slot, window * self.window)
    }
}

impl Sparse<'static> {
    /// Packs a row-major matrix `[outs, ins]` that follows the pattern.
    ///
    /// # Errors
    /// A pattern that cannot be, or does not divide the inputs; a group with more non-zeros; a matrix without rows or
    /// columns or of another size; a weight that is not finite.
    pub fn pack(weights: &[f32], outs: usize, ins: usize, pattern: Pattern, kept: Kept) -> Result<Self> {
        let layout = Layout::of(outs, ins, pattern, kept)?;
        length("weights", weights.len(), outs * ins)?;
        finite("weight", weights)?;
        let mut lines = Lines::zeros(layout.total);
        let bytes: &mut [u8] = lines.get_mut();
        let group = pattern.group;
        for (out, row) in weights.chunks_exact(ins).enumerate() {
            let (slice, lane) = (out / SLICE, out % SLICE);
            let scale = row.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0;
            if kept == Kept::Int8 {
                let at = layout.scales + 4 * out;
                bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
            }
            for (at, values) in row.chunks_exact(group).enumerate() {
                let got = values.iter().filter(|&&w| w != 0.0).count();
                if got > pattern.keep {
                    return Err(KernelError::Group { out, group: at, got, keep: pattern.keep });
                }
                let present = values.iter().enumerate().filter(|&(_, &w)| w != 0.0);
                for (nth, (offset, &w)) in present.enumerate() {
                    let (record, slot, first) = layout.place(at * group, nth);
                    let place = (at * group + offset - first) as u32;
                    let base = (slice * layout.records + record) * layout.record;
                    let word = base + (slot / layout.a_word * SLICE + lane) * 4;
                    let shifted = place << (slot % layout.a_word * layout.bits);
                    for (byte, part) in bytes[word..word + 4].iter_mut().zip(shifted.to_le_bytes()) {
                        *byte |= part;
                    }
                    let size = kept.bytes();
                    let value = base + layout.words * LINE + (slot * SLICE + lane) * size;
                    match kept {
                        Kept::F32 => bytes[value..value + 4].copy_from_slice(&w.to_le_bytes()),
                        Kept::Bf16 => {
                            let rounded = bf16::from_f32(w);
                            if !rounded.is_finite() {
                                let index = out * ins + at * group + offset;
                                return Err(KernelError::NotFinite {
                                    what: "weight in bf16",
                                    index,
                                    value: w,
                                });
                            }
                            bytes[value..value + 2].copy_from_slice(&rounded.to_le_bytes());
                        }
                        Kept::Int8 => {
                            // A scale that underflowed stands for zeros.
                            let q = if scale > 0.0 { (w / scale).round_ties_even() } else { 0.0 };
                            bytes[value] = q.clamp(-127.0, 127.0) as i8 as u8;
                        }
                    }
                }
            }
        }
        Ok(Self { lines, layout })
    }
}

impl<'a> Sparse<'a> {
    /// A matrix that was packed before, from [`packed`](Product::packed) bytes. They are used where they lie if
    /// they begin on a cache line, and copied otherwise. Their numbers are taken as they are.
    ///
    /// # Errors
    /// Another number of bytes than such a matrix has, or a pattern that cannot be.
    pub fn from_packed(
        bytes: &'a [u8],
        outs: usize,
        ins: usize,
        pattern: Pattern,
        kept: Kept,
    ) -> Result<Self> {
        let layout = Layout::of(outs, ins, pattern, kept)?;
        Ok(Self { lines: Lines::from_bytes(bytes, layout.total)?, layout })
    }

    /// Bytes of such a matrix when packed; 0 for one that is refused.
    pub fn packed_bytes(outs: usize, ins: usize, pattern: Pattern, kept: Kept) -> usize {
        Layout::of(outs, ins, pattern, kept).map_or(0, |layout| layout.total)
    }

    /// The pattern.
    pub fn pattern(&self) -> Pattern {
        self.layout.pattern
    }

    /// The row-major matrix `[outs, ins]`, in f32.
    pub fn unpack(&self) -> Vec<f32> {
        let Layout { outs, ins, .. } = self.layout;
        let mut weights = vec![0.0; outs * ins];
        for out in 0..outs {
            self.slots(out, |k, value| {
                // In spoilt bytes places lie anywhere.
                if value != 0.0 && k < ins {
                    weights[out * ins + k] = value * self.scale(out);
                }
            });
        }
        weights
    }

    fn scale(&self, out: usize) -> f32 {
        match self.layout.kept {
            Kept::Int8 => self.lines.get::<f32>()[self.layout.scales / 4 + out],
            _ => 1.0,
        }
    }

    /// Input and value of each slot of an output, in order.
    fn slots(&self, out: usize, mut visit: impl FnMut(usize, f32)) {
        let layout = &self.layout;
        let (slice, lane) = (out / SLICE, out % SLICE);
        let bytes = self.lines.get::<u8>();
        for record in 0..layout.records {
            let base = (slice * layout.records + record) * layout.record;
            for slot in 0..layout.together * layout.slots {
                let at = base + (slot / layout.a_word * SLICE + lane) * 4;
                let word = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                let place = word >> (slot % layout.a_word * layout.bits) & ((1 << layout.bits) - 1);
                let at = base + layout.words * LINE + (slot * SLICE + lane) * layout.kept.bytes();
                let value = match layout.kept {
                    Kept::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
                    Kept::Bf16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
                    Kept::Int8 => f32::from(bytes[at] as i8),
                };
                let window = record * layout.together + slot / layout.slots;
                visit(window * layout.window + place as usize, value);
            }
        }
    }

    /// The plain loop that everything else must equal to the bit.
    fn scalar(&self, x: &[f32], y: &mut [f32]) {
        let Layout { outs, ins, kept, .. } = self.layout;
        for (x, y) in x.chunks_exact(ins).zip(y.chunks_exact_mut(outs)) {
            for (out, y) in y.iter_mut().enumerate() {
                let mut sum = 0.0f32;
                self.slots(out, |k, value| sum = value.mul_add(x.get(k).copied().unwrap_or(0.0), sum));
                *y = if kept == Kept::Int8 { sum * self.scale(out) } else { sum };
            }
        }
    }
}

impl Product for Sparse<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.layout.outs, self.layout.ins]
    }

    fn packed(&self) -> &[u8] {
        self.lines.get()
    }

    fn multiply(&self, isa: Isa, x: &[f32], rows: usize, y: &mut [f32], threads: &dyn Parallel) {
        match isa.0 {
            Level::Scalar => self.scalar(x, y),
            #[cfg(target_arch = "x86_64")]
            level => x86::multiply(self, level, x, rows, y, threads),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::parallel::split;
    use crate::rows::{Outputs, groups, padded};

    const MOST_512: usize = 8;
    const MOST_256: usize = 4;
    const AHEAD: usize = 2048;

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
        let outputs = Outputs::new(y, layout.outs);
        let bytes = w.lines.get::<u8>();
        assert!(bytes.len() == layout.total);
        let slices = layout.outs.div_ceil(SLICE);
        padded(x, layout.ins, width, |x| {
            split(threads, slices, LEAST / (SLICE * layout.ins) + 1, &|range| {
                let mut slice = range.start;
                while slice < range.end {
                    // Few rows make few independent sums.
                    let wide = match groups.as_slice() {
                        [group] if level == Level::Avx512 && group.rows == 1 => 4,
                        [group] if level == Level::Avx512 && group.rows == 2 => 2,
                        _ => 1,
                    };
                    let wide = if range.end - slice >= wide { wide } else { 1 };
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
                                    ahead: if index == 0 { AHEAD } else { 0 },
                                };
                                match level {
                                    Level::Avx512 => run_512(group.rows, wide, &job),
                                    _ => run_256(group.rows, &job),
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

    const F32: u8 = 0;
    const BF16: u8 = 1;
    const INT8: u8 = 2;

    #[inline(always)]
    unsafe fn value_512<const KEPT: u8>(from: *const u8, slot: usize) -> __m512 {
        unsafe {
            match KEPT {
                F32 => _mm512_loadu_ps(from.add(slot * 64).cast()),
                BF16 => {
                    let half = _mm256_loadu_si256(from.add(slot * 32).cast());
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
                }
                _ => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.add(slot * 16).cast()))),
            }
        }
    }

    /// `SLOTS` slots a window and windows of at most 16 inputs, 8 slots a record; or, with `SLOTS` 0, any layout.
    #[inline(always)]
    unsafe fn tile_512<const R: usize, const P: usize, const KEPT: u8, const SLOTS: usize>(job: &Job<'_>) {
        unsafe {
            let layout = job.layout;
            let slice_bytes = layout.records * layout.record;
            let mut sums = [[_mm512_setzero_ps(); P]; R];
            let (slots, together) =
                if SLOTS > 0 { (SLOTS, 8 / SLOTS) } else { (layout.slots, layout.together) };
            for record in 0..layout.records {
                let from = job.start.add(record * layout.record);
                for p in 0..P {
                    for line in 0..layout.record / LINE {
                        _mm_prefetch::<_MM_HINT_T0>(
                            from.wrapping_add(p * slice_bytes + job.ahead + line * LINE).cast(),
                        );
                    }
                }
                let mut places = [_mm512_setzero_si512(); P];
                for t in 0..together {
                    let base = job.x.add((record * together + t) * layout.window);
                    let mut low = [_mm512_setzero_ps(); R];
                    for r in 0..R {
                        low[r] = _mm512_loadu_ps(base.add(r * job.width));
                    }
                    for s in 0..slots {
                        let slot = t * slots + s;
                        for p in 0..P {
                            let from = from.add(p * slice_bytes);
                            let a_word = if SLOTS > 0 { 8 } else { layout.a_word };
                            if slot % a_word == 0 {
                                places[p] = _mm512_loadu_si512(from.add(slot / a_word * LINE).cast());
                            }
                            let words = if SLOTS > 0 { 1 } else { layout.words };
                            let value = value_512::<KEPT>(from.add(words * LINE), slot);
                            if SLOTS == 0 && layout.bits == 5 {
                                for r in 0..R {
                                    let high = _mm512_loadu_ps(base.add(r * job.width + 16));
                                    let x = _mm512_permutex2var_ps(low[r], places[p], high);
                                    sums[r][p] = _mm512_fmadd_ps(value, x, sums[r][p]);
                                }
                                places[p] = _mm512_srli_epi32::<5>(places[p]);
                            } else {
                                for r in 0..R {
                                    let x = _mm512_permutexvar_ps(places[p], low[r]);
                                    sums[r][p] = _mm512_fmadd_ps(value, x, sums[r][p]);
                                }
                                places[p] = _mm512_srli_epi32::<4>(places[p]);
                            }
                        }
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    let mut sum = sums[r][p];
                    if KEPT == INT8 {
                        sum = _mm512_mul_ps(sum, _mm512_loadu_ps(job.scales.add(p * SLICE)));
                    }
                    _mm512_storeu_ps(job.y.add(r * job.stride + p * SLICE), sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn value_256<const KEPT: u8>(from: *const u8, slot: usize, part: usize) -> __m256 {
        unsafe {
            match KEPT {
                F32 => _mm256_loadu_ps(from.add(slot * 64 + part * 32).cast()),
                BF16 => {
                    let half = _mm_loadu_si128(from.add(slot * 32 + part * 16).cast());
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
                }
                _ => {
                    let bytes = _mm_loadl_epi64(from.add(slot * 16 + part * 8).cast());
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_256<const R: usize, const KEPT: u8>(job: &Job<'_>, part: usize) {
        unsafe {
            let layout = job.layout;
            let mask = _mm256_set1_epi32((1 << layout.bits) - 1);
            let shift = _mm_cvtsi32_si128(layout.bits as i32);
            let mut sums = [_mm256_setzero_ps(); R];
            for record in 0..layout.records {
                let from = job.start.add(record * layout.record);
                let mut places = _mm256_setzero_si256();
                for t in 0..layout.together {
                    let base = job.x.add((record * layout.together + t) * layout.window);
                    for s in 0..layout.slots {
                        let slot = t * layout.slots + s;
                        if slot % layout.a_word == 0 {
                            places =
                                _mm256_loadu_si256(from.add(slot / layout.a_word * LINE + part * 32).cast());
                        }
                        let value = value_256::<KEPT>(from.add(layout.words * LINE), slot, part);
                        if layout.bits == 5 {
                            let place = _mm256_and_si256(places, mask);
                            for r in 0..R {
                                let x = _mm256_i32gather_ps::<4>(base.add(r * job.width), place);
                                sums[r] = _mm256_fmadd_ps(value, x, sums[r]);
                            }
                        } else {
                            // The permutation reads three bits; the fourth, moved to the sign, chooses the half.
                            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(places));
                            for r in 0..R {
                                let x = base.add(r * job.width);
                                let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x), places);
                                let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x.add(8)), places);
                                sums[r] = _mm256_fmadd_ps(value, _mm256_blendv_ps(low, high, upper), sums[r]);
                            }
                        }
                        places = _mm256_srl_epi32(places, shift);
                    }
                }
            }
            for r in 0..R {
                let mut sum = sums[r];
                if KEPT == INT8 {
                    sum = _mm256_mul_ps(sum, _mm256_loadu_ps(job.scales.add(8 * part)));
                }
                _mm256_storeu_ps(job.y.add(r * job.stride + 8 * part), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn rows_512<const KEPT: u8, const SLOTS: usize>(rows: usize, wide: usize, job: &Job<'_>) {
        unsafe {
            match (rows, wide) {
                (1, 4) => tile_512::<1, 4, KEPT, SLOTS>(job),
                (2, 2) => tile_512::<2, 2, KEPT, SLOTS>(job),
                (1, _) => tile_512::<1, 1, KEPT, SLOTS>(job),
                (2, _) => tile_512::<2, 1, KEPT, SLOTS>(job),
                (3, _) => tile_512::<3, 1, KEPT, SLOTS>(job),
                (4, _) => tile_512::<4, 1, KEPT, SLOTS>(job),
                (5, _) => tile_512::<5, 1, KEPT, SLOTS>(job),
                (6, _) => tile_512::<6, 1, KEPT, SLOTS>(job),
                (7, _) => tile_512::<7, 1, KEPT, SLOTS>(job),
                _ => tile_512::<8, 1, KEPT, SLOTS>(job),
            }
        }
    }

    #[inline(always)]
    unsafe fn slots_512<const KEPT: u8>(rows: usize, wide: usize, job: &Job<'_>) {
        unsafe {
            match job.layout.slots {
                8 if job.layout.bits == 4 => rows_512::<KEPT, 8>(rows, wide, job),
                4 if job.layout.bits == 4 => rows_512::<KEPT, 4>(rows, wide, job),
                2 if job.layout.bits == 4 => rows_512::<KEPT, 2>(rows, wide, job),
                1 if job.layout.bits == 4 => rows_512::<KEPT, 1>(rows, wide, job),
                _ => rows_512::<KEPT, 0>(rows, wide, job),
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

    #[inline(always)]
    unsafe fn rows_256<const KEPT: u8>(rows: usize, job: &Job<'_>) {
        unsafe {
            for part in 0..2 {
                match rows {
                    1 => tile_256::<1, KEPT>(job, part),
                    2 => tile_256::<2, KEPT>(job, part),
                    3 => tile_256::<3, KEPT>(job, part),
                    _ => tile_256::<4, KEPT>(job, part),
                }
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run_256(rows: usize, job: &Job<'_>) {
        unsafe {
            match job.layout.kept {
                Kept::F32 => rows_256::<F32>(rows, job),
                Kept::Bf16 => rows_256::<BF16>(rows, job),
                Kept::Int8 => rows_256::<INT8>(rows, job),
            }
        }
    }
}
