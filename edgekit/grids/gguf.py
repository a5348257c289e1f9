"""The grids of GGUF files, one for each type of `ggml_types.TYPES`.

Every field lies as (rows, values per row): `codes` and `scales` of a Q4_0 matrix (rows, columns) are
(rows, columns) and (rows, columns / 32). float16 fields keep their bits. A packed matrix is one array, `data`,
uint8 (rows, bytes per row).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadWeightsError
from edgekit.grids import ggml
from edgekit.grids.base import F32, Arrays, Quantized
from edgekit.grids.checks import check_grid, check_importance, check_shape, check_weights, field, row_refusal, stored
from edgekit.grids.ggml_types import TYPES, GgmlType
from edgekit.grids.layout import HALF, LAYOUTS, Layout
from edgekit.grids.parallel import each_chunk
from edgekit.grids.search import Codes, search
from edgekit.grids.superblock import SUPERBLOCKS

_CHUNK = 1 << 17
"""Weights unpacked or computed at a time: their arrays stay in the processor's cache."""
_LARGEST = {"F32": float(np.finfo(np.float32).max), "BF16": 3.3895313892515355e38, "F16": 65504.0}
_LARGEST_SCALED = 32752.0
"""Half of float16's maximum, so that refitted float16 scales and minima stay finite."""


