//! From raw scores to votes: majority votes as a verifier, normalisation, missing scores, thresholds.

use std::hash::Hash;

use ndarray::{Array2, Array3, ArrayView3, Axis, s};
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// How a verifier's scores are brought into `[0, 1]`. Scores that lie there already are left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// `(x - min) / (max - min)`, as the released configurations do.
    #[default]
    MinMax,
    /// The share of scores that are smaller, ties in the middle: uniform scores.
    Quantile,
    /// The 5th and 95th percentile become 0 and 1, and what lies outside is clipped (paper, C.1).
    Winsorized,
}

/// Over which scores extremes are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All queries together.
    #[default]
    All,
    /// Each query by itself; a verifier that is constant within a query uses its extremes over all.
    PerQuery,
}

/// What stands in for a missing score (NaN), after normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// 0, as the released configurations do.
    #[default]
    Zero,
    /// The verifier's mean over the query's other responses; 0 where there are none.
    QueryMean,
}

/// Normalised scores and the verifiers they belong to.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalised {
    /// `[queries, responses, kept verifiers]`, all in `[0, 1]`.
    pub scores: Array3<f64>,
    /// The verifiers kept, by their index before.
    pub kept: Vec<usize>,
}

/// A verifier that votes for frequent answers: a response's share of its query's responses, min-max scaled over the
/// distinct answers; all 1 if every answer is equally frequent. Responses without an answer get NaN.
///
/// ```
/// use pilotfish_supervision::weaver::majority_scores;
/// let answers: Vec<_> = "AAABBC".chars().map(Some).collect();
/// assert_eq!(majority_scores(&answers), [1.0, 1.0, 1.0, 0.5, 0.5, 0.0]);
/// ```
pub fn majority_scores<A: Eq + Hash>(answers: &[Option<A>]) -> Vec<f64> {
    let counts = counts(answers);
    let (low, high) = answers
        .iter()
        .filter_map(|answer| counts.get(answer.as_ref()?))
        .fold((usize::MAX, 0), |(low, high), &(count, _)| (low.min(count), high.max(count)));
    answers
        .iter()
        .map(|answer| match answer.as_ref().and_then(|answer| counts.get(answer)) {
            None => f64::NAN,
            Some(_) if low == high => 1.0,
            Some(&(count, _)) => (count - low) as f64 / (high - low) as f64,
        })
        .collect()
}

/// The first response with the most frequent answer; of equally frequent answers the one that occurs first. `None`
/// when no response has an answer.
pub fn majority_answer<A: Eq + Hash>(answers: &[Option<A>]) -> Option<usize> {
    let counts = counts(answers);
    counts.values().max_by_key(|(count, first)| (*count, std::cmp::Reverse(*first))).map(|&(_, first)| first)
}

/// Count and first place of every answer.
fn counts<A: Eq + Hash>(answers: &[Option<A>]) -> std::collections::HashMap<&A, (usize, usize)> {
    let mut counts = std::collections::HashMap::new();
    for (index, answer) in answers.iter().enumerate() {
        if let Some(answer) = answer {
            counts.entry(answer).or_insert((0, index)).0 += 1;
        }
    }
    counts
}

/// Normalises raw scores `[queries, responses, verifiers]`, NaN where one is missing.
///
/// Verifiers without any score are dropped, and so are those that are constant outside `[0, 1]`: the reference code
/// divides 0 by 0 there.
///
/// # Errors
/// No scores; an infinite one; no verifier left.
pub fn normalise(
    scores: ArrayView3<'_, f64>,
    how: Normalisation,
    scope: Scope,
    missing: Missing,
) -> Result<Normalised> {
    let (queries, responses, verifiers) = scores.dim();
    if queries * responses * verifiers == 0 {
        return Err(SupervisionError::Empty { what: "scores" });
    }
    if let Some(index) = scores.iter().position(|score| score.is_infinite()) {
        return Err(SupervisionError::NotFinite { what: "score", index });
    }
    let mut kept = Vec::new();
    let mut columns: Vec<Array2<f64>> = Vec::new();
    for verifier in 0..verifiers {
        let mut column = scores.slice(s![.., .., verifier]).to_owned();
        let present: Vec<f64> = column.iter().copied().filter(|score| !score.is_nan()).collect();
        let (low, high) = extremes(&present);
        if present.is_empty() {
            continue;
        }
        if low < 0.0 || high > 1.0 {
            let Some(all) = Map::new(&present, how) else { continue };
            for mut row in column.axis_iter_mut(Axis(0)) {
                let own: Vec<f64> = row.iter().copied().filter(|score| !score.is_nan()).collect();
                let map = match scope {
                    Scope::All => None,
                    Scope::PerQuery => Map::new(&own, how),
                };
                let map = map.as_ref().unwrap_or(&all);
                row.iter_mut().filter(|score| !score.is_nan()).for_each(|score| *score = map.apply(*score));
            }
        }
        for mut row in column.axis_iter_mut(Axis(0)) {
            let (sum, count) =
                row.iter().filter(|x| !x.is_nan()).fold((0.0, 0usize), |(s, c), x| (s + x, c + 1));
            let fill = match missing {
                Missing::QueryMean if count > 0 => sum / count as f64,
                _ => 0.0,
            };
            row.iter_mut().filter(|score| score.is_nan()).for_each(|score| *score = fill);
        }
        kept.push(verifier);
        columns.push(column);
    }
    if kept.is_empty() {
        return Err(SupervisionError::Empty { what: "verifiers whose scores vary" });
    }
    let scores = Array3::from_shape_fn((queries, responses, kept.len()), |(q, r, v)| columns[v][[q, r]]);
    Ok(Normalised { scores, kept })
}

