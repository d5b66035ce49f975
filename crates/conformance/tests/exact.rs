//! The worked examples and oracles of speculative decoding, by enumeration where it can be done and by counting
//! where it cannot.
#![allow(clippy::unwrap_used)]

use pilotfish_conformance::statistics::chi_squared;
use pilotfish_conformance::*;
use pilotfish_decoding::{
    Choose, Context, Decoder, Dice, Draft, Drawn, Limits, Recursive, SampleAndMatch, SpeculativeChain,
    Verdict, Verifier,
};
use pilotfish_model::sampling::{Distribution, Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{LogitForm, Logits, Streams, Token, TokenTree};

fn subject(name: &str) -> Subject {
    own().into_iter().find(|subject| subject.name == name).unwrap()
}

fn first(law: &Law<Vec<Token>>, vocab: Token) -> Vec<f64> {
    (0..vocab).map(|token| law.get(&vec![token]).copied().unwrap_or(0.0)).collect()
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < tolerance), "{got:?} is not {want:?}");
}

#[test]
fn wrong_laws_are_those_of_the_notes() {
    let (p, q) = EXAMPLE_B;
    for (wrong, children, want) in [
        (Wrong::QNeverRenormalised, 2, [0.35663, 0.34337, 0.2, 0.1]),
        (Wrong::StaleResidual, 2, [0.27464, 0.35536, 0.26, 0.11]),
        (Wrong::ForgottenResidual, 2, [0.25857, 0.37071, 0.24714, 0.12357]),
        (Wrong::IdentityPruning, 2, [0.31726, 0.34940, 0.22222, 0.11111]),
        (Wrong::RatioForFixed, 1, [0.5625, 0.1875, 0.0, 0.25]),
    ] {
        let case = one_node(&p, &q, children).unwrap();
        let law = case.round_law(&wrong.subject(), &[0], 1, wrong.tamper()).unwrap();
        close(&first(&law, 4), &want, 6e-6);
    }
    // Fixed children [1, 0]: the likeliest of the "draft" (2, 3, 1, 1) in that order.
    let case = one_node(&[0.5, 0.25, 0.15, 0.1], &[2.0, 3.0, 1.0, 1.0], 2).unwrap();
    for (wrong, want, chi2) in [
        (Wrong::FixedNotRenormalised, [0.375, 0.25, 0.225, 0.15], 1875.0),
        (Wrong::FixedForgottenResidual, [0.625, 0.3125, 0.0375, 0.025], 3750.0),
    ] {
        let law = first(&case.round_law(&wrong.subject(), &[0], 1, None).unwrap(), 4);
        close(&law, &want, 1e-7);
        let counts: Vec<u64> = law.iter().map(|prob| (20_000.0 * prob).round() as u64).collect();
        let fit = chi_squared(&counts, &[0.5, 0.25, 0.15, 0.1]);
        assert!((fit.statistic - chi2).abs() < 1.0 && fit.statistic > 16.3, "{fit:?}");
    }
    let right = case.acceptance(&subject("sample-and-match, fixed drafts"), &[0]).unwrap();
    assert!((right - 0.75).abs() < 1e-7);
    // Drawing again biases towards what was proposed: .75 instead of .5 for a proposed token of probability .5.
    let case = one_node(&[0.5, 0.5], &[1.0, 0.0], 1).unwrap();
    let law = case.round_law(&Wrong::Redraw.subject(), &[0], 1, None).unwrap();
    close(&first(&law, 2), &[0.75, 0.25], 1e-7);
}

