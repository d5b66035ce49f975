//! The sparsing laws fitted to activation ratios over training.
//!
//! `theta = (ln alpha, b, ln c, A0)` for ReLU, damped least squares from several starts: solve
//! `(J^T J + mu diag(J^T J)) d = -J^T r`, take the step if the sum of squares falls (mu / 5), else mu * 4 (Levenberg and
//! Marquardt, as the paper names). For SiLU, with `alpha` fixed, the law is linear in `c` and `A0`: closed-form least squares
//! inside a golden-section search over `ln alpha` (argmin).

use argmin::core::{CostFunction, Executor};
use argmin::solver::goldensectionsearch::GoldenSectionSearch;
use faer::prelude::Solve;
use faer::{Mat, Side};
use serde::{Deserialize, Serialize};

use crate::{Result, SparsityError};

/// Which law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Law {
    /// `exp(-c D^alpha + b) + A0`
    Relu,
    /// `-c D^-alpha + A0`
    Silu,
}

/// A fitted law; `D` in billions of tokens, ratios as fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Which.
    pub law: Law,
    /// Exponent.
    pub alpha: f64,
    /// Offset in the exponent; 0 for SiLU.
    pub b: f64,
    /// Factor.
    pub c: f64,
    /// Limit.
    pub a0: f64,
    /// Sum of squared errors of the fit.
    pub squares: f64,
}

impl Curve {
    /// A law with given coefficients.
    pub fn new(law: Law, [alpha, b, c, a0]: [f64; 4]) -> Self {
        Self { law, alpha, b, c, a0, squares: 0.0 }
    }

    /// The activation ratio after `d` billion tokens.
    pub fn at(&self, d: f64) -> f64 {
        match self.law {
            Law::Relu => (-self.c * d.powf(self.alpha) + self.b).exp() + self.a0,
            Law::Silu => -self.c * d.powf(-self.alpha) + self.a0,
        }
    }

    /// Akaike's criterion over so many points.
    pub fn aic(&self, points: usize) -> f64 {
        let parameters = if self.law == Law::Relu { 4.0 } else { 3.0 };
        let n = points.max(1) as f64;
        n * (self.squares / n).max(f64::MIN_POSITIVE).ln() + 2.0 * parameters
    }
}

/// Fits a law to points (billions of tokens, activation ratio).
///
/// # Errors
/// Fewer points than coefficients, points that are not finite or not above 0; no start that converges.
pub fn fit(law: Law, points: &[(f64, f64)]) -> Result<Curve> {
    let name = if law == Law::Relu { "ReLU" } else { "SiLU" };
    let refuse = |why: &str| SparsityError::Fit { law: name, why: why.into() };
    if points.len() < if law == Law::Relu { 4 } else { 3 } {
        return Err(refuse("fewer points than coefficients"));
    }
    if points.iter().any(|(d, a)| !(*d > 0.0 && *a > 0.0 && d.is_finite() && a.is_finite())) {
        return Err(refuse("a point that is not above 0"));
    }
    match law {
        Law::Relu => relu(points).ok_or_else(|| refuse("no start converged")),
        Law::Silu => silu(points),
    }
}

fn squares(theta: [f64; 4], points: &[(f64, f64)]) -> f64 {
    let curve = Curve::new(Law::Relu, [theta[0].exp(), theta[1], theta[2].exp(), theta[3]]);
    points.iter().map(|&(d, a)| (curve.at(d) - a).powi(2)).sum()
}

/// Levenberg-Marquardt from several starts.
fn relu(points: &[(f64, f64)]) -> Option<Curve> {
    let least = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let mut best: Option<([f64; 4], f64)> = None;
    for alpha in [0.1f64, 0.5, 1.0, 1.5] {
        for share in [0.8, 0.95] {
            let a0 = share * least;
            // With alpha and A0 fixed, ln(A - A0) is linear in D^alpha.
            let line: Vec<(f64, f64)> = points.iter().map(|&(d, a)| (d.powf(alpha), (a - a0).ln())).collect();
            let (slope, offset) = straight(&line)?;
            let start = [alpha.ln(), offset, (-slope).max(1e-9).ln(), a0];
            let (theta, sse) = descend(start, points);
            if sse.is_finite() && best.is_none_or(|(_, least)| sse < least) {
                best = Some((theta, sse));
            }
        }
    }
    best.map(|(theta, squares)| Curve {
        squares,
        ..Curve::new(Law::Relu, [theta[0].exp(), theta[1], theta[2].exp(), theta[3]])
    })
}

