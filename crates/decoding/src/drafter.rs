use pilotfish_model::sampling::Sampler;
use pilotfish_model::{CausalModel, Ledger, LogitForm, Logits, ModelInfo, Tap, TapRows, Token};

use crate::{Draft, Drawn, Finish, Result};

/// What a drafter wants to see of the target's steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The least form of logits it can use, for all rows of the tree; `None` if it looks at none. It may be
    /// given more: whole rows instead of top-k, more entries, or top-k instead of an argmax
    /// ([`Logits::top`] reads all forms).
    pub logits: Option<LogitForm>,
    /// Taps of all rows, of the prompt and of every tree.
    pub taps: Vec<Tap>,
}

/// A new text begins.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The prompt.
    pub prompt: &'a [Token],
    /// The first new token, already decided by the target; it is the root of the first draft.
    pub first: Token,
    /// Taps of all rows of the prompt, in the order asked for.
    pub taps: &'a [TapRows],
    /// How the target's logits become a distribution.
    pub sampler: &'a Sampler,
}

/// The request for a draft.
pub struct Ask<'a> {
    /// The prompt and all committed tokens; the last is the root of the draft.
    pub text: &'a [Token],
    /// Proposed tokens at most. Never 0.
    pub budget: usize,
    /// Levels below the root at most. Never 0.
    pub depth: usize,
    /// The target's warpers. A drafter that samples may use its own, as long as its laws are those it drew
    /// from.
    pub sampler: &'a Sampler,
    /// The target itself, for drafters that run some of its layers. Its cache holds the text without the root
    /// and must hold just that afterwards.
    pub model: &'a mut dyn CausalModel,
    /// Where forward passes of a draft model are recorded ([`Ledger::draft`]).
    pub ledger: &'a mut Ledger,
}

impl Ask<'_> {
    /// The last committed token: the draft's root.
    pub fn root(&self) -> Token {
        // The loop never asks about an empty text.
        self.text.last().copied().unwrap_or(0)
    }
}

/// What came of a draft.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The text after the round: what was kept, the token after it included, cut where the text ended.
    pub text: &'a [Token],
    /// How many tokens of `text` are new.
    pub added: usize,
    /// The draft as it was verified: maybe smaller than what was proposed.
    pub draft: &'a Draft,
    /// The target's logits, a row a node, rejected nodes included.
    pub logits: &'a Logits,
    /// Taps, a row a node, in the order asked for.
    pub taps: &'a [TapRows],
    /// Accepted nodes from the root downwards, without those that the text's end cut away.
    pub path: &'a [usize],
    /// Why the text ended in this round, if it did. If so, `text` may lack the token after the path.
    pub finish: Option<Finish>,
}

/// Proposes what may come next.
///
/// A drafter lives longer than a text: [`start`](Self::start) forgets what belongs to the text before, and only
/// that.
pub trait Drafter: Send {
    /// Name for reports.
    fn name(&self) -> String;

    /// How the children in its drafts are drawn; every draft that is not empty must say the same.
    fn drawn(&self) -> Drawn {
        Drawn::Fixed
    }

    /// What it wants to see of the target.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Whether it can draft for a target; asked once, when a loop is made.
    ///
    /// # Errors
    /// A capability that the target lacks, another vocabulary.
    fn fits(&self, target: &ModelInfo) -> Result<()> {
        let _ = target;
        Ok(())
    }

    /// A new text begins. Taps and the first token are there: the prompt has been read.
    fn start(&mut self, start: &Start<'_>) -> Result<()> {
        let _ = start;
        Ok(())
    }

    /// A draft for the text. Nodes beyond budget or depth are cut away by the loop.
    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft>;

    /// What came of the draft proposed last. Not called for the prompt's own pass.
    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        let _ = outcome;
        Ok(())
    }
}

/// Proposes nothing: plain decoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Drafter for Nothing {
    fn name(&self) -> String {
        "plain".into()
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        Ok(Draft::none(ask.root()))
    }
}
