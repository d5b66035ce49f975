//! Prompt sets: Spec-Bench, GSM8K, HumanEval, and the project's own.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{EvaluationError, Result};

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Identifier, unique within its set.
    pub id: String,
    /// Category, for summaries.
    pub category: String,
    /// What the user says, turn by turn.
    pub turns: Vec<String>,
    /// A reference answer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// Layouts of prompt files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"question_id", "category", "turns"}`. Spec-Bench's thirteen categories become its six tasks.
    SpecBench,
    /// `{"question", "answer"}`, the answer ending in `#### number`.
    Gsm8k,
    /// `{"task_id", "prompt", "canonical_solution", ...}`.
    HumanEval,
    /// A [`Prompt`] a line.
    Own,
}

/// The longest line that is read.
const LONGEST_LINE: u64 = 16 << 20;

/// The project's own prompts: six in each of Spec-Bench's six categories.
pub fn own() -> Vec<Prompt> {
    parse("own.jsonl", include_str!("../prompts/own.jsonl").as_bytes(), Some(Format::Own)).unwrap_or_default()
}

/// Reads a file of prompts; the layout is recognised by its first line's keys.
///
/// # Errors
/// A file that cannot be read, a line that is not UTF-8, not JSON, longer than 16 MB, lacks a key or repeats an
/// identifier; the error names the line.
pub fn read(path: &Path) -> Result<Vec<Prompt>> {
    let name = path.display().to_string();
    let file =
        std::fs::File::open(path).map_err(|source| EvaluationError::Io { path: name.clone(), source })?;
    parse(&name, file, None)
}

/// The answer of a GSM8K solution: the number after `####`, commas removed.
///
/// ```
/// assert_eq!(pilotfish_evaluation::prompts::gsm8k_answer("so 5 * 250\n#### 1,250"), Some("1250".to_owned()));
/// assert_eq!(pilotfish_evaluation::prompts::gsm8k_answer("no idea"), None);
/// ```
pub fn gsm8k_answer(solution: &str) -> Option<String> {
    let (_, tail) = solution.rsplit_once("####")?;
    let number: String = tail.split_whitespace().next()?.chars().filter(|c| *c != ',' && *c != '$').collect();
    let number = number.strip_suffix('.').unwrap_or(&number);
    // Words such as `inf` and `nan` parse as well.
    let digits = number.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte));
    (digits && number.parse::<f64>().is_ok()).then(|| number.to_owned())
}

fn parse(name: &str, source: impl Read, mut format: Option<Format>) -> Result<Vec<Prompt>> {
    let mut reader = BufReader::new(source);
    let (mut prompts, mut ids, mut number) = (Vec::new(), HashSet::new(), 0);
    loop {
        number += 1;
        let fail = |why: String| EvaluationError::Line { path: name.to_owned(), line: number, why };
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut bytes);
        let read = read.map_err(|source| EvaluationError::Io { path: name.to_owned(), source })?;
        if read == 0 {
            return Ok(prompts);
        }
        if bytes.len() as u64 > LONGEST_LINE {
            return Err(fail("longer than 16 MB".into()));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| fail("not UTF-8".into()))?;
        let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text }.trim();
        if text.is_empty() {
            continue;
        }
        let json: Json = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        let format = match format {
            Some(format) => format,
            None => {
                let found = recognise(&json).ok_or_else(|| {
                    fail(
                        "keys of no known layout (Spec-Bench, GSM8K, HumanEval, or id/category/turns)".into(),
                    )
                })?;
                *format.insert(found)
            }
        };
        let prompt = convert(&json, format, number).map_err(fail)?;
        if prompt.turns.iter().all(|turn| turn.trim().is_empty()) {
            return Err(fail("an empty prompt".into()));
        }
        if !ids.insert(prompt.id.clone()) {
            return Err(fail(format!("the identifier {:?} occurs twice", prompt.id)));
        }
        prompts.push(prompt);
    }
}

fn recognise(json: &Json) -> Option<Format> {
    let has = |key: &str| json.get(key).is_some();
    if has("question_id") && has("turns") {
        Some(Format::SpecBench)
    } else if has("question") && has("answer") {
        Some(Format::Gsm8k)
    } else if has("task_id") && has("prompt") {
        Some(Format::HumanEval)
    } else if has("id") && has("turns") {
        Some(Format::Own)
    } else {
        None
    }
}

