//! Verifiers' rates from votes alone: moments, the closed form, the moment method, the prior from third moments.

use ndarray::{Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::{Result, SupervisionError};

const MODEL: &str = "weaver";
/// Rates are kept this far from 0 and 1, as in the reference code.
pub(super) const CLIP: (f64, f64) = (0.01, 0.99);

/// How often each verifier says "right" of right and of wrong responses, and the share of right responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// `P(Y = 1)`.
    pub balance: f64,
    /// `P(vote 1 | Y = 1)`, one a verifier.
    pub tpr: Vec<f64>,
    /// `P(vote 1 | Y = 0)`, one a verifier.
    pub fpr: Vec<f64>,
}

impl Rates {
    /// Counts rates on labelled votes: supervised naive Bayes. Rates are not smoothed, but clipped to
    /// `[0.01, 0.99]`.
    ///
    /// # Errors
    /// Lengths that differ; labels of one kind only.
    pub fn count(votes: ArrayView2<'_, u8>, labels: &[bool]) -> Result<Self> {
        if labels.len() != votes.nrows() {
            return Err(SupervisionError::Shape { what: "labels", got: labels.len(), want: votes.nrows() });
        }
        let right = labels.iter().filter(|label| **label).count();
        let wrong = labels.len() - right;
        if right == 0 || wrong == 0 {
            let why = "labels of right and of wrong responses are needed".into();
            return Err(SupervisionError::Unidentifiable { model: "naive Bayes", why });
        }
        let (mut tpr, mut fpr) = (vec![0.0; votes.ncols()], vec![0.0; votes.ncols()]);
        for (row, &label) in votes.rows().into_iter().zip(labels) {
            let (rates, of) = if label { (&mut tpr, right) } else { (&mut fpr, wrong) };
            row.iter().zip(rates).for_each(|(vote, rate)| *rate += f64::from(*vote) / of as f64);
        }
        Ok(Self { balance: right as f64 / labels.len() as f64, tpr, fpr }.clipped())
    }

    pub(super) fn clipped(mut self) -> Self {
        let clip = |rate: &mut f64| *rate = rate.clamp(CLIP.0, CLIP.1);
        self.tpr.iter_mut().for_each(clip);
        self.fpr.iter_mut().for_each(clip);
        self
    }

    /// `ln P(votes | Y = 1) - ln P(votes | Y = 0)`: the evidence without the prior.
    pub fn evidence(&self, votes: ArrayView1<'_, u8>) -> f64 {
        let one = |(&vote, (&tpr, &fpr)): (&u8, (&f64, &f64))| match vote {
            0 => ((1.0 - tpr) / (1.0 - fpr)).ln(),
            _ => (tpr / fpr).ln(),
        };
        votes.iter().zip(self.tpr.iter().zip(&self.fpr)).map(one).sum()
    }

    /// Log-odds that a response with these votes is right.
    pub fn log_odds(&self, votes: ArrayView1<'_, u8>) -> f64 {
        (self.balance / (1.0 - self.balance)).ln() + self.evidence(votes)
    }

    /// Probability that a response with these votes is right.
    ///
    /// ```
    /// use ndarray::array;
    /// use pilotfish_supervision::weaver::Rates;
    /// let rates = Rates { balance: 0.4, tpr: vec![0.9, 0.8, 0.7], fpr: vec![0.2, 0.3, 0.1] };
    /// assert!((rates.posterior(array![1, 0, 1].view()) - 0.857143).abs() < 1e-6);
    /// ```
    pub fn posterior(&self, votes: ArrayView1<'_, u8>) -> f64 {
        crate::heads::sigmoid(self.log_odds(votes))
    }
}

/// First and second moments of binary votes.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Responses counted.
    pub count: f64,
    /// `P(vote k = 1)`.
    pub means: Vec<f64>,
    /// `P(vote j = 1, vote k = 1)`, `[verifiers, verifiers]`.
    pub pairs: Array2<f64>,
}

