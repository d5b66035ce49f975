//! Every product against float64, against its scalar twin, alone and with others, on one thread and several.
#![allow(clippy::unwrap_used)]

mod hold;

use hold::{Case, activations, hold, weights};
use pilotfish_kernels::{
    Activations, BLOCK, Bits, Blocks, Dense, Float, Gguf, Isa, KernelError, Product, Serial,
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn dense(outs in 1usize..140, ins in 1usize..300, rows in 1usize..18, seed: u64, offset in 0usize..4) {
        let w = weights(outs * ins, seed);
        let x = activations(rows * ins, seed, offset);
        for float in [Float::F32, Float::Bf16] {
            let packed = Dense::pack(&w, outs, ins, float).unwrap();
            let kept = packed.unpack();
            match float {
                Float::F32 => prop_assert_eq!(&kept, &w),
                Float::Bf16 => for (kept, w) in kept.iter().zip(&w) {
                    prop_assert_eq!(*kept, half::bf16::from_f32(*w).to_f32());
                },
            }
            hold(&packed, Case { weights: &kept, x: &x[offset..], rows, slack: &|_, _| 0.0 });
            let again = Dense::from_packed(packed.packed(), outs, ins, float).unwrap();
            prop_assert_eq!(again.unpack(), kept);
        }
    }
}

/// What rounding the activations may cost: half a step an input.
fn rounding(
    weights: &[f32],
    x: &[f32],
    ins: usize,
    activations: Activations,
) -> impl Fn(usize, usize) -> f64 {
    let top = f64::from(activations.top());
    move |row, out| {
        let blocks = weights[out * ins..][..ins].chunks(BLOCK).zip(x[row * ins..][..ins].chunks(BLOCK));
        blocks
            .map(|(w, x)| {
                let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let size: f64 = w.iter().map(|&w| f64::from(w).abs()).sum();
                // A step of denormals is itself rounded; and so is its product with the block's scale, by at
                // most half the least denormal, which then meets a sum of products of integers.
                let product = 7.01e-46 * top * 255.0 * w.len() as f64;
                size * (f64::from(most) / top * 0.5001 + 2.5e-41) + product
            })
            .sum()
    }
}

