//! AutoWS: labels for everything from a hundred labels, by labelling functions that nobody had to write.
//!
//! Methods turn features of items into labels: [`snuba`] and [`iws`] (Interactive Weak Supervision) synthesise simple
//! labelling functions on the labelled items and let a label model combine their votes, [`goggles`] clusters
//! affinities, and the baselines they are held against use the same labels directly ([`propagation`], logistic
//! regression in [`crate::heads`], [`zero_shot`]). As in AutoWS-Bench-101, accuracy never stands without coverage:
//! see [`Scored`].
//!
//! # Algorithm
//!
//! Labelled X_l, y (m items), unlabelled X_u, test X_t, all through one feature map ([`features`]).
//!
//! 1. Labelling functions H from (X_l, y, X_u): [`snuba::unipolar`], [`snuba::multiclass`], [`iws::select`].
//! 2. Votes L_u, L_t: -1 abstains, otherwise a class ([`votes`]).
//! 3. A label model is fitted to L_u; its prior comes from the labelled items ([`class_prior`], [`aggregate`]).
//! 4. Labels of the test items with at least one vote; the others have none. [`score`] counts both.
//!
//! # Defaults
//!
//! | parameter | default | source |
//! |---|---|---|
//! | labelled items | 100 | pipeline |
//! | principal components | 100 | scripts |
//! | label model | Snorkel, 100 gradient steps | WRENCH's wrapper |
//! | methods' own | in their modules | |
//!
//! # Deviations
//!
//! The benchmark takes the first 100 rows of the validation split; whoever calls this draws labelled items at random,
//! class by class ([`draw`]), and averages several draws. Its prior is the share of classes in the labels; here one is
//! added to every count, since the label model needs a prior above 0. It quotes accuracy on covered items alone; here
//! accuracy with abstentions counted as wrong, and as guesses, stand beside it. Where the label model cannot be fitted (fewer
//! than three functions that vary) votes are counted, and [`Aggregated::model`] says so. Faults of single methods are
//! named in their modules.
//!
//! # Cost
//!
//! A function a feature and kind of model, on m items; then one pass over the unlabelled items for each round.
//!
//! # References
//!
//! Roberts et al., "AutoWS-Bench-101: Benchmarking Automated Weak Supervision with 100 Labels", arXiv 2208.14362 (its
//! introduction); SprocketLab/AutoWS-Bench-101, `fwrench/applications/pipeline.py`, `fwrench/lf_selectors` (in full).
//!
//! ```
//! use ndarray::array;
//! use pilotfish_model::Streams;
//! use pilotfish_supervision::autows::{aggregate, class_prior, score, snuba, votes};
//! use pilotfish_supervision::label_models::MajorityVote;
//! // Feature 0 tells two classes apart, feature 1 says nothing.
//! let x = ndarray::Array2::from_shape_fn((20, 2), |(i, j)| if j == 0 { i as f64 } else { (i % 3) as f64 });
//! let y: Vec<usize> = (0..20).map(|i| usize::from(i >= 10)).collect();
//! let functions = snuba::multiclass(x.view(), &y, 2, x.view(), &snuba::SnubaConfig::default())?;
//! let cast = votes(&functions, x.view())?;
//! let found = aggregate(&cast, &cast, 2, &MajorityVote::default())?;
//! assert!(score(&found.labels, &y, 2)?.accuracy() > 0.9);
//! # Ok::<(), pilotfish_supervision::SupervisionError>(())
//! ```

pub mod features;
mod function;
pub mod goggles;
pub mod iws;
pub mod propagation;
mod scored;
pub mod snuba;

#[cfg(test)]
mod tests;

use ndarray::{Array2, ArrayView2};
use pilotfish_model::Streams;
use rand::seq::SliceRandom;

pub use function::{Function, Model, Says};
pub use scored::{Scored, performance_profile, score};

use crate::heads::check_features;
use crate::label_models::{LabelModel, MajorityVote};
use crate::{Result, SupervisionError, Votes};

/// Votes of functions on items, `[items, functions]`: a class, or -1.
///
/// # Errors
/// Features that are not finite, or fewer than a function reads.
pub fn votes(functions: &[Function], x: ArrayView2<'_, f64>) -> Result<Array2<i16>> {
    check_features(x)?;
    let columns = x.t().as_standard_layout().into_owned();
    let mut out = Array2::from_elem((x.nrows(), functions.len()), -1);
    for (function, mut column) in functions.iter().zip(out.columns_mut()) {
        let votes = function.votes(&columns)?;
        column.iter_mut().zip(votes).for_each(|(cell, vote)| *cell = vote);
    }
    Ok(out)
}

/// Shares of classes among some labels, one added to every count.
///
/// # Errors
/// A label that is not below `classes`; no classes.
pub fn class_prior(y: &[usize], classes: usize) -> Result<Vec<f64>> {
    let mut counts = vec![1.0; classes];
    for &class in y {
        match counts.get_mut(class) {
            Some(count) => *count += 1.0,
            None => return Err(SupervisionError::Shape { what: "class", got: class, want: classes }),
        }
    }
    let sum: f64 = counts.iter().sum();
    if classes == 0 {
        return Err(SupervisionError::Empty { what: "classes" });
    }
    Ok(counts.into_iter().map(|count| count / sum).collect())
}

