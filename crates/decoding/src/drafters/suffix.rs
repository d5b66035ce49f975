//! Prompt look-up without a longest suffix: an automaton of every text seen so far (prompts, outputs, earlier texts
//! of the same drafter) finds the longest suffix of the current text that occurred before, however long, in constant
//! time a token. What followed its latest occurrence is proposed.
//!
//! For each token appended:
//! 1. The automaton of suffixes grows by one state (Blumer et al. 1985; at most `2 n` states, amortised constant time).
//! 2. The suffix link of the new state is the class of the longest suffix that occurs elsewhere, so its length is the
//!    length of the match and the end recorded with it is the place of the match.
//! 3. Once another token follows, the states along the chain of suffix links have their latest end here.
//!
//! A draft follows the match: the longer the match, the more is proposed, `factor` tokens for each token matched.
//!
//! | default | value | source |
//! |---|---|---|
//! | shortest match | 2 | measured; one token matches nearly everything |
//! | draft at most | 16 | beyond that the rows cost more than they give on a CPU |
//! | factor | 2 | SuffixDecoding (arXiv 2411.04975) has 1 for its trees |
//! | memory | 1 million tokens | 100 MB or so |
//!
//! **Deviations.** Of SAM-Decoding (arXiv 2411.10666) this is the dynamic automaton; its static corpus is replaced by
//! the drafter's own earlier texts, and it takes the latest place where a match ends instead of the first. Texts are
//! kept apart by marks that no token equals, so no match runs across two of them. When the memory is full, the newer
//! half of the texts is kept and the automaton is built again, between texts.
//!
//! **Cost.** One hash look-up or a few a token; the chain of links is as long as a text has distinct suffix classes,
//! which is short unless the text repeats itself.
//!
//! ```
//! use pilotfish_decoding::drafters::SuffixAutomaton;
//! let mut automaton = SuffixAutomaton::default();
//! for token in [1, 2, 3, 9, 1, 2, 3] {
//!     automaton.push(token);
//! }
//! // 1 2 3 occurred before, and the place after it holds 9.
//! let found = automaton.longest().expect("it repeats");
//! assert_eq!((found.length, automaton.after(found.end, 4)), (3, &[9, 1, 2, 3][..]));
//! ```

use std::collections::HashMap;
use std::path::Path;

use pilotfish_model::{Token, TokenTree};

use crate::state::{self, In, Out};
use crate::{Ask, DecodingError, Draft, Drafter, Outcome, Result, Start};

/// Symbols from here on are marks, each used once.
const MARK: u64 = 1 << 32;

/// A set of texts and all their substrings, grown token by token.
#[derive(Clone, Debug)]
pub struct SuffixAutomaton {
    /// Tokens of all texts, with marks between them.
    tokens: Vec<u64>,
    plain: Vec<Token>,
    states: Vec<State>,
    last: usize,
    /// What the text so far matches.
    longest: Option<Match>,
    marks: u64,
}

#[derive(Clone, Debug)]
struct State {
    /// Length of the longest string of the class.
    length: usize,
    /// The class of the longest suffix that is in another class; none for the empty string.
    link: Option<usize>,
    next: HashMap<u64, usize>,
    /// The place after the latest occurrence that a token follows.
    end: Option<usize>,
}

/// A suffix of the text that occurred before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its length in tokens.
    pub length: usize,
    /// The place after its latest earlier occurrence.
    pub end: usize,
}

impl Default for SuffixAutomaton {
    fn default() -> Self {
        let root = State { length: 0, link: None, next: HashMap::new(), end: None };
        Self { tokens: Vec::new(), plain: Vec::new(), states: vec![root], last: 0, longest: None, marks: 0 }
    }
}

impl SuffixAutomaton {
    /// Tokens of all texts, marks included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Appends a token to the current text.
    pub fn push(&mut self, token: Token) {
        self.append(u64::from(token), token);
    }

    /// Ends the current text: the next one is matched against it, but not across its end.
    pub fn end_text(&mut self) {
        if !self.is_empty() {
            self.marks += 1;
            self.append(MARK + self.marks, Token::MAX);
        }
    }

