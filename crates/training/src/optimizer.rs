//! Optimisers: how gradients move parameters.
//!
//! Moments have the precision of the parameters; a step is computed in f64 and rounded once. Formulas are
//! PyTorch's, so that settings of reference code carry over.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Storage, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::{Result, TrainingError};

/// Gradients by parameter.
pub type Gradients = BTreeMap<String, Tensor>;

/// Stochastic gradient descent with momentum: `b = momentum b + g`, `p = p - lr b` (with Nesterov's form,
/// `p = p - lr (g + momentum b)`), where `g` includes `weight_decay p`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sgd {
    /// Share of the last step that is kept; 0 to below 1.
    pub momentum: f64,
    /// Nesterov's form; needs momentum.
    pub nesterov: bool,
    /// Added to the gradient as `weight_decay p`.
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

/// Adam (arXiv 1412.6980, Algorithm 1) and AdamW (arXiv 1711.05101, Algorithm 2) with a constant factor 1 of the
/// schedule.
///
/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`. Weight decay is part of `g` in Adam; AdamW
/// multiplies `p` by `1 - lr weight_decay` first.
///
/// | setting | default | source |
/// |---|---|---|
/// | betas | 0.9, 0.999 | both papers |
/// | eps | 1e-8 | Adam, section 2 |
/// | weight decay | 0 | weak-to-strong's code; PyTorch's AdamW has 0.01 |
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adam {
    /// Decay of the two moments, each from 0 to below 1.
    pub betas: [f64; 2],
    /// Added to the root of the second moment; above 0.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// Gradient descent with momentum.
    Sgd(Sgd),
    /// Adam; weight decay is part of the gradient.
    Adam(Adam),
    /// Adam; weight decay apart from the gradient.
    AdamW(Adam),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::AdamW(Adam::default())
    }
}

impl OptimizerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One outside its range, or not a number.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, value, want| Err(TrainingError::BadParameter { name, value, want });
        let decay = match self {
            Self::Sgd(sgd) => {
                if !(0.0..1.0).contains(&sgd.momentum) {
                    return refuse("momentum", sgd.momentum, "from 0 to below 1");
                }
                if sgd.nesterov && sgd.momentum == 0.0 {
                    return refuse("momentum", 0.0, "above 0 for Nesterov's form");
                }
                sgd.weight_decay
            }
            Self::Adam(adam) | Self::AdamW(adam) => {
                if let Some(&beta) = adam.betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
                    return refuse("beta", beta, "from 0 to below 1");
                }
                if !(adam.eps > 0.0 && adam.eps.is_finite()) {
                    return refuse("eps", adam.eps, "above 0");
                }
                adam.weight_decay
            }
        };
        if !(decay >= 0.0 && decay.is_finite()) {
            return refuse("weight_decay", decay, "0 or more");
        }
        Ok(())
    }

    /// How many moments a parameter has.
    pub(crate) fn moments(&self) -> usize {
        match self {
            Self::Sgd(sgd) => usize::from(sgd.momentum > 0.0),
            Self::Adam(_) | Self::AdamW(_) => 2,
        }
    }
}

/// An optimiser and what it remembers.
///
/// ```
/// use std::collections::BTreeMap;
/// use candle_core::{Device, Tensor, Var};
/// use pilotfish_training::{Optimizer, OptimizerConfig};
/// let p = Var::new(&[1.0f64, 2.0], &Device::Cpu)?;
/// let variables = BTreeMap::from([("p".to_owned(), p.clone())]);
/// let gradients = BTreeMap::from([("p".to_owned(), Tensor::new(&[0.5f64, -3.0], &Device::Cpu)?)]);
/// // Adam's first step is the learning rate in the direction of the sign.
/// Optimizer::new(OptimizerConfig::default())?.step(0.1, &variables, &gradients)?;
/// let moved = p.to_vec1::<f64>()?;
/// assert!((moved[0] - 0.9).abs() < 1e-7 && (moved[1] - 2.1).abs() < 1e-7);
/// # Ok::<(), pilotfish_training::TrainingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    step: u64,
    moments: BTreeMap<String, Vec<Numbers>>,
}

