//! Best of n with a stopping rule: is it worth sampling another response?

use ndarray::{ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use super::Rates;
use crate::heads::sigmoid;
use crate::{Result, SupervisionError};

/// Points of the grid of success rates.
const GRID: usize = 41;
/// EM rounds at most.
const ROUNDS: usize = 500;

/// What is believed of a query's success rate, the chance that a response is right, before any response is seen:
/// probabilities on a grid.
///
/// Responses to one query share its difficulty, so their votes are dependent, which the label model leaves out of
/// account. Here a response is right with the query's own rate, which all its responses together tell about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difficulty {
    rates: Vec<f64>,
    weights: Vec<f64>,
    /// Log-likelihood of the data before each round of [`Difficulty::fit`].
    trace: Vec<f64>,
}

impl Difficulty {
    /// Success rates and their probabilities, which are normalised.
    ///
    /// # Errors
    /// No rates, lengths that differ, rates outside `[0, 1]`, weights that are negative or all 0.
    pub fn new(rates: Vec<f64>, weights: Vec<f64>) -> Result<Self> {
        if rates.is_empty() {
            return Err(SupervisionError::Empty { what: "success rates" });
        }
        if rates.len() != weights.len() {
            return Err(SupervisionError::Shape { what: "weights", got: weights.len(), want: rates.len() });
        }
        if let Some(&value) = rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
            return Err(SupervisionError::BadParameter { name: "rate", value, want: "from 0 to 1" });
        }
        let total: f64 = weights.iter().sum();
        if !(total > 0.0 && total.is_finite()) || weights.iter().any(|weight| !(*weight >= 0.0)) {
            let name = "weights";
            return Err(SupervisionError::BadParameter { name, value: total, want: "at least 0, not all 0" });
        }
        Ok(Self { rates, weights: weights.iter().map(|w| w / total).collect(), trace: Vec::new() })
    }

    /// Finds the most likely distribution of success rates on a grid of 41, by expectation maximisation over the
    /// evidence of each query's responses ([`Rates::evidence`]). No labels are needed.
    ///
    /// # Errors
    /// No queries; evidence that is not finite.
    pub fn fit(evidence: ArrayView2<'_, f64>) -> Result<Self> {
        if evidence.is_empty() {
            return Err(SupervisionError::Empty { what: "queries" });
        }
        if let Some(index) = evidence.iter().position(|e| !e.is_finite()) {
            return Err(SupervisionError::NotFinite { what: "evidence", index });
        }
        let rates: Vec<f64> = (0..GRID).map(|i| i as f64 / (GRID - 1) as f64).collect();
        let mut prior = Self::new(rates, vec![1.0; GRID])?;
        let likelihoods: Vec<Vec<f64>> =
            evidence.rows().into_iter().map(|row| prior.log_likelihoods(row)).collect();
        for _ in 0..ROUNDS {
            let mut next = vec![0.0; GRID];
            let mut objective = 0.0;
            for likelihood in &likelihoods {
                let (posterior, log) = normalise(&prior.weights, likelihood);
                objective += log;
                next.iter_mut().zip(posterior).for_each(|(sum, p)| *sum += p / likelihoods.len() as f64);
            }
            let done = prior.trace.last().is_some_and(|last| objective - last < 1e-9 * objective.abs());
            prior.trace.push(objective);
            if done {
                break;
            }
            prior.weights = next;
        }
        Ok(prior)
    }

    /// Probabilities of the rates, by rate.
    pub fn weights(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.rates.iter().copied().zip(self.weights.iter().copied())
    }

    /// Log-likelihood of the data before each round of the fit; it never falls.
    pub fn trace(&self) -> &[f64] {
        &self.trace
    }

    /// `ln prod_j (rate e^evidence_j + 1 - rate)` for every rate.
    fn log_likelihoods(&self, evidence: ArrayView1<'_, f64>) -> Vec<f64> {
        let one = |rate: &f64| {
            evidence
                .iter()
                .map(|&e| {
                    // Relative to e^max(e, 0), which all rates share.
                    let (right, wrong) = if e > 0.0 { (1.0, (-e).exp()) } else { (e.exp(), 1.0) };
                    (rate * right + (1.0 - rate) * wrong).ln()
                })
                .sum()
        };
        self.rates.iter().map(one).collect()
    }
}

