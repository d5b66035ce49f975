//! What every product must do.

use pilotfish_kernels::{Isa, Product, Rayon, Serial};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A product and what it stands for.
pub(crate) struct Case<'a> {
    /// Row-major, as kept after rounding.
    pub weights: &'a [f32],
    pub x: &'a [f32],
    pub rows: usize,
    /// What is allowed besides 1e-5 of the sum of magnitudes, by row and output.
    pub slack: &'a dyn Fn(usize, usize) -> f64,
}

/// Normal, tiny, denormal, zero and negative-zero numbers.
fn number(rng: &mut ChaCha8Rng) -> f32 {
    match rng.random_range(0..12) {
        0 => 0.0,
        1 => -0.0,
        2 => f32::from_bits(rng.random_range(1..1 << 23)),
        3 => rng.random_range(-1e-30..1e-30),
        4 => rng.random_range(-100.0..100.0),
        _ => rng.random_range(-1.0..1.0),
    }
}

pub(crate) fn weights(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| number(&mut rng)).collect()
}

/// So many numbers after `offset` others: the slice that begins there has no particular alignment.
pub(crate) fn activations(count: usize, seed: u64, offset: usize) -> Vec<f32> {
    weights(count + offset, !seed)
}

pub(crate) fn hold(product: &dyn Product, case: Case<'_>) {
    let Case { weights, x, rows, slack } = case;
    let [outs, ins] = product.shape();
    let on = |isa: Isa, x: &[f32], rows: usize| {
        // What was there before must not matter, and one output must not spill into the next.
        let mut y = vec![f32::NAN; rows * outs + 2];
        product.apply_on(isa, x, rows, &mut y[1..rows * outs + 1], &Serial).unwrap();
        assert!(y[0].is_nan() && y[rows * outs + 1].is_nan());
        y[1..rows * outs + 1].to_vec()
    };
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let twin = on(Isa::SCALAR, x, rows);
    for row in 0..rows {
        for out in 0..outs {
            let pairs = weights[out * ins..(out + 1) * ins].iter().zip(&x[row * ins..(row + 1) * ins]);
            let (mut exact, mut size) = (0.0, 0.0);
            for (&w, &x) in pairs {
                exact += f64::from(w) * f64::from(x);
                size += (f64::from(w) * f64::from(x)).abs();
            }
            let got = f64::from(twin[row * outs + out]);
            // Half the least denormal is lost with each product that underflows.
            let bound = 1e-5 * size + slack(row, out) + 1e-44 * ins as f64;
            assert!(
                (got - exact).abs() <= bound,
                "row {row}, output {out}: {got}, not {exact}; bound {bound}"
            );
        }
    }
    for &isa in Isa::available() {
        let together = on(isa, x, rows);
        assert_eq!(bits(&together), bits(&twin), "{} differs from its twin", isa.name());
        for row in 0..rows {
            let alone = on(isa, &x[row * ins..(row + 1) * ins], 1);
            let part = &together[row * outs..(row + 1) * outs];
            assert_eq!(bits(&alone), bits(part), "{}: row {row} depends on the other rows", isa.name());
        }
        let mut y = vec![f32::NAN; rows * outs];
        product.apply_on(isa, x, rows, &mut y, &Rayon).unwrap();
        assert_eq!(bits(&y), bits(&twin), "{}: threads matter", isa.name());
    }
}
