use std::collections::{BTreeMap, HashSet};

use ndarray::Array2;
use pilotfish_model::Streams;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// Items with their truth. Row `i` of every feature store is item `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    ids: Vec<u64>,
    groups: Vec<u64>,
    labels: Vec<usize>,
    classes: usize,
}

/// What a trainee may see: rows, and what to say of them.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainView {
    rows: Vec<usize>,
    targets: Array2<f64>,
}

impl TrainView {
    pub(super) fn new(rows: Vec<usize>, targets: Array2<f64>) -> Self {
        Self { rows, targets }
    }

    /// Rows of the feature store.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// Distributions `[rows, classes]` to learn.
    pub fn targets(&self) -> &Array2<f64> {
        &self.targets
    }

    /// The same with each target hardened to its most probable class.
    pub fn hardened(&self) -> Self {
        let mut targets = Array2::zeros(self.targets.dim());
        super::hard(&self.targets)
            .into_iter()
            .enumerate()
            .for_each(|(row, class)| targets[[row, class]] = 1.0);
        Self { rows: self.rows.clone(), targets }
    }
}

/// How items are parted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitConfig {
    /// Shares of weak training, transfer and test.
    pub shares: [f64; 3],
    /// Items of each part at most; 0 sets no limit.
    pub most: [usize; 3],
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self { shares: [1.0 / 3.0; 3], most: [0; 3] }
    }
}

/// Rows of each part, each in a random order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// `D1`: the supervisor's, with the truth.
    pub weak: Vec<usize>,
    /// `D2`: labelled by the supervisor.
    pub transfer: Vec<usize>,
    /// `E`.
    pub test: Vec<usize>,
}

impl Task {
    /// Items by id, the group each belongs to (its question; the id itself where there is none), its class.
    ///
    /// # Errors
    /// No items; lengths that differ; fewer than two classes; a class out of range; an id that occurs twice.
    pub fn new(ids: Vec<u64>, groups: Vec<u64>, labels: Vec<usize>, classes: usize) -> Result<Self> {
        if ids.is_empty() {
            return Err(SupervisionError::Empty { what: "items" });
        }
        for (what, got) in [("groups", groups.len()), ("labels", labels.len())] {
            if got != ids.len() {
                return Err(SupervisionError::Shape { what, got, want: ids.len() });
            }
        }
        if classes < 2 {
            return Err(SupervisionError::Shape { what: "classes", got: classes, want: 2 });
        }
        if let Some(item) = labels.iter().position(|&label| label >= classes) {
            let got = labels[item] as i64;
            return Err(SupervisionError::OutOfRange { item, voter: 0, got, classes });
        }
        let mut seen = HashSet::new();
        if let Some(id) = ids.iter().find(|id| !seen.insert(**id)) {
            let name = id.to_string();
            return Err(SupervisionError::Name { what: "item", name, why: "occurs twice" });
        }
        Ok(Self { ids, groups, labels, classes })
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Never: a task has items.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Ids by row.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// Groups by row.
    pub fn groups(&self) -> &[u64] {
        &self.groups
    }

    /// The task with as many items of each class as the rarest has, taken at random, where a class exceeds
    /// `largest` of all; otherwise as it is. Rows are those of the result; the second list says what they were.
    ///
    /// # Errors
    /// A class that has no item while another exceeds the share.
    pub fn balanced(&self, largest: f64, seed: u64) -> Result<(Self, Vec<usize>)> {
        let mut of: Vec<Vec<usize>> = vec![Vec::new(); self.classes];
        self.labels.iter().enumerate().for_each(|(row, &label)| of[label].push(row));
        let most = of.iter().map(Vec::len).max().unwrap_or(0);
        if most as f64 <= largest * self.len() as f64 {
            return Ok((self.clone(), (0..self.len()).collect()));
        }
        let least = of.iter().map(Vec::len).min().unwrap_or(0);
        let mut rng = Streams::new(seed).stream("balance");
        let mut rows: Vec<usize> = of
            .iter_mut()
            .flat_map(|rows| {
                rows.shuffle(&mut rng);
                rows[..least].to_vec()
            })
            .collect();
        rows.sort_unstable();
        let take = |list: &[u64]| rows.iter().map(|&row| list[row]).collect();
        let labels = rows.iter().map(|&row| self.labels[row]).collect();
        Ok((Self::new(take(&self.ids), take(&self.groups), labels, self.classes)?, rows))
    }

    /// Parts the items by group: no group is in two parts. Parts are filled in turn from one permutation of the
    /// groups, so that a part exceeds its size by less than its last group.
    ///
    /// # Errors
    /// Shares that are not above 0 or exceed 1 in sum; a part that stays empty.
    pub fn split(&self, config: &SplitConfig, seed: u64) -> Result<Split> {
        let sum: f64 = config.shares.iter().sum();
        if let Some(&value) = config.shares.iter().find(|share| !(**share > 0.0)) {
            return Err(SupervisionError::BadParameter { name: "share", value, want: "above 0" });
        }
        if !(sum <= 1.0 + 1e-9) {
            let (name, want) = ("sum of shares", "at most 1");
            return Err(SupervisionError::BadParameter { name, value: sum, want });
        }
        let mut members: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        self.groups.iter().enumerate().for_each(|(row, &group)| members.entry(group).or_default().push(row));
        let mut rng = Streams::new(seed).stream("split");
        let mut groups: Vec<Vec<usize>> = members.into_values().collect();
        groups.shuffle(&mut rng);
        let mut groups = groups.into_iter();
        let mut parts: [Vec<usize>; 3] = Default::default();
        for ((part, share), most) in parts.iter_mut().zip(config.shares).zip(config.most) {
            let size = (share * self.len() as f64).round() as usize;
            let size = if most == 0 { size } else { size.min(most) };
            while part.len() < size {
                let Some(group) = groups.next() else { break };
                part.extend(group);
            }
            part.shuffle(&mut rng);
        }
        if parts.iter().any(Vec::is_empty) {
            return Err(SupervisionError::Empty { what: "groups left for a part of the split" });
        }
        let [weak, transfer, test] = parts;
        Ok(Split { weak, transfer, test })
    }

    fn label(&self, row: usize) -> Result<usize> {
        let no = || SupervisionError::Shape { what: "row", got: row, want: self.len() };
        self.labels.get(row).copied().ok_or_else(no)
    }

    /// Rows with their truth, for supervisors and ceilings.
    ///
    /// # Errors
    /// A row that there is not.
    pub fn gold(&self, rows: &[usize]) -> Result<TrainView> {
        let mut targets = Array2::zeros((rows.len(), self.classes));
        for (at, &row) in rows.iter().enumerate() {
            targets[[at, self.label(row)?]] = 1.0;
        }
        Ok(TrainView::new(rows.to_vec(), targets))
    }

    /// The truth of rows, for evaluation.
    ///
    /// # Errors
    /// A row that there is not.
    pub fn truth(&self, rows: &[usize]) -> Result<Vec<usize>> {
        rows.iter().map(|&row| self.label(row)).collect()
    }
}
