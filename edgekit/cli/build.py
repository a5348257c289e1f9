"""`edgekit build`: from a model to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from edgekit.cli.budget_options import budget_options, portable_option
from edgekit.cli.runtime import runtime_options
from edgekit.cli.source_options import source_options
from edgekit.errors import GateError, one_line
from edgekit.options import Budget, Container, Effort, Exporter, Options, RuntimeOptions, SourceOptions, Toolchain

if TYPE_CHECKING:
    from edgekit.report.model import Artefact


@click.command("build")
@click.argument("model", required=False)
@source_options
@click.option(
    "--target", default="rpi5", show_default=True, help="Board: a name of `edgekit targets`, or a .toml file."
)
@budget_options
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE", help="Follow this plan of `edgekit plan -o`.")
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
@click.option(
    "--imatrix", type=click.Path(path_type=Path), metavar="FILE",
    help="Weigh inputs by this importance matrix of llama-imatrix or `edgekit imatrix` (GGUF or .dat).",
)  # fmt: skip
@click.option("--no-calibration", is_flag=True, help="Let all inputs of a layer weigh the same.")
@click.option(
    "--effort", type=click.Choice(["fast", "good", "best"]), default="fast", show_default=True,
    help="How codes are found: each weight by itself (fast: seconds), by what layers say (good: GPTQ, minutes), or by "
    "what blocks say (best: learned after GPTQ, long).",
)  # fmt: skip
@click.option(
    "--disperse", metavar="RECIPE",
    help="Train on the plan's formats first: a recipe's name (see docs/training.md), or a .toml file.",
)  # fmt: skip
@click.option(
    "--train-text", multiple=True, metavar="SOURCE",
    help="What --disperse trains on: a text file, .jsonl, a folder, or hub:NAME; repeat for several; default: the "
    "calibration text.",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin an interrupted --disperse anew instead of going on with it.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the generated text.")
@portable_option
@click.option(
    "--active", type=click.FloatRange(0.05, 1, max_open=True), metavar="SHARE",
    help="Let only this share of the linear layers' connections fire: small inputs count as zero, and their weights "
    "are not read. For 3 bits of ONNX; see docs/economy.md.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Refuse when a layer cannot take the requested bits.")
@click.option(
    "--gate", is_flag=True, help="Exit with an error when a limit of the target is exceeded (the bundle is kept)."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--llama-cpp", type=click.Path(path_type=Path), metavar="DIR",
    help="Make GGUF with the converter of this llama.cpp source tree: for families that edgekit does not know.",
)  # fmt: skip
@click.option(
    "--exporter", type=click.Choice(["edgekit", "optimum"]), default="edgekit", show_default=True,
    help="Who makes the ONNX graph; optimum's exporter knows more families, see docs/escape-hatches.md.",
)  # fmt: skip
@click.option("--no-runtime", is_flag=True, help="Artefacts only: no engines for the board in the bundle.")
@runtime_options
@click.option("--no-cache", is_flag=True, help="Make every stage anew and keep none; see edgekit cache.")
def command(
    model: str | None, source: SourceOptions, target: str, bits: int, budget: Budget | None,
    sensitivity: tuple[Path, ...], plan: Path | None, formats: tuple[Container, ...], output: Path,
    text: Path | None, calibration_text: Path | None, imatrix: Path | None, no_calibration: bool, effort: Effort,
    disperse: str | None, train_text: tuple[str, ...], restart: bool, seed: int, portable: bool,
    active: float | None, strict: bool, gate: bool, force: bool, llama_cpp: Path | None, exporter: Exporter,
    no_runtime: bool, toolchain: Toolchain, accel: Literal["none", "cuda"], no_cache: bool,
) -> None:  # fmt: skip
    """Build MODEL into a bundle for a board.

    MODEL is a Hugging Face folder, a GGUF file or org/name on the hub; default: the demo, SmolLM2-135M.

    The bundle holds the quantized model, its tokenizer, a sealed reference of the original, a report, and the engines
    for the board's CPU (compiled the first time, which takes minutes; --no-runtime leaves them out). A build that does
    not say what the original says is stopped.
    """
    from edgekit.api import build
    from edgekit.progress import Bars
    from edgekit.report.terminal import show

    asked = click.get_current_context().get_parameter_source("formats") is not ParameterSource.DEFAULT
    options = Options(
        bits=bits, formats=tuple(dict.fromkeys(formats)), asked=asked, portable=portable, active=active, strict=strict,
        force=force, text=text, calibrate=not no_calibration, calibration_text=calibration_text, imatrix=imatrix,
        effort=effort, seed=seed,
        budget=budget, sensitivity=sensitivity, plan=plan, cache=not no_cache, llama_cpp=llama_cpp, exporter=exporter,
        disperse=disperse, train_text=train_text, restart=restart,
        runtime=None if no_runtime else RuntimeOptions(toolchain, accel, source.offline),
    )  # fmt: skip
    built = build(model, target=target, output=output, options=options, source=source, progress=Bars())
    show(built.report)
    for line in filter(None, map(_kept_to, built.report.artefacts)):
        click.echo(line)
    click.echo(f"bundle: {one_line(str(built.bundle))}")
    if gate and not built.passed:
        failed = next(artefact for artefact in built.report.artefacts if not artefact.verdict.passed)
        raise GateError(f"{failed.format}: {failed.verdict.sentence}", remedy=f"the bundle is in {built.bundle}")


def _kept_to(artefact: Artefact) -> str | None:
    """How well a plan under a budget was predicted."""
    if (planned := artefact.planned) is None:
        return None
    ratio = "" if planned.measured_ratio is None else f", {planned.measured_ratio:.2f} times as much"
    return (
        f"{artefact.format.upper()}: {planned.budget} asked, {artefact.bytes / 1e6:.2f} MB; KL divergence predicted "
        f"{planned.predicted_kl:.4f} nats, measured {artefact.coherence.kl_mean:.4f}{ratio}"
    )
