//! Speculative decoding on SmolLM2: the laws of first tokens, greedy identity, masks and cache.
#![allow(clippy::unwrap_used)]

use pilotfish_architectures::{Checkpoint, Message};
use pilotfish_conformance::{
    Explorer, Law, ModelChecks, Subject, adversaries, check_model, distance, draw, own, violations,
};
use pilotfish_decoding::drafters::{Aded, AdedDrafter, Recycling, SuffixLookup, TokenRecycling, Trigrams};
use pilotfish_decoding::{
    Context, CostAware, CostAwareConfig, Decoder, Drafter, GreedyTree, Identity, Limits, Nothing, WidthCurve,
    compare,
};
use pilotfish_evaluation::prompts;
use pilotfish_model::sampling::{Distribution, Sampler, Warpers};
use pilotfish_model::{CausalModel, LogitForm, Logits, RowSet, Step, Steps, Streams, Token, TokenTree};
use pilotfish_runtime::{LoadOptions, OnnxCausal};
use pilotfish_tests::smollm2;

fn model(checkpoint: &Checkpoint) -> OnnxCausal {
    OnnxCausal::from_checkpoint(checkpoint, &LoadOptions::default().threads(1)).unwrap()
}

fn encode(checkpoint: &Checkpoint, text: &str) -> Vec<Token> {
    let template = checkpoint.chat_template().unwrap().unwrap();
    let text = template.render(&[Message::user(text)], true).unwrap();
    checkpoint.tokenizer().unwrap().encode(&text, false).unwrap()
}

/// The law of the first two tokens of one round, over every draw of the draft and every decision of the verifier.
/// `rows` are the target's logits after the prompt and after each token that can follow.
fn round_law(
    subject: &Subject,
    sampler: Sampler,
    prompt: &[Token],
    q: &Distribution,
    rows: &[(Option<Token>, Vec<f32>)],
    p: impl Fn(Token) -> Distribution,
) -> Law<Vec<Token>> {
    let children = 2.min(subject.children);
    let law = Explorer::explore(|explorer| {
        let draft = draw(prompt, &[children], subject.drawn, explorer, |_| Ok(q.clone())).unwrap();
        let tree = draft.tree();
        let row = |node: usize| {
            let token = (node > 0).then(|| tree.token(node));
            &rows.iter().find(|(after, _)| *after == token).unwrap().1
        };
        let full: Vec<f32> = (0..tree.len()).flat_map(|node| row(node).iter().copied()).collect();
        let logits = Logits::from_rows(full, q.probs().len(), LogitForm::Full).unwrap();
        let mut verifier = (subject.make)(sampler, Box::new(explorer.clone()));
        let verdict = verifier.verify(&Context { text: prompt, draft: &draft, logits: &logits }).unwrap();
        let mut tokens: Vec<Token> = verdict.path.iter().map(|&node| tree.token(node)).collect();
        tokens.push(verdict.next);
        tokens
    });
    let mut pairs = Law::new();
    for (tokens, weight) in law {
        if let [first] = tokens[..] {
            // The next round's token: the target's own law.
            for (token, &prob) in p(first).probs().iter().enumerate().filter(|&(_, &prob)| prob > 0.0) {
                *pairs.entry(vec![first, token as Token]).or_insert(0.0) += weight * prob;
            }
        } else {
            *pairs.entry(tokens).or_insert(0.0) += weight;
        }
    }
    pairs
}

