//! Preference data as files: JSON lines in the forms that trainers read, checked line by line.
//!
//! | form | a line |
//! |---|---|
//! | [`Form::Standard`] | TRL: `prompt`, `chosen`, `rejected` as texts |
//! | [`Form::Conversational`] | TRL: the same as lists of `role` and `content` |
//! | [`Form::OpenAi`] | `input.messages`, `preferred_output`, `non_preferred_output`, one assistant message each |
//! | [`Form::LlamaFactory`] | `instruction`, empty `input`, `output` with the chosen text first |
//! | [`Form::Dialogue`] | HH: whole dialogues in `chosen` and `rejected`, split at the last assistant marker |
//!
//! Further keys that are kept: `id`, `group`, `source`, `confidence`. `chosen_ok` says whether the chosen side is truly
//! better; it is read by [`evaluation`] alone, never for training.
//!
//! References: w2s-core, section 8; TRL's dataset formats; OpenAI's preference format; LLaMA-Factory;
//! RUCBM/weak-to-strong-deception `weak_to_strong/datasets.py`.

use std::collections::HashSet;
use std::io::{BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use crate::labelling::whole;
use crate::{Result, SupervisionError};

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Texts.
    Standard,
    /// Messages.
    Conversational,
    /// OpenAI's.
    OpenAi,
    /// LLaMA-Factory's ranking.
    LlamaFactory,
    /// Whole dialogues.
    Dialogue,
}

/// A message of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Turn {
    /// `user`, `assistant` or `system`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// Two responses to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// The prompt; a plain text is one message of the user.
    pub prompt: Vec<Turn>,
    /// The better response.
    pub chosen: String,
    /// The other.
    pub rejected: String,
    /// What is said about the pair.
    pub about: About,
}

/// Where a pair comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Its question's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u64>,
    /// Who says that one is better: `weak`, `strong`, `gold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How sure they are, from 0.5 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

impl Preference {
    /// A pair of a plain prompt.
    pub fn new(prompt: impl Into<String>, chosen: impl Into<String>, rejected: impl Into<String>) -> Self {
        let prompt = vec![Turn { role: "user".into(), content: prompt.into() }];
        Self { prompt, chosen: chosen.into(), rejected: rejected.into(), about: About::default() }
    }

    fn plain(&self) -> Option<&str> {
        match &self.prompt[..] {
            [turn] if turn.role == "user" => Some(&turn.content),
            _ => None,
        }
    }