/// Numbers in the precision of what they belong to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Numbers {
    fn zeros(dtype: DType, count: usize) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32(vec![0.0; count])),
            DType::F64 => Ok(Self::F64(vec![0.0; count])),
            _ => Err(TrainingError::Unsupported { op: "optimizer", why: "parameters are f32 or f64" }),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }
}

impl Optimizer {
    /// An optimiser that remembers nothing.
    ///
    /// # Errors
    /// Settings outside their range.
    pub fn new(config: OptimizerConfig) -> Result<Self> {
        config.check()?;
        Ok(Self { config, step: 0, moments: BTreeMap::new() })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    pub(crate) fn state(&self) -> &BTreeMap<String, Vec<Numbers>> {
        &self.moments
    }

    pub(crate) fn restore(&mut self, step: u64, moments: BTreeMap<String, Vec<Numbers>>) {
        (self.step, self.moments) = (step, moments);
    }

    /// How many moments a parameter has once it has been moved.
    pub(crate) fn moment_count(&self) -> usize {
        self.config.moments()
    }

    /// Moves the variables that have a gradient.
    ///
    /// # Errors
    /// A learning rate that is negative or not a number; a gradient of no variable or of another shape. Nothing
    /// is moved then.
    pub fn step(&mut self, lr: f64, variables: &BTreeMap<String, Var>, gradients: &Gradients) -> Result<()> {
        if !(lr >= 0.0 && lr.is_finite()) {
            return Err(TrainingError::BadParameter { name: "learning rate", value: lr, want: "0 or more" });
        }
        for (name, gradient) in gradients {
            let var = variables.get(name);
            let var =
                var.ok_or_else(|| TrainingError::NoSuchName { kind: "variable", name: name.clone() })?;
            if var.dims() != gradient.dims() || var.dtype() != gradient.dtype() {
                let (got, want) = (gradient.dims().to_vec(), format!("{:?}, {:?}", var.dims(), var.dtype()));
                return Err(TrainingError::Shape { name: format!("gradient of {name}"), got, want });
            }
            if !self.moments.contains_key(name) {
                let zeros = (0..self.config.moments()).map(|_| Numbers::zeros(var.dtype(), var.elem_count()));
                self.moments.insert(name.clone(), zeros.collect::<Result<_>>()?);
            }
        }
        self.step += 1;
        let rule = Rule { config: self.config, lr, step: self.step };
        for (name, gradient) in gradients {
            let (var, gradient) = (&variables[name], gradient.contiguous()?);
            let Some(moments) = self.moments.get_mut(name) else { continue };
            let shape = var.shape();
            let moved = match var.dtype() {
                DType::F64 => {
                    let mut p = var.as_tensor().flatten_all()?.to_vec1::<f64>()?;
                    let mut m = moments.iter_mut().filter_map(|numbers| match numbers {
                        Numbers::F64(values) => Some(values.as_mut_slice()),
                        Numbers::F32(_) => None,
                    });
                    numbers(&gradient, |g: &[f64]| rule.apply(&mut p, g, [m.next(), m.next()]))?;
                    Tensor::from_vec(p, shape, var.device())?
                }
                _ => {
                    let mut p = var.as_tensor().flatten_all()?.to_vec1::<f32>()?;
                    let mut m = moments.iter_mut().filter_map(|numbers| match numbers {
                        Numbers::F32(values) => Some(values.as_mut_slice()),
                        Numbers::F64(_) => None,
                    });
                    numbers(&gradient, |g: &[f32]| rule.apply(&mut p, g, [m.next(), m.next()]))?;
                    Tensor::from_vec(p, shape, var.device())?
                }
            };
            var.set(&moved)?;
        }
        Ok(())
    }
}

/// A float of either precision.
pub(crate) trait Real: candle_core::WithDType {
    /// The values of this type in a storage.
    fn of(storage: &CpuStorage) -> Option<&[Self]>;
}

impl Real for f32 {
    fn of(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }
}

impl Real for f64 {
    fn of(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F64(values) = storage { Some(values) } else { None }
    }
}

/// Lets `f` see the numbers of a contiguous tensor.
fn numbers<T: Real, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.contiguous_offsets();
    let values = match (&*storage, range) {
        (Storage::Cpu(storage), Some((start, end))) => T::of(storage).map(|values| &values[start..end]),
        _ => None,
    };
    let why = "gradients are contiguous, on the CPU and in the parameters' precision";
    values.map(f).ok_or(TrainingError::Unsupported { op: "optimizer", why })
}

