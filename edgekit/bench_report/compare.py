"""Two runs side by side: what differs between them, and whether their intervals leave any doubt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.bench import plan
from edgekit.bench.baseline import apart, board_kind, common, share, threads
from edgekit.bench.disturbances import of_result, of_run
from edgekit.bench.figures import Named, by_key
from edgekit.bench.ratios import InTurns, in_turns
from edgekit.bench.result import BenchResult, EngineRun
from edgekit.bench.words import computed_on
from edgekit.bench_report import words
from edgekit.bench_report.html import page
from edgekit.bundle.paths import plain
from edgekit.targets import Target, load, names

How = Literal["", "turns", "medians"]
"""Turns: the median of the ratios of rounds. Medians: those of two separate runs."""
Word = Literal["better", "worse", "same", "unclear", "differs", "disturbed", "not compared"]
"""Unclear: the intervals have values in common. Differs: there are no intervals to tell. Disturbed: a side was."""
MIXED = "An emulated run says nothing of a board's speed and memory: these are not compared."
TURNS = (
    "Turns: both bundles in the same minutes on one device, so heat and load meet both alike. Medians: two runs, each "
    "in its own minutes."
)
NONE_IN_COMMON = "The runs have no format in common."


@dataclass(frozen=True)
class Row:
    """One figure of both runs."""

    title: str
    left: str
    right: str
    change: str
    verdict: Word
    how: How = ""
    """What the change is of, where it is one of speed or energy."""


@dataclass(frozen=True)
class Group:
    """The figures of one format."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """Two runs; the first is A."""

    left: str
    right: str
    differences: list[tuple[str, str, str]]
    """What is not the same: title, of A, of B."""
    groups: list[Group]
    notes: list[str]


def compare(left: BenchResult, right: BenchResult) -> Comparison:
    """Figures of two runs, two models or two boards."""
    mixed = "emulated" in (left.measured_on, right.measured_on)
    pairs = common(left, right)
    notes = [MIXED] if mixed else []
    notes += [] if pairs else [NONE_IN_COMMON]
    spoiled = {name: of_result(result, _target(result)) for name, result in (("A", left), ("B", right))}
    notes += [f"{name} was disturbed, so its speeds say little: {said[0]}." for name, said in spoiled.items() if said]
    disturbed = any(spoiled.values())
    turned = {title: {} if mixed else _in_turns(left, right, *both) for title, both in pairs.items()}
    notes += [TURNS] if any(turned.values()) else []
    groups = [
        Group(title, list(_rows(*both, turned[title], mixed=mixed, disturbed=disturbed)))
        for title, both in pairs.items()
    ]
    return Comparison(_title(left), _title(right), list(_differences(left, right)), groups, notes)


def html(found: Comparison) -> str:
    """The page as HTML 5 text."""
    return page("compare.html.j2", found=found)


def _title(result: BenchResult) -> str:
    return f"{plain(result.bundle.name, 80)} on {words.device(result)}"


def _target(result: BenchResult) -> Target | None:
    """Of a result, by the name that a stranger wrote; None where none is shipped under it."""
    return load(result.target.id) if result.target.id in names() else None


def _in_turns(left: BenchResult, right: BenchResult, a: EngineRun, b: EngineRun) -> Mapping[str, InTurns]:
    """Ratios B ÷ A of rounds that one of the two results holds with the bundle of the other, on the same kind of board.

    Where both hold some, B's: it is the later one.
    """
    if a.format != b.format or board_kind(left) != board_kind(right):
        return {}
    for holder, other, run, swapped in ((right, left, b, False), (left, right, a, True)):
        if found := in_turns(holder, other, run, swapped=swapped):
            spoiled = of_run(holder, _target(holder))
            return {key: replace(one, disturbed=(*spoiled, *one.disturbed)) for key, one in found.items()}
    return {}


def _rows(
    left: EngineRun, right: EngineRun, turned: Mapping[str, InTurns], *, mixed: bool, disturbed: bool
) -> Iterator[Row]:
    ours, theirs = by_key(left), by_key(right)
    for key in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(key), theirs.get(key)
        if one := a or b:
            unit = f", {one.unit}" if one.unit not in ("", "share") else ""
            how: How = ""
            if key in turned:
                (change, verdict), how = _ratio(turned[key]), "turns"
            else:
                change, verdict = _change(a, b, mixed=mixed, disturbed=disturbed)
                how = "medians" if one.group in ("speed", "energy") and verdict != "not compared" else ""
            yield Row(one.title + unit, _cell(a), _cell(b), change, verdict, how)


def _ratio(found: InTurns) -> tuple[str, Word]:
    """A ratio in words, and what it means."""
    at = found.ratio
    text = f"{at.value:.4g} × ({at.low:.4g}–{at.high:.4g})"
    if found.disturbed:
        return f"{text} disturbed", "disturbed"
    if not found.enough:
        return f"{text} too few rounds", "unclear"
    verdict: Word = "unclear" if not found.sure else "better" if found.better else "worse"
    return f"{text} {verdict}", verdict


def _cell(found: Named | None) -> str:
    if found is None:
        return "–"
    bare = words.said(found).removesuffix(f" {found.unit}")
    spread = words.interval(found.low, found.high, found.unit).replace(" to ", "–")
    return bare + (f" ({spread})" if spread else "")


def _change(a: Named | None, b: Named | None, *, mixed: bool, disturbed: bool) -> tuple[str, Word]:
    if a is None or b is None:
        return "", "not compared"
    if mixed and a.group not in ("coherence", "instructions"):
        return "emulated", "not compared"
    if disturbed and a.group in ("speed", "energy") and a.kind == b.kind == "measured":
        return "disturbed", "disturbed"
    if a.unit != b.unit:
        return "another unit", "not compared"
    if a.value == b.value:
        return "same", "same"
    if not apart(a, b):
        return "unclear", "unclear"
    amount = share(a, b).strip(" ()")
    if a.low is None or b.low is None:  # without intervals nothing says whether it would come out so again
        return amount, "differs"
    verdict: Word = "better" if (b.value > a.value) == a.more_is_better else "worse"
    return f"{amount} {verdict}".strip(), verdict


def _differences(left: BenchResult, right: BenchResult) -> Iterator[tuple[str, str, str]]:
    """Everything but the figures, where it is not the same."""
    ours, theirs = _setting(left), _setting(right)
    for title in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(title, "–"), theirs.get(title, "–")
        if a != b:
            yield plain(title, 60), plain(a), plain(b)


def _setting(result: BenchResult) -> dict[str, str]:
    board = result.device.board
    found = {
        "Figures are": result.measured_on, "Bundle": result.bundle.name, "Model": result.bundle.model,
        "Manifest": result.bundle.manifest_sha256[:16], "Settings of": result.target.title,
        "Device": result.device.url, "Board": board_kind(result),
        "Protocol": f"{result.protocol.name} ({plan.digest(result.protocol)[:8]})", "edgekit": result.edgekit,
    }  # fmt: skip
    if board:
        found |= {"Firmware": board.firmware or "–", "Governor": board.governor or "–", "Mode": board.power_mode or "–"}
    found |= {f"Version of {name}": version for name, version in list(result.device.versions.items())[:40]}
    found |= {name: value for name, value in list(result.device.machine.items())[:40] if name in ("system", "python")}
    for run in result.runs[:4]:
        if run.requested_bits is not None:
            found[f"{run.format.upper()} bits"] = words.bits(run)
        if where := computed_on(run):
            found[f"{run.format.upper()} computed on"] = where
        found[f"{run.format.upper()} threads"] = threads(run)
        found[f"{run.format.upper()} loaded"] = run.settings.mode or "as the engine does"
    return found
