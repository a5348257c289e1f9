"""What a block layout is, and the layouts of one scale per block (source of the byte order: `ggml-common.h`).

A layout reads blocks given as bytes (n, block bytes) into fields (n, values per block), writes them back bit for bit,
and computes the weights (n, block) in float32, in the order of operations of gguf-py and ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.grids.base import F32
from edgekit.grids.bits import U8, join, split

Fields = Mapping[str, NDArray[Any]]

HALF = np.dtype("<f2")
WORD = np.dtype("<u4")
U8_TYPE = np.dtype(np.uint8)
I8_TYPE = np.dtype(np.int8)


@dataclass(frozen=True)
class Field:
    """One array of a format: its name, type, values per block, and the range of an integer (both ends included)."""

    name: str
    dtype: np.dtype[Any]
    count: int
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """How one block lies in bytes and what it means."""

    fields: tuple[Field, ...]
    read: Callable[[U8], tuple[NDArray[Any], ...]]
    """Bytes (n, block bytes) to the arrays of `fields`, in their order, each (n, count)."""
    write: Callable[[Fields], U8]
    values: Callable[[Fields], F32]


def cut(blocks: U8, *sizes: int) -> list[U8]:
    """The parts of each block, `sizes` bytes long, each contiguous (n, size)."""
    ends = np.cumsum(sizes)
    return [np.ascontiguousarray(blocks[:, end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def half_bytes(values: NDArray[Any]) -> U8:
    """float16 (n, count) as bytes (n, 2 * count)."""
    return np.ascontiguousarray(values).view(np.uint8)


def shifted(codes: NDArray[Any], offset: int) -> NDArray[np.int8]:
    """Unsigned codes minus `offset`, as signed bytes."""
    return (codes - offset).view(np.int8)  # wraps, as two's complement does


def unshifted(codes: NDArray[Any], offset: int) -> U8:
    """Inverse of :func:`shifted`."""
    raw: U8 = codes.view(np.uint8) + offset
    return raw


def scaled(codes: NDArray[Any], scales: F32) -> F32:
    """Codes (n, count) times scales (n, groups), each scale for count / groups neighbours, in float32."""
    out = codes.astype(np.float32)
    grouped = out.reshape(len(out), scales.shape[1], -1)
    grouped *= scales[:, :, None]
    return out


def plain(name: str, dtype: np.dtype[Any], values: Callable[[Fields], F32]) -> Layout:
    """A format without scales: one value of `dtype` for each weight."""
    return Layout(
        (Field(name, dtype, 1),),
        lambda blocks: (np.ascontiguousarray(blocks).view(dtype),),
        lambda fields: half_bytes(fields[name]),
        values,
    )


def _bf16_values(fields: Fields) -> F32:
    words = fields["bf16"].astype(np.uint32) << 16
    floats: F32 = words.view(np.float32)
    return floats


def _linear_values(fields: Fields) -> F32:
    out = scaled(fields["codes"], fields["scales"].astype(np.float32))
    if "mins" in fields:
        out += fields["mins"].astype(np.float32)
    return out


def _linear(bits: int, *, minimum: bool) -> Layout:
    """Q4_0, Q4_1, Q5_0, Q5_1: scale (and minimum), the fifth bits, then nibbles of codes j and j + 16."""
    offset = 0 if minimum else 1 << (bits - 1)
    heads = 2 if minimum else 1
    high = 4 if bits == 5 else 0

    def read(blocks: U8) -> tuple[NDArray[Any], ...]:
        *halves, fifth, low = cut(blocks, *[2] * heads, high, 16)
        codes = split(low, 16, 4)
        if high:
            codes |= split(fifth, 1, 1) << 4
        return (codes if minimum else shifted(codes, offset), *(half.view(HALF) for half in halves))

    def write(fields: Fields) -> U8:
        codes = unshifted(fields["codes"], offset)
        heads = [half_bytes(fields[name]) for name in ("scales", "mins") if name in fields]
        fifth = [join(codes >> 4, 1, 1)] if high else []
        return np.hstack([*heads, *fifth, join(codes & 15, 16, 4)])

    codes = Field("codes", U8_TYPE if minimum else I8_TYPE, 32, (-offset, (1 << bits) - 1 - offset))
    return Layout((codes, Field("scales", HALF, 1), *_MINS[:minimum]), read, write, _linear_values)


_MINS = (Field("mins", HALF, 1),)


def _read_q8_0(blocks: U8) -> tuple[NDArray[Any], ...]:
    scales, codes = cut(blocks, 2, 32)
    return codes.view(np.int8), scales.view(HALF)


def _read_q2_0(blocks: U8) -> tuple[NDArray[Any], ...]:
    scales, codes = cut(blocks, 2, 16)
    return shifted(split(codes, 1, 2), 1), scales.view(HALF)


@cache
def iq4_nl_levels() -> NDArray[np.int8]:
    """The 16 levels of IQ4_NL, before scaling."""
    from gguf.quants import IQ4_NL

    levels = np.array(IQ4_NL.kvalues, np.int8)
    levels.flags.writeable = False
    return levels


def _read_iq4_nl(blocks: U8) -> tuple[NDArray[Any], ...]:
    scales, codes = cut(blocks, 2, 16)
    return split(codes, 16, 4), scales.view(HALF)


LAYOUTS: dict[str, Layout] = {
    "F32": plain("values", np.dtype("<f4"), lambda fields: fields["values"].astype(np.float32)),
    "F16": plain("values", HALF, lambda fields: fields["values"].astype(np.float32)),
    "BF16": plain("bf16", np.dtype("<u2"), _bf16_values),
    "Q8_0": Layout(
        (Field("codes", I8_TYPE, 32), Field("scales", HALF, 1)),
        _read_q8_0,
        lambda fields: np.hstack([half_bytes(fields["scales"]), fields["codes"].view(np.uint8)]),
        _linear_values,
    ),
    "Q5_1": _linear(5, minimum=True),
    "Q5_0": _linear(5, minimum=False),
    "Q4_1": _linear(4, minimum=True),
    "Q4_0": _linear(4, minimum=False),
    "IQ4_NL": Layout(
        (Field("codes", U8_TYPE, 32, (0, 15)), Field("scales", HALF, 1)),
        _read_iq4_nl,
        lambda fields: np.hstack([half_bytes(fields["scales"]), join(fields["codes"], 16, 4)]),
        lambda fields: scaled(iq4_nl_levels().take(fields["codes"]), fields["scales"].astype(np.float32)),
    ),
    "Q2_0": Layout(
        (Field("codes", I8_TYPE, 64, (-1, 2)), Field("scales", HALF, 1)),
        _read_q2_0,
        lambda fields: np.hstack([half_bytes(fields["scales"]), join(unshifted(fields["codes"], 1), 1, 2)]),
        _linear_values,
    ),
}
"""Formats whose blocks have at most one scale and one minimum."""
