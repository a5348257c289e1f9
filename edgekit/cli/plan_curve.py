"""What `edgekit plan` does under a budget: sensitivity, the curve, the plan's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.errors import MissingDependencyError
from edgekit.options import Container, Options

if TYPE_CHECKING:
    from edgekit.checkpoint.checkpoint import Checkpoint
    from edgekit.quantize.budgeted import Allotment, Point
    from edgekit.quantize.plan import Plan
    from edgekit.targets import Target


def plans_of(checkpoint: Checkpoint, board: Target, options: Options) -> list[Plan]:
    """One plan a format, by the bits or under the budget.

    Raises:
        BudgetError, GridError, OptionError: see edgekit.quantize.
    """
    if options.budget is None:
        from edgekit.quantize.choose import choose

        return [
            choose(checkpoint.spec, board, container, options.bits, portable=options.portable)
            for container in options.formats
        ]
    from edgekit.quantize.budgeted import plan_under

    made = []
    for container in options.formats:
        allotment = _allotment(checkpoint, board, container, options)
        made.append(plan_under(options.budget, allotment))
    return made


def _allotment(checkpoint: Checkpoint, board: Target, container: Container, options: Options) -> Allotment:
    from edgekit.progress import Bars

    try:
        from edgekit import building, refining
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the package {error.name} is not installed", remedy="pip install 'edgekit[build]', or see edgekit doctor"
        ) from error
    if options.budget is not None:
        refining.refuse_unmet(checkpoint, board, container, options.budget)
    found = building.sensitivity_of(checkpoint, container, options, Bars(), board)
    return refining.allot(checkpoint, board, container, found)


def show_curves(
    checkpoint: Checkpoint, board: Target, options: Options, html: Path | None, *, as_json: bool, force: bool = False
) -> None:
    """Print the curve of every format, and write the page."""
    from edgekit.quantize.budgeted import curve

    found = {name: curve(_allotment(checkpoint, board, name, options)) for name in options.formats}
    if as_json:
        click.echo(json.dumps({name: [_json(point) for point in points] for name, points in found.items()}, indent=2))
    else:
        for name, points in found.items():
            _table(name, points, board)
    if html is not None:
        from edgekit.files import whole_file
        from edgekit.report.pareto import render

        with whole_file(html, force=force) as fresh:
            fresh.write_text(render(checkpoint.name, board.title, found), encoding="utf8")
        click.echo(f"page: {html}", err=as_json)


def _json(point: Point) -> dict[str, object]:
    return {
        "bytes": point.file_bytes, "kl": point.plan.predicted_kl, "tokens_per_second": point.tokens_per_second,
        "bits": point.plan.effective_bits, "shares": dict(point.plan.shares()), "gap": point.plan.gap,
    }  # fmt: skip


def _table(name: str, points: Sequence[Point], board: Target) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{name.upper()} for {board.name}: predicted, not measured", title_justify="left")
    for column in ("file MB", "bits", "KL, nats", "tokens/s", "formats"):
        table.add_column(column, justify="left" if column == "formats" else "right")
    for point in points:
        speed = "unknown" if point.tokens_per_second is None else f"{point.tokens_per_second:.1f}"
        shares = point.plan.shares(linear_only=True)
        total = sum(shares.values())
        words = ", ".join(f"{grid} {100 * size / total:.0f} %" for grid, size in shares.most_common(4))
        table.add_row(
            f"{point.file_bytes / 1e6:.2f}", f"{point.plan.effective_bits:.2f}", f"{point.plan.predicted_kl:.4f}",
            speed, words,
        )  # fmt: skip
    (console if console.is_terminal else Console(width=160)).print(table)


def write_plan(checkpoint: Checkpoint, made: Sequence[Plan], path: Path, *, force: bool) -> None:
    """Write the plans into one file."""
    from edgekit.files import whole_file
    from edgekit.quantize.plan_file import to_json

    with whole_file(path, force=force) as fresh:
        fresh.write_bytes(to_json(checkpoint, made))
    click.echo(f"plan: {path}", err=True)
