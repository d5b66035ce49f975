//! Weights of which N of every M consecutive inputs are kept.
//!
//! Sliced layout: slices of 16 outputs; a window of consecutive inputs (as many whole groups as fit into 16; one group
//! if it is wider) is spread into slots, and slot `s`, lane `l` holds the `s`-th kept weight of output `l` in the
//! window, with its place. Where groups divide 4 a slot belongs to a quarter of the window, and 2 bits say where in the
//! quarter; otherwise 4 bits say where in the window, 5 in windows of more than 16. A slot costs one load, one
//! permutation of inputs, one shift and one multiply-add, and no sum runs across lanes. Groups with fewer than N
//! non-zeros are filled with zeros. Windows of few slots share words of places, 16 or 8 a word, so that an f32 weight
//! costs 4.25 or 4.5 bytes: 2.125 bytes a dense weight for 2:4, 1.0625 for 1:4, 1.125 for 2:8.

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
        let (bits, a_word) = match group {
            1 | 2 | 4 => (2, 16),
            _ if window > 16 => (5, 6),
            _ => (4, 8),
        };
        let together = if slots < a_word && slots.is_power_of_two() && bits < 5 { a_word / slots } else { 1 };
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

    /// Of a kept weight: its record, its slot there, and the input that its place counts from.
    fn place(&self, k: usize, nth: usize) -> (usize, usize, usize) {
        let window = k / self.window;
        let group = k % self.window / self.pattern.group;
        let slot = window % self.together * self.slots + group * self.pattern.keep + nth;
        let record = window / self.together;
        (record, slot, self.first(record, slot))
    }

    /// The input that places of a slot count from: the first of its window, or of its quarter.
    fn first(&self, record: usize, slot: usize) -> usize {
        let window = record * self.together + slot / self.slots;
        let quarter = if self.bits == 2 { slot % self.slots * 4 / self.slots } else { 0 };
        window * self.window + 4 * quarter
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
            for at in 0..layout.records * layout.together * layout.window / group {
                // Beyond the inputs windows are filled up with empty groups.
                let values = row.get(at * group..(at + 1) * group).unwrap_or_default();
                let got = values.iter().filter(|&&w| w != 0.0).count();
                if got > pattern.keep {
                    return Err(KernelError::Group { out, group: at, got, keep: pattern.keep });
                }
                let mut present = values.iter().enumerate().filter(|&(_, &w)| w != 0.0);
                for nth in 0..pattern.keep {
                    // What fills a group up is a zero at its first input.
                    let (offset, &w) = present.next().unwrap_or((0, &0.0));
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
                visit(layout.first(record, slot) + place as usize, value);
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
mod x86;
