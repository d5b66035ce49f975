use pilotfish_model::ModelError;

use crate::Result;

/// What a target step of `w` rows costs, `t(w)`, in units of a step of one row: measured at some widths,
/// interpolated between them, continued with the last slope.
///
/// ```
/// use pilotfish_decoding::policy::WidthCurve;
/// let curve = WidthCurve::new(&[(1, 28.4), (4, 35.5), (8, 44.2)])?;
/// assert_eq!(curve.relative(1), 1.0);
/// assert!((curve.relative(6) - 39.85 / 28.4).abs() < 1e-12);
/// # Ok::<(), pilotfish_decoding::DecodingError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct WidthCurve {
    /// `(w, t(w) / t(1))`, ascending, not decreasing.
    points: Vec<(usize, f64)>,
}

impl WidthCurve {
    /// A curve from measurements `(rows, time)` in any unit, the first of one row. Where noise makes a wider step
    /// look cheaper than a narrower one, it is given the narrower one's cost.
    ///
    /// # Errors
    /// No measurement of one row at the front, widths that do not ascend, times that are not above 0 and finite.
    pub fn new(measured: &[(usize, f64)]) -> Result<Self> {
        let bad = |value, want| ModelError::BadParameter { name: "width-cost curve", value, want };
        let Some(&(1, one)) = measured.first() else {
            return Err(bad(0.0, "a measurement of one row at the front").into());
        };
        let mut points: Vec<(usize, f64)> = Vec::with_capacity(measured.len());
        for &(rows, time) in measured {
            if !(time > 0.0 && time.is_finite()) {
                return Err(bad(time, "times above 0 and finite").into());
            }
            let (last_rows, last) = points.last().copied().unwrap_or((0, 0.0));
            if rows <= last_rows {
                return Err(bad(rows as f64, "widths that ascend").into());
            }
            points.push((rows, (time / one).max(last)));
        }
        Ok(Self { points })
    }

    /// A step costs the same whatever its width: a large GPU, or the assumption of most papers.
    pub fn flat() -> Self {
        Self { points: vec![(1, 1.0)] }
    }

    /// `t(w) / t(1)`.
    pub fn relative(&self, rows: usize) -> f64 {
        let above = self.points.partition_point(|&(width, _)| width < rows);
        let line = |a: (usize, f64), b: (usize, f64)| {
            let slope = (b.1 - a.1) / (b.0 - a.0) as f64;
            a.1 + slope * (rows as f64 - a.0 as f64)
        };
        match (above, self.points.len()) {
            (0, _) | (_, 1) => self.points[0].1,
            (above, len) if above == len => line(self.points[len - 2], self.points[len - 1]),
            (above, _) => line(self.points[above - 1], self.points[above]),
        }
    }
}

/// A number of nodes, and what it promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Nodes to propose or verify.
    pub nodes: usize,
    /// Tokens a round, the extra token included.
    pub tokens: f64,
    /// Expected speed-up over plain decoding.
    pub speed_up: f64,
}

/// The number of nodes with the largest expected speed-up `S(n) = tau(n) / (c(1 + n) + d(n))`, where
/// `tau(n)` = 1 + the sum of the first n of `gains`, entry j being the probability that node `j` is kept, `c` the
/// width curve and `d(n)` the cost of drafting `n` nodes in units of a one-row step. `n = 0` costs no drafting
/// and has a speed-up of 1. Of equal ones the smallest.
///
/// With independent acceptance `alpha` along a chain, `c = 1` and `d(n) = n c_d` this is the formula of Leviathan
/// et al. 2023, theorem 3.8: `(1 - alpha^(n+1)) / ((1 - alpha) (n c_d + 1))`; with the gains of a tree's nodes in
/// descending order, the hardware-aware size of PPD (arXiv 2405.18628, section 4).
pub fn best_prefix(
    gains: impl IntoIterator<Item = f64>,
    curve: &WidthCurve,
    draft: impl Fn(usize) -> f64,
) -> Choice {
    let mut best = Choice { nodes: 0, tokens: 1.0, speed_up: 1.0 };
    let mut tokens = 1.0;
    for (index, gain) in gains.into_iter().enumerate() {
        let nodes = index + 1;
        tokens += gain;
        let speed_up = tokens / (curve.relative(1 + nodes) + draft(nodes));
        if speed_up > best.speed_up {
            best = Choice { nodes, tokens, speed_up };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(alpha: f64) -> impl Iterator<Item = f64> {
        (1..40).map(move |place| alpha.powi(place))
    }

    #[test]
    fn best_lengths_of_the_note() {
        for (alpha, cost, length, speed_up) in [
            (0.8, 0.05, 8, 3.0921),
            (0.8, 0.2, 4, 1.8676),
            (0.8, 0.4, 2, 1.3556),
            (0.6, 0.4, 1, 1.1429),
            (0.9, 0.05, 13, 4.6741),
        ] {
            let best = best_prefix(chain(alpha), &WidthCurve::flat(), |nodes| nodes as f64 * cost);
            assert_eq!(best.nodes, length, "alpha {alpha}, cost {cost}");
            assert!((best.speed_up - speed_up).abs() < 1e-4, "{best:?}");
        }
        // An improvement is possible only where alpha exceeds the cost.
        let best = best_prefix(chain(0.4), &WidthCurve::flat(), |nodes| nodes as f64 * 0.4);
        assert_eq!((best.nodes, best.speed_up), (0, 1.0));
        // Four tokens at (.6, .4) are a slow-down.
        let tokens = 1.0 + chain(0.6).take(4).sum::<f64>();
        assert!((tokens / (4.0 * 0.4 + 1.0) - 0.8868).abs() < 1e-4);
    }

    #[test]
    fn expected_tokens_of_the_note() {
        for (alpha, want) in [
            (0.5, [1.5, 1.75, 1.875, 1.9375, 1.9688, 1.9961]),
            (0.7, [1.7, 2.19, 2.533, 2.7731, 2.9412, 3.1988]),
            (0.8, [1.8, 2.44, 2.952, 3.3616, 3.6893, 4.3289]),
            (0.9, [1.9, 2.71, 3.439, 4.0951, 4.6856, 6.1258]),
        ] {
            for (length, want) in [1, 2, 3, 4, 5, 8].into_iter().zip(want) {
                let tokens = 1.0 + chain(alpha).take(length).sum::<f64>();
                assert!((tokens - want).abs() < 6e-5, "{alpha}, {length}: {tokens}");
            }
        }
    }

    #[test]
    fn widths_cost_what_was_measured() {
        let curve = WidthCurve::new(&[(1, 20.0), (2, 19.0), (4, 24.0), (8, 32.0)]).expect("valid");
        for (rows, want) in [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.1), (4, 1.2), (6, 1.4), (8, 1.6), (12, 2.0)]
        {
            assert!((curve.relative(rows) - want).abs() < 1e-12, "{rows}: {}", curve.relative(rows));
        }
        // Wide steps that cost in proportion never pay; free rows always do.
        let steep = WidthCurve::new(&[(1, 1.0), (2, 2.0)]).expect("valid");
        assert_eq!(best_prefix(chain(0.9), &steep, |_| 0.0).nodes, 0);
        assert_eq!(best_prefix(chain(0.9), &WidthCurve::flat(), |_| 0.0).nodes, 39);
        for bad in [&[][..], &[(2, 1.0)], &[(1, 0.0)], &[(1, f64::NAN)], &[(1, 1.0), (1, 2.0)]] {
            assert!(WidthCurve::new(bad).is_err());
        }
    }
}
