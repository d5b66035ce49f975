//! The estimators' laws, by exact enumeration in rational numbers. Expected values are those of an independent
//! enumeration of the definitions.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use num_rational::BigRational;
use num_traits::{One, ToPrimitive, Zero};
use pilotfish_constrained::{Drawn, Estimator, Pool};

type Q = BigRational;

fn q(over: i64, under: i64) -> Q {
    Q::new(over.into(), under.into())
}

/// A pool whose draws are decided by a script, and that notes what else could have happened.
struct Scripted {
    masses: Vec<Q>,
    there: Vec<bool>,
    script: Vec<usize>,
    /// Choice and number of choices made so far.
    made: Vec<(usize, usize)>,
    probability: Q,
}

impl Scripted {
    fn choose(&mut self, options: &[Q]) -> usize {
        let at = self.made.len();
        let choice = self.script.get(at).copied().unwrap_or(0);
        self.made.push((choice, options.len()));
        self.probability *= options[choice].clone();
        choice
    }
}

impl Pool for Scripted {
    type Mass = Q;

    fn draw(&mut self) -> Option<u32> {
        let tokens: Vec<usize> =
            (0..self.masses.len()).filter(|&i| self.there[i] && !self.masses[i].is_zero()).collect();
        let left = self.left();
        let options: Vec<Q> = tokens.iter().map(|&i| self.masses[i].clone() / left.clone()).collect();
        if tokens.is_empty() {
            return None;
        }
        let choice = self.choose(&options);
        Some(tokens[choice] as u32)
    }

    fn remove(&mut self, token: u32) {
        self.there[token as usize] = false;
    }

    fn left(&self) -> Q {
        self.masses.iter().zip(&self.there).filter(|(_, there)| **there).map(|(mass, _)| mass).sum()
    }

    fn all(&self) -> Q {
        self.masses.iter().sum()
    }

    fn mass(&self, token: u32) -> Q {
        self.masses[token as usize].clone()
    }

    fn len(&self) -> usize {
        self.there.iter().filter(|there| **there).count()
    }

    fn phantoms(&mut self, most: f64) -> f64 {
        let hit = self.left() / self.all();
        let miss = Q::one() - hit.clone();
        let mut options = Vec::new();
        let mut reach = Q::one();
        for _ in 0..most as usize {
            options.push(reach.clone() * hit.clone());
            reach *= miss.clone();
        }
        options.push(reach);
        options.retain(|option| !option.is_zero());
        // All misses, or a hit after that many.
        self.choose(&options) as f64
    }
}

/// What every way of running something gives: token, weight, tests, probability.
fn explore(
    masses: &[Q],
    mut run: impl FnMut(&mut Scripted, &mut dyn FnMut(u32)) -> Drawn<Q>,
) -> Vec<(Option<u32>, Q, u32, Q)> {
    let mut all = Vec::new();
    let mut script = Vec::new();
    loop {
        let mut pool = Scripted {
            masses: masses.to_vec(),
            there: vec![true; masses.len()],
            script: script.clone(),
            made: Vec::new(),
            probability: Q::one(),
        };
        let mut tests = 0;
        let drawn = run(&mut pool, &mut |_| tests += 1);
        let whole = |value: f64| Q::from_float(value).unwrap();
        let weight = drawn.weight.map_or(Q::zero(), |(mass, over, under)| mass * whole(over) / whole(under));
        all.push((drawn.token, weight, tests, pool.probability));
        // The next script in order.
        script = pool.made.iter().map(|made| made.0).collect();
        let mut options: Vec<usize> = pool.made.iter().map(|made| made.1).collect();
        loop {
            let (Some(last), Some(most)) = (script.pop(), options.pop()) else { return all };
            if last + 1 < most {
                script.push(last + 1);
                break;
            }
        }
    }
}

struct Moments {
    by_token: BTreeMap<u32, Q>,
    accepted: BTreeMap<u32, Q>,
    mean: Q,
    variance: Q,
    tests: Q,
}

