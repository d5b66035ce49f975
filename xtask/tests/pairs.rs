//! `cargo xtask pairs` as its users call it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

fn pairs(folder: &Path, words: &str) -> Output {
    let mut command = Command::cargo_bin("xtask").unwrap();
    command.current_dir(folder).arg("pairs").args(words.split(' ')).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn pairs_of_two_models_as_trainers_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("large.jsonl", "{\"prompt\":\"2+2?\",\"response\":\"It is 4.\",\"model\":\"3B\"}\n");
    write("small.jsonl", "{\"prompt\":\"2+2?\",\"response\":\"5\",\"model\":\"1B\"}\n");
    let output = pairs(folder.path(), "--in large.jsonl --in small.jsonl --rule delta --out pairs.jsonl");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("1 pairs of 1 prompts"), "{}", said(&output));
    let line = std::fs::read_to_string(folder.path().join("pairs.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["chosen"], &line["rejected"]), (&"It is 4.".into(), &"5".into()));
    assert_eq!(line["source"], "3B > 1B");

    // What is wrong is said, and what is on disk stays.
    write("pairs.jsonl", "kept");
    write("broken.jsonl", "{\"prompt\":\"2+2?\",\"response\":\"5\"}\n{\"prompt\":");
    for (words, code, why) in [
        ("--in large.jsonl --rule delta --out pairs.jsonl", 2, "two files"),
        ("--in large.jsonl --in large.jsonl --rule delta --out large.jsonl", 2, "would replace"),
        ("--in large.jsonl --in broken.jsonl --rule delta --out pairs.jsonl", 1, "broken.jsonl, line 2"),
        ("--in large.jsonl --in none.jsonl --rule delta --out pairs.jsonl", 1, "none.jsonl"),
        ("--in large.jsonl --in large.jsonl --rule delta --out pairs.jsonl", 1, "no pairs"),
        ("--in large.jsonl --in small.jsonl --rule detla --out pairs.jsonl", 2, "delta"),
    ] {
        let output = pairs(folder.path(), words);
        assert_eq!(output.status.code(), Some(code), "{words}: {}", said(&output));
        assert!(said(&output).contains(why), "{words}: {}", said(&output));
    }
    assert_eq!(std::fs::read_to_string(folder.path().join("pairs.jsonl")).unwrap(), "kept");
}
