//! What acceptance is worth.

use serde::{Deserialize, Serialize};

/// Tokens a round when each of `drafts` chained drafts is accepted with probability `acceptance`,
/// independently: `(1 - a^(g+1)) / (1 - a)`. NaN for an acceptance outside 0 to 1.
pub fn expected_tokens(acceptance: f64, drafts: usize) -> f64 {
    if !(0.0..=1.0).contains(&acceptance) {
        return f64::NAN;
    }
    if acceptance == 1.0 {
        return drafts as f64 + 1.0;
    }
    // 1 - a^n without the cancellation near a = 1.
    -((drafts as f64 + 1.0) * acceptance.ln()).exp_m1() / (1.0 - acceptance)
}

/// Speed-up over plain decoding when a round of `drafts` costs `verify` target steps of one row (the
/// width-cost curve's value) and each draft `draft` of one: tokens a round over its cost.
pub fn speed_up(acceptance: f64, drafts: usize, draft: f64, verify: f64) -> f64 {
    expected_tokens(acceptance, drafts) / (verify + drafts as f64 * draft)
}

/// The number of drafts from 0 to `most` with the largest speed-up (ties: fewer), and that speed-up, when a step
/// of `w` rows costs `verify(w)` steps of one row. 0 drafts is plain decoding: the speed-up is never below 1.
///
/// ```
/// use pilotfish_evaluation::{WidthModel, best_drafts};
/// // Steps that cost the same up to 6 rows, then grow.
/// let steps = WidthModel { read: 20.0, row: 3.3 };
/// assert_eq!(best_drafts(0.8, 0.0, |rows| steps.relative(rows), 16).0, 5);
/// ```
pub fn best_drafts(acceptance: f64, draft: f64, verify: impl Fn(usize) -> f64, most: usize) -> (usize, f64) {
    (1..=most).fold((0, 1.0), |best, drafts| {
        let gain = speed_up(acceptance, drafts, draft, verify(drafts + 1));
        if gain > best.1 { (drafts, gain) } else { best }
    })
}

/// A made-up width-cost curve: a step reads all weights once, which takes as long for one row as for many, and
/// computes its rows meanwhile. It takes as long as the slower of the two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WidthModel {
    /// Time to read the weights.
    pub read: f64,
    /// Time to compute one row, in the same unit.
    pub row: f64,
}

impl WidthModel {
    /// Time of a step of `rows` rows.
    pub fn time(&self, rows: usize) -> f64 {
        self.read.max(self.row * rows as f64)
    }

    /// The same in steps of one row.
    pub fn relative(&self, rows: usize) -> f64 {
        self.time(rows) / self.time(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_tables() {
        let table = [
            (0.5, [1.5, 1.75, 1.875, 1.9375, 1.9688, 1.9961]),
            (0.7, [1.7, 2.19, 2.533, 2.7731, 2.9412, 3.1988]),
            (0.8, [1.8, 2.44, 2.952, 3.3616, 3.6893, 4.3289]),
            (0.9, [1.9, 2.71, 3.439, 4.0951, 4.6856, 6.1258]),
        ];
        for (a, row) in table {
            for (g, want) in [1, 2, 3, 4, 5, 8].into_iter().zip(row) {
                assert!((expected_tokens(a, g) - want).abs() < 6e-5, "a = {a}, g = {g}");
            }
        }
        for (a, c, g, want) in
            [(0.8, 0.05, 8, 3.0921), (0.8, 0.2, 4, 1.8676), (0.8, 0.4, 2, 1.3556), (0.6, 0.4, 4, 0.8868)]
        {
            assert!((speed_up(a, g, c, 1.0) - want).abs() < 6e-5, "a = {a}, c = {c}");
        }
        for (a, c, g, want) in [
            (0.8, 0.05, 8, 3.0921),
            (0.8, 0.2, 4, 1.8676),
            (0.8, 0.4, 2, 1.3556),
            (0.6, 0.4, 1, 1.1429),
            (0.9, 0.05, 13, 4.6741),
        ] {
            let (best, gain) = best_drafts(a, c, |_| 1.0, 40);
            assert!(best == g && (gain - want).abs() < 6e-5, "a = {a}, c = {c}: {best}, {gain}");
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(
            (expected_tokens(1.0, 4), expected_tokens(0.0, 4), expected_tokens(0.5, 0)),
            (5.0, 1.0, 1.0)
        );
        // The sum 1 + a + ... + a^4 by hand, where 1 - a^5 would have lost its digits.
        assert!((expected_tokens(1.0 - 1e-15, 4) - 5.0).abs() < 1e-12);
        assert!((expected_tokens(0.999, usize::MAX) - 1000.0).abs() < 1e-6);
        assert!([-0.1, 1.1, f64::NAN].iter().all(|a| expected_tokens(*a, 3).is_nan()));
        // An improvement is possible exactly when acceptance exceeds the draft's cost.
        assert_eq!(best_drafts(0.3, 0.3, |_| 1.0, 20), (0, 1.0));
        assert!(best_drafts(0.31, 0.3, |_| 1.0, 20).1 > 1.0);
        assert_eq!(best_drafts(f64::NAN, 0.3, |_| 1.0, 20), (0, 1.0));
    }

    #[test]
    fn a_wide_step_costs_what_its_rows_cost() {
        let steps = WidthModel { read: 20.0, row: 2.5 };
        assert_eq!([1, 8, 9, 16].map(|rows| steps.time(rows)), [20.0, 20.0, 22.5, 40.0]);
        assert_eq!(steps.relative(16), 2.0);
        // Free drafts, all accepted: every row still free is worth having, and no more is lost beyond.
        assert_eq!(best_drafts(1.0, 0.0, |rows| steps.relative(rows), 30), (7, 8.0));
    }
}
