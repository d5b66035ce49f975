//! The acceptance head of SpecDec++: from the draft model's final-normed state of a drafted token, the chance that the
//! target accepts it. Small enough to be trained here, by hand-written gradients.
//!
//! Network: `depth` residual blocks `x + SiLU(W x + b)`, then a linear layer to two logits; class 1 is "accepted".
//! Loss over a batch, `a` the soft label `min(1, p(y)/q(y))`, `w` the weight of rejections:
//! `sum [w (1-a) (-ln(1-P)) + a (-ln P)] / sum [w (1-a) + a]`.
//! Its minimum is at `P = a/(a + w (1-a))`, so for `w != 1` the prediction is no probability; see [`calibrated`].
//!
//! | default | value | source (Kaffaljidhmah2/SpecDec_pp) |
//! |---|---|---|
//! | depth, tied | 3, tied | README; `wrap_model.py` repeats one module |
//! | w | 6 | README |
//! | mixing r | 0.15 | `train.py` |
//! | optimiser | AdamW, 5e-5, 0.9/0.999, no decay; cosine with 3 % warm-up | README's command, Trainer defaults |
//! | epochs, batch | 3, 32 | README (4 x 8 accumulated) |
//!
//! **Deviations.** The paper describes blocks with weights of their own; the released head repeats one, and so does the
//! default here. The reference accumulates 4 texts x 8, here a batch is 32 positions: there are far fewer of them, so
//! the default learning rate is for small data too low; experiments give their own.

use std::path::Path;

use pilotfish_model::sampling::Sampler;
use pilotfish_model::{
    CausalModel, Input, LogitForm, ModelError, Parents, RowSet, Step, StreamRng, Streams, Tap, Token,
};
use rand::Rng;
use rand::seq::SliceRandom;

use super::head::dot;
use super::number;
use crate::state::{self, In, Out};
use crate::{DecodingError, Result};

/// Shape of an [`AcceptanceHead`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Width of the state.
    pub width: usize,
    /// Residual blocks.
    pub depth: usize,
    /// Whether all blocks are one.
    pub tied: bool,
}

impl HeadShape {
    fn blocks(&self) -> usize {
        if self.tied { self.depth.min(1) } else { self.depth }
    }

    /// Numbers in a head of this shape.
    pub fn parameters(&self) -> usize {
        let block = self.width.saturating_mul(self.width + 1);
        block.saturating_mul(self.blocks()).saturating_add(2 * self.width + 2)
    }

    fn check(&self) -> Result<()> {
        if self.width == 0 || self.width > 1 << 16 || self.depth > 64 || self.parameters() > 1 << 28 {
            let want = "width from 1, depth at most 64, 2^28 parameters at most";
            let value = self.parameters();
            return Err(DecodingError::BadParameter {
                name: "parameters of an acceptance head",
                value,
                want,
            });
        }
        Ok(())
    }
}

/// Predicts whether a drafted token is accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptanceHead {
    shape: HeadShape,
    /// Block after block `W` row-major `[width, width]` and `b`; then the last layer's `[2, width]` and its bias.
    weights: Vec<f32>,
}

impl AcceptanceHead {
    /// All weights 0: predicts 0.5.
    ///
    /// # Errors
    /// A width of 0, or a head too large.
    pub fn zeros(shape: HeadShape) -> Result<Self> {
        shape.check()?;
        Ok(Self { shape, weights: vec![0.0; shape.parameters()] })
    }

    /// Weights uniform within `1/sqrt(width)`, as PyTorch's linear layers begin.
    ///
    /// # Errors
    /// As [`AcceptanceHead::zeros`].
    pub fn random(shape: HeadShape, rng: &mut StreamRng) -> Result<Self> {
        let mut head = Self::zeros(shape)?;
        let bound = 1.0 / (shape.width as f32).sqrt();
        head.weights.iter_mut().for_each(|weight| *weight = rng.random_range(-bound..=bound));
        Ok(head)
    }

    /// A head of these weights, in the order of the type's field.
    ///
    /// # Errors
    /// Another number of them; as [`AcceptanceHead::zeros`].
    pub fn from_weights(shape: HeadShape, weights: Vec<f32>) -> Result<Self> {
        shape.check()?;
        if weights.len() != shape.parameters() || weights.iter().any(|x| !x.is_finite()) {
            let (name, value) = ("weights of an acceptance head", weights.len());
            return Err(DecodingError::BadParameter { name, value, want: "as the shape says, all finite" });
        }
        Ok(Self { shape, weights })
    }

