use pilotfish_model::sampling::Sampler;
use pilotfish_model::{LogitForm, Streams};

use super::greedy::greedy;
use super::rules::{self, Kept};
use super::{Choose, Context, Dice, Verdict, Verifier, walk};
use crate::{DecodingError, Drawn, Result};

/// Defines a verifier made of a sampler and a source of decisions. With a greedy sampler all of them ask for an
/// argmax only and descend to it: the target's law is one token then, and every rule comes to that.
macro_rules! verifier {
    ($(#[$doc:meta])* $name:ident, $label:literal, takes $takes:pat, |$core:ident, $context:ident| $body:expr) => {
        $(#[$doc])*
        pub struct $name {
            sampler: Sampler,
            choose: Box<dyn Choose>,
        }

        impl $name {
            /// A verifier that decides by the streams `accept` and `resample`.
            pub fn new(sampler: Sampler, streams: Streams) -> Self {
                Self::with_choose(sampler, Box::new(Dice::new(streams)))
            }

            /// A verifier with another source of decisions.
            pub fn with_choose(sampler: Sampler, choose: Box<dyn Choose>) -> Self {
                Self { sampler, choose }
            }
        }

        impl Verifier for $name {
            fn name(&self) -> &'static str {
                $label
            }

            fn lossless(&self) -> bool {
                true
            }

            fn takes(&self, drawn: Drawn) -> bool {
                self.sampler.is_greedy() || matches!(drawn, $takes)
            }

            fn sampler(&self) -> Sampler {
                self.sampler
            }

            fn form(&self) -> LogitForm {
                if self.sampler.is_greedy() { LogitForm::Argmax } else { LogitForm::Full }
            }

            fn verify(&mut self, $context: &Context<'_>) -> Result<Verdict> {
                if self.sampler.is_greedy() {
                    return greedy($context);
                }
                let $core = self;
                $body
            }
        }
    };
}

verifier! {
    /// Draws one token from the target at each node and descends if it was proposed; whatever it is, it is what
    /// the output gets. Exact for any draft whatsoever, with every warper, since the target's own sampler makes
    /// every decision; the draw at a node is used, never repeated.
    SampleAndMatch, "sample-and-match", takes _, |core, context| {
        walk(context, |node, history, children| {
            let p = context.target(&core.sampler, node, history)?;
            Ok(rules::sample_and_match(&p, children, core.choose.as_mut()))
        })
    }
}

verifier! {
    /// Speculative sampling of a chain ([`rules::chain`] at every node). Refuses a node with two children.
    SpeculativeChain, "speculative sampling", takes Drawn::WithReplacement | Drawn::WithoutReplacement, |core, context| {
        by_law(core.choose.as_mut(), &core.sampler, context, |p, q, children, choose| match children {
            [child] => Ok(rules::chain(p, q, Some(*child), choose)),
            _ => Err(DecodingError::NotAChain { children: children.len() }),
        })
    }
}

verifier! {
    /// SpecInfer's multi-step speculative sampling over a tree ([`rules::multi_step`] at every node).
    MultiStep, "multi-step sampling", takes Drawn::WithReplacement, |core, context| {
        by_law(core.choose.as_mut(), &core.sampler, context, |p, q, children, choose| {
            Ok(rules::multi_step(p, q, children, choose))
        })
    }
}

verifier! {
    /// Recursive rejection sampling without replacement over a tree ([`rules::recursive`] at every node).
    Recursive, "recursive rejection", takes Drawn::WithoutReplacement, |core, context| {
        by_law(core.choose.as_mut(), &core.sampler, context, |p, q, children, choose| {
            Ok(rules::recursive(p, q, children, choose))
        })
    }
}

/// Walks with a rule that compares the target's law with the draft's; a node without children gives the bonus
/// token, through the same warpers as every other row.
fn by_law(
    choose: &mut dyn Choose,
    sampler: &Sampler,
    context: &Context<'_>,
    rule: impl Fn(
        &pilotfish_model::sampling::Distribution,
        &pilotfish_model::sampling::Distribution,
        &[u32],
        &mut dyn Choose,
    ) -> Result<Kept>,
) -> Result<Verdict> {
    walk(context, |node, history, children| {
        let p = context.target(sampler, node, history)?;
        if children.is_empty() {
            return Ok(Kept::Token(choose.choose(&p)));
        }
        let q = context.draft.need_law(node, p.probs().len())?;
        rule(&p, q, children, choose)
    })
}
