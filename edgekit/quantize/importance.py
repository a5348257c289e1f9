"""How much each input of a linear layer matters: its mean square on calibration text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.spec import Spec
from edgekit.coherence.engine_calls import Progress
from edgekit.engines.base import Ids
from edgekit.errors import BadWeightsError

if TYPE_CHECKING:  # torch takes a second and 180 MiB: only who has a model open needs it
    from edgekit.engines.torch import TorchEngine

Importance = Mapping[str, NDArray[np.float32]]
"""Hugging Face tensor name → (columns,) mean square of the layer's inputs."""


def gather(engine: TorchEngine, spec: Spec, sequences: Sequence[Ids], progress: Progress | None = None) -> Importance:
    """Mean square of every linear layer's inputs over all tokens of `sequences`.

    This is the diagonal of the second moment E[x xᵀ] that llama.cpp's importance matrix holds (its tools/imatrix): the
    squared error of a layer's output is about Σ_j E[x_j²] Δw_j² when inputs are uncorrelated. A tied embedding is
    weighed as the head that it also is.

    Args:
        engine: the full-precision model.
        spec: its description.
        sequences: calibration text, token ids (T,) each.
        progress: called after every sequence.
    """
    names = {tensor.hf: tensor.hf for tensor in spec.tensors if tensor.rule.kind in ("linear", "head")}
    if spec.tied:
        head = next(rule for rule in spec.family.tensors if rule.kind == "head")
        embedding = next(tensor for tensor in spec.tensors if tensor.rule.kind == "embedding")
        names[head.hf] = embedding.hf
    squares = engine.input_squares(list(names), sequences, progress or (lambda _done, _total: None))
    return {names[name]: square for name, square in squares.items()}


def finite(importance: Importance) -> Importance:
    """The same.

    Raises:
        BadWeightsError: a mean square is NaN, or more than a float32 holds; names the layer.
    """
    for name, squares in importance.items():
        if not np.isfinite(squares).all():
            at = int((~np.isfinite(squares)).argmax())
            raise BadWeightsError(
                f"the mean square of input {at} of {name} is {squares[at]} on the calibration text",
                expected="a finite number",
                remedy="calibrate with another text, or use an earlier checkpoint",
            )
    return importance
