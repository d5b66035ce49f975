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

    /// Rows over some tokens as rows over a vocabulary of which these are a part: entry `i` of a row belongs to
    /// `tokens[i]`, and all others are impossible (`-inf`).
    ///
    /// # Errors
    /// Another number of tokens than entries in a row; a token outside the vocabulary.
    pub fn spread(self, tokens: &[Token], vocab: usize) -> Result<Self> {
        if tokens.len() != self.vocab {
            return Err(ModelError::Length {
                what: "tokens of a part of the vocabulary",
                got: tokens.len(),
                want: self.vocab,
            });
        }
        if let Some((row, &token)) = tokens.iter().enumerate().find(|&(_, &token)| token as usize >= vocab) {
            return Err(ModelError::TokenOutOfRange { row, token, vocab });
        }
        let named = |ids: Vec<Token>| ids.into_iter().map(|id| tokens[id as usize]).collect();
        let values = match self.values {
            LogitValues::Full(values) => {
                let mut full = vec![f32::NEG_INFINITY; self.rows * vocab];
                for (row, part) in values.chunks_exact(tokens.len()).enumerate() {
                    tokens.iter().zip(part).for_each(|(&token, &x)| full[row * vocab + token as usize] = x);
                }
                LogitValues::Full(full)
            }
            LogitValues::TopK { k, ids, values, log_sums } => {
                LogitValues::TopK { k, ids: named(ids), values, log_sums }
            }
            LogitValues::Argmax { ids, values } => LogitValues::Argmax { ids: named(ids), values },
        };
        Ok(Self { vocab, rows: self.rows, values })
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

    /// The `k` largest entries of a row, descending (ties: smaller id), whatever the form: as many of them as
    /// the form knows.
    ///
    /// # Errors
    /// No such row; NaN or `+inf` in it.
    pub fn top(&self, row: usize, k: usize) -> Result<Vec<(Token, f32)>> {
        if row >= self.rows {
            return Err(ModelError::NoSuchRow { what: "top", row, len: self.rows });
        }
        Ok(match &self.values {
            LogitValues::Full(values) => {
                let logits = &values[row * self.vocab..(row + 1) * self.vocab];
                let ids = if k == 0 { Vec::new() } else { top_k(logits, k.min(self.vocab), row)? };
                ids.into_iter().map(|id| (id, logits[id as usize])).collect()
            }
            LogitValues::TopK { k: known, ids, values, .. } => {
                let entries = row * known..row * known + k.min(*known);
                ids[entries.clone()].iter().copied().zip(values[entries].iter().copied()).collect()
            }
            LogitValues::Argmax { ids, values } => [(ids[row], values[row])].into_iter().take(k).collect(),
        })
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
    // Two passes without branches, which the compiler turns into vector code: the largest value and whether
    // anything is not a number, then where the largest is.
    const LANES: usize = 16;
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut not_a_number = [false; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            not_a_number[lane] |= chunk[lane].is_nan();
        }
    }
    let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    let bad = not_a_number.contains(&true) || rest.iter().any(|x| x.is_nan());
    if bad || max.is_infinite() {
        return Err(ModelError::NotFinite { what: "logits", row });
    }
    let at = chunks.iter().position(|chunk| chunk.iter().fold(false, |found, &x| found | (x == max)));
    let from = at.map_or(chunks.len() * LANES, |chunk| chunk * LANES);
    let id = logits[from..].iter().position(|&x| x == max).unwrap_or(0);
    Ok((from + id) as Token)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_by_hand() {
        let full = [0.0, 2.0, 2.0, 1.0, -1.0, 0.0, 0.0, 0.0];
        let argmax = Logits::reduce(&full, 4, LogitForm::Argmax).expect("finite");
        assert_eq!(argmax.values(), &LogitValues::Argmax { ids: vec![1, 1], values: vec![2.0, 0.0] });
        let top = Logits::reduce(&full, 4, LogitForm::TopK(2)).expect("finite");
        let LogitValues::TopK { ids, values, log_sums, .. } = top.values() else { panic!("another form") };
        assert_eq!((ids.as_slice(), values.as_slice()), (&[1, 2, 1, 2][..], &[2.0, 2.0, 0.0, 0.0][..]));
        let sum = (1.0f64 + 2.0 * 2f64.exp() + 1f64.exp()).ln() as f32;
        assert!((log_sums[0] - sum).abs() < 1e-6);
        assert_eq!((top.margin(0), top.argmax(1).expect("exists")), (Some(0.0), 1));
        let whole = Logits::reduce(&full, 4, LogitForm::Full).expect("whole rows");
        assert_eq!((whole.row(1), whole.margin(0)), (Some(&full[4..]), Some(0.0)));
        assert_eq!(whole.top(0, 3).expect("exists"), [(1, 2.0), (2, 2.0), (3, 1.0)]);
        assert_eq!(top.top(0, 3).expect("exists"), [(1, 2.0), (2, 2.0)]);
        // Entries of a part of the vocabulary keep their numbers under their own names.
        let spread = |logits: &Logits| logits.clone().spread(&[5, 0, 7, 2], 8);
        let part = spread(&whole).expect("tokens of the vocabulary");
        let out = f32::NEG_INFINITY;
        assert_eq!(part.row(0), Some(&[2.0, out, 1.0, out, out, 0.0, out, 2.0][..]));
        assert_eq!(spread(&top).and_then(|top| top.top(0, 2)).expect("exists"), [(0, 2.0), (7, 2.0)]);
        assert_eq!(spread(&argmax).and_then(|argmax| argmax.argmax(0)).expect("exists"), 0);
        assert!(matches!(whole.clone().spread(&[1, 2, 3], 8), Err(ModelError::Length { .. })));
        assert!(matches!(
            whole.clone().spread(&[1, 2, 3, 8], 8),
            Err(ModelError::TokenOutOfRange { row: 3, token: 8, vocab: 8 })
        ));
        assert_eq!(argmax.top(1, 3).expect("exists"), [(1, 0.0)]);
        assert!(whole.top(2, 1).is_err() && whole.top(0, 0).expect("exists").is_empty());
        assert!(whole.row(2).is_none() && whole.argmax(2).is_err() && argmax.row(0).is_none());
    }

    #[test]
    fn refuses_what_has_no_order() {
        for form in [LogitForm::Argmax, LogitForm::TopK(1)] {
            for bad in [f32::NAN, f32::INFINITY] {
                assert!(Logits::reduce(&[0.0, bad, 1.0], 3, form).is_err(), "{form:?} of {bad}");
            }
            assert!(Logits::reduce(&[f32::NEG_INFINITY; 3], 3, form).is_err());
        }
        assert!(Logits::reduce(&[0.0; 3], 2, LogitForm::Full).is_err());
        assert!(Logits::reduce(&[0.0; 3], 3, LogitForm::TopK(0)).is_err());
        assert_eq!(
            Logits::reduce(&[1.0, f32::NEG_INFINITY], 2, LogitForm::Argmax).and_then(|l| l.argmax(0)).ok(),
            Some(0)
        );
    }

    proptest! {
        #[test]
        fn forms_agree(full in proptest::collection::vec(prop_oneof![-3i8..3, -100i8..100], 1..200), k in 1usize..250) {
            let full: Vec<f32> = full.into_iter().map(f32::from).collect();
            let mut order: Vec<usize> = (0..full.len()).collect();
            order.sort_by(|&a, &b| full[b].total_cmp(&full[a]).then(a.cmp(&b)));
            let top = Logits::reduce(&full, full.len(), LogitForm::TopK(k)).expect("finite");
            let LogitValues::TopK { ids, .. } = top.values() else { panic!("another form") };
            let want: Vec<Token> = order.iter().take(k).map(|&id| id as Token).collect();
            prop_assert_eq!(ids, &want);
            let argmax = Logits::reduce(&full, full.len(), LogitForm::Argmax).expect("finite");
            prop_assert_eq!(argmax.argmax(0).expect("exists"), order[0] as Token);
        }
    }
}
