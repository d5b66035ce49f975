//! Drafters over a draft model: shapes and values worked by hand, and laws by taking every branch of every draw.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use pilotfish_conformance::{Explorer, Law};
use pilotfish_decoding::drafters::dyspec::{Drawing, greedy, threshold};
use pilotfish_decoding::drafters::rsd::{beam, constant};
use pilotfish_decoding::drafters::*;
use pilotfish_decoding::*;
use pilotfish_model::sampling::{Distribution, Sampler, Warpers};
use pilotfish_model::toy::TableModel;
use pilotfish_model::{LogitForm, Logits, Streams, Token, TokenTree};
use proptest::prelude::*;
use rand::Rng;

fn law(weights: &[f64]) -> Distribution {
    Distribution::from_weights(weights.to_vec()).unwrap()
}

/// Laws as a function of the path, counted by pass.
struct Known<F> {
    of: F,
    passes: usize,
    rows: usize,
}

fn known<F: FnMut(&[Token]) -> Distribution>(of: F) -> Known<F> {
    Known { of, passes: 0, rows: 0 }
}

impl<F: FnMut(&[Token]) -> Distribution> Laws for Known<F> {
    fn laws(&mut self, tree: &TokenTree, nodes: &[usize]) -> Result<Vec<Distribution>> {
        self.passes += 1;
        self.rows += nodes.len();
        let path = |node: usize| tree.path(node).iter().map(|&node| tree.token(node)).collect::<Vec<_>>();
        Ok(nodes.iter().map(|&node| (self.of)(&path(node)[1..])).collect())
    }
}

fn bounds(nodes: usize) -> Bounds<'static> {
    Bounds { nodes, depth: 64, end: &[] }
}

/// Paths of a tree's nodes, without the root.
fn paths(tree: &TokenTree) -> Vec<Vec<Token>> {
    let path = |node: usize| tree.path(node)[1..].iter().map(|&node| tree.token(node)).collect();
    (1..tree.len()).map(path).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert!(
        got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12),
        "{got:?} {want:?}"
    );
}

#[test]
fn dyspec_by_hand() {
    let (a, b) = (0, 1);
    let mut laws = known(|_| law(&[0.6, 0.3, 0.1]));
    let (draft, drawings) = greedy(9, bounds(6), &mut laws, &mut Pick::Largest).unwrap();
    assert_eq!(paths(draft.tree()), [vec![a], vec![a, a], vec![b], vec![a, a, a], vec![b, a], vec![a, b]]);
    close(&drawings.iter().map(|d| d.slot).collect::<Vec<_>>(), &[1.0, 0.6, 0.4, 0.36, 0.3, 0.24]);
    let values: Vec<f64> = drawings.iter().map(|d| d.value).collect();
    close(&values, &[0.6, 0.36, 0.3, 0.216, 0.18, 0.18]);
    close(&[values[..4].iter().sum(), values.iter().sum()], &[1.476, 1.836]);
    assert_eq!(laws.passes, 4, "the root, a, aa and b; leaves are not run");
    // Chains of 4 and 6 and a full tree of two levels of two, by the same values, are worth less.
    let chain = |length: i32| (1..=length).map(|i| 0.6f64.powi(i)).sum::<f64>();
    close(&[chain(4), chain(6)], &[1.3056, 1.430016]);
    let mut laws = known(|_| law(&[0.6, 0.3, 0.1]));
    let full = constant(9, bounds(6), &[2, 2], &mut laws, &mut Pick::Largest).unwrap();
    close(&[full.estimates().unwrap()[1..].iter().sum()], &[1.71]);
    // The threshold of the last slot gives the same trees.
    for (least, nodes, want) in [(0.36, 4, &drawings[..4]), (0.24, 6, &drawings[..])] {
        let mut laws = known(|_| law(&[0.6, 0.3, 0.1]));
        let (draft, found) = threshold(9, bounds(64), least - 1e-12, &mut laws, &mut Pick::Largest).unwrap();
        let mut found: Vec<f64> = found.iter().map(|d| d.slot).collect();
        found.sort_by(|a, b| b.total_cmp(a));
        close(&found, &want.iter().map(|d| d.slot).collect::<Vec<_>>());
        assert_eq!(draft.len(), nodes);
        assert!(laws.passes <= 4);
    }
}

