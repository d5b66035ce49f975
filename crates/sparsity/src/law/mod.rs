//! How sparse activations are, and how that changes with training: CETT-PPL-p% and the sparsing laws.
//!
//! ```text
//! neuron i of a gated MLP: v_i = act(W_gate x)_i (W_up x)_i; it adds v_i W_down,:i to the output
//! CETT(x, e) = ||sum of v_i W_down,:i over i with |v_i| ||W_down,:i|| <= e|| / ||MLP(x)||
//! CETT of a layer = mean over tokens with an output other than 0
//! for a target kappa: each layer's e is the largest of a grid with CETT <= kappa, all from the dense run
//! CETT-PPL-p%: kappa is bisected until the perplexity of the model with all layers sparse is 1 + p/100 times the dense one
//! activation ratio: mean share of neurons that stay
//! ```
//!
//! | parameter | default | source |
//! |---|---|---|
//! | p | 1 % | paper |
//! | grid | 65536 values between the least norm and the 0.99-quantile | calc_activation.py |
//! | tolerance of kappa | 1e-3 (1e-6 in the published code) | note, for small models |
//!
//! The laws, `D` in billions of tokens: ReLU `A = exp(-c D^alpha + b) + A0`, falling; SiLU `A = -c D^-alpha + A0`,
//! rising ([`fit`]).
//!
//! **Deviations.** The largest grid value is found by bisection, as published; the upper end is the exact 0.99-quantile of
//! all norms, not of a sample of them. A neuron whose `v` is 0 never counts as active. Tokens whose output is 0 are left out
//! of the mean.
//!
//! Cost: a bisection step multiplies a layer's masked neurons by `W_down` once: 16 products of the down projection a layer
//! for each kappa.
//!
//! References: arXiv 2411.02335; thunlp/SparsingLaw `src/calc_activation.py`, `src/model_utils.py`; CETT: arXiv 2402.03804.
//!
//! ```
//! use pilotfish_sparsity::law::Neurons;
//! // Columns (3, 4), (1, 0), (0, 2); two tokens.
//! let layer = Neurons::new(vec![1.0, 0.5, 0.1, 0.2, 2.0, 1.0], &[3.0, 1.0, 0.0, 4.0, 0.0, 2.0], 3)?;
//! let at = layer.at(0.6);
//! assert!((at.cett - 0.0492).abs() < 1e-4 && (at.active - 4.0 / 6.0).abs() < 1e-9);
//! # Ok::<(), pilotfish_sparsity::SparsityError>(())
//! ```

mod cett;
pub mod fit;

pub use cett::{Kept, Measured, Metric, Neurons, bisect_kappa};
