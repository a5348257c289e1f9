"""Remembering what a tensor was planned to be, without keeping it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 18
Digests = dict[str, str]
"""Tensor name → :func:`digest` of its planned weights."""


def digest(weights: NDArray[np.float32]) -> str:
    """BLAKE2b of float32 weights of any shape, row-major; equal exactly when all values are (0 and -0 are equal)."""
    values = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1)
    found = hashlib.blake2b(digest_size=16)
    for begin in range(0, values.size, _PIECE):  # in pieces: a copy of a whole embedding would be the peak of a build
        found.update((values[begin : begin + _PIECE] + np.float32(0)).data)
    return found.hexdigest()
