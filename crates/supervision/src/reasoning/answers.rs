//! Answers in responses: where they are, and when two are the same.

use serde::{Deserialize, Serialize};

/// What stands before an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Key {
    /// `####`, as in GSM8K.
    #[default]
    Hashes,
    /// `The answer is:`, as in MATH.
    AnswerIs,
}

impl Key {
    fn text(self) -> &'static str {
        match self {
            Self::Hashes => "#### ",
            Self::AnswerIs => "The answer is: ",
        }
    }
}

/// The answer of a response, normalised; empty where there is none. What follows a second "Question" is another's.
///
/// ```
/// use pilotfish_supervision::reasoning::{Key, extract};
/// assert_eq!(extract("48 + 24 = 72 clips.\n#### 72", Key::Hashes), "72");
/// ```
pub fn extract(response: &str, key: Key) -> String {
    let own = response.split("Question").next().unwrap_or("").trim();
    let own = own.strip_suffix('.').unwrap_or(own);
    if let Some((_, answer)) = own.rsplit_once(key.text()) {
        return normalise(answer);
    }
    let Some((_, clause)) = own.rsplit_once("The answer is ") else { return String::new() };
    let clause = clause.replace(',', "");
    let digit = |c: char| c.is_ascii_digit();
    let Some(start) = clause.find(digit) else { return String::new() };
    let signed = clause[..start].ends_with('-');
    let number: String = clause[start..].chars().take_while(|c| digit(*c) || *c == '.').collect();
    let number = number.trim_end_matches('.');
    normalise(&format!("{}{number}", if signed { "-" } else { "" }))
}

/// Words that say nothing of an answer.
const WORDS: [&str; 20] = [
    "a", "an", "the", "dollars", "dollar", "cents", "degrees", "degree", "units", "unit", "square", "cubic",
    "hours", "minutes", "points", "meters", "feet", "inches", "percent", "miles",
];

/// An answer as the reference code compares it: what follows the last "=", without LaTeX around it, units, articles,
/// commas between digits, ".0" and "%". "12.50" and "12.5" stay different; see [`canonical`].
pub fn normalise(answer: &str) -> String {
    let mut text = answer.rsplit('=').next().unwrap_or("").trim().to_owned();
    for (from, to) in [
        ("$", ""),
        ("\\!", ""),
        ("\\ ", " "),
        ("\\,", ""),
        ("\\left", ""),
        ("\\right", ""),
        ("\\%", "%"),
        ("dfrac", "frac"),
        ("tfrac", "frac"),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
    ] {
        text = text.replace(from, to);
    }
    for command in ["\\text{", "\\textbf{", "\\mathrm{", "\\boxed{", "\\mbox{"] {
        text = unwrap(&text, command);
    }
    // \frac12 is \frac{1}{2}.
    if let Some(rest) = text.strip_prefix("\\frac")
        && rest.len() == 2
        && rest.bytes().all(|byte| byte.is_ascii_digit())
    {
        text = format!("\\frac{{{}}}{{{}}}", &rest[..1], &rest[1..]);
    }
    let words: Vec<&str> =
        text.split_whitespace().filter(|word| !WORDS.contains(&word.to_lowercase().as_str())).collect();
    // An answer that is nothing but such a word is that word.
    let mut text = if words.is_empty() { text.trim().to_owned() } else { words.join(" ") };
    let plain: String = text.chars().filter(|c| *c != ',').collect();
    if plain.trim_start_matches('-').chars().all(|c| c.is_ascii_digit() || c == '.') {
        text = plain;
    }
    let mut text = text.trim_end_matches('%').trim().trim_end_matches('.').to_owned();
    for zeros in [".00", ".0"] {
        if let Some(rest) = text.strip_suffix(zeros)
            && rest.bytes().next_back().is_some_and(|byte| byte.is_ascii_digit())
        {
            text = rest.to_owned();
        }
    }
    match text.as_bytes() {
        [byte @ b'A'..=b'G'] => char::from(byte.to_ascii_lowercase()).to_string(),
        _ => text,
    }
}

/// Text with the contents of a command in its place.
fn unwrap(text: &str, command: &str) -> String {
    let Some((before, rest)) = text.split_once(command) else { return text.to_owned() };
    let mut depth = 1;
    for (at, c) in rest.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return format!("{before}{}{}", &rest[..at], &rest[at + 1..]);
        }
    }
    format!("{before}{rest}")
}

/// A normalised answer with its number in lowest form: whole numbers, and fractions for decimals. What is no number stays.
pub fn canonical(answer: &str) -> String {
    let text = normalise(answer);
    let inner = |text: &str| -> Option<(i128, i128)> {
        let (above, below) = match text.strip_prefix("\\frac{") {
            Some(rest) => {
                let (above, rest) = rest.split_once("}{")?;
                (above, rest.strip_suffix('}')?)
            }
            None => text.split_once('/')?,
        };
        let (a, b) = (decimal(above.trim())?, decimal(below.trim())?);
        Some((a.0.checked_mul(b.1)?, a.1.checked_mul(b.0)?))
    };
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.as_str()),
    };
    let Some((above, below)) = decimal(rest).or_else(|| inner(rest)).filter(|(_, below)| *below != 0) else {
        return text;
    };
    let divisor = greatest(above.unsigned_abs(), below.unsigned_abs()).max(1) as i128;
    let (above, below) = (above / divisor, below / divisor);
    let negative = negative && above != 0;
    let (above, below) = if below < 0 { (-above, -below) } else { (above, below) };
    let above = if negative { -above } else { above };
    if below == 1 { above.to_string() } else { format!("{above}/{below}") }
}

/// A decimal as a fraction.
fn decimal(text: &str) -> Option<(i128, i128)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && part.is_empty() || !digits(whole) || !digits(part) || whole.len() + part.len() > 30
    {
        return None;
    }
    let below = 10i128.checked_pow(part.len() as u32)?;
    let parse = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    Some((parse(whole)?.checked_mul(below)?.checked_add(parse(part)?)?, below))
}

fn greatest(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { greatest(b, a % b) }
}

/// Whether two answers are the same answer. An empty one is none.
pub fn same(a: &str, b: &str) -> bool {
    let a = canonical(a);
    !a.is_empty() && a == canonical(b)
}
