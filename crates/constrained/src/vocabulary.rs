use std::sync::atomic::{AtomicU64, Ordering};

use pilotfish_model::Token;

use crate::{ConstrainedError, Result};

/// The bytes that every token stands for, and the tokens that end a text.
///
/// A token without bytes (a control token, an id that no token has) never occurs under a constraint. All end tokens
/// count as one event, "the text ends here".
///
/// ```
/// use pilotfish_constrained::Vocabulary;
/// // a, b, ab, and token 3 ends a text.
/// let bytes = vec![Some(b"a".to_vec()), Some(b"b".to_vec()), Some(b"ab".to_vec()), None];
/// let vocabulary = Vocabulary::new(bytes, vec![3])?;
/// assert_eq!((vocabulary.len(), vocabulary.bytes(2), vocabulary.bytes(3)), (4, Some(&b"ab"[..]), None));
/// assert!(vocabulary.is_end(3));
/// # Ok::<(), pilotfish_constrained::ConstrainedError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Vocabulary {
    bytes: Vec<Option<Vec<u8>>>,
    end: Vec<Token>,
    is_end: Vec<bool>,
    /// Tokens with bytes, in the order of their bytes.
    sorted: Vec<Token>,
    /// For each of `sorted`, the bytes it shares with the one before.
    shared: Vec<usize>,
    identity: u64,
}

static IDENTITIES: AtomicU64 = AtomicU64::new(0);

impl Vocabulary {
    /// From the bytes of each token, in order. End tokens lose their bytes, and so do tokens of no bytes: they
    /// would let a text go on for ever without changing it.
    ///
    /// # Errors
    /// No end token, or one outside the vocabulary.
    pub fn new(bytes: Vec<Option<Vec<u8>>>, end: Vec<Token>) -> Result<Self> {
        let vocab = bytes.len();
        if end.is_empty() || end.iter().any(|&token| token as usize >= vocab) {
            return Err(ConstrainedError::End { end, vocab });
        }
        let mut is_end = vec![false; vocab];
        end.iter().for_each(|&token| is_end[token as usize] = true);
        let mut bytes = bytes;
        for (token, own) in bytes.iter_mut().enumerate() {
            if is_end[token] || own.as_ref().is_some_and(Vec::is_empty) {
                *own = None;
            }
        }
        let mut sorted: Vec<Token> =
            (0..vocab as Token).filter(|&token| bytes[token as usize].is_some()).collect();
        sorted.sort_by(|&a, &b| bytes[a as usize].cmp(&bytes[b as usize]));
        let own = |token: Token| bytes[token as usize].as_deref().unwrap_or_default();
        let shared = (0..sorted.len())
            .map(|at| match at.checked_sub(1) {
                None => 0,
                Some(before) => {
                    own(sorted[before]).iter().zip(own(sorted[at])).take_while(|(a, b)| a == b).count()
                }
            })
            .collect();
        let identity = IDENTITIES.fetch_add(1, Ordering::Relaxed);
        Ok(Self { bytes, end, is_end, sorted, shared, identity })
    }

    /// A vocabulary of single bytes, token `b` being byte `b`, and token 256 that ends a text.
    pub fn single_bytes() -> Self {
        let bytes = (0..=255u8).map(|byte| Some(vec![byte])).chain([None]).collect();
        Self::new(bytes, vec![256]).unwrap_or_else(|_| unreachable!("token 256 is the last one"))
    }

    /// The same, in which further tokens end a text: those for whose bytes `ends` is true.
    ///
    /// # Errors
    /// None beyond those of [`Vocabulary::new`].
    pub fn ending(&self, ends: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let more = self.sorted.iter().copied().filter(|&token| ends(self.bytes(token).unwrap_or_default()));
        let end = self.end.iter().copied().chain(more).collect();
        Self::new(self.bytes.clone(), end)
    }

