//! Integers in blocks: what [`Storage::Int4`](crate::Storage) and [`Storage::Int8`](crate::Storage) keep of a
//! matrix.
//!
//! A block of consecutive inputs of one output has a scale and an integer zero point:
//! `w ~ (q - zero) * scale`, with `q` from 0 to `2^bits - 1`. The range always includes 0, so that zeros are
//! exact, and the error is at most half a scale (a whole one where rounding the zero point clips the end of
//! the range).

use crate::{GraphError, Kept, Result, Storage, Tensor};

/// A quantised matrix, packed as ONNX Runtime's `MatMulNBits` wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Bits a weight: 4 or 8.
    pub bits: usize,
    /// Inputs a block.
    pub block: usize,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// `[out, blocks, block * bits / 8]`, low nibble first.
    pub packed: Vec<u8>,
    /// `[out, blocks]`.
    pub scales: Vec<f32>,
    /// `[out, ceil(blocks * bits / 8)]`, low nibble first.
    pub zeros: Vec<u8>,
}

impl Quantized {
    /// Blocks a row.
    pub fn blocks(&self) -> usize {
        self.shape[1].div_ceil(self.block)
    }

    /// Bytes of all three parts.
    pub fn bytes(&self) -> usize {
        self.packed.len() + 4 * self.scales.len() + self.zeros.len()
    }
}

/// Quantises a row-major matrix `[out, in]`. The last block of a row is padded with zeros.
///
/// # Errors
/// Bits other than 4 and 8, a block that is not even, a matrix of another size, numbers that are not finite.
pub fn quantize(values: &[f32], shape: [usize; 2], bits: usize, block: usize) -> Result<Quantized> {
    let refuse = |why: String| Err(GraphError::Tensor { name: "(to quantise)".into(), why });
    if !matches!(bits, 4 | 8) || block == 0 || block % 2 != 0 {
        return refuse(format!("{bits} bits in blocks of {block}"));
    }
    let [outs, ins] = shape;
    if outs.checked_mul(ins) != Some(values.len()) || ins == 0 {
        return refuse(format!("{} numbers do not fill {shape:?}", values.len()));
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return refuse(format!("number {at} is {}", values[at]));
    }
    let (blocks, top) = (ins.div_ceil(block), ((1u32 << bits) - 1) as f32);
    let mut packed = Vec::with_capacity(outs * blocks * block * bits / 8);
    let mut scales = Vec::with_capacity(outs * blocks);
    let mut zeros = Vec::with_capacity(outs * (blocks * bits).div_ceil(8));
    for row in values.chunks_exact(ins) {
        let mut row_zeros = Vec::with_capacity(blocks + 1);
        for part in row.chunks(block) {
            let (min, max) = part.iter().fold((0.0f32, 0.0f32), |(min, max), &x| (min.min(x), max.max(x)));
            // Halved before the difference, so that the extremes of f32 do not overflow.
            let scale = (max / top) - (min / top);
            let inverse = if scale > 0.0 && (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
            let zero = (-min * inverse).round_ties_even().clamp(0.0, top);
            let code = |x: f32| (x * inverse + zero).round_ties_even().clamp(0.0, top) as u8;
            let codes: Vec<u8> =
                part.iter().map(|&x| code(x)).chain(std::iter::repeat(zero as u8)).take(block).collect();
            pack(&codes, bits, &mut packed);
            scales.push(scale);
            row_zeros.push(zero as u8);
        }
        if bits == 4 && row_zeros.len() % 2 == 1 {
            row_zeros.push(0);
        }
        pack(&row_zeros, bits, &mut zeros);
    }
    Ok(Quantized { bits, block, shape, packed, scales, zeros })
}

/// The numbers that a quantised matrix stands for, row-major `[out, in]`.
pub fn dequantize(quantized: &Quantized) -> Vec<f32> {
    let [outs, ins] = quantized.shape;
    let blocks = quantized.blocks();
    let codes = unpack(&quantized.packed, quantized.bits);
    let zeros = unpack(&quantized.zeros, quantized.bits);
    let zeros_a_row = zeros.len().checked_div(outs).unwrap_or(0);
    let mut out = Vec::with_capacity(outs * ins);
    for row in 0..outs {
        for column in 0..ins {
            let at = column / quantized.block;
            let code = codes[(row * blocks + at) * quantized.block + column % quantized.block];
            let zero = zeros[row * zeros_a_row + at];
            out.push((f32::from(code) - f32::from(zero)) * quantized.scales[row * blocks + at]);
        }
    }
    out
}

/// The tensor that a matrix `[out, in]` stored in bf16, pruned or by columns stands for, computed when it is read; the
/// tensor itself for every other storage.
pub fn rounded(tensor: &Tensor, storage: Storage) -> Tensor {
    let ins = tensor.shape().last().copied().unwrap_or(1).max(1);
    match storage {
        Storage::Bf16 | Storage::Sparse { .. } | Storage::Columns { .. } => {
            tensor.derive(tensor.shape(), move |tensor, rows| {
                let mut values = tensor.rows(rows)?;
                round(&mut values, ins, storage);
                Ok(values)
            })
        }
        _ => tensor.clone(),
    }
}

/// Rounds rows of `ins` numbers to what is kept of them, or sets all but the largest of each group to zero first (of
/// equal ones the first are kept). Storages in blocks leave them alone.
pub fn round(values: &mut [f32], ins: usize, storage: Storage) {
    match storage {
        Storage::Bf16 => round_to(values, ins, Kept::Bf16),
        Storage::Columns { kept } => round_to(values, ins, kept),
        Storage::Sparse { keep, group, kept } if group > 0 => {
            let mut order = Vec::with_capacity(group);
            for group in values.chunks_mut(ins.max(1)).flat_map(|row| row.chunks_mut(group)) {
                order.clear();
                order.extend(0..group.len());
                order.sort_by(|&a, &b| group[b].abs().total_cmp(&group[a].abs()));
                order.iter().skip(keep).for_each(|&at| group[at] = 0.0);
            }
            round_to(values, ins, kept);
        }
        _ => {}
    }
}

/// Rounds rows of `ins` numbers; those in int8 share a scale, a 127th of the largest magnitude.
fn round_to(values: &mut [f32], ins: usize, kept: Kept) {
    match kept {
        Kept::F32 => {}
        Kept::Bf16 => values.iter_mut().for_each(|value| *value = half::bf16::from_f32(*value).to_f32()),
        Kept::Int8 => {
            for row in values.chunks_mut(ins.max(1)) {
                let scale = row.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
                // A scale that underflowed stands for zeros.
                let code = |value: f32| (value / scale).round_ties_even().clamp(-127.0, 127.0);
                row.iter_mut()
                    .for_each(|value| *value = if scale > 0.0 { code(*value) * scale } else { 0.0 });
            }
        }
    }
}

fn pack(codes: &[u8], bits: usize, out: &mut Vec<u8>) {
    match bits {
        4 => out.extend(codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4)),
        _ => out.extend_from_slice(codes),
    }
}

