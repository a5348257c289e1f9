"""Layouts of the 256-weight super-blocks: K-quants and IQ3 (source of the byte order: `ggml-common.h`).

A super-block has one float16 scale; each of its sub-blocks a small integer that multiplies it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.grids.base import F32
from edgekit.grids.bits import U8, join, split
from edgekit.grids.layout import (
    HALF,
    I8_TYPE,
    U8_TYPE,
    WORD,
    Field,
    Fields,
    Layout,
    cut,
    half_bytes,
    scaled,
    shifted,
    unshifted,
)

_SCALES = Field("scales", HALF, 1)


def _steps(fields: Fields, scales: str, sub_scales: str) -> F32:
    """Scale of each sub-block, float32 (n, sub-blocks)."""
    product: F32 = fields[scales].astype(np.float32) * fields[sub_scales].astype(np.float32)
    return product


def _split_six(data: U8) -> tuple[U8, U8]:
    """Eight 6-bit scales and eight 6-bit minima (n, 8) of 12 bytes: Q4_K, Q5_K."""
    first, second, third = cut(data, 4, 4, 4)
    scales = np.hstack([first & 63, (third & 15) | ((first >> 6) << 4)])
    minima = np.hstack([second & 63, (third >> 4) | ((second >> 6) << 4)])
    return scales, minima


def _join_six(scales: U8, minima: U8) -> U8:
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    return np.hstack([first, second, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)])


def _affine_values(fields: Fields) -> F32:
    out = scaled(fields["codes"], _steps(fields, "scales", "sub_scales"))
    grouped = out.reshape(len(out), 8, 32)
    grouped -= _steps(fields, "min_scales", "sub_mins")[:, :, None]
    return out


def _affine(bits: int) -> Layout:
    """Q4_K, Q5_K: eight sub-blocks of 32 with a scale and a minimum each."""
    high = 32 if bits == 5 else 0

    def read(blocks: U8) -> tuple[NDArray[Any], ...]:
        scales, minima, sub, fifth, low = cut(blocks, 2, 2, 12, high, 128)
        codes = split(low, 32, 4)
        if high:
            codes |= split(fifth, 32, 1) << 4
        return (codes, scales.view(HALF), minima.view(HALF), *_split_six(sub))

    def write(fields: Fields) -> U8:
        codes = fields["codes"]
        heads = [half_bytes(fields[name]) for name in ("scales", "min_scales")]
        fifth = [join(codes >> 4, 32, 1)] if high else []
        sub = _join_six(fields["sub_scales"], fields["sub_mins"])
        return np.hstack([*heads, sub, *fifth, join(codes & 15, 32, 4)])

    fields = (
        Field("codes", U8_TYPE, 256, (0, (1 << bits) - 1)),
        _SCALES,
        Field("min_scales", HALF, 1),
        Field("sub_scales", U8_TYPE, 8, (0, 63)),
        Field("sub_mins", U8_TYPE, 8, (0, 63)),
    )
    return Layout(fields, read, write, _affine_values)


def _symmetric_values(fields: Fields) -> F32:
    return scaled(fields["codes"], _steps(fields, "scales", "sub_scales"))


def _read_q6_k(blocks: U8) -> tuple[NDArray[Any], ...]:
    low, high, sub, scales = cut(blocks, 128, 64, 16, 2)
    codes = split(low, 64, 4) | (split(high, 32, 2) << 4)
    return shifted(codes, 32), scales.view(HALF), sub.view(np.int8)


def _write_q6_k(fields: Fields) -> U8:
    codes = unshifted(fields["codes"], 32)
    low, high = join(codes & 15, 64, 4), join(codes >> 4, 32, 2)
    return np.hstack([low, high, fields["sub_scales"].view(np.uint8), half_bytes(fields["scales"])])


def _read_q3_k(blocks: U8) -> tuple[NDArray[Any], ...]:
    high, low, sub_low, sub_high, scales = cut(blocks, 32, 64, 8, 4, 2)
    codes = split(low, 32, 2) | (split(high, 32, 1) << 2)
    sub = split(sub_low, 8, 4) | (split(sub_high, 4, 2) << 4)
    return shifted(codes, 4), scales.view(HALF), shifted(sub, 32)


def _write_q3_k(fields: Fields) -> U8:
    codes, sub = unshifted(fields["codes"], 4), unshifted(fields["sub_scales"], 32)
    high, low = join(codes >> 2, 32, 1), join(codes & 3, 32, 2)
    sub_low, sub_high = join(sub & 15, 8, 4), join(sub >> 4, 4, 2)
    return np.hstack([high, low, sub_low, sub_high, half_bytes(fields["scales"])])


@cache
def _four_bytes(name: str) -> NDArray[np.uint32]:
    """A codebook of gguf-py with its entries, four magnitudes each, as 32-bit words of four bytes."""
    from gguf import quants

    book = getattr(quants, name)
    book.init_grid()
    words: NDArray[np.uint32] = book.grid.reshape(-1, 4).astype(np.uint8).view(np.uint32).reshape(-1)
    words.flags.writeable = False
    return words


@cache
def _eight_signs() -> NDArray[np.uint64]:
    """For each byte of sign bits (lowest first, 1 is minus), eight signed bytes 1 or -1 as one 64-bit word."""
    minus = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    words: NDArray[np.uint64] = (1 - 2 * minus.astype(np.int8)).view(np.uint64).reshape(-1)
    words.flags.writeable = False
    return words


@cache
def _even_signs() -> U8:
    """The 128 bytes of sign bits that IQ3_XXS can index: seven free bits, the eighth makes their number even."""
    from gguf.quants import IQ2_XXS

    return np.frombuffer(IQ2_XXS.ksigns, np.uint8)


def _codebook_values(words: NDArray[np.uint32], index: NDArray[Any], signs: U8, steps: F32) -> F32:
    magnitudes = words.take(index).view(np.int8)
    magnitudes *= _eight_signs().take(signs).view(np.int8)
    return scaled(magnitudes, steps)


def _iq3_s_values(fields: Fields) -> F32:
    factors = (1 + 2 * fields["sub_scales"]).astype(np.float32)
    steps = fields["scales"].astype(np.float32) * factors
    return _codebook_values(_four_bytes("IQ3_S"), fields["grid_index"], fields["signs"], steps)


def _read_iq3_s(blocks: U8) -> tuple[NDArray[Any], ...]:
    scales, low, high, signs, sub = cut(blocks, 2, 64, 8, 32, 4)
    index = low.astype(np.uint16) | (split(high, 1, 1).astype(np.uint16) << 8)
    return index, signs, scales.view(HALF), split(sub, 1, 4)


def _write_iq3_s(fields: Fields) -> U8:
    index = fields["grid_index"]
    low, high = index.astype(np.uint8), (index >> 8).astype(np.uint8)  # astype keeps the low byte
    sub = join(fields["sub_scales"], 1, 4)
    return np.hstack([half_bytes(fields["scales"]), low, join(high, 1, 1), fields["signs"], sub])


_SIGN_SHIFTS = np.array([0, 7, 14, 21], WORD)


def _iq3_xxs_values(fields: Fields) -> F32:
    half = np.float32(0.5)
    steps = fields["scales"].astype(np.float32) * (half + fields["sub_scales"].astype(np.float32)) * half
    signs = _even_signs().take(fields["sign_index"])
    return _codebook_values(_four_bytes("IQ3_XXS"), fields["grid_index"], signs, steps)


def _read_iq3_xxs(blocks: U8) -> tuple[NDArray[Any], ...]:
    scales, index, rest = cut(blocks, 2, 64, 32)
    words = rest.view(WORD)
    signs = ((words[:, :, None] >> _SIGN_SHIFTS) & 127).astype(np.uint8)
    return index, signs.reshape(-1, 32), scales.view(HALF), (words >> 28).astype(np.uint8)


def _write_iq3_xxs(fields: Fields) -> U8:
    signs = fields["sign_index"].reshape(-1, 8, 4).astype(WORD) << _SIGN_SHIFTS
    words = np.bitwise_or.reduce(signs, axis=2) | (fields["sub_scales"].astype(WORD) << 28)
    return np.hstack([half_bytes(fields["scales"]), fields["grid_index"], words.view(np.uint8)])


SUPERBLOCKS: dict[str, Layout] = {
    "Q6_K": Layout(
        (Field("codes", I8_TYPE, 256, (-32, 31)), _SCALES, Field("sub_scales", I8_TYPE, 16)),
        _read_q6_k,
        _write_q6_k,
        _symmetric_values,
    ),
    "Q5_K": _affine(5),
    "Q4_K": _affine(4),
    "Q3_K": Layout(
        (Field("codes", I8_TYPE, 256, (-4, 3)), _SCALES, Field("sub_scales", I8_TYPE, 16, (-32, 31))),
        _read_q3_k,
        _write_q3_k,
        _symmetric_values,
    ),
    "IQ3_S": Layout(
        (
            Field("grid_index", np.dtype(np.uint16), 64, (0, 511)),
            Field("signs", U8_TYPE, 32),
            _SCALES,
            Field("sub_scales", U8_TYPE, 8, (0, 15)),
        ),
        _read_iq3_s,
        _write_iq3_s,
        _iq3_s_values,
    ),
    "IQ3_XXS": Layout(
        (
            Field("grid_index", U8_TYPE, 64),
            Field("sign_index", U8_TYPE, 32, (0, 127)),
            _SCALES,
            Field("sub_scales", U8_TYPE, 8, (0, 15)),
        ),
        _read_iq3_xxs,
        _write_iq3_xxs,
        _iq3_xxs_values,
    ),
}
