use pilotfish_decoding::{DecodingError, Dice, Drawn, Result};
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{ModelError, StreamRng, Streams, Token};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::exact::constant;
use crate::loops::{accounting_of, greedy_identity};
use crate::statistics::{g_test, holm};
use crate::{Case, Subject, Wrong, distance};

/// What kind of evidence a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The output's law, enumerated, against the target's: the value is the largest difference.
    Law,
    /// A probability of acceptance that is known in closed form: the value is the difference.
    Figure,
    /// Counts against the law: the value is a p-value, the bound Holm's for the smallest of them.
    Counts,
    /// A known-wrong variant: the value is how far off it was seen to be, and must exceed the bound.
    KnownWrong,
    /// Greedy output against plain greedy output: the value counts texts that differ.
    Greedy,
    /// The ledger's identities: the value counts those violated.
    Accounting,
    /// Logits of trees and of caches after keeping and forgetting: the value is the largest difference.
    Cache,
}

/// One line of a certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub kind: Kind,
    /// Who was checked.
    pub subject: String,
    /// Situations tried.
    pub cases: usize,
    /// The worst value seen.
    pub value: f64,
    /// What it was held against.
    pub bound: f64,
    /// Whether that went well.
    pub passed: bool,
}

impl Check {
    /// A check whose value must not exceed the bound; NaN does not pass.
    pub fn below(kind: Kind, subject: impl Into<String>, cases: usize, value: f64, bound: f64) -> Self {
        Self { kind, subject: subject.into(), cases, value, bound, passed: value <= bound }
    }
}

/// Three digits: what is printed is what was signed, whichever way the number was read back.
fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

/// How thorough a certificate is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thoroughness {
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Largest difference between laws that counts as none.
    pub tolerance: f64,
    /// Rounds drawn for each test of counts.
    pub rounds: usize,
    /// Probability that any test of counts fails although all laws are right.
    pub false_alarm: f64,
    /// Texts for each greedy check.
    pub texts: usize,
    /// New tokens of each.
    pub tokens: usize,
}

impl Default for Thoroughness {
    fn default() -> Self {
        Self { seed: 1, tolerance: 1e-12, rounds: 20_000, false_alarm: 1e-3, texts: 20, tokens: 128 }
    }
}

/// What was checked, with what result. Its `id` changes with anything in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// The first 16 hexadecimal digits of a SHA-256 over the rest.
    pub id: String,
    /// Version of the kit.
    pub kit: String,
    /// How thorough it was.
    pub thoroughness: Thoroughness,
    /// The checks.
    pub checks: Vec<Check>,
    /// Whether all went well.
    pub passed: bool,
}

impl Certificate {
    pub(crate) fn new(thoroughness: Thoroughness, mut checks: Vec<Check>) -> Result<Self> {
        checks.iter_mut().for_each(|check| check.value = rounded(check.value));
        let passed = checks.iter().all(|check| check.passed);
        let kit = env!("CARGO_PKG_VERSION").to_owned();
        let mut certificate = Self { id: String::new(), kit, thoroughness, checks, passed };
        certificate.id = certificate.digest()?;
        Ok(certificate)
    }

