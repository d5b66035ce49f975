//! Models that know the law of a task exactly: what a perfect masked model would answer.
//!
//! Their answers are the true marginals at masked positions given what is visible, so that what a decoding policy
//! loses with them is the policy's own. Where the visible tokens are impossible together, which parallel decoding
//! brings about, the law of the texts that contradict least of them takes over: such a model must still answer.

use pilotfish_model::{
    Capabilities, Logits, MaskedBatch, MaskedModel, MaskedOutput, ModelError, ModelInfo, Streams, Token,
};
use rand::Rng;

use crate::Canvas;

/// The law of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Law {
    /// One of some texts of equal length, each as likely as the others.
    OneOf(Vec<Vec<Token>>),
    /// A permutation of distinct tokens.
    Permutation {
        /// The tokens, in the order that is the identity.
        items: Vec<Token>,
        /// Whether the identity is one of the permutations.
        identity: bool,
    },
}

/// A masked model with a known law. The mask is the last token of its vocabulary.
///
/// ```
/// use pilotfish_diffusion::ideal::{Ideal, Law};
/// let shuffle = Ideal::new(Law::Permutation { items: vec![0, 1, 2], identity: true }, 3)?;
/// let mask = shuffle.mask_token();
/// // Two tokens are left for two places.
/// assert_eq!(shuffle.marginals(&[mask, 1, mask])?[0], [0.5, 0.0, 0.5, 0.0]);
/// # Ok::<(), pilotfish_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ideal {
    info: ModelInfo,
    law: Law,
    length: usize,
    noise: f64,
    streams: Streams,
}

impl Ideal {
    /// A model of a law over tokens `0..vocab`.
    ///
    /// # Errors
    /// No texts, or of different lengths; tokens outside the vocabulary; items that are not distinct; no permutation
    /// left.
    pub fn new(law: Law, vocab: usize) -> pilotfish_model::Result<Self> {
        let bad = |what, got, want| Err(ModelError::Length { what, got, want });
        let texts: Vec<&Vec<Token>> = match &law {
            Law::OneOf(texts) => texts.iter().collect(),
            Law::Permutation { items, .. } => vec![items],
        };
        let Some(length) = texts.first().map(|text| text.len()) else {
            return bad("texts of a law", 0, 1);
        };
        for text in &texts {
            if text.len() != length || length == 0 {
                return bad("tokens of a text", text.len(), length.max(1));
            }
            if let Some((row, &token)) = text.iter().enumerate().find(|(_, token)| **token as usize >= vocab)
            {
                return Err(ModelError::TokenOutOfRange { row, token, vocab });
            }
        }
        if let Law::Permutation { items, identity } = &law {
            let distinct: std::collections::HashSet<_> = items.iter().collect();
            if distinct.len() != length {
                return bad("distinct items", distinct.len(), length);
            }
            // 30! is the last factorial that keeps its ratios exact enough in f64.
            if (!identity && length < 2) || length > 30 {
                return bad("items of a permutation", length, if length > 30 { 30 } else { 2 });
            }
        }
        let info = ModelInfo {
            name: "exact marginals".into(),
            vocab: vocab + 1,
            context: length,
            capabilities: Capabilities { hint: "a law has no layers".into(), ..Capabilities::default() },
            ..ModelInfo::default()
        };
        Ok(Self { info, law, length, noise: 0.0, streams: Streams::new(0) })
    }

    /// A model that is certain of a text.
    ///
    /// # Errors
    /// As [`Ideal::new`].
    pub fn certain(text: Vec<Token>, vocab: usize) -> pilotfish_model::Result<Self> {
        Self::new(Law::OneOf(vec![text]), vocab)
    }

    /// The same with noise, uniform within `amplitude`, on every logit: ties are then broken by chance, as theory assumes,
    /// and not by the order of tokens. Keep it far below the differences that matter. The noise is a function of the
    /// seed, the text and the position, so that the model remains one.
    ///
    /// # Errors
    /// An amplitude that is negative or not finite.
    pub fn with_noise(mut self, amplitude: f64, seed: u64) -> pilotfish_model::Result<Self> {
        if !(amplitude >= 0.0 && amplitude.is_finite()) {
            let want = "0 or more, and finite";
            return Err(ModelError::BadParameter { name: "noise", value: amplitude, want });
        }
        (self.noise, self.streams) = (amplitude, Streams::new(seed));
        Ok(self)
    }

