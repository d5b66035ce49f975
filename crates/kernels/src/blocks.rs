//! Weights as integers of 4 or 8 bits in blocks of 32 inputs.
//!
//! A block of an output has a scale and a zero point or a minimum: `w = (q - zero) scale` or `w = q scale + min`.
//! Blocks of GGUF files (Q4_0, Q4_1, Q8_0) are taken as they are, without quantising anew.
//!
//! **Activations** are rounded to 16 bits by blocks of 32: `x ~ s i` with `s = max |x| / 32639` and an integer `i`,
//! so that a block's sum is one of integers and exact. What that costs is at most half a step an input:
//! `|error of y| <= sum over blocks of s / 2 * sum |w|`, that is `1.6e-5 max |x|` a weight, a thousandth of what
//! rounding the weights to four bits cost. [`Blocks::unpack`] into [`Dense`](crate::Dense) keeps the activations as
//! they are: it is the reference that tests hold this against.
//!
//! Layout: panels of 16 outputs; in a panel, block after block, a line holds four inputs (of four bits: eight)
//! of each output, which is what an instruction multiplies and adds at once. Scales and zero points follow in
//! the same order.

use half::f16;

use crate::error::{area, finite, length};
use crate::isa::{Isa, Level};
use crate::lines::{LINE, Lines};
use crate::parallel::Parallel;
#[cfg(target_arch = "x86_64")]
use crate::parallel::split;
use crate::{KernelError, Product, Result};

/// Inputs a block.
pub const BLOCK: usize = 32;
/// Outputs a panel.
const PANEL: usize = 16;
/// The largest rounded activation: the largest number whose two bytes are both at most 127.
const TOP: f32 = 32639.0;
/// Weights below which a part is not worth a thread.
#[cfg(target_arch = "x86_64")]
const LEAST: usize = 1 << 17;

/// Bits a weight, and what a block has besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// 4 or 8.
    pub bits: Bits,
    /// Scale and offset.
    pub offset: Offset,
}

/// Bits a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Four.
    Four,
    /// Eight.
    Eight,
}

/// What a block has besides its integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offset {
    /// A scale in f16; the zero point is the middle of the range, 8 or 128.
    Middle,
    /// Scale and minimum in f16.
    Minimum,
    /// A scale in f32 and a zero point in a byte.
    Zero,
}

/// The blocks of GGUF files that can be taken as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // ggml's names
pub enum Gguf {
    Q4_0,
    Q4_1,
    Q8_0,
}

impl Gguf {
    /// Bytes a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// The form it becomes.
    pub fn form(self) -> Form {
        match self {
            Self::Q4_0 => Form { bits: Bits::Four, offset: Offset::Middle },
            Self::Q4_1 => Form { bits: Bits::Four, offset: Offset::Minimum },
            Self::Q8_0 => Form { bits: Bits::Eight, offset: Offset::Middle },
        }
    }
}

/// A matrix `[outs, ins]` of integers in blocks.
#[derive(Clone)]
pub struct Blocks<'a> {
    lines: Lines<'a>,
    form: Form,
    outs: usize,
    ins: usize,
}

impl std::fmt::Debug for Blocks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blocks {:?} [{}, {}]", self.form, self.outs, self.ins)
    }
}

/// Where the parts of a packed matrix lie, in bytes.
#[derive(Clone, Copy)]
struct Layout {
    /// Blocks a row.
    blocks: usize,
    /// Bytes of a panel's block of integers.
    codes: usize,
    scales: usize,
    /// Minima or zero points.
    others: usize,
    total: usize,
}

impl Layout {
    fn of(form: Form, outs: usize, ins: usize) -> Self {
        let blocks = ins.div_ceil(BLOCK);
        let cells = outs.div_ceil(PANEL) * blocks;
        let codes = match form.bits {
            Bits::Four => PANEL * BLOCK / 2,
            Bits::Eight => PANEL * BLOCK,
        };
        let (scale, other) = match form.offset {
            Offset::Middle => (2, 0),
            Offset::Minimum => (2, 2),
            Offset::Zero => (4, 1),
        };
        let scales = cells * codes;
        let others = (scales + cells * PANEL * scale).next_multiple_of(LINE);
        let total = (others + cells * PANEL * other).next_multiple_of(LINE);
        Self { blocks, codes, scales, others, total }
    }
}

