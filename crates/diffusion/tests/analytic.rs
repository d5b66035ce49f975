//! Policies over exact marginals against the closed forms: each accuracy within four standard errors.
#![allow(clippy::unwrap_used)]

use pilotfish_diffusion::ideal::{Ideal, Law};
use pilotfish_diffusion::parallelbench::{Items, Task, generate_of_length};
use pilotfish_diffusion::policy::{Policy, Threshold};
use pilotfish_diffusion::{Canvas, Diffusion, DiffusionConfig, Fixed, Score, theory};
use pilotfish_model::Token;

fn shuffle(n: usize) -> Ideal {
    let items: Vec<Token> = (0..n as Token).collect();
    Ideal::new(Law::Permutation { items, identity: true }, n).unwrap()
}

fn replace_random(n: usize) -> Ideal {
    let text = |at: usize| (0..n).map(|i| if i == at { n as Token } else { i as Token }).collect();
    Ideal::new(Law::OneOf((0..n).map(text).collect()), n + 1).unwrap()
}

fn is_permutation(text: &[Token]) -> bool {
    let mut sorted = text.to_vec();
    sorted.sort_unstable();
    sorted.iter().enumerate().all(|(at, token)| at as Token == *token)
}

fn is_replaced(text: &[Token]) -> bool {
    let n = text.len() as Token;
    let news = text.iter().filter(|token| **token == n).count();
    news == 1 && text.iter().enumerate().all(|(at, token)| *token == n || *token == at as Token)
}

/// Accuracy and mean passes over seeds, with ties broken by noise.
fn measure(
    model: &Ideal,
    temperature: f64,
    policy: &mut dyn Policy,
    right: fn(&[Token]) -> bool,
    runs: u64,
) -> (f64, f64) {
    let canvas: Canvas = model.canvas();
    let (mut hits, mut forwards) = (0.0, 0.0);
    for seed in 0..runs {
        let mut model = model.clone().with_noise(1e-4, seed).unwrap();
        let config = DiffusionConfig { temperature, seed, ..DiffusionConfig::default() };
        let text = Diffusion::new(&mut model, config).unwrap().generate(&canvas, policy).unwrap();
        hits += f64::from(u8::from(right(&text.tokens)));
        forwards += text.forwards() as f64;
    }
    (hits / runs as f64, forwards / runs as f64)
}

fn agrees(got: f64, want: f64, runs: u64) -> bool {
    let error = (want * (1.0 - want) / runs as f64).sqrt();
    (got - want).abs() <= 4.0 * error + 1e-12
}

#[test]
fn accuracies_are_the_closed_forms() {
    let runs = 2000;
    for n in [3, 4, 6, 8] {
        for k in [1, 2, 4, n] {
            let sizes = theory::steps_of(n, k);
            let want = theory::shuffle_accuracy(&sizes);
            for (score, temperature) in
                [(Score::Chance, 1.0), (Score::Probability, 0.0), (Score::Entropy, 0.0)]
            {
                let mut policy = Fixed::tokens(score, k);
                let (got, forwards) = measure(&shuffle(n), temperature, &mut policy, is_permutation, runs);
                assert!(agrees(got, want, runs), "shuffle n = {n}, k = {k}, {score:?}: {got} is not {want}");
                assert_eq!(forwards, sizes.len() as f64);
            }
            let want = theory::replace_random_accuracy(&sizes);
            for score in [Score::Chance, Score::LeftToRight] {
                let mut policy = Fixed::tokens(score, k);
                let (got, _) = measure(&replace_random(n), 1.0, &mut policy, is_replaced, runs);
                assert!(agrees(got, want, runs), "replace n = {n}, k = {k}, {score:?}: {got} is not {want}");
            }
            let want = theory::replace_random_greedy(&sizes);
            let mut policy = Fixed::tokens(Score::Probability, k);
            let (got, _) = measure(&replace_random(n), 0.0, &mut policy, is_replaced, runs);
            assert!(agrees(got, want, runs), "greedy replace n = {n}, k = {k}: {got} is not {want}");
        }
    }
}

/// Ranking by confidence at temperature 1 is another law: what is drawn decides when. The closed form is not its.
#[test]
fn the_order_must_not_look_at_draws() {
    let mut policy = Fixed::tokens(Score::Probability, 1);
    let (got, _) = measure(&replace_random(8), 1.0, &mut policy, is_replaced, 2000);
    assert!(agrees(got, 1.0, 2000), "one at a time is exact in any order");
    let mut policy = Fixed::tokens(Score::Probability, 2);
    let (got, _) = measure(&replace_random(8), 1.0, &mut policy, is_replaced, 2000);
    let want = theory::replace_random_accuracy(&theory::steps_of(8, 2));
    assert!(!agrees(got, want, 2000), "{got} happens to be {want}");
}

