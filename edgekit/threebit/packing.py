"""The bytes that `edgekit::MatMul3Bits` reads, from the codes and scales of a 3-bit grid, and back; see docs/int3.md.

A tile is 8 rows, a chunk 32 columns of a tile: 96 bytes, three vectors of 32. Byte 4r+i of a vector belongs to row r of
the tile and to column 4g+i of the chunk, g being one of 8 groups of four columns. Its bits, from the lowest:

* vector 0: group 0 (3 bits), the two low bits of group 6, group 1 (3 bits);
* vector 1: group 2 (3 bits), the two low bits of group 7, group 3 (3 bits);
* vector 2: group 4 (3 bits), the high bit of group 6, the high bit of group 7, group 5 (3 bits).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import FileFormatError, GridError
from edgekit.grids import Quantized
from edgekit.grids.base import F32, Arrays
from edgekit.grids.checks import check_grid, check_shape, field
from edgekit.grids.onnx import ONNX_GRIDS, OnnxGrid

TILE_ROWS = 8
CHUNK_COLUMNS = 32
CHUNK_BYTES = TILE_ROWS * CHUNK_COLUMNS * 3 // 8
ZERO_POINT = 4
"""Code of the weight 0 in the operator's bytes."""
GRIDS = ("int3-sym-b32", "int3-sym-b64")
MOST_CHANGE = 0.01
"""What rounding to float16 may change a scale by, relative to it."""
_OTHER_FORMAT = "choose another format for this tensor"
_GROUPS = CHUNK_COLUMNS // 4
_PLANE = CHUNK_BYTES // 3

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]


def grid_of(name: str) -> OnnxGrid:
    """The grid of that name, one of :data:`GRIDS`.

    Raises:
        GridError: the operator does not take it.
    """
    if name not in GRIDS:
        raise GridError(f"{name} is no format of edgekit::MatMul3Bits", expected=" or ".join(GRIDS))
    return ONNX_GRIDS[name]


