"""A result against an earlier one of the same board: a regression is named where both intervals leave no doubt."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from edgekit.bench import plan
from edgekit.bench.disturbances import Disturbed, of_engine, of_run
from edgekit.bench.figures import Named, by_key, named
from edgekit.bench.ratios import InTurns
from edgekit.bench.result import BenchResult, EngineRun, from_json, to_json
from edgekit.bench.verdicts import Check, Verdict
from edgekit.bundle.paths import plain
from edgekit.errors import FileFormatError, OptionError
from edgekit.targets import Target

WORSE = 0.05
"""A change of less than 5 % is no regression, however sure: the next build of a compiler brings as much."""
WORSE_COUNT = 0.01
"""The same for counted instructions, which repeat to a few in a million."""


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
        OptionError: another target, kind of board or protocol, measured against emulated, no format in common.
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
    earlier = {run.format for run in baseline.runs}
    if not any(run.format in earlier for run in result.runs):
        yield "format", _formats(result), _formats(baseline)


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


@dataclass(frozen=True)
class Rounds:
    """What was measured in turns with the baseline's bundle, and what disturbed the whole run meanwhile."""

    found: Mapping[str, InTurns] = field(default_factory=dict)
    """By key of the figure; such a ratio is judged instead of the two runs' medians."""
    whole: tuple[str, ...] = ()


def checks(
    run: EngineRun, baseline: BenchResult, state: Disturbed, target: Target, cv_max: float | None = None,
    rounds: Rounds | None = None,
) -> list[Check]:  # fmt: skip
    """One check for every figure that both have; none of time where it was emulated.

    A figure that was measured in turns with the baseline's bundle, in enough rounds, is judged by that ratio. Another
    speed is compared with one of the same accelerator, threads and CPUs. Where the runs chose others, that is said, and
    what both sweeps measured with the baseline's threads is compared instead. A baseline that was itself disturbed
    gives no verdict on speeds.

    Args:
        run: of the result that is judged.
        baseline: that :func:`refuse` accepted.
        state: of the result.
        target: of both.
        cv_max: coefficient of variation above which repetitions of the baseline are no measurement.
        rounds: with the baseline's bundle, when there were any.
    """
    earlier = next((one for one in baseline.runs if one.format == run.format), None)
    if run.failure:
        return []
    turned = rounds or Rounds()
    enough = {key: one for key, one in turned.found.items() if one.enough}
    made = [_ratio(key, one, Disturbed(state.emulated, (*turned.whole, *one.disturbed))) for key, one in enough.items()]
    if turned.found and not enough:
        n = max(one.ratio.n for one in turned.found.values())
        why = f"{n} rounds are too few to judge; the medians of two runs are compared instead"
        made.append(_not_compared("turns", "Ratios in turns", why))
    if earlier is None or earlier.failure:
        why = "it has no such format" if earlier is None else "its run ended early"
        return [*made, _not_compared("format", "Figures", why)]
    spoiled = (*of_run(baseline, target), *of_engine(earlier, baseline, cv_max))
    return [*made, *_medians(run, earlier, state, spoiled, enough)]


def _medians(
    run: EngineRun, earlier: EngineRun, state: Disturbed, spoiled: Sequence[str], judged: Collection[str]
) -> Iterator[Check]:
    """Checks of figures of two separate runs, but for those that are `judged` already."""
    before = {key: one for key, one in by_key(earlier).items() if key not in judged}
    if spoiled and any(one.kind == "measured" for one in before.values()):
        why = f"the baseline itself was disturbed ({spoiled[0]})"
        title = "Speed and energy beside those in turns" if judged else "Speed and energy"
        yield _not_compared("disturbed", title, why, "NOT JUDGED" if judged else "INVALID")
    unlike = {phase: why for phase in _PHASES if (why := _unlike(phase, run, earlier))}
    pairs = [(found, before[found.key]) for found in by_key(run).values() if found.key in before]
    pairs = [pair for pair in pairs if _phase(pair[0].key) not in unlike]
    if not spoiled:
        left = {phase: why for phase, why in unlike.items() if phase not in map(_phase, judged)}
        for phase, why in left.items():
            if any(_phase(key) == phase for key in before):
                yield _not_compared(f"threads/{phase}", _PHASES[phase], why)
        pairs += [pair for phase in left for pair in _swept(phase, run, earlier)]
    yield from (_check(*pair, state) for pair in pairs if _comparable(pair[0], spoiled))


