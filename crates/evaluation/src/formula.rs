//! What acceptance is worth.

/// Tokens a round when each of `drafts` chained drafts is accepted with probability `acceptance`,
/// independently: `(1 - a^(g+1)) / (1 - a)`.
pub fn expected_tokens(acceptance: f64, drafts: usize) -> f64 {
    if acceptance == 1.0 {
        return drafts as f64 + 1.0;
    }
    (1.0 - acceptance.powi(drafts as i32 + 1)) / (1.0 - acceptance)
}

/// Speed-up over plain decoding when a round of `drafts` costs `verify` target steps of one row (the
/// width-cost curve's value) and each draft `draft` of one: tokens a round over its cost.
pub fn speed_up(acceptance: f64, drafts: usize, draft: f64, verify: f64) -> f64 {
    expected_tokens(acceptance, drafts) / (verify + drafts as f64 * draft)
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
        assert_eq!(expected_tokens(1.0, 4), 5.0);
    }
}