impl Moments {
    /// Counts votes `[responses, verifiers]`.
    ///
    /// # Errors
    /// No responses; a vote that is neither 0 nor 1.
    pub fn of(votes: ArrayView2<'_, u8>) -> Result<Self> {
        let (n, m) = votes.dim();
        if n == 0 {
            return Err(SupervisionError::Empty { what: "responses" });
        }
        let mut counts = Array2::<u64>::zeros((m, m));
        for (item, row) in votes.rows().into_iter().enumerate() {
            for (j, &a) in row.iter().enumerate() {
                if a > 1 {
                    let got = i64::from(a);
                    return Err(SupervisionError::OutOfRange { item, voter: j, got, classes: 2 });
                }
                if a == 1 {
                    row.iter().enumerate().for_each(|(k, &b)| counts[[j, k]] += u64::from(b));
                }
            }
        }
        let pairs = counts.mapv(|count| count as f64 / n as f64);
        Ok(Self { count: n as f64, means: pairs.diag().to_vec(), pairs })
    }

    /// Covariance of two verifiers' votes.
    pub fn covariance(&self, j: usize, k: usize) -> f64 {
        self.pairs[[j, k]] - self.means[j] * self.means[k]
    }

    /// The sign of each verifier's `TPR - FPR`, up to all signs together, which are set so that covariances with
    /// verifiers of sign 1 are the larger part: the signs of the leading eigenvector of the covariances.
    fn signs(&self) -> Vec<f64> {
        let m = self.means.len();
        let row = |i: usize, weights: &[f64]| -> f64 {
            (0..m).filter(|&j| j != i).map(|j| self.covariance(i, j) * weights[j]).sum()
        };
        let strength: Vec<f64> =
            (0..m).map(|i| (0..m).filter(|&j| j != i).map(|j| self.covariance(i, j).abs()).sum()).collect();
        let reference = (0..m).fold(0, |best, i| if strength[i] > strength[best] { i } else { best });
        let mut weights: Vec<f64> = (0..m)
            .map(|i| if i == reference { strength[i] } else { self.covariance(i, reference) })
            .collect();
        for _ in 0..8 {
            let next: Vec<f64> = (0..m).map(|i| row(i, &weights)).collect();
            let size = next.iter().fold(0.0f64, |size, x| size.max(x.abs()));
            if !(size > 0.0) {
                break;
            }
            // Half of the step before keeps an even and an odd eigenvector from taking turns.
            weights = next.iter().zip(&weights).map(|(n, w)| n / size + 0.5 * w).collect();
            let size = weights.iter().fold(0.0f64, |size, x| size.max(x.abs()));
            weights.iter_mut().for_each(|w| *w /= size);
        }
        let flip = if weights.iter().sum::<f64>() < 0.0 { -1.0 } else { 1.0 };
        weights.iter().map(|w| if flip * w < 0.0 { -1.0 } else { 1.0 }).collect()
    }

    /// The second moments of `[vote = 0, vote = 1]` indicators, `[2 verifiers, 2 verifiers]`: the paper's `O`.
    pub fn indicator(&self) -> Array2<f64> {
        let m = self.means.len();
        Array2::from_shape_fn((2 * m, 2 * m), |(a, b)| {
            let (j, k) = (a / 2, b / 2);
            let (u, v) = (a % 2, b % 2);
            let both = if j == k { self.means[j] } else { self.pairs[[j, k]] };
            match (u, v) {
                (1, 1) => both,
                (1, 0) => self.means[j] - both,
                (0, 1) => self.means[k] - both,
                _ => 1.0 - self.means[j] - self.means[k] + both,
            }
        })
    }
}

fn check_balance(balance: f64) -> Result<()> {
    if !(balance > 0.0 && balance < 1.0) {
        let name = "balance";
        return Err(SupervisionError::BadParameter { name, value: balance, want: "above 0 and below 1" });
    }
    Ok(())
}

/// How the closed form treats weak pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosedForm {
    /// A pair whose covariance is below this many standard errors, `0.25 / sqrt(N)` each, is left out, unless none
    /// would remain.
    pub weak: f64,
}

impl Default for ClosedForm {
    fn default() -> Self {
        Self { weak: 1.0 }
    }
}

