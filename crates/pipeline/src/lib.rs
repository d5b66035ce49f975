//! Experiments as typed, resumable steps: progress, result files, tables, plots, reports, setup.
