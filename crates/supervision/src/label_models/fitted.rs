use super::VoterQuality;
use super::rule::Rule;
use crate::{Result, Rows, Votes};

/// Classes whose probabilities differ by less are tied.
pub(crate) const TIE: f64 = 1e-10;

/// Probabilities of classes, item by item.
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    pub(crate) classes: usize,
    /// `rows x classes`.
    pub(crate) values: Vec<f64>,
    /// Row of each item, if items share rows.
    pub(crate) of: Option<Vec<u32>>,
}

impl Posterior {
    /// Number of items.
    pub fn items(&self) -> usize {
        self.of.as_ref().map_or(self.values.len() / self.classes, Vec::len)
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Probabilities of the classes of an item; they sum to 1.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn row(&self, item: usize) -> &[f64] {
        let row = self.of.as_ref().map_or(item, |of| of[item] as usize);
        &self.values[row * self.classes..(row + 1) * self.classes]
    }

    /// The most probable class, the first of equal ones.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn label(&self, item: usize) -> usize {
        label(self.row(item)).0
    }

    /// Whether several classes are equally probable.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn tied(&self, item: usize) -> bool {
        label(self.row(item)).1
    }

    /// The most probable class of every item.
    pub fn labels(&self) -> Vec<usize> {
        (0..self.items()).map(|item| self.label(item)).collect()
    }

    /// Share of items whose label is `truth`; items without one do not count. `None` if none has.
    pub fn accuracy(&self, truth: &[Option<usize>]) -> Option<f64> {
        let known =
            truth.iter().take(self.items()).enumerate().filter_map(|(item, class)| Some((item, (*class)?)));
        let (right, all) = known.fold((0u64, 0u64), |(right, all), (item, class)| {
            (right + u64::from(self.label(item) == class), all + 1)
        });
        (all > 0).then(|| right as f64 / all as f64)
    }
}

/// The first of the most probable classes, and whether there are others.
pub(crate) fn label(row: &[f64]) -> (usize, bool) {
    let most = row.iter().copied().fold(f64::MIN, f64::max);
    let mut best = row.iter().enumerate().filter(|(_, value)| **value >= most - TIE);
    (best.next().map_or(0, |(class, _)| class), best.next().is_some())
}

/// Whether a fit got where it was going.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Convergence {
    /// There was nothing to iterate.
    Closed,
    /// The last step changed less than the tolerance.
    Converged {
        /// Steps taken.
        iterations: usize,
    },
    /// Steps ran out while the objective still moved: the parameters are not those the model asks for.
    NotConverged {
        /// Steps taken.
        iterations: usize,
        /// What the last step changed, in the units of the tolerance.
        change: f64,
    },
}

impl Convergence {
    /// Whether the parameters can be taken for the model's own.
    pub fn is_converged(self) -> bool {
        !matches!(self, Self::NotConverged { .. })
    }
}

/// Something about a fit that its user should know.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// A voter whose votes do not vary: nothing was learnt from it.
    ConstantVoter {
        /// The voter.
        voter: usize,
    },
    /// A class that nobody votes for.
    UnusedClass {
        /// The class.
        class: usize,
    },
    /// A voter that is worse than chance, by this fit.
    Adversarial {
        /// The voter.
        voter: usize,
    },
    /// Two voters that always agree: each counts in full, as if they had decided independently.
    Duplicates {
        /// The first.
        a: usize,
        /// The second.
        b: usize,
    },
    /// An estimate outside its range, moved to the nearest end.
    Clipped {
        /// The voter.
        voter: usize,
    },
    /// The objective has not levelled off: more steps, or larger ones, would change the answer.
    Undertrained {
        /// Share of the objective that the last tenth of the steps removed. Next to nothing where steps are so small that the
        /// gradient is still what it was at the start.
        slope: f64,
    },
    /// The class balance was taken to be equal; the votes fit any other as well.
    AssumedPrior,
    /// The class balance disagrees with what the third moments of the votes say.
    DoubtfulPrior {
        /// The share of class 1 that was used.
        used: f64,
        /// The share that third moments suggest.
        third_moments: f64,
    },
}

impl Warning {
    /// The warning in words, with the names that `votes` has.
    pub fn describe(&self, votes: &Votes) -> String {
        let voter = |index: usize| votes.voter_names().get(index).into_owned();
        match *self {
            Self::ConstantVoter { voter: i } => format!("voter {:?} never changes its vote", voter(i)),
            Self::UnusedClass { class } => {
                format!("nobody votes for class {:?}", votes.class_names().get(class))
            }
            Self::Adversarial { voter: i } => format!("voter {:?} is worse than chance", voter(i)),
            Self::Duplicates { a, b } => {
                format!("voters {:?} and {:?} always agree; each counts in full", voter(a), voter(b))
            }
            Self::Clipped { voter: i } => format!("a rate of voter {:?} was outside 0 to 1", voter(i)),
            Self::Undertrained { slope } if slope.abs() < 1e-3 => {
                "the steps are too small: the loss is hardly less steep than at the start".to_owned()
            }
            Self::Undertrained { slope } => {
                format!(
                    "the loss was still falling, by {:.1} % in the last tenth of the steps",
                    100.0 * slope
                )
            }
            Self::AssumedPrior => "the class balance was taken to be equal".to_owned(),
            Self::DoubtfulPrior { used, third_moments } => {
                format!(
                    "third moments put the share of the second class at {third_moments:.3}, {used:.3} was used"
                )
            }
        }
    }
}

/// What a label model found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fitted {
    /// Name of the model.
    pub model: &'static str,
    /// Probabilities of the classes of every item.
    pub posterior: Posterior,
    /// Class balance that the model used or found.
    pub prior: Vec<f64>,
    /// Quality of every voter.
    pub voters: Vec<VoterQuality>,
    /// The objective after every step; log-likelihoods grow, losses shrink. Empty if there is none.
    pub objective: Vec<f64>,
    /// Whether it converged.
    pub convergence: Convergence,
    /// What to be careful about.
    pub warnings: Vec<Warning>,
    pub(crate) rule: Rule,
}

impl Fitted {
    /// The most probable class of every item, the first of equal ones.
    pub fn labels(&self) -> Vec<usize> {
        self.posterior.labels()
    }

    /// Applies what was learnt to other votes of the same voters and classes.
    ///
    /// # Errors
    /// Another number of voters or classes.
    pub fn predict(&self, votes: &Votes) -> Result<Posterior> {
        let rows = Rows::of(votes)?;
        let mut posterior = self.rule.posterior(&rows)?;
        posterior.of = rows.map().map(<[u32]>::to_vec);
        Ok(posterior)
    }

    /// P(vote | truth) of a voter as the model has it; `None` for models that count weights, and beyond their numbers.
    pub fn rate(&self, voter: usize, truth: usize, vote: usize) -> Option<f64> {
        let k = self.prior.len();
        match &self.rule {
            Rule::LogLinear { table, .. } if truth < k && vote < k => {
                table.get((voter * k + vote) * k + truth).map(|log| log.exp())
            }
            _ => None,
        }
    }

    /// From one posterior a row to one an item.
    pub(crate) fn for_items(mut self, rows: &Rows<'_>) -> Self {
        self.posterior.of = rows.map().map(<[u32]>::to_vec);
        self
    }
}
