"""Against embedding condensation: measuring it, training away from it, and whether a model survives quantization."""
