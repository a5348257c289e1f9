"""The grid of `edgekit::SparseMatMul3Bits`: the weights of :mod:`edgekit.grids.threebit`, stored column by column, so
that a column whose activation is too small to matter need not be read.

Rows are padded to a multiple of 64. A column's codes lie together: units of 256 rows, 96 bytes in three planes of 32,
and a last unit of 64, 128 or 192 rows, whose planes have 8, 16 or 24 bytes. Byte i of a plane of n bytes belongs to row
gn+i of the unit, g being one of 8 groups; which bits hold which group is as in a tile (docs/int3.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import GridError
from edgekit.grids.base import Arrays, Quantized
from edgekit.grids.checks import check_shape
from edgekit.grids.onnx import PORTABLE
from edgekit.grids.threebit import U8, ThreeBitGrid, flat, groups_of, planes

SLICE_ROWS = 64
UNIT_ROWS = 256
SPARSE = "-sparse"
"""Ends the name of such a grid."""
_GROUPS = 8


@dataclass(frozen=True)
class SparseThreeBitGrid(ThreeBitGrid):
    """Symmetric 3-bit codes in columns; satisfies :class:`edgekit.grids.base.Grid`."""

    @property
    def name(self) -> str:
        """For example "int3-sym-b32-sparse"."""
        return self.dense + SPARSE

    @property
    def dense(self) -> str:
        """Name of the grid that holds the same weights in tiles."""
        return super().name

    @property
    def portable(self) -> str:
        """Name of the grid that holds the same weights for stock onnxruntime."""
        return self.dense + PORTABLE

    @property
    def operator(self) -> tuple[str, str]:
        """Domain and name of the operator that multiplies by such a matrix."""
        return "edgekit", "SparseMatMul3Bits"

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes of codes and scales in the file, padding of rows and blocks included."""
        check_shape(self, shape)
        rows, blocks = shape[0] + -shape[0] % SLICE_ROWS, self.blocks(shape[1])
        return rows * blocks * (self.block * 3 // 8 + 2)

    def pack(self, quantized: Quantized) -> dict[str, NDArray[Any]]:
        """`B` uint8 (columns, bytes) and `scales` float16 (blocks, rows), both padded; errors as :class:`Grid`.

        Padding has code 4 and scale 0.
        """
        codes, halves = self._padded_fields(quantized, SLICE_ROWS)
        units = [_joined(codes[unit]) for unit in _units(len(codes))]
        return {"B": np.concatenate(units, axis=1), "scales": np.ascontiguousarray(halves.T)}

    def unpack(self, packed: Arrays, shape: tuple[int, int]) -> Quantized:
        """Fields of the arrays in a file, of any shape, for a matrix (rows, columns); errors as :class:`Grid`.

        Raises:
            FileFormatError: also when the padding is not empty.
        """
        check_shape(self, shape)
        rows, blocks = shape[0] + -shape[0] % SLICE_ROWS, self.blocks(shape[1])
        data = flat(packed, "B", np.uint8, (blocks * self.block, rows * 3 // 8))
        codes = np.empty((rows, blocks * self.block), np.uint8)
        for unit in _units(rows):
            codes[unit] = _split(data[:, unit.start * 3 // 8 : unit.stop * 3 // 8])
        halves = flat(packed, "scales", np.float16, (blocks, rows))
        return self._unpadded(packed, shape, codes, np.ascontiguousarray(halves.T))


def _units(rows: int) -> list[slice]:
    return [slice(first, min(first + UNIT_ROWS, rows)) for first in range(0, rows, UNIT_ROWS)]


def _joined(codes: U8) -> U8:
    """Bytes (columns, 3n) of a unit's codes (8n, columns)."""
    columns = codes.shape[1]
    group = codes.reshape(_GROUPS, -1, columns).transpose(0, 2, 1)
    return planes(group).reshape(columns, -1)


def _split(data: U8) -> U8:
    """Inverse of :func:`_joined`."""
    columns = len(data)
    group = groups_of(data.reshape(columns, 3, -1))
    return group.transpose(0, 2, 1).reshape(-1, columns)


def sparse(quantized: Quantized) -> Quantized:
    """The very same weights of a grid in tiles, in the grid of columns.

    Raises:
        GridError: it is no matrix of such a grid.
    """
    grid = BY_DENSE.get(quantized.grid)
    if grid is None:
        raise GridError(f"{quantized.grid} has no form in columns", expected=" or ".join(BY_DENSE))
    return Quantized(grid.name, quantized.shape, quantized.fields)


SPARSE_GRIDS = {grid.name: grid for grid in (SparseThreeBitGrid(3, 3, block, symmetric=True) for block in (32, 64))}
"""Each by name."""
BY_DENSE = {grid.dense: grid for grid in SPARSE_GRIDS.values()}
"""Each by the name of the grid that holds the same weights in tiles."""
