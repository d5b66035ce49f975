use crate::names::Names;
use crate::{Result, SupervisionError};

/// Most classes that votes can have.
pub const MAX_CLASSES: usize = u16::MAX as usize;

/// Categorical votes of `voters` on `items`, with abstention.
///
/// Items, voters and classes are numbered from 0 and keep their names.
///
/// ```
/// use pilotfish_supervision::Votes;
/// // Three voters on two items; -1 abstains.
/// let votes = Votes::from_dense(2, 3, 2, &[1, 1, 0, -1, 0, 0])?;
/// assert_eq!((votes.items(), votes.voters(), votes.classes(), votes.len()), (2, 3, 2, 5));
/// assert_eq!((votes.vote(0, 1), votes.vote(1, 0)), (Some(1), None));
/// assert_eq!(votes.row(1).collect::<Vec<_>>(), [(1, 0), (2, 0)]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Votes {
    items: Names,
    voters: Names,
    classes: Names,
    /// Votes that are not abstentions.
    len: u64,
    table: Table,
}

#[derive(Clone, Debug, PartialEq)]
enum Table {
    /// A cell an item and voter; the largest value abstains.
    Bytes(Vec<u8>),
    Words(Vec<u16>),
    /// The votes of item `t` are at `starts[t]..starts[t + 1]`, voters ascending.
    Sparse {
        starts: Vec<u64>,
        voters: Vec<u32>,
        codes: Vec<u16>,
    },
}

impl Votes {
    /// Votes from a matrix, row-major, `items x voters`; -1 abstains. Everything is named by its number.
    ///
    /// # Errors
    /// A length that does not fit, a class outside `0..classes`, no items, no voters, no vote at all, fewer than two
    /// classes or more than [`MAX_CLASSES`].
    pub fn from_dense<T: Copy + Into<i64>>(
        items: usize,
        voters: usize,
        classes: usize,
        votes: &[T],
    ) -> Result<Self> {
        check_sizes(items, voters, classes)?;
        let want = items.saturating_mul(voters);
        if votes.len() != want {
            return Err(SupervisionError::Shape { what: "votes (items x voters)", got: votes.len(), want });
        }
        let code = |(index, vote): (usize, &T)| -> Result<Option<u16>> {
            match (*vote).into() {
                -1 => Ok(None),
                got if (0..classes as i64).contains(&got) => Ok(Some(got as u16)),
                got => Err(SupervisionError::OutOfRange {
                    item: index / voters,
                    voter: index % voters,
                    got,
                    classes,
                }),
            }
        };
        let codes = votes.iter().enumerate().map(code);
        let table = if classes < usize::from(u8::MAX) + 1 {
            Table::Bytes(codes.map(|c| Ok(c?.map_or(u8::MAX, |c| c as u8))).collect::<Result<_>>()?)
        } else {
            Table::Words(codes.map(|c| Ok(c?.unwrap_or(u16::MAX))).collect::<Result<_>>()?)
        };
        Self::new(Names::numbered(items), Names::numbered(voters), Names::numbered(classes), table)
    }

