//! Votes: what many voters say about many items, in one typed, validated and compact table.
//!
//! A voter is a worker, a labelling function, a verifier or a prompt. [`Votes`] are categorical, with abstention;
//! [`Scores`] are continuous and become votes by a threshold. Both are checked once, when they are made: a class
//! outside its range, a second vote of one voter on one item or a score that is no number never reach a model.
//!
//! Storage is chosen by size. Where most voters vote on most items, one byte (two beyond 255 classes) a cell, item by
//! item: ten million items with ten voters take 100 MB. Where few do, only the votes that exist, six bytes each.

mod npy;
#[cfg(feature = "parquet")]
mod parquet;
mod patterns;
mod read;
mod scores;
mod table;

pub use patterns::Rows;
#[cfg(feature = "datafusion")]
pub(crate) use read::columns;
pub use read::{Table, read, read_truth};
pub use scores::Scores;
pub use table::{MAX_CLASSES, Votes};
