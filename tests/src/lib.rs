//! Cross-crate tests live in `tests/tests`; here is what several of them need: small networks, and laws that
//! every causal model obeys whatever runs it.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::process::Command;

use pilotfish_architectures::{CausalConfig, CausalNetwork, Checkpoint};
use pilotfish_graph::weights::Weights;
use pilotfish_model::{CausalModel, RowSet, Step, Token, TokenTree};
use pilotfish_runtime::home::Home;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A Llama of four layers, with heads of 16.
pub fn tiny_llama() -> CausalNetwork {
    let mut config = CausalConfig::llama(97, 64, 4, [4, 2], 96);
    config.context = 128;
    CausalNetwork::random(config, 7).unwrap()
}

/// A network with everything that a Llama of [`tiny_llama`] has not: norms around and on queries and keys,
/// heads of 24, windows of a few rows in every second layer, two rotary bases, scaled embeddings, a head of its own.
pub fn tiny_gemma() -> CausalNetwork {
    let mut config = CausalConfig::gemma3(89, 48, 4, [3, 1], 80);
    config.head_dim = 24;
    config.attention_scale = 0.2;
    config.context = 128;
    config.windows = vec![Some(4), None, Some(4), None];
    config.tied = false;
    CausalNetwork::random(config, 8).unwrap()
}

/// The model that setup fetches.
pub fn smollm2() -> Checkpoint {
    let folder = Home::locate().unwrap().model("smollm2-135m").unwrap();
    Checkpoint::open(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap()
}

/// Runs one test of this binary in a process of its own, with a variable set that tells it to measure, and reads the
/// numbers that it prints after these words.
#[track_caller]
pub fn measured_apart<const N: usize>(
    test: &str,
    variable: &str,
    value: impl AsRef<OsStr>,
    words: [&str; N],
) -> [f64; N] {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(variable, value)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let all: Vec<&str> = printed.split_whitespace().collect();
    words.map(|word| {
        let at = all.iter().position(|printed| *printed == word).unwrap();
        all[at + 1].parse().unwrap()
    })
}

/// The first layers of SmolLM2, with its embedding table, final norm and head.
pub fn smollm2_layers(layers: usize) -> CausalNetwork {
    let checkpoint = smollm2();
    let whole = checkpoint.causal().unwrap();
    let mut config = whole.config().clone();
    config.layers = layers;
    config.windows.truncate(layers);
    let mut weights = Weights::default();
    for (name, stored) in whole.weights().iter() {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if layer.is_none_or(|layer: usize| layer < layers) {
            weights.insert(name.to_owned(), stored.clone()).unwrap();
        }
    }
    CausalNetwork::new(config, weights).unwrap()
}

/// The largest difference.
#[track_caller]
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // NaN is the largest difference of all, and `max` would lose it.
    let all = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    all.fold(0.0, |worst, gap| if gap <= worst { worst } else { gap })
}

/// Fails when two rows differ by more than a tolerance.
#[track_caller]
pub fn near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    let gap = gap(got, want);
    assert!(gap <= tolerance, "{what}: differs by {gap}");
}

/// Random tokens.
pub fn tokens(rng: &mut ChaCha8Rng, count: usize, vocab: usize) -> Vec<Token> {
    (0..count).map(|_| rng.random_range(0..vocab as Token)).collect()
}

/// A random tree: wide, deep or in between, by the number of earlier nodes that a parent is drawn from.
pub fn random_tree(rng: &mut ChaCha8Rng, nodes: usize, vocab: usize) -> TokenTree {
    let mut tree = TokenTree::new(rng.random_range(0..vocab as Token));
    let reach = [1, 3, 8, nodes][rng.random_range(0..4)];
    while tree.len() < nodes {
        let parent = rng.random_range(tree.len().saturating_sub(reach)..tree.len());
        tree.push(parent, rng.random_range(0..vocab as Token)).unwrap();
    }
    tree
}

/// Logits of every row of a step, and the rows are forgotten again.
fn rows(model: &mut dyn CausalModel, step: &Step<'_>) -> Vec<Vec<f32>> {
    let before = model.len();
    let out = model.step(&step.want(RowSet::All)).unwrap();
    model.truncate(before).unwrap();
    (0..step.rows()).map(|row| out.logits.row(row).unwrap().to_vec()).collect()
}