fn random_laws(seed: u64, vocab: usize) -> impl FnMut(&[Token]) -> Distribution {
    move |path| {
        let index =
            path.iter().fold(7, |at: u64, &token| at.wrapping_mul(31).wrapping_add(u64::from(token) + 1));
        let mut rng = Streams::new(seed).fork(index).stream("test");
        law(&(0..vocab).map(|_| rng.random::<f64>().powi(3) + 1e-6).collect::<Vec<_>>())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn dyspec_invariants(seed in 0u64..1000, vocab in 2usize..6, nodes in 1usize..30) {
        let mut laws = known(random_laws(seed, vocab));
        let (draft, drawings) =
            greedy(0, bounds(nodes), &mut laws, &mut Pick::sampled(Streams::new(seed))).unwrap();
        prop_assert_eq!(draft.len(), nodes);
        prop_assert!(drawings.windows(2).all(|pair| pair[0].slot >= pair[1].slot - 1e-15));
        let tree = draft.tree();
        let mut of = random_laws(seed, vocab);
        let mut share = |node: usize| {
            // The unnormalised form: d(t), and the sum of d over earlier siblings.
            let parent = tree.parent(node).unwrap();
            let path: Vec<Token> = tree.path(parent)[1..].iter().map(|&node| tree.token(node)).collect();
            let d = of(&path);
            let earlier: f64 = tree.children(parent).take_while(|&child| child != node).map(|child| d.prob(tree.token(child))).sum();
            (d.prob(tree.token(node)), earlier)
        };
        for drawing in &drawings {
            let path = tree.path(drawing.node);
            let above: f64 = path[1..path.len() - 1].iter().map(|&node| share(node).0).product();
            let (own, earlier) = share(drawing.node);
            prop_assert!((drawing.slot - above * (1.0 - earlier)).abs() < 1e-12);
            prop_assert!((drawing.value - above * own).abs() < 1e-12);
            let siblings: Vec<Token> = tree.children(tree.parent(drawing.node).unwrap()).map(|child| tree.token(child)).collect();
            let different: std::collections::BTreeSet<&Token> = siblings.iter().collect();
            prop_assert_eq!(different.len(), siblings.len());
        }
        // Level by level with the last value as threshold, the same multiset of slots.
        let least = drawings.iter().map(|d| d.slot).fold(1.0, f64::min);
        let mut again = known(random_laws(seed, vocab));
        let (same, found) = threshold(0, bounds(usize::MAX), least - 1e-13, &mut again, &mut Pick::Largest).unwrap();
        let mut largest = known(random_laws(seed, vocab));
        let (_, best) = greedy(0, bounds(same.len()), &mut largest, &mut Pick::Largest).unwrap();
        let sum = |all: &[Drawing]| all.iter().map(|d| d.slot).sum::<f64>();
        prop_assert!((sum(&found) - sum(&best)).abs() < 1e-9);
        prop_assert!(again.passes <= same.depth() + 1);
    }

    #[test]
    fn dyspec_is_the_best_of_all_trees(seed in 0u64..1000, nodes in 1usize..6) {
        let vocab = 3;
        let mut laws = known(random_laws(seed, vocab));
        let (_, drawings) = greedy(0, bounds(nodes), &mut laws, &mut Pick::Largest).unwrap();
        let got: f64 = drawings.iter().map(|d| d.slot).sum();
        // Every tree: a set of slots, closed under parents and earlier siblings, in every order of drawing.
        fn grow(open: &[(Vec<Token>, Distribution, f64)], left: usize, of: &mut dyn FnMut(&[Token]) -> Distribution) -> f64 {
            if left == 0 {
                return 0.0;
            }
            let mut best = 0.0f64;
            for (index, (path, rest, value)) in open.iter().enumerate() {
                // Slots before this one stay closed, so that no set is seen twice.
                let mut next: Vec<_> = open[index + 1..].to_vec();
                let token = rest.argmax();
                let share = rest.prob(token);
                let mut child = path.clone();
                child.push(token);
                next.push((child.clone(), of(&child), value * share));
                if let Some(rest) = rest.without(token) {
                    next.push((path.clone(), rest, value * (1.0 - share)));
                }
                best = best.max(value + grow(&next, left - 1, of));
            }
            best
        }
        let mut of = random_laws(seed, vocab);
        let root = of(&[]);
        let want = grow(&[(vec![], root, 1.0)], nodes, &mut of);
        prop_assert!((got - want).abs() < 1e-12, "{} {}", got, want);
    }
}

#[test]
fn draws_without_replacement_have_their_law() {
    let ordered = Explorer::explore(|explorer| {
        let mut pick = Pick::Drawn(Box::new(explorer.clone()));
        let mut laws = known(|_| law(&[0.6, 0.3, 0.1]));
        let draft = constant(9, bounds(2), &[2], &mut laws, &mut pick).unwrap();
        draft.tree().tokens()[1..].to_vec()
    });
    let want = [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]].map(|pair| {
        let d = [0.6, 0.3, 0.1];
        (pair.to_vec(), d[pair[0] as usize] * d[pair[1] as usize] / (1.0 - d[pair[0] as usize]))
    });
    for (pair, p) in &want {
        assert!((ordered[pair] - p).abs() < 1e-12, "{pair:?}");
    }
    close(&want.map(|(_, p)| (p * 1e6).round() / 1e6), &[0.45, 0.15, 0.257143, 0.042857, 0.066667, 0.033333]);
}

