//! How well scores tell right responses from wrong ones.

use pilotfish_evaluation::Interval;
use pilotfish_model::{CausalModel, RowSet, Step, Streams, Token};
use pilotfish_supervision::weak_to_strong::area_under_curve;
use rand::Rng;

use super::{Choice, Options};
use crate::error::Failure;

/// Which halves of an experiment run.
pub(super) const PART: Choice = Choice { name: "part", default: "both", about: "synthetic, real or both" };

/// Whether the synthetic and the real half run.
pub(super) fn parts(options: &Options) -> Result<(bool, bool), Failure> {
    match options.text("part")? {
        "synthetic" => Ok((true, false)),
        "real" => Ok((false, true)),
        "both" => Ok((true, true)),
        other => Err(format!("--part {other:?}: there are synthetic, real, both").into()),
    }
}

/// Log-probability of a token.
pub(super) fn log_prob(row: &[f32], token: Token) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(row[token as usize] - max) - sum.ln()
}

/// Mean log-probability of the tokens of a text behind another, which is read from the beginning.
pub(super) fn mean_log_probability(
    model: &mut dyn CausalModel,
    before: &[Token],
    text: &[Token],
) -> Result<f64, Failure> {
    let all = [before, text].concat();
    model.truncate(0)?;
    let wanted: Vec<usize> = (before.len() - 1..all.len() - 1).collect();
    let step = model.step(&Step::chain(&all[..all.len() - 1]).want(RowSet::Rows(&wanted)))?;
    let mut sum = 0.0;
    for (row, token) in text.iter().enumerate() {
        sum += log_prob(step.logits.row(row).ok_or("a row of logits is missing")?, *token);
    }
    Ok(sum / text.len().max(1) as f64)
}

/// Probability that a right response scores above a wrong one; ties count half. Scores that are NaN do not count.
pub(super) fn auroc(scores: impl Iterator<Item = (f64, bool)>) -> Option<f64> {
    area_under_curve(scores.filter(|(score, _)| !score.is_nan()).collect())
}

/// Mean of the shares of right and of wrong responses that are judged so; `None` where one kind is missing.
pub(super) fn balanced_accuracy(verdicts: impl Iterator<Item = (bool, bool)>) -> Option<f64> {
    let [tp, fp, tn, fn_] = confusion(verdicts);
    (tp + fn_ > 0.0 && fp + tn > 0.0).then(|| 0.5 * (tp / (tp + fn_) + tn / (fp + tn)))
}

/// Harmonic mean of precision and recall in finding wrong responses; 0 where none is found.
pub(super) fn f1_of_wrong(verdicts: impl Iterator<Item = (bool, bool)>) -> f64 {
    let [_, fp, tn, fn_] = confusion(verdicts);
    if tn > 0.0 { 2.0 * tn / (2.0 * tn + fp + fn_) } else { 0.0 }
}

/// Judged right and right, judged right and wrong, judged wrong and wrong, judged wrong and right.
fn confusion(verdicts: impl Iterator<Item = (bool, bool)>) -> [f64; 4] {
    let mut out = [0.0; 4];
    for (judged, right) in verdicts {
        let cell = match (judged, right) {
            (true, true) => 0,
            (true, false) => 1,
            (false, false) => 2,
            (false, true) => 3,
        };
        out[cell] += 1.0;
    }
    out
}

/// A statistic of items, with a percentile interval over 1,000 resamples of them. The statistic is given indices of
/// items, some of them several times.
pub(super) fn resampled(
    items: usize,
    seed: u64,
    statistic: impl Fn(&[usize]) -> Option<f64>,
) -> Option<(f64, Interval)> {
    let all: Vec<usize> = (0..items).collect();
    let value = statistic(&all)?;
    let mut rng = Streams::new(seed).stream("resamples");
    let mut values: Vec<f64> = (0..1000)
        .filter_map(|_| {
            let drawn: Vec<usize> = (0..items).map(|_| rng.random_range(0..items)).collect();
            statistic(&drawn)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share).round() as usize).copied();
    let interval = Interval { low: at(0.025)?, high: at(0.975)? };
    Some((value, interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_by_hand() {
        let area = |list: &[(f64, bool)]| auroc(list.iter().copied());
        assert_eq!(area(&[(0.1, false), (0.9, true)]), Some(1.0));
        assert_eq!(area(&[(0.5, false), (0.5, true), (f64::NAN, true)]), Some(0.5));
        // Of four pairs three are in order.
        assert_eq!(area(&[(0.1, false), (0.2, true), (0.3, false), (0.4, true)]), Some(0.75));
        assert_eq!(area(&[(0.1, true)]), None);
    }

    #[test]
    fn verdicts_by_hand() {
        // Of four right ones three are found, of two wrong ones one.
        let list = [(true, true), (true, true), (true, true), (false, true), (true, false), (false, false)];
        assert_eq!(balanced_accuracy(list.iter().copied()), Some(0.625));
        // Precision 1/2, recall 1/2.
        assert_eq!(f1_of_wrong(list.iter().copied()), 0.5);
        // Whoever trusts everything finds nothing.
        assert_eq!(f1_of_wrong([(true, true), (true, false)].into_iter()), 0.0);
        assert_eq!(balanced_accuracy([(true, true)].into_iter()), None);
    }

    #[test]
    fn resamples_surround_the_mean() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let mean = |at: &[usize]| Some(at.iter().map(|i| values[*i]).sum::<f64>() / at.len() as f64);
        let (value, interval) = resampled(100, 1, mean).expect("items");
        assert_eq!(value, 0.5);
        // Two standard errors are a tenth.
        assert!((interval.low - 0.4).abs() < 0.03 && (interval.high - 0.6).abs() < 0.03, "{interval:?}");
        assert!(resampled(0, 1, |at| at.first().map(|_| 1.0)).is_none());
    }
}
