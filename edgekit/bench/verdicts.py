"""One limit, one figure, one verdict."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from edgekit.bench.result import Kind

Verdict = Literal["PASS", "FAIL", "INVALID", "NOT JUDGED"]
Group = Literal["run", "coherence", "speed", "energy", "memory", "instructions", "baseline"]


class Check(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure against its limit."""

    group: Group
    name: str
    """The limit's key in a target file, for example "tok_s_min"."""
    title: str
    verdict: Verdict
    sentence: str = ""
    limit: float | None = None
    """Inclusive; None where the check is no number."""
    at_most: bool = True
    measured: float | None = None
    low: float | None = None
    """Of the interval; None: there is none."""
    high: float | None = None
    unit: str = ""
    kind: Kind = "measured"


class Absent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that gave no result: not reached, refused, or lost on the way."""

    device: str
    """As the user called it."""
    bundle: str
    error: str
    """Name of a class of :mod:`edgekit.errors`."""
    sentence: str
    exit_code: int
