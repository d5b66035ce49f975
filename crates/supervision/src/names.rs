use std::collections::HashMap;

use crate::{Result, SupervisionError};

/// Identifiers of items, voters or classes, in one piece of memory: ten million short names take a few hundred
/// megabytes less than as many `String`s, numbered ones take nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(Store);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Store {
    Numbered(usize),
    Listed { text: String, ends: Vec<usize> },
}

impl Names {
    /// The names `0`, `1`, ... `count - 1`.
    pub fn numbered(count: usize) -> Self {
        Self(Store::Numbered(count))
    }

    /// A list of names.
    ///
    /// # Errors
    /// A name that occurs twice.
    pub fn listed<S: AsRef<str>>(what: &'static str, names: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut builder = NamesBuilder::new();
        for name in names {
            let name = name.as_ref();
            if !builder.add(name).1 {
                return Err(SupervisionError::Name { what, name: name.into(), why: "occurs twice" });
            }
        }
        Ok(builder.finish())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Store::Numbered(count) => *count,
            Store::Listed { ends, .. } => ends.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name at `index`; beyond the end, the index itself.
    pub fn get(&self, index: usize) -> std::borrow::Cow<'_, str> {
        match self.text(index) {
            Some(text) => text.into(),
            None => index.to_string().into(),
        }
    }

    /// Names to indices, for many look-ups.
    pub fn index(&self) -> HashMap<std::borrow::Cow<'_, str>, usize> {
        (0..self.len()).map(|index| (self.get(index), index)).collect()
    }

    /// The names at `indices`, in that order.
    pub fn select(&self, indices: &[usize]) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(indices.len()));
        for index in indices {
            text.push_str(&self.get(*index));
            ends.push(text.len());
        }
        Self(Store::Listed { text, ends })
    }

    fn text(&self, index: usize) -> Option<&str> {
        let Store::Listed { text, ends } = &self.0 else { return None };
        let start = if index == 0 { 0 } else { *ends.get(index - 1)? };
        text.get(start..*ends.get(index)?)
    }
}

/// Collects names and numbers them in the order of their first occurrence.
#[derive(Default)]
pub(crate) struct NamesBuilder {
    text: String,
    ends: Vec<usize>,
    /// Hash of a name, or the next free number after it, to its index: the text is stored once.
    seen: HashMap<u64, u32>,
    hasher: std::hash::RandomState,
}

impl NamesBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The index of a name, and whether it is new.
    pub(crate) fn add(&mut self, name: &str) -> (usize, bool) {
        let mut hash = std::hash::BuildHasher::hash_one(&self.hasher, name);
        while let Some(index) = self.seen.get(&hash) {
            let index = *index as usize;
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            if &self.text[start..self.ends[index]] == name {
                return (index, false);
            }
            hash = hash.wrapping_add(1);
        }
        let index = self.ends.len();
        self.seen.insert(hash, index as u32);
        self.text.push_str(name);
        self.ends.push(self.text.len());
        (index, true)
    }

    pub(crate) fn finish(self) -> Names {
        Names(Store::Listed { text: self.text, ends: self.ends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_order_and_are_unique() {
        let names = Names::listed("voter", ["b", "", "a"]).expect("unique");
        assert_eq!((names.len(), &*names.get(0), &*names.get(1), &*names.get(2)), (3, "b", "", "a"));
        assert_eq!(names.index()["a"], 2);
        assert_eq!(names.select(&[2, 0]), Names::listed("voter", ["a", "b"]).expect("unique"));
        assert!(Names::listed("voter", ["a", "b", "a"]).is_err());
        let numbered = Names::numbered(2);
        assert_eq!((numbered.len(), &*numbered.get(1), numbered.index()["1"]), (2, "1", 1));
    }
}