#[test]
fn rsd_counts() {
    let uniform = || known(|_: &[Token]| law(&[1.0; 8]));
    let mut pick = Pick::sampled(Streams::new(1));
    for (branching, nodes) in [(&[2, 2, 2][..], 14), (&[3, 2, 2], 21), (&[2, 2, 2, 2], 30), (&[1, 1, 1], 3)] {
        assert_eq!(Shape::Constant(branching.to_vec()).nodes(), nodes);
        let mut laws = uniform();
        let draft = constant(0, bounds(64), branching, &mut laws, &mut pick).unwrap();
        assert_eq!((draft.len(), laws.passes), (nodes, branching.len()));
        let short = constant(0, bounds(5), branching, &mut uniform(), &mut pick).unwrap();
        assert_eq!(short.len(), nodes.min(5));
    }
    let mut rng = Streams::new(1).stream("draft");
    for (width, depth) in [(2, 7), (3, 2), (5, 6), (1, 4)] {
        let mut laws = uniform();
        let bounds = Bounds { nodes: 64, depth, end: &[] };
        let draft = beam(0, bounds, width, &mut laws, &mut rng).unwrap();
        let level =
            |at: usize| (1..draft.tree().len()).filter(|&node| draft.tree().depth(node) == at).count();
        assert!((1..=depth).all(|at| level(at) == width), "{width} {depth}");
        assert_eq!((draft.len(), laws.passes), (width * depth, depth));
    }
    // Fewer nodes than a beam has: narrower and shallower, never cut.
    let draft = beam(0, Bounds { nodes: 7, depth: 9, end: &[] }, 3, &mut uniform(), &mut rng).unwrap();
    assert_eq!((draft.len(), draft.depth()), (6, 2));
    // A law with fewer tokens than children; an end token has no children.
    let two = |_: &[Token]| law(&[0.5, 0.0, 0.5]);
    let draft = constant(0, bounds(64), &[3, 3], &mut known(two), &mut pick).unwrap();
    assert_eq!(draft.len(), 6);
    let ends = Bounds { nodes: 64, depth: 9, end: &[0, 2] };
    assert_eq!(constant(0, ends, &[3, 3], &mut known(two), &mut pick).unwrap().len(), 2);
    assert_eq!(beam(0, ends, 2, &mut known(two), &mut rng).unwrap().len(), 2);
    assert_eq!(greedy(0, ends, &mut known(two), &mut pick).unwrap().0.len(), 2);
    assert_eq!(threshold(0, ends, 1e-6, &mut known(two), &mut pick).unwrap().0.len(), 2);
}

