use pilotfish_model::{CausalModel, ModelError, RowSet, Step, Token};
use serde::{Deserialize, Serialize};

use crate::{EvaluationError, Result};

/// How a long text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerplexityConfig {
    /// Tokens of a window; cut to the model's context.
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
    /// Sum of `-ln p` over scored tokens; infinite if the model gives one of them no probability at all.
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

/// The exact perplexity of a text, from whole rows of logits. Every token but the first is scored once, with at
/// least `window - stride` tokens before it where the text has them. No token is added in front: a model that was
/// trained with a first token (BOS) needs it at the start of `text`, and windows after the first go without.
/// The model's cache is emptied before and after.
///
/// # Errors
/// Fewer than two tokens, a token outside the vocabulary, a window below 2, a stride of 0 or not below the window
/// (after that was cut to the context), NaN or `+inf` among the logits.
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
    let vocab = model.info().vocab;
    if let Some(&token) = text.iter().find(|&&token| token as usize >= vocab) {
        return refuse("token", token as usize, "below the model's vocabulary");
    }
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
                out.nats += surprise(logits, text[first + row + 1], first + row)?;
                out.tokens += 1;
            }
        }
        scored = end;
        start += config.stride;
    }
    model.truncate(0)?;
    Ok(out)
}

/// `-ln softmax(logits)[token]`, finite however far apart finite logits are.
fn surprise(logits: &[f32], token: Token, row: usize) -> Result<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let bad = ModelError::NotFinite { what: "logits", row };
    match logits.get(token as usize) {
        Some(own) if max.is_finite() && !logits.iter().any(|x| x.is_nan()) => {
            let max = f64::from(max);
            let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
            Ok(max + sum.ln() - f64::from(*own))
        }
        _ => Err(bad.into()),
    }
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
        assert!(run(&[0, 1], 8, 4, 0) && run(&[9, 0], 8, 4, 4) && run(&[0, 9], 8, 4, 4));
        assert!(!run(&[0, 1], 8, 4, 4));
        // A window cut to a context of 4 leaves no room for a stride of 4.
        let mut short = TableModel::new(0, 2, vec![1.0; 2]).expect("valid").with_context(4);
        let mut run = |stride| {
            let config = PerplexityConfig { window: 1024, stride, rows: 3 };
            perplexity(&mut short, &[0; 30], &config).map(|found| found.tokens)
        };
        assert!(matches!(run(4), Err(EvaluationError::BadParameter { name: "stride", .. })));
        assert_eq!(run(3).expect("fits"), 29);
    }

    #[test]
    fn surprises_by_hand() {
        let ln2 = std::f64::consts::LN_2;
        assert!((surprise(&[0.0, 0.0], 1, 0).expect("finite") - ln2).abs() < 1e-12);
        // softmax(0, ln 3) = (1/4, 3/4).
        assert!((surprise(&[0.0, 3f32.ln()], 0, 0).expect("finite") - 2.0 * ln2).abs() < 1e-6);
        // exp(-2000) is 0 in double precision; its logarithm is not lost.
        assert_eq!(surprise(&[1000.0, -1000.0], 1, 0).expect("finite"), 2000.0);
        assert_eq!(surprise(&[0.0, f32::NEG_INFINITY], 1, 0).expect("no probability"), f64::INFINITY);
        for bad in
            [&[f32::NAN, 0.0][..], &[0.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2], &[]]
        {
            assert!(surprise(bad, 0, 0).is_err(), "{bad:?}");
        }
        let found = Perplexity { nats: 8.0 * ln2, tokens: 4 };
        assert!((found.value() - 4.0).abs() < 1e-12 && (found.bits_per_byte(16) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn windows_of_a_longer_memory_see_what_they_may() {
        // Order 2: a token at a window's start is predicted from what the window holds, and each token is scored
        // once, with as much before it as the stride leaves.
        let mut rng = Streams::new(5).stream("test");
        let mut model = TableModel::random(2, 3, 2.0, &mut rng).expect("small");
        let text: Vec<Token> = (0..40).map(|_| rng.random_range(0..3)).collect();
        for (window, stride) in [(6, 3), (6, 5), (5, 1)] {
            let mut want = -model.text_probability(&text[..1], &text[1..window]).ln();
            let (mut start, mut scored) = (stride, window);
            while scored < text.len() {
                let end = (start + window).min(text.len());
                want -= model.text_probability(&text[start..scored], &text[scored..end]).ln();
                (start, scored) = (start + stride, end);
            }
            let config = PerplexityConfig { window, stride, rows: 2 };
            let got = perplexity(&mut model, &text, &config).expect("valid");
            assert_eq!(got.tokens, 39);
            assert!((got.nats - want).abs() < 1e-4, "{config:?}: {} is not {want}", got.nats);
        }
    }
}
