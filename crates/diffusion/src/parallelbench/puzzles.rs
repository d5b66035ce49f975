/// All Latin squares of a size, each as its cells row by row; `None` above size 4 (there are 576 of size 4, 161,280 of
/// size 5).
pub fn latin_squares(n: usize) -> Option<Vec<Vec<usize>>> {
    if n > 4 {
        return None;
    }
    let mut squares = vec![Vec::new()];
    for cell in 0..n * n {
        let (row, column) = (cell / n, cell % n);
        squares = squares
            .into_iter()
            .flat_map(|square: Vec<usize>| {
                (0..n).filter_map(move |symbol| {
                    let in_row = square[row * n..].contains(&symbol);
                    let in_column = (0..row).any(|above| square[above * n + column] == symbol);
                    (!in_row && !in_column).then(|| {
                        let mut longer = square.clone();
                        longer.push(symbol);
                        longer
                    })
                })
            })
            .collect();
    }
    Some(squares)
}

/// The solution of a 4 x 4 Sudoku, given as rows of digits with `0` for blanks; `None` if the rows are no Sudoku, or it
/// has no solution or several.
pub fn solve_sudoku(rows: &[String]) -> Option<Vec<String>> {
    let mut grid = [[0u8; 4]; 4];
    if rows.len() != 4 {
        return None;
    }
    for (row, text) in rows.iter().enumerate() {
        if text.len() != 4 {
            return None;
        }
        for (column, digit) in text.bytes().enumerate() {
            grid[row][column] = digit.checked_sub(b'0').filter(|digit| *digit <= 4)?;
        }
    }
    let givens_clash = (0..16).any(|cell| {
        let digit = grid[cell / 4][cell % 4];
        let mut others = grid;
        others[cell / 4][cell % 4] = 0;
        digit != 0 && !fits(&others, cell, digit)
    });
    let mut solutions = Vec::new();
    if !givens_clash {
        search(&mut grid, 0, &mut solutions);
    }
    match solutions.as_slice() {
        [only] => {
            Some(only.iter().map(|row| row.iter().map(|digit| char::from(b'0' + digit)).collect()).collect())
        }
        _ => None,
    }
}

fn fits(grid: &[[u8; 4]; 4], cell: usize, digit: u8) -> bool {
    let (row, column) = (cell / 4, cell % 4);
    (0..4).all(|i| {
        grid[row][i] != digit
            && grid[i][column] != digit
            && grid[row / 2 * 2 + i / 2][column / 2 * 2 + i % 2] != digit
    })
}

/// Fills cells from `cell` on; stops at the second solution.
fn search(grid: &mut [[u8; 4]; 4], cell: usize, solutions: &mut Vec<[[u8; 4]; 4]>) {
    if solutions.len() > 1 {
        return;
    }
    if cell == 16 {
        solutions.push(*grid);
        return;
    }
    if grid[cell / 4][cell % 4] != 0 {
        return search(grid, cell + 1, solutions);
    }
    for digit in 1..=4 {
        if fits(grid, cell, digit) {
            grid[cell / 4][cell % 4] = digit;
            search(grid, cell + 1, solutions);
            grid[cell / 4][cell % 4] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_counted() {
        let counts = [1, 2, 3, 4].map(|n| latin_squares(n).map(|squares| squares.len()));
        assert_eq!(counts, [Some(1), Some(2), Some(12), Some(576)]);
        assert!(latin_squares(5).is_none());
    }

    #[test]
    fn sudokus_by_hand() {
        let rows = |rows: [&str; 4]| rows.map(String::from).to_vec();
        let solved = solve_sudoku(&rows(["1230", "3412", "2143", "4021"]));
        assert_eq!(solved, Some(rows(["1234", "3412", "2143", "4321"])));
        // Several solutions, a clash, a digit too large, too few rows, no digits.
        assert!(solve_sudoku(&rows(["0000", "0000", "0000", "0000"])).is_none());
        assert!(solve_sudoku(&rows(["1130", "3412", "2143", "4021"])).is_none());
        assert!(solve_sudoku(&rows(["1235", "3412", "2143", "4021"])).is_none());
        assert!(solve_sudoku(&["1234".into()]).is_none());
        assert!(solve_sudoku(&rows(["12x4", "3412", "2143", "4021"])).is_none());
        assert!(solve_sudoku(&rows(["12", "3412", "2143", "4021"])).is_none());
    }
}
