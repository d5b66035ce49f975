//! Losses of language models are one sum over rows of logits, `-sum w_i log p(x_i)`; they differ in which rows
//! count and how much.
//!
//! | loss | weight of a row | constructor |
//! |---|---|---|
//! | cross-entropy | 1 / rows that count | [`Targets::next_tokens`] and [`Targets::token_mean`] |
//! | SFT: token mean per text, mean over texts | 1 / (texts * rows of the text) | [`Targets::next_tokens`] and [`Targets::text_mean`] |
//! | masked diffusion, pre-training | 1 / (p * texts * length), masked rows only | [`masked`] |
//! | masked diffusion, of responses | 1 / (p * texts * length of the answer) | [`masked`] |
//!
//! References: w2s-core (SFT: GAIR-NLP/weak-to-strong-reasoning, princeton-nlp/SimPO); LLaDA, arXiv 2502.09992,
//! equations 3 and 5, `GUIDELINES.md` of ML-GSAI/LLaDA.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand::Rng;

use super::rows::Pick;
use crate::{Result, TrainingError};

/// Which token each row of logits `[B, T, V]` should say, and how much that counts.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use pilotfish_training::losses::Targets;
/// // One text of a prompt token and two more; rows 0 and 1 predict tokens 1 and 2.
/// let targets = Targets::next_tokens(&[vec![3, 0, 1]], &[1], 3)?.token_mean();
/// let logits = Tensor::zeros((1, 3, 4), candle_core::DType::F64, &Device::Cpu)?;
/// let loss = targets.loss(&logits)?.to_scalar::<f64>()?;
/// assert!((loss - 4f64.ln()).abs() < 1e-12);
/// # Ok::<(), pilotfish_training::TrainingError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    width: usize,
    ids: Vec<Option<u32>>,
    weights: Vec<f64>,
}

impl Targets {
    /// Targets row by row: `batch` texts of `width` rows, with weights.
    ///
    /// # Errors
    /// Counts that do not fit; weights that are negative or not numbers.
    pub fn new(width: usize, ids: Vec<Option<u32>>, weights: Vec<f64>) -> Result<Self> {
        if width == 0 || ids.len() % width != 0 || ids.len() != weights.len() || ids.is_empty() {
            let want = format!("a multiple of {width} ids and as many weights ({})", weights.len());
            return Err(TrainingError::Shape { name: "targets".into(), got: vec![ids.len()], want });
        }
        if let Some(&value) = weights.iter().find(|weight| !(**weight >= 0.0 && weight.is_finite())) {
            return Err(TrainingError::BadParameter { name: "weight", value, want: "0 or more" });
        }
        Ok(Self { width, ids, weights })
    }

    /// Row `t` predicts token `t + 1`, from the last token of the prompt on; texts are padded on the right to
    /// `width` rows. Each target has weight 1 until [`Targets::token_mean`] or [`Targets::text_mean`].
    ///
    /// # Errors
    /// A text that is longer than `width` or has nothing to predict; an empty prompt.
    pub fn next_tokens(texts: &[Vec<u32>], prompts: &[usize], width: usize) -> Result<Self> {
        let refuse = |got: Vec<usize>, want: &str| {
            Err(TrainingError::Shape { name: "texts".into(), got, want: want.into() })
        };
        if texts.len() != prompts.len() || texts.is_empty() {
            return refuse(vec![texts.len(), prompts.len()], "as many prompts as texts, and at least one");
        }
        let mut ids = vec![None; texts.len() * width];
        for ((text, &prompt), row) in texts.iter().zip(prompts).zip(ids.chunks_mut(width.max(1))) {
            if prompt == 0 || prompt >= text.len() || text.len() > width {
                let want = "a prompt of at least one token, a response, and no more than the width";
                return refuse(vec![prompt, text.len(), width], want);
            }
            for at in prompt - 1..text.len() - 1 {
                row[at] = Some(text[at + 1]);
            }
        }
        let weights = ids.iter().map(|id| f64::from(u8::from(id.is_some()))).collect();
        Self::new(width, ids, weights)
    }

    /// Rows that have a target.
    pub fn count(&self) -> usize {
        self.ids.iter().flatten().count()
    }

    /// Rows with a target, text by text.
    pub fn lengths(&self) -> Vec<usize> {
        self.ids.chunks(self.width).map(|row| row.iter().flatten().count()).collect()
    }

    /// The same targets, each with weight 1 / their number.
    pub fn token_mean(mut self) -> Self {
        let weight = 1.0 / self.count().max(1) as f64;
        self.weights = self.ids.iter().map(|id| if id.is_some() { weight } else { 0.0 }).collect();
        self
    }

    /// The same targets, weighted so that the loss is the mean over texts of the mean over their tokens.
    pub fn text_mean(mut self) -> Self {
        let lengths = self.lengths();
        let texts = lengths.iter().filter(|&&length| length > 0).count().max(1) as f64;
        for ((ids, weights), length) in
            self.ids.chunks(self.width).zip(self.weights.chunks_mut(self.width)).zip(lengths)
        {
            for (id, weight) in ids.iter().zip(weights) {
                *weight = if id.is_some() { 1.0 / (texts * length as f64) } else { 0.0 };
            }
        }
        self
    }

