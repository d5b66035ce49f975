//! Laws of how success grows with the number of responses K, fitted with a Huber loss by L-BFGS.

use serde::{Deserialize, Serialize};

use crate::heads::{Minimum, minimise, sigmoid};
use crate::{Result, SupervisionError};

/// Widths of the Huber loss that are tried; the fit with the least squared error is kept.
const WIDTHS: [f64; 5] = [0.01, 0.05, 0.1, 0.25, 0.5];

/// `Pass@K = exp(-zeta K^-alpha)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoverageLaw {
    /// `-ln Pass@1`.
    pub zeta: f64,
    /// Exponent.
    pub alpha: f64,
    /// Root of the mean squared error.
    pub error: f64,
}

/// `Selection@1 = floor + (ceiling - floor) exp(-zeta K^-alpha) (1 - (1 - pi)^(K^gamma))`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectionLaw {
    /// Lower asymptote.
    pub floor: f64,
    /// Upper asymptote.
    pub ceiling: f64,
    /// As in [`CoverageLaw`].
    pub zeta: f64,
    /// As in [`CoverageLaw`].
    pub alpha: f64,
    /// How likely a right response is found among the responses.
    pub pi: f64,
    /// How finding it grows with K.
    pub gamma: f64,
    /// Root of the mean squared error.
    pub error: f64,
}

impl CoverageLaw {
    /// Fits points `(K, Pass@K)`.
    ///
    /// ```
    /// use pilotfish_supervision::weaver::CoverageLaw;
    /// let points: Vec<_> = [1, 2, 5, 10, 50].map(|k| (k as f64, (-0.9 * (k as f64).powf(-0.6)).exp())).to_vec();
    /// let law = CoverageLaw::fit(&points)?;
    /// assert!((law.zeta - 0.9).abs() < 1e-4 && (law.alpha - 0.6).abs() < 1e-4);
    /// # Ok::<(), pilotfish_supervision::SupervisionError>(())
    /// ```
    ///
    /// # Errors
    /// Fewer than two points; K below 1; shares outside `[0, 1]`.
    pub fn fit(points: &[(f64, f64)]) -> Result<Self> {
        check(points, 2)?;
        let law = |p: &[f64], k: f64| coverage(p[0].exp(), p[1].exp(), k);
        let first = points[0].1.clamp(1e-3, 1.0 - 1e-3);
        let starts = [0.3f64, 1.0].map(|alpha| vec![(-first.ln()).ln(), alpha.ln()]);
        let (best, error) = fit(points, law, &starts);
        Ok(Self { zeta: best[0].exp(), alpha: best[1].exp(), error })
    }

    /// The law at K.
    pub fn at(&self, k: f64) -> f64 {
        coverage(self.zeta, self.alpha, k)
    }
}

impl SelectionLaw {
    /// Fits points `(K, Selection@1)`. Six numbers are fitted, so parameters are loosely determined by few points
    /// even where the curve is not.
    ///
    /// # Errors
    /// As [`CoverageLaw::fit`].
    pub fn fit(points: &[(f64, f64)]) -> Result<Self> {
        check(points, 2)?;
        let read = |p: &[f64]| Self {
            floor: sigmoid(p[0]),
            ceiling: sigmoid(p[1]),
            zeta: p[2].exp(),
            alpha: p[3].exp(),
            pi: sigmoid(p[4]),
            gamma: p[5].exp(),
            error: 0.0,
        };
        let first = points[0].1.clamp(0.01, 0.99);
        let last = points[points.len() - 1].1.clamp(0.01, 0.99);
        let logit = |x: f64| (x / (1.0 - x)).ln();
        let mut starts = Vec::new();
        for floor in [0.5 * first, 0.95 * first] {
            for pi in [0.2, 0.7] {
                let ceiling = (last + 0.02).min(0.99);
                starts.push(vec![logit(floor), logit(ceiling), -1.0, -0.7, logit(pi), -0.7]);
            }
        }
        let (best, error) = fit(points, |p, k| read(p).at(k), &starts);
        Ok(Self { error, ..read(&best) })
    }

    /// The law at K.
    pub fn at(&self, k: f64) -> f64 {
        let found = 1.0 - (1.0 - self.pi).powf(k.powf(self.gamma));
        self.floor + (self.ceiling - self.floor) * coverage(self.zeta, self.alpha, k) * found
    }
}

