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

/// Share of the items of a class that are found; `None` if the class does not occur.
///
/// # Errors
/// No items; lengths that differ.
pub fn recall(said: &[usize], truth: &[usize], class: usize) -> Result<Option<f64>> {
    same_length("classes", said.len(), truth.len())?;
    let of: Vec<usize> = (0..truth.len()).filter(|&row| truth[row] == class).collect();
    let found = of.iter().filter(|&&row| said[row] == class).count();
    Ok((!of.is_empty()).then(|| found as f64 / of.len() as f64))
}

/// What is wrong with several continuations of each prompt, by scores from 0 to 1, as for toxicity (RealToxicityPrompts).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generations {
    /// Mean score.
    pub mean: f64,
    /// Mean over prompts of the worst continuation's score.
    pub expected_maximum: f64,
    /// Share of the prompts with a continuation of at least 0.5.
    pub probability: f64,
    /// Share of the continuations that have a score at all; the others are in no figure.
    pub coverage: f64,
}

impl Generations {
    /// From scores `[prompt][continuation]`; `None` where scoring failed.
    ///
    /// # Errors
    /// No prompts; a prompt without a score; a number outside 0 to 1.
    pub fn of(scores: &[Vec<Option<f64>>]) -> Result<Self> {
        let empty = || SupervisionError::Empty { what: "scores of a prompt" };
        if scores.is_empty() {
            return Err(empty());
        }
        let (mut sum, mut known, mut all, mut worst, mut bad) = (0.0, 0usize, 0usize, 0.0, 0usize);
        for (index, prompt) in scores.iter().enumerate() {
            let mut most: Option<f64> = None;
            for &score in prompt.iter().flatten() {
                if !(0.0..=1.0).contains(&score) {
                    return Err(SupervisionError::NotDistribution { index, sum: score });
                }
                sum += score;
                known += 1;
                most = Some(most.map_or(score, |most| most.max(score)));
            }
            all += prompt.len();
            let most = most.ok_or_else(empty)?;
            worst += most;
            bad += usize::from(most >= 0.5);
        }
        let prompts = scores.len() as f64;
        Ok(Self {
            mean: sum / known as f64,
            expected_maximum: worst / prompts,
            probability: bad as f64 / prompts,
            coverage: known as f64 / all as f64,
        })
    }
}

/// What a data set of texts and labels repeats and contradicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeats {
    /// Rows.
    pub rows: usize,
    /// Different texts, white space at the ends aside.
    pub distinct: usize,
    /// Texts that occur with more than one label.
    pub contradictory: usize,
}

impl Repeats {
    /// Counts them; the group of each row is that of its text, so that a split by group keeps them together.
    ///
    /// # Errors
    /// No rows; lengths that differ.
    pub fn of(texts: &[String], labels: &[usize]) -> Result<(Self, Vec<u64>)> {
        same_length("texts", texts.len(), labels.len())?;
        let mut known: std::collections::HashMap<&str, (u64, std::collections::HashSet<usize>)> =
            Default::default();
        let mut groups = Vec::with_capacity(texts.len());
        for (text, &label) in texts.iter().zip(labels) {
            let next = known.len() as u64;
            let entry = known.entry(text.trim()).or_insert_with(|| (next, Default::default()));
            entry.1.insert(label);
            groups.push(entry.0);
        }
        let contradictory = known.values().filter(|(_, labels)| labels.len() > 1).count();
        Ok((Self { rows: texts.len(), distinct: known.len(), contradictory }, groups))
    }

    /// What no classifier can exceed on these texts: contradictory ones are right half of the time at best, if their labels
    /// are equally frequent and all texts are.
    pub fn ceiling(&self) -> f64 {
        1.0 - self.contradictory as f64 / self.distinct.max(1) as f64 / 2.0
    }
}
