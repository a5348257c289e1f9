"""`edgekit plan`: what a build would give, without building."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from edgekit.cli.budget_options import budget_options, portable_option
from edgekit.cli.plan_curve import plans_of, show_curves, write_plan
from edgekit.cli.source_options import source_options
from edgekit.errors import OptionError
from edgekit.options import Budget, Container, Options, SourceOptions


@click.command("plan")
@click.argument("model", required=False)
@source_options
@click.option(
    "--target", default="rpi5", show_default=True, help="Board: a name of `edgekit targets`, or a .toml file."
)
@budget_options
@click.option(
    "--format",
    "formats",
    type=click.Choice(["gguf", "onnx"]),
    multiple=True,
    default=("gguf", "onnx"),
    show_default=True,
)
@click.option("--all", "every", is_flag=True, help="One line for each tensor instead of each role.")
@portable_option
@click.option("--strict", is_flag=True, help="Refuse when a layer cannot take the requested bits.")
@click.option("--pareto", is_flag=True, help="Show the whole curve: KL divergence against size and speed.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="With --pareto: a page with the picture.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the plan, to be edited and followed by `edgekit build --plan`.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str | None, source: SourceOptions, target: str, bits: int, budget: Budget | None,
    sensitivity: tuple[Path, ...], formats: tuple[Container, ...], every: bool, portable: bool, strict: bool,
    pareto: bool, html: Path | None, output: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show what building MODEL would give: format and real bits of each tensor, size, predicted speed and memory.

    A budget or --pareto needs the model's sensitivity, which takes minutes to measure and is kept.
    """
    from edgekit.checkpoint.source import resolve
    from edgekit.progress import Bars
    from edgekit.quantize.groups import stock
    from edgekit.quantize.plan import refuse_fallbacks
    from edgekit.quantize.predict import predict, refuse_too_big
    from edgekit.targets import load

    _refuse(budget, pareto, html, [path for path in (html, output) if path is not None], force)
    board, checkpoint = load(target), resolve(model, source, progress=Bars())
    board = stock(board) if portable else board
    formats = tuple(dict.fromkeys(formats))
    options = Options(bits=bits, budget=budget, sensitivity=sensitivity, formats=formats, portable=portable)
    if pareto:
        show_curves(checkpoint, board, options, html, as_json=as_json, force=force)
        return
    made = plans_of(checkpoint, board, options)
    if strict:
        for plan in made:
            refuse_fallbacks(plan)
    figures = [predict(checkpoint.spec, plan, board) for plan in made]
    if as_json:
        click.echo(json.dumps([_json(p, f) for p, f in zip(made, figures, strict=True)], indent=2))
    else:
        for plan, figure in zip(made, figures, strict=True):
            _show(plan, figure, board.name, every)
    for plan in made:
        refuse_too_big(checkpoint.spec, plan, board)
    if output is not None:
        write_plan(checkpoint, made, output, force=force)


def _refuse(budget: Budget | None, pareto: bool, html: Path | None, outputs: list[Path], force: bool) -> None:
    from edgekit.files import refuse_existing

    if html is not None and not pareto:
        raise OptionError("--html is given without --pareto", remedy="add --pareto")
    if pareto and (budget is not None or len(outputs) > (html is not None)):
        raise OptionError("--pareto shows all plans", expected="neither a budget nor -o beside it")
    for path in outputs:
        refuse_existing(path, force)


def _json(plan: Any, figure: Any) -> dict[str, Any]:
    return {
        "format": plan.container, "requested_bits": plan.bits, "effective_bits": plan.effective_bits,
        "bytes": plan.nbytes, "budget": plan.budget or None,
        "predicted": {
            "ram_mib": figure.ram_mib, "usable_mib": figure.usable_mib, "bytes_per_token": figure.bytes_per_token,
            "tokens_per_second": figure.tokens_per_second, "basis": figure.basis, "fits": figure.fits,
            "kl": plan.predicted_kl,
        },
        "tensors": [
            {"tensor": e.tensor.hf, "role": e.tensor.role, "shape": e.tensor.shape, "requested_bits": e.requested_bits,
             "grid": e.grid, "bits": e.bits, "bytes": e.nbytes, "reason": e.reason}
            for e in plan.entries
        ],
    }  # fmt: skip


def _show(plan: Any, figure: Any, target: str, every: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # a file or pipe has no width: cut no names
        console = Console(width=160)
    table = Table(title=f"{plan.container.upper()} for {target}: {plan.title()}", title_justify="left")
    for name in ("tensor" if every else "role", "shape", "count", "asked", "format", "bits", "MiB", "note"):
        justify: Literal["left", "right"] = "right" if name in ("count", "asked", "bits", "MiB") else "left"
        table.add_column(name, justify=justify, no_wrap=name != "tensor", overflow="fold")
    notes: list[str] = []
    for entries in _groups(plan, every):
        first, total = entries[0], sum(e.nbytes for e in entries)
        if first.reason and first.reason not in notes:
            notes.append(first.reason)
        table.add_row(
            first.tensor.hf if every else first.tensor.role, "×".join(map(str, first.tensor.shape)), str(len(entries)),
            str(first.requested_bits), first.grid, f"{first.bits:.2f}", f"{total / 2**20:.1f}",
            str(notes.index(first.reason) + 1) if first.reason else "",
        )  # fmt: skip
    console.print(table)
    for number, note in enumerate(notes, 1):
        console.print(f"{number}: not as asked because of {note}", highlight=False)
    speed = f"{figure.tokens_per_second:.0f} tokens/s" if figure.tokens_per_second else "unknown tokens/s"
    console.print(
        f"weights {figure.file_mib:.1f} MiB · reads {figure.bytes_per_token / 2**20:.1f} MiB per token · predicted: "
        f"{speed} decode from {figure.basis}, {figure.ram_mib:.0f} of {figure.usable_mib} usable MiB RAM "
        f"({'fits' if figure.fits else 'does not fit'})",
        highlight=False,
    )
    if plan.predicted_kl is not None:
        how = "the best choice" if plan.gap == 0 else f"within {100 * plan.gap:.2g} % of the best choice"
        console.print(f"KL divergence predicted: {plan.predicted_kl:.4f} nats, {how} by the map", highlight=False)


def _groups(plan: Any, every: bool) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for entry in plan.entries:
        key = entry.tensor.hf if every else (entry.tensor.role, entry.grid, entry.tensor.shape)
        groups.setdefault(key, []).append(entry)
    return list(groups.values())