#[test]
fn a_beam_wide_enough_keeps_everything() {
    let mut rng = Streams::new(5).stream("draft");
    let mut laws = known(|_| law(&[0.6, 0.3, 0.1]));
    let draft = beam(0, Bounds { nodes: 100, depth: 3, end: &[] }, 27, &mut laws, &mut rng).unwrap();
    assert_eq!(draft.len(), 3 + 9 + 27);
    // Width 1 is ancestral sampling; width 2 draws its first leaf from the sequence law.
    for width in [1, 2] {
        let mut counts: BTreeMap<Vec<Token>, f64> = BTreeMap::new();
        let n = 40_000;
        for _ in 0..n {
            let q =
                |path: &[Token]| if path.is_empty() { law(&[0.6, 0.3, 0.1]) } else { law(&[0.2, 0.5, 0.3]) };
            let bounds = Bounds { nodes: 9, depth: 2, end: &[] };
            let draft = beam(0, bounds, width, &mut known(q), &mut rng).unwrap();
            let leaves: Vec<Vec<Token>> =
                paths(draft.tree()).into_iter().filter(|path| path.len() == 2).collect();
            assert!(leaves.len() == width && (width == 1 || leaves[0] != leaves[1]));
            *counts.entry(leaves[0].clone()).or_default() += 1.0;
        }
        let chi2: f64 = (0..9u32)
            .map(|at| {
                let (x, y) = (at / 3, at % 3);
                let p = [0.6, 0.3, 0.1][x as usize] * [0.2, 0.5, 0.3][y as usize] * f64::from(n);
                (counts.get(&vec![x, y]).unwrap_or(&0.0) - p).powi(2) / p
            })
            .sum();
        // Eight degrees of freedom, p = 0.001.
        assert!(chi2 < 26.1, "width {width}: {chi2}");
    }
}

/// A target and a draft of order 1 over three tokens.
fn pair() -> (TableModel, TableModel) {
    let target = vec![0.3, 0.3, 0.4, 0.5, 0.25, 0.25, 0.3, 0.4, 0.3];
    let draft = vec![0.6, 0.3, 0.1, 0.2, 0.5, 0.3, 0.7, 0.2, 0.1];
    (TableModel::new(1, 3, target).unwrap(), TableModel::new(1, 3, draft).unwrap())
}

fn sampler() -> Sampler {
    Warpers::temperature(1.0).check().unwrap()
}

type Make<'a> = &'a dyn Fn(DraftModel, Pick) -> Box<dyn Drafter>;

/// The exact law of the first `tokens` tokens after a prompt, over every draw of drafter and verifier.
fn exact(make: Make<'_>, tokens: usize) -> Law<Vec<Token>> {
    Explorer::explore(|explorer| {
        let (mut target, draft) = pair();
        let pick = Pick::Drawn(Box::new(explorer.clone()));
        let mut drafter = make(DraftModel::new(Box::new(draft)), pick);
        let mut verifier = Recursive::with_choose(sampler(), Box::new(explorer.clone()));
        let limits = Limits { new_tokens: tokens, ..Limits::default() };
        let mut decoder = Decoder::new(&mut target, drafter.as_mut(), &mut verifier, limits).unwrap();
        decoder.generate(&[0]).unwrap().tokens
    })
}

