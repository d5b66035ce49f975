//! Prompts with a constraint on the answer, written for this project.

use std::path::Path;

use pilotfish_constrained::{Both, Constraint, Grammars, Predicate};
use serde_json::{Value as Json, json};

use crate::error::Failure;

/// The form that an answer must have.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// A regular expression.
    Regex(&'static str),
    /// A JSON schema; answers have no white space between tokens.
    Schema(Json),
    /// A Lark grammar.
    Lark(&'static str),
    /// A regular expression, and a checksum over the digits.
    Luhn(&'static str),
}

/// A prompt, the form of its answer, and what a right answer says.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) prompt: String,
    pub(super) form: Form,
    /// All of these occur in a right answer, letters of either case.
    pub(super) says: Vec<&'static str>,
}

impl Task {
    pub(super) fn constraint(&self, grammars: &Grammars) -> Result<Box<dyn Constraint>, Failure> {
        Ok(match &self.form {
            Form::Regex(expression) => Box::new(grammars.regex(expression)?),
            Form::Schema(schema) => Box::new(grammars.compact_json_schema(schema)?),
            Form::Lark(grammar) => Box::new(grammars.lark(grammar)?),
            Form::Luhn(expression) => Box::new(Both(grammars.regex(expression)?, Predicate::whole(luhn))),
        })
    }

    /// Whether a line ends an answer: forms of one line, as the paper's pattern matching has it.
    pub(super) fn ends_at_line(&self) -> bool {
        !matches!(self.form, Form::Schema(_))
    }

    /// Whether a valid answer is a right one.
    pub(super) fn right(&self, text: &[u8]) -> bool {
        let text = String::from_utf8_lossy(text).to_lowercase();
        self.says.iter().all(|says| text.contains(&says.to_lowercase()))
    }
}

/// The checksum of card numbers: from the right, every second digit counts twice, its digits added.
pub(super) fn luhn(text: &[u8]) -> bool {
    let digits = text.iter().rev().filter(|byte| byte.is_ascii_digit());
    let sum: u32 = digits
        .enumerate()
        .map(|(at, byte)| match (at % 2, u32::from(byte - b'0')) {
            (0, digit) => digit,
            (_, digit) => 2 * digit / 10 + 2 * digit % 10,
        })
        .sum();
    sum % 10 == 0
}

const SQL: &str = r#"start: "SELECT " columns " FROM " table where? order? ";"
columns: "*" | column (", " column)* | "COUNT(*)"
table: "customers" | "orders" | "products"
where: " WHERE " test (" AND " test)*
test: column " " operator " " value
operator: "=" | ">" | "<" | ">=" | "<="
order: " ORDER BY " column (" DESC" | " ASC")?
column: "name" | "city" | "age" | "price" | "quantity" | "year"
value: NUMBER | STRING
NUMBER: /[0-9]{1,5}/
STRING: /'[A-Za-z ]{1,20}'/
"#;

fn regex(name: &str, prompt: &str, expression: &'static str, says: &[&'static str]) -> Task {
    let form = Form::Regex(expression);
    Task { name: name.into(), kind: "regex", prompt: prompt.into(), form, says: says.to_vec() }
}

fn sql(name: &str, question: &str, says: &[&'static str]) -> Task {
    let prompt = format!(
        "Tables: customers(name, city, age), orders(name, quantity, year), products(name, price). Write one SQL query and nothing else: {question}"
    );
    Task { name: name.into(), kind: "sql", prompt, form: Form::Lark(SQL), says: says.to_vec() }
}

fn schema(name: &str, prompt: &str, properties: Json, says: &[&'static str]) -> Task {
    let required: Vec<&String> = properties.as_object().map(|map| map.keys().collect()).unwrap_or_default();
    let schema = json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false,
    });
    let prompt = format!("{prompt} Answer with one JSON object that satisfies this schema: {schema}");
    Task { name: name.into(), kind: "json", prompt, form: Form::Schema(schema), says: says.to_vec() }
}

fn luhn_task(name: &str, prompt: &str, expression: &'static str) -> Task {
    let form = Form::Luhn(expression);
    Task { name: name.into(), kind: "checksum", prompt: prompt.into(), form, says: Vec::new() }
}

