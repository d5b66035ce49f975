use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use rayon::prelude::*;

use super::Votes;
use crate::{Result, SupervisionError};

/// Largest table of counts that patterns are looked up in directly.
const DIRECT: u128 = 1 << 22;

/// Rows that were tried before deciding whether grouping pays.
const TRIAL: usize = 8192;

/// Distinct rows of votes, and how many items have each.
///
/// With few voters, many items share their votes. All a conditional-independence model needs of them is one copy and a
/// count: ten million items with ten binary voters are at most 59,049 rows. Sums over items are exact here, so a model
/// fitted on grouped rows equals one fitted item by item to the bit.
///
/// ```
/// use pilotfish_supervision::{Rows, Votes};
/// let votes = Votes::from_dense(3, 2, 2, &[1, 0, 0, 0, 1, 0])?;
/// let rows = Rows::grouped(&votes)?;
/// assert_eq!((rows.len(), rows.items(), rows.row_of(0) == rows.row_of(2)), (2, 3, true));
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    votes: Cow<'a, Votes>,
    counts: Option<Vec<u64>>,
    of: Option<Vec<u32>>,
    items: u64,
}

impl<'a> Rows<'a> {
    /// Every item a row of its own.
    pub fn plain(votes: &'a Votes) -> Self {
        Self { votes: Cow::Borrowed(votes), counts: None, of: None, items: votes.items() as u64 }
    }

    /// Grouped if at most half as many rows remain, judging by the first few thousand items.
    ///
    /// # Errors
    /// None with votes that were validated.
    pub fn of(votes: &'a Votes) -> Result<Self> {
        if direct_size(votes).is_some() {
            return Self::grouped(votes);
        }
        let trial = votes.items().min(TRIAL);
        let mut groups = Groups::new(votes);
        (0..trial).for_each(|item| {
            groups.add(item);
        });
        if groups.first.len() * 2 > trial { Ok(Self::plain(votes)) } else { Self::grouped(votes) }
    }

    /// One row for every distinct one.
    ///
    /// # Errors
    /// None with votes that were validated.
    pub fn grouped(votes: &'a Votes) -> Result<Self> {
        let (first, counts, of) = match direct_size(votes) {
            Some(size) => direct(votes, size),
            None => {
                let mut groups = Groups::new(votes);
                let of = (0..votes.items()).map(|item| groups.add(item)).collect();
                (groups.first, groups.counts, of)
            }
        };
        let votes = Cow::Owned(votes.select_items(&first)?);
        Ok(Self { votes, items: of.len() as u64, counts: Some(counts), of: Some(of) })
    }

    /// Rows that were counted elsewhere, by a database for one: `counts[r]` items have the votes of item `r` of
    /// `patterns`.
    ///
    /// # Errors
    /// One count a pattern is needed, and more than none of all.
    pub fn from_counts(patterns: Votes, counts: Vec<u64>) -> Result<Rows<'static>> {
        if counts.len() != patterns.items() {
            let (got, want) = (counts.len(), patterns.items());
            return Err(SupervisionError::Shape { what: "counts", got, want });
        }
        let items = counts.iter().try_fold(0u64, |sum, count| sum.checked_add(*count));
        match items {
            Some(0) => Err(SupervisionError::Empty { what: "items" }),
            None => Err(SupervisionError::TooLarge { what: "items", got: u64::MAX, limit: u64::MAX - 1 }),
            Some(items) => Ok(Rows { votes: Cow::Owned(patterns), counts: Some(counts), of: None, items }),
        }
    }

    /// The votes of each row.
    pub fn votes(&self) -> &Votes {
        &self.votes
    }

    /// Number of rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.votes.items()
    }

    /// Number of items: the sum of all counts.
    pub fn items(&self) -> u64 {
        self.items
    }

    /// How many items have this row.
    #[inline]
    pub fn count(&self, row: usize) -> u64 {
        self.counts.as_ref().map_or(1, |counts| counts[row])
    }

    /// The row of an item.
    pub fn row_of(&self, item: usize) -> usize {
        self.of.as_ref().map_or(item, |of| of[item] as usize)
    }

    /// Rows of all items, if they are not the items themselves.
    pub(crate) fn map(&self) -> Option<&[u32]> {
        self.of.as_deref()
    }

    /// Sums over all rows on all cores: `row(r, sums)` adds to `width` sums. The same to the bit on any number of them.
    pub(crate) fn sum<S: Send + Sync>(
        &self,
        width: usize,
        scratch: impl Fn() -> S + Sync,
        row: impl Fn(usize, &mut S, &mut [crate::exact::Sum]) + Sync,
    ) -> Vec<crate::exact::Sum> {
        let empty = || vec![crate::exact::Sum::default(); width];
        // Few large pieces: each has sums of its own.
        let piece = self.len().div_ceil(4 * rayon::current_num_threads()).max(1024);
        let pieces = self.len().div_ceil(piece);
        (0..pieces)
            .into_par_iter()
            .map(|index| {
                let (mut sums, mut scratch) = (empty(), scratch());
                for r in index * piece..((index + 1) * piece).min(self.len()) {
                    row(r, &mut scratch, &mut sums);
                }
                sums
            })
            .reduce(empty, crate::exact::merge)
    }
}