def _ratio(key: str, found: InTurns, state: Disturbed) -> Check:
    """A ratio of turns: worse where its interval leaves out 1, and by more than two medians may differ."""
    at, more = found.ratio, found.more_is_better
    limit = 1 - WORSE if more else 1 + WORSE
    worse = found.sure and (at.value < limit if more else at.value > limit)
    said = f"{found.title}: {at.value:.4g} × the baseline's bundle, measured in turns with it"
    check = Check(
        group="baseline", name=f"baseline/{key}", title=f"{found.title}, against the baseline in turns", unit="×",
        limit=limit, at_most=not more, measured=at.value, low=at.low, high=at.high, kind=at.kind,
        verdict="FAIL" if worse else "PASS",
        sentence=f"{said} ({at.low:.4g} to {at.high:.4g}, n = {at.n:,})" + (", which is worse" if worse else ""),
    )  # fmt: skip
    return state.judged(check)


def _comparable(found: Named, spoiled: Sequence[str]) -> bool:
    """Whether a figure says something of the board, here and in a baseline that something spoiled."""
    if found.group in ("coherence", "instructions"):
        return True
    return found.kind == "measured" and (found.group == "memory" or not spoiled)


_PHASES = {"prefill": "Prefill and first token", "decode": "Decode", "talk": "Answer, end to end"}
"""Figures that depend on the number of threads, and what a reader calls them."""


def _phase(key: str) -> str:
    name = key.partition("/")[0].removesuffix("_energy")
    return "prefill" if name == "ttft" else name


def _unlike(phase: str, run: EngineRun, earlier: EngineRun) -> str:
    """How accelerator, threads or CPUs of a phase differ, in words; empty where they are the same."""

    def used(one: EngineRun) -> tuple[object, ...]:
        at = one.settings
        counts = {"prefill": (at.prefill_threads,), "decode": (at.decode_threads,)}
        return counts.get(phase, (at.prefill_threads, at.decode_threads)), at.affinity

    if _elsewhere(run, earlier):
        return f"it was computed elsewhere ({run.computed_on}; the baseline {earlier.computed_on})"
    if used(run) == used(earlier):
        return ""
    return f"it ran with other threads ({threads(run)}; the baseline {threads(earlier)})"


def _elsewhere(run: EngineRun, earlier: EngineRun) -> bool:
    """Whether both say what computed them, and it is not the same."""
    return None not in (run.computed_on, earlier.computed_on) and run.computed_on != earlier.computed_on


def _swept(phase: str, run: EngineRun, earlier: EngineRun) -> Iterator[tuple[Named, Named]]:
    """What both sweeps measured with the threads and CPUs that the baseline chose."""
    at = earlier.settings
    wanted = {"prefill": at.prefill_threads, "decode": at.decode_threads}.get(phase)
    ours, theirs = (
        next((one for one in side.sweep if (one.threads, one.affinity) == (wanted, at.affinity)), None)
        for side in (run, earlier)
    )
    if ours is None or theirs is None or _elsewhere(run, earlier):
        return
    tokens = (ours.prefill_tokens, theirs.prefill_tokens) if phase == "prefill" else (
        ours.decode_tokens, theirs.decode_tokens
    )  # fmt: skip
    if tokens[0] == tokens[1]:
        key, title = f"sweep/{phase}/{wanted}", f"{phase.capitalize()} with {wanted} threads"
        new, old = (one.prefill if phase == "prefill" else one.decode for one in (ours, theirs))
        yield named(key, title, new, more=True), named(key, title, old, more=True)


def _not_compared(name: str, title: str, why: str, verdict: Verdict = "NOT JUDGED") -> Check:
    return Check(
        group="baseline", name=f"baseline/{name}", title=f"{title}, against the baseline", verdict=verdict,
        sentence=f"{title}: not compared with the baseline, as {why}",
    )  # fmt: skip


def _check(found: Named, before: Named, state: Disturbed) -> Check:
    allowed = _allowed(found)
    worse = regressed(before, found, allowed)
    limit = before.value * (1 - allowed if found.more_is_better else 1 + allowed)
    said = f"{found.title}: {number(found)} against {number(before)} of the baseline{share(before, found)}"
    check = Check(
        group="baseline", name=f"baseline/{found.key}", title=f"{found.title}, against the baseline", unit=found.unit,
        limit=limit, at_most=not found.more_is_better, measured=found.value, low=found.low, high=found.high,
        kind=found.kind, verdict="FAIL" if worse else "PASS", sentence=said + (" is worse" if worse else ""),
    )  # fmt: skip
    return state.judged(check) if found.group in ("speed", "energy") else check


def _allowed(found: Named) -> float:
    return WORSE_COUNT if found.group == "instructions" else WORSE


def regressed(before: Named, after: Named, allowed: float = WORSE) -> bool:
    """Whether `after` is worse by more than that share of `before`, and the intervals have no value in common."""
    if not apart(before, after):
        return False
    change = after.value - before.value
    loss = -change if after.more_is_better else change
    return loss > allowed * abs(before.value)


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