    fn digest(&self) -> Result<String> {
        let mut blank = Self { id: String::new(), ..self.clone() };
        blank.checks.iter_mut().for_each(|check| check.value = rounded(check.value));
        let json = serde_json::to_vec(&blank).map_err(ModelError::backend)?;
        Ok(Sha256::digest(json).iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether the id belongs to the rest.
    pub fn is_intact(&self) -> bool {
        self.digest().is_ok_and(|id| id == self.id)
    }

    /// The checks that did not pass.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed)
    }
}

/// Certifies verifiers: enumerates their laws over tables (the worked examples, chains and trees, warpers on both
/// sides, the whole loop), counts what they emit, checks greedy identity and accounting of the loop, and shows
/// that each known-wrong variant would have been caught by the same checks.
///
/// # Errors
/// What a verifier refuses. A verifier that is wrong is no error; it fails its checks.
pub fn certify(subjects: &[Subject], thoroughness: &Thoroughness) -> Result<Certificate> {
    let mut checks = Vec::new();
    for subject in subjects {
        checks.push(laws(subject, thoroughness)?);
        checks.extend(figures(subject)?);
    }
    checks.extend(counts(subjects, thoroughness)?);
    for wrong in Wrong::ALL {
        checks.push(caught(wrong, thoroughness)?);
    }
    checks.push(shared_noise(thoroughness)?);
    checks.push(greedy_identity(thoroughness)?);
    checks.push(accounting_of(subjects, thoroughness)?);
    Certificate::new(thoroughness.clone(), checks)
}

/// Example A: `p`, `q`.
pub const EXAMPLE_A: ([f64; 3], [f64; 3]) = ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3]);
/// Example B: `p`, `q`.
pub const EXAMPLE_B: ([f64; 4], [f64; 4]) = ([0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]);

/// A case of one node at temperature 1.
///
/// # Errors
/// Weights that are no law.
pub fn one_node(p: &[f64], q: &[f64], children: usize) -> Result<Case> {
    let sampler = Warpers::temperature(1.0).check()?;
    Ok(Case {
        target: constant(p)?,
        draft: constant(q)?,
        sampler,
        draft_sampler: sampler,
        shape: vec![children],
    })
}

fn examples(children: usize) -> Result<[Case; 2]> {
    Ok([one_node(&EXAMPLE_A.0, &EXAMPLE_A.1, children)?, one_node(&EXAMPLE_B.0, &EXAMPLE_B.1, children)?])
}

/// Targets and drafts at three temperatures with top-k and top-p, the draft's warpers differing from the target's.
fn warped(shape: &[usize], rng: &mut StreamRng) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for temperature in [0.5, 1.0, 1.5] {
        for (top_k, top_p) in [(None, None), (Some(2), None), (None, Some(0.8))] {
            let sampler = Warpers { top_k, top_p, ..Warpers::temperature(temperature) }.check()?;
            let draft_sampler = Warpers { top_p, ..Warpers::temperature(0.6) }.check()?;
            let target = TableModel::random(1, 3, 1.0, rng)?;
            let draft = TableModel::random(1, 3, 1.0, rng)?;
            cases.push(Case { target, draft, sampler, draft_sampler, shape: shape.to_vec() });
        }
    }
    Ok(cases)
}

/// Shapes of drafts: chains of 1 to 4, and two-level trees.
fn shapes(children: usize) -> Vec<Vec<usize>> {
    let mut shapes: Vec<Vec<usize>> = (1..=4).map(|length| vec![1; length]).collect();
    if children > 1 {
        shapes.extend([vec![2, 1], vec![1, 2], vec![2, 2], vec![3, 1]]);
    }
    shapes
}

/// Every law of a subject: the examples with 1 to 4 children, warped tables with every shape, the whole loop.
fn laws(subject: &Subject, thoroughness: &Thoroughness) -> Result<Check> {
    let text = [0];
    let (mut cases, mut worst) = (0, 0.0f64);
    let mut see = |law: crate::Law<Vec<Token>>, truth: crate::Law<Vec<Token>>| {
        cases += 1;
        let total: f64 = law.values().sum();
        worst = worst.max(distance(&law, &truth)).max((total - 1.0).abs());
    };
    for children in 1..=4.min(subject.children) {
        for case in examples(children)? {
            see(case.round_law(subject, &text, 1, None)?, case.truth(&text, 1)?);
        }
    }
    let mut rng = Streams::new(thoroughness.seed).stream("laws");
    for shape in shapes(subject.children) {
        for case in warped(&shape, &mut rng)? {
            let length = shape.len().min(3) + 1;
            see(case.round_law(subject, &text, length, None)?, case.truth(&text, length)?);
        }
    }
    let shape = vec![2.min(subject.children)];
    for case in warped(&shape, &mut rng)? {
        see(case.loop_law(subject, &text, 3)?, case.truth(&text, 3)?);
    }
    let name = format!("{}: law", subject.name);
    Ok(Check::below(Kind::Law, name, cases, worst, thoroughness.tolerance))
}

