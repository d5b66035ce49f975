use pilotfish_decoding::{
    Choose, Context, Decoder, Draft, Drawn, Limits, Result, Verdict, verifiers::Verifier,
};
use pilotfish_model::sampling::{Distribution, Sampler};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{LogitForm, Logits, Token};

use crate::draws::{TableDrafter, draw, law_after};
use crate::{Explorer, Law, Subject};

/// One situation: a target and a draft model, how both are warped, and the shape of the draft.
#[derive(Clone, Debug)]
pub struct Case {
    /// The target.
    pub target: TableModel,
    /// The draft model.
    pub draft: TableModel,
    /// The target's warpers.
    pub sampler: Sampler,
    /// The draft's warpers.
    pub draft_sampler: Sampler,
    /// Children at every node of each level.
    pub shape: Vec<usize>,
}

/// What can be done to a draft between its drawing and its verification.
pub type Tamper = dyn Fn(&Case, Draft) -> Result<Draft>;

impl Case {
    /// The exact law of the next `length` tokens of the target after a text.
    ///
    /// # Errors
    /// Tables whose rows the warpers refuse.
    pub fn truth(&self, text: &[Token], length: usize) -> Result<Law<Vec<Token>>> {
        self.complete(text, Law::from([(Vec::new(), 1.0)]), length)
    }

    /// The exact law of the first `length` tokens of one round of drafting and verifying, completed by the target
    /// where a round emits fewer.
    ///
    /// # Errors
    /// What the verifier refuses.
    pub fn round_law(
        &self,
        subject: &Subject,
        text: &[Token],
        length: usize,
        tamper: Option<&Tamper>,
    ) -> Result<Law<Vec<Token>>> {
        let law = Explorer::try_explore(|explorer| {
            let mut verifier = (subject.make)(self.sampler, Box::new(explorer.clone()));
            let (draft, verdict) = self.round(text, subject.drawn, explorer, verifier.as_mut(), tamper)?;
            let mut tokens: Vec<Token> = verdict.path.iter().map(|&node| draft.tree().token(node)).collect();
            tokens.push(verdict.next);
            tokens.truncate(length);
            Ok::<_, pilotfish_decoding::DecodingError>(tokens)
        })?;
        self.complete(text, law, length)
    }

    /// The probability that a round keeps a child of the root.
    ///
    /// # Errors
    /// What the verifier refuses.
    pub fn acceptance(&self, subject: &Subject, text: &[Token]) -> Result<f64> {
        let law = Explorer::try_explore(|explorer| {
            let mut verifier = (subject.make)(self.sampler, Box::new(explorer.clone()));
            let (_, verdict) = self.round(text, subject.drawn, explorer, verifier.as_mut(), None)?;
            Ok::<_, pilotfish_decoding::DecodingError>(!verdict.path.is_empty())
        })?;
        Ok(law.get(&true).copied().unwrap_or(0.0))
    }

    /// One round: draws a draft, asks the target about every node, verifies.
    pub(crate) fn round(
        &self,
        text: &[Token],
        drawn: Drawn,
        choose: &mut dyn Choose,
        verifier: &mut dyn Verifier,
        tamper: Option<&Tamper>,
    ) -> Result<(Draft, Verdict)> {
        let mut draft =
            draw(text, &self.shape, drawn, choose, |path| law_after(&self.draft, &self.draft_sampler, path))?;
        if let Some(tamper) = tamper {
            draft = tamper(self, draft)?;
        }
        let tree = draft.tree();
        let (mut rows, mut vocab) = (Vec::new(), 0);
        for node in 0..tree.len() {
            let mut path = text.to_vec();
            path.extend(tree.path(node)[1..].iter().map(|&node| tree.token(node)));
            let next = self.target.next(&path);
            vocab = next.probs().len();
            rows.extend(next.probs().iter().map(|prob| prob.ln() as f32));
        }
        let logits = Logits::from_rows(rows, vocab, LogitForm::Full)?;
        let verdict = verifier.verify(&Context { text, draft: &draft, logits: &logits })?;
        Ok((draft, verdict))
    }

    /// The exact law of the first `length` tokens that the whole loop emits, prompt's pass included.
    ///
    /// # Errors
    /// What the loop refuses.
    pub fn loop_law(&self, subject: &Subject, prompt: &[Token], length: usize) -> Result<Law<Vec<Token>>> {
        let mut model = self.target.clone();
        Explorer::try_explore(|explorer| {
            let mut verifier = (subject.make)(self.sampler, Box::new(explorer.clone()));
            let mut drafter = TableDrafter::new(
                self.draft.clone(),
                self.draft_sampler,
                &self.shape,
                subject.drawn,
                Box::new(explorer.clone()),
            );
            let limits = Limits { new_tokens: length, ..Limits::default() };
            Ok(Decoder::new(&mut model, &mut drafter, verifier.as_mut(), limits)?.generate(prompt)?.tokens)
        })
    }

    /// Extends every text of a law to `length` tokens by the target's own law.
    fn complete(&self, text: &[Token], law: Law<Vec<Token>>, length: usize) -> Result<Law<Vec<Token>>> {
        let mut complete = Law::new();
        let mut open: Vec<(Vec<Token>, f64)> = law.into_iter().collect();
        while let Some((tokens, weight)) = open.pop() {
            if tokens.len() >= length {
                *complete.entry(tokens).or_insert(0.0) += weight;
                continue;
            }
            let path: Vec<Token> = text.iter().chain(&tokens).copied().collect();
            let next = law_after(&self.target, &self.sampler, &path)?;
            for (token, &prob) in next.probs().iter().enumerate().filter(|&(_, &prob)| prob > 0.0) {
                let longer = tokens.iter().copied().chain([token as Token]).collect();
                open.push((longer, weight * prob));
            }
        }
        Ok(complete)
    }
}

/// A table whose next token has this law whatever came before.
///
/// # Errors
/// No law.
pub fn constant(weights: &[f64]) -> Result<TableModel> {
    let law = Distribution::from_weights(weights.to_vec())?;
    Ok(TableModel::new(0, weights.len(), law.probs().to_vec())?)
}
