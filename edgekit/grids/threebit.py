"""The grids of edgekit's own operators, `edgekit::MatMul3Bits` and, for embeddings, `edgekit::Gather3Bits`: 3-bit codes
that take 3 bits, float16 scales.

Fields: `codes` uint8 (rows, columns), 0 to 7, and `scales` float16 (rows, blocks); a weight is (code - 4) * scale in
float32. How the file holds them is told in docs/int3.md: a tile is 8 rows, a chunk 32 columns of a tile, 96 bytes in
three vectors of 32. Byte 4r+i of a vector belongs to row r of the tile and to column 4g+i of the chunk, g being one of
8 groups of four columns. Its bits, from the lowest:

* vector 0: group 0 (3 bits), the two low bits of group 6, group 1 (3 bits);
* vector 1: group 2 (3 bits), the two low bits of group 7, group 3 (3 bits);
* vector 2: group 4 (3 bits), the high bit of group 6, the high bit of group 7, group 5 (3 bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import FileFormatError, GridError
from edgekit.grids.base import F32, Arrays, Quantized
from edgekit.grids.checks import check_grid, check_importance, check_shape, check_weights, field, stored
from edgekit.grids.onnx import F16, LARGEST, PORTABLE, OnnxGrid
from edgekit.grids.parallel import each_chunk
from edgekit.grids.search import search

TILE_ROWS = 8
CHUNK_COLUMNS = 32
CHUNK_BYTES = TILE_ROWS * CHUNK_COLUMNS * 3 // 8
_GROUPS = CHUNK_COLUMNS // 4
_PLANE = CHUNK_BYTES // 3
_WORK = 1 << 17
"""Weights computed at a time."""
_U8, _F16 = np.dtype(np.uint8), np.dtype(np.float16)

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class ThreeBitGrid(OnnxGrid):
    """Symmetric 3-bit codes in tiles; satisfies :class:`edgekit.grids.base.Grid`."""

    @property
    def operator(self) -> tuple[str, str]:
        """Domain and name of the operator that multiplies by such a matrix."""
        return "edgekit", "MatMul3Bits"

    @property
    def lookup(self) -> tuple[str, str]:
        """Domain and name of the operator that reads rows of such an embedding."""
        return "edgekit", "Gather3Bits"

    @property
    def portable(self) -> str:
        """Name of the grid that holds the same weights for stock onnxruntime."""
        return self.name + PORTABLE

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes of codes and scales in the file, padding to whole tiles and blocks included."""
        check_shape(self, shape)
        tiles, blocks = -(-shape[0] // TILE_ROWS), self.blocks(shape[1])
        return tiles * blocks * (self.block // CHUNK_COLUMNS * CHUNK_BYTES + TILE_ROWS * 2)

    def loaded_nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes that a multiplication reads: those of the file."""
        return self.nbytes(shape)

    def quantize(self, weights: F32, importance: F32 | None = None) -> Quantized:
        """Codes and scales by the search of :mod:`edgekit.grids.search`; errors as :class:`Grid`."""
        matrix = check_weights(self, weights, LARGEST)
        found = search(matrix, check_importance(importance, matrix.shape[1]), self._codes())
        return Quantized(self.name, (matrix.shape[0], matrix.shape[1]), {"codes": found.codes, "scales": found.scales})

    def dequantize(self, quantized: Quantized) -> F32:
        """(code - 4) * scale, float32 (rows, columns); errors as :meth:`pack`."""
        codes, scales = self._stored_fields(quantized)
        rows, columns = quantized.shape
        out = np.empty((rows, columns), np.float32)

        def work(chunk: slice) -> None:
            wide = np.repeat(scales[chunk].astype(np.float32), self.block, axis=1)[:, :columns]
            with np.errstate(all="ignore"):
                out[chunk] = (codes[chunk].astype(np.float32) - np.float32(self.zero_point)) * wide

        each_chunk(rows, max(1, _WORK // columns), work)
        return out

    def pack(self, quantized: Quantized) -> dict[str, NDArray[Any]]:
        """`B` uint8 (tiles, chunks, 96) and `scales` float16 (tiles, blocks, 8); errors as :class:`Grid`.

        Padding has code 4 and scale 0.
        """
        padded, halves = self._padded_fields(quantized, TILE_ROWS)
        tiles, blocks = len(padded) // TILE_ROWS, halves.shape[1]
        return {
            "B": _joined(padded.reshape(tiles, TILE_ROWS, -1, _GROUPS, 4)),
            "scales": np.ascontiguousarray(halves.reshape(tiles, TILE_ROWS, blocks).transpose(0, 2, 1)),
        }

    def unpack(self, packed: Arrays, shape: tuple[int, int]) -> Quantized:
        """Fields of the arrays in a file, of any shape, for a matrix (rows, columns); errors as :class:`Grid`.

        Raises:
            FileFormatError: also when the padding is not empty.
        """
        check_shape(self, shape)
        tiles, blocks = -(-shape[0] // TILE_ROWS), self.blocks(shape[1])
        data = flat(packed, "B", np.uint8, (tiles, blocks * self.block // CHUNK_COLUMNS, CHUNK_BYTES))
        halves = flat(packed, "scales", np.float16, (tiles, blocks, TILE_ROWS))
        codes = _split(data).reshape(tiles * TILE_ROWS, -1)
        return self._unpadded(packed, shape, codes, halves.transpose(0, 2, 1).reshape(tiles * TILE_ROWS, blocks))

    def _unpadded(self, packed: Arrays, shape: tuple[int, int], codes: U8, scales: F16) -> Quantized:
        """The fields of padded codes and scales; what is padded must be empty."""
        if "zero_points" in packed:
            raise FileFormatError("'zero_points' were given", expected=f"none, because {self.name} is symmetric")
        rows, columns = shape
        empty = (codes[rows:] == self.zero_point).all() and (codes[:, columns:] == self.zero_point).all()
        if not empty or scales[rows:].view(np.uint16).any():
            raise FileFormatError("the padding of 'B' or 'scales' is not empty", expected="code 4 and scale 0")
        fields: dict[str, NDArray[Any]] = {"codes": codes[:rows, :columns].copy(), "scales": scales[:rows].copy()}
        return Quantized(self.name, shape, fields)

    def _padded_fields(self, quantized: Quantized, least: int) -> tuple[U8, F16]:
        """Codes (rows, columns) of whole blocks and scales (rows, blocks), rows a multiple of `least`."""
        codes, scales = self._stored_fields(quantized)
        rows, columns = quantized.shape
        padding = ((0, -rows % least), (0, self.blocks(columns) * self.block - columns))
        return np.pad(codes, padding, constant_values=self.zero_point), np.pad(scales, (padding[0], (0, 0)))

    def _stored_fields(self, quantized: Quantized) -> tuple[U8, F16]:
        """Codes (rows, columns) and scales (rows, blocks), checked."""
        check_grid(self, quantized)
        rows, columns = quantized.shape
        codes = field(quantized, "codes", _U8, quantized.shape, self.span)
        return codes, field(quantized, "scales", _F16, (rows, self.blocks(columns)), None)


def portable(quantized: Quantized) -> Quantized:
    """The very same weights in the grid that stock onnxruntime reads: codes that take 4 bits.

    Raises:
        GridError: it is no matrix of a 3-bit grid of edgekit's own.
    """
    grid = THREE_BIT_GRIDS.get(quantized.grid)
    if grid is None:
        raise GridError(f"{quantized.grid} has no portable form", expected=" or ".join(THREE_BIT_GRIDS))
    codes, scales = grid._stored_fields(quantized)
    fields: dict[str, NDArray[Any]] = {"codes": codes + np.uint8(4), "scales": scales}
    return Quantized(grid.portable, quantized.shape, fields)


def _joined(codes: U8) -> U8:
    """Bytes (tiles, chunks, 96) of codes (tiles, 8 rows, chunks, 8 groups, 4 columns)."""
    tiles, _, chunks = codes.shape[:3]
    group = codes.transpose(3, 0, 2, 1, 4).reshape(_GROUPS, tiles, chunks, _PLANE)
    return planes(group).reshape(tiles, chunks, CHUNK_BYTES)


def _split(data: U8) -> U8:
    """Codes (tiles, 8 rows, chunks, 8 groups, 4 columns) of bytes; inverse of :func:`_joined`."""
    tiles, chunks = data.shape[:2]
    groups = groups_of(data.reshape(tiles, chunks, 3, _PLANE))
    return groups.reshape(_GROUPS, tiles, chunks, TILE_ROWS, 4).transpose(1, 3, 2, 0, 4)


def planes(group: U8) -> U8:
    """Three planes of bytes (…, 3, n) that hold eight groups of 3-bit codes (8, …, n)."""
    return np.stack(
        (
            group[0] | (group[6] & 3) << 3 | group[1] << 5,
            group[2] | (group[7] & 3) << 3 | group[3] << 5,
            group[4] | (group[6] >> 2) << 3 | (group[7] >> 2) << 4 | group[5] << 5,
        ),
        axis=-2,
    )


def groups_of(data: U8) -> U8:
    """Inverse of :func:`planes`."""
    a, b, c = np.moveaxis(data, -2, 0)
    whole = (a & 7, a >> 5, b & 7, b >> 5, c & 7, c >> 5)
    return np.stack((*whole, (a >> 3 & 3) | (c >> 3 & 1) << 2, (b >> 3 & 3) | (c >> 4 & 1) << 2))


def flat(packed: Arrays, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array `name` of a file, of any shape, as `shape`."""
    return stored(packed, name, dtype, int(np.prod(shape))).reshape(shape)


THREE_BIT_GRIDS = {
    grid.name: grid
    for grid in (
        ThreeBitGrid(3, 3, block, symmetric=True, embedding=embedding)
        for embedding in (False, True)
        for block in (32, 64)
    )
}
"""Each by name."""
