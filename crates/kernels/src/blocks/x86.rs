//! Blocks with AVX2 and AVX-512.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::*;
use crate::rows::{Group, Outputs, groups};

const MOST_512: usize = 8;
const MOST_256: usize = 6;
/// Bytes ahead of the integers being read that are asked for.
const AHEAD: usize = 2048;

/// A rounded block as kernels read it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Cell {
    values: [i32; 16],
}

/// How a rounded block lies in its cell.
#[derive(Clone, Copy)]
enum Spread {
    /// The high bytes of four inputs each, then the low ones. Activations of 8 bits have no high ones: they are the first
    /// eight words.
    Bytes,
    /// Pairs of 16 bits, of inputs 0 and 2, 1 and 3 of each four.
    Pairs,
}

impl Spread {
    /// For AVX2, products of bytes are for weights of four bits alone: those of larger ones do not fit their sums.
    fn of(level: Level, bits: Bits, activations: Activations) -> Self {
        match (level, bits, activations) {
            (Level::Avx512, ..) | (_, Bits::Four, Activations::Eight) => Self::Bytes,
            _ => Self::Pairs,
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<(Vec<Cell>, Vec<[f32; 2]>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

#[inline(always)]
fn cell(rounded: &Rounded, spread: Spread, activations: Activations) -> Cell {
    let values = &rounded.values;
    let values = match spread {
        Spread::Bytes => {
            let mut bytes = [[0u8; BLOCK]; 2];
            for k in 0..BLOCK {
                match activations {
                    Activations::Sixteen => {
                        bytes[0][k] = ((values[k] + 128) >> 8) as u8;
                        bytes[1][k] = values[k] as u8;
                    }
                    Activations::Eight => bytes[0][k] = values[k] as u8,
                }
            }
            bytemuck::cast(bytes)
        }
        Spread::Pairs => {
            let mut pairs = [0i16; BLOCK];
            for k in (0..BLOCK).step_by(4) {
                for (to, from) in [0, 2, 1, 3].into_iter().enumerate() {
                    pairs[k + to] = values[k + from] as i16;
                }
            }
            bytemuck::cast(pairs)
        }
    };
    Cell { values }
}

/// Rows to be rounded, and where to.
struct Rounding<'a> {
    x: &'a [f32],
    ins: usize,
    groups: &'a [Group],
    cells: &'a mut [Cell],
    steps: &'a mut [[f32; 2]],
    spread: Spread,
    activations: Activations,
}

#[inline(always)]
fn round(job: Rounding<'_>) {
    let blocks = job.ins.div_ceil(BLOCK);
    for group in job.groups {
        for row in 0..group.rows {
            let x = &job.x[(group.start + row) * job.ins..][..job.ins];
            for (block, x) in x.chunks(BLOCK).enumerate() {
                let rounded = Rounded::of(x, job.activations);
                let at = group.start * blocks + block * group.rows + row;
                job.cells[at] = cell(&rounded, job.spread, job.activations);
                job.steps[at] = [rounded.sum, rounded.step];
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn round_512(job: Rounding<'_>) {
    round(job);
}

#[target_feature(enable = "avx2,fma")]
fn round_256(job: Rounding<'_>) {
    round(job);
}

pub(super) fn multiply(
    w: &Blocks<'_>,
    level: Level,
    x: &[f32],
    rows: usize,
    y: &mut [f32],
    threads: &dyn Parallel,
) {
    let layout = Layout::of(w.form, w.outs, w.ins);
    let groups = groups(rows, if level == Level::Avx512 { MOST_512 } else { MOST_256 });
    let (mut cells, mut steps) = SCRATCH.take();
    let count = rows * layout.blocks;
    if cells.len() < count {
        cells.resize(count, Cell { values: [0; 16] });
        steps.resize(count, [0.0; 2]);
    }
    let activations = w.activations;
    let job = Rounding {
        x,
        ins: w.ins,
        groups: &groups,
        cells: &mut cells,
        steps: &mut steps,
        spread: Spread::of(level, w.form.bits, activations),
        activations,
    };
    // SAFETY: the level was detected.
    unsafe {
        match level {
            Level::Avx512 => round_512(job),
            _ => round_256(job),
        }
    }
    let outputs = Outputs::new(y, w.outs);
    let panels = w.outs.div_ceil(PANEL);
    let bytes = w.lines.get::<u8>();
    assert!(bytes.len() == layout.total);
    split(threads, panels, LEAST / (PANEL * w.ins) + 1, &|range| {
        for panel in range {
            for (index, group) in groups.iter().enumerate() {
                let at = group.start * layout.blocks;
                let len = group.rows * layout.blocks;
                let (cells, steps) = (&cells[at..at + len], &steps[at..at + len]);
                let first = panel * layout.blocks;
                // SAFETY: these columns belong to this panel; the tile reads `blocks` blocks of it and of
                // the group's rows, which the layout and the slices above hold.
                unsafe {
                    outputs.tile(*group, panel * PANEL, PANEL, false, |y, stride| {
                        let start = bytes.as_ptr();
                        let job = Job {
                            codes: start.add(first * layout.codes),
                            scales: start.add(layout.scales),
                            others: start.add(layout.others),
                            first,
                            blocks: layout.blocks,
                            cells: cells.as_ptr(),
                            steps: steps.as_ptr(),
                            y,
                            stride,
                            ahead: if index == 0 { AHEAD } else { 0 },
                        };
                        match level {
                            Level::Avx512 => run_512(w.form, activations, group.rows, &job),
                            _ => run_256(w.form, activations, group.rows, &job),
                        }
                    });
                }
            }
        }
    });
    SCRATCH.set((cells, steps));
}

/// A panel and a group of rows.
pub(super) struct Job {
    codes: *const u8,
    scales: *const u8,
    others: *const u8,
    first: usize,
    blocks: usize,
    cells: *const Cell,
    steps: *const [f32; 2],
    y: *mut f32,
    stride: usize,
    ahead: usize,
}

const MIDDLE: u8 = 0;
const MINIMUM: u8 = 1;
const ZERO: u8 = 2;

/// Scale and offset of a block, from the panel's lanes on.
#[inline(always)]
unsafe fn meaning_512<const EIGHT: bool, const OFFSET: u8>(job: &Job, cell: usize) -> [__m512; 2] {
    unsafe {
        let at = cell * PANEL;
        let half = |from: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(from.add(2 * at).cast()));
        match OFFSET {
            MIDDLE => [half(job.scales), _mm512_set1_ps(if EIGHT { 128.0 } else { 8.0 })],
            MINIMUM => [half(job.scales), half(job.others)],
            _ => {
                let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(job.others.add(at).cast()));
                [_mm512_loadu_ps(job.scales.add(4 * at).cast()), _mm512_cvtepi32_ps(zeros)]
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_512<const R: usize, const EIGHT: bool, const OFFSET: u8, const A8: bool>(job: &Job) {
    unsafe {
        let low = _mm512_set1_epi8(15);
        let mut sums = [_mm512_setzero_ps(); R];
        let lines = if EIGHT { 8 } else { 4 };
        for block in 0..job.blocks {
            let codes = job.codes.add(block * lines * LINE);
            let cells = job.cells.add(block * R).cast::<i32>();
            let mut high_dots = [_mm512_setzero_si512(); R];
            let mut low_dots = [_mm512_setzero_si512(); R];
            for line in 0..lines {
                let from = codes.add(line * LINE);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(job.ahead).cast());
                let w = _mm512_loadu_si512(from.cast());
                let halves = if EIGHT {
                    [w, w]
                } else {
                    [_mm512_and_si512(w, low), _mm512_and_si512(_mm512_srli_epi16::<4>(w), low)]
                };
                for half in 0..if EIGHT { 1 } else { 2 } {
                    for r in 0..R {
                        let x = cells.add(16 * r + line + 4 * half);
                        high_dots[r] = _mm512_dpbusd_epi32(high_dots[r], halves[half], _mm512_set1_epi32(*x));
                        if !A8 {
                            let low = _mm512_set1_epi32(*x.add(8));
                            low_dots[r] = _mm512_dpbusd_epi32(low_dots[r], halves[half], low);
                        }
                    }
                }
            }
            let [scale, other] = meaning_512::<EIGHT, OFFSET>(job, job.first + block);
            for r in 0..R {
                let [sum, step] = *job.steps.add(block * R + r);
                let dot = match A8 {
                    true => high_dots[r],
                    false => _mm512_add_epi32(_mm512_slli_epi32::<8>(high_dots[r]), low_dots[r]),
                };
                let mut dot = _mm512_cvtepi32_ps(dot);
                if OFFSET != MINIMUM {
                    dot = _mm512_fnmadd_ps(other, _mm512_set1_ps(sum), dot);
                }
                sums[r] = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(step)), dot, sums[r]);
                if OFFSET == MINIMUM {
                    sums[r] = _mm512_fmadd_ps(other, _mm512_set1_ps(step * sum), sums[r]);
                }
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(job.y.add(r * job.stride), sums[r]);
        }
    }
}

#[inline(always)]
unsafe fn meaning_256<const EIGHT: bool, const OFFSET: u8>(
    job: &Job,
    cell: usize,
    part: usize,
) -> [__m256; 2] {
    unsafe {
        let at = cell * PANEL + 8 * part;
        let half = |from: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(from.add(2 * at).cast()));
        match OFFSET {
            MIDDLE => [half(job.scales), _mm256_set1_ps(if EIGHT { 128.0 } else { 8.0 })],
            MINIMUM => [half(job.scales), half(job.others)],
            _ => {
                let zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(job.others.add(at).cast()));
                [_mm256_loadu_ps(job.scales.add(4 * at).cast()), _mm256_cvtepi32_ps(zeros)]
            }
        }
    }
}

/// `P` of the panel's halves, from `part` on.
#[inline(always)]
unsafe fn tile_256<const R: usize, const P: usize, const EIGHT: bool, const OFFSET: u8, const A8: bool>(
    job: &Job,
    part: usize,
) {
    unsafe {
        // Products of bytes are added in 16 bits: a block's are at most 32 * 15 * 127 / 2 in each of two sums.
        let bytes = A8 && !EIGHT;
        let (nibble, byte, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(255), _mm256_set1_epi16(1));
        let mut sums = [[_mm256_setzero_ps(); R]; P];
        let lines = if EIGHT { 8 } else { 4 };
        for block in 0..job.blocks {
            let codes = job.codes.add(block * lines * LINE + 32 * part);
            let cells = job.cells.add(block * R).cast::<i32>();
            let mut dots = [[_mm256_setzero_si256(); R]; P];
            for line in 0..lines {
                let from = codes.add(line * LINE);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(job.ahead).cast());
                for p in 0..P {
                    let w = _mm256_loadu_si256(from.add(32 * p).cast());
                    let halves = if EIGHT {
                        [w, w]
                    } else {
                        [_mm256_and_si256(w, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble)]
                    };
                    for half in 0..if EIGHT { 1 } else { 2 } {
                        let four = line + 4 * half;
                        if bytes {
                            for r in 0..R {
                                let x = _mm256_set1_epi32(*cells.add(16 * r + four));
                                let products = _mm256_maddubs_epi16(halves[half], x);
                                dots[p][r] = _mm256_add_epi16(dots[p][r], products);
                            }
                            continue;
                        }
                        let even = _mm256_and_si256(halves[half], byte);
                        let odd = _mm256_srli_epi16::<8>(halves[half]);
                        for r in 0..R {
                            let x = cells.add(16 * r + 2 * four);
                            let a = _mm256_madd_epi16(even, _mm256_set1_epi32(*x));
                            let b = _mm256_madd_epi16(odd, _mm256_set1_epi32(*x.add(1)));
                            dots[p][r] = _mm256_add_epi32(dots[p][r], _mm256_add_epi32(a, b));
                        }
                    }
                }
            }
            for p in 0..P {
                let [scale, other] = meaning_256::<EIGHT, OFFSET>(job, job.first + block, part + p);
                for r in 0..R {
                    let [sum, step] = *job.steps.add(block * R + r);
                    let dot = if bytes { _mm256_madd_epi16(dots[p][r], ones) } else { dots[p][r] };
                    let mut dot = _mm256_cvtepi32_ps(dot);
                    if OFFSET != MINIMUM {
                        dot = _mm256_fnmadd_ps(other, _mm256_set1_ps(sum), dot);
                    }
                    let scaled = _mm256_mul_ps(scale, _mm256_set1_ps(step));
                    sums[p][r] = _mm256_fmadd_ps(scaled, dot, sums[p][r]);
                    if OFFSET == MINIMUM {
                        sums[p][r] = _mm256_fmadd_ps(other, _mm256_set1_ps(step * sum), sums[p][r]);
                    }
                }
            }
        }
        for p in 0..P {
            for r in 0..R {
                _mm256_storeu_ps(job.y.add(r * job.stride + 8 * (part + p)), sums[p][r]);
            }
        }
    }
}

macro_rules! by_form {
    ($form:expr, $activations:expr, $call:ident) => {
        match $activations {
            Activations::Sixteen => by_form!(@ $form, $call, false),
            Activations::Eight => by_form!(@ $form, $call, true),
        }
    };
    (@ $form:expr, $call:ident, $a8:expr) => {
        match ($form.bits, $form.offset) {
            (Bits::Four, Offset::Middle) => $call!(false, MIDDLE, $a8),
            (Bits::Four, Offset::Minimum) => $call!(false, MINIMUM, $a8),
            (Bits::Four, Offset::Zero) => $call!(false, ZERO, $a8),
            (Bits::Eight, Offset::Middle) => $call!(true, MIDDLE, $a8),
            (Bits::Eight, Offset::Minimum) => $call!(true, MINIMUM, $a8),
            (Bits::Eight, Offset::Zero) => $call!(true, ZERO, $a8),
        }
    };
}

/// # Safety
/// AVX-512 with VNNI; the job's pointers lead to what it describes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn run_512(form: Form, activations: Activations, rows: usize, job: &Job) {
    unsafe {
        macro_rules! rows {
            ($eight:expr, $offset:expr, $a8:expr) => {
                match rows {
                    1 => tile_512::<1, { $eight }, { $offset }, { $a8 }>(job),
                    2 => tile_512::<2, { $eight }, { $offset }, { $a8 }>(job),
                    3 => tile_512::<3, { $eight }, { $offset }, { $a8 }>(job),
                    4 => tile_512::<4, { $eight }, { $offset }, { $a8 }>(job),
                    5 => tile_512::<5, { $eight }, { $offset }, { $a8 }>(job),
                    6 => tile_512::<6, { $eight }, { $offset }, { $a8 }>(job),
                    7 => tile_512::<7, { $eight }, { $offset }, { $a8 }>(job),
                    _ => tile_512::<8, { $eight }, { $offset }, { $a8 }>(job),
                }
            };
        }
        by_form!(form, activations, rows);
    }
}

/// # Safety
/// AVX2, FMA and F16C; the job's pointers lead to what it describes.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_256(form: Form, activations: Activations, rows: usize, job: &Job) {
    // With AVX2 weights of eight bits are multiplied in 16 whatever the activations have.
    let activations = if form.bits == Bits::Eight { Activations::Sixteen } else { activations };
    unsafe {
        macro_rules! rows {
            ($eight:expr, $offset:expr, $a8:expr) => {
                match rows {
                    // Both halves at once where there are registers for their sums: then a panel is read once.
                    1 => tile_256::<1, 2, { $eight }, { $offset }, { $a8 }>(job, 0),
                    2 if $eight || $a8 => tile_256::<2, 2, { $eight }, { $offset }, { $a8 }>(job, 0),
                    2 => halves!(2, $eight, $offset, $a8),
                    3 => halves!(3, $eight, $offset, $a8),
                    4 => halves!(4, $eight, $offset, $a8),
                    5 => halves!(5, $eight, $offset, $a8),
                    _ => halves!(6, $eight, $offset, $a8),
                }
            };
        }
        macro_rules! halves {
            ($rows:expr, $eight:expr, $offset:expr, $a8:expr) => {
                for part in 0..2 {
                    tile_256::<$rows, 1, { $eight }, { $offset }, { $a8 }>(job, part);
                }
            };
        }
        by_form!(form, activations, rows);
    }
}
