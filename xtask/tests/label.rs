//! `cargo xtask label` as its users call it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

/// Three voters on six items, the third poor, in two classes.
const VOTES: &str = "question,worker,answer\n\
    q1,ann,yes\nq1,ben,yes\nq1,cat,no\nq2,ann,yes\nq2,ben,yes\nq2,cat,yes\nq3,ann,no\nq3,ben,no\nq3,cat,yes\n\
    q4,ann,no\nq4,ben,yes\nq4,cat,no\nq5,ann,no\nq5,ben,no\nq5,cat,no\nq6,ann,yes\nq6,ben,no\nq6,cat,yes\n";
const TRUTH: &str = "question,truth\nq1,yes\nq2,yes\nq3,no\nq4,no\nq5,no\n";

fn label(folder: &Path, words: &[&str]) -> Output {
    Command::cargo_bin("xtask").unwrap().current_dir(folder).arg("label").args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("votes.csv"), VOTES).unwrap();
    std::fs::write(folder.path().join("truth.csv"), TRUTH).unwrap();
    folder
}

#[test]
fn labels_and_accuracy_of_a_model() {
    let folder = folder();
    let words =
        ["--votes", "votes.csv", "--truth", "truth.csv", "--model", "majority", "--out", "labels.csv"];
    let output = label(folder.path(), &words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // Two of three are right on each of the five known truths.
    let shown = text(&output.stdout);
    assert!(shown.contains("18 votes of 3 voters on 6 items, 2 classes"), "{shown}");
    assert!(shown.contains("1.0000"), "{shown}");
    let labels = std::fs::read_to_string(folder.path().join("labels.csv")).unwrap();
    let mut lines = labels.lines();
    assert!(lines.next().unwrap().starts_with("question,label,tied,p_"), "{labels}");
    assert_eq!(lines.count(), 6);
    let lines: Vec<&str> = labels.lines().filter(|line| line.starts_with("q2,")).collect();
    assert!(lines[0].starts_with("q2,yes,false,"), "{labels}");
}

#[test]
fn all_models_side_by_side_as_json() {
    let folder = folder();
    let words = ["--votes", "votes.csv", "--truth", "truth.csv", "--model", "all", "--json"];
    let output = label(folder.path(), &words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["items"], &json["voters"], &json["known_truths"]), (&6.into(), &3.into(), &5.into()));
    let models = json["models"].as_array().unwrap();
    assert!(models.len() >= 10);
    for model in models {
        let name = model["model"].as_str().unwrap();
        // A model that is not for such votes says why; any other has an accuracy and every voter.
        match model["error"].as_str() {
            Some(error) => assert!(error.len() > 10, "{name}: {error}"),
            None => {
                let accuracy = model["accuracy"].as_f64().unwrap();
                assert!((0.0..=1.0).contains(&accuracy), "{name}");
                assert_eq!(model["voters"].as_array().unwrap().len(), 3, "{name}");
            }
        }
    }
    let majority = models.iter().find(|model| model["model"] == "majority").unwrap();
    assert_eq!(majority["accuracy"], 1.0);
    // With variants beside them, nothing twice.
    let more = label(folder.path(), &["--votes", "votes.csv", "--model", "ds,all,ds-crowd-kit", "--json"]);
    let more: Value = serde_json::from_slice(&more.stdout).unwrap();
    assert_eq!(more["models"].as_array().unwrap().len(), models.len() + 1);
}

#[test]
fn dependencies_are_named_by_voters() {
    let folder = folder();
    // Five voters, of whom two are one: 32 patterns, each as often as independent voters of .8 would have it.
    let mut votes = String::from("question,worker,answer\n");
    let mut item = 0;
    for pattern in 0..32u32 {
        let ones = (pattern & 15).count_ones();
        let p = |a: f64| a.powi(ones as i32) * (1.0 - a).powi(4 - ones as i32);
        let copied = if pattern >> 4 == pattern >> 3 & 1 { 0.8 } else { 0.2 };
        for _ in 0..(400.0 * copied * (p(0.8) + p(0.2))).round() as u32 {
            item += 1;
            for voter in 0..5 {
                votes += &format!("{item},v{voter},{}\n", pattern >> voter & 1);
            }
        }
    }
    std::fs::write(folder.path().join("more.csv"), votes).unwrap();
    let words = ["--votes", "more.csv", "--model", "metal", "--depends", "v3", "v4", "--json"];
    let output = label(folder.path(), &words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["models"][0]["model"], "metal");
    assert_eq!(json["models"][0]["error"], Value::Null);
    for (words, want) in [
        (&["--model", "metal"][..], "--depends"),
        (&["--model", "ds", "--depends", "v3", "v4"], "--model metal"),
        (&["--model", "metal", "--depends", "v3", "nobody"], "nobody"),
    ] {
        let output = label(folder.path(), &[&["--votes", "more.csv"], words].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(text(&output.stderr).contains(want), "{}", text(&output.stderr));
    }
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_any_work() {
    let folder = folder();
    for (out, want) in [(".", "is a folder"), ("none/labels.csv", "there is no folder none")] {
        let output = label(folder.path(), &["--votes", "votes.csv", "--out", out]);
        assert_eq!(output.status.code(), Some(2), "{out}");
        assert!(text(&output.stderr).contains(want), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    let several =
        label(folder.path(), &["--votes", "votes.csv", "--model", "ds,glad", "--out", "labels.csv"]);
    assert_eq!(several.status.code(), Some(2));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn wrong_words_and_files_say_so() {
    let folder = folder();
    let missing = label(folder.path(), &[]);
    assert_eq!(missing.status.code(), Some(2));
    let unknown = label(folder.path(), &["--votes", "votes.csv", "--model", "magic"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("\"magic\"") && text(&unknown.stderr).contains("glad"));
    let nowhere = label(folder.path(), &["--votes", "nowhere.csv"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("nowhere.csv"));
    std::fs::write(folder.path().join("bad.csv"), "question,worker,answer\nq1,ann\n").unwrap();
    let bad = label(folder.path(), &["--votes", "bad.csv"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("line 2"), "{}", text(&bad.stderr));
    // One voter: refused with a reason, not fitted.
    std::fs::write(folder.path().join("one.csv"), "question,worker,answer\nq1,ann,a\nq2,ann,b\n").unwrap();
    let one = label(folder.path(), &["--votes", "one.csv"]);
    assert_eq!(one.status.code(), Some(1));
    assert!(text(&one.stderr).contains("voters"), "{}", text(&one.stderr));
    let list = label(folder.path(), &["--list"]);
    assert!(list.status.success() && text(&list.stdout).contains("metal"));
}
