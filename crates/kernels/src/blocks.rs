//! Weights as integers of 4 or 8 bits in blocks of 32 inputs.
//!
//! A block of an output has a scale and a zero point or a minimum: `w = (q - zero) scale` or `w = q scale + min`.
//! Blocks of GGUF files (Q4_0, Q4_1, Q8_0) are taken as they are, without quantising anew.
//!
//! **Activations** are rounded to 16 bits by blocks of 32: `x ~ s i` with `s = max |x| / 32639` and an integer `i`,
//! so that a block's sum is one of integers and exact. What that costs is at most half a step an input:
//! `|error of y| <= sum over blocks of s / 2 * sum |w|`, that is `1.6e-5 max |x|` a weight, a thousandth of what
//! rounding the weights to four bits cost. [`Activations::Eight`] rounds them to 8 bits instead, `s = max |x| / 127`,
//! as llama.cpp and ONNX Runtime do: a step is 257 times as wide, and a product takes half the instructions (with
//! AVX2 and weights of 8 bits as many). [`Blocks::unpack`] into [`Dense`](crate::Dense) keeps the activations as they
//! are: it is the reference that tests hold this against.
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

/// What activations are rounded to, by blocks of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// 16 bits: integers up to 32639 in magnitude, the largest whose two bytes are both at most 127.
    #[default]
    Sixteen,
    /// 8 bits: integers up to 127 in magnitude.
    Eight,
}

impl Activations {
    /// The largest integer.
    pub fn top(self) -> f32 {
        match self {
            Self::Sixteen => 32639.0,
            Self::Eight => 127.0,
        }
    }
}

/// A matrix `[outs, ins]` of integers in blocks.
#[derive(Clone)]
pub struct Blocks<'a> {
    lines: Lines<'a>,
    form: Form,
    activations: Activations,
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
        let lines = Lines::zeros(Layout::of(form, outs, ins).total);
        Self { lines, form, activations: Activations::default(), outs, ins }
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
        let lines = Lines::from_bytes(bytes, Layout::of(form, outs, ins).total)?;
        Ok(Self { lines, form, activations: Activations::default(), outs, ins })
    }

    /// Bytes of such a matrix when packed; 0 for one that is refused.
    pub fn packed_bytes(outs: usize, ins: usize, form: Form) -> usize {
        area(outs, ins).map_or(0, |_| Layout::of(form, outs, ins).total)
    }

    /// The same matrix, with activations rounded so when it multiplies.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// What activations are rounded to.
    pub fn activations(&self) -> Activations {
        self.activations
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
            let rounded: Vec<Rounded> = x.chunks(BLOCK).map(|x| Rounded::of(x, self.activations)).collect();
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

/// A block of activations as integers.
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
    fn of(x: &[f32], activations: Activations) -> Self {
        match x.try_into() {
            Ok(block) => Self::of_block(block, activations),
            Err(_) => {
                let mut padded = [0.0; BLOCK];
                padded[..x.len()].copy_from_slice(x);
                Self::of_block(&padded, activations)
            }
        }
    }

    #[inline(always)]
    fn of_block(x: &[f32; BLOCK], activations: Activations) -> Self {
        let top = activations.top();
        let mut bits = [0u32; 8];
        // Magnitudes order as integers do; what is not a number comes out on top.
        for eight in x.as_chunks::<8>().0 {
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
        let inverse = top / most;
        let mut values = [0; BLOCK];
        // Plain loops: `map` would be a call, compiled without the caller's instructions.
        if !inverse.is_finite() {
            // Denormals: rare, and their steps have few bits.
            let inverse = f64::from(top) / f64::from(most);
            for (value, &x) in values.iter_mut().zip(x) {
                *value = (f64::from(x) * inverse).round_ties_even() as i32;
            }
            let step = (f64::from(most) / f64::from(top)) as f32;
            return Self { values, sum: values.iter().sum::<i32>() as f32, step };
        }
        for (value, &x) in values.iter_mut().zip(x) {
            // SAFETY: finite, and at most the largest and a rounding in magnitude.
            *value = unsafe { (x * inverse).round_ties_even().to_int_unchecked::<i32>() };
        }
        Self { values, sum: values.iter().sum::<i32>() as f32, step: most / top }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;
