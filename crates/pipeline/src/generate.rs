//! A text of a model for the terminal, under a constraint or none.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use pilotfish_architectures::{Checkpoint, Message, Tokenizer};
use pilotfish_constrained::{
    Anything, ConstrainedError, Constraint, Critic, Estimator, Grammars, Particle, Proposal, Smc, Vocabulary,
};
use pilotfish_model::sampling::Warpers;
use pilotfish_model::{CausalModel, Ledger, ModelInfo, Streams, Token};
use pilotfish_runtime::LoadOptions;

use crate::PipelineError;
use crate::error::Failure;

/// The bytes of a tokeniser's tokens, with the model's end tokens. Control tokens have none, and neither have ids of
/// the model that the tokeniser does not know.
///
/// # Errors
/// A model without end tokens.
pub fn vocabulary(tokenizer: &Tokenizer, info: &ModelInfo) -> Result<Vocabulary, ConstrainedError> {
    let bytes = (0..info.vocab as Token)
        .map(|token| {
            let bytes = tokenizer.bytes(token)?;
            // A control token is not decoded.
            let written = tokenizer.decode(&[token], true).is_ok_and(|text| !text.is_empty());
            written.then_some(bytes)
        })
        .collect();
    Vocabulary::new(bytes, info.end.clone())
}

/// The form of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any.
    Free,
    /// A file with a JSON schema.
    Schema(PathBuf),
    /// A regular expression.
    Regex(String),
    /// A file with a Lark grammar.
    Grammar(PathBuf),
}

/// What is to be generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What the user says; given to the model as it is if `raw`, else through its chat template.
    pub prompt: String,
    /// Whether the prompt is continued as it stands.
    pub raw: bool,
    /// The form of the text.
    pub form: Form,
    /// A method of [`METHODS`].
    pub method: String,
    /// Particles; the method's own number if there is none.
    pub particles: Option<usize>,
    /// Temperature, above 0.
    pub temperature: f64,
    /// New tokens at most.
    pub tokens: usize,
    /// Seed.
    pub seed: u64,
}

/// Methods by name, each with one line about it.
pub const METHODS: &[(&str, &str)] = &[
    (
        "awrs-smc",
        "particles weighted by adaptive weighted rejection sampling: the model's law given the form",
    ),
    ("masked-smc", "the same with whole masks and exact weights"),
    ("twisted-smc", "the model's own particles, resampled when some cannot be completed"),
    ("sample-rerank", "the model's own texts, of which valid ones stay"),
    ("masking", "one text, masked token by token"),
    ("lcd", "one text, locally constrained by rejection: the law of masking, few verdicts"),
    ("base", "one text of the model, whatever its form"),
];

const KNOWN: &str = "awrs-smc, masked-smc, twisted-smc, sample-rerank, masking, lcd, base";

fn method(name: &str) -> Result<Smc, PipelineError> {
    Ok(match name {
        "awrs-smc" => Smc::awrs(),
        "masked-smc" => Smc::masked(),
        "twisted-smc" => Smc::twisted(),
        "sample-rerank" => Smc::sample_rerank(),
        "masking" => Smc { proposal: Proposal::MaskedUnweighted, ..Smc::locally_constrained() },
        "lcd" => Smc { proposal: Proposal::Awrs(Estimator::Unweighted), ..Smc::locally_constrained() },
        "base" => Smc { critic: Critic::None, ..Smc::base() },
        other => {
            return Err(PipelineError::Choice { option: "method", value: other.into(), known: KNOWN });
        }
    })
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The heaviest text; none if no particle was left.
    pub text: Option<String>,
    /// All texts with their posterior weights, the heaviest first.
    pub texts: Vec<(String, f64)>,
    /// The estimated logarithm of the probability that the model's text has the form; for weighted methods.
    pub log_evidence: Option<f64>,
    /// What it cost.
    pub ledger: Ledger,
    /// Wall time of generation, in seconds.
    pub seconds: f64,
}

