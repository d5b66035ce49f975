//! Sampling without replacement by perturbed log-probabilities.

use pilotfish_model::Token;
use pilotfish_model::sampling::Distribution;
use rand::Rng;

/// A standard Gumbel variable, `-ln(-ln U)`.
pub fn gumbel(rng: &mut impl Rng) -> f64 {
    // From the open interval: a U of 0 would be minus infinity.
    let u: f64 = 1.0 - rng.random::<f64>();
    -(-u.min(1.0 - f64::EPSILON / 2.0).ln()).ln()
}

/// `count` tokens of a law without replacement, in the order drawn: those of the largest `ln q(x) + G(x)`,
/// descending. Tokens of probability 0 are never drawn, so there may be fewer.
pub fn top(law: &Distribution, count: usize, rng: &mut impl Rng) -> Vec<Token> {
    let mut keys: Vec<(f64, Token)> = law
        .probs()
        .iter()
        .enumerate()
        .filter(|(_, prob)| **prob > 0.0)
        .map(|(id, prob)| (prob.ln() + gumbel(rng), id as Token))
        .collect();
    keys.sort_by(|a, b| b.0.total_cmp(&a.0));
    keys.truncate(count);
    keys.into_iter().map(|(_, id)| id).collect()
}

/// A successor of an entry of a stochastic beam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Successor {
    /// The token.
    pub token: Token,
    /// Log-probability of the path with it.
    pub phi: f64,
    /// Perturbed log-probability, conditioned so that the largest of an entry's successors is the entry's own.
    pub psi: f64,
}

/// `ln(1 - exp(x))` for `x <= 0`, in the branch that keeps its digits.
fn log1mexp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

/// The successors of a beam entry with log-probability `phi` and perturbed `psi`, best first, at most `width` of
/// them: `psi_x = -ln(exp(-psi) - exp(-Z) + exp(-g_x))` with `g_x = phi_x + Gumbel` and `Z` their largest, in the
/// stable form of wouterkool/stochastic-beam-search, `fairseq/gumbel.py`. `noise` gives a Gumbel variable a call, in
/// the order of tokens.
pub fn successors(
    phi: f64,
    psi: f64,
    law: &Distribution,
    width: usize,
    mut noise: impl FnMut() -> f64,
) -> Vec<Successor> {
    let mut all: Vec<Successor> = law
        .probs()
        .iter()
        .enumerate()
        .filter(|(_, prob)| **prob > 0.0)
        .map(|(id, prob)| {
            let phi = phi + prob.ln();
            Successor { token: id as Token, phi, psi: phi + noise() }
        })
        .collect();
    // The largest perturbed values stay the largest after conditioning.
    let by = |a: &Successor, b: &Successor| b.psi.total_cmp(&a.psi);
    if width < all.len() {
        all.select_nth_unstable_by(width, by);
        all.truncate(width);
    }
    all.sort_by(by);
    let Some(largest) = all.first().map(|first| first.psi) else { return all };
    for (index, successor) in all.iter_mut().enumerate() {
        let g = successor.psi;
        successor.psi = if index == 0 {
            psi
        } else {
            let u = psi - g + log1mexp(g - largest);
            psi - u.max(0.0) - (-u.abs()).exp().ln_1p()
        };
    }
    all
}

#[cfg(test)]
mod tests {
    use pilotfish_model::Streams;
    use proptest::prelude::*;

    use super::*;

    fn law(weights: &[f64]) -> Distribution {
        Distribution::from_weights(weights.to_vec()).expect("valid")
    }

    #[test]
    fn ordered_pairs_follow_their_law() {
        let law = law(&[6.0, 3.0, 1.0]);
        let mut rng = Streams::new(11).stream("draft");
        let mut counts = [[0.0f64; 3]; 3];
        let n = 100_000;
        for _ in 0..n {
            let pair = top(&law, 2, &mut rng);
            counts[pair[0] as usize][pair[1] as usize] += 1.0;
        }
        let want = [
            (0, 1, 0.45),
            (0, 2, 0.15),
            (1, 0, 0.257143),
            (1, 2, 0.042857),
            (2, 0, 0.066667),
            (2, 1, 0.033333),
        ];
        let chi2: f64 = want
            .iter()
            .map(|&(a, b, p)| (counts[a][b] - p * f64::from(n)).powi(2) / (p * f64::from(n)))
            .sum();
        // Five degrees of freedom, p = 0.001.
        assert!(chi2 < 20.5, "{chi2}");
        for (token, want) in [0.92381, 0.783333, 0.292857].into_iter().enumerate() {
            let inside: f64 =
                counts[token].iter().sum::<f64>() + counts.iter().map(|row| row[token]).sum::<f64>();
            assert!((inside / f64::from(n) - want).abs() < 0.006, "{token}");
        }
    }

    #[test]
    fn impossible_tokens_are_never_drawn() {
        let mut rng = Streams::new(1).stream("draft");
        assert_eq!(top(&law(&[0.0, 1.0, 0.0]), 3, &mut rng), [1]);
        assert_eq!(successors(0.0, 0.0, &law(&[0.0, 1.0, 0.0]), 3, || 0.3).len(), 1);
    }

    #[test]
    fn a_beam_by_hand() {
        let law = law(&[6.0, 3.0, 1.0]);
        let step = |phi, psi, noise: [f64; 3]| {
            let mut noise = noise.into_iter();
            let mut found = successors(phi, psi, &law, 3, || noise.next().expect("three"));
            found.sort_by_key(|successor| successor.token);
            found.iter().map(|successor| successor.psi).collect::<Vec<_>>()
        };
        let close = |got: Vec<f64>, want: [f64; 3]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} is not {want:?}");
        };
        close(step(0.0, 0.0, [0.0, 1.0, -0.5]), [-0.3649, 0.0, -2.7888]);
        close(step(0.3f64.ln(), 0.0, [0.2, -0.3, 1.5]), [0.0, -2.4380, -1.3582]);
        close(step(0.6f64.ln(), -0.3649, [0.5, 0.1, -1.0]), [-0.3649, -1.5650, -3.8080]);
    }

    proptest! {
        #[test]
        fn the_best_successor_is_as_good_as_its_entry(weights in proptest::collection::vec(1e-6f64..1.0, 1..40), psi in -30f64..3.0, seed in 0u64..99) {
            let mut rng = Streams::new(seed).stream("draft");
            let found = successors(-1.0, psi, &law(&weights), 40, || gumbel(&mut rng));
            prop_assert!((found[0].psi - psi).abs() < 1e-9);
            prop_assert!(found.windows(2).all(|pair| pair[0].psi >= pair[1].psi && pair[1].psi.is_finite()));
        }
    }
}
