"""What few bits, noise and skipped connections do to one model: every outcome of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.dispersion.arms import LENGTH
from benchmarks.dispersion.text import PROMPTS, Texts
from benchmarks.dispersion.ways import Biases, Ways, Weights
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.coherence.generation import seq_rep
from edgekit.dispersion.condensation import measured, trend, weight_kurtosis
from edgekit.dispersion.survival import noisy
from edgekit.engines.torch import TorchEngine

GRIDS: Mapping[int, str] = {4: "int4-sym-b32", 3: "int3-sym-b32-portable", 2: "Q2_0"}
"""Symmetric, blocks of 32; at 2 bits of 64."""
DRAWS = 2
"""Of noise, for each size."""
SKIPPED = (0.3, 0.5, 0.7)
"""Shares of each linear layer's inputs that are not read, the smallest of every token."""
_PROMPT, _SAID = 16, 64
"""Tokens."""
_SAYS = ("nearest-3", "gptq-3", "nearest-2")
"""Changes after which the model continues prompts."""


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of the weights does; against the unchanged model, in nats per token."""

    change: str
    """For example "gptq-3": what was done, and to how many bits."""
    size: float
    """‖ΔW‖ / ‖W‖ over all linear layers."""
    ce: float
    """Rise of the cross-entropy."""
    kl: float
    kl_sequences: tuple[float, ...] = ()
    """Mean of each sequence, for the bootstrap over text."""
    seq_rep_4: float | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A model and its damages."""

    length: float
    kind: str
    steps: int
    ce: float
    """Cross-entropy in full precision, nats per token of held-out text."""
    ce_sequences: tuple[float, ...]
    mean_cosine: tuple[float, ...]
    """Of each layer's states, what enters the first block included."""
    spearman: float | None
    activation_kurtosis: tuple[float, ...]
    weight_kurtosis: float
    """Excess kurtosis, mean over matrices."""
    weight_norm: float
    """Root mean square of the linear layers' weights."""
    seq_rep_4: float
    damages: tuple[Damage, ...]


@dataclass
class Lab:
    """One model on the bench."""

    checkpoint: Checkpoint
    engine: TorchEngine
    texts: Texts
    _said: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ways = Ways(self.checkpoint, self.engine, self.texts.calibration)
        self._own = self._ways.own
        self._said = [_log_softmax(self.engine.logits(ids)) for ids in self.texts.judged]

    def measured(self, length: float, kind: str, steps: int, seed: int) -> Measured:
        """Every outcome; the seed draws the noise."""
        states = measured(self.engine.states, self.texts.judged, lambda _done, _all: None)
        own = [_cross_entropy(said, ids) for said, ids in zip(self._said, self.texts.judged, strict=True)]
        cosines = tuple(_short(layer.mean_cosine) for layer in states)
        squares = sum(float(np.square(each, dtype=np.float64).sum()) for each in self._own.values())
        return Measured(
            length=length, kind=kind, steps=steps, ce=_short(float(np.mean(own))), ce_sequences=tuple(map(_short, own)),
            mean_cosine=cosines, spearman=trend(cosines)[0],
            activation_kurtosis=tuple(_short(layer.kurtosis) for layer in states),
            weight_kurtosis=_short(float(np.mean([weight_kurtosis(each) for each in self._own.values()]))),
            weight_norm=_short((squares / sum(each.size for each in self._own.values())) ** 0.5),
            seq_rep_4=_short(self._repeats()), damages=tuple(self._damages(seed)),
        )  # fmt: skip

    def _damages(self, seed: int) -> Iterator[Damage]:
        for bits, grid in GRIDS.items():
            nearest = self._ways.nearest(grid)
            yield self._damage(f"nearest-{bits}", nearest)
            yield self._damage(f"nearest-corrected-{bits}", nearest, self._ways.biases(nearest))
            yield self._damage(f"gptq-{bits}", self._ways.gptq(grid))
            for draw in range(DRAWS):
                yield self._damage(f"noise-{bits}", {
                    name: noisy(own, nearest[name], (seed, bits, draw, number))
                    for number, (name, own) in enumerate(self._own.items())
                })  # fmt: skip
        for share in SKIPPED:
            with self._skipping(share):
                yield self._damage(f"skipped-{share}", {})

    def _damage(self, change: str, weights: Weights, biases: Biases | None = None) -> Damage:
        wrong = sum(float(np.square(made - self._own[name], dtype=np.float64).sum()) for name, made in weights.items())
        whole = sum(float(np.square(own, dtype=np.float64).sum()) for own in self._own.values())
        with self._ways.changed(weights), self._biased(biases or {}):
            pairs = [self._against(number) for number in range(len(self._said))]
            repeats = _short(self._repeats()) if change in _SAYS else None
        kl, ce = (np.array(each) for each in zip(*pairs, strict=True))
        return Damage(
            change=change, size=_short((wrong / whole) ** 0.5), ce=_short(float(ce.mean())),
            kl=_short(float(kl.mean())), kl_sequences=tuple(map(_short, kl.tolist())), seq_rep_4=repeats,
        )  # fmt: skip

    def _against(self, number: int) -> tuple[float, float]:
        ids, own = self.texts.judged[number], self._said[number]
        said = _log_softmax(self.engine.logits(ids))
        divergence = float((own.exp() * (own - said)).sum(dim=-1).mean())
        return divergence, _cross_entropy(said, ids) - _cross_entropy(own, ids)

    @contextmanager
    def _biased(self, biases: Biases) -> Iterator[None]:
        with self._hooked(biases, lambda name: lambda _module, _inputs, output: output + biases[name]):
            yield

    @contextmanager
    def _hooked(self, names: Mapping[str, Any] | Sequence[str], hook: Callable[[str], Any]) -> Iterator[None]:
        with ExitStack() as stack:
            for name in names:
                module = self.engine.module.get_submodule(name.removesuffix(".weight"))
                stack.callback(module.register_forward_hook(hook(name)).remove)
            yield

    @contextmanager
    def _skipping(self, share: float) -> Iterator[None]:
        """No linear layer reads the smallest `share` of its inputs, token by token (TEAL, arXiv:2408.14690)."""

        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            sizes = inputs[0].abs()
            least = sizes.kthvalue(round(share * sizes.shape[-1]), dim=-1, keepdim=True).values
            return (inputs[0].masked_fill(sizes <= least, 0.0),)

        with ExitStack() as stack:
            for name in self._own:
                module = self.engine.module.get_submodule(name.removesuffix(".weight"))
                stack.callback(module.register_forward_pre_hook(hook).remove)
            yield

    def _repeats(self) -> float:
        prompts = [ids[:_PROMPT].tolist() for ids in self.texts.judged[:PROMPTS]]
        said = self.engine.greedy_batch(prompts, _SAID, frozenset(), lambda _done, _all: None)
        return float(np.mean([seq_rep(ids) for ids in said]))


def _log_softmax(logits: F32) -> torch.Tensor:
    return torch.log_softmax(torch.from_numpy(logits).double(), dim=-1)


def _cross_entropy(said: torch.Tensor, ids: Any) -> float:
    places = torch.from_numpy(np.asarray(ids[1:], np.int64))[:, None]
    return float(-said[: LENGTH - 1].gather(1, places).mean())


def _short(value: float) -> float:
    """Enough digits for the bootstrap, few enough for a small file."""
    return float(f"{value:.6g}")
