//! Dense products.

use half::bf16;

use crate::error::{area, finite, length};
use crate::isa::{Isa, Level};
use crate::lines::{LINE, Lines};
use crate::parallel::{Parallel, split};
use crate::rows::{BLOCK, Group, Outputs, blocked, groups};
use crate::{KernelError, Product, Result};

/// Outputs a panel.
const PANEL: usize = 32;
/// Inputs that are multiplied with all groups of rows before the next ones are read: 8 KB of f32 weights,
/// which stay in the first cache beside the next 8.
const CHUNK: usize = 64;
/// Weights below which a part is not worth a thread.
const LEAST: usize = 1 << 15;

/// What a dense matrix is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// Four bytes a weight.
    F32,
    /// Two bytes a weight, widened exactly as it is read. Packing rounds to the nearest, ties to even, and so
    /// loses nothing of a checkpoint that was published in bf16.
    Bf16,
}

impl Float {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A dense matrix `[outs, ins]`, packed in the order it is read.
#[derive(Clone)]
pub struct Dense<'a> {
    lines: Lines<'a>,
    float: Float,
    outs: usize,
    ins: usize,
}

impl std::fmt::Debug for Dense<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dense {:?} [{}, {}]", self.float, self.outs, self.ins)
    }
}

impl Dense<'static> {
    /// Packs a row-major matrix `[outs, ins]`.
    ///
    /// # Errors
    /// A matrix without rows or columns or of another size; a weight that is not finite, or becomes infinite in
    /// bf16.
    pub fn pack(weights: &[f32], outs: usize, ins: usize, float: Float) -> Result<Self> {
        length("weights", weights.len(), area(outs, ins)?)?;
        finite("weight", weights)?;
        let mut lines = Lines::zeros(size(outs, ins, float));
        match float {
            Float::F32 => {
                let packed: &mut [f32] = lines.get_mut();
                for (out, row) in weights.chunks_exact(ins).enumerate() {
                    let base = out / PANEL * PANEL * ins + out % PANEL;
                    for (k, &weight) in row.iter().enumerate() {
                        packed[base + k * PANEL] = weight;
                    }
                }
            }
            Float::Bf16 => {
                let packed: &mut [u16] = lines.get_mut();
                for (out, row) in weights.chunks_exact(ins).enumerate() {
                    let base = out / PANEL * PANEL * ins + half_lane(out % PANEL);
                    for (k, &weight) in row.iter().enumerate() {
                        let rounded = bf16::from_f32(weight);
                        if !rounded.is_finite() {
                            let index = out * ins + k;
                            return Err(KernelError::NotFinite {
                                what: "weight in bf16",
                                index,
                                value: weight,
                            });
                        }
                        packed[base + k * PANEL] = rounded.to_bits();
                    }
                }
            }
        }
        Ok(Self { lines, float, outs, ins })
    }
}

impl Dense<'_> {
    /// Bytes of such a matrix when packed; 0 for one that is refused.
    pub fn packed_bytes(outs: usize, ins: usize, float: Float) -> usize {
        area(outs, ins).map_or(0, |_| size(outs, ins, float))
    }
}

/// Where in its line of pairs a bf16 lies: outputs 0 to 15 in the low halves, 16 to 31 in the high ones.
fn half_lane(lane: usize) -> usize {
    lane % 16 * 2 + lane / 16
}

/// Bytes of a packed matrix.
fn size(outs: usize, ins: usize, float: Float) -> usize {
    outs.div_ceil(PANEL) * PANEL * ins * float.bytes()
}

impl<'a> Dense<'a> {
    /// A matrix that was packed before, from [`packed`](Product::packed) bytes. They are used where they lie if
    /// they begin on a cache line, and copied otherwise. Their numbers are taken as they are.
    ///
    /// # Errors
    /// Another number of bytes than such a matrix has.
    pub fn from_packed(bytes: &'a [u8], outs: usize, ins: usize, float: Float) -> Result<Self> {
        area(outs, ins)?;
        Ok(Self { lines: Lines::from_bytes(bytes, size(outs, ins, float))?, float, outs, ins })
    }

