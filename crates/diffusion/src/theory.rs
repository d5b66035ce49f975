//! What parallel decoding must lose: bounds and accuracies in closed form (ParallelBench, section 3).
//!
//! The conditional total correlation `C(Y|X) = sum H(y_i|X) - H(Y|X)` bounds from below the divergence of any model
//! that draws all tokens at once. With a fixed partition into steps the bound is
//! `L_T = sum_i E C(S_i | X, S_<i)`, and exact marginals reach it. All in bits.
//!
//! Accuracies are those of a model with exact marginals and ties broken by chance.
//!
//! | from | here |
//! |---|---|
//! | paper, section 3 and appendices | copy, replace index, replace random in one step, shuffle |
//! | derived | replace random in several steps (bound and accuracy) |

use pilotfish_model::Token;

use crate::Result;
use crate::error::refuse;

/// Sizes of the steps that commit `k` of `n` tokens each, the last what remains.
pub fn steps_of(n: usize, k: usize) -> Vec<usize> {
    let k = k.max(1);
    (0..n.div_ceil(k)).map(|step| k.min(n - step * k)).collect()
}

/// `C(Y|X)` of shuffling `n` items: `n log2 n - log2 n!`.
pub fn shuffle_correlation(n: usize) -> f64 {
    shuffle_bound(&[n])
}

/// `C(Y|X)` of replacing a random one of `n` items: `(n - 1)(log2 n - log2(n - 1))`.
pub fn replace_random_correlation(n: usize) -> f64 {
    if n < 2 { 0.0 } else { (n as f64 - 1.0) * ((n as f64).log2() - (n as f64 - 1.0).log2()) }
}

/// `L_T` of shuffling with steps of some sizes: `sum |S_t| log2 k_t - log2 n!`, `k_t` the masks before step `t`.
pub fn shuffle_bound(sizes: &[usize]) -> f64 {
    let n: usize = sizes.iter().sum();
    let mut left = n;
    let mut bound = 0.0;
    for &size in sizes {
        if size > 0 {
            bound += size as f64 * (left as f64).log2();
        }
        left -= size;
    }
    bound - (1..=n).map(|i| (i as f64).log2()).sum::<f64>()
}

/// `L_T` of replacing a random item with steps of some sizes. With `m` masks before a step and the new item not yet
/// placed, which has probability `m / n`, a step of size `s` has correlation `s h(1/m) - H(1/m, ..., 1/m, 1 - s/m)`.
pub fn replace_random_bound(sizes: &[usize]) -> f64 {
    let n: usize = sizes.iter().sum();
    let term = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    let mut left = n;
    let mut bound = 0.0;
    for &size in sizes.iter().filter(|size| **size > 0) {
        let (m, s) = (left as f64, size as f64);
        let apart = s * (term(1.0 / m) + term(1.0 - 1.0 / m));
        let together = s * term(1.0 / m) + term(1.0 - s / m);
        bound += m / n as f64 * (apart - together);
        left -= size;
    }
    bound
}

/// Accuracy of shuffling (any permutation counts) with steps of some sizes, at any temperature: the chance that no
/// step takes an item twice, `prod P(m_t, s_t) / m_t^{s_t}`.
pub fn shuffle_accuracy(sizes: &[usize]) -> f64 {
    let mut left: usize = sizes.iter().sum();
    let mut accuracy = 1.0;
    for &size in sizes {
        for taken in 0..size {
            accuracy *= (left - taken) as f64 / left as f64;
        }
        left -= size;
    }
    accuracy
}

/// Accuracy of replacing a random item at temperature 1, steps of some sizes at positions chosen without regard to
/// predictions: `sum_i [prod_{j<i} (1 - 1/m_j)^{s_j}] s_i (1/m_i) (1 - 1/m_i)^{s_i - 1}`.
pub fn replace_random_accuracy(sizes: &[usize]) -> f64 {
    let mut left: usize = sizes.iter().sum();
    let (mut accuracy, mut none) = (0.0, 1.0);
    for &size in sizes.iter().filter(|size| **size > 0) {
        let place = 1.0 / left as f64;
        accuracy += none * size as f64 * place * (1.0 - place).powi(size as i32 - 1);
        none *= (1.0 - place).powi(size as i32);
        left -= size;
    }
    accuracy
}

