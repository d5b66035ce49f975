//! Grammars that are hostile, empty, ambiguous or merely large: a typed error or a right answer, in bounded time.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use pilotfish_constrained::{
    Both, ConstrainedError, Constraint, GrammarLimits, Grammars, Predicate, Result, Smc, Vocabulary,
};
use pilotfish_model::Streams;
use pilotfish_model::toy::TableModel;
use rand::Rng;
use serde_json::json;

use common::naive;

fn bytes() -> Grammars {
    Grammars::new(Arc::new(Vocabulary::single_bytes())).unwrap()
}

/// Tokens of several bytes, two of them alike, some no UTF-8 of their own.
fn words() -> Grammars {
    let list: [&[u8]; 16] = [
        b"a",
        b"b",
        b"ab",
        b"abab",
        b"\"",
        b"{\"",
        b"\":",
        b"1",
        b"12",
        b"}",
        b" ",
        b"a",
        b"\xc3",
        b"\xa9",
        b"\xff",
        b"\xfe\xff",
    ];
    let bytes = list.iter().map(|bytes| Some(bytes.to_vec())).chain([None]).collect();
    Grammars::new(Arc::new(Vocabulary::new(bytes, vec![16]).unwrap())).unwrap()
}

fn matches(grammar: &dyn Constraint, text: &str) -> bool {
    let mut grammar = grammar.fork();
    grammar.push(text.as_bytes()).unwrap() && grammar.complete().unwrap()
}

#[test]
fn masks_equal_single_tests_and_tokens_straddle_terminals() {
    let grammars = words();
    let vocabulary = grammars.vocabulary().clone();
    let mut grammar = grammars.lark("start: A B A B | A\nA: \"a\"\nB: \"b\"").unwrap();
    let mask = grammar.mask(&vocabulary).unwrap();
    // a, ab, abab and the second a.
    assert_eq!(mask.tokens().collect::<Vec<_>>(), [0, 2, 3, 11]);
    assert_eq!(mask, naive(&mut grammar, &vocabulary));
    assert!(grammar.push(b"a").unwrap());
    let mask = grammar.mask(&vocabulary).unwrap();
    assert_eq!(mask.tokens().collect::<Vec<_>>(), [1, 16]);
    assert_eq!(mask, naive(&mut grammar, &vocabulary));
    let mut fork = grammar.fork();
    assert!(fork.push(b"ba").unwrap() && !fork.complete().unwrap() && grammar.complete().unwrap());
    let mut json = grammars
        .json_schema(&json!({ "type": "object", "properties": { "a": { "type": "integer" } } }))
        .unwrap();
    for piece in ["{\"", "a", "\":", "12"] {
        assert_eq!(json.mask(&vocabulary).unwrap(), naive(&mut json, &vocabulary));
        assert!(json.push(piece.as_bytes()).unwrap());
    }
    assert_eq!(json.mask(&vocabulary).unwrap(), naive(&mut json, &vocabulary));
    assert!(!json.complete().unwrap() && json.push(b"}").unwrap() && json.complete().unwrap());
}

/// The lexer stands at the same place of the same terminal, and what may follow it differs: a mask kept by the lexer's
/// state alone would be wrong.
#[test]
fn masks_are_kept_by_place_and_history() {
    let list: [&[u8]; 6] = [b"a", b"b", b"c", b"cx", b"cy", b"cc"];
    let bytes = list.iter().map(|bytes| Some(bytes.to_vec())).chain([None]).collect();
    let vocabulary = Arc::new(Vocabulary::new(bytes, vec![6]).unwrap());
    let grammars = Grammars::new(vocabulary.clone()).unwrap();
    let source = "start: \"a\" C \"x\" | \"b\" C \"y\"\nC: /c+/";
    let grammar = grammars.lark(source).unwrap();
    for (text, want) in [("ac", [2, 3, 5]), ("bc", [2, 4, 5]), ("acc", [2, 3, 5]), ("bcc", [2, 4, 5])] {
        // Twice: found, then kept.
        for _ in 0..2 {
            let mut place = grammar.fork();
            assert!(place.push(text.as_bytes()).unwrap());
            assert_eq!(place.mask(&vocabulary).unwrap().tokens().collect::<Vec<_>>(), want, "{text}");
        }
    }
}

