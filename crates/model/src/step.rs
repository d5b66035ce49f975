use crate::{LogitForm, Logits, ModelError, ModelInfo, Result, Token};

/// What the rows of a step are made of.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids, one a row.
    Ids(&'a [Token]),
    /// Vectors, row-major `[T, width]`: embeddings, or the residual stream when the step runs over a range
    /// of layers that does not start at 0.
    Vectors {
        /// `T * width` numbers.
        values: &'a [f32],
        /// Numbers a row.
        width: usize,
    },
}

impl Input<'_> {
    /// Number of rows `T`.
    pub fn rows(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Vectors { values, width } => values.len().checked_div(*width).unwrap_or(0),
        }
    }
}

/// The parent of each row of a step. Rows are counted absolutely: the cache's rows come first
/// (`0..len`), row `i` of the step becomes row `len + i`.
#[derive(Clone, Copy, Debug)]
pub enum Parents<'a> {
    /// Each row follows the one before; the first follows the cache's last row.
    Chain,
    /// One absolute row a row of the step, each smaller than the row's own; `None` starts a new sequence.
    Rows(&'a [Option<usize>]),
}

/// Which rows of a step should be answered with logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowSet<'a> {
    /// No row: the head is not run.
    None,
    /// The last row.
    Last,
    /// Every row.
    All,
    /// These rows of the step (`0..T`), in this order.
    Rows(&'a [usize]),
}

/// A place in the network, named by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tap {
    /// The residual stream after `l` layers, not normalised; `Residual(0)` is the (scaled) embedding.
    Residual(usize),
    /// The state the head reads: after the final norm.
    FinalNormed,
}

impl std::fmt::Display for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Residual(layer) => write!(f, "residual:{layer}"),
            Self::FinalNormed => f.write_str("final-normed"),
        }
    }
}

/// One call: append `T` rows to the cache, and answer for some of them.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The rows.
    pub input: Input<'a>,
    /// Their parents.
    pub parents: Parents<'a>,
    /// Rows that need logits.
    pub logits: RowSet<'a>,
    /// In which form.
    pub form: LogitForm,
    /// Taps wanted, for all `T` rows.
    pub taps: &'a [Tap],
}

impl<'a> Step<'a> {
    /// A chain of tokens with full logits for the last one.
    pub fn chain(ids: &'a [Token]) -> Self {
        Self {
            input: Input::Ids(ids),
            parents: Parents::Chain,
            logits: RowSet::Last,
            form: LogitForm::Full,
            taps: &[],
        }
    }

    /// Tokens with parents, with full logits for each.
    pub fn tree(ids: &'a [Token], parents: &'a [Option<usize>]) -> Self {
        Self {
            input: Input::Ids(ids),
            parents: Parents::Rows(parents),
            logits: RowSet::All,
            form: LogitForm::Full,
            taps: &[],
        }
    }

    /// The same step over vectors, row-major `[T, width]`.
    pub fn vectors(self, values: &'a [f32], width: usize) -> Self {
        Self { input: Input::Vectors { values, width }, ..self }
    }

    /// The same step, answering for these rows.
    pub fn want(self, logits: RowSet<'a>) -> Self {
        Self { logits, ..self }
    }

    /// The same step, with logits in this form.
    pub fn form(self, form: LogitForm) -> Self {
        Self { form, ..self }
    }

    /// The same step, with these taps.
    pub fn taps(self, taps: &'a [Tap]) -> Self {
        Self { taps, ..self }
    }

    /// Number of rows `T`.
    pub fn rows(&self) -> usize {
        self.input.rows()
    }

    /// The rows of the step (`0..T`) that need logits, in order.
    pub fn wanted(&self) -> Vec<usize> {
        let rows = self.rows();
        match self.logits {
            RowSet::None => Vec::new(),
            RowSet::Last => rows.checked_sub(1).into_iter().collect(),
            RowSet::All => (0..rows).collect(),
            RowSet::Rows(list) => list.to_vec(),
        }
    }

    /// Checks everything that does not depend on the cache: at least one row, ids inside the vocabulary,
    /// widths, wanted rows, and that the model has the taps and the inputs asked for.
    pub fn check(&self, info: &ModelInfo) -> Result<()> {
        let rows = self.rows();
        match self.input {
            Input::Ids(ids) => check_ids(ids, info.vocab)?,
            Input::Vectors { values, width } => {
                info.require(crate::Capability::Embeddings)?;
                if width != info.width {
                    return Err(ModelError::Length {
                        what: "width of input vectors",
                        got: width,
                        want: info.width,
                    });
                }
                if width == 0 || values.len() % width != 0 {
                    let want = rows * width;
                    return Err(ModelError::Length {
                        what: "numbers in input vectors",
                        got: values.len(),
                        want,
                    });
                }
                if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                    return Err(ModelError::NotFinite { what: "input vectors", row: at / width });
                }
            }
        }
        if rows == 0 {
            return Err(ModelError::EmptyStep);
        }
        if let Parents::Rows(parents) = self.parents
            && parents.len() != rows
        {
            return Err(ModelError::Length { what: "parents of a step", got: parents.len(), want: rows });
        }
        if let RowSet::Rows(list) = self.logits
            && let Some(&row) = list.iter().find(|&&row| row >= rows)
        {
            return Err(ModelError::NoSuchRow { what: "rows wanted", row, len: rows });
        }
        self.form.check()?;
        self.taps.iter().try_for_each(|tap| info.require_tap(*tap))
    }
}

/// Checks that every id lies inside the vocabulary.
pub(crate) fn check_ids(ids: &[Token], vocab: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= vocab) {
        Some(row) => Err(ModelError::TokenOutOfRange { row, token: ids[row], vocab }),
        None => Ok(()),
    }
}

/// The rows of one tap.
#[derive(Clone, Debug, PartialEq)]
pub struct TapRows {
    /// Which tap.
    pub tap: Tap,
    /// Numbers a row.
    pub width: usize,
    /// Row-major `[T, width]`.
    pub values: Vec<f32>,
}

impl TapRows {
    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

/// The answer to a [`Step`].
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// Logits, one row for each row wanted, in the order wanted.
    pub logits: Logits,
    /// Taps, in the order asked for.
    pub taps: Vec<TapRows>,
}

impl StepOutput {
    /// The rows of a tap, if it was asked for.
    pub fn tap(&self, tap: Tap) -> Option<&TapRows> {
        self.taps.iter().find(|rows| rows.tap == tap)
    }
}