/// Accuracy of replacing a random item greedily: every step keeps what it sees until at most two masks are left, so
/// the last step decides. One mask is always right; two at once are a tie at each, broken by themselves.
pub fn replace_random_greedy(sizes: &[usize]) -> f64 {
    match sizes.iter().rev().find(|size| **size > 0) {
        None | Some(1) => 1.0,
        Some(2) => 0.5,
        Some(_) => 0.0,
    }
}

/// Passes and accuracy of the threshold rule with exact marginals, greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThresholdForecast {
    /// Forward passes.
    pub forwards: usize,
    /// Accuracy.
    pub accuracy: f64,
}

/// The threshold rule on shuffling `n` items. Confidences are `1/m`; `None` at or below `gamma = 1/2`, where several
/// items may be taken at once.
pub fn shuffle_threshold(n: usize, gamma: f64) -> Option<ThresholdForecast> {
    (gamma > 0.5).then_some(ThresholdForecast { forwards: n, accuracy: 1.0 })
}

/// The threshold rule on replacing a random one of `n >= 3` items. At the start every position keeps its item with
/// confidence `(n-1)/n`: either all do at once, or one after the other until the new item has a place. `None` for
/// `gamma <= 1/2` and at equality, where noise decides.
pub fn replace_random_threshold(n: usize, gamma: f64) -> Option<ThresholdForecast> {
    let keep = (n as f64 - 1.0) / n as f64;
    if n < 3 || !(gamma > 0.5) || (gamma - keep).abs() < 1e-9 {
        return None;
    }
    Some(if keep > gamma {
        ThresholdForecast { forwards: 1, accuracy: 0.0 }
    } else {
        ThresholdForecast { forwards: n, accuracy: 1.0 }
    })
}

/// Texts of one length with their probabilities, for bounds by enumeration.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    texts: Vec<(Vec<Token>, f64)>,
    length: usize,
}

impl Joint {
    /// A law over texts, each as likely as the others.
    ///
    /// # Errors
    /// No texts, or of different lengths.
    pub fn uniform(texts: Vec<Vec<Token>>) -> Result<Self> {
        let p = 1.0 / texts.len().max(1) as f64;
        Self::new(texts.into_iter().map(|text| (text, p)).collect())
    }

    /// A law over texts.
    ///
    /// # Errors
    /// No texts, or of different lengths; probabilities that are negative or do not sum to 1.
    pub fn new(texts: Vec<(Vec<Token>, f64)>) -> Result<Self> {
        let length = texts.first().map_or(0, |(text, _)| text.len());
        if length == 0 || texts.iter().any(|(text, _)| text.len() != length) {
            return refuse("texts of a law", length as f64, "at least one, all of one length above 0");
        }
        let total: f64 = texts.iter().map(|(_, p)| p).sum();
        if texts.iter().any(|(_, p)| !(*p >= 0.0)) || !((total - 1.0).abs() < 1e-9) {
            return refuse("sum of probabilities", total, "1, of numbers that are not negative");
        }
        Ok(Self { texts, length })
    }

    /// Entropy in bits of the tokens at some positions.
    pub fn entropy(&self, positions: &[usize]) -> f64 {
        let mut laws: std::collections::BTreeMap<Vec<Token>, f64> = std::collections::BTreeMap::new();
        for (text, p) in &self.texts {
            let part = positions.iter().filter_map(|&at| text.get(at)).copied().collect();
            *laws.entry(part).or_default() += p;
        }
        laws.values().filter(|p| **p > 0.0).map(|p| -p * p.log2()).sum()
    }

