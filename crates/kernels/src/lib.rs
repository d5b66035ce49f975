//! Matrix products of a few rows that read each weight once: dense, block-quantised, N:M packed, gathered.
