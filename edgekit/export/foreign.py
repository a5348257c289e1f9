"""Models whose family edgekit does not know: the full-precision file that another exporter wrote is the source.

Such a file says which tensors there are and what shapes they have, but not what they mean. What is quantized is
decided by the file's format (:mod:`edgekit.export.foreign_gguf`, :mod:`edgekit.export.foreign_onnx`); all else stays as
it is. Everything here is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgekit.checkpoint.architectures import MATRICES, Kind
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.foreign import foreign_tensor
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import ConverterError
from edgekit.export.digests import Digests
from edgekit.options import Container
from edgekit.quantize.choose import choose
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Entry, Plan
from edgekit.targets import Target

if TYPE_CHECKING:
    from edgekit.coherence.engine_calls import Progress
    from edgekit.engines.base import Ids
    from edgekit.engines.torch import TorchEngine

Tick = Callable[[str], None]
_SAME = 2e-3
"""Largest relative difference of a column's sum of squares; rounding to float16 makes 1e-3."""


@dataclass(frozen=True)
class Stored:
    """A tensor of the converted file."""

    name: str
    shape: tuple[int, ...]
    """Rows (outputs) first."""
    kind: Kind
    dtype: str
    """As it is stored now: "F16", "F32"."""
    nbytes: int


class Converted(Protocol):
    """A full-precision file in the container that is to be shipped, made by somebody else's exporter."""

    @property
    def container(self) -> Container:
        """What it is: "gguf" or "onnx"."""

    @property
    def path(self) -> Path:
        """The .gguf or .onnx file, which the engine can run as it is."""

    def tensors(self) -> Sequence[Stored]:
        """All tensors that hold weights, in the file's order."""

    def read(self, name: str) -> F32:
        """A matrix (rows, columns), rows being outputs.

        Raises:
            BadWeightsError: it holds NaN or infinity.
        """

    def write(self, plan: Plan, path: Path, importance: Importance, tick: Tick) -> Digests:
        """Write the file again with the plan's matrices quantized; see `check_bytes` for what is returned."""

    def check_bytes(self, plan: Plan, path: Path, planned: Digests, tick: Tick) -> None:
        """Compare every quantized tensor of `path`, decoded by the official reader, with what was planned.

        Raises:
            ParityError: names the first tensor that differs.
        """

    def write_dequantized(self, plan: Plan, written: Path, path: Path) -> None:
        """Write to `path` the full-precision file with the weights that `written`'s codes stand for."""


@dataclass(frozen=True)
class Foreign:
    """A converted model, ready to be planned and quantized."""

    converted: Converted
    spec: Spec
    """As the file lays it out, see :func:`spec_of`."""
    key: str
    """Hash of the converted files' content."""
    scratch: Path
    """A folder for files that are needed on the way."""


def spec_of(converted: Converted, checkpoint: Checkpoint, names: dict[str, str]) -> Spec:
    """The model as the file lays it out.

    Args:
        converted: the file.
        checkpoint: gives the sizes.
        names: name in the file → name in the checkpoint, see :func:`match`; others keep the file's name.
    """
    tensors = [
        foreign_tensor(stored.name, stored.shape, stored.kind, hf=names.get(stored.name, stored.name))
        for stored in converted.tensors()
    ]
    tied = not any(tensor.rule.kind == "head" for tensor in tensors)
    return replace(checkpoint.spec, tensors=tuple(tensors), tied=tied)


def plan_of(converted: Converted, spec: Spec, target: Target, bits: int) -> Plan:
    """The plan of a file's matrices; what is no matrix is in it as it is stored.

    Raises:
        OptionError, GridError: as :func:`edgekit.quantize.choose.choose`.
        ConverterError: the file has no matrix that can be quantized.
    """
    matrices = replace(spec, tensors=tuple(t for t in spec.tensors if t.rule.matrix))
    if not any(tensor.rule.kind == "linear" for tensor in matrices.tensors):
        raise ConverterError(f"{converted.path} has no linear layer that could be quantized")
    plan = choose(matrices, target, converted.container, bits, portable=True)
    chosen = {entry.tensor.gguf: entry for entry in plan.entries}
    stored = {item.name: item for item in converted.tensors()}
    entries = [chosen.get(tensor.gguf) or _kept(tensor, stored[tensor.gguf]) for tensor in spec.tensors]
    return replace(plan, entries=tuple(entries))


def _kept(tensor: TensorSpec, stored: Stored) -> Entry:
    bits = 8 * stored.nbytes // max(1, tensor.parameters)
    reason = "kept as converted: not known to be a linear layer" if len(tensor.shape) > 1 else ""
    return Entry(tensor, bits, stored.dtype, stored.nbytes, reason)


def match(converted: Converted, checkpoint: Checkpoint, tick: Tick = lambda _: None) -> dict[str, str]:
    """Which matrix of the file is which of the checkpoint, recognised by values: name in the file → in the checkpoint.

    Two are the same when every column has the same sum of squares: converters reorder rows (rotary pairs) and
    transpose, but leave the inputs of a layer in their order. What two matrices of the checkpoint could be is left out,
    as is what an exporter split, fused or rescaled: such a matrix is quantized without importance.
    """
    originals: dict[tuple[int, ...], list[tuple[str, F32]]] = {}
    for tensor in checkpoint.spec.tensors:
        if len(tensor.shape) == 2:
            weights = checkpoint.read(tensor)
            originals.setdefault(tensor.shape, []).append((tensor.hf, _columns(weights)))
            originals.setdefault(tensor.shape[::-1], []).append((tensor.hf, _columns(weights.T)))
            tick(tensor.hf)
    found = {}
    for stored in converted.tensors():
        if stored.kind in MATRICES and stored.shape in originals:
            ours = _columns(converted.read(stored.name))
            same = {name for name, theirs in originals[stored.shape] if np.allclose(ours, theirs, rtol=_SAME, atol=0)}
            if len(same) == 1:
                found[stored.name] = same.pop()
    return found


def _columns(weights: F32) -> F32:
    """Sum of squares of each column (columns,)."""
    sums: F32 = np.einsum("ij,ij->j", weights, weights, dtype=np.float64).astype(np.float32)
    return sums


def gather(engine: TorchEngine, spec: Spec, sequences: Sequence[Ids], progress: Progress | None = None) -> Importance:
    """Importance of the matrices that :func:`match` recognised, by the checkpoint's name; see quantize.importance.

    A tied embedding is weighed as the head that it also is.
    """
    layers = engine.layers()
    wanted = {tensor.hf: tensor.hf for tensor in spec.tensors if tensor.hf in layers}
    embeddings = [tensor.hf for tensor in spec.tensors if tensor.rule.kind == "embedding"]
    if spec.tied and embeddings and (head := engine.output_layer()) is not None:
        wanted[head] = embeddings[0]
    squares = engine.input_squares(list(wanted), sequences, progress or (lambda _done, _total: None))
    return {wanted[name]: square for name, square in squares.items()}