    /// What is wrong with it as something to learn, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        if self.prompt.is_empty() || self.prompt.iter().all(|turn| turn.content.trim().is_empty()) {
            return Some("the prompt is empty");
        }
        if self.chosen.trim().is_empty() || self.rejected.trim().is_empty() {
            return Some("a response is empty");
        }
        if self.chosen == self.rejected {
            return Some("both responses are the same");
        }
        if self.about.confidence.is_some_and(|confidence| !(0.5..=1.0).contains(&confidence)) {
            return Some("the confidence is not between 0.5 and 1");
        }
        None
    }

    /// The pair as a line of a file.
    ///
    /// # Errors
    /// A prompt that the form has no room for: several messages in a plain text, other roles in a dialogue, a marker inside
    /// a message.
    pub fn line(&self, form: Form) -> Result<String> {
        let refuse =
            |why: &'static str| SupervisionError::Name { what: "pair", name: format!("{form:?}"), why };
        let plain = || self.plain().ok_or_else(|| refuse("has room for one message of the user"));
        let assistant = |text: &str| json!([{ "role": "assistant", "content": text }]);
        let mut line = match form {
            Form::Standard => json!({ "prompt": plain()?, "chosen": self.chosen, "rejected": self.rejected }),
            Form::Conversational => json!({
                "prompt": self.prompt, "chosen": assistant(&self.chosen), "rejected": assistant(&self.rejected),
            }),
            Form::OpenAi => json!({
                "input": { "messages": self.prompt, "tools": [], "parallel_tool_calls": true },
                "preferred_output": assistant(&self.chosen),
                "non_preferred_output": assistant(&self.rejected),
            }),
            Form::LlamaFactory => json!({
                "instruction": plain()?, "input": "", "output": [self.chosen, self.rejected],
            }),
            Form::Dialogue => {
                let mut text = String::new();
                for turn in &self.prompt {
                    let marker = match turn.role.as_str() {
                        "user" => HUMAN,
                        "assistant" => ASSISTANT,
                        _ => return Err(refuse("has users and assistants alone")),
                    };
                    text.push_str(&format!("{marker} {}", turn.content));
                }
                let inside = |text: &str| text.contains(HUMAN) || text.contains(ASSISTANT);
                let said = self.prompt.iter().map(|turn| &turn.content).chain([&self.chosen, &self.rejected]);
                if said.into_iter().any(|text| inside(text)) {
                    return Err(refuse("has its markers inside a message"));
                }
                json!({
                    "chosen": format!("{text}{ASSISTANT} {}", self.chosen),
                    "rejected": format!("{text}{ASSISTANT} {}", self.rejected),
                })
            }
        };
        if let (Some(line), Ok(Json::Object(about))) =
            (line.as_object_mut(), serde_json::to_value(&self.about))
        {
            line.extend(about);
        }
        Ok(line.to_string())
    }

    /// Reads a line of whatever form it has.
    fn parse(line: &str) -> std::result::Result<Self, String> {
        let json: Json = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let object = json.as_object().ok_or("not an object")?;
        let about: About = serde_json::from_value(json.clone()).map_err(|error| error.to_string())?;
        let (prompt, chosen, rejected) = if object.contains_key("preferred_output") {
            let prompt = turns(object.get("input").and_then(|input| input.get("messages")))?;
            (prompt, reply(object.get("preferred_output"))?, reply(object.get("non_preferred_output"))?)
        } else if object.contains_key("output") {
            let [Json::String(chosen), Json::String(rejected)] =
                object["output"].as_array().map_or(&[][..], |list| list)
            else {
                return Err("\"output\" is not two texts".into());
            };
            let more = text(object, "input").unwrap_or_default();
            let instruction = text(object, "instruction")?;
            let prompt = if more.is_empty() { instruction } else { format!("{instruction}\n{more}") };
            (vec![Turn { role: "user".into(), content: prompt }], chosen.clone(), rejected.clone())
        } else if object.contains_key("prompt") {
            match &object["prompt"] {
                Json::String(prompt) => {
                    let prompt = vec![Turn { role: "user".into(), content: prompt.clone() }];
                    (prompt, text(object, "chosen")?, text(object, "rejected")?)
                }
                prompt => {
                    (turns(Some(prompt))?, reply(object.get("chosen"))?, reply(object.get("rejected"))?)
                }
            }
        } else {
            let (prompt, chosen) = dialogue(&text(object, "chosen")?)?;
            let (other, rejected) = dialogue(&text(object, "rejected")?)?;
            if prompt != other {
                return Err("the two dialogues have different prompts".into());
            }
            (prompt, chosen, rejected)
        };
        Ok(Self { prompt, chosen, rejected, about })
    }
}

fn text(object: &Map<String, Json>, key: &str) -> std::result::Result<String, String> {
    object.get(key).and_then(Json::as_str).map(str::to_owned).ok_or_else(|| format!("{key:?} is no text"))
}

fn turns(json: Option<&Json>) -> std::result::Result<Vec<Turn>, String> {
    let json = json.ok_or("there are no messages")?;
    serde_json::from_value(json.clone()).map_err(|error| format!("messages: {error}"))
}

fn reply(json: Option<&Json>) -> std::result::Result<String, String> {
    match &turns(json)?[..] {
        [turn] if turn.role == "assistant" => Ok(turn.content.clone()),
        _ => Err("a response is not one message of the assistant".into()),
    }
}

/// A dialogue as the messages before the last answer, and that answer.
fn dialogue(text: &str) -> std::result::Result<(Vec<Turn>, String), String> {
    let (mut before, answer) = text.rsplit_once(ASSISTANT).ok_or("a dialogue without an assistant")?;
    let mut prompt = Vec::new();
    while !before.is_empty() {
        let (at, role, marker) = match (before.rfind(HUMAN), before.rfind(ASSISTANT)) {
            (Some(human), assistant) if assistant.is_none_or(|assistant| assistant < human) => {
                (human, "user", HUMAN)
            }
            (_, Some(assistant)) => (assistant, "assistant", ASSISTANT),
            _ => return Err("a dialogue that begins without a marker".into()),
        };
        let said = &before[at + marker.len()..];
        prompt.push(Turn { role: role.into(), content: said.strip_prefix(' ').unwrap_or(said).to_owned() });
        before = &before[..at];
    }
    prompt.reverse();
    Ok((prompt, answer.strip_prefix(' ').unwrap_or(answer).to_owned()))
}

