#![allow(clippy::unwrap_used)]

use pilotfish_model::toy::TableModel;
use pilotfish_model::{Streams, Token};
use proptest::prelude::*;

use super::*;
use crate::verifiers::Reader;

const MIXED: [bool; 5] = [true, true, true, false, false];

fn near(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() < tolerance, "{got} {want}");
}

#[test]
fn enumerated_accuracies() {
    let all = [true; 5];
    let none = [false; 5];
    let ten = [true, true, true, true, true, false, false, false, false, false];
    for (q, references, want) in [
        (0.6, &MIXED[..], [0.5935, 0.5793, 0.5935]),
        (0.7, &MIXED[..], [0.6855, 0.6603, 0.6855]),
        (0.8, &MIXED[..], [0.7745, 0.7423, 0.7745]),
        (0.7, &all[..], [0.6685, 0.5342, 0.6704]),
        (0.7, &none[..], [0.6685, 0.5342, 0.6704]),
        (0.8, &all[..], [0.7210, 0.5741, 0.7749]),
        (0.7, &ten[..], [0.7374, 0.7374, 0.7374]),
        (0.8, &ten[..], [0.8401, 0.8401, 0.8401]),
    ] {
        let games = Games::decisive(q).unwrap();
        let fitted = Votes::fitted(&games).unwrap();
        for (votes, want) in [Votes::SUM, Votes::INFORMATIVE, fitted].iter().zip(want) {
            near(accuracy(&games, votes, references).unwrap(), want, 6e-5);
        }
    }
    assert!(accuracy(&Games::decisive(0.7).unwrap(), &Votes::SUM, &[true; 13]).is_err());
}

#[test]
fn fitted_votes_by_hand() {
    let votes = Votes::fitted(&Games::decisive(0.7).unwrap()).unwrap();
    near(votes.correct[0], (0.5f64 / 0.3).ln(), 1e-12);
    near(votes.incorrect[0], 1.4f64.ln(), 1e-12);
    near(votes.correct[2], -0.336472, 1e-6);
    near(votes.incorrect[2], -0.510826, 1e-6);
}

#[test]
fn ties_carry_information() {
    let games = Games::with_ties(0.7, 0.4, 0.1).unwrap();
    let votes = Votes::fitted(&games).unwrap();
    for (votes, want) in [(Votes::SUM, 0.6849), (Votes::TIE_LABEL, 0.7882), (votes, 0.8215)] {
        near(accuracy(&games, &votes, &MIXED).unwrap(), want, 6e-5);
    }
    let want = [0.105361, 1.386294, -0.741937, 0.741937, -1.386294, -0.105361];
    for (got, want) in votes.correct.iter().chain(&votes.incorrect).zip(want) {
        near(*got, want, 1e-6);
    }
}

#[test]
fn calibration_by_games_by_hand() {
    let mut games = vec![(true, false, Outcome::Better); 4];
    // Seen from the incorrect side.
    games.extend([(false, true, Outcome::Tie), (false, true, Outcome::Better)]);
    // Same-label counts 1, 2, 1.
    games.extend([(true, true, Outcome::Better), (false, false, Outcome::Worse)]);
    games.extend([(true, true, Outcome::Tie), (true, true, Outcome::Tie)]);
    let games = Games::count(&games, 1.0).unwrap();
    let votes = Votes::fitted(&games).unwrap();
    near(games.different[0], 5.0 / 9.0, 1e-12);
    near(games.different[1], 2.0 / 9.0, 1e-12);
    near(games.same[0], 2.0 / 7.0, 1e-12);
    near(games.same[1], 3.0 / 7.0, 1e-12);
    let want = [0.251314, 0.656780, -0.664976, 0.664976, -0.656780, -0.251314];
    for (got, want) in votes.correct.iter().chain(&votes.incorrect).zip(want) {
        near(*got, want, 1e-6);
    }
    let target = [
        (Outcome::Tie, true),
        (Outcome::Worse, true),
        (Outcome::Better, true),
        (Outcome::Better, false),
        (Outcome::Better, false),
    ];
    let score = votes.score(&target, 0.5).unwrap();
    near(score, 1.573070, 2e-6);
    near(crate::heads::sigmoid(score), 0.828221, 1e-6);
    near(crate::heads::sigmoid(votes.score(&target, 0.3).unwrap()), 0.673877, 1e-6);
    near(Votes::SUM.score(&target, 0.5).unwrap(), 2.0, 1e-12);
}

