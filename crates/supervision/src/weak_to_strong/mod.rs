//! Weak-to-strong generalisation: a weak supervisor learns from the truth and labels other items, a strong student
//! learns from those labels, and the question is how much of what the student could do with the truth comes back.
//!
//! 1. [`Task::split`] parts the items by group into `D1` (weak training), `D2` (transfer) and `E` (test).
//! 2. The supervisor is trained on `D1` with the truth. Floor: its accuracy on `E`.
//! 3. It labels `D2` by probabilities. It never labels what it was trained on.
//! 4. The student is trained on `D2` with those labels. Its accuracy is measured on `E` against the truth.
//! 5. The ceiling is the same student trained on `D2` with the truth.
//! 6. `PGR = (student - floor) / (ceiling - floor)` ([`Pgr`]).
//!
//! [`Protocol`] runs these steps for anything that implements [`Trainee`], for several students of one supervisor, and
//! with models between the two.
//! What a trainee gets is a [`TrainView`]: rows and targets. The truth of a task is in another type that it never
//! sees, and weak labels read from a file ([`WeakLabels::read`]) leave the file's gold columns behind.
//!
//! | setting | default | source |
//! |---|---|---|
//! | parts | 1/3 each of `D1`, `D2`, `E` | ours; the paper halves what is not test |
//! | gap that is resolvable | 3 standard errors | ours |
//! | resamples | 2,000, of test items nested in seeds | ours |
//!
//! **Deviations.** The ceiling is trained on `D2`, so that only labels differ, as in the older entry of the reference
//! code; its sweep trains floors and ceilings once, on `D1`. PGR is a ratio of means over seeds with an interval, and
//! [`Recovered::NotResolvable`] where the gap is not told from 0; the reference code takes a median of ratios, which
//! gives 0.81 for a task on which every ceiling is at chance. The papers fine-tune whole language models; what is
//! trained is the trainee's business and belongs into every report.
//!
//! References: Burns et al., arXiv 2312.09390; openai/weak-to-strong `weak_to_strong/train.py`, `train_simple.py`,
//! `sweep.py`; EleutherAI/w2s.
//!
//! ```
//! use ndarray::{Array1, Array2, Axis};
//! use pilotfish_supervision::Result;
//! use pilotfish_supervision::weak_to_strong::{Fitted, Protocol, SplitConfig, Task, TrainView, Trainee};
//!
//! /// Says of every item what it heard on average.
//! struct Prior(Array1<f64>);
//! impl Trainee for Prior {
//!     fn fit(&self, train: &TrainView, _seed: u64) -> Result<Box<dyn Fitted>> {
//!         Ok(Box::new(Prior(train.targets().sum_axis(Axis(0)) / train.rows().len() as f64)))
//!     }
//! }
//! impl Fitted for Prior {
//!     fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
//!         Ok(Array2::from_shape_fn((rows.len(), self.0.len()), |(_, class)| self.0[class]))
//!     }
//! }
//! let prior = Prior(Array1::default(0));
//! let task = Task::new((0..90).collect(), (0..90).collect(), vec![1; 90], 2)?;
//! let split = SplitConfig::default();
//! let protocol = Protocol { teachers: vec![&prior], students: vec![&prior], ceiling: &prior, split };
//! let run = protocol.run(&task, 7)?;
//! assert_eq!(run.outcomes(0)?.accuracies(), [1.0; 3]);
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

mod items;
mod labels;
mod measures;
mod recovered;

use ndarray::Array2;

pub use items::{Split, SplitConfig, Task, TrainView};
pub use labels::{LabelRow, WeakEvaluation, WeakLabels};
pub use measures::{
    Agreement, Generations, Repeats, area_under_curve, auroc, balanced_accuracy, calibration_error, recall,
    weighted_f1,
};
pub use recovered::{Better, Outcomes, Pgr, PgrConfig, Recovered, Said, delta_method};

use crate::{Result, SupervisionError};

/// Something that learns from rows of a feature store of its own and from targets.
pub trait Trainee {
    /// Trains from the start.
    ///
    /// # Errors
    /// Whatever training refuses.
    fn fit(&self, train: &TrainView, seed: u64) -> Result<Box<dyn Fitted>>;
}

/// A trained model.
pub trait Fitted {
    /// Probabilities `[rows, classes]`.
    ///
    /// # Errors
    /// Whatever the model refuses.
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>>;
}

/// Several models that learn the same items, each in its own way or from its own store, and say the mean of their
/// probabilities. The first has the ensemble's seed, the next ones those that follow, so that one member is itself.
pub struct Ensemble {
    /// The members.
    pub members: Vec<Box<dyn Trainee>>,
}

impl Trainee for Ensemble {
    fn fit(&self, train: &TrainView, seed: u64) -> Result<Box<dyn Fitted>> {
        if self.members.is_empty() {
            return Err(SupervisionError::Empty { what: "members of the ensemble" });
        }
        let seeds = (0..).map(|at| seed.wrapping_add(at));
        let fitted = self.members.iter().zip(seeds).map(|(member, seed)| member.fit(train, seed));
        Ok(Box::new(FittedEnsemble(fitted.collect::<Result<_>>()?)))
    }
}

struct FittedEnsemble(Vec<Box<dyn Fitted>>);

impl Fitted for FittedEnsemble {
    fn predict(&self, rows: &[usize]) -> Result<Array2<f64>> {
        ensemble(&self.0.iter().map(|member| member.predict(rows)).collect::<Result<Vec<_>>>()?)
    }
}