/// Writes pairs.
///
/// # Errors
/// As [`Preference::line`]; a writer that fails.
pub fn write(out: &mut dyn Write, form: Form, pairs: &[Preference]) -> Result<()> {
    for pair in pairs {
        let line = pair.line(form)?;
        writeln!(out, "{line}").map_err(|source| SupervisionError::Io { path: "pairs".into(), source })?;
    }
    Ok(())
}

/// Writes pairs into a file, which appears complete or not at all.
///
/// # Errors
/// As [`write()`] and [`check_output`](crate::labelling::check_output).
pub fn save(path: &Path, form: Form, pairs: &[Preference]) -> Result<()> {
    whole(path, |out| write(out, form, pairs))
}

/// Reads pairs for training, in whatever form each line has. A byte order mark, carriage returns and empty lines are no part
/// of a file.
///
/// # Errors
/// No pairs; a line, named by its number, that is none of the forms, has a [fault](Preference::fault), or repeats an id.
pub fn read(input: impl BufRead, name: &str) -> Result<Vec<Preference>> {
    let mut ids = HashSet::new();
    let mut pairs = Vec::new();
    each_line(input, name, |line| {
        let pair = Preference::parse(line)?;
        if let Some(fault) = pair.fault() {
            return Err(fault.into());
        }
        if pair.about.id.is_some_and(|id| !ids.insert(id)) {
            return Err("its id occurs twice".into());
        }
        pairs.push(pair);
        Ok(())
    })?;
    if pairs.is_empty() {
        return Err(SupervisionError::Empty { what: "pairs" });
    }
    Ok(pairs)
}

/// The evaluation's column of a file: whether the chosen side of each pair is truly better, `None` where it is not said.
///
/// # Errors
/// A line that is no object, or whose `chosen_ok` is not a truth value.
pub fn evaluation(input: impl BufRead, name: &str) -> Result<Vec<Option<bool>>> {
    #[derive(Deserialize)]
    struct Row {
        #[serde(default)]
        chosen_ok: Option<bool>,
    }
    let mut rows = Vec::new();
    each_line(input, name, |line| {
        rows.push(serde_json::from_str::<Row>(line).map_err(|error| error.to_string())?.chosen_ok);
        Ok(())
    })?;
    Ok(rows)
}

pub(crate) fn each_line(
    input: impl BufRead,
    name: &str,
    mut take: impl FnMut(&str) -> std::result::Result<(), String>,
) -> Result<()> {
    for (index, line) in input.lines().enumerate() {
        let refuse = |why: String| SupervisionError::Line { path: name.into(), line: index as u64 + 1, why };
        let line = line.map_err(|error| refuse(error.to_string()))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if !line.is_empty() {
            take(line).map_err(refuse)?;
        }
    }
    Ok(())
}

/// Pairs of a test whose prompt or group is in training data.
pub fn leaks(train: &[Preference], test: &[Preference]) -> Vec<usize> {
    let prompts: HashSet<&Vec<Turn>> = train.iter().map(|pair| &pair.prompt).collect();
    let groups: HashSet<u64> = train.iter().filter_map(|pair| pair.about.group).collect();
    let leaked = |pair: &Preference| {
        prompts.contains(&pair.prompt) || pair.about.group.is_some_and(|group| groups.contains(&group))
    };
    (0..test.len()).filter(|&at| leaked(&test[at])).collect()
}

/// A prompt cut from the left so that it and the longer response have at most `most` tokens; `None` where a response leaves
/// no room for a token of it.
///
/// ```
/// use pilotfish_supervision::preferences::fit;
/// assert_eq!(fit(&[1, 2, 3, 4], [2, 3], 5), Some(&[3, 4][..]));
/// assert_eq!(fit(&[1, 2], [2, 5], 5), None);
/// ```
pub fn fit<T>(prompt: &[T], responses: [usize; 2], most: usize) -> Option<&[T]> {
    let room = most.checked_sub(responses[0].max(responses[1])).filter(|room| *room > 0)?;
    Some(&prompt[prompt.len().saturating_sub(room)..])
}
