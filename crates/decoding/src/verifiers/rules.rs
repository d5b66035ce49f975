//! The rule at one node: which of its children is kept, or which token comes instead.
//!
//! In all of them `p` is the target's law at the node and `q` the law that the children were drawn from, both
//! after the warpers. Notation and worked examples A and B are those of the tests. Each rule leaves the law of
//! the token at this place exactly `p`, provided that the children were drawn as it assumes.
//!
//! Nothing divides by a probability that may be 0: a child with `q = 0`, which cannot have been drawn, is
//! rejected. A residual that rounding leaves without mass is replaced by the law before it.
//!
//! | rule | source |
//! |---|---|
//! | [`chain`] | Leviathan et al. 2023, arXiv 2211.17192, algorithm 1; Chen et al. 2023, arXiv 2302.01318 |
//! | [`multi_step`] | SpecInfer, arXiv 2305.09781, algorithm 2 |
//! | [`recursive`] | RSD, arXiv 2402.14160; Infini-AI-Lab/Sequoia `Tree/SpecTree.py`, NJUNLP/MCSD `MCSD/inference/strategies.py` |
//! | [`sample_and_match`] | llama.cpp `common/speculative.cpp` |

use pilotfish_model::Token;
use pilotfish_model::sampling::Distribution;

use super::Choose;

/// What a rule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The child at this place among its siblings.
    Child(usize),
    /// No child: this token follows the node.
    Token(Token),
}

/// Draws `x ~ p` once and keeps the child that carries it, or emits it. Exact for children chosen by any means.
pub fn sample_and_match(p: &Distribution, children: &[Token], choose: &mut dyn Choose) -> Kept {
    let drawn = choose.choose(p);
    children.iter().position(|&child| child == drawn).map_or(Kept::Token(drawn), Kept::Child)
}

/// Speculative sampling of one child: accepts `c` with probability `min(1, p(c) / q(c))`, else draws from
/// `norm(max(p - q, 0))`. Without a child it draws from `p`: the bonus token.
pub fn chain(p: &Distribution, q: &Distribution, child: Option<Token>, choose: &mut dyn Choose) -> Kept {
    match child {
        None => Kept::Token(choose.choose(p)),
        Some(child) if choose.accept(ratio(p, q, child)) => Kept::Child(0),
        Some(_) => Kept::Token(choose.choose(&p.residual(q))),
    }
}

/// SpecInfer's multi-step sampling, for children drawn independently from `q`:
/// 1. `P = p`;
/// 2. for each child `c` in order: accept with probability `min(1, P(c) / q(c))`, else
///    `P = norm(max(P - q, 0))`;
/// 3. when none is accepted, draw from `P`.
///
/// **Deviation.** SpecInfer takes the children in random order; for independent draws any fixed order is
/// equivalent.
pub fn multi_step(p: &Distribution, q: &Distribution, children: &[Token], choose: &mut dyn Choose) -> Kept {
    let mut target = p.clone();
    for (index, &child) in children.iter().enumerate() {
        if choose.accept(ratio(&target, q, child)) {
            return Kept::Child(index);
        }
        target = target.residual(q);
    }
    Kept::Token(choose.choose(&target))
}

/// Recursive rejection sampling, for children drawn one after the other from `q` without replacement:
/// 1. `P = p`, `Q = q`;
/// 2. for each child `c` in the order drawn: accept with probability `min(1, P(c) / Q(c))`, else first
///    `P = norm(max(P - Q, 0))`, then `Q(c) = 0` and `Q = norm(Q)`; stop when `Q` has no mass left;
/// 3. when none is accepted, draw from `P`.
pub fn recursive(p: &Distribution, q: &Distribution, children: &[Token], choose: &mut dyn Choose) -> Kept {
    let mut target = p.clone();
    let mut draft = Some(q.clone());
    for (index, &child) in children.iter().enumerate() {
        let Some(law) = draft else { break };
        if choose.accept(ratio(&target, &law, child)) {
            return Kept::Child(index);
        }
        target = target.residual(&law);
        draft = law.without(child);
    }
    Kept::Token(choose.choose(&target))
}

/// `min(1, p(c) / q(c))`; 0 for a token that `q` cannot draw.
fn ratio(p: &Distribution, q: &Distribution, token: Token) -> f64 {
    let (target, draft) = (p.prob(token), q.prob(token));
    if draft > 0.0 { (target / draft).min(1.0) } else { 0.0 }
}