/// One step of an optimiser on numbers that have taken `step` steps, this one included.
pub(crate) struct Rule {
    pub(crate) config: OptimizerConfig,
    pub(crate) lr: f64,
    pub(crate) step: u64,
}

impl Rule {
    pub(crate) fn apply<T: Real>(&self, p: &mut [T], g: &[T], moments: [Option<&mut [T]>; 2]) {
        let lr = self.lr;
        match (self.config, moments) {
            (OptimizerConfig::Sgd(sgd), [None, _]) => {
                for (p, g) in p.iter_mut().zip(g) {
                    let x = p.to_f64();
                    *p = T::from_f64(x - lr * (g.to_f64() + sgd.weight_decay * x));
                }
            }
            (OptimizerConfig::Sgd(sgd), [Some(b), _]) => {
                for ((p, g), b) in p.iter_mut().zip(g).zip(b) {
                    let x = p.to_f64();
                    let g = g.to_f64() + sgd.weight_decay * x;
                    let velocity = sgd.momentum * b.to_f64() + g;
                    *b = T::from_f64(velocity);
                    let by = if sgd.nesterov { g + sgd.momentum * velocity } else { velocity };
                    *p = T::from_f64(x - lr * by);
                }
            }
            (OptimizerConfig::Adam(adam) | OptimizerConfig::AdamW(adam), [Some(m), Some(v)]) => {
                let apart = matches!(self.config, OptimizerConfig::AdamW(_));
                let [b1, b2] = adam.betas;
                let exponent = i32::try_from(self.step).unwrap_or(i32::MAX);
                let (c1, c2) = (1.0 - b1.powi(exponent), 1.0 - b2.powi(exponent));
                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let (mut x, mut g) = (p.to_f64(), g.to_f64());
                    if apart {
                        x *= 1.0 - lr * adam.weight_decay;
                    } else {
                        g += adam.weight_decay * x;
                    }
                    let first = b1 * m.to_f64() + (1.0 - b1) * g;
                    let second = b2 * v.to_f64() + (1.0 - b2) * g * g;
                    (*m, *v) = (T::from_f64(first), T::from_f64(second));
                    *p = T::from_f64(x - lr * (first / c1) / ((second / c2).sqrt() + adam.eps));
                }
            }
            // Moments are made as many as the optimiser has.
            _ => {}
        }
    }
}

/// The norm of all gradients taken together.
///
/// # Errors
/// Candle's.
pub fn global_norm(gradients: &Gradients) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.values() {
        let gradient = gradient.contiguous()?;
        sum += match gradient.dtype() {
            DType::F64 => {
                numbers(&gradient, |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>())
            }
            _ => numbers(&gradient, |values: &[f32]| {
                values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>()
            }),
        }?;
    }
    Ok(sum.sqrt())
}

/// Scales gradients so that their global norm is at most `limit`; returns the norm before. PyTorch divides by
/// `norm + 1e-6`; here a clipped norm is the limit.
///
/// # Errors
/// A limit that is not above 0. A norm that is not finite scales nothing; it is the caller's to judge.
pub fn clip(gradients: &mut Gradients, limit: f64) -> Result<f64> {
    if !(limit > 0.0) {
        return Err(TrainingError::BadParameter { name: "clip", value: limit, want: "above 0" });
    }
    let norm = global_norm(gradients)?;
    if norm > limit && norm.is_finite() {
        for gradient in gradients.values_mut() {
            *gradient = gradient.affine(limit / norm, 0.0)?;
        }
    }
    Ok(norm)
}
