"""Rotary positions (Su et al., 2021) and the ways of stretching them: linear, Llama 3 and YaRN."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.architectures import Family
from edgekit.checkpoint.config_fields import real, table, whole
from edgekit.errors import CorruptCheckpointError, UnknownArchitectureError

F64 = NDArray[np.float64]
_MOST_CONTEXT = (1 << 31) - 1
_PLAIN_YARN = {
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "extrapolation_factor": 1.0,
    "truncate": True,
}  # fmt: skip
"""The paper's constants. llama.cpp reads others for some architectures only, and ignores them elsewhere."""


@dataclass(frozen=True)
class Linear:
    """All frequencies divided by one factor (position interpolation, Chen et al., 2023)."""

    factor: float

    def divisors(self, head_dim: int, _theta: float) -> F64:
        """Divisor of each of the head_dim / 2 rotary frequencies."""
        return np.full(head_dim // 2, self.factor)


@dataclass(frozen=True)
class Llama3:
    """Slow rotations divided by a factor, fast ones kept, a ramp between (Llama 3.1's `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def divisors(self, head_dim: int, theta: float) -> F64:
        """Divisor of each of the head_dim / 2 rotary frequencies (llama.cpp `rope_freqs.weight`)."""
        turns = self.original_context * _frequencies(head_dim, theta) / (2 * math.pi)
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ramp = 1 / ((1 - smooth) / self.factor + smooth)
        kept = np.where(turns > self.high_freq_factor, 1.0, ramp)
        return np.where(turns < self.low_freq_factor, self.factor, kept)


@dataclass(frozen=True)
class Yarn:
    """NTK by parts and a temperature on attention (Peng et al., 2023, arXiv 2309.00071)."""

    factor: float
    original_context: int
    attention_factor: float
    """What cosine and sine are multiplied by; 0.1 ln(factor) + 1 in the paper."""

    def divisors(self, head_dim: int, theta: float) -> F64:
        """Divisor of each of the head_dim / 2 rotary frequencies (§3.2; the ramp's ends rounded outward, as in the
        authors' code, transformers and llama.cpp).
        """

        def dimension(turns: float) -> float:
            return head_dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(dimension(_PLAIN_YARN["beta_fast"])), 0)
        high = min(math.ceil(dimension(_PLAIN_YARN["beta_slow"])), head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
        return 1 / (ramp / self.factor + 1 - ramp)


Scaling = Linear | Llama3 | Yarn


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a layer."""

    theta: float
    scaling: Scaling | None = None

    @property
    def kind(self) -> str:
        """For example "yarn"; "default" without scaling."""
        return "default" if self.scaling is None else type(self.scaling).__name__.lower()

    @property
    def attention_factor(self) -> float:
        """What cosine and sine are multiplied by."""
        return self.scaling.attention_factor if isinstance(self.scaling, Yarn) else 1.0

    def tables(self, head_dim: int, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosine and sine, (positions, head_dim / 2) each."""
        frequencies = _frequencies(head_dim, self.theta)
        if self.scaling is not None:
            frequencies = frequencies / self.scaling.divisors(head_dim, self.theta)
        angles = np.arange(positions)[:, None] * frequencies
        cosine, sine = (self.attention_factor * wave(angles) for wave in (np.cos, np.sin))
        return cosine.astype(np.float32), sine.astype(np.float32)


def _frequencies(head_dim: int, theta: float) -> F64:
    return np.asarray(theta ** -(np.arange(0, head_dim, 2) / head_dim), dtype=np.float64)


def rope_from(parameters: Mapping[str, Any], theta: float) -> Rope:
    """Read a `rope_parameters` or `rope_scaling` object of config.json; `theta` is used where it names none.

    Raises:
        UnknownArchitectureError: a kind of scaling that is not supported.
        CorruptCheckpointError: a value is missing or impossible.
    """
    theta = real(parameters, "rope_theta", theta)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in (None, "default"):
        return Rope(theta)
    readers: dict[str, Callable[[Mapping[str, Any]], Scaling]] = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
    if not isinstance(kind, str) or kind not in readers:
        raise UnknownArchitectureError(
            f"config.json asks for rotary scaling {kind!a}",
            expected="default, " + ", ".join(readers),
            remedy="use a checkpoint without it; other kinds are not supported yet",
        )
    if theta <= 1:
        raise CorruptCheckpointError(f"config.json gives rope_theta = {theta:g}", expected="more than 1")
    return Rope(theta, readers[kind](parameters))


def _linear(parameters: Mapping[str, Any]) -> Linear:
    return Linear(real(parameters, "factor"))


def _llama3(parameters: Mapping[str, Any]) -> Llama3:
    low, high = real(parameters, "low_freq_factor"), real(parameters, "high_freq_factor")
    if not low < high:
        raise CorruptCheckpointError(
            f"config.json gives low_freq_factor = {low:g} and high_freq_factor = {high:g}",
            expected="the first below the second",
        )
    return Llama3(real(parameters, "factor"), low, high, _original_context(parameters))


def _yarn(parameters: Mapping[str, Any]) -> Yarn:
    factor = real(parameters, "factor")
    for key, usual_value in _PLAIN_YARN.items():
        if parameters.get(key) not in (None, usual_value):
            raise UnknownArchitectureError(
                f"config.json sets {key} = {ascii(parameters[key])[:40]} of YaRN",
                expected=f"{usual_value}, which llama.cpp assumes",
                remedy="this variant of rotary scaling is not supported yet",
            )
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        usual = 1.0  # transformers divides the one's factor by the other's, and both are 1 here
    return Yarn(factor, _original_context(parameters), real(parameters, "attention_factor", usual))


def _original_context(parameters: Mapping[str, Any]) -> int:
    return whole(parameters, "original_max_position_embeddings", _MOST_CONTEXT)


def _named(scaling: Mapping[str, Any]) -> Mapping[str, Any]:
    """An old `rope_scaling` with its kind under the newer key, so that it is not hidden by a newer object's."""
    kind = scaling.get("rope_type") or scaling.get("type")
    return {**scaling, "rope_type": kind} if kind else {k: v for k, v in scaling.items() if k != "rope_type"}


def global_and_local(config: Mapping[str, Any], family: Family) -> tuple[Rope, Rope | None]:
    """The rotary positions of full attention and of layers with a sliding window, where the family tells them apart.

    Before transformers 5 config.json keeps theta, scaling and the local theta side by side; since then nested.
    """
    parameters, scaling = table(config, "rope_parameters"), _named(table(config, "rope_scaling"))
    usual = family.defaults.get("rope_theta", 10000.0)
    theta = real(config, "rope_theta", float(str(usual)))
    if family.local_theta is None:
        return rope_from({**parameters, **scaling}, theta), None
    local = real(config, "rope_local_base_freq", family.local_theta)
    far = table(parameters, "full_attention") or {k: v for k, v in parameters.items() if k != "sliding_attention"}
    return rope_from({**far, **scaling}, theta), rope_from(table(parameters, "sliding_attention"), local)
