//! What must hold of every label model.
#![allow(clippy::unwrap_used)]

mod common;

use common::{fixture_a, fixture_b};
use pilotfish_supervision::Votes;
use pilotfish_supervision::label_models::{
    BinaryMoments, DawidSkene, Fitted, Glad, LabelModel, MajorityVote, Snorkel, Triplets, Wawa,
};

fn models() -> Vec<(&'static str, Box<dyn LabelModel>)> {
    vec![
        ("majority", Box::new(MajorityVote::default())),
        ("wawa", Box::new(Wawa)),
        ("ds", Box::new(DawidSkene::default())),
        ("one-coin", Box::new(DawidSkene::one_coin())),
        ("fast-ds", Box::new(DawidSkene::fast())),
        ("snorkel", Box::new(Snorkel::default())),
        ("flyingsquid", Box::new(Triplets::default())),
        ("moments", Box::new(BinaryMoments { positive: Some(0.5) })),
        ("glad", Box::new(Glad::default())),
    ]
}

fn cells(votes: &Votes, change: impl Fn(i64) -> i64) -> Vec<i64> {
    (0..votes.items())
        .flat_map(|item| votes.row(item).map(|(_, v)| change(v as i64)).collect::<Vec<_>>())
        .collect()
}

/// Of every pattern in turn, so that few items hold all of them.
fn near(name: &str, a: &Fitted, b: &Fitted, from: usize, class: impl Fn(usize) -> usize, tolerance: f64) {
    for item in (0..from).step_by(37) {
        for y in 0..2 {
            let (p, q) = (a.posterior.row(item)[y], b.posterior.row(item)[class(y)]);
            assert!((p - q).abs() < tolerance, "{name}, item {item}: {p} {q}");
        }
    }
}

#[test]
fn every_item_twice_changes_nothing() {
    let (votes, _) = fixture_a();
    let mut twice = cells(&votes, |vote| vote);
    twice.extend_from_within(..);
    let twice = Votes::from_dense(2 * votes.items(), 3, 2, &twice).unwrap();
    for (name, model) in models() {
        // Snorkel's clipping depends on the number of items.
        let tolerance = if name == "snorkel" { 1e-4 } else { 1e-6 };
        let (one, two) = (model.fit(&votes).unwrap(), model.fit(&twice).unwrap());
        near(name, &one, &two, votes.items(), |y| y, tolerance);
    }
}

#[test]
fn opposite_votes_give_opposite_labels_at_equal_priors() {
    let (votes, _) = fixture_b();
    let flipped = Votes::from_dense(votes.items(), 3, 2, &cells(&votes, |vote| 1 - vote)).unwrap();
    for (name, model) in models() {
        let (one, two) = (model.fit(&votes).unwrap(), model.fit(&flipped).unwrap());
        near(name, &one, &two, votes.items(), |y| 1 - y, 1e-5);
    }
}

#[test]
fn the_order_of_voters_and_of_items_is_nothing() {
    let (votes, _) = fixture_a();
    let turned = votes.select_voters(&[2, 0, 1]).unwrap();
    let last: Vec<usize> = (0..votes.items()).rev().collect();
    let backwards = votes.select_items(&last).unwrap();
    for (name, model) in models() {
        let one = model.fit(&votes).unwrap();
        near(name, &one, &model.fit(&turned).unwrap(), votes.items(), |y| y, 1e-6);
        let other = model.fit(&backwards).unwrap();
        for item in (0..votes.items()).step_by(37) {
            let back = votes.items() - 1 - item;
            let (p, q) = (one.posterior.row(item)[1], other.posterior.row(back)[1]);
            assert!((p - q).abs() < 1e-9, "{name}, item {item}: {p} {q}");
        }
    }
}

#[test]
fn rows_sum_to_one() {
    let (votes, _) = fixture_a();
    for (name, model) in models() {
        let fitted = model.fit(&votes).unwrap();
        for item in (0..votes.items()).step_by(37) {
            let sum: f64 = fitted.posterior.row(item).iter().sum();
            assert!((sum - 1.0).abs() < 1e-12, "{name}: {sum}");
        }
    }
}