impl Blocks<'static> {
    /// Packs the blocks of a GGUF file's matrix `[outs, ins]`.
    ///
    /// # Errors
    /// Inputs that do not fill blocks; another number of bytes; a scale or minimum that is not finite.
    pub fn from_gguf(bytes: &[u8], outs: usize, ins: usize, kind: Gguf) -> Result<Self> {
        area(outs, ins)?;
        if ins % BLOCK != 0 {
            return Err(KernelError::Divide { ins, what: "blocks", size: BLOCK });
        }
        length("bytes of blocks", bytes.len(), outs * (ins / BLOCK) * kind.bytes())?;
        let mut packed = Self::empty(kind.form(), outs, ins);
        for (at, block) in bytes.chunks_exact(kind.bytes()).enumerate() {
            let (out, block_at) = (at / (ins / BLOCK), at % (ins / BLOCK));
            let half = |i: usize| f16::from_le_bytes([block[2 * i], block[2 * i + 1]]);
            let halves = if kind == Gguf::Q4_1 { 2 } else { 1 };
            for i in 0..halves {
                let value = half(i).to_f32();
                if !value.is_finite() {
                    let what = if i == 0 { "scale of block" } else { "minimum of block" };
                    return Err(KernelError::NotFinite { what, index: at, value });
                }
            }
            let codes = &block[2 * halves..];
            let bytes: [u8; BLOCK] = match kind {
                Gguf::Q4_0 | Gguf::Q4_1 => {
                    std::array::from_fn(|k| if k < 16 { codes[k] & 15 } else { codes[k - 16] >> 4 })
                }
                Gguf::Q8_0 => std::array::from_fn(|k| codes[k] ^ 0x80),
            };
            let minimum = if halves == 2 { half(1).to_bits() } else { 0 };
            packed.put(out, block_at, &bytes, Scale::Half(half(0).to_bits(), minimum));
        }
        Ok(packed)
    }

    /// Packs integers with scales and zero points. `codes` `[outs, blocks * 32]`, one a byte; `scales` and `zeros`
    /// `[outs, blocks]`, where `blocks = ceil(ins / 32)`.
    ///
    /// # Errors
    /// Slices of other lengths; a scale that is not finite; an integer that needs more bits.
    pub fn pack(
        codes: &[u8],
        scales: &[f32],
        zeros: &[u8],
        outs: usize,
        ins: usize,
        bits: Bits,
    ) -> Result<Self> {
        area(outs, ins)?;
        let blocks = ins.div_ceil(BLOCK);
        length("integers", codes.len(), outs * blocks * BLOCK)?;
        length("scales", scales.len(), outs * blocks)?;
        length("zero points", zeros.len(), outs * blocks)?;
        finite("scale of block", scales)?;
        let most = match bits {
            Bits::Four => 15,
            Bits::Eight => 255,
        };
        if let Some(at) = codes.iter().chain(zeros).position(|&code| code > most) {
            return Err(KernelError::Packed { why: format!("integer {at} is larger than {most}") });
        }
        let mut packed = Self::empty(Form { bits, offset: Offset::Zero }, outs, ins);
        for (at, codes) in codes.as_chunks::<BLOCK>().0.iter().enumerate() {
            // What lies behind the last input must be something that never counts.
            let mut codes = *codes;
            let block = at % blocks;
            codes[(ins - block * BLOCK).min(BLOCK)..].fill(zeros[at]);
            packed.put(at / blocks, block, &codes, Scale::Full(scales[at], zeros[at]));
        }
        Ok(packed)
    }

    fn empty(form: Form, outs: usize, ins: usize) -> Self {
        Self { lines: Lines::zeros(Layout::of(form, outs, ins).total), form, outs, ins }
    }

    fn put(&mut self, out: usize, block: usize, codes: &[u8; BLOCK], scale: Scale) {
        let layout = Layout::of(self.form, self.outs, self.ins);
        let (cell, lane) = (out / PANEL * layout.blocks + block, out % PANEL);
        let bits = self.form.bits;
        let bytes: &mut [u8] = self.lines.get_mut();
        for (k, &code) in codes.iter().enumerate() {
            let (at, shift) = place(bits, lane, k);
            bytes[cell * layout.codes + at] |= code << shift;
        }
        let at = cell * PANEL + lane;
        match scale {
            Scale::Half(scale, minimum) => {
                let to = layout.scales + 2 * at;
                bytes[to..to + 2].copy_from_slice(&scale.to_le_bytes());
                if self.form.offset == Offset::Minimum {
                    let to = layout.others + 2 * at;
                    bytes[to..to + 2].copy_from_slice(&minimum.to_le_bytes());
                }
            }
            Scale::Full(scale, zero) => {
                let to = layout.scales + 4 * at;
                bytes[to..to + 4].copy_from_slice(&scale.to_le_bytes());
                bytes[layout.others + at] = zero;
            }
        }
    }
}

