"""What differs from layer to layer: sliding windows, and layers without rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.checkpoint.architectures import Family
from edgekit.checkpoint.config_fields import switch, whole
from edgekit.errors import CorruptCheckpointError, UnknownArchitectureError

_LLAMA_CPP_PERIOD = 6
"""llama.cpp's gemma3: five layers with a window, one without."""


def window_that_bounds(config: Mapping[str, Any], family: Family) -> int | None:
    """A sliding window in tokens that bounds the context; None: there is none, or it belongs to some layers only."""
    if family.window != "bounds" or not _used(config, family):
        return None
    return _window(config, family)


def _used(config: Mapping[str, Any], family: Family) -> bool:
    return switch(config, "use_sliding_window", bool(family.defaults.get("use_sliding_window", True)))


def _window(config: Mapping[str, Any], family: Family) -> int | None:
    usual = family.defaults.get("sliding_window")
    if config.get("sliding_window", usual) is None:
        return None
    return whole(config, "sliding_window", (1 << 31) - 1, usual if isinstance(usual, int) else None)


def sliding_layers(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, frozenset[int]]:
    """The window in tokens and the layers that have it; (None, nothing) where it bounds the context or is not there.

    Raises:
        UnknownArchitectureError: the pattern is not the one that llama.cpp assumes.
        CorruptCheckpointError: `layer_types` does not describe every layer.
    """
    if family.window != "pattern":
        return None, frozenset()
    window, sliding = _window(config, family), frozenset(_pattern(config, layers))
    usual = frozenset(i for i in range(layers) if (i + 1) % _LLAMA_CPP_PERIOD)
    if sliding != usual:
        raise UnknownArchitectureError(
            "config.json gives a sliding window to other layers than usual",
            expected=f"a window in all layers but every {_LLAMA_CPP_PERIOD}th, which llama.cpp assumes",
            remedy="this variant of the family is not supported yet",
        )
    return window, sliding if window is not None else frozenset()


def _pattern(config: Mapping[str, Any], layers: int) -> list[int]:
    kinds = config.get("layer_types")
    if kinds is None:
        old = "_sliding_window_pattern" if config.get("sliding_window_pattern") is None else "sliding_window_pattern"
        period = whole(config, old, 1024, _LLAMA_CPP_PERIOD)
        return [i for i in range(layers) if (i + 1) % period]
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise CorruptCheckpointError(
            "config.json's layer_types does not describe the layers", expected=f"{layers} of {' and '.join(known)}"
        )
    return [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]


def no_rope_layers(config: Mapping[str, Any], family: Family, layers: int) -> frozenset[int]:
    """Layers without rotary positions.

    Raises:
        UnknownArchitectureError: they are not those that llama.cpp assumes.
        CorruptCheckpointError: `no_rope_layers` does not describe every layer.
    """
    interval = family.no_rope_interval
    if interval is None:
        return frozenset()
    usual = frozenset(i for i in range(layers) if (i + 1) % interval == 0)
    given = config.get("no_rope_layers")
    if given is None:
        step = whole(config, "no_rope_layer_interval", 1024, interval)
        found = frozenset(i for i in range(layers) if (i + 1) % step == 0)
    elif isinstance(given, list) and len(given) == layers and all(value in (0, 1) for value in given):
        found = frozenset(i for i, has in enumerate(given) if not has)  # 1 stands for "has them"
    else:
        raise CorruptCheckpointError(
            "config.json's no_rope_layers does not describe the layers", expected=f"{layers} times 0 or 1"
        )
    if found != usual:
        raise UnknownArchitectureError(
            "config.json leaves rotary positions out of other layers than usual",
            expected=f"every {interval}th layer, which llama.cpp assumes",
            remedy="this variant of the family is not supported yet",
        )
    return found
