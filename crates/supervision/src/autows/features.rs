//! Feature maps: principal components, and the bit reversal that tells whether a method relies on where pixels lie.

use linfa_linalg::eigh::Eigh;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use pilotfish_model::Streams;
use rand::Rng;
use rand_distr::StandardNormal;

use crate::heads::check_features;
use crate::{Result, SupervisionError};

/// Extra vectors of the decomposition, as scikit-learn has.
const EXTRA: usize = 10;

/// Leading principal components of `x` `[items, features]`, at most `components` of them: `x` less its means, projected,
/// `[items, components]`. The benchmark computes them on everything there is, test items included.
///
/// Subspace iteration, 20 times, with ten vectors more than asked for; signs are such that the largest entry of each direction is positive.
///
/// # Errors
/// No items or features; numbers that are not finite; no components.
///
/// ```
/// use pilotfish_supervision::autows::features::principal;
/// // Points on a line.
/// let x = ndarray::array![[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]];
/// let p = principal(x.view(), 1, 0)?;
/// assert!((p[[2, 0]] - 5.0).abs() < 1e-9 && p[[1, 0]].abs() < 1e-9);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
pub fn principal(x: ArrayView2<'_, f64>, components: usize, seed: u64) -> Result<Array2<f64>> {
    check_features(x)?;
    let Some(means) = x.mean_axis(Axis(0)).filter(|_| x.ncols() > 0) else {
        return Err(SupervisionError::Empty { what: "features" });
    };
    let centred = &x - &means;
    Ok(of_centred(&centred, components, seed)?.1)
}

fn of_centred(x: &Array2<f64>, components: usize, seed: u64) -> Result<(Array2<f64>, Array2<f64>)> {
    let apply = |q: &Array2<f64>| x.dot(q);
    let back = |b: &Array2<f64>| x.t().dot(b);
    decompose(x.ncols(), components.min(x.ncols()), 20, &Streams::new(seed), apply, back)
}

/// Principal components that are computed on some items and applied to others, so that test items have no part in them.
///
/// ```
/// use pilotfish_supervision::autows::features::Principal;
/// let x = ndarray::array![[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]];
/// let components = Principal::fit(x.view(), 1, 0)?;
/// let other = components.apply(ndarray::array![[9.0, 12.0]].view())?;
/// assert!((other[[0, 0]] - 10.0).abs() < 1e-9);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Principal {
    means: Array1<f64>,
    /// `[features, components]`
    directions: Array2<f64>,
}

impl Principal {
    /// Computes them as [`principal`] does.
    ///
    /// # Errors
    /// As [`principal`].
    pub fn fit(x: ArrayView2<'_, f64>, components: usize, seed: u64) -> Result<Self> {
        check_features(x)?;
        let Some(means) = x.mean_axis(Axis(0)).filter(|_| x.ncols() > 0) else {
            return Err(SupervisionError::Empty { what: "features" });
        };
        let directions = of_centred(&(&x - &means), components, seed)?.0;
        Ok(Self { means, directions })
    }

    /// Projects items, `[items, components]`.
    ///
    /// # Errors
    /// Another number of features.
    pub fn apply(&self, x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        if x.ncols() != self.means.len() {
            return Err(SupervisionError::Shape { what: "features", got: x.ncols(), want: self.means.len() });
        }
        Ok((&x - &self.means).dot(&self.directions))
    }
}

/// Left singular vectors times singular values, `[rows, components]`, of a matrix of 0 and 1; `rows` lists where the ones are.
pub(super) fn leading(
    rows: &[Vec<usize>],
    width: usize,
    components: usize,
    power: usize,
    streams: &Streams,
) -> Result<Array2<f64>> {
    let apply = |q: &Array2<f64>| {
        let mut out = Array2::zeros((rows.len(), q.ncols()));
        for (row, mut out) in rows.iter().zip(out.rows_mut()) {
            row.iter().for_each(|at| out += &q.row(*at));
        }
        out
    };
    let back = |b: &Array2<f64>| {
        let mut out = Array2::zeros((width, b.ncols()));
        for (row, b) in rows.iter().zip(b.rows()) {
            for at in row {
                let mut to = out.row_mut(*at);
                to += &b;
            }
        }
        out
    };
    Ok(decompose(width, components.min(width).min(rows.len()), power, streams, apply, back)?.1)
}