/// Posterior weights and the log of their sum before normalisation.
fn normalise(weights: &[f64], log_likelihoods: &[f64]) -> (Vec<f64>, f64) {
    let logs: Vec<f64> = weights.iter().zip(log_likelihoods).map(|(w, l)| w.ln() + l).collect();
    let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|log| (log - max).exp()).sum();
    (logs.iter().map(|log| (log - max).exp() / sum).collect(), max + sum.ln())
}

/// When to stop sampling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoppingConfig {
    /// Stop when the best response is right at least this surely, at the lower end of its credible interval.
    pub target: f64,
    /// Probability outside the credible interval, half on each side.
    pub level: f64,
    /// Stop when another response is expected to raise the best response's probability by less.
    pub cost: f64,
    /// Responses at least.
    pub least: usize,
    /// Responses at most.
    pub most: usize,
}

impl Default for StoppingConfig {
    /// Ours: 95 % at the lower end of an 80 % interval, or a gain below half a percentage point.
    fn default() -> Self {
        Self { target: 0.95, level: 0.2, cost: 0.005, least: 2, most: 20 }
    }
}

impl StoppingConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, value, want| Err(SupervisionError::BadParameter { name, value, want });
        if !(self.target > 0.0 && self.target <= 1.0) {
            return refuse("target", self.target, "above 0 and at most 1");
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            return refuse("level", self.level, "above 0 and below 1");
        }
        if !(self.cost >= 0.0) {
            return refuse("cost", self.cost, "at least 0");
        }
        if self.least == 0 || self.least > self.most {
            return refuse("least", self.least as f64, "at least 1 and at most `most`");
        }
        Ok(())
    }
}

/// Why sampling goes on or stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Another response is worth its cost.
    Sample,
    /// The best response is good enough.
    Confident,
    /// Another response is not expected to help.
    NotWorthIt,
    /// As many responses as may be drawn.
    Limit,
}

/// What is known after some responses.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The best response.
    pub best: usize,
    /// Probability that it is right, the query's difficulty averaged out.
    pub probability: f64,
    /// Credible interval of that probability as the query's success rate varies.
    pub interval: (f64, f64),
    /// How much another response is expected to raise `probability`.
    pub gain: f64,
    /// Whether to go on.
    pub verdict: Verdict,
}

/// The stopping rule: rates of verifiers, a prior of difficulty, and how evidence is distributed.
///
/// 1. The success rate's posterior is `prior(rate) prod_j (rate e^{l_j} + 1 - rate)`, `l_j` the evidence of response j.
/// 2. Response j is right with probability `q_j(rate) = rate e^{l_j} / (rate e^{l_j} + 1 - rate)`, averaged over it.
///    Quantiles of the rate give the credible interval, since `q_j` grows with the rate.
/// 3. Another response has evidence `l` with the probability of right and of wrong ones in the rate's proportion. Its
///    expected gain is the mean of `max(best, new) - best`, difficulty updated; one step of look-ahead.
#[derive(Clone, Debug)]
pub struct Stopping {
    prior: Difficulty,
    config: StoppingConfig,
    /// Evidence, and its probability for right and for wrong responses.
    law: Vec<(f64, f64, f64)>,
}

/// Patterns of votes are enumerated up to this many verifiers.
const ENUMERATED: usize = 12;

