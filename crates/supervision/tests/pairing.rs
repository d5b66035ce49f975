//! Pairs out of generations: worked by hand for every rule, and lines that are refused.
#![allow(clippy::unwrap_used)]

use pilotfish_supervision::SupervisionError;
use pilotfish_supervision::pairing::{Generation, Rule, Tally, pair, read};
use pilotfish_supervision::preferences::{Form, Preference};
use pilotfish_supervision::reasoning::{Gates, Key};

fn generations(lines: &[(&str, &str)]) -> Vec<Generation> {
    let lines: Vec<String> = lines
        .iter()
        .map(|(prompt, response)| serde_json::json!({ "prompt": prompt, "response": response }).to_string())
        .collect();
    read(lines.join("\n").as_bytes(), "lines").unwrap()
}

fn sides(pairs: &[Preference]) -> Vec<(&str, &str)> {
    pairs.iter().map(|pair| (pair.chosen.as_str(), pair.rejected.as_str())).collect()
}

#[test]
fn the_larger_models_answer_is_chosen_whatever_it_says() {
    let large = generations(&[("a", "right"), ("b", "same"), ("c", "wrong!"), ("d", "alone"), ("e", " ")]);
    let small = generations(&[("c", "right"), ("b", "same"), ("a", "wrong"), ("e", "full")]);
    let (pairs, tally) = pair(&[large.clone(), small.clone()], &Rule::Delta, 1).unwrap();
    // In the order of the first file; equal and empty texts teach nothing; "d" has no other side.
    assert_eq!(sides(&pairs), [("right", "wrong"), ("wrong!", "right")]);
    let want = Tally { prompts: 5, pairs: 2, unmatched: 1, empty: 2, longer: 1, ..Tally::default() };
    assert_eq!(tally, want);
    let (turned, _) = pair(&[small, large], &Rule::Delta, 1).unwrap();
    assert_eq!(sides(&turned), [("right", "wrong!"), ("wrong", "right")]);
    // What is written is what trainers read.
    assert!(pairs.iter().all(|pair| pair.fault().is_none() && pair.line(Form::Standard).is_ok()));
}

#[test]
fn a_coin_prefers_neither_side() {
    let prompts: Vec<String> = (0..4000).map(|at| at.to_string()).collect();
    let of = |word| generations(&prompts.iter().map(|prompt| (prompt.as_str(), word)).collect::<Vec<_>>());
    let files = [of("one"), of("other")];
    let (pairs, _) = pair(&files, &Rule::Tied, 1).unwrap();
    let ones = pairs.iter().filter(|pair| pair.chosen == "one").count();
    // Five standard deviations of 4000 tosses are 158.
    assert!(ones.abs_diff(2000) < 158, "{ones}");
    assert_eq!(pair(&files, &Rule::Tied, 1).unwrap().0, pairs);
    assert_ne!(pair(&files, &Rule::Tied, 2).unwrap().0, pairs);
}

#[test]
fn the_majority_judges_the_weak_answer() {
    let weak =
        generations(&[("q1", "so #### 4"), ("q2", "so #### 5"), ("q3", "so #### 6"), ("q4", "so #### 7")]);
    let votes = [
        ("q1", [("4", 7), ("9", 3)]),
        ("q2", [("9", 8), ("5", 2)]),
        ("q3", [("9", 7), ("6", 3)]),
        ("q4", [("7", 10), ("9", 0)]),
    ];
    let mut all = Vec::new();
    for (prompt, answers) in votes {
        for (answer, count) in answers {
            all.extend((0..count).map(|at| (prompt, format!("chain {at} #### {answer}"))));
        }
    }
    let samples = generations(&all.iter().map(|(p, r)| (*p, r.as_str())).collect::<Vec<_>>());
    let rule = Rule::Contrastive { key: Key::Hashes, gates: Gates::default() };
    let (pairs, tally) = pair(&[weak.clone(), samples.clone()], &rule, 1).unwrap();
    // q1: 7 of 10 agree with the weak answer: it is chosen. q2: 8 of 10 are against it: it is rejected. q3: 7 are not
    // sure enough for that. q4: everybody agrees.
    assert_eq!(pairs.len(), 2);
    assert!(pairs[0].chosen == "so #### 4" && pairs[0].rejected.ends_with("#### 9"), "{pairs:?}");
    assert!(pairs[1].rejected == "so #### 5" && pairs[1].chosen.ends_with("#### 9"), "{pairs:?}");
    assert_eq!([pairs[0].about.confidence, pairs[1].about.confidence], [Some(0.7), Some(0.8)]);
    assert_eq!((tally.unsure, tally.easy, tally.unmatched), (1, 1, 0));
    let twice = [weak.clone(), weak].concat();
    assert!(matches!(
        pair(&[twice, samples], &rule, 1),
        Err(SupervisionError::Shape { got: 2, want: 1, .. })
    ));
}

#[test]
fn the_best_score_against_the_worst() {
    let line = |prompt: &str, response: &str, score: &str| {
        format!("{{\"prompt\":{prompt:?},\"response\":{response:?},\"score\":{score},\"group\":3}}\n")
    };
    let text = [
        line("a", "middle", "0.5"),
        line("a", "best", "0.9"),
        line("a", "also best", "0.9"),
        line("a", "worst", "-1"),
        line("b", "one", "0.5"),
        line("b", "two", "0.45"),
        line("c", "unscored", "null"),
        line("c", "scored", "1"),
    ]
    .concat();
    let all = vec![read(text.as_bytes(), "scores").unwrap()];
    let (pairs, tally) = pair(&all, &Rule::Score { margin: 0.1 }, 1).unwrap();
    assert_eq!(sides(&pairs), [("best", "worst")]);
    assert_eq!((tally.close, pairs[0].about.group), (2, Some(3)));
    assert_eq!(pair(&all, &Rule::Score { margin: 0.0 }, 1).unwrap().0.len(), 2);
    let wrong = pair(&all, &Rule::Score { margin: f64::NAN }, 1);
    assert!(matches!(wrong, Err(SupervisionError::BadParameter { name: "margin", .. })));
}

#[test]
fn wrong_files_are_refused_with_their_line() {
    let whole = "{\"prompt\": [{\"role\": \"user\", \"content\": \"hi\"}], \"response\": \"ho\"}";
    assert_eq!(read(format!("\u{feff}\n{whole}\r\n").as_bytes(), "f").unwrap().len(), 1);
    // Cut anywhere, a line is refused and never half read.
    for cut in 1..whole.len() {
        assert!(read(&whole.as_bytes()[..cut], "f").is_err(), "{cut}");
    }
    for bad in [
        "[]",
        "{\"prompt\": \"p\"}",
        "{\"prompt\": 3, \"response\": \"r\"}",
        "{\"prompt\": \" \", \"response\": \"r\"}",
    ] {
        let refused = read(format!("{whole}\n{bad}").as_bytes(), "f").unwrap_err();
        assert!(matches!(refused, SupervisionError::Line { line: 2, .. }), "{bad}: {refused}");
    }
    assert!(read(&b"\xff\xfe"[..], "f").is_err());
    assert!(matches!(read(&b"\n"[..], "f"), Err(SupervisionError::Empty { .. })));
    let one = vec![generations(&[("a", "b")])];
    assert!(matches!(pair(&one, &Rule::Delta, 1), Err(SupervisionError::Shape { got: 1, want: 2, .. })));
}
