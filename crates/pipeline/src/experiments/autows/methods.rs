//! Every method on one draw of labelled items.

use ndarray::{Array2, Axis};
use pilotfish_model::Streams;
use pilotfish_supervision::autows::goggles::{Goggles, GogglesConfig, affinity};
use pilotfish_supervision::autows::iws::{self, IwsConfig};
use pilotfish_supervision::autows::propagation::{self, PropagationConfig, choose_gamma, propagate};
use pilotfish_supervision::autows::snuba::{self, SnubaConfig};
use pilotfish_supervision::autows::{
    Function, Scored, aggregate, class_prior, draw, score, votes, zero_shot,
};
use pilotfish_supervision::heads::{Logistic, LogisticConfig};
use pilotfish_supervision::label_models::Snorkel;
use serde::{Deserialize, Serialize};

use super::data::Data;
use crate::error::Failure;

/// Methods in the order of a step's results. The first three vote and may abstain.
pub(super) const METHODS: [&str; 6] =
    ["Snuba, unipolar", "Snuba, multi-class", "IWS", "GOGGLES", "label propagation", "logistic regression"];
/// Of these, the ones that synthesise labels automatically.
pub(super) const AUTOMATIC: usize = 4;
pub(super) const REGRESSION: usize = 5;

/// What one method made of one draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) scored: Scored,
    /// Labelling functions, for methods that make them.
    pub(super) functions: Option<usize>,
    /// The label model that was fitted, the gamma chosen, or the like.
    pub(super) detail: String,
}

/// All methods on one draw, and zero-shot scores on the same test items.
pub(super) fn run(
    data: &Data,
    features: usize,
    index: u64,
    labels: usize,
    seed: u64,
) -> Result<Vec<Made>, Failure> {
    let streams = Streams::new(seed).fork(index);
    let (known, rest) = draw(&data.pool, &data.y, data.classes, labels, &streams)?;
    let x = &data.features[features].1;
    let take = |items: &[usize]| x.select(Axis(0), items);
    let (labelled, unlabelled, test) = (take(&known), take(&rest), take(&data.test));
    let of = |items: &[usize]| items.iter().map(|item| data.y[*item]).collect::<Vec<_>>();
    let (y, truth, classes) = (of(&known), of(&data.test), data.classes);
    let seed = streams.seed();
    let prior = class_prior(&y, classes)?;
    let label_model = Snorkel { prior: Some(prior), ..Snorkel::published(seed) };
    let voted = |functions: Vec<Function>| -> Result<Made, Failure> {
        let cast = |x: &Array2<f64>| votes(&functions, x.view());
        let found = aggregate(&cast(&unlabelled)?, &cast(&test)?, classes, &label_model)?;
        let scored = score(&found.labels, &truth, classes)?;
        Ok(Made { scored, functions: Some(functions.len()), detail: found.model.into() })
    };
    let made = |labels: &[Option<usize>], detail: String| -> Result<Made, Failure> {
        Ok(Made { scored: score(labels, &truth, classes)?, functions: None, detail })
    };
    let (l, u) = (labelled.view(), unlabelled.view());
    let config = SnubaConfig::default();
    let mut out = vec![
        voted(snuba::unipolar(l, &y, classes, u, &config)?)?,
        voted(snuba::multiclass(l, &y, classes, u, &config)?)?,
        voted(iws::select(l, &y, classes, u, &IwsConfig { seed, ..IwsConfig::default() })?.functions)?,
    ];
    let known: Vec<Option<usize>> = y.iter().map(|y| Some(*y)).collect();
    let goggles = Goggles::fit(&[affinity(l, l)?], &known, classes, &GogglesConfig::default())?;
    let feasible = goggles.feasibility(0.7)?;
    let found = goggles.predict(&[affinity(test.view(), l)?])?;
    out.push(made(&found.labels, format!("feasibility {feasible:.3}"))?);
    let config = PropagationConfig::default();
    let gamma = choose_gamma(l, &y, classes, &config)?;
    let p = propagate(l, &y, classes, test.view(), gamma, &config)?;
    out.push(made(&propagation::labels(p.view()), format!("gamma {gamma}"))?);
    let config = LogisticConfig { iterations: 100, tolerance: 1e-4, ..LogisticConfig::default() };
    let p = Logistic::fit_classes(l, &y, classes, None, &config)?.predict(test.view())?;
    out.push(made(&zero_shot(p.view())?, String::new())?);
    Ok(out)
}

/// The scores that need no label, on the test items.
pub(super) fn without_labels(data: &Data) -> Result<Vec<(&'static str, Scored)>, Failure> {
    let truth: Vec<usize> = data.test.iter().map(|item| data.y[*item]).collect();
    let one = |(name, scores): &(&'static str, Array2<f64>)| -> Result<_, Failure> {
        let labels = zero_shot(scores.select(Axis(0), &data.test).view())?;
        Ok((*name, score(&labels, &truth, data.classes)?))
    };
    data.zero_shot.iter().map(one).collect()
}
