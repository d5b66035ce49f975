use crate::{
    Capabilities, Logits, MaskedBatch, MaskedModel, MaskedOutput, ModelError, ModelInfo, Result, Token,
};

/// A masked model given by an explicit joint distribution over all texts of a length: its answers are the
/// exact marginals at masked positions, given what is not masked. The mask is token `V`, and `V + 1` logits
/// make a row, the mask's being `-inf`.
///
/// ```
/// use pilotfish_model::{LogitForm, MaskedBatch, MaskedModel, toy::TabularMasked};
/// // Two positions over two tokens that always agree; 00 has probability 3/4.
/// let mut model = TabularMasked::new(2, 2, vec![3.0, 0.0, 0.0, 1.0])?;
/// let mask = model.mask();
/// let batch = MaskedBatch { sequences: &[&[mask, 1]], positions: None, form: LogitForm::Full, taps: &[] };
/// let answer = model.forward(&batch)?;
/// assert_eq!(answer.logits[0].argmax(0)?, 1);
/// # Ok::<(), pilotfish_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TabularMasked {
    info: ModelInfo,
    length: usize,
    joint: Vec<f64>,
    calls: usize,
}

impl TabularMasked {
    /// A model over `vocab` tokens and `length` positions from the weights of all texts, `[vocab^length]`, the
    /// first position being the leading digit.
    ///
    /// # Errors
    /// A table of another size or that is no distribution.
    pub fn new(vocab: usize, length: usize, joint: Vec<f64>) -> Result<Self> {
        let want = u32::try_from(length).ok().and_then(|power| vocab.checked_pow(power)).unwrap_or(0);
        if want == 0 || joint.len() != want {
            return Err(ModelError::Length { what: "numbers in a joint table", got: joint.len(), want });
        }
        let joint = crate::sampling::Distribution::from_weights(joint)?.probs().to_vec();
        let info = ModelInfo {
            name: format!("table over {length} positions"),
            vocab: vocab + 1,
            context: length,
            capabilities: Capabilities { hint: "a table has no layers".into(), ..Capabilities::default() },
            ..ModelInfo::default()
        };
        Ok(Self { info, length, joint, calls: 0 })
    }

    /// Exact marginals of a position given the text around it, `[V]`; `None` if the text is impossible.
    pub fn marginal(&self, text: &[Token], position: usize) -> Option<Vec<f64>> {
        let vocab = self.info.vocab - 1;
        let mut weights = vec![0.0; vocab];
        for (index, prob) in self.joint.iter().enumerate() {
            let digit = |at: usize| index / vocab.pow((self.length - 1 - at) as u32) % vocab;
            let fits = |at: usize| text[at] as usize == vocab || text[at] as usize == digit(at);
            if (0..self.length).all(fits) {
                weights[digit(position)] += prob;
            }
        }
        let distribution = crate::sampling::Distribution::from_weights(weights).ok()?;
        Some(distribution.probs().to_vec())
    }

    /// Forward passes so far.
    pub fn calls(&self) -> usize {
        self.calls
    }
}

impl MaskedModel for TabularMasked {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn mask(&self) -> Token {
        self.info.vocab as Token - 1
    }

    fn forward(&mut self, batch: &MaskedBatch<'_>) -> Result<MaskedOutput> {
        batch.taps.iter().try_for_each(|tap| self.info.require_tap(*tap))?;
        if let Some(positions) = batch.positions
            && positions.len() != batch.sequences.len()
        {
            let (got, want) = (positions.len(), batch.sequences.len());
            return Err(ModelError::Length { what: "lists of positions", got, want });
        }
        let mut logits = Vec::new();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            if sequence.len() != self.length {
                let (got, want) = (sequence.len(), self.length);
                return Err(ModelError::Length { what: "positions of a sequence", got, want });
            }
            crate::step::check_ids(sequence, self.info.vocab)?;
            let all: Vec<usize> = (0..self.length).collect();
            let positions = batch.positions.map_or(&all[..], |positions| positions[index]);
            let mut full = Vec::new();
            for &row in positions {
                if row >= self.length {
                    return Err(ModelError::NoSuchRow { what: "positions wanted", row, len: self.length });
                }
                let marginal =
                    self.marginal(sequence, row).ok_or(ModelError::NotFinite { what: "marginals", row })?;
                full.extend(marginal.iter().map(|prob| prob.ln() as f32));
                full.push(f32::NEG_INFINITY);
            }
            logits.push(Logits::from_rows(full, self.info.vocab, batch.form)?);
        }
        self.calls += 1;
        let taps = vec![Vec::new(); batch.sequences.len()];
        Ok(MaskedOutput { logits, taps })
    }
}
