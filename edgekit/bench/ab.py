"""Two bundles in turns: a ratio is surer than two figures, because heat and other load meet both sides alike.

A turn is a fresh process that loads one of the two models and measures it once, so that a board never holds both at the
same time. A round is a turn of each; who begins alternates from round to round: A B B A A B …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import Struct

from edgekit.bench import plan
from edgekit.bench.child import Generate, Open, Opened, Read
from edgekit.bench.latency import Generating, Reading
from edgekit.bench.measure import Bench, fitting
from edgekit.bench.plan import Protocol, Stop
from edgekit.bench.result import BenchResult, Failure, Format, Ratio, TracePoint, Turns, Window
from edgekit.bench.worker import Start
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.paths import plain
from edgekit.errors import OptionError

_WARM_TOKENS = 2
_TRACE = 1000
_UNITS = {"decode": "tokens/s", "prefill": "tokens/s", "ttft": "ms", "load": "s", "energy": "mJ/token"}
_SPEEDS = ("decode", "prefill")
"""Figures whose ratios have to be sure before it ends; loading varies more than a user waits for."""


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    request: Open
    text: str
    """Of at least as many tokens, in this model's tokenizer, as the longest prompt has."""


class Value(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of a turn, in the unit of its name."""

    name: str
    tokens: int
    value: float


class Round(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A turn of each side, one right after the other: a line of the journal."""

    ours: tuple[Value, ...]
    theirs: tuple[Value, ...]
    energy: tuple[float, float] | None = None
    """Millijoules per generated token of both, ours first; None unless both were metered and generated as many."""
    window: Window


@dataclass(frozen=True)
class _Turn:
    """One side of a round; stretches are (begin, end) of the monotonic clock, in seconds."""

    values: tuple[Value, ...]
    whole: tuple[float, float]
    decode: tuple[float, float]
    tokens: int
    """Generated."""


def shared(bundle: Bundle, other: Bundle, formats: Sequence[Format] = ()) -> tuple[Format, ...]:
    """Formats that are measured in turns: those of both bundles, or of `formats` when some are given.

    Raises:
        OptionError: there is none.
    """
    ours = [one.format for one in bundle.manifest.artefacts if not formats or one.format in formats]
    theirs = [one.format for one in other.manifest.artefacts]
    if found := tuple(form for form in ours if form in theirs):
        return found
    raise OptionError(
        f"the bundle of --against, {plain(other.manifest.name)}, holds {_named(theirs)}, which is not measured of "
        f"{plain(bundle.manifest.name)}",
        expected=_named(ours), remedy="build one of them with a format of the other",
    )  # fmt: skip


def failures(result: BenchResult) -> tuple[Failure, ...]:
    """Of turns that ended early."""
    return tuple(run.turns.failure for run in result.runs if run.turns and run.turns.failure)


def in_turns(
    bench: Bench, start: Start, ours: Side, theirs: Side, once: Callable[[int, Callable[[], Round]], Round],
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> Turns:  # fmt: skip
    """Measure two models in turns until the ratios of their speeds are sure, or a bound of the protocol is reached.

    Args:
        bench: protocol, kind and sensors.
        start: makes a fresh measuring process.
        ours: the model that is judged.
        theirs: what it is compared with, with the same threads, CPUs and context.
        once: given a round's number and what measures it; gives what an interrupted run measured of it, if it did.
        tell: told the rounds that are done, and how many there are at most.

    Raises:
        EngineDied: one of the processes ended.
        EdgekitError: one of the models cannot be loaded or run.
    """
    rounds = list[Round]()
    while not (stopped := _stopped(rounds, bench.protocol)):
        swapped = len(rounds) % 2 == 1
        rounds.append(once(len(rounds), partial(_round, bench, start, ours, theirs, swapped=swapped)))
        tell(len(rounds), bench.protocol.repeats_max)
    return Turns(
        ratios=tuple(_ratio(bench, rounds, name, tokens, stopped) for name, tokens in _common(rounds)),
        energy=_energy(bench, rounds, stopped), window=_whole([one.window for one in rounds]),
    )  # fmt: skip


def _round(bench: Bench, start: Start, ours: Side, theirs: Side, *, swapped: bool) -> Round:
    order = (theirs, ours) if swapped else (ours, theirs)
    first, second = (_turn(bench.protocol, start, side) for side in order)
    mine, other = (second, first) if swapped else (first, second)
    return Round(
        ours=mine.values, theirs=other.values, energy=_millijoules(bench, mine, other),
        window=bench.window([first.whole, second.whole]),
    )  # fmt: skip


def _millijoules(bench: Bench, mine: _Turn, other: _Turn) -> tuple[float, float] | None:
    """Per token, ours first. A share of nothing is no ratio: a meter that says 0 J has measured nothing."""
    found = bench.sensors.joules([mine.decode, other.decode]) if mine.tokens == other.tokens else []
    return (1000 * found[0] / mine.tokens, 1000 * found[1] / mine.tokens) if found and min(found) > 0 else None


def _turn(protocol: Protocol, start: Start, side: Side) -> _Turn:
    """Load, warm up, read every prompt, generate."""
    worker = start()
    try:
        opened = worker.ask(side.request, Opened)
        lengths, count = fitting(protocol, opened.max_context), min(protocol.decode_tokens, opened.max_context)
        if protocol.warmups:
            worker.ask(Read(text=side.text, tokens=max(lengths)), Reading)
            worker.ask(Generate(tokens=_WARM_TOKENS), Generating)
        found = [Value(name="load", tokens=0, value=opened.seconds)]
        for tokens in lengths:
            read = worker.ask(Read(text=side.text, tokens=tokens), Reading)
            found.append(Value(name="prefill", tokens=tokens, value=tokens / read.prefill))
            found.append(Value(name="ttft", tokens=tokens, value=1000 * (read.encode + read.prefill + read.choose)))
        made = worker.ask(Generate(tokens=count), Generating)
        found.append(Value(name="decode", tokens=count, value=count / (made.end - made.begin)))
        return _Turn(tuple(found), (opened.begin, made.end), (made.begin, made.end), count)
    finally:
        worker.close()


def _stopped(rounds: Sequence[Round], protocol: Protocol) -> Stop | None:
    """Why no more rounds are needed. The time that a protocol gives a figure is given for every figure of a round."""
    if not rounds:
        return None
    keys = [key for key in _common(rounds) if key[0] in _SPEEDS]
    if not keys:
        raise OptionError(
            "the two models have no context in common", remedy="compare models whose contexts hold the same prompts"
        )
    seconds = sum(one.window.end - one.window.begin for one in rounds) / len(rounds[0].ours)
    said = [plan.enough(_ratios(rounds, *key), seconds, protocol) for key in keys]
    # Which bound it was, where not all were narrow: a bound is reached by all figures at the same time.
    return None if None in said else next((one for one in said if one != "narrow"), "narrow")


def _common(rounds: Sequence[Round]) -> list[tuple[str, int]]:
    """What both sides measured in every round: their contexts may hold different prompts, and a clock may stand."""
    turns = [turn for one in rounds for turn in (one.ours, one.theirs)]
    found = set.intersection(*({(one.name, one.tokens) for one in turn if one.value > 0} for turn in turns))
    return sorted(found, key=lambda key: (tuple(_UNITS).index(key[0]), key[1]))


def _values(side: Sequence[Sequence[Value]], name: str, tokens: int) -> list[float]:
    return [next(one.value for one in turn if (one.name, one.tokens) == (name, tokens)) for turn in side]


def _ratios(rounds: Sequence[Round], name: str, tokens: int) -> list[float]:
    ours = _values([one.ours for one in rounds], name, tokens)
    theirs = _values([one.theirs for one in rounds], name, tokens)
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def _ratio(bench: Bench, rounds: Sequence[Round], name: str, tokens: int, stopped: Stop) -> Ratio:
    ours = _values([one.ours for one in rounds], name, tokens)
    theirs = _values([one.theirs for one in rounds], name, tokens)
    return _of_pairs(bench, name, tokens, list(zip(ours, theirs, strict=True)), stopped)


def _energy(bench: Bench, rounds: Sequence[Round], stopped: Stop) -> Ratio | None:
    """Over the rounds in which both were metered."""
    pairs = [one.energy for one in rounds if one.energy is not None]
    tokens = next((value.tokens for value in rounds[0].ours if value.name == "decode"), 0)
    return _of_pairs(bench, "energy", tokens, pairs, stopped) if pairs else None


def _of_pairs(bench: Bench, name: Any, tokens: int, pairs: Sequence[tuple[float, float]], stopped: Stop) -> Ratio:
    ours, theirs = zip(*pairs, strict=True)
    return Ratio(
        name=name, tokens=tokens, ratio=bench.figure([mine / other for mine, other in pairs], "ratio", stopped),
        ours=bench.figure(ours, _UNITS[name], stopped), theirs=bench.figure(theirs, _UNITS[name], stopped),
    )  # fmt: skip


def _whole(windows: Sequence[Window]) -> Window:
    """All rounds as one, with an even choice of their sensors' readings."""
    trace: list[TracePoint] = [point for window in windows for point in window.trace]
    words = dict.fromkeys(text for window in windows for text in window.disturbances)
    step = max(1, -(-len(trace) // _TRACE))
    return Window(begin=windows[0].begin, end=windows[-1].end, trace=tuple(trace[::step]), disturbances=tuple(words))


def _named(formats: Sequence[str]) -> str:
    return " and ".join(form.upper() for form in formats)
