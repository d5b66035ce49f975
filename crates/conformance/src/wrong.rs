//! Verifiers that are wrong in ways that have been shipped, or that every second attempt gets wrong. A kit that
//! does not catch each of them proves nothing.

use pilotfish_decoding::verifiers::{Choose, Context, Verdict, Verifier, rules};
use pilotfish_decoding::{DecodingError, Draft, Drawn, Result};
use pilotfish_model::LogitForm;
use pilotfish_model::sampling::{Distribution, Sampler, Warpers};

use crate::draws::law_after;
use crate::{Case, Subject, exact::Tamper};

/// A known-wrong variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// Keeps the first child whatever the target says.
    AcceptAlways,
    /// Draws the token after a rejection from `p`, not from the residual.
    ForgottenResidual,
    /// Tests every sibling against `p` and draws from the first residual: it is not updated between siblings.
    StaleResidual,
    /// With-replacement rules on draws without replacement: `Q` is never renormalised.
    QNeverRenormalised,
    /// Takes a rejected child out of `Q` before the residual is computed.
    ZeroedBeforeResidual,
    /// Applies `min(1, p / q)` to children that were chosen as the likeliest.
    RatioForFixed,
    /// Draws again when the drawn token was not proposed.
    Redraw,
    /// Verifies at temperature 1 without other warpers, whatever the sampler says.
    WarpersForgotten,
    /// Draws bonus tokens from the plain softmax.
    RawBonus,
    /// Draws the bonus token from the row before the last accepted one.
    WrongBonusRow,
    /// Takes the largest logit at every node although a temperature is set.
    GreedyAtTemperature,
    /// Fixed drafts: does not renormalise between siblings.
    FixedNotRenormalised,
    /// Fixed drafts: draws the token after rejections from `p`, rejected children included.
    FixedForgottenResidual,
    /// Sorts children by token before they are tested.
    ChildrenSorted,
    /// Leaves out children whose own draft probability is small after they were drawn.
    IdentityPruning,
    /// Keeps the draft law as it was before the warpers that its children were drawn with.
    LawBeforeWarpers,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::AcceptAlways,
        Self::ForgottenResidual,
        Self::StaleResidual,
        Self::QNeverRenormalised,
        Self::ZeroedBeforeResidual,
        Self::RatioForFixed,
        Self::Redraw,
        Self::WarpersForgotten,
        Self::RawBonus,
        Self::WrongBonusRow,
        Self::GreedyAtTemperature,
        Self::FixedNotRenormalised,
        Self::FixedForgottenResidual,
        Self::ChildrenSorted,
        Self::IdentityPruning,
        Self::LawBeforeWarpers,
    ];

    /// Its name.
    pub fn name(self) -> String {
        // The variants' names are the names; serde spells them.
        serde_json::to_string(&self).map(|name| name.trim_matches('"').replace('_', " ")).unwrap_or_default()
    }

    /// It as a subject.
    pub fn subject(self) -> Subject {
        let drawn = match self {
            Self::RatioForFixed
            | Self::Redraw
            | Self::FixedNotRenormalised
            | Self::FixedForgottenResidual => Drawn::Fixed,
            _ => Drawn::WithoutReplacement,
        };
        Subject::new(&self.name(), drawn, move |sampler, choose| WrongVerifier {
            wrong: self,
            sampler,
            choose,
        })
    }

    /// What it does to drafts.
    pub fn tamper(self) -> Option<&'static Tamper> {
        match self {
            Self::ChildrenSorted => Some(&sort_children),
            Self::IdentityPruning => Some(&prune),
            Self::LawBeforeWarpers => Some(&unwarp),
            // So that the rule has a law to misuse.
            Self::RatioForFixed => Some(&give_laws),
            _ => None,
        }
    }
}

fn sort_children(_: &Case, draft: Draft) -> Result<Draft> {
    let tree = draft.tree();
    let mut sorted = Draft::sampled(tree.token(0), draft.drawn());
    let mut open = vec![(0, 0)];
    while let Some((old, new)) = open.pop() {
        if let Some(law) = draft.law(old) {
            sorted.set_law(new, law.clone())?;
        }
        let mut children: Vec<usize> = tree.children(old).collect();
        children.sort_by_key(|&child| tree.token(child));
        for child in children {
            open.push((child, sorted.push(new, tree.token(child))?));
        }
    }
    Ok(sorted)
}

fn prune(_: &Case, draft: Draft) -> Result<Draft> {
    let laws: Vec<Option<Distribution>> =
        (0..draft.tree().len()).map(|node| draft.law(node).cloned()).collect();
    draft.retain(|tree, node| {
        let law = tree.parent(node).and_then(|parent| laws[parent].as_ref());
        law.is_none_or(|law| law.prob(tree.token(node)) >= 0.15)
    })
}