#[test]
fn the_most_common_mistake_is_seen_in_20000_rounds() {
    let case = one_node(&EXAMPLE_B.0, &EXAMPLE_B.1, 2).unwrap();
    let wrong = Wrong::QNeverRenormalised.subject();
    let mut counts = [0u64; 4];
    for round in 0..20_000 {
        let streams = Streams::new(5).fork(round);
        let mut verifier = (wrong.make)(case.sampler, Box::new(Dice::new(streams)));
        let mut rng = streams.stream("draft");
        let draft = draw(&[0], &case.shape, wrong.drawn, &mut rng, |path| {
            law_after(&case.draft, &case.draft_sampler, path)
        })
        .unwrap();
        let row: Vec<f32> = EXAMPLE_B.0.iter().map(|p| p.ln() as f32).collect();
        let logits =
            pilotfish_model::Logits::reduce(&row.repeat(draft.tree().len()), 4, Default::default()).unwrap();
        let context = pilotfish_decoding::Context { text: &[0], draft: &draft, logits: &logits };
        let verdict = verifier.verify(&context).unwrap();
        let token = verdict.path.first().map_or(verdict.next, |&node| draft.tree().token(node));
        counts[token as usize] += 1;
    }
    let fit = chi_squared(&counts, &EXAMPLE_B.0);
    // Expected: 20000 times the divergence of the wrong law, about 220, give or take 30.
    assert!(fit.statistic > 130.0 && fit.statistic < 320.0, "{fit:?}");
}

#[test]
fn acceptance_in_closed_form() {
    let mut rng = Streams::new(2).stream("test");
    for _ in 0..20 {
        let target = TableModel::random(0, 4, 1.5, &mut rng).unwrap();
        let draft = TableModel::random(0, 4, 1.5, &mut rng).unwrap();
        let (p, q) = (target.next(&[0]), draft.next(&[0]));
        let mut before = [0.0; 2];
        for children in 1..=4 {
            let case = one_node(p.probs(), q.probs(), children).unwrap();
            let multi = case.acceptance(&subject("multi-step sampling"), &[0]).unwrap();
            let recursive = case.acceptance(&subject("recursive rejection"), &[0]).unwrap();
            let bound: f64 =
                (0..4).map(|x| p.prob(x).min(1.0 - (1.0 - q.prob(x)).powi(children as i32))).sum();
            assert!(multi <= bound + 1e-6, "no rule for independent draws can do better");
            assert!(recursive >= multi - 1e-6, "{children}: {recursive} < {multi}");
            assert!(multi >= before[0] - 1e-9 && recursive >= before[1] - 1e-9, "more children never hurt");
            before = [multi, recursive];
            if children == 1 {
                let overlap = 1.0 - p.total_variation(&q);
                assert!((multi - overlap).abs() < 1e-6 && (recursive - overlap).abs() < 1e-6);
            }
            if children == 4 {
                assert!((recursive - 1.0).abs() < 1e-9, "the whole vocabulary was proposed");
            }
            let same = one_node(p.probs(), p.probs(), children).unwrap();
            for name in ["multi-step sampling", "recursive rejection"] {
                let accepted = same.acceptance(&subject(name), &[0]).unwrap();
                assert!((accepted - 1.0).abs() < 1e-6, "a draft that is the target is always accepted");
            }
        }
    }
    // Two symbols, two children: recursive rejection always accepts, independent draws do not.
    let case = one_node(&[0.9, 0.1], &[0.2, 0.8], 2).unwrap();
    assert!((case.acceptance(&subject("recursive rejection"), &[0]).unwrap() - 1.0).abs() < 1e-12);
    assert!(case.acceptance(&subject("multi-step sampling"), &[0]).unwrap() < 0.6);
}