    /// Width of the state.
    pub fn width(&self) -> usize {
        self.shape.width
    }

    fn block(&self, index: usize) -> usize {
        let at = if self.shape.tied { 0 } else { index };
        at * self.shape.width * (self.shape.width + 1)
    }

    fn last(&self) -> usize {
        self.shape.blocks() * self.shape.width * (self.shape.width + 1)
    }

    /// The predicted chance of acceptance for a state of the head's width; 0.5 for any other.
    pub fn acceptance(&self, state: &[f32]) -> f64 {
        if state.len() != self.shape.width {
            return 0.5;
        }
        let mut x = state.to_vec();
        for index in 0..self.shape.depth {
            let u = self.affine(self.block(index), &x);
            x.iter_mut().zip(u).for_each(|(x, u)| *x += silu(u));
        }
        self.output(&x)
    }

    fn affine(&self, at: usize, x: &[f32]) -> Vec<f32> {
        let width = self.shape.width;
        let (matrix, bias) = self.weights[at..at + width * (width + 1)].split_at(width * width);
        matrix.chunks_exact(width).zip(bias).map(|(row, bias)| dot(row, x) + bias).collect()
    }

    fn output(&self, x: &[f32]) -> f64 {
        let (width, at) = (self.shape.width, self.last());
        let z = |class: usize| {
            dot(&self.weights[at + class * width..at + (class + 1) * width], x)
                + self.weights[at + 2 * width + class]
        };
        sigmoid(f64::from(z(1)) - f64::from(z(0)))
    }

    /// The weighted loss of a batch, and its gradient in the order of the weights.
    pub fn loss(&self, batch: &[&Example], weight: f64) -> (f64, Vec<f32>) {
        let width = self.shape.width;
        let mut gradient = vec![0.0f32; self.weights.len()];
        let total: f64 = batch.iter().map(|example| weight * (1.0 - example.label) + example.label).sum();
        if !(total > 0.0) {
            return (0.0, gradient);
        }
        let mut loss = 0.0;
        for example in batch.iter().filter(|example| example.state.len() == width) {
            // Inputs of all blocks and their pre-activations.
            let mut inputs = vec![example.state.clone()];
            let mut hidden = Vec::with_capacity(self.shape.depth);
            for index in 0..self.shape.depth {
                let u = self.affine(self.block(index), &inputs[index]);
                inputs.push(inputs[index].iter().zip(&u).map(|(x, u)| x + silu(*u)).collect());
                hidden.push(u);
            }
            let x = &inputs[self.shape.depth];
            let p = self.output(x);
            let a = example.label;
            // ln of a rounded-away probability is bounded by that of the smallest one.
            let ln = |p: f64| p.max(f64::MIN_POSITIVE).ln();
            loss -= (weight * (1.0 - a) * ln(1.0 - p) + a * ln(p)) / total;
            let dz = ((p * (weight * (1.0 - a) + a) - a) / total) as f32;
            let at = self.last();
            let mut dx = vec![0.0f32; width];
            for (class, dz) in [-dz, dz].into_iter().enumerate() {
                for i in 0..width {
                    gradient[at + class * width + i] += dz * x[i];
                    dx[i] += dz * self.weights[at + class * width + i];
                }
                gradient[at + 2 * width + class] += dz;
            }
            for index in (0..self.shape.depth).rev() {
                let at = self.block(index);
                let du: Vec<f32> = dx.iter().zip(&hidden[index]).map(|(dx, u)| dx * silu_slope(*u)).collect();
                for (row, &du) in du.iter().enumerate() {
                    let span = at + row * width..at + (row + 1) * width;
                    for ((g, x), (w, dx)) in gradient[span.clone()]
                        .iter_mut()
                        .zip(&inputs[index])
                        .zip(self.weights[span].iter().zip(&mut dx))
                    {
                        *g += du * x;
                        *dx += du * w;
                    }
                    gradient[at + width * width + row] += du;
                }
            }
        }
        (loss, gradient)
    }

