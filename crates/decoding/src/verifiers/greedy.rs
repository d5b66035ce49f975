use pilotfish_model::LogitForm;
use pilotfish_model::sampling::Sampler;

use super::rules::Kept;
use super::{Context, Verdict, Verifier, walk};
use crate::{Drawn, Result};

/// Walks from the root to the child that carries the node's largest logit, until there is none. The output is
/// that of plain greedy decoding, whatever the draft.
#[derive(Clone, Copy, Debug, Default)]
pub struct GreedyTree;

impl Verifier for GreedyTree {
    fn name(&self) -> &'static str {
        "greedy"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn takes(&self, _: Drawn) -> bool {
        true
    }

    fn sampler(&self) -> Sampler {
        Sampler::greedy()
    }

    fn form(&self) -> LogitForm {
        LogitForm::Argmax
    }

    fn verify(&mut self, context: &Context<'_>) -> Result<Verdict> {
        greedy(context)
    }
}

/// The first of equal children wins; which of them cannot be seen in the output.
pub(super) fn greedy(context: &Context<'_>) -> Result<Verdict> {
    walk(context, |node, _, children| {
        let best = context.logits.argmax(node)?;
        Ok(children.iter().position(|&child| child == best).map_or(Kept::Token(best), Kept::Child))
    })
}

#[cfg(test)]
mod tests {
    use pilotfish_model::{Logits, TokenTree};

    use super::*;
    use crate::Draft;

    #[test]
    fn greedy_descends_to_the_first_of_equal_children() {
        let mut tree = TokenTree::new(9);
        let a = tree.push(0, 1).expect("exists");
        tree.push(0, 2).expect("exists");
        let b = tree.push(a, 0).expect("exists");
        tree.push(0, 1).expect("exists");
        // The target says 1 after the root, 0 after a, 2 after b.
        let rows = [[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 5.0]];
        let logits = Logits::reduce(&rows.concat(), 3, LogitForm::Argmax).expect("finite");
        let draft = Draft::fixed(tree);
        let context = Context { text: &[9], draft: &draft, logits: &logits };
        let verdict = GreedyTree.verify(&context).expect("finite");
        assert_eq!(verdict, Verdict { path: vec![a, b], next: 2 });
    }
}
