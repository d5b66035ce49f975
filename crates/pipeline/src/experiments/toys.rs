//! What experiments on toy models share: sampled texts, and laws that resemble each other.

use std::time::Duration;

use pilotfish_decoding::{Decoder, Drafter, Limits, Verifier};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{CausalModel, Ledger, StreamRng, Token};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::page::mean;
use crate::error::Failure;
use crate::plots::Point;

/// A cell of an experiment: what decoding a set of prompts gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) ledger: Ledger,
    /// Tokens a round of each prompt, in order.
    pub(super) means: Vec<f64>,
}

impl Cell {
    /// Mean accepted tokens: tokens a round.
    pub(super) fn mean(&self) -> f64 {
        mean(&self.means)
    }

    /// Half the width of a 95 % interval of the mean over prompts.
    pub(super) fn error(&self) -> f64 {
        let (n, mean) = (self.means.len() as f64, self.mean());
        let variance = self.means.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0).max(1.0);
        1.96 * (variance / n.max(1.0)).sqrt()
    }

    pub(super) fn point(&self, x: f64) -> Point {
        let (y, error) = (self.mean(), self.error());
        Point { x, y, interval: Some((y - error, y + error)) }
    }

    pub(super) fn text(&self) -> String {
        format!("{:.3} ± {:.3}", self.mean(), self.error())
    }
}

/// Decodes every prompt.
pub(super) fn decode(
    model: &mut dyn CausalModel,
    drafter: &mut dyn Drafter,
    verifier: &mut dyn Verifier,
    prompts: &[Vec<Token>],
    limits: &Limits,
) -> Result<Cell, Failure> {
    let mut cell = Cell { ledger: Ledger::default(), means: Vec::new() };
    let mut decoder = Decoder::new(model, drafter, verifier, limits.clone())?;
    for prompt in prompts {
        let out = decoder.generate(prompt)?;
        cell.means.push(out.ledger.mean_accepted_tokens().unwrap_or(1.0));
        cell.ledger.add(&out.ledger);
    }
    // Times of a toy mean nothing, and would make the same run differ from itself.
    cell.ledger.seconds = [Duration::ZERO.as_secs_f64(); 5];
    Ok(cell)
}

/// Prompts of random tokens.
pub(super) fn prompts(count: usize, length: usize, vocab: usize, rng: &mut StreamRng) -> Vec<Vec<Token>> {
    (0..count).map(|_| (0..length).map(|_| rng.random_range(0..vocab as Token)).collect()).collect()
}

/// A text drawn from a table.
pub(super) fn text(table: &TableModel, length: usize, rng: &mut StreamRng) -> Vec<Token> {
    let mut text: Vec<Token> = vec![0; 3];
    // Only the last tokens matter to a table.
    (0..length).for_each(|_| text.push(table.next(&text[text.len() - 3..]).sample(rng)));
    text.split_off(3)
}

/// A first-order table whose rows are spiky (`low`) or flat (`high`) in turn; each row's weights are `-ln(u)` to that
/// power.
pub(super) fn rows(vocab: usize, sharpness: &[f64], rng: &mut StreamRng) -> Result<TableModel, Failure> {
    let mut table = Vec::with_capacity(vocab * vocab);
    for row in 0..vocab {
        let power = sharpness[row % sharpness.len()];
        table.extend((0..vocab).map(|_| (-(1.0 - rng.random::<f64>()).ln()).powf(power) + 1e-9));
    }
    Ok(TableModel::new(1, vocab, table)?)
}

/// A first-order table whose rows are those of another with noise: `p exp(strength * g)`, `g` uniform in `[-1, 1]`.
pub(super) fn noisy(
    table: &TableModel,
    strength: impl Fn(usize) -> f64,
    rng: &mut StreamRng,
) -> Result<TableModel, Failure> {
    let vocab = table.info().vocab;
    let mut all = Vec::with_capacity(vocab * vocab);
    for row in 0..vocab {
        let law = table.next(&[row as Token]);
        let strength = strength(row);
        all.extend(law.probs().iter().map(|p| p * (strength * rng.random_range(-1.0..=1.0f64)).exp()));
    }
    Ok(TableModel::new(1, vocab, all)?)
}
