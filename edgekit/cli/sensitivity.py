"""`edgekit sensitivity`: measure once what each format does to each tensor."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.source_options import source_options
from edgekit.options import Container, Options, SourceOptions


@click.command("sensitivity")
@click.argument("model", required=False)
@source_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The map's file, for --sensitivity."
)
@click.option(
    "--container", type=click.Choice(["gguf", "onnx"]), default="gguf", show_default=True,
    help="Which file format's number formats.",
)  # fmt: skip
@click.option(
    "--calibration-text", type=click.Path(path_type=Path), help="Calibration text (UTF-8); default: the model's own."
)
@click.option(
    "--imatrix", type=click.Path(path_type=Path), metavar="FILE",
    help="Weigh inputs by this importance matrix, as `edgekit build --imatrix` does.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the generated text.")
@click.option(
    "--sequences", type=click.IntRange(1, 16), default=4, show_default=True,
    help="Of 128 tokens of the calibration text to measure on: more are steadier and slower.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--no-cache", is_flag=True, help="Make every stage anew and keep none; see edgekit cache.")
def command(
    model: str | None, source: SourceOptions, output: Path, container: Container, calibration_text: Path | None,
    imatrix: Path | None, seed: int, sequences: int, force: bool, no_cache: bool,
) -> None:  # fmt: skip
    """Measure how much every tensor of MODEL suffers from every number format, for plans under a budget.

    One group of tensors at a time is quantized and the whole model asked for its KL divergence on calibration text:
    minutes for a small model. A killed run goes on where it was. `edgekit plan` and `build` measure by themselves what
    they are not given.
    """
    from edgekit.api import sensitivity
    from edgekit.errors import one_line
    from edgekit.progress import Bars

    options = Options(
        formats=(container,),
        calibration_text=calibration_text,
        imatrix=imatrix,
        seed=seed,
        cache=not no_cache,
        force=force,
        probes=sequences,
    )
    found = sensitivity(model, container, output=output, options=options, source=source, progress=Bars())
    worst = sorted(found.groups, key=lambda group: -group.kl)[:5]
    click.echo(f"{len(found.groups)} groups, each measured on {found.tokens} tokens; most sensitive at 4 bits:")
    for group in worst:
        click.echo(f"  {group.kl:.4f} nats in {group.anchor}: {one_line(', '.join(group.tensors))}")
    click.echo(f"map: {one_line(str(output))}")
