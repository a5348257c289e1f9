"""Weights of 3 bits for ONNX Runtime: the library of edgekit's own operator. Their format is in edgekit.grids."""
