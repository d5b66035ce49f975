//! FreeDave: several steps of one-token-per-step decoding for one forward pass, with the same text.
//!
//! The next states of the static path are drafted from predictions already at hand; one pass over all drafts
//! verifies how many of them are on that path, and its predictions are those the next drafts are made from. Nothing
//! is trained, no pass is wasted.
//!
//! With `R` the static rule, `x` the block, `d` the number of drafts:
//! 1. `(t, c)` = predictions at `x` (the block's first pass).
//! 2. Drafts `D_1 = R(x)`, `D_{k+1} = R(D_k)`, all with the predictions at `x`; at most `d`, or until complete.
//! 3. If `D_1` is complete, take it: the last step needs no pass.
//! 4. One pass over the drafts. `T_k = R(D_k)` with the predictions at `D_k`.
//! 5. `best = 1`; while `T_best = D_{best+1}`, `best += 1`.
//! 6. `x = D_best`, with the predictions at `D_best`; go to 2.
//!
//! `D_1` is the true next state. If `D_best` is on the static path its true successor is `T_best`, so what equals
//! `T_best` is on it too: the text is that of static decoding. Each pass after the first takes at least one step and
//! the last step is free, so there are never more passes than steps.
//!
//! | setting | default | source |
//! |---|---|---|
//! | drafts `d` | 4 (LLaDA; 8 for Dream) | evaluation scripts |
//! | rule `R` | the surest mask, one a step | `token_per_step = 1` in `core.py` |
//! | plus | off; its threshold is 0.95 | evaluation scripts |
//!
//! **Deviations.** Any [`Fixed`] rule may be drafted, not only one token a step; randomness belongs to a step, not to a
//! pass, so that drafts and static decoding draw the same and the text is the same at any temperature and seed. With
//! fresh noise at every step drafts beyond the first rarely come true above temperature 0: see
//! [`Noise::Position`](crate::Noise::Position). A complete draft is not run, as its logits are used for nothing. Eager
//! acceptance into later blocks, which is exact only for models that attend causally from block to block, is not here.
//! FreeDave++ ([`FreeDaveConfig::plus`]) accepts drafts that lie within what the threshold rule commits; a draft that
//! is a strict part of it leaves the threshold path, so its text is **not** that of threshold decoding.
//!
//! Cost: a pass has up to `d` times the rows. "Free" counts passes, not arithmetic.
//!
//! References: FreeDave, arXiv 2510.00294; cychomatica/FreeDave `generation/core.py`, `generation/attn_utils.py`.
//!
//! ```
//! use pilotfish_diffusion::{Canvas, Diffusion, DiffusionConfig, Fixed, FreeDaveConfig};
//! use pilotfish_diffusion::ideal::Ideal;
//! // A text that is certain: 8 tokens, static decoding takes 8 passes.
//! let mut model = Ideal::certain(vec![3, 1, 4, 1, 5, 2, 6, 5], 10)?;
//! let canvas = model.canvas();
//! let mut decoder = Diffusion::new(&mut model, DiffusionConfig::default())?;
//! let plain = decoder.generate(&canvas, &mut Fixed::default())?;
//! let fast = decoder.free_dave(&canvas, &FreeDaveConfig { drafts: 4, ..FreeDaveConfig::default() })?;
//! assert_eq!(plain.tokens, fast.tokens);
//! assert_eq!((plain.forwards(), fast.forwards()), (8, 3));
//! # Ok::<(), pilotfish_diffusion::DiffusionError>(())
//! ```

use std::ops::Range;

use pilotfish_model::Token;
use serde::{Deserialize, Serialize};

use crate::decoder::{Commit, Cut, Diffusion, Generation};
use crate::error::refuse;
use crate::policy::{Fixed, Threshold};
use crate::predict::{Prediction, surest};
use crate::session::Session;
use crate::{Canvas, DiffusionError, Result};

/// Settings of [`Diffusion::free_dave`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FreeDaveConfig {
    /// Drafts a pass, `d`.
    pub drafts: usize,
    /// The static rule whose text is reproduced.
    pub rule: Fixed,
    /// FreeDave++: follow the threshold rule instead, approximately.
    pub plus: Option<Threshold>,
}

impl Default for FreeDaveConfig {
    fn default() -> Self {
        Self { drafts: 4, rule: Fixed::default(), plus: None }
    }
}

impl FreeDaveConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// No drafts, or more than 4096; a rule that is not valid.
    pub fn check(&self) -> Result<()> {
        if self.drafts == 0 || self.drafts > 4096 {
            return refuse("drafts", self.drafts as f64, "from 1 to 4096");
        }
        self.rule.check()?;
        self.plus.map_or(Ok(()), |threshold| threshold.check())
    }
}

/// When a draft lies on the path of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// It equals it.
    Exact,
    /// Every token it has is the target's. A draft without any always agrees.
    Subset,
}

