"""Remembering what a tensor was planned to be, without keeping it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 18
Digests = dict[str, str]
"""Tensor name → :class:`Digest` of its planned weights."""


class Digest:
    """BLAKE2b of float32 weights, row-major, given piece by piece; equal exactly when all values are (0 is -0)."""

    def __init__(self) -> None:
        self._found = hashlib.blake2b(digest_size=16)

    def update(self, weights: NDArray[np.float32]) -> None:
        """The next rows."""
        values = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1)
        for begin in range(0, values.size, _PIECE):  # in pieces: a copy of it all would be the peak of a build
            self._found.update((values[begin : begin + _PIECE] + np.float32(0)).data)

    def text(self) -> str:
        """Lower-case hex."""
        return self._found.hexdigest()


def digest(weights: NDArray[np.float32]) -> str:
    """:class:`Digest` of a whole tensor of any shape."""
    found = Digest()
    found.update(weights)
    return found.text()