/// What a label model made of functions' votes.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregated {
    /// Class of each test item; `None` where every function abstains.
    pub labels: Vec<Option<usize>>,
    /// The model that was fitted: the one asked for, or `majority` where that one cannot be; `none` without votes.
    pub model: &'static str,
}

/// Fits a label model to votes on unlabelled items and applies it to votes on test items (both `[items, functions]`).
/// Functions without a single vote on unlabelled items are left out: nothing is known of them.
///
/// # Errors
/// Different numbers of functions; a vote outside `-1..classes`; what the model refuses, besides too few voters and
/// votes that do not determine it, where votes are counted instead.
pub fn aggregate(
    train: &Array2<i16>,
    test: &Array2<i16>,
    classes: usize,
    model: &dyn LabelModel,
) -> Result<Aggregated> {
    if train.ncols() != test.ncols() {
        let (got, want) = (test.ncols(), train.ncols());
        return Err(SupervisionError::Shape { what: "functions of the test votes", got, want });
    }
    let used: Vec<usize> =
        (0..train.ncols()).filter(|f| train.column(*f).iter().any(|vote| *vote >= 0)).collect();
    let none = Aggregated { labels: vec![None; test.nrows()], model: "none" };
    let covered = |item: usize| used.iter().any(|f| test[[item, *f]] >= 0);
    if used.is_empty() || !(0..test.nrows()).any(covered) {
        return Ok(none);
    }
    let pack = |votes: &Array2<i16>| {
        let cells: Vec<i16> =
            votes.rows().into_iter().flat_map(|row| used.iter().map(move |f| row[*f])).collect();
        Votes::from_dense(votes.nrows(), used.len(), classes, &cells)
    };
    let (train, test_votes) = (pack(train)?, pack(test)?);
    let fitted = match model.fit(&train) {
        Err(SupervisionError::TooFewVoters { .. } | SupervisionError::Unidentifiable { .. }) => {
            MajorityVote::default().fit(&train)?
        }
        other => other?,
    };
    let posterior = fitted.predict(&test_votes)?;
    let labels = (0..test.nrows()).map(|item| covered(item).then(|| posterior.label(item))).collect();
    Ok(Aggregated { labels, model: fitted.model })
}

/// The class of the highest score, the first of equal ones; scores `[items, classes]`. For a model that scores classes
/// from their names alone: similarity of an item and a class description, or log-probability of a class name.
///
/// # Errors
/// No items or classes; scores that are not finite.
pub fn zero_shot(scores: ArrayView2<'_, f64>) -> Result<Vec<Option<usize>>> {
    check_features(scores)?;
    if scores.ncols() == 0 {
        return Err(SupervisionError::Empty { what: "classes" });
    }
    Ok(scores.rows().into_iter().map(|row| Some(function::first_max(row.iter().copied()).0)).collect())
}

/// Draws `count` of `items`, as evenly over classes as they allow: one of each class in turn, in random order. Returns
/// the items drawn and the rest, each in random order.
///
/// # Errors
/// More than there are; an item without a label; a label that is not below `classes`.
pub fn draw(
    items: &[usize],
    y: &[usize],
    classes: usize,
    count: usize,
    streams: &Streams,
) -> Result<(Vec<usize>, Vec<usize>)> {
    if count > items.len() {
        return Err(SupervisionError::Shape { what: "items to draw", got: count, want: items.len() });
    }
    let mut rng = streams.stream("autows-draw");
    let mut order = items.to_vec();
    order.shuffle(&mut rng);
    let mut by_class = vec![Vec::new(); classes];
    for item in order {
        let class =
            *y.get(item).ok_or(SupervisionError::Shape { what: "labels", got: y.len(), want: item + 1 })?;
        let of = by_class.get_mut(class);
        of.ok_or(SupervisionError::Shape { what: "class", got: class, want: classes })?.push(item);
    }
    let mut drawn = Vec::with_capacity(count);
    while drawn.len() < count {
        let mut turn: Vec<usize> = (0..classes).filter(|class| !by_class[*class].is_empty()).collect();
        turn.shuffle(&mut rng);
        turn.truncate(count - drawn.len());
        drawn.extend(turn.into_iter().filter_map(|class| by_class[class].pop()));
    }
    let mut rest: Vec<usize> = by_class.into_iter().flatten().collect();
    drawn.shuffle(&mut rng);
    rest.shuffle(&mut rng);
    Ok((drawn, rest))
}

/// Refuses what no method here can work with.
fn check(
    labelled: ArrayView2<'_, f64>,
    y: &[usize],
    classes: usize,
    unlabelled: ArrayView2<'_, f64>,
) -> Result<()> {
    check_features(labelled)?;
    check_features(unlabelled)?;
    if labelled.ncols() != unlabelled.ncols() {
        let (got, want) = (unlabelled.ncols(), labelled.ncols());
        return Err(SupervisionError::Shape { what: "features of unlabelled items", got, want });
    }
    if labelled.ncols() == 0 {
        return Err(SupervisionError::Empty { what: "features" });
    }
    if y.len() != labelled.nrows() {
        return Err(SupervisionError::Shape { what: "labels", got: y.len(), want: labelled.nrows() });
    }
    if !(2..=i16::MAX as usize).contains(&classes) {
        return Err(SupervisionError::Shape { what: "classes", got: classes, want: 2 });
    }
    match y.iter().find(|class| **class >= classes) {
        Some(&got) => Err(SupervisionError::Shape { what: "class", got, want: classes }),
        None => Ok(()),
    }
}
