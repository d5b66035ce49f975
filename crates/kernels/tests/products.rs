//! Every product against float64, against its scalar twin, alone and with others, on one thread and several.
#![allow(clippy::unwrap_used)]

mod hold;

use hold::{Case, activations, hold, weights};
use pilotfish_kernels::{Dense, Float, KernelError, Product};
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
