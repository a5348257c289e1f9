"""How much each group of tensors suffers from each format: one true KL divergence a group, the rest by proportion."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.checkpoint.checkpoint import F32, Checkpoint, as_stored
from edgekit.checkpoint.spec import TensorSpec
from edgekit.coherence.distribution import kl_full
from edgekit.engines.base import Ids
from edgekit.errors import BadWeightsError, TextError
from edgekit.grids import get
from edgekit.options import Container
from edgekit.quantize.groups import FORMATS, Group, fitting
from edgekit.quantize.importance import Importance
from edgekit.quantize.sensitivity_map import GroupDamage

if TYPE_CHECKING:  # torch takes a second and 180 MiB: only who has a model open needs it
    from edgekit.engines.torch import TorchEngine

_LOGITS_BYTES = 512 << 20
"""What the sample's logits may take; a larger vocabulary is asked about fewer sequences."""
_SAMPLED = 1 << 18
"""Weights of a tensor on which formats are compared."""


def sample(sequences: Sequence[Ids], most: int, vocab_size: int) -> list[Ids]:
    """The first sequences, at most `most` and as many as bounded memory allows, at least one.

    Raises:
        TextError: there is none with two tokens or more.
    """
    found = [np.asarray(ids, np.int64) for ids in sequences if len(ids) > 1][:most]
    if not found:
        raise TextError("the calibration text has no sequence to measure sensitivity on", expected="two tokens or more")
    longest = max(map(len, found))
    return found[: max(1, _LOGITS_BYTES // (4 * vocab_size * longest))]


def sample_sha256(sequences: Sequence[Ids]) -> str:
    """SHA-256 of the ids as little-endian int32, each sequence after its length."""
    found = hashlib.sha256()
    for ids in sequences:
        found.update(np.array([len(ids), *ids], "<i4").tobytes())
    return found.hexdigest()


@dataclass
class Probe:
    """The full-precision model and what it says about the sample, both got when first needed."""

    engine: Callable[[], TorchEngine]
    checkpoint: Checkpoint
    container: Container
    sequences: Sequence[Ids]
    importance: Importance

    @cached_property
    def _originals(self) -> list[tuple[F32, list[Any]]]:
        """Logits (T, V) of each sequence, and what each layer gave."""
        return [self.engine().record(ids, self._stack) for ids in self.sequences]

    @property
    def _stack(self) -> str:
        """Name of the list of layers, for example "model.layers"."""
        tensor = next(tensor for tensor in self.checkpoint.spec.tensors if tensor.layer is not None)
        return tensor.hf.split(f".{tensor.layer}.")[0]

    def damage(self, group: Group, formats: Sequence[str]) -> GroupDamage:
        """Measure one group.

        Raises:
            BadWeightsError: a tensor, its importance or the model's answer holds NaN or infinity; names the tensor.
            GridError: none of the formats suits the group.
        """
        names = fitting(group, self.container, formats)
        errors = dict.fromkeys(names, 0.0)
        for tensor in group.tensors:
            weights, importance = self._sampled(tensor), self._importance(tensor)
            for name in names:
                errors[name] += _error(weights, name, importance) * tensor.shape[0] / len(weights)
        # The coarsest: weights that lie on one format's grid, as those of a quantized file do, tell nothing in it.
        anchor = max((name for name in names if get(name).nominal_bits == 4), key=errors.__getitem__, default=names[0])
        kl = self._kl(group, anchor) if errors[anchor] > 0 else 0.0
        return GroupDamage(
            tensors=group.names, anchor=anchor, kl=kl, errors=errors, bytes={name: group.nbytes(name) for name in names}
        )

    def _importance(self, tensor: TensorSpec) -> F32 | None:
        found = self.importance.get(tensor.hf)
        if found is not None and not np.isfinite(found).all():
            raise BadWeightsError(
                f"the mean square of the inputs of {tensor.hf} is not finite",
                expected="finite activations on the calibration text",
                remedy="the model overflows on this text: give another --calibration-text",
            )
        return found

    def _sampled(self, tensor: TensorSpec) -> F32:
        """Rows in equal steps."""
        weights = self.checkpoint.read(tensor)
        return np.ascontiguousarray(weights[:: -(-weights.size // _SAMPLED)])

    def _kl(self, group: Group, grid: str) -> float:
        engine, originals = self.engine(), self._originals  # of the untouched model
        layer = group.tensors[0].layer
        kept = {tensor: self.checkpoint.read(tensor) for tensor in group.tensors}
        try:
            engine.replace(self._rounded(kept, grid))
            answers = [
                engine.logits_from(ids, self._stack, given, layer or 0)
                for ids, (_, given) in zip(self.sequences, originals, strict=True)
            ]
        finally:
            engine.replace((tensor.hf, as_stored(tensor, weights)) for tensor, weights in kept.items())
        if not all(np.isfinite(rows).all() for rows in answers):
            raise BadWeightsError(f"with {group.names[0]} in {grid} the model's logits are not finite")
        return float(np.concatenate([kl_full(p, q) for (p, _), q in zip(originals, answers, strict=True)]).mean())

    def _rounded(self, kept: Mapping[TensorSpec, F32], grid: str) -> Iterator[tuple[str, F32]]:
        for tensor, weights in kept.items():
            quantized = get(grid).quantize(weights, self._importance(tensor))
            yield tensor.hf, as_stored(tensor, get(grid).dequantize(quantized))


def _error(weights: F32, grid: str, importance: F32 | None) -> float:
    """Σ E[x_j²] Δw_ij² of nearest rounding with importance."""
    difference = get(grid).dequantize(get(grid).quantize(weights, importance)) - weights
    squares = np.einsum("ij,ij->j", difference, difference, dtype=np.float64)
    return float(squares.sum() if importance is None else squares @ importance.astype(np.float64))


def covered(container: Container, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The formats that a map covers: the usual ones and a target's."""
    return tuple(dict.fromkeys((*FORMATS[container], *more)))