/// The probability that [`sample_and_match`] keeps one of these children: the sum of `p` over distinct tokens.
pub fn match_probability(p: &Distribution, children: &[Token]) -> f64 {
    let mut seen = children.to_vec();
    seen.sort_unstable();
    seen.dedup();
    seen.iter().map(|&token| p.prob(token)).sum()
}

/// The probability that [`chain`] keeps a child drawn from `q`: `sum min(p, q)`.
pub fn chain_acceptance(p: &Distribution, q: &Distribution) -> f64 {
    1.0 - p.total_variation(q)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(weights: &[f64]) -> Distribution {
        Distribution::from_weights(weights.to_vec()).expect("valid")
    }

    /// Decisions given beforehand; records what it was asked.
    #[derive(Default)]
    struct Scripted {
        accepts: Vec<bool>,
        asked: Vec<f64>,
        laws: Vec<Distribution>,
    }

    impl Choose for Scripted {
        fn choose(&mut self, distribution: &Distribution) -> Token {
            self.laws.push(distribution.clone());
            distribution.argmax()
        }

        fn accept(&mut self, probability: f64) -> bool {
            self.asked.push(probability);
            !self.accepts.is_empty() && self.accepts.remove(0)
        }
    }

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} is not {want:?}");
    }

    #[test]
    fn recursive_rejection_step_by_step() {
        // Example A, c_1 = b: accepted with .3/.5; else P = (1, 0, 0), Q = (.4, 0, .6).
        let (p, q) = (law(&[5., 3., 2.]), law(&[2., 5., 3.]));
        let mut dice = Scripted { accepts: vec![false, true], ..Scripted::default() };
        assert_eq!(recursive(&p, &q, &[1, 0], &mut dice), Kept::Child(1));
        close(&dice.asked, &[0.6, 1.0]);
        let mut dice = Scripted::default();
        assert_eq!(recursive(&p, &q, &[1, 2], &mut dice), Kept::Token(0));
        close(&dice.asked, &[0.6, 0.0]);
        close(dice.laws[0].probs(), &[1., 0., 0.]);
    }

    #[test]
    fn multi_step_keeps_the_draft_law() {
        // Example B, both children d: .1/.4, then P = norm(.3, .1, 0, 0) gives d nothing, P - q leaves a alone.
        let (p, q) = (law(&[4., 3., 2., 1.]), law(&[1., 2., 3., 4.]));
        let mut dice = Scripted::default();
        assert_eq!(multi_step(&p, &q, &[3, 3], &mut dice), Kept::Token(0));
        close(&dice.asked, &[0.25, 0.0]);
        close(dice.laws[0].probs(), &[0.65 / 0.7, 0.05 / 0.7, 0., 0.]);
    }

    #[test]
    fn zero_mass_is_no_accident() {
        let (p, q) = (law(&[0., 1., 1.]), law(&[1., 0., 0.]));
        // The support of q is exhausted after one child: the second is not looked at.
        let mut dice = Scripted::default();
        assert_eq!(recursive(&p, &q, &[0, 1], &mut dice), Kept::Token(1));
        close(&dice.asked, &[0.0]);
        close(dice.laws[0].probs(), &[0., 0.5, 0.5]);
        // A child that q cannot draw is rejected; p = q leaves no residual, p itself stands in.
        let mut dice = Scripted::default();
        assert_eq!(chain(&p, &p, Some(0), &mut dice), Kept::Token(1));
        close(&dice.asked, &[0.0]);
        close(dice.laws[0].probs(), p.probs());
        // Children outside the vocabulary are rejected too.
        assert_eq!(multi_step(&p, &q, &[77], &mut Scripted::default()), Kept::Token(1));
        assert_eq!(sample_and_match(&p, &[77, 1], &mut Scripted::default()), Kept::Child(1));
    }

    #[test]
    fn closed_forms() {
        let (p, q) = (law(&[5., 3., 2.]), law(&[2., 5., 3.]));
        assert!((chain_acceptance(&p, &q) - 0.7).abs() < 1e-12);
        assert!((match_probability(&p, &[0, 2, 0]) - 0.7).abs() < 1e-12);
    }
}