fn coverage(zeta: f64, alpha: f64, k: f64) -> f64 {
    (-zeta * k.powf(-alpha)).exp()
}

fn check(points: &[(f64, f64)], least: usize) -> Result<()> {
    if points.len() < least {
        return Err(SupervisionError::Shape { what: "points", got: points.len(), want: least });
    }
    for &(k, share) in points {
        if !(k >= 1.0 && k.is_finite()) {
            return Err(SupervisionError::BadParameter {
                name: "K",
                value: k,
                want: "at least 1 and finite",
            });
        }
        if !(0.0..=1.0).contains(&share) {
            return Err(SupervisionError::BadParameter { name: "share", value: share, want: "from 0 to 1" });
        }
    }
    Ok(())
}

/// The best point over all starts and widths, and its root mean squared error.
fn fit(points: &[(f64, f64)], law: impl Fn(&[f64], f64) -> f64, starts: &[Vec<f64>]) -> (Vec<f64>, f64) {
    let residuals = |p: &[f64]| -> Vec<f64> { points.iter().map(|&(k, share)| law(p, k) - share).collect() };
    let mut best = (starts.first().cloned().unwrap_or_default(), f64::INFINITY);
    for width in WIDTHS {
        // Scaled, so that tolerances mean the same for any width; a pull towards 0 too weak to be seen in a fit
        // keeps what the points do not determine from running away.
        let value = |p: &[f64]| -> f64 {
            let huber = |r: f64| {
                let r = r.abs();
                if r <= width { 0.5 * r * r } else { width * (r - 0.5 * width) }
            };
            residuals(p).into_iter().map(huber).sum::<f64>() * 1e4
                + 1e-9 * p.iter().map(|x| x * x).sum::<f64>()
        };
        let with_gradient = |p: &[f64]| {
            let slope = |i: usize| {
                let mut q = p.to_vec();
                q[i] += 1e-6;
                let up = value(&q);
                q[i] -= 2e-6;
                (up - value(&q)) / 2e-6
            };
            (value(p), (0..p.len()).map(slope).collect())
        };
        for start in starts {
            let Minimum { point, .. } = minimise(with_gradient, start.clone(), 300, 1e-9);
            let squares: f64 = residuals(&point).iter().map(|r| r * r).sum();
            let error = (squares / points.len() as f64).sqrt();
            if error < best.1 {
                best = (point, error);
            }
        }
    }
    best
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KS: [f64; 7] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

    #[test]
    fn coverage_is_recovered() {
        let points = KS.map(|k| (k, coverage(0.7, 0.8, k)));
        let law = CoverageLaw::fit(&points).unwrap();
        assert!((law.zeta - 0.7).abs() < 1e-4 && (law.alpha - 0.8).abs() < 1e-4, "{law:?}");
        // An outlier moves it little.
        let mut spoilt = points;
        spoilt[2].1 -= 0.01;
        let law = CoverageLaw::fit(&spoilt).unwrap();
        assert!((law.at(1000.0) - coverage(0.7, 0.8, 1000.0)).abs() < 0.01);
    }

    #[test]
    fn a_selection_curve_is_recovered_and_continued() {
        let truth = SelectionLaw {
            floor: 0.45,
            ceiling: 0.93,
            zeta: 0.6,
            alpha: 0.9,
            pi: 0.3,
            gamma: 0.8,
            error: 0.0,
        };
        let points = KS.map(|k| (k, truth.at(k)));
        let law = SelectionLaw::fit(&points).unwrap();
        assert!(law.error < 2e-3, "{law:?}");
        assert!((law.at(400.0) - truth.at(400.0)).abs() < 0.01, "{law:?}");
    }

    #[test]
    fn bad_points_are_refused() {
        for points in [&[][..], &[(1.0, 0.5)], &[(0.5, 0.5), (2.0, 0.5)], &[(1.0, f64::NAN), (2.0, 0.5)]] {
            assert!(CoverageLaw::fit(points).is_err() && SelectionLaw::fit(points).is_err());
        }
        assert!(CoverageLaw::fit(&[(1.0, 0.0), (2.0, 1.0)]).unwrap().zeta.is_finite());
    }
}
