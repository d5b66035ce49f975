//! Weak-to-strong reasoning: answers, filters and pairs, against tables worked by hand.
#![allow(clippy::unwrap_used)]

use pilotfish_model::Streams;
use pilotfish_supervision::reasoning::{
    ContrastPair, Gates, Key, Skipped, Solution, Source, agreement, canonical, consistent, contrast, extract,
    gate, lessons, normalise, pass_at, same, vote,
};
use proptest::prelude::*;
use rand::Rng;

fn solution(answer: &str, text: &str) -> Solution {
    Solution { text: text.into(), answer: answer.into() }
}

/// Samples with these answers and counts, each with a text of its own.
fn samples(votes: &[(&str, usize)]) -> Vec<Solution> {
    let each = |(answer, count): &(&str, usize)| {
        let answer = (*answer).to_owned();
        (0..*count).map(move |at| solution(&answer, &format!("strong {at}: {answer}"))).collect::<Vec<_>>()
    };
    votes.iter().flat_map(each).collect()
}

fn pairs(weak: &str, votes: &[(&str, usize)], gates: Gates) -> Result<Vec<ContrastPair>, Skipped> {
    let mut rng = Streams::new(42).stream("pairs");
    contrast(&solution(weak, &format!("weak: {weak}")), &samples(votes), &gates, &mut rng).unwrap()
}

#[test]
fn answers_are_found_where_they_stand() {
    for (response, want) in [
        ("He sold 48 / 2 = 24.\n48 + 24 = 72 clips.\n#### 72", "72"),
        ("#### 1,000", "1000"),
        ("First #### 3, no: #### 4.", "4"),
        ("The answer is 3.50.", "3.50"),
        ("The answer is $1,250 in all", "1250"),
        ("The answer is -4.", "-4"),
        ("#### 5\nQuestion: and then?\nAnswer: #### 6", "5"),
        ("no idea", ""),
        ("The answer is unknown", ""),
        ("", ""),
    ] {
        assert_eq!(extract(response, Key::Hashes), want, "{response:?}");
    }
    assert_eq!(extract("So x = 4. The answer is: $\\frac12$", Key::AnswerIs), "\\frac{1}{2}");
    assert_eq!(extract("The answer is: B", Key::AnswerIs), "b");
}

#[test]
fn equal_answers_are_equal() {
    for (answer, want) in [
        ("x = 7", "7"),
        ("5.0", "5"),
        ("5.00", "5"),
        ("12.50", "12.50"),
        ("40%", "40"),
        ("the 3 dollars", "3"),
        ("\\boxed{\\text{12}}", "12"),
        ("1,234,567", "1234567"),
        ("(1, 2)", "(1, 2)"),
        ("H", "H"),
        ("G", "g"),
    ] {
        assert_eq!(normalise(answer), want, "{answer:?}");
    }
    for (a, b) in [
        ("12.50", "12.5"),
        ("5.0", "5"),
        ("0.5", "\\frac{1}{2}"),
        ("2/4", "1/2"),
        ("-0", "0"),
        ("1,000", "1000.0"),
    ] {
        assert!(same(a, b), "{a} {b}");
    }
    for (a, b) in [("12.5", "12.6"), ("1/2", "2"), ("", ""), ("x", "y"), ("-3", "3"), ("1/0", "2/0")] {
        assert!(!same(a, b), "{a} {b}");
    }
    assert_eq!(canonical("3/-4"), "3/-4", "what is no number stays");
}

#[test]
fn agreement_and_gates_have_closed_forms() {
    for (weak, strong, alternatives, kept, precision) in [
        (0.25, 0.56, 5, 0.2060, 0.6796),
        (0.25, 0.56, 50, 0.1466, 0.9550),
        (0.41, 0.56, 5, 0.2815, 0.8156),
        (0.66, 0.60, 50, 0.3987, 0.9932),
        (0.25, 0.56, 1, 0.4700, 0.2979),
    ] {
        let (got, right) = agreement(weak, strong, alternatives);
        assert!((got - kept).abs() < 6e-5 && (right - precision).abs() < 6e-5, "{got} {right}");
    }
    for (r, six, eight) in
        [(0.5, 0.3770, 0.0547), (0.6, 0.6331, 0.1673), (0.7, 0.8497, 0.3828), (0.8, 0.9672, 0.6778)]
    {
        assert!((gate(r, 10, 6) - six).abs() < 6e-5 && (gate(r, 10, 8) - eight).abs() < 6e-5);
    }
    assert!((pass_at(10, 3, 1).unwrap() - 0.3).abs() < 1e-12);
    assert!((pass_at(10, 3, 5).unwrap() - 0.9167).abs() < 1e-4);
    assert_eq!((pass_at(10, 3, 10), pass_at(10, 0, 10), pass_at(10, 3, 11)), (Some(1.0), Some(0.0), None));
}

/// Two simulated solvers: what is kept, and how much of it is right.
#[test]
fn simulated_solvers_meet_the_closed_form() {
    const N: usize = 20_000;
    let mut rng = Streams::new(1).stream("solvers");
    let mut solve = |accuracy: f64| -> Vec<Solution> {
        let answer = |rng: &mut pilotfish_model::StreamRng| match rng.random_bool(accuracy) {
            true => "0".to_owned(),
            false => rng.random_range(1..=5u32).to_string(),
        };
        (0..N).map(|_| solution(&answer(&mut rng), "")).collect()
    };
    let (weak, strong) = (solve(0.41), solve(0.56));
    let kept = consistent(&weak, &strong).unwrap();
    let right = kept.iter().filter(|at| weak[**at].answer == "0").count();
    let (want, precision) = agreement(0.41, 0.56, 5);
    assert!((kept.len() as f64 / N as f64 - want).abs() < 4.0 * (want * (1.0 - want) / N as f64).sqrt());
    assert!((right as f64 / kept.len() as f64 - precision).abs() < 0.025);
}

