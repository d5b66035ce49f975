//! The floors of the house: what each crate may depend on, as `docs/architecture.md` draws them.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A crate, and what it needs outside its tests, optional things included.
type Needs = BTreeMap<String, BTreeSet<String>>;

/// Names as the page has them: without the prefix.
fn short(name: &str) -> String {
    name.strip_prefix("pilotfish-").unwrap_or(name).to_owned()
}

fn workspace() -> Needs {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Without dependencies, so that nothing is fetched or resolved.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| short(value.as_str().unwrap());
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let needs = package["dependencies"].as_array().unwrap().iter();
            // Tests and build scripts may use what they like; `null` is an ordinary dependency.
            let needs = needs.filter(|need| need["kind"].is_null()).map(|need| text(&need["name"]));
            (text(&package["name"]), needs.collect())
        })
        .collect()
}

/// Crates from the lowest to the highest.
fn floors(page: &str) -> Vec<String> {
    let table = page.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let rooms = table.lines().rev().filter(|line| !line.starts_with('-'));
    rooms.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// What is wrong with a workspace, a line each.
fn faults(needs: &Needs, floors: &[String]) -> Vec<String> {
    let level = |name: &str| floors.iter().position(|room| room == name);
    let mut faults = Vec::new();
    for (name, needs) in needs {
        let Some(own) = level(name) else {
            faults.push(format!("{name} has no room in docs/architecture.md"));
            continue;
        };
        let above = needs.iter().filter(|need| level(need).is_some_and(|level| level >= own));
        faults.extend(above.map(|need| format!("{name} uses {need}, which is not below it")));
    }
    for room in floors {
        if !needs.contains_key(room) {
            faults.push(format!("there is no crate {room}"));
        }
    }
    faults
}

/// All that a crate needs within the workspace and one step beyond it.
fn closure(needs: &Needs, of: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![of.to_owned()];
    while let Some(name) = open.pop() {
        for need in needs.get(&name).into_iter().flatten() {
            if found.insert(need.clone()) {
                open.push(need.clone());
            }
        }
    }
    found
}

#[test]
fn a_crate_uses_only_crates_below_it() {
    let page = include_str!("../../docs/architecture.md");
    let faults = faults(&workspace(), &floors(page));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_stair_upwards_is_found() {
    let needs = |list: &[(&str, &[&str])]| -> Needs {
        list.iter()
            .map(|(name, needs)| (name.to_string(), needs.iter().map(|need| need.to_string()).collect()))
            .collect()
    };
    let floors = floors("```text\ntop   the top\n-----\nlow   the bottom\n```\n");
    assert_eq!(floors, ["low", "top"]);
    let sound = needs(&[("top", &["low", "serde"]), ("low", &["serde"])]);
    assert!(faults(&sound, &floors).is_empty());
    let wrong = needs(&[("top", &[]), ("low", &["top"]), ("new", &[])]);
    let found = faults(&wrong, &floors);
    assert_eq!(found, ["low uses top, which is not below it", "new has no room in docs/architecture.md"]);
}

/// What is written against `model` alone compiles in seconds and runs without ONNX Runtime.
#[test]
fn algorithms_need_no_runtime() {
    let needs = workspace();
    for name in ["model", "decoding", "conformance", "constrained", "diffusion", "evaluation", "supervision"]
    {
        let all = closure(&needs, name);
        let heavy: Vec<_> = all.iter().filter(|need| *need == "ort" || need.starts_with("candle")).collect();
        assert!(heavy.is_empty(), "{name} needs {heavy:?}");
    }
    // The search itself finds what is there.
    assert!(closure(&needs, "pipeline").contains("ort"));
    assert!(closure(&needs, "training").contains("candle-core"));
}
