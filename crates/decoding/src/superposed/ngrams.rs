//! Counts of n-grams of a corpus, of every length up to a limit, from a sorted array of its suffixes.

use std::ops::Range;
use std::path::Path;

use pilotfish_model::{ModelError, Token};

use crate::state::{self, In, Out};
use crate::{DecodingError, Result};

/// Stands behind every document; no token.
const SEPARATOR: Token = Token::MAX;

/// The longest contexts that tables may have.
const LONGEST: usize = 16;

/// How often each n-gram occurs in a corpus, within a document. Nothing is stored by n-gram: the corpus' suffixes lie
/// sorted by their first tokens, so that all that begin with a context lie together, sorted by what follows it. That is
/// eight bytes a token of the corpus for all lengths together, and two binary searches a look-up.
///
/// ```
/// use pilotfish_decoding::superposed::NGrams;
/// let tables = NGrams::build(2, [&[1, 2, 3, 1, 2, 4][..], &[1, 2]])?;
/// // After 1 2 came 3 and 4; the 1 2 at the end of a document says nothing.
/// assert_eq!(tables.probabilities(&[1, 2], &[4, 5]), Some(vec![0.5, 0.0]));
/// assert_eq!(tables.probabilities(&[2, 2], &[4]), None);
/// # Ok::<(), pilotfish_decoding::DecodingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NGrams {
    longest: usize,
    tokens: Vec<Token>,
    order: Vec<u32>,
}

