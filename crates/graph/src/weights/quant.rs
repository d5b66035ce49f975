//! Block encodings, dequantised to f32 as ggml's reference does, to the bit.

use half::{bf16, f16};

/// How numbers are stored. The quantised forms are ggml's; blocks run along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are ggml's own
#[non_exhaustive]
pub enum Encoding {
    F32,
    F16,
    Bf16,
    F64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

impl Encoding {
    /// Numbers a block.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::F64 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F64 => 8,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `count` numbers, if they are whole blocks and the product does not overflow.
    pub fn bytes(self, count: usize) -> Option<usize> {
        (count % self.block() == 0).then(|| (count / self.block()).checked_mul(self.block_bytes())).flatten()
    }

    /// Appends the numbers of whole blocks to `out`.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four))),
            Self::F16 => out.extend(bytes.as_chunks().0.iter().map(|&two| f16::from_le_bytes(two).to_f32())),
            Self::Bf16 => {
                out.extend(bytes.as_chunks().0.iter().map(|&two| bf16::from_le_bytes(two).to_f32()));
            }
            Self::F64 => {
                out.extend(bytes.as_chunks().0.iter().map(|&eight| f64::from_le_bytes(eight) as f32));
            }
            _ => {
                out.reserve(bytes.len() / self.block_bytes() * self.block());
                for block in bytes.chunks_exact(self.block_bytes()) {
                    self.decode_block(block, out);
                }
            }
        }
    }

    /// One block of a quantised form.
    #[inline(always)]
    fn decode_block(self, block: &[u8], out: &mut Vec<f32>) {
        match self {
            // `decode` has done these.
            Self::F32 | Self::F16 | Self::Bf16 | Self::F64 => {}
            Self::Q4_0 => {
                let scale = half_at(block, 0);
                nibbles(&block[2..], |q, _| (f32::from(q) - 8.0) * scale, out);
            }
            Self::Q4_1 => {
                let (scale, min) = (half_at(block, 0), half_at(block, 2));
                nibbles(&block[4..], |q, _| scale * f32::from(q) + min, out);
            }
            Self::Q5_0 => {
                let (scale, high) = (half_at(block, 0), word_at(block, 2));
                nibbles(&block[6..], |q, i| (f32::from(fifth(q, high, i)) - 16.0) * scale, out);
            }
            Self::Q5_1 => {
                let (scale, min, high) = (half_at(block, 0), half_at(block, 2), word_at(block, 4));
                nibbles(&block[8..], |q, i| scale * f32::from(fifth(q, high, i)) + min, out);
            }
            Self::Q8_0 => {
                let scale = half_at(block, 0);
                out.extend(block[2..].iter().map(|&q| f32::from(q as i8) * scale));
            }
            Self::Q2K => {
                let (scale, min) = (half_at(block, 80), half_at(block, 82));
                for (part, &packed) in block[..16].iter().enumerate() {
                    let (s, m) = (scale * f32::from(packed & 15), min * f32::from(packed >> 4));
                    let (quants, shift) = two_bits(&block[16..80], part);
                    out.extend(quants.iter().map(|&q| s * f32::from((q >> shift) & 3) - m));
                }
            }
            Self::Q3K => {
                let scale = half_at(block, 108);
                let packed = &block[96..108];
                for part in 0..16 {
                    let low = packed[part % 8] >> (4 * (part / 8)) & 15;
                    let six = low | ((packed[8 + part % 4] >> (2 * (part / 4))) & 3) << 4;
                    let s = scale * (f32::from(six) - 32.0);
                    let (quants, shift) = two_bits(&block[32..96], part);
                    let high = &block[16 * (part % 2)..16 * (part % 2 + 1)];
                    // A high bit that is not set takes 4 away.
                    out.extend(quants.iter().zip(high).map(|(&q, &h)| {
                        let q = (q >> shift) & 3 | ((h >> (part / 2)) & 1) << 2;
                        s * (f32::from(q) - 4.0)
                    }));
                }
            }
            Self::Q4K => {
                let (scale, min) = (half_at(block, 0), half_at(block, 2));
                let quants = &block[16..];
                for pair in 0..4 {
                    let quants = &quants[32 * pair..32 * (pair + 1)];
                    for (part, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
                        let (s, m) = scale_min(part, &block[4..16]);
                        let (s, m) = (scale * s, min * m);
                        out.extend(quants.iter().map(|&q| s * f32::from((q >> shift) & 15) - m));
                    }
                }
            }
            Self::Q5K => {
                let (scale, min) = (half_at(block, 0), half_at(block, 2));
                let (high, quants) = (&block[16..48], &block[48..]);
                for pair in 0..4 {
                    let quants = &quants[32 * pair..32 * (pair + 1)];
                    for (part, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
                        let (s, m) = scale_min(part, &block[4..16]);
                        let (s, m) = (scale * s, min * m);
                        out.extend(quants.iter().zip(high).map(|(&q, &h)| {
                            s * f32::from(((q >> shift) & 15) | (((h >> part) & 1) << 4)) - m
                        }));
                    }
                }
            }
            Self::Q6K => {
                let scale = half_at(block, 208);
                for half in 0..2 {
                    let low = &block[64 * half..64 * (half + 1)];
                    let high = &block[128 + 32 * half..128 + 32 * (half + 1)];
                    let scales = &block[192 + 8 * half..192 + 8 * (half + 1)];
                    for quarter in 0..4 {
                        for i in 0..32 {
                            let nibble = low[32 * (quarter % 2) + i] >> (4 * (quarter / 2)) & 15;
                            let q = nibble | ((high[i] >> (2 * quarter)) & 3) << 4;
                            let s = f32::from(scales[2 * quarter + i / 16] as i8);
                            out.push(scale * s * (f32::from(q) - 32.0));
                        }
                    }
                }
            }
        }
    }
}

/// The 16 bytes that hold the two-bit numbers of one of the 16 parts of a 256-block, and where in a byte.
fn two_bits(quants: &[u8], part: usize) -> (&[u8], usize) {
    let start = 32 * (part / 8) + 16 * (part % 2);
    (&quants[start..start + 16], 2 * (part / 2 % 4))
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Low nibbles of all bytes come first, then the high ones.
fn nibbles(bytes: &[u8], value: impl Fn(u8, usize) -> f32, out: &mut Vec<f32>) {
    let half = bytes.len();
    out.extend(bytes.iter().enumerate().map(|(i, &byte)| value(byte & 15, i)));
    out.extend(bytes.iter().enumerate().map(|(i, &byte)| value(byte >> 4, half + i)));
}

fn fifth(nibble: u8, high: u32, index: usize) -> u8 {
    nibble | (((high >> index) & 1) as u8) << 4
}

/// The six-bit scale and minimum of one of the eight parts of a 256-block.
fn scale_min(part: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        (
            (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4,
            (packed[part + 4] >> 4) | (packed[part] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}
