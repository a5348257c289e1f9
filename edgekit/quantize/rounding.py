"""Rounding block by block: every matrix by GPTQ, on what the rounded blocks before it give (--effort good)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.engines.base import F32
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.quantize.blocks import Blocks
from edgekit.quantize.gptq import DAMPING, round_matrix

_TIED_DAMPING = 0.1
"""Measured: docs/experiments/rounding.md."""
Read = Callable[[str], F32]
"""Tensor name → full-precision weights (outputs, inputs)."""


def round_block(
    blocks: Blocks, layer: int, grids: Mapping[str, str], read: Read, weights: Mapping[str, NDArray[np.float32]]
) -> dict[str, Quantized]:
    """The block's matrices on their grids. The calibration text has then passed the rounded block.

    Matrices are rounded in the order in which the block uses them; those that read the same input share its second
    moment but for the tokens' weights.

    Args:
        blocks: at this layer.
        layer: its number.
        grids: tensor name → grid, for every matrix of the block.
        read: the full-precision weights.
        weights: tensor name → one weight for each token; see :mod:`edgekit.quantize.curvature`.

    Raises:
        BadWeightsError: an activation or a weight is NaN or infinite.
    """
    found: dict[str, Quantized] = {}
    with blocks.borrowed(layer):
        for group in blocks.groups(layer):
            inputs = blocks.inputs(layer, group[0])
            for name in group:
                found[name] = round_matrix(read(name), second_moment(inputs, weights.get(name)), grids[name])
                blocks.put(layer, name, get(grids[name]).dequantize(found[name]))
        blocks.advance(layer)
    return found


def round_output(
    inputs: torch.Tensor, weights: NDArray[np.float32], grid: str, matrix: F32, *, tied: bool
) -> Quantized:
    """The matrix that makes the logits on its grid.

    Args:
        inputs: what it reads, (tokens, hidden), in the full-precision model.
        weights: one weight for each token.
        grid: its grid.
        matrix: (vocabulary, hidden).
        tied: whether it is the embedding as well. An embedding's rows are inputs, for which every column counts about
            the same: damping adds that to what the logits need.
    """
    damping = _TIED_DAMPING if tied else DAMPING
    return round_matrix(matrix, second_moment(inputs, weights), grid, refinements=0, damping=damping)


def second_moment(inputs: torch.Tensor, weights: NDArray[np.float32] | None) -> F32:
    """E[g x xᵀ], (inputs, inputs), of inputs (tokens, inputs) and the tokens' weights g."""
    weighed = inputs if weights is None else inputs * torch.from_numpy(weights)[:, None]
    found: F32 = (weighed.t() @ inputs / len(inputs)).numpy()
    return found