    /// Trains it on examples; returns the mean loss of each epoch.
    ///
    /// # Errors
    /// No examples, or one of another width or with a label outside `[0, 1]`; numbers out of range.
    pub fn train(&mut self, examples: &[Example], config: &HeadTraining) -> Result<Vec<f64>> {
        config.check()?;
        let good = |example: &Example| {
            example.state.len() == self.shape.width
                && (0.0..=1.0).contains(&example.label)
                && example.state.iter().all(|x| x.is_finite())
        };
        if examples.is_empty() || !examples.iter().all(good) {
            let (name, value) = ("examples", examples.len());
            return Err(DecodingError::BadParameter {
                name,
                value,
                want: "at least one; states of the width, labels in [0, 1]",
            });
        }
        let mut rng = Streams::new(config.seed).stream("train");
        let mut order: Vec<usize> = (0..examples.len()).collect();
        let (mut first, mut second) = (vec![0.0f32; self.weights.len()], vec![0.0f32; self.weights.len()]);
        let batches = examples.len().div_ceil(config.batch);
        let steps = (batches * config.epochs) as f64;
        let warm = (0.03 * steps).ceil();
        let (mut step, mut losses) = (0.0, Vec::new());
        for _ in 0..config.epochs {
            order.shuffle(&mut rng);
            let mut sum = 0.0;
            for chunk in order.chunks(config.batch) {
                let batch: Vec<&Example> = chunk.iter().map(|&index| &examples[index]).collect();
                let (loss, gradient) = self.loss(&batch, config.weight);
                sum += loss * batch.len() as f64;
                let rate = if step < warm {
                    (step + 1.0) / warm
                } else {
                    0.5 * (1.0 + (std::f64::consts::PI * (step - warm) / (steps - warm).max(1.0)).cos())
                };
                step += 1.0;
                let rate = (config.rate * rate) as f32;
                let (b1, b2) = (0.9f32, 0.999f32);
                let (c1, c2) = ((1.0 - 0.9f64.powf(step)) as f32, (1.0 - 0.999f64.powf(step)) as f32);
                for (((w, g), m), v) in
                    self.weights.iter_mut().zip(&gradient).zip(&mut first).zip(&mut second)
                {
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    *w -= rate * (*m / c1) / ((*v / c2).sqrt() + 1e-8);
                }
            }
            losses.push(sum / examples.len() as f64);
        }
        Ok(losses)
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut out = Out::default();
        let HeadShape { width, depth, tied } = self.shape;
        out.u32(width as u32);
        out.u32(depth as u32);
        out.u32(u32::from(tied));
        self.weights.iter().for_each(|&weight| out.f32(weight));
        state::save(path, b"SDPP", &out.0)
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// A file that cannot be read, is spoilt, or is not a head.
    pub fn load(path: &Path) -> Result<Self> {
        let payload = state::load(path, b"SDPP")?;
        let mut input = In(&payload);
        let mut read = || {
            let (width, depth, tied) = (input.u32()?, input.u32()?, input.u32()?);
            let shape = HeadShape { width: width as usize, depth: depth as usize, tied: tied != 0 };
            shape.check().ok()?;
            if input.left() != 4 * shape.parameters() {
                return None;
            }
            let weights = (0..shape.parameters()).map(|_| input.f32()).collect::<Option<Vec<f32>>>()?;
            Self::from_weights(shape, weights).ok()
        };
        read().ok_or_else(|| state::bad(path, "its sizes do not fit"))
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(u: f32) -> f32 {
    u / (1.0 + (-u).exp())
}

fn silu_slope(u: f32) -> f32 {
    let s = 1.0 / (1.0 + (-u).exp());
    s * (1.0 + u * (1.0 - s))
}

/// The acceptance that a prediction under weight `w` stands for: `w P/(1 - P + w P)`, the inverse of
/// `a/(a + w (1 - a))`.
pub fn calibrated(prediction: f64, weight: f64) -> f64 {
    weight * prediction / (1.0 - prediction + weight * prediction)
}

/// A drafted token to learn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The draft's final-normed state of the token.
    pub state: Vec<f32>,
    /// `min(1, p(y)/q(y))`.
    pub label: f64,
}

/// How a head is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadTraining {
    /// Weight of rejections.
    pub weight: f64,
    /// Largest learning rate.
    pub rate: f64,
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples a step.
    pub batch: usize,
    /// Seed of the order.
    pub seed: u64,
}

impl Default for HeadTraining {
    fn default() -> Self {
        Self { weight: 6.0, rate: 5e-5, epochs: 3, batch: 32, seed: 42 }
    }
}

impl HeadTraining {
    fn check(&self) -> Result<()> {
        for (name, value) in [("weight", self.weight), ("rate", self.rate)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(number(name, value, "above 0 and finite"));
            }
        }
        for (name, value) in [("epochs", self.epochs), ("batch", self.batch)] {
            if value == 0 {
                return Err(DecodingError::BadParameter { name, value, want: "at least 1" });
            }
        }
        Ok(())
    }
}

