use std::ops::ControlFlow;

use pilotfish_model::{CausalModel, Ledger, Streams, Token};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::smc::Prompt;
use crate::{ConstrainedError, Constraint, Critic, End, Particle, Result, Smc, Vocabulary};

/// Whole texts of the model until one is valid: the model's law given the constraint, exactly, at a cost of `1 / Z`
/// texts in the mean. Breaks a text off as soon as the prefix test refuses it, which changes nothing but the cost.
///
/// ```
/// use pilotfish_constrained::{Dfa, Rejection, Vocabulary};
/// use pilotfish_model::{Streams, toy::TableModel};
/// let mut model = TableModel::new(0, 3, vec![1.0; 3])?;
/// let vocabulary = Vocabulary::new(vec![Some(b"a".to_vec()), Some(b"b".to_vec()), None], vec![2])?;
/// let found = Rejection::default().run(&mut model, &vocabulary, &Dfa::words(&[b"ab", b"b"])?, &[0], Streams::new(1))?;
/// let text = found.text.expect("the chance to find none in 100 is 1e-7");
/// assert!(text.bytes == b"ab" || text.bytes == b"b");
/// # Ok::<(), pilotfish_constrained::ConstrainedError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    /// Texts at most.
    pub tries: usize,
    /// Warpers and length; the rest of the sampler is not looked at.
    pub texts: Smc,
}

impl Default for Rejection {
    fn default() -> Self {
        Self { tries: 100, texts: Smc::base() }
    }
}

/// What trying again found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tries {
    /// The first valid text; none within the limit.
    pub text: Option<Particle>,
    /// Texts begun.
    pub tries: usize,
    /// What they cost.
    pub ledger: Ledger,
}

impl Rejection {
    /// Samples a continuation of a prompt. A text that reaches the limit of tokens without ending is none, except
    /// with the probability that the model gives to its end there.
    ///
    /// # Errors
    /// No try; as [`Smc::run`].
    pub fn run(
        &self,
        model: &mut dyn CausalModel,
        vocabulary: &Vocabulary,
        constraint: &dyn Constraint,
        prompt: &[Token],
        streams: Streams,
    ) -> Result<Tries> {
        if self.tries == 0 {
            return Err(ConstrainedError::BadParameter { name: "tries", value: 0.0, want: "at least 1" });
        }
        let one = Smc { particles: 1, tau: 0.0, critic: Critic::EveryStep, ..self.texts };
        let one = Smc { proposal: crate::Proposal::Model, ..one };
        let prompt = Prompt::read(&one, model, vocabulary, prompt)?;
        let mut ledger = prompt.ledger.clone();
        let mut watch = |_: &[Particle]| ControlFlow::Continue(());
        for index in 0..self.tries {
            let streams = streams.fork(index as u64);
            let mut posterior =
                one.continue_from(model, vocabulary, constraint, &prompt, streams, &mut watch)?;
            ledger.add(&posterior.ledger);
            // A text ended by force, or beside tokens without bytes, is worth its weight, at most 1.
            let text = posterior.particles.pop().filter(|text| text.end == Some(End::Complete));
            let kept = text.filter(|text| {
                let u: f64 = streams.stream("accept").random();
                u.ln() < text.log_weight
            });
            if let Some(text) = kept {
                return Ok(Tries { text: Some(text), tries: index + 1, ledger });
            }
        }
        Ok(Tries { text: None, tries: self.tries, ledger })
    }
}
