"""Files that steer a build or a training, as parsers under attack: plans, sensitivity maps, recipes, trained codes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import tiny
from tiny import Tiny

from edgekit import targets
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.grids import get
from edgekit.quantize import plan_file, sensitivity_map, trained
from edgekit.quantize.choose import choose
from edgekit.quantize.groups import fitting, groups
from edgekit.quantize.sensitivity_map import GroupDamage, SensitivityMap
from edgekit.training import recipe

Target = Callable[[bytes], None]
Prepared = tuple[tuple[bytes, ...], Target]
MODEL = Tiny(hidden=32, ffn=64, layers=1, heads=2, kv_heads=1, head_dim=32, vocab=300, dtype="f32")
"""Rows that blocks of 32 fit."""
RECIPE_WORDS = (
    "grid", "[objective]", "[blockwise]", "[end_to_end]", "distill", "dispersion", "weight = 1e400", "steps", "rate",
    '"int3"', '"int4-sym-b32"', '"Q9"', '""', "nan", "inf", "-1", "0", "1e-300", "9999999999999999999", "true", "[]",
    "[[objective]]", "a.b.c = 1", "1979-05-27T07:32:00Z", "'''", "\\u0000", "#",
)  # fmt: skip
"""What stands in a recipe, and what should not."""
_FORMATS = ("Q4_0", "Q8_0", "IQ4_NL")


def plan(folder: Path) -> Prepared:
    """A plan's file, followed in both containers."""
    checkpoint, board = open_checkpoint(tiny.make(folder / "model", MODEL)), targets.load("rpi5")
    made = [choose(checkpoint.spec, board, container, 4) for container in ("gguf", "onnx")]
    assert checkpoint.sha256  # asked for outside the attack

    def target(data: bytes) -> None:
        (folder / "plan.json").write_bytes(data)
        found = plan_file.read(folder / "plan.json")
        for part in found.plans:
            plan_file.follow(found, checkpoint, board, part.format)

    return (plan_file.to_json(checkpoint, made), plan_file.to_json(checkpoint, made[:1])), target


def sensitivity(folder: Path) -> Prepared:
    """A sensitivity map, checked against its model."""
    checkpoint = open_checkpoint(tiny.make(folder / "model", MODEL))
    damages = []
    for group in groups(checkpoint.spec, "gguf"):
        names = fitting(group, "gguf", _FORMATS)
        damages.append(
            GroupDamage(
                tensors=group.names, anchor=names[0], kl=0.25, errors=dict.fromkeys(names, 0.5),
                bytes={name: group.nbytes(name) for name in names},
            )
        )  # fmt: skip
    seed = sensitivity_map.to_json(
        SensitivityMap(
            model=checkpoint.name, model_sha256=checkpoint.sha256, container="gguf", text_sha256="ab" * 32, tokens=8,
            groups=tuple(damages),
        )
    )  # fmt: skip

    def target(data: bytes) -> None:
        (folder / "map.json").write_bytes(data)
        sensitivity_map.chosen([folder / "map.json"], checkpoint, "gguf")

    return (seed,), target


def recipes(folder: Path) -> Prepared:
    """A recipe of somebody else's."""
    seeds = tuple(files("edgekit.recipes").joinpath(f"{name}.toml").read_bytes() for name in recipe.names())

    def target(data: bytes) -> None:
        (folder / "own.toml").write_bytes(data)
        found = recipe.load(folder / "own.toml")
        recipe.changed(found, {"objective": {}})

    return seeds, target


def codes(folder: Path) -> Prepared:
    """Codes that a training left beside the weights: listed, read, decoded and compared."""
    root = tiny.make(folder / "model", MODEL)
    checkpoint = open_checkpoint(root)
    seeds = []
    for grid in ("int3-sym-b32", "Q4_0", "int4-asym-b32"):
        linear = [tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"]
        trained.save(root, {t.hf: get(grid).quantize(checkpoint.read(t)) for t in linear[:3]})
        seeds.append((root / trained.FILE).read_bytes())

    def target(data: bytes) -> None:
        (root / trained.FILE).write_bytes(data)
        found = trained.places(checkpoint)
        for tensor in checkpoint.spec.tensors:
            if (place := found.get(tensor.hf)) is not None:
                assert trained.fits(checkpoint, tensor, place) in (True, False)

    return tuple(seeds), target
