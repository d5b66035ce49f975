use crate::Result;
use pilotfish_model::Token;

/// Turns tokens into text. Implemented by whoever has a tokeniser.
pub trait Detokenize {
    /// The text of some tokens. Bytes that are no whole character yet become U+FFFD.
    ///
    /// # Errors
    /// Tokens that mean nothing.
    fn text(&self, tokens: &[Token]) -> Result<String>;
}

/// Text that grows token by token: gives out what can no longer change, and notices stop strings.
///
/// A character whose bytes are spread over tokens is held back until it is whole, and so is whatever may be the
/// beginning of a stop string. A stop string is noticed at the first token with which the text contains it,
/// however it is cut into tokens, and neither it nor what follows is given out.
///
/// ```
/// use pilotfish_decoding::{Detokenize, TextStream};
/// struct Letters;
/// impl Detokenize for Letters {
///     fn text(&self, tokens: &[u32]) -> pilotfish_decoding::Result<String> {
///         Ok(tokens.iter().filter_map(|&token| char::from_u32(token)).collect())
///     }
/// }
/// let mut stream = TextStream::new(&Letters, &["END"]);
/// let mut text = String::new();
/// for token in "an ENormous END, really".chars() {
///     if stream.push(token as u32, &mut text)? {
///         break;
///     }
/// }
/// assert_eq!(text, "an ENormous ");
/// # Ok::<(), pilotfish_decoding::DecodingError>(())
/// ```
pub struct TextStream<'a> {
    detokenizer: &'a dyn Detokenize,
    stop: Vec<String>,
    tokens: Vec<Token>,
    /// Tokens before this are out of the window that is decoded; those before `read` have been turned into text.
    window: usize,
    read: usize,
    /// Text decoded and not given out.
    held: String,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A stream without text. Empty stop strings are ignored.
    pub fn new(detokenizer: &'a dyn Detokenize, stop: &[&str]) -> Self {
        let stop = stop.iter().filter(|stop| !stop.is_empty()).map(|stop| (*stop).to_owned()).collect();
        Self {
            detokenizer,
            stop,
            tokens: Vec::new(),
            window: 0,
            read: 0,
            held: String::new(),
            stopped: false,
        }
    }

    /// Forgets the text and begins another.
    pub fn clear(&mut self) {
        self.tokens.clear();
        (self.window, self.read, self.stopped) = (0, 0, false);
        self.held.clear();
    }

    /// Adds a token, appends what is certain now to `out`, and says whether a stop string is complete. After
    /// that, nothing more is given out.
    ///
    /// # Errors
    /// As [`Detokenize::text`].
    pub fn push(&mut self, token: Token, out: &mut String) -> Result<bool> {
        if self.stopped {
            return Ok(true);
        }
        self.tokens.push(token);
        // A tokeniser may treat the first token of a text in its own way, so new text is the difference that the
        // unread tokens make after some that have been read.
        let before = self.detokenizer.text(&self.tokens[self.window..self.read])?;
        let after = self.detokenizer.text(&self.tokens[self.window..])?;
        if after.ends_with('\u{FFFD}') {
            return Ok(false);
        }
        self.held.push_str(after.get(before.len()..).unwrap_or_default());
        (self.window, self.read) = (self.read, self.tokens.len());
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            out.push_str(&self.held[..at]);
            self.held.clear();
            self.stopped = true;
            return Ok(true);
        }
        let kept = self.beginning();
        let certain = self.held.len() - kept;
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        Ok(false)
    }

    /// The text has ended otherwise: appends what was held back.
    ///
    /// # Errors
    /// As [`Detokenize::text`].
    pub fn finish(&mut self, out: &mut String) -> Result<()> {
        if !self.stopped {
            out.push_str(&self.held);
            self.held.clear();
            let before = self.detokenizer.text(&self.tokens[self.window..self.read])?;
            let after = self.detokenizer.text(&self.tokens[self.window..])?;
            out.push_str(after.get(before.len()..).unwrap_or_default());
            (self.window, self.read) = (self.read, self.tokens.len());
        }
        Ok(())
    }

    /// Bytes at the end of what is held that may begin a stop string.
    fn beginning(&self) -> usize {
        let longest = self.stop.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stop.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens are bytes, as in a byte-level vocabulary.
    struct Bytes;

    impl Detokenize for Bytes {
        fn text(&self, tokens: &[Token]) -> Result<String> {
            let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }

    fn pieces(text: &str, stop: &[&str]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(&Bytes, stop);
        let mut pieces = Vec::new();
        for byte in text.bytes() {
            let mut piece = String::new();
            let stopped = stream.push(u32::from(byte), &mut piece).expect("never fails");
            pieces.push(piece);
            if stopped {
                return (pieces, true);
            }
        }
        let mut rest = String::new();
        stream.finish(&mut rest).expect("never fails");
        pieces.push(rest);
        (pieces, false)
    }

    #[test]
    fn characters_come_whole_and_stop_strings_not_at_all() {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(pieces("aé", &[]).0, strings(&["a", "", "é", ""]));
        assert_eq!(pieces("a\nb\n\nc", &["\n\n"]), (strings(&["a", "", "\nb", "", ""]), true));
        // What may have begun a stop string comes out once it did not.
        assert_eq!(pieces("xaab", &["aaa"]), (strings(&["x", "", "", "aab", ""]), false));
        assert_eq!(pieces("xaa", &["aaa"]).0.last().map(String::as_str), Some("aa"));
        // The earliest of several.
        assert_eq!(pieces("one two", &["two", "e t", ""]).0.concat(), "on");
        let mut stream = TextStream::new(&Bytes, &["b"]);
        let mut out = String::new();
        assert!(stream.push(98, &mut out).expect("never fails"));
        assert!(stream.push(97, &mut out).expect("never fails"), "it stays stopped");
        stream.clear();
        assert!(!stream.push(97, &mut out).expect("never fails"));
        assert_eq!(out, "a");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_made_up(text in "[ab\u{e9}\u{1F41F}]{0,30}", stop in proptest::collection::vec("[ab\u{e9}]{1,3}", 0..3)) {
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let (pieces, stopped) = pieces(&text, &stop);
            // The stop string that is complete first, then the one that begins first.
            let ends = stop.iter().filter_map(|stop| text.find(stop).map(|at| (at + stop.len(), at)));
            let want = match ends.min() {
                Some((end, _)) => {
                    let begins = stop.iter().filter(|stop| text[..end].ends_with(**stop));
                    let longest = begins.map(|stop| stop.len()).max().unwrap_or(0);
                    (text[..end - longest].to_owned(), true)
                }
                None => (text.clone(), false),
            };
            prop_assert_eq!((pieces.concat(), stopped), want);
        }
    }
}
