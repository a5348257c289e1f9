"""Token ids in, logits out: torch, ONNX Runtime, llama.cpp."""
