//! Heads for new tasks.

use pilotfish_graph::{Dim, Graph, GraphError, Mark, Tensor, passes};

use crate::{Result, TrainingError};

/// The part of a network up to a mark, with a linear layer of `classes` outputs on top: output `classes`, parameters
/// `head.weight` `[classes, d]` and, if wanted, `head.bias`. They begin at 0, as in openai/weak-to-strong, so that
/// a new head says the same of everything. What only the old outputs needed is left out.
///
/// Train `Selection::only(["head.*"])` for a probe on a frozen body, or everything.
///
/// # Errors
/// No such mark; no classes; a marked value of unknown width.
pub fn attach_head(graph: &Graph, at: Mark, classes: usize, bias: bool) -> Result<Graph> {
    let Some(value) = graph.marked(at) else {
        let known = format!("{:?}", graph.marks().iter().map(|(mark, _)| mark).collect::<Vec<_>>());
        return Err(GraphError::NoSuchName { kind: "mark", name: format!("{at:?}"), known }.into());
    };
    let Some(width) = graph.shape(value).last().and_then(Dim::fixed).filter(|_| classes > 0) else {
        let want = "a mark of known width and at least one class".into();
        return Err(TrainingError::Shape { name: "head".into(), got: vec![classes], want });
    };
    let mut with = graph.clone();
    let weight = with.param("head.weight", Tensor::new([classes, width], vec![0.0; classes * width])?)?;
    let bias =
        bias.then(|| with.param("head.bias", Tensor::new([classes], vec![0.0; classes])?)).transpose()?;
    let y = with.linear(value, weight, bias)?;
    Ok(passes::extract(&with, &[], &[("classes".into(), y)])?)
}