/// A scale of f16 that is not too small for the test to see.
fn scale(seed: u64, at: usize) -> half::f16 {
    half::f16::from_f32(((seed as usize % 97 + at * 31) % 89) as f32 / 64.0 - 0.5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn gguf_blocks(outs in 1usize..40, blocks in 1usize..6, rows in 1usize..18, seed: u64, offset in 0usize..4) {
        let ins = blocks * BLOCK;
        let x = activations(rows * ins, seed, offset);
        for kind in [Gguf::Q4_0, Gguf::Q4_1, Gguf::Q8_0] {
            let mut bytes = Vec::new();
            let mut want = Vec::new();
            for at in 0..outs * blocks {
                let (d, m) = (scale(seed, at), scale(!seed, at));
                let code = |k: usize| (seed.rotate_left((k * 7 % 64) as u32) as usize + at * 5 + k) as u8;
                bytes.extend(d.to_le_bytes());
                if kind == Gguf::Q4_1 {
                    bytes.extend(m.to_le_bytes());
                }
                // By ggml's definition, written out again.
                match kind {
                    Gguf::Q8_0 => {
                        bytes.extend((0..32).map(code));
                        want.extend((0..32).map(|k| f32::from(code(k) as i8) * d.to_f32()));
                    }
                    _ => {
                        bytes.extend((0..16).map(code));
                        let value = |q: u8| match kind {
                            Gguf::Q4_0 => (f32::from(q) - 8.0) * d.to_f32(),
                            _ => f32::from(q) * d.to_f32() + m.to_f32(),
                        };
                        want.extend((0..16).map(|k| value(code(k) & 15)));
                        want.extend((0..16).map(|k| value(code(k) >> 4)));
                    }
                }
            }
            let packed = Blocks::from_gguf(&bytes, outs, ins, kind).unwrap();
            prop_assert_eq!(&packed.unpack(), &want);
            let again = Blocks::from_packed(packed.packed(), outs, ins, packed.form()).unwrap();
            prop_assert_eq!(&again.unpack(), &want);
            hold_blocks(packed, &want, &x[offset..], rows);
        }
    }

    #[test]
    fn zero_point_blocks(outs in 1usize..40, ins in 1usize..200, rows in 1usize..18, seed: u64) {
        let x = activations(rows * ins, seed, 0);
        let blocks = ins.div_ceil(BLOCK);
        for bits in [Bits::Four, Bits::Eight] {
            let mask = if bits == Bits::Four { 15 } else { 255 };
            let code = |i: usize| (seed.rotate_left((i * 11 % 64) as u32) as usize + i * 3) as u8 & mask;
            let codes: Vec<u8> = (0..outs * blocks * BLOCK).map(code).collect();
            let scales: Vec<f32> = (0..outs * blocks).map(|i| scale(seed, i).to_f32() / 3.0).collect();
            let zeros: Vec<u8> = (0..outs * blocks).map(|i| code(i * 7 + 1)).collect();
            let packed = Blocks::pack(&codes, &scales, &zeros, outs, ins, bits).unwrap();
            let want: Vec<f32> = (0..outs * ins)
                .map(|i| {
                    let (out, k) = (i / ins, i % ins);
                    let block = out * blocks + k / BLOCK;
                    (f32::from(codes[(out * blocks) * BLOCK + k]) - f32::from(zeros[block])) * scales[block]
                })
                .collect();
            prop_assert_eq!(&packed.unpack(), &want);
            hold_blocks(packed, &want, &x, rows);
        }
    }
}

/// Blocks with activations of either width.
fn hold_blocks(packed: Blocks<'_>, weights: &[f32], x: &[f32], rows: usize) {
    let [_, ins] = packed.shape();
    for activations in [Activations::Sixteen, Activations::Eight] {
        let packed = packed.clone().with_activations(activations);
        let slack = rounding(weights, x, ins, activations);
        let slack = |row: usize, out: usize| offset_slack(x, ins, row) + slack(row, out);
        hold(&packed, Case { weights, x, rows, slack: &slack });
    }
}

/// Integers are summed before the zero point or the minimum is applied: what those two sums have in common
/// is rounded at their size, not at that of their difference.
fn offset_slack(x: &[f32], ins: usize, row: usize) -> f64 {
    let size: f64 = x[row * ins..][..ins].iter().map(|&x| f64::from(x).abs()).sum();
    // Scales are below 1, integers below 256.
    size * 256.0 * 4e-7
}

/// The largest integers there are on both sides, whose sums must fit.
#[test]
fn largest_integers() {
    for (bits, most) in [(Bits::Four, 15u8), (Bits::Eight, 255)] {
        let (rows, outs, ins) = (6, 17, 64);
        let zeros = vec![0; outs * 2];
        let packed =
            Blocks::pack(&vec![most; outs * ins], &vec![1.0; outs * 2], &zeros, outs, ins, bits).unwrap();
        for activations in [Activations::Sixteen, Activations::Eight] {
            let packed = packed.clone().with_activations(activations);
            for &isa in Isa::available() {
                for sign in [1.0f32, -1.0] {
                    let mut y = vec![0.0; rows * outs];
                    packed.apply_on(isa, &vec![sign; rows * ins], rows, &mut y, &Serial).unwrap();
                    let want = sign * f32::from(most) * ins as f32;
                    let near = |y: &f32| (y - want).abs() <= 1e-6 * want.abs();
                    assert!(y.iter().all(near), "{} {bits:?} {activations:?}: {y:?}, not {want}", isa.name());
                }
            }
        }
    }
}

#[test]
fn blocks_by_hand() {
    // Q4_0, one block: scale 0.5, integers 8 + k % 8 for the low half and 8 - k % 8 for the high one.
    let mut bytes = half::f16::from_f32(0.5).to_le_bytes().to_vec();
    bytes.extend((0..16u8).map(|k| (8 + k % 8) | (8 - k % 8) << 4));
    let packed = Blocks::from_gguf(&bytes, 1, 32, Gguf::Q4_0).unwrap();
    let mut y = [0.0];
    let mut x = [0.0; 32];
    (x[3], x[19]) = (2.0, -4.0);
    packed.apply(&x, 1, &mut y).unwrap();
    // 0.5 * (3 * 2 + -3 * -4) = 9; the step is 4 / 32639 and 2 falls between two steps.
    assert!((y[0] - 9.0).abs() < 0.5 * 3.0 * 4.0 / 32639.0, "{}", y[0]);
    x[3] = 4.0;
    packed.apply(&x, 1, &mut y).unwrap();
    assert!((y[0] - 12.0).abs() < 2e-6, "{}", y[0]);
    // In steps of 4 / 127 the 2 of before is 63.5 steps, and 64 is the even one of its neighbours.
    let coarse = packed.clone().with_activations(Activations::Eight);
    assert_eq!(coarse.activations(), Activations::Eight);
    x[3] = 2.0;
    coarse.apply(&x, 1, &mut y).unwrap();
    assert!((y[0] - 0.5 * (3.0 * 64.0 * 4.0 / 127.0 + 12.0)).abs() < 2e-6, "{}", y[0]);
    x[0] = f32::INFINITY;
    for packed in [packed, coarse] {
        packed.apply(&x, 1, &mut y).unwrap();
        assert!(y[0].is_nan());
    }
}

#[test]
fn blocks_refuse() {
    use KernelError::*;
    assert!(matches!(Blocks::from_gguf(&[0; 18], 1, 31, Gguf::Q4_0), Err(Divide { size: 32, .. })));
    assert!(matches!(Blocks::from_gguf(&[0; 19], 1, 32, Gguf::Q4_0), Err(Length { want: 18, .. })));
    assert!(matches!(Blocks::from_gguf(&[], 0, 32, Gguf::Q8_0), Err(Shape { .. })));
    assert!(matches!(Blocks::from_gguf(&[], usize::MAX, 32, Gguf::Q8_0), Err(Shape { .. })));
    let nan = [vec![0; 2], half::f16::NAN.to_le_bytes().to_vec(), vec![0; 16]].concat();
    assert!(matches!(
        Blocks::from_gguf(&nan, 1, 32, Gguf::Q4_1),
        Err(NotFinite { what: "minimum of block", .. })
    ));
    let pack =
        |codes: &[u8], scales: &[f32], zeros: &[u8]| Blocks::pack(codes, scales, zeros, 1, 20, Bits::Four);
    assert!(pack(&[15; 32], &[1.0], &[3]).is_ok());
    assert!(matches!(pack(&[15; 20], &[1.0], &[3]), Err(Length { what: "integers", .. })));
    assert!(matches!(pack(&[15; 32], &[], &[3]), Err(Length { what: "scales", .. })));
    assert!(matches!(pack(&[15; 32], &[1.0], &[3, 3]), Err(Length { what: "zero points", .. })));
    assert!(matches!(pack(&[16; 32], &[1.0], &[3]), Err(Packed { .. })));
    assert!(matches!(pack(&[15; 32], &[f32::NAN], &[3]), Err(NotFinite { .. })));
    let form = Gguf::Q4_1.form();
    assert!(matches!(Blocks::from_packed(&[0; 320], 1, 32, form), Err(Length { want: 384, .. })));
}

#[test]
fn dense_by_hand() {
    let w = [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 6.0, 7.0, 0.0, 0.0, 6.0, 0.0, 8.0];
    for float in [Float::F32, Float::Bf16] {
        let mut y = [0.0; 4];
        Dense::pack(&w, 4, 4, float).unwrap().apply(&[1.0, 10.0, 100.0, 1000.0], 1, &mut y).unwrap();
        assert_eq!(y, [21.0, 4300.0, 760.0, 8060.0]);
    }
}

#[test]
fn dense_refuses() {
    use KernelError::*;
    let pack = |w: &[f32], outs, ins| Dense::pack(w, outs, ins, Float::F32).unwrap_err();
    assert_eq!(pack(&[], 0, 4), Shape { outs: 0, ins: 4 });
    assert_eq!(pack(&[], 4, 0), Shape { outs: 4, ins: 0 });
    assert_eq!(pack(&[1.0], usize::MAX, 2), Shape { outs: usize::MAX, ins: 2 });
    assert_eq!(pack(&[1.0], 1 << 30, 1 << 30), Shape { outs: 1 << 30, ins: 1 << 30 });
    assert_eq!(pack(&[1.0; 3], 2, 2), Length { what: "weights", got: 3, want: 4 });
    assert!(matches!(pack(&[1.0, f32::NAN], 1, 2), NotFinite { index: 1, .. }));
    assert!(matches!(pack(&[f32::INFINITY], 1, 1), NotFinite { index: 0, .. }));
    assert!(matches!(Dense::pack(&[f32::MAX], 1, 1, Float::Bf16).unwrap_err(), NotFinite { index: 0, .. }));
    assert!(matches!(Dense::from_packed(&[0; 64], 1, 1, Float::F32), Err(Length { want: 128, .. })));
    assert!(matches!(Dense::from_packed(&[], usize::MAX, 3, Float::F32), Err(Shape { .. })));
    let dense = Dense::pack(&[1.0, 2.0], 1, 2, Float::F32).unwrap();
    let mut y = [7.0; 2];
    assert!(matches!(dense.apply(&[1.0; 3], 1, &mut y[..1]), Err(Length { what: "activations", .. })));
    assert!(matches!(dense.apply(&[1.0; 2], 1, &mut y), Err(Length { what: "outputs", .. })));
    assert!(matches!(dense.apply(&[1.0; 2], usize::MAX, &mut y), Err(Length { .. })));
    dense.apply(&[], 0, &mut []).unwrap();
    // What is not a number in one row stays in that row.
    dense.apply(&[f32::NAN, 0.0, 1.0, 1.0], 2, &mut y).unwrap();
    assert!(y[0].is_nan() && y[1] == 3.0);
}
