"""Formats whose weights are rounded one by one: what rounding that looks at a layer's output needs to know of them.

In such a format a weight is `step * (level - zero) + offset`, where the code picks the level and the step, zero and
offset belong to a group of neighbours. The IQ3 types are not of this kind: one code stands for four weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.grids import get
from edgekit.grids.base import F32, Quantized
from edgekit.grids.gguf import GgufGrid
from edgekit.grids.layout import iq4_nl_levels
from edgekit.grids.onnx import OnnxGrid

_SPANS: Mapping[str, tuple[int, int]] = {
    "Q8_0": (-127, 127), "Q6_K": (-32, 31), "Q5_K": (0, 31), "Q5_1": (0, 31), "Q5_0": (-16, 15), "Q4_K": (0, 15),
    "Q4_1": (0, 15), "Q4_0": (-8, 7), "Q3_K": (-4, 3), "Q2_0": (-1, 2),
}  # fmt: skip
"""Smallest and largest code of the uniform GGUF types; ggml never writes Q8_0's -128."""


@dataclass(frozen=True)
class Scalar:
    """A quantized matrix (rows, columns) as rounding sees it; groups are runs of columns, the last may be short."""

    levels: F32
    """(n,) ascending; level i belongs to the code `first` + i."""
    first: int
    group: int
    """Columns that share a step."""
    steps: F32
    """(rows, groups); may be negative or zero."""
    zeros: F32
    """(rows, groups)."""
    offsets: F32
    """(rows, groups)."""
    free: bool
    """Whether each step is a float of its own in the file, which :func:`with_steps` can change."""

    @property
    def uniform(self) -> bool:
        """Whether the levels are consecutive integers."""
        return bool(np.all(np.diff(self.levels) == 1))


def is_scalar(grid: str) -> bool:
    """Whether :func:`scalar` knows the grid."""
    known = get(grid)
    if isinstance(known, OnnxGrid):
        return True
    return isinstance(known, GgufGrid) and (known.name in _SPANS or known.name == "IQ4_NL")


def scalar(quantized: Quantized) -> Scalar | None:
    """The matrix's levels, steps, zeros and offsets; None for a format that is not of this kind."""
    grid = get(quantized.grid)
    if isinstance(grid, OnnxGrid):
        return _onnx(grid, quantized)
    return _gguf(quantized) if isinstance(grid, GgufGrid) and is_scalar(grid.name) else None


def _onnx(grid: OnnxGrid, quantized: Quantized) -> Scalar:
    low, high = grid.span
    steps = quantized.fields["scales"].astype(np.float32)
    zeros = np.full_like(steps, grid.zero_point)
    if not grid.symmetric:
        zeros = quantized.fields["zero_points"].astype(np.float32)
    return Scalar(_range(low, high), low, grid.block, steps, zeros, np.zeros_like(steps), True)


def _gguf(quantized: Quantized) -> Scalar:
    name, fields = quantized.grid, quantized.fields
    if name == "IQ4_NL":
        levels, first = iq4_nl_levels().astype(np.float32), 0
    else:
        low, high = _SPANS[name]
        levels, first = _range(low, high), low
    steps = _spread(fields, "scales", "sub_scales")
    offsets = np.zeros_like(steps)
    if "mins" in fields:
        offsets = fields["mins"].astype(np.float32)
    elif "sub_mins" in fields:
        offsets = -_spread(fields, "min_scales", "sub_mins")
    free = "sub_scales" not in fields
    return Scalar(levels, first, quantized.shape[1] // steps.shape[1], steps, np.zeros_like(steps), offsets, free)


def _spread(fields: Mapping[str, NDArray[Any]], scales: str, sub_scales: str) -> F32:
    """float32 (rows, groups): a scale for each group, or a super-block's times its sub-blocks' integers."""
    wide: F32 = fields[scales].astype(np.float32)
    if sub_scales not in fields:
        return wide
    narrow = fields[sub_scales]
    product: F32 = np.repeat(wide, narrow.shape[1] // wide.shape[1], axis=1) * narrow.astype(np.float32)
    return product


def _range(low: int, high: int) -> F32:
    return np.arange(low, high + 1, dtype=np.float32)


def with_codes(quantized: Quantized, form: Scalar, index: NDArray[Any]) -> Quantized:
    """The matrix with other codes: `index` (rows, columns) counts the levels from 0."""
    codes = quantized.fields["codes"]
    return _with(quantized, "codes", (index.astype(np.int16) + form.first).astype(codes.dtype))


def storable_steps(quantized: Quantized, steps: F32) -> F32:
    """`steps` rounded as the file stores them, in float32. Steps beyond the type's range become infinite."""
    with np.errstate(over="ignore"):
        stored: F32 = steps.astype(quantized.fields["scales"].dtype).astype(np.float32)
    return stored


def with_steps(quantized: Quantized, steps: F32) -> Quantized:
    """The matrix with other steps (rows, groups), which must be storable; only where :attr:`Scalar.free`."""
    return _with(quantized, "scales", steps.astype(quantized.fields["scales"].dtype))


def _with(quantized: Quantized, name: str, array: NDArray[Any]) -> Quantized:
    return replace(quantized, fields={**quantized.fields, name: np.ascontiguousarray(array)})


__all__ = ["Scalar", "is_scalar", "scalar", "storable_steps", "with_codes", "with_steps"]