    fn append(&mut self, symbol: u64, plain: Token) {
        if symbol < MARK {
            // Every suffix of what came before is followed by a token now.
            let mut at = Some(self.last);
            while let Some(state) = at.filter(|&state| state != 0) {
                self.states[state].end = Some(self.tokens.len());
                at = self.states[state].link;
            }
        }
        self.tokens.push(symbol);
        self.plain.push(plain);
        let new = self.states.len();
        let length = self.states[self.last].length + 1;
        self.states.push(State { length, link: None, next: HashMap::new(), end: None });
        let mut at = Some(self.last);
        while let Some(state) = at.filter(|&state| !self.states[state].next.contains_key(&symbol)) {
            self.states[state].next.insert(symbol, new);
            at = self.states[state].link;
        }
        let link = match at {
            None => 0,
            Some(state) => {
                let target = self.states[state].next[&symbol];
                if self.states[target].length == self.states[state].length + 1 {
                    target
                } else {
                    self.split(state, target, symbol)
                }
            }
        };
        self.states[new].link = Some(link);
        self.last = new;
        // The longest suffix that was followed by a token elsewhere is the match.
        self.longest = None;
        let mut at = Some(link);
        while let Some(state) = at.filter(|&state| state != 0 && self.longest.is_none()) {
            let State { length, link, end, .. } = self.states[state];
            self.longest = end.map(|end| Match { length, end });
            at = link;
        }
    }

    /// Parts from a class those of its strings that occur in one more place.
    fn split(&mut self, from: usize, class: usize, symbol: u64) -> usize {
        let clone = self.states.len();
        let mut state = self.states[class].clone();
        state.length = self.states[from].length + 1;
        self.states.push(state);
        self.states[class].link = Some(clone);
        let mut at = Some(from);
        while let Some(state) = at.filter(|&state| self.states[state].next.get(&symbol) == Some(&class)) {
            self.states[state].next.insert(symbol, clone);
            at = self.states[state].link;
        }
        clone
    }

    /// The longest suffix of the current text that occurred before, in it or in an earlier one, and was followed by
    /// a token.
    pub fn longest(&self) -> Option<Match> {
        self.longest
    }

    /// What follows a place, up to the end of its text, at most `count` tokens.
    pub fn after(&self, place: usize, count: usize) -> &[Token] {
        let rest = &self.tokens[place.min(self.tokens.len())..];
        let whole = rest.iter().take(count).take_while(|&&symbol| symbol < MARK).count();
        &self.plain[place..place + whole]
    }

    /// The same with the newest texts only, at most `most` tokens; a text that does not fit is cut at its beginning.
    fn newest(&self, most: usize) -> Self {
        let mut fresh = Self::default();
        for (&symbol, &plain) in self.tokens.iter().zip(&self.plain).skip(self.len().saturating_sub(most)) {
            if symbol < MARK {
                fresh.push(plain);
            } else {
                fresh.end_text();
            }
        }
        fresh
    }
}

/// Numbers of [`SuffixLookup`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suffix {
    /// Shortest suffix that counts as a match.
    pub shortest: usize,
    /// Tokens proposed at most.
    pub draft: usize,
    /// Tokens proposed for each token matched.
    pub factor: f64,
    /// Tokens of all texts that are kept at most.
    pub memory: usize,
    /// Whether earlier texts are searched.
    pub earlier: bool,
}

impl Default for Suffix {
    fn default() -> Self {
        Self { shortest: 2, draft: 16, factor: 2.0, memory: 1_000_000, earlier: true }
    }
}

/// Lengths of matches are counted in classes 1, 2, 3-4, 5-8, 9-16, 17 and more.
const CLASSES: usize = 6;

fn class(length: usize) -> usize {
    (length.max(1).next_power_of_two().trailing_zeros() as usize).min(CLASSES - 1)
}

/// Drafts from what followed the longest suffix seen before.
#[derive(Clone, Debug)]
pub struct SuffixLookup {
    config: Suffix,
    automaton: SuffixAutomaton,
    /// Tokens of the current text that the automaton has.
    known: usize,
    /// By class of match: drafted tokens whose predecessors were all kept, and how many of them were kept.
    tallies: [(f64, f64); CLASSES],
    class: usize,
}

