"""Training: a checkpoint that survives few bits, from a checkpoint that does not."""
