//! Speculative decoding under constraints: the output's law against the locally constrained one.

use std::sync::Arc;

use pilotfish_constrained::speculative::{Checked, Masked, Place};
use pilotfish_constrained::{Constraint, Dfa, Vocabulary};
use pilotfish_decoding::verifiers::rules::{self, Kept};
use pilotfish_decoding::{Choose, Context, DecodingError, Drawn, Result, Verdict, Verifier};
use pilotfish_model::sampling::{Distribution, Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{LogitForm, Streams, Token};

use crate::certificate::{Certificate, Check, Kind, Thoroughness};
use crate::draws::law_after;
use crate::{Case, Law, Subject, distance};

/// Letters a, b, c and the end; the number of a's must be even and the last letter a b. Every text can go on.
fn language() -> Result<(Arc<Vocabulary>, Dfa)> {
    let bytes = (b'a'..=b'c').map(|letter| Some(vec![letter])).chain([None]).collect();
    let other = |error: pilotfish_constrained::ConstrainedError| DecodingError::Other(Box::new(error));
    let vocabulary = Vocabulary::new(bytes, vec![END]).map_err(other)?;
    let dfa = Dfa::new(4, 0, &[2], |state, byte| match byte {
        b'a' => Some(1 - state % 2),
        b'b' => Some(state % 2 + 2),
        b'c' => Some(state % 2),
        _ => None,
    });
    Ok((Arc::new(vocabulary), dfa.map_err(other)?))
}

const END: Token = 3;
const PROMPT: [Token; 1] = [0];

/// The target's law after a text, restricted to what may come next.
fn restricted(
    case: &Case,
    constraint: &mut Dfa,
    vocabulary: &Vocabulary,
    path: &[Token],
) -> Result<Distribution> {
    let mask = constraint.mask(vocabulary).map_err(|error| DecodingError::Other(Box::new(error)))?;
    let law = law_after(&case.target, &case.sampler, path)?;
    let keep = |(token, &p): (usize, &f64)| if mask.allows(token as Token) { p } else { 0.0 };
    Ok(Distribution::from_weights(law.probs().iter().enumerate().map(keep).collect())?)
}

/// The exact locally constrained law of the first `length` tokens, an end being the last.
fn truth(case: &Case, length: usize) -> Result<Law<Vec<Token>>> {
    let (vocabulary, dfa) = language()?;
    let mut law = Law::new();
    let mut open = vec![(Vec::new(), dfa, 1.0)];
    while let Some((text, mut state, weight)) = open.pop() {
        if text.len() == length || text.last() == Some(&END) {
            *law.entry(text).or_insert(0.0) += weight;
            continue;
        }
        let path: Vec<Token> = PROMPT.iter().chain(&text).copied().collect();
        let next = restricted(case, &mut state, &vocabulary, &path)?;
        for (token, &p) in next.probs().iter().enumerate().filter(|&(_, &p)| p > 0.0) {
            let token = token as Token;
            let longer: Vec<Token> = text.iter().copied().chain([token]).collect();
            let mut state = state.clone();
            if let Some(bytes) = vocabulary.bytes(token) {
                state.push(bytes).map_err(|error| DecodingError::Other(Box::new(error)))?;
            }
            open.push((longer, state, weight * p));
        }
    }
    Ok(law)
}

/// The verifiers of `pilotfish-constrained` with every kind of draft that they take.
fn subjects() -> Result<Vec<Subject>> {
    let (vocabulary, dfa) = language()?;
    let mut all = Vec::new();
    for drawn in [Drawn::Fixed, Drawn::WithReplacement, Drawn::WithoutReplacement] {
        let (words, start) = (vocabulary.clone(), dfa.clone());
        all.push(Subject::new(&format!("masked, drafts drawn {drawn}"), drawn, move |sampler, choose| {
            let place = Place::new(start.clone(), words.clone(), PROMPT.len());
            Masked::with_choose(sampler, drawn, place, choose)
        }));
        let (words, start) = (vocabulary.clone(), dfa.clone());
        all.push(Subject::new(&format!("checked, drafts drawn {drawn}"), drawn, move |sampler, choose| {
            let place = Place::new(start.clone(), words.clone(), PROMPT.len());
            Checked::with_choose(sampler, place, choose)
        }));
    }
    Ok(all)
}

/// Ways to get constraints wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// Sampled children that cannot come next are dropped, as if they had never been drawn.
    SampledDropped,
    /// Acceptance is tested against the masked law, the residual is the unmasked law's, masked afterwards.
    ResidualUnmasked,
    /// The constraint stays at the root while the walk descends.
    StateAtRoot,
    /// The masked law is not renormalised before it is compared with the draft's.
    NotRenormalised,
}

