//! Sums that do not depend on their order.
//!
//! Terms are rounded to multiples of 2^-60 and added as 128-bit integers. A sum over items is then the same to the bit
//! in any order, on any number of threads, and whether equal rows are added one by one or once times their count.

const SCALE: f64 = (1u64 << 60) as f64;

/// A sum of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum(i128);

impl Sum {
    /// Units in one.
    #[cfg(feature = "datafusion")]
    pub(crate) const UNIT: u64 = SCALE as u64;

    /// A sum that was made elsewhere.
    #[cfg(feature = "datafusion")]
    pub(crate) fn of_units(units: i128) -> Self {
        Self(units)
    }

    /// Adds `count` times a value between -4 and 4.
    #[inline(always)]
    pub(crate) fn add_unit(&mut self, value: f64, count: u64) {
        self.0 += i128::from((value * SCALE) as i64) * i128::from(count);
    }

    /// Adds `count` times a finite value below 2^60 or so.
    #[inline]
    pub(crate) fn add(&mut self, value: f64, count: u64) {
        self.0 = self.0.saturating_add(((value * SCALE) as i128).saturating_mul(i128::from(count)));
    }

    /// Adds another sum.
    #[inline]
    pub(crate) fn merge(&mut self, other: Self) {
        self.0 += other.0;
    }

    /// This less another sum.
    pub(crate) fn minus(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }

    /// The sum, rounded once.
    #[inline]
    pub(crate) fn value(self) -> f64 {
        self.0 as f64 / SCALE
    }
}

/// Adds lists of sums, place by place.
pub(crate) fn merge(mut a: Vec<Sum>, b: Vec<Sum>) -> Vec<Sum> {
    a.iter_mut().zip(b).for_each(|(a, b)| a.merge(b));
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_grouping_do_not_matter() {
        let values = [0.1, 1.0 / 3.0, -0.7, 1e-12, 3.25];
        let (mut forward, mut backward, mut thrice, mut grouped) = <(Sum, Sum, Sum, Sum)>::default();
        values.iter().for_each(|v| forward.add_unit(*v, 1));
        values.iter().rev().for_each(|v| backward.add_unit(*v, 1));
        (0..3).for_each(|_| values.iter().for_each(|v| thrice.add_unit(*v, 1)));
        values.iter().for_each(|v| grouped.add_unit(*v, 3));
        assert_eq!((forward, thrice), (backward, grouped));
        assert!((forward.value() - values.iter().sum::<f64>()).abs() < 1e-15);
    }
}
