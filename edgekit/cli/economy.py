"""`edgekit economy`: what a token needs, and what it can do without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.source_options import source_options
from edgekit.errors import OptionError
from edgekit.options import Container, Options, SourceOptions

if TYPE_CHECKING:
    from edgekit.bench.result import BenchResult
    from edgekit.economy.record import Economy


@click.command("economy")
@click.argument("models", nargs=-1, metavar="[MODEL|BUNDLE]...")
@source_options
@click.option("--against", metavar="MODEL", help="Compare all with this one's full precision; default: each its own.")
@click.option("--target", help="Board whose speed and energy are predicted; default: a bundle's own, or rpi5.")
@click.option("--bits", type=click.Choice(["3", "4", "8"]), default="4", show_default=True, help="Whose bytes count.")
@click.option(
    "--format", "container", type=click.Choice(["gguf", "onnx"]), default="gguf", show_default=True,
    help="Whose bytes count.",
)  # fmt: skip
@click.option(
    "--grids", metavar="NAMES",
    help="Compute and count the linear layers in these formats, separated by commas; `own` is the model as it is.",
)  # fmt: skip
@click.option("--shares", metavar="NUMBERS", help="Of the connections left out, separated by commas, such as 0.1,0.3.")
@click.option(
    "--max-kl", type=click.FloatRange(0), default=0.03, show_default=True, help="Nats that leaving out may cost."
)
@click.option("--uniform", is_flag=True, help="Leave the same share out of every layer, not what costs least.")
@click.option(
    "--bench", type=click.Path(path_type=Path), metavar="FILE",
    help="A result of `edgekit bench --json` on a board: its speed and energy stand beside the predicted ones.",
)  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), help="What they are judged on (UTF-8); default: the model's.")
@click.option(
    "--calibration-text", type=click.Path(path_type=Path),
    help="What thresholds are found on (UTF-8); default: the model's own.",
)  # fmt: skip
@click.option("--sequences", type=click.IntRange(1, 4096), default=16, show_default=True, help="Of each text.")
@click.option("--length", type=click.IntRange(2, 4096), default=128, show_default=True, help="Tokens of each.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the texts.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="A page with the curve (HTML).")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="All figures.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--no-cache", is_flag=True, help="Make every stage anew and keep none; see edgekit cache.")
def command(
    models: tuple[str, ...], source: SourceOptions, against: str | None, target: str | None, bits: str,
    container: Container, grids: str | None, shares: str | None, max_kl: float, uniform: bool, bench: Path | None,
    text: Path | None, calibration_text: Path | None, sequences: int, length: int, seed: int, output: Path | None,
    json_file: Path | None, force: bool, no_cache: bool,
) -> None:  # fmt: skip
    """Count what a token of each MODEL needs: connections, multiply-adds, bytes, predicted time and energy.

    Then inputs of the linear layers that are small are left out, more and more of them, and the divergence from full
    precision is measured: how many connections must fire for the answer to be right. Of a bundle, its GGUF file is
    taken.
    """
    from edgekit.api import economy
    from edgekit.cli.outputs import refuse_outputs, resolved, write
    from edgekit.counting import counted
    from edgekit.progress import Bars
    from edgekit.report.economy import render

    refuse_outputs((output, json_file), force)
    options = Options(
        bits=int(bits), text=text, calibration_text=calibration_text, sequences=sequences, length=length, seed=seed,
        cache=not no_cache,
    )  # fmt: skip
    parts, measured, found = _numbers(shares), _measured(bench), []
    resolved([str(counted(model).path) for model in models], source)
    for model in models or (None,):
        for grid in _grids(grids):
            found.append(
                economy(
                    model, against=against, target=target, container=container, grid=grid, shares=parts, max_kl=max_kl,
                    uniform=uniform, measured=measured,
                    options=options, source=source, progress=Bars(),
                )
            )  # fmt: skip
            _show(found[-1])
    write(found, json_file, output, render, force=force)


def _measured(path: Path | None) -> BenchResult | None:
    if path is None:
        return None
    from edgekit.bench.result import from_json
    from edgekit.cli.bench_outputs import read

    return from_json(read(path), str(path))


def _grids(names: str | None) -> tuple[str | None, ...]:
    if names is None:
        return (None,)
    return tuple(None if name.strip() == "own" else name.strip() for name in names.split(","))


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--shares is {text!a}", expected="numbers separated by commas, such as 0.1,0.3") from error


def _show(found: Economy) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgekit.errors import one_line
    from edgekit.report.economy import SHORT, chosen_in_words, short, title, whole_in_words

    console = Console()
    table = Table(title=escape(one_line(title(found))))
    for name in SHORT:
        table.add_column(name, justify="right", no_wrap=True)
    for point in found.points:
        table.add_row(*short(found, point))
    console.print(table)
    for line in (*whole_in_words(found), chosen_in_words(found)):
        console.print(escape(one_line(line)), highlight=False)
