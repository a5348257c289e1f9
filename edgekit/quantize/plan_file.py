"""A plan as a file: `edgekit plan -o` writes it, a person edits it, `edgekit build --plan` follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import FileFormatError, GridError, OptionError
from edgekit.grids import get
from edgekit.options import Container
from edgekit.quantize.budgeted import plan_of_grids
from edgekit.quantize.groups import Group, groups
from edgekit.quantize.json_file import read_json
from edgekit.quantize.plan import Plan
from edgekit.targets import Target

MAX_BYTES = 16 << 20
_Name = Annotated[str, Meta(min_length=1, max_length=512)]
_AGAIN = "write it again with edgekit plan -o"


class Listed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One container's part."""

    format: Container
    note: Annotated[str, Meta(max_length=4096)] = ""
    """What it was made for, for people."""
    tensors: Annotated[dict[_Name, Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=1_000_000)]
    """Hugging Face name of every matrix → grid. What is not a matrix is not listed: it stays in float32."""


class PlanFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of the file."""

    schema_version: Literal[1] = 1
    kind: Literal["edgekit plan"] = "edgekit plan"
    model: _Name
    model_sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
    """Of the weights."""
    plans: Annotated[tuple[Listed, ...], Meta(min_length=1, max_length=2)]


def to_json(checkpoint: Checkpoint, plans: Sequence[Plan]) -> bytes:
    """Indented JSON with a newline at the end."""
    listed = tuple(
        Listed(
            format=plan.container, note=plan.title(),
            tensors={entry.tensor.hf: entry.grid for entry in plan.entries if entry.tensor.rule.matrix},
        )
        for plan in plans
    )  # fmt: skip
    found = PlanFile(model=checkpoint.name, model_sha256=checkpoint.sha256, plans=listed)
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def read(path: Path) -> PlanFile:
    """Read a plan's file; it may come from a stranger.

    Raises:
        InputNotFoundError: nothing is there.
        FileFormatError: too large, not JSON, a wrong, missing or unknown key, a format listed twice.
    """
    found = read_json(path, PlanFile, "plan", MAX_BYTES, _AGAIN)
    if len({part.format for part in found.plans}) != len(found.plans):
        raise FileFormatError(f"{path} lists a format twice", expected="each format once", remedy=_AGAIN)
    return found


def follow(found: PlanFile, checkpoint: Checkpoint, target: Target, container: Container) -> Plan:
    """The plan for one container.

    Raises:
        OptionError: it is for another model, or not for this container.
        FileFormatError: a tensor is unknown or missing.
        GridError: a grid is unknown, of another container, does not suit the shape, or differs within a group of
            tensors that one node of the graph holds.
    """
    if found.model_sha256 != checkpoint.sha256:
        raise OptionError(
            f"the plan is for {found.model} (weights {found.model_sha256[:12]})",
            expected=f"one for {checkpoint.name} (weights {checkpoint.sha256[:12]})",
            remedy=_AGAIN,
        )
    part = next((part for part in found.plans if part.format == container), None)
    if part is None:
        raise OptionError(
            f"the plan lists no {container}", remedy=f"add --format {found.plans[0].format}, or plan {container} too"
        )
    own = groups(checkpoint.spec, container)
    _check_names(part.tensors, {name for group in own for name in group.names})
    for group in own:
        _check_group(group, [part.tensors[name] for name in group.names], container)
    return replace(plan_of_grids(checkpoint.spec, target, container, part.tensors), budget="a plan's file")


def _check_names(listed: Mapping[str, str], known: set[str]) -> None:
    if unknown := sorted(listed.keys() - known):
        raise FileFormatError(
            f"the plan names the tensor {unknown[0]!a}, which the model has not as a matrix",
            expected=f"names such as {min(known)}",
        )
    if missing := sorted(known - listed.keys()):
        raise FileFormatError(f"the plan leaves out {missing[0]}", expected="every matrix of the model", remedy=_AGAIN)


def _check_group(group: Group, grids: Sequence[str], container: Container) -> None:
    for tensor, name in zip(group.tensors, grids, strict=True):
        grid, lookup = get(name), container == "onnx" and group.kind == "embedding"
        if grid.container != container or (container == "onnx" and name.startswith("embed-") != lookup):
            expected = "one that begins with embed-" if lookup else f"one of {container}, and for a linear layer"
            raise GridError(f"the plan gives {tensor.hf} the format {name}", expected=expected)
        if refusal := grid.refusal((tensor.shape[0], tensor.shape[1])):
            raise GridError(f"the plan gives {tensor.hf} the format {name}: {refusal}", remedy="choose another format")
    if len(set(grids)) > 1:
        raise GridError(
            f"the plan gives {group.names[0]} {grids[0]} and another format to {group.names[-1]} or its neighbours",
            expected=f"one format, since one node of the graph holds {', '.join(group.names)}",
        )