impl Default for SuffixLookup {
    fn default() -> Self {
        Self::build(Suffix::default())
    }
}

impl SuffixLookup {
    /// A drafter that has seen nothing.
    ///
    /// # Errors
    /// A number of 0, or a factor that is not above 0 and finite.
    pub fn new(config: Suffix) -> Result<Self> {
        for (name, value) in
            [("shortest", config.shortest), ("draft", config.draft), ("memory", config.memory)]
        {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        if !(config.factor > 0.0 && config.factor.is_finite()) {
            let want = "above 0 and finite";
            return Err(crate::drafters::number("factor", config.factor, want));
        }
        Ok(Self::build(config))
    }

    fn build(config: Suffix) -> Self {
        // As if one in two of ten tokens had been kept.
        let tallies = [(10.0, 5.0); CLASSES];
        Self { config, automaton: SuffixAutomaton::default(), known: 0, tallies, class: 0 }
    }

    /// Writes the texts seen so far, and how good their drafts were, to a file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut out = Out::default();
        self.tallies.iter().for_each(|(tried, kept)| [tried, kept].iter().for_each(|x| out.u64(x.to_bits())));
        out.u64(self.automaton.len() as u64);
        // A mark's plain token is one that no vocabulary has.
        self.automaton.plain.iter().for_each(|&token| out.u32(token));
        state::save(path, b"SUFX", &out.0)
    }

    /// Goes on with texts that were saved, on these numbers. The next text is a new one.
    ///
    /// # Errors
    /// A file that cannot be read, is spoilt or of something else; as [`SuffixLookup::new`].
    pub fn load(path: &Path, config: Suffix) -> Result<Self> {
        let payload = state::load(path, b"SUFX")?;
        let mut lookup = Self::new(config)?;
        lookup.fill(&mut In(&payload)).ok_or_else(|| state::bad(path, "it is no memory of texts"))?;
        Ok(lookup)
    }

    fn fill(&mut self, input: &mut In<'_>) -> Option<()> {
        for (tried, kept) in &mut self.tallies {
            (*tried, *kept) = (f64::from_bits(input.u64()?), f64::from_bits(input.u64()?));
            if !(*kept >= 0.0 && *tried >= *kept && *tried > 0.0 && tried.is_finite()) {
                return None;
            }
        }
        let count = usize::try_from(input.u64()?).ok()?;
        if input.left() != count.checked_mul(4)? {
            return None;
        }
        for _ in 0..count {
            match input.u32()? {
                Token::MAX => self.automaton.end_text(),
                token => self.automaton.push(token),
            }
        }
        input.done().then_some(())
    }

    fn read(&mut self, text: &[Token]) {
        for &token in text.get(self.known..).unwrap_or_default() {
            self.automaton.push(token);
        }
        self.known = text.len();
    }
}

impl Drafter for SuffixLookup {
    fn name(&self) -> String {
        let Suffix { shortest, draft, earlier, .. } = self.config;
        let texts = if earlier { "all texts" } else { "one text" };
        format!("suffix look-up ({texts}, matches from {shortest}, {draft} tokens)")
    }

