//! One token from `p` restricted to valid tokens, with an unbiased weight, testing only tokens that are drawn.
//!
//! The next token's law `p` (weights `w`, not necessarily normalised) meets a Boolean condition `C` that is costly.
//! Tokens are drawn without replacement until one passes; how much had to be drawn says how much of `p` is valid.
//! A returned pair `(t, W)` is *properly weighted*: `E[W 1{t = x}] = w(x) C(x)` for every `x`, hence `E[W] = Z =
//! sum_x w(x) C(x)`, and the law of `t` is `p` restricted to valid tokens.
//!
//! **Paper's estimator** ([`Estimator::Paper`], definition 2):
//! 1. draw `t` from `p` restricted to tokens not rejected until `C(t)`; each failure joins the rejected set `R`;
//!    `t*` is the accepted token, `psi0` the mass of `R`, `n0 = |R|`;
//! 2. keep `R`, leave `t*` among the candidates, draw until `C(t)` again; `n1` further failures;
//! 3. `W = w(V) (1 - psi0) / (n0 + n1 + 1)`. No valid token: weight 0.
//!
//! **Recursive** ([`Estimator::Recursive`]): `E f = P(x) f(x) + (1 - P(x)) E[f | not x]`, one drawn token after the
//! other. On acceptance of `t`, the next token `s` of the order is tested: `W` is the mass not rejected so far if
//! `C(s)`, else `w(t)`; the mass not rejected so far if `t` is the last.
//!
//! **Geometric** ([`Estimator::Geometric`], `A` acceptances): simulates draws *with* replacement. `A` passes share
//! `R`; before each test, where the rejected mass `r > 0`, `G - 1` phantom rejections are added, `G ~
//! Geometric(1 - r)`. `W = w(V) min(A - 1, n_acc) / (n_acc + n_rej - 1)`; the token is the first accepted.
//!
//! | name | default | source |
//! |---|---|---|
//! | `accepts` `A` | 2 | genlm-control `token.py` |
//! | `max_rejects` `R` | none | genlm-control `token.py` (infinity) |
//! | choice | geometric if `A > 2` or `max p >= 2/3`, else recursive | genlm-control `token.py` |
//!
//! **Deviations.** genlm-control gives up, with weight 0, once less than 1e-5 of the mass is left; that is a bias, and
//! here the search goes on: mass is never found by subtracting from 1, so nothing rounds to 0 too early. The paper's
//! generalisation to `L > 1` acceptances of definition 2 is biased and left out. A separate proposal is left out.
//!
//! **Cost.** A draw costs `|V| / 128 + 128` additions; tests are the caller's. The expected number of tests grows as
//! `1 / Z` until draws without replacement run out of invalid tokens.
//!
//! References: Lipkin et al. 2025, arXiv 2504.05410, definitions 1 and 2; genlm/awrs-colm-2025
//! `experiments/sampler.py`; genlm/genlm-control `genlm/control/sampler/token.py`.
//!
//! ```
//! use pilotfish_constrained::{Estimator, NextLaw};
//! use pilotfish_model::Streams;
//! // p = (.5, .3, .2), only token 1 is valid: Z = .3 in the mean.
//! let law = NextLaw::from_weights(vec![0.5, 0.3, 0.2])?;
//! let mut rng = Streams::new(1).stream("particle");
//! let mut sum = 0.0;
//! for _ in 0..20_000 {
//!     let mut pool = law.pool(&mut rng);
//!     let drawn = Estimator::Recursive.draw(&mut pool, &mut |token| Ok(token == 1))?;
//!     sum += drawn.weight().exp();
//! }
//! assert!((sum / 20_000.0 - 0.3).abs() < 0.01);
//! # Ok::<(), pilotfish_constrained::ConstrainedError>(())
//! ```

use pilotfish_model::Token;
use serde::{Deserialize, Serialize};

use crate::{ConstrainedError, Result};

/// Candidates that can be drawn in proportion to their mass and taken out. An abstraction, so that the estimators
/// can be enumerated exactly.
pub trait Pool {
    /// A sum of masses.
    type Mass: Clone;

