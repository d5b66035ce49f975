use std::sync::Arc;

use crate::{Mask, Result, Vocabulary};

/// A language over bytes, read from left to right: the state after some text.
///
/// Two questions are asked of a text: can it still become one of the language (the *prefix* test), and is it one
/// (the *complete* test)? The prefix test must never be false for a text that can be completed. One that is
/// sometimes true for a text that cannot costs variance and work, never correctness: such a text dies later.
pub trait Constraint: Send {
    /// Whether the text followed by `more` can still be completed. The text stays as it is.
    ///
    /// # Errors
    /// More work than the constraint's limits allow.
    fn prefix(&mut self, more: &[u8]) -> Result<bool>;

    /// Whether the text is complete.
    ///
    /// # Errors
    /// More work than the constraint's limits allow.
    fn complete(&mut self) -> Result<bool>;

    /// Appends to the text, and says whether it can still be completed. After a `false`, it never can again.
    ///
    /// # Errors
    /// More work than the constraint's limits allow.
    fn push(&mut self, more: &[u8]) -> Result<bool>;

    /// Another reader at the same place.
    fn fork(&self) -> Box<dyn Constraint>;

    /// The tokens that may come next, end tokens if the text is complete.
    ///
    /// # Errors
    /// More work than the constraint's limits allow.
    fn mask(&mut self, vocabulary: &Vocabulary) -> Result<Mask> {
        let mut mask = Mask::none(vocabulary.len());
        // Length of a prefix of the token before that cannot be completed.
        let mut dead = usize::MAX;
        for (token, bytes, shared) in vocabulary.sorted() {
            if dead <= shared {
                continue;
            }
            dead = usize::MAX;
            if self.prefix(bytes)? {
                mask.allow(token);
                continue;
            }
            dead = bytes.len();
            while dead > 1 && !self.prefix(&bytes[..dead - 1])? {
                dead -= 1;
            }
        }
        if self.complete()? {
            vocabulary.end().iter().for_each(|&token| mask.allow(token));
        }
        Ok(mask)
    }
}

impl Constraint for Box<dyn Constraint> {
    fn prefix(&mut self, more: &[u8]) -> Result<bool> {
        (**self).prefix(more)
    }

    fn complete(&mut self) -> Result<bool> {
        (**self).complete()
    }

    fn push(&mut self, more: &[u8]) -> Result<bool> {
        (**self).push(more)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        (**self).fork()
    }

    fn mask(&mut self, vocabulary: &Vocabulary) -> Result<Mask> {
        (**self).mask(vocabulary)
    }
}

/// No constraint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anything;

impl Constraint for Anything {
    fn prefix(&mut self, _: &[u8]) -> Result<bool> {
        Ok(true)
    }

    fn complete(&mut self) -> Result<bool> {
        Ok(true)
    }

    fn push(&mut self, _: &[u8]) -> Result<bool> {
        Ok(true)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(*self)
    }
}

/// Texts of both languages. The prefix test asks both, so it may be true for a text that neither can finish in the
/// other's way.
pub struct Both<A, B>(pub A, pub B);

impl<A: Constraint + 'static, B: Constraint + 'static> Constraint for Both<A, B> {
    fn prefix(&mut self, more: &[u8]) -> Result<bool> {
        Ok(self.0.prefix(more)? && self.1.prefix(more)?)
    }

    fn complete(&mut self) -> Result<bool> {
        Ok(self.0.complete()? && self.1.complete()?)
    }

    fn push(&mut self, more: &[u8]) -> Result<bool> {
        // Both advance, so that both stand at the same place.
        let (first, second) = (self.0.push(more)?, self.1.push(more)?);
        Ok(first && second)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Both(self.0.fork(), self.1.fork()))
    }

    fn mask(&mut self, vocabulary: &Vocabulary) -> Result<Mask> {
        /// A mask costs about as much as tests of one token in so many.
        const SHARE: usize = 64;
        let first = self.0.mask(vocabulary)?;
        if first.count() > vocabulary.len() / SHARE {
            let mut mask = self.1.mask(vocabulary)?;
            mask.retain(&first);
            return Ok(mask);
        }
        let mut mask = Mask::none(vocabulary.len());
        for token in first.tokens() {
            let allowed = match vocabulary.bytes(token) {
                Some(bytes) => self.1.prefix(bytes)?,
                None => self.1.complete()?,
            };
            if allowed {
                mask.allow(token);
            }
        }
        Ok(mask)
    }
}

type Test = dyn Fn(&[u8]) -> bool + Send + Sync;

/// A language given by two functions of the whole text.
///
/// ```
/// use pilotfish_constrained::{Constraint, Predicate};
/// // Digits whose sum is divisible by 10, at most eight: no regular expression of sensible size says this.
/// let mut sum = Predicate::new(
///     |text| text.len() <= 8 && text.iter().all(u8::is_ascii_digit),
///     |text| text.iter().map(|byte| u32::from(byte - b'0')).sum::<u32>() % 10 == 0,
/// );
/// assert!(sum.push(b"64")? && sum.complete()?);
/// assert!(!sum.prefix(b"x")? && sum.prefix(b"1")?);
/// # Ok::<(), pilotfish_constrained::ConstrainedError>(())
/// ```
#[derive(Clone)]
pub struct Predicate {
    prefix: Arc<Test>,
    complete: Arc<Test>,
    text: Vec<u8>,
    dead: bool,
}

impl Predicate {
    /// From a prefix test and a complete test, which is asked only of texts that pass the first.
    pub fn new(
        prefix: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
        complete: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { prefix: Arc::new(prefix), complete: Arc::new(complete), text: Vec::new(), dead: false }
    }

    /// From a complete test alone: every text counts as one that can be completed.
    pub fn whole(complete: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        Self::new(|_| true, complete)
    }
}

impl Constraint for Predicate {
    fn prefix(&mut self, more: &[u8]) -> Result<bool> {
        let len = self.text.len();
        self.text.extend_from_slice(more);
        let alive = !self.dead && (self.prefix)(&self.text);
        self.text.truncate(len);
        Ok(alive)
    }

    fn complete(&mut self) -> Result<bool> {
        Ok(!self.dead && (self.prefix)(&self.text) && (self.complete)(&self.text))
    }

    fn push(&mut self, more: &[u8]) -> Result<bool> {
        self.text.extend_from_slice(more);
        self.dead = self.dead || !(self.prefix)(&self.text);
        Ok(!self.dead)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}