impl Agreement {
    /// Whether a draft agrees with a target.
    pub fn holds(self, draft: &[Token], target: &[Token], mask: Token) -> bool {
        draft.len() == target.len()
            && draft.iter().zip(target).all(|(d, t)| d == t || (self == Self::Subset && *d == mask))
    }
}

/// The draft that is furthest along the path: from the first on, the last draft that agrees with the target of the
/// best so far, until none does. `target(k)` is the successor of draft `k`. Indices from 0.
pub fn furthest(
    drafts: &[Vec<Token>],
    target: impl Fn(usize) -> Vec<Token>,
    agreement: Agreement,
    mask: Token,
) -> usize {
    let mut best = 0;
    while best + 1 < drafts.len() {
        let successor = target(best);
        let agrees = |&draft: &usize| agreement.holds(&drafts[draft], &successor, mask);
        match (best + 1..drafts.len()).rev().find(agrees) {
            Some(further) => best = further,
            None => break,
        }
    }
    best
}

/// Rows of one pass over several drafts of a window as branches that share a prefix and, with a dual cache, a suffix.
///
/// Keys are the prefix, then the branches one after the other, then the suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branches {
    /// Position of each row, `[branches * window]`.
    pub positions: Vec<usize>,
    /// Whether a row attends to a key, row-major `[branches * window, prefix + branches * window + suffix]`.
    pub mask: Vec<bool>,
}

impl Branches {
    /// Rows and mask of `branches` copies of a window between a prefix and a suffix.
    ///
    /// # Errors
    /// More than 2^28 entries of the mask.
    pub fn new(prefix: usize, window: usize, branches: usize, suffix: usize) -> Result<Self> {
        let rows = window.checked_mul(branches);
        let keys = rows.and_then(|rows| rows.checked_add(prefix)?.checked_add(suffix));
        let size = rows.zip(keys).and_then(|(rows, keys)| rows.checked_mul(keys));
        let (Some(rows), Some(keys), Some(0..=0x1000_0000)) = (rows, keys, size) else {
            return refuse("branches", branches as f64, "a mask of at most 2^28 entries");
        };
        let positions = (0..rows).map(|row| prefix + row % window).collect();
        let mut mask = Vec::with_capacity(rows * keys);
        for row in 0..rows {
            let branch = row / window;
            let own = prefix + branch * window..prefix + (branch + 1) * window;
            mask.extend((0..keys).map(|key| key < prefix || own.contains(&key) || key >= prefix + rows));
        }
        Ok(Self { positions, mask })
    }
}

impl Diffusion<'_> {
    /// Decodes by FreeDave: the text of `config.rule`'s own decoding, in no more passes.
    ///
    /// # Errors
    /// As [`Diffusion::generate`]; settings that are not valid; a decoder that revises or cuts.
    pub fn free_dave(&mut self, canvas: &Canvas, config: &FreeDaveConfig) -> Result<Generation> {
        config.check()?;
        if self.config.revision.is_some() || self.config.cut != Cut::Never {
            return Err(DiffusionError::Needs {
                what: "FreeDave",
                needs: "a decoder that neither revises nor cuts",
            });
        }
        let mut session = Session::open(self, canvas, config.rule.score, false)?;
        while let Some((block, first)) = session.next_block()? {
            let path = Path { config, masks_at_start: session.masks(&block), block: block.clone() };
            let (mut predictions, mut step) = (first, 0);
            while session.masks(&block) > 0 {
                let drafts = path.drafts(&session, &predictions, step);
                let whole: Vec<bool> = drafts.iter().map(|draft| draft.masks == 0).collect();
                let texts: Vec<Vec<Token>> = drafts.iter().map(|draft| draft.text.clone()).collect();
                let runnable = whole.iter().position(|whole| *whole).unwrap_or(texts.len());
                let mut verified = Vec::new();
                let mut best = 0;
                if runnable > 0 {
                    let steps: Vec<usize> = (1..=runnable).map(|more| step + more).collect();
                    verified = session.pass_over(&texts[..runnable], &block, &steps, false)?;
                    let agreement = if config.plus.is_some() { Agreement::Subset } else { Agreement::Exact };
                    let target = |draft: usize| match verified.get(draft) {
                        Some(predictions) => {
                            path.successor(&session, &texts[draft], predictions, step + draft + 1)
                        }
                        None => texts[draft].clone(),
                    };
                    best = furthest(&texts, target, agreement, session.mask());
                    session.drafted(texts.len(), best + 1);
                }
                for draft in &drafts[..=best] {
                    session.commit(&draft.commits);
                }
                step += best + 1;
                if best < verified.len() {
                    predictions = verified.swap_remove(best);
                }
            }
            session.finish_block(block);
        }
        Ok(session.close())
    }
}

/// A draft, and what it adds to the one before.
struct Draft {
    text: Vec<Token>,
    masks: usize,
    commits: Vec<Commit>,
}

struct Path<'c> {
    config: &'c FreeDaveConfig,
    masks_at_start: usize,
    block: Range<usize>,
}

