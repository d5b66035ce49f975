//! Graphs from graphs.