fn convert(json: &Json, format: Format, line: usize) -> std::result::Result<Prompt, String> {
    let text = |key: &str| {
        json.get(key).and_then(Json::as_str).map(str::to_owned).ok_or_else(|| format!("{key} is not a text"))
    };
    match format {
        Format::Own => serde_json::from_value(json.clone()).map_err(|error| error.to_string()),
        Format::SpecBench => {
            let id = match json.get("question_id") {
                Some(Json::String(id)) => id.clone(),
                Some(Json::Number(id)) => id.to_string(),
                _ => return Err("question_id is neither a number nor a text".into()),
            };
            let turns = json.get("turns").and_then(Json::as_array).ok_or("turns is not a list")?;
            let turns =
                turns.iter().map(|turn| turn.as_str().map(str::to_owned).ok_or("a turn is not a text"));
            let category = text("category")?;
            let category = match category.as_str() {
                "translation" | "summarization" | "qa" | "math_reasoning" | "rag" => category,
                _ => "mt_bench".into(),
            };
            let turns = turns.collect::<std::result::Result<_, _>>()?;
            Ok(Prompt { id, category, turns, reference: None })
        }
        Format::Gsm8k => Ok(Prompt {
            id: format!("gsm8k-{line}"),
            category: "math_reasoning".into(),
            turns: vec![text("question")?],
            reference: Some(text("answer")?),
        }),
        Format::HumanEval => Ok(Prompt {
            id: text("task_id")?,
            category: "code".into(),
            turns: vec![text("prompt")?],
            reference: text("canonical_solution").ok(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Result<Vec<Prompt>> {
        parse("test", text.as_bytes(), None)
    }

    #[test]
    fn own_prompts_cover_six_categories_evenly() {
        let prompts = own();
        let mut counts = std::collections::BTreeMap::new();
        prompts.iter().for_each(|prompt| *counts.entry(prompt.category.as_str()).or_insert(0) += 1);
        let want = ["math_reasoning", "mt_bench", "qa", "rag", "summarization", "translation"];
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), want.map(|category| (category, 6)));
        for prompt in &prompts {
            let words = prompt.turns[0].split_whitespace().count();
            match prompt.category.as_str() {
                // Passages to copy from.
                "rag" | "summarization" => {
                    assert!((120..=250).contains(&words), "{}: {words} words", prompt.id)
                }
                "mt_bench" => assert_eq!(prompt.turns.len(), 2, "{}", prompt.id),
                _ => assert_eq!(prompt.turns.len(), 1, "{}", prompt.id),
            }
        }
    }

    #[test]
    fn layouts() {
        let spec = "\u{feff}{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"a\", \"b\"]}\r\n\r\n\
                    {\"question_id\": 90, \"category\": \"rag\", \"turns\": [\"c\"]}";
        let prompts = lines(spec).expect("valid");
        assert_eq!((prompts[0].id.as_str(), prompts[0].category.as_str()), ("81", "mt_bench"));
        assert_eq!((prompts[1].category.as_str(), prompts.len()), ("rag", 2));
        let gsm = lines("{\"question\": \"q\", \"answer\": \"#### -3.5\"}").expect("valid");
        assert_eq!(gsm8k_answer(gsm[0].reference.as_deref().unwrap_or("")), Some("-3.5".into()));
        let human =
            lines("{\"task_id\": \"H/0\", \"prompt\": \"def f():\", \"canonical_solution\": \"pass\"}");
        assert_eq!(human.expect("valid")[0].category, "code");
        assert!(lines("").expect("nothing").is_empty());
    }

    #[test]
    fn bad_lines_are_named() {
        let good = "{\"id\": \"1\", \"category\": \"qa\", \"turns\": [\"x\"]}\n";
        for (bad, why) in [
            ("{", "EOF"),
            ("{\"id\": \"1\", \"category\": \"qa\", \"turns\": [\"x\"]}", "twice"),
            ("{\"id\": \"2\", \"category\": \"qa\"}", "turns"),
            ("{\"id\": \"2\", \"category\": \"qa\", \"turns\": [\" \"]}", "empty"),
            ("{\"id\": \"2\", \"category\": \"qa\", \"turns\": [\"x\"], \"extra\": 1}", "extra"),
        ] {
            let error = lines(&format!("{good}{bad}")).expect_err("bad").to_string();
            assert!(error.starts_with("test, line 2") && error.contains(why), "{error}");
        }
        assert!(lines("{\"what\": 1}").expect_err("unknown").to_string().contains("no known layout"));
        assert!(parse("test", &b"\xff\xfe{}"[..], None).is_err());
        assert!(read(Path::new("/does/not/exist")).is_err());
    }

    #[test]
    fn what_a_layout_lacks_is_named() {
        let spec = "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"a\"]}";
        let gsm = "{\"question\": \"q\", \"answer\": \"#### 1\"}";
        let human = "{\"task_id\": \"H/0\", \"prompt\": \"def f():\"}";
        for (first, bad, why) in [
            (spec, "{\"category\": \"qa\", \"turns\": [\"a\"]}", "question_id"),
            (spec, "{\"question_id\": null, \"category\": \"qa\", \"turns\": [\"a\"]}", "question_id"),
            (spec, "{\"question_id\": 82, \"turns\": [\"a\"]}", "category"),
            (spec, "{\"question_id\": 82, \"category\": \"qa\", \"turns\": \"a\"}", "turns"),
            (spec, "{\"question_id\": 82, \"category\": \"qa\", \"turns\": [1]}", "a turn"),
            (spec, "{\"question_id\": 82, \"category\": \"qa\", \"turns\": []}", "empty"),
            (spec, "{\"question_id\": \"81\", \"category\": \"qa\", \"turns\": [\"a\"]}", "twice"),
            (gsm, "{\"question\": 1, \"answer\": \"#### 1\"}", "question"),
            (gsm, "{\"question\": \"q\"}", "answer"),
            (human, "{\"task_id\": \"H/1\"}", "prompt"),
            (human, "{\"task_id\": \"H/0\", \"prompt\": \"x\"}", "twice"),
            (human, "[1, 2]", "task_id"),
            (human, "\"text\" 1", "trailing"),
        ] {
            let error = lines(&format!("{first}\n{bad}\n")).expect_err(bad).to_string();
            assert!(error.starts_with("test, line 2: ") && error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn numbers_after_the_marks() {
        for (solution, want) in [
            ("#### 18", Some("18")),
            ("####18.", Some("18")),
            ("a #### 1\nb\n#### $2,400 a year", Some("2400")),
            ("#### -0.5", Some("-0.5")),
            ("#### nan", None),
            ("#### inf", None),
            ("#### 1e5", None),
            ("#### twelve", None),
            ("####", None),
            ("#### .", None),
            ("18", None),
        ] {
            assert_eq!(gsm8k_answer(solution).as_deref(), want, "{solution}");
        }
    }

    #[test]
    fn endless_lines_are_given_up() {
        struct Endless(usize);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.0 += buffer.len();
                buffer.fill(b' ');
                Ok(buffer.len())
            }
        }
        let mut source = Endless(0);
        let error = parse("test", &mut source, None).expect_err("endless").to_string();
        assert!(error.contains("line 1: longer than 16 MB"), "{error}");
        assert!(source.0 as u64 <= LONGEST_LINE + (1 << 16), "{} bytes were read", source.0);
        let deep = "[".repeat(100_000);
        assert!(lines(&deep).expect_err("too deep").to_string().contains("recursion"));
        assert!(matches!(read(Path::new("/")), Err(EvaluationError::Io { .. })));
    }

    #[test]
    fn cut_anywhere() {
        let whole = "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"\u{e9}\", \"b\"]}\r\n{\"question_id\": 82, \"category\": \"qa\", \"turns\": [\"c\"]}\n";
        let first = whole.find('\r').expect("two lines");
        let second = whole.len() - 1;
        for cut in 0..whole.len() {
            match parse("test", &whole.as_bytes()[..cut], None) {
                Ok(prompts) => {
                    let want = match cut {
                        0 => 0,
                        cut if (first..=first + 2).contains(&cut) => 1,
                        cut if cut == second => 2,
                        _ => panic!("cut at {cut}: {prompts:?}"),
                    };
                    assert_eq!(prompts.len(), want, "cut at {cut}");
                }
                Err(EvaluationError::Line { line, .. }) => {
                    assert_eq!(line, 1 + usize::from(cut > first), "cut at {cut}")
                }
                Err(other) => panic!("cut at {cut}: {other}"),
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(cut in 0usize..200, flip in 0usize..200, bit in 0u8..8) {
            let mut bytes = b"{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"a\", \"b\"]}\n{\"question_id\": 82, \"category\": \"qa\", \"turns\": [\"c\"]}".to_vec();
            bytes.truncate(cut);
            if let Some(byte) = bytes.get_mut(flip) { *byte ^= 1 << bit; }
            let _ = parse("test", &bytes[..], None);
        }
    }
}