    /// A token, with probability its mass over [`left`](Self::left); `None` when no mass is left. It stays.
    fn draw(&mut self) -> Option<Token>;

    /// Takes a token out.
    fn remove(&mut self, token: Token);

    /// The mass of the candidates that are there.
    fn left(&self) -> Self::Mass;

    /// The mass of all candidates there were.
    fn all(&self) -> Self::Mass;

    /// The mass of a candidate.
    fn mass(&self, token: Token) -> Self::Mass;

    /// Candidates with mass that are there.
    fn len(&self) -> usize;

    /// Whether no candidate with mass is there.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `G - 1` for `G ~ Geometric(left / all)`, at most `most`: how often one would have drawn, with replacement,
    /// what has been taken out.
    fn phantoms(&mut self, most: f64) -> f64;
}

/// A token with a weight `mass * over / under`; no token when none is valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn<M> {
    /// The accepted token; where the weight is 0, a rejected one, or none if there was no candidate.
    pub token: Option<Token>,
    /// `mass`, `over` and `under` of the weight; `None` for a weight of 0.
    pub weight: Option<(M, f64, f64)>,
}

impl Drawn<f64> {
    /// The natural logarithm of the weight; `-inf` for 0.
    pub fn weight(&self) -> f64 {
        match &self.weight {
            Some((mass, over, under)) => mass.ln() + over.ln() - under.ln(),
            None => f64::NEG_INFINITY,
        }
    }
}

/// How a token is drawn and weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The paper's definition 2.
    Paper,
    /// One-coin recursion.
    Recursive,
    /// Simulated draws with replacement.
    Geometric {
        /// Acceptances `A`, at least 2.
        accepts: u32,
        /// Rejections after which the run is cut, at least 2; `None` never cuts.
        max_rejects: Option<u32>,
    },
    /// [`Recursive`](Self::Recursive), or [`Geometric`](Self::Geometric) with 2 acceptances where one token has at
    /// least 2/3 of the mass.
    Chosen,
    /// The first accepted token without any further draw, at weight 1: locally constrained decoding. Not properly
    /// weighted.
    Unweighted,
}

/// Mass of one token from which [`Estimator::Chosen`] is geometric.
const DOMINANT: f64 = 2.0 / 3.0;

impl Estimator {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Fewer than 2 acceptances or rejections, which cannot be properly weighted.
    pub fn check(self) -> Result<Self> {
        let refuse = |name, value: u32| {
            Err(ConstrainedError::BadParameter { name, value: f64::from(value), want: "at least 2" })
        };
        match self {
            Self::Geometric { accepts, .. } if accepts < 2 => refuse("accepts", accepts),
            Self::Geometric { max_rejects: Some(most), .. } if most < 2 => refuse("max_rejects", most),
            checked => Ok(checked),
        }
    }

    /// Whether weights are proper.
    pub fn is_proper(self) -> bool {
        self != Self::Unweighted
    }

    /// Draws a token of a pool of floating-point masses.
    ///
    /// # Errors
    /// What the test refuses.
    pub fn draw<P: Pool<Mass = f64> + Likeliest>(
        self,
        pool: &mut P,
        test: &mut dyn FnMut(Token) -> Result<bool>,
    ) -> Result<Drawn<f64>> {
        match self {
            Self::Chosen if pool.likeliest() >= DOMINANT * pool.all() => geometric(pool, test, 2, None),
            Self::Chosen => recursive(pool, test),
            Self::Unweighted => {
                let (first, _) = pass(pool, test)?;
                let weight = first.accepted.then_some((1.0, 1.0, 1.0));
                Ok(Drawn { token: first.token, weight })
            }
            other => other.draw_from(pool, test),
        }
    }

