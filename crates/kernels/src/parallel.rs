//! Work in parts, on the caller's own threads.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whoever runs parts of a product: the caller's thread, rayon, or a runtime's own pool.
pub trait Parallel {
    /// How many parts may run at once.
    fn width(&self) -> usize;

    /// Calls `work` with every number below `parts`, in any order, on any threads, and returns when all calls
    /// have returned. A number given twice does nothing the second time, and one left out is done afterwards
    /// by the caller's thread.
    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync));
}

/// The caller's thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn width(&self) -> usize {
        1
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(work);
    }
}

/// Rayon's current pool. Its idle threads sleep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rayon;

impl Parallel for Rayon {
    fn width(&self) -> usize {
        rayon::current_num_threads()
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        use rayon::prelude::*;
        (0..parts).into_par_iter().for_each(work);
    }
}

/// Runs `work` once for each part of `units` things, with ranges of them. At most `width` parts, and none with
/// less than `least` things: waking a thread costs as much as a small product.
pub(crate) fn split(
    threads: &dyn Parallel,
    units: usize,
    least: usize,
    work: &(dyn Fn(std::ops::Range<usize>) + Sync),
) {
    let parts = threads.width().min(units / least.max(1)).max(1);
    if parts == 1 {
        return work(0..units);
    }
    let taken: Vec<AtomicBool> = (0..parts).map(|_| AtomicBool::new(false)).collect();
    let once = |part: usize| {
        if taken.get(part).is_some_and(|flag| !flag.swap(true, Ordering::AcqRel)) {
            work(units * part / parts..units * (part + 1) / parts);
        }
    };
    threads.run(parts, &once);
    (0..parts).for_each(once);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Forgets part 1, gives part 0 twice and invents one.
    struct Careless;

    impl Parallel for Careless {
        fn width(&self) -> usize {
            3
        }

        fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
            work(0);
            work(0);
            (2..parts + 1).for_each(work);
        }
    }

    #[test]
    fn every_thing_is_done_once() {
        for threads in [&Serial as &dyn Parallel, &Rayon, &Careless] {
            for (units, least) in [(0, 1), (1, 1), (7, 1), (7, 3), (100, 8)] {
                let seen = Mutex::new(vec![0; units]);
                split(threads, units, least, &|range| {
                    for unit in range {
                        seen.lock().expect("not poisoned")[unit] += 1;
                    }
                });
                assert!(seen.into_inner().expect("not poisoned").iter().all(|&count| count == 1));
            }
        }
    }
}