impl NGrams {
    /// Tables of contexts of 1 to `longest` tokens.
    ///
    /// # Errors
    /// A `longest` of 0 or above 16, a token that is `u32::MAX`, documents of more than 2^32 - 1 tokens in all.
    pub fn build<'a>(longest: usize, documents: impl IntoIterator<Item = &'a [Token]>) -> Result<Self> {
        if longest == 0 || longest > LONGEST {
            let want = "from 1 to 16";
            return Err(DecodingError::BadParameter { name: "longest context", value: longest, want });
        }
        let mut tokens: Vec<Token> = Vec::new();
        for document in documents {
            if let Some(row) = document.iter().position(|&token| token == SEPARATOR) {
                let vocab = SEPARATOR as usize;
                return Err(ModelError::TokenOutOfRange { row, token: SEPARATOR, vocab }.into());
            }
            tokens.extend_from_slice(document);
            tokens.push(SEPARATOR);
        }
        if u32::try_from(tokens.len()).is_err() {
            let want = "below 2^32 tokens";
            return Err(DecodingError::BadParameter { name: "corpus", value: tokens.len(), want });
        }
        let mut out = Self { longest, tokens, order: Vec::new() };
        let mut order: Vec<u32> =
            (0..out.tokens.len()).filter(|&at| out.tokens[at] != SEPARATOR).map(|at| at as u32).collect();
        order.sort_unstable_by(|&a, &b| out.suffix(a).cmp(out.suffix(b)).then(a.cmp(&b)));
        out.order = order;
        Ok(out)
    }

    /// The longest context.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Tokens of the corpus.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether the corpus is empty.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn suffix(&self, at: u32) -> &[Token] {
        self.first(at, self.longest + 1)
    }

    /// The first tokens from a place on.
    fn first(&self, at: u32, length: usize) -> &[Token] {
        let at = at as usize;
        &self.tokens[at..(at + length).min(self.tokens.len())]
    }

    /// Where in the order the suffixes are that begin so.
    fn range(&self, gram: &[Token]) -> Range<usize> {
        let start = self.order.partition_point(|&at| self.first(at, gram.len()) < gram);
        let length = self.order[start..].partition_point(|&at| self.first(at, gram.len()) == gram);
        start..start + length
    }

    /// The maximum-likelihood probabilities of these tokens after a context; `None` if it never occurred with anything
    /// after it, is empty, or is longer than the longest.
    pub fn probabilities(&self, context: &[Token], tokens: &[Token]) -> Option<Vec<f64>> {
        if context.is_empty() || context.len() > self.longest || context.contains(&SEPARATOR) {
            return None;
        }
        let within = &self.order[self.range(context)];
        // All of them have a token or a separator there.
        let next = |at: &u32| self.tokens[*at as usize + context.len()];
        let total = within.partition_point(|at| next(at) < SEPARATOR);
        let share = |&token: &Token| {
            let start = within[..total].partition_point(|at| next(at) < token);
            let count = within[start..total].partition_point(|at| next(at) == token);
            count as f64 / total as f64
        };
        (total > 0).then(|| tokens.iter().map(share).collect())
    }

    /// Writes them to a file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut out = Out::default();
        out.u32(self.longest as u32);
        out.u32(self.tokens.len() as u32);
        self.tokens.iter().chain(&self.order).for_each(|&number| out.u32(number));
        state::save(path, b"NGRM", &out.0)
    }

    /// Reads them from a file.
    ///
    /// # Errors
    /// A file that cannot be read, is spoilt, or holds something else.
    pub fn load(path: &Path) -> Result<Self> {
        let payload = state::load(path, b"NGRM")?;
        let mut input = In(&payload);
        let (Some(longest), Some(count)) = (input.u32(), input.u32()) else {
            return Err(state::bad(path, "it is too short"));
        };
        let (longest, count) = (longest as usize, count as usize);
        if longest == 0 || longest > LONGEST || count > input.left() / 4 || input.left() % 4 != 0 {
            return Err(state::bad(path, "its sizes do not fit"));
        }
        let mut numbers = Vec::with_capacity(input.left() / 4);
        while let Some(number) = input.u32() {
            numbers.push(number);
        }
        let order = numbers.split_off(count);
        let out = Self { longest, tokens: numbers, order };
        let whole = out.tokens.last().is_none_or(|&token| token == SEPARATOR);
        let places = out.tokens.iter().filter(|&&token| token != SEPARATOR).count();
        let good = |at: u32| out.tokens.get(at as usize).is_some_and(|&token| token != SEPARATOR);
        if !whole || places != out.order.len() || !out.order.iter().all(|&at| good(at)) {
            return Err(state::bad(path, "its places do not fit"));
        }
        // Sorted, and by place where equal: so no place is there twice.
        let before =
            |pair: &[u32]| out.suffix(pair[0]).cmp(out.suffix(pair[1])).then(pair[0].cmp(&pair[1])).is_lt();
        if !out.order.windows(2).all(before) {
            return Err(state::bad(path, "it is not sorted"));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn survive_a_restart_and_refuse_spoilt_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tables");
        let tables = NGrams::build(3, [&[1, 2, 1, 2][..], &[2, 1], &[]]).expect("valid");
        tables.save(&path).expect("writable");
        assert_eq!(NGrams::load(&path).expect("whole"), tables);
        state::spoil(&path, NGrams::load);
        // Whole, but of no corpus.
        let refused = |numbers: &[u32]| {
            let mut out = Out::default();
            numbers.iter().for_each(|&number| out.u32(number));
            state::save(&path, b"NGRM", &out.0).expect("writable");
            assert!(matches!(NGrams::load(&path), Err(DecodingError::State { .. })), "{numbers:?}");
        };
        let end = SEPARATOR;
        refused(&[]);
        refused(&[3]);
        refused(&[0, 2, 5, end, 0]);
        refused(&[17, 2, 5, end, 0]);
        refused(&[3, 9, 5, end, 0]);
        refused(&[3, 2, 5, 6, 0, 1]);
        refused(&[3, 2, 5, end, 1]);
        refused(&[3, 2, 5, end, 7]);
        refused(&[3, 3, 5, 6, end, 1, 0]);
        refused(&[3, 3, 5, 5, end, 0, 0]);
        refused(&[3, 3, 5, 6, end, 0]);
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert!(NGrams::build(0, []).is_err() && NGrams::build(17, []).is_err());
        assert!(NGrams::build(2, [&[1, SEPARATOR][..]]).is_err());
        let empty = NGrams::build(2, []).expect("valid");
        assert!(empty.is_empty() && empty.probabilities(&[1], &[2]).is_none());
        let tables = NGrams::build(2, [&[1, 2, 3][..]]).expect("valid");
        assert_eq!((tables.len(), tables.longest()), (3, 2));
        for context in [&[][..], &[1, 2, 3], &[SEPARATOR], &[3, SEPARATOR], &[3]] {
            assert_eq!(tables.probabilities(context, &[1]), None, "{context:?}");
        }
        assert_eq!(tables.probabilities(&[1], &[2, SEPARATOR]), Some(vec![1.0, 0.0]));
    }

    proptest! {
        #[test]
        fn counts_are_those_of_counting(
            documents in proptest::collection::vec(proptest::collection::vec(0u32..4, 0..30), 0..6),
            longest in 1usize..5,
        ) {
            let tables = NGrams::build(longest, documents.iter().map(Vec::as_slice)).expect("valid");
            let mut counts: BTreeMap<&[Token], [f64; 4]> = BTreeMap::new();
            for document in &documents {
                for length in 1..=longest {
                    for window in document.windows(length + 1) {
                        counts.entry(&window[..length]).or_default()[window[length] as usize] += 1.0;
                    }
                }
            }
            for length in 1..=longest {
                for index in 0..4usize.pow(length as u32) {
                    let context: Vec<Token> =
                        (0..length).map(|at| (index / 4usize.pow(at as u32) % 4) as Token).collect();
                    let want = counts.get(&context[..]).map(|row| {
                        let total: f64 = row.iter().sum();
                        row.iter().map(|count| count / total).collect::<Vec<_>>()
                    });
                    prop_assert_eq!(tables.probabilities(&context, &[0, 1, 2, 3]), want);
                }
            }
        }
    }
}
