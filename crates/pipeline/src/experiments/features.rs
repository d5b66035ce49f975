//! Texts as features: embeddings of a sentence encoder, mean states of a language model, weighted words.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, Axis};
use pilotfish_architectures::{Checkpoint, Tokenizer};
use pilotfish_model::{Pooling, RowSet, SequenceEncoder, Step, Steps, Tap, Token};
use pilotfish_runtime::{LoadOptions, OnnxCausal, OnnxEncoder, SessionConfig};
use pilotfish_supervision::autows::features::Principal;
use pilotfish_supervision::heads::Scaler;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Context, width_cost};
use crate::error::Failure;
use crate::steps::Run;

/// Tokens of a text that models read.
pub(super) const TOKENS: usize = 64;
/// Tokens that the language model reads for [`of_texts`]: it costs ten times what the encoder does.
const FEW: usize = 32;
/// Texts read in one step.
pub(super) const BATCH: usize = 50;

/// A sentence encoder that is loaded when it is first asked.
pub(super) struct Encoder {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    threads: usize,
    loaded: Option<OnnxEncoder>,
}

impl Encoder {
    pub(super) fn open(context: &Context, name: &str) -> Result<Self, Failure> {
        let checkpoint = width_cost::checkpoint(context, name)?;
        let tokenizer = checkpoint.tokenizer()?;
        Ok(Self { checkpoint, tokenizer, threads: context.options().get("threads")?, loaded: None })
    }

    pub(super) fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
        let tokens = texts
            .iter()
            .map(|text| first_tokens(&self.tokenizer, text, TOKENS, true))
            .collect::<Result<Vec<_>, _>>()?;
        let tokens: Vec<&[Token]> = tokens.iter().map(Vec::as_slice).collect();
        if self.loaded.is_none() {
            let config = SessionConfig { threads: self.threads, ..SessionConfig::default() };
            self.loaded =
                Some(OnnxEncoder::from_network(self.checkpoint.name(), self.checkpoint.encoder()?, &config)?);
        }
        let Some(encoder) = &mut self.loaded else { return Err("no encoder".into()) };
        Ok(encoder.encode(&tokens, Pooling::Checkpoint)?)
    }
}

/// What a language model makes of one text.
pub(super) struct Reading {
    /// Mean of the last normed states of its tokens.
    pub(super) mean: Vec<f32>,
    /// Logits behind the question.
    pub(super) logits: Vec<f32>,
}

/// A language model that is loaded when it is first asked.
pub(super) struct Reader {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    threads: usize,
    loaded: Option<OnnxCausal>,
}

impl Reader {
    pub(super) fn open(context: &Context, name: &str) -> Result<Self, Failure> {
        let checkpoint = width_cost::checkpoint(context, name)?;
        let tokenizer = checkpoint.tokenizer()?;
        Ok(Self { checkpoint, tokenizer, threads: context.options().get("threads")?, loaded: None })
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Reads the first tokens of a text and a question after them, which may be empty.
    pub(super) fn read(&mut self, text: &str, most: usize, question: &[Token]) -> Result<Reading, Failure> {
        if self.loaded.is_none() {
            let load = LoadOptions::default().threads(self.threads);
            self.loaded = Some(OnnxCausal::from_checkpoint(&self.checkpoint, &load)?);
        }
        let Some(model) = &mut self.loaded else { return Err("no model".into()) };
        let mut tokens = first_tokens(&self.tokenizer, text, most, false)?;
        let length = tokens.len();
        tokens.extend(question);
        model.truncate(0)?;
        let answer = model.step(&Step::chain(&tokens).want(RowSet::Last).taps(&[Tap::FinalNormed]))?;
        let states = answer.tap(Tap::FinalNormed).ok_or("the model gave no states")?;
        let mut mean = vec![0.0f32; states.width];
        for row in 0..length {
            mean.iter_mut().zip(states.row(row)).for_each(|(sum, x)| *sum += x / length as f32);
        }
        let logits = answer.logits.row(0).ok_or("the model gave no logits")?.to_vec();
        Ok(Reading { mean, logits })
    }
}

/// The models whose features are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Model {
    /// The sentence encoder's embeddings.
    MiniLm,
    /// The language model's mean last states.
    SmolLm2,
}

/// Features of texts, `[texts, d]`. They are steps of a run of their own, each named by what the texts of its block say, so
/// that every experiment that asks for the same texts finds them.
pub(super) fn of_texts(context: &Context, model: Model, texts: &[String]) -> Result<Array2<f64>, Failure> {
    #[derive(Serialize)]
    struct Config {
        model: Model,
        tokens: usize,
    }
    let tokens = if model == Model::SmolLm2 { FEW } else { TOKENS };
    let config = Config { model, tokens };
    let mut run = Run::open(context.results(), "features", &config, context.fresh(), context.is_quiet())?;
    run.expect(texts.len().div_ceil(BATCH) as u64);
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let (mut encoder, mut reader) = (None, None);
    for block in texts.chunks(BATCH) {
        let digest = Sha256::digest(block.join("\n"));
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        rows.extend(run.step(&format!("{model:?} {digest}"), || -> Result<Vec<Vec<f32>>, Failure> {
            match model {
                Model::MiniLm => {
                    if encoder.is_none() {
                        encoder = Some(Encoder::open(context, "minilm")?);
                    }
                    encoder.as_mut().ok_or("no encoder")?.embed(block)
                }
                Model::SmolLm2 => {
                    if reader.is_none() {
                        reader = Some(Reader::open(context, "smollm2-135m")?);
                    }
                    let reader: &mut Reader = reader.as_mut().ok_or("no model")?;
                    block.iter().map(|text| Ok(reader.read(text, FEW, &[])?.mean)).collect()
                }
            }
        })?);
    }
    run.finish();
    matrix(&rows)
}

