"""Does dispersion help a model survive few bits? docs/experiments/dispersion.md is the protocol."""
