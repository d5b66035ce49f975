//! Speculative decoding on SmolLM2: the laws of first tokens, greedy identity, masks and cache.
#![allow(clippy::unwrap_used)]

use pilotfish_architectures::{Checkpoint, Message};
use pilotfish_conformance::{
    Explorer, Law, ModelChecks, Subject, adversaries, check_model, distance, draw, own, violations,
};
use pilotfish_decoding::drafters::{
    Aded, AdedDrafter, ChainDrafter, DraftModel, DySpec, DySpecConfig, Growth, Matrix, Pick, Recycling,
    Refresh, Rsd, Search, Shape, Stop, Stopping, Suffix, SuffixLookup, TokenRecycling, TrigramConfig,
    Trigrams,
};
use pilotfish_decoding::superposed::{NGrams, SuperposedConfig, superposed};
use pilotfish_decoding::{
    Context, CostAware, CostAwareConfig, Decoder, Drafter, GreedyTree, Identity, Limits, Nothing, WidthCurve,
    compare,
};
use pilotfish_evaluation::prompts;
use pilotfish_graph::Storage;
use pilotfish_model::sampling::{Distribution, Sampler, Warpers};
use pilotfish_model::toy::CountingModel;
use pilotfish_model::{CausalModel, LogitForm, Logits, RowSet, Step, Steps, Streams, Token, TokenTree};
use pilotfish_runtime::{LoadOptions, OnnxCausal, Products};
use pilotfish_tests::smollm2;
use rand::Rng;

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

/// The target with matrices of four bits on kernels whose rows do not depend on each other.
fn small() -> LoadOptions {
    LoadOptions::default().threads(1).products(Products::Pilotfish).storage(Storage::Int4 { block: 32 })
}

/// Every drafter: reasonable ones, and ones that know nothing or mislead; each with the most it may propose.
fn every_drafter(checkpoint: &Checkpoint, vocab: usize, end: &[Token]) -> Vec<(Box<dyn Drafter>, usize)> {
    let streams = Streams::new(1);
    let mut rng = streams.stream("test");
    let mut any = || rng.random_range(0..vocab as Token);
    let mut drafters: Vec<(Box<dyn Drafter>, usize)> =
        adversaries(vocab, end, streams).into_iter().map(|drafter| (drafter, 4)).collect();
    let mut matrix = Matrix::new(vocab, 8).unwrap();
    (0..vocab as Token).for_each(|token| matrix.set(token, &[any(), any(), any(), any()]));
    let frozen = Recycling { refresh: Refresh::Nothing, ..Recycling::default() };
    let zeros = Recycling { unseen_zeros: true, ..Recycling::default() };
    // Wrong whatever comes: after any pair of a few tokens, others.
    let grams: Vec<[Token; 3]> = (0..2000).map(|_| [any() % 600, any() % 600, any()]).collect();
    let misleading =
        Trigrams::build(TrigramConfig::default(), grams.iter().map(|gram| gram.as_slice())).unwrap();
    let empty = || Trigrams::new(TrigramConfig::default()).unwrap();
    let top = Aded { search: Search::TopK, ..Aded::default() };
    drafters.extend([
        (Box::new(SuffixLookup::default()) as Box<dyn Drafter>, 12),
        (Box::new(SuffixLookup::new(Suffix { shortest: 1, ..Suffix::default() }).unwrap()), 6),
        (Box::new(TokenRecycling::new(vocab, Recycling::default()).unwrap()), 12),
        (Box::new(TokenRecycling::new(vocab, zeros).unwrap()), 4),
        (Box::new(TokenRecycling::with_matrix(matrix, frozen).unwrap()), 4),
        (Box::new(AdedDrafter::new(empty(), Aded::default()).unwrap()), 12),
        (Box::new(AdedDrafter::new(empty(), top).unwrap()), 6),
        (Box::new(AdedDrafter::new(misleading, Aded::default()).unwrap()), 4),
    ]);
    // A draft model that is always wrong, and one that is the target.
    let counting = DraftModel::new(Box::new(CountingModel::new(vocab)));
    let few = DySpecConfig { nodes: 3, growth: Growth::Greedy };
    drafters.push((Box::new(DySpec::new(counting, few, Pick::Largest).unwrap()), 3));
    if cfg!(feature = "slow") {
        let copy = || DraftModel::new(Box::new(OnnxCausal::from_checkpoint(checkpoint, &small()).unwrap()));
        let frequent = small().vocabulary(0..8192);
        let frequent =
            || DraftModel::new(Box::new(OnnxCausal::from_checkpoint(checkpoint, &frequent).unwrap()));
        let grown = DySpecConfig { nodes: 8, growth: Growth::Threshold(0.1) };
        let stopping = Stopping { rule: Stop::Confidence(0.4), ..Stopping::default() };
        let beam = Shape::Beam { width: 2, depth: 3 };
        drafters.extend([
            (Box::new(DySpec::new(copy(), grown, Pick::sampled(streams)).unwrap()) as Box<dyn Drafter>, 8),
            (Box::new(Rsd::new(copy(), Shape::Constant(vec![2, 2]), streams).unwrap()), 6),
            (Box::new(Rsd::new(copy(), beam, streams).unwrap()), 6),
            (Box::new(ChainDrafter::new(copy(), stopping, Pick::Largest).unwrap()), 6),
            (Box::new(Rsd::new(frequent(), Shape::Constant(vec![2, 1]), streams).unwrap()), 4),
        ]);
    }
    drafters
}

