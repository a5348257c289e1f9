"""`edgekit survive`: what is left of models at fewer and fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.source_options import source_options
from edgekit.options import Options, SourceOptions

if TYPE_CHECKING:
    from edgekit.dispersion.survival import Survival


@click.command("survive")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@source_options
@click.option("--against", metavar="MODEL", help="Compare all with this one's full precision; default: each its own.")
@click.option("--grids", metavar="NAMES", help="Formats, separated by commas; default: 16, 8, 6, 5, 4, 3 and 2 bits.")
@click.option(
    "--artefacts",
    is_flag=True,
    help="Also as real files, run in llama.cpp or onnxruntime; default: all formats that these have.",
)
@click.option("--noise", is_flag=True, help="Also Gaussian noise as large as each format's rounding.")
@click.option("--text", type=click.Path(path_type=Path), help="What they are judged on (UTF-8); default: the model's.")
@click.option(
    "--calibration-text", type=click.Path(path_type=Path), help="Calibration text (UTF-8); default: the model's own."
)
@click.option("--sequences", type=click.IntRange(1, 4096), default=16, show_default=True, help="Of each text.")
@click.option("--length", type=click.IntRange(2, 4096), default=128, show_default=True, help="Tokens of each.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of texts and noise.")
@click.option("--demo", is_flag=True, help="Show recorded curves of dense and dispersed twins; measure nothing.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="A page with the curve (HTML).")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="All figures.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--no-cache", is_flag=True, help="Make every stage anew and keep none; see edgekit cache.")
def command(
    models: tuple[str, ...], source: SourceOptions, against: str | None, grids: str | None, artefacts: bool,
    noise: bool, text: Path | None, calibration_text: Path | None, sequences: int, length: int, seed: int,
    demo: bool, output: Path | None, json_file: Path | None, force: bool, no_cache: bool,
) -> None:  # fmt: skip
    """Round each MODEL's linear layers to fewer and fewer bits and measure how far it drifts from full precision.

    Everything else stays in full precision and is computed in PyTorch, so that formats and models are compared and not
    engines. --artefacts shows beside it what engines make of real files; a format written gguf:Q4_0 or
    onnx:int4-sym-b32 is a file alone. A killed run goes on at its format.
    """
    if demo:
        _recorded((output, json_file), force)
        return
    from edgekit.api import survive
    from edgekit.cli.outputs import refuse_outputs, resolved, write
    from edgekit.dispersion.survival import ARTEFACTS, with_artefacts
    from edgekit.progress import Bars
    from edgekit.report.survival import render

    refuse_outputs((output, json_file), force)
    options = Options(
        text=text, calibration_text=calibration_text, sequences=sequences, length=length, seed=seed, cache=not no_cache
    )
    names = None if grids is None else tuple(name.strip() for name in grids.split(","))
    if artefacts:
        names = with_artefacts(names or ARTEFACTS)
    resolved(models, source)
    found = []
    for model in models or (None,):
        found.append(
            survive(model, against=against, grids=names, noise=noise, options=options, source=source, progress=Bars())
        )
        _show(found[-1])
    write(found, json_file, output, render, force=force)


def _recorded(outputs: tuple[Path | None, Path | None], force: bool) -> None:
    """What others measured before: said so in the terminal, in the page and in the figures."""
    from edgekit.cli.outputs import refuse_outputs, write
    from edgekit.dispersion.recorded import load
    from edgekit.report.survival import render

    _refuse_settings()
    refuse_outputs(outputs, force)
    found = load()
    for one in found.curves:
        _show(one)
    click.echo(found.label)
    page, figures = outputs
    write(found.figures(), figures, page, lambda _: render(found.curves, label=found.label), force=force)


def _refuse_settings() -> None:
    """Nothing but where to write can be asked of what is measured already.

    Raises:
        OptionError: names what was given.
    """
    from click.core import ParameterSource

    from edgekit.errors import OptionError

    context = click.get_current_context()
    own = {"demo", "output", "json_file", "force"}
    given = [
        parameter for parameter in context.command.params
        if parameter.name and parameter.name not in own
        and context.get_parameter_source(parameter.name) not in (ParameterSource.DEFAULT, None)
    ]  # fmt: skip
    if given:
        words = ", ".join(parameter.opts[0] if isinstance(parameter, click.Option) else "MODEL" for parameter in given)
        raise OptionError(
            f"--demo shows what was recorded, and {words} was given",
            expected="--demo with -o, --json and --force alone",
        )


def _show(found: Survival) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgekit.errors import one_line
    from edgekit.report.survival import short

    table = Table(title=escape(one_line(f"{found.model}, compared with {found.reference} in full precision")))
    titles, rows = short(found.points)
    for title in titles:
        table.add_column(title, justify="left" if title in ("format", "engine") else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)