/// The law of a table's texts as its logits, which are f32, have it.
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
fn every_sampled_draft_keeps_the_law() {
    let makers: [(&str, Make<'_>); 5] = [
        ("DySpec greedy", &|model, pick| {
            Box::new(DySpec::new(model, DySpecConfig { nodes: 4, growth: Growth::Greedy }, pick).unwrap())
        }),
        ("DySpec greedy, 3 nodes", &|model, pick| {
            Box::new(DySpec::new(model, DySpecConfig { nodes: 3, growth: Growth::Greedy }, pick).unwrap())
        }),
        ("DySpec threshold", &|model, pick| {
            let growth = Growth::Threshold(0.3);
            Box::new(DySpec::new(model, DySpecConfig { nodes: 5, growth }, pick).unwrap())
        }),
        ("RSD-C 2-1", &|model, pick| {
            Box::new(Rsd::with_pick(model, Shape::Constant(vec![2, 1]), pick, Streams::new(0)).unwrap())
        }),
        ("RSD-C 3", &|model, pick| {
            Box::new(Rsd::with_pick(model, Shape::Constant(vec![3]), pick, Streams::new(0)).unwrap())
        }),
    ];
    for (name, make) in makers {
        // The first token comes from the prompt's pass; a draft for the other three has two levels.
        let far = pilotfish_conformance::distance(&exact(make, 4), &truth(4));
        assert!(far < 1e-12, "{name}: {far}");
    }
}

#[test]
fn independent_sequences_keep_the_law() {
    let law = Explorer::explore(|explorer| {
        let (mut target, draft) = pair();
        let pick = Pick::Drawn(Box::new(explorer.clone()));
        let shape = Shape::Paths { count: 2, depth: 2 };
        let model = DraftModel::new(Box::new(draft));
        let mut drafter = Rsd::with_pick(model, shape, pick, Streams::new(0)).unwrap();
        let mut verifier = MultiStep::with_choose(sampler(), Box::new(explorer.clone()));
        let limits = Limits { new_tokens: 3, ..Limits::default() };
        Decoder::new(&mut target, &mut drafter, &mut verifier, limits).unwrap().generate(&[0]).unwrap().tokens
    });
    let far = pilotfish_conformance::distance(&law, &truth(3));
    assert!(far < 1e-12, "{far}");
}

/// Known-wrong: what was drawn is dropped when it turns out to be unlikely.
#[derive(Debug)]
struct Dropping(DySpec);

impl Drafter for Dropping {
    fn name(&self) -> String {
        "dropping".into()
    }

    fn drawn(&self) -> Drawn {
        Drawn::WithoutReplacement
    }

    fn propose(&mut self, ask: &mut Ask<'_>) -> Result<Draft> {
        let draft = self.0.propose(ask)?;
        let values = draft.estimates().unwrap().to_vec();
        draft.retain(|_, node| values[node] >= 0.25)
    }
}

#[test]
fn dropping_what_was_drawn_is_caught() {
    let make: Make<'_> = &|model, pick| {
        Box::new(Dropping(
            DySpec::new(model, DySpecConfig { nodes: 3, growth: Growth::Greedy }, pick).unwrap(),
        ))
    };
    let far = pilotfish_conformance::distance(&exact(make, 3), &truth(3));
    assert!(far > 0.01, "{far}");
}

/// Texts from a drafter and the recursive rule, with streams.
fn sampled(
    drafter: &mut dyn Drafter,
    target: &mut TableModel,
    tokens: usize,
    seed: u64,
    n: usize,
) -> Vec<Generation> {
    let mut verifier = Recursive::new(sampler(), Streams::new(seed));
    let limits = Limits { new_tokens: tokens, ..Limits::default() };
    let mut decoder = Decoder::new(target, drafter, &mut verifier, limits).unwrap();
    (0..n).map(|_| decoder.generate(&[0]).unwrap()).collect()
}

#[test]
fn a_beam_keeps_the_law() {
    // The note's reference case: the root's draft law is that after token 0 below, one row up.
    let draft = vec![0.6, 0.3, 0.1, 0.7, 0.2, 0.1, 0.1, 0.1, 0.8];
    let target = vec![0.3, 0.3, 0.4, 0.3, 0.4, 0.3, 0.2, 0.2, 0.6];
    let mut target = TableModel::new(1, 3, target).unwrap();
    let draft = TableModel::new(1, 3, draft).unwrap();
    let mut drafter =
        Rsd::new(DraftModel::new(Box::new(draft)), Shape::Beam { width: 2, depth: 2 }, Streams::new(3))
            .unwrap();
    let n = 60_000;
    let texts = sampled(&mut drafter, &mut target, 4, 4, n);
    let mut counts = vec![0.0; 81];
    for text in &texts {
        counts[text.tokens.iter().fold(0, |at, &token| 3 * at + token as usize)] += 1.0;
    }
    let mut chi2 = 0.0;
    for (text, p) in target.enumerate(&[0], 4) {
        let want = p * n as f64;
        let at = text.iter().fold(0, |at, &token| 3 * at + token as usize);
        chi2 += (counts[at] - want) * (counts[at] - want) / want;
    }
    // 80 degrees of freedom, p = 0.001.
    assert!(chi2 < 124.8, "{chi2}");
}