fn extremes(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
}

/// A map onto `[0, 1]`.
enum Map {
    Linear { low: f64, high: f64 },
    Ranks(Vec<f64>),
}

impl Map {
    /// `None` for constant values.
    fn new(values: &[f64], how: Normalisation) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&low, &high) = (sorted.first()?, sorted.last()?);
        if low == high {
            return None;
        }
        Some(match how {
            Normalisation::MinMax => Self::Linear { low, high },
            Normalisation::Quantile => Self::Ranks(sorted),
            Normalisation::Winsorized => {
                let at = |share: f64| sorted[(share * (sorted.len() - 1) as f64).round() as usize];
                match (at(0.05), at(0.95)) {
                    (low, high) if low < high => Self::Linear { low, high },
                    _ => Self::Linear { low, high },
                }
            }
        })
    }

    fn apply(&self, x: f64) -> f64 {
        match self {
            // Halves, because a difference of two large numbers overflows.
            Self::Linear { low, high } => ((x / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0)).clamp(0.0, 1.0),
            Self::Ranks(sorted) => {
                let below = sorted.partition_point(|y| *y < x);
                let upto = sorted.partition_point(|y| *y <= x);
                (below + upto) as f64 / (2 * sorted.len()) as f64
            }
        }
    }
}

/// Where a score becomes a vote for "right".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Threshold {
    /// One value for all verifiers.
    At(f64),
    /// One value a verifier, of those that normalisation kept.
    Each(Vec<f64>),
    /// For each verifier the value that about this share of the scores reaches ([`balance_threshold`]). Needs the
    /// share of right responses.
    Balance(f64),
}

impl Default for Threshold {
    fn default() -> Self {
        Self::At(0.5)
    }
}

