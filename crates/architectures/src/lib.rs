//! Networks written once as graphs, their checkpoints, tokenisers and chat templates.