impl Wrong {
    const ALL: [(Self, &'static str); 4] = [
        (Self::SampledDropped, "constrained: sampled children dropped by what they are"),
        (Self::ResidualUnmasked, "constrained: residual of the unmasked law"),
        (Self::StateAtRoot, "constrained: state not advanced along the path"),
        (Self::NotRenormalised, "constrained: masked law not renormalised"),
    ];
}

struct WrongVerifier {
    wrong: Wrong,
    sampler: Sampler,
    choose: Box<dyn Choose>,
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
        let (vocabulary, mut state) = language()?;
        let other = |error: pilotfish_constrained::ConstrainedError| DecodingError::Other(Box::new(error));
        let mut history = context.text.to_vec();
        state.push(&vocabulary.text(&history[PROMPT.len()..])).map_err(other)?;
        let tree = context.draft.tree();
        let (mut path, mut node) = (Vec::new(), 0);
        loop {
            let mask = state.mask(&vocabulary).map_err(other)?;
            let plain = context.target(&self.sampler, node, &history)?;
            let only = |law: &Distribution| -> Vec<f64> {
                let keep = |(token, &p): (usize, &f64)| if mask.allows(token as Token) { p } else { 0.0 };
                law.probs().iter().enumerate().map(keep).collect()
            };
            let p = Distribution::from_weights(only(&plain))?;
            let mut children: Vec<usize> = tree.children(node).collect();
            if self.wrong == Wrong::SampledDropped {
                children.retain(|&child| mask.allows(tree.token(child)));
            }
            let tokens: Vec<Token> = children.iter().map(|&child| tree.token(child)).collect();
            let kept = match context.draft.law(node) {
                Some(q) if !children.is_empty() => match self.wrong {
                    Wrong::ResidualUnmasked | Wrong::NotRenormalised => {
                        let tested = if self.wrong == Wrong::ResidualUnmasked { &p } else { &plain };
                        let ratio = |token: Token| match mask.allows(token) {
                            true => (tested.prob(token) / q.prob(token)).min(1.0),
                            false => 0.0,
                        };
                        match self.choose.accept(ratio(tokens[0])) {
                            true => Kept::Child(0),
                            false if self.wrong == Wrong::ResidualUnmasked => {
                                let left = Distribution::from_weights(only(&plain.residual(q)));
                                Kept::Token(self.choose.choose(&left.unwrap_or(p)))
                            }
                            false => Kept::Token(self.choose.choose(&p.residual(q))),
                        }
                    }
                    _ => rules::recursive(&p, q, &tokens, self.choose.as_mut()),
                },
                _ => Kept::Token(self.choose.choose(&p)),
            };
            match kept {
                Kept::Child(index) if tokens[index] == END => return Ok(Verdict { path, next: END }),
                Kept::Child(index) => {
                    node = children[index];
                    path.push(node);
                    history.push(tokens[index]);
                    if self.wrong != Wrong::StateAtRoot {
                        let bytes = vocabulary.bytes(tokens[index]).unwrap_or_default();
                        state.push(bytes).map_err(other)?;
                    }
                }
                Kept::Token(next) => return Ok(Verdict { path, next }),
            }
        }
    }
}

