use super::{Choice, Policy, View};
use crate::Result;
use crate::predict::Score;

/// Two policies as one: what either accepts is committed, and what the second forces.
///
/// Both see the first policy's scores.
#[derive(Clone, Copy, Debug)]
pub struct Either<A, B>(pub A, pub B);

impl<A: Policy, B: Policy> Policy for Either<A, B> {
    fn name(&self) -> String {
        format!("{} or {}", self.0.name(), self.1.name())
    }

    fn score(&self) -> Score {
        self.0.score()
    }

    fn reads_visible(&self) -> bool {
        self.0.reads_visible() || self.1.reads_visible()
    }

    fn choose(&mut self, view: &View<'_>) -> Result<Choice> {
        let (first, second) = (self.0.choose(view)?, self.1.choose(view)?);
        let mut accepted = first.accepted;
        accepted.extend(second.accepted);
        accepted.sort_unstable();
        accepted.dedup();
        Ok(Choice { accepted, forced: second.forced })
    }
}