#[test]
fn the_reference_case_of_a_beam() {
    // Draft and target after the root, and after 0, 1 and 2.
    let q = |path: &[Token]| {
        law(match path.first() {
            None => &[0.6, 0.3, 0.1],
            Some(0) => &[0.2, 0.5, 0.3],
            Some(1) => &[0.7, 0.2, 0.1],
            Some(_) => &[0.1, 0.1, 0.8],
        })
    };
    let p = |path: &[Token]| match path.first() {
        None => [0.3, 0.3, 0.4],
        Some(0) => [0.5, 0.25, 0.25],
        Some(1) => [0.3, 0.4, 0.3],
        Some(_) => [0.2, 0.2, 0.6],
    };
    let (rounds, mut emitted) = (100_000, 0);
    let (mut first, mut joint) = ([0.0; 3], [0.0; 9]);
    let streams = Streams::new(11);
    let (mut rng, mut rest) = (streams.stream("draft"), streams.stream("continue"));
    let mut verifier = Recursive::new(sampler(), streams);
    for _ in 0..rounds {
        let bounds = Bounds { nodes: 9, depth: 2, end: &[] };
        let draft = beam(0, bounds, 2, &mut known(q), &mut rng).unwrap();
        let tree = draft.tree();
        let rows: Vec<f32> = std::iter::once(p(&[]))
            .chain(paths(tree).iter().map(|path| p(path)))
            .flat_map(|row| row.map(|p| (p as f32).ln()))
            .collect();
        let logits = Logits::from_rows(rows, 3, LogitForm::Full).unwrap();
        let verdict = verifier.verify(&Context { text: &[0], draft: &draft, logits: &logits }).unwrap();
        let mut tokens: Vec<Token> = verdict.path.iter().map(|&node| tree.token(node)).collect();
        tokens.push(verdict.next);
        emitted += tokens.len();
        if tokens.len() == 1 {
            tokens.push(law(&p(&tokens)).sample(&mut rest));
        }
        first[tokens[0] as usize] += 1.0;
        joint[3 * tokens[0] as usize + tokens[1] as usize] += 1.0;
    }
    let chi2 = |counts: &[f64], want: &dyn Fn(usize) -> f64| -> f64 {
        let each = counts.iter().enumerate();
        each.map(|(at, count)| {
            let want = f64::from(rounds) * want(at);
            (count - want) * (count - want) / want
        })
        .sum()
    };
    // p = 0.001 with 2 and 8 degrees of freedom.
    assert!(chi2(&first, &|at| p(&[])[at]) < 13.8);
    assert!(chi2(&joint, &|at| p(&[])[at / 3] * p(&[at as Token / 3])[at % 3]) < 26.1);
    let mean = emitted as f64 / f64::from(rounds);
    assert!((mean - 2.303).abs() < 0.012, "{mean}");
}

#[test]
fn a_draft_that_is_the_target_keeps_its_first_chain() {
    let of = |path: &[Token]| {
        let (target, _) = pair();
        let last = path.last().copied().unwrap_or(0);
        let logits: Vec<f32> = target.next(&[last]).probs().iter().map(|p| p.ln() as f32).collect();
        (sampler().distribution(&logits, &[]).unwrap(), logits)
    };
    for growth in [Growth::Greedy, Growth::Threshold(0.2)] {
        let seen = Explorer::explore(|explorer| {
            let mut pick = Pick::Drawn(Box::new(explorer.clone()));
            let mut laws = known(|path| of(path).0);
            let (draft, _) = match growth {
                Growth::Greedy => greedy(0, bounds(4), &mut laws, &mut pick),
                Growth::Threshold(least) => threshold(0, bounds(4), least, &mut laws, &mut pick),
            }
            .unwrap();
            let tree = draft.tree();
            let first = |&node: &usize| tree.children(node).next();
            let chain: Vec<usize> = std::iter::successors(Some(0), first).skip(1).collect();
            let rows: Vec<f32> = std::iter::once(of(&[]).1)
                .chain(paths(tree).iter().map(|path| of(path).1))
                .flatten()
                .collect();
            let logits = Logits::from_rows(rows, 3, LogitForm::Full).unwrap();
            let mut verifier = Recursive::with_choose(sampler(), Box::new(explorer.clone()));
            let verdict = verifier.verify(&Context { text: &[0], draft: &draft, logits: &logits }).unwrap();
            // What the heuristic expects is less than what is certain.
            let expected: f64 = chain.iter().map(|&node| draft.estimates().unwrap()[node]).sum();
            (verdict.path == chain, expected < chain.len() as f64)
        });
        assert_eq!(seen.into_keys().collect::<Vec<_>>(), [(true, true)], "{growth:?}");
    }
}

