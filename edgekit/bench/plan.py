"""How much is measured: protocols as data, and when a figure has been repeated often enough."""

from __future__ import annotations

import hashlib
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from edgekit.bench.stats import median_interval
from edgekit.errors import OptionError

T = TypeVar("T")
Tokens = Annotated[int, Meta(ge=1, le=1 << 20)]
Count = Annotated[int, Meta(ge=0, le=10_000)]
Stop = Literal["narrow", "repeats", "seconds"]
"""Why repeating ended: the interval was narrow enough, or a bound was reached."""


class Protocol(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `edgekit bench` measures, and how often."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    title: str
    purpose: str
    prompt_lengths: Annotated[tuple[Tokens, ...], Meta(min_length=1, max_length=16)]
    """Tokens of the prompts that are read; those that do not fit the model's context are left out."""
    decode_tokens: Annotated[int, Meta(ge=2, le=1 << 20)]
    """Tokens generated from an empty context."""
    talk_tokens: Annotated[int, Meta(ge=2, le=1 << 20)]
    """Tokens of an answer, end to end."""
    warmups: Count
    """Repetitions that are thrown away first."""
    repeats_min: Annotated[int, Meta(ge=1, le=10_000)]
    repeats_max: Annotated[int, Meta(ge=1, le=10_000)]
    relative_width: Annotated[float, Meta(gt=0, le=10)]
    """Width of the 95 % interval of the median / median at which repeating ends."""
    seconds_max: Annotated[float, Meta(gt=0, le=86_400)]
    """No repetition of a figure begins later than this after its first, once there are `repeats_min`."""
    loads: Annotated[int, Meta(ge=1, le=100)]
    """Fresh processes that load the model."""
    load_modes: bool
    """Load the model mapped and copied, where the engine offers both; otherwise as the target says."""
    sweep: bool
    """Try thread counts and CPUs first."""
    sequences: Count
    """Of the sealed reference, at most."""
    sequence_tokens: Annotated[int, Meta(ge=2, le=1 << 20)]
    """Tokens of each sequence, at most: its first ones."""
    prompts: Count
    """Of the sealed reference that are continued greedily, at most."""
    continuation_tokens: Tokens
    items: bool
    """Answer the reference's questions."""


def names() -> tuple[str, ...]:
    """The protocols there are."""
    return tuple(_table())


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        OptionError: there is none.
    """
    table = _table()
    if name not in table:
        raise OptionError(f"there is no protocol '{name}'", expected=f"one of {', '.join(table)}")
    return table[name]


def digest(chosen: Protocol) -> str:
    """SHA-256 of everything in a protocol: two runs with equal digests measured the same things."""
    return hashlib.sha256(msgspec.json.encode(chosen)).hexdigest()


def _table() -> dict[str, Protocol]:
    data = tomllib.loads(files("edgekit.bench").joinpath("protocols.toml").read_text(encoding="utf8"))
    return {name: msgspec.convert({"name": name, **table}, Protocol) for name, table in data.items()}


@dataclass(frozen=True)
class Repeated(Generic[T]):
    """All repetitions but the warm-ups."""

    runs: tuple[T, ...]
    stopped: Stop


def repeat(
    once: Callable[[], T],
    value: Callable[[T], float],
    chosen: Protocol,
    *,
    tell: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Repeated[T]:
    """Measure until the interval of the median is narrow, or a bound of the protocol is reached.

    Args:
        once: measures once.
        value: the figure of a measurement that the interval is taken of.
        chosen: warm-ups, bounds and width.
        tell: called with the number of repetitions done.
        clock: seconds.
    """
    for _ in range(chosen.warmups):
        once()
    begin, runs = clock(), list[T]()
    while True:
        runs.append(once())
        tell(len(runs))
        if stopped := enough([value(run) for run in runs], clock() - begin, chosen):
            return Repeated(tuple(runs), stopped)


def enough(values: Sequence[float], seconds: float, chosen: Protocol) -> Stop | None:
    """Why no more repetitions are needed of a figure that took so long; None: they are."""
    if len(values) < chosen.repeats_min:
        return None
    # A second repetition is needed to see any width at all.
    if len(values) > 1 and median_interval(values).width <= chosen.relative_width:
        return "narrow"
    if len(values) >= chosen.repeats_max:
        return "repeats"
    return "seconds" if seconds >= chosen.seconds_max else None
