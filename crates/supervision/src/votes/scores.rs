use crate::names::Names;
use crate::{Result, SupervisionError, Votes};

/// Continuous scores of `voters` on `items`, row-major; some may be missing.
///
/// ```
/// use pilotfish_supervision::Scores;
/// let scores = Scores::with_gaps(2, 2, vec![0.9, 0.2, f64::NAN, 0.5])?;
/// assert_eq!((scores.score(0, 1), scores.score(1, 0)), (Some(0.2), None));
/// // A score at or above the threshold is a vote for class 1, a missing one abstains.
/// let votes = scores.threshold(&[0.5, 0.5])?;
/// assert_eq!((votes.vote(0, 0), votes.vote(0, 1), votes.vote(1, 0), votes.vote(1, 1)), (Some(1), Some(0), None, Some(1)));
/// // Where nothing should be missing, NaN is an error.
/// assert!(Scores::new(1, 1, vec![f64::NAN]).is_err());
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scores {
    items: Names,
    voters: Names,
    values: Vec<f64>,
}

impl Scores {
    /// Scores, none missing.
    ///
    /// # Errors
    /// A length that does not fit, a value that is not finite, no items or no voters.
    pub fn new(items: usize, voters: usize, values: Vec<f64>) -> Result<Self> {
        if let Some(index) = values.iter().position(|value| value.is_nan()) {
            let (item, voter) = (index / voters.max(1), index % voters.max(1));
            return Err(SupervisionError::BadScore { item, voter, value: f64::NAN });
        }
        Self::with_gaps(items, voters, values)
    }

    /// Scores; NaN stands for one that is missing.
    ///
    /// # Errors
    /// A length that does not fit, an infinite value, no items, no voters, nothing but gaps.
    pub fn with_gaps(items: usize, voters: usize, values: Vec<f64>) -> Result<Self> {
        for (what, got) in [("items", items), ("voters", voters)] {
            if got == 0 {
                return Err(SupervisionError::Empty { what });
            }
        }
        let want = items.saturating_mul(voters);
        if values.len() != want {
            return Err(SupervisionError::Shape { what: "scores (items x voters)", got: values.len(), want });
        }
        if let Some(index) = values.iter().position(|value| value.is_infinite()) {
            let (item, voter) = (index / voters, index % voters);
            return Err(SupervisionError::BadScore { item, voter, value: values[index] });
        }
        if values.iter().all(|value| value.is_nan()) {
            return Err(SupervisionError::Empty { what: "scores" });
        }
        Ok(Self { items: Names::numbered(items), voters: Names::numbered(voters), values })
    }

    /// The same scores under other names.
    ///
    /// # Errors
    /// As many names as there are items and voters are needed.
    pub fn with_names(mut self, items: Names, voters: Names) -> Result<Self> {
        for (what, names, old) in
            [("names of items", &items, &self.items), ("names of voters", &voters, &self.voters)]
        {
            if names.len() != old.len() {
                return Err(SupervisionError::Shape { what, got: names.len(), want: old.len() });
            }
        }
        (self.items, self.voters) = (items, voters);
        Ok(self)
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Number of voters.
    pub fn voters(&self) -> usize {
        self.voters.len()
    }

    /// Names of the items.
    pub fn item_names(&self) -> &Names {
        &self.items
    }

    /// Names of the voters.
    pub fn voter_names(&self) -> &Names {
        &self.voters
    }

    /// All values, row-major, `items x voters`; NaN where one is missing.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// One score; `None` if it is missing or either does not exist.
    pub fn score(&self, item: usize, voter: usize) -> Option<f64> {
        if voter >= self.voters() {
            return None;
        }
        self.values.get(item.checked_mul(self.voters())? + voter).copied().filter(|value| !value.is_nan())
    }

    /// Votes of two classes: 1 where a voter's score is at or above its threshold.
    ///
    /// # Errors
    /// One threshold a voter is needed, and none may be NaN.
    pub fn threshold(&self, thresholds: &[f64]) -> Result<Votes> {
        let width = self.voters();
        if thresholds.len() != width {
            return Err(SupervisionError::Shape { what: "thresholds", got: thresholds.len(), want: width });
        }
        if let Some(value) = thresholds.iter().find(|value| value.is_nan()) {
            return Err(SupervisionError::BadParameter {
                name: "threshold",
                value: *value,
                want: "a number",
            });
        }
        let vote = |(index, value): (usize, &f64)| -> i8 {
            if value.is_nan() { -1 } else { (*value >= thresholds[index % width]).into() }
        };
        let votes: Vec<i8> = self.values.iter().enumerate().map(vote).collect();
        Votes::from_dense(self.items(), width, 2, &votes)?.with_names(
            self.items.clone(),
            self.voters.clone(),
            Names::numbered(2),
        )
    }
}
