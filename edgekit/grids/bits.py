"""Small codes in bytes: every format here stores them as bit planes of a byte vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def split(data: U8, width: int, bits: int) -> U8:
    """Codes (n, size * 8/bits) of bytes (n, size).

    The bytes of a row come in groups of `width`. The lowest `bits` of a group's bytes are `width` consecutive codes,
    the next `bits` the next `width` codes, and so on; width 1 is the plain order, lowest bits first.
    """
    rows, size = data.shape
    planes = 8 // bits
    source = data.reshape(rows, size // width, width)
    out = np.empty((rows, size // width, planes, width), np.uint8)
    for plane in range(planes):
        np.right_shift(source, plane * bits, out=out[:, :, plane, :])
    np.bitwise_and(out, (1 << bits) - 1, out=out)
    return out.reshape(rows, size * planes)


def join(codes: NDArray[Any], width: int, bits: int) -> U8:
    """Inverse of :func:`split`, of uint8 codes that fit into `bits`."""
    rows, count = codes.shape
    planes = 8 // bits
    source = codes.reshape(rows, count // (planes * width), planes, width)
    out = source[:, :, 0, :].copy()
    for plane in range(1, planes):
        out |= source[:, :, plane, :] << (plane * bits)
    return out.reshape(rows, count // planes)