/// Size of a table with a place for every possible row, if that is small.
fn direct_size(votes: &Votes) -> Option<usize> {
    votes.bytes()?;
    let base = votes.classes() as u128 + 1;
    let mut size = 1u128;
    for _ in 0..votes.voters() {
        size = size.checked_mul(base).filter(|size| *size <= DIRECT)?;
    }
    Some(size as usize)
}

/// First item, count and row of every item, through a table of all possible rows.
fn direct(votes: &Votes, size: usize) -> (Vec<usize>, Vec<u64>, Vec<u32>) {
    let (cells, width, base) =
        (votes.bytes().unwrap_or_default(), votes.voters(), votes.classes() as u32 + 1);
    let mut of: Vec<u32> = cells
        .par_chunks(width)
        .with_min_len(4096)
        .map(|row| row.iter().fold(0, |code, cell| code * base + u32::from(cell.wrapping_add(1))))
        .collect();
    let mut places = vec![u32::MAX; size];
    let (mut first, mut counts) = (Vec::new(), Vec::<u64>::new());
    for (item, code) in of.iter_mut().enumerate() {
        let place = &mut places[*code as usize];
        if *place == u32::MAX {
            *place = first.len() as u32;
            first.push(item);
            counts.push(0);
        }
        counts[*place as usize] += 1;
        *code = *place;
    }
    (first, counts, of)
}

/// Groups rows by their hash, comparing them where hashes agree.
struct Groups<'a> {
    votes: &'a Votes,
    first: Vec<usize>,
    counts: Vec<u64>,
    seen: HashMap<u64, u32>,
    hasher: RandomState,
    row: Vec<(usize, usize)>,
    other: Vec<(usize, usize)>,
}

impl<'a> Groups<'a> {
    fn new(votes: &'a Votes) -> Self {
        let (first, counts, seen, hasher) = Default::default();
        Self { votes, first, counts, seen, hasher, row: Vec::new(), other: Vec::new() }
    }

    fn add(&mut self, item: usize) -> u32 {
        self.row.clear();
        self.votes.visit(item, |voter, class| self.row.push((voter, class)));
        let mut hash = self.hasher.hash_one(&self.row);
        while let Some(group) = self.seen.get(&hash).copied() {
            self.other.clear();
            self.votes.visit(self.first[group as usize], |voter, class| self.other.push((voter, class)));
            if self.row == self.other {
                self.counts[group as usize] += 1;
                return group;
            }
            hash = hash.wrapping_add(1);
        }
        let group = self.first.len() as u32;
        self.seen.insert(hash, group);
        self.first.push(item);
        self.counts.push(1);
        group
    }
}
