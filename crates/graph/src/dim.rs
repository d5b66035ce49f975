use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul};
use std::sync::Arc;

/// A dimension: a whole number, a symbol (`T`, the rows of a step), or a sum of multiples of symbols (`L+T`).
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Dim {
    constant: usize,
    /// Symbol and factor, sorted by symbol, factors above zero.
    terms: Vec<(Arc<str>, usize)>,
}

impl Dim {
    /// A symbol.
    pub fn symbol(name: &str) -> Self {
        Self { constant: 0, terms: vec![(name.into(), 1)] }
    }

    /// The dimension that is displayed as this text, such as `L+2*T+1`; any other text is one symbol.
    pub fn parse(text: &str) -> Self {
        let term = |term: &str| {
            let name = |name: &str| {
                let start = name.chars().next()?;
                let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
                (!start.is_ascii_digit() && name.chars().all(word)).then(|| Self::symbol(name))
            };
            match term.trim().split_once('*') {
                Some((factor, symbol)) => {
                    let factor = factor.trim().parse().ok().filter(|factor| *factor > 0)?;
                    Some(&name(symbol.trim())? * factor)
                }
                None => term.trim().parse().ok().map(|size: usize| size.into()).or_else(|| name(term.trim())),
            }
        };
        let sum = |sum: Self, text| Some(&sum + &term(text)?);
        text.split('+').try_fold(Self::default(), sum).unwrap_or_else(|| Self::symbol(text))
    }

    /// The number, if no symbol is involved.
    pub fn fixed(&self) -> Option<usize> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The symbols involved.
    pub fn symbols(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|(symbol, _)| symbol.as_ref())
    }

    /// The constant, and symbols with their factors.
    pub(crate) fn parts(&self) -> (usize, &[(Arc<str>, usize)]) {
        (self.constant, &self.terms)
    }

    /// The number when symbols have these values; `None` if one is missing or the number overflows.
    pub fn evaluate(&self, symbols: &BTreeMap<String, usize>) -> Option<usize> {
        self.terms.iter().try_fold(self.constant, |sum, (symbol, factor)| {
            sum.checked_add(symbols.get(symbol.as_ref())?.checked_mul(*factor)?)
        })
    }

    /// The quotient, if it is exact for every value of the symbols.
    pub fn divide(&self, by: usize) -> Option<Self> {
        if by == 0 || self.constant % by != 0 || self.terms.iter().any(|(_, factor)| factor % by != 0) {
            return None;
        }
        let terms = self.terms.iter().map(|(symbol, factor)| (symbol.clone(), factor / by)).collect();
        Some(Self { constant: self.constant / by, terms })
    }

    /// The difference, if it cannot be negative term by term.
    pub fn minus(&self, other: &Self) -> Option<Self> {
        let mut terms: BTreeMap<Arc<str>, usize> = self.terms.iter().cloned().collect();
        for (symbol, factor) in &other.terms {
            let mine = terms.get_mut(symbol)?;
            *mine = mine.checked_sub(*factor)?;
        }
        let terms = terms.into_iter().filter(|(_, factor)| *factor > 0).collect();
        Some(Self { constant: self.constant.checked_sub(other.constant)?, terms })
    }
}

impl From<usize> for Dim {
    fn from(constant: usize) -> Self {
        Self { constant, terms: Vec::new() }
    }
}

impl From<&str> for Dim {
    fn from(symbol: &str) -> Self {
        Self::symbol(symbol)
    }
}

impl Add<&Dim> for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        let mut terms: BTreeMap<Arc<str>, usize> = self.terms.iter().cloned().collect();
        for (symbol, factor) in &other.terms {
            let sum = terms.entry(symbol.clone()).or_default();
            *sum = sum.saturating_add(*factor);
        }
        Dim { constant: self.constant.saturating_add(other.constant), terms: terms.into_iter().collect() }
    }
}

impl Mul<usize> for &Dim {
    type Output = Dim;
    fn mul(self, by: usize) -> Dim {
        if by == 0 {
            return Dim::default();
        }
        let terms = self.terms.iter().map(|(symbol, factor)| (symbol.clone(), factor.saturating_mul(by)));
        Dim { constant: self.constant.saturating_mul(by), terms: terms.collect() }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (symbol, factor) in &self.terms {
            f.write_str(separator)?;
            if *factor > 1 {
                write!(f, "{factor}*")?;
            }
            f.write_str(symbol)?;
            separator = "+";
        }
        if self.constant > 0 || self.terms.is_empty() {
            write!(f, "{separator}{}", self.constant)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Dimensions, outermost first.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// A shape of whole numbers.
    pub fn fixed(dims: &[usize]) -> Self {
        Self(dims.iter().map(|&dim| dim.into()).collect())
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The dimensions.
    pub fn dims(&self) -> &[Dim] {
        &self.0
    }

    /// The last dimension.
    pub fn last(&self) -> Option<&Dim> {
        self.0.last()
    }

    /// Whole numbers, if there are no symbols.
    pub fn to_fixed(&self) -> Option<Vec<usize>> {
        self.0.iter().map(Dim::fixed).collect()
    }

    /// Whole numbers when symbols have these values.
    pub fn evaluate(&self, symbols: &BTreeMap<String, usize>) -> Option<Vec<usize>> {
        self.0.iter().map(|dim| dim.evaluate(symbols)).collect()
    }

    /// The same shape with another dimension at `axis`.
    pub fn with(&self, axis: usize, dim: Dim) -> Self {
        let mut dims = self.0.clone();
        dims[axis] = dim;
        Self(dims)
    }

    /// Whether two shapes hold the same number of elements whatever the symbols are. Products of symbols are
    /// compared at sample points, which cannot confuse polynomials of these low degrees in practice.
    pub fn same_count(&self, other: &Self) -> bool {
        let symbols: Vec<String> =
            self.0.iter().chain(&other.0).flat_map(Dim::symbols).map(str::to_owned).collect();
        [[2usize, 3, 5, 7, 11], [13, 17, 19, 23, 29], [31, 1, 37, 41, 43]].iter().all(|primes| {
            let mut next = primes.iter().cycle();
            let mut values = BTreeMap::new();
            for symbol in &symbols {
                if !values.contains_key(symbol) {
                    values.insert(symbol.clone(), *next.next().unwrap_or(&2));
                }
            }
            let count = |shape: &Self| {
                shape.0.iter().try_fold(1usize, |product, dim| product.checked_mul(dim.evaluate(&values)?))
            };
            count(self).is_some() && count(self) == count(other)
        })
    }
}

impl<D: Into<Dim>, const N: usize> From<[D; N]> for Shape {
    fn from(dims: [D; N]) -> Self {
        Self(dims.into_iter().map(Into::into).collect())
    }
}

impl From<Vec<Dim>> for Shape {
    fn from(dims: Vec<Dim>) -> Self {
        Self(dims)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
