//! Label models: what is probably true, and how good each voter is, from votes alone.
//!
//! Every model here assumes that votes are independent given the truth. They differ in how parameters are tied (one
//! accuracy a voter, a confusion matrix, a difficulty for every item) and in how they are estimated (likelihood or
//! moments). None can be better than the best use of the true parameters, and with voters that copy each other all of
//! them count the copies twice.
//!
//! | model | assumes | estimated by |
//! |---|---|---|
//! | [`DawidSkene`] | a confusion matrix a voter; variants with one accuracy, hard assignments, abstention as a vote | likelihood |
//! | [`Snorkel`] | a confusion matrix a voter, a known class balance; dependencies if given | second moments |
//! | [`Triplets`], [`BinaryMoments`] | two classes; errors alike in both, or not | moments of three voters, in closed form |
//! | [`Glad`] | an ability a voter, a difficulty an item | likelihood, with priors |
//! | [`Mace`] | a voter knows or answers by habit | variational likelihood |
//! | [`Kos`], [`Mmsr`] | one accuracy a voter | message passing (two classes); agreements of rank one, trimmed |
//! | [`KnownRates`] | error rates are known | nothing: the bound for all others |
//! | [`MajorityVote`], [`WeightedVote`], [`Wawa`], [`ZeroBasedSkill`] | voters are better than chance | counting |

mod assign;
mod catalogue;
mod dawid_skene;
mod fitted;
mod glad;
mod known;
mod kos;
mod mace;
mod majority;
mod mmsr;
mod quality;
mod rule;
mod snorkel;
mod triplets;

pub(crate) use assign::best_permutation;
pub use catalogue::{CATALOGUE, Entry, find};
pub use dawid_skene::{Abstain, Assignment, DawidSkene, Errors, Smoothing, Stop};
pub use fitted::{Convergence, Fitted, Posterior, Warning};
pub use glad::Glad;
pub use known::KnownRates;
pub use kos::Kos;
pub use mace::Mace;
pub use majority::{MajorityVote, Ties, Wawa, WeightedVote, ZeroBasedSkill};
pub use mmsr::Mmsr;
pub use quality::{Estimate, VoterQuality};
pub use snorkel::{Scale, Snorkel, Solver};
pub use triplets::{BinaryMoments, Combine, Triplets};

use crate::{Result, Rows, SupervisionError, Votes};

/// A model of votes.
pub trait LabelModel: Send + Sync {
    /// Its short name.
    fn name(&self) -> &'static str;

    /// Fits the model to rows of votes; the answer has one posterior a row, not an item.
    ///
    /// # Errors
    /// Parameters outside their ranges; votes that the model is not for or that do not determine it.
    fn fit_rows(&self, rows: &Rows<'_>) -> Result<Fitted>;

    /// Fits the model to votes.
    ///
    /// # Errors
    /// As [`LabelModel::fit_rows`].
    fn fit(&self, votes: &Votes) -> Result<Fitted> {
        let rows = Rows::of(votes)?;
        Ok(self.fit_rows(&rows)?.for_items(&rows))
    }
}

/// Mean of the posterior over all items.
pub(crate) fn balance(rows: &Rows<'_>, posterior: &Posterior) -> Vec<f64> {
    let k = posterior.classes;
    let sums = rows.sum(
        k,
        || (),
        |row, (), sums| {
            let q = &posterior.values[row * k..(row + 1) * k];
            sums.iter_mut().zip(q).for_each(|(sum, q)| sum.add_unit(*q, rows.count(row)));
        },
    );
    sums.iter().map(|sum| sum.value() / rows.items() as f64).collect()
}

/// What can be said of votes before any model: constant voters, classes without votes, voters that always agree.
pub(crate) fn warnings(rows: &Rows<'_>) -> Vec<Warning> {
    let votes = rows.votes();
    let (m, k) = (votes.voters(), votes.classes());
    let pairs = if m <= PAIRS { m * m } else { 0 };
    let mut voted = vec![None; m];
    let mut varied = vec![false; m];
    let mut used = vec![false; k];
    // Of each pair: whether both voted at all, and whether they ever differed.
    let (mut met, mut differed) = (vec![0u64; pairs], vec![false; pairs]);
    let mut row_votes = Vec::new();
    for row in (0..rows.len()).filter(|row| rows.count(*row) > 0) {
        row_votes.clear();
        votes.visit(row, |voter, vote| {
            varied[voter] |= voted[voter].replace(vote).is_some_and(|before| before != vote);
            used[vote] = true;
            if pairs > 0 {
                row_votes.push((voter, vote));
            }
        });
        for (index, (a, x)) in row_votes.iter().enumerate() {
            for (b, y) in &row_votes[index + 1..] {
                met[a * m + b] += rows.count(row);
                differed[a * m + b] |= x != y;
            }
        }
    }
    let mut found: Vec<_> =
        (0..m).filter(|voter| !varied[*voter]).map(|voter| Warning::ConstantVoter { voter }).collect();
    found.extend((0..k).filter(|class| !used[*class]).map(|class| Warning::UnusedClass { class }));
    let same =
        |pair: &usize| met[*pair] >= ALIKE && !differed[*pair] && varied[*pair / m] && varied[*pair % m];
    found.extend((0..pairs).filter(same).map(|pair| Warning::Duplicates { a: pair / m, b: pair % m }));
    found
}

/// Most voters whose pairs are compared.
const PAIRS: usize = 64;

/// Items on which two voters must agree before they are called duplicates.
const ALIKE: u64 = 20;

/// Refuses votes of fewer than `want` voters that vary in what they say. To models that take an abstention for an
/// answer, those that say one thing and sometimes nothing vary as well (`silence`).
pub(crate) fn informative(model: &'static str, rows: &Rows<'_>, want: usize, silence: bool) -> Result<()> {
    let votes = rows.votes();
    if votes.voters() < want {
        return Err(SupervisionError::TooFewVoters { model, got: votes.voters(), want });
    }
    let mut first = vec![None; votes.voters()];
    let mut varied = vec![false; votes.voters()];
    let mut said = vec![0usize; votes.voters()];
    let mut left = want;
    let mut voted = 0;
    for row in (0..rows.len()).filter(|row| rows.count(*row) > 0) {
        voted += 1;
        votes.visit(row, |voter, vote| {
            said[voter] += 1;
            if !varied[voter] && *first[voter].get_or_insert(vote) != vote {
                varied[voter] = true;
                left = left.saturating_sub(1);
            }
        });
        if left == 0 {
            return Ok(());
        }
    }
    if silence {
        let unipolar = |voter: &usize| !varied[*voter] && (1..voted).contains(&said[*voter]);
        left = left.saturating_sub((0..votes.voters()).filter(unipolar).count());
        if left == 0 {
            return Ok(());
        }
    }
    let why = format!("only {} voters ever change their vote, {want} are needed", want - left);
    Err(SupervisionError::Unidentifiable { model, why })
}
