//! A Gaussian process over the unit cube, small enough to be fitted between two steps of a decoder.

/// Length scales tried; that of the largest marginal likelihood is taken.
const LENGTHS: [f64; 6] = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0];

/// A process with a Matern kernel (nu = 5/2), fitted to values that are made to have mean 0 and deviation 1.
#[derive(Clone, Debug)]
pub(super) struct Process<'a> {
    points: &'a [Vec<f32>],
    length: f64,
    mean: f64,
    deviation: f64,
    /// Lower triangle of the Cholesky factor, row by row.
    factor: Vec<Vec<f64>>,
    /// The inverse of the kernel's matrix times the values.
    weights: Vec<f64>,
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

fn matern(distance: f64, length: f64) -> f64 {
    let r = 5f64.sqrt() * distance / length;
    (1.0 + r + r * r / 3.0) * (-r).exp()
}

/// `L` with `L L^T = K`; `None` where the matrix is not positive.
fn cholesky(mut k: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    for i in 0..k.len() {
        for j in 0..=i {
            let sum = k[i][j] - (0..j).map(|m| k[i][m] * k[j][m]).sum::<f64>();
            if i > j {
                k[i][j] = sum / k[j][j];
            } else if sum > 0.0 {
                k[i][i] = sum.sqrt();
            } else {
                return None;
            }
        }
    }
    Some(k)
}

/// `x` with `L x = b`.
fn forward(l: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x: Vec<f64> = Vec::with_capacity(b.len());
    for (row, &b) in l.iter().zip(b) {
        let sum = row.iter().zip(&x).map(|(a, x)| a * x).sum::<f64>();
        x.push((b - sum) / row[x.len()]);
    }
    x
}

/// `x` with `L^T x = b`.
fn backward(l: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x = b.to_vec();
    for i in (0..x.len()).rev() {
        let later: f64 = (i + 1..x.len()).map(|j| l[j][i] * x[j]).sum();
        x[i] = (x[i] - later) / l[i][i];
    }
    x
}

impl<'a> Process<'a> {
    /// The process that has seen these values with noise of variance `noise` (of values of deviation 1). `None` without
    /// values.
    pub(super) fn fit(points: &'a [Vec<f32>], values: &[f32], noise: f64) -> Option<Self> {
        let count = values.len() as f64;
        if values.is_empty() || points.len() != values.len() {
            return None;
        }
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let spread = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
        let deviation = if spread > 1e-18 { spread.sqrt() } else { 1.0 };
        let y: Vec<f64> = values.iter().map(|&value| (f64::from(value) - mean) / deviation).collect();
        let apart: Vec<Vec<f64>> =
            (0..points.len()).map(|i| (0..=i).map(|j| distance(&points[i], &points[j])).collect()).collect();
        let mut best: Option<(f64, Self)> = None;
        for length in LENGTHS {
            let kernel = apart.iter().enumerate().map(|(i, row)| {
                let noisy = |j: usize| if i == j { noise } else { 0.0 };
                row.iter().enumerate().map(|(j, &d)| matern(d, length) + noisy(j)).collect()
            });
            let Some(factor) = cholesky(kernel.collect()) else { continue };
            let half = forward(&factor, &y);
            let likelihood = -0.5 * half.iter().map(|x| x * x).sum::<f64>()
                - factor.iter().enumerate().map(|(i, row)| row[i].ln()).sum::<f64>();
            if best.as_ref().is_none_or(|(most, _)| likelihood > *most) {
                let weights = backward(&factor, &half);
                best = Some((likelihood, Self { points, length, mean, deviation, factor, weights }));
            }
        }
        best.map(|(_, process)| process)
    }

    /// Mean and deviation of the value at a point.
    pub(super) fn at(&self, point: &[f32]) -> (f64, f64) {
        let k: Vec<f64> =
            self.points.iter().map(|other| matern(distance(point, other), self.length)).collect();
        let mean: f64 = k.iter().zip(&self.weights).map(|(k, w)| k * w).sum();
        let half = forward(&self.factor, &k);
        let variance = (1.0 - half.iter().map(|x| x * x).sum::<f64>()).max(0.0);
        (self.mean + self.deviation * mean, self.deviation * variance.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_by_hand() {
        let points = [vec![0.0]];
        let process = Process::fit(&points, &[3.0], 0.25).expect("one value");
        // Normalised it is 0, so the mean is 3 everywhere; the variance is 1 - k^2 / 1.25.
        let (mean, deviation) = process.at(&[0.0]);
        assert!((mean - 3.0).abs() < 1e-12 && (deviation - (1.0f64 - 1.0 / 1.25).sqrt()).abs() < 1e-12);
        assert!(process.at(&[100.0]).1 > 0.9);
        assert!(Process::fit(&[], &[], 0.1).is_none());
    }

    #[test]
    fn kernel_and_solvers_by_hand() {
        // nu = 5/2 at distance 1, length 1: (1 + sqrt 5 + 5/3) exp(-sqrt 5).
        assert!((matern(1.0, 1.0) - 0.523_994_108_831_821_6).abs() < 1e-12, "{}", matern(1.0, 1.0));
        let l = cholesky(vec![vec![4.0], vec![2.0, 5.0]]).expect("positive");
        assert_eq!(l, [vec![2.0], vec![1.0, 2.0]]);
        assert_eq!(forward(&l, &[4.0, 6.0]), [2.0, 2.0]);
        assert_eq!(backward(&l, &[4.0, 6.0]), [0.5, 3.0]);
        assert!(cholesky(vec![vec![1.0], vec![2.0, 1.0]]).is_none());
    }

    #[test]
    fn what_was_seen_is_known_and_the_trend_goes_on() {
        let points: Vec<Vec<f32>> = (0..8).map(|i| vec![i as f32 / 7.0, (i * 3 % 8) as f32 / 7.0]).collect();
        let values: Vec<f32> = points.iter().map(|p| 2.0 * p[0] - p[1]).collect();
        let process = Process::fit(&points, &values, 1e-6).expect("values");
        for (point, value) in points.iter().zip(&values) {
            let (mean, deviation) = process.at(point);
            assert!(
                (mean - f64::from(*value)).abs() < 1e-2 && deviation < 0.02,
                "{mean} {value} {deviation}"
            );
        }
        assert!(process.at(&[0.9, 0.1]).0 > process.at(&[0.1, 0.9]).0 + 1.0);
    }
}
