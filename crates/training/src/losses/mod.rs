//! Losses: of classes ([`classification`]), of tokens ([`Targets`]), of pairs ([`preference`]).
//!
//! Every loss takes candle tensors in either precision and gives one whose gradient flows back; sums within a row
//! are taken in f64. Sign and mean are part of the loss: lower is better.

pub mod classification;
pub mod preference;
mod rows;
mod tokens;

use candle_core::Tensor;

pub use tokens::{Masked, Masking, Targets, masked};

use crate::{Result, TrainingError};
use rows::{LOG_ONE_LESS_EXP, LogSoftmax, SOFTPLUS};

/// Logarithms of the softmax along the last axis.
///
/// # Errors
/// A scalar; integers.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    if logits.rank() == 0 {
        let want = "at least one dimension".into();
        return Err(TrainingError::Shape { name: "logits".into(), got: vec![], want });
    }
    Ok(logits.contiguous()?.apply_op1(LogSoftmax)?)
}

/// `log(1 + e^x)`, elementwise; slope 1/2 at 0.
///
/// # Errors
/// Integers.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(SOFTPLUS)?)
}

/// `log(1 - e^x)`, elementwise, for `x < 0`.
///
/// # Errors
/// Integers.
pub fn log_one_less_exp(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(LOG_ONE_LESS_EXP)?)
}
