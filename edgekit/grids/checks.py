"""What every grid checks before it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadWeightsError, FileFormatError, GridError
from edgekit.grids.base import F32, Grid, Quantized

_LEAST_IMPORTANCE = np.float32(1e-6)
"""Share of the mean below which an importance is lifted: a block of zeros would have no best scale."""


def row_refusal(shape: tuple[int, int], multiple: int) -> str | None:
    """Why a (rows, columns) matrix does not split into whole blocks; None when it does."""
    rows, columns = shape
    if rows < 1 or columns < 1:
        return f"a matrix of {rows} x {columns} has no weights"
    if columns % multiple:
        return f"rows of {columns} weights are not divisible by {multiple}"
    return None


def check_shape(grid: Grid, shape: tuple[int, int]) -> None:
    """Raise GridError when `grid` refuses `shape`."""
    if reason := grid.refusal(shape):
        raise GridError(f"{grid.name} cannot hold the matrix: {reason}", remedy="choose another format for it")


def check_weights(grid: Grid, weights: NDArray[Any], largest: float) -> F32:
    """Contiguous float32 weights (rows, columns), each finite and at most `largest` in magnitude.

    Raises:
        GridError: not a matrix, or a shape that the grid refuses.
        BadWeightsError: NaN, infinity or a magnitude beyond `largest`.
    """
    if weights.ndim != 2:
        raise GridError(f"an array of {weights.ndim} dimensions was given to {grid.name}", expected="rows and columns")
    check_shape(grid, (weights.shape[0], weights.shape[1]))
    matrix = np.ascontiguousarray(weights, dtype=np.float32)
    top = np.maximum(matrix.max(), -matrix.min())  # NaN stays NaN in max and min
    if not np.isfinite(top):
        raise BadWeightsError("the weights hold NaN or infinity", remedy="repair the checkpoint")
    if top > largest:
        raise BadWeightsError(
            f"a weight has magnitude {top:.6g}",
            expected=f"at most {largest:.6g}, the most that {grid.name} takes",
            remedy="choose F32 for this tensor or rescale it",
        )
    return matrix


def check_importance(importance: NDArray[Any] | None, columns: int) -> F32:
    """Importance (columns,) divided by its mean and lifted to at least a millionth of it; ones when none is given.

    Raises:
        GridError: not one value for each column.
        BadWeightsError: a negative, infinite or NaN value.
    """
    if importance is None:
        return np.ones(columns, np.float32)
    if importance.shape != (columns,):
        raise GridError(f"importance has shape {importance.shape}", expected=f"({columns},), one value for each column")
    values = importance.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise BadWeightsError("importance holds a negative, infinite or NaN value", remedy="collect it again")
    peak = values.max()
    if peak == 0:
        return np.ones(columns, np.float32)
    shares = values / peak  # first by the peak, so that the mean of huge values stays finite
    floored: F32 = np.maximum(shares / shares.mean(), _LEAST_IMPORTANCE).astype(np.float32)
    return floored


def stored(packed: Mapping[str, NDArray[Any]], name: str, dtype: type[np.generic], count: int) -> NDArray[Any]:
    """The flat array `name` of a file, of `dtype` and `count` values.

    Raises:
        FileFormatError: missing, of another type or of another size.
    """
    if name not in packed:
        raise FileFormatError(f"the array {name!r} is missing", expected=f"the arrays {name!r} beside {sorted(packed)}")
    array = packed[name]
    if array.dtype != dtype or array.size != count:
        raise FileFormatError(
            f"{name!r} holds {array.size} values of {array.dtype}", expected=f"{count} values of {np.dtype(dtype)}"
        )
    return np.ascontiguousarray(array).reshape(-1)


def field(
    quantized: Quantized, name: str, dtype: np.dtype[Any], shape: tuple[int, int], span: tuple[int, int] | None
) -> NDArray[Any]:
    """The field `name` of `dtype` and `shape`, its values inside `span` (both ends included) when there is one.

    Raises:
        GridError: missing, of another type or shape, or with a value outside `span`.
    """
    array = quantized.fields.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise GridError(f"field {name!r} of {quantized.grid} is {found}", expected=f"{dtype} of shape {shape}")
    if span is not None and array.size and (array.min() < span[0] or array.max() > span[1]):
        raise GridError(
            f"field {name!r} of {quantized.grid} runs from {array.min()} to {array.max()}",
            expected=f"values from {span[0]} to {span[1]}",
        )
    return np.ascontiguousarray(array)


def check_grid(grid: Grid, quantized: Quantized) -> None:
    """Raise GridError when `quantized` belongs to another grid."""
    if quantized.grid != grid.name:
        raise GridError(f"a matrix quantized to {quantized.grid} was given to {grid.name}", expected=grid.name)
    check_shape(grid, quantized.shape)