#[test]
fn ties_decide_greedy_replacement() {
    // Two places left, a tie at each. Broken by the order of tokens both do the same: keep (the old item's id is
    // smaller) or replace twice.
    let mut model = replace_random(4);
    let canvas = model.canvas();
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    let text = decoder.generate(&canvas, &mut Fixed::tokens(Score::Probability, 2)).unwrap();
    assert_eq!(text.tokens, [0, 1, 2, 3], "kept everywhere");
    // With the new item's id smaller than all others it is the other way round.
    let other = |at: usize| (0..4).map(|i| if i == at { 0 } else { i as Token + 1 }).collect();
    let mut model = Ideal::new(Law::OneOf((0..4).map(other).collect()), 5).unwrap();
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    let text = decoder.generate(&canvas_of(5, 4), &mut Fixed::tokens(Score::Probability, 2)).unwrap();
    assert_eq!(text.tokens.iter().filter(|token| **token == 0).count(), 2);
    // By chance it is one half.
    let (got, _) =
        measure(&replace_random(4), 0.0, &mut Fixed::tokens(Score::Probability, 2), is_replaced, 3000);
    assert!(agrees(got, 0.5, 3000), "{got}");
}

fn canvas_of(mask: Token, length: usize) -> Canvas {
    Canvas::after(&[], length, mask)
}

#[test]
fn thresholds_are_as_forecast() {
    let runs = 300;
    for n in [4, 6, 8] {
        for gamma in [0.6, 0.7, 0.8, 0.85, 0.9, 0.95] {
            let cases = [
                (shuffle(n), theory::shuffle_threshold(n, gamma), is_permutation as fn(&[Token]) -> bool),
                (replace_random(n), theory::replace_random_threshold(n, gamma), is_replaced),
            ];
            for (model, forecast, right) in cases {
                let Some(forecast) = forecast else { continue };
                let got = measure(&model, 0.0, &mut Threshold { gamma }, right, runs);
                assert_eq!(got, (forecast.accuracy, forecast.forwards as f64), "n = {n}, gamma = {gamma}");
            }
        }
    }
    // Shuffle n = 6: confidences 1/6, 1/5, 1/4, 1/3, 1/2, 1.
    let mut model = shuffle(6);
    let canvas = model.canvas();
    let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default()).unwrap();
    let text = decoder.generate(&canvas, &mut Threshold { gamma: 0.6 }).unwrap();
    let confidences: Vec<f64> = text.steps.iter().map(|step| step.commits[0].confidence).collect();
    for (got, want) in confidences.iter().zip([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) {
        assert!((got - 1.0 / want).abs() < 1e-6);
    }
}

#[test]
fn every_task_is_solved_one_at_a_time() {
    for task in Task::ALL {
        for problem in generate_of_length(task, Items::Letters, 4, 6, 11).unwrap() {
            let Some((law, names)) = problem.law() else {
                assert_eq!(task, Task::WordsToSentence);
                continue;
            };
            let mut model = Ideal::new(law, names.len()).unwrap();
            let canvas = model.canvas();
            for seed in 0..10 {
                let config = DiffusionConfig { temperature: 1.0, seed, ..DiffusionConfig::default() };
                let mut decoder = Diffusion::new(&mut model, config).unwrap();
                let text = decoder.generate(&canvas, &mut Fixed::tokens(Score::Chance, 1)).unwrap();
                let items: Vec<String> =
                    text.tokens.iter().map(|&token| names[token as usize].clone()).collect();
                assert!(problem.is_right(&items), "{task}: {problem:?} {items:?}");
                let scored = problem.score(&problem.write(&items));
                assert!(scored.loose && scored.strict, "{task}: {items:?}");
            }
        }
    }
}

#[test]
fn a_latin_square_cannot_be_drawn_at_once() {
    let problem = &generate_of_length(Task::LatinSquare, Items::Letters, 4, 1, 3).unwrap()[0];
    let (law, _) = problem.law().unwrap();
    let Law::OneOf(texts) = law else { panic!("squares can be listed") };
    let joint = theory::Joint::uniform(texts).unwrap();
    let all = joint.bound(&[(0..16).collect()]).unwrap();
    assert!((all - (32.0 - 576f64.log2())).abs() < 1e-9);
    // Row by row loses less, cell by cell nothing; no finer partition loses more.
    let rows = joint.bound(&(0..4).map(|row| (row * 4..row * 4 + 4).collect()).collect::<Vec<_>>()).unwrap();
    let cells = joint.bound(&(0..16).map(|cell| vec![cell]).collect::<Vec<_>>()).unwrap();
    assert!(all > rows && rows > 0.0 && cells.abs() < 1e-9);
}