/// Known acceptance probabilities of the examples, by how the children are drawn and how they are verified.
fn figures(subject: &Subject) -> Result<Option<Check>> {
    // (example, children, acceptance).
    let known: &[(usize, usize, f64)] = match subject.name.as_str() {
        "speculative sampling" => &[(0, 1, 0.7), (1, 1, 0.6)],
        "multi-step sampling" => &[
            (0, 1, 0.7),
            (0, 2, 0.76),
            (0, 3, 0.808),
            (1, 1, 0.6),
            (1, 2, 0.72),
            (1, 3, 0.768),
            (1, 4, 0.7912),
        ],
        "recursive rejection" => &[
            (0, 1, 0.7),
            (0, 2, 283.0 / 350.0),
            (0, 3, 1.0),
            (1, 1, 0.6),
            (1, 2, 107.0 / 140.0),
            (1, 3, 14117.0 / 16800.0),
            (1, 4, 1.0),
        ],
        "sample-and-match, independent drafts" => &[(1, 2, 0.35)],
        // 0.419444 to six places: 151/360.
        "sample-and-match, drafts without replacement" => &[(1, 2, 151.0 / 360.0)],
        _ => return Ok(None),
    };
    let mut worst = 0.0f64;
    for &(example, children, want) in known {
        let got = examples(children)?[example].acceptance(subject, &[0])?;
        worst = worst.max((got - want).abs());
    }
    // Logits are f32: the laws themselves are off by that much.
    let name = format!("{}: acceptance", subject.name);
    Ok(Some(Check::below(Kind::Figure, name, known.len(), worst, 1e-6)))
}

/// The case of the tests by counting: 8 tokens, a draft that is the target mixed with another table.
fn counted_case(seed: u64, shape: &[usize]) -> Result<Case> {
    let mut rng = Streams::new(seed).stream("counts");
    let sampler = Warpers { top_p: Some(0.95), ..Warpers::temperature(0.8) }.check()?;
    let draft_sampler = Warpers::temperature(1.0).check()?;
    let target = TableModel::random(1, 8, 1.0, &mut rng)?;
    let draft = TableModel::random(1, 8, 1.0, &mut rng)?;
    Ok(Case { target, draft, sampler, draft_sampler, shape: shape.to_vec() })
}

/// Joint counts of the first two tokens of many rounds, over `8 * 8` cells, with the cells' probabilities.
/// The draft draws from the stream of this name.
pub(crate) fn joint_counts(
    case: &Case,
    subject: &Subject,
    rounds: usize,
    seed: u64,
    draft_stream: &str,
) -> Result<(Vec<u64>, Vec<f64>)> {
    let text = [0];
    let truth = case.truth(&text, 2)?;
    let vocab = case.target.next(&text).probs().len();
    let cell = |tokens: &[Token]| tokens[0] as usize * vocab + tokens[1] as usize;
    let mut law = vec![0.0; vocab * vocab];
    truth.iter().for_each(|(tokens, prob)| law[cell(tokens)] += prob);
    let mut counts = vec![0; law.len()];
    for round in 0..rounds {
        let streams = Streams::new(seed).fork(round as u64);
        let mut verifier = (subject.make)(case.sampler, Box::new(Dice::new(streams)));
        let mut draw = streams.stream(draft_stream);
        let (draft, verdict) = case.round(&text, subject.drawn, &mut draw, verifier.as_mut(), None)?;
        let mut tokens: Vec<Token> = verdict.path.iter().map(|&node| draft.tree().token(node)).collect();
        tokens.push(verdict.next);
        if tokens.len() < 2 {
            let path = [text[0], tokens[0]];
            let next = crate::law_after(&case.target, &case.sampler, &path)?;
            tokens.push(next.sample(&mut streams.stream("continue")));
        }
        counts[cell(&tokens)] += 1;
    }
    Ok((counts, law))
}

