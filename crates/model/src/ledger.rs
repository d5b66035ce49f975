use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ModelInfo, Skip};

/// Where a decoder spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading the prompt.
    Prefill,
    /// Proposing.
    Draft,
    /// The target's step after the prompt.
    Target,
    /// Choosing tokens: warpers, sampling, acceptance.
    Verify,
    /// Keeping and forgetting cache rows.
    Cache,
}

impl Phase {
    /// All phases, in the order of a round.
    pub const ALL: [Self; 5] = [Self::Prefill, Self::Draft, Self::Target, Self::Verify, Self::Cache];
}

/// What a decoder spent and got: the same record for every family of decoders.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// Forward passes of the target, the prompt's included.
    pub target_forwards: u64,
    /// Rows of those passes, the prompt's included.
    pub target_rows: u64,
    /// Forward passes of a draft model.
    pub draft_forwards: u64,
    /// Rows of those passes.
    pub draft_rows: u64,
    /// Bytes of weights read by a draft model.
    pub draft_bytes: u64,
    /// Rounds after the prompt: one target pass each.
    pub rounds: u64,
    /// Tokens proposed.
    pub drafted: u64,
    /// Proposed tokens that were kept.
    pub accepted: u64,
    /// Tokens emitted.
    pub emitted: u64,
    /// Verdicts about single tokens that a constraint gave; a whole mask counts as one for every token.
    pub constraint_calls: u64,
    /// Bytes of weights read by the target.
    pub bytes: u64,
    /// Multiply-adds of the target, attention over the cache excluded.
    pub macs: u64,
    /// Wall time by phase, in seconds, indexed as [`Phase::ALL`].
    pub seconds: [f64; 5],
}

impl Ledger {
    /// Records a target pass of `rows` rows with logits for `wanted` of them.
    pub fn target(&mut self, info: &ModelInfo, rows: usize, wanted: usize) {
        self.target_forwards += 1;
        self.target_rows += rows as u64;
        self.bytes += info.body_bytes + if wanted > 0 { info.head_bytes } else { 0 };
        self.macs += info.body_macs * rows as u64 + info.head_macs * wanted as u64;
    }

    /// Records a pass of a draft model of `rows` rows with logits for `wanted` of them.
    pub fn draft(&mut self, info: &ModelInfo, rows: usize, wanted: usize) {
        self.draft_forwards += 1;
        self.draft_rows += rows as u64;
        self.draft_bytes += info.body_bytes + if wanted > 0 { info.head_bytes } else { 0 };
    }

    /// Records a pass of the target itself without some sub-layers, made to draft.
    pub fn draft_without(&mut self, info: &ModelInfo, rows: usize, wanted: usize, skip: &Skip) {
        self.draft_forwards += 1;
        self.draft_rows += rows as u64;
        self.draft_bytes += info.bytes_without(skip) + if wanted > 0 { info.head_bytes } else { 0 };
    }

    /// Adds time to a phase.
    pub fn spend(&mut self, phase: Phase, time: Duration) {
        self.seconds[phase as usize] += time.as_secs_f64();
    }

    /// Wall time of a phase, in seconds.
    pub fn time(&self, phase: Phase) -> f64 {
        self.seconds[phase as usize]
    }

    /// Wall time of all phases, in seconds.
    pub fn total_seconds(&self) -> f64 {
        self.seconds.iter().sum()
    }

    /// Mean accepted tokens: tokens emitted after the prompt's pass a round, the extra token included.
    /// Plain decoding has 1. `None` before the first round.
    ///
    /// The first token comes from the prompt's own pass and counts as no round.
    pub fn mean_accepted_tokens(&self) -> Option<f64> {
        (self.rounds > 0).then(|| self.emitted.saturating_sub(1) as f64 / self.rounds as f64)
    }

    /// Tokens a second, prompt included in the time. `None` when no time was recorded.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let total = self.total_seconds();
        (total > 0.0).then(|| self.emitted as f64 / total)
    }

    /// Adds another ledger to this one.
    pub fn add(&mut self, other: &Self) {
        self.target_forwards += other.target_forwards;
        self.target_rows += other.target_rows;
        self.draft_forwards += other.draft_forwards;
        self.draft_rows += other.draft_rows;
        self.draft_bytes += other.draft_bytes;
        self.rounds += other.rounds;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.emitted += other.emitted;
        self.constraint_calls += other.constraint_calls;
        self.bytes += other.bytes;
        self.macs += other.macs;
        for (mine, theirs) in self.seconds.iter_mut().zip(other.seconds) {
            *mine += theirs;
        }
    }
}
