"""`edgekit inspect`: what a model folder, a bundle or a model file holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgekit.cli.source_options import source_options
from edgekit.options import SourceOptions

if TYPE_CHECKING:
    from edgekit.inspecting_files import Findings, Row, Value

_MOST_ROWS = 40
_WORDS = ("claim_against_bytes",)


@click.command("inspect")
@click.argument("what")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every row.")
def command(what: str, source: SourceOptions, as_json: bool) -> None:
    """Show what WHAT holds: a model folder, a bundle, a .gguf, .onnx or .safetensors file, or org/name on the hub.

    No weight is loaded. Bits are counted from the files' bytes, scales and everything else included.
    """
    from edgekit.inspecting import inspect
    from edgekit.progress import Bars

    findings = inspect(what, source, progress=Bars())
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(findings), indent=2))
    else:
        _show(findings)


def _show(findings: Findings) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgekit.bundle.paths import plain

    console = Console(highlight=False)
    console.print(Text(f"{plain(findings.path, 1000)}: {findings.kind}"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    for key, value in findings.facts.items():
        if value is not None:
            facts.add_row(Text(_title(key)), Text(_shown(key, value), overflow="fold"))
    console.print(facts)
    for name, rows in findings.tables.items():
        if rows:
            console.print(_table(name, rows))
            if len(rows) > _MOST_ROWS:
                console.print(f"… and {len(rows) - _MOST_ROWS} more, with --json")


def _table(name: str, rows: Sequence[Row]) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=name.replace("_", " "), title_justify="left")
    for key in rows[0]:
        number = any(isinstance(row[key], int | float) for row in rows)
        table.add_column(_title(key), justify="right" if number else "left", overflow="fold")
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(Text(_shown(key, value)) for key, value in row.items()))
    return table


def _title(key: str) -> str:
    """Key of the JSON → words; bytes are shown in MiB."""
    words = key.replace("_", " ")
    return words.removesuffix("bytes") + "MiB" if key.endswith("bytes") and key not in _WORDS else words


def _shown(key: str, value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if key.endswith("bytes"):
        return f"{value / 2**20:.2f}"
    if key == "share":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