impl ClosedForm {
    /// Rates from moments, given the share of right responses.
    ///
    /// `C_ij = p(1-p) d_i d_j` with `d = TPR - FPR`, so `|d_i|` is the median over pairs `j < k` of
    /// `sqrt(C_ij C_ik / (C_jk p(1-p)))`; signs are those of the leading eigenvector of the covariances, turned so that
    /// the verifiers together are better than chance; `TPR = m_i + (1-p) d_i`, `FPR = m_i - p d_i`.
    ///
    /// # Errors
    /// Fewer than three verifiers; a balance outside `(0, 1)`; no two verifiers that covary.
    pub fn fit(&self, moments: &Moments, balance: f64) -> Result<Rates> {
        check_balance(balance)?;
        if !(self.weak >= 0.0) {
            let (name, value) = ("weak", self.weak);
            return Err(SupervisionError::BadParameter { name, value, want: "at least 0" });
        }
        let m = moments.means.len();
        if m < 3 {
            return Err(SupervisionError::TooFewVoters { model: MODEL, got: m, want: 3 });
        }
        let (variance, error) = (balance * (1.0 - balance), 0.25 / moments.count.sqrt());
        let signs = moments.signs();
        let deltas: Vec<f64> = (0..m)
            .map(|i| {
                let ratios = |weakest: f64| {
                    let mut out = Vec::new();
                    for j in (0..m).filter(|&j| j != i) {
                        for k in (j + 1..m).filter(|&k| k != i) {
                            let (ij, ik, jk) = (
                                moments.covariance(i, j),
                                moments.covariance(i, k),
                                moments.covariance(j, k),
                            );
                            // What is 0 but for rounding is 0.
                            if jk.abs() > weakest.max(1e-14) {
                                out.push((ij * ik / (jk * variance)).abs().sqrt());
                            }
                        }
                    }
                    out
                };
                let mut usable = ratios(self.weak * error);
                if usable.is_empty() {
                    usable = ratios(0.0);
                }
                median(&mut usable) * signs[i]
            })
            .collect();
        if deltas.iter().all(|delta| *delta == 0.0) {
            let why = "no two verifiers agree more than by chance".into();
            return Err(SupervisionError::Unidentifiable { model: MODEL, why });
        }
        // Swapping the classes explains the votes as well; take the solution in which verifiers help on the whole.
        let flip = if deltas.iter().sum::<f64>() < 0.0 { -1.0 } else { 1.0 };
        let rate = |weight: f64| {
            moments.means.iter().zip(&deltas).map(|(mean, delta)| mean + weight * flip * delta).collect()
        };
        Ok(Rates { balance, tpr: rate(1.0 - balance), fpr: rate(-balance) }.clipped())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The reference code's loop: gradient descent on the distance between moments and those of the model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MomentMethod {
    /// Step size. The released configurations use 1e-5, far too small for their 1000 epochs.
    pub rate: f64,
    /// Steps.
    pub epochs: usize,
    /// Momentum.
    pub momentum: f64,
    /// Weight of the term that makes `P(vote | Y)` sum to 1.
    pub sum_weight: f64,
    /// What the diagonal starts as a share of.
    pub precision: f64,
    /// The start is multiplied by this; the reference code draws it from U(0, 1).
    pub scale: f64,
}

impl Default for MomentMethod {
    /// metal-ama's constants with a step size and number of steps that converge.
    fn default() -> Self {
        Self { rate: 1e-2, epochs: 2000, momentum: 0.9, sum_weight: 10.0, precision: 0.7, scale: 0.5 }
    }
}

/// A fit by the moment method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MomentFit {
    /// The rates.
    pub rates: Rates,
    /// `P(vote = v | Y = y)` before clipping, `[verifiers * 2 + v, y]`, row-major: the paper's mu.
    pub mu: Vec<[f64; 2]>,
    /// Loss before each step and after the last.
    pub losses: Vec<f64>,
    /// Whether the loss had come to rest: over the last tenth of the steps it fell by less than 1 % of itself, or
    /// by less than 1e-8.
    pub plateau: bool,
}

/// Parts of the moment method's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Squared distance of pairs.
    pub pairs: f64,
    /// Squared distance of means.
    pub means: f64,
    /// `sum (1 - sum_v mu)²`, unweighted.
    pub sums: f64,
}