#[test]
fn limits_of_acceptance() {
    // A draft that is the target: the first child of every node is kept.
    let mut rng = Streams::new(2).stream("test");
    let table = TableModel::random(2, 5, 1.5, &mut rng).unwrap();
    let model = || DraftModel::new(Box::new(table.clone()));
    let streams = Streams::new(6);
    for shape in [Shape::Constant(vec![2, 2, 2]), Shape::Constant(vec![1, 1, 1])] {
        let mut drafter = Rsd::new(model(), shape, streams).unwrap();
        let out = sampled(&mut drafter, &mut table.clone(), 41, 1, 3);
        assert!(out.iter().all(|out| out.rounds.iter().all(|round| round.added == 4)));
    }
    // Whole vocabulary as children: one level is kept for sure, whatever the draft.
    let (mut target, draft) = pair();
    let whole = Shape::Constant(vec![3]);
    let mut drafter = Rsd::new(DraftModel::new(Box::new(draft.clone())), whole, streams).unwrap();
    let out = sampled(&mut drafter, &mut target, 41, 1, 3);
    assert!(out.iter().all(|out| out.rounds.iter().all(|round| round.added == 2)));
    // A chain of iid acceptance: order 0 laws, 1 - TV = .7.
    let p = TableModel::new(0, 3, vec![0.5, 0.3, 0.2]).unwrap();
    let q = TableModel::new(0, 3, vec![0.2, 0.5, 0.3]).unwrap();
    for (shape, want) in [
        (Shape::Constant(vec![1, 1, 1, 1]), (1.0 - 0.7f64.powi(5)) / 0.3),
        (Shape::Beam { width: 1, depth: 4 }, (1.0 - 0.7f64.powi(5)) / 0.3),
        (Shape::Constant(vec![2]), 1.0 + 283.0 / 350.0),
    ] {
        let mut drafter = Rsd::new(DraftModel::new(Box::new(q.clone())), shape.clone(), streams).unwrap();
        let out = sampled(&mut drafter, &mut p.clone(), 400, 9, 20);
        // The last round of a text may be cut short.
        let rounds: Vec<usize> = out
            .iter()
            .flat_map(|out| out.rounds[..out.rounds.len() - 3].iter().map(|round| round.added))
            .collect();
        let mean = rounds.iter().sum::<usize>() as f64 / rounds.len() as f64;
        let spread =
            (rounds.iter().map(|&r| (r as f64 - mean).powi(2)).sum::<f64>() / rounds.len() as f64).sqrt();
        let error = 3.5 * spread / (rounds.len() as f64).sqrt();
        assert!((mean - want).abs() < error, "{shape:?}: {mean} is not {want} +- {error}");
    }
}

