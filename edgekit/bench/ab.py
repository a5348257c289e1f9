"""Two bundles in turns: a ratio is surer than two figures, because heat and other load meet both sides alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct

from edgekit.bench.child import Generate, Open, Read
from edgekit.bench.latency import Generating, Reading
from edgekit.bench.measure import Bench
from edgekit.bench.plan import repeat
from edgekit.bench.result import Figure, Window
from edgekit.bench.worker import Lazy, Start, Worker


class Ratio(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speed of ours ÷ speed of the baseline; above 1 is faster. Figure i of all three is one pair."""

    tokens: int
    ratio: Figure
    ours: Figure
    """Tokens/s."""
    baseline: Figure
    """Tokens/s."""
    window: Window


class Comparison(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One format of two bundles, measured in turns on one machine."""

    format: str
    prefill: Ratio
    decode: Ratio


@dataclass(frozen=True)
class _Pair:
    """Seconds of one measurement on each side, one right after the other."""

    ours: float
    baseline: float
    begin: float
    end: float


def interleaved(bench: Bench, start: Start, ours: Open, baseline: Open, text: str, tokens: int) -> Comparison:
    """Measure two models in turns; who begins alternates. Both are in memory at once.

    Args:
        bench: protocol, kind and sensors.
        start: makes a fresh measuring process.
        ours: the model that is judged.
        baseline: what it is compared with, with the same threads, CPUs and context.
        text: of at least `tokens` tokens in both tokenizers.
        tokens: of the prompt.

    Raises:
        EngineDied: one of the processes ended.
        EdgekitError: one of the models cannot be loaded or run.
    """
    with Lazy(start, ours) as left, Lazy(start, baseline) as right:
        context = min(side.open().max_context for side in (left, right))
        count = min(bench.protocol.decode_tokens, context)
        read = Read(text=text, tokens=min(tokens, context))
        return Comparison(
            format=ours.format,
            prefill=_ratio(bench, left, right, read.tokens, lambda side: _read(side, read)),
            decode=_ratio(bench, left, right, count, lambda side: _generate(side, count)),
        )


def _read(side: Worker, request: Read) -> tuple[float, float, float]:
    run = side.ask(request, Reading)
    return run.prefill, run.begin, run.end


def _generate(side: Worker, tokens: int) -> tuple[float, float, float]:
    run = side.ask(Generate(tokens=tokens), Generating)
    return run.end - run.begin, run.begin, run.end


def _ratio(
    bench: Bench, left: Worker, right: Worker, tokens: int, once: Callable[[Worker], tuple[float, float, float]]
) -> Ratio:
    """`once` gives (seconds, begin, end) of a side."""
    turns = 0

    def pair() -> _Pair:
        nonlocal turns
        turns += 1
        order = (left, right) if turns % 2 else (right, left)
        first, second = once(order[0]), once(order[1])
        ours, baseline = (first, second) if turns % 2 else (second, first)
        return _Pair(ours[0], baseline[0], first[1], second[2])

    done = repeat(pair, lambda one: one.baseline / one.ours, bench.protocol)
    return Ratio(
        tokens=tokens,
        ratio=bench.figure([one.baseline / one.ours for one in done.runs], "ratio", done.stopped),
        ours=bench.figure([tokens / one.ours for one in done.runs], "tokens/s", done.stopped),
        baseline=bench.figure([tokens / one.baseline for one in done.runs], "tokens/s", done.stopped),
        window=bench.window([(one.begin, one.end) for one in done.runs]),
    )
