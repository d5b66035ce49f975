//! JSON Schema, regular expressions and Lark grammars, read by llguidance.
//!
//! Tests are asked of the parser byte by byte, so a token may straddle terminals and need not be how a tokeniser
//! would cut the text. Every test has its own allowance of work ([`GrammarLimits`]); a grammar that needs more gives
//! [`ConstrainedError::TooComplex`], and so do all readers forked from it, since they share what has been built.
//!
//! Masks are kept. What may come next depends on the lexer's state and on the parser's rows, and the rows on the text up
//! to the last byte that completed a terminal; readers forked from one grammar share what they found for such a place.
//! An expression is one terminal, so it has a mask per state of its automaton, as in Willard and Louf (2023).
//!
//! The prefix test is that of an Earley parser over lazily built lexers. It is exact but for rules that can never
//! be finished, such as `x: "a" x`; a text that enters one dies later.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::{BiasComputer, ParserRecognizer, SlicedBiasComputer};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, Recognizer, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{ParserFactory, TokenParser};
use pilotfish_model::Token;
use serde_json::Value as Json;

use crate::{ConstrainedError, Constraint, Mask, Result, Vocabulary};

/// What grammars may cost. The defaults are llguidance's, but for the longest source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Bytes of a grammar's, schema's or expression's text.
    pub source: usize,
    /// Levels of a schema.
    pub depth: usize,
    /// Work on lexers when a grammar is compiled, in units of about 20 ns.
    pub compile_fuel: u64,
    /// Work on lexers in a test or mask, in units of about 70 ns.
    pub step_fuel: u64,
    /// Parser items in a test or mask.
    pub step_items: usize,
    /// Parser items at one place of a text.
    pub row_items: usize,
    /// States of the lexer, about 2 kB each.
    pub lexer_states: usize,
    /// Symbols of a grammar.
    pub grammar_size: usize,
    /// Masks that a grammar keeps, an eighth of a byte per token each; all are dropped when there are more.
    pub kept_masks: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            source: 1 << 20,
            depth: 64,
            compile_fuel: 1_000_000,
            step_fuel: 200_000,
            step_items: 50_000,
            row_items: 2000,
            lexer_states: 250_000,
            grammar_size: 500_000,
            kept_masks: 4096,
        }
    }
}

/// Makes constraints of grammars for one vocabulary; what depends on the vocabulary alone is built once.
///
/// ```
/// use std::sync::Arc;
/// use pilotfish_constrained::{Constraint, Grammars, Vocabulary};
/// let grammars = Grammars::new(Arc::new(Vocabulary::single_bytes()))?;
/// let mut year = grammars.regex("(19|20)[0-9]{2}")?;
/// assert!(year.push(b"20")? && !year.prefix(b"x")? && !year.complete()?);
/// assert!(year.push(b"26")? && year.complete()? && !year.prefix(b"0")?);
/// let mut point = grammars.json_schema(&serde_json::json!({
///     "type": "object", "properties": { "x": { "type": "integer" } }, "required": ["x"],
/// }))?;
/// assert!(point.prefix(b"{\"x\": 4")? && !point.prefix(b"{\"x\": \"")?);
/// # Ok::<(), pilotfish_constrained::ConstrainedError>(())
/// ```
#[derive(Clone)]
pub struct Grammars {
    shared: Arc<Shared>,
    limits: GrammarLimits,
}

struct Shared {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
    trie: TokEnv,
    /// Ids, with the byte tokens behind the vocabulary, of tokens that are the same bytes.
    same: Vec<Vec<Token>>,
}

