//! A small bidirectional transformer with random weights, computed in f64: a model whose passes agree to rounding
//! however they are batched, with keys and values that can be kept.

use std::ops::Range;

use pilotfish_model::{
    Capabilities, Logits, MaskedBatch, MaskedModel, MaskedOutput, ModelError, ModelInfo, Result, Streams,
    Token,
};
use rand::Rng;

use crate::BlockCache;

/// Which positions a position attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attends {
    /// All.
    #[default]
    Everywhere,
    /// Those of its own block of this length and of earlier ones.
    BlockCausal(usize),
}

/// Sizes of a [`TinyAttention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TinySizes {
    /// Tokens, the mask (the last one) included.
    pub vocab: usize,
    /// Positions.
    pub context: usize,
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
}

impl Default for TinySizes {
    fn default() -> Self {
        Self { vocab: 12, context: 48, width: 12, layers: 2 }
    }
}

#[derive(Clone, Debug)]
struct Layer {
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
    out: Vec<f64>,
    up: Vec<f64>,
    down: Vec<f64>,
}

/// Keys and values of a layer, row-major `[positions, width]`.
#[derive(Clone, Debug, Default)]
struct Kept {
    keys: Vec<f64>,
    values: Vec<f64>,
}

/// The network: token and position embeddings, layers of one attention head and a tanh MLP with residuals, a head.
#[derive(Clone, Debug)]
pub struct TinyAttention {
    info: ModelInfo,
    attends: Attends,
    width: usize,
    tokens: Vec<f64>,
    places: Vec<f64>,
    layers: Vec<Layer>,
    head: Vec<f64>,
    kept: Vec<Kept>,
    kept_rows: usize,
}

impl TinyAttention {
    /// A network with random weights.
    ///
    /// # Errors
    /// A size of 0, fewer than two tokens, or a size above 4096.
    pub fn new(sizes: TinySizes, attends: Attends, seed: u64) -> Result<Self> {
        let TinySizes { vocab, context, width, layers } = sizes;
        for (name, size) in [("vocab", vocab), ("context", context), ("width", width), ("layers", layers)] {
            let least = if name == "vocab" { 2 } else { 1 };
            if !(least..=4096).contains(&size) {
                let want = "at least 1 (tokens: 2), and at most 4096";
                return Err(ModelError::BadParameter { name, value: size as f64, want });
            }
        }
        if attends == Attends::BlockCausal(0) {
            return Err(ModelError::BadParameter { name: "block", value: 0.0, want: "at least 1" });
        }
        let mut rng = Streams::new(seed).stream("weights");
        let mut matrix = |rows: usize, columns: usize, scale: f64| -> Vec<f64> {
            (0..rows * columns).map(|_| scale * rng.random_range(-1.0..1.0)).collect()
        };
        let scale = 2.0 / (width as f64).sqrt();
        let layers = (0..layers)
            .map(|_| Layer {
                query: matrix(width, width, scale),
                key: matrix(width, width, scale),
                value: matrix(width, width, scale),
                out: matrix(width, width, scale),
                up: matrix(width, width, scale),
                down: matrix(width, width, scale),
            })
            .collect();
        let info = ModelInfo {
            name: "tiny attention".into(),
            vocab,
            context,
            capabilities: Capabilities { hint: "it has no taps".into(), ..Capabilities::default() },
            ..ModelInfo::default()
        };
        let (tokens, places) = (matrix(vocab, width, 1.0), matrix(context, width, 1.0));
        let head = matrix(vocab, width, 2.0);
        Ok(Self { info, attends, width, tokens, places, layers, head, kept: Vec::new(), kept_rows: 0 })
    }

    fn sees(&self, query: usize, key: usize) -> bool {
        match self.attends {
            Attends::Everywhere => true,
            Attends::BlockCausal(block) => key / block <= query / block,
        }
    }