/// Certifies speculative decoding under a constraint: the law of what the whole loop emits, enumerated, is the
/// locally constrained law for every verifier and kind of draft, and known-wrong variants are caught.
///
/// # Errors
/// What a verifier refuses.
pub fn certify_constrained(thoroughness: &Thoroughness) -> Result<Certificate> {
    let mut checks = Vec::new();
    let subjects = subjects()?;
    for subject in &subjects {
        let mut rng = Streams::new(thoroughness.seed).stream("constrained");
        let (mut cases, mut worst) = (0, 0.0f64);
        for shape in [vec![1], vec![1, 1], vec![2], vec![3], vec![2, 1], vec![1, 2]] {
            for temperature in [0.5, 1.0, 1.5] {
                let sampler = Warpers::temperature(temperature).check()?;
                let draft_sampler = Warpers::temperature(0.7).check()?;
                let target = TableModel::random(1, 4, 1.0, &mut rng)?.with_end(vec![END]);
                let draft = TableModel::random(1, 4, 1.0, &mut rng)?;
                let case = Case { target, draft, sampler, draft_sampler, shape: shape.clone() };
                let law = case.loop_law(subject, &PROMPT, 3)?;
                let total: f64 = law.values().sum();
                worst = worst.max(distance(&law, &truth(&case, 3)?)).max((total - 1.0).abs());
                cases += 1;
            }
        }
        let name = format!("{}: law under a constraint", subject.name);
        checks.push(Check::below(Kind::Law, name, cases, worst, thoroughness.tolerance));
    }
    for (wrong, name) in Wrong::ALL {
        let subject = Subject::new(name, Drawn::WithoutReplacement, move |sampler, choose| WrongVerifier {
            wrong,
            sampler,
            choose,
        });
        let mut rng = Streams::new(thoroughness.seed).stream("constrained");
        let shape = if wrong == Wrong::SampledDropped { vec![2] } else { vec![1, 1] };
        let sampler = Warpers::temperature(1.0).check()?;
        let target = TableModel::random(1, 4, 1.0, &mut rng)?.with_end(vec![END]);
        let draft = TableModel::random(1, 4, 1.0, &mut rng)?;
        let case = Case { target, draft, sampler, draft_sampler: sampler, shape };
        let off = distance(&case.loop_law(&subject, &PROMPT, 3)?, &truth(&case, 3)?);
        let passed = off > 1e-3;
        checks.push(Check {
            kind: Kind::KnownWrong,
            subject: name.into(),
            cases: 1,
            value: off,
            bound: 1e-3,
            passed,
        });
    }
    checks.push(pruning(thoroughness)?);
    Certificate::new(thoroughness.clone(), checks)
}

/// Dropping proposals that were not sampled changes nothing: greedy output is that of greedy constrained decoding.
fn pruning(thoroughness: &Thoroughness) -> Result<Check> {
    use pilotfish_constrained::speculative::Pruned;
    use pilotfish_decoding::{Decoder, Limits, Nothing, PromptLookup};
    let (vocabulary, dfa) = language()?;
    let mut differ = 0;
    for text in 0..thoroughness.texts {
        let mut rng = Streams::new(thoroughness.seed).fork(text as u64).stream("pruning");
        let mut model = TableModel::random(2, 4, 1.0, &mut rng)?;
        let place = || Place::new(dfa.clone(), vocabulary.clone(), 4);
        let limits = Limits { new_tokens: thoroughness.tokens, stop: vec![vec![END]], ..Limits::default() };
        let prompt = [0, 1, 0, 1];
        let streams = Streams::new(thoroughness.seed);
        let mut plain = Checked::new(Sampler::greedy(), place(), streams);
        let alone = Decoder::new(&mut model, &mut Nothing, &mut plain, limits.clone())?.generate(&prompt)?;
        let mut masked = Masked::new(Sampler::greedy(), Drawn::Fixed, place(), streams);
        let mut drafter = Pruned::new(PromptLookup::default(), place());
        let fast = Decoder::new(&mut model, &mut drafter, &mut masked, limits)?.generate(&prompt)?;
        differ += usize::from(alone.tokens != fast.tokens);
    }
    let name = "pruned look-up, masked: greedy output";
    Ok(Check::below(Kind::Greedy, name, thoroughness.texts, differ as f64, 0.0))
}
