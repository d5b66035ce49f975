use super::table::TableModel;
use crate::{
    Capabilities, CausalModel, Forest, Input, Logits, ModelError, ModelInfo, Result, Step, StepOutput, Steps,
    Token,
};

/// A model whose logits are a linear function of its last input: a token's embedding is a unit vector, and picks the
/// token's row of a table; a sum of embeddings gives the same sum of rows. Whatever comes before the last input does
/// not matter.
///
/// ```
/// use pilotfish_model::{CausalModel, Step, Steps, toy::LinearModel};
/// let mut model = LinearModel::new(2, vec![1.0, 2.0, 3.0, -1.0])?;
/// let x: Vec<f32> = model.embed(&[0])?.iter().zip(model.embed(&[1])?).map(|(a, b)| 0.25 * a + 0.75 * b).collect();
/// let answer = model.step(&Step::chain(&[]).vectors(&x, 2))?;
/// assert_eq!(answer.logits.row(0), Some(&[2.5, -0.25][..]));
/// # Ok::<(), pilotfish_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LinearModel {
    info: ModelInfo,
    rows: Vec<f32>,
    forest: Forest,
    calls: usize,
}

impl LinearModel {
    /// A model over `vocab` tokens from the logits after each, row-major `[vocab, vocab]`.
    ///
    /// # Errors
    /// A table of another size, or logits that are not finite: they could not be added up.
    pub fn new(vocab: usize, rows: Vec<f32>) -> Result<Self> {
        let want = vocab.checked_mul(vocab).filter(|want| *want > 0).unwrap_or(1);
        if rows.len() != want {
            return Err(ModelError::Length { what: "numbers in a table", got: rows.len(), want });
        }
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            return Err(ModelError::NotFinite { what: "logits", row: at / vocab });
        }
        let capabilities = Capabilities {
            tree: true,
            embeddings: true,
            hint: "a table has no layers or head".into(),
            ..Capabilities::default()
        };
        let name = format!("linear table over {vocab}");
        let info =
            ModelInfo { name, vocab, width: vocab, context: 1 << 20, capabilities, ..ModelInfo::default() };
        Ok(Self { info, rows, forest: Forest::new(), calls: 0 })
    }

    /// The logarithms of a table's laws after single tokens; probabilities below `least` count as that.
    ///
    /// # Errors
    /// `least` not above 0.
    pub fn of(table: &TableModel, least: f64) -> Result<Self> {
        if !(least > 0.0 && least < 1.0) {
            let want = "above 0 and below 1";
            return Err(ModelError::BadParameter { name: "least", value: least, want });
        }
        let vocab = table.info().vocab;
        let row = |token: usize| table.next(&[token as Token]).probs().to_vec();
        Self::new(vocab, (0..vocab).flat_map(row).map(|prob| prob.max(least).ln() as f32).collect())
    }

    /// The same model with these end tokens.
    pub fn with_end(mut self, end: Vec<Token>) -> Self {
        self.info.end = end;
        self
    }

    /// Steps so far.
    pub fn calls(&self) -> usize {
        self.calls
    }
}

impl Steps for LinearModel {
    fn len(&self) -> usize {
        self.forest.len()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        step.check(&self.info)?;
        let vocab = self.info.vocab;
        let row = |row: usize| -> Vec<f32> {
            match step.input {
                Input::Ids(ids) => self.rows[ids[row] as usize * vocab..][..vocab].to_vec(),
                Input::Vectors { values, width } => {
                    let mut sum = vec![0.0; vocab];
                    for (weight, row) in
                        values[row * width..][..width].iter().zip(self.rows.chunks_exact(vocab))
                    {
                        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
                    }
                    sum
                }
            }
        };
        let full = step.wanted().into_iter().flat_map(row).collect();
        let logits = Logits::from_rows(full, vocab, step.form)?;
        self.forest.append(step.rows(), step.parents, self.info.context)?;
        self.calls += 1;
        Ok(StepOutput { logits, taps: Vec::new() })
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> Result<()> {
        self.forest.keep(from, rows)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.forest.truncate(len)
    }
}

impl CausalModel for LinearModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn embed(&mut self, ids: &[Token]) -> Result<Vec<f32>> {
        let vocab = self.info.vocab;
        crate::step::check_ids(ids, vocab)?;
        let mut out = vec![0.0; ids.len() * vocab];
        ids.iter().enumerate().for_each(|(row, &id)| out[row * vocab + id as usize] = 1.0);
        Ok(out)
    }
}
