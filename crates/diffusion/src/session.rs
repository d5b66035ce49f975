//! The state of one text while it is decoded: passes, blocks, commits. Every loop is written over it.

use std::ops::Range;
use std::time::{Duration, Instant};

use pilotfish_model::{LogitForm, Logits, MaskedBatch, ModelInfo, Phase, Streams, Token};

use crate::decoder::{Blocks, Commit, Cut, Diffusion, Generation, Net, StepRecord, Stop};
use crate::predict::{Prediction, Reader, Score, surest_first};
use crate::{Cache, Canvas, DiffusionError, Result};

pub(crate) struct Session<'s, 'a> {
    decoder: &'s mut Diffusion<'a>,
    info: ModelInfo,
    mask: Token,
    banned: Vec<Token>,
    score: Score,
    visible: bool,
    start: usize,
    budget: usize,
    out: Generation,
    text: Streams,
    /// Predictions of a pass after which nothing was committed.
    carried: Option<Vec<Prediction>>,
    stopped: bool,
}

impl<'s, 'a> Session<'s, 'a> {
    pub(crate) fn open(
        decoder: &'s mut Diffusion<'a>,
        canvas: &Canvas,
        score: Score,
        visible: bool,
    ) -> Result<Self> {
        let model = decoder.net.model();
        canvas.check(model)?;
        let (info, mask) = (model.info().clone(), model.mask());
        let config = &decoder.config;
        if config.cut != Cut::Never && canvas.region.end != canvas.tokens.len() {
            return Err(DiffusionError::Needs {
                what: "cutting at an end of text",
                needs: "a region that ends the text",
            });
        }
        let mut banned = config.suppress.clone();
        banned.push(mask);
        let text = Streams::new(config.seed);
        let out = Generation {
            tokens: canvas.tokens.clone(),
            region: canvas.region.clone(),
            ..Generation::default()
        };
        let (start, budget) = (canvas.region.start, canvas.region.len());
        let (carried, stopped) = (None, false);
        Ok(Self { decoder, info, mask, banned, score, visible, start, budget, out, text, carried, stopped })
    }

    pub(crate) fn tokens(&self) -> &[Token] {
        &self.out.tokens
    }

    pub(crate) fn region(&self) -> Range<usize> {
        self.out.region.clone()
    }

    /// Masks within a block.
    pub(crate) fn masks(&self, block: &Range<usize>) -> usize {
        self.out.tokens[block.clone()].iter().filter(|token| **token == self.mask).count()
    }

    pub(crate) fn mask(&self) -> Token {
        self.mask
    }

    /// Randomness of a step.
    pub(crate) fn streams(&self, block_start: usize, step: usize) -> Streams {
        self.text.fork(block_start as u64).fork(step as u64)
    }

    pub(crate) fn spend(&mut self, time: Duration) {
        self.out.ledger.spend(Phase::Verify, time);
    }

    /// The predictions at masks of a block.
    pub(crate) fn masked(&self, block: &Range<usize>, predictions: &[Prediction]) -> Vec<Prediction> {
        predictions
            .iter()
            .filter(|prediction| {
                block.contains(&prediction.position) && self.out.tokens[prediction.position] == self.mask
            })
            .copied()
            .collect()
    }

    /// The first mask of a block where it must be committed at once: with shifted logits its prediction is an output
    /// before the block, which a cache does not give again.
    pub(crate) fn first_of_shifted(&self, block: &Range<usize>, step: usize) -> Option<usize> {
        let config = &self.decoder.config;
        let first = block.start;
        let held = config.shift && config.cache != Cache::None && step == 0 && first > 0;
        (held && self.out.tokens[first] == self.mask).then_some(first)
    }

