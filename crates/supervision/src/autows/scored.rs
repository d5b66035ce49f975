use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

/// What labels with gaps are worth. Accuracy on covered items alone flatters a method that speaks rarely, so all forms
/// come together.
///
/// ```
/// use pilotfish_supervision::autows::Scored;
/// let scored = Scored { items: 100, covered: 40, right: 32, classes: 10 };
/// assert_eq!((scored.coverage(), scored.accuracy_covered()), (0.4, Some(0.8)));
/// assert_eq!((scored.accuracy(), scored.accuracy_guessing()), (0.32, 0.38));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scored {
    /// Items.
    pub items: usize,
    /// Items that got a label.
    pub covered: usize,
    /// Items that got the right one.
    pub right: usize,
    /// Classes.
    pub classes: usize,
}

impl Scored {
    /// Share of items with a label.
    pub fn coverage(&self) -> f64 {
        self.covered as f64 / self.items.max(1) as f64
    }

    /// Share of right labels among items that have one; `None` if none has.
    pub fn accuracy_covered(&self) -> Option<f64> {
        (self.covered > 0).then(|| self.right as f64 / self.covered as f64)
    }

    /// Share of items with the right label: an item without one is wrong.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.items.max(1) as f64
    }

    /// The same if items without a label were guessed, every class being equally likely.
    pub fn accuracy_guessing(&self) -> f64 {
        let guessed = (self.items - self.covered.min(self.items)) as f64 / self.classes.max(1) as f64;
        (self.right as f64 + guessed) / self.items.max(1) as f64
    }
}

/// Counts labels against the truth.
///
/// # Errors
/// Lengths that differ; no items; a label or truth that is not below `classes`.
pub fn score(labels: &[Option<usize>], truth: &[usize], classes: usize) -> Result<Scored> {
    if labels.len() != truth.len() {
        return Err(SupervisionError::Shape { what: "labels", got: labels.len(), want: truth.len() });
    }
    if truth.is_empty() {
        return Err(SupervisionError::Empty { what: "items" });
    }
    if let Some(&got) = labels.iter().flatten().chain(truth).find(|class| **class >= classes) {
        return Err(SupervisionError::Shape { what: "class", got, want: classes });
    }
    let covered = labels.iter().flatten().count();
    let right = labels.iter().zip(truth).filter(|(label, truth)| **label == Some(**truth)).count();
    Ok(Scored { items: truth.len(), covered, right, classes })
}

/// Performance profile: for every method and factor `tau >= 1`, the share of tasks on which the best method's value is
/// at most `tau` times this method's. `values[task][method]`, larger is better; a method of value 0 is within no
/// factor, unless all are 0.
///
/// # Errors
/// No tasks or methods; rows of different lengths; a value or factor that is negative or not finite.
///
/// ```
/// use pilotfish_supervision::autows::performance_profile;
/// let profile = performance_profile(&[vec![0.8, 0.4], vec![0.6, 0.9]], &[1.0, 1.5, 2.0])?;
/// assert_eq!(profile, [[0.5, 1.0, 1.0], [0.5, 0.5, 1.0]]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
pub fn performance_profile(values: &[Vec<f64>], taus: &[f64]) -> Result<Vec<Vec<f64>>> {
    let methods = values.first().map_or(0, Vec::len);
    if methods == 0 {
        return Err(SupervisionError::Empty { what: "tasks and methods" });
    }
    for (index, row) in values.iter().enumerate() {
        if row.len() != methods {
            return Err(SupervisionError::Shape { what: "methods", got: row.len(), want: methods });
        }
        if row.iter().any(|value| !(*value >= 0.0 && value.is_finite())) {
            return Err(SupervisionError::NotFinite { what: "value", index });
        }
    }
    if let Some(&value) = taus.iter().find(|tau| !(**tau >= 1.0 && tau.is_finite())) {
        return Err(SupervisionError::BadParameter { name: "tau", value, want: "at least 1 and finite" });
    }
    let within = |row: &Vec<f64>, method: usize, tau: f64| {
        let best = row.iter().copied().fold(0.0, f64::max);
        // Equal to rounding counts: a ratio and its product do not round alike.
        best <= tau * row[method] * (1.0 + 1e-12)
    };
    let share = |method: usize, tau: f64| {
        values.iter().filter(|row| within(row, method, tau)).count() as f64 / values.len() as f64
    };
    Ok((0..methods).map(|method| taus.iter().map(|tau| share(method, *tau)).collect()).collect())
}
