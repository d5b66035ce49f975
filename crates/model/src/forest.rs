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