    /// Logits `[rows, vocab]` of rows with the given tokens and positions, attending to kept positions and to each
    /// other where `sees(row, key)` says so; keys are the kept positions in order, then the rows. What each layer
    /// computed for the rows is returned too.
    fn run(
        &self,
        rows: &[(Token, usize)],
        kept: &[usize],
        sees: impl Fn(usize, usize) -> bool,
    ) -> Result<(Vec<Vec<f64>>, Vec<Kept>)> {
        let width = self.width;
        let mut states = Vec::with_capacity(rows.len());
        for (row, &(token, position)) in rows.iter().enumerate() {
            if token as usize >= self.info.vocab {
                return Err(ModelError::TokenOutOfRange { row, token, vocab: self.info.vocab });
            }
            if position >= self.info.context {
                return Err(ModelError::ContextFull { position, context: self.info.context });
            }
            let (token, place) = (token as usize * width, position * width);
            let sum = self.tokens[token..token + width].iter().zip(&self.places[place..place + width]);
            states.push(sum.map(|(a, b)| a + b).collect::<Vec<f64>>());
        }
        let mut made = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let normed: Vec<Vec<f64>> = states.iter().map(|state| norm(state)).collect();
            let keys: Vec<Vec<f64>> = normed.iter().map(|x| product(&layer.key, x)).collect();
            let values: Vec<Vec<f64>> = normed.iter().map(|x| product(&layer.value, x)).collect();
            let old = |of: &[f64], position: usize| of[position * width..(position + 1) * width].to_vec();
            let all_keys: Vec<Vec<f64>> =
                kept.iter().map(|&at| old(&self.kept[index].keys, at)).chain(keys.iter().cloned()).collect();
            let all_values: Vec<Vec<f64>> = kept
                .iter()
                .map(|&at| old(&self.kept[index].values, at))
                .chain(values.iter().cloned())
                .collect();
            for (row, state) in states.iter_mut().enumerate() {
                let query = product(&layer.query, &normed[row]);
                let scores: Vec<(usize, f64)> = (0..all_keys.len())
                    .filter(|&key| sees(row, key))
                    .map(|key| (key, dot(&query, &all_keys[key]) / (width as f64).sqrt()))
                    .collect();
                let max = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|(_, score)| (score - max).exp()).sum();
                let mut mixed = vec![0.0; width];
                for &(key, score) in &scores {
                    let weight = (score - max).exp() / total;
                    mixed.iter_mut().zip(&all_values[key]).for_each(|(m, v)| *m += weight * v);
                }
                add(state, &product(&layer.out, &mixed));
                let hidden: Vec<f64> = product(&layer.up, &norm(state)).iter().map(|x| x.tanh()).collect();
                add(state, &product(&layer.down, &hidden));
            }
            made.push(Kept { keys: keys.concat(), values: values.concat() });
        }
        Ok((states.iter().map(|state| product(&self.head, &norm(state))).collect(), made))
    }

    /// Logits of several drafts of a window in one pass, as [`Branches`](crate::freedave::Branches) lays them out:
    /// rows and mask are its, the prefix is `0..prefix`, the suffix the last `suffix` kept positions. Row-major
    /// `[branches * window][vocab]`.
    ///
    /// # Errors
    /// Nothing kept that reaches so far; a mask that does not fit; tokens or positions out of range.
    pub fn branches(
        &self,
        drafts: &[Token],
        layout: &crate::freedave::Branches,
        prefix: usize,
        suffix: usize,
    ) -> Result<Vec<Vec<f64>>> {
        let rows = layout.positions.len();
        let keys = prefix + rows + suffix;
        if drafts.len() != rows || layout.mask.len() != rows * keys {
            return Err(ModelError::Length { what: "rows of branches", got: drafts.len(), want: rows });
        }
        if prefix + suffix > self.kept_rows {
            let want = prefix + suffix;
            return Err(ModelError::Length { what: "kept positions", got: self.kept_rows, want });
        }
        let kept: Vec<usize> = (0..prefix).chain(self.kept_rows - suffix..self.kept_rows).collect();
        let rows: Vec<(Token, usize)> =
            drafts.iter().copied().zip(layout.positions.iter().copied()).collect();
        // Here kept suffix comes before the rows, there after them.
        let column = |key: usize| match key {
            key if key < prefix => key,
            key if key < prefix + suffix => key + rows.len(),
            key => key - suffix,
        };
        Ok(self.run(&rows, &kept, |row, key| layout.mask[row * keys + column(key)])?.0)
    }

    fn answer(&self, logits: &[Vec<f64>], wanted: &[usize], start: usize) -> Result<Logits> {
        let mut rows = Vec::with_capacity(wanted.len() * self.info.vocab);
        for &position in wanted {
            let row = position.checked_sub(start).and_then(|row| logits.get(row));
            let row = row.ok_or(ModelError::NoSuchRow {
                what: "positions wanted",
                row: position,
                len: start + logits.len(),
            })?;
            rows.extend(row.iter().map(|&logit| logit as f32));
        }
        Logits::from_rows(rows, self.info.vocab, pilotfish_model::LogitForm::Full)
    }
}