    /// Draws a token of any pool. [`Chosen`](Self::Chosen) is [`Recursive`](Self::Recursive) here, and
    /// [`Unweighted`](Self::Unweighted) weighs with all mass.
    ///
    /// # Errors
    /// What the test refuses.
    pub fn draw_from<P: Pool>(
        self,
        pool: &mut P,
        test: &mut dyn FnMut(Token) -> Result<bool>,
    ) -> Result<Drawn<P::Mass>> {
        match self.check()? {
            Self::Paper => paper(pool, test),
            Self::Recursive | Self::Chosen => recursive(pool, test),
            Self::Geometric { accepts, max_rejects } => geometric(pool, test, accepts, max_rejects),
            Self::Unweighted => {
                let (first, _) = pass(pool, test)?;
                let weight = first.accepted.then(|| (pool.all(), 1.0, 1.0));
                Ok(Drawn { token: first.token, weight })
            }
        }
    }
}

/// Says the largest mass of a pool.
pub trait Likeliest {
    /// The largest mass among the candidates.
    fn likeliest(&self) -> f64;
}

/// Where a pass ended.
struct Pass {
    token: Option<Token>,
    accepted: bool,
}

/// Draws until a token passes; returns it and the number of rejections. What is rejected is taken out.
fn pass<P: Pool>(pool: &mut P, test: &mut dyn FnMut(Token) -> Result<bool>) -> Result<(Pass, u32)> {
    let (mut token, mut rejected) = (None, 0);
    while let Some(drawn) = pool.draw() {
        token = Some(drawn);
        if test(drawn)? {
            return Ok((Pass { token, accepted: true }, rejected));
        }
        pool.remove(drawn);
        rejected += 1;
    }
    Ok((Pass { token, accepted: false }, rejected))
}

fn paper<P: Pool>(pool: &mut P, test: &mut dyn FnMut(Token) -> Result<bool>) -> Result<Drawn<P::Mass>> {
    let (first, n0) = pass(pool, test)?;
    if !first.accepted {
        return Ok(Drawn { token: first.token, weight: None });
    }
    let left = pool.left();
    let (_, n1) = pass(pool, test)?;
    let under = f64::from(n0) + f64::from(n1) + 1.0;
    Ok(Drawn { token: first.token, weight: Some((left, 1.0, under)) })
}

fn recursive<P: Pool>(pool: &mut P, test: &mut dyn FnMut(Token) -> Result<bool>) -> Result<Drawn<P::Mass>> {
    let (first, _) = pass(pool, test)?;
    let (Some(token), true) = (first.token, first.accepted) else {
        return Ok(Drawn { token: first.token, weight: None });
    };
    // The product of the factors 1 - q is the share not rejected.
    let (left, own) = (pool.left(), pool.mass(token));
    pool.remove(token);
    let mass = match pool.draw() {
        Some(second) if !test(second)? => own,
        _ => left,
    };
    Ok(Drawn { token: Some(token), weight: Some((mass, 1.0, 1.0)) })
}

fn geometric<P: Pool>(
    pool: &mut P,
    test: &mut dyn FnMut(Token) -> Result<bool>,
    accepts: u32,
    max_rejects: Option<u32>,
) -> Result<Drawn<P::Mass>> {
    let most = max_rejects.map_or(f64::INFINITY, f64::from);
    let (mut token, mut last) = (None, None);
    let (mut accepted, mut rejected) = (0u32, 0.0f64);
    let mut untouched = true;
    while accepted < accepts && rejected < most {
        if !untouched {
            rejected += pool.phantoms(most - rejected);
            if rejected >= most {
                break;
            }
        }
        let Some(drawn) = pool.draw() else { break };
        last = Some(drawn);
        if test(drawn)? {
            accepted += 1;
            token = token.or(last);
        } else {
            pool.remove(drawn);
            untouched = false;
            rejected += 1.0;
        }
    }
    if accepted == 0 {
        return Ok(Drawn { token: last, weight: None });
    }
    let over = f64::from((accepts - 1).min(accepted));
    let under = f64::from(accepted) + rejected.min(most) - 1.0;
    Ok(Drawn { token, weight: Some((pool.all(), over, under)) })
}
