use std::collections::HashMap;

use pilotfish_model::Token;

use crate::{Constraint, Mask, Result, Vocabulary};

/// A constraint's verdict about tokens: bytes for ordinary tokens, completeness for the end. Counts what it is asked,
/// and remembers its verdicts until the text moves on.
pub struct Checker<'a> {
    constraint: Box<dyn Constraint>,
    vocabulary: &'a Vocabulary,
    known: HashMap<Token, bool>,
    calls: u64,
}

impl<'a> Checker<'a> {
    /// A checker of a constraint that stands at the beginning of the text.
    pub fn new(constraint: Box<dyn Constraint>, vocabulary: &'a Vocabulary) -> Self {
        Self { constraint, vocabulary, known: HashMap::new(), calls: 0 }
    }

    /// Another checker at the same place, with no calls yet.
    pub fn fork(&self) -> Self {
        Self::new(self.constraint.fork(), self.vocabulary)
    }

    /// Whether any text can be completed.
    ///
    /// # Errors
    /// What the constraint refuses.
    pub fn alive(&mut self) -> Result<bool> {
        self.constraint.prefix(&[])
    }

    /// Whether the token may come next. Only a verdict that is not known costs a call.
    ///
    /// # Errors
    /// What the constraint refuses.
    pub fn test(&mut self, token: Token) -> Result<bool> {
        if let Some(&known) = self.known.get(&token) {
            return Ok(known);
        }
        let verdict = if self.vocabulary.is_end(token) {
            self.calls += 1;
            self.constraint.complete()?
        } else if let Some(bytes) = self.vocabulary.bytes(token) {
            self.calls += 1;
            self.constraint.prefix(bytes)?
        } else {
            false
        };
        self.known.insert(token, verdict);
        Ok(verdict)
    }

    /// All tokens that may come next. Counts as a call for every token of the vocabulary.
    ///
    /// # Errors
    /// What the constraint refuses.
    pub fn mask(&mut self) -> Result<Mask> {
        self.calls += self.vocabulary.len() as u64;
        self.constraint.mask(self.vocabulary)
    }

    /// Appends a token to the text; the end changes nothing.
    ///
    /// # Errors
    /// What the constraint refuses.
    pub fn push(&mut self, token: Token) -> Result<bool> {
        self.known.clear();
        match self.vocabulary.bytes(token) {
            Some(bytes) => self.constraint.push(bytes),
            None => Ok(self.vocabulary.is_end(token)),
        }
    }

    /// Forgets verdicts.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Calls since last asked.
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// The constraint.
    pub fn constraint(&mut self) -> &mut dyn Constraint {
        self.constraint.as_mut()
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &'a Vocabulary {
        self.vocabulary
    }
}