    /// The mask.
    pub fn mask_token(&self) -> Token {
        self.info.vocab as Token - 1
    }

    /// A canvas of masks alone.
    pub fn canvas(&self) -> Canvas {
        Canvas::after(&[], self.length, self.mask_token())
    }

    /// Exact marginals `[positions, vocabulary + 1]` given a text with masks; visible positions are certain. What a text
    /// was cut short of counts as masked.
    ///
    /// # Errors
    /// A text that is longer than the law's, or with tokens outside the vocabulary.
    pub fn marginals(&self, text: &[Token]) -> pilotfish_model::Result<Vec<Vec<f64>>> {
        if text.len() > self.length {
            let (got, want) = (text.len(), self.length);
            return Err(ModelError::Length { what: "positions of a text", got, want });
        }
        let (vocab, mask) = (self.info.vocab, self.mask_token());
        let given = text.len();
        let mut text = text.to_vec();
        text.resize(self.length, mask);
        let text = &text[..];
        if let Some((row, &token)) = text.iter().enumerate().find(|(_, token)| **token as usize >= vocab) {
            return Err(ModelError::TokenOutOfRange { row, token, vocab });
        }
        let mut rows = vec![vec![0.0; vocab]; self.length];
        match &self.law {
            Law::OneOf(texts) => {
                let against = |candidate: &Vec<Token>| {
                    candidate.iter().zip(text).filter(|(c, t)| **t != mask && c != t).count()
                };
                let least = texts.iter().map(against).min().unwrap_or(0);
                let fitting: Vec<&Vec<Token>> = texts.iter().filter(|c| against(c) == least).collect();
                for candidate in &fitting {
                    for (row, &token) in rows.iter_mut().zip(candidate.iter()) {
                        row[token as usize] += 1.0 / fitting.len() as f64;
                    }
                }
            }
            Law::Permutation { items, identity } => {
                let unused: Vec<Token> = items.iter().filter(|item| !text.contains(item)).copied().collect();
                let left = text.iter().filter(|token| **token == mask).count();
                // With as many items as places the visible tokens are distinct items; then only is there a law.
                let lawful = unused.len() == left;
                let same = |at: usize| text[at] == mask || text[at] == items[at];
                let identity_fits = lawful && !identity && (0..self.length).all(same);
                for (at, row) in rows.iter_mut().enumerate().filter(|(at, _)| text[*at] == mask) {
                    // Permutations of the other places for each token, less the identity where it is one of them.
                    let others = (1..left).map(|n| n as f64).product::<f64>();
                    for &token in &unused {
                        let excluded = identity_fits && token == items[at];
                        row[token as usize] = others - if excluded { 1.0 } else { 0.0 };
                    }
                    let total: f64 = row.iter().sum();
                    if total > 0.0 {
                        row.iter_mut().for_each(|weight| *weight /= total);
                    } else {
                        // Only the identity is left, which is excluded.
                        unused.iter().for_each(|&token| row[token as usize] = 1.0 / unused.len() as f64);
                    }
                }
            }
        }
        for (row, &token) in rows.iter_mut().zip(text) {
            if token != mask {
                row.fill(0.0);
                row[token as usize] = 1.0;
            }
        }
        rows.truncate(given);
        Ok(rows)
    }
}

impl MaskedModel for Ideal {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn mask(&self) -> Token {
        self.mask_token()
    }