impl MomentMethod {
    /// The released configurations: 1000 steps of 1e-5.
    pub fn released() -> Self {
        Self { rate: 1e-5, epochs: 1000, ..Self::default() }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, value, want| Err(SupervisionError::BadParameter { name, value, want });
        for (name, value) in [("rate", self.rate), ("precision", self.precision), ("scale", self.scale)] {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(name, value, "above 0 and finite");
            }
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return refuse("momentum", self.momentum, "at least 0 and below 1");
        }
        if !(self.sum_weight >= 0.0 && self.sum_weight.is_finite()) {
            return refuse("sum weight", self.sum_weight, "at least 0 and finite");
        }
        if self.epochs == 0 {
            return refuse("epochs", 0.0, "at least 1");
        }
        Ok(())
    }

    /// Where descent starts.
    pub fn start(&self, moments: &Moments, balance: f64) -> Vec<[f64; 2]> {
        let classes = [1.0 - balance, balance];
        (0..2 * moments.means.len())
            .map(|a| {
                let mean = moments.means[a / 2];
                let vote = a % 2;
                let share = if vote == 1 { mean } else { 1.0 - mean };
                let mut row = [0.0; 2];
                row[vote] = self.scale * (share * self.precision / classes[vote]).clamp(0.0, 1.0);
                row
            })
            .collect()
    }

    /// The loss's parts at a point.
    pub fn loss(moments: &Moments, balance: f64, mu: &[[f64; 2]]) -> Loss {
        evaluate(&moments.indicator(), balance, mu, 0.0).0
    }

    /// Fits rates, given the share of right responses.
    ///
    /// # Errors
    /// Fewer than three verifiers; numbers outside their ranges; steps so large that the loss leaves the numbers.
    pub fn fit(&self, moments: &Moments, balance: f64) -> Result<MomentFit> {
        self.check()?;
        check_balance(balance)?;
        let m = moments.means.len();
        if m < 3 {
            return Err(SupervisionError::TooFewVoters { model: MODEL, got: m, want: 3 });
        }
        let o = moments.indicator();
        let mut mu = self.start(moments, balance);
        let mut velocity = vec![[0.0; 2]; mu.len()];
        let mut losses = Vec::with_capacity(self.epochs + 1);
        for _ in 0..self.epochs {
            let (loss, gradient) = evaluate(&o, balance, &mu, self.sum_weight);
            losses.push(loss.pairs + loss.means + self.sum_weight * loss.sums);
            for ((mu, velocity), gradient) in mu.iter_mut().zip(&mut velocity).zip(&gradient) {
                for y in 0..2 {
                    velocity[y] = self.momentum * velocity[y] + gradient[y];
                    mu[y] = (mu[y] - self.rate * velocity[y]).clamp(0.0, 1.0);
                }
            }
        }
        let (loss, _) = evaluate(&o, balance, &mu, self.sum_weight);
        let last = loss.pairs + loss.means + self.sum_weight * loss.sums;
        losses.push(last);
        if !last.is_finite() {
            let why = format!("the loss is {last}: the step size {} is too large", self.rate);
            return Err(SupervisionError::Solver { model: MODEL, why });
        }
        let before = losses[losses.len() - 1 - (self.epochs / 10).max(1)];
        let plateau = before - last < 1e-8f64.max(0.01 * last);
        let side = |y: usize| (0..m).map(|k| mu[2 * k + 1][y]).collect();
        let mut rates = Rates { balance, tpr: side(1), fpr: side(0) }.clipped();
        let help: f64 = rates.tpr.iter().zip(&rates.fpr).map(|(tpr, fpr)| tpr - fpr).sum();
        if help < 0.0 {
            // The mirror image explains the votes as well only when both classes are equally frequent; otherwise
            // this is the sign rule of the closed form.
            std::mem::swap(&mut rates.tpr, &mut rates.fpr);
        }
        Ok(MomentFit { rates, mu, losses, plateau })
    }
}

