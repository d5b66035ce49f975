use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use pilotfish_decoding::Choose;
use pilotfish_model::Token;
use pilotfish_model::sampling::Distribution;

/// A law over outcomes: each with its probability.
pub type Law<T> = BTreeMap<T, f64>;

/// A source of decisions that is explored instead of drawn from: every branch of every decision is taken once,
/// with its exact weight. Handles share one exploration, so that a drafter and a verifier can both decide by it.
///
/// ```
/// use pilotfish_conformance::Explorer;
/// use pilotfish_decoding::Choose;
/// use pilotfish_model::sampling::Distribution;
/// let coin = Distribution::from_weights(vec![1.0, 3.0])?;
/// // Two throws; the second is only made after a 1.
/// let law = Explorer::explore(|dice| match dice.choose(&coin) {
///     0 => "0".to_owned(),
///     _ => format!("1{}", dice.choose(&coin)),
/// });
/// assert_eq!(law["0"], 0.25);
/// assert_eq!((law["10"], law["11"]), (0.1875, 0.5625));
/// # Ok::<(), pilotfish_model::ModelError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Explorer(Arc<Mutex<Branch>>);

#[derive(Debug, Default)]
struct Branch {
    /// For each decision of this branch: what it can be, with probabilities, and which of them is taken.
    script: Vec<(Vec<(Token, f64)>, usize)>,
    /// Decisions made so far.
    made: usize,
    weight: f64,
}

impl Explorer {
    /// The law of what `run` returns over all branches of the decisions that it takes from the handle.
    /// Branches of probability 0 are not entered.
    pub fn explore<T: Ord>(mut run: impl FnMut(&mut Explorer) -> T) -> Law<T> {
        Self::try_explore(|explorer| Ok::<_, std::convert::Infallible>(run(explorer)))
            .unwrap_or_else(|never| match never {})
    }

    /// The same for a run that may fail; the first failure ends it.
    ///
    /// # Errors
    /// What `run` returned.
    pub fn try_explore<T: Ord, E>(mut run: impl FnMut(&mut Explorer) -> Result<T, E>) -> Result<Law<T>, E> {
        let mut law = Law::new();
        let mut explorer = Self::default();
        loop {
            explorer.with(|branch| (branch.made, branch.weight) = (0, 1.0));
            let outcome = run(&mut explorer)?;
            let weight = explorer.with(|branch| {
                branch.script.truncate(branch.made);
                branch.weight
            });
            *law.entry(outcome).or_insert(0.0) += weight;
            if !explorer.with(Branch::advance) {
                return Ok(law);
            }
        }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Branch) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Branch {
    /// Moves to the next branch: the last decision that has another outcome left takes it.
    fn advance(&mut self) -> bool {
        while let Some((options, taken)) = self.script.last_mut() {
            *taken += 1;
            if *taken < options.len() {
                return true;
            }
            self.script.pop();
        }
        false
    }

    fn decide(&mut self, options: impl FnOnce() -> Vec<(Token, f64)>) -> Token {
        if self.made == self.script.len() {
            self.script.push((options(), 0));
        }
        let (options, taken) = &self.script[self.made];
        self.made += 1;
        // A decision without options cannot be made; its branch weighs nothing.
        let (token, prob) = options.get(*taken).copied().unwrap_or((0, 0.0));
        self.weight *= prob;
        token
    }
}

impl Choose for Explorer {
    fn choose(&mut self, distribution: &Distribution) -> Token {
        let possible = || {
            let probs = distribution.probs().iter().enumerate();
            probs.filter(|&(_, &prob)| prob > 0.0).map(|(id, &prob)| (id as Token, prob)).collect()
        };
        self.with(|branch| branch.decide(possible))
    }

    fn accept(&mut self, probability: f64) -> bool {
        let sides = || {
            let yes = if probability > 0.0 { probability.min(1.0) } else { 0.0 };
            [(1, yes), (0, 1.0 - yes)].into_iter().filter(|&(_, prob)| prob > 0.0).collect()
        };
        self.with(|branch| branch.decide(sides)) == 1
    }
}

/// The largest difference between two laws, over all outcomes of either.
pub fn distance<T: Ord>(a: &Law<T>, b: &Law<T>) -> f64 {
    let prob = |law: &Law<T>, outcome: &T| law.get(outcome).copied().unwrap_or(0.0);
    a.keys().chain(b.keys()).map(|outcome| (prob(a, outcome) - prob(b, outcome)).abs()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_nothing_impossible_is_entered() {
        let die = Distribution::from_weights(vec![1.0, 0.0, 2.0]).expect("valid");
        let law = Explorer::explore(|dice| {
            let mut other = dice.clone();
            let a = dice.choose(&die);
            assert_ne!(a, 1);
            // A handle continues the same branch.
            let b = other.accept(if a == 0 { 0.3 } else { 1.0 });
            (a, b, dice.accept(f64::NAN), dice.accept(-1.0))
        });
        let total: f64 = law.values().sum();
        assert!((total - 1.0).abs() < 1e-15);
        let third = 1.0 / 3.0;
        let want = Law::from([
            ((0, true, false, false), third * 0.3),
            ((0, false, false, false), third * 0.7),
            ((2, true, false, false), 2.0 * third),
        ]);
        assert!(distance(&law, &want) < 1e-15, "{law:?}");
        assert_eq!(distance(&Law::from([(1, 0.5)]), &Law::from([(2, 0.25)])), 0.5);
    }
}
