"""The typed description of a model: its sizes, and every tensor with its role and shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.checkpoint.architectures import Family, TensorRule, family_of, supported
from edgekit.checkpoint.config_fields import real, switch, table, whole
from edgekit.errors import CorruptCheckpointError, UnknownArchitectureError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rotary scaling (Llama 3.1 model card, `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def frequency_factors(self, head_dim: int, theta: float) -> list[float]:
        """Divisor of each of the head_dim / 2 rotary frequencies; 1 keeps it (llama.cpp `rope_freqs.weight`)."""
        low_wavelength = self.original_context / self.low_freq_factor
        high_wavelength = self.original_context / self.high_freq_factor
        factors = []
        for pair in range(0, head_dim, 2):
            wavelength = 2 * math.pi * theta ** (pair / head_dim)
            if wavelength < high_wavelength:
                factors.append(1.0)
            elif wavelength > low_wavelength:
                factors.append(self.factor)
            else:
                smooth = (self.original_context / wavelength - self.low_freq_factor) / (
                    self.high_freq_factor - self.low_freq_factor
                )
                factors.append(1 / ((1 - smooth) / self.factor + smooth))
        return factors


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the checkpoint."""

    rule: TensorRule
    layer: int | None
    shape: tuple[int, ...]

    @property
    def role(self) -> str:
        """For example "attn_q"."""
        return self.rule.role

    def _named(self, pattern: str) -> str:
        return pattern if self.layer is None else pattern.replace("{i}", str(self.layer))

    @property
    def hf(self) -> str:
        """Name in the Hugging Face checkpoint."""
        return self._named(self.rule.hf)

    @property
    def gguf(self) -> str:
        """Name in a GGUF file."""
        return self._named(self.rule.gguf)

    @property
    def onnx(self) -> str:
        """Base name of the node in the ONNX graph, empty for none."""
        return self._named(self.rule.onnx)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Spec:
    """What a model is, independent of any file format."""

    family: Family
    architecture: str
    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool
    tensors: tuple[TensorSpec, ...]

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        return sum(tensor.parameters for tensor in self.tensors)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes of key-value cache that one token of context takes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value


def _shape(rule: TensorRule, sizes: Mapping[str, int]) -> tuple[int, ...]:
    d, heads = sizes["hidden_size"], sizes["heads"] * sizes["head_dim"]
    kv, ffn, vocab = sizes["kv_heads"] * sizes["head_dim"], sizes["ffn_size"], sizes["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocab, d),
        "head": (vocab, d),
        "attn_q": (heads, d),
        "attn_k": (kv, d),
        "attn_v": (kv, d),
        "attn_output": (d, heads),
        "ffn_gate": (ffn, d),
        "ffn_up": (ffn, d),
        "ffn_down": (d, ffn),
    }
    return shapes.get(rule.role, (d,))


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    parameters = table(config, "rope_parameters")
    theta = real(parameters, "rope_theta", real(config, "rope_theta", 10000.0))
    scaling = table(config, "rope_scaling") or parameters
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in (None, "default"):
        return theta, None
    if kind != "llama3":
        raise UnknownArchitectureError(
            f"config.json asks for rotary scaling {kind!r}",
            expected="'default' or 'llama3'",
            remedy="use a checkpoint without it; other kinds are not supported yet",
        )
    low, high = real(scaling, "low_freq_factor"), real(scaling, "high_freq_factor")
    if not low < high:
        raise CorruptCheckpointError(
            f"config.json gives low_freq_factor = {low:g} and high_freq_factor = {high:g}",
            expected="the first below the second",
        )
    original = whole(scaling, "original_max_position_embeddings", _MOST["max_position_embeddings"])
    return theta, RopeScaling(real(scaling, "factor"), low, high, original)


_MOST = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "max_position_embeddings": (1 << 31) - 1,
}
"""Far above any model: what is larger is a broken file, and is refused before anything is computed from it."""


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    def size(key: str, default: int | None = None) -> int:
        return whole(config, key, _MOST[key], default)

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kv_heads, head_dim = size("num_key_value_heads", heads), size("head_dim", hidden // heads or 1)
    if heads % kv_heads:
        raise CorruptCheckpointError(
            f"config.json gives {heads} heads and {kv_heads} key-value heads",
            expected="the first divisible by the second",
        )
    if head_dim % 2:
        raise CorruptCheckpointError(
            f"config.json gives heads of {head_dim} values", expected="an even number, as rotary positions need pairs"
        )
    return {
        "hidden_size": hidden,
        "ffn_size": size("intermediate_size"),
        "layers": size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": size("vocab_size"),
        "context_length": _context(config),
    }


def _context(config: Mapping[str, Any]) -> int:
    """Longest context; a sliding window bounds it, since within the window attention is the same without one."""
    most = _MOST["max_position_embeddings"]
    longest = whole(config, "max_position_embeddings", most, 2048)
    return min(longest, whole(config, "sliding_window", most, longest))


def _refuse_variants(config: Mapping[str, Any]) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if switch(config, key, False):
            raise UnknownArchitectureError(
                f"config.json sets {key}",
                expected="a model without biases in its linear layers",
                remedy="biased variants of this family are not supported yet",
            )
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnknownArchitectureError(
            f"config.json sets the activation {activation!r}",
            expected="'silu'",
            remedy="other activations of this family are not supported yet",
        )
    if quantization := table(config, "quantization_config"):
        raise UnknownArchitectureError(
            f"the checkpoint is quantized already ({ascii(quantization.get('quant_method'))[:40]})",
            expected="full-precision weights",
            remedy="use the model that it was made from",
        )
    if real(config, "partial_rotary_factor", 1.0) != 1:
        raise UnknownArchitectureError(
            "config.json sets partial_rotary_factor",
            expected="rotary positions on whole heads",
            remedy="this variant of the family is not supported yet",
        )


def spec_from_config(config: Mapping[str, Any]) -> Spec:
    """Read a Hugging Face config.json's contents.

    Raises:
        UnknownArchitectureError: the family, or a variant that the configuration asks for, is not supported.
        CorruptCheckpointError: a field is missing or impossible; names it.
    """
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else "none"
    family = family_of(architecture)
    if family is None:
        raise UnknownArchitectureError(
            f"config.json names the architecture {architecture!r}",
            expected="one of " + ", ".join(supported()),
            remedy="other families are not supported yet",
        )
    _refuse_variants(config)
    sizes = _sizes(config)
    theta, scaling = _rope(config)
    epsilon = real(config, "rms_norm_eps", 1e-6)
    tied = switch(config, "tie_word_embeddings", False)
    tensors = []
    for rule in family.tensors:
        if rule.kind == "head" and tied:
            continue
        layers: list[int | None] = list(range(sizes["layers"])) if rule.per_layer else [None]
        tensors += [TensorSpec(rule, layer, _shape(rule, sizes)) for layer in layers]
    ordered = sorted(tensors, key=lambda t: (_place(t), t.layer if t.layer is not None else 0))
    return Spec(
        family=family,
        architecture=architecture,
        norm_epsilon=epsilon,
        rope_theta=theta,
        rope_scaling=scaling,
        tied=tied,
        tensors=tuple(ordered),
        **sizes,
    )


def _place(tensor: TensorSpec) -> int:
    """Embedding first, blocks in order, then the final norm and the head: the order in which a model is read."""
    if tensor.layer is not None:
        return 1
    return 0 if tensor.rule.kind == "embedding" else 2
