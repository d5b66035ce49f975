//! Networks as data: build, print, infer, transform, price, and write or read as ONNX; weights from safetensors and GGUF.