#[test]
fn position_bias_by_hand() {
    // The target is preferred by 0.4, the first slot by 1.
    let sigmoid = crate::heads::sigmoid;
    let first = sigmoid(1.4);
    let swapped = sigmoid(0.6);
    near(first, 0.802184, 1e-6);
    near(swapped, 0.645656, 1e-6);
    let verdict = Verdict { first: [first, 1.0 - first, 0.0], swapped: [swapped, 1.0 - swapped, 0.0] };
    // One order says better, the other worse.
    assert_eq!(verdict.hard(), Outcome::Tie);
    near(verdict.soft()[0], 0.578264, 1e-6);
    near(two_way(first, swapped), 0.598688, 1e-6);
    assert!(verdict.bias() > 0.4);
    let logits = Verdict::from_logits([1.4, 0.0, f64::NEG_INFINITY], [0.6, 0.0, f64::NEG_INFINITY]);
    near(logits.first[0], first, 1e-12);
    let even = Verdict::from_logits([1.0, 1.0, 0.0], [1.0, 1.0, 0.0]);
    assert_eq!(even.hard(), Outcome::Tie);
}

#[test]
fn cascades_by_hand() {
    let cascade = cascade_accuracy(0.6, 0.85, 0.8, 0.3).unwrap();
    near(cascade.routed, 0.4, 1e-12);
    near(cascade.accuracy, 0.82, 1e-12);
    near(cascade.precision.unwrap(), 0.8, 1e-12);
    let perfect = cascade_accuracy(0.6, 0.85, 1.0, 0.0).unwrap();
    near(perfect.routed, 0.4, 1e-12);
    near(perfect.accuracy, 0.94, 1e-12);
    near(cascade_accuracy(0.6, 0.85, 0.5, 0.5).unwrap().accuracy, 0.725, 1e-12);
    assert!(cascade_accuracy(f64::NAN, 0.5, 0.5, 0.5).is_err());
}

#[test]
fn curves_go_from_weak_to_strong() {
    let points =
        curve(&[0.1, 0.9, 0.1, 0.5], &[false, true, true, false], &[true, true, false, true]).unwrap();
    let routed: Vec<f64> = points.iter().map(|p| p.cascade.routed).collect();
    assert_eq!(routed, [0.0, 0.5, 0.75, 1.0]);
    let accuracy: Vec<f64> = points.iter().map(|p| p.cascade.accuracy).collect();
    assert_eq!(accuracy, [0.5, 0.5, 0.75, 0.75]);
    assert_eq!(points[2].cascade.precision, Some(1.0));
    assert_eq!(points[3].cascade.precision, None);
    assert!(curve(&[], &[], &[]).is_err() && curve(&[f64::NAN], &[true], &[true]).is_err());
    assert!(curve(&[0.0], &[], &[true]).is_err());
}

#[test]
fn purity_by_hand() {
    let mut p = 0.5;
    for want in [0.583333, 0.662162, 0.732906, 0.793457] {
        p = purity(p, 0.7, 0.5).unwrap();
        near(p, want, 1e-6);
    }
    assert!(purity(0.5, 0.0, 0.0).is_err() && purity(f64::NAN, 0.5, 0.5).is_err());
}

/// A judge that errs independently each round purifies as the formula says; one that does not change drops nothing
/// the second time.
#[test]
fn filtering_purifies_only_with_fresh_errors() {
    let n = 40_000;
    let good = |item: usize| item % 2 == 0;
    let verdict = |item: usize, round: u64| {
        let mut rng = Streams::new(round).fork(item as u64).stream("judge");
        rand::Rng::random_bool(&mut rng, if good(item) { 0.7 } else { 0.5 })
    };
    let share = |kept: &[usize]| kept.iter().filter(|item| good(**item)).count() as f64 / kept.len() as f64;
    let rounds = filter::<SupervisionError>(n, 3, |round, left| {
        Ok(left.iter().map(|&item| verdict(item, round as u64)).collect())
    })
    .unwrap();
    for (round, want) in rounds.iter().zip([0.583333, 0.662162, 0.732906]) {
        near(share(&round.kept), want, 0.02);
    }
    let frozen =
        filter::<SupervisionError>(n, 3, |_, left| Ok(left.iter().map(|&item| verdict(item, 0)).collect()))
            .unwrap();
    assert_eq!(frozen.len(), 2);
    assert_eq!(frozen[0], frozen[1]);
    assert!(filter::<SupervisionError>(0, 1, |_, _| Ok(vec![])).is_err());
    assert!(filter::<SupervisionError>(3, 1, |_, _| Ok(vec![])).is_err());
}

