"""`edgekit condensation`: how condensed models are, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.source_options import source_options
from edgekit.options import Options, SourceOptions

if TYPE_CHECKING:
    from edgekit.dispersion.condensation import Condensation


@click.command("condensation")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@source_options
@click.option("--text", type=click.Path(path_type=Path), help="What they read (UTF-8); default: each its own.")
@click.option("--sequences", type=click.IntRange(1, 4096), default=16, show_default=True, help="Of the text.")
@click.option("--length", type=click.IntRange(2, 4096), default=512, show_default=True, help="Tokens of each.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the generated text.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="A page with the heat-maps.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="All figures.")
@click.option("--force", is_flag=True, help="Replace existing files.")
def command(
    models: tuple[str, ...], source: SourceOptions, text: Path | None, sequences: int, length: int, seed: int,
    html: Path | None, json_file: Path | None, force: bool,
) -> None:  # fmt: skip
    """Measure how far the tokens' vectors of each MODEL point the same way, layer by layer.

    Condensed embeddings lie in a narrow cone: the cosines between positions are near 1, the more the deeper the layer
    (arXiv:2602.00217). Several models are shown one after the other; give --text, so that they read the same.
    """
    from edgekit.api import condensation
    from edgekit.cli.outputs import refuse_outputs, resolved, write
    from edgekit.progress import Bars
    from edgekit.report.condensation import render

    refuse_outputs((html, json_file), force)
    options = Options(text=text, sequences=sequences, length=length, seed=seed)
    resolved(models, source)
    found = []
    for model in models or (None,):
        found.append(condensation(model, options=options, source=source, progress=Bars()))
        _show(found[-1])
    write(found, json_file, html, render, force=force)


def _show(found: Condensation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgekit.errors import one_line
    from edgekit.report.condensation import SHORT, row, trend_in_words

    table = Table(title=escape(one_line(found.model)))
    for title in SHORT:
        table.add_column(title, justify="right", no_wrap=True)
    for index, layer in enumerate(found.layers):
        table.add_row(*row(index, layer))
    console = Console()
    console.print(table)
    console.print(f"{trend_in_words(found)} {found.sequences} sequences of {found.length} tokens, {found.text}.")
