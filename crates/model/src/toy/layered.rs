use rand::Rng;

use crate::{
    Capabilities, Capability, CausalModel, Forest, Input, Logits, ModelError, ModelInfo, Partial, Result,
    Skip, Step, StepOutput, Steps, StreamRng, Token,
};

/// A residual network of a few layers with random weights, in f64: the smallest model with sub-layers that can be left
/// out and a cache that remembers which were.
///
/// With `x` a row's residual stream (its token's embedding to begin with) and `a`, `m` the scales of a layer:
/// attention adds `a A tanh(v)` where `v` is the mean of the `x` with which the rows of the path came into this layer,
/// the newest counting most (weights halve with each row back); the MLP adds `m M tanh(x)`. Logits are `U x`. A
/// sub-layer whose scale is 0 can be left out without any change.
///
/// ```
/// use pilotfish_model::{CausalModel, Skip, Step, Steps, Streams, toy::LayeredModel};
/// let mut rng = Streams::new(1).stream("weights");
/// // The MLP of layer 1 does nothing.
/// let mut model = LayeredModel::random(7, 8, &[[1.0, 1.0], [1.0, 0.0]], &mut rng)?;
/// let whole = model.step(&Step::chain(&[3, 1]))?;
/// model.truncate(0)?;
/// assert_eq!(whole, model.step_without(&Step::chain(&[3, 1]), &Skip::new([], [1]))?);
/// # Ok::<(), pilotfish_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayeredModel {
    info: ModelInfo,
    forest: Forest,
    partial: Partial,
    scales: Vec<[f64; 2]>,
    /// `[width, width]` each, attention and MLP by layer.
    weights: Vec<[Vec<f64>; 2]>,
    /// `[vocab, width]`.
    embedding: Vec<f64>,
    /// `[vocab, width]`.
    head: Vec<f64>,
    /// By layer and row what attention reads of the row; `None` where the layer's attention was left out.
    seen: Vec<Vec<Option<Vec<f64>>>>,
}

/// How far logits spread.
const GAIN: f64 = 4.0;

impl LayeredModel {
    /// A model over `vocab` tokens with the scales `[attention, MLP]` of each layer.
    ///
    /// # Errors
    /// No tokens, no width, no layers, or a scale that is not finite.
    pub fn random(vocab: usize, width: usize, scales: &[[f64; 2]], rng: &mut StreamRng) -> Result<Self> {
        let sizes = [("vocab", vocab), ("width", width), ("layers", scales.len())];
        for (name, value) in sizes {
            if value == 0 || value > 1 << 12 {
                return Err(ModelError::BadParameter { name, value: value as f64, want: "from 1 to 4096" });
            }
        }
        if let Some(&value) = scales.iter().flatten().find(|scale| !scale.is_finite()) {
            return Err(ModelError::BadParameter { name: "scale", value, want: "finite" });
        }
        let mut matrix = |rows: usize| -> Vec<f64> {
            let scale = (3.0 / width as f64).sqrt();
            (0..rows * width).map(|_| scale * rng.random_range(-1.0..1.0)).collect()
        };
        let weights = scales.iter().map(|_| [matrix(width), matrix(width)]).collect();
        let (embedding, head) = (matrix(vocab), matrix(vocab));
        let bytes = 8 * (width * width) as u64;
        let info = ModelInfo {
            name: format!("{} random layers over {vocab}", scales.len()),
            vocab,
            width,
            layers: scales.len(),
            context: 1 << 16,
            body_bytes: 2 * bytes * scales.len() as u64,
            sublayer_bytes: vec![[bytes; 2]; scales.len()],
            head_bytes: 8 * (vocab * width) as u64,
            capabilities: Capabilities {
                tree: true,
                skip: true,
                hint: "it is a toy".into(),
                ..Capabilities::default()
            },
            ..ModelInfo::default()
        };
        let seen = vec![Vec::new(); scales.len()];
        let (forest, partial, scales) = (Forest::new(), Partial::default(), scales.to_vec());
        Ok(Self { info, forest, partial, scales, weights, embedding, head, seen })
    }

    /// The same model with these end tokens.
    pub fn with_end(mut self, end: Vec<Token>) -> Self {
        self.info.end = end;
        self
    }