#[test]
fn eight_tokens_by_counting() {
    // The limits are the upper 0.001 points for 7 and 63 degrees of freedom.
    let mut rng = Streams::new(8).stream("test");
    let weights = |rng: &mut _| -> Vec<f64> {
        use rand::Rng;
        let rng: &mut pilotfish_model::StreamRng = rng;
        (0..8).map(|_| 0.05 + rng.random::<f64>()).collect()
    };
    let (p, q) = (weights(&mut rng), weights(&mut rng));
    let case = one_node(&p, &q, 2).unwrap();
    let law = Distribution::from_weights(p).unwrap();
    let draft_law = Distribution::from_weights(q).unwrap();
    let (mut ones, mut twos) = ([0u64; 8], [0u64; 64]);
    for round in 0..200_000 {
        let streams = Streams::new(9).fork(round);
        let (mut rng, mut dice) = (streams.stream("draft"), Dice::new(streams));
        let mut pair = [0; 2];
        for token in &mut pair {
            let draft =
                draw(&[0], &case.shape, Drawn::WithoutReplacement, &mut rng, |_| Ok(draft_law.clone()))
                    .unwrap();
            let children = &draft.tree().tokens()[1..];
            *token = match pilotfish_decoding::verifiers::rules::recursive(
                &law, &draft_law, children, &mut dice,
            ) {
                pilotfish_decoding::verifiers::rules::Kept::Child(index) => children[index] as usize,
                pilotfish_decoding::verifiers::rules::Kept::Token(token) => token as usize,
            };
        }
        ones[pair[0]] += 1;
        twos[8 * pair[0] + pair[1]] += 1;
    }
    let fit = chi_squared(&ones, law.probs());
    assert!(fit.freedom == 7 && fit.statistic < 24.3, "{fit:?}");
    let joint: Vec<f64> = (0..64).map(|i| law.probs()[i / 8] * law.probs()[i % 8]).collect();
    let fit = chi_squared(&twos, &joint);
    assert!(fit.freedom == 63 && fit.statistic < 103.4, "{fit:?}");
}

/// A loop over tables; the mean number of tokens a round, and its standard error.
fn mean_tokens(target: &TableModel, draft: &TableModel, length: usize, tokens: usize) -> (f64, f64) {
    let sampler = Warpers::temperature(1.0).check().unwrap();
    let streams = Streams::new(3);
    let draw = Box::new(streams.stream("draft"));
    let shape = vec![1; length];
    let mut drafter = TableDrafter::new(draft.clone(), sampler, &shape, Drawn::WithoutReplacement, draw);
    let mut verifier = SpeculativeChain::new(sampler, streams);
    let limits = Limits { new_tokens: tokens, ..Limits::default() };
    let mut model = target.clone();
    let out = Decoder::new(&mut model, &mut drafter, &mut verifier, limits).unwrap().generate(&[0]).unwrap();
    // The last rounds are cut by the limit.
    let rounds = &out.rounds[..out.rounds.len() - length - 1];
    let n = rounds.len() as f64;
    let mean = rounds.iter().map(|round| round.added as f64).sum::<f64>() / n;
    let variance = rounds.iter().map(|round| (round.added as f64 - mean).powi(2)).sum::<f64>() / n;
    (mean, (variance / n).sqrt())
}

#[test]
fn independent_acceptance_gives_the_formula() {
    // p = (.8, .2), q = (1, 0): acceptance .8 at every place; (1 - .8^5) / (1 - .8) = 3.3616 for drafts of 4.
    let (target, draft) = (constant(&[0.8, 0.2]).unwrap(), constant(&[1.0, 0.0]).unwrap());
    let (mean, error) = mean_tokens(&target, &draft, 4, 20_000);
    assert!((mean - 3.3616).abs() < 3.0 * error && error < 0.05, "{mean} +- {error}");
    // A draft that is the target: everything is accepted.
    let target = TableModel::random(1, 5, 1.0, &mut Streams::new(4).stream("test")).unwrap();
    assert_eq!(mean_tokens(&target, &target, 3, 2000), (4.0, 0.0));
}

#[test]
fn recursive_drafts_of_the_reference_case() {
    // Rows after no token are those after token 3, which begins the text.
    #[rustfmt::skip]
    let table = |root: [f64; 3], rows: [[f64; 3]; 3]| {
        let row = |row: [f64; 3]| [row[0], row[1], row[2], 0.0];
        let table = [row(rows[0]), row(rows[1]), row(rows[2]), row(root)].concat();
        TableModel::new(1, 4, table).unwrap()
    };
    let sampler = Warpers::temperature(1.0).check().unwrap();
    let mut case = Case {
        target: table([0.3, 0.3, 0.4], [[0.5, 0.25, 0.25], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]]),
        draft: table([0.6, 0.3, 0.1], [[0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]),
        sampler,
        draft_sampler: sampler,
        shape: vec![2, 2],
    };
    let recursive = Subject::new("recursive", Drawn::WithoutReplacement, Recursive::with_choose);
    for shape in [vec![2, 2], vec![1, 3], vec![3, 2], vec![3, 1, 1]] {
        case.shape = shape;
        let length = case.shape.len();
        let law = case.round_law(&recursive, &[3], length, None).unwrap();
        let worst = distance(&law, &case.truth(&[3], length).unwrap());
        assert!(worst < 1e-12, "{:?}: {worst}", case.shape);
    }
}

