"""Rounding block by block: every matrix by GPTQ, on what the rounded blocks before it give (--effort good and best)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.engines.base import F32
from edgekit.errors import BadWeightsError, GridError
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.quantize.blocks import Blocks
from edgekit.quantize.gptq import DAMPING, round_matrix
from edgekit.quantize.learned import Text, learn
from edgekit.quantize.rounded import Ways

_TIED_DAMPING = 0.1
"""Measured: docs/experiments/rounding.md."""
_TOKENS = 2048
"""Weighed at a time, so that no second copy of the inputs is made."""
Read = Callable[[str], F32]
"""Tensor name → full-precision weights (outputs, inputs)."""


def round_block(
    blocks: Blocks,
    layer: int,
    grids: Mapping[str, str],
    read: Read,
    weights: Mapping[str, NDArray[np.float32]],
    iterations: int = 0,
    ways: Ways | None = None,
) -> dict[str, Quantized]:
    """The block's matrices on their grids. The calibration text has then passed the rounded block.

    Matrices are rounded in the order in which the block uses them; those that read the same input share its second
    moment but for the tokens' weights.

    Args:
        blocks: at this layer.
        layer: its number.
        grids: tensor name → grid, for the matrices of the block that are rounded; the others stay as they are.
        read: the full-precision weights.
        weights: tensor name → one weight for each token; see :mod:`edgekit.quantize.curvature`.
        iterations: of learned rounding after GPTQ, see :mod:`edgekit.quantize.learned`; 0: none.
        ways: gets who chose the codes of each matrix.

    Raises:
        BadWeightsError: an activation, a moment or a weight is NaN or infinite; names the layer.
    """
    found: dict[str, Quantized] = {}
    ways = {} if ways is None else ways
    targets = blocks.outputs(layer) if iterations else []
    with blocks.borrowed(layer):
        groups = blocks.groups(layer)
        for group in [[name for name in group if name in grids] for group in groups]:
            if not group:
                continue
            inputs = blocks.inputs(layer, group[0])
            for name in group:
                with naming(name):
                    moment, own = second_moment(inputs, weights.get(name)), list[int]()
                    found[name] = round_matrix(read(name), moment, grids[name], tell=own.append)
                    ways[name] = {"GPTQ": found[name].shape[0] - own[0], "own": own[0]}
                blocks.put(layer, name, get(grids[name]).dequantize(found[name]))
        if iterations:
            text = Text.of(targets, weights.get(groups[-1][-1]))  # whose output is added to the block's
            with naming(f"block {layer}"):
                start, found = found, learn(found, read, text, partial(blocks.output, layer), iterations=iterations)
            for name, matrix in found.items():
                if matrix is not start[name]:
                    ways[name] = {"learned": matrix.shape[0]}
                blocks.put(layer, name, get(matrix.grid).dequantize(matrix))
        blocks.advance(layer)
    return found


def round_output(
    inputs: torch.Tensor,
    weights: NDArray[np.float32],
    grid: str,
    matrix: F32,
    *,
    tied: bool,
    tell: Callable[[int], None] = lambda _: None,
) -> Quantized:
    """The matrix that makes the logits on its grid.

    Args:
        inputs: what it reads, (tokens, hidden), in the full-precision model.
        weights: one weight for each token.
        grid: its grid.
        matrix: (vocabulary, hidden).
        tied: whether it is the embedding as well. An embedding's rows are inputs, for which every column counts about
            the same: damping adds that to what the logits need.
        tell: see :func:`edgekit.quantize.gptq.round_matrix`.
    """
    damping = _TIED_DAMPING if tied else DAMPING
    return round_matrix(matrix, second_moment(inputs, weights), grid, refinements=0, damping=damping, tell=tell)


def second_moment(inputs: torch.Tensor, weights: NDArray[np.float32] | None) -> F32:
    """E[g x xᵀ], (inputs, inputs), of inputs (tokens, inputs) and the tokens' weights g.

    Raises:
        BadWeightsError: it is more than a float32 holds.
    """
    total = torch.zeros(inputs.shape[1], inputs.shape[1])
    for begin in range(0, len(inputs), _TOKENS):
        part = inputs[begin : begin + _TOKENS]
        weighed = part if weights is None else part * torch.from_numpy(weights[begin : begin + _TOKENS])[:, None]
        total += weighed.t() @ part
    found: F32 = (total / len(inputs)).numpy()
    if not np.isfinite(found).all():
        at = int((~np.isfinite(found.diagonal())).argmax())
        raise BadWeightsError(
            f"the second moment of its inputs holds NaN or infinity, at input {at} for one: "
            f"the largest magnitude on the calibration text is {float(inputs.abs().max()):.3g}",
            expected="less than about 1e19, whose square a float32 holds",
            remedy="calibrate with another text, use an earlier checkpoint, or build with --effort fast",
        )
    return found


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Name the layer in what is said of its numbers."""
    try:
        yield
    except (BadWeightsError, GridError) as error:
        if layer in error.found:
            raise
        raise type(error)(f"{layer}: {error.found}", expected=error.expected, remedy=error.remedy) from error