fn norm(x: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + 1e-6).sqrt();
    x.iter().map(|x| x * scale).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn add(to: &mut [f64], what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += what);
}

impl MaskedModel for TinyAttention {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn mask(&self) -> Token {
        self.info.vocab as Token - 1
    }

    fn forward(&mut self, batch: &MaskedBatch<'_>) -> Result<MaskedOutput> {
        batch.taps.iter().try_for_each(|tap| self.info.require_tap(*tap))?;
        let mut logits = Vec::with_capacity(batch.sequences.len());
        for (index, text) in batch.sequences.iter().enumerate() {
            let rows: Vec<(Token, usize)> = text.iter().copied().zip(0..).collect();
            let (full, _) = self.run(&rows, &[], |query, key| self.sees(query, key))?;
            let all: Vec<usize> = (0..text.len()).collect();
            let wanted = batch.positions.and_then(|positions| positions.get(index).copied()).unwrap_or(&all);
            let answer = self.answer(&full, wanted, 0)?;
            logits.push(match batch.form {
                pilotfish_model::LogitForm::Full => answer,
                form => {
                    let rows: Vec<f32> =
                        (0..answer.rows()).filter_map(|row| answer.row(row)).flatten().copied().collect();
                    Logits::from_rows(rows, self.info.vocab, form)?
                }
            });
        }
        Ok(MaskedOutput { logits, taps: vec![Vec::new(); batch.sequences.len()] })
    }
}

impl BlockCache for TinyAttention {
    fn build(&mut self, tokens: &[Token], positions: &[usize]) -> Result<Logits> {
        let rows: Vec<(Token, usize)> = tokens.iter().copied().zip(0..).collect();
        let (full, made) = self.run(&rows, &[], |query, key| self.sees(query, key))?;
        (self.kept, self.kept_rows) = (made, tokens.len());
        self.answer(&full, positions, 0)
    }

    fn update(
        &mut self,
        texts: &[&[Token]],
        rows: Range<usize>,
        positions: &[&[usize]],
    ) -> Result<Vec<Logits>> {
        let mut logits = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            if text.len() > self.kept_rows || rows.end > text.len() {
                let (got, want) = (self.kept_rows, text.len().max(rows.end));
                return Err(ModelError::Length { what: "kept positions", got, want });
            }
            let kept: Vec<usize> = (0..text.len()).filter(|at| !rows.contains(at)).collect();
            let fresh: Vec<(Token, usize)> = rows.clone().map(|at| (text[at], at)).collect();
            let place = |key: usize| kept.get(key).copied().unwrap_or_else(|| rows.start + key - kept.len());
            let (full, _) = self.run(&fresh, &kept, |row, key| self.sees(rows.start + row, place(key)))?;
            logits.push(self.answer(&full, positions.get(index).copied().unwrap_or(&[]), rows.start)?);
        }
        Ok(logits)
    }
}
