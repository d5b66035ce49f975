//! Rows going in and out: activations packed in the order they are read, outputs written by several threads.

use std::cell::RefCell;

/// Inputs a block of packed activations.
pub(crate) const BLOCK: usize = 16;

/// Rows that are multiplied together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// The first one.
    pub start: usize,
    /// How many.
    pub rows: usize,
}

/// Groups of nearly equal size, none larger than `most`.
pub(crate) fn groups(rows: usize, most: usize) -> Vec<Group> {
    let count = rows.div_ceil(most).max(1);
    (0..count)
        .map(|i| {
            let (start, end) = (rows * i / count, rows * (i + 1) / count);
            Group { start, rows: end - start }
        })
        .collect()
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Activations `[rows, ins]` of each group as `[ins / 16, rows of the group, 16]`, zeros at the end: one
/// pointer walks over all rows, whatever their distance was, and every offset within a block is a constant.
/// Given to `use_it`.
pub(crate) fn blocked<T>(x: &[f32], ins: usize, groups: &[Group], use_it: impl FnOnce(&[f32]) -> T) -> T {
    let width = ins.next_multiple_of(BLOCK);
    let rows: usize = groups.iter().map(|group| group.rows).sum();
    let mut packed = SCRATCH.take();
    packed.clear();
    packed.resize(rows * width, 0.0);
    for group in groups {
        let target = &mut packed[group.start * width..];
        for row in 0..group.rows {
            let source = &x[(group.start + row) * ins..(group.start + row + 1) * ins];
            let (whole, rest) = source.as_chunks::<BLOCK>();
            for (block, values) in whole.iter().enumerate() {
                let at = (block * group.rows + row) * BLOCK;
                target[at..at + BLOCK].copy_from_slice(values);
            }
            if !rest.is_empty() {
                let at = (whole.len() * group.rows + row) * BLOCK;
                target[at..][..rest.len()].copy_from_slice(rest);
            }
        }
    }
    let result = use_it(&packed);
    SCRATCH.set(packed);
    result
}

/// Outputs `[rows, outs]` that several threads write, each its own columns.
#[derive(Clone, Copy)]
pub(crate) struct Outputs<'a> {
    start: *mut f32,
    rows: usize,
    outs: usize,
    _borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: all access goes through `tile`, whose callers keep to columns of their own.
unsafe impl Send for Outputs<'_> {}
// SAFETY: as above.
unsafe impl Sync for Outputs<'_> {}

impl<'a> Outputs<'a> {
    pub(crate) fn new(y: &'a mut [f32], outs: usize) -> Self {
        Self { start: y.as_mut_ptr(), rows: y.len() / outs, outs, _borrow: std::marker::PhantomData }
    }

    /// Lets `fill` write `width` columns of the rows of a group from a column on, as rows that are `stride`
    /// apart: in place where all columns exist, beside and copied otherwise. With `again`, what is there is kept
    /// for it to add to.
    ///
    /// # Safety
    /// No other thread uses these columns meanwhile. `fill` stays within `rows` rows of `width` columns.
    pub(crate) unsafe fn tile(
        &self,
        group: Group,
        column: usize,
        width: usize,
        again: bool,
        fill: impl FnOnce(*mut f32, usize),
    ) {
        assert!(group.start + group.rows <= self.rows && column < self.outs);
        let there = width.min(self.outs - column);
        // SAFETY: in bounds by the assertion.
        let place = unsafe { self.start.add(group.start * self.outs + column) };
        if there == width {
            return fill(place, self.outs);
        }
        let mut beside = vec![0.0; group.rows * width];
        for row in 0..group.rows {
            if again {
                // SAFETY: `there` columns of each row exist, and are ours by the caller's promise.
                let old = unsafe { std::slice::from_raw_parts(place.add(row * self.outs), there) };
                beside[row * width..][..there].copy_from_slice(old);
            }
        }
        fill(beside.as_mut_ptr(), width);
        for row in 0..group.rows {
            // SAFETY: as above.
            let new = unsafe { std::slice::from_raw_parts_mut(place.add(row * self.outs), there) };
            new.copy_from_slice(&beside[row * width..][..there]);
        }
    }
}

/// Rows `[rows, ins]` as `[rows, width]`, zeros at the end. Given to `use_it`.
pub(crate) fn padded<T>(x: &[f32], ins: usize, width: usize, use_it: impl FnOnce(&[f32]) -> T) -> T {
    let mut packed = SCRATCH.take();
    packed.clear();
    for row in x.chunks_exact(ins) {
        packed.extend_from_slice(row);
        packed.resize(packed.len() + width - ins, 0.0);
    }
    let result = use_it(&packed);
    SCRATCH.set(packed);
    result
}
