use pilotfish_model::Streams;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// Which test items the three models of one seed get right; item `i` is the same for all three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// The supervisor.
    pub weak: Vec<bool>,
    /// The student.
    pub student: Vec<bool>,
    /// The student taught the truth.
    pub ceiling: Vec<bool>,
}

impl Outcomes {
    /// Accuracies of supervisor, student and ceiling.
    pub fn accuracies(&self) -> [f64; 3] {
        let mean =
            |right: &[bool]| right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64;
        [mean(&self.weak), mean(&self.student), mean(&self.ceiling)]
    }
}

/// How the recovered gap is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PgrConfig {
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Probability that the interval covers.
    pub confidence: f64,
    /// The gap must be this many of its standard errors.
    pub resolvable: f64,
    /// Seed of the resampling.
    pub seed: u64,
}

impl Default for PgrConfig {
    fn default() -> Self {
        Self { resamples: 2000, confidence: 0.95, resolvable: 3.0, seed: 0 }
    }
}

/// The share of the gap that was recovered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovered {
    /// The ratio of means and its interval.
    Share {
        /// `(S - W) / (C - W)`.
        value: f64,
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// Floor and ceiling are too close, or in the wrong order: a ratio would be noise.
    NotResolvable,
}

impl std::fmt::Display for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Share { value, low, high } => write!(f, "{value:.2} [{low:.2}, {high:.2}]"),
            Self::NotResolvable => f.write_str("not resolvable"),
        }
    }
}

/// The performance gap recovered, with all that it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pgr {
    /// Mean accuracies of supervisor, student and ceiling.
    pub accuracies: [f64; 3],
    /// Standard error of `ceiling - weak`.
    pub gap_error: f64,
    /// What was recovered.
    pub recovered: Recovered,
}

impl Pgr {
    /// From runs with different seeds: means over seeds, then their ratio, never a mean of ratios. Resamples draw
    /// seeds, and within each its test items, the three models together.
    ///
    /// ```
    /// use pilotfish_supervision::weak_to_strong::{Outcomes, Pgr, PgrConfig, Recovered};
    /// let right = |n: usize| (0..1000).map(|i| i < n).collect::<Vec<_>>();
    /// let run = Outcomes { weak: right(600), student: right(700), ceiling: right(800) };
    /// let pgr = Pgr::of(&[run], &PgrConfig::default())?;
    /// assert!(matches!(pgr.recovered, Recovered::Share { value, low, high }
    ///     if (value - 0.5).abs() < 1e-12 && low < 0.5 && 0.5 < high));
    /// # Ok::<(), pilotfish_supervision::SupervisionError>(())
    /// ```
    ///
    /// # Errors
    /// No runs, a run without items or with lists of different lengths; settings outside their ranges.
    pub fn of(runs: &[Outcomes], config: &PgrConfig) -> Result<Self> {
        for run in runs {
            let want = run.weak.len();
            if want == 0 {
                return Err(SupervisionError::Empty { what: "test items" });
            }
            for got in [run.student.len(), run.ceiling.len()] {
                if got != want {
                    return Err(SupervisionError::Shape { what: "outcomes", got, want });
                }
            }
        }
        let resampled = |run: usize, items: &[usize]| -> Result<[f64; 3]> {
            let mut right = [0usize; 3];
            let lists = [&runs[run].weak, &runs[run].student, &runs[run].ceiling];
            for &item in items {
                right.iter_mut().zip(lists).for_each(|(sum, list)| *sum += usize::from(list[item]));
            }
            Ok(right.map(|right| right as f64 / items.len() as f64))
        };
        let counts: Vec<usize> = runs.iter().map(|run| run.weak.len()).collect();
        let own: Vec<[f64; 3]> = runs.iter().map(Outcomes::accuracies).collect();
        estimate(&counts, &own, config, resampled)
    }

    /// The same for any measure of what models say against the truth, such as balanced accuracy. Measures for which lower is
    /// better recover the same share: both signs cancel.
    ///
    /// # Errors
    /// As [`Pgr::of`]; whatever the measure refuses. A resample that the measure has no value for takes that of the run.
    pub fn measured(
        runs: &[Said],
        better: Better,
        measure: impl Fn(&[usize], &[usize]) -> Result<f64>,
        config: &PgrConfig,
    ) -> Result<Self> {
        let sign = if better == Better::Higher { 1.0 } else { -1.0 };
        let mut own = Vec::new();
        for run in runs {
            let want = run.truth.len();
            let mut three = [0.0; 3];
            for (value, said) in three.iter_mut().zip(&run.said) {
                if said.len() != want {
                    return Err(SupervisionError::Shape { what: "classes", got: said.len(), want });
                }
                *value = sign * measure(said, &run.truth)?;
            }
            own.push(three);
        }
        let resampled = |run: usize, items: &[usize]| -> Result<[f64; 3]> {
            let take = |list: &[usize]| items.iter().map(|&item| list[item]).collect::<Vec<_>>();
            let truth = take(&runs[run].truth);
            let mut three = own[run];
            for (value, said) in three.iter_mut().zip(&runs[run].said) {
                let found = measure(&take(said), &truth)?;
                if found.is_finite() {
                    *value = sign * found;
                }
            }
            Ok(three)
        };
        let counts: Vec<usize> = runs.iter().map(|run| run.truth.len()).collect();
        let mut pgr = estimate(&counts, &own, config, resampled)?;
        pgr.accuracies = pgr.accuracies.map(|value| sign * value);
        Ok(pgr)
    }
}

