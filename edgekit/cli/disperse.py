"""`edgekit disperse`: train a model so that it survives few bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.source_options import source_options
from edgekit.options import SourceOptions

if TYPE_CHECKING:
    from edgekit.training.record import Run

_TABLES = {
    "grid": "", "length": "", "seed": "",
    "loss": "objective", "weight": "objective", "temperature": "objective", "layers": "objective",
    "distill": "objective", "cross_entropy": "objective",
}  # fmt: skip
"""Options that are not of the table end_to_end."""
_NAMES = {"weight": "dispersion", "distill": "distillation"}
_LIMITS = ("steps", "tokens", "minutes")


@click.command("disperse")
@click.argument("model", required=False)
@source_options
@click.option(
    "--from-scratch",
    type=click.Path(path_type=Path),
    metavar="CONFIG",
    help="Instead of MODEL: a config.json to make a model with random weights of.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --from-scratch: the folder of a tokenizer.json, or that file.  [default: CONFIG's folder]",
)
@click.option(
    "--text",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="What to train on: a text file, .jsonl, a folder, or hub:NAME[:SPLIT]; several are joined.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="The trained model."
)
@click.option(
    "--recipe",
    metavar="NAME",
    help="A recipe of edgekit, or a .toml file.  [default: int4; scratch with --from-scratch]",
)
@click.option(
    "--grid",
    metavar="FORMAT",
    help="Number format to train on: int4, int3, or a name such as Q4_0; none: full precision.",
)
@click.option("--loss", help="Dispersion loss: angular_spread, orthogonalization, l2_repel or decorrelation.")
@click.option("--weight", type=float, help="Of the dispersion loss.")
@click.option("--temperature", type=float, help="Of the dispersion loss.")
@click.option("--layers", help="That are dispersed: all, last, early_half or late_half.")
@click.option("--distill/--no-distill", default=None, help="KL divergence from the full-precision parent.")
@click.option("--cross-entropy", type=float, metavar="WEIGHT", help="Of predicting the text itself.")
@click.option("--average", type=click.Choice(["none", "lawa", "ema"]), help="Of the weights along the training.")
@click.option("--steps", type=int, help="Optimizer steps; the first limit that is met counts.")
@click.option("--tokens", type=int, help="Tokens to train on.")
@click.option("--minutes", type=float, help="Of training the whole model.")
@click.option("--batch", type=int, help="Sequences of a pass on each device.")
@click.option("--accumulate", type=int, help="Passes of an optimizer step.")
@click.option("--length", type=int, help="Tokens of a sequence.")
@click.option("--learning-rate", type=float, help="AdamW's, of what is on no grid.")
@click.option("--schedule", type=click.Choice(["cosine", "wsd"]), help="Of the rates.")
@click.option("--gradient-checkpointing", is_flag=True, default=None, help="Less memory, more time.")
@click.option("--seed", type=int, help="Of the order of the text and of everything drawn, random weights included.")
@click.option("--keep-every", type=int, metavar="STEPS", help="Write the weights so often, to FOLDER/checkpoints.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with an interrupted training.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def command(
    model: str | None, source: SourceOptions, from_scratch: Path | None, tokenizer: Path | None,
    text: tuple[str, ...], output: Path, recipe: str | None, restart: bool, force: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train MODEL so that it survives few bits, and write an ordinary Hugging Face folder that `edgekit build` takes.

    A recipe says what is done; options change it. On a grid, codes and scales are written beside the weights and
    exported bit for bit. With --from-scratch there is no MODEL: random weights are trained on the text alone. A killed
    training goes on when the same command is given again. On several devices: `accelerate launch -m edgekit disperse`.
    """
    from edgekit import api
    from edgekit.progress import Bars

    changes, shown = _changes(settings), Bars()
    _refuse_both(model, source, from_scratch, tokenizer)
    if from_scratch is not None:
        run = _beginner()(
            from_scratch, output, text=text, tokenizer=tokenizer, recipe=recipe or "scratch", changes=changes,
            force=force, restart=restart, progress=shown,
        )  # fmt: skip
    else:
        run = api.disperse(
            model, output, text=text, recipe=recipe or "int4", changes=changes, source=source, force=force,
            restart=restart, progress=shown,
        )  # fmt: skip
    _show(run, output)


def _beginner() -> Callable[..., Run]:
    from edgekit.errors import MissingDependencyError

    try:
        from edgekit.dispersing import from_scratch
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the package {error.name} is not installed", remedy="pip install 'edgekit[build]', or see edgekit doctor"
        ) from error
    return from_scratch


def _refuse_both(model: str | None, source: SourceOptions, config: Path | None, tokenizer: Path | None) -> None:
    from edgekit.errors import OptionError

    if config is None:
        if tokenizer is not None:
            raise OptionError(
                "--tokenizer is given without --from-scratch", expected="a MODEL's own tokenizer, which it always has"
            )
        return
    given = {"MODEL": model, "--lora": source.lora, "--revision": source.revision}
    if both := [name for name, value in given.items() if value is not None]:
        raise OptionError(
            f"{both[0]} ({given[both[0]]}) and --from-scratch ({config}) are both given",
            expected="a model to go on with, or a configuration to begin from",
        )


def _changes(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Table of the recipe → values that were given; a limit that is given stands for the recipe's."""
    found: dict[str, dict[str, Any]] = {}
    if any(settings[name] is not None for name in _LIMITS):
        found["end_to_end"] = dict.fromkeys(_LIMITS, 0)
    for name, value in settings.items():
        if value is None:
            continue
        if name == "distill":
            value = float(value)
        if name == "grid" and value == "none":
            value = ""
        found.setdefault(_TABLES.get(name, "end_to_end"), {})[_NAMES.get(name, name)] = value
    return found


def _show(run: Run, output: Path) -> None:
    from edgekit.errors import one_line

    first, last = run.held_out[0], run.held_out[-1]
    click.echo(f"trained model: {one_line(str(output))} ({run.seconds / 60:.1f} minutes)")
    grids = ", ".join(f"{count} matrices on {name}" for name, count in run.grids.items()) or "full precision"
    begun = f"{run.beginning}; " if run.beginning else ""
    click.echo(f"{begun}{grids}; held-out text, {run.text.held_out} tokens of the same source:")
    if run.parent is not None:
        click.echo(f"  KL divergence from {one_line(run.parent.name)}: {first.kl:.4f} → {last.kl:.4f} nats")
    click.echo(f"  cross-entropy: {first.cross_entropy:.4f} → {last.cross_entropy:.4f} nats")
