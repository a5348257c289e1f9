"""The typed description of a model: its sizes, and every tensor with its role and shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.checkpoint.architectures import Activation, Family, Size, TensorRule, family_of, supported
from edgekit.checkpoint.config_fields import real, switch
from edgekit.checkpoint.layers import no_rope_layers, sliding_layers, window_that_bounds
from edgekit.checkpoint.rope import Linear, Llama3, Rope, Yarn, global_and_local
from edgekit.checkpoint.sizes import Sizes, read_sizes
from edgekit.checkpoint.variants import activation_of, refuse_variants
from edgekit.errors import UnknownArchitectureError


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the checkpoint."""

    rule: TensorRule
    layer: int | None
    shape: tuple[int, ...]
    """Outputs first, also where Hugging Face stores inputs first."""

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
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in the Hugging Face checkpoint."""
        return self.shape[::-1] if self.rule.transposed else self.shape

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Spec(Sizes):
    """What a model is, independent of any file format."""

    family: Family
    architecture: str
    norm_epsilon: float
    activation: Activation
    rope: Rope
    local_rope: Rope | None
    """Of layers with a sliding window, where they have their own."""
    sliding_window: int | None
    """Tokens, the current one included, that layers of `sliding` see."""
    sliding: frozenset[int]
    no_rope: frozenset[int]
    """Layers without rotary positions."""
    tied: bool
    tensors: tuple[TensorSpec, ...]

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        return sum(tensor.parameters for tensor in self.tensors)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes of key-value cache that one token of context takes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value

    def layer_rope(self, layer: int) -> Rope | None:
        """Rotary positions of a layer; None: it has none."""
        if self.family.positions != "rope" or layer in self.no_rope:
            return None
        return self.local_rope if layer in self.sliding and self.local_rope else self.rope

    def layer_window(self, layer: int) -> int | None:
        """Sliding window of a layer in tokens; None: it sees everything."""
        return self.sliding_window if layer in self.sliding else None

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies."""
        return self.rope.theta

    @property
    def local_rope_theta(self) -> float | None:
        """The same in layers with a sliding window."""
        return self.local_rope.theta if self.local_rope else None

    @property
    def _yarn(self) -> Yarn | None:
        return self.rope.scaling if isinstance(self.rope.scaling, Yarn) else None

    @property
    def gguf_scaling_type(self) -> str | None:
        """`rope.scaling.type`; Llama 3's scaling is a tensor in GGUF (rope_freqs.weight)."""
        return None if self.rope.scaling is None or isinstance(self.rope.scaling, Llama3) else self.rope.kind

    @property
    def gguf_scaling_factor(self) -> float | None:
        """`rope.scaling.factor`."""
        return self.rope.scaling.factor if isinstance(self.rope.scaling, Yarn | Linear) else None

    @property
    def yarn_original_context(self) -> int | None:
        """`rope.scaling.original_context_length`."""
        return self._yarn.original_context if self._yarn else None

    @property
    def gguf_yarn_attention_factor(self) -> float | None:
        """`rope.scaling.attn_factor`: llama.cpp multiplies it by 0.1 ln(factor) + 1, so this is what remains."""
        if self._yarn is None:
            return None
        return self._yarn.attention_factor / (0.1 * math.log(self._yarn.factor) + 1)


def _shape(rule: TensorRule, sizes: Sizes) -> tuple[int, ...]:
    query, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    named: dict[Size, int] = {
        "hidden": sizes.hidden_size, "q": query, "kv": kv, "qkv": query + 2 * kv, "ffn": sizes.ffn_size,
        "vocab": sizes.vocab_size, "head_dim": sizes.head_dim, "context": sizes.context_length,
    }  # fmt: skip
    return tuple(named[name] for name in rule.shape)


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
            f"config.json names the architecture {architecture[:80]!a}",
            expected="one of " + ", ".join(supported()),
            remedy="let others export it: edgekit build --llama-cpp DIR for GGUF, --exporter optimum for ONNX",
        )
    refuse_variants(config, family)
    sizes = read_sizes(config, family)
    window, sliding = sliding_layers(config, family, sizes.layers)
    rope, local = global_and_local(config, family)
    tied = switch(config, "tie_word_embeddings", bool(family.defaults.get("tie_word_embeddings", False)))
    bound = window_that_bounds(config, family) or sizes.context_length
    bounded = {**asdict(sizes), "context_length": min(sizes.context_length, bound)}
    return Spec(
        **bounded,
        family=family,
        architecture=architecture,
        norm_epsilon=real(config, family.key("rms_norm_eps"), float(str(family.defaults.get("rms_norm_eps", 1e-6)))),
        activation=activation_of(config, family),
        rope=rope,
        local_rope=local,
        sliding_window=window,
        sliding=sliding,
        no_rope=no_rope_layers(config, family, sizes.layers),
        tied=tied,
        tensors=_tensors(config, family, sizes, tied),
    )


def _tensors(config: Mapping[str, Any], family: Family, sizes: Sizes, tied: bool) -> tuple[TensorSpec, ...]:
    """All tensors in the order in which a model is read."""
    made = []
    for rule in family.tensors:
        if (rule.kind == "head" and tied) or (rule.when and not switch(config, rule.when, False)):
            continue
        layers: list[int | None] = list(range(sizes.layers)) if rule.per_layer else [None]
        made += [TensorSpec(rule, layer, _shape(rule, sizes)) for layer in layers]
    return tuple(sorted(made, key=lambda tensor: (_place(tensor), tensor.layer or 0)))


def _place(tensor: TensorSpec) -> int:
    """Embeddings first, blocks in order, then the final norm and the head."""
    if tensor.layer is not None:
        return 1
    return 0 if tensor.rule.kind in ("embedding", "position") else 2
