"""Sizes and ages as people write them."""

from __future__ import annotations

import re

from edgekit.errors import OptionError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str, name: str) -> int:
    """Bytes of "5GB", "500 MB", "1.5GiB" or "0"; GB is 10⁹ bytes, GiB 2³⁰.

    Raises:
        OptionError: it is not a size; `name` says of what.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMGT]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise OptionError(f"{name} is {text!a}", expected='a size such as "5GB" or "500MB"')
    return int(float(match[1]) * _UNITS[match[2]])


def parse_age(text: str, name: str) -> float:
    """Seconds of "30d", "12h", "2w", "90m" or "45s".

    Raises:
        OptionError: it is not a time; `name` says of what.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([smhdw])", text.strip().lower())
    if match is None:
        raise OptionError(f"{name} is {text!a}", expected='a time such as "30d" or "12h"')
    return float(match[1]) * _SPANS[match[2]]
