"""What is left of a model at fewer and fewer bits: the survival curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edgekit.checkpoint.spec import Spec
from edgekit.coherence.metrics import Coherence
from edgekit.engines.base import F32
from edgekit.grids import get

GRIDS = ("F16", "Q8_0", "Q6_K", "Q5_0", "int4-sym-b32", "int3-sym-b32", "Q2_0")
"""From 16 to 2 bits, blocks of 32 where there are some: what a model's rows cannot take is left out."""

ARTEFACTS = (
    "F16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_0", "IQ4_NL", "Q3_K", "Q2_0", "int8-sym-b32", "int4-sym-b32",
    "int3-sym-b32",
)  # fmt: skip
"""Each container's own, for real files: edgekit writes ONNX at 8, 4 and 3 bits, the last in 4 bits a code."""
SHOWN = 64
"""Tokens of a sample."""


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model with its linear layers in one format; embedding, head and norms in full precision.

    In torch the activations are, too; in a real file they are what its engine makes of them.
    """

    grid: str
    bits: int
    """Of a code: what the format can tell apart."""
    stored_bits: float
    """A weight in the file, scales included; 3-bit codes of ONNX take 4 bits each."""
    error: float
    """‖ΔW‖ / ‖W‖ over all linear layers."""
    coherence: Coherence
    """Against the full-precision reference."""
    sample: str
    """What it says to the first prompt, greedily."""
    noise: Coherence | None = None
    """The same with Gaussian noise of the same size in each matrix instead of the format's rounding."""
    engine: str = "torch"
    """That was measured: "torch" computes with the rounded weights; "llama.cpp" and "onnxruntime" run a real file."""
    nbytes: int | None = None
    """Of that file's weights; None in torch."""


class Survival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's curve."""

    schema_version: int = 1
    model: str
    model_sha256: str
    reference: str
    """Whose full-precision answers it is compared with."""
    text: str
    """What it was judged on, in words."""
    prompt: str
    original: str
    """What the reference says to the prompt."""
    points: tuple[Point, ...]


def rounded(weights: F32, grid: str, importance: F32 | None) -> F32:
    """The nearest weights that the format can hold, scales searched with importance.

    Raises:
        GridError: the format cannot hold a matrix of this shape.
    """
    return get(grid).dequantize(get(grid).quantize(weights, importance))


def noisy(weights: F32, other: F32, seed: int | Sequence[int]) -> F32:
    """`weights` with Gaussian noise as large as their distance from `other`, in the Frobenius norm."""
    noise = np.random.default_rng(seed).standard_normal(weights.shape, dtype=np.float32)
    size = float(np.linalg.norm(noise))
    share = float(np.linalg.norm((other - weights).astype(np.float64))) / size if size else 0.0
    found: F32 = weights + np.float32(share) * noise
    return found


def split(name: str) -> tuple[str, str]:
    """Container and format of what a user calls "gguf:Q4_0"; a format without a container is computed in torch."""
    container, _, grid = name.rpartition(":")
    return container, grid


def with_artefacts(grids: Sequence[str]) -> tuple[str, ...]:
    """The formats, and each of them as a real file of its container, too.

    Raises:
        GridError: one is unknown.
    """
    files = (name if split(name)[0] else f"{get(name).container}:{name}" for name in grids)
    return tuple(dict.fromkeys((*grids, *files)))


def shapes_of(spec: Spec) -> dict[str, tuple[int, int]]:
    """Name → (outputs, inputs) of every linear layer."""
    return {tensor.hf: (tensor.shape[0], tensor.shape[1]) for tensor in spec.tensors if tensor.rule.kind == "linear"}


def bits_of(grid: str, shapes: Mapping[str, tuple[int, int]]) -> float:
    """Bits a weight of these matrices, scales included."""
    whole = sum(get(grid).nbytes(shape) for shape in shapes.values())
    return 8 * whole / sum(rows * columns for rows, columns in shapes.values())