fn moments(masses: &[Q], valid: &[u32], estimator: Estimator) -> Moments {
    let ways = explore(masses, |pool, tested| {
        estimator
            .draw_from(pool, &mut |token| {
                tested(token);
                Ok(valid.contains(&token))
            })
            .unwrap()
    });
    summarise(&ways)
}

fn summarise(ways: &[(Option<u32>, Q, u32, Q)]) -> Moments {
    let probability: Q = ways.iter().map(|way| way.3.clone()).sum();
    assert!(probability.is_one(), "the ways make up {probability}");
    let (mut by_token, mut accepted) = (BTreeMap::new(), BTreeMap::new());
    for (token, weight, _, p) in ways {
        if let (Some(token), false) = (token, weight.is_zero()) {
            *by_token.entry(*token).or_insert_with(Q::zero) += weight * p;
            *accepted.entry(*token).or_insert_with(Q::zero) += p;
        }
    }
    let mean: Q = ways.iter().map(|way| way.1.clone() * way.3.clone()).sum();
    let square: Q = ways.iter().map(|way| way.1.clone() * way.1.clone() * way.3.clone()).sum();
    let tests: Q = ways.iter().map(|way| q(i64::from(way.2), 1) * way.3.clone()).sum();
    Moments { by_token, accepted, variance: square - mean.clone() * mean.clone(), mean, tests }
}

fn tenths(list: &[i64]) -> Vec<Q> {
    list.iter().map(|&tenth| q(tenth, 10)).collect()
}

/// Laws of the note's table, with the variance and the mean number of tests of both estimators.
fn table() -> Vec<(Vec<Q>, Vec<u32>, [Q; 4])> {
    vec![
        (tenths(&[5, 5]), vec![0], [q(3, 32), q(0, 1), q(11, 4), q(2, 1)]),
        (tenths(&[5, 3, 2]), vec![1], [q(517, 8000), q(0, 1), q(5599, 1600), q(27, 10)]),
        (tenths(&[5, 3, 2]), vec![0, 2], [q(357, 4000), q(3, 50), q(251, 100), q(23, 10)]),
        (tenths(&[4, 3, 2, 1]), vec![1, 3], [q(1111, 13500), q(1, 20), q(119, 36), q(17, 6)]),
    ]
}

#[test]
fn weights_are_proper_to_the_last_digit() {
    let cut = |accepts, most| Estimator::Geometric { accepts, max_rejects: Some(most) };
    for (masses, valid, _) in table() {
        for estimator in [Estimator::Paper, Estimator::Recursive, cut(2, 2), cut(2, 4), cut(3, 3), cut(4, 2)]
        {
            let found = moments(&masses, &valid, estimator);
            for token in 0..masses.len() as u32 {
                let want = if valid.contains(&token) { masses[token as usize].clone() } else { Q::zero() };
                let got = found.by_token.get(&token).cloned().unwrap_or_else(Q::zero);
                assert_eq!(got, want, "{estimator:?} token {token}");
            }
            // The law of what is accepted is p restricted to valid tokens, unless a run is cut before.
            if !matches!(estimator, Estimator::Geometric { .. }) {
                let z: Q = valid.iter().map(|&token| masses[token as usize].clone()).sum();
                for &token in &valid {
                    assert_eq!(found.accepted[&token], masses[token as usize].clone() / z.clone());
                }
            }
        }
    }
}

#[test]
fn variances_and_numbers_of_tests() {
    for (masses, valid, [paper, recursive, paper_tests, recursive_tests]) in table() {
        let found = moments(&masses, &valid, Estimator::Paper);
        assert_eq!((found.variance, found.tests), (paper, paper_tests));
        let found = moments(&masses, &valid, Estimator::Recursive);
        assert_eq!((found.variance, found.tests), (recursive, recursive_tests));
    }
    // With a cut after two rejections the geometric estimator's variance is close to .120 on the last law.
    let cut = Estimator::Geometric { accepts: 2, max_rejects: Some(2) };
    let found = moments(&tenths(&[4, 3, 2, 1]), &[1, 3], cut);
    assert!((found.variance.to_f64().unwrap() - 0.120).abs() < 5e-4, "{}", found.variance);
}