#[test]
fn the_first_round_follows_the_targets_law() {
    let checkpoint = smollm2();
    let mut model = model(&checkpoint);
    let prompt = encode(&checkpoint, "Name an animal.");
    let (&root, before) = prompt.split_last().unwrap();
    model.step(&Step::chain(before).want(RowSet::None)).unwrap();
    let rows_after = model.len();
    let root_row = model.step(&Step::chain(&[root])).unwrap().logits.row(0).unwrap().to_vec();
    model.truncate(rows_after).unwrap();
    for (temperature, top_k, top_p) in
        [(0.5, 6, None), (1.0, 5, Some(0.9)), (1.5, 4, None), (1.5, 6, Some(0.8))]
    {
        let warpers = Warpers { top_k: Some(top_k), top_p, ..Warpers::temperature(temperature) };
        let sampler = warpers.check().unwrap();
        // The draft is hotter and knows fewer tokens: some have no draft probability.
        let draft_sampler =
            Warpers { top_k: Some(4), ..Warpers::temperature(temperature + 0.7) }.check().unwrap();
        let first = sampler.distribution(&root_row, &prompt).unwrap();
        let q = draft_sampler.distribution(&root_row, &prompt).unwrap();
        let possible: Vec<Token> = (0..first.probs().len() as Token)
            .filter(|&token| first.prob(token) > 0.0 || q.prob(token) > 0.0)
            .collect();
        // All tokens that can come first, in one step over a tree, as the loop would ask.
        let mut tree = TokenTree::new(root);
        possible.iter().for_each(|&token| {
            tree.push(0, token).unwrap();
        });
        let answer = model.step(&Step::tree(tree.tokens(), &tree.parents(rows_after))).unwrap();
        model.truncate(rows_after).unwrap();
        let row = |node: usize| answer.logits.row(node).unwrap().to_vec();
        let rows: Vec<(Option<Token>, Vec<f32>)> = std::iter::once((None, row(0)))
            .chain(possible.iter().enumerate().map(|(index, &token)| (Some(token), row(index + 1))))
            .collect();
        let p = |token: Token| {
            let history: Vec<Token> = prompt.iter().copied().chain([token]).collect();
            let row = &rows.iter().find(|(after, _)| *after == Some(token)).unwrap().1;
            sampler.distribution(row, &history).unwrap()
        };
        let root_law = sampler.distribution(&rows[0].1, &prompt).unwrap();
        let mut truth = Law::new();
        for &token in possible.iter().filter(|&&token| root_law.prob(token) > 0.0) {
            for (next, &prob) in p(token).probs().iter().enumerate().filter(|&(_, &prob)| prob > 0.0) {
                truth.insert(vec![token, next as Token], root_law.prob(token) * prob);
            }
        }
        for subject in own() {
            let law = round_law(&subject, sampler, &prompt, &q, &rows, p);
            let worst = distance(&law, &truth);
            assert!(worst < 1e-12, "{} at {warpers:?}: {worst:e}", subject.name);
        }
        // A row computed alone says the same: the law is the plain decoder's.
        let worst = root_law.total_variation(&first);
        assert!(worst < 1e-4, "{worst}");
    }
}

#[test]
fn trees_and_cache_are_what_they_should_be() {
    let checkpoint = smollm2();
    let mut model = model(&checkpoint);
    let (nodes, prefixes) =
        if cfg!(feature = "slow") { (vec![2, 5, 16, 64], vec![0, 1, 17]) } else { (vec![2, 9], vec![0, 17]) };
    // Logits of a model of 30 layers: sums in another order differ in the fifth digit.
    let checks = ModelChecks { nodes, prefixes, tolerance: 5e-4, ..ModelChecks::default() };
    for check in check_model(&mut model, &checks).unwrap() {
        assert!(check.passed, "{check:?}");
    }
}

#[test]
fn greedy_output_is_the_plain_one_with_every_drafter() {
    let (texts, tokens) = if cfg!(feature = "slow") { (20, 128) } else { (1, 24) };
    let checkpoint = smollm2();
    let mut model = model(&checkpoint);
    let (vocab, end) = (model.info().vocab, model.info().end.clone());
    let mut drafters: Vec<Box<dyn Drafter>> = adversaries(vocab, &end, Streams::new(1));
    drafters.push(Box::new(SuffixLookup::default()));
    drafters.push(Box::new(TokenRecycling::new(vocab, Recycling::default()).unwrap()));
    drafters.push(Box::new(
        AdedDrafter::new(Trigrams::new(Default::default()).unwrap(), Aded::default()).unwrap(),
    ));
    let limits = Limits { new_tokens: tokens, draft: 12, ..Limits::default() };
    // One policy for all: it may limit whatever it is given.
    let curve = WidthCurve::new(&[(1, 28.4), (4, 35.5), (8, 44.2), (16, 61.4)]).unwrap();
    let mut policy = CostAware::new(curve, CostAwareConfig::default()).unwrap();
    for prompt in prompts::own().iter().step_by(7).cycle().take(texts) {
        let ids = encode(&checkpoint, &prompt.turns[0]);
        let plain =
            Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits.clone()).unwrap().generate(&ids);
        let plain = plain.unwrap().tokens;
        for (index, drafter) in drafters.iter_mut().enumerate() {
            let mut verifier = GreedyTree;
            let decoder = Decoder::new(&mut model, drafter.as_mut(), &mut verifier, limits.clone()).unwrap();
            let mut decoder = if index % 2 == 0 { decoder } else { decoder.with_policy(&mut policy) };
            let out = decoder.generate(&ids).unwrap();
            drop(decoder);
            if ids.len() <= limits.prefill_rows {
                assert_eq!(violations(ids.len(), model.len(), &out), [""; 0], "{}", drafter.name());
            }
            match compare(&mut model, &ids, &plain, &out.tokens).unwrap() {
                Identity::Identical => {}
                Identity::Diverges { at, margin } => {
                    assert!(margin < 1e-3, "{} parts at {at}, margin {margin}", drafter.name());
                }
            }
        }
    }
}
