"""Numbers and switches from a stranger's config.json: each is checked, and a wrong one is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekit.errors import CorruptCheckpointError

_REMEDY = "correct it, or download the checkpoint again"


def whole(config: Mapping[str, Any], key: str, most: int, default: int | None = None) -> int:
    """A whole number from 1 to `most`; `default` when the key is missing or null.

    Raises:
        CorruptCheckpointError: names the key and what it holds.
    """
    value = _given(config, key, default)
    if type(value) not in (int, float) or not 1 <= value <= most or value != int(value):
        raise _wrong(key, value, f"a whole number from 1 to {most}")
    return int(value)


def real(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A finite number above 0; `default` when the key is missing or null.

    Raises:
        CorruptCheckpointError: names the key and what it holds.
    """
    value = _given(config, key, default)
    # A JSON integer can be too large for a float: bounds first, conversion after.
    if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(float(value)):
        raise _wrong(key, value, "a finite number above 0")
    return float(value)


def switch(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false; `default` when the key is missing or null.

    Raises:
        CorruptCheckpointError: names the key and what it holds.
    """
    value = _given(config, key, default)
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A JSON object; an empty one when the key is missing or null.

    Raises:
        CorruptCheckpointError: names the key and what it holds.
    """
    value = _given(config, key, {})
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object")
    return value


def _given(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise CorruptCheckpointError(f"config.json lacks {key}", expected="a Hugging Face config", remedy=_REMEDY)
    return value


def _wrong(key: str, value: Any, expected: str) -> CorruptCheckpointError:
    shown = ascii(value)
    shown = shown if len(shown) <= 40 else shown[:40] + "…"
    return CorruptCheckpointError(f"config.json gives {key} = {shown}", expected=expected, remedy=_REMEDY)