#[test]
fn kept_masks_equal_found_ones() {
    let grammars = words();
    let vocabulary = grammars.vocabulary().clone();
    let few = grammars.clone().limits(GrammarLimits { kept_masks: 3, ..GrammarLimits::default() });
    let schema =
        json!({ "type": "object", "properties": { "a": { "type": "string" }, "ab": { "type": "integer" } } });
    let lark = "start: x*\nx: \"a\" x \"b\" | \"1\" | B\nB: /[b2]+/";
    for kind in 0..3 {
        let build = |grammars: &Grammars| match kind {
            0 => grammars.regex("(ab|a1)*(12)?é?").unwrap(),
            1 => grammars.lark(lark).unwrap(),
            _ => grammars.json_schema(&schema).unwrap(),
        };
        let (many, few) = (build(&grammars), build(&few));
        let mut streams = Streams::new(3).stream("walks");
        for _ in 0..40 {
            let (mut place, mut other) = (many.fork(), few.fork());
            for _ in 0..8 {
                let mask = place.mask(&vocabulary).unwrap();
                assert_eq!(mask, naive(&mut *place, &vocabulary));
                assert_eq!(mask, other.mask(&vocabulary).unwrap());
                let open: Vec<_> = mask.tokens().filter(|&token| !vocabulary.is_end(token)).collect();
                let Some(&token) = open.get(streams.random_range(0..open.len().max(1))) else { break };
                let bytes = vocabulary.bytes(token).unwrap();
                assert!(place.push(bytes).unwrap() && other.push(bytes).unwrap());
            }
        }
    }
}

/// Few tokens are asked of the second language one by one, many by its own mask.
#[test]
fn both_masks_equal_single_tests() {
    let vocabulary = Arc::new(Vocabulary::single_bytes());
    let grammars = Grammars::new(vocabulary.clone()).unwrap();
    let digits = |text: &[u8]| text.iter().map(|&byte| u32::from(byte)).sum::<u32>() % 3 == 0;
    for expression in ["[0-3]{0,4}", "[^7]*"] {
        let ends = Predicate::new(|text| !text.ends_with(b"2"), digits);
        let mut both = Both(grammars.regex(expression).unwrap(), ends);
        for byte in [&b""[..], b"0", b"3", b"1"] {
            assert!(both.push(byte).unwrap());
            assert_eq!(both.mask(&vocabulary).unwrap(), naive(&mut both, &vocabulary), "{expression}");
        }
    }
}

#[test]
fn bytes_that_are_no_characters_yet() {
    let mut grammar = words().regex("(é|a)+").unwrap();
    assert!(grammar.push(b"\xc3").unwrap());
    assert!(!grammar.complete().unwrap() && !grammar.prefix(b"a").unwrap());
    assert!(grammar.push(b"\xa9").unwrap() && grammar.complete().unwrap());
    for bad in [&b"\xff"[..], b"\xfe\xff", b"\xa9", b"\xc3\xc3", b"a\xff"] {
        assert!(!grammar.prefix(bad).unwrap(), "{bad:?}");
    }
    // A refused push is for good, and the fork before it is not touched.
    let mut before = grammar.fork();
    assert!(
        !grammar.push(b"\xff").unwrap() && !grammar.prefix(b"a").unwrap() && !grammar.complete().unwrap()
    );
    assert!(!grammar.push(b"a").unwrap() && before.push(b"a").unwrap());
}

#[test]
fn another_vocabulary_is_refused() {
    let mut grammar = bytes().regex("a").unwrap();
    let other = Vocabulary::single_bytes();
    assert!(matches!(grammar.mask(&other), Err(ConstrainedError::Vocabulary { .. })));
}

