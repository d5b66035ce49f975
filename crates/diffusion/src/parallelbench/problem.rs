use pilotfish_model::Token;
use serde::{Deserialize, Serialize};

use super::{Task, latin_squares, solve_sudoku, text};
use crate::ideal::Law;

/// A prompt and what answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Task.
    pub task: Task,
    /// The list, the symbols of a square, the rows of a Sudoku (`0` is blank), or the words.
    pub items: Vec<String>,
    /// The new item of a task that has one.
    pub word: Option<String>,
    /// The index of a task that has one, from 0.
    pub index: Option<usize>,
    /// Repetitions of a task that repeats.
    pub count: Option<usize>,
}

/// A score of 0 or 1, read loosely and strictly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scored {
    /// Right if the form is overlooked.
    pub loose: bool,
    /// Right in the form that was asked for.
    pub strict: bool,
}

/// A list as the benchmark reads it: what stands after the last `[` and before the next `]`, split at commas, without
/// spaces and quotes. Without brackets the whole text is split.
pub fn parse_loose(text: &str) -> Vec<String> {
    let inner = match text.rfind('[') {
        Some(open) => {
            let rest = &text[open + 1..];
            &rest[..rest.find(']').unwrap_or(rest.len())]
        }
        None => text,
    };
    if inner.trim().is_empty() {
        return Vec::new();
    }
    inner
        .split(',')
        .map(|item| item.trim_matches(|c: char| c == '"' || c.is_whitespace()).to_owned())
        .collect()
}

/// A list in the form asked for: `["A B", "C D"]`, every item in double quotes, separated by `, `. `None` otherwise.
pub fn parse_strict(text: &str) -> Option<Vec<String>> {
    let rest = &text[text.rfind('[')? + 1..];
    let inner = &rest[..rest.find(']')?];
    if inner.is_empty() {
        return Some(Vec::new());
    }
    let inner = inner.strip_prefix('"')?.strip_suffix('"')?;
    let items: Vec<String> = inner.split("\", \"").map(str::to_owned).collect();
    items.iter().all(|item| !item.contains('"')).then_some(items)
}

/// `["A B", "C D"]`.
fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", "))
}

impl Problem {
    /// The request, in words.
    pub fn prompt(&self) -> String {
        let (list, word) = (list(&self.items), self.word.clone().unwrap_or_default());
        let (index, count) = (self.index.unwrap_or(0), self.count.unwrap_or(1));
        match self.task {
            Task::Copy => format!("Copy the following list: {list}"),
            Task::Reverse => format!("Reverse the following list: {list}"),
            Task::Sort => format!("Sort the following list in ascending order: {list}"),
            Task::Shuffle => format!("Shuffle the following list into a different order: {list}"),
            Task::InsertIndex => format!("Insert \"{word}\" at index {index} of the following list: {list}"),
            Task::InsertRandom => {
                format!("Insert \"{word}\" at a random place of the following list: {list}")
            }
            Task::RemoveIndex => format!("Remove the item at index {index} from the following list: {list}"),
            Task::RemoveRandom => format!("Remove a random item from the following list: {list}"),
            Task::ReplaceIndex => {
                format!("Replace the item at index {index} of the following list by \"{word}\": {list}")
            }
            Task::ReplaceRandom => {
                format!("Replace a random item of the following list by \"{word}\": {list}")
            }
            Task::RepeatEach => format!("Repeat each item of the following list {count} times: {list}"),
            Task::RepeatList => format!("Repeat the following list {count} times: {list}"),
            Task::LatinSquare => {
                format!(
                    "Write a Latin square of size {0} over the symbols {list}, rows as lines, cells separated by commas.",
                    self.items.len()
                )
            }
            Task::Sudoku => format!("Solve this 4x4 Sudoku; 0 is blank.\n{}", self.items.join("\n")),
            Task::WordsToSentence => format!("Write one sentence that uses all of these words: {list}"),
        }
    }

