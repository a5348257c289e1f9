"""The coherence table on a terminal: what report.html says, on one screen of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.bundle.paths import plain
from edgekit.report import compared, rows
from edgekit.report.model import Artefact, Report
from edgekit.report.words import answers, number, runtime

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {"PASS": "bold green", "FAIL": "bold red", "NOT JUDGED": "bold yellow"}
_ASCII = str.maketrans(
    {"±": "+/-", "Δ": "delta ", "→": "->", "\N{MULTIPLICATION SIGN}": "x", "\N{EN DASH}": "-", "—": "-", "…": "..."}
)
_LINE_LIMIT = 400
"""Characters of a name, title, caveat or sentence."""


def show(report: Report) -> None:
    """Print verdicts, table, caveats and predictions on standard output, as wide as the terminal (80 in a pipe).

    Characters that the stream's encoding lacks are replaced, and no escape sequence in a model's name gets through.
    """
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    _say(console, "", f"{report.model} for {report.target_title}: {rows.outcome(report)}", "bold")
    for artefact in report.artefacts:
        word = rows.verdict_word(artefact)
        _say(console, f"{rows.name(artefact)} ", f"{word}: {artefact.title}", _STYLES[word])
    console.print(_table(console, report))
    for artefact in report.artefacts:
        _training(console, artefact)
    _say(console, "Measured on this host, on ", report.text)
    _say(console, "Calibration: ", report.calibration)
    for artefact in report.artefacts:
        if artefact.coherence.items is not None:
            _say(console, f"{rows.name(artefact)} ", answers(artefact.coherence.items))
    for artefact in report.artefacts:
        if not artefact.verdict.passed:
            _say(console, f"{rows.name(artefact)} ", artefact.verdict.sentence, "red")
    for caveat in report.caveats:
        _say(console, "Caveat: ", caveat, "yellow")
    _predictions(console, report)
    if report.runtime is not None:
        _say(console, "Runtime: ", runtime(report.runtime))


def _training(console: Console, artefact: Artefact) -> None:
    """The original, the plan without training, and the trained artefact side by side."""
    from rich import box
    from rich.table import Table

    if (found := artefact.dispersed) is None:
        return
    _say(console, f"{rows.name(artefact)}: trained ", compared.sentence(found.training))
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for title in (f"{rows.name(artefact)}, measured", "original", "without training", "trained"):
        table.add_column(title, justify="left" if title.startswith(rows.name(artefact)) else "right", overflow="fold")
    for line in compared.lines(artefact):
        table.add_row(*(_cell(console, text) for text in (line.title, line.original, line.plain, line.trained)))
    console.print(table)


def _predictions(console: Console, report: Report) -> None:
    for artefact in report.artefacts:
        found = artefact.predicted
        memory = f"{number(found.ram_mib)} of {found.usable_mib:,} MiB RAM"
        text = f"{rows.speed(artefact)}, {memory} on {report.target}; from {found.basis}"
        _say(console, f"Predicted, not measured, {rows.name(artefact)}: ", text)


def _say(console: Console, head: str, text: str, style: str = "") -> None:
    from rich.text import Text

    line = Text.assemble(head, (_shown(console, text), style))
    console.print(line, overflow="fold")


def _shown(console: Console, text: str) -> str:
    """`text` in one line, fit for the stream: without control characters and in its encoding."""
    line = plain(text, _LINE_LIMIT)
    if console.encoding.lower().startswith("utf"):
        return line
    return line.translate(_ASCII).encode(console.encoding, "backslashreplace").decode(console.encoding)


def _table(console: Console, report: Report) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column("Measured", overflow="fold")
    for artefact in report.artefacts:
        table.add_column(rows.name(artefact), justify="right", overflow="fold")
    groups = (rows.FILES, rows.DIVERGENCE, rows.PREDICTION, rows.ANSWERS, rows.GENERATION, rows.RISES, rows.PARITY)
    for group in groups:
        brief = [row for row in group if row.brief]
        for row in brief:
            cells = [row.show(artefact) for artefact in report.artefacts]
            title = f"{row.title}, {row.unit}" if row.unit else row.title
            table.add_row(*(_cell(console, text) for text in (title, *cells)), end_section=row is brief[-1])
    return table


def _cell(console: Console, text: str) -> Text:
    from rich.text import Text

    return Text(_shown(console, text))
