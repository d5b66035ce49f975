//! L-BFGS, from argmin.

use std::sync::Mutex;

use argmin::core::{CostFunction, Error, Executor, Gradient};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;

/// A point, its value and gradient.
pub(crate) type Evaluated = (f64, Vec<f64>);

/// Where an optimiser stopped.
pub(crate) struct Minimum {
    pub(crate) at: Vec<f64>,
    /// Best value after every evaluation that improved it.
    pub(crate) trace: Vec<f64>,
    /// Largest entry of the gradient, absolutely.
    pub(crate) slope: f64,
    pub(crate) iterations: usize,
}

struct Problem<F> {
    evaluate: F,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    last: Option<(Vec<f64>, Evaluated)>,
    best: Option<(f64, Vec<f64>, f64)>,
    trace: Vec<f64>,
    /// Evaluations since the last one that improved.
    stale: usize,
}

/// Evaluations without improvement after which a line search is stopped: argmin's own has no limit.
const STALE: usize = 60;

impl<F: Fn(&[f64]) -> Evaluated> Problem<F> {
    fn check(&self) -> Result<(), Error> {
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.stale > STALE { Err(Error::msg("nothing improves")) } else { Ok(()) }
    }

    /// Value and gradient, remembering the last point: argmin asks for them one after the other.
    fn at(&self, point: &[f64]) -> Evaluated {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((last, found)) = &seen.last
            && last == point
        {
            return found.clone();
        }
        let found = (self.evaluate)(point);
        seen.stale += 1;
        if found.0.is_finite() && seen.best.as_ref().is_none_or(|(best, ..)| found.0 < *best) {
            let slope = found.1.iter().fold(0.0f64, |most, value| most.max(value.abs()));
            seen.best = Some((found.0, point.to_vec(), slope));
            seen.trace.push(found.0);
            seen.stale = 0;
        }
        seen.last = Some((point.to_vec(), found.clone()));
        found
    }
}

impl<F: Fn(&[f64]) -> Evaluated> CostFunction for &Problem<F> {
    type Param = Vec<f64>;
    type Output = f64;
    fn cost(&self, point: &Vec<f64>) -> Result<f64, Error> {
        self.check()?;
        Ok(self.at(point).0)
    }
}

impl<F: Fn(&[f64]) -> Evaluated> Gradient for &Problem<F> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;
    fn gradient(&self, point: &Vec<f64>) -> Result<Vec<f64>, Error> {
        self.check()?;
        Ok(self.at(point).1)
    }
}

/// Minimises a smooth function from `start`; `None` if it has no finite value there.
pub(crate) fn minimise(
    evaluate: impl Fn(&[f64]) -> Evaluated,
    start: Vec<f64>,
    iterations: usize,
    tolerance: f64,
) -> Option<Minimum> {
    let problem = Problem { evaluate, seen: Mutex::default() };
    problem.at(&start);
    let mut from = start;
    let mut steps = 0;
    // A line search that finds nothing ends argmin's run; the memory may be stale, so it starts again from there.
    for _ in 0..20 {
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10)
            .with_tolerance_grad(tolerance)
            .and_then(|solver| solver.with_tolerance_cost(0.0))
            .ok()?;
        let left = iterations.saturating_sub(steps) as u64;
        let run = Executor::new(&problem, solver)
            .configure(|state| state.param(from.clone()).max_iters(left))
            .run();
        steps += run.map_or(1, |run| run.state.iter as usize);
        let mut seen = problem.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.stale = 0;
        let (_, at, slope) = seen.best.as_ref()?;
        if *slope <= tolerance || steps >= iterations || *at == from {
            break;
        }
        from = at.clone();
    }
    let seen = problem.seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (_, at, slope) = seen.best?;
    Some(Minimum { at, trace: seen.trace, slope, iterations: steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rosenbrocks_valley() {
        let f = |p: &[f64]| {
            let (x, y) = (p[0], p[1]);
            let value = (1.0 - x).powi(2) + 100.0 * (y - x * x).powi(2);
            (value, vec![-2.0 * (1.0 - x) - 400.0 * x * (y - x * x), 200.0 * (y - x * x)])
        };
        let found = minimise(f, vec![-1.2, 1.0], 500, 1e-9).expect("finite");
        assert!((found.at[0] - 1.0).abs() < 1e-8 && (found.at[1] - 1.0).abs() < 1e-8, "{:?}", found.at);
        assert!(found.slope <= 1e-9 && found.iterations < 200);
        assert!(found.trace.windows(2).all(|pair| pair[1] < pair[0]));
        assert!(minimise(|_| (f64::NAN, vec![0.0]), vec![0.0], 10, 1e-9).is_none());
    }
}
