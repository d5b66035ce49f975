//! Matrix products of a few rows that read each weight once: dense, block-quantised, N:M packed, gathered.
//!
//! A step of a few rows through a language model reads every weight once, and on a CPU the reading is what takes
//! the time: up to the width where arithmetic takes over, further rows are free. These products keep to that
//! floor. Weights are packed in the order they are read, panels of outputs side by side, so that an input is
//! spread over a vector of outputs and no sum runs across a vector.
//!
//! **Exactness.** Every output is one chain of fused multiply-adds in one order. A row's result is therefore the
//! same to the bit whatever other rows are in the call, however many threads run it and whichever instructions are
//! used (AVX-512, AVX2 with FMA, or the scalar twin, which the compiler turns into NEON on `aarch64`). Greedy
//! speculation over these products is exact, not nearly so.
//!
//! ```
//! use pilotfish_kernels::{Dense, Float, Product};
//! let packed = Dense::pack(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3, Float::F32)?;
//! let mut y = [0.0; 4];
//! packed.apply(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 2, &mut y)?;
//! assert_eq!(y, [1.0, 4.0, 6.0, 15.0]);
//! # Ok::<(), pilotfish_kernels::KernelError>(())
//! ```

// Tiles are written as the formulas are: sums by row, panel and half.
#![allow(clippy::needless_range_loop)]

mod blocks;
mod dense;
mod error;
mod experts;
mod gather;
mod isa;
mod lines;
mod parallel;
mod product;
mod roofline;
mod rows;
#[cfg(target_arch = "x86_64")]
mod simd;
mod sparse;

pub use blocks::{Activations, BLOCK, Bits, Blocks, Form, Gguf, Offset};
pub use dense::{Dense, Float};
pub use error::{KernelError, Result};
pub use experts::{Experts, Route};
pub use gather::{Active, Columns, Neurons};
pub use isa::{ISA_VARIABLE, Isa};
pub use parallel::{Parallel, Rayon, Serial};
pub use product::Product;
pub use roofline::{Meter, Roofline};
pub use sparse::{Kept, Pattern, Sparse};
