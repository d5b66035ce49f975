//! The fixtures A to D of the notes, whose numbers were worked out by hand or by independent code.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use pilotfish_supervision::Votes;

/// Rows of 0/1 votes with (count with truth 1, count with truth 0), three voters.
pub fn by_pattern(counts: [(usize, usize); 8]) -> (Votes, Vec<usize>) {
    let (mut votes, mut truth) = (Vec::new(), Vec::new());
    for (pattern, (ones, zeros)) in counts.into_iter().enumerate() {
        let row = [pattern as i8 >> 2, pattern as i8 >> 1 & 1, pattern as i8 & 1];
        votes.extend(row.repeat(ones + zeros));
        truth.extend(std::iter::repeat_n(1, ones));
        truth.extend(std::iter::repeat_n(0, zeros));
    }
    (Votes::from_dense(truth.len(), 3, 2, &votes).unwrap(), truth)
}

/// P(Y = 1) = 0.4; TPR 0.9, 0.8, 0.7; FPR 0.2, 0.3, 0.1; 10,000 items.
pub fn fixture_a() -> (Votes, Vec<usize>) {
    by_pattern([(24, 3024), (56, 336), (96, 1296), (224, 144), (216, 756), (504, 84), (864, 324), (2016, 36)])
}

/// P(Y = 1) = 0.5; accuracies 0.9, 0.6, 0.6; 2,000 items.
pub fn fixture_b() -> (Votes, Vec<usize>) {
    by_pattern([(16, 324), (24, 216), (24, 216), (36, 144), (144, 36), (216, 24), (216, 24), (324, 16)])
}

/// P(Y = 1) = 0.5; accuracies 0.9, 0.8, 0.7 when voting; coverages 1, 0.5, 0.5; independent, 4,000 items.
pub fn fixture_c() -> (Votes, Vec<usize>) {
    let (mut votes, mut truth) = (Vec::new(), Vec::new());
    for y in [0i8, 1] {
        for first in [0i8, 1] {
            for second in [-1i8, 0, 1] {
                for third in [-1i8, 0, 1] {
                    let share = |vote: i8, coverage: u64, accuracy: u64| match vote {
                        -1 => 10 * (2 - coverage),
                        vote if vote == y => coverage * accuracy,
                        _ => coverage * (10 - accuracy),
                    };
                    // Parts of 10 * 20 * 20 = 4,000 for each truth; half of them.
                    let first_share = if first == y { 9 } else { 1 };
                    let count = first_share * share(second, 1, 8) * share(third, 1, 7) / 2;
                    votes.extend([first, second, third].repeat(count as usize));
                    truth.extend(std::iter::repeat_n(y as usize, count as usize));
                }
            }
        }
    }
    (Votes::from_dense(truth.len(), 3, 2, &votes).unwrap(), truth)
}

/// Six items, three workers: 110, 111, 001, 010, 000, 101.
pub fn fixture_d() -> Votes {
    Votes::from_dense(6, 3, 2, &[1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1]).unwrap()
}

/// Asserts that two lists agree to a tolerance.
#[track_caller]
pub fn close(found: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(found.len(), want.len());
    for (index, (found, want)) in found.iter().zip(want).enumerate() {
        assert!((found - want).abs() <= tolerance, "place {index}: {found}, want {want}");
    }
}

pub fn accuracy(labels: &[usize], truth: &[usize]) -> f64 {
    assert_eq!(labels.len(), truth.len());
    labels.iter().zip(truth).filter(|(a, b)| a == b).count() as f64 / truth.len() as f64
}