#[test]
fn recursion_and_ambiguity() {
    let grammars = bytes();
    // Left recursion.
    let sum = grammars.lark("start: start \"+\" N | N\nN: /[0-9]+/").unwrap();
    assert!(matches(&sum, "1+22+3") && !matches(&sum, "1+") && !matches(&sum, "+1"));
    // Every way to cut a run of a's: 2^n parses.
    let mut ambiguous = grammars.lark("start: x\nx: x x | \"a\"").unwrap();
    let verdicts: Result<Vec<bool>> = (0..300).map(|_| ambiguous.push(b"a")).collect();
    match verdicts {
        Ok(verdicts) => assert!(verdicts.iter().all(|&alive| alive) && ambiguous.complete().unwrap()),
        Err(error) => assert!(matches!(error, ConstrainedError::TooComplex { .. }), "{error}"),
    }
    // Hidden left recursion and cycles of empty rules.
    let cyclic = grammars.lark("start: a\na: b | \"x\"\nb: a | a a |").unwrap();
    assert!(matches(&cyclic, "x") && matches(&cyclic, "xxx"));
}

#[test]
fn languages_without_texts() {
    let grammars = bytes();
    for grammar in ["start: x\nx: \"a\" x", "start: /[^\\x00-\\U0010FFFF]/", "start: \"a\" start"] {
        // Seen when it is compiled, or a text dies later; never a text that is complete.
        if let Ok(mut found) = grammars.lark(grammar) {
            for _ in 0..50 {
                assert!(!found.complete().unwrap(), "{grammar}");
                if !found.push(b"a").unwrap() {
                    break;
                }
            }
        }
    }
    assert!(grammars.json_schema(&json!(false)).is_err());
    assert!(grammars.json_schema(&json!({ "type": "integer", "minimum": 3, "maximum": 2 })).is_err());
    // Only the empty text.
    let mut empty = grammars.lark("start: \"\"").unwrap();
    assert!(empty.complete().unwrap() && !empty.prefix(b"a").unwrap());
    assert!(empty.mask(grammars.vocabulary()).unwrap().allows(256));
}

#[test]
fn dead_after_one_token() {
    // The grammar wants a letter that no token can write after "b".
    let list: [&[u8]; 2] = [b"a", b"b"];
    let bytes = list.iter().map(|bytes| Some(bytes.to_vec())).chain([None]).collect();
    let vocabulary = Arc::new(Vocabulary::new(bytes, vec![2]).unwrap());
    let grammar = Grammars::new(vocabulary.clone()).unwrap().regex("a|bz").unwrap();
    let mut model = TableModel::new(0, 3, vec![0.1, 0.8, 0.1]).unwrap();
    for smc in [Smc::masked(), Smc::awrs(), Smc::twisted(), Smc::locally_constrained()] {
        let smc = Smc { particles: 2000, ..smc };
        let found = smc.run(&mut model, &vocabulary, &grammar, &[0], Streams::new(1)).unwrap();
        let texts = found.texts();
        assert!(texts.len() == 1 && texts[0].0 == b"a", "{smc:?} {texts:?}");
    }
}

#[test]
fn expressions_that_explode() {
    let grammars = bytes();
    let hostile = [
        "(a|aa)*(a|aa)*(a|aa)*c".to_owned(),
        "(a*)*(a*)*b".to_owned(),
        "(.*a){12}".to_owned(),
        ".*a.{16}".to_owned(),
        "(a{1,100}){1,100}".to_owned(),
        "((a{0,50}){0,50}){0,50}".to_owned(),
        "a{1000000000}".to_owned(),
        "(x+x+)+y".to_owned(),
        "[a-z]{0,5000}".to_owned(),
    ];
    for expression in hostile {
        let mut grammar = match grammars.regex(&expression) {
            Ok(grammar) => grammar,
            Err(error) => {
                assert!(matches!(
                    error,
                    ConstrainedError::Grammar { .. } | ConstrainedError::TooComplex { .. }
                ));
                continue;
            }
        };
        for _ in 0..200 {
            match grammar.push(b"a") {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    assert!(matches!(error, ConstrainedError::TooComplex { .. }), "{expression}: {error}");
                    break;
                }
            }
        }
        let _ = grammar.mask(grammars.vocabulary());
    }
    for malformed in ["(", "[", "a{2,1}", "\\", "(?<=a)b", "*", "a**\u{0}("] {
        let _ = grammars.regex(malformed);
    }
    assert!(grammars.regex("(").is_err() && grammars.regex(&"(".repeat(5000)).is_err());
    assert!(grammars.regex(&"a".repeat(2 << 20)).is_err());
    assert!(grammars.regex(&format!("{}a{}", "(".repeat(5000), ")".repeat(5000))).is_err());
}