impl Stopping {
    /// A rule for verifiers with these rates.
    ///
    /// # Errors
    /// No verifiers or more than 12, whose patterns are too many to enumerate (keep the best); parameters outside
    /// their ranges; rates of 0 or 1.
    pub fn new(rates: &Rates, prior: Difficulty, config: StoppingConfig) -> Result<Self> {
        config.check()?;
        let m = rates.tpr.len();
        if m == 0 || m > ENUMERATED || rates.fpr.len() != m {
            return Err(SupervisionError::Shape { what: "verifiers", got: m, want: ENUMERATED });
        }
        if let Some(&value) = rates.tpr.iter().chain(&rates.fpr).find(|rate| !(**rate > 0.0 && **rate < 1.0))
        {
            return Err(SupervisionError::BadParameter { name: "rate", value, want: "above 0 and below 1" });
        }
        let mut law: Vec<(f64, f64, f64)> = (0..1u32 << m)
            .map(|pattern| {
                let probability = |rates: &[f64]| -> f64 {
                    (0..m).map(|k| if pattern >> k & 1 == 1 { rates[k] } else { 1.0 - rates[k] }).product()
                };
                let (right, wrong) = (probability(&rates.tpr), probability(&rates.fpr));
                ((right / wrong).ln(), right, wrong)
            })
            .collect();
        // Few distinct values are needed for an expectation: neighbours are merged.
        law.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut merged: Vec<(f64, f64, f64)> = Vec::new();
        for (evidence, right, wrong) in law {
            match merged.last_mut() {
                Some(last) if evidence - last.0 < 0.05 => {
                    last.1 += right;
                    last.2 += wrong;
                }
                _ => merged.push((evidence, right, wrong)),
            }
        }
        merged.iter_mut().for_each(|(evidence, right, wrong)| *evidence = (*right / *wrong).ln());
        Ok(Self { prior, config, law: merged })
    }

    /// Where a query stands, given the evidence of its responses so far.
    ///
    /// # Errors
    /// No responses; evidence that is not finite.
    pub fn standing(&self, evidence: &[f64]) -> Result<Standing> {
        if evidence.is_empty() {
            return Err(SupervisionError::Empty { what: "responses" });
        }
        if let Some(index) = evidence.iter().position(|e| !e.is_finite()) {
            return Err(SupervisionError::NotFinite { what: "evidence", index });
        }
        let logs = self.prior.log_likelihoods(ndarray::aview1(evidence));
        let posterior = normalise(&self.prior.weights, &logs).0;
        let rates = &self.prior.rates;
        // q grows with the evidence, so the best response has the most, whatever the rate.
        let best = (0..evidence.len()).fold(0, |best, j| if evidence[j] > evidence[best] { j } else { best });
        let probability = mean(rates, &posterior, evidence[best]);
        let tail = self.config.level / 2.0;
        let interval = (
            right(quantile(rates, &posterior, tail), evidence[best]),
            right(quantile(rates, &posterior, 1.0 - tail), evidence[best]),
        );
        let mut gain = 0.0;
        for &(new, one, zero) in &self.law {
            let mut weights: Vec<f64> = rates
                .iter()
                .zip(&posterior)
                .map(|(rate, p)| p * (rate * one + (1.0 - rate) * zero))
                .collect();
            let chance: f64 = weights.iter().sum();
            if chance > 0.0 {
                weights.iter_mut().for_each(|weight| *weight /= chance);
                // Of the two candidates the one with more evidence is better, and the other's probability is what
                // one would have had. Seeing the new response is worth the difference.
                let kept = mean(rates, &weights, evidence[best]);
                gain += chance * (mean(rates, &weights, new.max(evidence[best])) - kept);
            }
        }
        let verdict = match evidence.len() {
            n if n >= self.config.most => Verdict::Limit,
            n if n < self.config.least => Verdict::Sample,
            _ if interval.0 >= self.config.target => Verdict::Confident,
            _ if gain < self.config.cost => Verdict::NotWorthIt,
            _ => Verdict::Sample,
        };
        Ok(Standing { best, probability, interval, gain, verdict })
    }

    /// How many of a query's responses would have been drawn, and where it stands then.
    ///
    /// # Errors
    /// As [`Stopping::standing`].
    pub fn replay(&self, evidence: &[f64]) -> Result<(usize, Standing)> {
        for drawn in 1..evidence.len() {
            let standing = self.standing(&evidence[..drawn])?;
            if standing.verdict != Verdict::Sample {
                return Ok((drawn, standing));
            }
        }
        Ok((evidence.len(), self.standing(evidence)?))
    }
}