    /// What it is kept in.
    pub fn float(&self) -> Float {
        self.float
    }

    /// The row-major matrix `[outs, ins]`, in f32.
    pub fn unpack(&self) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.outs * self.ins);
        for out in 0..self.outs {
            weights.extend((0..self.ins).map(|k| self.weight(out, k)));
        }
        weights
    }

    fn weight(&self, out: usize, k: usize) -> f32 {
        let base = (out / PANEL * self.ins + k) * PANEL;
        match self.float {
            Float::F32 => self.lines.get::<f32>()[base + out % PANEL],
            Float::Bf16 => bf16::from_bits(self.lines.get::<u16>()[base + half_lane(out % PANEL)]).to_f32(),
        }
    }

    /// The plain loop that everything else must equal to the bit.
    fn scalar(&self, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(self.ins).zip(y.chunks_exact_mut(self.outs)) {
            for (panel, y) in y.chunks_mut(PANEL).enumerate() {
                let mut sums = [0.0f32; PANEL];
                let weights = panel * PANEL * self.ins..(panel + 1) * PANEL * self.ins;
                match self.float {
                    Float::F32 => {
                        let weights = self.lines.get::<f32>()[weights].as_chunks::<PANEL>().0;
                        for (weights, &x) in weights.iter().zip(x) {
                            for lane in 0..PANEL {
                                sums[lane] = weights[lane].mul_add(x, sums[lane]);
                            }
                        }
                    }
                    Float::Bf16 => {
                        let weights = self.lines.get::<u16>()[weights].as_chunks::<PANEL>().0;
                        for (weights, &x) in weights.iter().zip(x) {
                            for lane in 0..PANEL {
                                let weight = f32::from_bits(u32::from(weights[half_lane(lane)]) << 16);
                                sums[lane] = weight.mul_add(x, sums[lane]);
                            }
                        }
                    }
                }
                y.copy_from_slice(&sums[..y.len()]);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn vector(&self, level: Level, x: &[f32], rows: usize, y: &mut [f32], threads: &dyn Parallel) {
        let groups = groups(rows, if level == Level::Avx512 { MOST_512 } else { MOST_256 });
        let outputs = Outputs::new(y, self.outs);
        let panels = self.outs.div_ceil(PANEL);
        blocked(x, self.ins, &groups, |x| {
            split(threads, panels, LEAST / (PANEL * self.ins) + 1, &|range| {
                self.panels(level, x, &groups, range, &outputs);
            });
        });
    }

    /// Outputs of some panels.
    #[cfg(target_arch = "x86_64")]
    fn panels(
        &self,
        level: Level,
        x: &[f32],
        groups: &[Group],
        range: std::ops::Range<usize>,
        outputs: &Outputs<'_>,
    ) {
        let (ins, width) = (self.ins, self.ins.next_multiple_of(BLOCK));
        let bytes = self.lines.get::<u8>();
        let panel_bytes = PANEL * ins * self.float.bytes();
        assert!(range.end * panel_bytes <= bytes.len());
        let walk = walk(level, self.float, groups, ins);
        let step = PANEL * self.float.bytes();
        let mut panel = range.start;
        while panel < range.end {
            let left = range.end - panel;
            // There are tiles for 1, 2 and 4 panels.
            let panels = 1 << walk.panels.min(left).ilog2();
            let tiles = walk.tiles.min(left / panels);
            let together = panels * tiles;
            for start in (0..ins).step_by(walk.chunk) {
                let len = walk.chunk.min(ins - start);
                let from = &bytes[panel * panel_bytes + start * step..];
                assert!(from.len() >= (together - 1) * panel_bytes + len * step);
                let mut pass = 0;
                for (group, tile) in groups.iter().flat_map(|group| (0..tiles).map(move |tile| (group, tile)))
                {
                    let at = group.start * width + start * group.rows;
                    let x = &x[at..at + len.div_ceil(BLOCK) * BLOCK * group.rows];
                    let parts = parts(level, self.float, group.rows);
                    // What is read next is asked for early: a little ahead by a lone pass; the next chunk, piece by
                    // piece, by the first of several, so that reading never waits for arithmetic.
                    let shares = (groups.len() * parts * tiles).min(4);
                    let (ask, ask_step, ask_part) = match walk.lone {
                        true => (AHEAD, step, 0),
                        false if pass < shares => {
                            (len * step + pass * len * step / shares, step / shares, len * step / shares)
                        }
                        false => (0, 0, 0),
                    };
                    pass += parts;
                    let again = start > 0;
                    // SAFETY: the columns of these panels belong to this call; the tile reads `len` inputs of
                    // `panels` panels and of a group of rows, all of which the assertions above found there.
                    unsafe {
                        outputs.tile(*group, (panel + tile) * PANEL, panels * PANEL, again, |y, stride| {
                            let job = Job {
                                weights: from.as_ptr().add(tile * panel_bytes),
                                panel_bytes,
                                ask: from.as_ptr().wrapping_add(ask),
                                ask_step,
                                ask_part,
                                ask_other: if tiles > 1 { panel_bytes } else { LINE },
                                x: x.as_ptr(),
                                len,
                                y,
                                stride,
                                again,
                            };
                            match (level, self.float) {
                                (Level::Avx512, Float::F32) => run_512::<false>(group.rows, panels, job),
                                (Level::Avx512, Float::Bf16) => run_512::<true>(group.rows, panels, job),
                                (_, Float::F32) => run_256::<false>(group.rows, panels, job),
                                (_, Float::Bf16) => run_256::<true>(group.rows, panels, job),
                            }
                        });
                    }
                }
            }
            panel += together;
        }
    }
}

impl Product for Dense<'_> {
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
            level => self.vector(level, x, rows, y, threads),
        }
    }
}

