//! ONNX Runtime sessions behind the model traits: caches, trees, devices, taps.