fn counts(subjects: &[Subject], thoroughness: &Thoroughness) -> Result<Vec<Check>> {
    let mut fits = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let shape: &[usize] = if subject.children > 1 { &[3, 1] } else { &[1, 1] };
        let case = counted_case(thoroughness.seed, shape)?;
        let seed = Streams::new(thoroughness.seed).fork(index as u64).seed();
        let (counts, law) = joint_counts(&case, subject, thoroughness.rounds, seed, "draft")?;
        fits.push(g_test(&counts, &law).p_value);
    }
    let rejected = holm(&fits, thoroughness.false_alarm);
    let bound = thoroughness.false_alarm / fits.len().max(1) as f64;
    let lines = subjects.iter().zip(fits).zip(rejected).map(|((subject, value), rejected)| Check {
        kind: Kind::Counts,
        subject: format!("{}: counts", subject.name),
        cases: thoroughness.rounds,
        value,
        bound,
        passed: !rejected,
    });
    Ok(lines.collect())
}

/// How far off the checks of laws see a known-wrong variant to be.
fn caught(wrong: Wrong, thoroughness: &Thoroughness) -> Result<Check> {
    let (subject, tamper, text) = (wrong.subject(), wrong.tamper(), [0]);
    let (mut cases, mut worst) = (0, 0.0f64);
    let mut rng = Streams::new(thoroughness.seed).stream("wrong");
    let mut situations = Vec::new();
    for children in 1..=4 {
        situations.extend(examples(children)?);
    }
    for shape in shapes(2) {
        situations.extend(warped(&shape, &mut rng)?);
    }
    for case in situations {
        // One token more than a short draft: the bonus token counts too.
        let length = case.shape.len().min(3) + 1;
        let law = case.round_law(&subject, &text, length, tamper)?;
        worst = worst.max(distance(&law, &case.truth(&text, length)?));
        cases += 1;
    }
    let (value, bound) = (worst, 1e-3);
    Ok(Check { kind: Kind::KnownWrong, subject: subject.name, cases, value, bound, passed: value > bound })
}

/// A right rule whose acceptance shares its noise with the draft: only counting sees it.
fn shared_noise(thoroughness: &Thoroughness) -> Result<Check> {
    let subject =
        Subject::new("shared noise", Drawn::WithoutReplacement, pilotfish_decoding::Recursive::with_choose);
    let case = counted_case(thoroughness.seed, &[2])?;
    let (counts, law) = joint_counts(&case, &subject, thoroughness.rounds, thoroughness.seed, "accept")?;
    let value = g_test(&counts, &law).p_value;
    let (cases, bound) = (thoroughness.rounds, thoroughness.false_alarm);
    let subject = "draft and acceptance share noise (p-value)".into();
    Ok(Check { kind: Kind::KnownWrong, subject, cases, value, bound, passed: value < bound })
}

impl Thoroughness {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Counts of 0, a tolerance or a false-alarm probability that is not above 0 or, the latter, not below 1.
    pub fn check(self) -> Result<Self> {
        for (name, value) in [("rounds", self.rounds), ("texts", self.texts), ("tokens", self.tokens)] {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        let refuse = |name, value, want| Err(ModelError::BadParameter { name, value, want }.into());
        if !(self.tolerance > 0.0) {
            return refuse("tolerance", self.tolerance, "above 0");
        }
        if !(self.false_alarm > 0.0 && self.false_alarm < 1.0) {
            return refuse("false alarm", self.false_alarm, "above 0 and below 1");
        }
        Ok(self)
    }
}

/// The sampler of a temperature, for tests and callers that need no other warper.
pub fn at_temperature(temperature: f64) -> Result<Sampler> {
    Ok(Warpers::temperature(temperature).check()?)
}
