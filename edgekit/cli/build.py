"""`edgekit build`: from a model to a verified bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.errors import GateError, MissingDependencyError, OptionError, TextError
from edgekit.options import Container


@click.command("build")
@click.argument("model", required=False)
@click.option(
    "--target", default="rpi5", show_default=True, help="Board: a name of `edgekit targets`, or a .toml file."
)
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True, help="Bits of a weight: 3, 4 or 8.")
@click.option(
    "--format", "formats", type=click.Choice(["gguf", "onnx"]), multiple=True, default=("gguf", "onnx"),
    show_default=True, help="Repeat for several.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Parent folder."
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="Evaluation text (UTF-8); default: the model writes its own."
)
@click.option(
    "--calibration-text", type=click.Path(path_type=Path), help="Calibration text (UTF-8); default: the model's own."
)
@click.option("--no-calibration", is_flag=True, help="Let all inputs of a layer weigh the same.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the generated text.")
@click.option("--strict", is_flag=True, help="Refuse when a layer cannot take the requested bits.")
@click.option(
    "--gate", is_flag=True, help="Exit with an error when a limit of the target is exceeded (the bundle is kept)."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def command(
    model: str | None, target: str, bits: int, formats: tuple[Container, ...], output: Path, text: Path | None,
    calibration_text: Path | None, no_calibration: bool, seed: int, strict: bool, gate: bool, force: bool,
) -> None:  # fmt: skip
    """Build MODEL (a Hugging Face folder; default: the demo, SmolLM2-135M) into a bundle for a board.

    The bundle holds the quantized model, its tokenizer, a sealed reference of the original, and a report. A build that
    does not say what the original says is stopped.
    """
    from edgekit.checkpoint.source import resolve
    from edgekit.checkpoint.tokenizer_fit import refuse_misfit
    from edgekit.targets import load

    # What is quick to check comes before PyTorch is loaded, which takes seconds.
    board, checkpoint = load(target), resolve(model)
    refuse_misfit(checkpoint)
    for option, path in (("--text", text), ("--calibration-text", calibration_text)):
        if path is not None and not path.is_file():
            raise TextError(f"there is no text file at {path}", remedy=f"check the path given with {option}")
    if calibration_text and no_calibration:
        raise OptionError("--calibration-text and --no-calibration contradict each other", remedy="give one of them")
    try:
        from edgekit.build import Options, build, bundle_name, plans
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the package {error.name} is not installed", remedy="pip install 'edgekit[build]', or see edgekit doctor"
        ) from error
    from edgekit.files import refuse_existing
    from edgekit.progress import Bars
    from edgekit.report.terminal import show

    options = Options(
        bits=bits, formats=tuple(dict.fromkeys(formats)), strict=strict, force=force, text=text,
        calibrate=not no_calibration, calibration_text=calibration_text, seed=seed,
    )  # fmt: skip
    bundle = output / bundle_name(checkpoint, board, options)
    refuse_existing(bundle, force)
    plans(checkpoint, board, options)
    report = build(checkpoint, board, bundle, options, Bars())
    show(report)
    click.echo(f"bundle: {bundle}")
    failed = [artefact for artefact in report.artefacts if not artefact.verdict.passed]
    if gate and failed:
        raise GateError(f"{failed[0].format}: {failed[0].verdict.sentence}", remedy=f"the bundle is in {bundle}")