/// The steps of a run.
pub struct Protocol<'a> {
    /// From the weakest: the supervisor, and models that hand its labels on. The truth of `D1` is used once, for the
    /// first; every other model learns what its predecessor says of the half that its predecessor did not learn from:
    /// `D2`, then `D1`, and so on.
    pub teachers: Vec<&'a dyn Trainee>,
    /// Students of the last teacher's labels.
    pub students: Vec<&'a dyn Trainee>,
    /// A student by cross-entropy, to learn the truth of the items that the students learn labels of.
    pub ceiling: &'a dyn Trainee,
    /// How items are parted.
    pub split: SplitConfig,
}

/// One run of the protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct ProtocolRun {
    /// The parts.
    pub split: Split,
    /// The last teacher's labels.
    pub labels: WeakLabels,
    /// The supervisor's probabilities of the test part.
    pub weak: Array2<f64>,
    /// Each student's.
    pub students: Vec<Array2<f64>>,
    /// The ceiling's.
    pub ceiling: Array2<f64>,
    /// The truth of the test part.
    pub truth: Vec<usize>,
}

impl ProtocolRun {
    fn student(&self, student: usize) -> Result<&Array2<f64>> {
        let no = || SupervisionError::Shape { what: "student", got: student, want: self.students.len() };
        self.students.get(student).ok_or_else(no)
    }

    /// Which test items the supervisor, a student and the ceiling get right.
    ///
    /// # Errors
    /// There is no such student.
    pub fn outcomes(&self, student: usize) -> Result<Outcomes> {
        let right = |probabilities: &Array2<f64>| -> Vec<bool> {
            hard(probabilities).iter().zip(&self.truth).map(|(said, truth)| said == truth).collect()
        };
        Ok(Outcomes {
            weak: right(&self.weak),
            student: right(self.student(student)?),
            ceiling: right(&self.ceiling),
        })
    }

    /// What the supervisor, a student and the ceiling say of the test items.
    ///
    /// # Errors
    /// There is no such student.
    pub fn said(&self, student: usize) -> Result<Said> {
        let said = [hard(&self.weak), hard(self.student(student)?), hard(&self.ceiling)];
        Ok(Said { said, truth: self.truth.clone() })
    }

    /// How often a student says what the supervisor says, on test items.
    ///
    /// # Errors
    /// There is no such student.
    pub fn agreement(&self, student: usize) -> Result<Agreement> {
        Agreement::of(&hard(self.student(student)?), &hard(&self.weak), &self.truth)
    }
}

impl Protocol<'_> {
    /// Runs it once.
    ///
    /// # Errors
    /// No teacher or no student; a split that leaves a part empty; whatever the trainees refuse; predictions that are
    /// not distributions.
    pub fn run(&self, task: &Task, seed: u64) -> Result<ProtocolRun> {
        let (Some((first, between)), false) = (self.teachers.split_first(), self.students.is_empty()) else {
            return Err(SupervisionError::Empty { what: "teachers, or no students" });
        };
        let split = task.split(&self.split, seed)?;
        let test =
            |model: &dyn Fitted| distributions(model.predict(&split.test)?, split.test.len(), task.classes());
        let mut halves = [&split.transfer, &split.weak];
        let supervisor = first.fit(&task.gold(&split.weak)?, seed)?;
        let mut labels = label(task, &*supervisor, halves[0])?;
        for model in between {
            let teacher = model.fit(&labels.train_view(), seed)?;
            halves.swap(0, 1);
            labels = label(task, &*teacher, halves[0])?;
        }
        let view = labels.train_view();
        let students = self.students.iter().map(|student| test(&*student.fit(&view, seed)?));
        let students = students.collect::<Result<Vec<_>>>()?;
        // The students' items, so that only labels differ.
        let ceiling = self.ceiling.fit(&task.gold(halves[0])?, seed)?;
        let (weak, ceiling) = (test(&*supervisor)?, test(&*ceiling)?);
        let truth = task.truth(&split.test)?;
        Ok(ProtocolRun { labels, weak, students, ceiling, truth, split })
    }
}

/// The most probable class of each row; the first of equals.
pub fn hard(probabilities: &Array2<f64>) -> Vec<usize> {
    let best = |row: ndarray::ArrayView1<'_, f64>| {
        (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best })
    };
    probabilities.rows().into_iter().map(best).collect()
}

/// Probabilities of several models, averaged.
///
/// # Errors
/// No models; shapes that differ.
pub fn ensemble(models: &[Array2<f64>]) -> Result<Array2<f64>> {
    let first = models.first().ok_or(SupervisionError::Empty { what: "models" })?;
    let mut sum = Array2::zeros(first.dim());
    for model in models {
        if model.dim() != first.dim() {
            return Err(SupervisionError::Shape {
                what: "probabilities",
                got: model.len(),
                want: first.len(),
            });
        }
        sum += model;
    }
    Ok(sum / models.len() as f64)
}

/// What a model says of rows, with their ids.
fn label(task: &Task, model: &dyn Fitted, rows: &[usize]) -> Result<WeakLabels> {
    let p = distributions(model.predict(rows)?, rows.len(), task.classes())?;
    WeakLabels::new(task, rows, p)
}

/// Probabilities as they should be: finite, not negative, a distribution a row.
fn distributions(p: Array2<f64>, rows: usize, classes: usize) -> Result<Array2<f64>> {
    for (what, got, want) in [("rows predicted", p.nrows(), rows), ("classes predicted", p.ncols(), classes)]
    {
        if got != want {
            return Err(SupervisionError::Shape { what, got, want });
        }
    }
    for (index, row) in p.rows().into_iter().enumerate() {
        if !(row.iter().all(|p| *p >= 0.0) && (row.sum() - 1.0).abs() < 1e-6) {
            return Err(SupervisionError::NotDistribution { index, sum: row.sum() });
        }
    }
    Ok(p)
}
