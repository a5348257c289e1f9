"""A result, or two side by side, on one screen of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekit.bench.figures import figures, peak_mib
from edgekit.bench.judge import EngineJudgement
from edgekit.bench.result import EngineRun
from edgekit.bench.verdicts import Check
from edgekit.bench.words import EMULATED
from edgekit.bench_report import words
from edgekit.bench_report.compare import Comparison
from edgekit.bench_report.words import Entry
from edgekit.bundle.paths import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {"PASS": "bold green", "FAIL": "bold red", "INVALID": "bold magenta", "NOT JUDGED": "bold yellow"}
_CHANGES = {"better": "green", "worse": "red"}
_ASCII = str.maketrans({"≤": "<=", "≥": ">=", "—": "-", "–": "-", "…": "...", "→": "->", "°": "", "✓": "+", "±": "+/-"})
_MOST = 6
"""Lines of one kind."""


def show(entry: Entry) -> None:
    """Print verdict, key figures with their limits, and what disturbed; the whole of it is in the other reports."""
    console, judgement = _console(), entry.judgement
    _say(console, entry.title, f", protocol {plain(entry.result.protocol.name, 40)}", style="bold")
    _say(console, f"{judgement.verdict} ", words.reason(judgement), style=_STYLES[judgement.verdict])
    if entry.result.measured_on == "emulated":
        _say(console, "", EMULATED, style="yellow")
    console.print(_table(console, entry))
    for text in _remarks(entry):
        _say(console, "", text)


def show_comparison(found: Comparison) -> None:
    """Print what differs between two runs, and their figures side by side."""
    console = _console()
    for title, left, right in found.differences:
        _say(console, f"{title}: ", f"{left} | {right}")
    if not found.differences:
        _say(console, "", "Both runs were made the same way.")
    for group in found.groups:
        _say(console, group.title, "", style="bold")
        table = _new_table("Figure", "A", "B", "Of", "B against A")
        for row in group.rows:
            table.add_row(
                _text(console, row.title), _text(console, row.left), _text(console, row.right),
                _text(console, row.how), _text(console, row.change, _CHANGES.get(row.verdict, "")),
            )  # fmt: skip
        console.print(table)
    for note in found.notes:
        _say(console, "", note, style="yellow")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def _table(console: Console, entry: Entry) -> Table:
    table = _new_table("", "Found", "Interval", "Limit", "")
    runs = {run.format: run for run in entry.result.runs}
    for engine in entry.judgement.engines:
        if engine.format in runs:
            rows = list(_rows(runs[engine.format], engine))
            head = f"{engine.format.upper()} {plain(runs[engine.format].engine, 20)}"
            table.add_row(
                _text(console, head, "bold"), "", "", "", _text(console, engine.verdict, _STYLES[engine.verdict])
            )
            for index, (style, cells) in enumerate(rows, start=1):
                shown = [_text(console, cell) for cell in cells[:-1]]
                table.add_row(*shown, _text(console, cells[-1], style), end_section=index == len(rows))
    return table


def _rows(run: EngineRun, engine: EngineJudgement) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Style and cells: judged figures, then key figures that nothing limits."""
    judged = [check for check in engine.checks if check.group != "run" and check.limit is not None]
    kept = [c for c in judged if c.group != "baseline" or c.verdict != "PASS"][:16]
    for check in kept:
        found = words.amount(check.measured, check.unit) if check.measured is not None else ""
        spread = words.interval(check.low, check.high, check.unit)
        yield _STYLES[check.verdict], (check.title, found, spread, words.limit(check), check.verdict)
    titles = {check.title for check in kept}
    for one in words.key_figures(figures(run), peak_mib(run)):
        if one.title not in titles and not (one.group == "memory" and "Peak memory" in titles):
            kind = "" if one.kind == "measured" or one.group == "coherence" else one.kind
            yield "", (one.title, words.said(one), words.interval(one.low, one.high, one.unit), "", kind)


def _remarks(entry: Entry) -> Iterator[str]:
    judgement = entry.judgement
    disturbed = list(judgement.disturbances)
    disturbed += [f"{engine.format.upper()}: {text}" for engine in judgement.engines for text in engine.disturbances]
    yield from (f"Disturbed: {text}" for text in words.lines(disturbed, _MOST))
    for engine in judgement.engines:
        yield from (plain(c.sentence, 500) for c in engine.checks if c.group == "run" or _says_why(c))
        yield from (f"Note: {text}" for text in words.lines(engine.notes, _MOST))


def _says_why(check: Check) -> bool:
    """Whether a comparison was asked for and not made."""
    return check.group == "baseline" and check.verdict == "NOT JUDGED"


def _new_table(*titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, overflow="fold", justify="left" if index in (0, len(titles) - 1) else "right")
    return table


def _say(console: Console, head: str, text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text.assemble((_shown(console, head), style), _shown(console, text)), overflow="fold")


def _text(console: Console, text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(_shown(console, text), style)


def _shown(console: Console, text: str) -> str:
    """`text` in one line, fit for the stream: without control characters and in its encoding."""
    line = plain(text, 500)
    if console.encoding.lower().startswith("utf"):
        return line
    return line.translate(_ASCII).encode(console.encoding, "backslashreplace").decode(console.encoding)
