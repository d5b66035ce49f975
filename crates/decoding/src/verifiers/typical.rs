use pilotfish_model::sampling::{Distribution, Sampler};
use pilotfish_model::{LogitForm, ModelError, Streams};

use super::{Choose, Context, Dice, Verdict, Verifier};
use crate::{Drawn, Result};

/// Numbers of [`Typical`].
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypicalConfig {
    /// A token at least this probable is always accepted, in `(0, 1]`.
    pub epsilon: f64,
    /// The threshold is at most this times `exp(-entropy)`, above 0.
    pub delta: f64,
}

impl Default for TypicalConfig {
    fn default() -> Self {
        Self { epsilon: 0.09, delta: 0.3 }
    }
}

impl TypicalConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// An epsilon outside `(0, 1]`, a delta not above 0.
    pub fn check(self) -> Result<Self> {
        let refuse = |name, value, want| Err(ModelError::BadParameter { name, value, want }.into());
        if !(self.epsilon > 0.0 && self.epsilon <= 1.0) {
            return refuse("epsilon", self.epsilon, "above 0 and at most 1");
        }
        if !(self.delta > 0.0 && self.delta.is_finite()) {
            return refuse("delta", self.delta, "above 0 and finite");
        }
        Ok(self)
    }
}

/// Typical acceptance. **Lossy**: the output's law is not the target's.
///
/// 1. A node is acceptable when `P(x) > min(epsilon, delta * exp(-H(P)))`, `P` being its parent's row and
///    `H = -sum P log(P + 1e-5)`.
/// 2. The longest path of acceptable nodes is kept; of equal ones the one with the larger summed log `P`.
/// 3. The token after it is drawn from its last row.
///
/// | default | value | source |
/// |---|---|---|
/// | epsilon | 0.09 | FasterDecoding/Medusa `medusa/model/utils.py` |
/// | delta | 0.3 | the same |
///
/// **Deviations.** The reference draws its next root from a law cut to typical tokens; here from the sampler's
/// law, so that only acceptance is lossy. With a greedy sampler `P` is one token and the rule is greedy
/// decoding, which loses nothing. Reference: Medusa, arXiv 2401.10774, section 2.3.1.
pub struct Typical {
    sampler: Sampler,
    config: TypicalConfig,
    choose: Box<dyn Choose>,
}

impl Typical {
    /// A verifier that draws from the stream `resample`.
    ///
    /// # Errors
    /// As [`TypicalConfig::check`].
    pub fn new(sampler: Sampler, config: TypicalConfig, streams: Streams) -> Result<Self> {
        Self::with_choose(sampler, config, Box::new(Dice::new(streams)))
    }

    /// A verifier with another source of decisions.
    ///
    /// # Errors
    /// As [`TypicalConfig::check`].
    pub fn with_choose(sampler: Sampler, config: TypicalConfig, choose: Box<dyn Choose>) -> Result<Self> {
        Ok(Self { sampler, config: config.check()?, choose })
    }

    /// `min(epsilon, delta * exp(-H))`.
    fn threshold(&self, p: &Distribution) -> f64 {
        let entropy: f64 = -p.probs().iter().map(|p| p * (p + 1e-5).ln()).sum::<f64>();
        self.config.epsilon.min(self.config.delta * (-entropy).exp())
    }
}

impl Verifier for Typical {
    fn name(&self) -> &'static str {
        "typical acceptance (lossy)"
    }

    fn lossless(&self) -> bool {
        false
    }

    fn takes(&self, _: Drawn) -> bool {
        true
    }

    fn sampler(&self) -> Sampler {
        self.sampler
    }

    fn form(&self) -> LogitForm {
        LogitForm::Full
    }

    fn verify(&mut self, context: &Context<'_>) -> Result<Verdict> {
        let tree = context.draft.tree();
        let mut history = context.text.to_vec();
        // Laws of acceptable nodes, and the best of them by depth, then by log-probability.
        let mut laws: Vec<Option<(Distribution, f64)>> = vec![None; tree.len()];
        laws[0] = Some((context.target(&self.sampler, 0, &history)?, 0.0));
        let mut best = (0, 0.0, 0);
        for node in 1..tree.len() {
            let Some(Some((p, above))) = tree.parent(node).map(|parent| &laws[parent]) else { continue };
            let prob = p.prob(tree.token(node));
            if !(prob > self.threshold(p)) {
                continue;
            }
            let score = above + prob.ln();
            history.truncate(context.text.len());
            history.extend(tree.path(node)[1..].iter().map(|&node| tree.token(node)));
            laws[node] = Some((context.target(&self.sampler, node, &history)?, score));
            let depth = tree.depth(node);
            if depth > best.0 || (depth == best.0 && score > best.1) {
                best = (depth, score, node);
            }
        }
        let law = match &laws[best.2] {
            Some((law, _)) => law.clone(),
            None => context.target(&self.sampler, 0, context.text)?,
        };
        Ok(Verdict { path: tree.path(best.2)[1..].to_vec(), next: self.choose.choose(&law) })
    }
}

#[cfg(test)]
mod tests {
    use pilotfish_model::sampling::Warpers;
    use pilotfish_model::{Logits, TokenTree};

    use super::*;
    use crate::Draft;

    fn typical() -> Typical {
        let sampler = Warpers::temperature(1.0).check().expect("valid");
        Typical::new(sampler, TypicalConfig::default(), Streams::new(1)).expect("valid")
    }

    #[test]
    fn thresholds_of_the_note() {
        let threshold = |weights: &[f64]| {
            typical().threshold(&Distribution::from_weights(weights.to_vec()).expect("valid"))
        };
        assert!((threshold(&[1.0; 10]) - 0.03).abs() < 1e-4);
        assert!((threshold(&[1.0; 4]) - 0.075).abs() < 1e-4);
        assert_eq!(threshold(&[0.6, 0.3, 0.05, 0.05]), 0.09);
        for (epsilon, delta) in [(f64::NAN, 1.0), (0.0, 1.0), (1.1, 1.0), (0.1, f64::NAN), (0.1, 0.0)] {
            assert!(TypicalConfig { epsilon, delta }.check().is_err());
        }
    }

    #[test]
    fn the_longest_path_wins_then_the_likeliest() {
        // Both children of the root are typical; only the less likely one has a typical child.
        let row = [0.5f32.ln(), 0.4f32.ln(), 0.05f32.ln(), 0.05f32.ln()];
        let mut tree = TokenTree::new(3);
        let (a, b) = (tree.push(0, 0).expect("exists"), tree.push(0, 1).expect("exists"));
        tree.push(a, 2).expect("exists");
        let verify = |tree: TokenTree| {
            let logits = Logits::reduce(&row.repeat(tree.len()), 4, LogitForm::Full).expect("finite");
            let draft = Draft::fixed(tree);
            typical().verify(&Context { text: &[3], draft: &draft, logits: &logits }).expect("finite").path
        };
        assert_eq!(verify(tree.clone()), [a]);
        let c = tree.push(b, 1).expect("exists");
        assert_eq!(verify(tree), [b, c]);
    }
}