    /// `L_T` of a partition, given as the positions of each step: by the chain rule,
    /// `sum_i [sum_{j in S_i} H(y_j | S_<i) - H(S_i | S_<i)]`.
    ///
    /// # Errors
    /// Steps that are no partition of the positions.
    pub fn bound(&self, steps: &[Vec<usize>]) -> Result<f64> {
        let mut seen: Vec<usize> = steps.iter().flatten().copied().collect();
        seen.sort_unstable();
        if seen != (0..self.length).collect::<Vec<_>>() {
            return refuse("positions of a partition", seen.len() as f64, "each position once");
        }
        let (mut before, mut bound) = (Vec::new(), 0.0);
        for step in steps {
            let known = self.entropy(&before);
            for &position in step {
                let mut with = before.clone();
                with.push(position);
                bound += self.entropy(&with) - known;
            }
            before.extend(step);
            bound -= self.entropy(&before) - known;
        }
        Ok(bound)
    }

    /// Divergence in bits from this law to the product of its marginals.
    pub fn divergence_from_product(&self) -> f64 {
        let marginal = |at: usize, token: Token| -> f64 {
            self.texts.iter().filter(|(text, _)| text[at] == token).map(|(_, p)| p).sum()
        };
        let mut divergence = 0.0;
        for (text, p) in self.texts.iter().filter(|(_, p)| *p > 0.0) {
            let product: f64 = text.iter().enumerate().map(|(at, &token)| marginal(at, token)).product();
            divergence += p * (p / product).log2();
        }
        divergence
    }
}

/// What Theorem 1 of Fast-dLLM says of committing `n` tokens whose marginals are each above `1 - eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductBound {
    /// Whether the likeliest text of the product of marginals is the likeliest of the joint law: `(n + 1) eps <= 1`.
    pub greedy_agrees: bool,
    /// Upper bound of the total variation, `(3 n - 1) eps / 2`.
    pub total_variation: f64,
    /// Upper bound of the divergence in nats, `(n - 1)(h(eps) + eps ln(V - 1))`, `h` in nats.
    pub divergence: f64,
}

