//! Products that skip weights: packed patterns, gathered columns, chosen neurons, experts.
#![allow(clippy::unwrap_used)]

mod hold;

use hold::{Case, activations, hold, weights};
use pilotfish_kernels::{
    Active, Columns, Dense, Experts, Float, Isa, Kept, KernelError, Neurons, Parallel, Pattern, Product,
    Rayon, Route, Serial, Sparse,
};
use proptest::prelude::*;

/// Sets all but `keep` of each group to zero, and some groups altogether.
fn prune(w: &mut [f32], pattern: Pattern, seed: u64) {
    for (at, group) in w.chunks_mut(pattern.group).enumerate() {
        let keep = if (at as u64 + seed) % 7 == 0 { 0 } else { pattern.keep };
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by_key(|&k| (k as u64 * 31 + at as u64 * 17 + seed) % 37);
        order.iter().skip(keep).for_each(|&k| group[k] = 0.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn packed_patterns(
        outs in 1usize..70, groups in 1usize..24, rows in 1usize..18, seed: u64,
        (keep, group) in prop_oneof![
            Just((2, 4)), Just((1, 4)), Just((2, 8)), Just((1, 8)), Just((1, 2)), Just((4, 8)), Just((1, 16)),
            (1usize..33).prop_flat_map(|group| (1..group + 1, Just(group)))
        ],
    ) {
        let (pattern, ins) = (Pattern { keep, group }, groups * group);
        let mut w = weights(outs * ins, seed);
        prune(&mut w, pattern, seed % 100);
        let x = activations(rows * ins, seed, 1);
        for kept in [Kept::F32, Kept::Bf16, Kept::Int8] {
            let packed = Sparse::pack(&w, outs, ins, pattern, kept).unwrap();
            let there = packed.unpack();
            for (at, (there, v)) in there.iter().zip(&w).enumerate() {
                let most = largest(&w, at / ins, ins);
                match kept {
                    // Zeros lose their sign, as they are not stored.
                    Kept::F32 => prop_assert_eq!(there, v),
                    Kept::Bf16 => prop_assert_eq!(*there, half::bf16::from_f32(*v).to_f32()),
                    Kept::Int8 => prop_assert!((there - v).abs() <= most / 253.9 + 1e-44, "{} for {}", there, v),
                }
            }
            hold(&packed, Case { weights: &there, x: &x[1..], rows, slack: &|_, _| 0.0 });
            let again = Sparse::from_packed(packed.packed(), outs, ins, pattern, kept).unwrap();
            prop_assert_eq!(again.unpack(), there);
        }
    }
}

fn largest(w: &[f32], out: usize, ins: usize) -> f32 {
    w[out * ins..(out + 1) * ins].iter().fold(0.0, |most: f32, w| most.max(w.abs()))
}

const EXAMPLE: [f32; 16] = [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 6.0, 7.0, 0.0, 0.0, 6.0, 0.0, 8.0];
const TWO_OF_FOUR: Pattern = Pattern { keep: 2, group: 4 };

#[test]
fn the_example_by_hand() {
    for &isa in Isa::available() {
        let mut y = [0.0; 4];
        let packed = Sparse::pack(&EXAMPLE, 4, 4, TWO_OF_FOUR, Kept::F32).unwrap();
        packed.apply_on(isa, &[1.0, 10.0, 100.0, 1000.0], 1, &mut y, &Serial).unwrap();
        assert_eq!(y, [21.0, 4300.0, 760.0, 8060.0]);
    }
}

#[test]
fn sizes_are_those_of_the_formula() {
    // 442,368 values and 27,648 words, 16 places each: 0.53125 of the dense matrix.
    assert_eq!(Sparse::packed_bytes(1536, 576, TWO_OF_FOUR, Kept::F32), 1_880_064);
    assert_eq!(Sparse::packed_bytes(1536, 576, Pattern { keep: 1, group: 4 }, Kept::F32) * 2, 1_880_064);
    // 221,184 values and 27,648 words, 8 places each.
    assert_eq!(Sparse::packed_bytes(1536, 576, Pattern { keep: 2, group: 8 }, Kept::F32), 995_328);
    // A quarter of the 4 x 64 slots of 1:8, in records of 64 inputs.
    assert_eq!(Sparse::packed_bytes(16, 64, Pattern { keep: 1, group: 8 }, Kept::F32), 64 + 8 * 64);
    assert_eq!(Sparse::packed_bytes(16, 64, Pattern { keep: 5, group: 4 }, Kept::F32), 0);
}

#[test]
fn patterns_are_refused() {
    use KernelError::{Divide, Group, Length, NotFinite, Shape};
    let pack = |w: &[f32], outs, ins, keep, group| {
        Sparse::pack(w, outs, ins, Pattern { keep, group }, Kept::F32).unwrap_err()
    };
    for (keep, group) in [(3, 2), (0, 4), (1, 0), (1, 33), (0, 0), (usize::MAX, usize::MAX)] {
        assert_eq!(pack(&[0.0; 4], 1, 4, keep, group), KernelError::Pattern { keep, group });
    }
    assert_eq!(pack(&[0.0; 6], 1, 6, 2, 4), Divide { ins: 6, what: "groups", size: 4 });
    let mut full = EXAMPLE;
    full[6 + 4 - 5] = 5.0;
    assert_eq!(pack(&full, 4, 4, 2, 4), Group { out: 1, group: 0, got: 3, keep: 2 });
    assert!(matches!(pack(&[f32::NAN; 4], 1, 4, 4, 4), NotFinite { index: 0, .. }));
    assert!(matches!(pack(&[0.0; 4], 0, 4, 2, 4), Shape { .. }));
    assert!(matches!(pack(&[0.0; 4], usize::MAX, 4, 2, 4), Shape { .. }));
    assert!(matches!(pack(&[0.0; 4], 2, 4, 2, 4), Length { .. }));
    assert!(matches!(Sparse::from_packed(&[0; 64], 4, 4, TWO_OF_FOUR, Kept::F32), Err(Length { .. })));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Half the least denormal is lost with each product that underflows, whatever its factor was: hence the floor.
fn close(got: f32, pairs: impl Iterator<Item = (f64, f64)>) {
    let (mut exact, mut size) = (0.0, 0.0);
    for (w, x) in pairs {
        exact += w * x;
        size += (w * x).abs();
    }
    assert!((f64::from(got) - exact).abs() <= 1e-5 * size + 1e-42, "{got}, not {exact}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn gathered_columns(
        outs in prop_oneof![4 => 1usize..600, 1 => 2000usize..5000],
        ins in 1usize..90, rows in 1usize..11, seed: u64, threshold in 0.0f32..1.5,
    ) {
        let (w, x) = (weights(outs * ins, seed), activations(rows * ins, seed, 0));
        let kept = [Kept::F32, Kept::Bf16, Kept::Int8][seed as usize % 3];
        let columns = Columns::pack(&w, outs, ins, kept).unwrap();
        prop_assert_eq!(columns.packed().len(), Columns::packed_bytes(outs, ins, kept));
        let again = Columns::from_packed(columns.packed(), outs, ins, kept).unwrap();
        prop_assert_eq!(&columns.unpack(), &again.unpack());
        // What the weights became, told apart from how they are multiplied; denormals have few bits to round to.
        for (row, stored) in w.chunks(ins).zip(columns.unpack().chunks(ins)) {
            let most = row.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            for (&w, &stored) in row.iter().zip(stored) {
                match kept {
                    Kept::F32 => prop_assert_eq!(w, stored),
                    Kept::Bf16 => prop_assert!((w - stored).abs() <= w.abs() / 256.0 + 1e-38),
                    Kept::Int8 => prop_assert!((w - stored).abs() <= most / 254.0 * 1.001 + 1e-38),
                }
            }
        }
        let w = columns.unpack();
        let active = Active::above(&x, rows, ins, threshold).unwrap();
        let masked: Vec<f32> = x.iter().map(|&x| if x.abs() > threshold { x } else { 0.0 }).collect();
        let population = (0..ins).filter(|k| (0..rows).any(|row| masked[row * ins + k] != 0.0)).count();
        prop_assert_eq!(active.indices.len(), population);
        // The first row whole, the others gated.
        let mixed = Active::above_where(&x, rows, ins, threshold, |row| row > 0).unwrap();
        prop_assert_eq!(mixed.indices.len(), ins);
        prop_assert_eq!(bits(&mixed.values[..ins]), bits(&x[..ins]));
        prop_assert_eq!(bits(&mixed.values[ins..]), bits(&masked[ins..]));
        let size = match kept { Kept::F32 => 4, Kept::Bf16 => 2, Kept::Int8 => 1 };
        prop_assert_eq!(columns.bytes(population), outs.next_multiple_of(16) * size * population);
        let mut twin = vec![f32::NAN; rows * outs];
        columns.apply_on(Isa::SCALAR, &active, &mut twin, &Serial).unwrap();
        for (at, &y) in twin.iter().enumerate() {
            let (row, out) = (at / outs, at % outs);
            close(y, (0..ins).map(|k| (w[out * ins + k].into(), masked[row * ins + k].into())));
        }
        for &isa in Isa::available() {
            for threads in [&Serial as &dyn Parallel, &Rayon] {
                let mut y = vec![f32::NAN; rows * outs];
                columns.apply_on(isa, &active, &mut y, threads).unwrap();
                prop_assert_eq!(bits(&y), bits(&twin), "{}", isa.name());
            }
            for row in 0..rows {
                let alone = Active::above(&x[row * ins..][..ins], 1, ins, threshold).unwrap();
                let mut y = vec![f32::NAN; outs];
                columns.apply_on(isa, &alone, &mut y, &Serial).unwrap();
                prop_assert_eq!(bits(&y), bits(&twin[row * outs..][..outs]), "row {}", row);
            }
        }
    }

    #[test]
    fn chosen_neurons(outs in 1usize..80, ins in 1usize..150, rows in 1usize..11, seed: u64, every in 1usize..5) {
        let (w, x) = (weights(outs * ins, seed), activations(rows * ins, seed, 0));
        let neurons = Neurons::pack(&w, outs, ins).unwrap();
        let wanted: Vec<u32> = (0..outs as u32).filter(|out| *out as usize % every == 0).collect();
        let mut twin = vec![f32::NAN; rows * wanted.len()];
        neurons.apply_on(Isa::SCALAR, &wanted, &x, rows, &mut twin, &Serial).unwrap();
        for (at, &y) in twin.iter().enumerate() {
            let (row, out) = (at / wanted.len(), wanted[at % wanted.len()] as usize);
            close(y, (0..ins).map(|k| (w[out * ins + k].into(), x[row * ins + k].into())));
        }
        for &isa in Isa::available() {
            for row in 0..rows {
                let mut y = vec![f32::NAN; wanted.len()];
                neurons.apply_on(isa, &wanted, &x[row * ins..][..ins], 1, &mut y, &Serial).unwrap();
                prop_assert_eq!(bits(&y), bits(&twin[row * wanted.len()..][..wanted.len()]));
            }
            let mut y = vec![f32::NAN; rows * wanted.len()];
            neurons.apply_on(isa, &wanted, &x, rows, &mut y, &Rayon).unwrap();
            prop_assert_eq!(bits(&y), bits(&twin));
        }
    }

    #[test]
    fn few_experts(outs in 1usize..40, ins in 1usize..40, rows in 1usize..9, seed: u64) {
        let matrices: Vec<Vec<f32>> = (0..5).map(|e| weights(outs * ins, seed ^ e)).collect();
        let dense = matrices.iter().map(|w| Dense::pack(w, outs, ins, Float::F32).unwrap()).collect();
        let experts = Experts::new(dense).unwrap();
        let x = activations(rows * ins, seed, 0);
        let route = |i: usize| Route { row: i / 2, expert: (i * 3 + seed as usize % 5) % 5, weight: 0.25 + i as f32 };
        // The last row uses none.
        let routes: Vec<Route> = (0..2 * (rows - 1)).map(route).collect();
        let mut y = vec![f32::NAN; rows * outs];
        experts.apply(&x, rows, &routes, &mut y, &Serial).unwrap();
        for (at, &got) in y.iter().enumerate() {
            let (row, out) = (at / outs, at % outs);
            let used = routes.iter().filter(|route| route.row == row);
            let pairs = used.flat_map(|route| {
                let matrix = &matrices[route.expert];
                let x = &x[row * ins..][..ins];
                (0..ins).map(move |k| (f64::from(matrix[out * ins + k]) * f64::from(route.weight), x[k].into()))
            });
            close(got, pairs);
        }
        for row in 0..rows {
            let own: Vec<Route> =
                routes.iter().filter(|route| route.row == row).map(|route| Route { row: 0, ..*route }).collect();
            let mut alone = vec![f32::NAN; outs];
            experts.apply(&x[row * ins..][..ins], 1, &own, &mut alone, &Serial).unwrap();
            prop_assert_eq!(bits(&alone), bits(&y[row * outs..][..outs]));
        }
    }
}

#[test]
fn all_columns_none_and_what_is_not_a_number() {
    let w = weights(40 * 24, 5);
    let columns = Columns::pack(&w, 40, 24, Kept::F32).unwrap();
    let x = activations(24, 6, 0);
    let mut y = vec![f32::NAN; 40];
    columns.apply(&Active::above(&x, 1, 24, f32::INFINITY).unwrap(), &mut y, &Serial).unwrap();
    assert!(y.iter().all(|&y| y == 0.0));
    columns.apply(&Active::above(&x, 1, 24, -1.0).unwrap(), &mut y, &Serial).unwrap();
    let mut dense = vec![0.0; 40];
    Dense::pack(&w, 40, 24, Float::F32).unwrap().apply(&x, 1, &mut dense).unwrap();
    assert_eq!(bits(&y), bits(&dense));
    let mut x = x;
    x[7] = f32::NAN;
    columns.apply(&Active::above(&x, 1, 24, 1e9).unwrap(), &mut y, &Serial).unwrap();
    assert!(y.iter().all(|y| y.is_nan()));
}

#[test]
fn skipping_refuses() {
    use KernelError::*;
    let columns = Columns::pack(&[1.0; 8], 2, 4, Kept::F32).unwrap();
    let mut y = [0.0; 2];
    let mut apply = |indices: &[u32], values: &[f32]| {
        let active = Active { indices: indices.to_vec(), values: values.to_vec(), rows: 1 };
        columns.apply(&active, &mut y, &Serial)
    };
    assert!(apply(&[0, 3], &[1.0, 1.0]).is_ok());
    assert!(matches!(apply(&[0, 4], &[1.0, 1.0]), Err(Index { what: "input", got: 4, len: 4 })));
    assert!(matches!(apply(&[2, 2], &[1.0, 1.0]), Err(Order { at: 1, .. })));
    assert!(matches!(apply(&[0, 1], &[1.0]), Err(Length { .. })));
    assert!(matches!(columns.apply(&Active::default(), &mut [0.0], &Serial), Err(Length { .. })));
    assert!(columns.apply(&Active::default(), &mut [], &Serial).is_ok());
    assert!(Active::above(&[1.0], 1, 2, 0.0).is_err() && Active::above(&[], 1, 0, 0.0).is_err());
    let neurons = Neurons::pack(&[1.0; 8], 2, 4).unwrap();
    assert!(matches!(neurons.apply(&[2], &[1.0; 4], 1, &mut y[..1], &Serial), Err(Index { .. })));
    assert!(matches!(neurons.apply(&[1, 0], &[1.0; 4], 1, &mut y, &Serial), Err(Order { .. })));
    assert!(matches!(neurons.apply(&[1], &[1.0; 3], 1, &mut y[..1], &Serial), Err(Length { .. })));
    assert!(Neurons::pack(&[f32::NAN], 1, 1).is_err() && Columns::pack(&[], 0, 1, Kept::F32).is_err());
    assert!(matches!(Columns::from_packed(&[0; 64], 4, 16, Kept::F32), Err(Length { .. })));
    assert!(matches!(Columns::from_packed(&[], usize::MAX, 4, Kept::Int8), Err(Shape { .. })));
    assert_eq!(Columns::packed_bytes(0, 4, Kept::F32), 0);
    assert!(
        Columns::pack(&[f32::MAX], 1, 1, Kept::Bf16).is_err()
            && Columns::pack(&[f32::MAX], 1, 1, Kept::Int8).is_ok()
    );
    assert!(matches!(Neurons::from_packed(&[0; 64], 1, 4), Err(Length { .. })));
    let dense = |outs, ins| Dense::pack(&vec![1.0; outs * ins], outs, ins, Float::F32).unwrap();
    assert!(Experts::new(vec![]).is_err());
    assert!(matches!(Experts::new(vec![dense(1, 2), dense(2, 1)]), Err(Length { .. })));
    let experts = Experts::new(vec![dense(1, 2); 2]).unwrap();
    let route = |row, expert| [Route { row, expert, weight: 1.0 }];
    let mut apply = |routes: &[Route]| experts.apply(&[1.0; 2], 1, routes, &mut y[..1], &Serial);
    assert!(apply(&route(0, 1)).is_ok());
    assert!(matches!(apply(&route(1, 0)), Err(Index { what: "row", .. })));
    assert!(matches!(apply(&route(0, 2)), Err(Index { what: "expert", .. })));
    // Two rows share an expert, which is read once.
    let both = [Route { row: 0, expert: 1, weight: 1.0 }, Route { row: 1, expert: 1, weight: 1.0 }];
    assert_eq!(experts.bytes(&both), dense(1, 2).packed().len());
}
