//! Chains of a draft model and the rules that end them.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pilotfish_conformance::{Explorer, Law, distance};
use pilotfish_decoding::drafters::acceptance::{calibrated, examples};
use pilotfish_decoding::drafters::*;
use pilotfish_decoding::*;
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{
    Capabilities, CausalModel, Input, ModelInfo, Step, StepOutput, Steps, Streams, Tap, TapRows, Token,
};

/// A table whose final-normed state is one-hot in the row's token.
#[derive(Clone)]
struct Hidden {
    table: TableModel,
    info: ModelInfo,
}

impl Hidden {
    fn new(table: TableModel) -> Self {
        let info = table.info();
        let capabilities = Capabilities { taps: vec![Tap::FinalNormed], ..info.capabilities.clone() };
        let info = ModelInfo { width: info.vocab, capabilities, ..info.clone() };
        Self { table, info }
    }
}

impl Steps for Hidden {
    fn len(&self) -> usize {
        self.table.len()
    }

    fn step(&mut self, step: &Step<'_>) -> pilotfish_model::Result<StepOutput> {
        let mut answer = self.table.step(&step.taps(&[]))?;
        let Input::Ids(ids) = step.input else { return Ok(answer) };
        if !step.taps.is_empty() {
            let width = self.info.width;
            let one = |&id: &Token| (0..width).map(move |i| f32::from(u8::from(i == id as usize)));
            let values = ids.iter().flat_map(one).collect();
            answer.taps = vec![TapRows { tap: Tap::FinalNormed, width, values }];
        }
        Ok(answer)
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> pilotfish_model::Result<()> {
        self.table.keep(from, rows)
    }

    fn truncate(&mut self, len: usize) -> pilotfish_model::Result<()> {
        self.table.truncate(len)
    }
}

impl CausalModel for Hidden {
    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

fn sampler() -> Sampler {
    Warpers::temperature(1.0).check().unwrap()
}

/// 0 -> 1 -> 2 -> ... -> 0, for sure.
fn counting(vocab: usize) -> TableModel {
    let next = |from: usize, to: usize| f64::from(u8::from(to == (from + 1) % vocab));
    let table = (0..vocab * vocab).map(|at| next(at / vocab, at % vocab)).collect();
    TableModel::new(1, vocab, table).unwrap()
}

/// A head whose prediction depends on the token alone.
fn by_token(predictions: &[f64]) -> AcceptanceHead {
    let width = predictions.len();
    let mut weights = vec![0.0; 2 * width + 2];
    for (token, p) in predictions.iter().enumerate() {
        weights[width + token] = (p / (1.0 - p)).ln() as f32;
    }
    AcceptanceHead::from_weights(HeadShape { width, depth: 0, tied: true }, weights).unwrap()
}

fn drafter(model: Hidden, rule: Stop) -> ChainDrafter {
    let stopping = Stopping { rule, ..Stopping::default() };
    ChainDrafter::new(DraftModel::new(Box::new(model)), stopping, Pick::Largest).unwrap()
}

fn drafted(
    drafter: &mut dyn Drafter,
    prompt: &[Token],
    target: &mut TableModel,
    new_tokens: usize,
) -> Vec<usize> {
    let limits = Limits { new_tokens, ..Limits::default() };
    let mut verifier = GreedyTree;
    let out = Decoder::new(target, drafter, &mut verifier, limits).unwrap().generate(prompt).unwrap();
    out.rounds.iter().map(|round| round.drafted).collect()
}

#[test]
fn tokens_submitted_for_a_constant_head() {
    let table = [
        (0.7, &[(0.5, 3), (0.7, 5), (0.8, 7), (0.9, 13), (0.95, 20)][..]),
        (0.3, &[(0.8, 3), (0.9, 5), (0.95, 8), (0.99, 20)]),
        (0.9, &[(0.5, 5), (0.7, 8), (0.8, 12)]),
        (0.1, &[(0.9, 3), (0.95, 4), (0.99, 12)]),
    ];
    for (threshold, cases) in table {
        for &(p, want) in cases {
            let head = Box::new(by_token(&[p; 30]));
            let mut drafter = drafter(Hidden::new(counting(30)), Stop::Head { head, threshold });
            assert_eq!(drafted(&mut drafter, &[0], &mut counting(30), 100)[0], want, "{threshold} {p}");
            // (t - 1) factors: floor(ln(1-h)/ln p) + 1 of them.
            let general = (f64::ln(1.0 - threshold) / f64::ln(p)).floor() as usize + 2;
            assert_eq!(general.clamp(2, 20), want);
        }
    }
    let zero = AcceptanceHead::zeros(HeadShape { width: 30, depth: 2, tied: true }).unwrap();
    let mut drafter = drafter(Hidden::new(counting(30)), Stop::Head { head: Box::new(zero), threshold: 0.7 });
    assert_eq!(drafted(&mut drafter, &[0], &mut counting(30), 100)[0], 3);
}

#[test]
fn the_factor_is_the_one_of_the_token_before() {
    let mut predictions = [1.0 - 1e-6; 30];
    predictions[3] = 1e-6;
    let rule = || Stop::Head { head: Box::new(by_token(&predictions)), threshold: 0.7 };
    // Drafts 2, 3, 4: the state of 3 is known when 4 is drawn.
    assert_eq!(drafted(&mut drafter(Hidden::new(counting(30)), rule()), &[0], &mut counting(30), 60)[0], 3);
    // The first token is the root, 3: its own state says nothing about the draft.
    assert_eq!(drafted(&mut drafter(Hidden::new(counting(30)), rule()), &[2], &mut counting(30), 60)[0], 20);
}

#[test]
fn plain_rules() {
    // Draft probabilities .9, .9, .3 in turn.
    let rows = [[0.1, 0.9, 0.0], [0.0, 0.1, 0.9], [0.3, 0.4, 0.3]];
    let table = || TableModel::new(1, 3, rows.concat()).unwrap();
    let chain = |rule: Stop, min: usize, prompt: Token| {
        let stopping = Stopping { rule, min, max: 9 };
        let model = DraftModel::new(Box::new(table())).with_sampler(sampler());
        let mut drafter = ChainDrafter::new(model, stopping, Pick::Largest).unwrap();
        drafted(&mut drafter, &[prompt], &mut table(), 60)[0]
    };
    // The root is 1 after 0: drafts 2 (.9), 1 (.4), 2 (.9), 1 (.4), ...
    assert_eq!(chain(Stop::Confidence(0.5), 1, 0), 2);
    assert_eq!(chain(Stop::Confidence(0.5), 3, 0), 4, "not before the least number");
    assert_eq!(chain(Stop::Confidence(0.39), 1, 0), 9);
    assert_eq!(chain(Stop::Cumulative(0.35), 1, 0), 3, ".9, .36, .324");
    assert_eq!(chain(Stop::Fixed(4), 2, 0), 4);
    assert_eq!(chain(Stop::Script(vec![6, 2]), 2, 0), 6);
    // From 5, two more after each round that kept all.
    let mut heuristic = drafter(Hidden::new(counting(9)), Stop::Heuristic);
    assert_eq!(drafted(&mut heuristic, &[0], &mut counting(9), 31), [5, 7, 9, 5]);
    // A draft that is always wrong: one less a round, down to one.
    let wrong = TableModel::new(1, 3, [[1.0, 0.0, 0.0]; 3].concat()).unwrap();
    let mut heuristic = drafter(Hidden::new(wrong), Stop::Heuristic);
    let target = TableModel::new(1, 3, [[0.0, 0.0, 1.0]; 3].concat()).unwrap();
    assert_eq!(drafted(&mut heuristic, &[0], &mut target.clone(), 8), [5, 4, 3, 2, 1, 1, 0]);
}

fn pair() -> (TableModel, TableModel) {
    let target = vec![0.3, 0.3, 0.4, 0.5, 0.25, 0.25, 0.3, 0.4, 0.3];
    let draft = vec![0.6, 0.3, 0.1, 0.2, 0.5, 0.3, 0.7, 0.2, 0.1];
    (TableModel::new(1, 3, target).unwrap(), TableModel::new(1, 3, draft).unwrap())
}

/// The law of texts as the logits, which are f32, have it.
fn truth(tokens: usize) -> Law<Vec<Token>> {
    let (target, _) = pair();
    let mut all = Law::from([(Vec::new(), 1.0)]);
    for _ in 0..tokens {
        let mut longer = Law::new();
        for (text, weight) in &all {
            let last = text.last().copied().unwrap_or(0);
            let logits: Vec<f32> = target.next(&[last]).probs().iter().map(|p| p.ln() as f32).collect();
            let next = sampler().distribution(&logits, &[]).unwrap();
            for token in 0..3 {
                let text = text.iter().copied().chain([token]).collect();
                longer.insert(text, weight * next.prob(token));
            }
        }
        all = longer;
    }
    all
}

#[test]
fn any_rule_keeps_the_law() {
    let rules = [
        Stop::Fixed(2),
        Stop::Confidence(0.55),
        Stop::Cumulative(0.4),
        Stop::Heuristic,
        // Heads that look at what was drafted, each for another token.
        Stop::Head { head: Box::new(by_token(&[0.99, 0.01, 0.5])), threshold: 0.7 },
        Stop::Head { head: Box::new(by_token(&[0.01, 0.99, 0.99])), threshold: 0.1 },
    ];
    for rule in rules {
        for chain in [false, true] {
            let law = Explorer::explore(|explorer| {
                let (mut target, draft) = pair();
                let stopping = Stopping { rule: rule.clone(), min: 1, max: 3 };
                let pick = Pick::Drawn(Box::new(explorer.clone()));
                let model = DraftModel::new(Box::new(Hidden::new(draft)));
                let mut drafter = ChainDrafter::new(model, stopping, pick).unwrap();
                let dice = Box::new(explorer.clone());
                let mut verifier: Box<dyn Verifier> = match chain {
                    true => Box::new(SpeculativeChain::with_choose(sampler(), dice)),
                    false => Box::new(Recursive::with_choose(sampler(), dice)),
                };
                let limits = Limits { new_tokens: 4, ..Limits::default() };
                let mut decoder = Decoder::new(&mut target, &mut drafter, verifier.as_mut(), limits).unwrap();
                decoder.generate(&[0]).unwrap().tokens
            });
            let far = distance(&law, &truth(4));
            assert!(far < 1e-12, "{rule:?}: {far}");
        }
    }
}

#[test]
fn accounting() {
    let (mut target, draft) = pair();
    for seed in 0..4 {
        let stopping = Stopping { rule: Stop::Confidence(0.55), ..Stopping::default() };
        let model = DraftModel::new(Box::new(draft.clone()));
        let mut drafter = ChainDrafter::new(model, stopping, Pick::sampled(Streams::new(seed))).unwrap();
        let mut verifier = SpeculativeChain::new(sampler(), Streams::new(seed));
        let limits = Limits { new_tokens: 200, ..Limits::default() };
        let out =
            Decoder::new(&mut target, &mut drafter, &mut verifier, limits).unwrap().generate(&[0]).unwrap();
        // Without the last round, which the limit may cut: proposals = N - N_t + N_d.
        let rounds = &out.rounds[..out.rounds.len() - 1];
        let sum = |of: fn(&RoundRecord) -> usize| rounds.iter().map(of).sum::<usize>();
        let discarded = sum(|round| round.drafted - round.accepted);
        assert_eq!(sum(|round| round.drafted), sum(|round| round.added) - rounds.len() + discarded);
        // Each drafted token is one pass of the draft.
        assert_eq!(out.ledger.draft_forwards, out.ledger.drafted);
    }
}

/// A model each of whose steps takes its time on a common clock.
struct Clocked {
    table: TableModel,
    clock: Arc<AtomicU64>,
    takes: u64,
}

impl Steps for Clocked {
    fn len(&self) -> usize {
        self.table.len()
    }

