//! Texts and preference pairs as tasks for decoder-only networks with inputs `ids`, `positions` and `mask`, and
//! output `logits` (`CausalNetwork::whole`).

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::losses::Targets;
use crate::losses::preference::{Dpo, Orpo, Pairs, SimPo, ipo};
use crate::{At, BatchLoss, Interpreter, Precision, Result, Task, TrainingError};

/// Inputs of a batch of texts padded on the right to the longest: `ids`, `positions` `[B, T]`, a causal `mask`
/// `[1, 1, T, T]` and, with a window, `mask_local`. Padding is token 0; nothing before it sees it.
///
/// # Errors
/// No texts, or an empty one.
pub fn causal_inputs(
    texts: &[Vec<u32>],
    window: Option<usize>,
    precision: Precision,
) -> Result<HashMap<String, Tensor>> {
    let width = texts.iter().map(Vec::len).max().unwrap_or(0);
    if texts.iter().any(Vec::is_empty) || width == 0 {
        let want = "texts, none of them empty".into();
        return Err(TrainingError::Shape { name: "ids".into(), got: vec![texts.len(), width], want });
    }
    let padded = |text: &Vec<u32>| {
        let mut row: Vec<i64> = text.iter().map(|&id| i64::from(id)).collect();
        row.resize(width, 0);
        row
    };
    let ids: Vec<i64> = texts.iter().flat_map(padded).collect();
    let positions: Vec<i64> = texts.iter().flat_map(|_| 0..width as i64).collect();
    let mask = |window: usize| -> Result<Tensor> {
        let sees = |row: usize, column: usize| column <= row && row - column < window;
        let cell = |at: usize| if sees(at / width, at % width) { 0.0f32 } else { -1e9 };
        let mask =
            Tensor::from_vec((0..width * width).map(cell).collect(), (1, 1, width, width), &Device::Cpu)?;
        Ok(mask.to_dtype(precision.dtype())?)
    };
    let shape = (texts.len(), width);
    let mut inputs = HashMap::from([
        ("ids".to_owned(), Tensor::from_vec(ids, shape, &Device::Cpu)?),
        ("positions".to_owned(), Tensor::from_vec(positions, shape, &Device::Cpu)?),
        ("mask".to_owned(), mask(usize::MAX)?),
    ]);
    if let Some(window) = window {
        inputs.insert("mask_local".into(), mask(window)?);
    }
    Ok(inputs)
}

/// Logits `[B, T, V]` of texts.
fn logits(net: &Interpreter, texts: &[Vec<u32>], window: Option<usize>) -> Result<Tensor> {
    let mut outputs = net.forward(&causal_inputs(texts, window, net.precision())?)?;
    let missing = || TrainingError::NoSuchName { kind: "output", name: "logits".into() };
    outputs.remove("logits").ok_or_else(missing)
}

/// What a loss of texts is the mean over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mean {
    /// Over all tokens of a batch: language modelling.
    #[default]
    Tokens,
    /// Over texts, of each text's mean: SFT.
    Texts,
}

/// Language modelling and SFT: the next token, from the end of each prompt on.
#[derive(Clone, Debug)]
pub struct TextTask {
    /// Whole texts.
    pub texts: Vec<Vec<u32>>,
    /// Tokens of each that are only read; at least one.
    pub prompts: Vec<usize>,
    /// Mean.
    pub mean: Mean,
    /// Window of the network's local layers, if it has some.
    pub window: Option<usize>,
}

impl TextTask {
    /// Every token but the first is to be predicted; means over tokens; no window.
    pub fn new(texts: Vec<Vec<u32>>) -> Self {
        let prompts = vec![1; texts.len()];
        Self { texts, prompts, mean: Mean::Tokens, window: None }
    }
}

impl Task for TextTask {
    fn items(&self) -> usize {
        self.texts.len()
    }

    fn loss(&self, net: &Interpreter, items: &[usize], _: &At) -> Result<BatchLoss> {
        if self.prompts.len() != self.texts.len() {
            let (got, want) = (vec![self.prompts.len()], format!("{} prompts", self.texts.len()));
            return Err(TrainingError::Shape { name: "prompts".into(), got, want });
        }
        let texts: Vec<Vec<u32>> = items.iter().map(|&item| self.texts[item].clone()).collect();
        let prompts: Vec<usize> = items.iter().map(|&item| self.prompts[item]).collect();
        let width = texts.iter().map(Vec::len).max().unwrap_or(0);
        let targets = Targets::next_tokens(&texts, &prompts, width)?;
        let (targets, weight) = match self.mean {
            Mean::Tokens => (targets.clone().token_mean(), targets.count()),
            Mean::Texts => (targets.text_mean(), items.len()),
        };
        let loss = targets.loss(&logits(net, &texts, self.window)?)?;
        Ok(BatchLoss { loss, weight: weight as f64, tokens: texts.iter().map(Vec::len).sum() })
    }
}