/// The first tokens of a text; for an encoder (`special`) the last is its end.
fn first_tokens(
    tokenizer: &Tokenizer,
    text: &str,
    most: usize,
    special: bool,
) -> Result<Vec<Token>, Failure> {
    let mut tokens = tokenizer.encode(text, special)?;
    if tokens.len() > most {
        let end = tokens.last().copied().filter(|_| special);
        tokens.truncate(most - usize::from(special));
        tokens.extend(end);
    }
    Ok(tokens)
}

pub(super) fn matrix(rows: &[Vec<f32>]) -> Result<Array2<f64>, Failure> {
    let width = rows.first().map_or(0, Vec::len);
    let flat: Vec<f64> = rows.iter().flatten().map(|x| f64::from(*x)).collect();
    Ok(Array2::from_shape_vec((rows.len(), width), flat)?)
}

/// Principal components of features brought to one scale, over the standard deviation of all of them; everything is
/// measured on the rows of `fit`.
pub(super) fn components(
    x: &Array2<f64>,
    fit: &[usize],
    components: usize,
    seed: u64,
) -> Result<Array2<f64>, Failure> {
    let scaler = Scaler::fit(x.select(Axis(0), fit).view())?;
    let x = scaler.apply(x.view())?;
    let of_fit = x.select(Axis(0), fit);
    let principal = Principal::fit(of_fit.view(), components, seed)?;
    let measured = principal.apply(of_fit.view())?;
    let deviation = measured.std(0.0).max(1e-12);
    Ok(principal.apply(x.view())? / deviation)
}

/// Words weighted by how few texts have them: counts times `ln((1 + n) / (1 + n_w)) + 1`, each row of length 1
/// (scikit-learn's). The words are those that most texts of `fit` have, ties in alphabetical order; `n` and `n_w` count
/// texts of `fit`.
pub(super) fn tf_idf(texts: &[String], fit: &[usize], words: usize) -> Array2<f64> {
    let mut having: BTreeMap<&str, usize> = BTreeMap::new();
    for &row in fit {
        let set: BTreeSet<&str> = texts[row].split_whitespace().collect();
        set.into_iter().for_each(|word| *having.entry(word).or_default() += 1);
    }
    let mut kept: Vec<(&str, usize)> = having.into_iter().collect();
    kept.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    kept.truncate(words);
    let weight = |count: usize| ((1 + fit.len()) as f64 / (1 + count) as f64).ln() + 1.0;
    let of: BTreeMap<&str, (usize, f64)> =
        kept.iter().enumerate().map(|(at, (word, count))| (*word, (at, weight(*count)))).collect();
    let mut out = Array2::<f64>::zeros((texts.len(), kept.len()));
    for (text, mut row) in texts.iter().zip(out.rows_mut()) {
        for (at, weight) in text.split_whitespace().filter_map(|word| of.get(word)) {
            row[*at] += weight;
        }
        let norm = row.dot(&row).sqrt();
        if norm > 0.0 {
            row /= norm;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_by_hand() {
        let texts = ["a b a", "a c", "c zz"].map(str::to_owned);
        // On the first two texts: a in both, b and c in one each.
        let x = tf_idf(&texts, &[0, 1], 3);
        let rare = (3.0f64 / 2.0).ln() + 1.0;
        let length = (4.0 + rare * rare).sqrt();
        assert_eq!(x.dim(), (3, 3));
        assert!((x[[0, 0]] - 2.0 / length).abs() < 1e-12 && (x[[0, 1]] - rare / length).abs() < 1e-12);
        // A word of a text that was not counted is no feature.
        assert_eq!(x.row(2).to_vec(), [0.0, 0.0, 1.0]);
        assert_eq!(tf_idf(&texts, &[0, 1], 1).ncols(), 1);
    }

    #[test]
    fn test_items_have_no_part_in_components() {
        let x = Array2::from_shape_fn((20, 4), |(i, j)| ((i * 7 + j * 3) % 11) as f64);
        let fit: Vec<usize> = (0..12).collect();
        let a = components(&x, &fit, 2, 0).unwrap_or_default();
        let mut other = x.clone();
        other.row_mut(19).fill(1e3);
        let b = components(&other, &fit, 2, 0).unwrap_or_default();
        assert_eq!(a.dim(), (20, 2));
        assert_eq!(a.select(Axis(0), &fit), b.select(Axis(0), &fit));
        assert!((a.select(Axis(0), &fit).std(0.0) - 1.0).abs() < 1e-9);
    }
}