/// [`ProductBound`] of `n` tokens, `eps` and a vocabulary.
///
/// # Errors
/// `eps` outside `[0, 1]`; a vocabulary below 2.
pub fn product_bound(n: usize, eps: f64, vocab: usize) -> Result<ProductBound> {
    crate::error::probability("eps", eps)?;
    if vocab < 2 {
        return refuse("vocabulary", vocab as f64, "at least 2");
    }
    let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
    let h = term(eps) + term(1.0 - eps);
    Ok(ProductBound {
        greedy_agrees: (n as f64 + 1.0) * eps <= 1.0,
        total_variation: (3.0 * n as f64 - 1.0) * eps / 2.0,
        divergence: (n as f64 - 1.0).max(0.0) * (h + eps * (vocab as f64 - 1.0).ln()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 6e-5, "{got} is not {want}");
    }

    #[test]
    #[allow(clippy::approx_constant)]
    fn the_table_of_closed_forms() {
        let rows = [
            (3, 2.1699, 1.1699, [1.0, 0.6667, 0.2222, 0.2222], [1.0, 0.8889, 0.4444, 0.4444]),
            (4, 3.4150, 1.2451, [1.0, 0.3750, 0.0938, 0.0938], [1.0, 0.6563, 0.4219, 0.4219]),
            (6, 6.0179, 1.3152, [1.0, 0.3125, 0.1389, 0.01543], [1.0, 0.7335, 0.6269, 0.4019]),
            (8, 8.7008, 1.3485, [1.0, 0.2734, 0.03845, 0.00240], [1.0, 0.7803, 0.5823, 0.3927]),
            (10, 11.4282, 1.3680, [1.0, 0.2461, 0.0700, 0.000363], [1.0, 0.8121, 0.7029, 0.3874]),
        ];
        for (n, shuffle, replace, shuffles, replaces) in rows {
            close(shuffle_correlation(n), shuffle);
            close(replace_random_correlation(n), replace);
            for (k, (s, r)) in [1, 2, 4, n].into_iter().zip(shuffles.into_iter().zip(replaces)) {
                close(shuffle_accuracy(&steps_of(n, k)), s);
                close(replace_random_accuracy(&steps_of(n, k)), r);
            }
        }
        close(replace_random_accuracy(&[10_000]), (-1f64).exp());
    }

    #[test]
    fn bounds_of_several_steps() {
        close(shuffle_bound(&steps_of(4, 2)), 1.4150);
        close(shuffle_bound(&steps_of(8, 2)), 1.8707);
        for (k, want) in [(1, 0.0), (2, 0.3734), (4, 0.7968), (8, 1.3485)] {
            close(replace_random_bound(&steps_of(8, k)), want);
        }
        let finer: Vec<f64> = [8, 4, 2, 1].map(|k| shuffle_bound(&steps_of(8, k))).to_vec();
        assert!(finer.is_sorted_by(|a, b| a >= b), "{finer:?}");
        close(shuffle_bound(&steps_of(8, 1)), 0.0);
    }

    #[test]
    fn closed_forms_agree_with_enumeration() {
        let permutations = |n: u32| -> Vec<Vec<Token>> {
            (0..n).fold(vec![Vec::new()], |shorter, item| {
                shorter
                    .iter()
                    .flat_map(|text: &Vec<Token>| {
                        (0..=text.len()).map(move |at| {
                            let mut longer = text.clone();
                            longer.insert(at, item);
                            longer
                        })
                    })
                    .collect()
            })
        };
        let three = Joint::uniform(permutations(3)).expect("valid");
        close(three.divergence_from_product(), (27f64 / 6.0).log2());
        close(three.bound(&[vec![0, 1, 2]]).expect("a partition"), 2.1699);
        let four = Joint::uniform(permutations(4)).expect("valid");
        close(four.bound(&[vec![2, 0], vec![3, 1]]).expect("a partition"), shuffle_bound(&[2, 2]));
        let replace: Vec<Vec<Token>> =
            (0..8).map(|at| (0..8).map(|i| if i == at { 9 } else { i }).collect()).collect();
        let replace = Joint::uniform(replace).expect("valid");
        for k in [1, 2, 4, 8] {
            let steps: Vec<Vec<usize>> =
                (0..8).collect::<Vec<_>>().chunks(k).map(<[usize]>::to_vec).collect();
            close(replace.bound(&steps).expect("a partition"), replace_random_bound(&steps_of(8, k)));
        }
        assert!(replace.bound(&[vec![0, 1]]).is_err() && Joint::uniform(vec![]).is_err());
        assert!(Joint::new(vec![(vec![0], f64::NAN)]).is_err());
    }

    #[test]
    fn the_theorems_counterexample() {
        // p(00) = .32, p(01) = p(10) = .34: marginals .66, and 00 is not the likeliest text.
        let joint =
            Joint::new(vec![(vec![0, 0], 0.32), (vec![0, 1], 0.34), (vec![1, 0], 0.34)]).expect("valid");
        assert!(joint.divergence_from_product() > 0.0);
        assert!(!product_bound(2, 0.34, 2).expect("valid").greedy_agrees);
        assert!(product_bound(2, 0.25, 2).expect("valid").greedy_agrees);
        close(product_bound(2, 0.25, 2).expect("valid").total_variation, 0.625);
        close(product_bound(2, 0.5, 2).expect("valid").divergence, 2f64.ln());
        assert!(product_bound(2, f64::NAN, 2).is_err() && product_bound(2, 0.1, 1).is_err());
    }

    #[test]
    fn thresholds_in_closed_form() {
        assert_eq!(shuffle_threshold(6, 0.6), Some(ThresholdForecast { forwards: 6, accuracy: 1.0 }));
        let replace = |gamma| replace_random_threshold(6, gamma);
        assert_eq!(replace(0.8), Some(ThresholdForecast { forwards: 1, accuracy: 0.0 }));
        assert_eq!(replace(0.9), Some(ThresholdForecast { forwards: 6, accuracy: 1.0 }));
        assert_eq!((replace(5.0 / 6.0), replace(0.4), replace(f64::NAN)), (None, None, None));
        assert_eq!([1, 2, 4].map(|k| replace_random_greedy(&steps_of(8, k))), [1.0, 0.5, 0.0]);
    }
}
