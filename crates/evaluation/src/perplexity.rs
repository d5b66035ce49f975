use pilotfish_model::sampling::Warpers;
use pilotfish_model::{CausalModel, RowSet, Step, Token};
use serde::{Deserialize, Serialize};

use crate::{EvaluationError, Result};

/// How a long text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerplexityConfig {
    /// Tokens of a window; at most the model's context.
    pub window: usize,
    /// Tokens a window moves on; the ones before them are read but not scored.
    pub stride: usize,
    /// Rows a step.
    pub rows: usize,
}

impl Default for PerplexityConfig {
    fn default() -> Self {
        Self { window: 1024, stride: 512, rows: 64 }
    }
}

/// How surprised a model is by a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// Sum of `-ln p` over scored tokens.
    pub nats: f64,
    /// Tokens scored. The first of the text has nothing before it and is not.
    pub tokens: usize,
}

impl Perplexity {
    /// `exp(nats / tokens)`.
    pub fn value(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Bits a byte of a text of this many bytes.
    pub fn bits_per_byte(&self, bytes: usize) -> f64 {
        self.nats / std::f64::consts::LN_2 / bytes as f64
    }
}

/// The exact perplexity of a text. Every token but the first is scored once, with at least
/// `window - stride` tokens before it where the text has them. No token is added in front; give one if the
/// model was trained with it.
///
/// # Errors
/// Fewer than two tokens, a stride of 0 or above the window, a window below 2 or above the context.
pub fn perplexity(
    model: &mut dyn CausalModel,
    text: &[Token],
    config: &PerplexityConfig,
) -> Result<Perplexity> {
    let refuse =
        |name, value: usize, want| Err(EvaluationError::BadParameter { name, value: value as f64, want });
    let window = config.window.min(model.info().context);
    if window < 2 {
        return refuse("window", config.window, "at least 2");
    }
    if config.stride == 0 || config.stride >= window {
        return refuse("stride", config.stride, "at least 1 and below the window");
    }
    if config.rows == 0 {
        return refuse("rows", 0, "at least 1");
    }
    if text.len() < 2 {
        return Err(EvaluationError::Empty);
    }
    let plain = Warpers::temperature(1.0).check()?;
    let mut out = Perplexity { nats: 0.0, tokens: 0 };
    let (mut start, mut scored) = (0, 1);
    while scored < text.len() {
        let end = (start + window).min(text.len());
        model.truncate(0)?;
        // The last token of a window is only predicted, never read.
        for (index, rows) in text[start..end - 1].chunks(config.rows).enumerate() {
            let first = start + index * config.rows;
            let wanted: Vec<usize> = (0..rows.len()).filter(|row| first + row + 1 >= scored).collect();
            let answer = model.step(&Step::chain(rows).want(RowSet::Rows(&wanted)))?;
            for (index, &row) in wanted.iter().enumerate() {
                let logits = answer.logits.row(index).unwrap_or(&[]);
                let probability = plain.distribution(logits, &[])?.prob(text[first + row + 1]);
                out.nats -= probability.ln();
                out.tokens += 1;
            }
        }
        scored = end;
        start += config.stride;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use pilotfish_model::Streams;
    use pilotfish_model::toy::TableModel;
    use rand::Rng;

    use super::*;

    #[test]
    fn tables_in_closed_form() {
        let mut rng = Streams::new(2).stream("test");
        let mut model = TableModel::random(1, 5, 1.0, &mut rng).expect("small");
        let text: Vec<Token> = (0..100).map(|_| rng.random_range(0..5)).collect();
        let want = -model.text_probability(&text[..1], &text[1..]).ln();
        // A model of order 1 needs one token before each: any overlap gives the same.
        for (window, stride, rows) in [(1000, 500, 64), (10, 9, 3), (7, 1, 100), (2, 1, 1)] {
            let config = PerplexityConfig { window, stride, rows };
            let got = perplexity(&mut model, &text, &config).expect("valid");
            assert_eq!(got.tokens, 99, "{config:?}");
            assert!((got.nats - want).abs() < 1e-4, "{config:?}: {} is not {want}", got.nats);
        }
        let uniform = perplexity(
            &mut TableModel::new(0, 5, vec![1.0; 5]).expect("valid"),
            &text,
            &PerplexityConfig::default(),
        );
        assert!((uniform.expect("valid").value() - 5.0).abs() < 1e-6);
    }

    #[test]
    fn bad_parameters() {
        let mut model = TableModel::new(0, 2, vec![1.0; 2]).expect("valid");
        let mut run = |text: &[Token], window, stride, rows| {
            perplexity(&mut model, text, &PerplexityConfig { window, stride, rows }).is_err()
        };
        assert!(
            run(&[0], 8, 4, 4) && run(&[0, 1], 1, 1, 4) && run(&[0, 1], 8, 0, 4) && run(&[0, 1], 8, 8, 4)
        );
        assert!(run(&[0, 1], 8, 4, 0) && run(&[9, 0], 8, 4, 4));
    }
}