#[test]
fn a_loop_without_a_draft_is_plain_sampling() {
    let mut rng = Streams::new(6).stream("test");
    let sampler = Warpers { top_k: Some(2), ..Warpers::temperature(1.3) }.check().unwrap();
    let case = Case {
        target: TableModel::random(1, 3, 1.0, &mut rng).unwrap(),
        draft: TableModel::random(1, 3, 1.0, &mut rng).unwrap(),
        sampler,
        draft_sampler: sampler,
        shape: vec![],
    };
    for subject in own() {
        let worst = distance(&case.loop_law(&subject, &[1], 3).unwrap(), &case.truth(&[1], 3).unwrap());
        assert!(worst < 1e-12, "{}: {worst}", subject.name);
    }
}

/// The rule of ADED's released code: every row of the table of paths draws tokens of its own, the longest match is kept,
/// and what follows it is drawn afresh.
struct RowByRow {
    sampler: Sampler,
    choose: Box<dyn Choose>,
}

impl Verifier for RowByRow {
    fn name(&self) -> &'static str {
        "a draw a row"
    }

    fn lossless(&self) -> bool {
        false
    }

    fn takes(&self, _: Drawn) -> bool {
        true
    }

    fn sampler(&self) -> Sampler {
        self.sampler
    }

    fn form(&self) -> LogitForm {
        LogitForm::Full
    }

    fn verify(&mut self, context: &Context<'_>) -> pilotfish_decoding::Result<Verdict> {
        let tree = context.draft.tree();
        let mut longest: Vec<usize> = Vec::new();
        for leaf in (1..tree.len()).filter(|&node| tree.children(node).next().is_none()) {
            let mut path = Vec::new();
            for pair in tree.path(leaf).windows(2) {
                let law = context.target(&self.sampler, pair[0], context.text)?;
                if self.choose.choose(&law) != tree.token(pair[1]) {
                    break;
                }
                path.push(pair[1]);
            }
            if path.len() > longest.len() {
                longest = path;
            }
        }
        let last = longest.last().copied().unwrap_or(0);
        let next = self.choose.choose(&context.target(&self.sampler, last, context.text)?);
        Ok(Verdict { path: longest, next })
    }
}

#[test]
fn a_draw_a_row_is_caught() {
    let row: Vec<f32> = [0.5f32, 0.3, 0.2].map(f32::ln).to_vec();
    let sampler = Warpers::temperature(1.0).check().unwrap();
    let target = sampler.distribution(&row, &[]).unwrap();
    for (drafted, wrong) in
        [(&[][..], [0.5, 0.3, 0.2]), (&[0], [0.75, 0.15, 0.1]), (&[0, 1], [0.675, 0.255, 0.07])]
    {
        let mut tree = TokenTree::new(2);
        drafted.iter().for_each(|&token| {
            tree.push(0, token).unwrap();
        });
        let draft = Draft::fixed(tree);
        let logits = Logits::from_rows(row.repeat(draft.tree().len()), 3, LogitForm::Full).unwrap();
        let law = |make: &dyn Fn(Box<dyn Choose>) -> Box<dyn Verifier>| {
            let law = Explorer::explore(|explorer| {
                let mut verifier = make(Box::new(explorer.clone()));
                let verdict =
                    verifier.verify(&Context { text: &[2], draft: &draft, logits: &logits }).unwrap();
                verdict.path.first().map_or(verdict.next, |&node| draft.tree().token(node))
            });
            [0, 1, 2].map(|token| law.get(&token).copied().unwrap_or(0.0))
        };
        let matching = law(&|choose| Box::new(SampleAndMatch::with_choose(sampler, choose)));
        close(&matching, target.probs(), 1e-12);
        close(&law(&|choose| Box::new(RowByRow { sampler, choose })), &wrong, 1e-6);
    }
}