    /// Every right answer item by item, where they can be listed: all but [`Task::Shuffle`]'s, whose law is a
    /// permutation, and [`Task::WordsToSentence`]'s.
    ///
    /// Cells of a square or a Sudoku are items, row by row.
    pub fn answers(&self) -> Option<Vec<Vec<String>>> {
        let items = &self.items;
        let n = items.len();
        let word = self.word.clone().unwrap_or_default();
        let inserted = |at: usize| {
            let mut longer = items.clone();
            longer.insert(at.min(n), word.clone());
            longer
        };
        let removed = |at: usize| {
            items.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, item)| item.clone()).collect()
        };
        let replaced = |at: usize| {
            let mut other = items.clone();
            if let Some(item) = other.get_mut(at) {
                *item = word.clone();
            }
            other
        };
        let (index, count) = (self.index.unwrap_or(0), self.count.unwrap_or(1));
        Some(match self.task {
            Task::Copy => vec![items.clone()],
            Task::Reverse => vec![items.iter().rev().cloned().collect()],
            Task::Sort => {
                let mut sorted = items.clone();
                sorted.sort();
                vec![sorted]
            }
            Task::InsertIndex => vec![inserted(index)],
            Task::InsertRandom => (0..=n).map(inserted).collect(),
            Task::RemoveIndex => vec![removed(index)],
            Task::RemoveRandom => (0..n).map(removed).collect(),
            Task::ReplaceIndex => vec![replaced(index)],
            Task::ReplaceRandom => (0..n).map(replaced).collect(),
            Task::RepeatEach => {
                vec![items.iter().flat_map(|item| std::iter::repeat_n(item.clone(), count)).collect()]
            }
            Task::RepeatList => vec![std::iter::repeat_n(items.clone(), count).flatten().collect()],
            Task::LatinSquare => latin_squares(n)?
                .into_iter()
                .map(|square| square.into_iter().map(|symbol| items[symbol].clone()).collect())
                .collect(),
            Task::Sudoku => {
                let solution = solve_sudoku(items)?;
                vec![solution.iter().flat_map(|row| row.chars().map(String::from)).collect()]
            }
            Task::Shuffle | Task::WordsToSentence => return None,
        })
    }

    /// The exact law of a right answer chosen uniformly, over tokens that number this problem's distinct items; and the
    /// items by token. `None` for tasks without one.
    pub fn law(&self) -> Option<(Law, Vec<String>)> {
        if self.task == Task::Shuffle {
            let items: Vec<Token> = (0..self.items.len() as Token).collect();
            return Some((Law::Permutation { items, identity: false }, self.items.clone()));
        }
        let answers = self.answers()?;
        let mut names: Vec<String> = Vec::new();
        let mut texts = Vec::with_capacity(answers.len());
        for answer in answers {
            let mut text = Vec::with_capacity(answer.len());
            for item in answer {
                let token = names.iter().position(|name| *name == item).unwrap_or_else(|| {
                    names.push(item);
                    names.len() - 1
                });
                text.push(token as Token);
            }
            texts.push(text);
        }
        texts.sort();
        texts.dedup();
        Some((Law::OneOf(texts), names))
    }

    /// Whether a list of items is a right answer.
    pub fn is_right(&self, answer: &[String]) -> bool {
        match self.task {
            Task::Shuffle => {
                let (mut got, mut want) = (answer.to_vec(), self.items.clone());
                got.sort();
                want.sort();
                got == want && answer != self.items
            }
            Task::WordsToSentence => text::uses_all(&answer.join(" "), &self.items),
            // By rule, so that no list of answers is needed.
            Task::LatinSquare => is_latin(answer, &self.items),
            _ => self.answers().is_some_and(|answers| answers.iter().any(|right| right == answer)),
        }
    }

    /// Scores a text.
    pub fn score(&self, text: &str) -> Scored {
        let n = self.items.len();
        match self.task {
            Task::LatinSquare => {
                let row = |line: &str| -> Vec<String> {
                    line.split(',').map(|cell| cell.trim().to_owned()).collect()
                };
                let is_row = |cells: &Vec<String>| {
                    let (mut got, mut want) = (cells.clone(), self.items.clone());
                    got.sort();
                    want.sort();
                    got == want
                };
                // The first rows that are rows of the square; strictly, nothing else.
                let rows: Vec<Vec<String>> = text.lines().map(row).filter(is_row).take(n).collect();
                let loose = rows.len() == n && is_latin(&rows.concat(), &self.items);
                let plain = self.square(&rows.concat());
                Scored { loose, strict: loose && text.trim() == plain }
            }
            Task::Sudoku => {
                let Some(solution) = solve_sudoku(&self.items) else { return Scored::default() };
                let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
                Scored {
                    loose: digits(text) == solution.concat(),
                    strict: text.trim().lines().eq(solution.iter().map(String::as_str)),
                }
            }
            Task::WordsToSentence => {
                let loose = text::uses_all(text, &self.items);
                Scored { loose, strict: loose && text::is_one_sentence(text) }
            }
            _ => Scored {
                loose: self.is_right(&parse_loose(text)),
                strict: parse_strict(text).is_some_and(|answer| self.is_right(&answer)),
            },
        }
    }

    /// An answer in the form asked for.
    pub fn write(&self, answer: &[String]) -> String {
        match self.task {
            Task::LatinSquare => self.square(answer),
            Task::Sudoku => {
                let size = self.items.len().max(1);
                answer.chunks(size).map(|row| row.concat()).collect::<Vec<_>>().join("\n")
            }
            Task::WordsToSentence => answer.join(" "),
            _ => list(answer),
        }
    }

    fn square(&self, cells: &[String]) -> String {
        cells.chunks(self.items.len().max(1)).map(|row| row.join(",")).collect::<Vec<_>>().join("\n")
    }
}

