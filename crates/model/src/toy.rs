//! Exactly enumerable models.