#[test]
fn lessons_are_the_questions_kept() {
    let weak = [solution("1", "w0"), solution("2", "w1"), solution("", "w2")];
    let strong = [solution("1", "s0"), solution("3", "s1"), solution("", "s2")];
    let kept = consistent(&weak, &strong).unwrap();
    // No answer agrees with no answer, but says nothing.
    assert_eq!(kept, [0]);
    assert_eq!(lessons(&kept, &weak, &strong, Source::Weak), [(0, "w0")]);
    assert_eq!(lessons(&kept, &weak, &strong, Source::InContext), [(0, "s0")]);
    assert_eq!(
        lessons(&[0, 1], &weak, &strong, Source::Hybrid),
        [(0, "w0"), (0, "s0"), (1, "w1"), (1, "s1")]
    );
    assert!(consistent(&weak, &strong[1..]).is_err());
    let read = Solution::of("1+1=2\n#### 2.0", Key::Hashes);
    assert_eq!(read.answer, "2");
}

#[test]
fn the_table_of_votes_and_actions() {
    let gates = Gates::default();
    let found = pairs("7", &[("7", 8), ("9", 2)], gates).unwrap();
    assert!(found.len() == 1 && found[0].chosen == "weak: 7" && found[0].weak_chosen);
    assert!(found[0].rejected.ends_with(": 9"));
    assert_eq!(pairs("7", &[("7", 10)], gates), Err(Skipped::TooEasy));
    assert_eq!(pairs("7", &[("7", 5), ("1", 3), ("2", 2)], gates), Err(Skipped::Unsure));
    let found = pairs("9", &[("7", 8), ("9", 2)], gates).unwrap();
    assert!(found.len() == 1 && found[0].rejected == "weak: 9" && !found[0].weak_chosen);
    assert!(found[0].chosen.ends_with(": 7"));
    assert_eq!(pairs("9", &[("7", 7), ("9", 3)], gates), Err(Skipped::NotSureEnough));
    assert_eq!(pairs("9", &[("", 7), ("9", 3)], gates), Err(Skipped::NoAnswer));
    assert_eq!(pairs("9", &[("7", 5), ("9", 5)], gates), Err(Skipped::Unsure));
    assert_eq!(pairs("7", &[("6", 6), ("7", 4)], gates), Err(Skipped::NotSureEnough));
    assert!(pairs("6", &[("6", 6), ("7", 4)], gates).unwrap()[0].weak_chosen);
    // Of equals the answer that came first.
    assert_eq!(vote(&samples(&[("9", 3), ("7", 3)])), Some(("9", 3)));
    assert_eq!(vote(&[]), None);
    let mut rng = Streams::new(1).stream("pairs");
    assert!(contrast(&solution("7", "w"), &[], &gates, &mut rng).is_err());
    let none = Gates { pairs: 0, ..gates };
    assert!(contrast(&solution("7", "w"), &samples(&[("7", 9)]), &none, &mut rng).is_err());
}

#[test]
fn several_pairs_have_different_texts() {
    let gates = Gates { pairs: 3, ..Gates::default() };
    let found = pairs("7", &[("7", 8), ("9", 1), ("8", 1)], gates).unwrap();
    assert_eq!(found.len(), 2, "there are but two negatives");
    assert_ne!(found[0].rejected, found[1].rejected);
    assert_eq!(pairs("9", &[("7", 10)], gates).unwrap().len(), 3);
    // The same draw again.
    assert_eq!(pairs("9", &[("7", 10)], gates), pairs("9", &[("7", 10)], gates));
}

proptest! {
    /// Every pair has exactly one weak side, and two answers.
    #[test]
    fn one_side_is_weak_and_answers_differ(
        answers in prop::collection::vec("[0-3]?", 1..12),
        weak in "[0-3]?",
        most in 1usize..4,
        seed in any::<u64>(),
    ) {
        let samples: Vec<Solution> =
            answers.iter().enumerate().map(|(at, answer)| solution(answer, &format!("s{at}#{answer}"))).collect();
        let weak = solution(&weak, &format!("w#{weak}"));
        let gates = Gates { pairs: most, ..Gates::default() };
        let mut rng = Streams::new(seed).stream("pairs");
        if let Ok(found) = contrast(&weak, &samples, &gates, &mut rng).unwrap() {
            prop_assert!(!found.is_empty() && found.len() <= most);
            for pair in found {
                let weak_sides = [&pair.chosen, &pair.rejected].into_iter().filter(|text| **text == weak.text).count();
                prop_assert_eq!(weak_sides, 1);
                prop_assert_eq!(pair.weak_chosen, pair.chosen == weak.text);
                let answer = |text: &str| text.rsplit('#').next().map(str::to_owned);
                prop_assert_ne!(answer(&pair.chosen), answer(&pair.rejected));
                // The better side is the majority's.
                let better = answer(&pair.chosen).unwrap();
                prop_assert_eq!(vote(&samples).unwrap().0, better.as_str());
            }
        }
    }

    /// Any text is an answer or none; trailing zeros change nothing.
    #[test]
    fn any_text_is_read(answer in "[\\\\a-zA-F0-9{}$=.,%/ -]{0,24}", wild in ".{0,12}", number in -1e6f64..1e6) {
        for text in [&answer, &wild] {
            prop_assert_eq!(same(text, text), !canonical(text).is_empty());
            let _ = (extract(text, Key::Hashes), extract(&format!("The answer is {text}"), Key::AnswerIs));
        }
        let short = format!("{number:.3}");
        let long = format!("{short}0");
        prop_assert!(same(&short, &long));
    }
}