impl Grammars {
    /// For a vocabulary.
    ///
    /// # Errors
    /// A vocabulary that llguidance refuses.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Result<Self> {
        let refuse = |why: String| ConstrainedError::Grammar { kind: "vocabulary", why };
        let len = vocabulary.len();
        // Behind the vocabulary: a token for every single byte, so that any text can be read, and the end.
        // 0xff begins llguidance's own names of special tokens and occurs in no UTF-8.
        let mut words: Vec<Vec<u8>> = (0..len as Token)
            .map(|token| match vocabulary.bytes(token) {
                Some(bytes) if bytes[0] != TokTrie::SPECIAL_TOKEN_MARKER => bytes.to_vec(),
                _ => Vec::new(),
            })
            .collect();
        words.extend((0..=255u8).map(|byte| match byte {
            TokTrie::SPECIAL_TOKEN_MARKER => Vec::new(),
            byte => vec![byte],
        }));
        words.push(b"\xff<|end|>".to_vec());
        let mut order: Vec<Token> = (0..words.len() as Token).collect();
        order.sort_by(|&a, &b| words[a as usize].cmp(&words[b as usize]));
        let same = order
            .chunk_by(|&a, &b| words[a as usize] == words[b as usize])
            .filter(|group| group.len() > 1 && !words[group[0] as usize].is_empty())
            .map(<[Token]>::to_vec)
            .collect();
        let size = u32::try_from(words.len()).map_err(|_| refuse("too large".into()))?;
        let shared = catch_unwind(move || {
            let trie: TokEnv =
                Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(size, size - 1), &words)));
            let caps = InferenceCapabilities::default();
            let mut factory = ParserFactory::new(&trie, caps, &SlicedBiasComputer::general_slices())?;
            factory.quiet();
            Ok((factory, trie))
        });
        let (factory, trie) = shared.map_err(|error| refuse(first_line(&error.to_string())))?;
        let shared = Shared { vocabulary, factory, trie, same };
        Ok(Self { shared: Arc::new(shared), limits: GrammarLimits::default() })
    }

    /// The same with other limits.
    pub fn limits(self, limits: GrammarLimits) -> Self {
        Self { limits, ..self }
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.shared.vocabulary
    }

    /// Texts that a regular expression matches from beginning to end (Rust's syntax, without look-around).
    ///
    /// # Errors
    /// An expression that is malformed, too large, or matches nothing.
    pub fn regex(&self, expression: &str) -> Result<Grammar> {
        self.check("regular expression", expression)?;
        self.compile("regular expression", GrammarWithLexer::from_regex(expression))
    }

    /// Texts of a Lark grammar, with llguidance's extensions.
    ///
    /// # Errors
    /// A grammar that is malformed or too large.
    pub fn lark(&self, grammar: &str) -> Result<Grammar> {
        self.check("Lark grammar", grammar)?;
        self.compile("Lark grammar", GrammarWithLexer::from_lark(grammar.to_owned()))
    }

    /// JSON texts that a schema describes. White space is free, as JSON has it.
    ///
    /// # Errors
    /// A schema that is malformed, too large, or uses what llguidance cannot express.
    pub fn json_schema(&self, schema: &Json) -> Result<Grammar> {
        let kind = "JSON schema";
        if depth(schema, self.limits.depth + 1) > self.limits.depth {
            let why = format!("more than {} levels", self.limits.depth);
            return Err(ConstrainedError::Grammar { kind, why });
        }
        self.check(kind, &schema.to_string())?;
        self.compile(kind, GrammarWithLexer::from_json_schema(schema.clone()))
    }

    /// As [`json_schema`](Self::json_schema), without white space between tokens.
    ///
    /// # Errors
    /// The same.
    pub fn compact_json_schema(&self, schema: &Json) -> Result<Grammar> {
        let mut schema = schema.clone();
        if let Json::Object(members) = &mut schema {
            members.insert("x-guidance".into(), serde_json::json!({ "whitespace_flexible": false }));
        }
        self.json_schema(&schema)
    }

    fn check(&self, kind: &'static str, source: &str) -> Result<()> {
        if source.len() > self.limits.source {
            let why = format!("{} bytes, at most {} are read", source.len(), self.limits.source);
            return Err(ConstrainedError::Grammar { kind, why });
        }
        // Nesting is followed by recursion in parsers of grammars.
        let (mut open, mut deepest) = (0usize, 0usize);
        for byte in source.bytes() {
            match byte {
                b'(' | b'[' | b'{' => open += 1,
                b')' | b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(open);
        }
        let most = 4 * self.limits.depth;
        if deepest > most {
            let why = format!("brackets {deepest} deep, at most {most} are read");
            return Err(ConstrainedError::Grammar { kind, why });
        }
        Ok(())
    }

    fn compile(&self, kind: &'static str, grammar: GrammarWithLexer) -> Result<Grammar> {
        let refuse = |why: &str| ConstrainedError::Grammar { kind, why: first_line(why) };
        let l = &self.limits;
        let limits = ParserLimits {
            max_items_in_row: l.row_items,
            initial_lexer_fuel: l.compile_fuel,
            step_lexer_fuel: l.step_fuel,
            step_max_items: l.step_items,
            max_lexer_states: l.lexer_states,
            max_grammar_size: l.grammar_size,
            precompute_large_lexemes: false,
            verbose_errors: false,
        };
        let init = llguidance::api::GrammarInit::Serialized(TopLevelGrammar::from_grammar(grammar));
        let logger = llguidance::Logger::new(0, 0);
        let factory = &self.shared.factory;
        let mut parser = factory
            .create_parser_from_init_ext(init, logger, InferenceCapabilities::default(), limits)
            .map_err(|error| refuse(&error.to_string()))?;
        parser.start_without_prompt();
        let kept = Arc::new(Kept { most: l.kept_masks, masks: Mutex::default() });
        let mut grammar =
            Grammar { shared: self.shared.clone(), parser, kept, text: Vec::new(), settled: 0, dead: false };
        // A language without texts is refused here if it can be seen: nothing may come first.
        if !grammar.complete()? && grammar.mask(&self.shared.vocabulary)?.count() == 0 {
            return Err(refuse("no text matches"));
        }
        Ok(grammar)
    }
}

