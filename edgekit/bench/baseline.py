"""A result against an earlier one of the same board: a regression is named where both intervals leave no doubt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress

from edgekit.bench import plan
from edgekit.bench.disturbances import Disturbed, timed_windows
from edgekit.bench.figures import Named, by_key
from edgekit.bench.result import BenchResult, EngineRun, from_json, to_json
from edgekit.bench.verdicts import Check
from edgekit.bundle.paths import plain
from edgekit.errors import FileFormatError, OptionError

WORSE = 0.05
"""A change of less than 5 % is no regression, however sure: the next build of a compiler brings as much."""


def digest(result: BenchResult) -> str:
    """SHA-256 of a result's JSON, the same before it was written and after it was read."""
    data = to_json(result)
    # Reading makes floats of the ints that stand where floats belong; what cannot be read back is never compared.
    with suppress(FileFormatError):
        data = to_json(from_json(data))
    return hashlib.sha256(data).hexdigest()


def refuse(result: BenchResult, baseline: BenchResult) -> None:
    """Accept a baseline only where figures mean the same.

    Raises:
        OptionError: another target, kind of board, protocol, or number of threads, measured against emulated, no
            format in common.
    """
    for title, ours, theirs in _must_agree(result, baseline):
        if ours != theirs:
            raise OptionError(
                f"the baseline cannot be compared: its {title} is {plain(theirs)}", expected=plain(ours),
                remedy="measure a baseline the same way; `edgekit compare` shows two runs side by side all the same",
            )  # fmt: skip


def _must_agree(result: BenchResult, baseline: BenchResult) -> Iterator[tuple[str, str, str]]:
    """Title, of the result, of the baseline."""
    yield "kind", result.measured_on, baseline.measured_on
    yield "target", result.target.id, baseline.target.id
    yield "board", board_kind(result), board_kind(baseline)
    yield "protocol", _protocol(result), _protocol(baseline)
    earlier = {run.format: run for run in baseline.runs}
    common = [(run, earlier[run.format]) for run in result.runs if run.format in earlier]
    if not common:
        yield "format", _formats(result), _formats(baseline)
    for ours, theirs in common:
        yield f"number of {ours.format.upper()} threads", threads(ours), threads(theirs)


def board_kind(result: BenchResult) -> str:
    """The board's own name, or the machine's processor."""
    board, machine = result.device.board, result.device.machine
    return (board.model if board else None) or f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores"


def threads(run: EngineRun) -> str:
    """Threads and CPUs, in words."""
    at = run.settings
    pinned = f", CPUs {' '.join(map(str, at.affinity[:64]))}" if at.affinity else ""
    return f"{at.prefill_threads} for prompts, {at.decode_threads} for decoding{pinned}"


def _protocol(result: BenchResult) -> str:
    return f"{result.protocol.name} ({plan.digest(result.protocol)[:12]})"


def _formats(result: BenchResult) -> str:
    return " and ".join(sorted({run.format for run in result.runs}))


def checks(run: EngineRun, baseline: BenchResult, state: Disturbed) -> list[Check]:
    """One check for every figure that both have; none of time where it was emulated."""
    earlier = next((one for one in baseline.runs if one.format == run.format), None)
    if earlier is None or run.failure or earlier.failure:
        return []
    before, spoiled = by_key(earlier), any(window.disturbances for _, window in timed_windows(earlier))
    return [
        _check(found, before[found.key], state, spoiled)
        for found in by_key(run).values()
        if found.key in before and (found.group == "coherence" or found.kind == "measured")
    ]


def _check(found: Named, before: Named, state: Disturbed, spoiled: bool) -> Check:
    worse = regressed(before, found)
    allowed = before.value * (1 - WORSE if found.more_is_better else 1 + WORSE)
    said = f"{found.title}: {number(found)} against {number(before)} of the baseline{share(before, found)}"
    check = Check(
        group="baseline", name=f"baseline/{found.key}", title=f"{found.title}, against the baseline", unit=found.unit,
        limit=allowed, at_most=not found.more_is_better, measured=found.value, low=found.low, high=found.high,
        kind=found.kind, verdict="FAIL" if worse else "PASS", sentence=said + (" is worse" if worse else ""),
    )  # fmt: skip
    if found.group in ("coherence", "memory"):
        return check
    disturbed = (*state.words, "the baseline was disturbed") if spoiled else state.words
    return Disturbed(emulated=state.emulated, words=disturbed).judged(check)


def regressed(before: Named, after: Named) -> bool:
    """Whether `after` is worse by more than :data:`WORSE` of `before`, and the intervals have no value in common."""
    if not apart(before, after):
        return False
    change = after.value - before.value
    loss = -change if after.more_is_better else change
    return loss > WORSE * abs(before.value)


def apart(one: Named, other: Named) -> bool:
    """Whether two intervals have no value in common; a figure without one is a point."""
    low, high = _ends(one)
    other_low, other_high = _ends(other)
    return high < other_low or other_high < low


def _ends(found: Named) -> tuple[float, float]:
    return (
        found.value if found.low is None else min(found.low, found.value),
        found.value if found.high is None else max(found.high, found.value),
    )


def share(before: Named, after: Named) -> str:
    """The change in percent, in brackets; empty where it means nothing."""
    return f" ({100 * (after.value / before.value - 1):+.1f} %)" if before.value > 0 else ""


def number(found: Named) -> str:
    """Value and unit."""
    return f"{found.value:.4g}{f' {found.unit}' if found.unit else ''}"


def common(result: BenchResult, other: BenchResult) -> Mapping[str, tuple[EngineRun, EngineRun]]:
    """Runs of the formats that both have; where each has only one, those two, whatever their formats."""
    theirs = {run.format: run for run in other.runs}
    pairs = {run.format.upper(): (run, theirs[run.format]) for run in result.runs if run.format in theirs}
    if not pairs and len(result.runs) == len(other.runs) == 1:
        ours, left = result.runs[0], other.runs[0]
        return {f"{ours.format.upper()} and {left.format.upper()}": (ours, left)}
    return pairs
