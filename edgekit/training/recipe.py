"""How a model is trained, as data: what a recipe file holds and what the command line may change of it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgekit.errors import InputNotFoundError, OptionError

Average = Literal["none", "lawa", "ema"]
Schedule = Literal["cosine", "wsd"]
Train = Literal["all", "steps"]


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is made small, each part with its weight."""

    cross_entropy: float = 0.0
    distillation: float = 1.0
    """KL(parent ‖ model), nats per token."""
    dispersion: float = 0.0
    loss: str = "angular_spread"
    """A name of :data:`edgekit.dispersion.losses.LOSSES`."""
    temperature: float = 1.0
    layers: str = "late_half"


class Blockwise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each transformer block by itself, before the whole."""

    sequences: int = 64
    iterations: int = 48
    batch: int = 4
    """Sequences of an iteration."""
    rate: float = 0.02
    """Of a weight, in parts of its matrix's median step."""
    step_rate: float = 0.004
    """Of a step of the grid, in parts of the matrix's median step."""


class EndToEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole model."""

    train: Train = "all"
    """"steps": codes stay, only the grid's steps and what is on no grid and no matrix (norms, biases) learn."""
    steps: int = 0
    """Optimizer steps; with `tokens` and `minutes`, the first limit that is met counts. 0: no such limit."""
    tokens: int = 0
    minutes: float = 0.0
    """Turned into steps once the first ones have been timed."""
    batch: int = 4
    """Sequences of a forward pass on each device."""
    accumulate: int = 1
    """Passes of an optimizer step."""
    learning_rate: float = 5e-5
    """AdamW's, of what is on no grid."""
    code_rate: float = 0.01
    """Of weights on a grid, in parts of their matrix's median step."""
    step_rate: float = 0.004
    """Of the grid's steps, and of norms and biases beside a grid, in parts of the tensor's median magnitude."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Of the gradient's norm, without a grid; 0: never."""
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    """Share of the steps in which the rates rise."""
    decay: float = 0.2
    """Share of the steps in which "wsd" falls to zero."""
    average: Average = "none"
    average_every: int = 10
    """Steps between weights that are averaged."""
    average_last: int = 6
    """So many of them, for "lawa"."""
    average_decay: float = 0.9
    """Of "ema", each time."""
    gradient_checkpointing: bool = False
    keep_every: int = 0
    """Steps between weights that are written to OUT/checkpoints/step-NNNNNN, as they are, not averaged; 0: none."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole training."""

    about: str = ""
    cost: str = ""
    """Time and memory, measured: on what."""
    gives: str = ""
    """What it is measured to give: on what."""
    grid: str = ""
    """Number format of the linear layers; "" trains in full precision."""
    length: int = 256
    """Tokens of a sequence."""
    seed: int = 0
    objective: Objective = msgspec.field(default_factory=Objective)
    blockwise: Blockwise | None = None
    end_to_end: EndToEnd | None = None


_SHORT = {"int4": "int4-sym-b32", "int3": "int3-sym-b32"}
_LIMIT = 1 << 16
"""Bytes of a recipe: tomllib takes long over a large one that is made to be slow."""


def names() -> list[str]:
    """Names of the recipes that edgekit brings."""
    return sorted(item.name.removesuffix(".toml") for item in files("edgekit.recipes").iterdir() if _is_recipe(item))


def _is_recipe(item: Any) -> bool:
    return bool(item.name.endswith(".toml"))


def load(name: str | Path) -> Recipe:
    """The recipe of that name, or of that file.

    Raises:
        InputNotFoundError: there is neither.
        OptionError: the file is not a recipe; names the key.
    """
    if str(name) in names():
        return _parsed(files("edgekit.recipes").joinpath(f"{name}.toml").read_bytes(), str(name))
    path = Path(name)
    if not path.is_file() or path.suffix != ".toml":
        raise InputNotFoundError(f"there is no recipe {name}", expected=f"one of {', '.join(names())}, or a .toml file")
    with path.open("rb") as stream:
        data = stream.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise OptionError(f"{path} is no recipe: it is larger than {_LIMIT >> 10} KiB")
    return _parsed(data, str(path))


