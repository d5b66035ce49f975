//! Paired comparisons with intervals, perplexity, and readers for prompt sets.
