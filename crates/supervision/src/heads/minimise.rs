//! Minimising smooth functions with argmin's L-BFGS.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use argmin::core::{CostFunction, Error, Executor, Gradient, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;

/// What a minimisation came to.
#[derive(Clone, Debug)]
pub(crate) struct Minimum {
    pub(crate) point: Vec<f64>,
    /// Whether the solver stopped by itself rather than at the limit of iterations.
    pub(crate) converged: bool,
}

struct Problem<'a, F> {
    /// Value and gradient.
    function: &'a F,
    /// The best point seen: a line search that fails, as it does near a minimum where values no longer
    /// differ, loses the solver's own.
    best: &'a Mutex<(f64, Vec<f64>)>,
    /// Evaluations left: a line search may go on for ever where rounding hides the slope.
    left: &'a AtomicU64,
}

impl<F: Fn(&[f64]) -> (f64, Vec<f64>)> CostFunction for Problem<'_, F> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, point: &Vec<f64>) -> Result<f64, Error> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.left.store(0, Ordering::Relaxed);
            return Err(Error::msg("out of evaluations"));
        }
        let value = (self.function)(point).0;
        let mut best = self.best.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if value < best.0 {
            *best = (value, point.clone());
        }
        Ok(value)
    }
}

impl<F: Fn(&[f64]) -> (f64, Vec<f64>)> Gradient for Problem<'_, F> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, point: &Vec<f64>) -> Result<Vec<f64>, Error> {
        Ok((self.function)(point).1)
    }
}

/// Evaluations an iteration at most, on average.
const EVALUATIONS: u64 = 20;

/// Minimises a function given with its gradient.
pub(crate) fn minimise<F>(function: F, start: Vec<f64>, iterations: u64, tolerance: f64) -> Minimum
where
    F: Fn(&[f64]) -> (f64, Vec<f64>),
{
    let first = function(&start).0;
    let best = Mutex::new((if first.is_nan() { f64::INFINITY } else { first }, start.clone()));
    let left = AtomicU64::new(EVALUATIONS * iterations.saturating_add(10));
    let problem = Problem { function: &function, best: &best, left: &left };
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10)
        .with_tolerance_grad(tolerance)
        .and_then(|solver| solver.with_tolerance_cost(f64::EPSILON));
    let converged = solver
        .and_then(|solver| {
            Executor::new(problem, solver).configure(|state| state.param(start).max_iters(iterations)).run()
        })
        // A line search that fails finds nothing better along its direction: that is a minimum to rounding.
        .map_or_else(|_| left.load(Ordering::Relaxed) > 0, |result| result.state.get_iter() < iterations);
    let (_, point) = best.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Minimum { point, converged }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rosenbrock() {
        let f = |p: &[f64]| {
            let (x, y) = (p[0], p[1]);
            let value = (1.0 - x).powi(2) + 100.0 * (y - x * x).powi(2);
            (value, vec![-2.0 * (1.0 - x) - 400.0 * x * (y - x * x), 200.0 * (y - x * x)])
        };
        let minimum = minimise(f, vec![-1.2, 1.0], 200, 1e-10);
        assert!(minimum.converged && f(&minimum.point).0 < 1e-16, "{minimum:?}");
        assert!((minimum.point[0] - 1.0).abs() < 1e-7 && (minimum.point[1] - 1.0).abs() < 1e-7);
    }

    #[test]
    fn a_start_at_the_minimum_stays_there() {
        let minimum = minimise(|p| (p[0] * p[0], vec![2.0 * p[0]]), vec![0.0], 10, 1e-8);
        assert_eq!(minimum.point, [0.0]);
    }
}
