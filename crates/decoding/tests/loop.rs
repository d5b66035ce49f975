//! The loop on models whose every probability is known.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use pilotfish_decoding::*;
use pilotfish_model::sampling::{Distribution, Warpers};
use pilotfish_model::toy::{CountingModel, TableModel};
use pilotfish_model::{CausalModel, Steps, StreamRng, Streams, Token, TokenTree};
use rand::Rng;

/// A drafter that proposes random trees, or whatever its function makes.
struct Made<F>(F);

impl<F: FnMut(&[Token]) -> TokenTree + Send> Drafter for Made<F> {
    fn name(&self) -> String {
        "made".into()
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        Ok((self.0)(ask.text).into())
    }
}

fn random_tree(rng: &mut StreamRng, root: Token, vocab: Token) -> TokenTree {
    let mut tree = TokenTree::new(root);
    for _ in 0..rng.random_range(0..20) {
        let parent = rng.random_range(0..tree.len());
        tree.push(parent, rng.random_range(0..vocab)).expect("exists");
    }
    tree
}

fn limits(new_tokens: usize) -> Limits {
    Limits { new_tokens, ..Limits::default() }
}

fn lengths(generation: &Generation) -> Vec<usize> {
    generation.rounds.iter().map(|round| round.added).collect()
}

fn run(
    model: &mut dyn CausalModel,
    drafter: &mut dyn Drafter,
    prompt: &[Token],
    limits: Limits,
) -> Generation {
    Decoder::new(model, drafter, &mut GreedyTree, limits).expect("valid").generate(prompt).expect("runs")
}

#[test]
fn greedy_speculation_is_plain_greedy() {
    let streams = Streams::new(5);
    for seed in 0..20 {
        let mut rng = streams.fork(seed).stream("test");
        let mut model = TableModel::random(2, 6, 2.0, &mut rng).expect("small");
        let prompt: Vec<Token> = (0..5).map(|_| rng.random_range(0..6)).collect();
        let plain = run(&mut model, &mut Nothing, &prompt, limits(60));
        assert_eq!(lengths(&plain), [1; 59]);
        let mut drafters: Vec<Box<dyn Drafter>> = vec![
            Box::new(PromptLookup::default()),
            Box::new(Made(move |text: &[Token]| random_tree(&mut rng, text[text.len() - 1], 6))),
            Box::new(Made(|text: &[Token]| TokenTree::new(text[text.len() - 1]))),
            // Always wrong by one, and far too deep.
            Box::new(Made(|text: &[Token]| TokenTree::chain(text[text.len() - 1], &[0; 200]))),
        ];
        for drafter in &mut drafters {
            let fast = run(&mut model, drafter.as_mut(), &prompt, limits(60));
            assert_eq!(fast.tokens, plain.tokens, "{}", drafter.name());
            let ledger = &fast.ledger;
            // The accounting identities.
            assert_eq!(lengths(&fast).iter().sum::<usize>() + 1, fast.tokens.len());
            assert_eq!(ledger.emitted as usize, fast.tokens.len());
            assert_eq!(ledger.target_forwards, ledger.rounds + 1);
            assert!(ledger.accepted <= ledger.drafted);
            assert_eq!(ledger.target_rows, prompt.len() as u64 + ledger.rounds + ledger.drafted);
            assert_eq!(
                model.len(),
                prompt.len() + fast.tokens.len() - 1,
                "the last token is not in the cache"
            );
        }
    }
}

#[test]
fn counting_reaches_the_maximum() {
    // An off-by-one anywhere between drafter, tree and verifier would lose tokens here.
    let mut model = CountingModel::new(50);
    let prompt: Vec<Token> = (0..60).map(|i| i % 50).collect();
    let config = PromptLookupConfig { draft: 7, ..PromptLookupConfig::default() };
    let fast = run(&mut model, &mut PromptLookup::new(config).expect("valid"), &prompt, limits(41));
    assert_eq!(lengths(&fast), [8; 5]);
    assert_eq!(fast.ledger.mean_accepted_tokens(), Some(8.0));
}

