use pilotfish_architectures::{BodyOptions, CausalNetwork};
use pilotfish_graph::{DType, Dim, Graph};
use pilotfish_model::{Streams, Token};
use pilotfish_sparsity::sequential::{Hidden, Layers};
use pilotfish_sparsity::{Engine, Feed, Result, SparsityError};
use rand::Rng;

/// A decoder-only network as a row of layers.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    network: &'a CausalNetwork,
}

impl<'a> Decoder<'a> {
    /// The layers of a network.
    pub fn new(network: &'a CausalNetwork) -> Self {
        Self { network }
    }

    /// The network.
    pub fn network(&self) -> &'a CausalNetwork {
        self.network
    }

    /// The residual stream of a text before the first layer.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn embed(&self, tokens: &[Token]) -> Result<Hidden> {
        let table = self.network.embedding().map_err(SparsityError::engine)?;
        let mut hidden = Vec::with_capacity(tokens.len() * self.width());
        for &token in tokens {
            let row = token as usize..token as usize + 1;
            hidden.extend(table.tensor.rows(row)?.into_iter().map(|value| value * table.scale));
        }
        Ok(hidden)
    }

    /// Final norm and head: `x` `[R, width]` to `logits` `[R, V]`.
    ///
    /// # Errors
    /// Weights that do not fit.
    pub fn tail(&self) -> Result<Graph> {
        let mut g = Graph::new("final norm and head");
        let x = g.input("x", vec![Dim::symbol("R"), self.width().into()], DType::F32)?;
        let x = self.network.final_norm(&mut g, x).map_err(SparsityError::engine)?;
        let logits = self.network.head(&mut g, x).map_err(SparsityError::engine)?;
        g.output("logits", logits)?;
        Ok(g)
    }

    /// What the texts' tokens but the first cost, in nats, given the residual stream after the last layer; by text.
    ///
    /// # Errors
    /// Whatever the engine refuses; logits that are not finite.
    pub fn nats(&self, hidden: &[Hidden], texts: &[Vec<Token>], engine: &mut dyn Engine) -> Result<Vec<f64>> {
        const ROWS: usize = 64;
        let (width, vocab) = (self.width(), self.network.config().vocab);
        let mut tail = engine.load(&self.tail()?)?;
        let mut all = Vec::with_capacity(texts.len());
        for (hidden, text) in hidden.iter().zip(texts) {
            let mut nats = 0.0;
            // The last row predicts nothing that is known.
            let rows: Vec<&[f32]> = hidden.chunks_exact(width).take(text.len().saturating_sub(1)).collect();
            for (at, rows) in rows.chunks(ROWS).enumerate() {
                let feed = Feed::Float { shape: vec![rows.len(), width], values: rows.concat() };
                let logits = tail.run(&[("x", feed)])?.swap_remove(0);
                for (row, logits) in logits.chunks_exact(vocab).enumerate() {
                    let target = text[at * ROWS + row + 1] as usize;
                    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
                    let cost = f64::from(largest) + sum.ln() - f64::from(logits[target]);
                    if !cost.is_finite() {
                        let what = "logits".into();
                        return Err(SparsityError::NotFinite { what, at: row, value: cost });
                    }
                    nats += cost;
                }
            }
            all.push(nats);
        }
        Ok(all)
    }
}

impl Layers for Decoder<'_> {
    fn count(&self) -> usize {
        self.network.config().layers
    }

    fn layer(&self, index: usize) -> Result<Graph> {
        let options = BodyOptions { past: false, ..BodyOptions::default() };
        self.network.body(index..index + 1, &options).map_err(SparsityError::engine)
    }

    fn feeds(&self, rows: usize) -> Vec<(String, Feed)> {
        let mask = |window: usize| {
            let sees = |at: usize| at % rows <= at / rows && at / rows - at % rows < window;
            let values = (0..rows * rows).map(|at| if sees(at) { 0.0 } else { -1e9 }).collect();
            Feed::Float { shape: vec![1, 1, rows, rows], values }
        };
        let mut feeds = vec![
            ("positions".to_owned(), Feed::Int { shape: vec![1, rows], values: (0..rows as i64).collect() }),
            ("mask".to_owned(), mask(usize::MAX)),
        ];
        if let Some(window) = self.network.window(0..self.count()) {
            feeds.push(("mask_local".into(), mask(window)));
        }
        feeds
    }

    fn width(&self) -> usize {
        self.network.config().width
    }
}

/// Calibration sequences: windows of a text that begin at random places.
///
/// # Errors
/// Sequences of nothing, or longer than the text.
pub fn samples(text: &[Token], sequences: usize, length: usize, seed: u64) -> Result<Vec<Vec<Token>>> {
    if sequences == 0 || length == 0 || length > text.len() {
        return Err(SparsityError::Parameter {
            name: "sequences",
            value: format!("{sequences} of {length} tokens"),
            want: "at least one, each at least 1 and at most the calibration text's tokens long",
        });
    }
    let mut rng = Streams::new(seed).stream("calibration");
    let start = |_| rng.random_range(0..=text.len() - length);
    Ok((0..sequences).map(start).map(|start| text[start..start + length].to_vec()).collect())
}

/// Windows of a text next to each other, up to `tokens` tokens in all; a short rest is left out.
///
/// # Errors
/// Windows of fewer than two tokens, or no whole one.
pub fn windows(text: &[Token], tokens: usize, window: usize) -> Result<Vec<Vec<Token>>> {
    let found: Vec<Vec<Token>> = match window {
        0 | 1 => Vec::new(),
        window => text[..tokens.min(text.len())].chunks_exact(window).map(<[Token]>::to_vec).collect(),
    };
    if found.is_empty() {
        return Err(SparsityError::Parameter {
            name: "window",
            value: format!("{window} of {tokens} tokens"),
            want: "at least 2, and no longer than the text",
        });
    }
    Ok(found)
}
