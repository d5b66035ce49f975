//! The assignment problem, for tables as small as a number of classes.

/// The columns, one a row and each once, whose gains sum to the most (Kuhn and Munkres, with potentials).
pub(crate) fn best_permutation(gains: &[Vec<f64>]) -> Vec<usize> {
    let n = gains.len();
    // Rows and columns from 1; 0 stands for none.
    let (mut u, mut v) = (vec![0.0; n + 1], vec![0.0; n + 1]);
    let mut row_of = vec![0; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let mut column = 0;
        let mut least = vec![f64::INFINITY; n + 1];
        let mut from = vec![0; n + 1];
        let mut used = vec![false; n + 1];
        while row_of[column] != 0 {
            used[column] = true;
            let current = row_of[column];
            let (mut delta, mut next) = (f64::INFINITY, 0);
            for other in 1..=n {
                if used[other] {
                    continue;
                }
                let cost = -gains[current - 1][other - 1] - u[current] - v[other];
                if cost < least[other] {
                    (least[other], from[other]) = (cost, column);
                }
                if least[other] < delta {
                    (delta, next) = (least[other], other);
                }
            }
            for other in 0..=n {
                if used[other] {
                    u[row_of[other]] += delta;
                    v[other] -= delta;
                } else {
                    least[other] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[from[column]];
            column = from[column];
        }
    }
    let mut found = vec![0; n];
    (1..=n).for_each(|column| found[row_of[column] - 1] = column - 1);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_would_be_wrong() {
        // Greedy takes 10 and is left with 0; the best is 9 + 8.
        assert_eq!(best_permutation(&[vec![10.0, 9.0], vec![8.0, 0.0]]), [1, 0]);
        let gains = vec![vec![1.0, 5.0, 2.0], vec![4.0, 4.0, 4.0], vec![3.0, 6.0, 0.0]];
        // All six sums by hand: 5, 5, 9, 12 (5+4+3), 9, 12 (2+4+6).
        let found = best_permutation(&gains);
        let sum: f64 = found.iter().enumerate().map(|(row, column)| gains[row][*column]).sum();
        assert_eq!(sum, 12.0);
    }
}
