"""The grids of ONNX Runtime's contributed operators: `MatMulNBits` for linear layers, `GatherBlockQuantized` for an
embedding whose bytes a tied head can share. That of edgekit's own operator is in :mod:`edgekit.grids.threebit`.

Fields: `codes` uint8 (rows, columns), `scales` float16 (rows, blocks) and, when asymmetric, `zero_points` uint8
(rows, blocks); a weight is (code - zero point) * scale in float32, the zero point of a symmetric grid being
2 ** (stored bits - 1), which both operators assume when none is given.

The operators want scales of their activations' type, float32. The file holds them in 16 bits, as ggml's formats do, and
a `Cast` node that onnxruntime computes once, when it loads the model, widens them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import FileFormatError, GridError
from edgekit.grids.base import F32, Arrays, Quantized
from edgekit.grids.bits import U8, join, split
from edgekit.grids.checks import check_grid, check_importance, check_shape, check_weights, field, row_refusal, stored
from edgekit.grids.parallel import each_chunk
from edgekit.grids.search import Codes, search

PORTABLE = "-portable"
"""Ends the name of a 3-bit grid whose codes take 4 bits each, so that stock onnxruntime reads them."""
_CHUNK = 1 << 17
"""Weights packed or computed at a time."""
LARGEST = 32752.0
"""Half of float16's maximum, so that refitted scales stay finite."""
_U8, _F16 = np.dtype(np.uint8), np.dtype(np.float16)

F16 = NDArray[np.float16]

_PEAK_STEPS = (0.82, 0.9, 0.97, 1.05, 1.13, 1.21, 1.3, 1.45)
_RANGE_STEPS = (1.03, 0.98, 0.93, 0.88, 0.83, 0.78, 0.72, 0.65)
_FINE = {True: (0.994, 1.002, 1.006), False: (0.997, 1.003)}
"""Candidates at 8 bits, symmetric and not: 256 levels leave little to choose."""


