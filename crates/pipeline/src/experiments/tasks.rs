//! Small tasks with checkable answers, for experiments on small models.

use pilotfish_model::Streams;
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// A kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    Arithmetic,
    Sorting,
    Choice,
}

impl Task {
    pub(super) const ALL: [Self; 3] = [Self::Arithmetic, Self::Sorting, Self::Choice];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::Sorting => "sorting",
            Self::Choice => "multiple choice",
        }
    }

    /// What comes before a problem: worked examples, the same for every problem of the task.
    pub(super) fn shots(self) -> &'static str {
        match self {
            Self::Arithmetic => "Q: 12 + 35\nA: 47\n\nQ: 58 + 27\nA: 85\n\nQ: 64 + 19\nA: 83\n\n",
            Self::Sorting => {
                "Q: sort 5 2 8 3\nA: 2 3 5 8\n\nQ: sort 9 1 4 7\nA: 1 4 7 9\n\nQ: sort 6 8 2 5\nA: 2 5 6 8\n\n"
            }
            Self::Choice => {
                "Q: which is largest? (A) 31 (B) 74 (C) 12 (D) 56\nA: B\n\n\
                 Q: which is largest? (A) 85 (B) 44 (C) 62 (D) 17\nA: A\n\n\
                 Q: which is largest? (A) 23 (B) 38 (C) 19 (D) 91\nA: D\n\n"
            }
        }
    }

    /// What such an answer looks like.
    pub(super) fn well_formed(self, answer: &str) -> bool {
        match self {
            Self::Arithmetic => (1..=3).contains(&answer.len()) && answer.bytes().all(|b| b.is_ascii_digit()),
            Self::Sorting => {
                let words: Vec<&str> = answer.split(' ').collect();
                words.len() == 4 && words.iter().all(|w| w.len() == 1 && w.as_bytes()[0].is_ascii_digit())
            }
            Self::Choice => matches!(answer, "A" | "B" | "C" | "D"),
        }
    }
}

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Problem {
    pub(super) task: Task,
    pub(super) question: String,
    pub(super) answer: String,
}

impl Problem {
    /// The text a model continues with the answer.
    pub(super) fn prompt(&self) -> String {
        format!("{}Q: {}\nA:", self.task.shots(), self.question)
    }

    /// Checks that see part of what makes an answer right, each with its own blind spot.
    pub(super) fn partial(&self, answer: &str) -> [f64; 2] {
        let numbers = |text: &str| -> Vec<i64> {
            text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
        };
        let yes = |b: bool| f64::from(u8::from(b));
        match self.task {
            // The last digit, and the size to within 10: a wrong carry passes the first, not the second.
            Task::Arithmetic => {
                let sum: i64 = numbers(&self.question).iter().sum();
                match answer.parse::<i64>() {
                    Ok(given) => [yes(given % 10 == sum % 10), yes((given - sum).abs() <= 10)],
                    Err(_) => [0.0, 0.0],
                }
            }
            // Nothing lost or added, and ascending ends.
            Task::Sorting => {
                let (mut asked, given) = (numbers(&self.question), numbers(answer));
                asked.sort_unstable();
                let mut sorted = given.clone();
                sorted.sort_unstable();
                [yes(sorted == asked), yes(given.first() == asked.first())]
            }
            // Whether the option named beats its neighbours to the left, and to the right.
            Task::Choice => {
                let options = numbers(&self.question);
                let index = "ABCD".find(answer).filter(|_| answer.len() == 1);
                match index.and_then(|i| options.get(i).map(|v| (i, *v))) {
                    Some((i, value)) => [
                        yes(i == 0 || options[i - 1] < value),
                        yes(options.get(i + 1).is_none_or(|next| *next < value)),
                    ],
                    None => [0.0, 0.0],
                }
            }
        }
    }
}

/// The answer in a continuation: its first line.
pub(super) fn extract(text: &str) -> Option<String> {
    let line = text.trim_start_matches(' ').lines().next()?.trim();
    (!line.is_empty()).then(|| line.trim_end_matches('.').to_owned())
}

/// `count` different problems, the tasks in turn.
pub(super) fn problems(count: usize, tasks: &[Task], seed: u64) -> Vec<Problem> {
    let mut rng = Streams::new(seed).stream("problems");
    let mut seen = std::collections::HashSet::new();
    let mut out = Vec::with_capacity(count);
    // There are thousands of each, so a few draws find a new one; the limit is for counts beyond that.
    let mut draws = 0;
    while out.len() < count && draws < 50 * count + 1000 && !tasks.is_empty() {
        draws += 1;
        let task = tasks[out.len() % tasks.len()];
        let (question, answer) = match task {
            Task::Arithmetic => {
                let (a, b) = (rng.random_range(11..90), rng.random_range(11..90));
                (format!("{a} + {b}"), (a + b).to_string())
            }
            Task::Sorting => {
                let mut digits: Vec<u32> = (1..10).collect();
                digits.shuffle(&mut rng);
                let text = |digits: &[u32]| digits.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
                let question = format!("sort {}", text(&digits[..4]));
                digits.truncate(4);
                digits.sort_unstable();
                (question, text(&digits))
            }
            Task::Choice => {
                let mut numbers: Vec<u32> = (10..100).collect();
                numbers.shuffle(&mut rng);
                let largest = (0..4).max_by_key(|&i| numbers[i]).unwrap_or(0);
                let [a, b, c, d] = [numbers[0], numbers[1], numbers[2], numbers[3]];
                let question = format!("which is largest? (A) {a} (B) {b} (C) {c} (D) {d}");
                (question, ["A", "B", "C", "D"][largest].to_owned())
            }
        };
        if seen.insert(question.clone()) {
            out.push(Problem { task, question, answer });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_different_and_right_answers_pass_every_check() {
        let all = problems(300, &Task::ALL, 0);
        assert_eq!(all.len(), 300);
        for problem in &all {
            assert!(problem.task.well_formed(&problem.answer), "{problem:?}");
            assert_eq!(problem.partial(&problem.answer), [1.0, 1.0], "{problem:?}");
            assert_eq!(problem.partial("nonsense"), [0.0, 0.0]);
        }
        assert_eq!(all, problems(300, &Task::ALL, 0));
    }

    #[test]
    fn checks_are_partial() {
        let problem = Problem { task: Task::Arithmetic, question: "58 + 27".into(), answer: "85".into() };
        assert_eq!(problem.partial("75"), [1.0, 1.0]);
        assert_eq!(problem.partial("65"), [1.0, 0.0]);
        assert_eq!(problem.partial("86"), [0.0, 1.0]);
        let problem =
            Problem { task: Task::Sorting, question: "sort 5 2 8 3".into(), answer: "2 3 5 8".into() };
        assert_eq!(problem.partial("2 5 3 8"), [1.0, 1.0]);
        assert!(!Task::Sorting.well_formed("2 3 5") && !Task::Arithmetic.well_formed("8 5"));
        assert_eq!(extract(" 85\nQ: 1"), Some("85".into()));
        assert_eq!(extract(" \n"), None);
    }
}
