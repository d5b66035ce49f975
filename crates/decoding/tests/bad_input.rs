//! What a loop must survive: logits that are no numbers, and limits, prompts and drafters that make no sense. Every
//! failure is a typed error, and leaves nothing but committed tokens in the model's cache.
#![allow(clippy::unwrap_used)]

use pilotfish_decoding::drafters::{DraftModel, Rsd, Shape, TokenRecycling};
use pilotfish_decoding::*;
use pilotfish_model::sampling::{Sampler, Warpers};
use pilotfish_model::toy::{CountingModel, TableModel};
use pilotfish_model::{
    CausalModel, Logits, ModelError, ModelInfo, Parents, Step, StepOutput, Steps, Streams, Token, TokenTree,
};

/// A model that answers with this row, wherever it is asked, once it has given so many good answers.
struct Turns {
    good: TableModel,
    left: usize,
    row: Vec<f32>,
}

impl Steps for Turns {
    fn len(&self) -> usize {
        self.good.len()
    }

    fn step(&mut self, step: &Step<'_>) -> pilotfish_model::Result<StepOutput> {
        let mut answer = self.good.step(step)?;
        if self.left == 0 {
            let rows = self.row.repeat(answer.logits.rows());
            let logits = Logits::from_rows(rows, self.row.len(), step.form);
            if logits.is_err() {
                self.good.truncate(self.good.len() - step.rows())?;
            }
            answer.logits = logits?;
        }
        self.left = self.left.saturating_sub(1);
        Ok(answer)
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> pilotfish_model::Result<()> {
        self.good.keep(from, rows)
    }

    fn truncate(&mut self, len: usize) -> pilotfish_model::Result<()> {
        self.good.truncate(len)
    }
}

impl CausalModel for Turns {
    fn info(&self) -> &ModelInfo {
        self.good.info()
    }
}

fn table() -> TableModel {
    TableModel::random(1, 4, 1.0, &mut Streams::new(1).stream("test")).unwrap()
}

/// Every verifier with a drafter whose drafts it takes.
fn loops(temperature: f64) -> Vec<(Box<dyn Verifier>, Box<dyn Drafter>)> {
    let sampler = if temperature > 0.0 {
        Warpers::temperature(temperature).check().unwrap()
    } else {
        Sampler::greedy()
    };
    let streams = Streams::new(3);
    let drawn = |shape| -> Box<dyn Drafter> {
        Box::new(Rsd::new(DraftModel::new(Box::new(table())), shape, streams).unwrap())
    };
    let fixed = || -> Box<dyn Drafter> { Box::new(TokenRecycling::new(4, Default::default()).unwrap()) };
    let tree = || drawn(Shape::Constant(vec![2, 2]));
    vec![
        (Box::new(GreedyTree), fixed()),
        (Box::new(SampleAndMatch::new(sampler, streams)), fixed()),
        (Box::new(SpeculativeChain::new(sampler, streams)), drawn(Shape::Constant(vec![1, 1]))),
        (Box::new(MultiStep::new(sampler, streams)), drawn(Shape::Paths { count: 2, depth: 2 })),
        (Box::new(Recursive::new(sampler, streams)), tree()),
        (
            Box::new(
                Typical::new(Warpers::temperature(1.0).check().unwrap(), Default::default(), streams)
                    .unwrap(),
            ),
            fixed(),
        ),
    ]
}

fn limits(new_tokens: usize) -> Limits {
    Limits { new_tokens, ..Limits::default() }
}

#[test]
fn logits_that_are_no_numbers() {
    let rows =
        [[0.0, f32::NAN, 1.0, 0.0], [f32::NAN; 4], [0.0, f32::INFINITY, 1.0, 0.0], [f32::NEG_INFINITY; 4]];
    for temperature in [0.0, 0.7] {
        for row in rows {
            for left in [0, 1, 3] {
                for (mut verifier, mut drafter) in loops(temperature) {
                    let mut model = Turns { good: table(), left, row: row.to_vec() };
                    let mut seen = 0;
                    let failed = Decoder::new(&mut model, drafter.as_mut(), verifier.as_mut(), limits(40))
                        .unwrap()
                        .generate_with(&[0, 1], |round| {
                            seen += round.tokens.len();
                            std::ops::ControlFlow::Continue(())
                        });
                    let what = verifier.name();
                    assert!(
                        matches!(failed, Err(DecodingError::Model(ModelError::NotFinite { .. }))),
                        "{what}, {row:?}: {failed:?}"
                    );
                    // All committed tokens but the last; a prompt that gave none may have been read.
                    let want = 2 + seen.saturating_sub(1);
                    assert!(model.len() == want || seen == 0 && model.len() <= 2, "{what}: {}", model.len());
                }
            }
        }
    }
}

#[test]
fn logits_without_a_preference() {
    for row in [[0.0; 4], [1e30; 4], [-1e30; 4], [f32::MIN_POSITIVE / 4.0; 4]] {
        for (mut verifier, mut drafter) in loops(0.0) {
            let mut model = Turns { good: table(), left: 0, row: row.to_vec() };
            let out = Decoder::new(&mut model, drafter.as_mut(), verifier.as_mut(), limits(9))
                .unwrap()
                .generate(&[1])
                .unwrap();
            assert_eq!(out.tokens.len(), 9);
            assert!(
                verifier.name() == "typical acceptance (lossy)" || out.tokens == [0; 9],
                "{}",
                verifier.name()
            );
        }
        for (mut verifier, mut drafter) in loops(1e-4) {
            let mut model = Turns { good: table(), left: 0, row: row.to_vec() };
            let mut decoder =
                Decoder::new(&mut model, drafter.as_mut(), verifier.as_mut(), limits(200)).unwrap();
            let mut tokens = decoder.generate(&[1]).unwrap().tokens;
            tokens.sort_unstable();
            tokens.dedup();
            assert!(verifier.name() == "greedy" || tokens == [0, 1, 2, 3], "{}", verifier.name());
        }
    }
}

#[test]
fn one_token_allowed() {
    // A mask that leaves one token, which drafts do not know about.
    let mut row = [f32::NEG_INFINITY; 4];
    row[3] = -2.0;
    for temperature in [0.0, 1.5] {
        for (mut verifier, mut drafter) in loops(temperature) {
            let mut model = Turns { good: table(), left: 0, row: row.to_vec() };
            let mut decoder =
                Decoder::new(&mut model, drafter.as_mut(), verifier.as_mut(), limits(20)).unwrap();
            assert_eq!(decoder.generate(&[1]).unwrap().tokens, [3; 20], "{}", verifier.name());
        }
    }
}

/// A drafter that misbehaves from its third request on.
struct Breaks {
    asked: usize,
    how: fn(&mut Ask<'_>) -> Result<Draft>,
}

impl Drafter for Breaks {
    fn name(&self) -> String {
        "breaks".into()
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        self.asked += 1;
        if self.asked >= 3 {
            (self.how)(ask)
        } else {
            Ok(TokenTree::chain(ask.root(), &[(ask.root() + 1) % 9]).into())
        }
    }
}

#[test]
fn drafters_that_break() {
    let run = |how: fn(&mut Ask<'_>) -> Result<Draft>| {
        let mut model = CountingModel::new(9);
        let mut drafter = Breaks { asked: 0, how };
        let out = Decoder::new(&mut model, &mut drafter, &mut GreedyTree, limits(30)).unwrap().generate(&[0]);
        (out, model.len())
    };
    // The prompt and five tokens, the last of which is not in the cache.
    let (failed, rows) = run(|_| Err(DecodingError::NotRun { node: 7 }));
    assert!(matches!(failed, Err(DecodingError::NotRun { node: 7 })) && rows == 5, "{failed:?}");
    let (failed, rows) = run(|ask| {
        ask.model.step(&Step::chain(&[1, 2]))?;
        Err(DecodingError::NotRun { node: 8 })
    });
    assert!(matches!(failed, Err(DecodingError::NotRun { node: 8 })) && rows == 5, "{failed:?} {rows}");
    let (failed, rows) = run(|ask| Ok(TokenTree::chain(ask.root(), &[1 << 30]).into()));
    assert!(matches!(failed, Err(DecodingError::Model(ModelError::TokenOutOfRange { .. }))) && rows == 5);
    let (failed, rows) = run(|_| Ok(TokenTree::new(8).into()));
    assert!(matches!(failed, Err(DecodingError::WrongRoot { .. })) && rows == 5);
    // Nothing, and far too much: neither is an error.
    let (out, _) = run(|ask| Ok(Draft::none(ask.root())));
    assert_eq!(out.unwrap().tokens.len(), 30);
    let (out, _) = run(|ask| {
        let mut tree = TokenTree::new(ask.root());
        for node in 0..100_000 {
            tree.push(node / 2, (ask.root() + 1) % 9)?;
        }
        Ok(tree.into())
    });
    let out = out.unwrap();
    assert!(out.tokens.len() == 30 && out.rounds.iter().all(|round| round.drafted <= 64));
}

#[test]
fn trees_and_caches_that_cannot_be() {
    let mut tree = TokenTree::new(1);
    assert!(tree.push(1, 2).is_err() && tree.push(usize::MAX, 2).is_err(), "no parent but an earlier node");
    let mut model = CountingModel::new(9);
    model.step(&Step::chain(&[0, 1, 2])).unwrap();
    let own = [Some(2), Some(4)];
    let step = Step { parents: Parents::Rows(&own), ..Step::chain(&[3, 4]) };
    assert!(model.step(&step).is_err(), "a row that is its own parent");
    assert!(model.step(&Step::chain(&[])).is_err());
    assert!(model.truncate(4).is_err() && model.keep(4, &[]).is_err() && model.keep(1, &[0]).is_err());
    assert!(model.keep(1, &[3]).is_err() && model.keep(0, &[1]).is_err(), "rows that are not there");
    assert_eq!(model.len(), 3, "as it was");
}

#[test]
fn contexts_that_are_full() {
    // Room for one token, or none, while a draft would fill far more.
    let chain = |ask: &mut Ask<'_>| -> Result<Draft> {
        Ok(TokenTree::chain(ask.root(), &(1..20).map(|i| (ask.root() + i) % 4).collect::<Vec<Token>>())
            .into())
    };
    for context in 3..12 {
        let mut model = table().with_context(context);
        let mut drafter = Breaks { asked: 9, how: chain };
        let mut verifier = GreedyTree;
        let mut decoder = Decoder::new(&mut model, &mut drafter, &mut verifier, limits(50)).unwrap();
        let out = decoder.generate(&[0, 1]).unwrap();
        assert_eq!((out.tokens.len(), out.finish), (context - 2, Finish::Context));
        for prompt in [context, context + 1] {
            let refused = decoder.generate(&vec![0; prompt]);
            assert!(matches!(refused, Err(DecodingError::PromptTooLong { .. })));
        }
        assert!(matches!(decoder.generate(&[]), Err(DecodingError::EmptyPrompt)));
    }
    for zero in [Limits { new_tokens: 0, ..limits(1) }, Limits { prefill_rows: 0, ..limits(1) }] {
        assert!(Decoder::new(&mut table(), &mut Nothing, &mut GreedyTree, zero).is_err());
    }
    // No room for drafts is plain decoding.
    let mut drafter = Breaks { asked: 9, how: chain };
    let none = Limits { draft: 0, ..limits(8) };
    let out =
        Decoder::new(&mut table(), &mut drafter, &mut GreedyTree, none).unwrap().generate(&[0]).unwrap();
    assert_eq!((out.tokens.len(), out.ledger.drafted), (8, 0));
}