enum Scale {
    /// Scale and minimum, bits of f16.
    Half(u16, u16),
    /// Scale and zero point.
    Full(f32, u8),
}

/// The byte of an integer in its panel's block, and by how much it is shifted in there.
fn place(bits: Bits, lane: usize, k: usize) -> (usize, u32) {
    match bits {
        Bits::Four => ((k % 16 / 4 * PANEL + lane) * 4 + k % 4, (k / 16 * 4) as u32),
        Bits::Eight => ((k / 4 * PANEL + lane) * 4 + k % 4, 0),
    }
}

/// Scale, zero point and minimum of a block: `w = (q - zero) scale + minimum`.
#[derive(Clone, Copy)]
struct Meaning {
    scale: f32,
    zero: f32,
    minimum: f32,
}

impl<'a> Blocks<'a> {
    /// A matrix that was packed before, from [`packed`](Product::packed) bytes. They are used where they lie if
    /// they begin on a cache line, and copied otherwise. Their numbers are taken as they are.
    ///
    /// # Errors
    /// Another number of bytes than such a matrix has.
    pub fn from_packed(bytes: &'a [u8], outs: usize, ins: usize, form: Form) -> Result<Self> {
        area(outs, ins)?;
        Ok(Self { lines: Lines::from_bytes(bytes, Layout::of(form, outs, ins).total)?, form, outs, ins })
    }

    /// Bytes of such a matrix when packed; 0 for one that is refused.
    pub fn packed_bytes(outs: usize, ins: usize, form: Form) -> usize {
        area(outs, ins).map_or(0, |_| Layout::of(form, outs, ins).total)
    }

    /// Bits and offset.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The numbers it stands for, row-major `[outs, ins]`, as the formats define them.
    pub fn unpack(&self) -> Vec<f32> {
        let layout = Layout::of(self.form, self.outs, self.ins);
        let mut weights = Vec::with_capacity(self.outs * self.ins);
        for out in 0..self.outs {
            for k in 0..self.ins {
                let meaning = self.meaning(layout, out, k / BLOCK);
                let code = self.code(layout, out, k);
                weights.push(match self.form.offset {
                    Offset::Minimum => meaning.scale * code as f32 + meaning.minimum,
                    _ => (code as f32 - meaning.zero) * meaning.scale,
                });
            }
        }
        weights
    }

    fn code(&self, layout: Layout, out: usize, k: usize) -> i32 {
        let cell = out / PANEL * layout.blocks + k / BLOCK;
        let (at, shift) = place(self.form.bits, out % PANEL, k % BLOCK);
        let byte = self.lines.get::<u8>()[cell * layout.codes + at] >> shift;
        i32::from(if self.form.bits == Bits::Four { byte & 15 } else { byte })
    }

