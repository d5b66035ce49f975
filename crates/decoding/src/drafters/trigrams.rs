//! What ADED draws its drafts from: scores of tokens after pairs of tokens, counted from a corpus and raised while
//! decoding.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use pilotfish_model::Token;

use crate::state::{self, In, Out};
use crate::{DecodingError, Result};

/// Numbers of a [`Trigrams`] table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrigramConfig {
    /// Successors kept a pair when a table is built or read; those learnt later come on top.
    pub successors: usize,
    /// What a tri-gram of the window gains a step.
    pub increment: f32,
    /// The most a score can be.
    pub cap: f32,
    /// Last tokens of the text that are learnt from, each step anew.
    pub window: usize,
}

impl Default for TrigramConfig {
    fn default() -> Self {
        Self { successors: 12, increment: 0.04, cap: 3.0, window: 16 }
    }
}

impl TrigramConfig {
    fn check(&self) -> Result<()> {
        if self.successors == 0 || self.window < 3 {
            let (name, value) = match self.successors {
                0 => ("successors", 0),
                _ => ("window", self.window),
            };
            return Err(DecodingError::BadParameter { name, value, want: "successors >= 1, window >= 3" });
        }
        for (name, value) in [("increment", self.increment), ("cap", self.cap)] {
            if !(value > 0.0 && value.is_finite()) {
                let value = f64::from(value);
                return Err(crate::drafters::number(name, value, "above 0 and finite"));
            }
        }
        Ok(())
    }
}

/// Scores of tokens after pairs of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigrams {
    config: TrigramConfig,
    /// Successors by score, descending (ties: smaller id).
    map: HashMap<(Token, Token), Vec<(Token, f32)>>,
}

impl Trigrams {
    /// A table that knows nothing.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(config: TrigramConfig) -> Result<Self> {
        config.check()?;
        Ok(Self { config, map: HashMap::new() })
    }

    /// Counts documents: a score is the share of a successor among all of its pair. Only the best successors of a
    /// pair stay; their scores are not brought back to a sum of 1.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn build<'a>(
        config: TrigramConfig,
        documents: impl IntoIterator<Item = &'a [Token]>,
    ) -> Result<Self> {
        let mut counts: HashMap<(Token, Token), BTreeMap<Token, u64>> = HashMap::new();
        for document in documents {
            for window in document.windows(3) {
                *counts.entry((window[0], window[1])).or_default().entry(window[2]).or_default() += 1;
            }
        }
        let mut table = Self::new(config)?;
        for (pair, counts) in counts {
            let sum: u64 = counts.values().sum();
            let mut list: Vec<(Token, f32)> = counts
                .into_iter()
                .map(|(token, count)| (token, (count as f64 / sum as f64) as f32))
                .collect();
            sort(&mut list);
            list.truncate(config.successors);
            table.map.insert(pair, list);
        }
        Ok(table)
    }

    /// Pairs known.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The numbers.
    pub fn config(&self) -> &TrigramConfig {
        &self.config
    }

    /// Successors of a pair with their scores, descending (ties: smaller id).
    pub fn after(&self, pair: (Token, Token)) -> &[(Token, f32)] {
        self.map.get(&pair).map_or(&[], Vec::as_slice)
    }

    /// The score of a successor; 0 if it is not known.
    pub fn score(&self, pair: (Token, Token), token: Token) -> f32 {
        self.after(pair).iter().find(|(id, _)| *id == token).map_or(0.0, |(_, score)| *score)
    }

    /// Raises every tri-gram of the last tokens of a text, once for each time it is there. Texts of fewer than three
    /// tokens teach nothing.
    pub fn learn(&mut self, text: &[Token]) {
        let window = &text[text.len().saturating_sub(self.config.window)..];
        for gram in window.windows(3) {
            let list = self.map.entry((gram[0], gram[1])).or_default();
            let at = match list.iter().position(|(id, _)| *id == gram[2]) {
                Some(at) => at,
                None => {
                    list.push((gram[2], 0.0));
                    list.len() - 1
                }
            };
            list[at].1 = (list[at].1 + self.config.increment).min(self.config.cap);
            sort(list);
        }
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut out = Out::default();
        let TrigramConfig { successors, increment, cap, window } = self.config;
        out.u64(successors as u64);
        out.f32(increment);
        out.f32(cap);
        out.u64(window as u64);
        out.u64(self.map.len() as u64);
        let mut pairs: Vec<_> = self.map.iter().collect();
        pairs.sort_by_key(|(pair, _)| **pair);
        for ((a, b), list) in pairs {
            out.u32(*a);
            out.u32(*b);
            out.u32(list.len() as u32);
            for (token, score) in list {
                out.u32(*token);
                out.f32(*score);
            }
        }
        state::save(path, b"ADED", &out.0)
    }

    /// Reads it from a file, with all successors that were learnt.
    ///
    /// # Errors
    /// A file that cannot be read, is spoilt, or is not a table.
    pub fn load(path: &Path) -> Result<Self> {
        let payload = state::load(path, b"ADED")?;
        let short = || state::bad(path, "it is too short");
        let mut input = In(&payload);
        let mut read = || {
            let config = TrigramConfig {
                successors: usize::try_from(input.u64()?).ok()?,
                increment: input.f32()?,
                cap: input.f32()?,
                window: usize::try_from(input.u64()?).ok()?,
            };
            let pairs = input.u64()?;
            let mut map = HashMap::new();
            for _ in 0..pairs {
                let pair = (input.u32()?, input.u32()?);
                let count = input.u32()? as usize;
                if count > input.left() / 8 {
                    return None;
                }
                let mut list = Vec::with_capacity(count);
                for _ in 0..count {
                    list.push((input.u32()?, input.f32()?));
                }
                map.insert(pair, list);
            }
            input.done().then_some((config, map))
        };
        let (config, mut map) = read().ok_or_else(short)?;
        config.check().map_err(|_| state::bad(path, "its numbers are out of range"))?;
        if map.values().flatten().any(|(_, score)| !(*score >= 0.0 && score.is_finite())) {
            return Err(state::bad(path, "a score that is no number"));
        }
        map.values_mut().for_each(|list| sort(list));
        Ok(Self { config, map })
    }
}

