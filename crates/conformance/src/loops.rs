use pilotfish_decoding::{
    Ask, Decoder, Draft, Drafter, Generation, GreedyTree, Limits, Nothing, PromptLookup, Result,
};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{CausalModel, StreamRng, Streams, Token, TokenTree};
use rand::Rng;

use crate::certificate::{Check, Kind, Thoroughness};
use crate::draws::TableDrafter;
use crate::{Subject, at_temperature};

/// Proposes trees of no sense: random shapes and tokens.
#[derive(Clone, Debug)]
pub struct RandomTrees {
    rng: StreamRng,
    vocab: usize,
    largest: usize,
}

impl RandomTrees {
    /// Trees of up to `largest` nodes over a vocabulary.
    pub fn new(vocab: usize, largest: usize, streams: Streams) -> Self {
        Self { rng: streams.stream("draft"), vocab, largest }
    }
}

impl Drafter for RandomTrees {
    fn name(&self) -> String {
        "random trees".into()
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let mut tree = TokenTree::new(ask.root());
        for _ in 0..self.rng.random_range(0..=self.largest) {
            let parent = self.rng.random_range(0..tree.len());
            tree.push(parent, self.rng.random_range(0..self.vocab as Token))?;
        }
        Ok(tree.into())
    }
}

/// Proposes far more than it is asked for: a chain of one token, each node with equal twins.
#[derive(Clone, Copy, Debug)]
pub struct Excess(
    /// The token.
    pub Token,
);

impl Drafter for Excess {
    fn name(&self) -> String {
        "excess".into()
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let mut tree = TokenTree::new(ask.root());
        let mut node = 0;
        for _ in 0..ask.depth.min(1 << 10) + 7 {
            let parent = node;
            node = tree.push(parent, self.0)?;
            tree.push(parent, self.0)?;
        }
        Ok(tree.into())
    }
}

/// Drafters that propose nothing, nonsense, too much, and something reasonable: whatever they do, greedy output
/// must be the plain one.
pub fn adversaries(vocab: usize, end: &[Token], streams: Streams) -> Vec<Box<dyn Drafter>> {
    vec![
        Box::new(Nothing),
        Box::new(RandomTrees::new(vocab, 24, streams)),
        Box::new(Excess(0)),
        Box::new(Excess(end.first().copied().unwrap_or(vocab.saturating_sub(1) as Token))),
        Box::new(PromptLookup::default()),
    ]
}

/// How many texts of these drafters differ from plain greedy output, and how many were made.
///
/// # Errors
/// What the loop refuses.
pub fn greedy_differences(
    model: &mut dyn CausalModel,
    drafters: &mut [Box<dyn Drafter>],
    prompts: &[Vec<Token>],
    new_tokens: usize,
) -> Result<(usize, usize)> {
    let limits = Limits { new_tokens, ..Limits::default() };
    let (mut differ, mut made) = (0, 0);
    for prompt in prompts {
        let plain =
            Decoder::new(model, &mut Nothing, &mut GreedyTree, limits.clone())?.generate(prompt)?.tokens;
        for drafter in drafters.iter_mut() {
            let fast = Decoder::new(model, drafter.as_mut(), &mut GreedyTree, limits.clone())?
                .generate(prompt)?
                .tokens;
            differ += usize::from(fast != plain);
            made += 1;
        }
    }
    Ok((differ, made))
}

pub(crate) fn greedy_identity(thoroughness: &Thoroughness) -> Result<Check> {
    let streams = Streams::new(thoroughness.seed);
    let mut rng = streams.stream("greedy");
    let (mut differ, mut made) = (0, 0);
    for text in 0..thoroughness.texts {
        let mut model = TableModel::random(2, 6, 2.0, &mut rng)?;
        if text % 4 == 3 {
            model = model.with_end(vec![5]);
        }
        let prompt: Vec<Token> = (0..5).map(|_| rng.random_range(0..6)).collect();
        let mut drafters = adversaries(6, &model.info().end, streams.fork(text as u64));
        let (a, b) = greedy_differences(&mut model, &mut drafters, &[prompt], thoroughness.tokens)?;
        (differ, made) = (differ + a, made + b);
    }
    Ok(Check::below(Kind::Greedy, "greedy output with any drafter", made, differ as f64, 0.0))
}

/// The identities that a finished text's ledger must obey; those that it does not, in words. `rows` is the
/// length of the model's cache afterwards. The prompt was read in one step.
pub fn violations(prompt: usize, rows: usize, generation: &Generation) -> Vec<&'static str> {
    let ledger = &generation.ledger;
    let sum = |of: fn(&pilotfish_decoding::RoundRecord) -> usize| {
        generation.rounds.iter().map(of).sum::<usize>() as u64
    };
    let tokens = generation.tokens.len() as u64;
    let identities = [
        ("emitted = tokens", ledger.emitted == tokens),
        ("emitted = 1 + added by rounds", tokens == 1 + sum(|round| round.added)),
        ("drafted = sum over rounds", ledger.drafted == sum(|round| round.drafted)),
        ("accepted = sum over rounds", ledger.accepted == sum(|round| round.accepted)),
        ("accepted <= drafted", ledger.accepted <= ledger.drafted),
        ("rounds = records", ledger.rounds == generation.rounds.len() as u64),
        ("target passes = rounds + prompt's", ledger.target_forwards == ledger.rounds + 1),
        (
            "rows = prompt + drafted + rounds",
            ledger.target_rows == prompt as u64 + ledger.drafted + ledger.rounds,
        ),
        (
            "a round adds what it accepted, and one more unless the text ended",
            generation.rounds.iter().rev().skip(1).all(|round| round.added == round.accepted + 1)
                && generation
                    .rounds
                    .iter()
                    .all(|round| round.added == round.accepted.max(1) || round.added == round.accepted + 1),
        ),
        ("the cache holds all but the last token", rows as u64 == prompt as u64 + tokens - 1),
    ];
    identities.iter().filter(|(_, holds)| !holds).map(|(name, _)| *name).collect()
}

/// The ledger's identities over sampled texts of every subject, some of which end early.
pub(crate) fn accounting_of(subjects: &[Subject], thoroughness: &Thoroughness) -> Result<Check> {
    use pilotfish_model::Steps;
    let streams = Streams::new(thoroughness.seed);
    let mut rng = streams.stream("accounting");
    let (mut violated, mut made) = (0, 0);
    for (index, subject) in subjects.iter().enumerate() {
        for text in 0..thoroughness.texts {
            let streams = streams.fork((index * thoroughness.texts + text) as u64);
            let mut model = TableModel::random(1, 6, 1.0, &mut rng)?;
            if text % 2 == 1 {
                model = model.with_end(vec![5]);
            }
            let sampler = at_temperature(1.0)?;
            let mut verifier = (subject.make)(sampler, Box::new(pilotfish_decoding::Dice::new(streams)));
            let shape = if subject.children > 1 { vec![2, 2, 1] } else { vec![1; 3] };
            let draft = model.mixed(0.3)?;
            let draw = Box::new(streams.stream("draft"));
            let mut drafter = TableDrafter::new(draft, sampler, &shape, subject.drawn, draw);
            let limits = Limits { new_tokens: thoroughness.tokens, ..Limits::default() };
            let prompt = [0, 1, 2];
            let out = Decoder::new(&mut model, &mut drafter, verifier.as_mut(), limits)?.generate(&prompt)?;
            violated += violations(prompt.len(), model.len(), &out).len();
            made += 1;
        }
    }
    Ok(Check::below(Kind::Accounting, "ledger of the loop", made, violated as f64, 0.0))
}