/// Generates a text with a checkpoint. `show` gets what is certain as soon as it is: what all particles agree on, and
/// in the end the rest of the heaviest text. It says whether to go on.
///
/// # Errors
/// A method that does not exist, a form that cannot be read, a model that cannot be opened, parameters out of range.
pub fn generate(
    checkpoint: &Checkpoint,
    load: &LoadOptions,
    request: &Request,
    mut show: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, Failure> {
    let smc = Smc {
        warpers: Warpers::temperature(request.temperature),
        tokens: request.tokens,
        ..method(&request.method)?
    };
    let smc = Smc { particles: request.particles.unwrap_or(smc.particles), ..smc };
    smc.check()?;
    let tokenizer = checkpoint.tokenizer()?;
    let template = if request.raw { None } else { checkpoint.chat_template()? };
    let prompt = match &template {
        Some(template) => template.render(&[Message::user(&request.prompt)], true)?,
        None => request.prompt.clone(),
    };
    let prompt = tokenizer.encode(&prompt, template.is_none())?;
    let mut model = crate::sparse::open(checkpoint, load)?;
    let vocabulary = Arc::new(vocabulary(&tokenizer, model.info())?);
    let constraint = constraint(&request.form, &vocabulary)?;
    let (mut shown, mut clock) = (Shown::default(), Instant::now());
    let mut seconds = 0.0;
    let found = smc.run_with(
        &mut model,
        &vocabulary,
        constraint.as_ref(),
        &prompt,
        Streams::new(request.seed),
        |particles| {
            seconds += clock.elapsed().as_secs_f64();
            let told = show(shown.certain(particles));
            clock = Instant::now();
            told
        },
    )?;
    seconds += clock.elapsed().as_secs_f64();
    let texts = found.texts();
    if let Some((text, _)) = texts.first() {
        let _ = show(shown.rest(text));
    }
    let weighted = match smc.proposal {
        Proposal::Model => smc.critic != Critic::None,
        Proposal::Masked => true,
        Proposal::MaskedUnweighted => false,
        Proposal::Awrs(estimator) => estimator.is_proper(),
    };
    let texts: Vec<(String, f64)> = texts
        .into_iter()
        .map(|(text, weight)| (String::from_utf8_lossy(&text).into_owned(), weight))
        .collect();
    Ok(Generated {
        text: texts.first().map(|text| text.0.clone()),
        log_evidence: Some(found.log_evidence()).filter(|_| weighted),
        texts,
        ledger: found.ledger,
        seconds,
    })
}

fn constraint(form: &Form, vocabulary: &Arc<Vocabulary>) -> Result<Box<dyn Constraint>, Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|source| PipelineError::Io { path: path.display().to_string(), source })
    };
    let grammars = || Grammars::new(vocabulary.clone());
    Ok(match form {
        Form::Free => Box::new(Anything),
        Form::Regex(expression) => Box::new(grammars()?.regex(expression)?),
        Form::Grammar(path) => Box::new(grammars()?.lark(&read(path)?)?),
        Form::Schema(path) => {
            let schema = serde_json::from_str(&read(path)?).map_err(|error| PipelineError::Malformed {
                path: path.display().to_string(),
                why: error.to_string(),
            })?;
            Box::new(grammars()?.json_schema(&schema)?)
        }
    })
}

/// What has been shown of a text.
#[derive(Default)]
struct Shown {
    bytes: usize,
    fresh: String,
}

impl Shown {
    /// What all particles that are left agree on, and was not shown.
    fn certain(&mut self, particles: &[Particle]) -> &str {
        let mut left =
            particles.iter().filter(|particle| particle.log_weight > f64::NEG_INFINITY).map(|p| &p.bytes[..]);
        let first = left.next().unwrap_or_default();
        let common = left.fold(first.len(), |common, other| {
            let same = first.iter().zip(other).take_while(|(a, b)| a == b).count();
            common.min(same)
        });
        self.until(&first[..common], false)
    }

    /// The rest of a text that begins with what was shown.
    fn rest(&mut self, text: &[u8]) -> &str {
        self.until(text, true)
    }

    fn until(&mut self, text: &[u8], last: bool) -> &str {
        self.fresh.clear();
        let new = text.get(self.bytes..).unwrap_or_default();
        // Half a character waits for its other half.
        let whole = match std::str::from_utf8(new) {
            Err(error) if !last && error.error_len().is_none() => error.valid_up_to(),
            _ => new.len(),
        };
        self.fresh.push_str(&String::from_utf8_lossy(&new[..whole]));
        self.bytes += whole;
        &self.fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn particle(text: &[u8], log_weight: f64) -> Particle {
        Particle { tokens: Vec::new(), bytes: text.to_vec(), log_weight, end: None }
    }

    #[test]
    fn what_all_agree_on_is_shown_once() {
        let mut shown = Shown::default();
        let dead = f64::NEG_INFINITY;
        assert_eq!(
            shown.certain(&[particle(b"abc", 0.0), particle(b"abd", -1.0), particle(b"x", dead)]),
            "ab"
        );
        assert_eq!(shown.certain(&[particle(b"abcd", 0.0), particle(b"abd", -1.0)]), "");
        assert_eq!(shown.certain(&[particle("abdé".as_bytes(), 0.0), particle(b"abd\xc3", -1.0)]), "d");
        assert_eq!(shown.rest("abdé!".as_bytes()), "é!");
        assert_eq!(Shown::default().certain(&[]), "");
    }

    #[test]
    fn methods_have_names() {
        assert!(METHODS.iter().all(|(name, _)| method(name).unwrap().check().is_ok()));
        assert_eq!(METHODS.iter().map(|method| method.0).collect::<Vec<_>>().join(", "), KNOWN);
        let error = method("awrs-scm").unwrap_err().to_string();
        assert!(error.contains("awrs-scm") && error.contains("twisted-smc"), "{error}");
    }

    #[test]
    fn forms_that_cannot_be_read() {
        let vocabulary = Arc::new(Vocabulary::single_bytes());
        let refused =
            |form| constraint(&form, &vocabulary).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused(Form::Schema("/nowhere.json".into())).contains("nowhere"));
        assert!(refused(Form::Regex("(".into())).contains("regular expression"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("schema.json");
        std::fs::write(&path, "{").unwrap();
        assert!(refused(Form::Schema(path.clone())).contains("schema.json"));
        std::fs::write(&path, "{\"type\": \"integer\"}").unwrap();
        assert!(constraint(&Form::Schema(path), &vocabulary).unwrap().prefix(b"4").unwrap());
        assert!(constraint(&Form::Free, &vocabulary).unwrap().complete().unwrap());
    }
}