/// The judge reads the pairs in the order it says.
#[test]
fn comparisons_read_both_orders() {
    let mut model = TableModel::random(2, 8, 1.0, &mut Streams::new(1).stream("judge")).unwrap();
    let law = model.clone();
    let slots = |a: Token| Slots { first: vec![a, 6], second: vec![7, a] };
    let (targets, references) = ([slots(1), slots(2)], [slots(3), slots(4), slots(5)]);
    let mut reader = Reader::new(&mut model);
    let all = compare_all(&mut reader, &[0], &targets, &references, [0, 1, 2]).unwrap();
    assert_eq!((all.len(), all[0].len()), (2, 3));
    let probabilities = |first: &Slots, second: &Slots| {
        let text: Vec<Token> = [0].iter().chain(&first.first).chain(&second.second).copied().collect();
        let p = law.next(&text);
        let sum: f64 = (0..3).map(|v| p.prob(v)).sum();
        [0, 1, 2].map(|v| p.prob(v) / sum)
    };
    for (t, target) in targets.iter().enumerate() {
        for (r, reference) in references.iter().enumerate() {
            let want = [probabilities(target, reference), probabilities(reference, target)];
            for (got, want) in [all[t][r].first, all[t][r].swapped].iter().zip(want) {
                assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }
    let empty = [Slots { first: vec![1], second: vec![] }];
    assert!(compare_all(&mut reader, &[0], &empty, &references, [0, 1, 2]).is_err());
    assert!(reader.model().info().vocab == 8);
}

#[test]
fn bad_numbers_are_refused() {
    assert!(Games::decisive(f64::NAN).is_err() && Games::decisive(1.0).is_err());
    assert!(Games::with_ties(0.7, f64::NAN, 0.0).is_err());
    assert!(Games::count(&[], 0.0).is_err() && Games::count(&[], f64::NAN).is_err());
    assert!(Votes::fitted(&Games { different: [1.0, 0.0, 0.0], same: [0.5, 0.0, 0.5] }).is_err());
    assert!(Votes::fitted(&Games { different: [f64::NAN; 3], same: [0.5, 0.0, 0.5] }).is_err());
    assert!(Votes::SUM.score(&[], 0.0).is_err() && Votes::SUM.score(&[], f64::NAN).is_err());
    assert!(Votes::SUM.soft_score(&[([f64::NAN; 3], true)], 0.5).is_err());
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (0usize..3).prop_map(|index| Outcome::ALL[index])
}

proptest! {
    #[test]
    fn invariances(
        outcomes in proptest::collection::vec((outcome(), any::<bool>()), 0..8),
        q in 0.51f64..0.95, tie in 0.05f64..0.4, turn in 0usize..8,
    ) {
        let votes = Votes::fitted(&Games::with_ties(q, tie, 0.5 * tie).unwrap()).unwrap();
        let score = votes.score(&outcomes, 0.5).unwrap();
        let mut turned = outcomes.clone();
        if !turned.is_empty() {
            let by = turn % turned.len();
            turned.rotate_left(by);
        }
        prop_assert!((votes.score(&turned, 0.5).unwrap() - score).abs() < 1e-9);
        let doubled: Vec<_> = outcomes.iter().chain(&outcomes).copied().collect();
        prop_assert!((votes.score(&doubled, 0.5).unwrap() - 2.0 * score).abs() < 1e-9);
        // The prior alone, without references.
        prop_assert!((votes.score(&[], 0.3).unwrap() - (0.3f64 / 0.7).ln()).abs() < 1e-12);
        // A judge that only ties says nothing under `sum`, and the same of every target under fitted votes.
        let ties: Vec<_> = outcomes.iter().map(|(_, label)| (Outcome::Tie, *label)).collect();
        prop_assert_eq!(Votes::SUM.score(&ties, 0.5).unwrap(), 0.0);
        let blind = Votes::fitted(&Games::with_ties(q, tie, tie).unwrap()).unwrap();
        prop_assert!(blind.score(&ties, 0.5).unwrap().abs() < 1e-12);
    }

    #[test]
    fn swapping_roles_negates(a in proptest::array::uniform3(-3.0f64..3.0), b in proptest::array::uniform3(-3.0f64..3.0)) {
        let one = Verdict::from_logits(a, b);
        let other = Verdict::from_logits(b, a);
        let margin = |v: Verdict| v.soft()[0] - v.soft()[2];
        prop_assert!((margin(one) + margin(other)).abs() < 1e-12);
        prop_assert_eq!(one.hard(), other.hard().mirrored());
    }
}
