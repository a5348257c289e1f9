"""What a benchmark found: raw figures in JSON, and the statistics that are derived from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgekit.bench.stats import median_interval

Measure = Literal["ratio_at_most", "ratio_at_least", "ours_below"]


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be reached: by the median ratio, or by the largest of our own figures (`ours_below`)."""

    measure: Measure
    value: float


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison. Figure i of `ours` and figure i of `peers` are one pair, measured one right after the other."""

    title: str
    peer: str
    unit: str
    ours: tuple[float, ...]
    peers: tuple[float, ...] = ()
    """Empty: there is no peer to compare with."""
    limit: Limit | None = None
    """None: a figure that nothing is asked of."""
    notes: tuple[str, ...] = ()


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it was measured, and how busy that was before the first run."""

    cpu: str
    architecture: str
    physical_cores: int
    logical_cores: int
    memory_gib: float
    system: str
    python: str
    busy_percent: float
    """Share of all processor time that others used during the second before the first run."""


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of one benchmark, as `--json` writes it."""

    benchmark: str
    command: str
    started: str
    """UTC, ISO 8601."""
    machine: Machine
    versions: dict[str, str]
    method: str
    rows: tuple[Row, ...]


def ratios(row: Row) -> list[float]:
    """Our figure divided by the peer's, pair by pair.

    Raises:
        ValueError: the two sides have different numbers of figures.
    """
    return [own / other for own, other in zip(row.ours, row.peers, strict=True)]


def reached(row: Row) -> bool:
    """Whether the limit is kept; a row without one has none to break."""
    if row.limit is None:
        return True
    if row.limit.measure == "ours_below":
        return max(row.ours) < row.limit.value
    median = median_interval(ratios(row)).median
    return median <= row.limit.value if row.limit.measure == "ratio_at_most" else median >= row.limit.value


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Index of the first token that differs (or that one side lacks); None when both are the same."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))


def load(path: Path) -> Result:
    """Read what `--json` wrote.

    Raises:
        msgspec.ValidationError: it is something else.
    """
    return msgspec.json.decode(path.read_bytes(), type=Result)


def save(result: Result, path: Path) -> None:
    """Write the raw figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


_MUST = {"ratio_at_most": "ratio ≤ {:g}", "ratio_at_least": "ratio ≥ {:g}", "ours_below": "every run < {:g} {unit}"}
_HEAD = "| measured | edgekit | peer | ratio (interval) | must | reached |\n|---|---|---|---|---|---|\n"


def _line(row: Row) -> str:
    if row.limit is None or not row.peers:
        return f"| {row.title} | {statistics.median(row.ours):.4g} {row.unit} | {row.peer} | – | – | – |\n"
    found = median_interval(ratios(row))
    must = _MUST[row.limit.measure].format(row.limit.value, unit=row.unit)
    ours, peer = (f"{statistics.median(side):.4g} {row.unit}" for side in (row.ours, row.peers))
    if row.limit.measure == "ours_below":
        ours += f", at most {max(row.ours):.4g}"
    ratio = f"**{found.median:.3f}** ({found.low:.3f} – {found.high:.3f})"
    return f"| {row.title} | {ours} | {row.peer}: {peer} | {ratio} | {must} | {'yes' if reached(row) else '**no**'} |\n"


def markdown(result: Result) -> str:
    """One result as a heading, a table and the facts needed to repeat it. Medians; the interval is the ratio's."""
    row, machine = result.rows[0], result.machine
    kind = median_interval(ratios(row)).method
    notes = "".join(f"* {row.title}: {note}\n" for row in result.rows for note in row.notes)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return (
        f"### `{result.command}`\n\n{_HEAD}{''.join(map(_line, result.rows))}\n"
        f"Medians of {len(row.ours)} pairs; interval of the ratio: {kind}. {result.method}\n\n{notes}"
        f"* {machine.cpu} ({machine.architecture}), {machine.physical_cores} cores, {machine.memory_gib:.0f} GiB, "
        f"{machine.system}; others used {machine.busy_percent:.0f} % of the processors before the first run; "
        f"{result.started}.\n* Python {machine.python}, {versions}.\n"
    )