#[test]
fn schemas_that_are_large_or_circular() {
    let grammars = bytes();
    let branches: Vec<_> = (0..10_000).map(|i| json!({ "const": format!("value {i}") })).collect();
    match grammars.json_schema(&json!({ "anyOf": branches })) {
        Ok(grammar) => assert!(matches(&grammar, "\"value 9999\"") && !matches(&grammar, "\"value 10000\"")),
        Err(error) => assert!(matches!(error, ConstrainedError::Grammar { .. }), "{error}"),
    }
    let choices: Vec<_> = (0..10_000).map(|i| json!(format!("value {i}"))).collect();
    let grammar = grammars.json_schema(&json!({ "enum": choices })).unwrap();
    assert!(matches(&grammar, "\"value 9999\"") && !matches(&grammar, "\"value 10000\""));
    // A reference that leads to itself, alone and in a tree.
    for circular in [
        json!({ "$ref": "#" }),
        json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
        json!({ "$ref": "#/nowhere" }),
        json!({ "$ref": "https://example.org/schema.json" }),
    ] {
        if let Ok(mut grammar) = grammars.json_schema(&circular) {
            assert!(!grammar.complete().unwrap(), "{circular}");
        }
    }
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": { "node": { "type": "object", "properties": { "next": { "$ref": "#/$defs/node" } },
                             "additionalProperties": false } },
    });
    let grammar = grammars.json_schema(&tree).unwrap();
    assert!(matches(&grammar, "{\"next\":{\"next\": {}}}") && !matches(&grammar, "{\"last\":{}}"));
    let deep =
        (0..100).fold(json!({ "type": "integer" }), |inner, _| json!({ "type": "array", "items": inner }));
    assert!(grammars.json_schema(&deep).is_err());
    assert!(grammars.json_schema(&json!({ "type": 7 })).is_err());
    assert!(grammars.lark("").is_err() && grammars.lark("start: missing").is_err());
    assert!(grammars.lark("start: \"a\nx").is_err());
}

#[test]
fn limits_hold() {
    let small =
        GrammarLimits { step_fuel: 200, compile_fuel: 2000, lexer_states: 20, ..GrammarLimits::default() };
    let grammars = bytes().limits(small);
    let failed = grammars.regex("(a|b|c)*d(a|b|c){9}e").and_then(|mut grammar| {
        (0..100).try_for_each(|i| grammar.push(&[b"abcd"[i % 4]]).map(|_| ()))?;
        grammar.mask(grammars.vocabulary()).map(|_| ())
    });
    assert!(matches!(failed, Err(ConstrainedError::TooComplex { .. } | ConstrainedError::Grammar { .. })));
    let short = bytes().limits(GrammarLimits { source: 10, ..GrammarLimits::default() });
    assert!(short.regex("aaaaaaaaaaaaaaaa").is_err() && short.regex("a").is_ok());
    // Other grammars of the same vocabulary are not affected.
    assert!(bytes().regex("(a|b|c)*d(a|b|c){9}e").is_ok());
}

#[test]
fn ordinary_work_never_runs_out_of_fuel() {
    // Thousands of tests in one text: each has its own allowance.
    let grammars = bytes().limits(GrammarLimits { step_fuel: 20_000, ..GrammarLimits::default() });
    let mut grammar = grammars.regex("[a-z]+( [a-z0-9]{1,12}){0,40}\\.").unwrap();
    for i in 0..400u32 {
        for byte in 0..=255u8 {
            grammar.prefix(&[byte, b'a', byte]).unwrap();
        }
        let next: &[u8] = if i % 7 == 6 { b" " } else { b"q" };
        if !grammar.prefix(next).unwrap() {
            break;
        }
        assert!(grammar.push(next).unwrap());
    }
}
