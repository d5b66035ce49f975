//! Prompt look-up decoding by n-grams; see [`PromptLookup`].

use std::collections::HashMap;

use pilotfish_model::{Token, TokenTree};

use crate::{Ask, DecodingError, Draft, Drafter, Result, Start};

/// Numbers of [`PromptLookup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLookupConfig {
    /// Longest suffix that is looked up.
    pub longest: usize,
    /// Shortest suffix that is looked up.
    pub shortest: usize,
    /// Tokens proposed at most.
    pub draft: usize,
}

impl Default for PromptLookupConfig {
    fn default() -> Self {
        Self { longest: 3, shortest: 1, draft: 10 }
    }
}

/// Prompt look-up decoding: the last tokens of the text are looked for earlier in it, longest suffix first,
/// most recent place first, and what followed there is proposed. An index of n-grams makes a look-up as long
/// as the suffix, not as the text.
///
/// | default | value | source |
/// |---|---|---|
/// | longest suffix | 3 | apoorvumang/prompt-lookup-decoding |
/// | draft | 10 | the same |
///
/// **Deviations.** The original takes the first place where a suffix occurs; here it is the last one that has
/// a continuation, which follows the text's topic. The output itself is searched as well.
#[derive(Clone, Debug)]
pub struct PromptLookup {
    config: PromptLookupConfig,
    /// For each length, the place after the last occurrence of an n-gram that has a continuation.
    places: Vec<HashMap<Vec<Token>, usize>>,
    /// Tokens indexed.
    indexed: usize,
}

impl Default for PromptLookup {
    fn default() -> Self {
        Self::build(PromptLookupConfig::default())
    }
}

impl PromptLookup {
    /// A drafter with these numbers.
    ///
    /// # Errors
    /// `shortest` of 0 or above `longest`, a `longest` above 64, a draft of 0.
    pub fn new(config: PromptLookupConfig) -> Result<Self> {
        let refuse = |name, value, want| Err(DecodingError::BadParameter { name, value, want });
        if config.shortest == 0 || config.shortest > config.longest {
            return refuse("shortest", config.shortest, "at least 1 and at most longest");
        }
        if config.longest > 64 {
            return refuse("longest", config.longest, "at most 64");
        }
        if config.draft == 0 {
            return refuse("draft", 0, "at least 1");
        }
        Ok(Self::build(config))
    }

    fn build(config: PromptLookupConfig) -> Self {
        let places = vec![HashMap::new(); config.longest - config.shortest + 1];
        Self { config, places, indexed: 0 }
    }

    /// Indexes every n-gram that ends before the last token, so that what is found has a continuation.
    fn index(&mut self, text: &[Token]) {
        for end in self.indexed.max(1)..text.len() {
            for (length, places) in (self.config.shortest..).zip(&mut self.places) {
                if let Some(start) = end.checked_sub(length) {
                    places.insert(text[start..end].to_vec(), end);
                }
            }
        }
        self.indexed = text.len();
    }

    fn forget(&mut self) {
        self.places.iter_mut().for_each(HashMap::clear);
        self.indexed = 0;
    }

    /// What followed the longest suffix that occurred before, at most `count` tokens of it.
    fn look_up<'t>(&mut self, text: &'t [Token], count: usize) -> &'t [Token] {
        self.index(text);
        for (length, places) in (self.config.shortest..self.config.longest + 1).zip(&self.places).rev() {
            if let Some(start) = text.len().checked_sub(length)
                && let Some(&place) = places.get(&text[start..])
            {
                let count = self.config.draft.min(count).min(text.len() - place);
                return &text[place..place + count];
            }
        }
        &[]
    }
}

impl Drafter for PromptLookup {
    fn name(&self) -> String {
        let PromptLookupConfig { longest, shortest, draft } = self.config;
        format!("prompt look-up ({shortest}-{longest} grams, {draft} tokens)")
    }

    fn start(&mut self, start: &Start<'_>) -> Result<()> {
        self.forget();
        self.index(start.prompt);
        Ok(())
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let chain = self.look_up(ask.text, ask.budget.min(ask.depth));
        Ok(TokenTree::chain(ask.root(), chain).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(config: PromptLookupConfig, text: &[Token]) -> Vec<Token> {
        let mut lookup = PromptLookup::new(config).expect("valid");
        // Token by token, as decoding does.
        for end in 1..text.len() {
            lookup.look_up(&text[..end], 100);
        }
        lookup.look_up(text, 100).to_vec()
    }

    #[test]
    fn longest_suffix_and_latest_place_win() {
        let config = PromptLookupConfig { longest: 2, shortest: 1, draft: 3 };
        // 1 2 occurred twice; the later one was followed by 8 9 1.
        assert_eq!(draft(config, &[1, 2, 7, 1, 2, 8, 9, 1, 2]), [8, 9, 1]);
        // 5 2 did not occur, 2 did.
        assert_eq!(draft(config, &[1, 2, 7, 5, 2]), [7, 5, 2]);
        assert!(draft(config, &[1, 2, 3]).is_empty());
        // A run proposes itself.
        assert_eq!(draft(config, &[4, 4, 4]), [4]);
    }

    #[test]
    fn budget_and_parameters() {
        let mut lookup = PromptLookup::default();
        let text = [1, 2, 3, 4, 5, 1, 2];
        assert_eq!(lookup.look_up(&text, 2), [3, 4]);
        assert_eq!(lookup.look_up(&text, 1), [3]);
        lookup.forget();
        assert_eq!(lookup.look_up(&text[..3], 9), []);
        for (longest, shortest, draft) in [(3, 0, 1), (1, 2, 1), (65, 1, 1), (3, 1, 0)] {
            assert!(PromptLookup::new(PromptLookupConfig { longest, shortest, draft }).is_err());
        }
    }
}