fn laws_by(case: &Case, draft: &mut Draft, sampler: &Sampler) -> Result<()> {
    for node in 0..draft.tree().len() {
        let path: Vec<_> = draft.tree().path(node).iter().map(|&node| draft.tree().token(node)).collect();
        draft.set_law(node, law_after(&case.draft, sampler, &path)?)?;
    }
    Ok(())
}

fn unwarp(case: &Case, mut draft: Draft) -> Result<Draft> {
    laws_by(case, &mut draft, &Warpers::temperature(1.0).check()?)?;
    Ok(draft)
}

fn give_laws(case: &Case, mut draft: Draft) -> Result<Draft> {
    laws_by(case, &mut draft, &case.draft_sampler)?;
    Ok(draft)
}

struct WrongVerifier {
    wrong: Wrong,
    sampler: Sampler,
    choose: Box<dyn Choose>,
}

impl WrongVerifier {
    fn decide(
        &mut self,
        p: &Distribution,
        q: Option<&Distribution>,
        children: &[u32],
    ) -> Result<rules::Kept> {
        use rules::Kept::{Child, Token};
        let choose = self.choose.as_mut();
        let q = || q.ok_or(DecodingError::NoLaw { node: 0, got: None, want: p.probs().len() });
        let ratio = |p: &Distribution, q: &Distribution, token| (p.prob(token) / q.prob(token)).min(1.0);
        match self.wrong {
            Wrong::AcceptAlways => return Ok(Child(0)),
            Wrong::Redraw => {
                let first = choose.choose(p);
                let found = children.iter().position(|&child| child == first);
                return Ok(found.map_or_else(|| Token(choose.choose(p)), Child));
            }
            Wrong::GreedyAtTemperature => {
                let best = p.argmax();
                return Ok(children.iter().position(|&child| child == best).map_or(Token(best), Child));
            }
            Wrong::QNeverRenormalised => return Ok(rules::multi_step(p, q()?, children, choose)),
            Wrong::RatioForFixed => return Ok(rules::chain(p, q()?, children.first().copied(), choose)),
            Wrong::FixedNotRenormalised | Wrong::FixedForgottenResidual => {
                let renormalise = self.wrong == Wrong::FixedForgottenResidual;
                let mut left = p.clone();
                for (index, &child) in children.iter().enumerate() {
                    if choose.accept(if renormalise { left.prob(child) } else { p.prob(child) }) {
                        return Ok(Child(index));
                    }
                    left = left.without(child).unwrap_or(left);
                }
                return Ok(Token(choose.choose(if renormalise { p } else { &left })));
            }
            _ => {}
        }
        let (mut target, mut draft) = (p.clone(), Some(q()?.clone()));
        for (index, &child) in children.iter().enumerate() {
            let Some(law) = draft else { break };
            let tested = if self.wrong == Wrong::StaleResidual { p } else { &target };
            if choose.accept(ratio(tested, &law, child)) {
                return Ok(Child(index));
            }
            draft = law.without(child);
            match (self.wrong, &draft) {
                (Wrong::ZeroedBeforeResidual, Some(zeroed)) => target = target.residual(zeroed),
                (Wrong::StaleResidual, _) => target = p.residual(q()?),
                _ => target = target.residual(&law),
            }
        }
        let last = if self.wrong == Wrong::ForgottenResidual { p } else { &target };
        Ok(Token(choose.choose(last)))
    }
}

impl Verifier for WrongVerifier {
    fn name(&self) -> &'static str {
        "known wrong"
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
        let plain = Warpers::temperature(1.0).check()?;
        let warped = if self.wrong == Wrong::WarpersForgotten { plain } else { self.sampler };
        let tree = context.draft.tree();
        let (mut path, mut node) = (Vec::new(), 0);
        loop {
            let mut history = context.text.to_vec();
            history.extend(path.iter().map(|&node| tree.token(node)));
            let children: Vec<usize> = tree.children(node).collect();
            if children.is_empty() {
                let sampler = if self.wrong == Wrong::RawBonus { plain } else { warped };
                let row = match self.wrong {
                    Wrong::WrongBonusRow => tree.parent(node).unwrap_or(0),
                    _ => node,
                };
                let law = context.target(&sampler, row, &history)?;
                return Ok(Verdict { path, next: self.choose.choose(&law) });
            }
            let p = context.target(&warped, node, &history)?;
            let tokens: Vec<u32> = children.iter().map(|&child| tree.token(child)).collect();
            match self.decide(&p, context.draft.law(node), &tokens)? {
                rules::Kept::Token(next) => return Ok(Verdict { path, next }),
                rules::Kept::Child(index) => {
                    node = children[index];
                    path.push(node);
                }
            }
        }
    }
}
