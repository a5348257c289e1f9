"""`edgekit imatrix`: the importance that builds weigh inputs by, for llama.cpp's tools."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.source_options import source_options
from edgekit.options import Options, SourceOptions


@click.command("imatrix")
@click.argument("model", required=False)
@source_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The importance matrix (GGUF).")
@click.option(
    "--calibration-text", type=click.Path(path_type=Path), help="Calibration text (UTF-8); default: the model's own."
)
@click.option(
    "--sequences", type=click.IntRange(1, 4096), default=16, show_default=True, help="Of the calibration text."
)
@click.option("--length", type=click.IntRange(2, 4096), default=128, show_default=True, help="Tokens of each.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the generated text.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--no-cache", is_flag=True, help="Make every stage anew and keep none; see edgekit cache.")
def command(
    model: str | None, source: SourceOptions, output: Path, calibration_text: Path | None, sequences: int, length: int,
    seed: int, force: bool, no_cache: bool,
) -> None:  # fmt: skip
    """Measure how much each input of MODEL's layers matters and write it as llama.cpp's importance matrix.

    The file is what llama-imatrix would write: llama-quantize takes it, and so does `edgekit build --imatrix`. With the
    default text and options it holds what a build measures by itself.
    """
    from edgekit.api import imatrix
    from edgekit.errors import one_line
    from edgekit.progress import Bars

    options = Options(
        calibration_text=calibration_text, sequences=sequences, length=length, seed=seed, cache=not no_cache,
        force=force,
    )  # fmt: skip
    found = imatrix(model, output, options=options, source=source, progress=Bars())
    click.echo(f"importance of the inputs of {len(found)} matrices: {one_line(str(output))}")