/// Probability that a response is right, given the query's success rate.
fn right(rate: f64, evidence: f64) -> f64 {
    if rate <= 0.0 {
        return 0.0;
    }
    if rate >= 1.0 {
        return 1.0;
    }
    sigmoid((rate / (1.0 - rate)).ln() + evidence)
}

fn mean(rates: &[f64], weights: &[f64], evidence: f64) -> f64 {
    rates.iter().zip(weights).map(|(&rate, weight)| weight * right(rate, evidence)).sum()
}

fn quantile(rates: &[f64], weights: &[f64], share: f64) -> f64 {
    let mut order: Vec<usize> = (0..rates.len()).collect();
    order.sort_by(|&a, &b| rates[a].total_cmp(&rates[b]));
    let mut sum = 0.0;
    for &index in &order {
        sum += weights[index];
        if sum >= share - 1e-12 {
            return rates[index];
        }
    }
    order.last().map_or(1.0, |&index| rates[index])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use pilotfish_model::Streams;
    use rand::Rng;

    fn rates() -> Rates {
        Rates { balance: 0.4, tpr: vec![0.9, 0.8, 0.7], fpr: vec![0.2, 0.3, 0.1] }
    }

    fn prior() -> Difficulty {
        Difficulty::new(vec![0.1, 0.8], vec![0.6, 0.4]).unwrap()
    }

    /// Every label of every response, enumerated.
    fn brute(prior: &Difficulty, evidence: &[f64], response: usize) -> f64 {
        let (mut right, mut all) = (0.0, 0.0);
        for (rate, weight) in prior.weights() {
            for labels in 0..1u32 << evidence.len() {
                let mut p = weight;
                for (j, e) in evidence.iter().enumerate() {
                    p *= if labels >> j & 1 == 1 { rate * e.exp() } else { 1.0 - rate };
                }
                all += p;
                if labels >> response & 1 == 1 {
                    right += p;
                }
            }
        }
        right / all
    }

    #[test]
    fn equals_enumeration_of_labels() {
        let rule = Stopping::new(&rates(), prior(), StoppingConfig::default()).unwrap();
        for evidence in [vec![0.3], vec![1.5, -2.0], vec![-1.0, 2.2, 0.4, -0.3]] {
            let standing = rule.standing(&evidence).unwrap();
            assert!((standing.probability - brute(&prior(), &evidence, standing.best)).abs() < 1e-12);
            assert!(
                standing.interval.0 <= standing.probability && standing.probability <= standing.interval.1
            );
        }
    }

    /// The gain is what the best response's probability rises by, averaged over what may be drawn.
    #[test]
    fn gain_equals_enumeration_of_the_next_response() {
        let rates = rates();
        let rule = Stopping::new(&rates, prior(), StoppingConfig::default()).unwrap();
        let evidence = [0.7, -0.5];
        let standing = rule.standing(&evidence).unwrap();
        let (mut expected, mut total) = (0.0, 0.0);
        let weight_of =
            |e: &[f64], rate: f64| -> f64 { e.iter().map(|e| rate * e.exp() + 1.0 - rate).product() };
        let now: f64 = prior().weights().map(|(rate, w)| w * weight_of(&evidence, rate)).sum();
        for pattern in 0..8u8 {
            let votes: Vec<u8> = (0..3).map(|k| pattern >> k & 1).collect();
            let new = rates.evidence(ndarray::aview1(&votes));
            let wrong: f64 =
                (0..3).map(|k| if votes[k] == 1 { rates.fpr[k] } else { 1.0 - rates.fpr[k] }).product();
            let chance: f64 = prior()
                .weights()
                .map(|(rate, w)| w * weight_of(&evidence, rate) * wrong * (rate * new.exp() + 1.0 - rate))
                .sum::<f64>()
                / now;
            let three = [evidence[0], evidence[1], new];
            let best = if new > evidence[0] { 2 } else { 0 };
            expected += chance * brute(&prior(), &three, best);
            total += chance;
        }
        assert!((total - 1.0).abs() < 1e-12);
        assert!((expected - standing.probability - standing.gain).abs() < 1e-9, "{expected} {standing:?}");
    }

    #[test]
    fn probabilities_are_calibrated_and_stopping_saves() {
        let (rates, prior) = (rates(), prior());
        let rule = Stopping::new(&rates, prior.clone(), StoppingConfig::default()).unwrap();
        let mut rng = Streams::new(9).stream("stopping");
        let (mut claimed, mut correct, mut drawn, mut full) = (0.0, 0.0, 0, 0.0);
        let queries = 3000;
        for _ in 0..queries {
            let rate = if rng.random_bool(0.6) { 0.1 } else { 0.8 };
            let labels: Vec<bool> = (0..20).map(|_| rng.random_bool(rate)).collect();
            let evidence: Vec<f64> = labels
                .iter()
                .map(|&y| {
                    let law = if y { &rates.tpr } else { &rates.fpr };
                    let votes: Vec<u8> = law.iter().map(|&p| u8::from(rng.random_bool(p))).collect();
                    rates.evidence(ndarray::aview1(&votes))
                })
                .collect();
            let (n, standing) = rule.replay(&evidence).unwrap();
            claimed += standing.probability;
            correct += f64::from(u8::from(labels[standing.best]));
            drawn += n;
            full += f64::from(u8::from(labels[rule.standing(&evidence).unwrap().best]));
        }
        let n = f64::from(queries);
        assert!((claimed - correct).abs() / n < 0.025, "{claimed} {correct}");
        assert!((drawn as f64) < 0.6 * 20.0 * n && full - correct < 0.06 * n, "{drawn} {full} {correct}");
    }

    #[test]
    fn difficulty_is_found_without_labels() {
        let rates = Rates { balance: 0.5, tpr: vec![0.9; 4], fpr: vec![0.1; 4] };
        let mut rng = Streams::new(4).stream("difficulty");
        let evidence = ndarray::Array2::from_shape_fn((400, 1), |_| rng.random_range(0.0..1.0));
        let evidence = ndarray::Array2::from_shape_fn((400, 30), |(q, _)| {
            let y = rng.random_bool(if evidence[[q, 0]] < 0.25 { 0.9 } else { 0.2 });
            let p = if y { 0.9 } else { 0.1 };
            rates.evidence(ndarray::aview1(&[0; 4].map(|_: u8| u8::from(rng.random_bool(p)))))
        });
        let fit = Difficulty::fit(evidence.view()).unwrap();
        assert!(fit.trace().windows(2).all(|pair| pair[1] >= pair[0] - 1e-9));
        let easy: f64 = fit.weights().filter(|(rate, _)| *rate > 0.6).map(|(_, w)| w).sum();
        assert!((easy - 0.25).abs() < 0.07, "{easy}");
    }

    #[test]
    fn bad_input_is_refused() {
        let rule = Stopping::new(&rates(), prior(), StoppingConfig::default()).unwrap();
        assert!(rule.standing(&[]).is_err() && rule.standing(&[f64::NAN]).is_err());
        for config in [
            StoppingConfig { target: f64::NAN, ..StoppingConfig::default() },
            StoppingConfig { level: 0.0, ..StoppingConfig::default() },
            StoppingConfig { cost: f64::NAN, ..StoppingConfig::default() },
            StoppingConfig { least: 0, ..StoppingConfig::default() },
            StoppingConfig { most: 1, ..StoppingConfig::default() },
        ] {
            assert!(Stopping::new(&rates(), prior(), config).is_err());
        }
        assert!(Difficulty::new(vec![2.0], vec![1.0]).is_err() && Difficulty::new(vec![], vec![]).is_err());
        assert!(Difficulty::new(vec![0.5], vec![f64::NAN]).is_err());
        let many = Rates { balance: 0.5, tpr: vec![0.9; 40], fpr: vec![0.1; 40] };
        assert!(Stopping::new(&many, prior(), StoppingConfig::default()).is_err());
    }
}
