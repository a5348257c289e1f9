"""edgekit: quantize a small language model, ship it to a board, prove that it still speaks sense."""

__version__ = "0.1.0"