/// A tree in one call has the logits of one call for each path from the root to a leaf, after `past` rows.
pub fn tree_equals_paths(model: &mut dyn CausalModel, seed: u64, past: usize, nodes: usize, tolerance: f32) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let vocab = model.info().vocab;
    model.truncate(0).unwrap();
    let text = tokens(&mut rng, past, vocab);
    if past > 0 {
        model.step(&Step::chain(&text)).unwrap();
    }
    let tree = random_tree(&mut rng, nodes, vocab);
    let together = rows(model, &Step::tree(tree.tokens(), &tree.parents(past)));
    for leaf in (0..nodes).filter(|&node| tree.children(node).next().is_none()) {
        let path = tree.path(leaf);
        let alone: Vec<Token> = path.iter().map(|&node| tree.token(node)).collect();
        for (&node, row) in path.iter().zip(rows(model, &Step::chain(&alone))) {
            near(&together[node], &row, tolerance, &format!("seed {seed}, {past} before, node {node}"));
        }
    }
}

/// After a tree and the choice of one of its paths, what follows is as if only the path had ever been there.
pub fn kept_path_equals_prefill(
    model: &mut dyn CausalModel,
    seed: u64,
    past: usize,
    nodes: usize,
    tolerance: f32,
) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let vocab = model.info().vocab;
    model.truncate(0).unwrap();
    let mut text = tokens(&mut rng, past, vocab);
    if past > 0 {
        model.step(&Step::chain(&text)).unwrap();
    }
    // Two rounds, so that a second tree stands on a compacted cache.
    let mut last = Vec::new();
    for _ in 0..2 {
        let before = model.len();
        let tree = random_tree(&mut rng, nodes, vocab);
        model.step(&Step::tree(tree.tokens(), &tree.parents(before))).unwrap();
        let path = tree.path(rng.random_range(0..nodes));
        let kept: Vec<usize> = path.iter().map(|node| before + node).collect();
        model.keep(before, &kept).unwrap();
        assert_eq!(model.len(), before + path.len());
        text.extend(path.iter().map(|&node| tree.token(node)));
        let next = tokens(&mut rng, 2, vocab);
        last = rows(model, &Step::chain(&next));
        text.extend(&next);
        model.step(&Step::chain(&next)).unwrap();
    }
    model.truncate(0).unwrap();
    let fresh = rows(model, &Step::chain(&text));
    for (after, fresh) in last.iter().zip(&fresh[text.len() - 2..]) {
        near(after, fresh, tolerance, &format!("seed {seed}, {past} before, {nodes} nodes"));
    }
}

/// The worked example: three rows, root r, a and b under it, c and a probe p under a; r, a and c are kept.
pub fn worked_tree(model: &mut dyn CausalModel, tolerance: f32) {
    model.truncate(0).unwrap();
    // Nine tokens far apart.
    let vocab = model.info().vocab;
    let t: Vec<Token> = (0..9).map(|i| (i * (vocab / 9) + i) as Token).collect();
    model.step(&Step::chain(&t[..3])).unwrap();
    let mut tree = TokenTree::new(t[3]);
    let a = tree.push(0, t[4]).unwrap();
    tree.push(0, t[5]).unwrap();
    let c = tree.push(a, t[6]).unwrap();
    let probe = tree.push(a, t[7]).unwrap();
    let together = rows(model, &Step::tree(tree.tokens(), &tree.parents(3)));
    let paths = [&[3][..], &[3, 4], &[3, 5], &[3, 4, 6], &[3, 4, 7]];
    for (node, path) in paths.into_iter().enumerate() {
        let path: Vec<Token> = path.iter().map(|&i| t[i]).collect();
        let alone = rows(model, &Step::chain(&path));
        near(&together[node], &alone[path.len() - 1], tolerance, &format!("node {node}"));
    }
    // The rows tell apart what a wrong mask or position would confuse.
    assert!(gap(&together[c], &together[probe]) > 100.0 * tolerance, "c and the probe see the same");
    let flat = rows(model, &Step::chain(tree.tokens()));
    for node in 2..5 {
        assert!(gap(&together[node], &flat[node]) > 100.0 * tolerance, "node {node} sees a chain");
    }
    let positions = [Some(2), Some(3), Some(4), Some(5), Some(5)];
    let deep = rows(model, &Step::tree(tree.tokens(), &positions));
    assert!(gap(&together[2], &deep[2]) > 100.0 * tolerance, "b sees a");
    // Rows 0, 1 and 3 of the tree stay.
    model.step(&Step::tree(tree.tokens(), &tree.parents(3))).unwrap();
    model.keep(3, &[3, 4, 6]).unwrap();
    assert_eq!(model.len(), 6);
    let after = rows(model, &Step::chain(&t[8..]));
    model.truncate(0).unwrap();
    let fresh = rows(model, &Step::chain(&[t[0], t[1], t[2], t[3], t[4], t[6], t[8]]));
    near(&after[0], &fresh[6], tolerance, "after keeping r, a and c");
}