/// The project's own tasks.
pub(super) fn own() -> Vec<Task> {
    let text = json!({ "type": "string", "maxLength": 24 });
    vec![
        regex(
            "moon landing",
            "On which date did people first land on the moon? Answer with the date only, as YYYY-MM-DD.",
            r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
            &["1969"],
        ),
        regex(
            "capital",
            "What is the capital of France? Answer with one word in square brackets.",
            r"\[[A-Z][a-z]+\]",
            &["paris"],
        ),
        regex(
            "sum",
            "What is 17 + 25? Write the sum as an equation such as 1+2=3.",
            r"[0-9]+\+[0-9]+=[0-9]+",
            &["17+25=42"],
        ),
        regex(
            "colour",
            "Name the colour of a clear sky as three letters in upper case, a dash, and a digit.",
            r"[A-Z]{3}-[0-9]",
            &[],
        ),
        regex("time", "At what time is noon? Answer as HH:MM.", r"([01][0-9]|2[0-3]):[0-5][0-9]", &["12:00"]),
        regex("address", "Write an e-mail address at example.com.", r"[a-z][a-z.]{1,15}@example\.com", &[]),
        regex("even letters", "Say hello in lower case.", r"([a-z][a-z])+( ([a-z][a-z])+)*!", &[]),
        regex("list", "Name three fruits, separated by commas.", r"[a-z]+, [a-z]+ and [a-z]+\.", &["apple"]),
        schema(
            "city",
            "Which city is the capital of Italy?",
            json!({ "city": text, "country": text }),
            &["rome", "italy"],
        ),
        schema(
            "person",
            "Ada Lovelace was born in 1815.",
            json!({ "name": text, "born": { "type": "integer", "minimum": 1000, "maximum": 2100 } }),
            &["ada", "1815"],
        ),
        schema(
            "mood",
            "\"I love this book!\" Is the review positive or negative?",
            json!({ "mood": { "enum": ["positive", "negative"] }, "sure": { "type": "boolean" } }),
            &["positive"],
        ),
        schema(
            "colours",
            "Name two colours.",
            json!({ "colours": { "type": "array", "items": { "enum": ["red", "green", "blue", "black", "white"] }, "minItems": 2, "maxItems": 2 } }),
            &[],
        ),
        schema(
            "point",
            "A point has x = 3 and y = 4.",
            json!({ "x": { "type": "integer" }, "y": { "type": "integer" } }),
            &["3", "4"],
        ),
        sql("all customers", "list all customers", &["from customers"]),
        sql("older", "names of customers older than 30", &["select name from customers where age > 30"]),
        sql("count", "how many orders are there?", &["select count(*) from orders"]),
        sql(
            "dear",
            "products that cost more than 100, the dearest first",
            &["from products", "price > 100", "order by price desc"],
        ),
        luhn_task("card", "Write an example of an eight-digit card number.", "[0-9]{8}"),
        luhn_task(
            "member",
            "Write a membership number: two capital letters, a dash and six digits.",
            "[A-Z]{2}-[0-9]{6}",
        ),
    ]
}

/// A task for every schema in a folder of `.json` files; a valid answer counts as right.
pub(super) fn folder(path: &Path) -> Result<Vec<Task>, Failure> {
    let mut files: Vec<_> = std::fs::read_dir(path)
        .map_err(|error| format!("{}: {error}", path.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| {
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let schema: Json =
                serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let prompt = format!("Write an example of a JSON value that satisfies this schema: {schema}");
            Ok(Task { name, kind: "given schema", prompt, form: Form::Schema(schema), says: Vec::new() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pilotfish_constrained::Vocabulary;

    use super::*;

    #[test]
    fn checksums() {
        // The number that Luhn's patent is usually explained with.
        assert!(luhn(b"79927398713") && luhn(b"7992-7398-713") && !luhn(b"79927398710"));
    }

    #[test]
    fn every_form_compiles_and_admits_a_right_answer() {
        let grammars = Grammars::new(Arc::new(Vocabulary::single_bytes())).unwrap();
        let answers = [
            "1969-07-20",
            "[Paris]",
            "17+25=42",
            "SKY-1",
            "12:00",
            "ada@example.com",
            "hi!",
            "apple, pear and plum.",
            "{\"city\":\"Rome\",\"country\":\"Italy\"}",
            "{\"name\":\"Ada Lovelace\",\"born\":1815}",
            "{\"mood\":\"positive\",\"sure\":true}",
            "{\"colours\":[\"red\",\"blue\"]}",
            "{\"x\":3,\"y\":4}",
            "SELECT * FROM customers;",
            "SELECT name FROM customers WHERE age > 30;",
            "SELECT COUNT(*) FROM orders;",
            "SELECT name FROM products WHERE price > 100 ORDER BY price DESC;",
            "00000000",
            "AB-000000",
        ];
        let tasks = own();
        assert_eq!(tasks.len(), answers.len());
        for (task, answer) in tasks.iter().zip(answers) {
            let mut constraint = task.constraint(&grammars).unwrap();
            assert!(constraint.push(answer.as_bytes()).unwrap(), "{}: {answer}", task.name);
            assert!(
                constraint.complete().unwrap() && task.right(answer.as_bytes()),
                "{}: {answer}",
                task.name
            );
        }
    }
}