#[cfg(target_arch = "x86_64")]
use x86::*;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m512, _MM_HINT_T0, _mm_prefetch};

    use super::{BLOCK, CHUNK, Float, Group, Level, PANEL};
    use crate::simd::Lanes;

    /// Rows of a group: with two vectors of weights and one of activations, their sums fill the registers.
    pub(super) const MOST_512: usize = 12;
    pub(super) const MOST_256: usize = 6;

    /// Bytes ahead of the ones being read that are asked for.
    pub(super) const AHEAD: usize = 2048;

    /// How the panels of a matrix are gone over.
    pub(super) struct Walk {
        /// Whether a chunk is read by one pass.
        pub lone: bool,
        /// Panels that a pass takes together.
        pub panels: usize,
        /// Passes side by side, each over panels of its own.
        pub tiles: usize,
        /// Inputs that are multiplied before the next ones are read.
        pub chunk: usize,
    }

    pub(super) fn walk(level: Level, float: Float, groups: &[Group], ins: usize) -> Walk {
        match (groups, level) {
            // Few rows make few independent sums, and an addition takes four cycles.
            ([group], Level::Avx512) => {
                let panels = match group.rows {
                    1 => 4,
                    2 | 3 => 2,
                    _ => 1,
                };
                Walk { lone: true, panels, tiles: 1, chunk: ins }
            }
            ([group], _) if group.rows == 1 => Walk { lone: true, panels: 2, tiles: 1, chunk: ins },
            // Two panels are two streams, which are read faster than one where reading is what takes the time.
            ([_], _) if float == Float::F32 => Walk { lone: false, panels: 1, tiles: 2, chunk: CHUNK / 2 },
            _ => Walk { lone: false, panels: 1, tiles: 1, chunk: CHUNK },
        }
    }

    /// Rows that AVX2 has registers for, with all outputs of a panel: the two of bf16 need one more for what they are made
    /// of.
    const fn whole(bf16: bool) -> usize {
        if bf16 { 2 } else { 3 }
    }

    /// How often a panel is gone over for so many rows.
    pub(super) fn parts(level: Level, float: Float, rows: usize) -> usize {
        if level == Level::Avx512 || rows <= whole(float == Float::Bf16) { 1 } else { 2 }
    }

    /// A product of some panels with a group of rows.
    #[derive(Clone, Copy)]
    pub(super) struct Job {
        pub weights: *const u8,
        pub panel_bytes: usize,
        pub ask: *const u8,
        pub ask_step: usize,
        pub ask_part: usize,
        pub ask_other: usize,
        pub x: *const f32,
        pub len: usize,
        pub y: *mut f32,
        pub stride: usize,
        pub again: bool,
    }

    /// One input of all sums.
    #[inline(always)]
    unsafe fn step_of<V: Lanes, const R: usize, const P: usize, const H: usize, const BF16: bool>(
        sums: &mut [[[V; H]; P]; R],
        weights: *const u8,
        panel_bytes: usize,
        x: *const f32,
        ask: *const u8,
        ask_other: usize,
    ) {
        unsafe {
            // Activations wait in registers for weights where they are fewer, and a vector of f32 weights is gone before
            // the next is read: three rows of a whole panel fill the registers otherwise.
            let wait = !BF16 && R < P * H;
            let mut rows = [V::zero(); R];
            if wait {
                for r in 0..R {
                    rows[r] = V::splat(*x.add(r * BLOCK));
                }
            }
            let mut w = [[V::zero(); H]; P];
            for p in 0..P {
                let from = weights.add(p * panel_bytes);
                let ask = ask.wrapping_add(p * panel_bytes);
                _mm_prefetch::<_MM_HINT_T0>(ask.cast());
                if !BF16 {
                    _mm_prefetch::<_MM_HINT_T0>(ask.wrapping_add(ask_other).cast());
                }
                for h in 0..H {
                    if BF16 && h % 2 == 0 {
                        let two = V::load_bf16(from.cast::<u32>().add(h / 2 * V::LANES));
                        [w[p][h], w[p][h + 1]] = two;
                    }
                    if !BF16 {
                        w[p][h] = V::load(from.cast::<f32>().add(h * V::LANES));
                    }
                    if wait {
                        for r in 0..R {
                            sums[r][p][h] = w[p][h].fma(rows[r], sums[r][p][h]);
                        }
                    }
                }
            }
            if !wait {
                for r in 0..R {
                    let x = V::splat(*x.add(r * BLOCK));
                    for p in 0..P {
                        for h in 0..H {
                            sums[r][p][h] = w[p][h].fma(x, sums[r][p][h]);
                        }
                    }
                }
            }
        }
    }

    /// `R` rows, `P` panels, one part of each panel: `H` vectors of outputs.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const P: usize, const H: usize, const BF16: bool>(
        job: Job,
        part: usize,
    ) {
        unsafe {
            let step = if BF16 { 2 * PANEL } else { 4 * PANEL };
            // Where the vectors of outputs lie in a panel, and where their weights in a step.
            let outs: [usize; H] = std::array::from_fn(|h| {
                if BF16 { (part * H / 2 + h / 2) * V::LANES + h % 2 * 16 } else { (part * H + h) * V::LANES }
            });
            let place = part * H * V::LANES * if BF16 { 2 } else { 4 };
            let mut sums = [[[V::zero(); H]; P]; R];
            if job.again {
                for r in 0..R {
                    for p in 0..P {
                        for h in 0..H {
                            sums[r][p][h] = V::load(job.y.add(r * job.stride + p * PANEL + outs[h]));
                        }
                    }
                }
            }
            let mut x = job.x;
            let mut ask = job.ask.wrapping_add(part * job.ask_part);
            let mut weights = job.weights.add(place);
            for _ in 0..job.len / BLOCK {
                for k in 0..BLOCK {
                    step_of::<V, R, P, H, BF16>(
                        &mut sums,
                        weights.add(k * step),
                        job.panel_bytes,
                        x.add(k),
                        ask.wrapping_add(k * job.ask_step),
                        job.ask_other,
                    );
                }
                weights = weights.add(BLOCK * step);
                x = x.add(BLOCK * R);
                ask = ask.wrapping_add(BLOCK * job.ask_step);
            }
            for k in 0..job.len % BLOCK {
                step_of::<V, R, P, H, BF16>(
                    &mut sums,
                    weights.add(k * step),
                    job.panel_bytes,
                    x.add(k),
                    ask.wrapping_add(k * job.ask_step),
                    job.ask_other,
                );
            }
            for r in 0..R {
                for p in 0..P {
                    for h in 0..H {
                        sums[r][p][h].store(job.y.add(r * job.stride + p * PANEL + outs[h]));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn run<V: Lanes, const BF16: bool>(rows: usize, panels: usize, job: Job) {
        // All outputs of a panel at once where there are registers for their sums: then it is read once, in order.
        if V::LANES == 8 && rows <= whole(BF16) {
            // SAFETY: by the caller's promise.
            unsafe {
                match (rows, panels) {
                    (1, 2) => return tile::<V, 1, 2, 4, BF16>(job, 0),
                    (1, 1) => return tile::<V, 1, 1, 4, BF16>(job, 0),
                    (2, 1) => return tile::<V, 2, 1, 4, BF16>(job, 0),
                    _ => return tile::<V, 3, 1, 4, BF16>(job, 0),
                }
            }
        }
        let parts = PANEL / 2 / V::LANES;
        unsafe {
            for part in 0..parts {
                match (rows, panels) {
                    (1, 4) => tile::<V, 1, 4, 2, BF16>(job, part),
                    (1, 2) => tile::<V, 1, 2, 2, BF16>(job, part),
                    (2, 2) => tile::<V, 2, 2, 2, BF16>(job, part),
                    (3, 2) => tile::<V, 3, 2, 2, BF16>(job, part),
                    (1, 1) => tile::<V, 1, 1, 2, BF16>(job, part),
                    (2, 1) => tile::<V, 2, 1, 2, BF16>(job, part),
                    (3, 1) => tile::<V, 3, 1, 2, BF16>(job, part),
                    (4, 1) => tile::<V, 4, 1, 2, BF16>(job, part),
                    (5, 1) => tile::<V, 5, 1, 2, BF16>(job, part),
                    (6, 1) => tile::<V, 6, 1, 2, BF16>(job, part),
                    (7, 1) => tile::<V, 7, 1, 2, BF16>(job, part),
                    (8, 1) => tile::<V, 8, 1, 2, BF16>(job, part),
                    (9, 1) => tile::<V, 9, 1, 2, BF16>(job, part),
                    (10, 1) => tile::<V, 10, 1, 2, BF16>(job, part),
                    (11, 1) => tile::<V, 11, 1, 2, BF16>(job, part),
                    (12, 1) => tile::<V, 12, 1, 2, BF16>(job, part),
                    _ => unreachable!("{rows} rows, {panels} panels"),
                }
            }
        }
    }

    /// # Safety
    /// AVX-512; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn run_512<const BF16: bool>(rows: usize, panels: usize, job: Job) {
        unsafe { run::<__m512, BF16>(rows, panels, job) }
    }

    /// # Safety
    /// AVX2 and FMA; the job's pointers lead to what it describes.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_256<const BF16: bool>(rows: usize, panels: usize, job: Job) {
        unsafe { run::<__m256, BF16>(rows, panels, job) }
    }
}
