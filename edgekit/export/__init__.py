"""From a checkpoint and a plan to files: GGUF and ONNX, and the proof that they say the same."""
