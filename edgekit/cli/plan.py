"""`edgekit plan`: what a build would give, without building."""

from __future__ import annotations

import json
from typing import Any, Literal

import click

from edgekit.cli.source_options import source_options
from edgekit.options import Container, SourceOptions


@click.command("plan")
@click.argument("model", required=False)
@source_options
@click.option(
    "--target", default="rpi5", show_default=True, help="Board: a name of `edgekit targets`, or a .toml file."
)
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True, help="Bits of a weight: 3, 4 or 8.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["gguf", "onnx"]),
    multiple=True,
    default=("gguf", "onnx"),
    show_default=True,
)
@click.option("--all", "every", is_flag=True, help="One line for each tensor instead of each role.")
@click.option("--strict", is_flag=True, help="Refuse when a layer cannot take the requested bits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str | None, source: SourceOptions, target: str, bits: int, formats: tuple[Container, ...], every: bool,
    strict: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show what building MODEL would give: format and real bits of each tensor, size, predicted speed and memory."""
    from edgekit.checkpoint.source import resolve
    from edgekit.progress import Bars
    from edgekit.quantize.choose import choose
    from edgekit.quantize.plan import refuse_fallbacks
    from edgekit.quantize.predict import predict, refuse_too_big
    from edgekit.targets import load

    board, checkpoint = load(target), resolve(model, source, progress=Bars())
    made = [choose(checkpoint.spec, board, container, bits) for container in dict.fromkeys(formats)]
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


def _json(plan: Any, figure: Any) -> dict[str, Any]:
    return {
        "format": plan.container, "requested_bits": plan.bits, "effective_bits": plan.effective_bits,
        "bytes": plan.nbytes,
        "predicted": {
            "ram_mib": figure.ram_mib, "usable_mib": figure.usable_mib, "bytes_per_token": figure.bytes_per_token,
            "tokens_per_second": figure.tokens_per_second, "basis": figure.basis, "fits": figure.fits,
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


def _groups(plan: Any, every: bool) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for entry in plan.entries:
        key = entry.tensor.hf if every else (entry.tensor.role, entry.grid, entry.tensor.shape)
        groups.setdefault(key, []).append(entry)
    return list(groups.values())
