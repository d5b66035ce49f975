//! Items by name and by category.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::{Comparison, EvaluationError, PairedConfig, Result, compare};

/// An item measured with two methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Category.
    pub category: String,
    /// Measurement of the first method.
    pub a: f64,
    /// Measurement of the second.
    pub b: f64,
}

/// Two methods compared over all items and within each category.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByCategory {
    /// All items together.
    pub overall: Comparison,
    /// Each category, by name.
    pub categories: BTreeMap<String, Comparison>,
    /// The category in which the first method does worst against the second, where more is better: the one with
    /// the smallest ratio or, if some category has none, the smallest mean difference. Ties: the first by name.
    pub worst: String,
}

/// Compares two methods over all items and within each category.
///
/// ```
/// use pilotfish_evaluation::{Item, PairedConfig, by_category};
/// let item = |category: &str, a, b| Item { category: category.into(), a, b };
/// let items = [item("qa", 9.0, 10.0), item("rag", 20.0, 10.0), item("rag", 24.0, 10.0)];
/// let found = by_category(&items, &PairedConfig::default())?;
/// assert_eq!((found.worst.as_str(), found.categories["rag"].n), ("qa", 2));
/// # Ok::<(), pilotfish_evaluation::EvaluationError>(())
/// ```
///
/// # Errors
/// As [`compare`].
pub fn by_category(items: &[Item], config: &PairedConfig) -> Result<ByCategory> {
    let (a, b): (Vec<f64>, Vec<f64>) = items.iter().map(|item| (item.a, item.b)).unzip();
    let overall = compare(&a, &b, config)?;
    let mut groups: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for item in items {
        let (a, b) = groups.entry(&item.category).or_default();
        a.push(item.a);
        b.push(item.b);
    }
    let categories = groups
        .into_iter()
        .map(|(name, (a, b))| Ok((name.to_owned(), compare(&a, &b, config)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let ratios: Option<Vec<f64>> =
        categories.values().map(|found| found.ratio.map(|ratio| ratio.value)).collect();
    let gains = ratios.unwrap_or_else(|| categories.values().map(|found| found.difference.value).collect());
    let worst = categories.keys().zip(gains).min_by(|(_, x), (_, y)| x.total_cmp(y));
    let worst = worst.map(|(name, _)| name.clone()).ok_or(EvaluationError::Empty)?;
    Ok(ByCategory { overall, categories, worst })
}

/// Pairs the measurements of two methods by the items' identifiers, in the first one's order.
///
/// ```
/// use pilotfish_evaluation::pair;
/// let pairs = pair(&[("p1", 2.0), ("p2", 3.0)], &[("p2", 30.0), ("p1", 20.0)])?;
/// assert_eq!(pairs, [("p1", 2.0, 20.0), ("p2", 3.0, 30.0)]);
/// assert!(pair(&[("p1", 2.0)], &[("p2", 3.0)]).is_err());
/// # Ok::<(), pilotfish_evaluation::EvaluationError>(())
/// ```
///
/// # Errors
/// An item that only one of them has, or that one has twice: leaving it out would compare different prompts.
pub fn pair<'a>(a: &[(&'a str, f64)], b: &[(&'a str, f64)]) -> Result<Vec<(&'a str, f64, f64)>> {
    let mut others = HashMap::new();
    for &(id, value) in b {
        if others.insert(id, value).is_some() {
            return Err(EvaluationError::Twice { id: id.into() });
        }
    }
    let mut seen = std::collections::HashSet::new();
    let mut pairs = Vec::with_capacity(a.len());
    for &(id, value) in a {
        if !seen.insert(id) {
            return Err(EvaluationError::Twice { id: id.into() });
        }
        let other = others.get(id).ok_or_else(|| EvaluationError::Unpaired { id: id.into() })?;
        pairs.push((id, value, *other));
    }
    match b.iter().find(|(id, _)| !seen.contains(id)) {
        Some((id, _)) => Err(EvaluationError::Unpaired { id: (*id).into() }),
        None => Ok(pairs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(category: &str, a: f64, b: f64) -> Item {
        Item { category: category.into(), a, b }
    }

    #[test]
    fn the_worst_category_is_found() {
        let config = PairedConfig::default();
        // "b" gains most in tokens a second, and least as a ratio.
        let items = [item("a", 3.0, 1.0), item("b", 110.0, 100.0), item("a", 5.0, 1.0), item("c", 2.0, 1.0)];
        let found = by_category(&items, &config).expect("valid");
        assert_eq!((found.worst.as_str(), found.overall.n), ("b", 4));
        assert_eq!(found.categories["a"].ratio.expect("above 0").value, 4.0);
        // One category without a ratio: all are judged by differences.
        let items = [item("a", 3.0, 0.0), item("b", 110.0, 100.0), item("c", 2.0, 1.5)];
        assert_eq!(by_category(&items, &config).expect("valid").worst, "c");
        let ties = [item("y", 1.0, 1.0), item("x", 1.0, 1.0)];
        assert_eq!(by_category(&ties, &config).expect("valid").worst, "x");
        assert!(matches!(by_category(&[], &config), Err(EvaluationError::Empty)));
        assert!(by_category(&[item("a", f64::NAN, 1.0)], &config).is_err());
    }

    #[test]
    fn sets_that_do_not_match_are_refused() {
        let one = [("x", 1.0), ("y", 2.0)];
        let named = |error: EvaluationError| match error {
            EvaluationError::Unpaired { id } => format!("unpaired {id}"),
            EvaluationError::Twice { id } => format!("twice {id}"),
            other => other.to_string(),
        };
        let refused = |a: &[(&str, f64)], b: &[(&str, f64)]| named(pair(a, b).expect_err("do not match"));
        assert_eq!(refused(&one, &one[..1]), "unpaired y");
        assert_eq!(refused(&one[..1], &one), "unpaired y");
        assert_eq!(refused(&[("x", 1.0), ("x", 2.0)], &one), "twice x");
        assert_eq!(refused(&one, &[("y", 1.0), ("y", 2.0)]), "twice y");
        assert!(pair(&[], &[]).expect("nothing").is_empty());
    }
}