    /// Log-probability of every target, `[B, T]`; 0 where there is none.
    ///
    /// # Errors
    /// Logits of another shape; a target outside the vocabulary.
    pub fn log_probs(&self, logits: &Tensor) -> Result<Tensor> {
        let batch = self.ids.len() / self.width;
        let dims = logits.dims();
        if dims.len() != 3 || dims[..2] != [batch, self.width] || dims[2] == 0 {
            let want = format!("[{batch}, {}, vocabulary]", self.width);
            return Err(TrainingError::Shape { name: "logits".into(), got: dims.to_vec(), want });
        }
        if let Some(id) = self.ids.iter().flatten().find(|id| **id as usize >= dims[2]) {
            let why = format!("token {id} of a vocabulary of {}", dims[2]);
            return Err(TrainingError::Operand { op: "targets", why });
        }
        let rows = logits.reshape((batch * self.width, dims[2]))?.contiguous()?;
        Ok(rows.apply_op1(Pick { at: self.ids.clone() })?.reshape((batch, self.width))?)
    }

    /// Summed log-probability of each text's targets, `[B]`: what preference losses compare.
    ///
    /// # Errors
    /// As [`Targets::log_probs`].
    pub fn sums(&self, logits: &Tensor) -> Result<Tensor> {
        Ok(self.log_probs(logits)?.sum(1)?)
    }

    /// Mean log-probability of each text's targets, `[B]`: SimPO, ORPO, and length-normalised DPO.
    ///
    /// # Errors
    /// As [`Targets::log_probs`]; a text without targets, which has no mean.
    pub fn means(&self, logits: &Tensor) -> Result<Tensor> {
        let lengths = self.lengths();
        if let Some(text) = lengths.iter().position(|&length| length == 0) {
            let why = format!("text {text} has no targets to take the mean of");
            return Err(TrainingError::Operand { op: "targets", why });
        }
        let inverse: Vec<f64> = lengths.iter().map(|&length| 1.0 / length as f64).collect();
        let count = inverse.len();
        let inverse = Tensor::from_vec(inverse, count, logits.device())?.to_dtype(logits.dtype())?;
        Ok(self.sums(logits)?.mul(&inverse)?)
    }

    /// `-sum w_i log p(x_i)`, a scalar.
    ///
    /// # Errors
    /// As [`Targets::log_probs`].
    pub fn loss(&self, logits: &Tensor) -> Result<Tensor> {
        let log_probs = self.log_probs(logits)?.flatten_all()?;
        let weights = Tensor::from_slice(&self.weights, self.weights.len(), &Device::Cpu)?;
        Ok(log_probs.mul(&weights.to_dtype(logits.dtype())?)?.sum_all()?.neg()?)
    }
}

/// How masked diffusion hides tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// The token that stands for a hidden one.
    pub mask: u32,
    /// Smallest probability of hiding; LLaDA's code has 1e-3.
    pub eps: f64,
    /// Whether the times of a batch are spread evenly, `(b + u) / B` in an order of their own, instead of drawn
    /// one by one. Less variance; LLaDA draws.
    pub stratified: bool,
}

/// Texts with hidden tokens.
#[derive(Clone, Debug)]
pub struct Masked {
    /// The texts as the network sees them.
    pub texts: Vec<Vec<u32>>,
    /// What it should say, with the weights of the masked-diffusion loss.
    pub targets: Targets,
    /// The probability with which each text's tokens were hidden.
    pub probabilities: Vec<f64>,
}

/// Hides tokens as masked diffusion trains: for each text a time `t` in `[0, 1)`, then each token of its
/// `answers` range with probability `p = (1 - eps) t + eps`. The targets' loss is
/// `1/B sum_b 1/|answer_b| sum_hidden CE / p`, whose mean is a bound on the answers' mean negative log-likelihood
/// a token. With the whole text as answer that is LLaDA's pre-training loss, otherwise its SFT loss.
/// Row `t` predicts token `t` itself.
///
/// # Errors
/// Texts of unequal length (pad them; padding inside the answer counts as target, as in LLaDA); an answer that is
/// empty or not inside its text; eps outside (0, 1].
pub fn masked(
    texts: &[Vec<u32>],
    answers: &[Range<usize>],
    masking: Masking,
    rng: &mut impl Rng,
) -> Result<Masked> {
    if !(masking.eps > 0.0 && masking.eps <= 1.0) {
        let (value, want) = (masking.eps, "above 0, at most 1");
        return Err(TrainingError::BadParameter { name: "eps", value, want });
    }
    let (batch, width) = (texts.len(), texts.first().map_or(0, Vec::len));
    let fits = |(text, answer): (&Vec<u32>, &Range<usize>)| {
        text.len() == width && answer.start < answer.end && answer.end <= width
    };
    if batch == 0 || answers.len() != batch || !texts.iter().zip(answers).all(fits) {
        let want = "texts of one length, each with an answer inside it".into();
        return Err(TrainingError::Shape { name: "texts".into(), got: vec![batch, width], want });
    }
    let mut order: Vec<usize> = (0..batch).collect();
    rand::seq::SliceRandom::shuffle(order.as_mut_slice(), rng);
    let shared: f64 = rng.random();
    let mut hidden = texts.to_vec();
    let (mut ids, mut weights) = (vec![None; batch * width], vec![0.0; batch * width]);
    let mut probabilities = Vec::with_capacity(batch);
    for (b, answer) in answers.iter().enumerate() {
        let own: f64 = rng.random();
        let time = if masking.stratified { (order[b] as f64 + shared) / batch as f64 } else { own };
        let p = (1.0 - masking.eps) * time + masking.eps;
        probabilities.push(p);
        for at in answer.clone() {
            if rng.random::<f64>() < p {
                hidden[b][at] = masking.mask;
                ids[b * width + at] = Some(texts[b][at]);
                weights[b * width + at] = 1.0 / (p * batch as f64 * answer.len() as f64);
            }
        }
    }
    Ok(Masked { texts: hidden, targets: Targets::new(width, ids, weights)?, probabilities })
}
