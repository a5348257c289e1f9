"""Inputs of linear layers that are too small to matter are left out, token by token; what is left out is counted.

Training-free, as in TEAL (Liu et al., arXiv:2408.14690): every linear layer has a threshold, the quantile of its
inputs' magnitudes on calibration text, and an input below it counts as zero, so that the weights that would be
multiplied by it need not be read. The first token of a text is left whole: attention rests on it, and it comes with a
prompt, whose tokens are computed together, where every weight is needed by some token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.engines.base import Ids
from edgekit.errors import BadWeightsError
from edgekit.progress import Advance

_BINS, _SHIFT = 1 << 15, 16
"""Magnitudes are counted by their upper 15 bits, sign left out: those of a bfloat16."""
_INFINITE = 0x7F80
"""Of infinity; NaN lie above."""
Hook = Callable[[Any, tuple[torch.Tensor, ...]], Any]


class Inputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one linear layer on the calibration text."""

    limits: tuple[float, ...]
    """For each share the magnitude below which at most that share of the inputs lies: a bfloat16, as large as it may
    be; 0 for a share of 0."""
    energies: tuple[float, ...]
    """Share of the inputs' squares that lies below each of them, from a histogram."""


@dataclass
class Count:
    """Inputs of one layer, summed over tokens."""

    seen: int = 0
    fired: int = 0

    @property
    def share(self) -> float:
        """Of the inputs that fire; 1 where none was seen."""
        return self.fired / self.seen if self.seen else 1.0


@dataclass
class Counts:
    """Of every gated layer."""

    layers: dict[str, Count] = field(default_factory=dict)

    def add(self, name: str, fired: int, seen: int) -> None:
        """Count `fired` of `seen` inputs of a layer."""
        own = self.layers.setdefault(name, Count())
        own.fired, own.seen = own.fired + fired, own.seen + seen


def inputs(
    module: Any, weights: Sequence[str], sequences: Sequence[Ids], shares: Sequence[float], progress: Advance
) -> dict[str, Inputs]:
    """Thresholds of linear layers' inputs.

    Args:
        module: a Hugging Face causal language model.
        weights: parameter names of linear layers, "….weight".
        sequences: calibration text, token ids (T,) each.
        shares: of the inputs, 0 to 1.
        progress: called after every sequence.

    Returns:
        Parameter name → a threshold for each share, and what lies below it.

    Raises:
        BadWeightsError: an input is NaN or infinite; names the layer.
    """
    found = {name: np.zeros(_BINS, np.int64) for name in weights}

    def listen(name: str) -> Hook:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            bits = inputs[0].detach().float().contiguous().view(torch.int32).bitwise_and(0x7FFFFFFF) >> _SHIFT
            found[name] += torch.bincount(bits.flatten(), minlength=_BINS).numpy()

        return hook

    with _hooked(module, {name: listen(name) for name in weights}), torch.inference_mode():
        for done, ids in enumerate(sequences, 1):
            module(torch.as_tensor(ids)[None], use_cache=False)
            progress(done, len(sequences))
    return {name: _quantiles(name, counts, shares) for name, counts in found.items()}


def _quantiles(name: str, counts: NDArray[np.int64], shares: Sequence[float]) -> Inputs:
    if counts[_INFINITE:].any():
        raise BadWeightsError(
            f"the inputs of {name} hold NaN or infinity",
            expected="finite activations on the calibration text",
            remedy="the model overflows on this text: give another --calibration-text",
        )
    below = np.cumsum(counts)
    middles = (np.arange(_INFINITE, dtype=np.uint32) << _SHIFT | 1 << (_SHIFT - 1)).view(np.float32).astype(np.float64)
    middles[0] = 0.0  # nearly all of them are zeros
    energy = np.concatenate([[0.0], np.cumsum(counts[:_INFINITE] * middles**2)])
    # A bin is left out as a whole or not at all, so that a share is never exceeded on the text that it was found on.
    edges = [int(np.searchsorted(below, share * below[-1], side="right")) if share > 0 else 0 for share in shares]
    edges = [min(edge, _INFINITE) for edge in edges]
    limits = (np.array(edges, np.uint32) << _SHIFT).view(np.float32)
    whole = energy[-1] or 1.0
    return Inputs(limits=tuple(map(float, limits)), energies=tuple(float(energy[edge] / whole) for edge in edges))


@contextmanager
def gated(module: Any, limits: Mapping[str, float], counts: Counts | None = None) -> Iterator[None]:
    """Within it, inputs whose magnitude is below their layer's threshold are zero, the first token's excepted.

    Args:
        module: a Hugging Face causal language model.
        limits: parameter name of a linear layer, "….weight" → threshold.
        counts: gets what fires and what could.
    """

    def gate(name: str, limit: float) -> Hook:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            given, *others = inputs
            fires = given.abs() >= limit
            rest = fires if given.shape[-2] == 1 else fires[..., 1:, :]
            if counts is not None:
                counts.add(name, int(rest.sum()), rest.numel())
            if rest is not fires:
                fires[..., :1, :] = True
            return (torch.where(fires, given, 0.0), *others)

        return hook

    with _hooked(module, {name: gate(name, limit) for name, limit in limits.items()}):
        yield


@contextmanager
def _hooked(module: Any, hooks: Mapping[str, Hook]) -> Iterator[None]:
    modules = dict(module.named_modules())
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.callback(modules[name.removesuffix(".weight")].register_forward_pre_hook(hook).remove)
        yield