/// Examples from one text: `response` is what the target said after `prompt`.
/// 1. One pass of the draft over the text; at each position of the response draw `y ~ q`.
/// 2. One pass of the target; the label is `min(1, p(y)/q(y))`, under the same warpers.
/// 3. Mix: each token of the response stays with probability `mix`, else it is replaced by `y`.
/// 4. One pass of the draft over the mixed text; where its token is `y`, the state and the label are an example.
///
/// # Errors
/// An empty prompt or response; a draft that does not expose its final-normed state; whatever the models refuse.
pub fn examples(
    target: &mut dyn CausalModel,
    draft: &mut dyn CausalModel,
    prompt: &[Token],
    response: &[Token],
    sampler: &Sampler,
    mix: f64,
    rng: &mut StreamRng,
) -> Result<Vec<Example>> {
    if !(0.0..=1.0).contains(&mix) {
        return Err(number("mix", mix, "from 0 to 1"));
    }
    if prompt.is_empty() || response.is_empty() {
        return Err(DecodingError::EmptyPrompt);
    }
    draft.info().require_tap(Tap::FinalNormed)?;
    super::same_vocabulary(|| "a draft model".into(), draft.info().vocab, target.info())?;
    let text: Vec<Token> = prompt.iter().chain(response).copied().collect();
    // The row before each token of the response.
    let rows: Vec<usize> = (prompt.len() - 1..text.len() - 1).collect();
    let step = |tokens, logits, taps| Step {
        input: Input::Ids(tokens),
        parents: Parents::Chain,
        logits,
        form: LogitForm::Full,
        taps,
    };
    draft.truncate(0)?;
    let q = draft.step(&step(&text, RowSet::Rows(&rows), &[]))?.logits;
    target.truncate(0)?;
    let p = target.step(&step(&text, RowSet::Rows(&rows), &[]))?.logits;
    let mut mixed = text.clone();
    let mut labels = Vec::with_capacity(rows.len());
    for index in 0..rows.len() {
        let history = &text[..prompt.len() + index];
        let missing = ModelError::NoSuchRow { what: "examples", row: index, len: rows.len() };
        let (Some(q), Some(p)) = (q.row(index), p.row(index)) else { return Err(missing.into()) };
        let (q, p) = (sampler.distribution(q, history)?, sampler.distribution(p, history)?);
        let y = q.sample(rng);
        labels.push((y, (p.prob(y) / q.prob(y)).min(1.0)));
        if !(rng.random::<f64>() < mix) {
            mixed[prompt.len() + index] = y;
        }
    }
    draft.truncate(0)?;
    let answer = draft.step(&step(&mixed, RowSet::None, &[Tap::FinalNormed]))?;
    let Some(states) = answer.tap(Tap::FinalNormed) else { return Ok(Vec::new()) };
    let all = labels.into_iter().enumerate().map(|(index, (y, label))| (prompt.len() + index, y, label));
    Ok(all
        .filter(|&(at, y, _)| mixed[at] == y)
        .map(|(at, _, label)| Example { state: states.row(at).to_vec(), label })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(width: usize, depth: usize, tied: bool) -> HeadShape {
        HeadShape { width, depth, tied }
    }

    /// A head that predicts the same for every state.
    fn constant(p: f64) -> AcceptanceHead {
        let bias = (p / (1.0 - p)).ln() as f32;
        AcceptanceHead::from_weights(shape(1, 0, true), vec![0.0, 0.0, 0.0, bias]).expect("valid")
    }

    #[test]
    fn parameters_of_the_note() {
        assert_eq!(shape(576, 3, true).parameters(), 333_506);
        assert_eq!(shape(576, 1, false).parameters(), 333_506);
        assert_eq!(shape(576, 3, false).parameters(), 998_210);
        assert_eq!(AcceptanceHead::zeros(shape(4, 2, true)).expect("valid").acceptance(&[1.0; 4]), 0.5);
        assert!(AcceptanceHead::zeros(shape(0, 1, true)).is_err());
        assert!(AcceptanceHead::from_weights(shape(1, 0, true), vec![0.0; 3]).is_err());
    }

    #[test]
    fn loss_by_hand() {
        let example = |label| Example { state: vec![1.0], label };
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-6, "{got} is not {want}");
        close(constant(0.6).loss(&[&example(0.8)], 6.0).0, 0.754105);
        // Two positions with predictions of their own: the loss is the weighted mean.
        let two = |w: f64| {
            let (a, b) = (example(0.8), example(1.0));
            let weights = [w * 0.2 + 0.8, 1.0];
            let losses = [constant(0.6).loss(&[&a], w).0, constant(0.9).loss(&[&b], w).0];
            (weights[0] * losses[0] + weights[1] * losses[1]) / (weights[0] + weights[1])
        };
        close(two(6.0), 0.537857);
        close(two(1.0), 0.348640);
        // No gradient at the minimum.
        for (a, w, want) in [(0.8, 6.0, 0.4), (0.95, 6.0, 0.76), (0.95, 3.0, 0.8636)] {
            let least: f64 = a / (a + w * (1.0 - a));
            assert!((least - want).abs() < 5e-5);
            let (_, gradient) = constant(least).loss(&[&example(a)], w);
            assert!(gradient.iter().all(|g| g.abs() < 1e-6), "{gradient:?}");
            assert!((calibrated(least, w) - a).abs() < 1e-12);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut rng = Streams::new(1).stream("test");
        for shape in [shape(3, 0, true), shape(3, 2, true), shape(3, 2, false)] {
            let head = AcceptanceHead::random(shape, &mut rng).expect("valid");
            let examples: Vec<Example> = (0..4)
                .map(|_| Example {
                    state: (0..3).map(|_| rng.random_range(-1.0..1.0)).collect(),
                    label: rng.random(),
                })
                .collect();
            let batch: Vec<&Example> = examples.iter().collect();
            let (_, gradient) = head.loss(&batch, 6.0);
            for (at, &own) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut head = head.clone();
                    head.weights[at] += by;
                    head.loss(&batch, 6.0).0
                };
                let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((slope - f64::from(own)).abs() < 2e-3, "{shape:?} {at}: {slope} {}", own);
            }
        }
    }

    #[test]
    fn tied_blocks_are_one_block_repeated() {
        let mut rng = Streams::new(2).stream("test");
        let tied = AcceptanceHead::random(shape(4, 3, true), &mut rng).expect("valid");
        let block = &tied.weights[..20];
        let weights = [block, block, block, &tied.weights[20..]].concat();
        let own = AcceptanceHead::from_weights(shape(4, 3, false), weights).expect("valid");
        let state = [0.3, -1.0, 2.0, 0.1];
        assert_eq!(tied.acceptance(&state), own.acceptance(&state));
    }

    #[test]
    fn training_finds_the_minimum() {
        // Two kinds of states, accepted at .9 and .3: predictions settle where the weighted loss says.
        let example = |kind: bool| Example {
            state: vec![f32::from(u8::from(kind)), f32::from(u8::from(!kind))],
            label: if kind { 0.9 } else { 0.3 },
        };
        let examples: Vec<Example> = (0..64).map(|i| example(i % 2 == 0)).collect();
        for depth in [0, 2] {
            let mut head = AcceptanceHead::random(shape(2, depth, true), &mut Streams::new(3).stream("test"))
                .expect("valid");
            let config = HeadTraining { rate: 0.05, epochs: 200, weight: 3.0, ..HeadTraining::default() };
            let losses = head.train(&examples, &config).expect("valid");
            assert!(losses.last() < losses.first());
            for (state, a) in [([1.0, 0.0], 0.9), ([0.0, 1.0], 0.3)] {
                let got = calibrated(head.acceptance(&state), 3.0);
                assert!((got - a).abs() < 0.02, "depth {depth}: {got} is not {a}");
            }
        }
        let mut head = constant(0.5);
        assert!(head.train(&[], &HeadTraining::default()).is_err());
        assert!(
            head.train(&[Example { state: vec![1.0], label: f64::NAN }], &HeadTraining::default()).is_err()
        );
        let bad = HeadTraining { rate: f64::NAN, ..HeadTraining::default() };
        assert!(head.train(&[Example { state: vec![1.0], label: 0.5 }], &bad).is_err());
    }

    #[test]
    fn survives_a_restart_and_refuses_spoilt_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("head");
        let head =
            AcceptanceHead::random(shape(3, 2, true), &mut Streams::new(4).stream("test")).expect("valid");
        head.save(&path).expect("writable");
        assert_eq!(AcceptanceHead::load(&path).expect("whole"), head);
        state::spoil(&path, AcceptanceHead::load);
    }
}
