"""Remembering what a tensor was planned to be, without keeping it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Digests = dict[str, str]
"""Tensor name → :func:`digest` of its planned weights."""


def digest(weights: NDArray[np.float32]) -> str:
    """BLAKE2b of float32 weights of any shape, row-major; equal exactly when all values are (0 and -0 are equal)."""
    values = np.ascontiguousarray(weights, dtype=np.float32) + np.float32(0)
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
