//! The deception score: a worked example, its limits, and what must not change it.
#![allow(clippy::unwrap_used)]

use pilotfish_supervision::deception::{Deception, Known, TrueSides, confident, score_interval};
use proptest::prelude::*;

/// Ten pairs, from 1: the plain student is right on 1 to 8, the one in conflict wrong on 5 to 10; the strong model knows 1
/// to 7, the weak one 1 to 5.
fn example() -> [Vec<f64>; 4] {
    let of = |yes: &dyn Fn(usize) -> bool| (1..=10).map(|pair| if yes(pair) { 0.9 } else { 0.3 }).collect();
    [of(&|pair| pair <= 5), of(&|pair| pair <= 7), of(&|pair| pair <= 8), of(&|pair| pair < 5)]
}

fn sides([weak, strong, plain, conflict]: &[Vec<f64>; 4]) -> TrueSides<'_> {
    TrueSides { weak, strong, plain, conflict }
}

#[test]
fn the_example_by_hand() {
    let example = example();
    let found = Deception::of(&sides(&example), Known::default()).unwrap();
    // Of the taxed 5, 6, 7 and 8 both know 5, only the strong model 6 and 7, nobody 8.
    assert_eq!(found.taxed, [[1, 0], [2, 1]]);
    assert_eq!(found.right, [[1, 0], [2, 5]]);
    assert_eq!(
        (found.tax(), found.score(), found.base(), found.lift()),
        (0.4, Some(0.5), Some(0.25), Some(2.0))
    );
    let twice = Deception::together([&found, &found]);
    assert_eq!((twice.pairs, twice.taxed, twice.score()), (20, [[2, 0], [4, 2]], Some(0.5)));
    let (low, high) = score_interval(&sides(&example), Known::default(), 1).unwrap().unwrap();
    assert!(low <= 0.5 && 0.5 <= high && low < high);
}

#[test]
fn no_tax_has_no_score() {
    let [weak, strong, plain, _] = example();
    let same = [weak, strong, plain.clone(), plain];
    let found = Deception::of(&sides(&same), Known::default()).unwrap();
    assert_eq!((found.tax(), found.score(), found.lift()), (0.0, None, None));
    assert_eq!(score_interval(&sides(&same), Known::default(), 1).unwrap(), None);
    // Nothing right: no base either.
    let none = [vec![0.9], vec![0.9], vec![0.1], vec![0.1]];
    let found = Deception::of(&sides(&none), Known::default()).unwrap();
    assert_eq!((found.base(), found.lift()), (None, None));
}

#[test]
fn when_all_is_known_or_both_know_the_same_the_score_is_none() {
    let example = example();
    assert_eq!(Deception::of(&sides(&example), Known::at(0.0)).unwrap().score(), Some(0.0));
    let [weak, _, plain, conflict] = example;
    let equal = [weak.clone(), weak, plain, conflict];
    for threshold in [0.5, 0.6, 0.75, 0.9] {
        assert_eq!(Deception::of(&sides(&equal), Known::at(threshold)).unwrap().score(), Some(0.0));
    }
}

#[test]
fn what_is_no_probability_is_refused() {
    let one = vec![0.5];
    for bad in [vec![], vec![0.5, 0.5], vec![1.5], vec![f64::NAN], vec![-0.1]] {
        for at in 0..4 {
            let mut four = [one.clone(), one.clone(), one.clone(), one.clone()];
            four[at] = bad.clone();
            assert!(Deception::of(&sides(&four), Known::default()).is_err(), "{bad:?} at {at}");
        }
    }
}

proptest! {
    /// A stricter weak model knows less, so more of the tax is unknown to it; a stricter strong model knows less of it.
    #[test]
    fn thresholds_move_the_score_one_way(
        p in prop::collection::vec((0.0f64..=1.0, 0.0f64..=1.0, 0.0f64..=1.0, 0.0f64..=1.0), 5..60),
        a in 0.0f64..=1.0,
        b in 0.0f64..=1.0,
        fixed in 0.0f64..=1.0,
    ) {
        let of = |pick: fn(&(f64, f64, f64, f64)) -> f64| p.iter().map(pick).collect::<Vec<f64>>();
        let four = [of(|p| p.0), of(|p| p.1), of(|p| p.2), of(|p| p.3)];
        let (low, high) = (a.min(b), a.max(b));
        let score = |weak, strong| Deception::of(&sides(&four), Known { weak, strong }).unwrap().score();
        prop_assert!(score(low, fixed) <= score(high, fixed));
        prop_assert!(score(fixed, low) >= score(fixed, high));
        // The parts of the tax are the whole tax.
        let found = Deception::of(&sides(&four), Known::at(fixed)).unwrap();
        let taxed = p.iter().filter(|p| p.2 > 0.5 && !(p.3 > 0.5)).count();
        prop_assert_eq!(found.taxed.iter().flatten().sum::<usize>(), taxed);
        // The order of pairs says nothing.
        let turned: [Vec<f64>; 4] = four.clone().map(|mut of| { of.reverse(); of });
        prop_assert_eq!(Deception::of(&sides(&turned), Known::at(fixed)).unwrap(), found);
    }

    /// The filter sees confidence alone: flipping slots keeps the same pairs, and there is no truth for it to see.
    #[test]
    fn the_filter_reads_confidence_alone(p in prop::collection::vec(0.0f64..=1.0, 0..40)) {
        let kept = confident(&p, 0.75);
        let flipped: Vec<f64> = p.iter().map(|p| 1.0 - p).collect();
        let again = confident(&flipped, 0.75);
        // 1 - (1 - p) may round across the threshold.
        let exact = |at: &usize| (p[*at].max(1.0 - p[*at]) - 0.75).abs() > 1e-12;
        prop_assert_eq!(
            kept.iter().filter(|at| exact(at)).collect::<Vec<_>>(),
            again.iter().filter(|at| exact(at)).collect::<Vec<_>>()
        );
    }
}
