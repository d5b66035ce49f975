use rand::Rng;

use super::{Tape, causal_by_tape};
use crate::sampling::Distribution;
use crate::{ModelError, Result, StreamRng, Token};

/// A Markov model of any order given by its table: the next token's distribution for every context of the
/// last `order` tokens. Near the start of a text, where fewer exist, missing tokens count as token 0.
///
/// ```
/// use pilotfish_model::{Step, Steps, toy::TableModel};
/// // Order 1 over two tokens: 0 is followed by 1 for sure, 1 by either.
/// let mut model = TableModel::new(1, 2, vec![0.0, 1.0, 0.5, 0.5])?;
/// let answer = model.step(&Step::chain(&[1, 0]))?;
/// assert_eq!(answer.logits.argmax(0)?, 1);
/// assert_eq!(model.text_probability(&[0], &[1, 1, 0]), 1.0 * 0.5 * 0.5);
/// # Ok::<(), pilotfish_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TableModel {
    tape: Tape,
    law: Table,
}

#[derive(Clone, Debug)]
struct Table {
    order: usize,
    vocab: usize,
    probs: Vec<f64>,
}

impl Table {
    fn row(&self, path: &[Token]) -> &[f64] {
        let missing = self.order.saturating_sub(path.len());
        let last = &path[path.len() - (self.order - missing)..];
        let context = last.iter().fold(0, |context, &token| context * self.vocab + token as usize);
        &self.probs[context * self.vocab..(context + 1) * self.vocab]
    }

    fn logits(&self, path: &[Token]) -> Vec<f32> {
        self.row(path).iter().map(|&prob| prob.ln() as f32).collect()
    }
}

/// Tables beyond this many numbers are refused.
const LARGEST: usize = 1 << 24;

impl TableModel {
    /// A model from its table, row-major `[vocab^order, vocab]`, contexts counted with their oldest token as
    /// the leading digit. Rows are normalised.
    ///
    /// # Errors
    /// A table of another size, or a row that is no distribution.
    pub fn new(order: usize, vocab: usize, table: Vec<f64>) -> Result<Self> {
        let want = size(order, vocab)?;
        if table.len() != want {
            return Err(ModelError::Length { what: "numbers in a table", got: table.len(), want });
        }
        let mut probs = Vec::with_capacity(want);
        for row in table.chunks_exact(vocab) {
            probs.extend_from_slice(Distribution::from_weights(row.to_vec())?.probs());
        }
        let tape = Tape::new(format!("table of order {order} over {vocab}"), vocab, 1 << 20, Vec::new());
        Ok(Self { tape, law: Table { order, vocab, probs } })
    }

    /// A random table: each row's weights are `-ln(u)^sharpness`; 1 is uniform over distributions, more is
    /// spikier.
    pub fn random(order: usize, vocab: usize, sharpness: f64, rng: &mut StreamRng) -> Result<Self> {
        let table =
            (0..size(order, vocab)?).map(|_| (-(1.0 - rng.random::<f64>()).ln()).powf(sharpness) + 1e-9);
        Self::new(order, vocab, table.collect())
    }

    /// A model counted from a text: `smoothing` is added to every count. Order 2 is the tri-gram model.
    pub fn count(order: usize, vocab: usize, text: &[Token], smoothing: f64) -> Result<Self> {
        if !(smoothing > 0.0) {
            return Err(ModelError::BadParameter { name: "smoothing", value: smoothing, want: "above 0" });
        }
        crate::step::check_ids(text, vocab)?;
        let mut table = vec![smoothing; size(order, vocab)?];
        for window in text.windows(order + 1) {
            table[window.iter().fold(0, |at, &token| at * vocab + token as usize)] += 1.0;
        }
        Self::new(order, vocab, table)
    }

    /// The same model mixed with the uniform one: `(1 - e) p + e / V`.
    pub fn mixed(&self, e: f64) -> Result<Self> {
        let uniform = e / self.law.vocab as f64;
        let table = self.law.probs.iter().map(|prob| (1.0 - e) * prob + uniform).collect();
        Self::new(self.law.order, self.law.vocab, table)
    }

    /// The exact distribution of the token after a text.
    pub fn next(&self, text: &[Token]) -> Distribution {
        Distribution::from_weights(self.law.row(text).to_vec())
            .unwrap_or_else(|_| unreachable!("rows were normalised when the table was made"))
    }

    /// The exact probability of a continuation.
    pub fn text_probability(&self, text: &[Token], continuation: &[Token]) -> f64 {
        let mut path = text.to_vec();
        continuation.iter().fold(1.0, |product, &token| {
            let prob = self.next(&path).prob(token);
            path.push(token);
            product * prob
        })
    }

    /// Every continuation of a length with its exact probability.
    pub fn enumerate(&self, text: &[Token], length: usize) -> Vec<(Vec<Token>, f64)> {
        let mut all = vec![(Vec::new(), 1.0)];
        for _ in 0..length {
            all = all
                .into_iter()
                .flat_map(|(continuation, prob)| {
                    let path: Vec<Token> = text.iter().chain(&continuation).copied().collect();
                    let next = self.next(&path);
                    (0..self.law.vocab as Token).map(move |token| {
                        let mut longer = continuation.clone();
                        longer.push(token);
                        (longer, prob * next.prob(token))
                    })
                })
                .collect();
        }
        all
    }

    /// The same model with these end tokens.
    pub fn with_end(mut self, end: Vec<Token>) -> Self {
        self.tape.info.end = end;
        self
    }

    /// The same model with this many positions.
    pub fn with_context(mut self, context: usize) -> Self {
        self.tape.info.context = context;
        self
    }

    /// Steps so far.
    pub fn calls(&self) -> usize {
        self.tape.calls
    }
}

fn size(order: usize, vocab: usize) -> Result<usize> {
    let size = u32::try_from(order + 1).ok().and_then(|power| vocab.checked_pow(power));
    match size {
        Some(size) if size > 0 && size <= LARGEST => Ok(size),
        _ => Err(ModelError::BadParameter {
            name: "vocab",
            value: vocab as f64,
            want: "1 <= vocab^(order+1) <= 2^24",
        }),
    }
}

causal_by_tape!(TableModel);