impl Path<'_> {
    /// Positions of one step of the rule at a text.
    fn step(&self, session: &Session<'_, '_>, masked: &[Prediction], step: usize) -> Vec<usize> {
        let mut chosen = match &self.config.plus {
            Some(threshold) => {
                let choice = threshold.pick(masked);
                choice.accepted.into_iter().chain(choice.forced).collect()
            }
            None => self.config.rule.pick(
                masked,
                self.masks_at_start,
                step,
                session.streams(self.block.start, step),
            ),
        };
        chosen.extend(session.first_of_shifted(&self.block, step));
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    fn masked(&self, text: &[Token], predictions: &[Prediction], mask: Token) -> Vec<Prediction> {
        predictions
            .iter()
            .filter(|p| self.block.contains(&p.position) && text[p.position] == mask)
            .copied()
            .collect()
    }

    fn drafts(&self, session: &Session<'_, '_>, predictions: &[Prediction], step: usize) -> Vec<Draft> {
        let mask = session.mask();
        let mut text = session.tokens().to_vec();
        let mut drafts: Vec<Draft> = Vec::new();
        while drafts.len() < self.config.drafts {
            let masked = self.masked(&text, predictions, mask);
            if masked.is_empty() {
                break;
            }
            let chosen = match (&self.config.plus, drafts.is_empty()) {
                // Beyond the threshold rule's own step, one more token at a time.
                (Some(_), false) => surest(&masked, |p| p.confidence).into_iter().collect(),
                _ => self.step(session, &masked, step + drafts.len()),
            };
            let of = |position: &usize| masked.iter().find(|p| p.position == *position);
            let commits: Vec<Commit> = chosen
                .iter()
                .filter_map(of)
                .map(|p| Commit {
                    position: p.position,
                    token: p.token,
                    confidence: p.confidence,
                    accepted: false,
                })
                .collect();
            for commit in &commits {
                text[commit.position] = commit.token;
            }
            let masks = masked.len() - commits.len();
            drafts.push(Draft { text: text.clone(), masks, commits });
        }
        drafts
    }

    fn successor(
        &self,
        session: &Session<'_, '_>,
        text: &[Token],
        predictions: &[Prediction],
        step: usize,
    ) -> Vec<Token> {
        let masked = self.masked(text, predictions, session.mask());
        let chosen = self.step(session, &masked, step);
        let mut text = text.to_vec();
        for prediction in masked.iter().filter(|p| chosen.contains(&p.position)) {
            text[prediction.position] = prediction.token;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_verification() {
        // M is 9. D1 = aMMM, D2 = aMcM, D3 = abcM; T1 = D2, T2 = aMce.
        let (m, a, b, c, e) = (9, 0, 1, 2, 4);
        let drafts = [vec![a, m, m, m], vec![a, m, c, m], vec![a, b, c, m]];
        let targets = [vec![a, m, c, m], vec![a, m, c, e], vec![a, b, c, e]];
        assert_eq!(furthest(&drafts, |draft| targets[draft].clone(), Agreement::Exact, m), 1);
        // Verifying against the logits that made the drafts would accept everything.
        let wrong = [drafts[1].clone(), drafts[2].clone(), vec![a, b, c, e]];
        assert_eq!(furthest(&drafts, |draft| wrong[draft].clone(), Agreement::Exact, m), 2);
    }

    #[test]
    fn subset_is_not_exact() {
        let (m, a, b, c) = (9, 0, 1, 2);
        let (draft, target) = ([a, m, c, m], [a, b, c, m]);
        assert!(Agreement::Subset.holds(&draft, &target, m));
        assert!(!Agreement::Exact.holds(&draft, &target, m));
        assert!(Agreement::Subset.holds(&[m; 4], &target, m));
        assert!(!Agreement::Subset.holds(&[b, m, m, m], &target, m));
    }

    #[test]
    fn branches_see_themselves() {
        let branches = Branches::new(2, 2, 3, 0).expect("small");
        assert_eq!(branches.positions, [2, 3, 2, 3, 2, 3]);
        assert_eq!(branches.mask.len(), 48);
        for row in 0..6 {
            let branch = row / 2;
            let seen: Vec<usize> = (0..8).filter(|key| branches.mask[row * 8 + key]).collect();
            assert_eq!(seen, [0, 1, 2 + 2 * branch, 3 + 2 * branch]);
        }
        // A suffix is seen by all.
        let with = Branches::new(1, 1, 2, 1).expect("small");
        assert_eq!(with.mask, [true, true, false, true, true, false, true, true]);
        assert!(
            Branches::new(usize::MAX, 2, 2, 0).is_err() && Branches::new(0, 1 << 20, 1 << 20, 0).is_err()
        );
    }

    #[test]
    fn refuses_bad_settings() {
        for drafts in [0, 5000] {
            assert!(FreeDaveConfig { drafts, ..FreeDaveConfig::default() }.check().is_err());
        }
        let plus = Some(Threshold { gamma: f64::NAN });
        assert!(FreeDaveConfig { plus, ..FreeDaveConfig::default() }.check().is_err());
    }
}
