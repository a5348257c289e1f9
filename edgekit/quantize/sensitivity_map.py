"""What each format does to each group of tensors, as a file that is measured once and used again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import FileFormatError, OptionError
from edgekit.options import Container
from edgekit.quantize.groups import groups
from edgekit.quantize.json_file import read_json

MAX_BYTES = 64 << 20
_MOST_DAMAGE = 1e9
"""Nats: far above anything that is measured, far below what sums cannot hold."""
_AGAIN = "measure it again with edgekit sensitivity"
_Amount = Annotated[float, Meta(ge=0, le=1e300)]
_Name = Annotated[str, Meta(min_length=1, max_length=512)]
_Grid = Annotated[str, Meta(min_length=1, max_length=64)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class GroupDamage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group of tensors that share a format."""

    tensors: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=64)]
    anchor: _Grid
    """The 4-bit format whose damage was measured."""
    kl: _Amount
    """Mean KL divergence, nats, of the model with this group alone in the anchor format."""
    errors: Annotated[dict[_Grid, _Amount], Meta(min_length=1, max_length=64)]
    """Format → Σ E[x_j²] Δw_ij², the error of the group's outputs up to a common factor."""
    bytes: Annotated[dict[_Grid, Annotated[int, Meta(ge=1, le=1 << 50)]], Meta(min_length=1, max_length=64)]
    """Format → bytes in the file."""

    def damage(self, grid: str) -> float:
        """Estimated KL divergence, nats, of the model with this group alone in `grid`.

        KL is of second order in a small change of the weights, so it goes as their squared error:
        kl(grid) ≈ kl(anchor) · error(grid) / error(anchor). A group without error in the anchor, which is its
        coarsest 4-bit format, does no damage in any format.
        """
        base = self.errors[self.anchor]
        return self.kl * self.errors[grid] / base if base > 0 else 0.0


class SensitivityMap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a map's file."""

    schema_version: Literal[1] = 1
    kind: Literal["edgekit sensitivity map"] = "edgekit sensitivity map"
    model: _Name
    model_sha256: Sha256
    """Of the weights."""
    container: Container
    text_sha256: Sha256
    """Of the sample's token ids."""
    tokens: Annotated[int, Meta(ge=1)]
    groups: Annotated[tuple[GroupDamage, ...], Meta(min_length=1, max_length=100_000)]

    @property
    def digest(self) -> str:
        """SHA-256 of the map's content."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def to_json(found: SensitivityMap) -> bytes:
    """Indented JSON with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def read(path: Path) -> SensitivityMap:
    """Read and check a map; it may come from a stranger.

    Raises:
        InputNotFoundError: nothing is there.
        FileFormatError: too large, not JSON (which knows no NaN), a wrong, missing or unknown key, a number that is
            negative or not finite, a group without its anchor's error.
    """
    found = read_json(path, SensitivityMap, "sensitivity map", MAX_BYTES, _AGAIN)
    for group in found.groups:
        if group.anchor not in group.errors or group.errors.keys() != group.bytes.keys():
            raise FileFormatError(
                f"{path}: group {group.tensors[0]} has not the same formats in errors, bytes and anchor", remedy=_AGAIN
            )
        if not all(group.damage(grid) <= _MOST_DAMAGE for grid in group.errors):
            raise FileFormatError(
                f"{path}: group {group.tensors[0]} does more than {_MOST_DAMAGE:g} nats of damage", remedy=_AGAIN
            )
    return found


def check(found: SensitivityMap, checkpoint: Checkpoint, container: Container) -> SensitivityMap:
    """The map, when it is one of this model for this container.

    Raises:
        OptionError: it is of another model or container.
        FileFormatError: its groups are not those of the model, or their bytes are not those of the formats.
    """
    if found.model_sha256 != checkpoint.sha256:
        raise OptionError(
            f"the sensitivity map is of {found.model} (weights {found.model_sha256[:12]})",
            expected=f"one of {checkpoint.name} (weights {checkpoint.sha256[:12]})",
            remedy=_AGAIN,
        )
    if found.container != container:
        raise OptionError(
            f"the sensitivity map is for {found.container}",
            expected=f"one for {container}",
            remedy=f"measure it with edgekit sensitivity --container {container}",
        )
    own = {group.names: group for group in groups(checkpoint.spec, container)}
    if [group.tensors for group in found.groups] != list(own):
        raise FileFormatError("the sensitivity map has not this model's groups of tensors", remedy=_AGAIN)
    for group in found.groups:
        for grid, size in group.bytes.items():
            if not own[group.tensors].fits(grid) or own[group.tensors].nbytes(grid) != size:
                raise FileFormatError(
                    f"the sensitivity map says {size} bytes of {group.tensors[0]} in {grid}, which is not so",
                    remedy=_AGAIN,
                )
    return found


def chosen(paths: Sequence[Path], checkpoint: Checkpoint, container: Container) -> SensitivityMap | None:
    """Of several maps the one for this container, checked; None when there is none.

    Raises:
        OptionError: one is of another model, or two are for this container; otherwise as :func:`read`.
    """
    maps = [found for path in paths if (found := read(path)).container == container]
    if len(maps) > 1:
        raise OptionError(f"two sensitivity maps are for {container}", expected="one for each format")
    return check(maps[0], checkpoint, container) if maps else None
