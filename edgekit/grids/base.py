"""What a grid is: one number format, from weights to codes to bytes and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix as its format's fields (codes, scales, …), each a numpy array; meaning is the grid's."""

    grid: str
    shape: tuple[int, int]
    """Rows (outputs) and columns (inputs) of the weight matrix."""
    fields: Arrays


class Grid(Protocol):
    """One number format. Stateless; numpy in, numpy out."""

    @property
    def name(self) -> str:
        """As in the plan, for example "Q4_0" or "int4-sym-b32"."""

    @property
    def container(self) -> str:
        """Which files can hold it: "gguf" or "onnx"."""

    @property
    def nominal_bits(self) -> int:
        """Bits of one code: 3 for Q3_K, 4 for Q4_0, 16 for F16."""

    @property
    def stored_bits(self) -> int:
        """Bits one code takes in the file (an ONNX 3-bit code is stored in 4)."""

    @property
    def block(self) -> int:
        """Weights that share a scale."""

    @property
    def row_multiple(self) -> int:
        """A row's length must be divisible by this."""

    def refusal(self, shape: tuple[int, int]) -> str | None:
        """Why a matrix (rows, columns) cannot take this grid, as a clause; None when it can."""

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes the packed matrix takes in the file, scales and zero points included."""

    def quantize(self, weights: F32, importance: F32 | None = None) -> Quantized:
        """Nearest codes with scale search; `importance` (columns,) weighs the squared error of each input.

        Raises:
            GridError: the shape does not suit the format, or `importance` is not one value for each column.
            BadWeightsError: NaN, infinity, or a weight beyond what the format's scales can hold.
            MissingDependencyError: the quantizer of a GGUF type is not installed.
        """

    def dequantize(self, quantized: Quantized) -> F32:
        """The weights (rows, columns) that an engine computes with."""

    def pack(self, quantized: Quantized) -> dict[str, NDArray[Any]]:
        """The arrays exactly as the file stores them; bit-exact inverse of `unpack`.

        Raises:
            GridError: a field is missing, of the wrong shape, or holds a code outside the format's range.
        """

    def unpack(self, packed: Arrays, shape: tuple[int, int]) -> Quantized:
        """Fields from what a file stores.

        Raises:
            GridError: the format cannot hold a matrix of `shape`.
            FileFormatError: an array is missing, of the wrong size, or holds a code the format does not have.
        """