#[test]
fn texts_end_where_they_should() {
    let chain = |text: &[Token]| {
        let root = text[text.len() - 1];
        TokenTree::chain(root, &(1..9).map(|i| (root + i) % 20).collect::<Vec<_>>())
    };
    let mut model = CountingModel::new(20);
    let out = run(&mut model, &mut Made(chain), &[0], Limits { stop: vec![vec![4, 5]], ..limits(100) });
    assert_eq!((out.tokens.as_slice(), out.finish), (&[1, 2, 3, 4, 5][..], Finish::Stop));
    let out = run(&mut model, &mut Made(chain), &[0], limits(6));
    assert_eq!((out.tokens.as_slice(), out.finish), (&[1, 2, 3, 4, 5, 6][..], Finish::Length));
    let mut table =
        TableModel::new(1, 3, vec![0., 1., 0., 0., 0., 1., 1., 0., 0.]).expect("valid").with_end(vec![2]);
    let draft = |text: &[Token]| TokenTree::chain(text[text.len() - 1], &[2, 0, 1]);
    let out = run(&mut table, &mut Made(draft), &[0], limits(50));
    assert_eq!(
        (out.tokens.as_slice(), out.finish),
        (&[1, 2][..], Finish::Stop),
        "nothing after an accepted end"
    );
    let mut short = TableModel::new(1, 2, vec![0., 1., 1., 0.]).expect("valid").with_context(8);
    let draft = |text: &[Token]| TokenTree::chain(text[text.len() - 1], &[0, 1, 0, 1, 0, 1, 0, 1]);
    let out = run(&mut short, &mut Made(draft), &[0, 1], limits(50));
    assert_eq!((out.tokens.len(), out.finish), (6, Finish::Context));
}

#[test]
fn bad_input_is_refused() {
    let mut model = CountingModel::new(5);
    let mut table = TableModel::new(1, 2, vec![1.; 4]).expect("valid").with_context(3);
    let mut wrong = Made(|_: &[Token]| TokenTree::new(4));
    let decode = |model: &mut dyn CausalModel, drafter: &mut dyn Drafter, prompt: &[Token]| {
        Decoder::new(model, drafter, &mut GreedyTree, limits(5)).expect("valid").generate(prompt)
    };
    assert!(matches!(decode(&mut model, &mut Nothing, &[]), Err(DecodingError::EmptyPrompt)));
    assert!(matches!(decode(&mut table, &mut Nothing, &[0, 1, 0]), Err(DecodingError::PromptTooLong { .. })));
    assert!(matches!(decode(&mut model, &mut Nothing, &[7]), Err(DecodingError::Model(_))));
    assert!(matches!(decode(&mut model, &mut wrong, &[0]), Err(DecodingError::WrongRoot { .. })));
    let mut garbage = Made(|text: &[Token]| TokenTree::chain(text[text.len() - 1], &[77]));
    assert!(matches!(decode(&mut model, &mut garbage, &[0]), Err(DecodingError::Model(_))));
    assert!(Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits(0)).is_err());
}