    fn start(&mut self, start: &Start<'_>) -> Result<()> {
        if !self.config.earlier {
            self.automaton = SuffixAutomaton::default();
        } else if self.automaton.len() > self.config.memory {
            self.automaton = self.automaton.newest(self.config.memory.div_ceil(2));
        }
        self.automaton.end_text();
        self.known = 0;
        self.read(start.prompt);
        Ok(())
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        self.read(ask.text);
        let found = self.automaton.longest().filter(|found| found.length >= self.config.shortest);
        let Some(found) = found else { return Ok(Draft::none(ask.root())) };
        // A product beyond any length saturates.
        let wanted = (self.config.factor * found.length as f64).ceil() as usize;
        let count = wanted.clamp(1, self.config.draft).min(ask.budget).min(ask.depth);
        let chain = self.automaton.after(found.end, count);
        self.class = class(found.length);
        let (tried, kept) = self.tallies[self.class];
        let estimates = (0..=chain.len() as i32).map(|depth| (kept / tried).powi(depth)).collect();
        let mut draft = Draft::fixed(TokenTree::chain(ask.root(), chain));
        draft.set_estimates(estimates)?;
        Ok(draft)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        let (drafted, kept) = (outcome.draft.len(), outcome.path.len());
        let (all, good) = &mut self.tallies[self.class];
        *all += (kept + usize::from(kept < drafted)) as f64;
        *good += kept as f64;
        self.read(outcome.text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The longest suffix of `text` that also ends before its end, by looking everywhere.
    fn by_search(text: &[Token]) -> Option<Match> {
        (1..text.len()).rev().find_map(|length| {
            let suffix = &text[text.len() - length..];
            (length..text.len())
                .rev()
                .find(|&end| text[end] != 77 && &text[end - length..end] == suffix)
                .map(|end| Match { length, end })
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_search_finds(text in proptest::collection::vec(0u32..3, 0..60)) {
            let mut automaton = SuffixAutomaton::default();
            for (index, &token) in text.iter().enumerate() {
                automaton.push(token);
                prop_assert_eq!(automaton.longest(), by_search(&text[..=index]), "{:?}", &text[..=index]);
            }
            prop_assert!(automaton.states.len() <= 2 * text.len().max(1));
        }

        #[test]
        fn texts_do_not_run_into_each_other(a in proptest::collection::vec(0u32..3, 1..20), b in proptest::collection::vec(0u32..3, 1..20)) {
            let mut automaton = SuffixAutomaton::default();
            a.iter().for_each(|&token| automaton.push(token));
            automaton.end_text();
            b.iter().for_each(|&token| automaton.push(token));
            // A mark is a symbol of its own for a search, too.
            let joined: Vec<Token> = a.iter().copied().chain([77]).chain(b.iter().copied()).collect();
            let found = automaton.longest();
            prop_assert_eq!(found, by_search(&joined));
            if let Some(found) = found {
                let after = automaton.after(found.end, 100);
                let rest = if found.end <= a.len() { a.len() } else { joined.len() };
                prop_assert_eq!(after, &joined[found.end..rest]);
            }
        }
    }

    #[test]
    fn memory_keeps_the_newest() {
        let mut automaton = SuffixAutomaton::default();
        (0..10).for_each(|token| automaton.push(token));
        automaton.end_text();
        (20..25).for_each(|token| automaton.push(token));
        let mut small = automaton.newest(8);
        assert_eq!(small.len(), 8);
        small.end_text();
        [20, 21].iter().for_each(|&token| small.push(token));
        assert_eq!(small.longest().map(|found| found.length), Some(2));
        small.end_text();
        [6, 7].iter().for_each(|&token| small.push(token));
        assert_eq!(small.longest(), None, "forgotten");
    }

    #[test]
    fn texts_survive_a_restart_and_no_spoilt_file() {
        let mut lookup = SuffixLookup::default();
        for text in [&[1, 2, 3, 4, 5][..], &[7, 2, 3, 9]] {
            lookup.automaton.end_text();
            lookup.known = 0;
            lookup.read(text);
        }
        lookup.tallies[1] = (12.0, 7.0);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("texts");
        lookup.save(&path).expect("saved");
        let mut again = SuffixLookup::load(&path, Suffix::default()).expect("loaded");
        assert_eq!(again.automaton.tokens, lookup.automaton.tokens);
        assert_eq!(again.tallies, lookup.tallies);
        for lookup in [&mut lookup, &mut again] {
            lookup.automaton.end_text();
            [2, 3, 4].iter().for_each(|&token| lookup.automaton.push(token));
        }
        assert_eq!(again.automaton.longest(), lookup.automaton.longest());
        assert_eq!(again.automaton.longest().map(|found| found.length), Some(3));
        state::spoil(&path, |path| SuffixLookup::load(path, Suffix::default()));
        // Whole, and no memory of texts.
        let mut out = Out::default();
        (0..13).for_each(|_| out.u64(0));
        state::save(&path, b"SUFX", &out.0).expect("saved");
        assert!(matches!(SuffixLookup::load(&path, Suffix::default()), Err(DecodingError::State { .. })));
    }

    #[test]
    fn classes() {
        assert_eq!([0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 1000].map(class), [0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }
}