/// Loss and gradient: `-4 (R mask) mu P + 2 (mu p - diag O) pᵀ - 2 w (1 - sum_v mu)`.
fn evaluate(o: &Array2<f64>, balance: f64, mu: &[[f64; 2]], weight: f64) -> (Loss, Vec<[f64; 2]>) {
    let p = [1.0 - balance, balance];
    let mut loss = Loss { pairs: 0.0, means: 0.0, sums: 0.0 };
    let mut gradient = vec![[0.0; 2]; mu.len()];
    for a in 0..mu.len() {
        for b in 0..mu.len() {
            if a / 2 == b / 2 {
                continue;
            }
            let rest = o[[a, b]] - p[0] * mu[a][0] * mu[b][0] - p[1] * mu[a][1] * mu[b][1];
            loss.pairs += rest * rest;
            for y in 0..2 {
                gradient[a][y] -= 4.0 * rest * mu[b][y] * p[y];
            }
        }
        let rest = mu[a][0] * p[0] + mu[a][1] * p[1] - o[[a, a]];
        loss.means += rest * rest;
        for y in 0..2 {
            gradient[a][y] += 2.0 * rest * p[y];
        }
    }
    for k in 0..mu.len() / 2 {
        for y in 0..2 {
            let rest = 1.0 - mu[2 * k][y] - mu[2 * k + 1][y];
            loss.sums += rest * rest;
            gradient[2 * k][y] -= 2.0 * weight * rest;
            gradient[2 * k + 1][y] -= 2.0 * weight * rest;
        }
    }
    (loss, gradient)
}

/// The share of right responses from third moments of votes, taking it that verifiers are better than chance.
///
/// For three conditionally independent verifiers the central moment is `T = p(1-p)(1-2p) d_i d_j d_k`, so
/// `T / sqrt(C_ij C_ik C_jk) = (1-2p) / sqrt(p(1-p)) = s` and `p = (1 - s / sqrt(4 + s²)) / 2`. Triples are weighted
/// by `sqrt(C_ij C_ik C_jk)`, so that weak ones do not count.
///
/// Third moments are noisy, and verifiers that share errors bias them: prefer a few labels where there are any.
///
/// # Errors
/// Fewer than three verifiers; no three verifiers that covary pairwise.
pub fn balance_from_votes(votes: ArrayView2<'_, u8>) -> Result<f64> {
    let moments = Moments::of(votes)?;
    let m = moments.means.len();
    if m < 3 {
        return Err(SupervisionError::TooFewVoters { model: MODEL, got: m, want: 3 });
    }
    let mut histogram = std::collections::BTreeMap::<Vec<u8>, f64>::new();
    for row in votes.rows() {
        *histogram.entry(row.to_vec()).or_default() += 1.0;
    }
    let signs = moments.signs();
    let weak = 0.25 / moments.count.sqrt();
    let mut sums = [(0.0, 0.0); 2];
    for i in 0..m {
        for j in i + 1..m {
            for k in j + 1..m {
                let pairs = [moments.covariance(i, j), moments.covariance(i, k), moments.covariance(j, k)];
                let product: f64 = pairs.iter().product();
                if !(product > 1e-40) {
                    continue;
                }
                let third: f64 = histogram
                    .iter()
                    .map(|(row, count)| {
                        let centred = |v: usize| f64::from(row[v]) - moments.means[v];
                        count * centred(i) * centred(j) * centred(k)
                    })
                    .sum::<f64>()
                    / moments.count;
                let strong = usize::from(pairs.iter().all(|pair| pair.abs() > weak));
                sums[strong].0 += third * signs[i] * signs[j] * signs[k];
                sums[strong].1 += product.sqrt();
            }
        }
    }
    // Strong triples if there are any.
    let (third, pairs) = if sums[1].1 > 0.0 { sums[1] } else { sums[0] };
    if pairs == 0.0 {
        let why = "no three verifiers agree pairwise, so third moments say nothing about the balance".into();
        return Err(SupervisionError::Unidentifiable { model: MODEL, why });
    }
    let s = third / pairs;
    Ok((0.5 * (1.0 - s / (4.0 + s * s).sqrt())).clamp(CLIP.0, CLIP.1))
}