#[test]
fn observers_stream_and_break_off() {
    let mut model = CountingModel::new(9);
    let mut seen = Vec::new();
    let out = Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits(50))
        .expect("valid")
        .generate_with(&[0], |round| {
            seen.extend_from_slice(round.tokens);
            if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("runs");
    assert_eq!((out.finish, &out.tokens), (Finish::Cancelled, &seen));
    assert_eq!(model.len(), 3, "prompt and all but the last token");
}

/// Decisions that are explored instead of drawn.
#[derive(Clone, Default)]
struct Explorer(Arc<Mutex<Branch>>);

#[derive(Default)]
struct Branch {
    /// The token that each choice of this branch takes, and out of how many.
    script: Vec<(Token, usize)>,
    /// Choices made so far.
    made: usize,
    weight: f64,
}

impl Choose for Explorer {
    fn choose(&mut self, distribution: &Distribution) -> Token {
        let mut branch = self.0.lock().expect("one thread");
        let at = branch.made;
        branch.made += 1;
        if at == branch.script.len() {
            branch.script.push((0, distribution.probs().len()));
        }
        let (token, _) = branch.script[at];
        branch.weight *= distribution.prob(token);
        token
    }

    fn accept(&mut self, probability: f64) -> bool {
        let coin = Distribution::from_weights(vec![1.0 - probability, probability]).expect("a probability");
        self.choose(&coin) == 1
    }
}

/// The law of the first three tokens over a vocabulary of 4, exactly, by taking every branch of the verifier's
/// choices.
fn exact_law(model: &mut TableModel, drafter: &mut dyn Drafter, redraw: bool) -> Vec<f64> {
    let mut law = vec![0.0; 64];
    let explorer = Explorer::default();
    loop {
        {
            let mut branch = explorer.0.lock().expect("one thread");
            (branch.made, branch.weight) = (0, 1.0);
        }
        let sampler = Warpers { top_k: Some(3), ..Warpers::temperature(0.7) }.check().expect("valid");
        let mut verifier: Box<dyn Verifier> = match redraw {
            false => Box::new(SampleAndMatch::with_choose(sampler, Box::new(explorer.clone()))),
            true => Box::new(Redraw(sampler, explorer.clone())),
        };
        let mut decoder = Decoder::new(model, drafter, verifier.as_mut(), limits(3)).expect("valid");
        let out = decoder.generate(&[0, 1]).expect("runs");
        let mut branch = explorer.0.lock().expect("one thread");
        law[out.tokens.iter().fold(0, |at, &token| 4 * at + token as usize)] += branch.weight;
        let made = branch.made;
        branch.script.truncate(made);
        // The next branch: the last choice that has another token left.
        loop {
            match branch.script.pop() {
                None => return law,
                Some((last, options)) if (last as usize) + 1 < options => {
                    branch.script.push((last + 1, options));
                    break;
                }
                Some(_) => {}
            }
        }
    }
}

/// A known-wrong variant: when the drawn token was not proposed, it is drawn again.
struct Redraw(pilotfish_model::sampling::Sampler, Explorer);

impl Verifier for Redraw {
    fn name(&self) -> &'static str {
        "redraw"
    }

    fn lossless(&self) -> bool {
        false
    }

    fn takes(&self, _: Drawn) -> bool {
        true
    }

    fn sampler(&self) -> pilotfish_model::sampling::Sampler {
        self.0
    }

    fn form(&self) -> pilotfish_model::LogitForm {
        pilotfish_model::LogitForm::Full
    }

    fn verify(&mut self, context: &Context<'_>) -> Result<Verdict> {
        let row = context.logits.row(0).expect("full");
        let law = self.0.distribution(row, context.text)?;
        let drawn = self.1.choose(&law);
        let tree = context.draft.tree();
        let proposed = tree.children(0).any(|child| tree.token(child) == drawn);
        let next = if proposed || tree.len() == 1 { drawn } else { self.1.choose(&law) };
        Ok(Verdict { path: vec![], next })
    }
}

#[test]
fn sampling_keeps_the_law_exactly() {
    let mut rng = Streams::new(11).stream("test");
    let mut model = TableModel::random(1, 4, 1.5, &mut rng).expect("small");
    let sampler = Warpers { top_k: Some(3), ..Warpers::temperature(0.7) }.check().expect("valid");
    let row = |model: &TableModel, text: &[Token]| {
        let logits: Vec<f32> = model.next(text).probs().iter().map(|p| p.ln() as f32).collect();
        sampler.distribution(&logits, text).expect("finite")
    };
    let first = row(&model, &[0, 1]);
    let want: Vec<f64> = (0..64u32)
        .map(|i| {
            let [a, b, c] = [i / 16, i / 4 % 4, i % 4];
            first.prob(a) * row(&model, &[0, 1, a]).prob(b) * row(&model, &[0, 1, a, b]).prob(c)
        })
        .collect();
    let tree = |text: &[Token]| {
        let mut tree = TokenTree::new(text[text.len() - 1]);
        for token in [2, 0] {
            tree.push(0, token).expect("exists");
        }
        tree
    };
    let distance = |law: &[f64]| law.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let law = exact_law(&mut model, &mut Made(tree), false);
    assert!(distance(&law) < 1e-12, "{law:?} is not {want:?}");
    let plain = exact_law(&mut model, &mut Nothing, false);
    assert!(distance(&plain) < 1e-12);
    let wrong = exact_law(&mut model, &mut Made(tree), true);
    assert!(distance(&wrong) > 1e-2, "drawing again must be caught");
}