#[test]
fn greedy_output_is_plain_output() {
    for seed in 0..20 {
        let mut rng = Streams::new(9).fork(seed).stream("test");
        let mut target = TableModel::random(2, 6, 2.0, &mut rng).unwrap();
        let other = TableModel::random(1, 6, 2.0, &mut rng).unwrap();
        let near = target.mixed(0.3).unwrap();
        let prompt: Vec<Token> = (0..3).map(|_| rng.random_range(0..6)).collect();
        let limits = Limits { new_tokens: 128, ..Limits::default() };
        let plain = Decoder::new(&mut target, &mut Nothing, &mut GreedyTree, limits.clone())
            .unwrap()
            .generate(&prompt)
            .unwrap();
        for table in [&other, &near] {
            let model = || {
                let model = DraftModel::new(Box::new(table.clone()));
                if seed % 2 == 0 {
                    model
                } else {
                    model.with_sampler(Warpers::temperature(0.6).check().unwrap())
                }
            };
            let streams = Streams::new(seed);
            let pick = || if seed % 3 == 0 { Pick::Largest } else { Pick::sampled(streams) };
            let threshold = DySpecConfig { nodes: 20, growth: Growth::Threshold(0.05) };
            let mut drafters: Vec<Box<dyn Drafter>> = vec![
                Box::new(DySpec::new(model(), DySpecConfig::default(), pick()).unwrap()),
                Box::new(DySpec::new(model(), threshold, pick()).unwrap()),
                Box::new(Rsd::new(model(), Shape::default(), streams).unwrap()),
                Box::new(Rsd::new(model(), Shape::Beam { width: 3, depth: 4 }, streams).unwrap()),
            ];
            for drafter in &mut drafters {
                let mut verifier = GreedyTree;
                let mut decoder =
                    Decoder::new(&mut target, drafter.as_mut(), &mut verifier, limits.clone()).unwrap();
                let fast = decoder.generate(&prompt).unwrap();
                assert_eq!(fast.tokens, plain.tokens, "{}", drafter.name());
                assert!(fast.ledger.draft_forwards > 0);
            }
        }
    }
}

#[test]
fn a_draft_model_feeds_only_what_is_new() {
    // A draft that is the target, greedily: all three kept, of which the last was never run, so two rows are new.
    let table = TableModel::random(1, 6, 2.0, &mut Streams::new(1).stream("test")).unwrap();
    let mut drafter = Rsd::with_pick(
        DraftModel::new(Box::new(table.clone())),
        Shape::Constant(vec![1; 3]),
        Pick::Largest,
        Streams::new(1),
    )
    .unwrap();
    let limits = Limits { new_tokens: 41, ..Limits::default() };
    let mut target = table.clone();
    let mut verifier = GreedyTree;
    let out =
        Decoder::new(&mut target, &mut drafter, &mut verifier, limits).unwrap().generate(&[0, 1, 2]).unwrap();
    assert_eq!(out.rounds.len(), 10);
    // The prompt and the first token, then two rows a round for the text, and two for the draft.
    assert_eq!(out.ledger.draft_rows, 4 + 2 + 9 * 4);
    assert_eq!(out.ledger.draft_forwards, 30);
    // A context shorter than the target's: no draft beyond it, and no failure.
    let short = DraftModel::new(Box::new(table.clone().with_context(10)));
    let mut drafter = DySpec::new(short, DySpecConfig::default(), Pick::Largest).unwrap();
    let limits = Limits { new_tokens: 30, ..Limits::default() };
    let mut verifier = GreedyTree;
    let out =
        Decoder::new(&mut target, &mut drafter, &mut verifier, limits).unwrap().generate(&[0, 1, 2]).unwrap();
    assert_eq!((out.tokens.len(), out.rounds.last().unwrap().drafted), (30, 0));
}

#[test]
fn bad_numbers_are_refused() {
    let model = || DraftModel::new(Box::new(pair().1));
    let dyspec = |nodes, growth| DySpec::new(model(), DySpecConfig { nodes, growth }, Pick::Largest).is_err();
    assert!(dyspec(0, Growth::Greedy) && dyspec(4, Growth::Threshold(0.0)));
    assert!(dyspec(4, Growth::Threshold(f64::NAN)) && dyspec(4, Growth::Threshold(1.5)));
    for shape in [
        Shape::Constant(vec![]),
        Shape::Constant(vec![2, 0]),
        Shape::Constant(vec![100; 9]),
        Shape::Beam { width: 0, depth: 2 },
        Shape::Beam { width: 2, depth: 0 },
    ] {
        assert!(Rsd::new(model(), shape.clone(), Streams::new(0)).is_err(), "{shape:?}");
    }
    // Another vocabulary.
    let mut other = TableModel::new(0, 4, vec![1.0; 4]).unwrap();
    let mut drafter = DySpec::new(model(), DySpecConfig::default(), Pick::Largest).unwrap();
    let decoder = Decoder::new(&mut other, &mut drafter, &mut GreedyTree, Limits::default()).map(|_| ());
    assert!(matches!(decoder, Err(DecodingError::Vocabulary { .. })));
}
