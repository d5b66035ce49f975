use pilotfish_decoding::Result;
use pilotfish_model::{CausalModel, Logits, ModelError, Parents, RowSet, Step, Streams, Token, TokenTree};
use rand::Rng;

use crate::certificate::{Check, Kind};

/// What a model is checked on.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelChecks {
    /// Nodes of the trees, the root included.
    pub nodes: Vec<usize>,
    /// Rows in the cache before each tree.
    pub prefixes: Vec<usize>,
    /// Largest difference of logits that counts as none.
    pub tolerance: f64,
    /// Seed of trees and tokens.
    pub seed: u64,
}

impl Default for ModelChecks {
    fn default() -> Self {
        Self { nodes: vec![2, 5, 16, 64], prefixes: vec![0, 1, 17], tolerance: 1e-4, seed: 1 }
    }
}

/// Checks that a model sees trees and keeps its cache as it should:
/// - the logits of every node of a random tree equal those of the node's own path, read alone;
/// - after keeping one path, a further token's logits equal those of a fresh reading of the kept text;
/// - the same after forgetting everything but a prefix.
///
/// # Errors
/// A model that cannot take trees, or fails.
pub fn check_model(model: &mut dyn CausalModel, checks: &ModelChecks) -> Result<Vec<Check>> {
    model.info().require(pilotfish_model::Capability::Tree)?;
    let mut rng = Streams::new(checks.seed).stream("models");
    let vocab = model.info().vocab as Token;
    let (mut mask, mut keep, mut forget) = (0.0f64, 0.0f64, 0.0f64);
    let mut cases = 0;
    for &nodes in &checks.nodes {
        for &prefix in &checks.prefixes {
            let mut token = || rng.random_range(0..vocab);
            let text: Vec<Token> = (0..prefix).map(|_| token()).collect();
            let (mut tree, probe) = (TokenTree::new(token()), token());
            for _ in 1..nodes {
                let parent = rng.random_range(0..tree.len());
                tree.push(parent, rng.random_range(0..vocab))?;
            }
            read(model, &text)?;
            let parents = tree.parents(prefix);
            let step =
                Step { parents: Parents::Rows(&parents), ..Step::chain(tree.tokens()).want(RowSet::All) };
            let together = model.step(&step)?.logits;
            let leaf = rng.random_range(0..tree.len());
            let path = tree.path(leaf);
            let kept: Vec<usize> = path.iter().map(|node| prefix + node).collect();
            model.keep(prefix, &kept)?;
            let after = model.step(&Step::chain(&[probe]))?.logits;
            let mut whole = text.clone();
            whole.extend(path.iter().map(|&node| tree.token(node)));
            whole.push(probe);
            keep = keep.max(difference(&after, 0, &read(model, &whole)?, 0)?);
            model.truncate(prefix)?;
            let after = model.step(&Step::chain(&[probe]))?.logits;
            let short: Vec<Token> = text.iter().copied().chain([probe]).collect();
            forget = forget.max(difference(&after, 0, &read(model, &short)?, 0)?);
            // Leaves first, so that each path is read once.
            let mut seen = vec![false; tree.len()];
            for node in (0..tree.len()).rev().filter(|&node| tree.children(node).next().is_none()) {
                let path = tree.path(node);
                read(model, &text)?;
                let tokens: Vec<Token> = path.iter().map(|&node| tree.token(node)).collect();
                let alone = model.step(&Step::chain(&tokens).want(RowSet::All))?.logits;
                for (row, &node) in path.iter().enumerate() {
                    if !std::mem::replace(&mut seen[node], true) {
                        mask = mask.max(difference(&together, node, &alone, row)?);
                    }
                }
            }
            cases += 1;
        }
    }
    let name = &model.info().name;
    let line =
        |what, value| Check::below(Kind::Cache, format!("{name}: {what}"), cases, value, checks.tolerance);
    Ok(vec![
        line("a tree's rows equal their paths' rows", mask),
        line("a cache after keeping a path equals a fresh one", keep),
        line("a cache after forgetting equals a fresh one", forget),
    ])
}

/// Empties the cache and reads a text; the logits of its last row.
fn read(model: &mut dyn CausalModel, text: &[Token]) -> Result<Logits> {
    model.truncate(0)?;
    if text.is_empty() {
        return Ok(Logits::none(model.info().vocab));
    }
    Ok(model.step(&Step::chain(text))?.logits)
}

fn difference(a: &Logits, row_a: usize, b: &Logits, row_b: usize) -> Result<f64> {
    let missing = |row, len| ModelError::NoSuchRow { what: "logits to compare", row, len };
    let x = a.row(row_a).ok_or(missing(row_a, a.rows()))?;
    let y = b.row(row_b).ok_or(missing(row_b, b.rows()))?;
    // Equal infinities differ by nothing; NaN is a difference without bound.
    let apart = |(x, y): (&f32, &f32)| match (x - y).abs() {
        _ if x == y => 0.0,
        d if d.is_nan() => f64::INFINITY,
        d => f64::from(d),
    };
    Ok(x.iter().zip(y).map(apart).fold(0.0, f64::max))
}
