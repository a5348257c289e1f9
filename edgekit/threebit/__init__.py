"""Weights of 3 bits for ONNX Runtime: the packing and the library of edgekit's own operator."""
