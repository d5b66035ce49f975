//! What verdicts are for: sending queries to a larger model, and keeping good training data.

use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// Accuracy and cost of a cascade.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cascade {
    /// Share of queries sent to the strong model.
    pub routed: f64,
    /// Share of right answers in the end.
    pub accuracy: f64,
    /// Share of right answers among those kept; `None` if none is.
    pub precision: Option<f64>,
}

fn check_share(name: &'static str, value: f64) -> Result<()> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(SupervisionError::BadParameter { name, value, want: "from 0 to 1" }),
    }
}

/// What a cascade comes to: weak and strong accuracy, probability that the judge passes a right and a wrong answer, the
/// strong model's accuracy being independent of the judge.
///
/// ```
/// use pilotfish_supervision::meta_ranking::cascade_accuracy;
/// let cascade = cascade_accuracy(0.6, 0.85, 0.8, 0.3)?;
/// assert!((cascade.routed - 0.4).abs() < 1e-12 && (cascade.accuracy - 0.82).abs() < 1e-12);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
///
/// # Errors
/// A number outside `[0, 1]`.
pub fn cascade_accuracy(weak: f64, strong: f64, pass_right: f64, pass_wrong: f64) -> Result<Cascade> {
    for (name, value) in
        [("weak", weak), ("strong", strong), ("pass_right", pass_right), ("pass_wrong", pass_wrong)]
    {
        check_share(name, value)?;
    }
    let kept = weak * pass_right + (1.0 - weak) * pass_wrong;
    let precision = (kept > 0.0).then(|| weak * pass_right / kept);
    Ok(Cascade { routed: 1.0 - kept, accuracy: weak * pass_right + (1.0 - kept) * strong, precision })
}

/// A point of a cascade's curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Score above which an answer is kept.
    pub threshold: f64,
    /// What that comes to.
    pub cascade: Cascade,
}

/// Every cascade that some scores allow, from sending nothing to sending everything. Answers of equal score are sent
/// together.
///
/// # Errors
/// No queries; lengths that differ; a score that is NaN.
pub fn curve(scores: &[f64], weak: &[bool], strong: &[bool]) -> Result<Vec<Point>> {
    let n = scores.len();
    if n == 0 {
        return Err(SupervisionError::Empty { what: "queries" });
    }
    for (what, got) in [("weak answers", weak.len()), ("strong answers", strong.len())] {
        if got != n {
            return Err(SupervisionError::Shape { what, got, want: n });
        }
    }
    if let Some(index) = scores.iter().position(|score| score.is_nan()) {
        return Err(SupervisionError::NotFinite { what: "score", index });
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let count = |list: &mut dyn Iterator<Item = bool>| list.filter(|right| *right).count() as f64;
    let mut out = Vec::new();
    let mut sent = 0;
    loop {
        let kept = count(&mut order[sent..].iter().map(|&i| weak[i]));
        let from_strong = count(&mut order[..sent].iter().map(|&i| strong[i]));
        out.push(Point {
            threshold: if sent == 0 { f64::NEG_INFINITY } else { scores[order[sent - 1]] },
            cascade: Cascade {
                routed: sent as f64 / n as f64,
                accuracy: (kept + from_strong) / n as f64,
                precision: (sent < n).then(|| kept / (n - sent) as f64),
            },
        });
        if sent == n {
            return Ok(out);
        }
        let score = scores[order[sent]];
        while sent < n && scores[order[sent]] == score {
            sent += 1;
        }
    }
}

/// A round of filtering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRound {
    /// Items that were kept, by their index in the data given at first.
    pub kept: Vec<usize>,
}

/// Filters data round by round: `judge(round, items)` says of each remaining item whether it is reliable; what is not
/// is dropped. The judge may be refreshed (trained on what is left) between rounds; one that is not drops nothing in a
/// second round. Ends early when a round drops nothing or everything.
///
/// # Errors
/// No items; the judge's own error; another number of verdicts than items.
pub fn filter<E: From<SupervisionError>>(
    items: usize,
    rounds: usize,
    mut judge: impl FnMut(usize, &[usize]) -> Result<Vec<bool>, E>,
) -> Result<Vec<FilterRound>, E> {
    if items == 0 {
        return Err(SupervisionError::Empty { what: "items" }.into());
    }
    let mut left: Vec<usize> = (0..items).collect();
    let mut out = Vec::new();
    for round in 0..rounds {
        let verdicts = judge(round, &left)?;
        if verdicts.len() != left.len() {
            let (got, want) = (verdicts.len(), left.len());
            return Err(SupervisionError::Shape { what: "verdicts", got, want }.into());
        }
        let kept: Vec<usize> =
            left.iter().zip(&verdicts).filter(|(_, reliable)| **reliable).map(|(item, _)| *item).collect();
        let done = kept.len() == left.len() || kept.is_empty();
        left.clone_from(&kept);
        out.push(FilterRound { kept });
        if done {
            break;
        }
    }
    Ok(out)
}

/// Share of good items after a round that keeps good and bad ones with these probabilities, errors being independent
/// of earlier rounds.
///
/// # Errors
/// A number outside `[0, 1]`; nothing kept.
pub fn purity(before: f64, keep_good: f64, keep_bad: f64) -> Result<f64> {
    for (name, value) in [("purity", before), ("keep_good", keep_good), ("keep_bad", keep_bad)] {
        check_share(name, value)?;
    }
    let kept = keep_good * before + keep_bad * (1.0 - before);
    if kept == 0.0 {
        return Err(SupervisionError::Empty { what: "items kept" });
    }
    Ok(keep_good * before / kept)
}
