use pilotfish_model::Streams;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

use super::{Problem, Task, latin_squares, solve_sudoku};
use crate::Result;
use crate::error::refuse;

/// What lists are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Items {
    /// Names, "First Last", as in the waiting line.
    #[default]
    Names,
    /// Letters `A` to `Z`, as in the synthetic sets.
    Letters,
}

const FIRST: [&str; 48] = [
    "Ada", "Amos", "Anna", "Ben", "Bruno", "Carla", "Cecil", "Clara", "Daniel", "Dora", "Edgar", "Elena",
    "Emil", "Erika", "Felix", "Flora", "Frank", "Gina", "Hanna", "Hugo", "Ida", "Ivan", "Jacob", "Jana",
    "Karl", "Kira", "Laura", "Leon", "Lydia", "Marco", "Maria", "Max", "Nina", "Nora", "Olga", "Oscar",
    "Paula", "Peter", "Quinn", "Rosa", "Rudolf", "Sara", "Simon", "Tessa", "Tim", "Vera", "Viktor", "Wanda",
];

const LAST: [&str; 48] = [
    "Abbot", "Adler", "Archer", "Baker", "Barlow", "Becker", "Berg", "Bishop", "Brandt", "Carver", "Cole",
    "Cooper", "Dalton", "Drake", "Eber", "Falk", "Fisher", "Fuller", "Gardner", "Graves", "Hale", "Harper",
    "Hunter", "Jordan", "Keller", "Knight", "Lang", "Mason", "Mercer", "Miller", "Nash", "Norton", "Oakley",
    "Palmer", "Parker", "Porter", "Reeve", "Ritter", "Sawyer", "Shepard", "Slater", "Stone", "Thatcher",
    "Tucker", "Vogel", "Walker", "Weaver", "Young",
];

const WORDS: [&str; 40] = [
    "apple", "baker", "bridge", "candle", "castle", "cloud", "coffee", "dancer", "desert", "doctor",
    "engine", "farmer", "feather", "forest", "garden", "guitar", "hammer", "harbor", "island", "jacket",
    "kitchen", "ladder", "lantern", "market", "meadow", "mirror", "mountain", "ocean", "orange", "painter",
    "pencil", "planet", "river", "sailor", "school", "shadow", "singer", "station", "window", "winter",
];

/// `count` problems of a task with the benchmark's lengths: lists of 3 to 6 names or 6 to 15 letters, equally many of
/// each length; squares over four symbols; Sudokus with 12 givens; four words. The same seed gives the same problems
/// on every machine.
///
/// # Errors
/// As [`generate_of_length`].
pub fn generate(task: Task, items: Items, count: usize, seed: u64) -> Result<Vec<Problem>> {
    let lengths = match items {
        _ if matches!(task, Task::LatinSquare | Task::Sudoku | Task::WordsToSentence) => 4..=4,
        Items::Names => 3..=6,
        Items::Letters => 6..=15,
    };
    let lengths: Vec<usize> = lengths.collect();
    (0..count).map(|index| one(task, items, lengths[index % lengths.len()], seed, index)).collect()
}

/// `count` problems of a task with lists of one length.
///
/// # Errors
/// Fewer than 2 items, or more than there are: 25 letters, 47 names, 39 words; squares and Sudokus of another size
/// than 4.
pub fn generate_of_length(
    task: Task,
    items: Items,
    length: usize,
    count: usize,
    seed: u64,
) -> Result<Vec<Problem>> {
    (0..count).map(|index| one(task, items, length, seed, index)).collect()
}