    /// The next block with a mask, and the predictions at its start.
    pub(crate) fn next_block(&mut self) -> Result<Option<(Range<usize>, Vec<Prediction>)>> {
        loop {
            let rest = self.start..self.out.region.end;
            if self.stopped || rest.is_empty() || self.masks(&rest) == 0 {
                return Ok(None);
            }
            let end = match &self.decoder.config.blocks {
                Blocks::Whole | Blocks::Adaptive(_) => rest.end,
                Blocks::Fixed(length) => rest.end.min(self.start.saturating_add(*length)),
            };
            let mut block = self.start..end;
            if self.masks(&block) == 0 {
                self.start = end;
                continue;
            }
            let first = match self.carried.take() {
                Some(predictions) => predictions,
                None => self.pass(&block, 0, true)?,
            };
            if let Blocks::Adaptive(rule) = &self.decoder.config.blocks {
                let done = self.start - self.out.region.start;
                let at = |offset: usize| {
                    let position = self.start + offset;
                    let found =
                        first.binary_search_by_key(&position, |prediction| prediction.position).ok()?;
                    let masked = self.out.tokens[position] == self.mask;
                    masked.then(|| (first[found].token, first[found].confidence))
                };
                // A cut has shortened the region; nothing is sized beyond it.
                block.end = (self.start + rule.length(done, self.budget, at)).min(rest.end);
                if self.masks(&block) == 0 {
                    (self.start, self.carried) = (block.end, Some(first));
                    continue;
                }
            }
            return Ok(Some((block, first)));
        }
    }

    /// One pass over the text as it is.
    pub(crate) fn pass(&mut self, block: &Range<usize>, step: usize, first: bool) -> Result<Vec<Prediction>> {
        let text = self.out.tokens.clone();
        let mut predictions = self.pass_over(&[text], block, &[step], first)?;
        predictions.pop().ok_or_else(|| self.rows(0, 1))
    }

    /// One pass over several texts that differ within a block; predictions are drawn with the randomness of each
    /// text's own step.
    pub(crate) fn pass_over(
        &mut self,
        texts: &[Vec<Token>],
        block: &Range<usize>,
        steps: &[usize],
        first: bool,
    ) -> Result<Vec<Vec<Prediction>>> {
        let config = &self.decoder.config;
        let adaptive = matches!(config.blocks, Blocks::Adaptive(_));
        let wide = config.wide || config.cut == Cut::Predicted || (first && adaptive);
        let (shift, guidance, cache) = (config.shift, config.guidance, config.cache);
        // Which rows a pass runs, and which positions it can answer for.
        let length = texts.first().map_or(0, Vec::len);
        let run = match cache {
            Cache::Prefix if !first => block.start..length,
            Cache::Dual if !first => block.clone(),
            _ => 0..length,
        };
        let reach = block.start..if wide { self.out.region.end } else { block.end };
        let row_of = |position: usize| if shift { position.saturating_sub(1) } else { position };
        let mut positions = Vec::with_capacity(texts.len());
        let mut rows = Vec::with_capacity(texts.len());
        for text in texts {
            let wanted: Vec<usize> = reach
                .clone()
                .filter(|&at| text[at] == self.mask || (self.visible && block.contains(&at)))
                .filter(|&at| run.contains(&row_of(at)))
                .collect();
            let mut of_text: Vec<usize> = wanted.iter().map(|&at| row_of(at)).collect();
            of_text.dedup();
            positions.push(wanted);
            rows.push(of_text);
        }
        let logits = self.forward(texts, &rows, run, cache != Cache::None, first, guidance)?;
        let started = Instant::now();
        let mut all = Vec::with_capacity(texts.len());
        for (index, (wanted, of_text)) in positions.iter().zip(&rows).enumerate() {
            let reader = Reader {
                banned: &self.banned,
                temperature: self.decoder.config.temperature,
                noise: self.decoder.config.noise,
                score: self.score,
                step: self.streams(block.start, steps.get(index).copied().unwrap_or_default()),
                text: self.text,
            };
            let mut predictions = Vec::with_capacity(wanted.len());
            for &position in wanted {
                let at = of_text.partition_point(|&row| row < row_of(position));
                let row = logits.get(index).and_then(|logits| logits.row(at));
                let row =
                    row.ok_or_else(|| self.rows(logits.get(index).map_or(0, Logits::rows), of_text.len()))?;
                let mut row: Vec<f64> = row.iter().map(|&logit| f64::from(logit)).collect();
                if guidance > 0.0
                    && let Some(free) = logits.get(texts.len() + index).and_then(|logits| logits.row(at))
                {
                    for (logit, &free) in row.iter_mut().zip(free) {
                        // Where both say "never" there is nothing to subtract.
                        if free.is_finite() && logit.is_finite() {
                            *logit = f64::from(free) + (guidance + 1.0) * (*logit - f64::from(free));
                        }
                    }
                }
                predictions.push(reader.read(position, &mut row)?);
            }
            all.push(predictions);
        }
        self.spend(started.elapsed());
        Ok(all)
    }