#[test]
fn weights_scale_with_the_law() {
    let (masses, valid) = (tenths(&[4, 3, 2, 1]), [1, 3]);
    let thrice: Vec<Q> = masses.iter().map(|mass| mass * q(3, 1)).collect();
    for estimator in
        [Estimator::Paper, Estimator::Recursive, Estimator::Geometric { accepts: 2, max_rejects: Some(3) }]
    {
        let (one, three) = (moments(&masses, &valid, estimator), moments(&thrice, &valid, estimator));
        assert_eq!(one.mean, q(4, 10));
        assert_eq!(three.mean, q(12, 10));
    }
}

#[test]
fn nothing_valid_weighs_nothing() {
    for estimator in [Estimator::Paper, Estimator::Recursive, Estimator::Unweighted, Estimator::Chosen] {
        let ways =
            explore(&tenths(&[5, 3, 2]), |pool, _| estimator.draw_from(pool, &mut |_| Ok(false)).unwrap());
        assert!(ways.iter().all(|way| way.1.is_zero()));
        assert!(
            ways.iter().all(|way| way.0.is_some()),
            "the token that comes with weight 0 is a rejected one"
        );
    }
    let ways = explore(&[Q::zero()], |pool, _| Estimator::Paper.draw_from(pool, &mut |_| Ok(true)).unwrap());
    assert!(ways.iter().all(|way| way.0.is_none() && way.1.is_zero()));
}

/// Known-wrong variants: the kit above catches them.
mod wrong {
    use super::*;

    fn pass(pool: &mut Scripted, valid: &[u32]) -> (Option<u32>, i64) {
        let mut rejected = 0;
        while let Some(token) = pool.draw() {
            if valid.contains(&token) {
                return (Some(token), rejected);
            }
            pool.remove(token);
            rejected += 1;
        }
        (None, rejected)
    }

    /// `L / (n + L)` with `L + 1` acceptances, as with replacement: biased without.
    fn more_acceptances(masses: &[Q], valid: &[u32]) -> Q {
        let ways = explore(masses, |pool, _| {
            let (token, n0) = pass(pool, valid);
            let left = pool.left();
            let n = n0 + pass(pool, valid).1 + pass(pool, valid).1;
            Drawn { token, weight: token.map(|_| (left, 2.0, (n + 2) as f64)) }
        });
        summarise(&ways).mean
    }

    #[test]
    fn more_acceptances_are_biased() {
        assert_eq!(more_acceptances(&tenths(&[5, 5]), &[0]), q(13, 24));
        assert_eq!(more_acceptances(&tenths(&[9, 1]), &[1]), q(127, 1000));
    }

    #[test]
    fn taking_the_accepted_token_out_is_biased() {
        let ways = explore(&tenths(&[5, 3, 2]), |pool, _| {
            let (token, n0) = pass(pool, &[0, 2]);
            let left = pool.left();
            pool.remove(token.unwrap());
            let n1 = pass(pool, &[0, 2]).1;
            Drawn { token, weight: Some((left, 1.0, (n0 + n1 + 1) as f64)) }
        });
        assert_ne!(summarise(&ways).mean, q(7, 10));
    }

    #[test]
    fn forgetting_the_rejected_mass_is_biased() {
        let ways = explore(&tenths(&[5, 3, 2]), |pool, _| {
            let (token, n0) = pass(pool, &[0, 2]);
            let n1 = pass(pool, &[0, 2]).1;
            Drawn { token, weight: Some((Q::one(), 1.0, (n0 + n1 + 1) as f64)) }
        });
        assert_ne!(summarise(&ways).mean, q(7, 10));
    }
}
