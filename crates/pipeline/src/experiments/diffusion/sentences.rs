//! Short texts from templates: two sentences, of which the second follows from the first but for a word.

use std::ops::Range;

use pilotfish_architectures::Tokenizer;
use pilotfish_model::{StreamRng, Streams, Token};
use rand::Rng;
use rand::seq::{IndexedRandom, index};
use sha2::{Digest, Sha256};

use crate::error::Failure;

/// Tokens of a text, padding included.
pub(super) const WIDTH: usize = 30;
/// One text in so many is never trained on.
const HELD_OUT: u8 = 8;

const NAMES: [&str; 12] =
    ["Anna", "Ben", "David", "Frank", "Henry", "Jack", "John", "Mark", "Mary", "Peter", "Sarah", "Tom"];
const NUMBERS: [&str; 9] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
const COLOURS: [&str; 6] = ["red", "blue", "green", "black", "white", "brown"];
const THINGS: [&str; 8] = ["apples", "books", "coins", "cups", "flowers", "keys", "pens", "stones"];
const PLACES: [&str; 6] = ["garden", "kitchen", "library", "market", "park", "school"];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Two sentences.
fn drawn(streams: Streams) -> [String; 2] {
    let mut rng = streams.stream("sentences");
    let pick = |from: &[&'static str], rng: &mut StreamRng| from.choose(rng).copied().unwrap_or_default();
    let who = index::sample(&mut rng, NAMES.len(), 2).into_vec();
    let (a, b) = (NAMES[who[0]], NAMES[who[1]]);
    match rng.random_range(0..3u8) {
        0 => {
            let all = rng.random_range(2..NUMBERS.len());
            let given = rng.random_range(0..all);
            let (colour, things) = (pick(&COLOURS, &mut rng), pick(&THINGS, &mut rng));
            let (n, m, left) = (NUMBERS[all], NUMBERS[given], NUMBERS[all - given - 1]);
            [
                format!("{a} has {n} {colour} {things} and gives {b} {m} of them."),
                format!(" Now {a} has {left} {things} and {b} has {m}."),
            ]
        }
        1 => {
            let day = rng.random_range(0..DAYS.len());
            let (place, next) = (pick(&PLACES, &mut rng), DAYS[(day + 1) % DAYS.len()]);
            [
                format!("{a} goes to the {place} on {}.", DAYS[day]),
                format!(" {b} goes to the {place} the day after, on {next}."),
            ]
        }
        _ => {
            let colours = index::sample(&mut rng, COLOURS.len(), 2).into_vec();
            let (mine, yours) = (COLOURS[colours[0]], COLOURS[colours[1]]);
            let place = pick(&PLACES, &mut rng);
            [
                format!("At the {place} {a} wears a {mine} hat and {b} a {yours} hat."),
                format!(" The {mine} hat is {a}'s and the {yours} hat is {b}'s."),
            ]
        }
    }
}

/// Two sentences that are held out, or that are not.
fn sentences(streams: Streams, held_out: bool) -> [String; 2] {
    let mut attempt = 0;
    loop {
        let both = drawn(streams.fork(attempt));
        // A digest's first byte: the same everywhere, and of no relation to what a template says.
        let first = Sha256::digest(both.concat()).first().copied().unwrap_or(0);
        if (first % HELD_OUT == 0) == held_out {
            return both;
        }
        attempt += 1;
    }
}

/// A word without what stands around it: ` Anna's` and ` Anna.` are `Anna`.
fn stem(word: &str) -> &str {
    let start = word.len() - word.trim_start().len();
    let rest = &word[start..];
    &word[..start + rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len())]
}

/// Whether templates are filled with this word.
fn fills(word: &str) -> bool {
    let lists: [&[&str]; 6] = [&NAMES, &NUMBERS, &COLOURS, &THINGS, &PLACES, &DAYS];
    lists.iter().any(|list| list.contains(&word.trim()))
}

/// A text in tokens.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// A token that begins it, two sentences, and tokens that end it, [`WIDTH`] in all.
    pub(super) tokens: Vec<Token>,
    /// The second sentence.
    pub(super) second: Range<usize>,
    /// Whether a template was filled with it, token by token.
    pub(super) filled: Vec<bool>,
}

impl Text {
    /// Where both sentences are.
    pub(super) fn words(&self) -> Range<usize> {
        1..self.second.end
    }
}

/// The tokeniser, and the tokens with a meaning of their own.
pub(super) struct Words {
    tokenizer: Tokenizer,
    start: Token,
    end: Token,
    pub(super) mask: Token,
}

impl Words {
    pub(super) fn new(tokenizer: Tokenizer) -> Result<Self, Failure> {
        let id = |token: &str| tokenizer.id(token).ok_or_else(|| format!("the tokeniser has no {token}"));
        // The mask is a token for notebooks, which no text here has.
        let (start, end, mask) = (id("<|im_start|>")?, id("<|im_end|>")?, id("<empty_output>")?);
        Ok(Self { start, end, mask, tokenizer })
    }