/// A drafter that breaks its promises.
struct Liar(Drawn, bool);

impl Drafter for Liar {
    fn name(&self) -> String {
        "liar".into()
    }

    fn drawn(&self) -> Drawn {
        self.0
    }

    fn needs(&self) -> Needs {
        Needs { logits: Some(pilotfish_model::LogitForm::TopK(2)), taps: vec![] }
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        if self.1 {
            ask.model.step(&pilotfish_model::Step::chain(&[0]))?;
        }
        Ok(TokenTree::chain(ask.root(), &[1]).into())
    }
}

#[test]
fn drafters_are_held_to_what_they_say() {
    let mut model = CountingModel::new(5);
    let sampler = Warpers::temperature(1.0).check().expect("valid");
    let mut exact = Recursive::new(sampler, Streams::new(1));
    let mut liar = Liar(Drawn::WithReplacement, false);
    let made = Decoder::new(&mut model, &mut liar, &mut exact, limits(5)).err();
    assert!(matches!(made, Some(DecodingError::Mismatch { .. })), "{made:?}");
    let mut liar = Liar(Drawn::WithoutReplacement, false);
    let made = Decoder::new(&mut model, &mut liar, &mut exact, limits(5)).expect("fits").generate(&[0]).err();
    assert!(matches!(made, Some(DecodingError::WrongDraw { .. })), "{made:?}");
    let mut liar = Liar(Drawn::Fixed, true);
    let made =
        Decoder::new(&mut model, &mut liar, &mut GreedyTree, limits(5)).expect("fits").generate(&[0]).err();
    assert!(matches!(made, Some(DecodingError::CacheTouched { got: 2, want: 1, .. })), "{made:?}");
    assert_eq!(model.len(), 1, "committed tokens only");
}

/// Breaks off the loop when it is asked for the third draft, or when the third is observed.
struct Quits(std::sync::atomic::AtomicUsize, std::sync::Arc<std::sync::atomic::AtomicBool>, bool);

impl Drafter for Quits {
    fn name(&self) -> String {
        "quits".into()
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let asked = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        self.1.store(self.2 && asked == 3, std::sync::atomic::Ordering::Relaxed);
        Ok(TokenTree::chain(ask.root(), &[(ask.root() + 1) % 9]).into())
    }