    /// The same model with other scales.
    ///
    /// # Errors
    /// Not one pair a layer, or a scale that is not finite.
    pub fn with_scales(mut self, scales: &[[f64; 2]]) -> Result<Self> {
        let (got, want) = (scales.len(), self.scales.len());
        if got != want {
            return Err(ModelError::Length { what: "scales", got, want });
        }
        if let Some(&value) = scales.iter().flatten().find(|scale| !scale.is_finite()) {
            return Err(ModelError::BadParameter { name: "scale", value, want: "finite" });
        }
        self.scales = scales.to_vec();
        self.truncate(0)?;
        Ok(self)
    }

    /// What the cache holds, row by row: what each layer's attention read of it (`None` where it was left out).
    pub fn cache(&self) -> Vec<Vec<Option<&[f64]>>> {
        (0..self.forest.len())
            .map(|row| self.seen.iter().map(|layer| layer[row].as_deref()).collect())
            .collect()
    }

    /// Logits of a new last row.
    fn row(&mut self, token: Token, path: &[usize], skip: &Skip) -> Vec<f32> {
        let width = self.info.width;
        let at = token as usize * width;
        let mut x = self.embedding[at..at + width].to_vec();
        for layer in 0..self.scales.len() {
            let [attention, mlp] = &self.weights[layer];
            if skip.skips_attention(layer) {
                self.seen[layer].push(None);
            } else {
                self.seen[layer].push(Some(x.clone()));
                let (mut mean, mut weight, mut sum) = (vec![0.0; width], 1.0, 0.0);
                for &row in path.iter().rev() {
                    // A row before it that lacks this layer never comes before a step that has it.
                    if let Some(seen) = &self.seen[layer][row] {
                        mean.iter_mut().zip(seen).for_each(|(mean, seen)| *mean += weight * seen);
                        sum += weight;
                    }
                    weight *= 0.5;
                }
                mean.iter_mut().for_each(|mean| *mean = (*mean / sum).tanh());
                add(&mut x, attention, &mean, self.scales[layer][0]);
            }
            if !skip.skips_mlp(layer) {
                let h: Vec<f64> = x.iter().map(|x| x.tanh()).collect();
                add(&mut x, mlp, &h, self.scales[layer][1]);
            }
        }
        let dot = |row: &[f64]| row.iter().zip(&x).map(|(a, b)| a * b).sum::<f64>();
        self.head.chunks_exact(width).map(|row| (GAIN * dot(row)) as f32).collect()
    }
}

/// `x += scale * matrix h`
fn add(x: &mut [f64], matrix: &[f64], h: &[f64], scale: f64) {
    for (x, row) in x.iter_mut().zip(matrix.chunks_exact(h.len())) {
        *x += scale * row.iter().zip(h).map(|(a, b)| a * b).sum::<f64>();
    }
}

impl Steps for LayeredModel {
    fn len(&self) -> usize {
        self.forest.len()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        self.step_without(step, &Skip::default())
    }

    fn keep(&mut self, from: usize, rows: &[usize]) -> Result<()> {
        self.partial.check_keep(from, rows)?;
        self.forest.keep(from, rows)?;
        self.partial.truncated(from);
        for layer in &mut self.seen {
            let kept: Vec<_> = rows.iter().map(|&row| layer[row].clone()).collect();
            layer.truncate(from);
            layer.extend(kept);
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.forest.truncate(len)?;
        self.partial.truncated(len);
        self.seen.iter_mut().for_each(|layer| layer.truncate(len));
        Ok(())
    }
}

impl CausalModel for LayeredModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn step_without(&mut self, step: &Step<'_>, skip: &Skip) -> Result<StepOutput> {
        step.check(&self.info)?;
        skip.check(self.scales.len())?;
        self.partial.check(skip)?;
        let Input::Ids(ids) = step.input else {
            self.info.require(Capability::Embeddings)?;
            return Err(ModelError::EmptyStep);
        };
        let before = self.forest.len();
        self.forest.append(ids.len(), step.parents, self.info.context)?;
        self.partial.appended(before, skip);
        let mut rows = Vec::with_capacity(ids.len());
        for (index, &token) in ids.iter().enumerate() {
            let path = self.forest.path(before + index);
            rows.push(self.row(token, &path, skip));
        }
        let full: Vec<f32> = step.wanted().into_iter().flat_map(|row| rows[row].clone()).collect();
        match Logits::from_rows(full, self.info.vocab, step.form) {
            Ok(logits) => Ok(StepOutput { logits, taps: Vec::new() }),
            Err(error) => {
                self.truncate(before)?;
                Err(error)
            }
        }
    }
}