    fn step(&mut self, step: &Step<'_>) -> pilotfish_model::Result<StepOutput> {
        self.clock.fetch_add(self.takes, Ordering::Relaxed);
        self.table.step(step)
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> pilotfish_model::Result<()> {
        self.table.keep(from, rows)
    }

    fn truncate(&mut self, len: usize) -> pilotfish_model::Result<()> {
        self.table.truncate(len)
    }
}

impl CausalModel for Clocked {
    fn info(&self) -> &ModelInfo {
        self.table.info()
    }
}

#[test]
fn the_time_formula_reproduces_a_clock() {
    let rules = [Stop::Fixed(1), Stop::Fixed(5), Stop::Heuristic, Stop::Confidence(0.55)];
    for (rule, (t_d, t_t)) in rules.into_iter().zip([(1, 10), (3, 7), (209, 1264), (5, 5)]) {
        let clock = Arc::new(AtomicU64::new(0));
        let (target, draft) = pair();
        let mut target = Clocked { table: target, clock: clock.clone(), takes: t_t };
        let draft = DraftModel::new(Box::new(Clocked { table: draft, clock: clock.clone(), takes: t_d }));
        let stopping = Stopping { rule, min: 1, max: 20 };
        let mut drafter = ChainDrafter::new(draft, stopping, Pick::sampled(Streams::new(2))).unwrap();
        let mut verifier = SpeculativeChain::new(sampler(), Streams::new(2));
        let limits = Limits { new_tokens: 150, ..Limits::default() };
        let mut times = Vec::new();
        let out = Decoder::new(&mut target, &mut drafter, &mut verifier, limits)
            .unwrap()
            .generate_with(&[0], |_| {
                times.push(clock.load(Ordering::Relaxed));
                ControlFlow::Continue(())
            })
            .unwrap();
        // The first time is that of the prompt's pass; the last round may be cut short.
        let (mut n, mut n_t, mut n_d) = (0, 0, 0);
        for (round, time) in out.rounds[..out.rounds.len() - 1].iter().zip(&times[1..]) {
            n += round.added as u64;
            n_t += 1;
            n_d += (round.drafted - round.accepted) as u64;
            assert_eq!(time - times[0], t_d * (n + n_d) + t_t * n_t - t_d * n_t);
        }
        assert!(n_t > 20 && n_d > 0);
    }
}

#[test]
fn an_oracle_wastes_nothing() {
    // What the draft gets right from each place of a greedy text, learnt from a run of single tokens.
    let mut rng = Streams::new(5).stream("test");
    let mut target = TableModel::random(2, 7, 2.0, &mut rng).unwrap();
    let draft = target.mixed(0.0).unwrap();
    let draft = TableModel::count(
        1,
        7,
        &(0..3000)
            .scan(vec![0, 0], |text, _| {
                let next = draft.next(text).argmax();
                let drawn = draft.next(text).sample(&mut rng);
                text.push(if text.len() % 3 == 0 { drawn } else { next });
                text.last().copied()
            })
            .collect::<Vec<_>>(),
        0.01,
    )
    .unwrap();
    let limits = Limits { new_tokens: 121, ..Limits::default() };
    let mut run = |rule: Stop| {
        let stopping = Stopping { rule, min: 1, max: 20 };
        let model = DraftModel::new(Box::new(draft.clone()));
        let mut drafter = ChainDrafter::new(model, stopping, Pick::Largest).unwrap();
        let mut verifier = GreedyTree;
        Decoder::new(&mut target, &mut drafter, &mut verifier, limits.clone())
            .unwrap()
            .generate(&[0, 0])
            .unwrap()
    };
    let longest = run(Stop::Fixed(20));
    let script: Vec<usize> = longest.rounds.iter().map(|round| round.accepted.max(1)).collect();
    let oracle = run(Stop::Script(script));
    assert_eq!(oracle.tokens, longest.tokens);
    let discarded = |out: &Generation| out.ledger.drafted - out.ledger.accepted;
    assert_eq!(oracle.ledger.rounds, longest.ledger.rounds, "as few verifications as the longest drafts");
    assert!(discarded(&oracle) <= oracle.rounds.iter().filter(|round| round.accepted == 0).count() as u64);
    for k in 1..8 {
        let fixed = run(Stop::Fixed(k));
        assert!(fixed.ledger.rounds >= oracle.ledger.rounds && discarded(&fixed) >= discarded(&oracle));
    }
}

#[test]
fn two_kinds_of_rounds() {
    // Rounds whose acceptance is .95 or .40 with equal chance, known beforehand; speed = tokens/(1 + c K).
    let tokens = |a: f64, k: i32| (1.0 - a.powi(k + 1)) / (1.0 - a);
    for (c, fixed, best_k, adaptive, ks) in
        [(0.1, 2.5909, 12, 3.5582, (20, 1)), (0.2, 1.7494, 7, 2.4449, (13, 0))]
    {
        let speed = |a: i32, b: i32| (tokens(0.95, a) + tokens(0.4, b)) / (2.0 + c * f64::from(a + b));
        let best = (0..=20).max_by(|&a, &b| speed(a, a).total_cmp(&speed(b, b))).unwrap();
        assert_eq!(best, best_k);
        assert!((speed(best, best) - fixed).abs() < 5e-5, "{}", speed(best, best));
        assert!((speed(ks.0, ks.1) - adaptive).abs() < 5e-5, "{}", speed(ks.0, ks.1));
    }
}

#[test]
fn labels_and_examples() {
    let (mut target, draft) = pair();
    let mut rng = Streams::new(1).stream("train");
    // Independent of the text but for its last token: the mean label is 1 - TV of the rows visited.
    let mut hidden = Hidden::new(draft.clone());
    let response: Vec<Token> = (0..3000).map(|i| (i * 7 % 3) as Token).collect();
    let found = examples(&mut target, &mut hidden, &[0], &response, &sampler(), 0.0, &mut rng).unwrap();
    assert_eq!(found.len(), 3000, "nothing mixed: every token is drafted");
    let mean = found.iter().map(|example| example.label).sum::<f64>() / 3000.0;
    let overlap = |last: Token| 1.0 - target.next(&[last]).total_variation(&draft.next(&[last]));
    let want =
        (0..3000).map(|i| if i == 0 { overlap(0) } else { overlap(response[i - 1]) }).sum::<f64>() / 3000.0;
    assert!((mean - want).abs() < 0.03, "{mean} {want}");
    assert!(found.iter().all(|example| example.state.iter().sum::<f32>() == 1.0));
    // By hand: p = .3, q = .6 -> .5; p > q -> 1.
    let by_hand = [0.5, 1.0, 1.0];
    for (index, example) in found.iter().skip(1).enumerate() {
        if response[index] == 0 {
            let y = example.state.iter().position(|&x| x == 1.0).unwrap();
            assert!((example.label - by_hand[y]).abs() < 1e-6);
        }
    }
    // All mixed in: only tokens that the draft happens to repeat are left.
    let kept = examples(&mut target, &mut hidden, &[0], &response, &sampler(), 1.0, &mut rng).unwrap();
    assert!(kept.len() < 2000 && !kept.is_empty());
    let mut plain = draft.clone();
    assert!(
        examples(&mut target, &mut plain, &[0], &response, &sampler(), 0.1, &mut rng).is_err(),
        "no states"
    );
    assert!(examples(&mut target, &mut hidden, &[], &response, &sampler(), 0.1, &mut rng).is_err());
    assert!(examples(&mut target, &mut hidden, &[0], &response, &sampler(), f64::NAN, &mut rng).is_err());
    // A head trained on them knows which token is safe.
    let mut head = AcceptanceHead::zeros(HeadShape { width: 3, depth: 0, tied: true }).unwrap();
    let config = HeadTraining { rate: 0.05, epochs: 10, weight: 2.0, ..HeadTraining::default() };
    head.train(&found, &config).unwrap();
    for token in 0..3 {
        let mut state = [0.0; 3];
        state[token] = 1.0;
        let of: Vec<f64> = found.iter().filter(|e| e.state[token] == 1.0).map(|e| e.label).collect();
        let mean = of.iter().sum::<f64>() / of.len() as f64;
        let got = calibrated(head.acceptance(&state), 2.0);
        assert!((got - mean).abs() < 0.05, "{token}: {got} {mean}");
    }
}

#[test]
fn bad_numbers_are_refused() {
    let new = |rule: Stop, min: usize, max: usize| {
        let model = DraftModel::new(Box::new(Hidden::new(counting(4))));
        ChainDrafter::new(model, Stopping { rule, min, max }, Pick::Largest).is_err()
    };
    assert!(!new(Stop::Fixed(1), 1, 1));
    assert!(new(Stop::Fixed(0), 1, 1) && new(Stop::Fixed(1), 0, 1) && new(Stop::Fixed(1), 2, 1));
    assert!(new(Stop::Confidence(f64::NAN), 1, 2) && new(Stop::Cumulative(1.5), 1, 2));
    let head = |width| Box::new(AcceptanceHead::zeros(HeadShape { width, depth: 0, tied: true }).unwrap());
    assert!(!new(Stop::Head { head: head(4), threshold: 0.7 }, 2, 20));
    assert!(new(Stop::Head { head: head(5), threshold: 0.7 }, 2, 20), "another width");
    assert!(new(Stop::Head { head: head(4), threshold: -0.1 }, 2, 20));
    let plain = DraftModel::new(Box::new(counting(4)));
    let stopping = Stopping { rule: Stop::Head { head: head(4), threshold: 0.7 }, ..Stopping::default() };
    assert!(ChainDrafter::new(plain, stopping, Pick::Largest).is_err(), "no states");
}
