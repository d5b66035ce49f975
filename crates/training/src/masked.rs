//! Masked diffusion as a task, for networks that attend in both directions.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::losses::{Masking, masked};
use crate::{At, BatchLoss, Interpreter, Precision, Result, Task, TrainingError};

/// Inputs of a batch of texts of one length for a network whose positions attend to all others: `ids`, `positions`
/// `[B, T]` and a `mask` `[1, 1, T, T]` of zeros.
///
/// # Errors
/// No texts, empty ones, or texts of unequal length.
pub fn bidirectional_inputs(texts: &[Vec<u32>], precision: Precision) -> Result<HashMap<String, Tensor>> {
    let width = texts.first().map_or(0, Vec::len);
    if width == 0 || texts.iter().any(|text| text.len() != width) {
        let want = "texts of one length, at least one token".into();
        return Err(TrainingError::Shape { name: "ids".into(), got: vec![texts.len(), width], want });
    }
    let shape = (texts.len(), width);
    let ids: Vec<i64> = texts.iter().flatten().map(|&id| i64::from(id)).collect();
    let positions: Vec<i64> = texts.iter().flat_map(|_| 0..width as i64).collect();
    let mask = Tensor::zeros((1, 1, width, width), precision.dtype(), &Device::Cpu)?;
    Ok(HashMap::from([
        ("ids".to_owned(), Tensor::from_vec(ids, shape, &Device::Cpu)?),
        ("positions".to_owned(), Tensor::from_vec(positions, shape, &Device::Cpu)?),
        ("mask".to_owned(), mask),
    ]))
}

/// Logits `[B, T, V]` of texts, each position's own: with `shift`, position `i` has the output of position `i - 1`,
/// and the first position its own.
///
/// # Errors
/// As [`bidirectional_inputs`]; a network without `logits`.
pub fn bidirectional_logits(net: &Interpreter, texts: &[Vec<u32>], shift: bool) -> Result<Tensor> {
    let mut outputs = net.forward(&bidirectional_inputs(texts, net.precision())?)?;
    let missing = || TrainingError::NoSuchName { kind: "output", name: "logits".into() };
    let logits = outputs.remove("logits").ok_or_else(missing)?;
    let width = logits.dim(1)?;
    match shift && width > 1 {
        true => Ok(Tensor::cat(&[logits.narrow(1, 0, 1)?, logits.narrow(1, 0, width - 1)?], 1)?),
        false => Ok(logits),
    }
}

/// Masked diffusion: tokens of each text's answer are hidden at random, and predicted.
///
/// | setting | source |
/// |---|---|
/// | `masking` | LLaDA's `GUIDELINES.md`: `eps` 1e-3; times spread evenly over a batch, against the variance of few texts |
///
/// What is hidden is drawn anew at every step, from the step's own randomness. Texts are made when they are needed, so
/// that there may be as many as a run has use for.
pub struct MaskedTask<F> {
    /// Texts there are.
    pub items: usize,
    /// Text and answer of an item; all texts of one length.
    pub text: F,
    /// How tokens are hidden.
    pub masking: Masking,
    /// As [`bidirectional_logits`].
    pub shift: bool,
}

impl<F: Fn(usize) -> (Vec<u32>, Range<usize>) + Sync> Task for MaskedTask<F> {
    fn items(&self) -> usize {
        self.items
    }

    fn loss(&self, net: &Interpreter, items: &[usize], at: &At) -> Result<BatchLoss> {
        let (texts, answers): (Vec<_>, Vec<_>) = items.iter().map(|&item| (self.text)(item)).unzip();
        // Parts of a batch begin with different items, and so draw differently.
        let first = items.first().copied().unwrap_or(0) as u64;
        let mut rng = at.streams.fork(first).stream("masks");
        let hidden = masked(&texts, &answers, self.masking, &mut rng)?;
        let logits = bidirectional_logits(net, &hidden.texts, self.shift)?;
        let tokens = hidden.texts.iter().map(Vec::len).sum();
        Ok(BatchLoss { loss: hidden.targets.loss(&logits)?, weight: items.len() as f64, tokens })
    }
}
