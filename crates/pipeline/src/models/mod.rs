//! The models and data sets that the project knows by name, and what is in a checkpoint.

mod catalogue;
mod fetch;
mod inspect;

pub use catalogue::{CATALOGUE, Entry, Kind, Licence, Package, Part, Pinned, find};
pub use inspect::{Inspection, inspect};