fn one(task: Task, items: Items, length: usize, seed: u64, index: usize) -> Result<Problem> {
    let most = match (task, items) {
        (Task::LatinSquare | Task::Sudoku, _) => 4,
        (Task::WordsToSentence, _) => WORDS.len() - 1,
        (_, Items::Letters) => 25,
        (_, Items::Names) => FIRST.len() - 1,
    };
    let least = if matches!(task, Task::LatinSquare | Task::Sudoku) { 4 } else { 2 };
    if !(least..=most).contains(&length) {
        return refuse("items of a list", length as f64, "at least 2, and fewer than there are; puzzles: 4");
    }
    let mut rng = Streams::new(seed).fork(index as u64).stream(task.name());
    let mut problem = Problem { task, items: Vec::new(), word: None, index: None, count: None };
    match task {
        Task::Sudoku => {
            problem.items = sudoku(&mut rng);
            return Ok(problem);
        }
        Task::WordsToSentence => {
            problem.items = WORDS.choose_multiple(&mut rng, length).map(|word| (*word).to_owned()).collect();
            return Ok(problem);
        }
        _ => {}
    }
    // One more than the list, for the new item.
    let mut drawn: Vec<String> = match items {
        Items::Letters => {
            let letters: Vec<char> = ('A'..='Z').collect();
            letters.choose_multiple(&mut rng, length + 1).map(char::to_string).collect()
        }
        Items::Names => {
            let first: Vec<&str> = FIRST.choose_multiple(&mut rng, length + 1).copied().collect();
            let last: Vec<&str> = LAST.choose_multiple(&mut rng, length + 1).copied().collect();
            first.iter().zip(last).map(|(first, last)| format!("{first} {last}")).collect()
        }
    };
    let word = drawn.pop();
    problem.items = drawn;
    match task {
        Task::InsertIndex | Task::InsertRandom | Task::ReplaceIndex | Task::ReplaceRandom => {
            problem.word = word
        }
        Task::RepeatEach | Task::RepeatList => problem.count = Some(rng.random_range(2..=6)),
        _ => {}
    }
    match task {
        Task::InsertIndex => problem.index = Some(rng.random_range(0..=length)),
        Task::RemoveIndex | Task::ReplaceIndex => problem.index = Some(rng.random_range(0..length)),
        _ => {}
    }
    Ok(problem)
}

/// A Sudoku of 12 givens with one solution.
fn sudoku(rng: &mut impl Rng) -> Vec<String> {
    let squares: Vec<Vec<usize>> = latin_squares(4)
        .unwrap_or_default()
        .into_iter()
        .filter(|square| {
            [0, 2, 8, 10].iter().all(|corner| {
                let mut cells = [0, 1, 4, 5].map(|offset| square[corner + offset]);
                cells.sort_unstable();
                cells == [0, 1, 2, 3]
            })
        })
        .collect();
    let solution = squares.choose(rng).cloned().unwrap_or_default();
    loop {
        let mut cells: Vec<usize> = (0..solution.len()).collect();
        cells.shuffle(rng);
        let blanks = &cells[..cells.len().min(4)];
        let digit = |cell: usize| if blanks.contains(&cell) { 0 } else { solution[cell] + 1 };
        let rows: Vec<String> =
            (0..4).map(|row| (0..4).map(|column| digit(row * 4 + column).to_string()).collect()).collect();
        // The givens of any four blanks admit the solution; nearly all admit no other.
        if solve_sudoku(&rows).is_some() {
            return rows;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_the_benchmarks_shape() {
        for task in Task::ALL {
            for items in [Items::Names, Items::Letters] {
                let problems = generate(task, items, 40, 7).expect("valid");
                assert_eq!(problems, generate(task, items, 40, 7).expect("valid"), "not reproducible");
                assert_ne!(problems, generate(task, items, 40, 8).expect("valid"));
                for problem in &problems {
                    let distinct: std::collections::HashSet<_> = problem.items.iter().collect();
                    assert_eq!(distinct.len(), problem.items.len(), "{problem:?}");
                    assert!(problem.word.as_ref().is_none_or(|word| !problem.items.contains(word)));
                    if task == Task::Sudoku {
                        assert_eq!(problem.items.concat().matches('0').count(), 4);
                    }
                }
            }
        }
        let lengths: Vec<usize> = generate(Task::Copy, Items::Names, 8, 1)
            .expect("valid")
            .iter()
            .map(|problem| problem.items.len())
            .collect();
        assert_eq!(lengths, [3, 4, 5, 6, 3, 4, 5, 6]);
    }

    #[test]
    fn the_seed_is_frozen() {
        // If this fails, every result made with these problems is of another set.
        let problem = &generate_of_length(Task::ReplaceIndex, Items::Letters, 5, 1, 42).expect("valid")[0];
        let text = format!("{} {:?} {:?}", problem.items.concat(), problem.word, problem.index);
        assert_eq!(text, "XEMGZ Some(\"N\") Some(2)");
    }

    #[test]
    fn refuses_lengths_it_cannot_make() {
        for (task, items, length) in [
            (Task::Copy, Items::Letters, 26),
            (Task::Copy, Items::Names, 48),
            (Task::Copy, Items::Names, 1),
            (Task::Sudoku, Items::Names, 9),
            (Task::LatinSquare, Items::Letters, 3),
            (Task::WordsToSentence, Items::Names, 40),
        ] {
            assert!(generate_of_length(task, items, length, 1, 0).is_err(), "{task} {length}");
        }
    }
}