#[test]
fn greedy_output_is_the_plain_one_with_every_drafter() {
    let (texts, tokens) = if cfg!(feature = "slow") { (20, 128) } else { (1, 24) };
    let checkpoint = smollm2();
    let mut model = OnnxCausal::from_checkpoint(&checkpoint, &small()).unwrap();
    let (vocab, end) = (model.info().vocab, model.info().end.clone());
    let mut drafters = every_drafter(&checkpoint, vocab, &end);
    let limits = Limits { new_tokens: tokens, ..Limits::default() };
    // One policy for every other drafter: it may limit whatever it is given.
    let curve = WidthCurve::new(&[(1, 6.3), (4, 11.5), (8, 20.3), (16, 38.0)]).unwrap();
    let mut policy = CostAware::new(curve, CostAwareConfig::default()).unwrap();
    let (mut texts_made, mut same) = (0, 0);
    // 7 and the 36 prompts have no common divisor: every category comes, and no prompt twice.
    let own = prompts::own();
    for prompt in (0..texts).map(|at| &own[7 * at % own.len()]) {
        let ids = encode(&checkpoint, &prompt.turns[0]);
        // The plain output is made once for all drafters.
        let plain =
            Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits.clone()).unwrap().generate(&ids);
        let plain = plain.unwrap().tokens;
        for (index, (drafter, draft)) in drafters.iter_mut().enumerate() {
            let mut verifier = GreedyTree;
            let limits = Limits { draft: *draft, ..limits.clone() };
            let decoder = Decoder::new(&mut model, drafter.as_mut(), &mut verifier, limits.clone()).unwrap();
            let mut decoder = if index % 2 == 0 { decoder } else { decoder.with_policy(&mut policy) };
            let out = decoder.generate(&ids).unwrap();
            drop(decoder);
            if ids.len() <= limits.prefill_rows {
                assert_eq!(violations(ids.len(), model.len(), &out), [""; 0], "{}", drafter.name());
            }
            texts_made += 1;
            match compare(&mut model, &ids, &plain, &out.tokens).unwrap() {
                Identity::Identical => same += 1,
                // Products of our kernels do not depend on the number of rows; what else there is may.
                Identity::Diverges { at, margin } => {
                    assert!(margin < 1e-3, "{} parts at {at}, margin {margin}", drafter.name());
                }
            }
        }
    }
    assert!(20 * same >= 19 * texts_made, "{same} of {texts_made} are the same to the last token");
}

#[test]
fn one_superposed_draft_is_greedy() {
    let checkpoint = smollm2();
    let mut model = model(&checkpoint);
    let prompt = encode(&checkpoint, "Name an animal.");
    let limits = Limits { new_tokens: 6, stop_at_end: false, ..Limits::default() };
    let greedy = Decoder::new(&mut model, &mut Nothing, &mut GreedyTree, limits).unwrap().generate(&prompt);
    let greedy = greedy.unwrap().tokens;
    let mut config = SuperposedConfig { drafts: 1, tokens: 6, ..SuperposedConfig::default() };
    let out = superposed(&mut model, &prompt, None, &config).unwrap();
    assert_eq!(out.drafts[0].tokens, greedy);
    assert_eq!((out.ledger.target_forwards, out.ledger.target_rows), (6, prompt.len() as u64 + 5));
    // A vector that is a token's embedding is the token.
    model.truncate(prompt.len()).unwrap();
    let token = greedy[0];
    let by_id = model.step(&Step::chain(&[token])).unwrap().logits;
    model.truncate(prompt.len()).unwrap();
    let embedding = model.embed(&[token]).unwrap();
    let by_vector = model.step(&Step::chain(&[]).vectors(&embedding, embedding.len())).unwrap().logits;
    let apart = by_id.row(0).unwrap().iter().zip(by_vector.row(0).unwrap());
    assert!(apart.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-6);
    // Three drafts, with tables of a text that has nothing to do with it: different, and as many passes.
    let corpus = checkpoint.tokenizer().unwrap().encode("The cat sat on the mat. The dog sat too.", false);
    let tables = NGrams::build(5, [corpus.unwrap().as_slice()]).unwrap();
    config.drafts = 3;
    let out = superposed(&mut model, &prompt, Some(&tables), &config).unwrap();
    assert_eq!((out.drafts.len(), out.ledger.target_forwards, model.len()), (3, 6, prompt.len()));
    let mut texts: Vec<_> = out.drafts.iter().map(|draft| &draft.tokens).collect();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 3);
}