    fn observe(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        assert_eq!(outcome.path, [1]);
        assert_eq!(outcome.added, 2);
        assert_eq!(outcome.logits.rows(), 2);
        let asked = self.0.load(std::sync::atomic::Ordering::Relaxed);
        self.1.store(asked == 3, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn cancellation_leaves_committed_tokens_only() {
    for (early, tokens) in [(true, 5), (false, 7)] {
        let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut model = CountingModel::new(9);
        let mut drafter = Quits(0.into(), flag.clone(), early);
        let out = Decoder::new(&mut model, &mut drafter, &mut GreedyTree, limits(50))
            .expect("valid")
            .cancelled_by(&flag)
            .generate(&[0])
            .expect("runs");
        assert_eq!((out.finish, out.tokens.len()), (Finish::Cancelled, tokens));
        assert_eq!(model.len(), tokens, "prompt and all but the last token");
        assert_eq!(out.ledger.emitted as usize, tokens);
        let out = Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits(50))
            .expect("valid")
            .cancelled_by(&std::sync::atomic::AtomicBool::new(true))
            .generate(&[0])
            .expect("runs");
        assert_eq!((out.finish, out.tokens.len(), model.len()), (Finish::Cancelled, 0, 0));
    }
}

#[test]
fn an_end_inside_an_accepted_run_leaves_nothing_behind() {
    let table = TableModel::new(1, 3, vec![0., 1., 0., 0., 0., 1., 1., 0., 0.]).expect("valid");
    let mut table = table.with_end(vec![2]);
    let draft = |text: &[Token]| TokenTree::chain(text[text.len() - 1], &[2, 0, 1]);
    let out = run(&mut table, &mut Made(draft), &[0], limits(50));
    assert_eq!(out.tokens, [1, 2]);
    assert_eq!(table.len(), 2, "0 1: the end token and what followed it are not in the cache");
    assert_eq!(out.rounds, [RoundRecord { drafted: 3, depth: 3, accepted: 1, added: 1 }]);
    assert_eq!((out.ledger.accepted, out.ledger.emitted), (1, 2));
}

/// Token 0 is "a", 1 is "b" and so on.
struct Letters;

impl Detokenize for Letters {
    fn text(&self, tokens: &[Token]) -> Result<String> {
        Ok(tokens.iter().map(|&token| char::from(b'a' + token as u8)).collect())
    }
}

#[test]
fn stop_strings_end_a_text_wherever_they_are() {
    let chain = |text: &[Token]| {
        let root = text[text.len() - 1];
        TokenTree::chain(root, &(1..9).map(|i| (root + i) % 20).collect::<Vec<_>>())
    };
    let mut model = CountingModel::new(20);
    for (stop, text, tokens) in [
        (&["ef"][..], "bcd", 5),
        (&["e", "cd"], "b", 3),
        (&["zz"], "bcdefghijk", 10),
        (&[], "bcdefghijk", 10),
    ] {
        let mut drafter = Made(chain);
        let mut streamed = String::new();
        let out = Decoder::new(&mut model, &mut drafter, &mut GreedyTree, limits(10))
            .expect("valid")
            .with_text(&Letters, stop)
            .generate_with(&[0], |round| {
                streamed.push_str(round.text);
                ControlFlow::Continue(())
            })
            .expect("runs");
        assert_eq!((out.text.as_deref(), out.tokens.len()), (Some(text), tokens));
        assert_eq!(streamed, text);
        assert_eq!(out.finish, if tokens < 10 { Finish::Stop } else { Finish::Length });
        assert_eq!(model.len(), tokens, "prompt and all but the last token");
        let plain = Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits(10))
            .expect("valid")
            .with_text(&Letters, stop)
            .generate(&[0])
            .expect("runs");
        assert_eq!((plain.tokens, plain.text), (out.tokens, out.text));
    }
    // An end token is in the tokens, not in the text.
    let mut table =
        TableModel::new(1, 3, vec![0., 1., 0., 0., 0., 1., 1., 0., 0.]).expect("valid").with_end(vec![2]);
    let out = Decoder::new(&mut table, &mut Nothing, &mut GreedyTree, limits(50))
        .expect("valid")
        .with_text(&Letters, &["c"])
        .generate(&[0])
        .expect("runs");
    assert_eq!((out.tokens, out.text.as_deref()), (vec![1, 2], Some("b")));
}

#[test]
fn a_policy_changes_what_is_spent_and_nothing_else() {
    let mut rng = Streams::new(9).stream("test");
    let mut model = TableModel::random(2, 6, 3.0, &mut rng).expect("small");
    let prompt = [0, 1, 2];
    let plain = run(&mut model, &mut Nothing, &prompt, limits(200));
    let mut drafter = Made(move |text: &[Token]| random_tree(&mut rng, text[text.len() - 1], 6));
    let wild = run(&mut model, &mut drafter, &prompt, limits(200));
    // Rows cost in proportion: nothing can pay, and nothing is verified.
    let steep = WidthCurve::new(&[(1, 1.0), (2, 2.0)]).expect("valid");
    for (curve, most) in [(WidthCurve::flat(), wild.ledger.target_rows), (steep, 203)] {
        let mut policy = CostAware::new(curve, CostAwareConfig::default()).expect("valid");
        let out = Decoder::new(&mut model, &mut drafter, &mut GreedyTree, limits(200))
            .expect("valid")
            .with_policy(&mut policy)
            .generate(&prompt)
            .expect("runs");
        assert_eq!(out.tokens, plain.tokens);
        assert!(out.ledger.target_rows <= most + most / 4, "{} rows, {most}", out.ledger.target_rows);
        assert_eq!(out.ledger.target_rows, 3 + out.ledger.rounds + out.ledger.drafted);
    }
}

#[test]
fn divergences_come_with_their_margin() {
    let mut model = CountingModel::new(6);
    assert_eq!(compare(&mut model, &[0], &[1, 2], &[1, 2]).expect("runs"), Identity::Identical);
    let parted = compare(&mut model, &[0], &[1, 2, 3], &[1, 5, 3]).expect("runs");
    assert_eq!(parted, Identity::Diverges { at: 1, margin: 10.0 });
}