    fn meaning(&self, layout: Layout, out: usize, block: usize) -> Meaning {
        let bytes = self.lines.get::<u8>();
        let at = (out / PANEL * layout.blocks + block) * PANEL + out % PANEL;
        let half =
            |from: usize| f16::from_le_bytes([bytes[from + 2 * at], bytes[from + 2 * at + 1]]).to_f32();
        let middle = if self.form.bits == Bits::Four { 8.0 } else { 128.0 };
        match self.form.offset {
            Offset::Middle => Meaning { scale: half(layout.scales), zero: middle, minimum: 0.0 },
            Offset::Minimum => {
                Meaning { scale: half(layout.scales), zero: 0.0, minimum: half(layout.others) }
            }
            Offset::Zero => {
                let from = layout.scales + 4 * at;
                let scale = [bytes[from], bytes[from + 1], bytes[from + 2], bytes[from + 3]];
                let zero = f32::from(bytes[layout.others + at]);
                Meaning { scale: f32::from_le_bytes(scale), zero, minimum: 0.0 }
            }
        }
    }

    /// The plain loop that everything else must equal to the bit.
    fn scalar(&self, x: &[f32], y: &mut [f32]) {
        let layout = Layout::of(self.form, self.outs, self.ins);
        for (x, y) in x.chunks_exact(self.ins).zip(y.chunks_exact_mut(self.outs)) {
            let rounded: Vec<Rounded> = x.chunks(BLOCK).map(Rounded::of).collect();
            for (out, y) in y.iter_mut().enumerate() {
                let mut sum = 0.0f32;
                for (block, x) in rounded.iter().enumerate() {
                    let products = x.values.iter().enumerate();
                    let dot: i32 =
                        products.map(|(k, &x)| self.code(layout, out, block * BLOCK + k) * x).sum();
                    let meaning = self.meaning(layout, out, block);
                    let mut dot = dot as f32;
                    if self.form.offset != Offset::Minimum {
                        dot = (-meaning.zero).mul_add(x.sum, dot);
                    }
                    sum = (meaning.scale * x.step).mul_add(dot, sum);
                    if self.form.offset == Offset::Minimum {
                        sum = meaning.minimum.mul_add(x.step * x.sum, sum);
                    }
                }
                *y = sum;
            }
        }
    }
}

impl Product for Blocks<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.outs, self.ins]
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

/// A block of activations in 16 bits.
struct Rounded {
    values: [i32; BLOCK],
    /// The sum of `values`.
    sum: f32,
    /// What one step is worth.
    step: f32,
}

