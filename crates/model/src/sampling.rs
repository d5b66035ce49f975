//! Warpers and distributions.
