use crate::{ModelError, Result, Token};

/// The form in which logits are wanted: a 49k-wide row is not copied where one index is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitForm {
    /// Whole rows.
    #[default]
    Full,
    /// The `k` largest of each row, descending (ties: smaller id first), with the row's log-sum-exp.
    TopK(usize),
    /// The largest of each row (ties: smaller id).
    Argmax,
}

impl LogitForm {
    /// Rejects top-0.
    pub fn check(self) -> Result<()> {
        match self {
            Self::TopK(0) => Err(ModelError::BadParameter { name: "top-k", value: 0.0, want: "at least 1" }),
            _ => Ok(()),
        }
    }
}

/// Rows of logits in the form asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    vocab: usize,
    rows: usize,
    values: LogitValues,
}

/// The numbers behind [`Logits`].
#[derive(Clone, Debug, PartialEq)]
pub enum LogitValues {
    /// Row-major `[rows, vocab]`.
    Full(Vec<f32>),
    /// Row-major `[rows, k]`, descending.
    TopK {
        /// Entries a row.
        k: usize,
        /// Ids.
        ids: Vec<Token>,
        /// Their logits.
        values: Vec<f32>,
        /// `log(sum(exp(row)))` of each whole row, so that `value - log_sums[row]` is a log-probability.
        log_sums: Vec<f32>,
    },
    /// One id and its logit a row.
    Argmax {
        /// Ids.
        ids: Vec<Token>,
        /// Their logits.
        values: Vec<f32>,
    },
}

impl Logits {
    /// No rows.
    pub fn none(vocab: usize) -> Self {
        Self { vocab, rows: 0, values: LogitValues::Full(Vec::new()) }
    }

    /// Brings whole rows `[rows, vocab]` into the form asked for; whole rows are copied.
    ///
    /// # Errors
    /// Numbers that do not make whole rows; NaN or `+inf` where an order is needed.
    pub fn reduce(full: &[f32], vocab: usize, form: LogitForm) -> Result<Self> {
        form.check()?;
        if vocab == 0 || full.len() % vocab != 0 {
            return Err(ModelError::Length { what: "numbers in logit rows", got: full.len(), want: vocab });
        }
        let rows = full.len() / vocab;
        let values = match form {
            LogitForm::Full => LogitValues::Full(full.to_vec()),
            LogitForm::Argmax => {
                let (mut ids, mut values) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
                for (row, logits) in full.chunks_exact(vocab).enumerate() {
                    let id = argmax(logits, row)?;
                    ids.push(id);
                    values.push(logits[id as usize]);
                }
                LogitValues::Argmax { ids, values }
            }
            LogitForm::TopK(k) => {
                let k = k.min(vocab);
                let (mut ids, mut values, mut log_sums) = (Vec::new(), Vec::new(), Vec::with_capacity(rows));
                for (row, logits) in full.chunks_exact(vocab).enumerate() {
                    let top = top_k(logits, k, row)?;
                    let max = logits[top[0] as usize];
                    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
                    log_sums.push((f64::from(max) + sum.ln()) as f32);
                    values.extend(top.iter().map(|&id| logits[id as usize]));
                    ids.extend(top);
                }
                LogitValues::TopK { k, ids, values, log_sums }
            }
        };
        Ok(Self { vocab, rows, values })
    }

    /// As [`Logits::reduce`], but takes whole rows over without a copy when they are wanted whole.
    pub fn from_rows(full: Vec<f32>, vocab: usize, form: LogitForm) -> Result<Self> {
        match form {
            LogitForm::Full if vocab > 0 && full.len() % vocab == 0 => {
                Ok(Self { vocab, rows: full.len() / vocab, values: LogitValues::Full(full) })
            }
            _ => Self::reduce(&full, vocab, form),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Vocabulary size.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The numbers.
    pub fn values(&self) -> &LogitValues {
        &self.values
    }

    /// A whole row; `None` unless the form is [`LogitForm::Full`] and the row exists.
    pub fn row(&self, row: usize) -> Option<&[f32]> {
        match &self.values {
            LogitValues::Full(values) => values.get(row * self.vocab..(row + 1) * self.vocab),
            _ => None,
        }
    }

    /// The largest entry of a row, whatever the form (ties: smaller id).
    ///
    /// # Errors
    /// No such row; NaN or `+inf` in it.
    pub fn argmax(&self, row: usize) -> Result<Token> {
        if row >= self.rows {
            return Err(ModelError::NoSuchRow { what: "argmax", row, len: self.rows });
        }
        match &self.values {
            LogitValues::Full(values) => argmax(&values[row * self.vocab..(row + 1) * self.vocab], row),
            LogitValues::TopK { k, ids, .. } => Ok(ids[row * k]),
            LogitValues::Argmax { ids, .. } => Ok(ids[row]),
        }
    }

    /// How far the largest logit lies above the second; `None` unless two entries of the row are known.
    /// Greedy outputs of two machines may differ only where this is small.
    pub fn margin(&self, row: usize) -> Option<f32> {
        match &self.values {
            LogitValues::Full(_) => {
                let top = top_k(self.row(row)?, 2.min(self.vocab), row).ok()?;
                let logits = self.row(row)?;
                Some(logits[top[0] as usize] - logits[*top.get(1)? as usize])
            }
            LogitValues::TopK { k, values, .. } if *k >= 2 && row < self.rows => {
                Some(values[row * k] - values[row * k + 1])
            }
            _ => None,
        }
    }
}

fn checked(value: f32, row: usize) -> Result<f32> {
    if value.is_nan() || value == f32::INFINITY {
        return Err(ModelError::NotFinite { what: "logits", row });
    }
    Ok(value)
}

fn argmax(logits: &[f32], row: usize) -> Result<Token> {
    let mut best = (0, f32::NEG_INFINITY);
    let mut bad = false;
    for (id, &value) in logits.iter().enumerate() {
        bad |= value.is_nan() | (value == f32::INFINITY);
        if value > best.1 {
            best = (id, value);
        }
    }
    if bad || best.1 == f32::NEG_INFINITY {
        return Err(ModelError::NotFinite { what: "logits", row });
    }
    Ok(best.0 as Token)
}

/// Ids of the `k` largest, descending, ties by smaller id.
fn top_k(logits: &[f32], k: usize, row: usize) -> Result<Vec<Token>> {
    for &value in logits {
        checked(value, row)?;
    }
    let order =
        |a: &Token, b: &Token| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    let mut ids: Vec<Token> = (0..logits.len() as Token).collect();
    if k < ids.len() {
        ids.select_nth_unstable_by(k - 1, order);
        ids.truncate(k);
    }
    ids.sort_unstable_by(order);
    if ids.first().is_none_or(|&id| logits[id as usize] == f32::NEG_INFINITY) {
        return Err(ModelError::NotFinite { what: "logits", row });
    }
    Ok(ids)
}