fn descend(mut theta: [f64; 4], points: &[(f64, f64)]) -> ([f64; 4], f64) {
    let mut now = squares(theta, points);
    let mut mu = 1e-3;
    for _ in 0..500 {
        let (mut normal, mut gradient) = (Mat::<f64>::zeros(4, 4), Mat::<f64>::zeros(4, 1));
        for &(d, a) in points {
            let [alpha, c] = [theta[0].exp(), theta[2].exp()];
            let u = c * d.powf(alpha);
            let e = (theta[1] - u).exp();
            let row = [-e * u * d.ln() * alpha, e, -e * u, 1.0];
            let residual = e + theta[3] - a;
            for i in 0..4 {
                gradient[(i, 0)] -= row[i] * residual;
                for j in 0..4 {
                    normal[(i, j)] += row[i] * row[j];
                }
            }
        }
        let mut better = false;
        while mu < 1e16 {
            let damped = Mat::from_fn(4, 4, |i, j| {
                normal[(i, j)] + if i == j { mu * normal[(i, i)] + 1e-300 } else { 0.0 }
            });
            if let Ok(factor) = damped.llt(Side::Lower) {
                let step = factor.solve(&gradient);
                let next = std::array::from_fn(|i| theta[i] + step[(i, 0)]);
                let found = squares(next, points);
                if found < now {
                    (theta, now, better) = (next, found, true);
                    mu /= 5.0;
                    break;
                }
            }
            mu *= 4.0;
        }
        if !better {
            break;
        }
    }
    (theta, now)
}

/// Slope and offset of a least-squares line.
fn straight(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / n, sum.1 + p.1 / n));
    let (top, bottom) = points
        .iter()
        .fold((0.0, 0.0), |sum, p| (sum.0 + (p.0 - x) * (p.1 - y), sum.1 + (p.0 - x) * (p.0 - x)));
    (bottom > 0.0).then(|| (top / bottom, y - x * top / bottom))
}

struct SiluProblem<'a>(&'a [(f64, f64)]);

impl SiluProblem<'_> {
    fn curve(&self, alpha: f64) -> Option<Curve> {
        let line: Vec<(f64, f64)> = self.0.iter().map(|&(d, a)| (d.powf(-alpha), a)).collect();
        let (slope, a0) = straight(&line)?;
        let mut curve = Curve::new(Law::Silu, [alpha, 0.0, -slope, a0]);
        curve.squares = self.0.iter().map(|&(d, a)| (curve.at(d) - a).powi(2)).sum();
        Some(curve)
    }
}

impl CostFunction for SiluProblem<'_> {
    type Param = f64;
    type Output = f64;

    fn cost(&self, ln_alpha: &f64) -> Result<f64, argmin::core::Error> {
        Ok(self.curve(ln_alpha.exp()).map_or(f64::INFINITY, |curve| curve.squares))
    }
}

fn silu(points: &[(f64, f64)]) -> Result<Curve> {
    let refuse = |why: String| SparsityError::Fit { law: "SiLU", why };
    let (low, high) = (0.01f64.ln(), 10f64.ln());
    let problem = SiluProblem(points);
    // A coarse look first: the search wants one valley.
    let steps = 60;
    let value = |at: usize| low + (high - low) * at as f64 / steps as f64;
    let cost = |at: usize| problem.curve(value(at).exp()).map_or(f64::INFINITY, |curve| curve.squares);
    let best = (0..=steps).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
    let (from, to) = (value(best.saturating_sub(1)), value((best + 1).min(steps)));
    let solver = GoldenSectionSearch::new(from, to)
        .and_then(|solver| solver.with_tolerance(1e-10))
        .map_err(|error| refuse(error.to_string()))?;
    let done = Executor::new(SiluProblem(points), solver)
        .configure(|state| state.param((from + to) / 2.0).max_iters(200))
        .run()
        .map_err(|error| refuse(error.to_string()))?;
    let alpha = done.state.best_param.unwrap_or(value(best)).exp();
    problem.curve(alpha).ok_or_else(|| refuse("all points at one D".into()))
}