@dataclass(frozen=True)
class OnnxGrid:
    """Integer codes with one scale per block; satisfies :class:`edgekit.grids.base.Grid`."""

    nominal_bits: int
    stored_bits: int
    block: int
    symmetric: bool
    embedding: bool = False
    """For `GatherBlockQuantized`: a row is whole blocks, so that a `MatMulNBits` can read the same bytes."""
    container: str = "onnx"

    @property
    def name(self) -> str:
        """For example "int4-sym-b32", "embed-int8-asym-b64" or "int3-sym-b32-portable"."""
        kind = "sym" if self.symmetric else "asym"
        ending = PORTABLE if self.stored_bits > self.nominal_bits else ""
        return f"{'embed-' if self.embedding else ''}int{self.nominal_bits}-{kind}-b{self.block}{ending}"

    @property
    def operator(self) -> tuple[str, str]:
        """Domain and name of the operator that multiplies by such a matrix."""
        return "com.microsoft", "MatMulNBits"

    @property
    def lookup(self) -> tuple[str, str]:
        """Domain and name of the operator that reads rows of such an embedding."""
        return "com.microsoft", "GatherBlockQuantized"

    @property
    def row_multiple(self) -> int:
        """1 for `MatMulNBits`, which pads a row's last block; the block for an embedding."""
        return self.block if self.embedding else 1

    @property
    def zero_point(self) -> int:
        """The zero point that the operators assume when the file gives none."""
        return 1 << (self.stored_bits - 1)

    @property
    def span(self) -> tuple[int, int]:
        """Smallest and largest stored code; narrower than `stored_bits` for a 3-bit grid."""
        half = 1 << (self.nominal_bits - 1)
        low = self.zero_point - half if self.symmetric else 0
        return low, low + 2 * half - 1

    def refusal(self, shape: tuple[int, int]) -> str | None:
        """Why a matrix (rows, columns) cannot take this grid; None when it can."""
        return row_refusal(shape, self.row_multiple)

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes of codes, scales and zero points in the file, padding of the last block included."""
        check_shape(self, shape)
        rows, blocks = shape[0], self.blocks(shape[1])
        zero_points = 0 if self.symmetric else self._zero_bytes(blocks)
        return rows * (blocks * (self._blob + 2) + zero_points)

    def loaded_nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes that a multiplication reads: the operator's scales are float32 where the file's are float16."""
        return self.nbytes(shape) + 2 * shape[0] * self.blocks(shape[1])

    def blocks(self, columns: int) -> int:
        """Blocks of a row, a short last one included."""
        return -(-columns // self.block)

    def quantize(self, weights: F32, importance: F32 | None = None) -> Quantized:
        """Codes and scales by the search of :mod:`edgekit.grids.search`; errors as :class:`Grid`."""
        matrix = check_weights(self, weights, LARGEST)
        found = search(matrix, check_importance(importance, matrix.shape[1]), self._codes())
        low = self.span[0]
        codes: NDArray[Any] = found.codes + np.uint8(low) if low else found.codes
        fields: dict[str, NDArray[Any]] = {"codes": codes, "scales": found.scales}
        if not self.symmetric:
            fields["zero_points"] = found.zero_points
        return Quantized(self.name, (matrix.shape[0], matrix.shape[1]), fields)

    def dequantize(self, quantized: Quantized) -> F32:
        """(code - zero point) * scale, float32 (rows, columns); errors as :meth:`pack`."""
        codes, halves, zero_points = self._fields(quantized)
        rows, columns = quantized.shape
        scales = halves.astype(np.float32)
        out = np.empty((rows, columns), np.float32)

        def work(chunk: slice) -> None:
            levels = self._padded(codes[chunk], zero_points[chunk]).astype(np.float32)
            levels -= zero_points[chunk, :, None]
            with np.errstate(all="ignore"):
                levels *= scales[chunk, :, None]
            out[chunk] = levels.reshape(len(levels), -1)[:, :columns]

        each_chunk(rows, max(1, _CHUNK // columns), work)
        return out

    def pack(self, quantized: Quantized) -> dict[str, NDArray[Any]]:
        """`B` uint8 (rows, blocks, bytes), or `data` (rows, bytes) for an embedding; `scales`; `zero_points`.

        4-bit codes lie two in a byte, the lower nibble first, and so do 4-bit zero points along a row. The padding of a
        short last block is its zero point, an unused last nibble of zero points is 0. Errors as :class:`Grid`.
        """
        codes, scales, zero_points = self._fields(quantized)
        rows, blocks = scales.shape
        out = np.empty((rows, blocks * self._blob), np.uint8)

        def work(chunk: slice) -> None:
            padded = self._padded(codes[chunk], zero_points[chunk])
            out[chunk] = join(padded.reshape(len(padded), -1), 1, self.stored_bits)

        each_chunk(rows, max(1, _CHUNK // (blocks * self.block)), work)
        packed = {"data": out} if self.embedding else {"B": out.reshape(rows, blocks, self._blob)}
        packed["scales"] = scales
        if not self.symmetric:
            spare = np.zeros((rows, self._zero_bytes(blocks) * (8 // self.stored_bits) - blocks), np.uint8)
            packed["zero_points"] = join(np.hstack([zero_points, spare]), 1, self.stored_bits)
        return packed

    def unpack(self, packed: Arrays, shape: tuple[int, int]) -> Quantized:
        """Fields of the arrays in a file, of any shape; padding is dropped; errors as :class:`Grid`."""
        check_shape(self, shape)
        (rows, columns), blocks = shape, self.blocks(shape[1])
        data = stored(packed, "data" if self.embedding else "B", np.uint8, rows * blocks * self._blob)
        codes = np.empty((rows, columns), np.uint8)

        def work(chunk: slice) -> None:
            codes[chunk] = split(data.reshape(rows, -1)[chunk], 1, self.stored_bits)[:, :columns]

        each_chunk(rows, max(1, _CHUNK // columns), work)
        self._check_span(codes)
        fields = {"codes": codes, "scales": stored(packed, "scales", np.float16, rows * blocks).reshape(rows, blocks)}
        if not self.symmetric:
            zero_points = stored(packed, "zero_points", np.uint8, rows * self._zero_bytes(blocks))
            fields["zero_points"] = split(zero_points.reshape(rows, -1), 1, self.stored_bits)[:, :blocks].copy()
            self._check_span(fields["zero_points"])
        elif "zero_points" in packed:
            raise FileFormatError("'zero_points' were given", expected=f"none, because {self.name} is symmetric")
        return Quantized(self.name, shape, fields)

    @property
    def _blob(self) -> int:
        """Bytes of one block's codes."""
        return self.block * self.stored_bits // 8

    def _zero_bytes(self, blocks: int) -> int:
        """Bytes of a row's zero points."""
        return -(-blocks * self.stored_bits // 8)

    def _codes(self) -> Codes:
        levels = 1 << self.nominal_bits
        fine = self.nominal_bits == 8
        if not self.symmetric:
            return Codes(self.block, levels - 1, None, _FINE[False] if fine else _RANGE_STEPS)
        middle = (levels - 1) / 2
        steps = tuple(sign * middle * share for sign in (1, -1) for share in (_FINE[True] if fine else _PEAK_STEPS))
        return Codes(self.block, levels - 1, levels // 2, steps)

    def _fields(self, quantized: Quantized) -> tuple[U8, F16, U8]:
        """Codes (rows, columns), scales and zero points (rows, blocks), checked."""
        check_grid(self, quantized)
        rows, columns = quantized.shape
        per_block = (rows, self.blocks(columns))
        codes = field(quantized, "codes", _U8, quantized.shape, self.span)
        scales = field(quantized, "scales", _F16, per_block, None)
        if self.symmetric:
            return codes, scales, np.full(per_block, self.zero_point, np.uint8)
        return codes, scales, field(quantized, "zero_points", _U8, per_block, self.span)

    def _padded(self, codes: U8, zero_points: U8) -> U8:
        """Codes as (rows, blocks, block), a short last block filled with its zero point."""
        rows, columns = codes.shape
        if missing := -columns % self.block:
            codes = np.hstack([codes, np.repeat(zero_points[:, -1:], missing, axis=1)])
        return codes.reshape(rows, -1, self.block)

    def _check_span(self, codes: U8) -> None:
        low, high = self.span
        if codes.min() < low or codes.max() > high:
            raise FileFormatError(
                f"the stored codes run from {codes.min()} to {codes.max()}", expected=f"{low} to {high} for {self.name}"
            )


def tied_head(grid: OnnxGrid, packed: Arrays) -> dict[str, NDArray[Any]]:
    """The arrays of the `MatMulNBits` that multiplies by an embedding: views of the memory in `packed`.

    `B` is (vocabulary, blocks, bytes), `scales` and `zero_points` are the embedding's own.

    Raises:
        GridError: `grid` is not an embedding grid.
    """
    if not grid.embedding:
        raise GridError(f"{grid.name} is not an embedding format", expected="a name that begins with 'embed-'")
    arrays = {name: array for name, array in packed.items() if name != "data"}
    return {"B": packed["data"].reshape(*packed["scales"].shape, -1), **arrays}


def _onnx_grids() -> dict[str, OnnxGrid]:
    linear = [OnnxGrid(bits, bits, block, sym) for bits in (8, 4) for sym in (True, False) for block in (32, 64, 128)]
    three = [OnnxGrid(3, 4, block, sym) for sym in (True, False) for block in (32, 64)]
    three += [OnnxGrid(3, 4, block, symmetric=True, embedding=True) for block in (32, 64)]
    tables = [
        OnnxGrid(bits, bits, block, sym, embedding=True)
        for bits in (8, 4)
        for sym in (True, False)
        for block in (32, 64, 128)
    ]
    return {grid.name: grid for grid in (*linear, *three, *tables)}


ONNX_GRIDS: dict[str, OnnxGrid] = _onnx_grids()
"""Every ONNX grid by name."""