/// Levels of a JSON value, counted no further than `most`.
fn depth(value: &Json, most: usize) -> usize {
    if most == 0 {
        return 0;
    }
    let deepest = match value {
        Json::Array(items) => items.iter().map(|item| depth(item, most - 1)).max(),
        Json::Object(members) => members.values().map(|item| depth(item, most - 1)).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

/// A place in a text of a grammar.
#[derive(Clone)]
pub struct Grammar {
    shared: Arc<Shared>,
    parser: TokenParser,
    kept: Arc<Kept>,
    text: Vec<u8>,
    /// Bytes of the text after which the parser has had the rows that it has now.
    settled: usize,
    dead: bool,
}

/// The lexer's state, and whether bytes of a terminal have been read.
type LexerPlace = (u32, bool);

/// The masks that were found, by text up to the parser's last row, then by place in the lexer.
struct Kept {
    most: usize,
    masks: Mutex<Masks>,
}

#[derive(Default)]
struct Masks {
    count: usize,
    found: HashMap<Vec<u8>, HashMap<LexerPlace, Mask>>,
}

impl Kept {
    fn get(&self, settled: &[u8], place: LexerPlace) -> Option<Mask> {
        let kept = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        kept.found.get(settled)?.get(&place).cloned()
    }

    fn put(&self, settled: &[u8], place: LexerPlace, mask: &Mask) {
        let mut kept = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.count >= self.most {
            *kept = Masks::default();
        }
        kept.count += 1;
        kept.found.entry(settled.to_vec()).or_default().insert(place, mask.clone());
    }
}

/// Reads the bytes of a test where llguidance would compute a mask: its allowance of work covers the test then.
struct Tester {
    trie: TokEnv,
    allowed: AtomicBool,
}

impl BiasComputer for Tester {
    fn compute_bias(&self, parser: &mut ParserRecognizer<'_>, more: &[u8]) -> SimpleVob {
        parser.trie_started("test");
        let allowed = more.iter().all(|&byte| parser.try_push_byte(byte));
        parser.trie_finished();
        self.allowed.store(allowed, Ordering::Relaxed);
        self.trie.tok_trie().alloc_token_set()
    }

    fn trie(&self) -> &TokTrie {
        self.trie.tok_trie()
    }
}

impl Grammar {
    /// What the parser cannot do any more.
    fn failed(&self, why: &str) -> ConstrainedError {
        ConstrainedError::TooComplex { bytes: self.text.len(), why: first_line(why) }
    }

    fn broken(&self) -> Result<()> {
        match self.parser.parser.get_error() {
            Some(error) => Err(self.failed(&error.message())),
            None => Ok(()),
        }
    }
}

impl Constraint for Grammar {
    fn prefix(&mut self, more: &[u8]) -> Result<bool> {
        if self.dead || more.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
            return Ok(false);
        }
        if more.is_empty() {
            return Ok(true);
        }
        let tester = Tester { trie: self.shared.trie.clone(), allowed: AtomicBool::new(false) };
        let parser = &mut self.parser.parser;
        let done = catch_unwind(AssertUnwindSafe(|| {
            parser.compute_bias(&tester, more);
            Ok(())
        }));
        done.map_err(|error| self.failed(&error.to_string()))?;
        self.broken()?;
        Ok(tester.allowed.load(Ordering::Relaxed))
    }

    fn complete(&mut self) -> Result<bool> {
        if self.dead {
            return Ok(false);
        }
        let parser = &mut self.parser;
        let complete = catch_unwind(AssertUnwindSafe(|| Ok(parser.is_accepting())));
        let complete = complete.map_err(|error| self.failed(&error.to_string()))?;
        self.broken()?;
        Ok(complete)
    }

    fn push(&mut self, more: &[u8]) -> Result<bool> {
        // The test builds what is needed under its allowance; reading then finds it there.
        if !self.prefix(more)? {
            self.dead = true;
            return Ok(false);
        }
        let first = self.shared.vocabulary.len() as Token;
        let (parser, text, settled) = (&mut self.parser, &mut self.text, &mut self.settled);
        let done = catch_unwind(AssertUnwindSafe(|| {
            for &byte in more {
                let rows = parser.parser.stats().rows;
                parser.consume_token(first + Token::from(byte))?;
                text.push(byte);
                if parser.parser.stats().rows != rows {
                    *settled = text.len();
                }
            }
            Ok(())
        }));
        done.map_err(|error| self.failed(&error.to_string()))?;
        self.broken()?;
        Ok(true)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn mask(&mut self, vocabulary: &Vocabulary) -> Result<Mask> {
        if vocabulary.identity() != self.shared.vocabulary.identity() {
            let (got, want) = (vocabulary.len(), self.shared.vocabulary.len());
            return Err(ConstrainedError::Vocabulary { got, want });
        }
        if self.dead {
            return Ok(Mask::none(vocabulary.len()));
        }
        let pending = self.parser.parser.has_pending_lexeme_bytes();
        let place = (self.parser.parser.with_recognizer(|at| at.lexer_state().as_u32()), pending);
        if let Some(mask) = self.kept.get(&self.text[..self.settled], place) {
            return Ok(mask);
        }
        let complete = self.complete()?;
        let (parser, slicer) = (&mut self.parser.parser, self.shared.factory.slicer());
        let found = catch_unwind(AssertUnwindSafe(|| Ok(parser.compute_bias(&*slicer, b""))));
        let mut found = found.map_err(|error| self.failed(&error.to_string()))?;
        self.broken()?;
        // The trie keeps one id of those with equal bytes.
        for group in &self.shared.same {
            if group.iter().any(|&token| found.is_allowed(token)) {
                group.iter().for_each(|&token| found.allow_token(token));
            }
        }
        let mut mask = Mask::from_words(found.as_slice(), vocabulary.len());
        if complete {
            vocabulary.end().iter().for_each(|&token| mask.allow(token));
        }
        self.kept.put(&self.text[..self.settled], place, &mask);
        Ok(mask)
    }
}