    /// Votes from triples `(item, voter, class)`, in any order.
    ///
    /// # Errors
    /// A number beyond its names, a second vote of a voter on an item, no votes, too many of anything.
    pub fn from_triples(
        items: Names,
        voters: Names,
        classes: Names,
        triples: &[(u32, u32, u16)],
    ) -> Result<Self> {
        check_sizes(items.len(), voters.len(), classes.len())?;
        let mut starts = vec![0u64; items.len() + 1];
        for &(item, voter, class) in triples {
            for (what, got, want) in [("item", item, items.len()), ("voter", voter, voters.len())] {
                if got as usize >= want {
                    return Err(SupervisionError::Shape { what, got: got as usize, want: want - 1 });
                }
            }
            if usize::from(class) >= classes.len() {
                return Err(SupervisionError::OutOfRange {
                    item: item as usize,
                    voter: voter as usize,
                    got: class.into(),
                    classes: classes.len(),
                });
            }
            starts[item as usize + 1] += 1;
        }
        for item in 0..items.len() {
            starts[item + 1] += starts[item];
        }
        let mut cells = vec![(0u32, 0u16); triples.len()];
        let mut next = starts.clone();
        for &(item, voter, class) in triples {
            let place = &mut next[item as usize];
            cells[*place as usize] = (voter, class);
            *place += 1;
        }
        for item in 0..items.len() {
            let row = &mut cells[starts[item] as usize..starts[item + 1] as usize];
            row.sort_unstable();
            if let Some(pair) = row.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(SupervisionError::Duplicate {
                    item: items.get(item).into(),
                    voter: voters.get(pair[0].0 as usize).into(),
                });
            }
        }
        let wide = classes.len() > usize::from(u8::MAX);
        let dense = (items.len() as u128) * (voters.len() as u128) * if wide { 2 } else { 1 };
        if dense > 6 * cells.len() as u128 + 8 * items.len() as u128 {
            let (voters_of, codes) = cells.into_iter().unzip();
            return Self::new(items, voters, classes, Table::Sparse { starts, voters: voters_of, codes });
        }
        let width = voters.len();
        let place = |item: usize, voter: u32| item * width + voter as usize;
        let rows = (0..items.len()).flat_map(|item| {
            cells[starts[item] as usize..starts[item + 1] as usize].iter().map(move |cell| (item, cell))
        });
        let table = if wide {
            let mut table = vec![u16::MAX; items.len() * width];
            rows.for_each(|(item, &(voter, class))| table[place(item, voter)] = class);
            Table::Words(table)
        } else {
            let mut table = vec![u8::MAX; items.len() * width];
            rows.for_each(|(item, &(voter, class))| table[place(item, voter)] = class as u8);
            Table::Bytes(table)
        };
        Self::new(items, voters, classes, table)
    }

    /// The same votes under other names.
    ///
    /// # Errors
    /// As many names as there are items, voters and classes are needed.
    pub fn with_names(mut self, items: Names, voters: Names, classes: Names) -> Result<Self> {
        for (what, names, old) in [
            ("names of items", &items, &self.items),
            ("names of voters", &voters, &self.voters),
            ("names of classes", &classes, &self.classes),
        ] {
            if names.len() != old.len() {
                return Err(SupervisionError::Shape { what, got: names.len(), want: old.len() });
            }
        }
        (self.items, self.voters, self.classes) = (items, voters, classes);
        Ok(self)
    }

    fn new(items: Names, voters: Names, classes: Names, table: Table) -> Result<Self> {
        let len = match &table {
            Table::Bytes(cells) => cells.iter().filter(|cell| **cell != u8::MAX).count(),
            Table::Words(cells) => cells.iter().filter(|cell| **cell != u16::MAX).count(),
            Table::Sparse { codes, .. } => codes.len(),
        } as u64;
        if len == 0 {
            return Err(SupervisionError::Empty { what: "votes" });
        }
        Ok(Self { items, voters, classes, len, table })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Number of voters.
    pub fn voters(&self) -> usize {
        self.voters.len()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Number of votes that are not abstentions; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Names of the items.
    pub fn item_names(&self) -> &Names {
        &self.items
    }

    /// Names of the voters.
    pub fn voter_names(&self) -> &Names {
        &self.voters
    }

    /// Names of the classes.
    pub fn class_names(&self) -> &Names {
        &self.classes
    }

    /// Whether every voter votes on every item.
    pub fn is_complete(&self) -> bool {
        u128::from(self.len) == self.items() as u128 * self.voters() as u128
    }

    /// The class that `voter` gives `item`; `None` if it abstains or either does not exist.
    pub fn vote(&self, item: usize, voter: usize) -> Option<usize> {
        if item >= self.items() || voter >= self.voters() {
            return None;
        }
        match &self.table {
            Table::Bytes(cells) => byte(cells[item * self.voters() + voter]),
            Table::Words(cells) => word(cells[item * self.voters() + voter]),
            Table::Sparse { starts, voters, codes } => {
                let range = starts[item] as usize..starts[item + 1] as usize;
                let found = voters[range.clone()].binary_search(&(voter as u32)).ok()?;
                Some(codes[range.start + found].into())
            }
        }
    }

    /// The votes on an item: voter and class, voters ascending. None beyond the last item.
    pub fn row(&self, item: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut row = Vec::new();
        if item < self.items() {
            self.visit(item, |voter, class| row.push((voter, class)));
        }
        row.into_iter()
    }

    /// The votes of chosen voters, in the order given; items on which none of them votes remain.
    ///
    /// # Errors
    /// A voter that does not exist or is named twice; no votes left.
    pub fn select_voters(&self, chosen: &[usize]) -> Result<Self> {
        let mut place = vec![None; self.voters()];
        for (new, old) in chosen.iter().enumerate() {
            let Some(place) = place.get_mut(*old) else {
                return Err(SupervisionError::Shape { what: "voter", got: *old, want: self.voters() - 1 });
            };
            if place.replace(new as u32).is_some() {
                let name = self.voters.get(*old).into();
                return Err(SupervisionError::Name { what: "voter", name, why: "is chosen twice" });
            }
        }
        let mut triples = Vec::new();
        for item in 0..self.items() {
            self.visit(item, |voter, class| {
                if let Some(voter) = place[voter] {
                    triples.push((item as u32, voter, class as u16));
                }
            });
        }
        Self::from_triples(self.items.clone(), self.voters.select(chosen), self.classes.clone(), &triples)
    }

    /// The votes on chosen items, in the order given; an item may be named more than once, and then its name is too.
    ///
    /// # Errors
    /// An item that does not exist; no votes left.
    pub fn select_items(&self, chosen: &[usize]) -> Result<Self> {
        let mut triples = Vec::new();
        for (new, old) in chosen.iter().enumerate() {
            if *old >= self.items() {
                return Err(SupervisionError::Shape { what: "item", got: *old, want: self.items() - 1 });
            }
            self.visit(*old, |voter, class| triples.push((new as u32, voter as u32, class as u16)));
        }
        Self::from_triples(self.items.select(chosen), self.voters.clone(), self.classes.clone(), &triples)
    }

    /// The votes with class `c` renamed to `to[c]`; several classes may become one.
    ///
    /// ```
    /// use pilotfish_supervision::{Names, Votes};
    /// let votes = Votes::from_dense(1, 3, 3, &[0, 1, 2])?;
    /// // Class 1 against the rest.
    /// let binary = votes.map_classes(&[0, 1, 0], Names::numbered(2))?;
    /// assert_eq!(binary.row(0).collect::<Vec<_>>(), [(0, 0), (1, 1), (2, 0)]);
    /// # Ok::<(), pilotfish_supervision::SupervisionError>(())
    /// ```
    ///
    /// # Errors
    /// One target for every class is needed, inside the new names.
    pub fn map_classes(&self, to: &[usize], names: Names) -> Result<Self> {
        if to.len() != self.classes() {
            return Err(SupervisionError::Shape { what: "targets", got: to.len(), want: self.classes() });
        }
        check_sizes(self.items(), self.voters(), names.len())?;
        if let Some(got) = to.iter().find(|class| **class >= names.len()) {
            return Err(SupervisionError::Shape { what: "target class", got: *got, want: names.len() - 1 });
        }
        let map16 = |code: u16| to.get(usize::from(code)).map_or(u16::MAX, |class| *class as u16);
        let map8 = |code: u8| if code == u8::MAX { u16::MAX } else { map16(code.into()) };
        let wide = names.len() > usize::from(u8::MAX);
        let narrow = |code: u16| if code == u16::MAX { u8::MAX } else { code as u8 };
        let table = match &self.table {
            Table::Bytes(cells) if wide => Table::Words(cells.iter().map(|c| map8(*c)).collect()),
            Table::Bytes(cells) => Table::Bytes(cells.iter().map(|c| narrow(map8(*c))).collect()),
            Table::Words(cells) if wide => Table::Words(cells.iter().map(|c| map16(*c)).collect()),
            Table::Words(cells) => Table::Bytes(cells.iter().map(|c| narrow(map16(*c))).collect()),
            Table::Sparse { starts, voters, codes } => Table::Sparse {
                starts: starts.clone(),
                voters: voters.clone(),
                codes: codes.iter().map(|c| map16(*c)).collect(),
            },
        };
        Self::new(self.items.clone(), self.voters.clone(), names, table)
    }

    /// Calls `vote(voter, class)` for every vote on an item, voters ascending. The item must exist.
    #[inline(always)]
    pub(crate) fn visit(&self, item: usize, mut vote: impl FnMut(usize, usize)) {
        let width = self.voters.len();
        match &self.table {
            Table::Bytes(cells) => {
                for (voter, cell) in cells[item * width..(item + 1) * width].iter().enumerate() {
                    if *cell != u8::MAX {
                        vote(voter, usize::from(*cell));
                    }
                }
            }
            Table::Words(cells) => {
                for (voter, cell) in cells[item * width..(item + 1) * width].iter().enumerate() {
                    if *cell != u16::MAX {
                        vote(voter, usize::from(*cell));
                    }
                }
            }
            Table::Sparse { starts, voters, codes } => {
                let range = starts[item] as usize..starts[item + 1] as usize;
                for (voter, code) in voters[range.clone()].iter().zip(&codes[range]) {
                    vote(*voter as usize, usize::from(*code));
                }
            }
        }
    }

    /// One byte a cell, where that is the storage.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match &self.table {
            Table::Bytes(cells) => Some(cells),
            _ => None,
        }
    }

    /// Bytes that the votes themselves take, without names.
    pub fn memory(&self) -> usize {
        match &self.table {
            Table::Bytes(cells) => cells.len(),
            Table::Words(cells) => 2 * cells.len(),
            Table::Sparse { starts, voters, codes } => 8 * starts.len() + 4 * voters.len() + 2 * codes.len(),
        }
    }
}

fn byte(code: u8) -> Option<usize> {
    (code != u8::MAX).then_some(code.into())
}

fn word(code: u16) -> Option<usize> {
    (code != u16::MAX).then_some(code.into())
}

fn check_sizes(items: usize, voters: usize, classes: usize) -> Result<()> {
    for (what, got, limit) in [
        ("items", items, u32::MAX as usize),
        ("voters", voters, u32::MAX as usize),
        ("classes", classes, MAX_CLASSES),
    ] {
        if got == 0 {
            return Err(SupervisionError::Empty { what });
        }
        if got > limit {
            return Err(SupervisionError::TooLarge { what, got: got as u64, limit: limit as u64 });
        }
    }
    if classes < 2 {
        return Err(SupervisionError::Shape { what: "classes", got: classes, want: 2 });
    }
    Ok(())
}
