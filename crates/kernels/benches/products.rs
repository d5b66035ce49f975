//! Products of 1, 4 and 8 rows, packed matrices in cache: `cargo xtask bench products`. For figures beside the machine's
//! limits and ONNX Runtime's kernels see `cargo xtask bench kernels`.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pilotfish_kernels::{
    Active, Bits, Blocks, Columns, Dense, Float, Kept, Neurons, Pattern, Product, Serial, Sparse,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const OUTS: usize = 1536;
const INS: usize = 576;

fn products(c: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut numbers = |count: usize| (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
    let (weights, x) = (numbers(OUTS * INS), numbers(16 * INS));
    let kept = |keep: usize, group: usize| {
        let mut pruned = weights.clone();
        pruned.chunks_mut(group).for_each(|group| group[keep..].fill(0.0));
        Sparse::pack(&pruned, OUTS, INS, Pattern { keep, group }, Kept::F32).unwrap()
    };
    let blocks = INS.div_ceil(32);
    let quantized = |bits: Bits, top: u8| {
        let codes: Vec<u8> = (0..OUTS * blocks * 32).map(|i| (i * 7 % 251) as u8 & top).collect();
        let (scales, zeros) = (vec![0.01; OUTS * blocks], vec![top / 2; OUTS * blocks]);
        Blocks::pack(&codes, &scales, &zeros, OUTS, INS, bits).unwrap()
    };
    let all: Vec<(&str, Box<dyn Product>)> = vec![
        ("f32", Box::new(Dense::pack(&weights, OUTS, INS, Float::F32).unwrap())),
        ("bf16", Box::new(Dense::pack(&weights, OUTS, INS, Float::Bf16).unwrap())),
        ("int8", Box::new(quantized(Bits::Eight, 255))),
        ("int4", Box::new(quantized(Bits::Four, 15))),
        ("2:4", Box::new(kept(2, 4))),
        ("1:4", Box::new(kept(1, 4))),
        ("1:8", Box::new(kept(1, 8))),
        ("1:16", Box::new(kept(1, 16))),
    ];
    let mut group = c.benchmark_group(format!("{OUTS}x{INS}"));
    let mut y = vec![0.0; 16 * OUTS];
    for (name, product) in &all {
        group.throughput(Throughput::Bytes(product.packed().len() as u64));
        for rows in [1, 4, 8] {
            group.bench_with_input(BenchmarkId::new(*name, rows), &rows, |b, &rows| {
                b.iter(|| product.apply(black_box(&x[..rows * INS]), rows, &mut y[..rows * OUTS]).unwrap());
            });
        }
    }
    let (columns, neurons) =
        (Columns::pack(&weights, OUTS, INS, Kept::F32).unwrap(), Neurons::pack(&weights, OUTS, INS).unwrap());
    for half in [1, 2] {
        let wanted: Vec<u32> = (0..OUTS as u32).step_by(half).collect();
        let active = Active {
            indices: (0..INS as u32).step_by(half).collect(),
            values: vec![0.5; INS / half],
            rows: 1,
        };
        group.throughput(Throughput::Bytes((4 * OUTS * INS / half) as u64));
        group.bench_function(BenchmarkId::new("columns, one of", half), |b| {
            b.iter(|| columns.apply(black_box(&active), &mut y[..OUTS], &Serial).unwrap());
        });
        group.bench_function(BenchmarkId::new("neurons, one of", half), |b| {
            b.iter(|| {
                neurons.apply(&wanted, black_box(&x[..INS]), 1, &mut y[..wanted.len()], &Serial).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