/// Two responses to a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// The better response.
    pub chosen: Vec<u32>,
    /// The other.
    pub rejected: Vec<u32>,
}

/// Which loss of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairLoss {
    /// DPO of summed log-probabilities.
    Dpo(Dpo),
    /// DPO of mean log-probabilities (delta learning); `beta` 5 to 10.
    MeanDpo(Dpo),
    /// IPO of summed log-probabilities.
    Ipo {
        /// Strength of the reference.
        beta: f64,
    },
    /// SimPO.
    SimPo(SimPo),
    /// ORPO.
    Orpo(Orpo),
}

impl PairLoss {
    fn of_means(self) -> bool {
        !matches!(self, Self::Dpo(_) | Self::Ipo { .. })
    }
}

/// Preference pairs. Chosen and rejected responses of a batch go through the network together.
#[derive(Clone, Debug)]
pub struct PairTask {
    pairs: Vec<Pair>,
    loss: PairLoss,
    window: Option<usize>,
    /// Log-probabilities under the reference.
    reference: Vec<[f64; 2]>,
}

impl PairTask {
    /// Pairs, with `net` as it is now as the reference; it is asked once, in batches of `batch` pairs.
    ///
    /// # Errors
    /// No pairs; an empty prompt or response; whatever the network refuses.
    pub fn new(
        net: &Interpreter,
        pairs: Vec<Pair>,
        loss: PairLoss,
        window: Option<usize>,
        batch: usize,
    ) -> Result<Self> {
        let count = pairs.len();
        let mut task = Self { pairs, loss, window, reference: Vec::with_capacity(count) };
        for items in (0..count).collect::<Vec<_>>().chunks(batch.max(1)) {
            let scores = task.scores(net, items)?.0;
            let both = [&scores.chosen, &scores.rejected]
                .map(|side| side.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>());
            let [chosen, rejected] = both;
            task.reference.extend(chosen?.into_iter().zip(rejected?).map(|(c, r)| [c, r]));
        }
        Ok(task)
    }

    /// Log-probabilities of the responses of some pairs, summed or averaged as the loss wants them, and the tokens
    /// that were read.
    ///
    /// # Errors
    /// As [`PairTask::new`].
    pub fn scores(&self, net: &Interpreter, items: &[usize]) -> Result<(Pairs, usize)> {
        let text = |prompt: &[u32], response: &[u32]| [prompt, response].concat();
        let of = |side: fn(&Pair) -> &[u32]| {
            items.iter().map(move |&item| text(&self.pairs[item].prompt, side(&self.pairs[item])))
        };
        let texts: Vec<Vec<u32>> = of(|pair| &pair.chosen).chain(of(|pair| &pair.rejected)).collect();
        let prompts = items.iter().map(|&item| self.pairs[item].prompt.len());
        let prompts: Vec<usize> = prompts.clone().chain(prompts).collect();
        let width = texts.iter().map(Vec::len).max().unwrap_or(0);
        let targets = Targets::next_tokens(&texts, &prompts, width)?;
        let logits = logits(net, &texts, self.window)?;
        let rows = if self.loss.of_means() { targets.means(&logits)? } else { targets.sums(&logits)? };
        Ok((Pairs::halves(&rows)?, texts.iter().map(Vec::len).sum()))
    }

    /// Log-probabilities of some pairs under the reference.
    fn reference(&self, net: &Interpreter, items: &[usize]) -> Result<Pairs> {
        let side = |side: usize| -> Result<Tensor> {
            let values: Vec<f64> = items.iter().map(|&item| self.reference[item][side]).collect();
            Ok(Tensor::from_vec(values, items.len(), &Device::Cpu)?.to_dtype(net.precision().dtype())?)
        };
        Ok(Pairs { chosen: side(0)?, rejected: side(1)? })
    }
}

impl Task for PairTask {
    fn items(&self) -> usize {
        self.pairs.len()
    }

    fn loss(&self, net: &Interpreter, items: &[usize], _: &At) -> Result<BatchLoss> {
        let (policy, tokens) = self.scores(net, items)?;
        let reference = self.reference(net, items)?;
        let losses = match self.loss {
            PairLoss::Dpo(dpo) | PairLoss::MeanDpo(dpo) => dpo.loss(&policy, &reference)?,
            PairLoss::Ipo { beta } => ipo(&policy, &reference, beta)?,
            PairLoss::SimPo(simpo) => simpo.loss(&policy)?,
            PairLoss::Orpo(orpo) => orpo.loss(&policy)?,
        };
        Ok(BatchLoss { loss: losses.mean_all()?, weight: items.len() as f64, tokens })
    }
}