    fn forward(&mut self, batch: &MaskedBatch<'_>) -> pilotfish_model::Result<MaskedOutput> {
        batch.taps.iter().try_for_each(|tap| self.info.require_tap(*tap))?;
        if let Some(positions) = batch.positions
            && positions.len() != batch.sequences.len()
        {
            let (got, want) = (positions.len(), batch.sequences.len());
            return Err(ModelError::Length { what: "lists of positions", got, want });
        }
        let all: Vec<usize> = (0..self.length).collect();
        let mut logits = Vec::with_capacity(batch.sequences.len());
        for (index, text) in batch.sequences.iter().enumerate() {
            let marginals = self.marginals(text)?;
            let positions = batch.positions.map_or(&all[..], |positions| positions[index]);
            let of_text = text.iter().fold(self.streams, |streams, &token| streams.fork(u64::from(token)));
            let mut rows = Vec::with_capacity(positions.len() * self.info.vocab);
            for &row in positions {
                let Some(marginal) = marginals.get(row) else {
                    return Err(ModelError::NoSuchRow { what: "positions wanted", row, len: self.length });
                };
                if self.noise > 0.0 {
                    let mut rng = of_text.fork(row as u64).stream("ties");
                    rows.extend(
                        marginal.iter().map(|p| (p.ln() + self.noise * rng.random_range(-1.0..1.0)) as f32),
                    );
                } else {
                    rows.extend(marginal.iter().map(|p| p.ln() as f32));
                }
            }
            logits.push(Logits::from_rows(rows, self.info.vocab, batch.form)?);
        }
        let taps = vec![Vec::new(); batch.sequences.len()];
        Ok(MaskedOutput { logits, taps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All permutations of `0..n`, by insertion.
    fn permutations(n: u32) -> Vec<Vec<Token>> {
        (0..n).fold(vec![Vec::new()], |shorter, item| {
            let insert = |text: Vec<Token>| {
                (0..=text.len()).map(move |at| {
                    let mut longer = text.clone();
                    longer.insert(at, item);
                    longer
                })
            };
            shorter.into_iter().flat_map(insert).collect()
        })
    }

    #[test]
    fn permutations_agree_with_their_list() {
        let items: Vec<Token> = (0..4).collect();
        for identity in [true, false] {
            let texts: Vec<Vec<Token>> =
                permutations(4).into_iter().filter(|text| identity || *text != items).collect();
            let listed = Ideal::new(Law::OneOf(texts.clone()), 4).expect("valid");
            let counted = Ideal::new(Law::Permutation { items: items.clone(), identity }, 4).expect("valid");
            // Every part of every permutation.
            for text in &texts {
                for visible in 0..16u32 {
                    let part: Vec<Token> =
                        (0..4).map(|at| if visible >> at & 1 == 1 { text[at] } else { 4 }).collect();
                    let (a, b) =
                        (listed.marginals(&part).expect("valid"), counted.marginals(&part).expect("valid"));
                    for (x, y) in a.iter().flatten().zip(b.iter().flatten()) {
                        assert!((x - y).abs() < 1e-12, "{part:?}: {a:?} is not {b:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn impossible_texts_still_have_an_answer() {
        let shuffle =
            Ideal::new(Law::Permutation { items: vec![0, 1, 2], identity: true }, 3).expect("valid");
        assert_eq!(shuffle.marginals(&[1, 1, 3]).expect("valid")[2], [0.5, 0.0, 0.5, 0.0]);
        // One place of three is replaced by 3; it shows twice.
        let texts = vec![vec![3, 1, 2], vec![0, 3, 2], vec![0, 1, 3]];
        let replace = Ideal::new(Law::OneOf(texts), 4).expect("valid");
        assert_eq!(replace.marginals(&[3, 3, 4]).expect("valid")[2], [0.0, 0.0, 1.0, 0.0, 0.0]);
        // Only the identity fits, which is excluded.
        let none = Ideal::new(Law::Permutation { items: vec![0, 1], identity: false }, 2).expect("valid");
        assert_eq!(none.marginals(&[0, 2]).expect("valid")[1], [0.0, 1.0, 0.0]);
    }

    #[test]
    fn refuses_what_is_no_law() {
        let permutation = |items: Vec<Token>, identity| Ideal::new(Law::Permutation { items, identity }, 4);
        assert!(permutation(vec![0, 0], true).is_err() && permutation(vec![0], false).is_err());
        assert!(permutation(vec![9], true).is_err() && permutation(vec![], true).is_err());
        assert!(Ideal::new(Law::OneOf(vec![]), 4).is_err());
        assert!(Ideal::new(Law::OneOf(vec![vec![0], vec![0, 1]]), 4).is_err());
        let model = permutation(vec![0, 1], true).expect("valid");
        assert!(model.marginals(&[0; 3]).is_err() && model.marginals(&[7, 0]).is_err());
        // Cut short: the second place is unknown, the first is what it was.
        assert_eq!(model.marginals(&[4]).expect("valid"), [[0.5, 0.5, 0.0, 0.0, 0.0]]);
        assert!(model.with_noise(f64::NAN, 0).is_err());
    }
}