/// The leading right singular vectors V of a matrix A given by its products, and `A V`.
fn decompose(
    width: usize,
    components: usize,
    power: usize,
    streams: &Streams,
    apply: impl Fn(&Array2<f64>) -> Array2<f64>,
    back: impl Fn(&Array2<f64>) -> Array2<f64>,
) -> Result<(Array2<f64>, Array2<f64>)> {
    if components == 0 {
        return Err(SupervisionError::BadParameter { name: "components", value: 0.0, want: "at least 1" });
    }
    let size = (components + EXTRA).min(width);
    let mut rng = streams.stream("decompose");
    let mut q = Array2::from_shape_simple_fn((width, size), || rng.sample(StandardNormal));
    orthonormalise(&mut q);
    for _ in 0..power {
        q = back(&apply(&q));
        orthonormalise(&mut q);
    }
    let image = apply(&q);
    let gram = image.t().dot(&image);
    let (values, vectors) = gram.eigh().map_err(|error| SupervisionError::Solver {
        model: "principal components",
        why: error.to_string(),
    })?;
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(components);
    let turn = vectors.select(Axis(1), &order);
    let mut directions = q.dot(&turn);
    let mut out = image.dot(&turn);
    for (mut direction, mut column) in directions.columns_mut().into_iter().zip(out.columns_mut()) {
        let largest = direction
            .iter()
            .copied()
            .fold(0.0f64, |most, x| if x.abs() > most.abs() + 1e-9 { x } else { most });
        if largest < 0.0 {
            column.mapv_inplace(|x| -x);
            direction.mapv_inplace(|x| -x);
        }
    }
    Ok((directions, out))
}

/// Makes columns orthonormal, by Gram and Schmidt, twice; dependent ones become 0.
fn orthonormalise(q: &mut Array2<f64>) {
    // Rows of the transpose lie in one piece.
    let mut rows = q.t().as_standard_layout().into_owned();
    for at in 0..rows.nrows() {
        let before = rows.row(at).dot(&rows.row(at)).sqrt();
        for _ in 0..2 {
            let (done, mut rest) = rows.view_mut().split_at(Axis(0), at);
            let mut row = rest.row_mut(0);
            let along: Array1<f64> = done.dot(&row);
            row -= &done.t().dot(&along);
        }
        let mut row = rows.row_mut(at);
        let norm = row.dot(&row).sqrt();
        let dependent = !(norm > 1e-10 * before);
        row.mapv_inplace(|x| if dependent { 0.0 } else { x / norm });
    }
    *q = rows.t().as_standard_layout().into_owned();
}

/// The bit reversal of 0..n, n a power of two: its own inverse.
///
/// # Errors
/// Not a power of two.
///
/// ```
/// use pilotfish_supervision::autows::features::bit_reversal;
/// assert_eq!(bit_reversal(8)?, [0, 4, 2, 6, 1, 5, 3, 7]);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
pub fn bit_reversal(n: usize) -> Result<Vec<usize>> {
    if !n.is_power_of_two() {
        let want = "a power of two";
        return Err(SupervisionError::BadParameter { name: "length to reverse", value: n as f64, want });
    }
    let unused = usize::BITS - n.trailing_zeros();
    Ok((0..n).map(|at| if n == 1 { 0 } else { at.reverse_bits() >> unused }).collect())
}

/// Square images with rows and columns in bit-reversed order; `x` is `[items, side * side]`.
///
/// # Errors
/// Images that are not square, or whose side is no power of two.
pub fn permute_images(x: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    let side = (x.ncols() as f64).sqrt() as usize;
    if side * side != x.ncols() {
        return Err(SupervisionError::Shape {
            what: "pixels of a square image",
            got: x.ncols(),
            want: side * side,
        });
    }
    let reversed = bit_reversal(side)?;
    let order: Vec<usize> =
        (0..x.ncols()).map(|pixel| reversed[pixel / side] * side + reversed[pixel % side]).collect();
    Ok(x.select(Axis(1), &order))
}