/// The score at index `ceil((1 - balance) N) - 1` of ascending scores; 0.5 for scores that are all 0 or 1.
///
/// The boundary itself votes "right", so one response more than `balance N` does. The index is that of the reference
/// code, except that 0 stands for its -1 (which wraps to the largest score) and that rounding of `(1 - balance) N` is
/// absorbed.
///
/// ```
/// use pilotfish_supervision::weaver::balance_threshold;
/// let scores: Vec<f64> = (1..=10).map(f64::from).collect();
/// assert_eq!(balance_threshold(&scores, 0.3), 7.0);
/// ```
pub fn balance_threshold(scores: &[f64], balance: f64) -> f64 {
    if scores.iter().all(|score| *score == 0.0 || *score == 1.0) {
        return 0.5;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = ((1.0 - balance) * sorted.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    sorted[count.min(sorted.len()) - 1]
}

/// Votes `[queries * responses, verifiers]`, 1 for "right", from normalised scores.
///
/// # Errors
/// A threshold that is NaN, a balance outside `[0, 1]`, another number of thresholds than verifiers.
pub fn binarise(scores: ArrayView3<'_, f64>, threshold: &Threshold) -> Result<Array2<u8>> {
    let (queries, responses, verifiers) = scores.dim();
    let thresholds = match threshold {
        Threshold::At(value) => vec![*value; verifiers],
        Threshold::Each(values) if values.len() != verifiers => {
            return Err(SupervisionError::Shape { what: "thresholds", got: values.len(), want: verifiers });
        }
        Threshold::Each(values) => values.clone(),
        Threshold::Balance(balance) => {
            if !(0.0..=1.0).contains(balance) {
                let (name, value) = ("balance", *balance);
                return Err(SupervisionError::BadParameter { name, value, want: "from 0 to 1" });
            }
            let column = |v| scores.slice(s![.., .., v]).iter().copied().collect::<Vec<_>>();
            (0..verifiers).map(|v| balance_threshold(&column(v), *balance)).collect()
        }
    };
    if thresholds.iter().any(|threshold| threshold.is_nan()) {
        let name = "threshold";
        return Err(SupervisionError::BadParameter { name, value: f64::NAN, want: "a number" });
    }
    Ok(Array2::from_shape_fn((queries * responses, verifiers), |(row, v)| {
        u8::from(scores[[row / responses, row % responses, v]] >= thresholds[v])
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn one(values: &[f64]) -> Array3<f64> {
        Array3::from_shape_vec((1, values.len(), 1), values.to_vec()).unwrap()
    }

    fn normal(values: &[f64], how: Normalisation) -> Vec<f64> {
        normalise(one(values).view(), how, Scope::All, Missing::Zero)
            .unwrap()
            .scores
            .into_raw_vec_and_offset()
            .0
    }

    #[test]
    fn majority_scores_by_hand() {
        let answers = |text: &str| text.chars().map(Some).collect::<Vec<_>>();
        assert_eq!(majority_scores(&answers("AAABBC")), [1.0, 1.0, 1.0, 0.5, 0.5, 0.0]);
        assert_eq!(majority_scores(&answers("ABAB")), [1.0; 4]);
        assert_eq!(majority_scores(&answers("AA")), [1.0; 2]);
        let with_none = majority_scores(&[Some('A'), None, Some('A'), Some('B')]);
        assert!(with_none[1].is_nan() && with_none[0] == 1.0 && with_none[3] == 0.0);
        assert!(majority_scores::<char>(&[]).is_empty());
    }

    #[test]
    fn majority_answer_breaks_ties_towards_the_first() {
        assert_eq!(majority_answer(&[Some('B'), Some('A'), Some('A'), Some('B')]), Some(0));
        assert_eq!(majority_answer(&[None, Some('B'), Some('A'), Some('A')]), Some(2));
        assert_eq!(majority_answer::<char>(&[None, None]), None);
    }

    #[test]
    fn min_max_by_hand() {
        assert_eq!(normal(&[-2.0, 0.0, 6.0], Normalisation::MinMax), [0.0, 0.25, 1.0]);
        assert_eq!(normal(&[0.2, 0.4], Normalisation::MinMax), [0.2, 0.4]);
        assert_eq!(normal(&[-2.0, f64::NAN, 6.0], Normalisation::MinMax), [0.0, 0.0, 1.0]);
        // The rule that leaves [0, 1] alone is not affine invariant.
        assert_eq!(normal(&[1.4, 1.8], Normalisation::MinMax), [0.0, 1.0]);
    }

    #[test]
    fn other_normalisations() {
        assert_eq!(normal(&[5.0, 1.0, 3.0, 3.0], Normalisation::Quantile), [0.875, 0.125, 0.5, 0.5]);
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        let out = normal(&values, Normalisation::Winsorized);
        assert_eq!((out[2], out[5], out[50], out[95], out[99]), (0.0, 0.0, 0.5, 1.0, 1.0));
    }

    #[test]
    fn constants_outside_and_empty_verifiers_are_dropped() {
        let scores = Array3::from_shape_fn((2, 2, 3), |(q, r, v)| match v {
            0 => 7.0,
            1 => f64::NAN,
            _ => (q + r) as f64,
        });
        let out = normalise(scores.view(), Normalisation::MinMax, Scope::All, Missing::Zero).unwrap();
        assert_eq!(out.kept, [2]);
        let nothing = Array3::from_elem((2, 2, 1), 7.0);
        assert!(normalise(nothing.view(), Normalisation::MinMax, Scope::All, Missing::Zero).is_err());
        let infinite = Array3::from_elem((2, 2, 1), f64::INFINITY);
        assert!(normalise(infinite.view(), Normalisation::MinMax, Scope::All, Missing::Zero).is_err());
    }

    #[test]
    fn per_query_falls_back_on_all_queries() {
        let scores = Array3::from_shape_vec((2, 2, 1), vec![0.0, 10.0, 5.0, 5.0]).unwrap();
        let out = normalise(scores.view(), Normalisation::MinMax, Scope::PerQuery, Missing::Zero).unwrap();
        assert_eq!(out.scores.into_raw_vec_and_offset().0, [0.0, 1.0, 0.5, 0.5]);
    }

    #[test]
    fn missing_scores_take_the_query_mean() {
        let scores = Array3::from_shape_vec((1, 3, 1), vec![0.0, f64::NAN, 8.0]).unwrap();
        let out = normalise(scores.view(), Normalisation::MinMax, Scope::All, Missing::QueryMean).unwrap();
        assert_eq!(out.scores.into_raw_vec_and_offset().0, [0.0, 0.5, 1.0]);
    }

    #[test]
    fn thresholds_by_hand() {
        let scores: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(balance_threshold(&scores, 0.3), 7.0);
        assert_eq!(scores.iter().filter(|x| **x >= 7.0).count(), 4);
        // The reference's -1 would wrap to 10.
        assert_eq!(balance_threshold(&scores, 1.0), 1.0);
        assert_eq!(balance_threshold(&[0.0, 1.0, 1.0], 0.1), 0.5);
        let votes = binarise(one(&[0.4, 0.5, 0.6]).view(), &Threshold::default()).unwrap();
        assert_eq!(votes.into_raw_vec_and_offset().0, [0, 1, 1]);
        assert!(binarise(one(&[0.4]).view(), &Threshold::At(f64::NAN)).is_err());
        assert!(binarise(one(&[0.4]).view(), &Threshold::Each(vec![])).is_err());
        assert!(binarise(one(&[0.4]).view(), &Threshold::Balance(f64::NAN)).is_err());
    }
}