/// Integers of 4 or 8 bits, one a byte.
pub fn unpack(packed: &[u8], bits: usize) -> Vec<u8> {
    match bits {
        4 => packed.iter().flat_map(|&byte| [byte & 15, byte >> 4]).collect(),
        _ => packed.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_by_hand() {
        // Range -1.5..2.25 in 15 steps of 0.25: the zero point is 6.
        let values = [-1.5, 2.25, 0.0, 0.25];
        let q = quantize(&values, [1, 4], 4, 4).expect("valid");
        assert_eq!((q.scales[0], q.zeros[0]), (0.25, 6));
        assert_eq!(q.packed, [0xf0, 0x76]);
        assert_eq!(dequantize(&q), values);
    }

    #[test]
    fn the_largest_of_each_group_stay() {
        let tensor = Tensor::new([2, 4], vec![1.0, -3.0, 2.0, 0.5, 1.0, 1.0, 1.0, -1.0]).expect("fits");
        let sparse = Storage::Sparse { keep: 2, group: 4, kept: Kept::F32 };
        let want = [0.0, -3.0, 2.0, 0.0, 1.0, 1.0, 0.0, 0.0];
        let kept = rounded(&tensor, sparse);
        assert_eq!(&*kept.to_f32().expect("readable"), want);
        assert_eq!(&*rounded(&kept, sparse).to_f32().expect("readable"), want);
        // 1 + 2^-8 lies between two bf16 and goes to the even one; 1 + 3 * 2^-8 to the one above.
        let tensor = Tensor::new([1, 3], vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -2.0]).expect("fits");
        assert_eq!(&*rounded(&tensor, Storage::Bf16).to_f32().expect("readable"), [1.0, 1.015625, -2.0]);
    }

    #[test]
    fn rows_in_int8_share_a_scale() {
        // 254 is 127 steps of 2: 3 lies between 1 and 2 steps and goes to the even one, 101 to 50 and a half.
        let tensor = Tensor::new([2, 4], vec![254.0, 3.0, -101.0, 5.0, 0.0, 0.0, 0.0, 0.0]).expect("fits");
        let read = |storage| rounded(&tensor, storage).to_f32().expect("readable").into_owned();
        let columns = read(Storage::Columns { kept: Kept::Int8 });
        assert_eq!(columns, [254.0, 4.0, -100.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
        let sparse = read(Storage::Sparse { keep: 2, group: 4, kept: Kept::Int8 });
        assert_eq!(sparse, [254.0, 0.0, -100.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(read(Storage::Columns { kept: Kept::Bf16 }), read(Storage::Bf16));
    }

    #[test]
    fn refuses_what_is_not_a_number() {
        assert!(quantize(&[f32::NAN], [1, 1], 4, 32).is_err());
        assert!(quantize(&[1.0], [1, 2], 4, 32).is_err());
        assert!(quantize(&[1.0], [1, 1], 3, 32).is_err());
    }

    proptest! {
        #[test]
        fn error_is_bounded(values in proptest::collection::vec(-10.0f32..10.0, 1..200), bits in prop_oneof![Just(4usize), Just(8)]) {
            let shape = [1, values.len()];
            let q = quantize(&values, shape, bits, 32).expect("valid");
            for (i, (x, y)) in values.iter().zip(dequantize(&q)).enumerate() {
                prop_assert!((x - y).abs() <= q.scales[i / 32] * 1.001, "{x} became {y}");
                if *x == 0.0 { prop_assert_eq!(y, 0.0); }
            }
        }
    }
}