    /// A text of some randomness, held out or not.
    ///
    /// # Errors
    /// A tokeniser that makes it longer than [`WIDTH`], or joins words.
    pub(super) fn text(&self, streams: Streams, held_out: bool) -> Result<Text, Failure> {
        let [first, second] = sentences(streams, held_out);
        let (mut tokens, mut filled) = (vec![self.start], vec![false]);
        let mut at = 0;
        for sentence in [&first, &second] {
            at = tokens.len();
            let spaces = sentence.match_indices(' ').map(|(space, _)| space).filter(|space| *space > 0);
            let ends = spaces.chain([sentence.len()]);
            let mut begin = 0;
            for end in ends {
                let word = &sentence[begin..end];
                let stem = stem(word);
                let ids = self.tokenizer.encode(word, false)?;
                let count = if fills(stem) { self.tokenizer.encode(stem, false)?.len() } else { 0 };
                filled.extend((0..ids.len()).map(|index| index < count));
                tokens.extend(ids);
                begin = end;
            }
            if tokens[at..] != self.tokenizer.encode(sentence, false)? {
                return Err(format!("the tokeniser joins words of \"{sentence}\"").into());
            }
        }
        let length = tokens.len();
        if length >= WIDTH {
            return Err(format!("a text of {length} tokens: {first}{second}").into());
        }
        tokens.resize(WIDTH, self.end);
        filled.resize(WIDTH, false);
        Ok(Text { tokens, second: at..length, filled })
    }

    /// Tokens to be read by people: masks as dots, and no padding.
    pub(super) fn shown(&self, tokens: &[Token]) -> Result<String, Failure> {
        let mut out = String::new();
        for &token in tokens.iter().filter(|token| **token != self.end && **token != self.start) {
            match token == self.mask {
                true => out.push_str(" …"),
                false => out.push_str(&self.tokenizer.decode(&[token], false)?),
            }
        }
        Ok(out.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn second_sentences_follow_from_the_first() {
        let mut kinds = [0; 3];
        for item in 0..300 {
            let [first, second] = sentences(Streams::new(3).fork(item), item % 2 == 0);
            let number = |word: &str| NUMBERS.iter().position(|number| *number == word).map(|at| at + 1);
            let words =
                |text: &str| text.split_whitespace().map(|word| stem(word).to_owned()).collect::<Vec<_>>();
            let (a, b) = (words(&first), words(&second));
            match (b[0].as_str(), first.contains(" goes ")) {
                ("Now", _) => {
                    let (all, given, left) = (number(&a[2]), number(&a[8]), number(&b[3]));
                    assert!(all.is_some() && b[1] == a[0] && b[6] == a[7] && b[4] == a[4] && b[8] == a[8]);
                    assert_eq!(all, given.zip(left).map(|(given, left)| given + left), "{first}{second}");
                    kinds[0] += 1;
                }
                (_, true) => {
                    let day = |word: &str| DAYS.iter().position(|day| *day == word);
                    assert!(day(&a[6]).is_some() && a[4] == b[4]);
                    assert_eq!(day(&a[6]).map(|day| (day + 1) % 7), day(&b[9]), "{first}{second}");
                    kinds[1] += 1;
                }
                _ => {
                    // The red hat is Anna's and the blue hat is Ben's: whose is whose.
                    assert!(
                        first.contains(&format!(
                            "{} wears a {} hat and {} a {} hat.",
                            b[4], b[1], b[10], b[7]
                        ))
                    );
                    kinds[2] += 1;
                }
            }
        }
        assert!(kinds.iter().all(|count| *count > 70), "{kinds:?}");
    }

    #[test]
    fn held_out_texts_are_never_trained_on() {
        let all = |held_out: bool| -> HashSet<String> {
            (0..4000).map(|item| sentences(Streams::new(1).fork(item), held_out).concat()).collect()
        };
        let (trained, held) = (all(false), all(true));
        assert!(trained.is_disjoint(&held));
        // Without the rule they would not be: there are only so many days and places.
        let free = |from: u64| -> HashSet<String> {
            (from..from + 4000).map(|item| drawn(Streams::new(1).fork(item)).concat()).collect()
        };
        assert!(!free(0).is_disjoint(&free(4000)));
        assert_eq!(sentences(Streams::new(1), true), sentences(Streams::new(1), true));
    }

    #[test]
    fn words_of_lists_are_told_from_the_templates() {
        assert_eq!(
            [" Anna's", "Anna.", " hat,", "five", " "].map(stem),
            [" Anna", "Anna", " hat", "five", " "]
        );
        let marked = |text: &str| text.split(' ').map(|word| fills(stem(word))).collect::<Vec<_>>();
        let no_more = [true, false, true, true, true, false, false, true, true, false, false];
        assert_eq!(marked("Anna has nine red keys and gives Tom two of them."), no_more);
        assert_eq!(marked("The red hat is Anna's"), [false, true, false, false, true]);
    }
}