def _parsed(data: bytes, name: str) -> Recipe:
    try:
        return checked(msgspec.convert(tomllib.loads(data.decode()), Recipe))
    except (ValueError, RecursionError, OverflowError) as error:  # of TOML, UTF-8 and msgspec
        raise OptionError(
            f"{name} is not a recipe ({error})", expected="the keys that docs/training.md lists"
        ) from error


def changed(recipe: Recipe, parts: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with other values: of itself under "", of a table under its name.

    A table that the recipe has not, but some value is given for, has its defaults otherwise.

    Raises:
        OptionError: a value is out of its range.
    """
    whole = msgspec.to_builtins(recipe)
    for part, values in parts.items():
        given = {key: value for key, value in values.items() if value is not None}
        if part and given:
            whole[part] = {**(whole.get(part) or {}), **given}
        else:
            whole.update(given)
    if not whole["grid"]:  # what is of a grid goes with it
        whole["blockwise"] = None
        whole["end_to_end"] = {**(whole["end_to_end"] or {}), "train": "all"}
    try:
        return checked(msgspec.convert(whole, Recipe))
    except msgspec.ValidationError as error:
        raise OptionError(f"the settings are not a recipe ({error})") from error


def checked(recipe: Recipe) -> Recipe:
    """`recipe` with the grid's whole name.

    Raises:
        OptionError: a value is out of its range; names it.
    """
    for where, part in (
        ("", recipe),
        *((name, getattr(recipe, name)) for name in ("objective", "blockwise", "end_to_end")),
    ):
        for key, value in {} if part is None else msgspec.structs.asdict(part).items():
            low, high = _RANGES.get(key, (0, math.inf))
            if isinstance(value, (int, float)) and not (math.isfinite(value) and low <= value <= high):
                shown = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
                raise OptionError(f"{f'{where}.' if where else ''}{key} is {value}", expected=shown)
    if recipe.end_to_end is None and recipe.blockwise is None:
        raise OptionError("nothing is to be trained", expected="the table blockwise or end_to_end, or both")
    if recipe.blockwise is not None and not recipe.grid:
        raise OptionError(
            "blocks are to be trained on no grid", expected="a grid", remedy="give --grid, for example int3"
        )
    if (end := recipe.end_to_end) is not None:
        _check_end(recipe, end)
    return msgspec.structs.replace(recipe, grid=_SHORT.get(recipe.grid, recipe.grid))


def _check_end(recipe: Recipe, end: EndToEnd) -> None:
    if not (end.steps or end.tokens or end.minutes):
        raise OptionError("the training has no end", expected="a number of steps, tokens or minutes")
    if end.train == "steps" and not recipe.grid:
        raise OptionError("only the grid's steps are to be trained, and there is no grid", remedy="give --grid")
    target = recipe.objective
    if not (target.cross_entropy or target.distillation or target.dispersion):
        raise OptionError("every part of the loss has weight 0", expected="one that is larger")


_RANGES = {
    "length": (2, 1 << 20), "sequences": (1, 1 << 20), "iterations": (1, 1 << 20), "batch": (1, 1 << 16),
    "accumulate": (1, 1 << 16), "warmup": (0, 1), "decay": (0, 1), "average_every": (1, 1 << 20),
    "average_last": (1, 64), "average_decay": (0, 1), "temperature": (1e-6, math.inf), "seed": (0, 2**31 - 1),
    **dict.fromkeys(("learning_rate", "code_rate", "step_rate", "rate", "weight_decay"), (0, 1e30)),
    **dict.fromkeys(("steps", "keep_every"), (0, 1 << 40)), "tokens": (0, 1 << 50), "minutes": (0, 1e6),
}  # fmt: skip
"""Of numbers that may not be anything from 0 on."""