/// Best first; ties by smaller id.
fn sort(list: &mut [(Token, f32)]) {
    list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-6, "{got} is not {want}");
    }

    #[test]
    fn learns_by_hand() {
        let text = [1, 2, 3, 1, 2, 3];
        let mut table = Trigrams::new(TrigramConfig::default()).expect("valid");
        table.learn(&text);
        close(table.score((1, 2), 3), 0.08);
        close(table.score((2, 3), 1), 0.04);
        close(table.score((3, 1), 2), 0.04);
        (0..2).for_each(|_| table.learn(&text));
        close(table.score((1, 2), 3), 0.24);
        close(table.score((2, 3), 1), 0.12);
        (0..97).for_each(|_| table.learn(&text));
        close(table.score((1, 2), 3), 3.0);
        let mut table = Trigrams::new(TrigramConfig::default()).expect("valid");
        table.learn(&(0..20).collect::<Vec<_>>());
        assert_eq!(table.len(), 14, "the window holds 14 tri-grams");
        assert!(table.after((3, 4)).is_empty() && !table.after((4, 5)).is_empty());
        for short in [&[][..], &[1], &[1, 2]] {
            table.learn(short);
        }
        assert_eq!(table.len(), 14);
    }

    #[test]
    fn builds_by_hand() {
        let corpus: [&[Token]; 4] = [&[5, 6, 7], &[5, 6, 8], &[5, 6, 7], &[9]];
        let table = Trigrams::build(TrigramConfig::default(), corpus).expect("valid");
        assert_eq!(table.len(), 1);
        close(table.score((5, 6), 7), 2.0 / 3.0);
        close(table.score((5, 6), 8), 1.0 / 3.0);
        let many: Vec<[Token; 3]> = (0..20).map(|token| [1, 2, token]).collect();
        let table = Trigrams::build(TrigramConfig::default(), many.iter().map(|gram| gram.as_slice()))
            .expect("valid");
        assert_eq!(table.after((1, 2)).len(), 12);
        assert!(table.after((1, 2)).iter().map(|(_, score)| score).sum::<f32>() < 1.0);
    }

    #[test]
    fn numbers_are_checked() {
        let good = TrigramConfig::default();
        for bad in [
            TrigramConfig { successors: 0, ..good },
            TrigramConfig { window: 2, ..good },
            TrigramConfig { increment: f32::NAN, ..good },
            TrigramConfig { increment: 0.0, ..good },
            TrigramConfig { cap: f32::INFINITY, ..good },
        ] {
            assert!(Trigrams::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn survives_a_restart_and_refuses_spoilt_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("table");
        let corpus: [&[Token]; 2] = [&[5, 6, 7], &[5, 6, 8]];
        let mut table = Trigrams::build(TrigramConfig::default(), corpus).expect("valid");
        table.learn(&[5, 6, 9]);
        table.save(&path).expect("writable");
        assert_eq!(Trigrams::load(&path).expect("whole"), table);
        state::spoil(&path, Trigrams::load);
    }
}
