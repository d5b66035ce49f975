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
        if runs.is_empty() {
            return Err(SupervisionError::Empty { what: "runs" });
        }
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
        let mean = |of: &[[f64; 3]]| {
            let mut sum = [0.0; 3];
            of.iter()
                .for_each(|one| sum.iter_mut().zip(one).for_each(|(sum, x)| *sum += x / of.len() as f64));
            sum
        };
        let accuracies = mean(&runs.iter().map(Outcomes::accuracies).collect::<Vec<_>>());
        let mut rng = Streams::new(config.seed).stream("recovered");
        let resamples: Vec<[f64; 3]> = (0..config.resamples)
            .map(|_| {
                let drawn: Vec<[f64; 3]> = (0..runs.len())
                    .map(|_| {
                        let run = &runs[rng.random_range(0..runs.len())];
                        let mut right = [0usize; 3];
                        for _ in 0..run.weak.len() {
                            let item = rng.random_range(0..run.weak.len());
                            let lists = [&run.weak, &run.student, &run.ceiling];
                            right
                                .iter_mut()
                                .zip(lists)
                                .for_each(|(sum, list)| *sum += usize::from(list[item]));
                        }
                        right.map(|right| right as f64 / run.weak.len() as f64)
                    })
                    .collect();
                mean(&drawn)
            })
            .collect();
        let gaps: Vec<f64> = resamples.iter().map(|[weak, _, ceiling]| ceiling - weak).collect();
        let middle = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let spread = gaps.iter().map(|gap| (gap - middle).powi(2)).sum::<f64>() / (gaps.len() - 1) as f64;
        let gap_error = spread.sqrt();
        let [weak, student, ceiling] = accuracies;
        let gap = ceiling - weak;
        if !(gap > 0.0 && gap >= config.resolvable * gap_error) {
            return Ok(Self { accuracies, gap_error, recovered: Recovered::NotResolvable });
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
        Ok(Self { accuracies, gap_error, recovered })
    }
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
