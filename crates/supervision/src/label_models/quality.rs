use serde::Serialize;
use statrs::distribution::{Beta, ContinuousCDF};

use super::fitted::Posterior;
use crate::Rows;

/// Most sums that confusion matrices may take, over all voters.
const MOST: usize = 1 << 24;

/// An estimate and its 95 % credible interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How good a voter is, by a fit.
///
/// The interval takes the fitted posterior of every item as given: the number of right votes is then a sum of
/// independent coin flips, the accuracy a Beta variable with Jeffreys' prior, and the two are joined by matching the mean
/// and the variance of the mixture. That the posterior itself was estimated is not in it, so of few items or few voters it
/// is too narrow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VoterQuality {
    /// Votes that are not abstentions.
    pub votes: u64,
    /// Probability that a vote is right; `None` without votes.
    pub accuracy: Option<Estimate>,
    /// `classes x classes`, row-major: expected number of votes, by truth (row) and vote (column). Empty where all of
    /// these would take too much memory.
    pub counts: Vec<f64>,
    /// The model's own measure of the voter: an accuracy, an ability, a weight. `None` if it has no single one.
    pub skill: Option<f64>,
}

impl VoterQuality {
    /// P(vote | truth), by expected counts; `None` if the truth never occurs among the items voted on.
    pub fn rate(&self, classes: usize, truth: usize, vote: usize) -> Option<f64> {
        let row = self.counts.get(truth * classes..(truth + 1) * classes)?;
        let all: f64 = row.iter().sum();
        (all > 0.0).then(|| row.get(vote).map(|votes| votes / all)).flatten()
    }
}

/// Quality of every voter by a posterior over `rows`.
pub(crate) fn qualities(
    rows: &Rows<'_>,
    posterior: &Posterior,
    skill: impl Fn(usize) -> Option<f64>,
) -> Vec<VoterQuality> {
    let (votes, k) = (rows.votes(), posterior.classes);
    let m = votes.voters();
    let full = m.saturating_mul(k * k) <= MOST;
    // Of each voter: votes, right votes, their variance, then the counts.
    let width = if full { 3 + k * k } else { 3 };
    let sums = rows.sum(
        m * width,
        || (),
        |row, (), sums| {
            let (q, count) = (&posterior.values[row * k..(row + 1) * k], rows.count(row));
            votes.visit(row, |voter, vote| {
                let sums = &mut sums[voter * width..(voter + 1) * width];
                sums[0].add_unit(1.0, count);
                sums[1].add_unit(q[vote], count);
                sums[2].add_unit(q[vote] * (1.0 - q[vote]), count);
                if full {
                    for (truth, q) in q.iter().enumerate() {
                        sums[3 + truth * k + vote].add_unit(*q, count);
                    }
                }
            });
        },
    );
    let quality = |voter: usize| {
        let sums = &sums[voter * width..(voter + 1) * width];
        let [all, right, spread] = [sums[0].value(), sums[1].value(), sums[2].value()];
        let counts = sums[3..].iter().map(|sum| sum.value()).collect();
        let accuracy = (all > 0.0).then(|| accuracy(all, right, spread));
        VoterQuality { votes: all as u64, accuracy, counts, skill: skill(voter) }
    };
    (0..m).map(quality).collect()
}

/// Accuracy of `all` votes of which `right` are expected to be right, with this variance.
fn accuracy(all: f64, right: f64, spread: f64) -> Estimate {
    let total = all + 1.0;
    let mean = (right + 0.5) / total;
    // E[p(1 - p)] over the number of right votes, then the variance of a mixture of Beta laws.
    let within = (mean * (1.0 - mean) - spread / (total * total)) / (total + 1.0);
    let variance = within + spread / (total * total);
    let size = (mean * (1.0 - mean) / variance - 1.0).max(1e-6);
    let quantile = |at: f64| match Beta::new(mean * size, (1.0 - mean) * size) {
        Ok(law) => law.inverse_cdf(at).clamp(0.0, 1.0),
        Err(_) => mean,
    };
    let value = right / all;
    Estimate { value, low: quantile(0.025).min(value), high: quantile(0.975).max(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_known_counts() {
        // All truths known: Jeffreys' interval of 8 right votes of 10, Beta(8.5, 2.5).
        let known = accuracy(10.0, 8.0, 0.0);
        assert!((known.low - 0.4989).abs() < 2e-3 && (known.high - 0.9556).abs() < 2e-3, "{known:?}");
        // The same with truths that are coin flips: wider.
        let vague = accuracy(10.0, 8.0, 1.6);
        assert!(vague.low < known.low && vague.high > known.high, "{vague:?}");
        assert_eq!(accuracy(3.0, 3.0, 0.0).high, 1.0);
    }
}