/// Whether cells, row by row, are a Latin square over symbols.
fn is_latin(cells: &[String], symbols: &[String]) -> bool {
    let n = symbols.len();
    let all = |mut line: Vec<&String>| {
        let mut want: Vec<&String> = symbols.iter().collect();
        line.sort();
        want.sort();
        line == want
    };
    n > 0
        && cells.len() == n * n
        && (0..n).all(|i| {
            all(cells[i * n..(i + 1) * n].iter().collect())
                && all((0..n).map(|j| &cells[j * n + i]).collect())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    fn problem(task: Task, items: &[&str]) -> Problem {
        let (word, index, count) = (Some("F".into()), Some(1), Some(2));
        Problem { task, items: strings(items), word, index, count }
    }

    fn right(task: Task, items: &[&str], answer: &[&str]) -> bool {
        problem(task, items).is_right(&strings(answer))
    }

    #[test]
    fn scoring_by_hand() {
        assert!(!right(Task::Shuffle, &["A", "B"], &["A", "B"]));
        assert!(right(Task::Shuffle, &["A", "B"], &["B", "A"]));
        assert!(!right(Task::Shuffle, &["A", "B"], &["B", "B"]));
        assert!(right(Task::ReplaceRandom, &["A", "B", "C"], &["A", "F", "C"]));
        assert!(!right(Task::ReplaceRandom, &["A", "B", "C"], &["F", "F", "C"]));
        assert!(!right(Task::ReplaceRandom, &["A", "B", "C"], &["A", "B", "C"]));
        assert!(!right(Task::RemoveRandom, &["A", "B", "C"], &["C", "A"]));
        assert!(right(Task::RemoveRandom, &["A", "B", "C"], &["A", "C"]));
        assert!(right(Task::InsertRandom, &["A", "B"], &["A", "B", "F"]));
        assert!(!right(Task::InsertRandom, &["A", "B"], &["B", "F", "A"]));
        assert!(right(Task::InsertIndex, &["A", "B"], &["A", "F", "B"]));
        assert!(right(Task::ReplaceIndex, &["A", "B"], &["A", "F"]));
        assert!(right(Task::RemoveIndex, &["A", "B"], &["A"]));
        assert!(right(Task::RepeatEach, &["A", "B"], &["A", "A", "B", "B"]));
        assert!(right(Task::RepeatList, &["A", "B"], &["A", "B", "A", "B"]));
        assert!(right(Task::Reverse, &["A", "B", "C"], &["C", "B", "A"]));
        // The whole string, not the last name.
        assert!(right(Task::Sort, &["Bo Ames", "Al Zorn"], &["Al Zorn", "Bo Ames"]));
    }

    #[test]
    fn lists_are_read_loosely_and_strictly() {
        assert_eq!(parse_loose(r#"Here: ["A B", "C"] and so on"#), ["A B", "C"]);
        assert_eq!(parse_loose("[[A,B"), ["A", "B"]);
        assert!(parse_loose("[]").is_empty());
        let copy = problem(Task::Copy, &["A B", "C"]);
        let score = |text: &str| {
            let Scored { loose, strict } = copy.score(text);
            (loose, strict)
        };
        assert_eq!(score(r#"["A B", "C"]"#), (true, true));
        assert_eq!(score(r#"["A B","C"]"#), (true, false));
        assert_eq!(score("[A B, C]"), (true, false));
        assert_eq!(score(r#""A B", "C""#), (true, false));
        assert_eq!(score(r#"["A B", "D"]"#), (false, false));
        // A bracket is missing: loosely the commas still tell.
        assert_eq!(parse_loose(r#""A B", "C""#), ["A B", "C"]);
        assert_eq!(parse_strict(r#""A B", "C""#), None);
        assert_eq!(parse_strict(r#"["A"B", "C"]"#), None);
        assert_eq!(score(""), (false, false));
    }

    #[test]
    fn squares_and_sudokus() {
        let latin = problem(Task::LatinSquare, &["a", "b", "c", "d"]);
        let text = "a,b,c,d\nb,a,d,c\nc,d,a,b\nd,c,b,a";
        assert_eq!(latin.score(text), Scored { loose: true, strict: true });
        assert_eq!(latin.score(&format!("Here it is:\n{text}")), Scored { loose: true, strict: false });
        assert!(!latin.score("a,b,c,d\nb,a,d,c\nc,d,a,b\na,b,c,d").loose);
        assert!(!latin.score("a,b,c,d").loose);
        let sudoku = problem(Task::Sudoku, &["1230", "3412", "2143", "4021"]);
        assert_eq!(sudoku.score("1234\n3412\n2143\n4321"), Scored { loose: true, strict: true });
        assert_eq!(sudoku.score("1234 3412 2143 4321"), Scored { loose: true, strict: false });
        assert!(!sudoku.score("1243\n3412\n2143\n4321").loose);
        assert_eq!(problem(Task::Sudoku, &["12"]).score("12"), Scored::default());
    }

    #[test]
    fn answers_written_out_are_right() {
        for task in Task::ALL {
            let items = match task {
                Task::Sudoku => ["1230", "3412", "2143", "4021"],
                _ => ["a", "b", "c", "d"],
            };
            let problem = problem(task, &items);
            assert!(!problem.prompt().is_empty());
            let Some(answers) = problem.answers() else { continue };
            for answer in answers.iter().take(20) {
                let got = problem.score(&problem.write(answer));
                assert!(got.loose && got.strict, "{task}: {answer:?}");
            }
        }
    }
}