impl Rounded {
    /// At most 32 activations, followed by zeros. A block with a number that is not finite makes a step that is
    /// not a number, and so do all products with it.
    #[inline(always)]
    fn of(x: &[f32]) -> Self {
        let mut padded = [0.0; BLOCK];
        padded[..x.len()].copy_from_slice(x);
        let mut bits = [0u32; 8];
        // Magnitudes order as integers do; what is not a number comes out on top.
        for eight in padded.as_chunks::<8>().0 {
            for lane in 0..8 {
                bits[lane] = bits[lane].max(eight[lane].to_bits() & 0x7fff_ffff);
            }
        }
        let most = f32::from_bits(bits.into_iter().fold(0, u32::max));
        if !most.is_finite() {
            return Self { values: [0; BLOCK], sum: 0.0, step: f32::NAN };
        }
        if most == 0.0 {
            return Self { values: [0; BLOCK], sum: 0.0, step: 0.0 };
        }
        let inverse = TOP / most;
        if !inverse.is_finite() {
            // Denormals: rare, and their steps have few bits.
            let inverse = f64::from(TOP) / f64::from(most);
            let values = padded.map(|x| (f64::from(x) * inverse).round_ties_even() as i32);
            let step = (f64::from(most) / f64::from(TOP)) as f32;
            return Self { values, sum: values.iter().sum::<i32>() as f32, step };
        }
        // SAFETY: finite, and at most TOP and a rounding in magnitude.
        let values = padded.map(|x| unsafe { (x * inverse).round_ties_even().to_int_unchecked::<i32>() });
        Self { values, sum: values.iter().sum::<i32>() as f32, step: most / TOP }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::cell::RefCell;

    use super::*;
    use crate::rows::{Group, Outputs, groups};

    const MOST_512: usize = 8;
    const MOST_256: usize = 4;
    /// Bytes ahead of the integers being read that are asked for.
    const AHEAD: usize = 2048;

    /// A rounded block as kernels read it: bytes or pairs, then sum and step.
    #[repr(C, align(64))]
    #[derive(Clone, Copy)]
    pub(super) struct Cell {
        /// AVX-512: the high bytes of four inputs each, then the low ones. AVX2: pairs of 16 bits, of inputs
        /// 0 and 2, 1 and 3 of each four.
        values: [i32; 16],
    }

    thread_local! {
        static SCRATCH: RefCell<(Vec<Cell>, Vec<[f32; 2]>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    }

    #[inline(always)]
    fn cell(rounded: &Rounded, level: Level) -> Cell {
        let mut values = [0i32; 16];
        if level == Level::Avx512 {
            let high: [u8; BLOCK] = rounded.values.map(|value| ((value + 128) >> 8) as u8);
            let low: [u8; BLOCK] = rounded.values.map(|value| value as u8);
            for four in 0..8 {
                let word = |bytes: &[u8; BLOCK]| {
                    let at = 4 * four;
                    i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
                };
                values[four] = word(&high);
                values[8 + four] = word(&low);
            }
        } else {
            for four in 0..8 {
                let pair = |a: usize, b: usize| {
                    (rounded.values[4 * four + a] & 0xffff) | (rounded.values[4 * four + b] << 16)
                };
                values[2 * four] = pair(0, 2);
                values[2 * four + 1] = pair(1, 3);
            }
        }
        Cell { values }
    }

    #[inline(always)]
    fn round(
        x: &[f32],
        ins: usize,
        groups: &[Group],
        cells: &mut [Cell],
        steps: &mut [[f32; 2]],
        level: Level,
    ) {
        let blocks = ins.div_ceil(BLOCK);
        for group in groups {
            for row in 0..group.rows {
                let x = &x[(group.start + row) * ins..][..ins];
                for (block, x) in x.chunks(BLOCK).enumerate() {
                    let rounded = Rounded::of(x);
                    let at = group.start * blocks + block * group.rows + row;
                    cells[at] = cell(&rounded, level);
                    steps[at] = [rounded.sum, rounded.step];
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn round_512(x: &[f32], ins: usize, groups: &[Group], cells: &mut [Cell], steps: &mut [[f32; 2]]) {
        round(x, ins, groups, cells, steps, Level::Avx512);
    }

    #[target_feature(enable = "avx2,fma")]
    fn round_256(x: &[f32], ins: usize, groups: &[Group], cells: &mut [Cell], steps: &mut [[f32; 2]]) {
        round(x, ins, groups, cells, steps, Level::Avx2);
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
        cells.clear();
        cells.resize(rows * layout.blocks, Cell { values: [0; 16] });
        steps.clear();
        steps.resize(rows * layout.blocks, [0.0; 2]);
        // SAFETY: the level was detected.
        unsafe {
            match level {
                Level::Avx512 => round_512(x, w.ins, &groups, &mut cells, &mut steps),
                _ => round_256(x, w.ins, &groups, &mut cells, &mut steps),
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
                                Level::Avx512 => run_512(w.form, group.rows, &job),
                                _ => run_256(w.form, group.rows, &job),
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
    unsafe fn tile_512<const R: usize, const EIGHT: bool, const OFFSET: u8>(job: &Job) {
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
                            high_dots[r] =
                                _mm512_dpbusd_epi32(high_dots[r], halves[half], _mm512_set1_epi32(*x));
                            low_dots[r] =
                                _mm512_dpbusd_epi32(low_dots[r], halves[half], _mm512_set1_epi32(*x.add(8)));
                        }
                    }
                }
                let [scale, other] = meaning_512::<EIGHT, OFFSET>(job, job.first + block);
                for r in 0..R {
                    let [sum, step] = *job.steps.add(block * R + r);
                    let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(high_dots[r]), low_dots[r]);
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

    #[inline(always)]
    unsafe fn tile_256<const R: usize, const EIGHT: bool, const OFFSET: u8>(job: &Job, part: usize) {
        unsafe {
            let (nibble, byte) = (_mm256_set1_epi8(15), _mm256_set1_epi16(255));
            let mut sums = [_mm256_setzero_ps(); R];
            let lines = if EIGHT { 8 } else { 4 };
            for block in 0..job.blocks {
                let codes = job.codes.add(block * lines * LINE + 32 * part);
                let cells = job.cells.add(block * R).cast::<i32>();
                let mut dots = [_mm256_setzero_si256(); R];
                for line in 0..lines {
                    let from = codes.add(line * LINE);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(job.ahead).cast());
                    let w = _mm256_loadu_si256(from.cast());
                    let halves = if EIGHT {
                        [w, w]
                    } else {
                        [_mm256_and_si256(w, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble)]
                    };
                    for half in 0..if EIGHT { 1 } else { 2 } {
                        let even = _mm256_and_si256(halves[half], byte);
                        let odd = _mm256_srli_epi16::<8>(halves[half]);
                        for r in 0..R {
                            let x = cells.add(16 * r + 2 * (line + 4 * half));
                            let a = _mm256_madd_epi16(even, _mm256_set1_epi32(*x));
                            let b = _mm256_madd_epi16(odd, _mm256_set1_epi32(*x.add(1)));
                            dots[r] = _mm256_add_epi32(dots[r], _mm256_add_epi32(a, b));
                        }
                    }
                }
                let [scale, other] = meaning_256::<EIGHT, OFFSET>(job, job.first + block, part);
                for r in 0..R {
                    let [sum, step] = *job.steps.add(block * R + r);
                    let mut dot = _mm256_cvtepi32_ps(dots[r]);
                    if OFFSET != MINIMUM {
                        dot = _mm256_fnmadd_ps(other, _mm256_set1_ps(sum), dot);
                    }
                    sums[r] = _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(step)), dot, sums[r]);
                    if OFFSET == MINIMUM {
                        sums[r] = _mm256_fmadd_ps(other, _mm256_set1_ps(step * sum), sums[r]);
                    }
                }
            }
            for r in 0..R {
                _mm256_storeu_ps(job.y.add(r * job.stride + 8 * part), sums[r]);
            }
        }
    }

    macro_rules! by_form {
        ($form:expr, $call:ident) => {
            match ($form.bits, $form.offset) {
                (Bits::Four, Offset::Middle) => $call!(false, MIDDLE),
                (Bits::Four, Offset::Minimum) => $call!(false, MINIMUM),
                (Bits::Four, Offset::Zero) => $call!(false, ZERO),
                (Bits::Eight, Offset::Middle) => $call!(true, MIDDLE),
                (Bits::Eight, Offset::Minimum) => $call!(true, MINIMUM),
                (Bits::Eight, Offset::Zero) => $call!(true, ZERO),
            }
        };
    }

    /// # Safety
    /// AVX-512 with VNNI; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn run_512(form: Form, rows: usize, job: &Job) {
        unsafe {
            macro_rules! rows {
                ($eight:expr, $offset:expr) => {
                    match rows {
                        1 => tile_512::<1, { $eight }, { $offset }>(job),
                        2 => tile_512::<2, { $eight }, { $offset }>(job),
                        3 => tile_512::<3, { $eight }, { $offset }>(job),
                        4 => tile_512::<4, { $eight }, { $offset }>(job),
                        5 => tile_512::<5, { $eight }, { $offset }>(job),
                        6 => tile_512::<6, { $eight }, { $offset }>(job),
                        7 => tile_512::<7, { $eight }, { $offset }>(job),
                        _ => tile_512::<8, { $eight }, { $offset }>(job),
                    }
                };
            }
            by_form!(form, rows);
        }
    }

    /// # Safety
    /// AVX2, FMA and F16C; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run_256(form: Form, rows: usize, job: &Job) {
        unsafe {
            for part in 0..2 {
                macro_rules! rows {
                    ($eight:expr, $offset:expr) => {
                        match rows {
                            1 => tile_256::<1, { $eight }, { $offset }>(job, part),
                            2 => tile_256::<2, { $eight }, { $offset }>(job, part),
                            3 => tile_256::<3, { $eight }, { $offset }>(job, part),
                            _ => tile_256::<4, { $eight }, { $offset }>(job, part),
                        }
                    };
                }
                by_form!(form, rows);
            }
        }
    }
}
