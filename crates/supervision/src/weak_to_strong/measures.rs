use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::hard;
use crate::{Result, SupervisionError};

/// How often a student says what its supervisor says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Over all items.
    pub overall: f64,
    /// Where the supervisor is right; `None` if it never is.
    pub weak_right: Option<f64>,
    /// Where it is wrong: the student's imitation of errors; `None` if it never is.
    pub weak_wrong: Option<f64>,
}

fn same_length(what: &'static str, got: usize, want: usize) -> Result<()> {
    if want == 0 {
        return Err(SupervisionError::Empty { what: "items" });
    }
    if got != want { Err(SupervisionError::Shape { what, got, want }) } else { Ok(()) }
}

impl Agreement {
    /// From classes of the same items.
    ///
    /// # Errors
    /// No items; lengths that differ.
    pub fn of(student: &[usize], weak: &[usize], truth: &[usize]) -> Result<Self> {
        same_length("the student's classes", student.len(), truth.len())?;
        same_length("the supervisor's classes", weak.len(), truth.len())?;
        let share = |keep: &dyn Fn(usize) -> bool| {
            let rows: Vec<usize> = (0..truth.len()).filter(|&row| keep(row)).collect();
            let same = rows.iter().filter(|&&row| student[row] == weak[row]).count();
            (!rows.is_empty()).then(|| same as f64 / rows.len() as f64)
        };
        Ok(Self {
            overall: share(&|_| true).unwrap_or(0.0),
            weak_right: share(&|row| weak[row] == truth[row]),
            weak_wrong: share(&|row| weak[row] != truth[row]),
        })
    }
}

/// Mean over the classes that occur of the share of their items that are found.
///
/// # Errors
/// No items; lengths that differ.
pub fn balanced_accuracy(said: &[usize], truth: &[usize]) -> Result<f64> {
    same_length("classes", said.len(), truth.len())?;
    let classes = truth.iter().max().map_or(0, |most| most + 1);
    let recalls = (0..classes).filter_map(|class| {
        let of: Vec<usize> = (0..truth.len()).filter(|&row| truth[row] == class).collect();
        let found = of.iter().filter(|&&row| said[row] == class).count();
        (!of.is_empty()).then(|| found as f64 / of.len() as f64)
    });
    let recalls: Vec<f64> = recalls.collect();
    Ok(recalls.iter().sum::<f64>() / recalls.len() as f64)
}

/// Mean of the classes' F1, weighted by how often each occurs.
///
/// # Errors
/// No items; lengths that differ.
pub fn weighted_f1(said: &[usize], truth: &[usize]) -> Result<f64> {
    same_length("classes", said.len(), truth.len())?;
    let classes = truth.iter().max().map_or(0, |most| most + 1);
    let count = |keep: &dyn Fn(usize) -> bool| (0..truth.len()).filter(|&row| keep(row)).count() as f64;
    let sum: f64 = (0..classes)
        .map(|class| {
            let occurs = count(&|row| truth[row] == class);
            let both = count(&|row| truth[row] == class && said[row] == class);
            let named = count(&|row| said[row] == class);
            if occurs + named > 0.0 { occurs * 2.0 * both / (occurs + named) } else { 0.0 }
        })
        .sum();
    Ok(sum / truth.len() as f64)
}

/// Area under the curve of the receiver: the probability that a positive item's score exceeds a negative one's, ties
/// half. `None` if one kind is missing.
///
/// # Errors
/// No items; lengths that differ; a score that is not finite.
pub fn auroc(scores: &[f64], positive: &[bool]) -> Result<Option<f64>> {
    same_length("scores", scores.len(), positive.len())?;
    if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
        return Err(SupervisionError::NotFinite { what: "score", index });
    }
    Ok(area_under_curve(scores.iter().copied().zip(positive.iter().copied()).collect()))
}

/// [`auroc`] of pairs of a score and whether the item is positive. Scores that are NaN rank by their bits.
pub fn area_under_curve(mut items: Vec<(f64, bool)>) -> Option<f64> {
    items.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut area, mut at) = (0.0, 0.0, 0);
    while at < items.len() {
        // -0 and 0 are one score.
        let same = items[at..].iter().take_while(|item| item.0 == items[at].0).count().max(1);
        let up = items[at..at + same].iter().filter(|item| item.1).count() as f64;
        let down = same as f64 - up;
        area += up * (below + down / 2.0);
        below += down;
        at += same;
    }
    let up = items.iter().filter(|item| item.1).count() as f64;
    (up > 0.0 && below > 0.0).then(|| area / (up * below))
}

/// Expected calibration error: the confidence of the most probable class against how often it is right, over ten
/// equal bins of confidence, weighted by their items.
///
/// # Errors
/// No items; lengths that differ.
pub fn calibration_error(p: &Array2<f64>, truth: &[usize]) -> Result<f64> {
    const BINS: usize = 10;
    same_length("probabilities", p.nrows(), truth.len())?;
    let mut sums = [(0.0, 0.0); BINS];
    for ((row, class), truth) in p.rows().into_iter().zip(hard(p)).zip(truth) {
        let confidence = row[class];
        let bin = ((confidence * BINS as f64) as usize).min(BINS - 1);
        sums[bin].0 += confidence;
        sums[bin].1 += f64::from(class == *truth);
    }
    Ok(sums.iter().map(|(said, right)| (said - right).abs()).sum::<f64>() / truth.len() as f64)
}
