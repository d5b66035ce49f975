use pilotfish_model::{Streams, Token};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::Visible;
use crate::decoder::{Commit, Cut, Diffusion, Generation};
use crate::predict::Score;
use crate::session::Session;
use crate::{Canvas, DiffusionError, Result};

/// One step of an oracle decode, as a filter sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Prompt it comes from, for splits.
    pub prompt: usize,
    /// Confidences over the block.
    pub confidences: Vec<f64>,
    /// Whether each prediction is the reference's token.
    pub labels: Vec<bool>,
    /// Whether each position was masked.
    pub masked: Vec<bool>,
}

/// What extremely greedy parallel decoding gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Oracle {
    /// The text, which is the reference, and what it cost: a lower bound on the passes of a filter that only ever
    /// commits final predictions.
    pub generation: Generation,
    /// A record for each step.
    pub records: Vec<Record>,
}

impl Diffusion<'_> {
    /// Extremely greedy parallel decoding: at every step, commits exactly the masks whose prediction is the
    /// reference's token. Neither confidence nor progress is asked for; a block whose predictions repeat is filled
    /// from the reference. Records are numbered with `prompt`.
    ///
    /// # Errors
    /// As [`Diffusion::generate`]; a reference of another length than the canvas; a decoder that cuts or revises.
    pub fn extremely_greedy(
        &mut self,
        canvas: &Canvas,
        reference: &[Token],
        visible: Visible,
        prompt: usize,
    ) -> Result<Oracle> {
        if reference.len() != canvas.tokens.len() {
            let (got, want) = (reference.len(), canvas.tokens.len());
            return Err(DiffusionError::Length { what: "tokens of a reference", got, want });
        }
        if self.config.cut != Cut::Never || self.config.revision.is_some() {
            let needs = "a decoder that neither revises nor cuts";
            return Err(DiffusionError::Needs { what: "the oracle", needs });
        }
        let mut session = Session::open(self, canvas, Score::Probability, visible == Visible::Repredicted)?;
        let mut records = Vec::new();
        while let Some((block, first)) = session.next_block()? {
            let (mut predictions, mut step) = (first, 0);
            let mut before: Option<Vec<Option<Token>>> = None;
            loop {
                let mut record =
                    Record { prompt, confidences: Vec::new(), labels: Vec::new(), masked: Vec::new() };
                let (mut commits, mut said) = (Vec::new(), Vec::new());
                for at in block.clone() {
                    let prediction = predictions
                        .binary_search_by_key(&at, |p| p.position)
                        .ok()
                        .map(|found| predictions[found]);
                    let masked = session.tokens()[at] == session.mask();
                    let right = prediction.is_some_and(|p| p.token == reference[at]);
                    let confidence = prediction.map(|p| p.confidence);
                    let (confidence, label) = match masked {
                        true => (confidence.unwrap_or(0.0), right),
                        false => visible.of(confidence, right),
                    };
                    record.confidences.push(confidence);
                    record.labels.push(label);
                    record.masked.push(masked);
                    // Where nothing is predicted again, the token that is there stands for the prediction.
                    said.push(Some(prediction.map_or(session.tokens()[at], |p| p.token)));
                    if let Some(p) = prediction.filter(|_| masked && right) {
                        let (position, token, confidence) = (at, p.token, p.confidence);
                        commits.push(Commit { position, token, confidence, accepted: true });
                    }
                }
                records.push(record);
                if before.as_ref() == Some(&said) {
                    session.fill(&block, &reference[block.clone()]);
                    break;
                }
                before = Some(said);
                session.commit(&commits);
                if session.masks(&block) == 0 {
                    break;
                }
                step += 1;
                predictions = session.pass(&block, step, false)?;
            }
            session.finish_block(block);
        }
        Ok(Oracle { generation: session.close(), records })
    }
}

/// Cuts records into training, validation and test sets (80, 10 and 10 %), all records of a prompt on one side.
pub fn split_by_prompt(records: &[Record], seed: u64) -> [Vec<Record>; 3] {
    let mut prompts: Vec<usize> = records.iter().map(|record| record.prompt).collect();
    prompts.sort_unstable();
    prompts.dedup();
    prompts.shuffle(&mut Streams::new(seed).stream("split"));
    let (first, second) = (prompts.len() * 8 / 10, prompts.len() * 9 / 10);
    let place: std::collections::HashMap<usize, usize> = prompts
        .into_iter()
        .enumerate()
        .map(|(index, prompt)| (prompt, usize::from(index >= first) + usize::from(index >= second)))
        .collect();
    let mut sets = [const { Vec::new() }; 3];
    for record in records {
        sets[place.get(&record.prompt).copied().unwrap_or(0)].push(record.clone());
    }
    sets
}