    /// Tells vocabularies apart; clones share it.
    pub(crate) fn identity(&self) -> u64 {
        self.identity
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none. Never: at least one token ends a text.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes of a token; `None` for end tokens, control tokens, and outside the vocabulary.
    pub fn bytes(&self, token: Token) -> Option<&[u8]> {
        self.bytes.get(token as usize)?.as_deref()
    }

    /// The tokens that end a text; the first stands for all.
    pub fn end(&self) -> &[Token] {
        &self.end
    }

    /// Whether a token ends a text.
    pub fn is_end(&self, token: Token) -> bool {
        self.is_end.get(token as usize).copied().unwrap_or(false)
    }

    /// The bytes of a text; end and control tokens have none.
    pub fn text(&self, tokens: &[Token]) -> Vec<u8> {
        tokens.iter().filter_map(|&token| self.bytes(token)).flatten().copied().collect()
    }

    /// Tokens with bytes in the order of their bytes, each with the number of bytes it shares with the one before.
    pub fn sorted(&self) -> impl Iterator<Item = (Token, &[u8], usize)> {
        self.sorted
            .iter()
            .zip(&self.shared)
            .map(|(&token, &shared)| (token, self.bytes(token).unwrap_or_default(), shared))
    }
}

/// A set of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    words: Vec<u64>,
    len: usize,
}

impl Mask {
    /// No token of a vocabulary of `len`.
    pub fn none(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    /// Adds a token; those outside the vocabulary are ignored.
    pub fn allow(&mut self, token: Token) {
        if (token as usize) < self.len {
            self.words[token as usize / 64] |= 1 << (token % 64);
        }
    }

    /// Drops the tokens that are not in another set of the same vocabulary.
    pub(crate) fn retain(&mut self, other: &Mask) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// Whether a token is in the set.
    pub fn allows(&self, token: Token) -> bool {
        (token as usize) < self.len && self.words[token as usize / 64] >> (token % 64) & 1 == 1
    }

    /// Tokens in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.len
    }

    /// The tokens in the set, ascending.
    pub fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            std::iter::successors((word != 0).then_some(word), |word| {
                let rest = word & (word - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |word| at as Token * 64 + word.trailing_zeros())
        })
    }

    /// From words of 32 bits, the lowest bit first.
    pub(crate) fn from_words(words: &[u32], len: usize) -> Self {
        let mut mask = Self::none(len);
        for (at, pair) in words.chunks(2).enumerate().take(mask.words.len()) {
            mask.words[at] = u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
        }
        if len % 64 != 0
            && let Some(last) = mask.words.last_mut()
        {
            *last &= (1 << (len % 64)) - 1;
        }
        mask
    }

    /// Sets the logits of all other tokens to `-inf`.
    pub fn apply(&self, logits: &mut [f32]) {
        for (chunk, &word) in logits.chunks_mut(64).zip(&self.words) {
            if word != u64::MAX {
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_sets() {
        let mut mask = Mask::none(130);
        [0, 63, 64, 129, 130, 7000].iter().for_each(|&token| mask.allow(token));
        assert_eq!(mask.tokens().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert_eq!(
            (mask.count(), mask.allows(64), mask.allows(65), mask.allows(130)),
            (4, true, false, false)
        );
        let mut logits = vec![1.0; 130];
        mask.apply(&mut logits);
        let kept: Vec<usize> = (0..130).filter(|&at| logits[at] == 1.0).collect();
        assert_eq!(kept, [0, 63, 64, 129]);
        let words = [u32::MAX; 5];
        assert_eq!(Mask::from_words(&words, 130).count(), 130);
        assert_eq!(Mask::from_words(&[1, 2], 64).tokens().collect::<Vec<_>>(), [0, 33]);
    }

    #[test]
    fn vocabularies_sort_and_refuse() {
        let bytes =
            |list: &[&str]| list.iter().map(|text| Some(text.as_bytes().to_vec())).collect::<Vec<_>>();
        let vocabulary = Vocabulary::new(bytes(&["b", "ab", "a", "", "abc", "."]), vec![5]).unwrap();
        let sorted: Vec<_> = vocabulary.sorted().map(|(token, _, shared)| (token, shared)).collect();
        assert_eq!(sorted, [(2, 0), (1, 1), (4, 2), (0, 0)]);
        assert_eq!(vocabulary.text(&[4, 5, 3, 0, 99]), b"abcb");
        assert!(Vocabulary::new(bytes(&["a"]), vec![]).is_err());
        assert!(Vocabulary::new(bytes(&["a"]), vec![1]).is_err());
        let more = vocabulary.ending(|bytes| bytes.contains(&b'c')).unwrap();
        assert_eq!((more.end(), more.bytes(4)), (&[5, 4][..], None));
    }
}
