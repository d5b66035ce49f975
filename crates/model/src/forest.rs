use crate::{ModelError, Parents, Result};

/// The shape of a cache: for each row its parent and its position.
///
/// Every implementation of [`Steps`](crate::Steps) keeps one, so that parents, positions, masks, `keep` and
/// `truncate` mean the same everywhere. Rows `0..chain()` form a chain and cost nothing to describe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forest {
    parents: Vec<Option<usize>>,
    positions: Vec<usize>,
    chain: usize,
}

impl Forest {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.parents.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parents.is_empty()
    }

    /// Length of the chain that the cache begins with: row `i < chain()` has parent `i - 1`.
    pub fn chain(&self) -> usize {
        self.chain
    }

    /// The parent of a row.
    pub fn parent(&self, row: usize) -> Option<usize> {
        self.parents[row]
    }

    /// The position of a row: its depth, not its index.
    pub fn position(&self, row: usize) -> usize {
        self.positions[row]
    }

    /// Appends `rows` rows with the given parents.
    ///
    /// # Errors
    /// A parent that does not come before its row, or a position past `context`; nothing is appended then.
    pub fn append(&mut self, rows: usize, parents: Parents<'_>, context: usize) -> Result<()> {
        let old = self.len();
        let appended = self.try_append(rows, parents, context);
        if appended.is_err() {
            self.truncate(old)?;
        }
        appended
    }

    fn try_append(&mut self, rows: usize, parents: Parents<'_>, context: usize) -> Result<()> {
        if let Parents::Rows(list) = parents
            && list.len() != rows
        {
            return Err(ModelError::Length { what: "parents of a step", got: list.len(), want: rows });
        }
        for index in 0..rows {
            let row = self.len();
            let parent = match parents {
                Parents::Chain => row.checked_sub(1),
                Parents::Rows(list) => list[index],
            };
            if let Some(parent) = parent
                && parent >= row
            {
                return Err(ModelError::BadParent { row, parent });
            }
            let position = parent.map_or(0, |parent| self.positions[parent] + 1);
            if position >= context {
                return Err(ModelError::ContextFull { position, context });
            }
            self.push(parent, position);
        }
        Ok(())
    }

    fn push(&mut self, parent: Option<usize>, position: usize) {
        let row = self.len();
        if self.chain == row && parent == row.checked_sub(1) {
            self.chain += 1;
        }
        self.parents.push(parent);
        self.positions.push(position);
    }

    /// Keeps rows `0..from` and `rows` (see [`Steps::keep`](crate::Steps::keep)).
    pub fn keep(&mut self, from: usize, rows: &[usize]) -> Result<()> {
        let len = self.len();
        if from > len {
            return Err(ModelError::NoSuchRow { what: "keep", row: from, len });
        }
        let mut renumbered = vec![None; len - from];
        for (new, &row) in rows.iter().enumerate() {
            if row >= len {
                return Err(ModelError::NoSuchRow { what: "keep", row, len });
            }
            if row < from || (new > 0 && row <= rows[new - 1]) {
                return Err(ModelError::BadKeep { row, why: "rows must ascend and start at `from`" });
            }
            if let Some(parent) = self.parents[row]
                && parent >= from
                && renumbered[parent - from].is_none()
            {
                return Err(ModelError::BadKeep { row, why: "its parent is not kept" });
            }
            renumbered[row - from] = Some(from + new);
        }
        let kept: Vec<_> = rows
            .iter()
            .map(|&row| {
                let parent = self.parents[row].map(|parent| match parent.checked_sub(from) {
                    Some(index) => renumbered[index].unwrap_or(parent),
                    None => parent,
                });
                (parent, self.positions[row])
            })
            .collect();
        self.truncate(from)?;
        for (parent, position) in kept {
            self.push(parent, position);
        }
        Ok(())
    }

    /// Forgets all rows but the first `len`.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            return Err(ModelError::NoSuchRow { what: "truncate", row: len, len: self.len() });
        }
        self.parents.truncate(len);
        self.positions.truncate(len);
        self.chain = self.chain.min(len);
        Ok(())
    }

    /// The rows from the start of the row's sequence to the row itself.
    pub fn path(&self, row: usize) -> Vec<usize> {
        let mut path: Vec<usize> = std::iter::successors(Some(row), |&row| self.parents[row]).collect();
        path.reverse();
        path
    }

    /// Writes the additive mask of the rows `first..len`, row-major `[len - first, columns]`: 0 where a row
    /// sees a column (its ancestors and itself), `blocked` elsewhere. With a window, a row at position `p` sees
    /// only positions above `p - window`.
    ///
    /// `columns` may exceed the number of rows (a cache buffer with room to spare); the rest is blocked.
    ///
    /// # Panics
    /// When `out` is not `(len - first) * columns` long, or `columns` is below the number of rows.
    pub fn mask(&self, first: usize, columns: usize, window: Option<usize>, blocked: f32, out: &mut [f32]) {
        let len = self.len();
        assert!(columns >= len && out.len() == (len - first) * columns, "mask buffer of the wrong size");
        for row in first..len {
            let (before, rest) = out.split_at_mut((row - first) * columns);
            let mine = &mut rest[..columns];
            let floor = window.map_or(0, |window| (self.positions[row] + 1).saturating_sub(window));
            match (self.parents[row], window) {
                // Without a window, a row sees what its parent sees, and itself.
                (Some(parent), None) if parent >= first => {
                    mine.copy_from_slice(&before[(parent - first) * columns..][..columns]);
                    mine[row] = 0.0;
                }
                _ => {
                    mine.fill(blocked);
                    let mut at = Some(row);
                    while let Some(seen) = at {
                        if seen < self.chain {
                            // Row and position agree within the chain.
                            if floor <= seen {
                                mine[floor..=seen].fill(0.0);
                            }
                            break;
                        }
                        if self.positions[seen] < floor {
                            break;
                        }
                        mine[seen] = 0.0;
                        at = self.parents[seen];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::TokenTree;

    fn allowed(forest: &Forest, first: usize, window: Option<usize>) -> Vec<Vec<bool>> {
        let len = forest.len();
        let mut mask = vec![7.0; (len - first) * (len + 3)];
        forest.mask(first, len + 3, window, -1.0, &mut mask);
        mask.chunks_exact(len + 3).map(|row| row.iter().map(|&x| x == 0.0).collect()).collect()
    }

    /// A prefix of three rows, then root, a and b under it, c under a, a probe under a.
    fn worked() -> Forest {
        let mut forest = Forest::new();
        forest.append(3, Parents::Chain, 100).expect("fits");
        let mut tree = TokenTree::new(0);
        let a = tree.push(0, 1).expect("exists");
        tree.push(0, 2).expect("exists");
        tree.push(a, 3).expect("exists");
        tree.push(a, 4).expect("exists");
        forest.append(5, Parents::Rows(&tree.parents(3)), 100).expect("fits");
        forest
    }

    #[test]
    fn tree_mask_by_hand() {
        let forest = worked();
        let positions: Vec<usize> = (3..8).map(|row| forest.position(row)).collect();
        assert_eq!(positions, [3, 4, 4, 5, 5]);
        let mask = allowed(&forest, 3, None);
        let block: Vec<String> =
            mask.iter().map(|row| row[3..8].iter().map(|&x| if x { '1' } else { '0' }).collect()).collect();
        assert_eq!(block, ["10000", "11000", "10100", "11010", "11001"]);
        assert!(mask.iter().all(|row| row[..3] == [true; 3] && row[8..] == [false; 3]));
    }

    #[test]
    fn keeping_a_path() {
        let mut forest = worked();
        forest.keep(3, &[3, 4, 6]).expect("a path");
        assert_eq!((forest.len(), forest.chain()), (6, 6));
        let mut chain = Forest::new();
        chain.append(6, Parents::Chain, 100).expect("fits");
        assert_eq!(forest, chain);
    }

    #[test]
    fn refuses_nonsense_and_stays_as_it_was() {
        let mut forest = worked();
        let before = forest.clone();
        assert!(
            forest.append(2, Parents::Rows(&[Some(7), Some(9)]), 100).is_err(),
            "a row that is its own parent"
        );
        assert!(forest.append(2, Parents::Rows(&[Some(7)]), 100).is_err(), "too few parents");
        assert!(forest.append(95, Parents::Chain, 100).is_err(), "past the context");
        assert!(forest.keep(3, &[6]).is_err(), "the parent is forgotten");
        assert!(forest.keep(3, &[4, 3]).is_err(), "not ascending");
        assert!(forest.keep(3, &[2]).is_err(), "before the start");
        assert!(forest.keep(9, &[]).is_err() && forest.keep(3, &[8]).is_err() && forest.truncate(9).is_err());
        assert_eq!(forest, before);
    }

    /// Parents drawn from seeds: the chain, an earlier row, or none.
    fn random(seeds: &[(u8, u8)]) -> Vec<Option<usize>> {
        seeds
            .iter()
            .enumerate()
            .map(|(row, &(kind, pick))| match kind % 8 {
                0 => None,
                1..=3 if row > 0 => Some(pick as usize % row),
                _ => row.checked_sub(1),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn mask_is_the_ancestor_relation(seeds in proptest::collection::vec(any::<(u8, u8)>(), 1..40), first in 0usize..40, window in proptest::option::of(1usize..12)) {
            let parents = random(&seeds);
            let mut forest = Forest::new();
            forest.append(parents.len(), Parents::Rows(&parents), 1000).expect("valid");
            let first = first.min(forest.len());
            for (index, row) in allowed(&forest, first, window).into_iter().enumerate() {
                let path = forest.path(first + index);
                let position = forest.position(first + index);
                for (column, seen) in row.into_iter().enumerate() {
                    let near = window.is_none_or(|window| column < forest.len() && forest.position(column) + window > position);
                    prop_assert_eq!(seen, path.contains(&column) && near, "row {} column {}", first + index, column);
                }
            }
        }

        #[test]
        fn keeping_equals_rebuilding(seeds in proptest::collection::vec(any::<(u8, u8)>(), 1..40), from in 0usize..40, choice in any::<u64>()) {
            let parents = random(&seeds);
            let mut forest = Forest::new();
            forest.append(parents.len(), Parents::Rows(&parents), 1000).expect("valid");
            let from = from.min(forest.len());
            let mut kept: Vec<usize> = Vec::new();
            for (row, parent) in parents.iter().enumerate().skip(from) {
                if choice >> (row % 64) & 1 == 1 && parent.is_none_or(|parent| parent < from || kept.contains(&parent)) {
                    kept.push(row);
                }
            }
            let rows: Vec<usize> = (0..from).chain(kept.iter().copied()).collect();
            let again: Vec<Option<usize>> =
                rows.iter().map(|&row| parents[row].and_then(|parent| rows.iter().position(|&other| other == parent))).collect();
            let mut rebuilt = Forest::new();
            rebuilt.append(again.len(), Parents::Rows(&again), 1000).expect("valid");
            forest.keep(from, &kept).expect("parents are kept");
            prop_assert_eq!(forest, rebuilt);
        }
    }
}