def nbytes(grid: OnnxGrid, shape: tuple[int, int]) -> int:
    """Bytes of codes and scales of a matrix (rows, columns), padding included."""
    tiles, blocks = -(-shape[0] // TILE_ROWS), grid.blocks(shape[1])
    return tiles * blocks * (grid.block // CHUNK_COLUMNS * CHUNK_BYTES + TILE_ROWS * 2)


def with_half_scales(quantized: Quantized) -> Quantized:
    """The same codes with each scale rounded to the nearest float16, which is how the operator stores them.

    Float16 keeps 11 bits, a change of at most 2**-11, down to 2**-14 (6.1e-5), and fewer below.

    Raises:
        GridError: no grid of the operator, a scale is not finite in float16, or one changes by more than
            :data:`MOST_CHANGE`.
    """
    grid_of(quantized.grid)
    scales = quantized.fields["scales"]
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise GridError(
            f"a scale of {quantized.grid} is {np.abs(scales).max():.6g}",
            expected=f"at most {np.finfo(np.float16).max:.6g}, the largest float16",
            remedy=_OTHER_FORMAT,
        )
    halves = rounded.astype(np.float32)
    changed = np.abs(halves - scales) > MOST_CHANGE * np.abs(scales)
    if changed.any():
        raise GridError(
            f"{changed.sum()} of {changed.size} scales of {quantized.grid} change by more than {MOST_CHANGE:.0%} in "
            f"float16, the smallest is {np.abs(scales[changed]).min():.3g}",
            expected="0, or at least 3e-06",
            remedy=_OTHER_FORMAT,
        )
    return replace(quantized, fields={**quantized.fields, "scales": halves})


def pack(quantized: Quantized) -> dict[str, NDArray[Any]]:
    """The operator's initializers; bit-exact inverse of :func:`unpack`.

    Args:
        quantized: of a grid in :data:`GRIDS`, rows x columns, with scales that are float16 numbers.

    Returns:
        `B` uint8 (tiles, chunks, 96) and `scales` float16 (tiles, blocks, 8). Padding has code 4 and scale 0.

    Raises:
        GridError: another grid, a scale that :func:`with_half_scales` would change, or a code outside of the grid.
    """
    grid = grid_of(quantized.grid)
    check_grid(grid, quantized)
    rows, columns = quantized.shape
    stored = field(quantized, "codes", np.dtype(np.uint8), quantized.shape, grid.span)
    codes = stored - np.uint8(grid.zero_point - ZERO_POINT)
    halves = _exact_halves(field(quantized, "scales", np.dtype(np.float32), (rows, grid.blocks(columns)), None))
    tiles, blocks = -(-rows // TILE_ROWS), grid.blocks(columns)
    padding = ((0, tiles * TILE_ROWS - rows), (0, blocks * grid.block - columns))
    padded = np.pad(codes, padding, constant_values=ZERO_POINT)
    halves = np.pad(halves, (padding[0], (0, 0)))
    return {
        "B": _joined(padded.reshape(tiles, TILE_ROWS, -1, _GROUPS, 4)),
        "scales": np.ascontiguousarray(halves.reshape(tiles, TILE_ROWS, blocks).transpose(0, 2, 1)),
    }


def unpack(packed: Arrays, grid_name: str, shape: tuple[int, int]) -> Quantized:
    """Codes and scales of the operator's initializers for a matrix (rows, columns).

    Raises:
        GridError: the operator does not take the grid, or the grid not the shape.
        FileFormatError: an array is missing, of the wrong type or shape, or its padding is not empty.
    """
    grid = grid_of(grid_name)
    check_shape(grid, shape)
    rows, columns = shape
    tiles, blocks = -(-rows // TILE_ROWS), grid.blocks(columns)
    data = _stored(packed, "B", np.uint8, (tiles, blocks * grid.block // CHUNK_COLUMNS, CHUNK_BYTES))
    halves = _stored(packed, "scales", np.float16, (tiles, blocks, TILE_ROWS))
    codes = _split(data).reshape(tiles * TILE_ROWS, -1)
    scales = halves.transpose(0, 2, 1).reshape(tiles * TILE_ROWS, blocks)
    empty = (codes[rows:] == ZERO_POINT).all() and (codes[:, columns:] == ZERO_POINT).all()
    if not empty or scales[rows:].view(np.uint16).any():
        raise FileFormatError("the padding of 'B' or 'scales' is not empty", expected="code 4 and scale 0")
    fields = {
        "codes": codes[:rows, :columns] + np.uint8(grid.zero_point - ZERO_POINT),
        "scales": scales[:rows].astype(np.float32),
    }
    return Quantized(grid_name, shape, fields)


def _exact_halves(scales: F32) -> F16:
    """The same numbers as float16; raises GridError when one is not a finite float16."""
    with np.errstate(over="ignore"):
        halves: F16 = scales.astype(np.float16)
    same = np.array_equal(halves.astype(np.float32).view(np.uint32), scales.view(np.uint32))
    if not same or not np.isfinite(halves).all():
        raise GridError("scales are no finite float16 numbers", remedy="round them first (with_half_scales)")
    return halves


def _joined(codes: U8) -> U8:
    """Bytes (tiles, chunks, 96) of codes (tiles, 8 rows, chunks, 8 groups, 4 columns)."""
    tiles, _, chunks = codes.shape[:3]
    group = codes.transpose(3, 0, 2, 1, 4).reshape(_GROUPS, tiles, chunks, _PLANE)
    out = np.empty((tiles, chunks, 3, _PLANE), np.uint8)
    out[:, :, 0] = group[0] | (group[6] & 3) << 3 | group[1] << 5
    out[:, :, 1] = group[2] | (group[7] & 3) << 3 | group[3] << 5
    out[:, :, 2] = group[4] | (group[6] >> 2) << 3 | (group[7] >> 2) << 4 | group[5] << 5
    return out.reshape(tiles, chunks, CHUNK_BYTES)


def _split(data: U8) -> U8:
    """Codes (tiles, 8 rows, chunks, 8 groups, 4 columns) of bytes; inverse of :func:`_joined`."""
    tiles, chunks = data.shape[:2]
    a, b, c = np.moveaxis(data.reshape(tiles, chunks, 3, _PLANE), 2, 0)
    groups = (
        *(a & 7, a >> 5, b & 7, b >> 5, c & 7, c >> 5),
        (a >> 3 & 3) | (c >> 3 & 1) << 2,
        (b >> 3 & 3) | (c >> 4 & 1) << 2,
    )
    return np.stack(groups).reshape(_GROUPS, tiles, chunks, TILE_ROWS, 4).transpose(1, 3, 2, 0, 4)


def _stored(packed: Arrays, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    array = packed.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise FileFormatError(f"{name!r} is {found}", expected=f"{np.dtype(dtype)} of shape {shape}")
    return array
