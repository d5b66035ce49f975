//! Graphs evaluated with gradients: the second reader of every network.
