"""What spoiled a measurement, in words, and what that makes of a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from edgekit.bench.result import BenchResult, EngineRun, Figure, Window
from edgekit.bench.verdicts import Check
from edgekit.bundle.paths import plain
from edgekit.targets import Target

_MOST = 20
"""Disturbances that are listed."""
_DISTURB = "disturb: "
"""How the preflight begins an answer that disturbs."""
_ENOUGH = 3
"""Repetitions from which a coefficient of variation says something."""


@dataclass(frozen=True)
class Disturbed:
    """The state of a measurement."""

    emulated: bool
    words: tuple[str, ...]
    """What disturbed it; empty: nothing."""

    def judged(self, check: Check) -> Check:
        """A check of speed or energy, as far as it can be judged."""
        if self.emulated:
            why = f"{check.title} is not judged: it was emulated, which says nothing about the board"
            return msgspec.structs.replace(check, verdict="NOT JUDGED", sentence=why, kind="emulated")
        if self.words and check.measured is not None:
            why = f"{check.sentence}, but the measurement was disturbed"
            return msgspec.structs.replace(check, verdict="INVALID", sentence=why)
        return check


def of_run(result: BenchResult, target: Target | None) -> tuple[str, ...]:
    """What disturbed all engines alike: what the preflight found, and a hot start, which only a target tells."""
    said = [
        f"{plain(about, 60)}: {plain(words.removeprefix(_DISTURB))}"
        for about, words in result.preflight.items()
        # Other load only makes a machine slower, and how fast an emulated one is does not count.
        if words.startswith(_DISTURB) and not (about == "load" and result.measured_on == "emulated")
    ]
    if target is not None and "heat" not in result.preflight and (hot := _hot_start(result, target)):
        said.append(hot)
    return tuple(said[:_MOST])


def of_result(result: BenchResult, target: Target | None) -> tuple[str, ...]:
    """What disturbed a whole result, engines together; without its target, what the result itself says."""
    cv_max = target.limits.latency.cv_max if target else None
    found = [f"{run.format.upper()}: {words}" for run in result.runs for words in of_engine(run, result, cv_max)]
    return (*of_run(result, target), *found)


def of_engine(run: EngineRun, result: BenchResult, cv_max: float | None) -> tuple[str, ...]:
    """What disturbed one engine: what the sensors said beside it, and repetitions that differ too much."""
    where: dict[str, list[str]] = {}
    for title, window in timed_windows(run):
        for words in window.disturbances[:_MOST]:
            where.setdefault(plain(words), []).append(title)
    said = [f"{words} ({_places(places)})" for words, places in where.items()]
    if result.measured_on != "emulated" and cv_max is not None:
        said += _unsteady(run, cv_max)
    return tuple(said[:_MOST])


def timed_windows(run: EngineRun) -> Iterator[tuple[str, Window]]:
    """Windows whose figures depend on time; coherence does not."""
    yield from ((f"sweep, {one.threads} threads", one.window) for one in run.sweep)
    yield from (("loading", one.window) for one in run.loading)
    yield from ((f"prompt of {one.tokens}", one.window) for one in run.prefill)
    yield from (("decode", one.window) for one in [run.decode] if one)
    yield from (("answer", one.window) for one in [run.talk] if one)


def _places(titles: list[str]) -> str:
    unique = list(dict.fromkeys(titles))
    return ", ".join(unique[:4]) + (f" and {len(unique) - 4} more" if len(unique) > 4 else "")


def _unsteady(run: EngineRun, cv_max: float) -> Iterator[str]:
    judged = [(f"prompt of {one.tokens}", one.speed) for one in run.prefill]
    judged += [("decode", run.decode.speed)] if run.decode else []
    for title, figure in judged:
        found = _variation(figure)
        if found is not None and found > cv_max:
            n = figure.quantity.n
            yield f"the {n} repetitions vary by {100 * found:.1f} %, more than {100 * cv_max:g} % ({title})"


def _variation(figure: Figure) -> float | None:
    return figure.variation if figure.quantity.n >= _ENOUGH else None


def _hot_start(result: BenchResult, target: Target) -> str:
    limit = target.thermal.start_below_c
    first = next((point.temp_c for point in result.environment if point.temp_c is not None), None)
    if limit is None or first is None or first < limit:
        return ""
    return f"hot start: {first:.1f} °C; the target says below {limit:g} °C"