    fn forward(
        &mut self,
        texts: &[Vec<Token>],
        rows: &[Vec<usize>],
        run: Range<usize>,
        cached: bool,
        first: bool,
        guidance: f64,
    ) -> Result<Vec<Logits>> {
        let started = Instant::now();
        let mut refs: Vec<&[Token]> = texts.iter().map(Vec::as_slice).collect();
        let mut wanted: Vec<&[usize]> = rows.iter().map(Vec::as_slice).collect();
        let free: Vec<Vec<Token>> = match guidance > 0.0 {
            true => texts
                .iter()
                .map(|text| {
                    let mut free = text.clone();
                    free[..self.out.region.start].fill(self.mask);
                    free
                })
                .collect(),
            false => Vec::new(),
        };
        refs.extend(free.iter().map(Vec::as_slice));
        for _ in 0..free.len() {
            wanted.push(wanted[wanted.len() - texts.len()]);
        }
        let logits = match &mut self.decoder.net {
            Net::Cached(model) if cached => match (first, refs.as_slice()) {
                (true, [text]) => vec![model.build(text, wanted[0])?],
                _ => model.update(&refs, run.clone(), &wanted)?,
            },
            net => {
                let batch = MaskedBatch {
                    sequences: &refs,
                    positions: Some(&wanted),
                    form: LogitForm::Full,
                    taps: &[],
                };
                net.model().forward(&batch)?.logits
            }
        };
        let ledger = &mut self.out.ledger;
        let width = run.len() * refs.len();
        ledger.target(&self.info, width, wanted.iter().map(|rows| rows.len()).sum());
        ledger.rounds += 1;
        ledger.spend(Phase::Target, started.elapsed());
        if logits.len() != refs.len() {
            return Err(self.rows(logits.len(), refs.len()));
        }
        for (logits, wanted) in logits.iter().zip(&wanted) {
            if logits.rows() != wanted.len() || logits.vocab() != self.info.vocab {
                return Err(self.rows(logits.rows(), wanted.len()));
            }
        }
        Ok(logits)
    }

    fn rows(&self, got: usize, want: usize) -> DiffusionError {
        DiffusionError::Rows { model: self.info.name.clone(), got, want }
    }

    /// Writes tokens and a record of the step.
    pub(crate) fn commit(&mut self, commits: &[Commit]) {
        for commit in commits {
            self.out.tokens[commit.position] = commit.token;
        }
        self.out.ledger.emitted += commits.len() as u64;
        let block = self.out.blocks.len();
        self.out.steps.push(StepRecord { block, commits: commits.to_vec() });
    }

    /// Counts drafts.
    pub(crate) fn drafted(&mut self, drafted: usize, accepted: usize) {
        self.out.ledger.drafted += drafted as u64;
        self.out.ledger.accepted += accepted as u64;
    }

    /// Fills what is left of a block without a pass.
    pub(crate) fn fill(&mut self, block: &Range<usize>, tokens: &[Token]) {
        for (at, token) in block.clone().zip(tokens) {
            if self.out.tokens[at] == self.mask {
                self.out.tokens[at] = *token;
                self.out.filled += 1;
            }
        }
    }