/// What the three models of one seed say of the same test items, and the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Classes said by the supervisor, the student and the ceiling.
    pub said: [Vec<usize>; 3],
    /// The truth.
    pub truth: Vec<usize>,
}

/// Which way a measure improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    /// Accuracy, recall.
    Higher,
    /// Toxicity, error.
    Lower,
}

/// Means over runs, and resamples of seeds and of the test items within each.
fn estimate(
    counts: &[usize],
    own: &[[f64; 3]],
    config: &PgrConfig,
    resampled: impl Fn(usize, &[usize]) -> Result<[f64; 3]>,
) -> Result<Pgr> {
    let refuse = |name, value, want| Err(SupervisionError::BadParameter { name, value, want });
    if !(100..=1_000_000).contains(&config.resamples) {
        return refuse("resamples", config.resamples as f64, "from 100 to a million");
    }
    if !(config.confidence > 0.0 && config.confidence < 1.0) {
        return refuse("confidence", config.confidence, "between 0 and 1");
    }
    if !(config.resolvable > 0.0) {
        return refuse("resolvable", config.resolvable, "above 0");
    }
    if counts.is_empty() {
        return Err(SupervisionError::Empty { what: "runs" });
    }
    let mean = |of: &[[f64; 3]]| {
        let mut sum = [0.0; 3];
        of.iter().for_each(|one| sum.iter_mut().zip(one).for_each(|(sum, x)| *sum += x / of.len() as f64));
        sum
    };
    let accuracies = mean(own);
    let mut rng = Streams::new(config.seed).stream("recovered");
    let mut resamples = Vec::with_capacity(config.resamples);
    let mut items = Vec::new();
    for _ in 0..config.resamples {
        let mut drawn = Vec::with_capacity(counts.len());
        for _ in 0..counts.len() {
            let run = rng.random_range(0..counts.len());
            items.clear();
            items.extend((0..counts[run]).map(|_| rng.random_range(0..counts[run])));
            drawn.push(resampled(run, &items)?);
        }
        resamples.push(mean(&drawn));
    }
    let gaps: Vec<f64> = resamples.iter().map(|[weak, _, ceiling]| ceiling - weak).collect();
    let middle = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let spread = gaps.iter().map(|gap| (gap - middle).powi(2)).sum::<f64>() / (gaps.len() - 1) as f64;
    let gap_error = spread.sqrt();
    let [weak, student, ceiling] = accuracies;
    let gap = ceiling - weak;
    if !(gap > 0.0 && gap >= config.resolvable * gap_error) {
        return Ok(Pgr { accuracies, gap_error, recovered: Recovered::NotResolvable });
    }
    let ratio = |[weak, student, ceiling]: [f64; 3]| (student - weak) / (ceiling - weak);
    let mut ratios: Vec<f64> = resamples
        .into_iter()
        // Three standard errors from 0, a gap of a resample is hardly ever 0; such a resample says nothing.
        .filter(|[weak, _, ceiling]| ceiling > weak)
        .map(ratio)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |q: f64| ratios[((q * (ratios.len() - 1) as f64).round() as usize).min(ratios.len() - 1)];
    let tail = (1.0 - config.confidence) / 2.0;
    let recovered =
        Recovered::Share { value: ratio([weak, student, ceiling]), low: at(tail), high: at(1.0 - tail) };
    Ok(Pgr { accuracies, gap_error, recovered })
}

/// PGR and its standard error from three independent accuracies on `n` items each, by the delta method; `None` when
/// the gap is less than three of its standard errors.
///
/// ```
/// use pilotfish_supervision::weak_to_strong::delta_method;
/// let (pgr, error) = delta_method([0.75, 0.80, 0.90], 2000).unwrap();
/// assert!((pgr - 1.0 / 3.0).abs() < 1e-12 && (error - 0.075).abs() < 5e-4);
/// assert!(delta_method([0.75, 0.80, 0.76], 2000).is_none());
/// ```
pub fn delta_method([weak, student, ceiling]: [f64; 3], n: usize) -> Option<(f64, f64)> {
    let variance = |p: f64| p * (1.0 - p) / n.max(1) as f64;
    let gap = ceiling - weak;
    let error = (variance(weak) + variance(ceiling)).sqrt();
    if !(gap > 0.0 && gap >= 3.0 * error) {
        return None;
    }
    let slopes = [(student - ceiling) / gap.powi(2), 1.0 / gap, -(student - weak) / gap.powi(2)];
    let sum: f64 =
        slopes.iter().zip([weak, student, ceiling]).map(|(slope, p)| slope * slope * variance(p)).sum();
    Some(((student - weak) / gap, sum.sqrt()))
}