@dataclass(frozen=True)
class GgufGrid:
    """A GGUF tensor type as a grid; satisfies :class:`edgekit.grids.base.Grid`."""

    kind: GgmlType
    layout: Layout
    container: str = "gguf"

    @property
    def name(self) -> str:
        """The type's name in a GGUF file."""
        return self.kind.name

    @property
    def nominal_bits(self) -> int:
        """Bits of one code."""
        return self.kind.nominal_bits

    @property
    def stored_bits(self) -> int:
        """As `nominal_bits`: GGUF blocks hold no unused bits."""
        return self.kind.nominal_bits

    @property
    def block(self) -> int:
        """Weights that share a float16 scale (1 for a type without scales)."""
        return self.kind.block

    @property
    def row_multiple(self) -> int:
        """As `block`: a row is a whole number of blocks."""
        return self.kind.block

    def refusal(self, shape: tuple[int, int]) -> str | None:
        """Why a matrix (rows, columns) cannot take this type; None when it can."""
        return row_refusal(shape, self.row_multiple)

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes of the matrix in the file, before the padding between tensors."""
        check_shape(self, shape)
        return shape[0] * shape[1] // self.kind.block * self.kind.block_bytes

    def quantize(self, weights: F32, importance: F32 | None = None) -> Quantized:
        """Codes and scales by ggml's quantizer; F32, F16 and BF16 round to nearest, Q2_0 has a search of its own.

        Without `importance` every input weighs the same, which makes ggml search scales for the types (Q4_0, Q4_1,
        Q5_0, Q5_1) that it would otherwise take from the largest weight. Q8_0 and the plain types ignore importance.
        Errors as :class:`Grid`.
        """
        matrix = check_weights(self, weights, _LARGEST.get(self.name, _LARGEST_SCALED))
        shape = (matrix.shape[0], matrix.shape[1])
        importance = check_importance(importance, shape[1])
        if self.name == "Q2_0":
            return _quantize_q2_0(self.name, matrix, importance)
        if self.kind.block == 1:
            return self.unpack({"data": _cast(self.name, matrix)}, shape)
        quantized = self.unpack({"data": ggml.quantize(self.kind, matrix, importance)}, shape)
        _check_scales(quantized)
        return quantized

    def dequantize(self, quantized: Quantized) -> F32:
        """Weights float32 (rows, columns), bit for bit those of gguf-py and of ggml's `to_float`.

        Raises:
            GridError: `quantized` is of another grid or its fields do not fit it.
        """
        fields = self._blocks(quantized)
        out = np.empty((self._count(quantized.shape), self.kind.block), np.float32)

        def work(chunk: slice) -> None:
            with np.errstate(all="ignore"):  # any bytes are a block: NaN and infinite scales decode as such
                out[chunk] = self.layout.values({name: array[chunk] for name, array in fields.items()})

        each_chunk(len(out), _CHUNK // self.kind.block, work)
        return out.reshape(quantized.shape)

    def pack(self, quantized: Quantized) -> dict[str, NDArray[Any]]:
        """`data`: uint8 (rows, bytes per row), as :class:`Grid`."""
        fields = self._blocks(quantized)
        out = np.empty((self._count(quantized.shape), self.kind.block_bytes), np.uint8)

        def work(chunk: slice) -> None:
            out[chunk] = self.layout.write({name: array[chunk] for name, array in fields.items()})

        each_chunk(len(out), _CHUNK // self.kind.block, work)
        return {"data": out.reshape(quantized.shape[0], -1)}

    def unpack(self, packed: Arrays, shape: tuple[int, int]) -> Quantized:
        """Fields of `data` uint8 of any shape with the right number of bytes; errors as :class:`Grid`."""
        blocks = stored(packed, "data", np.uint8, self.nbytes(shape)).reshape(-1, self.kind.block_bytes)
        fields = {part.name: np.empty((len(blocks), part.count), part.dtype) for part in self.layout.fields}

        def work(chunk: slice) -> None:
            for array, values in zip(fields.values(), self.layout.read(blocks[chunk]), strict=True):
                array[chunk] = values

        each_chunk(len(blocks), _CHUNK // self.kind.block, work)
        return Quantized(self.name, shape, {name: array.reshape(shape[0], -1) for name, array in fields.items()})

    def _count(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] // self.kind.block

    def _blocks(self, quantized: Quantized) -> dict[str, NDArray[Any]]:
        """The checked fields, each (blocks, values per block)."""
        check_grid(self, quantized)
        rows, columns = quantized.shape
        per_row = columns // self.kind.block
        return {
            part.name: field(quantized, part.name, part.dtype, (rows, per_row * part.count), part.span).reshape(
                -1, part.count
            )
            for part in self.layout.fields
        }


def _check_scales(quantized: Quantized) -> None:
    halves = [array for array in quantized.fields.values() if array.dtype == HALF]
    if not all(np.isfinite(array).all() for array in halves):
        raise BadWeightsError(
            f"the weights make a float16 scale of {quantized.grid} overflow", remedy="choose F32 for this tensor"
        )


def _cast(name: str, matrix: F32) -> NDArray[np.uint8]:
    """Nearest value of a plain type, ties to even, as bytes."""
    if name == "F32":
        return matrix.astype("<f4").view(np.uint8)
    if name == "F16":
        return matrix.astype("<f2").view(np.uint8)
    words = matrix.view(np.uint32)
    even = (words >> 16) & 1
    return ((words + 0x7FFF + even) >> 16).astype("<u2").view(np.uint8)


def _quantize_q2_0(name: str, matrix: F32, importance: F32) -> Quantized:
    """Four levels -1, 0, 1, 2 times a signed scale.

    ggml's own quantizer for this type uses three of the levels and takes the scale from the largest weight; the
    search here lowers the squared error about fourfold on normally distributed weights.
    """
    found = search(matrix, importance, Codes(block=64, top=3, zero=1, steps=_Q2_STEPS))
    codes = found.codes.view(np.int8) - np.int8(1)
    return Quantized(name, (matrix.shape[0], matrix.shape[1]), {"codes": codes, "scales": found.scales})


_Q2_STEPS = tuple(sign * level for sign in (1, -1) for level in (0.7, 0.95, 1.2, 1.45, 1.7, 2.0, 2.3, 2.7))

_LAYOUTS = {**LAYOUTS, **SUPERBLOCKS}
GGUF_GRIDS: dict[str, GgufGrid] = {name: GgufGrid(kind, _LAYOUTS[name]) for name, kind in TYPES.items()}
"""Every GGUF grid by name."""