    /// Shortens the text at a predicted end.
    pub(crate) fn cut(&mut self, predictions: &[Prediction], commits: &[Commit]) {
        let Some(end) = self.decoder.config.end else { return };
        let ends = |commit: &&Commit| commit.token == end;
        let at = match self.decoder.config.cut {
            Cut::Never => None,
            Cut::Committed => commits.iter().find(ends).map(|commit| commit.position),
            Cut::Predicted => {
                let accepted = commits.iter().filter(|commit| commit.accepted).find(ends);
                accepted.map(|commit| commit.position).or_else(|| {
                    // Masks before this step: visible ones are those it committed, and those it did not ask about.
                    let masked = predictions.iter().filter(|prediction| {
                        self.out.tokens[prediction.position] == self.mask
                            || commits.iter().any(|commit| commit.position == prediction.position)
                    });
                    let predicted: Vec<Prediction> =
                        masked.filter(|prediction| prediction.token == end).copied().collect();
                    crate::predict::surest(&predicted, |prediction| prediction.confidence)
                })
            }
        };
        if let Some(at) = at {
            self.out.tokens.truncate(at + 1);
            self.out.region.end = self.out.region.end.min(at + 1);
        }
    }

    /// Masks the least certain tokens of a block again once most of it is committed.
    pub(crate) fn revise(
        &mut self,
        block: &Range<usize>,
        masks_at_start: usize,
        step: &mut usize,
    ) -> Result<()> {
        let Some(revision) = self.decoder.config.revision else { return Ok(()) };
        let trigger = (7 * masks_at_start / 8).min(masks_at_start.saturating_sub(1)).max(1);
        let index = self.out.blocks.len();
        let done: usize = self
            .out
            .steps
            .iter()
            .filter(|record| record.block == index)
            .map(|record| record.commits.len())
            .sum();
        let last = self.out.steps.last().map_or(0, |record| record.commits.len());
        // Only the step that reaches the trigger revises.
        if done < trigger || done - last >= trigger {
            return Ok(());
        }
        for _ in 0..revision.passes {
            let mut latest: Vec<Commit> = Vec::new();
            for commit in
                self.out.steps.iter().filter(|record| record.block == index).flat_map(|r| &r.commits)
            {
                latest.retain(|earlier| earlier.position != commit.position);
                latest.push(*commit);
            }
            latest.retain(|commit| block.contains(&commit.position));
            latest.sort_by(|a, b| a.confidence.total_cmp(&b.confidence).then(a.position.cmp(&b.position)));
            latest.truncate(revision.tokens);
            for commit in &latest {
                self.out.tokens[commit.position] = self.mask;
            }
            let predictions = self.pass(block, *step, false)?;
            *step += 1;
            let masked = self.masked(block, &predictions);
            let mut commits: Vec<Commit> = surest_first(&masked, |prediction| prediction.confidence)
                .into_iter()
                .take(latest.len())
                .map(|at| {
                    let Prediction { position, token, confidence, .. } = masked[at];
                    Commit { position, token, confidence, accepted: false }
                })
                .collect();
            commits.sort_by_key(|commit| commit.position);
            self.commit(&commits);
            self.out.ledger.emitted -= latest.len() as u64;
        }
        Ok(())
    }

    /// Ends a block, and the text if the block says so.
    pub(crate) fn finish_block(&mut self, block: Range<usize>) {
        let (stop, end) = (self.decoder.config.stop, self.decoder.config.end);
        if let Some(end) = end {
            let tokens = &self.out.tokens[block.clone()];
            self.stopped = match stop {
                Stop::Never => false,
                Stop::Contains => tokens.contains(&end),
                Stop::Filled => tokens.iter().all(|token| *token == end),
            };
            if self.stopped {
                let rest = block.end..self.out.region.end;
                self.fill(&rest, &vec![end; rest.len()]);
            }
        }
        self.start = block.end;
        self.out.blocks.push(block);
    }

    pub(crate) fn close(self) -> Generation {
        self.out
    }
}
