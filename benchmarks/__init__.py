"""Comparisons with named peers, made in one run; see docs/benchmarks.md."""
