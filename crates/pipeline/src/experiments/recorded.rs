//! Recorded solutions of several models to the same questions, as in GSM8K's `example_model_solutions.jsonl`.

use std::path::Path;

use pilotfish_supervision::reasoning::{Solution, canonical, normalise};

use crate::error::Failure;

/// Bytes of a file at most.
const LONGEST_FILE: u64 = 256 << 20;

/// A question and what models said, in the order in which they were asked for.
pub(super) struct Recorded {
    pub(super) question: String,
    pub(super) said: Vec<Told>,
}

/// A solution on one line, with its verdict.
pub(super) struct Told {
    pub(super) solution: Solution,
    pub(super) right: bool,
}

/// Solutions of some models, the calculator's annotations removed.
pub(super) fn read(path: &Path, who: &[&str]) -> Result<Vec<Recorded>, Failure> {
    let named = |why: String| format!("{}: {why}", path.display());
    let meta = std::fs::metadata(path).map_err(|error| named(error.to_string()))?;
    if !meta.is_file() || meta.len() > LONGEST_FILE {
        return Err(named("not a file of at most 256 MB".into()).into());
    }
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |why: &str| named(format!("line {}: {why}", number + 1));
        let json: serde_json::Value = serde_json::from_str(line).map_err(|error| at(&error.to_string()))?;
        let question = json["question"].as_str().ok_or_else(|| at("no question"))?.to_owned();
        let told = |who: &&str| -> Result<Told, String> {
            let text =
                json[who]["solution"].as_str().ok_or_else(|| at(&format!("no solution of {who:?}")))?;
            let right = json[who]["is_correct"].as_bool();
            let right = right.ok_or_else(|| at(&format!("no verdict on a solution of {who:?}")))?;
            let text = plain(text);
            let answer = text.rsplit_once("A: ").map(|(_, answer)| canonical(&normalise(answer)));
            Ok(Told { solution: Solution { answer: answer.unwrap_or_default(), text }, right })
        };
        out.push(Recorded { question, said: who.iter().map(told).collect::<Result<_, _>>()? });
    }
    Ok(out)
}

/// A solution on one line, without what stands between `<<` and `>>`.
fn plain(solution: &str) -> String {
    let mut out = String::new();
    for (index, part) in solution.split("<<").enumerate() {
        out += if index == 0 { part } else { part.split_once(">>").map_or(part, |(_, rest)| rest) };
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solutions_lose_their_annotations() {
        assert_eq!(plain("16 - 3 = <<16-3=13>>13 eggs\nA: 26"), "16 - 3 = 13 eggs A: 26");
        assert_eq!(plain("open << end"), "open end");
    }

    #[test]
    fn solution_files_say_what_is_wrong() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s.jsonl");
        let of = |text: &str| {
            std::fs::write(&path, text).expect("writable");
            read(&path, &["a", "b"]).map_err(|error| error.to_string())
        };
        let good = r#"{"question": "q", "a": {"is_correct": false, "solution": "1 <<1>>1\nA: 1,200"}, "b": {"is_correct": true, "solution": ""}}"#;
        let items = of(&format!("{good}\n\n{good}\n")).unwrap_or_default();
        assert_eq!((items.len(), items[0].said[0].right, items[0].said[1].right), (2, false, true));
        assert_eq!((&*items[0].question, &*items[0].said[0].solution.text), ("q", "1 1 A: 1,200"));
        assert_eq!([&*items[0].said[0].solution.answer, &*items[0].said[1].solution.answer], ["1200", ""]);
        let refused = |text: &str| of(text).map(|_| ()).expect_err("spoilt");
        assert!(refused(&format!("{good}\n{{")).contains("line 2"));
        assert!(refused("{}").contains("no question"));
        assert!(refused(r#"{"question": "q"}"#).contains("\"a\""));
        assert!(read(folder.path(), &["a"]).is_err());
        assert!(read(&folder.path().join("none"), &["a"]).is_err());
    }
}
