//! Preference data: forms that come back as they were, and lines that are refused.
#![allow(clippy::unwrap_used)]

use pilotfish_supervision::SupervisionError;
use pilotfish_supervision::preferences::{
    About, Form, Preference, Turn, evaluation, fit, leaks, read, write,
};
use proptest::prelude::*;

const FORMS: [Form; 5] =
    [Form::Standard, Form::Conversational, Form::OpenAi, Form::LlamaFactory, Form::Dialogue];

fn lines(form: Form, pairs: &[Preference]) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, form, pairs).unwrap();
    out
}

fn turn(role: &str, content: &str) -> Turn {
    Turn { role: role.into(), content: content.into() }
}

#[test]
fn lines_are_what_trainers_read() {
    let mut pair = Preference::new("2+2?", " 4", " 5");
    pair.about = About { id: Some(7), group: Some(3), source: Some("weak".into()), confidence: Some(0.9) };
    let parse = |form| serde_json::from_str::<serde_json::Value>(&pair.line(form).unwrap()).unwrap();
    let standard = parse(Form::Standard);
    assert_eq!(
        (&standard["prompt"], &standard["chosen"], &standard["id"]),
        (&"2+2?".into(), &" 4".into(), &7.into())
    );
    let open = parse(Form::OpenAi);
    assert_eq!(open["input"]["messages"][0]["content"], "2+2?");
    assert_eq!(open["preferred_output"][0]["role"], "assistant");
    assert_eq!(parse(Form::LlamaFactory)["output"], serde_json::json!([" 4", " 5"]));
    assert_eq!(parse(Form::Dialogue)["rejected"], "\n\nHuman: 2+2?\n\nAssistant:  5");
    for form in FORMS {
        assert_eq!(
            read(&lines(form, std::slice::from_ref(&pair))[..], "pairs").unwrap(),
            std::slice::from_ref(&pair),
            "{form:?}"
        );
    }
}

#[test]
fn conversations_keep_their_turns() {
    let prompt = vec![turn("user", "hi"), turn("assistant", "hello"), turn("user", "2+2?")];
    let pair = Preference { prompt, ..Preference::new("", "4", "5") };
    for form in [Form::Conversational, Form::OpenAi, Form::Dialogue] {
        assert_eq!(
            read(&lines(form, std::slice::from_ref(&pair))[..], "pairs").unwrap(),
            std::slice::from_ref(&pair),
            "{form:?}"
        );
    }
    for form in [Form::Standard, Form::LlamaFactory] {
        assert!(pair.line(form).is_err());
    }
    let system =
        Preference { prompt: vec![turn("system", "be brief"), turn("user", "2+2?")], ..pair.clone() };
    assert!(system.line(Form::Dialogue).is_err() && system.line(Form::OpenAi).is_ok());
    assert!(Preference::new("a\n\nHuman: b", "4", "5").line(Form::Dialogue).is_err());
}

#[test]
fn lines_that_are_no_pairs_are_refused_by_number() {
    let good = r#"{"prompt":"p","chosen":"a","rejected":"b","id":1}"#;
    for (bad, want) in [
        (r#"{"prompt":"p","chosen":"a","rejected":"a"}"#, "the same"),
        (r#"{"prompt":"p","chosen":"a","rejected":" "}"#, "empty"),
        (r#"{"prompt":"","chosen":"a","rejected":"b"}"#, "prompt is empty"),
        (r#"{"prompt":"p","chosen":"a","rejected":"b","confidence":0.2}"#, "confidence"),
        (r#"{"prompt":"p","chosen":"a","rejected":"b","id":1}"#, "twice"),
        (r#"{"prompt":"p","chosen":"a"}"#, "rejected"),
        (r#"{"prompt":[{"role":"user"}],"chosen":[],"rejected":[]}"#, "content"),
        (r#"{"instruction":"p","output":["a"]}"#, "output"),
        (r#"{"input":{},"preferred_output":[],"non_preferred_output":[]}"#, "no messages"),
        (
            r#"{"chosen":"\n\nHuman: p\n\nAssistant: a","rejected":"\n\nHuman: q\n\nAssistant: b"}"#,
            "different prompts",
        ),
        (r#"{"chosen":"no marker","rejected":"none"}"#, "without an assistant"),
        (r#"{"chosen":"x\n\nAssistant: a","rejected":"x\n\nAssistant: b"}"#, "without a marker"),
        ("[1]", "object"),
        ("{", "EOF"),
    ] {
        let error = read(format!("{good}\n\n{bad}\n").as_bytes(), "f.jsonl").unwrap_err().to_string();
        assert!(error.starts_with("f.jsonl, line 3: ") && error.contains(want), "{bad}: {error}");
    }
    assert!(matches!(read(&b""[..], "f"), Err(SupervisionError::Empty { .. })));
    let windows = format!("\u{feff}{good}\r\n");
    assert_eq!(read(windows.as_bytes(), "f").unwrap().len(), 1);
    for cut in 0..good.len() {
        assert!(read(&good.as_bytes()[..cut], "f").is_err(), "cut at {cut}");
    }
}

#[test]
fn the_truth_is_read_apart() {
    let file = r#"{"prompt":"p","chosen":"a","rejected":"b","chosen_ok":false}"#;
    let pairs = read(file.as_bytes(), "f").unwrap();
    assert!(!pairs[0].line(Form::Standard).unwrap().contains("chosen_ok"));
    assert_eq!(evaluation(file.as_bytes(), "f").unwrap(), [Some(false)]);
    assert_eq!(evaluation(&b"{}"[..], "f").unwrap(), [None]);
    assert!(evaluation(&br#"{"chosen_ok":3}"#[..], "f").is_err());
}

#[test]
fn leaks_are_found_by_prompt_and_by_group() {
    let of = |prompt: &str, group| Preference {
        about: About { group, ..About::default() },
        ..Preference::new(prompt, "a", "b")
    };
    let train = [of("p", Some(1)), of("q", None)];
    let test = [of("p", Some(9)), of("r", Some(1)), of("r", Some(2)), of("q", None), of("s", None)];
    assert_eq!(leaks(&train, &test), [0, 1, 3]);
    assert_eq!(fit(&[1, 2, 3], [1, 1], 9), Some(&[1, 2, 3][..]));
    assert_eq!(fit::<u8>(&[], [1, 2], 3), Some(&[][..]));
    assert_eq!(fit(&[1], [4, 1], 3), None);
}

proptest! {
    /// Any text survives every form that has room for it.
    #[test]
    fn texts_come_back(prompt in "\\PC{1,20}", chosen in "(\\PC|\n){1,20}", rejected in "(\\PC|\n){1,20}") {
        let pair = Preference::new(prompt, chosen, rejected);
        prop_assume!(pair.fault().is_none());
        for form in FORMS {
            let bytes = lines(form, std::slice::from_ref(&pair));
            let again = read(&bytes[..], "pairs").unwrap();
            prop_assert_eq!(&again[0], &pair, "{:?}", form);
        }
    }
}
