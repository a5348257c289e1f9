"""`edgekit doctor`: what is missing on this machine and how to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgekit.errors import MissingDependencyError

if TYPE_CHECKING:
    from edgekit.doctor import Finding


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Say what this machine has and lacks, with one command for each missing thing.

    "ok" is what was tried, "installed" what was only seen. Fails when no engine works.
    """
    from edgekit.doctor import engine_works, examine

    findings = examine()
    works = engine_works(findings)
    if as_json:
        _write_json(findings, works)
    else:
        _show(findings)
    if not works:
        raise MissingDependencyError(
            "no engine works on this machine", expected="llama.cpp or onnxruntime, and the base packages",
            remedy="pip install 'edgekit[gguf]' or pip install 'edgekit[onnx]'",
        )  # fmt: skip


def _write_json(findings: Sequence[Finding], works: bool) -> None:
    import json
    from dataclasses import asdict

    from edgekit.doctor import remedies

    data = {"engine_works": works, "findings": [asdict(f) for f in findings], "remedies": remedies(findings)}
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _show(findings: Sequence[Finding]) -> None:
    """Plain columns: the table must appear where rich is the missing package."""
    from edgekit.doctor import remedies

    rows = [("for", "part", "state", "tested", "found")]
    rows += [(f.group, f.part, "" if f.state == "info" else f.state, f.tested, f.found) for f in findings]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[4]]).rstrip())
    for command_line, parts in remedies(findings).items():
        click.echo(f"{', '.join(parts)}: {command_line}")
