"""The sizes of a model, from a stranger's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.checkpoint.architectures import Family
from edgekit.checkpoint.config_fields import whole
from edgekit.errors import CorruptCheckpointError


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int


MOST = {
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


def read_sizes(config: Mapping[str, Any], family: Family) -> Sizes:
    """Every size, checked.

    Raises:
        CorruptCheckpointError: names the key and what it holds, or two that contradict each other.
    """

    def size(key: str, default: int | None = None) -> int:
        usual = family.defaults.get(key, default)
        return whole(config, family.key(key), MOST[key], usual if isinstance(usual, int) else None)

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kv_heads = size("num_key_value_heads", heads)
    head_dim = size("head_dim", hidden // heads or 1)
    if heads % kv_heads:
        raise CorruptCheckpointError(
            f"config.json gives {heads} heads and {kv_heads} key-value heads",
            expected="the first divisible by the second",
        )
    if head_dim % 2 and family.positions == "rope":
        raise CorruptCheckpointError(
            f"config.json gives heads of {head_dim} values", expected="an even number, as rotary positions need pairs"
        )
    learned = family.positions == "learned"
    return Sizes(
        hidden_size=hidden,
        ffn_size=size("intermediate_size", 4 * hidden if learned else None),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=size("vocab_size"),
        context_length=size("max_position_embeddings", 2048),
    )
